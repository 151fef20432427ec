"""Processes forked from the test's own: they start in milliseconds, and may be killed."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.steps import Victim

Work = Callable[[], Any]

NOBODY = 65534
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS and CLONE_NEWUSER of Linux


def at_once(*works: Work) -> list[Any]:
    """Run functions in processes of their own that all start at the same moment.

    :return: what each returned, or the exception that it raised.
    """
    go, start = os.pipe()
    children = []
    for work in works:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start)
            os.read(go, 1)  # returns once the parent has closed its end
            _report(work, write)
        os.close(write)
        children.append((pid, read))
    os.close(go)
    os.close(start)
    results = []
    for pid, read in children:
        with os.fdopen(read, "rb") as pipe:
            results.append(pickle.loads(pipe.read()))
        os.waitpid(pid, 0)
    return results


@contextmanager
def running(work: Work) -> Iterator[int]:
    """Run a function in a process, yield its id, and kill it at the end."""
    pid = os.fork()
    if pid == 0:
        _report(work, os.open(os.devnull, os.O_WRONLY))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def killed_at(step: int, work: Work) -> bool:
    """Run a function in a process that kills itself just before its n-th request, or change of the file system.

    Changes are whatever makes, renames, links or removes a name, opens a file for writing, writes to it (once before,
    once in the middle) or makes it durable. Making durable itself is left out: a killed process loses no written byte.
    At a request there are two steps: before it is sent, and when its answer is there that nobody has read.

    :return: whether it came that far; ``False`` means that the work was done before.
    """

    def armed() -> None:
        _kill_before(step)
        work()

    return Victim(armed).run()


def as_nobody(work: Work) -> Work:
    """Return a function that a process of its own may run as a user who owns nothing; root is refused nothing."""

    def become_nobody() -> Any:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return become_nobody


def on_disk(place: Path, options: str, work: Work) -> Work:
    """Return a function that a process of its own may run, which finds another disk at a place.

    :param place: an empty directory.
    :param options: of the disk, as ``mount`` has them, e.g. ``"size=1m"`` or ``"ro"``.
    """
    _require_namespaces()

    def with_disk() -> Any:
        user, group = os.getuid(), os.getgid()
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", str(place)], check=True)
        return work()

    return with_disk


def in_namespace(script: str, *arguments: Path) -> str:
    """Run Python in user and mount namespaces of its own, where it may mount what it likes."""
    _require_namespaces()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    result = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _require_namespaces() -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine forbids user namespaces")


def _report(work: Work, write: int) -> NoReturn:
    try:
        result = work()
    except BaseException as error:
        result = error
    try:
        content = pickle.dumps(result)
    except Exception:
        content = pickle.dumps(RuntimeError(repr(result)))
    with os.fdopen(write, "wb") as pipe:
        pipe.write(content)
    os._exit(0)


_NAME_CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.utime"}


def _kill_before(step: int) -> None:
    import http.client

    import httpx

    from airflow_provider_modelsync.core import durable

    left = step

    def change() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NAME_CHANGES or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            change()

    real_write = os.write

    def write(descriptor: int, data: Any) -> int:
        change()
        half = real_write(descriptor, data[: len(data) // 2]) if len(data) > 1 else 0
        change()
        return half + real_write(descriptor, data[half:])

    def sync(descriptor: int) -> int:
        change()
        return 0

    def surrounded(fn: Callable[..., Any]) -> Callable[..., Any]:
        def request(*arguments: Any, **options: Any) -> Any:
            change()
            answer = fn(*arguments, **options)
            change()
            return answer

        return request

    httpx.Client.send = surrounded(httpx.Client.send)  # type: ignore[method-assign]
    connection = http.client.HTTPConnection  # of urllib3, and so of botocore
    for name in ("putrequest", "getresponse"):
        setattr(connection, name, surrounded(getattr(connection, name)))
    os.write = write
    os.fsync = sync  # type: ignore[assignment]
    durable._syncfs = sync
    sys.addaudithook(audit)

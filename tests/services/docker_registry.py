"""Debian's docker-registry, which is CNCF Distribution: a real OCI registry, up in a moment."""

from __future__ import annotations

import atexit
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

import pytest
import yaml

from scripts.local_airflow import free_port
from tests.services.daemons import PATIENCE

PROGRAM = "docker-registry"
USER, PASSWORD = "alice", "secret-3f9a"


def is_installed() -> bool:
    """Whether there is one to start."""
    return shutil.which(PROGRAM) is not None


needs_registry = pytest.mark.skipif(
    not is_installed(), reason=f"needs Debian's package {PROGRAM}, which `make test-oci` brings"
)


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


@dataclass
class DockerRegistry:
    """A running registry.

    :param url: where it answers.
    :param directory: where it keeps what it has.
    :param config: its configuration's file.
    """

    url: str
    directory: Path
    config: Path

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def trace(self, namespace: str) -> list[str]:
        """What it has stored of the repositories below a name."""
        below = self.directory / "docker" / "registry" / "v2" / "repositories" / namespace
        return sorted(path.as_posix() for path in below.rglob("*"))

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, follow: bool = True, **headers: str
    ) -> tuple[int, Any, bytes]:
        """Make a plain call, as no client of ours does; return status, headers and body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(f"{self.url}{path}", body, named, method=method)
        try:
            with (urlopen if follow else build_opener(_Stay).open)(request) as answer:
                return answer.status, answer.headers, answer.read()
        except OSError as error:
            if not hasattr(error, "code"):
                raise
            return error.code, error.headers, error.read()  # type: ignore[attr-defined]

    def manifest(self, name: str, tag: str) -> dict[str, Any]:
        accept = "application/vnd.oci.image.manifest.v1+json"
        return json.loads(self.ask("GET", f"/v2/{name}/manifests/{tag}", Accept=accept)[2])


@cache
def shared() -> DockerRegistry:
    """Return a registry that the whole process uses, each test below a name of its own."""
    stack = ExitStack()
    atexit.register(stack.close)
    directory = stack.enter_context(TemporaryDirectory(prefix="modelsync-registry-"))
    return stack.enter_context(running(Path(directory)))


@contextmanager
def running(
    directory: Path, *, relative: bool = False, secret: str = "any", **settings: Any
) -> Iterator[DockerRegistry]:
    """Have a registry on a free port.

    :param directory: its own.
    :param relative: whether it names places relatively.
    :param secret: seals what it gives away about uploads.
    :param settings: parts of its configuration, merged into the usual one.
    """
    port = free_port()
    storage: dict[str, Any] = {
        "filesystem": {"rootdirectory": str(directory / "storage")},
        "delete": {"enabled": True},
        "maintenance": {"uploadpurging": {"enabled": False}},
    }
    configuration = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": storage,
        "http": {"addr": f"127.0.0.1:{port}", "secret": secret, "relativeurls": relative},
        **settings,
    }
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yml"
    config.write_text(yaml.safe_dump(configuration))
    # It panics at an empty bundle, and an S3 of the tests is reached without TLS.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory)}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(config)], env=environment, stdout=log, stderr=log)
    try:
        _wait_for(port, process, directory / "log")
        yield DockerRegistry(f"http://127.0.0.1:{port}", directory / "storage", config)
    finally:
        process.terminate()
        process.wait()


def collect_garbage(config: Path) -> None:
    """Remove all blobs that no manifest names, as an operator does."""
    command = [PROGRAM, "garbage-collect", "--delete-untagged", str(config)]
    subprocess.run(command, check=True, capture_output=True)


def htpasswd(directory: Path) -> dict[str, Any]:
    """Return the part of a configuration that asks for a password."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "htpasswd"
    line = subprocess.run(["htpasswd", "-Bbn", "-C", "5", USER, PASSWORD], check=True, capture_output=True).stdout
    path.write_bytes(line)
    return {"auth": {"htpasswd": {"realm": "modelsync", "path": str(path)}}}


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{PROGRAM} ended: {log.read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"{PROGRAM} does not answer")

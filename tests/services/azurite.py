"""Azurite, Microsoft's own emulator of Azure Blob Storage, on a free port of 127.0.0.1.

It comes from the npm registry into ``.azurite``, which ``make test-stores`` builds of what is locked for it: with the
Node.js that it asks for, which is newer than what systems have.
"""

from __future__ import annotations

import atexit
import base64
import hmac
import json
import secrets
import signal
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import pytest

from scripts.local_airflow import free_port
from tests.services.daemons import daemon, scratch

_HOME = Path(__file__).parents[2]
_MODULES = _HOME / ".azurite" / "node_modules"
_PROGRAM = _MODULES / "azurite" / "dist" / "src" / "blob" / "main.js"
_VERSION = "2023-11-03"


def release() -> str:
    """Return the release that is locked."""
    locked = json.loads((_HOME / "requirements" / "azurite" / "package.json").read_text())
    return str(locked["dependencies"]["azurite"])


@dataclass(frozen=True)
class BlobService:
    """An Azure Blob service that belongs to the tests.

    :param url: base URL, the account's name as its path.
    :param key: the account's key.
    """

    url: str
    account: str
    key: str = field(repr=False)

    def new_container(self) -> str:
        """Make a container that nobody else knows, and return its name."""
        name = f"test-{secrets.token_hex(8)}"
        self.call("PUT", f"/{name}", {"restype": "container"})
        return name

    def call(self, method: str, path: str, query: Mapping[str, str]) -> bytes:
        """Send a request without a body that the account's key signs; return the answer's body."""
        told = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        own = "".join(f"{name}:{value}\n" for name, value in told.items())
        asked = "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        # Eleven headers that are not sent.
        signed = f"{method}{chr(10) * 12}{own}/{self.account}/{self.account}{path}{asked}"
        proof = base64.b64encode(hmac.digest(base64.b64decode(self.key), signed.encode(), "sha256")).decode()
        told["Authorization"] = f"SharedKey {self.account}:{proof}"
        request = urllib.request.Request(f"{self.url}{path}?{urlencode(query)}", headers=told, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def running_azurite() -> Iterator[BlobService]:
    """Run Azurite with an account of its own, in memory."""
    if not _PROGRAM.exists():
        pytest.fail(f"there is no {_PROGRAM}: start these tests with `make test-stores`", pytrace=False)
    port, account = free_port(), "modelsync"
    node = next(_MODULES.glob("node-linux-*/bin/node"), "node")
    key = base64.b64encode(secrets.token_bytes(64)).decode()

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with scratch("azurite") as root:
        line = (
            *("env", f"AZURITE_ACCOUNTS={account}:{key}", str(node), str(_PROGRAM), "--silent", "--disableTelemetry"),
            *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
            *("--skipApiVersionCheck", "--inMemoryPersistence"),
        )
        with daemon(line, root / "log", ready=answers, end=signal.SIGKILL):
            yield BlobService(f"http://127.0.0.1:{port}/{account}", account, key)


@cache
def shared() -> BlobService:
    """Return a service that the whole process uses, each test in a container of its own."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_azurite())

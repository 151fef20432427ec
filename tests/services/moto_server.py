"""moto's S3 in threads of this process: quick to start, and it knows the conditional writes that Ceph lacks.

It believes every signature and checksum; :mod:`tests.standins.s3` in front of it does not.
"""

from __future__ import annotations

import io
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from tests.services.s3 import S3Service


class Moto(S3Service):
    """moto, which the tests' own process may ask without a network."""

    def new_bucket(self) -> str:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        name = f"test-{secrets.token_hex(8)}"
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(name, "us-east-1")
        return name

    def etag(self, bucket: str, key: str) -> str | None:
        found = objects_in(bucket).get(key)
        return None if found is None else str(found.etag).strip('"')

    def connection(self) -> Call:
        place = urlsplit(self.endpoint)
        return Call(str(place.hostname), place.port or 0)


def objects_in(bucket: str) -> Any:
    """Return the objects of a bucket by key, as moto keeps them; none where there is no such bucket."""
    found = holding(bucket)
    return found.buckets[bucket].keys if found else {}


def holding(bucket: str) -> Any:
    """Return what holds a bucket, ``None`` when nothing does."""
    from moto.s3.models import s3_backends

    regions = (region for account in list(s3_backends.values()) for region in list(account.values()))
    return next((region for region in regions if bucket in region.buckets), None)


@dataclass
class Call:
    """One request to moto's application in this process, as ``http.client`` would make it."""

    host: str
    port: int
    _environment: dict[str, Any] = field(default_factory=dict)
    _body: list[bytes] = field(default_factory=list)

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        path, _, query = url.partition("?")
        self._environment = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "REQUEST_URI": url,
            "RAW_URI": url,
            "REMOTE_ADDR": self.host,
            "SERVER_NAME": self.host,
            "SERVER_PORT": str(self.port),
            "SERVER_PROTOCOL": "HTTP/1.1",
        }

    def putheader(self, name: str, value: str, /) -> None:
        known = name.upper().replace("-", "_")
        self._environment[known if known in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{known}"] = value

    def endheaders(self) -> None:
        """Nothing is on its way yet."""

    def send(self, block: bytes, /) -> None:
        self._body.append(block)

    def getresponse(self) -> _Answered:
        from werkzeug.test import run_wsgi_app

        self._environment["wsgi.input"] = io.BytesIO(b"".join(self._body))
        try:
            blocks, status, headers = run_wsgi_app(_application(), self._environment)
        except Exception:  # moto fails where a part comes while its upload is given up; its own server says as much
            return _Answered(500, [("Content-Length", "0")], io.BytesIO())
        return _Answered(int(status.partition(" ")[0]), list(headers), io.BytesIO(b"".join(blocks)))

    def close(self) -> None:
        self._body.clear()


@dataclass(frozen=True)
class _Answered:
    status: int
    headers: list[tuple[str, str]]
    body: io.BytesIO

    def getheaders(self) -> Iterable[tuple[str, str]]:
        return self.headers

    def read(self, size: int | None = None, /) -> bytes:
        return self.body.read(size)


@cache
def _application() -> Any:
    from moto.moto_server.werkzeug_app import create_backend_app

    return create_backend_app("s3")


@contextmanager
def running_moto() -> Iterator[Moto]:
    """Have a server on a free port: one for the whole process, started when it is first wanted."""
    yield _server()


@contextmanager
def own_clock() -> Iterator[Callable[[], None]]:
    """Yield what lets a second pass in the server: S3 tells times in whole ones."""
    from moto.s3 import models

    real, ahead = models.utcnow, timedelta()

    def pass_a_second() -> None:
        nonlocal ahead
        ahead += timedelta(seconds=1)

    models.utcnow = lambda: real() + ahead
    try:
        yield pass_a_second
    finally:
        models.utcnow = real


@cache
def _server() -> Moto:
    from moto.moto_server import werkzeug_app
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    handler: Any = getattr(werkzeug_app, "MotoRequestHandler", WSGIRequestHandler)  # since moto 5.2

    class Quiet(handler):
        """Logs nothing."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    class Application(DomainDispatcherApplication):
        """Lists moto's modules once, not for each request."""

        @cache  # noqa: B019 (it lives as long as the process)
        def get_backend_for_host(self, host: str | None) -> Any:
            return super().get_backend_for_host(host)

    application = Application(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return Moto(f"http://127.0.0.1:{server.server_port}", "AKIAMOTO", "moto-secret", checks_signatures=False)

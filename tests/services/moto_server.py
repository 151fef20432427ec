"""moto's S3 in threads of this process: quick to start, and it knows the conditional writes that Ceph lacks.

It believes every signature and checksum; :mod:`tests.standins.s3` in front of it does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from tests.services.s3 import S3Service


@contextmanager
def running_moto() -> Iterator[S3Service]:
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
def _server() -> S3Service:
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
    return S3Service(f"http://127.0.0.1:{server.server_port}", "AKIAMOTO", "moto-secret", checks_signatures=False)

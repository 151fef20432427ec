"""A BentoCloud stand-in behind an Airflow connection, with one model, two bentos of it, and a canary for secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Request

CONNECTION = "bentocloud_default"
CANARY = "canary-4f1c0de5"
DEPLOYMENTS = "/api/v2/deployments"


@contextmanager
def running_cloud(directory: Path) -> Iterator[BentoCloudStandIn]:
    """Start a server where ``fraud:v1`` is part of the bentos ``svc:1`` and ``svc:2``."""
    with BentoCloudStandIn(directory) as server:
        server.seed("fraud", "v1")
        server.seed_bento("svc", "1", models=["fraud:v1"], build_at=datetime(2026, 1, 1, tzinfo=UTC))
        server.seed_bento("svc", "2", models=["fraud:v1"], build_at=datetime(2026, 1, 2, tzinfo=UTC))
        yield server


def changes(server: BentoCloudStandIn, name: str | None = None) -> list[tuple[str, str]]:
    """What deployments were asked to become, or the one of this name: method and rest of the path."""
    return [
        (request.method, request.path.removeprefix(DEPLOYMENTS))
        for request in server.find(path=DEPLOYMENTS)
        if request.method != "GET" and name in (None, _deployment(request))
    ]


def _deployment(request: Request) -> str:
    _, _, rest = request.path.removeprefix(DEPLOYMENTS).partition("/")
    return rest.partition("/")[0] or str((request.body or {}).get("name"))


def newest(server: BentoCloudStandIn, name: str = "demo") -> str:
    """The uid of a deployment's newest revision."""
    return server.deployments[name].revisions[-1].uid


def bodies(server: BentoCloudStandIn) -> list[Request]:
    """The requests that roll out."""
    return [request for request in server.find(path=DEPLOYMENTS) if request.body and "bento" in request.body]

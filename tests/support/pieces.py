"""A Pieces stand-in behind an Airflow connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_provider_modelsync.core.registries.pieces import api as pieces_api
from airflow_provider_modelsync.core.registries.pieces import progress as pieces_progress
from tests.conftest import Connect
from tests.standins.pieces import Download, PiecesStandIn, model

CONNECTION = "pieces_default"
PHI = model("Phi 2")
OTHER = model("Other")
ENDLESS = Download(outcome=None)
DOWNLOAD, CANCEL = "download", "download/cancel"


class _Soon:
    attempts = 3

    def delay(self, failures: int) -> float:
        return 0.02


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other soon, and nothing is waited for when a socket is closed."""
    for module in (pieces_api, pieces_progress):
        monkeypatch.setattr(module, "BACKOFF", _Soon())
    monkeypatch.setattr(pieces_progress, "_CLOSE_SECONDS", 0.1)


@contextmanager
def running_host(connect: Connect) -> Iterator[PiecesStandIn]:
    """Start a host with two models that came with the program, one in the cloud, and one of the user's own."""
    own = model("Own", custom=True, foundation="PHI_99", house="mine")
    with PiecesStandIn([PHI, OTHER, model("Claude", cloud=True), own]) as server:
        connect(CONNECTION, conn_type="pieces", host=server.url)
        yield server


def verbs(server: PiecesStandIn) -> list[str]:
    """What the host was asked to do."""
    posts = [request.path for request in server.requests if request.method == "POST"]
    return ["/".join(path.split("/")[3:]) or path for path in posts]

"""The Pieces example inside this process, against a stand-in of the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.triggers import fetch, model
from tests.conftest import Connect
from tests.standins.pieces import Download, PiecesStandIn
from tests.support.examples import run_example
from tests.support.pieces import DOWNLOAD, PHI, quickly, running_host, verbs

pytestmark = pytest.mark.documents


@pytest.fixture
def server(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[PiecesStandIn]:
    for module in (fetch, model):
        monkeypatch.setattr(module, "MIN_POLL_INTERVAL", 0.1)
    quickly(monkeypatch)
    with running_host(connect) as server:
        server.download = Download(tick=0.1)
        yield server


def test_a_model_is_downloaded_loaded_used_and_unloaded(airflow_database: Path, server: PiecesStandIn) -> None:
    state, tasks, left = run_example("pieces_local_model", model=PHI["unique"])

    assert state == "success"
    assert set(tasks.values()) == {"success"}
    assert left["download"]["ref"] == left["load"]["model"]
    assert left["load"]["ready"]
    assert f"{PHI['unique']} is loaded: True" in left["use"]
    assert left["unload"]["gone"]
    assert verbs(server) == [DOWNLOAD, "load", "unload"]
    assert server.models[PHI["id"]]["downloaded"]
    assert not server.models[PHI["id"]]["loaded"]

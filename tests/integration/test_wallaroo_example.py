"""The Wallaroo example inside this process, against a stand-in that runs the very model that was pushed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.triggers import deployment, model
from tests.conftest import Connect
from tests.standins.wallaroo import WallarooStandIn, run_onnx
from tests.support.examples import run_example


@pytest.fixture
def server(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[WallarooStandIn]:
    monkeypatch.setattr(model, "MIN_POLL_INTERVAL", 0.1)
    monkeypatch.setattr(deployment, "MIN_POLL_INTERVAL", 0.1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with WallarooStandIn(tmp_path / "instance") as server:
        server.predict = run_onnx
        server.add_workspace("examples")
        fields = {"host": server.url, "login": server.username, "password": server.password}
        connect("wallaroo_default", conn_type="wallaroo", extra={"workspace": "examples"}, **fields)
        yield server


@pytest.mark.slow
def test_a_model_is_trained_served_asked_and_put_away(airflow_database: Path, server: WallarooStandIn) -> None:
    state, tasks, left = run_example("wallaroo_train_push_deploy")

    assert state == "success"
    assert set(tasks.values()) == {"success"}
    assert left["compare"] == "450 of 450 predictions are identical"
    assert (left["predict"]["count"], left["predict"]["model"]) == (450, left["push"]["ref"])
    assert left["deploy"]["ready"]
    assert left["undeploy"]["gone"]
    assert len(server.versions_of("digits")) == 1
    told = json.dumps(left)
    assert not [secret for secret in (*server.access_tokens, server.password) if secret in told]

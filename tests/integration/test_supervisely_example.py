"""Supervisely's example, and a prediction without a worker, inside this process, against stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.triggers import deployment, predict
from tests.conftest import Connect
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.support.examples import run_dag, run_example
from tests.support.images import png

pytestmark = pytest.mark.documents


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp(model=None, freezes=True) as app:
        yield app


@pytest.fixture
def server(
    tmp_path: Path, app: SuperviselyApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SuperviselyStandIn]:
    for module in (deployment, predict):
        monkeypatch.setattr(module, "MIN_POLL_INTERVAL", 0.1)
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        extra = {"team_id": server.team_id, "workspace_id": server.workspace_id}
        connect("supervisely_default", conn_type="supervisely", host=server.url, password=server.token, extra=extra)
        yield server


def test_a_detector_is_served_predicts_a_folder_and_leaves_the_gpu(
    airflow_database: Path,
    server: SuperviselyStandIn,
    app: SuperviselyApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, output = tmp_path / "images" / "below", tmp_path / "predictions.jsonl"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(80, 8, (0, 0, 60 + number, 7)))
    monkeypatch.setenv("AIRFLOW_VAR_SUPERVISELY_IMAGES", str(folder.parent))
    monkeypatch.setenv("AIRFLOW_VAR_SUPERVISELY_PREDICTIONS", str(output))
    server.proxy_limit, app.load_seconds = 0.2, 1.0

    state, tasks, left = run_example("supervisely_batch_predict", framework="TinyBlob", model="blob-slow")

    assert state == "success"
    assert tasks == {"deploy": "success", "predict": "success", "freeze": "success"}
    assert (left["deploy"]["ready"], left["deploy"]["model"]) == (True, "blob-slow")
    assert (left["predict"]["count"], left["predict"]["output"]) == (3, str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(folder / f"{number}.png") for number in range(3)]
    assert [len(line["annotation"]["objects"]) for line in lines] == [1, 1, 1]
    assert left["freeze"]["frozen"]
    assert app.frozen
    told = json.dumps(left)
    assert not [secret for secret in (server.token, server.tasks[20001].session_token) if secret in told]


def test_a_project_is_predicted_while_no_worker_waits(
    airflow_database: Path, server: SuperviselyStandIn, app: SuperviselyApp, tmp_path: Path
) -> None:
    from tests.integration.dags.predict_remote import dag

    app.loaded = SuperviselyApp(model="blob-tiny").loaded
    app.pictures = {number: png(80, 8, (0, 0, number, 3)) for number in range(1, 41)}
    app.projects = {21: [*app.pictures]}
    app.predict_seconds, app.unread_limit = 0.01, 30
    server.seed_task(name="blobs")
    output = tmp_path / "predictions.jsonl"

    state, _, left = run_dag(dag, output=str(output))

    assert state == "success"
    assert left["predict"]["count"] == 40
    assert [json.loads(line)["image_id"] for line in output.read_text().splitlines()] == [*range(1, 41)]
    assert app.count("POST", "inference_project_id_async$") == 1

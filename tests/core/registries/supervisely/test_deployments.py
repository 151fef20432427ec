"""Deployments: tasks that are started, found by their names, loaded, and ended."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.models import EMPTY, RollOut, Undo
from airflow_provider_modelsync.core.registries.supervisely import deployments as supervisely_deployments
from airflow_provider_modelsync.core.verbs import wait
from tests.core.registries.supervisely.serving import DIRECT, Connection, direct, platform
from tests.standins.http_server import LoseAnswer, Respond
from tests.standins.supervisely import Module, SuperviselyStandIn, agent
from tests.standins.supervisely_app import SuperviselyApp

pytestmark = pytest.mark.usefixtures("no_waiting")

RUN = r"/tasks\.run\.app$"
ROOT = "/experiments/1_x/265_TinyBlob"
CHECKPOINT = f"{ROOT}/checkpoints/best.pt"
INFO = {
    "experiment_name": "x",
    "framework_name": "TinyBlob",
    "model_name": "blob-custom",
    "model_files": {"config": "config.yaml"},
    "model_meta": "model_meta.json",
    "checkpoints": ["checkpoints/best.pt"],
    "best_checkpoint": "best.pt",
    "artifacts_dir": ROOT,
}


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp(model=None) as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path, app=app.url) as server:
        for path, content in {
            "experiment_info.json": json.dumps(INFO).encode(),
            "checkpoints/best.pt": b"weights",
            "checkpoints/last.onnx": b"more weights",
            "config.yaml": b"",
        }.items():
            server.seed_file(f"{ROOT}/{path}", content)
        yield server


@pytest.fixture
def cv(server: SuperviselyStandIn) -> Connection:
    return platform(server)


def loads(app: SuperviselyApp) -> list[dict[str, Any]]:
    return [request.body["state"] for request in app.find("POST", "deploy_from_api")]


# ---- deploy -----------------------------------------------------------------------------------------------------


def test_an_experiment_is_served_by_its_frameworks_app(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    made = cv.deploy("blobs", "1_x")
    task = server.tasks[20001]
    assert (task.name, task.module.id, task.agent) == ("blobs", 77, 3)
    assert (made.name, made.ready, made.failed, made.status) == ("blobs", True, False, "started")
    assert (made.model, made.artifact) == ("1_x:265_TinyBlob", CHECKPOINT)
    assert made.page == f"{server.url}/apps/sessions/20001"
    (state,) = loads(app)
    params = state["deploy_params"]
    assert params["model_files"] == {"checkpoint": CHECKPOINT, "config": f"{ROOT}/config.yaml"}
    assert (params["model_source"], params["runtime"], state["model_name"]) == ("Custom models", "PyTorch", None)
    assert params["model_info"]["artifacts_dir"] == ROOT


def test_a_pretrained_model_is_named_by_framework_and_name(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    made = cv.deploy("blobs", "TinyBlob:blob-small", pretrained=True, device="cpu")
    assert (made.ready, made.model, made.artifact) == (True, "blob-small", "blob-small")
    assert server.find("POST", "agents.available")[0].body["needGPU"] is False
    assert loads(app)[0]["deploy_params"] == {
        "model_source": "Pretrained models",
        "device": "cpu",
        "runtime": None,
    }


def test_another_checkpoint_device_and_runtime_may_be_named(cv: Connection, app: SuperviselyApp) -> None:
    cv.deploy("blobs", "1_x:265_TinyBlob", checkpoint="last.onnx", device="cpu")
    params = loads(app)[0]["deploy_params"]
    assert params["model_files"]["checkpoint"] == f"{ROOT}/checkpoints/last.onnx"
    assert (params["device"], params["runtime"]) == ("cpu", "ONNXRuntime")


def test_the_agent_with_the_most_free_memory_is_chosen(cv: Connection, server: SuperviselyStandIn) -> None:
    server.agents = [agent(4, available=10), agent(5, available=900), {**agent(6, available=1), "type": "kubernetes"}]
    cv.deploy("blobs", "1_x")
    assert server.tasks[20001].agent == 5


def test_a_cluster_is_used_where_there_is_no_machine(cv: Connection, server: SuperviselyStandIn) -> None:
    server.agents = [{**agent(6, available=1), "type": "kubernetes"}]
    cv.deploy("blobs", "1_x")
    assert server.tasks[20001].agent == 6


def test_no_agent_is_no_answer_for_ever(cv: Connection, server: SuperviselyStandIn) -> None:
    server.agents = [agent(4)]
    with pytest.raises(RegistryUnavailable, match="'cpu' does without a GPU"):
        cv.deploy("blobs", "1_x")
    assert not server.tasks


def test_deploying_what_runs_already_changes_nothing(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    first = cv.deploy("blobs", "1_x")
    again = platform(server).deploy("blobs", "1_x")
    assert again == first
    assert (len(server.tasks), len(loads(app))) == (1, 1)


def test_another_model_is_loaded_into_the_running_task(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    first = cv.deploy("blobs", "1_x")
    second = cv.deploy("blobs", "TinyBlob:blob-tiny", pretrained=True)
    assert len(server.tasks) == 1
    assert (first.revision, second.revision) == (f"checkpoint:{CHECKPOINT}", "pretrained:blob-tiny")
    back = cv.deploy("blobs", "1_x", revision=first.revision)
    assert (back.revision, back.ready, back.model) == (first.revision, True, "1_x:265_TinyBlob")


def test_a_roll_out_can_be_taken_back(cv: Connection, server: SuperviselyStandIn) -> None:
    first = cv.deploy("blobs", "1_x")
    second = cv.deploy("blobs", "TinyBlob:blob-tiny", pretrained=True)
    rolled = RollOut(
        deployment="blobs", model="1_x", undo=Undo.RESTORE, replaced=first.revision, revision=second.revision
    )
    assert "goes back" in cv.run(lambda registry: wait.take_back(registry, rolled))
    assert cv.deployment("blobs").revision == first.revision
    created = RollOut(deployment="blobs", model="1_x", undo=Undo.TERMINATE, revision=first.revision)
    assert "terminated" in cv.run(lambda registry: wait.take_back(registry, created))
    assert server.tasks[20001].status == "terminating"


def test_a_roll_out_that_is_still_loading_is_ones_own(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    first = cv.deploy("blobs", "TinyBlob:blob-tiny", pretrained=True)
    server.proxy_limit = 0.3
    app.loads.clear()
    second = cv.deploy("blobs", "TinyBlob:blob-slow", pretrained=True)
    server.proxy_limit = None
    assert (second.revision, cv.deployment("blobs").revision) == ("pretrained:blob-slow", EMPTY)
    rolled = RollOut(
        deployment="blobs", model="blob-slow", undo=Undo.RESTORE, replaced=first.revision, revision=second.revision
    )
    assert "goes back" in cv.run(lambda registry: wait.take_back(registry, rolled))
    assert cv.deployment("blobs").revision == first.revision
    others = rolled.model_copy(update={"revision": "pretrained:blob-small", "replaced": "pretrained:blob-slow"})
    assert "is left as it is" in cv.run(lambda registry: wait.take_back(registry, others))


def test_a_start_that_has_loaded_meanwhile_is_still_ones_own(cv: Connection, server: SuperviselyStandIn) -> None:
    cv.deploy("blobs", "1_x")
    created = RollOut(deployment="blobs", model="1_x", undo=Undo.TERMINATE, revision=EMPTY)
    assert "terminated" in cv.run(lambda registry: wait.take_back(registry, created))
    assert server.tasks[20001].status == "terminating"


def test_a_slow_load_is_accepted_and_then_waited_for(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    cv.deploy("blobs", "TinyBlob:blob-tiny", pretrained=True)
    server.proxy_limit = 0.3
    app.loads.clear()
    made = cv.deploy("blobs", "TinyBlob:blob-slow", pretrained=True)
    assert (made.ready, made.failed, made.revision) == (False, False, "pretrained:blob-slow")
    assert cv.run(lambda registry: wait.find_ready(registry, "blobs", made.revision)) is None
    app.loads.set()
    found = None
    while found is None:
        found = cv.run(lambda registry: wait.find_ready(registry, "blobs", made.revision))
    assert (found.ready, found.revision) == (True, made.revision)
    assert len(loads(app)) == 2


def test_a_failed_load_ends_the_task_that_was_started_for_it(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    with pytest.raises(DeploymentFailed, match="nothing is served"):
        cv.deploy("blobs", "TinyBlob:blob-broken", pretrained=True)
    assert server.tasks[20001].status == "terminating"
    with pytest.raises(InvalidInput, match="no pretrained model 'nope'"):
        cv.deploy("others", "TinyBlob:nope", pretrained=True)
    assert server.tasks[20002].status == "terminating"


def test_a_failed_load_leaves_a_task_that_was_there(cv: Connection, server: SuperviselyStandIn) -> None:
    cv.deploy("blobs", "1_x")
    with pytest.raises(InvalidInput):
        cv.deploy("blobs", "TinyBlob:nope", pretrained=True)
    assert server.tasks[20001].status == "started"
    assert cv.deployment("blobs").ready


def test_a_model_of_another_framework_leaves_what_is_served(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    server.modules.append(Module(78, "Serve Other", ("serve", "framework:Other")))
    server.seed_file("/experiments/2_y/1_z/checkpoints/best.pt", b"")
    info = {"best_checkpoint": "best.pt", "framework_name": "Other"}
    server.seed_file("/experiments/2_y/1_z/experiment_info.json", json.dumps(info).encode())
    cv.deploy("blobs", "1_x")
    with pytest.raises(InvalidInput, match="another framework"):
        cv.deploy("blobs", "2_y")
    assert cv.deployment("blobs").model == "1_x:265_TinyBlob"


def test_a_task_that_fails_to_start_is_told(cv: Connection, server: SuperviselyStandIn) -> None:
    server.next_statuses = ["queued", "consumed", "error"]
    with pytest.raises(DeploymentFailed, match="is error before its app was up"):
        cv.deploy("blobs", "1_x")


def test_an_app_that_takes_long_to_come_up_is_found_again(
    cv: Connection, server: SuperviselyStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.next_statuses = ["queued"]
    with monkeypatch.context() as patched:
        patched.setattr(supervisely_deployments, "START_SECONDS", 0.3)
        with pytest.raises(RegistryUnavailable, match="not up yet"):
            cv.deploy("blobs", "1_x")
    server.tasks[20001].status = "started"
    assert cv.deploy("blobs", "1_x").ready
    assert len(server.tasks) == 1


def test_a_start_whose_answer_is_lost_is_looked_after(cv: Connection, server: SuperviselyStandIn) -> None:
    server.fault("POST", RUN, LoseAnswer())
    assert cv.deploy("blobs", "1_x").ready
    assert (server.count("POST", RUN), len(server.tasks)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "model", "config", "said"),
    [
        ("blobs", "1_x", {"gpu": 1}, "gpu"),
        ("blobs", "1_x", {"runtime": "jax"}, "jax"),
        ("blobs", "1_x", {"revision": "r", "device": "cpu"}, "allowed alone"),
        ("blobs", "1_x", {"revision": "r"}, "no revision 'r'"),
        ("blobs", "1_x", {"checkpoint": "absent.pt"}, "no checkpoint 'absent.pt'"),
        ("blobs", "TinyBlob", {"pretrained": True}, "<framework>:<model>"),
        ("blobs", "Other:m", {"pretrained": True}, "no app that serves 'Other'"),
        (None, "1_x", {}, "name a deployment"),
    ],
)
def test_unusable_arguments_are_named_and_start_nothing(
    cv: Connection, server: SuperviselyStandIn, name: str | None, model: str, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        cv.deploy(name, model, **config)
    assert not server.tasks


def test_what_is_not_complete_is_not_deployed(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_file("/experiments/2_y/1_TinyBlob/checkpoints/best.pt", b"")
    for model in ("2_y", "2_y:1_TinyBlob", "3_z"):
        with pytest.raises(ModelNotFound):
            cv.deploy("blobs", model)
    assert not server.tasks


def test_an_experiment_without_a_framework_needs_one_named(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_file("/experiments/2_y/1_z/checkpoints/best.pt", b"")
    server.seed_file("/experiments/2_y/1_z/experiment_info.json", b'{"best_checkpoint": "best.pt"}')
    with pytest.raises(InvalidInput, match="names no framework"):
        cv.deploy("blobs", "2_y")
    assert cv.deploy("blobs", "2_y", framework="TinyBlob").ready
    server.modules.append(Module(78, "Mine", ("serve",)))
    cv.deploy("others", "2_y", module_id=78)
    assert server.tasks[20002].module.id == 78


def test_a_deployment_without_a_platform_is_loaded_by_name(app: SuperviselyApp) -> None:
    made = direct(app).deploy(None, "TinyBlob:blob-tiny", pretrained=True)
    assert (made.name, made.ready, made.model) == ("session", True, "blob-tiny")
    assert made.page is None
    with pytest.raises(NotSupported, match="checkpoints on its own host"):
        direct(app).deploy(None, "1_x")


# ---- look and end -----------------------------------------------------------------------------------------------


def test_a_deployment_is_found_by_name_and_id(cv: Connection, server: SuperviselyStandIn) -> None:
    cv.deploy("blobs", "1_x")
    assert cv.deployment("blobs").model_copy(update={"name": "20001"}) == cv.deployment("20001")
    assert platform(server, task_id=20001).deployment("").ready
    for absent in ("others", "4711"):
        with pytest.raises(ModelNotFound):
            cv.deployment(absent)


@pytest.mark.parametrize(
    ("status", "failed", "gone"),
    [("queued", False, False), ("terminating", True, False), ("stopped", True, True), ("error", True, True)],
)
def test_a_tasks_status_is_read(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp, status: str, failed: bool, gone: bool
) -> None:
    server.seed_task(name="blobs", status=status)
    found = cv.deployment("blobs")
    assert (found.status, found.ready, found.failed, found.gone) == (status, False, failed, gone)
    assert not app.requests


@pytest.mark.row("S8")
def test_a_task_in_an_unknown_state_is_not_over_and_logged(
    cv: Connection, server: SuperviselyStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    status = f"state-{secrets.token_hex(4)}"  # each is logged once in a process
    server.seed_task(name="blobs", status="stopped")
    server.seed_task(name="blobs", status=status)
    for _ in range(2):
        found = cv.deployment("blobs")
        assert (found.status, found.ready, found.failed, found.gone) == (status, False, False, False)
    assert sum(f"{status!r}, which is not known here" in message for message in caplog.messages) == 1


def test_an_app_without_a_model_or_an_answer_is_not_ready(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    server.seed_task(name="blobs")
    assert (cv.deployment("blobs").ready, cv.deployment("blobs").failed) == (False, False)
    server.fault("POST", DIRECT, Respond(504), times=None)
    assert (cv.deployment("blobs").ready, cv.deployment("blobs").failed) == (False, False)


def test_the_running_task_of_a_name_counts_and_two_are_too_many(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_task(name="blobs", status="stopped")
    running = server.seed_task(name="blobs")
    server.seed_task(name="blobs", status="error")
    assert cv.deployment("blobs").raw["id"] == running.id
    server.seed_task(name="blobs")
    with pytest.raises(InvalidInput, match="several tasks"):
        cv.undeploy("blobs")
    assert running.status == "started"


def test_a_name_may_be_used_again_after_its_task_has_ended(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_task(name="blobs", status="stopped")
    assert cv.deploy("blobs", "1_x").ready
    assert len(server.tasks) == 2


@pytest.mark.row("S13")
def test_undeploying_stops_the_task_and_may_be_repeated(cv: Connection, server: SuperviselyStandIn) -> None:
    cv.deploy("blobs", "1_x")
    assert [cv.undeploy("blobs").status for _ in range(2)] == ["terminating"] * 2
    assert cv.undeploy("20001").gone
    assert server.count("POST", r"/tasks\.stop$") == 1
    assert cv.undeploy("others").gone


def test_undeploying_the_own_app_shuts_it_down(app: SuperviselyApp) -> None:
    assert direct(app).undeploy("").failed
    assert app.down.wait(30)
    assert direct(app).deployment("").gone
    assert direct(app).undeploy("").gone


def test_what_is_shown_of_a_deployment_holds_no_token(cv: Connection, server: SuperviselyStandIn) -> None:
    made = cv.deploy("blobs", "1_x")
    token = server.tasks[20001].session_token
    for shown in (repr(made), json.dumps(made.to_xcom()), json.dumps(made.raw)):
        assert token not in shown
        assert server.token not in shown


# ---- load into what runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["1_x", "1_x:265_TinyBlob", CHECKPOINT, "blob-small"])
def test_a_model_is_loaded_by_name_reference_or_path(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp, model: str
) -> None:
    server.seed_task(name="blobs")
    cv.run(lambda registry: registry.load("blobs", model, device="cpu"))
    assert app.loaded is not None
    wanted = "blob-small" if model == "blob-small" else "blob-custom"
    assert app.loaded["model_name"] == wanted


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("nope", InvalidInput),
        (f"{ROOT}/checkpoints/absent.pt", InvalidInput),
        ("/yolov8_train/1/best.pt", NotSupported),
    ],
)
def test_what_cannot_be_loaded_leaves_what_is_served(
    cv: Connection, server: SuperviselyStandIn, app: SuperviselyApp, model: str, error: type[Exception]
) -> None:
    server.seed_task(name="blobs")
    cv.run(lambda registry: registry.load("blobs", "blob-tiny"))
    with pytest.raises(error):
        cv.run(lambda registry: registry.load("blobs", model))
    assert app.loaded is not None

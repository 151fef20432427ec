"""The client of a serving app: all that it offers, by its address, by its token and by the platform."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely, SuperviselySettings
from airflow_provider_modelsync.core.registries.supervisely.session import Load, local_load, runtime_of
from tests.core.registries.supervisely.serving import DIRECT, Connection, direct, platform
from tests.standins.http_server import LoseAnswer, Respond
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import BOTSORT, FREEZE_FAILED, MODEL_META, MODELS, SETTINGS, SuperviselyApp
from tests.support.until import until

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp(freezes=True, tracks=True) as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path, app=app.url) as server:
        yield server


@pytest.fixture(params=["url", "token", "task", "name"])
def connection(request: pytest.FixtureRequest, app: SuperviselyApp, server: SuperviselyStandIn) -> Connection:
    """A connection whose own deployment, or the one called "blobs", is the app."""
    task = server.seed_task(name="blobs")
    match request.param:
        case "url":
            return direct(app)
        case "token":
            return Connection({"host": server.url, "session_token": task.session_token})
        case "task":
            return platform(server, task_id=task.id)
        case _:
            return platform(server)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str | None:
    return "blobs" if "name" in request.node.callspec.id.split("-") else None


# ---- what the app says ------------------------------------------------------------------------------------------


def test_everything_that_the_app_tells_of_its_model_is_read(connection: Connection, name: str | None) -> None:
    def ask(make: Callable[[Any], Any]) -> Any:
        return connection.ask(make, name)

    assert ask(lambda session: session.get_info())["model_name"] == "blob-tiny"
    assert ask(lambda session: session.get_settings()) == SETTINGS
    assert ask(lambda session: session.get_tracking_settings()) == BOTSORT
    assert ask(lambda session: session.get_model_meta()) == MODEL_META
    assert ask(lambda session: session.get_classes()) == ["bright", "dark"]
    assert ask(lambda session: session.get_session_info())["tracking_on_videos_support"] is True
    assert ask(lambda session: session.list_pretrained_models()) == list(MODELS)
    assert [info["Model"] for info in ask(lambda session: session.list_pretrained_model_infos())] == list(MODELS)
    assert ask(lambda session: session.status())["is_deployed"] is True
    assert ask(lambda session: session.is_deployed()) is True


def test_an_app_without_a_tracker_has_no_settings_of_one(app: SuperviselyApp) -> None:
    app.tracks = False
    assert direct(app).ask(lambda session: session.get_tracking_settings()) == {}


def test_nothing_loaded_is_said_and_never_an_exception_of_is_deployed(
    connection: Connection, name: str | None, app: SuperviselyApp
) -> None:
    app.loaded = None
    assert connection.ask(lambda session: session.is_deployed(), name) is False
    assert connection.ask(lambda session: session.status(), name)["is_deployed"] is False
    for ask in (lambda s: s.get_info(), lambda s: s.get_tracking_settings(), lambda s: s.get_session_info()):
        with pytest.raises(ModelNotFound, match="no model is loaded"):
            connection.ask(ask, name)
    assert connection.ask(lambda session: session.get_classes(), name) == ["bright", "dark"]


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503])
def test_whatever_keeps_an_app_from_answering_is_not_deployed(app: SuperviselyApp, status: int) -> None:
    app.fault("POST", "is_ready", Respond(status), times=None)
    assert direct(app).ask(lambda session: session.is_deployed()) is False


def test_an_app_that_is_not_there_is_not_deployed() -> None:
    with socket.socket() as taken:  # so that nobody else comes to listen there
        taken.bind(("127.0.0.1", 0))
        gone = Connection({"deployment_url": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        assert gone.ask(lambda session: session.is_deployed()) is False


def test_freezing_tells_what_the_app_says(connection: Connection, name: str | None, app: SuperviselyApp) -> None:
    asked = [connection.ask(lambda session: session.freeze_model(), name) for _ in range(2)]
    assert asked == ["Model is frozen.", "Model is already frozen."]
    app.freezes = app.frozen = False
    assert connection.ask(lambda session: session.freeze_model(), name) == FREEZE_FAILED


# ---- the end ----------------------------------------------------------------------------------------------------


def test_shutting_an_app_down_by_its_address_takes_the_route_that_works(app: SuperviselyApp) -> None:
    assert direct(app).ask(lambda session: session.shutdown()) in ("terminating", "stopped")
    assert app.down.wait(30)
    assert app.count("POST", "^/sly/shutdown$") == 1
    assert direct(app).ask(lambda session: session.shutdown()) == "stopped"


def test_an_app_that_ends_before_it_answers_has_ended(app: SuperviselyApp) -> None:
    app.fault("POST", "shutdown", LoseAnswer())
    app.fault("POST", "is_running", Respond(502), times=None)
    assert direct(app).ask(lambda session: session.shutdown()) == "stopped"
    app.gate.set()


def test_a_shutdown_that_did_not_happen_is_no_success(app: SuperviselyApp) -> None:
    app.fault("POST", "shutdown", Respond(502), times=None)
    with pytest.raises(RegistryUnavailable):
        direct(app).ask(lambda session: session.shutdown())


def test_a_task_is_stopped(server: SuperviselyStandIn, app: SuperviselyApp) -> None:
    task = server.seed_task(name="blobs")
    assert platform(server).ask(lambda session: session.shutdown(), "blobs") == "terminating"
    assert server.tasks[task.id].status == "terminating"
    assert not app.down.is_set()


# ---- loading ----------------------------------------------------------------------------------------------------


def test_a_pretrained_model_is_loaded(connection: Connection, name: str | None, app: SuperviselyApp) -> None:
    connection.ask(lambda session: session.load(Load.pretrained("blob-small", device="cpu")), name)
    assert app.loaded is not None
    assert app.loaded["model_name"] == "blob-small"


def test_an_unknown_name_leaves_what_is_served(connection: Connection, name: str | None, app: SuperviselyApp) -> None:
    with pytest.raises(InvalidInput, match="blob-tiny"):
        connection.ask(lambda session: session.load(Load.pretrained("nope")), name)
    assert app.loaded is not None
    assert app.count("POST", "deploy_from_api") == 0


def test_a_load_that_fails_says_that_nothing_is_served(
    connection: Connection, name: str | None, app: SuperviselyApp
) -> None:
    with pytest.raises(DeploymentFailed, match="nothing is served"):
        connection.ask(lambda session: session.load(Load.pretrained("blob-broken")), name)
    assert app.loaded is None
    assert app.count("POST", "deploy_from_api") == 1


def test_a_load_beyond_the_proxys_patience_is_waited_for(server: SuperviselyStandIn, app: SuperviselyApp) -> None:
    task = server.seed_task()
    server.proxy_limit = 0.3
    app.loads.clear()
    own = platform(server, task_id=task.id)

    def load_once_looked_at() -> None:
        until(lambda: app.count("POST", "get_status"), "a look at the load")
        app.loads.set()

    threading.Thread(target=load_once_looked_at, daemon=True).start()
    own.ask(lambda session: session.load(Load.pretrained("blob-slow")))
    assert app.loaded is not None
    assert app.loaded["model_name"] == "blob-slow"
    assert app.count("POST", "deploy_from_api") == 1
    assert [
        request.status for request in server.find("POST", DIRECT) if request.body["command"] == "deploy_from_api"
    ] == [504]


def test_the_model_of_before_does_not_count_as_the_one_that_is_loaded(app: SuperviselyApp) -> None:
    # The answer is lost before the app has even begun.
    app.fault("POST", "deploy_from_api", Respond(504, early=True))
    with pytest.raises(RegistryUnavailable, match="blob-small is not loaded"):
        direct(app).ask(lambda session: session.load(Load.pretrained("blob-small"), seconds=1.0))


def test_a_load_whose_answer_is_lost_is_not_asked_for_twice(app: SuperviselyApp) -> None:
    app.fault("POST", "deploy_from_api", LoseAnswer())
    direct(app).ask(lambda session: session.load(Load.pretrained("blob-small")))
    assert app.count("POST", "deploy_from_api") == 1


def test_a_checkpoint_on_a_shared_disk_is_loaded(app: SuperviselyApp, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    (experiment / "checkpoints").mkdir(parents=True)
    checkpoint = experiment / "checkpoints" / "best.onnx"
    checkpoint.write_bytes(b"weights")
    info = {"model_name": "mine", "model_meta": "model_meta.json", "model_files": {"config": "config.yml"}}
    (experiment / "experiment_info.json").write_text(json.dumps(info))
    (experiment / "model_meta.json").write_text(json.dumps(MODEL_META))

    def flow(session: Any) -> Any:
        load = yield from local_load(str(checkpoint))
        yield from session.load(load)

    direct(app).ask(flow)
    params = app.find("POST", "deploy_from_api")[0].body["state"]["deploy_params"]
    assert params["model_files"] == {"checkpoint": str(checkpoint), "config": str(experiment / "config.yml")}
    assert params["model_info"]["model_meta"] == MODEL_META
    assert params["runtime"] == "ONNXRuntime"


def test_a_checkpoint_that_is_not_there_is_refused(app: SuperviselyApp, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no checkpoint"):
        direct(app).run(lambda _: local_load(str(tmp_path / "best.pt")))
    assert not app.requests


@pytest.mark.parametrize(
    ("text", "wire"), [("onnx", "ONNXRuntime"), ("TensorRT", "TensorRT"), ("torch", "PyTorch"), (None, None)]
)
def test_runtimes_have_the_names_that_people_use(text: str | None, wire: str | None) -> None:
    assert runtime_of(text) == wire


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'jax'"):
        Load.pretrained("blob-tiny", runtime="jax")


# ---- the connection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({}, "host"),
        ({"host": "https://x"}, "password"),
        ({"deployment_url": "https://x/net/abc"}, "deployment_url"),
        ({"deployment_url": "https://me:secret@x"}, "deployment_url"),
        ({"deployment_url": "https://x", "task_id": 3}, "only one of"),
        ({"host": "https://x", "session_token": "a/b"}, "session_token"),
        ({"host": "https://x", "password": "t", "artifacts_root": "models"}, "artifacts_root"),
        ({"host": "https://x", "password": "t", "task_id": 0}, "task_id"),
        ({"deployment_url": "not a url"}, "host"),
    ],
)
def test_unusable_fields_are_named_and_not_quoted(fields: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Supervisely(SuperviselySettings.read("cv", fields))
    assert argument in str(caught.value)
    assert "secret" not in str(caught.value).replace("holds a secret", "")
    assert "abc" not in str(caught.value)


def test_what_needs_the_platform_says_so(app: SuperviselyApp) -> None:
    only_app = direct(app)
    for flow in (lambda r: r.list_experiments(), lambda r: r.get(r.parse("p:v"))):
        with pytest.raises(InvalidInput, match="leads to one deployment only"):
            only_app.run(flow)
    with pytest.raises(InvalidInput, match="one deployment only"):
        only_app.deployment("other")
    assert not app.requests


def test_the_connection_test_names_who_or_what(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    assert "as me, with the files of team 8" in platform(server, team_id=None).run(lambda r: r.test())
    assert "a model is loaded" in direct(app).run(lambda r: r.test())
    token = server.seed_task().session_token
    said = Connection({"host": server.url, "session_token": token}).run(lambda r: r.test())
    assert "a model is loaded" in said
    assert token not in said
    with pytest.raises(Unauthorized):
        platform(server, password="wrong").run(lambda r: r.test())


def test_a_team_is_found_by_its_workspace(server: SuperviselyStandIn) -> None:
    server.seed_file("/experiments/p/v/experiment_info.json", b"{}")
    assert platform(server, team_id=None).get("p").ref == "p:v"
    with pytest.raises(InvalidInput, match="workspace"):
        platform(server, team_id=None, workspace_id=None).get("p")


def test_a_load_can_be_watched(app: SuperviselyApp) -> None:
    app.loads.clear()
    own = direct(app)
    loading = threading.Thread(target=lambda: own.ask(lambda session: session.load(Load.pretrained("blob-slow"))))
    loading.start()
    until(lambda: not own.ask(lambda session: session.status())["is_deployed"], "the model of before to be dropped")
    app.loads.set()
    loading.join()
    assert own.ask(lambda session: session.is_deployed()) is True

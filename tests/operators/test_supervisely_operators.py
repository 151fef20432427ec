"""Deploy, predict, freeze and undeploy on Supervisely as tasks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, TaskDeferred
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.operators import deployment
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, PredictOperator, UndeployModelOperator
from airflow_provider_modelsync.operators.supervisely import SuperviselyFreezeOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.triggers.predict import PredictTrigger
from tests.conftest import Connect
from tests.core.stores import snapshot
from tests.standins.http_server import LoseAnswer, Respond
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.support.images import png
from tests.support.versions import deserialize, serialize

CONNECTION = "supervisely_default"
KILL_LIMIT = 4.0  # seconds from the signal to the end: Airflow sends SIGKILL after five


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp(model=None, freezes=True) as app:
        yield app


@pytest.fixture
def server(
    tmp_path: Path, app: SuperviselyApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SuperviselyStandIn]:
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        extra = {"team_id": server.team_id, "workspace_id": server.workspace_id}
        connect(CONNECTION, conn_type="supervisely", host=server.url, password=server.token, extra=extra)
        yield server


def deploy(**arguments: Any) -> DeployModelOperator:
    known = {"task_id": "deploy", "registry_conn_id": CONNECTION, "deployment": "blobs", "poll_interval": 0.05}
    pretrained = {"model": "TinyBlob:blob-tiny", "config": {"pretrained": True, "device": "cpu"}}
    return DeployModelOperator(**{**known, **pretrained, **arguments})


def freeze(**arguments: Any) -> SuperviselyFreezeOperator:
    return SuperviselyFreezeOperator(**{"task_id": "freeze", "deployment": "blobs", **arguments})


def folder(directory: Path, *numbers: int) -> Path:
    directory.mkdir()
    for number in numbers:
        (directory / f"{number:02d}.png").write_bytes(png(80, 8, (0, 0, number, 3)))
    return directory


def test_a_folder_is_predicted_by_what_was_deployed_and_the_model_is_frozen(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any], tmp_path: Path
) -> None:
    deployed = deploy().execute(context)
    assert (deployed["ready"], deployed["model"]) == (True, "blob-tiny")
    output = tmp_path / "out" / "found.jsonl"
    predicted = PredictOperator(
        task_id="predict",
        registry_conn_id=CONNECTION,
        deployment="blobs",
        inputs=str(folder(tmp_path / "in", 1, 2, 3)),
        output=str(output),
        options={"conf": 0.0},
    ).execute(context)
    assert (predicted["count"], predicted["format"], predicted["output"]) == (3, "jsonl", str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["name"] for line in lines] == ["01.png", "02.png", "03.png"]
    frozen = freeze().execute(context)
    assert frozen == {"deployment": "blobs", "frozen": True, "message": "Model is frozen."}
    for result in (deployed, predicted, frozen):
        assert server.tasks[20001].session_token not in json.dumps(result)


def test_a_list_may_hold_objects_in_storage_and_images_in_memory(
    server: SuperviselyStandIn,
    app: SuperviselyApp,
    context: dict[str, Any],
    tmp_path: Path,
    storage: MemoryFileSystem,
) -> None:
    deploy().execute(context)
    storage.pipe("/in/05.png", png(80, 8, (0, 0, 5, 3)))
    output = tmp_path / "found.jsonl"
    PredictOperator(
        task_id="predict",
        registry_conn_id=CONNECTION,
        deployment="blobs",
        inputs=["memory://in/05.png", str(folder(tmp_path / "in", 1) / "01.png"), png(80, 8, (0, 0, 7, 3))],
        output=str(output),
    ).execute(context)

    assert [json.loads(line)["name"] for line in output.read_text().splitlines()] == ["05.png", "01.png", "image 2"]


def test_what_cannot_be_frozen_is_told_and_no_failure(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any]
) -> None:
    deploy().execute(context)
    app.freezes = False
    assert freeze().execute(context)["frozen"] is False


def test_freezing_is_for_supervisely_and_for_what_is_there(
    server: SuperviselyStandIn, modelstore: Path, context: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException, match="'modelstore'"):
        freeze(registry_conn_id="modelsync_default").execute(context)
    with pytest.raises(AirflowFailException, match="no deployment 'blobs'"):
        freeze().execute(context)


def test_the_connection_s_own_task_is_meant_where_none_is_named(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any], connect: Connect
) -> None:
    deploy().execute(context)
    (task,) = (task for task in server.tasks if server.tasks[task].name == "blobs")
    extra = {"team_id": server.team_id, "workspace_id": server.workspace_id, "task_id": task}
    connect("own", conn_type="supervisely", host=server.url, password=server.token, extra=extra)

    left = deploy(registry_conn_id="own", deployment=None, model="TinyBlob:blob-small").execute(context)

    assert (left["name"], left["ready"], app.loaded["model_name"]) == (str(task), True, "blob-small")
    assert UndeployModelOperator(
        task_id="undeploy", registry_conn_id="own", deployment=None, poll_interval=0.05
    ).execute(context)["gone"]


def test_a_deployment_must_be_named_where_the_connection_has_none(context: dict[str, Any], modelstore: Path) -> None:
    with pytest.raises(AirflowFailException, match="must be named"):
        UndeployModelOperator(task_id="undeploy", deployment=None).execute(context)


def test_undeploying_waits_until_the_task_has_ended(server: SuperviselyStandIn, context: dict[str, Any]) -> None:
    deploy().execute(context)
    number = str(next(iter(server.tasks)))
    done = UndeployModelOperator(
        task_id="undeploy", registry_conn_id=CONNECTION, deployment=number, poll_interval=0.05
    ).execute(context)
    assert (done["gone"], done["status"]) == (True, "stopped")


def test_a_slow_load_is_waited_for_by_the_task(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any]
) -> None:
    server.proxy_limit, app.load_seconds = 0.2, 0.6
    deployed = deploy(model="TinyBlob:blob-slow").execute(context)
    assert (deployed["ready"], deployed["model"]) == (True, "blob-slow")
    assert app.count("POST", "deploy_from_api") == 1


@pytest.fixture
def time_to_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken back may take longer than a worker has for it."""
    monkeypatch.setattr(deployment, "_UNDO_SECONDS", 60.0)


@pytest.mark.usefixtures("time_to_undo")
def test_a_task_out_of_time_ends_what_it_has_started(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any]
) -> None:
    server.proxy_limit = 0.2
    app.loads.clear()
    with pytest.raises(AirflowException, match="not ready after"):
        deploy(model="TinyBlob:blob-slow", timeout=0.2).execute(context)
    assert server.tasks[20001].status == "terminating"


@pytest.mark.usefixtures("time_to_undo")
def test_a_task_out_of_time_brings_back_what_was_served_before_its_load(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any]
) -> None:
    deploy().execute(context)
    server.proxy_limit = 0.2
    app.loads.clear()
    with pytest.raises(AirflowException, match="not ready after"):
        deploy(model="TinyBlob:blob-slow", timeout=0.2).execute(context)
    loads = [request.body["state"]["model_name"] for request in app.find("POST", "deploy_from_api")]
    assert loads == ["blob-tiny", "blob-slow", "blob-tiny"]
    assert app.loaded is not None
    assert app.loaded["model_name"] == "blob-tiny"
    assert server.tasks[20001].status == "started"


def test_a_load_that_fails_ends_the_task_for_good(server: SuperviselyStandIn, context: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="nothing is served"):
        deploy(model="TinyBlob:blob-broken").execute(context)
    assert server.tasks[20001].status == "terminating"


@pytest.mark.row("P4", of="supervisely")
def test_a_killed_deployment_is_taken_back_within_4_s(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any]
) -> None:
    app.loads.clear()
    operator = deploy(model="TinyBlob:blob-slow")
    killed: list[float] = []

    def kill() -> None:
        while not app.count("POST", "deploy_from_api"):
            time.sleep(0.01)
        killed.append(time.monotonic())
        operator.on_kill()

    threading.Thread(target=kill).start()
    with pytest.raises(AirflowException):
        operator.execute(context)
    assert time.monotonic() - killed[0] < KILL_LIMIT
    assert server.tasks[20001].status == "terminating"


@pytest.mark.row("P4", of="supervisely")
def test_a_killed_prediction_stops_the_request_within_4_s(
    server: SuperviselyStandIn, app: SuperviselyApp, context: dict[str, Any], tmp_path: Path
) -> None:
    deploy().execute(context)
    app.gate.clear()
    operator = PredictOperator(
        task_id="predict",
        registry_conn_id=CONNECTION,
        deployment="blobs",
        inputs=str(folder(tmp_path / "in", 1)),
        output=str(tmp_path / "found.jsonl"),
    )
    killed: list[float] = []

    def kill() -> None:
        while app.count("POST", "get_inference_progress") < 2:
            time.sleep(0.01)
        killed.append(time.monotonic())
        operator.on_kill()

    threading.Thread(target=kill).start()
    with pytest.raises(AirflowException):
        operator.execute(context)
    assert time.monotonic() - killed[0] < KILL_LIMIT
    assert app.count("POST", "stop_inference$") == 1
    assert not (tmp_path / "found.jsonl").exists()


def test_a_pushed_experiment_is_deployed_and_pulled(
    server: SuperviselyStandIn, source: Path, context: dict[str, Any], tmp_path: Path
) -> None:
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "best.pt").write_bytes(b"weights")
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model="1_x",
        source=str(source),
        options={"framework_name": "TinyBlob", "model_name": "mine"},
    ).execute(context)
    deployed = deploy(model=pushed["ref"], config={"device": "cpu"}).execute(context)
    assert deployed["model"] == pushed["ref"]
    target = tmp_path / "pulled"
    PullModelOperator(task_id="pull", registry_conn_id=CONNECTION, model="1_x", target=str(target)).execute(context)
    assert snapshot(target) == snapshot(source)


class TestDeferredPredictions:
    """Predictions of what the platform holds, waited for in the triggerer."""

    @pytest.fixture(autouse=True)
    def platform(self, server: SuperviselyStandIn, app: SuperviselyApp) -> None:
        """A project of 40 images, and a deployment that serves."""
        app.loaded = SuperviselyApp(model="blob-tiny").loaded
        app.pictures = {number: png(80, 8, (0, 0, number, 3)) for number in range(1, 41)}
        app.datasets, app.projects = {11: [*app.pictures]}, {21: [*app.pictures]}
        server.seed_task(name="blobs")
        server.fault("POST", r"/datasets\.info$", Respond(200, {"id": 11, "projectId": 21}), times=None)

    def predict(self, output: Any, inputs: Any, **arguments: Any) -> PredictOperator:
        known = {"task_id": "predict", "registry_conn_id": CONNECTION, "deployment": "blobs", "deferrable": True}
        return PredictOperator(**{**known, "inputs": inputs, "output": output, "options": {"conf": 0.0}, **arguments})

    def deferred(self, operator: PredictOperator, context: Any) -> tuple[PredictTrigger, Callable[[], Any]]:
        """Run a task until it goes to sleep; return its trigger and what wakes it up."""
        with pytest.raises(TaskDeferred) as sleeping:
            operator.execute(context)
        trigger = sleeping.value.trigger
        assert isinstance(trigger, PredictTrigger)
        assert sleeping.value.method_name == "execute_complete"
        event = {"status": "success", "ref": trigger.ticket["request"], "ticket": trigger.ticket}

        def wake() -> Any:
            return operator.execute_complete(context, deserialize(serialize(event)))

        return trigger, wake

    @pytest.mark.parametrize(
        ("inputs", "count"),
        [
            ({"image_ids": [5, 3]}, 2),
            ({"video_id": 9}, 10),
            ({"dataset_ids": [11]}, 40),
            ({"project_id": 21}, 40),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_the_platform_holds_is_predicted_without_a_worker(
        self, app: SuperviselyApp, server: SuperviselyStandIn, context: Any, tmp_path: Path, inputs: Any, count: int
    ) -> None:
        alone, output = tmp_path / "alone.jsonl", tmp_path / "out" / "found.jsonl"
        expected = self.predict(str(alone), inputs, deferrable=False).execute(context)
        app.requests.clear()

        trigger, wake = self.deferred(self.predict(str(output), inputs), context)
        assert app.count("POST", "_async$") == 1
        assert not output.exists()
        assert trigger.ticket["deployment"] == "20001"
        told = wake()

        assert (app.count("POST", "_async$"), app.count("POST", "clear_inference_request$")) == (1, 1)
        assert told == {**expected, "output": str(output)}
        assert told["count"] == count
        assert output.read_bytes() == alone.read_bytes()
        task = next(iter(server.tasks.values()))
        stored = json.dumps([trigger.serialize(), told])
        assert not [secret for secret in (server.token, task.session_token) if secret in stored]

    def test_files_are_predicted_at_once(self, app: SuperviselyApp, context: Any, tmp_path: Path) -> None:
        inputs = str(folder(tmp_path / "in", 1, 2))
        assert self.predict(str(tmp_path / "found.jsonl"), inputs).execute(context)["count"] == 2
        assert app.count("POST", "_async$") == 1

    def test_what_is_left_on_the_platform_needs_no_fetching(
        self, app: SuperviselyApp, context: Any, tmp_path: Path
    ) -> None:
        operator = self.predict(str(tmp_path / "found"), {"project_id": 21}, options={"output_project_id": 5})
        _, wake = self.deferred(operator, context)
        assert wake()["count"] == 0
        assert (len(app.uploaded), app.count("POST", "pop_inference_results$")) == (40, 0)

    def test_a_worker_goes_on_where_the_app_waits_for_a_reader(
        self, app: SuperviselyApp, context: Any, tmp_path: Path
    ) -> None:
        app.unread_limit = 10
        output = tmp_path / "found.jsonl"
        operator = self.predict(str(output), {"project_id": 21}, options={"conf": 0.0, "batch_size": 5})
        _, wake = self.deferred(operator, context)
        assert wake()["count"] == 40
        assert [json.loads(line)["image_id"] for line in output.read_text().splitlines()] == [*range(1, 41)]

    def test_the_request_is_asked_for_where_it_was_begun(
        self, app: SuperviselyApp, server: SuperviselyStandIn, context: Any, tmp_path: Path
    ) -> None:
        """A task of the same name that has taken over knows nothing of it."""
        _, wake = self.deferred(self.predict(str(tmp_path / "found"), {"image_ids": [3]}), context)
        server.tasks[20001].status = "stopped"
        server.seed_task(name="blobs")
        with pytest.raises(AirflowFailException, match="'20001' is stopped"):
            wake()

    def test_lost_results_of_images_are_predicted_again_and_those_of_a_project_are_an_error(
        self, app: SuperviselyApp, context: Any, tmp_path: Path
    ) -> None:
        output = tmp_path / "found.jsonl"
        _, wake = self.deferred(self.predict(str(output), {"image_ids": [3, 4]}), context)
        app.fault("POST", "pop_inference_results$", LoseAnswer())
        assert wake()["count"] == 2
        assert app.count("POST", "_async$") == 2
        output.write_text("old")
        _, wake = self.deferred(self.predict(str(output), {"project_id": 21}), context)
        pops = app.count("POST", "pop_inference_results$")
        app.fault("POST", "pop_inference_results$", LoseAnswer())
        with pytest.raises(AirflowException, match="lost now"):
            wake()
        assert app.count("POST", "pop_inference_results$") == pops + 1
        assert output.read_text() == "old"

    @pytest.mark.parametrize(
        ("event", "kind"),
        [
            ({"status": "timeout", "message": "the time was over"}, AirflowException),
            ({"status": "failed", "message": "the time was over", "permanent": True}, AirflowFailException),
            (None, AirflowException),
        ],
    )
    def test_an_event_of_failure_fails_the_task(
        self, app: SuperviselyApp, context: Any, tmp_path: Path, event: Any, kind: type[Exception]
    ) -> None:
        operator = self.predict(str(tmp_path / "found"), {"image_ids": [3]})
        self.deferred(operator, context)
        with pytest.raises(kind):
            operator.execute_complete(context, event)
        assert not (tmp_path / "found").exists()

    @pytest.mark.parametrize(
        "arguments",
        [
            {"output": "{directory}"},
            {"output": ""},
            {"inputs": {"image_ids": []}},
            {"options": {"classes": 1}},
            {"options": {"ticket": {}}},
        ],
    )
    def test_bad_arguments_fail_before_anything_is_begun(
        self, app: SuperviselyApp, context: Any, tmp_path: Path, arguments: dict[str, Any]
    ) -> None:
        output = arguments.get("output", str(tmp_path / "found")).format(directory=tmp_path)
        operator = self.predict(**{"inputs": {"image_ids": [3]}, **arguments, "output": output})
        with pytest.raises(AirflowFailException):
            operator.execute(context)
        assert app.count("POST", "_async$") == 0

    def test_a_task_that_is_killed_before_it_sleeps_stops_the_request(
        self, app: SuperviselyApp, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = self.predict(str(tmp_path / "found"), {"image_ids": [3]})
        hook = operator.get_hook()
        begin = hook.start_predict

        def start(*arguments: Any, **more: Any) -> Any:
            ticket = begin(*arguments, **more)
            operator.on_kill()
            return ticket

        monkeypatch.setattr(hook, "start_predict", start)
        monkeypatch.setattr(operator, "get_hook", lambda context=None: hook)
        with pytest.raises(AirflowException, match="killed"):
            operator.execute(context)
        assert app.count("POST", "stop_inference$") == 1

    def test_a_task_that_is_killed_while_it_fetches_stops_the_request_within_4_s(
        self, app: SuperviselyApp, context: Any, tmp_path: Path
    ) -> None:
        app.gate.clear()
        operator = self.predict(str(tmp_path / "found"), {"image_ids": [3]})
        _, wake = self.deferred(operator, context)
        killed: list[float] = []

        def kill() -> None:
            while app.count("POST", "get_inference_progress") < 2:
                time.sleep(0.01)
            killed.append(time.monotonic())
            operator.on_kill()

        threading.Thread(target=kill).start()
        with pytest.raises(AirflowException):
            wake()
        assert time.monotonic() - killed[0] < KILL_LIMIT
        assert app.count("POST", "stop_inference$") == 1

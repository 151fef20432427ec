"""Deploy and undeploy as tasks: waiting, deferring, trying again, and being killed."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred
from airflow_provider_modelsync.core.errors import UntrustedModel
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.registries.bentocloud import deployments as bentocloud_deployments
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.links import DeploymentLink, RegistryConsoleLink
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, UndeployModelOperator
from airflow_provider_modelsync.triggers.deployment import DeploymentTrigger
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay, LoseAnswer, Reset, Respond
from tests.support.cloud import CANARY, CONNECTION, bodies, changes, newest, running_cloud
from tests.support.until import until
from tests.support.versions import masker, serialize

KILL_LIMIT = 4.0  # seconds from the signal to the end: Airflow sends SIGKILL after five
DEPLOYMENT_KEYS = {
    "registry",
    "name",
    "status",
    "ready",
    "failed",
    "gone",
    "reason",
    "model",
    "artifact",
    "revision",
    "url",
    "page",
}
CONFIG = {"envs": [{"name": "API_KEY", "value": CANARY}], "secrets": ["huggingface"]}
ENDLESS = ["deploying"]


@pytest.fixture
def server(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[BentoCloudStandIn]:
    monkeypatch.setattr(bentocloud_deployments, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(bentocloud_deployments, "_ENDING_SECONDS", 0.0)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with running_cloud(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        yield server


@pytest.fixture
def context(context: dict[str, Any]) -> dict[str, Any]:
    """The context of a running task whose XComs are kept."""
    pushed: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: pushed.update({key: value})
    context["pushed"] = pushed
    return context


def deploy(**arguments: Any) -> DeployModelOperator:
    defaults = {"registry_conn_id": CONNECTION, "deployment": "demo", "model": "fraud:v1", "poll_interval": 0.01}
    return DeployModelOperator(**{"task_id": "deploy", **defaults, **arguments})


def undeploy(**arguments: Any) -> UndeployModelOperator:
    defaults = {"registry_conn_id": CONNECTION, "deployment": "demo", "poll_interval": 0.01}
    return UndeployModelOperator(**{"task_id": "undeploy", **defaults, **arguments})


def deferred(operator: DeployModelOperator | UndeployModelOperator, context: Any) -> TaskDeferred:
    """Run a task until it goes to sleep."""
    operator.deferrable = True
    with pytest.raises(TaskDeferred) as sleeping:
        operator.execute(context)
    return sleeping.value


def assert_plain(value: Any) -> None:
    """Whether a value is JSON that Airflow stores as it is, of a size that fits."""
    assert json.loads(json.dumps(value)) == value == serialize(value)
    assert len(json.dumps(value).encode()) <= XCOM_LIMIT


def kill_soon(operator: DeployModelOperator | UndeployModelOperator) -> list[float]:
    """Have a task killed once it waits for what it has changed; the time of that is put into the list."""
    killed_at: list[float] = []
    seen = operator._patiently

    def look(*arguments: Any) -> Any:
        if not killed_at:
            killed_at.append(time.monotonic())
            threading.Timer(0.1, operator.on_kill).start()
        return seen(*arguments)

    operator._patiently = look  # type: ignore[method-assign]
    return killed_at


class TestDeploy:
    def test_returns_a_plain_dictionary_once_it_answers(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ["image-building", "image-building", "deploying", "running"])

        told = deploy(config=CONFIG).execute(context)

        assert_plain(told)
        assert told.keys() == DEPLOYMENT_KEYS
        facts = (told["registry"], told["name"], told["status"], told["ready"], told["model"], told["artifact"])
        assert facts == ("bentocloud", "demo", "running", True, "fraud:v1", "svc:2")
        assert (told["revision"], told["url"]) == (newest(server), "https://demo.apps.test")
        assert bodies(server)[0].body == {**CONFIG, "bento": "svc:2", "name": "demo"}

    @pytest.mark.parametrize("gate", [{"allowed_formats": ["onnx"]}, {"scan": "false"}], ids=str)
    def test_of_what_a_gate_refuses_asks_for_nothing(
        self, server: BentoCloudStandIn, context: Any, tmp_path: Path, gate: dict[str, Any]
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_bytes(b"{}")
        server.seed("fraud", "v2", tmp_path / "model")
        server.seed_bento("svc", "3", models=["fraud:v2"])
        with pytest.raises(AirflowFailException, match=f"argument '{next(iter(gate))}'"):
            deploy(model="fraud:v2", **gate).execute(context)
        with pytest.raises(UntrustedModel):
            BentoCloudHook(CONNECTION).deploy("demo", "fraud:v2", **gate)
        assert changes(server) == []

    def test_names_the_exact_version_even_where_the_server_does_not(
        self, server: BentoCloudStandIn, context: Any
    ) -> None:
        server.seed_bento("other", "1", models=["fraud:v1", "tokens:v7"])
        server.script_deployment("demo", ["deploying", "deploying", "running"])

        assert deploy(model="fraud").execute(context)["model"] == "fraud:v1"

    def test_is_not_ended_by_the_revision_before(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")
        server.script_deployment("demo", ["deploying", "deploying", "running"], stale=3)

        told = deploy().execute(context)

        assert (told["artifact"], told["revision"]) == ("svc:2", newest(server))
        assert server.count("GET", "/demo$") > 3

    def test_returns_at_once_when_it_need_not_wait(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)

        assert deploy(wait_for_completion=False, deferrable=True).execute(context)["status"] == "deploying"

    def test_fails_for_good_with_the_reason_of_an_image_build(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ["image-building", "image-build-failed"])
        server.fault("GET", "/status_records", Respond(200, {"items": [
            {"status": "image-build-failed", "reason": "no matching distribution for torch==9"},
        ]}))  # fmt: skip

        with pytest.raises(AirflowFailException, match=r"demo is image-build-failed: no matching distribution"):
            deploy().execute(context)
        assert changes(server) == [("POST", "")]

    def test_without_a_bento_is_tried_again_and_says_what_to_do(self, server: BentoCloudStandIn, context: Any) -> None:
        server.bentos.clear()

        with pytest.raises(AirflowException, match=r"no uploaded bento.*fraud:v1.*config\['bento'\]") as failed:
            deploy().execute(context)
        assert not isinstance(failed.value, AirflowFailException)

    def test_goes_on_over_passing_faults(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ["deploying", "deploying", "running"])
        server.fault("GET", "/demo$", Respond(501), nth=3)

        assert deploy().execute(context)["status"] == "running"

    def test_keeps_the_links_to_its_page_and_to_where_it_answers(self, server: BentoCloudStandIn, context: Any) -> None:
        operator = context["task"] = deploy(config=CONFIG)
        told = operator.execute(context)

        assert [type(link) for link in operator.operator_extra_links] == [RegistryConsoleLink, DeploymentLink]
        assert (RegistryConsoleLink().name, DeploymentLink().name) == ("Registry console", "Deployment")
        link = RegistryConsoleLink().get_link(operator, ti_key=context["ti"])
        assert link == told["page"] == f"{server.url}/deployments/demo?cluster=default&namespace=yatai"
        assert DeploymentLink().get_link(operator, ti_key=context["ti"]) == told["url"]
        assert RegistryConsoleLink().get_link(deploy(config=CONFIG), ti_key=context["ti"]) == ""

    def test_does_not_fail_for_want_of_a_link(self, server: BentoCloudStandIn, context: Any) -> None:
        def refuse(**_: Any) -> None:
            raise ConnectionError("the supervisor is gone")

        context["ti"].xcom_push = refuse

        assert deploy().execute(context)["ready"]

    def test_without_a_state_store_works_as_well(self, server: BentoCloudStandIn, context: Any) -> None:
        del context["task_state_store"]

        assert deploy().execute(context)["ready"]


class TestDeferredDeploy:
    def test_looks_no_further_when_it_is_ready_at_once(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ["deploying", "running"])

        assert deploy(deferrable=True).execute(context)["ready"]

    def test_leaves_a_trigger_that_airflow_can_store(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        sleeping = deferred(deploy(config=CONFIG, timeout=timedelta(minutes=10)), context)
        path, arguments = sleeping.trigger.serialize()

        assert path == "airflow_provider_modelsync.triggers.deployment.DeploymentTrigger"
        assert_plain(arguments)
        assert DeploymentTrigger(**arguments).serialize() == (path, arguments)
        assert CANARY not in json.dumps(arguments)
        assert server.token not in json.dumps(arguments)
        assert isinstance(sleeping.timeout, timedelta)
        assert time.time() + 500 < arguments["deadline"] < time.time() + sleeping.timeout.total_seconds()
        assert sleeping.method_name == "execute_complete"

    def test_waits_for_its_own_revision(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")
        old = newest(server)
        server.script_deployment("demo", ["deploying"], stale=2)

        arguments = deferred(deploy(), context).trigger.serialize()[1]

        assert arguments["revision"] == newest(server) != old
        assert arguments["started"]["replaced"] == old

    @pytest.mark.row("P7", of="tasks")
    def test_is_completed_by_a_new_instance(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", [*ENDLESS * 2, "running"])
        sleeping = deferred(deploy(), context)
        event = {"status": "success", "ref": "demo", "revision": None, "message": "demo is running"}

        for _ in range(2):  # Airflow may deliver an event twice
            told = deploy().execute_complete(context, event, **sleeping.kwargs or {})
            assert_plain(told)
            assert (told["status"], told["revision"]) == ("running", newest(server))
        assert changes(server) == [("POST", "")]

    @pytest.mark.parametrize("joins", ["remembered", "forgotten", ""])
    def test_begins_anew_only_what_an_earlier_try_has_taken_back(
        self, server: BentoCloudStandIn, context: Any, joins: str
    ) -> None:
        """A cleared task may join a roll-out that its last try is still ending, and that Airflow may have forgotten."""
        server.script_deployment("demo", ENDLESS)
        sleeping = deferred(deploy(), context)
        if joins == "forgotten":
            context["task_state_store"].clear()
        if joins:
            sleeping = deferred(deploy(), context)
            assert bool(sleeping.trigger.serialize()[1]["started"]) == (joins == "remembered")
        server.deployments["demo"].status = "terminated"
        event = {"status": "failed", "message": "DeploymentFailed: demo is terminated", "permanent": True}
        server.script_deployment("demo", ["running"])

        if joins:
            assert deploy().execute_complete(context, event, **sleeping.kwargs or {})["ready"]
        else:
            with pytest.raises(AirflowFailException, match="terminated"):
                deploy().execute_complete(context, event, **sleeping.kwargs or {})
        assert len(changes(server)) == (2 if joins else 1)

    @pytest.mark.parametrize("taken_back", ["terminated", "updated"])
    def test_what_it_joined_in_its_worker_is_begun_anew_once_it_was_taken_back(
        self, server: BentoCloudStandIn, context: Any, taken_back: str
    ) -> None:
        server.script_deployment("demo", ENDLESS)
        deferred(deploy(), context)
        context["task_state_store"].clear()

        looks = server.count("GET", "/demo$")

        def take_back() -> None:
            until(lambda: server.count("GET", "/demo$") > looks + 3, "looks of the second task")
            server.script_deployment("demo", ["running"])
            if taken_back == "terminated":
                server.deployments["demo"].status = "terminated"
            else:
                server._roll_out(server.deployments["demo"], {"bento": "svc:1"})

        other = threading.Thread(target=take_back)
        other.start()
        told = deploy().execute(context)
        other.join()

        assert (told["ready"], told["model"], len(changes(server))) == (True, "fraud:v1", 2)

    def test_looks_at_the_model_before_it_begins_anew(
        self, server: BentoCloudStandIn, context: Any, tmp_path: Path
    ) -> None:
        """What is the newest version then is another one, perhaps."""
        for number, (file, content) in enumerate([("config.json", b"{}"), ("weights.pkl", pickle.dumps([1]))], 2):
            (tmp_path / file).mkdir()
            (tmp_path / file / file).write_bytes(content)
            server.seed("fraud", f"v{number}", tmp_path / file)
            server.seed_bento("svc", f"{number + 1}", models=[f"fraud:v{number}"])
            if number == 2:
                server.script_deployment("demo", ENDLESS)
                careful = {"model": "fraud", "allowed_formats": ["json"]}
                sleeping = [deferred(deploy(**careful), context) for _ in range(2)][-1]
                server.deployments["demo"].status = "terminated"
        event = {"status": "failed", "message": "DeploymentFailed: demo is terminated", "permanent": True}

        with pytest.raises(AirflowFailException, match="pickle"):
            deploy(**careful).execute_complete(context, event, **sleeping.kwargs or {})
        assert len(changes(server)) == 1

    @pytest.mark.row("P10", of="tasks")
    def test_waits_no_longer_than_the_execution_timeout(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        sleeping = deferred(deploy(timeout=3600, execution_timeout=timedelta(seconds=60)), context)

        assert sleeping.trigger.serialize()[1]["deadline"] <= time.time() + 60

    @pytest.mark.row("P8", of="tasks")
    def test_believes_the_server_rather_than_the_event(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1", status="deploying")
        event = {"status": "success", "ref": "demo", "revision": newest(server), "message": "it is"}

        with pytest.raises(AirflowException, match="not any more") as raised:
            deploy().execute_complete(context, event)
        assert not isinstance(raised.value, AirflowFailException)
        server.deployments["demo"].status = "failed"
        with pytest.raises(AirflowFailException, match="demo is failed"):
            deploy().execute_complete(context, event)

    @pytest.mark.parametrize("event", [None, {}, {"status": "success"}, {"status": "odd", "message": "?"}], ids=str)
    @pytest.mark.row("P11", of="tasks")
    def test_refuses_an_event_that_is_no_outcome(self, server: BentoCloudStandIn, context: Any, event: Any) -> None:
        with pytest.raises(AirflowException, match="no outcome") as raised:
            deploy().execute_complete(context, event)
        assert not isinstance(raised.value, AirflowFailException)

    @pytest.mark.parametrize(
        ("event", "is_final"),
        [
            ({"status": "timeout", "message": "too late"}, False),
            ({"status": "failed", "message": "too late", "permanent": False}, False),
            ({"status": "failed", "message": "too late", "permanent": True}, True),
        ],
        ids=str,
    )
    def test_fails_as_the_trigger_did(
        self, server: BentoCloudStandIn, context: Any, event: dict[str, Any], is_final: bool
    ) -> None:
        with pytest.raises(AirflowException, match="too late") as raised:
            deploy().execute_complete(context, event)
        assert isinstance(raised.value, AirflowFailException) is is_final


class TestTriedAgain:
    def test_a_finished_deploy_changes_nothing(self, server: BentoCloudStandIn, context: Any) -> None:
        first, second = deploy(config=CONFIG).execute(context), deploy(config=CONFIG).execute(context)

        assert first["revision"] == second["revision"]
        assert len(bodies(server)) == 1

    def test_a_deploy_in_another_run_changes_nothing_either(self, server: BentoCloudStandIn, context: Any) -> None:
        deploy(config=CONFIG).execute(context)
        context["task_state_store"].clear()

        deploy(config=CONFIG).execute(context)

        assert len(bodies(server)) == 1

    def test_a_deploy_goes_on_with_the_roll_out_of_its_last_try(
        self, server: BentoCloudStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.script_deployment("demo", ENDLESS)
        first = deferred(deploy(config=CONFIG), context).trigger.serialize()[1]
        # Even where the server shows configurations in another form than it was given.
        monkeypatch.setattr(bentocloud_deployments, "_running", lambda *_: None)

        again = deferred(deploy(config=CONFIG), context).trigger.serialize()[1]

        assert (again["revision"], again["started"]) == (first["revision"], first["started"])
        assert len(bodies(server)) == 1

    def test_a_deploy_with_other_arguments_rolls_out(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        first = deferred(deploy(config=CONFIG), context).trigger.serialize()[1]
        server.script_deployment("demo", ENDLESS)

        other = {**CONFIG, "envs": [{"name": "API_KEY", "value": "changed"}]}
        again = deferred(deploy(config=other), context).trigger.serialize()[1]

        assert len(bodies(server)) == 2
        assert again["started"]["revision"] == newest(server)
        # Nothing but this task's own, unfinished work was replaced.
        assert (again["started"]["undo"], again["started"]["replaced"]) == ("terminate", first["started"]["replaced"])

    def test_a_failed_deploy_rolls_out_again(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ["image-build-failed"])
        with pytest.raises(AirflowFailException):
            deploy().execute(context)

        assert deploy().execute(context)["ready"]
        assert changes(server) == [("POST", ""), ("PUT", "/demo")]

    def test_a_lost_answer_is_found_and_answered_for(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        server.fault("POST", "/deployments$", LoseAnswer())
        server.fault("GET", "/demo$", Reset(), nth=2, times=5)
        with pytest.raises(AirflowException) as lost:
            deploy(config=CONFIG).execute(context)
        assert not isinstance(lost.value, AirflowFailException)

        started = deferred(deploy(config=CONFIG), context).trigger.serialize()[1]["started"]

        assert len(bodies(server)) == 1
        assert (started["undo"], started["revision"]) == ("terminate", newest(server))

    def test_what_is_remembered_holds_no_secret(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        deferred(deploy(config=CONFIG), context)

        (kept,) = context["task_state_store"].values.values()
        assert newest(server) in kept
        assert CANARY not in kept

    def test_a_task_that_has_finished_answers_for_nothing(self, server: BentoCloudStandIn, context: Any) -> None:
        deploy().execute(context)

        assert context["task_state_store"].values == {}


class TestKilledOnTheWorker:
    @pytest.mark.row("P4", of="bentocloud")
    def test_a_deploy_terminates_what_it_created(self, server: BentoCloudStandIn, context: Any) -> None:
        server.script_deployment("demo", ENDLESS)
        operator = deploy(poll_interval=60)
        killed_at = kill_soon(operator)

        with pytest.raises(AirflowException, match="told to stop") as stopped:
            operator.execute(context)

        assert time.monotonic() - killed_at[0] < KILL_LIMIT
        assert not isinstance(stopped.value, AirflowFailException)
        assert changes(server) == [("POST", ""), ("POST", "/demo/terminate")]

    def test_a_deploy_puts_back_what_it_replaced(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1", envs=[{"name": "A", "value": "old"}])
        server.script_deployment("demo", ENDLESS)
        operator = deploy(poll_interval=60, config=CONFIG)
        kill_soon(operator)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)

        assert changes(server) == [("PUT", "/demo"), ("PUT", "/demo")]
        assert bodies(server)[-1].body == {"bento": "svc:1", "envs": [{"name": "A", "value": "old"}]}

    def test_a_deploy_over_what_did_not_work_leaves_it_and_says_so(
        self, server: BentoCloudStandIn, context: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.seed_deployment("demo", "svc:1", status="failed")
        server.script_deployment("demo", ENDLESS)
        operator = deploy(poll_interval=60)
        kill_soon(operator)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)

        assert changes(server) == [("PUT", "/demo")]
        assert "left as it is" in capsys.readouterr().out

    def test_a_deploy_that_found_everything_as_wanted_touches_nothing(
        self, server: BentoCloudStandIn, context: Any
    ) -> None:
        server.seed_deployment("demo", "svc:2", status="deploying")
        operator = deploy(poll_interval=60)
        kill_soon(operator)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)

        assert changes(server) == []

    def test_a_deploy_whose_request_is_on_the_way_takes_it_back(
        self, server: BentoCloudStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = deploy()
        accept = RegistryHook.deploy

        def accepted_but_killed(*arguments: Any, **more: Any) -> Any:
            accept(*arguments, **more)
            operator.on_kill()
            operator._cancel_token.check()

        monkeypatch.setattr(RegistryHook, "deploy", accepted_but_killed)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)
        assert changes(server) == [("POST", ""), ("POST", "/demo/terminate")]

    def test_a_deploy_that_airflow_stops_takes_back_what_it_started(
        self, server: BentoCloudStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def time_is_over(*_: object, **__: object) -> None:
            raise AirflowTaskTimeout

        monkeypatch.setattr(DeployModelOperator, "_wait", time_is_over)

        with pytest.raises(AirflowTaskTimeout):
            deploy().execute(context)
        assert changes(server) == [("POST", ""), ("POST", "/demo/terminate")]

    @pytest.mark.parametrize("timeout", [0, timedelta(0)])
    @pytest.mark.row("P6", "P10", of="tasks")
    def test_a_deploy_that_runs_out_of_time_takes_back_what_it_started(
        self, server: BentoCloudStandIn, context: Any, timeout: float | timedelta
    ) -> None:
        server.script_deployment("demo", ENDLESS)

        with pytest.raises(AirflowException, match="demo was not ready after 0 s") as raised:
            deploy(timeout=timeout).execute(context)
        assert not isinstance(raised.value, AirflowFailException)
        assert changes(server) == [("POST", ""), ("POST", "/demo/terminate")]

    @pytest.mark.row("P4", of="bentocloud")
    def test_a_server_that_hangs_does_not_keep_a_killed_task(
        self, server: BentoCloudStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelsync.operators.deployment._UNDO_SECONDS", 0.5)
        server.script_deployment("demo", ENDLESS)
        operator = deploy(poll_interval=60)
        killed_at = kill_soon(operator)
        server.fault("POST", "/terminate", Delay(1.5), times=None)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)
        assert time.monotonic() - killed_at[0] < KILL_LIMIT

    def test_a_task_killed_before_it_begins_does_nothing(self, server: BentoCloudStandIn, context: Any) -> None:
        for operator in (deploy(), undeploy()):
            operator.on_kill()
            operator.on_kill()
            with pytest.raises(AirflowException, match="told to stop"):
                operator.execute(context)
        assert changes(server) == []

    def test_an_undeploy_goes_on_ending(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")
        server.script_deployment("demo", ["terminating"])
        operator = undeploy(poll_interval=60)
        kill_soon(operator)

        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)
        assert changes(server) == [("POST", "/demo/terminate")]


class TestUndeploy:
    def test_returns_once_nothing_runs(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")

        told = undeploy().execute(context)

        assert_plain(told)
        assert (told["status"], told["gone"]) == ("terminated", True)

    def test_of_what_is_gone_succeeds(self, server: BentoCloudStandIn, context: Any) -> None:
        assert undeploy(deferrable=True).execute(context)["gone"] is True
        assert changes(server) == []

    def test_returns_at_once_when_it_need_not_wait(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")

        assert undeploy(wait_for_completion=False).execute(context)["status"] == "terminating"

    def test_defers_and_is_completed(self, server: BentoCloudStandIn, context: Any) -> None:
        server.seed_deployment("demo", "svc:1")
        server.script_deployment("demo", ["terminating", "terminating", "terminating", "terminated"])
        path, arguments = deferred(undeploy(), context).trigger.serialize()

        assert path.endswith("DeploymentTrigger")
        assert (arguments["goal"], arguments["started"]) == ("gone", None)
        server.deployments["demo"].scripted.clear()
        server.deployments["demo"].status = "terminated"
        event = {"status": "success", "ref": "demo", "revision": None, "message": "demo is terminated"}
        assert undeploy().execute_complete(context, event)["gone"] is True


class TestSecrets:
    def test_are_nowhere(
        self,
        server: BentoCloudStandIn,
        context: Any,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server.script_deployment("demo", ["deploying", "deploying", "failed"])
        server.fault("PUT", "/demo", Respond(400, {"error": f"bad {CANARY}"}))

        with pytest.raises(AirflowFailException) as failed:
            deploy(config=CONFIG).execute(context)
        with pytest.raises(AirflowFailException) as refused:
            deploy(config=CONFIG).execute(context)

        store = context["task_state_store"].values
        told = f"{caplog.text} {capsys.readouterr()}"
        everything = f"{told} {failed.value!r} {refused.value!r} {context['pushed']} {store}"
        assert CANARY not in everything
        assert server.token not in everything

    @pytest.mark.parametrize("is_mapped", [False, True])
    def test_are_masked_in_rendered_fields(self, server: BentoCloudStandIn, is_mapped: bool) -> None:
        secret = f"rendered-canary-{is_mapped}"
        given: dict[str, Any] = {
            "task_id": "deploy",
            "model": "fraud:v1",
            "config": {"envs": [{"name": "API_KEY", "value": "{{ secret }}"}]},
        }
        with DAG("masked") as dag:
            if is_mapped:
                task: Any = DeployModelOperator.partial(**given).expand(deployment=["demo"])
            else:
                task = DeployModelOperator(**given, deployment="demo")
        run, instance = SimpleNamespace(conf={}), SimpleNamespace(map_index=0)
        context: Any = {"secret": secret, "task": task, "ti": instance, "dag": dag, "dag_run": run}
        task.render_template_fields(context)

        assert context["task"].config == {"envs": [{"name": "API_KEY", "value": secret}]}
        assert masker.redact(context["task"].config, "config") == {"envs": [{"name": "API_KEY", "value": "***"}]}

    @pytest.mark.parametrize(
        "form",
        ["{{ config }}", "{{ config | tojson }}", {"envs": "{{ config.envs }}"}, "{{ config | tojson }} cut"],
        ids=["python", "json", "nested", "unreadable"],
    )
    @pytest.mark.parametrize("secret", ["canary-of-text", 'canary-"quoted"-\\é'])
    def test_are_masked_whatever_form_the_configuration_has(self, form: Any, secret: str) -> None:
        with DAG("masked"):
            task = deploy(config=form)
        task.render_template_fields({"config": {"envs": [{"name": "API_KEY", "value": secret}]}})

        assert "canary-" in str(task.config)
        assert "canary-" not in str(masker.redact(task.config, "config"))


class TestArguments:
    @pytest.mark.parametrize("operator_class", [DeployModelOperator, UndeployModelOperator])
    def test_every_text_is_templated(self, operator_class: Any) -> None:
        arguments = {"deployment": "{{ name }}", "model": "{{ name }}:v1", "config": {"bento": "{{ name }}:1"}}
        mine = {name: value for name, value in arguments.items() if name in operator_class.template_fields}
        with DAG("templates"):
            operator = operator_class(task_id="task", registry_conn_id="{{ name }}", **mine)
        operator.render_template_fields({"name": "demo"})

        assert set(operator_class.template_fields) >= {"registry_conn_id", *mine}
        assert set(operator_class.template_fields_renderers) <= set(operator_class.template_fields)
        assert "{{" not in json.dumps({name: getattr(operator, name) for name in operator.template_fields})

    def test_may_be_mapped_over(self) -> None:
        with DAG("mapped"):
            mapped = DeployModelOperator.partial(task_id="task", model="fraud", timeout=5).expand(deployment=["a", "b"])
        assert isinstance(mapped, MappedOperator)

        operator = mapped.unmap({"deployment": "b"})

        assert (operator.deployment, operator.model, operator.timeout) == ("b", "fraud", 5)


def test_the_hook_deploys_and_ends(server: BentoCloudStandIn) -> None:
    hook = BentoCloudHook(CONNECTION)

    deployed = hook.deploy("demo", "fraud:v1", config={"bento": "svc:1"})

    assert (deployed.artifact, hook.deployment("demo").revision) == ("svc:1", deployed.revision)
    assert hook.undeploy("demo").status == "terminating"


async def test_async_tasks_await_the_same(server: BentoCloudStandIn) -> None:
    hook = BentoCloudHook(CONNECTION)

    deployed = await hook.adeploy("demo", "fraud:v1", config={"bento": "svc:1"})

    assert (deployed.artifact, (await hook.adeployment("demo")).revision) == ("svc:1", deployed.revision)
    assert (await hook.aundeploy("demo")).status == "terminating"

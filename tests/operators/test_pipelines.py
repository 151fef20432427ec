"""Deploy and undeploy as tasks on a Wallaroo connection: the operators know no system, and this one shows little."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, BaseHook, TaskDeferred
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.registries.wallaroo import pipelines as wallaroo_pipelines
from airflow_provider_modelsync.links import RegistryConsoleLink
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, UndeployModelOperator
from airflow_provider_modelsync.triggers import deployment as triggers
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.standins.http_server import LoseAnswer, Respond
from tests.support.pipelines import CANARY, CONNECTION, DEPLOY, STATUS, Instance, ref, running_instance

CONFIG = {"engineAux": {"images": {"fraud": {"env": [{"name": "API_KEY", "value": CANARY}]}}}}


@pytest.fixture
def instance(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(wallaroo_pipelines, "_PAUSE", 0.0)
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with running_instance(tmp_path / "instance") as instance:
        connect(CONNECTION, conn_type="wallaroo", **instance.fields)
        yield instance


@pytest.fixture
def context(context: dict[str, Any]) -> dict[str, Any]:
    """The context of a running task whose XComs are kept."""
    pushed: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: pushed.update({key: value})
    context["pushed"] = pushed
    return context


def deploy(instance: Instance, **arguments: Any) -> DeployModelOperator:
    defaults = {"registry_conn_id": CONNECTION, "deployment": "demo", "poll_interval": 0.01}
    return DeployModelOperator(**{"task_id": "deploy", "model": ref(instance.new), **defaults, **arguments})


def undeploy(**arguments: Any) -> UndeployModelOperator:
    defaults = {"registry_conn_id": CONNECTION, "deployment": "demo", "poll_interval": 0.01}
    return UndeployModelOperator(**{"task_id": "undeploy", **defaults, **arguments})


def kill_once_it_waits(operator: DeployModelOperator, instance: Instance) -> list[float]:
    """Have a task killed once it looks at what it has deployed; the time of that is put into the list."""
    killed_at: list[float] = []
    deploys = instance.server.count("POST", DEPLOY)

    def kill() -> None:
        while instance.server.count("POST", DEPLOY) == deploys:
            time.sleep(0.01)
        looks = instance.server.count("POST", STATUS)
        while instance.server.count("POST", STATUS) < looks + 2:
            time.sleep(0.01)
        killed_at.append(time.monotonic())
        operator.on_kill()

    threading.Thread(target=kill, daemon=True).start()
    return killed_at


def assert_tells_no_secret(instance: Instance, *values: Any) -> None:
    told = json.dumps(values, default=str)
    secrets = [*instance.server.access_tokens, *instance.server.refresh_tokens, instance.server.password, CANARY]
    assert not [secret for secret in secrets if secret in told]


def test_a_try_looks_its_connection_up_once(instance: Instance, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets backends are slow, and bill for it."""
    asked: list[str] = []
    look_up = BaseHook.get_connection

    def counted(conn_id: str) -> Any:
        asked.append(conn_id)
        return look_up(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", counted)
    operator = deploy(instance, model="fraud")
    operator.execute(context)
    assert asked == [CONNECTION]
    operator.execute(context)  # as dag.test() runs the next try
    undeploy().execute(context)
    assert asked == [CONNECTION] * 3


def test_a_model_is_served_and_the_task_tells_where(instance: Instance, context: Any) -> None:
    told = deploy(instance, model="fraud", config=CONFIG).execute(context)

    facts = (told["registry"], told["name"], told["status"], told["ready"], told["model"], told["revision"])
    assert facts == ("wallaroo", "demo", "Running", True, ref(instance.new), ref(instance.new))
    assert told["url"] == f"{instance.server.url}/v1/api/pipelines/infer/demo-1/demo"
    assert len(json.dumps(told)) <= XCOM_LIMIT
    assert_tells_no_secret(instance, told, context["pushed"])


def test_the_link_leads_to_the_instance(instance: Instance, context: Any) -> None:
    operator = context["task"] = deploy(instance)
    operator.execute(context)

    assert RegistryConsoleLink().get_link(operator, ti_key=context["ti"]) == f"{instance.server.url}/"


def test_again_changes_nothing(instance: Instance, context: Any) -> None:
    for _ in range(2):
        deploy(instance, config=CONFIG).execute(context)

    assert instance.changes() == ["create", "deploy"]


def test_an_update_waits_for_its_own_version(instance: Instance, context: Any) -> None:
    deploy(instance, model=ref(instance.old)).execute(context)
    instance.server.script_deployment("demo", ["stale", "stale", "Starting", "Running"])

    assert deploy(instance).execute(context)["model"] == ref(instance.new)
    assert instance.server.pipelines[1].deployment.id == 1


def test_a_failed_conversion_fails_the_task_for_good(instance: Instance, context: Any) -> None:
    failed = instance.server.seed(instance.workspace, "fraud", b"bad", statuses=["error"])

    with pytest.raises(AirflowFailException, match="conversion has failed"):
        deploy(instance, model=ref(failed)).execute(context)
    assert instance.changes() == []


@pytest.mark.parametrize("update", [False, True], ids=["a new pipeline", "an update"])
def test_an_error_that_lasts_fails_the_task_for_good(
    instance: Instance, context: Any, monkeypatch: pytest.MonkeyPatch, update: bool
) -> None:
    monkeypatch.setattr(wallaroo_pipelines, "_ERROR_SECONDS", 0.05)
    if update:
        deploy(instance, model=ref(instance.old)).execute(context)
    instance.server.script_deployment("demo", ["Starting", "Error"], reason="OutOfMemory")

    with pytest.raises(AirflowFailException, match=r"demo is Error: .*OutOfMemory"):
        deploy(instance).execute(context)


def test_a_passing_fault_does_not_end_the_wait(instance: Instance, context: Any) -> None:
    instance.server.script_deployment("demo", ["Starting", "Starting", "Running"])
    instance.server.fault("POST", STATUS, Respond(501, b""), nth=2)

    assert deploy(instance).execute(context)["ready"]


def test_a_deferred_one_is_finished_by_its_trigger(instance: Instance, context: Any) -> None:
    instance.server.script_deployment("demo", ["Starting"] * 4 + ["Running"])
    operator = deploy(instance, deferrable=True)
    with pytest.raises(TaskDeferred) as sleeping:
        operator.execute(context)

    async def event() -> Any:
        async for event in sleeping.value.trigger.run():
            return event.payload
        return None

    payload = asyncio.run(event())

    assert payload["status"] == "success"
    told = deploy(instance).execute_complete(context, payload, **sleeping.value.kwargs or {})
    assert (told["ready"], told["model"]) == (True, ref(instance.new))
    assert_tells_no_secret(instance, sleeping.value.trigger.serialize(), payload, told)


def test_a_deferred_update_waits_for_its_own_version(instance: Instance, context: Any) -> None:
    deploy(instance, model=ref(instance.old)).execute(context)
    instance.server.script_deployment("demo", ["stale"])
    with pytest.raises(TaskDeferred) as sleeping:
        deploy(instance, deferrable=True).execute(context)

    _, arguments = sleeping.value.trigger.serialize()
    assert arguments["revision"] == ref(instance.new)
    assert (arguments["started"]["undo"], arguments["started"]["replaced"]) == ("restore", ref(instance.old))


def test_the_next_try_goes_on_with_what_the_last_has_begun(instance: Instance, context: Any) -> None:
    instance.server.script_deployment("demo", ["Starting"])
    for _ in range(2):
        with pytest.raises(TaskDeferred) as sleeping:
            deploy(instance, deferrable=True).execute(context)

    started = sleeping.value.trigger.serialize()[1]["started"]
    assert instance.changes() == ["create", "deploy"]
    assert (started["undo"], started["revision"]) == ("terminate", ref(instance.new))


def test_a_lost_answer_is_found_by_the_next_try(instance: Instance, context: Any) -> None:
    instance.server.script_deployment("demo", ["Starting"])
    instance.server.fault("POST", DEPLOY, LoseAnswer())
    instance.server.fault("POST", "/list_pipelines$", Respond(501, b""), nth=3)
    with pytest.raises(AirflowException) as lost:
        deploy(instance).execute(context)
    assert not isinstance(lost.value, AirflowFailException)

    with pytest.raises(TaskDeferred) as sleeping:
        deploy(instance, deferrable=True).execute(context)
    assert instance.server.count("POST", DEPLOY) == 1
    assert sleeping.value.trigger.serialize()[1]["started"]["undo"] == "terminate"


@pytest.mark.parametrize("update", [False, True], ids=["a new pipeline", "an update"])
@pytest.mark.row("P4", of="wallaroo")
def test_a_killed_task_takes_back_what_it_started(instance: Instance, context: Any, update: bool) -> None:
    if update:
        deploy(instance, model=ref(instance.old)).execute(context)
    instance.server.script_deployment("demo", ["Starting"])
    operator = deploy(instance)
    killed_at = kill_once_it_waits(operator, instance)

    with pytest.raises(AirflowException):
        operator.execute(context)

    assert time.monotonic() - killed_at[0] < 4
    deployment = instance.server.pipelines[1].deployment
    if update:
        assert deployment.version.steps[0]["version"] == instance.old.uuid
    else:
        assert not deployment.deployed


def test_the_end_is_waited_for(instance: Instance, context: Any) -> None:
    instance.server.undeployment = ["Running", "Running", "Running"]
    deploy(instance).execute(context)

    told = undeploy().execute(context)

    assert (told["gone"], told["status"]) == (True, "Undeployed")
    assert undeploy().execute(context)["gone"]
    assert instance.changes() == ["create", "deploy", "undeploy"]


def test_what_never_was_ends_at_once(instance: Instance, context: Any) -> None:
    assert undeploy().execute(context)["gone"]
    assert instance.changes() == []


@pytest.mark.row("P9", of="remote")
def test_a_deferred_task_that_is_killed_takes_back_what_it_started(instance: Instance, context: Any) -> None:
    instance.server.script_deployment("demo", ["Starting"])
    with pytest.raises(TaskDeferred) as sleeping:
        deploy(instance, deferrable=True).execute(context)

    for _ in range(2):
        asyncio.run(sleeping.value.trigger.on_kill())

    assert not instance.server.pipelines[1].deployment.deployed
    assert instance.changes() == ["create", "deploy", "undeploy"]

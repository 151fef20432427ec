"""Ways from a task to where its registry shows the result: kept by every task that has one, fit for all eyes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_provider_modelsync.compat import TaskDeferred
from airflow_provider_modelsync.links import DeploymentLink, RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.bentocloud import PushBentoOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator, SyncModelsOperator
from airflow_provider_modelsync.provider_info import get_provider_info
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.support.versions import DagSerialization

CONNECTION = "bentocloud_default"
CONSOLE, DEPLOYMENT = RegistryConsoleLink.kept_as, DeploymentLink.kept_as


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        yield server


@pytest.fixture
def kept(context: dict[str, Any]) -> dict[str, Any]:
    """The URLs that the running task keeps."""
    kept: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: kept.update({key: value})
    return kept


def operators(source: Path, target: Path) -> list[BaseOperator]:
    """The tasks whose result a registry can show, each as users write it."""
    facts: dict[str, Any] = {"registry_conn_id": CONNECTION, "model": "digits:v1"}
    return [
        PushModelOperator(task_id="push", source=str(source), **facts),
        PullModelOperator(task_id="pull", target=str(target), **facts),
        ModelVersionSensor(task_id="wait", deferrable=True, **facts),
        PushBentoOperator(task_id="push_bento", source=str(source), registry_conn_id=CONNECTION),
        SyncModelsOperator(task_id="sync", source_conn_id="modelsync_default", target_conn_id=CONNECTION),
        DeployModelOperator(task_id="deploy", deployment="digits", **facts),
    ]


def page(server: BentoCloudStandIn) -> str:
    return f"{server.url}/model_repositories/digits/models/v1"


def test_a_push_leads_to_its_version(
    server: BentoCloudStandIn, source: Path, context: Any, kept: dict[str, Any]
) -> None:
    PushModelOperator(task_id="push", registry_conn_id=CONNECTION, model="digits:v1", source=str(source)).execute(
        context
    )

    assert kept == {CONSOLE: page(server)}


def test_a_pull_leads_to_its_version(
    server: BentoCloudStandIn, tmp_path: Path, source: Path, context: Any, kept: dict[str, Any]
) -> None:
    push, pull, *_ = operators(source, tmp_path / "pulled")
    push.execute(context)
    kept.clear()
    pull.execute(context)

    assert kept == {CONSOLE: page(server)}


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_sensor_leads_to_what_it_has_found(
    server: BentoCloudStandIn, context: Any, kept: dict[str, Any], deferrable: bool
) -> None:
    server.seed("digits", "v1")
    sensor = ModelVersionSensor(
        task_id="wait", registry_conn_id=CONNECTION, model="digits", deferrable=deferrable, poke_interval=1
    )
    sensor.execute(context)

    assert kept == {CONSOLE: page(server)}


def test_a_sensor_that_has_deferred_leads_to_what_the_trigger_has_found(
    server: BentoCloudStandIn, context: Any, kept: dict[str, Any]
) -> None:
    sensor = ModelVersionSensor(task_id="wait", registry_conn_id=CONNECTION, model="digits", deferrable=True)
    with pytest.raises(TaskDeferred):
        sensor.execute(context)
    assert kept == {}
    server.seed("digits", "v1")
    ModelVersionSensor(task_id="wait", registry_conn_id=CONNECTION, model="digits", deferrable=True).execute_complete(
        context, {"status": "success", "ref": "digits:v1", "model": "digits:v1"}
    )

    assert kept == {CONSOLE: page(server)}


def test_a_sync_leads_to_the_models_of_its_target(
    server: BentoCloudStandIn, modelstore: Path, context: Any, kept: dict[str, Any]
) -> None:
    modelstore.mkdir()
    SyncModelsOperator(task_id="sync", source_conn_id="modelsync_default", target_conn_id=CONNECTION).execute(context)

    assert kept == {CONSOLE: f"{server.url}/models"}


def test_a_registry_without_pages_gives_no_link(
    modelstore: Path, source: Path, context: Any, kept: dict[str, Any]
) -> None:
    PushModelOperator(task_id="push", model="digits:v1", source=str(source)).execute(context)

    assert kept == {}


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "file:///etc/passwd", "s3://bucket/key", "https://", "/digits", "https://me:secret@host/"],
)
def test_only_what_a_browser_may_open_is_kept(context: Any, kept: dict[str, Any], url: str) -> None:
    remember_link(context, lambda: url)

    assert kept == {}


@pytest.mark.parametrize("url", ["https://console.example/a?b=c", "http://127.0.0.1:3000/"])
def test_pages_are_kept(context: Any, kept: dict[str, Any], url: str) -> None:
    remember_link(context, lambda: url, DeploymentLink)

    assert kept == {DEPLOYMENT: url}


def test_a_link_that_cannot_be_found_fails_nothing(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    def find() -> str:
        raise ConnectionError("the supervisor is gone")

    remember_link(context, find)

    assert "'Registry console' could not be kept: the supervisor is gone" in caplog.text


def test_links_are_read_where_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {CONSOLE: "https://console.example/", DEPLOYMENT: "https://demo.example/"}
    monkeypatch.setattr("airflow_provider_modelsync.links.XCom.get_value", lambda ti_key, key: kept.get(key))
    task, key = BaseOperator(task_id="any"), SimpleNamespace()

    assert RegistryConsoleLink().get_link(task, ti_key=key) == kept[CONSOLE]  # type: ignore[arg-type]
    assert DeploymentLink().get_link(task, ti_key=key) == kept[DEPLOYMENT]  # type: ignore[arg-type]


def test_no_link_of_our_tasks_is_looked_for_where_it_may_not_be(
    modelstore: Path, source: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = PushModelOperator(task_id="push", model="digits:v1", source=str(source))
    push.execute({**context, "task": push})
    monkeypatch.delattr("airflow_provider_modelsync.links.XCom.get_value")  # it would log an error

    assert RegistryConsoleLink().get_link(push, ti_key=SimpleNamespace()) == ""  # type: ignore[arg-type]


def test_our_tasks_have_their_links_at_hand(
    server: BentoCloudStandIn, source: Path, context: Any, kept: dict[str, Any]
) -> None:
    push = PushModelOperator(task_id="push", registry_conn_id=CONNECTION, model="digits:v1", source=str(source))
    push.execute({**context, "task": push})

    assert RegistryConsoleLink().get_link(push, ti_key=SimpleNamespace()) == page(server)  # type: ignore[arg-type]


def test_links_survive_serialization(source: Path, tmp_path: Path) -> None:
    with DAG("linked") as dag:
        tasks = operators(source, tmp_path / "pulled")
    back = DagSerialization.from_dict(DagSerialization.to_dict(dag))

    for task in tasks:
        names = ["Registry console", *(["Deployment"] if isinstance(task, DeployModelOperator) else [])]
        assert back.get_task(task.task_id).extra_links == sorted(names), task.task_id


def test_every_link_is_declared() -> None:
    declared = get_provider_info()["extra-links"]

    assert declared == [f"{link.__module__}.{link.__qualname__}" for link in (RegistryConsoleLink, DeploymentLink)]

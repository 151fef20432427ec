"""Waiting for a deployment, on a worker and through the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import PokeReturnValue

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.links import DeploymentLink, RegistryConsoleLink
from airflow_provider_modelsync.sensors.deployment import DeploymentSensor
from airflow_provider_modelsync.triggers import deployment as triggers
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.support.cloud import CONNECTION, changes, newest, running_cloud


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    with running_cloud(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        yield server


def sensor(**arguments: Any) -> DeploymentSensor:
    facts = {"task_id": "wait", "registry_conn_id": CONNECTION, "deployment": "demo", "poke_interval": 0.01}
    return DeploymentSensor(**{**facts, "timeout": 60, **arguments})


def finds(context: Any, **arguments: Any) -> str | None:
    """Look once; return the revision of what is there."""
    seen = sensor(**arguments).poke(context)
    assert isinstance(seen, PokeReturnValue)
    assert bool(seen) is (seen.xcom_value is not None)
    return seen.xcom_value["revision"] if seen.xcom_value else None


def test_what_is_not_there_yet_is_waited_for(server: BentoCloudStandIn, context: Any) -> None:
    assert finds(context) is None
    server.script_deployment("demo", ["deploying", "running"])
    BentoCloudHook(CONNECTION).deploy("demo", "fraud:v1")
    before = changes(server)

    assert sensor().execute(context)["ready"]
    assert finds(context) == newest(server)
    assert changes(server) == before  # it only looks


def test_a_revision_may_be_named(server: BentoCloudStandIn, context: Any) -> None:
    BentoCloudHook(CONNECTION).deploy("demo", "fraud:v1")
    while not finds(context):
        pass

    assert finds(context, revision=newest(server)) == newest(server)
    assert finds(context, revision="another") is None


def test_the_end_may_be_waited_for(server: BentoCloudStandIn, context: Any) -> None:
    assert sensor(status="gone").execute(context)["gone"]
    BentoCloudHook(CONNECTION).deploy("demo", "fraud:v1")
    assert finds(context, status="gone") is None
    BentoCloudHook(CONNECTION).undeploy("demo")

    assert sensor(status="gone").execute(context)["gone"]


def test_a_deployment_that_has_failed_fails_the_task(server: BentoCloudStandIn, context: Any) -> None:
    server.script_deployment("demo", ["failed"])
    BentoCloudHook(CONNECTION).deploy("demo", "fraud:v1")

    with pytest.raises(AirflowFailException, match="demo is failed"):
        sensor().execute(context)
    with pytest.raises(AirflowSkipException):
        sensor(soft_fail=True, deferrable=True).execute(context)


def test_another_word_is_refused_by_name(server: BentoCloudStandIn, context: Any) -> None:
    for deferrable in (False, True):
        with pytest.raises(AirflowFailException, match=rf"'running' is neither.*argument 'status'.*{CONNECTION}"):
            sensor(status="running", deferrable=deferrable).execute(context)
    assert server.requests == []


def test_the_triggerer_waits_for_what_is_not_there_yet(
    server: BentoCloudStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.05)
    kept: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: kept.update({key: value})
    with pytest.raises(TaskDeferred) as deferred:
        sensor(deferrable=True).execute(context)
    trigger: Any = deferred.value.trigger
    assert trigger.started is None  # nothing is taken back

    async def wait() -> Any:
        events = trigger.run()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.to_thread(BentoCloudHook(CONNECTION).deploy, "demo", "fraud:v1")
        return await waiting

    event = asyncio.run(wait())
    left = sensor(deferrable=True).execute_complete(context, event.payload)

    assert (left["name"], left["ready"]) == ("demo", True)
    assert {RegistryConsoleLink.kept_as, DeploymentLink.kept_as} == kept.keys()


def test_a_trigger_s_failures_reach_the_task(server: BentoCloudStandIn, context: Any) -> None:
    failed = {"status": "failed", "message": "no", "permanent": True}
    with pytest.raises(AirflowFailException, match="no"):
        sensor(deferrable=True).execute_complete(context, failed)
    with pytest.raises(AirflowException, match="late"):
        sensor(deferrable=True).execute_complete(context, {"status": "timeout", "message": "late"})


def test_a_registry_without_deployments_fails_for_good(modelstore: Path, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="does not offer to deploy"):
        sensor(registry_conn_id="modelsync_default").execute(context)

"""What tasks tell their outlets and lineage: which version, with which digest, and nothing secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.base import ModelSyncOperator
from airflow_provider_modelsync.operators.catalog import ListModelsOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator, SyncModelsOperator
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Respond
from tests.support.cloud import CANARY, CONNECTION, running_cloud

ALIAS = AssetAlias("models")


@pytest.fixture
def stores(tmp_path: Path, connect: Connect, source: Path) -> None:
    """Two model stores, the first with two models."""
    for name in ("one", "two"):
        connect(name, conn_type="modelstore", host=(tmp_path / name).as_uri(), password=CANARY)
    for name in ("churn", "fraud"):
        ModelStoreHook("one").push(source, f"{name}:v1")


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    """A BentoCloud with a model and a bento that holds it."""
    with running_cloud(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        yield server


def events_of(context: Any, alias: AssetAlias = ALIAS) -> dict[str, dict[str, Any]]:
    """What an alias was told, by asset."""
    return {event.dest_asset_key.uri: event.extra for event in context["outlet_events"][alias].asset_alias_events}


def traced(operator: ModelSyncOperator) -> tuple[list[str], list[str]]:
    """What an operator has read and written."""
    read, written = (
        [f"{conn_id}/{version.ref}" for conn_id, version in side]
        for side in (operator._trace.read, operator._trace.written)
    )
    return read, written


def test_an_alias_gets_the_asset_of_the_model_that_was_pushed(stores: None, source: Path, context: Any) -> None:
    push = PushModelOperator(
        task_id="push", registry_conn_id="two", model="new:v1", source=str(source), outlets=[ALIAS]
    )
    pushed = push.execute(context)

    (event,) = events_of(context).values()
    assert set(events_of(context)) == {"modelsync://two/new"}
    assert event == {key: pushed[key] for key in ("registry", "name", "version", "digest", "created_at")}
    assert traced(push) == ([], ["two/new:v1"])


def test_a_pull_takes_a_version(stores: None, tmp_path: Path, context: Any) -> None:
    pull = PullModelOperator(task_id="pull", registry_conn_id="one", model="fraud", target=str(tmp_path / "pulled"))
    pull.execute(context)

    assert traced(pull) == (["one/fraud:v1"], [])


def sync(**arguments: Any) -> SyncModelsOperator:
    """Return a sync between the two stores."""
    return SyncModelsOperator(task_id="sync", source_conn_id="one", target_conn_id="two", **arguments)


def test_a_sync_tells_of_what_it_has_copied(stores: None, context: Any) -> None:
    own, other = model_asset("two", "churn"), model_asset("two", "something-else")
    operator = sync(outlets=[ALIAS, own, other], rename={"fraud": "scam"})
    operator.execute(context)

    told = events_of(context)
    digest = ModelStoreHook("one").get("fraud:v1").digest
    assert {uri: (event["version"], event["digest"]) for uri, event in told.items()} == {
        "modelsync://two/churn": ("v1", digest),
        "modelsync://two/scam": ("v1", digest),
    }
    assert context["outlet_events"][own].extra == told[own.uri]
    assert context["outlet_events"][other].extra == {}
    assert traced(operator) == (["one/churn:v1", "one/fraud:v1"], ["two/churn:v1", "two/scam:v1"])


def test_a_models_asset_is_told_of_all_its_copies(stores: None, source: Path, context: Any) -> None:
    ModelStoreHook("one").push(source / "tokenizer", "fraud:v2")
    own = model_asset("two", "fraud")
    sync(outlets=[own], versions="all").execute(context)

    assert [event["version"] for event in context["outlet_events"][own].extra["versions"]] == ["v1", "v2"]


@pytest.mark.parametrize("arguments", [{"dry_run": True}, {}], ids=str)
def test_a_sync_that_copies_nothing_tells_nothing(stores: None, context: Any, arguments: dict[str, Any]) -> None:
    if not arguments:
        ModelStoreHook("one").sync_to(ModelStoreHook("two"), _everything())
    operator = sync(outlets=[ALIAS], **arguments)
    operator.execute(context)

    assert events_of(context) == {}
    assert traced(operator) == ([], [])


def _everything() -> Any:
    from airflow_provider_modelsync.core.sync import Selection

    return Selection()


def deploy(**arguments: Any) -> DeployModelOperator:
    """Return an operator that deploys and does not wait."""
    return DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment="demo",
        model="fraud:v1",
        wait_for_completion=False,
        **arguments,
    )


def test_a_deployment_takes_a_version(server: BentoCloudStandIn, context: Any) -> None:
    asset = Asset("served")
    operator = deploy(outlets=[asset, ALIAS], config={"envs": [{"name": "A", "value": CANARY}]})
    operator.execute(context)

    extra = context["outlet_events"][asset].extra
    assert (extra["registry"], extra["name"], extra["version"]) == ("bentocloud", "fraud", "v1")
    assert set(events_of(context)) == {f"modelsync://{CONNECTION}/fraud"}
    assert traced(operator) == ([f"{CONNECTION}/fraud:v1"], [])
    assert CANARY not in json.dumps([extra, events_of(context)])


def test_a_digest_that_cannot_be_read_fails_no_deployment(server: BentoCloudStandIn, context: Any) -> None:
    server.fault("GET", "/models/v1$", Respond(404), times=None)
    asset = Asset("served")
    deploy(outlets=[asset]).execute(context)

    extra = context["outlet_events"][asset].extra
    assert (extra["name"], extra["version"], extra["digest"]) == ("fraud", "v1", None)


def test_a_task_without_versions_has_no_lineage(stores: None, context: Any) -> None:
    listing = ListModelsOperator(task_id="list", registry_conn_id="one")
    listing.execute(context)

    assert listing.get_openlineage_facets_on_complete(None) is None

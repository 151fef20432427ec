"""What tasks tell their outlets and lineage: which version, with which digest, and nothing secret."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_provider_modelsync.assets import convert_to_openlineage, model_asset
from airflow_provider_modelsync.compat import AirflowException
from airflow_provider_modelsync.core.models import SyncedVersion
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.lineage import file_dataset
from airflow_provider_modelsync.operators.base import ModelSyncOperator, TaskCheckpoint
from airflow_provider_modelsync.operators.catalog import ListModelsOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import (
    PullModelOperator,
    PushModelOperator,
    SyncModelsOperator,
    _Copies,
)
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Respond
from tests.support.cloud import CANARY, CONNECTION, running_cloud
from tests.support.state_store import StateStore

ALIAS = AssetAlias("models")


@pytest.fixture
def stores(tmp_path: Path, connect: Connect, source: Path) -> None:
    """Two model stores, the first with two models."""
    for name in ("one", "two"):
        connect(
            name,
            conn_type="modelstore",
            host=(tmp_path / name).as_uri(),
            extra={"proxy": f"http://me:{CANARY}@proxy.example:3128"},
        )
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


@pytest.mark.parametrize("conn_id", ["prod#1", "a/b", "a:1", "x(y)!"])
def test_whatever_a_connection_is_called_its_models_have_assets(
    tmp_path: Path, connect: Connect, source: Path, context: Any, conn_id: str
) -> None:
    connect(conn_id, conn_type="modelstore", host=(tmp_path / "store").as_uri())
    push = PushModelOperator(
        task_id="push", registry_conn_id=conn_id, model="new:v1", source=str(source), outlets=[ALIAS]
    )
    push.execute(context)

    ((uri, event),) = events_of(context).items()
    assert (uri, event["name"]) == (model_asset(conn_id, "new").uri, "new")
    assert Asset(uri).uri == uri
    assert convert_to_openlineage(Asset(uri), None).namespace == f"modelsync://{conn_id}"


@pytest.mark.parametrize("by", ["uri", "name"])
@pytest.mark.parametrize("kind", ["push", "sensor", "sync"])
def test_references_to_assets_are_told_as_assets_are(
    stores: None, source: Path, context: Any, monkeypatch: pytest.MonkeyPatch, by: str, kind: str
) -> None:
    conn_id = "two" if kind == "sync" else "one"
    known = model_asset(conn_id, "fraud")
    # Else the supervisor is asked.
    monkeypatch.setattr(type(context["outlet_events"]), "_get_asset_from_db", lambda self, **by: known)
    ref = Asset.ref(**{by: f"modelsync://{conn_id}/fraud"})
    facts: dict[str, Any] = {"registry_conn_id": "one", "model": "fraud:v1", "outlets": [ref]}
    if kind == "push":
        PushModelOperator(task_id="push", source=str(source), **facts).execute(context)
    elif kind == "sensor":
        ModelVersionSensor(task_id="wait", **facts).execute(context)
    else:
        copy = SyncModelsOperator(task_id="sync", source_conn_id="one", target_conn_id="two", models=["fraud"])
        copy.outlets = [ref]
        copy.execute(context)

    assert context["outlet_events"][known].extra["version"] == "v1"


def test_a_sensor_tells_what_it_has_found(stores: None, context: Any) -> None:
    asset = model_asset("one", "fraud")
    sensor = ModelVersionSensor(task_id="wait", registry_conn_id="one", model="fraud", outlets=[asset, ALIAS])
    found = sensor.execute(context)

    assert context["outlet_events"][asset].extra["digest"] == found["digest"]
    assert set(events_of(context)) == {asset.uri}
    told = sensor.get_openlineage_facets_on_complete(None)
    assert told is not None
    assert [one.name for one in told.inputs] == ["fraud"]


def test_lineage_names_where_files_come_from_and_go_to(
    stores: None, source: Path, tmp_path: Path, context: Any
) -> None:
    push = PushModelOperator(task_id="push", registry_conn_id="two", model="new:v1", source=str(source))
    pull = PullModelOperator(task_id="pull", registry_conn_id="two", model="new", target=str(tmp_path / "pulled"))
    push.execute(context)
    pull.execute(context)

    pushed, pulled = (operator.get_openlineage_facets_on_complete(None) for operator in (push, pull))
    assert pushed is not None
    assert pulled is not None
    assert [(one.namespace, one.name) for one in pushed.inputs] == [("file", str(source))]
    assert [(one.namespace, one.name) for one in pulled.outputs] == [("file", str(tmp_path / "pulled"))]


@pytest.mark.parametrize(
    ("place", "dataset"),
    [
        ("s3://aws_default@bucket/a/b/", ("s3://bucket", "a/b")),
        ("gs://bucket/a", ("gs://bucket", "a")),
        ("file:///srv/models", ("file", "/srv/models")),
        ("/srv/models/", ("file", "/srv/models")),
    ],
)
def test_places_have_the_names_that_openlineage_wants(place: str, dataset: tuple[str, str]) -> None:
    told = file_dataset(place)

    assert (told.namespace, told.name) == dataset


def test_a_pull_takes_a_version(stores: None, tmp_path: Path, context: Any) -> None:
    pull = PullModelOperator(task_id="pull", registry_conn_id="one", model="fraud", target=str(tmp_path / "pulled"))
    pull.execute(context)

    assert traced(pull) == (["one/fraud:v1"], [])


def made(ref: str) -> dict[str, Any]:
    """What a watcher of the second store says of a version."""
    return ModelStoreHook("two").get(ref).to_event()


def sync(**arguments: Any) -> SyncModelsOperator:
    """Return a sync between the two stores."""
    return SyncModelsOperator(task_id="sync", source_conn_id="one", target_conn_id="two", **arguments)


def test_a_sync_tells_of_what_it_has_copied(stores: None, context: Any) -> None:
    own, other = model_asset("two", "churn"), model_asset("two", "something-else")
    operator = sync(outlets=[ALIAS, own, other], rename={"fraud": "scam"})
    operator.execute(context)

    told = events_of(context)
    assert told == {f"modelsync://two/{name}": made(f"{name}:v1") for name in ("churn", "scam")}
    assert all(event["created_at"] for event in told.values())
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
    from airflow_provider_modelsync.core.verbs.sync import Selection

    return Selection()


def again(context: Any) -> Any:
    """What the next try of a task gets: what was remembered, and no events."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    return {**context, "outlet_events": OutletEventAccessors()}


@pytest.fixture
def failed(stores: None, tmp_path: Path, context: Any) -> Any:
    """What a try left that has copied ``fraud:v1`` and failed at ``churn:v1``, which is mended since."""
    broken = tmp_path / "one" / "churn" / "v1"
    shutil.move(broken, tmp_path / "aside")
    with pytest.raises(AirflowException, match="churn"):
        sync(outlets=[ALIAS]).execute(context)
    assert events_of(context) == {}
    shutil.move(tmp_path / "aside", broken)
    return again(context)


def test_copies_of_a_failed_try_are_told_by_the_next(failed: Any) -> None:
    own = model_asset("two", "fraud")
    operator = sync(outlets=[ALIAS, own])
    assert operator.execute(failed)["counts"] == {"copied": 1, "skipped": 1, "failed": 0}

    assert events_of(failed) == {f"modelsync://two/{name}": made(f"{name}:v1") for name in ("churn", "fraud")}
    assert len(failed["outlet_events"][ALIAS].asset_alias_events) == 2
    assert failed["outlet_events"][own].extra == made("fraud:v1")
    assert traced(operator)[1] == ["two/churn:v1"]
    assert failed["task_state_store"].values == {}


def test_a_copy_that_was_deleted_between_the_tries_is_told_once(failed: Any) -> None:
    ModelStoreHook("two").delete("fraud:v1")
    sync(outlets=[ALIAS]).execute(failed)

    assert [event.extra["name"] for event in failed["outlet_events"][ALIAS].asset_alias_events].count("fraud") == 1
    assert events_of(failed)["modelsync://two/fraud"] == made("fraud:v1")


def test_a_cleared_task_tells_of_nothing_that_it_has_told(failed: Any) -> None:
    sync(outlets=[ALIAS]).execute(failed)
    cleared = again(failed)
    sync(outlets=[ALIAS]).execute(cleared)

    assert events_of(cleared) == {}


def test_failures_that_may_be_keep_no_copy_from_being_told(stores: None, tmp_path: Path, context: Any) -> None:
    shutil.rmtree(tmp_path / "one" / "churn" / "v1")
    sync(outlets=[ALIAS], fail_on_error=False).execute(context)

    assert set(events_of(context)) == {"modelsync://two/fraud"}
    assert context["task_state_store"].values == {}


def test_copies_are_told_of_in_the_connection_that_they_are_in(failed: Any, tmp_path: Path, connect: Connect) -> None:
    connect("three", conn_type="modelstore", host=(tmp_path / "three").as_uri())
    operator = SyncModelsOperator(
        task_id="sync", source_conn_id="one", target_conn_id="three", models=["churn"], outlets=[ALIAS]
    )
    operator.execute(failed)

    assert set(events_of(failed)) == {"modelsync://three/churn"}


class Killing(StateStore):
    """Kills the task at the first copy that is remembered."""

    operator: SyncModelsOperator

    def set(self, key: str, value: Any, retention: Any = None) -> None:
        super().set(key, value, retention)
        self.operator.on_kill()


def test_copies_of_a_killed_try_are_told_by_the_next(stores: None, source: Path, context: Any) -> None:
    ModelStoreHook("one").push(source / "tokenizer", "fraud:v2")
    what: dict[str, Any] = {"models": ["fraud"], "versions": "all", "outlets": [ALIAS]}
    context["task_state_store"] = store = Killing()
    store.operator = sync(**what)
    with pytest.raises(AirflowException, match="told to stop"):
        store.operator.execute(context)

    context = again(context)
    assert sync(**what).execute(context)["counts"] == {"copied": 1, "skipped": 1, "failed": 0}
    told = [event.extra for event in context["outlet_events"][ALIAS].asset_alias_events]
    assert told == [made("fraud:v1"), made("fraud:v2")]


@pytest.mark.parametrize("arguments", [{"outlets": [ALIAS], "dry_run": True}, {}], ids=str)
def test_nothing_is_remembered_where_nobody_is_told(stores: None, context: Any, arguments: dict[str, Any]) -> None:
    context["task_state_store"] = store = Killing()
    store.operator = operator = sync(**arguments)

    operator.execute(context)


def test_a_task_without_a_state_store_tells_of_what_it_has_copied(stores: None, context: Any) -> None:
    del context["task_state_store"]
    sync(outlets=[ALIAS]).execute(context)

    assert set(events_of(context)) == {"modelsync://two/churn", "modelsync://two/fraud"}


def test_thousands_of_copies_are_remembered_in_small_values(stores: None) -> None:
    store, target = StateStore(), ModelStoreHook("two")
    refs = [f"{'ü' * 100}{number}:v1" for number in range(300)]
    copies = _Copies(TaskCheckpoint(store), target)
    for ref in refs:
        copies.add(SyncedVersion(source=ref, target=ref, outcome="copied", digest=f"sha256:{0:064}"))

    assert max(map(len, store.values.values())) < 16_000
    assert len(store.values) < 30
    remembered = _Copies(TaskCheckpoint(store), target)
    assert [f"{event['name']}:{event['version']}" for event in remembered.events()] == refs
    remembered.forget()
    assert store.values == {}


@pytest.mark.parametrize("junk", [3, "x", {"name": "a"}, [3], [{"name": 3}], [{"name": "a", "version": []}]])
def test_what_is_remembered_is_not_trusted(stores: None, context: Any, junk: Any) -> None:
    context["task_state_store"].set("modelsync.copies.v1.two.0", junk)
    sync(outlets=[ALIAS], models=["fraud"]).execute(context)

    assert set(events_of(context)) == {"modelsync://two/fraud"}


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

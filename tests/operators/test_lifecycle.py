"""Tasks that promote, roll back and prune."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_provider_modelsync.assets import alias_asset
from airflow_provider_modelsync.compat import AirflowFailException, AirflowSkipException
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.operators.lifecycle import (
    PromoteModelOperator,
    PruneModelsOperator,
    RollbackModelOperator,
)
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Respond

BETTER = {"metric": "auc", "at_least": 0.005}


@pytest.fixture
def hook(modelstore: Path, source: Path) -> ModelStoreHook:
    """A store with three versions: v1 is champion, v2 is better, v3 is worse."""
    hook = ModelStoreHook("modelsync_default")
    for version, auc in (("v1", 0.90), ("v2", 0.93), ("v3", 0.91)):
        (source / "weights.bin").write_text(version)
        hook.push(source, f"digits:{version}", metadata={"auc": auc})
    hook.set_alias("digits:v1", "champion")
    return hook


def promote(context: Any, model: Any = "digits:v2", **arguments: Any) -> Any:
    task = PromoteModelOperator(task_id="promote", model=model, alias="champion", **{"when": BETTER, **arguments})
    return task.execute(context)


def go_back(context: Any, **arguments: Any) -> Any:
    return RollbackModelOperator(task_id="rollback", model="digits", alias="champion", **arguments).execute(context)


def test_a_better_version_is_promoted(hook: ModelStoreHook, context: Any) -> None:
    told = promote(context)
    assert (told["promoted"], told["from"], told["to"], told["ref"]) == (True, "digits:v1", "digits:v2", "digits:v2")
    assert hook.get("digits@champion").version == "v2"


def test_the_result_leads_to_the_version_as_does_the_alias(hook: ModelStoreHook, context: Any) -> None:
    told = promote(context)
    assert hook.get(told).ref == hook.get("digits@champion").ref == "digits:v2"


@pytest.mark.parametrize(("on_refusal", "end"), [("skip", AirflowSkipException), ("fail", AirflowFailException)])
def test_a_refusal_skips_or_fails_the_task_which_leaves_why(
    hook: ModelStoreHook, context: Any, on_refusal: str, end: type[Exception]
) -> None:
    promote(context)
    pushed: dict[str, Any] = {}
    context["ti"] = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    with pytest.raises(end, match=r"auc is 0.91, not at least 0.005 above 0.93"):
        promote(context, "digits:v3", on_refusal=on_refusal)
    told = pushed["return_value"]
    assert (told["promoted"], told["from"], told["to"]) == (False, "digits:v2", "digits:v2")
    assert told["candidate"] == "digits:v3"
    assert hook.get("digits@champion").version == "v2"


def test_a_refusal_may_pass(hook: ModelStoreHook, context: Any) -> None:
    promote(context)
    told = promote(context, "digits:v3", on_refusal="pass")
    assert (told["promoted"], told["ref"]) == (False, "digits:v2")


def test_what_becomes_of_a_refusal_is_one_of_three(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"skip, fail, pass.*on_refusal"):
        promote(context, on_refusal="ignore")
    assert hook.get("digits@champion").version == "v1"


def test_a_missing_metric_fails_the_task(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"no metric 'f1'.*holds: auc.*argument 'when'"):
        promote(context, when=[BETTER, {"metric": "f1"}])


def test_a_move_is_told_to_the_outlets_and_nothing_else_is(hook: ModelStoreHook, context: Any) -> None:
    alias, asset = AssetAlias("moves"), alias_asset("modelsync_default", "digits", "champion")
    assert asset.uri == Asset("modelsync://modelsync_default/digits@champion").uri
    outlets = [alias, asset]
    promote(context, outlets=outlets)
    (event,) = context["outlet_events"][alias].asset_alias_events
    assert event.dest_asset_key.uri == "modelsync://modelsync_default/digits@champion"
    assert event.extra == context["outlet_events"][asset].extra
    told = {"name": "digits", "version": "v2", "alias": "champion", "from": "digits:v1"}
    assert told.items() <= event.extra.items()
    promote(context, outlets=outlets)
    promote(context, "digits:v3", on_refusal="pass", outlets=outlets)
    assert len(context["outlet_events"][alias].asset_alias_events) == 1
    assert go_back(context, outlets=outlets)["ref"] == "digits:v1"
    _, back = context["outlet_events"][alias].asset_alias_events
    assert {"version": "v1", "from": "digits:v2"}.items() <= back.extra.items()


def test_a_rollback_that_is_tried_again_goes_back_once(hook: ModelStoreHook, context: Any) -> None:
    hook.set_alias("digits:v2", "champion")
    hook.set_alias("digits:v3", "champion")
    store = context["task_state_store"]
    go_back(context)
    assert (hook.get("digits@champion").version, store.get("modelsync.rollback.v1")) == ("v2", None)
    # Its answer was lost: all the same the next try finds what was decided.
    store.set("modelsync.rollback.v1", {"from": "v3", "to": "v2"})
    assert go_back(context)["ref"] == "digits:v2"
    assert go_back(context)["ref"] == "digits:v1"


def test_a_decision_that_cannot_be_carried_out_any_more_is_forgotten(hook: ModelStoreHook, context: Any) -> None:
    context["task_state_store"].set("modelsync.rollback.v1", {"from": "v3", "to": "v2"})
    with pytest.raises(AirflowFailException, match="points to the version v1"):
        go_back(context)
    assert context["task_state_store"].get("modelsync.rollback.v1") is None


def test_a_rollback_goes_to_the_version_that_is_named(hook: ModelStoreHook, context: Any) -> None:
    assert go_back(context, to="digits:v3")["to"] == "digits:v3"
    with pytest.raises(AirflowFailException, match="no version 'v9'"):
        go_back(context, to="v9")


def test_a_sensor_waits_for_a_move_on_a_worker_and_in_the_triggerer(hook: ModelStoreHook, context: Any) -> None:
    wait = {"task_id": "wait", "model": "digits@champion", "newer_than": "v1"}
    assert not ModelVersionSensor(**wait).poke(context)
    promote(context)
    assert ModelVersionSensor(**wait).poke(context).xcom_value["ref"] == "digits:v2"
    event = {"status": "success", "ref": "digits:v2"}
    found = ModelVersionSensor(**wait, deferrable=True).execute_complete(context, event)
    assert (found["ref"], found["alias"]) == ("digits:v2", "champion")


def prune(context: Any, **arguments: Any) -> Any:
    task = PruneModelsOperator(task_id="prune", **{"models": ["*"], "keep_last": 1, **arguments})
    return task.execute(context)


def versions(hook: ModelStoreHook) -> list[str]:
    return [version.version for version in hook.list_versions("digits")]


def test_a_prune_is_a_dry_run_and_says_so_in_red(
    hook: ModelStoreHook, context: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = prune(context)
    assert (told["dry_run"], told["counts"]["deleted"], versions(hook)) == (True, 1, ["v3", "v2", "v1"])
    assert told["deleted"] == [{"ref": "digits:v2", "size_bytes": told["deleted_bytes"]}]
    assert "\033[31mDRY RUN: nothing was deleted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({}, ["v3", "v1"]),
        ({"keep_last": "2"}, ["v3", "v2", "v1"]),
        ({"keep_aliased": "false"}, ["v3"]),
        ({"older_than": "P1D"}, ["v3", "v2", "v1"]),
        ({"older_than": 0, "keep_last": None, "min_keep": 2, "keep_aliased": False}, ["v3", "v2"]),
        ({"keep_labels": ["pinned"]}, ["v3", "v2", "v1"]),
    ],
)
def test_a_prune_deletes_what_no_rule_keeps(
    hook: ModelStoreHook, context: Any, arguments: dict[str, Any], left: list[str]
) -> None:
    hook.set_labels("digits:v2", {"pinned": "yes"})
    assert prune(context, dry_run=False, **arguments)["counts"]["failed"] == 0
    assert versions(hook) == left


def test_what_cannot_be_deleted_fails_the_task_with_a_list_once_the_rest_is_gone(
    tmp_path: Path, connect: Connect, context: Any
) -> None:
    with BentoCloudStandIn(tmp_path) as server:
        connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.token)
        for number in range(4):
            server.seed("fraud", f"v{number}")
        server.fault("DELETE", "/api/v1/model_repositories/fraud/models/v1", Respond(403, {"error": "not yours"}))
        with pytest.raises(AirflowFailException, match=r"1 of 4 failed: fraud:v1 failed: .*not yours"):
            prune(context, registry_conn_id="bentocloud_default", dry_run=False)
        left = get_registry_hook("bentocloud_default").list_versions("fraud")
    assert [version.version for version in left] == ["v3", "v1"]


def test_a_prune_without_any_limit_is_refused(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="how many versions to keep"):
        prune(context, keep_last=None, dry_run=False)
    assert len(versions(hook)) == 3

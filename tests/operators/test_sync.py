"""Syncing as a task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.supervisely import SuperviselyHook
from airflow_provider_modelsync.operators.transfer import SyncModelsOperator
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.standins.supervisely import SuperviselyStandIn


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second model store."""
    root = tmp_path / "target"
    monkeypatch.setenv("AIRFLOW_CONN_TARGET", json.dumps({"conn_type": "modelstore", "host": root.as_uri()}))
    return root


def sync(**arguments: Any) -> SyncModelsOperator:
    return SyncModelsOperator(task_id="sync", source_conn_id="modelsync_default", target_conn_id="target", **arguments)


@pytest.fixture
def pushed(modelstore: Path, source: Path) -> Path:
    """The first store, with three models in it."""
    hook = ModelStoreHook("modelsync_default")
    for model in ("fraud:v1", "fraud:v2", "churn:v1"):
        hook.push(source, model)
    return modelstore


def test_returns_what_became_of_each_version(pushed: Path, target: Path, context: Any) -> None:
    report = sync(models=["*"], versions="all").execute(context)

    assert json.loads(json.dumps(report)) == report
    assert len(json.dumps(report)) <= XCOM_LIMIT
    assert report["counts"] == {"copied": 3, "skipped": 0, "failed": 0}
    assert {version["target"] for version in report["copied"]} == {"fraud:v1", "fraud:v2", "churn:v1"}
    assert sync(versions="all").execute(context)["counts"] == {"copied": 0, "skipped": 3, "failed": 0}


def test_a_dry_run_copies_nothing(pushed: Path, target: Path, context: Any) -> None:
    report = sync(dry_run=True).execute(context)

    assert (report["dry_run"], report["counts"]["copied"]) == (True, 2)
    assert not target.exists()


def test_a_count_may_come_from_a_template(pushed: Path, target: Path, context: Any) -> None:
    assert sync(models=["fraud"], versions="2").execute(context)["counts"]["copied"] == 2


def test_a_conflict_fails_the_task_for_good_once_the_others_are_there(
    pushed: Path, target: Path, context: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("other")
    ModelStoreHook("target").push(other, "churn:v1")

    with pytest.raises(AirflowFailException, match=r"1 of 2 failed: churn:v1 failed.*exists with"):
        sync().execute(context)
    assert ModelStoreHook("target").get("fraud").version == "v2"


@pytest.mark.parametrize("gate", [{"allowed_formats": ["onnx"]}, {"scan": "false"}], ids=str)
def test_what_a_gate_refuses_goes_nowhere(pushed: Path, target: Path, context: Any, gate: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="2 of 2 failed"):
        sync(**gate).execute(context)
    assert not list(target.rglob("*.bin"))
    assert ModelStoreHook("target").list_models() == []


def test_a_passing_fault_leaves_the_task_its_retries(pushed: Path, target: Path, context: Any) -> None:
    shutil.rmtree(pushed / "churn" / "v1")

    with pytest.raises(AirflowException, match="churn") as caught:
        sync().execute(context)
    assert not isinstance(caught.value, AirflowFailException)


def test_failures_may_be_left_to_the_next_task(pushed: Path, target: Path, context: Any) -> None:
    report = sync(models=["fraud", "absent"], fail_on_error=False).execute(context)

    assert report["counts"] == {"copied": 1, "skipped": 0, "failed": 1}
    assert report["failed"][0]["source"] == "absent"


def test_a_kill_ends_the_transfer_of_both_sides(pushed: Path, target: Path, context: Any) -> None:
    operator = sync()
    operator.on_kill()

    with pytest.raises(AirflowException, match="told to stop"):
        operator.execute(context)


@pytest.mark.parametrize(("field", "value"), [("models", "fraud"), ("versions", "newest")])
def test_wrong_arguments_are_named(pushed: Path, target: Path, context: Any, field: str, value: str) -> None:
    with pytest.raises(AirflowFailException, match=f"argument '{field}'"):
        sync(**{field: value}).execute(context)


def test_a_project_is_found_by_its_name_though_it_looks_like_a_glob(
    source: Path, target: Path, context: Any, connect: Connect, tmp_path: Path
) -> None:
    with SuperviselyStandIn(tmp_path / "server") as server:
        extra = {"team_id": server.team_id, "workspace_id": server.workspace_id}
        connect("signs", conn_type="supervisely", host=server.url, password=server.token, extra=extra)
        SuperviselyHook("signs").push(source, "Signs [v2]:v1")
        operator = SyncModelsOperator(
            task_id="sync",
            source_conn_id="signs",
            target_conn_id="target",
            models=["Signs [v2]"],
            rename={"Signs [v2]": "signs"},
        )

        assert operator.execute(context)["counts"] == {"copied": 1, "skipped": 0, "failed": 0}
    assert ModelStoreHook("target").get("signs").version == "v1"

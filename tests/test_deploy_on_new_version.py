"""The example that deploys each new version: what its run deploys when several versions have come."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import AssetWatcher
from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger

NAMES = runpy.run_path(str(Path(__file__).parents[1] / "example_dags" / "deploy_on_new_version.py"))
DAG = NAMES["deploy_on_new_version"]()


def event(version: str, minute: int) -> AssetEventDagRunReferenceResult:
    """Return an event as a run gets it."""
    fields: dict[str, Any] = {
        "asset": {"name": NAMES["model"].name, "uri": NAMES["model"].uri, "extra": {}},
        "extra": {"from_trigger": True, "payload": {"name": "fraud", "version": version}},
        "source_task_id": None,
        "source_dag_id": None,
        "source_run_id": None,
        "source_map_index": None,
        "source_aliases": [],
        "timestamp": datetime(2026, 1, 1, 0, minute, tzinfo=UTC),
    }
    return AssetEventDagRunReferenceResult.model_validate(fields)


def test_the_newest_of_several_versions_is_deployed() -> None:
    events = TriggeringAssetEventsAccessor.build([event("v2", 2), event("v3", 3), event("v1", 1)])
    task = DAG.get_task("deploy")
    task.render_template_fields({"triggering_asset_events": events})

    assert task.model == "fraud:v3"


def test_it_is_woken_by_a_watcher_of_that_model() -> None:
    (watcher,) = NAMES["model"].watchers

    assert isinstance(watcher, AssetWatcher)
    assert isinstance(watcher.trigger, ModelVersionEventTrigger)
    assert f"modelsync://{watcher.trigger.registry_conn_id}/{watcher.trigger.model}" == NAMES["model"].uri

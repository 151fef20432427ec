"""Two DAGs that run for each new version of a model; the registry wakes them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import AssetWatcher, dag, task

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger

RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}

watcher = AssetWatcher(name="digits", trigger=ModelVersionEventTrigger("watched", "digits", poll_interval=5))
asset = model_asset("watched", "digits", watchers=[watcher])


@task
def tell(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
    """Return what the events carry."""
    return [event.extra["payload"] for events in triggering_asset_events.values() for event in events]


@dag(schedule=[asset], catchup=False, default_args=RETRIES)
def watched() -> None:
    tell()


@dag(schedule=[asset], catchup=False, default_args=RETRIES)
def watched_too() -> None:
    tell()


watched()
watched_too()

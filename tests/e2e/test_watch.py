"""Watching a model with a real triggerer, which is stopped and started in the middle."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from scripts.local_airflow import LocalAirflow
from tests.e2e.runs import Triggerer
from tests.e2e.test_examples import runs_of
from tests.support.until import until

pytestmark = pytest.mark.e2e

WATCHING = ("watched", "watched_too")


def remembered(airflow: LocalAirflow) -> list[str]:
    """What the asset's state store holds, or what stands in for it."""
    if not TELLS_OF_KILLS:
        return [path.read_text() for path in (airflow.home.parent / "state" / "v1" / "watched").glob("*.json")]
    with sqlite3.connect(f"file:{airflow.home}/airflow.db?mode=ro", uri=True) as database:
        found = database.execute(
            "select value from asset_state_store join asset on asset.id = asset_id where uri like '%/watched/digits'"
        )
        return [value for (value,) in found]


def told(airflow: LocalAirflow, dag_id: str, count: int) -> list[dict[str, Any]]:
    """The versions that so many runs of a DAG were started for, oldest run first."""
    runs = until(lambda: (found := runs_of(airflow, dag_id))[count - 1 :] and found, f"{count} runs of {dag_id}")
    return [event for run in sorted(runs, key=lambda run: run.run_id) for event in run.succeed().left("tell")]


def versions(airflow: LocalAirflow, count: int) -> list[list[str]]:
    """What each of the watching DAGs was told of."""
    return [[event["version"] for event in told(airflow, dag_id, count)] for dag_id in WATCHING]


def test_each_new_version_starts_one_run_even_when_the_triggerer_was_away(
    airflow: LocalAirflow, triggerer: Triggerer, source: Path
) -> None:
    hook = ModelStoreHook("watched")
    first_sight = until(lambda: remembered(airflow), "the first sight")
    triggerer.stop()
    pushed = hook.push(source, "digits:v2")
    triggerer.start()
    assert versions(airflow, 1) == [["v2"], ["v2"]]
    until(lambda: remembered(airflow) != first_sight, "the watch to be kept")
    triggerer.restart()
    hook.push(source, "digits:v3")

    assert versions(airflow, 2) == [["v2", "v3"], ["v2", "v3"]]
    assert told(airflow, "watched", 2)[0] == pushed.to_event()

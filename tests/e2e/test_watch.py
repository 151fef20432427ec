"""Watching a model with a real triggerer, which is stopped and started in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from scripts.local_airflow import LocalAirflow
from tests.e2e.runs import Triggerer, remembered, runs_of
from tests.support.until import until

pytestmark = pytest.mark.e2e

WATCHING = ("watched", "watched_too")


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
    first_sight = until(lambda: remembered(airflow, "watched/digits"), "the first sight")
    triggerer.stop()
    pushed = hook.push(source, "digits:v2")
    triggerer.start()
    assert versions(airflow, 1) == [["v2"], ["v2"]]
    until(lambda: remembered(airflow, "watched/digits") != first_sight, "the watch to be kept")
    triggerer.restart()
    hook.push(source, "digits:v3")

    assert versions(airflow, 2) == [["v2", "v3"], ["v2", "v3"]]
    assert told(airflow, "watched", 2)[0] == pushed.to_event()

"""Whole DAG runs inside this process: Airflow's own task runner and execution API, a real metadata database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.triggers import model as triggers
from tests.support.scripted import Script
from tests.support.versions import activate_assets


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.1)


def run_round_trip(**conf: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Run the DAG; return its state, those of its tasks, and what they left."""
    from tests.integration.dags.round_trip import round_trip

    dag = round_trip()
    activate_assets(dag)
    run = dag.test(run_conf=conf)
    instances = run.get_task_instances()
    left = {one.task_id: one.xcom_pull(task_ids=one.task_id, map_indexes=one.map_index) for one in instances}
    return str(run.state), {instance.task_id: str(instance.state) for instance in instances}, left


def test_a_model_lives_from_push_to_deletion(
    airflow_database: Path, modelstore: Path, source: Path, tmp_path: Path
) -> None:
    state, tasks, left = run_round_trip(
        registry="modelsync_default", source=str(source), target=str(tmp_path / "pulled")
    )

    assert state == "success"
    assert set(tasks.values()) == {"success"}
    assert left["push"]["digest"] == digest_directory(tmp_path / "pulled") == digest_directory(source)
    assert left["wait"]["ref"] == left["pull"]["ref"] == left["push"]["ref"]
    assert left["label"]["labels"] == {"stage": "production"}
    assert [version["ref"] for version in left["list"]] == [left["push"]["ref"]]
    assert ModelStoreHook("modelsync_default").list_models() == []


def test_a_version_that_is_not_ready_is_waited_for_in_the_triggerer(
    airflow_database: Path, script: Script, source: Path, tmp_path: Path
) -> None:
    # The push, the sensor's own look, two of the trigger's; then all others.
    script.write(["converting", "converting", "converting", "unavailable", "ready"])

    state, _, left = run_round_trip(registry="scripted", source=str(source), target=str(tmp_path / "pulled"))

    assert state == "success"
    assert (left["push"]["status"], left["wait"]["status"]) == ("converting", "ready")
    assert digest_directory(tmp_path / "pulled") == digest_directory(source)

"""Watching a model with a real triggerer, which is stopped and started in the middle."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from scripts.local_airflow import AIRFLOW, LocalAirflow, component, environment, free_port
from tests.conftest import Connect

pytestmark = pytest.mark.e2e

WATCHING = ("watched", "watched_too")
TRIGGERER = ("triggerer", "--skip-serve-logs")


@contextmanager
def airflow_without_triggerer(home: Path, dags: Path, store: Path, database: Path) -> Iterator[LocalAirflow]:
    """Run a private Airflow whose triggerer is the test's own business."""
    port = free_port()
    connection = {"modelsync_default": {"conn_type": "modelstore", "host": store.as_uri()}}
    env = environment(home, dags, connection) | {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
    }
    shutil.copyfile(database, home / "airflow.db")
    api = ("api-server", "--apps", "execution,core", "--workers", "1", "--host", "127.0.0.1", "--port", str(port))
    with ExitStack() as stack:
        for command in (api, ("scheduler", "--skip-serve-logs")):
            stack.enter_context(component(command, env, home / f"{command[0]}.log"))
        subprocess.run((*AIRFLOW, "dags", "reserialize"), env=env, check=True, capture_output=True)
        yield LocalAirflow(port, env)


def until(seconds: float, what: str, condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds and return what it gives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(httpx.TimeoutException):  # a busy machine
            if found := condition():
                return found
        time.sleep(0.25)
    raise TimeoutError(what)


def remembered(airflow: LocalAirflow) -> list[str]:
    """What the asset's state store holds."""
    with sqlite3.connect(f"file:{airflow.home}/airflow.db?mode=ro", uri=True) as database:
        return [value for (value,) in database.execute("select value from asset_state_store")]


def finished_runs(airflow: LocalAirflow, dag_id: str) -> list[str]:
    """The runs of a DAG that have ended, oldest first; none may have failed."""
    runs = airflow.get(f"/dags/{dag_id}/dagRuns", order_by="run_after")["dag_runs"]
    for run in runs:
        assert run["state"] in ("queued", "running", "success"), airflow.log(dag_id, run["dag_run_id"], "tell")
    return [run["dag_run_id"] for run in runs if run["state"] == "success"]


def told(airflow: LocalAirflow, dag_id: str, count: int) -> list[str]:
    """The versions that so many runs of a DAG were started for."""
    runs = until(
        120, f"{count} runs of {dag_id}", lambda: (found := finished_runs(airflow, dag_id))[count - 1 :] and found
    )
    return [event["version"] for run in runs for event in airflow.xcom(dag_id, run, "tell")]


def test_each_new_version_starts_one_run_even_when_the_triggerer_was_away(
    tmp_path: Path, migrated_database: Path, connect: Connect, source: Path
) -> None:
    home, dags, store = tmp_path / "home", tmp_path / "dags", tmp_path / "store"
    home.mkdir()
    dags.mkdir()
    shutil.copy(Path(__file__).parent / "dags" / "watched.py", dags)
    connect("from_outside", conn_type="modelstore", host=store.as_uri())
    hook = ModelStoreHook("from_outside")
    hook.push(source, "digits:v1")

    with airflow_without_triggerer(home, dags, store, migrated_database) as airflow:
        with component(TRIGGERER, airflow.env, home / "triggerer.log"):
            airflow.wait_until_healthy(90)
            first_sight = until(60, "the first sight", lambda: remembered(airflow))
        pushed = hook.push(source, "digits:v2")
        with component(TRIGGERER, airflow.env, home / "triggerer.log"):
            assert [told(airflow, dag_id, 1) for dag_id in WATCHING] == [["v2"], ["v2"]]
            until(30, "the watch to be kept", lambda: remembered(airflow) != first_sight)
        with component(TRIGGERER, airflow.env, home / "triggerer.log"):
            hook.push(source, "digits:v3")
            assert [told(airflow, dag_id, 2) for dag_id in WATCHING] == [["v2", "v3"], ["v2", "v3"]]

        assert [len(finished_runs(airflow, dag_id)) for dag_id in WATCHING] == [2, 2]
        (event,) = airflow.xcom("watched", finished_runs(airflow, "watched")[0], "tell")
        assert event == pushed.to_event()

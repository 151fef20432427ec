"""Runs of DAGs in a whole Airflow, and that Airflow's triggerer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS
from scripts.local_airflow import TERMINAL, LocalAirflow
from tests.support.until import until


@dataclass(frozen=True)
class Run:
    """A run of a DAG.

    :param run_id: its id.
    """

    airflow: LocalAirflow
    dag_id: str
    run_id: str

    @classmethod
    def start(cls, airflow: LocalAirflow, dag_id: str, **conf: Any) -> Run:
        """Start a run by hand."""
        return cls(airflow, dag_id, airflow.trigger(dag_id, conf))

    @property
    def states(self) -> dict[str, str | None]:
        """The states of its tasks, where none is mapped."""
        return {name: task["state"] for name, task in self.airflow.tasks(self.dag_id, self.run_id).items()}

    def end(self) -> str:
        """Wait for its end and return its state."""
        return self.airflow.wait(self.dag_id, self.run_id)

    def succeed(self) -> Run:
        """Wait for its success; show the logs of what has failed."""
        if self.end() != "success":
            failed = {task["task_id"] for task in self.instances() if task["state"] == "failed"}
            pytest.fail("\n".join(self.log(name) for name in sorted(failed)))
        return self

    def instances(self) -> list[dict[str, Any]]:
        """Return its task instances, all of each mapped task."""
        return self.airflow.instances(self.dag_id, self.run_id)

    def until(self, task: str, state: str) -> None:
        """Wait until a task is in a state."""
        self.airflow.wait_for_task(self.dag_id, self.run_id, task, state)

    def left(self, task: str, *, map_index: int = -1) -> Any:
        """Return what a task has left."""
        return self.airflow.xcom(self.dag_id, self.run_id, task, map_index=map_index)

    def links(self, task: str) -> dict[str, str]:
        """Return a task's links as the grid shows them, once all are there: Airflow keeps them after its end."""

        def whole() -> dict[str, str] | None:
            found: dict[str, str] = self.airflow.get(f"{self._path(task)}/links")["extra_links"]
            return found if found and all(found.values()) else None

        return until(whole, f"the links of {task}")

    def log(self, task: str) -> str:
        """Return a task's log, all tries."""
        return self.airflow.log(self.dag_id, self.run_id, task)

    def until_logged(self, task: str, text: str) -> None:
        """Wait until a task's log says something; a task that is over may not have written all of it yet."""
        until(lambda: text in self.log(task), f"{text!r} in the log of {task}")

    def clear(self, task: str) -> Run:
        """Have a finished task run again, as a person does, and wait for its success."""
        before = self.airflow.tasks(self.dag_id, self.run_id)[task]["try_number"]
        self.airflow.clear(self.dag_id, self.run_id, task)
        self.succeed()
        assert self.airflow.tasks(self.dag_id, self.run_id)[task]["try_number"] > before
        return self

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end."""
        return self.airflow.get(f"/dags/{self.dag_id}/dagRuns/{self.run_id}")["state"] in TERMINAL

    def mark_failed(self, task: str) -> None:
        """End a task, as a person does."""
        self.mark(task, "failed")

    def mark(self, task: str, state: str, *, map_index: int = -1) -> None:
        """Say how a task has ended, as a person does."""
        path = self._path(task) if map_index < 0 else f"{self._path(task)}/{map_index}"
        self.airflow.patch(path, {"new_state": state})

    def question(self, task: str) -> dict[str, Any]:
        """Return what a task asks a person."""
        found: dict[str, Any] = self.airflow.get(f"{self._path(task)}/-1/hitlDetails")
        return found

    def answer(self, task: str, option: str) -> None:
        """Choose an option, as a person does."""
        body = {"chosen_options": [option], "params_input": {}}
        self.airflow.patch(f"{self._path(task)}/-1/hitlDetails", body)

    def _path(self, task: str) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{task}"


def runs_of(airflow: LocalAirflow, dag_id: str) -> list[Run]:
    """The runs of a DAG, which somebody else has started."""
    return [Run(airflow, dag_id, run["dag_run_id"]) for run in airflow.get(f"/dags/{dag_id}/dagRuns")["dag_runs"]]


def remembered(airflow: LocalAirflow, model: str) -> list[str]:
    """What those who watch a model have kept in the asset's state store, or in what stands in for it.

    :param model: connection and name, as ``connection/name``.
    """
    if not TELLS_OF_KILLS:
        return [path.read_text() for path in (airflow.home.parent / "state" / "v1" / "watched").glob("*.json")]
    with closing(sqlite3.connect(f"file:{airflow.home}/airflow.db?mode=ro", uri=True, timeout=60)) as database:
        query = "select value from asset_state_store join asset on asset.id = asset_id where uri like ?"
        return [value for (value,) in database.execute(query, (f"%://{model}",))]


class Triggerer:
    """The triggerer of a whole Airflow, which can be away for a while."""

    def __init__(self, airflow: LocalAirflow) -> None:
        self._airflow = airflow
        self._stack = ExitStack()

    def start(self) -> None:
        """Have it run."""
        self._stack.enter_context(self._airflow.running("triggerer"))

    def stop(self) -> None:
        """Have it end, as a service manager does."""
        self._stack.close()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

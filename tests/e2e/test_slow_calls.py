"""What was started is taken back, or left alone, whatever ends the wait for it and however long each call takes.

Airflow cancels a trigger again about every second, until its task is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.local_airflow import LocalAirflow
from tests.e2e.dags.slow_calls import CASES, FIRST_IMAGE, SECONDS, name_of, session_of
from tests.e2e.runs import Run, Triggerer
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay
from tests.standins.pieces import Download, PiecesStandIn, model
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import Inference, SuperviselyApp
from tests.support.images import png
from tests.support.until import until

pytestmark = pytest.mark.slow_calls

PATIENCE = 900.0  # seconds for sixty tasks on a busy machine
STATES = {"failed": "failed", "success": "success", "clear": "success", "expire": "failed", "restart": "success"}
TAKEN_BACK = ("failed", "success", "clear", "expire")


class World(ABC):
    """What one task of the DAG starts, case by case."""

    task: str

    @abstractmethod
    def looks(self, case: int) -> int:
        """How often somebody has looked at what a case has started."""

    @abstractmethod
    def ends(self, case: int) -> int:
        """How often it was taken back."""

    @abstractmethod
    def starts(self, case: int) -> int:
        """How often it was started."""

    @abstractmethod
    def release(self, case: int) -> None:
        """Let it come to its own end."""


class Deployments(World):
    task = "deploy"

    def __init__(self, server: BentoCloudStandIn) -> None:
        self.server = server
        server.seed("slow", "v1")
        server.seed_bento("slow", "b1", models=["slow:v1"])
        for _, end, seconds in CASES:
            server.script_deployment(name_of(end, seconds), ["deploying"])
            server.fault("*", f"/deployments/{name_of(end, seconds)}(/|$)", Delay(seconds), times=None)

    def _path(self, case: int) -> str:
        return f"/deployments/{name_of(*CASES[case][1:])}"

    def looks(self, case: int) -> int:
        return self.server.count("GET", f"{self._path(case)}$")

    def ends(self, case: int) -> int:
        return self.server.count("POST", f"{self._path(case)}/terminate$")

    def starts(self, case: int) -> int:
        name = name_of(*CASES[case][1:])
        bodies = [request.body for request in self.server.find("POST", "/deployments$")]
        made = sum(bool(body) and body.get("name") == name for body in bodies)
        return made + self.server.count("PUT", f"{self._path(case)}(/|$)")

    def release(self, case: int) -> None:
        self.server.deployments[name_of(*CASES[case][1:])].status = "running"


class Downloads(World):
    task = "fetch"

    def __init__(self, server: PiecesStandIn) -> None:
        self.server = server
        records = [model(name_of(end, seconds)) for _, end, seconds in CASES]
        self.ids = [str(record["id"]) for record in records]
        for record, (_, _, seconds) in zip(records, CASES, strict=True):
            server.models[record["id"]] = record
            server.downloads[record["id"]] = Download(outcome=None)
            server.fault("*", f"/model/{record['id']}", Delay(seconds), times=None)

    def looks(self, case: int) -> int:
        return self.server.count("GET", f"/model/{self.ids[case]}$")

    def ends(self, case: int) -> int:
        return self.server.count("POST", f"/model/{self.ids[case]}/download/cancel$")

    def starts(self, case: int) -> int:
        return self.server.count("POST", f"/model/{self.ids[case]}/download$")

    def release(self, case: int) -> None:
        self.server.finish(self.ids[case], "COMPLETED")


class Inferences(World):
    task = "predict"

    def __init__(self, server: SuperviselyStandIn, app: SuperviselyApp) -> None:
        self.app = app
        app.pictures |= {FIRST_IMAGE + index: png(80, 8, (0, 0, index, 3)) for index, _, _ in CASES}
        for seconds in SECONDS:
            session = server.seed_task(name=session_of(seconds))
            server.fault("*", f"/net/{session.session_token}", Delay(seconds), times=None)

    def _of(self, case: int) -> list[Inference]:
        wanted = [FIRST_IMAGE + case]
        return [one for one in list(self.app.inferences.values()) if one.state.get("images_ids") == wanted]

    def looks(self, case: int) -> int:
        uuids = {one.uuid for one in self._of(case)}
        requests = self.app.find("POST", "get_inference_progress$")
        bodies = [request.body for request in requests if request.body]  # one may be on its way
        return sum(body["state"]["inference_request_uuid"] in uuids for body in bodies)

    def ends(self, case: int) -> int:
        return sum(one.stopped for one in self._of(case))

    def starts(self, case: int) -> int:
        return len(self._of(case))

    def release(self, case: int) -> None:
        self.app.gate.set()


@contextmanager
def waiting_app(app: SuperviselyApp) -> Iterator[SuperviselyApp]:
    """Have an app serve a model, and predict nothing so far; leave it as it was."""
    loaded = app.loaded
    app.loaded = SuperviselyApp(model="blob-tiny").loaded
    app.gate.clear()
    yield app
    app.gate.set()
    app.loaded = loaded


def test_whatever_ends_a_wait_and_however_slow_calls_are(
    airflow: LocalAirflow,
    triggerer: Triggerer,
    bentocloud: BentoCloudStandIn,
    pieces: PiecesStandIn,
    supervisely: SuperviselyStandIn,
    detector: SuperviselyApp,
) -> None:
    with waiting_app(detector):
        worlds = [Deployments(bentocloud), Downloads(pieces), Inferences(supervisely, detector)]
        everything = [(world, case) for world in worlds for case in range(len(CASES))]
        lasting = [(world, case) for world, case in everything if CASES[case][1] != "expire"]
        run = Run.start(airflow, "slow_calls")
        until(lambda: not unsettled(run), "all to wait", PATIENCE)
        states = states_of(run)
        assert [key for key, state in states.items() if state == "failed" and CASES[key[1]][1] != "expire"] == []

        triggerer.restart()
        seen = {(world.task, case): world.looks(case) for world, case in lasting}
        until(
            lambda: all(world.looks(case) > seen[world.task, case] for world, case in lasting),
            "looks of the new triggerer",
            PATIENCE,
        )
        assert [(world.task, CASES[case]) for world, case in lasting if world.ends(case)] == []

        for world, case in lasting:
            if (state := CASES[case][1]) in ("failed", "success"):
                run.mark(world.task, state, map_index=case)
        # At once, and last: with SQLite behind it the API server waits for itself when a person's request meets a
        # task's start, and answers nobody meanwhile.
        airflow.clear(
            "slow_calls", run.run_id, *[(world.task, case) for world, case in lasting if CASES[case][1] == "clear"]
        )
        for world, case in everything:
            if CASES[case][1] in TAKEN_BACK:
                until(lambda world=world, case=case: world.ends(case), f"an end: {world.task}, {CASES[case]}", PATIENCE)
            if CASES[case][1] == "clear":
                until(lambda world=world, case=case: world.starts(case) > 1, f"{world.task}, {CASES[case]}", PATIENCE)
        for world, case in everything:
            if CASES[case][1] in ("clear", "restart"):
                world.release(case)

        until(lambda: run.is_over, "the end of all", PATIENCE)
        states = states_of(run)
        expected = {(world.task, case): STATES[CASES[case][1]] for world, case in everything}
        assert {key: state for key, state in states.items() if state != expected[key]} == {}
        assert [
            (world.task, case) for world, case in everything if CASES[case][1] == "restart" and world.ends(case)
        ] == []
        logs = "".join(path.read_text() for path in (airflow.home / "logs").rglob("*slow_calls*/**/*.log*"))
        assert "could not be taken back" not in logs
        left = {
            Path(airflow.env["TMPDIR"]) / f"{name_of(end, seconds)}.jsonl": STATES[end] for _, end, seconds in CASES
        }
        made = {path for path, state in left.items() if state == "success" and "-success-" not in path.name}
        assert {path for path in left if path.exists()} == made


def states_of(run: Run) -> dict[tuple[str, int], str | None]:
    """The states of its mapped task instances."""
    return {(one["task_id"], one["map_index"]): one["state"] for one in run.instances() if one["map_index"] >= 0}


def unsettled(run: Run) -> Counter[Any]:
    """Task instances that neither wait nor are over, by state."""
    states = states_of(run)
    moving = Counter(str(state) for state in states.values() if state not in ("deferred", "failed"))
    return moving or Counter(range(len(states), 3 * len(CASES)))

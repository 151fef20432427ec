"""The trigger behind deferred deployments: one event, and what a killed task has taken back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_modelsync.compat import AirflowNotFoundException, BaseHook
from airflow_provider_modelsync.core.errors import DeploymentFailed
from airflow_provider_modelsync.core.registries.bentocloud import deployments as bentocloud_deployments
from airflow_provider_modelsync.triggers import base, polling
from airflow_provider_modelsync.triggers import deployment as triggers
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.deployment import DeploymentTrigger
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay, Respond
from tests.support.cloud import CANARY, CONNECTION, bodies, changes, newest, running_cloud
from tests.support.until import until_async
from tests.support.versions import deserialize, refuse_to_block, serialize

KILL_LIMIT = 4.0


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)
    monkeypatch.setattr(bentocloud_deployments, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    """A server where ``demo`` runs ``svc:1``."""
    with running_cloud(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        server.seed_deployment("demo", "svc:1", envs=[{"name": "A", "value": CANARY}])
        yield server


@pytest.fixture
def updated(server: BentoCloudStandIn) -> dict[str, Any]:
    """What a task started that has updated ``demo`` to ``svc:2``: an endless roll-out."""
    old = newest(server)
    server.script_deployment("demo", ["deploying"])
    server._roll_out(server.deployments["demo"], {"bento": "svc:2"})
    return {
        "deployment": "demo",
        "model": "fraud:v1",
        "undo": "restore",
        "replaced": old,
        "revision": newest(server),
    }


@pytest.fixture
def created(updated: dict[str, Any]) -> dict[str, Any]:
    """What a task started that has created ``demo``."""
    return {**updated, "undo": "terminate", "replaced": None}


def trigger(**arguments: Any) -> DeploymentTrigger:
    """Return a trigger that looks often."""
    defaults = {"registry_conn_id": CONNECTION, "deployment": "demo", "deadline": time.time() + 60}
    return DeploymentTrigger(**{**defaults, "poll_interval": 0.01, **arguments})


async def events_of(waiting: DeploymentTrigger) -> list[dict[str, Any]]:
    """Run a trigger to its end and return all that it fired."""
    return [event.payload async for event in waiting.run()]


@pytest.mark.parametrize("is_remembered", [True, False])
async def test_a_roll_out_that_an_earlier_try_takes_back_ends_the_wait_of_whoever_joined_it(
    server: BentoCloudStandIn, updated: dict[str, Any], is_remembered: bool
) -> None:
    """A cleared task joins what its last try has begun, while that try's trigger is still ending it."""
    started = updated if is_remembered else None
    waiting = asyncio.create_task(events_of(trigger(revision=updated["revision"], started=started, joined=True)))
    looks = server.count("GET", "/demo")
    await until_async(lambda: server.count("GET", "/demo") > looks, "a look")
    await trigger(started=updated).on_kill()

    (event,) = await waiting
    assert (event["status"], event["permanent"]) == ("failed", True)
    assert "taken back" in event["message"]


async def test_fires_once_when_its_revision_is_ready(server: BentoCloudStandIn) -> None:
    server.script_deployment("demo", ["deploying", "running"], stale=3)
    server._roll_out(server.deployments["demo"], {"bento": "svc:2"})

    (event,) = await events_of(trigger(revision=newest(server)))

    assert (event["status"], outcome_of(event), event["revision"]) == ("success", "demo", newest(server))
    assert server.count("GET", "/demo$") == 5


async def test_a_running_revision_that_is_not_awaited_never_ends_the_wait(server: BentoCloudStandIn) -> None:
    waiting = asyncio.create_task(events_of(trigger(revision="not-yet-there")))
    await until_async(lambda: server.count("GET", "/demo$") >= 3, "two answers to be read")

    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_fires_once_when_the_deployment_is_gone(server: BentoCloudStandIn) -> None:
    server.deployments["demo"].scripted.extend(["terminating", "terminating", "terminated"])

    (event,) = await events_of(trigger(goal="gone"))

    assert (event["status"], event["ref"]) == ("success", "demo")


async def test_a_failure_ends_the_wait_with_its_reason(server: BentoCloudStandIn) -> None:
    server.deployments["demo"].status = "image-build-failed"
    server.explain("demo", "image-build-failed", "no such package")

    (event,) = await events_of(trigger())

    assert event["status"] == "failed"
    with pytest.raises(DeploymentFailed, match="no such package"):
        outcome_of(event)
    assert changes(server) == []


async def test_passing_faults_do_not_end_the_wait(server: BentoCloudStandIn) -> None:
    server.deployments["demo"].scripted.extend(["deploying", "deploying", "running"])
    server.fault("GET", "/demo$", Respond(501), nth=2)

    (event,) = await events_of(trigger())

    assert event["status"] == "success"


async def test_the_first_look_comes_after_a_whole_interval(server: BentoCloudStandIn) -> None:
    waiting = asyncio.create_task(events_of(trigger(poll_interval=1.0)))
    await asyncio.sleep(0.1)

    assert server.requests == []
    assert (await waiting)[0]["status"] == "success"


def test_no_interval_is_shorter_than_the_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    assert trigger(poll_interval=0).poll_interval >= 5.0
    assert trigger(poll_interval=60).poll_interval == 60


class TestAtTheDeadline:
    @pytest.mark.row("P10", of=("remote", "tasks"))
    async def test_what_was_created_is_terminated(self, server: BentoCloudStandIn, created: dict[str, Any]) -> None:
        (event,) = await events_of(trigger(deadline=0.0, started=created))

        assert event["status"] == "timeout"
        assert "demo was not ready" in event["message"]
        assert "being terminated" in event["message"]
        assert changes(server) == [("POST", "/demo/terminate")]

    async def test_what_was_replaced_is_put_back(self, server: BentoCloudStandIn, updated: dict[str, Any]) -> None:
        for _ in range(2):  # a trigger may run twice
            await events_of(trigger(deadline=0.0, revision=updated["revision"], started=updated))

        assert changes(server) == [("PUT", "/demo")]
        assert bodies(server)[-1].body["bento"] == "svc:1"

    async def test_an_undeploy_goes_on_ending(self, server: BentoCloudStandIn) -> None:
        server.deployments["demo"].status = "terminating"

        (event,) = await events_of(trigger(deadline=0.0, goal="gone"))

        assert event["status"] == "timeout"
        assert changes(server) == []


class TestOnKill:
    @pytest.mark.row("P9", of="remote")
    async def test_what_was_created_is_terminated(self, server: BentoCloudStandIn, created: dict[str, Any]) -> None:
        killed_at = time.monotonic()
        for _ in range(2):
            await trigger(started=created).on_kill()

        assert time.monotonic() - killed_at < KILL_LIMIT
        assert changes(server) == [("POST", "/demo/terminate")]

    @pytest.mark.row("P9", of="remote")
    async def test_what_was_replaced_is_put_back_as_it_was(
        self, server: BentoCloudStandIn, updated: dict[str, Any]
    ) -> None:
        await trigger(started=updated).on_kill()

        assert changes(server) == [("PUT", "/demo")]
        assert bodies(server)[-1].body == {"bento": "svc:1", "envs": [{"name": "A", "value": CANARY}]}

    async def test_what_did_not_work_before_is_left(self, server: BentoCloudStandIn, updated: dict[str, Any]) -> None:
        await trigger(started={**updated, "undo": "leave"}).on_kill()

        assert changes(server) == []

    async def test_what_others_have_rolled_out_since_is_left(
        self, server: BentoCloudStandIn, created: dict[str, Any], updated: dict[str, Any]
    ) -> None:
        server._roll_out(server.deployments["demo"], {"bento": "svc:1"})

        for started in (created, updated):
            await trigger(started=started).on_kill()

        assert changes(server) == []

    async def test_a_task_that_started_nothing_touches_nothing(self, server: BentoCloudStandIn) -> None:
        await trigger().on_kill()

        assert server.requests == []

    async def test_other_deployments_are_left_alone(self, server: BentoCloudStandIn, created: dict[str, Any]) -> None:
        server.seed_deployment("other", "svc:1")
        await trigger(started=created).on_kill()

        assert server.deployments["other"].status == "running"
        assert {path for _, path in changes(server)} == {"/demo/terminate"}

    async def test_cancelling_again_and_again_stops_nothing(
        self, server: BentoCloudStandIn, created: dict[str, Any]
    ) -> None:
        """Airflow cancels the trigger at each look at the task's state; each call may take longer than that."""
        server.fault("*", "/demo", Delay(0.3), times=None)
        undoing = asyncio.create_task(trigger(started=created).on_kill())
        while not undoing.done():
            await asyncio.sleep(0.02)
            undoing.cancel()

        assert {path for _, path in changes(server)} == {"/demo/terminate"}
        assert undoing.cancelled()

    async def test_a_kill_while_something_is_taken_back_joins_that(
        self, server: BentoCloudStandIn, created: dict[str, Any]
    ) -> None:
        """As one that comes at the deadline."""
        server.fault("*", "/demo", Delay(0.3), times=None)
        late = trigger(started=created)
        await asyncio.gather(late.undo(), late.on_kill(), late.on_kill())

        assert changes(server) == [("POST", "/demo/terminate")]

    async def test_what_airflow_s_own_limit_cuts_off_goes_on(
        self, server: BentoCloudStandIn, created: dict[str, Any]
    ) -> None:
        server.fault("*", "/demo", Delay(0.3), times=None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(trigger(started=created).on_kill(), timeout=0.05)

        await until_async(lambda: {path for _, path in changes(server)} == {"/demo/terminate"}, "the end")

    async def test_a_connection_that_cannot_be_read_for_now_is_read_again(
        self, server: BentoCloudStandIn, created: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "_LOOK_UP_PAUSE", 0.01)
        known, asked = polling.aget_registry_hook, []

        async def now_and_then(conn_id: str) -> Any:
            asked.append(conn_id)
            if len(asked) < 3:
                raise AirflowNotFoundException("a secrets backend in trouble")
            return await known(conn_id)

        monkeypatch.setattr(polling, "aget_registry_hook", now_and_then)
        await trigger(started=created).on_kill()

        assert {path for _, path in changes(server)} == {"/demo/terminate"}

    async def test_what_could_not_be_taken_back_is_told(
        self,
        server: BentoCloudStandIn,
        created: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(base, "UNDO_SECONDS", 0.1)
        server.fault("*", "/demo", Delay(1.0), times=None)

        assert await trigger(started=created).undo() == (
            "what was started on demo could not be taken back: TimeoutError"
        )

    async def test_a_server_that_hangs_is_not_waited_for_long(
        self, server: BentoCloudStandIn, created: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "UNDO_SECONDS", 0.2)
        server.fault("*", "/demo", Delay(1.5), times=None)
        killed_at = time.monotonic()

        await trigger(started=created).on_kill()

        assert time.monotonic() - killed_at < KILL_LIMIT

    @pytest.mark.parametrize("started", [{"deployment": "demo"}, {"undo": "odd"}], ids=str)
    async def test_nonsense_is_survived(self, server: BentoCloudStandIn, started: dict[str, Any]) -> None:
        await trigger(started=started).on_kill()

        assert changes(server) == []


class TestWhereAirflowDoesNotTellOfKills:
    """It cancels a trigger whose task was ended, and one that it stops itself, in the same way."""

    @pytest.fixture
    def states(self, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
        """What Airflow's supervisor says that the task is in; empty: it does not answer."""
        states: list[str | None] = []

        async def state_of(task: Any) -> str | None:
            if not states:
                raise EOFError("the supervisor is gone")
            return states[0]

        monkeypatch.setattr(base, "TELLS_OF_KILLS", False)
        monkeypatch.setattr(base, "state_of", state_of)
        return states

    async def cancelled(self, server: BentoCloudStandIn, started: dict[str, Any]) -> None:
        """Run a trigger, cancel it in its wait as often as Airflow does, and wait for its end."""
        waiting = trigger(started=started, revision=started["revision"])
        waiting.task_instance = SimpleNamespace(dag_id="dag", task_id="deploy", run_id="run", map_index=3)
        task, looks = asyncio.create_task(events_of(waiting)), server.count("GET", "/demo")
        await until_async(lambda: server.count("GET", "/demo") > looks, "a look")
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.02)
        assert task.cancelled()

    @pytest.mark.parametrize("state", ["failed", "success", None, "scheduled", "removed"])
    async def test_what_a_task_has_started_that_a_user_ended_is_taken_back(
        self, server: BentoCloudStandIn, created: dict[str, Any], states: list[str | None], state: str | None
    ) -> None:
        states.append(state)
        await self.cancelled(server, created)

        assert changes(server) == [("POST", "/demo/terminate")]

    async def test_a_task_that_waits_on_keeps_it(
        self, server: BentoCloudStandIn, created: dict[str, Any], states: list[str | None]
    ) -> None:
        """Its triggerer stops, another one takes over, or the cleared task has deferred again."""
        states.append("deferred")
        await self.cancelled(server, created)

        assert changes(server) == []

    async def test_a_task_that_goes_on_with_what_another_triggerer_has_found_keeps_it(
        self, server: BentoCloudStandIn, created: dict[str, Any], states: list[str | None]
    ) -> None:
        states.append("running")
        waiting = trigger(started=created, revision=created["revision"], poll_interval=60)
        waiting.task_instance = SimpleNamespace(dag_id="dag", task_id="deploy", run_id="run", map_index=3)
        server.deployments["demo"].scripted = deque(["running"])
        task = asyncio.create_task(events_of(waiting))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert changes(server) == []

    async def test_a_triggerer_that_has_nobody_left_to_ask_leaves_it(
        self, server: BentoCloudStandIn, created: dict[str, Any], states: list[str | None]
    ) -> None:
        await self.cancelled(server, created)

        assert changes(server) == []

    async def test_a_task_that_has_started_nothing_is_not_asked_about(
        self, server: BentoCloudStandIn, states: list[str | None]
    ) -> None:
        states.append("failed")
        task = asyncio.create_task(events_of(trigger(revision="not-yet-there")))
        await until_async(lambda: server.count("GET", "/demo"), "a look")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert changes(server) == []


@pytest.mark.row("P9", "P7", of=("remote", "tasks"))
async def test_a_triggerer_that_stops_changes_nothing(server: BentoCloudStandIn, created: dict[str, Any]) -> None:
    before = trigger(started=created)
    abandoned = asyncio.create_task(events_of(before))
    await asyncio.sleep(0.1)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await before.cleanup()
    server.deployments["demo"].scripted = deque(["running"])  # a look that is under way cannot undo this

    (event,) = await events_of(DeploymentTrigger(**before.serialize()[1]))

    assert event["status"] == "success"
    assert changes(server) == []


def test_a_stored_trigger_is_rebuilt_equal(created: dict[str, Any]) -> None:
    before = trigger(revision="0123", started=created, goal="ready", poll_interval=7.5)
    path, arguments = before.serialize()

    again = resolve_name(path)(**deserialize(serialize(arguments)))

    assert type(again) is DeploymentTrigger
    assert again.serialize() == (path, arguments)
    assert set(arguments) == {name for name in DeploymentTrigger.__init__.__annotations__ if name != "return"}


def test_the_stored_trigger_holds_no_secret(server: BentoCloudStandIn, updated: dict[str, Any]) -> None:
    stored = json.dumps(trigger(started=updated).serialize())

    assert server.token not in stored
    assert CANARY not in stored


async def test_events_and_logs_are_plain_and_hold_no_secret(
    server: BentoCloudStandIn, updated: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    events = []
    server.deployments["demo"].scripted.clear()
    for status in ("running", "failed", "deploying"):
        server.deployments["demo"].status = status
        events += await events_of(trigger(deadline=0.0, started=updated))

    assert [event["status"] for event in events] == ["success", "failed", "timeout"]
    assert json.loads(json.dumps(events)) == events
    assert CANARY not in json.dumps(events) + caplog.text


async def test_the_connection_is_looked_up_without_blocking(
    server: BentoCloudStandIn, created: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((Connection, "get"), (BaseHook, "get_connection")):
        refuse_to_block(monkeypatch, owner, name)

    await trigger(started=created).on_kill()

    assert changes(server) == [("POST", "/demo/terminate")]

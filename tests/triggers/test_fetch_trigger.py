"""The trigger behind deferred downloads: one event, no request that changes anything, and what a kill takes back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_modelsync.compat import BaseHook
from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable, VersionFailed
from airflow_provider_modelsync.triggers import base
from airflow_provider_modelsync.triggers import fetch as triggers
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.fetch import FetchTrigger
from tests.conftest import Connect
from tests.standins.http_server import Delay
from tests.standins.pieces import PiecesStandIn, Progress
from tests.support.pieces import CANCEL, CONNECTION, ENDLESS, OTHER, PHI, quickly, running_host, verbs
from tests.support.versions import deserialize, refuse_to_block, serialize

KILL_LIMIT = 4.0


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)
    quickly(monkeypatch)


@pytest.fixture
def server(connect: Connect) -> Iterator[PiecesStandIn]:
    """A host that downloads a model for ever."""
    with running_host(connect) as server:
        server.download = ENDLESS
        server.begin(PHI["id"])
        yield server


def trigger(**arguments: Any) -> FetchTrigger:
    """Return a trigger that looks often."""
    defaults = {"registry_conn_id": CONNECTION, "ref": PHI["id"], "name": "phi-2", "deadline": time.time() + 60}
    return FetchTrigger(**{**defaults, "poll_interval": 0.05, **arguments})


async def events_of(waiting: FetchTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in waiting.run()]


@pytest.mark.parametrize("upgrade", [101, 426])
async def test_fires_once_when_the_model_is_there(server: PiecesStandIn, upgrade: int) -> None:
    server.progress = [Progress(upgrade=upgrade)]
    waiting = asyncio.create_task(events_of(trigger(ours=True)))
    await asyncio.to_thread(server.until, lambda: server.find(path="/progress$"))
    server.finish(PHI["id"], "COMPLETED")

    (event,) = await waiting
    assert (event["status"], outcome_of(event)) == ("success", PHI["id"])
    assert verbs(server) == []


@pytest.mark.parametrize("outcome", ["FAILED", "CANCELED"])
async def test_a_failure_ends_the_wait_for_good(server: PiecesStandIn, outcome: Any) -> None:
    waiting = asyncio.create_task(events_of(trigger()))
    await asyncio.to_thread(server.until, lambda: server.sockets)
    server.finish(PHI["id"], outcome)

    (event,) = await waiting
    with pytest.raises(VersionFailed, match=outcome):
        outcome_of(event)


async def test_a_lost_download_ends_the_wait_and_may_be_tried_again(server: PiecesStandIn) -> None:
    (event,) = await events_of(trigger(ref=OTHER["id"], name="other"))

    with pytest.raises(RegistryUnavailable, match="downloads other no more"):
        outcome_of(event)


async def test_a_removed_model_ends_the_wait(server: PiecesStandIn) -> None:
    server.remove(PHI["id"])
    (event,) = await events_of(trigger())

    with pytest.raises(ModelNotFound):
        outcome_of(event)


@pytest.mark.parametrize(("ours", "done"), [(True, [CANCEL]), (False, [])])
async def test_at_the_deadline_only_ones_own_download_is_cancelled(
    server: PiecesStandIn, ours: bool, done: list[str]
) -> None:
    (event,) = await events_of(trigger(ours=ours, deadline=time.time() + 0.2))

    assert "not downloaded" in event["message"]
    assert verbs(server) == done


async def test_nothing_is_fired_before_a_whole_interval(server: PiecesStandIn) -> None:
    server.finish(PHI["id"], "COMPLETED")
    waiting = asyncio.create_task(events_of(trigger(poll_interval=0.5)))
    await asyncio.sleep(0.1)

    assert server.requests == []
    assert (await waiting)[0]["status"] == "success"


def test_no_interval_is_shorter_than_the_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    assert trigger(poll_interval=0).poll_interval >= 5.0


class TestOnKill:
    @pytest.mark.row("P9", of="pieces")
    async def test_ones_own_download_is_cancelled_once(self, server: PiecesStandIn) -> None:
        server.begin(OTHER["id"])
        for _ in range(2):
            await trigger(ours=True).on_kill()

        assert verbs(server) == [CANCEL]
        assert not server.models[PHI["id"]]["downloading"]
        assert server.models[OTHER["id"]]["downloading"]

    async def test_the_download_of_another_goes_on(self, server: PiecesStandIn) -> None:
        await trigger().on_kill()

        assert server.requests == []

    async def test_what_is_there_already_stays(self, server: PiecesStandIn) -> None:
        server.finish(PHI["id"], "COMPLETED")
        await trigger(ours=True).on_kill()

        assert verbs(server) == []

    async def test_cancelling_again_and_again_stops_nothing(self, server: PiecesStandIn) -> None:
        """Airflow cancels the trigger at each look at the task's state; each call may take longer than that."""
        server.fault("*", "/model", Delay(0.3), times=None)
        undoing = asyncio.create_task(trigger(ours=True).on_kill())
        while not undoing.done():
            await asyncio.sleep(0.02)
            undoing.cancel()

        assert verbs(server) == [CANCEL]

    async def test_a_host_that_hangs_is_not_waited_for_long(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "UNDO_SECONDS", 0.2)
        server.fault("*", "/model", Delay(1.5), times=None)
        killed_at = time.monotonic()
        await trigger(ours=True).on_kill()

        assert time.monotonic() - killed_at < KILL_LIMIT


async def test_a_triggerer_that_stops_changes_nothing(server: PiecesStandIn) -> None:
    before = trigger(ours=True)
    abandoned = asyncio.create_task(events_of(before))
    await asyncio.to_thread(server.until, lambda: server.sockets)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await before.cleanup()
    server.finish(PHI["id"], "COMPLETED")

    (event,) = await events_of(FetchTrigger(**before.serialize()[1]))
    assert event["status"] == "success"
    assert verbs(server) == []
    await asyncio.to_thread(server.until, lambda: not server.sockets[0].open)


def test_a_stored_trigger_is_rebuilt_equal() -> None:
    path, arguments = trigger(ours=True, poll_interval=7.5).serialize()
    again = resolve_name(path)(**deserialize(serialize(arguments)))

    assert type(again) is FetchTrigger
    assert again.serialize() == (path, arguments)
    assert set(arguments) == {name for name in FetchTrigger.__init__.__annotations__ if name != "return"}


async def test_the_application_is_in_no_argument_and_no_event(server: PiecesStandIn, connect: Connect) -> None:
    connect(CONNECTION, conn_type="pieces", host=server.url, extra={"application_id": "canary-4f1c0de5"})
    waiting = trigger(deadline=time.time() + 0.2)

    assert "canary" not in json.dumps([waiting.serialize(), await events_of(waiting)])


async def test_the_loop_is_not_blocked_by_a_connection_lookup(
    server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((Connection, "get"), (BaseHook, "get_connection")):
        refuse_to_block(monkeypatch, owner, name)
    await trigger(ours=True).on_kill()

    assert verbs(server) == [CANCEL]

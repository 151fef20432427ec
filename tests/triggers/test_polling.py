"""Waiters share: requests grow with what is waited for, not with who waits; and nobody holds up anybody."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.triggers.base import BaseTrigger

from airflow_provider_modelsync.compat import AirflowNotFoundException
from airflow_provider_modelsync.hooks import registry
from airflow_provider_modelsync.triggers import base, polling
from airflow_provider_modelsync.triggers import model as triggers
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger, ModelVersionTrigger
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay, Request, Respond, Rewrite
from tests.support.descriptors import opened
from tests.support.until import until_async
from tests.support.versions import since_3_3

with suppress(ImportError):  # before Airflow 3.3 nothing is shared
    from airflow.triggers.shared_stream import SharedStreamManager

CONNECTION = "bentocloud_default"
INTERVAL = 0.4
SENSORS, MODELS = 500, ("churn", "digits", "fraud", "spam", "topics")


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (triggers, base):
        monkeypatch.setattr(module, "MIN_POLL_INTERVAL", 0.01)


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    """A server with one version of each model."""
    with BentoCloudStandIn(tmp_path) as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        for name in MODELS:
            server.seed(name, "v1")
        yield server


def sensor(model: str = "fraud:v2", **arguments: Any) -> ModelVersionTrigger:
    """Return what a deferred sensor waits with."""
    defaults = {"registry_conn_id": CONNECTION, "deadline": time.time() + 60, "poll_interval": INTERVAL}
    return ModelVersionTrigger(model=model, **{**defaults, **arguments})


async def outcome_of(waiting: ModelVersionTrigger) -> dict[str, Any]:
    """Run a trigger to its end and return its only event."""
    (event,) = [event.payload async for event in waiting.run()]
    return dict(event)


@contextmanager
def untraced() -> Iterator[None]:
    """Have nothing follow this thread's frames."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@asynccontextmanager
async def running(*triggers: BaseTrigger) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    """Run sensors' triggers as tasks; cancel at the end what still waits."""
    tasks = [asyncio.create_task(outcome_of(one)) for one in triggers if isinstance(one, ModelVersionTrigger)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked(server: BentoCloudStandIn, count: int, path: str = "") -> None:
    """Wait until a server was asked so often."""
    async with asyncio.timeout(30):
        while server.count(path=path) < count:  # noqa: ASYNC110  # the server runs in threads
            await asyncio.sleep(0.02)


def gaps(requests: list[Request], times: dict[int, float]) -> list[float]:
    """The seconds between requests."""
    at = [times[id(request)] for request in requests]
    return [late - early for early, late in pairwise(at)]


class Clock:
    """Notes when each request arrives."""

    def __init__(self, server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: dict[int, float] = {}
        arrived = server.arrived

        def note(request: Request) -> None:
            self.at[id(request)] = time.monotonic()
            arrived(request)

        monkeypatch.setattr(server, "arrived", note)


@since_3_3
async def test_two_watching_dags_and_500_sensors_ask_once_per_interval_and_model(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(server, monkeypatch)
    manager = SharedStreamManager()  # as the triggerer has one

    async def watch(number: int) -> None:
        trigger = ModelVersionEventTrigger(CONNECTION, "fraud", INTERVAL)
        stream = manager.subscribe(trigger_id=number, trigger=trigger, key=trigger.shared_stream_key())
        async for _ in trigger.filter_shared_stream(stream):
            pass

    watchers = [asyncio.create_task(watch(number)) for number in range(2)]
    async with running(*(sensor(f"{MODELS[number % len(MODELS)]}:v2") for number in range(SENSORS))) as sensors:
        for name in MODELS:
            await asked(server, 3, f"/{name}/models/v2$")
        await asked(server, 3, "/fraud/models$")
        assert not any(task.done() for task in (*sensors, *watchers))
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    await manager.stop_all()

    polls = [*(f"/{name}/models/v2$" for name in MODELS), "/fraud/models$"]
    for path in polls:
        assert min(gaps(server.find(path=path), clock.at)) >= INTERVAL, path
    assert sum(server.count(path=path) for path in polls) == server.count()


async def test_all_who_wait_for_the_same_learn_of_it_by_one_look(server: BentoCloudStandIn) -> None:
    async with running(*(sensor("fraud:v1") for _ in range(50))) as waiting:
        events = await asyncio.gather(*waiting)

    assert {event["ref"] for event in events} == {"fraud:v1"}
    assert server.count() == 1


async def test_what_differs_is_looked_at_apart(server: BentoCloudStandIn) -> None:
    server.seed("fraud", "v2", labels={"stage": "production"})
    different = [sensor("fraud:v1"), sensor("fraud"), sensor("fraud", labels={"stage": "production"})]
    async with running(*different, *different) as waiting:
        events = await asyncio.gather(*waiting)

    assert [event["ref"] for event in events] == ["fraud:v1", "fraud:v2", "fraud:v2"] * 2
    assert server.count() == len(different)


async def test_a_connection_is_looked_up_once_and_its_sockets_are_few(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: Counter[str] = Counter()
    look_up = registry.aget_connection

    async def count(conn_id: str) -> Connection:
        looked_up[conn_id] += 1
        return await look_up(conn_id)

    monkeypatch.setattr(registry, "aget_connection", count)
    before = len(opened("socket:"))
    async with running(*(sensor(f"{name}:v2") for name in MODELS for _ in range(40))):
        await asked(server, 2 * len(MODELS))
        assert len(opened("socket:")) - before <= 2 * polling.AT_ONCE

    assert looked_up == {CONNECTION: 1}  # the hook that it leads to has its settings from it, too
    await until_async(lambda: len(opened("socket:")) <= before, "the server to close its ends, too")


async def test_a_waiter_that_is_cancelled_takes_nobody_along(server: BentoCloudStandIn) -> None:
    server.fault("GET", "/fraud/models/v2$", Delay(0.5), times=1)
    async with running(sensor(), sensor()) as (first, second):
        await asked(server, 1)
        first.cancel()  # in the middle of the look that it has begun
        server.seed("fraud", "v2")

        assert (await second)["status"] == "success"


async def test_a_waiter_that_does_nothing_with_its_event_stalls_nobody(server: BentoCloudStandIn) -> None:
    idle = sensor("fraud:v1").run()
    await anext(idle)  # and never comes back
    async with running(sensor("fraud:v1")) as (other,):
        assert (await other)["status"] == "success"
    await idle.aclose()


async def test_a_registry_that_hangs_stalls_no_other(
    server: BentoCloudStandIn, connect: Connect, tmp_path: Path
) -> None:
    with BentoCloudStandIn(tmp_path / "other") as hanging:
        connect("hanging", conn_type="bentocloud", host=hanging.url, password=hanging.token)
        hanging.fault("*", "", Delay(1.5), times=None)
        stuck = [sensor(f"{name}:v2", registry_conn_id="hanging") for name in MODELS]
        async with running(*stuck, sensor("fraud:v1", poll_interval=0.6)) as (*others, quick):
            assert (await quick)["status"] == "success"
            assert not any(task.done() for task in others)


async def test_a_deadline_is_kept_while_a_look_hangs(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LAST_LOOK", 0.1)
    held = threading.Event()
    server.fault("GET", "", Rewrite(lambda found: found if held.wait(60) else None))
    server.seed("fraud", "v2")
    async with running(sensor()) as (patient,):
        await asked(server, 1)
        assert (await outcome_of(sensor(deadline=time.time() + 0.1)))["status"] == "timeout"
        assert (patient.done(), server.count()) == (False, 1)
        held.set()


async def test_a_crowd_at_its_deadline_asks_no_more_than_before(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, now = Clock(server, monkeypatch), time.time()
    async with running(*(sensor(deadline=now + 0.5 + number * 0.01) for number in range(100))) as waiting:
        events = await asyncio.gather(*waiting)

    assert {event["status"] for event in events} == {"timeout"}
    assert all(gap >= INTERVAL for gap in gaps(server.find(), clock.at))


async def test_trouble_reaches_all_who_wait_and_they_ask_less_often(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(server, monkeypatch)
    server.fault("GET", "", Respond(501), times=3)
    server.seed("fraud", "v2")
    async with running(*(sensor(poll_interval=0.1) for _ in range(20))) as waiting:
        events = await asyncio.gather(*waiting)

    assert {event["status"] for event in events} == {"success"}
    assert capsys.readouterr().out.count("the wait goes on") == 20
    pauses = gaps(server.find(), clock.at)
    assert [pause >= 0.1 * 2**failures for failures, pause in enumerate(pauses, 1)] == [True] * 3


async def test_one_who_comes_in_the_middle_of_trouble_is_told(
    server: BentoCloudStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault("GET", "", Respond(501), times=None)
    async with running(sensor()):
        await until_async(lambda: "the wait goes on" in capsys.readouterr().out, "the first one to be told")
        async with running(sensor(deadline=time.time() + 1)) as (late,):
            event = await late

    assert "501" in event["message"]
    assert capsys.readouterr().out.count("the wait goes on") == 1


async def test_one_who_comes_late_does_not_fire_at_once(server: BentoCloudStandIn) -> None:
    held = threading.Event()
    server.fault("GET", "", Rewrite(lambda found: found if held.wait(60) else None))
    async with running(sensor("fraud:v1")) as (first,):
        await asked(server, 1)
        base.MIN_POLL_INTERVAL = INTERVAL
        async with running(sensor("fraud:v1")) as (late,):
            began = time.monotonic()
            await asyncio.sleep(0)  # the late one has joined
            held.set()
            await first
            assert (await late)["status"] == "success"
            assert time.monotonic() - began >= INTERVAL
    assert server.count() == 1


async def test_new_credentials_are_found_when_the_old_ones_are_refused(
    server: BentoCloudStandIn, connect: Connect
) -> None:
    async with running(*(sensor(f"{name}:v2") for name in MODELS)) as waiting:
        for name in MODELS:  # what is refused to a first look was read for it, and is not read again
            await asked(server, 2, f"/{name}/models/v2$")
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password="renewed")
        server.tokens = {"renewed": None}  # then: threads of waits look up as soon as they are refused
        for name in MODELS:
            server.seed(name, "v2")
        events = await asyncio.gather(*waiting)

    assert {event["status"] for event in events} == {"success"}


async def test_credentials_that_stay_refused_end_all_waits(server: BentoCloudStandIn) -> None:
    async with running(sensor(), sensor()) as waiting:
        await asked(server, 1)
        server.tokens.clear()
        events = await asyncio.gather(*waiting)

    assert [(event["status"], event["permanent"]) for event in events] == [("failed", True)] * 2


async def test_a_connection_is_looked_up_again_now_and_then(
    server: BentoCloudStandIn, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "RENEWAL", 0.0)
    with BentoCloudStandIn(tmp_path / "moved") as moved:
        moved.seed("fraud", "v2")
        async with running(sensor()) as (waiting,):
            await asked(server, 1)
            connect(CONNECTION, conn_type="bentocloud", host=moved.url, password=moved.token)

            assert (await waiting)["status"] == "success"


async def test_the_old_client_serves_on_while_the_connection_cannot_be_read(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(sensor(deadline=time.time() + 60, poll_interval=0.01)) as (waiting,):
        await asked(server, 1)

        async def nowhere(conn_id: str) -> Any:
            raise AirflowNotFoundException(f"{conn_id} is not defined")

        monkeypatch.setattr(polling, "aget_registry_hook", nowhere)
        monkeypatch.setattr(polling, "RENEWAL", 0.0)
        await asked(server, server.count() + 2)
        server.seed("fraud", "v2")

        assert (await waiting)["status"] == "success"


def test_a_rhythm_grows_up_to_its_limit() -> None:
    pauses = [polling.Rhythm(10.0, grows=True, longest=60.0).pause(looks, 0) for looks in range(6)]

    for pause, least in zip(pauses, [10, 20, 40, 60, 60, 60], strict=True):
        assert least <= pause <= 1.1 * least  # with a tenth of jitter
    assert polling.Rhythm(10.0).pause(5, 0) <= 11.0


async def test_a_sensor_s_backoff_is_kept_when_it_waits_here(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(server, monkeypatch)
    async with running(sensor(poll_interval=0.02, manner={"exponential_backoff": True})):
        await asked(server, 5)

    assert all(gap >= 0.02 * 2**looks for looks, gap in enumerate(gaps(server.find(), clock.at), 1))


async def test_nothing_is_left_when_nobody_waits(server: BentoCloudStandIn) -> None:
    async with running(sensor(), sensor("churn:v2")):
        await asked(server, 2)

    polls = polling.shared()
    assert (polls._polls, polls._lines, polls._holders) == ({}, {}, {})
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # a look that was told to stop may be about to
        assert task.cancelling()
        await asyncio.wait((task,), timeout=60)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_waiter_takes_little_memory(server: BentoCloudStandIn) -> None:
    waiters, groups = 200, 3
    per_waiter = []
    async with AsyncExitStack() as waiting:
        waiting.enter_context(untraced())  # frames that coverage follows are larger
        await waiting.enter_async_context(running(sensor()))
        await asked(server, 2)
        tracemalloc.start()
        try:
            for _ in range(groups):
                gc.collect()
                before, _peak = tracemalloc.get_traced_memory()
                await waiting.enter_async_context(running(*(sensor() for _ in range(waiters))))
                await asked(server, server.count() + 3)  # what is seen was logged meanwhile
                gc.collect()
                after, _peak = tracemalloc.get_traced_memory()
                per_waiter.append((after - before) / waiters)
        finally:
            tracemalloc.stop()

    # The test's own share is among it; a table of the process that grows meanwhile is in one group only.
    assert min(per_waiter) <= 5000, per_waiter


async def test_each_event_loop_has_its_own(server: BentoCloudStandIn) -> None:
    async def elsewhere() -> dict[str, Any]:
        return await outcome_of(sensor("fraud:v1"))

    async with running(sensor("fraud:v1")) as (here,):
        there = await asyncio.to_thread(asyncio.run, elsewhere())
        assert {there["status"], (await here)["status"]} == {"success"}
    gc.collect()
    assert server.count() == 2


async def test_what_a_poll_logs_does_not_go_to_one_waiters_log(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextvars

    owner: contextvars.ContextVar[str] = contextvars.ContextVar("owner", default="nobody")
    owners = []
    look = ModelVersionTrigger.look

    async def note(self: ModelVersionTrigger, hook: Any) -> Any:
        owners.append(owner.get())
        return await look(self, hook)

    monkeypatch.setattr(ModelVersionTrigger, "look", note)
    owner.set("a task")
    async with running(sensor("fraud:v1")) as (waiting,):
        await waiting

    assert owners == ["nobody"]

"""Asynchronous steps of a flow, done by either driver; and the event loop that the sync one keeps for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import Cancelled
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, Flow, SyncDriver, wait_for
from tests.support.kills import killed

Run = Callable[[Flow[Any]], Any]


def run_sync(flow: Flow[Any]) -> Any:
    with closing(SyncDriver()) as driver:
        return driver.run(flow)


def run_async(flow: Flow[Any]) -> Any:
    return asyncio.run(AsyncDriver().run(flow))


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_a_coroutine_is_a_step_like_any_other(run: Run) -> None:
    async def double(number: int, *, plus: int) -> int:
        await asyncio.sleep(0)
        return 2 * number + plus

    assert run(wait_for(double, 20, plus=2)) == 42


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
def test_its_error_reaches_the_flow(run: Run, kind: type[Exception]) -> None:
    async def fail() -> None:
        raise kind("no")

    def flow() -> Flow[str]:
        try:
            yield from wait_for(fail)
        except kind as error:
            return str(error)
        return "nothing"

    assert run(flow()) == "no"


def test_steps_share_one_loop_where_work_goes_on_between_them(run: Run) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    tasks = []

    async def begin() -> None:
        async def count() -> None:
            for number in range(3):
                await queue.put(number)

        tasks.append(asyncio.create_task(count()))

    def flow() -> Flow[list[int]]:
        yield from wait_for(begin)
        first = yield from wait_for(queue.get)
        second = yield from wait_for(queue.get)
        return [first, second, (yield from wait_for(queue.get))]

    assert run(flow()) == [0, 1, 2]


def test_a_cancelled_driver_waits_no_longer_and_the_coroutine_is_cancelled() -> None:
    cancel, ended = CancelToken(), threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with closing(SyncDriver(cancel=cancel)) as driver, killed(cancel), pytest.raises(Cancelled):
        driver.run(wait_for(wait))

    assert ended.wait(30)


def test_closing_ends_what_is_left_and_the_thread() -> None:
    ended = threading.Event()
    others = set(threading.enumerate())  # of tests before
    left = []

    async def begin() -> None:
        async def linger() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            ended.set()

        left.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)

    with closing(SyncDriver()) as driver:
        driver.run(wait_for(begin))
        (thread,) = (one for one in threading.enumerate() if one.name == "modelsync-loop" and one not in others)

    assert ended.wait(30)
    thread.join(30)
    assert not thread.is_alive()

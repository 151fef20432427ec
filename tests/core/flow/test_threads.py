"""Threads of an event loop's own: what hangs there holds up nobody else."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from airflow_provider_modelsync.core.flow import threads
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, call
from airflow_provider_modelsync.core.flow.threads import Threads
from tests.support.until import until_async


@pytest.fixture
def mount() -> Iterator[threading.Event]:
    """What hangs until the test is over."""
    gone = threading.Event()
    yield gone
    gone.set()


async def test_returns_and_raises_what_the_call_does() -> None:
    own = Threads()

    assert await own.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await own.run(lambda: 1 // 0)


async def test_calls_that_hang_leave_the_loop_s_own_threads_alone(mount: threading.Event) -> None:
    drivers = [AsyncDriver() for _ in range(16)]
    hanging = [asyncio.create_task(driver.run(call(mount.wait))) for driver in drivers for _ in range(4)]
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(lambda: "an answer") == "an answer"
        assert await AsyncDriver().run(call(lambda: "another")) == "another"
    mount.set()
    assert await asyncio.gather(*hanging) == [True] * 64


async def test_a_call_that_nobody_waits_for_keeps_its_place(mount: threading.Event) -> None:
    own = Threads(2)
    abandoned = [asyncio.create_task(own.run(mount.wait)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in abandoned:
        task.cancel()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await own.run(lambda: None)
    mount.set()

    assert await own.run(lambda: "free again") == "free again"


async def test_calls_that_hang_are_reported(
    mount: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_PATIENCE", 0.02)
    own = Threads(1)
    hanging = asyncio.create_task(own.run(mount.wait))
    await asyncio.sleep(0.01)
    with caplog.at_level(logging.WARNING, logger="modelsync"):
        waiting = asyncio.create_task(own.run(lambda: None))
        await until_async(lambda: "1 calls have not returned" in caplog.text, "the report")
    assert not waiting.done()
    mount.set()
    await asyncio.gather(hanging, waiting)


async def test_threads_do_not_hold_up_the_end_of_the_process(mount: threading.Event) -> None:
    others = set(threading.enumerate())  # of tests before
    hanging = asyncio.create_task(Threads().run(mount.wait))
    await asyncio.sleep(0.01)

    started = set(threading.enumerate()) - others
    assert [thread.daemon for thread in started if thread.name == "modelsync"] == [True]
    mount.set()
    await hanging

from __future__ import annotations

import asyncio
import gc
import gzip
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import pytest

from airflow_provider_modelsync.core.errors import Cancelled
from airflow_provider_modelsync.core.flow import exchange, steps
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import (
    AsyncDriver,
    Exchange,
    Flow,
    Policy,
    SyncDriver,
    call,
    call_remote,
    send,
    send_once,
    sleep,
    together,
)
from tests.support.kills import killed

T = TypeVar("T")
Run = Callable[..., Any]


def _answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(f"{request.method} {request.url.path}".encode()))


def _sync(flow: Flow[T], policy: Policy = send_once) -> T:
    with httpx.Client(transport=httpx.MockTransport(_answer)) as client:
        return SyncDriver(client, policy=policy).run(flow)


def _async(flow: Flow[T], policy: Policy = send_once) -> T:

    async def run() -> T:
        async with httpx.AsyncClient(transport=httpx.MockTransport(_answer)) as client:
            return await AsyncDriver(client, policy=policy).run(flow)

    return asyncio.run(run())


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    result: Run = request.param
    return result


def _get(path: str) -> Flow[str]:
    response = yield from send(httpx.Request("GET", f"https://registry.test{path}"))
    return response.text


def test_a_flow_without_steps_returns_its_result(run: Run) -> None:
    def flow() -> Flow[int]:
        return 7
        yield

    assert run(flow()) == 7


def test_a_call_gives_the_flow_what_the_function_returned(run: Run) -> None:
    assert run(call(divmod, 7, 2)) == (3, 1)


def test_a_request_gives_the_flow_its_response(run: Run) -> None:
    assert run(_get("/models")) == "GET /models"


def test_flows_compose(run: Run) -> None:
    def flow() -> Flow[list[str]]:
        yield from sleep(0)
        first = yield from _get("/a")
        second = yield from call(str.upper, "b")
        return [first, second]

    assert run(flow()) == ["GET /a", "B"]


def test_an_error_of_a_step_is_thrown_into_the_flow(run: Run) -> None:
    def flow() -> Flow[str]:
        try:
            yield from call(int, "no number")
        except ValueError as error:
            return f"seen: {error}"
        return "not seen"

    assert run(flow()).startswith("seen: invalid literal")


def test_an_error_that_the_flow_does_not_catch_comes_out(run: Run) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        run(call(int, "no number"))


def test_the_flow_may_turn_an_error_into_another(run: Run) -> None:
    def flow() -> Flow[None]:
        try:
            yield from call(int, "no number")
        except ValueError:
            raise LookupError("translated") from None

    with pytest.raises(LookupError, match="translated"):
        run(flow())


def test_finally_runs_after_an_error(run: Run) -> None:
    events: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield from call(int, "no number")
        finally:
            yield from call(events.append, "cleaned up")

    with pytest.raises(ValueError, match="invalid literal"):
        run(flow())
    assert events == ["cleaned up"]


def test_flows_run_together_and_their_results_come_in_order(run: Run) -> None:
    met = threading.Barrier(3, timeout=60)

    def one(number: int) -> Flow[str]:
        yield from call(met.wait)  # nobody passes before all are there
        return (yield from _get(f"/{number}"))

    assert run(together([one(number) for number in range(3)])) == ["GET /0", "GET /1", "GET /2"]
    assert run(together([], at_once=2)) == []


def test_the_first_error_ends_all_flows_that_run_together(run: Run) -> None:
    begun: list[int] = []
    ended: list[int] = []

    def one(number: int) -> Flow[None]:
        begun.append(number)
        try:
            if number == 1:
                raise ValueError("broken")
            yield from sleep(60)
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="broken"):
        run(together([one(number) for number in range(3)]))
    assert sorted(ended) == sorted(begun)


def test_the_policy_decides_how_a_request_is_made(run: Run) -> None:
    sent: list[str] = []

    def counting(request: httpx.Request) -> Flow[httpx.Response]:
        for _ in range(2):
            response: httpx.Response = yield Exchange(request)
            sent.append(request.url.path)
        return response

    assert run(_get("/a"), counting) == "GET /a"
    assert sent == ["/a", "/a"]


def test_a_driver_without_a_client_says_so() -> None:
    with pytest.raises(RuntimeError, match="without an HTTP client"):
        SyncDriver().run(_get("/a"))


def test_the_sync_driver_calls_in_the_same_thread() -> None:
    assert SyncDriver().run(call(threading.get_ident)) == threading.get_ident()


def test_the_async_driver_calls_in_another_thread_so_that_the_loop_goes_on() -> None:
    begun, gone_on = threading.Event(), threading.Event()

    def block() -> tuple[int, bool]:
        begun.set()
        return threading.get_ident(), gone_on.wait(60)

    async def main() -> tuple[int, bool]:
        running = asyncio.create_task(AsyncDriver().run(call(block)))
        await asyncio.to_thread(begun.wait)
        gone_on.set()  # by the loop, while the call blocks
        return await running

    thread, has_gone_on = asyncio.run(main())
    assert thread != threading.get_ident()
    assert has_gone_on


def test_a_cancelled_token_stops_the_flow_before_its_next_step() -> None:
    token = CancelToken()
    seen: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield from call(token.cancel)
            yield from call(seen.append, "second step")
        except Cancelled:
            seen.append("told")
            raise

    with pytest.raises(Cancelled):
        SyncDriver(cancel=token).run(flow())
    assert seen == ["told"]


def test_a_cancelled_token_ends_a_wait() -> None:
    token = CancelToken()
    with killed(token), pytest.raises(Cancelled):
        SyncDriver(cancel=token).run(sleep(60))


def test_a_cancelled_token_ends_a_request_that_nobody_answers() -> None:
    token = CancelToken()
    release = threading.Event()

    def silent(request: httpx.Request) -> httpx.Response:
        release.wait(60)
        return httpx.Response(200)

    try:
        with (
            httpx.Client(transport=httpx.MockTransport(silent)) as client,
            killed(token),
            pytest.raises(Cancelled),
        ):
            SyncDriver(client, cancel=token).run(_get("/a"))
    finally:
        release.set()


def test_a_kill_ends_remote_work_and_the_cleaning_up_after_it_though_neither_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token, release = CancelToken(), threading.Event()
    monkeypatch.setattr(steps, "_LAST_SECONDS", 0.5)
    driver = SyncDriver(cancel=token)

    def flow() -> Flow[None]:
        try:
            yield from call_remote(release.wait, 60)
        finally:
            yield from call(driver.shielded().run, call_remote(release.wait, 60))

    try:
        with killed(token), pytest.raises(Cancelled):
            driver.run(flow())
    finally:
        release.set()


def test_a_shielded_driver_cleans_up_after_a_cancellation() -> None:
    token = CancelToken()
    token.cancel()
    driver = SyncDriver(cancel=token)
    assert driver.shielded().run(call(str, 1)) == "1"
    with pytest.raises(Cancelled):
        driver.run(call(str, 1))


def test_cancelling_the_async_task_runs_the_flows_finally() -> None:
    events: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield from sleep(60)
        finally:
            events.append("cleaned up")

    async def main() -> None:
        task = asyncio.create_task(AsyncDriver().run(flow()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert events == ["cleaned up"]


class _Timeout(BaseException):
    """Stands for Airflow's task timeout, which is no ``Exception``."""


def test_finally_runs_for_errors_that_are_no_exceptions(run: Run) -> None:
    events: list[str] = []

    def stop() -> None:
        raise _Timeout

    def flow() -> Flow[None]:
        try:
            yield from call(stop)
        finally:
            events.append("cleaned up")

    with pytest.raises(_Timeout):
        run(flow())
    assert events == ["cleaned up"]


@pytest.mark.parametrize(
    ("received", "elsewhere"),
    [(["x"] * 10, False), (["x"] * 3000, True), (dict.fromkeys(range(3000)), True), ("x" * (1 << 20), False)],
)
@pytest.mark.row("T13", of="calls")
def test_a_flow_that_has_received_much_goes_on_off_the_loop(received: Any, *, elsewhere: bool) -> None:
    def flow() -> Flow[tuple[int, int]]:
        yield from call(lambda: received)
        first = threading.get_ident()
        yield from sleep(0)  # what was received is kept, so the work on all of it may still come
        return first, threading.get_ident()

    assert [ident != threading.get_ident() for ident in _async(flow())] == [elsewhere] * 2
    assert _sync(flow()) == (threading.get_ident(),) * 2


@pytest.mark.parametrize("size", [1000, 20_000])
def test_pages_that_are_much_together_count(size: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(b"x" * size))

    def flow() -> Flow[int]:
        for _ in range(4):
            yield from send(httpx.Request("GET", "http://x/"))
        return threading.get_ident()

    async def run() -> int:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            return await AsyncDriver(client).run(flow())

    assert (asyncio.run(run()) != threading.get_ident()) == (size > 1000)


@pytest.mark.row("T13", of="calls")
def test_once_much_is_received_full_garbage_collections_pass_over_what_was_there_before() -> None:
    """They would stop the event loop for as long as it takes to look through all modules of the process."""

    def flow(size: int) -> Flow[None]:
        yield from call(lambda: ["x"] * size)

    steps._set_old_objects_aside.cache_clear()
    there = {"x": [object]}
    asyncio.run(AsyncDriver().run(flow(10)))
    assert _is_looked_through(there)
    asyncio.run(AsyncDriver().run(flow(3000)))
    assert not _is_looked_through(there)
    later = {"x": [object]}
    asyncio.run(AsyncDriver().run(flow(3000)))
    assert _is_looked_through(later)  # only once: what comes later is looked after


def _is_looked_through(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects())  # but for those that are set aside


@pytest.mark.row("T13", of="calls")
def test_the_loop_goes_on_while_much_is_unpacked() -> None:
    packed = gzip.compress(b"x" * (4 << 20))

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(packed))

    async def run() -> tuple[int, int]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            response = await exchange.asend(client, httpx.Request("GET", "http://x/"))
        counting.cancel()
        return len(response.content), turns

    assert len(packed) < 64 << 10  # which is received at once
    size, turns = asyncio.run(run())
    assert size == 4 << 20
    assert turns > size // exchange.SLICE // 2


def test_cancelling_while_a_flow_computes_off_the_loop_is_told_to_it() -> None:
    told: list[str] = []
    computing = threading.Event()

    def flow() -> Flow[str]:
        try:
            yield from call(lambda: ["x"] * 3000)
            computing.set()
            time.sleep(0.2)
            yield from sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            told.append("cleaned up")
        return "never"

    async def run() -> None:
        running = asyncio.ensure_future(AsyncDriver().run(flow()))
        await asyncio.to_thread(computing.wait)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())
    assert told == ["cancelled", "cleaned up"]

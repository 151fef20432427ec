from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from airflow_provider_modelsync.core.errors import Cancelled, Retryable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.loop import LoopThread
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.transfer.watchdog import Pace, Watch, Watchdog
from tests.support.kills import killed
from tests.support.until import until


def test_every_item_is_worked_on_once() -> None:
    done: list[int] = []
    for_each(lambda item, _: done.append(item), range(100), workers=4, cancel=CancelToken())
    assert sorted(done) == list(range(100))


def test_no_item_is_no_work() -> None:
    for_each(lambda item, _: pytest.fail("called"), [], workers=4, cancel=CancelToken())


def test_one_worker_keeps_the_order() -> None:
    done: list[int] = []
    for_each(lambda item, _: done.append(item), range(20), workers=1, cancel=CancelToken())
    assert done == list(range(20))


def test_items_are_worked_on_at_the_same_time_by_as_many_threads_as_asked_for() -> None:
    together = threading.Barrier(3, timeout=60)
    for_each(lambda item, _: together.wait() and None, range(3), workers=3, cancel=CancelToken())
    assert not together.broken


def test_never_more_threads_run_than_asked_for() -> None:
    lock, both = threading.Lock(), threading.Barrier(2, timeout=60)  # each works beside another one
    now = most = 0

    def work(item: int, token: CancelToken) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait()
        time.sleep(0.005)
        with lock:
            now -= 1

    for_each(work, range(20), workers=2, cancel=CancelToken())
    assert most == 2


def test_the_first_error_is_raised() -> None:
    def work(item: int, token: CancelToken) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        for_each(work, range(5), workers=1, cancel=CancelToken())


def test_an_error_stops_the_other_workers_through_their_token() -> None:
    seen: list[int] = []

    def work(item: int, token: CancelToken) -> None:
        if item == 0:
            raise ValueError("first")
        seen.append(item)
        token.sleep(60)

    start = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        for_each(work, range(100), workers=2, cancel=CancelToken())
    assert time.monotonic() - start < 30
    assert len(seen) <= 1


def test_an_error_leaves_the_callers_token_alone() -> None:
    def work(item: int, token: CancelToken) -> None:
        raise ValueError

    cancel = CancelToken()
    with pytest.raises(ValueError):  # noqa: PT011
        for_each(work, [1], workers=1, cancel=cancel)
    assert not cancel.cancelled


def test_the_callers_cancellation_ends_the_work() -> None:
    cancel = CancelToken()
    with killed(cancel), pytest.raises(Cancelled):
        for_each(lambda item, token: token.sleep(60), range(8), workers=4, cancel=cancel)


def test_a_thread_stuck_in_a_system_call_holds_nothing_up() -> None:
    release = threading.Event()
    cancel = CancelToken()
    cancel.patience = 0.5
    try:
        with killed(cancel), pytest.raises(Cancelled):
            for_each(lambda item, token: release.wait(60) and None, [1], workers=1, cancel=cancel)
    finally:
        release.set()


class NoRoom:
    """Lets so many threads start and then none.

    :param before: called before one is refused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, before: Callable[[], object] = lambda: None) -> None:
        self.left = most
        self._before = before
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self.start(thread))

    def start(self, thread: threading.Thread) -> None:
        if not self.left:
            self._before()
            raise RuntimeError("can't start new thread")
        self.left -= 1
        self._start(thread)


def test_threads_that_were_started_are_told_when_another_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    ended: list[bool] = []
    together = threading.Barrier(3, timeout=60)  # the two that are started, and who starts them

    def work(item: int, cancel: CancelToken) -> None:
        together.wait()
        try:
            while not cancel.cancelled:
                time.sleep(0.01)
        finally:
            ended.append(cancel.cancelled)
        done.append(item)

    NoRoom(monkeypatch, 2, together.wait)
    with pytest.raises(Retryable, match="lets no more threads start"):
        for_each(work, range(40), workers=4, cancel=CancelToken())
    assert ended == [True, True]  # told, and joined before the error came out
    assert len(done) == 2


def test_a_watchdog_that_could_not_be_started_is_started_for_the_next_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    dog, cancel = Watchdog(), CancelToken()
    with monkeypatch.context() as patch:
        NoRoom(patch, 0)
        with pytest.raises(Retryable), dog.over(Watch(Pace(), cancel)):
            pass
    cancel.cancel()
    watch = Watch(Pace(), cancel)
    with dog.over(watch):
        until(lambda: watch._reason is not None, "the watchdog to look")


def test_an_event_loop_that_cannot_be_started_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None: ...

    NoRoom(monkeypatch, 0)
    with pytest.raises(Retryable), closing(nothing()) as coroutine:
        LoopThread().run(coroutine, CancelToken())

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from airflow_provider_modelsync.core.errors import Cancelled
from airflow_provider_modelsync.core.flow import cancel, steps
from airflow_provider_modelsync.core.flow.cancel import CancelToken, Grace
from tests.support.kills import LIMIT, killed


def test_a_new_token_is_not_cancelled() -> None:
    token = CancelToken()
    token.check()
    assert not token.cancelled


def test_cancelling_twice_is_no_error() -> None:
    token = CancelToken()
    token.cancel()
    token.cancel()
    assert token.cancelled


def test_a_check_of_a_cancelled_token_raises() -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        token.check()


def test_a_parents_cancellation_counts_for_its_child() -> None:
    parent = CancelToken()
    child = CancelToken(CancelToken(parent))
    parent.cancel()
    assert child.cancelled


def test_a_childs_cancellation_leaves_its_parent_alone() -> None:
    parent = CancelToken()
    CancelToken(parent).cancel()
    assert not parent.cancelled


def test_a_sleep_lasts_as_long_as_asked() -> None:
    start = time.monotonic()
    CancelToken().sleep(0.15)
    assert time.monotonic() - start >= 0.15


def test_a_sleep_ends_soon_after_a_cancellation_from_another_thread() -> None:
    token = CancelToken()
    with killed(token), pytest.raises(Cancelled):
        token.sleep(60)


def test_a_signal_handler_may_cancel_the_thread_that_it_interrupts() -> None:
    token = CancelToken()
    before = signal.signal(signal.SIGUSR1, lambda *_: token.cancel())
    try:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Cancelled):
            token.sleep(60)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cancel, "time", clock)
    return clock


def test_cleaning_up_goes_on_for_a_while_after_the_cancellation(clock: Clock) -> None:
    work = CancelToken()
    cleaning = Grace(work, 2)
    assert not cleaning.cancelled
    clock.now += 3
    assert not cleaning.cancelled  # nobody has cancelled anything
    work.cancel()
    clock.now += 1
    assert not cleaning.cancelled
    clock.now += 2
    assert cleaning.cancelled


def test_cleaning_up_that_begins_late_ends_hardly_later(clock: Clock) -> None:
    work = CancelToken()
    work.cancel()
    clock.now += 9
    cleaning = Grace(CancelToken(work), 2)
    assert not cleaning.cancelled
    clock.now += 1
    assert cleaning.cancelled


def test_a_while_that_has_begun_ends_whether_or_not_there_was_a_cancellation(clock: Clock) -> None:
    cleaning = Grace(CancelToken(), 2)
    cleaning.begin()
    clock.now += 1
    assert not cleaning.cancelled
    clock.now += 2
    assert cleaning.cancelled


def test_what_is_waited_for_after_a_kill_leaves_some_of_its_seconds() -> None:
    assert max(CancelToken.patience + cancel._LEAST_GRACE, steps._LAST_SECONDS) + Grace.patience <= LIMIT - 1

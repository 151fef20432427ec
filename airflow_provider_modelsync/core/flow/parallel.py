"""Running one function over many items in a few threads, ending together."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from airflow_provider_modelsync.core.errors import Retryable
from airflow_provider_modelsync.core.flow.cancel import CancelToken

T = TypeVar("T")

_TICK = 0.1  # seconds between two looks at whether the wait is to end
_LAST_CALL_SECONDS = 0.5  # for an answer that is on its way when the work is cancelled


def for_each(
    fn: Callable[[T, CancelToken], None],
    items: Iterable[T],
    *,
    workers: int,
    cancel: CancelToken,
    patience: float = math.inf,
) -> None:
    """Call ``fn(item, token)`` for every item.

    The first error stops all workers, who learn of it from ``token``, and is raised. The threads are daemons and are
    joined for a limited time only, so that one stuck in a system call cannot hold up the end of a task.

    :param fn: the work; must look at its token often.
    :param items: the work list.
    :param workers: how many threads at most.
    :param cancel: the caller's token; its cancellation raises :class:`~.errors.Cancelled` here.
    :param patience: seconds that stuck threads get at most, where the token's own are more.
    """
    queue = deque(items)
    token = CancelToken(cancel)
    errors: list[BaseException] = []

    def work() -> None:
        while not token.cancelled:
            try:
                item = queue.popleft()
            except IndexError:
                return
            try:
                fn(item, token)
            except BaseException as error:
                errors.append(error)
                token.cancel()

    threads: list[threading.Thread] = []
    try:  # also for a timeout that Airflow raises in this thread
        for _ in range(min(workers, len(queue))):
            threads.append(start_thread(work, "modelsync-worker"))  # noqa: PERF401  # the next may not start
        while not token.cancelled and any(thread.is_alive() for thread in threads):
            next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(0.1)
    finally:
        token.cancel()
        end = time.monotonic() + min(cancel.patience, patience)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    cancel.check()
    if errors:
        raise errors[0]


class OutOfTime(Exception):
    """What was waited for took too long."""


def within(fn: Callable[[], T], *, check: Callable[[], None], seconds: float | None, name: str) -> T:
    """Call a function that nothing can interrupt, in a thread of its own, which is left behind when it takes too long.

    :param fn: the function.
    :param check: called ten times a second; raises to end the wait.
    :param seconds: how long the function may take.
    :param name: of the thread.
    :return: what the function returns.
    :raises OutOfTime: when it takes longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(fn())
        except BaseException as error:
            errors.append(error)

    end = None if seconds is None else time.monotonic() + seconds
    thread = start_thread(work, name)
    while thread.is_alive():
        check()
        rest = _TICK if end is None else end - time.monotonic()
        if rest <= 0:
            raise OutOfTime
        thread.join(min(_TICK, rest))
    if errors:
        raise errors[0]
    return results[0]


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread.

    :raises Retryable: when the machine lets no more threads start.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise Retryable(f"this machine lets no more threads start ({error}); fewer tasks at a time may help") from None
    return thread


def interruptible(fn: Callable[[], T], cancel: CancelToken) -> T:
    """Call a function that may hang in a system call; once cancelled, it is no longer waited for.

    :param fn: the function.
    :param cancel: its cancellation raises :class:`~.errors.Cancelled` here.
    """
    results: list[T] = []
    for_each(lambda _, __: results.append(fn()), [None], workers=1, cancel=cancel, patience=_LAST_CALL_SECONDS)
    return results[0]

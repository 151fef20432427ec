"""One poll for all who wait for the same, and one client for all polls of a connection.

Everything here belongs to one event loop. A waiter costs no request, no task and no descriptor of its own, and holds up
no other: each only listens, and leaves when it likes.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_modelsync.core.errors import ModelSyncError, RegistryUnavailable, Retryable, Unauthorized
from airflow_provider_modelsync.hooks.registry import RegistryHook, aget_registry_hook

log = logging.getLogger("modelsync")

T = TypeVar("T")
Look = Callable[[RegistryHook], Awaitable[T]]
Found = dict[str, Any]

RENEWAL = 300.0  # seconds; then a connection is looked up again, for it may have been changed
AT_ONCE = 4  # looks by one connection: those that need threads shall leave some to others
LONGEST_PAUSE = 120.0  # seconds between two looks of a poll in trouble, unless its interval is longer


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a poll looks.

    :param interval: seconds between two looks, the first one included.
    :param grows: double the pause after each look.
    :param longest: seconds of a pause that has grown; ``None`` = no limit.
    """

    interval: float
    grows: bool = False
    longest: float | None = None

    def pause(self, looks: int, failures: int) -> float:
        """Return the seconds to wait before the next look.

        :param looks: that were made.
        :param failures: the last of them in a row.
        """
        grown = self.interval * 2.0 ** min(looks, 16) if self.grows else self.interval
        return pause_after(failures, grown if self.longest is None else min(grown, self.longest))


Key = tuple[str, Hashable, Rhythm]


async def look_up(conn_id: str) -> RegistryHook:
    """Return a connection's hook.

    :raises RegistryUnavailable: when the connection cannot be read; Airflow does not tell whether that may pass.
    """
    try:
        return await aget_registry_hook(conn_id)
    except ModelSyncError:
        raise
    except Exception as error:
        raise RegistryUnavailable(f"the connection {conn_id!r} cannot be looked up: {error}") from error


class _Line:
    """A connection's registry with a client that stays open until the last look by it is over.

    :param conn_id: the connection's id.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.opened_at: float | None = None
        self._hook: RegistryHook | None = None
        self._client = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._users = 0
        self._is_over = False
        self.is_in_renewal = False

    @property
    def is_old(self) -> bool:
        return self.opened_at is not None and time.monotonic() - self.opened_at > RENEWAL

    async def open(self) -> RegistryHook:
        async with self._opening:
            if self._hook is None:
                hook = await look_up(self.conn_id)
                await self._client.enter_async_context(hook.aopen())
                self._hook, self.opened_at = hook, time.monotonic()
        return self._hook

    async def use(self, look: Look[T]) -> T:
        self._users += 1
        try:
            async with self._places:
                return await look(await self.open())
        finally:
            self._users -= 1
            await self._close_if_done()

    async def end(self) -> None:
        self._is_over = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._is_over and not self._users:
            await self._client.aclose()


class Poll:
    """One look after another, until something is found or waiting cannot help.

    :param key: the connection, what is looked for, and how often; less often while the registry is in trouble.
    :param look: returns what is found, or, when it is too early, what there is instead, in words or not.
    """

    def __init__(self, key: Key, look: Callable[[], Awaitable[Found | str | None]]) -> None:
        self.key = key
        self.trouble: str | None = None  # why the last look has failed, when that may pass
        self.state: str | None = None  # what the last look has seen instead of what is waited for
        self.waiters = 0
        self._look = look
        self._rhythm = key[2]
        self._looks = 0
        self._failures = 0
        self._next_at = self._after_a_pause()
        self._news: asyncio.Future[Found | Exception | None] = asyncio.get_running_loop().create_future()
        self._looking: asyncio.Task[None] | None = None
        self._task = _start(self._run())

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known."""
        return self._news.done()

    async def listen(self, seconds: float) -> Found | Exception | None:
        """Wait for the outcome.

        :param seconds: how long.
        :return: what was found, or why waiting cannot help; ``None`` when :attr:`trouble` begins,
            :attr:`state` changes or time is over.
        """
        news = self._news
        await asyncio.wait((news,), timeout=seconds)
        return news.result() if news.done() else None

    async def look_again(self, seconds: float) -> Found | Exception | None:
        """Look at once, unless that was done and the next look is not due yet.

        :param seconds: how long to wait for the answer.
        :return: as :meth:`listen`.
        """
        if not self._looks or time.monotonic() >= self._next_at:
            await asyncio.wait((self._next_look(),), timeout=seconds)
        return self._news.result() if self.is_over else None

    def end(self) -> None:
        """Look no more."""
        for task in filter(None, (self._task, self._looking)):
            task.cancel()

    async def _run(self) -> None:
        while not self.is_over:
            if (rest := self._next_at - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            else:
                await asyncio.wait((self._next_look(),))

    def _after_a_pause(self) -> float:
        return time.monotonic() + self._rhythm.pause(self._looks, self._failures)

    def _next_look(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            self._looking = _start(self._look_once())
        return self._looking

    async def _look_once(self) -> None:
        if self.is_over:
            return
        try:
            found = await self._look()
        except Retryable as error:
            self._failures += 1
            is_new, self.trouble = self.trouble is None, str(error)
            if is_new:
                self._tell(None)
        except Exception as error:
            self._tell(error)
        else:
            self._failures, self.trouble = 0, None
            if isinstance(found, str):
                is_new, self.state = self.state != found, found
                if is_new:
                    self._tell(None)
            elif found:
                self._tell(found)
        finally:
            self._looks += 1
            self._next_at = self._after_a_pause()

    def _tell(self, news: Found | Exception | None) -> None:
        self._news.set_result(news)
        if news is None:
            self._news = asyncio.get_running_loop().create_future()


class Polls:
    """What the waiters of one event loop share."""

    def __init__(self) -> None:
        self._polls: dict[Key, Poll] = {}
        self._lines: dict[str, _Line] = {}
        self._holders: Counter[str] = Counter()

    def hold(self, conn_id: str) -> None:
        """Have a connection's client stay open between looks, until as many have called :meth:`release`."""
        self._holders[conn_id] += 1

    async def release(self, conn_id: str) -> None:
        """Take :meth:`hold` back."""
        self._holders[conn_id] -= 1
        if not self._holders[conn_id]:
            del self._holders[conn_id]
            if line := self._lines.pop(conn_id, None):
                await line.end()

    def join(self, conn_id: str, what: Hashable, look: Look[Found | str | None], rhythm: Rhythm) -> Poll:
        """Take part in a poll, which begins with its first waiter and ends when the last one leaves.

        :param conn_id: the registry's connection.
        :param what: equal for those who look for the same.
        :param look: how to look for it.
        :param rhythm: how often.
        """
        key = (conn_id, what, rhythm)
        poll = self._polls.get(key)
        if poll is None or poll.is_over:
            poll = self._polls[key] = Poll(key, lambda: self.look(conn_id, look))
            self.hold(conn_id)
        poll.waiters += 1
        return poll

    async def leave(self, poll: Poll) -> None:
        """Take :meth:`join` back."""
        poll.waiters -= 1
        if not poll.waiters:
            poll.end()
            if self._polls.get(poll.key) is poll:
                del self._polls[poll.key]
            await self.release(poll.key[0])

    async def look(self, conn_id: str, look: Look[T]) -> T:
        """Look at a registry by its connection's shared client. Credentials that are refused are looked up again."""
        began = time.monotonic()
        while True:
            line = self._lines.setdefault(conn_id, _Line(conn_id))
            if line.is_old and not line.is_in_renewal:
                line = await self._renewed(line)
            try:
                return await line.use(look)
            except Unauthorized:
                await self._replace(line, _Line(conn_id))
                if line.opened_at is None or line.opened_at >= began:
                    raise

    async def _renewed(self, old: _Line) -> _Line:
        """Return a line with the connection as it is now; the old one where that cannot be read."""
        old.is_in_renewal = True
        new = _Line(old.conn_id)
        try:
            await new.open()
        except RegistryUnavailable as error:
            log.warning("%s; what was known of it serves on", error)
            return old
        else:
            return await self._replace(old, new)
        finally:
            old.is_in_renewal = False
            if self._lines.get(old.conn_id) is not new:
                await new.end()

    async def _replace(self, old: _Line, new: _Line) -> _Line:
        if self._lines.get(old.conn_id) is old:
            self._lines[old.conn_id] = new
            await old.end()
        return self._lines.get(old.conn_id, new)


def pause_after(failures: int, interval: float) -> float:
    """Return the seconds to wait before the next look, after so many failures in a row."""
    pause = min(interval * 2.0 ** min(failures, 16), max(interval, LONGEST_PAUSE))
    return pause * random.uniform(1.0, 1.1)  # noqa: S311  # what begins together shall not go on asking together


def shared() -> Polls:
    """Return what the waiters of the running event loop share."""
    return _POLLS.setdefault(asyncio.get_running_loop(), Polls())


_POLLS: WeakKeyDictionary[asyncio.AbstractEventLoop, Polls] = WeakKeyDictionary()


def _start(work: Any) -> asyncio.Task[None]:
    # In a context of its own: what it logs belongs to the triggerer, not to the task that happens to be the first.
    return asyncio.create_task(work, context=contextvars.Context())

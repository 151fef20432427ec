"""Threads for what blocks on behalf of an event loop, apart from those that everything else on that loop shares."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

log = logging.getLogger("modelsync")

T = TypeVar("T")

_PATIENCE = 30.0  # seconds without a free thread, after which it is said that calls hang


class Threads:
    """Runs blocking calls for one event loop, a few at a time.

    A call that hangs, on a mount that has gone for example, keeps its thread and its place. So it holds up the calls
    made here, and nothing else: no other user of the loop's own threads, and no process that wants to end.

    :param size: calls at a time.
    """

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._places = asyncio.Semaphore(size)

    async def run(self, fn: Callable[[], T]) -> T:
        """Call ``fn`` in a thread and return what it returns. A call whose caller is cancelled goes on by itself."""
        await self._place()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def settle(report: Callable[[Any], None], value: Any) -> None:
            self._places.release()
            if not outcome.done():
                report(value)

        def work() -> None:
            try:
                report, value = outcome.set_result, context.run(fn)
            except BaseException as error:  # whatever it is, it belongs to the caller
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(settle, outcome.set_exception, error)
            else:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(settle, report, value)

        context = contextvars.copy_context()
        try:
            threading.Thread(target=work, name="modelsync", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return await outcome

    @classmethod
    def of(cls, conn_id: str, address: str | None = None) -> Threads:
        """Return those of the running event loop for a connection.

        :param conn_id: the connection: these read what it names, files on whatever mount.
        :param address: these look at what lies there.
        """
        own = _OF_LOOPS.setdefault(asyncio.get_running_loop(), {})
        return own.setdefault((conn_id, address), cls())

    async def _place(self) -> None:
        is_free = False
        while not is_free:
            try:
                async with asyncio.timeout(_PATIENCE):
                    is_free = await self._places.acquire()
            except TimeoutError:
                log.warning("%d calls have not returned for %.0f s; the next one waits", self._size, _PATIENCE)


_OF_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], Threads]] = WeakKeyDictionary()

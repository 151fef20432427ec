"""An event loop for sync code, for what only asynchronous libraries offer."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import generation
from airflow_provider_modelsync.core.flow.parallel import start_thread

T = TypeVar("T")

_TICK = 0.1  # seconds between two looks at the cancel token


class LoopThread:
    """An event loop in a daemon thread, which is started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = generation()
        self._end: asyncio.Event

    def run(self, coroutine: Coroutine[Any, Any, T], cancel: CancelToken) -> T:
        """Run a coroutine to its end and return what it returns; it is cancelled when the caller gives up.

        :param cancel: ends the wait.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            while not concurrent.futures.wait([future], _TICK).done:
                cancel.check()
            return future.result()
        finally:
            future.cancel()  # changes nothing once it is done

    def close(self) -> None:
        """Have what still runs on the loop cancelled, and the thread end soon; return at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._generation != generation():
            started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
            self._end = asyncio.Event()
            main = self._main(started, self._end)
            try:
                start_thread(partial(asyncio.run, main), "modelsync-loop")
            except BaseException:
                main.close()
                raise
            self._loop, self._generation = started.result(), generation()
        return self._loop

    @staticmethod
    async def _main(started: concurrent.futures.Future[asyncio.AbstractEventLoop], end: asyncio.Event) -> None:
        started.set_result(asyncio.get_running_loop())
        await end.wait()  # asyncio.run then cancels whatever is left

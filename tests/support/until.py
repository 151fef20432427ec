"""Waiting for other processes and threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import httpx

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = 600) -> T:
    """Wait for something that is about to happen, and return what the condition gives then."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TimeoutException):  # a busy machine
            if found := condition():
                return found
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


async def until_async(condition: Callable[[], T], what: str) -> T:
    """As :func:`until`, while the event loop goes on."""
    return await asyncio.to_thread(until, condition, what)

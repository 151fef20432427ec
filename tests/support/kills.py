"""Kills, and how soon work ends by them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_modelsync.core.flow.cancel import CancelToken

LIMIT = 4.0  # seconds within which a kill ends work


@contextmanager
def killed(token: CancelToken, after: float = 0.1) -> Iterator[None]:
    """Cancel a token while the block runs, which must end within the limit from then.

    :param after: how many seconds later.
    """
    at: list[float] = []

    def cancel() -> None:
        at.append(time.monotonic())
        token.cancel()

    timer = threading.Timer(after, cancel)
    timer.start()
    try:
        yield
    finally:
        ended = time.monotonic()
        timer.cancel()
        timer.join()
    assert at, "the work has ended before it was killed"
    assert ended - at[0] < LIMIT

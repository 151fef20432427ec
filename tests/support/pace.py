"""The time of transfers, which passes only when a test says so: what it finds does not depend on the machine's pace."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from airflow_provider_modelsync.core.transfer import mover, watchdog
from airflow_provider_modelsync.core.transfer.watchdog import Line, Watch
from tests.support.until import until


class Watched(Watch):
    """A transfer under observation that tells how far it is.

    :param clock: what time it is.
    """

    def __init__(self, clock: Clock, *arguments: Any, **options: Any) -> None:
        self.count = 0  # bytes in both directions
        self.sent = 0  # bytes of the request
        self.looks = 0
        self.is_sent = threading.Event()
        self._has_ended = False
        super().__init__(*arguments, clock=clock, **options)
        clock.watches.append(self)

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be looked at any more: it has ended, or was broken off."""
        return self._has_ended or self._reason is not None

    def use(self, line: Line | None) -> None:
        super().use(line)
        self._has_ended = line is None

    def moved(self, count: int) -> None:
        super().moved(count)
        self.count += count

    def expect_answer(self) -> None:
        super().expect_answer()
        self.sent = self.count
        self.is_sent.set()

    def look(self) -> None:
        super().look()
        self.looks += 1


class Clock:
    """The clock of all transfers of movers.

    :ivar watches: the transfers, in the order in which they have begun.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watches: list[Watched] = []
        self._now = 0.0
        monkeypatch.setattr(mover, "Watch", partial(Watched, self))
        monkeypatch.setattr(watchdog, "_TICK", 0.005)

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float, *, received: int = 0, is_sent: bool = False) -> None:
        """Let time pass, and the watchdog look at the transfer that has begun last.

        :param received: how many bytes of the answer its client must have got before.
        :param is_sent: whether its client must have sent the request before.
        """
        watch = self.watches[-1]
        if is_sent or received:
            assert watch.is_sent.wait(60)
        until(lambda: watch.is_over or watch.count - watch.sent >= received, "the bytes to come")
        self._now += seconds
        looks = watch.looks + 2  # one may have begun before
        until(lambda: watch.is_over or watch.looks >= looks, "the watchdog to look")

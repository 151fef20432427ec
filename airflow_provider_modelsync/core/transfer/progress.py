"""Counting bytes as they move, and saying so now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.text import span

T = TypeVar("T")

# Marks the lines of the log that say how something ended: who prints that anyway leaves them out.
OUTCOME = {"is_outcome": True}

_EVERY_SECONDS = 10.0
_EVERY_SHARE = 0.1
_AT_LEAST_SECONDS = 1.0  # a fast transfer would otherwise say ten lines in a blink


@dataclass(frozen=True, slots=True)
class Report:
    """How far a transfer is.

    :param done: bytes moved.
    :param total: bytes to move; 0 when that is not known.
    :param seconds: since the start.
    :param passed_over: bytes among those done that did not have to move.
    """

    done: int
    total: int
    seconds: float
    passed_over: int = 0

    def __str__(self) -> str:
        rate = (self.done - self.passed_over) / self.seconds if self.seconds > 0 else 0
        share = f" of {readable(self.total)} ({100 * self.done // self.total} %)" if self.total else ""
        there = f", {readable(self.passed_over)} of it was there already" if self.passed_over else ""
        return f"{readable(self.done)}{share}, {readable(rate)}/s{there}"


class Tally:
    """What one operation has done so far, over all its transfers; to be read while they run."""

    def __init__(self) -> None:
        self.done = 0  # bytes, those passed over included
        self.total = 0  # bytes, as far as they are known
        self.passed_over = 0  # bytes that did not have to move
        self.parts_resent = 0
        self.is_lost = False  # whether a next try does all of it again
        self._lock = Lock()

    def add(self, *, done: int = 0, total: int = 0, passed_over: int = 0, parts_resent: int = 0) -> None:
        """Count what has happened; safe from many threads."""
        with self._lock:
            self.done += done
            self.total += total
            self.passed_over += passed_over
            self.parts_resent += parts_resent


class Progress:
    """Adds up bytes from many threads and reports at most every 10 s or 10 %.

    :param total: bytes to move; 0 when that is not known.
    :param emit: called with a :class:`Report`, from whichever thread added the bytes.
    :param clock: seconds, monotonic.
    :param tally: of the operation that this transfer is part of.
    """

    def __init__(
        self,
        total: int,
        emit: Callable[[Report], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tally: Tally | None = None,
    ) -> None:
        self.total = total
        self.done = 0
        self.passed_over = 0
        self._emit = emit
        self._clock = clock
        self._lock = Lock()
        self._start = self._last_time = clock()
        self._last_done = 0
        self._tally = tally or Tally()
        self._tally.add(total=total)

    def add(self, count: int) -> None:
        """Count bytes that have moved."""
        self._tally.add(done=count)
        with self._lock:
            self.done += count
            if self._emit is None or not self._is_due():
                return
            self._last_time, self._last_done = self._clock(), self.done
            report = self._report()
        self._emit(report)

    def pass_over(self, count: int) -> None:
        """Count bytes that need not move, as they are where they belong already."""
        self._tally.add(passed_over=count)
        with self._lock:
            self.passed_over += count
        self.add(count)

    def resend(self) -> None:
        """Count a part that is moved once more."""
        self._tally.add(parts_resent=1)

    def finish(self) -> None:
        """Report the end."""
        if self._emit is not None:
            self._emit(self._report())

    def _is_due(self) -> bool:
        waited = self._clock() - self._last_time
        if not self.total:
            return waited >= _EVERY_SECONDS
        stepped = self.done - self._last_done >= _EVERY_SHARE * self.total
        return self.done < self.total and (waited >= _EVERY_SECONDS or (stepped and waited >= _AT_LEAST_SECONDS))

    def _report(self) -> Report:
        return Report(self.done, self.total, self._clock() - self._start, self.passed_over)


def bar_text(tally: Tally, seconds: float) -> str:
    """Return how far an operation is, in one line: share, bytes in one unit, speed of what moves, time that is left.

    :param seconds: since the start.
    """
    done, total, moved = tally.done, tally.total, tally.done - tally.passed_over
    rate = moved / seconds if seconds > 0 else 0.0
    if not total:
        return f"{readable(done)}, {readable(rate)}/s"
    whole = readable(total)
    unit = _UNITS.index(whole.rpartition(" ")[2])
    part = f"{done / 1024**unit:.{1 if unit else 0}f}"
    left = f", {span((total - done) / rate)} left" if rate > 0 and total > done else ""
    return f"{100 * done // total:3} % {part} of {whole}, {readable(rate)}/s{left}"


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def readable(count: float) -> str:
    """Return a number of bytes as people read it, e.g. ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

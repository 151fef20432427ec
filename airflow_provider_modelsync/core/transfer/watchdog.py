"""Breaking off transfers that stand still or are no longer wanted, whatever system call they are stuck in.

A per-read timeout notices neither a server that drips a byte now and then nor a cancelled task. Here one thread
looks at all transfers of a mover ten times a second, and shuts down the socket of one that has to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError, TransferStalled
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import start_thread

_TICK = 0.1  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Pace:
    """What counts as moving.

    :param min_bytes: fewer than these in ``window_seconds`` are a standstill.
    :param window_seconds: see there.
    :param answer_seconds: how long the server may think once it has the whole request.
    :param total_seconds: how long all of it may take, however much moves; ``None`` for as long as it moves.
    :param rate_seconds: over how long the slowest rate is measured that a connection allows.
    """

    min_bytes: int = 1024
    window_seconds: float = 60.0
    answer_seconds: float = 60.0
    total_seconds: float | None = None
    rate_seconds: float = 300.0


class Line:
    """A second handle on a connection's socket, for another thread.

    The first may be wrapped by TLS or closed at any time, and its number be given to another file. This one is closed
    when nobody refers to it any more: an answer can outlive its connection object.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock.dup()
        self._lock = Lock()

    def cut(self) -> None:
        """End the connection; whoever waits for it wakes up."""
        with self._lock, contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def unacknowledged(self) -> int:
        """Return the bytes that were sent but have not arrived: the kernel takes megabytes that go nowhere."""
        with self._lock, contextlib.suppress(OSError):
            waiting: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))[0]
            return waiting
        return 0

    def __del__(self) -> None:
        self._sock.close()


class Watch:
    """One transfer under observation. The thread that transfers tells it what moves.

    :param pace: what counts as moving.
    :param cancel: ends the transfer.
    :param min_rate: bytes per second; fewer, for as long as the pace says, are as good as a standstill.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        pace: Pace,
        cancel: CancelToken,
        *,
        min_rate: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._min_rate = min_rate
        self._pace = pace
        self._cancel = cancel
        self._clock = clock
        self._lock = Lock()
        self._moved = 0
        self._line: Line | None = None
        self._patience = pace.window_seconds
        self._end = math.inf if pace.total_seconds is None else clock() + pace.total_seconds
        self._mark = (clock(), 0)  # when enough had moved last, and how much that was
        self._rate_mark: tuple[float, int] | None = self._mark  # since when the rate is measured
        self._paused: float | None = None
        self._reason: type[ModelSyncError] | None = None
        self._why = ""

    def use(self, line: Line | None) -> None:
        """Say which connection serves the transfer from now on; ``None`` for none yet, or none any more."""
        with self._lock:
            self._line = line
            if line and self._reason:
                line.cut()

    def moved(self, count: int) -> None:
        """Count bytes that were handed to the kernel or came from it."""
        self._moved += count

    def expect_answer(self) -> None:
        """Say that the request is sent."""
        self._wait_for(self._pace.answer_seconds)
        self._rate_mark = None  # who thinks sends nothing

    def expect_bytes(self) -> None:
        """Say that the answer has begun."""
        self._wait_for(self._pace.window_seconds)
        self._rate_mark = self._mark

    def pause(self) -> None:
        """Say that the network is not waited for: the time until :meth:`resume` does not count."""
        with self._lock:
            self._paused = self._clock()

    def resume(self) -> None:
        """Say that the network is waited for again."""
        with self._lock:
            if self._paused is not None:
                since, progress = self._mark
                pause = self._clock() - self._paused
                self._mark = (since + pause, progress)
                if self._rate_mark:
                    self._rate_mark = (self._rate_mark[0] + pause, self._rate_mark[1])
                self._paused = None

    def check(self, doing: str) -> None:
        """Raise what the transfer was broken off for.

        :param doing: what was being done, for the message.
        """
        if self._reason:
            raise self._reason(f"{doing}: {self._why}") from None

    def look(self) -> None:
        """Break the transfer off if need be. Called by the watchdog's thread."""
        with self._lock:
            if self._reason is None:
                self._judge()
            if self._reason and self._line:
                self._line.cut()

    def _wait_for(self, seconds: float) -> None:
        with self._lock:
            self._mark = (self._clock(), self._mark[1])
            self._patience = seconds

    def _judge(self) -> None:
        now, progress = self._clock(), self._moved - (self._line.unacknowledged() if self._line else 0)
        since, before = self._mark
        if self._cancel.cancelled:
            self._why, self._reason = "the work was told to stop", Cancelled
        elif now >= self._end:
            self._why, self._reason = f"not done after {self._pace.total_seconds:g} s", TransferStalled
        elif progress - before >= self._pace.min_bytes:
            self._mark = (now, progress)
        elif self._paused is None and now - since >= self._patience:
            few, span = f"fewer than {self._pace.min_bytes} bytes", f"{self._patience:g} s"
            self._why, self._reason = f"{few} moved in {span}, after {max(progress, 0)} bytes", TransferStalled
        if self._rate_mark and self._paused is None and now - self._rate_mark[0] >= self._pace.rate_seconds:
            seconds, moved = now - self._rate_mark[0], progress - self._rate_mark[1]
            self._rate_mark = (now, progress)
            if not self._reason and moved < self._min_rate * seconds:
                self._why = (
                    f"{max(moved, 0)} bytes moved in {seconds:.0f} s, slower than the {self._min_rate / 1024:g} KiB/s "
                    "that the connection's min_rate_kib_s allows"
                )
                self._reason = TransferStalled


class Watchdog:
    """Looks at watches from a thread of its own, which lives as long as there are any."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._lock = Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, watch: Watch) -> Iterator[Watch]:
        """Observe a transfer while the block runs."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # After a fork there may be some left that are the parent's, which still uses their connections.
                self._watches = {watch}
                self._thread = start_thread(self._run, "modelsync-watchdog")
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)
            watch.use(None)

    def _run(self) -> None:
        while True:
            with self._lock:
                watches = tuple(self._watches)
                if not watches:
                    self._thread = None
                    return
            for watch in watches:
                watch.look()
            time.sleep(_TICK)

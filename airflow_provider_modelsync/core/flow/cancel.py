"""Telling running work to stop."""

from __future__ import annotations

import time

from airflow_provider_modelsync.core.errors import Cancelled

_TICK = 0.1  # seconds between two looks at the flag: far below the 4 s that a kill may take
_LEAST_GRACE = 0.5  # seconds for cleaning up, however late it begins


class CancelToken:
    """A flag that work looks at often.

    It is a plain attribute rather than a :class:`threading.Event`, whose lock may be held by the very
    thread that a signal handler interrupts in order to cancel.

    :param parent: a token whose cancellation counts for this one, too.
    """

    # Seconds that stuck threads get once the work is over for everyone: a kill must end in 4 s.
    patience = 2.0

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._parent = parent
        self._cancelled = False
        self._since: float | None = None

    def cancel(self) -> None:
        """Ask for the end. Safe from signal handlers and any thread, any number of times."""
        if not self._cancelled:
            self._since = time.monotonic()
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether this token or one above it was cancelled."""
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    @property
    def since(self) -> float | None:
        """When the end was asked for first, in seconds of the monotonic clock, as far as that is known."""
        times = (self._since, self._parent.since if self._parent else None)
        return min((one for one in times if one is not None), default=None)

    def check(self) -> None:
        """Raise :class:`Cancelled` when the end was asked for."""
        if self.cancelled:
            raise Cancelled("the work was told to stop")

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake and raise :class:`Cancelled` when the end is asked for."""
        end = time.monotonic() + seconds
        while True:
            self.check()
            rest = end - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(_TICK, rest))


class Grace(CancelToken):
    """A token for cleaning up after a cancellation: it follows another one's some seconds later.

    What is waited for before anything is cleaned up takes most of these seconds, so that a kill ends all of it in time.

    :param other: the token of the work that is cleaned up after; it may be cancelled before or meanwhile.
    :param seconds: how much later.
    """

    patience = 0.5  # on top of its own seconds

    def __init__(self, other: CancelToken, seconds: float) -> None:
        super().__init__()
        self._other = other
        self._seconds = seconds
        self._end: float | None = None

    def begin(self) -> None:
        """Have the seconds run from the cancellation, or else from now, unless they do already."""
        if self._end is None:
            now, since = time.monotonic(), self._other.since
            self._end = now + self._seconds if since is None else max(since + self._seconds, now + _LEAST_GRACE)

    @property
    def cancelled(self) -> bool:
        if self._other.cancelled:
            self.begin()
        return self._cancelled or (self._end is not None and time.monotonic() > self._end)

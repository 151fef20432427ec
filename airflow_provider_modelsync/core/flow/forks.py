"""What of a process does not outlive a fork: its threads, the locks that these held, and its share in sockets.

Airflow forks a process for each task. What was made before must neither wait in the child for a thread that is not
there, nor read from a connection that the parent reads from, too.
"""

from __future__ import annotations

import contextlib
import os
import threading


class _Forks:
    def __init__(self) -> None:
        self.count = 0
        self.renewing = threading.Lock()

    def begin_anew(self) -> None:
        self.count += 1
        self.renewing = threading.Lock()


_forks = _Forks()
os.register_at_fork(after_in_child=_forks.begin_anew)


def generation() -> int:
    """Return a number that is another one in a process that was forked off."""
    return _forks.count


class Lock:
    """A lock that nobody holds after a fork."""

    __slots__ = ("_generation", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = generation()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; return whether it is ours now."""
        if self._generation != generation():
            with _forks.renewing:
                if self._generation != generation():
                    self._lock = threading.Lock()
                    self._generation = generation()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Give the lock back."""
        with contextlib.suppress(RuntimeError):  # whoever forked while they held it holds nothing in the child
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

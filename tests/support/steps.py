"""Work that is killed, or met by another's, at every of its steps: seconds for each test that does so.

A run takes every third step, from a start that its seed decides, so that three runs take them all. With
``MODELSYNC_EVERY_STEP`` set each run does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


def some_of(steps: Iterable[T]) -> Iterator[T]:
    """Yield the steps that this run takes."""
    stride = 1 if os.environ.get("MODELSYNC_EVERY_STEP") else 3
    return islice(steps, random.randrange(stride), None, stride)


class Victim:
    """A process that does some work once it is let go, and is killed meanwhile, by itself or by whom it asks.

    :param work: what it does.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        ready, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)
            os.read(ready, 1)  # returns once the parent has closed its end
            try:
                work()
            except BaseException as error:
                print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(ready)

    def kill(self) -> None:
        """Kill it; it must be waiting for something, so that it is still there."""
        os.kill(self._pid, signal.SIGKILL)

    def run(self) -> bool:
        """Let it go and wait for its end; return whether it was killed."""
        os.close(self._go)
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
        return False

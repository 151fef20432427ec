"""Work that is killed, or met by another's, at every of its steps: seconds for each test that does so.

A run takes every third step, from a start that its seed decides, so that three runs take them all. With
``MODELSYNC_EVERY_STEP`` set each run does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def some_of(steps: Iterable[T]) -> Iterator[T]:
    """Yield the steps that this run takes."""
    stride = 1 if os.environ.get("MODELSYNC_EVERY_STEP") else 3
    return islice(steps, random.randrange(stride), None, stride)

"""What the garbage collector has to look at."""

from __future__ import annotations

import gc
from collections.abc import Generator
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def containers_of(value: Any) -> int:
    """How many objects that the collector knows belong to a value alone."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and gc.is_tracked(one) and not isinstance(one, (type, Enum, ModuleType)):
            seen.add(id(one))
            waiting += gc.get_referents(one)
    return len(seen)


def _alive(kind: type) -> int:
    return sum(type(one) is kind for one in gc.get_objects())


def most_alive(kind: type, flow: Generator[Any, Any, T], seen: list[int]) -> Generator[Any, Any, T]:
    """Return a flow that notes at each of its steps how many more objects of a type there are than at first."""
    gc.collect()  # what tests before have left
    before = _alive(kind)
    try:
        step = next(flow)
        while True:
            seen.append(_alive(kind) - before)
            step = flow.send((yield step))
    except StopIteration as end:
        result: T = end.value
        return result

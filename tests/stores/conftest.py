"""Runs every test on every storage: on moto with all other tests, on the others where they are started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.core.registries.modelstore.buckets import PART, BucketStore
from tests.stores.storages import STORAGES, Opened, Storage

Running = Callable[[str], Opened]


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """Starts a storage at its first use; what it returns makes a place in it."""
    with ExitStack() as stack:
        started: dict[str, Opened] = {}

        def start(name: str) -> Opened:
            if name not in started:
                started[name] = stack.enter_context(STORAGES[name].running())
            return started[name]

        yield start


@pytest.fixture(params=[pytest.param(name, marks=storage.marks) for name, storage in STORAGES.items()])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def storage(name: str) -> Storage:
    return STORAGES[name]


@pytest.fixture
def part(small_parts: None) -> int:
    """Bytes of a part: few, so that the tests' files are small."""
    return PART


@pytest.fixture
def store(name: str, part: int, running: Running, request: pytest.FixtureRequest) -> Iterator[BucketStore]:
    if STORAGES[name].is_here:
        request.getfixturevalue("no_waiting")
    with running(name)() as store:
        yield store

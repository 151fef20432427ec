"""Runs every test on every storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from airflow_provider_modelsync.core.registries.modelstore import buckets
from airflow_provider_modelsync.core.transfer import plan
from tests.stores.storages import STORAGES, Place, RealStore, Storage, store_in

Running = Callable[[str], Callable[[], Place]]


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """Starts a storage at its first use; what it returns makes a place in it."""
    with ExitStack() as stack:
        started: dict[str, Callable[[], Place]] = {}

        def start(name: str) -> Callable[[], Place]:
            if name not in started:
                started[name] = stack.enter_context(STORAGES[name].running())
            return started[name]

        yield start


@pytest.fixture(
    params=[pytest.param(name, marks=getattr(pytest.mark, storage.mark)) for name, storage in STORAGES.items()]
)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def storage(name: str) -> Storage:
    return STORAGES[name]


@pytest.fixture
def part(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a part: as few as the storage takes, so that the tests' files are small."""
    monkeypatch.setattr(plan, "_MIB", storage.smallest_part)
    monkeypatch.setattr(buckets, "_WORTH_COPYING", 1)
    return 5 * storage.smallest_part


@pytest.fixture
def store(name: str, part: int, running: Running) -> Iterator[RealStore]:
    with store_in(running(name)(), part_size_mib=5) as store:
        yield store

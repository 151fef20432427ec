"""Runs every test against every registry that has the capabilities which the test is marked to need."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.registries.base import Capability
from tests.conformance.bench import Bench
from tests.conformance.registries import PROVIDERS, RegistryUnderTest
from tests.docs.faults import COLUMNS

ONE_OF_EACH = {column.providers[0] for column in COLUMNS.values()}
AT_HAND = "modelstore"  # what is asked each time; `make test-registries` asks the others
RECORDED = {Capability.LABELS, Capability.ALIASES}  # what no byte of a model goes with
# Both drive the same flows, and each has tests of its own: here they take turns.
DRIVERS = cycle(("sync", "async"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): only for registries that have them")
    config.addinivalue_line("markers", "once_each: for one provider of each registry and storage")
    config.addinivalue_line("markers", "networked: only for registries behind a network")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "missing" in metafunc.fixturenames:
        cases = [
            pytest.param(name, capability, id=f"{name}-{capability.name.lower()}", marks=_marks(name))
            for name, provider in PROVIDERS.items()
            for capability in Capability
            if capability not in provider.registry_type.capabilities
            and not (capability is Capability.CHOOSE_VERSION and provider.registry_type.takes_tags)
        ]
        metafunc.parametrize(("provider", "missing"), cases, indirect=["provider"])
    elif "provider" in metafunc.fixturenames:
        needed = {needed for mark in metafunc.definition.iter_markers("needs") for needed in mark.args}
        names = [
            pytest.param(name, marks=_marks(name))
            for name, known in PROVIDERS.items()
            if needed <= known.registry_type.capabilities
            and (name in ONE_OF_EACH or not any(metafunc.definition.iter_markers("once_each")))
            and (name != "modelstore" or not any(metafunc.definition.iter_markers("networked")))
            and (not known.differs_by_bytes or (needed and not needed & RECORDED))
        ]
        if "run" in metafunc.fixturenames:
            driven = [pytest.param(*name.values, next(DRIVERS), marks=name.marks) for name in names]
            metafunc.parametrize(("provider", "run"), driven, indirect=True)
        else:
            metafunc.parametrize("provider", names, indirect=True)


def _marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    return (*PROVIDERS[name].marks, *(() if name == AT_HAND else (pytest.mark.registries,)))


@pytest.fixture
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryUnderTest]:
    """The registry under test, fresh and empty."""
    system = tmp_path / "system"
    system.mkdir()
    with PROVIDERS[request.param].open(system) as under_test:
        yield under_test


@pytest.fixture
def bench(provider: RegistryUnderTest, tmp_path: Path) -> Bench:
    """A worker that uses it."""
    return _bench(provider, tmp_path / "worker")


@pytest.fixture
def other_bench(provider: RegistryUnderTest, tmp_path: Path) -> Bench:
    """Another worker that uses the same system."""
    return _bench(provider, tmp_path / "other-worker")


def _bench(under_test: RegistryUnderTest, scratch: Path) -> Bench:
    scratch.mkdir()
    return Bench(under_test, scratch)


@pytest.fixture
def run(request: pytest.FixtureRequest, bench: Bench) -> Any:
    """Runs a flow, by one driver and by the other."""
    return bench.run if request.param == "sync" else bench.run_async

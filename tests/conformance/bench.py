"""A registry's verbs in short, for the conformance tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from airflow_provider_modelsync.core.archive.digest import Source
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.conformance.registries import RegistryUnderTest

T = TypeVar("T")
MakeFlow = Callable[[Registry], Flow[T]]


def needs(*capabilities: Capability) -> pytest.MarkDecorator:
    """Run a test against the registries that have capabilities; that others refuse is tested once for all."""
    return pytest.mark.needs(*capabilities)


class Bench:
    """One worker's view of a registry under test.

    :param under_test: the registry.
    :param scratch: a directory for sources and targets.
    """

    def __init__(self, under_test: RegistryUnderTest, scratch: Path) -> None:
        self.under_test = under_test
        self.scratch = scratch
        self.registry = under_test.connect()
        self._numbers = count()

    @property
    def name(self) -> str:
        return self.under_test.names[0]

    def offers(self, capability: Capability) -> bool:
        return capability in self.registry.capabilities

    def model(self, number: int = 0, name: str | None = None) -> str:
        """Return a reference to push to: with a version of one's own where one may be chosen."""
        name = name or self.name
        return f"{name}:{self.under_test.versions[number]}" if self.offers(Capability.CHOOSE_VERSION) else name

    def source(self, text: str) -> Path:
        """Return a new copy of the model that a text stands for."""
        return self.under_test.make_source(self.scratch / f"source-{next(self._numbers)}", text)

    def target(self) -> Path:
        """Return a new path to pull to, in a directory of its own."""
        parent = self.scratch / f"place-{next(self._numbers)}"
        parent.mkdir()
        return parent / "target"

    def push(
        self, source: Path | Source, model: str, *, control: Control | None = None, **options: Any
    ) -> ModelVersion:
        control = control or Control(workers=2)
        with self.under_test.driver(self.registry, control.cancel) as driver:
            options = {"options": self.under_test.push_options, **options}
            return push(self.registry, driver, source, self.registry.parse(model), control, **options)

    def pull(
        self,
        model: str,
        target: Path,
        *,
        control: Control | None = None,
        query: Query | None = None,
        **options: Any,
    ) -> PulledModel:
        control, query = control or Control(workers=2), query or Query()
        with self.under_test.driver(self.registry, control.cancel) as driver:
            ref = self.registry.parse(model)
            return pull(self.registry, driver, ref, target, control, query=query, **options)

    def publish(self, text: str, model: str, **options: Any) -> ModelVersion:
        """Bring a ready version into being, and return it as the registry shows it."""
        if self.under_test.publish is None:
            version = self.push(self.source(text), model, **options)
        else:
            ref = self.registry.parse(model)
            version = self.under_test.publish(ref.name, ref.version, self.source(text))
        self.under_test.settle()
        return self.get(version.ref)

    def run(self, make_flow: MakeFlow[T]) -> T:
        """Run a flow in this thread."""
        with self.under_test.driver(self.registry, None) as driver:
            return driver.run(make_flow(self.registry))

    def run_async(self, make_flow: MakeFlow[T]) -> T:
        """Run a flow on an event loop."""

        async def main() -> T:
            async with self.under_test.async_driver(self.registry) as driver:
                return await driver.run(make_flow(self.registry))

        return asyncio.run(main())

    def get(self, model: str, query: Query | None = None) -> ModelVersion:
        """Return a version as the registry shows it, with its digest."""
        return self.whole(self.run(lambda registry: registry.get(registry.parse(model), query or Query())))

    def whole(self, version: ModelVersion) -> ModelVersion:
        """Return a version with its digest, which some systems do not tell by themselves."""
        return self.run(lambda registry: registry.with_digest(version))

    def ready_versions(self, name: str) -> list[str]:
        versions = self.run(lambda registry: registry.list_versions(name, Query()))
        return [version.version for version in versions if version.ready]

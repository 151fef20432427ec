"""The stand-in of the Hub, and a worker that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.huggingface.registry import HuggingFaceHub, HuggingFaceHubSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.standins.huggingface import WRITE, HuggingFaceStandIn

T = TypeVar("T")

MIB = 1 << 20
NAME = "acme/fraud"
HEAD_LOOK = r"/resolve/[^/]+/\.gitattributes$"


class Worker:
    """One registry, used again and again as by a triggerer, or once as by a task."""

    def __init__(self, server: HuggingFaceStandIn, *, token: str | None = WRITE, **fields: Any) -> None:
        fields = {"host": server.url, "password": token, **fields}
        self.registry = HuggingFaceHub(HuggingFaceHubSettings.read("huggingface_default", fields))

    @contextmanager
    def driver(self, control: Control | None = None) -> Iterator[SyncDriver]:
        with driver_for(self.registry, control.cancel if control else None) as driver:
            yield driver

    def run(self, flow: Any) -> Any:
        with self.driver() as driver:
            return driver.run(flow)

    def get(self, model: str, **query: Any) -> ModelVersion:
        version: ModelVersion = self.run(self.registry.get(self.registry.parse(model), Query(**query)))
        return version

    def pull(self, model: str, target: Path, *, control: Control | None = None, **options: Any) -> PulledModel:
        control = control or Control(workers=2)
        with self.driver(control) as driver:
            ref = self.registry.parse(model)
            return pull(self.registry, driver, ref, target, control, query=Query(), **options)

    def push(self, source: Any, model: str, *, control: Control | None = None, **options: Any) -> ModelVersion:
        control = control or Control(workers=2)
        with self.driver(control) as driver:
            return push(self.registry, driver, source, self.registry.parse(model), control, **options)

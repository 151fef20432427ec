"""A BentoCloud registry in front of its stand-in, with its verbs run in place."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.bentocloud.bentos import Bentos
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.standins.bentocloud import BentoCloudStandIn, Model
from tests.standins.http_server import Request

T = TypeVar("T")

OBJECT = r"\.tar\.gz$"  # the path of a presigned request
UPLOAD, DOWNLOAD, FINISH = "/upload$", "/download$", "/finish_upload$"
# The first has the server pass all bytes on, the second a storage take and give them in one request.
STRATEGIES = ("proxy", None)


@dataclass(frozen=True)
class Cloud:
    """One connection to one stand-in.

    :param server: the stand-in.
    :param fields: of the connection, besides host and token.
    """

    server: BentoCloudStandIn
    fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def registry(self) -> BentoCloud:
        fields = {"host": self.server.url, "password": self.server.token, **self.fields}
        return BentoCloud(BentoCloudSettings.read("cloud", fields))

    def run(self, make_flow: Callable[[BentoCloud], Flow[T]]) -> T:
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    def push(
        self, source: Path, model: str = "digits:v1", *, control: Control | None = None, **more: Any
    ) -> ModelVersion:
        control = control or Control()
        with driver_for(self.registry, control.cancel) as driver:
            return push(self.registry, driver, source, self.registry.parse(model), control, **more)

    def pull(
        self,
        target: Path,
        model: str = "digits:v1",
        *,
        control: Control | None = None,
        query: str | None = None,
        **more: Any,
    ) -> PulledModel:
        control = control or Control()
        chosen = Query.parse(query)
        with driver_for(self.registry, control.cancel) as driver:
            return pull(self.registry, driver, self.registry.parse(model), target, control, query=chosen, **more)

    def get(self, model: str, query: str | None = None) -> ModelVersion:
        return self.run(lambda registry: registry.get(registry.parse(model), Query.parse(query)))

    def list_versions(self, name: str, query: str | None = None) -> list[ModelVersion]:
        return self.run(lambda registry: registry.list_versions(name, Query.parse(query)))

    def list_models(self, query: str | None = None) -> list[ModelVersion]:
        return self.run(lambda registry: registry.list_models(Query.parse(query)))

    def delete(self, model: str = "digits:v1") -> bool:
        return self.run(lambda registry: registry.delete(registry.parse(model)))

    def set_labels(self, labels: Mapping[str, str | None], model: str = "digits:v1") -> ModelVersion:
        return self.run(lambda registry: registry.set_labels(registry.parse(model), labels))

    def test(self) -> str:
        return self.run(lambda registry: registry.test())

    @property
    def record(self) -> Model:
        """What the server keeps of ``digits:v1``."""
        return self.server.model("digits", "v1")


@dataclass(frozen=True)
class BentoStore(Cloud):
    """The bentos of one stand-in."""

    @cached_property
    def registry(self) -> BentoCloud:
        fields = {"host": self.server.url, "password": self.server.token, **self.fields}
        return Bentos(BentoCloudSettings.read("cloud", fields))

    def push(
        self, source: Path, model: str = "tiny:b1", *, control: Control | None = None, **more: Any
    ) -> ModelVersion:
        return super().push(source, model, control=control, **more)


def presigned(server: BentoCloudStandIn) -> list[Request]:
    """The requests that reached the object store."""
    return [request for request in server.requests if request.origin == "store"]


def archive_of(files: Mapping[str, bytes], *, compression: str = "") -> bytes:
    """Return a tar with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def model_yaml(name: str = "digits", version: str = "v1", **more: Any) -> bytes:
    """Return a ``model.yaml`` as the vendor's client writes it; JSON is YAML."""
    import json

    facts = {"module": "", "labels": {}, "options": {}, "metadata": {}, "context": {}, "api_version": "v1"}
    return json.dumps({"name": name, "version": version, **facts, **more}).encode()

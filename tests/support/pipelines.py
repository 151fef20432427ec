"""A Wallaroo stand-in with two versions of a model, ready to be served, and a registry in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Deployment, Predictions
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import predict
from airflow_provider_modelsync.core.verbs.drive import driver_for
from tests.standins.wallaroo import ModelVersion, WallarooStandIn

T = TypeVar("T")

CONNECTION = "wallaroo_default"
WORKSPACE = "fraud-team"
CANARY = "canary-4f1c0de5"
API = "/v1/api"
STATUS, CREATE, DEPLOY, UNDEPLOY = (
    "/get_deployment$",
    "/pipelines/create$",
    "/pipelines/deploy$",
    "/pipelines/undeploy$",
)
INFER = "/pipelines/infer/"


@dataclass
class Instance:
    """One connection to one stand-in.

    :param server: the stand-in.
    :param old: a version of the model ``fraud``.
    :param new: the one after it.
    :param clock: seconds, as the registry sees them.
    """

    server: WallarooStandIn
    workspace: int
    old: ModelVersion
    new: ModelVersion
    clock: list[float] = field(default_factory=lambda: [0.0])

    @property
    def fields(self) -> dict[str, Any]:
        """The connection's."""
        server = self.server
        extra = {"workspace": WORKSPACE}
        return {"host": server.url, "login": server.username, "password": server.password, "extra": extra}

    @cached_property
    def registry(self) -> Wallaroo:
        fields = self.fields
        registry = Wallaroo(WallarooSettings.read(CONNECTION, {**fields, **fields["extra"]}))
        registry._pipelines._clock = lambda: self.clock[0]
        return registry

    def run(self, make_flow: Callable[[Wallaroo], Flow[T]]) -> T:
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    def deploy(
        self, version: ModelVersion | str | None = None, config: Mapping[str, Any] | None = None, name: str = "demo"
    ) -> Deployment:
        model = version if isinstance(version, str) else ref(version or self.new)
        return self.run(lambda registry: registry.deploy(name, registry.parse(model), config or {}))

    def look(self, name: str = "demo") -> Deployment:
        return self.run(lambda registry: registry.deployment(name))

    def undeploy(self, name: str = "demo") -> Deployment:
        return self.run(lambda registry: registry.undeploy(name))

    def serve(self, version: ModelVersion | None = None) -> None:
        """Have a version served, and wait for it."""
        self.deploy(version)
        while not self.look().ready:
            pass

    def predict(
        self, inputs: Any, output: Path | None = None, *, control: Control | None = None, **options: Any
    ) -> Predictions:
        control = control or Control()
        with driver_for(self.registry, control.cancel) as driver:
            return predict.predict(self.registry, driver, "demo", inputs, control, output=output, options=options)

    def changes(self) -> list[str]:
        """What was asked to change of pipelines, in order."""
        found = self.server.find("POST", "/pipelines/(create|deploy|undeploy)$")
        return [request.path.rpartition("/")[2] for request in found]


def ref(version: ModelVersion) -> str:
    """What the rest of the world calls a version."""
    return f"{version.model.name}:{version.uuid}"


@contextmanager
def running_instance(directory: Path, **switches: Any) -> Iterator[Instance]:
    """Start a server with two versions of ``fraud``."""
    with WallarooStandIn(directory, **switches) as server:
        workspace = server.add_workspace(WORKSPACE).id
        versions = [server.seed(workspace, "fraud", content) for content in (b"old", b"new")]
        yield Instance(server, workspace, *versions)

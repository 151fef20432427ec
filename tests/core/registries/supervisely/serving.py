"""A Supervisely registry in front of its stand-ins, with its verbs run in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Deployment, ModelVersion, Predictions, PulledModel, Query
from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely, SuperviselySettings
from airflow_provider_modelsync.core.registries.supervisely.session import Session
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import predict
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp

T = TypeVar("T")

UPLOAD, DOWNLOAD, LIST = r"/file-storage\.upload$", r"/file-storage\.download$", r"/file-storage\.list$"
DIRECT = r"/tasks\.request\.direct$"
START, PROGRESS, POP = "inference_batch_async$", "get_inference_progress$", "pop_inference_results$"
STOP, CLEAR = "stop_inference$", "clear_inference_request$"


@dataclass(frozen=True)
class Connection:
    """One connection.

    :param fields: what it says.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def registry(self) -> Supervisely:
        return Supervisely(SuperviselySettings.read("cv", self.fields))

    def run(self, make_flow: Callable[[Supervisely], Flow[T]]) -> T:
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    def ask(self, make_flow: Callable[[Session], Flow[T]], deployment: str | None = None) -> T:
        """Run a flow of a deployment's client."""

        def flow(registry: Supervisely) -> Flow[T]:
            session = yield from registry.session(deployment)
            return (yield from make_flow(session))

        return self.run(flow)

    def push(self, source: Path, model: str, *, control: Control | None = None, **more: Any) -> ModelVersion:
        control = control or Control(workers=2)
        with driver_for(self.registry, control.cancel) as driver:
            return push(self.registry, driver, source, self.registry.parse(model), control, **more)

    def pull(self, model: str, target: Path, *, control: Control | None = None, **more: Any) -> PulledModel:
        control = control or Control(workers=2)
        with driver_for(self.registry, control.cancel) as driver:
            ref = self.registry.parse(model)
            return pull(self.registry, driver, ref, target, control, query=Query(), **more)

    def get(self, model: str) -> ModelVersion:
        return self.run(lambda registry: registry.get(registry.parse(model)))

    def deploy(self, deployment: str | None, model: str, **config: Any) -> Deployment:
        return self.run(lambda registry: registry.deploy(deployment, registry.parse(model), config))

    def deployment(self, name: str) -> Deployment:
        return self.run(lambda registry: registry.deployment(name))

    def undeploy(self, name: str) -> Deployment:
        return self.run(lambda registry: registry.undeploy(name))

    def predict_to(
        self,
        output: Path | None,
        inputs: Any,
        *,
        deployment: str | None = None,
        control: Control | None = None,
        **options: Any,
    ) -> Predictions:
        control = control or Control()
        with driver_for(self.registry, control.cancel) as driver:
            return predict.predict(self.registry, driver, deployment, inputs, control, output=output, options=options)

    def predict(self, inputs: Any, **options: Any) -> list[dict[str, Any]]:
        """Return predictions, as a file of them would hold them."""
        made = self.predict_to(None, inputs, **options)
        found = [json.loads(line) for line in (made.content or b"").splitlines()]
        assert (made.format, made.count) == ("jsonl", len(found))
        return found

    @contextmanager
    def predicting(
        self, inputs: Any, *, deployment: str | None = None, control: Control | None = None, **options: Any
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield predictions as they are made."""
        control = control or Control()
        with driver_for(self.registry, control.cancel) as driver:
            with closing(self.registry.predictions(driver, deployment, inputs, options, control)) as found:  # type: ignore[type-var]
                yield found


def direct(app: SuperviselyApp, **more: Any) -> Connection:
    """A connection that leads to an app and nowhere else."""
    return Connection({"deployment_url": app.url, **more})


def platform(server: SuperviselyStandIn, **more: Any) -> Connection:
    """A connection to the platform."""
    return Connection(
        {
            "host": server.url,
            "password": server.token,
            "team_id": server.team_id,
            "workspace_id": server.workspace_id,
            **more,
        }
    )

"""A Pieces registry in front of its stand-in, with its flows run by either driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Fetch, ModelVersion, Patience, PulledModel, Query
from airflow_provider_modelsync.core.registries.pieces.api import PiecesSettings
from airflow_provider_modelsync.core.registries.pieces.registry import Pieces
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import async_driver_for, driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from tests.standins.http_server import Json
from tests.standins.pieces import PiecesStandIn

T = TypeVar("T")

SOON = Patience(seconds=10, poll_interval=0.05)


@dataclass(frozen=True)
class Host:
    """One connection to one stand-in.

    :param server: the stand-in.
    :param fields: of the connection; its host is that of the stand-in unless they say otherwise.
    :param is_async: flows are run on an event loop.
    """

    server: PiecesStandIn
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_async: bool = False

    @cached_property
    def registry(self) -> Pieces:
        return Pieces(PiecesSettings.read("host", {"host": self.server.url, **self.fields}))

    def run(self, make_flow: Callable[[Pieces], Flow[T]]) -> T:
        if self.is_async:
            return asyncio.run(self._arun(make_flow))
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    async def _arun(self, make_flow: Callable[[Pieces], Flow[T]]) -> T:
        async with async_driver_for(self.registry) as driver:
            return await driver.run(make_flow(self.registry))

    def fetch(self, model: str = "Phi 2", patience: Patience = SOON) -> ModelVersion:
        return self.run(lambda pieces: pieces.fetch(pieces.parse(model), Query(), patience, lambda _: None))

    def follow(self, fetch: Fetch, patience: Patience = SOON) -> ModelVersion:
        return self.run(lambda pieces: pieces.finish_fetch(fetch, patience))

    def start(self, model: str = "Phi 2") -> Fetch:
        return self.run(lambda pieces: pieces.start_fetch(pieces.parse(model), Query(), lambda _: None))

    def pull(self, model: str = "Phi 2", *, control: Control | None = None, patience: Patience = SOON) -> PulledModel:
        """Pull as a worker does."""
        control = control or Control()
        with driver_for(self.registry, control.cancel) as driver:
            ref = self.registry.parse(model)
            return pull(self.registry, driver, ref, None, control, query=Query(), patience=patience)

    def get(self, model: str) -> ModelVersion:
        return self.run(lambda pieces: pieces.get(pieces.parse(model)))

    def record(self, unique: str = "phi-2") -> Json:
        """What the server keeps of a model."""
        return next(record for record in self.server.models.values() if record["unique"] == unique)

    def calls(self) -> list[tuple[str, str]]:
        """The requests that change something, their paths without the model."""
        posts = [request.path for request in self.server.requests if request.method == "POST"]
        return [("POST", "/".join(path.split("/")[3:]) or path) for path in posts]

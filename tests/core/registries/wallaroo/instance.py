"""A Wallaroo registry in front of its stand-in, with its verbs run in place."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.push import push
from tests.standins.wallaroo import ModelVersion as Stored
from tests.standins.wallaroo import WallarooStandIn

T = TypeVar("T")

UPLOAD = "/models/upload_and_convert$"
TOKEN = "/openid-connect/token$"
VERSION = "/models/get_version_by_id$"
LISTING = "/models/list_versions_for_model$"
WORKSPACE = "digits-team"
NAME = "digits"
ONNX = {"framework": "onnx"}
SCHEMA = base64.b64encode(b"\xff\xff\xff\xff" + bytes(60)).decode()
SCHEMAS = {"input_schema": SCHEMA, "output_schema": SCHEMA}


@dataclass(frozen=True)
class Instance:
    """One connection to one stand-in.

    :param server: the stand-in.
    :param fields: of the connection, besides host, user, password and workspace.
    """

    server: WallarooStandIn
    fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def registry(self) -> Wallaroo:
        fields = {
            "host": self.server.url,
            "login": self.server.username,
            "password": self.server.password,
            "workspace": WORKSPACE,
            "create_workspace": True,
            **self.fields,
        }
        return Wallaroo(WallarooSettings.read("wallaroo", fields))

    def run(self, make_flow: Callable[[Wallaroo], Flow[T]]) -> T:
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    def push(
        self,
        source: Path,
        model: str = NAME,
        *,
        control: Control | None = None,
        options: Mapping[str, Any] = ONNX,
        **more: Any,
    ) -> ModelVersion:
        control = control or Control()
        ref = self.registry.parse(model)
        with driver_for(self.registry, control.cancel) as driver:
            return push(self.registry, driver, source, ref, control, options=options, **more)

    def get(self, model: str = NAME, query: str | None = None) -> ModelVersion:
        return self.run(lambda registry: registry.get(registry.parse(model), Query.parse(query)))

    def list_versions(self, name: str = NAME, query: str | None = None) -> list[ModelVersion]:
        return self.run(lambda registry: registry.list_versions(name, Query.parse(query)))

    def list_models(self, query: str | None = None) -> list[ModelVersion]:
        return self.run(lambda registry: registry.list_models(Query.parse(query)))

    def delete(self, model: str) -> bool:
        return self.run(lambda registry: registry.delete(registry.parse(model)))

    def test(self) -> str:
        return self.run(lambda registry: registry.test())

    @property
    def stored(self) -> list[Stored]:
        """What the server keeps of the model, oldest first."""
        return self.server.versions_of(NAME)

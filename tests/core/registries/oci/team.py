"""A connection to an OCI registry, with its verbs run in place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.oci.registry import OCIRegistry, OCISettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.core.stores import write_tree
from tests.standins.oci import MANIFEST, OCIStandIn, Repository

T = TypeVar("T")

FILES = {
    "README.md": b"# Digits\n",
    "config.json": b"{}",
    "model.safetensors": b"weights" * 5000,
    "sub/copy.safetensors": b"weights" * 5000,
    "sub/run.sh": b"#!/bin/sh\n",
    "empty": b"",
    "sub/__init__.py": b"",
}
BLOBS = r"/blobs/sha256:"
UPLOAD = r"/blobs/uploads/\w"


def write_model(root: Path, **more: bytes) -> Path:
    """Write a model with all that a layout has to keep: equal, empty and executable files, and an empty directory."""
    return write_tree(root, {**FILES, **more}, executable=["sub/run.sh"], directories=["cache/none"])


@dataclass(frozen=True)
class Team:
    """One connection.

    :param url: of the registry, with the path before every name.
    :param fields: of the connection besides.
    """

    url: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, server: OCIStandIn, **fields: Any) -> Team:
        """Return a connection to a stand-in, with its login where it wants one."""
        login = {} if server.quirks.auth == "none" else {"login": server.user, "password": server.password}
        return cls(f"{server.url}/team", {**login, **fields})

    @cached_property
    def registry(self) -> OCIRegistry:
        return OCIRegistry(OCISettings.read("oci", {"host": self.url, **self.fields}))

    def run(self, make_flow: Callable[[OCIRegistry], Flow[T]]) -> T:
        with driver_for(self.registry) as driver:
            return driver.run(make_flow(self.registry))

    def push(
        self, source: Path, model: str = "digits:v1", *, control: Control | None = None, **more: Any
    ) -> ModelVersion:
        control = control or Control(workers=2)
        with driver_for(self.registry, control.cancel) as driver:
            return push(self.registry, driver, source, self.registry.parse(model), control, **more)

    def pull(
        self, target: Path, model: str = "digits:v1", *, control: Control | None = None, **more: Any
    ) -> PulledModel:
        control = control or Control(workers=2)
        with driver_for(self.registry, control.cancel) as driver:
            ref = self.registry.parse(model)
            return pull(self.registry, driver, ref, target, control, query=Query(), **more)

    def get(self, model: str = "digits:v1") -> ModelVersion:
        return self.run(lambda registry: registry.get(registry.parse(model)))

    def versions(self, name: str = "digits") -> list[str]:
        return [one.version for one in self.run(lambda registry: registry.list_versions(name, Query()))]

    def models(self, text: str | None = None) -> list[str]:
        return [one.ref for one in self.run(lambda registry: registry.list_models(Query.parse(text)))]

    def delete(self, model: str = "digits:v1") -> bool:
        return self.run(lambda registry: registry.delete(registry.parse(model)))

    def label(self, model: str = "digits:v1", **labels: str | None) -> ModelVersion:
        return self.run(lambda registry: registry.set_labels(registry.parse(model), labels))

    def alias(self, alias: str, model: str = "digits:v1") -> None:
        version = self.get(model)
        self.run(lambda registry: registry.set_alias(version, alias))


def of_another_tool(
    server: OCIStandIn,
    layers: list[dict[str, Any]],
    contents: list[bytes],
    *,
    name: str = "team/foreign",
    tag: str = "v1",
    **more: Any,
) -> None:
    """Put an artifact of another tool into a stand-in."""
    repository = server.repositories.setdefault(name, Repository())
    for content in (*contents, b"{}"):
        repository.blobs[digest_of(content)] = content
    config = {"mediaType": "application/vnd.unknown.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}
    content = json.dumps(manifest).encode()
    repository.manifests[digest_of(content)] = (MANIFEST, content)
    repository.tags[tag] = digest_of(content)


def layer(
    content: bytes, path: str | None = None, kind: str = "application/octet-stream", **more: Any
) -> dict[str, Any]:
    annotations = {} if path is None else {"org.opencontainers.image.title": path}
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content), "annotations": annotations, **more}


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"

"""Bentos: what BentoCloud deploys. Only their push is offered, so that a DAG can go on from a model to a deployment.

A bento is built by the bentoml client; its ``bento.yaml`` names it, its services, and the models it was built with. The
calls are those of models, with ``bento_repositories`` in their paths; seen from bentoml 1.4.40 on the wire.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core.archive.digest import SourceTree
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, VersionConflict, VersionFailed
from airflow_provider_modelsync.core.flow import Flow, call
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, VersionStatus
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.registries.bentocloud import ROUNDS, BentoCloud
from airflow_provider_modelsync.core.registries.bentocloud_api import BUILD_AT, Time, pairs
from airflow_provider_modelsync.core.registries.bentocloud_model import read_yaml
from airflow_provider_modelsync.core.registries.bentocloud_upload import (
    ABORT_SECONDS,
    Tag,
    TagPlan,
    UploadRecord,
    replaced,
    still_there,
)
from airflow_provider_modelsync.core.transfer.checkpoint import UploadMemory
from airflow_provider_modelsync.core.transfer.plan import UploadPlan

_BENTO_YAML = "bento.yaml"
_README = "README.md"
_README_LIMIT = 3 << 20  # bytes: a request of more than 4 MiB is refused
# A record of a bento has no place for facts of a client, but labels. Their values are short.
_DIGEST_LABEL = "modelsync-digest"
_DIGEST_DIGITS = 60


class _Model(BaseModel):
    tag: str
    registry: str | None = None


class _Service(BaseModel):
    model_config = ConfigDict(extra="allow")

    models: list[_Model] | None = None


class _BentoYaml(BaseModel):
    """What a built bento says of itself."""

    name: str
    version: str
    service: str = ""
    entry_service: str = ""
    bentoml_version: str = ""
    creation_time: Time = None
    labels: dict[str, str] | None = None
    models: list[_Model] | None = None
    services: list[_Service] | None = None
    envs: list[dict[str, Any]] | None = None
    schema_: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    spec: int | None = None

    @property
    def all_models(self) -> dict[str, _Model]:
        """The models that it was built with, by tag."""
        found = [*(self.models or []), *(model for service in self.services or [] for model in service.models or [])]
        return {model.tag: model for model in found}


@dataclass(frozen=True, slots=True)
class _Bento:
    """A built bento on disk, and the record to be made of it."""

    tag: Tag
    source: SourceTree
    facts: _BentoYaml
    description: str

    @property
    def digest(self) -> str:
        return self.source.digest.removeprefix("sha256:")[:_DIGEST_DIGITS]

    def body(self) -> dict[str, Any]:
        """Return what registers the bento, or brings its record up to date."""
        facts = self.facts
        manifest = {
            "name": facts.name,
            "version": facts.version,
            "service": facts.service,
            "entry_service": facts.entry_service,
            "bentoml_version": facts.bentoml_version,
            "size_bytes": self.source.size_bytes,
            "apis": {},
            "models": list(facts.all_models),
            "runners": [],
            "services": [service.model_dump(mode="json") for service in facts.services or []],
            "envs": facts.envs or [],
            "schema": facts.schema_ or {},
            "dev": False,
            "image": facts.image,
            "spec": facts.spec or 1,
        }
        labels = {**(facts.labels or {}), _DIGEST_LABEL: self.digest}
        return {"description": self.description, "manifest": manifest, "labels": pairs(labels)}


class Bentos(BentoCloud):
    """The bentos of one organisation, as far as they are pushed.

    :param settings: the connection.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.PUSH, Capability.CHOOSE_VERSION, Capability.FORCE}
    )
    leaves_out: ClassVar[frozenset[str]] = frozenset({"models"})  # they are pushed as models

    def plan_push(
        self,
        ref: ModelRef,
        source: SourceTree,
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
        force: bool,
        options: Mapping[str, Any],
        memory: UploadMemory,
    ) -> Flow[UploadPlan]:
        bento = yield from call(_read_bento, source)
        layout = yield from call(TarLayout.from_tree, source)
        yield from self._require_models(bento)
        yield from self._uploads.ensure_repository(bento.tag)
        record, is_there = yield from self._settle_bento(bento, force)
        if is_there:
            return UploadPlan(ref=ref, way=None, existing=self._bento_version(record, bento.tag))
        with still_there(bento.tag):
            way = yield from self._uploads.way_up(bento.tag, record, layout, memory)
        return TagPlan(ref=ref, way=way, tag=bento.tag)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(TagPlan, plan)
        yield from self._uploads.finish(plan)
        record = yield from self._bento(plan.tag)
        if record is None:
            raise replaced(plan.tag)
        if record.status is VersionStatus.FAILED:
            raise VersionFailed(
                f"{self.title} gave {plan.tag} up: {record.upload_finished_reason or 'no reason given'}"
            )
        return self._bento_version(record, plan.tag)

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        if not isinstance(error, (VersionConflict, VersionFailed)):
            reason = f"{type(error).__name__}: {error}"[:500]
            yield from self._uploads.report(cast(TagPlan, plan).tag, "failed", reason, seconds=ABORT_SECONDS)

    def _require_models(self, bento: _Bento) -> Flow[None]:
        """Raise unless the models that a bento was built with are there; it could not be deployed without."""
        for tag, model in bento.facts.all_models.items():
            if model.registry in (None, "", "bentoml"):
                ref = self.parse(tag)
                record = yield from self._record(Tag.of(ref))
                if record is None or record.status is not VersionStatus.READY:
                    raise InvalidInput(
                        f"the bento {bento.tag} was built with the model {tag}, which is not in {self.title}; "
                        "push the model first",
                        argument="source",
                    )

    def _settle_bento(self, bento: _Bento, force: bool) -> Flow[tuple[UploadRecord, bool]]:
        """Find or make the record to upload to; return it, and whether it holds this bento already."""
        for _ in range(ROUNDS):
            record = yield from self._bento(bento.tag)
            if record is None:
                made = bento.facts.creation_time or datetime.now(UTC)
                build_at = made.astimezone(UTC).strftime(BUILD_AT)
                body = {**bento.body(), "version": bento.tag.version, "build_at": build_at}
                record = yield from self._calls.create(
                    bento.tag.versions, UploadRecord, f"registering {bento.tag}", body
                )
                if record is not None:
                    return record, False
                continue  # another push was faster: look what it made
            digests = {label.value for label in record.labels if label.key == _DIGEST_LABEL}
            if record.status is VersionStatus.READY:
                if bento.digest in digests:
                    return record, True
                if not force:
                    raise VersionConflict(
                        f"the bento {bento.tag} exists with other bytes, or was pushed by others; "
                        "build a new one, or push with force to replace it"
                    )
            doing = f"updating {bento.tag}"
            updated = yield from self._calls.find("PATCH", bento.tag.path, UploadRecord, doing, json=bento.body())
            if updated is not None:
                return updated, False
        raise RegistryUnavailable(f"the record of {bento.tag} keeps changing; another push is at work")

    def _bento(self, tag: Tag) -> Flow[UploadRecord | None]:
        return self._calls.find("GET", tag.path, UploadRecord, f"reading {tag}")

    def _bento_version(self, record: UploadRecord, tag: Tag) -> ModelVersion:
        return ModelVersion(
            registry=self.conn_type,
            name=tag.name,
            version=tag.version,
            status=record.status,
            labels={label.key: label.value for label in record.labels if label.key != _DIGEST_LABEL},
            created_at=record.created_at or record.build_at,
            uri=f"{self.base_url}{tag.path}",
        )


def bento_ref(source: str | os.PathLike[str]) -> ModelRef:
    """Return the name and version of a built bento.

    :param source: its directory.
    :raises InvalidInput: when it holds no usable ``bento.yaml``.
    """
    try:
        with (Path(source) / _BENTO_YAML).open("rb") as file:
            facts = _facts_of(read_yaml(file.fileno(), _BENTO_YAML))
    except OSError as error:
        raise InvalidInput(
            f"it is no built bento: {_BENTO_YAML} cannot be read: {error.strerror}", argument="source"
        ) from None
    return ModelRef(name=facts.name, version=facts.version)


def _read_bento(source: SourceTree) -> _Bento:
    with source.open(_BENTO_YAML) as descriptor:
        facts = _facts_of(read_yaml(descriptor, _BENTO_YAML))
    description = ""
    if any(file.path == _README and file.size <= _README_LIMIT for file in source.files):
        with source.open(_README) as descriptor:
            description = os.pread(descriptor, _README_LIMIT, 0).decode("utf-8", "replace")
    return _Bento(Tag(facts.name, facts.version, "bento"), source, facts, description)


def _facts_of(document: Mapping[str, Any]) -> _BentoYaml:
    try:
        return _FACTS.validate_python({**document, "schema_": document.get("schema")})
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidInput(f"its {_BENTO_YAML} is not usable: {where}: {fault['msg']}", argument="source") from None


_FACTS = TypeAdapter(_BentoYaml)

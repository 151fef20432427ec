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
from typing import Annotated, Any, ClassVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from airflow_provider_modelsync.core import places
from airflow_provider_modelsync.core.archive.digest import Source
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, VersionConflict, VersionFailed
from airflow_provider_modelsync.core.flow.steps import Flow, call
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Time, VersionStatus
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.registries.bentocloud.api import BUILD_AT, Object, Text, null_as, pairs
from airflow_provider_modelsync.core.registries.bentocloud.records import YAML_LIMIT, json_of, read_yaml
from airflow_provider_modelsync.core.registries.bentocloud.registry import ROUNDS, BentoCloud
from airflow_provider_modelsync.core.registries.bentocloud.upload import (
    Tag,
    TagPlan,
    UploadRecord,
    replaced,
    still_there,
)
from airflow_provider_modelsync.core.transfer.plan import PushRequest, UploadPlan

_BENTO_YAML = "bento.yaml"
_README = "README.md"
_README_LIMIT = 3 << 20  # bytes: a request of more than 4 MiB is refused
# A record of a bento has no place for facts of a client, but labels. Their values are short.
_DIGEST_LABEL = "modelsync-digest"
_DIGEST_DIGITS = 60


class _Model(BaseModel):
    """A model that a bento was built with. Travels with all its fields, as the vendor's client sends them."""

    model_config = ConfigDict(extra="allow")

    tag: str
    module: str | None = None
    creation_time: Time = None
    alias: str | None = None
    registry: Annotated[str, null_as("bentoml")] = "bentoml"
    metadata: dict[str, Any] | None = None

    @field_serializer("creation_time")
    def _time(self, value: datetime | None) -> str:
        return _as_time(value)


class _Dependency(BaseModel):
    model_config = ConfigDict(extra="allow")

    service: str | None = None
    deployment: str | None = None
    cluster: str | None = None
    url: str | None = None


class _Service(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    service: Text = ""
    models: Annotated[list[_Model], null_as([])] = []
    dependencies: Annotated[
        list[
            Annotated[
                _Dependency, BeforeValidator(lambda value: {"service": value} if isinstance(value, str) else value)
            ]
        ],
        null_as([]),
    ] = []
    config: Object = {}


class _Env(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    value: Text = ""
    stage: Annotated[str, null_as("all")] = "all"


class _BentoYaml(BaseModel):
    """What a built bento says of itself."""

    name: str
    version: str
    service: Text = ""
    entry_service: Text = ""
    bentoml_version: Text = ""
    creation_time: Time = None
    labels: Annotated[dict[str, str], null_as({})] = {}
    models: Annotated[list[_Model], null_as([])] = []
    services: Annotated[list[_Service], null_as([])] = []
    envs: Annotated[list[_Env], null_as([])] = []
    routes: Object = Field(default={}, alias="schema")
    image: dict[str, Any] | None = None
    spec: Annotated[int, null_as(1)] = 1
    runners: Annotated[list[Any], null_as([])] = []

    @field_validator("runners")
    @classmethod
    def _has_none(cls, value: list[Any]) -> list[Any]:
        if value:
            raise ValueError("bentos with runners are of an older kind; build it of a class with @bentoml.service")
        return value

    @property
    def all_models(self) -> dict[str, _Model]:
        """The models that it was built with, by tag."""
        found = [*self.models, *(model for service in self.services for model in service.models)]
        return {model.tag: model for model in found}


@dataclass(frozen=True, slots=True)
class _Bento:
    """A built bento on disk, and the record to be made of it."""

    tag: Tag
    source: Source
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
            "services": [service.model_dump(mode="json") for service in facts.services],
            "envs": [env.model_dump(mode="json") for env in facts.envs],
            "schema": facts.routes,
            "dev": False,
            "image": facts.image,
            "spec": facts.spec,
        }
        labels = {**facts.labels, _DIGEST_LABEL: self.digest}
        return {"description": self.description, "manifest": manifest, "labels": pairs(labels)}


class Bentos(BentoCloud):
    """The bentos of one organisation, as far as they are pushed.

    :param settings: the connection.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.PUSH, Capability.CHOOSE_VERSION, Capability.FORCE}
    )
    leaves_out: ClassVar[Mapping[str, str | None]] = {"models": None}  # they are pushed as models

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        bento = yield from call(_read_bento, request.source)
        if str(bento.tag) != str(request.ref):
            raise InvalidInput(f"its {_BENTO_YAML} says {bento.tag}", remedy="push it as that", argument="source")
        layout = yield from call(TarLayout.from_tree, request.source)
        yield from self._require_models(bento)
        yield from self._uploads.ensure_repository(bento.tag)
        record, is_there = yield from self._settle_bento(bento, request.force)
        if is_there:
            return UploadPlan(ref=request.ref, way=None, existing=self._bento_version(record, bento.tag))
        with still_there(bento.tag):
            way = yield from self._uploads.way_up(bento.tag, record, layout, request.memory)
        if way is None:
            found = yield from self._bento(bento.tag)
            if found is None or not _holds(found, bento.digest):
                raise replaced(bento.tag)
            return UploadPlan(ref=request.ref, way=None, existing=self._bento_version(found, bento.tag))
        return _BentoPlan(ref=request.ref, way=way, tag=bento.tag, digest=bento.digest)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_BentoPlan, plan)
        if not plan.is_proxy:
            yield from self._own_bento(plan)  # what others registered meanwhile is not ours to publish
        yield from self._uploads.finish(plan)
        record = yield from self._own_bento(plan)
        if record.status is VersionStatus.FAILED:
            raise VersionFailed(
                f"{self.title} gave {plan.tag} up: {record.upload_finished_reason or 'no reason given'}"
            )
        return self._bento_version(record, plan.tag)

    def _require_models(self, bento: _Bento) -> Flow[None]:
        """Raise unless the models that a bento was built with are there; it could not be deployed without."""
        for tag, model in bento.facts.all_models.items():
            if model.registry == "bentoml":
                ref = self.parse(tag)
                record = yield from self._record(Tag.of(ref))
                if record is None or record.status is not VersionStatus.READY:
                    raise InvalidInput(
                        f"the bento {bento.tag} was built with the model {tag}, which is not in {self.title}",
                        remedy="push the model first",
                        argument="source",
                    )

    def _settle_bento(self, bento: _Bento, force: bool) -> Flow[tuple[UploadRecord, bool]]:
        """Find or make the record to upload to; return it, and whether it holds this bento already."""
        for _ in range(ROUNDS):
            record = yield from self._bento(bento.tag)
            if record is None:
                build_at = _as_time(bento.facts.creation_time)
                body = {**bento.body(), "version": bento.tag.version, "build_at": build_at}
                record = yield from self._calls.create(
                    bento.tag.versions, UploadRecord, f"registering {bento.tag}", body
                )
                if record is not None:
                    return record, False
                continue  # another push was faster: look what it made
            if record.status is VersionStatus.READY:
                if _holds(record, bento.digest):
                    return record, True
                if not force:
                    raise VersionConflict(
                        f"the bento {bento.tag} exists with other bytes, or was pushed by others",
                        remedy="build a new one, or push with force to replace it",
                    )
            doing = f"updating {bento.tag}"
            updated = yield from self._calls.find("PATCH", bento.tag.path, UploadRecord, doing, json=bento.body())
            if updated is not None:
                return updated, False
        raise RegistryUnavailable(f"the record of {bento.tag} keeps changing; another push is at work")

    def _own_bento(self, plan: _BentoPlan) -> Flow[UploadRecord]:
        """Return the record of a push; raise when another push has taken it over."""
        record = yield from self._bento(plan.tag)
        if record is None or not _holds(record, plan.digest):
            raise replaced(plan.tag)
        return record

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _BentoPlan(TagPlan):
    digest: str


def bento_ref(source: str | os.PathLike[str]) -> ModelRef:
    """Return the name and version of a built bento.

    :param source: its directory.
    :raises InvalidInput: when it names no directory that may be pushed, or holds no usable ``bento.yaml``.
    """
    places.require_source(source)
    try:
        # A pipe in its place must not be waited for.
        with os.fdopen(os.open(Path(source) / _BENTO_YAML, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = _facts_of(read_yaml(file.read(YAML_LIMIT + 1), _BENTO_YAML))
    except OSError as error:
        raise InvalidInput(
            f"it is no built bento: {_BENTO_YAML} cannot be read: {error.strerror}", argument="source"
        ) from None
    return ModelRef(name=facts.name, version=facts.version)


def _read_bento(source: Source) -> _Bento:
    if all(file.path != _BENTO_YAML for file in source.files):
        raise InvalidInput(f"it is no built bento: it holds no {_BENTO_YAML}", argument="source")
    facts = _facts_of(read_yaml(source.head(_BENTO_YAML, YAML_LIMIT + 1), _BENTO_YAML))
    description = ""
    if any(file.path == _README and file.size <= _README_LIMIT for file in source.files):
        description = source.head(_README, _README_LIMIT).decode("utf-8", "replace")
    return _Bento(Tag(facts.name, facts.version, "bento"), source, facts, description)


def _facts_of(document: Mapping[str, Any]) -> _BentoYaml:
    try:
        return _BentoYaml.model_validate_json(json_of(document))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidInput(f"its {_BENTO_YAML} is not usable: {where}: {fault['msg']}", argument="source") from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"its {_BENTO_YAML} holds what JSON cannot", argument="source") from None


def _holds(record: UploadRecord, digest: str) -> bool:
    """Whether a record was made for these bytes."""
    return any(label.key == _DIGEST_LABEL and label.value == digest for label in record.labels)


def _as_time(value: datetime | None) -> str:
    return (value or datetime.now(UTC)).astimezone(UTC).strftime(BUILD_AT)

"""Wallaroo's pipelines: one serves a model under a name that lasts. What it serves is replaced in place.

Facts come from the vendor's public tutorials, with the answers of real instances, and from the wallaroo 2026.1.3
client, read and seen on the wire. No answer tells all: ``list_pipelines`` whether a pipeline is deployed and how,
``get_deployment`` which models its engines run, a pipeline version's definition which they are to run. So a roll-out
is called after its model.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
    VersionFailed,
)
from airflow_provider_modelsync.core.flow.steps import Flow, sleep
from airflow_provider_modelsync.core.http.addresses import origin_of
from airflow_provider_modelsync.core.http.policy import raise_for_status, read_json
from airflow_provider_modelsync.core.models import Deployment, ModelRef, ModelVersion, Time, VersionStatus
from airflow_provider_modelsync.core.redact import excerpt, show_url
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.wallaroo.api import Calls, Record, Text, VersionRecord, null_as

_API = "/v1/api"
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")

RUNNING, STARTING, ERROR = "Running", "Starting", "Error"
_ENDING, _ENDED = "Undeploying", "Undeployed"  # words of ours: the system tells of neither
# An error may pass while pods are restarted; one that lasts so many seconds does not.
_ERROR_SECONDS = 60.0
# Seconds before a request whose answer was lost is looked after, and made once more.
_PAUSE = 1.0

_log = logging.getLogger("modelsync")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Resources(_Strict):
    limits: dict[str, int | float | str] | None = None
    requests: dict[str, int | float | str] | None = None


class _Autoscale(_Strict):
    type: Literal["cpu", "queue"] | None = None
    replica_min: int | None = Field(default=None, ge=0)
    replica_max: int | None = Field(default=None, ge=1)
    cpu_utilization: int | None = Field(default=None, ge=1, le=100)
    scale_up_queue_depth: int | None = Field(default=None, ge=1)
    scale_down_queue_depth: int | None = Field(default=None, ge=0)
    autoscaling_window: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> _Autoscale:
        if self.replica_max is not None and (self.replica_min or 0) > self.replica_max:
            raise ValueError("replica_min is larger than replica_max")
        by_queue = self.scale_down_queue_depth is not None or self.autoscaling_window is not None
        if by_queue and self.scale_up_queue_depth is None:
            raise ValueError("scale_down_queue_depth and autoscaling_window need scale_up_queue_depth")
        return self


class _Machine(_Strict):
    arch: Literal["x86", "arm", "power10"] | None = None
    accel: Literal["none", "cuda", "jetson", "openvino", "rocm"] | dict[str, Any] | None = None
    image: str | None = None
    resources: _Resources | None = None


class _Python(_Strict):
    load_timeout_millis: int = Field(ge=1)


class _Engine(_Machine):
    cpu: int | float | None = Field(default=None, gt=0)
    gpu: int | None = Field(default=None, ge=0)
    replicas: int | None = Field(default=None, ge=0)
    autoscale: _Autoscale | None = None
    node_selector: str | None = None
    python: _Python | None = None

    @model_validator(mode="after")
    def _check(self) -> _Engine:
        most = self.autoscale.replica_max if self.autoscale else None
        if most is not None and self.replicas is not None and self.replicas > most:
            raise ValueError("replicas is larger than autoscale.replica_max")
        return self


class _Env(_Strict):
    name: str
    value: str


class _Image(_Machine):
    env: list[_Env] | None = None


class _Balancer(_Strict):
    resources: _Resources | None = None


class _Aux(_Strict):
    images: dict[str, _Image] | None = None


class DeployConfig(_Strict):
    """What ``config`` of a deployment may hold: the engine configuration as it travels, and one field of our own.

    The vendor's ``DeploymentConfigBuilder(…).build()`` makes the same dictionary.

    :param engine: replicas, cpu, gpu, resources, autoscale, arch, accel, node_selector, image, python.
    :param enginelb: resources of what spreads the load.
    :param engine_aux: resources, environment and so on of containers, in ``images`` by ``<model>-<version number>``;
        the number may be left out for the model that is deployed. Travels as ``engineAux``.
    :param revision: put this model back, under the resources of now; allowed alone.
    """

    engine: _Engine | None = None
    enginelb: _Balancer | None = None
    engine_aux: _Aux | None = Field(default=None, alias="engineAux")
    revision: str | None = None


class _Pipeline(Record):
    id: int
    name: Text = ""
    pipeline_id: Text = ""


class _Deployed(Record):
    id: int | None = None
    deploy_id: Text = ""
    deployed: bool | None = None
    engine_config: dict[str, Any] | None = None


class _Listed(Record):
    """A pipeline as it is listed. What the server leaves out of ``deployment`` is not known."""

    pipeline: _Pipeline
    deployment: _Deployed | None = None

    @property
    def name(self) -> str:
        return self.pipeline.pipeline_id or self.pipeline.name

    @property
    def is_deployed(self) -> bool | None:
        return self.deployment.deployed if self.deployment else None


class _Pipelines(BaseModel):
    pipelines: Annotated[tuple[_Listed, ...], null_as(())] = ()


class _Created(BaseModel):
    pipeline_pk_id: int
    pipeline_variant_pk_id: int
    pipeline_variant_version: Text = ""


class _Number(BaseModel):
    id: int


class _Url(BaseModel):
    url: Text = ""


class _Model(Record):
    name: Text = ""
    version: Text = ""
    status: Text = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class _Models(BaseModel):
    models: Annotated[tuple[_Model, ...], null_as(())] = ()


class _Variant(BaseModel):
    version: Text = ""  # engines before 2024 do not tell it
    created_at: Time = None


class _Variants(BaseModel):
    pipelines: Annotated[tuple[_Variant, ...], null_as(())] = ()


class _ListedVariant(BaseModel):
    pipeline_version: Annotated[_Variant, null_as({})] = _Variant()


class _ListedVariants(BaseModel):
    pipeline_versions: Annotated[tuple[_ListedVariant, ...], null_as(())] = ()

    @property
    def newest(self) -> str:
        told = [listed.pipeline_version for listed in self.pipeline_versions]
        newest = max(told, key=lambda one: one.created_at or datetime.min.replace(tzinfo=UTC), default=_Variant())
        return newest.version


class _Step(BaseModel):
    inference: Annotated[_Models, null_as({})] = Field(default=_Models(), alias="ModelInference")


class _Steps(BaseModel):
    steps: Annotated[tuple[_Step, ...], null_as(())] = ()


class _Definition(BaseModel):
    definition: Annotated[_Steps, null_as({})] = _Steps()

    @property
    def revision(self) -> str | None:
        return ",".join(str(model) for step in self.definition.steps for model in step.inference.models) or None


class _Pod(Record):
    """A pod. Real instances tell its facts right here; the client's types have them in ``info``, so both are read."""

    name: Text = ""
    status: Text = ""
    reason: Text = ""
    details: Annotated[tuple[Any, ...], null_as(())] = ()
    required_cpu: Any = None
    required_memory: Any = None
    model_statuses: Annotated[_Models, null_as({})] = _Models()
    pipeline_statuses: Annotated[_Variants, null_as({})] = _Variants()

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("info"), dict):
            return {**value["info"], **{key: item for key, item in value.items() if item is not None}}
        return value

    @property
    def trouble(self) -> str:
        """What is wrong with it, as far as it says."""
        if self.status == RUNNING:
            return ""
        lacks = {"CPUs": self.required_cpu, "memory": self.required_memory}
        details = (detail for detail in self.details if isinstance(detail, str))
        words = [self.reason, *details, *(f"needs {value} {what}" for what, value in lacks.items() if value)]
        said = "; ".join(dict.fromkeys(word for word in words if word))
        return f"{self.name} is {self.status}: {said}" if said else ""


class _Status(Record):
    """What ``get_deployment`` tells."""

    status: Text = ""
    details: Annotated[tuple[Any, ...], null_as(())] = ()
    engines: Annotated[tuple[_Pod, ...], null_as(())] = ()
    engine_lbs: Annotated[tuple[_Pod, ...], null_as(())] = ()
    sidekicks: Annotated[tuple[_Pod, ...], null_as(())] = ()
    wanted: str | None = Field(default=None, exclude=True)  # what its newest definition names; no part of the answer

    @property
    def running(self) -> str | None:
        """The models that all engines run; ``None`` while none does, or they differ."""
        served = {",".join(map(str, models)) for pod in self.engines if (models := pod.model_statuses.models)}
        return served.pop() if len(served) == 1 else None

    @property
    def revision(self) -> str | None:
        """The models that run, or are to run, as far as this is known."""
        return self.running or self.wanted

    @property
    def is_serving(self) -> bool:
        models = [model for pod in self.engines for model in pod.model_statuses.models]
        is_loaded = all(model.status in ("", RUNNING) for model in models)
        return self.status == RUNNING and self.running is not None and is_loaded

    @property
    def variant(self) -> str | None:
        """The pipeline version that the engines run, where they agree and tell."""
        told = {one.version for pod in self.engines for one in pod.pipeline_statuses.pipelines}
        return (told.pop() or None) if len(told) == 1 else None

    @property
    def trouble(self) -> str:
        pods = (*self.engines, *self.engine_lbs, *self.sidekicks)
        words = [*(detail for detail in self.details if isinstance(detail, str)), *(pod.trouble for pod in pods)]
        return excerpt("; ".join(word for word in words if word))


class Pipelines:
    """The pipelines of one connection's workspace.

    :param registry: whose models they serve.
    :param calls: makes the calls.
    :param workspace_id: asks for the workspace's number.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        registry: Registry,
        calls: Calls,
        workspace_id: Callable[[], Flow[int]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._calls = calls
        self._workspace_id = workspace_id
        self._clock = clock
        self._places: dict[str, str] = {}  # pipeline → deployment, which lasts as long as the pipeline does
        self._wrong_since: dict[str, float] = {}
        self._odd: set[str] = set()

    def deploy(self, name: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        """Have a pipeline serve a model: make the pipeline, or replace in place what it serves."""
        name = _checked_name(name)
        asked = _checked(config)
        if "revision" in asked:
            ref = self._model_of(asked["revision"])
        doing = f"deploying {ref} as {name}"
        version = yield from self._deployable(ref)
        model = _record_of(version)
        there = yield from self._find(name, doing)
        status = (yield from self._status(name, doing)) if there else None
        engine = self._engine_config(asked, model, there, (yield from self._workspace_id()))
        if there and there.is_deployed is not False and self._runs(there, status, version, engine, asked):
            _log.info("%s already serves %s: nothing is changed", name, version.ref)
            return (yield from self._described(name, there, status))
        made = yield from self._create(name, model, doing)
        number = yield from self._roll_out(name, made, model, engine, doing)
        self._places[name] = f"{name}-{number}"
        self._wrong_since.pop(name, None)
        _log.info("%s takes %s: pipeline version %s", name, version.ref, made.pipeline_variant_version)
        return self._deployment(
            name,
            STARTING,
            model=version.ref,
            revision=version.ref,
            artifact=made.pipeline_variant_version or None,
            url=self.place(name),
        )

    def get(self, name: str) -> Flow[Deployment]:
        """Return a deployment; ready when all its engines run the same models, of which none is still being loaded."""
        name = _checked_name(name)
        doing = f"reading the pipeline {name}"
        listed = None
        status = yield from self._status(name, doing)
        if status is None:
            listed = yield from self._find(name, doing)
            if listed is None:
                raise ModelNotFound(f"{self._registry.title} has no pipeline {name!r} in this workspace")
            status = yield from self._status(name, doing)
        return (yield from self._described(name, listed, status))

    def undeploy(self, name: str) -> Flow[Deployment]:
        """End a deployment; one that is ending, has ended or never was is fine as it is."""
        name = _checked_name(name)
        doing = f"undeploying {name}"
        for is_last in (False, True):
            listed = yield from self._find(name, doing)
            status = (yield from self._status(name, doing)) if listed else None
            if listed is None or (status is None and not listed.is_deployed):
                return self._deployment(name, _ENDED, failed=True, gone=True)
            if listed.is_deployed is False or (yield from self._end(name, listed, doing, is_last=is_last)):
                break
            yield from sleep(_PAUSE)
        return self._deployment(name, _ENDING, failed=True, revision=status.revision if status else None)

    def models(self) -> Flow[dict[str, str]]:
        """Return the models that pipelines run, or are about to, each with the name of one that does."""
        doing = "listing the pipelines"
        body = {"workspace_id": (yield from self._workspace_id())}
        listed = yield from self._calls.read(f"{_API}/pipelines/list_pipelines", body, _Pipelines, doing)
        found: dict[str, str] = {}
        for name in [one.name for one in listed.pipelines]:
            here = yield from self._find(name, doing)
            if here is None or here.is_deployed is False:
                continue
            status = yield from self._status(name, doing)
            loaded = [model for pod in status.engines for model in pod.model_statuses.models] if status else []
            wanted = yield from self._wanted(name)
            for ref in [*map(str, loaded), *(wanted.split(",") if wanted else [])]:
                found.setdefault(ref, name)
        return found

    def place(self, name: str) -> str:
        """Return the URL for inference as the vendor's client makes it; the deployment is known."""
        return f"{self._registry.base_url}{_API}/pipelines/infer/{self._places[name]}/{name}"

    def url(self, name: str) -> Flow[str]:
        """Return the URL for inference, always on the connection's own origin, which alone gets the token."""
        url = ""
        try:
            url = yield from self._external_url(name)
        except Cancelled:
            raise
        except ModelSyncError as error:
            _log.info("%s; taking the usual address", error)
        is_ours = url and origin_of(url) == origin_of(str(self._registry.base_url)) and not urlsplit(url).query
        return url if is_ours else self.place(name)

    def _external_url(self, name: str) -> Flow[str]:
        body = {"workspace_id": (yield from self._workspace_id()), "pipeline_name": name}
        found = yield from self._calls.find(
            f"{_API}/admin/get_pipeline_external_url", body, _Url, f"asking for the URL of {name}"
        )
        return found.url if found else ""

    def _find(self, name: str, doing: str) -> Flow[_Listed | None]:
        body = {"workspace_id": (yield from self._workspace_id())}
        found = yield from self._calls.read(f"{_API}/pipelines/list_pipelines", body, _Pipelines, doing)
        listed = next((one for one in found.pipelines if one.name == name), None)
        if listed is None:
            self._places.pop(name, None)
            return None
        deployment = listed.deployment
        if deployment is None or deployment.id is None:  # no document says what null means here
            return listed.model_copy(update={"deployment": (yield from self._locate(name))})
        self._places[name] = f"{deployment.deploy_id or name}-{deployment.id}"
        return listed

    def _locate(self, name: str) -> Flow[_Deployed | None]:
        """Learn a deployment's name from its URL, which ends with it and the pipeline's; ``None`` for nothing known."""
        try:
            url = yield from self._external_url(name)
        except InvalidInput:
            return _Deployed(deployed=False)
        except RegistryUnavailable as error:
            _log.info("%s; taking it for not deployed", error)
            return None
        parts = urlsplit(url).path.split("/")
        if len(parts) > 2 and parts[-1] == name and re.fullmatch(r"[\w-]+-\d+", parts[-2]):
            self._places[name] = parts[-2]
        return None

    def _status(self, name: str, doing: str) -> Flow[_Status | None]:
        """Return what runs; ``None`` for nothing, which the server says with 404, null or an empty object."""
        if name not in self._places:
            return None
        body = {"name": self._places[name]}
        response = yield from self._calls.answer(f"{_API}/status/get_deployment", body, may_repeat=True)
        if response.status_code == 404:
            return None
        raise_for_status(response, doing)
        status = read_json(response, _Status | None, doing)  # type: ignore[arg-type]  # a union is no class
        if status is None or not status.status:
            return None
        if status.running is None:
            return status.model_copy(update={"wanted": (yield from self._wanted(name))})
        return status

    def _wanted(self, name: str) -> Flow[str | None]:
        """Return the models that the newest version of a pipeline names, as far as the server tells."""
        doing = f"reading the versions of the pipeline {name}"
        body = {"pipeline_id": name, "workspace_id": (yield from self._workspace_id())}
        try:
            listed = yield from self._calls.find(
                f"{_API}/pipelines/list_pipeline_versions", body, _ListedVariants, doing
            )
            if listed is None or not listed.newest:
                return None
            path = f"{_API}/pipelines/get_version"
            found = yield from self._calls.find(path, {"version": listed.newest}, _Definition, doing)
        except InvalidInput as error:  # an older server
            _log.info("%s", error)
            return None
        return found.revision if found else None

    def _described(self, name: str, listed: _Listed | None, status: _Status | None) -> Flow[Deployment]:
        if status is None:
            self._wrong_since.pop(name, None)
            if listed and listed.is_deployed:  # asked for a moment ago
                return self._deployment(name, STARTING, url=self.place(name) if name in self._places else None)
            # Where the list does not say that it is undeployed, it may be about to appear.
            return self._deployment(name, _ENDED, gone=True, failed=listed is not None and listed.is_deployed is False)
        if listed and listed.is_deployed is False:
            return self._deployment(name, _ENDING, failed=True, revision=status.revision, raw=status)
        if status.status not in (RUNNING, STARTING, ERROR) and status.status not in self._odd:
            self._odd.add(status.status)
            _log.warning("%s has the unknown status %s; taken as not ready yet", name, show(status.status))
        is_ready = status.is_serving
        revision = status.revision
        return self._deployment(
            name,
            status.status,
            ready=is_ready,
            failed=self._is_lasting_error(name, status),
            reason=(status.trouble or None) if status.status != RUNNING else None,
            model=revision if revision and "," not in revision else None,
            artifact=status.variant,
            revision=revision,
            url=show_url((yield from self.url(name)) if is_ready else self.place(name)),
            raw=status,
        )

    def _deployment(self, name: str, status: str, *, raw: _Status | None = None, **facts: Any) -> Deployment:
        return Deployment(
            registry=self._registry.conn_type,
            name=name,
            status=status,
            page=f"{self._registry.base_url}/",  # no address of a pipeline's own page is documented
            raw=raw.model_dump(mode="json") if raw else {},
            **facts,
        )

    def _is_lasting_error(self, name: str, status: _Status) -> bool:
        if status.status != ERROR:
            self._wrong_since.pop(name, None)
            return False
        return self._clock() - self._wrong_since.setdefault(name, self._clock()) >= _ERROR_SECONDS

    def _deployable(self, ref: ModelRef) -> Flow[ModelVersion]:
        version = yield from self._registry.get(ref)
        if version.status is VersionStatus.FAILED:
            summary = _record_of(version).error_summary
            raise VersionFailed(
                f"{version.ref} cannot be deployed: its conversion has failed"
                + (f": {excerpt(summary)}" if summary else "")
            )
        if not version.ready:
            raise RegistryUnavailable(
                f"{version.ref} cannot be deployed yet: it is {version.status}",
                remedy="wait for it with ModelVersionSensor",
            )
        return version

    def _model_of(self, revision: str) -> ModelRef:
        """Return what a revision served: revisions are called after their models."""
        ref = self._registry.parse(revision) if "," not in revision else None
        if ref is None or ref.version is None:
            raise InvalidInput(f"revision: {show(revision)} is not one model with its version", argument="config")
        return ref

    def _runs(
        self, there: _Listed, status: _Status | None, version: ModelVersion, engine: Any, asked: Mapping[str, Any]
    ) -> bool:
        """Whether a pipeline runs this already, or is about to."""
        if status is None or status.status == ERROR or status.revision != version.ref:
            return False
        told = there.deployment.engine_config if there.deployment else None
        # Without a configuration there is nothing that could differ; one that cannot be compared is sent again.
        return not asked if told is None else bool(_comparable(told) == _comparable(engine))

    def _engine_config(
        self, asked: Mapping[str, Any], model: VersionRecord, there: _Listed | None, workspace: int
    ) -> dict[str, Any]:
        """Return the whole configuration as it travels."""
        if "revision" in asked:
            told = there.deployment.engine_config if there and there.deployment else None
            if told:
                return {**told, "workspace_id": workspace}
            asked = {}
        machine = {"arch": model.conversion.arch, "accel": model.conversion.accel}
        images = {
            f"{key}-{model.id}" if key == model.name else key: image
            for key, image in (asked.get("engineAux", {}).get("images") or {}).items()
        }
        return {
            "engine": {**{key: value for key, value in machine.items() if value}, **asked.get("engine", {})},
            "enginelb": asked.get("enginelb", {}),
            "engineAux": {"images": images},
            "workspace_id": workspace,
        }

    def _create(self, name: str, model: VersionRecord, doing: str) -> Flow[_Created]:
        """Add a version to a pipeline, and make the pipeline where there is none."""
        definition = {"id": name, "steps": [{"ModelInference": {"models": [_step(model)]}}]}
        body = {"pipeline_id": name, "workspace_id": (yield from self._workspace_id()), "definition": definition}
        path = f"{_API}/pipelines/create"
        try:
            return (yield from self._calls.post(path, body, _Created, doing))
        except RegistryUnavailable as error:
            _log.info("%s; trying once more: a version too many is served by nobody", error)
        yield from sleep(_PAUSE)
        return (yield from self._calls.post(path, body, _Created, doing))

    def _roll_out(
        self, name: str, made: _Created, model: VersionRecord, engine: dict[str, Any], doing: str
    ) -> Flow[int]:
        """Deploy a pipeline version; where the answer is lost, the list may tell the deployment's number."""
        body = {
            "deploy_id": name,
            "pipeline_version_pk_id": made.pipeline_variant_pk_id,
            "pipeline_id": made.pipeline_pk_id,
            "models": [_step(model)],
            "engine_config": engine,
        }
        try:
            return (yield from self._deploy_once(body, doing))
        except RegistryUnavailable as error:
            _log.info("%s; looking whether it was carried out", error)
        yield from sleep(_PAUSE)
        listed = yield from self._find(name, doing)
        status = (yield from self._status(name, doing)) if listed else None
        deployed = listed.deployment if listed else None
        wanted = f"{model.name}:{model.uuid}"
        if deployed and deployed.id is not None and deployed.deployed and status and status.revision == wanted:
            return deployed.id
        # The same pipeline version again is the same deployment, under the same number.
        return (yield from self._deploy_once(body, doing))

    def _deploy_once(self, body: dict[str, Any], doing: str) -> Flow[int]:
        secrets = tuple(_env_values(body))
        response = yield from self._calls.answer(f"{_API}/pipelines/deploy", body, secrets=secrets)
        raise_for_status(response, doing)
        return read_json(response, _Number, doing).id

    def _end(self, name: str, listed: _Listed, doing: str, *, is_last: bool) -> Flow[bool]:
        """Ask for a deployment's end; return whether that is settled."""
        body = {"pipeline_id": listed.pipeline.id}
        if name in self._places:
            body["deployment_id"] = int(self._places[name].rpartition("-")[2])
        try:
            response: httpx.Response = yield from self._calls.answer(f"{_API}/pipelines/undeploy", body)
            if response.status_code != 404:  # somebody else was faster
                raise_for_status(response, doing)  # success comes with null, an object, or nothing
        except RegistryUnavailable as error:
            if is_last:
                raise
            _log.info("%s; looking whether it was carried out", error)
            return False
        return True


def _checked_name(name: str | None) -> str:
    if not name or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{show(name or '')} is not lower-case letters, digits and '-', at most 63, "
            "with a letter first and no '-' last",
            argument="deployment",
        )
    return name


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration and return it without what is not set, its numbers as numbers: templates make texts."""
    try:
        checked = DeployConfig.model_validate(restructured(DeployConfig, config))
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="config") from None
    asked = checked.model_dump(by_alias=True, exclude_none=True)
    if "revision" in asked and len(asked) > 1:
        raise InvalidInput("'revision' brings a model back; it is allowed alone", argument="config")
    return asked


def _record_of(version: ModelVersion) -> VersionRecord:
    return VersionRecord.model_validate(version.raw.get("model_version", version.raw))


def _step(model: VersionRecord) -> dict[str, str]:
    return {"name": model.name, "version": model.uuid, "sha": model.file_info.sha}


def _comparable(value: Any) -> Any:
    """Bring configurations into one form, however much they spell out of what is not set."""
    if isinstance(value, Mapping):
        items = {key: _comparable(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in (None, "", [], {})}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value


def _env_values(value: Any) -> Iterator[str]:
    """Return the values of all environment variables in a request: any of them may be a secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "env" and isinstance(item, list):
                yield from (str(env["value"]) for env in item if isinstance(env, Mapping) and env.get("value"))
            yield from _env_values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _env_values(item)

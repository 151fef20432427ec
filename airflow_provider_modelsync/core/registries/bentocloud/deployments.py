"""BentoCloud's deployments, version 2 of that API. What runs is a bento, which carries the models it was built with.

Facts come from the unmodified bentoml 1.4.40 client on the wire and the public OpenAPI document; Yatai has none of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotReady,
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.steps import Flow, sleep
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.models import Deployment, ModelRef, Time
from airflow_provider_modelsync.core.redact import excerpt, show_url
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.bentocloud.api import (
    Calls,
    Label,
    Object,
    Repository,
    Text,
    is_duplicate,
    is_missing,
    is_unknown_route,
    null_as,
    refuse,
)

_ROOT = "/api/v2/deployments"
_NAME = re.compile(r"[a-z0-9](?:[-._a-z0-9]{0,61}[a-z0-9])?")
_MAIN = "main"  # the target beside which there may be canaries
_PAGE = 100
_MAX_PAGES = 100
_RECORDS = 20  # of the newest status records: enough to find why the last status was entered
_SHOWN_REASONS = 3

_TERMINATING, _TERMINATED = "terminating", "terminated"
_READY = frozenset({"running", "scaled-to-zero"})
_BROKEN = frozenset({"failed", "image-build-failed", "unhealthy"})
_FAILED = _BROKEN | {_TERMINATING, _TERMINATED}
_ON_THE_WAY = frozenset({"image-building", "image-build-succeeded", "deploying", "non-deployed", "unknown"})

# Seconds before a request whose answer was lost is looked after, and made again.
_PAUSES = (1.0, 3.0)
# A deployment that is ending takes no new configuration; how long its end is waited for.
_ENDING_SECONDS, _ENDING_LOOKS = 5.0, 60

_AT_CREATION = frozenset({"name", "dev", "distributed"})  # what an update does not take
_UNSHOWN = _AT_CREATION | {"weight"}  # what a deployment's record does not tell
_ANYBODYS = frozenset({"labels", "description"})  # what others may have set, too
_DEFAULT_SCALING = {"min_replicas": 1, "max_replicas": 1}

_log = logging.getLogger("modelsync")


class _Env(BaseModel):
    name: str
    value: str | None = None


class _Scaling(BaseModel):
    min_replicas: int | None = None
    max_replicas: int | None = None

    @model_validator(mode="after")
    def _check(self) -> _Scaling:
        most = 1 if self.max_replicas is None else self.max_replicas
        least = min(1, most) if self.min_replicas is None else self.min_replicas
        if not 0 <= least <= most or most < 1:
            raise ValueError("0 <= min_replicas <= max_replicas and 1 <= max_replicas must hold")
        return self


class _Service(BaseModel):
    scaling: _Scaling | None = None
    envs: list[_Env] | None = None
    coldstart_timeout: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        # The vendor's own client sends this name, which the server does not know.
        if isinstance(value, dict) and "cold_start_timeout" in value:
            raise ValueError("the server calls it 'coldstart_timeout', not 'cold_start_timeout'")
        return value


class _Target(BaseModel):
    envs: list[_Env] | None = None
    secrets: list[str] | None = None
    services: dict[str, _Service] | None = None


class _Version(_Target):
    bento: str
    weight: int | None = None


class _Canary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    route_type: str | None = None
    route_by: str | None = None
    versions: dict[str, _Version] | None = None


class DeployConfig(_Target):
    """What ``config`` of a deployment may hold: the fields of the request, and one of our own.

    :param bento: ``name:version`` of the bento to run, instead of the newest one with the model.
    :param services: service → instance type, scaling, environment …
    :param envs: environment variables of all services.
    :param labels: of the deployment.
    :param secrets: names of secrets that the server keeps.
    :param access_authorization: whether callers need a token.
    :param canary: further bentos that get a share of the requests.
    :param description: of the deployment.
    :param weight: share of the main bento.
    :param distributed: run services apart; only at creation.
    :param dev: a development deployment; only at creation.
    :param revision: put back what this earlier revision ran; allowed alone.
    """

    model_config = ConfigDict(extra="forbid")

    bento: str | None = None
    labels: list[Label] | None = None
    access_authorization: bool | None = None
    canary: _Canary | None = None
    description: str | None = None
    weight: int | None = None
    distributed: bool | None = None
    dev: bool | None = None
    revision: str | None = None


class _BentoManifest(BaseModel):
    name: Text = ""
    models: Annotated[list[Any], null_as([])] = []


class _Bento(BaseModel):
    version: Text = ""
    upload_status: Text = ""
    created_at: Time = None
    build_at: Time = None
    repository: Repository | None = None
    manifest: Annotated[_BentoManifest, null_as({})] = _BentoManifest()

    @property
    def tag(self) -> str | None:
        # Bentos inside a model's record come without their repository.
        name = self.repository.name if self.repository else self.manifest.name
        return f"{name}:{self.version}" if name and self.version else None

    @property
    def age_key(self) -> tuple[datetime, str]:
        return self.build_at or self.created_at or datetime.min.replace(tzinfo=UTC), self.version


class _Bentos(BaseModel):
    items: Annotated[list[_Bento], null_as([])] = []


class _BentoRecord(BaseModel):
    manifest: Annotated[_BentoManifest, null_as({})] = _BentoManifest()


class _ModelRecord(BaseModel):
    bentos: Annotated[list[_Bento], null_as([])] = []


class _RevisionTarget(BaseModel):
    name: Text = ""
    bento: _Bento | None = None
    config: Object = {}


class _Revision(BaseModel):
    uid: Text = ""
    targets: Annotated[list[_RevisionTarget], null_as([])] = []

    @property
    def main(self) -> _RevisionTarget | None:
        if len(self.targets) == 1:
            return self.targets[0]
        return next((target for target in self.targets if target.name == _MAIN), None)


class _Cluster(BaseModel):
    name: Text = ""


class _DeploymentManifest(BaseModel):
    routing: Object = {}


class _Record(BaseModel):
    """A deployment as the server describes it."""

    model_config = ConfigDict(extra="allow")

    name: str
    status: Text = ""
    description: Text = ""
    kube_namespace: Text = ""
    cluster: _Cluster | None = None
    labels: Annotated[list[Label], null_as([])] = []
    latest_revision: _Revision | None = None
    manifest: Annotated[_DeploymentManifest, null_as({})] = _DeploymentManifest()
    urls: Annotated[list[str], null_as([])] = []

    @property
    def revision(self) -> str | None:
        return (self.latest_revision and self.latest_revision.uid) or None

    @property
    def main(self) -> _RevisionTarget | None:
        return self.latest_revision.main if self.latest_revision else None

    @property
    def bento(self) -> str | None:
        return self.main.bento.tag if self.main and self.main.bento else None

    @property
    def model(self) -> str | None:
        """The model that it serves, when its bento has exactly one."""
        models = self.main.bento.manifest.models if self.main and self.main.bento else []
        return models[0] if len(models) == 1 and isinstance(models[0], str) else None

    @property
    def configuration(self) -> dict[str, Any]:
        """What an update would have to send in order to change nothing."""
        if self.main is None or self.latest_revision is None:
            return {}
        versions = {
            target.name: {
                **target.config,
                "bento": target.bento.tag if target.bento else None,
                "weight": (self.manifest.routing.get("weights") or {}).get(target.name),
            }
            for target in self.latest_revision.targets
            if target is not self.main
        }
        routing = {key: self.manifest.routing.get(key) for key in ("route_type", "route_by")}
        return {
            **self.main.config,
            "bento": self.bento,
            "description": self.description,
            "labels": [label.model_dump() for label in self.labels],
            "canary": {**routing, "versions": versions} if versions else None,
        }


class _Records(BaseModel):
    items: Annotated[list[_Record], null_as([])] = []


class _StatusRecord(BaseModel):
    status: Text = ""
    reason: Text = ""
    event_timestamp: Time = None
    created_at: Time = None
    deployment_revision: _Revision | None = None

    @property
    def age_key(self) -> datetime:
        return self.event_timestamp or self.created_at or datetime.min.replace(tzinfo=UTC)


class _StatusRecords(BaseModel):
    items: Annotated[list[_StatusRecord], null_as([])] = []


class Deployments:
    """The deployments of one connection.

    :param registry: whose models the bentos are built with.
    :param calls: makes the calls.
    :param cluster: where the deployments run; the server's default when empty.
    """

    def __init__(self, registry: Registry, calls: Calls, cluster: str | None) -> None:
        self._registry = registry
        self._calls = calls
        self._params = {"cluster": cluster or ""}  # sent empty, too, as the vendor's client does
        self._odd: set[str] = set()

    def deploy(self, name: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        """Create a deployment or give it a new configuration, unless it runs exactly that already.

        A request whose answer is lost is looked after before it is made again, so that it never rolls out twice.
        """
        path = self._path(name)
        doing = f"deploying {ref} as {name}"
        asked = _checked(config)
        there = yield from self._settled(path, doing)
        body, model = yield from self._body(path, ref, asked, there)
        # The revision before may still be shown soon after an update: whoever wants it back must not be misled.
        is_back = there is not None and "revision" in asked and there.revision == asked["revision"]
        if there and not is_back and there.status not in _FAILED and _asked(body) == _running(there, body):
            _log.info("%s already runs %s as revision %s: nothing is changed", name, there.bento, there.revision)
            return self._deployment_of(there, model)
        made = yield from self._roll_out(path, there, {**body, "name": name}, doing)
        _log.info("%s takes the bento %s: revision %s", name, body["bento"], made.revision)
        return self._deployment_of(made, model)

    def get(self, name: str) -> Flow[Deployment]:
        """Return a deployment, with the reason when it has failed."""
        record = yield from self._read(self._path(name), f"reading the deployment {name}")
        if record is None:
            raise ModelNotFound(f"{self._registry.title} has no deployment {name!r}")
        reason = (yield from self._reason(record)) if record.status in _BROKEN else None
        return self._deployment_of(record, reason=reason)

    def terminate(self, name: str) -> Flow[Deployment]:
        """End a deployment; one that is ending, has ended or is gone is fine as it is."""
        path = self._path(name)
        doing = f"terminating the deployment {name}"
        record = yield from self._read(path, doing)
        if record is not None and record.status not in (_TERMINATING, _TERMINATED):
            try:
                record = yield from self._calls.find("POST", f"{path}/terminate", _Record, doing, params=self._params)
            except InvalidInput:  # somebody else may have been faster
                record = yield from self._read(path, doing)
                if record is not None and record.status not in (_TERMINATING, _TERMINATED):
                    raise
        if record is None:
            return Deployment(registry=self._registry.conn_type, name=name, status=_TERMINATED, failed=True, gone=True)
        return self._deployment_of(record)

    def models(self) -> Flow[dict[str, str]]:
        """Return the models that deployments run, in whatever cluster, each with the name of one that does."""
        found: dict[str, str] = {}
        known: dict[str, list[str]] = {}
        for listed in (yield from self._all()):
            if listed.status == _TERMINATED:
                continue
            record: _Record | None = listed
            if listed.latest_revision is None or not listed.latest_revision.targets:  # a list may leave that out
                record = yield from self._read(self._path(listed.name), f"reading the deployment {listed.name}")
            for target in record.latest_revision.targets if record and record.latest_revision else []:
                if target.bento is None or target.bento.tag is None:
                    continue
                tag = target.bento.tag
                if tag not in known:
                    known[tag] = yield from self._models_in(target.bento, tag)
                found |= {model: listed.name for model in known[tag] if model not in found}
        return found

    def _models_in(self, bento: _Bento, tag: str) -> Flow[list[str]]:
        models = bento.manifest.models
        if not models:
            name, _, version = tag.partition(":")
            path = f"/api/v1/bento_repositories/{name}/bentos/{version}"
            record = yield from self._calls.find("GET", path, _BentoRecord, f"reading the bento {tag}")
            models = record.manifest.models if record else []
        return [model for model in models if isinstance(model, str)]

    def _all(self) -> Flow[list[_Record]]:
        records: list[_Record] = []
        for page in range(_MAX_PAGES):
            params = {"start": page * _PAGE, "count": _PAGE}
            more = yield from self._calls.find("GET", _ROOT, _Records, "listing the deployments", params=params)
            records += more.items if more else []
            if more is None or len(more.items) < _PAGE:
                break
        return records

    def _path(self, name: str | None) -> str:
        if not name or not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{show(name or '')} is not lower-case letters, digits, '-', '_' and '.', at most 63, "
                "with a letter or digit at both ends",
                argument="deployment",
            )
        return f"{_ROOT}/{name}"

    def _read(self, path: str, doing: str) -> Flow[_Record | None]:
        response = yield from self._calls.answer("GET", path, may_repeat=True, params=self._params)
        if is_unknown_route(response):
            raise NotSupported(
                f"{doing}: this server has no deployments of version 2, as Yatai", remedy="deploy on BentoCloud"
            )
        if is_missing(response):
            return None
        refuse(response, doing)
        return read_json(response, _Record, doing)

    def _settled(self, path: str, doing: str) -> Flow[_Record | None]:
        """Read a deployment; one that is ending is waited for."""
        for _ in range(_ENDING_LOOKS):
            record = yield from self._read(path, doing)
            if record is None or record.status != _TERMINATING:
                return record
            yield from sleep(_ENDING_SECONDS)
        raise RegistryUnavailable(f"{doing}: it is still being terminated")

    def _roll_out(self, path: str, there: _Record | None, body: dict[str, Any], doing: str) -> Flow[_Record]:
        """Create or update; a request whose answer was lost is looked after before it is made again."""
        for pause in _PAUSES:
            try:
                return (yield from self._send(path, there, body, doing))
            except RegistryUnavailable as error:
                _log.info("%s; looking whether it was carried out", error)
            yield from sleep(pause)
            before, there = there, (yield from self._settled(path, doing))
            is_new = there is not None and (before is None or there.revision != before.revision)
            if there is not None and is_new and _includes(_running(there, body), _asked(body)):
                return there
        return (yield from self._send(path, there, body, doing))

    def _send(self, path: str, there: _Record | None, body: dict[str, Any], doing: str) -> Flow[_Record]:
        secrets = tuple(_env_values(body))
        if there is None:
            response = yield from self._calls.answer("POST", _ROOT, secrets=secrets, params=self._params, json=body)
            if is_duplicate(response):
                raise RegistryUnavailable(f"{doing}: it has just been created")
        else:
            changes = {key: value for key, value in body.items() if key not in _AT_CREATION}
            response = yield from self._calls.answer("PUT", path, secrets=secrets, params=self._params, json=changes)
        refuse(response, doing)
        made = read_json(response, _Record, doing)
        if there is not None and made.revision is None:  # nothing would tell it from the revision before
            raise RegistryUnavailable(f"{doing}: the answer names no revision")
        return made

    def _body(
        self, path: str, ref: ModelRef, asked: dict[str, Any], there: _Record | None
    ) -> Flow[tuple[dict[str, Any], str | None]]:
        """Return the request's body, all but the name, and the model that it serves, if that is known."""
        if "revision" in asked:
            return (yield from self._body_of(path, asked["revision"], there)), None
        if "bento" in asked:
            _check_bento(self._registry, asked["bento"])
            return asked, None
        if ref.version is None:
            version = yield from self._registry.get(ref)
            ref = ModelRef(name=version.name, version=version.version)
        return {**asked, "bento": (yield from self._newest_bento(ref))}, str(ref)

    def _body_of(self, path: str, uid: str, there: _Record | None) -> Flow[dict[str, Any]]:
        """Return what brings an earlier revision back."""
        found = None
        if there is not None and _NAME.fullmatch(uid):
            doing = f"reading the revision {uid}"
            found = yield from self._calls.find("GET", f"{path}/revisions/{uid}", _Revision, doing, params=self._params)
        main = found.main if found else None
        if there is None or main is None or main.bento is None or main.bento.tag is None:
            raise InvalidInput(f"there is no revision {show(uid)} to go back to", argument="config")
        if found and len(found.targets) > 1:
            # The shares of canaries belong to the deployment, not to a revision: they are not known any more.
            raise NotSupported(f"the revision {show(uid)} has canaries", remedy="deploy its configuration instead")
        # Labels belong to the deployment, too; an update that left them out might remove them.
        labels = [label.model_dump() for label in there.labels]
        return {**_without_nulls(main.config), "bento": main.bento.tag, **({"labels": labels} if labels else {})}

    def _newest_bento(self, ref: ModelRef) -> Flow[str]:
        """Return the newest bento that can be run and was built with a model version."""
        bentos = yield from self._bentos_with(ref)
        usable = [bento for bento in bentos if bento.upload_status == "success" and bento.tag]
        if not usable:
            raise NotReady(  # a model is there before the bento that is built with it
                f"{self._registry.title} has no uploaded bento that was built with {ref}",
                remedy="build one with this model and push it, or name one in config['bento']",
                argument="model",
            )
        return str(max(usable, key=lambda bento: bento.age_key).tag)

    def _bentos_with(self, ref: ModelRef) -> Flow[list[_Bento]]:
        path = f"/api/v1/model_repositories/{ref.name}/models/{ref.version}"
        doing = f"looking for bentos with {ref}"
        bentos: list[_Bento] = []
        try:
            for page in range(_MAX_PAGES):
                params = {"start": page * _PAGE, "count": _PAGE}
                more = yield from self._calls.find("GET", f"{path}/bentos", _Bentos, doing, params=params)
                bentos += more.items if more else []
                if more is None or len(more.items) < _PAGE:
                    break
        except InvalidInput as error:  # not every server offers the list
            _log.info("%s; looking into the model's record", error)
        if bentos:
            return bentos
        record = yield from self._calls.find("GET", path, _ModelRecord, doing)
        if record is None:
            raise ModelNotFound(f"{self._registry.title} has no version {ref.version!r} of {ref.name!r}")
        return record.bentos

    def _reason(self, record: _Record) -> Flow[str | None]:
        """Return why a deployment is in its state, as far as the server tells."""
        path, doing = f"{_ROOT}/{record.name}/status_records", f"asking why {record.name} is {record.status}"
        params = {**self._params, "start": 0, "count": _RECORDS}
        try:
            found = yield from self._calls.find("GET", path, _StatusRecords, doing, params=params)
        except Cancelled:
            raise
        except ModelSyncError as error:  # the failure itself matters more than its reason
            _log.warning("%s", error)
            return None
        ours = [
            entry
            for entry in (found.items if found else [])
            if entry.reason
            and entry.status == record.status
            and (entry.deployment_revision is None or entry.deployment_revision.uid in ("", record.revision))
        ]
        newest = sorted(ours, key=lambda entry: entry.age_key, reverse=True)
        reasons = list(dict.fromkeys(entry.reason for entry in newest))[:_SHOWN_REASONS]
        return excerpt("; ".join(reasons), tuple(_env_values(record.model_dump()))) or None

    def _deployment_of(self, record: _Record, model: str | None = None, *, reason: str | None = None) -> Deployment:
        status = record.status
        if status not in _READY | _FAILED | _ON_THE_WAY and status not in self._odd:
            self._odd.add(status)
            _log.warning("%s has the unknown status %s; taken as not ready yet", record.name, show(status))
        return Deployment(
            registry=self._registry.conn_type,
            name=record.name,
            status=status,
            ready=status in _READY,
            failed=status in _FAILED,
            gone=status == _TERMINATED,
            reason=reason,
            model=model or record.model,
            artifact=record.bento,
            revision=record.revision,
            url=show_url(record.urls[0]) if record.urls else None,
            page=self._page_of(record),
            raw=_masked(record.model_dump(mode="json")),
        )

    def _page_of(self, record: _Record) -> str:
        facts = {"cluster": record.cluster.name if record.cluster else "", "namespace": record.kube_namespace}
        query = urlencode(facts) if all(facts.values()) else ""
        return f"{self._registry.base_url}/deployments/{record.name}" + (f"?{query}" if query else "")


def _check_bento(registry: Registry, tag: str) -> None:
    try:
        version = registry.parse(tag).version
    except InvalidInput as error:
        raise InvalidInput(f"bento: {error.message}", argument="config") from None
    if version is None:
        raise InvalidInput(f"bento: {show(tag)} needs an exact version, as in 'name:version'", argument="config")


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration and return it without what is not set."""
    if unknown := sorted(show(str(key)) for key in config if key not in DeployConfig.model_fields):
        known = ", ".join(sorted(DeployConfig.model_fields))
        raise InvalidInput(f"unknown: {', '.join(unknown)}; known: {known}", argument="config")
    config = restructured(DeployConfig, config)
    try:
        checked = DeployConfig.model_validate(config)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="config") from None
    plain = {key: value for key in config if isinstance(value := getattr(checked, key), (bool, int, str))}
    asked: dict[str, Any] = _without_nulls({**config, **plain})
    if "revision" in asked and len(asked) > 1:
        raise InvalidInput("'revision' brings a whole configuration back; it is allowed alone", argument="config")
    return asked


def _asked(body: Mapping[str, Any]) -> Any:
    """Return what a request asks for, comparable with :func:`_running`."""
    return _comparable({key: value for key, value in body.items() if key not in _UNSHOWN})


def _running(record: _Record, body: Mapping[str, Any]) -> Any:
    """Return what a deployment runs, as far as a request has a say in it."""
    known = record.configuration
    return _comparable({key: known[key] for key in known if key in body or key not in _ANYBODYS})


def _comparable(value: Any, key: str = "") -> Any:
    """Bring configurations into one form, however much they spell out of what is not set."""
    if isinstance(value, Mapping):
        items = {name: _comparable(item, name) for name, item in value.items()}
        kept = {name: item for name, item in items.items() if item not in (None, "", [], {}) and item is not False}
        return {} if key == "scaling" and kept == _DEFAULT_SCALING else kept
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value


def _includes(whole: Any, part: Any) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _includes(whole[key], item) for key, item in part.items())
    return bool(whole == part)


def _without_nulls(value: Any) -> Any:
    # The document of the API does not allow null where the vendor's client sends it.
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value


def _env_values(value: Any) -> Iterator[str]:
    """Return the values of all environment variables in a record or a request: any of them may be a secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "envs" and isinstance(item, list):
                yield from (str(env["value"]) for env in item if isinstance(env, Mapping) and env.get("value"))
            yield from _env_values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _env_values(item)


def _masked(value: Any, *, is_env: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: "***" if is_env and key == "value" and item else _masked(item, is_env=key == "envs")
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_masked(item, is_env=is_env) for item in value]
    return value

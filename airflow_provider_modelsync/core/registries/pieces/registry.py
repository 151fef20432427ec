"""Pieces OS: models that a desktop program keeps on its own host, downloads, and serves to other programs there.

No endpoint carries weights, so nothing moves to or from the worker: a pull means "downloaded on that host". A model has
one version at a time, the one that its record names.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, SyncDriver, sleep, wait_for
from airflow_provider_modelsync.core.http.policy import RequestPolicy
from airflow_provider_modelsync.core.models import (
    LATEST,
    Deployment,
    Fetch,
    ModelRef,
    ModelVersion,
    Patience,
    Query,
    TransferStats,
    VersionStatus,
    require_json,
)
from airflow_provider_modelsync.core.registries.base import ANY, Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import Deploys, Fetches, Note
from airflow_provider_modelsync.core.registries.pieces.api import Calls, PiecesModel, PiecesSettings, is_ok, not_ok
from airflow_provider_modelsync.core.registries.pieces.progress import DownloadProgress, Outcome, ProgressSocket
from airflow_provider_modelsync.core.settings import RegistrySettings

_ID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST = 1024  # characters of a name
_COMPUTED = frozenset({"id", "downloading", "loaded", "custom"})  # what no update may set
_REQUIRED = frozenset({"version", "name", "type", "usage"})  # what the OpenAPI document demands of a new record

_NEVER = datetime.min.replace(tzinfo=UTC)

_LOOK_SECONDS = 10.0  # for one look while messages wait
_LOAD_SECONDS = 300.0  # the answer may come only once the model is in memory
# For taking a download back: the request that began it may still be on its way.
_CANCEL_SECONDS, _CANCEL_LOOKS, _CANCEL_PAUSE = 10.0, 3, 0.3

_log = logging.getLogger("modelsync")


class _Watch:
    """How a wait for one download stands.

    :param deadline: when it gives up, monotonic.
    """

    def __init__(self, fetch: Fetch, socket: ProgressSocket, patience: Patience, deadline: float) -> None:
        self.fetch = fetch
        self.socket = socket
        self.patience = patience
        self.deadline = deadline
        self.outcome = Outcome(fetch.name)
        self.is_troubled = False
        self.looked()

    def looked(self) -> None:
        """Note that the record was looked at just now."""
        self._due = time.monotonic() + self.patience.poll_interval

    @property
    def pause(self) -> float:
        """Seconds until the record is to be looked at again."""
        return min(self._due, self.deadline) - time.monotonic()


class Pieces(Registry, Fetches, Deploys):
    """The models of one host.

    :param settings: the connection.
    """

    conn_type = "pieces"
    title = "Pieces OS"
    settings_type = PiecesSettings
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.DELETE})
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.PUSH: "describe a model of your own with `register`, or change its description with `update`",
        Capability.PULL: "leave the target out: the model is then downloaded on the host where Pieces OS runs",
        Capability.CHOOSE_VERSION: "a model's version is a field of its record; see `register` and `update`",
        Capability.FORCE: "change the record of a custom model with `update`",
        Capability.LABELS: "change other fields of a custom model with `update`",
        Capability.METADATA: "change other fields of a custom model with `update`",
        Capability.SIGNATURES: "what its host downloads passes by nobody who could compare it",
        Capability.ALIASES: "name the model by its id or its unique name",
        Capability.PREDICT: "ask the model through the chat endpoints of Pieces OS on its own host",
    }
    states: ClassVar[frozenset[str]] = frozenset({"ready", "available", "downloaded", "loaded"})

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        assert isinstance(settings, PiecesSettings)
        self._calls = Calls(settings)

    @property
    def base_url(self) -> str:  # type: ignore[override]  # known for sure only once it has answered
        return self._calls.base_url

    def policy(self) -> Policy:
        return RequestPolicy(self.settings)

    def has_reached(self, version: ModelVersion, state: str) -> bool:
        return state in ("ready", "available") or version.raw.get(state) is True

    def parse(self, model: str) -> ModelRef:
        # Names may hold colons; where the version begins is known only once the models are.
        ref = ModelRef(name=model)
        self.check(ref)
        return ref

    def check(self, ref: ModelRef) -> None:
        if ref.version == LATEST:
            raise InvalidInput("'latest' is no version", argument="model")
        text = str(ref)
        if not (text.isprintable() and text == text.strip(" :") and 0 < len(text) <= _LONGEST):
            raise InvalidInput(
                f"{show(text)} is no id or name: printable, without blanks or colons at its ends, "
                f"at most {_LONGEST} characters",
                argument="model",
            )

    def test(self) -> Flow[str]:
        yield from self.health()
        version = yield from self.version()
        return f"Connected to Pieces OS {version} at {self.base_url}."

    def health(self) -> Flow[str]:
        """Return what Pieces OS says about its health.

        :raises RegistryUnavailable: when that is not ``ok``.
        """
        said = yield from self._calls.plain("/.well-known/health", "checking the health")
        if not is_ok(said):
            raise not_ok(said)
        return said

    def version(self) -> Flow[str]:
        """Return the version of Pieces OS, e.g. ``12.1.0``."""
        return (yield from self._calls.plain("/.well-known/version", "reading the version"))

    # Reading

    def get(self, ref: ModelRef, query: Query = ANY) -> Flow[ModelVersion]:
        return self._version_of((yield from self._find(ref, query)))

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return self.get(ModelRef(name=name, version=version))

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        newest: dict[str, ModelVersion] = {}
        for model in _chosen((yield from self._calls.models()), query):
            newest.setdefault(model.label, self._version_of(model))
        return list(newest.values())

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        called = _called((yield from self._calls.models()), name)
        return [self._version_of(model) for model in _chosen(called, query)]

    # Describing models of one's own

    def register(self, fields: Mapping[str, Any]) -> Flow[ModelVersion]:
        """Describe a new custom model, unless there is one that is described so already.

        :param fields: of its record: ``name``, ``version``, ``type`` and ``usage`` at least. Left out, ``created`` is
            now, and ``cloud`` false.
        :raises VersionConflict: when its ``unique`` or, without one, its name belongs to another model.
        """
        require_json("fields", fields)
        if missing := _REQUIRED - fields.keys():
            raise InvalidInput(f"{sorted(missing)} must be said", argument="fields")
        if extra := _COMPUTED & fields.keys():
            raise InvalidInput(f"{sorted(extra)} are not for us to say", argument="fields")
        key = "unique" if fields.get("unique") else "name"
        if there := (yield from self._described(key, fields)):
            return there
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"created": {"value": now}, "cloud": False, **fields}
        try:
            made = yield from self._calls.post("/models/create", f"registering {fields[key]}", record)
        except RegistryUnavailable:
            # The answer may be lost, or another task was faster.
            if there := (yield from self._described(key, fields)):
                return there
            raise
        return self._version_of(made)

    def update(self, ref: ModelRef, changes: Mapping[str, Any]) -> Flow[ModelVersion]:
        """Change fields of a custom model's record; every other one stays as it is, known to us or not.

        :raises NotSupported: when the model is none of the user's own.
        """
        require_json("changes", changes)
        if extra := _COMPUTED & changes.keys():
            raise InvalidInput(f"{sorted(extra)} cannot be changed", argument="changes")
        found = yield from self._find(ref)
        model = yield from self._calls.need(found.id)
        if not model.custom:
            raise NotSupported(f"{model.label} came with {self.title}, which lets only custom models be changed")
        wanted = {**model.raw, **changes}
        if wanted == model.raw:
            return self._version_of(model)
        doing = f"updating {model.label}"
        try:
            changed = yield from self._calls.post("/model/update", doing, wanted)
        except RegistryUnavailable:
            changed = yield from self._calls.need(model.id)
            if not _holds(changed.raw, changes):
                raise
        if not _holds(changed.raw, changes):
            kept = sorted(key for key in changes if changed.raw.get(key) != changes[key])
            _log.warning("%s: Pieces OS shows other values than asked for in %s", doing, kept)
        return self._version_of(changed)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        try:
            model = yield from self._find(ref)
        except ModelNotFound:
            return False
        if not model.custom:
            raise NotSupported(f"{model.label} came with {self.title}, which lets only custom models be deleted")
        yield from self._calls.delete(model)
        return True

    # Downloading

    def fetch(self, ref: ModelRef, query: Query, patience: Patience, note: Note) -> Flow[ModelVersion]:
        model = yield from self._find(ref, query)
        if model.downloaded:
            return self._fetched(model, skipped=True)
        socket = self._socket(model.id)
        try:
            yield from wait_for(socket.open)  # first of all, so that it misses nothing
            fetch = yield from self._ask((yield from self._calls.need(model.id)), note)
            deadline = time.monotonic() + patience.seconds
            return fetch.version or (yield from self._watch(fetch, socket, patience, deadline))
        finally:
            yield from wait_for(socket.close)

    def start_fetch(self, ref: ModelRef, query: Query, note: Note) -> Flow[Fetch]:
        return (yield from self._ask((yield from self._find(ref, query)), note))

    def finish_fetch(self, fetch: Fetch, patience: Patience) -> Flow[ModelVersion]:
        deadline = time.monotonic() + patience.seconds
        while (away := (yield from self._is_away())) and time.monotonic() < deadline:
            _log.warning("%s; the wait goes on", away)
            yield from sleep(patience.poll_interval)
        socket = self._socket(fetch.ref)
        try:
            yield from wait_for(socket.open)
            return (yield from self._watch(fetch, socket, patience, deadline))
        finally:
            yield from wait_for(socket.close)

    def cancel_fetch(self, ref: str) -> Flow[str]:
        name = ref
        for _ in range(_CANCEL_LOOKS):
            model = yield from self._calls.find(ref, seconds=_CANCEL_SECONDS)
            if model is None:
                return f"{ref} is not on {self.base_url} any more"
            name = model.label
            if model.downloaded:
                return f"{name} is downloaded already"
            if model.downloading:
                doing = f"cancelling the download of {name}"
                yield from self._calls.act(model, "download/cancel", _is_idle, doing, seconds=_CANCEL_SECONDS)
                return f"the download of {name} is cancelled"
            yield from sleep(_CANCEL_PAUSE)
        return f"the download of {name} is over or was never begun"

    def _ask(self, model: PiecesModel, note: Note) -> Flow[Fetch]:
        """Ask for a download unless there is one, or was one."""
        fetch = Fetch(ref=model.id, name=model.label)
        if model.downloaded:
            return fetch.model_copy(update={"version": self._fetched(model, skipped=True)})
        if model.cloud:
            raise NotSupported(f"{model.label} runs in the cloud: there is nothing that Pieces OS could download")
        if model.downloading:
            _log.info("%s is being downloaded already: joining", model.label)
            return fetch
        fetch = fetch.model_copy(update={"ours": True})
        note(fetch)
        doing = f"downloading {model.label}"
        now = yield from self._calls.act(model, "download", lambda now: now.downloaded or now.downloading, doing)
        _log.info("%s is being downloaded on %s", model.label, self.base_url)
        return fetch.model_copy(update={"version": self._fetched(now)}) if now.downloaded else fetch

    def progress(
        self, driver: SyncDriver, ref: ModelRef, query: Query, patience: Patience, note: Note
    ) -> Generator[DownloadProgress, None, None]:
        """Have a model downloaded as :meth:`fetch` does, and yield how far that is, whenever it gets any further.

        :param driver: runs the flows in between.
        """
        deadline = time.monotonic() + patience.seconds
        model = driver.run(self._find(ref, query))
        socket = self._socket(model.id)
        try:
            if not model.downloaded:
                driver.run(wait_for(socket.open))  # first of all, so that it misses nothing
            fetch = driver.run(self._ask(model, note))
            watch = _Watch(fetch, socket, patience, deadline)
            while fetch.version is None and driver.run(self._listen(watch)) is None:
                if (told := watch.outcome.told()) is not None:
                    yield told
            yield DownloadProgress.done()
        finally:
            driver.shielded().run(wait_for(socket.close))

    def _watch(self, fetch: Fetch, socket: ProgressSocket, patience: Patience, deadline: float) -> Flow[ModelVersion]:
        """Listen, and look from time to time, until the outcome is known."""
        watch = _Watch(fetch, socket, patience, deadline)
        while True:
            if version := (yield from self._listen(watch)):
                return version

    def _listen(self, watch: _Watch) -> Flow[ModelVersion | None]:
        """Wait for the next message, and look when it gives reason to, or when it is time."""
        fetch, outcome = watch.fetch, watch.outcome
        heard = yield from wait_for(watch.socket.next, watch.pause)
        is_telling = heard is not None and outcome.hear(heard)
        if not is_telling and watch.pause > 0:
            return None
        # What has come by now is heard before the look: it may say why there is nothing to see.
        for more in (yield from wait_for(watch.socket.waiting)):
            is_telling |= outcome.hear(more)
        try:
            now = yield from self._calls.need(fetch.ref, seconds=_LOOK_SECONDS)
        except RegistryUnavailable as error:
            if not watch.is_troubled:
                _log.warning("%s; the wait goes on", error)
            watch.is_troubled = True
        else:
            watch.is_troubled = False
            if outcome.see(now, is_prompted=is_telling):
                _log.info("%s is downloaded on %s", now.label, self.base_url)
                return self._fetched(now)
        if time.monotonic() >= watch.deadline:
            undone = (yield from self.cancel_fetch(fetch.ref)) if fetch.ours else "somebody else asked for it"
            raise RegistryUnavailable(f"{fetch.name} was not downloaded after {watch.patience.seconds:.0f} s; {undone}")
        watch.looked()
        return None

    def _is_away(self) -> Flow[RegistryUnavailable | None]:
        try:
            yield from self._calls.reach()
        except RegistryUnavailable as error:
            return error
        return None

    def _socket(self, model: str) -> ProgressSocket:
        return ProgressSocket(self._calls.socket_url(model), self.settings, self._calls.headers)

    def _fetched(self, model: PiecesModel, *, skipped: bool = False) -> ModelVersion:
        return self._version_of(model).model_copy(update={"transfer": TransferStats(skipped=skipped)})

    # Serving

    def own_deployment(self, model: str | None) -> str | None:
        return model

    def needs_fetch(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[bool]:
        if deployment not in (None, str(ref)):
            raise InvalidInput(
                f"on {self.title} the deployment is the model itself: leave it out", argument="deployment"
            )
        if config:
            raise InvalidInput(f"{self.title} takes no configuration", argument="config")
        return not _is_loadable((yield from self._find(ref)))

    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        if (yield from self.needs_fetch(deployment, ref, config)):
            yield from self.fetch(ref, ANY, Patience(), lambda _: None)
        return self._deployment_of((yield from self._load(ref)))

    def deployment(self, name: str) -> Flow[Deployment]:
        return self._deployment_of((yield from self._find(self.parse(name))))

    def undeploy(self, name: str) -> Flow[Deployment]:
        try:
            model = yield from self._find(self.parse(name))
        except ModelNotFound:
            return Deployment(registry=self.conn_type, name=name, status="absent", gone=True)
        return self._deployment_of((yield from self._unload(model)))

    def load(self, ref: ModelRef) -> Flow[ModelVersion]:
        """Bring a downloaded model into memory.

        :raises InvalidInput: when it is not downloaded.
        """
        return self._version_of((yield from self._load(ref)))

    def unload(self, ref: ModelRef) -> Flow[ModelVersion]:
        """Free the memory that a model takes."""
        return self._version_of((yield from self._unload((yield from self._find(ref)))))

    def _load(self, ref: ModelRef) -> Flow[PiecesModel]:
        model = yield from self._find(ref)
        if model.loaded:
            return model
        if not _is_loadable(model):
            raise InvalidInput(f"{model.label} cannot be loaded before it is downloaded", argument="model")
        doing = f"loading {model.label}"
        return (yield from self._calls.act(model, "load", lambda now: now.loaded, doing, seconds=_LOAD_SECONDS))

    def _unload(self, model: PiecesModel) -> Flow[PiecesModel]:
        if not model.loaded:
            return model
        return (yield from self._calls.act(model, "unload", lambda now: not now.loaded, f"unloading {model.label}"))

    def _deployment_of(self, model: PiecesModel) -> Deployment:
        states = {"loaded": model.loaded, "downloaded": model.downloaded, "downloading": model.downloading}
        version = self._version_of(model)
        return Deployment(
            registry=self.conn_type,
            name=model.label,
            status=next((state for state, reached in states.items() if reached), "available"),
            ready=model.loaded,
            gone=not model.loaded,
            model=version.ref,
            revision=model.version if model.loaded else None,
            raw=model.raw,
        )

    # Names

    def _find(self, ref: ModelRef, query: Query = ANY) -> Flow[PiecesModel]:
        text = str(ref)
        if _ID.fullmatch(text) and (model := (yield from self._calls.find(text))) and _chosen([model], query):
            return model
        models = yield from self._calls.models()
        for name, version in _readings(text):
            for model in _chosen(_called(models, name), query):
                if version in (None, LATEST, model.version):
                    return model
        raise ModelNotFound(f"{self.title} at {self.base_url} has no model {text!r}")

    def _version_of(self, model: PiecesModel) -> ModelVersion:
        return ModelVersion(
            registry=self.conn_type,
            name=model.label,
            version=model.version,
            status=VersionStatus.READY,
            size_bytes=model.size_bytes,
            metadata={"id": model.id},
            created_at=model.created,
            uri=f"{self.base_url}/model/{model.id}",
            raw=model.raw,
        )

    def _described(self, key: str, fields: Mapping[str, Any]) -> Flow[ModelVersion | None]:
        """Return the custom model that is described so already; raise when the name belongs to another."""
        for model in (yield from self._calls.models()):
            if model.raw.get(key) == fields[key]:
                if model.custom and _holds(model.raw, fields):
                    return self._version_of(model)
                raise VersionConflict(
                    f"{self.title} has another model with the {key} {fields[key]!r}",
                    remedy="choose another one, or change that model with `update`",
                )
        return None


def _readings(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield what a reference may mean: all of it is a name, or what follows one of its colons is a version."""
    yield text, None
    for colon in reversed([place for place, letter in enumerate(text) if letter == ":"]):
        if text[:colon] and text[colon + 1 :]:
            yield text[:colon], text[colon + 1 :]


def _called(models: Iterable[PiecesModel], name: str) -> list[PiecesModel]:
    """Return the models that a name means.

    :raises InvalidInput: when it is shared by several, naming these.
    """
    models = list(models)
    keys: tuple[Callable[[PiecesModel], str], ...] = (lambda m: m.id, lambda m: m.unique, lambda m: m.name)
    for key in keys:
        if found := [model for model in models if key(model) == name]:
            labels = sorted({model.label for model in found})
            if len(labels) > 1:
                raise InvalidInput(f"{name!r} means several models", remedy=f"name one of {labels}", argument="model")
            return found
    return []


def _chosen(models: Iterable[PiecesModel], query: Query) -> list[PiecesModel]:
    """Return the models that a query chooses, newest first; none has labels."""
    chosen = [model for model in models if query.matches_name(model.label) and not query.asks_for_labels]
    return sorted(chosen, key=lambda model: (model.created or _NEVER, model.version), reverse=True)


def _holds(record: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(key in record and record[key] == value for key, value in fields.items())


def _is_loadable(model: PiecesModel) -> bool:
    return model.downloaded or model.cloud or model.loaded


def _is_idle(model: PiecesModel) -> bool:
    return not model.downloading

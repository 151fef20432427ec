"""MLflow's model registry, of the open-source tracking server.

A model version only names where its files lie. So a push brings these there first, and creates the version last, with
all that is to be known of it: its digest, by which equal bytes are found again, and its labels as tags.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY, require_safe, show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.steps import Flow, Policy
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.models import LATEST, NOBODY, Alias, ModelRef, ModelVersion, Query
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import (
    MOST_SIGNATURES,
    Aliases,
    KeepsSignatures,
    moved,
    name_of,
)
from airflow_provider_modelsync.core.registries.mlflow.aliases import aliases_in, fault_of_alias, key_of, remembered
from airflow_provider_modelsync.core.registries.mlflow.api import (
    LISTING_BYTES,
    Calls,
    MLflowSettings,
    Text,
    is_unknown_route,
    quoted,
    refuse_moved,
)
from airflow_provider_modelsync.core.registries.mlflow.artifacts import Artifacts
from airflow_provider_modelsync.core.registries.mlflow.bucket import Buckets, InBucket
from airflow_provider_modelsync.core.registries.mlflow.holders import Holder, Holders, LoggedModels, Runs
from airflow_provider_modelsync.core.registries.mlflow.places import Place, Served
from airflow_provider_modelsync.core.registries.mlflow.records import (
    CONN_TYPE,
    DIGEST,
    MANIFEST,
    ExperimentAnswer,
    Manifest,
    ModelAnswer,
    ModelPage,
    NewExperiment,
    RegisteredModel,
    VersionAnswer,
    VersionPage,
    VersionRecord,
    check_labels,
    check_sendable,
    is_ours,
    tags_of,
    version_tags,
)
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.base import OpenSession
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    Blob,
    DownloadPlan,
    GetFiles,
    PushRequest,
    PutBlobs,
    PutFiles,
    PutObjects,
    UploadPlan,
    choose_part_size,
)

__all__ = ["MLflow", "MLflowSettings"]

_log = logging.getLogger("modelsync")

_MAX_NAME = 256  # characters that every database of a server keeps
_BAD_IN_NAME = re.compile(r'[/:@"\x00-\x1f\x7f]')
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_MAX_VERSION = 2**31 - 1
_PAGE = 100
_ABORT_SECONDS = 1.5  # for each call: a killed task has little time to say goodbye


class _User(BaseModel):
    username: Text = ""


class _Current(BaseModel):
    user: _User = _User()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan(UploadPlan):
    request: PushRequest
    tags: dict[str, str] = field(repr=False)
    holder: Holder
    place: Place


class MLflow(Registry, Aliases, KeepsSignatures):
    """The registered models of one tracking server, or of one of its workspaces.

    :param settings: the connection.
    :param session: opens the boto3 session to use for buckets instead of one with the connection's own keys.
    """

    conn_type = CONN_TYPE
    title = "MLflow"
    settings_type = MLflowSettings
    settings: MLflowSettings
    base_url: str
    capabilities = frozenset(
        {Capability.PUSH, Capability.PULL, Capability.DELETE, Capability.LABELS, Capability.METADATA}
    )
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.CHOOSE_VERSION: "it numbers versions itself; name only the model, and choose by label, digest or "
        "alias",
        Capability.FORCE: "a push of other bytes makes a new version; delete the old one",
        Capability.DEPLOY: "serve the version yourself with `mlflow models serve -m models:/<name>/<version>`",
        Capability.PREDICT: "send the inputs to what `mlflow models serve` answers at, POST /invocations",
    }

    leaves_out: ClassVar[Mapping[str, str | None]] = {"registered_model_meta": "MLmodel"}

    compares = False

    def __init__(self, settings: RegistrySettings, session: OpenSession | None = None) -> None:
        super().__init__(settings)
        if not isinstance(settings, MLflowSettings):
            raise InvalidInput("these are no settings of MLflow", connection=settings.conn_id)
        self._calls = Calls(settings, self.title)
        self.base_url = self._calls.base_url
        self._artifacts = Artifacts(self._calls, self.title, Buckets(settings, session))
        self._kind: Holders | None = None

    @property
    def identity(self) -> str:
        facts = f"{super().identity} {self.settings.workspace or ''}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def policy(self) -> Policy:
        return self._calls.policy()

    def check(self, ref: ModelRef) -> None:
        name = ref.name
        if not name.strip() or len(name) > _MAX_NAME or name in (".", "..") or _BAD_IN_NAME.search(name):
            raise InvalidInput(
                f"the name {show(name)} is not 1 to {_MAX_NAME} characters without '/', ':', '@', '\"' and control "
                "characters",
                argument="model",
            )
        if ref.version == LATEST:
            raise InvalidInput(f"{LATEST!r} is no version", argument="model")
        if ref.alias is not None and fault_of_alias(ref.alias):
            raise InvalidInput(
                f"the alias {show(ref.alias)} is not 1 to 255 letters, digits, '_' and '-', or is reserved as "
                f"{LATEST!r} and 'v1' are",
                argument="model",
            )

    def test(self) -> Flow[str]:
        doing = "listing the registered models"
        yield from self._calls.need("GET", "registered-models/search", ModelPage, doing, params={"max_results": 1})
        user = yield from self._user()
        version = yield from self._server_version()
        workspace = f", workspace {self.settings.workspace}" if self.settings.workspace else ""
        return f"Connected to {self.title} {version} at {self.base_url}{workspace}, {user}.".replace("  ", " ")

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        if model is None:
            return f"{self.base_url}/#/models"
        return f"{self.base_url}/#/models/{quote(model.name, safe='')}/versions/{model.version}"

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return (yield from self._record(name, version)).shown()

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        if not query.matches_name(name):
            return None
        # The newest come first, so the first page that holds a match decides. Most often its first entry is one.
        token: str | None = None
        size = _PAGE if query.asks_for_labels else 1
        while True:
            page = yield from self._page(name, "DESC", token, size)
            for record in page.model_versions:
                version = record.shown()
                if version.ready and query.matches(version):
                    return version
            if not page.next_page_token or page.next_page_token == token:
                return None
            token, size = page.next_page_token, _PAGE

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        ask = {"filter": f"name = {quoted(name)}", "max_results": _PAGE, "order_by": "version_number ASC"}
        chosen = yield from self._versions(ask, query, f"listing the versions of {name}")
        model = (yield from self._model(name)) if chosen else None
        versions = [version.pointed_to(model.aliases_of(version.version) if model else ()) for version in chosen]
        return sorted(versions, key=_number, reverse=True)

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        if query.asks_for_labels:  # the newest version that has them need not be the newest one
            versions = yield from self._versions({"max_results": _PAGE}, query, "listing the versions of all models")
        else:
            versions = []

            def take(page: ModelPage) -> None:
                for model in page.registered_models:
                    versions.extend(record.shown(model.aliases_of(record.version)) for record in model.latest_versions)

            ask = {"max_results": _PAGE}
            doing = "listing the registered models"
            yield from self._calls.each_page("GET", "registered-models/search", ModelPage, doing, ask, take)
        newest: dict[str, ModelVersion] = {}
        for version in sorted(versions, key=_number, reverse=True):
            if version.ready and query.matches(version):
                newest.setdefault(version.name, version)
        return sorted(newest.values(), key=lambda version: version.age_key, reverse=True)

    def failure_of(self, version: ModelVersion) -> Flow[str]:
        return (yield from self._record(version.name, version.version)).status_message

    def delete(self, ref: ModelRef) -> Flow[bool]:
        name, version = ref.name, _exact(ref)
        record = yield from self._find(name, version)
        if record is None:
            return False
        holders = yield from self._holders()
        holder = yield from holders.of_version(record)
        yield from self._delete_version(record)
        if holder is not None:
            yield from self._discard(holder)
        return True

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        check_labels(labels)
        version = yield from self.get(ref)
        doing = f"labelling {version.ref}"
        for key, value in labels.items():
            if version.labels.get(key) == value:
                continue
            body = {"name": version.name, "version": version.version, "key": key}
            if value is None:
                yield from self._calls.need("DELETE", "model-versions/delete-tag", object, doing, json=body)
            else:
                body["value"] = value
                yield from self._calls.need("POST", "model-versions/set-tag", object, doing, json=body)
        return (yield from self.read_version(version.name, version.version))

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        for found in (yield from self.aliases(name)):
            if found.alias == alias:
                return found
        raise ModelNotFound(f"{self.title} has no alias {alias!r} of {name!r}")

    def aliases(self, name: str) -> Flow[list[Alias]]:
        model = yield from self._model(name)
        return aliases_in(model) if model else []

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        name, doing = version.name, f"moving the alias {alias} of {version.name}"
        model = yield from self._model(name)
        if model is None:
            raise ModelNotFound(f"{self.title} has no model {name!r}")
        now = next((entry.version for entry in model.aliases if entry.alias == alias), None)
        if now != version.version:
            if expected is not None and expected != (now or NOBODY):
                raise moved(f"{name}@{alias}", expected, now)
            body = {"name": name, "alias": alias, "version": version.version}
            yield from self._calls.need("POST", "registered-models/alias", object, doing, json=body)
        key, past = key_of(alias), remembered(model, alias, version.version)
        if key is not None and past is not None:
            body = {"name": name, "key": key, "value": past}
            yield from self._calls.need("POST", "registered-models/set-tag", object, doing, json=body)
        return (yield from self.alias(name, alias))

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        was_there = any(found.alias == alias for found in (yield from self.aliases(name)))
        if was_there:
            body, doing = {"name": name, "alias": alias}, f"removing the alias {alias} of {name}"
            yield from self._calls.find("DELETE", "registered-models/alias", object, doing, json=body)
        return was_there

    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        place = yield from self._artifacts.of_version((yield from self._record(version.name, version.version)))
        paths = [path for path in (yield from place.files()) if is_ours(path) and path != MANIFEST]
        kept: list[bytes] = []
        for path in sorted(paths)[:MOST_SIGNATURES]:
            content = yield from place.content(path)
            kept += [content] if content is not None else []
        return kept

    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        place = yield from self._artifacts.of_version((yield from self._record(version.name, version.version)))
        yield from self._put_signature(place, signature)

    def _put_signature(self, place: Place, signature: bytes) -> Flow[None]:
        yield from place.put(f"{RESERVED_DIRECTORY}/{name_of(signature)}", signature, "uploading the signature")

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        name, source = request.ref.name, request.source
        if request.options:
            raise InvalidInput(f"{self.title} takes no options", argument="options")
        check_labels(request.labels)
        check_sendable(source)
        tags = version_tags(request)
        yield from self._refuse_prompt(name)
        same = yield from self._same(name, source.digest)
        if same:
            return UploadPlan(ref=ModelRef(name=name, version=same[0].version), way=None, existing=same[0].shown())
        experiment = yield from self._experiment_id()
        holders = yield from self._holders(experiment)
        there: dict[str, int] = {}
        holder = yield from holders.find(experiment, name, source.digest)
        if holder is not None:
            holder = yield from holders.join(holder)
        if holder is None:
            holder = yield from holders.begin(experiment, name, source.digest)
            place = self._artifacts.at(holder.root, holder.model_id)
        else:
            place = self._artifacts.at(holder.root, holder.model_id)
            there = yield from place.files()
        missing = tuple(file for file in source.files if there.get(file.path) != file.size)
        way = yield from self._way_up(request, place, missing)
        return _Plan(ref=ModelRef(name=name), way=way, request=request, tags=tags, holder=holder, place=place)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_Plan, plan)
        holders, holder, name = (yield from self._holders()), plan.holder, plan.ref.name
        yield from self._put_manifest(plan)
        if plan.request.signature is not None:
            yield from self._put_signature(plan.place, plan.request.signature)
        yield from self._confirm(plan)
        yield from holders.settle(holder)
        yield from self._calls.create(
            "registered-models/create", ModelAnswer, f"creating the model {name}", {"name": name}
        )
        if not (yield from holders.is_there(holder)):
            raise BeginAgain(f"what was sent of {name} was given up by another push")
        record = yield from self._create_version(plan)
        if not holders.are_checked and not (yield from holders.is_there(holder)):
            yield from self._delete_version(record)
            raise BeginAgain(f"what was sent of {name} was given up by another push")
        first = next(iter((yield from self._same(name, plan.request.source.digest))), record)
        yield from holders.leave(holder)
        if first.number >= record.number:
            return record.shown()
        # Another push of the same bytes was faster.
        yield from self._delete_version(record)
        if first.source != holder.source:
            yield from self._discard(holder)
        return first.shown()

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        plan = cast(_Plan, plan)
        if isinstance(plan.way, PutBlobs):
            for file in plan.way.files:
                blob = plan.way.blobs[file.path]
                if blob.complete:
                    yield from self._artifacts.abandon(plan.place, file, blob, seconds=_ABORT_SECONDS)
        yield from self._discard(plan.holder, seconds=_ABORT_SECONDS)

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        record = yield from self._record(version.name, version.version)
        shown = record.shown()
        if (shown.digest, shown.created_at) != (version.digest, version.created_at):
            raise BeginAgain(f"{version.ref} was replaced a moment ago")
        place = yield from self._artifacts.of_version(record)
        manifest: Manifest | None = None
        if version.digest is not None:
            content = yield from place.content(MANIFEST)
            manifest = Manifest.read(content, version.digest) if content else None
        if manifest is None:
            sizes = {path: size for path, size in (yield from place.files()).items() if not is_ours(path)}
            if not sizes:
                raise ModelNotFound(f"the files of {version.ref} are gone from {record.source}", model=version.ref)
            files = tuple(FileEntry(path, size, "") for path, size in sorted(sizes.items()))
            directories: tuple[str, ...] = ()
        else:
            files, directories = manifest.entries(), tuple(manifest.directories)
        require_safe(version.ref, (file.path for file in files), directories)
        best = yield from self._artifacts.to_read(place, max(files, key=lambda file: file.size))
        etags = yield from best.etags()
        way = GetFiles(files, directories, lambda file: best.read(file.path), etags, is_whole=best.is_whole)
        return DownloadPlan(version=version, way=way)

    # How a push goes

    def _refuse_prompt(self, name: str) -> Flow[None]:
        found = yield from self._model(name)
        if found is not None and found.is_prompt:
            raise InvalidInput(
                f"{name} is a prompt in {self.title}, not a model; choose another name", argument="model"
            )

    def _experiment_id(self) -> Flow[str]:
        name = self.settings.experiment
        for _ in range(2):
            found = yield from self._calls.find(
                "GET",
                "experiments/get-by-name",
                ExperimentAnswer,
                f"looking for the experiment {name}",
                params={"experiment_name": name},
            )
            if found is not None:
                if found.experiment.lifecycle_stage == "deleted":
                    raise InvalidInput(
                        f"the experiment {name!r} is deleted; restore it, or name another one", argument="experiment"
                    )
                return found.experiment.experiment_id
            doing = f"creating the experiment {name}"
            made = yield from self._calls.create("experiments/create", NewExperiment, doing, {"name": name})
            if made is not None:
                return made.experiment_id
        raise RegistryUnavailable(f"the experiment {name!r} exists, and cannot be found")

    def _holders(self, experiment_id: str = "0") -> Flow[Holders]:
        """Return what holds bytes on this server; asked for once."""
        if self._kind is None:
            logged = LoggedModels(self._calls)
            is_offered = yield from logged.is_offered(experiment_id)
            self._kind = logged if is_offered else Runs(self._calls)
        return self._kind

    def _way_up(
        self, request: PushRequest, place: Place, missing: tuple[FileEntry, ...]
    ) -> Flow[PutFiles | PutBlobs | PutObjects]:
        """Say how files go up: large ones in parts past the server, where it signs these, or needs not."""
        if isinstance(place, InBucket):
            return (yield from place.way_up(request.source))
        assert isinstance(place, Served)
        blobs: dict[str, Blob] = {}

        def ask(file: FileEntry) -> Flow[Blob | None]:
            size = choose_part_size(file.size, self.settings.part_size_mib)
            if file.size > size and (found := (yield from self._artifacts.parts_of(place, file, size))):
                return found
            return Blob(whole=(yield from place.write(file.path)))

        def finish(file: FileEntry, blob: Blob, etags: Sequence[str]) -> Flow[None]:
            if blob.complete:
                yield from self._artifacts.complete(place, file, blob, etags)

        for file in sorted(missing, key=lambda file: -file.size):
            blob = yield from ask(file)
            if blob is None or (blob.whole is not None and not blobs):
                # None goes in parts, since the largest does not.
                accept = _accept_stored if place.is_signed else _accept
                return PutFiles(request.source, missing, _Target(place), accept, method="PUT")
            blobs[file.path] = blob
        return PutBlobs(request.source, missing, blobs, ask, finish)

    def _put_manifest(self, plan: _Plan) -> Flow[None]:
        yield from plan.place.put(MANIFEST, Manifest.of(plan.request.source), "uploading the list of files")

    def _confirm(self, plan: _Plan) -> Flow[None]:
        """Raise unless the server has every file as it was sent, as far as it tells."""
        there = yield from plan.place.files()
        for path, size in [(file.path, file.size) for file in plan.request.source.files]:
            if there.get(path) != size:
                raise RegistryUnavailable(f"{plan.ref}: {show(path)} is not there as it was sent")
        if MANIFEST not in there:
            raise RegistryUnavailable(f"{plan.ref}: {show(MANIFEST)} is not there as it was sent")

    def _create_version(self, plan: _Plan) -> Flow[VersionRecord]:
        name, holder = plan.ref.name, plan.holder
        doing = f"creating a version of {name}"
        body = {"name": name, "source": holder.source, **holder.keys, "tags": tags_of(plan.tags)}
        try:
            response = yield from self._calls.answer("POST", "model-versions/create", json=body, may_repeat=False)
            self._calls.refuse(response, doing)
            return read_json(response, VersionAnswer, doing).model_version
        except RegistryUnavailable as error:
            # The server may have made it all the same.
            for record in (yield from self._same(name, plan.request.source.digest)):
                if record.source == holder.source:
                    return record
            if not (yield from (yield from self._holders()).is_there(holder)):
                raise BeginAgain(f"what was sent of {name} was given up by another push") from error
            raise

    def _same(self, name: str, digest: str) -> Flow[list[VersionRecord]]:
        """Return the ready versions that hold the same bytes, the oldest first."""
        ask = {"filter": f"name = {quoted(name)} AND tags.`{DIGEST}` = '{digest}'", "max_results": _PAGE}
        records: dict[str, VersionRecord] = {}

        def take(page: VersionPage) -> None:
            records.update({record.version: record for record in page.model_versions if record.shown().ready})

        doing = f"looking for the same bytes among the versions of {name}"
        yield from self._calls.each_page("GET", "model-versions/search", VersionPage, doing, ask, take)
        return sorted(records.values(), key=lambda record: record.number)

    def _delete_version(self, record: VersionRecord) -> Flow[None]:
        body = {"name": record.name, "version": record.version}
        doing = f"deleting {record.name}:{record.version}"
        yield from self._calls.find("DELETE", "model-versions/delete", object, doing, json=body)

    def _discard(self, holder: Holder, **more: float) -> Flow[None]:
        """Remove what holds bytes, and these, unless a version names them."""
        holders = yield from self._holders()
        yield from holders.leave(holder, **more)
        if (yield from holders.is_named(holder, **more)):
            return
        yield from holders.fail(holder, **more)
        yield from holders.forget(holder, **more)
        # In this order: a push leaves once it has a version.
        if (yield from holders.is_used(holder, **more)):
            _log.info("another push may use the files of %s: they stay until `mlflow gc` removes them", holder.source)
            return
        if (yield from holders.is_named(holder, **more)):
            _log.warning("a version was made of %s while that was given up; its files stay", holder.source)
            return
        yield from self._artifacts.at(holder.root, holder.model_id).remove(**more)

    # How records are read

    def _record(self, name: str, version: str) -> Flow[VersionRecord]:
        record = yield from self._find(name, version)
        if record is None:
            raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")
        return record

    def _find(self, name: str, version: str) -> Flow[VersionRecord | None]:
        if not (_VERSION.fullmatch(version) and int(version) <= _MAX_VERSION):
            raise InvalidInput(
                f"the version {show(version)} is no whole number from 1 on, as {self.title}'s are", argument="model"
            )
        ask = {"name": name, "version": version}
        found = yield from self._calls.find(
            "GET", "model-versions/get", VersionAnswer, f"reading {name}:{version}", params=ask
        )
        return found.model_version if found else None

    def _model(self, name: str) -> Flow[RegisteredModel | None]:
        found = yield from self._calls.find(
            "GET",
            "registered-models/get",
            ModelAnswer,
            f"reading the model {name}",
            params={"name": name},
            answer_bytes=LISTING_BYTES,
        )
        return found.registered_model if found else None

    def _page(self, name: str, order: str, token: str | None, size: int) -> Flow[VersionPage]:
        ask = {"filter": f"name = {quoted(name)}", "max_results": size, "order_by": f"version_number {order}"}
        more = {"page_token": token} if token else {}
        return (
            yield from self._calls.need(
                "GET",
                "model-versions/search",
                VersionPage,
                f"looking for the newest version of {name}",
                params={**ask, **more},
                answer_bytes=LISTING_BYTES,
            )
        )

    def _versions(self, ask: Mapping[str, object], query: Query, doing: str) -> Flow[list[ModelVersion]]:
        """Return what a query chooses of what a search finds, each once: what is made meanwhile shifts the pages."""
        found: dict[str, ModelVersion] = {}

        def take(page: VersionPage) -> None:
            versions = [record.shown() for record in page.model_versions]
            found.update({version.ref: version for version in versions if query.matches(version)})

        yield from self._calls.each_page("GET", "model-versions/search", VersionPage, doing, ask, take)
        return list(found.values())

    # Who and where

    def _user(self) -> Flow[str]:
        response = yield from self._calls.answer("GET", "users/current")
        if is_unknown_route(response):
            return f"as {self.settings.login}" if self.settings.login else "which asks for no login"
        self._calls.refuse(response, "asking who we are")
        return f"as {read_json(response, _Current, 'asking who we are').user.username}"

    def _server_version(self) -> Flow[str]:
        response: httpx.Response = yield from self._calls.answer("GET", "/version")
        text = response.text.strip()
        return text if response.status_code == 200 and re.fullmatch(r"[\w.+-]{1,40}", text) else ""


class _Target:
    """Says where each file goes to; nowhere once it is there: an answer that was lost does not say."""

    def __init__(self, place: Served) -> None:
        self._place = place
        self._asked: set[str] = set()

    def __call__(self, file: FileEntry) -> Flow[Address | None]:
        if file.path in self._asked and (yield from self._place.holds(file)):
            return None
        self._asked.add(file.path)
        return (yield from self._place.write(file.path))


def _accept(file: FileEntry, answer: MovedResponse) -> None:
    doing = f"uploading {show(file.path)}"
    refuse_moved(answer, doing)
    answer.raise_for_status(doing)


def _accept_stored(file: FileEntry, answer: MovedResponse) -> None:
    answer.raise_for_store(f"uploading {show(file.path)}")


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:1'", argument="model")
    return ref.version


def _number(version: ModelVersion) -> int:
    return int(version.version) if version.version.isdigit() else 0

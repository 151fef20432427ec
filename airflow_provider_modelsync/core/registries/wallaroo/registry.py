"""Wallaroo: one file is one model version, converted after the upload, and never given back.

Facts come from the published Model Management guide, the vendor's public tutorials, and the wallaroo 2026.1.3 client,
read and seen on the wire. The system numbers models and versions from separate sequences: outside of these modules a
version is known by its UUID alone.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.exchange import LISTING_BYTES
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, call, sleep
from airflow_provider_modelsync.core.http.policy import ApiClient, RequestPolicy, raise_for_status, read_json
from airflow_provider_modelsync.core.models import (
    LATEST,
    Deployment,
    ModelRef,
    ModelVersion,
    Predictions,
    Query,
    VersionStatus,
    require_json,
)
from airflow_provider_modelsync.core.redact import excerpt, secrets_of
from airflow_provider_modelsync.core.registries.base import ANY, Capability, Registry, newest_first, note_unknown
from airflow_provider_modelsync.core.registries.capabilities import Deploys, Predicts
from airflow_provider_modelsync.core.registries.wallaroo.api import (
    Calls,
    Found,
    Item,
    Listing,
    Logs,
    NewWorkspace,
    Row,
    Uploaded,
    VersionEntry,
    Workspace,
    Workspaces,
    find_workspace,
)
from airflow_provider_modelsync.core.registries.wallaroo.auth import Account, Grant, Login
from airflow_provider_modelsync.core.registries.wallaroo.pipelines import Pipelines
from airflow_provider_modelsync.core.registries.wallaroo.predict import Inference
from airflow_provider_modelsync.core.registries.wallaroo.upload import (
    IMAGE_FRAMEWORK,
    Draft,
    PushOptions,
    metadata_field,
    one_file,
)
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.form import Form
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address, PostForm, PredictRequest, PushRequest, UploadPlan

# What both the guide and the client take for models, pipelines and new workspaces.
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ANSWER_SECONDS = 900.0  # the server stores the file after the last byte, and says nothing meanwhile
# How long, and how often, a push whose answer was lost looks whether the server has it.
_LOOKS = 4
_LOOK_SECONDS = 0.5
_LOG_LINES = 200
# How much of the upload logs the error of a version that has failed tells.
_TOLD_LINES = 20
_TOLD_CHARACTERS = 200  # of each line
# What a route that the server does not have, or a name that it does not know, may be answered with.
_UNKNOWN = frozenset({400, 404, 405, 500})
_CONFIG_FIELDS = frozenset(
    {
        "tensor_fields",
        "filter_threshold",
        "input_schema",
        "output_schema",
        "batch_config",
        "dynamic_batching_config",
        "continuous_batching_config",
        "openai_config",
    }
)

_log = logging.getLogger("modelsync")


class WallarooSettings(RegistrySettings):
    """A Wallaroo connection.

    :param workspace: name or id of the workspace; by default the user's own.
    :param create_workspace: make that workspace when there is none of the name.
    :param auth_url: base URL of the Keycloak, where it has a host of its own.
    :param realm: of that Keycloak.
    :param client_id: the OAuth client; ``api-client`` with a secret, else ``sdk-client``.
    :param client_secret: of a confidential client.
    :param grant_type: how to log in; by default what the fields that are set allow.
    :param refresh_token: an offline token.
    :param access_token: a ready-made token, which cannot be renewed.
    """

    workspace: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] = (
        None
    )
    create_workspace: bool = False
    auth_url: str | None = None
    realm: str = "master"
    client_id: str | None = None
    client_secret: SecretStr | None = None
    grant_type: Grant | None = None
    refresh_token: SecretStr | None = None
    access_token: SecretStr | None = None

    def account(self, base: str) -> Account:
        """Return who logs in.

        :param base: the API's base URL.
        :raises InvalidInput: naming the field that is missing.
        """
        needed = {
            Grant.PASSWORD: ("password", self.password),
            Grant.REFRESH_TOKEN: ("refresh_token", self.refresh_token),
            Grant.TOKEN: ("access_token", self.access_token),
        }
        grant = self.grant_type or next((kind for kind, (_, secret) in needed.items() if secret), Grant.PASSWORD)
        field, secret = needed[grant]
        if secret is None:
            raise InvalidInput(f"the grant {grant.value!r} needs {field}", argument=field, connection=self.conn_id)
        if grant is Grant.PASSWORD and not self.login:
            raise InvalidInput("a user name is needed", argument="login", connection=self.conn_id)
        auth = base_url(self.auth_url, None) if self.auth_url else base
        return Account(
            auth_url=auth if urlsplit(auth).path and self.auth_url else f"{auth}/auth",
            realm=self.realm,
            grant=grant,
            client_id=self.client_id or ("api-client" if self.client_secret else "sdk-client"),
            client_secret=_plain(self.client_secret),
            user=self.login,
            password=_plain(self.password),
            refresh_token=_plain(self.refresh_token),
            access_token=_plain(self.access_token),
        )


class Wallaroo(Registry, Deploys, Predicts):
    """The models of one workspace.

    :param settings: the connection.
    """

    conn_type = "wallaroo"
    title = "Wallaroo"
    settings_type = WallarooSettings
    settings: WallarooSettings
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.PUSH, Capability.DELETE})
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.PULL: "it gives no artifact back; keep the model in a model store or another registry, and have "
        "SyncModelsOperator or PullModelOperator read it from there",
        Capability.CHOOSE_VERSION: "it gives each version a UUID of its own; name only the model",
        Capability.FORCE: "a push makes a new version; delete the old one",
        Capability.LABELS: "tell versions apart by their UUIDs, and keep labels where the model was pushed from",
        Capability.METADATA: "keep it where the model was pushed from",
        Capability.SIGNATURES: "it gives no artifact back that could be compared; require signatures where the model "
        "is pulled from before the push",
        Capability.ALIASES: "keep them where the model was pushed from, and pass on the version that one leads to",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        if not isinstance(settings, WallarooSettings) or not settings.host:
            raise InvalidInput("the base URL is needed", argument="host", connection=settings.conn_id)
        self.base_url: str = base_url(settings.host, settings.port)
        self.login = Login(settings, settings.account(self.base_url))
        self._api = ApiClient(settings, self.base_url, credentials=self.login.headers)
        self._calls = Calls(self._api, self.login, self.title)
        self._pipelines = Pipelines(self, self._calls, self.workspace_id)
        self._inference = Inference(self, self._pipelines, self.login)
        self._workspace: int | None = None
        self._numbers: dict[tuple[str, str], int] = {}  # of versions, by name and UUID

    def policy(self) -> Policy:
        return RequestPolicy(self.settings, refresh=self.login.after_refusal if self.login.can_renew else None)

    def check(self, ref: ModelRef) -> None:
        check_name(ref.name, "model")
        if ref.version is not None and not (_PLAIN.fullmatch(ref.version) and ref.version != LATEST):
            raise InvalidInput(f"the version {show(ref.version)} is no UUID", argument="model")

    def test(self) -> Flow[str]:
        found = find_workspace((yield from self._workspaces()), self.settings.workspace, self.settings.login)
        if found is None and not self.settings.create_workspace:
            raise self._no_workspace()
        where = f"{found.name} ({found.id})" if found else f"{self.settings.workspace}, which the first use will make"
        return f"Connected to {self.base_url} as {self.login.user}, workspace {where}."

    def workspace_id(self) -> Flow[int]:
        """Return the number of the connection's workspace; make the workspace when the connection says so.

        :raises InvalidInput: when there is none.
        """
        if self._workspace is None:
            found = yield from self._find_workspace()
            self._workspace = found if found is not None else (yield from self._make_workspace())
        return self._workspace

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return self._version_of((yield from self._entry(name, version)))

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        newest: dict[str, ModelVersion] = {}
        for version in (yield from self.list_all(query)):
            if version.ready:
                newest.setdefault(version.name, version)
        return list(newest.values())

    def list_all(self, query: Query) -> Flow[list[ModelVersion]]:
        listing = yield from self._list()
        found: list[ModelVersion] = []
        for item in listing.models:
            if query.matches_name(item.row.name):
                found += self._chosen((yield from self._entries_in(item)), query)
        return newest_first(found)

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        return self._chosen((yield from self._entries(name)), query)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        if ref.version is None:
            raise InvalidInput("name the version to delete", argument="model")
        doing = f"deleting {ref}"
        try:
            entry = yield from self._entry(ref.name, ref.version)
        except ModelNotFound:
            return False
        body = {"model_versions": [entry.model_version.uuid], "confirm_delete": True}
        response = yield from self._calls.answer("/v1/api/models/delete_model_versions", body, may_repeat=True)
        if response.status_code == 404:
            return False
        if response.status_code == 409:
            raise VersionConflict(
                f"{doing}: a pipeline serves it; undeploy that pipeline, or deploy another version with it, first",
                model=str(ref),
            )
        raise_for_status(response, doing)
        self._numbers.pop((ref.name, ref.version), None)
        return True

    def failure_of(self, version: ModelVersion) -> Flow[str]:
        record = VersionEntry.model_validate(version.raw).model_version
        lines: list[str] = []
        try:
            lines = yield from self._logs_of(record.id, _LOG_LINES)
        except Cancelled:
            raise
        except ModelSyncError as error:
            _log.warning("the upload logs of %s cannot be read: %s", version.ref, error)
        secrets = secrets_of(self.settings)
        said = excerpt(record.error_summary or "no reason given", secrets)
        tail = [excerpt(line, secrets)[:_TOLD_CHARACTERS] for line in lines[-_TOLD_LINES:]]
        return "\n".join([said, *(["The end of the upload logs:", *tail] if tail else [])])

    def config_of(self, ref: ModelRef) -> Flow[dict[str, Any]]:
        """Return a version's newest configuration, empty when it has none; its schemas are in the version's ``raw``."""
        number = yield from self._number_of(ref)
        # The one call that calls a version's number ``model_id``.
        body, doing = {"model_id": number}, f"reading the configuration of {ref}"
        found = yield from self._calls.read("/v1/api/models/get_config_by_id", body, dict[str, Any], doing)
        return cast(dict[str, Any], found.get("model_config") or {})

    def insert_config(self, ref: ModelRef, config: Mapping[str, Any]) -> Flow[dict[str, Any]]:
        """Give a version a new configuration, and return it as the system shows it.

        :param config: ``tensor_fields``, ``filter_threshold``, ``input_schema``, ``output_schema``, ``batch_config``,
            ``dynamic_batching_config``, ``continuous_batching_config``, ``openai_config``.
        :raises InvalidInput: for other fields, and for those that exclude each other.
        """
        _check_config(config)
        number = yield from self._number_of(ref)
        body, doing = {"model_version_id": number, **config}, f"configuring {ref}"
        found = yield from self._calls.post("/v1/api/models/insert_model_config", body, dict[str, Any], doing)
        return cast(dict[str, Any], found.get("model_config") or {})

    def upload_logs(self, ref: ModelRef, lines: int = _LOG_LINES) -> Flow[list[str]]:
        """Return the last lines of what the conversion of a version has logged, oldest first."""
        return (yield from self._logs_of((yield from self._number_of(ref)), lines))

    def register_image(self, name: str, image_path: str) -> Flow[ModelVersion]:
        """Register a container image as a model version: it stays in its own registry.

        :param name: the model's name.
        :param image_path: the image's reference.
        """
        check_name(name, "model")
        if not image_path.strip() or not image_path.isprintable():
            raise InvalidInput(f"{show(image_path)} is no image reference", argument="image_path")
        doing = f"registering the image {image_path} as {name}"
        metadata = {
            "name": name,
            "visibility": "private",
            "workspace_id": (yield from self.workspace_id()),
            "conversion": {"framework": IMAGE_FRAMEWORK, "python_version": "3.8", "requirements": []},
            "image_path": image_path,
        }
        form = Form((metadata_field(metadata),))
        response = yield from self._calls.answer(
            "/v1/api/models/upload",
            None,
            content=form.reader().readall(),
            headers={"Content-Type": form.content_type},
        )
        raise_for_status(response, doing)
        number = read_json(response, Uploaded, doing).number
        if number is None:
            raise RegistryUnavailable(f"{doing}: the answer does not name the version")
        return self._version_of((yield from self._entry_of(number, doing)))

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        name = request.ref.name
        options = yield from call(PushOptions.read, request.options)
        file = yield from one_file(name, options.framework, request.source)
        ref = ModelRef(name=name)
        workspace = yield from self.workspace_id()
        default = yield from self._default_arch()
        draft = Draft(name, file, options, options.arch or default, default)
        options.check_hardware(draft.arch)
        entries = yield from self._entries(name)
        same = [entry for entry in entries if draft.describes(entry.model_version)]
        usable = [version for version in self._chosen(same, ANY) if version.status is not VersionStatus.FAILED]
        if usable:
            return UploadPlan(ref=ref, way=None, existing=usable[0])
        draft.known = frozenset(entry.model_version.id for entry in entries)
        way = PostForm(
            form=draft.form(workspace),
            address=self._upload_address,
            answered=functools.partial(_take_number, draft),
            is_there=lambda: self._is_there(draft),
            answer_seconds=_ANSWER_SECONDS,
        )
        return _DraftPlan(ref=ref, way=way, draft=draft)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        draft = cast(_DraftPlan, plan).draft
        assert draft.number is not None
        entry = yield from self._entry_of(draft.number, f"reading the new version of {draft.name}")
        version = self._version_of(entry)
        stored = entry.model_version.file_info
        if (stored.sha and stored.sha.lower() != draft.file.sha256) or stored.size not in (None, draft.file.size):
            raise DigestMismatch(
                f"{version.ref} holds {stored.size} bytes with SHA-256 {show(stored.sha)}, sent were {draft.file.size} "
                f"with {draft.file.sha256}",
                remedy="delete that version and push again",
            )
        return version

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        """Leave everything: half a form makes no version, and a whole one is found again by its bytes."""
        return
        yield

    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        return self._pipelines.deploy(deployment, ref, config)

    def deployment(self, name: str) -> Flow[Deployment]:
        return self._pipelines.get(name)

    def undeploy(self, name: str) -> Flow[Deployment]:
        return self._pipelines.undeploy(name)

    def deployed_models(self) -> Flow[Mapping[str, str] | None]:
        return self._pipelines.models()

    def predict(self, request: PredictRequest) -> Flow[Predictions]:
        return self._inference.predict(request)

    def _upload_address(self) -> Flow[Address]:
        # A body cannot be sent again after a 401, so the token is renewed however fresh it looks.
        headers = yield from self.login.renewed()
        return Address(f"{self.base_url}/v1/api/models/upload_and_convert", headers)

    def _is_there(self, draft: Draft) -> Flow[bool]:
        for look in range(_LOOKS):
            if look:
                yield from sleep(_LOOK_SECONDS)
            for entry in (yield from self._entries(draft.name)):
                record = entry.model_version
                if record.id not in draft.known and draft.describes(record):
                    _log.info("%s has taken %s:%s, although its answer was lost", self.title, draft.name, record.uuid)
                    draft.number = record.id
                    return True
        return False

    def _default_arch(self) -> Flow[str | None]:
        doing = "reading the default architecture"
        response = yield from self._calls.answer("/v1/api/config", None, method="GET", may_repeat=True)
        if response.status_code >= 500:
            raise_for_status(response, doing)
        try:
            found = read_json(response, dict[str, Any], doing).get("default_arch")
        except RegistryUnavailable:  # an older instance shows some page for routes that it does not know
            return None
        return found if isinstance(found, str) else None

    def _workspaces(self) -> Flow[list[Workspace]]:
        listed = yield from self._calls.read("/v1/api/workspaces/list", {}, Workspaces, "listing the workspaces")
        return listed.workspaces

    def _find_workspace(self) -> Flow[int | None]:
        found = find_workspace((yield from self._workspaces()), self.settings.workspace, self.settings.login)
        return found.id if found else None

    def _make_workspace(self) -> Flow[int]:
        name = self.settings.workspace or ""
        if not self.settings.create_workspace:
            raise self._no_workspace()
        check_name(name, "workspace")
        body, doing = {"workspace_name": name}, f"creating the workspace {name}"
        try:
            made = yield from self._calls.post("/v1/api/workspaces/create", body, NewWorkspace, doing)
        except ModelSyncError as error:  # another run may have made it, or ours did and the answer was lost
            found = yield from self._find_workspace()
            if found is None:
                error.message += ". It may exist where this user does not see it"
                raise
            return found
        return made.workspace_id

    def _no_workspace(self) -> InvalidInput:
        return InvalidInput(
            f"there is no workspace {self.settings.workspace!r} that this user sees",
            remedy="create it, or set create_workspace in the connection",
            argument="workspace",
        )

    def _list(self) -> Flow[Listing]:
        body = {"workspace_id": (yield from self.workspace_id())}
        doing = "listing the models"
        path = "/v1/api/models/list"
        return (yield from self._calls.read(path, body, Listing, doing, answer_bytes=LISTING_BYTES))

    def _entries(self, name: str) -> Flow[list[VersionEntry]]:
        """Return all versions of a name, whatever the server calls it when there are none."""
        workspace = yield from self.workspace_id()
        doing = f"listing the versions of {name}"
        body = {"model_id": name, "workspace_id": workspace}
        path = "/v1/api/models/list_versions_for_model"
        response = yield from self._calls.answer(path, body, may_repeat=True, answer_bytes=LISTING_BYTES)
        if response.status_code in _UNKNOWN:  # the guide does not name this route
            listing = yield from self._list()
        else:
            raise_for_status(response, doing)
            listing = read_json(response, Listing, doing)
        entries = []
        for item in listing.models:
            if item.row.name == name and item.row.workspace_id in (None, workspace):
                entries += yield from self._entries_in(item)
        return entries

    def _entries_in(self, item: Item) -> Flow[list[VersionEntry]]:
        if item.model_versions is not None:
            return item.model_versions
        row = item.row
        body, doing = {"model_id": row.name, "models_pk_id": row.id}, f"listing the versions of {row.name}"
        rows = yield from self._calls.read("/v1/api/models/list_versions", body, list[Row], doing)
        # The answer also holds models of that name in other workspaces.
        entries = []
        for number in [found.id for found in rows if found.models_pk_id == row.id]:
            entry = yield from self._entry_of(number, doing)
            entries.append(entry)
        return entries

    def _entry(self, name: str, version: str) -> Flow[VersionEntry]:
        """Return a version by its UUID: the first time from a listing, then by its number."""
        if not _VERSION.fullmatch(version):
            raise InvalidInput(f"the version {show(version)} is no UUID, as Wallaroo's are", argument="model")
        number = self._numbers.get((name, version))
        if number is not None:
            body = {"model_version_id": number}
            path = "/v1/api/models/get_version_by_id"
            found = yield from self._calls.find(path, body, Found, f"reading {name}:{version}")
            if found and found.model_version.model_version.uuid == version:
                return found.model_version
        for entry in (yield from self._entries(name)):
            if entry.model_version.uuid == version:
                self._numbers[name, version] = entry.model_version.id
                return entry
        raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")

    def _entry_of(self, number: int, doing: str) -> Flow[VersionEntry]:
        body = {"model_version_id": number}
        found = yield from self._calls.read("/v1/api/models/get_version_by_id", body, Found, doing)
        entry = found.model_version
        self._numbers[entry.model_version.name, entry.model_version.uuid] = number
        return entry

    def _number_of(self, ref: ModelRef) -> Flow[int]:
        """Return the number of an exact version, or of the newest ready one."""
        version = yield from self.get(ref)
        return VersionEntry.model_validate(version.raw).model_version.id

    def _logs_of(self, number: int, lines: int) -> Flow[list[str]]:
        body, doing = {"model_version_id": number, "lines": lines}, "reading the upload logs"
        found = yield from self._calls.read("/v1/api/models/get_upload_logs", body, Logs, doing)
        # Each line begins with its time; the server gives them in either order.
        return sorted(found.logs, key=lambda line: line.partition(" ")[0])

    def _chosen(self, entries: Sequence[VersionEntry], query: Query) -> list[ModelVersion]:
        versions = {entry.model_version.uuid: self._version_of(entry) for entry in entries if entry.model_version.uuid}
        return newest_first(version for version in versions.values() if query.matches(version))

    def _version_of(self, entry: VersionEntry) -> ModelVersion:
        record = entry.model_version
        if record.state is VersionStatus.UNKNOWN:
            note_unknown(f"version {record.uuid}", record.status)
        return ModelVersion(
            registry=self.conn_type,
            name=record.name,
            version=record.uuid,
            status=record.state,
            digest=record.digest,
            size_bytes=record.file_info.size,
            created_at=record.created_at,
            raw=entry.model_dump(mode="json"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _DraftPlan(UploadPlan):
    draft: Draft


def check_name(name: str, argument: str) -> None:
    """Raise :class:`InvalidInput` unless a name may become that of a model, a pipeline or a new workspace."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the name {show(name)} is not lower-case letters, digits and '-', at most 63, "
            "with a letter at its beginning and no '-' at its end",
            argument=argument,
        )


def _take_number(draft: Draft, answer: MovedResponse) -> None:
    doing = f"uploading {draft.name}"
    if answer.status == 507:
        raise DiskFull(f"{doing}: the server has no space left for {draft.file.size} bytes")
    answer.raise_for_status(doing)
    try:
        draft.number = Uploaded.model_validate_json(answer.body).number
    except ValueError:
        draft.number = None
    if draft.number is None:
        raise RegistryUnavailable(f"{doing}: the answer does not name the new version")


def _check_config(config: Mapping[str, Any]) -> None:
    if unknown := sorted(config.keys() - _CONFIG_FIELDS):
        raise InvalidInput(f"{', '.join(unknown)}: not among {', '.join(sorted(_CONFIG_FIELDS))}", argument="config")
    if not config:
        raise InvalidInput("there is nothing to configure", argument="config")
    batch = config.get("batch_config")
    if batch == "single" and config.get("dynamic_batching_config"):
        raise InvalidInput("batch_config 'single' excludes dynamic_batching_config", argument="config")
    if batch and config.get("continuous_batching_config"):
        raise InvalidInput("batch_config excludes continuous_batching_config", argument="config")
    require_json("config", config)


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None

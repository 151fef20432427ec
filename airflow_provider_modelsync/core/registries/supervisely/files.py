"""Experiments in Team Files: how they are listed, read and removed, and what we add to them.

An experiment is a directory ``<root>/<project>/<task>_<framework>/``, complete when it holds ``experiment_info.json``.
Team Files know the SHA-256 of each file, and no conditional writes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY, show
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.exchange import LISTING_BYTES
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.policy import USER_AGENT, raise_for_status, read_json
from airflow_provider_modelsync.core.models import ModelVersion, Time, VersionStatus
from airflow_provider_modelsync.core.registries.capabilities import MOST_SIGNATURES, SIGNATURE, name_of
from airflow_provider_modelsync.core.registries.supervisely.api import (
    Object,
    Platform,
    SuperviselySettings,
    Text,
)
from airflow_provider_modelsync.core.registries.supervisely.session import INFO_FILE
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address

INFO_LIMIT = 16 << 20  # bytes of an experiment_info.json
OURS = "modelsync"  # the key in it under which ours holds what the system has no room for
_CLAIM = f"{RESERVED_DIRECTORY}/claim-"
_SIGNATURE = re.compile(rf"{re.escape(RESERVED_DIRECTORY)}/[0-9a-f]{{16}}{re.escape(SIGNATURE)}")
_SIGNATURE_BYTES = 32 << 20
_HASH_BYTES = 32
_INFO_BYTES = 1 << 20  # of a description, at most
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@checked_dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file as Team Files list it: one object for the garbage collector, since there may be tens of thousands."""

    id: int | None = None
    path: str
    hash: Text = ""
    size: int = Field(default=0, validation_alias=AliasPath("meta", "size"))
    created_at: Time = Field(default=None, validation_alias="createdAt")

    @property
    def sha256(self) -> str | None:
        """The hex SHA-256 of the content; ``None`` when the listing does not tell."""
        try:
            raw = base64.b64decode(self.hash, validate=True)
        except (binascii.Error, ValueError):
            return None
        return raw.hex() if len(raw) == _HASH_BYTES else None


def _unless_folder(entry: Any) -> Any:
    return None if isinstance(entry, dict) and entry.get("type") == "folder" else entry


_Listed = Annotated[FileInfo | None, BeforeValidator(_unless_folder)]


class Ours(BaseModel):
    """What we note in an ``experiment_info.json`` that we have generated.

    :param labels: of the version.
    :param metadata: of the version.
    :param created_at: when the version was made, once its labels have been changed since.
    :param directories: the empty directories.
    :param executables: the files that may be executed.
    """

    labels: dict[str, str] = {}
    metadata: dict[str, JsonValue] = {}
    created_at: Time = None
    directories: tuple[str, ...] = ()
    executables: frozenset[str] = frozenset()


class ExperimentInfo(BaseModel):
    """What an ``experiment_info.json`` says. The platform's own ones say more, which is kept in ``raw``."""

    model_config = ConfigDict(extra="allow")

    framework_name: Text = ""
    best_checkpoint: Text = ""
    artifacts_dir: Text = ""
    model_files: Object = {}
    modelsync: Ours | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment's directory.

    :param directory: absolute, without a slash at its end.
    :param files: what it holds, by relative path; ours among them.
    """

    directory: str
    files: Mapping[str, FileInfo] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.directory.rsplit("/", 2)[1]

    @property
    def version(self) -> str:
        return self.directory.rsplit("/", 1)[1]

    @property
    def info_file(self) -> FileInfo | None:
        return self.files.get(INFO_FILE)

    @property
    def claims(self) -> list[str]:
        """The digests of what is being written, or was when a push was cut off; the first come first."""
        found = [(file.id or 0, file.created_at or _LONG_AGO, path) for path, file in self.files.items()]
        return [f"sha256:{path.removeprefix(_CLAIM)}" for *_, path in sorted(found) if path.startswith(_CLAIM)]

    @property
    def signatures(self) -> list[str]:
        """The paths of what is kept of signatures."""
        return sorted(path for path in self.files if _SIGNATURE.fullmatch(path))

    def content(self, *, without_info: bool = False) -> dict[str, FileInfo]:
        """Return the files that are the model's, rather than ours."""
        return {
            path: file
            for path, file in self.files.items()
            if not path.startswith(f"{RESERVED_DIRECTORY}/") and not (without_info and path == INFO_FILE)
        }

    def entries(self, info: ExperimentInfo) -> tuple[FileEntry, ...]:
        """Return what the model consists of; a hash that the listing does not tell is empty."""
        executables = info.modelsync.executables if info.modelsync else ()
        return tuple(
            FileEntry(path, file.size, file.sha256 or "", path in executables)
            for path, file in sorted(
                self.content(without_info=info.modelsync is not None).items(), key=lambda item: item[0].encode()
            )
        )

    def describe(self, registry: str, info: ExperimentInfo | None) -> ModelVersion:
        """Return the version that it is.

        :param info: what its ``experiment_info.json`` says; ``None`` without one.
        """
        entries = self.entries(info) if info else ()
        ours = (info.modelsync if info else None) or Ours()
        listed = self.info_file.created_at if self.info_file else None
        times = [file.created_at for file in self.files.values() if file.created_at]
        return ModelVersion(
            registry=registry,
            name=self.name,
            version=self.version,
            status=VersionStatus.READY if info else VersionStatus.UPLOADING,
            digest=digest_of(entries) if entries and all(entry.sha256 for entry in entries) else None,
            size_bytes=sum(entry.size for entry in entries) if info else None,
            labels=ours.labels,
            metadata=ours.metadata,
            created_at=ours.created_at or listed or (min(times) if times else None),
            uri=f"supervisely:/{self.directory}",
            raw=info.model_dump(mode="json", exclude={"modelsync"}) if info else {},
        )


class TeamFiles:
    """The files of the connection's team, as far as they belong to experiments.

    :param platform: makes the calls.
    :param settings: the connection.
    """

    def __init__(self, platform: Platform, settings: SuperviselySettings) -> None:
        self._platform = platform
        self._root = settings.artifacts_root
        self._team: int | None = settings.team_id
        # By path and hash. As bytes: what is read of them takes several times as much.
        self._infos: dict[tuple[str, str], bytes] = {}

    def directory(self, name: str, version: str) -> str:
        """Return where a version lies."""
        return f"{self._root}/{name}/{version}"

    def team_id(self) -> Flow[int]:
        if self._team is None:
            self._team = yield from self._platform.team_id()
        return self._team

    def below(self, directory: str) -> Flow[list[FileInfo]]:
        """Return all files below a directory, at whatever depth."""
        team = yield from self.team_id()
        body = {"teamId": team, "path": f"{directory}/", "recursive": True}
        doing = f"listing {show(directory)}"
        response = yield from self._platform.answer("file-storage.list", body, answer_bytes=LISTING_BYTES)
        if response.status_code == 404:
            return []
        raise_for_status(response, doing)
        listed = read_json(response, list[_Listed], doing)
        # It is a match of prefixes.
        return [file for file in listed if file and file.path.startswith(f"{directory}/")]

    def experiment(self, name: str, version: str) -> Flow[Experiment]:
        """Return a version's directory as it is now; without files when there is none."""
        directory = self.directory(name, version)
        files = yield from self.below(directory)
        return _experiment(directory, files)

    def experiments(self, name: str | None = None) -> Flow[list[Experiment]]:
        """Return all versions of a name, or of all names, in any state."""
        top = self._root if name is None else f"{self._root}/{name}"
        found: dict[str, list[FileInfo]] = {}
        for file in (yield from self.below(top)):
            parts = file.path[len(self._root) + 1 :].split("/", 2)
            if len(parts) == 3:
                found.setdefault(self.directory(parts[0], parts[1]), []).append(file)
        return [_experiment(directory, files) for directory, files in found.items()]

    def info(self, experiment: Experiment) -> Flow[ExperimentInfo | None]:
        """Read an experiment's ``experiment_info.json``, once for each content; ``None`` without one."""
        file = experiment.info_file
        if file is None:
            return None
        key = (file.path, file.hash)
        if not file.hash or key not in self._infos:
            content = yield from self._read_info(file.path)
            if content is None:
                return None
            self._infos[key] = content
        # What others have written may hold anything; a version whose description cannot be read is one all the same.
        try:
            return ExperimentInfo.model_validate_json(self._infos[key])
        except ValidationError:
            return ExperimentInfo()

    def _read_info(self, path: str) -> Flow[bytes | None]:
        team = yield from self.team_id()
        doing = f"reading {show(path)}"
        response = yield from self._platform.answer(
            "file-storage.download", {"teamId": team, "path": path}, answer_bytes=_INFO_BYTES
        )
        if response.status_code == 404:
            return None
        raise_for_status(response, doing)
        return response.content

    def signatures(self, experiment: Experiment) -> Flow[list[bytes]]:
        """Return what is kept of an experiment's signatures."""
        team = yield from self.team_id()
        kept: list[bytes] = []
        for path in experiment.signatures[:MOST_SIGNATURES]:
            body = {"teamId": team, "path": f"{experiment.directory}/{path}"}
            response = yield from self._platform.answer("file-storage.download", body, answer_bytes=_SIGNATURE_BYTES)
            if response.status_code != 404:
                raise_for_status(response, f"reading {show(path)}")
                kept.append(response.content)
        return kept

    def write(self, path: str, content: bytes) -> Flow[None]:
        """Write a small file and see that it is stored as it was sent."""
        team = yield from self.team_id()
        request = self._platform.api.request(
            "POST",
            "file-storage.upload",
            params={"teamId": team, "path": path},
            content=content,
            headers={"Content-Type": "application/octet-stream"},
            may_repeat=True,
        )
        doing = f"writing {show(path)}"
        response = yield from send(request)
        raise_for_status(response, doing)
        require_stored(read_json(response, FileInfo, doing), hashlib.sha256(content).hexdigest(), len(content))

    def remove(self, paths: Iterable[str]) -> Flow[None]:
        """Remove files, or with a slash at the end whole directories; what is not there is fine."""
        team = yield from self.team_id()
        for path in paths:
            doing = f"removing {show(path)}"
            yield from self._platform.ask("file-storage.remove", {"teamId": team, "path": path}, object, doing)

    def claim(self, directory: str, digest: str) -> Flow[None]:
        """Say that somebody writes these bytes to a directory."""
        return self.write(_claim_path(directory, digest), digest.encode())

    def withdraw(self, directory: str, *digests: str) -> Flow[None]:
        """Take claims back; those that are gone are fine."""
        return self.remove(_claim_path(directory, digest) for digest in digests)

    def upload_address(self, directory: str, path: str) -> Flow[Address]:
        """Return where a file goes to."""
        team = yield from self.team_id()
        request = self._platform.api.request(
            "POST", "file-storage.upload", params={"teamId": team, "path": f"{directory}/{path}"}, content=b""
        )
        return Address(str(request.url), {**self._headers(), "Content-Type": "application/octet-stream"})

    def download_address(self, directory: str, path: str) -> Flow[Address]:
        """Return where a file is."""
        team = yield from self.team_id()
        content = json.dumps({"teamId": team, "path": f"{directory}/{path}"}).encode()
        request = self._platform.api.request("POST", "file-storage.download")
        return Address(str(request.url), {**self._headers(), "Content-Type": "application/json"}, content=content)

    def _headers(self) -> dict[str, str]:
        return {"User-Agent": USER_AGENT, "Accept": "*/*", **self._platform.key()}


def signature_path(signature: bytes) -> str:
    """Return the path of a signature below its experiment."""
    return f"{RESERVED_DIRECTORY}/{name_of(signature)}"


def _claim_path(directory: str, digest: str) -> str:
    return f"{directory}/{_CLAIM}{digest.removeprefix('sha256:')}"


def accept_stored(file: FileEntry, answer: MovedResponse) -> None:
    """Raise unless Team Files say that they have stored a file as it was hashed."""
    doing = f"uploading {show(file.path)}"
    answer.raise_for_status(doing)
    try:
        stored = TypeAdapter(FileInfo).validate_json(answer.body)
    except ValidationError:
        raise RegistryUnavailable(f"{doing}: the answer does not describe the file") from None
    require_stored(stored, file.sha256, file.size)


def require_stored(stored: FileInfo, sha256: str, size: int) -> None:
    """Raise unless a file is stored with a hash, or where that is not told, with a size."""
    is_same = stored.sha256 == sha256 if stored.sha256 else stored.size == size
    if not is_same:
        raise RegistryUnavailable(f"{show(stored.path)} is stored with other bytes than were sent")


def generated_info(required: Mapping[str, Any], ours: Ours) -> bytes:
    """Return an ``experiment_info.json`` of ours."""
    block = ours.model_dump(mode="json", exclude_defaults=True)
    if "executables" in block:
        block["executables"] = sorted(block["executables"])
    return json.dumps({**required, OURS: block}, ensure_ascii=False, indent=2).encode()


def parse_info(content: bytes) -> ExperimentInfo:
    """Check the ``experiment_info.json`` of a source."""
    if len(content) > INFO_LIMIT:
        raise InvalidInput(f"its {INFO_FILE} is larger than {INFO_LIMIT >> 20} MiB", argument="source")
    try:
        info = ExperimentInfo.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidInput(f"its {INFO_FILE} is not usable: {where}: {fault['msg']}", argument="source") from None
    if info.modelsync is not None:
        raise InvalidInput(f"its {INFO_FILE} holds {OURS!r}, which is reserved", argument="source")
    return info


def checkpoint_of(experiment: Experiment, info: ExperimentInfo, wanted: str | None) -> str:
    """Return the relative path of the checkpoint to load.

    :param wanted: its path or its name; the best one when left out.
    """
    name = wanted or info.best_checkpoint
    if not name:
        raise InvalidInput(
            f"{experiment.name}:{experiment.version} names no best checkpoint",
            remedy="name one in config['checkpoint']",
            argument="config",
        )
    for path in (name, f"checkpoints/{name}"):
        if path in experiment.content(without_info=True):
            return path
    raise InvalidInput(f"{experiment.name}:{experiment.version} holds no checkpoint {show(name)}", argument="config")


def require_there(experiment: Experiment, title: str) -> None:
    """Raise unless there is anything."""
    if not experiment.content():
        raise ModelNotFound(f"{title} has no version {experiment.version!r} of {experiment.name!r}")


def _experiment(directory: str, files: Iterable[FileInfo]) -> Experiment:
    return Experiment(directory, {file.path[len(directory) + 1 :]: file for file in files})

"""What an MLflow server keeps about models, as it tells it, and what we keep there: tags, and one more file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source, digest_of
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY, show
from airflow_provider_modelsync.core.errors import InvalidInput, NotSupported
from airflow_provider_modelsync.core.models import ModelVersion, VersionStatus
from airflow_provider_modelsync.core.registries.base import note_unknown
from airflow_provider_modelsync.core.registries.capabilities import SIGNATURE
from airflow_provider_modelsync.core.registries.mlflow.api import Text, as_json, null_as
from airflow_provider_modelsync.core.transfer.plan import PushRequest

CONN_TYPE = "mlflow"
OURS = "modelsync."
DIGEST, SIZE, METADATA, NAME = f"{OURS}digest", f"{OURS}size_bytes", f"{OURS}metadata", f"{OURS}name"
# Every file with its hash, which no tag has room for. Sent last, no part of the model.
MANIFEST = f"{RESERVED_DIRECTORY}/manifest.json"
MANIFEST_BYTES = 48 << 20

_VENDOR = "mlflow."
_MAX_TAG = 4999  # characters that every server takes
MAX_TAG_KEY = 250
_TAG_KEY = re.compile(rf"[\w\-.:/ ]{{1,{MAX_TAG_KEY}}}", re.ASCII)
_FULL_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The server decodes names twice, drops what cannot be printed, and cuts at a number sign.
_BAD_IN_NAME = re.compile(r"[#%\\]")
_STATUS = {
    "PENDING_REGISTRATION": VersionStatus.PENDING,
    "READY": VersionStatus.READY,
    "FAILED_REGISTRATION": VersionStatus.FAILED,
}


def is_ours(path: str) -> bool:
    """Whether a file is one that a push of this package has left beside the model's."""
    return path == MANIFEST or (path.startswith(f"{RESERVED_DIRECTORY}/") and path.endswith(SIGNATURE))


class Tag(BaseModel):
    """A tag as it travels."""

    key: str
    value: Text = ""


Tags = Annotated[list[Tag], null_as([])]


def tags_of(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as they travel."""
    return [{"key": key, "value": value} for key, value in tags.items()]


class VersionRecord(BaseModel):
    """A model version. Its aliases are not in every answer."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    creation_timestamp: int | None = None
    source: Text = ""
    run_id: Text = ""
    status: Text = ""
    status_message: Text = ""
    tags: Tags = []
    aliases: Annotated[list[str], null_as([])] = []

    @property
    def number(self) -> int:
        return int(self.version) if self.version.isdigit() else 0

    @property
    def digest(self) -> str | None:
        """Our digest of its files, if we have pushed it."""
        found = self.tag(DIGEST)
        return found if found and _FULL_DIGEST.fullmatch(found) else None

    def tag(self, key: str) -> str | None:
        return next((tag.value for tag in self.tags if tag.key == key), None)

    def shown(self, aliases: Iterable[str] = ()) -> ModelVersion:
        """Return it as all registries show theirs.

        :param aliases: those that are known to point to it.
        """
        size = self.tag(SIZE) or ""
        if self.status not in _STATUS:
            note_unknown(f"{self.name}:{self.version}", self.status)
        return ModelVersion(
            registry=CONN_TYPE,
            name=self.name,
            version=self.version,
            status=_STATUS.get(self.status, VersionStatus.UNKNOWN),
            digest=self.digest,
            size_bytes=int(size) if size.isdigit() and self.digest else None,
            labels={tag.key: tag.value for tag in self.tags if not tag.key.startswith((OURS, _VENDOR))},
            metadata=_metadata_in(self.tag(METADATA)),
            created_at=time_of(self.creation_timestamp),
            aliases=tuple(sorted({*self.aliases, *aliases})),
            uri=f"models:/{self.name}/{self.version}",
            raw=self.model_dump(mode="json"),
        )


class VersionAnswer(BaseModel):
    model_version: VersionRecord


class VersionPage(BaseModel):
    model_versions: Annotated[list[VersionRecord], null_as([])] = []
    next_page_token: Text = ""


class AliasEntry(BaseModel):
    alias: str
    version: str


class RegisteredModel(BaseModel):
    """What versions belong to."""

    name: str
    creation_timestamp: int | None = None
    latest_versions: Annotated[list[VersionRecord], null_as([])] = []
    tags: Tags = []
    aliases: Annotated[list[AliasEntry], null_as([])] = []

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that point to a version."""
        return [entry.alias for entry in self.aliases if entry.version == version]

    @property
    def is_prompt(self) -> bool:
        """Whether it is no model at all: prompts are kept as models, too, and take versions."""
        return any(tag.key == "mlflow.prompt.is_prompt" and tag.value.lower() == "true" for tag in self.tags)


class ModelAnswer(BaseModel):
    registered_model: RegisteredModel


class ModelPage(BaseModel):
    registered_models: Annotated[list[RegisteredModel], null_as([])] = []
    next_page_token: Text = ""


class Experiment(BaseModel):
    experiment_id: str
    lifecycle_stage: Text = "active"


class ExperimentAnswer(BaseModel):
    experiment: Experiment


class NewExperiment(BaseModel):
    experiment_id: str


class ServerInfo(BaseModel):
    """What a server says of itself since MLflow 3."""

    multipart_uploads_enabled: bool = False
    multipart_downloads_enabled: bool = False


class SignedUrl(BaseModel):
    """Where a storage gives a file."""

    url: str = Field(repr=False)
    headers: Annotated[dict[str, str], null_as({})] = Field(default={}, repr=False)


class SignedPut(BaseModel):
    """Where a storage takes a file, or gives one."""

    presigned_url: str = Field(repr=False)
    headers: Annotated[dict[str, str], null_as({})] = Field(default={}, repr=False)


class SignedPart(BaseModel):
    """Where a storage takes a part of a file."""

    url: str = Field(repr=False)
    part_number: int
    headers: Annotated[dict[str, str], null_as({})] = Field(default={}, repr=False)


class PartsAnswer(BaseModel):
    upload_id: str
    credentials: Annotated[list[SignedPart], null_as([])] = []


class DownloadUri(BaseModel):
    artifact_uri: str


class FileInfo(BaseModel):
    """An entry of a listing; the size of an empty file is left out."""

    path: str
    is_dir: bool = False
    file_size: Annotated[int, null_as(0)] = 0


class FileList(BaseModel):
    files: Annotated[list[FileInfo], null_as([])] = []
    next_page_token: Text = ""


class LoggedModelInfo(BaseModel):
    model_id: str
    experiment_id: Text = ""
    artifact_uri: str
    status: Text = ""
    creation_timestamp_ms: int = 0
    tags: Tags = []


class LoggedModel(BaseModel):
    info: LoggedModelInfo


class LoggedModelAnswer(BaseModel):
    model: LoggedModel


class LoggedModelPage(BaseModel):
    models: Annotated[list[LoggedModel], null_as([])] = []
    next_page_token: Text = ""


class RunInfo(BaseModel):
    run_id: str
    experiment_id: Text = ""
    artifact_uri: str
    status: Text = ""
    start_time: int = 0
    lifecycle_stage: Text = "active"


class RunData(BaseModel):
    tags: Tags = []


class Run(BaseModel):
    info: RunInfo
    data: RunData = RunData()


class RunAnswer(BaseModel):
    run: Run


class RunPage(BaseModel):
    runs: Annotated[list[Run], null_as([])] = []
    next_page_token: Text = ""


class ManifestFile(BaseModel):
    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    executable: bool = False


class Manifest(BaseModel):
    """What a version holds, as its push has found it."""

    schema_version: int = 1
    files: list[ManifestFile]
    directories: list[str] = []

    @classmethod
    def of(cls, source: Source) -> bytes:
        """Return the manifest of a source."""
        files = []
        for file in source.files:
            executable = {"executable": True} if file.executable else {}
            files.append({"path": file.path, "size": file.size, "sha256": file.sha256, **executable})
        content: dict[str, Any] = {"schema_version": 1, "files": files}
        if source.directories:
            content["directories"] = list(source.directories)
        return as_json(content).encode()

    @classmethod
    def read(cls, content: bytes, digest: str) -> Manifest | None:
        """Return a manifest, unless it is none, or not of these bytes."""
        try:
            found = cls.model_validate_json(content)
        except ValidationError:
            return None
        return found if digest_of(found.entries()) == digest else None

    def entries(self) -> tuple[FileEntry, ...]:
        return tuple(FileEntry(file.path, file.size, file.sha256, file.executable) for file in self.files)


def check_sendable(source: Source) -> None:
    """Raise unless the server keeps every name in a source as it is."""
    for path in (*(file.path for file in source.files), *source.directories):
        if _BAD_IN_NAME.search(path):
            raise InvalidInput(
                f"{show(path)} holds '#', '%' or a backslash, which MLflow does not keep", argument="source"
            )


def check_labels(labels: Mapping[str, str | None]) -> None:
    """Raise unless labels can be kept as tags of a version."""
    for key, value in labels.items():
        if not _TAG_KEY.fullmatch(key) or ".." in key or "//" in key or key != key.strip("/ "):
            raise InvalidInput(
                f"the label {show(key)} is not 1 to 250 letters, digits, blanks, '_', '-', '.', ':' and '/', with a "
                "letter or the like at both ends",
                argument="labels",
            )
        if key.startswith((OURS, _VENDOR)):
            raise InvalidInput(f"labels that begin with {OURS!r} or {_VENDOR!r} are reserved", argument="labels")
        if value is not None and len(value) > _MAX_TAG:
            raise InvalidInput(f"the label {show(key)} is longer than {_MAX_TAG} characters", argument="labels")


def version_tags(request: PushRequest) -> dict[str, str]:
    """Return the tags that a version of a source gets.

    :raises NotSupported: when the metadata do not fit.
    """
    tags = {DIGEST: request.source.digest, SIZE: str(request.source.size_bytes), **request.labels}
    if request.metadata:
        text = as_json(dict(request.metadata))
        if len(text) > _MAX_TAG:
            raise NotSupported(
                f"metadata of {len(text)} characters do not fit: MLflow keeps {_MAX_TAG} as JSON; put them into a file "
                "of the model",
                argument="metadata",
            )
        tags[METADATA] = text
    return tags


def _metadata_in(text: str | None) -> dict[str, JsonValue]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def time_of(milliseconds: int | None) -> datetime | None:
    """Return the moment that a number of milliseconds stands for, UTC."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
    except (OverflowError, OSError, ValueError):
        return None

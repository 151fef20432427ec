"""What a manifest says of a model: ours, and those of ModelPack, ORAS and others.

Facts come from the CNCF ModelPack model-spec, from its readers' source (modctl, Docker Model Runner, CRI-O), and from
modelpack-client, oras-py and skopeo on the wire. All that a manifest says was written by somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.archive.names import require_safe, show
from airflow_provider_modelsync.core.errors import NotSupported, UnsafeArchive

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"  # the tag that a manifest was pushed under
FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"
_OLD_FILEPATH = "org.cnai.model.filepath"
_UNPACK = "io.deis.oras.content.unpack"  # of what ORAS has packed

OUR_DIGEST = "io.modelsync.digest"
OUR_LABELS = "io.modelsync.labels"
OUR_METADATA = "io.modelsync.metadata"
OUR_DIRECTORIES = "io.modelsync.directories"
OUR_SIGNATURES = "io.modelsync.signatures"
OUR_FILES = "io.modelsync.files"  # of a layer: what its tar holds, and where

MODELPACK = "application/vnd.cncf.model.manifest.v1+json"
MODELPACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"

# Layers that are archives rather than files, by what their media types hold. ORAS calls files so, too, see below.
_PACKED = (".tar", "+gzip", "+zstd", "rootfs.diff", "kitops")
_EXECUTABLE = 0o100


def _strings(value: Any) -> Any:
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}


Annotations = Annotated[dict[str, str], BeforeValidator(_strings)]


class _Read(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Descriptor(_Read):
    """A blob as a manifest names it."""

    media_type: str = ""
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0)
    annotations: Annotations = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")


class Manifest(_Read):
    """A manifest, or an index of such."""

    media_type: str = ""
    artifact_type: str | None = None
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Any, ...] | None = None
    annotations: Annotations = Field(default_factory=dict)

    @property
    def created(self) -> datetime | None:
        return time_of(self.annotations.get(CREATED))


class _Member(BaseModel):
    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offset: int = Field(ge=0)
    executable: bool = False


_MEMBERS = TypeAdapter(tuple[_Member, ...])
_LABELS = TypeAdapter(dict[str, str])
_PATHS = TypeAdapter(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Contents:
    """The files that a manifest stands for.

    :param files: with their hashes.
    :param directories: the empty ones.
    :param blobs: path → the digest of the blob that holds it.
    :param slices: path → where it begins in its blob, and how large that is, for those that are not all of it.
    """

    files: tuple[FileEntry, ...] = ()
    directories: tuple[str, ...] = ()
    blobs: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(self.files)


def parse(content: bytes) -> Manifest:
    """Read a manifest.

    :raises UnsafeArchive: when it is none that makes sense.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise UnsafeArchive(f"its manifest makes no sense: {where}: {fault['msg']}") from None


def contents_of(manifest: Manifest) -> Contents:
    """Return the files that a manifest stands for.

    :raises NotSupported: when its layers are not files with paths.
    :raises UnsafeArchive: for paths that lead elsewhere, and for hashes that are not those of the digest it tells.
    """
    if manifest.manifests is not None:
        raise NotSupported("it is an index of several manifests; push or name one of them by a tag of its own")
    if not manifest.layers:
        raise NotSupported("its manifest names no layers")
    files: list[FileEntry] = []
    blobs: dict[str, str] = {}
    slices: dict[str, tuple[int, int]] = {}
    for layer in manifest.layers:
        for file, offset in _files_in(layer):
            files.append(file)
            blobs[file.path] = layer.digest
            if offset is not None:
                slices[file.path] = (offset, layer.size)
    directories = _directories(manifest.annotations.get(OUR_DIRECTORIES))
    require_safe("its manifest", (file.path for file in files), directories)
    contents = Contents(tuple(sorted(files, key=lambda file: file.path.encode())), directories, blobs, slices)
    told = manifest.annotations.get(OUR_DIGEST)
    if told not in (None, contents.digest):
        raise UnsafeArchive(f"its layers have the digest {contents.digest}, its manifest says {show(str(told))}")
    return contents


def _files_in(layer: Descriptor) -> list[tuple[FileEntry, int | None]]:
    """Return what a layer holds; an offset where it is a tar of ours."""
    if (listed := layer.annotations.get(OUR_FILES)) is not None:
        if not layer.media_type.endswith(".tar"):
            raise NotSupported("its layers were compressed by another tool: no file in them can be had by itself")
        try:
            members = _MEMBERS.validate_json(listed)
        except ValidationError:
            raise UnsafeArchive(f"the annotation {OUR_FILES} of a layer makes no sense") from None
        for member in members:
            is_empty = member.size == 0
            if member.offset + member.size > layer.size or is_empty != (member.sha256 == EMPTY_SHA256):
                raise UnsafeArchive(f"its manifest says of {show(member.path)} what cannot be")
        return [
            (FileEntry(member.path, member.size, member.sha256, member.executable), member.offset) for member in members
        ]
    annotations = layer.annotations
    path = annotations.get(FILEPATH) or annotations.get(_OLD_FILEPATH) or annotations.get(TITLE)
    if path is None or _is_packed(layer):
        raise NotSupported(
            f"its layer of type {layer.media_type or 'none'} is not one file with a path; the tool that pushed it can "
            "pull it"
        )
    if (layer.size == 0) != (layer.sha256 == EMPTY_SHA256):
        raise UnsafeArchive(f"its manifest says of {show(path)} what cannot be")
    return [(FileEntry(path, layer.size, layer.sha256, _is_executable(annotations.get(METADATA))), None)]


def _is_packed(layer: Descriptor) -> bool:
    kind, annotations = layer.media_type.lower(), layer.annotations
    if annotations.get(_UNPACK, "").lower() == "true":
        return True
    if kind == IMAGE_LAYER and TITLE in annotations:
        return (
            False  # ORAS gives files the type of a tar when nobody names another, and what it packs that of a tar+gzip
        )
    return any(mark in kind for mark in _PACKED)


def _is_executable(metadata: str | None) -> bool:
    try:
        mode = json.loads(metadata or "{}").get("mode", 0)
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(mode, int) and bool(mode & _EXECUTABLE)


def _directories(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        return _PATHS.validate_json(text)
    except ValidationError:
        raise UnsafeArchive(f"the annotation {OUR_DIRECTORIES} makes no sense") from None


def labels_of(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that annotations hold; none when they make no sense."""
    try:
        return _LABELS.validate_json(annotations.get(OUR_LABELS, "{}"))
    except ValidationError:
        return {}


def metadata_of(annotations: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata that annotations hold; none when they make no sense."""
    try:
        found = json.loads(annotations.get(OUR_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def signatures_of(annotations: Mapping[str, str]) -> list[str]:
    """Return what annotations hold of signatures; none when they make no sense."""
    try:
        return list(_PATHS.validate_json(annotations.get(OUR_SIGNATURES, "[]")))
    except ValidationError:
        return []


def created_in(config: bytes) -> datetime | None:
    """Return when a version was made, by its configuration: an image's, or a ModelPack's."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    descriptor = found.get("descriptor")
    return time_of(found.get("created")) or time_of(
        descriptor.get("createdAt") if isinstance(descriptor, dict) else None
    )


def time_of(text: Any) -> datetime | None:
    """Return a time as RFC 3339 has it, in UTC; ``None`` when it is none."""
    if not isinstance(text, str):
        return None
    try:
        time = TypeAdapter(datetime).validate_python(text)
    except ValidationError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def with_annotation(content: bytes, key: str, value: str | None) -> bytes:
    """Return a manifest with one annotation changed, and all else as it was."""
    manifest: dict[str, Any] = json.loads(content)
    annotations = {**(manifest.get("annotations") or {}), key: value}
    manifest["annotations"] = {name: text for name, text in annotations.items() if text is not None}
    return json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()

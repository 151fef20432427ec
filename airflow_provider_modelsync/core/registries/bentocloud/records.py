"""The record of a model in BentoCloud, and the ``model.yaml`` that goes with it.

``manifest.metadata`` is the one place in a record where a client can keep facts of its own, so the digest lies there,
under ``modelsync``.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.archive.extract import Limits
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import CorruptArchive, InvalidInput, UnsafeArchive
from airflow_provider_modelsync.core.models import ModelReference, VersionStatus
from airflow_provider_modelsync.core.registries.bentocloud.api import (
    BUILD_AT,
    CLIENT_VERSION,
    Object,
    Text,
    User,
    null_as,
    pairs,
)
from airflow_provider_modelsync.core.registries.bentocloud.upload import Tag, UploadRecord
from airflow_provider_modelsync.core.transfer.plan import PushRequest

if TYPE_CHECKING:
    import yaml

OURS = "modelsync"  # our key in the metadata of a record
MODEL_YAML = "model.yaml"
YAML_LIMIT = 128 << 10  # bytes of such a file that we read: reading them takes seconds

ALIAS_LABEL = "modelsync-alias-"  # what the labels of aliases begin with
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SIZE = re.compile(r"[0-9]{1,18}")


class PushOptions(BaseModel):
    """What ``options`` of a push may hold; each becomes the record's field of that name.

    :param description: of the version.
    :param module: the Python module that loads the model.
    :param framework_name: e.g. ``"onnx"``.
    :param framework_versions: package → version.
    :param options: loading options of the framework.
    :param signatures: method → its signature, for ``model.yaml``.
    :param repository_description: of the model that the version belongs to.
    :param repository_labels: of that model, merged into those that it has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    description: str = ""
    module: str = ""
    framework_name: str = ""
    framework_versions: dict[str, str] = {}
    options: dict[str, JsonValue] = {}
    signatures: dict[str, JsonValue] = {}
    repository_description: str | None = None
    repository_labels: dict[str, str] = {}


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="allow")

    module: Text = ""
    size_bytes: Annotated[int, null_as(0)] = 0
    metadata: Object = {}


class ModelRecord(UploadRecord):
    """A model version as the server describes it."""

    manifest: Annotated[_Manifest, null_as({})] = _Manifest()
    creator: User | None = None

    @property
    def status(self) -> VersionStatus:
        if self.reference is not None:  # whatever it says: there is nothing to upload, the record is all of it
            return VersionStatus.READY
        return super().status

    @property
    def ours(self) -> dict[str, Any]:
        """What a push of this package left in the record."""
        ours = self.manifest.metadata.get(OURS)
        return ours if isinstance(ours, dict) else {}

    @property
    def own_labels(self) -> dict[str, str]:
        """Its labels without those that stand for aliases."""
        return {label.key: label.value for label in self.labels if not label.key.startswith(ALIAS_LABEL)}

    @property
    def digest(self) -> str | None:
        digest = self.ours.get("digest")
        return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None

    @property
    def size_bytes(self) -> int | None:
        """Sum of the model's own files."""
        size = str(self.ours.get("size_bytes", self.manifest.size_bytes))
        return int(size) if _SIZE.fullmatch(size) else None

    @property
    def most_bytes(self) -> int | None:
        """Sum of all files, at most, where the record tells."""
        return max(self.size_bytes or 0, self.manifest.size_bytes) or None

    @property
    def generated(self) -> frozenset[str]:
        """Files that we made because the system demands them; they are no part of the model."""
        generated = self.ours.get("generated")
        return frozenset({MODEL_YAML}) if isinstance(generated, list) and MODEL_YAML in generated else frozenset()

    @property
    def signatures(self) -> list[str]:
        """What is kept of signatures."""
        kept = self.ours.get("signatures")
        return [one for one in kept if isinstance(one, str)] if isinstance(kept, list) else []

    @property
    def reference(self) -> ModelReference | None:
        facts = self.manifest.metadata
        registry = facts.get("registry")
        if not isinstance(registry, str) or registry in ("", "bentoml"):
            return None
        known = {key: str(facts[key]) for key in ("model_id", "revision", "url", "endpoint") if facts.get(key)}
        patterns = {key: _patterns_in(facts.get(key)) for key in ("include", "exclude")}
        return ModelReference(registry=registry, **known, **patterns)


def _patterns_in(value: Any) -> tuple[str, ...]:
    """Return patterns of a record, which may be one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(one) for one in values if one)


@dataclass(frozen=True, slots=True)
class Draft:
    """The record to be made, and the files that go with it."""

    tag: Tag
    source: Source
    labels: dict[str, str]
    metadata: dict[str, JsonValue]
    options: PushOptions
    own_yaml: dict[str, Any] | None
    build_at: datetime
    signature: bytes | None = None

    @property
    def digest(self) -> str:
        return self.source.digest

    def layout(self, build_at: datetime) -> TarLayout:
        """Lay the archive out, with a ``model.yaml`` unless the source brings one."""
        generated = {} if self.own_yaml is not None else {MODEL_YAML: self._yaml(build_at)}
        layout = TarLayout.from_tree(self.source, generated=generated)
        if len(layout.members) > (most := Limits().max_members):
            raise InvalidInput(f"the source has more than {most} files and directories", argument="source")
        return layout

    def describes(self, record: ModelRecord) -> bool:
        """Whether an unfinished record holds what this push would register."""
        metadata = {key: value for key, value in record.manifest.metadata.items() if key != OURS}
        is_signed_alike = self.signature is None or bool(record.signatures)
        return record.own_labels == self.labels and metadata == self._facts()["metadata"] and is_signed_alike

    def body(self) -> dict[str, Any]:
        """Return what registers the version."""
        generated = [] if self.own_yaml is not None else [MODEL_YAML]
        size = self.source.size_bytes
        # As strings: the server keeps numbers as floats.
        ours: dict[str, JsonValue] = {"digest": self.digest, "size_bytes": str(size), "generated": list(generated)}
        if self.signature is not None:
            ours["signatures"] = [self.signature.decode()]
        facts = self._facts()
        return {
            "description": self.options.description,
            "version": self.tag.version,
            "manifest": {
                **facts,
                "bentoml_version": CLIENT_VERSION,
                "size_bytes": size + sum(len(self._yaml(self.build_at)) for _ in generated),
                "metadata": {**facts["metadata"], OURS: ours},
            },
            "build_at": self.build_at.strftime(BUILD_AT),
            "labels": pairs(self.labels),
        }

    def _facts(self) -> dict[str, Any]:
        own = self.own_yaml or {}
        context = {
            "framework_name": self.options.framework_name,
            "framework_versions": self.options.framework_versions,
            "bentoml_version": CLIENT_VERSION,
            "python_version": platform.python_version(),
        }
        return {
            "module": self.options.module or own.get("module") or "",
            "api_version": own.get("api_version") or "v1",
            "metadata": {**(own.get("metadata") or {}), **self.metadata},
            "context": {**context, **(own.get("context") or {})},
            "options": {**(own.get("options") or {}), **self.options.options},
        }

    def _yaml(self, build_at: datetime) -> bytes:
        import yaml

        facts = self._facts()
        document = {
            "name": self.tag.name,
            "version": self.tag.version,
            "module": facts["module"],
            "labels": self.labels,
            "options": facts["options"],
            "metadata": facts["metadata"],
            "context": facts["context"],
            "signatures": self.options.signatures,
            "api_version": facts["api_version"],
            "creation_time": build_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00"),
        }
        text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return text.encode()


def make_draft(tag: Tag, request: PushRequest) -> Draft:
    source = request.source
    if OURS in request.metadata:
        raise InvalidInput(f"the key {OURS!r} is ours", argument="metadata")
    try:
        checked = PushOptions.model_validate(dict(request.options))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="options") from None
    own = None
    if any(file.path == MODEL_YAML for file in source.files):
        text = source.head(MODEL_YAML, YAML_LIMIT + 1)
        if (other := _other_tag(text, tag)) is not None:
            raise InvalidInput(f"its {MODEL_YAML} says {other}", remedy="push it as that", argument="source")
        own = _facts_in(text)
    own_labels = {str(key): str(value) for key, value in ((own or {}).get("labels") or {}).items()}
    # To the microsecond, as the server keeps it: a later try must lay out the same archive.
    labels, now = {**own_labels, **request.labels}, datetime.now(UTC)
    return Draft(tag, source, labels, dict(request.metadata), checked, own, now, request.signature)


def _facts_in(text: bytes) -> dict[str, Any]:
    """Return what a source's ``model.yaml`` says, as JSON values."""
    import yaml

    try:
        facts: dict[str, Any] = json.loads(json_of(mapping_in(text, yaml.SafeLoader)))
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"its {MODEL_YAML} holds what JSON cannot", argument="source") from None
    for key in ("labels", "metadata", "context", "options"):
        if not isinstance(facts.get(key) or {}, dict):
            raise InvalidInput(f"the {key} in its {MODEL_YAML} are no mapping", argument="source")
    return facts


def json_of(document: Mapping[Any, Any]) -> str:
    """Write a mapping as JSON, unless it is much larger than its YAML was: aliases make much of little."""
    parts: list[str] = []
    size = 0
    for part in json.JSONEncoder(allow_nan=False, default=str).iterencode(document):
        parts.append(part)
        size += len(part)
        if size > 4 * YAML_LIMIT:
            raise ValueError("too large")
    return "".join(parts)


def _other_tag(text: bytes, tag: Tag) -> str | None:
    """Return the tag that a ``model.yaml`` names when it is another one. The text may be anybody's."""
    import yaml

    document = mapping_in(text, yaml.BaseLoader)  # makes strings of all that is no list or mapping
    parts = [document.get(key) for key in ("name", "version")]
    named = ":".join(part if isinstance(part, str) else "?" for part in parts)
    return None if named == str(tag) else show(named)


def read_yaml(text: bytes, name: str) -> dict[str, Any]:
    """Read a YAML file of a source into a mapping of plain values.

    :param text: its bytes, or the first 128 KiB and one more.
    :param name: what it is called, for messages.
    :raises InvalidInput: when it is no mapping, or larger than 128 KiB.
    """
    import yaml

    return mapping_in(text, yaml.SafeLoader, name)


def mapping_in(text: bytes, loader: type[yaml.SafeLoader | yaml.BaseLoader], name: str = MODEL_YAML) -> dict[Any, Any]:
    import yaml

    try:
        document = yaml.load(text, loader) if len(text) <= YAML_LIMIT else None  # noqa: S506  # both are safe
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError is an impossible date, or no UTF-8
        document = None
    if not isinstance(document, dict):
        raise InvalidInput(f"its {name} is no YAML mapping of at most 128 KiB", argument="source")
    return document


def check_pulled(tag: Tag, record: ModelRecord, directory: Path, files: Sequence[FileEntry]) -> None:
    """Compare what came down with its record."""
    size = sum(file.size for file in files)
    # Our own digest says more; nothing but the size vouches for a model that others have pushed.
    if record.digest is None and record.manifest.size_bytes and size != record.manifest.size_bytes:
        raise CorruptArchive(f"the files of {tag} have {size} bytes, its record says {record.manifest.size_bytes}")
    if any(file.path == MODEL_YAML for file in files):
        descriptor = os.open(directory / MODEL_YAML, os.O_RDONLY | os.O_CLOEXEC)
        try:
            other = _other_tag(os.pread(descriptor, YAML_LIMIT + 1, 0), tag)
        except InvalidInput as error:
            raise UnsafeArchive(f"the archive of {tag} is not a model's: {error.message}") from None
        finally:
            os.close(descriptor)
        if other is not None:
            raise UnsafeArchive(f"the archive of {tag} holds another model: its {MODEL_YAML} says {other}")

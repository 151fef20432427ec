"""What the two places of a model store, a directory and a bucket, have in common: its layout and its records.

Layout, the same wherever the root lies::

    <name>/<version>/<path…>              the files, as they are
    <name>/.modelsync/<version>.json      the manifest: written last, it makes the version exist
    <name>/.modelsync/<version>.claim     the digest of whoever is writing the version
    <name>/.modelsync/<version>.labels    labels changed after the push; the manifest is written once

A version's ``created_at`` is the time of its manifest in the store, so one listing tells all versions and their order.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable, UnsafeArchive, VersionConflict
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.transfer.plan import DownloadWay, PushRequest, UploadPlan

CONN_TYPE = "modelstore"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MANIFEST, CLAIM, LABELS = ".json", ".claim", ".labels"
_READERS = 8  # threads that read records


class Manifest(BaseModel):
    """What a version holds, as stored. Version 1 of the format."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    name: str
    version: str
    digest: str
    size_bytes: int
    labels: dict[str, str] = {}
    metadata: dict[str, JsonValue] = {}
    directories: tuple[str, ...] = ()
    files: tuple[FileEntry, ...]

    @classmethod
    def of(cls, request: PushRequest, version: str) -> Manifest:
        """Return the manifest that a push is going to write."""
        return cls(
            name=request.ref.name,
            version=version,
            digest=request.source.digest,
            size_bytes=request.source.size_bytes,
            labels=dict(request.labels),
            metadata=dict(request.metadata),
            directories=request.source.directories,
            files=request.source.files,
        )

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name=self.name, version=self.version)

    def require_safe(self) -> None:
        """Raise :class:`UnsafeArchive` unless what it names may become files, and hashes to its digest."""
        paths = [file.path for file in self.files]
        for entry in (*paths, *self.directories):
            if fault := names.fault_of(entry):
                raise UnsafeArchive(f"the manifest of {self.ref} names {names.show(entry)}, which {fault}")
        if clash := names.clash_among(paths, self.directories):
            raise UnsafeArchive(
                f"the manifest of {self.ref} names {names.show(clash[0])} and {names.show(clash[1])}, "
                "which cannot lie side by side"
            )
        if any(file.size < 0 for file in self.files):
            raise UnsafeArchive(f"the manifest of {self.ref} names a file of negative size")
        if digest_of(self.files) != self.digest:
            raise UnsafeArchive(f"the manifest of {self.ref} does not match its own digest")


class Claim(BaseModel):
    """Who is writing a version."""

    model_config = ConfigDict(frozen=True)

    digest: str


class Labels(BaseModel):
    """Labels that were changed after the push."""

    labels: dict[str, str]

    def merged(self, changes: Mapping[str, str | None]) -> Labels:
        """Return them with changes, a ``None`` value removing one."""
        kept = {**self.labels, **changes}
        return Labels(labels={key: value for key, value in kept.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Record:
    """A small file of a store.

    :param content: its bytes.
    :param modified: when it was written, UTC.
    :param tag: tells one state from another, where the store does.
    """

    content: bytes
    modified: datetime
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in a listing. Parameters as for :class:`Record`."""

    modified: datetime
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan(UploadPlan):
    """A push into a store.

    :param manifest: what is going to be published.
    :param force: whether it may replace other bytes.
    """

    manifest: Manifest
    force: bool


_Model = TypeVar("_Model", bound=BaseModel)


class Store(ABC):
    """A place that holds models. All methods block."""

    title: ClassVar[str] = "the model store"
    # Whether its methods wait for another machine.
    is_remote: ClassVar[bool] = False

    @abstractmethod
    def test(self) -> str:
        """Read and write; return where in a sentence."""

    @abstractmethod
    def uri(self, name: str, version: str) -> str:
        """Return where a version's files are."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return what may be names of models."""

    @abstractmethod
    def entries(self, name: str) -> dict[str, Entry]:
        """Return a model's records by file name."""

    @abstractmethod
    def read(self, name: str, record: str, entry: Entry | None = None) -> Record | None:
        """Return a record by file name, or ``None`` when it is not there.

        :param entry: how it was listed a moment ago.
        """

    @abstractmethod
    def show(self, name: str, record: str) -> str:
        """Return what a record is called in messages."""

    @abstractmethod
    def plan_push(self, request: PushRequest, manifest: Manifest) -> UploadPlan:
        """Claim a version; return how its bytes go up, or the version that holds them already."""

    @abstractmethod
    def publish(self, plan: UploadPlan) -> ModelVersion:
        """Write the manifest of a version whose bytes are there."""

    @abstractmethod
    def abort(self, plan: UploadPlan) -> None:
        """Give a push up."""

    @abstractmethod
    def delete(self, name: str, version: str) -> bool:
        """Remove a version, its manifest first; return whether it was there."""

    @abstractmethod
    def set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> None:
        """Merge labels into a version's."""

    @abstractmethod
    def way_down(self, manifest: Manifest) -> DownloadWay:
        """Say how a version's files come down."""

    def read_version(self, name: str, version: str, entries: Mapping[str, Entry] | None = None) -> ModelVersion:
        """Read manifest and labels into a version.

        :param entries: the model's records as listed a moment ago; saves looking for labels that are not there.
        """
        manifest, created_at = self.read_manifest(name, version, entries)
        labels = self.read_labels(name, version, entries)
        return ModelVersion(
            registry=CONN_TYPE,
            name=manifest.name,
            version=manifest.version,
            status=VersionStatus.READY,
            digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            labels=manifest.labels if labels is None else labels.labels,
            metadata=manifest.metadata,
            created_at=created_at,
            uri=self.uri(name, version),
            raw=manifest.model_dump(mode="json"),
        )

    def read_manifest(
        self, name: str, version: str, entries: Mapping[str, Entry] | None = None
    ) -> tuple[Manifest, datetime]:
        """Return a version's manifest and the time since which it exists."""
        record = f"{version}{MANIFEST}"
        stored = self.read(name, record, (entries or {}).get(record))
        if stored is None:
            raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")
        manifest = self.parse(Manifest, name, record, stored.content)
        if (manifest.name, manifest.version) != (name, version):  # what it names leads to paths
            raise UnsafeArchive(f"{self.show(name, record)} says that it is of {names.show(str(manifest.ref))}")
        return manifest, stored.modified

    def read_labels(self, name: str, version: str, entries: Mapping[str, Entry] | None = None) -> Labels | None:
        """Return the labels that were changed after the push, or ``None`` when none were."""
        record = f"{version}{LABELS}"
        if entries is not None and record not in entries:
            return None
        stored = self.read(name, record, (entries or {}).get(record))
        return None if stored is None else self.parse(Labels, name, record, stored.content)

    def newest_first(self, name: str, entries: Mapping[str, Entry]) -> list[str]:
        """Return the versions among a model's records."""
        found = [
            (entry.modified, record.removesuffix(MANIFEST))
            for record, entry in entries.items()
            if record.endswith(MANIFEST)
        ]
        return [version for _, version in sorted(found, reverse=True) if NAME.fullmatch(version)]

    def latest(self, name: str, query: Query) -> ModelVersion | None:
        """Return the newest version that a query chooses, reading no more than needed to find it."""
        if not query.matches_name(name):
            return None
        entries = self.entries(name)
        for version in self.newest_first(name, entries):
            with suppress(ModelNotFound):  # deleted since it was listed
                if query.matches(read := self.read_version(name, version, entries)):
                    return read
        return None

    def list_versions(self, name: str, query: Query) -> list[ModelVersion]:
        """Return the versions that a query chooses, newest first."""
        if not query.matches_name(name):
            return []
        entries = self.entries(name)
        found: dict[str, ModelVersion] = {}

        def read(version: str, cancel: CancelToken) -> None:
            with suppress(ModelNotFound):  # deleted since it was listed
                found[version] = self.read_version(name, version, entries)

        order = self.newest_first(name, entries)
        for_each(read, order, workers=_READERS, cancel=CancelToken())
        return [found[version] for version in order if version in found and query.matches(found[version])]

    def list_models(self, query: Query) -> list[ModelVersion]:
        """Return the newest version of each name that a query chooses, newest first."""
        found: list[ModelVersion] = []

        def read(name: str, cancel: CancelToken) -> None:
            if newest := self.latest(name, query):
                found.append(newest)

        names_there = [name for name in self.names() if NAME.fullmatch(name)]
        for_each(read, names_there, workers=_READERS, cancel=CancelToken())
        return sorted(found, key=lambda version: version.age_key, reverse=True)

    def settle(self, manifest: Manifest, force: bool) -> ModelVersion | None:
        """Return the published version when it holds these bytes already, ``None`` when it is to be written."""
        try:
            existing = self.read_version(manifest.name, manifest.version)
        except ModelNotFound:
            return None
        if existing.digest == manifest.digest:
            return existing
        if not force:
            raise VersionConflict(
                f"{existing.ref} exists with {existing.digest}, the source has {manifest.digest}; "
                "push under another version, or with force to replace it"
            )
        return None

    def claimant(self, manifest: Manifest) -> Record | None:
        """Return who is writing a version, as stored."""
        return self.read(manifest.name, f"{manifest.version}{CLAIM}")

    def is_claimed_by(self, manifest: Manifest, claim: Record) -> bool:
        """Whether a claim is that of a push of these bytes."""
        return self._digest_in(manifest, claim) == manifest.digest

    def claimed(self, manifest: Manifest, claim: Record) -> VersionConflict:
        """Return what a push of other bytes gets to hear."""
        return VersionConflict(
            f"{manifest.ref} is claimed by a push of {self._digest_in(manifest, claim)}, the source has "
            f"{manifest.digest}; wait for it, or push with force when that push is dead"
        )

    def _digest_in(self, manifest: Manifest, claim: Record) -> str:
        return self.parse(Claim, manifest.name, f"{manifest.version}{CLAIM}", claim.content).digest

    def parse(self, model: type[_Model], name: str, record: str, content: bytes) -> _Model:
        """Read a record; raise :class:`RegistryUnavailable` when it is damaged."""
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the whole"
            raise RegistryUnavailable(
                f"{self.show(name, record)} is damaged or of a newer format: {where}: {fault['msg']}"
            ) from None

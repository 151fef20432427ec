"""What the places of a model store, a directory and a bucket, have in common: its layout, its records, its protocol.

Layout, the same wherever the root lies::

    <name>/<version>/<path…>              the files, as they are; <name>/<version>~<g>/ of later generations
    <name>/.modelsync/<version>.json      the manifest: written last, it makes the version exist
    <name>/.modelsync/<version>.…         who may write and publish it, and its labels: see :mod:`.claims`
    <name>/.modelsync/<alias>.alias       where an alias points, and where it pointed before: see :mod:`.aliases`

A version's ``created_at`` is the time of its manifest in the store, so one listing tells all versions and their order.
"""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, PositiveInt, ValidationError

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry, LooseFile, digest_of
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    ModelNotFound,
    ModelSyncError,
    Permanent,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.models import Alias, ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.modelstore import aliases, claims
from airflow_provider_modelsync.core.registries.modelstore.claims import Outcome, Records, View
from airflow_provider_modelsync.core.registries.modelstore.records import Entry as Entry
from airflow_provider_modelsync.core.registries.modelstore.records import Record as Record
from airflow_provider_modelsync.core.transfer.checkpoint import UploadMemory
from airflow_provider_modelsync.core.transfer.plan import DownloadWay, PushRequest, PutAhead, UploadPlan, UploadWay

log = logging.getLogger("modelsync")

CONN_TYPE = "modelstore"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_READERS = 8  # threads that read records
_BATCH = 32  # records that are read before it is asked whether more are needed
_ROUNDS = 100  # of looking and writing, each lost to another writer
_CACHED_BYTES = 32 << 20
_LATEST = timedelta(days=30)  # that a writer may be behind
_LARGEST_RECORD = 64 << 20  # bytes: one of 100,000 files with long names has half of that
_LONGEST_NOTE = 64  # bytes of a verdict that is no manifest


class Summary(BaseModel):
    """What a manifest says, without its files. Version 1 of the format.

    :ivar generation: whose directory holds the files.
    :ivar created_at: since when these bytes are published, when this is not their first manifest.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    name: str
    version: str
    generation: PositiveInt = 1
    digest: str
    size_bytes: int
    created_at: datetime | None = None
    labels: dict[str, str] = {}
    metadata: dict[str, JsonValue] = {}

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name=self.name, version=self.version)

    @property
    def directory(self) -> str:
        """The name of the directory that holds the files."""
        return claims.directory_of(self.version, self.generation)


class Manifest(Summary):
    """What a version holds, as stored.

    :ivar etags: path → the storage's tag of the file, where the storage has tags.
    """

    directories: tuple[str, ...] = ()
    files: tuple[FileEntry, ...]
    etags: dict[str, str] = {}

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

    @classmethod
    def unhashed(cls, name: str, version: str, files: Iterable[LooseFile]) -> Manifest:
        """Return as much of the manifest as is known before files are hashed."""
        entries = tuple(FileEntry(file.path, file.stamp.size, "") for file in files)
        size = sum(entry.size for entry in entries)
        return cls(name=name, version=version, digest="", size_bytes=size, files=entries)

    def require_safe(self) -> None:
        """Raise :class:`UnsafeArchive` unless what it names may become files, and hashes to its digest."""
        names.require_safe(f"the manifest of {self.ref}", (file.path for file in self.files), self.directories)
        if any(file.size < 0 for file in self.files):
            raise UnsafeArchive(f"the manifest of {self.ref} names a file of negative size")
        if digest_of(self.files) != self.digest:
            raise UnsafeArchive(f"the manifest of {self.ref} does not match its own digest")


class Claim(BaseModel):
    """Whose a generation is."""

    model_config = ConfigDict(frozen=True)

    digest: str


class Closed(BaseModel):
    """The verdict on a generation that was given up.

    :ivar current: the generation that counts instead; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: int


class Labels(BaseModel):
    """Labels that were changed after the push."""

    labels: dict[str, str]

    def merged(self, changes: Mapping[str, str | None]) -> Labels:
        """Return them with changes, a ``None`` value removing one."""
        kept = {**self.labels, **changes}
        return Labels(labels={key: value for key, value in kept.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan(UploadPlan):
    """A push into a store.

    :param manifest: what is going to be published.
    :param generation: the one that it will be.
    :param keeps: the generation that counts when the push is given up; 0 for none.
    """

    manifest: Manifest
    generation: int
    keeps: int


_Model = TypeVar("_Model", bound=BaseModel)
_Kept = TypeVar("_Kept", bound=Summary)
_Error = TypeVar("_Error", bound=ModelSyncError)


@dataclass(frozen=True, slots=True)
class State:
    """What a store holds of a version.

    :param view: what its records say.
    :param records: those records.
    :param manifest: of what is published; ``None`` when nothing is, or its manifest cannot be read.
    :param created_at: since when it is.
    :param written: when its manifest was.
    :param labels: what they are now.
    :param damage: why the manifest cannot be read.
    """

    view: View
    records: Records
    manifest: Summary | None = None
    created_at: datetime | None = None
    written: datetime | None = None
    labels: Mapping[str, str] | None = None
    damage: ModelSyncError | None = None


class Damaged(RegistryUnavailable):
    """A record cannot be read, or is of a newer format."""


class _Moved(Exception):
    """A record that was listed is gone: look again."""


class Store(ABC):
    """A place that holds models. All methods block.

    What a place must be able to do are the abstract methods; the protocol is written once, here.
    """

    title: ClassVar[str] = "the model store"
    # Whether its methods wait for another machine.
    is_remote: ClassVar[bool] = False
    # The kind of checksum that it compares parts of files with, if it does.
    checks: str | None = None

    # -- what a place does

    @abstractmethod
    def test(self) -> str:
        """Read and write; return where in a sentence."""

    @abstractmethod
    def uri(self, name: str, directory: str) -> str:
        """Return where the files in a directory of a model are."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return what may be names of models."""

    @abstractmethod
    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]:
        """Return a model's records by file name; those of one version, and perhaps some others, when it is given."""

    @abstractmethod
    def read(self, name: str, record: str) -> Record | None:
        """Return a record by file name, or ``None`` when it is not there."""

    @abstractmethod
    def create(self, name: str, record: str, content: bytes) -> bool:
        """Create a record where there is none, durably; return whether it was this call that did."""

    @abstractmethod
    def remove(self, name: str, records: Iterable[str]) -> None:
        """Remove records; those that are not there are fine."""

    @abstractmethod
    def show(self, name: str, record: str) -> str:
        """Return what a record is called in messages."""

    @abstractmethod
    def identity(self, name: str, record: str) -> tuple[str, ...]:
        """Return what must be the same for two records to be the same record."""

    @abstractmethod
    def require_fit(self, manifest: Manifest) -> None:
        """Raise :class:`InvalidInput` for what the place cannot hold, before anything is written."""

    @abstractmethod
    def prepare(self, manifest: Manifest, *, replaces: bool) -> None:
        """Raise for what would make a push fail later, before it claims anything.

        :param replaces: whether files of a published version will have to go.
        """

    @abstractmethod
    def require_removable(self, name: str, version: str) -> None:
        """Raise :class:`InvalidInput` when files of a version could not be removed, before anything is changed."""

    @abstractmethod
    def is_free(self, manifest: Manifest) -> bool:
        """Whether the files of a generation can be brought to their place."""

    @abstractmethod
    def damaged(self, manifest: Manifest, *, written: datetime, thorough: bool) -> set[str]:
        """Return the paths of files that are not stored as they were published.

        :param written: when that was.
        :param thorough: read them, where nothing less tells.
        """

    @abstractmethod
    def way_up(
        self, request: PushRequest, manifest: Manifest, *, is_fresh: bool, origin: Manifest | None
    ) -> UploadWay | None:
        """Say how the bytes of a generation go up; ``None`` when they are all there.

        :param manifest: what is going to be published, and where.
        :param is_fresh: whether this push was the first to claim the generation.
        :param origin: a version of the same bytes, of which some may be damaged.
        """

    def plan_ahead(self, name: str, version: str, files: Iterable[LooseFile], memory: UploadMemory) -> PutAhead | None:
        """Say how files may go up before their hashes, and so the digest, are known; ``None`` when none may.

        :param files: all of what is going to be pushed.
        """
        return None

    def drop_ahead(self, name: str, version: str) -> None:
        """Give up what went ahead of a version by this very store."""
        return

    @abstractmethod
    def confirm(self, plan: StorePlan) -> Manifest:
        """Return the manifest of a version whose bytes are there as they were sent, and no others.

        :raises BeginAgain: when something is missing.
        """

    @abstractmethod
    def finish(self, plan: StorePlan) -> None:
        """Remove what is under way to a generation that is published by now."""

    @abstractmethod
    def release(self, manifest: Manifest, plan: UploadPlan | None = None) -> None:
        """Give up what pushes of a version by this very store hold that nobody else can see.

        :param plan: the one that ends, if any does.
        """

    @abstractmethod
    def clear(self, name: str, version: str, generations: Iterable[int]) -> None:
        """Remove the files, and what is under way to become some, of generations that are dead."""

    @abstractmethod
    def generations(self, name: str, version: str) -> set[int]:
        """Return the generations of a version of which there may be files."""

    def touched(self, name: str, version: str, generation: int) -> Iterable[datetime]:
        """Return when the files of a generation, and those under way to it, were written, as far as that is told."""
        return ()

    def tidy_place(self, name: str, older_than: datetime, seen: Set[str], *, dry_run: bool) -> list[str]:
        """Remove what only this kind of place has of a model; return what that is.

        :param seen: directories of files that are not to be looked at.
        """
        return []

    @abstractmethod
    def way_down(self, manifest: Manifest) -> DownloadWay:
        """Say how a version's files come down."""

    # -- looking

    def read_version(self, name: str, version: str) -> ModelVersion:
        """Return a published version; raise :class:`ModelNotFound` when there is none."""
        state = self.look(name, version)
        if state.damage:
            raise state.damage
        if not isinstance(state.manifest, Manifest):
            raise self._not_found(name, version)
        state.manifest.require_safe()
        return self._version(state)

    def read_manifest(self, name: str, version: str) -> Manifest:
        """Return what a published version holds; raise :class:`ModelNotFound` when there is none."""
        state = self.look(name, version)
        if state.damage:
            raise state.damage
        if not isinstance(state.manifest, Manifest):
            raise self._not_found(name, version)
        return state.manifest

    def look(
        self, name: str, version: str, *, mine: tuple[int, str] | None = None, wrote: tuple[int, Manifest] | None = None
    ) -> State:
        """Return what is there of a version.

        :param mine: a generation that this push has claimed, and its digest.
        :param wrote: a generation whose manifest this push has created, and that.
        """
        for _ in range(_ROUNDS):
            entries = self.entries(name, version)
            records = claims.by_version(entries).get(version, Records())
            try:
                return self._state(name, version, records, entries, Manifest, mine, wrote)
            except _Moved:
                continue
        raise RegistryUnavailable(f"the records of {name}:{version} change all the time")

    def latest(self, name: str, query: Query) -> ModelVersion | None:
        """Return the newest version that a query chooses, reading no more than needed to find it."""
        if not query.matches_name(name):
            return None
        found: list[ModelVersion] = []
        for chosen, bound in self._newest_first(name, self.entries(name)):
            found += filter(query.matches, chosen)
            if bound is not None and any(version.age_key > bound for version in found):
                break
        return max(found, key=lambda version: version.age_key, default=None)

    def list_versions(self, name: str, query: Query) -> list[ModelVersion]:
        """Return the versions that a query chooses, newest first."""
        if not query.matches_name(name):
            return []
        entries = self.entries(name)
        found = [version for chosen, _ in self._newest_first(name, entries) for version in chosen]
        pointing: dict[str, tuple[str, ...]] = {}
        for alias in aliases.listed(self, name, entries):
            pointing[alias.version] = (*pointing.get(alias.version, ()), alias.alias)
        found = [version.model_copy(update={"aliases": pointing.get(version.version, ())}) for version in found]
        return sorted(filter(query.matches, found), key=lambda version: version.age_key, reverse=True)

    def digests(self, name: str) -> set[str]:
        """Return the digests of all that is published of a model, or claimed to be.

        :raises ModelSyncError: when a record that tells one cannot be read.
        """
        found: set[str] = set()
        entries = self.entries(name)
        for version, records in claims.by_version(entries).items():
            try:
                state = self._state(name, version, records, entries, Summary)
            except _Moved:
                state = self.look(name, version)
            if state.damage:
                raise state.damage
            if state.view.open and state.view.claimant is None:
                raise Damaged(f"the claim on {name}:{version} cannot be read")
            found |= {digest for digest in (state.view.digest, state.view.claimant) if digest}
        return found

    def list_models(self, query: Query) -> list[ModelVersion]:
        """Return the newest version of each name that a query chooses, newest first."""
        found: list[ModelVersion] = []
        refused: list[Permanent] = []

        def read(name: str, cancel: CancelToken) -> None:
            try:
                if newest := self.latest(name, query):
                    found.append(newest)
            except Permanent as error:
                refused.append(_passed_over(name, error))

        names_there = filter(NAME.fullmatch, self.names())
        for_each(read, names_there, workers=_READERS, cancel=CancelToken())
        if refused:
            self.names()  # raises when it is not single models that are refused
            if not found:
                raise refused[0]
        return sorted(found, key=lambda version: version.age_key, reverse=True)

    def newest(self, name: str, count: int, *, besides: str) -> Iterator[Manifest]:
        """Yield the newest manifests of a model as they are asked for; what cannot be read is passed over.

        :param count: how many versions are looked at.
        :param besides: a version that is not.
        """
        entries = self.entries(name)
        for (_, version), records in _listed(entries)[:count]:
            if version == besides:
                continue
            try:
                manifest = self._state(name, version, records, entries, Manifest).manifest
            except Cancelled:
                raise
            except (ModelSyncError, _Moved) as error:  # deleted since it was listed, or not to be read
                log.info("%s:%s is not looked at: %s", name, version, error or "it is gone")
            else:
                if isinstance(manifest, Manifest):
                    yield manifest

    def _newest_first(
        self, name: str, entries: Mapping[str, Entry]
    ) -> Iterator[tuple[list[ModelVersion], tuple[datetime, str] | None]]:
        """Yield a model's versions, those with the newest manifests first: one, then as many as are read at a time.

        What cannot be read is reported and passed over. With each batch comes what none of those after it is newer
        than: a manifest that was written again tells itself since when its version is there.
        """
        listed = _listed(entries)
        ends = [0, 1, *range(1 + _BATCH, len(listed), _BATCH), len(listed)]
        found: list[ModelVersion] = []
        refused: list[Permanent] = []

        def read(item: tuple[tuple[datetime, str], Records], cancel: CancelToken) -> None:
            (_, version), records = item
            try:
                try:
                    state = self._state(name, version, records, entries, Summary)
                except _Moved:  # replaced or deleted since it was listed
                    state = self.look(name, version)
            except Permanent as error:
                refused.append(_passed_over(f"{name}:{version}", error))
                return
            if state.damage:
                _passed_over(f"{name}:{version}", state.damage)
            elif state.manifest:
                found.append(self._version(state))

        for start, end in pairwise(ends):
            known, known_refused = len(found), len(refused)
            for_each(read, listed[start:end], workers=_READERS, cancel=CancelToken())
            if refused[known_refused:]:
                self.entries(name)  # raises when it is not single records that are refused
            yield found[known:], listed[end][0] if end < len(listed) else None
        if refused and not found:
            raise refused[0]

    def _state(
        self,
        name: str,
        version: str,
        records: Records,
        entries: Mapping[str, Entry],
        kind: type[_Kept],
        mine: tuple[int, str] | None = None,
        wrote: tuple[int, _Kept] | None = None,
    ) -> State:
        """Read what a version's records say. Raises :class:`_Moved` when one of them is gone."""
        current = says = records.top or records.noted
        manifest: _Kept | None = None
        created_at = written = damage = None
        if says:
            try:
                verdict: _Kept | Closed
                if wrote and wrote[0] == says:
                    verdict, written = wrote[1], entries[claims.verdict_of(version, says)].modified
                else:
                    verdict, written = self._verdict(name, version, says, entries, kind)
                if isinstance(verdict, Closed):
                    current = verdict.current if verdict.current in records.verdicts else 0
                    if current:
                        verdict, written = self._verdict(name, version, current, entries, kind)
                if not isinstance(verdict, Closed):
                    manifest, created_at = verdict, verdict.created_at or written
            except (Damaged, UnsafeArchive) as error:
                damage = error
        labels: Mapping[str, str] | None = None
        if manifest:
            labels = manifest.labels
            if number := records.newest_labels(current):
                try:
                    labels = self._read(name, claims.labels_of(version, current, number), entries, Labels).labels
                except Damaged as error:
                    damage = error
        claimant = None
        if records.open:
            if mine and records.open == mine[0]:
                claimant = mine[1]
            else:
                try:
                    claimant = self._read(name, claims.claim_of(version, records.open), entries, Claim).digest
                except Damaged as error:
                    log.warning("passing over %s", error)
        view = View(
            decided=max(records.floor, records.top),
            current=current,
            digest=manifest.digest if manifest else None,
            open=records.open,
            claimant=claimant,
        )
        return State(view, records, manifest, created_at, written, labels, damage)

    def _verdict(
        self, name: str, version: str, generation: int, entries: Mapping[str, Entry], kind: type[_Kept]
    ) -> tuple[_Kept | Closed, datetime]:
        record = claims.verdict_of(version, generation)
        stored = self._stored(name, record, entries, kind)
        if _is_note(stored):
            with suppress(ValidationError):
                return Closed.model_validate_json(stored.content), stored.modified
        manifest = self.parse(kind, name, record, stored.content)
        if (manifest.name, manifest.version) != (name, version):  # what it names leads to paths
            raise UnsafeArchive(f"{self.show(name, record)} says that it is of {names.show(str(manifest.ref))}")
        return manifest, stored.modified

    def _read(self, name: str, record: str, entries: Mapping[str, Entry], kind: type[_Model]) -> _Model:
        return self.parse(kind, name, record, self._stored(name, record, entries, kind).content)

    def read_listed(self, name: str, record: str, entries: Mapping[str, Entry], kind: type[_Model]) -> _Model | None:
        """Return a record that was listed, or ``None`` when it is gone by now."""
        try:
            return self._read(name, record, entries, kind)
        except _Moved:
            return None

    def _stored(self, name: str, record: str, entries: Mapping[str, Entry], kind: type[BaseModel]) -> Record:
        """Return a record that was listed; of a manifest no more than is asked for stays in memory."""
        entry = entries[record]
        key = (*self.identity(name, record), entry.tag, kind.__name__)
        if entry.tag and (known := _records.get(key)):
            return replace(known, modified=entry.modified)  # the same content may have been written again
        if entry.size > _LARGEST_RECORD:
            raise Damaged(f"{self.show(name, record)} is larger than any record of a model store")
        stored = self.read(name, record)
        if stored is None:
            raise _Moved
        if kind is Summary and not _is_note(stored):
            # All of it is looked at, or a version would be listed, and chosen as the newest, that nobody can pull.
            manifest = self.parse(Manifest, name, record, stored.content)
            manifest.require_safe()
            stored = replace(stored, content=manifest.model_dump_json(include=set(Summary.model_fields)).encode())
        if entry.tag:
            _records.add(key, stored)
        return replace(stored, modified=entry.modified)  # a storage may tell another time when it is read

    def parse(self, model: type[_Model], name: str, record: str, content: bytes) -> _Model:
        """Read a record; raise :class:`Damaged` when that cannot be done."""
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the whole"
            raise Damaged(
                f"{self.show(name, record)} is damaged or of a newer format: {where}: {fault['msg']}"
            ) from None

    def _version(self, state: State) -> ModelVersion:
        manifest = state.manifest
        assert manifest is not None
        return ModelVersion(
            registry=CONN_TYPE,
            name=manifest.name,
            version=manifest.version,
            status=VersionStatus.READY,
            digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            labels=state.labels if state.labels is not None else manifest.labels,
            metadata=manifest.metadata,
            created_at=state.created_at,
            uri=self.uri(manifest.name, manifest.directory),
            raw=manifest.model_dump(mode="json", include=set(Summary.model_fields)),
        )

    def _not_found(self, name: str, version: str) -> ModelNotFound:
        return ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")

    # -- pushing

    def plan_push(self, request: PushRequest, manifest: Manifest) -> UploadPlan:
        """Claim a generation of a version; say how its bytes go up, or return the version that holds them already."""
        self.require_fit(manifest)
        name, version, digest = manifest.name, manifest.version, manifest.digest
        state = self.look(name, version)
        wrong = self._wrong_with(state, request, manifest)
        takes_over, fresh = request.force, 0  # the generation that this push was the first to claim
        for _ in range(_ROUNDS):
            step = claims.enter(state.view, digest, force=request.force, takes_over=takes_over, renew=wrong is not None)
            match step:
                case claims.Keep():
                    self.release(manifest)
                    self._tidy_up(name, version, state)
                    return UploadPlan(ref=manifest.ref, way=None, existing=self._version(state))
                case claims.Refuse(holder, is_published):
                    self.release(manifest)
                    self._tidy_up(name, version, state)  # perhaps a claim of this push that came too late
                    raise _conflict(manifest, holder, is_published=is_published)
                case claims.Close(generation, current):
                    takes_over = False  # once, or two that are forced would go on for ever
                    self._close(name, version, generation, current)
                    state = self.look(name, version)
                case claims.Claim(generation):
                    self.prepare(manifest, replaces=bool(state.view.current))
                    record = claims.claim_of(version, generation)
                    if self.create(name, record, Claim(digest=digest).model_dump_json().encode()):
                        fresh = generation
                    # The version may have been published since the look before, and the number be history by now.
                    state = self.look(name, version, mine=(fresh, digest))
                    if state.view.open == generation == fresh and self.read(
                        name, claims.verdict_of(version, generation)
                    ):
                        state = self.look(name, version)
                        if state.view.open == generation:  # the number is history all the same, and the claim dead
                            self.remove(name, {record})
                            raise RegistryUnavailable(
                                f"{manifest.ref} was published or deleted, and the storage does not list that yet"
                            )
                case claims.Join(generation) if not self.is_free(
                    manifest.model_copy(update={"generation": generation})
                ):
                    self._close(name, version, generation, state.view.current)
                    state = self.look(name, version)
                case claims.Join(generation):
                    is_fresh = generation == fresh
                    return self._plan(request, manifest, state, generation, wrong or set(), is_fresh=is_fresh)
            wrong = self._wrong_with(state, request, manifest) if state.view.current else None
        raise RegistryUnavailable(f"the claim on {manifest.ref} changes hands all the time")

    def _wrong_with(self, state: State, request: PushRequest, manifest: Manifest) -> set[str] | None:
        """Return which files of a published version of these bytes have to be sent again, or ``None`` to keep it."""
        found = state.manifest
        if not isinstance(found, Manifest) or found.digest != manifest.digest:
            return None
        assert state.written is not None
        if _sums(found) != _sums(manifest):  # the record itself is damaged, and tells nothing of what is stored
            log.warning("the manifest of %s does not match its own digest; it is sent again", manifest.ref)
            return {file.path for file in manifest.files}
        if request.force and _facts(found) != _facts(manifest):
            return {""}  # what is there stays as it is, and all goes up anew
        damaged = self.damaged(found, written=state.written, thorough=request.force)
        if damaged:
            log.warning(
                "%s is damaged: %s; it is sent again", manifest.ref, ", ".join(map(names.show, sorted(damaged)[:5]))
            )
        # By its text: 1 is kept as 1, and 1.0 as 1.0.
        has_other_facts = bool(request.metadata) and _text(request.metadata) != _text(found.metadata)
        if damaged or (request.force and (has_other_facts or state.damage)):
            return damaged
        return None

    def _plan(
        self,
        request: PushRequest,
        manifest: Manifest,
        state: State,
        generation: int,
        wrong: set[str],
        *,
        is_fresh: bool,
    ) -> StorePlan:
        """Say how the bytes of a generation that this push may write go up."""
        old = state.manifest if isinstance(state.manifest, Manifest) else None
        origin = old if old and old.digest == manifest.digest else None
        if origin:  # the same version once more: as old as it was, with what it was told since
            labels = request.labels if request.force and request.labels else {**(state.labels or {}), **request.labels}
            metadata = request.metadata if request.force and request.metadata else origin.metadata
            manifest = manifest.model_copy(
                update={"labels": dict(labels), "metadata": dict(metadata), "created_at": state.created_at}
            )
        kept = None if wrong else origin  # whose files stay where they are
        place, etags = (kept.generation, kept.etags) if kept else (generation, {})
        manifest = manifest.model_copy(update={"generation": place, "etags": etags})
        try:
            way = None if kept else self.way_up(request, manifest, is_fresh=is_fresh, origin=origin)
        except BaseException:
            if is_fresh:
                self._give_up(manifest.name, manifest.version, generation, state.view.current)
            raise
        return StorePlan(ref=manifest.ref, way=way, manifest=manifest, generation=generation, keeps=state.view.current)

    def publish(self, plan: StorePlan) -> ModelVersion:
        """Write the manifest of a version whose bytes are there: this is the moment from which it exists."""
        name, version, digest = plan.manifest.name, plan.manifest.version, plan.manifest.digest
        try:
            manifest = self._confirmed(plan)
            content = manifest.model_dump_json().encode()
            is_created = self.create(name, claims.verdict_of(version, plan.generation), content)
            # The generation may have been given up, and its number be history by now.
            state = self.look(name, version, wrote=(plan.generation, manifest) if is_created else None)
            came = claims.outcome(state.view, plan.generation, digest, is_created=is_created)
            if came is Outcome.DONE:
                self.finish(plan)
        finally:
            self.release(plan.manifest, plan)
        self._tidy_up(name, version, state, thorough=came is not Outcome.DONE)
        if came is Outcome.DONE:
            return self._version(state)
        if came is Outcome.AGAIN:
            raise BeginAgain(f"{plan.ref} was given up by another push or deleted meanwhile")
        if came is Outcome.LOST:
            raise _lost(plan, state.view)
        raise RegistryUnavailable(f"{plan.ref} was withdrawn just now", remedy="the next try sees what came of it")

    def _confirmed(self, plan: StorePlan) -> Manifest:
        if plan.manifest.generation != plan.generation:
            return plan.manifest  # of files that are published already
        try:
            return self.confirm(plan)
        except BeginAgain:
            # Whoever has taken the version over has removed them.
            view = self.look(plan.manifest.name, plan.manifest.version).view
            if claims.outcome(view, plan.generation, plan.manifest.digest, is_created=False) is Outcome.LOST:
                raise _lost(plan, view) from None
            raise

    def abort(self, plan: StorePlan) -> None:
        """Give a push up, unless it was published by then: what lies there is then nobody's any more."""
        self.release(plan.manifest, plan)
        name, version = plan.manifest.name, plan.manifest.version
        self._close(name, version, plan.generation, plan.keeps)
        self.tidy(name, version)

    def delete(self, name: str, version: str) -> bool:
        """Remove a version, and whatever pushes have left of it; return whether it was there."""
        self.require_removable(name, version)
        existed = False
        for _ in range(_ROUNDS):
            state = self.look(name, version)
            view = state.view
            # What no record tells of belongs to nobody only once its generation is decided.
            is_left = max(self.generations(name, version), default=0) > view.decided
            if not (view.current or view.open or is_left):
                break
            existed = existed or bool(view.current)
            self._close(name, version, view.open or view.decided + 1, 0)
        else:
            raise RegistryUnavailable(f"{name}:{version} is pushed again all the time")
        self._tidy(name, version, state, thorough=True)
        if existed:
            self._forget(name)
        return existed

    def _forget(self, name: str) -> None:
        """Remove the notes about versions that have been gone so long that nobody can still be writing them."""
        entries = self.entries(name)
        now = max((entry.modified for entry in entries.values()), default=datetime.max.replace(tzinfo=UTC))
        for version, records in claims.by_version(entries).items():
            notes = [claims.closed_of(version, *note) for note in records.closed.items()]
            if not (records.verdicts or records.claims) and all(
                now - entries[note].modified > _LATEST for note in notes
            ):
                self.remove(name, notes)

    def _give_up(self, name: str, version: str, generation: int, current: int) -> None:
        """Give a generation back to which nothing was sent."""
        try:
            self._close(name, version, generation, current)
            self.tidy(name, version)
        except ModelSyncError as error:  # what came before it is what the user has to hear
            log.warning("cleaning up after the push of %s:%s failed: %s", name, version, error)

    def tidy(self, name: str, version: str) -> None:
        """Remove what is dead of a version."""
        self._tidy(name, version, self.look(name, version), thorough=True)

    def _tidy_up(self, name: str, version: str, state: State, *, thorough: bool = False) -> None:
        """Remove what is dead, now or the next time: what a push has come to does not depend on it."""
        try:
            self._tidy(name, version, state, thorough=thorough)
        except Cancelled:
            raise
        except ModelSyncError as error:
            log.warning("what is left over of %s:%s is removed another time: %s", name, version, error)

    def tidy_all(self, name: str, older_than: datetime, *, dry_run: bool) -> list[str]:
        """Remove what pushes of a model have left, as far as it was written before a time; return what that is."""
        found: list[str] = []
        seen: set[str] = set()  # directories that somebody may still need, or that are done with here
        entries = self.entries(name)
        for version, records in sorted(claims.by_version(entries).items()):
            state = self.look(name, version)
            if state.damage:  # so it does not tell what counts
                seen |= {claims.directory_of(version, number) for number in self.generations(name, version)}
                continue
            claim = entries.get(claims.claim_of(version, records.open)) if records.open else None
            is_given_up = claim is not None and self._is_old(name, version, records.open, older_than, claim)
            if is_given_up and not dry_run:
                is_given_up = self._close(name, version, records.open, state.view.current)
                state = self.look(name, version)
            dead = self._dead_files(name, version, state) - {records.open}
            young = {number for number in dead if not self._is_old(name, version, number, older_than)}
            dead_notes = {
                record
                for record in claims.dead_records(version, state.records, state.view)
                if record in entries and entries[record].modified < older_than
            } - {claims.claim_of(version, records.open)}
            if is_given_up:
                found.append(f"the unfinished push of {name}:{version}")
            if dead - young:
                found.append(f"files of {len(dead - young)} given up or replaced pushes of {name}:{version}")
            elif dead_notes and not is_given_up:
                found.append(f"{len(dead_notes)} outdated records of {name}:{version}")
            if (is_given_up or dead - young or dead_notes) and not dry_run:
                self._tidy(name, version, state, thorough=True, spared=young)
            unpublished = {records.open, state.records.open, *dead} - {0}
            seen |= {claims.directory_of(version, number) for number in unpublished}
        if dead_records := aliases.dead_records(entries, older_than):
            found.append(f"{len(dead_records)} outdated records of aliases of {name}")
        if not dry_run:
            self.remove(name, dead_records)
            self._forget(name)
        return [*found, *self.tidy_place(name, older_than, seen, dry_run=dry_run)]

    def _is_old(
        self, name: str, version: str, generation: int, older_than: datetime, claim: Entry | None = None
    ) -> bool:
        """Whether nothing was written to a generation since a time: its claim may be much older than its last try."""
        written = [claim.modified] if claim else []
        return all(time < older_than for time in (*written, *self.touched(name, version, generation)))

    def _dead_files(self, name: str, version: str, state: State) -> set[int]:
        """Return the generations of which there are files that will never count again."""
        place = state.manifest.generation if state.manifest else 0
        return {number for number in self.generations(name, version) if state.view.is_dead(number) and number != place}

    def _close(self, name: str, version: str, generation: int, current: int) -> bool:
        """Give a generation up; return whether it was this call that did."""
        content = Closed(current=current).model_dump_json().encode()
        return self.create(name, claims.verdict_of(version, generation), content)

    def _tidy(self, name: str, version: str, state: State, *, thorough: bool, spared: Set[int] = frozenset()) -> None:
        """Remove what is dead. It stays so: it does not matter how late that happens, or how often.

        :param thorough: also look for files of which no record tells.
        :param spared: generations whose files stay for now.
        """
        if state.damage:  # so it does not tell what counts
            return
        view, records = state.view, state.records
        if records.top and view.current != records.top:
            # It takes the place of the verdict, so that no name of a manifest stays that is none.
            self.create(name, claims.closed_of(version, records.top, view.current), b"")
            self.remove(name, [claims.verdict_of(version, records.top)])
        dead = claims.dead_records(version, records, view)
        if thorough or (dead and view.decided > 1):
            kept = {state.manifest.generation if state.manifest else 0, *spared}
            there = (self.generations(name, version) | records.verdicts | records.claims) - kept
            self.clear(name, version, filter(view.is_dead, there))
        self.remove(name, dead)  # last: as long as they are there, somebody will look for files

    # -- aliases

    def alias(self, name: str, alias: str) -> Alias:
        """Return what an alias points to; raise :class:`ModelNotFound` when it is not there."""
        return aliases.read(self, name, alias)

    def aliases(self, name: str) -> list[Alias]:
        """Return the aliases of a model, by their names."""
        return aliases.listed(self, name, self.entries(name))

    def set_alias(self, name: str, alias: str, version: str, expected: str | None) -> Alias:
        """Have an alias point to a version; return it as it is then."""
        told, _ = aliases.move(self, name, alias, version, expected)
        return told or aliases.read(self, name, alias)

    def delete_alias(self, name: str, alias: str) -> bool:
        """Remove an alias; return whether it was there."""
        return aliases.move(self, name, alias, None)[1]

    # -- labels

    def set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> ModelVersion:
        """Merge labels into a version's; return it as it is then."""
        written: tuple[int, int] | None = None
        for _ in range(_ROUNDS):
            state = self.look(name, version)
            current = state.view.current
            if state.damage:
                raise state.damage
            if written and written[0] != current:
                raise BeginAgain(f"{name}:{version} was replaced while its labels were changed")
            if state.manifest is None:
                raise self._not_found(name, version)
            number = state.records.newest_labels(current)
            if written == (current, number):
                self.remove(name, claims.dead_records(version, state.records, state.view))
                return self._version(state)
            merged = Labels(labels=dict(state.labels or {})).merged(labels)
            record = claims.labels_of(version, current, number + 1)
            if self.create(name, record, merged.model_dump_json().encode()):
                written = current, number + 1
        raise RegistryUnavailable(f"the labels of {name}:{version} are being changed by others all the time")


def _passed_over(what: str, error: _Error) -> _Error:
    """Report what cannot be read, so that all else can."""
    log.warning("passing over %s: %s", what, error)
    return error


def _listed(entries: Mapping[str, Entry]) -> list[tuple[tuple[datetime, str], Records]]:
    """Return time, version and records of all that may be published, newest first."""
    found = [
        ((entries[claims.verdict_of(version, says)].modified, version), records)
        for version, records in claims.by_version(entries).items()
        if (says := records.top or records.noted)
    ]
    return sorted(found, key=lambda item: item[0], reverse=True)


def _is_note(verdict: Record) -> bool:
    """Whether a verdict is short enough to be no manifest."""
    return len(verdict.content) <= _LONGEST_NOTE


def _sums(manifest: Manifest) -> set[tuple[str, int, str]]:
    return {(file.path, file.size, file.sha256) for file in manifest.files}


def _text(metadata: Mapping[str, JsonValue]) -> str:
    return json.dumps(dict(metadata), sort_keys=True)


def _facts(manifest: Manifest) -> set[tuple[str, bool | None]]:
    """What the digest leaves out of a manifest's files."""
    return {(file.path, file.executable) for file in manifest.files} | {(path, None) for path in manifest.directories}


def _lost(plan: StorePlan, view: View) -> VersionConflict:
    """Say who has taken the version over from a push."""
    is_published = view.current > plan.generation
    return _conflict(plan.manifest, view.digest if is_published else view.claimant, is_published=is_published)


def _conflict(manifest: Manifest, holder: str | None, *, is_published: bool) -> VersionConflict:
    other = holder or "bytes that its damaged record does not name"
    if is_published:
        return VersionConflict(
            f"{manifest.ref} exists with {other}, the source has {manifest.digest}",
            remedy="push under another version, or with force to replace it",
        )
    return VersionConflict(
        f"{manifest.ref} is claimed by a push of {other}, the source has {manifest.digest}",
        remedy="wait for it, or push with force when that push is dead",
    )


class _Cache:
    """Records that were read lately, by what tells one state from another."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[tuple[str, ...], Record] = OrderedDict()
        self._size = 0

    def get(self, key: tuple[str, ...]) -> Record | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def add(self, key: tuple[str, ...], record: Record) -> None:
        with self._lock:
            if key not in self._known:
                self._known[key] = record
                self._size += len(record.content)
            while self._size > _CACHED_BYTES:
                self._size -= len(self._known.popitem(last=False)[1].content)


_records = _Cache()

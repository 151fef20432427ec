"""A model store in a bucket, shared by a whole cluster.

A bucket knows neither locks nor renames, but every bucket that is accepted knows how to create an object where there is
none: that is all that :mod:`.store` asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from functools import partial
from typing import cast

from pydantic import JsonValue

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry, LooseFile
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    DigestMismatch,
    ModelSyncError,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver, call, call_remote
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.registries.modelstore.probe import probe
from airflow_provider_modelsync.core.registries.modelstore.store import Entry, Manifest, Record, Store, StorePlan
from airflow_provider_modelsync.core.storages.base import Bucket, Listed
from airflow_provider_modelsync.core.storages.writer import FileWriter, open_uploads
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    GetFiles,
    OpenObject,
    PushRequest,
    PutAhead,
    PutObjects,
    Stored,
    UploadPlan,
    choose_part_size,
)
from airflow_provider_modelsync.core.transfer.ranges import RangedObject, read_all

log = logging.getLogger("modelsync")

_ORIGINS = 8  # versions that are looked through for files to copy
_WORTH_COPYING = 1 << 20  # bytes of a file; smaller ones are sent sooner than looked for
_WORTH_AHEAD = 4  # parts of a file: smaller ones are hashed sooner than it is found out whether they may go ahead
_END = 1 << 16  # bytes by which a file is told from another one of its size
_NEVER = datetime.min.replace(tzinfo=UTC)
_READERS = 8  # threads
_DELETERS = 8
_ROOM_FOR_GENERATION = "~999999"


class BucketStore(Store):
    """Models in a bucket.

    :param bucket: the bucket.
    :param base: what all keys begin with: nothing, or a prefix with a slash at its end.
    :param part_size_mib: what the connection wants.
    """

    is_remote = True

    def __init__(self, bucket: Bucket, base: str, part_size_mib: int | None) -> None:
        self._bucket = bucket
        self._base = base
        self._part_size_mib = part_size_mib
        self.checks = bucket.checks
        self._begun: dict[str, str] = {}  # id → key of the uploads in parts that were begun here and not completed

    @property
    def root(self) -> str:
        """Where it is, in one spelling."""
        return self._bucket.url(self._base)

    def test(self) -> str:
        missing = probe(self._bucket, self._bucket.mover)
        works = f"The model store at {self.root} can be read and written."
        return f"{works} The storage does without: {'; '.join(map(str, missing))}." if missing else works

    def uri(self, name: str, directory: str) -> str:
        return self._bucket.url(f"{self._base}{name}/{directory}")

    def names(self) -> list[str]:
        return self._bucket.directories(self._base)

    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]:
        prefix = self._meta(name)
        # To the second, as every other answer tells the time: some listings are finer.
        return {
            found.key.removeprefix(prefix): Entry(found.modified.replace(microsecond=0), found.etag, found.size)
            for found in self._bucket.objects(f"{prefix}{version}." if version else prefix)
        }

    def read(self, name: str, record: str) -> Record | None:
        stored = self._bucket.get(self._meta(name, record))
        return None if stored is None else Record(stored.content, stored.modified)

    def create(self, name: str, record: str, content: bytes) -> bool:
        return self._bucket.put(self._meta(name, record), content) is not None

    def remove(self, name: str, records: Iterable[str]) -> None:
        self._delete_all(self._meta(name, record) for record in records)

    def show(self, name: str, record: str) -> str:
        return self._bucket.url(self._meta(name, record))

    def identity(self, name: str, record: str) -> tuple[str, ...]:
        return (*self._bucket.identity, self._meta(name, record))

    def require_fit(self, manifest: Manifest) -> None:
        place = f"{self._base}{manifest.name}/{manifest.version}{_ROOM_FOR_GENERATION}/"
        self._bucket.require_keys(f"{place}{file.path}" for file in manifest.files)

    def prepare(self, manifest: Manifest, *, replaces: bool) -> None:
        if replaces:
            self.require_removable(manifest.name, manifest.version)

    def require_removable(self, name: str, version: str) -> None:
        # Nothing is there under this name, but who may not delete hears of it.
        self._bucket.delete(self._meta(name, f"{version}.~0.claim"))

    def is_free(self, manifest: Manifest) -> bool:
        return True  # what does not belong there is removed before the version is published

    def damaged(self, manifest: Manifest, *, written: datetime, thorough: bool) -> set[str]:
        there = self._objects(manifest)
        return {file.path for file in manifest.files if not _is_whole(manifest, file, there.get(file.path))}

    def way_up(
        self, request: PushRequest, manifest: Manifest, *, is_fresh: bool, origin: Manifest | None
    ) -> PutObjects:
        # Nobody else has been here before: there is nothing to go on with.
        there = {} if is_fresh else self._objects(manifest)
        largest = max(file.size for file in manifest.files)
        part_size = choose_part_size(largest, self._part_size_mib)
        ahead = {
            path: sent
            for path, sent in request.ahead.items()
            if self._begun.get(sent.upload.upload_id) == self.key_of(manifest, path)  # else it is another generation's
        }
        copies = self._origins(manifest, {*there, *ahead}, origin)
        memory = _Memory(self._bucket, request.memory, part_size)
        begun = {} if is_fresh or largest <= part_size else self._open_uploads(manifest, part_size, memory)
        self._begun |= {opened.upload_id: self.key_of(manifest, path) for path, opened in begun.items()}
        return PutObjects(
            source=request.source,
            writer=_Writer(self, self._bucket, manifest, memory, copies, there),
            open=begun,
            copies=frozenset(copies),
            ahead=ahead,
        )

    def plan_ahead(self, name: str, version: str, files: Iterable[LooseFile], memory: UploadMemory) -> PutAhead | None:
        if not self._bucket.begins_unhashed:
            return None
        files = list(files)
        part_size = choose_part_size(max(file.stamp.size for file in files), self._part_size_mib)
        large = [file for file in files if file.stamp.size >= _WORTH_AHEAD * part_size]
        if not large:
            return None
        manifest = Manifest.unhashed(name, version, files)
        self.require_fit(manifest)
        view = self.look(name, version).view
        if view.current or view.open:
            return None  # the digest decides whether anything is sent at all
        held = self._held(manifest, large)
        chosen = tuple(file for file in large if file.path not in held)
        if not chosen:
            return None
        manifest = Manifest.unhashed(name, version, chosen).model_copy(update={"generation": view.decided + 1})
        remembered = _Memory(self._bucket, memory, part_size)
        begun = self._open_uploads(manifest, part_size, remembered)
        self._begun |= {opened.upload_id: self.key_of(manifest, path) for path, opened in begun.items()}
        return PutAhead(chosen, _Writer(self, self._bucket, manifest, remembered, {}, {}), begun)

    def confirm(self, plan: StorePlan) -> Manifest:
        manifest, way = plan.manifest, cast(PutObjects, plan.way)
        there = self._objects(manifest)
        for path, etag in way.etags.items():
            if (path not in there or there[path].etag != etag) and not self._is_stored(manifest, path, etag):
                raise BeginAgain(f"{names.show(path)} of {plan.ref} was changed by somebody else")
        self._delete_all(found.key for path, found in there.items() if path not in way.etags)
        return manifest.model_copy(update={"etags": dict(way.etags)})

    def finish(self, plan: StorePlan) -> None:
        way = plan.way
        if isinstance(way, PutObjects) and any(file.size > way.writer.part_size for file in plan.manifest.files):
            # Of another push of the same bytes, or of a request whose answer was lost.
            self._abort_uploads(self._files(plan.manifest))

    def release(self, manifest: Manifest, plan: UploadPlan | None = None) -> None:
        self.drop_ahead(manifest.name, manifest.version)

    def drop_ahead(self, name: str, version: str) -> None:
        place = f"{self._base}{name}/{version}"
        for upload_id, key in list(self._begun.items()):
            if key.startswith((f"{place}/", f"{place}~")):
                self._bucket.abort(key, upload_id)
                self.completed(upload_id)

    def touched(self, name: str, version: str, generation: int) -> Iterator[datetime]:
        prefix = f"{self._base}{name}/{claims.directory_of(version, generation)}/"
        for found in self._bucket.objects(prefix):
            yield found.modified
        for key, upload_id, begun in self._bucket.begun_uploads(prefix):
            yield self._bucket.last_written(key, upload_id, begun)

    def tidy_place(self, name: str, older_than: datetime, seen: Set[str], *, dry_run: bool) -> list[str]:
        place = f"{self._base}{name}/"
        old = [
            (key, upload_id)
            for key, upload_id, begun in self._bucket.begun_uploads(place)
            if key.removeprefix(place).partition("/")[0] not in seen
            and begun < older_than
            and self._bucket.last_written(key, upload_id, begun) < older_than
        ]
        for key, upload_id in old if not dry_run else ():
            self._bucket.abort(key, upload_id)
        return [f"an unfinished upload of {key}" for key, _ in old]

    def generations(self, name: str, version: str) -> set[int]:
        place = f"{self._base}{name}/"
        found = {f"{version}{rest}" for rest in self._bucket.directories(f"{place}{version}")}
        # An upload that was begun too late has no object beside it.
        found |= {key.removeprefix(place).partition("/")[0] for key, _ in self._bucket.uploads(f"{place}{version}")}
        return {claims.generation_of(version, directory) for directory in found} - {0}

    def clear(self, name: str, version: str, generations: Iterable[int]) -> None:
        for generation in generations:
            prefix = f"{self._base}{name}/{claims.directory_of(version, generation)}/"
            self._abort_uploads(prefix)
            self._delete_all(found.key for found in self._bucket.objects(prefix))

    def way_down(self, manifest: Manifest) -> GetFiles:
        there = self._objects(manifest)
        for file in manifest.files:
            found = there.get(file.path)
            if found is None:
                raise RegistryUnavailable(f"{names.show(file.path)} of {manifest.ref} is missing in the bucket")
            if found.size != file.size:
                raise DigestMismatch(
                    f"{names.show(file.path)} of {manifest.ref} has {found.size} bytes, its manifest says {file.size}"
                )

        def address(file: FileEntry) -> Flow[Address]:
            return call(self._bucket.address_get, there[file.path])

        etags = {file.path: tag for file in manifest.files if (tag := self._bucket.wanted(there[file.path]))}
        return GetFiles(manifest.files, manifest.directories, address, etags, is_ranged=True)

    def begun(self, key: str, upload_id: str) -> None:
        """Remember an upload in parts that nobody else may know of."""
        self._begun[upload_id] = key

    def completed(self, upload_id: str) -> None:
        """Forget an upload in parts that has become an object."""
        self._begun.pop(upload_id, None)

    def key_of(self, manifest: Manifest, path: str) -> str:
        """Return where a file of a version is."""
        return f"{self._files(manifest)}{path}"

    def _meta(self, name: str, record: str = "") -> str:
        return f"{self._base}{name}/{names.RESERVED_DIRECTORY}/{record}"

    def _files(self, manifest: Manifest) -> str:
        return f"{self._base}{manifest.name}/{manifest.directory}/"

    def _objects(self, manifest: Manifest) -> dict[str, Listed]:
        """Return what lies where a version's files belong, by path."""
        prefix = self._files(manifest)
        return {found.key.removeprefix(prefix): found for found in self._bucket.objects(prefix)}

    def _is_stored(self, manifest: Manifest, path: str, etag: str) -> bool:
        """Ask for an object itself: the listing of a busy Ceph gateway may be behind."""
        found = self._bucket.head(self.key_of(manifest, path))
        return found is not None and found.etag == etag

    def _held(self, manifest: Manifest, files: Iterable[LooseFile]) -> set[str]:
        """Return the paths of files that another version may hold, by their sizes and last bytes.

        A model that was trained anew has files of the same sizes, and other weights at their ends.
        """
        sizes = {file.stamp.size for file in files}
        alike: dict[str, Listed] = {}  # by hash: many versions may hold the same file
        ends: set[tuple[int, bytes | None]] = set()
        for other in self.newest(manifest.name, _ORIGINS, besides=manifest.version):
            for file in other.files:
                if file.size in sizes and (etag := other.etags.get(file.path)):
                    alike[file.sha256] = Listed(self.key_of(other, file.path), file.size, _NEVER, etag)

        def look(found: Listed, cancel: CancelToken) -> None:
            ends.add((found.size, self._stored_end(found, cancel)))

        for_each(look, alike.values(), workers=_READERS, cancel=CancelToken())
        return {file.path for file in files if {(file.stamp.size, end) for end in (_end_of(file), None)} & ends}

    def _stored_end(self, found: Listed, cancel: CancelToken) -> bytes | None:
        """Return the last bytes of an object; ``None`` when it does not tell them, or is another one by now."""
        ask = partial(call, self._bucket.address_get, found)
        stored = RangedObject(ask, SyncDriver(), self._bucket.mover, etag=self._bucket.wanted(found), size=found.size)
        try:
            with stored.open(found.size - _END, found.size, cancel) as answer:
                stored.check(answer, found.size - _END, found.size)
                return bytes(read_all(answer, _END))
        except Cancelled:
            raise
        except ModelSyncError:
            return None

    def _origins(self, manifest: Manifest, there: Set[str], same: Manifest | None) -> dict[str, Listed]:
        """Find objects of published versions that hold files of this one, as they were published; return them by path.

        :param there: paths of what need not be found.
        :param same: a version of the same bytes, which is looked at first.
        """
        wanted = {
            file.sha256: file.size
            for file in manifest.files
            if file.path not in there and file.size >= (1 if same else _WORTH_COPYING)
        }
        by_hash: dict[str, Listed] = {}

        def take(other: Manifest) -> None:
            held = [file for file in other.files if file.sha256 in wanted.keys() - by_hash.keys()]
            objects = self._objects(other) if held else {}
            for file in held:
                if other.etags.get(file.path) and _is_whole(other, file, objects.get(file.path)):
                    by_hash[file.sha256] = objects[file.path]

        if same:
            take(same)
        elif wanted:
            for other in self.newest(manifest.name, _ORIGINS, besides=manifest.version):
                try:
                    take(other)
                except ModelSyncError as error:  # no help, then
                    log.info("nothing is copied from %s: %s", other.ref, error)
                if wanted.keys() <= by_hash.keys():
                    break
        return {file.path: by_hash[file.sha256] for file in manifest.files if file.sha256 in by_hash}

    def _open_uploads(self, manifest: Manifest, part_size: int, memory: _Memory) -> dict[str, OpenObject]:
        """Return the unfinished upload of each file, as far as storage or task know."""
        keys = [self.key_of(manifest, file.path) for file in manifest.files if file.size > part_size]
        found = open_uploads(self._bucket, self._files(manifest), keys)
        if self._bucket.abilities.part_lists is not True:
            for file in manifest.files:
                if file.size > part_size and (known := memory.recall(file, self.key_of(manifest, file.path))):
                    found[file.path] = known
        return found

    def _abort_uploads(self, prefix: str) -> None:
        for key, upload_id in self._bucket.uploads(prefix):
            self._bucket.abort(key, upload_id)

    def _delete_all(self, keys: Iterable[str]) -> None:
        # One by one: storages disagree about the checksum that a request for many must carry.
        for_each(lambda key, _: self._bucket.delete(key), list(keys), workers=_DELETERS, cancel=CancelToken())


def _end_of(file: LooseFile) -> bytes:
    """Return the last bytes of a file that is larger than those."""
    end = bytearray(_END)
    with file.opened() as descriptor:
        file.read_into(descriptor, file.stamp.size - _END, memoryview(end))
    return bytes(end)


def _is_whole(manifest: Manifest, file: FileEntry, found: Listed | None) -> bool:
    """Whether an object is as it was when its version was published, as far as its size and its tag tell."""
    if found is None or found.size != file.size:
        return False
    return manifest.etags.get(file.path, found.etag) == found.etag


class _Memory:
    """What a task remembers of its uploads in parts, where the storage does not tell."""

    def __init__(self, bucket: Bucket, memory: UploadMemory, part_size: int) -> None:
        self.part_size = part_size
        self._bucket = bucket
        self._memory = memory
        self._known: dict[str, UploadMemory] = {}  # by id

    def recall(self, file: FileEntry, key: str) -> OpenObject | None:
        """Return the upload that an earlier try has begun."""
        memory = self._memory.of(key)
        opened = memory.recall(self._identity(file, key))
        if opened is None:
            return None
        self._known[opened.upload_id] = memory
        parts = {
            number: Stored(min(self.part_size, file.size - (number - 1) * self.part_size), etag)
            for number, etag in memory.parts.items()
        }
        return OpenObject(opened.upload_id, parts)

    def begun(self, file: FileEntry, key: str, upload_id: str) -> None:
        """Remember an upload that was just begun, unless the storage tells its parts."""
        if self._bucket.abilities.part_lists is None:
            self._bucket.parts(key, upload_id)
        if self._bucket.abilities.part_lists is False:
            memory = self._known[upload_id] = self._memory.of(key)
            parts = -(-file.size // self.part_size)
            memory.begin(self._identity(file, key), OpenUpload(upload_id, self.part_size), parts)

    def sent(self, upload_id: str, number: int, stored: Stored) -> None:
        """Remember a part."""
        if memory := self._known.get(upload_id):
            memory.add(number, stored.etag)

    def completed(self, upload_id: str) -> None:
        """Forget an upload."""
        if memory := self._known.pop(upload_id, None):
            memory.forget()

    def _identity(self, file: FileEntry, key: str) -> dict[str, JsonValue]:
        return {"place": f"{self._bucket.place}: {key}", "sha256": file.sha256, "part_size": self.part_size}


class _Writer(FileWriter):
    """How the files of one version go up. Methods as of :class:`~..transfer.plan.ObjectWriter`."""

    def __init__(
        self,
        store: BucketStore,
        bucket: Bucket,
        manifest: Manifest,
        memory: _Memory,
        origins: Mapping[str, Listed],
        there: Mapping[str, Listed],
    ) -> None:
        super().__init__(bucket, partial(store.key_of, manifest), memory.part_size, there)
        self._memory = memory
        self._store = store
        self._origins = origins
        self._copies = True

    def sent(self, file: FileEntry, upload_id: str, number: int, stored: Stored) -> None:
        self._memory.sent(upload_id, number, stored)

    def copy(self, file: FileEntry) -> Flow[str | None]:
        if not self._copies:
            return None
        try:
            return (yield from call_remote(self._bucket.copy, self._origins[file.path], self._key(file), file.sha256))
        except Cancelled:
            raise
        except ModelSyncError as error:
            # A short cut, no more: an archived object, a storage that does not copy, a key that may not read.
            log.warning("%s is sent instead of copied: %s", names.show(file.path), error)
            self._copies = False
            return None

    def _begin(self, file: FileEntry) -> str:
        upload_id = super()._begin(file)
        self._store.begun(self._key(file), upload_id)
        self._memory.begun(file, self._key(file), upload_id)
        return upload_id

    def _completed(self, upload_id: str) -> None:
        self._store.completed(upload_id)
        self._memory.completed(upload_id)

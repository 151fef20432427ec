"""A model store in a bucket, shared by a whole cluster.

A bucket knows neither locks nor renames. So a push claims its version by a conditional write before it sends anything,
looks at its claim again before each step that cannot be taken back, and writes the manifest, conditionally, when a
listing shows every object as it was stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import cast

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    DigestMismatch,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, call, call_remote
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion
from airflow_provider_modelsync.core.registries.modelstore.bucket import Bucket, Listed
from airflow_provider_modelsync.core.registries.modelstore.probe import probe
from airflow_provider_modelsync.core.registries.modelstore.store import (
    CLAIM,
    LABELS,
    MANIFEST,
    Claim,
    Entry,
    Labels,
    Manifest,
    Record,
    Store,
    StorePlan,
)
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    GetFiles,
    OpenObject,
    PushRequest,
    PutObjects,
    Stored,
    Sums,
    UploadPlan,
    choose_part_size,
)

_SHA256 = "modelsync-sha256"  # metadata of objects that come in parts
_ORIGINS = 8  # versions that are looked through for files to copy
_DELETERS = 8  # threads
_ROUNDS = 100  # of looking and writing on a condition, each lost to another writer
_CACHED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _BucketPlan(StorePlan):
    way: PutObjects
    origins: Mapping[str, str]  # record of a manifest → its tag when files of its version were chosen to be copied


class S3Store(Store):
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
        self._begun: dict[str, str] = {}  # id → key of the uploads in parts that were begun here and not completed
        self._publishing: set[ModelRef] = set()  # versions whose manifests are being written

    def test(self) -> str:
        missing = probe(self._bucket, self._bucket.mover)
        works = f"The model store at s3://{self._bucket.name}/{self._base} can be read and written."
        return f"{works} The storage does without: {'; '.join(map(str, missing))}." if missing else works

    def uri(self, name: str, version: str) -> str:
        return f"s3://{self._bucket.name}/{self._base}{name}/{version}"

    def names(self) -> list[str]:
        return self._bucket.directories(self._base)

    def entries(self, name: str) -> dict[str, Entry]:
        prefix = self._meta(name)
        # To the second, as every other answer tells the time: some listings are finer.
        return {
            found.key.removeprefix(prefix): Entry(found.modified.replace(microsecond=0), found.etag)
            for found in self._bucket.objects(prefix)
        }

    def read(self, name: str, record: str, entry: Entry | None = None) -> Record | None:
        key = self._meta(name, record)
        tag = (*self._bucket.identity, key, entry.tag) if entry is not None else None
        if entry is not None and tag is not None and (known := _records.get(tag)):
            return replace(known, modified=entry.modified)  # the same content may have been written again
        stored = self._bucket.get(key)
        if stored is None:
            return None
        found = Record(stored.content, stored.modified, stored.etag)
        _records.add((*self._bucket.identity, key, stored.etag), found)
        return found

    def show(self, name: str, record: str) -> str:
        return f"s3://{self._bucket.name}/{self._meta(name, record)}"

    def plan_push(self, request: PushRequest, manifest: Manifest) -> UploadPlan:
        self._bucket.require_keys(self.key_of(manifest, file.path) for file in manifest.files)
        try:
            existing = self._enter(manifest, force=request.force)
        except VersionConflict:
            self._abort_begun(manifest)  # by an attempt before this one
            raise
        if existing:
            self._abort_begun(manifest)
            return UploadPlan(ref=manifest.ref, way=None, existing=existing)
        if request.force:  # absent from here until the new manifest is there, never a mixture
            self._withdraw(manifest.name, manifest.version)
        there = self._objects(manifest)
        copies, origins = self._origins(manifest)
        largest = max(file.size for file in manifest.files)
        part_size = choose_part_size(largest, self._part_size_mib)
        way = PutObjects(
            source=request.source,
            writer=_Writer(self, self._bucket, manifest, part_size, copies, there),
            there={path: Stored(found.size, found.etag) for path, found in there.items()},
            open=self._open_uploads(manifest, part_size),
            copies=frozenset(copies),
        )
        return _BucketPlan(ref=manifest.ref, way=way, manifest=manifest, force=request.force, origins=origins)

    def publish(self, plan: UploadPlan) -> ModelVersion:
        plan = cast(_BucketPlan, plan)
        manifest = plan.manifest
        if published := self.require_claim(manifest):
            self._abort_begun(manifest)
            return published
        there = self._objects(manifest)
        for path, etag in plan.way.etags.items():
            if (path not in there or there[path].etag != etag) and not self._is_stored(manifest, path, etag):
                raise BeginAgain(f"{names.show(path)} of {plan.ref} was changed by somebody else")
        entries = self.entries(manifest.name)
        for record, tag in plan.origins.items():
            if record not in entries or entries[record].tag != tag:
                raise BeginAgain(f"the version that files of {plan.ref} were copied from was replaced")
        self._delete_all(found for path, found in there.items() if path not in plan.way.etags)
        self._abort_uploads(manifest.name, manifest.version)
        if self.require_claim(manifest) is None:
            self._publishing.add(manifest.ref)
            try:
                self._write_manifest(manifest, force=plan.force)
            finally:
                self._publishing.discard(manifest.ref)
        if published := self.settle(manifest, force=False):
            return published
        raise RegistryUnavailable(f"{plan.ref} was withdrawn just now; the next try sees what came of it")

    def abort(self, plan: UploadPlan) -> None:
        manifest = cast(_BucketPlan, plan).manifest
        self._abort_begun(manifest)
        if manifest.ref in self._publishing:
            return  # a killed push no longer waits for this request, which may still publish what lies there
        claim = self.claimant(manifest)
        if claim is None or not self.is_claimed_by(manifest, claim):
            return  # what lies there is somebody else's
        self._abort_uploads(manifest.name, manifest.version)
        if not self._is_published(manifest):
            # A manifest of other bytes was written at the last moment by a push that had lost its claim to this one.
            self._withdraw(manifest.name, manifest.version)
            self._delete_all(self._objects(manifest).values())
        self._release_claim(manifest)

    def delete(self, name: str, version: str) -> bool:
        entries = self.entries(name)
        existed = f"{version}{MANIFEST}" in entries
        if existed and f"{version}{CLAIM}" in entries:
            with suppress(ModelSyncError):  # a damaged version can be deleted, too
                # The claim of a push that has done all but give it up.
                self._release_claim(self.read_manifest(name, version, entries)[0])
        if existed or f"{version}{LABELS}" in entries:
            self._withdraw(name, version)
        left = list(self._bucket.objects(self._files(name, version)))
        uploads = self._bucket.uploads(self._files(name, version))
        # Looked at after all that was listed: what another push brings from here on is not among it.
        if self.entries(name).keys().isdisjoint({f"{version}{CLAIM}", f"{version}{MANIFEST}"}):
            for key, upload_id in uploads:
                self._bucket.abort(key, upload_id)
            self._delete_all(left)
        return existed

    def set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> None:
        key = self._meta(name, f"{version}{LABELS}")
        for _ in range(_ROUNDS):
            stored = self.read(name, f"{version}{LABELS}")
            merged = Labels(labels=self.read_version(name, version).labels).merged(labels)
            if self._bucket.put(key, merged.model_dump_json().encode(), etag=stored.tag if stored else None):
                return
        raise RegistryUnavailable(f"the labels of {name}:{version} are being changed by others all the time")

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
            return call(self._bucket.address_get, there[file.path].key)

        etags = {file.path: f'"{there[file.path].etag}"' for file in manifest.files}
        return GetFiles(manifest.files, manifest.directories, address, etags)

    def require_claim(self, manifest: Manifest) -> ModelVersion | None:
        """Raise unless the version is still this push's to write, or has been published with the same bytes."""
        holder = self.claimant(manifest)
        if holder is None:  # another push has ended: one of the same bytes, or one that had taken the claim over
            if published := self.settle(manifest, force=False):
                return published
            raise BeginAgain(f"{manifest.ref} is not claimed by this push any more")
        if not self.is_claimed_by(manifest, holder):
            raise self.claimed(manifest, holder)
        return None

    def begun(self, key: str, upload_id: str) -> None:
        """Remember an upload in parts that nobody else may know of."""
        self._begun[upload_id] = key

    def completed(self, upload_id: str) -> None:
        """Forget an upload in parts that has become an object."""
        self._begun.pop(upload_id, None)

    def key_of(self, manifest: Manifest, path: str) -> str:
        """Return where a file of a version is."""
        return f"{self._files(manifest.name, manifest.version)}{path}"

    def _meta(self, name: str, record: str = "") -> str:
        return f"{self._base}{name}/{names.RESERVED_DIRECTORY}/{record}"

    def _record(self, manifest: Manifest, suffix: str) -> str:
        return self._meta(manifest.name, f"{manifest.version}{suffix}")

    def _files(self, name: str, version: str) -> str:
        return f"{self._base}{name}/{version}/"

    def _objects(self, manifest: Manifest) -> dict[str, Listed]:
        """Return what lies where a version's files belong, by path."""
        prefix = self._files(manifest.name, manifest.version)
        return {found.key.removeprefix(prefix): found for found in self._bucket.objects(prefix)}

    def _enter(self, manifest: Manifest, *, force: bool) -> ModelVersion | None:
        """Claim a version, or return it when it is there already."""
        if existing := self.settle(manifest, force):
            # Whoever published it, or was about to, may have died before clearing up.
            self._abort_uploads(manifest.name, manifest.version)
            self._release_claim(manifest)
            return existing
        self._claim(manifest, force=force)
        # Once more: the version may have been published between the first look and the claim.
        try:
            existing = self.settle(manifest, force)
        except VersionConflict:
            self._release_claim(manifest)
            raise
        if existing:
            self._release_claim(manifest)
        return existing

    def _claim(self, manifest: Manifest, *, force: bool) -> None:
        key, content = self._record(manifest, CLAIM), Claim(digest=manifest.digest).model_dump_json().encode()
        for _ in range(_ROUNDS):
            if self._bucket.put(key, content):
                return
            holder = self.claimant(manifest)
            if holder is None:  # given up between the two looks
                continue
            if self.is_claimed_by(manifest, holder):
                return
            if not force:
                raise self.claimed(manifest, holder)
            if self._bucket.put(key, content, etag=holder.tag):
                self._abort_uploads(manifest.name, manifest.version)  # so that nobody else's parts get among ours
                return
        raise RegistryUnavailable(f"the claim on {manifest.ref} changes hands all the time")

    def _release_claim(self, manifest: Manifest) -> None:
        holder = self.claimant(manifest)
        if holder is not None and self.is_claimed_by(manifest, holder):
            self._bucket.delete(self._record(manifest, CLAIM))

    def _write_manifest(self, manifest: Manifest, *, force: bool) -> None:
        """Publish a version whose bytes are there, and give the claim up."""
        content = manifest.model_dump_json().encode()
        for _ in range(_ROUNDS):
            if self._bucket.put(self._record(manifest, MANIFEST), content) or self.settle(manifest, force):
                break  # in the second case, another writer of the same bytes was faster
            if self.require_claim(manifest):
                return
            # What is there was written by a push that had lost its claim to this one after its last look at it.
            self._withdraw(manifest.name, manifest.version)
        holder = self.claimant(manifest)
        if holder is not None and not self.is_claimed_by(manifest, holder):
            # This push has lost its claim after its last look; whoever has it writes, or is about to.
            if self._is_published(manifest):
                self._withdraw(manifest.name, manifest.version)
            raise self.claimed(manifest, holder)
        if holder is not None:
            self._bucket.delete(self._record(manifest, CLAIM))

    def _is_stored(self, manifest: Manifest, path: str, etag: str) -> bool:
        """Ask for an object itself: the listing of a busy Ceph gateway may be behind."""
        found = self._bucket.head(self.key_of(manifest, path))
        return found is not None and found[0].etag == etag

    def _is_published(self, manifest: Manifest) -> bool:
        try:
            return self.read_manifest(manifest.name, manifest.version)[0].digest == manifest.digest
        except ModelNotFound:
            return False

    def _withdraw(self, name: str, version: str) -> None:
        """Remove a version's manifest, then its labels: it does not exist any more."""
        self._bucket.delete(self._meta(name, f"{version}{MANIFEST}"))
        self._bucket.delete(self._meta(name, f"{version}{LABELS}"))

    def _origins(self, manifest: Manifest) -> tuple[dict[str, Listed], dict[str, str]]:
        """Find objects of other versions that hold the files of this one; return them by path, and whose they are."""
        wanted = {file.sha256: file.size for file in manifest.files if file.size}
        by_hash: dict[str, Listed] = {}
        records: dict[str, str] = {}
        entries = self.entries(manifest.name) if wanted else {}
        others = [version for version in self.newest_first(manifest.name, entries) if version != manifest.version]
        for version in others[:_ORIGINS]:
            if not wanted.keys() - by_hash.keys():
                break
            record = f"{version}{MANIFEST}"
            try:
                other, _ = self.read_manifest(manifest.name, version, entries)
            except (ModelNotFound, RegistryUnavailable):  # deleted since it was listed, or damaged: no help, then
                continue
            held = [file for file in other.files if file.sha256 in wanted.keys() - by_hash.keys()]
            objects = self._objects(other) if held else {}
            for file in held:
                if file.path in objects and objects[file.path].size == wanted[file.sha256]:
                    by_hash[file.sha256] = objects[file.path]
                    records[record] = entries[record].tag
        return {file.path: by_hash[file.sha256] for file in manifest.files if file.sha256 in by_hash}, records

    def _open_uploads(self, manifest: Manifest, part_size: int) -> dict[str, OpenObject]:
        """Return the unfinished upload of each file; of several, as after a lost answer, the one that has most."""
        prefix = self._files(manifest.name, manifest.version)
        found: dict[str, OpenObject] = {}
        keys = [self.key_of(manifest, file.path) for file in manifest.files if file.size > part_size]
        for key, upload_id in self._bucket.uploads(prefix, keys):
            path, parts = key.removeprefix(prefix), self._bucket.parts(key, upload_id)
            if parts is not None and (path not in found or len(parts) > len(found[path].parts)):
                found[path] = OpenObject(upload_id, parts)
        return found

    def _abort_begun(self, manifest: Manifest) -> None:
        prefix = self._files(manifest.name, manifest.version)
        for upload_id, key in list(self._begun.items()):
            if key.startswith(prefix):
                self._bucket.abort(key, upload_id)
                self.completed(upload_id)

    def _abort_uploads(self, name: str, version: str) -> None:
        for key, upload_id in self._bucket.uploads(self._files(name, version)):
            self._bucket.abort(key, upload_id)

    def _delete_all(self, objects: Iterable[Listed]) -> None:
        # One by one: storages disagree about the checksum that a request for many must carry.
        for_each(
            lambda found, _: self._bucket.delete(found.key, etag=found.etag),
            list(objects),
            workers=_DELETERS,
            cancel=CancelToken(),
        )


class _Writer:
    """How the files of one version go up. Methods as of :class:`~..transfer.plan.ObjectWriter`."""

    def __init__(
        self,
        store: S3Store,
        bucket: Bucket,
        manifest: Manifest,
        part_size: int,
        origins: Mapping[str, Listed],
        there: Mapping[str, Listed],
    ) -> None:
        self.part_size = part_size
        self._store = store
        self._bucket = bucket
        self._manifest = manifest
        self._origins = origins
        self._there = there

    def whole(self, file: FileEntry, sums: Sums) -> Flow[Address]:
        # On a condition: a late request of a push that has lost its claim changes nothing of what others have written.
        there = self._there.get(file.path)
        return call_remote(self._bucket.address_put, self._key(file), sums, etag=there.etag if there else None)

    def begin(self, file: FileEntry) -> Flow[str]:
        return call_remote(self._begin, file)

    def part(self, file: FileEntry, upload_id: str, number: int, sums: Sums) -> Flow[Address]:
        return call(self._bucket.address_part, self._key(file), upload_id, number, sums)

    def checked_crc32(self, checked: bool) -> None:
        self._bucket.abilities.crc32 = checked

    def complete(self, file: FileEntry, upload_id: str, parts: Mapping[int, Stored]) -> Flow[str]:
        return call_remote(self._complete, file, upload_id, parts)

    def copy(self, file: FileEntry) -> Flow[str | None]:
        return call_remote(self._bucket.copy, self._origins[file.path], self._key(file), {_SHA256: file.sha256})

    def _key(self, file: FileEntry) -> str:
        return self._store.key_of(self._manifest, file.path)

    def _begin(self, file: FileEntry) -> str:
        upload_id = self._bucket.begin(self._key(file), {_SHA256: file.sha256})
        self._store.begun(self._key(file), upload_id)
        return upload_id

    def _complete(self, file: FileEntry, upload_id: str, parts: Mapping[int, Stored]) -> str:
        if self._store.require_claim(self._manifest):
            return ""  # nobody asks for its tag any more
        etag = self._bucket.complete(self._key(file), upload_id, parts)
        if etag is not None:
            self._store.completed(upload_id)
            return etag
        # Or the answer to an earlier request was lost, or another writer of the same bytes was faster.
        found = self._bucket.head(self._key(file))
        if found is None or (found[0].size, found[1].get(_SHA256)) != (file.size, file.sha256):
            raise BeginAgain(f"the storage knows the upload of {names.show(file.path)} no more")
        return found[0].etag


class _Records:
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


_records = _Records()

"""What a task remembers from one try to the next.

A checkpoint saves work and is never trusted: whatever is read from it is compared with the arguments, the source and
the registry before it is used.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from airflow_provider_modelsync.core.flow.forks import Lock

_DIGESTS = "digests.v1"
_UPLOAD = "upload.v1"
_PARTS_PER_KEY = 256
_MOST_KEYS = 64  # more than any upload has: what is read back is not trusted
FLUSH_SECONDS = 5.0  # each write is a call to the API server
VALUE_LIMIT = 15_000  # bytes of JSON in one value
_WORTH_REMEMBERING = 16 << 20  # bytes: smaller files hash faster than they are looked up


class CheckpointStore(Protocol):
    """Keeps small JSON values (below 16 kB each) under string keys across the tries of one task."""

    def get(self, key: str) -> JsonValue:
        """Return the value of a key, or ``None``."""

    def set(self, key: str, value: JsonValue) -> None:
        """Store a value under a key."""

    def delete(self, key: str) -> None:
        """Remove a key if it is there."""


class Below:
    """Part of a checkpoint store: the keys that begin with a prefix.

    :param store: the whole.
    :param prefix: what they begin with.
    """

    def __init__(self, store: CheckpointStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def get(self, key: str) -> JsonValue:
        return self._store.get(self._prefix + key)

    def set(self, key: str, value: JsonValue) -> None:
        self._store.set(self._prefix + key, value)

    def delete(self, key: str) -> None:
        self._store.delete(self._prefix + key)


def load_digests(store: CheckpointStore | None) -> dict[str, str]:
    """Return the file hashes that an earlier try left, keyed as :func:`~..archive.digest.memory_key` does."""
    stored = store.get(_DIGESTS) if store else None
    return {key: str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}


def save_digests(store: CheckpointStore | None, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Leave the hashes of the largest files to the next try, as many as one value holds.

    :param digests: memory key → hash.
    :param sizes: memory key → size of the file in bytes.
    """
    if store is None:
        return
    kept: dict[str, JsonValue] = {}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sizes[key] < _WORTH_REMEMBERING or len(json.dumps({**kept, key: digests[key]})) > VALUE_LIMIT:
            break
        kept[key] = digests[key]
    if kept:
        store.set(_DIGESTS, kept)


def forget_digests(store: CheckpointStore | None) -> None:
    """Have the next try hash every file: one has changed though nothing that can be seen of it says so."""
    if store is not None:
        store.delete(_DIGESTS)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that was begun.

    :param upload_id: the storage's name for it.
    :param part_size: bytes in every part but the last.
    """

    upload_id: str
    part_size: int


class UploadMemory:
    """The parts of one multipart upload that are done, kept for the next try. Safe to use from many threads.

    :param store: where tries remember; ``None`` keeps things for this try only.
    :param flush_seconds: seconds between two writes to the store, at least.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        *,
        flush_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._flush_seconds = FLUSH_SECONDS if flush_seconds is None else flush_seconds
        self._clock = clock
        self._lock = Lock()
        self._flushed_at = clock()
        self._changed: set[int] = set()
        self._others: dict[str, UploadMemory] = {}
        self.parts: dict[int, str] = {}

    @property
    def is_kept(self) -> bool:
        """Whether a later try will see it."""
        return self._store is not None

    def of(self, name: str) -> UploadMemory:
        """Return what is kept of one of many uploads; it is flushed and forgotten with this one.

        :param name: tells it from the others.
        """
        key = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}."
        with self._lock:
            if key not in self._others:
                store = None if self._store is None else Below(self._store, key)
                self._others[key] = UploadMemory(store, flush_seconds=self._flush_seconds, clock=self._clock)
            return self._others[key]

    def recall(self, identity: Mapping[str, JsonValue]) -> OpenUpload | None:
        """Return the upload that an earlier try began, its parts loaded; whatever does not fit is forgotten.

        :param identity: what the upload must have been begun with.
        """
        header = self._store.get(_UPLOAD) if self._store else None
        if header is None:
            return None
        match header:
            case {"identity": known, "upload_id": str(upload_id), "part_size": part_size}:
                if known == dict(identity) and upload_id and type(part_size) is int and part_size > 0:
                    self.parts = self._load(_keys(header))
                    return OpenUpload(upload_id, part_size)
        self.forget()
        return None

    def begin(self, identity: Mapping[str, JsonValue], upload: OpenUpload, parts: int) -> None:
        """Remember an upload that was just begun.

        :param identity: see :meth:`recall`.
        :param upload: the upload.
        :param parts: how many parts it will have.
        """
        self.forget()
        if self._store is not None:
            header: dict[str, JsonValue] = {
                "identity": dict(identity),
                "upload_id": upload.upload_id,
                "part_size": upload.part_size,
                "keys": -(-parts // _PARTS_PER_KEY),
            }
            self._store.set(_UPLOAD, header)

    def add(self, number: int, etag: str) -> None:
        """Note a part, counted from 1, as done."""
        with self._lock:
            self.parts[number] = etag
            self._changed.add((number - 1) // _PARTS_PER_KEY)
            if self._clock() - self._flushed_at >= self._flush_seconds:
                self._write()

    def flush(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            self._write()
        for other in self._others.values():
            other.flush()

    def forget(self) -> None:
        """Remove everything: the upload is finished, or of no use any more."""
        for other in self._others.values():
            other.forget()
        with self._lock:
            self.parts, self._changed = {}, set()
            if self._store is None:
                return
            # The header last: while it is there, the keys can still be found.
            for key in [_key(index) for index in range(_keys(self._store.get(_UPLOAD)))] + [_UPLOAD]:
                self._store.delete(key)

    def _load(self, keys: int) -> dict[int, str]:
        parts: dict[int, str] = {}
        for index in range(keys):
            stored = self._store.get(_key(index)) if self._store else None
            if isinstance(stored, dict):
                found = {number: stored.get(str(number)) for number in _numbers(index)}
                parts |= {number: etag for number, etag in found.items() if isinstance(etag, str) and etag}
        return parts

    def _write(self) -> None:
        self._flushed_at = self._clock()
        for index in sorted(self._changed):
            chunk: dict[str, JsonValue] = {}
            room = VALUE_LIMIT - 2
            for number in _numbers(index):
                if (etag := self.parts.get(number)) is not None:
                    room -= len(json.dumps({str(number): etag}))
                    if room < 0:  # the storage's tags are long: the rest is sent again
                        break
                    chunk[str(number)] = etag
            if self._store is not None:
                self._store.set(_key(index), chunk)
        self._changed.clear()


def _key(index: int) -> str:
    return f"{_UPLOAD}.parts.{index}"


def _numbers(index: int) -> range:
    """Return the numbers of the parts that one key keeps."""
    return range(index * _PARTS_PER_KEY + 1, (index + 1) * _PARTS_PER_KEY + 1)


def _keys(header: JsonValue) -> int:
    """Return how many keys a header says that there are."""
    keys = header.get("keys") if isinstance(header, dict) else None
    return min(keys, _MOST_KEYS) if isinstance(keys, int) else 0

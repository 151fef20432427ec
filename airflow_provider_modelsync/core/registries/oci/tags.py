"""What the tags of a repository stand for: versions, and aliases of these.

A manifest of ours tells the tag that it was pushed under. Another tag that stands for it is an alias of that version.
It holds the very manifest, so any tool may follow it; whoever moves the version's tag takes its aliases along.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from airflow_provider_modelsync.core.errors import (
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    UnsafeArchive,
)
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import Flow, call, together
from airflow_provider_modelsync.core.registries.oci.api import Api, Refusal, Stored, is_version
from airflow_provider_modelsync.core.registries.oci.manifest import (
    VERSION,
    Contents,
    Manifest,
    contents_of,
    created_in,
    parse,
    with_annotation,
)

_CONFIG_BYTES = 1 << 20  # of a configuration that is read for its time
_REMEMBERED = (
    256  # manifests that are kept, and how many bytes of them: what is read of them takes several times as much
)
_REMEMBERED_BYTES = 8 << 20
_REMOVED = "io.modelsync.removed"

_log = logging.getLogger("modelsync")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest, and what it says.

    :param fault: why its files are not told, when they are not.
    """

    stored: Stored
    manifest: Manifest
    contents: Contents | None
    fault: ModelSyncError | None = None
    created_at: datetime | None = None

    @classmethod
    def of(cls, stored: Stored) -> Found:
        try:
            manifest = parse(stored.content)
        except UnsafeArchive as error:
            return cls(stored, Manifest(), None, error)
        try:
            return cls(stored, manifest, contents_of(manifest), None, manifest.created)
        except (UnsafeArchive, NotSupported) as error:
            return cls(stored, manifest, None, error, manifest.created)

    @property
    def digest(self) -> str | None:
        """The model's digest."""
        return self.contents.digest if self.contents else None

    @property
    def version(self) -> str | None:
        """The tag that it was pushed under, if it tells."""
        told = self.manifest.annotations.get(VERSION)
        return told if told is not None and is_version(told) else None


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """What of a manifest stays in memory while all of a model's are read.

    :param version: the tag that it was pushed under, if it tells.
    :param stored: its own digest.
    :param kept: what the caller needs of it.
    """

    version: str | None
    stored: str
    kept: T


class Tags:
    """The tags of one connection's models, read again only when they have moved.

    :param api: makes the calls.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: OrderedDict[tuple[str, str], Found] = OrderedDict()
        self._lock = Lock()

    def look(self, name: str, tag: str) -> Flow[Found | None]:
        """Return what a tag stands for. One that was read before is only looked at, until it moves."""
        with self._lock:
            known = self._known.get((name, tag))
        if known is not None:
            digest = yield from self._api.head(name, tag)
            if digest is None:
                return None
            if digest == known.stored.digest:
                return known
        return (yield from self.read(name, tag))

    def read(self, name: str, reference: str) -> Flow[Found | None]:
        """Return what a tag stands for, or what a digest is of."""
        stored = yield from self._api.manifest(name, reference)
        if stored is None:
            return None
        found = yield from call(Found.of, stored)
        if found.created_at is None and found.manifest.config is not None:
            found = replace(found, created_at=(yield from self._time_of(name, found.manifest)))
        with self._lock:
            self._known.pop((name, reference), None)
            self._known[name, reference] = found
            while len(self._known) > _REMEMBERED or (len(self._known) > 1 and self._size() > _REMEMBERED_BYTES):
                self._known.popitem(last=False)
        return found

    def exactly(self, name: str, digest: str) -> Flow[Found | None]:
        """Return the manifest of a digest."""
        with self._lock:
            known = next((one for one in self._known.values() if one.stored.digest == digest), None)
        return known or (yield from self.read(name, digest))

    def all(self, name: str, keep: Callable[[str, Found], T]) -> Flow[dict[str, Listed[T]]]:
        """Return what all tags of a model stand for that are no other tool's.

        :param keep: makes of a tag and its manifest what is needed: manifests would burden the garbage collector.
        """

        def listed(tag: str) -> Flow[Listed[T] | None]:
            found = yield from self.look(name, tag)
            return None if found is None else Listed(found.version, found.stored.digest, keep(tag, found))

        tags = [tag for tag in (yield from self._api.tags(name)) if is_version(tag)]
        entries = yield from together(map(listed, tags))
        return {tag: one for tag, one in zip(tags, entries, strict=True) if one is not None}

    def digest(self, name: str, tag: str) -> Flow[str | None]:
        """Return what a tag stands for, in the registry's terms."""
        digest = yield from self._api.head(name, tag)
        if digest == "":
            stored = yield from self._api.manifest(name, tag)
            digest = stored.digest if stored else None
        return digest

    def sharing(self, name: str, tag: str, digest: str) -> Flow[list[str]]:
        """Return the other tags that stand for a manifest."""
        tags = [other for other in (yield from self._api.tags(name)) if other != tag]
        digests = yield from together(self.digest(name, other) for other in tags)
        return sorted(other for other, one in zip(tags, digests, strict=True) if one == digest)

    def take_along(self, name: str, version: str, old: Found, new: Stored) -> Flow[None]:
        """Have the aliases of a version stand for what its tag has moved to."""
        for tag in (yield from self.sharing(name, version, old.stored.digest)):
            if alias_of(tag, old) != version:
                continue
            refusal = yield from self._api.put_manifest(name, tag, new.media_type, new.content)
            if refusal.status >= 300:
                _log.warning("%s@%s still stands for what %s was: %s", name, tag, version, refusal.text[:200])

    def remove(self, name: str, tag: str, found: Found) -> Flow[Refusal]:
        """Remove a tag alone, and leave what it stands for to other tags.

        Where a registry only deletes manifests with all their tags, the tag is given one of its own first, and what it
        had when that cannot be deleted either.
        """
        refusal = yield from self._api.delete_manifest(name, tag)
        if refusal.status not in (400, 404, 405):
            return refusal
        if refusal.status == 404 and (yield from self.digest(name, tag)) is None:
            return refusal
        content = with_annotation(found.stored.content, _REMOVED, tag)
        put = yield from self._api.put_manifest(name, tag, found.stored.media_type, content)
        put.raise_for_status(f"removing the tag {tag} of {name}")
        digest = yield from self.digest(name, tag)
        if digest is None:
            return refusal
        done = yield from self._api.delete_manifest(name, digest)
        if done.status >= 300:
            put = yield from self._api.put_manifest(name, tag, found.stored.media_type, found.stored.content)
            put.raise_for_status(f"leaving the tag {tag} of {name} where it was")
        return done

    def _size(self) -> int:
        return sum(len(found.stored.content) for found in self._known.values())

    def _time_of(self, name: str, manifest: Manifest) -> Flow[datetime | None]:
        config = manifest.config
        if config is None or not 2 < config.size <= _CONFIG_BYTES:
            return None
        try:
            return created_in((yield from self._api.blob(name, config.digest, _CONFIG_BYTES)))
        except (ModelNotFound, RegistryUnavailable):
            return None


def alias_of(tag: str, found: Found) -> str | None:
    """Return the version that a tag is an alias of, by what it stands for; ``None`` when it is none."""
    return found.version if found.version != tag else None


def aliases_in(tags: Mapping[str, Listed[Any]]) -> dict[str, str]:
    """Return which tags are aliases: alias → version. One whose version is gone, or is another, stands for itself."""
    return {
        tag: listed.version
        for tag, listed in tags.items()
        if listed.version not in (None, tag) and listed.version in tags and tags[listed.version].stored == listed.stored
    }

"""The files of a commit: what the Hub tells of them, and how they come down."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from airflow_provider_modelsync.core.archive.digest import FileEntry, Proof
from airflow_provider_modelsync.core.archive.names import require_safe, show
from airflow_provider_modelsync.core.errors import DigestMismatch, NotSupported, RegistryUnavailable, UnsafeArchive
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.registries.huggingface.api import (
    ATTRIBUTES,
    Entry,
    Hub,
    Issue,
    model_path,
    resolve_path,
)
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, GetFiles

MOST_FILES = 100_000  # of a repository
_TREE_PAGES = 400
_LARGEST = 50 * 10**9  # bytes that the Hub serves by plain HTTP; above only in chunks of a protocol of its own
_BAD_LEVELS = frozenset({"unsafe", "suspicious"})

# What is read at most to find out hashes that are not told: beyond, files are checked one by one as they come.
_MOST_READ = 200
_MOST_BYTES = 64 << 20
_SMALL = 12 << 20  # bytes; what is larger lies in LFS, whose hashes are told


def read_tree(hub: Hub, name: str, commit: str) -> Flow[list[Entry]]:
    """Return the files of a commit, without the one that the Hub makes itself.

    :raises UnsafeArchive: when one has a name that no model may hold.
    """
    doing = f"reading the files of {name}:{commit}"
    entries, is_all = yield from hub.pages(
        model_path(name, "tree", commit), Entry, doing, name=name, most=_TREE_PAGES, recursive="true", expand="false"
    )
    files = [entry for entry in entries if entry.type == "file" and entry.path != ATTRIBUTES]
    if not is_all or len(files) > MOST_FILES:
        raise NotSupported(f"{doing}: there are more than {MOST_FILES}")
    require_safe(f"{name}:{commit}", (file.path for file in files))
    return files


def way_down(hub: Hub, name: str, commit: str, entries: Iterable[Entry]) -> GetFiles:
    """Return how files of a commit come down."""
    known = {entry.path: entry for entry in entries}
    return GetFiles(
        tuple(FileEntry(entry.path, entry.size, entry.sha256) for entry in known.values()),
        (),
        lambda file: hub.address(name, commit, file.path, is_large=known[file.path].lfs is not None),
        blobs={entry.path: entry.blob for entry in known.values() if entry.blob},
        is_proved=True,
    )


def require_fetchable(ref: str, files: Sequence[FileEntry], issues: Iterable[Issue]) -> None:
    """Raise for files that must not, or cannot, be fetched."""
    levels = {issue.path: issue.level for issue in issues if issue.level in _BAD_LEVELS}
    for file in files:
        if file.path in levels:
            raise UnsafeArchive(
                f"{ref}: the Hub's scan calls {show(file.path)} {levels[file.path]}; leave it out with exclude, "
                "or take a commit without it"
            )
        if file.size > _LARGEST:
            raise NotSupported(
                f"{ref}: {show(file.path)} has {file.size} bytes, and the Hub serves no file above {_LARGEST} by plain "
                "HTTP; leave it out with exclude"
            )


def with_hashes(hub: Hub, plan: DownloadPlan) -> Flow[DownloadPlan]:
    """Return a plan with the hashes of all its files, reading those that are not told, unless that is too much."""
    way, version = plan.way, plan.version
    assert isinstance(way, GetFiles)
    missing = [file for file in way.files if not file.sha256]
    size = sum(file.size for file in missing)
    is_bounded = len(missing) <= _MOST_READ and size <= _MOST_BYTES and all(file.size <= _SMALL for file in missing)
    if not missing or not is_bounded:
        return plan
    found: dict[str, str] = {}
    for file in missing:
        found[file.path] = yield from _hash_of(hub, version.name, version.version, file, way.blobs)
    files = tuple(replace(file, sha256=file.sha256 or found[file.path]) for file in way.files)
    return replace(plan, way=replace(way, files=files))


def _hash_of(hub: Hub, name: str, commit: str, file: FileEntry, blobs: Mapping[str, str]) -> Flow[str]:
    doing = f"reading {show(file.path)} of {name}:{commit}"
    if not file.size:
        return hashlib.sha256().hexdigest()
    for _ in range(2):  # a flipped bit on the way is cured by another look
        response = yield from hub.answer(
            "GET",
            resolve_path(name, commit, file.path),
            headers={"Accept": "*/*", "Accept-Encoding": "identity"},
            answer_bytes=_SMALL,
        )
        hub.refuse(response, doing, name)
        proof = Proof(file.size, "", blobs.get(file.path))
        proof.update(memoryview(response.content))
        if len(response.content) != file.size:
            raise RegistryUnavailable(f"{doing}: {len(response.content)} bytes came instead of {file.size}")
        if proof.holds:
            return proof.sha256
    raise DigestMismatch(f"{doing}: the bytes do not match the hash that its registry tells, seen twice")

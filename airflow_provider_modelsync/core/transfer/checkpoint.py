"""What a task remembers from one try to the next.

A checkpoint saves work and is never trusted: whatever is read from it is compared with the arguments, the source and
the registry before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from pydantic import JsonValue

_DIGESTS = "digests.v1"
_VALUE_LIMIT = 15_000  # bytes of JSON in one value
_WORTH_REMEMBERING = 16 << 20  # bytes: smaller files hash faster than they are looked up


class CheckpointStore(Protocol):
    """Keeps small JSON values (below 16 kB each) under string keys across the tries of one task."""

    def get(self, key: str) -> JsonValue:
        """Return the value of a key, or ``None``."""

    def set(self, key: str, value: JsonValue) -> None:
        """Store a value under a key."""

    def delete(self, key: str) -> None:
        """Remove a key if it is there."""


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
        if sizes[key] < _WORTH_REMEMBERING or len(json.dumps({**kept, key: digests[key]})) > _VALUE_LIMIT:
            break
        kept[key] = digests[key]
    if kept:
        store.set(_DIGESTS, kept)

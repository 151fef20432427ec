"""The small files of a model store, and what :mod:`.aliases` must be able to do with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol, TypeVar

from pydantic import BaseModel

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Record:
    """A small file of a store.

    :param content: its bytes.
    :param modified: when it was written, UTC.
    """

    content: bytes
    modified: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in a listing.

    :param modified: when it was written, UTC.
    :param tag: tells one state from another.
    :param size: bytes.
    """

    modified: datetime
    tag: str = ""
    size: int = 0


class KeepsRecords(Protocol):
    """What a store does with records; methods as of :class:`~.store.Store`."""

    title: ClassVar[str]

    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]: ...

    def read_listed(
        self, name: str, record: str, entries: Mapping[str, Entry], kind: type[_Model]
    ) -> _Model | None: ...

    def create(self, name: str, record: str, content: bytes) -> bool: ...

    def remove(self, name: str, records: Iterable[str]) -> None: ...

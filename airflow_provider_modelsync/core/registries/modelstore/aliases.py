"""Aliases of a model store: for each a chain of small records, of which the highest counts.

Moving an alias is creating the record after the highest one, where nothing is, so one of two who do that loses. That is
compare-and-set by what every store can do. A record tells the moves before it, too, so that older ones can be removed::

    <alias>.alias          where it points, and where it pointed before; <alias>.alias.<n> when it was moved again

A record may be created so late that those above it have come and gone: its writer looks once more, and finds its move
among those that the highest record tells, or nowhere.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Set
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.models import HISTORY, NOBODY, Alias, Held
from airflow_provider_modelsync.core.registries.capabilities import moved
from airflow_provider_modelsync.core.registries.modelstore.records import Entry, KeepsRecords

log = logging.getLogger("modelsync")

_RECORD = re.compile(r"(?P<alias>[A-Za-z0-9][A-Za-z0-9._-]{0,127})\.alias(?:\.(?P<number>[2-9]|[1-9]\d+))?")
_ROUNDS = 100  # of looking and writing, each lost to another writer
_READERS = 8  # threads


class _Move(BaseModel):
    """One move of an alias.

    :ivar version: where to; ``None`` when it was removed.
    :ivar at: when, UTC; ``None`` for the newest, which is as old as its record.
    :ivar by: what tells it from all others.
    """

    model_config = ConfigDict(frozen=True)

    version: str | None
    at: datetime | None = None
    by: str


class _Chain(BaseModel):
    """A record: the moves of an alias, the newest first. Version 1 of the format."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    moves: tuple[_Move, ...]


class _State:
    """What a store tells of an alias.

    :param numbers: of its records.
    :param moves: what the highest one tells, the newest first, each with its time.
    """

    def __init__(self, numbers: Set[int] = frozenset(), moves: tuple[_Move, ...] = ()) -> None:
        self.numbers = numbers
        self.moves = moves

    @property
    def number(self) -> int:
        """The number of the record that counts; 0 for none."""
        return max(self.numbers, default=0)

    @property
    def version(self) -> str | None:
        return self.moves[0].version if self.moves else None

    def told(self, name: str, alias: str) -> Alias | None:
        """Return it as users see it; ``None`` when there is no such alias."""
        if self.version is None:
            return None
        held = [Held(version=move.version, since=move.at) for move in self.moves]
        return Alias(name=name, alias=alias, version=self.version, since=held[0].since, earlier=tuple(held[1:]))


def read(store: KeepsRecords, name: str, alias: str) -> Alias:
    """Return what an alias points to; raise :class:`ModelNotFound` when it is not there."""
    if found := _look(store, name, alias).told(name, alias):
        return found
    raise ModelNotFound(f"{store.title} has no alias {alias!r} of {name!r}")


def listed(store: KeepsRecords, name: str, entries: Mapping[str, Entry]) -> list[Alias]:
    """Return the aliases of a model, by their names; one that cannot be read is reported and passed over.

    :param entries: its records.
    """
    found: list[Alias] = []

    def look(alias: str, cancel: CancelToken) -> None:
        try:
            state = _state(store, name, alias, entries) or _look(store, name, alias)
        except RegistryUnavailable as error:
            log.warning("passing over %s@%s: %s", name, alias, error)
        else:
            if told := state.told(name, alias):
                found.append(told)

    for_each(look, _numbers(entries), workers=_READERS, cancel=CancelToken())
    return sorted(found, key=lambda alias: alias.alias)


def move(
    store: KeepsRecords, name: str, alias: str, version: str | None, expected: str | None = None
) -> tuple[Alias | None, bool]:
    """Have an alias point to a version, or to none; return it as it is then, and whether it pointed elsewhere.

    :raises VersionConflict: when it does not point to what is expected.
    """
    key = secrets.token_hex(8)
    written = 0
    for _ in range(_ROUNDS):
        state = _look(store, name, alias)
        if written and any(made.by == key for made in state.moves):
            store.remove(name, [_record(alias, number) for number in state.numbers - {state.number}])
            return state.told(name, alias), True
        if written and state.number - written > HISTORY:
            raise RegistryUnavailable(f"{name}@{alias} was moved so often meanwhile that nothing tells of this move")
        if state.version == version:
            return state.told(name, alias), False
        if expected is not None and (state.version or NOBODY) != expected:
            raise moved(f"{name}@{alias}", expected, state.version)
        made = _Move(version=version, by=key)
        chain = _Chain(moves=(made, *state.moves[:HISTORY]))
        if store.create(name, _record(alias, state.number + 1), chain.model_dump_json().encode()):
            # The number may be history by now: whether the move counts is seen by looking again.
            written = state.number + 1
    raise RegistryUnavailable(f"{name}@{alias} is being moved by others all the time")


def dead_records(entries: Mapping[str, Entry], older_than: datetime) -> list[str]:
    """Return the records of aliases that count no more.

    :param older_than: only those written before.
    """
    return [
        _record(alias, number)
        for alias, numbers in _numbers(entries).items()
        for number in numbers - {max(numbers)}
        if entries[_record(alias, number)].modified < older_than
    ]


def _record(alias: str, number: int) -> str:
    return f"{alias}.alias" + (f".{number}" if number > 1 else "")


def _numbers(records: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the records of each alias."""
    found: dict[str, set[int]] = {}
    for record in records:
        if match := _RECORD.fullmatch(record):
            found.setdefault(match["alias"], set()).add(int(match["number"] or 1))
    return found


def _look(store: KeepsRecords, name: str, alias: str) -> _State:
    for _ in range(_ROUNDS):
        state = _state(store, name, alias, store.entries(name, alias))
        if state is not None:
            return state
    raise RegistryUnavailable(f"the records of {name}@{alias} change all the time")


def _state(store: KeepsRecords, name: str, alias: str, entries: Mapping[str, Entry]) -> _State | None:
    """Return what records say of an alias; ``None`` when the highest is gone by now."""
    numbers = _numbers(entries).get(alias)
    if not numbers:
        return _State()
    record = _record(alias, max(numbers))
    chain = store.read_listed(name, record, entries, _Chain)
    if chain is None:
        return None
    newest, *older = chain.moves
    return _State(numbers, (newest.model_copy(update={"at": entries[record].modified}), *older))

"""Who may publish a version: the decisions of every store, without any I/O.

A version has *generations*, numbered from 1. A generation belongs to the digest in its claim for ever, and its files
have a directory of their own. It ends with its *verdict*, one record that is created where nothing is, and so exactly
once: the manifest, which publishes it, or a note that it is closed, which says what counts instead. Committing and
giving up are the same act on the same name; one of them loses. Generations are decided one after the other, and their
numbers are never used again: what belongs to a decided one that does not count is dead, whoever still writes it.

All that a store must know is how to create a record where there is none, and to list records. Nothing is ever
overwritten, no lock is held, and no clock is asked.

Records of a version, by file name (generation 1 goes without its number, so that stores from before there were any
read as they are)::

    <version>.json          the verdict; <version>.~<g>.json of later generations
    <version>.claim         whose generation it is
    <version>.labels        labels changed after the push; <version>.labels.<k> when they are changed again
    <version>.~<g>.<c>.closed   all up to generation g is decided, and generation c counts, or none when it is 0
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

_VERSION = r"(?P<version>[A-Za-z0-9][A-Za-z0-9._-]{0,127})"
_RECORD = re.compile(
    rf"{_VERSION}\.(?:~(?P<generation>[2-9]|[1-9]\d+)\.)?(?P<kind>json|claim|labels)(?:(?<=labels)\.(?P<number>[2-9]|[1-9]\d+))?"
)
_CLOSED = re.compile(rf"{_VERSION}\.~(?P<generation>[1-9]\d*)\.(?P<current>0|[1-9]\d*)\.closed")


def stem(version: str, generation: int) -> str:
    """Return what the names of a generation's records begin with."""
    return version if generation == 1 else f"{version}.~{generation}"


def verdict_of(version: str, generation: int) -> str:
    """Return the name of a generation's verdict."""
    return f"{stem(version, generation)}.json"


def claim_of(version: str, generation: int) -> str:
    """Return the name of a generation's claim."""
    return f"{stem(version, generation)}.claim"


def labels_of(version: str, generation: int, number: int) -> str:
    """Return the name of a generation's labels as they were changed for the n-th time."""
    return f"{stem(version, generation)}.labels" + (f".{number}" if number > 1 else "")


def closed_of(version: str, generation: int, current: int) -> str:
    """Return the name of the note that all up to a generation is decided."""
    return f"{version}.~{generation}.{current}.closed"


def directory_of(version: str, generation: int) -> str:
    """Return the name of the directory of a generation's files. No version's name holds a ``~``."""
    return version if generation == 1 else f"{version}~{generation}"


def generation_of(version: str, directory: str) -> int:
    """Return the generation whose files a directory holds; 0 when it is none of the version's."""
    if directory == version:
        return 1
    found = re.fullmatch(rf"{re.escape(version)}~([2-9]|[1-9]\d+)", directory)
    return int(found[1]) if found else 0


@dataclass(slots=True)
class Records:
    """The records of one version, as listed.

    :ivar verdicts: generations that have one.
    :ivar claims: generations that have one.
    :ivar closed: generation up to which all is decided → the one that counts.
    :ivar labels: generation → the numbers of its changes.
    """

    verdicts: set[int] = field(default_factory=set)
    claims: set[int] = field(default_factory=set)
    closed: dict[int, int] = field(default_factory=dict)
    labels: dict[int, set[int]] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        """The generation up to which notes say what counts; 0 without any."""
        return max(self.closed, default=0)

    @property
    def top(self) -> int:
        """The generation whose verdict says what counts; 0 when a note does, or nothing."""
        return max((number for number in self.verdicts if number > self.floor), default=0)

    @property
    def noted(self) -> int:
        """The generation that counts where no verdict says so; 0 for none."""
        counts = self.closed.get(self.floor, 0)
        return counts if counts in self.verdicts else 0

    @property
    def open(self) -> int:
        """The generation that is claimed and not decided; 0 for none."""
        return max((number for number in self.claims if number > max(self.floor, self.top)), default=0)

    def newest_labels(self, generation: int) -> int:
        """Return the number of the change of labels that counts; 0 for none."""
        return max(self.labels.get(generation, ()), default=0)


def by_version(names: Iterable[str]) -> dict[str, Records]:
    """Sort the names of a model's records; what is none of ours is passed over."""
    found: dict[str, Records] = {}
    for name in names:
        if match := _RECORD.fullmatch(name):
            records = found.setdefault(match["version"], Records())
            generation = int(match["generation"] or 1)
            if match["kind"] == "labels":
                records.labels.setdefault(generation, set()).add(int(match["number"] or 1))
            else:
                (records.verdicts if match["kind"] == "json" else records.claims).add(generation)
        elif match := _CLOSED.fullmatch(name):
            found.setdefault(match["version"], Records()).closed[int(match["generation"])] = int(match["current"])
    return found


@dataclass(frozen=True, slots=True)
class View:
    """What a version is at a moment.

    :param decided: the highest generation that has a verdict; 0 for none.
    :param current: the generation that is published; 0 for none.
    :param digest: of what is published; ``None`` where that is not known.
    :param open: the generation that is claimed and not decided; 0 for none.
    :param claimant: the digest that it belongs to; ``None`` where that is not known.
    """

    decided: int = 0
    current: int = 0
    digest: str | None = None
    open: int = 0
    claimant: str | None = None

    def is_dead(self, generation: int) -> bool:
        """Whether nothing of a generation will ever count again."""
        return generation <= self.decided and generation != self.current


@dataclass(frozen=True, slots=True)
class Keep:
    """These bytes are published: nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Join:
    """Another push of these bytes has claimed a generation: go on with it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Create the claim on a generation, then look again: the number may be history."""

    generation: int


@dataclass(frozen=True, slots=True)
class Close:
    """Give another's generation up, then look again."""

    generation: int
    current: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Other bytes are in the way."""

    digest: str | None
    is_published: bool


Step = Keep | Join | Claim | Close | Refuse


def enter(view: View, digest: str, *, force: bool, takes_over: bool, renew: bool = False) -> Step:
    """Say what a push does next.

    :param digest: what it pushes.
    :param force: whether it may replace other bytes.
    :param takes_over: whether it may give another's generation up.
    :param renew: whether these bytes are to be published again: they are damaged, or have other metadata.
    """
    is_same = view.current > 0 and view.digest == digest
    if is_same and not renew:
        return Keep()
    if view.current and not is_same and not force:
        return Refuse(view.digest, is_published=True)
    if view.open and view.claimant == digest:
        return Join(view.open)
    if view.open and not takes_over:
        return Refuse(view.claimant, is_published=False)
    if view.open:
        return Close(view.open, view.current)
    return Claim(view.decided + 1)


class Outcome(Enum):
    """What came of the attempt to publish."""

    DONE = "published, by this push or by another of the same bytes"
    LOST = "another push of other bytes has taken the version over"
    AGAIN = "the generation was given up: begin again"
    GONE = "published, and deleted since"


def outcome(view: View, generation: int, digest: str, *, is_created: bool) -> Outcome:
    """Say what came of an attempt to publish, from a look after it.

    :param generation: the one that was to be published.
    :param digest: what was pushed.
    :param is_created: whether this attempt has created the verdict.
    """
    if view.current and view.digest == digest and view.current >= generation:
        return Outcome.DONE
    if view.current > generation or (view.open and view.claimant != digest):
        return Outcome.LOST
    return Outcome.GONE if is_created else Outcome.AGAIN


def dead_records(version: str, records: Records, view: View) -> list[str]:
    """Return the records that will never count again. Whoever removes them late removes nothing else.

    The verdict that says what counts is not among them: a note has to take its place first.
    """
    says = records.top
    dead = [verdict_of(version, number) for number in records.verdicts if view.is_dead(number) and number != says]
    dead += [claim_of(version, number) for number in records.claims if number <= view.decided]
    for number, changes in records.labels.items():
        newest = records.newest_labels(number) if number == view.current or number > view.decided else 0
        dead += [labels_of(version, number, change) for change in changes if change != newest]
    dead += [
        closed_of(version, number, current)
        for number, current in records.closed.items()
        if number < max(records.floor, view.current)
    ]
    return dead

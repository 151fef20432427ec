"""What pulls have put into a target, remembered in a small record beside it.

With it, a target that still is exactly what an earlier pull put there can be told from one that somebody has touched:
by stamps alone, without reading a byte.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import ModelVersion

log = logging.getLogger("modelsync")

_NAME_BYTES = 200
_MAX_BYTES = 64 << 20  # of a record; one in object storage tells of every file
_KEPT = 3  # states that a local record knows: while one is replaced by another, either may be there


class Survey(BaseModel):
    """How the files of a target look from outside.

    :param exact: over paths, sizes, inodes, and both times of every file: equal means that nobody has touched any.
    :param loose: over paths, sizes and modification times, which a copy or another machine's mount keeps.
    """

    model_config = ConfigDict(frozen=True)

    exact: str
    loose: str


class Put(BaseModel):
    """One state of a target.

    :param registry: which registry, whatever connection leads to it.
    :param name: the model's name.
    :param version: the exact version.
    :param digest: as the registry tells it.
    :param created_at: as the registry tells it: tells versions apart that have no digest.
    :param choice: which of its files.
    :param content: the digest of what was written.
    :param survey: of a directory of this machine.
    :param files: of object storage: path → stamp, sha256; the stamp is empty before the file is written.
    :param is_ours: whether a pull wrote it, rather than found it.
    """

    model_config = ConfigDict(frozen=True)

    registry: str
    name: str
    version: str
    choice: str = ""
    content: str
    digest: str | None = None
    created_at: datetime | None = None
    survey: Survey | None = None
    files: dict[str, tuple[str, str]] | None = None
    is_ours: bool = True

    @classmethod
    def of(
        cls,
        identity: str,
        version: ModelVersion,
        content: str,
        *,
        choice: str = "",
        survey: Survey | None = None,
        files: Mapping[str, tuple[str, str]] | None = None,
        is_ours: bool = True,
    ) -> Put:
        """Return what to remember of a version; parameters as the fields."""
        return cls(
            registry=identity,
            name=version.name,
            version=version.version,
            choice=choice,
            digest=version.digest,
            created_at=version.created_at,
            content=content,
            survey=survey,
            files=None if files is None else dict(files),
            is_ours=is_ours,
        )

    def is_exactly(self, identity: str, version: ModelVersion, choice: str, wanted: str | None) -> bool:
        """Whether this is what is wanted: by its digest, or where none is known, by being of that very version."""
        if wanted is not None:
            return self.content == wanted
        facts = (identity, version.name, version.version, version.created_at, choice)
        known = (self.registry, self.name, self.version, self.created_at, self.choice)
        return facts == known and version.digest in (None, self.digest)  # none where only a pull finds it out

    def is_of_the_model(self, identity: str, version: ModelVersion) -> bool:
        """Whether a pull of the same model, in any version and of whichever of its files, wrote this."""
        return self.is_ours and (self.registry, self.name) == (identity, version.name)


class Record(BaseModel):
    """What is known of a target, the newest state first."""

    schema_version: Literal[1] = 1
    known: tuple[Put, ...] = ()

    def now(self, put: Put, before: Put | None = None) -> Record:
        """Return it with a further state.

        :param before: the state that is there now: however many tries are killed, it is not forgotten.
        """
        states = [put]
        for state in (before, *self.known):
            if state is not None and state not in states:
                states.append(state)
        return Record(known=tuple(states[:_KEPT]))

    def content(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def read(cls, content: bytes) -> Record:
        """Return what a record says; one that makes no sense says nothing."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls()


def name_beside(name: str) -> str:
    """Return the name of the record beside a target."""
    raw = os.fsencode(name)
    if len(raw) > _NAME_BYTES:
        name = f"{os.fsdecode(raw[:_NAME_BYTES])}.{hashlib.sha256(raw).hexdigest()[:8]}"
    return f".{name}.modelsync"


def recall(place: Path) -> Record:
    """Return what is known of a directory.

    :raises InvalidInput: when nothing could be noted there.
    """
    record = place.with_name(name_beside(place.name))
    if os.path.isdir(record) and not os.path.islink(record):
        raise InvalidInput(
            f"{record} is a directory, and what a pull leaves is noted under that name; move it away", argument="target"
        )
    with suppress(OSError), open(record, "rb", opener=_careful) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return Record.read(file.read(_MAX_BYTES))
    return Record()


def _careful(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def remember(place: Path, put: Put, staging: durable.Staging, *, before: Put | None = None) -> None:
    """Note a state of a directory; what else is known of it is kept.

    :param staging: beside the directory.
    :param before: the state that is there now.
    :raises OSError: when nothing can be written there.
    """
    _write(place, recall(place).now(put, before), staging)


def forget(place: Path, put: Put, staging: durable.Staging) -> None:
    """Take back a state that did not come about; what else is known is kept, and what fails is logged."""
    try:
        if known := tuple(known for known in recall(place).known if known != put):
            _write(place, Record(known=known), staging)
        else:
            place.with_name(name_beside(place.name)).unlink(missing_ok=True)
    except (OSError, InvalidInput) as error:
        log.warning("the record beside %s could not be written: %s", place, error)


def _write(place: Path, record: Record, staging: durable.Staging) -> None:
    staging.put_file(place.with_name(name_beside(place.name)), record.content())


def survey(place: Path) -> Survey:
    """Look at a directory's files without reading them."""
    exact, loose = hashlib.sha256(), hashlib.sha256()
    for path, facts in sorted(_walk(os.fspath(place))):
        kind = stat.S_IFMT(facts.st_mode)
        own = (kind,) if stat.S_ISDIR(facts.st_mode) else (kind, facts.st_size, facts.st_mtime_ns)
        more = () if stat.S_ISDIR(facts.st_mode) else (facts.st_ctime_ns, facts.st_ino)
        for total, told in ((exact, own + more), (loose, own)):
            total.update(b"%s\0%s\0" % (os.fsencode(path), repr(told).encode()))
    return Survey(exact=exact.hexdigest(), loose=loose.hexdigest())


def _walk(root: str, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(f"{root}/{prefix}") as listing:
        entries: Iterable[os.DirEntry[str]] = list(listing)
    for entry in entries:
        facts = entry.stat(follow_symlinks=False)
        yield f"{prefix}{entry.name}", facts
        if stat.S_ISDIR(facts.st_mode):
            yield from _walk(root, f"{prefix}{entry.name}/")

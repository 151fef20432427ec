"""What tasks and watchers remember where Airflow has no state store: small files below ``[modelsync] state_url``.

A file holds a JSON value and a seal: an HMAC of task, key and value, by a key derived from Airflow's Fernet key.
Whoever can write there but has no Fernet key can have memories lost, and bytes sent again; nothing is started or
announced.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import random
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelsync.compat import conf, fernet_keys

if TYPE_CHECKING:
    from pydantic import JsonValue

log = logging.getLogger("modelsync")

_FORM = "v1"
_WATCHED = "watched"  # where watchers remember: for as long as they are not removed by hand
_LIMIT = 16 << 10  # bytes of a file
_KEPT = 30 * 86_400  # seconds that the memory of a task lasts which nobody has written to
_SWEPT = 8  # memories that are looked at once a task has begun to write
_TASK = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
# What is compared with the source and the registry before it is used. All else must be sealed.
_ONLY_SAVES_WORK = re.compile(r"(.*\.)?(digests\.v1|upload\.v1(\.parts\.\d+)?)")


class _Place(Protocol):
    """Where files lie: in directories, by name."""

    def read(self, directory: str, name: str) -> bytes | None:
        """Return the beginning of a file, as much as may be of use; ``None`` where there is none."""

    def write(self, directory: str, name: str, content: bytes) -> None:
        """Have a file there as a whole, in place of whatever was."""

    def remove(self, directory: str, name: str | None = None) -> None:
        """Remove a file, or a directory with all that is in it."""

    def directories(self) -> list[str]:
        """Return the names of the directories."""

    def written_at(self, directory: str) -> float:
        """Return when a directory was last written to, in epoch seconds of the place's own clock."""


class _Directory:
    """A directory of this machine, or of a disk that all workers mount.

    :param root: its absolute path. What is below it belongs to this user alone.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def read(self, directory: str, name: str) -> bytes | None:
        with suppress(FileNotFoundError), self._opened(directory, make=False) as place:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            with os.fdopen(file, "rb") as reader:
                self._require_own(file, name, stat.S_IFREG)
                return reader.read(_LIMIT + 1)
        return None

    def write(self, directory: str, name: str, content: bytes) -> None:
        with self._opened(directory, make=True) as place:
            scratch = f".{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(scratch, flags, 0o600, dir_fd=place), "wb") as writer:
                writer.write(content)
            os.rename(scratch, name, src_dir_fd=place, dst_dir_fd=place)

    def remove(self, directory: str, name: str | None = None) -> None:
        with suppress(FileNotFoundError), self._opened(directory, make=False) as place:
            for one in os.listdir(place) if name is None else [name]:
                os.unlink(one, dir_fd=place)
            if name is None:
                os.rmdir(os.path.join(self._root, _FORM, directory))

    def directories(self) -> list[str]:
        return os.listdir(os.path.join(self._root, _FORM))

    def written_at(self, directory: str) -> float:
        return os.lstat(os.path.join(self._root, _FORM, directory)).st_mtime

    @contextmanager
    def _opened(self, directory: str, *, make: bool) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if make:
            os.makedirs(self._root, 0o700, exist_ok=True)
        opened = [os.open(self._root, flags)]
        try:
            for name in (_FORM, directory):
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=opened[-1])
                opened.append(os.open(name, flags | os.O_NOFOLLOW, dir_fd=opened[-1]))
                self._require_own(opened[-1], name, stat.S_IFDIR)
            yield opened[-1]
        finally:
            for one in opened:
                os.close(one)

    def _require_own(self, file: int, name: str, kind: int) -> None:
        facts = os.fstat(file)
        if stat.S_IFMT(facts.st_mode) != kind or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise PermissionError(f"{name} in {self._root} is not of this user alone")


class _Storage:
    """A place in object storage.

    :param root: where, by the connection that leads there.
    :raises Exception: when nothing leads there: no provider brings the scheme, no connection has the name.
    """

    def __init__(self, root: ObjectStoragePath) -> None:
        self._root = root / _FORM
        self._files = self._root.fs

    def read(self, directory: str, name: str) -> bytes | None:
        self._forget_listings()
        with suppress(FileNotFoundError), (self._root / directory / name).open("rb") as reader:
            content: bytes = reader.read(_LIMIT + 1)
            return content
        return None

    def write(self, directory: str, name: str, content: bytes) -> None:
        place = self._root / directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def remove(self, directory: str, name: str | None = None) -> None:
        place = self._root / directory
        with suppress(FileNotFoundError):
            if name is None:
                self._files.rm(place.path, recursive=True)
            else:
                (place / name).unlink()

    def directories(self) -> list[str]:
        self._forget_listings()
        return [str(one["name"]).rstrip("/").rpartition("/")[2] for one in self._files.ls(self._root.path, True)]

    def written_at(self, directory: str) -> float:
        files = self._files.find((self._root / directory).path)
        return max((self._files.modified(one).timestamp() for one in files), default=0.0)

    def _forget_listings(self) -> None:
        """Have the storage asked anew, in whose place its library knows sizes and times from before."""
        self._files.invalidate_cache()


class StateStore:
    """What one task remembers: JSON values under keys, as Airflow's own state store has them.

    :param place: where.
    :param directory: of the task there.
    """

    def __init__(self, place: _Place, directory: str) -> None:
        self._place = place
        self._directory = directory
        self._is_swept = False

    def get(self, key: str, default: JsonValue = None) -> JsonValue:
        """Return the value of a key; what is not whole, or not sealed by this Airflow for this task, is not there."""
        content = self._place.read(self._directory, _file_of(key))
        if content is None:
            return default
        try:
            match json.loads(content[:_LIMIT]):
                case {"value": value, "seal": str(seal)} if self._is_trusted(key, value, seal):
                    return value  # type: ignore[no-any-return]  # it was read as JSON
        except (ValueError, RecursionError):
            pass
        log.warning("what was remembered as %s is not what this task has written, and is not used", key)
        return default

    def set(self, key: str, value: JsonValue) -> None:
        """Store a value.

        :raises ValueError: when it is too large.
        """
        seal = next(self._seals(key, value), "")
        if not seal and not _ONLY_SAVES_WORK.fullmatch(key):
            _say_once("without [core] fernet_key only what saves work is remembered below [modelsync] state_url")
            return
        content = json.dumps({"value": value, "seal": seal}).encode()
        if len(content) > _LIMIT:
            raise ValueError(f"a value of {len(content)} bytes is too large to be remembered")
        self._place.write(self._directory, _file_of(key), content)
        self._sweep()

    def delete(self, key: str) -> None:
        """Remove a key if it is there."""
        self._place.remove(self._directory, _file_of(key))

    def clear(self) -> None:
        """Remove all keys."""
        self._place.remove(self._directory)

    def _is_trusted(self, key: str, value: JsonValue, seal: str) -> bool:
        seals = [*self._seals(key, value)]
        if not seals:
            return _ONLY_SAVES_WORK.fullmatch(key) is not None
        given = seal.encode(errors="replace")
        return any(hmac.compare_digest(given, one.encode()) for one in seals)

    def _seals(self, key: str, value: JsonValue) -> Iterator[str]:
        """Return the seals of a value, by each of the Fernet keys, the newest first."""
        sealed = json.dumps([self._directory, key, value], sort_keys=True).encode()
        for fernet_key in fernet_keys():
            derived = hmac.digest(fernet_key.encode(), b"modelsync state v1", "sha256")
            yield hmac.digest(derived, sealed, "sha256").hex()

    def _sweep(self) -> None:
        """Remove memories that nobody needs any more, when the first value has been written."""
        if self._is_swept:
            return
        self._is_swept = True
        with suppress(Exception):  # each storage has errors of its own
            found = [name for name in self._place.directories() if _TASK.fullmatch(name)]
            now = self._place.written_at(self._directory)
            for directory in random.sample(found, min(len(found), _SWEPT)):
                if now - self._place.written_at(directory) > _KEPT:
                    self._place.remove(directory)


def of_task(task: Any) -> StateStore | None:
    """Return what a task remembers; ``None`` where there is no place for it.

    :param task: the task instance of the context.
    """
    return _store_of(task, _place())


def forget_task(task: Any) -> None:
    """Remove what a task has remembered, if it could."""
    if (store := _store_of(task, _configured())) is not None:
        store.clear()


def of_watchers() -> StateStore | None:
    """Return what watchers remember, each under a key of its own; ``None`` where there is no place for it."""
    place = _place()
    return None if place is None else StateStore(place, _WATCHED)


def _store_of(task: Any, place: _Place | None) -> StateStore | None:
    identity = [getattr(task, name, None) for name in ("dag_id", "run_id", "task_id", "map_index")]
    if place is None or None in identity:
        return None
    return StateStore(place, hashlib.sha256(json.dumps(identity).encode()).hexdigest())


def _place() -> _Place | None:
    place = _configured()
    if place is None:
        _say_once(
            "this Airflow has no state store, and [modelsync] state_url names no place instead: what a task would "
            "remember from try to try is lost, and so is what a watcher has fired when its triggerer restarts"
        )
    return place


def _configured() -> _Place | None:
    url = conf.get("modelsync", "state_url", fallback="") or ""
    try:
        if "://" in url:
            path = ObjectStoragePath(url)
            return _Directory(path.path) if path.protocol in ("file", "local") else _Storage(path)
    except Exception as error:  # what only saves work fails no task
        _say_once(f"[modelsync] state_url is not used: {error}")
    return _Directory(url) if os.path.isabs(url) else None


def _file_of(key: str) -> str:
    name = key if _NAME.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()
    return f"{name}.json"


@cache
def _say_once(message: str) -> None:
    log.info("%s", message)

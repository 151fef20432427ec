"""Carrying out download plans."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import FileEntry, parent_below
from airflow_provider_modelsync.core.archive.extract import DirectorySink, Limits, unpack
from airflow_provider_modelsync.core.archive.holds import require_held
from airflow_provider_modelsync.core.archive.names import require_safe, show
from airflow_provider_modelsync.core.errors import CorruptArchive, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.files import get_files
from airflow_provider_modelsync.core.transfer.large_files import Pulled
from airflow_provider_modelsync.core.transfer.local import copy_files
from airflow_provider_modelsync.core.transfer.mover import PASSING, Download, Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import DownloadWay, FromDirectory, GetArchive, GetFiles
from airflow_provider_modelsync.core.transfer.ranges import PROBE, RangedObject, read_all, refuse
from airflow_provider_modelsync.core.transfer.walk import pull_ranges

# A range of something that has no strong tag, or a complaint that nothing has so many bytes: all of it, then.
_RANGED = frozenset({206, 416})


def download(way: DownloadWay, ref: str, target: Path, control: Control, driver: SyncDriver, mover: Mover) -> Pulled:
    """Move a model's bytes out of its registry.

    :param way: where from and how.
    :param ref: the exact version.
    :param target: a directory that is empty, or as an earlier try of the same version has left it.
    :param control: how to cancel, what to tell.
    :param driver: asks the registry for addresses.
    :param mover: receives bodies.
    :return: the files that were written, hashed while they were.
    :raises UnsafeArchive: when one of the names leads elsewhere.
    :raises InvalidInput: when the target's file system cannot hold one of the names.
    """
    if isinstance(way, GetArchive):
        pulled = _get_archive(way, ref, target, control, driver, mover)
        require_held(target, (file.path for file in pulled.files))
        return pulled
    require_safe(ref, (file.path for file in way.files), way.directories)
    require_held(target, (file.path for file in way.files), way.directories)
    match way:
        case FromDirectory():
            return _read_files(way, target, control)
        case GetFiles():
            return get_files(way, ref, target, control, driver, mover)


def read_archive(way: GetArchive, control: Control, driver: SyncDriver, mover: Mover) -> tuple[FileEntry, ...]:
    """Read a version's archive, and write nothing.

    :return: the files that it holds, hashed.
    :raises UnsafeArchive: when it holds what must not be unpacked.
    :raises CorruptArchive: when it was cut or damaged.
    """
    source = RangedObject(way.address, driver, mover)

    def read() -> tuple[FileEntry, ...]:
        sink = _Hashes()
        with source.open(0, None) as answer:
            refuse(answer, source.address)
            unpack(_ArchiveBytes(answer), sink, limits=way.limits, cancel=control.cancel)
        return tuple(sink.files)

    return with_retries(read, cancel=control.cancel, passing=(*PASSING, CorruptArchive))


class _Hashes:
    """Hashes what an archive holds."""

    def __init__(self) -> None:
        self.files: list[FileEntry] = []

    def make_directory(self, path: str) -> None:
        pass

    def add_file(self, path: str, content: memoryview, *, executable: bool) -> None:
        self.files.append(FileEntry(path, len(content), hashlib.sha256(content).hexdigest(), executable))

    @contextmanager
    def create_file(self, path: str, *, size: int, executable: bool) -> Iterator[Callable[[memoryview], None]]:
        total = hashlib.sha256()
        yield total.update
        self.files.append(FileEntry(path, size, total.hexdigest(), executable))


def _read_files(way: FromDirectory, target: Path, control: Control) -> Pulled:
    durable.empty_directory(target)
    progress = control.progress(sum(file.size for file in way.files))
    written = copy_files(
        way.files,
        way.directories,
        partial(read_stored, way.directory),
        target,
        workers=control.workers,
        cancel=control.cancel,
        on_bytes=progress.add,
    )
    progress.finish()
    return Pulled(written, moved_bytes=progress.done)


def _get_archive(way: GetArchive, ref: str, target: Path, control: Control, driver: SyncDriver, mover: Mover) -> Pulled:
    source = RangedObject(way.address, driver, mover)

    def begin() -> Pulled | memoryview:
        """Return the first bytes when the rest can be had by ranges, else all of it."""
        if not way.is_proxy:
            with source.open(0, PROBE) as answer:
                if source.accept(answer):
                    return read_all(answer, min(PROBE, source.size))
                if answer.status not in _RANGED:
                    return whole(answer)
        with source.open(0, None) as answer:
            return whole(answer)

    def whole(answer: Download) -> Pulled:
        refuse(answer, source.address)
        return _unpack(answer, target, control, way.limits)

    begun = with_retries(begin, cancel=control.cancel, passing=(*PASSING, CorruptArchive))
    return begun if isinstance(begun, Pulled) else pull_ranges(source, begun, target, ref, control, way.limits)


def _unpack(answer: Download, target: Path, control: Control, limits: Limits) -> Pulled:
    """Take an archive as it comes, from its first byte on."""
    if answer.status != 200:
        raise RegistryUnavailable(f"downloading the model: the server answered {answer.status}, not 200")
    durable.empty_directory(target)  # of what an earlier try has left
    sink = DirectorySink(target)
    progress = control.progress(answer.length or 0)
    unpack(_ArchiveBytes(answer), sink, limits=limits, cancel=control.cancel, on_bytes=progress.add)
    progress.finish()
    return Pulled(sink.finish(target).files, moved_bytes=progress.done)


class _ArchiveBytes:
    """A download as the archive reader wants it."""

    def __init__(self, answer: Download) -> None:
        self._answer = answer

    def read(self, size: int, /) -> bytes:
        buffer = bytearray(size)
        count = self._answer.readinto(memoryview(buffer))
        del buffer[count:]
        return bytes(buffer)


def read_stored(directory: Path, path: str, offset: int, view: memoryview) -> int:
    """Fill a buffer from a file below a directory of a store; return how many bytes there were."""
    try:
        with parent_below(os.path.realpath(directory), path) as (parent, name):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    except OSError as error:
        # Also when the version is replaced or deleted meanwhile: the next try sees the new state.
        raise RegistryUnavailable(f"the stored file {show(path)} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RegistryUnavailable(f"the stored {show(path)} is no regular file")
        return os.preadv(descriptor, [view], offset)
    finally:
        os.close(descriptor)

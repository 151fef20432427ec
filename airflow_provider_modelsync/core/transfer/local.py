"""Copying a model's files between directories of this machine, in parallel, hashing what is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry
from airflow_provider_modelsync.core.errors import from_os_error
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each

ReadInto = Callable[[str, int, memoryview], int]


def copy_files(
    files: Sequence[FileEntry],
    directories: Iterable[str],
    read_into: ReadInto,
    target: Path,
    *,
    workers: int,
    cancel: CancelToken,
    on_bytes: Callable[[int], None],
) -> tuple[FileEntry, ...]:
    """Write files below a directory.

    :param files: what to copy; their hashes are not relied on.
    :param directories: empty directories to make.
    :param read_into: fills a buffer with the bytes of a file, by its path, from an offset on, and returns how many
        there were.
    :param target: an empty directory.
    :param workers: threads.
    :param cancel: looked at once a block.
    :param on_bytes: called from worker threads with the number of bytes written.
    :return: what was written, with sizes and hashes as written, in the order of ``files``.
    :raises DiskFull: naming the target when it has no room left.
    """
    written: dict[str, FileEntry] = {}

    def copy_one(file: FileEntry, token: CancelToken) -> None:
        size, sha256 = _copy(file, read_into, target, token, on_bytes)
        written[file.path] = replace(file, size=size, sha256=sha256)

    try:
        for directory in sorted({os.path.dirname(file.path) for file in files} | set(directories)):
            (target / directory).mkdir(parents=True, exist_ok=True)
        for_each(copy_one, sorted(files, key=lambda file: -file.size), workers=workers, cancel=cancel)
    except OSError as error:
        raise from_os_error(error, f"writing the model's files in {os.path.realpath(target)}") from error
    return tuple(written[file.path] for file in files)


def _copy(
    file: FileEntry,
    read_into: ReadInto,
    target: Path,
    cancel: CancelToken,
    on_bytes: Callable[[int], None],
) -> tuple[int, str]:
    total = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(min(BLOCK, file.size)))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    sink = os.open(target / file.path, flags, durable.mode_of(file.executable))
    try:
        while rest := file.size - size:
            cancel.check()
            count = read_into(file.path, size, buffer[:rest])
            if not count:
                break
            block = buffer[:count]
            total.update(block)
            while block:
                block = block[os.write(sink, block) :]
            size += count
            on_bytes(count)
    finally:
        os.close(sink)
    return size, total.hexdigest()

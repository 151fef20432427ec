"""Carrying out download plans."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import RegistryUnavailable
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.local import copy_files
from airflow_provider_modelsync.core.transfer.plan import DownloadWay, FromDirectory


def download(way: DownloadWay, target: Path, size: int | None, control: Control) -> tuple[FileEntry, ...]:
    """Move a model's bytes out of its registry into an empty directory.

    :param way: where from and how.
    :param target: an empty directory.
    :param size: payload bytes, where they are known.
    :param control: how to cancel, what to tell.
    :return: the files that were written, hashed while they were.
    """
    progress = control.progress(size or 0)
    match way:
        case FromDirectory(directory, files, directories):
            written = copy_files(
                files,
                directories,
                partial(_open_stored, directory),
                target,
                workers=control.workers,
                cancel=control.cancel,
                on_bytes=progress.add,
            )
    progress.finish()
    return written


@contextmanager
def _open_stored(directory: Path, path: str) -> Iterator[int]:
    try:
        descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        # Also when the version is replaced or deleted meanwhile: the next try sees the new state.
        raise RegistryUnavailable(f"the stored file {show(path)} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RegistryUnavailable(f"the stored {show(path)} is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)

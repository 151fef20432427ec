"""Whether a file system can hold a model's names: tried, since nothing tells it beforehand."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import InvalidInput

# What file systems say of names that they do not take, or take for one that is there.
_REFUSED = {
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.EILSEQ, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
}


def require_held(directory: Path, files: Iterable[str], directories: Iterable[str] = ()) -> None:
    """Raise unless names that some file systems cannot hold can live below a directory, side by side.

    They are made there, empty, in a directory of their own that is removed again. Nothing is made for names that every
    file system holds.

    :param directory: where they are going to be written.
    :param files: paths of a model's files.
    :param directories: its empty directories.
    :raises InvalidInput: naming one that is refused, changed, or taken for another.
    """
    files = set(files)
    doubtful = names.doubts(sorted({*files, *directories}))
    if not doubtful:
        return
    with tempfile.TemporaryDirectory(dir=directory, prefix=f"{names.RESERVED_DIRECTORY}-names-") as scratch:
        for path, why in doubtful.items():
            try:
                _make(os.path.join(scratch, path), is_file=path in files)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                raise not_held(path, why) from error
        there = {
            os.path.relpath(os.path.join(place, name), scratch)
            for place, below, found in os.walk(scratch)
            for name in (*below, *found)
        }
    for path, why in doubtful.items():
        if path not in there:
            raise not_held(path, why)


def not_held(path: str, why: str) -> InvalidInput:
    """Return the error for a name that the target's file system cannot hold."""
    return InvalidInput(
        f"the target's file system cannot hold {names.show(path)}, which {why}",
        remedy="pull onto another one",
        argument="target",
    )


def _make(place: str, *, is_file: bool) -> None:
    os.makedirs(os.path.dirname(place) if is_file else place, exist_ok=True)
    if is_file:
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))

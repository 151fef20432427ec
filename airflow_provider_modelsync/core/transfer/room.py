"""Whether a disk has room for a model, asked before any of it is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from airflow_provider_modelsync.core.errors import DiskFull
from airflow_provider_modelsync.core.transfer.progress import readable

_BLOCK = 512  # bytes; what the kernel counts a file's room in


def require_room(directory: Path, size: int, *, staging: Path | None = None, argument: str | None = None) -> None:
    """Raise :class:`DiskFull` unless what a model still needs finds room.

    :param directory: where the model is going to be.
    :param size: the model's, in bytes.
    :param staging: what an earlier try has left there is part of the model.
    :param argument: the one to blame.
    """
    free = shutil.disk_usage(directory).free
    needed = size - (_held(staging) if staging else 0)
    if free < needed:
        raise DiskFull(f"{directory} has {readable(free)} free, the model needs {readable(needed)}", argument=argument)


def _held(directory: Path) -> int:
    """Return the bytes of disk that the files below a directory take."""
    files = (os.path.join(place, name) for place, _, names in os.walk(directory) for name in names)
    return sum(os.lstat(file).st_blocks * _BLOCK for file in files)

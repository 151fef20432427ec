"""Changes of files that hardly anything shows."""

from __future__ import annotations

import os
from pathlib import Path


def rewrite_and_set_back(path: Path, content: bytes) -> None:
    """Overwrite a file's first bytes and keep size and modification time, as `rsync -t --inplace` does.

    All that tells of it is the time of the last change, which the kernel takes from a clock that ticks some hundred
    times a second.
    """
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

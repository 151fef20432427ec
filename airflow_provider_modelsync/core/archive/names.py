"""Which paths a model may hold: one rule for what is pushed, pulled and unpacked.

A path that could lead elsewhere, or deceive whoever reads it, is refused at the push already. One that only some file
systems cannot hold is doubtful: it is warned of at the push, and tried where a pull is going to write it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from airflow_provider_modelsync.core.errors import UnsafeArchive
from airflow_provider_modelsync.core.text import HIDDEN

MAX_DEPTH = 32
MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255  # what Linux file systems take
RESERVED_DIRECTORY = ".modelsync"

_DRIVE = re.compile(r"[A-Za-z]:(/|$)")
_WINDOWS = set('<>:"|?*')  # what its file systems take for something else
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?")


def show(path: str) -> str:
    """Return a path fit for a message: quoted, everything unprintable escaped, cut at 200 characters."""
    text = ascii(path[:201])
    return text if len(text) <= 200 else f"{text[:200]}…"


def fault_of(path: str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_PATH_BYTES) -> str | None:
    """Say what is wrong with a relative POSIX path.

    :param path: the path of a file or directory inside a model.
    :param max_depth: segments allowed.
    :param max_bytes: length allowed, in UTF-8 bytes.
    :return: the reason for refusing it, or ``None`` when it is fine.
    """
    if HIDDEN.search(path):
        return "holds a control character, a direction mark or bytes that are not UTF-8"
    if "\\" in path:
        return "holds a backslash"
    if path.startswith("/") or _DRIVE.match(path):
        return "is not relative"
    if len(path.encode()) > max_bytes:
        return f"is longer than {max_bytes} bytes"
    segments = path.split("/")
    if len(segments) > max_depth:
        return f"is nested deeper than {max_depth} levels"
    for segment in segments:
        if segment in ("", ".", ".."):
            return "holds an empty, '.' or '..' segment"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"holds a segment longer than {MAX_SEGMENT_BYTES} bytes"
        if segment.casefold() == RESERVED_DIRECTORY:
            return f"holds {RESERVED_DIRECTORY!r}, which is reserved"
    return None


def require_safe(where: str, files: Iterable[str], directories: Iterable[str] = ()) -> None:
    """Raise :class:`UnsafeArchive` unless paths that a server tells may be made below one directory.

    :param where: what names them, for the message.
    :param files: of files.
    :param directories: of directories, empty ones too.
    """
    tree = PathTree()
    for path, is_file in [*((file, True) for file in files), *((entry, False) for entry in directories)]:
        if fault := fault_of(path):
            raise UnsafeArchive(f"{where} names {show(path)}, which {fault}")
        if clash := tree.add(path, is_file=is_file):
            raise UnsafeArchive(f"{where} names {show(clash)} and {show(path)}, which cannot lie side by side")


def clash_among(files: Iterable[str], directories: Iterable[str] = ()) -> tuple[str, str] | None:
    """Find two paths that cannot live in one directory tree: equal ones, and a file where another needs a directory.

    :return: the first such pair, or ``None``.
    """
    tree = PathTree()
    for path, is_file in [*((file, True) for file in files), *((entry, False) for entry in directories)]:
        if clash := tree.add(path, is_file=is_file):
            return clash, path
    return None


class PathTree:
    """Paths that can live in one directory tree, added one by one; each costs the same."""

    def __init__(self) -> None:
        self.directories: list[str] = []  # also those that are only named above another path, parents first
        self._is_file: dict[str, bool] = {}

    def add(self, path: str, *, is_file: bool) -> str | None:
        """Add a path and the directories above it.

        :return: an earlier path that it clashes with, as told at :func:`clash_among`, or ``None`` when it was added. A
            directory may be added again.
        """
        known = self._is_file.get(path)
        if known is not None:
            return path if known or is_file else None
        parent = path.rpartition("/")[0]
        if parent and (clash := self.add(parent, is_file=False)):
            return clash
        self._is_file[path] = is_file
        if not is_file:
            self.directories.append(path)
        return None


def twin_of(path: str, others: Iterable[str]) -> str | None:
    """Return the first of other paths that is equal to one but for case or Unicode form."""
    spelled = _folded(path)
    return next((other for other in others if _folded(other) == spelled), None)


def doubts(paths: Iterable[str]) -> dict[str, str]:
    """Say which paths some file systems cannot hold: those of Windows, and those that do not tell case apart.

    :param paths: files and empty directories of one model.
    :return: path → what it has that they cannot hold.
    """
    paths = list(paths)
    parts: dict[str, None] = {}
    for path in paths:
        part = path
        while part and part not in parts:
            parts[part] = None
            part = part.rpartition("/")[0]
    spellings: dict[str, list[str]] = {}  # of each path and each directory above one, by what is left of it there
    for part in parts:
        spellings.setdefault(_folded(part), []).append(part)
    faults: dict[str, str] = {}
    for same in spellings.values():
        for part in same:
            if len(same) > 1:
                other = same[1] if part == same[0] else same[0]
                faults[part] = f"differs from {show(other)} only in case or Unicode form"
            elif fault := _fault_on_windows(part.rpartition("/")[2]):
                faults[part] = fault
    found: dict[str, str] = {}
    for path in paths if faults else ():
        for part in _parts(path):
            if part in faults:
                found[path] = faults[part]
    return found


def _parts(path: str) -> list[str]:
    """Return a path and the directories above it, from the top."""
    segments = path.split("/")
    return ["/".join(segments[:depth]) for depth in range(1, len(segments) + 1)]


def _fault_on_windows(segment: str) -> str | None:
    if _DEVICE.fullmatch(segment):
        return f"holds the device name {segment!r}"
    if segment[-1:] in (".", " "):
        return "ends in a dot or a blank"
    if strange := sorted(set(segment) & _WINDOWS):
        return f"holds {' '.join(strange)}"
    return None


def _folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())

"""Publishing files on a local disk so that they are there as a whole or not at all, also after a crash.

Files are written into a staging directory on the target's own file system, made durable together, and renamed once.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("modelsync")

_ABANDONED_AFTER = 24 * 3600  # seconds
Keep = Callable[[Path, BaseException], bool]

_OURS = r"\.[0-9a-f]{12}"  # ends the names of everything that is not there to stay


@contextmanager
def staging(base: Path, *, keep: Keep | None = None) -> Iterator[Path]:
    """Yield an empty directory that no other live writer uses; whatever is left of it at the end is removed.

    A killed writer leaves its directory behind, unlocked: the next writer of the same ``base`` takes it up. While it is
    locked, or where locks do nothing, each writer gets a private one beside it. So a lock saves work and disk, but
    nothing depends on it.

    :param base: the wanted path; its parent exists. Staging directories of the same family share
        the name up to the last dot, and those abandoned for a day are swept.
    :param keep: asked after an error whether the directory is left to the next writer; then one that is taken up is
        not emptied.
    """
    stem = base.name.rpartition(".")[0]
    _sweep_directories(base.parent, re.compile(rf"{re.escape(stem)}{_OURS}({_OURS})?"))
    path, lock = _take(base) or _make_private(base)
    is_kept = False
    try:
        if keep is None:
            empty_directory(path)
        yield path
    except BaseException as error:
        is_kept = keep is not None and keep(path, error)
        raise
    finally:
        if not is_kept and _is_at(lock, path):  # once it is renamed into place, the path is free for the next writer
            remove_tree(path)
        os.close(lock)


def sweep(directory: Path) -> None:
    """Remove what writers killed a day ago or more left in a directory that holds no hidden names but ours."""
    family = re.compile(rf"\..+{_OURS}")
    _sweep_directories(directory, family)
    for path in directory.iterdir():
        with suppress(OSError):
            if family.fullmatch(path.name) and _is_abandoned(facts := path.lstat()) and stat.S_ISREG(facts.st_mode):
                path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a directory tree if it is there. A failure is logged, so that it never hides an earlier error."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)


def empty_directory(path: Path) -> None:
    """Remove everything below a directory."""
    for entry in path.iterdir():
        remove_entry(entry)


def remove_entry(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync_file_system(path: Path) -> None:
    """Make everything written to a path's file system durable, in one call however many files there are."""
    with _directory(path) as descriptor:
        if _syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with _directory(path) as descriptor:
        os.fsync(descriptor)


def create_file(path: Path, content: bytes) -> bool:
    """Create a file that appears with its whole content, durably, unless the name is taken.

    :return: whether this call created it.
    """
    scratch = _write_scratch(path, content)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    sync_directory(path.parent)
    return True


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place of whatever is there, durably; readers see the old or the new content."""
    _write_scratch(path, content).replace(path)
    sync_directory(path.parent)


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold a directory's lock while a few names in it change. Where locks do nothing, this does nothing."""
    with _directory(directory) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _write_scratch(path: Path, content: bytes) -> Path:
    scratch = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # Explicit, because the kernel stamps files in steps of some milliseconds, too coarse to order versions by.
        os.utime(file.fileno(), ns=(time.time_ns(), time.time_ns()))
        os.fsync(file.fileno())
    return scratch


def _take(base: Path) -> tuple[Path, int] | None:
    with suppress(FileExistsError):
        base.mkdir()
    try:
        lock = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if _try_lock(lock) and _is_at(lock, base):
        if _locks_work(lock):
            return base, lock
        with suppress(OSError):  # nobody uses it here, so nobody else would remove it
            base.rmdir()
    os.close(lock)
    return None


def _make_private(base: Path) -> tuple[Path, int]:
    path = base.with_name(f"{base.name}.{secrets.token_hex(6)}")
    path.mkdir()
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _try_lock(lock)
    return path, lock


def _sweep_directories(directory: Path, family: re.Pattern[str]) -> None:
    for path in directory.iterdir():
        if not family.fullmatch(path.name):
            continue
        with suppress(OSError), _directory(path) as lock:
            if _is_abandoned(os.fstat(lock)) and _try_lock(lock):
                remove_tree(path)


def _is_abandoned(facts: os.stat_result) -> bool:
    return time.time() - facts.st_mtime > _ABANDONED_AFTER


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locks_work(held: int) -> bool:
    """Whether a second lock on a directory that this process holds locked is refused, as it should be."""
    try:
        second = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
    except FileNotFoundError:  # somebody else has removed it, so the lock was worth nothing
        return False
    try:
        return not _try_lock(second)
    finally:
        os.close(second)


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def _syncfs(descriptor: int) -> int:
    if (function := _find_syncfs()) is None:  # not Linux: slower, but as safe
        os.sync()
        return 0
    return int(function(descriptor))

"""Publishing files on a local disk so that they are there as a whole or not at all, also after a crash.

Files are written into a staging directory on the target's own file system, made durable together, and renamed once.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modelsync.core import writer
from airflow_provider_modelsync.core.writer import Writer

log = logging.getLogger("modelsync")

_ABANDONED_AFTER = 24 * 3600  # seconds
_CLOCK_STEP, _CLOCK_LOOKS = 0.004, 4  # seconds
_PATIENCE = 3.0  # seconds: a kill must end in 4
_REST = 60  # seconds by which a disk's clock may run unevenly
_NAME_BYTES = 100  # of the wanted name in a hidden one: what is added takes up to 120 more, and 255 is the limit
_CONTENT, _OLD, _FILE = "model", "replaced", "file"
_SCRATCH = re.compile(r"\..+\.[0-9a-f]{12}")
_PRIVATE = re.compile(rf"\.(?P<stem>.+)\.(?P<key>[0-9a-f]{{12}})\.{writer.NAMED}-[0-9a-f]{{6}}", re.DOTALL)
Keep = Callable[[Path, BaseException], bool]

_in_use: set[str] = set()  # the names of this process's private directories
_retired: deque[int] = deque()  # descriptors that threads which come late may still lead through
_RETIRED = 16


class Staging:
    """A directory that one writer has for itself until it is published.

    :ivar path: what is going to be published; empty, or as an earlier try has left it. It leads through a descriptor,
        so what is written below it goes into this very directory, whatever becomes of the names above it.
    """

    def __init__(self, private: Path, descriptor: int) -> None:
        self.path = _anchored(private, descriptor) / _CONTENT
        self._descriptor = descriptor

    def publish(self, place: Path) -> bool:
        """Rename the directory into place, over an empty directory, too. Return whether the place was free."""
        try:
            os.rename(_CONTENT, place, src_dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise
        return True

    def put_file(self, place: Path, content: bytes) -> None:
        """Put a small file in place of whatever is there; readers see the old or the new content.

        It is as durable as the rest, once the file system is synced.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_FILE, flags, mode_of(), dir_fd=self._descriptor), "wb") as file:
            file.write(content)
        os.rename(_FILE, place, src_dir_fd=self._descriptor)

    def set_aside(self, place: Path) -> None:
        """Take what is at a place out of the way, if there is anything; it is removed at the end."""
        if _OLD in os.listdir(self._descriptor):
            _remove(_OLD, self._descriptor)
        with suppress(FileNotFoundError):  # somebody was faster
            os.rename(place, _OLD, dst_dir_fd=self._descriptor)

    def put_back(self, place: Path) -> None:
        """Undo the last :meth:`set_aside`, if there was one and the place was not taken meanwhile."""
        with suppress(OSError):
            if not os.path.lexists(place):
                os.rename(_OLD, place, src_dir_fd=self._descriptor)


@contextmanager
def staging(place: Path, key: str, *, keep: Keep | None = None) -> Iterator[Staging]:
    """Yield a directory that no other writer ever uses; whatever is left of it at the end is removed.

    It lies in a private one beside the place, ``.<name>.<key>.<writer>``, which nobody else may look into. The name
    tells its only writer. What a writer that is surely gone has left (of this user, on this machine) is taken up by
    one rename out of that writer's private directory, so no lock is needed and two never share anything. What others
    have left is passed over.

    The directory itself is made as any other is: the umask and its parent decide who may read it once it is published.

    :param place: the wanted path; its parent exists.
    :param key: 12 hex digits for the content: only what was meant to become the same is taken up.
    :param keep: asked after an error whether the directory is left to the next try; then what an earlier try has left
        is not emptied.
    """
    stem = stem_of(place)
    with _open_directory(place.parent) as above, _private(above, f".{stem}.{key}") as private:
        os.mkdir(_CONTENT, dir_fd=private.descriptor)
        _look_around(above, private, stem=stem, key=key, keep=keep)
        staged = Staging(place.with_name(private.name), private.descriptor)
        try:
            yield staged
        except BaseException as error:
            private.is_kept = keep is not None and keep(staged.path, error)
            raise


def sweep(directory: Path) -> None:
    """Remove what killed writers left in a directory that holds no hidden names but ours.

    Files go a day after they were written, private directories as :func:`clear_up` removes them. It is the disk's clock
    that counts: another machine may be writing there.
    """
    with _open_directory(directory) as above:
        files = [name for name in os.listdir(above) if _SCRATCH.fullmatch(name)]
        if not files and not any(_found(above, None)):
            return
        with _private(above, f".sweep.{secrets.token_hex(6)}") as private:
            now = os.fstat(private.descriptor).st_mtime
            for name in files:
                with suppress(OSError):
                    facts = os.stat(name, dir_fd=above, follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode) and now - facts.st_mtime > _ABANDONED_AFTER:
                        os.unlink(name, dir_fd=above)
            _look_around(above, private)


def clear_up(place: Path) -> None:
    """Remove what gone writers of a place have left beside it: at once when nobody can use it, or a day later."""
    stem = stem_of(place)
    with suppress(OSError), _open_directory(place.parent) as above:  # where nothing may be written, nothing was left
        if any(_found(above, stem)):
            with _private(above, f".{stem}.{secrets.token_hex(6)}") as private:
                _look_around(above, private, stem=stem)


def mode_of(executable: bool = False) -> int:
    """Return the mode to make a model's file with. The umask and the directory it is made in take from it."""
    return 0o777 if executable else 0o666


def remove_tree(path: Path) -> None:
    """Remove a directory tree if it is there. A failure is logged, so that it never hides an earlier error."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)


def what_keeps(place: Path) -> str | None:
    """Say what keeps this user from removing a directory with all that is in it; ``None``: nothing does."""
    if _is_sticky(place.parent) and place.lstat().st_uid != os.geteuid():
        return f"{place} belongs to another user"
    for directory, directories, files in os.walk(place):
        if not os.access(directory, os.W_OK | os.X_OK):
            return f"{directory} is write-protected"
        if _is_sticky(Path(directory)):
            for name in (*directories, *files):
                if os.lstat(entry := os.path.join(directory, name)).st_uid != os.geteuid():
                    return f"{entry} belongs to another user"
    return None


def _is_sticky(directory: Path) -> bool:
    """Whether names in a directory may be removed by their owners only, and not by this user."""
    facts = directory.stat()
    return bool(facts.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, facts.st_uid)


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
    with _open_directory(path) as descriptor:
        if _syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with _open_directory(path) as descriptor:
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


def _stamp(descriptor: int) -> None:
    """Stamp a file with the disk's own time, later than all stamps that it had given before.

    A disk stamps in steps of some milliseconds. Where they are much longer, files of one step look equally old.
    """
    written = os.fstat(descriptor).st_mtime_ns
    for _ in range(_CLOCK_LOOKS):
        time.sleep(_CLOCK_STEP)
        os.utime(descriptor)
        if os.fstat(descriptor).st_mtime_ns > written:
            return


def _write_scratch(path: Path, content: bytes) -> Path:
    scratch = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode_of())
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        _stamp(file.fileno())
        os.fsync(file.fileno())
    return scratch


@dataclass(slots=True)
class _Private:
    """A directory of this process alone."""

    name: str
    owner: Writer
    descriptor: int
    is_kept: bool = False


@contextmanager
def _private(above: int, prefix: str) -> Iterator[_Private]:
    """Yield a new private directory; it is removed at the end, or given up to the next try."""
    me, ending = writer.this_process(), secrets.token_hex(3)
    name = f"{prefix}.{me}-{ending}"
    _in_use.add(name)
    try:
        os.mkdir(name, 0o700, dir_fd=above)
        private = _Private(name, me, _open(name, above))
    except BaseException:
        _in_use.discard(name)
        raise
    is_over = False
    try:
        yield private
        is_over = True
    finally:
        if os.getpid() == me.pid:  # a fork's copy of this process has nothing to clean up
            _in_use.discard(name)
            if private.is_kept:
                with suppress(OSError):
                    os.rename(name, f"{prefix}.{me.nobody}-{ending}", src_dir_fd=above, dst_dir_fd=above)
            else:
                _empty(private.descriptor)
                _remove_directory(name, above, private.descriptor)
        if is_over:
            os.close(private.descriptor)
        else:
            _retire(private.descriptor)


def stem_of(place: Path) -> str:
    """Return what the hidden names begin with, after their dot, that stagings of a place have beside it."""
    return os.fsdecode(os.fsencode(place.name)[:_NAME_BYTES])


def _found(above: int, stem: str | None) -> Iterator[re.Match[str]]:
    """Yield the names of private directories that this process does not use; ``None`` is everybody's."""
    with suppress(PermissionError):  # names can be made there, but not listed: then nothing is taken up
        for name in os.listdir(above):
            if name not in _in_use and (found := _PRIVATE.fullmatch(name)) and stem in (None, found["stem"]):
                yield found


def _look_around(
    above: int, private: _Private, *, stem: str | None = None, key: str | None = None, keep: Keep | None = None
) -> None:
    """Take up or remove what gone writers have left beside a private directory.

    Either is done by moving it into that directory: from then on nothing of it can be published by anybody else, even
    if its writer should live against all evidence.

    :param key: of what is to be staged.
    :param keep: without it, that is not taken up, but removed as well.
    """
    me, own, adopts = private.owner, private.descriptor, keep is not None
    mine = os.fstat(own)
    for found in _found(above, stem):
        with suppress(OSError), _open_directory(found.string, above) as other:
            facts = os.fstat(other)
            # What the disk says of our own is what it says of all that is ours: some disks know no owners or modes.
            if facts.st_uid != mine.st_uid:
                continue
            it, is_same = Writer.of(found), found["key"] == key
            is_gone = it == me or writer.is_gone(it, me)
            is_useless = is_gone and (is_same or _CONTENT not in os.listdir(other))  # the rest was published
            if not is_useless and not _is_abandoned(it, me, mine.st_mtime - _youngest(other), is_gone=is_gone):
                continue
            if is_gone and is_same and adopts and stat.S_IMODE(facts.st_mode) == stat.S_IMODE(mine.st_mode):
                with suppress(FileNotFoundError):
                    os.rename(_CONTENT, _CONTENT, src_dir_fd=other, dst_dir_fd=own)
                    adopts = False
            _swallow(other, own)
            _remove_directory(found.string, above, other)


def _is_abandoned(it: Writer, me: Writer, age: float, *, is_gone: bool) -> bool:
    """Whether nobody is going to miss what a writer of this user has not touched for so long.

    Of another boot of this machine is what nobody has touched since this boot began: names of machines are copied.

    :param age: seconds, by the disk's clock.
    """
    if it.boot == me.boot:
        return (is_gone or it.space != me.space) and age > _ABANDONED_AFTER
    return it.host == me.host and age > writer.seconds_since_boot() + _REST


def _youngest(descriptor: int) -> float:
    """Return when anything in a directory was last written."""
    latest = os.fstat(descriptor).st_mtime
    for _, directories, files, place in os.fwalk(".", dir_fd=descriptor):
        for name in (*directories, *files):
            with suppress(FileNotFoundError):
                latest = max(latest, os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime)
    return latest


def _swallow(other: int, own: int) -> None:
    """Move all that is in a directory into another one, and remove it there."""
    for name in os.listdir(other):
        scratch = secrets.token_hex(6)
        os.rename(name, scratch, src_dir_fd=other, dst_dir_fd=own)
        _remove(scratch, own)


def _remove(name: str, directory: int) -> None:
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not remove %s: %s", name, error)


def _empty(descriptor: int) -> None:
    for name in os.listdir(descriptor):
        _remove(name, descriptor)


def _remove_directory(name: str, above: int, descriptor: int) -> None:
    """Remove an empty directory, if it still is the one that is open."""
    try:
        if os.path.samestat(os.stat(name, dir_fd=above, follow_symlinks=False), os.fstat(descriptor)):
            os.rmdir(name, dir_fd=above)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not remove %s: %s", name, error)


def _anchored(private: Path, descriptor: int) -> Path:
    """Return a path to an open directory that does not depend on any name, where the system has such paths."""
    anchor = Path(f"/proc/self/fd/{descriptor}")
    with suppress(OSError):
        if os.path.samestat(anchor.stat(), os.fstat(descriptor)):
            return anchor
    return private


def _retire(descriptor: int) -> None:
    """Close a descriptor later: a thread that was stuck in a system call must not find another directory behind it."""
    _retired.append(descriptor)
    while len(_retired) > _RETIRED:
        os.close(_retired.popleft())


@contextmanager
def _open_directory(path: Path | str, above: int | None = None) -> Iterator[int]:
    descriptor = _open(path, above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path | str, above: int | None = None) -> int:
    """Open a directory. One that the user has named may be a link, what lies beside others' files may not."""
    follow = os.O_NOFOLLOW if above is not None else 0
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | follow | os.O_CLOEXEC, dir_fd=above)


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def _syncfs(descriptor: int) -> int:
    if (function := _find_syncfs()) is None:  # not Linux: slower, but as safe
        os.sync()
        return 0
    return int(function(descriptor))

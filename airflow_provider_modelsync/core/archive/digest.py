"""A model's files, their hashes, and the digest over all of them.

The digest of a model is ``sha256:`` and the SHA-256 of its canonical manifest: for every regular file, sorted by the
UTF-8 bytes of its path, the line ``<sha256 of the file>␠␠<path>\\n``. That is what ``sha256sum`` prints, so it can be
checked by hand::

    export LC_ALL=C; find . -type f -print0 | sort -z | xargs -0 sha256sum | sed 's|  [.]/|  |' | sha256sum
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import InvalidInput, SourceChanged, from_os_error
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each

BLOCK = 1 << 20  # bytes read at a time: larger blocks hash no faster
HASH_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model.

    :param path: relative POSIX path.
    :param size: bytes.
    :param sha256: hex digest of the content.
    :param executable: whether the owner may execute it; nothing else of the mode is kept.
    """

    path: str
    size: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file was not touched: size in bytes, modification time in ns, inode."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Stamp:
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ino)


class Source(ABC):
    """A model to be pushed, wherever its bytes are. Safe to use from many threads.

    :ivar files: all files, sorted by the UTF-8 bytes of their paths, with their hashes.
    :ivar directories: the empty directories, sorted likewise.
    """

    __slots__ = ()

    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The model's digest, ``sha256:<hex>``."""
        return digest_of(self.files)

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(file.size for file in self.files)

    @abstractmethod
    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill a buffer with a file's bytes from an offset on, and return its length.

        :raises SourceChanged: when the file does not have so many bytes, or is not as it was when it was hashed.
        """

    def read(self, path: str, offset: int, length: int) -> memoryview:
        """Return a range of a file in a buffer of its own, which nobody may change. Errors as of :meth:`read_into`."""
        view = memoryview(bytearray(length))
        if length:
            self.read_into(path, offset, view)
        return view

    def head(self, path: str, limit: int) -> bytes:
        """Return a file's first bytes, all of it when it has at most ``limit``."""
        size = next(file.size for file in self.files if file.path == path)
        return bytes(self.read(path, 0, min(size, limit)))

    @abstractmethod
    def confirm(self, paths: Iterable[str]) -> None:
        """Raise unless what was read of some files is what was hashed; called once all of it has been sent."""


@dataclass(frozen=True, slots=True)
class SourceTree(Source):
    """A model on local disk, hashed.

    :param root: the directory that ``files`` and ``directories`` are relative to.
    :param files: all files, sorted by the UTF-8 bytes of their paths.
    :param directories: the empty directories, sorted likewise.
    :param stamps: path → what the file looked like when it was hashed.
    """

    root: Path
    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]
    stamps: dict[str, Stamp]

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        done = 0
        try:
            with self.open(path) as descriptor:
                while done < len(view):
                    count = os.preadv(descriptor, [view[done:]], offset + done)
                    if count == 0:
                        break  # it became shorter; what is compared at the end says so, too
                    done += count
        except OSError as error:
            raise from_os_error(error, f"reading {names.show(path)}", argument="source") from error
        if done < len(view):
            raise SourceChanged(f"{names.show(path)} ended early while the model was being read")
        return done

    def confirm(self, paths: Iterable[str]) -> None:
        """Nothing is left to do: every read has looked at the file's stamp."""

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Open a file for reading and yield its descriptor; it must be as it was when it was hashed, until the end.

        :raises SourceChanged: when it was replaced, truncated, touched or removed.
        """
        descriptor = _open(self.root, path)
        try:
            try:
                yield descriptor
            except OSError:  # as from a pipe that has taken the file's place
                _require_unchanged(descriptor, path, self.stamps[path])
                raise
            # Once is enough: whatever was read from this descriptor before, a change would show in its stamp now.
            _require_unchanged(descriptor, path, self.stamps[path])
        finally:
            os.close(descriptor)


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the digest ``sha256:<hex>`` of a set of files, in whatever order they come."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda entry: entry.path.encode()):
        total.update(f"{file.sha256}  {file.path}\n".encode())
    return f"sha256:{total.hexdigest()}"


def digest_directory(directory: str | os.PathLike[str]) -> str:
    """Return the digest of a directory or of a single file taken as a model.

    :raises InvalidInput: for links, special files and names that a model may not hold.
    """
    return read_tree(directory).digest


def read_tree(
    source: str | os.PathLike[str],
    *,
    cancel: CancelToken | None = None,
    on_bytes: Callable[[int], None] | None = None,
    remembered: MutableMapping[str, str] | None = None,
    leave_out: Container[str] = (),
) -> SourceTree:
    """Scan and hash a model.

    :param source: a directory, or a single file, which makes a model of one file under its base name.
    :param cancel: looked at once a block.
    :param on_bytes: called from worker threads with the number of bytes hashed.
    :param remembered: hashes of an earlier try, keyed by :func:`memory_key`; new ones are added.
    :param leave_out: names at the top of a directory that are not looked at.
    :raises InvalidInput: when the source is missing, empty, or holds a link, a special file or a bad name.
    :raises SourceChanged: when a file changes while it is read.
    """
    cancel = cancel or CancelToken()
    memory = {} if remembered is None else remembered
    root, stamps, executable, directories = _scan(Path(source), leave_out)
    hashes: dict[str, str] = {}

    def hash_one(path: str, token: CancelToken) -> None:
        key = memory_key(path, stamps[path])
        known = memory.get(key)
        if known is None:
            known = memory[key] = _hash_file(root, path, stamps[path], token, on_bytes)
        elif on_bytes is not None:
            on_bytes(stamps[path].size)
        hashes[path] = known

    # Large files first, so that no thread is left alone with one at the end.
    order = sorted(stamps, key=lambda path: -stamps[path].size)
    for_each(hash_one, order, workers=HASH_WORKERS, cancel=cancel)
    files = tuple(
        FileEntry(path, stamps[path].size, hashes[path], path in executable) for path in sorted(stamps, key=str.encode)
    )
    return SourceTree(root, files, tuple(sorted(directories, key=str.encode)), stamps)


def memory_key(path: str, stamp: Stamp) -> str:
    """Return the key under which a file's hash is remembered: another key as soon as the file was touched."""
    return f"{stamp.size}:{stamp.mtime_ns}:{stamp.inode}:{path}"


def _hash_file(root: Path, path: str, stamp: Stamp, cancel: CancelToken, on_bytes: Callable[[int], None] | None) -> str:
    total = hashlib.sha256()
    buffer = memoryview(bytearray(min(BLOCK, stamp.size)))
    rest = stamp.size
    descriptor = _open(root, path)
    try:
        while rest and (count := os.readv(descriptor, [buffer[:rest]])):
            cancel.check()
            total.update(buffer[:count])
            rest -= count
            if on_bytes is not None:
                on_bytes(count)
        _require_unchanged(descriptor, path, stamp)
    except OSError as error:
        raise from_os_error(error, f"reading {names.show(path)}", argument="source") from error
    finally:
        os.close(descriptor)
    return total.hexdigest()


def _open(root: Path, path: str) -> int:
    """Open a file of a model; a link is never followed, and a pipe never waited for."""
    try:
        return os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise from_os_error(error, f"reading {names.show(path)}", argument="source") from error
    except OSError as error:
        raise SourceChanged(f"{names.show(path)} cannot be opened any more: {error.strerror}") from error


def _require_unchanged(descriptor: int, path: str, stamp: Stamp) -> None:
    if Stamp.of(os.fstat(descriptor)) != stamp:
        raise SourceChanged(f"{names.show(path)} changed while the model was being read")


def _scan(source: Path, leave_out: Container[str]) -> tuple[Path, dict[str, Stamp], set[str], list[str]]:
    """Return root, stamps of all files, the paths of executable ones, and the empty directories."""
    stamps: dict[str, Stamp] = {}
    executable: set[str] = set()
    empty: list[str] = []

    def add_file(path: str, facts: os.stat_result) -> None:
        stamps[path] = Stamp.of(facts)
        if facts.st_mode & stat.S_IXUSR:
            executable.add(path)

    def walk(directory: str, prefix: str) -> None:
        with os.scandir(directory) as listing:
            entries = [entry for entry in listing if prefix or entry.name not in leave_out]
        if not entries and prefix:
            empty.append(prefix.rstrip("/"))
        for entry in entries:
            path = prefix + entry.name
            _refuse_bad_name(path)
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                walk(entry.path, f"{path}/")
            else:
                _refuse_unless_regular(path, facts)
                add_file(path, facts)

    shown = names.show(os.fspath(source))
    try:
        facts = source.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInput(f"{shown} does not exist", argument="source") from error
    except OSError as error:
        raise from_os_error(error, f"scanning {shown}", argument="source") from error
    try:
        if stat.S_ISDIR(facts.st_mode):
            root = source
            walk(os.fspath(source), "")
        else:
            root = source.parent
            _refuse_unless_regular(os.fspath(source), facts)
            _refuse_bad_name(source.name)
            add_file(source.name, facts)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceChanged(f"{shown} changed while it was being scanned: {error.strerror}") from error
    except OSError as error:
        raise from_os_error(error, f"scanning {shown}", argument="source") from error
    if not stamps:
        raise InvalidInput(f"{shown} holds no file", argument="source")
    if clash := names.clash_among(stamps, empty):
        raise InvalidInput(
            f"{names.show(clash[0])} and {names.show(clash[1])} differ only in case or Unicode form",
            argument="source",
        )
    return root, stamps, executable, empty


def _refuse_bad_name(path: str) -> None:
    if fault := names.fault_of(path):
        raise InvalidInput(f"the path {names.show(path)} {fault}", argument="source")


def _refuse_unless_regular(path: str, facts: os.stat_result) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise InvalidInput(f"{names.show(path)} is a symbolic link; models hold files only", argument="source")
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidInput(f"{names.show(path)} is neither a file nor a directory", argument="source")

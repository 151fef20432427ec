"""A model's files, their hashes, and the digest over all of them.

The digest of a model is ``sha256:`` and the SHA-256 of its canonical manifest: for every regular file, sorted by the
UTF-8 bytes of its path, the line ``<sha256 of the file>␠␠<path>\\n``. That is what ``sha256sum`` prints, so it can be
checked by hand::

    export LC_ALL=C; find . -type f -print0 | sort -z | xargs -0 sha256sum | sed 's|  [.]/|  |' | sha256sum

What is sent must be what was hashed. Times do not prove that: a writer through a memory map leaves them as they are. So
the hash pass also takes checksums, at the end of every :data:`SPAN`, and each read is compared with them before anybody
sees a byte. Where the destination itself refuses a file that has not its hash, both are saved; where it refuses a part
that has not its checksum, the comparison is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.checksums import Checksum, carried, checksum_for
from airflow_provider_modelsync.core.archive.choice import EVERYTHING, Choice
from airflow_provider_modelsync.core.archive.snapshots import Snapshot
from airflow_provider_modelsync.core.errors import InvalidInput, SourceChanged, from_os_error
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each

BLOCK = 1 << 20  # bytes read at a time: larger blocks hash no faster
SMALL = 1 << 16  # bytes up to which files are hashed by one thread: what many cost is Python, which they would wait for
SPAN = 1 << 17  # bytes of a file from one checksum to the next: what is read beside a range that begins between them
HASH_WORKERS = min(4, os.cpu_count() or 1)

FollowLinks = Literal["inside", "never"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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


class Stamp(NamedTuple):
    """What tells that a file was not touched: size in bytes, times in ns, and which file it is.

    Whoever sets a file's modification time back, as ``rsync -t`` does, cannot set back the time of that change.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Stamp:
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)


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

    def read(self, path: str, offset: int, length: int, memory: Callable[[], memoryview] | None = None) -> memoryview:
        """Return a range of a file, which nobody may change as long as it is used. Errors as of :meth:`read_into`.

        :param memory: returns a buffer of that length, which may be taken instead of a new one.
        """
        view = memoryview(bytearray(length)) if memory is None else memory()
        if length:
            self.read_into(path, offset, view)
        return view

    def head(self, path: str, limit: int) -> bytes:
        """Return a file's first bytes, all of it when it has at most ``limit``."""
        size = next(file.size for file in self.files if file.path == path)
        return bytes(self.read(path, 0, min(size, limit)))

    def loose(self, path: str) -> LooseFile | None:
        """Return a file to be read without any comparison, where there is one on this machine.

        For destinations that refuse bytes which are not those that were hashed.
        """
        return None

    def checked(self, path: str, start: int, length: int) -> Mapping[str, int]:
        """Return the checksums of a range as it was hashed, by their kinds, as far as they are known."""
        return {}

    def prepare(self, paths: Iterable[str], cancel: CancelToken) -> None:  # noqa: B027
        """Get ready for reading some files; what takes long is done here, while no request is open."""

    def recheck(self, path: str, cancel: CancelToken) -> None:  # noqa: B027
        """Look why a destination has refused a file's bytes.

        :raises SourceChanged: when the file is not what was hashed.
        """

    @abstractmethod
    def confirm(self, paths: Iterable[str]) -> None:
        """Raise unless what was read of some files is what was hashed; called once all of it has been sent."""


@dataclass(frozen=True, slots=True)
class LooseFile:
    """A file of this machine, read as it is.

    :param place: where it is.
    :param path: of the model, for messages.
    :param stamp: what it looked like when it was hashed.
    """

    place: str
    path: str
    stamp: Stamp

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yield a descriptor of the file.

        :raises SourceChanged: when it was touched since it was hashed, before or meanwhile.
        """
        with _unchanged(self.place, self.path, self.stamp) as descriptor:
            yield descriptor

    def read_into(self, descriptor: int, offset: int, view: memoryview) -> None:
        """Fill a buffer from an offset on.

        :raises SourceChanged: when the file has not so many bytes.
        """
        with _reading(self.path):
            if not _fill(descriptor, offset, view):
                raise _changed(self.path)


class Ahead(Protocol):
    """Takes large files to where they are going while it hashes them, so that they are read once."""

    def choose(self, files: Iterable[LooseFile]) -> Set[str]:
        """Return the paths of the files that it takes, of all of a model."""

    def hash(self, cancel: CancelToken) -> Mapping[str, str]:
        """Return the hashes of what it has taken; the others are hashed as all are.

        :raises SourceChanged: when a file changes while it is read.
        """


@dataclass(frozen=True, slots=True)
class SourceTree(Source):
    """A model on local disk, hashed.

    :param root: the directory that ``files`` and ``directories`` are relative to.
    :param files: all files, sorted by the UTF-8 bytes of their paths.
    :param directories: the empty directories, sorted likewise.
    :param stamps: path → what the file looked like when it was hashed.
    :param places: path → where the file is, for those that are elsewhere: links lead to them.
    :param left_out: what was left out though nobody has asked for it, a directory with a slash at its end.
    :param checksums: path → at the end of each of its spans, the checksum of the file up to there. Files whose hashes
        were remembered, or that are going to be proved by others or went ahead, have none until they are read.
    :param checksum: makes them, see :func:`~.checksums.checksum_for`.
    """

    root: Path
    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]
    stamps: dict[str, Stamp]
    places: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = field(default=(), compare=False)
    checksums: MutableMapping[str, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)
    checksum: Checksum = field(default_factory=partial(checksum_for, 0), compare=False, repr=False)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        if path not in self.checksums:
            self.prepare([path], CancelToken())
        stamp, place = self.stamps[path], self._place(path)
        with _reading(path):
            descriptor = _open(place, path)
            try:
                is_true = _fill(descriptor, offset, view) and self._is_true(descriptor, path, offset, view)
                _require_unchanged(descriptor, path, stamp)  # once is enough: a change before would show, too
            except OSError:
                _require_unchanged(descriptor, path, stamp)  # what it has become says more than how reading that fails
                raise
            finally:
                os.close(descriptor)
        if not is_true:
            raise _changed(path)
        return len(view)

    def checked(self, path: str, start: int, length: int) -> Mapping[str, int]:
        sums, end = self.checksums.get(path), start + length
        if sums is None or start % SPAN or (end % SPAN and end != self.stamps[path].size):
            return {}
        before, whole = (sums[-(-place // SPAN) - 1] if place else 0 for place in (start, end))
        kind = self.checksum.kind
        return {kind: whole ^ carried(kind, before, length)}

    def prepare(self, paths: Iterable[str], cancel: CancelToken) -> None:
        """Hash files again whose hashes were remembered, and so have no checksums to compare reads with.

        :raises SourceChanged: when a file is not what was remembered of it.
        """
        missing = [path for path in paths if path not in self.checksums]
        if missing:
            hashes = {file.path: file.sha256 for file in self.files}

            def check(path: str, token: CancelToken) -> None:
                found = _hash_file(self._place(path), path, self.stamps[path], token, None, self.checksum)
                if found[0] != hashes[path]:
                    raise _changed(path)
                self.checksums[path] = found[1]

            for_each(check, missing, workers=HASH_WORKERS, cancel=cancel)

    def loose(self, path: str) -> LooseFile:
        return LooseFile(self._place(path), path, self.stamps[path])

    def recheck(self, path: str, cancel: CancelToken) -> None:
        found, _ = _hash_file(self._place(path), path, self.stamps[path], cancel, None, None)
        if found != next(file.sha256 for file in self.files if file.path == path):
            raise _changed(path)

    def confirm(self, paths: Iterable[str]) -> None:
        """Nothing is left to do: every read has been compared."""

    def _place(self, path: str) -> str:
        return self.places.get(path) or f"{self.root}/{path}"

    def _is_true(self, descriptor: int, path: str, offset: int, view: memoryview) -> bool:
        """Whether bytes that were read are those that were hashed: with the rest of the spans that they are in."""
        sums, take, end = self.checksums[path], self.checksum.take, offset + len(view)
        first, last = offset // SPAN, -(-end // SPAN)
        start, stop = first * SPAN, min(last * SPAN, self.stamps[path].size)
        found = sums[first - 1] if first else 0
        if start < offset:
            found = take(os.pread(descriptor, offset - start, start), found)
        found = take(view, found)
        if end < stop:
            found = take(os.pread(descriptor, stop - end, end), found)
        return last == 0 or found == sums[last - 1]


class Proof:
    """Hashes content as it comes, and tells whether it is what was promised.

    :param size: bytes of the content.
    :param sha256: what it should hash to; empty when that is not told.
    :param blob: git's id of it, the SHA-1 of ``blob <size>\\0<content>``, where that is what is told.
    """

    def __init__(self, size: int, sha256: str, blob: str | None = None) -> None:
        self._size = size
        self._sha256 = sha256
        self._blob = None if sha256 else blob
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self._total = hashlib.sha256()
        self._git = None if self._blob is None else hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)

    def update(self, block: memoryview) -> None:
        """Take the next bytes."""
        self._total.update(block)
        if self._git is not None:
            self._git.update(block)

    @property
    def sha256(self) -> str:
        """Hex digest of what has come."""
        return self._total.hexdigest()

    @property
    def holds(self) -> bool:
        """Whether what has come is what was promised, as far as anything was."""
        if self._git is not None:
            return self._git.hexdigest() == self._blob
        return self._sha256 in ("", self.sha256)


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the digest ``sha256:<hex>`` of a set of files, in whatever order they come."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda entry: entry.path.encode()):
        total.update(f"{file.sha256}  {file.path}\n".encode())
    return f"sha256:{total.hexdigest()}"


def digest_directory(directory: str | os.PathLike[str], *, follow_links: FollowLinks = "inside") -> str:
    """Return the digest of a directory or of a single file taken as a model.

    :param follow_links: as for :func:`read_tree`.
    :raises InvalidInput: for links that are not followed, special files and names that a model may not hold.
    """
    return read_tree(directory, follow_links=follow_links).digest


def read_tree(
    source: str | os.PathLike[str],
    *,
    cancel: CancelToken | None = None,
    on_bytes: Callable[[int], None] | None = None,
    remembered: MutableMapping[str, str] | None = None,
    leave_out: Mapping[str, str | None] | None = None,
    follow_links: FollowLinks = "never",
    choice: Choice = EVERYTHING,
    is_proved: bool = False,
    checked: str | None = None,
    ahead: Ahead | None = None,
) -> SourceTree:
    """Scan and hash a model.

    :param source: a directory, or a single file, which makes a model of one file under its base name. It may be a link,
        and so may any directory above it: what is named is resolved once.
    :param cancel: looked at once a block.
    :param on_bytes: called from worker threads with the number of bytes hashed.
    :param remembered: hashes of an earlier try, keyed by :func:`memory_key`; new ones are added.
    :param leave_out: names at the top of a directory that are not looked at: always, or beside the file that is named.
    :param follow_links: ``"inside"`` reads links to files as these files, as long as they lie below the source, or
        below the cache that a Hugging Face snapshot belongs to; ``"never"`` refuses all links in the source.
    :param choice: which files take part; what does not is not looked at.
    :param is_proved: whether somebody else is going to compare the files with their hashes, so that no checksums are
        needed.
    :param checked: the kind of checksum that somebody else is going to compare what is read with.
    :param ahead: takes some of the files, once all others are hashed. Such whose hashes are remembered are hashed once
        more then, as is all that is going to be sent.
    :raises InvalidInput: when the source is missing, empty, or holds a link that is not followed, a special file or a
        bad name.
    :raises SourceChanged: when a file changes while it is read.
    """
    cancel = cancel or CancelToken()
    scan = _Scan(Path(source), leave_out or {}, follow_links, choice)
    stamps, places = scan.stamps, scan.places
    hashes: dict[str, str] = {}
    checksum = checksum_for(0 if is_proved else sum(stamp.size for stamp in stamps.values()), checked)
    summed_by = None if is_proved else checksum
    checksums: dict[str, Sequence[int]] = {}

    def place_of(path: str) -> str:
        return places.get(path) or f"{scan.root}/{path}"

    def hash_one(path: str, token: CancelToken, buffer: memoryview | None = None) -> None:
        if buffer is None:
            hashes[path], sums = _hash_file(place_of(path), path, stamps[path], token, on_bytes, summed_by)
        else:
            hashes[path], sums = _hash_small(place_of(path), path, stamps[path], buffer, summed_by)
            if on_bytes is not None:
                on_bytes(stamps[path].size)
        if summed_by is not None:
            checksums[path] = sums

    def hash_some(some: Sequence[str], token: CancelToken) -> None:
        if len(some) == 1:
            hash_one(some[0], token)
            return
        buffer = memoryview(bytearray(SMALL))
        for path in some:
            token.check()
            hash_one(path, token, buffer)

    def hash_all(paths: Sequence[str]) -> None:
        # Large ones first, so that no thread is left alone with one at the end; beside them one takes all small ones.
        order = sorted((path for path in paths if stamps[path].size > SMALL), key=lambda path: -stamps[path].size)
        small = [path for path in paths if stamps[path].size <= SMALL]
        some = [*([small] if small else []), *([path] for path in order)]
        for_each(hash_some, some, workers=HASH_WORKERS, cancel=cancel)

    keys = {} if remembered is None else {path: memory_key(path, stamp) for path, stamp in stamps.items()}
    if remembered:
        hashes |= {path: remembered[key] for path, key in keys.items() if key in remembered}
        if on_bytes is not None:
            on_bytes(sum(stamps[path].size for path in hashes))
    if ahead is not None:
        taken = ahead.choose(LooseFile(place_of(path), path, stamp) for path, stamp in stamps.items())
        hash_all([path for path in stamps if path not in hashes and path not in taken])
        hashes |= ahead.hash(cancel)
    hash_all([path for path in stamps if path not in hashes])
    if remembered is not None:
        remembered.update({key: hashes[path] for path, key in keys.items()})
    files = tuple(
        FileEntry(path, stamps[path].size, hashes[path], path in scan.executable)
        for path in sorted(stamps, key=str.encode)
    )
    directories = tuple(sorted(scan.empty, key=str.encode))
    return SourceTree(
        Path(scan.root), files, directories, stamps, places, tuple(sorted(scan.left_out)), checksums, checksum
    )


def memory_key(path: str, stamp: Stamp) -> str:
    """Return the key under which a file's hash is remembered: another key as soon as the file was touched."""
    return f"{stamp.size}:{stamp.mtime_ns}:{stamp.ctime_ns}:{stamp.device}:{stamp.inode}:{path}"


def _hash_file(
    place: str,
    path: str,
    stamp: Stamp,
    cancel: CancelToken,
    on_bytes: Callable[[int], None] | None,
    checksum: Checksum | None,
) -> tuple[str, Sequence[int]]:
    """Return a file's hash and its checksums, where these are wanted, both of the very same bytes."""
    total = hashlib.sha256()
    checksums = array("Q")
    buffer = memoryview(bytearray(min(BLOCK, stamp.size)))
    done = found = 0
    try:
        with _unchanged(place, path, stamp) as descriptor:
            while done < stamp.size:
                block = buffer[: stamp.size - done]
                filled = 0
                while filled < len(block) and (count := os.readv(descriptor, [block[filled:]])):
                    cancel.check()
                    filled += count
                    if on_bytes is not None:
                        on_bytes(count)
                if filled < len(block):
                    break  # it became shorter, as its stamp says
                total.update(block)
                if checksum is not None:
                    for start in range(0, filled, SPAN):
                        found = checksum.take(block[start : start + SPAN], found)
                        checksums.append(found)
                done += filled
    except OSError as error:
        raise from_os_error(error, f"reading {names.show(path)}", argument="source") from error
    if done < stamp.size:
        raise _changed(path)
    return total.hexdigest(), checksums


def _hash_small(
    place: str, path: str, stamp: Stamp, buffer: memoryview, checksum: Checksum | None
) -> tuple[str, Sequence[int]]:
    """Return the same of a file that fits a buffer."""
    view = buffer[: stamp.size]
    with _reading(path):
        descriptor = _open(place, path)
        try:
            is_whole = _fill(descriptor, 0, view)
            _require_unchanged(descriptor, path, stamp)
        except OSError:
            _require_unchanged(descriptor, path, stamp)
            raise
        finally:
            os.close(descriptor)
    if not is_whole:
        raise _changed(path)
    return hashlib.sha256(view).hexdigest(), () if checksum is None else (checksum.take(view),)


class _reading:  # noqa: N801  # a generator would cost a small file as much as reading it
    """Names the file in errors of the disk."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise from_os_error(error, f"reading {names.show(self._path)}", argument="source") from error


def _open(place: str, path: str) -> int:
    """Open a file of a model; a link is never followed, and a pipe never waited for."""
    try:
        return os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        raise
    except OSError as error:
        raise SourceChanged(f"{names.show(path)} cannot be opened any more: {error.strerror}") from error


def _fill(descriptor: int, offset: int, view: memoryview) -> bool:
    """Fill a buffer from a file; return whether the file has so many bytes."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            return False
        done += count
    return True


@contextmanager
def _unchanged(place: str, path: str, stamp: Stamp) -> Iterator[int]:
    """Open a file of a model and yield its descriptor; another one is never read."""
    descriptor = _open(place, path)
    try:
        _require_unchanged(descriptor, path, stamp)
        try:
            yield descriptor
        except OSError:
            _require_unchanged(descriptor, path, stamp)
            raise
        _require_unchanged(descriptor, path, stamp)
    finally:
        os.close(descriptor)


def _require_unchanged(descriptor: int, path: str, stamp: Stamp) -> None:
    if Stamp.of(os.fstat(descriptor)) != stamp:
        raise _changed(path)


def _changed(path: str) -> SourceChanged:
    return SourceChanged(f"{names.show(path)} changed while the model was being read")


class _Scan:
    """What lies in a source, found without following a link that somebody may have put in a directory's place.

    :ivar root: the source, or the directory that it is in, resolved.
    :ivar stamps: of all files.
    :ivar places: path → where the file is that a link leads to.
    :ivar executable: paths of the files that may be executed.
    :ivar empty: the empty directories.
    :ivar left_out: as of :class:`SourceTree`.
    """

    def __init__(
        self, source: Path, leave_out: Mapping[str, str | None], follow_links: FollowLinks, choice: Choice
    ) -> None:
        self.stamps: dict[str, Stamp] = {}
        self.places: dict[str, str] = {}
        self.executable: set[str] = set()
        self.empty: list[str] = []
        self.left_out: list[str] = []
        self._leave_out = leave_out
        self._choice = choice
        self._follows = follow_links == "inside"
        shown = names.show(os.fspath(source))
        try:
            self.root = os.path.realpath(source)
            try:
                facts = os.lstat(self.root)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise InvalidInput(f"{shown} does not exist", argument="source") from error
            if stat.S_ISDIR(facts.st_mode):
                snapshot = Snapshot.around(self.root)
                self._bounds = [self.root, *(snapshot.bounds if snapshot else ())]
                self._walk_from(os.open(self.root, _DIRECTORY), "")
                if snapshot:
                    snapshot.require_whole({path: stamp.size for path, stamp in self.stamps.items()}, choice)
            else:
                _require_regular(os.fspath(source), facts)
                self._add_single(source.name, facts)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceChanged(f"{shown} changed while it was being scanned: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link has taken a directory's place
                raise SourceChanged(f"{shown} changed while it was being scanned: {error.strerror}") from error
            raise from_os_error(error, f"scanning {shown}", argument="source") from error
        if not self.stamps:
            chosen = "" if choice.is_all else f" that is chosen by {choice}"
            raise InvalidInput(f"{shown} holds no file{chosen}", argument="source")

    def _add_single(self, name: str, facts: os.stat_result) -> None:
        """Add the one file of the source; it is called as the user has called it."""
        if self._is_left_out(name, is_directory=False):
            return
        _refuse_bad_name(name)
        if name != os.path.basename(self.root):
            self.places[name] = self.root
        self.root = os.path.dirname(self.root)
        self._add_file(name, facts)

    def _add_file(self, path: str, facts: os.stat_result) -> None:
        self.stamps[path] = Stamp.of(facts)
        if facts.st_mode & stat.S_IXUSR:
            self.executable.add(path)

    def _walk_from(self, descriptor: int, prefix: str) -> None:
        try:
            self._walk(descriptor, prefix)
        finally:
            os.close(descriptor)

    def _walk(self, descriptor: int, prefix: str) -> None:
        with os.scandir(descriptor) as listing:
            entries = list(listing)
        if not prefix:
            beside: set[str | None] = {None, *(entry.name for entry in entries)}
            rules = self._leave_out
            entries = [one for one in entries if one.name not in rules or rules[one.name] not in beside]
        if not entries and prefix and self._choice.takes_directory(prefix[:-1]):
            self.empty.append(prefix[:-1])
        for entry in entries:
            path = prefix + entry.name
            facts = entry.stat(follow_symlinks=False)
            is_directory = stat.S_ISDIR(facts.st_mode)
            if self._is_left_out(f"{path}/" if is_directory else path, is_directory=is_directory):
                continue
            _refuse_bad_name(path)
            if is_directory:
                self._walk_from(os.open(entry.name, _DIRECTORY, dir_fd=descriptor), f"{path}/")
                continue
            if stat.S_ISLNK(facts.st_mode):
                facts = self._follow(path)
            _require_regular(path, facts)
            self._add_file(path, facts)

    def _is_left_out(self, path: str, *, is_directory: bool) -> bool:
        if self._choice.leaves_out(path):
            if self._choice.is_habit(path):
                self.left_out.append(path)
            return True
        return not (is_directory or self._choice.takes(path))

    def _follow(self, path: str) -> os.stat_result:
        """Return what a link leads to, and note where that is."""
        link = f"{names.show(path)} is a symbolic link"
        if not self._follows:
            raise InvalidInput(f"{link}; models hold files only", argument="source")
        try:
            place = os.path.realpath(f"{self.root}/{path}", strict=True)
        except PermissionError:
            raise
        except OSError as error:
            raise InvalidInput(f"{link} that leads nowhere: {error.strerror}", argument="source") from error
        bound = next((bound for bound in self._bounds if place.startswith(f"{bound}/")), None)
        if bound is None:
            raise InvalidInput(f"{link} that leads out of the source", argument="source")
        facts = _stat_below(bound, place.removeprefix(f"{bound}/"))
        if stat.S_ISDIR(facts.st_mode):
            raise InvalidInput(f"{link} to a directory; only links to files are followed", argument="source")
        self.places[path] = place
        return facts


@contextmanager
def parent_below(root: str | os.PathLike[str], path: str) -> Iterator[tuple[int, str]]:
    """Yield the directory that a path below another one leads to, opened, and the name in it; no link is followed.

    :raises OSError: when there is none, or a link has come between them by now.
    """
    *parents, name = path.split("/")
    descriptor = os.open(root, _DIRECTORY)
    try:
        for parent in parents:
            below = os.open(parent, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor, name
    finally:
        os.close(descriptor)


def _stat_below(bound: str, path: str) -> os.stat_result:
    """Look at a file below a directory."""
    with parent_below(bound, path) as (descriptor, name):
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)


def _refuse_bad_name(path: str) -> None:
    if fault := names.fault_of(path):
        raise InvalidInput(f"the path {names.show(path)} {fault}", argument="source")


def _require_regular(path: str, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidInput(f"{names.show(path)} is neither a file nor a directory", argument="source")

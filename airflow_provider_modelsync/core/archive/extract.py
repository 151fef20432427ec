"""Unpacking an archive that nobody vouches for.

Members are read here rather than by :mod:`tarfile`, whose filters have let archives write outside of the target and
which takes cut archives for whole ones. Accepted are directories and regular files with names that :mod:`.names`
allows; what two readers could understand differently is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from airflow_provider_modelsync.core import durable, places
from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, SourceTree, Stamp
from airflow_provider_modelsync.core.archive.holds import not_held
from airflow_provider_modelsync.core.errors import (
    CorruptArchive,
    InvalidInput,
    ModelSyncError,
    TargetExists,
    UnsafeArchive,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken

_TAR_BLOCK = 512
_ZEROS = bytes(_TAR_BLOCK)
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_BLOCK = 1 << 16  # zlib copies what it could not unpack yet, so it gets little at a time
_GZIP_HEADROOM = 16 << 20  # unpacked bytes for which the ratio may be exceeded before all of the archive is seen
_MAX_EXTENSION = 1 << 16  # bytes of a pax header or a GNU long name
_MAX_PADDING = 4 << 20  # bytes of zeros after the end: tar's largest blocks have 2 MiB
_UNTOLD = 1 << 20  # bytes beyond what was told: a system may not count what it has added itself
_MAX_SIZE = 1 << 50  # a pebibyte: no file of a model is that large, so another try cannot help
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OCTAL_SIZE_LIMIT = 0o77777777777  # what writers put in the header when the true size is in a pax record
_POSIX, _GNU, _OLD = b"ustar\0", b"ustar ", bytes(6)

_REFUSED_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"D": "an incremental directory",
    b"K": "a link with a long target",
    b"M": "part of a multi-volume archive",
    b"S": "a sparse file",
    b"V": "a volume label",
}

_LOOKS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<", "markup"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"pk\x03\x04", "a zip archive"),
    (b"bzh", "a bzip2 archive"),
    (b"\xfd7zxz", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (_GZIP_MAGIC, "gzip once more"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold.

    :param max_members: members, and directories to be made for them.
    :param max_depth: segments of a path.
    :param max_name_bytes: UTF-8 bytes of a path.
    :param max_bytes: content of all files together; ``None`` is no limit.
    :param max_ratio: unpacked bytes per byte of a gzip archive.
    :param told_bytes: what somebody has said that all files together hold; much more is a :class:`CorruptArchive`.
    """

    max_members: int = 100_000
    max_depth: int = names.MAX_DEPTH
    max_name_bytes: int = names.MAX_PATH_BYTES
    max_bytes: int | None = None
    max_ratio: int = 200
    told_bytes: int | None = None


class Stream(Protocol):
    """A binary reader; it need not seek."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none only at the end."""
        ...


class SkippingStream(Stream, Protocol):
    """A stream that can leave bytes out."""

    def skip(self, count: int, /) -> None:
        """Go on that many bytes later."""
        ...


# Called with path, size, whether it is executable, and the offset of its content in the archive.
PutAside = Callable[[str, int, bool, int], bool]


class Sink(Protocol):
    """Where the members of an archive go. All paths are checked, and parents come before what is in them."""

    def make_directory(self, path: str) -> None:
        """Make a directory that does not exist yet."""
        ...

    def add_file(self, path: str, content: memoryview, *, executable: bool) -> None:
        """Make a file that does not exist yet, of content that is there as a whole: most small files' is."""
        ...

    def create_file(
        self, path: str, *, size: int, executable: bool
    ) -> AbstractContextManager[Callable[[memoryview], None]]:
        """Make a file that does not exist yet.

        :return: entered, what to call with each block of the content, which is valid for that call only; left without
            an error, the file is complete.
        """
        ...


class DirectorySink:
    """Writes files and directories to an empty directory, and hashes what it writes.

    :param root: the directory; nobody else may be able to write to it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.fspath(root)
        self._files: list[FileEntry] = []
        self._stamps: dict[str, Stamp] = {}
        self._directories: list[str] = []

    def make_directory(self, path: str) -> None:
        with _writing(path):
            os.mkdir(f"{self._root}/{path}")
        self._directories.append(path)

    def add_file(self, path: str, content: memoryview, *, executable: bool) -> None:
        try:
            descriptor = os.open(f"{self._root}/{path}", _CREATE, durable.mode_of(executable))
            try:
                _write(descriptor, content)
                self._stamps[path] = Stamp.of(os.fstat(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _not_written(path, error) from error
        self._files.append(FileEntry(path, len(content), hashlib.sha256(content).hexdigest(), executable))

    @contextmanager
    def create_file(self, path: str, *, size: int, executable: bool) -> Iterator[Callable[[memoryview], None]]:
        total = hashlib.sha256()

        def write(block: memoryview) -> None:
            total.update(block)
            _write(descriptor, block)

        with _writing(path):
            descriptor = os.open(f"{self._root}/{path}", _CREATE, durable.mode_of(executable))
            try:
                yield write
                self._stamps[path] = Stamp.of(os.fstat(descriptor))
            finally:
                os.close(descriptor)
        self._files.append(FileEntry(path, size, total.hexdigest(), executable))

    def finish(self, root: str | os.PathLike[str]) -> SourceTree:
        """Make everything in the directory durable.

        :param root: where the directory is going to be.
        :return: the model that was written.
        """
        with _writing(self._root):
            durable.sync_file_system(Path(self._root))
        parents = {path.rpartition("/")[0] for path in (*self._stamps, *self._directories)}
        return SourceTree(
            Path(root),
            tuple(sorted(self._files, key=lambda file: file.path.encode())),
            tuple(sorted((path for path in self._directories if path not in parents), key=str.encode)),
            self._stamps,
        )


def extract_archive(
    archive: str | os.PathLike[str] | Stream,
    target: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
) -> SourceTree:
    """Unpack a tar or gzipped tar. The target appears complete or not at all.

    :param archive: a path, or a binary reader, which is read to its end but not closed.
    :param target: a directory that is absent or empty.
    :param limits: how much the archive may hold.
    :return: the files and empty directories, hashed while they were written.
    :raises UnsafeArchive: when the archive holds what must not be unpacked, or exceeds a limit.
    :raises CorruptArchive: when it was cut or damaged, or is no tar at all.
    :raises TargetExists: when the target is anything but an empty directory.
    :raises InvalidInput: when the target or a path given as the archive cannot be used at all.
    """
    place = _free_place(target)
    shown = names.show(str(place))
    with _opened(archive) as stream, _staging(place) as staging:
        sink = DirectorySink(staging.path)
        unpack(stream, sink, limits=limits)
        tree = sink.finish(place)
        try:
            is_published = staging.publish(place)
        except OSError as error:
            raise from_os_error(error, f"putting {shown} in place", argument="target") from error
        if not is_published:
            raise TargetExists(f"{shown} was filled meanwhile", argument="target")
    return tree


def unpack(
    stream: Stream,
    sink: Sink,
    *,
    limits: Limits | None = None,
    cancel: CancelToken | None = None,
    on_bytes: Callable[[int], None] | None = None,
    put_aside: PutAside | None = None,
) -> None:
    """Read a tar or gzipped tar to its end and give what it holds to a sink, in the order of the archive.

    The sink's content is to be thrown away when this raises: some faults show at the very end only.

    :param stream: the archive.
    :param sink: gets every directory and file once, checked, and the content of files block by block.
    :param limits: how much the archive may hold.
    :param cancel: looked at once a block.
    :param on_bytes: called with the number of bytes read from the stream.
    :param put_aside: asked for each file of a plain tar whether its content comes another way. The stream, which must
        be a :class:`SkippingStream` then, jumps over it, and the sink never sees the file.
    :raises UnsafeArchive: when the archive holds what must not be unpacked, or exceeds a limit.
    :raises CorruptArchive: when it was cut or damaged, or is no tar at all.
    """
    limits = limits or Limits()
    data = _tar_of(stream, limits, cancel or CancelToken(), on_bytes)
    tree = names.PathTree()
    told: set[str] = set()
    total = 0
    for member in _members(data, limits):
        path = _path_of(member, limits)
        if path in told:
            raise UnsafeArchive(f"the archive holds {names.show(path)} more than once")
        told.add(path)
        if path == ".":
            continue
        known = len(tree.directories)
        if clash := tree.add(path, is_file=member.is_file):
            raise UnsafeArchive(f"{names.show(path)} cannot live beside {names.show(clash)}")
        if len(tree.directories) > limits.max_members:
            raise UnsafeArchive(f"the archive holds more than {limits.max_members} directories")
        for directory in tree.directories[known:]:
            sink.make_directory(directory)
        if not member.is_file:
            continue
        total += member.size
        if limits.max_bytes is not None and total > limits.max_bytes:
            raise UnsafeArchive(f"with {names.show(path)} the archive holds more than {limits.max_bytes} bytes")
        if limits.told_bytes is not None and total > limits.told_bytes + _UNTOLD:
            raise CorruptArchive(
                f"with {names.show(path)} the archive holds {total} bytes, its record says {limits.told_bytes}"
            )
        if put_aside and data.skips and put_aside(path, member.size, member.executable, data.position):
            data.skip(member.size)
            continue
        block = data.take(member.size)
        if len(block) == member.size:
            sink.add_file(path, block, executable=member.executable)
            continue
        with sink.create_file(path, size=member.size, executable=member.executable) as write:
            rest = member.size
            while block:
                write(block)
                rest -= len(block)
                block = data.take(rest)
            if rest:
                raise CorruptArchive(f"the archive ends inside of {names.show(path)}, {rest} bytes early")
    if not told:
        raise CorruptArchive("the archive holds nothing but its end mark")


# --- the archive's structure -----------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """A file or directory as the archive tells it; the name is not checked yet."""

    name: bytes
    size: int
    is_file: bool
    executable: bool


def _members(data: _Input, limits: Limits) -> Iterator[_Member]:
    """Yield the members; whoever asks for the next one has taken the content of the one before."""
    count = 0
    records: dict[bytes, bytes] = {}  # what the headers before a member say of it
    kinds = b""  # of those headers
    while (block := data.exactly(_TAR_BLOCK)) != _ZEROS:
        if len(block) < _TAR_BLOCK:
            raise CorruptArchive("the archive ends where another member or the end mark should be: it was cut")
        if not _is_header(block):
            raise CorruptArchive("the checksum of a header is wrong: the archive was damaged or is not what it claims")
        kind = block[156:157]
        if kind in b"xL":
            added = _extension(data, block)
            if kind in kinds or records.keys() & added.keys():
                raise UnsafeArchive("the archive tells the same of a member more than once")
            records |= added
            kinds += kind
            continue
        count += 1
        if count > limits.max_members:
            raise UnsafeArchive(f"the archive holds more than {limits.max_members} members")
        if kind == b"g":
            if told := _extension(data, block).keys() & {b"path", b"size"}:
                raise UnsafeArchive(f"a global header sets the {min(told).decode()} of all members")
            continue
        member = _member(block, records)
        records, kinds = {}, b""
        yield member
        padding = -member.size % _TAR_BLOCK
        if len(data.exactly(padding)) < padding:
            raise CorruptArchive("the archive ends after the content of a member: it was cut")
    if kinds:
        raise CorruptArchive("the archive ends where a member should follow")
    if data.exactly(_TAR_BLOCK) != _ZEROS:
        raise CorruptArchive("the archive's end mark is cut: one block of zeros instead of two")
    after = 0
    while rest := data.take(BLOCK):
        after += len(rest)
        if any(rest):
            raise CorruptArchive("data follows the end of the archive")
        if after > _MAX_PADDING:
            raise UnsafeArchive(f"more than {_MAX_PADDING >> 20} MiB of zeros follow the end of the archive")


def _member(block: bytes, records: dict[bytes, bytes]) -> _Member:
    """Put together what a header and those before it say of a member."""
    name = _name_field(block)
    if b"path" in records:
        # Readers that do not know the record use this name. One that fills its field may be cut in any place.
        if len(name) < 100 and (name.startswith(b"/") or b".." in name.split(b"/")):
            raise UnsafeArchive(f"a member has the second name {_shown(name)}")
        name = records[b"path"]
    kind = block[156:157]
    if kind not in b"05\0":
        what = _REFUSED_KINDS.get(kind, f"of the unknown type {kind!r}")
        raise UnsafeArchive(f"{_shown(name)} is {what}; models hold files and directories only")
    # Before POSIX a directory was told by the slash at the end of its name.
    is_file = not (kind == b"5" or (kind == b"\0" and name.endswith(b"/")))
    size = _number(block[124:136])
    if b"size" in records:
        digits = records[b"size"]
        if not digits.isdigit() or len(digits) > 19:
            raise UnsafeArchive(f"{_shown(name)} has the size {_shown(digits)}")
        if size not in (0, _OCTAL_SIZE_LIMIT, int(digits)):
            raise UnsafeArchive(f"{_shown(name)} has two sizes, {size} and {int(digits)}")
        size = int(digits)
    if size >= _MAX_SIZE or (size and not is_file):
        raise UnsafeArchive(f"{_shown(name)} cannot have {size} bytes")
    return _Member(name, size, is_file, bool(_number(block[100:108]) & stat.S_IXUSR))


def _path_of(member: _Member, limits: Limits) -> str:
    """Return the checked path of a member, ``.`` for the root."""
    path = member.name.decode("utf-8", "surrogateescape")
    if not member.is_file and path in (".", "./"):
        return "."
    bare = path.removeprefix("./")
    if not member.is_file:
        bare = bare.removesuffix("/")
    if fault := names.fault_of(bare, max_depth=limits.max_depth, max_bytes=limits.max_name_bytes):
        raise UnsafeArchive(f"the name {names.show(path)} {fault}")
    return bare


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a header holds: the sum of its bytes, the checksum itself taken as blanks."""
    stored = _OCTAL.fullmatch(block[148:156])
    if not stored or not stored[1]:
        return False
    wanted, total = int(stored[1], 8), sum(block) - sum(block[148:156]) + sum(b" " * 8)
    # Some writers of old added the bytes up as signed ones.
    return wanted == total or wanted == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _name_field(block: bytes) -> bytes:
    name, prefix, magic = _text(block[:100]), block[345:500], block[257:263]
    if magic == _POSIX:
        start = _text(prefix)
        return start + b"/" + name if start else name
    if magic not in (_GNU, _OLD) or any(prefix):
        raise UnsafeArchive(f"the header of {_shown(name)} follows no known format")
    return name


def _text(field: bytes) -> bytes:
    text = field.rstrip(b"\0")
    if b"\0" in text:
        raise UnsafeArchive(f"the name {_shown(field)} goes on after its end")
    return text


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    octal = _OCTAL.fullmatch(field)
    if not octal:
        raise UnsafeArchive(f"a header holds {_shown(field)} where a number from 0 on should be")
    return int(octal[1] or b"0", 8)


def _extension(data: _Input, block: bytes) -> dict[bytes, bytes]:
    """Read a header that tells something of others."""
    size = _number(block[124:136])
    if size > _MAX_EXTENSION:
        raise UnsafeArchive(f"an extended header of {size} bytes is larger than {_MAX_EXTENSION}")
    content = data.exactly(size + -size % _TAR_BLOCK)[:size]
    if len(content) < size:
        raise CorruptArchive("the archive ends inside of an extended header: it was cut")
    if block[156:157] == b"L":
        return {b"path": content.rstrip(b"\0")}
    return _pax_records(content)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Read lines of ``<length of the line> <key>=<value>\\n``."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        length = _PAX_LENGTH.match(content, position)
        end = position + int(length[1]) if length else 0
        line = content[length.end() if length else 0 : end]
        key, equals, value = line[:-1].partition(b"=")
        if end > len(content) or not line.endswith(b"\n") or not key or not equals or key in records:
            raise UnsafeArchive("a pax header is malformed")
        if key == b"linkpath" or key.startswith(b"GNU.sparse."):
            raise UnsafeArchive(f"a pax header holds {_shown(key)}; models hold whole files and directories only")
        records[key] = value
        position = end
    return records


def _shown(name: bytes) -> str:
    return names.show(name.rstrip(b"\0").decode("utf-8", "surrogateescape"))


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Input:
    """Hands out a stream's bytes in order, as many at a time as the archive's structure asks for.

    :param blocks: the bytes, in blocks that are not empty.
    :param skips: leaves bytes out of those blocks, where that is possible.
    """

    def __init__(self, blocks: Iterable[bytes], skips: Callable[[int], None] | None = None) -> None:
        self._blocks = iter(blocks)
        self._block = memoryview(b"")
        self.skips = skips
        self.position = 0

    def skip(self, count: int) -> None:
        """Leave bytes out."""
        assert self.skips is not None
        inside = min(count, len(self._block))
        self._block = self._block[inside:]
        self.position += count
        if count > inside:
            self.skips(count - inside)

    def take(self, limit: int) -> memoryview:
        """Return some bytes without copying them, none only at the end."""
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        taken, self._block = self._block[:limit], self._block[limit:]
        self.position += len(taken)
        return taken

    def exactly(self, count: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        if len(self._block) >= count:
            return bytes(self.take(count))
        data = bytearray(self.take(count))
        while len(data) < count and (more := self.take(count - len(data))):
            data += more
        return bytes(data)

    def peek(self, count: int) -> bytes:
        """Return the next bytes, fewer only at the end, and keep them."""
        head = self.exactly(count)
        self._block = memoryview(head + self._block)
        self.position -= len(head)
        return head


def _tar_of(stream: Stream, limits: Limits, cancel: CancelToken, on_bytes: Callable[[int], None] | None) -> _Input:
    """Return the bytes of the tar in a stream."""
    data = _Input(_blocks_of(stream, cancel, on_bytes), getattr(stream, "skip", None))
    if data.peek(len(_GZIP_MAGIC)) == _GZIP_MAGIC:
        data = _Input(_gunzipped(data, limits.max_ratio, cancel))
    head = data.peek(_TAR_BLOCK)
    if len(head) < _TAR_BLOCK or (head != _ZEROS and not _is_header(head)):
        raise CorruptArchive(f"expected a tar archive, got {_look_of(head)}")
    return data


def _blocks_of(stream: Stream, cancel: CancelToken, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    while True:
        cancel.check()
        try:
            block = stream.read(BLOCK)
        except OSError as error:
            raise from_os_error(error, "reading the archive", argument="archive") from error
        if not block:
            return
        if on_bytes is not None:
            on_bytes(len(block))
        yield block


def _gunzipped(packed: _Input, max_ratio: int, cancel: CancelToken) -> Iterator[bytes]:
    """Yield what a gzip stream unpacks to; zlib checks the sum and the length at its end."""
    engine = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    taken = made = 0
    while not engine.eof:
        cancel.check()
        feed = engine.unconsumed_tail
        if not feed:
            feed = bytes(packed.take(_GZIP_BLOCK))
            taken += len(feed)
        try:
            block = engine.decompress(feed, BLOCK)
        except zlib.error as error:
            raise CorruptArchive(f"the gzip archive is damaged: {error}") from error
        if not (feed or block):
            raise CorruptArchive("the gzip archive ends early: it was cut")
        made += len(block)
        # Judged by all of the archive, since zeros at its start say little; until then some headroom bounds the harm.
        if made > max_ratio * (taken - len(engine.unconsumed_tail)) + (0 if engine.eof else _GZIP_HEADROOM):
            raise UnsafeArchive(f"the gzip archive unpacks to more than {max_ratio} times its size")
        if block:
            yield block
    if engine.unused_data or packed.take(1):
        raise CorruptArchive("data follows the end of the gzip archive")


def _look_of(head: bytes) -> str:
    """Say what something is that should have been an archive."""
    if not head:
        return "nothing: it is empty"
    if head[257:262] == _POSIX[:5]:
        return "one with a damaged or cut first header"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # No word of it is quoted: it may come from where nobody should have asked.
    return next((look for magic, look in _LOOKS if start.lower().startswith(magic)), "something unknown")


# --- local disk ------------------------------------------------------------------------------------------------------


def _free_place(target: str | os.PathLike[str]) -> Path:
    """Return the resolved path of a target that may be filled."""
    place = places.target(target)
    shown = names.show(os.fspath(target))
    if not place.parent.is_dir():
        raise InvalidInput(
            f"{names.show(str(place.parent))}, where {shown} is to be, is no directory", argument="target"
        )
    try:
        # A link counts as something that is there, wherever it leads: it cannot be replaced by a directory.
        is_free = not os.path.islink(os.fspath(target).rstrip("/")) and not os.listdir(place)
    except FileNotFoundError:
        is_free = True
    except NotADirectoryError:
        is_free = False
    except OSError as error:
        raise InvalidInput(f"{shown} cannot be used: {error.strerror}", argument="target") from error
    if not is_free:
        raise TargetExists(f"{shown} exists and is no empty directory", argument="target")
    return place


@contextmanager
def _opened(archive: str | os.PathLike[str] | Stream) -> Iterator[Stream]:
    if not isinstance(archive, (str, os.PathLike)):
        yield archive
        return
    shown = names.show(os.fspath(archive))
    try:
        file = io.FileIO(os.fspath(archive))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise InvalidInput(f"{shown} is no file", argument="archive") from error
    except OSError as error:
        raise from_os_error(error, f"opening {shown}", argument="archive") from error
    with file:
        yield file


@contextmanager
def _staging(place: Path) -> Iterator[durable.Staging]:
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(durable.staging(place, secrets.token_hex(6)))
        except OSError as error:
            raise from_os_error(error, f"writing to {names.show(str(place.parent))}", argument="target") from error
        yield staging


def _write(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> ModelSyncError:
    if isinstance(error, FileExistsError):
        return not_held(path, "it takes for another one")
    return from_os_error(error, f"writing {names.show(path)}", argument="target")

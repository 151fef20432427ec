"""A tar of a model that is never written to disk: any range of its bytes is produced from the source when asked for.

The same files give the same bytes whoever owns them and whenever they were written, so an archive can be sent in parts,
in any order, again after a failure, and by another worker. Readers that know the POSIX format of 2001 (pax) take it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import Source, SourceTree, read_tree
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.forks import Lock

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_END = 2 * _BLOCK  # zeros that say where an archive ends
_ZEROS = bytes(_RECORD + _END)  # as many as ever stand in one place
_NAME_BYTES = 100  # that a header takes, in ASCII
_SIZE_LIMIT = 1 << 33  # bytes: from here on a size does not fit a header
_MANY = 16  # members in one block, from which on making it is work for Python rather than for the disk

_HASH_OF_NOTHING = hashlib.sha256().hexdigest()

Kind = Literal["file", "generated", "directory"]


class Member(NamedTuple):
    """One entry of the archive.

    :param name: as the archive spells it: relative, a directory with a slash at the end.
    :param kind: a ``file`` of the source, a file ``generated`` in memory, or a ``directory``.
    :param header_offset: where its headers start.
    :param offset: where its content starts.
    :param size: bytes of content.
    :param executable: whether a file may be executed.
    """

    name: str
    kind: Kind
    header_offset: int
    offset: int
    size: int
    executable: bool


class TarLayout:
    """Where everything is in the archive of a model. Safe to use from many threads at once.

    Made by :meth:`of` or :meth:`from_tree`. A file is open only while a range of it is read, so use large blocks.

    :ivar members: all entries in the order of the archive, sorted by the UTF-8 bytes of their names.
    :ivar size: length of the archive in bytes.
    """

    def __init__(self, tree: Source, generated: Mapping[str, bytes]) -> None:
        self.tree = tree
        self._generated = dict(generated)
        # Of files on this machine; for those that come from elsewhere, one at a time would be slow indeed.
        self._one_at_a_time = Lock() if isinstance(tree, SourceTree) else nullcontext()
        members: list[Member] = []
        offset = 0
        for name, kind, size, executable in _entries(tree, generated):
            content = offset + _header_size(name, size)
            members.append(Member(name, kind, offset, content, size, executable))
            offset = content + _padded(size, _BLOCK)
        self.members: Sequence[Member] = tuple(members)
        self.size = _padded(offset + _END, _RECORD)
        self._starts = array("Q", [*(member.header_offset for member in members), self.size])

    @classmethod
    def of(cls, directory: str | os.PathLike[str]) -> TarLayout:
        """Scan and hash a directory, or a single file, and lay it out; errors as of :func:`~.digest.read_tree`."""
        return cls.from_tree(read_tree(directory, follow_links="inside"))

    @classmethod
    def from_tree(cls, tree: Source, *, generated: Mapping[str, bytes] | None = None) -> TarLayout:
        """Lay out a model that was hashed before.

        :param tree: the model.
        :param generated: path → content of files that a registry demands and the source does not hold.
        :raises InvalidInput: when a generated path is bad or clashes with one of the source.
        """
        generated = generated or {}
        for path in generated:
            if fault := names.fault_of(path):
                raise InvalidInput(f"the generated path {names.show(path)} {fault}")
        for path in generated:
            # Also where only the case differs: what the registry demands must be found by everybody.
            clash = names.clash_among([*_paths(tree), path], tree.directories)
            if taken := clash[0] if clash else names.twin_of(path, (*_paths(tree), *tree.directories)):
                raise InvalidInput(
                    f"the source holds {names.show(taken)}, in place of which {names.show(path)} is to be generated",
                    argument="source",
                )
        return cls(tree, generated)

    @cached_property
    def fingerprint(self) -> str:
        """What tells whether another layout makes the same archive, as hex digits. Times and owners do not count."""
        total = hashlib.sha256(self.tree.digest.encode())
        for member in self.members:
            content = self._generated.get(member.name)
            hashed = _HASH_OF_NOTHING if content is None else hashlib.sha256(content).hexdigest()
            total.update(repr((member, hashed)).encode())
        return total.hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        """Return a range of the archive, shorter only where the archive ends.

        :raises SourceChanged: when a file in it is not as it was when it was hashed.
        """
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: WriteableBuffer) -> int:
        """Fill a buffer with the archive's bytes from an offset on.

        :return: the number of bytes written: fewer than the buffer takes only where the archive ends.
        :raises SourceChanged: when a file in the range is not as it was when it was hashed.
        """
        if offset < 0:
            raise ValueError("an offset cannot be negative")
        view = memoryview(buffer).cast("B")[: max(0, self.size - offset)]
        first = bisect_right(self._starts, offset, hi=len(self.members)) - 1
        is_many = bisect_left(self._starts, offset + len(view)) - first > _MANY
        with self._one_at_a_time if is_many else nullcontext():  # threads would only wait for each other's Python
            done, index = 0, first
            while done < len(view):
                done += self._fill(index, offset + done, view[done:])
                index += 1
        return done

    def files_in(self, offset: int, length: int) -> list[str]:
        """Return the paths of the source's files of which a range of the archive holds something."""
        first = max(0, bisect_right(self._starts, offset, hi=len(self.members)) - 1)
        last = bisect_left(self._starts, offset + length, hi=len(self.members))
        return [member.name for member in self.members[first:last] if member.kind == "file"]

    def confirm(self) -> None:
        """Raise unless what was read of the model is what was hashed; see :meth:`~.digest.Source.confirm`."""
        self.tree.confirm(_paths(self.tree))

    def reader(self, offset: int = 0, length: int | None = None) -> LayoutReader:
        """Return a binary file over a range of the archive, by default from the offset to the end."""
        return LayoutReader(self, offset, self.size - offset if length is None else length)

    def _fill(self, index: int, offset: int, view: memoryview) -> int:
        """Write the start of ``view``: what follows ``offset`` of a member, with its padding and all that it is in."""
        member = self.members[index]
        name, kind, _, start, size, executable = member
        view = view[: self._starts[index + 1] - offset]
        done = 0
        if offset < start:
            done = _copy(_header(name, kind, size, executable), offset - member.header_offset, view)
        if done < len(view) and (position := offset + done - start) < size:
            if kind == "generated":
                done += _copy(self._generated[name], position, view[done:])
            else:
                done += self.tree.read_into(name, position, view[done : done + size - position])
        if done < len(view):
            view[done:] = _ZEROS[: len(view) - done]
        return len(view)


class Layout(Protocol):
    """What is never written to disk, but any range of which can be had."""

    @property
    def size(self) -> int: ...

    def readinto(self, offset: int, buffer: WriteableBuffer, /) -> int: ...


class LayoutReader(io.RawIOBase):
    """A binary file over a range of a layout; a request body that can be sent any number of times.

    :param layout: the archive.
    :param offset: where the range starts.
    :param length: bytes; cut where the archive ends.
    """

    def __init__(self, layout: Layout, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise ValueError("a range cannot be negative")
        self._layout = layout
        self._offset = offset
        self._length = max(0, min(length, layout.size - offset))
        self._position = 0

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if position < 0:
            raise ValueError("a position cannot be negative")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        count = self._layout.readinto(self._offset + self._position, view)
        self._position += count
        return count

    def readall(self) -> bytes:
        data = bytearray(max(0, self._length - self._position))
        self.readinto(data)
        return bytes(data)


def _paths(tree: Source) -> list[str]:
    return [file.path for file in tree.files]


def _entries(tree: Source, generated: Mapping[str, bytes]) -> list[tuple[str, Kind, int, bool]]:
    """Return name, kind, size and executable of all members in their order."""
    directories = {*tree.directories, *_parents([*_paths(tree), *generated, *tree.directories])}
    entries: list[tuple[str, Kind, int, bool]] = [
        *((file.path, "file", file.size, file.executable) for file in tree.files),
        *((path, "generated", len(content), False) for path, content in generated.items()),
        *((f"{path}/", "directory", 0, False) for path in directories),
    ]
    return sorted(entries, key=lambda entry: entry[0].encode())


def _parents(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def _is_short(name: str, size: int) -> bool:
    """Whether one block tells name and size, so that no records need to go before it."""
    return len(name) <= _NAME_BYTES and size < _SIZE_LIMIT and name.isascii()


def _header_size(name: str, size: int) -> int:
    return _BLOCK if _is_short(name, size) else len(_long_header(name, "file", size, False))


def _header(name: str, kind: Kind, size: int, executable: bool) -> bytes:
    """Return what :meth:`tarfile.TarInfo.tobuf` makes, which takes five times as long."""
    if not _is_short(name, size):
        return _long_header(name, kind, size, executable)
    header, total = _template(kind == "directory", executable or kind == "directory")
    told, digits = name.encode(), b"%011o" % size
    header = header.copy()
    header[: len(told)] = told
    header[124:135] = digits
    header[148:154] = b"%06o" % (total + sum(told) + sum(digits))
    return bytes(header)


@cache
def _template(is_directory: bool, executable: bool) -> tuple[bytearray, int]:
    """Return a header without name and size, and the sum of its bytes, the checksum's own taken as blanks."""
    header = bytearray(_long_header("", "directory" if is_directory else "file", 0, executable))
    total = int(header[148:154], 8) - sum(header[124:135]) - sum(header[:_NAME_BYTES])
    header[:_NAME_BYTES] = bytes(_NAME_BYTES)
    return header, total


def _long_header(name: str, kind: Kind, size: int, executable: bool) -> bytes:
    info = tarfile.TarInfo(name)  # owner 0, no names and time 0 are its defaults
    info.size = size
    info.mode = 0o755 if executable or kind == "directory" else 0o644
    info.type = tarfile.DIRTYPE if kind == "directory" else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _copy(source: bytes, offset: int, view: memoryview) -> int:
    count = min(len(source) - offset, len(view))
    view[:count] = memoryview(source)[offset : offset + count]
    return count


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit

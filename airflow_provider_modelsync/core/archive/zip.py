"""A model as one file that is never written to disk: a zip of it, or the one file that it holds.

The zip stores files as they are, so that any range of it is produced from the source when asked for. The same files
give the same bytes, whoever owns them and whenever they were written.
"""

from __future__ import annotations

import stat
import struct
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, Source
from airflow_provider_modelsync.core.archive.layout import Layout, LayoutReader

if TYPE_CHECKING:
    from hashlib import _Hash

    from _typeshed import WriteableBuffer

# Field widths and signatures are those of PKWARE's APPNOTE 6.3.
_SHORT, _LONG = 0xFFFF, 0xFFFFFFFF  # in place of what only the 64-bit fields can hold
_UTF8 = 1 << 11
_EPOCH = (0, (1 << 5) | 1)  # midnight of 1 January 1980, the first time that a zip knows
_UNIX = 3 << 8
_PLAIN, _ZIP64 = 20, 45  # versions of the format that a reader has to know


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    crc: int
    mode: int
    is_file: bool

    def local(self) -> bytes:
        """The header before the content."""
        big = self.size >= _LONG
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.size) if big else b""
        return (
            struct.pack("<4sH", b"PK\x03\x04", _ZIP64 if big else _PLAIN)
            + self._common(_LONG if big else self.size, extra)
            + self.name.encode()
            + extra
        )

    def central(self, offset: int) -> bytes:
        """The entry in the directory at the end."""
        sizes, far = self.size >= _LONG, offset >= _LONG
        numbers = [*([self.size] * 2 if sizes else []), *([offset] if far else [])]
        extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
        version = _ZIP64 if numbers else _PLAIN
        attributes = self.mode << 16 | (0 if self.is_file else 0x10)  # the latter is how DOS marks a directory
        return (
            struct.pack("<4s2H", b"PK\x01\x02", _UNIX | version, version)
            + self._common(_LONG if sizes else self.size, extra)
            + struct.pack("<3H2I", 0, 0, 0, attributes, _LONG if far else offset)
            + self.name.encode()
            + extra
        )

    def _common(self, size: int, extra: bytes) -> bytes:
        return struct.pack("<4H3I2H", _UTF8, 0, *_EPOCH, self.crc, size, size, len(self.name.encode()), len(extra))


class ZipLayout:
    """Where everything is in the zip of a model. Safe to use from many threads at once.

    :param source: the model.
    :param checksums: path → CRC-32 of each file, see :func:`add_to_checksum`.
    :ivar size: length of the zip in bytes.
    """

    def __init__(self, source: Source, checksums: Mapping[str, int]) -> None:
        self._source = source
        self._members = _members(source, checksums)
        self._headers: list[bytes] = []
        self._starts: list[int] = []
        offset = 0
        for member in self._members:
            self._starts.append(offset)
            self._headers.append(member.local())
            offset += len(self._headers[-1]) + member.size
        self._starts.append(offset)
        directory = b"".join(member.central(start) for member, start in zip(self._members, self._starts, strict=False))
        self._end = directory + _end_of(len(self._members), len(directory), offset)
        self.size = offset + len(self._end)

    def readinto(self, offset: int, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer with the zip's bytes from an offset on.

        :return: the number of bytes written: fewer than the buffer takes only where the zip ends.
        :raises SourceChanged: when a file in the range is not as it was when it was hashed.
        """
        view = memoryview(buffer).cast("B")[: max(0, self.size - offset)]
        done = 0
        while done < len(view):
            done += self._fill(offset + done, view[done:])
        return done

    def reader(self, offset: int = 0, length: int | None = None) -> LayoutReader:
        """Return a binary file over a range of the zip, by default from the offset to the end."""
        return LayoutReader(self, offset, self.size - offset if length is None else length)

    def _fill(self, offset: int, view: memoryview) -> int:
        index = bisect_right(self._starts, offset) - 1
        offset -= self._starts[index]
        if index == len(self._members):
            return _copy(self._end, offset, view)
        header, member = self._headers[index], self._members[index]
        if offset < len(header):
            return _copy(header, offset, view)
        offset -= len(header)
        return self._source.read_into(member.name, offset, view[: member.size - offset])


class FileLayout:
    """One file of a model, as it is.

    :param source: the model.
    :param file: which of its files.
    """

    def __init__(self, source: Source, file: FileEntry) -> None:
        self._source = source
        self._path = file.path
        self.size = file.size

    def readinto(self, offset: int, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer with the file's bytes from an offset on; returns how many these are."""
        view = memoryview(buffer).cast("B")[: max(0, self.size - offset)]
        return self._source.read_into(self._path, offset, view) if view else 0

    def reader(self) -> LayoutReader:
        """Return the file's content as a binary file."""
        return LayoutReader(self, 0, self.size)


def add_to_checksum(source: Source, path: str, offset: int, length: int, checksum: int = 0) -> int:
    """Return the CRC-32 of a file up to the end of a range, given the one up to its start."""
    buffer = memoryview(bytearray(min(BLOCK, length)))
    for start in range(offset, offset + length, BLOCK):
        block = buffer[: offset + length - start]
        source.read_into(path, start, block)
        checksum = zlib.crc32(block, checksum)
    return checksum


def add_to_hash(layout: Layout, total: _Hash, offset: int, length: int) -> None:
    """Feed a range of a layout into a hash."""
    buffer = memoryview(bytearray(min(BLOCK, length)))
    for start in range(offset, min(offset + length, layout.size), BLOCK):
        count = layout.readinto(start, buffer[: offset + length - start])
        total.update(buffer[:count])


def _members(source: Source, checksums: Mapping[str, int]) -> Sequence[_Member]:
    members = [
        *(
            _Member(
                file.path,
                file.size,
                checksums[file.path],
                stat.S_IFREG | (0o755 if file.executable else 0o644),
                is_file=True,
            )
            for file in source.files
        ),
        *(_Member(f"{path}/", 0, 0, stat.S_IFDIR | 0o755, is_file=False) for path in source.directories),
    ]
    return sorted(members, key=lambda member: member.name.encode())


def _end_of(count: int, size: int, offset: int) -> bytes:
    """Return what follows the directory: where it is."""
    end = b""
    if count >= _SHORT or size >= _LONG or offset >= _LONG:
        version = _UNIX | _ZIP64
        end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, version, _ZIP64, 0, 0, count, count, size, offset)
        end += struct.pack("<4sIQI", b"PK\x06\x07", 0, offset + size, 1)
    short = min(count, _SHORT)
    return end + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, min(size, _LONG), min(offset, _LONG), 0)


def _copy(source: bytes, offset: int, view: memoryview) -> int:
    count = min(len(source) - offset, len(view))
    view[:count] = memoryview(source)[offset : offset + count]
    return count

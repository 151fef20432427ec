"""What a model's files are, by what they hold: names, and what loads them, are the user's.

Nothing is unpickled, imported or decoded further than it takes to tell. A file may be several things at once, as a zip
that holds both a pickle and text: all of them are told. What is none of the known formats is :data:`OTHER`.

Facts come from the formats' own documents: safetensors' README, gguf.md of ggml, onnx.proto, ``pickletools``, the
HDF5 file format specification, numpy's NEP 1, Keras' ``saving_lib``, ``torch/serialization.py`` and ``joblib``'s
``numpy_pickle_utils``.
"""

from __future__ import annotations

import bz2
import codecs
import io
import json
import lzma
import os
import pickletools
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

PICKLE, OTHER, TEXT = "pickle", "other", "text"
FORMATS: Final = (
    "safetensors",
    "onnx",
    "gguf",
    "hdf5",
    "keras",
    "tflite",
    "numpy",
    PICKLE,
    "json",
    TEXT,
    "python",
    "image",
    "empty",
    OTHER,
)

_KIB, _MIB = 1 << 10, 1 << 20
_HEAD = 4 * _KIB
_LARGEST_HEADER = 100 * 1000 * 1000  # that safetensors itself takes
_LARGEST_JSON = 64 * _MIB
_MOST_MEMBERS = 20_000
_MOST_UNPACKED = 16 * _MIB  # of what is compressed: what tells is at the beginning
_MOST_IN_ALL = 512 * _MIB  # of all that is compressed in one file
_DEEP = 3  # containers in containers
_LONGEST_LINE = _MIB
_MOST_OPCODES = 200_000
_MOST_FIELDS = 100_000
_NEWEST_PROTOCOL = 6  # of pickles, with room for the next one
_PYTHON_NAMES = (".py", ".pyi", ".pyw")
_PYTHON_FIRST_LINE = re.compile(rb"#![^\n]*\bpython")
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_SAFETENSORS_TYPE = re.compile(r"[A-Z][A-Z0-9_]{1,15}")
# What runs when a pickle is loaded. Text that happens to begin as one has none of these with a stack that fits.
_RUNS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_NAMES_CODE = frozenset({"GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"})
_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}
_LENGTHS = {  # opcodes whose argument is skipped: the bytes of its length
    "BINSTRING": "<I",
    "BINBYTES": "<I",
    "BINBYTES8": "<Q",
    "BINUNICODE": "<I",
    "BINUNICODE8": "<Q",
    "BYTEARRAY8": "<Q",
    "LONG4": "<I",
}
_NUMBER = re.compile(rb"[\s+-]*(?:\d|inf|nan)", re.IGNORECASE)  # in whatever base: readers take 0x10, too
_QUOTED = re.compile(rb"(['\"]).*\1\Z", re.DOTALL)  # of whatever bytes: readers are told an encoding
_ANY = re.compile(b"")
_LINES = {  # opcodes whose argument is lines: what readers of pickles take there, and some more
    "INT": (_NUMBER,),
    "LONG": (_NUMBER,),
    "FLOAT": (_NUMBER,),
    "GET": (_NUMBER,),
    "PUT": (_NUMBER,),
    "STRING": (_QUOTED,),
    "UNICODE": (_ANY,),
    "PERSID": (_ANY,),
    "GLOBAL": (_ANY, _ANY),
    "INST": (_ANY, _ANY),
}


def formats_of(file: str | os.PathLike[str]) -> frozenset[str]:
    """Return what a file is: at least one of :data:`FORMATS`.

    :param file: a regular file of this machine; it is read, and left as it is.
    """
    path = Path(file)
    with path.open("rb") as stream:
        return _formats(stream, path.name, _Room())


def _formats(stream: BinaryIO, name: str, room: _Room) -> frozenset[str]:
    """Return what a stream that can be wound back holds."""
    head = stream.read(_HEAD)
    size = stream.seek(0, os.SEEK_END)
    if not size:
        return frozenset({"empty"})
    found: set[str] = set()
    for format_, looks_so in _BY_LOOK.items():
        stream.seek(0)
        if looks_so(stream, head, size):
            found.add(format_)
    # Whatever else it is: some reader may take it for a pickle, or for a container.
    stream.seek(0)
    if is_pickle(stream):
        found.add(PICKLE)
    for unpack, is_so in _CONTAINERS:
        stream.seek(0)
        if is_so(stream, head):
            found |= unpack(stream, room)
    if not found:
        stream.seek(0)
        found |= _text_formats(stream, head, size) if room.is_whole else {OTHER}
    if TEXT in found and (name.lower().endswith(_PYTHON_NAMES) or _PYTHON_FIRST_LINE.match(head)):
        found = (found - {TEXT}) | {"python"}
    return frozenset(found or {OTHER})


# -- formats with a look of their own


def _is_safetensors(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Whether its header says what every byte is, so that nothing else can hide in it."""
    if len(head) < 8:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if not 2 <= length <= min(_LARGEST_HEADER, size - 8) or head[8:9] != b"{":
        return False
    stream.seek(8)
    try:
        header = json.loads(stream.read(length))
        spans = sorted(_span(tensor) for key, tensor in header.items() if key != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            return False
        end = stop
    return bool(end == size - 8 - length)


def _span(tensor: Any) -> tuple[int, int]:
    start, stop = tensor["data_offsets"]
    if not (isinstance(start, int) and isinstance(stop, int) and _SAFETENSORS_TYPE.fullmatch(tensor["dtype"])):
        raise ValueError("no tensor")
    return start, stop


def _is_gguf(stream: BinaryIO, head: bytes, size: int) -> bool:
    return head.startswith(b"GGUF") and len(head) >= 24


def _is_hdf5(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Whether the signature stands at one of the places where it may: a user block may come before it."""
    place = 0
    while place < size:
        stream.seek(place)
        if stream.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
        place = place * 2 or 512
    return False


def _is_tflite(stream: BinaryIO, head: bytes, size: int) -> bool:
    return head[4:8] == b"TFL3"


def _is_image(stream: BinaryIO, head: bytes, size: int) -> bool:
    return head.startswith(_IMAGES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def _is_plain_numpy(stream: BinaryIO, head: bytes, size: int) -> bool:
    return head.startswith(b"\x93NUMPY") and not _holds_objects(head)


def _is_numpy_of_objects(stream: BinaryIO, head: bytes, size: int) -> bool:
    return head.startswith(b"\x93NUMPY") and _holds_objects(head)


def _holds_objects(head: bytes) -> bool:
    """Whether an array's header, which is text, may name a type of Python objects: these are pickled."""
    header, end, _ = head[8:].partition(b"}")
    return not end or any(sign in header for sign in (b"O", b"object", b"\\"))


def _is_onnx(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Whether all of it is the fields of a ModelProto, with a graph and a version among them."""
    kinds = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    seen: set[int] = set()
    place = 0
    for _ in range(_MOST_FIELDS):
        if place >= size:
            break
        key, place = _varint(stream, place)
        number, kind = key >> 3, key & 7
        if kinds.get(number) != kind:
            return False
        value, place = _varint(stream, place)
        if value < 0:
            return False
        seen.add(number)
        if kind == 2:
            place += value
    return place == size and {1, 7} <= seen


def _varint(stream: BinaryIO, place: int) -> tuple[int, int]:
    """Return a number as protocol buffers write it, -1 when there is none, and where it ends."""
    stream.seek(place)
    value = 0
    for index, byte in enumerate(stream.read(10)):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    return -1, place + 1


_BY_LOOK: dict[str, Callable[[BinaryIO, bytes, int], bool]] = {
    "safetensors": _is_safetensors,
    "gguf": _is_gguf,
    "hdf5": _is_hdf5,
    "tflite": _is_tflite,
    "image": _is_image,
    "numpy": _is_plain_numpy,
    "onnx": _is_onnx,
    PICKLE: _is_numpy_of_objects,
}


# -- text


def _text_formats(stream: BinaryIO, head: bytes, size: int) -> set[str]:
    if b"\0" in head:
        return {OTHER}
    decode = _utf8()
    while part := stream.read(_MIB):
        if b"\0" in part or not decode(part):
            return {OTHER}
    if not decode(b"", final=True):
        return {OTHER}
    if head.lstrip()[:1] in (b"{", b"[") and size <= _LARGEST_JSON:
        stream.seek(0)
        try:
            json.loads(stream.read())
        except (ValueError, RecursionError):
            return {TEXT}
        return {"json"}
    return {TEXT}


def _utf8() -> Callable[..., bool]:
    decoder = codecs.getincrementaldecoder("utf-8")()

    def decode(part: bytes, final: bool = False) -> bool:
        try:
            decoder.decode(part, final)
        except UnicodeDecodeError:
            return False
        return True

    return decode


# -- pickles


def is_pickle(stream: BinaryIO) -> bool:
    """Whether loading a stream by ``pickle`` would give back what was pickled, or run what it says.

    The opcodes are read, and never followed. What begins as a pickle and does not end within 200,000 of them counts as
    one, and so does one that breaks off after it has run something: loading would have done so by then. Plain values
    in the oldest protocols, which run nothing, may pass as text.
    """
    first = stream.read(2)
    if first[:1] == b"\x80" and len(first) == 2 and first[1] <= _NEWEST_PROTOCOL:
        return True
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return _runs(stream, size)


def _runs(stream: BinaryIO, size: int) -> bool:
    marks: list[int] = []
    stack, names_code = 0, False
    for count, (name, opcode) in enumerate(_opcodes(stream, size)):
        if count > _MOST_OPCODES or name == _TOO_LONG:
            return True
        assert opcode is not None
        before = opcode.stack_before
        if pickletools.markobject in before or (name == "POP" and marks and marks[-1] == stack):
            if not marks:
                return False
            stack = marks.pop()
            takes = before.index(pickletools.markobject) if pickletools.markobject in before else 0
        else:
            takes = len(before)
        if takes > stack - (marks[-1] if marks else 0):
            return False
        if name in _RUNS and (names_code or name == "INST"):
            return True
        if name == "STOP":
            if names_code:
                return True
            marks, stack = [], 0  # another pickle may follow, as in what torch wrote before it took zips
            continue
        names_code = names_code or name in _NAMES_CODE
        stack -= takes
        if name == "MARK":
            marks.append(stack)
        else:
            stack += len(opcode.stack_after)
    return False


_TOO_LONG = ""


def _opcodes(stream: BinaryIO, size: int) -> Iterator[tuple[str, pickletools.OpcodeInfo | None]]:
    """Yield the opcodes of a pickle, without what they carry; :data:`_TOO_LONG` where that is too much to tell."""
    while code := stream.read(1):
        opcode = _BY_CODE.get(code.decode("latin-1"))
        if opcode is None:
            return
        if opcode.name in _LENGTHS:
            shape = _LENGTHS[opcode.name]
            told = stream.read(struct.calcsize(shape))
            if len(told) < struct.calcsize(shape):
                return
            place = stream.tell() + struct.unpack(shape, told)[0]
            if place > size:
                return
            stream.seek(place)
        elif opcode.name in _LINES:
            for fits in _LINES[opcode.name]:
                line = stream.readline(_LONGEST_LINE)
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    yield _TOO_LONG, None
                    return
                if not fits.match(line.rstrip(b"\n")):
                    return
        elif opcode.arg is not None:
            try:
                opcode.arg.reader(cast(IO[bytes], stream))
            except ValueError:
                return
        yield opcode.name, opcode


# -- containers

_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, MemoryError, zlib.error)


def _is_zip(stream: BinaryIO, head: bytes) -> bool:
    # By its end, as readers do: what comes before the first member may be anything.
    return zipfile.is_zipfile(stream)


def _in_zip(stream: BinaryIO, room: _Room) -> set[str]:
    if not room.depth:
        return {OTHER}
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, *_UNREADABLE):
        stream.seek(0)
        return {OTHER} if stream.read(4) == b"PK\x03\x04" else set()
    found: set[str] = set()
    try:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > _MOST_MEMBERS:
            return {OTHER}
        for member in members:
            with archive.open(member) as packed:
                found |= room.look_into(packed, member.filename)
    except (zipfile.BadZipFile, *_UNREADABLE):
        found.add(OTHER)
    if PICKLE in found:
        return {PICKLE}  # torch keeps tensors beside it, which are nothing without it
    names = {member.filename for member in members}
    if {"config.json", "metadata.json", "model.weights.h5"} <= names and found <= {"json", "hdf5"}:
        return {"keras"}
    return found or {"empty"}


def _is_tar(stream: BinaryIO, head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _in_tar(stream: BinaryIO, room: _Room) -> set[str]:
    if not room.depth:
        return {OTHER}
    found: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count > _MOST_MEMBERS:
                    return {OTHER}
                if member.isfile() and (packed := archive.extractfile(member)) is not None:
                    found |= room.look_into(packed, member.name)
                elif not member.isdir():
                    found.add(OTHER)
    except (tarfile.TarError, *_UNREADABLE):
        found.add(OTHER)
    return {PICKLE} if PICKLE in found else found or {"empty"}


def _is_compressed(stream: BinaryIO, head: bytes) -> bool:
    return any(head.startswith(mark) for mark in _DECOMPRESSORS) or _is_zlib(head)


def _is_zlib(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x78 and (head[0] << 8 | head[1]) % 31 == 0


def _in_compressed(stream: BinaryIO, room: _Room) -> set[str]:
    """Return what is compressed as one stream: joblib does so with pickles."""
    if not room.depth:
        return {OTHER}
    head = stream.read(8)
    make = next((make for mark, make in _DECOMPRESSORS.items() if head.startswith(mark)), zlib.decompressobj)
    stream.seek(0)
    unpacked, unpacker = bytearray(), make()
    try:
        while len(unpacked) < _MOST_UNPACKED and not unpacker.eof:
            part = getattr(unpacker, "unconsumed_tail", b"") or stream.read(64 * _KIB)
            if not part and getattr(unpacker, "needs_input", True):
                break
            unpacked += unpacker.decompress(part, _MOST_UNPACKED - len(unpacked))
    except (*_UNREADABLE, lzma.LZMAError):
        return set()  # it only began as such
    is_whole = unpacker.eof and not unpacker.unused_data and not stream.read(1)
    found = room.look_into(io.BytesIO(bytes(unpacked)), "")
    if PICKLE in found:
        return {PICKLE}
    return set(found) if is_whole else {OTHER}


def _gunzip() -> Any:
    return zlib.decompressobj(wbits=31)


_DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": _gunzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lzma.LZMADecompressor,
}

_CONTAINERS: tuple[tuple[Callable[[BinaryIO, _Room], set[str]], Callable[[BinaryIO, bytes], bool]], ...] = (
    (_in_zip, _is_zip),
    (_in_tar, _is_tar),
    (_in_compressed, _is_compressed),
)


class _Room:
    """How much of what is packed is looked at: memory and time have an end, however small what is packed is.

    :ivar depth: of containers in containers that are still opened.
    :ivar is_whole: whether all of what is looked at is there, rather than its beginning.
    """

    def __init__(self) -> None:
        self.depth = _DEEP
        self.is_whole = True
        self._left = _MOST_IN_ALL

    def look_into(self, packed: IO[bytes], name: str) -> frozenset[str]:
        """Return what a member of a container is; one that is too large, by its beginning or not at all."""
        most = min(_MOST_UNPACKED, self._left)
        content = packed.read(most + 1)
        self._left -= min(most, len(content))
        if not most:
            return frozenset({OTHER})
        outer = self.depth, self.is_whole
        self.depth, self.is_whole = self.depth - 1, self.is_whole and len(content) <= most
        try:
            return _formats(io.BytesIO(content[:most]), name, self)
        finally:
            self.depth, self.is_whole = outer

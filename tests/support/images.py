"""Small PNG pictures, written and read without an imaging library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type


def png(
    width: int = 80, height: int = 60, bright: tuple[int, int, int, int] | None = None, *, padding: int = 0
) -> bytes:
    """A black picture, with white from (left, top) to (right, bottom), both included.

    `padding`: bytes that make the file larger, and that no reader looks at.
    """
    left, top, right, bottom = bright or (0, 0, -1, -1)
    rows = [bytes(255 if left <= x <= right and top <= y <= bottom else 0 for x in range(width)) for y in range(height)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"paDd", bytes(padding)), (b"IDAT", pixels), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks if padding or chunk[0] != b"paDd")


def brightness(data: bytes) -> list[list[float]]:
    """The mean of the colours of every pixel, row by row; ValueError for what is no PNG of 8 bits."""
    chunks = dict[bytes, bytes]()
    for kind, content in _chunks(data):
        chunks[kind] = chunks.get(kind, b"") + content
    try:
        width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
        channels = CHANNELS[colour]
        packed = zlib.decompress(chunks[b"IDAT"])
    except (KeyError, struct.error, zlib.error) as error:
        raise ValueError(f"no picture: {error}") from error
    if depth != 8 or interlaced or len(packed) != height * (1 + width * channels):
        raise ValueError("a picture of another kind")
    colours = 3 if channels > 2 else 1  # the rest is transparency
    return [
        [sum(row[start : start + colours]) / colours for start in range(0, len(row), channels)]
        for row in _unfiltered(packed, 1 + width * channels, channels)
    ]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(SIGNATURE):
        raise ValueError("no PNG")
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _unfiltered(packed: bytes, stride: int, step: int) -> Iterator[bytes]:
    above = bytes(stride - 1)
    for start in range(0, len(packed), stride):
        kind, row = packed[start], bytearray(packed[start + 1 : start + stride])
        for at, value in enumerate(row) if kind else ():
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            row[at] = value + (0, left, above[at], (left + above[at]) // 2, _paeth(left, above[at], corner))[kind] & 255
        above = bytes(row)
        yield above


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))

"""Checksums: cheap beside a hash, they tell what has changed by chance, and those of pieces make that of the whole.

Known are those that storages check. Of each kind the fastest is taken that is at hand.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module

_COPIED = 64 << 10  # bytes at a time: so they stay in the processor's cache
_WORTH_LOADING = 1 << 28  # bytes of a model from which on a faster checksum is worth the 80 ms of loading it

# Their polynomials, the lowest power in the highest bit.
_POLYNOMIALS = {"crc32": 0xEDB88320, "crc32c": 0x82F63B78, "crc64nvme": 0x9A6C9329AC4BC9B5}
CRC32, CRC32C, CRC64 = _POLYNOMIALS


@dataclass(frozen=True, slots=True)
class Checksum:
    """A kind of checksum.

    :param kind: one of the above.
    :param take: returns the checksum of bytes, given that of those before them.
    """

    kind: str
    take: Callable[..., int]


def checksum_for(size: int, wanted: str | None = None) -> Checksum:
    """Return what sums up a model of so many bytes: what is wanted, or else the cheapest that is at hand.

    Those of ``awscrt``, of the package's extra ``fast``, take a third of the time of zlib's CRC-32, and are loaded
    where that saves more than loading costs.

    :param wanted: the kind that the model's destination checks.
    """
    for kind in (wanted, CRC64, CRC32):
        if kind is not None and (found := _at_hand(kind, size)):
            return found
    raise AssertionError("unreachable")


def checksum_of(kind: str, content: memoryview) -> int | None:
    """Return a checksum of bytes; ``None`` where nothing is installed that computes it fast."""
    found = _at_hand(kind, 0) or _at_hand(kind, _WORTH_LOADING)
    return None if found is None else found.take(content)


def _at_hand(kind: str, size: int) -> Checksum | None:
    if size >= _WORTH_LOADING and (take := _imported("awscrt.checksums", kind)):
        return Checksum(kind, take)
    if kind == CRC32:
        return Checksum(kind, zlib.crc32)
    if kind == CRC32C and (extend := _imported("google_crc32c", "extend")):
        return Checksum(kind, partial(_take_copies, extend))
    return None


def _take_copies(extend: Callable[[int, bytes], int], content: memoryview, before: int = 0) -> int:
    """Sum up with what takes bytes objects only."""
    for start in range(0, len(content), _COPIED):
        before = extend(before, bytes(content[start : start + _COPIED]))
    return before


def _imported(module: str, name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(import_module(module), name)
    except ImportError:
        return None
    return found


def carried(kind: str, before: int, length: int) -> int:
    """Return what the checksum of bytes adds to the one of those behind them, for that of both together.

    The latter is the exclusive or of the two. So that of those behind is the one of both and of what this returns.

    :param before: the checksum of the first bytes.
    :param length: how many are behind them.
    """
    if not before:  # as of no bytes
        return 0
    return _times(before, _shift(length, _POLYNOMIALS[kind]), _POLYNOMIALS[kind])


@lru_cache
def _shift(length: int, polynomial: int) -> int:
    """Return what a checksum is multiplied with when so many bytes follow: x to eight times that."""
    one = 1 << (polynomial.bit_length() - 1)
    power, square, exponent = one, one >> 1, 8 * length
    while exponent:
        if exponent & 1:
            power = _times(power, square, polynomial)
        square = _times(square, square, polynomial)
        exponent >>= 1
    return power


def _times(first: int, second: int, polynomial: int) -> int:
    """Return a product of polynomials over two elements, modulo another one."""
    product, bit = 0, 1 << (polynomial.bit_length() - 1)
    while bit:
        if first & bit:
            product ^= second
        second = second >> 1 ^ (polynomial if second & 1 else 0)
        bit >>= 1
    return product

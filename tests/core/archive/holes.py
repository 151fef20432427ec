"""Files that are one hole, and take no room."""

from __future__ import annotations

import zlib
from array import array

from airflow_provider_modelsync.core.archive.checksums import CRC32, carried
from airflow_provider_modelsync.core.archive.digest import SPAN


def sums_of_zeros(size: int) -> array[int]:
    """Return the checksums of a file of zeros, of whole spans, without taking them."""
    one = zlib.crc32(bytes(SPAN))
    sums = array("Q", [one])
    while len(sums) < size // SPAN:
        sums.append(carried(CRC32, sums[-1], SPAN) ^ one)
    return sums

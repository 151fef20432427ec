"""Checksums: which is taken, and how those of pieces become one."""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from airflow_provider_modelsync.core.archive.checksums import CRC32, CRC32C, CRC64, carried, checksum_for, checksum_of

# Of "123456789", as their catalogue tells.
KNOWN = {CRC32: 0xCBF43926, CRC32C: 0xE3069283, CRC64: 0xAE8B14860A799888}
LARGE = 1 << 28
BOTH = random.Random(1).randbytes(200_000)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_checksum_is_what_its_catalogue_tells(kind: str) -> None:
    assert checksum_of(kind, memoryview(b"123456789")) == KNOWN[kind]
    for size in (0, LARGE):
        found = checksum_for(size, kind)
        assert found.take(memoryview(bytearray(b"789")), found.take(memoryview(b"123456"))) == KNOWN[found.kind]


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("cut", [0, 1, 70_001, len(BOTH)])
def test_the_checksum_of_two_pieces_follows_from_theirs(kind: str, cut: int) -> None:
    first, second, both = (checksum_of(kind, memoryview(part)) for part in (BOTH[:cut], BOTH[cut:], BOTH))
    assert first is not None
    assert second is not None
    assert second ^ carried(kind, first, len(BOTH) - cut) == both


def test_what_is_taken_is_what_is_wanted_or_else_the_cheapest() -> None:
    assert (checksum_for(LARGE - 1).kind, checksum_for(LARGE).kind) == (CRC32, CRC64)
    assert checksum_for(LARGE - 1).take is zlib.crc32
    assert (checksum_for(0, CRC32C).kind, checksum_for(LARGE, CRC32C).kind) == (CRC32C, CRC32C)
    assert checksum_for(LARGE, CRC32).kind == CRC32
    assert (checksum_for(0, CRC64).kind, checksum_for(LARGE, CRC64).kind) == (CRC32, CRC64)


def test_what_is_not_installed_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    assert checksum_for(LARGE, CRC64).kind == CRC32
    assert checksum_for(LARGE, CRC32C).kind == CRC32C
    assert checksum_of(CRC64, memoryview(b"1")) is None
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    assert checksum_for(LARGE, CRC32C).kind == CRC32
    assert checksum_of(CRC32C, memoryview(b"1")) is None

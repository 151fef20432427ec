"""Damaged archives of every kind: nothing escapes, nothing is left behind, and only the two errors are raised."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.archive.extract import Limits, extract_archive
from airflow_provider_modelsync.core.errors import CorruptArchive, InvalidInput, UnsafeArchive
from tests.core.archive.hostile import (
    CASES,
    GNU,
    GOOD,
    OLD,
    POSIX,
    WITH_FIXTURES,
    file,
    folder,
    header,
    listing,
    long_name,
    padded,
    pax,
    record,
    scratch,
    squeezed,
    tar,
)

WHOLE = tar(
    folder("./"),
    folder("d/"),
    file("d/a", b"a" * 600, mode=0o755),
    pax(record("path", "d/é" + "n" * 120), record("mtime", "1.5")),
    file("d/b", b"b"),
    long_name("d/" + "m" * 120),
    file("d/c", b"", magic=GNU),
    pax(record("comment", "c"), kind=b"g"),
    GOOD,
)
pytestmark = pytest.mark.faults

HEADERS = [offset for offset in range(0, len(WHOLE), 512) if WHOLE[offset + 257 : offset + 262] == b"ustar"]
PARTS = [part for case in CASES if case.limits is None and len(part := case.build("nowhere")) < 1 << 16]
LIMITS = Limits(max_members=50, max_bytes=1 << 20)

fuzz = settings(max_examples=150, suppress_health_check=WITH_FIXTURES)


@pytest.fixture
def attempt() -> Iterator[Callable[[bytes], bool]]:
    """Return what tries an archive and says whether it was unpacked, having looked at everything around it."""
    with scratch() as room:
        yield watched(room)


def watched(room: Path) -> Callable[[bytes], bool]:
    (room / "canary").write_bytes(b"alive")
    (room / "beside").mkdir()
    target = room / "beside" / "target"

    def attempt(data: bytes) -> bool:
        try:
            tree = extract_archive(io.BytesIO(data), target, limits=LIMITS)
        except (UnsafeArchive, CorruptArchive):
            assert listing(room) == {"canary": b"alive", "beside": None}
            return False
        around = {path for path in listing(room) if not path.startswith("beside/target")}
        assert around == {"canary", "beside"}
        assert not any(path.is_symlink() for path in target.rglob("*"))
        try:
            assert read_tree(target) == tree
        except InvalidInput:  # it holds directories only
            assert not tree.files
        shutil.rmtree(target)
        return True

    return attempt


def resummed(block: bytes) -> bytes:
    """Return a header with the right checksum."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def test_the_undamaged_archive_is_unpacked(attempt: Callable[[bytes], bool]) -> None:
    assert attempt(WHOLE)
    assert attempt(squeezed(WHOLE))


@fuzz
@given(length=st.integers(0, len(WHOLE) - 1))
@pytest.mark.row("H8", of="archives")
def test_a_cut_archive_is_never_unpacked(attempt: Callable[[bytes], bool], length: int) -> None:
    assert not attempt(WHOLE[:length])


@fuzz
@given(length=st.integers(0, len(squeezed(WHOLE)) - 1))
def test_a_cut_gzip_archive_is_never_unpacked(attempt: Callable[[bytes], bool], length: int) -> None:
    assert not attempt(squeezed(WHOLE)[:length])


@fuzz
@given(offset=st.integers(10, len(squeezed(WHOLE)) - 1), change=st.integers(1, 255))
def test_a_gzip_archive_with_one_wrong_byte_never_gives_other_bytes(
    attempt: Callable[[bytes], bool], offset: int, change: int
) -> None:
    data = bytearray(squeezed(WHOLE))
    data[offset] ^= change
    assert not attempt(bytes(data)) or gzip.decompress(data) == WHOLE  # deflate has several ways to tell the same


@fuzz
@given(header=st.sampled_from(HEADERS), offset=st.integers(0, 511), change=st.integers(1, 255))
def test_a_header_with_one_wrong_byte_is_never_unpacked(
    attempt: Callable[[bytes], bool], header: int, offset: int, change: int
) -> None:
    if 148 <= offset < 156:
        return  # the checksum itself can be told in more than one way
    data = bytearray(WHOLE)
    data[header + offset] ^= change
    assert not attempt(bytes(data))


@fuzz
@given(changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=30))
@pytest.mark.row("H5", "H8", of="archives")
def test_any_bytes_may_be_wrong(attempt: Callable[[bytes], bool], changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for offset, value in changes:
        data[offset] = value
    attempt(bytes(data))


FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "kind": (156, 1),
    "magic": (257, 8),
    "prefix": (345, 155),
}


@fuzz
@given(
    where=st.sampled_from(HEADERS),
    changes=st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.binary(max_size=16)
        | st.sampled_from([b"../x", b"/", b"..", b".", b"./", b"d", b"D/a", b"0" * 11, b"777", b"\x80", b"\xff" * 12])
        | st.sampled_from([b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"7", POSIX, GNU, OLD]),
        min_size=1,
        max_size=3,
    ),
)
def test_fields_may_lie_under_a_right_checksum(
    attempt: Callable[[bytes], bool], where: int, changes: dict[str, bytes]
) -> None:
    block = bytearray(WHOLE[where : where + 512])
    for field, value in changes.items():
        offset, width = FIELDS[field]
        block[offset : offset + width] = value[:width].ljust(width, b"\0")
    attempt(WHOLE[:where] + resummed(bytes(block)) + WHOLE[where + 512 :])


@fuzz
@given(block=st.binary(min_size=512, max_size=512), rest=st.binary(max_size=1200))
def test_noise_under_a_right_checksum(attempt: Callable[[bytes], bool], block: bytes, rest: bytes) -> None:
    attempt(resummed(block) + padded(rest) + bytes(1024))
    attempt(tar(GOOD, resummed(block), padded(rest)))


@fuzz
@given(
    content=st.binary(max_size=80) | st.text("0123456789 =\npathsize./", max_size=60).map(str.encode),
    name=st.text(max_size=60),
)
@example(content=b"11 path=a/\n", name="b")
@example(content=b"9 size=0\n", name="b")
def test_noise_in_extended_headers(attempt: Callable[[bytes], bool], content: bytes, name: str) -> None:
    noise = header("x", len(content), b"x") + padded(content)
    attempt(tar(noise, GOOD))
    attempt(tar(header("x", len(content), b"g") + padded(content), GOOD))
    attempt(tar(long_name(name.encode("utf-8", "surrogateescape") if name.isprintable() else content), noise, GOOD))
    attempt(tar(pax(record("path", name.encode("utf-8", "replace"))), file("fallback")))


@fuzz
@given(data=st.binary(max_size=3000), start=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", GOOD]))
def test_noise(attempt: Callable[[bytes], bool], data: bytes, start: bytes) -> None:
    attempt(start + data)


@fuzz
@given(order=st.lists(st.sampled_from(PARTS), max_size=4))
def test_archives_in_a_row(attempt: Callable[[bytes], bool], order: list[bytes]) -> None:
    attempt(b"".join(part.removesuffix(bytes(1024)) for part in order) + bytes(1024))

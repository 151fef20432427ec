"""How an archive is cut into parts: within what storages take, and without a gap or an overlap."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive.digest import FileEntry, SourceTree
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.plan import Address, PutParts, choose_part_size

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
SMALLEST, LARGEST = 5 * MIB, 5 * GIB  # a part, the last one excepted
MOST_PARTS = 10_000


class Sized(TarLayout):
    """An archive of which only the length matters."""

    def __init__(self, size: int) -> None:
        super().__init__(SourceTree(Path("/nowhere"), (FileEntry("a", 0, "0" * 64),), (), {}), {})
        self.size = size


def parts_of(size: int, part_size: int) -> PutParts:
    def nowhere(number: int) -> Flow[Address]:
        raise AssertionError("nobody asks")

    return PutParts(Sized(size), OpenUpload("u", part_size), nowhere, UploadMemory(None))


def spans(way: PutParts) -> list[tuple[int, int]]:
    return [way.span(number) for number in range(1, way.count + 1)]


# --- the size of parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10_240, 16 * MIB, 100 * GIB])
def test_parts_have_16_mib_when_nobody_wants_anything_else(size: int) -> None:
    assert choose_part_size(size) == 16 * MIB


@pytest.mark.parametrize("wanted", [5, 6, 16, 100, 5120])
def test_the_wanted_size_is_taken(wanted: int) -> None:
    assert choose_part_size(40 * GIB, wanted) == wanted * MIB


@pytest.mark.parametrize("wanted", [None, 5, 16])
def test_parts_grow_when_there_would_be_too_many(wanted: int | None) -> None:
    assert choose_part_size(5 * TIB, wanted) == 525 * MIB


@pytest.mark.parametrize("wanted", [5, 16])
@pytest.mark.row("D8", of="source")
def test_parts_grow_at_the_very_byte(wanted: int) -> None:
    most = MOST_PARTS * wanted * MIB
    assert choose_part_size(most, wanted) == wanted * MIB
    assert choose_part_size(most + 1, wanted) == (wanted + 1) * MIB


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(1, 5 * TIB), st.none() | st.integers(5, 5120))
def test_any_archive_is_cut_as_storages_want_it(size: int, wanted: int | None) -> None:
    part_size = choose_part_size(size, wanted)
    assert SMALLEST <= part_size <= LARGEST
    assert part_size % MIB == 0
    assert -(-size // part_size) <= MOST_PARTS
    if wanted is not None and wanted * MIB != part_size:
        assert part_size > wanted * MIB
        assert -(-size // (part_size - MIB)) > MOST_PARTS  # no larger than it has to be


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(("more", "extra", "last"), [(0, 0, SMALLEST), (-1, 0, SMALLEST - 1), (1, 1, 1)])
@pytest.mark.row("D8", of="source")
def test_an_archive_of_exactly_some_parts_and_of_a_byte_more_or_less(
    count: int, more: int, extra: int, last: int
) -> None:
    way = parts_of(count * SMALLEST + more, SMALLEST)
    assert way.count == count + extra
    assert [length for _, length in spans(way)] == [SMALLEST] * (way.count - 1) + [last]


def test_an_archive_smaller_than_a_part_is_one_part() -> None:
    assert spans(parts_of(10_240, 16 * MIB)) == [(0, 10_240)]


@pytest.mark.slow
@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 100))
def test_parts_cover_the_archive_without_gap_or_overlap(size: int, part_size: int) -> None:
    position = 0
    for start, length in spans(parts_of(size, part_size)):
        assert start == position
        assert 0 < length <= part_size
        position += length
    assert position == size


def test_the_largest_archive_is_covered_too() -> None:
    size = 5 * TIB
    way = parts_of(size, choose_part_size(size))
    assert way.count <= MOST_PARTS
    assert way.span(1) == (0, way.upload.part_size)
    start, length = way.span(way.count)
    assert start + length == size
    assert 0 < length <= way.upload.part_size


def test_parts_put_together_are_the_archive(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 100)
    layout = TarLayout.of(tmp_path)
    way = PutParts(layout, OpenUpload("u", 7_000), parts_of(1, 1).address, UploadMemory(None))
    assert b"".join(layout.reader(*span).readall() for span in spans(way)) == layout.read(0, layout.size)

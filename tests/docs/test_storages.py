"""The table of storages in the documents is what the storages can do."""

from __future__ import annotations

import pytest

from tests.services.s3_servers import SERVERS
from tests.services.storages import COLUMNS, DOCUMENT, azurite_row, in_process, line, others, played, real, written
from tests.standins.s3_quirks import STORAGES

TABLE = written(DOCUMENT.read_text())
REAL = ["Ceph", *SERVERS]
OTHERS = ["Google Cloud Storage", "Azure Blob Storage"]
PLAYED = 1 + len(STORAGES) + len(OTHERS)


@pytest.fixture(autouse=True)
def at_once(no_waiting: None) -> None:
    """No test waits between tries."""


def test_the_table_lists_what_is_run_and_what_is_played() -> None:
    names = [text.split("|")[1].strip() for text in TABLE[2:]]
    assert TABLE[0] == line(COLUMNS)
    assert names == [*REAL, "Azurite", "moto", *STORAGES, *OTHERS]


def test_the_rows_of_what_is_played_are_as_the_stand_in_plays() -> None:
    assert [line(cells) for cells in (in_process(), *played(), *others())] == TABLE[-PLAYED:]


@pytest.mark.s3
def test_the_rows_of_what_is_run_are_as_the_servers_answer() -> None:
    assert [line(cells) for cells in real()] == TABLE[2 : 2 + len(REAL)]


@pytest.mark.stores
def test_the_row_of_azurite_is_as_it_answers() -> None:
    assert line(azurite_row()) == TABLE[2 + len(REAL)]

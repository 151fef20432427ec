"""The table of faults holds: no row and no cell is without a test or a reason, and the document shows it as it is."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.conformance.registries import PROVIDERS
from tests.docs import reliability
from tests.docs.faults import COLUMNS, EXAMPLES, ROWS
from tests.mutants.run import SURVIVORS


def test_every_cell_has_a_test_or_a_reason() -> None:
    assert reliability.gaps() == []


def test_every_registry_and_storage_has_a_column() -> None:
    told = {name for column in COLUMNS.values() for name in column.providers} | EXAMPLES
    systems = tuple(f"{name}-" for name in COLUMNS)
    missing = [name for name in PROVIDERS if name not in told and not name.startswith(systems)]

    assert missing == [], "give it a column in tests/docs/faults.py"


def test_the_document_shows_the_rows_as_they_are() -> None:
    text = reliability.DOCUMENT.read_text()

    assert text == reliability.replaced(text), "run `make reliability`"


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_told_in_words(row: str) -> None:
    assert ROWS[row].fault.endswith(".")
    assert re.search(r"[.;)]$|nothing\.$", ROWS[row].promise)
    assert set(ROWS[row].but) <= COLUMNS.keys()


def test_a_cell_without_a_test_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = reliability.tests()
    monkeypatch.setattr(reliability, "tests", lambda: tuple(test for test in shown if "T11" not in test.rows))

    assert [gap for gap in reliability.gaps() if gap.startswith("T11 × bucket")]


def test_every_survivor_has_a_reason() -> None:
    entries = tomllib.loads(SURVIVORS.read_text()).get("survivor", [])

    assert all(len(entry["reason"]) > 20 for entry in entries)

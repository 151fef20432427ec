"""What the benchmarks have in common: turns, what a run leaves behind, and the drawings made of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.fair import machine, turns
from benchmarks.plots import DRAWINGS, draw
from benchmarks.suite import BENCHMARKS, tables_in

PRINTED = """SHA-256: 0.6

| waiters | requests per interval | CPU % of a core |
| --- | --- | --- |
| 50 | 48 | 0.9 |
| 10,000 | 48 | −2 |

| MiB | push CPU s | pull CPU s |
| --- | --- | --- |
| 64 | 0.1 | 0 |
"""


def test_everybody_begins_once() -> None:
    assert [list(turns("abc", number)) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_the_tables_that_a_benchmark_prints_are_its_results() -> None:
    waiting, growth = tables_in(PRINTED)
    assert waiting[1] == {"waiters": "10,000", "requests per interval": "48", "CPU % of a core": "−2"}
    assert growth == [{"MiB": "64", "push CPU s": "0.1", "pull CPU s": "0"}]


def test_every_benchmark_is_there() -> None:
    root = Path(__file__).parents[1]
    assert all((root / "benchmarks" / f"{name}.py").is_file() for name in BENCHMARKS)
    makefile = (root / "Makefile").read_text()
    assert all(f"\nbench-{name}:" in makefile for name in BENCHMARKS)


def test_growth_is_drawn_from_results(tmp_path: Path) -> None:
    waiting, growth = tables_in(PRINTED)
    paths = list(draw({"polling": {"tables": [waiting]}, "growth": {"tables": [growth]}}, tmp_path))
    assert {path.name for path in paths} == {"growth-size.svg", "growth-waiters.svg"} <= DRAWINGS.keys()
    for path in paths:
        drawing = ET.fromstring(path.read_text())
        assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 2


@pytest.mark.slow
def test_the_machine_is_told() -> None:
    facts = machine()
    assert int(facts["cores"]) > 0
    assert float(facts["SHA-256 CPU-s/GiB"]) > 0
    assert facts["processor"]

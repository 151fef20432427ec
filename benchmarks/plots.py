"""Drawings of how costs grow: one SVG for each table, both axes logarithmic, so that what is linear is a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 56, 150, 30, 40
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
# File → the benchmark, the column that is counted, and the costs that are drawn over it.
DRAWINGS = {
    "growth-size.svg": ("growth", "MiB", ("push CPU s", "pull CPU s")),
    "growth-files.svg": ("growth", "files", ("push CPU s", "pull CPU s")),
    "growth-versions.svg": ("growth", "versions", ("latest CPU s", "push CPU s")),
    "growth-waiters.svg": ("polling", "waiters", ("requests per interval", "CPU % of a core")),
}

Points = list[tuple[float, float]]


def draw(results: Mapping[str, Any], directory: Path) -> Iterator[Path]:
    """Write the drawings for which a run has results; yield their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, (benchmark, across, costs) in DRAWINGS.items():
        for table in results.get(benchmark, {}).get("tables", ()):
            if table and across in table[0]:
                lines = {
                    cost: [(_number(row[across]), max(_number(row[cost]), 0.001)) for row in table] for cost in costs
                }
                path = directory / name
                path.write_text(svg(across, lines))
                yield path


def svg(across: str, lines: Mapping[str, Points]) -> str:
    """Return a drawing of some costs over a count."""
    points = [point for line in lines.values() for point in line]
    low, high = (_decades([value for value, _ in points]), _decades([value for _, value in points]))
    x = _scale(low, LEFT, WIDTH - RIGHT)
    y = _scale(high, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for power in range(low[0], low[1] + 1):
        at = x(10.0**power)
        parts += [_line(at, TOP, at, HEIGHT - BOTTOM), _text(at, HEIGHT - BOTTOM + 14, f"{10**power:,}", "middle")]
    for power in range(high[0], high[1] + 1):
        at = y(10.0**power)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 6, at + 4, f"{10.0**power:g}", "end")]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle"))
    for number, (cost, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
        parts.append(_text(WIDTH - RIGHT + 12, TOP + 14 + 18 * number, cost, "start", colour))
    return "\n".join((*parts, "</svg>\n"))


def _decades(values: list[float]) -> tuple[int, int]:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return first, max(last, first + 1)


def _scale(decades: tuple[int, int], start: float, end: float) -> Any:
    first, last = decades
    return lambda value: start + (math.log10(value) - first) / (last - first) * (end - start)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _number(cell: str) -> float:
    return float(cell.replace(",", "").replace("−", "-").split()[0])

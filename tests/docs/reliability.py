"""The table of faults: which test shows for which registry that a fault ends as promised.

Tests say so themselves, by ``@pytest.mark.row("T1", of="sends")``. ``of`` is a *part* that registries share, a
registry's column, or several of them; below ``tests/core/registries`` and in ``tests/conformance`` it may be left out.
The tests are read, not run, and what a registry uses is read from its code. ``make reliability`` writes the document.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from airflow_provider_modelsync.core.registries.base import Capability
from tests.conformance.registries import PROVIDERS
from tests.docs.documents import ROOT
from tests.docs.faults import COLUMNS, PARTS, ROWS, Row

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- rows: written by `make reliability` -->", "<!-- rows end -->"
TESTS = ROOT / "tests"
CORE = ROOT / "airflow_provider_modelsync" / "core"


@dataclass(frozen=True)
class Shown:
    """A test that is marked.

    :param columns: the registries that it is about, by their place; ``None`` is whoever uses the parts.
    :param parts: what it is about; ``None`` is all that a registry does.
    """

    rows: tuple[str, ...]
    file: Path
    title: str
    columns: frozenset[str] | None
    parts: frozenset[str] | None

    def shows(self, column: str, part: str) -> bool:
        """Whether it shows something of a registry's part."""
        return (self.columns is None or column in self.columns) and (self.parts is None or part in self.parts)

    @property
    def link(self) -> str:
        return f"[{self.title}](../{self.file.relative_to(ROOT)})"


@cache
def used_by(column: str) -> frozenset[str]:
    """Return the parts that a registry's code uses."""
    words = set()
    for path in COLUMNS[column].code:
        files = [CORE / path] if path.endswith(".py") else sorted((CORE / path).rglob("*.py"))
        for file in files:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    words |= {(node.module or "").partition(".")[0], *(alias.name for alias in node.names)}
                elif isinstance(node, ast.Import):
                    words |= {alias.name.partition(".")[0] for alias in node.names}
    kind = PROVIDERS[COLUMNS[column].providers[0]].registry_type
    words |= {capability.name for capability in kind.capabilities}
    return frozenset(name for name, part in PARTS.items() if all(words & set(one) for one in part.used_with))


def _marks(decorators: list[ast.expr]) -> Iterator[ast.Call]:
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                yield node


def _needs(decorators: list[ast.expr]) -> frozenset[Capability]:
    found = [node for node in decorators if isinstance(node, ast.Call) and ast.unparse(node.func) == "needs"]
    return frozenset(Capability[ast.unparse(name).rpartition(".")[2]] for node in found for name in node.args)


def _place(file: Path, needed: frozenset[Capability], is_networked: bool) -> frozenset[str] | None:
    """Return the columns that a test is about by where it stands."""
    inside = file.relative_to(TESTS).as_posix()
    if inside.startswith("conformance/"):
        able = {name for name, provider in PROVIDERS.items() if needed <= provider.registry_type.capabilities}
        reached = {name for name in COLUMNS if not is_networked or used_by(name) & {"calls", "storage", "rest"}}
        return frozenset(name for name in reached if able & set(COLUMNS[name].providers))
    if not inside.startswith(("core/registries/", "core/storages/", "stores/")):
        return None
    found = {name: column for name, column in COLUMNS.items() if any(inside.startswith(path) for path in column.tests)}
    longest = {
        name: max(len(path) for path in column.tests if inside.startswith(path)) for name, column in found.items()
    }
    return frozenset(name for name, length in longest.items() if length == max(longest.values()))


def _shown(file: Path, mark: ast.Call, title: str, decorators: list[ast.expr]) -> Shown:
    rows = tuple(ast.literal_eval(argument) for argument in mark.args)
    of = next((ast.literal_eval(keyword.value) for keyword in mark.keywords if keyword.arg == "of"), ())
    names = {of} if isinstance(of, str) else set(of)
    where = f"{file.relative_to(ROOT)}: {title}"
    assert names <= PARTS.keys() | COLUMNS.keys(), f"{where}: {names} names no part and no column"
    assert rows, f"{where}: names no row"
    assert set(rows) <= ROWS.keys(), f"{where}: {rows} names no row"
    columns, parts = names & COLUMNS.keys(), names & PARTS.keys()
    is_networked = any(ast.unparse(one) == "pytest.mark.networked" for one in decorators)
    place = frozenset(columns) if columns else _place(file, _needs(decorators), is_networked)
    assert place is not None or parts, f"{where}: of which part, or of which registry?"
    return Shown(rows, file, title, place, frozenset(parts) or None)


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _spaced(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name.removeprefix("Test")).strip()


@cache
def tests() -> tuple[Shown, ...]:
    """Return every test that is marked."""
    found = []
    for file in sorted(TESTS.rglob("test_*.py")):
        text = file.read_text()
        if "mark.row(" not in text:
            continue
        tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found += [
                    _shown(file, mark, _words(node.name), node.decorator_list) for mark in _marks(node.decorator_list)
                ]
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name.startswith("test_"):
                        title = f"{_spaced(node.name)}: {_words(inner.name)}"
                        marks = _marks([*node.decorator_list, *inner.decorator_list])
                        found += [_shown(file, mark, title, inner.decorator_list) for mark in marks]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                title = (ast.get_docstring(tree) or file.stem).partition(".")[0].partition(":")[0].replace("\n", " ")
                found += [_shown(file, mark, title[0].lower() + title[1:], []) for mark in _marks([node.value])]
    return tuple(found)


def cell(row: Row, column: str) -> tuple[list[Shown], str | None, list[str]]:
    """Return what stands in a cell: tests, or why it cannot apply, and the parts for which there is neither."""
    if column in row.but:
        return [], row.but[column], []
    of_row = [test for test in tests() if row.id in test.rows]
    own = [test for test in of_row if test.columns is not None and column in test.columns]
    concerned = [part for part in row.about if part in used_by(column)]
    if not concerned:
        return own, None if own else "; ".join(PARTS[part].otherwise for part in row.about), []
    candidates = own if row.each else of_row
    found = [test for test in of_row if any(test.shows(column, part) for part in concerned)]
    lacking = [part for part in concerned if not any(test.shows(column, part) for test in candidates)]
    return found, None, lacking


def gaps() -> list[str]:
    """Return what the table lacks."""
    found = []
    for row in ROWS.values():
        for column in COLUMNS:
            shown, reason, lacking = cell(row, column)
            found += [f"{row.id} × {column}: no test shows the part {part!r}" for part in lacking]
            if reason is not None and any(test.columns and column in test.columns for test in _own(row)):
                found.append(f"{row.id} × {column}: is said not to apply, and has a test")
            if not shown and not reason and not lacking:
                found.append(f"{row.id} × {column}: empty")
    return found


def _own(row: Row) -> list[Shown]:
    return [test for test in tests() if row.id in test.rows and "conformance" not in test.file.parts]


def _groups(row: Row) -> Iterator[tuple[list[str], list[Shown], str | None]]:
    """Yield the columns that have the same tests, or the same reason."""
    seen: dict[tuple[object, ...], list[str]] = {}
    for column in COLUMNS:
        shown, reason, _ = cell(row, column)
        key = (tuple(sorted({test.link for test in shown})), reason)
        seen.setdefault(key, []).append(column)
    for (links, reason), columns in seen.items():
        yield columns, [test for test in tests() if test.link in links], reason  # type: ignore[operator]


def _cell_word(row: Row, column: str) -> str:
    shown, reason, _ = cell(row, column)
    if reason is not None:
        return "–"
    own = [test for test in shown if test.columns is not None]
    return "own" if own else "shared"


def _section(name: str, rows: list[Row]) -> Iterator[str]:
    titles = [column.title for column in COLUMNS.values()]
    yield f"### {name}\n"
    yield "| Row | Fault | " + " | ".join(titles) + " |"
    yield "| --- | --- |" + " --- |" * len(titles)
    for row in rows:
        cells = " | ".join(_cell_word(row, column) for column in COLUMNS)
        yield f"| {row.id} | {row.fault} | {cells} |"
    yield ""
    for row in rows:
        yield f"**{row.id}. {row.fault}** {row.promise}\n"
        shared: set[str] = set()
        everybody = [test for test in tests() if row.id in test.rows and test.columns is None]
        if everybody:
            by_part: dict[str, list[str]] = {}
            for test in everybody:
                for part in sorted(test.parts or ()):
                    by_part.setdefault(part, []).append(test.link)
            for part, links in by_part.items():
                yield f"- {PARTS[part].title}: {'; '.join(dict.fromkeys(links))}"
                shared |= set(links)
        for columns, shown, reason in _groups(row):
            names = ", ".join(COLUMNS[column].title for column in columns)
            own = list(dict.fromkeys(test.link for test in shown if test.link not in shared))
            if reason is not None:
                yield f"- {names}: cannot apply: {reason}"
            elif own:
                yield f"- {names}: {'; '.join(own)}"
        yield ""


def written() -> str:
    """Return the rows as the document shows them."""
    lines = [BEGIN, ""]
    sections: dict[str, list[Row]] = {}
    for row in ROWS.values():
        sections.setdefault(row.section, []).append(row)
    for name, rows in sections.items():
        lines += _section(name, rows)
    return "\n".join([*lines, END])


def replaced(text: str) -> str:
    """Return the document with its rows as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + written() + after


if __name__ == "__main__":
    if missing := gaps():
        sys.exit("\n".join(missing))
    DOCUMENT.write_text(replaced(DOCUMENT.read_text()))

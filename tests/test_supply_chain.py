"""What others bring: pinned by its hash, under licences that were looked at, and run by nothing but make."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scripts import licences
from tests.docs.documents import code_in, table

ROOT = Path(__file__).parents[1]
LOCKED = sorted((ROOT / "requirements").glob("*.txt"))
SECURITY = "SECURITY.md"


@pytest.mark.parametrize("file", LOCKED, ids=lambda path: path.stem)
def test_every_environment_is_pinned_by_hashes(file: Path) -> None:
    """A package that was exchanged on its index is not installed."""
    lines = re.sub(r"\\\n\s*", " ", file.read_text()).splitlines()
    wanted = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]

    assert wanted
    assert [line for line in wanted if not re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:", line)] == []


def test_environments_are_installed_by_their_hashes_only() -> None:
    installs = re.findall(r"uv pip sync [^\n]*|pip install [^\n]*", (ROOT / "Makefile").read_text())

    assert installs
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []


def test_make_has_a_rule_for_whatever_a_target_needs() -> None:
    """Nothing is made: a target that needs what there is no rule for is refused beforehand."""
    targets = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()

    told = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True)

    assert "sbom" in targets
    assert told.returncode == 0, told.stderr


def test_ci_runs_nothing_but_make() -> None:
    """So that no action of anybody's runs there, and what make brings is pinned."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    words = [shlex.split(line, comments=True) for line in lines]

    assert {line[0] for line in words if line} == {"set", "cd", "make"}


def test_the_licences_of_what_is_needed_are_listed_and_known() -> None:
    there = {name: licences.licence_of(package) for name, package in licences.closure().items()}

    assert {name: licence for name, licence in there.items() if not licences.is_allowed(licence)} == {}
    assert (ROOT / "docs" / "licences.md").read_text() == licences.page(), "make licences"
    assert not licences.is_allowed("GPL-3.0-only")
    assert licences.is_allowed("GPL-2.0-or-later OR MIT")


def _functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_threat_names_tests_that_are_there() -> None:
    rows = table(SECURITY, "Who")
    named = [name for row in rows for name in code_in(row["Shown by"])]

    assert {row["Who"] for row in rows} == {"registry", "model", "DAG author", "connection editor", "worker neighbour"}
    assert all(code_in(row["Shown by"]) for row in rows)
    for name in named:
        file, _, test = name.partition("::")
        assert test in _functions_in(ROOT / "tests" / file), name

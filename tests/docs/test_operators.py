"""The page of operators says of each class what its docstring says, and what becomes of its task."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from tests.docs.documents import ROOT
from tests.operators.test_arguments import CLASSES, public_arguments

PAGE = (ROOT / "docs" / "operators.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^#{2,3} |\Z)", PAGE))
each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def described(kind: type) -> dict[str, str]:
    """Return what a docstring says of each argument, and of the result."""
    doc = inspect.getdoc(kind) or ""
    entries = re.findall(r"(?ms)^:(?:param )?(\w+):(.*?)(?=^:|\Z)", doc)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def defaults(kind: Any) -> dict[str, str]:
    """Return each argument's default, as the page writes it."""
    return {
        name: "needed" if parameter.default is parameter.empty else f"`{_written(name, parameter.default)}`"
        for name, parameter in public_arguments(kind).items()
    }


def _written(name: str, default: Any) -> str:
    if name == "deferrable":
        return "[operators] default_deferrable"
    return str(default) if not isinstance(default, (str, tuple)) else repr(default)


def rows(kind: type) -> list[tuple[str, str, str]]:
    """Return the rows of a class's table."""
    told = described(kind)
    return [(f"`{name}`", default, told[name].replace(" (templated)", "")) for name, default in defaults(kind).items()]


def test_every_class_has_a_section_and_no_other() -> None:
    assert sorted(SECTIONS) == sorted(kind.__name__ for kind in CLASSES)


@each_class
def test_the_first_page_leads_to_a_section(kind: type) -> None:
    assert f"(docs/operators.md#{kind.__name__.lower()})" in (ROOT / "README.md").read_text()


@each_class
def test_every_docstring_tells_of_every_argument(kind: type) -> None:
    told = described(kind)
    returned = told.pop("return")

    assert returned
    assert told.keys() == public_arguments(kind).keys()  # type: ignore[arg-type]
    assert [name for name, text in told.items() if "(templated)" not in text] == []


@each_class
def test_a_section_has_the_arguments_of_the_docstring(kind: type) -> None:
    told = [
        tuple(cell.strip() for cell in line.strip("|").split(" | "))
        for line in SECTIONS[kind.__name__].splitlines()
        if line.startswith("| `")
    ]

    assert told == rows(kind)


@each_class
def test_a_section_says_where_the_class_is_and_what_becomes_of_its_task(kind: type) -> None:
    section = " ".join(SECTIONS[kind.__name__].split())

    assert f"`{kind.__module__.removeprefix('airflow_provider_modelsync.')}`" in section
    assert f"**Leaves** {described(kind)['return']}" in section
    for outcome in ("**Fails for good**", "**Tried again**"):
        assert outcome in section


def test_every_family_has_an_example() -> None:
    families = re.split(r"(?m)^## ", PAGE)[1:]

    assert all("```python" in family for family in families if "\n### " in family)
    shown = "".join(re.findall(r"(?s)```python\n(.*?)```", PAGE))
    assert [
        kind.__name__
        for kind in CLASSES
        if f"{kind.__name__}(" not in shown and f"{kind.__name__}.partial(" not in shown
    ] == []

"""The registry of ``docs/adding-a-registry.md``, as its reader would have it: files of a distribution of its own."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from airflow_provider_modelsync.core.registries.base import Registry
from tests.docs.documents import code_blocks

PAGE = "docs/adding-a-registry.md"
# Where each block of the page belongs, by its kind.
FILES = {
    "python registry": "modelshelf/registry.py",
    "python pushing": "modelshelf/pushing.py",
    "python hook": "modelshelf/hook.py",
    "python provider": "modelshelf/provider.py",
    "toml project": "pyproject.toml",
}


def sources() -> dict[str, str]:
    """Return the distribution's files."""
    blocks = [block for block in code_blocks() if block.where.startswith(PAGE)]
    found = {FILES[block.kind]: block.text for block in blocks if block.kind in FILES}
    assert len(found) == len(FILES) == len(blocks), "the page holds each file once, and nothing else"
    return {**found, "modelshelf/__init__.py": ""}


@cache
def registry_types() -> tuple[type[Registry], type[Registry]]:
    """Return the class that reads and the one that pushes, too, executed from the page."""
    return _module("registry").Shelf, _module("pushing").WritableShelf


def _module(name: str) -> ModuleType:
    module = ModuleType(f"modelshelf.{name}")
    sys.modules[module.__name__] = module  # where the next one, pydantic and dataclasses look things up
    exec(compile(sources()[f"modelshelf/{name}.py"], PAGE, "exec"), module.__dict__)
    return module

"""The registry of ``docs/adding-a-registry.md``, as its reader would have it: files of a distribution of its own."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from tests.docs.documents import code_blocks

PAGE = "docs/adding-a-registry.md"
# Where each block of the page belongs, by its kind.
FILES = {
    "python registry": "modelshelf/registry.py",
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
def registry_module() -> ModuleType:
    """Return the module of the registry, executed from the page."""
    module = ModuleType("modelshelf_of_the_page")
    sys.modules[module.__name__] = module  # where pydantic and dataclasses look types up
    exec(compile(sources()["modelshelf/registry.py"], PAGE, "exec"), module.__dict__)
    return module

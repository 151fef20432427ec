"""The tutorial's DAG files, as they stand in ``docs/tutorial.md``."""

from __future__ import annotations

from tests.docs.documents import ROOT, Block, code_blocks

DOCUMENT = str((ROOT / "docs" / "tutorial.md").relative_to(ROOT))


def dag_files() -> list[Block]:
    """Return the tutorial's Python blocks, in their order."""
    return [block for block in code_blocks() if block.kind == "python" and block.where.startswith(f"{DOCUMENT}:")]


def first_dag() -> str:
    """Return the first of them."""
    return dag_files()[0].text

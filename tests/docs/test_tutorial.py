"""The tutorial, from its first block to its last in one world, as a reader goes through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.documents import code_blocks
from tests.docs.test_code_blocks import KINDS
from tests.docs.tutorial import DOCUMENT, dag_files
from tests.docs.world import world_of

pytestmark = pytest.mark.documents


def test_each_step_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_database: Path) -> None:
    steps = [block for block in code_blocks() if block.where.startswith(f"{DOCUMENT}:")]
    text = "\n".join(step.text for step in steps)

    with world_of(text, tmp_path, monkeypatch) as world:
        for step in steps:
            KINDS[step.kind](world.local(step.text), world)
            if step == dag_files()[0]:
                KINDS[step.kind](world.local(step.text), world)  # its second run finds everything there
                store = world.work / "store" / "line"
                assert len([path for path in store.iterdir() if path.name != ".modelsync"]) == 1
                assert (world.work / "serving" / "line.json").is_file()
        assert (world.work / "newest" / "line.json").is_file()

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are for its user only."""
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        Path(scratch).chmod(0o755)
        yield Path(scratch)

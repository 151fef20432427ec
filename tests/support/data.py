"""Where the data that tests read lies, recorded exchanges with the systems among them."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data"

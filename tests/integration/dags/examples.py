"""Example DAGs, where the tests' Airflow looks for DAGs."""

from __future__ import annotations

import runpy
from pathlib import Path

_DIRECTORY = Path(__file__).parents[3] / "example_dags"
EXAMPLES = {name: runpy.run_path(str(_DIRECTORY / f"{name}.py"))[name] for name in ("fleet_sync", "nightly_sync")}
DAGS = [make() for make in EXAMPLES.values()]

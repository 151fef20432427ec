"""Example DAGs, where the tests' Airflow looks for DAGs."""

from __future__ import annotations

import runpy
from pathlib import Path

_DIRECTORY = Path(__file__).parents[3] / "example_dags"
_NAMES = (
    "fleet_sync",
    "mlflow_train_promote_pull",
    "nightly_sync",
    "pieces_local_model",
    "supervisely_batch_predict",
    "sync_into_production",
    "taskflow",
)
EXAMPLES = {name: runpy.run_path(str(_DIRECTORY / f"{name}.py"))[name] for name in _NAMES}
DAGS = [make() for make in EXAMPLES.values()]

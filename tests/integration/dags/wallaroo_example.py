"""The Wallaroo example, where the tests' Airflow looks for DAGs."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "example_dags" / "wallaroo_train_push_deploy.py"

wallaroo_train_push_deploy = runpy.run_path(str(EXAMPLE))["wallaroo_train_push_deploy"]
dag = wallaroo_train_push_deploy()

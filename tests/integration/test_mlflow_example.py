"""MLflow's example, run by Airflow in this process, against the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from tests.conftest import Connect
from tests.standins.mlflow import MLflowStandIn
from tests.support.examples import run_example

pytestmark = pytest.mark.documents


def test_a_trained_model_becomes_the_champion_and_is_pulled(
    airflow_database: Path, connect: Connect, tmp_path: Path
) -> None:
    with MLflowStandIn(tmp_path / "server", user=("jane", "canary-pass")) as server:
        connect("mlflow_default", conn_type="mlflow", host=server.url, login="jane", password="canary-pass")

        state, tasks, left = run_example("mlflow_train_promote_pull")

        assert (state, set(tasks.values())) == ("success", {"success"}), tasks
        assert (left["push"]["ref"], left["push"]["labels"]) == (
            "digits:1",
            {"trained_by": "mlflow_train_promote_pull"},
        )
        assert left["push"]["metadata"] == {"accuracy": left["train"]["accuracy"]}
        assert (left["promote"]["promoted"], left["promote"]["to"]) == (True, "digits:1")
        assert (left["pull"]["ref"], left["pull"]["alias"]) == ("digits:1", "champion")
        assert digest_directory(left["pull"]["path"]) == left["push"]["digest"]

"""The BentoCloud examples through a real scheduler and triggerer, with the vendor's own command where they need it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standins.bentocloud import BentoCloudStandIn
from tests.vendors.test_bentocloud_vendor import INTERPRETER

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from local_airflow import LocalAirflow, local_airflow, migrated_database  # noqa: E402

pytestmark = [pytest.mark.vendor, pytest.mark.slow]

DAGS = ("bentocloud_train_push", "bentocloud_train_push_deploy", "train_push_wait_pull")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path_factory.mktemp("store"), transmission_strategy="presigned_url") as server:
        yield server


@pytest.fixture(scope="module")
def airflow(server: BentoCloudStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    home, dags = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("dags")
    for name in DAGS:
        shutil.copy(ROOT / "example_dags" / f"{name}.py", dags)
    connection = {"conn_type": "bentocloud", "host": server.url, "password": server.token}
    connections = {"modelsync_default": connection, "bentocloud_default": connection}
    with pytest.MonkeyPatch.context() as patch:
        python = Path(os.environ.get(INTERPRETER, ROOT / ".venv-vendors" / "bentocloud" / "bin" / "python"))
        assert python.exists(), f"{python} is missing: run `make test-vendors`"
        patch.setenv("MODELSYNC_BENTOML", str(python.parent / "bentoml"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # bentoml builds with uv
        database = migrated_database(tmp_path_factory.mktemp("database"))
        with local_airflow(home, dags, connections, database=database) as airflow:
            yield airflow


@pytest.mark.parametrize("name", DAGS)
def test_runs_against_bentocloud(airflow: LocalAirflow, server: BentoCloudStandIn, name: str) -> None:
    run_id = airflow.trigger(name)

    state = airflow.wait(name, run_id)

    failed = [task for task, facts in airflow.tasks(name, run_id).items() if facts["state"] != "success"]
    assert state == "success", "\n".join(airflow.log(name, run_id, task) for task in failed)
    assert server.model("digits", airflow.xcom(name, run_id, "push")["version"]).upload_status == "success"
    for task in airflow.tasks(name, run_id):
        assert server.token not in airflow.log(name, run_id, task)

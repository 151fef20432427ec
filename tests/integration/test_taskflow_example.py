"""The example that hands versions from task to task, run by Airflow in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.verbs.push import version_of
from tests.conftest import Connect
from tests.core.stores import write_tree
from tests.standins.bentocloud import BentoCloudStandIn

pytestmark = pytest.mark.documents


def test_versions_go_from_task_to_task(
    airflow_database: Path, modelstore: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.integration.dags import examples

    run = examples.EXAMPLES["taskflow"]().test(run_conf={"work": str(tmp_path / "work")})

    left: dict[str, Any] = {
        instance.task_id: (str(instance.state), instance.xcom_pull(task_ids=instance.task_id))
        for instance in run.get_task_instances()
    }
    states = {name: state for name, (state, _) in left.items()}
    assert states.pop("deploy") == "skipped"
    assert set(states.values()) == {"success"}, states
    assert left["count"][1] == 1
    digest = digest_directory(tmp_path / "work" / "trained")
    for pulled in ("pulled", "each/0"):
        assert digest_directory(tmp_path / "work" / pulled) == digest
    told = capfd.readouterr()
    assert "XCom not found" not in told.out + told.err  # a model store has no pages to link to


def test_a_deployment_takes_what_a_push_returns(airflow_database: Path, connect: Connect, tmp_path: Path) -> None:
    from tests.integration.dags import examples

    trained = write_tree(tmp_path / "same", {"weights.txt": b"0.1 0.2 0.3\n"})
    model = f"digits:{version_of(digest_directory(trained))}"
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        connect("modelsync_default", conn_type="bentocloud", host=server.url, password=server.token)
        server.seed_bento("digits", "b1", models=[model])

        run = examples.EXAMPLES["taskflow"]().test(run_conf={"work": str(tmp_path / "work"), "deploy": True})

    instances = {instance.task_id: instance for instance in run.get_task_instances()}
    assert {str(instance.state) for instance in instances.values()} == {"success"}
    told = instances["deploy"].xcom_pull(task_ids="deploy")
    assert (told["model"], told["artifact"], told["ready"]) == (model, "digits:b1", True)

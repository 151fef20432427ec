"""The example that asks a person before it deploys, in a real Airflow, answered through its REST API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts.local_airflow import LocalAirflow, local_airflow
from tests.standins.bentocloud import BentoCloudStandIn
from tests.support.cloud import changes

pytestmark = pytest.mark.e2e

EXAMPLE = "approve_then_deploy"
ROOT = Path(__file__).parents[2]
BENTO = {
    "name": "svc",
    "version": "b1",
    "service": "service:Svc",
    "services": [{"name": "Svc", "service": "", "models": [{"tag": "fraud:v1"}]}],
    "spec": 2,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path_factory.mktemp("cloud")) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, server: BentoCloudStandIn
) -> Iterator[LocalAirflow]:
    base = tmp_path_factory.mktemp("airflow")
    home, dags = base / "home", base / "dags"
    for directory in (home, dags):
        directory.mkdir()
    shutil.copy(ROOT / "example_dags" / f"{EXAMPLE}.py", dags)
    connection = {"conn_type": "bentocloud", "host": server.url, "password": server.token}
    with local_airflow(home, dags, {"bentocloud_default": connection}, database=migrated_database) as running:
        yield running


@pytest.fixture
def conf(tmp_path: Path, source: Path) -> dict[str, str]:
    """The run's parameters: a model, and a bento built with it."""
    bento = tmp_path / "bento"
    bento.mkdir()
    (bento / "bento.yaml").write_text(yaml.safe_dump(BENTO))
    return {"model": "fraud:v1", "source": str(source), "bento": str(bento)}


class Person:
    """Answers questions as the user interface does."""

    def __init__(self, airflow: LocalAirflow) -> None:
        self._client = httpx.Client(base_url=f"{airflow.base_url}/api/v2", timeout=30, trust_env=False)
        token = httpx.get(f"{airflow.base_url}/auth/token", trust_env=False).json()["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    def question(self, run_id: str) -> dict[str, Any]:
        """Return what is asked."""
        return self._client.get(self._path(run_id)).raise_for_status().json()

    def answer(self, run_id: str, option: str) -> None:
        """Choose an option."""
        body = {"chosen_options": [option], "params_input": {}}
        self._client.patch(self._path(run_id), json=body).raise_for_status()

    @staticmethod
    def _path(run_id: str) -> str:
        return f"/dags/{EXAMPLE}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"


def states(airflow: LocalAirflow, run_id: str) -> dict[str, str]:
    return {name: task["state"] for name, task in airflow.tasks(EXAMPLE, run_id).items()}


def links(airflow: LocalAirflow, run_id: str, task: str) -> dict[str, str]:
    """Return a task's links as the grid shows them."""
    found: dict[str, str] = airflow.get(f"/dags/{EXAMPLE}/dagRuns/{run_id}/taskInstances/{task}/links")["extra_links"]
    return found


def asked(airflow: LocalAirflow, conf: dict[str, str]) -> str:
    """Start a run and return its id once it waits for a person."""
    run_id = airflow.trigger(EXAMPLE, conf)
    airflow.wait_for_task(EXAMPLE, run_id, "approve", "awaiting_input")
    return run_id


def test_nothing_is_deployed_before_a_person_agrees(
    airflow: LocalAirflow, server: BentoCloudStandIn, conf: dict[str, str]
) -> None:
    before = len(changes(server))
    run_id = asked(airflow, conf)
    person = Person(airflow)
    question = person.question(run_id)

    assert (question["subject"], question["options"]) == ("Deploy fraud:v1?", ["Approve", "Reject"])
    assert "svc:b1" in question["body"]
    assert airflow.xcom(EXAMPLE, run_id, "push")["digest"] in question["body"]
    assert len(changes(server)) == before

    person.answer(run_id, "Approve")

    assert airflow.wait(EXAMPLE, run_id) == "success"
    deployed = airflow.xcom(EXAMPLE, run_id, "deploy")
    assert (deployed["name"], deployed["ready"], deployed["artifact"]) == ("fraud", True, "svc:b1")
    assert links(airflow, run_id, "deploy") == {"Registry console": deployed["page"], "Deployment": deployed["url"]}
    for task, page in (
        ("push", "model_repositories/fraud/models/v1"),
        ("push_bento", "bento_repositories/svc/bentos/b1"),
    ):
        assert links(airflow, run_id, task) == {"Registry console": f"{server.url}/{page}"}


def test_nothing_is_deployed_when_a_person_refuses(
    airflow: LocalAirflow, server: BentoCloudStandIn, conf: dict[str, str]
) -> None:
    before = len(changes(server))
    run_id = asked(airflow, conf)
    Person(airflow).answer(run_id, "Reject")

    assert airflow.wait(EXAMPLE, run_id) == "success"
    assert states(airflow, run_id) == {
        "push": "success",
        "push_bento": "success",
        "approve": "success",
        "deploy": "skipped",
    }
    assert len(changes(server)) == before

"""The provider in a real Airflow: api-server, scheduler and triggerer, driven through the REST API."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from scripts.local_airflow import LocalAirflow, local_airflow
from tests.conftest import Connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("a running Airflow")]

EXAMPLE, WAITING = "train_push_wait_pull", "wait_for_version"
ROOT = Path(__file__).parents[2]
CANARY = "canary-4f1c0de5"
BY_HAND = "LC_ALL=C; find . -type f -printf '%P\\0' | sort -z | xargs -0 sha256sum | sha256sum"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a model store, empty at first."""
    return tmp_path_factory.mktemp("models") / "store"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, store: Path) -> Iterator[LocalAirflow]:
    """A running Airflow whose connection holds secrets that the store has no use for."""
    base = tmp_path_factory.mktemp("airflow")
    home, dags, scratch = base / "home", base / "dags", base / "tmp"
    for directory in (home, dags, scratch):
        directory.mkdir()
    shutil.copy(ROOT / "example_dags" / f"{EXAMPLE}.py", dags)
    shutil.copy(Path(__file__).parent / "dags" / f"{WAITING}.py", dags)
    connection = {
        "conn_type": "modelstore",
        "host": store.as_uri(),
        "password": CANARY,
        "extra": {"session_token": f"{CANARY}-token"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))  # the example works below it
        with local_airflow(home, dags, {"modelsync_default": connection}, database=migrated_database) as running:
            yield running


@pytest.fixture(scope="module")
def first_run(airflow: LocalAirflow) -> str:
    """A run of the example that has succeeded."""
    run_id = airflow.trigger(EXAMPLE)
    assert_succeeds(airflow, EXAMPLE, run_id)
    return run_id


def assert_succeeds(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    """Wait for a run's success; show the logs of what has failed."""
    if airflow.wait(dag_id, run_id) != "success":
        failed = [name for name, task in airflow.tasks(dag_id, run_id).items() if task["state"] == "failed"]
        pytest.fail("\n".join(airflow.log(dag_id, run_id, name) for name in failed))


def versions_in(store: Path) -> list[str]:
    """What versions of the example's model a store holds."""
    return sorted(path.stem for path in (store / "digits" / ".modelsync").glob("*.json"))


def test_the_example_brings_back_the_model_that_it_trained(airflow: LocalAirflow, first_run: str) -> None:
    assert airflow.xcom(EXAMPLE, first_run, "compare") == "450 of 450 predictions are identical"
    assert airflow.xcom(EXAMPLE, first_run, "push")["skipped"] is False


def test_the_digest_is_what_a_shell_computes(airflow: LocalAirflow, first_run: str) -> None:
    for task, where in (("push", "uri"), ("pull", "path")):
        left = airflow.xcom(EXAMPLE, first_run, task)
        directory = left[where].removeprefix("file://")
        by_hand = subprocess.run(BY_HAND, shell=True, cwd=directory, check=True, capture_output=True, text=True).stdout
        assert left["digest"] == f"sha256:{by_hand.split()[0]}"


def test_a_second_run_pushes_nothing(airflow: LocalAirflow, first_run: str, store: Path) -> None:
    run_id = airflow.trigger(EXAMPLE)
    assert_succeeds(airflow, EXAMPLE, run_id)

    first, second = (airflow.xcom(EXAMPLE, run, "push") for run in (first_run, run_id))
    assert second["skipped"] is True
    assert second["ref"] == first["ref"]
    assert versions_in(store) == [first["version"]]


def test_a_cleared_push_makes_no_second_version(airflow: LocalAirflow, first_run: str, store: Path) -> None:
    before = versions_in(store), airflow.tasks(EXAMPLE, first_run)
    airflow.clear(EXAMPLE, first_run, "push")
    assert_succeeds(airflow, EXAMPLE, first_run)

    after = airflow.tasks(EXAMPLE, first_run)
    again = {name for name, task in after.items() if task["try_number"] != before[1][name]["try_number"]}
    assert again == {"push"}
    assert "nothing is sent" in airflow.log(EXAMPLE, first_run, "push")
    assert airflow.xcom(EXAMPLE, first_run, "push")["skipped"] is True
    assert versions_in(store) == before[0]


def test_the_log_tells_the_progress(airflow: LocalAirflow, first_run: str) -> None:
    for task, doing in (("push", "pushing digits"), ("pull", "pulling digits:")):
        log = airflow.log(EXAMPLE, first_run, task)
        assert doing in log
        assert "(100 %)" in log


def test_a_sensor_defers_until_another_pushes_the_version(
    airflow: LocalAirflow, store: Path, connect: Connect, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pulled"
    run_id = airflow.trigger(WAITING, {"model": "letters:v1", "target": str(target)})
    airflow.wait_for_task(WAITING, run_id, "wait", "deferred")
    assert not (store / "letters").exists()

    connect("from_outside", conn_type="modelstore", host=store.as_uri())
    pushed = ModelStoreHook("from_outside").push(source, "letters:v1")
    assert_succeeds(airflow, WAITING, run_id)

    assert airflow.xcom(WAITING, run_id, "wait")["digest"] == pushed.digest
    assert digest_directory(target) == pushed.digest


def test_airflow_lists_the_provider(airflow: LocalAirflow) -> None:
    listed = json.loads(airflow.command("providers", "list", "--output", "json"))

    assert "airflow-provider-modelsync" in {provider["package_name"] for provider in listed}


def test_the_connection_form_knows_the_model_store(airflow: LocalAirflow) -> None:
    form = airflow.connection_types()["modelstore"]

    assert form["hook_name"] == "Model Store"
    assert form["standard_fields"]["host"]["title"] == "Root"
    assert form["standard_fields"]["password"]["title"] == "Secret access key"
    assert form["extra_fields"]["max_workers"]["schema"]["title"] == "Threads"


def test_the_connection_can_be_tested_from_the_command_line(airflow: LocalAirflow) -> None:
    assert "Connection success!" in airflow.command("connections", "test", "modelsync_default")


def test_no_log_holds_a_secret(airflow: LocalAirflow, first_run: str) -> None:
    logs = [path for path in airflow.home.rglob("*.log") if path.is_file()]

    assert {"push", "pull"} <= {path.parent.name.removeprefix("task_id=") for path in logs}
    assert [path for path in logs if CANARY in path.read_text()] == []

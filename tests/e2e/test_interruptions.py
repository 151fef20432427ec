"""What people and restarts do to a task that waits in the triggerer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from scripts.local_airflow import LocalAirflow
from tests.e2e.runs import Run, Triggerer
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay
from tests.standins.wallaroo import WallarooStandIn
from tests.support.cloud import changes
from tests.support.until import until

pytestmark = pytest.mark.e2e


def test_a_wait_survives_a_restart_of_the_triggerer(
    airflow: LocalAirflow, triggerer: Triggerer, bentocloud: BentoCloudStandIn, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pulled"
    run = Run.start(airflow, "wait_for_version", model="late:v1", target=str(target))
    run.until("wait", "deferred")
    for _ in range(2):
        looks = bentocloud.count("GET", "/late")
        until(lambda seen=looks: bentocloud.count("GET", "/late") > seen, "a look")
        triggerer.restart()

    pushed = BentoCloudHook().push(source, "late:v1")

    run.succeed()
    assert digest_directory(target) == pushed.digest
    assert [task["try_number"] for task in run.instances()] == [1, 1]


def slow_deployment(airflow: LocalAirflow, server: BentoCloudStandIn, source: Path, name: str) -> Run:
    """Start a roll-out that never ends, and wait until a task waits for it in the triggerer."""
    BentoCloudHook().push(source, f"{name}:v1")
    server.seed_bento(name, "b1", models=[f"{name}:v1"])
    server.script_deployment(name, ["deploying"])
    run = Run.start(airflow, "deploy", registry="bentocloud_default", deployment=name, model=f"{name}:v1")
    until_the_triggerer_looks(run, lambda: server.count("GET", f"/deployments/{name}"))
    return run


def until_the_triggerer_looks(run: Run, count: Callable[[], int]) -> None:
    """Wait until a deferred deployment is the triggerer's: before that nobody would be told of its end."""
    run.until("deploy", "deferred")
    looks = count()
    until(lambda: count() > looks, "a look of the triggerer")


def was_ended(server: BentoCloudStandIn, name: str) -> bool:
    """Whether a deployment was ended at some time; it may be rolled out anew meanwhile."""
    return any(record["status"] == "terminating" for record in [*server.deployments[name].records])


def was_left(run: Run) -> bool:
    """Whether a cleared deployment is its new try's: before Airflow 3.3 that may wait before anybody asks."""
    if TELLS_OF_KILLS:
        return False
    for _ in range(2):  # who has asked before that may be about to end it
        (task,) = run.instances()
        if (task["try_number"], task["state"]) != (2, "deferred"):
            return False
        time.sleep(1)
    return True


def test_a_restart_of_the_triggerer_leaves_a_roll_out_alone(
    airflow: LocalAirflow, triggerer: Triggerer, bentocloud: BentoCloudStandIn, source: Path
) -> None:
    run = slow_deployment(airflow, bentocloud, source, "patient")
    triggerer.restart()
    bentocloud.deployments["patient"].status = "running"

    run.succeed()

    assert run.left("deploy")["ready"]
    assert changes(bentocloud, "patient") == [("POST", "")]


def test_marking_a_deferred_deploy_failed_ends_the_roll_out_at_bentocloud(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path
) -> None:
    run = slow_deployment(airflow, bentocloud, source, "unwanted")

    run.mark_failed("deploy")

    until(lambda: was_ended(bentocloud, "unwanted"), "the roll-out to be taken back")
    assert changes(bentocloud, "unwanted") == [("POST", ""), ("POST", "/unwanted/terminate")]
    assert run.end() == "failed"


def test_what_was_started_is_taken_back_however_long_a_call_takes(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path
) -> None:
    """Airflow cancels the trigger again about every second, until the task is gone."""
    runs = {}
    for seconds in (0.1, 0.7, 2.0, 5.0):
        name = f"slow-{seconds:.1f}".replace(".", "-")
        runs[name] = slow_deployment(airflow, bentocloud, source, name)
        bentocloud.fault("*", f"/deployments/{name}", Delay(seconds), times=None)
    for run in runs.values():
        run.mark_failed("deploy")

    for name, run in runs.items():
        until(lambda name=name: was_ended(bentocloud, name), f"{name}'s end")
        assert run.end() == "failed"


def test_a_cleared_deploy_ends_with_its_deployment_running(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path
) -> None:
    """The new try may join the roll-out that the old try's trigger is still ending."""
    for seconds in (0.0, 1.0):
        name = f"cleared-{seconds:.0f}"
        run = slow_deployment(airflow, bentocloud, source, name)
        bentocloud.fault("*", f"/deployments/{name}/", Delay(seconds), times=None)
        airflow.clear("deploy", run.run_id, "deploy")
        until(lambda name=name, run=run: was_ended(bentocloud, name) or was_left(run), f"{name}'s end")
        bentocloud.script_deployment(name, ["running"])
        if not was_ended(bentocloud, name):
            bentocloud.deployments[name].status = "running"

        run.succeed()
        assert run.left("deploy")["ready"]
        assert bentocloud.deployments[name].status == "running"


def test_marking_a_deferred_deploy_failed_ends_the_pipeline_at_wallaroo(
    airflow: LocalAirflow, wallaroo: WallarooStandIn
) -> None:
    (workspace,) = [number for number, workspace in wallaroo.workspaces.items() if workspace.name == "examples"]
    wallaroo.seed(workspace, "unwanted")
    wallaroo.script_deployment("unwanted", ["Starting"])
    run = Run.start(airflow, "deploy", registry="wallaroo_default", deployment="unwanted", model="unwanted")
    until_the_triggerer_looks(run, wallaroo.count)
    ended = wallaroo.count("POST", "/pipelines/undeploy")

    run.mark_failed("deploy")

    until(lambda: wallaroo.count("POST", "/pipelines/undeploy") > ended, "the pipeline to be ended")
    assert run.end() == "failed"

"""One cluster for all tests, and the figures that they leave, which docs/operations.md quotes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cluster import Cluster, running_cluster
from tests.services.ceph_rgw import rgw
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.s3 import S3StandIn

ROOT = Path(__file__).parents[2]
WORKERS = ("one", "two")
PART_SIZE_MIB = 5
THREADS = 2  # that each task moves bytes in

# Each task of the first example runs where this says: what is pushed on one worker is pulled on another.
POLICY = """
HOSTS = {"train": "one", "push": "one", "wait": "two", "pull": "two", "compare": "two"}

def task_policy(task):
    if task.dag_id == "train_push_wait_pull":
        task.queue = HOSTS[task.task_id]
"""

_figures: list[str] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to show when everything is over."""
    lines: list[str] = []
    yield lines
    if lines:
        _figures.extend((f"{request.node.name}:", *(f"  {line}" for line in lines)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures."""
    for line in _figures:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3StandIn]:
    """Ceph's gateway behind a counter; every request goes through it."""
    with S3StandIn(rgw()) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BentoCloudStandIn]:
    """A BentoCloud, empty at first."""
    with BentoCloudStandIn(tmp_path_factory.mktemp("cloud")) as server:
        yield server


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, s3: S3StandIn, cloud: BentoCloudStandIn) -> Iterator[Cluster]:
    base = tmp_path_factory.mktemp("cluster")
    dags, config = base / "dags", base / "airflow" / "config"
    shutil.copytree(Path(__file__).parent / "dags", dags)
    for example in ("train_push_wait_pull", "fleet_sync"):
        shutil.copy(ROOT / "example_dags" / f"{example}.py", dags)
    config.mkdir(parents=True)
    (config / "airflow_local_settings.py").write_text(POLICY)
    bucket: dict[str, Any] = {
        "conn_type": "modelstore",
        "host": f"s3://{s3.bucket}/models",
        "login": s3.access_key,
        "password": s3.secret_key,
        "extra": {"endpoint_url": s3.endpoint, "part_size_mib": PART_SIZE_MIB, "max_workers": THREADS},
    }
    connections = {
        "modelsync_default": bucket,
        "modelstore_default": bucket,
        "bentocloud_default": {"conn_type": "bentocloud", "host": cloud.url, "password": cloud.token},
    }
    with running_cluster(base, dags, connections, WORKERS) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster, s3: S3StandIn, cloud: BentoCloudStandIn) -> Iterator[Cluster]:
    """The cluster with all its workers, and nothing in the logs of the systems around it."""
    for name in WORKERS:
        running.start(name)
    s3.clear()
    yield running
    s3.clear()

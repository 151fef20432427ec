"""A server, and workers that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.registries.mlflow import registry as mlflow
from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow, MLflowSettings
from tests.conformance.bench import Bench
from tests.conformance.registries import RegistryUnderTest, mlflow_under_test
from tests.core.stores import write_tree
from tests.standins.mlflow import MLflowStandIn

NAME = "fraud"
FILES = {"MLmodel": b"flavors: {}\n", "weights.bin": b"weights" * 1000, "d/empty": b"", "d/größe": b"x"}


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives a push up has time to tidy up, as nobody measures how long that takes."""
    monkeypatch.setattr(mlflow, "_ABORT_SECONDS", 60.0)


@pytest.fixture(params=[3, 2], ids=["3", "2"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MLflowStandIn]:
    with MLflowStandIn(tmp_path / "server", generation=request.param) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", FILES)


@pytest.fixture
def worker(server: MLflowStandIn, tmp_path: Path) -> Callable[..., Bench]:
    """Returns workers that share nothing; its arguments are fields of their connection."""
    numbers = count()

    def make(**fields: object) -> Bench:
        scratch = tmp_path / f"worker-{next(numbers)}"
        scratch.mkdir()
        plain = mlflow_under_test(server.url, lambda: len(server.requests))
        settings = MLflowSettings.read("mlflow_default", {"host": server.url, **fields})
        facts = {**vars(plain), "connect": lambda: MLflow(settings)}
        return Bench(RegistryUnderTest(**facts), scratch)

    return make


@pytest.fixture
def ml(worker: Callable[..., Bench]) -> Bench:
    return worker()


def holders(server: MLflowStandIn) -> list[str]:
    """What holds bytes and is not forgotten."""
    if server.generation == 3:
        return [model_id for model_id in server.logged if model_id not in server.deleted]
    return [run_id for run_id, run in server.runs.items() if run["info"]["lifecycle_stage"] == "active"]

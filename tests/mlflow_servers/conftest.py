"""Real servers, and the vendor's own client beside ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow, MLflowSettings
from tests.services.mlflow import Tracking, shared
from tests.standins.mlflow import MLflowStandIn


class Vendor:
    """The unmodified client, in a process of its own."""

    def __init__(self, server: Tracking) -> None:
        command = [str(server.python), str(Path(__file__).parent / "client.py")]
        self._process = subprocess.Popen(
            command, env=server.client_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *map(_plain, arguments)]) + "\n")
        self._process.stdin.flush()
        done, result = json.loads(self._process.stdout.readline())
        if not done:
            raise AssertionError(result)
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@pytest.fixture(scope="session")
def vendor_of() -> Iterator[Callable[[Tracking], Vendor]]:
    """Returns the client of a server, started when it is first wanted."""
    running: dict[str, Vendor] = {}

    def of(server: Tracking) -> Vendor:
        if server.url not in running:
            running[server.url] = Vendor(server)
        return running[server.url]

    yield of
    for vendor in running.values():
        vendor.close()


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tracking]:
    """A server of the kind that the test is parametrized with; of ``"stand-in"`` kinds that of the plain tests."""
    if not request.param.startswith("stand-in"):
        yield shared(request.param)
        return
    generation = 2 if request.param.endswith("-2") else 3
    scratch = tmp_path / "stand-in"
    with MLflowStandIn(scratch, generation=generation) as stand_in:
        yield Tracking(stand_in.url, generation, scratch, None, is_direct=False)


@pytest.fixture
def vendor(server: Tracking, vendor_of: Callable[[Tracking], Vendor]) -> Vendor:
    return vendor_of(server)


@pytest.fixture
def registry(server: Tracking) -> MLflow:
    """Ours, as a connection without a login makes it."""
    return connect(server)


def connect(server: Tracking, **fields: Any) -> MLflow:
    return MLflow(MLflowSettings.read("mlflow_default", {"host": server.url, **server.bucket_fields, **fields}))

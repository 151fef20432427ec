"""Real servers, and the vendor's own client beside ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bench import Bench
from tests.conformance.registries import mlflow_under_test
from tests.services.mlflow import Tracking, client_env, python_of, shared
from tests.services.moto_server import running_moto
from tests.standins.mlflow import MLflowStandIn

STAND_INS = ["stand-in", "stand-in-2"]
KINDS = ["local", "bucket", "direct", "local-2", "bucket-2", "direct-2"]
every_server = pytest.mark.parametrize("server", [*KINDS, *STAND_INS], indirect=True)
both_generations = pytest.mark.parametrize("server", ["local", "local-2", *STAND_INS], indirect=True)
_NUMBERS = count()

Client = Callable[..., Any]


class Vendor:
    """The unmodified client of a generation, in a process of its own."""

    def __init__(self, generation: int, home: Path) -> None:
        command = [str(python_of(generation)), str(Path(__file__).parent / "client.py")]
        with running_moto() as s3:
            env = client_env(s3, home)
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *words: Any) -> Any:
        """Have it do something; the words are those of ``client.py``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(map(_plain, words))) + "\n")
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
def vendor_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Vendor]]:
    """Returns the client of a generation, started when it is first wanted."""
    running: dict[int, Vendor] = {}

    def of(generation: int) -> Vendor:
        if generation not in running:
            running[generation] = Vendor(generation, tmp_path_factory.mktemp("vendor"))
        return running[generation]

    yield of
    for vendor in running.values():
        vendor.close()


@pytest.fixture(scope="session")
def saved(vendor_of: Callable[[int], Vendor], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Returns a model as the client of a generation saves it; nobody changes it."""

    @cache
    def of(generation: int) -> Path:
        place = tmp_path_factory.mktemp("saved") / "model"
        vendor_of(generation)("file:///nowhere", "save", place)
        return place

    return of


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
def vendor(server: Tracking, vendor_of: Callable[[int], Vendor]) -> Client:
    """The client of the server's generation, which talks to it."""
    return partial(vendor_of(server.generation), server.url)


@pytest.fixture
def trained(server: Tracking, saved: Callable[[int], Path]) -> Path:
    """A model as the client has saved it."""
    return saved(server.generation)


@pytest.fixture
def ml(server: Tracking, tmp_path: Path) -> Bench:
    """Ours, as a connection without a login makes it."""
    return connect(server, tmp_path)


def connect(server: Tracking, scratch: Path, **fields: Any) -> Bench:
    """Return a worker of ours, whose connection has further fields."""
    return Bench(mlflow_under_test(server.url, lambda: None, **server.bucket_fields, **fields), scratch)


@pytest.fixture
def name() -> str:
    """A model that is not there yet."""
    return f"model it's {next(_NUMBERS)}"

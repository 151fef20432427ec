"""Real MLflow tracking servers, in environments of their own, each on a free port of 127.0.0.1."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from scripts.local_airflow import free_port
from tests.services.moto_server import running_moto
from tests.services.s3 import S3Service

ROOT = Path(__file__).parents[2]
ADMIN, PASSWORD = "admin", "secret-of-tests-3f9a"
BUCKET = "mlflow"
_PATIENCE = 300  # seconds that a server may take to start beside other work

# What each is started with: the generation of its environment, the application, and what its environment says.
_SERVING = {"_MLFLOW_SERVER_SERVE_ARTIFACTS": "true", "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/"}
_IN_BUCKET = {"_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{BUCKET}/proxied"}
_DIRECT = {"_MLFLOW_SERVER_ARTIFACT_ROOT": f"s3://{BUCKET}/direct"}  # the server passes nothing on
_APP = "mlflow.server.fastapi_app:app"
KINDS: dict[str, tuple[int, tuple[str, ...], dict[str, str]]] = {
    "local": (3, (_APP,), _SERVING),
    "bucket": (3, (_APP,), {**_SERVING, **_IN_BUCKET}),
    "direct": (3, (_APP,), _DIRECT),
    "workspaces": (3, (_APP,), {**_SERVING, "MLFLOW_ENABLE_WORKSPACES": "true"}),
    "login": (3, ("--app-name", "basic-auth"), {}),  # only its own command makes the first user
    "local-2": (2, ("mlflow.server:app",), _SERVING),
    "bucket-2": (2, ("mlflow.server:app",), {**_SERVING, **_IN_BUCKET}),
    "direct-2": (2, ("mlflow.server:app",), _DIRECT),
}


@dataclass(frozen=True)
class Tracking:
    """A running server.

    :param url: where it answers.
    :param generation: 2 or 3.
    :param directory: where it keeps what it has.
    :param s3: the storage behind it, if there is one.
    :param is_direct: whether it leaves that to its clients.
    """

    url: str
    generation: int
    directory: Path
    s3: S3Service | None
    is_direct: bool

    @property
    def python(self) -> Path:
        """The interpreter of its environment, which has the client, too."""
        return python_of(self.generation)

    @property
    def bucket_fields(self) -> dict[str, str]:
        """What a connection says of the bucket that the server passes nothing on of; nothing where there is none."""
        if self.s3 is None or not self.is_direct:
            return {}
        keys = {"aws_access_key_id": self.s3.access_key, "aws_secret_access_key": self.s3.secret_key}
        return {**keys, "endpoint_url": self.s3.endpoint}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Make a plain call, as no client of ours does; return the answer's JSON."""
        content = None if body is None else json.dumps(body).encode()
        named = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        request = Request(f"{self.url}{path}", content, named, method=method)
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def empty(self) -> None:
        """Remove all registered models."""
        found = self.ask("GET", "/api/2.0/mlflow/registered-models/search?max_results=1000")
        for model in found.get("registered_models", ()):
            self.ask("DELETE", "/api/2.0/mlflow/registered-models/delete", {"name": model["name"]})

    def client_env(self) -> dict[str, str]:
        """What the vendor's client needs in its environment to use this server."""
        return {**client_env(self.s3, self.directory), "MLFLOW_TRACKING_URI": self.url}


_QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def client_env(s3: S3Service | None, home: Path) -> dict[str, str]:
    """Return what the vendor's client needs in its environment, whatever its server.

    :param s3: the storage that it may have to reach by itself.
    :param home: a directory of its own.
    """
    return {**_QUIET, **_aws(s3), "PATH": os.environ["PATH"], "HOME": str(home)}


def python_of(generation: int) -> Path:
    """Return the interpreter of the environment that has a generation of MLflow."""
    found = ROOT / ".venv-mlflow" / str(generation) / "bin" / "python"
    if not found.exists():
        raise RuntimeError("there is no environment with MLflow: start these tests with `make test-mlflow`")
    return found


@cache
def shared(kind: str) -> Tracking:
    """Return a server of a kind that the whole process uses."""
    generation, application, facts = KINDS[kind]
    directory, port = _scratch(), free_port()
    s3 = _bucket() if f"s3://{BUCKET}" in " ".join(facts.values()) else None
    environment = {
        **client_env(s3, directory),
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{directory}/store.db",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(directory / "artifacts"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
        **facts,
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "login":
        places = ["--backend-store-uri", environment["_MLFLOW_SERVER_FILE_STORE"], "--serve-artifacts"]
        places += ["--artifacts-destination", environment["_MLFLOW_SERVER_ARTIFACT_DESTINATION"]]
        module, arguments = "mlflow", ["server", *where, "--workers", "1", *places, *application]
    elif generation == 3:
        module, arguments = "uvicorn", [*where, "--log-level", "warning", *application]
    else:
        module, arguments = "gunicorn", ["--workers", "1", "--bind", f"127.0.0.1:{port}", *application]
    url = f"http://127.0.0.1:{port}"
    _hatchery(generation).start(module, arguments, environment, directory, f"{url}/health")
    return Tracking(url, generation, directory, s3, kind.startswith("direct"))


def _bucket() -> S3Service:
    with running_moto() as s3:
        s3.client().create_bucket(Bucket=BUCKET)
        return s3


def _scratch() -> Path:
    """Return a directory that goes with this process."""
    directory = Path(mkdtemp(prefix="modelsync-mlflow-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@contextmanager
def served(server: Tracking, uri: str) -> Iterator[str]:
    """Have the vendor's own command serve a model; yield where it answers."""
    port, directory = free_port(), _scratch()
    arguments = ["models", "serve", "-m", uri, "--host", "127.0.0.1", "--port", str(port), "--env-manager", "local"]
    # Its own server is started by a name that is looked for in the path.
    environment = {**server.client_env(), "PATH": f"{server.python.parent}:{os.environ['PATH']}"}
    url = f"http://127.0.0.1:{port}"
    group = _hatchery(server.generation).start("mlflow", arguments, environment, directory, f"{url}/ping")
    try:
        yield url
    finally:
        os.killpg(group, signal.SIGTERM)


class _Hatchery:
    """What starts the servers of a generation, and ends them with this process."""

    def __init__(self, generation: int) -> None:
        command = [str(python_of(generation)), "-P", str(Path(__file__).parent / "mlflow_hatchery.py")]
        environment = {**_QUIET, "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self._end)

    def start(self, module: str, arguments: list[str], environment: dict[str, str], directory: Path, sign: str) -> int:
        """Start a server and wait until it answers; return its process's id, which leads a group."""
        facts = {"module": module, "arguments": arguments, "environment": environment, "directory": str(directory)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
                with urlopen(sign, timeout=60):
                    return pid
            except (HTTPError, ProcessLookupError):
                break
            except OSError:
                time.sleep(0.2)
        log = (directory / "log").read_text()[-2000:]
        raise RuntimeError(f"the server has ended, or does not answer: {log}")

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_hatchery = cache(_Hatchery)


def _aws(s3: S3Service | None) -> dict[str, str]:
    if s3 is None:
        return {}
    return {
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }

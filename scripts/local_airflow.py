"""A private Airflow on this machine: api-server, scheduler and triggerer in a directory of their own.

Used by the demo and by the tests that need the real components. Everything listens on 127.0.0.1 and ends with the
``with`` block.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

# That of this environment; the connection forms of another are tested from here, too.
AIRFLOW = (os.environ.get("MODELSYNC_AIRFLOW", sys.executable), "-m", "airflow")
TERMINAL = {"success", "failed"}
PATIENCE = 600.0  # seconds for what comes within some on a machine that does nothing else
_PAGE = 100  # more are not given at once
_KEPT: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port that nobody listens on, and that the system gives to nobody else while this process lives.

    Who asks for it by its number may have it, as servers do that reuse addresses.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _KEPT.append(keeper)
    return int(keeper.getsockname()[1])


def environment(home: Path, dags: Path, connections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the environment variables of a private Airflow.

    :param home: its directory, for database and logs.
    :param dags: the directory of its DAG files.
    :param connections: connection id → connection as a dictionary.
    """
    # Each task is a new process: without byte code on disk every one of them would compile Airflow again.
    unwanted = ("AIRFLOW", "PYTHONDONTWRITEBYTECODE")
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(unwanted)},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "3",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__API__ENABLE_XCOM_DESERIALIZE_SUPPORT": "True",  # later ones always do
        # Those who write wait for each other, by themselves for 5 s only. The API server may wait for itself, and then
        # nobody has an answer for so long: that must be less than what a trigger has to take back what it began.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout=15",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        # On a busy machine an answer takes long, so does a file of DAGs, and a task waits for its turn for longer than
        # it is let in by itself.
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": "36000",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "PYTHONWARNINGS": "ignore",
        **{f"AIRFLOW_CONN_{key.upper()}": json.dumps(value) for key, value in connections.items()},
    }


def migrated_database(cache: Path) -> Path:
    """Return an empty, migrated SQLite database, made once and kept in a directory."""
    database = cache / "airflow.db"
    if not database.exists():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = cache / f"migrating-{os.getpid()}"
        scratch.mkdir()
        env = environment(scratch, scratch, {})
        subprocess.run((*AIRFLOW, "db", "migrate"), env=env, check=True, capture_output=True)
        _give_no_trigger_an_id_again(scratch / "airflow.db")
        (scratch / "airflow.db").rename(database)
        shutil.rmtree(scratch)
    return database


def _give_no_trigger_an_id_again(database: Path) -> None:
    """Have SQLite number triggers as servers do.

    By itself it gives the id of a deleted last row again. A triggerer that is slow to look takes the trigger of a
    cleared task's next try for the one that it runs, and never ends that.
    """
    with closing(sqlite3.connect(database)) as connection:
        (table,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'trigger'").fetchone()
        body = table.partition("(")[2]
        numbered = re.sub(r"\bid INTEGER NOT NULL", "id INTEGER PRIMARY KEY AUTOINCREMENT", body, count=1)
        alone = re.sub(r",\s*CONSTRAINT \w+ PRIMARY KEY \(id\)", "", numbered, count=1)
        indices = connection.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'trigger' AND type = 'index'")
        again = [sql for (sql,) in indices.fetchall() if sql]
        script = ("DROP TABLE trigger", f"CREATE TABLE trigger ({alone}", *again)
        connection.executescript(";\n".join(script))


class LocalAirflow:
    """A running Airflow's REST API.

    :param port: of the api-server.
    :param env: the components' environment.
    """

    def __init__(self, port: int, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.home = Path(env["AIRFLOW_HOME"])
        self.base_url = f"http://127.0.0.1:{port}"
        # The server ends a connection that was idle for some seconds, maybe while the next request is on its way.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(base_url=self.base_url, timeout=300, trust_env=False, limits=limits)

    def wait_until_healthy(self, *components: str) -> None:
        """Wait until the api-server answers, and says that others are well, too."""
        for _ in _until(PATIENCE, "Airflow to become healthy"):
            try:
                health = self._client.get("/api/v2/monitor/health").json()
            except (httpx.HTTPError, ValueError):
                continue
            if all((health.get(name) or {}).get("status") == "healthy" for name in components):
                break
        token = self._client.get("/auth/token").json()["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET below ``/api/v2``."""
        return self._ask("GET", path, params=params)

    def connection_types(self) -> dict[str, dict[str, Any]]:
        """Return what the user interface's connection form knows, by connection type."""
        found = self._client.get("/ui/connections/hook_meta").raise_for_status().json()
        return {one["connection_type"]: one for one in found}

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON of a POST below ``/api/v2``."""
        return self._ask("POST", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        """Return the JSON of a PATCH below ``/api/v2``."""
        return self._ask("PATCH", path, json=body)

    def _ask(self, method: str, path: str, **what: Any) -> Any:
        for _ in _until(PATIENCE, f"{method} {path}"):
            answer = self._client.request(method, f"/api/v2{path}", **what)
            if answer.status_code != 500:  # as it says while others keep the database locked: nothing is changed then
                return answer.raise_for_status().json()
        raise AssertionError

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run of a DAG and return its id."""
        return str(self.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})["dag_run_id"])

    def wait(self, dag_id: str, run_id: str) -> str:
        """Wait for a run's end and return its state."""
        for _ in _until(PATIENCE, f"{dag_id} {run_id}"):
            state = str(self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
            if state in TERMINAL:
                return state
        raise AssertionError

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Wait until a task is in a state."""
        for _ in _until(PATIENCE, f"{dag_id} {run_id} {task_id} to be {state}"):
            if self.tasks(dag_id, run_id)[task_id]["state"] == state:
                break

    def clear(self, dag_id: str, run_id: str, *tasks: str | tuple[str, int]) -> None:
        """Have tasks run again, and no others.

        :param tasks: each by its id, or one of a mapped task with its index.
        """
        task_ids = [task if isinstance(task, str) else list(task) for task in tasks]
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": task_ids}
        self.post(f"/dags/{dag_id}/clearTaskInstances", body)

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return a run's task instances by task id."""
        return {task["task_id"]: task for task in self.instances(dag_id, run_id)}

    def instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return a run's task instances, all of each mapped task."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=_PAGE, offset=len(found))
            found += page["task_instances"]
            if len(found) >= page["total_entries"]:
                return found

    def tries(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """Return a task's instances, one of each try."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/tries"
        found: list[dict[str, Any]] = self.get(path)["task_instances"]
        return sorted(found, key=lambda task: int(task["try_number"]))

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", *, map_index: int = -1) -> Any:
        """Return what a task left."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.get(path, deserialize=True, map_index=map_index)["value"]

    def running(self, name: str) -> AbstractContextManager[int]:
        """Run one of its components, such as ``triggerer``; see :func:`component`."""
        return component((name, "--skip-serve-logs"), self.env, self.home / f"{name}.log")

    def command(self, *arguments: str) -> str:
        """Run an ``airflow`` command in this environment and return what it prints."""
        run = subprocess.run((*AIRFLOW, *arguments), env=self.env, check=True, capture_output=True, text=True)
        return run.stdout

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return a task's log as text, all tries, as far as it is written: that goes on for a moment after its end."""
        directory = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text(errors="replace") for path in sorted(directory.rglob("*.log*")))


@contextmanager
def local_airflow(
    home: Path,
    dags: Path,
    connections: Mapping[str, Mapping[str, Any]],
    *,
    database: Path | None,
    settings: Mapping[str, str] | None = None,
    components: Sequence[str] = ("scheduler", "triggerer"),
) -> Iterator[LocalAirflow]:
    """Run a private Airflow.

    :param home: an existing directory for its database and logs.
    :param dags: the directory of its DAG files.
    :param connections: connection id → connection as a dictionary.
    :param database: a migrated database to start from, copied unless ``home`` has one already; ``None``: an empty
        one that the settings lead to.
    :param settings: further environment variables.
    :param components: what runs beside the api-server.
    """
    with ExitStack() as stack:
        airflow = stack.enter_context(_api_server(home, dags, connections, database, settings or {}))
        subprocess.run((*AIRFLOW, "dags", "reserialize"), env=airflow.env, check=True, capture_output=True)
        airflow.wait_until_healthy()
        # A task that the scheduler starts before the api-server answers would fail.
        for name in components:
            stack.enter_context(airflow.running(name))
        airflow.wait_until_healthy(*components)
        yield airflow


@contextmanager
def local_api_server(home: Path, *, database: Path) -> Iterator[LocalAirflow]:
    """Run a private Airflow that has an api-server only, no DAGs and no connections. Parameters as above."""
    with _api_server(home, home, {}, database, {}) as airflow:
        airflow.wait_until_healthy()
        yield airflow


@contextmanager
def _api_server(
    home: Path,
    dags: Path,
    connections: Mapping[str, Mapping[str, Any]],
    database: Path | None,
    settings: Mapping[str, str],
) -> Iterator[LocalAirflow]:
    """Run the first component; it answers a while later."""
    port = free_port()
    env = environment(home, dags, connections) | {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        **settings,
    }
    if database is None:
        subprocess.run((*AIRFLOW, "db", "migrate"), env=env, check=True, capture_output=True)
    elif not (home / "airflow.db").exists():
        shutil.copyfile(database, home / "airflow.db")
    command = ("api-server", "--apps", "execution,core", "--workers", "1", "--host", "127.0.0.1", "--port", str(port))
    with component(command, env, home / "api-server.log"):
        yield LocalAirflow(port, env)


@contextmanager
def component(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[int]:
    """Run one component in a session of its own, and end the whole session.

    :return: the id of its process and of its session.
    """
    with log.open("ab") as output:
        process = subprocess.Popen((*AIRFLOW, *command), env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process.pid
    finally:
        for number, patience in ((signal.SIGINT, 8), (signal.SIGTERM, 4), (signal.SIGKILL, 4)):
            try:
                os.killpg(process.pid, number)
                process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()
        kill_session(process.pid)


def kill_session(session: int) -> None:
    """Kill every process of a session; each running task has a process group of its own in it."""
    while members := _members(session):
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _members(session: int) -> list[int]:
    """Return the ids of a session's processes that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, its_session = status.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(status.parent.name))
    return found


def _until(seconds: float, what: str) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.25)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")

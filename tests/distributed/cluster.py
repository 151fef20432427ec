"""An Airflow of several machines on one: CeleryExecutor over Redis and PostgreSQL, and workers that share no disk.

Each worker has a home, a directory for temporary files and an AIRFLOW_HOME of its own. Like machines they have names,
which Airflow shows as the task's host. Each takes any task, and besides those of the queue that bears its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.local_airflow import LocalAirflow, component, kill_session, local_airflow
from tests.services.postgres import running_postgres
from tests.services.redis import running_redis

QUEUE = "default"  # everybody's
HEARTBEAT_TIMEOUT = 15  # seconds after which a silent task counts as dead


@dataclass
class Worker:
    """A worker.

    :param scratch: everything that it has on disk.
    :param session: the id of its process and of the session that all its tasks run in.
    """

    scratch: Path
    session: int


@dataclass
class Cluster:
    """The running Airflow and its workers by name."""

    airflow: LocalAirflow
    base: Path
    stack: ExitStack
    workers: dict[str, Worker] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Have a worker of this name; where one has died, the new one gets its disk."""
        if name in self.workers:
            return
        scratch = self.base / name
        home, temporary, airflow_home = (scratch / part for part in ("home", "tmp", "airflow"))
        for directory in (home, temporary, airflow_home):
            directory.mkdir(parents=True, exist_ok=True)
        env = self.airflow.env | {
            "AIRFLOW_HOME": str(airflow_home),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.airflow.home / "logs"),  # as a log server would show them
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "getpass.getuser",  # all are called alike otherwise
            "HOME": str(home),
            "LOGNAME": name,
            "TMPDIR": str(temporary),
        }
        command = (
            *("celery", "worker", "--celery-hostname", name, "--queues", f"{QUEUE},{name}"),
            *("--concurrency", "1", "--skip-serve-logs"),
        )
        session = self.stack.enter_context(component(command, env, scratch / "worker.log"))
        self.workers[name] = Worker(scratch, session)

    def kill(self, name: str) -> None:
        """Take a worker's power away: it and its task get SIGKILL."""
        kill_session(self.workers.pop(name).session)


@contextmanager
def running_cluster(
    base: Path, dags: Path, connections: Mapping[str, Mapping[str, Any]], workers: tuple[str, ...]
) -> Iterator[Cluster]:
    """Run Airflow and workers.

    :param base: a directory for all that they write; `airflow` in it is the AIRFLOW_HOME.
    :param dags: the directory of the DAG files.
    :param connections: connection id → connection as a dictionary.
    :param workers: their names.
    """
    home = base / "airflow"
    home.mkdir(exist_ok=True)
    with ExitStack() as stack:
        database = f"postgresql+psycopg://{stack.enter_context(running_postgres())}"
        settings = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": stack.enter_context(running_redis()),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database,
            "AIRFLOW__OPERATORS__DEFAULT_QUEUE": QUEUE,
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        }
        airflow = stack.enter_context(local_airflow(home, dags, connections, database=None, settings=settings))
        cluster = Cluster(airflow, base / "workers", stack)
        for name in workers:
            cluster.start(name)
        yield cluster

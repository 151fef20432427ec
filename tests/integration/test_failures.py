"""What a task that fails says in its own log: what, where, what to do, and whether it goes on by itself.

The rows are those of the table in ``docs/troubleshooting.md``.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.triggers import model as triggers
from tests.conftest import Connect
from tests.docs.documents import table
from tests.services.moto_server import running_moto
from tests.standins.authority import Authority
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.fault_server import FaultServer, answer
from tests.support.examples import run_dag
from tests.support.scripted import Script

NO_USE = "not retried: another try cannot help"
AGAIN = "Airflow tries again: 1 of 1 left"

# What the log of each task says: what failed, where, what to do, and what comes next.
SAID: dict[str, tuple[str, str, str, str]] = {
    "wrong_password": ("401 Unauthorized", "wrong_password (http://127.0.0.1:", "renew login and password", NO_USE),
    "missing_bucket": (
        "404 NoSuchBucket",
        "missing_bucket (s3://nobody/models at http://127.0.0.1:",
        "create it, or correct host (s3://bucket/prefix)",
        NO_USE,
    ),
    "unreachable_host": ("Connection refused", "unreachable_host (http://127.0.0.1:", "host, port and proxy", AGAIN),
    "private_ca": ("certificate is not accepted", "private_ca (https://127.0.0.1:", "connection's ca_bundle", NO_USE),
    "full_disk": ("the model needs", "cloud (http://127.0.0.1:", "Free space there", AGAIN),
    "occupied_target": ("holds something other than", "modelsync_default (file://", "pull with force", NO_USE),
    "conflict": ("fraud:v1 exists with", "modelsync_default (file://", "push under another version", NO_USE),
    "never_ready": (
        "slow:v1 is converting since",
        "scripted (file://",
        "Look in the system itself",
        "not retried: Airflow retries no sensor whose time is over",
    ),
}
SAID["never_ready_deferred"] = SAID["never_ready"]


@pytest.fixture
def world(
    tmp_path: Path, connect: Connect, modelstore: Path, script: Script, source: Path, no_waiting: None
) -> Iterator[dict[str, str]]:
    """Everything that is wrong, behind connections called after it; yield the configuration of the run."""
    authority = Authority(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_bytes(b"other bytes")
    ModelStoreHook("modelsync_default").push(source, "fraud:v1")
    ModelStoreHook("modelsync_default").push(source, "slow:v1")
    script.write(["converting"])
    with ExitStack() as stack:
        cloud = stack.enter_context(BentoCloudStandIn(tmp_path / "cloud"))
        kept = {"digest": f"sha256:{'0' * 64}", "size_bytes": str(10**15)}
        cloud.seed("fraud", "v1", source, metadata={"modelsync": kept})
        private = stack.enter_context(FaultServer([answer(200)], tls=authority.server_context()))
        moto = stack.enter_context(running_moto())
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # and never listens
        connect("cloud", conn_type="bentocloud", host=cloud.url, password=cloud.token)
        connect("wrong_password", conn_type="bentocloud", host=cloud.url, password="no-such-token")
        connect("private_ca", conn_type="bentocloud", host=private.url, password="token")
        connect(
            "unreachable_host",
            conn_type="bentocloud",
            host=f"http://127.0.0.1:{closed.getsockname()[1]}",
            password="token",
        )
        connect(
            "missing_bucket",
            conn_type="modelstore",
            host="s3://nobody/models",
            login=moto.access_key,
            password=moto.secret_key,
            extra={"endpoint_url": moto.endpoint, "region_name": "us-east-1"},
        )
        yield {
            "source": str(source),
            "target": str(tmp_path / "target"),
            "occupied": str(other),
            "other": str(other),
        }


def test_the_log_of_each_failed_task_tells_what_where_what_to_do_and_what_comes_next(
    airflow_database: Path,
    world: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.integration.dags.failures import failures

    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.05)
    caplog.set_level(logging.INFO)
    raised: list[BaseException] = []
    dag = failures()
    for task in dag.tasks:
        task.on_failure_callback = [lambda context: raised.append(context["exception"])]
    _, tasks, _ = run_dag(dag, **world)
    log = caplog.text

    assert set(tasks) == set(SAID)
    assert set(tasks.values()) == {"failed"}
    blocks = _blocks(log)
    for task, (what, where, remedy, comes_next) in SAID.items():
        said = blocks[task][0]
        assert what in said, task
        assert re.search(rf"connection: +{re.escape(where)}", said), said
        assert re.search(rf"what to do: .*{re.escape(remedy)}", said), said
        assert re.search(rf"next: +{re.escape(comes_next)}", said), said
    assert "none of 1 retries is left" in blocks["full_disk"][1]  # the second try is the last
    assert "<?xml" not in log
    assert len(raised) >= len(SAID)
    for error in raised:
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__  # so that there is no second traceback


def test_the_table_in_the_documents_has_these_failures() -> None:
    rows = table("docs/troubleshooting.md", "Failure")
    assert {row.pop("Failure").replace(" ", "_") for row in rows} == set(SAID) - {"never_ready_deferred"}
    assert {cell for row in rows for cell in row.values()} == {"yes"}


def _blocks(log: str) -> dict[str, list[str]]:
    """Return what each task has said, a text for each time that it has failed."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in log.splitlines():
        if begin := re.search(r"the task '(\w+)' failed: ", line):
            current = found.setdefault(begin[1], [])
            current.append(line)
        elif current and re.search(r"\s\s(model|connection|field|server said|what to do|next):\s", line):
            current[-1] += f"\n{line}"
    return found

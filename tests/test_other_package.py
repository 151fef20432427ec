"""A registry in somebody else's distribution: built from the documents, put beside Airflow, used by connection type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.core.stores import snapshot, write_tree
from tests.docs.skeleton import sources
from tests.standins.shelf import ShelfStandIn

ROOT = Path(__file__).parents[1]
# What a DAG's task would do. Nothing in it names the registry but the connection.
TASK = """
import json, sys

from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator

source, target = sys.argv[1:]
conn_id = "somewhere"
push = PushModelOperator(task_id="push", registry_conn_id=conn_id, model="fraud:v1", source=source)
pull = PullModelOperator(task_id="pull", registry_conn_id=conn_id, model="fraud", target=target)
context = {"outlet_events": {}}
print("\\n" + json.dumps([push.execute(context), pull.execute(context)]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the distribution installed into it."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in sources().items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run((sys.executable, "-c", build, str(project)), cwd=project, check=True, capture_output=True)
    with ZipFile(next(project.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def test_a_registry_that_reads_takes_sixty_lines() -> None:
    lines = [line for line in sources()["modelshelf/registry.py"].splitlines() if line.strip()]
    assert len(lines) <= 60


def test_a_registry_of_somebody_else_works_by_its_connection_type(site: Path, tmp_path: Path) -> None:
    source, target = (
        write_tree(tmp_path / "source", {"weights.bin": b"w" * 5000, "a/b.json": b"{}"}),
        tmp_path / "target",
    )
    with ShelfStandIn() as server:
        connection = {"conn_type": "shelf", "host": server.url, "password": server.token}
        env = {
            **os.environ,
            "AIRFLOW_CONN_SOMEWHERE": json.dumps(connection),
            "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))),
        }
        run = subprocess.run(
            (sys.executable, "-c", TASK, str(source), str(target)),
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        assert list(server.records) == ["fraud:v1"]
    pushed, pulled = json.loads(run.stdout.splitlines()[-1])
    assert (pushed["registry"], pushed["ref"], pushed["skipped"]) == ("shelf", "fraud:v1", False)
    assert pulled["digest"] == pushed["digest"]
    assert snapshot(target) == snapshot(source)

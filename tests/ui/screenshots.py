"""Pictures for the documentation: ``python -m tests.ui.screenshots docs/images``.

The connection forms as ``connection-<type>.png``, an example's graph as ``graph-<example>.png``, a task's links
as ``link.png``, and the tutorial's run as ``tutorial-<what>.png``: graph, log, XCom and asset.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from airflow_provider_modelsync.provider_info import get_provider_info
from scripts.local_airflow import local_airflow, local_api_server, migrated_database
from tests.docs.tutorial import first_dag
from tests.standins.wallaroo import WallarooStandIn, run_onnx
from tests.ui.page import ConnectionsPage, browser_page, graph_of, picture_of

# Width and height in pixels.
FORM_HEIGHT = 2600  # a form that is longer would be cut
GRAPH = 1080, 800
LOG, XCOM, ASSET, LINK = (1280, 440), (1280, 750), (1280, 720), (1280, 500)
SETTINGS = {"AIRFLOW__API__DEFAULT_WRAP": "True"}
EXAMPLE = "wallaroo_train_push_deploy"
TUTORIAL = "tutorial"
EXAMPLES = Path(__file__).parents[2] / "example_dags"


def main(directory: Path) -> None:
    """Write all pictures into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        database = migrated_database(Path(scratch) / "database")
        for name, png in chain(
            _tutorial(Path(scratch), database), _graph(Path(scratch), database), _forms(Path(scratch), database)
        ):
            target = directory / f"{name}.png"
            target.write_bytes(_small(png))
            print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def _forms(scratch: Path, database: Path) -> Iterator[tuple[str, bytes]]:
    home = scratch / "forms"
    home.mkdir()
    with local_api_server(home, database=database) as airflow, browser_page(FORM_HEIGHT) as page:
        connections = ConnectionsPage(page, airflow.base_url)
        for declared in get_provider_info()["connection-types"]:
            conn_type = declared["connection-type"]
            form = connections.add(f"{conn_type}_default", declared["hook-name"])
            yield f"connection-{conn_type}", form.picture()


def _graph(scratch: Path, database: Path) -> Iterator[tuple[str, bytes]]:
    home, dags, work = (scratch / name for name in ("graph", "dags", "work"))
    for directory in (home, dags, work):
        directory.mkdir()
    shutil.copy(EXAMPLES / f"{EXAMPLE}.py", dags)
    with WallarooStandIn(scratch / "instance") as server:
        server.predict = run_onnx
        connection = {
            "conn_type": "wallaroo",
            "host": server.url,
            "login": server.username,
            "password": server.password,
            "extra": {"workspace": server.add_workspace("examples").name},
        }
        settings = {**SETTINGS, "TMPDIR": str(work)}
        with local_airflow(
            home, dags, {"wallaroo_default": connection}, database=database, settings=settings
        ) as airflow:
            run_id = airflow.trigger(EXAMPLE)
            state = airflow.wait(EXAMPLE, run_id)
            assert state == "success", f"the run of {EXAMPLE} has {state}"
            with browser_page() as page:
                task = f"{airflow.base_url}/dags/{EXAMPLE}/runs/{run_id}/tasks/deploy"
                yield "link", picture_of(page, f"{task}/details", "Registry console", size=LINK)
                tasks = len(airflow.tasks(EXAMPLE, run_id))
                yield f"graph-{EXAMPLE}", graph_of(page, airflow.base_url, EXAMPLE, run_id, tasks, size=GRAPH)


def _tutorial(scratch: Path, database: Path) -> Iterator[tuple[str, bytes]]:
    """The tutorial's DAG, as it stands there, run twice."""
    home, dags, work = (scratch / name for name in ("tutorial", "tutorial-dags", "modelsync"))
    for directory in (home, dags, work):
        directory.mkdir()
    (dags / "tutorial.py").write_text(first_dag().replace("/tmp/modelsync", str(work)))
    connection = {"conn_type": "modelstore", "host": (work / "store").as_uri()}
    with (
        local_airflow(home, dags, {"modelsync_default": connection}, database=database, settings=SETTINGS) as airflow,
        browser_page() as page,
    ):
        for _ in range(2):
            run_id = airflow.trigger(TUTORIAL)
            state = airflow.wait(TUTORIAL, run_id)
            assert state == "success", f"the run of {TUTORIAL} has {state}"
        push = f"{airflow.base_url}/dags/{TUTORIAL}/runs/{run_id}/tasks/push"
        yield "tutorial-log", picture_of(page, push, "is already there", size=LOG)
        expand = "Expand all extra JSON"
        yield "tutorial-xcom", picture_of(page, f"{push}/xcom", '"sha256:', size=XCOM, press=expand)
        (asset,) = airflow.get("/assets")["assets"]
        page_of = f"{airflow.base_url}/assets/{asset['id']}"
        yield "tutorial-asset", picture_of(page, page_of, "2 Asset Events", size=ASSET)
        tasks = len(airflow.tasks(TUTORIAL, run_id))
        yield "tutorial-graph", graph_of(page, airflow.base_url, TUTORIAL, run_id, tasks, size=GRAPH)


def _small(png: bytes) -> bytes:
    return subprocess.run(("pngquant", "--speed=1", "-"), input=png, capture_output=True, check=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))

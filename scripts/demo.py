"""The main job on real input: `make demo`.

Runs ``example_dags/train_push_wait_pull.py`` twice through a private Airflow (api-server, scheduler, triggerer)
against a model store in this checkout, and says what came of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from local_airflow import LocalAirflow, local_airflow, migrated_database

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
DAG = "train_push_wait_pull"


def main() -> int:
    """Run the demo and return the process's exit code."""
    started = time.monotonic()
    home, dags, store = DEMO / "airflow", DEMO / "dags", DEMO / "modelstore"
    shutil.rmtree(DEMO, ignore_errors=True)
    for directory in (home, dags):
        directory.mkdir(parents=True)
    shutil.copy(ROOT / "example_dags" / f"{DAG}.py", dags)
    connection = {"modelsync_default": {"conn_type": "modelstore", "host": store.as_uri()}}
    print("Starting a private Airflow (api-server, scheduler, triggerer) …", flush=True)
    with local_airflow(home, dags, connection, database=migrated_database(DEMO / "database")) as airflow:
        runs = [run(airflow, number) for number in ("first", "second")]
        if not all(runs):
            return 1
        first, second = (run_id for run_id in runs if run_id)
        facts = airflow.xcom(DAG, first, "push")
        proof = airflow.xcom(DAG, first, "compare")
        again = airflow.xcom(DAG, second, "push")
    directory = Path(facts["uri"].removeprefix("file://"))
    rows = {
        "model": facts["name"],
        "version": facts["version"],
        "digest": facts["digest"],
        "by hand": by_hand(directory),
        "size": f"{facts['size_bytes']:,} bytes",
        "lies in": str(directory.relative_to(ROOT)),
        "accuracy": facts["metadata"]["accuracy"],
        "pulled back": proof,
        "second run": "skipped as identical" if again["skipped"] else "PUSHED AGAIN",
        "versions": len(list(directory.parent.glob(".modelsync/*.json"))),
        "took": f"{time.monotonic() - started:.0f} s",
    }
    print("\n  train → push → wait → pull → compare, run twice by Airflow\n")
    for key, value in rows.items():
        print(f"  {key:<12} {value}")
    print("\n  Look around: .demo/modelstore holds the model as plain files, .demo/airflow/logs the task logs.")
    good = rows["by hand"] == rows["digest"] and again["skipped"] and rows["versions"] == 1
    return 0 if good else 1


def run(airflow: LocalAirflow, number: str) -> str | None:
    """Run the DAG once; return the run's id, or ``None`` when it failed."""
    print(f"Running {DAG}, {number} time …", flush=True)
    run_id = airflow.trigger(DAG)
    if airflow.wait(DAG, run_id) == "success":
        return run_id
    for name, task in airflow.tasks(DAG, run_id).items():
        print(f"  {name}: {task['state']}", file=sys.stderr)
        if task["state"] == "failed":
            print(airflow.log(DAG, run_id, name), file=sys.stderr)
    return None


def by_hand(directory: Path) -> str:
    """Return the digest of a directory as a shell computes it."""
    command = "export LC_ALL=C; find . -type f -print0 | sort -z | xargs -0 sha256sum | sed 's|  [.]/|  |' | sha256sum"
    line = subprocess.run(command, shell=True, cwd=directory, check=True, capture_output=True, text=True).stdout
    return f"sha256:{line.split()[0]}"


if __name__ == "__main__":
    sys.exit(main())

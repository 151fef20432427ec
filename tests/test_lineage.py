"""What OpenLineage is told, by the real provider: it writes its events to a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.assets import model_asset

ROOT = Path(__file__).parents[1]

CANARY = "canary-4f1c0de5"


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> dict[str, dict[str, Any]]:
    """The last event of each task of a DAG that pushes, syncs and pulls, by task."""
    base = tmp_path_factory.mktemp("lineage")
    source, told = base / "model", base / "events.jsonl"
    source.mkdir()
    (source / "weights.bin").write_bytes(b"weights")
    stores: dict[str, dict[str, Any]] = {
        name: {"conn_type": "modelstore", "host": (base / name).as_uri()} for name in ("one", "two")
    }
    stores["one"]["extra"] = {"proxy": f"http://me:{CANARY}@proxy.example:3128"}
    (base / "airflow.db").write_bytes(migrated_database.read_bytes())
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in stores.items()},
        "AIRFLOW_HOME": str(base),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "tests" / "data" / "lineage"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{base}/airflow.db?timeout=60",
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "300",  # an event that takes longer is lost
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(told), "append": True}),
        "MODEL": str(source),
        "TARGET": str(base / "pulled"),
    }
    command = (sys.executable, str(ROOT / "tests" / "data" / "lineage" / "lineage.py"))
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert CANARY not in told.read_text()
    last = {}
    for line in told.read_text().splitlines():
        event = json.loads(line)
        if event["eventType"] == "COMPLETE":
            last[event["job"]["name"].rpartition(".")[2]] = event
    return last


def seen(datasets: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Namespace, name, version and digest of datasets."""
    return [
        (
            one["namespace"],
            one["name"],
            one["facets"]["version"]["datasetVersion"],
            {tag["key"]: tag["value"] for tag in one["facets"]["tags"]["tags"]}["digest"],
        )
        for one in datasets
        if one["namespace"] != "file"
    ]


def test_a_push_writes_a_version(events: dict[str, dict[str, Any]]) -> None:
    ((namespace, name, version, digest),) = seen(events["push"]["outputs"])

    assert (namespace, name, version) == ("modelsync://one", "fraud", "v1")
    assert digest.startswith("sha256:")
    ((origin, place),) = [(one["namespace"], one["name"]) for one in events["push"]["inputs"]]
    assert (origin, Path(place).name) == ("file", "model")


def test_a_sync_reads_in_one_registry_and_writes_in_the_other(events: dict[str, dict[str, Any]]) -> None:
    ((*_, digest),) = seen(events["push"]["outputs"])

    assert seen(events["sync"]["inputs"]) == [("modelsync://one", "fraud", "v1", digest)]
    assert seen(events["sync"]["outputs"]) == [("modelsync://two", "copy", "v1", digest)]


def test_a_pull_reads_a_version(events: dict[str, dict[str, Any]]) -> None:
    ((*_, digest),) = seen(events["push"]["outputs"])

    assert seen(events["pull"]["inputs"]) == [("modelsync://two", "copy", "v1", digest)]
    ((origin, place),) = [(one["namespace"], one["name"]) for one in events["pull"]["outputs"]]
    assert (origin, Path(place).name) == ("file", "pulled")


def test_an_asset_is_the_same_dataset(events: dict[str, dict[str, Any]]) -> None:
    from airflow.providers.openlineage.utils.utils import translate_airflow_asset

    ((namespace, name, version, digest),) = seen(events["push"]["outputs"])
    asset = model_asset("one", "fraud", extra={"version": version, "digest": digest})
    dataset = translate_airflow_asset(asset, None)

    assert dataset is not None
    assert (dataset.namespace, dataset.name) == (namespace, name)
    assert dataset.facets is not None
    assert dataset.facets["version"].datasetVersion == version  # type: ignore[attr-defined]

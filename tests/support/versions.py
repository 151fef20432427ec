"""Where versions of Airflow keep what tests alone look at, and what is tested on new enough ones only."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS

for place in ("airflow.sdk.execution_time.secrets_masker", "airflow.sdk._shared.secrets_masker.secrets_masker"):
    with suppress(ImportError):
        masker = import_module(place)

for place in ("airflow.serialization.serde", "airflow.sdk.serde"):
    with suppress(ImportError):
        serde = import_module(place)
serialize, deserialize = serde.serialize, serde.deserialize

serialized: Any = import_module("airflow.serialization.serialized_objects")
# Turns DAGs into JSON and back; called so since 3.2.
DagSerialization = getattr(serialized, "DagSerialization", None) or serialized.SerializedDAG

for place in ("airflow.lineage.hook", "airflow.sdk.lineage"):
    with suppress(ImportError):
        lineage = import_module(place)

# Whether a task whose process is killed has its next try by itself: before 3.1 it fails, whatever its retries.
RETRIES_KILLED = hasattr(import_module("airflow.sdk.execution_time.supervisor").ActivitySubprocess, "_should_retry")

since_3_3 = pytest.mark.skipif(not TELLS_OF_KILLS, reason="this Airflow is older than what is tested")


def activate_assets(dag: Any) -> None:
    """Have the assets that a DAG names known to Airflow: before 3.1 ``dag.test()`` leaves it to the DAG processor."""
    from airflow.models import dag as models

    if hasattr(models.DAG, "bulk_write_to_db"):
        from airflow.dag_processing.bundles.manager import DagBundlesManager

        DagBundlesManager().sync_bundles_to_db()
        models.DAG.bulk_write_to_db("dags-folder", None, [DagSerialization.from_dict(DagSerialization.to_dict(dag))])


def refuse_to_block(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Have a call fail on an event loop, where it would block; threads may make it."""
    known = getattr(owner, name)

    def call(*arguments: object) -> object:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise AssertionError("the event loop was blocked by a connection lookup")
        return known(*arguments)

    monkeypatch.setattr(owner, name, call)

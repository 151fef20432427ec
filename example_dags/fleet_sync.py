"""Spread one sync over all workers: list the models of one registry, then bring each over in a task of its own.

Needs the connections ``bentocloud_default`` and ``modelstore_default``. A model that fails does not hold up the others,
and only its own task is tried again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag

from airflow_provider_modelsync.operators.catalog import ListModelsOperator
from airflow_provider_modelsync.operators.transfer import SyncModelsOperator

SOURCE = "bentocloud_default"


def _only(version: dict[str, Any]) -> list[str]:
    return [version["name"]]


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def fleet_sync() -> None:
    listed = ListModelsOperator(task_id="list", registry_conn_id=SOURCE)
    SyncModelsOperator.partial(
        task_id="sync",
        source_conn_id=SOURCE,
        target_conn_id="modelstore_default",
        max_active_tis_per_dagrun=8,
    ).expand(models=listed.output.map(_only))


fleet_sync()

"""Bring models into the production registry, except those that hold a pickle.

Needs the connections ``modelsync_default``, where teams push to, and ``modelstore_default``, from which production
serves. A file is judged by what it holds, not by its name. A model that holds anything else fails the task for good,
once all others are copied: nothing of it reaches production.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.transfer import SyncModelsOperator


@dag(
    schedule="@hourly",
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["modelsync", "example"],
    doc_md=__doc__,
)
def sync_into_production() -> None:
    SyncModelsOperator(
        task_id="sync",
        source_conn_id="modelsync_default",
        target_conn_id="modelstore_default",
        models=["*"],
        allowed_formats=["safetensors", "onnx", "json", "text"],
        # A scanner may look, too: scan="/opt/scanners/bin/modelscan -p"
    )


sync_into_production()

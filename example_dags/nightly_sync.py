"""Keep a copy of what BentoCloud holds in a bucket of one's own, every night.

Needs the connections ``bentocloud_default`` (an API token is enough) and ``modelstore_default`` with the root
``s3://bucket/prefix``. Copies the three newest versions of each model that are not there yet, the oldest first, with
digest, labels and metadata; what was interrupted is continued by the next try.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.transfer import SyncModelsOperator


@dag(
    schedule="30 2 * * *",
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def nightly_sync() -> None:
    SyncModelsOperator(
        task_id="sync",
        source_conn_id="bentocloud_default",
        target_conn_id="modelstore_default",
        models=["*"],
        versions=3,
    )


nightly_sync()

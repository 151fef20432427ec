"""Deploy each new version of a model: BentoCloud wakes the DAG, nothing runs in between.

Needs a connection ``bentocloud_default``. The versions that are there when the DAG is first seen do not count. When
several have come since the last run, one run deploys the newest of them. The deployment takes the newest bento that was
built with the version; where none is ready yet, the task fails and its retries wait for it.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import AssetWatcher, dag

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger

CONNECTION = "bentocloud_default"
MODEL = "fraud"

watcher = AssetWatcher(name=f"new_{MODEL}", trigger=ModelVersionEventTrigger(CONNECTION, MODEL))
model = model_asset(CONNECTION, MODEL, watchers=[watcher])

# The events of one run come in no order.
NEWEST = "(triggering_asset_events.values() | first | sort(attribute='timestamp') | last).extra.payload"


@dag(
    schedule=[model],
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def deploy_on_new_version() -> None:
    DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment=MODEL,
        model=f"{{{{ {NEWEST}.name }}}}:{{{{ {NEWEST}.version }}}}",
        inlets=[model],
        deferrable=True,
    )


deploy_on_new_version()

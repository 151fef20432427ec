"""Take the champion back: the version before it becomes champion again, and is served. A person starts this.

The way back of ``champion_challenger``. Without ``to`` it goes to the version before, by the alias's own history; a
second run goes one further.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Asset, Param, dag

from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.lifecycle import RollbackModelOperator
from airflow_provider_modelsync.operators.transfer import SyncModelsOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

STORE, SERVING = "modelsync_default", "wallaroo_default"
MODEL = PIPELINE = "champion-digits"
ALIAS = "champion"
SERVED = "{{ (ti.xcom_pull('bring')['copied'] + ti.xcom_pull('bring')['skipped'])[0]['target'] }}"


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={"to": Param(None, type=["null", "string"], description="a version instead of the one before")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example"],
    doc_md=__doc__,
)
def rollback_champion() -> None:
    back = RollbackModelOperator(
        task_id="back",
        registry_conn_id=STORE,
        model=MODEL,
        alias=ALIAS,
        to="{{ params.to }}",
        outlets=[Asset(f"modelsync://{STORE}/{MODEL}@{ALIAS}")],
    )
    brought = SyncModelsOperator(
        task_id="bring",
        source_conn_id=STORE,
        target_conn_id=SERVING,
        models=[f"{MODEL}@{ALIAS}"],
        options={MODEL: {"framework": "onnx"}},
    )
    converted = ModelVersionSensor(
        task_id="wait", registry_conn_id=SERVING, model=SERVED, deferrable=True, poke_interval=5, timeout=1800
    )
    deployed = DeployModelOperator(
        task_id="deploy", registry_conn_id=SERVING, deployment=PIPELINE, model=SERVED, deferrable=True, timeout=1800
    )
    back >> brought >> converted >> deployed


rollback_champion()

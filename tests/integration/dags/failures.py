"""Tasks that fail, each in another way. The configuration of the run says where models and targets are."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_modelsync.operators.catalog import GetModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor


def failures() -> DAG:
    """Return the DAG."""
    with DAG("failures", schedule=None, catchup=False, default_args={"retry_delay": timedelta(0)}) as dag:
        GetModelOperator(task_id="wrong_password", registry_conn_id="wrong_password", model="fraud:v1")
        PushModelOperator(
            task_id="missing_bucket",
            registry_conn_id="missing_bucket",
            model="fraud",
            source="{{ dag_run.conf['source'] }}",
        )
        GetModelOperator(task_id="unreachable_host", registry_conn_id="unreachable_host", model="fraud:v1", retries=1)
        GetModelOperator(task_id="private_ca", registry_conn_id="private_ca", model="fraud:v1")
        PullModelOperator(
            task_id="full_disk",
            registry_conn_id="cloud",
            model="fraud:v1",
            target="{{ dag_run.conf['target'] }}",
            retries=1,
        )
        PullModelOperator(task_id="occupied_target", model="fraud:v1", target="{{ dag_run.conf['occupied'] }}")
        PushModelOperator(task_id="conflict", model="fraud:v1", source="{{ dag_run.conf['other'] }}")
        for mode, arguments in {"never_ready": {}, "never_ready_deferred": {"deferrable": True}}.items():
            ModelVersionSensor(
                task_id=mode,
                registry_conn_id="scripted",
                model="slow:v1",
                poke_interval=0.05,
                timeout=0.3,
                **arguments,
            )
    return dag


failures()

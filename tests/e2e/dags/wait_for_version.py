"""Waits in the triggerer for a version that somebody else will push, then pulls it."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.transfer import PullModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor


@dag(schedule=None, catchup=False, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def wait_for_version() -> None:
    wait = ModelVersionSensor(
        task_id="wait",
        registry_conn_id="bentocloud_default",
        model="{{ dag_run.conf['model'] }}",
        deferrable=True,
        poke_interval=5,
        timeout=3600,
    )
    pull = PullModelOperator(
        task_id="pull",
        registry_conn_id="bentocloud_default",
        model="{{ ti.xcom_pull('wait')['ref'] }}",
        target="{{ dag_run.conf['target'] }}",
    )
    wait >> pull


wait_for_version()

"""Pushes a model from a disk that all workers see."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.transfer import PushModelOperator


@dag(schedule=None, catchup=False, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def push_shared() -> None:
    PushModelOperator(task_id="push", model="large:v1", source="{{ dag_run.conf['source'] }}")


push_shared()

"""Deploys what the run's configuration says, and waits in the triggerer."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.deployment import DeployModelOperator


@dag(schedule=None, catchup=False, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def deploy() -> None:
    DeployModelOperator(
        task_id="deploy",
        registry_conn_id="{{ dag_run.conf['registry'] }}",
        deployment="{{ dag_run.conf['deployment'] }}",
        model="{{ dag_run.conf['model'] }}",
        deferrable=True,
        poll_interval=5,
    )


deploy()

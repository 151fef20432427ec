"""A project of the platform is predicted while no worker waits."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_modelsync.operators.deployment import PredictOperator

with DAG("predict_remote", schedule=None, params={"output": ""}) as dag:
    PredictOperator(
        task_id="predict",
        registry_conn_id="supervisely_default",
        deployment="blobs",
        inputs={"project_id": 21},
        output="{{ params.output }}",
        poll_interval=0.1,
        deferrable=True,
    )

"""Forty sensors that wait in the triggerer for five models."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.sensors.model import ModelVersionSensor

SENSORS, MODELS = 40, 5
INTERVAL = 5.0  # seconds


@dag(schedule=None, catchup=False, default_args={"retries": 2, "retry_delay": timedelta(seconds=1)})
def many_waiters() -> None:
    ModelVersionSensor.partial(
        task_id="wait",
        registry_conn_id="bentocloud_default",
        deferrable=True,
        poke_interval=INTERVAL,
        timeout=3600,
    ).expand(model=[f"awaited-{number % MODELS}:v1" for number in range(SENSORS)])


many_waiters()

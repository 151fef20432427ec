"""A model's whole life, from push to deletion. The configuration of the run says which model, source and target."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Asset, dag

from airflow_provider_modelsync.operators.catalog import DeleteModelOperator, LabelModelOperator, ListModelsOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

VERSION = "{{ ti.xcom_pull('push')['ref'] }}"


@dag(schedule=None, catchup=False, default_args={"registry_conn_id": "{{ dag_run.conf['registry'] }}"})
def round_trip() -> None:
    push = PushModelOperator(
        task_id="push",
        model="digits",
        source="{{ dag_run.conf['source'] }}",
        wait_for_ready=False,
        outlets=[Asset("modelsync://modelsync_default/digits")],
    )
    # Waiting through the triggerer can lose a race in Airflow's scheduler; the retry is cheap.
    wait = ModelVersionSensor(
        task_id="wait",
        model=VERSION,
        deferrable=True,
        poke_interval=0.1,
        timeout=600,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )
    pull = PullModelOperator(task_id="pull", model=VERSION, target="{{ dag_run.conf['target'] }}")
    label = LabelModelOperator(task_id="label", model=VERSION, labels={"stage": "production"})
    listing = ListModelsOperator(task_id="list", query="label:stage=production")
    delete = DeleteModelOperator.partial(task_id="delete").expand(
        model=listing.output.map(lambda version: version["ref"])
    )
    push >> wait >> pull >> label >> listing >> delete


round_trip()

"""Have a model ready on the machine where Pieces OS runs, use it there, and free its memory again.

Needs a connection ``pieces_default``: nothing has to be filled in when Pieces OS runs on the workers' own machine, else
its address as they reach it, e.g. through a tunnel. The extra ``pieces`` shows the live progress of the download in the
log. Name the model by its ``unique`` name: quantisations of one model share their plain name.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag, task

from airflow_provider_modelsync.hooks.pieces import PiecesHook
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, UndeployModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

CONNECTION = "pieces_default"
MODEL = "{{ params.model }}"


@task
def use(model: str) -> str:
    """Stand for what works with the loaded model on that host, such as a chat through Pieces."""
    pieces = PiecesHook(CONNECTION)
    return f"{model} is loaded: {pieces.deployment(model).ready}, by Pieces OS {pieces.version()}"


@dag(
    schedule=None,
    catchup=False,
    params={"model": Param("phi-2.Q4", type="string", description="The model's id or unique name")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "pieces"],
    doc_md=__doc__,
)
def pieces_local_model() -> None:
    known = ModelVersionSensor(
        task_id="wait_until_known",
        registry_conn_id=CONNECTION,
        model=MODEL,
        state="available",
        timeout=3600,
        deferrable=True,
    )
    downloaded = PullModelOperator(
        task_id="download",
        registry_conn_id=CONNECTION,
        model=MODEL,
        timeout=timedelta(hours=4),
        deferrable=True,
    )
    loaded = DeployModelOperator(task_id="load", registry_conn_id=CONNECTION, model=MODEL)
    used = use(MODEL)
    unloaded = UndeployModelOperator(
        task_id="unload", registry_conn_id=CONNECTION, deployment=MODEL, trigger_rule="all_done"
    )
    known >> downloaded >> loaded >> used >> unloaded


pieces_local_model()

"""Deploy a detector on Supervisely, have it predict a folder of images, and move it out of the GPU's memory.

Needs a connection ``supervisely_default`` with the server's address, an API token and the extras ``team_id`` and
``workspace_id``. The Airflow variables ``supervisely_images`` and ``supervisely_predictions`` name the folder with
images, a local path or an object storage URL, and the file that gets one JSON line for each of them.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.deployment import DeployModelOperator, PredictOperator
from airflow_provider_modelsync.operators.supervisely import SuperviselyFreezeOperator

CONNECTION = "supervisely_default"
DEPLOYMENT = "batch-detector"


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "supervisely"],
    doc_md=__doc__,
)
def supervisely_batch_predict() -> None:
    # Found again by its name: the next run loads nothing when the model is still served.
    deployed = DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment=DEPLOYMENT,
        model="{{ params.framework }}:{{ params.model }}",
        config={"pretrained": True},
        deferrable=True,
        timeout=3600,
        params={"framework": "YOLO", "model": "YOLO11n-det"},
    )
    predicted = PredictOperator(
        task_id="predict",
        registry_conn_id=CONNECTION,
        deployment=DEPLOYMENT,
        inputs="{{ var.value.supervisely_images }}",
        output="{{ var.value.supervisely_predictions }}",
        options={"conf": 0.4, "recursive": True},
    )
    # Also after a failed prediction: the GPU is to be free for others.
    frozen = SuperviselyFreezeOperator(
        task_id="freeze", registry_conn_id=CONNECTION, deployment=DEPLOYMENT, trigger_rule="all_done"
    )
    deployed >> predicted >> frozen


supervisely_batch_predict()

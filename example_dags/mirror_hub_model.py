"""Mirror a model of the Hugging Face Hub: every night, and as soon as a new commit appears on its main branch.

Needs Airflow 3.2 or newer, and connections ``huggingface_default`` and ``modelstore_default``. Only weights and
configuration are copied. While the commit is the same, nothing moves.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable, dag

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.operators.transfer import SyncModelsOperator
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger

HUB, TARGET = "huggingface_default", "modelstore_default"
MODEL = "acme/fraud"

watcher = AssetWatcher(name="new_commit", trigger=ModelVersionEventTrigger(HUB, MODEL))
model = model_asset(HUB, MODEL, watchers=[watcher])


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 3 * * *", timezone="UTC"), assets=[model]),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["modelsync", "example", "huggingface"],
    doc_md=__doc__,
)
def mirror_hub_model() -> None:
    SyncModelsOperator(
        task_id="mirror",
        source_conn_id=HUB,
        target_conn_id=TARGET,
        models=[MODEL],
        include=["*.safetensors", "*.json"],
        inlets=[model],
    )


mirror_hub_model()

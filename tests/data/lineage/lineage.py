"""Pushes, syncs and pulls a model, when it is run as a program; what happens is told to OpenLineage."""

from __future__ import annotations

import os
import sys

from airflow.sdk import dag

from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator, SyncModelsOperator


@dag(schedule=None, catchup=False)
def lineage() -> None:
    push = PushModelOperator(task_id="push", registry_conn_id="one", model="fraud:v1", source=os.environ["MODEL"])
    sync = SyncModelsOperator(task_id="sync", source_conn_id="one", target_conn_id="two", rename={"fraud": "copy"})
    pull = PullModelOperator(task_id="pull", registry_conn_id="two", model="copy", target=os.environ["TARGET"])
    push >> sync >> pull


whole = lineage()

if __name__ == "__main__":
    sys.exit(str(whole.test().state) != "success")

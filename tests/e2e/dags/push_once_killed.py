"""Pushes a model; the first try is killed, as by the kernel, once a file says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag

from airflow_provider_modelsync.core.transfer import checkpoint
from airflow_provider_modelsync.operators.transfer import PushModelOperator


class Killed(PushModelOperator):
    """A push whose first try does not live to its end."""

    def execute(self, context: Any) -> Any:
        checkpoint.FLUSH_SECONDS = 0.0
        if context["ti"].try_number == 1:
            sign = Path(context["dag_run"].conf["kill"])
            threading.Thread(target=_die_at, args=(sign,), daemon=True).start()
        return super().execute(context)


def _die_at(sign: Path) -> None:
    while not sign.exists():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


@dag(schedule=None, catchup=False, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def push_once_killed() -> None:
    Killed(
        task_id="push",
        registry_conn_id="bentocloud_parts",
        model="large:v1",
        source="{{ dag_run.conf['source'] }}",
    )


push_once_killed()

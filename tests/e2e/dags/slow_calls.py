"""Everything that waits in the triggerer for what it has started, against registries that are slow to answer."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_modelsync.operators.deployment import DeployModelOperator, PredictOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator

ENDS = ("failed", "success", "clear", "expire", "restart")
SECONDS = (0.1, 0.7, 2.0, 5.0)  # for each call
# A case's index, its end and how long calls take. So is each mapped task instance called.
CASES = [(index, *case) for index, case in enumerate((end, seconds) for end in ENDS for seconds in SECONDS)]
EXPIRES = 45.0  # seconds
FIRST_IMAGE = 9000


def name_of(end: str, seconds: float) -> str:
    """What a case works on."""
    return f"slow-{end}-{seconds * 1000:.0f}"


def session_of(seconds: float) -> str:
    """What predicts for cases whose calls take so long."""
    return f"slow-{seconds * 1000:.0f}"


@dag(schedule=None, catchup=False, max_active_tasks=64, default_args={"deferrable": True, "poll_interval": 5})
def slow_calls() -> None:
    timeouts = [timedelta(seconds=EXPIRES if end == "expire" else 3600) for _, end, _ in CASES]
    names = [name_of(end, seconds) for _, end, seconds in CASES]
    DeployModelOperator.partial(task_id="deploy", registry_conn_id="bentocloud_default", model="slow:v1").expand_kwargs(
        [{"deployment": name, "timeout": timeout} for name, timeout in zip(names, timeouts, strict=True)]
    )
    PullModelOperator.partial(task_id="fetch", registry_conn_id="pieces_default").expand_kwargs(
        [{"model": name, "timeout": timeout} for name, timeout in zip(names, timeouts, strict=True)]
    )
    PredictOperator.partial(task_id="predict", registry_conn_id="supervisely_default").expand_kwargs(
        [
            {
                "deployment": session_of(seconds),
                "inputs": {"image_id": FIRST_IMAGE + index},
                "output": f"{os.environ.get('TMPDIR', '/tmp')}/{names[index]}.jsonl",
                "timeout": timeouts[index],
            }
            for index, _, seconds in CASES
        ]
    )


slow_calls()

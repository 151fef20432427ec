"""A task that is killed in the middle of its transfer, as Airflow's task runner does it.

Run as ``python -m tests.support.killed_task <operator class> <watched directory> <JSON arguments> [timeout]``. The
runner's handler for SIGTERM only calls ``on_kill()`` and returns; that of ``execution_timeout`` raises. The signal
comes from this process itself, at the moment when the first ``.bin`` file below the watched directory is opened for
writing, so that nothing depends on timing. What became of the task is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from airflow_provider_modelsync.compat import AirflowTaskTimeout
from airflow_provider_modelsync.operators import transfer
from tests.support.state_store import StateStore


def main(operator_name: str, watched: str, arguments: str, how: str = "kill") -> None:
    """Run the operator and die."""
    operator = getattr(transfer, operator_name)(task_id="killed", **json.loads(arguments))
    killed_at: list[float] = []

    def on_open(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and not killed_at and _writes_below(watched, details):
            killed_at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    def out_of_time(*_: object) -> None:
        raise AirflowTaskTimeout("Timeout")

    signal.signal(signal.SIGTERM, out_of_time if how == "timeout" else lambda *_: operator.on_kill())
    sys.addaudithook(on_open)
    try:
        operator.execute({"task_state_store": StateStore(), "outlet_events": {}})
        outcome = "finished"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    took = time.monotonic() - killed_at[0] if killed_at else None
    print(json.dumps({"took": took, "outcome": outcome}), flush=True)


def _writes_below(directory: str, details: tuple[Any, ...]) -> bool:
    path, _, flags = details
    if not isinstance(path, str | os.PathLike) or not flags & (os.O_WRONLY | os.O_RDWR):
        return False
    place = os.path.realpath(path)  # it may be told by way of a descriptor
    return place.startswith(directory) and place.endswith(".bin")


if __name__ == "__main__":
    main(*sys.argv[1:])

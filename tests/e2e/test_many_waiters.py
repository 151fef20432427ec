"""Many sensors wait, few requests are made."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from scripts.local_airflow import LocalAirflow
from tests.e2e.dags.many_waiters import INTERVAL, MODELS, SENSORS
from tests.e2e.runs import Run
from tests.standins.bentocloud import BentoCloudStandIn
from tests.support.until import until

pytestmark = pytest.mark.e2e

AWAITED = [f"awaited-{number}" for number in range(MODELS)]
LOOKS = 4


def test_sensors_ask_once_per_interval_and_model(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path
) -> None:
    run = Run.start(airflow, "many_waiters")
    until(lambda: states(run) == {"deferred": SENSORS}, "all sensors to wait", 3600)

    begun, first = time.monotonic(), len(bentocloud.requests)
    until(lambda: all(looks(bentocloud, first)[name] >= LOOKS for name in AWAITED), "some looks")

    seen = looks(bentocloud, first)
    # The first at once, and one that was long on its way.
    assert max(seen.values()) <= (time.monotonic() - begun) / INTERVAL + 2
    for name in AWAITED:
        bentocloud.seed(name, "v1", source)
    until(lambda: states(run) == {"success": SENSORS}, "all sensors to see their version", 3600)


def states(run: Run) -> Counter[str]:
    """How many sensors are in which state."""
    return Counter(task["state"] for task in run.instances())


def looks(server: BentoCloudStandIn, first: int) -> Counter[str]:
    """How often a registry was asked for which model since the request of that number."""
    paths = [request.path for request in server.requests[first:]]
    return Counter(name for name in AWAITED for path in paths if f"/{name}" in path)

"""What a killed task leaves to its next try: in Airflow's state store, or where there is none, in a directory."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS
from scripts.local_airflow import LocalAirflow
from tests.e2e.runs import Run
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Hold
from tests.support.until import until
from tests.support.versions import RETRIES_KILLED

pytestmark = pytest.mark.e2e

PARTS = 4
OBJECT = r"large.*"


def remembered(base: Path) -> set[Path]:
    """Return what tasks have left below ``state_url``."""
    return {path for path in (base / "state").glob("v1/*/*.json") if path.parent.name != "watched"}


def test_a_killed_push_sends_only_the_missing_parts(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, base: Path, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    source.mkdir()
    (source / "weights.bin").write_bytes(random.Random(0).randbytes((PARTS - 1) * (5 << 20) + 1_000_000))
    of_others = remembered(base)  # tasks of other tests that were ended by hand
    before = bentocloud.count("PUT", OBJECT)
    killed = threading.Event()
    bentocloud.fault("PUT", OBJECT, Hold(killed), nth=3)
    run = Run.start(airflow, "push_once_killed", source=str(source), kill=str(tmp_path / "kill"))
    until(lambda: bentocloud.count("PUT", OBJECT) == before + 3, "the third part")
    assert bool(remembered(base) - of_others) is not TELLS_OF_KILLS
    (tmp_path / "kill").touch()
    if not RETRIES_KILLED:
        assert run.end() == "failed"
        run.clear("push")

    run.succeed()
    killed.set()

    tries = airflow.tries("push_once_killed", run.run_id, "push")
    assert [task["state"] for task in tries] == ["failed", "success"]
    assert run.left("push")["resumed_bytes"] == 2 * (5 << 20)
    sent = [request.part for request in bentocloud.find("PUT", OBJECT)[before:]]
    assert sent == [1, 2, 3, 3, 4]
    assert remembered(base) <= of_others

"""Models move between workers that share nothing but a bucket, and survive the loss of one."""

from __future__ import annotations

import random
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from scripts.local_airflow import LocalAirflow
from tests.conftest import Connect
from tests.distributed.cluster import HEARTBEAT_TIMEOUT, Cluster
from tests.distributed.conftest import PART_SIZE_MIB, THREADS, WORKERS
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Reset
from tests.standins.s3 import Before, Request, S3StandIn
from tests.support.until import until

pytestmark = [pytest.mark.celery, pytest.mark.slow]

PART = PART_SIZE_MIB << 20


def succeed(airflow: LocalAirflow, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Wait for a run's success and return its task instances; show the logs of what has failed."""
    state = airflow.wait(dag_id, run_id)
    instances = airflow.instances(dag_id, run_id)
    if state != "success":
        failed = [task["task_id"] for task in instances if task["state"] == "failed"]
        pytest.fail("\n".join(airflow.log(dag_id, run_id, name) for name in failed))
    return instances


def where(task: dict[str, Any]) -> str:
    """Say what ran on which worker."""
    index = f"[{task['map_index']}]" if task["map_index"] >= 0 else ""
    return f"{task['task_id']}{index}, try {task['try_number']}: {task['hostname']}, {task['state']}"


def keys(s3: S3StandIn, prefix: str) -> set[str]:
    """What a bucket holds below a prefix."""
    found = s3.backend.client().list_objects_v2(Bucket=s3.bucket, Prefix=prefix)
    return {entry["Key"].removeprefix(prefix) for entry in found.get("Contents", ())}


def test_one_worker_pushes_what_another_pulls(cluster: Cluster, figures: list[str]) -> None:
    dag_id, airflow = "train_push_wait_pull", cluster.airflow
    run_id = airflow.trigger(dag_id)
    instances = succeed(airflow, dag_id, run_id)

    hosts = {task["task_id"]: task["hostname"] for task in instances}
    assert (hosts["train"], hosts["push"], hosts["pull"], hosts["compare"]) == ("one", "one", "two", "two")
    trained = Path(airflow.xcom(dag_id, run_id, "train", "directory"))
    pulled = Path(airflow.xcom(dag_id, run_id, "pull")["path"])
    assert trained.is_relative_to(cluster.workers["one"].scratch)
    assert pulled.is_relative_to(cluster.workers["two"].scratch)
    assert [path.name for path in pulled.iterdir()] == ["model.onnx"]
    assert (pulled / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()
    assert airflow.xcom(dag_id, run_id, "compare") == "450 of 450 predictions are identical"
    figures.extend(map(where, instances))


def test_a_sync_is_spread_over_the_workers(
    cluster: Cluster,
    s3: S3StandIn,
    cloud: BentoCloudStandIn,
    connect: Connect,
    tmp_path: Path,
    figures: list[str],
) -> None:
    dag_id, airflow = "fleet_sync", cluster.airflow
    connect("bentocloud_default", conn_type="bentocloud", host=cloud.url, password=cloud.token)
    digests = {}
    for number in range(6):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "weights.bin").write_bytes(random.Random(number).randbytes(300_000))
        digests[f"model-{number}"] = str(BentoCloudHook("bentocloud_default").push(source, f"model-{number}:v1").digest)
    # The first two models wait for each other before a byte is sent, and a worker runs one task at a time.
    meeting = threading.Barrier(len(WORKERS), timeout=120)
    s3.fault("PutObject", r"model-\d/\.modelsync/.*claim$", Before(lambda _: meeting.wait()), times=len(WORKERS))

    run_id = airflow.trigger(dag_id)
    instances = succeed(airflow, dag_id, run_id)

    synced = [task for task in instances if task["task_id"] == "sync"]
    assert {task["hostname"] for task in synced} == set(WORKERS)
    assert len(synced) == len(digests)
    copied = [airflow.xcom(dag_id, run_id, "sync", map_index=task["map_index"]) for task in synced]
    assert all(report["counts"]["copied"] == 1 for report in copied)
    for name, digest in digests.items():
        assert keys(s3, f"models/{name}/") == {"v1/weights.bin", ".modelsync/v1.json"}
        s3.backend.client().download_file(s3.bucket, f"models/{name}/v1/weights.bin", str(tmp_path / "weights.bin"))
        assert (tmp_path / "weights.bin").read_bytes() == (tmp_path / name[-1] / "weights.bin").read_bytes()
        assert digest_directory(tmp_path / name[-1]) == digest
    figures.extend(map(where, instances))


def test_another_worker_finishes_the_push_of_a_killed_one(
    cluster: Cluster, s3: S3StandIn, tmp_path: Path, figures: list[str]
) -> None:
    dag_id, airflow, landed = "push_shared", cluster.airflow, 3
    source = tmp_path / "shared"
    source.mkdir()
    size = 7 * PART + 1_000_000
    (source / "weights.bin").write_bytes(random.Random(0).randbytes(size))
    (source / "config.json").write_text("{}")
    dead = threading.Event()
    # Nothing of what comes after the first parts arrives: held up on its way, it is lost with its sender.
    for action in (Before(lambda _: dead.wait(120)), Reset()):
        s3.fault("UploadPart", r"weights\.bin$", action, nth=landed + 1, times=None)

    run_id = airflow.trigger(dag_id, {"source": str(source)})
    until(lambda: s3.count("UploadPart") == landed + THREADS and len(stored(s3)) == landed, "the push to be stuck")
    [first] = airflow.instances(dag_id, run_id)
    cluster.kill(first["hostname"])
    killed_at = time.monotonic()
    dead.set()
    before = stored(s3)
    s3.clear()
    until(lambda: s3.count("UploadPart"), "another worker to go on")
    pause = time.monotonic() - killed_at
    succeed(airflow, dag_id, run_id)

    tries, after = airflow.tries(dag_id, run_id, "push"), s3.find("UploadPart")
    assert [task["state"] for task in tries] == ["failed", "success"]
    assert {task["hostname"] for task in tries} == set(WORKERS)
    pushed = airflow.xcom(dag_id, run_id, "push")
    assert pushed["skipped"] is False  # nobody else has done the work
    assert pushed["resumed_bytes"] == moved(before)
    assert len(before) == landed
    assert sorted(parts(before) + parts(after)) == list(range(1, 9))
    assert moved(before) + moved(after) == size
    assert keys(s3, "models/large/") == {"v1/weights.bin", "v1/config.json", ".modelsync/v1.json"}
    assert "Uploads" not in s3.backend.client().list_multipart_uploads(Bucket=s3.bucket)
    body = s3.backend.client().get_object(Bucket=s3.bucket, Key="models/large/v1/weights.bin")["Body"].read()
    assert body == (source / "weights.bin").read_bytes()
    figures.extend(map(where, tries))
    figures.append(f"stored before the kill: {moved(before):,} of {size:,} bytes, parts {parts(before)}")
    figures.append(f"sent after it: {moved(after):,} bytes, parts {parts(after)}")
    figures.append(f"from the kill to the next part: {pause:.0f} s, with a timeout of {HEARTBEAT_TIMEOUT} s")


def stored(s3: S3StandIn) -> list[Request]:
    """The parts that the storage has confirmed."""
    return [request for request in s3.find("UploadPart") if request.status == HTTPStatus.OK]


def parts(requests: list[Request]) -> list[int]:
    """Their numbers."""
    return sorted(request.part or 0 for request in requests)


def moved(requests: list[Request]) -> int:
    """How many bytes they brought."""
    return sum(request.received for request in requests)

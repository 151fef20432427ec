"""The memory that a transfer to and from a bucket takes: that of the parts in flight, however large the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull as pull_model
from airflow_provider_modelsync.core.verbs.push import push as push_model
from tests.core.registries.modelstore.buckets import BucketStore, bucket_store
from tests.core.transfer.test_memory import MIB, ROOT, measured, sparse

pytestmark = pytest.mark.faults

SIZE = 300 * MIB
WORKERS, PART = 4, 16 * MIB


def transfer(verb: str, path: str, fields: dict[str, Any]) -> None:
    """Push or pull, and print by how much this process has grown."""
    registry = ModelStore(BucketSettings.read("bucket", fields))
    ref, control = registry.parse("fraud:v1"), Control(workers=WORKERS)
    with driver_for(registry) as driver:
        driver.run(registry.list_versions("nothing", Query()))  # boto3 is loaded before anything is measured
        work: Callable[[], Any] = (
            (lambda: push_model(registry, driver, path, ref, control))
            if verb == "push"
            else (lambda: pull_model(registry, driver, ref, path, control, query=Query()))
        )
        print(json.dumps(measured(work)))


def growth(store: BucketStore, verb: str, path: Path) -> int:
    settings = store.registry.settings
    fields = {
        **settings.model_dump(include={"host", "endpoint_url", "region_name", "login"}),
        "password": store.s3.secret_key,
    }
    arguments = f"{verb!r}, {str(path)!r}, {fields!r}"
    code = f"from tests.core.registries.modelstore.test_s3_memory import transfer; transfer({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1])["grown"])


@pytest.mark.slow
def test_a_transfer_takes_no_more_memory_than_its_parts_in_flight(tmp_path: Path) -> None:
    limit = WORKERS * PART + 16 * MIB
    with bucket_store() as store:
        source = tmp_path / "source"
        source.mkdir()
        sparse(source / "weights.bin", SIZE)
        assert growth(store, "push", source) <= limit
        assert store.s3.count("UploadPart") == -(-SIZE // PART)
        assert growth(store, "pull", tmp_path / "target") <= limit
    assert (tmp_path / "target" / "weights.bin").stat().st_size == SIZE

"""The examples that sync BentoCloud into a bucket, inside this process, against stand-ins of both."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.conftest import Connect
from tests.services.moto_server import running_moto
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.s3 import S3StandIn

pytestmark = pytest.mark.documents

MODELS = ("churn", "digits", "fraud")


@pytest.fixture
def both(tmp_path: Path, connect: Connect, source: Path) -> Iterator[tuple[BentoCloudStandIn, S3StandIn]]:
    """BentoCloud with three models, and an empty bucket, behind the connections that the examples name."""
    with BentoCloudStandIn(tmp_path) as cloud, running_moto() as moto, S3StandIn(moto) as s3:
        connect("bentocloud_default", conn_type="bentocloud", host=cloud.url, password=cloud.token)
        connect(
            "modelstore_default",
            conn_type="modelstore",
            host=f"s3://{s3.bucket}/nightly",
            login=s3.access_key,
            password=s3.secret_key,
            extra={"endpoint_url": s3.endpoint},
        )
        for name in MODELS:
            BentoCloudHook().push(source, f"{name}:v1", labels={"of": name})
        yield cloud, s3


def run(example: str) -> tuple[str, dict[tuple[str, int], Any]]:
    """Run an example; return its state and what its tasks left, by task and map index."""
    from tests.integration.dags.examples import EXAMPLES

    done = EXAMPLES[example]().test()
    left = {
        (instance.task_id, instance.map_index): instance.xcom_pull(
            task_ids=instance.task_id, map_indexes=instance.map_index
        )
        for instance in done.get_task_instances()
    }
    return str(done.state), left


def test_every_night_what_is_missing_is_copied(
    airflow_database: Path, both: tuple[BentoCloudStandIn, S3StandIn]
) -> None:
    (state, first), (again, second) = run("nightly_sync"), run("nightly_sync")

    assert (state, again) == ("success", "success")
    assert first["sync", -1]["counts"] == {"copied": 3, "skipped": 0, "failed": 0}
    assert second["sync", -1]["counts"] == {"copied": 0, "skipped": 3, "failed": 0}
    copies = {version.name: version for version in ModelStoreHook().list_models()}
    for name in MODELS:
        original = BentoCloudHook().get(f"{name}:v1")
        assert (copies[name].digest, copies[name].labels) == (original.digest, {"of": name})


def test_into_production_goes_what_holds_no_pickle(airflow_database: Path, tmp_path: Path, connect: Connect) -> None:
    connect("modelsync_default", conn_type="modelstore", host=(tmp_path / "teams").as_uri())
    connect("modelstore_default", conn_type="modelstore", host=(tmp_path / "production").as_uri())
    for name, file, content in (
        ("digits", "model.json", b"{}"),
        ("fraud", "model.safetensors", pickle.dumps({"weights": [1.0]})),
    ):
        model = tmp_path / name
        model.mkdir()
        (model / file).write_bytes(content)
        ModelStoreHook("modelsync_default").push(model, f"{name}:v1")

    state, _ = run("sync_into_production")

    assert state == "failed"
    assert [version.ref for version in ModelStoreHook().list_models()] == ["digits:v1"]
    assert not (tmp_path / "production" / "fraud").exists()


def test_each_model_is_a_task_of_its_own(airflow_database: Path, both: tuple[BentoCloudStandIn, S3StandIn]) -> None:
    state, left = run("fleet_sync")

    assert state == "success"
    copied = [left["sync", index]["copied"] for index in range(len(MODELS))]
    assert sorted(versions[0]["target"] for versions in copied) == [f"{name}:v1" for name in MODELS]

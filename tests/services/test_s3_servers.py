"""The model store in further servers that speak S3, and servers that leave nothing."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import NotSupported
from tests.core.registries.modelstore.buckets import BucketStore
from tests.core.stores import snapshot, write_tree
from tests.services.s3_servers import running_localbucket, running_ministack, running_nanio, running_rclone
from tests.standins.s3 import S3StandIn

pytestmark = pytest.mark.s3


def test_a_version_lives_its_life_in_ministack(tmp_path: Path) -> None:
    files = {"weights.bin": random.Random(1).randbytes((5 << 20) + 9), "vocab.txt": b"one"}
    source = write_tree(tmp_path / "source", files)
    with running_ministack() as service, S3StandIn(service) as s3:
        store = BucketStore(s3)
        store.push(source, "fraud:v1")
        assert s3.count("UploadPart") == 2
        store.set_labels("fraud:v1", {"stage": "dev"})
        assert store.set_labels("fraud:v1", {"stage": "prod"}).labels == {"stage": "prod"}
        write_tree(source, {"vocab.txt": b"two"})
        store.push(source, "fraud:v2")
        write_tree(source, {"vocab.txt": b"three"})
        store.push(source, "fraud:v1", force=True)
        store.pull("fraud:v1", tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)
        assert store.get("fraud:v1").digest == digest_directory(source)
        assert store.delete("fraud:v2")
        assert store.uploads() == {}


@pytest.mark.parametrize("running", [running_localbucket, running_nanio, running_rclone])
def test_servers_that_ignore_conditions_are_refused_and_end(running: object) -> None:
    assert callable(running)
    with running() as service, S3StandIn(service) as s3:
        # Past the stand-in, which would keep the conditions itself.
        store = BucketStore(s3, {"endpoint_url": service.endpoint})
        with pytest.raises(NotSupported, match="Two pushes could mix"):
            store.test()
        assert store.keys() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(service.endpoint).port or 0))

"""A bucket behind a proxy, under a name that nobody knows, and in an odd environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable
from tests.core.registries.modelstore.buckets import PART, BucketStore, MotoStore, random_bytes
from tests.core.stores import snapshot, write_tree
from tests.services.moto_server import running_moto
from tests.standins.proxy import Proxy
from tests.standins.s3 import S3StandIn


@pytest.fixture
def store(small_parts: None, no_waiting: None) -> Iterator[BucketStore]:
    with running_moto() as moto, S3StandIn(moto) as s3:
        yield MotoStore(s3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", {"weights.bin": random_bytes(PART + 1), "a/vocab.txt": b"one"})


@pytest.mark.row("T17", of=("storage", "sends", "fetches"))
@pytest.mark.parametrize("named_by", ["connection", "environment"])
def test_every_request_of_a_version_s_life_goes_by_the_proxy(
    store: BucketStore, source: Path, tmp_path: Path, named_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Proxy() as proxy:
        if named_by == "environment":
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
        worker = store.again(**({"proxy": proxy.url} if named_by == "connection" else {}))
        assert worker.test()
        pushed = worker.push(source, "fraud:v1")
        target = tmp_path / "target"
        worker.pull("fraud:v1", target)
        assert [version.ref for version in worker.list_versions("fraud")] == [pushed.ref]
        worker.set_labels("fraud:v1", {"stage": "prod"})
        worker.delete("fraud:v1")
        assert pushed.digest == digest_directory(source)
        assert snapshot(target) == snapshot(source)
        assert len(proxy.requests) == store.s3.count()
        assert {"PutObject", "UploadPart", "GetObject", "ListObjectsV2"} <= store.s3.operations.keys()


@pytest.mark.row("T15", of="storage")
def test_a_host_without_address_is_named(store: BucketStore, source: Path) -> None:
    with pytest.raises(RegistryUnavailable, match=r"storage\.invalid"):
        store.again(endpoint_url="http://storage.invalid").push(source, "fraud:v1")


@pytest.mark.row("T18", of="storage")
def test_a_proxy_variable_that_cannot_be_used_is_named_and_the_connection_s_own_proxy_wins(
    store: BucketStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:secret@proxy.example")
    with pytest.raises(InvalidInput, match="HTTP_PROXY") as caught:
        store.again().push(source, "fraud:v1")
    assert "secret" not in str(caught.value)
    with Proxy() as proxy:
        assert store.again(proxy=proxy.url).push(source, "fraud:v1").ready
        assert proxy.requests

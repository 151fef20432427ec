"""A model store in a bucket: its layout for others, what its verbs cost, and how files get in and out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    DigestMismatch,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore import buckets as modelstore_s3
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages import s3 as bucket_module
from airflow_provider_modelsync.core.storages import s3 as modelstore_bucket
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, SyncReport, sync
from tests.core.registries.modelstore.buckets import FILES, KIB, PART, BucketStore, body_bytes
from tests.core.stores import snapshot, write_tree
from tests.services.ceph_rgw import rgw
from tests.standins.s3 import After, Before, S3StandIn

VERSION = "x" * 20  # of the model in `many`, which is written past the stand-in


@pytest.fixture
def rgw_store() -> Iterator[BucketStore]:
    with S3StandIn(rgw()) as s3:
        yield BucketStore(s3)


def shards(root: Path, size: int, *, changed: int | None = None) -> Path:
    """Write a model of sixteen files, one of them with other bytes."""
    files = {
        f"shards/{number:02}.bin": random.Random(number if number != changed else "changed").randbytes(size)
        for number in range(16)
    }
    return write_tree(root, files)


def operations(store: BucketStore) -> dict[str, int]:
    return dict(store.s3.operations)


def copy_versions(store: BucketStore, count: int) -> None:
    """Make many versions of one."""
    manifest = store.content("fraud/.modelsync/v0.json")
    for number in range(1, count):
        store.put(f"fraud/.modelsync/v{number}.json", manifest.replace(b'"version":"v0"', b'"version":"v%d"' % number))


# For others


def test_a_version_is_plain_objects_that_any_client_reads(store: BucketStore, tmp_path: Path) -> None:
    files = {"weights.bin": random.Random(1).randbytes(2 * PART), "tokenizer/vocab größe.txt": b"words", "empty": b""}
    source = write_tree(tmp_path / "source", files, executable=["empty"], directories=["void"])
    pushed = store.push(source, "fraud:v1", labels={"stage": "prod"})
    assert pushed.uri == f"s3://{store.s3.bucket}/models/fraud/v1"
    bucket, _, prefix = str(pushed.uri).removeprefix("s3://").partition("/")
    client, read = store.s3.client(), {}
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]:
        path = entry["Key"].removeprefix(f"{prefix}/")
        client.download_file(bucket, entry["Key"], str(tmp_path / "one"))
        read[path] = (tmp_path / "one").read_bytes()
    assert read == files
    assert [key for key in store.keys("") if not key.startswith("fraud/v1/")] == ["fraud/.modelsync/v1.json"]


def test_a_version_comes_back_as_it_was(store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "LARGE", 64 * KIB)
    monkeypatch.setattr(large_files, "PIECE", 32 * KIB)
    large = {f"large/{number}": random.Random(number).randbytes(2 * PART + number) for number in range(3)}
    small = {f"small/{number}.txt": b"%d" % number for number in range(20)}
    source = write_tree(
        tmp_path / "source",
        {**large, **small, "empty": b""},
        executable=["large/1", "small/7.txt"],
        directories=["void"],
    )
    store.push(source, "fraud:v1")
    store.s3.clear()
    store.again().pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    requests = store.s3.find("GetObject", FILES)
    assert all("if-match" in request.headers for request in requests)
    assert all("range" in request.headers for request in requests if "/large/" in request.key)
    assert all("authorization" not in request.headers for request in requests)
    assert store.s3.count("GetObject", "/large/") == sum(-(-len(body) // (32 * KIB)) for body in large.values())
    assert sum(store.s3.downloaded[f"models/fraud/v1/{path}"] for path in large) == sum(map(len, large.values()))


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART])
@pytest.mark.row("A5", "D8")
def test_a_file_of_any_size_goes_up_and_comes_down(store: BucketStore, tmp_path: Path, size: int) -> None:
    source = write_tree(tmp_path / "source", {"a": random.Random(size).randbytes(size), "b": b"b"})
    store.push(source, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.s3.count("UploadPart") == (-(-size // PART) if size > PART else 0)
    bytes_moved = [
        request for verb in ("PutObject", "UploadPart", "GetObject") for request in store.s3.find(verb, FILES)
    ]
    assert {request.operation for request in bytes_moved} >= {"PutObject", "GetObject"}
    assert not any("authorization" in request.headers for request in bytes_moved)


def test_a_version_pushed_again_with_the_same_bytes_is_as_new_as_its_manifest(
    store: BucketStore, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "source", {"a": b"a"})
    store.push(source, "fraud:v1")
    first = store.list_versions("fraud")[0]
    store.delete("fraud:v1")
    while (now := datetime.now(UTC)).replace(microsecond=0) == first.created_at:
        time.sleep(1 - now.microsecond / 1e6)
    store.push(source, "fraud:v1")
    second = store.list_versions("fraud")[0]
    assert first.created_at
    assert second.created_at
    assert second.created_at > first.created_at


# Cost


def test_a_record_larger_than_any_is_not_read_to_its_end(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v1")
    monkeypatch.setattr(bucket_module, "_RECORD_BYTES", 10)
    with pytest.raises(RegistryUnavailable, match=r"v1\.json' is larger than any record"):
        store.again().get("fraud:v1")


def test_latest_costs_one_list_and_one_get_whatever_the_number_of_versions(store: BucketStore, tmp_path: Path) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_versions(store, 200)
    worker = store.again()
    store.s3.clear()
    newest = worker.get("fraud")
    assert operations(store) == {"ListObjectsV2": 1, "GetObject": 1}
    store.s3.clear()
    assert worker.get("fraud") == newest
    assert operations(store) == {"ListObjectsV2": 1}  # what was read of it is known by its tag
    store.set_labels(newest.ref, {"stage": "prod"})
    store.s3.clear()
    assert store.again().get("fraud").labels == {"stage": "prod"}
    assert store.s3.count() <= 3
    assert store.s3.count("ListObjectsV2") == 1


def test_a_label_that_no_version_has_costs_one_read_of_each_many_at_a_time_and_the_next_time_none(
    store: BucketStore, tmp_path: Path
) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copies = 37
    copy_versions(store, 1 + copies)
    # The first is read alone, since it is the answer as a rule. None after it is answered before four are asked for.
    together = threading.Barrier(4)
    store.s3.fault("GetObject", r"/v[1-9]\d*\.json$", Before(lambda _: together.wait(20)), nth=2, times=copies - 1)
    worker = store.again()
    with pytest.raises(ModelNotFound):
        worker.get("fraud", "label:stage=prod")
    assert store.s3.count("GetObject", r"/v[1-9]\d*\.json$") == copies
    assert not together.broken
    store.s3.clear()
    with pytest.raises(ModelNotFound):
        store.again().get("fraud", "label:stage=prod")
    assert operations(store) == {"ListObjectsV2": 1}


def test_an_exact_version_costs_one_list_and_one_get(store: BucketStore, tmp_path: Path) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_versions(store, 3)
    store.s3.clear()
    store.again().get("fraud:v2")
    assert operations(store) == {"ListObjectsV2": 1, "GetObject": 1}


def test_a_push_of_one_file_costs_nine_calls_whatever_the_number_of_versions(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelstore_s3, "_WORTH_COPYING", 1 << 20)
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_versions(store, 20)
    store.s3.clear()
    store.again().push(write_tree(tmp_path / "source", {"a": b"b"}), "fraud:new")
    asked = [(request.operation, request.key.removeprefix("models/fraud/")) for request in store.s3.find()]
    assert asked == [
        ("ListObjectsV2", ""),  # is it there, or claimed
        ("PutObject", ".modelsync/new.claim"),
        ("ListObjectsV2", ""),  # is the claim's number still to be had
        ("GetObject", ".modelsync/new.json"),  # is it there though no list says so
        ("PutObject", "new/a"),
        ("ListObjectsV2", ""),  # is all as it was sent, and nothing else
        ("PutObject", ".modelsync/new.json"),
        ("ListObjectsV2", ""),  # does it count, and since when
        ("DeleteObject", ".modelsync/new.claim"),
    ]


def test_a_listing_costs_a_list_per_thousand_records_and_reads_each_version_once(
    store: BucketStore, tmp_path: Path
) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_versions(store, 50)
    store.fill(f"fraud/.modelsync/dead{number}.claim" for number in range(1000))  # records that need not be read
    store.s3.clear()
    assert len(store.list_versions("fraud")) == 50
    found = operations(store)
    assert found["ListObjectsV2"] == 2
    assert found["GetObject"] in (49, 50)  # the first may be known from the push
    assert found.keys() == {"ListObjectsV2", "GetObject"}
    store.s3.clear()
    assert len(store.again().list_versions("fraud")) == 50
    assert operations(store) == {"ListObjectsV2": 2}


def copy_models(store: BucketStore, names: Iterable[str], versions: int) -> None:
    """Make many models of one, each with so many versions."""
    manifest = store.content("fraud/.modelsync/v0.json")
    for name in names:
        for number in range(versions):
            told = manifest.replace(b'"name":"fraud"', b'"name":"%s"' % name.encode())
            store.put(f"{name}/.modelsync/v{number}.json", told.replace(b'"version":"v0"', b'"version":"v%d"' % number))


@pytest.mark.parametrize("versions", [1, 12])
def test_a_list_of_models_costs_two_requests_a_name_whatever_the_number_of_versions(
    store: BucketStore, tmp_path: Path, versions: int
) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_models(store, [f"model{number}" for number in range(9)], versions)
    worker = store.again()
    store.s3.clear()
    assert len(worker.run(worker.registry.list_models(Query()))) == 10
    assert operations(store) == {"ListObjectsV2": 1 + 10, "GetObject": 10}
    store.s3.clear()
    assert len(worker.run(worker.registry.list_models(Query()))) == 10
    assert operations(store) == {"ListObjectsV2": 1 + 10}


@pytest.mark.parametrize("versions", [1, 12])
def test_a_sync_that_finds_nothing_new_costs_as_much_whatever_the_number_of_versions(
    store: BucketStore, tmp_path: Path, versions: int
) -> None:
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    copy_models(store, ["model"], versions)
    for number in range(versions):
        store.put(f"model/v{number}/a", b"a")
    target = ModelStore(RegistrySettings(conn_id="copy", host=(tmp_path / "copy").as_uri()))
    (tmp_path / "copy").mkdir()

    def run() -> SyncReport:
        sides = (Side(registry, SyncDriver()) for registry in (store.again().registry, target))
        return sync(*sides, Selection(models=["model"]), Control())

    assert len(run().of("copied")) == 1
    store.s3.clear()
    assert len(run().of("skipped")) == 1
    assert operations(store) == {"ListObjectsV2": 2}  # of names, and of this one's records


def test_pushing_what_is_there_sends_nothing(store: BucketStore, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"a": b"a"})
    store.push(source, "fraud:v1")
    store.s3.clear()
    pushed = store.push(source, "fraud:v1")
    assert pushed.transfer
    assert pushed.transfer.skipped
    assert operations(store) == {"ListObjectsV2": 2, "GetObject": 1}  # what is there, and whether its files still are


# Files that an earlier version holds


def assert_only_the_changed_file_is_sent(store: BucketStore, tmp_path: Path, size: int) -> None:
    store.push(shards(tmp_path / "old", size), "fraud:v1")
    store.s3.clear()
    new = shards(tmp_path / "new", size, changed=5)
    pushed = store.again().push(new, "fraud:v2")
    assert {key for key in store.s3.uploaded if "/.modelsync/" not in key} == {"models/fraud/v2/shards/05.bin"}
    assert body_bytes(store.s3) == size
    assert store.s3.count("CopyObject") == 15
    assert pushed.transfer
    assert pushed.transfer.sent_bytes == size
    assert store.tidy("fraud:v2") == digest_directory(new)
    store.pull("fraud:v2", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(new)


def test_one_changed_file_of_sixteen_is_the_only_one_sent(store: BucketStore, tmp_path: Path) -> None:
    assert_only_the_changed_file_is_sent(store, tmp_path, 2 * PART + 1)


@pytest.mark.s3
def test_one_changed_file_of_sixteen_is_the_only_one_sent_to_ceph(rgw_store: BucketStore, tmp_path: Path) -> None:
    assert_only_the_changed_file_is_sent(rgw_store, tmp_path, (5 << 20) + 1)


@pytest.mark.parametrize("what", ["replaced", "deleted"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_origin_that_goes_in_the_middle_is_noticed(store: BucketStore, tmp_path: Path, what: str, when: str) -> None:
    old, new = shards(tmp_path / "old", 900), shards(tmp_path / "new", 900, changed=5)
    store.push(old, "fraud:v1")
    other, worker = write_tree(tmp_path / "other", {"shards/00.bin": b"x" * 900}), store.again()

    def go() -> None:
        worker.push(other, "fraud:v1", force=True) if what == "replaced" else worker.delete("fraud:v1")

    store.s3.fault("CopyObject", "", (Before if when == "before" else After)(lambda _: go()), nth=3)
    store.push(new, "fraud:v2", control=Control(workers=1))
    assert store.tidy("fraud:v2") == digest_directory(new)


def test_what_is_too_large_for_one_copy_is_copied_in_parts(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelstore_bucket, "_LARGEST_COPY", PART)
    monkeypatch.setattr(modelstore_bucket, "_COPY_PART", PART)
    old = write_tree(tmp_path / "old", {"weights.bin": random.Random(1).randbytes(2 * PART + 5), "a": b"a"})
    store.push(old, "fraud:v1")
    new = write_tree(old, {"a": b"b"})
    store.s3.clear()
    store.push(new, "fraud:v2")
    assert store.s3.count("UploadPartCopy") == 3
    assert body_bytes(store.s3) == 1
    assert store.tidy("fraud:v2") == digest_directory(new)
    store.s3.fault("UploadPartCopy", "v3", Before(lambda _: store.put("fraud/v1/weights.bin", b"gone")), nth=2)
    store.s3.fault("UploadPartCopy", "v3", Before(lambda _: store.remove("fraud/v2/weights.bin")), nth=2)
    write_tree(new, {"a": b"c"})
    store.push(new, "fraud:v3", control=Control(workers=1))
    assert store.tidy("fraud:v3") == digest_directory(new)


# Pull


@pytest.mark.parametrize("change", ["replaced", "missing", "cut"])
@pytest.mark.row("T11", "T10")
def test_an_object_that_is_not_as_the_manifest_says_leaves_no_target(
    store: BucketStore, tmp_path: Path, change: str
) -> None:
    store.push(
        write_tree(tmp_path / "source", {"weights.bin": random.Random(1).randbytes(PART), "b": b"b"}), "fraud:v1"
    )
    errors: Mapping[str, type[ModelSyncError]] = {
        "replaced": RegistryUnavailable,
        "missing": RegistryUnavailable,
        "cut": DigestMismatch,
    }
    if change == "replaced":
        hook = Before(lambda _: store.put("fraud/v1/weights.bin", random.Random(2).randbytes(PART)))
        store.s3.fault("GetObject", "weights", hook)
    elif change == "missing":
        store.remove("fraud/v1/weights.bin")
    else:
        store.put("fraud/v1/weights.bin", b"short")
    with pytest.raises(errors[change]):
        store.pull("fraud:v1", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_version_replaced_during_a_pull_is_never_pulled_as_a_mixture(store: BucketStore, tmp_path: Path) -> None:
    old = write_tree(tmp_path / "old", {"a": b"old a", "b": b"old b"})
    new = write_tree(tmp_path / "new", {"a": b"new a", "b": b"new b"})
    store.push(old, "fraud:v1")
    worker = store.again()
    store.s3.fault("GetObject", FILES, Before(lambda _: worker.push(new, "fraud:v1", force=True)), nth=2)
    with pytest.raises(BeginAgain, match="replaced"):
        store.pull("fraud:v1", tmp_path / "target", control=Control(workers=1))
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(new)

"""A push to a bucket that is killed at any point: the next one, from anywhere, sends only what is missing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import VersionConflict
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.modelstore.buckets import (
    FILES,
    KIB,
    PART,
    BucketStore,
    bucket_store,
    is_killed_at,
    killed_after_each_write,
)
from tests.core.stores import hidden, snapshot, write_tree
from tests.services.ceph_rgw import rgw
from tests.standins.s3 import S3StandIn
from tests.support.steps import some_of

pytestmark = pytest.mark.faults

SMALLEST = 5 << 20  # bytes of a part that Ceph takes
ONE = Control(workers=1)  # so that nothing else is under way when it is killed


@pytest.fixture
def store(small_parts: None) -> Iterator[BucketStore]:
    with bucket_store() as store:
        yield store


def version(root: Path, number: int, part: int = PART) -> Path:
    """Write a version that shares a large file with all others."""
    kept, new = random.Random("kept"), random.Random(number)
    files = {
        "kept.bin": kept.randbytes(2 * part + 9),
        "weights.bin": new.randbytes(2 * part + 7),
        "layers/1.bin": new.randbytes(900),
        "empty": b"",
    }
    return write_tree(root / str(number), files, executable=["layers/1.bin"], directories=["void"])


def missing(store: BucketStore, model: str, source: Path, part: int) -> dict[str, int]:
    """What a retry has to send of each file that the storage cannot copy, as the bucket is now."""
    prefix = model.replace(":", "/")
    there, uploads = store.keys(f"{prefix}/"), store.uploads(f"{prefix}/")
    found = {}
    for path, (kind, content, _) in snapshot(source).items():
        key = f"{prefix}/{path}"
        if kind == "file" and path != "kept.bin" and key not in there:
            held = uploads.get(key, {}) if len(content) > part else {}
            found[f"models/{key}"] = len(content) - sum(held.values())
    return {key: size for key, size in found.items() if size}


def sent(s3: S3StandIn) -> dict[str, int]:
    """Bytes of each file that went up."""
    return {key: size for key, size in s3.uploaded.items() if "/.modelsync/" not in key}


@pytest.mark.row("P1", "P3")
def test_a_push_killed_after_any_write_is_finished_by_one_that_sends_only_what_is_missing(
    store: BucketStore, tmp_path: Path
) -> None:
    store.push(version(tmp_path, 0), "fraud:v0")
    source = version(tmp_path, 1)
    steps = killed_after_each_write(store, lambda: store.again().push(source, "fraud:v1", control=ONE))
    # nothing, claim; begin, parts, complete; a copy; two objects; manifest; and the claim given up
    assert len(steps) == 1 + 1 + 5 + 1 + 2 + 1 + 1
    for what, found in some_of(steps):
        expected = missing(found, "fraud:v1", source, PART)
        assert found.seen("fraud:v1") in (None, digest_directory(source)), what
        store.s3.clear()
        found.push(source, "fraud:v1", control=ONE)
        assert sent(store.s3) == expected, what
        assert found.tidy("fraud:v1") == digest_directory(source), what
    found.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_other_bytes_are_published_by_force_after_a_kill_at_any_write_of_a_push(
    store: BucketStore, tmp_path: Path
) -> None:
    source, other = version(tmp_path, 1), write_tree(tmp_path / "other", {"a": b"a"})
    steps = killed_after_each_write(store, lambda: store.push(source, "fraud:v1", control=ONE))
    for what, found in some_of(steps):
        found.push(other, "fraud:v1", force=True)
        assert found.tidy("fraud:v1") == digest_directory(other), what


@pytest.mark.s3
def test_a_killed_push_to_ceph_is_finished_by_one_that_sends_only_what_is_missing(tmp_path: Path) -> None:
    points = [
        ("PutObject", r"\.claim$", 1),
        ("CreateMultipartUpload", "weights", 1),
        ("UploadPart", "weights", 2),
        ("CompleteMultipartUpload", "weights", 1),
        ("CopyObject", "kept", 1),
        ("PutObject", r"\.json$", 1),
    ]
    with S3StandIn(rgw()) as s3:
        store = BucketStore(s3)
        store.push(version(tmp_path, 0, SMALLEST), "fraud:v0")
        for number, (what, key, nth) in enumerate(points, 1):
            source, model = version(tmp_path, number, SMALLEST), f"fraud:v{number}"
            assert is_killed_at(s3, lambda: store.again().push(source, model, control=ONE), what, key, nth=nth)  # noqa: B023
            expected = missing(store, model, source, SMALLEST)
            store.push(source, model, control=ONE)
            assert sent(s3) == expected, f"killed after {what} of {key}"
            assert store.tidy(model) == digest_directory(source)


def test_an_upload_begun_twice_goes_on_with_the_one_that_has_parts(store: BucketStore, tmp_path: Path) -> None:
    source = version(tmp_path, 1)
    assert is_killed_at(store.s3, lambda: store.again().push(source, "fraud:v1", control=ONE), "UploadPart", nth=2)
    expected = missing(store, "fraud:v1", source, PART)
    for file in ("kept.bin", "weights.bin"):  # as a lost answer to the request for one leaves it
        store.past.create_multipart_upload(Bucket=store.s3.bucket, Key=f"models/fraud/v1/{file}")
    store.push(source, "fraud:v1", control=ONE)
    assert sum(sent(store.s3).values()) == sum(expected.values()) + len((source / "kept.bin").read_bytes()) - 2 * PART
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.parametrize("force", [False, True])
def test_a_killed_push_keeps_the_version_claimed_but_for_force(store: BucketStore, tmp_path: Path, force: bool) -> None:
    dead, other = version(tmp_path, 1), version(tmp_path, 2)
    assert is_killed_at(store.s3, lambda: store.again().push(dead, "fraud:v1", control=ONE), "UploadPart", nth=2)
    if force:
        store.push(other, "fraud:v1", force=True)
        assert store.tidy("fraud:v1") == digest_directory(other)
    else:
        with pytest.raises(VersionConflict, match="force"):
            store.push(other, "fraud:v1")
        assert sent(store.s3) == {}


def test_a_killed_delete_is_finished_by_the_next_at_any_write(store: BucketStore, tmp_path: Path) -> None:
    source = version(tmp_path, 1)
    store.push(source, "fraud:v1")
    store.set_labels("fraud:v1", {"stage": "prod"})
    steps = killed_after_each_write(store, lambda: store.again().delete("fraud:v1"))
    assert len(steps) > 8
    gone = False
    for what, found in some_of(steps):
        is_there = found.is_published("fraud:v1")
        assert not (gone and is_there), what
        gone = not is_there
        assert found.delete("fraud:v1") is is_there, what
        assert found.nothing("fraud:v1"), what
        found.push(source, "fraud:v1")
        assert found.tidy("fraud:v1") == digest_directory(source), what
        assert found.get("fraud:v1").labels == {}, what


def test_the_old_version_is_there_until_the_new_one_is_whatever_write_a_forced_push_is_killed_at(
    store: BucketStore, tmp_path: Path
) -> None:
    old, new = version(tmp_path, 1), version(tmp_path, 2)
    (old / "old").write_bytes(b"of the old version alone")
    store.push(old, "fraud:v1")
    store.set_labels("fraud:v1", {"stage": "prod"})
    steps = killed_after_each_write(store, lambda: store.again().push(new, "fraud:v1", force=True, control=ONE))
    is_new = False
    for what, found in (*some_of(steps[:-1]), steps[-1]):
        digest = found.is_published("fraud:v1") and found.manifest("fraud:v1")["digest"]  # type: ignore[index]
        assert digest == digest_directory(new) or (digest == digest_directory(old) and not is_new), what
        is_new = digest == digest_directory(new)
        if not is_new:
            assert found.seen("fraud:v1") == digest_directory(old), what
            assert found.get("fraud:v1").labels == {"stage": "prod"}, what
        found.push(new, "fraud:v1", force=True)
        assert found.tidy("fraud:v1") == digest_directory(new), what
        assert found.get("fraud:v1").labels == {}, what
    assert is_new


@pytest.mark.row("P2")
def test_a_killed_pull_is_finished_by_one_that_fetches_only_the_missing_pieces(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "LARGE", 96 * KIB)
    monkeypatch.setattr(large_files, "PIECE", 64 * KIB)
    source = write_tree(tmp_path / "source", {"large.bin": random.Random(1).randbytes(5 * 64 * KIB), "small": b"s"})
    store.push(source, "fraud:v1")
    for nth in count(1):
        target = tmp_path / f"place-{nth}" / "target"
        work = partial(store.again().pull, "fraud:v1", target, control=ONE)
        if not is_killed_at(store.s3, work, "GetObject", FILES, nth=nth):
            break
        pulled = store.pull("fraud:v1", target, control=ONE).version.transfer
        assert pulled
        # The small file comes first; the piece that was being answered is not there yet.
        pieces_there = max(0, nth - 2)
        assert store.s3.downloaded["models/fraud/v1/large.bin"] == (5 - pieces_there) * 64 * KIB
        assert pulled.resumed_bytes == pieces_there * 64 * KIB
        assert snapshot(target) == snapshot(source)
        assert hidden(target.parent) == []
    assert nth - 1 == 1 + 5

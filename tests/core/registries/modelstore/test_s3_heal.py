"""What a bucket holds is not what was pushed: nothing damaged is copied, and a push of the same bytes heals it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import DigestMismatch, UnsafeArchive
from airflow_provider_modelsync.core.storages.base import Deadline
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.watchdog import Pace
from tests.core.registries.modelstore.buckets import PART, BucketStore
from tests.core.stores import snapshot, was_skipped, write_tree
from tests.standins.http_server import LoseAnswer
from tests.standins.s3 import Action, Before, Respond

pytestmark = pytest.mark.faults

LARGE = random.Random("large").randbytes(PART + 9)  # goes in two parts
FILES = {"large.bin": LARGE, "small.bin": b"small" * 100, "vocab.txt": b"one"}
DAMAGES = {
    "missing": None,
    "other bytes": random.Random("other").randbytes(len(LARGE)),
    "cut": LARGE[:100],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", FILES)


def sent(store: BucketStore) -> set[str]:
    """Return the files of which bytes went up."""
    return {key.split("/")[-1] for key, size in store.s3.uploaded.items() if size and "/.modelsync/" not in key}


def damage(store: BucketStore, path: str, content: bytes | None) -> None:
    if content is None:
        store.remove(f"fraud/v1/{path}")
    else:
        store.put(f"fraud/v1/{path}", content)


# Copies are a short cut

REFUSALS: dict[str, Action] = {
    "archived": Respond(403, "InvalidObjectState"),
    "not allowed": Respond(403, "AccessDenied"),
    "not implemented": Respond(501, "NotImplemented"),
    "changed": Respond(412, "PreconditionFailed"),
    "gone": Respond(404, "NoSuchKey"),
    "busy": Respond(503, "SlowDown"),
    "error in 200": Respond(200, "InternalError"),
    "made, and not told": LoseAnswer(),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_is_not_copied_is_sent(store: BucketStore, source: Path, tmp_path: Path, how: str) -> None:
    store.push(source, "fraud:v1")
    store.s3.clear()
    store.s3.fault("CopyObject", "", REFUSALS[how], times=None)
    new = write_tree(tmp_path / "new", {**FILES, "vocab.txt": b"two"})
    store.again().push(new, "fraud:v2", control=Control(workers=1))
    assert sent(store) >= {"vocab.txt", "large.bin", "small.bin"}
    assert store.s3.count("CopyObject") <= 10
    assert store.tidy("fraud:v2") == digest_directory(new)


def test_a_copy_that_takes_too_long_is_sent_instead(
    store: BucketStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Deadline.pace
    soon = Pace(min_bytes=1, window_seconds=0.1, answer_seconds=0.1, total_seconds=0.1)
    monkeypatch.setattr(Deadline, "pace", lambda self: soon if self.doing.startswith("copying") else pace(self))
    store.push(source, "fraud:v1")
    store.s3.fault("CopyObject", "", Before(lambda _: store.s3.stopping.wait(20)), times=None)
    new = write_tree(tmp_path / "new", {**FILES, "vocab.txt": b"two"})
    store.again().push(new, "fraud:v2", control=Control(workers=1))
    assert store.s3.count("CopyObject") > 0
    assert store.tidy("fraud:v2") == digest_directory(new)


@pytest.mark.parametrize("path", ["large.bin", "small.bin"])
def test_a_damaged_object_of_the_same_size_is_never_copied(
    store: BucketStore, source: Path, tmp_path: Path, path: str
) -> None:
    store.push(source, "fraud:v1")
    damage(store, path, random.Random("other").randbytes(len(FILES[path])))
    store.s3.clear()
    new = write_tree(tmp_path / "new", {**FILES, "vocab.txt": b"two"})
    store.again().push(new, "fraud:v2")
    assert sent(store) == {"vocab.txt", path}
    assert store.tidy("fraud:v2") == digest_directory(new)


# Healing


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_version_is_healed_by_pushing_its_bytes_again(
    store: BucketStore, source: Path, tmp_path: Path, how: str, force: bool
) -> None:
    first = store.push(source, "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
    damage(store, "large.bin", DAMAGES[how])
    store.s3.clear()
    healed = store.again().push(source, "fraud:v1", force=force)
    assert sent(store) == {"large.bin"}
    assert (healed.digest, healed.created_at) == (first.digest, first.created_at)
    assert (healed.labels, healed.metadata) == ({"stage": "prod"}, {"auc": 0.9})
    assert store.tidy("fraud:v1") == first.digest
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert was_skipped(store.push(source, "fraud:v1", force=force))


@pytest.mark.parametrize("force", [False, True])
def test_a_push_after_a_pull_that_found_damage_heals(
    store: BucketStore, source: Path, tmp_path: Path, force: bool
) -> None:
    store.push(source, "fraud:v1")
    damage(store, "small.bin", b"SMALL" * 100)
    with pytest.raises(DigestMismatch):
        store.pull("fraud:v1", tmp_path / "target")
    store.push(source, "fraud:v1", force=force)
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("force", [False, True])
def test_a_version_without_any_object_is_healed(store: BucketStore, source: Path, force: bool) -> None:
    store.push(source, "fraud:v1")
    for path in FILES:
        damage(store, path, None)
    store.push(source, "fraud:v1", force=force)
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.parametrize("force", [False, True])
def test_a_manifest_that_does_not_match_its_own_digest_is_healed(
    store: BucketStore, source: Path, tmp_path: Path, force: bool
) -> None:
    store.push(source, "fraud:v1")
    (entry,) = [file for file in store.manifest("fraud:v1")["files"] if file["path"] == "small.bin"]  # type: ignore[index]
    record = "fraud/.modelsync/v1.json"
    store.put(record, store.content(record).replace(entry["sha256"].encode(), b"0" * 64))
    worker = store.again()
    with pytest.raises(UnsafeArchive, match="does not match its own digest"):
        worker.pull("fraud:v1", tmp_path / "target")
    worker.push(source, "fraud:v1", force=force)
    worker.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.tidy("fraud:v1") == digest_directory(source)

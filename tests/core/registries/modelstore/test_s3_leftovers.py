"""What a prune removes of what pushes have left in a bucket, by its age; what somebody needs stays, however old."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from airflow_provider_modelsync.core.verbs.prune import Retention, prune
from tests.core.registries.modelstore.buckets import PART, MotoStore, bucket_store
from tests.core.stores import write_tree
from tests.standins.s3 import After

pytestmark = pytest.mark.faults

HOUR = 3600.0
LARGE = random.Random("large").randbytes(2 * PART)
CLAIM = b'{"digest": "sha256:%s"}' % (b"0" * 64)


class Aging(MotoStore):
    """A store whose objects, and parts of uploads, can be made to look old."""

    def age(self, *prefixes: str) -> None:
        """Make what lies below prefixes three hours old; moto's unfinished uploads were all begun in 2010."""
        long_ago = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=3)
        for key, found in self._objects.items():
            if key.startswith(tuple(f"models/{prefix}" for prefix in prefixes)):
                found.last_modified = long_ago

    def begin(self, key: str, *, parts: int = 0) -> str:
        """Begin an upload in parts, and send some just now; return its id."""
        place = {"Bucket": self.bucket, "Key": f"models/{key}"}
        upload_id = str(self.past.create_multipart_upload(**place)["UploadId"])
        for number in range(1, parts + 1):
            self.past.upload_part(**place, UploadId=upload_id, PartNumber=number, Body=b"part")
        return upload_id

    def tidied(self) -> list[str]:
        """Return what a prune removes that is older than an hour, which is what it has announced."""
        retention = Retention(models=["fraud"], leftovers_older_than=HOUR)
        before = self.keys(), self.open_uploads()
        announced = self.run(prune(self.registry, retention, dry_run=True))
        assert (self.keys(), self.open_uploads()) == before
        report = self.run(prune(self.registry, retention, dry_run=False))
        assert report.entries == announced.entries
        assert self.run(prune(self.registry, retention, dry_run=False)).of("tidied") == []
        assert [entry.ref for entry in report.of("kept")] == [one.ref for one in self.list_versions("fraud")][::-1]
        return [entry.ref for entry in report.of("tidied")]


@pytest.fixture
def store(small_parts: None, no_waiting: None) -> Iterator[Aging]:
    with bucket_store() as store:
        yield Aging(store.s3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", {"large.bin": LARGE, "small.bin": b"small"})


def claim(store: Aging, version: str, generation: int = 1) -> None:
    store.put(f"fraud/.modelsync/{claims.claim_of(version, generation)}", CLAIM)


def test_claims_without_bytes_go_once_they_are_old(store: Aging) -> None:
    claim(store, "old")
    claim(store, "young")
    store.age("fraud/.modelsync/old.")
    assert store.tidied() == ["the unfinished push of fraud:old"]
    assert store.nothing("fraud:old")
    assert store.records("fraud:young").open == 1


def test_a_claim_is_as_old_as_the_last_of_its_objects(store: Aging) -> None:
    for version in ("old", "young"):
        claim(store, version)
        store.put(f"fraud/{version}/first", b"1")
        store.put(f"fraud/{version}/second", b"2")
    store.age("fraud/")
    store.put("fraud/young/second", b"2")
    assert store.tidied() == ["the unfinished push of fraud:old"]
    assert store.nothing("fraud:old")
    assert store.keys("fraud/young/") == ["fraud/young/first", "fraud/young/second"]


def test_a_claim_is_as_old_as_the_last_part_that_was_sent(store: Aging) -> None:
    claim(store, "old")
    claim(store, "young")
    store.age("fraud/")
    store.begin("fraud/old/large.bin")
    kept = store.begin("fraud/young/large.bin", parts=1), store.begin("fraud/young/twin.bin")
    assert store.tidied() == ["the unfinished push of fraud:old"]
    assert store.nothing("fraud:old")
    assert {upload_id for _, upload_id in store.open_uploads()} == {*kept}


def test_a_push_that_goes_on_with_an_old_claim_is_not_disturbed(store: Aging, source: Path) -> None:
    def prune_meanwhile(_: object) -> None:
        store.s3.clear()
        store.age("fraud/.modelsync/")
        told.append(Aging(store.s3).tidied())

    told: list[list[str]] = []
    (source / "small.bin").unlink()  # which would arrive beside the prune
    store.s3.fault("UploadPart", "", After(prune_meanwhile))
    pushed = store.push(source, "fraud:v1")
    assert told == [[]]
    assert (pushed.digest, store.tidy("fraud:v1")) == (digest_directory(source),) * 2


def test_uploads_to_a_version_that_is_published_go_once_they_are_old(store: Aging, source: Path) -> None:
    store.push(source, "fraud:v1")
    store.age("fraud/")
    store.begin("fraud/v1/large.bin")
    kept = store.begin("fraud/v1/large.bin", parts=1)
    store.begin("fraud/forgotten/large.bin")
    assert sorted(store.tidied()) == [
        "an unfinished upload of models/fraud/forgotten/large.bin",
        "an unfinished upload of models/fraud/v1/large.bin",
    ]
    assert [upload_id for _, upload_id in store.open_uploads()] == [kept]
    assert store.seen("fraud:v1") == digest_directory(source)


def test_files_and_records_of_replaced_versions_go_once_they_are_old(store: Aging, source: Path) -> None:
    store.push(source, "fraud:v1")
    (source / "small.bin").write_bytes(b"other")
    replaced = store.push(source, "fraud:v1", force=True)
    store.push(source, "fraud:v2")
    store.set_labels("fraud:v1", {"stage": "prod"})
    claim(store, "v1")
    store.put("fraud/v1/late.bin", b"late")
    assert store.tidied() == []
    assert store.content("fraud/v1/late.bin") == b"late"
    store.age("fraud/v1/")
    assert store.tidied() == ["files of 1 given up or replaced pushes of fraud:v1"]
    assert store.tidy("fraud:v1") == replaced.digest
    claim(store, "v1")
    store.age("fraud/")
    assert store.tidied() == ["1 outdated records of fraud:v1"]
    assert store.tidy("fraud:v1") == replaced.digest
    assert store.get("fraud:v1").labels == {"stage": "prod"}


def test_what_is_published_labelled_and_aliased_stays_however_old(store: Aging, source: Path, tmp_path: Path) -> None:
    digest = digest_directory(source)
    for version in ("v1", "v2"):
        store.push(source, f"fraud:{version}", labels={"stage": "dev"})
    store.set_labels("fraud:v1", {"stage": "prod"})
    store.run(set_alias(store.registry, "fraud:v1", "champion"))
    store.push(source, "fraud:v1", metadata={"auc": 0.9}, force=True)  # its files stay where an earlier push put them
    store.age("")
    assert store.tidied() == []
    assert store.seen("fraud:v1") == store.seen("fraud:v2") == digest
    assert (store.get("fraud@champion").ref, store.get("fraud:v1").labels) == ("fraud:v1", {"stage": "prod"})
    store.pull("fraud:v1", tmp_path / "target")


def test_where_a_verdict_cannot_be_read_nothing_that_it_may_keep_goes(store: Aging, source: Path) -> None:
    store.push(source, "fraud:v1")
    claim(store, "v1", 2)
    claim(store, "v1", 3)
    kept = store.begin("fraud/v1~3/large.bin")
    verdict = f"fraud/.modelsync/{claims.verdict_of('v1', 2)}"
    store.put(verdict, b"")
    store.age("fraud/")
    retention = Retention(models=["fraud"], leftovers_older_than=HOUR)
    assert store.run(prune(store.registry, retention, dry_run=False)).of("tidied") == []
    assert [upload_id for _, upload_id in store.open_uploads()] == [kept]
    store.put(verdict, b'{"current": 1}')
    store.age("fraud/")
    assert store.seen("fraud:v1") == digest_directory(source)
    assert store.tidied() == ["the unfinished push of fraud:v1"]
    assert (store.seen("fraud:v1"), store.open_uploads()) == (digest_directory(source), [])

"""Large files of a new version whose parts go up while they are hashed, before the version is claimed."""

from __future__ import annotations

import json
import mmap
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    RegistryUnavailable,
    SourceChanged,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.transfer import checkpoint
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.push import push as push_model
from tests.core.registries.modelstore.buckets import (
    CLAIM,
    MANIFEST,
    PART,
    BucketStore,
    at_every_step,
    bucket_store,
    cancelled,
    is_killed_at,
)
from tests.core.stores import snapshot, write_tree
from tests.core.transfer.test_memory import ROOT, of_process
from tests.standins.http_server import LoseAnswer, Reset
from tests.standins.s3 import Action, After, Before, Respond
from tests.support.state_store import StateStore

pytestmark = pytest.mark.faults

PARTS = 5
SIZE = 4 * PART + 9
ONE = Control(workers=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path, "one")


def make(root: Path, text: str, size: int = SIZE) -> Path:
    """Write a model with a file that goes ahead and one that does not."""
    return write_tree(root / text, {"weights.bin": random.Random(text).randbytes(size), "vocab.txt": text.encode()})


def went_ahead(store: BucketStore) -> bool:
    """Whether parts were sent before the version was claimed."""
    operations = [
        request.operation if "/.modelsync/" not in request.key else "record"
        for request in store.s3.find("PUT")
        if request.status == 200
    ]
    return operations.index("UploadPart") < operations.index("record")


def test_a_file_goes_up_while_it_is_hashed(store: BucketStore, source: Path, tmp_path: Path) -> None:
    pushed = store.push(source, "fraud:v1")
    assert went_ahead(store)
    assert pushed.digest == digest_directory(source) == store.tidy("fraud:v1")
    assert pushed.transfer
    assert (pushed.transfer.sent_bytes, pushed.transfer.resumed_bytes) == (pushed.size_bytes, 0)
    assert store.s3.count("UploadPart") == PARTS
    assert store.s3.count("CreateMultipartUpload") == store.s3.count("CompleteMultipartUpload") == 1
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_a_file_that_goes_ahead_is_read_once(tmp_path: Path) -> None:
    size = 24 << 20
    source = write_tree(tmp_path / "source", {"weights.bin": random.Random(1).randbytes(size)})
    with bucket_store() as store:
        assert bytes_read(store, source, "small:v1", "fraud:v1") < 1.1 * size
        assert bytes_read(store, source, "small:v2", "other") > 1.9 * size  # its version is made of its digest


def bytes_read(store: BucketStore, source: Path, *models: str) -> int:
    """Return how many bytes a process reads that pushes once, when it has done so before."""
    settings = store.registry.settings
    fields = {
        **settings.model_dump(include={"host", "endpoint_url", "region_name", "login", "part_size_mib"}),
        "password": store.s3.secret_key,
    }
    code = f"from {__name__} import report_reads; report_reads({str(source)!r}, {fields!r}, {models!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


def report_reads(source: str, fields: dict[str, Any], models: tuple[str, str]) -> None:
    """Push twice and print what the second push has read from files."""
    registry = ModelStore(BucketSettings.read("bucket", fields))
    with driver_for(registry) as driver:
        for model in models:
            before = of_process("io", "rchar")
            push_model(registry, driver, source, registry.parse(model), Control())
    print(json.dumps(of_process("io", "rchar") - before))


def test_going_ahead_costs_as_many_calls_whatever_the_number_of_versions(store: BucketStore, tmp_path: Path) -> None:
    costs: list[Counter[str]] = []
    for number in range(12):
        store.s3.clear()
        store.again().push(make(tmp_path, str(number)), f"fraud:v{number}")
        assert went_ahead(store)
        costs.append(Counter(request.operation for request in store.s3.requests))
    # Of eight other versions the end of a file is read, of those the newest's manifest besides.
    assert [cost["GetObject"] for cost in costs] == [1, *range(3, 11), 10, 10, 10]
    first, last = (cost - Counter(GetObject=cost["GetObject"], ListParts=1) for cost in (costs[0], costs[-1]))
    assert first == last
    assert (last["ListObjectsV2"], last["ListMultipartUploads"]) == (7, 3)


# Where the digest decides first


@pytest.mark.parametrize("what", ["published", "published otherwise", "claimed", "no version", "small", "one part"])
def test_nothing_goes_ahead_of_what_the_digest_decides(
    store: BucketStore, source: Path, tmp_path: Path, what: str
) -> None:
    model, work = "fraud:v1", partial(store.again().push, source)
    match what:
        case "published":
            store.push(source, model)
        case "published otherwise":
            store.push(make(tmp_path, "two"), model)
            work = partial(work, force=True)
        case "claimed":
            assert is_killed_at(store.s3, lambda: store.again().push(source, model), "PutObject", CLAIM)
        case "no version":
            model = "fraud"
        case "small":
            source = write_tree(tmp_path / "small", {"weights.bin": random.Random(1).randbytes(3 * PART)})
            work = partial(store.again().push, source)
        case "one part":
            work = partial(store.again(part_size_mib=1000).push, source)
    store.s3.clear()
    pushed = work(model)
    parts = store.s3.count("UploadPart")
    assert pushed.digest == digest_directory(source) == store.tidy(pushed.ref)
    assert parts == (0 if what in ("published", "claimed", "one part") else 3 if what == "small" else PARTS)
    if parts:
        assert not went_ahead(store)


def test_what_another_version_may_hold_is_hashed_first_and_copied(
    store: BucketStore, source: Path, tmp_path: Path
) -> None:
    store.push(source, "fraud:v1")
    (source / "vocab.txt").write_text("other words")
    store.s3.clear()
    pushed = store.again().push(source, "fraud:v2")
    assert pushed.digest == store.tidy("fraud:v2") == digest_directory(source)
    assert (store.s3.count("CopyObject"), store.s3.count("UploadPart")) == (1, 0)

    # Trained anew: as large as the others, and other bytes.
    new = make(tmp_path, "two")
    store.s3.clear()
    store.again().push(new, "fraud:v3")
    assert went_ahead(store)
    assert store.tidy("fraud:v3") == digest_directory(new)
    assert store.s3.count("GetObject", "weights") == 1  # both versions hold the same file

    # Other bytes, and the same end.
    alike = make(tmp_path, "three")
    with (alike / "weights.bin").open("r+b") as weights:
        weights.seek(-(1 << 16), 2)
        weights.write((new / "weights.bin").read_bytes()[-(1 << 16) :])
    store.s3.clear()
    store.again().push(alike, "fraud:v4")
    assert not went_ahead(store)
    assert store.tidy("fraud:v4") == digest_directory(alike)


@pytest.mark.parametrize("fault", [Respond(403, "AccessDenied"), Respond(200, ""), Reset(3), Respond(500)])
def test_where_the_end_of_a_file_is_not_told_it_is_hashed_first(
    store: BucketStore, source: Path, tmp_path: Path, fault: Action
) -> None:
    store.push(source, "fraud:v1")
    store.s3.clear()
    store.s3.fault("GetObject", "weights", fault, times=None)
    store.again().push(make(tmp_path, "two"), "fraud:v2")
    assert not went_ahead(store)


def test_a_path_that_the_bucket_cannot_hold_is_refused_before_anything_is_sent(
    store: BucketStore, source: Path
) -> None:
    name = "long" * 50
    (source / name / name / name / name / name).mkdir(parents=True)
    (source / name / name / name / name / name / "f").write_bytes(b"")
    with pytest.raises(InvalidInput, match="shorten the root's prefix"):
        store.push(source, f"{'x' * 100}:v1")
    assert store.s3.find("PUT") == store.s3.find("POST") == []


# What goes wrong on the way

FAULTS: dict[str, Action] = {"lost answer": LoseAnswer(), "reset": Reset(3), "503": Respond(503, "SlowDown")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.row("T1", "T3", "T9", of=("storage", "parts"))
def test_a_fault_at_any_step_is_survived(store: BucketStore, tmp_path: Path, fault: str) -> None:
    steps = [
        ("ListMultipartUploads", ""),
        ("CreateMultipartUpload", "weights"),
        ("UploadPart", "weights"),
        ("CompleteMultipartUpload", "weights"),
        ("HeadObject", "weights"),
        ("PutObject", CLAIM),
        ("PutObject", MANIFEST),
    ]
    for number, (what, key) in enumerate(steps):
        source, model = make(tmp_path, f"{fault} {number}"), f"fraud-{number}:v1"
        store.s3.clear()
        store.s3.fault(what, key, FAULTS[fault])
        assert store.again().push(source, model).digest == digest_directory(source), what
        assert went_ahead(store)
        assert store.tidy(model) == digest_directory(source), what
        # An answer without a body cannot be cut.
        assert store.s3.count(what, key) > 1 or (fault, what) == ("reset", "HeadObject"), what
        # What was put together is known by its tag: nothing is read or sent again.
        assert store.s3.count("UploadPart") <= PARTS + 1, what


@pytest.mark.row("T12", "S4", of="storage")
def test_a_push_that_is_killed_at_any_write_is_gone_on_with(store: BucketStore, source: Path) -> None:
    digest = digest_directory(source)

    def push(store: BucketStore, model: str) -> object:
        return store.again(max_workers=1).push(source, model, control=ONE)

    for write, killed, model in store.killed_at_each_write(lambda store, model: None, push):
        there = sum(sum(parts.values()) for parts in killed.uploads().values())
        store.s3.clear()
        pushed = killed.again().push(source, model)
        assert pushed.digest == killed.tidy(model) == digest, write
        assert pushed.transfer
        assert pushed.transfer.resumed_bytes >= there or pushed.transfer.skipped, write


@pytest.mark.parametrize("quirks", [[], ["sums are not echoed"]], ids=["sums are told", "sums are not echoed"])
def test_tags_that_say_nothing_about_the_bytes_are_no_hindrance(
    small_parts: None, no_waiting: None, source: Path, quirks: list[str]
) -> None:
    digest = digest_directory(source)
    with bucket_store(opaque_etags=True, quirks=quirks) as store:
        one = store.again(max_workers=1)
        assert is_killed_at(store.s3, lambda: one.push(source, "fraud:v1", control=ONE), "UploadPart", nth=3)
        assert store.again().push(source, "fraud:v1").digest == store.tidy("fraud:v1") == digest

        store.s3.clear()
        store.s3.fault("CompleteMultipartUpload", "weights", LoseAnswer())
        assert store.again().push(source, "lost:v1").digest == store.tidy("lost:v1") == digest

        twin = partial(store.again().push, source, "twin:v1")
        store.s3.fault("CompleteMultipartUpload", "weights", Before(lambda _: twin()))
        assert store.again().push(source, "twin:v1").digest == store.tidy("twin:v1") == digest


@pytest.mark.parametrize("is_last_try", [False, True])
@pytest.mark.row("S6")
def test_what_went_ahead_of_a_push_that_failed_stays_for_the_next_try_unless_there_is_none(
    store: BucketStore, source: Path, is_last_try: bool
) -> None:
    store.s3.fault("UploadPart", "weights", Respond(500), part=3, times=None)
    with pytest.raises(RegistryUnavailable, match=r"part 3 of 'weights\.bin'"):
        store.push(source, "fraud:v1", control=Control(workers=1, is_last_try=is_last_try))
    assert store.keys() == []
    assert store.uploads() == ({} if is_last_try else {"fraud/v1/weights.bin": {1: PART, 2: PART}})
    store.s3.clear()
    pushed = store.again().push(source, "fraud:v1")
    assert pushed.transfer
    assert pushed.transfer.resumed_bytes == (0 if is_last_try else 2 * PART)
    assert store.tidy("fraud:v1") == digest_directory(source)


def test_delete_removes_what_a_push_has_sent_ahead_that_nobody_tries_again(store: BucketStore, source: Path) -> None:
    one = store.again(max_workers=1)
    assert is_killed_at(store.s3, lambda: one.push(source, "fraud:v1", control=ONE), "UploadPart", nth=3)
    assert store.uploads()
    assert not store.delete("fraud:v1")
    assert store.nothing("fraud:v1")
    assert store.push(source, "fraud:v1").digest == digest_directory(source)


def test_parts_that_were_sent_before_a_claim_that_failed_are_not_sent_again(
    store: BucketStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_WORTH_REMEMBERING", 0)  # bytes of a file: so the next try knows its hash
    control = Control(checkpoint=StateStore())
    store.s3.fault("PutObject", CLAIM, Respond(500), times=None)
    with pytest.raises(RegistryUnavailable, match="claim"):
        store.push(source, "fraud:v1", control=control)
    store.s3.clear()
    pushed = store.again().push(source, "fraud:v1", control=control)
    assert pushed.transfer
    assert pushed.transfer.resumed_bytes == SIZE
    assert store.s3.count("UploadPart") == 0
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.parametrize(("what", "key"), [("UploadPart", "weights"), ("PutObject", CLAIM), ("PutObject", "vocab")])
def test_what_is_refused_for_good_leaves_nothing(store: BucketStore, source: Path, what: str, key: str) -> None:
    store.s3.fault(what, key, Respond(403, "AccessDenied"), times=None)
    control = Control()
    with pytest.raises(Unauthorized, match="AccessDenied"):
        store.push(source, "fraud:v1", control=control)
    assert control.tally.is_lost
    store.s3.clear()
    assert store.uploads() == {}
    assert store.nothing("fraud:v1")


def test_what_a_signer_refuses_leaves_nothing(store: BucketStore, source: Path) -> None:
    def refuse(*_: object) -> bytes:
        raise InvalidInput("there is no such key", argument="sign")

    with pytest.raises(InvalidInput, match="no such key"):
        store.push(source, "fraud:v1", sign=refuse)
    assert store.s3.count("UploadPart") == PARTS
    assert store.uploads() == {}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_upload_that_is_gone_has_its_file_hashed_first(store: BucketStore, source: Path, when: str) -> None:
    def end(_: object) -> None:
        for key, upload_id in store.open_uploads():
            store.past.abort_multipart_upload(Bucket=store.bucket, Key=key, UploadId=upload_id)

    what = "UploadPart" if when == "meanwhile" else "CompleteMultipartUpload"
    store.s3.fault(what, "weights", Before(end))
    store.s3.fault(what, "weights", Respond(404, "NoSuchUpload"))
    assert store.push(source, "fraud:v1").digest == store.tidy("fraud:v1") == digest_directory(source)
    assert store.s3.count("CreateMultipartUpload") == 2


@pytest.mark.parametrize("leftover", ["of other bytes", "begun alike", "without a part"])
def test_an_upload_that_another_push_has_left_is_never_mixed_with(
    store: BucketStore, source: Path, tmp_path: Path, leftover: str
) -> None:
    other = make(tmp_path, "two")
    if leftover == "begun alike":
        with (other / "weights.bin").open("r+b") as weights:
            weights.write((source / "weights.bin").read_bytes()[:PART])
    kill_at = 1 if leftover == "without a part" else 3
    what = "CreateMultipartUpload" if leftover == "without a part" else "UploadPart"
    worker = store.again(max_workers=1)
    assert is_killed_at(
        store.s3, lambda: worker.push(other, "fraud:v1", control=ONE), what, "weights", nth=min(kill_at, 3)
    )
    assert store.uploads()
    store.s3.clear()
    assert store.push(source, "fraud:v1").digest == store.tidy("fraud:v1") == digest_directory(source)


def test_a_source_that_changes_meanwhile_is_not_published(store: BucketStore, source: Path) -> None:
    def change(_: object) -> None:
        (source / "weights.bin").write_bytes(random.Random("changed").randbytes(SIZE))

    store.s3.fault("UploadPart", "weights", Before(change), part=2)
    with pytest.raises(SourceChanged, match=r"weights\.bin"):
        store.push(source, "fraud:v1", control=ONE)
    assert store.keys() == []
    assert store.uploads() == {}


@pytest.mark.parametrize("part", [1, PARTS])
def test_what_a_memory_map_changes_meanwhile_is_published_as_it_was_hashed_or_not_at_all(
    store: BucketStore, source: Path, part: int
) -> None:
    def change(_: object) -> None:
        with (source / "weights.bin").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[(part - 1) * PART] ^= 1

    store.s3.fault("UploadPart", "weights", Before(change), part=2)
    try:
        digest = store.push(source, "fraud:v1", control=ONE).digest
    except SourceChanged:
        assert store.nothing("fraud:v1")
    else:
        assert store.seen("fraud:v1") == digest  # whatever was sent


@pytest.mark.row("P4")
def test_a_cancelled_push_ends_in_four_seconds(store: BucketStore, source: Path) -> None:
    reached = threading.Event()
    # The others are sent meanwhile, and wait for their turn to be hashed.
    store.s3.fault("UploadPart", "weights", Before(lambda _: store.s3.stopping.wait(60)), part=1)
    store.s3.fault("UploadPart", "weights", After(lambda _: reached.set()), part=3)
    assert isinstance(cancelled(lambda control: store.push(source, "fraud:v1", control=control), reached), Cancelled)


# Others who push, delete or take over meanwhile


@pytest.mark.parametrize("meanwhile", ["the same", "other bytes", "by force", "delete"])
@pytest.mark.row("P13")
def test_whoever_comes_between_at_any_step_one_of_both_is_published_whole(
    store: BucketStore, source: Path, tmp_path: Path, meanwhile: str
) -> None:
    other, two, worker = store.again(), make(tmp_path, "two"), store.again(max_workers=1)
    digests = {digest_directory(source), digest_directory(two)}
    seconds: dict[str, Callable[[str], Any]] = {
        "the same": partial(other.push, source, control=ONE),
        "other bytes": partial(other.push, two, control=ONE),
        "by force": partial(other.push, two, control=ONE, force=True),
        "delete": other.delete,
    }
    for model, request, first, second in at_every_step(
        store, partial(worker.push, source, control=ONE), seconds[meanwhile]
    ):
        seen, both = store.seen(model), [one for one in (first, second) if not isinstance(one, VersionConflict)]
        if meanwhile == "delete":
            assert isinstance(first, RegistryUnavailable) or first.digest in digests, (request, first)
            assert seen is None or seen == first.digest, request
            other.delete(model)
        else:
            assert all(one.digest in digests for one in both), (request, first, second)
            assert seen in {one.digest for one in both}, (request, first, second)
            assert meanwhile != "the same" or len(both) == 2, (request, first, second)
        assert store.uploads() == {}, request

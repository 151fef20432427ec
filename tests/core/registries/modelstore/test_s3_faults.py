"""What goes wrong between a model store and its bucket, and what comes of it."""

from __future__ import annotations

import logging
import random
import threading
import traceback
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DigestMismatch,
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
    SourceChanged,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.storages import s3 as modelstore_bucket
from airflow_provider_modelsync.core.transfer import mover
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.watchdog import Pace
from tests.core.registries.modelstore.buckets import (
    CLAIM,
    MANIFEST,
    PART,
    BucketStore,
    bucket_store,
    cancelled,
)
from tests.core.stores import hidden, snapshot, write_tree
from tests.standins.fault_server import FaultServer, answer
from tests.standins.http_server import FlipBit, LoseAnswer, Reset
from tests.standins.s3 import Action, After, Before, Request, Respond, Stall
from tests.support.until import until

pytestmark = pytest.mark.faults

CANARY = "canary-7f+3/a=secret"  # holds characters that look different once quoted


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a file that goes in two parts, one that an earlier version holds, and a small one."""
    files = {
        "weights.bin": random.Random(1).randbytes(PART + 9),
        "kept.bin": b"kept" * 100,
        "vocab.txt": b"one two three",
    }
    return write_tree(tmp_path / "source", files)


def prepare(store: BucketStore, tmp_path: Path) -> None:
    """Make a version that holds one of the files."""
    store.push(write_tree(tmp_path / "earlier", {"kept.bin": b"kept" * 100}), "fraud:v0")
    store.s3.clear()


STEPS = [
    ("PutObject", CLAIM),
    ("CreateMultipartUpload", "weights"),
    ("UploadPart", "weights"),
    ("CompleteMultipartUpload", "weights"),
    ("PutObject", "vocab"),
    ("CopyObject", "kept"),
    ("PutObject", MANIFEST),
    ("DeleteObject", CLAIM),
    ("ListObjectsV2", "^$"),
    ("GetObject", MANIFEST),
]
FAULTS: dict[str, Action] = {
    "lost answer": LoseAnswer(),
    "reset": Reset(3),
    "503": Respond(503, "SlowDown"),
    "error in 200": Respond(200, "InternalError"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.row("T1", "T3", "T9", "S4", "S5", of=("storage", "parts", "sends", "source"))
def test_a_push_survives_a_fault_at_any_step(store: BucketStore, tmp_path: Path, source: Path, fault: str) -> None:
    prepare(store, tmp_path)
    # S3 hides errors in a 200 of these two only.
    steps = [step for step in STEPS if fault != "error in 200" or step[0] in ("CompleteMultipartUpload", "CopyObject")]
    for number, (what, key) in enumerate(steps, 1):
        model = f"fraud:v{number}"
        (source / "vocab.txt").write_text(f"one two {number}")
        (source / "weights.bin").write_bytes(random.Random(number).randbytes(PART + 9))
        store.s3.clear()
        store.s3.fault(what, key, FAULTS[fault])
        assert store.push(source, model).digest == digest_directory(source), what
        assert store.tidy(model) == digest_directory(source), what
        # An answer without a body cannot be cut.
        assert store.s3.count(what, key) > 1 or (fault, what) == ("reset", "DeleteObject"), what


@pytest.mark.row("T4", "T5", of="storage")
def test_the_wait_that_a_storage_asks_for_is_kept(
    store: BucketStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(CancelToken, "sleep", lambda self, seconds: waits.append(seconds))
    for what in ("ListObjectsV2", "UploadPart", "CompleteMultipartUpload"):
        store.s3.fault(what, "", Respond(503, "SlowDown", {"Retry-After": "3"}))
    store.push(source, "fraud:v1")
    assert waits == [3.0, 3.0, 3.0]


@pytest.mark.row("T3", of="storage")
def test_a_storage_that_stays_busy_is_given_up_with_its_own_words(store: BucketStore, source: Path) -> None:
    store.s3.fault("CompleteMultipartUpload", "", Respond(503, "SlowDown"), times=None)
    with pytest.raises(RegistryUnavailable, match=r"^SlowDown.*503.*completing models/fraud/v1/weights\.bin"):
        store.push(source, "fraud:v1")
    assert store.s3.count("CompleteMultipartUpload") == 5


@pytest.mark.parametrize("is_last_try", [False, True])
@pytest.mark.row("S6")
def test_a_part_that_fails_keeps_the_upload_for_the_next_try_unless_there_is_none(
    store: BucketStore, source: Path, is_last_try: bool
) -> None:
    # Both are on their way at a time, and the failure of one ends the other unless that is there.
    is_there = Before(lambda _: until(lambda: [one for one in store.s3.find("UploadPart", part=1) if one.status], "it"))
    store.s3.fault("UploadPart", "weights", is_there, part=2, times=None)
    store.s3.fault("UploadPart", "weights", Respond(500), part=2, times=None)
    with pytest.raises(RegistryUnavailable, match=r"part 2 of 'weights\.bin'"):
        store.push(source, "fraud:v1", control=Control(is_last_try=is_last_try))
    assert store.s3.count("CompleteMultipartUpload") == 0
    if is_last_try:
        assert store.nothing("fraud:v1")
    else:
        assert store.uploads() == {"fraud/v1/weights.bin": {1: PART}}
        assert store.keys("fraud/.modelsync") == ["fraud/.modelsync/v1.claim"]


@pytest.mark.row("D7")
def test_the_first_error_is_told_when_a_push_cannot_be_cleaned_up_either(
    store: BucketStore, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.s3.fault("UploadPart", "weights", Respond(403, "AccessDenied"), times=None)
    store.s3.fault("AbortMultipartUpload", "weights", Respond(500), times=None)
    with pytest.raises(Unauthorized, match="AccessDenied"):
        store.push(source, "fraud:v1")
    assert "cleaning up after the failed push of fraud:v1 failed, too" in caplog.text
    store.s3.clear()
    assert store.push(source, "fraud:v1").digest == digest_directory(source)


@pytest.mark.row("T8")
def test_a_part_that_stalls_is_sent_again(store: BucketStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "Pace", lambda: Pace(window_seconds=0.4, answer_seconds=0.4))
    store.s3.fault("UploadPart", "weights", Stall(after=1000), part=1)
    store.push(source, "fraud:v1")
    stalled, *again = [request.status for request in store.s3.find("UploadPart", part=1)]
    assert (stalled, again[-1]) == (0, 200)  # on a busy machine others may stand still, too
    assert store.tidy("fraud:v1") == digest_directory(source)


def test_parts_that_are_not_those_listed_are_looked_at_again(store: BucketStore, source: Path) -> None:
    store.s3.fault("CompleteMultipartUpload", "", Respond(400, "InvalidPart"))
    store.push(source, "fraud:v1")
    assert store.s3.count("UploadPart") == 2
    assert store.tidy("fraud:v1") == digest_directory(source)


def test_an_upload_that_the_storage_has_dropped_is_begun_again(store: BucketStore, source: Path) -> None:
    def drop(request: Request) -> None:
        upload = {"Bucket": request.bucket, "Key": request.key, "UploadId": request.query["uploadId"]}
        store.s3.client().abort_multipart_upload(**upload)

    store.s3.fault("CompleteMultipartUpload", "", Before(drop))
    store.push(source, "fraud:v1")
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.row("A4")
def test_a_url_that_has_expired_is_replaced(store: BucketStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelstore_bucket, "SIGNED_SECONDS", 60)

    def set_clock(minutes: int) -> Before:
        return Before(lambda _: setattr(store.s3, "clock", timedelta(minutes=minutes)))

    store.s3.fault("UploadPart", "", set_clock(10), part=2)
    store.s3.fault("UploadPart", "", set_clock(0), part=2, nth=2)
    store.push(source, "fraud:v1", control=Control(workers=1))
    assert [request.status for request in store.s3.find("UploadPart", part=2)] == [403, 200]


@pytest.mark.parametrize("minutes", [-20, 20])
@pytest.mark.row("A7")
def test_a_wrong_clock_is_named(store: BucketStore, source: Path, minutes: int) -> None:
    store.s3.clock = timedelta(minutes=minutes)
    with pytest.raises(Unauthorized, match="Set the clock of this machine"):
        store.push(source, "fraud:v1")


@pytest.mark.parametrize(("what", "key"), [("UploadPart", "weights"), ("PutObject", "vocab"), ("PutObject", MANIFEST)])
def test_a_bit_that_flips_on_the_way_up_is_noticed(store: BucketStore, source: Path, what: str, key: str) -> None:
    store.s3.fault(what, key, FlipBit(5))
    store.push(source, "fraud:v1")
    assert {request.code for request in store.s3.find(what, key)} - {""} <= {"BadDigest", "XAmzContentSHA256Mismatch"}
    assert store.s3.find(what, key)[0].status == 400
    assert store.tidy("fraud:v1") == digest_directory(source)


def test_a_storage_that_stores_other_bytes_is_noticed_by_its_tag(store: BucketStore, source: Path) -> None:
    store.s3.fault("CompleteMultipartUpload", "", Before(lambda _: store.put("fraud/v1/vocab.txt", b"ONE two three")))
    store.push(source, "fraud:v1", control=Control(workers=1))
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.parametrize("path", ["weights.bin", "vocab.txt"])
@pytest.mark.row("T11")
def test_a_bit_that_flips_on_the_way_down_is_cured_by_another_look(
    store: BucketStore, source: Path, tmp_path: Path, path: str
) -> None:
    store.push(source, "fraud:v1")
    store.s3.fault("GetObject", path, FlipBit(5))
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.s3.count("GetObject", path) == 2


@pytest.mark.row("T11")
def test_wrong_bytes_in_the_bucket_are_a_mismatch_and_leave_no_target(
    store: BucketStore, source: Path, tmp_path: Path
) -> None:
    store.push(source, "fraud:v1")
    store.put("fraud/v1/vocab.txt", b"ONE two three")
    with pytest.raises(DigestMismatch, match="fraud:v1"):
        store.pull("fraud:v1", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert hidden(tmp_path) == []


@pytest.mark.row("D3")
def test_a_source_that_changes_meanwhile_is_not_published(store: BucketStore, source: Path) -> None:
    store.s3.fault("UploadPart", "", Before(lambda _: (source / "weights.bin").write_bytes(b"other")), part=1)
    with pytest.raises(SourceChanged, match=r"weights\.bin"):
        store.push(source, "fraud:v1", control=Control(workers=1))
    assert store.seen("fraud:v1") is None


# Tags that are no MD5


@pytest.mark.parametrize("quirks", [[], ["sums are not echoed"]], ids=["sums are told", "sums are not echoed"])
def test_tags_that_say_nothing_about_the_bytes_are_no_hindrance(
    small_parts: None, no_waiting: None, source: Path, tmp_path: Path, quirks: list[str]
) -> None:
    with bucket_store(opaque_etags=True, quirks=quirks) as store:
        prepare(store, tmp_path)
        store.s3.fault("CompleteMultipartUpload", "weights", Respond(500), times=5)
        with pytest.raises(RegistryUnavailable):
            store.push(source, "fraud:v1")
        store.again().push(source, "fraud:v1")
        assert store.tidy("fraud:v1") == digest_directory(source)
        store.pull("fraud:v1", tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)
        store.push(write_tree(source, {"more": b"more"}), "fraud:v1", force=True)
        assert store.tidy("fraud:v1") == digest_directory(source)


# Connections


def test_a_record_that_may_not_be_read_hinders_nobody_else(
    store: BucketStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        store.push(write_tree(tmp_path / str(number), {"a": b"%d" % number}), f"fraud:v{number}")
    store.put("card/.modelsync/v1.json", b'{"schema_version": 9}')
    store.put("odd/.modelsync/v1.json", b"\0" * (65 << 20))
    store.s3.fault("GetObject", r"v2\.json$", Respond(403, "AccessDenied"), times=None)
    other = store.again(timeout_seconds=60)
    assert [version.ref for version in other.list_versions("fraud")] == ["fraud:v1"]
    assert [version.ref for version in other.run(other.registry.list_models(Query()))] == ["fraud:v1"]
    for name in ("fraud:v2: ", "card:v1: ", "odd:v1: "):
        assert f"passing over {name}" in caplog.text
    with pytest.raises(Unauthorized, match="AccessDenied"):
        other.get("fraud:v2")


def test_keys_that_are_refused_from_some_moment_on_do_not_make_an_old_version_the_newest(
    store: BucketStore, tmp_path: Path
) -> None:
    for number in (1, 2):
        store.push(write_tree(tmp_path / str(number), {"a": b"%d" % number}), f"fraud:v{number}")

    def expire(request: Request) -> None:
        store.s3.fault("*", "", Respond(403, "ExpiredToken"), times=None)

    store.s3.fault("ListObjectsV2", "", After(expire))
    store.s3.fault("GetObject", r"v2\.json$", Respond(403, "ExpiredToken"), times=None)
    with pytest.raises(Unauthorized, match="ExpiredToken"):
        store.again().get("fraud")


@pytest.mark.parametrize(
    "fields", [{"password": CANARY}, {"login": "AKIASTRANGER", "password": CANARY}], ids=["secret", "key"]
)
@pytest.mark.row("A1", of="storage")
def test_wrong_keys_are_one_clear_refusal(store: BucketStore, source: Path, fields: dict[str, str]) -> None:
    stranger = store.again(**fields)
    with pytest.raises(Unauthorized, match="credentials are refused") as caught:
        stranger.push(source, "fraud:v1")
    assert store.s3.count() == 1
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("what", "key", "doing"),
    [
        ("ListObjectsV2", "", "listing models/fraud/"),
        ("PutObject", CLAIM, "writing models/fraud/.modelsync/v1.claim"),
        ("UploadPart", "weights", "uploading part 1 of 'weights.bin'"),
        ("CompleteMultipartUpload", "weights", "completing models/fraud/v1/weights.bin"),
    ],
)
@pytest.mark.row("A3", of="storage")
def test_what_is_forbidden_is_told_by_what_was_to_be_done(
    store: BucketStore, source: Path, what: str, key: str, doing: str
) -> None:
    store.s3.fault(what, key, Respond(403, "AccessDenied"), times=None)
    with pytest.raises(Unauthorized, match="AccessDenied") as caught:
        store.push(source, "fraud:v1", control=Control(workers=1))
    assert doing in str(caught.value)
    assert store.s3.count(what, key) == (2 if what == "UploadPart" else 1), "a URL might only have expired"
    assert store.s3.secret_key not in "".join(traceback.format_exception(caught.value))
    store.s3.clear()
    assert store.seen("fraud:v1") is None


@pytest.mark.row("A2", of="storage")
def test_temporary_keys_that_end_in_the_middle_of_a_push_are_renewed_once_for_all_threads(
    store: BucketStore, source: Path
) -> None:
    """By the session itself, which is asked for each request."""
    import boto3
    from botocore.credentials import RefreshableCredentials
    from botocore.session import Session

    begun = datetime(2026, 1, 1, tzinfo=UTC)
    clock, given = {"now": begun}, count()

    def keys() -> dict[str, str]:
        token = f"token-{next(given)}"
        ends = (clock["now"] + timedelta(hours=1)).isoformat()
        return {
            "access_key": store.s3.access_key,
            "secret_key": store.s3.secret_key,
            "token": token,
            "expiry_time": ends,
        }

    session = Session()
    session._credentials = RefreshableCredentials.create_from_metadata(keys(), keys, "test")
    session._credentials._time_fetcher = lambda: clock["now"]
    store.s3.fault("UploadPart", "weights", Before(lambda _: clock.update(now=begun + timedelta(hours=1))), part=1)
    worker = BucketStore(store.s3, session=lambda: boto3.Session(botocore_session=session, region_name="us-east-1"))
    assert worker.push(source, "fraud:v1").digest == digest_directory(source)
    assert next(given) == 2
    assert store.s3.count("UploadPart", part=1) == 1, "what is done stays done"


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
@pytest.mark.row("A1", of="storage")
def test_temporary_keys_that_have_expired_are_refused_keys(store: BucketStore, code: str) -> None:
    store.s3.fault("*", "", Respond(400, code))
    with pytest.raises(Unauthorized, match="not valid any more"):
        store.get("fraud:v1")
    assert store.s3.count() == 1


def test_a_missing_bucket_is_named(store: BucketStore, source: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"^NoSuchBucket.*nowhere-to-be-found at http.*There is no such bucket"
    ) as caught:
        store.again(host="s3://nowhere-to-be-found/models").push(source, "fraud:v1")
    assert caught.value.argument == "host"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.row("T19", "T20", of="storage")
def test_no_call_of_a_storage_follows_a_redirect(store: BucketStore, source: Path, status: int) -> None:
    with FaultServer([answer(200)]) as other:
        headers = {"Location": f"{other.url}/elsewhere"}
        for what, key in (("ListObjectsV2", ""), ("PutObject", CLAIM), ("CompleteMultipartUpload", "weights")):
            store.s3.clear()
            store.s3.fault(what, key, Respond(status, "TemporaryRedirect", headers), times=None)
            with pytest.raises(ModelSyncError):
                store.push(source, "fraud:v1")
            assert store.s3.count(what, key) >= 1
    assert other.requests == []


@pytest.mark.parametrize("answer", [Respond(301, "PermanentRedirect"), Respond(400, "AuthorizationHeaderMalformed")])
def test_another_region_is_named(store: BucketStore, answer: Respond) -> None:
    store.s3.fault("GET", "", answer, times=None)
    with pytest.raises(InvalidInput) as caught:
        store.get("fraud:v1")
    assert caught.value.argument == "region_name"


@pytest.mark.row("T6", of="storage")
def test_a_storage_that_does_not_answer_is_given_up_in_time(store: BucketStore) -> None:
    store.s3.fault("*", "", Stall(), times=None)
    store.s3.fault("*", "", Before(lambda _: store.s3.stopping.wait(60)), times=None)
    with pytest.raises(RegistryUnavailable, match="did not answer within the time limit"):
        store.again(timeout_seconds=0.5).get("fraud:v1")
    assert store.s3.count() <= 1  # none where the time is over before it is sent


@pytest.mark.row("T15", of="storage")
def test_an_endpoint_where_nobody_listens_is_tried_as_often_as_anything(store: BucketStore) -> None:
    with pytest.raises(RegistryUnavailable, match="Connection refused"):
        store.again(endpoint_url="http://127.0.0.1:1").get("fraud:v1")


@pytest.mark.row("S7", of="storage")
def test_an_answer_of_something_else_than_a_storage_is_told(store: BucketStore) -> None:
    store.s3.fault("ListObjectsV2", "", Respond(200, "<html>"), times=None)
    with pytest.raises(RegistryUnavailable, match="listing models/fraud/"):
        store.list_versions("fraud")


@pytest.mark.parametrize(("what", "key"), [("ListObjectsV2", ""), ("UploadPart", "weights")])
@pytest.mark.row("P4")
def test_a_cancelled_push_ends_in_four_seconds_whatever_it_waits_for(
    store: BucketStore, source: Path, what: str, key: str
) -> None:
    reached = threading.Event()
    store.s3.fault(what, key, Before(lambda _: (reached.set(), store.s3.stopping.wait(60))))
    assert isinstance(cancelled(lambda control: store.push(source, "fraud:v1", control=control), reached), Cancelled)


@pytest.mark.row("P13")
def test_a_manifest_that_arrives_when_its_push_was_given_up_publishes_nothing(
    store: BucketStore, source: Path, tmp_path: Path
) -> None:
    token, reached, late = CancelToken(), threading.Event(), threading.Event()
    store.s3.fault("PutObject", MANIFEST, Before(lambda _: (reached.set(), late.wait(60))))

    def push() -> None:
        with pytest.raises(Cancelled):
            store.push(source, "fraud:v1", control=Control(cancel=token, is_last_try=True))

    thread = threading.Thread(target=push)
    thread.start()
    assert reached.wait(20)
    token.cancel()
    thread.join(10)
    assert not thread.is_alive()
    late.set()  # only now the storage looks at the manifest
    until(lambda: store.s3.find("PutObject", MANIFEST)[0].status, "the answer")
    assert store.list_versions("fraud") == []
    store.push(source, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.tidy("fraud:v1") == digest_directory(source)


# Secrets


@pytest.mark.row("A8")
def test_no_secret_gets_into_a_log_an_error_or_a_repr(
    store: BucketStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.name}: {self.format(record)}")

    root, handler = logging.getLogger(), Everything()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    token, secret = f"token-{CANARY}", store.s3.secret_key
    texts: list[str] = []
    try:
        mine = store.again(session_token=token)
        store.s3.fault("UploadPart", "", Respond(503), part=1)
        mine.push(source, "fraud:v1")
        mine.pull("fraud:v1", tmp_path / "target")
        for stranger in (mine.again(password=CANARY), mine.again(endpoint_url="http://127.0.0.1:1")):
            with pytest.raises(ModelSyncError) as caught:
                stranger.push(source, "fraud:v2")
            texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
        texts += [repr(mine.registry), repr(mine.registry.settings), repr(vars(mine.registry))]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert len(lines) > 100
    assert any(line.startswith("botocore.") for line in lines)
    for canary in (CANARY, secret):
        for form in (canary, quote(canary), quote(canary, safe="")):
            leaks = [text for text in (*lines, *texts) if form in text]
            assert leaks == []
    signatures = [line for line in lines if "X-Amz-Signature=" in line and "X-Amz-Signature=***" not in line]
    assert signatures == []

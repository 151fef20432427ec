"""A push in parts: many at a time, each tried again on its own, and one object of all of them or none."""

from __future__ import annotations

import itertools
import os
import random
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import VersionStatus
from airflow_provider_modelsync.core.transfer.checkpoint import CheckpointStore
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.progress import Report
from tests.core.registries.bentocloud.cloud import FINISH, OBJECT, Cloud
from tests.core.stores import snapshot
from tests.standins.bentocloud import BentoCloudStandIn, ExpirePresign, ObjectStore, StoredObject, StoreError
from tests.standins.http_server import Action, Answer, LoseAnswer, Request, Reset, Respond, Rewrite

pytestmark = pytest.mark.usefixtures("no_waiting")

MIB = 1 << 20
PART = 5 * MIB  # the smallest that storages take
PARTS = 4
START, PRESIGN, COMPLETE = "/start_multipart_upload$", "/presign_multipart_upload_url$", "/complete_multipart_upload$"


class HookedStore(ObjectStore):
    """A storage that tells of each request before it is served, and lets its answer be changed.

    :ivar before: called in the thread that serves the request, its body still unread.
    :ivar after: makes another answer of an answer.
    :ivar completed: the key of each object that was put together of parts.
    """

    def __init__(self, root: Path, *, minimum_part_size: int = PART) -> None:
        super().__init__(root / "objects", minimum_part_size=minimum_part_size, discard_bodies=False)
        self.before: Callable[[Request], None] = lambda request: None
        self.after: Callable[[Request, Answer], Answer] = lambda request, answer: answer
        self.completed: list[str] = []

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        self.before(request)
        return self.after(request, super().answer(request, body))

    def complete_multipart(self, key: str, upload_id: str, listed: list[tuple[int, str]]) -> StoredObject:
        stored = super().complete_multipart(key, upload_id, listed)
        self.completed.append(key)
        return stored


class Memory:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, JsonValue] = {}

    def get(self, key: str) -> JsonValue:
        return self.values.get(key)

    def set(self, key: str, value: JsonValue) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    @property
    def uploads(self) -> dict[str, JsonValue]:
        """What is remembered of uploads; the hashes of files are another matter."""
        return {key: value for key, value in self.values.items() if key.startswith("upload")}


def store_of(server: BentoCloudStandIn) -> HookedStore:
    assert isinstance(server.store, HookedStore)
    return server.store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    server = BentoCloudStandIn(tmp_path / "server", transmission_strategy="presigned_url")
    server.store = HookedStore(tmp_path / "server")
    with server:
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn) -> Cloud:
    return Cloud(server, {"part_size_mib": PART // MIB})


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes((PARTS - 1) * PART + 100_000)


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Path:
    """A model whose archive has four parts, the last one short."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(content)
    (directory / "config.json").write_text("{}")
    return directory


def sent(server: BentoCloudStandIn) -> dict[int | None, int]:
    """How often each part came."""
    return dict(Counter(request.part for request in server.find("PUT", OBJECT)))


def presigned(server: BentoCloudStandIn) -> dict[int, int]:
    """How often each part was asked a URL for."""
    return dict(Counter(request.body["part_number"] for request in server.find("PATCH", PRESIGN)))


ONCE = dict.fromkeys(range(1, PARTS + 1), 1)


def one_worker(checkpoint: CheckpointStore | None = None, *, is_last_try: bool = False) -> Control:
    return Control(workers=1, checkpoint=checkpoint, is_last_try=is_last_try)


def require_pushed(server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path) -> None:
    """Require one ready version whose object was put together once, and whose bytes are the source's."""
    assert cloud.record.upload_status == "success"
    assert store_of(server).completed == [server.key("digits", "v1")]
    assert [version.version for version in cloud.list_versions("digits")] == ["v1"]
    with tarfile.open(server.stored("digits", "v1").path, "r:") as archive:
        assert archive.getnames() == ["config.json", "model.yaml", "weights.bin"]
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_are_sent_many_at_a_time(server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path) -> None:
    together = threading.Barrier(PARTS)
    # Nobody gets an answer until all are there: one after the other they would never be.
    store_of(server).before = lambda request: together.wait(60) and None if request.part else None
    version = cloud.push(source, control=Control(workers=PARTS))
    assert not together.broken
    assert version.ready
    assert sent(server) == ONCE
    require_pushed(server, cloud, source, tmp_path / "target")


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_parts_are_on_their_way_than_there_are_workers(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, workers: int
) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def before(request: Request) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)

    def after(request: Request, answer: Answer) -> Answer:
        nonlocal inside
        with lock:
            inside -= 1
        return answer

    store_of(server).before, store_of(server).after = before, after
    cloud.push(source, control=Control(workers=workers))
    assert 1 <= most <= workers


def test_a_part_is_presigned_when_its_turn_comes(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
    cloud.push(source, control=one_worker())
    asked = [
        ("presign", request.body["part_number"]) if request.method == "PATCH" else ("put", request.part)
        for request in server.requests
        if request.path.endswith(("presign_multipart_upload_url", ".tar.gz"))
    ]
    assert asked == [(verb, number) for number in range(1, PARTS + 1) for verb in ("presign", "put")]


def test_the_parts_are_the_archive(server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path) -> None:
    version = cloud.push(source)
    lengths = {request.part: request.received for request in server.find("PUT", OBJECT)}
    size = server.stored("digits", "v1").size
    assert lengths == {1: PART, 2: PART, 3: PART, 4: size - 3 * PART}
    assert version.transfer is not None
    assert (version.transfer.sent_bytes, version.transfer.resumed_bytes) == (size, 0)
    require_pushed(server, cloud, source, tmp_path / "target")


def test_a_small_model_goes_up_in_a_single_part(server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path) -> None:
    source = tmp_path / "small"
    source.mkdir()
    (source / "weights.bin").write_bytes(b"w")
    assert cloud.push(source).ready
    assert sent(server) == {1: 1}
    assert server.count("PATCH", COMPLETE) == 1


def test_parts_are_named_in_order_with_their_etags_as_they_came(
    server: BentoCloudStandIn, cloud: Cloud, source: Path
) -> None:
    """Whatever order the parts finish in, and whatever the tags look like."""
    given: dict[int, str] = {}
    finished: list[int] = []
    turn = threading.Condition()

    def after(request: Request, answer: Answer) -> Answer:
        number = request.part
        assert number is not None
        etag = answer.headers["ETag"]
        given[number] = {1: etag, 2: etag.strip('"'), 3: etag.upper(), 4: etag}[number]
        with turn:  # the last comes first
            turn.wait_for(lambda: len(finished) == PARTS - number, 60)
            finished.append(number)
            turn.notify_all()
        upload = next(iter(server.store.uploads.values()))
        upload.parts[number] = replace(upload.parts[number], etag=given[number])
        return replace(answer, headers={**answer.headers, "ETag": given[number]})

    store_of(server).after = after
    cloud.push(source, control=Control(workers=PARTS))
    assert finished == [4, 3, 2, 1]
    (complete,) = server.find("PATCH", COMPLETE)
    wanted = [{"part_number": number, "etag": given[number]} for number in range(1, PARTS + 1)]
    assert complete.body["parts"] == wanted
    assert complete.body["upload_id"] == server.find("PUT", OBJECT)[0].query["uploadId"]


def test_progress_ends_at_the_size_of_the_archive(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
    reports: list[Report] = []
    server.fault("PUT", OBJECT, Reset(after=MIB), part=2)
    cloud.push(source, control=Control(on_progress=reports.append))
    size = server.stored("digits", "v1").size
    assert (reports[-1].done, reports[-1].total) == (size, size)
    assert all(0 <= report.done <= size for report in reports)


# --- what passes -----------------------------------------------------------------------------------------------------

REQUEST_TIMEOUT = Respond(400, b"<Error><Code>RequestTimeout</Code><Message>too slow</Message></Error>")
PASSING: dict[str, Action] = {
    "reset before the body": Reset(),
    "reset in the body": Reset(after=2 * MIB),
    "answer lost": LoseAnswer(),
    "500": Respond(500),
    "502 early": Respond(502, b"<html>bad gateway</html>", early=True),
    "503": Respond(503, b"<Error><Code>SlowDown</Code></Error>"),
    "no ETag": Respond(200),
    "empty ETag": Respond(200, headers={"ETag": ""}),
    "cut": REQUEST_TIMEOUT,
}


@pytest.mark.parametrize("part", [1, PARTS])
@pytest.mark.parametrize("action", PASSING.values(), ids=PASSING.keys())
@pytest.mark.row("T1", of="bentocloud")
def test_a_part_that_fails_once_is_sent_again_alone(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path, action: Action, part: int
) -> None:
    server.fault("PUT", OBJECT, action, part=part)
    cloud.push(source)
    assert sent(server) == {**ONCE, part: 2}
    assert server.count("PATCH", START) == server.count("PATCH", COMPLETE) == 1
    require_pushed(server, cloud, source, tmp_path / "target")


@pytest.mark.row("A4", of="bentocloud")
def test_an_expired_url_is_presigned_and_sent_again_alone(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    server.fault("PATCH", PRESIGN, ExpirePresign(), nth=2)
    cloud.push(source, control=one_worker())
    assert sent(server) == presigned(server) == {**ONCE, 2: 2}
    assert [request.status for request in server.find("PUT", OBJECT, part=2)] == [403, 200]
    require_pushed(server, cloud, source, tmp_path / "target")


def test_an_answer_without_a_url_is_asked_for_again(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
    server.fault("PATCH", PRESIGN, Rewrite(lambda record: {**record, "presigned_upload_url": ""}), nth=3)
    assert cloud.push(source, control=one_worker()).ready
    assert presigned(server) == {**ONCE, 3: 2}
    assert sent(server) == ONCE


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(server: BentoCloudStandIn) -> BentoCloudStandIn:
    """A server that never takes the third part."""
    server.fault("PUT", OBJECT, Respond(503), part=3, times=None)
    return server


def require_nothing_completed(server: BentoCloudStandIn) -> None:
    assert server.count("PATCH", COMPLETE) == 0
    assert not server.store.objects


@pytest.mark.row("S6", of="bentocloud")
def test_a_part_that_always_fails_leaves_an_upload_to_the_next_try(
    failing: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    checkpoint = Memory()
    with pytest.raises(RegistryUnavailable, match="part 3"):
        cloud.push(source, control=one_worker(checkpoint))
    require_nothing_completed(failing)
    assert sent(failing) == {1: 1, 2: 1, 3: 5}
    assert cloud.record.upload_status == "uploading"
    assert failing.count("PATCH", FINISH) == 0
    assert checkpoint.uploads

    failing.faults.clear()
    failing.requests.clear()
    version = cloud.push(source, control=one_worker(checkpoint))
    assert sent(failing) == {3: 1, 4: 1}
    assert failing.count("PATCH", START) == 0
    assert version.transfer is not None
    size = failing.stored("digits", "v1").size
    assert (version.transfer.sent_bytes, version.transfer.resumed_bytes) == (size - 2 * PART, 2 * PART)
    assert not checkpoint.uploads
    require_pushed(failing, cloud, source, tmp_path / "target")


@pytest.mark.parametrize(
    "control",
    [
        pytest.param(lambda: Control(workers=1), id="no checkpoint"),
        pytest.param(lambda: one_worker(Memory(), is_last_try=True), id="last try"),
    ],
)
@pytest.mark.row("S6", of="bentocloud")
def test_a_part_that_always_fails_leaves_the_record_to_whoever_pushes_next(
    failing: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path, control: Callable[[], Control]
) -> None:
    chosen = control()
    with pytest.raises(RegistryUnavailable, match="part 3"):
        cloud.push(source, control=chosen)
    require_nothing_completed(failing)
    assert cloud.record.upload_status == "uploading"
    assert failing.count("PATCH", FINISH) == 0
    assert chosen.checkpoint is None or not chosen.checkpoint.uploads  # type: ignore[attr-defined]

    failing.faults.clear()
    cloud.push(source)
    require_pushed(failing, cloud, source, tmp_path / "target")


def test_what_cannot_be_cured_ends_at_once(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
    checkpoint = Memory()
    server.fault("PUT", OBJECT, Respond(413, early=True), part=2, times=None)
    with pytest.raises(NotSupported, match="part 2"):
        cloud.push(source, control=one_worker(checkpoint))
    require_nothing_completed(server)
    assert sent(server) == {1: 1, 2: 1}
    assert cloud.record.upload_status == "uploading"
    assert not checkpoint.uploads


@pytest.mark.parametrize("status", [413, 503])
def test_an_error_wakes_all_workers(server: BentoCloudStandIn, cloud: Cloud, source: Path, status: int) -> None:
    others, refused_at = threading.Semaphore(0), list[float]()

    def before(request: Request) -> None:
        if request.part != 2:
            others.release()
            server.stopping.wait(60)  # they get no answer
        elif server.count("PUT", OBJECT, part=2) == 1:
            assert all(others.acquire(timeout=60) for _ in range(PARTS - 1))
            refused_at.append(time.monotonic())
        raise StoreError(status, "Refused", "not this one")

    store_of(server).before = before
    with pytest.raises(ModelSyncError, match="part 2"):
        cloud.push(source, control=Control(workers=PARTS, checkpoint=Memory()))
    assert time.monotonic() - refused_at[0] < 30  # before any of them has got one
    require_nothing_completed(server)
    assert {number: count for number, count in sent(server).items() if number != 2} == {1: 1, 3: 1, 4: 1}


def test_a_cancelled_push_ends_soon_and_can_be_resumed(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    checkpoint, cancel, cancelled_at = Memory(), CancelToken(), [0.0]

    def before(request: Request) -> None:
        if request.part == 3:
            cancelled_at[0] = time.monotonic()
            cancel.cancel()
            server.stopping.wait(30)

    store_of(server).before = before
    with pytest.raises(Cancelled):
        cloud.push(source, control=Control(workers=1, checkpoint=checkpoint, cancel=cancel))
    assert time.monotonic() - cancelled_at[0] < 4
    require_nothing_completed(server)
    assert cloud.record.upload_status == "uploading"

    store_of(server).before = lambda request: None
    server.requests.clear()
    cloud.push(source, control=one_worker(checkpoint))
    assert sent(server) == {3: 1, 4: 1}
    require_pushed(server, cloud, source, tmp_path / "target")


def test_a_push_cancelled_on_its_last_try_marks_nothing(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
    cancel = CancelToken()
    store_of(server).before = lambda request: cancel.cancel()
    with pytest.raises(Cancelled):
        cloud.push(source, control=Control(checkpoint=Memory(), cancel=cancel, is_last_try=True))
    require_nothing_completed(server)
    assert cloud.record.upload_status == "uploading"


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, ns=(1, 1))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    facts = path.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [rewrite, truncate, exchange, Path.unlink], ids=lambda change: change.__name__)
@pytest.mark.row("D3", of="bentocloud")
def test_a_source_that_changes_between_two_parts_is_not_published(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, change: Callable[[Path], None]
) -> None:
    def after(request: Request, answer: Answer) -> Answer:
        if request.part == 2:
            change(source / "weights.bin")
        return answer

    store_of(server).after = after
    with pytest.raises(SourceChanged, match=r"weights\.bin"):
        cloud.push(source, control=one_worker())
    require_nothing_completed(server)
    assert cloud.record.upload_status == "uploading"
    assert server.count("PUT", OBJECT, part=4) == 0


def test_a_source_that_changed_is_pushed_anew_by_the_next_try(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    checkpoint = Memory()

    def after(request: Request, answer: Answer) -> Answer:
        if request.part == 2:
            rewrite(source / "weights.bin")
        return answer

    store_of(server).after = after
    with pytest.raises(SourceChanged):
        cloud.push(source, control=one_worker(checkpoint))
    store_of(server).after = lambda request, answer: answer
    given_up = server.find("PUT", OBJECT)[0].query["uploadId"]
    cloud.push(source, control=one_worker(checkpoint))
    # The server may see the part that was broken off only now.
    anew = [request.part for request in server.find("PUT", OBJECT) if request.query["uploadId"] != given_up]
    assert anew == list(ONCE)
    require_pushed(server, cloud, source, tmp_path / "target")


# --- putting the parts together --------------------------------------------------------------------------------------


@pytest.mark.row("S5", of="bentocloud")
def test_a_lost_answer_is_made_up_for_by_a_look_at_the_object(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    server.fault("PATCH", COMPLETE, LoseAnswer())
    cloud.push(source)
    assert sent(server) == ONCE
    assert server.count("PATCH", START) == 1
    assert [request.status for request in server.find("PATCH", COMPLETE)] == [0, 400]
    (look,) = server.find("GET", OBJECT)
    assert look.sent == 1  # byte: the size comes with it
    require_pushed(server, cloud, source, tmp_path / "target")


@pytest.mark.row("S5", of="bentocloud")
def test_a_gateway_error_after_the_parts_were_put_together_is_no_failure(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    server.fault("PATCH", COMPLETE, LoseAnswer())
    server.fault("PATCH", COMPLETE, Respond(502), nth=2, times=None)
    cloud.push(source)
    assert sent(server) == ONCE
    require_pushed(server, cloud, source, tmp_path / "target")


def refused_as(code: str) -> Respond:
    return Respond(400, {"error": f"failed to complete multipart upload: {code}: could not be found."})


@pytest.mark.parametrize("other", [None, b"", b"of another size"])
@pytest.mark.parametrize("code", ["NoSuchUpload", "InvalidPart"])
def test_an_upload_that_is_gone_when_its_parts_are_put_together_is_begun_again(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path, code: str, other: bytes | None
) -> None:
    if other is not None:
        server.store.objects[server.key("digits", "v1")] = server.store.receive([other])
    server.fault("PATCH", COMPLETE, refused_as(code))
    cloud.push(source, control=one_worker(Memory()))
    assert server.count("PATCH", START) == 2
    assert server.count("PATCH", FINISH) == 1  # nothing was reported as failed
    assert sent(server) == dict.fromkeys(ONCE, 2)
    require_pushed(server, cloud, source, tmp_path / "target")


def test_an_upload_that_is_gone_when_a_part_comes_is_begun_again(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    looks = itertools.count()

    def before(request: Request) -> None:
        if request.part == 3 and next(looks) == 0:
            server.store.uploads.clear()

    store_of(server).before = before
    checkpoint = Memory()
    cloud.push(source, control=one_worker(checkpoint))
    assert server.count("PATCH", START) == 2
    assert server.count("PATCH", FINISH) == 1
    assert sent(server) == {1: 2, 2: 2, 3: 2, 4: 1}
    assert not checkpoint.uploads
    require_pushed(server, cloud, source, tmp_path / "target")


@pytest.mark.parametrize("is_last_try", [False, True])
def test_an_upload_that_is_always_gone_is_begun_again_only_once(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path, *, is_last_try: bool
) -> None:
    store_of(server).before = lambda request: server.store.uploads.clear() if request.part == 2 else None
    checkpoint = Memory()
    with pytest.raises(BeginAgain):
        cloud.push(source, control=one_worker(checkpoint, is_last_try=is_last_try))
    assert server.count("PATCH", START) == 2
    require_nothing_completed(server)
    assert cloud.record.upload_status == "uploading"
    assert not checkpoint.uploads

    store_of(server).before = lambda request: None
    cloud.push(source, control=one_worker(checkpoint))
    require_pushed(server, cloud, source, tmp_path / "target")


@pytest.mark.parametrize("status", [400, 413])
def test_a_storage_that_refuses_to_put_the_parts_together_is_believed(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, status: int
) -> None:
    server.fault("PATCH", COMPLETE, Respond(status, {"error": "EntityTooSmall: too small"}), times=None)
    checkpoint = Memory()
    with pytest.raises(ModelSyncError, match="completing"):
        cloud.push(source, control=Control(checkpoint=checkpoint))
    assert sent(server) == ONCE
    assert server.count("PATCH", COMPLETE) == 1
    assert cloud.record.upload_status == "uploading"
    assert not checkpoint.uploads


def test_all_parts_are_remembered_before_they_are_put_together(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, tmp_path: Path
) -> None:
    """Whoever is killed while the storage works must not send them again, however lately they came."""
    checkpoint, seen = Memory(), dict[str, Any]()

    def look(record: dict[str, Any]) -> dict[str, Any]:
        seen.update(checkpoint.uploads)
        return record

    server.fault("PATCH", COMPLETE, Rewrite(look))
    cloud.push(source, control=Control(checkpoint=checkpoint))
    assert sorted(seen) == ["upload.v1", "upload.v1.parts.0"]
    assert sorted(seen["upload.v1.parts.0"]) == ["1", "2", "3", "4"]
    assert not checkpoint.uploads


def test_a_version_is_ready_only_once_its_parts_are_put_together(
    server: BentoCloudStandIn, cloud: Cloud, source: Path
) -> None:
    states: list[str] = []
    store_of(server).before = lambda request: states.append(cloud.record.upload_status)
    server.fault("PATCH", COMPLETE, Rewrite(lambda record: states.append(record["upload_status"]) or record))
    assert cloud.push(source).status is VersionStatus.READY
    assert states == ["uploading"] * (PARTS + 1)

"""A pull by ranges: many at a time, all of one and the same object, and as few bytes as there are."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    CorruptArchive,
    DigestMismatch,
    DiskFull,
    ModelNotFound,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver, sleep
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import large_files, ranges
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.large_files import LargeFile
from airflow_provider_modelsync.core.transfer.mover import Mover
from airflow_provider_modelsync.core.transfer.plan import Address
from airflow_provider_modelsync.core.transfer.progress import Progress, Report
from airflow_provider_modelsync.core.transfer.ranges import PROBE, RangedObject
from airflow_provider_modelsync.core.transfer.watchdog import Pace
from airflow_provider_modelsync.core.verbs import pull
from tests.core.registries.bentocloud.cloud import DOWNLOAD, OBJECT, Cloud, archive_of
from tests.core.stores import hidden, snapshot, write_tree
from tests.core.transfer.test_multipart import HookedStore, store_of
from tests.standins.bentocloud import BentoCloudStandIn, StoreError
from tests.standins.fault_server import FaultServer, Send
from tests.standins.http_server import Action, Answer, FlipBit, LoseAnswer, Request, Respond, Truncate
from tests.support.pace import Clock

KIB = 1 << 10
MIB = 1 << 20
LARGE, PIECE = 256 * KIB, 128 * KIB  # in these tests
PRESIGN = "/presign_download_url$"
PIECES = 4  # of the large file of most tests
# Of its pull by one thread: the first bytes, what follows the large file, then its pieces.
FIRST, WALK, PIECE_1, PIECE_2, PIECE_4 = 1, 2, 3, 4, 6

random_bytes = random.Random(3).randbytes


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some hundred KiB are large, and tries follow each other at once."""
    monkeypatch.setattr(large_files, "LARGE", LARGE)
    monkeypatch.setattr(large_files, "PIECE", PIECE)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    server = BentoCloudStandIn(tmp_path / "server")
    server.store = HookedStore(tmp_path / "server")
    with server:
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn) -> Cloud:
    return Cloud(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One large file of four pieces after a small one."""
    files = {"config.json": b"{}", "weights.bin": random_bytes(PIECES * PIECE - 100)}
    return write_tree(tmp_path / "model", files)


@pytest.fixture
def pushed(server: BentoCloudStandIn, cloud: Cloud, source: Path) -> BentoCloudStandIn:
    """A server that holds this model with its digest."""
    cloud.push(source)
    server.requests.clear()
    return server


@pytest.fixture
def seeded(server: BentoCloudStandIn, source: Path) -> BentoCloudStandIn:
    """A server that holds this model as another client has pushed it: nothing vouches for its bytes."""
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    server.seed("digits", "v1", archive_of(files), size_bytes=sum(map(len, files.values())))
    return server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def one_worker() -> Control:
    return Control(workers=1)


def gets(server: BentoCloudStandIn) -> list[Request]:
    return server.find("GET", OBJECT)


def asked(server: BentoCloudStandIn) -> list[tuple[int, int]]:
    """The ranges that were asked for, first and last byte."""
    found = []
    for request in gets(server):
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        found.append((int(first), int(last)))
    return found


def size_of(server: BentoCloudStandIn) -> int:
    return server.stored("digits", "v1").size


def require_untouched(target: Path) -> None:
    assert not target.exists()
    assert hidden(target.parent) == []


class Received(Progress):
    bytes_seen = 0

    def add(self, count: int) -> None:
        self.bytes_seen += max(count, 0)


def test_a_piece_whose_answer_does_not_end_is_given_up_at_its_end(tmp_path: Path) -> None:
    size = 4 * MIB
    head = f'HTTP/1.1 206 P\r\nContent-Range: bytes 0-{size - 1}/{size}\r\nETag: "e"\r\n'
    head += "Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    received = Received(0)
    with FaultServer([Send(head.encode()), *[Send(chunk)] * 200]) as endless:

        def ask() -> Flow[Address]:
            yield from sleep(0)
            return Address(endless.url)

        with closing(Mover(RegistrySettings(conn_id="c", host=endless.url))) as mover:
            source = RangedObject(ask, SyncDriver(), mover, etag='"e"', size=size)
            file = LargeFile("w", size, False, 0, tmp_path / "scratch", source)
            file.make()
            with pytest.raises(RegistryUnavailable, match=f"instead of {size} bytes"):
                large_files._fetch(file, 0, size, CancelToken(), received)
    assert len(endless.requests) == 5
    assert received.bytes_seen <= 5 * (size + MIB)


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_all_ranges_but_the_first_are_tied_to_the_object(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
) -> None:
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    etag = pushed.stored("digits", "v1").etag
    first, *others = gets(pushed)
    assert first.headers["range"] == f"bytes=0-{PROBE - 1}"
    assert "if-match" not in first.headers
    assert [request.headers["if-match"] for request in others] == [etag] * (1 + PIECES)
    assert all(request.status == 206 for request in gets(pushed))
    assert pushed.count("PATCH", PRESIGN) == 1


def test_pieces_are_fetched_many_at_a_time(pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path) -> None:
    together = threading.Barrier(PIECES)
    arrived = iter(range(100))

    def before(request: Request) -> None:
        if next(arrived) >= PIECE_1 - 1:
            together.wait(60)  # one after the other they would never be together

    store_of(pushed).before = before
    cloud.pull(target, control=Control(workers=PIECES))
    assert not together.broken
    assert snapshot(target) == snapshot(source)


def test_pieces_cover_a_large_file_without_gap_or_overlap(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
) -> None:
    cloud.pull(target)
    spans = sorted(asked(pushed)[PIECE_1 - 1 :])
    size = (source / "weights.bin").stat().st_size
    assert [last - first + 1 for first, last in spans] == [PIECE] * (PIECES - 1) + [size - (PIECES - 1) * PIECE]
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))


def test_hardly_more_is_asked_for_than_there_is(
    server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path, target: Path
) -> None:
    large = {f"{number}/weights.bin": random_bytes(2 * MIB) for number in range(8)}
    small = {f"{number}/vocab.txt": random_bytes(10 * KIB) for number in range(8)}
    source = write_tree(tmp_path / "model", {**large, **small})
    cloud.push(source)
    version = cloud.pull(target).version
    assert snapshot(target) == snapshot(source)
    requested = sum(last - first + 1 for first, last in asked(server))
    size = size_of(server)
    # What the look behind each large file finds of the next one.
    assert size <= requested <= size + (len(large) + 1) * 2 * PROBE
    assert version.transfer == TransferStats(sent_bytes=size, resumed_bytes=0)


def test_the_sizes_of_steps_are_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests here make them smaller; whoever changes them has measured anew."""
    monkeypatch.undo()
    assert (ranges.PROBE, large_files.LARGE, large_files.PIECE) == (64 * KIB, 8 * MIB, 16 * MIB)


def test_progress_ends_at_the_size_of_the_archive(pushed: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    reports: list[Report] = []
    pushed.fault("GET", OBJECT, Truncate(50_000), nth=PIECE_2)
    cloud.pull(target, control=Control(on_progress=reports.append))
    assert (reports[-1].done, reports[-1].total) == (size_of(pushed), size_of(pushed))


# --- all shapes of archives ------------------------------------------------------------------------------------------

SHAPES: dict[str, Mapping[str, bytes]] = {
    "large only": {"a": random_bytes(LARGE)},
    "large first": {"a": random_bytes(LARGE + 1), "z/small": b"s", "z/empty": b""},
    "large last": {"a/small": b"s", "a/empty": b"", "z": random_bytes(3 * PIECE)},
    "large in the middle": {"a": b"a", "m": random_bytes(5 * PIECE + 1), "z": b"z"},
    "many large in a row": {f"{number}": random_bytes(LARGE + number) for number in range(9)},
    "large and small by turns": {f"{n}": random_bytes(LARGE + 511 if n % 2 else 3 * KIB) for n in range(9)},
    "nearly large": {"a": random_bytes(LARGE - 1), "b": random_bytes(LARGE)},
    "many small": {f"d{number % 7}/{number}": random_bytes(1000 + number) for number in range(300)},
    "one byte": {"a": b"a"},
    "empty files": {"a": b"", "b/c": b"", "d": random_bytes(LARGE), "e": b""},
    "long names": {f"{'n' * 150}/{'é' * 60}": random_bytes(LARGE), f"{'n' * 150}/small": b"s"},
}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_any_shape_comes_back(cloud: Cloud, tmp_path: Path, target: Path, shape: str, workers: int) -> None:
    source = write_tree(tmp_path / "model", SHAPES[shape])
    cloud.push(source)
    cloud.pull(target, control=Control(workers=workers))
    assert snapshot(target) == snapshot(source)
    assert hidden(tmp_path) == []


def test_modes_and_empty_directories_come_back(cloud: Cloud, tmp_path: Path, target: Path) -> None:
    files = {"run": random_bytes(LARGE), "plain": random_bytes(LARGE), "small": b"s", "tool": b"t"}
    source = write_tree(tmp_path / "model", files, executable=["run", "tool"], directories=["void/inner"])
    cloud.push(source)
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in target.rglob("*")}
    assert modes == {"run": 0o755, "plain": 0o644, "small": 0o644, "tool": 0o755, "void": 0o755, "inner": 0o755}


@pytest.mark.parametrize("size", [PROBE - 512, PROBE, PROBE + 512, 3 * PROBE, 3 * PROBE + 512])
def test_an_archive_as_long_as_the_first_range_or_nearly_so(
    server: BentoCloudStandIn, cloud: Cloud, target: Path, size: int
) -> None:
    content = random_bytes(size - 3 * 512)  # a header before it, and the end mark behind
    archive = archive_of({"weights.bin": content})[:size]
    assert len(archive) == size
    assert archive.endswith(bytes(1024))
    server.seed("digits", "v1", archive, size_bytes=len(content))
    cloud.pull(target)
    assert (target / "weights.bin").read_bytes() == content
    assert sum(request.sent for request in gets(server)) == size


@pytest.mark.parametrize("content", [random_bytes(40), random_bytes(3 * LARGE), random_bytes(999) * 999])
def test_a_gzip_archive_comes_by_ranges_too(
    server: BentoCloudStandIn, cloud: Cloud, target: Path, content: bytes
) -> None:
    archive = archive_of({"weights.bin": content}, compression="gz")
    server.seed("digits", "v1", archive, size_bytes=len(content))
    cloud.pull(target)
    assert (target / "weights.bin").read_bytes() == content
    assert sum(request.sent for request in gets(server)) == len(archive)
    assert {request.status for request in gets(server)} == {206}


# --- servers that know no ranges -------------------------------------------------------------------------------------


def ignore_ranges(server: BentoCloudStandIn) -> None:
    def before(request: Request) -> None:
        request.headers.pop("range", None)

    store_of(server).before = before


def test_a_server_that_ignores_ranges_is_asked_once(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
) -> None:
    ignore_ranges(pushed)
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    assert [request.sent for request in gets(pushed)] == [size_of(pushed)]


@pytest.mark.parametrize("change", [lambda tag: f"W/{tag}", lambda tag: "", lambda tag: tag.strip('"')])
def test_without_a_strong_etag_all_comes_in_one_answer(
    seeded: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, change: Callable[[str], str]
) -> None:
    """Two ranges need not be of the same bytes then."""

    def after(request: Request, answer: Answer) -> Answer:
        headers = {**answer.headers, "ETag": change(answer.headers["ETag"])}
        return replace(answer, headers={name: value for name, value in headers.items() if value})

    store_of(seeded).after = after
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    first, second = gets(seeded)
    assert first.headers["range"] == f"bytes=0-{PROBE - 1}"
    assert not {"range", "if-match"} & second.headers.keys()
    assert second.sent == size_of(seeded)


@pytest.mark.parametrize(
    "said", ["", "bytes 1-65536/{size}", "bytes 0-65535/*", "bytes */{size}", "bytes 0-65535", "lines 0-65535/{size}"]
)
def test_a_first_range_that_is_not_understood_ends_in_one_answer(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, said: str
) -> None:
    store_of(pushed).after = lambda request, answer: (
        replace(answer, headers={**answer.headers, "Content-Range": said.format(size=size_of(pushed))})
        if answer.status == 206
        else answer
    )
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    assert [request.status for request in gets(pushed)] == [206, 200]


def test_an_empty_object_is_no_archive(server: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    server.seed("digits", "v1", b"")
    with pytest.raises(CorruptArchive, match="it is empty"):
        cloud.pull(target)
    require_untouched(target)


# --- answers that are not what was asked for -------------------------------------------------------------------------


class Doctored:
    """Makes wrong answers out of the right one.

    :param server: holds the object.
    """

    def __init__(self, server: BentoCloudStandIn) -> None:
        self.stored = server.stored("digits", "v1")
        self.content = self.stored.path.read_bytes()

    def answer(self, request: Request, what: str) -> Respond:
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1
        size, etag, body = self.stored.size, self.stored.etag, self.content[start:end]
        said = f"bytes {start}-{end - 1}/{size}"
        match what:
            case "another range":
                body, said = self.content[: end - start], f"bytes 0-{end - start - 1}/{size}"
            case "a shorter range":
                body, said = body[:-1], f"bytes {start}-{end - 2}/{size}"
            case "another total":
                said = f"bytes {start}-{end - 1}/{size + 1}"
            case "no range":
                said = ""
            case "another ETag":
                etag = '"another"'
            case "a weak ETag":
                etag = f"W/{etag}"
            case "too few bytes":
                body = body[:-1]
            case "too many bytes":
                body += b"x" * 4096
            case "no bytes":
                body = b""
            case "all of it":
                return Respond(200, self.content, {"ETag": etag})
        return Respond(206, body, {"ETag": etag, **({"Content-Range": said} if said else {})})


WRONG = [
    "another range",
    "a shorter range",
    "another total",
    "no range",
    "another ETag",
    "a weak ETag",
    "too few bytes",
    "too many bytes",
    "no bytes",
    "all of it",
]


def doctor(server: BentoCloudStandIn, what: str, numbers: range) -> None:
    """Answer the requests with these numbers wrongly; nothing but the log tells which they are."""
    doctored = Doctored(server)
    real = server.arrived

    def arrived(request: Request) -> None:
        real(request)
        if request.origin == "store" and len(gets(server)) in numbers:
            request.fault = doctored.answer(request, what)

    server.arrived = arrived  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [WALK, PIECE_1, PIECE_4])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_asked_for_again(
    seeded: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, what: str, number: int
) -> None:
    """Nothing vouches for the bytes of this version, so each answer has to be right."""
    doctor(seeded, what, range(number, number + 1))
    cloud.pull(target, control=one_worker())
    assert snapshot(target) == snapshot(source)
    again = Counter(asked(seeded))
    assert again.pop(asked(seeded)[number - 1]) == (1 if (number, what) == (WALK, "too many bytes") else 2)
    assert set(again.values()) == {1}


@pytest.mark.parametrize("what", WRONG)
def test_answers_that_stay_wrong_leave_the_target_as_it_was(
    pushed: BentoCloudStandIn, cloud: Cloud, target: Path, what: str
) -> None:
    write_tree(target, {"old": b"old"})
    doctor(pushed, what, range(PIECE_2, 1000))
    with pytest.raises(RegistryUnavailable):
        cloud.pull(target, force=True, control=Control(workers=1, is_last_try=True))
    assert snapshot(target) == {"old": ("file", b"old", False)}
    assert hidden(target.parent) == []
    assert len(gets(pushed)) == PIECE_1 + 5


@pytest.mark.parametrize("what", ["too few bytes", "no bytes"])
@pytest.mark.row("T10", of="bentocloud")
def test_a_first_answer_with_too_few_bytes_is_asked_for_again(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, what: str
) -> None:
    doctor(pushed, what, range(FIRST, FIRST + 1))
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    assert Counter(asked(pushed))[0, PROBE - 1] == 2


# --- an object that changes ------------------------------------------------------------------------------------------


def replace_object(server: BentoCloudStandIn) -> bytes:
    """Put another object of the same length there, and return its large file."""
    stored = server.stored("digits", "v1")
    content = bytearray(stored.path.read_bytes())
    start = content.index(b"weights.bin") + 512
    for offset in range(start, start + PIECES * PIECE - 100):
        content[offset] ^= 0xFF
    server.store.objects[server.key("digits", "v1")] = server.store.receive([bytes(content)])
    return bytes(content[start : start + PIECES * PIECE - 100])


@pytest.mark.parametrize("number", [WALK, PIECE_1, PIECE_4])
@pytest.mark.row("T2", of="bentocloud")
def test_an_object_that_is_replaced_on_the_way_is_not_mixed(
    seeded: BentoCloudStandIn, cloud: Cloud, target: Path, number: int
) -> None:
    new = b""

    def before(request: Request) -> None:
        nonlocal new
        if not new and len(gets(seeded)) == number:
            new = replace_object(seeded)

    store_of(seeded).before = before
    with pytest.raises(RegistryUnavailable, match="replaced while it was being downloaded"):
        cloud.pull(target, control=one_worker())
    assert not target.exists()
    # The next try takes up nothing of the old object.
    cloud.pull(target, control=one_worker())
    assert (target / "weights.bin").read_bytes() == new
    assert hidden(target.parent) == []


def test_an_object_that_is_deleted_on_the_way_is_missed(pushed: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    store_of(pushed).before = lambda request: pushed.store.objects.clear() if len(gets(pushed)) == PIECE_2 else None
    with pytest.raises(ModelNotFound):
        cloud.pull(target, control=one_worker())
    require_untouched(target)


def test_a_cut_archive_is_told_from_a_passing_fault(server: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    """The walk jumps over content that is not there."""
    archive = archive_of({"a": b"a", "weights.bin": random_bytes(4 * LARGE)})
    for size in (len(archive) - 10_240, 3 * LARGE, 2048 + 512, 512 * 2):
        server.seed("digits", "v1", archive[:size], size_bytes=1 + 4 * LARGE)
        server.requests.clear()
        with pytest.raises(CorruptArchive):
            cloud.pull(target)
        assert sum(request.sent for request in gets(server)) <= 4 * PROBE
        require_untouched(target)


# --- faults on the way -----------------------------------------------------------------------------------------------

FAULTS: dict[str, Action] = {
    "reset before the answer": LoseAnswer(),
    "reset in the answer": Truncate(50_000),
    "early end": Truncate(50_000, clean=True),
    "500": Respond(500),
    "503": Respond(503, b"<Error><Code>SlowDown</Code></Error>"),
}


@pytest.mark.parametrize("number", [FIRST, WALK, PIECE_2])
@pytest.mark.parametrize("action", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.row("T2", of="bentocloud")
def test_a_range_that_fails_once_is_asked_for_again_alone(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, action: Action, number: int
) -> None:
    if number == WALK and isinstance(action, Truncate):
        action = replace(action, after=1000)  # there are few bytes behind the large file
    pushed.fault("GET", OBJECT, action, nth=number)
    cloud.pull(target, control=one_worker())
    assert snapshot(target) == snapshot(source)
    again = Counter(asked(pushed))
    assert again.pop(asked(pushed)[number - 1]) == 2
    assert set(again.values()) == {1}


@pytest.mark.parametrize("number", [FIRST, WALK, PIECE_2])
def test_a_range_that_stands_still_is_asked_for_again_alone(
    pushed: BentoCloudStandIn,
    cloud: Cloud,
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    clock, pace = Clock(monkeypatch), Pace(window_seconds=30, answer_seconds=30)

    def mover(registry: Registry, control: Control) -> Mover:
        return Mover(registry.settings, base_url=registry.base_url, cancel=control.cancel, pace=pace)

    monkeypatch.setattr(pull, "mover_for", mover)
    stalled = threading.Event()

    def before(request: Request) -> None:
        if len(gets(pushed)) == number and not stalled.is_set():
            stalled.set()
            clock.advance(31, is_sent=True)
            pushed.stopping.wait(30)

    store_of(pushed).before = before
    cloud.pull(target, control=one_worker())
    assert stalled.is_set()
    assert snapshot(target) == snapshot(source)
    assert len(gets(pushed)) == PIECE_4 + 1


@pytest.mark.row("A4", of="bentocloud")
def test_an_expired_url_is_presigned_once_for_all_threads(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
) -> None:
    expired: set[str] = set()
    together = threading.Barrier(PIECES)

    def before(request: Request) -> None:
        signature = request.query["X-Amz-Signature"]
        if len(gets(pushed)) >= PIECE_1 and not expired:
            together.wait(60)
            expired.add(signature)
        if signature in expired:
            raise StoreError(403, "AccessDenied", "Request has expired")

    def presign(method: str, key: str, query: dict[str, str] | None = None, *, age: float = 0) -> str:
        return real(method, key, {**(query or {}), "n": str(len(pushed.requests))}, age=age)

    real = pushed.store.presign
    pushed.store.presign = presign  # type: ignore[method-assign]  # no two URLs are the same
    store_of(pushed).before = before
    cloud.pull(target, control=Control(workers=PIECES))
    assert snapshot(target) == snapshot(source)
    assert pushed.count("PATCH", PRESIGN) == 2
    assert Counter(request.status for request in gets(pushed)) == {206: 2 + PIECES, 403: PIECES}


@pytest.mark.parametrize("number", [FIRST, WALK, PIECE_1, PIECE_4])
def test_an_expired_url_is_presigned_anew(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, number: int
) -> None:
    pushed.fault("GET", OBJECT, Respond(403, b"<Error><Code>AccessDenied</Code></Error>"), nth=number)
    cloud.pull(target, control=one_worker())
    assert snapshot(target) == snapshot(source)
    assert pushed.count("PATCH", PRESIGN) == 2
    assert len(gets(pushed)) == PIECE_4 + 1


def test_a_cancelled_pull_ends_soon(pushed: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    cancel, cancelled_at = CancelToken(), [0.0]

    def before(request: Request) -> None:
        if len(gets(pushed)) >= PIECE_1:
            cancelled_at[0] = cancelled_at[0] or time.monotonic()
            cancel.cancel()
            pushed.stopping.wait(30)

    store_of(pushed).before = before
    with pytest.raises(Cancelled):
        cloud.pull(target, control=Control(cancel=cancel, is_last_try=True))
    assert time.monotonic() - cancelled_at[0] < 4
    require_untouched(target)


def test_an_error_in_one_range_ends_all_others(pushed: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    def before(request: Request) -> None:
        if len(gets(pushed)) < PIECE_1:
            return
        if request.headers["range"] == f"bytes={asked(pushed)[PIECE_1 - 1][0]}-{asked(pushed)[PIECE_1 - 1][1]}":
            raise StoreError(404, "NoSuchKey", "gone")
        pushed.stopping.wait(60)

    store_of(pushed).before = before
    start = time.monotonic()
    with pytest.raises(ModelNotFound):
        cloud.pull(target)
    assert time.monotonic() - start < 30  # none of the others has got its answer
    require_untouched(target)


# --- bytes that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [FIRST, PIECE_1, PIECE_4])
@pytest.mark.row("T11", of="bentocloud")
def test_a_bit_flipped_once_is_cured(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, number: int
) -> None:
    pushed.fault("GET", OBJECT, FlipBit(512), nth=number)  # of the first range: in the small file
    cloud.pull(target, control=one_worker())
    assert snapshot(target) == snapshot(source)
    assert len(gets(pushed)) == 2 * PIECE_4


@pytest.mark.row("T11", of="bentocloud")
def test_a_bit_that_stays_flipped_is_found(pushed: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
    with pushed.stored("digits", "v1").path.open("r+b") as file:
        file.seek(3 * PIECE)
        byte = file.read(1)
        file.seek(3 * PIECE)
        file.write(bytes([byte[0] ^ 1]))
    write_tree(target, {"old": b"old"})
    with pytest.raises(DigestMismatch):
        cloud.pull(target, force=True)
    assert snapshot(target) == {"old": ("file", b"old", False)}
    assert hidden(target.parent) == []
    assert len(gets(pushed)) == 2 * PIECE_4


@pytest.mark.row("D1", of="bentocloud")
def test_a_full_disk_is_told_and_nothing_is_left(
    pushed: BentoCloudStandIn, cloud: Cloud, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not for the next try: pieces would keep the disk full."""
    real, writes = os.pwrite, iter(range(1000))

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if next(writes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DiskFull, match="No space left on device"):
        cloud.pull(target)
    require_untouched(target)


def test_short_writes_are_completed(
    pushed: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:1000], offset))
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)


def test_the_servers_own_way_down_is_asked_for_no_ranges(
    server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
) -> None:
    server.transmission_strategy = "proxy"
    cloud.push(source)
    cloud.pull(target)
    (request,) = server.find("GET", DOWNLOAD)
    assert not {"range", "if-match"} & request.headers.keys()
    assert snapshot(target) == snapshot(source)

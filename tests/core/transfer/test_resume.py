"""Killed at any moment, a push and a pull go on where they were, and nobody ever sees half a model."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import JsonValue

from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable
from airflow_provider_modelsync.core.transfer import checkpoint, large_files, plan, ranges
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import at_once, killed_at
from tests.core.registries.bentocloud.cloud import OBJECT, Cloud, archive_of
from tests.core.stores import hidden, snapshot, write_tree
from tests.core.transfer.test_multipart import COMPLETE, START, HookedStore, Memory, store_of
from tests.standins.bentocloud import BentoCloudStandIn, StoreError
from tests.standins.http_server import Answer, Request, Reset, Respond
from tests.support.steps import Victim, some_of

pytestmark = pytest.mark.faults

KIB = 1 << 10
PART, PARTS = 64 * KIB, 3  # of a push, in these tests
LARGE, PIECE = 96 * KIB, 64 * KIB  # of a pull, in these tests
PIECES = 5

# When a client is killed: as its request arrives, which is not served then, or once it is served, before the answer.
Moment = Literal["arrived", "served"]

random_bytes = random.Random(5).randbytes


class KillingServer(BentoCloudStandIn):
    """A server that kills its client at one of its requests."""

    def __init__(self, root: Path, *, strategy: str | None) -> None:
        super().__init__(root, transmission_strategy=strategy)
        store = HookedStore(root, minimum_part_size=PART)
        store.after = self._served
        self.store = store
        self._victim: tuple[Victim, int, Moment, str] | None = None

    def arrived(self, request: Request) -> None:
        super().arrived(request)
        if self._is_due("arrived"):
            request.fault = Reset()

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        try:
            return super().answer(request, body)
        finally:  # a refusal is an answer, too
            self._is_due("served")

    def kills(self, work: Callable[[], Any], step: int, moment: Moment, *, path: str = "") -> bool:
        """Run a function in a process that is killed at its n-th request; return whether it came that far.

        :param path: count the requests only whose paths end so.
        """
        self.requests.clear()
        victim = Victim(work)
        self._victim = victim, step, moment, path
        is_killed = victim.run()
        self._victim = None
        return is_killed

    def _served(self, request: Request, answer: Answer) -> Answer:
        self._is_due("served")
        return answer

    def _is_due(self, now: Moment) -> bool:
        with self.lock:
            if not self._victim:
                return False
            victim, step, moment, path = self._victim
            if moment != now or sum(request.path.endswith(path) for request in self.requests) < step:
                return False
            self._victim = None
            victim.kill()
            return True


class FileStore:
    """A checkpoint store that outlives processes."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory

    def get(self, key: str) -> JsonValue:
        try:
            value: JsonValue = json.loads((self.directory / key).read_text())
        except FileNotFoundError:
            return None
        return value

    def set(self, key: str, value: JsonValue) -> None:
        scratch = self.directory / f"{key}.new"
        scratch.write_text(json.dumps(value))
        scratch.rename(self.directory / key)

    def delete(self, key: str) -> None:
        (self.directory / key).unlink(missing_ok=True)

    def keys(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.suffix != ".new")


def use_parts_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut archives into parts far smaller than storages take; that of these tests does."""
    monkeypatch.setattr(plan, "_MIB", size // 16)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    """Parts and large files have some KiB, every part is remembered at once, and tries follow each other at once."""
    use_parts_of(PART, monkeypatch)
    monkeypatch.setattr(checkpoint, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(large_files, "LARGE", LARGE)
    monkeypatch.setattr(large_files, "PIECE", PIECE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


# --- push ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[KillingServer]:
    """A server that takes models in parts."""
    with KillingServer(tmp_path / "server", strategy="presigned_url") as server:
        yield server


@pytest.fixture(scope="module")
def content() -> bytes:
    return random_bytes((PARTS - 1) * PART + 10_000)


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Path:
    return write_tree(tmp_path / "model", {"bin/weights": content, "run.sh": b"#!/bin/sh\n"}, executable=["run.sh"])


@pytest.fixture
def copied(tmp_path: Path, source: Path) -> Path:
    """The same bytes as another worker has them: elsewhere, of another time and another owner."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    (copy / "run.sh").chmod(0o700)
    for number, path in enumerate(copy.rglob("*")):
        os.utime(path, ns=(number, number))
        if os.geteuid() == 0:
            os.chown(path, 12345, 54321)
    return copy


def one_worker(store: checkpoint.CheckpointStore | None = None) -> Control:
    return Control(workers=1, checkpoint=store)


def parts_sent(server: BentoCloudStandIn) -> list[int | None]:
    return [request.part for request in server.find("PUT", OBJECT)]


@pytest.mark.parametrize("moment", ["arrived", "served"])
@pytest.mark.row("P1", of="bentocloud")
def test_a_push_killed_at_any_request_is_finished_by_another_worker(
    sink: KillingServer, source: Path, copied: Path, tmp_path: Path, moment: Moment
) -> None:
    cloud = Cloud(sink)
    seen = Counter[str]()

    def push(directory: Path, step: int) -> Any:
        control = one_worker(FileStore(tmp_path / f"checkpoint-{step}"))
        return cloud.push(directory, f"digits:v{step}", control=control).transfer

    for step in count(1):
        if not sink.kills(partial(push, source, step), step, moment):
            break
        *before, last = sink.requests
        seen[last.path.rpartition("/")[2]] += 1
        answered = [request.part for request in before if request.part]
        assert answered == list(range(1, len(answered) + 1))
        has_begun = any(request.path.endswith("/start_multipart_upload") for request in before)
        sink.requests.clear()

        (transfer,) = at_once(partial(push, copied, step))
        assert not isinstance(transfer, BaseException)
        # What was answered before is not sent again, and the same upload goes on.
        assert parts_sent(sink) == list(range(len(answered) + 1, PARTS + 1))
        assert sink.count("PATCH", START) == (0 if has_begun else 1)
        if not transfer.skipped:
            assert transfer.resumed_bytes == min(PART * len(answered), sink.stored("digits", f"v{step}").size)
        # Put together only as a whole, and only once.
        for request in sink.find("PATCH", COMPLETE):
            assert [part["part_number"] for part in request.body["parts"]] == list(range(1, PARTS + 1))
        assert store_of(sink).completed.count(sink.key("digits", f"v{step}")) == 1
        assert sink.model("digits", f"v{step}").upload_status == "success"
        assert not FileStore(tmp_path / f"checkpoint-{step}").keys()
        cloud.pull(tmp_path / "target", f"digits:v{step}")
        assert snapshot(tmp_path / "target") == snapshot(source)
        shutil.rmtree(tmp_path / "target")

    versions = cloud.list_versions("digits")
    assert sorted(version.version for version in versions) == sorted(f"v{number}" for number in range(1, step + 1))
    assert all(version.ready for version in versions)
    # Each kind of request was one to be killed at.
    assert sum(number for name, number in seen.items() if name.endswith(".tar.gz")) == PARTS
    assert seen["presign_multipart_upload_url"] == PARTS
    for name in ("start_upload", "start_multipart_upload", "complete_multipart_upload", "finish_upload"):
        assert seen[name] == 1


@pytest.mark.parametrize(
    ("call", "moment"),
    [("complete_multipart_upload", "arrived"), ("complete_multipart_upload", "served"), ("finish_upload", "arrived")],
)
@pytest.mark.row("P3", of="bentocloud")
def test_a_push_killed_while_the_parts_are_put_together_sends_none_again(
    sink: KillingServer,
    source: Path,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    moment: Moment,
) -> None:
    """Although parts are written down only now and then, all of them are before they are put together."""
    monkeypatch.setattr(checkpoint, "FLUSH_SECONDS", 1000.0)
    cloud, store = Cloud(sink), FileStore(tmp_path / "checkpoint")
    assert sink.kills(lambda: cloud.push(source, control=one_worker(store)), 1, moment, path="/" + call)
    sink.requests.clear()
    (version,) = at_once(lambda: cloud.push(copied, control=one_worker(store)))
    assert version.ready
    assert parts_sent(sink) == []
    assert sink.count("PATCH", START) == 0


def test_a_push_with_many_workers_sends_only_what_is_missing(
    sink: KillingServer, source: Path, copied: Path, tmp_path: Path, target: Path
) -> None:
    cloud, store = Cloud(sink), FileStore(tmp_path / "checkpoint")

    def push(source: Path) -> Any:
        return cloud.push(source, control=Control(workers=PARTS, checkpoint=store))

    assert sink.kills(lambda: push(source), PARTS, "served", path=".tar.gz")
    known = store.get("upload.v1.parts.0") or {}
    assert isinstance(known, dict)
    sink.requests.clear()
    (version,) = at_once(lambda: push(copied))
    assert version.ready
    assert sorted(map(str, parts_sent(sink))) == sorted({"1", "2", "3"} - known.keys())
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)


@pytest.fixture
def begun(sink: KillingServer, source: Path) -> tuple[Cloud, Memory]:
    """A push whose first two parts are done and remembered."""
    cloud, store = Cloud(sink), Memory()
    sink.fault("PUT", OBJECT, Respond(503), part=3, times=None)
    with pytest.raises(RegistryUnavailable):
        cloud.push(source, control=one_worker(store))
    assert store.uploads.keys() == {"upload.v1", "upload.v1.parts.0"}
    sink.faults.clear()
    sink.requests.clear()
    return cloud, store


def finish(begun: tuple[Cloud, Memory], source: Path, target: Path) -> list[int | None]:
    """Push again; return the parts that were sent by that."""
    cloud, store = begun
    assert cloud.push(source, control=one_worker(store)).ready
    assert not store.uploads
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    return parts_sent(cloud.server)


ALL: list[int | None] = list(range(1, PARTS + 1))


def test_a_checkpoint_of_this_upload_is_used(begun: tuple[Cloud, Memory], source: Path, target: Path) -> None:
    assert finish(begun, source, target) == [3]


def test_a_checkpoint_of_other_bytes_is_discarded(begun: tuple[Cloud, Memory], source: Path, target: Path) -> None:
    with (source / "bin/weights").open("r+b") as file:
        file.write(b"other")
    assert finish(begun, source, target) == ALL


def test_a_checkpoint_of_other_modes_is_discarded(begun: tuple[Cloud, Memory], source: Path, target: Path) -> None:
    """The digest is the same, the archive is not."""
    (source / "run.sh").chmod(0o644)
    assert finish(begun, source, target) == ALL


def test_a_checkpoint_of_another_record_is_discarded(begun: tuple[Cloud, Memory], source: Path, target: Path) -> None:
    begun[0].record.uid = "another"  # of the very same archive
    assert finish(begun, source, target) == ALL


def test_a_checkpoint_of_a_deleted_record_is_discarded(begun: tuple[Cloud, Memory], source: Path, target: Path) -> None:
    assert begun[0].delete()
    assert finish(begun, source, target) == ALL


def test_a_checkpoint_of_another_version_is_discarded(begun: tuple[Cloud, Memory], source: Path) -> None:
    cloud, store = begun
    assert cloud.push(source, "digits:v2", control=one_worker(store)).ready
    assert parts_sent(cloud.server) == ALL
    assert not store.uploads


@pytest.mark.parametrize("size", [PART + 16, 3 * PART])
def test_parts_of_two_sizes_are_never_mixed(
    begun: tuple[Cloud, Memory], source: Path, target: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the open upload is finished in its own size, or begun again in the new one."""
    use_parts_of(size, monkeypatch)
    finish(begun, source, target)
    archive = begun[0].server.stored("digits", "v1").path.read_bytes()
    assert len(archive) % 10_240 == 0
    assert archive.count((source / "bin/weights").read_bytes()) == 1


def test_a_checkpoint_of_an_upload_that_expired_is_discarded(
    begun: tuple[Cloud, Memory], source: Path, target: Path
) -> None:
    begun[0].server.store.uploads.clear()
    assert finish(begun, source, target) == [3, *ALL]


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, {"1": "x"}, {"identity": {}, "upload_id": "x"}], ids=repr)
@pytest.mark.parametrize("key", ["upload.v1", "upload.v1.parts.0"])
def test_garbage_in_a_checkpoint_is_discarded(
    begun: tuple[Cloud, Memory], source: Path, target: Path, key: str, junk: JsonValue
) -> None:
    begun[1].values[key] = junk
    begun[1].values["digests.v1"] = junk
    sent = finish_with_leftovers(begun, source, target)
    assert set(ALL) >= set(sent) >= {3}


def finish_with_leftovers(begun: tuple[Cloud, Memory], source: Path, target: Path) -> list[int | None]:
    """As :func:`finish`; without its header nobody knows what else there is, so that may stay."""
    cloud, store = begun
    assert cloud.push(source, control=one_worker(store)).ready
    assert "upload.v1" not in store.values
    cloud.pull(target)
    assert snapshot(target) == snapshot(source)
    return parts_sent(cloud.server)


@pytest.mark.parametrize("etag", ['"unknown"', "", 'x"'])
def test_a_wrong_etag_in_a_checkpoint_costs_work_only(
    begun: tuple[Cloud, Memory], source: Path, target: Path, etag: str
) -> None:
    parts = begun[1].values["upload.v1.parts.0"]
    assert isinstance(parts, dict)
    begun[1].values["upload.v1.parts.0"] = {**parts, "2": etag}
    assert set(finish(begun, source, target)) >= {2, 3}


def test_parts_that_an_archive_does_not_have_are_ignored(
    begun: tuple[Cloud, Memory], source: Path, target: Path
) -> None:
    parts = begun[1].values["upload.v1.parts.0"]
    assert isinstance(parts, dict)
    begun[1].values["upload.v1.parts.0"] = {**parts, "4": '"x"', "200": '"y"'}
    cloud, store = begun
    transfer = cloud.push(source, control=one_worker(store)).transfer
    assert transfer is not None
    assert transfer.resumed_bytes == 2 * PART
    assert parts_sent(cloud.server) == [3]


# --- pull ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two large files of five pieces together, among small ones."""
    files = {
        "a.txt": b"a",
        "b/weights": random_bytes(3 * PIECE - 7),
        "c.txt": random_bytes(2000),
        "d/weights": random_bytes(2 * PIECE),
        "e.txt": b"",
    }
    return write_tree(tmp_path / "pulled-model", files, executable=["d/weights"], directories=["void"])


@pytest.fixture(params=["digest", "no digest"])
def origin(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Iterator[KillingServer]:
    """A server that holds the model as we have pushed it, or as others have: then nothing vouches for its bytes."""
    with KillingServer(tmp_path / "server", strategy=None) as server:
        if request.param == "digest":
            Cloud(server).push(model)
        else:
            server.seed("digits", "v1", model)
            (model / "model.yaml").write_bytes(yaml_of(server))
        yield server


def yaml_of(server: BentoCloudStandIn) -> bytes:
    """The file that the other client has added."""
    with tarfile.open(server.stored("digits", "v1").path) as archive:
        content = archive.extractfile("./model.yaml")
        assert content is not None
        return content.read()


# A wrong piece would be cured by the digest; without one the journal has to be right.
nothing_vouches = pytest.mark.parametrize("origin", ["no digest"], indirect=True)


def ranges_asked(server: BentoCloudStandIn) -> list[tuple[int, int]]:
    found = []
    for request in server.find("GET", OBJECT):
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        found.append((int(first), int(last) + 1))
    return found


def pieces_of(server: BentoCloudStandIn, model: Path) -> list[tuple[int, int]]:
    """The ranges that a pull fetches large files in."""
    archive = server.stored("digits", "v1").path.read_bytes()
    found = []
    for name in ("b/weights", "d/weights"):
        content = (model / name).read_bytes()
        offset = archive.index(content)
        ends = range(offset, offset + len(content), PIECE)
        found += [(start, min(start + PIECE, offset + len(content))) for start in ends]
    assert len(found) == PIECES
    return found


def pull(server: BentoCloudStandIn, target: Path, **control: Any) -> Any:
    """Pull with one thread; return what was moved."""
    return Cloud(server).pull(target, control=Control(**{"workers": 1, **control}), force=True).version.transfer


def require_pulled(target: Path, model: Path) -> None:
    assert snapshot(target) == snapshot(model)
    assert hidden(target.parent) == []


@pytest.mark.parametrize("moment", ["arrived", "served"])
@pytest.mark.row("P2", of="bentocloud")
def test_a_pull_killed_at_any_request_fetches_only_the_missing_pieces(
    origin: KillingServer, model: Path, tmp_path: Path, moment: Moment
) -> None:
    pieces = pieces_of(origin, model)
    resumed = []
    for step in count(1):
        target = tmp_path / f"{step}" / "target"
        if not origin.kills(partial(pull, origin, target), step, moment):
            break
        assert not target.exists()
        finished = [span for span in ranges_asked(origin)[:-1] if span in pieces]
        origin.requests.clear()
        (transfer,) = at_once(partial(pull, origin, target))
        assert not isinstance(transfer, BaseException)
        again = [span for span in ranges_asked(origin) if span in pieces]
        assert again == pieces[len(finished) :]
        require_pulled(target, model)
        assert transfer.resumed_bytes == sum(end - start for start, end in finished)
        assert transfer.sent_bytes == origin.stored("digits", "v1").size - transfer.resumed_bytes
        asked = sum(end - start for start, end in ranges_asked(origin))
        # The small files and the headers come again: two looks behind large files, and the first bytes.
        assert asked <= sum(end - start for start, end in again) + 5 * ranges.PROBE
        resumed.append(len(finished))
    assert max(resumed) == PIECES - 1
    assert resumed == sorted(resumed)


def test_a_pull_with_many_threads_fetches_only_the_missing_pieces(
    origin: KillingServer, model: Path, target: Path
) -> None:
    pieces = pieces_of(origin, model)
    walk = 3
    assert origin.kills(lambda: pull(origin, target, workers=4), walk + PIECES, "arrived", path=".tar.gz")
    origin.requests.clear()
    (transfer,) = at_once(lambda: pull(origin, target, workers=4))
    require_pulled(target, model)
    again = [span for span in ranges_asked(origin) if span in pieces]
    assert transfer.resumed_bytes == sum(end - start for start, end in pieces if (start, end) not in again)
    assert len(again) == len(set(again)) <= 4


class Slow:
    """Lets a process be killed also before and in the middle of each write of a piece."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    def __call__(self) -> None:
        real = os.pwrite

        def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
            sys.audit("os.utime", offset, None, None, -1)  # one of the changes that are counted
            done = real(descriptor, data[: len(data) // 2], offset)
            sys.audit("os.utime", offset, None, None, -1)
            return done + real(descriptor, data[done:], offset + done)

        os.pwrite = pwrite  # type: ignore[assignment]
        self._work()


@pytest.mark.parametrize(("origin", "old"), [("digest", b"old"), ("no digest", None)], indirect=["origin"])
@pytest.mark.row("P2", of="bentocloud")
def test_a_pull_killed_at_any_change_of_the_disk_leaves_no_half_target(
    origin: KillingServer, model: Path, tmp_path: Path, old: bytes | None
) -> None:
    pieces = pieces_of(origin, model)
    whole = snapshot(model)
    states = Counter[str]()
    for step in some_of(count()):
        target = tmp_path / f"{step}" / "target"
        target.parent.mkdir()
        if old is not None:
            write_tree(target, {"old": old})
        before = snapshot(target) if old is not None else {}
        origin.requests.clear()
        if not killed_at(step, Slow(partial(pull, origin, target))):
            break
        now = snapshot(target)
        assert now in (before, {}, whole)
        states["whole" if now == whole else "old" if now == before else "absent"] += 1
        fetched = [span for span in ranges_asked(origin) if span in pieces]
        origin.requests.clear()
        pull(origin, target)
        assert snapshot(target) == whole
        again = [span for span in ranges_asked(origin) if span in pieces]
        if 0 < len(fetched) < PIECES:
            # All but the one that the kill may have hit; a kill later on finds the pieces already in their places.
            assert len(again) <= PIECES - len(fetched) + 1
        shutil.rmtree(target.parent)
    assert snapshot(target) == whole
    assert states["old"] > PIECES


# --- what an earlier pull left ---------------------------------------------------------------------------------------


def fail_at(server: BentoCloudStandIn, model: Path, piece: int) -> None:
    """Refuse a piece, counted from 0, for now."""
    refused = pieces_of(server, model)[piece]

    def before(request: Request) -> None:
        if request.headers.get("range") == f"bytes={refused[0]}-{refused[1] - 1}":
            raise StoreError(503, "SlowDown", "not now")

    store_of(server).before = before


def fail_no_more(server: BentoCloudStandIn) -> None:
    store_of(server).before = lambda request: None
    server.requests.clear()


@pytest.fixture
def left(origin: KillingServer, model: Path, target: Path) -> Path:
    """The staging directory of a pull that failed at the last piece."""
    fail_at(origin, model, PIECES - 1)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target)
    fail_no_more(origin)
    assert not target.exists()
    (name,) = hidden(target.parent)
    return target.parent / name / "model"


def journal(left: Path) -> Path:
    return left / ".modelsync" / "journal"


def piece_files(left: Path) -> list[Path]:
    found = sorted((path for path in (left / ".modelsync").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    assert len(found) == 2
    return found


def spoil(left: Path) -> None:
    """Make all pieces wrong: whoever takes one for finished gives wrong bytes."""
    for path in piece_files(left):
        path.write_bytes(bytes(path.stat().st_size))


def fetched_again(server: BentoCloudStandIn, model: Path) -> int:
    pieces = pieces_of(server, model)
    return sum(span in pieces for span in ranges_asked(server))


def test_a_passing_fault_leaves_the_pieces_to_the_next_try(
    origin: KillingServer, model: Path, target: Path, left: Path
) -> None:
    transfer = pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 1
    assert transfer.resumed_bytes == sum(end - start for start, end in pieces_of(origin, model)[:-1])


def test_the_last_try_leaves_nothing(origin: KillingServer, model: Path, target: Path) -> None:
    fail_at(origin, model, PIECES - 1)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target, is_last_try=True)
    assert not target.exists()
    assert hidden(target.parent) == []


def test_the_last_try_uses_what_is_left_and_removes_it(
    origin: KillingServer, model: Path, target: Path, left: Path
) -> None:
    fail_at(origin, model, PIECES - 1)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target, is_last_try=True)
    assert set(ranges_asked(origin)) & set(pieces_of(origin, model)) == {pieces_of(origin, model)[-1]}
    assert hidden(target.parent) == []


def test_a_fault_that_does_not_pass_leaves_nothing(
    origin: KillingServer, model: Path, target: Path, left: Path
) -> None:
    origin.store.objects.clear()
    with pytest.raises(ModelNotFound):
        pull(origin, target)
    assert not target.exists()
    assert hidden(target.parent) == []


def test_a_fault_before_the_first_piece_leaves_nothing(origin: KillingServer, model: Path, target: Path) -> None:
    fail_at(origin, model, 0)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target)
    assert hidden(target.parent) == []


@nothing_vouches
def test_another_object_takes_up_nothing(
    origin: KillingServer, model: Path, target: Path, left: Path, tmp_path: Path
) -> None:
    spoil(left)
    for name in ("b/weights", "d/weights"):
        (model / name).write_bytes((model / name).read_bytes()[::-1])
    (model / "model.yaml").unlink()
    origin.seed("digits", "v1", model)
    (model / "model.yaml").write_bytes(yaml_of(origin))
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == PIECES


@nothing_vouches
def test_after_a_restart_of_the_machine_nothing_is_taken_up(
    origin: KillingServer, model: Path, target: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before may have been lost."""
    spoil(left)
    monkeypatch.setattr(large_files, "_boot", lambda: "another")
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == PIECES


@nothing_vouches
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b"{}\n",
        b"null\n",
        b"0 1\n",
        bytes(20),
    ],
    ids=repr,
)
def test_a_journal_of_no_sense_is_discarded(
    origin: KillingServer, model: Path, target: Path, left: Path, content: bytes
) -> None:
    spoil(left)
    notes = b"".join(journal(left).read_bytes().splitlines(keepends=True)[1:])
    assert notes.count(b"\n") == PIECES - 1
    journal(left).write_bytes(content + notes)
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == PIECES


@nothing_vouches
def test_a_missing_journal_is_none(origin: KillingServer, model: Path, target: Path, left: Path) -> None:
    spoil(left)
    journal(left).unlink()
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == PIECES


@nothing_vouches
@pytest.mark.parametrize("lost", [2, 3, 8, 100])
def test_a_note_that_was_cut_costs_its_piece(
    origin: KillingServer, model: Path, target: Path, left: Path, lost: int
) -> None:
    """Also for the tries after the next one: the next note must not continue the cut one."""
    notes = journal(left).read_bytes()
    assert len(notes.splitlines()[-1]) >= 8
    journal(left).write_bytes(notes[:-lost] if lost < 100 else notes[: notes[:-1].rindex(b"\n") + 1])
    fail_at(origin, model, PIECES - 1)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target)
    pieces = pieces_of(origin, model)
    assert set(ranges_asked(origin)) & set(pieces) == {pieces[-2], pieces[-1]}
    fail_no_more(origin)
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 1


@nothing_vouches
@pytest.mark.parametrize("note", ["0 1", "5", "1 2 3", "-7 9", "x y", "9" * 5000 + " 1", "²  ²", "1e3 2e3"])
def test_a_note_of_no_sense_is_ignored(origin: KillingServer, model: Path, target: Path, left: Path, note: str) -> None:
    with journal(left).open("a") as file:
        file.write(f"{note}\n")
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 1


@nothing_vouches
@pytest.mark.parametrize("loss", ["removed", "cut", "grown"])
def test_a_lost_piece_file_is_fetched_again_however_often_that_is_interrupted(
    origin: KillingServer, model: Path, target: Path, left: Path, loss: str
) -> None:
    """The room that is made for it must not be taken for its pieces."""
    first = piece_files(left)[0]
    match loss:
        case "removed":
            first.unlink()
        case "cut":
            os.truncate(first, PIECE)
        case _:
            os.truncate(first, first.stat().st_size + 1)
            first.write_bytes(bytes(first.stat().st_size))
    fail_at(origin, model, 0)
    with pytest.raises(RegistryUnavailable):
        pull(origin, target)
    assert not target.exists()
    fail_no_more(origin)
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 4  # three of the first file, and the last of the second


@pytest.mark.parametrize("origin", ["digest"], indirect=True)
def test_pieces_that_rotted_are_found_by_the_digest(
    origin: KillingServer, model: Path, target: Path, left: Path
) -> None:
    spoil(left)
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 1 + PIECES


def test_other_things_in_the_staging_directory_do_not_come_along(
    origin: KillingServer, model: Path, target: Path, left: Path, tmp_path: Path
) -> None:
    outside = write_tree(tmp_path / "outside", {"kept": b"kept"})
    write_tree(left, {"stray": b"stray", "void/stray": b"stray", "b/other": b"other"})
    (left / "link").symlink_to(outside)
    pull(origin, target)
    require_pulled(target, model)
    assert fetched_again(origin, model) == 1
    assert snapshot(outside) == {"kept": ("file", b"kept", False)}


def test_another_version_does_not_use_it(origin: KillingServer, model: Path, target: Path, left: Path) -> None:
    other = archive_of({"weights": random_bytes(3 * PIECE)})
    origin.seed("digits", "v2", other, size_bytes=3 * PIECE)
    Cloud(origin).pull(target, "digits:v2")
    assert sorted(snapshot(target)) == ["weights"]
    assert hidden(target.parent) == [left.parent.name]
    pull(origin, target)
    assert fetched_again(origin, model) == 1
    require_pulled(target, model)

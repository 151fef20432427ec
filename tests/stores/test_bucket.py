"""What a model store in a bucket promises, on each storage: whatever is killed, meets another, or comes late."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
    Retryable,
    VersionConflict,
)
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import Stored, Sums
from tests.core.processes import at_once
from tests.core.registries.modelstore.buckets import KIB
from tests.core.stores import hidden, snapshot, write_tree
from tests.standins.tap import Before, Request
from tests.stores.storages import RealStore, Storage, is_killed_at, told
from tests.support.steps import some_of

ONE = Control(workers=1)  # so that nothing else is under way when it is killed
Step = Callable[[str], Any]


def version(root: Path, number: int, part: int) -> Path:
    """Write a version that shares a large file with all others."""
    kept, new = random.Random("kept"), random.Random(number)
    files = {
        "kept.bin": kept.randbytes(2 * part + 9),
        "weights größe.bin": new.randbytes(2 * part + 7),
        "layers/1 #?%20&+.bin": new.randbytes(900),
        "empty": b"",
    }
    return write_tree(root / str(number), files, executable=["layers/1 #?%20&+.bin"], directories=["void"])


def missing(store: RealStore, model: str, source: Path, part: int) -> dict[str, int]:
    """What a retry has to send of each file that the storage cannot copy, as the bucket is now."""
    prefix = model.replace(":", "/")
    there, uploads = store.keys(f"{prefix}/"), store.uploads(f"{prefix}/")
    found = {}
    for path, (kind, content, _) in snapshot(source).items():
        key = f"{prefix}/{path}"
        if kind == "file" and path != "kept.bin" and key not in there:
            held = uploads.get(key, {}) if len(content) > part else {}
            found[key] = len(content) - sum(held.values())
    return {key: size for key, size in found.items() if size}


def make(root: Path, text: str, part: int) -> Path:
    """Write a model with a file that goes in parts and one that does not."""
    files = {"weights.bin": random.Random(text).randbytes(part + 9), "vocab.txt": text.encode()}
    return write_tree(root / text, files)


@pytest.fixture
def one(tmp_path: Path, part: int) -> Path:
    return make(tmp_path, "one", part)


@pytest.fixture
def two(tmp_path: Path, part: int) -> Path:
    return make(tmp_path, "two", part)


@pytest.fixture
def other(store: RealStore) -> RealStore:
    """The same store as another worker sees it."""
    return store.again()


def outcome(step: Step, model: str) -> Any:
    try:
        return step(model)
    except ModelSyncError as error:
        return error


def at_every_step(store: RealStore, first: Step, second: Step) -> Iterator[tuple[str, str, Any, Any]]:
    """Let the second run as a whole before the first's n-th request is served, each time on a model of its own.

    Yields the model, the request, and what became of both: what they returned or raised.
    """
    for nth in some_of(count(1)):
        model, seconds, requests = f"fraud-{nth}:v1", [], []
        store.tap.clear()

        def meet(request: Request) -> None:
            requests.append(told(request))  # noqa: B023
            seconds.append(outcome(second, model))  # noqa: B023

        store.tap.fault("*", f"/fraud-{nth}/", Before(meet), nth=nth)
        result = outcome(first, model)
        if not seconds:
            assert nth > 3
            return
        yield model, requests[0], result, seconds[0]


# One after the other


def test_the_connection_test_finds_nothing_missing_and_leaves_nothing(store: RealStore) -> None:
    said = store.test()
    assert store.fields["host"] in said
    assert store.keys() == []
    assert store.uploads() == {}


def test_a_version_lives_its_life(store: RealStore, tmp_path: Path, part: int) -> None:
    source = version(tmp_path, 1, part)
    pushed = store.push(source, "fraud:v1")
    assert pushed.uri == f"{store.fields['host']}/fraud/v1"
    assert store.push(source, "fraud:v1").transfer.skipped  # type: ignore[union-attr]
    store.set_labels("fraud:v1", {"stage": "dev"})
    assert store.set_labels("fraud:v1", {"stage": "prod"}).labels == {"stage": "prod"}
    other = version(tmp_path, 2, part)
    with pytest.raises(VersionConflict):
        store.push(other, "fraud:v1")
    store.push(other, "fraud:v1", force=True)
    store.pull("fraud", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(other)
    assert [found.digest for found in store.list_versions("fraud")] == [digest_directory(other)]
    assert store.tidy("fraud:v1") == digest_directory(other)
    assert store.delete("fraud:v1")
    assert store.nothing("fraud:v1")
    assert store.push(source, "fraud:v1").digest == digest_directory(source)
    assert store.tidy("fraud:v1") == digest_directory(source)


def test_a_file_that_another_version_holds_is_copied(store: RealStore, tmp_path: Path, part: int) -> None:
    store.push(version(tmp_path, 1, part), "fraud:v1")
    store.tap.clear()
    store.push(version(tmp_path, 2, part), "fraud:v2")
    assert "fraud/v2/kept.bin" not in store.sent()
    assert store.tidy("fraud:v2") == digest_directory(tmp_path / "2")


def test_a_listing_of_many_pages_and_names_is_whole(store: RealStore, tmp_path: Path) -> None:
    files = {f"layer {number:03}/ä&<é>{number}.txt": b"%d" % number for number in range(130)}
    store.push(write_tree(tmp_path / "source", files), "fraud:v1", control=Control(workers=8))
    store.pull("fraud:v1", tmp_path / "target", control=Control(workers=8))
    assert snapshot(tmp_path / "target") == snapshot(tmp_path / "source")


def test_damage_in_the_bucket_is_found_and_mended(store: RealStore, one: Path, tmp_path: Path) -> None:
    store.push(one, "fraud:v1")
    store.put("fraud/v1/vocab.txt", b"eno")
    with pytest.raises(ModelSyncError):
        store.pull("fraud:v1", tmp_path / "target")
    store.push(one, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(one)


def test_a_path_that_a_storage_would_not_take_is_refused_before_anything_is_claimed(
    store: RealStore, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "source", {"/".join("x" * 30 for _ in range(31)) + "/" + "y" * 50: b"x"})
    with pytest.raises(InvalidInput, match="key"):
        store.push(source, "fraud:v1")
    assert store.keys() == []


# Killed


def test_a_push_killed_at_any_write_is_finished_by_one_that_sends_only_what_is_missing(
    store: RealStore, tmp_path: Path, part: int
) -> None:
    origin, source = version(tmp_path, 0, part), version(tmp_path, 1, part)
    for nth in some_of(count(1)):
        model = f"fraud-{nth}:v1"
        store.push(origin, f"fraud-{nth}:v0")
        if not is_killed_at(store.tap, lambda: store.again().push(source, model, control=ONE), nth=nth):  # noqa: B023
            break
        assert store.seen(model) in (None, digest_directory(source))
        expected = missing(store, model, source, part)
        store.tap.clear()
        store.push(source, model, control=ONE)
        assert {key: size for key, size in store.sent().items() if "kept" not in key} == expected, nth
        assert store.tidy(model) == digest_directory(source), nth
    assert nth > 6


def test_the_old_version_stays_until_the_new_one_is_whole_whatever_write_a_forced_push_is_killed_at(
    store: RealStore, one: Path, two: Path
) -> None:
    is_new = False
    for nth in some_of(count(1)):
        model = f"fraud-{nth}:v1"
        store.push(one, model)
        if not is_killed_at(store.tap, lambda: store.again().push(two, model, force=True, control=ONE), nth=nth):  # noqa: B023
            break
        found = store.seen(model)
        assert found == digest_directory(two) or (found == digest_directory(one) and not is_new), nth
        is_new = found == digest_directory(two)
        store.push(two, model, force=True)
        assert store.tidy(model) == digest_directory(two), nth
    assert nth > 6


def test_a_killed_delete_is_finished_by_the_next(store: RealStore, one: Path) -> None:
    for nth in some_of(count(1)):
        model = f"fraud-{nth}:v1"
        store.push(one, model)
        if not is_killed_at(store.tap, lambda: store.again().delete(model), nth=nth):  # noqa: B023
            break
        assert store.delete(model) in (True, False)
        assert store.nothing(model), nth
        store.push(one, model)
        assert store.tidy(model) == digest_directory(one), nth
    assert nth > 3


def test_a_killed_pull_is_finished_by_one_that_fetches_only_the_missing_pieces(
    store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "LARGE", 96 * KIB)
    monkeypatch.setattr(large_files, "PIECE", 64 * KIB)
    source = write_tree(tmp_path / "source", {"large.bin": random.Random(1).randbytes(5 * 64 * KIB), "small": b"s"})
    store.push(source, "fraud:v1")
    target = tmp_path / "target"
    work = partial(store.again().pull, "fraud:v1", target, control=ONE)
    assert is_killed_at(store.tap, work, nth=4, method="GET", path="/fraud/v1/(large|small)")
    pulled = store.pull("fraud:v1", target, control=ONE).version.transfer
    assert pulled
    # The small file comes first; the piece that was being answered is not there yet.
    assert (pulled.resumed_bytes, store.fetched("fraud/v1/large.bin")) == (2 * 64 * KIB, 3 * 64 * KIB)
    assert snapshot(target) == snapshot(source)
    assert hidden(target.parent) == []


# Two at once


def test_a_push_of_the_same_bytes_joins_at_every_step(store: RealStore, other: RealStore, one: Path) -> None:
    first, second = (partial(worker.push, one, control=ONE) for worker in (store, other))
    for model, request, mine, others in at_every_step(store, first, second):
        assert mine.digest == others.digest == store.tidy(model) == digest_directory(one), request


def test_a_forced_push_takes_over_at_every_step(store: RealStore, other: RealStore, one: Path, two: Path) -> None:
    first = partial(store.push, one, control=ONE)
    second = partial(other.push, two, control=ONE, force=True)
    for model, request, mine, others in at_every_step(store, first, second):
        assert others.digest == digest_directory(two), request
        if isinstance(mine, Retryable):  # Ceph cannot say that an upload which it is asked to complete is gone
            with pytest.raises(VersionConflict):
                first(model)
        found = store.tidy(model)
        if isinstance(mine, ModelSyncError):
            assert isinstance(mine, VersionConflict | Retryable), request
            assert found == digest_directory(two), request
        else:  # it came first
            assert (mine.digest, found) == (digest_directory(one), digest_directory(two)), request


def test_a_delete_at_every_step_of_a_push_leaves_all_or_nothing(store: RealStore, other: RealStore, one: Path) -> None:
    push = partial(store.push, one, control=ONE)
    for model, request, pushed, _ in at_every_step(store, push, other.delete):
        if isinstance(pushed, ModelSyncError):
            assert isinstance(pushed, Retryable), request
            assert store.seen(model) is None, request
        else:
            assert pushed.digest == digest_directory(one), request
        push(model)
        assert store.tidy(model) == digest_directory(one), request


def test_processes_that_push_the_same_bytes_at_once_end_in_one_version(store: RealStore, one: Path) -> None:
    digests = at_once(*[lambda: store.again().push(one, "fraud:v1").digest] * 3)
    assert digests == [digest_directory(one)] * 3
    assert store.tidy("fraud:v1") == digest_directory(one)


def test_processes_that_push_other_bytes_at_once_end_in_one_version_and_one_conflict(
    store: RealStore, one: Path, two: Path
) -> None:
    results = at_once(*[lambda source=source: store.again().push(source, "fraud:v1").digest for source in (one, two)])
    found = store.tidy("fraud:v1")
    assert sorted(str(type(result)) for result in results) == sorted(map(str, (str, VersionConflict)))
    assert found in results


# The calls themselves


def race(works: list[Callable[[], Any]]) -> list[Any]:
    """Call functions in threads that all start at the same moment."""
    barrier, found = threading.Barrier(len(works)), [None] * len(works)

    def run(number: int) -> None:
        barrier.wait()
        found[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_of_many_who_create_or_replace_at_once_one_wins(store: RealStore, storage: Storage) -> None:
    bucket = store.behind
    for number in range(5):
        key = f"models/race-{number}"
        made = race([partial(bucket.put, key, b"%d" % writer) for writer in range(8)])
        assert len([tag for tag in made if tag]) == 1
        if not storage.replaces_once:
            continue
        tag = next(tag for tag in made if tag)
        replaced = race([partial(bucket.put, key, b"%d" % writer, etag=tag) for writer in range(8)])
        assert len([tag for tag in replaced if tag]) == 1


def send(store: RealStore, key: str, upload_id: str, number: int, content: bytes) -> Stored:
    """Send a part."""
    bucket, sums = store.behind, Sums(content)
    address = bucket.address_part(key, upload_id, number, sums)
    answer = bucket.mover.put(address.url, lambda: io.BytesIO(content), len(content), address.headers)
    return bucket.receipt(key, upload_id, sums, address, answer, "sending")


def test_nobody_who_is_late_completes_an_upload_that_was_given_up(store: RealStore, part: int) -> None:
    bucket, key = store.behind, "models/late"
    sha256 = hashlib.sha256(b"").hexdigest()
    upload_id = bucket.begin(key, sha256)
    parts = {number: send(store, key, upload_id, number, b"%d" % number * part) for number in (1, 2)}
    assert bucket.uploads("models/", [key]) == [(key, upload_id)]
    assert {number: stored.size for number, stored in (bucket.parts(key, upload_id) or {}).items()} == {
        1: part,
        2: part,
    }
    bucket.abort(key, upload_id)
    with suppress(RegistryUnavailable):  # Ceph answers that it is completing it already, which it is not
        assert bucket.complete(key, upload_id, parts, sha256) is None
    assert bucket.head(key) is None
    assert bucket.uploads("models/", [key]) == []
    bucket.abort(key, upload_id)  # once more is fine


def test_an_upload_that_is_completed_twice_is_there_once(store: RealStore, part: int) -> None:
    bucket, key, sha256 = store.behind, "models/twice", hashlib.sha256(b"").hexdigest()
    upload_id = bucket.begin(key, sha256)
    parts = {1: send(store, key, upload_id, 1, b"1" * part), 2: send(store, key, upload_id, 2, b"end")}
    tag = bucket.complete(key, upload_id, parts, sha256)
    found = bucket.head(key)
    assert found
    assert (found.etag, found.size, found.sha256) == (tag, part + 3, sha256)
    assert bucket.complete(key, upload_id, parts, sha256) in (None, tag)
    assert bucket.head(key) == found

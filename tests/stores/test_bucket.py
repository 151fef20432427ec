"""What a model store in a bucket promises, on each storage: whatever is killed, meets another, or comes late."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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
from airflow_provider_modelsync.core.http.storage import SumRefused
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import Stored, Sums
from tests.core.processes import at_once
from tests.core.registries.modelstore.buckets import (
    KIB,
    BucketStore,
    at_every_step,
    is_killed_at,
    make,
    outcome,
)
from tests.core.stores import hidden, snapshot, was_skipped, write_tree
from tests.standins.http_server import After, Before
from tests.stores.storages import Storage

ONE = Control(workers=1)  # so that nothing else is under way when it is killed


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


def missing(store: BucketStore, model: str, source: Path, part: int) -> dict[str, int]:
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


@pytest.fixture
def one(tmp_path: Path, part: int) -> Path:
    return make(tmp_path, "one", part)


@pytest.fixture
def two(tmp_path: Path, part: int) -> Path:
    return make(tmp_path, "two", part)


@pytest.fixture
def large(tmp_path: Path, part: int) -> Path:
    """A model whose file goes up while it is hashed, where a storage can begin so."""
    return make(tmp_path, "large", 4 * part)


@pytest.fixture
def other(store: BucketStore) -> BucketStore:
    """The same store as another worker sees it."""
    return store.again()


# One after the other


def test_the_connection_test_finds_nothing_missing_and_leaves_nothing(store: BucketStore) -> None:
    said = store.test()
    assert store.root in said
    assert store.keys() == []
    assert store.uploads() == {}


def test_a_version_lives_its_life(store: BucketStore, tmp_path: Path, part: int) -> None:
    source = version(tmp_path, 1, part)
    pushed = store.push(source, "fraud:v1")
    assert pushed.uri == f"{store.root}/fraud/v1"
    assert was_skipped(store.push(source, "fraud:v1"))
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


def test_a_file_that_another_version_holds_is_copied(store: BucketStore, tmp_path: Path, part: int) -> None:
    store.push(version(tmp_path, 1, part), "fraud:v1")
    store.front.clear()
    store.push(version(tmp_path, 2, part), "fraud:v2")
    assert "fraud/v2/kept.bin" not in store.sent()
    assert store.tidy("fraud:v2") == digest_directory(tmp_path / "2")


def test_a_listing_of_many_pages_and_names_is_whole(store: BucketStore, tmp_path: Path) -> None:
    files = {f"layer {number:03}/ä&<é>{number}.txt": b"%d" % number for number in range(60)}
    store.push(write_tree(tmp_path / "source", files), "fraud:v1", control=Control(workers=8))
    store.pull("fraud:v1", tmp_path / "target", control=Control(workers=8))
    assert snapshot(tmp_path / "target") == snapshot(tmp_path / "source")


def test_damage_in_the_bucket_is_found_and_mended(store: BucketStore, one: Path, tmp_path: Path) -> None:
    store.push(one, "fraud:v1")
    store.put("fraud/v1/vocab.txt", b"eno")
    with pytest.raises(ModelSyncError):
        store.pull("fraud:v1", tmp_path / "target")
    store.push(one, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(one)


def test_a_path_that_a_storage_would_not_take_is_refused_before_anything_is_claimed(
    store: BucketStore, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "source", {"/".join("x" * 30 for _ in range(31)) + "/" + "y" * 50: b"x"})
    with pytest.raises(InvalidInput, match="key"):
        store.push(source, "fraud:v1")
    assert store.keys() == []


# Killed


@pytest.mark.row("P1", "P3")
def test_a_push_killed_at_any_write_is_finished_by_one_that_sends_only_what_is_missing(
    store: BucketStore, tmp_path: Path, part: int
) -> None:
    origin, source = version(tmp_path, 0, part), version(tmp_path, 1, part)
    steps = store.killed_at_each_write(
        lambda store, model: store.push(origin, model.replace(":v1", ":v0")),
        lambda store, model: store.push(source, model, control=ONE),
    )
    for what, found, model in steps:
        assert found.seen(model) in (None, digest_directory(source)), what
        expected = missing(found, model, source, part)
        found.front.clear()
        found.push(source, model, control=ONE)
        assert {key: size for key, size in found.sent().items() if "kept" not in key} == expected, what
        assert found.tidy(model) == digest_directory(source), what


@pytest.mark.row("P1", "P3")
def test_the_push_of_a_large_file_killed_at_any_write_is_finished_by_one_that_sends_only_what_is_missing(
    store: BucketStore, large: Path, part: int
) -> None:
    def push(store: BucketStore, model: str) -> None:
        store.push(large, model, control=ONE)

    for what, found, model in store.killed_at_each_write(lambda store, model: None, push):
        assert found.seen(model) in (None, digest_directory(large)), what
        expected = missing(found, model, large, part)
        found.front.clear()
        push(found.again(), model)
        assert found.sent() == expected, what
        assert found.tidy(model) == digest_directory(large), what


def test_other_bytes_are_published_by_force_after_a_kill_at_any_write_of_a_push(
    store: BucketStore, one: Path, two: Path
) -> None:
    steps = store.killed_at_each_write(
        lambda store, model: None, lambda store, model: store.push(one, model, control=ONE)
    )
    for what, found, model in steps:
        found.push(two, model, force=True)
        assert found.tidy(model) == digest_directory(two), what


def test_the_old_version_is_there_until_the_new_one_is_whatever_write_a_forced_push_is_killed_at(
    store: BucketStore, one: Path, two: Path
) -> None:
    (one / "old").write_bytes(b"of the old version alone")
    is_new = False
    steps = store.killed_at_each_write(
        lambda store, model: store.push(one, model, labels={"stage": "prod"}),
        lambda store, model: store.push(two, model, force=True, control=ONE),
    )
    for what, found, model in steps:
        digest = found.seen(model)
        assert digest == digest_directory(two) or (digest == digest_directory(one) and not is_new), what
        is_new = digest == digest_directory(two)
        if not is_new:
            assert found.get(model).labels == {"stage": "prod"}, what
        found.push(two, model, force=True)
        assert found.tidy(model) == digest_directory(two), what
        assert found.get(model).labels == {}, what


def test_a_killed_delete_is_finished_by_the_next_at_any_write(store: BucketStore, one: Path) -> None:
    gone = False
    steps = store.killed_at_each_write(
        lambda store, model: store.push(one, model, labels={"stage": "prod"}),
        lambda store, model: store.delete(model),
    )
    for what, found, model in steps:
        is_there = found.is_published(model)
        assert not (gone and is_there), what
        gone = not is_there
        assert found.delete(model) is is_there, what
        assert found.nothing(model), what
        found.push(one, model)
        assert found.tidy(model) == digest_directory(one), what
        assert found.get(model).labels == {}, what


@pytest.mark.parametrize("force", [False, True])
def test_a_killed_push_keeps_the_version_claimed_but_for_force(
    store: BucketStore, one: Path, two: Path, force: bool
) -> None:
    assert is_killed_at(store.front, lambda: store.again().push(one, "fraud:v1", control=ONE), "PUT", "weights", nth=2)
    if force:
        store.push(two, "fraud:v1", force=True)
        assert store.tidy("fraud:v1") == digest_directory(two)
    else:
        with pytest.raises(VersionConflict, match="force"):
            store.push(two, "fraud:v1")
        assert store.sent() == {}


def test_an_upload_begun_twice_goes_on_with_the_one_that_has_parts(
    store: BucketStore, tmp_path: Path, part: int
) -> None:
    source = version(tmp_path, 1, part)
    assert is_killed_at(
        store.front, lambda: store.again().push(source, "fraud:v1", control=ONE), "PUT", "weights", nth=2
    )
    expected = missing(store, "fraud:v1", source, part)
    for file in ("kept.bin", "weights größe.bin"):  # as a lost answer to the request for one leaves it
        store.behind.begin(f"models/fraud/v1/{file}", "0" * 64)
    store.push(source, "fraud:v1", control=ONE)
    assert {key: size for key, size in store.sent().items() if "kept" not in key} == expected
    assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.row("P2")
def test_a_killed_pull_is_finished_by_one_that_fetches_only_the_missing_pieces(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "LARGE", 96 * KIB)
    monkeypatch.setattr(large_files, "PIECE", 64 * KIB)
    source = write_tree(tmp_path / "source", {"large.bin": random.Random(1).randbytes(5 * 64 * KIB), "small": b"s"})
    store.push(source, "fraud:v1")
    target = tmp_path / "target"
    work = partial(store.again().pull, "fraud:v1", target, control=ONE)
    assert is_killed_at(store.front, work, "GET", "/fraud/v1/(large|small)", nth=4)
    pulled = store.pull("fraud:v1", target, control=ONE).version.transfer
    assert pulled
    # The small file comes first; the piece that was being answered is not there yet.
    assert (pulled.resumed_bytes, store.fetched("fraud/v1/large.bin")) == (2 * 64 * KIB, 3 * 64 * KIB)
    assert snapshot(target) == snapshot(source)
    assert hidden(target.parent) == []


# Two at once


@pytest.mark.row("D6")
def test_a_push_of_the_same_bytes_joins_at_every_step(store: BucketStore, other: BucketStore, one: Path) -> None:
    first, second = (partial(worker.push, one, control=ONE) for worker in (store, other))
    for model, request, mine, others in at_every_step(store, first, second):
        assert mine.digest == others.digest == store.tidy(model) == digest_directory(one), request


def test_a_push_of_other_bytes_beside_that_of_a_large_file_is_whole_or_a_conflict_at_every_step(
    store: BucketStore, other: BucketStore, large: Path, two: Path
) -> None:
    first, second = partial(store.push, large, control=ONE), partial(other.push, two, control=ONE)
    for model, request, mine, others in at_every_step(store, first, second):
        results = [mine, others]
        conflicts = [result for result in results if isinstance(result, ModelSyncError)]
        assert len(conflicts) == 1, request
        assert isinstance(conflicts[0], VersionConflict), request
        (published,) = (result.digest for result in results if result not in conflicts)
        assert store.tidy(model) == published, request


def test_a_forced_push_takes_over_at_every_step(store: BucketStore, other: BucketStore, one: Path, two: Path) -> None:
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


def test_a_delete_at_every_step_of_a_push_leaves_all_or_nothing(
    store: BucketStore, other: BucketStore, one: Path
) -> None:
    push = partial(store.push, one, control=ONE)
    for model, request, pushed, _ in at_every_step(store, push, other.delete):
        if isinstance(pushed, ModelSyncError):
            assert isinstance(pushed, Retryable), request
            assert store.seen(model) is None, request
        else:
            assert pushed.digest == digest_directory(one), request
        push(model)
        assert store.tidy(model) == digest_directory(one), request


def test_a_push_of_other_bytes_is_refused_by_a_claim_before_it_sends_anything(
    store: BucketStore, other: BucketStore, one: Path, two: Path
) -> None:
    heard: list[Any] = []
    store.front.fault("PUT", "weights", Before(lambda _: heard.append(outcome(partial(other.push, two), "fraud:v1"))))
    store.push(one, "fraud:v1", control=ONE)
    assert isinstance(heard[0], VersionConflict)
    assert digest_directory(one) in str(heard[0])
    assert digest_directory(two) in str(heard[0])
    assert sum(store.sent().values()) == sum(len(content) for _, content, _ in snapshot(one).values())
    assert store.tidy("fraud:v1") == digest_directory(one)


def test_a_reader_of_a_version_that_is_replaced_sees_the_old_or_the_new_at_every_step(
    store: BucketStore, one: Path, two: Path
) -> None:
    (one / "old.txt").write_text("of the old version alone")
    store.push(one, "fraud:v1")
    sights: list[str | None] = []
    store.front.fault("*", "", After(lambda _: sights.append(store.seen("fraud:v1"))), times=None)
    store.push(two, "fraud:v1", force=True)
    store.front.clear()
    order = [digest_directory(one), digest_directory(two)]
    assert sorted(sights, key=order.index) == sights
    assert set(sights) == set(order)


def test_a_late_object_of_a_loser_is_noticed_before_the_version_exists(
    store: BucketStore, one: Path, two: Path
) -> None:
    late = (one / "vocab.txt").read_bytes()
    store.front.fault("PUT", "weights", After(lambda _: store.put("fraud/v1/vocab.txt", late)), nth=2)
    store.push(two, "fraud:v1", control=ONE)
    assert store.tidy("fraud:v1") == digest_directory(two)


def test_what_a_push_that_was_taken_over_sends_late_changes_nothing(
    store: BucketStore, other: BucketStore, one: Path, two: Path, tmp_path: Path
) -> None:
    """Also when the bytes that it had found are there once more: tags alone prove nothing."""
    assert is_killed_at(store.front, lambda: other.push(two, "fraud:v1", control=ONE), "PUT", "weights", nth=2)
    store.front.fault("PUT", "vocab", Before(lambda _: other.push(two, "fraud:v1", force=True)))
    with pytest.raises(VersionConflict):
        store.push(one, "fraud:v1", control=ONE, force=True)
    assert store.tidy("fraud:v1") == digest_directory(two)
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(two)


def test_labels_set_on_old_bytes_never_land_on_new_ones(
    store: BucketStore, other: BucketStore, one: Path, two: Path
) -> None:
    set_them = partial(store.set_labels, labels={"stage": "prod"})
    replace_it = partial(other.push, two, force=True, labels={"approved": "nobody"})
    prepare = partial(store.push, one, labels={"approved": "alice"})
    for model, request, _, _ in at_every_step(store, set_them, replace_it, prepare):
        assert store.get(model).labels["approved"] == "nobody", request


def test_labels_changed_at_every_step_of_a_change_all_count(store: BucketStore, other: BucketStore, one: Path) -> None:
    mine, others = {"mine": "1"}, {"others": "2"}
    change, change_others = partial(store.set_labels, labels=mine), partial(other.set_labels, labels=others)
    for model, request, _, _ in at_every_step(store, change, change_others, partial(store.push, one)):
        assert store.get(model).labels == mine | others, request


def test_labels_changed_by_many_processes_at_once_all_count(store: BucketStore, one: Path) -> None:
    store.push(one, "fraud:v1")
    at_once(*[lambda key=key: store.again().set_labels("fraud:v1", {key: "1"}).labels for key in "abcd"])
    assert store.get("fraud:v1").labels == dict.fromkeys("abcd", "1")


@pytest.mark.row("D6")
def test_processes_that_push_the_same_bytes_at_once_end_in_one_version(store: BucketStore, one: Path) -> None:
    digests = at_once(*[lambda: store.again().push(one, "fraud:v1").digest] * 3)
    assert digests == [digest_directory(one)] * 3
    assert store.tidy("fraud:v1") == digest_directory(one)
    assert [found.version for found in store.list_versions("fraud")] == ["v1"]


@pytest.mark.row("D6")
def test_processes_that_push_other_bytes_at_once_end_in_one_version_and_one_conflict(
    store: BucketStore, one: Path, two: Path
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


def test_of_many_who_create_or_replace_at_once_one_wins(store: BucketStore, storage: Storage) -> None:
    bucket = store.behind
    for number in range(5):
        key = f"models/race-{number}"
        made = race([partial(bucket.put, key, b"%d" % writer) for writer in range(8)])
        assert len([tag for tag in made if tag]) == 1
        if not storage.replaces_once:
            continue
        tag = next(tag for tag in made if tag)
        # Other bytes, for a tag may be a sum: who puts the same bytes in their own place changes no tag.
        replaced = race([partial(bucket.put, key, b"again %d" % writer, etag=tag) for writer in range(8)])
        assert len([tag for tag in replaced if tag]) == 1


def send(store: BucketStore, key: str, upload_id: str, number: int, content: bytes) -> Stored:
    """Send a part; as a push does, once more with another sum where the first is not known."""
    bucket, sums = store.behind, Sums.of(content)

    def once() -> Stored:
        address = bucket.address_part(key, upload_id, number, sums)
        answer = bucket.mover.put(address.url, lambda: io.BytesIO(content), len(content), address.headers)
        return bucket.receipt(key, upload_id, sums, address, answer, "sending")

    try:
        return once()
    except SumRefused:
        return once()


def test_nobody_who_is_late_completes_an_upload_that_was_given_up(store: BucketStore, part: int) -> None:
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


def test_an_upload_that_is_completed_twice_is_there_once(store: BucketStore, part: int) -> None:
    bucket, key, sha256 = store.behind, "models/twice", hashlib.sha256(b"").hexdigest()
    upload_id = bucket.begin(key, sha256)
    parts = {1: send(store, key, upload_id, 1, b"1" * part), 2: send(store, key, upload_id, 2, b"end")}
    tag = bucket.complete(key, upload_id, parts, sha256)
    found = bucket.head(key)
    assert found
    assert (found.etag, found.size, found.sha256) == (tag, part + 3, sha256)
    assert bucket.complete(key, upload_id, parts, sha256) in (None, tag)
    assert bucket.head(key) == found

"""What a try leaves to the next one about a multipart upload: little, seldom written, and believed only if it fits."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import JsonValue

from airflow_provider_modelsync.core.transfer import checkpoint
from airflow_provider_modelsync.core.transfer.checkpoint import FLUSH_SECONDS, OpenUpload, UploadMemory

LIMIT = 16_000  # bytes that the store takes in one value
IDENTITY: dict[str, JsonValue] = {"ref": "digits:v1", "record": "abc", "layout": "f" * 64, "size": 123_456_789}
UPLOAD = OpenUpload("upload-1", 5 << 20)
HEADER = "upload.v1"


class Store:
    """A checkpoint store in memory that notes every write."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.written: list[str] = []

    def get(self, key: str) -> JsonValue:
        value: JsonValue = json.loads(self.values[key]) if key in self.values else None
        return value

    def set(self, key: str, value: JsonValue) -> None:
        text = json.dumps(value)
        assert len(text) < LIMIT
        self.values[key] = text
        self.written.append(key)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> Store:
    return Store()


def begun(store: Store | None, parts: int, *, clock: Callable[[], float] | None = None) -> UploadMemory:
    """Return the memory of an upload that was just begun; without a clock every part is written at once."""
    memory = UploadMemory(store, clock=clock) if clock else UploadMemory(store, flush_seconds=0)
    memory.begin(IDENTITY, UPLOAD, parts)
    if store:
        store.written.clear()
    return memory


def recalled(store: Store, **other: JsonValue) -> tuple[OpenUpload | None, dict[int, str]]:
    """Return what the next try finds."""
    memory = UploadMemory(store)
    upload = memory.recall({**IDENTITY, **other})
    return upload, memory.parts


# --- what comes back -------------------------------------------------------------------------------------------------


def test_the_next_try_finds_the_upload_and_its_parts(store: Store) -> None:
    memory = begun(store, 3)
    memory.add(1, '"a"')
    memory.add(3, '"c"')
    assert recalled(store) == (UPLOAD, {1: '"a"', 3: '"c"'})


def test_an_upload_without_a_finished_part_is_taken_up_too(store: Store) -> None:
    begun(store, 3)
    assert recalled(store) == (UPLOAD, {})


def test_parts_finished_in_any_order_come_back(store: Store) -> None:
    memory = begun(store, 600)
    numbers = random.Random(7).sample(range(1, 601), 600)
    for number in numbers[:400]:
        memory.add(number, f'"{number}"')
    assert recalled(store) == (UPLOAD, {number: f'"{number}"' for number in numbers[:400]})


@pytest.mark.parametrize("etag", ['"plain"', '"üñí"', "no quotes", '"with \\" and \\\\"', "'", '"a-10000"'])
def test_etags_come_back_verbatim(store: Store, etag: str) -> None:
    begun(store, 1).add(1, etag)
    assert recalled(store)[1] == {1: etag}


@pytest.mark.parametrize(
    "other",
    [
        {"ref": "digits:v2"},
        {"record": "another"},
        {"layout": "0" * 64},
        {"size": 123_456_790},
        {"size": "123456789"},
        {"more": None},
    ],
)
def test_an_upload_of_anything_else_is_forgotten(store: Store, other: dict[str, JsonValue]) -> None:
    begun(store, 300).add(300, '"x"')
    assert recalled(store, **other) == (None, {})
    assert store.values == {}


def test_an_identity_that_lacks_something_does_not_fit(store: Store) -> None:
    begun(store, 1)
    assert UploadMemory(store).recall({"ref": "digits:v1"}) is None
    assert store.values == {}


def test_beginning_again_forgets_the_parts_of_before(store: Store) -> None:
    memory = begun(store, 600)
    memory.add(600, '"old"')
    memory.begin(IDENTITY, OpenUpload("upload-2", 6 << 20), 2)
    memory.add(1, '"new"')
    assert recalled(store) == (OpenUpload("upload-2", 6 << 20), {1: '"new"'})
    assert sorted(store.values) == [HEADER, f"{HEADER}.parts.0"]


def test_without_a_store_parts_are_known_for_this_try_only() -> None:
    memory = begun(None, 3)
    memory.add(2, '"b"')
    memory.flush()
    assert memory.parts == {2: '"b"'}
    assert not memory.is_kept
    assert UploadMemory(None).recall(IDENTITY) is None
    memory.forget()
    assert memory.parts == {}


def test_with_a_store_it_is_kept(store: Store) -> None:
    assert UploadMemory(store).is_kept


# --- when and what is written ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_256_parts_share_a_key(store: Store) -> None:
    memory = begun(store, 513)
    for number in range(1, 514):
        memory.add(number, '"x"')
    sizes = {key: len(json.loads(value)) for key, value in store.values.items() if key != HEADER}
    assert sizes == {f"{HEADER}.parts.0": 256, f"{HEADER}.parts.1": 256, f"{HEADER}.parts.2": 1}


def test_only_keys_with_new_parts_are_written_again(store: Store) -> None:
    clock = Clock()
    memory = begun(store, 1000, clock=clock)
    for number in (1, 256, 257, 900):
        memory.add(number, '"x"')
    memory.flush()
    assert store.written == [f"{HEADER}.parts.{index}" for index in (0, 1, 3)]
    store.written.clear()
    memory.add(300, '"y"')
    memory.flush()
    memory.flush()
    assert store.written == [f"{HEADER}.parts.1"]


def test_parts_are_written_at_most_every_few_seconds(store: Store) -> None:
    clock = Clock()
    memory = begun(store, 100, clock=clock)
    memory.add(1, '"1"')
    clock.now += FLUSH_SECONDS - 0.001
    memory.add(2, '"2"')
    assert store.written == []
    clock.now += 0.001
    memory.add(3, '"3"')
    assert store.written == [f"{HEADER}.parts.0"]
    assert recalled(store)[1] == {1: '"1"', 2: '"2"', 3: '"3"'}
    memory.add(4, '"4"')
    clock.now += FLUSH_SECONDS - 0.001
    memory.add(5, '"5"')
    assert len(store.written) == 1
    clock.now += 0.001
    memory.add(6, '"6"')
    assert len(store.written) == 2


@pytest.mark.slow
def test_a_long_upload_makes_few_writes(store: Store) -> None:
    clock = Clock()
    memory = begun(store, 10_000, clock=clock)
    for number in range(1, 10_001):
        clock.now += 0.1
        memory.add(number, '"x"')
    seconds = 10_000 * 0.1
    # The second term: two keys change between two writes whenever the numbers pass from one key to the next.
    assert seconds / FLUSH_SECONDS * 0.9 <= len(store.written) <= seconds / FLUSH_SECONDS + 40


def test_the_interval_is_the_modules_when_none_is_given(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FLUSH_SECONDS", 0.0)
    memory = UploadMemory(store, clock=Clock())
    memory.begin(IDENTITY, UPLOAD, 1)
    memory.add(1, '"x"')
    assert recalled(store)[1] == {1: '"x"'}


def test_flushing_writes_what_is_not_written_yet(store: Store) -> None:
    memory = begun(store, 10, clock=Clock())
    memory.add(9, '"x"')
    assert recalled(store) == (UPLOAD, {})
    memory.flush()
    assert recalled(store) == (UPLOAD, {9: '"x"'})


@pytest.mark.parametrize("length", [32, 34])
def test_the_most_parts_with_usual_etags_are_all_kept(store: Store, length: int) -> None:
    memory = begun(store, 10_000, clock=Clock())
    etag = f'"{"f" * length}"'
    for number in range(1, 10_001):
        memory.add(number, etag)
    memory.flush()
    assert recalled(store) == (UPLOAD, dict.fromkeys(range(1, 10_001), etag))  # the store refuses values too large


@pytest.mark.parametrize("etag", [f'"{"f" * 64}"', f'"{"é" * 64}"', '"' * 128, "x" * 1000])
def test_the_most_parts_with_long_etags_are_kept_as_far_as_values_may_grow(store: Store, etag: str) -> None:
    memory = begun(store, 10_000, clock=Clock())
    for number in range(1, 10_001):
        memory.add(number, etag)
    memory.flush()
    upload, parts = recalled(store)
    assert upload == UPLOAD
    assert set(parts.values()) == {etag}
    assert len(parts) * (len(json.dumps(etag)) + 9) > 0.8 * 40 * 15_000
    assert memory.parts == dict.fromkeys(range(1, 10_001), etag)  # this try needs all of them


def test_a_single_etag_larger_than_a_value_is_not_kept(store: Store) -> None:
    memory = begun(store, 2)
    memory.add(1, "x" * LIMIT)
    assert recalled(store) == (UPLOAD, {})
    assert memory.parts == {1: "x" * LIMIT}


# --- forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 256, 257, 10_000])
def test_forgetting_removes_every_key(store: Store, parts: int) -> None:
    memory = begun(store, parts)
    for number in {1, parts // 2, parts} - {0}:
        memory.add(number, '"x"')
    memory.forget()
    assert store.values == {}
    assert memory.parts == {}


def test_a_later_try_forgets_what_an_earlier_one_wrote(store: Store) -> None:
    memory = begun(store, 10_000)
    for number in (1, 5_000, 10_000):
        memory.add(number, '"x"')
    UploadMemory(store).forget()
    assert store.values == {}


def test_what_was_forgotten_is_not_written_after_all(store: Store) -> None:
    memory = begun(store, 10, clock=Clock())
    memory.add(1, '"x"')
    memory.forget()
    memory.flush()
    assert store.values == {}


def test_an_interrupted_forgetting_can_be_completed(store: Store) -> None:
    """The header says which keys there are, so it goes last."""
    memory = begun(store, 600)
    for number in (1, 300, 600):
        memory.add(number, '"x"')
    real, left = store.delete, 2

    def delete(key: str) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(key)

    store.delete = delete  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        memory.forget()
    store.delete = real  # type: ignore[method-assign]
    assert HEADER in store.values
    UploadMemory(store).forget()
    assert store.values == {}


def test_other_keys_are_left_alone(store: Store) -> None:
    store.set("digests.v1", {"a": "b"})
    memory = begun(store, 3)
    memory.add(1, '"x"')
    memory.forget()
    assert list(store.values) == ["digests.v1"]


# --- what cannot be believed -----------------------------------------------------------------------------------------

JUNK: list[Any] = [0, 7, -1, 1.5, True, False, "", "text", [], ["a"], {}, {"a": {"b": None}}, "9" * 5000, 10**30, 2**63]


def header(**fields: Any) -> dict[str, Any]:
    return {"identity": IDENTITY, "upload_id": "upload-1", "part_size": 5 << 20, "keys": 1, **fields}


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
def test_junk_instead_of_a_header_is_nothing_remembered(store: Store, junk: Any) -> None:
    store.set(HEADER, junk)
    assert recalled(store) == (None, {})
    assert store.values == {}


@pytest.mark.parametrize("field", ["identity", "upload_id", "part_size"])
def test_a_header_that_lacks_a_field_is_discarded(store: Store, field: str) -> None:
    store.set(HEADER, {key: value for key, value in header().items() if key != field})
    assert recalled(store) == (None, {})
    assert store.values == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("identity", junk) for junk in (None, *JUNK)),
        *(("upload_id", junk) for junk in (None, "", 7, True, ["a"], {})),
        *(("part_size", junk) for junk in (None, 0, -1, -(5 << 20), 5242880.0, True, "5242880", [5 << 20], {})),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_header_with_a_field_of_no_sense_is_discarded(store: Store, field: str, value: Any) -> None:
    store.set(HEADER, header(**{field: value}))
    store.set(f"{HEADER}.parts.0", {"1": '"x"'})
    assert recalled(store) == (None, {})
    assert store.values == {}


@pytest.mark.parametrize("keys", [None, *JUNK], ids=lambda junk: repr(junk)[:20])
def test_a_count_of_keys_of_no_sense_costs_no_more_than_the_parts(store: Store, keys: Any) -> None:
    store.set(HEADER, header(keys=keys))
    store.set(f"{HEADER}.parts.0", {"1": '"x"'})
    upload, parts = recalled(store)
    assert upload == UPLOAD
    assert parts in ({}, {1: '"x"'})


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
def test_junk_instead_of_parts_costs_those_parts(store: Store, junk: Any) -> None:
    memory = begun(store, 300)
    memory.add(1, '"1"')
    memory.add(300, '"300"')
    store.set(f"{HEADER}.parts.0", junk)
    assert recalled(store) == (UPLOAD, {300: '"300"'})


def test_a_lost_key_costs_its_parts(store: Store) -> None:
    memory = begun(store, 300)
    memory.add(1, '"1"')
    memory.add(300, '"300"')
    store.delete(f"{HEADER}.parts.1")
    assert recalled(store) == (UPLOAD, {1: '"1"'})


@pytest.mark.parametrize(
    "number", ["0", "-1", "+2", "01", " 3", "4 ", "²", "٣", "1.0", "1e0", "", "x", "257", "10001", "9" * 5000]
)
def test_numbers_that_no_part_of_that_key_has_are_ignored(store: Store, number: str) -> None:
    begun(store, 10_000).add(5, '"5"')
    store.set(f"{HEADER}.parts.0", {"5": '"5"', number: '"x"'})
    assert recalled(store) == (UPLOAD, {5: '"5"'})


@pytest.mark.parametrize("etag", [None, "", 0, 7, 1.5, True, [], ["a"], {}, {"a": "b"}], ids=repr)
def test_etags_that_are_none_are_ignored(store: Store, etag: Any) -> None:
    begun(store, 2).add(2, '"2"')
    store.set(f"{HEADER}.parts.0", {"1": etag, "2": '"2"'})
    assert recalled(store) == (UPLOAD, {2: '"2"'})


# --- many threads ----------------------------------------------------------------------------------------------------


def test_parts_noted_by_many_threads_at_once_are_all_kept(store: Store) -> None:
    threads, each = 16, 64
    memory = begun(store, threads * each)
    barrier = threading.Barrier(threads)

    def work(index: int) -> None:
        barrier.wait()
        for number in range(index + 1, threads * each + 1, threads):
            memory.add(number, f'"{number}"')

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert recalled(store) == (UPLOAD, {number: f'"{number}"' for number in range(1, threads * each + 1)})


def test_the_store_is_written_by_one_thread_at_a_time(store: Store) -> None:
    memory = begun(store, 64)
    real, inside, overlaps = store.set, threading.Lock(), []

    def slow(key: str, value: JsonValue) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(key)
            return
        try:
            threading.Event().wait(0.002)
            real(key, value)
        finally:
            inside.release()

    store.set = slow  # type: ignore[method-assign]
    workers = [threading.Thread(target=memory.add, args=(number, '"x"')) for number in range(1, 65)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not overlaps
    assert len(recalled(store)[1]) == 64

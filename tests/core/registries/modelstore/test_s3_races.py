"""Writers of one version in a bucket who meet: one version comes of it, whole, and whoever loses hears of it.

"At every step" means that everything another does falls between two requests of the first, or between the arrival
of one and its being served.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Retryable,
    VersionConflict,
)
from airflow_provider_modelsync.core.registries.modelstore import store as modelstore_store
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import at_once
from tests.core.registries.modelstore.buckets import (
    CLAIM,
    LABELS,
    MANIFEST,
    PART,
    BucketStore,
    body_bytes,
    bucket_store,
)
from tests.core.stores import snapshot, write_tree
from tests.standins.s3 import After, Before, Request, Respond
from tests.standins.s3_quirks import Quirk
from tests.support.steps import some_of

pytestmark = pytest.mark.faults

ONE = Control(workers=1)


@pytest.fixture
def store(small_parts: None, no_waiting: None) -> Iterator[BucketStore]:
    with bucket_store() as store:
        yield store


def make(root: Path, text: str) -> Path:
    """Write a model with a file that goes in parts and one that does not."""
    files = {"weights.bin": random.Random(text).randbytes(PART + 9), "vocab.txt": text.encode()}
    return write_tree(root / text, files)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return make(tmp_path, "two")


Step = Callable[[str], Any]


def at_every_step(store: BucketStore, first: Step, second: Step) -> Iterator[tuple[str, str, Any, Any]]:
    """Let the second run as a whole before the first's n-th request is served, each time on a model of its own.

    Yields the model, the request, and what became of both: what they returned or raised.
    """
    for nth in some_of(count(1)):
        model, seconds, requests = f"fraud-{nth}:v1", [], []
        store.s3.clear()

        def meet(request: Request) -> None:
            requests.append(f"{request.operation} {request.key}")  # noqa: B023
            seconds.append(outcome(second, model))  # noqa: B023

        store.s3.fault("*", f"/fraud-{nth}/|^$", Before(meet), nth=nth)
        result = outcome(first, model)
        if not seconds:
            assert nth > 3
            return
        yield model, requests[0], result, seconds[0]


def outcome(step: Step, model: str) -> Any:
    try:
        return step(model)
    except ModelSyncError as error:
        return error


@pytest.fixture
def other(store: BucketStore) -> BucketStore:
    """The same store as another worker sees it."""
    return store.again()


# Claims


def test_a_listing_that_is_behind_never_lets_a_published_version_be_claimed_again(
    store: BucketStore, other: BucketStore, one: Path, two: Path
) -> None:
    published = store.push(one, "fraud:v1")
    hidden = store.content("fraud/.modelsync/v1.json")
    store.s3.quirks.append(Quirk("a cache before a storage", rewrite=_without(rb"v1\.json")))
    with pytest.raises(RegistryUnavailable, match="does not list that yet"):
        other.push(two, "fraud:v1")
    store.s3.quirks.clear()
    assert store.content("fraud/.modelsync/v1.json") == hidden
    assert store.tidy("fraud:v1") == published.digest


def _without(name: bytes) -> Callable[[Request, bytes], bytes]:
    """Return what a listing is made into that leaves a name out."""

    def rewrite(request: Request, xml: bytes) -> bytes:
        is_list = request.operation == "ListObjectsV2"
        return (
            re.sub(rb"<Contents>(?:(?!</Contents>).)*?" + name + rb"</Key>.*?</Contents>", b"", xml) if is_list else xml
        )

    return rewrite


def test_a_push_of_other_bytes_is_refused_by_a_claim_before_it_sends_anything(
    store: BucketStore, other: BucketStore, one: Path, two: Path
) -> None:
    heard: list[Any] = []
    store.s3.fault("UploadPart", "", Before(lambda _: heard.append(outcome(partial(other.push, two), "fraud:v1"))))
    store.push(one, "fraud:v1", control=ONE)
    assert isinstance(heard[0], VersionConflict)
    assert digest_directory(one) in str(heard[0])
    assert digest_directory(two) in str(heard[0])
    assert body_bytes(store.s3) == sum(len(content) for _, content, _ in snapshot(one).values())
    assert store.tidy("fraud:v1") == digest_directory(one)


@pytest.mark.row("D6")
def test_a_push_of_the_same_bytes_joins_at_every_step(store: BucketStore, other: BucketStore, one: Path) -> None:
    first, second = (partial(worker.push, one, control=ONE) for worker in (store, other))
    for model, request, mine, others in at_every_step(store, first, second):
        assert mine.digest == others.digest == store.tidy(model) == digest_directory(one), request


def test_a_forced_push_takes_over_at_every_step(store: BucketStore, other: BucketStore, one: Path, two: Path) -> None:
    first = partial(store.push, one, control=ONE)
    second = partial(other.push, two, control=ONE, force=True)
    lost = 0
    for model, request, mine, others in at_every_step(store, first, second):
        assert others.digest == digest_directory(two), request
        found = store.tidy(model)
        if isinstance(mine, ModelSyncError):
            lost += 1
            assert isinstance(mine, VersionConflict), request
            assert found == digest_directory(two), request
        else:  # it came first
            assert (mine.digest, found) == (digest_directory(one), digest_directory(two)), request
    assert lost > 1


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
            assert store.seen(model) or ".modelsync" in request or "List" in request, request
        push(model)
        assert store.tidy(model) == digest_directory(one)


def test_a_reader_of_a_version_that_is_replaced_sees_the_old_or_the_new_at_every_step(
    store: BucketStore, one: Path, two: Path
) -> None:
    (one / "old.txt").write_text("of the old version alone")
    store.push(one, "fraud:v1")
    sights: list[str | None] = []
    for when in (Before, After):
        store.s3.fault("*", "", when(lambda _: sights.append(store.seen("fraud:v1"))), times=None)
    store.push(two, "fraud:v1", force=True)
    store.s3.clear()
    order = [digest_directory(one), digest_directory(two)]
    assert sorted(sights, key=order.index) == sights
    assert set(sights) == set(order)


@pytest.mark.row("D6")
def test_two_processes_pushing_the_same_bytes_at_once_end_in_one_version(store: BucketStore, one: Path) -> None:
    digests = at_once(*[lambda: store.again().push(one, "fraud:v1").digest] * 2)
    assert digests == [digest_directory(one)] * 2
    assert store.tidy("fraud:v1") == digest_directory(one)
    assert [version.version for version in store.list_versions("fraud")] == ["v1"]


@pytest.mark.row("D6")
def test_two_processes_pushing_other_bytes_at_once_end_in_one_version_and_one_conflict(
    store: BucketStore, one: Path, two: Path
) -> None:
    results = at_once(*[lambda source=source: store.again().push(source, "fraud:v1").digest for source in (one, two)])
    found = store.tidy("fraud:v1")
    assert sorted(str(type(result)) for result in results) == sorted(map(str, (str, VersionConflict)))
    assert found in results


def test_a_late_object_of_a_loser_is_noticed_before_the_version_exists(
    store: BucketStore, one: Path, two: Path
) -> None:
    late = (one / "vocab.txt").read_bytes()
    store.s3.fault("CompleteMultipartUpload", "", After(lambda _: store.put("fraud/v1/vocab.txt", late)))
    store.push(two, "fraud:v1", control=ONE)
    assert store.tidy("fraud:v1") == digest_directory(two)


def test_what_a_push_that_was_taken_over_sends_late_changes_nothing(
    store: BucketStore, other: BucketStore, one: Path, two: Path, tmp_path: Path
) -> None:
    """Also when the bytes that it had found are there once more: tags alone prove nothing."""
    store.s3.fault("UploadPart", "", Respond(500), times=5)
    with pytest.raises(RegistryUnavailable):
        other.push(two, "fraud:v1", control=ONE)  # killed, with some of its bytes there
    store.s3.clear()
    store.s3.fault("PutObject", "vocab", Before(lambda _: other.push(two, "fraud:v1", force=True)))
    with pytest.raises(VersionConflict):
        store.push(one, "fraud:v1", control=ONE, force=True)
    assert store.tidy("fraud:v1") == digest_directory(two)
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(two)


@pytest.mark.row("P13")
def test_cleaning_up_never_takes_back_what_another_push_of_the_same_bytes_has_published(
    store: BucketStore, other: BucketStore, one: Path
) -> None:
    def fails(model: str) -> Any:
        store.s3.fault("CompleteMultipartUpload", model.partition(":")[0], Respond(403, "AccessDenied"), times=None)
        return store.push(one, model, control=Control(workers=1, is_last_try=True))

    def second(model: str) -> Any:
        store.s3.faults.clear()
        return other.push(one, model, control=ONE)

    for model, request, _, others in at_every_step(store, fails, second):
        assert others.digest == store.seen(model) == digest_directory(one), request


def test_labels_set_on_old_bytes_never_land_on_new_ones(
    store: BucketStore, other: BucketStore, one: Path, two: Path
) -> None:
    for number in range(1, 10):
        store.push(one, f"fraud-{number}:v1", labels={"approved": "alice"})
    replace_it = partial(other.push, two, force=True, labels={"approved": "nobody"})
    for model, request, _, _ in at_every_step(store, partial(store.set_labels, labels={"stage": "prod"}), replace_it):
        assert store.get(model).labels["approved"] == "nobody", request


def test_labels_changed_at_every_step_of_a_change_all_count(store: BucketStore, other: BucketStore, one: Path) -> None:
    for number in range(1, 10):
        store.push(one, f"fraud-{number}:v1")
    mine, others = ({"mine": "1"}, {"others": "2"})
    for model, request, _, _ in at_every_step(
        store, partial(store.set_labels, labels=mine), partial(other.set_labels, labels=others)
    ):
        assert store.get(model).labels == mine | others, request


def test_labels_changed_by_many_processes_at_once_all_count(store: BucketStore, one: Path) -> None:
    store.push(one, "fraud:v1")
    at_once(*[lambda key=key: store.again().set_labels("fraud:v1", {key: "1"}).labels for key in "abcd"])
    assert store.get("fraud:v1").labels == dict.fromkeys("abcd", "1")


# Conditions


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_the_connection_test_refuses_a_storage_that_ignores_conditions(store: BucketStore, header: str) -> None:
    def ignore(request: Any, **_: Any) -> None:
        del request.headers[header]

    session = boto3.Session(store.s3.access_key, store.s3.secret_key)
    session.events.register("before-sign.s3.PutObject", ignore)
    with pytest.raises(NotSupported, match=f"ignores {header}"):
        replace(store, session=lambda: session).test()
    assert store.keys() == []


def test_the_connection_test_passes_and_leaves_nothing(store: BucketStore) -> None:
    assert f"s3://{store.s3.bucket}/models/" in store.test()
    assert store.keys() == []


def test_connection_tests_do_not_disturb_each_other(store: BucketStore, other: BucketStore) -> None:
    for nth in range(1, 6):
        store.s3.clear()
        store.s3.fault("*", "", Before(lambda _: other.test()), nth=nth)
        store.test()


def test_a_conflict_of_conditional_writes_is_tried_again(store: BucketStore, one: Path) -> None:
    for key in (CLAIM, MANIFEST, LABELS):
        store.s3.fault("PutObject", key, Respond(409, "ConditionalRequestConflict"))
    store.push(one, "fraud:v1")
    store.set_labels("fraud:v1", {"stage": "prod"})
    assert store.tidy("fraud:v1") == digest_directory(one)


def test_a_storage_without_conditional_writes_is_named_as_such(store: BucketStore, one: Path) -> None:
    store.s3.fault("PutObject", CLAIM, Respond(501, "NotImplemented"), times=None)
    with pytest.raises(NotSupported, match=r"NotImplemented.*needs conditional writes"):
        store.push(one, "fraud:v1")
    assert store.keys() == []


def test_a_storage_that_contradicts_itself_is_given_up(
    store: BucketStore, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelstore_store, "_ROUNDS", 3)
    store.s3.fault("PutObject", CLAIM, Respond(412, "PreconditionFailed"), times=None)
    with pytest.raises(RegistryUnavailable, match="changes hands"):
        store.push(one, "fraud:v1")
    assert store.s3.count("PutObject", CLAIM) == 3

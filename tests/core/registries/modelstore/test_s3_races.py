"""Writers who meet in a bucket, as far as S3 decides about it; ``tests/stores`` has what all storages promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.registries.modelstore import store as modelstore_store
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.modelstore.buckets import (
    CLAIM,
    LABELS,
    MANIFEST,
    BucketStore,
    at_every_step,
    make,
)
from tests.standins.s3 import Before, Request, Respond
from tests.standins.s3_quirks import Quirk

pytestmark = pytest.mark.faults

ONE = Control(workers=1)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return make(tmp_path, "two")


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

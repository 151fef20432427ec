"""The storages that the model store's one suite runs on: each a real server, with a proxy before it that sees all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.base import Bucket
from tests.core.registries.modelstore.buckets import KIB, BucketStore, bucket_store
from tests.services import azurite
from tests.services.ceph_rgw import rgw
from tests.services.s3 import S3Service
from tests.services.s3_servers import running_ministack
from tests.standins.gcs import GcsStandIn
from tests.standins.tap import Tap

Opened = Callable[[], AbstractContextManager[BucketStore]]  # opens a model store in a new place


@dataclass(frozen=True)
class Place:
    """An empty place in a storage.

    :param root: the root of a model store in it.
    :param endpoint: URL of the storage.
    :param fields: of the connection, besides.
    """

    root: str
    endpoint: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Storage:
    """A kind of storage.

    :param running: runs it, and returns what makes a new place in it.
    :param marks: of all tests with it.
    :param is_here: whether it runs in the tests' own process, where nothing is worth waiting for.
    :param replaces_once: whether of many who replace one object at once one wins. A model store replaces none.
    """

    running: Callable[[], AbstractContextManager[Opened]]
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.stores,)
    is_here: bool = False
    replaces_once: bool = True


@contextmanager
def _moto() -> Iterator[Opened]:
    yield bucket_store


@contextmanager
def _azurite() -> Iterator[Opened]:
    service = azurite.shared()

    def new() -> Place:
        root = f"abfs://{service.new_container()}@{service.account}/models"
        return Place(root, service.url, {"password": service.key})

    yield lambda: store_in(new())


def _in_s3(service: S3Service) -> Place:
    keys = {"login": service.access_key, "password": service.secret_key, "region_name": "us-east-1"}
    return Place(f"s3://{service.new_bucket()}/models", service.endpoint, keys)


@contextmanager
def _ceph() -> Iterator[Opened]:
    yield lambda: store_in(_in_s3(rgw()))


@contextmanager
def _ministack() -> Iterator[Opened]:
    with running_ministack() as service:
        yield lambda: store_in(_in_s3(service))


@contextmanager
def _gcs() -> Iterator[Opened]:
    with GcsStandIn(page=50, rewritten=64 * KIB, smallest_part=16 * KIB) as gcs:
        key = json.dumps(gcs.key_file())
        yield lambda: store_in(Place(f"gs://{gcs.new_bucket()}/models", gcs.url, {"password": key}))


STORAGES: Mapping[str, Storage] = {
    "moto": Storage(_moto, marks=(pytest.mark.faults,), is_here=True),
    "azurite": Storage(_azurite),
    "gcs": Storage(_gcs, is_here=True),
    "ceph": Storage(_ceph, marks=(pytest.mark.s3,), replaces_once=False),
    "ministack": Storage(_ministack),
}


@dataclass(frozen=True)
class RealStore(BucketStore):
    """A model store in a real storage, as one worker sees it.

    The fields of :class:`BucketStore` are the tap in the place of the stand-in, and all fields of the connection.

    :param direct: the same connection past the tap.
    """

    direct: Mapping[str, Any] | None = None

    @property
    def root(self) -> str:
        return str(self.fields["host"])

    @cached_property
    def registry(self) -> ModelStore:
        return ModelStore(BucketSettings.read("bucket", self.fields))

    @cached_property
    def behind(self) -> Bucket:
        """The bucket itself."""
        store: Any = ModelStore(BucketSettings.read("bucket", self.direct or {}))._store
        bucket: Bucket = store._bucket
        return bucket

    def again(self, **fields: Any) -> RealStore:
        return RealStore(self.s3, {**self.fields, **fields}, direct=self.direct)

    def keys(self, prefix: str = "") -> list[str]:
        return [found.key.removeprefix("models/") for found in self.behind.objects(f"models/{prefix}")]

    def content(self, key: str) -> bytes:
        found = self.behind.get(f"models/{key}")
        assert found, key
        return found.content

    def put(self, key: str, content: bytes) -> None:
        self.remove(key)
        assert self.behind.put(f"models/{key}", content)

    def remove(self, key: str) -> None:
        self.behind.delete(f"models/{key}")

    def uploads(self, prefix: str = "") -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for key, upload_id in self.behind.uploads(f"models/{prefix}"):
            parts = self.behind.parts(key, upload_id) or {}
            sizes = {number: part.size for number, part in parts.items()}
            found.setdefault(key.removeprefix("models/"), {}).update(sizes)
        return found


@contextmanager
def store_in(place: Place) -> Iterator[RealStore]:
    """Have a model store in an empty place, with a tap before it."""
    url = urlsplit(place.endpoint)
    with Tap(f"{url.scheme}://{url.netloc}") as tap:
        usual = {"host": place.root, "part_size_mib": 5, **place.fields}
        tapped = {**usual, "endpoint_url": f"{tap.url}{url.path}"}
        yield RealStore(cast(Any, tap), tapped, direct={**usual, "endpoint_url": place.endpoint})

"""The storages that the model store's one suite runs on: each a real server, with a proxy before it that sees all."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.base import Bucket
from tests.core.registries.modelstore.buckets import KIB, BucketStore
from tests.services import azurite
from tests.services.ceph_rgw import rgw
from tests.services.s3 import S3Service
from tests.services.s3_servers import running_ministack
from tests.standins.gcs import GcsStandIn
from tests.standins.tap import After, Request, Tap

MIB = 1 << 20


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
    :param smallest_part: bytes of the parts of an upload that it takes.
    :param mark: the mark of all tests with it.
    :param replaces_once: whether of many who replace one object at once one wins. A model store replaces none.
    """

    running: Callable[[], AbstractContextManager[Callable[[], Place]]]
    smallest_part: int = 16 * KIB
    mark: str = "stores"
    replaces_once: bool = True


@contextmanager
def _azurite() -> Iterator[Callable[[], Place]]:
    service = azurite.shared()

    def new() -> Place:
        root = f"abfs://{service.new_container()}@{service.account}/models"
        return Place(root, service.url, {"password": service.key})

    yield new


def _in_s3(service: S3Service) -> Place:
    keys = {"login": service.access_key, "password": service.secret_key, "region_name": "us-east-1"}
    return Place(f"s3://{service.new_bucket()}/models", service.endpoint, keys)


@contextmanager
def _ceph() -> Iterator[Callable[[], Place]]:
    yield lambda: _in_s3(rgw())


@contextmanager
def _ministack() -> Iterator[Callable[[], Place]]:
    with running_ministack() as service:
        yield lambda: _in_s3(service)


@contextmanager
def _gcs() -> Iterator[Callable[[], Place]]:
    with GcsStandIn(page=50, rewritten=64 * KIB, smallest_part=16 * KIB) as gcs:
        key = json.dumps(gcs.key_file())
        yield lambda: Place(f"gs://{gcs.new_bucket()}/models", gcs.url, {"password": key})


STORAGES: Mapping[str, Storage] = {
    "azurite": Storage(_azurite),
    "gcs": Storage(_gcs),
    "ceph": Storage(_ceph, smallest_part=MIB, mark="s3", replaces_once=False),
    "ministack": Storage(_ministack, smallest_part=MIB),
}


@dataclass(frozen=True)
class RealStore(BucketStore):
    """A model store in a real storage, as one worker sees it.

    The fields of :class:`BucketStore` are the tap in the place of the stand-in, and all fields of the connection.

    :param direct: the same connection past the tap.
    """

    direct: Mapping[str, Any] | None = None

    @property
    def tap(self) -> Tap:
        """The proxy before the storage."""
        return cast(Tap, self.s3)

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

    def sent(self) -> dict[str, int]:
        """Bytes of each file that went up and were taken."""
        found: dict[str, int] = {}
        for request in self.tap.find("PUT"):
            key = request.path.partition("/models/")[2]
            is_file = "/.modelsync" not in request.path and request.query.get("comp") in (None, "block")
            if is_file and request.received and 200 <= request.status < 300:
                found[key] = found.get(key, 0) + request.received
        return found

    def fetched(self, key: str) -> int:
        """Bytes of a file that came down."""
        return sum(request.sent for request in self.tap.find("GET", f"/models/{key}") if request.status in (200, 206))


@contextmanager
def store_in(place: Place, part_size_mib: int) -> Iterator[RealStore]:
    """Have a model store in an empty place, with a tap before it."""
    url = urlsplit(place.endpoint)
    with Tap(f"{url.scheme}://{url.netloc}") as tap:
        usual = {"host": place.root, "part_size_mib": part_size_mib, **place.fields}
        tapped = {**usual, "endpoint_url": f"{tap.url}{url.path}"}
        yield RealStore(cast(Any, tap), tapped, direct={**usual, "endpoint_url": place.endpoint})


def is_killed_at(tap: Tap, work: Callable[[], Any], *, nth: int, method: str = "write", path: str = "") -> bool:
    """Run a function in a process that is killed when its n-th such request has been served, but not answered.

    :param method: of the request, or "write" for any that may change something.
    :param path: what its path and query match.
    :return: whether it came that far.
    """
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)  # returns once the parent has closed its end
        try:
            work()
        except BaseException as error:
            print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    numbers = count(1)

    def served(request: Request) -> None:
        if (method != "write" or request.is_write) and next(numbers) == nth:
            os.kill(pid, signal.SIGKILL)

    tap.clear()
    tap.fault("*" if method == "write" else method, path, After(served), times=None)
    os.close(ready)
    os.close(go)
    _, status = os.waitpid(pid, 0)
    tap.clear()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return os.WIFSIGNALED(status)


def told(request: Request) -> str:
    """Return a request for a message."""
    return f"{request.method} {unquote(request.target)}"

"""A model store in a bucket behind the S3 stand-in, with its verbs run in place, and what the bucket really holds."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import boto3

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import ModelSyncError
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.base import Bucket
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.core.stores import write_tree
from tests.services.moto_server import holding, objects_in, running_moto
from tests.standins import http_server
from tests.standins.http_server import StandIn
from tests.standins.s3 import After, Before, Request, S3StandIn
from tests.support.steps import Victim, some_of

T = TypeVar("T")

KIB = 1 << 10
PART = 80 * KIB  # of the tests that use small parts
RECORDS = r"/\.modelsync/"
FILES = r"^models/(?!.*/\.modelsync/)"
MANIFEST, CLAIM, LABELS = r"\.json$", r"\.claim$", r"\.labels$"

random_bytes = random.Random(7).randbytes

Step = Callable[[str], Any]  # what is done with a model
Work = Callable[[Any, str], object]  # what is done by a store with a model


_KEYS = {"login", "password", "session_token", "aws_conn_id"}
_opening = threading.Lock()


class _Session(boto3.Session):
    """One that many threads may ask for clients."""

    def client(self, *args: Any, **options: Any) -> Any:
        with _opening:
            return super().client(*args, **options)


@cache
def _session(access_key: str, secret_key: str) -> boto3.Session:
    """Return the session of all workers with these keys: a new one reads all of boto3's data again."""
    return _Session(access_key, secret_key)


@dataclass(frozen=True)
class BucketStore:
    """A model store below ``models/`` in the stand-in's bucket, as one worker sees it.

    :param s3: the stand-in.
    :param fields: of the connection, besides the usual ones.
    :param session: opens a boto3 session other than one with the connection's keys.
    :param elsewhere: a bucket other than the stand-in's.
    """

    s3: S3StandIn
    fields: Mapping[str, Any] = field(default_factory=dict)
    session: Callable[[], Any] | None = None
    elsewhere: str | None = None

    @property
    def bucket(self) -> str:
        return self.elsewhere or self.s3.bucket

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}/models"

    @property
    def front(self) -> StandIn:
        """What all requests go by."""
        return self.s3

    @cached_property
    def behind(self) -> Bucket:
        """The bucket itself, as another worker sees it."""
        store: Any = self.again().registry._store
        bucket: Bucket = store._bucket
        return bucket

    @cached_property
    def registry(self) -> ModelStore:
        usual = {
            "host": self.root,
            "endpoint_url": self.s3.endpoint,
            "region_name": "us-east-1",
            "login": self.s3.access_key,
            "password": self.s3.secret_key,
            "part_size_mib": 5,
        }
        session = self.session
        if session is None and not self.fields.keys() & _KEYS:
            session = partial(_session, self.s3.access_key, self.s3.secret_key)
        return ModelStore(BucketSettings.read("bucket", {**usual, **self.fields}), session)

    def again(self, **fields: Any) -> BucketStore:
        """Return the same store as another worker sees it."""
        return BucketStore(self.s3, {**self.fields, **fields}, elsewhere=self.elsewhere)

    # -- the verbs

    def run(self, flow: Flow[T]) -> T:
        return SyncDriver().run(flow)

    def push(self, source: Path, model: str, *, control: Control | None = None, **options: Any) -> ModelVersion:
        control = control or Control()
        driver = SyncDriver(cancel=control.cancel)
        return push(self.registry, driver, source, self.registry.parse(model), control, **options)

    def pull(
        self, model: str, target: Path, *, control: Control | None = None, query: str | None = None, **options: Any
    ) -> PulledModel:
        control = control or Control()
        driver = SyncDriver(cancel=control.cancel)
        chosen = Query.parse(query)
        return pull(self.registry, driver, self.registry.parse(model), target, control, query=chosen, **options)

    def get(self, model: str, query: str | None = None) -> ModelVersion:
        return self.run(self.registry.get(self.registry.parse(model), Query.parse(query)))

    def list_versions(self, name: str) -> list[ModelVersion]:
        return self.run(self.registry.list_versions(name, Query()))

    def delete(self, model: str) -> bool:
        return self.run(self.registry.delete(self.registry.parse(model)))

    def set_labels(self, model: str, labels: Mapping[str, str | None]) -> ModelVersion:
        return self.run(self.registry.set_labels(self.registry.parse(model), labels))

    def test(self) -> str:
        return self.run(self.registry.test())

    # -- what is really there, past the stand-in

    @cached_property
    def past(self) -> Any:
        """A plain client of the service behind."""
        # moto gives the copy of an object that came in parts a sum that does not fit it.
        return self.s3.backend.client(response_checksum_validation="when_required")

    def keys(self, prefix: str = "") -> list[str]:
        """The objects below ``models/``, by what their names go on with."""
        pages = self.past.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"models/{prefix}")
        return [entry["Key"].removeprefix("models/") for page in pages for entry in page.get("Contents", ())]

    def content(self, key: str) -> bytes:
        return bytes(self.past.get_object(Bucket=self.bucket, Key=f"models/{key}")["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.past.put_object(Bucket=self.bucket, Key=f"models/{key}", Body=content)

    def fill(self, keys: Iterable[str]) -> None:
        """Put many empty objects there, past HTTP."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        for key in keys:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.bucket, f"models/{key}", b"")

    def remove(self, key: str) -> None:
        self.past.delete_object(Bucket=self.bucket, Key=f"models/{key}")

    def open_uploads(self) -> list[tuple[str, str]]:
        """Key and id of the unfinished uploads."""
        listed = self.past.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        return [(upload["Key"], upload["UploadId"]) for upload in listed]

    def uploads(self, prefix: str = "") -> dict[str, dict[int, int]]:
        """The unfinished uploads: key → number and size of their parts, those of one key taken together."""
        found: dict[str, dict[int, int]] = {}
        listed = self.past.list_multipart_uploads(Bucket=self.bucket, Prefix=f"models/{prefix}").get("Uploads", ())
        for upload in listed:
            parts = self.past.list_parts(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            sizes = {part["PartNumber"]: part["Size"] for part in parts.get("Parts", ())}
            found.setdefault(upload["Key"].removeprefix("models/"), {}).update(sizes)
        return found

    def killed_at_each_write(self, prepare: Work, work: Work) -> Iterator[tuple[str, BucketStore, str]]:
        """Yield a store and a model as work is left that is killed at some of its writes, and what write that was.

        :param prepare: what is done before.
        """
        for nth in some_of(count(1)):
            model = f"fraud-{nth}:v1"
            prepare(self, model)
            if not is_killed_at(self.front, partial(work, self.again(), model), "write", nth=nth):
                assert nth > 6
                return
            yield f"write {nth}", self, model

    # -- what went by

    def sent(self) -> dict[str, int]:
        """Bytes of each file that went up and were taken."""
        found: dict[str, int] = {}
        for request in self.front.find("PUT"):
            key = request.path.partition("/models/")[2]
            is_file = "/.modelsync" not in request.path and request.query.get("comp") in (None, "block")
            if is_file and request.received and 200 <= request.status < 300:
                found[key] = found.get(key, 0) + request.received
        return found

    def fetched(self, key: str) -> int:
        """Bytes of a file that came down."""
        return sum(request.sent for request in self.front.find("GET", f"models/{key}") if request.status in (200, 206))

    # -- what is there, by its meaning

    def manifest(self, model: str) -> dict[str, Any] | None:
        """Return what is published of a version, as its records say, ``None`` when nothing is."""
        name, _, version = model.partition(":")
        records = self.records(model)
        says = records.top or records.noted
        if not says:
            return None
        content: dict[str, Any] = json.loads(self.content(f"{name}/.modelsync/{claims.verdict_of(version, says)}"))
        if content.keys() == {"current"}:
            if content["current"] not in records.verdicts:
                return None
            content = json.loads(self.content(f"{name}/.modelsync/{claims.verdict_of(version, content['current'])}"))
        return content

    def records(self, model: str) -> claims.Records:
        """Return the records of a version, sorted."""
        name, _, version = model.partition(":")
        prefix = f"{name}/.modelsync/"
        listed = claims.by_version(key.removeprefix(prefix) for key in self.keys(prefix))
        return listed.get(version, claims.Records())

    def is_published(self, model: str) -> bool:
        """Whether a version is published, whatever is left of its files."""
        return self.manifest(model) is not None

    def seen(self, model: str) -> str | None:
        """Return a version's digest when all its files are there as its manifest says, ``None`` without a manifest.

        Fails when the files are not the manifest's, or when others are among them.
        """
        name, _, version = model.partition(":")
        manifest = self.manifest(model)
        if manifest is None:
            return None
        prefix = f"{name}/{claims.directory_of(version, manifest['generation'])}/"
        contents = {key.removeprefix(prefix): self.content(key) for key in self.keys(prefix)}
        files = [FileEntry(path, len(body), hashlib.sha256(body).hexdigest()) for path, body in contents.items()]
        assert digest_of(files) == manifest["digest"], f"{model} is a mixture"
        return str(manifest["digest"])

    def tidy(self, model: str) -> str:
        """Return a version's digest when it is whole, and nothing else is left of whoever wrote it."""
        name, _, version = model.partition(":")
        digest, manifest, records = self.seen(model), self.manifest(model), self.records(model)
        assert digest, f"{model} is not there"
        assert manifest
        assert (len(records.verdicts), records.claims, records.closed) == (1, set(), {}), records
        assert all(len(changes) == 1 for changes in records.labels.values())
        place = claims.directory_of(version, manifest["generation"])
        assert {key.split("/")[1] for key in self._below(name, version, self.keys)} <= {place}
        assert self._below(name, version, self.uploads) == []
        return digest

    def nothing(self, model: str) -> bool:
        """Whether nothing is left of a version but the note that it is gone."""
        name, _, version = model.partition(":")
        records = self.records(model)
        is_noted = not (records.verdicts or records.claims or records.labels) and len(records.closed) <= 1
        return is_noted and not self._below(name, version, self.keys) and not self._below(name, version, self.uploads)

    def _below(self, name: str, version: str, listing: Callable[[str], Iterable[str]]) -> list[str]:
        """Return what a listing has in the directories of a version's generations."""
        return [key for mark in "/~" for key in listing(f"{name}/{version}{mark}")]


class MotoStore(BucketStore):
    """One whose contents are read where moto keeps them: in no time, and without a request."""

    def again(self, **fields: Any) -> MotoStore:
        return MotoStore(self.s3, {**self.fields, **fields}, elsewhere=self.elsewhere)

    def keys(self, prefix: str = "") -> list[str]:
        below = f"models/{prefix}"
        return sorted(key.removeprefix("models/") for key in self._objects if key.startswith(below))

    def content(self, key: str) -> bytes:
        return bytes(self._objects[f"models/{key}"].value)

    def open_uploads(self) -> list[tuple[str, str]]:
        return [(upload.key_name, upload.id) for upload in self._uploads]

    def uploads(self, prefix: str = "") -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for upload in self._uploads:
            if upload.key_name.startswith(f"models/{prefix}"):
                sizes = {number: len(part.value) for number, part in upload.parts.items()}
                found.setdefault(upload.key_name.removeprefix("models/"), {}).update(sizes)
        return found

    def killed_at_each_write(self, prepare: Work, work: Work) -> Iterator[tuple[str, MotoStore, str]]:
        # Reading changes nothing: who is killed after it leaves what the write before has left.
        model = "fraud:v1"
        prepare(self, model)
        held = holding(self.bucket)
        steps: list[tuple[str, MotoStore, str]] = []

        def keep(request: Request | None = None) -> None:
            name = f"{self.bucket}-{len(steps)}"
            twin = copy.deepcopy(held.buckets[self.bucket])
            twin.name = name
            held.buckets[name] = twin
            steps.append((told(request) if request else "nothing", replace(self, elsewhere=name), model))

        def served(request: Request) -> None:
            if request.is_write:
                keep(request)

        keep()
        self.s3.clear()
        self.s3.fault("*", "", After(served), times=None)
        work(self.again(), model)
        # So the same comes of it on a storage that does not look at conditions on deletions.
        assert not any("if-match" in request.headers for request in self.s3.find("DELETE"))
        self.s3.clear()
        assert len(steps) > 6
        yield from some_of(steps)

    @property
    def _uploads(self) -> list[Any]:
        return list(holding(self.bucket).buckets[self.bucket].multiparts.values())

    @property
    def _objects(self) -> Any:
        return objects_in(self.bucket)


@contextmanager
def bucket_store(**options: Any) -> Iterator[MotoStore]:
    """Run moto behind a stand-in; ``options`` are the stand-in's."""
    with running_moto() as moto, S3StandIn(moto, **options) as s3:
        yield MotoStore(s3)


def told(request: http_server.Request) -> str:
    """Return a request for a message."""
    return f"{request.method} {request.path} {request.query}"


def make(root: Path, text: str, part: int = PART) -> Path:
    """Write a model with a file that goes in parts and one that does not."""
    files = {"weights.bin": random.Random(text).randbytes(part + 9), "vocab.txt": text.encode()}
    return write_tree(root / text, files)


def outcome(step: Step, model: str) -> Any:
    try:
        return step(model)
    except ModelSyncError as error:
        return error


def at_every_step(
    store: BucketStore, first: Step, second: Step, prepare: Step = lambda model: None
) -> Iterator[tuple[str, str, Any, Any]]:
    """Let the second run as a whole before the first's n-th request is served, each time on a model of its own.

    Yields the model, the request, and what became of both: what they returned or raised.
    """
    for nth in some_of(count(1)):
        model, seconds, requests = f"fraud-{nth}:v1", [], []
        prepare(model)
        store.front.clear()

        def meet(request: http_server.Request) -> None:
            requests.append(told(request))  # noqa: B023
            seconds.append(outcome(second, model))  # noqa: B023

        store.front.fault("*", f"/fraud-{nth}/|^$", Before(meet), nth=nth)
        result = outcome(first, model)
        if not seconds:
            assert nth > 3
            return
        yield model, requests[0], result, seconds[0]


def body_bytes(s3: S3StandIn) -> int:
    """Bytes of files that were sent, without the records."""
    return sum(request.received for request in s3.find("PUT", FILES))


def cancelled(work: Callable[[Control], object], reached: threading.Event) -> Any:
    """Cancel work once it has come to a point; return what it raised, 4 s later at the longest."""
    token, outcomes = CancelToken(), []

    def run() -> None:
        outcomes.append(outcome(lambda _: work(Control(cancel=token)), ""))

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(20)
    token.cancel()
    since = time.monotonic()
    thread.join(10)
    assert time.monotonic() - since < 4
    return outcomes[0]


def is_killed_at(front: StandIn, work: Callable[[], Any], what: str, key: str = "", *, nth: int = 1) -> bool:
    """Run a function in a process that is killed when its n-th such request has been served, but not answered.

    :param front: the proxy that the requests go by.
    :param what: what it may be asked for, or "write": anything that may change something.
    :param key: what the proxy finds in a request.
    :return: whether it came that far.
    """
    victim, numbers = Victim(work), count(1)

    def served(request: http_server.Request) -> None:
        if (what != "write" or request.is_write) and next(numbers) == nth:
            victim.kill()

    front.clear()
    front.fault("*" if what == "write" else what, key, After(served), times=None)
    is_killed = victim.run()
    front.clear()
    return is_killed

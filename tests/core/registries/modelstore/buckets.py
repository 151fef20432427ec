"""A model store in a bucket behind the S3 stand-in, with its verbs run in place, and what the bucket really holds."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.modelstore.bucket import BucketSettings
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.services.moto_server import running_moto
from tests.standins.s3 import After, Request, S3StandIn

T = TypeVar("T")

KIB = 1 << 10
PART = 80 * KIB  # of the tests that use small parts
RECORDS = r"/\.modelsync/"
FILES = r"^models/(?!.*/\.modelsync/)"
MANIFEST, CLAIM, LABELS = r"\.json$", r"\.claim$", r"\.labels$"

random_bytes = random.Random(7).randbytes


@dataclass(frozen=True)
class BucketStore:
    """A model store below ``models/`` in the stand-in's bucket, as one worker sees it.

    :param s3: the stand-in.
    :param fields: of the connection, besides the usual ones.
    :param session: opens a boto3 session other than one with the connection's keys.
    """

    s3: S3StandIn
    fields: Mapping[str, Any] = field(default_factory=dict)
    session: Callable[[], Any] | None = None

    @cached_property
    def registry(self) -> ModelStore:
        usual = {
            "host": f"s3://{self.s3.bucket}/models",
            "endpoint_url": self.s3.endpoint,
            "region_name": "us-east-1",
            "login": self.s3.access_key,
            "password": self.s3.secret_key,
            "part_size_mib": 5,
        }
        return ModelStore(BucketSettings.read("bucket", {**usual, **self.fields}), self.session)

    def again(self, **fields: Any) -> BucketStore:
        """Return the same store as another worker sees it."""
        return BucketStore(self.s3, {**self.fields, **fields})

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
        pages = self.past.get_paginator("list_objects_v2").paginate(Bucket=self.s3.bucket, Prefix=f"models/{prefix}")
        return [entry["Key"].removeprefix("models/") for page in pages for entry in page.get("Contents", ())]

    def content(self, key: str) -> bytes:
        return bytes(self.past.get_object(Bucket=self.s3.bucket, Key=f"models/{key}")["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.past.put_object(Bucket=self.s3.bucket, Key=f"models/{key}", Body=content)

    def remove(self, key: str) -> None:
        self.past.delete_object(Bucket=self.s3.bucket, Key=f"models/{key}")

    def uploads(self, prefix: str = "") -> dict[str, dict[int, int]]:
        """The unfinished uploads: key → number and size of their parts, those of one key taken together."""
        found: dict[str, dict[int, int]] = {}
        listed = self.past.list_multipart_uploads(Bucket=self.s3.bucket, Prefix=f"models/{prefix}").get("Uploads", ())
        for upload in listed:
            parts = self.past.list_parts(Bucket=self.s3.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            sizes = {part["PartNumber"]: part["Size"] for part in parts.get("Parts", ())}
            found.setdefault(upload["Key"].removeprefix("models/"), {}).update(sizes)
        return found

    def seen(self, model: str) -> str | None:
        """Return a version's digest when all its files are there as its manifest says, ``None`` without a manifest.

        Fails when the files are not the manifest's, or when others are among them.
        """
        name, _, version = model.partition(":")
        record = f"{name}/.modelsync/{version}.json"
        if record not in self.keys(f"{name}/.modelsync/"):
            return None
        manifest = json.loads(self.content(record))
        prefix = f"{name}/{version}/"
        contents = {key.removeprefix(prefix): self.content(key) for key in self.keys(prefix)}
        files = [FileEntry(path, len(body), hashlib.sha256(body).hexdigest()) for path, body in contents.items()]
        assert digest_of(files) == manifest["digest"], f"{model} is a mixture"
        return str(manifest["digest"])

    def tidy(self, model: str) -> str:
        """Return a version's digest when it is whole, and nothing else is left of whoever wrote it."""
        name, _, version = model.partition(":")
        digest = self.seen(model)
        assert digest, f"{model} is not there"
        records = [key.rpartition("/")[2] for key in self.keys(f"{name}/.modelsync/{version}.")]
        assert records in ([f"{version}.json"], [f"{version}.json", f"{version}.labels"])
        assert self.uploads(f"{name}/{version}/") == {}
        return digest


@contextmanager
def bucket_store(**options: Any) -> Iterator[BucketStore]:
    """Run moto behind a stand-in; ``options`` are the stand-in's."""
    with running_moto() as moto, S3StandIn(moto, **options) as s3:
        yield BucketStore(s3)


def body_bytes(s3: S3StandIn) -> int:
    """Bytes of files that were sent, without the records."""
    return sum(request.received for request in s3.find("PUT", FILES))


def is_killed_at(s3: S3StandIn, work: Callable[[], Any], what: str, key: str = "", *, nth: int = 1) -> bool:
    """Run a function in a process that is killed when its n-th such request has been served, but not answered.

    :param what: an operation, or "write": any that changes something.
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
        if (what != "write" or request.method not in ("GET", "HEAD")) and next(numbers) == nth:
            os.kill(pid, signal.SIGKILL)

    s3.clear()
    s3.fault("*" if what == "write" else what, key, After(served), times=None)
    os.close(ready)
    os.close(go)
    _, status = os.waitpid(pid, 0)
    s3.clear()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return os.WIFSIGNALED(status)

"""Artifacts in a bucket of S3 that are read and written there, with credentials of one's own."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, call, call_remote
from airflow_provider_modelsync.core.registries.mlflow.api import MLflowSettings
from airflow_provider_modelsync.core.registries.mlflow.places import Place
from airflow_provider_modelsync.core.registries.mlflow.records import MANIFEST_BYTES
from airflow_provider_modelsync.core.storages.base import Listed, OpenSession
from airflow_provider_modelsync.core.storages.s3 import S3Bucket
from airflow_provider_modelsync.core.storages.writer import FileWriter, open_uploads
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, with_retries
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    PutObjects,
    Stored,
    Sums,
    choose_part_size,
)

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("modelsync")

_DELETERS = 8  # threads
# Where every server puts a logged model's files, or a run's. A server says what is removed with credentials that are
# not its own, so nothing else is.
_OF_ONE_HOLDER = re.compile(r"(^|/)(m-)?[0-9a-f]{32}/artifacts/")
_KEYS = "The access key is refused: correct aws_access_key_id and aws_secret_access_key, or the aws connection"


class Buckets:
    """Opens the buckets that a connection's credentials reach.

    :param settings: the connection.
    :param session: opens the boto3 session to use instead of one with the connection's own keys.
    """

    def __init__(self, settings: MLflowSettings, session: OpenSession | None) -> None:
        self._settings = settings
        self._session = session
        self._open: dict[str, S3Bucket] = {}

    @property
    def are_meant(self) -> bool:
        """Whether the connection says how buckets are reached."""
        return self._settings.says_how_to_reach_buckets

    def at(self, uri: str) -> InBucket:
        """Return the place of an ``s3://`` URI."""
        # Not parsed as a URL: what is special there, as '#', '?' and '%', is part of a key like all else.
        name, _, root = uri.partition("://")[2].partition("/")
        if not name:
            raise InvalidInput(f"{show(uri)} names no bucket")
        if name not in self._open:
            self._open[name] = S3Bucket(name, self._settings.for_bucket(name), self._session)
        return InBucket(self._open[name], root.strip("/"), self._settings.part_size_mib)


class InBucket(Place):
    """A directory in a bucket.

    :param bucket: the bucket.
    :param root: the directory's key, without a slash at either end.
    :param part_size_mib: what the connection wants.
    """

    def __init__(self, bucket: S3Bucket, root: str, part_size_mib: int | None) -> None:
        self._bucket = bucket
        self._prefix = f"{root}/" if root else ""
        self._part_size_mib = part_size_mib
        self._seen: dict[str, Listed] = {}

    def show(self) -> str:
        """Return where it is, for messages."""
        return self._bucket.url(self._prefix)

    def key_of(self, path: str) -> str:
        """Return where a file is."""
        return f"{self._prefix}{path}"

    def read(self, path: str) -> Flow[Address]:
        if path not in self._seen:
            yield from self._objects()
        if path not in self._seen:
            raise ModelNotFound(f"{show(path)} is not in {self.show()}")
        return (yield from _asked(call, self._bucket.address_get, self._seen[path]))

    def etags(self) -> Flow[dict[str, str]]:
        found = yield from self._objects()
        return {path: tag for path, one in found.items() if (tag := self._bucket.wanted(one))}

    def content(self, path: str) -> Flow[bytes | None]:
        found = yield from _asked(call_remote, self._bucket.get, self.key_of(path))
        return found.content if found is not None and len(found.content) <= MANIFEST_BYTES else None

    def put(self, path: str, content: bytes, doing: str) -> Flow[None]:
        yield from _asked(call_remote, self._put, self.key_of(path), content, doing)

    def files(self) -> Flow[dict[str, int]]:
        return {path: found.size for path, found in (yield from self._objects()).items()}

    def is_empty(self) -> Flow[bool]:
        return not (yield from self._objects())

    def remove(self, **more: Any) -> Flow[None]:
        yield from _asked(call_remote, self._remove)

    def way_up(self, source: Source) -> Flow[PutObjects]:
        """Return how a model's files become objects here, as far as earlier tries have not brought them."""
        there = yield from self._objects()
        part_size = choose_part_size(max(file.size for file in source.files), self._part_size_mib)
        large = [file.path for file in source.files if file.size > part_size]
        keys = [self.key_of(path) for path in large]
        begun = (yield from _asked(call_remote, open_uploads, self._bucket, self._prefix, keys)) if large else {}
        writer = _Writer(self._bucket, self.key_of, part_size, there)
        return PutObjects(source=source, writer=writer, open=begun, copies=frozenset())

    def _objects(self) -> Flow[dict[str, Listed]]:
        self._seen = yield from _asked(call_remote, self._list)
        return self._seen

    def _list(self) -> dict[str, Listed]:
        found = {found.key.removeprefix(self._prefix): found for found in self._bucket.objects(self._prefix)}
        # What consoles make in order to show an empty directory.
        return {path: one for path, one in found.items() if path and not (path.endswith("/") and one.size == 0)}

    def _put(self, key: str, content: bytes, doing: str) -> None:
        sums, sha256 = Sums.of(content), hashlib.sha256(content).hexdigest()

        def once() -> None:
            address = self._bucket.address_put(key, sums, sha256, overwrites=True)
            answer = self._bucket.mover.put(address.url, lambda: io.BytesIO(content), len(content), address.headers)
            self._bucket.receipt(key, None, sums, address, answer, doing)

        with_retries(once, cancel=CancelToken())

    def _remove(self) -> None:
        if not _OF_ONE_HOLDER.search(self._prefix):
            _log.warning("nothing is removed in %s: it is no place of one logged model or run", self.show())
            return
        for key, upload_id in self._bucket.uploads(self._prefix):
            self._bucket.abort(key, upload_id)
        keys = [found.key for found in self._bucket.objects(self._prefix)]
        for_each(lambda key, _: self._bucket.delete(key), keys, workers=_DELETERS, cancel=CancelToken())


class _Writer(FileWriter):
    """How files go up, over what is there. Methods as of :class:`~..transfer.plan.ObjectWriter`."""

    _bucket: S3Bucket

    def whole(self, file: FileEntry, sums: Sums) -> Flow[Address]:
        return self._ask(call_remote, self._bucket.address_put, self._key(file), sums, file.sha256, overwrites=True)

    def receipt(
        self, file: FileEntry, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        try:
            return super().receipt(file, upload_id, sums, address, answer, doing)
        except ModelSyncError as error:
            raise _of_this_connection(error) from None

    def _ask(self, how: Callable[..., Flow[T]], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        return _asked(how, fn, *args, **kwargs)

    def _known_tag(self, file: FileEntry) -> str | None:
        return None


def _asked(how: Callable[..., Flow[T]], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
    try:
        return (yield from how(fn, *args, **kwargs))
    except ModelSyncError as error:
        raise _of_this_connection(error) from None


def _of_this_connection(error: ModelSyncError) -> ModelSyncError:
    """Return an error of a storage that names the fields of this connection, whose own login is another one."""
    if error.argument == "password":
        error.argument, error.remedy = "aws_secret_access_key", _KEYS
    elif error.argument == "host":  # the server says which bucket
        error.argument = None
    return error

"""How a model's files become objects of a bucket, and what earlier tries have left of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain
from airflow_provider_modelsync.core.flow.steps import Flow, call, call_remote
from airflow_provider_modelsync.core.storages.base import Bucket, Listed
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address, OpenObject, Stored, Sums

P = ParamSpec("P")
T = TypeVar("T")


def open_uploads(bucket: Bucket, prefix: str, keys: Iterable[str]) -> dict[str, OpenObject]:
    """Return the unfinished upload of each file below a prefix, by path.

    Of several, as after a lost answer, the one that has most.

    :param keys: as for :meth:`.base.Bucket.uploads`.
    """
    found: dict[str, OpenObject] = {}
    for key, upload_id in bucket.uploads(prefix, keys):
        path, parts = key.removeprefix(prefix), bucket.parts(key, upload_id)
        if parts is not None and (path not in found or len(parts) > len(found[path].parts)):
            found[path] = OpenObject(upload_id, parts)
    return found


class FileWriter:
    """How files go up. Methods as of :class:`~..transfer.plan.ObjectWriter`.

    :param bucket: where to.
    :param key_of: returns the key of a path.
    :param part_size: bytes of a part.
    :param there: what lies where the files belong, by path.
    """

    def __init__(
        self, bucket: Bucket, key_of: Callable[[str], str], part_size: int, there: Mapping[str, Listed]
    ) -> None:
        self.part_size = part_size
        self._bucket = bucket
        self._key_of = key_of
        self._there = there

    def whole(self, file: FileEntry, sums: Sums) -> Flow[Address]:
        # What another push of the same bytes has stored meanwhile stays.
        return self._ask(
            call_remote, self._bucket.address_put, self._key(file), sums, file.sha256, etag=self._known_tag(file)
        )

    def begin(self, file: FileEntry) -> Flow[str]:
        return self._ask(call_remote, self._begin, file)

    def part(self, file: FileEntry, upload_id: str, number: int, sums: Sums) -> Flow[Address]:
        return self._ask(call, self._bucket.address_part, self._key(file), upload_id, number, sums)

    def receipt(
        self, file: FileEntry, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        return self._bucket.receipt(self._key(file), upload_id, sums, address, answer, doing)

    def is_part(self, sums: Sums, stored: Stored) -> bool:
        return self._bucket.is_part(sums, stored)

    def find(self, file: FileEntry, count: int, parts: Iterable[Sums]) -> Flow[str | None]:
        found = self._there.get(file.path)
        if found is None:
            return None
        is_it = yield from self._ask(call, self._bucket.is_file, found, file.size, file.sha256, count, parts)
        return found.etag if is_it else None

    def sent(self, file: FileEntry, upload_id: str, number: int, stored: Stored) -> None:
        """Storages tell the parts that they have."""

    def complete(self, file: FileEntry, upload_id: str, parts: Mapping[int, Stored]) -> Flow[str]:
        return self._ask(call_remote, self._complete, file, upload_id, parts)

    def copy(self, file: FileEntry) -> Flow[str | None]:
        return None
        yield  # a flow that needs no step

    def _ask(self, how: Callable[..., Flow[T]], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        return how(fn, *args, **kwargs)

    def _key(self, file: FileEntry) -> str:
        return self._key_of(file.path)

    def _known_tag(self, file: FileEntry) -> str | None:
        there = self._there.get(file.path)
        return there.etag if there else None

    def _begin(self, file: FileEntry) -> str:
        return self._bucket.begin(self._key(file), file.sha256)

    def _complete(self, file: FileEntry, upload_id: str, parts: Mapping[int, Stored]) -> str:
        if found := self._stored(file, parts):  # by another writer of the same bytes
            return found
        etag = self._bucket.complete(self._key(file), upload_id, parts, file.sha256, etag=self._known_tag(file))
        if etag is not None:
            self._completed(upload_id)
            return etag
        # The answer to an earlier request was lost, or another writer of the same bytes was faster.
        if found := self._stored(file, parts):
            return found
        raise BeginAgain(f"the storage knows the upload of {show(file.path)} no more")

    def _completed(self, upload_id: str) -> None:
        """Hear that an upload has become an object."""

    def _stored(self, file: FileEntry, parts: Mapping[int, Stored]) -> str | None:
        """Return the tag of an object that was put together of a file's bytes."""
        found = self._bucket.head(self._key(file))
        if found is None or found.size != file.size:
            return None
        is_it = found.sha256 == file.sha256 if found.sha256 else self._bucket.is_made_of(found, parts)
        return found.etag if is_it else None

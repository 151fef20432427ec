"""Files that become objects of a storage which speaks S3: in parts, many at a time, each checked as it is stored.

A part is read into memory once. So it can be compared with what an earlier try has left, sent again after a failure,
and checked by the storage, whether it comes from a disk or from another registry.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.http.storage import SumRefused
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, PutObjects, Stored

_CRC32 = "x-amz-checksum-crc32"
_MD5_HEADER = "Content-MD5"
_CONDITION_FAILED = 412
_MD5 = re.compile(r"[0-9a-f]{32}")


def put_objects(way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Bring a model's files into a storage, as far as they are not there yet."""
    return _Push(way, control, driver, mover).run()


class _Push:
    def __init__(self, way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._way = way
        self._control = control
        self._driver = driver
        self._mover = mover
        self._progress = control.progress(way.source.size_bytes)
        self._lock = Lock()
        self._sent = self._resumed = 0
        self._copied: set[str] = set()

    def run(self) -> TransferStats:
        files = sorted(self._way.source.files, key=lambda file: -file.size)
        for_each(self._find, files, workers=self._control.workers, cancel=self._control.cancel)
        uploads = [_Upload(file, self._way) for file in files if file.path not in self._way.etags]
        parts = [(upload, number) for upload in uploads for number in upload.numbers]
        for_each(self._put_part, parts, workers=self._control.workers, cancel=self._control.cancel)
        self._way.source.confirm(file.path for file in files if file.path not in self._copied)
        self._progress.finish()
        return TransferStats(sent_bytes=self._sent, resumed_bytes=self._resumed)

    def _find(self, file: FileEntry, cancel: CancelToken) -> None:
        """Note a file that need not be sent: an earlier try has, or the storage has copied it."""
        stored = self._way.there.get(file.path)
        if stored is not None and self._is_stored(file, stored, cancel):
            self._way.etags[file.path] = stored.etag
            self._resume(file.size)
        elif file.path in self._way.copies and (etag := self._driver.run(self._way.writer.copy(file))):
            self._way.etags[file.path] = etag
            self._copied.add(file.path)
            self._progress.pass_over(file.size)

    def _is_stored(self, file: FileEntry, stored: Stored, cancel: CancelToken) -> bool:
        """Whether an object holds a file, by its tag: the MD5 of its bytes, or of the MD5s of the parts it came in."""
        numbers, suffix = _Upload(file, self._way).numbers, stored.etag[32:]
        if stored.size != file.size or suffix not in ("", f"-{len(numbers)}"):
            return False
        total = hashlib.md5(usedforsecurity=False)
        for number in numbers:
            cancel.check()
            part = self._read(file, number)
            total.update(bytes.fromhex(part.md5) if suffix else part.view)
        return stored.etag == f"{total.hexdigest()}{suffix}"

    def _put_part(self, item: tuple[_Upload, int], cancel: CancelToken) -> None:
        upload, number = item
        file, writer = upload.file, self._way.writer
        part = self._read(file, number)
        if upload.is_whole:
            stored = self._send(part, lambda: writer.whole(file, part), f"uploading {show(file.path)}", cancel)
            self._way.etags[file.path] = stored.etag
            return
        known = upload.known.get(number)
        if known is not None and part.is_stored_as(known):
            self._resume(known.size)
            stored = known
        else:
            upload_id = upload.begun(self._driver)
            stored = self._send(
                part,
                lambda: writer.part(file, upload_id, number, part),
                f"uploading part {number} of {show(file.path)}",
                cancel,
            )
            writer.sent(file, upload_id, number, stored)
        if parts := upload.add(number, stored):
            upload_id = upload.begun(self._driver)
            self._way.etags[file.path] = self._driver.run(writer.complete(file, upload_id, parts))

    def _read(self, file: FileEntry, number: int) -> _Part:
        start = (number - 1) * self._way.writer.part_size
        length = min(self._way.writer.part_size, file.size - start)
        return _Part(self._way.source.read(file.path, start, length))

    def _send(
        self,
        part: _Part,
        ask: Callable[[], Flow[Address]],
        doing: str,
        cancel: CancelToken,
    ) -> Stored:
        def put() -> Stored:
            address = self._driver.run(ask())
            answer = self._mover.put(
                address.url, part.reader, part.size, address.headers, cancel=cancel, on_bytes=self._progress.add
            )
            if answer.status == _CONDITION_FAILED:
                # An answer was lost, or another writer was faster. Whether of the same bytes is seen by the tag, before
                # the version is published.
                return Stored(part.size, part.md5)
            try:
                answer.raise_for_store(doing, not_found=BeginAgain)
            except SumRefused:
                self._way.writer.refused_crc32()
                raise
            stored = part.check(answer.headers, doing, is_checked=_MD5_HEADER in address.headers)
            if _CRC32 in address.headers:
                self._way.writer.checked_crc32(stored.crc32 is not None)
            return stored

        stored = with_retries(put, cancel=cancel, on_repeat=self._progress.resend)
        with self._lock:
            self._sent += part.size
        return stored

    def _resume(self, size: int) -> None:
        with self._lock:
            self._resumed += size
        self._progress.pass_over(size)


class _Upload:
    """One file on its way: in one request, or in parts that are put together by whoever brings the last one."""

    def __init__(self, file: FileEntry, way: PutObjects) -> None:
        self.file = file
        self.is_whole = file.size <= way.writer.part_size
        self.numbers = range(1, max(1, -(-file.size // way.writer.part_size)) + 1)
        self._writer = way.writer
        self._lock = Lock()
        opened = way.open.get(file.path)
        self._id = opened.upload_id if opened else None
        self.known: Mapping[int, Stored] = opened.parts if opened else {}
        self._parts: dict[int, Stored] = {}

    def begun(self, driver: SyncDriver) -> str:
        """Return the upload's id, beginning it when nobody has."""
        with self._lock:
            if self._id is None:
                self._id = driver.run(self._writer.begin(self.file))
            return self._id

    def add(self, number: int, stored: Stored) -> dict[int, Stored] | None:
        """Note a part as stored; return all of them to whoever brings the last one."""
        with self._lock:
            self._parts[number] = stored
            return self._parts if len(self._parts) == len(self.numbers) else None


class _Part:
    """Bytes in memory and what tells whether a storage holds them."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.size = len(view)

    @cached_property
    def crc32(self) -> str:
        return base64.b64encode(zlib.crc32(self.view).to_bytes(4)).decode()

    @cached_property
    def md5(self) -> str:
        return hashlib.md5(self.view, usedforsecurity=False).hexdigest()

    @cached_property
    def md5_base64(self) -> str:
        return base64.b64encode(bytes.fromhex(self.md5)).decode()

    def is_stored_as(self, stored: Stored) -> bool:
        return self.size == stored.size and (stored.etag == self.md5 or stored.crc32 == self.crc32)

    def reader(self) -> _PartBody:
        return _PartBody(self.view)

    def check(self, headers: Mapping[str, str], doing: str, *, is_checked: bool) -> Stored:
        """Return what a storage says that it has stored; raise when it is something else.

        :param is_checked: whether the storage has compared the bytes with their MD5.
        """
        etag = headers.get("ETag", "").removeprefix("W/").strip('"')
        if not etag:
            raise RegistryUnavailable(f"{doing}: the storage gave no ETag")
        crc32 = headers.get(_CRC32)
        # A storage that checks the sum need not make its tag of the bytes, as when it encrypts them.
        if not is_checked and crc32 != self.crc32 and _MD5.fullmatch(etag) and etag != self.md5:
            raise RegistryUnavailable(f"{doing}: the storage has stored other bytes than were sent")
        return Stored(self.size, etag, crc32)


class _PartBody:
    def __init__(self, view: memoryview) -> None:
        self._rest = view

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

"""Files that become objects of a storage: in parts, many at a time, each checked as it is stored.

A storage that compares a part with the checksum that the hash pass has taken is sent it as it lies on the disk. Of all
others, and after a failure, a part is read into memory once. So it can be compared with what was hashed and with what
an earlier try has left, sent again, and checked by the storage, whether it comes from a disk or another registry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.files import LooseBody
from airflow_provider_modelsync.core.transfer.mover import BLOCK, BodyFactory, Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, PutObjects, Stored, Sums


def put_objects(way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Bring a model's files into a storage, as far as they are not there yet."""
    return _Push(way, control, driver, mover).run()


class _Push:
    """One model on its way.

    :ivar _spare: the memory of the part that a thread has at hand: new pages cost as much as reading into them.
    """

    def __init__(self, way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._way = way
        self._control = control
        self._driver = driver
        self._mover = mover
        self._progress = control.progress(way.source.size_bytes)
        self._lock = Lock()
        self._sent = self._resumed = 0
        self._copied: set[str] = set()
        self._spare = threading.local()

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
        numbers = _Upload(file, self._way).numbers
        parts = self._read_all(file, numbers, cancel)
        if (etag := self._driver.run(self._way.writer.find(file, len(numbers), parts))) is not None:
            self._way.etags[file.path] = etag
            self._resume(file.size)
        elif file.path in self._way.copies and (etag := self._driver.run(self._way.writer.copy(file))):
            self._way.etags[file.path] = etag
            self._copied.add(file.path)
            self._progress.pass_over(file.size)

    def _read_all(self, file: FileEntry, numbers: range, cancel: CancelToken) -> Iterator[Sums]:
        for number in numbers:
            cancel.check()
            yield self._part(file, number)

    def _put_part(self, item: tuple[_Upload, int], cancel: CancelToken) -> None:
        upload, number = item
        file, writer = upload.file, self._way.writer
        part = self._part(file, number)
        if upload.is_whole:
            stored = self._send(file, None, number, part, partial(writer.whole, file, part), show(file.path), cancel)
            self._way.etags[file.path] = stored.etag
            return
        known = upload.known.get(number)
        if known is not None and writer.is_part(part, known):
            self._resume(known.size)
            stored = known
        else:
            upload_id = upload.begun(self._driver)
            ask = partial(writer.part, file, upload_id, number, part)
            stored = self._send(file, upload_id, number, part, ask, f"part {number} of {show(file.path)}", cancel)
            writer.sent(file, upload_id, number, stored)
        if parts := upload.add(number, stored):
            upload_id = upload.begun(self._driver)
            self._way.etags[file.path] = self._driver.run(writer.complete(file, upload_id, parts))

    def _part(self, file: FileEntry, number: int) -> Sums:
        source, start = self._way.source, self._start(number)
        length = min(self._way.writer.part_size, file.size - start)
        read = partial(source.read, file.path, start, length, partial(self._memory, length))
        return Sums(length, read, source.checked(file.path, start, length))

    def _start(self, number: int) -> int:
        return (number - 1) * self._way.writer.part_size

    def _send(
        self,
        file: FileEntry,
        upload_id: str | None,
        number: int,
        part: Sums,
        ask: Callable[[], Flow[Address]],
        what: str,
        cancel: CancelToken,
    ) -> Stored:
        def put() -> Stored:
            address = self._driver.run(ask())
            loose = None if part.is_read or not address.is_checked else self._way.source.loose(file.path)
            body: BodyFactory
            if loose is None:
                body = partial(_PartBody, part.view)
            else:
                body = partial(LooseBody, loose, self._start(number), part.size)
            try:
                answer = self._mover.put(
                    address.url, body, part.size, address.headers, cancel=cancel, on_bytes=self._progress.add
                )
                return self._way.writer.receipt(file, upload_id, part, address, answer, f"uploading {what}")
            except Cancelled:
                raise
            except ModelSyncError:
                part.read()  # raises when it was refused for having changed; else the next try sends what is compared
                raise

        stored = with_retries(put, cancel=cancel, on_repeat=self._progress.resend)
        with self._lock:
            self._sent += part.size
        return stored

    def _memory(self, length: int) -> memoryview:
        """Return this thread's memory, which it uses for one part at a time."""
        spare: memoryview | None = getattr(self._spare, "view", None)
        if spare is None or len(spare) < length:
            spare = self._spare.view = memoryview(bytearray(length))
        return spare[:length]

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


class _PartBody:
    def __init__(self, view: memoryview) -> None:
        self._view = view

    def pieces(self) -> Generator[memoryview, None, None]:
        for start in range(0, len(self._view), BLOCK):
            yield self._view[start : start + BLOCK]

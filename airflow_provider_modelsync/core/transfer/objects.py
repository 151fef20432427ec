"""Files that become objects of a storage: in parts, many at a time, each checked as it is stored.

A storage that compares a part with the checksum that the hash pass has taken is sent it as it lies on the disk. Of all
others, and after a failure, a part is read into memory once. So it can be compared with what was hashed and with what
an earlier try has left, sent again, and checked by the storage, whether it comes from a disk or another registry.

Parts that go ahead, before the digest is known, are read into memory, hashed in their order and sent from there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial

from airflow_provider_modelsync.core.archive.digest import FileEntry, LooseFile
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain, Cancelled, ModelSyncError
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.files import LooseBody
from airflow_provider_modelsync.core.transfer.mover import BLOCK, BodyFactory, Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    ObjectWriter,
    OpenObject,
    PutAhead,
    PutObjects,
    SentAhead,
    Stored,
    Sums,
)

_TICK = 0.002  # seconds between two looks at whether a part is hashed: mostly it is by the time that it is sent


def put_objects(way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Bring a model's files into a storage, as far as they are not there yet."""
    return _Push(way, control, driver, mover).run()


def put_ahead(way: PutAhead, control: Control, driver: SyncDriver, mover: Mover) -> dict[str, SentAhead]:
    """Bring the parts of large files into a storage, as far as they are not there yet, and hash them on the way.

    What is sent is what was hashed, since both come from one reading into memory.

    :raises SourceChanged: when a file is not as it was when it was scanned.
    :raises BeginAgain: when an upload is over, or holds other bytes than its file.
    """
    return _Ahead(way, control, driver, mover).run()


class _Sender:
    """Sends whole files and parts of them, many at a time.

    :ivar _spare: the memory of the part that a thread has at hand: new pages cost as much as reading into them.
    """

    def __init__(self, writer: ObjectWriter, size: int, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._writer = writer
        self._control = control
        self._driver = driver
        self._mover = mover
        self._progress = control.progress(size)
        self._lock = Lock()
        self._spare = threading.local()

    def _memory(self, length: int) -> memoryview:
        """Return this thread's memory, which it uses for one part at a time."""
        spare: memoryview | None = getattr(self._spare, "view", None)
        if spare is None or len(spare) < length:
            spare = self._spare.view = memoryview(bytearray(length))
        return spare[:length]

    def _span(self, file: FileEntry, number: int) -> tuple[int, int]:
        """Return a part's offset in its file and its length in bytes."""
        start = (number - 1) * self._writer.part_size
        return start, min(self._writer.part_size, file.size - start)

    def _send_part(
        self, upload: _Upload, number: int, part: Sums, cancel: CancelToken, loose: LooseFile | None = None
    ) -> Stored:
        """Send a part to its upload, which is begun when nobody has."""
        file = upload.file
        upload_id = upload.begun(self._driver)
        ask = partial(self._writer.part, file, upload_id, number, part)
        stored = self._send(file, upload_id, number, part, ask, f"part {number} of {show(file.path)}", cancel, loose)
        self._writer.sent(file, upload_id, number, stored)
        return stored

    def _send(
        self,
        file: FileEntry,
        upload_id: str | None,
        number: int,
        part: Sums,
        ask: Callable[[], Flow[Address]],
        what: str,
        cancel: CancelToken,
        loose: LooseFile | None,
    ) -> Stored:
        def put() -> Stored:
            address = self._driver.run(ask())
            body: BodyFactory
            if loose is None or part.is_read or not address.is_checked:
                body = partial(_PartBody, part.view)
            else:
                body = partial(LooseBody, loose, *self._span(file, number))
            try:
                answer = self._mover.put(
                    address.url, body, part.size, address.headers, cancel=cancel, on_bytes=self._progress.add
                )
                return self._writer.receipt(file, upload_id, part, address, answer, f"uploading {what}")
            except Cancelled:
                raise
            except ModelSyncError:
                part.read()  # raises when it was refused for having changed; else the next try sends what is compared
                raise

        return with_retries(put, cancel=cancel, on_repeat=self._progress.resend)


class _Push(_Sender):
    """One model on its way."""

    def __init__(self, way: PutObjects, control: Control, driver: SyncDriver, mover: Mover) -> None:
        rest = way.source.size_bytes - sum(file.size for file in way.source.files if file.path in way.ahead)
        super().__init__(way.writer, rest, control, driver, mover)
        self._way = way
        self._sent = self._resumed = 0
        self._copied: set[str] = set()

    def run(self) -> TransferStats:
        order = sorted(self._way.source.files, key=lambda file: -file.size)
        files = [file for file in order if file.path not in self._way.ahead]
        for_each(self._find, files, workers=self._control.workers, cancel=self._control.cancel)
        uploads = [_Upload(file, self._way) for file in files if file.path not in self._way.etags]
        parts = [(upload, number) for upload in uploads for number in upload.numbers]
        for_each(self._put_part, parts, workers=self._control.workers, cancel=self._control.cancel)
        self._way.source.confirm(file.path for file in files if file.path not in self._copied)
        whole = [file for file in order if file.path in self._way.ahead]
        for_each(self._complete, whole, workers=self._control.workers, cancel=self._control.cancel)
        self._progress.finish()
        return TransferStats(sent_bytes=self._sent, resumed_bytes=self._resumed)

    def _complete(self, file: FileEntry, cancel: CancelToken) -> None:
        """Make an object of what went ahead."""
        ahead = self._way.ahead[file.path]
        complete = self._writer.complete(file, ahead.upload.upload_id, ahead.upload.parts)
        self._way.etags[file.path] = self._driver.run(complete)
        with self._lock:
            self._sent += ahead.sent
            self._resumed += file.size - ahead.sent

    def _find(self, file: FileEntry, cancel: CancelToken) -> None:
        """Note a file that need not be sent: an earlier try has, or the storage has copied it."""
        numbers = _Upload(file, self._way).numbers
        parts = self._read_all(file, numbers, cancel)
        if (etag := self._driver.run(self._writer.find(file, len(numbers), parts))) is not None:
            self._way.etags[file.path] = etag
            self._resume(file.size)
        elif file.path in self._way.copies and (etag := self._driver.run(self._writer.copy(file))):
            self._way.etags[file.path] = etag
            self._copied.add(file.path)
            self._progress.pass_over(file.size)

    def _read_all(self, file: FileEntry, numbers: range, cancel: CancelToken) -> Iterator[Sums]:
        for number in numbers:
            cancel.check()
            yield self._part(file, number)

    def _put_part(self, item: tuple[_Upload, int], cancel: CancelToken) -> None:
        upload, number = item
        file, writer = upload.file, self._writer
        part, loose = self._part(file, number), self._way.source.loose(file.path)
        if upload.is_whole:
            ask = partial(writer.whole, file, part)
            stored = self._send(file, None, number, part, ask, show(file.path), cancel, loose)
            self._count(part.size)
            self._way.etags[file.path] = stored.etag
            return
        known = upload.known.get(number)
        if known is not None and writer.is_part(part, known):
            self._resume(known.size)
            stored = known
        else:
            stored = self._send_part(upload, number, part, cancel, loose)
            self._count(part.size)
        if parts := upload.add(number, stored):
            upload_id = upload.begun(self._driver)
            self._way.etags[file.path] = self._driver.run(writer.complete(file, upload_id, parts))

    def _part(self, file: FileEntry, number: int) -> Sums:
        source, (start, length) = self._way.source, self._span(file, number)
        read = partial(source.read, file.path, start, length, partial(self._memory, length))
        return Sums(length, read, source.checked(file.path, start, length))

    def _count(self, size: int) -> None:
        with self._lock:
            self._sent += size

    def _resume(self, size: int) -> None:
        with self._lock:
            self._resumed += size
        self._progress.pass_over(size)


class _Ahead(_Sender):
    """Large files whose parts go ahead."""

    def __init__(self, way: PutAhead, control: Control, driver: SyncDriver, mover: Mover) -> None:
        super().__init__(way.writer, sum(file.stamp.size for file in way.files), control, driver, mover)
        self._way = way

    def run(self) -> dict[str, SentAhead]:
        flights = [_Flight(file, self._way) for file in sorted(self._way.files, key=lambda file: -file.stamp.size)]
        parts = [(flight, number) for flight in flights for number in flight.upload.numbers]
        for_each(self._put_part, parts, workers=self._control.workers, cancel=self._control.cancel)
        self._progress.finish()
        return {flight.source.path: flight.result(self._driver) for flight in flights}

    def _put_part(self, item: tuple[_Flight, int], cancel: CancelToken) -> None:
        flight, number = item
        upload, file = flight.upload, flight.upload.file
        start, length = self._span(file, number)
        view = self._memory(length)
        with flight.source.opened() as descriptor:
            flight.source.read_into(descriptor, start, view)
        flight.offer(start, view)
        part = Sums.of_memory(view)
        known = upload.known.get(number)
        if known is None:
            stored = self._send_part(upload, number, part, cancel)
            flight.sent(length)
        elif self._writer.is_part(part, known):
            stored = known
            self._progress.pass_over(length)
        else:
            raise BeginAgain(f"an unfinished upload of {show(file.path)} holds other bytes")
        upload.add(number, stored)
        flight.wait(start, cancel)


class _Flight:
    """One file whose parts go ahead, hashed in their order by whichever thread is there.

    :ivar source: the file.
    :ivar upload: what becomes of it.
    :ivar _offered: offset → a part that waits for those before it.
    """

    def __init__(self, source: LooseFile, way: PutAhead) -> None:
        self.source = source
        self.upload = _Upload(FileEntry(source.path, source.stamp.size, ""), way)
        self._lock = Lock()
        self._offered: dict[int, memoryview] = {}
        self._hash = hashlib.sha256()
        self._is_hashing = False
        self._position = self._sent = 0

    def offer(self, start: int, view: memoryview) -> None:
        """Have a part hashed, now or once those before it were offered; it stays as it is until that is done."""
        with self._lock:
            self._offered[start] = view
        while (due := self._due()) is not None:
            self._hash.update(due)
            with self._lock:
                self._position += len(due)
                self._is_hashing = False

    def _due(self) -> memoryview | None:
        """Return the next part, for one thread at a time."""
        with self._lock:
            if self._is_hashing or self._position not in self._offered:
                return None
            self._is_hashing = True
            return self._offered.pop(self._position)

    def wait(self, start: int, cancel: CancelToken) -> None:
        """Wait until a part is hashed."""
        while self._position <= start:
            cancel.sleep(_TICK)

    def sent(self, size: int) -> None:
        """Count what was sent."""
        with self._lock:
            self._sent += size

    def result(self, driver: SyncDriver) -> SentAhead:
        """Return what has become of it, once all parts are there."""
        upload = OpenObject(self.upload.begun(driver), self.upload.parts)
        return SentAhead(self._hash.hexdigest(), upload, self._sent)


class _Upload:
    """One file on its way: in one request, or in parts that are put together by whoever brings the last one.

    :ivar known: the parts that an earlier try has left.
    :ivar parts: those that are there.
    """

    def __init__(self, file: FileEntry, way: PutObjects | PutAhead) -> None:
        self.file = file
        self.is_whole = file.size <= way.writer.part_size
        self.numbers = range(1, max(1, -(-file.size // way.writer.part_size)) + 1)
        self._writer = way.writer
        self._lock = Lock()
        opened = way.open.get(file.path)
        self._id = opened.upload_id if opened else None
        self.known: Mapping[int, Stored] = opened.parts if opened else {}
        self.parts: dict[int, Stored] = {}

    def begun(self, driver: SyncDriver) -> str:
        """Return the upload's id, beginning it when nobody has."""
        with self._lock:
            if self._id is None:
                self._id = driver.run(self._writer.begin(self.file))
            return self._id

    def add(self, number: int, stored: Stored) -> dict[int, Stored] | None:
        """Note a part as stored; return all of them to whoever brings the last one."""
        with self._lock:
            self.parts[number] = stored
            return self.parts if len(self.parts) == len(self.numbers) else None


class _PartBody:
    def __init__(self, view: memoryview) -> None:
        self._view = view

    def pieces(self) -> Generator[memoryview, None, None]:
        for start in range(0, len(self._view), BLOCK):
            yield self._view[start : start + BLOCK]

"""Files that go up by their hashes, each as the server decides: in one request, or in parts of a size that it says."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.http.storage import UrlExpired
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.files import FileBody
from airflow_provider_modelsync.core.transfer.mover import Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, Blob, PutBlobs

log = logging.getLogger("modelsync")


def put_blobs(way: PutBlobs, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Send files; those in parts one after another, many parts at a time, the others many at a time."""
    return _Push(way, control, driver, mover).run()


class _Push:
    def __init__(self, way: PutBlobs, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._way = way
        self._control = control
        self._driver = driver
        self._mover = mover
        self._progress = control.progress(sum(file.size for file in way.files))

    def run(self) -> TransferStats:
        way, control = self._way, self._control
        largest_first = sorted(way.files, key=lambda file: -file.size)
        whole = [file for file in largest_first if way.blobs[file.path].whole is not None]
        for file in largest_first:
            if file not in whole:
                self._put_file(file, control.cancel, workers=control.workers)
        for_each(self._put_file, whole, workers=control.workers, cancel=control.cancel)
        self._progress.finish()
        sent = sum(file.size for file in way.files) + way.further
        return TransferStats(sent_bytes=sent, resumed_bytes=max(0, way.source.size_bytes - sent))

    def _put_file(self, file: FileEntry, cancel: CancelToken, *, workers: int = 1) -> None:
        """Send a file; once what was signed has expired, what went up of it before is lost."""
        blob: Blob | None = self._way.blobs[file.path]
        fruitless = 0
        while blob is not None:
            sender = _Sender(self, file, blob)
            try:
                etags = sender.send(cancel, workers)
            except BeginAgain as error:
                blob = self._asked_anew(file, sender.sent, error)
                fruitless = 0 if sender.sent else fruitless + 1
                if fruitless > 1:
                    raise
                continue
            # What it was made of is known before anybody can have it under its hash.
            self._way.source.confirm([file.path])
            try:
                self._driver.run(self._way.finish(file, blob, etags))
            except BeginAgain as error:
                blob = self._asked_anew(file, sender.sent, error)
                fruitless += 1
                if blob is not None and fruitless > 1:
                    raise
            else:
                return
        self._progress.add(file.size)  # by somebody else, or by our own try whose answer was lost

    def _asked_anew(self, file: FileEntry, sent: int, error: BeginAgain) -> Blob | None:
        log.info("%s; asking anew where %s goes up to", error.message, show(file.path))
        self._progress.add(-sent)
        self._progress.resend()
        return self._driver.run(self._way.ask(file))

    def put(self, file: FileEntry, address: Address, start: int, length: int, cancel: CancelToken) -> str:
        """Send a part once, or all, and return its tag."""
        answer = self._mover.put(
            address.url,
            partial(FileBody, self._way.source, file, start, length),
            length,
            address.headers,
            pace=address.pace,
            cancel=cancel,
            on_bytes=self._progress.add,
        )
        doing = f"uploading {show(file.path)}"
        if address.explain is not None:
            address.explain(answer, doing)
        (answer.raise_for_store if address.presigned else answer.raise_for_status)(doing, not_found=BeginAgain)
        return answer.headers.get("ETag", "")

    def resend(self) -> None:
        self._progress.resend()


class _Sender:
    """One file on its way to the addresses of one blob.

    :ivar sent: bytes that are there.
    """

    def __init__(self, push: _Push, file: FileEntry, blob: Blob) -> None:
        self._push = push
        self._file = file
        self._blob = blob
        self._lock = Lock()
        self._etags: dict[int, str] = {}
        self.sent = 0

    def send(self, cancel: CancelToken, workers: int) -> list[str]:
        blob, size = self._blob, self._file.size
        if blob.whole is not None:
            self._send(1, blob.whole, 0, size, cancel)
        else:
            numbers: Iterable[int] = range(1, len(blob.parts) + 1)

            def send_part(number: int, token: CancelToken) -> None:
                start = (number - 1) * blob.part_size
                self._send(number, blob.parts[number - 1], start, min(blob.part_size, size - start), token)

            for_each(send_part, numbers, workers=workers, cancel=cancel)
        return [self._etags[number] for number in sorted(self._etags)]

    def _send(self, number: int, address: Address, start: int, length: int, cancel: CancelToken) -> None:
        def put() -> str:
            try:
                return self._push.put(self._file, address, start, length, cancel)
            except UrlExpired as error:  # this very address is not going to be taken again
                raise BeginAgain(error.message) from None

        etag = with_retries(put, cancel=cancel, on_repeat=self._push.resend)
        with self._lock:
            self._etags[number] = etag
            self.sent += length

"""One object in a storage, read by ranges of one and the same state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Self

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.http.storage import UrlExpired
from airflow_provider_modelsync.core.transfer.mover import Download, MovedResponse, Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, AskAddress, GetFiles

PROBE = 64 << 10  # bytes of the first request
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class RangedObject:
    """An object in a storage. Safe to use from many threads.

    :param ask: where it is; asked again when a signature has expired.
    :param driver: asks.
    :param mover: receives.
    :param etag: strong tag of the wanted state, where it is known.
    :param size: bytes, where they are known.
    :param within: where the object begins in something larger, and how large that is, when it lies in such.
    :param is_proved: whether what comes is compared with a hash: then an answer need not say which range it is.
    """

    def __init__(
        self,
        ask: AskAddress,
        driver: SyncDriver,
        mover: Mover,
        *,
        etag: str | None = None,
        size: int = 0,
        within: tuple[int, int] | None = None,
        is_proved: bool = False,
    ) -> None:
        self._ask = ask
        self._driver = driver
        self._mover = mover
        self._lock = Lock()
        self._known: Address | None = None
        self._within = within
        self._is_proved = is_proved
        self.etag = etag
        self.size = size

    @classmethod
    def of(cls, way: GetFiles, file: FileEntry, driver: SyncDriver, mover: Mover) -> Self:
        """Return one of the files that come down each by itself."""
        etag, within = way.etags.get(file.path), way.slices.get(file.path)
        ask = partial(way.address, file)
        return cls(ask, driver, mover, etag=etag, size=file.size, within=within, is_proved=way.is_proved)

    @property
    def address(self) -> Address:
        """Where the object is."""
        with self._lock:
            if self._known is None:
                self._known = self._driver.run(self._ask())
            return self._known

    @contextmanager
    def open(self, start: int, end: int | None, cancel: CancelToken | None = None) -> Iterator[Download]:
        """Ask for the bytes from ``start`` up to ``end``, ``None`` for all; yield the answer, whatever its status.

        When the block finds that the URL has expired, the next call asks for another one. Credentials that are refused
        are asked for once more.
        """
        address = self.address
        try:
            with self._asked(address, start, end, cancel) as answer:
                if answer.status != 401 or address.presigned:
                    yield answer
                    return
                refusal = answer.answer()  # read, so that the connection is kept
            self._forget(address)
            if (other := self.address) == address:
                _refuse(refusal, address)
            address = other
            with self._asked(address, start, end, cancel) as answer:
                yield answer
        except UrlExpired:
            self._forget(address)
            raise

    def _asked(
        self, address: Address, start: int, end: int | None, cancel: CancelToken | None
    ) -> AbstractContextManager[Download]:
        headers = dict(address.headers)
        if self._within is not None:
            offset, _ = self._within
            start, end = offset + start, offset + (self.size if end is None else end)
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        if self.etag is not None:
            headers["If-Match"] = self.etag
        method = "GET" if address.content is None else "POST"
        return self._mover.get(
            address.url, headers, method=method, content=address.content, pace=address.pace, cancel=cancel
        )

    def _forget(self, address: Address) -> None:
        """Have the next call ask for another address."""
        with self._lock:
            if self._known is address:  # else another thread has asked already
                address.refused()
                self._known = None

    def accept(self, answer: Download) -> bool:
        """Look at the first answer: whether the object can be read by ranges. Its state and size are kept."""
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise the same bytes.
        if answer.status != 206 or not found or found[1] != "0" or not etag.startswith('"'):
            return False
        self.etag, self.size = etag, int(found[3])
        return True

    def check(self, answer: Download, start: int, end: int) -> None:
        """Raise unless an answer holds exactly the wanted bytes of the state that was accepted."""
        if answer.status == 206:
            said = answer.headers.get("Content-Range", "")
            offset, total = self._within or (0, self.size)
            wanted = f"bytes {offset + start}-{offset + end - 1}/{total}"
            is_told = said == wanted or (self._is_proved and not said)
            if is_told and self._is_in_state(answer):
                return
            raise RegistryUnavailable(f"the storage sent {said!r} instead of {wanted}")
        refuse(answer, self.address)
        raise RegistryUnavailable(f"the storage answered {answer.status} to a range")

    def check_whole(self, answer: Download) -> None:
        """Raise unless an answer holds the whole object in the wanted state."""
        if self._within is not None:
            self.check(answer, 0, self.size)
            return
        refuse(answer, self.address)
        if answer.status != 200 or answer.length not in (None, self.size) or not self._is_in_state(answer):
            raise RegistryUnavailable(
                f"the storage answered {answer.status} with {answer.length} bytes of {answer.headers.get('ETag')} "
                f"instead of {self.size} of {self.etag}"
            )

    def _is_in_state(self, answer: Download) -> bool:
        """Whether an answer is of the wanted state, as far as tags are known on both sides."""
        return self.etag in (None, answer.headers.get("ETag", self.etag))

    def read(self, start: int, end: int, cancel: CancelToken) -> memoryview:
        """Return a range as a whole, trying again as often as anything."""

        def once() -> memoryview:
            with self.open(start, end, cancel) as answer:
                self.check(answer, start, end)
                return read_all(answer, end - start)

        return with_retries(once, cancel=cancel)


def refuse(answer: Download, address: Address) -> None:
    """Raise what an answer without the wanted bytes means; return when its status says success."""
    if 200 <= answer.status < 300:
        return
    if answer.status == 412:
        raise RegistryUnavailable("the model was replaced while it was being downloaded")
    _refuse(answer.answer(), address)


def _refuse(refusal: MovedResponse, address: Address) -> None:
    if address.explain is not None:
        address.explain(refusal, "downloading the model")
    raise_for = refusal.raise_for_store if address.presigned else refusal.raise_for_status
    raise_for("downloading the model", not_found=ModelNotFound)


def read_all(answer: Download, length: int) -> memoryview:
    """Return the bytes of an answer that has so many."""
    view, done = memoryview(bytearray(length)), 0
    while done < length and (count := answer.readinto(view[done:])):
        done += count
    require(done, length)
    return view


def require(received: int, wanted: int) -> None:
    if received != wanted:
        raise RegistryUnavailable(f"the storage sent {received} instead of {wanted} bytes")

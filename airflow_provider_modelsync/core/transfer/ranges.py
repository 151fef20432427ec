"""Pulling one archive by ranges: many requests at a time, and nothing twice after an interruption.

Small members are unpacked as the archive is walked through. The content of large ones is skipped on that walk, then
fetched in pieces by several threads. Finished pieces are noted in a journal beside them, so that the next try on the
same machine fetches only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry
from airflow_provider_modelsync.core.archive.extract import DirectorySink, unpack
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY
from airflow_provider_modelsync.core.cancel import CancelToken
from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable, from_os_error
from airflow_provider_modelsync.core.flow import SyncDriver
from airflow_provider_modelsync.core.parallel import for_each
from airflow_provider_modelsync.core.transfer import durable
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Download, Mover, UrlExpired, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, AskAddress
from airflow_provider_modelsync.core.transfer.progress import Progress

PROBE = 64 << 10  # bytes of the first request
LARGE = 8 << 20  # bytes from which on a member is fetched in pieces
PIECE = 16 << 20  # bytes of one such request
_WINDOW = 16 << 20  # bytes of one request on the walk, at most

_NOTHING = memoryview(b"")
_JOURNAL = "journal"
_NOTE = re.compile(r"(-?)(\d{1,18}) (\d{1,18})")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull wrote.

    :param files: with sizes and hashes as written.
    :param moved_bytes: bytes received.
    :param resumed_bytes: bytes that an earlier try had received.
    """

    files: tuple[FileEntry, ...]
    moved_bytes: int
    resumed_bytes: int = 0


class RangedObject:
    """An object in a storage, read by ranges of one and the same state. Safe to use from many threads.

    :param ask: where it is; asked again when a signature has expired.
    :param driver: asks.
    :param mover: receives.
    """

    def __init__(self, ask: AskAddress, driver: SyncDriver, mover: Mover) -> None:
        self._ask = ask
        self._driver = driver
        self._mover = mover
        self._lock = threading.Lock()
        self._known: Address | None = None
        self.etag: str | None = None
        self.size = 0

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

        When the block finds that the URL has expired, the next call asks for another one.
        """
        address = self.address
        headers = dict(address.headers)
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        if self.etag is not None:
            headers["If-Match"] = self.etag
        try:
            with self._mover.get(address.url, headers, cancel=cancel) as answer:
                yield answer
        except UrlExpired:
            with self._lock:
                if self._known is address:  # else another thread has asked already
                    self._known = None
            raise

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
            if said == f"bytes {start}-{end - 1}/{self.size}" and answer.headers.get("ETag", self.etag) == self.etag:
                return
            raise RegistryUnavailable(f"the storage sent {said!r} instead of bytes {start}-{end - 1}/{self.size}")
        refuse(answer, self.address)
        raise RegistryUnavailable(f"the storage answered {answer.status} to a range")

    def read(self, start: int, end: int, cancel: CancelToken) -> memoryview:
        """Return a range as a whole, trying again as often as anything."""

        def once() -> memoryview:
            with self.open(start, end, cancel) as answer:
                self.check(answer, start, end)
                return read_all(answer, end - start)

        # Each try asks for the address, so there is nothing to refresh when a signature has expired.
        return with_retries(once, cancel=cancel, refresh=lambda: None)


def holds_pieces(directory: Path) -> bool:
    """Whether an interrupted pull has left something in a directory that the next one can use."""
    try:
        lines = (directory / RESERVED_DIRECTORY / _JOURNAL).read_bytes().splitlines()
    except OSError:
        return False
    return len(lines) > 1  # the first says what they belong to


def refuse(answer: Download, address: Address) -> None:
    """Raise what an answer without the wanted bytes means; return when its status says success."""
    if 200 <= answer.status < 300:
        return
    if answer.status == 412:
        raise RegistryUnavailable("the archive was replaced while it was being downloaded")
    refusal = answer.answer()
    (refusal.raise_for_store if address.presigned else refusal.raise_for_status)(
        "downloading the model", not_found=ModelNotFound
    )


def read_all(answer: Download, length: int) -> memoryview:
    """Return the bytes of an answer that has so many."""
    view, done = memoryview(bytearray(length)), 0
    while done < length and (count := answer.readinto(view[done:])):
        done += count
    _require(done, length)
    return view


def _require(received: int, wanted: int) -> None:
    if received != wanted:
        raise RegistryUnavailable(f"the storage sent {received} instead of {wanted} bytes")


def pull_ranges(source: RangedObject, first: memoryview, target: Path, ref: str, control: Control) -> Pulled:
    """Unpack an archive that can be read by ranges.

    :param source: the archive; its first answer was accepted.
    :param first: its first bytes.
    :param target: a directory that is empty, or as an earlier try has left it.
    :param ref: the version, for the journal.
    :param control: how to cancel, what to tell.
    :return: the files, hashed as they were written.
    """
    identity = {"ref": ref, "etag": source.etag, "size": source.size}
    with closing(_Journal(target / RESERVED_DIRECTORY, identity)) as journal:
        progress = control.progress(source.size)
        sink = DirectorySink(target)
        large: list[_LargeFile] = []

        def put_aside(path: str, size: int, executable: bool, offset: int) -> bool:
            if size < LARGE:
                return False
            large.append(_LargeFile(path, size, executable, offset, journal.directory / str(offset)))
            return True

        walk = _Walk(source, first, control.cancel, progress)
        unpack(walk, sink, cancel=control.cancel, put_aside=put_aside)
        # What the walk received of large files, it received for nothing.
        progress.add(source.size - sum(file.size for file in large) - progress.done)
        resumed = 0
        missing: list[tuple[_LargeFile, int, int]] = []
        try:
            for file in large:
                if not file.is_there():
                    journal.forget(file.spans())
                    file.make()
                for start, end in file.spans():
                    if (start, end) in journal.done:
                        file.add(start, end)
                        resumed += end - start
                    else:
                        missing.append((file, start, end))
            progress.add(resumed)

            def fetch(piece: tuple[_LargeFile, int, int], cancel: CancelToken) -> None:
                file, start, end = piece
                _fetch(source, file, start, end, cancel, progress)
                journal.add(start, end)
                file.add(start, end)

            for_each(fetch, missing, workers=control.workers, cancel=control.cancel)
            for file in large:
                file.put_in_place(target)
        except OSError as error:
            raise from_os_error(error, f"writing below {target}") from error
    durable.remove_tree(journal.directory)
    progress.finish()
    tree = sink.finish(target)
    files = (*tree.files, *(file.entry() for file in large))
    return Pulled(files, moved_bytes=progress.done - resumed, resumed_bytes=resumed)


def _fetch(
    source: RangedObject, file: _LargeFile, start: int, end: int, cancel: CancelToken, progress: Progress
) -> None:
    """Write one piece into its file."""

    def once() -> None:
        position = start
        try:
            with source.open(start, end, cancel) as answer, file.opened() as descriptor:
                source.check(answer, start, end)
                for block in answer.blocks():
                    _pwrite(descriptor, block[: max(0, end - position)], position - file.offset)
                    position += len(block)
                    progress.add(len(block))
            _require(position - start, end - start)
        except BaseException:
            progress.add(start - position)  # they do not count
            raise

    with_retries(once, cancel=cancel, refresh=lambda: None)


def _pwrite(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        count = os.pwrite(descriptor, block, offset)
        block, offset = block[count:], offset + count


class _Walk:
    """The archive as the reader of archives wants it, except that it can jump over content."""

    def __init__(self, source: RangedObject, first: memoryview, cancel: CancelToken, progress: Progress) -> None:
        self._source = source
        self._cancel = cancel
        self._progress = progress
        self._buffer = first
        self._position = len(first)  # of what comes after the buffer
        self._window = PROBE

    def read(self, size: int, /) -> bytes:
        if not self._buffer:
            # Small steps after a jump, since another large member may follow at once.
            self._window = min(2 * self._window, _WINDOW)
            end = min(self._position + self._window, self._source.size)
            if end <= self._position:  # a jump may lead beyond the end of an archive that was cut
                return b""
            self._buffer = _NOTHING  # before the next one is made: both are large
            self._buffer = self._source.read(self._position, end, self._cancel)
            self._position = end
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._progress.add(len(taken))
        return bytes(taken)

    def skip(self, count: int, /) -> None:
        """Jump over bytes. What the buffer holds of them was received for nothing."""
        inside = min(count, len(self._buffer))
        self._buffer = self._buffer[inside:]
        if not self._buffer:
            self._position += count - inside
            self._window = PROBE


class _LargeFile:
    """A member whose content comes in pieces. It is hashed behind the pieces, in order, out of the page cache."""

    def __init__(self, path: str, size: int, executable: bool, offset: int, scratch: Path) -> None:
        self.path = path
        self.size = size
        self.executable = executable
        self.offset = offset  # of its content in the archive
        self._scratch = scratch
        self._lock = threading.Lock()
        self._ready: dict[int, int] = {}
        self._hashed = offset
        self._is_hashing = False
        self._total = hashlib.sha256()

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the pieces as offsets in the archive."""
        end = self.offset + self.size
        for start in range(self.offset, end, PIECE):
            yield start, min(start + PIECE, end)

    def is_there(self) -> bool:
        """Whether there is room for the pieces already, and so may be pieces."""
        try:
            facts = self._scratch.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(facts.st_mode) and facts.st_size == self.size

    def make(self) -> None:
        """Make room for the pieces."""
        descriptor = os.open(self._scratch, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, self.size)
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self) -> Iterator[int]:
        descriptor = os.open(self._scratch, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def add(self, start: int, end: int) -> None:
        """Note that a piece is written, and hash what has become contiguous unless another thread is at it."""
        with self._lock:
            self._ready[start] = end
        while True:
            with self._lock:
                if self._is_hashing or self._hashed not in self._ready:
                    return
                self._is_hashing = True
                start, end = self._hashed, self._ready.pop(self._hashed)
            try:
                self._hash(start - self.offset, end - self.offset)
                with self._lock:
                    self._hashed = end
            finally:
                with self._lock:
                    self._is_hashing = False

    def put_in_place(self, target: Path) -> None:
        self._scratch.chmod(0o755 if self.executable else 0o644)
        self._scratch.rename(target / self.path)

    def entry(self) -> FileEntry:
        return FileEntry(self.path, self.size, self._total.hexdigest(), self.executable)

    def _hash(self, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(BLOCK, end - start)))
        with self.opened() as descriptor:
            while start < end:
                count = os.preadv(descriptor, [buffer[: end - start]], start)
                if not count:
                    raise RegistryUnavailable(f"{self._scratch} was cut by somebody else")
                self._total.update(buffer[:count])
                start += count


class _Journal:
    """Which pieces are written, in a file that outlives the process.

    :param directory: holds the journal and the pieces.
    :param identity: what the archive is; a journal of anything else, or of before the machine's last start, when
        written pieces may have been lost, is thrown away with everything beside its directory.
    """

    def __init__(self, directory: Path, identity: Mapping[str, object]) -> None:
        self.directory = directory
        self._path = directory / _JOURNAL
        header = json.dumps({**identity, "boot": _boot_id()}, sort_keys=True)
        lines = self._lines()
        self.done = _spans(lines[1:]) if lines[:1] == [header] else set()
        keep = bool(self.done)
        for entry in directory.parent.iterdir():
            if entry != directory or not keep:
                durable.remove_entry(entry)
        directory.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        # A line that was cut by the end of its writer stays one of its own.
        os.write(self._descriptor, b"\n" if keep else f"{header}\n".encode())

    def add(self, start: int, end: int) -> None:
        with self._lock:
            os.write(self._descriptor, f"{start} {end}\n".encode())

    def forget(self, spans: Iterable[tuple[int, int]]) -> None:
        """Take pieces back that are not there any more, before there is room for them again."""
        if lost := self.done.intersection(spans):
            self.done -= lost
            os.write(self._descriptor, "".join(f"-{start} {end}\n" for start, end in lost).encode())

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # a thread that comes late must not write to whatever gets the number

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError):
            return []
        return text.splitlines()


def _spans(lines: Iterable[str]) -> set[tuple[int, int]]:
    """Return the pieces that were noted and not taken back."""
    spans: set[tuple[int, int]] = set()
    for line in lines:
        if found := _NOTE.fullmatch(line):
            (spans.discard if found[1] else spans.add)((int(found[2]), int(found[3])))
    return spans


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(8)  # nothing is known, so nothing is taken up

"""Large files that come down in pieces: many requests at a time, and nothing twice after an interruption.

Finished pieces are noted in a journal beside them, so that the next try on the same machine fetches only what is
missing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modelsync.core import durable, writer
from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, Proof
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY, show
from airflow_provider_modelsync.core.errors import DigestMismatch, RegistryUnavailable, from_os_error
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import with_retries
from airflow_provider_modelsync.core.transfer.progress import Progress
from airflow_provider_modelsync.core.transfer.ranges import RangedObject, require

LARGE = 8 << 20  # bytes from which on a file is fetched in pieces
PIECE = 16 << 20  # bytes of one such request

log = logging.getLogger("modelsync")

_JOURNAL = "journal"
_NOTE = re.compile(r"(-?)(\d{1,18}) (\d{1,18})")


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


def holds_pieces(directory: Path) -> bool:
    """Whether an interrupted pull has left something in a directory that the next one can use."""
    try:
        lines = (directory / RESERVED_DIRECTORY / _JOURNAL).read_bytes().splitlines()
    except OSError:
        return False
    return len(lines) > 1  # the first says what they belong to


def fetch_pieces(
    files: Sequence[LargeFile], journal: Journal, target: Path, control: Control, progress: Progress
) -> int:
    """Fetch what is missing of large files and put them in place.

    :param files: the files; their offsets must not overlap.
    :param journal: the pieces that are there.
    :param target: the directory that the files belong below.
    :param control: how to cancel, how wide to go.
    :param progress: told of all bytes.
    :return: bytes that an earlier try had fetched.
    """
    resumed = 0
    missing: list[tuple[LargeFile, int, int]] = []

    def fetch_missing() -> None:
        for_each(fetch, missing, workers=control.workers, cancel=control.cancel)

    def fetch(piece: tuple[LargeFile, int, int], cancel: CancelToken) -> None:
        file, start, end = piece
        _fetch(file, start, end, cancel, progress)
        journal.add(start, end)
        file.add(start, end)

    try:
        for file in files:
            if not file.is_there():
                journal.forget(file.spans())
                file.make()
            for start, end in file.spans():
                if (start, end) in journal.done:
                    file.add(start, end)
                    resumed += end - start
                else:
                    missing.append((file, start, end))
        progress.pass_over(resumed)
        fetch_missing()
        if wrong := [file for file in files if not file.holds]:
            # A flipped bit on the way, or on this disk since an earlier try, is cured by another look.
            missing = [(file, start, end) for file in wrong for start, end in file.spans()]
            for file in wrong:
                log.warning("the bytes of %s do not match its hash: reading them again", show(file.path))
                resumed -= journal.forget(file.spans())
                progress.add(-file.size)
                progress.resend()
                file.restart()
            fetch_missing()
            if wrong := [file for file in wrong if not file.holds]:
                raise mismatch(wrong[0].path)
        for file in files:
            file.put_in_place(target)
    except OSError as error:
        raise from_os_error(error, f"writing the model's files in {os.path.realpath(target)}") from error
    return resumed


def mismatch(path: str) -> DigestMismatch:
    """Return the error of a file whose bytes are wrong, seen twice."""
    return DigestMismatch(f"the bytes of {show(path)} do not match the hash that its registry tells, seen twice")


def _fetch(file: LargeFile, start: int, end: int, cancel: CancelToken, progress: Progress) -> None:
    """Write one piece into its file."""

    def once() -> None:
        position = start
        try:
            first, last = start - file.shift, end - file.shift
            with file.source.open(first, last, cancel) as answer, file.opened() as descriptor:
                file.source.check(answer, first, last)
                for block in answer.blocks():
                    with file.writing:
                        _pwrite(descriptor, block[: max(0, end - position)], position - file.offset)
                    position += len(block)
                    progress.add(len(block))
                    if position > end:  # of an answer that does not end
                        break
            require(position - start, end - start)
        except BaseException:
            progress.add(start - position)  # they do not count
            raise

    with_retries(once, cancel=cancel, on_repeat=progress.resend)


def _pwrite(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        count = os.pwrite(descriptor, block, offset)
        block, offset = block[count:], offset + count


class LargeFile:
    """A file whose content comes in pieces. It is hashed behind the pieces, in order, out of the page cache.

    :param path: where it belongs.
    :param size: bytes.
    :param executable: whether it may be executed.
    :param offset: where its content starts among all the bytes of the model, for the journal.
    :param scratch: where it is put together.
    :param source: holds its content.
    :param shift: what to take from an offset to get the position in the source.
    :param piece_size: bytes of a piece.
    :param proof: tells whether the bytes are right.
    :ivar writing: held by who writes: the kernel lets one thread at a time write to a file, and others spin meanwhile.
    """

    def __init__(
        self,
        path: str,
        size: int,
        executable: bool,
        offset: int,
        scratch: Path,
        source: RangedObject,
        shift: int = 0,
        *,
        piece_size: int | None = None,
        proof: Proof | None = None,
    ) -> None:
        self.path = path
        self.size = size
        self.executable = executable
        self.offset = offset
        self.source = source
        self.shift = shift
        self._piece_size = piece_size or PIECE
        self._scratch = scratch
        self.writing = Lock()
        self._lock = Lock()
        self._is_hashing = False
        self._proof = proof or Proof(size, "")
        self.restart()

    def restart(self) -> None:
        """Begin again: none of its pieces is there."""
        self._ready: dict[int, int] = {}
        self._hashed = self.offset
        self._proof.restart()

    @property
    def holds(self) -> bool:
        """Whether the bytes are those that were promised."""
        return self._proof.holds

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the pieces."""
        end = self.offset + self.size
        for start in range(self.offset, end, self._piece_size):
            yield start, min(start + self._piece_size, end)

    def is_there(self) -> bool:
        """Whether there is room for the pieces already, and so may be pieces."""
        try:
            facts = self._scratch.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(facts.st_mode) and facts.st_size == self.size

    def make(self) -> None:
        """Make room for the pieces."""
        descriptor = os.open(
            self._scratch, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, durable.mode_of(self.executable)
        )
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
        self._scratch.rename(target / self.path)

    def entry(self) -> FileEntry:
        return FileEntry(self.path, self.size, self._proof.sha256, self.executable)

    def _hash(self, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(BLOCK, end - start)))
        with self.opened() as descriptor:
            while start < end:
                count = os.preadv(descriptor, [buffer[: end - start]], start)
                if not count:
                    raise RegistryUnavailable(f"{self.path} was cut by somebody else")
                self._proof.update(buffer[:count])
                start += count


class Journal:
    """Which pieces are written, in a file that outlives the process.

    :param directory: holds the journal and the pieces.
    :param identity: what is being pulled; a journal of anything else, or of before the machine's last start, when
        written pieces may have been lost, is thrown away with everything beside its directory.
    """

    def __init__(self, directory: Path, identity: Mapping[str, object]) -> None:
        self.directory = directory
        self._path = directory / _JOURNAL
        header = json.dumps({**identity, "boot": _boot()}, sort_keys=True)
        lines = self._lines()
        self.done = _spans(lines[1:]) if lines[:1] == [header] else set()
        self._noted = set(self.done)  # with those of this try
        keep = bool(self.done)
        for entry in directory.parent.iterdir():
            if entry != directory or not keep:
                durable.remove_entry(entry)
        directory.mkdir(exist_ok=True)
        self._lock = Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        # A line that was cut by the end of its writer stays one of its own.
        os.write(self._descriptor, b"\n" if keep else f"{header}\n".encode())

    def add(self, start: int, end: int) -> None:
        with self._lock:
            self._noted.add((start, end))
            os.write(self._descriptor, f"{start} {end}\n".encode())

    def forget(self, spans: Iterable[tuple[int, int]]) -> int:
        """Take pieces back that are not there any more, before there is room for them again.

        :return: how many bytes an earlier try had noted.
        """
        spans = set(spans)
        if lost := self._noted.intersection(spans):
            self._noted -= lost
            os.write(self._descriptor, "".join(f"-{start} {end}\n" for start, end in lost).encode())
        before = self.done.intersection(spans)
        self.done -= before
        return sum(end - start for start, end in before)

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


def _boot() -> str:
    try:
        return writer.boot_id()
    except OSError:
        return secrets.token_hex(8)  # nothing is known, so nothing is taken up

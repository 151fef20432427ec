"""Pulling one archive by ranges.

Small members are unpacked as the archive is walked through, while the next window of it comes. The content of large
ones is skipped on that walk, then fetched in pieces by several threads.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.extract import DirectorySink, Limits, unpack
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import start_thread
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.large_files import Journal, LargeFile, Pulled, fetch_pieces
from airflow_provider_modelsync.core.transfer.progress import Progress
from airflow_provider_modelsync.core.transfer.ranges import PROBE, RangedObject

_WINDOW = 16 << 20  # bytes of one request on the walk, at most
_AHEAD = 1 << 20  # bytes of a window from which on the next is asked for before it is needed: no large member is near
_GRACE = 1.0  # seconds that a request gets to end once it is broken off
_TICK = 0.1  # seconds between two looks at whether the wait is to end

_NOTHING = memoryview(b"")


def pull_ranges(
    source: RangedObject, first: memoryview, target: Path, ref: str, control: Control, limits: Limits
) -> Pulled:
    """Unpack an archive that can be read by ranges.

    :param source: the archive; its first answer was accepted.
    :param first: its first bytes.
    :param target: a directory that is empty, or as an earlier try has left it.
    :param ref: the version, for the journal.
    :param control: how to cancel, what to tell.
    :param limits: how much it may hold.
    :return: the files, hashed as they were written.
    """
    identity = {"ref": ref, "etag": source.etag, "size": source.size}
    with closing(Journal(target / RESERVED_DIRECTORY, identity)) as journal:
        progress = control.progress(source.size)
        sink = DirectorySink(target)
        large: list[LargeFile] = []

        def put_aside(path: str, size: int, executable: bool, offset: int) -> bool:
            if size < large_files.LARGE:
                return False
            scratch = journal.directory / str(offset)
            large.append(LargeFile(path, size, executable, offset, scratch, source, piece_size=control.piece_size))
            return True

        with closing(_Walk(source, first, control.cancel, progress)) as walk:
            unpack(walk, sink, limits=limits, cancel=control.cancel, put_aside=put_aside)
        # What the walk received of large files, it received for nothing.
        progress.add(source.size - sum(file.size for file in large) - progress.done)
        resumed = fetch_pieces(large, journal, target, control, progress)
    durable.remove_tree(journal.directory)
    progress.finish()
    tree = sink.finish(target)
    files = (*tree.files, *(file.entry() for file in large))
    return Pulled(files, moved_bytes=progress.done - resumed, resumed_bytes=resumed)


class _Walk:
    """The archive as the reader of archives wants it, except that it can jump over content."""

    def __init__(self, source: RangedObject, first: memoryview, cancel: CancelToken, progress: Progress) -> None:
        self._source = source
        self._cancel = cancel
        self._progress = progress
        self._buffer = first
        self._position = len(first)  # of what comes after the buffer
        self._window = PROBE
        self._ahead: _Ahead | None = None

    def read(self, size: int, /) -> bytes:
        if not self._buffer and not self._receive():
            return b""
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._progress.add(len(taken))
        return bytes(taken)

    def skip(self, count: int, /) -> None:
        """Jump over bytes. What the buffer holds of them, or is on its way, was received for nothing."""
        inside = min(count, len(self._buffer))
        self._buffer = self._buffer[inside:]
        if not self._buffer:
            self._position += count - inside
            self._window = PROBE
        if count > inside and self._ahead is not None:
            self._ahead.give_up()
            self._ahead = None

    def close(self) -> None:
        """Give up what is on its way, and wait for its end."""
        if self._ahead is not None:
            self._ahead.give_up()
            self._ahead.wait()

    def _receive(self) -> bool:
        """Fill the buffer with the next window; return whether there is one."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            # Small steps after a jump, since another large member may follow at once.
            self._window = min(2 * self._window, _WINDOW)
            end = self._end_from(self._position)
            if end <= self._position:  # a jump may lead beyond the end of an archive that was cut
                return False
            self._buffer = _NOTHING  # before the next one is made: both are large
            self._buffer = self._source.read(self._position, end, self._cancel)
        else:
            self._buffer, end = _NOTHING, ahead.end
            self._buffer = ahead.taken()
        self._position = end
        if self._window >= _AHEAD:
            self._window = min(2 * self._window, _WINDOW)
            if (further := self._end_from(end)) > end:
                self._ahead = _Ahead(self._source, end, further, self._cancel)
        return True

    def _end_from(self, start: int) -> int:
        return min(start + self._window, self._source.size)


class _Ahead:
    """A window that comes while the one before it is unpacked."""

    def __init__(self, source: RangedObject, start: int, end: int, cancel: CancelToken) -> None:
        self.end = end
        self._cancel = cancel
        self._token = CancelToken(cancel)
        self._come: list[memoryview] = []
        self._errors: list[BaseException] = []

        def receive() -> None:
            try:
                self._come.append(source.read(start, end, self._token))
            except BaseException as error:
                self._errors.append(error)

        self._thread = start_thread(receive, "modelsync-ahead")

    def taken(self) -> memoryview:
        """Return the bytes once they are there."""
        while self._thread.is_alive():
            self._cancel.check()
            self._thread.join(_TICK)
        if self._errors:
            raise self._errors[0]
        return self._come.pop()

    def give_up(self) -> None:
        """Break the request off."""
        self._token.cancel()

    def wait(self) -> None:
        """Wait for the end of a request that was broken off, for a limited time only."""
        self._thread.join(_GRACE)

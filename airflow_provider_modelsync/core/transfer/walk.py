"""Pulling one archive by ranges.

Small members are unpacked as the archive is walked through. The content of large ones is skipped on that walk, then
fetched in pieces by several threads.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.extract import DirectorySink, Limits, unpack
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.large_files import Journal, LargeFile, Pulled, fetch_pieces
from airflow_provider_modelsync.core.transfer.progress import Progress
from airflow_provider_modelsync.core.transfer.ranges import PROBE, RangedObject

_WINDOW = 16 << 20  # bytes of one request on the walk, at most

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

        walk = _Walk(source, first, control.cancel, progress)
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

"""A model in one registry as the source of a push into another: its bytes never rest on this machine's disk."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import NamedTuple

from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, Source, digest_of
from airflow_provider_modelsync.core.archive.names import require_safe, show
from airflow_provider_modelsync.core.errors import BeginAgain, DigestMismatch, RegistryUnavailable
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.download import read_stored
from airflow_provider_modelsync.core.transfer.local import ReadInto
from airflow_provider_modelsync.core.transfer.mover import Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, FromDirectory, GetFiles
from airflow_provider_modelsync.core.transfer.ranges import RangedObject

_WINDOW = 16 << 20  # bytes of one request, where less is read at a time
_STREAMS = 16  # answers that are kept open for whoever reads on
_AHEAD = 64 << 20  # bytes that wait to be hashed in order; of more, what was read is read again at the end


class StoredModel(Source):
    """The files of a version as its registry holds them, hashed while they are read.

    Made by :meth:`of`. What was read is compared with the registry's hashes by :meth:`confirm`.
    """

    def __init__(
        self,
        ref: str,
        files: Iterable[FileEntry],
        directories: tuple[str, ...],
        read: ReadInto,
        blamed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.files = tuple(sorted(files, key=lambda file: file.path.encode()))
        self.directories = directories
        self._ref = ref
        self._read = read
        self._blamed = blamed
        self._lock = Lock()
        self._ahead = 0
        self._mismatches = 0
        self._hashes = {file.path: _Hash() for file in self.files}

    @classmethod
    def of(
        cls,
        plan: DownloadPlan,
        control: Control,
        driver: SyncDriver,
        mover: Mover,
        blamed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> StoredModel | None:
        """Return a version as a source, or ``None`` when its registry does not tell its files' hashes.

        :param plan: how the version would be pulled.
        :param blamed: what names the registry in errors that reading from it raises.
        :raises DigestMismatch: when the files are not those of the version's digest.
        """
        match plan.way:
            case FromDirectory(directory):
                read: ReadInto = partial(read_stored, directory)
            case GetFiles():
                read = _Streams(plan.way, control, driver, mover).read_into
            case _:
                return None
        if plan.files is None:
            return None
        if plan.digest != digest_of(plan.files):
            raise DigestMismatch(
                f"the files of {plan.version.ref} have {digest_of(plan.files)}, not {plan.version.digest}"
            )
        require_safe(plan.version.ref, (file.path for file in plan.files), plan.way.directories)
        return cls(plan.version.ref, plan.files, plan.way.directories, read, blamed)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        count = self._fill(path, offset, view)
        self._note(path, offset, view, is_kept=False)
        return count

    def read(self, path: str, offset: int, length: int, memory: Callable[[], memoryview] | None = None) -> memoryview:
        view = memoryview(bytearray(length))  # of its own: it may wait to be hashed
        self._fill(path, offset, view)
        self._note(path, offset, view, is_kept=True)
        return view

    def confirm(self, paths: Iterable[str]) -> None:
        known = {file.path: file for file in self.files}
        for path in paths:
            if not self._is_true(known[path]):
                self._hashes, self._ahead = {other: _Hash() for other in known}, 0
                self._mismatches += 1
                said = f"the bytes of {show(path)} in {self._ref} do not match its hash"
                raise BeginAgain(said) if self._mismatches == 1 else DigestMismatch(f"{said}, seen twice")

    def _is_true(self, file: FileEntry) -> bool:
        """Whether all that was ever read of a file is what its hash stands for.

        What went into the hash is vouched for by it, and whatever else was read by having the checksum of a range that
        did. Where the ranges are others, as after a change of parts, the file is hashed once more in those.
        """
        state = self._hashes[file.path]
        while True:
            self._read_rest(file, state)
            if state.total.hexdigest() != file.sha256:
                return False
            sums = {read: state.sum_of(read.offset, read.length) for read in state.claims}
            if any(found not in (None, read.crc32) for read, found in sums.items()):
                return False
            state.claims = {read for read, found in sums.items() if found is None}
            if not state.claims:
                return True
            state.restart()  # each round settles the first claim at least

    def _read_rest(self, file: FileEntry, state: _Hash) -> None:
        """Hash what was not, as an earlier try has sent it or too much was waiting; in the ranges of claims."""
        lengths = {read.offset: read.length for read in state.claims}
        starts = sorted({*lengths, *state.ahead, file.size})
        while (start := state.position) < file.size:
            rest = starts[bisect_right(starts, start)] - start
            view = memoryview(bytearray(lengths.get(start) or min(BLOCK, rest)))
            self._fill(file.path, start, view)
            self._note(file.path, start, view, is_kept=False)

    def _fill(self, path: str, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view):
            with self._blamed():
                count = self._read(path, offset + done, view[done:])
            if not count:
                raise RegistryUnavailable(f"{show(path)} of {self._ref} ends after {offset + done} bytes")
            done += count
        return done

    def _note(self, path: str, offset: int, view: memoryview, *, is_kept: bool) -> None:
        """Hash what was read, now or once all before it has been read; what cannot be is claimed by its checksum."""
        if not view:
            return
        state = self._hashes[path]
        if 0 < (cut := state.position - offset) < len(view):  # the start was read before, the rest was not
            self._note(path, offset, view[:cut], is_kept=is_kept)
            offset, view = offset + cut, view[cut:]
        read = _Read(offset, len(view), zlib.crc32(view))
        with state.lock:
            if offset == state.position:
                state.add(view, read.crc32)
                self._count(-state.catch_up())
            elif offset > state.position and offset not in state.ahead and self._count(len(view)):
                state.ahead[offset] = (view if is_kept else memoryview(bytes(view)), read.crc32)
            elif state.sum_of(offset, len(view)) != read.crc32:
                state.claims.add(read)

    def _count(self, size: int) -> bool:
        """Count bytes that wait to be hashed; return whether there is room for them."""
        with self._lock:
            if self._ahead + size > _AHEAD:
                return False
            self._ahead += size
            return True


class _Read(NamedTuple):
    """A range that was read, and what it held."""

    offset: int
    length: int
    crc32: int


class _Hash:
    """How far a file is hashed, in which ranges, and what else was read of it.

    A range costs 12 bytes. Only claims cost more: they are of bytes read again that do not fit these ranges, or for
    which there was no room to wait.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.ahead: dict[int, tuple[memoryview, int]] = {}
        self.claims: set[_Read] = set()
        self.restart()

    def restart(self) -> None:
        self.total = hashlib.sha256()
        self._bounds = array("Q", [0])
        self._sums = array("I")

    @property
    def position(self) -> int:
        return self._bounds[-1]

    def add(self, view: memoryview, crc32: int) -> None:
        self.total.update(view)
        self._bounds.append(self.position + len(view))
        self._sums.append(crc32)

    def catch_up(self) -> int:
        """Hash what was waiting for its turn; return how many bytes wait no longer."""
        done = 0
        while self.ahead and (offset := min(self.ahead)) <= self.position:
            view, crc32 = self.ahead.pop(offset)
            done += len(view)
            if offset == self.position:
                self.add(view, crc32)
            else:  # its range was read in other pieces
                self.claims.add(_Read(offset, len(view), crc32))
        return done

    def sum_of(self, offset: int, length: int) -> int | None:
        """Return the checksum of a range that was hashed as such."""
        index = bisect_left(self._bounds, offset)
        if self._bounds[index : index + 2].tolist() != [offset, offset + length]:
            return None
        return self._sums[index]


class _Streams:
    """Reads files that come by requests; whoever reads on where another read has ended goes on with its answer."""

    def __init__(self, way: GetFiles, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._control = control
        self._objects = {file.path: RangedObject.of(way, file, driver, mover) for file in way.files}
        self._lock = Lock()
        self._open: OrderedDict[tuple[str, int], _Stream] = OrderedDict()

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill a buffer from a file."""

        def read() -> int:
            with self._lock:
                stream = self._open.pop((path, offset), None)
            stream = stream or _Stream(self._objects[path], offset, max(_WINDOW, len(view)), self._control)
            try:
                count = stream.read_into(view)
            except BaseException:
                stream.close()
                raise
            self._keep(path, offset + count, stream)
            return count

        return with_retries(read, cancel=self._control.cancel)

    def _keep(self, path: str, offset: int, stream: _Stream) -> None:
        over = [stream] if stream.is_over else []
        with self._lock:
            if not over:
                if (path, offset) in self._open:
                    over.append(self._open.pop((path, offset)))
                self._open[path, offset] = stream
            if len(self._open) > _STREAMS:
                over.append(self._open.popitem(last=False)[1])
        for stream in over:
            stream.close()


class _Stream:
    def __init__(self, source: RangedObject, start: int, length: int, control: Control) -> None:
        self._stack = ExitStack()
        end = min(start + length, source.size)
        is_whole = (start, end) == (0, source.size)
        try:
            self._answer = self._stack.enter_context(source.open(start, None if is_whole else end, control.cancel))
            source.check_whole(self._answer) if is_whole else source.check(self._answer, start, end)
        except BaseException:
            self.close()
            raise
        self._rest = end - start

    @property
    def is_over(self) -> bool:
        return self._rest == 0

    def read_into(self, view: memoryview) -> int:
        done, view = 0, view[: self._rest]
        while done < len(view) and (count := self._answer.readinto(view[done:])):
            done += count
        self._rest -= done
        return done

    def close(self) -> None:
        self._stack.close()

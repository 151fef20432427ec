"""A model in one registry as the source of a push into another: its bytes never rest on this machine's disk."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, Source, digest_of
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import DigestMismatch, RegistryUnavailable
from airflow_provider_modelsync.core.flow import SyncDriver
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.download import read_stored
from airflow_provider_modelsync.core.transfer.local import ReadInto
from airflow_provider_modelsync.core.transfer.mover import Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, FromDirectory, GetFiles, UploadGone
from airflow_provider_modelsync.core.transfer.ranges import RangedObject

_WINDOW = 16 << 20  # bytes of one request, where less is read at a time
_STREAMS = 16  # answers that are kept open for whoever reads on
_AHEAD = 64 << 20  # bytes that wait to be hashed in order; of more, what was read is read again at the end


class StoredModel(Source):
    """The files of a version as its registry holds them, hashed while they are read.

    Made by :meth:`of`. What was read is compared with the registry's hashes by :meth:`confirm`.
    """

    def __init__(self, ref: str, files: Iterable[FileEntry], directories: tuple[str, ...], read: ReadInto) -> None:
        self.files = tuple(sorted(files, key=lambda file: file.path.encode()))
        self.directories = directories
        self._ref = ref
        self._read = read
        self._lock = threading.Lock()
        self._ahead = 0
        self._mismatches = 0
        self._hashes = {file.path: _Hash() for file in self.files}

    @classmethod
    def of(cls, plan: DownloadPlan, control: Control, driver: SyncDriver, mover: Mover) -> StoredModel | None:
        """Return a version as a source, or ``None`` when its registry does not tell its files' hashes.

        :param plan: how the version would be pulled.
        :raises DigestMismatch: when the files are not those of the version's digest.
        """
        match plan.way:
            case FromDirectory(directory, files, directories):
                read: ReadInto = partial(read_stored, directory)
            case GetFiles(files, directories):
                read = _Streams(plan.way, control, driver, mover).read_into
            case _:
                return None
        kept = [file for file in files if file.path not in plan.generated]
        if digest_of(kept) != plan.version.digest:
            raise DigestMismatch(f"the files of {plan.version.ref} have {digest_of(kept)}, not {plan.version.digest}")
        return cls(plan.version.ref, kept, directories, read)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        count = self._fill(path, offset, view)
        self._note(path, offset, view, is_kept=False)
        return count

    def read(self, path: str, offset: int, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        self._fill(path, offset, view)
        self._note(path, offset, view, is_kept=True)
        return view

    def confirm(self, paths: Iterable[str]) -> None:
        known = {file.path: file for file in self.files}
        for path in paths:
            file, state = known[path], self._hashes[path]
            while state.position < file.size:  # of what was not read, as an earlier try has sent it
                view = memoryview(bytearray(min(BLOCK, file.size - state.position)))
                self._fill(path, state.position, view)
                self._note(path, state.position, view, is_kept=False)
            if state.total.hexdigest() != file.sha256:
                self._hashes, self._ahead = {other: _Hash() for other in known}, 0
                self._mismatches += 1
                said = f"the bytes of {show(path)} in {self._ref} do not match its hash"
                raise UploadGone(said) if self._mismatches == 1 else DigestMismatch(f"{said}, seen twice")

    def _fill(self, path: str, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view):
            count = self._read(path, offset + done, view[done:])
            if not count:
                raise RegistryUnavailable(f"{show(path)} of {self._ref} ends after {offset + done} bytes")
            done += count
        return done

    def _note(self, path: str, offset: int, view: memoryview, *, is_kept: bool) -> None:
        """Hash what was read, now or once all before it has been read."""
        state = self._hashes[path]
        with state.lock:
            if offset == state.position:
                state.add(view)
                while (rest := state.ahead.pop(state.position, None)) is not None:
                    self._count(-len(rest))
                    state.add(rest)
            # What lies before was read again, for another try to send it.
            elif offset > state.position and offset not in state.ahead and self._count(len(view)):
                state.ahead[offset] = view if is_kept else memoryview(bytes(view))

    def _count(self, size: int) -> bool:
        """Count bytes that wait to be hashed; return whether there is room for them."""
        with self._lock:
            if self._ahead + size > _AHEAD:
                return False
            self._ahead += size
            return True


class _Hash:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = hashlib.sha256()
        self.position = 0
        self.ahead: dict[int, memoryview] = {}

    def add(self, view: memoryview) -> None:
        self.total.update(view)
        self.position += len(view)


class _Streams:
    """Reads files that come by requests; whoever reads on where another read has ended goes on with its answer."""

    def __init__(self, way: GetFiles, control: Control, driver: SyncDriver, mover: Mover) -> None:
        self._control = control
        self._objects = {
            file.path: RangedObject(
                partial(way.address, file), driver, mover, etag=way.etags.get(file.path), size=file.size
            )
            for file in way.files
        }
        self._lock = threading.Lock()
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

        return with_retries(read, cancel=self._control.cancel, refresh=lambda: None)

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

"""Models whose files move one by one, each in a request of its own or, when it is large, in several."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, LooseFile, Proof, Source
from airflow_provider_modelsync.core.archive.names import RESERVED_DIRECTORY
from airflow_provider_modelsync.core.errors import from_os_error
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.large_files import Journal, LargeFile, Pulled, fetch_pieces
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, GetFiles, PutFiles
from airflow_provider_modelsync.core.transfer.progress import Progress
from airflow_provider_modelsync.core.transfer.ranges import RangedObject, refuse, require
from airflow_provider_modelsync.core.transfer.sendfile import FilePiece


def sent(
    ask: Callable[[], Flow[Address | None]], driver: SyncDriver, send: Callable[[Address], MovedResponse]
) -> MovedResponse | None:
    """Send to where a registry says; once more, to where it says then, when its credentials were refused.

    :return: the answer, whatever its status; ``None`` when the registry says that nothing need be sent.
    """
    address = driver.run(ask())
    if address is None:
        return None
    answer = send(address)
    if answer.status == 401 and not address.presigned:
        address.refused()
        other = driver.run(ask())
        if other is None:
            return None
        if other != address:
            answer = send(other)
    return answer


def put_files(way: PutFiles, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Send files, each as it comes from the source, as far as the registry does not have them."""
    progress = control.progress(sum(file.size for file in way.files))
    there: set[str] = set()

    def put_file(file: FileEntry, cancel: CancelToken) -> None:
        loose = None if way.disproves is None else way.source.loose(file.path)
        body = partial(FileBody, way.source, file) if loose is None else partial(LooseBody, loose, 0, file.size)

        def send(address: Address) -> MovedResponse:
            if loose is None:
                way.source.prepare([file.path], cancel)
            return mover.put(
                address.url,
                body,
                file.size,
                address.headers,
                method=way.method,
                pace=address.pace,
                cancel=cancel,
                on_bytes=progress.add,
            )

        def put() -> None:
            answer = sent(partial(way.address, file), driver, send)
            if answer is not None:
                if way.disproves is not None and way.disproves(answer):
                    way.source.recheck(file.path, cancel)
                way.accept(file, answer)
            else:
                there.add(file.path)
                progress.pass_over(file.size)

        with_retries(put, cancel=cancel, on_repeat=progress.resend)

    for_each(put_file, _largest_first(way.files), workers=control.workers, cancel=control.cancel)
    moved = [file for file in way.files if file.path not in there]
    way.source.confirm(file.path for file in moved)
    progress.finish()
    total = sum(file.size for file in moved)
    return TransferStats(sent_bytes=total, resumed_bytes=way.source.size_bytes - total)


def get_files(way: GetFiles, ref: str, target: Path, control: Control, driver: SyncDriver, mover: Mover) -> Pulled:
    """Fetch files: small ones whole, large ones in pieces of which an earlier try may have left some.

    :param target: a directory that is empty, or as an earlier try of the same version has left it.
    """
    wanted = sorted(
        (file.path, file.size, file.sha256 or way.blobs.get(file.path, ""), way.etags.get(file.path))
        for file in way.files
    )
    identity = {"ref": ref, "files": hashlib.sha256(json.dumps(wanted).encode()).hexdigest()}
    progress = control.progress(sum(file.size for file in way.files))
    large: list[LargeFile] = []
    small: list[FileEntry] = []
    with closing(Journal(target / RESERVED_DIRECTORY, identity)) as journal:
        offset = 0
        objects = {file.path: RangedObject.of(way, file, driver, mover) for file in way.files}
        is_ranged = _honours_ranges(way, objects, control)
        for file in way.files:
            if is_ranged and file.size >= large_files.LARGE:
                scratch = journal.directory / str(offset)
                source = objects[file.path]
                large.append(
                    LargeFile(
                        file.path,
                        file.size,
                        file.executable,
                        offset,
                        scratch,
                        source,
                        shift=offset,
                        piece_size=control.piece_size,
                        proof=way.proof(file) if way.is_proved else None,
                    )
                )
            else:
                small.append(file)
            offset += file.size
        written: dict[str, FileEntry] = {}

        def fetch(file: FileEntry, cancel: CancelToken) -> None:
            proof = way.proof(file) if way.is_proved else Proof(file.size, "")
            written[file.path] = _fetch_whole(objects[file.path], file, proof, target, cancel, progress)

        try:
            for directory in sorted({os.path.dirname(file.path) for file in way.files} | set(way.directories)):
                (target / directory).mkdir(parents=True, exist_ok=True)
            for_each(fetch, _largest_first(small), workers=control.workers, cancel=control.cancel)
        except OSError as error:
            raise from_os_error(error, f"writing the model's files in {os.path.realpath(target)}") from error
        resumed = fetch_pieces(large, journal, target, control, progress)
    durable.remove_tree(journal.directory)
    progress.finish()
    files = (*(written[file.path] for file in small), *(file.entry() for file in large))
    return Pulled(files, moved_bytes=progress.done - resumed, resumed_bytes=resumed)


def _largest_first(files: Iterable[FileEntry]) -> list[FileEntry]:
    return sorted(files, key=lambda file: -file.size)


def _honours_ranges(way: GetFiles, objects: dict[str, RangedObject], control: Control) -> bool:
    """Whether large files can come in pieces. A storage that tags its objects knows ranges, any other is asked."""
    asked = next((file for file in _largest_first(way.files) if file.size >= large_files.LARGE), None)
    if asked is None or way.is_whole:
        return False
    if way.is_ranged or asked.path in way.etags or asked.path in way.slices:
        return True

    def ask() -> bool:
        source = objects[asked.path]
        with source.open(0, 1) as answer:
            refuse(answer, source.address)
            return answer.status == 206

    return with_retries(ask, cancel=control.cancel)


def _fetch_whole(
    source: RangedObject, file: FileEntry, proof: Proof, target: Path, cancel: CancelToken, progress: Progress
) -> FileEntry:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(target / file.path, flags, durable.mode_of(file.executable))

    def fetch() -> None:
        size = 0
        proof.restart()
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            with source.open(0, None, cancel) as answer:
                source.check_whole(answer)
                for block in answer.blocks():
                    size += len(block)
                    progress.add(len(block))
                    if size > file.size:  # of an answer that does not say how long it is
                        break
                    proof.update(block)
                    while block:
                        block = block[os.write(descriptor, block) :]
            require(size, file.size)
        except BaseException:
            progress.add(-size)  # they do not count
            raise

    try:
        for look in range(2):  # a flipped bit on the way is cured by another look, one in the store is not
            if file.size:
                with_retries(fetch, cancel=cancel, on_repeat=progress.resend)
            if proof.holds:
                break
            if look:
                raise large_files.mismatch(file.path)
            progress.add(-file.size)
            progress.resend()
    finally:
        os.close(descriptor)
    return FileEntry(file.path, file.size, proof.sha256, file.executable)


class FileBody:
    """A file of a source, or a part of one, as the body of a request."""

    def __init__(self, source: Source, file: FileEntry, start: int = 0, length: int | None = None) -> None:
        self._source = source
        self._path = file.path
        self._position = start
        self._end = file.size if length is None else start + length

    def readinto(self, buffer: memoryview, /) -> int:
        view = buffer[: self._end - self._position]
        if view:
            self._source.read_into(self._path, self._position, view)
            self._position += len(view)
        return len(view)


class LooseBody:
    """A file of this machine, or a part of one, as the body of a request to who refuses all but what was hashed."""

    def __init__(self, file: LooseFile, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._end = start + length

    def pieces(self) -> Generator[FilePiece, None, None]:
        buffer = memoryview(bytearray(min(BLOCK, self._end - self._start)))
        for start in range(self._start, self._end, BLOCK):
            with self._file.opened() as descriptor:
                yield FilePiece(self._file, descriptor, start, buffer[: self._end - start])

"""What goes where: the answers of registries to "how do I push / pull this?".

A registry fills in a plan, the transfer engine carries it out; neither knows the other's business. A *way* says how
the bytes move; a new kind of way is one class here and one branch each in ``upload.py`` or ``download.py``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import JsonValue

from airflow_provider_modelsync.core.archive.checksums import CRC32, CRC32C, CRC64, checksum_of
from airflow_provider_modelsync.core.archive.choice import EVERYTHING, Choice
from airflow_provider_modelsync.core.archive.digest import FileEntry, LooseFile, Proof, Source, digest_of
from airflow_provider_modelsync.core.archive.extract import Limits
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.errors import DigestMismatch, InvalidInput
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Ticket
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.form import Form
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover
from airflow_provider_modelsync.core.transfer.watchdog import Pace

_MIB = 1 << 20
_PART_MIB = 16  # larger parts move no faster, and more is sent again when one fails
_MAX_PARTS = 10_000  # that S3 takes for one object


@dataclass(frozen=True, slots=True)
class IntoDirectory:
    """Push: every file is written below a directory of this machine.

    :param directory: exists and is empty.
    """

    is_resumable: ClassVar[bool] = False

    directory: Path


@dataclass(frozen=True, slots=True)
class FromDirectory:
    """Pull: every file is read from below a directory of this machine.

    :param directory: holds the files.
    :param files: which files, with what they should hash to.
    :param directories: the empty directories to make.
    """

    directory: Path
    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request of size goes.

    :param url: absolute; may hold a signature, so it is not shown.
    :param headers: credentials and what else this very URL needs.
    :param presigned: whether a storage answers, rather than the registry itself.
    :param content: what to send in order to get bytes, by POST; without it they are had by GET.
    :param refused: told that the credentials among the headers were refused: the next address holds others.
    :param explain: told an answer that says no success, and what was being done; raises what it means where its status
        alone tells another story.
    :param pace: what counts as moving, where that is not what the mover takes for it.
    :param is_checked: whether who answers compares what comes with the checksum among the headers, and tells that of
        what it has stored: then nobody else need compare.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    presigned: bool = False
    content: bytes | None = None
    refused: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    explain: Callable[[MovedResponse, str], None] | None = field(default=None, repr=False, compare=False)
    pace: Pace | None = None
    is_checked: bool = False


# Asked anew for each try: what was signed may have expired.
AskAddress = Callable[[], Flow[Address]]


@dataclass(frozen=True, slots=True)
class PutArchive:
    """Push: the model goes up as one tar in one request.

    :param layout: the tar.
    :param address: where to.
    :param is_proxy: the registry itself takes the bytes, rather than a storage behind it.
    """

    is_resumable: ClassVar[bool] = False

    layout: TarLayout
    address: AskAddress
    is_proxy: bool = False


@dataclass(frozen=True, slots=True)
class PutParts:
    """Push: the model goes up as one tar in many requests at a time.

    :param layout: the tar.
    :param upload: what was begun.
    :param address: where a part, counted from 1, goes to.
    :param memory: the parts that are done.
    """

    layout: TarLayout
    upload: OpenUpload
    address: Callable[[int], Flow[Address]]
    memory: UploadMemory

    @property
    def is_resumable(self) -> bool:
        """Whether a later try can go on where this one ends."""
        return self.memory.is_kept

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-self.layout.size // self.upload.part_size)

    @property
    def missing(self) -> list[int]:
        """The numbers of the parts that are not there yet."""
        return [number for number in range(1, self.count + 1) if number not in self.memory.parts]

    def span(self, number: int) -> tuple[int, int]:
        """Return a part's offset in the archive and its length in bytes."""
        start = (number - 1) * self.upload.part_size
        return start, min(self.upload.part_size, self.layout.size - start)


@dataclass(frozen=True, slots=True)
class PostForm:
    """Push: the model goes up as the large part of one form in one request.

    :param form: the body.
    :param address: where to; asked anew for each try.
    :param answered: told the answer, whatever its status; raises what a refusal means.
    :param is_there: whether the server has the model: an answer that was lost does not say. Asked before anything is
        sent again.
    :param answer_seconds: how long the server may think once it has the whole form.
    """

    is_resumable: ClassVar[bool] = False

    form: Form
    address: AskAddress
    answered: Callable[[MovedResponse], None]
    is_there: Callable[[], Flow[bool]]
    answer_seconds: float = 60.0


def choose_part_size(size: int, wanted_mib: int | None = None) -> int:
    """Return the size of the parts in bytes that an upload of ``size`` bytes is cut into.

    :param wanted_mib: what the connection wants; it is enlarged when the storage would not take that many parts.
    """
    smallest = -(-size // _MAX_PARTS)
    return max(wanted_mib or _PART_MIB, -(-smallest // _MIB)) * _MIB


@dataclass(frozen=True, slots=True)
class GetArchive:
    """Pull: the model comes down as one tar, by ranges where these are honoured.

    :param address: where from.
    :param is_proxy: the registry itself passes the bytes on, from the first to the last.
    :param size_bytes: what its record says that all files together hold, where it does; no more is written.
    """

    address: AskAddress
    is_proxy: bool = False
    size_bytes: int | None = None

    @property
    def limits(self) -> Limits:
        """How much the archive may hold."""
        return Limits(told_bytes=self.size_bytes)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, or a part of one, as a storage has it.

    :param size: bytes.
    :param etag: the storage's tag of the bytes.
    :param crc32: base64 of their CRC-32, where the storage keeps it.
    """

    size: int
    etag: str
    crc32: str | None = None


def md5_of(content: bytes | memoryview) -> str:
    """Return the MD5 of bytes as ``Content-MD5`` has it."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


class Sums:
    """Bytes, and what tells a storage whether it got them: each is read or computed when it is first asked for.

    :param size: how many bytes.
    :param read: returns them, compared with what was hashed.
    :param known: checksums of them as they were hashed, by their kinds.
    """

    def __init__(self, size: int, read: Callable[[], memoryview], known: Mapping[str, int] | None = None) -> None:
        self.size = size
        self._read = read
        self._known: dict[str, int | None] = dict(known or {})
        self._view: memoryview | None = None

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return those of bytes in memory."""
        return cls.of_memory(memoryview(content))

    @classmethod
    def of_memory(cls, view: memoryview) -> Self:
        """Return those of what is in memory, and stays as it is while they are used."""
        sums = cls(len(view), lambda: view)
        sums.read()
        return sums

    @property
    def view(self) -> memoryview:
        """The bytes."""
        return self.read()

    def read(self) -> memoryview:
        """Return the bytes, in memory from now on.

        :raises SourceChanged: when they are not what was hashed.
        """
        if self._view is None:
            self._view = self._read()
        return self._view

    @property
    def is_read(self) -> bool:
        """Whether the bytes are in memory."""
        return self._view is not None

    def checksum(self, kind: str) -> int | None:
        """Return a checksum of them; ``None`` where nothing is installed that computes it fast."""
        if kind not in self._known:
            self._known[kind] = checksum_of(kind, self.view)
        return self._known[kind]

    @property
    def crc32(self) -> str:
        """Their CRC-32, base64."""
        return base64.b64encode((self.checksum(CRC32) or 0).to_bytes(4)).decode()

    @property
    def crc32c(self) -> int:
        """Their CRC-32C, where something is installed that computes it."""
        return self.checksum(CRC32C) or 0

    @property
    def crc64(self) -> int | None:
        """Their CRC-64/NVME; ``None`` where nothing is installed that computes it fast."""
        return self.checksum(CRC64)

    @cached_property
    def md5(self) -> str:
        """Their MD5, in hex."""
        return hashlib.md5(self.view, usedforsecurity=False).hexdigest()

    @cached_property
    def md5_base64(self) -> str:
        """Their MD5, base64."""
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


class ObjectWriter(Protocol):
    """How a storage takes a model's files as objects, each in one request or in parts.

    :ivar part_size: bytes in every part but the last; no larger file goes up in one request.
    """

    part_size: int

    def whole(self, file: FileEntry, sums: Sums) -> Flow[Address]:
        """Return where a file goes to in one request."""

    def begin(self, file: FileEntry) -> Flow[str]:
        """Begin an upload in parts and return its id."""

    def part(self, file: FileEntry, upload_id: str, number: int, sums: Sums) -> Flow[Address]:
        """Return where a part, counted from 1, goes to."""

    def receipt(
        self, file: FileEntry, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        """Return what the storage has stored of what was sent; raise when that is something else, or nothing.

        :param upload_id: of a part; ``None`` for a file in one request.
        """

    def is_part(self, sums: Sums, stored: Stored) -> bool:
        """Whether a part that an earlier try has left holds these bytes."""

    def find(self, file: FileEntry, count: int, parts: Iterable[Sums]) -> Flow[str | None]:
        """Return the tag of the object that an earlier try has left of a file; ``None`` when none holds it.

        :param count: in how many parts it would go up.
        :param parts: those parts, which are read when they are asked for.
        """

    def sent(self, file: FileEntry, upload_id: str, number: int, stored: Stored) -> None:
        """Hear that a part is stored."""

    def complete(self, file: FileEntry, upload_id: str, parts: Mapping[int, Stored]) -> Flow[str]:
        """Make the parts an object and return its tag."""

    def copy(self, file: FileEntry) -> Flow[str | None]:
        """Have the storage copy a file from another version; return its tag, ``None`` when that does not work out."""


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An upload in parts that an earlier try has begun.

    :param upload_id: the storage's name for it.
    :param parts: number → what is there.
    """

    upload_id: str
    parts: Mapping[int, Stored]


@dataclass(frozen=True, slots=True)
class PutAhead:
    """Push: the parts of large files go up while these are hashed, before the digest decides anything.

    Parts are no object, so nobody sees them, and they bind nobody: :class:`PutObjects` makes objects of them, or they
    are given up.

    :param files: those.
    :param writer: where to. It is asked about files without their hashes.
    :param open: path → the upload that an earlier try has begun.
    """

    files: tuple[LooseFile, ...]
    writer: ObjectWriter
    open: Mapping[str, OpenObject]


@dataclass(frozen=True, slots=True)
class SentAhead:
    """A file of which all parts are there.

    :param sha256: hex digest of its content, which was hashed as it was sent.
    :param upload: the parts.
    :param sent: bytes that were sent; an earlier try had left the others.
    """

    sha256: str
    upload: OpenObject
    sent: int


@dataclass(frozen=True, slots=True)
class PutObjects:
    """Push: every file becomes an object of its own, large ones in parts, many requests at a time.

    :param source: the model.
    :param writer: where to.
    :param open: path → the upload that an earlier try has begun.
    :param copies: paths of the files that the storage may copy from another version.
    :param ahead: path → what went ahead of a file.
    :param etags: filled in: path → the tag of what was stored.
    """

    is_resumable: ClassVar[bool] = True  # by looking at what is there

    source: Source
    writer: ObjectWriter
    open: Mapping[str, OpenObject]
    copies: frozenset[str]
    ahead: Mapping[str, SentAhead] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PutFiles:
    """Push: every file goes up in one request of its own.

    :param source: the model.
    :param files: those of its files that are to be sent.
    :param address: where a file goes to; ``None`` when the registry turns out to have it.
    :param accept: looks at the answer that a file got, its status included; raises unless the file is stored.
    :param method: ``PUT`` or ``POST``.
    :param disproves: whether an answer may say that what came has not the file's hash. Where there is this, the
        destination stores nothing under a hash that it has not, so nothing that is read is compared on the way.
    """

    is_resumable: ClassVar[bool] = True  # by looking at what is there

    source: Source
    files: tuple[FileEntry, ...]
    address: Callable[[FileEntry], Flow[Address | None]]
    accept: Callable[[FileEntry, MovedResponse], None]
    method: str = "POST"
    disproves: Callable[[MovedResponse], bool] | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """How a server wants a file: in one request, or in parts of a size that it says.

    :param whole: where to in one request.
    :param part_size: bytes of every part but the last.
    :param parts: where the parts go, from the first on.
    :param complete: what has the parts put together.
    :param verify: what has the server look at it.
    """

    whole: Address | None = None
    part_size: int = 0
    parts: tuple[Address, ...] = ()
    complete: str | None = field(default=None, repr=False)
    verify: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PutBlobs:
    """Push: files go up by their hashes, each as the server decides.

    :param source: the model.
    :param files: those of its files that are to be sent.
    :param blobs: path → how the file goes up.
    :param ask: asks anew for one file, when what was signed has expired; ``None`` when it is there by now.
    :param finish: has a file put together, given the tags of its parts.
    :param further: bytes that move otherwise: with what finishes the push.
    """

    is_resumable: ClassVar[bool] = True  # by asking what is there

    source: Source
    files: tuple[FileEntry, ...]
    blobs: Mapping[str, Blob]
    ask: Callable[[FileEntry], Flow[Blob | None]]
    finish: Callable[[FileEntry, Blob, Sequence[str]], Flow[None]]
    further: int = 0


@dataclass(frozen=True, slots=True)
class GetFiles:
    """Pull: every file comes down in requests of its own, large ones by ranges where these are honoured.

    :param files: which files, with what they should hash to.
    :param directories: the empty directories to make.
    :param address: where a file is.
    :param etags: path → strong tag of the state that is wanted; empty where the storage gives none.
    :param slices: path → where it begins in what its address leads to, and how large that is, for files that lie in
        something larger; they come by ranges only.
    :param is_ranged: the storage is known to honour ranges, so that it is not asked.
    :param is_whole: the server is known to send whole files only, so that it is not asked for a range of one.
    :param blobs: path → git's id of the content, of files whose hashes are not told.
    :param is_proved: whether each file is compared with what its registry says of it as soon as it is there, and read
        once more when it differs; then a storage need not say which range it sends.
    """

    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]
    address: Callable[[FileEntry], Flow[Address]]
    etags: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    is_ranged: bool = False
    is_whole: bool = False
    blobs: Mapping[str, str] = field(default_factory=dict)
    is_proved: bool = False

    def proof(self, file: FileEntry) -> Proof:
        """Return what tells whether bytes are those of a file."""
        return Proof(file.size, file.sha256, self.blobs.get(file.path) if self.is_proved else None)


UploadWay = IntoDirectory | PutArchive | PutParts | PostForm | PutFiles | PutObjects | PutBlobs
DownloadWay = FromDirectory | GetArchive | GetFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """What is to be pushed.

    :param ref: name and version.
    :param source: the hashed model.
    :param labels: kept beside the version.
    :param metadata: kept beside the version.
    :param force: replace a version that holds other bytes.
    :param renew: replace one of these bytes, too: what is stored is damaged, or has facts that cannot be changed.
    :param options: what only the registry understands.
    :param memory: the multipart upload that an earlier try may have begun.
    :param tag: the version that was asked for, where the system names versions itself.
    :param signature: of the files, kept beside the version; only for registries that keep signatures.
    :param ahead: path → what went ahead of a file; only for registries that send some.
    """

    ref: ModelRef
    source: Source
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    force: bool = False
    renew: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: UploadMemory = field(default_factory=lambda: UploadMemory(None))
    tag: str | None = None
    signature: bytes | None = field(default=None, repr=False)
    ahead: Mapping[str, SentAhead] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """How a version gets into its registry. Registries add what they need in order to finish it.

    :param ref: the exact version.
    :param way: how the bytes move; ``None`` when nothing has to move.
    :param existing: the version that holds these bytes already, when nothing has to move.
    """

    ref: ModelRef
    way: UploadWay | None
    existing: ModelVersion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """How a version gets out of its registry.

    :param version: the exact version.
    :param way: how the bytes move.
    :param generated: files that the push added because the system demands them: left out again, once checked.
    :param check: looks at the directory that was filled and the files in it; raises when they are not the version's.
    :param choice: which files are wanted; an archive comes as a whole, and the others are removed again.
    :param require: looks at the files that are wanted before any of them is fetched; raises when one must not, or
        cannot, be had.
    """

    version: ModelVersion
    way: DownloadWay
    generated: frozenset[str] = frozenset()
    check: Callable[[Path, Sequence[FileEntry]], None] | None = None
    choice: Choice = EVERYTHING
    require: Callable[[Sequence[FileEntry]], None] | None = None

    @property
    def files(self) -> tuple[FileEntry, ...] | None:
        """The model's files with their hashes, before any of them is read; ``None`` where these are not told."""
        if isinstance(self.way, GetArchive):
            return None
        files = tuple(file for file in self.way.files if file.path not in self.generated)
        return files if all(file.sha256 for file in files) else None

    @property
    def digest(self) -> str | None:
        """The digest of the files that are wanted, as far as it is known beforehand."""
        if self.choice.is_all and self.version.digest is not None:
            return self.version.digest
        return None if self.files is None else digest_of(self.files)

    def choose(self, choice: Choice) -> DownloadPlan:
        """Return how some of the version's files get out of its registry.

        :raises InvalidInput: when it has none of them.
        :raises DigestMismatch: when the hashes that the registry tells are not those of the version's digest.
        """
        if choice.is_all:
            if self.require is not None and not isinstance(self.way, GetArchive):
                self.require(self.way.files)
            return self
        if self.files is not None and self.version.digest not in (None, digest_of(self.files)):
            raise DigestMismatch(
                f"the files of {self.version.ref} have {digest_of(self.files)}, not {self.version.digest}"
            )
        if isinstance(self.way, GetArchive):
            return replace(self, choice=choice)
        # Files that the push has generated are looked at with the others, or not at all.
        files = choice.files(file for file in self.way.files if file.path not in self.generated)
        if not files:
            raise InvalidInput(f"{self.version.ref} holds no file that is chosen by {choice}", argument="include")
        if self.require is not None:
            self.require(files)
        way = replace(self.way, files=files, directories=choice.directories(self.way.directories))
        return replace(self, way=way, check=None, choice=choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """What is to be predicted. There is no plan for it: how often inputs and answers change places is the system's.

    :param deployment: what is to predict; ``None`` for the connection's own.
    :param inputs: a file or a directory of this machine as a :class:`~pathlib.Path`, or values.
    :param target: the file to write. It counts once the flow has returned, and is gone after an error.
    :param mover: sends and receives bodies of size, in :class:`~...flow.Call` steps.
    :param control: how to cancel, what to tell.
    :param options: what only the registry understands.
    :param ticket: predictions of these inputs that are begun already: only fetch them.
    """

    deployment: str | None
    inputs: Any
    target: Path
    mover: Mover
    control: Control
    options: Mapping[str, Any] = field(default_factory=dict)
    ticket: Ticket | None = None

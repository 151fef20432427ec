"""How bytes get up to BentoCloud and down again: one protocol for models and bentos.

The server decides whether it passes bytes on itself, or lets a storage take them at once or in parts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.policy import USER_AGENT, ApiClient
from airflow_provider_modelsync.core.models import ModelRef, Time, VersionStatus
from airflow_provider_modelsync.core.registries.bentocloud.api import (
    Calls,
    Label,
    Repository,
    Text,
    null_as,
    pairs,
    refuse,
)
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    AskAddress,
    PutArchive,
    PutParts,
    UploadPlan,
    UploadWay,
    choose_part_size,
)

PROXY = "proxy"  # the strategy of a server that passes bytes on itself
_SINGLE_PUT_LIMIT = 5 << 30  # bytes that S3 takes in one request

_MD5 = re.compile(r"[0-9a-f]{32}")

_STATUS = {
    "pending": VersionStatus.PENDING,
    "uploading": VersionStatus.UPLOADING,
    "success": VersionStatus.READY,
    "failed": VersionStatus.FAILED,
}


class UploadRecord(BaseModel):
    """A version of a model or a bento, as far as its upload goes."""

    model_config = ConfigDict(extra="allow")

    uid: Text = ""
    version: str
    upload_status: Text = ""
    upload_finished_reason: Text = ""
    upload_started_at: Time = None
    upload_finished_at: Time = None
    created_at: Time = None
    build_at: Time = None
    labels: Annotated[list[Label], null_as([])] = []
    repository: Repository | None = None
    transmission_strategy: str | None = None
    upload_id: Text = ""
    presigned_upload_url: Text = Field(default="", repr=False)
    presigned_download_url: Text = Field(default="", repr=False)

    @property
    def status(self) -> VersionStatus:
        """Where the upload stands."""
        return _STATUS.get(self.upload_status, VersionStatus.UNKNOWN)


Shape = TypeVar("Shape", bound=UploadRecord)


@dataclass(frozen=True, slots=True)
class Tag:
    """An exact version, and its path in the API. Its grammar needs no quoting.

    :param name: of the model or bento.
    :param version: its version.
    :param kind: ``"model"`` or ``"bento"``.
    """

    name: str
    version: str
    kind: Literal["model", "bento"] = "model"

    @classmethod
    def of(cls, ref: ModelRef) -> Tag:
        if ref.version is None:
            raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:v1'", argument="model")
        return cls(ref.name, ref.version)

    @property
    def repositories(self) -> str:
        """The path of all repositories of its kind."""
        return f"/api/v1/{self.kind}_repositories"

    @property
    def repository(self) -> str:
        """The path of what all versions belong to."""
        return f"{self.repositories}/{self.name}"

    @property
    def versions(self) -> str:
        """The path of all versions."""
        return f"{self.repository}/{self.kind}s"

    @property
    def path(self) -> str:
        """The path of this version."""
        return f"{self.versions}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagPlan(UploadPlan):
    """How a version gets up.

    :param tag: the version.
    """

    tag: Tag

    @property
    def is_proxy(self) -> bool:
        """Whether the server itself takes the bytes; then it also sets the state at the end."""
        return isinstance(self.way, PutArchive) and self.way.is_proxy


class Uploads:
    """Starts, completes and reports the uploads of one connection.

    :param api: builds requests.
    :param calls: makes calls.
    :param headers: makes the headers, credentials included, for the server itself.
    :param title: what the system is called in messages.
    :param part_size_mib: the wanted size of parts.
    """

    def __init__(
        self,
        api: ApiClient,
        calls: Calls,
        headers: Callable[[], dict[str, str]],
        title: str,
        part_size_mib: int | None,
    ) -> None:
        self._api = api
        self._calls = calls
        self._headers = headers
        self._title = title
        self._part_size_mib = part_size_mib

    def finish(self, plan: TagPlan) -> Flow[None]:
        """Say that all bytes are there.

        Nothing is ever said of an upload that has failed: the server would mark the record as failed even if another
        push of the same bytes has finished it meanwhile. Its state stays what it is, and the next push goes on with it.
        """
        if plan.is_proxy:
            return
        with still_there(plan.tag):
            if isinstance(plan.way, PutParts):
                yield from self.complete(plan.tag, plan.way)
            yield from self._report_success(plan.tag)

    def ensure_repository(
        self, tag: Tag, description: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Flow[None]:
        """Make what a version is to belong to, unless it is there; give it the description and labels, if any."""
        doing = f"looking for the {tag.kind} {tag.name}"
        found = yield from self._calls.find("GET", tag.repository, Repository, doing)
        if found is None:
            body = {"name": tag.name, "description": description or "", **({"labels": pairs(labels)} if labels else {})}
            making = f"creating the {tag.kind} {tag.name}"
            if (yield from self._calls.create(tag.repositories, Repository, making, body)) is not None:
                return
            found = yield from self._calls.need("GET", tag.repository, Repository, doing)  # another push was faster
        yield from self.describe_repository(tag, found, description, labels)

    def describe_repository(
        self, tag: Tag, found: Repository, description: str | None, labels: Mapping[str, str | None] | None
    ) -> Flow[Repository]:
        """Give what versions belong to another description and labels; return it as it is then."""
        if not (changes := found.changes(description, labels)):
            return found
        doing = f"describing the {tag.kind} {tag.name}"
        return (yield from self._calls.need("PATCH", tag.repository, Repository, doing, json=changes))

    def way_up(self, tag: Tag, record: UploadRecord, layout: TarLayout, memory: UploadMemory) -> Flow[UploadWay | None]:
        """Start the upload in the way that the server wishes.

        :return: the way; ``None`` when another push of the same bytes has ended well since the record was read.
        """
        strategy = record.transmission_strategy
        presigned = None
        if strategy is None:
            presigned = yield from self.presigned(tag, "upload", UploadRecord)
        doing = f"starting the upload of {tag}"
        started = yield from self._calls.need("PATCH", f"{tag.path}/start_upload", UploadRecord, doing)
        if started.upload_finished_at != record.upload_finished_at and not started.upload_finished_reason:
            yield from self._report_success(tag)  # as it was until this start opened it again
            return None
        if strategy == PROXY or (presigned is not None and not presigned.presigned_upload_url):
            return PutArchive(layout, self.proxy(tag, "upload"), is_proxy=True)
        if presigned is not None and layout.size <= _SINGLE_PUT_LIMIT:
            return PutArchive(layout, self.presigning(tag, "upload", presigned))
        return (yield from self._parts(tag, record, layout, memory))

    def _parts(self, tag: Tag, record: UploadRecord, layout: TarLayout, memory: UploadMemory) -> Flow[UploadWay]:
        """Take up the upload that an earlier try began, or begin one."""
        part_size = choose_part_size(layout.size, self._part_size_mib)
        identity: dict[str, JsonValue] = {
            "ref": str(tag),
            "record": record.uid,
            "layout": layout.fingerprint,
            "size": layout.size,
            "part_size": part_size,
        }
        upload = memory.recall(identity)
        if upload is None or upload.part_size != part_size:
            doing = f"beginning the upload of {tag}"
            begun = yield from self._calls.need("PATCH", f"{tag.path}/start_multipart_upload", UploadRecord, doing)
            if not begun.upload_id:
                raise RegistryUnavailable(f"{doing}: {self._title} gave no upload id")
            upload = OpenUpload(begun.upload_id, part_size)
            memory.begin(identity, upload, parts=-(-layout.size // part_size))
        upload_id = upload.upload_id

        def ask(number: int) -> Flow[Address]:
            doing = f"asking where part {number} of {tag} goes"
            body = {"upload_id": upload_id, "part_number": number}
            path = f"{tag.path}/presign_multipart_upload_url"
            with still_there(tag):
                answer = yield from self._calls.need("PATCH", path, UploadRecord, doing, json=body)
            if not answer.presigned_upload_url:
                raise RegistryUnavailable(f"{doing}: {self._title} gave no presigned URL")
            return Address(self._api.check_server_url(answer.presigned_upload_url), presigned=True)

        return PutParts(layout, upload, ask, memory)

    def complete(self, tag: Tag, way: PutParts) -> Flow[None]:
        """Make one object of the parts, unless an earlier call did whose answer was lost."""
        doing = f"completing the upload of {tag}"
        parts = [{"part_number": number, "etag": way.memory.parts[number]} for number in range(1, way.count + 1)]
        body = {"parts": parts, "upload_id": way.upload.upload_id}
        path = f"{tag.path}/complete_multipart_upload"
        response = yield from send(self._api.request("PATCH", path, json=body, may_repeat=True))
        if response.status_code == 200:
            return
        is_gone = "NoSuchUpload" in response.text
        if (is_gone or response.status_code >= 500) and (yield from self._holds(tag, way, or_one_as_large=is_gone)):
            return
        if is_gone:
            raise BeginAgain(f"{doing}: the storage does not know the upload any more")
        if "InvalidPart" in response.text:
            raise BeginAgain(f"{doing}: the storage does not know a part of the upload any more")
        refuse(response, doing)

    def _holds(self, tag: Tag, way: PutParts, *, or_one_as_large: bool) -> Flow[bool]:
        """Whether the storage holds the object that the parts make.

        :param or_one_as_large: what to say of one of the same size, when ETags tell nothing.
        """
        record = yield from self.presigned(tag, "download", UploadRecord)
        if not record.presigned_download_url:
            return False
        url = self._api.check_server_url(record.presigned_download_url)
        # Not by the API client: it would add the token where storage and API are one server.
        response = yield from send(httpx.Request("GET", url, headers={"Range": "bytes=0-0", "User-Agent": USER_AGENT}))
        _, _, size = response.headers.get("Content-Range", "").partition("/")
        if response.status_code != 206 or size != str(way.layout.size):
            return False
        expected = _etag_of([way.memory.parts[number] for number in range(1, way.count + 1)])
        return or_one_as_large if expected is None else response.headers.get("ETag") == expected

    def proxy(self, tag: Tag, verb: str) -> AskAddress:
        """The server passes the bytes on itself."""

        def ask() -> Flow[Address]:
            headers = self._headers()
            if verb == "upload":
                headers["Content-Type"] = "application/octet-stream"
            return Address(f"{self._api.base_url}{tag.path}/{verb}", headers)
            yield  # a flow that needs no step

        return ask

    def presigning(self, tag: Tag, verb: str, first: UploadRecord) -> AskAddress:
        """A storage takes or gives the bytes; the first try uses the URL that is there already."""
        unused = [first]

        def ask() -> Flow[Address]:
            if unused:
                record = unused.pop()
            elif verb == "upload":
                with still_there(tag):
                    record = yield from self.presigned(tag, verb, UploadRecord)
            else:
                record = yield from self.presigned(tag, verb, UploadRecord)
            url = record.presigned_upload_url if verb == "upload" else record.presigned_download_url
            if not url:
                raise RegistryUnavailable(f"{self._title} gave no presigned URL for the {verb} of {tag}")
            return Address(self._api.check_server_url(url), presigned=True)

        return ask

    def presigned(self, tag: Tag, verb: str, shape: type[Shape]) -> Flow[Shape]:
        """Ask for a presigned URL; the answer is the whole record.

        :raises ModelNotFound: when there is no such version.
        """
        doing = f"asking where to {verb} {tag}"
        record = yield from self._calls.find("PATCH", f"{tag.path}/presign_{verb}_url", shape, doing)
        if record is None:
            raise ModelNotFound(f"{tag} is gone")
        return record

    def _report_success(self, tag: Tag) -> Flow[None]:
        body = {"status": "success", "reason": ""}
        doing = f"reporting {tag} as success"
        yield from self._calls.need("PATCH", f"{tag.path}/finish_upload", UploadRecord, doing, json=body)


def _etag_of(parts: Sequence[str]) -> str | None:
    """Return the ETag that S3 gives an object made of parts, or ``None`` where the parts' are no MD5 sums."""
    sums = [part.strip('"') for part in parts]
    if not all(_MD5.fullmatch(part) for part in sums):
        return None
    total = hashlib.md5(b"".join(bytes.fromhex(part) for part in sums), usedforsecurity=False)
    return f'"{total.hexdigest()}-{len(sums)}"'


def replaced(tag: Tag) -> VersionConflict:
    """Return the error of a push whose record is not its own any more."""
    return VersionConflict(f"{tag} was replaced or deleted while it was being pushed")


@contextmanager
def still_there(tag: Tag) -> Iterator[None]:
    """Say what it means when a record that a push has made or found cannot be found any more."""
    try:
        yield
    except ModelNotFound:
        raise replaced(tag) from None

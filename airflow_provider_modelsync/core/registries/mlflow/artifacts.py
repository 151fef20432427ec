"""Where a version's files lie and how they are reached."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import MAX_DEPTH, show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    UnsafeArchive,
)
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.registries.mlflow.api import LISTING_BYTES, Calls, is_unknown_route
from airflow_provider_modelsync.core.registries.mlflow.records import (
    MANIFEST_BYTES,
    DownloadUri,
    FileInfo,
    FileList,
    LoggedModelAnswer,
    LoggedModelPage,
    PartsAnswer,
    RunAnswer,
    ServerInfo,
    SignedPut,
    SignedUrl,
    VersionRecord,
)
from airflow_provider_modelsync.core.transfer.plan import Address, Blob

_ARTIFACTS = "/api/2.0/mlflow-artifacts"
_PROXY = f"{_ARTIFACTS}/artifacts"
_log = logging.getLogger("modelsync")

_MAX_FILES = 100_000
_RUN_SOURCE = re.compile(r"runs:/([^/]+)/(.*)")
_LOGGED_SOURCE = re.compile(r"models:/(m-[0-9a-f]+)")


class Place(ABC):
    """A directory of artifacts."""

    @abstractmethod
    def read(self, path: str) -> Flow[Address]:
        """Return where a file is."""

    @abstractmethod
    def write(self, path: str) -> Flow[Address]:
        """Return where a file goes to."""

    @abstractmethod
    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        """Return the entries of one level; paths are those below the place."""

    # Whether files go to a storage, rather than to the server.
    is_signed: ClassVar[bool] = False

    @property
    def is_whole(self) -> bool:
        """Whether files are known to come as a whole only."""
        return False

    @abstractmethod
    def remove(self, **more: Any) -> Flow[None]:
        """Remove all of it."""


class Artifacts:
    """Finds and lists the artifacts of one connection.

    :param calls: makes calls.
    :param title: what the system is called in messages.
    """

    def __init__(self, calls: Calls, title: str) -> None:
        self._calls = calls
        self._title = title
        self._told: ServerInfo | None = None
        self._is_asked = False

    def of_version(self, record: VersionRecord) -> Flow[Place]:
        """Return where a version's files are."""
        ask = {"name": record.name, "version": record.version}
        doing = f"asking where the files of {record.name}:{record.version} are"
        found = yield from self._calls.need("GET", "model-versions/get-download-uri", DownloadUri, doing, params=ask)
        logged = _LOGGED_SOURCE.fullmatch(record.source)
        return (yield from self.resolve(found.artifact_uri, logged[1] if logged else None))

    def resolve(self, uri: str, model_id: str | None = None) -> Flow[Place]:
        """Return the place that a source names, whatever kind of source it is.

        :param model_id: of the logged model that it belongs to, where that is known.
        """
        if run := _RUN_SOURCE.fullmatch(uri):
            return (yield from self._of_run(run[1], run[2]))
        if logged := _LOGGED_SOURCE.fullmatch(uri):
            found = yield from self._calls.need(
                "GET", f"logged-models/{logged[1]}", LoggedModelAnswer, "reading the logged model"
            )
            return self.at(found.model.info.artifact_uri, logged[1])
        return self.at(uri, model_id)

    def _of_run(self, run_id: str, path: str) -> Flow[Place]:
        found = yield from self._calls.need(
            "GET", "runs/get", RunAnswer, "reading the run of the version", params={"run_id": run_id}
        )
        info = found.run.info
        place = self.at(f"{info.artifact_uri.rstrip('/')}/{path}", run=(run_id, path))
        if (yield from place.listing("")):
            return place
        # What MLflow 3 logs to a run lies with a logged model, and the run's own directory is empty.
        asked = {"experiment_ids": [info.experiment_id], "filter": f"source_run_id = '{run_id}' AND name = '{path}'"}
        if "'" in path:
            return place
        page = yield from self._calls.find(
            "POST", "logged-models/search", LoggedModelPage, "looking for the run's logged models", json=asked
        )
        newest = max(page.models if page else (), key=lambda one: one.info.creation_timestamp_ms, default=None)
        return self.at(newest.info.artifact_uri, newest.info.model_id) if newest else place

    def at(self, uri: str, model_id: str | None = None, *, run: tuple[str, str] | None = None) -> Place:
        """Return the place at an artifact URI.

        :param model_id: of the logged model whose files these are, if they are one's.
        :param run: id of the run whose files these are, and the directory among its artifacts, if they are one's.

        :raises NotSupported: where only the server's own machine can read it.
        """
        parts = urlsplit(uri)
        base = self._calls.base_url
        path = parts.path.strip("/")
        if parts.scheme == "mlflow-artifacts":
            server = f"{urlsplit(base).scheme}://{parts.netloc}" if parts.netloc else base
            return Proxied(self._calls, f"{server}{_PROXY}", path)
        if parts.scheme in ("http", "https") and f"{_PROXY}/" in f"{parts.path}/":
            before, _, path = parts.path.partition(_PROXY)
            return Proxied(self._calls, f"{parts.scheme}://{parts.netloc}{before}{_PROXY}", path.strip("/"))
        if parts.scheme in ("", "file"):
            raise NotSupported(
                f"the files lie on the disk of the {self._title} server, which passes them on to nobody; let it serve "
                "artifacts (--serve-artifacts with --artifacts-destination)"
            )
        if model_id is not None:
            return LoggedFiles(self._calls, model_id)
        if run is not None:
            return RunFiles(self._calls, *run)
        raise NotSupported(
            f"artifacts at {parts.scheme}:// are out of reach; let the {self._title} server pass them on"
        )

    def to_read(self, place: Place, largest: FileEntry) -> Flow[Place]:
        """Return how a place is best read: where its files are in a bucket, by URLs that the server signs.

        :param largest: of the files that are going to be read.
        """
        if not isinstance(place, Proxied) or not place.is_own or not largest.size:
            return place
        info = yield from self._info()
        if info is None:
            return place.as_whole()
        if not info.multipart_downloads_enabled:
            # Where it signs for one direction only, there is a bucket, which it reads as a whole.
            return place.as_whole() if info.multipart_uploads_enabled else place
        signed = Signed(place)
        try:
            address = yield from signed.read(largest.path)
            yield from self._calls.reach(address)
        except (InvalidInput, RegistryUnavailable, NotSupported) as error:
            _log.warning("the files come through the %s server: %s", self._title, error.message)
            return place.as_whole()
        return signed

    def parts_of(self, place: Place, file: FileEntry, part_size: int) -> Flow[Blob | None]:
        """Begin an upload in parts; ``None`` where the server signs none, or nobody takes them."""
        info = yield from self._info()
        if info is None or not info.multipart_uploads_enabled or not isinstance(place, Proxied) or not place.is_own:
            return None
        doing = f"beginning the upload of {show(file.path)}"
        count = -(-file.size // part_size)
        begun = yield from place.mpu("create", file.path, {"num_parts": count}, doing, may_repeat=False)
        answer = read_json(begun, PartsAnswer, doing)
        parts = sorted(answer.credentials, key=lambda part: part.part_number)
        if [part.part_number for part in parts] != [*range(1, count + 1)]:
            raise RegistryUnavailable(f"{doing}: the server signed {len(parts)} of {count} parts")
        blob = Blob(part_size=part_size, complete=answer.upload_id)
        try:
            addresses = tuple(self._calls.presigned(part.url, part.headers) for part in parts)
            yield from self._calls.reach(addresses[0])
        except (InvalidInput, RegistryUnavailable) as error:
            _log.warning("the files go through the %s server: %s", self._title, error.message)
            yield from self.abandon(place, file, blob)
            return None
        return replace(blob, parts=addresses)

    def complete(self, place: Place, file: FileEntry, blob: Blob, etags: Sequence[str]) -> Flow[None]:
        """Have the parts of a file put together, unless an earlier call did whose answer was lost."""
        assert isinstance(place, Proxied)
        doing = f"completing {show(file.path)}"
        parts = [{"part_number": number, "etag": etag} for number, etag in enumerate(etags, 1)]
        asked = {"upload_id": blob.complete, "parts": parts}
        response = yield from place.mpu("complete", file.path, asked, doing, may_repeat=True)
        if response.status_code >= 500 and (yield from self.holds(place, file)):
            return
        if response.status_code == 500:
            raise BeginAgain(f"{doing}: the storage does not know the upload, or a part of it, any more")
        self._calls.refuse(response, doing)

    def abandon(self, place: Place, file: FileEntry, blob: Blob, **more: Any) -> Flow[None]:
        """Have the storage forget the parts of a file."""
        assert isinstance(place, Proxied)
        asked = {"upload_id": blob.complete}
        yield from place.mpu("abort", file.path, asked, f"giving {show(file.path)} up", may_repeat=False, **more)

    def holds(self, place: Place, file: FileEntry) -> Flow[bool]:
        """Whether a file is there, by its size."""
        entries = yield from place.listing(file.path.rpartition("/")[0])
        return any((one.path, one.is_dir, one.file_size) == (file.path, False, file.size) for one in entries)

    def _info(self) -> Flow[ServerInfo | None]:
        """Return what the server says of itself; ``None`` where it is too old for that. Asked for once."""
        if not self._is_asked:
            doing = "asking what the server offers"
            response = yield from self._calls.answer("GET", "/api/3.0/mlflow/server-info")
            if not is_unknown_route(response):
                self._calls.refuse(response, doing)
                self._told = read_json(response, ServerInfo, doing)
            self._is_asked = True
        return self._told

    def files(self, place: Place) -> Flow[dict[str, int]]:
        """Return all files of a place with their sizes."""
        found: dict[str, int] = {}
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            for entry in (yield from place.listing(directory)):
                if not entry.path.startswith(f"{directory}/" if directory else "") or entry.path == directory:
                    raise UnsafeArchive(f"the listing of {show(directory)} holds {show(entry.path)}")
                if not entry.is_dir:
                    found[entry.path] = entry.file_size
                elif entry.path.count("/") >= MAX_DEPTH:
                    raise UnsafeArchive(f"{show(entry.path)} is nested deeper than {MAX_DEPTH} levels")
                else:
                    waiting.append(entry.path)
            if len(found) + len(waiting) > _MAX_FILES:
                raise UnsafeArchive(f"there are more than {_MAX_FILES} files")
        return found

    def content(self, place: Place, path: str) -> Flow[bytes | None]:
        """Return a small file's bytes; ``None`` when they cannot be had."""
        try:
            address = yield from place.read(path)
            response = yield from self._calls.fetch(address, answer_bytes=MANIFEST_BYTES)
        except (ModelNotFound, NotSupported):
            return None
        return response.content if response.status_code == 200 else None


class Proxied(Place):
    """What an MLflow server passes on.

    :param base: the URL of all its artifacts.
    :param root: the directory's path below it.
    """

    def __init__(self, calls: Calls, base: str, root: str, *, is_whole: bool = False) -> None:
        self._calls = calls
        self._base = base
        self._root = root
        self._is_whole = is_whole

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxied) and (self._base, self._root) == (other._base, other._root)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_own(self) -> bool:
        """Whether the connection's own server is meant."""
        return self._base == f"{self._calls.base_url}{_PROXY}"

    @property
    def is_whole(self) -> bool:
        return self._is_whole

    def as_whole(self) -> Proxied:
        """Return it as one whose files are known to come as a whole only."""
        return Proxied(self._calls, self._base, self._root, is_whole=True)

    def signed(self, path: str) -> Flow[Address]:
        """Return where the storage itself gives a file."""
        doing = f"asking where {show(path)} is"
        url = f"{_ARTIFACTS}/presigned/{quote(f'{self._root}/{path}')}"
        found = yield from self._calls.need("GET", url, SignedUrl, doing)
        return self._calls.presigned(found.url, found.headers)

    def mpu(
        self, verb: str, path: str, asked: Mapping[str, Any], doing: str, *, may_repeat: bool, **more: Any
    ) -> Flow[httpx.Response]:
        """Make a call about an upload in parts; only a beginning that is refused raises."""
        directory, _, name = f"{self._root}/{path}".rpartition("/")
        response = yield from self._calls.answer(
            "POST",
            f"{_ARTIFACTS}/mpu/{verb}/{quote(directory)}",
            json={"path": name, **asked},
            may_repeat=may_repeat,
            answer_bytes=LISTING_BYTES,
            **more,
        )
        if verb == "create":
            self._calls.refuse(response, doing)
        return response

    def read(self, path: str) -> Flow[Address]:
        return self._calls.address(self._url(path))
        yield  # a flow that needs no step

    write = read

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        path = f"{self._root}/{directory}" if directory else self._root
        doing = f"listing {show(path)}"
        response = yield from self._calls.answer(
            "GET", self._base, params={"path": path}, may_repeat=True, answer_bytes=LISTING_BYTES
        )
        self._calls.refuse(response, doing)
        prefix = f"{directory}/" if directory else ""
        return [
            entry.model_copy(update={"path": prefix + entry.path})
            for entry in read_json(response, FileList, doing).files
        ]

    def remove(self, **more: Any) -> Flow[None]:
        response = yield from self._calls.answer("DELETE", self._url(""), **more)
        self._calls.refuse(response, "removing the files")

    def _url(self, path: str) -> str:
        return f"{self._base}/{quote(f'{self._root}/{path}'.rstrip('/'))}"


class Signed(Place):
    """What a storage gives by URLs that the server signs; all else goes through the server.

    :param place: as the server has it.
    """

    def __init__(self, place: Proxied) -> None:
        self._place = place

    def read(self, path: str) -> Flow[Address]:
        return self._place.signed(path)

    def write(self, path: str) -> Flow[Address]:
        return self._place.write(path)

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        return self._place.listing(directory)

    def remove(self, **more: Any) -> Flow[None]:
        return self._place.remove(**more)


class LoggedFiles(Place):
    """The files of a logged model in a bucket of which the server passes nothing on: it signs where they go to.

    :param model_id: of the logged model.
    """

    is_signed = True
    is_whole = True

    def __init__(self, calls: Calls, model_id: str) -> None:
        self._calls = calls
        self._model_id = model_id

    def read(self, path: str) -> Flow[Address]:
        place = f"{self._calls.base_url}/ajax-api/2.0/mlflow/logged-models/{self._model_id}/artifacts/files"
        return self._calls.address(f"{place}?artifact_file_path={quote(path, safe='')}")
        yield  # a flow that needs no step

    def write(self, path: str) -> Flow[Address]:
        body = {"model_id": self._model_id, "path": path}
        doing = f"asking where {show(path)} goes to"
        found = yield from self._calls.need("POST", "artifacts/presigned-upload-url", SignedPut, doing, json=body)
        return self._calls.presigned(found.presigned_url, found.headers)

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        ask = {"artifact_directory_path": directory} if directory else {}
        path = f"logged-models/{self._model_id}/artifacts/directories"
        found = yield from self._calls.need(
            "GET", path, FileList, f"listing {show(directory)}", params=ask, answer_bytes=LISTING_BYTES
        )
        return found.files

    def remove(self, **more: Any) -> Flow[None]:
        """Leave them: the server removes nothing from such a bucket but with its own `mlflow gc`."""
        _log.info("the files of the logged model %s stay in the bucket until `mlflow gc` removes them", self._model_id)
        return
        yield


class RunFiles(Place):
    """The files of a run in such a bucket, which are only read.

    :param run_id: of the run.
    :param root: a directory among its artifacts.
    """

    def __init__(self, calls: Calls, run_id: str, root: str) -> None:
        self._calls = calls
        self._run_id = run_id
        self._root = root.strip("/")

    def read(self, path: str) -> Flow[Address]:
        body = {"run_id": self._run_id, "path": f"{self._root}/{path}"}
        doing = f"asking where {show(path)} is"
        found = yield from self._calls.need("POST", "artifacts/presigned-download-url", SignedPut, doing, json=body)
        return self._calls.presigned(found.presigned_url, found.headers)

    def write(self, path: str) -> Flow[Address]:
        raise NotSupported("the server signs nothing for a run's files; let it serve artifacts (--serve-artifacts)")

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        path = f"{self._root}/{directory}".rstrip("/")
        found = yield from self._calls.need(
            "GET",
            "artifacts/list",
            FileList,
            f"listing {show(path)}",
            params={"run_id": self._run_id, "path": path},
            answer_bytes=LISTING_BYTES,
        )
        cut = len(self._root) + 1
        return [entry.model_copy(update={"path": entry.path[cut:]}) for entry in found.files]

    def remove(self, **more: Any) -> Flow[None]:
        return
        yield

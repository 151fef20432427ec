"""Directories of artifacts, by the ways in which a server has their files come and go."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import httpx

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import MAX_DEPTH, show
from airflow_provider_modelsync.core.errors import ModelNotFound, NotSupported, UnsafeArchive
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.registries.mlflow.api import LISTING_BYTES, Calls
from airflow_provider_modelsync.core.registries.mlflow.records import (
    MANIFEST_BYTES,
    FileInfo,
    FileList,
    SignedPut,
    SignedUrl,
)
from airflow_provider_modelsync.core.transfer.plan import Address

_ARTIFACTS = "/api/2.0/mlflow-artifacts"
PROXY = f"{_ARTIFACTS}/artifacts"
_log = logging.getLogger("modelsync")

_MAX_FILES = 100_000


class Place(ABC):
    """A directory of artifacts."""

    @property
    def is_whole(self) -> bool:
        """Whether files are known to come as a whole only."""
        return False

    @abstractmethod
    def read(self, path: str) -> Flow[Address]:
        """Return where a file is."""

    @abstractmethod
    def files(self) -> Flow[dict[str, int]]:
        """Return all files with their sizes."""

    @abstractmethod
    def is_empty(self) -> Flow[bool]:
        """Whether nothing is there."""

    @abstractmethod
    def content(self, path: str) -> Flow[bytes | None]:
        """Return a small file's bytes; ``None`` when they cannot be had."""

    def etags(self) -> Flow[dict[str, str]]:
        """Return the strong tags of files, by path, where a storage tells them."""
        return {}
        yield  # a flow that needs no step

    @abstractmethod
    def put(self, path: str, content: bytes, doing: str) -> Flow[None]:
        """Write a small file, whatever is there."""

    @abstractmethod
    def remove(self, **more: Any) -> Flow[None]:
        """Remove all of it."""


class Served(Place):
    """A directory that an MLflow server lists, and whose files it passes on, or signs URLs for.

    :param calls: makes calls.
    """

    # Whether files go to a storage, rather than to the server.
    is_signed: ClassVar[bool] = False

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    @abstractmethod
    def write(self, path: str) -> Flow[Address]:
        """Return where a file goes to."""

    @abstractmethod
    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        """Return the entries of one level; paths are those below the place."""

    def is_empty(self) -> Flow[bool]:
        return not (yield from self.listing(""))

    def holds(self, file: FileEntry) -> Flow[bool]:
        """Whether a file is there, by its size."""
        entries = yield from self.listing(file.path.rpartition("/")[0])
        return any((one.path, one.is_dir, one.file_size) == (file.path, False, file.size) for one in entries)

    def files(self) -> Flow[dict[str, int]]:
        found: dict[str, int] = {}
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            for entry in (yield from self.listing(directory)):
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

    def content(self, path: str) -> Flow[bytes | None]:
        try:
            address = yield from self.read(path)
            response = yield from self.calls.fetch(address, answer_bytes=MANIFEST_BYTES)
        except (ModelNotFound, NotSupported):
            return None
        return response.content if response.status_code == 200 else None

    def put(self, path: str, content: bytes, doing: str) -> Flow[None]:
        address = yield from self.write(path)
        self.calls.refuse((yield from self.calls.put(address, content)), doing)


class Proxied(Served):
    """What an MLflow server passes on.

    :param base: the URL of all its artifacts.
    :param root: the directory's path below it.
    """

    def __init__(self, calls: Calls, base: str, root: str, *, is_whole: bool = False) -> None:
        super().__init__(calls)
        self._base = base
        self._root = root
        self._is_whole = is_whole

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxied) and (self._base, self._root) == (other._base, other._root)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_own(self) -> bool:
        """Whether the connection's own server is meant."""
        return self._base == f"{self.calls.base_url}{PROXY}"

    @property
    def is_whole(self) -> bool:
        return self._is_whole

    def as_whole(self) -> Proxied:
        """Return it as one whose files are known to come as a whole only."""
        return Proxied(self.calls, self._base, self._root, is_whole=True)

    def signed(self, path: str) -> Flow[Address]:
        """Return where the storage itself gives a file."""
        doing = f"asking where {show(path)} is"
        url = f"{_ARTIFACTS}/presigned/{quote(f'{self._root}/{path}')}"
        found = yield from self.calls.need("GET", url, SignedUrl, doing)
        return self.calls.presigned(found.url, found.headers)

    def mpu(
        self, verb: str, path: str, asked: Mapping[str, Any], doing: str, *, may_repeat: bool, **more: Any
    ) -> Flow[httpx.Response]:
        """Make a call about an upload in parts; only a beginning that is refused raises."""
        directory, _, name = f"{self._root}/{path}".rpartition("/")
        response = yield from self.calls.answer(
            "POST",
            f"{_ARTIFACTS}/mpu/{verb}/{quote(directory)}",
            json={"path": name, **asked},
            may_repeat=may_repeat,
            answer_bytes=LISTING_BYTES,
            **more,
        )
        if verb == "create":
            self.calls.refuse(response, doing)
        return response

    def read(self, path: str) -> Flow[Address]:
        return self.calls.address(self._url(path))
        yield  # a flow that needs no step

    write = read

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        path = f"{self._root}/{directory}" if directory else self._root
        doing = f"listing {show(path)}"
        response = yield from self.calls.answer(
            "GET", self._base, params={"path": path}, may_repeat=True, answer_bytes=LISTING_BYTES
        )
        self.calls.refuse(response, doing)
        prefix = f"{directory}/" if directory else ""
        return [
            entry.model_copy(update={"path": prefix + entry.path})
            for entry in read_json(response, FileList, doing).files
        ]

    def remove(self, **more: Any) -> Flow[None]:
        response = yield from self.calls.answer("DELETE", self._url(""), **more)
        self.calls.refuse(response, "removing the files")

    def _url(self, path: str) -> str:
        return f"{self._base}/{quote(f'{self._root}/{path}'.rstrip('/'))}"


class Signed(Served):
    """What a storage gives by URLs that the server signs; all else goes through the server.

    :param place: as the server has it.
    """

    def __init__(self, place: Proxied) -> None:
        super().__init__(place.calls)
        self._place = place

    def read(self, path: str) -> Flow[Address]:
        return self._place.signed(path)

    def write(self, path: str) -> Flow[Address]:
        return self._place.write(path)

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        return self._place.listing(directory)

    def remove(self, **more: Any) -> Flow[None]:
        return self._place.remove(**more)


class LoggedFiles(Served):
    """The files of a logged model in a bucket of which the server passes nothing on: it signs where they go to.

    :param model_id: of the logged model.
    """

    is_signed = True
    is_whole = True

    def __init__(self, calls: Calls, model_id: str) -> None:
        super().__init__(calls)
        self._model_id = model_id

    def read(self, path: str) -> Flow[Address]:
        place = f"{self.calls.base_url}/ajax-api/2.0/mlflow/logged-models/{self._model_id}/artifacts/files"
        return self.calls.address(f"{place}?artifact_file_path={quote(path, safe='')}")
        yield  # a flow that needs no step

    def write(self, path: str) -> Flow[Address]:
        body = {"model_id": self._model_id, "path": path}
        doing = f"asking where {show(path)} goes to"
        found = yield from self.calls.need("POST", "artifacts/presigned-upload-url", SignedPut, doing, json=body)
        return self.calls.presigned(found.presigned_url, found.headers)

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        ask = {"artifact_directory_path": directory} if directory else {}
        path = f"logged-models/{self._model_id}/artifacts/directories"
        found = yield from self.calls.need(
            "GET", path, FileList, f"listing {show(directory)}", params=ask, answer_bytes=LISTING_BYTES
        )
        return found.files

    def remove(self, **more: Any) -> Flow[None]:
        """Leave them: the server removes nothing from such a bucket but with its own `mlflow gc`."""
        _log.info("the files of the logged model %s stay in the bucket until `mlflow gc` removes them", self._model_id)
        return
        yield


class RunFiles(Served):
    """The files of a run in such a bucket, which are only read.

    :param run_id: of the run.
    :param root: a directory among its artifacts.
    """

    def __init__(self, calls: Calls, run_id: str, root: str) -> None:
        super().__init__(calls)
        self._run_id = run_id
        self._root = root.strip("/")

    def read(self, path: str) -> Flow[Address]:
        body = {"run_id": self._run_id, "path": f"{self._root}/{path}"}
        doing = f"asking where {show(path)} is"
        found = yield from self.calls.need("POST", "artifacts/presigned-download-url", SignedPut, doing, json=body)
        return self.calls.presigned(found.presigned_url, found.headers)

    def write(self, path: str) -> Flow[Address]:
        raise NotSupported("the server signs nothing for a run's files; let it serve artifacts (--serve-artifacts)")

    def listing(self, directory: str) -> Flow[list[FileInfo]]:
        path = f"{self._root}/{directory}".rstrip("/")
        found = yield from self.calls.need(
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

"""Where a version's files lie and how they are reached."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_modelsync.core.archive.names import MAX_DEPTH, show
from airflow_provider_modelsync.core.errors import ModelNotFound, NotSupported, UnsafeArchive
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.registries.mlflow.api import LISTING_BYTES, Calls
from airflow_provider_modelsync.core.registries.mlflow.records import (
    MANIFEST_BYTES,
    DownloadUri,
    FileInfo,
    FileList,
    LoggedModelAnswer,
    LoggedModelPage,
    RunAnswer,
    VersionRecord,
)
from airflow_provider_modelsync.core.transfer.plan import Address

_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
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

    def of_version(self, record: VersionRecord) -> Flow[Place]:
        """Return where a version's files are."""
        ask = {"name": record.name, "version": record.version}
        doing = f"asking where the files of {record.name}:{record.version} are"
        found = yield from self._calls.need("GET", "model-versions/get-download-uri", DownloadUri, doing, params=ask)
        return (yield from self.resolve(found.artifact_uri))

    def resolve(self, uri: str) -> Flow[Place]:
        """Return the place that a source names, whatever kind of source it is."""
        if run := _RUN_SOURCE.fullmatch(uri):
            return (yield from self._of_run(run[1], run[2]))
        if logged := _LOGGED_SOURCE.fullmatch(uri):
            found = yield from self._calls.need(
                "GET", f"logged-models/{logged[1]}", LoggedModelAnswer, "reading the logged model"
            )
            return self.at(found.model.info.artifact_uri)
        return self.at(uri)

    def _of_run(self, run_id: str, path: str) -> Flow[Place]:
        found = yield from self._calls.need(
            "GET", "runs/get", RunAnswer, "reading the run of the version", params={"run_id": run_id}
        )
        info = found.run.info
        place = self.at(f"{info.artifact_uri.rstrip('/')}/{path}")
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
        return self.at(newest.info.artifact_uri) if newest else place

    def at(self, uri: str) -> Place:
        """Return the place at an artifact URI.

        :raises NotSupported: where only the server's own machine can read it.
        """
        parts = urlsplit(uri)
        base = self._calls.base_url
        path = parts.path.strip("/")
        if parts.scheme == "mlflow-artifacts":
            server = f"{urlsplit(base).scheme}://{parts.netloc}" if parts.netloc else base
            return _Proxied(self._calls, f"{server}{_PROXY}", path)
        if parts.scheme in ("http", "https") and f"{_PROXY}/" in f"{parts.path}/":
            before, _, path = parts.path.partition(_PROXY)
            return _Proxied(self._calls, f"{parts.scheme}://{parts.netloc}{before}{_PROXY}", path.strip("/"))
        if parts.scheme in ("", "file"):
            raise NotSupported(
                f"the files lie on the disk of the {self._title} server, which passes them on to nobody; let it serve "
                "artifacts (--serve-artifacts with --artifacts-destination)"
            )
        raise NotSupported(
            f"artifacts at {parts.scheme}:// are out of reach; let the {self._title} server pass them on"
        )

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


class _Proxied(Place):
    """What an MLflow server passes on.

    :param base: the URL of all its artifacts.
    :param root: the directory's path below it.
    """

    def __init__(self, calls: Calls, base: str, root: str) -> None:
        self._calls = calls
        self._base = base
        self._root = root

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

"""Where a version's files lie and how they are reached."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain, InvalidInput, NotSupported, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.registries.mlflow.api import Calls, is_unknown_route
from airflow_provider_modelsync.core.registries.mlflow.bucket import Buckets
from airflow_provider_modelsync.core.registries.mlflow.places import (
    PROXY,
    LoggedFiles,
    Place,
    Proxied,
    RunFiles,
    Signed,
)
from airflow_provider_modelsync.core.registries.mlflow.records import (
    DownloadUri,
    LoggedModelAnswer,
    LoggedModelPage,
    PartsAnswer,
    RunAnswer,
    ServerInfo,
    VersionRecord,
)
from airflow_provider_modelsync.core.transfer.plan import Blob

_log = logging.getLogger("modelsync")

_RUN_SOURCE = re.compile(r"runs:/([^/]+)/(.*)")
_LOGGED_SOURCE = re.compile(r"models:/(m-[0-9a-f]+)")


class Artifacts:
    """Finds and lists the artifacts of one connection.

    :param calls: makes calls.
    :param title: what the system is called in messages.
    :param buckets: opens those that are reached with credentials of one's own.
    """

    def __init__(self, calls: Calls, title: str, buckets: Buckets) -> None:
        self._calls = calls
        self._buckets = buckets
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
        signs = (yield from self._info()) is not None
        place = self.at(f"{info.artifact_uri.rstrip('/')}/{path}", run=(run_id, path) if signs else None)
        if not (yield from place.is_empty()):
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
            return Proxied(self._calls, f"{server}{PROXY}", path)
        if parts.scheme in ("http", "https") and f"{PROXY}/" in f"{parts.path}/":
            before, _, path = parts.path.partition(PROXY)
            return Proxied(self._calls, f"{parts.scheme}://{parts.netloc}{before}{PROXY}", path.strip("/"))
        if parts.scheme in ("", "file"):
            raise NotSupported(
                f"the files lie on the disk of the {self._title} server, which passes them on to nobody; let it serve "
                "artifacts (--serve-artifacts with --artifacts-destination)"
            )
        # As MLflow's own client does, but for a server that signs when nothing is said of buckets.
        if parts.scheme == "s3" and (self._buckets.are_meant or (model_id is None and run is None)):
            return self._buckets.at(uri)
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
        if response.status_code >= 500 and (yield from place.holds(file)):
            return
        if response.status_code == 500:
            raise BeginAgain(f"{doing}: the storage does not know the upload, or a part of it, any more")
        self._calls.refuse(response, doing)

    def abandon(self, place: Place, file: FileEntry, blob: Blob, **more: Any) -> Flow[None]:
        """Have the storage forget the parts of a file."""
        assert isinstance(place, Proxied)
        asked = {"upload_id": blob.complete}
        yield from place.mpu("abort", file.path, asked, f"giving {show(file.path)} up", may_repeat=False, **more)

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

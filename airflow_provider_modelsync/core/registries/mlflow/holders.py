"""What holds a push's bytes until a version names them: a logged model, or on MLflow 2 a run.

A holder says by its tags whose bytes it is for, so that the next try finds it again, on any worker and without a
checkpoint. Nobody knows whether the one who has begun it is still at work, so two pushes of the same bytes may share
one: each file appears whole or not at all, and holds the same in both.

Whoever gives a holder up first lets the server forget it, then looks whether a version names it, and only then removes
the bytes. A server takes no version of a logged model that it has forgotten, so a version that came about before is
seen, and none can come about after.

A run is not asked for when a version is made, so each push that uses one says so by a tag before it looks whether the
run is still there. The tag goes once the push has a version. Whoever has given the run up leaves its bytes where a tag
says that another push may still make a version of them: `mlflow gc` removes them with the run. A run that is deleted
takes no tags.
"""

from __future__ import annotations

import re
import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.registries.mlflow.api import Calls, error_of, is_missing, is_unknown_route
from airflow_provider_modelsync.core.registries.mlflow.records import (
    DIGEST,
    NAME,
    OURS,
    DownloadUri,
    LoggedModelAnswer,
    LoggedModelInfo,
    LoggedModelPage,
    Run,
    RunAnswer,
    RunPage,
    Tag,
    VersionPage,
    VersionRecord,
    tags_of,
)

_TITLE = "modelsync"  # a logged model's name may hold less than a model's
_MODEL_DIRECTORY = "model"
_COPY = re.compile(r"models:/(?!m-)")
_OF_LOGGED = re.compile(r"(?:^models:|/models)/(m-[0-9a-f]+)(?:$|/artifacts/?$)")
_OF_RUN = re.compile(rf"^runs:/([0-9a-f]+)/{_MODEL_DIRECTORY}$|/([0-9a-f]+)/artifacts/{_MODEL_DIRECTORY}/?$")
_NOT_ACTIVE = re.compile(r"must be in the 'active' state")
_USED_BY = f"{OURS}push."
_LONGEST_PUSH = 7 * 24 * 3600 * 1000  # milliseconds; what began earlier is taken for dead


@dataclass(frozen=True, slots=True)
class Holder:
    """Where a push puts its files.

    :param id: of the logged model or the run.
    :param root: the files' place, as the server writes it.
    :param source: what a version names.
    :param keys: what a version has to name besides.
    :param digest: of the model that it is for.
    :param model_id: of the logged model, if it is one.
    :param push: the push that uses it, where pushes have to be told apart.
    """

    id: str
    root: str
    source: str
    keys: dict[str, str]
    digest: str
    model_id: str | None = None
    push: str | None = None


class Holders(ABC):
    """All of one kind on a server."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @abstractmethod
    def find(self, experiment_id: str, name: str, digest: str) -> Flow[Holder | None]:
        """Return the newest one that earlier tries have left for these bytes."""

    @abstractmethod
    def begin(self, experiment_id: str, name: str, digest: str) -> Flow[Holder]:
        """Make one."""

    def join(self, holder: Holder) -> Flow[Holder | None]:
        """Use what an earlier try has begun; ``None`` when that was given up meanwhile."""
        return holder
        yield  # a flow that needs no step

    def leave(self, holder: Holder, **more: Any) -> Flow[None]:
        """Say that a push makes no version of it any more."""
        return
        yield

    def is_used(self, holder: Holder, **more: Any) -> Flow[bool]:
        """Whether a push may still make a version of one that the server has forgotten."""
        return False
        yield

    @abstractmethod
    def is_there(self, holder: Holder) -> Flow[bool]:
        """Whether nobody has given it up."""

    @abstractmethod
    def settle(self, holder: Holder) -> Flow[None]:
        """Say that all files are there."""

    def of_version(self, record: VersionRecord) -> Flow[Holder | None]:
        """Return what holds a version's bytes, if a push of ours has made it; a copy's are those of what it is of."""
        if not _COPY.match(record.source):
            holder = yield from self.at(record.source)
            return holder if holder and record.source == holder.source else None
        place = yield from self._copied_place(record)
        holder = (yield from self.at(place)) if place else None
        return holder if holder and place in (holder.root, holder.source) else None

    @abstractmethod
    def at(self, place: str) -> Flow[Holder | None]:
        """Return what a place belongs to, if a push of ours has made it.

        :param place: a version's source, or where its files are.
        """

    @abstractmethod
    def fail(self, holder: Holder, **more: Any) -> Flow[None]:
        """Have no push of ours use it any more."""

    @abstractmethod
    def forget(self, holder: Holder, **more: Any) -> Flow[None]:
        """Have the server forget it; its files stay."""

    def is_named(self, holder: Holder, **more: Any) -> Flow[bool]:
        """Whether any version's bytes are these, be it as a copy of another version: copies have its tags."""
        for terms in (f"source_path = '{holder.source}'", f"tags.`{DIGEST}` = '{holder.digest}'"):
            page = yield from self._calls.need(
                "GET", "model-versions/search", VersionPage, "looking for versions", params={"filter": terms}, **more
            )
            for version in page.model_versions:
                if version.source == holder.source:
                    return True
                if _COPY.match(version.source):
                    place = yield from self._copied_place(version, **more)
                    if place in (holder.root, holder.source):
                        return True
        return False

    def _copied_place(self, record: VersionRecord, **more: Any) -> Flow[str | None]:
        """Return where the files of a copy are."""
        path, ask = "model-versions/get-download-uri", {"name": record.name, "version": record.version}
        found = yield from self._calls.find("GET", path, DownloadUri, "looking for copies", params=ask, **more)
        return found.artifact_uri if found else None

    @property
    @abstractmethod
    def are_checked(self) -> bool:
        """Whether the server takes no version of one that it has forgotten."""


class LoggedModels(Holders):
    """Logged models, since MLflow 3."""

    are_checked = True

    def is_offered(self, experiment_id: str) -> Flow[bool]:
        """Whether the server knows them."""
        body = {"experiment_ids": [experiment_id], "max_results": 1}
        response = yield from self._calls.answer("POST", "logged-models/search", json=body, may_repeat=True)
        if is_unknown_route(response):
            return False
        self._calls.refuse(response, "looking for logged models")
        return True

    def find(self, experiment_id: str, name: str, digest: str) -> Flow[Holder | None]:
        asked = {"experiment_ids": [experiment_id], "filter": f"tags.`{DIGEST}` = '{digest}'"}
        usable: list[LoggedModelInfo] = []

        def take(page: LoggedModelPage) -> None:
            infos = [model.info for model in page.models if _value(model.info.tags, NAME) == name]
            usable.extend(info for info in infos if info.status != "LOGGED_MODEL_UPLOAD_FAILED")

        doing = "looking for an earlier try"
        yield from self._calls.each_page("POST", "logged-models/search", LoggedModelPage, doing, asked, take)
        newest = max(usable, key=lambda info: info.creation_timestamp_ms, default=None)
        return _logged(newest) if newest else None

    def begin(self, experiment_id: str, name: str, digest: str) -> Flow[Holder]:
        body = {"experiment_id": experiment_id, "name": _TITLE, "tags": tags_of({DIGEST: digest, NAME: name})}
        made = yield from self._calls.need(
            "POST", "logged-models", LoggedModelAnswer, "creating a logged model", json=body, may_repeat=False
        )
        return _logged(made.model.info)

    def is_there(self, holder: Holder) -> Flow[bool]:
        found = yield from self._calls.find(
            "GET", f"logged-models/{holder.id}", LoggedModelAnswer, "reading the logged model"
        )
        return found is not None and found.model.info.status != "LOGGED_MODEL_UPLOAD_FAILED"

    def settle(self, holder: Holder) -> Flow[None]:
        yield from self._mark(holder, "LOGGED_MODEL_READY")

    def at(self, place: str) -> Flow[Holder | None]:
        named = _OF_LOGGED.search(place)
        if named is None:
            return None
        found = yield from self._calls.find(
            "GET", f"logged-models/{named[1]}", LoggedModelAnswer, "reading the logged model"
        )
        return _logged(found.model.info) if found and _value(found.model.info.tags, NAME) else None

    def fail(self, holder: Holder, **more: Any) -> Flow[None]:
        yield from self._mark(holder, "LOGGED_MODEL_UPLOAD_FAILED", **more)

    def forget(self, holder: Holder, **more: Any) -> Flow[None]:
        yield from self._calls.find("DELETE", f"logged-models/{holder.id}", object, "deleting the logged model", **more)

    def _mark(self, holder: Holder, status: str, **more: Any) -> Flow[None]:
        body = {"model_id": holder.id, "status": status}
        doing = "changing the state of the logged model"
        yield from self._calls.find("PATCH", f"logged-models/{holder.id}", object, doing, json=body, **more)


class Runs(Holders):
    """Runs with a directory of artifacts, where logged models are not known."""

    are_checked = False

    def find(self, experiment_id: str, name: str, digest: str) -> Flow[Holder | None]:
        asked = {"experiment_ids": [experiment_id], "filter": f"tags.`{DIGEST}` = '{digest}'"}
        usable: list[Run] = []

        def take(page: RunPage) -> None:
            runs = [run for run in page.runs if _value(run.data.tags, NAME) == name]
            usable.extend(run for run in runs if run.info.status in ("RUNNING", "FINISHED"))

        yield from self._calls.each_page("POST", "runs/search", RunPage, "looking for an earlier try", asked, take)
        newest = max(usable, key=lambda run: run.info.start_time, default=None)
        return _run(newest) if newest else None

    def begin(self, experiment_id: str, name: str, digest: str) -> Flow[Holder]:
        push = secrets.token_hex(8)
        body = {
            "experiment_id": experiment_id,
            "run_name": _TITLE,
            "start_time": _now(),
            "tags": tags_of({DIGEST: digest, NAME: name, f"{_USED_BY}{push}": str(_now())}),
        }
        made = yield from self._calls.need(
            "POST", "runs/create", RunAnswer, "creating a run", json=body, may_repeat=False
        )
        return replace(_run(made.run), push=push)

    def join(self, holder: Holder) -> Flow[Holder | None]:
        joined = replace(holder, push=secrets.token_hex(8))
        body = {"key": f"{_USED_BY}{joined.push}", "value": str(_now())}
        yield from self._change(holder, "set-tag", "saying that a run is used", body)
        return joined if (yield from self.is_there(joined)) else None

    def leave(self, holder: Holder, **more: Any) -> Flow[None]:
        if holder.push is not None:
            body = {"key": f"{_USED_BY}{holder.push}"}
            yield from self._change(holder, "delete-tag", "saying that a run is used no more", body, **more)

    def is_used(self, holder: Holder, **more: Any) -> Flow[bool]:
        run = yield from self._read(holder.id, **more)
        since = _now() - _LONGEST_PUSH
        tags = run.data.tags if run else []
        return any(tag.key.startswith(_USED_BY) and not _is_before(tag.value, since) for tag in tags)

    def is_there(self, holder: Holder) -> Flow[bool]:
        run = yield from self._get(holder.id)
        return run is not None and run.info.status in ("RUNNING", "FINISHED")

    def settle(self, holder: Holder) -> Flow[None]:
        yield from self._mark(holder, "FINISHED")

    def at(self, place: str) -> Flow[Holder | None]:
        named = _OF_RUN.search(place)
        if named is None:
            return None
        run = yield from self._get(named[1] or named[2])
        return _run(run) if run and _value(run.data.tags, NAME) else None

    def fail(self, holder: Holder, **more: Any) -> Flow[None]:
        yield from self._mark(holder, "FAILED", **more)

    def forget(self, holder: Holder, **more: Any) -> Flow[None]:
        yield from self._change(holder, "delete", "deleting the run", {}, **more)

    def _mark(self, holder: Holder, status: str, **more: Any) -> Flow[None]:
        body = {"status": status, "end_time": _now()}
        yield from self._change(holder, "update", "changing the state of the run", body, **more)

    def _change(self, holder: Holder, verb: str, doing: str, body: dict[str, Any], **more: Any) -> Flow[None]:
        """Make a call that changes a run, unless it is deleted."""
        asked = {"run_id": holder.id, **body}
        response = yield from self._calls.answer("POST", f"runs/{verb}", json=asked, may_repeat=True, **more)
        if not is_missing(response) and not _NOT_ACTIVE.search(error_of(response).message):
            self._calls.refuse(response, doing)

    def _get(self, run_id: str) -> Flow[Run | None]:
        run = yield from self._read(run_id)
        return run if run and run.info.lifecycle_stage != "deleted" else None

    def _read(self, run_id: str, **more: Any) -> Flow[Run | None]:
        ask = {"run_id": run_id}
        found = yield from self._calls.find("GET", "runs/get", RunAnswer, "reading the run", params=ask, **more)
        return found.run if found else None


def _logged(info: LoggedModelInfo) -> Holder:
    keys = {"model_id": info.model_id}
    return Holder(
        info.model_id, info.artifact_uri, f"models:/{info.model_id}", keys, _value(info.tags, DIGEST), info.model_id
    )


def _run(run: Run) -> Holder:
    run_id = run.info.run_id
    root = f"{run.info.artifact_uri.rstrip('/')}/{_MODEL_DIRECTORY}"
    source = f"runs:/{run_id}/{_MODEL_DIRECTORY}"
    return Holder(run_id, root, source, {"run_id": run_id}, _value(run.data.tags, DIGEST))


def _value(tags: list[Tag], key: str) -> str:
    return next((tag.value for tag in tags if tag.key == key), "")


def _is_before(milliseconds: str, moment: int) -> bool:
    return milliseconds.isdigit() and int(milliseconds) < moment


def _now() -> int:
    return int(time.time() * 1000)

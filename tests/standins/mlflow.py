"""An MLflow tracking server: registered models, logged models, runs, artifacts, and a storage that signs URLs.

It answers as real servers 3.17.2 and 2.22.5 were seen to, whose answers are in ``tests/data/mlflow-exchanges.json``.

    with MLflowStandIn(scratch) as server:                      # the newest, artifacts on its own disk
    with MLflowStandIn(scratch, generation=2) as server:        # no logged models, no ranges
    with MLflowStandIn(scratch, storage="s3") as server:        # artifacts in a bucket, parts and presigned URLs

Nothing here imports the package under test.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from tests.standins.http_server import (
    Answer,
    BadBody,
    FileSlice,
    Handler,
    Json,
    Refusal,
    Request,
    StandIn,
    file_answer,
    json_answer,
    text_answer,
)

_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/"
_AJAX = "/ajax-api/2.0/mlflow/logged-models/"
_TERM = re.compile(r"""\s*(tags\.`(?P<tag>[^`]+)`|(?P<field>\w+))\s*=\s*(?P<quote>['"])(?P<value>.*?)(?P=quote)\s*""")
_ORDER = re.compile(r"version_number(?: (ASC|DESC))?")
_NO_ROUTE = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"
_BROKEN = "<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n"
_MIN_PART = 5 << 20


class MLflowStandIn(StandIn):
    """A server with nothing in it.

    :param scratch: an empty directory for what it stores.
    :param generation: 3, or 2: before there were logged models.
    :param storage: ``"local"``; ``"s3"``: whole files only, parts and presigned URLs; ``"direct"``: a bucket of which
        the server passes nothing on but to who asks by the logged model.
    :param bucket: what that bucket is called; the server itself never looks into it.
    :param user: name and password that requests must carry, or a bearer token alone.
    :param workspace: the one that it has besides ``default``; ``None``: it knows no workspaces.
    :param least_part: bytes that a part which is not the last must have.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        generation: int = 3,
        storage: str = "local",
        bucket: str = "bucket",
        user: tuple[str, str] | str | None = None,
        workspace: str | None = None,
        least_part: int = _MIN_PART,
    ) -> None:
        super().__init__(handler=_Handler)
        self.root = scratch / "artifacts"
        self.root.mkdir(parents=True)
        self.generation = generation
        self.storage = storage
        self.bucket = f"s3://{bucket}"
        self.user = user
        self.workspace = workspace
        self.least_part = least_part
        self.storage_url = ""
        self.experiments: dict[str, Json] = {}
        self._add_experiment("Default")
        self.models: dict[str, Json] = {}
        self.logged: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.uploads: dict[str, Json] = {}
        self.deleted: set[str] = set()
        self._clock = itertools.count(1_795_944_743_626, 1_000)
        self._parts = threading.Lock()

    def __enter__(self) -> MLflowStandIn:
        super().__enter__()
        self.storage_url = self.listen("storage", self._answer_storage)
        return self

    def versions(self, name: str) -> list[Json]:
        """The versions of a model, oldest first."""
        with self.lock:
            return list(self.models[name]["versions"].values()) if name in self.models else []

    def files(self) -> dict[str, bytes]:
        """All artifacts, by their paths below the destination."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.name.startswith(".part-")
        }

    # -- requests

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        self._check_user(request)
        if request.path == "/version":
            return text_answer(200, "3.17.2" if self.generation == 3 else "2.22.5")
        if request.path == "/api/3.0/mlflow/server-info" and self.generation == 3:
            is_s3 = self.storage == "s3"
            flags = {"multipart_uploads_enabled": is_s3, "multipart_downloads_enabled": is_s3}
            return json_answer(
                200, {"store_type": "SqlStore", "workspaces_enabled": self.workspace is not None, **flags}
            )
        if request.path.startswith(_AJAX) and self.storage == "direct":
            model_id = request.path.removeprefix(_AJAX).partition("/")[0]
            place = self._local(_path_in(self._logged_model(model_id)["info"]["artifact_uri"]))
            found = place / request.query["artifact_file_path"]
            if not found.is_file():
                raise Refusal(_missing("No such artifact"))
            return Answer(200, FileSlice(found, 0, found.stat().st_size))
        if request.path.startswith(_ARTIFACTS) and self.storage == "direct":
            raise Refusal(json_answer(503, {"detail": "Artifact serving is disabled. Run with `--serve-artifacts`."}))
        if request.path.startswith(_ARTIFACTS):
            return self._artifacts(request, request.path.removeprefix(_ARTIFACTS), body)
        if request.path.startswith(_API):
            content = b"".join(body)
            asked = {**request.query, **(json.loads(content) if content else {})}
            request.body = asked
            with self.lock:
                return self._call(request, request.path.removeprefix(_API), asked)
        raise Refusal(_no_route())

    def _check_user(self, request: Request) -> None:
        wanted = None
        if isinstance(self.user, tuple):
            wanted = "Basic " + base64.b64encode(":".join(self.user).encode()).decode()
        elif self.user:
            wanted = f"Bearer {self.user}"
        if wanted and request.headers.get("authorization") != wanted:
            raise Refusal(text_answer(401, "You are not authenticated. Please see https://www.mlflow.org/docs/"))
        workspace = request.headers.get("x-mlflow-workspace")
        if workspace is not None and self.workspace is None:
            raise Refusal(_refused(500, "FEATURE_DISABLED", "Workspace APIs are not available: not enabled"))
        if workspace not in (None, "default", self.workspace):
            raise Refusal(_refused(404, "RESOURCE_DOES_NOT_EXIST", f"Workspace '{workspace}' not found"))

    def _call(self, request: Request, path: str, asked: Json) -> Answer:
        calls: dict[str, Callable[[Json], Json]] = {
            "GET experiments/get-by-name": self._experiment,
            "GET experiments/get": lambda asked: {"experiment": self._experiment_with(asked["experiment_id"])},
            "POST experiments/create": self._new_experiment,
            "GET registered-models/get": lambda asked: {"registered_model": self._shown(self._model(asked))},
            "POST registered-models/create": self._new_model,
            "GET registered-models/search": self._search_models,
            "DELETE registered-models/delete": self._delete_model,
            "POST registered-models/get-latest-versions": self._latest_versions,
            "POST registered-models/set-tag": self._tag_model,
            "GET registered-models/alias": self._by_alias,
            "POST registered-models/alias": self._set_alias,
            "DELETE registered-models/alias": self._delete_alias,
            "POST model-versions/create": self._new_version,
            "GET model-versions/get": lambda asked: {"model_version": self._with_aliases(self._version(asked))},
            "GET model-versions/search": self._search_versions,
            "DELETE model-versions/delete": self._delete_version,
            "GET model-versions/get-download-uri": self._download_uri,
            "POST model-versions/set-tag": self._set_tag,
            "DELETE model-versions/delete-tag": self._delete_tag,
            "POST artifacts/presigned-upload-url": self._presigned_upload,
            "POST runs/create": self._new_run,
            "GET runs/get": lambda asked: {"run": self._run(asked)},
            "POST runs/update": self._update_run,
            "POST runs/delete": self._delete_run,
            "POST runs/search": self._search_runs,
            "POST runs/set-tag": self._tag_run,
            "POST runs/delete-tag": self._untag_run,
            "POST runs/log-batch": lambda asked: {},
            "POST runs/log-model": lambda asked: {},
            "POST runs/outputs": lambda asked: {},
        }
        if isinstance(self.user, tuple):
            user = {"id": 2, "is_admin": False, "username": self.user[0]}
            calls["GET users/current"] = lambda asked: {"is_basic_auth": True, "user": user}
        if self.generation == 3 and path.split("/")[0] == "logged-models":
            return json_answer(200, self._logged(request.method, path.split("/")[1:], asked))
        call = calls.get(f"{request.method} {path}")
        if call is None:
            raise Refusal(_no_route())
        if request.method == "DELETE" and request.query:
            raise Refusal(_bad("Missing value for required parameter 'name'."))
        return json_answer(200, call(asked))

    # -- experiments and runs

    def _experiment(self, asked: Json) -> Json:
        name = asked["experiment_name"]
        for experiment in self.experiments.values():
            if experiment["name"] == name:
                return {"experiment": experiment}
        raise Refusal(_missing(f"Could not find experiment with name '{name}'"))

    def _new_experiment(self, asked: Json) -> Json:
        if any(one["name"] == asked["name"] for one in self.experiments.values()):
            raise Refusal(_exists(f"Experiment(name={asked['name']}) already exists."))
        return {"experiment_id": self._add_experiment(asked["name"])}

    def _add_experiment(self, name: str) -> str:
        number = str(len(self.experiments))
        place = f"{self.bucket}/{number}" if self.storage == "direct" else f"mlflow-artifacts:/{number}"
        if self.workspace:
            place = f"mlflow-artifacts:/workspaces/{self.workspace}/{number}"
        self.experiments[number] = {
            "experiment_id": number,
            "name": name,
            "artifact_location": place,
            "lifecycle_stage": "active",
        }
        return number

    def _experiment_with(self, experiment_id: str) -> Json:
        if experiment_id not in self.experiments:
            raise Refusal(_missing(f"No Experiment with id={experiment_id} exists"))
        return self.experiments[experiment_id]

    def _place_of(self, asked: Json) -> str:
        experiment = self._experiment_with(asked["experiment_id"])
        if experiment["lifecycle_stage"] == "deleted":
            raise Refusal(_bad(f"The experiment {asked['experiment_id']} must be in the 'active' state."))
        return str(experiment["artifact_location"])

    def _new_run(self, asked: Json) -> Json:
        run_id = self._new_id()
        place = f"{self._place_of(asked)}/{run_id}/artifacts"
        info = {
            "run_id": run_id,
            "experiment_id": asked["experiment_id"],
            "artifact_uri": place,
            "status": "RUNNING",
            "start_time": asked["start_time"],
            "lifecycle_stage": "active",
        }
        self.runs[run_id] = {"info": info, "data": {"tags": asked.get("tags", [])}}
        return {"run": self.runs[run_id]}

    def _run(self, asked: Json) -> Json:
        if asked["run_id"] not in self.runs:
            raise Refusal(_missing(f"Run with id={asked['run_id']} not found"))
        return self.runs[asked["run_id"]]

    def _update_run(self, asked: Json) -> Json:
        info = self._active_run(asked)["info"]
        info["status"] = asked["status"]
        return {"run_info": info}

    def _delete_run(self, asked: Json) -> Json:
        self._run(asked)["info"]["lifecycle_stage"] = "deleted"
        return {}

    def _tag_run(self, asked: Json) -> Json:
        run = self._active_run(asked)
        kept = [tag for tag in run["data"]["tags"] if tag["key"] != asked["key"]]
        run["data"]["tags"] = [*kept, {"key": asked["key"], "value": asked["value"]}]
        return {}

    def _untag_run(self, asked: Json) -> Json:
        run = self._active_run(asked)
        kept = [tag for tag in run["data"]["tags"] if tag["key"] != asked["key"]]
        if len(kept) == len(run["data"]["tags"]):
            raise Refusal(_missing(f"No tag with name: {asked['key']} in run with id {asked['run_id']}"))
        run["data"]["tags"] = kept
        return {}

    def _active_run(self, asked: Json) -> Json:
        run = self._run(asked)
        if run["info"]["lifecycle_stage"] != "active":
            raise Refusal(_bad(f"The run {asked['run_id']} must be in the 'active' state."))
        return run

    def _search_runs(self, asked: Json) -> Json:
        def facts(run: Json) -> Json:
            return {"run_id": run["info"]["run_id"]}

        chosen = [
            run
            for run in self.runs.values()
            if run["info"]["experiment_id"] in asked["experiment_ids"]
            and run["info"]["lifecycle_stage"] == "active"
            and _matches(asked.get("filter", ""), facts(run), run["data"]["tags"])
        ]
        return _page("runs", chosen[::-1], asked, 1000)

    # -- logged models

    def _logged(self, method: str, path: list[str], asked: Json) -> Json:
        match method, path:
            case "POST", []:
                model_id = f"m-{self._new_id()}"
                now = next(self._clock)
                info = {
                    "model_id": model_id,
                    "experiment_id": asked["experiment_id"],
                    "name": asked["name"],
                    "artifact_uri": f"{self._place_of(asked)}/models/{model_id}/artifacts",
                    "status": "LOGGED_MODEL_PENDING",
                    "creation_timestamp_ms": now,
                    "last_updated_timestamp_ms": now,
                    "source_run_id": asked.get("source_run_id", ""),
                    "tags": asked.get("tags", []),
                }
                self.logged[model_id] = {"info": info, "data": {}}
                return {"model": self.logged[model_id]}
            case "POST", ["search"]:
                chosen = [
                    model
                    for model_id, model in self.logged.items()
                    if model_id not in self.deleted
                    and model["info"]["experiment_id"] in asked["experiment_ids"]
                    and _matches(asked.get("filter", ""), model["info"], model["info"]["tags"])
                ]
                return _page("models", chosen[::-1], asked, 50)
            case "GET", [model_id]:
                return {"model": self._logged_model(model_id)}
            case "GET", [model_id, "artifacts", "directories"]:
                root = self._logged_model(model_id)["info"]["artifact_uri"]
                below = asked.get("artifact_directory_path", "")
                entries = self._listing(f"{_path_in(root)}/{below}".rstrip("/"))
                return {
                    "root_uri": root,
                    "files": [{**one, "path": f"{below}/{one['path']}".strip("/")} for one in entries],
                }
            case "PATCH", [model_id]:
                if "model_id" not in asked:
                    raise Refusal(_bad("Missing value for required parameter 'model_id'."))
                model = self._logged_model(model_id)
                model["info"]["status"] = asked["status"]
                return {"model": model}
            case "PATCH", [model_id, "tags"]:
                info = self._logged_model(model_id)["info"]
                given = {tag["key"] for tag in asked["tags"]}
                info["tags"] = [*(tag for tag in info["tags"] if tag["key"] not in given), *asked["tags"]]
                return {}
            case "DELETE", [model_id]:
                self._logged_model(model_id)
                self.deleted.add(model_id)
                return {}
        raise Refusal(_no_route())

    def _logged_model(self, model_id: str) -> Json:
        if model_id not in self.logged or model_id in self.deleted:
            raise Refusal(_missing(f"Logged model with ID '{model_id}' not found."))
        return self.logged[model_id]

    # -- registered models

    def _model(self, asked: Json) -> Json:
        if asked["name"] not in self.models:
            raise Refusal(_missing(f"Registered Model with name={asked['name']} not found"))
        return self.models[asked["name"]]

    def _shown(self, model: Json) -> Json:
        shown = {key: value for key, value in model.items() if key not in ("versions", "next") and value}
        if model["versions"]:
            shown["latest_versions"] = [_plain(max(model["versions"].values(), key=lambda one: int(one["version"])))]
        if model["aliases"]:
            pairs = model["aliases"].items()
            shown["aliases"] = [{"alias": alias, "version": version} for alias, version in pairs]
        return shown

    def _latest_versions(self, asked: Json) -> Json:
        return {"model_versions": self._shown(self._model(asked)).get("latest_versions", [])}

    def _new_model(self, asked: Json) -> Json:
        name = asked["name"]
        if not name or "/" in name or ":" in name:
            raise Refusal(_bad(f"Invalid model name '{name}'. Names cannot contain '/' or ':'."))
        if name in self.models:
            raise Refusal(_exists(f"Registered Model (name={name}) already exists."))
        now = next(self._clock)
        stamps = {"creation_timestamp": now, "last_updated_timestamp": now}
        tags = asked.get("tags", [])
        self.models[name] = {"name": name, **stamps, "tags": tags, "aliases": {}, "versions": {}, "next": 1}
        return {"registered_model": self._shown(self.models[name])}

    def _search_models(self, asked: Json) -> Json:
        chosen = [self._shown(self.models[name]) for name in sorted(self.models)]
        models = [one for one in chosen if not any("is_prompt" in tag["key"] for tag in one.get("tags", []))]
        return _page("registered_models", models, asked, 100)

    def _delete_model(self, asked: Json) -> Json:
        self._model(asked)
        del self.models[asked["name"]]
        return {}

    def _tag_model(self, asked: Json) -> Json:
        model = self._model(asked)
        kept = [tag for tag in model["tags"] if tag["key"] != asked["key"]]
        model["tags"] = [*kept, {"key": asked["key"], "value": asked["value"]}]
        return {}

    def _by_alias(self, asked: Json) -> Json:
        model, alias = self._model(asked), asked["alias"]
        version = model["aliases"].get(alias)
        if alias == "latest" and model["versions"]:
            version = max(model["versions"], key=int)
        if version is None:
            raise Refusal(_bad(f"Registered model alias {alias} not found."))
        return {"model_version": self._with_aliases(model["versions"][version])}

    def _set_alias(self, asked: Json) -> Json:
        alias = asked["alias"]
        if not re.fullmatch(r"[\w-]{1,255}", alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
            raise Refusal(_bad(f"Invalid alias name: '{alias}'."))
        if not isinstance(asked["version"], str):
            raise Refusal(_bad("Invalid value for parameter 'version': it is no string"))
        version = self._version(asked)
        self._model(asked)["aliases"][alias] = version["version"]
        return {}

    def _delete_alias(self, asked: Json) -> Json:
        self._model(asked)["aliases"].pop(asked["alias"], None)
        return {}

    # -- versions

    def _version(self, asked: Json) -> Json:
        name, number = asked["name"], asked["version"]
        if not str(number).isdigit():
            raise Refusal(_bad(f"Parameter 'version' must be an integer, got '{number}'."))
        found = self.models.get(name, {"versions": {}})["versions"].get(str(int(number)))
        if found is None:
            raise Refusal(_missing(f"Model Version (name={name}, version={number}) not found"))
        assert isinstance(found, dict)
        return found

    def _with_aliases(self, version: Json) -> Json:
        aliases = [
            alias for alias, number in self.models[version["name"]]["aliases"].items() if number == version["version"]
        ]
        return {**_plain(version), **({"aliases": aliases} if aliases else {})}

    def _new_version(self, asked: Json) -> Json:
        model, source = self._model(asked), asked["source"]
        if source.startswith("models:/m-"):
            model_id = source.removeprefix("models:/")
            if model_id not in self.logged or model_id in self.deleted:
                raise Refusal(
                    _refused(
                        500,
                        "INTERNAL_ERROR",
                        f"Unable to fetch model from model URI source artifact location '{source}'."
                        f"Error: Logged model with ID '{model_id}' not found.",
                    )
                )
            place = self.logged[model_id]["info"]["artifact_uri"]
        elif source.startswith("models:/"):
            name, _, number = source.removeprefix("models:/").rpartition("/")
            place = self._version({"name": name, "version": number})["_place"]
        else:
            place = source
        number = str(model["next"])
        model["next"] += 1
        now = next(self._clock)
        version = {
            "name": asked["name"],
            "version": number,
            "creation_timestamp": now,
            "last_updated_timestamp": now,
            "current_stage": "None",
            "description": "",
            "source": source,
            "run_id": asked.get("run_id", ""),
            "status": "READY",
            "run_link": "",
            "tags": [dict(tag) for tag in asked.get("tags", [])],
            "_place": place,
        }
        model["versions"][number] = version
        return {"model_version": _plain(version)}

    def _search_versions(self, asked: Json) -> Json:
        def facts(version: Json) -> Json:
            return {**version, "source_path": version["source"]}

        found = [
            version
            for model in self.models.values()
            for version in model["versions"].values()
            if _matches(asked.get("filter", ""), facts(version), version["tags"])
        ]
        if order := _ORDER.fullmatch(asked.get("order_by", "")):
            found.sort(key=lambda version: int(version["version"]), reverse=order[1] == "DESC")
        return _page("model_versions", [_plain(version) for version in found], asked, 10_000)

    def _delete_version(self, asked: Json) -> Json:
        version, model = self._version(asked), self._model(asked)
        del model["versions"][version["version"]]
        for alias in [alias for alias, number in model["aliases"].items() if number == version["version"]]:
            del model["aliases"][alias]
        return {}

    def _download_uri(self, asked: Json) -> Json:
        return {"artifact_uri": self._version(asked)["_place"]}

    def _set_tag(self, asked: Json) -> Json:
        longest = 100_000 if self.generation == 3 else 5_000
        if len(asked["value"]) > longest:
            raise Refusal(_bad(f"'value' exceeds the maximum length of {longest} characters"))
        self._delete_tag(asked)
        self._version(asked)["tags"].append({"key": asked["key"], "value": asked["value"]})
        return {}

    def _delete_tag(self, asked: Json) -> Json:
        version = self._version(asked)
        version["tags"] = [tag for tag in version["tags"] if tag["key"] != asked["key"]]
        return {}

    # -- artifacts

    def _artifacts(self, request: Request, path: str, body: Iterator[bytes]) -> Answer:
        if request.method == "GET" and path == "artifacts":
            return json_answer(200, {"files": files} if (files := self._listing(request.query.get("path", ""))) else {})
        if path.startswith("artifacts/"):
            return self._artifact(request, unquote(path.removeprefix("artifacts/")), body)
        if self.generation == 3 and request.method == "GET" and path.startswith("presigned/"):
            return self._presigned_download(path.removeprefix("presigned/"))
        if self.generation == 3 and request.method == "POST" and path.startswith("mpu/"):
            _, verb, directory = path.split("/", 2)
            asked = request.body = json.loads(b"".join(body))
            if self.storage != "s3":
                raise Refusal(_refused(501, "NOT_IMPLEMENTED", "Multipart upload is not supported for the current one"))
            return self._parts_call(verb, directory, asked)
        raise Refusal(_no_route())

    def _artifact(self, request: Request, path: str, body: Iterator[bytes]) -> Answer:
        target = self._local(path)
        match request.method:
            case "PUT":
                try:
                    self._write(target, body)
                except OSError:
                    raise Refusal(text_answer(500, "Internal Server Error")) from None
                return Answer(200)
            case "DELETE":
                if target.is_dir():
                    shutil.rmtree(target, ignore_errors=True)  # another may be at it
                else:
                    target.unlink(missing_ok=True)
                return json_answer(200, {})
        is_head, is_plain = request.method == "HEAD", self.storage == "local" and self.generation == 3
        if target.is_dir():
            if is_plain:
                raise Refusal(
                    json_answer(400, {"detail": f"Artifact path refers to a directory, not a file: '{path}'"})
                )
            if self.generation == 2:
                raise Refusal(text_answer(500, _BROKEN, {"Content-Type": "text/html"}))
            return Answer(200, chunked=not is_head)
        if not target.is_file():
            if is_plain:
                raise Refusal(_missing(f"No such artifact: '{path}'"))
            said = "An error occurred (404) when calling the HeadObject operation: Not Found"
            if self.storage == "local":
                said = f"[Errno 2] No such file or directory: './art/{path}'"
            raise Refusal(_refused(500, "INTERNAL_ERROR", f"The following failures occurred:\n{said}"))
        size = target.stat().st_size
        headers = {"Content-Type": "application/octet-stream"}
        if is_plain:
            stamp = f"{target.stat().st_mtime_ns}-{size}"
            tag = stamp if is_head else hashlib.md5(stamp.encode(), usedforsecurity=False).hexdigest()
            headers |= {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            return file_answer(target, size, headers, request.headers.get("range", ""))
        return Answer(200, FileSlice(target, 0, size), headers, chunked=not is_head)

    def _write(self, target: Path, body: Iterator[bytes]) -> None:
        """Write a file: it appears whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".part-{uuid.uuid4().hex}"
        try:
            with staged.open("wb") as file:
                for block in body:
                    file.write(block)
            staged.rename(target)
        finally:
            staged.unlink(missing_ok=True)

    def _listing(self, path: str) -> list[Json]:
        directory = self._local(path)
        entries: list[Json] = []
        found = sorted(directory.iterdir()) if directory.is_dir() else []
        for entry in found:
            if not entry.name.startswith(".part-"):
                with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                    size = 0 if entry.is_dir() else entry.stat().st_size
                    told = {"file_size": size} if size else {}
                    entries.append({"path": entry.name, "is_dir": entry.is_dir(), **told})
        return entries

    def _local(self, path: str) -> Path:
        if "#" in path or ".." in path.split("/"):
            raise Refusal(_bad("Invalid path"))
        return self.root / path.strip("/")

    # -- a storage that signs URLs

    def _presigned_upload(self, asked: Json) -> Json:
        root = self._logged_model(asked["model_id"])["info"]["artifact_uri"]
        path = quote(f"{_path_in(root)}/{asked['path']}")
        url = f"{self.storage_url}/{path}?X-Amz-Signature=canary"
        return {"presigned_url": url, "headers": {"Content-Type": "application/octet-stream"}}

    def _presigned_download(self, path: str) -> Answer:
        if self.storage != "s3":
            raise Refusal(_refused(501, "NOT_IMPLEMENTED", "Multipart download is not supported for the current one"))
        target = self._local(path)
        if not target.is_file():
            raise Refusal(_missing("Not Found"))
        url = f"{self.storage_url}/{quote(path)}?X-Amz-Signature=canary"
        return json_answer(200, {"url": url, "headers": {}, "file_size": target.stat().st_size})

    def _parts_call(self, verb: str, directory: str, asked: Json) -> Answer:
        path = f"{directory}/{Path(asked['path']).name}"
        if verb == "create":
            upload_id = self._new_id()
            self.uploads[upload_id] = {"path": path, "parts": {}}
            place = f"{self.storage_url}/{quote(path)}?X-Amz-Signature=canary&uploadId={upload_id}"
            numbers = range(1, asked["num_parts"] + 1)
            urls = [{"url": f"{place}&partNumber={number}", "part_number": number} for number in numbers]
            return json_answer(200, {"upload_id": upload_id, "credentials": urls})
        upload = self.uploads.get(asked["upload_id"])
        if upload is None or upload["path"] != path:
            raise Refusal(text_answer(500, _BROKEN, {"Content-Type": "text/html"}))
        if verb == "complete":
            parts = [(upload["parts"].get(one["part_number"], b""), one["etag"]) for one in asked["parts"]]
            too_small = any(len(part) < self.least_part for part, _ in parts[:-1])
            if not parts or too_small or any(_etag(part) != etag for part, etag in parts):
                raise Refusal(text_answer(500, _BROKEN, {"Content-Type": "text/html"}))
            self._write(self._local(path), iter([part for part, _ in parts]))
        del self.uploads[asked["upload_id"]]
        return json_answer(200, {})

    def _answer_storage(self, request: Request, body: Iterator[bytes]) -> Answer:
        if "authorization" in request.headers or "x-mlflow-workspace" in request.headers:
            return text_answer(
                400, "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism</Message></Error>"
            )
        if request.query.get("X-Amz-Signature") != "canary":
            return text_answer(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
        path = request.path.strip("/")
        if request.method == "PUT" and "uploadId" not in request.query:
            if request.headers.get("content-type") != "application/octet-stream":
                return text_answer(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
            self._write(self._local(path), body)
            return Answer(200, headers={"ETag": '"any"'})
        if request.method == "PUT":
            content = b"".join(body)
            with self._parts:
                upload = self.uploads.get(request.query["uploadId"])
                if upload is None:
                    return text_answer(404, "<Error><Code>NoSuchUpload</Code></Error>")
                upload["parts"][int(request.query["partNumber"])] = content
            return Answer(200, headers={"ETag": _etag(content)})
        target = self._local(path)
        if not target.is_file():
            return text_answer(404, "<Error><Code>NoSuchKey</Code></Error>")
        headers = {"ETag": f'"{target.stat().st_mtime_ns}"'}
        return file_answer(target, target.stat().st_size, headers, request.headers.get("range", ""))

    def _new_id(self) -> str:
        return uuid.uuid4().hex


class _Handler(Handler):
    def drain(self) -> None:
        with contextlib.suppress(BadBody):
            for _ in self.body():
                pass


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _plain(version: Json) -> Json:
    return {key: value for key, value in version.items() if key != "_place" and (value or key != "tags")}


def _path_in(uri: str) -> str:
    return re.sub("^(mlflow-artifacts:/|s3://[^/]+/)", "", uri)


def _matches(terms: str, facts: Json, tags: list[Json]) -> bool:
    position = 0
    while position < len(terms):
        found = _TERM.match(terms, position)
        if found is None:
            raise Refusal(_bad(f"Invalid clause(s) in filter string: '{terms[position:]}'"))
        if found["tag"]:
            kept = [tag["value"] for tag in tags if tag["key"] == found["tag"]]
        else:
            kept = [facts.get(found["field"])]
        if found["value"] not in kept:
            return False
        position = found.end()
        if position < len(terms):
            if not terms.startswith("AND ", position):
                raise Refusal(_bad(f"Invalid clause(s) in filter string: '{terms[position:]}'"))
            position += 4
    return True


def _page(key: str, found: list[Json], asked: Json, size: int) -> Json:
    size = int(asked.get("max_results", size))
    token = asked.get("page_token")
    start = json.loads(base64.b64decode(token))["offset"] if token else 0
    page: Json = {key: found[start : start + size]} if found[start : start + size] else {}
    if start + size < len(found):
        page["next_page_token"] = base64.b64encode(json.dumps({"offset": start + size}).encode()).decode()
    return page


def _refused(status: int, code: str, message: str) -> Answer:
    return json_answer(status, {"error_code": code, "message": message})


def _missing(message: str) -> Answer:
    return _refused(404, "RESOURCE_DOES_NOT_EXIST", message)


def _exists(message: str) -> Answer:
    return _refused(400, "RESOURCE_ALREADY_EXISTS", message)


def _bad(message: str) -> Answer:
    return _refused(400, "INVALID_PARAMETER_VALUE", message)


def _no_route() -> Answer:
    return text_answer(404, _NO_ROUTE, {"Content-Type": "text/html; charset=utf-8"})

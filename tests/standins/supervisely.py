"""A stand-in for the Supervisely platform: Team Files, workspaces, agents, the ecosystem, tasks, and its two proxies.

    with SuperviselyStandIn(tmp_path, app=app.url) as server:
        server.fault("POST", r"/file-storage\\.upload$", Respond(503))
        ...  # talk to server.url with server.token
        assert server.count("POST", r"/file-storage\\.upload$") == 2

What a serving app answers is the app's own: `tasks.request.direct` and `/net/<session token>/` are passed on to it.
The platform is closed; what is said here is what the unmodified client sends and reads. Where not even that
tells, the answer is a guess, and the text says so. Nothing here imports the package under test.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

from tests.standins.http_server import Answer, Json, Refusal, Request, Rewrite, file_answer, json_answer
from tests.standins.supervisely_http import Body, StandIn, read_form

API = "/public/api/v3/"
CHECKSUM = "x-content-checksum-sha256"
WRONG = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()


def refusal(status: int, error: str, message: str = "") -> Refusal:
    """A refusal in the platform's words."""
    return Refusal(json_answer(status, {"error": error, "details": {"message": message or error}}))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- Team Files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Bytes that have arrived: where they lie, and the SHA-256 of them as the platform writes it."""

    content: Path
    size: int
    hash: str


class Incoming:
    """A file that is being written."""

    def __init__(self, content: Path, file: IO[bytes]) -> None:
        self._content = content
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self._size += len(block)

    def finish(self) -> Stored:
        self._file.flush()
        return Stored(self._content, self._size, base64.b64encode(self._digest.digest()).decode())


@dataclass(frozen=True)
class TeamFile:
    """A file; its path is absolute."""

    id: int
    team: int
    path: str
    stored: Stored
    mime: str = "application/octet-stream"
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def json(self, url: str) -> Json:
        return {
            "teamId": self.team,
            "id": self.id,
            "userId": 7,
            "name": self.name,
            "hash": self.stored.hash,
            "path": self.path,
            "storagePath": f"/x/teams_storage{self.path}",
            "meta": {
                "mime": self.mime,
                "ext": PurePosixPath(self.path).suffix.removeprefix("."),
                "size": self.stored.size,
            },
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
            "fullStorageUrl": f"{url}/x{self.path}",
        }


class TeamFiles:
    """The files of all teams, by team and path."""

    def __init__(self, root: Path) -> None:
        self.files: dict[tuple[int, str], TeamFile] = {}
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        self._ids = itertools.count(1001)

    def receive(self, blocks: Iterable[bytes]) -> Stored:
        with self.incoming() as file:
            for block in blocks:
                file.write(block)
            return file.finish()

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Where a body is written; nothing is left of one that breaks off."""
        content = self._root / uuid.uuid4().hex
        try:
            with content.open("wb") as file:
                yield Incoming(content, file)
        except BaseException:
            content.unlink()
            raise

    def put(self, team: int, path: str, stored: Stored) -> TeamFile:
        """Publish what arrived; what was at the path before is replaced."""
        old = self.files.get((team, path))
        file = TeamFile(next(self._ids), team, path, stored)
        self.files[team, path] = file if old is None else replace(file, id=old.id, created_at=old.created_at)
        return self.files[team, path]

    def below(self, team: int, prefix: str) -> list[TeamFile]:
        """The team's files whose path begins so, by path."""
        return [file for (owner, path), file in sorted(self.files.items()) if owner == team and path.startswith(prefix)]

    def remove(self, team: int, path: str) -> None:
        """Remove a file, or with a slash at the end a whole directory; what is not there is no error."""
        for file in self.below(team, path):
            if file.path == path or path.endswith("/"):
                del self.files[team, file.path]


# ---- the ecosystem and what runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """An app of the ecosystem."""

    id: int
    name: str
    categories: tuple[str, ...]

    def json(self) -> Json:
        slug = f"supervisely-ecosystem/{self.name.lower().replace(' ', '-')}"
        return {"id": self.id, "slug": slug, "name": self.name, "config": {"categories": list(self.categories)}}


@dataclass
class Task:
    """An app that was started. `scripted`: its next statuses, one for each look; `app`: where it serves."""

    id: int
    module: Module
    app: str
    status: str = "started"
    scripted: deque[str] = field(default_factory=deque)
    output: Json = field(default_factory=dict)
    name: str = ""
    agent: int = 3
    workspace: int = 58
    team: int = 8
    session_token: str = field(default_factory=lambda: f"session-{secrets.token_hex(12)}")

    def look(self) -> None:
        if self.scripted:
            self.status = self.scripted.popleft()

    @property
    def serves(self) -> bool:
        return self.status in ("started", "deployed")

    def json(self) -> Json:
        over = self.status in ("error", "finished", "stopped")
        return {
            "id": self.id,
            "type": "app",
            "status": self.status,
            "startedAt": "2026-01-01T00:00:00.000Z",
            "finishedAt": "2026-01-01T01:00:00.000Z" if over else None,
            "meta": {
                "sessionToken": self.session_token,
                "app": {"id": 5, "moduleId": self.module.id, "name": self.module.name},
                "name": self.name,
                "input": {},
                "output": self.output,
            },
            "settings": {},
            "agentName": "agent",
            "userLogin": "me",
            "teamId": self.team,
            "agentId": self.agent,
            "workspaceId": self.workspace,
        }


# ---- the platform -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of the API on its way through a handler."""

    request: Request
    body: Body

    @property
    def json(self) -> Json:
        if not isinstance(self.request.body, dict):
            raise refusal(400, "Bad request", "the body is not a JSON object")
        return self.request.body

    def value(self, name: str, kind: type) -> Any:
        """A field that has to be there."""
        value = self.json.get(name)
        if not isinstance(value, kind):
            raise refusal(400, "Validation error", f"{name} must be a {kind.__name__}")
        return value


class SuperviselyStandIn(StandIn):
    """The platform; start and stop it as a context manager.

    `app`: the base URL of the serving app that every task is, unless `seed_task` says another.
    `ranges`: whether downloads honour `Range`, `checksums`: whether they tell one, `etags`: whether
    a proxy tags them. `page_size`: items of a page.
    `listed_hashes`: whether `file-storage.v2.list` tells hashes, `folder_slash`: whether its folders end with a slash;
    neither is known.
    `proxy_limit`: seconds after which a proxied load of `blob-slow` is given up, in place of what the call asks for (60
    if nothing).
    `next_statuses`: what looks at the next started task show; the last one stays.
    """

    ROUTES: dict[str, str] = {  # noqa: RUF012
        "instance.version": "version",
        "users.me": "me",
        "datasets.info": "dataset",
        "teams.list": "list_teams",
        "teams.info": "team",
        "workspaces.list": "list_workspaces",
        "workspaces.info": "workspace",
        "file-storage.upload": "upload",
        "file-storage.bulk.upload": "bulk_upload",
        "file-storage.list": "list_files",
        "file-storage.v2.list": "list_entities",
        "file-storage.info": "file_info",
        "file-storage.download": "download",
        "file-storage.remove": "remove",
        "file-storage.bulk.remove": "bulk_remove",
        "agents.available": "list_agents",
        "ecosystem.list": "list_modules",
        "ecosystem.models.list": "list_catalogue",
        "tasks.run.app": "run_app",
        "tasks.info": "task",
        "tasks.list": "list_tasks",
        "tasks.output.set": "set_output",
        "tasks.stop": "stop",
        "tasks.request.direct": "request_direct",
    }
    UNLOCKED = frozenset({"upload", "bulk_upload", "download", "request_direct"})  # these move bodies
    TIMEOUT = 504  # a guess, as is the text: no client reads them
    NOT_SERVING = 503  # likewise

    def __init__(
        self,
        root: Path,
        *,
        app: str = "",
        ranges: bool = True,
        page_size: int = 500,
        checksums: bool = True,
        etags: bool = False,
        listed_hashes: bool = True,
        folder_slash: bool = False,
        proxy_limit: float | None = None,
        stall_seconds: float = 10,
    ) -> None:
        super().__init__(stall_seconds=stall_seconds)
        self.app = app
        self.ranges = ranges
        self.page_size = page_size
        self.checksums = checksums
        self.etags = etags
        self.listed_hashes = listed_hashes
        self.folder_slash = folder_slash
        self.proxy_limit = proxy_limit
        self.token = "token-" + secrets.token_hex(32)
        self.team_id, self.workspace_id = 8, 58
        self.team_files = TeamFiles(root / "team-files")
        self.agents: list[Json] = [agent(3, available=1000)]
        self.modules = [Module(77, "Serve TinyBlob", ("serve", "framework:TinyBlob"))]
        self.catalogue: list[Json] = []
        self.datasets: dict[int, int] = {}  # the project of each
        self.tasks: dict[int, Task] = {}
        self.next_statuses: list[str] = ["queued", "consumed", "started"]
        self._task_ids = itertools.count(20_001)

    # -- records, for tests

    def seed_file(self, path: str, content: bytes | Path, *, team: int = 8) -> TeamFile:
        """Put a file there as another client would."""
        if isinstance(content, bytes):
            stored = self.team_files.receive([content])
        else:
            with content.open("rb") as file:
                stored = self.team_files.receive(iter(lambda: file.read(1 << 18), b""))
        with self.lock:
            return self.team_files.put(team, path, stored)

    def content(self, path: str, *, team: int = 8) -> bytes:
        return self.team_files.files[team, path].stored.content.read_bytes()

    def paths(self, prefix: str = "/", *, team: int = 8) -> list[str]:
        """The files below a directory, by path."""
        with self.lock:
            return [file.path for file in self.team_files.below(team, prefix)]

    def seed_task(self, *, id: int = 0, app: str = "", module: Module | None = None, **fields: Any) -> Task:  # noqa: A002
        """Put a task there as if it had been started before."""
        with self.lock:
            task = Task(id or next(self._task_ids), module or self.modules[0], app or self.app, **fields)
            self.tasks[task.id] = task
            return task

    # -- requests

    def answer(self, request: Request, body: Body) -> Answer:
        if request.path.startswith("/net/"):
            return self.net(request, body)
        method = request.path.removeprefix(API)
        handler = self.ROUTES.get(method) if request.path.startswith(API) else None
        if handler is None or (request.method != "POST" and method != "ecosystem.models.list"):
            raise refusal(404, "Not found", f"{request.method} {request.path}")
        if request.headers.get("x-api-key") != self.token and handler != "version":
            raise refusal(401, "Unauthorized", "the API token is not valid")
        call = Call(request, body)
        handle: Callable[[Call], Answer] = getattr(self, handler)
        if handler in self.UNLOCKED:
            return handle(call)
        with self.lock:
            return handle(call)

    def _team(self, value: Any) -> int:
        if str(value) != str(self.team_id):
            raise refusal(403, "Access denied", f"You have no access to team {value}")
        return self.team_id

    def _page(self, items: list[Json], asked: Json) -> Answer:
        size = int(asked.get("per_page") or self.page_size)
        start = (int(asked.get("page") or 1) - 1) * size
        page = {"total": len(items), "perPage": size, "pagesCount": -(-len(items) // size)}
        return json_answer(200, {**page, "entities": items[start : start + size]})

    # -- who and where

    def version(self, call: Call) -> Answer:
        return json_answer(200, {"version": "6.15.0"})

    def me(self, call: Call) -> Answer:
        user = {"id": 7, "login": "me", "role": None, "roleId": None, "name": None, "email": None, "logins": 1}
        times = {"lastLogin": now(), "createdAt": now(), "updatedAt": now()}
        return json_answer(200, {**user, "disabled": False, **times})

    def _team_json(self) -> Json:
        return {
            "id": self.team_id,
            "name": "team",
            "description": "",
            "role": "admin",
            "createdAt": "",
            "updatedAt": "",
        }

    def _workspace_json(self) -> Json:
        names = {"id": self.workspace_id, "name": "ws", "description": "", "teamId": self.team_id}
        return {**names, "createdAt": "", "updatedAt": ""}

    def list_teams(self, call: Call) -> Answer:
        return self._page([self._team_json()], call.json)

    def team(self, call: Call) -> Answer:
        self._team(call.value("id", int))
        return json_answer(200, self._team_json())

    def list_workspaces(self, call: Call) -> Answer:
        self._team(call.value("teamId", int))
        return self._page([self._workspace_json()], call.json)

    def workspace(self, call: Call) -> Answer:
        if call.value("id", int) != self.workspace_id:
            raise refusal(404, "Workspace not found")
        return json_answer(200, self._workspace_json())

    def dataset(self, call: Call) -> Answer:
        number = call.value("id", int)
        if number not in self.datasets:
            raise refusal(404, "Dataset not found")
        names = {"id": number, "name": f"ds{number}", "description": "", "size": "0", "parentId": None}
        counts = {"projectId": self.datasets[number], "imagesCount": 0, "itemsCount": 0}
        return json_answer(200, {**names, **counts, "createdAt": now(), "updatedAt": now()})

    # -- Team Files

    def _path(self, value: Any) -> str:
        if not isinstance(value, str) or not value.startswith("/"):
            raise refusal(400, "Validation error", "path must begin with a slash")
        return value

    def _published(self, team: int, path: str, stored: Stored) -> Json:
        with self.lock:
            return self.team_files.put(team, path, stored).json(self.url)

    def upload(self, call: Call) -> Answer:
        """Bytes as they are, with the path in the query; or a form of one file."""
        if call.request.headers.get("content-type", "").startswith("multipart/"):
            return json_answer(200, self._form(call)[0])
        team, path = self._team(call.request.query.get("teamId")), self._path(call.request.query.get("path"))
        return json_answer(200, self._published(team, path, self.team_files.receive(call.body)))

    def bulk_upload(self, call: Call) -> Answer:
        return json_answer(200, self._form(call))

    def _form(self, call: Call) -> list[Json]:
        """Files in the order name, path, file; none appears unless the whole form arrived."""
        team = self._team(call.request.query.get("teamId"))
        parts = read_form(call.request.headers.get("content-type", ""), call.body, self.team_files.incoming)
        if not parts or [part.name for part in parts] != ["name", "path", "file"] * (len(parts) // 3):
            raise refusal(400, "Validation error", f"parts must be name, path, file: {[part.name for part in parts]}")
        found = []
        for name, path, file in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            directory = self._path(path.value.decode())
            found.append(self._published(team, f"{directory.rstrip('/')}/{name.value.decode()}", file.stored))
        return found

    def _folders(self, files: Iterable[TeamFile], directory: str) -> list[Json]:
        names = sorted({rest.split("/")[0] for file in files if "/" in (rest := file.path.removeprefix(directory))})
        slash = "/" if self.folder_slash else ""
        return [{"type": "folder", "name": name, "path": f"{directory}{name}{slash}"} for name in names]

    def list_files(self, call: Call) -> Answer:
        """A prefix match; not recursive: the files and folders right below a directory."""
        prefix = self._path(call.value("path", str))
        files = self.team_files.below(self._team(call.value("teamId", int)), prefix)
        if call.json.get("recursive", True):
            return json_answer(200, [file.json(self.url) for file in files])
        near = [file.json(self.url) for file in files if "/" not in file.path.removeprefix(prefix)]
        return json_answer(200, [*self._folders(files, prefix), *near])

    def list_entities(self, call: Call) -> Answer:
        directory = self._path(call.value("path", str))
        if not directory.endswith("/"):
            raise refusal(400, "Validation error", "path must end with a slash")
        files = self.team_files.below(self._team(call.value("teamId", int)), directory)
        entities: list[Json] = []
        if not call.json.get("recursive"):
            if call.json.get("folders", True):
                entities += self._folders(files, directory)
            files = [file for file in files if "/" not in file.path.removeprefix(directory)]
        if call.json.get("files", True):
            entities += [self._entity(file, full=bool(call.json.get("withMetadata"))) for file in files]
        start = int(call.json.get("continuationToken") or 0)
        end = start + min(call.json.get("limit") or self.page_size, self.page_size)
        more = {"continuationToken": str(end)} if end < len(entities) else {}
        return json_answer(200, {"entities": entities[start:end], **more})

    def _entity(self, file: TeamFile, *, full: bool) -> Json:
        entity = {"type": "file", **file.json(self.url)}
        if not full:
            return {name: entity[name] for name in ("type", "id", "name", "path")}
        if not self.listed_hashes:
            del entity["hash"]
        return entity

    def file_info(self, call: Call) -> Answer:
        wanted = call.value("id", int)
        for file in self.team_files.files.values():
            if file.id == wanted:
                return json_answer(200, file.json(self.url))
        raise refusal(404, "File not found")

    def download(self, call: Call) -> Answer:
        key = self._team(call.value("teamId", int)), self._path(call.value("path", str))
        with self.lock:
            file = self.team_files.files.get(key)
        if file is None:
            raise refusal(404, "File not found", f"File with path {key[1]} was not found")
        stored = file.stored
        told = {CHECKSUM: stored.hash} if self.checksums else {}
        tags = {"ETag": f'"{stored.hash}"'} if self.etags else {}
        headers = {"Content-Type": file.mime, **told, **tags}
        return file_answer(
            stored.content, stored.size, headers, call.request.headers.get("range", "") if self.ranges else ""
        )

    def remove(self, call: Call) -> Answer:
        self.team_files.remove(self._team(call.value("teamId", int)), self._path(call.value("path", str)))
        return json_answer(200, {"success": True})

    def bulk_remove(self, call: Call) -> Answer:
        for path in call.value("paths", list):
            self.team_files.remove(self._team(call.value("teamId", int)), self._path(path))
        return json_answer(200, {"success": True})

    # -- agents, the ecosystem, tasks

    def list_agents(self, call: Call) -> Answer:
        self._team(call.value("teamId", int))
        found = [
            one
            for one in self.agents
            if (call.json.get("anyStatus") or one["status"] == "running")
            and (not call.json.get("needGPU") or one["gpuInfo"]["device_memory"])
        ]
        return json_answer(200, found)

    def list_modules(self, call: Call) -> Answer:
        wanted = set(call.json.get("categories") or ())
        fits = (
            wanted.issubset if call.json.get("categoriesOperation") == "and" else lambda has: not wanted.isdisjoint(has)
        )
        found = [module.json() for module in self.modules if not wanted or fits(module.categories)]
        return self._page(found, call.json)

    def list_catalogue(self, call: Call) -> Answer:
        return self._page(self.catalogue, call.request.body or {})

    def _task(self, call: Call, name: str = "id") -> Task:
        task = self.tasks.get(call.value(name, int))
        if task is None:
            raise refusal(404, "Task not found", "Task with id was not found")
        task.look()
        return task

    def run_app(self, call: Call) -> Answer:
        wanted, agents = call.value("moduleId", int), {one["id"] for one in self.agents}
        module = next((module for module in self.modules if module.id == wanted), None)
        if module is None or call.value("agentId", int) not in agents:
            raise refusal(404, "Module or agent not found")
        if call.value("workspaceId", int) != self.workspace_id:
            raise refusal(404, "Workspace not found")
        first, *rest = self.next_statuses
        names = {"name": call.json.get("taskName", ""), "agent": call.json["agentId"]}
        task = self.seed_task(module=module, status=first, scripted=deque(rest), **names)
        return json_answer(200, [{"taskId": task.id, "status": task.status}])

    def task(self, call: Call) -> Answer:
        return json_answer(200, self._task(call).json())

    def list_tasks(self, call: Call) -> Answer:
        if call.value("workspaceId", int) != self.workspace_id:
            raise refusal(404, "Workspace not found")
        found = [task.json() for task in self.tasks.values()]
        for rule in call.json.get("filter") or ():
            if rule["operator"] not in ("in", "="):
                raise refusal(400, "Validation error", f"unknown operator {rule['operator']}")
            values = rule["value"] if rule["operator"] == "in" else [rule["value"]]
            found = [task for task in found if task[rule["field"]] in values]
        return self._page(found, call.json)

    def set_output(self, call: Call) -> Answer:
        task = self._task(call, "taskId")
        task.output = {**task.output, **call.value("output", dict)}
        return json_answer(200, {"success": True})

    def stop(self, call: Call) -> Answer:
        task = self._task(call)
        if task.status not in ("error", "finished", "stopped"):
            task.status, task.scripted = "terminating", deque(["stopped"])
        return json_answer(200, {"id": task.id, "status": task.status})

    # -- the proxies

    def request_direct(self, call: Call) -> Answer:
        """One call of an app; it gets what was sent and who sent it."""
        with self.lock:
            task = self._task(call, "taskId")
        state = call.value("state", dict)
        sent = {
            "context": call.json.get("context", {}),
            "state": state,
            "api_token": self.token,
            "server_address": self.url,
        }
        is_slow = state.get("model_name") == "blob-slow"
        limit = (is_slow and self.proxy_limit) or call.json.get("timeout") or 60
        headers = {"Content-Type": "application/json"}
        path = f"/{call.value('command', str)}"
        return self._forward(task, "POST", path, json.dumps(sent).encode(), headers, limit)

    def net(self, request: Request, body: Body) -> Answer:
        """Anything below `/net/<session token>/`, as it is; the session token is the only credential."""
        token, _, path = request.path.removeprefix("/net/").partition("/")
        with self.lock:
            task = next((task for task in self.tasks.values() if task.session_token == token), None)
        if task is None:
            raise refusal(404, "Session not found")
        kept = ("content-type", "content-length", "x-api-key")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        query = "?" + urlencode(request.query) if request.query else ""
        sent = None if request.method == "GET" else body
        return self._forward(task, request.method, f"/{path}{query}", sent, headers, 60)

    def _forward(
        self,
        task: Task,
        method: str,
        path: str,
        body: Iterable[bytes] | bytes | None,
        headers: dict[str, str],
        limit: float,
    ) -> Answer:
        if not task.serves or not task.app:
            raise refusal(self.NOT_SERVING, "Application is not running", f"Task {task.id} is {task.status}")
        connection = http.client.HTTPConnection(urlsplit(task.app).netloc, timeout=limit)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except TimeoutError:
                raise refusal(self.TIMEOUT, "Timeout", f"The application did not answer in {limit} s") from None
            except (OSError, http.client.HTTPException):
                raise refusal(self.NOT_SERVING, "Application does not answer") from None
        kind = answer.headers.get("Content-Type")
        return Answer(answer.status, content, {"Content-Type": kind} if kind else {})


def wrong_hash(path: str = "") -> Rewrite:
    """Lie about the SHA-256 of the files in an answer, or of the one at this path."""

    def lie(value: Any) -> Any:
        if isinstance(value, list):
            return [lie(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {name: lie(item) for name, item in value.items()}
        return {**found, "hash": WRONG} if "hash" in found and path in ("", found["path"]) else found

    return Rewrite(lie)


def agent(number: int, *, available: int = 0, status: str = "running") -> Json:
    """An agent as the platform lists it; `available`: free GPU memory in bytes, 0 for a machine without a GPU."""
    memory = [{"available": available}] if available else []
    names = {"id": number, "name": f"agent {number}", "token": "t", "status": status, "userId": 7}
    return {**names, "capabilities": {}, "type": "sly_agent", "gpuInfo": {"device_memory": memory}}

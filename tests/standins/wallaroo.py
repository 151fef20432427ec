"""A stand-in for a Wallaroo instance: Keycloak's tokens, the MLOps API, what the SDK asks of GraphQL, and inference.

    with WallarooStandIn(tmp_path) as server:
        server.script_conversion("digits", ["pending_load_container", "error"], error_summary="no such package")
        server.fault("POST", "/models/upload_and_convert$", LoseAnswer())
        ...  # talk to server.url as server.username with server.password
        assert server.count("POST", "/models/upload_and_convert$") == 1

Two origins on 127.0.0.1: `server.url` has everything, `server.auth_url` the token endpoint alone. Uploaded bytes stream
to files below the given directory. Numbers of models and of model versions come from two sequences that run close
together, and a stranger's workspace holds models whose numbers are later given to versions of the user's.
Nothing here imports the package under test.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import secrets
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

from tests.standins.http_server import (
    Answer,
    BadBody,
    Handler,
    Json,
    Refusal,
    Request,
    StandIn,
    json_answer,
    text_answer,
)

Predict = Callable[["ModelVersion", list[Json]], list[Json]]

METADATA_LIMIT = 1024 * 1024
NATIVE = frozenset({"onnx", "tensorflow"})
FRAMEWORKS = (
    NATIVE
    | {"python", "keras", "sklearn", "pytorch", "xgboost", "custom", "vllm", "sglang", "mlflow"}
    | {
        f"hugging-face-{task}"
        for task in (
            "automatic-speech-recognition",
            "feature-extraction",
            "image-classification",
            "image-segmentation",
            "image-to-text",
            "object-detection",
            "question-answering",
            "sentiment-analysis",
            "stable-diffusion-text-2-img",
            "summarization",
            "text-classification",
            "text-generation",
            "translation",
            "zero-shot-classification",
            "zero-shot-image-classification",
            "zero-shot-object-detection",
        )
    }
)
ARCHITECTURES = frozenset({"x86", "arm", "power10"})
ACCELERATORS = {
    "none": ARCHITECTURES,
    "cuda": ARCHITECTURES,
    "jetson": {"arm"},
    "openvino": {"x86"},
    "qaic": {"x86"},
    "rocm": {"x86"},
}
# The third model of the stranger is 1217, its version 1214: what the user uploads first is version 1215 of model 1218.
NUMBERS = {
    "workspace": 8,
    "model": 1215,
    "version": 1212,
    "config": 1782,
    "pipeline": 1,
    "pipeline version": 51,
    "deployment": 1,
}
ARROW = "application/vnd.apache.arrow.file"
PANDAS = "application/json; format=pandas-records"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MESSAGE = b"\xff\xff\xff\xff"  # how a serialised Arrow schema begins


# ---- answers ----------------------------------------------------------------------------------------------------


def refused(status: int, message: str) -> Refusal:
    """As the API server says it."""
    return Refusal(json_answer(status, {"msg": message, "code": status}))


def engine_refused(status: int, message: str) -> Refusal:
    """As the engine says it."""
    return Refusal(json_answer(status, {"code": status, "status": "Error", "error": message, "source": "engine"}))


def malformed(message: str) -> Refusal:
    """As the framework of the server says it, before the API sees the request."""
    return Refusal(Answer(400, message.encode(), {"Content-Type": "text/plain; charset=utf-8"}))


def oauth_refused(status: int, error: str, description: str) -> Refusal:
    return Refusal(json_answer(status, {"error": error, "error_description": description}))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


# ---- records ----------------------------------------------------------------------------------------------------


@dataclass
class User:
    email: str
    password: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    failures: int = 0  # wrong passwords in a row


@dataclass
class Token:
    """An access or a refresh token. `expires`: seconds of the monotonic clock, None: never."""

    user: User | None
    client: str
    expires: float | None
    offline: bool = False

    @property
    def alive(self) -> bool:
        return self.expires is None or time.monotonic() < self.expires


@dataclass
class Workspace:
    id: int
    name: str
    created_by: str
    users: list[str]
    created_at: str = field(default_factory=now)


@dataclass
class Model:
    """What versions of one name in one workspace belong to."""

    id: int
    name: str
    workspace_id: int
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    versions: list[ModelVersion] = field(default_factory=list)


@dataclass
class ModelVersion:
    id: int
    model: Model
    conversion: Json
    visibility: str
    created_by: str
    owner_id: str
    sha: str = ""
    size: int = 0
    file_name: str | None = None
    path: Path | None = None
    image_path: str | None = None
    task_id: str | None = None
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: str = field(default_factory=now)
    scripted: deque[str] = field(default_factory=lambda: deque(["ready"]))
    error_summary: str | None = None
    logs: list[str] = field(default_factory=list)
    configs: list[Json] = field(default_factory=list)

    @property
    def status(self) -> str:
        return self.scripted[0]

    def seen_status(self) -> str:
        """The scripted statuses one after the other, the last one for ever."""
        return self.scripted.popleft() if len(self.scripted) > 1 else self.scripted[0]

    @property
    def step(self) -> Json:
        """The version as pipelines name it."""
        return {"name": self.model.name, "version": self.uuid, "sha": self.sha}


@dataclass
class PipelineVersion:
    id: int
    definition: Json
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: str = field(default_factory=now)

    @property
    def steps(self) -> list[Json]:
        """The models of all steps."""
        found = [step.get("ModelInference", {}).get("models", []) for step in self.definition.get("steps", [])]
        return [model for models in found for model in models]


@dataclass
class Pipeline:
    id: int
    name: str
    workspace_id: int
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    versions: list[PipelineVersion] = field(default_factory=list)
    deployment: Deployment | None = None


@dataclass
class Deployment:
    """What a pipeline serves. `serving`: what it served before the last deploy; `scripted`: what reads show next."""

    id: int
    deploy_id: str
    version: PipelineVersion
    serving: PipelineVersion | None = None
    engine_config: Json = field(default_factory=dict)
    deployed: bool = True
    scripted: deque[str] = field(default_factory=deque)
    pod: Json = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.deploy_id}-{self.id}"


# ---- multipart bodies, streamed ---------------------------------------------------------------------------------


class Multipart:
    """The parts of a multipart/form-data body, one after the other, each read block by block."""

    def __init__(self, content_type: str, blocks: Iterator[bytes]) -> None:
        header = Message()
        header["Content-Type"] = content_type
        boundary = header.get_param("boundary")
        if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
            raise malformed("Multipart boundary is not found")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._blocks = blocks
        self._buffer = b"\r\n"  # so that the first delimiter is like the others
        if b"".join(self._until(self._delimiter)):
            raise malformed("Multipart stream does not begin with a boundary")

    def __iter__(self) -> Iterator[tuple[Message, Iterator[bytes]]]:
        while (ending := self._take(2)) == b"\r\n":
            head = b"".join(self._until(b"\r\n\r\n")) + b"\r\n\r\n"
            content = self._until(self._delimiter)
            yield BytesHeaderParser().parsebytes(head), content
            for _ in content:
                pass
        if ending != b"--" or self._buffer.strip() or b"".join(self._blocks).strip():
            raise malformed("Multipart stream is incomplete")

    def _more(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise malformed("Multipart stream is incomplete")
        self._buffer += block

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _until(self, mark: bytes) -> Iterator[bytes]:
        while (found := self._buffer.find(mark)) < 0:
            if sure := self._buffer[: 1 - len(mark)]:
                self._buffer = self._buffer[len(sure) :]
                yield sure
            self._more()
        content, self._buffer = self._buffer[:found], self._buffer[found + len(mark) :]
        yield content


def _limited(blocks: Iterator[bytes], limit: int) -> bytes:
    content = b""
    for block in blocks:
        content += block
        if len(content) > limit:
            raise malformed("Field is too large")
    return content


# ---- the API ----------------------------------------------------------------------------------------------------

_JSON_TYPES = {int: "an i64", str: "a string", list: "a sequence", dict: "a map", bool: "a boolean"}


@dataclass(frozen=True)
class Call:
    """One API call on its way through a handler, and the token that it came with."""

    request: Request
    names: dict[str, str]
    token: Token
    body: Iterator[bytes]

    def get(self, key: str, kind: type) -> Any:
        """A field of the body; refused unless it is there and of this type."""
        return required(self.request.body, key, kind)

    def optional(self, key: str, kind: type) -> Any:
        return None if self.request.body.get(key) is None else self.get(key, kind)

    @property
    def user(self) -> User:
        assert self.token.user is not None
        return self.token.user


def required(body: Json, key: str, kind: type) -> Any:
    if key not in body:
        raise malformed(f"Json deserialize error: missing field `{key}`")
    value = body[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise malformed(f"Json deserialize error: invalid type: {json.dumps(value)}, expected {_JSON_TYPES[kind]}")
    return value


_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "config", "get_config"),
    *(
        ("POST", path, handler)
        for path, handler in (
            ("workspaces/list", "list_workspaces"),
            ("workspaces/create", "create_workspace"),
            ("models/upload", "upload"),
            ("models/upload_and_convert", "upload_and_convert"),
            ("models/upload_stream", "upload_stream"),
            ("models/list", "list_models"),
            ("models/list_versions", "list_versions"),
            ("models/list_versions_for_model", "list_versions_for_model"),
            ("models/get", "get_model"),
            ("models/get_by_id", "get_model_by_id"),
            ("models/get_version_by_id", "get_version"),
            ("models/get_model_version_by_id", "get_version"),
            ("models/get_config_by_id", "get_model_config"),
            ("models/insert_model_config", "insert_model_config"),
            ("models/get_upload_logs", "get_upload_logs"),
            ("models/delete_model_versions", "delete_model_versions"),
            ("models/delete_model", "delete_model"),
            ("pipelines/create", "create_pipeline"),
            ("pipelines/deploy", "deploy"),
            ("pipelines/undeploy", "undeploy"),
            ("pipelines/get_pipeline_by_name", "get_pipeline_by_name"),
            ("pipelines/list_pipelines", "list_pipelines"),
            ("pipelines/get_version", "get_pipeline_version"),
            ("pipelines/list_pipeline_versions", "list_pipeline_versions"),
            ("pipelines/delete_pipeline", "delete_pipeline"),
            ("pipelines/infer/(?P<deployment>[^/]+)/(?P<pipeline>[^/]+)", "infer"),
            ("status/get_deployment", "get_deployment"),
            ("admin/get_pipeline_external_url", "get_external_url"),
        )
    ),
)


class WallarooStandIn(StandIn):
    """The instance; start and stop it as a context manager. Its attributes are switches and may be set at any time."""

    UPLOADS = ("upload", "upload_and_convert", "upload_stream")

    def __init__(
        self,
        root: Path,
        *,
        token_seconds: float = 3600,
        refresh_seconds: float = 1800,
        rotate_refresh_tokens: bool = False,
        lock_after: int = 5,
        duplicate_workspace_status: int = 400,
        scoped_listing: bool = True,
        flat_listing: bool = False,
        undeploy_answer: str = "{}",
        numbers: dict[str, int] | None = None,
        discard_bodies: bool = False,
        stall_seconds: float = 10,
    ) -> None:
        """Start with one user, one confidential client (`api-client`) and one public (`sdk-client`).

        `lock_after`: wrong passwords in a row that lock an account; `scoped_listing` False: no list_versions_for_model;
        `flat_listing`: models/list as before 2025; `undeploy_answer`: what undeploy says, ``{}``, ``null`` or nothing;
        `numbers`: where sequences of numbers begin; `discard_bodies`: digest uploads, keep none; `stall_seconds`:
        patience with a body.
        """
        super().__init__(handler=_Handler, stall_seconds=stall_seconds)
        self.token_seconds = token_seconds
        self.refresh_seconds = refresh_seconds
        self.rotate_refresh_tokens = rotate_refresh_tokens
        self.lock_after = lock_after
        self.duplicate_workspace_status = duplicate_workspace_status
        self.scoped_listing = scoped_listing
        self.flat_listing = flat_listing
        self.undeploy_answer = undeploy_answer
        self.discard_bodies = discard_bodies

        self.realm = "master"
        self.clients: dict[str, str | None] = {"api-client": secrets.token_hex(16), "sdk-client": None}
        self.client_id = "api-client"
        self.username = "jane@example.com"
        self.users: dict[str, User] = {}
        self.password = self.add_user(self.username).password
        self.access_tokens: dict[str, Token] = {}
        self.refresh_tokens: dict[str, Token] = {}

        self.workspaces: dict[int, Workspace] = {}
        self.models: dict[int, Model] = {}
        self.versions: dict[int, ModelVersion] = {}
        self.pipelines: dict[int, Pipeline] = {}
        self.default_arch = "x86"
        self.conversion = ["pending_load_container", "attempting_load_container", "ready"]
        self.conversions: dict[str, tuple[list[str], str | None, list[str]]] = {}
        self.deployment = ["Starting", "Running"]
        self.deployment_scripts: dict[str, tuple[list[str], Json]] = {}
        self.undeployment = ["Running"]
        self.predict: Predict = total

        self.auth_url = ""
        self._root = root / "uploads"
        self._routes = [(method, re.compile(f"/v1/api/{path}"), name) for method, path, name in _ROUTES]
        self._numbers = {kind: itertools.count(first) for kind, first in {**NUMBERS, **(numbers or {})}.items()}
        self._seed_stranger()

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        self.auth_url = self.listen("api", self.answer_auth)
        return super().__enter__()

    def bad_body(self, error: BadBody) -> Answer:
        return malformed(error.message).answer

    @property
    def token_path(self) -> str:
        return f"/auth/realms/{self.realm}/protocol/openid-connect/token"

    @property
    def client_secret(self) -> str:
        return self.clients["api-client"] or ""

    # -- scripts

    def script_conversion(
        self, name: str, statuses: Iterable[str], *, error_summary: str | None = None, logs: Iterable[str] = ()
    ) -> None:
        """What successive reads of versions of this name, uploaded from now on, say of them; the last one stays.

        `error_summary` is told with the status ``error``; `logs` are the lines of the upload, newest first.
        """
        with self.lock:
            self.conversions[name] = list(statuses), error_summary, list(logs)

    def script_deployment(self, pipeline: str, statuses: Iterable[str], **pod: Any) -> None:
        """What successive reads of this pipeline's deployment show from its next deploy on; the last one stays.

        A status of the system, or ``missing`` (404), or ``stale`` (running, but with the version before). `pod`:
        fields of the engine's pod while it is not running (`reason`, `details`, `required_cpu`, `required_memory`).
        """
        with self.lock:
            self.deployment_scripts[pipeline] = list(statuses), pod

    def revoke_access_tokens(self) -> None:
        """No access token given so far is good any more."""
        with self.lock:
            self.access_tokens.clear()

    def revoke_refresh_tokens(self) -> None:
        with self.lock:
            self.refresh_tokens.clear()

    # -- records, for tests

    def add_user(self, email: str) -> User:
        self.users[email] = User(email, secrets.token_urlsafe(12))
        return self.users[email]

    def issue(self, *, username: str | None = None, client: str = "sdk-client", offline: bool = False) -> Json:
        """A token answer as after a login; for connections that bring a token along."""
        with self.lock:
            return self._issue(self.users[username or self.username], client, offline=offline)

    def add_workspace(self, name: str, *, user: str | None = None) -> Workspace:
        """A workspace of a user; the default user's where none is named."""
        with self.lock:
            owner = self.users[user or self.username]
            workspace = Workspace(next(self._numbers["workspace"]), name, owner.email, [owner.id])
            self.workspaces[workspace.id] = workspace
            return workspace

    def seed(
        self,
        workspace: int,
        name: str,
        content: bytes = b"model",
        *,
        file_name: str = "model.onnx",
        framework: str = "onnx",
        statuses: Iterable[str] = ("ready",),
        **conversion: Any,
    ) -> ModelVersion:
        """Put a version there as another client would."""
        with self.lock:
            path = self._root / uuid.uuid4().hex
            self._root.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            metadata = {
                "name": name,
                "visibility": "private",
                "workspace_id": workspace,
                "conversion": {"framework": framework, "python_version": "3.8", "requirements": [], **conversion},
            }
            creator = next(user for user in self.users.values() if user.id in self.workspaces[workspace].users)
            digest = hashlib.sha256(content).hexdigest()
            stored = Stored(file_name, path, digest, len(content))
            return self._add_version(creator, metadata, stored, list(statuses))

    def model(self, workspace: int, name: str) -> Model:
        """A model by name."""
        return next(one for one in self.models.values() if (one.workspace_id, one.name) == (workspace, name))

    def versions_of(self, name: str) -> list[ModelVersion]:
        """The versions of this name that the default user's workspaces hold, oldest first."""
        owner = self.users[self.username].id
        return [
            version
            for version in self.versions.values()
            if version.model.name == name and owner in self.workspaces[version.model.workspace_id].users
        ]

    def _seed_stranger(self) -> None:
        """Models of a workspace that the user does not see, with numbers that the user's versions are to get."""
        stranger = self.add_user("stranger@example.com")
        workspace = self.add_workspace("stranger-ws", user=stranger.email)
        for name in ("ccfraud", "resnet50", "api-sample-model"):
            self.seed(workspace.id, name, name.encode())

    # -- requests

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        if request.path.startswith("/auth/"):
            return self.answer_auth(request, body)
        handler, names = self._route(request)
        if handler == "get_config":
            return json_answer(200, {"default_arch": self.default_arch})
        call = Call(request, names, self._authorize(request, handler), body)
        handle: Callable[[Call], Answer] = getattr(self, handler)
        if handler in self.UPLOADS:
            return handle(call)
        if handler != "infer" and not isinstance(request.body, dict):
            raise malformed("Json deserialize error: invalid type, expected a map")
        with self.lock:
            return handle(call)

    def _route(self, request: Request) -> tuple[str, dict[str, str]]:
        if (request.method, request.path) == ("POST", "/v1/graphql"):
            return "graphql", {}
        for method, path, handler in self._routes:
            if (found := path.fullmatch(request.path)) and method == request.method:
                if handler == "list_versions_for_model" and not self.scoped_listing:
                    break
                return handler, found.groupdict()
        raise Refusal(text_answer(404, ""))

    def _authorize(self, request: Request, handler: str) -> Token:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        token = self.access_tokens.get(value)
        if scheme != "Bearer" or token is None or not token.alive:
            raise Refusal(text_answer(401, "Unauthorized", {"WWW-Authenticate": "Bearer"}))
        if token.user is None and handler != "infer":
            raise refused(401, "the token belongs to no user")
        return token

    # -- Keycloak

    def answer_auth(self, request: Request, body: Iterator[bytes]) -> Answer:
        if request.path != self.token_path:
            raise Refusal(json_answer(404, {"error": "Realm does not exist"}))
        if request.method != "POST":
            raise oauth_refused(405, "invalid_request", "HTTP method not allowed")
        if not isinstance(request.body, dict) or not request.headers.get("content-type", "").startswith(
            "application/x-www-form-urlencoded"
        ):
            raise oauth_refused(400, "invalid_request", "Missing form parameter: grant_type")
        with self.lock:
            form: dict[str, str] = request.body
            client = self._client(request, form)
            grants = {
                "password": self._password_grant,
                "refresh_token": self._refresh_grant,
                "client_credentials": self._client_grant,
            }
            grant = grants.get(form.get("grant_type", ""))
            if grant is None:
                raise oauth_refused(400, "unsupported_grant_type", "Unsupported grant_type")
            answer = json_answer(200, grant(client, form))
            return Answer(200, answer.body, {**answer.headers, "Cache-Control": "no-store"})

    def _client(self, request: Request, form: dict[str, str]) -> str:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            client, _, secret = base64.b64decode(value).decode().partition(":")
        else:
            client, secret = form.get("client_id", ""), ""
        if client not in self.clients:
            raise oauth_refused(401, "invalid_client", "Invalid client or Invalid client credentials")
        if (self.clients[client] or "") != secret:
            raise oauth_refused(401, "unauthorized_client", "Invalid client or Invalid client credentials")
        return client

    def _password_grant(self, client: str, form: dict[str, str]) -> Json:
        user = self.users.get(form.get("username", ""))
        if user is None or user.failures >= self.lock_after or user.password != form.get("password"):
            if user is not None:
                user.failures += 1
            raise oauth_refused(401, "invalid_grant", "Invalid user credentials")
        user.failures = 0
        return self._issue(user, client, offline="offline_access" in form.get("scope", "").split())

    def _refresh_grant(self, client: str, form: dict[str, str]) -> Json:
        value = form.get("refresh_token", "")
        token = self.refresh_tokens.get(value)
        if token is None or not token.alive or token.client != client:
            raise oauth_refused(400, "invalid_grant", "Token is not active")
        if self.rotate_refresh_tokens:
            del self.refresh_tokens[value]
        assert token.user is not None
        return self._issue(token.user, client, offline=token.offline)

    def _client_grant(self, client: str, form: dict[str, str]) -> Json:
        if self.clients[client] is None:
            raise oauth_refused(401, "unauthorized_client", "Public client not allowed to retrieve service account")
        return self._issue(None, client)

    def _issue(self, user: User | None, client: str, *, offline: bool = False) -> Json:
        access = _jwt(user, client, self.token_seconds, f"{self.auth_url or self.url}/auth/realms/{self.realm}")
        self.access_tokens[access] = Token(user, client, time.monotonic() + self.token_seconds)
        answer: Json = {
            "access_token": access,
            "expires_in": int(self.token_seconds),
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "email openid profile",
            "refresh_expires_in": 0,
        }
        if user is None:
            return answer
        refresh = _segment({"alg": "HS512", "typ": "JWT"}) + "." + secrets.token_urlsafe(48)
        expires = None if offline else time.monotonic() + self.refresh_seconds
        self.refresh_tokens[refresh] = Token(user, client, expires, offline)
        return {
            **answer,
            "refresh_token": refresh,
            "refresh_expires_in": 0 if offline else int(self.refresh_seconds),
            "session_state": str(uuid.uuid4()),
        }

    # -- workspaces

    def list_workspaces(self, call: Call) -> Answer:
        found = [one for one in self.workspaces.values() if call.user.id in one.users]
        return json_answer(200, {"workspaces": [self._workspace_json(one, listed=True) for one in found]})

    def create_workspace(self, call: Call) -> Answer:
        name = call.get("workspace_name", str)
        if not _NAME.fullmatch(name):
            raise refused(400, f"invalid workspace name: {name}")
        if any(one.name == name for one in self.workspaces.values()):
            raise refused(self.duplicate_workspace_status, f"workspace {name} already exists")
        return json_answer(200, {"workspace_id": self.add_workspace(name, user=call.user.email).id})

    def _workspace_json(self, workspace: Workspace, *, listed: bool = False) -> Json:
        common = {
            "id": workspace.id,
            "name": workspace.name,
            "created_at": workspace.created_at,
            "created_by": workspace.created_by,
            "archived": False,
        }
        if not listed:
            return {**common, "group_id": None}
        models = [one.id for one in self.models.values() if one.workspace_id == workspace.id]
        pipelines = [one.id for one in self.pipelines.values() if one.workspace_id == workspace.id]
        return {**common, "models": models, "pipelines": pipelines}

    def _workspace(self, call: Call, number: int | None, name: str | None = None) -> Workspace:
        wanted = name if number is None else number
        for workspace in self.workspaces.values():
            if call.user.id in workspace.users and wanted in (workspace.id, workspace.name):
                return workspace
        raise refused(400, f"workspace {wanted} not found")

    # -- uploads

    def upload(self, call: Call) -> Answer:
        metadata, stored = self._read_upload(call)
        with self.lock:
            if stored is not None and metadata["conversion"]["framework"] not in NATIVE:
                raise engine_refused(400, "this framework needs conversion")
            version = self._add_version(call.user, metadata, stored, ["ready"])
        return self._uploaded(200, version)

    def upload_and_convert(self, call: Call) -> Answer:
        metadata, stored = self._read_upload(call)
        with self.lock:
            version = self._add_version(call.user, metadata, stored, self.conversion, converts=True)
        return self._uploaded(202, version)

    def upload_stream(self, call: Call) -> Answer:
        self._check_length(call.request)
        query = call.request.query
        number = query.get("workspace_id", "")
        if not number.isdigit() or not query.get("filename"):
            raise malformed("Query deserialize error")
        conversion: Json = {"framework": "onnx", "requirements": []}
        metadata = {**query, "workspace_id": int(number), "conversion": conversion}
        self._check_metadata(call, metadata)
        stored = self._store(query["filename"], call.body)
        with self.lock:
            version = self._add_version(call.user, metadata, stored, ["ready"])
        return self._uploaded(200, version)

    def _uploaded(self, status: int, version: ModelVersion) -> Answer:
        return json_answer(status, {"insert_models": {"returning": [{"models": [{"id": version.id}]}]}})

    def _check_length(self, request: Request) -> None:
        if "content-length" not in request.headers:
            raise Refusal(text_answer(411, "the length of the body is unknown"))

    def _read_upload(self, call: Call) -> tuple[Json, Stored | None]:
        """The metadata and the file, in this order and nothing else; the log of requests gets what came."""
        self._check_length(call.request)
        call.request.body = log = []
        metadata: Json = {}
        stored: Stored | None = None
        with ExitStack() as undo:
            for head, content in Multipart(call.request.headers.get("content-type", ""), call.body):
                part = {key: head.get_param(key, header="Content-Disposition") for key in ("name", "filename")}
                log.append(part | {"content_type": head["Content-Type"]})
                if not metadata:
                    metadata = log[0]["json"] = self._read_metadata(call, log[0], content)
                elif part["name"] == "file" and stored is None and not metadata.get("image_path"):
                    stored = self._read_file(log[1], content)
                    undo.callback(stored.path.unlink)
                    log[1] |= {"size": stored.size, "sha256": stored.sha}
                else:
                    raise malformed(f"unexpected part {part['name']}")
            if not metadata or (stored is None and not metadata.get("image_path")):
                raise malformed("a part is missing")
            undo.pop_all()
        return metadata, stored

    def _read_metadata(self, call: Call, part: Json, content: Iterator[bytes]) -> Json:
        if part != {"name": "metadata", "filename": None, "content_type": "application/json"}:
            raise malformed("the first part must be `metadata`, of type application/json, without a file name")
        metadata = self._parsed(_limited(content, METADATA_LIMIT))
        self._check_metadata(call, metadata)
        return metadata

    def _read_file(self, part: Json, content: Iterator[bytes]) -> Stored:
        name = part["filename"]
        if part["content_type"] != "application/octet-stream" or not isinstance(name, str) or "/" in name:
            raise malformed("the part `file` must be application/octet-stream, with a base name")
        return self._store(name, content)

    def _parsed(self, raw: bytes) -> Json:
        try:
            found = json.loads(raw)
        except ValueError as error:
            raise malformed(f"Json deserialize error: {error}") from None
        if not isinstance(found, dict):
            raise malformed("Json deserialize error: invalid type, expected struct")
        return found

    def _store(self, file_name: str, content: Iterable[bytes]) -> Stored:
        path = self._root / uuid.uuid4().hex
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as file:
                for block in content:
                    digest.update(block)
                    size += len(block)
                    if not self.discard_bodies:
                        file.write(block)
        except BaseException:
            path.unlink()
            raise
        return Stored(file_name, path, digest.hexdigest(), size)

    def _check_metadata(self, call: Call, metadata: Json) -> None:
        name = required(metadata, "name", str)
        if not _NAME.fullmatch(name):
            raise refused(400, f"invalid model name: {name}")
        if required(metadata, "visibility", str) not in ("private", "public"):
            raise malformed("Json deserialize error: unknown variant, expected `private` or `public`")
        self._workspace(call, required(metadata, "workspace_id", int))
        conversion = required(metadata, "conversion", dict)
        framework = required(conversion, "framework", str)
        if framework not in FRAMEWORKS:
            raise engine_refused(400, f"unknown framework {framework}")
        if not all(isinstance(one, str) for one in required(conversion, "requirements", list)):
            raise malformed("Json deserialize error: requirements must be strings")
        if conversion.get("python_version", "3.8") not in ("3.8", "3.9"):
            raise engine_refused(400, "unsupported python version")
        self._check_hardware(conversion)
        config = conversion.get("framework_config")
        if config is not None and (framework, set(config)) != (config.get("framework"), {"framework", "config"}):
            raise engine_refused(400, "framework_config does not match the framework")
        if (framework == "mlflow") != bool(metadata.get("image_path")):
            raise engine_refused(400, "mlflow models are registered by image_path, and only they")
        schemas = [metadata.get(key) for key in ("input_schema", "output_schema")]
        if framework not in NATIVE | {"mlflow"} and None in schemas:
            raise engine_refused(400, f"input_schema and output_schema are required for {framework}")
        for schema in schemas:
            if schema is not None and not _is_arrow_schema(schema):
                raise engine_refused(400, "a schema is not a serialized Arrow schema in base64")

    def _check_hardware(self, conversion: Json) -> None:
        arch = conversion.get("arch") or self.default_arch
        accel = conversion.get("accel") or "none"
        kind = next(iter(accel)) if isinstance(accel, dict) and len(accel) == 1 else accel
        if not isinstance(kind, str) or (kind == "qaic") != isinstance(accel, dict):
            raise malformed("Json deserialize error: unknown accelerator")
        if arch not in ACCELERATORS.get(kind, ()):
            raise engine_refused(400, f"accelerator {kind} is not supported on {arch}")

    def _add_version(
        self, creator: User, metadata: Json, stored: Stored | None, statuses: list[str], *, converts: bool = False
    ) -> ModelVersion:
        workspace, name = metadata["workspace_id"], metadata["name"]
        found = (one for one in self.models.values() if (one.workspace_id, one.name) == (workspace, name))
        model = next(found, None)
        if model is None:
            model = Model(next(self._numbers["model"]), name, workspace)
            self.models[model.id] = model
        conversion = {"framework_config": None, **metadata["conversion"]}
        framework = conversion["framework"]
        if framework == "custom" and stored is not None:  # where the server unpacks it
            config = {
                **(conversion["framework_config"] or {}).get("config", {}),
                "model_path": f"{stored.file_name}/model",
            }
            conversion["framework_config"] = {"framework": framework, "config": config}
        version = ModelVersion(
            next(self._numbers["version"]),
            model,
            conversion,
            metadata.get("visibility", "private"),
            creator.email,
            creator.id,
            image_path=metadata.get("image_path"),
            task_id=str(uuid.uuid4()) if converts else None,
            scripted=deque(statuses),
        )
        if stored is not None:
            version.sha, version.size = stored.sha, stored.size
            version.file_name, version.path = stored.file_name, stored.path
        if name in self.conversions:
            scripted, version.error_summary, version.logs = self.conversions[name]
            version.scripted = deque(scripted)
        schemas = {key: metadata.get(key) for key in ("input_schema", "output_schema")}
        runtime = framework if framework in NATIVE | {"mlflow"} else "flight"
        self._add_config(version, {"runtime": runtime, **schemas})
        self.versions[version.id] = version
        model.versions.append(version)
        model.updated_at = version.created_at
        return version

    def _add_config(self, version: ModelVersion, values: Json) -> Json:
        config = {
            "id": next(self._numbers["config"]),
            "model_version_id": version.id,
            "runtime": "onnx",
            "filter_threshold": None,
            "tensor_fields": None,
            "input_schema": None,
            "output_schema": None,
            "batch_config": None,
            "dynamic_batching_config": None,
            "continuous_batching_config": None,
            "queue_depth": None,
            "sidekick_uri": None,
            "openai": None,
            **values,
        }
        version.configs.append(config)
        return config

    # -- models

    def _version_json(self, version: ModelVersion) -> Json:
        status = version.seen_status()
        details = {
            "name": version.model.name,
            "visibility": version.visibility,
            "workspace_id": version.model.workspace_id,
            "conversion": version.conversion,
            "id": version.id,
            "image_path": version.image_path,
            "status": status,
            "task_id": version.task_id,
            "file_info": {
                "version": version.uuid,
                "sha": version.sha,
                "file_name": version.file_name,
                "size": version.size,
            },
            "created_on_version": "2025.2.1",
            "created_by": version.created_by,
            "created_at": version.created_at,
            "deployed": self._is_deployed(version),
            "error_summary": version.error_summary if status == "error" else None,
        }
        return {"model_version": details, "config": version.configs[-1]}

    def _model_json(self, model: Model) -> Json:
        return {
            "id": model.id,
            "name": model.name,
            "owner_id": '""',
            "created_at": model.created_at,
            "updated_at": model.updated_at,
        }

    def _listed_json(self, model: Model) -> Json:
        return {
            "model": {**self._model_json(model), "workspace_id": model.workspace_id},
            "model_versions": [self._version_json(version) for version in reversed(model.versions)],
            "workspace": self._workspace_json(self.workspaces[model.workspace_id]),
        }

    def _row_json(self, version: ModelVersion) -> Json:
        return {
            "sha": version.sha,
            "models_pk_id": version.model.id,
            "model_version": version.uuid,
            "owner_id": version.owner_id,
            "model_id": version.model.name,
            "id": version.id,
            "file_name": version.file_name,
            "image_path": version.image_path,
        }

    def _version(self, number: int) -> ModelVersion:
        if number not in self.versions:
            raise refused(404, f"model version {number} not found")
        return self.versions[number]

    def _is_deployed(self, version: ModelVersion) -> bool:
        return any(
            step["version"] == version.uuid
            for pipeline in self.pipelines.values()
            if pipeline.deployment and pipeline.deployment.deployed
            for step in pipeline.deployment.version.steps
        )

    def list_models(self, call: Call) -> Answer:
        workspace = self._workspace(call, call.optional("workspace_id", int), call.optional("workspace_name", str))
        found = [one for one in self.models.values() if one.workspace_id == workspace.id and one.versions]
        render = self._model_json if self.flat_listing else self._listed_json
        return json_answer(200, {"models": [render(model) for model in reversed(found)]})

    def list_versions_for_model(self, call: Call) -> Answer:
        workspace = self._workspace(call, call.get("workspace_id", int))
        name = call.get("model_id", str)
        found = [one for one in self.models.values() if (one.workspace_id, one.name) == (workspace.id, name)]
        return json_answer(200, {"models": [self._listed_json(model) for model in found]})

    def list_versions(self, call: Call) -> Answer:
        """A union: versions of every model of that name, in any workspace, and those of that model number."""
        name, number = call.optional("model_id", str), call.optional("models_pk_id", int)
        found = [one for one in self.versions.values() if one.model.name == name or one.model.id == number]
        return json_answer(200, [{**self._row_json(one), "status": one.seen_status()} for one in found])

    def get_model(self, call: Call) -> Answer:
        model = self.models.get(call.get("id", int))
        if model is None:
            raise refused(500, "model not found")
        workspace = self.workspaces[model.workspace_id]
        rows = [self._row_json(version) for version in reversed(model.versions)]
        return json_answer(
            200,
            {**self._model_json(model), "models": rows, "workspace": {"id": workspace.id, "name": workspace.name}},
        )

    def get_model_by_id(self, call: Call) -> Answer:
        model = self.models.get(call.get("id", int))
        if model is None or not model.versions:
            raise refused(500, "model not found")
        config = _short_config(model.versions[-1])
        return json_answer(200, {**self._model_json(model), "workspace_id": model.workspace_id, "model_config": config})

    def get_version(self, call: Call) -> Answer:
        return json_answer(200, {"model_version": self._version_json(self._version(call.get("model_version_id", int)))})

    def get_model_config(self, call: Call) -> Answer:
        version = self.versions.get(call.get("model_id", int))
        return json_answer(200, {"model_config": version and _short_config(version)})

    def insert_model_config(self, call: Call) -> Answer:
        version = self._version(call.get("model_version_id", int))
        given = {key: value for key, value in call.request.body.items() if value is not None}
        given.pop("model_version_id")
        if openai := given.pop("openai_config", None):
            given["openai"] = openai
        if given.keys() - version.configs[-1].keys():
            raise malformed(f"Json deserialize error: unknown field in {sorted(given)}")
        if "batch_config" in given and "continuous_batching_config" in given:
            raise engine_refused(400, "batch_config excludes continuous batching")
        if given.get("batch_config") == "single" and "dynamic_batching_config" in given:
            raise engine_refused(400, "single batches exclude dynamic batching")
        kept = {key: value for key, value in version.configs[-1].items() if key not in ("id", "model_version_id")}
        return json_answer(200, {"model_config": self._add_config(version, {**kept, **given})})

    def get_upload_logs(self, call: Call) -> Answer:
        version = self._version(call.get("model_version_id", int))
        lines = call.optional("lines", int)
        return json_answer(200, {"logs": version.logs[:lines]})

    def delete_model_versions(self, call: Call) -> Answer:
        wanted = call.get("model_versions", list)
        found = [one for one in self.versions.values() if one.uuid in wanted]
        if len(found) != len(wanted):
            raise refused(404, "model version not found")
        return self._delete(call, found)

    def delete_model(self, call: Call) -> Answer:
        workspace, name = self._workspace(call, call.get("workspace_id", int)), call.get("model_id", str)
        model = next(
            (one for one in self.models.values() if (one.workspace_id, one.name) == (workspace.id, name)), None
        )
        if model is None:
            raise refused(404, f"model {name} not found")
        answer = self._delete(call, list(model.versions))
        if not model.versions:
            del self.models[model.id]
        return answer

    def _delete(self, call: Call, versions: list[ModelVersion]) -> Answer:
        if any(self._is_deployed(version) for version in versions):
            raise refused(409, "model version is deployed")
        if call.optional("confirm_delete", bool):
            for version in versions:
                version.model.versions.remove(version)
                del self.versions[version.id]
        return json_answer(200, {"bytes": sum(version.size for version in versions)})

    # -- pipelines

    def create_pipeline(self, call: Call) -> Answer:
        """An upsert: the same name adds a version."""
        name, workspace = call.get("pipeline_id", str), self._workspace(call, call.get("workspace_id", int))
        if not _NAME.fullmatch(name):
            raise refused(400, f"invalid pipeline name: {name}")
        definition = call.optional("definition", dict) or {}
        for step in PipelineVersion(0, definition).steps:
            if set(step) != {"name", "version", "sha"} or not _UUID.fullmatch(str(step["version"])):
                raise malformed("Json deserialize error: a model of a step has name, version (a UUID) and sha")
        pipeline = self._pipeline(workspace.id, name)
        if pipeline is None:
            pipeline = Pipeline(next(self._numbers["pipeline"]), name, workspace.id)
            self.pipelines[pipeline.id] = pipeline
        version = PipelineVersion(next(self._numbers["pipeline version"]), definition)
        pipeline.versions.append(version)
        pipeline.updated_at = version.created_at
        return json_answer(
            200,
            {
                "pipeline_pk_id": pipeline.id,
                "pipeline_variant_pk_id": version.id,
                "pipeline_variant_version": version.uuid,
            },
        )

    def _pipeline(self, workspace: int, name: str) -> Pipeline | None:
        found = (one for one in self.pipelines.values() if (one.workspace_id, one.name) == (workspace, name))
        return next(found, None)

    def deploy(self, call: Call) -> Answer:
        deploy_id, number = call.get("deploy_id", str), call.get("pipeline_version_pk_id", int)
        pairs = ((pipeline, version) for pipeline in self.pipelines.values() for version in pipeline.versions)
        pipeline, version = next(((one, other) for one, other in pairs if other.id == number), (None, None))
        if pipeline is None or version is None:
            raise refused(404, f"pipeline version {number} not found")
        if call.optional("pipeline_id", int) not in (None, pipeline.id):
            raise refused(400, "the pipeline version belongs to another pipeline")
        if call.optional("models", list) not in (None, version.steps):
            raise refused(400, "models differ from those of the pipeline's steps")
        for step in version.steps:
            self._check_deployable(step)
        statuses, pod = self.deployment_scripts.get(pipeline.name, (self.deployment, {}))
        before = pipeline.deployment
        if before is None:
            before = pipeline.deployment = Deployment(next(self._numbers["deployment"]), deploy_id, version)
        else:
            before.serving, before.version, before.deploy_id = (
                before.version if before.deployed else None,
                version,
                deploy_id,
            )
        before.engine_config = call.optional("engine_config", dict) or {}
        before.deployed, before.scripted, before.pod = True, deque(statuses), pod
        return json_answer(200, {"id": before.id})

    def _check_deployable(self, step: Json) -> None:
        version = next((one for one in self.versions.values() if one.uuid == step["version"]), None)
        if version is None or version.step != step:
            raise engine_refused(400, f"model {step['name']} {step['version']} not found")
        if version.status != "ready":
            raise engine_refused(400, f"model {step['name']} is {version.status}")

    def undeploy(self, call: Call) -> Answer:
        deployment = self._deployment(call.get("deployment_id", int))
        if deployment is None or not deployment.deployed:
            raise refused(404, "Deployment not found")
        deployment.deployed, deployment.scripted = False, deque([*self.undeployment, "missing"])
        return Answer(200, self.undeploy_answer.encode(), {"Content-Type": "application/json"})

    def _deployment(self, key: int | str) -> Deployment | None:
        """A deployment by number or by public name."""
        deployments = (one.deployment for one in self.pipelines.values())
        return next((one for one in deployments if one and key in (one.id, one.name)), None)

    def get_deployment(self, call: Call) -> Answer:
        deployment = self._deployment(call.get("name", str))
        if deployment is None:
            raise refused(404, "Deployment not found")
        script = deployment.scripted
        status = script.popleft() if len(script) > 1 else script[0]
        if status == "missing":
            raise refused(404, "Deployment not found")
        version = deployment.version
        if status == "stale":
            status, version = "Running", deployment.serving or version
        return json_answer(200, self._deployment_json(deployment, status, version))

    def _deployment_json(self, deployment: Deployment, status: str, version: PipelineVersion) -> Json:
        running = status == "Running"
        pod: Json = {"ip": "10.244.3.145", "status": "Running" if running else "Pending", "reason": None, "details": []}
        pipelines = [{"id": deployment.deploy_id, "status": "Running"}]
        models = [{**step, "status": "Running"} for step in version.steps]
        engine = {
            **pod,
            **({} if running else deployment.pod),
            "name": "engine-797d8958d9-fsszh",
            "pipeline_statuses": {"pipelines": pipelines} if running else None,
            "model_statuses": {"models": models} if running else None,
        }
        balancer = {**pod, "name": "engine-lb-584f54c899-qfjgp"}
        return {"status": status, "details": [], "engines": [engine], "engine_lbs": [balancer], "sidekicks": []}

    def _pipeline_json(self, pipeline: Pipeline) -> Json:
        return {
            "pipeline": {
                "id": pipeline.id,
                "pipeline_id": pipeline.name,
                "workspace_id": pipeline.workspace_id,
                "created_at": pipeline.created_at,
                "updated_at": pipeline.updated_at,
                "owner_id": '""',
                "visibility": "private",
                "name": pipeline.name,
            },
            "plateau_topic": f"workspace-{pipeline.workspace_id}-pipeline-{pipeline.name}-inference",
            "workspace": self._workspace_json(self.workspaces[pipeline.workspace_id]),
        }

    def _named_pipeline(self, call: Call, key: str) -> Pipeline:
        workspace, name = self._workspace(call, call.get("workspace_id", int)), call.get(key, str)
        pipeline = self._pipeline(workspace.id, name)
        if pipeline is None:
            raise refused(404, f"pipeline {name} not found")
        return pipeline

    def get_pipeline_by_name(self, call: Call) -> Answer:
        return json_answer(200, self._pipeline_json(self._named_pipeline(call, "pipeline_name")))

    def list_pipelines(self, call: Call) -> Answer:
        workspace = self._workspace(call, call.optional("workspace_id", int), call.optional("workspace_name", str))
        found = [one for one in self.pipelines.values() if one.workspace_id == workspace.id]
        items = [{**self._pipeline_json(one), "deployment": self._deployed_json(one.deployment)} for one in found]
        return json_answer(200, {"pipelines": items})

    def _deployed_json(self, deployment: Deployment | None) -> Json | None:
        return deployment and {
            "id": deployment.id,
            "deploy_id": deployment.deploy_id,
            "deployed": deployment.deployed,
            "engine_config": deployment.engine_config,
            "maximum_replicas": 1,
            "prewarmed_replicas": 0,
        }

    def get_pipeline_version(self, call: Call) -> Answer:
        wanted = call.get("version", str)
        for pipeline in self.pipelines.values():
            for version in pipeline.versions:
                if version.uuid == wanted:
                    found = {"pipeline_id": pipeline.name, "version": wanted, "definition": version.definition}
                    return json_answer(200, found)
        raise refused(404, "pipeline version not found")

    def list_pipeline_versions(self, call: Call) -> Answer:
        pipeline = self._named_pipeline(call, "pipeline_id")
        facts = {"id": pipeline.name, "workspace_id": pipeline.workspace_id}
        items = [
            {
                **self._pipeline_json(pipeline),
                "pipeline_version": {**facts, "version": version.uuid, "created_at": version.created_at},
            }
            for version in reversed(pipeline.versions)
        ]
        return json_answer(200, {"pipeline_versions": items})

    def delete_pipeline(self, call: Call) -> Answer:
        pipeline = self._named_pipeline(call, "pipeline_id")
        if pipeline.deployment and pipeline.deployment.deployed:
            raise refused(409, "pipeline is deployed")
        del self.pipelines[pipeline.id]
        return json_answer(200, {"pipeline_id": pipeline.name, "workspace_id": pipeline.workspace_id})

    def get_external_url(self, call: Call) -> Answer:
        pipeline = self._named_pipeline(call, "pipeline_name")
        if pipeline.deployment is None or not pipeline.deployment.deployed:
            raise refused(400, f"pipeline {pipeline.name} is not deployed")
        return json_answer(
            200, {"url": f"{self.url}/v1/api/pipelines/infer/{pipeline.deployment.name}/{pipeline.name}"}
        )

    # -- inference

    def infer(self, call: Call) -> Answer:
        pipeline = next((one for one in self.pipelines.values() if one.name == call.names["pipeline"]), None)
        deployment = pipeline and pipeline.deployment
        if deployment is None or not deployment.deployed or deployment.name != call.names["deployment"]:
            raise engine_refused(404, "no such deployment")
        if deployment.scripted[0] not in ("Running", "stale"):
            raise Refusal(text_answer(503, "no healthy upstream"))
        kind = call.request.headers.get("content-type", "")
        if kind == ARROW:
            if not call.request.body.startswith(b"ARROW1"):
                raise engine_refused(400, "not an Arrow file")
            return Answer(200, call.request.body, {"Content-Type": ARROW})
        rows = call.request.body
        if kind != PANDAS or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise engine_refused(400, f"expected {PANDAS} or {ARROW}")
        served = next(one for one in self.versions.values() if one.uuid == deployment.version.steps[-1]["version"])
        last = json.dumps({"model_name": served.model.name, "model_sha": served.sha})
        facts = {
            "last_model": last,
            "pipeline_version": deployment.version.uuid,
            "elapsed": [1, 2],
            "dropped": [],
            "partition": "engine",
        }
        answers = [
            {"time": int(time.time() * 1000), "in": row, "out": out, "check_failures": [], "metadata": facts}
            for row, out in zip(rows, self.predict(served, rows), strict=True)
        ]
        return json_answer(200, answers)

    # -- GraphQL

    def graphql(self, call: Call) -> Answer:
        from tests.standins.wallaroo_graphql import execute

        return json_answer(200, execute(self, call.get("query", str), call.optional("variables", dict) or {}))


@dataclass(frozen=True)
class Stored:
    """The file of an upload."""

    file_name: str
    path: Path
    sha: str
    size: int


def _short_config(version: ModelVersion) -> Json:
    return {name: version.configs[-1][name] for name in ("id", "runtime", "tensor_fields", "filter_threshold")}


def total(version: ModelVersion, rows: list[Json]) -> list[Json]:
    """A prediction that shows what came in: the sum of each row's numbers."""
    return [{"total": [sum(_numbers(list(row.values())))]} for row in rows]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def run_onnx(version: ModelVersion, rows: list[Json]) -> list[Json]:
    """The uploaded model's own predictions; needs onnxruntime and a file that was kept."""
    import numpy
    import onnxruntime

    assert version.path is not None
    session = onnxruntime.InferenceSession(version.path.read_bytes(), providers=["CPUExecutionProvider"])
    inputs = {
        one.name: numpy.array([row[one.name] for row in rows], dtype=numpy.float32) for one in session.get_inputs()
    }
    names = [one.name for one in session.get_outputs()]
    columns = [numpy.asarray(column).tolist() for column in session.run(names, inputs)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _is_arrow_schema(text: Any) -> bool:
    try:
        return isinstance(text, str) and base64.b64decode(text, validate=True).startswith(_MESSAGE)
    except ValueError:
        return False


def _segment(value: Json) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _jwt(user: User | None, client: str, seconds: float, issuer: str) -> str:
    """A token in the form of Keycloak's; its signature is good for nothing."""
    claims: Json = {"exp": int(time.time() + seconds), "iat": int(time.time()), "jti": str(uuid.uuid4())}
    claims |= {"iss": issuer, "typ": "Bearer", "azp": client, "scope": "email openid profile"}
    if user is not None:
        roles = {"x-hasura-user-id": user.id, "x-hasura-default-role": "user", "x-hasura-allowed-roles": ["user"]}
        claims |= {"sub": user.id, "email": user.email, "https://hasura.io/jwt/claims": roles}
    head = {"alg": "RS256", "typ": "JWT", "kid": "stand-in"}
    return f"{_segment(head)}.{_segment(claims)}.{secrets.token_urlsafe(256)}"


# ---- HTTP -------------------------------------------------------------------------------------------------------


class _Handler(Handler):
    """Bodies are JSON, forms, raw bytes for inference, and uploads, which the API reads itself."""

    def content(self) -> Iterator[bytes]:
        if "/models/upload" not in self.entry.path:
            self.read_document()
        return self.body()

    def read_document(self) -> None:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("application/json"):
            self.read_json()
        elif raw := b"".join(self.body()):
            form = kind.startswith("application/x-www-form-urlencoded")
            self.entry.body = dict(parse_qsl(raw.decode())) if form else raw

    def drain(self) -> None:
        if self.unread and "/models/upload" not in self.entry.path and self.entry.body is None:
            try:
                self.read_document()
            except (BadBody, Refusal, UnicodeDecodeError):
                return
        super().drain()

"""A stand-in for the API of BentoCloud and Yatai, and for the S3-like store behind its presigned URLs.

    with BentoCloudStandIn(tmp_path, transmission_strategy="presigned_url") as server:
        server.fault("PUT", r"\\.tar\\.gz$", Respond(503), part=2)
        ...  # talk to server.url with server.token
        assert server.count("PUT", r"\\.tar\\.gz$", part=2) == 2

Two origins on 127.0.0.1: `server.url` (the API) and `server.store.url` (the objects). Bodies of objects stream to
and from files below the given directory. Nothing here imports the package under test.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import re
import secrets
import shutil
import tarfile
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit
from xml.sax.saxutils import escape

from tests.standins.http_server import (
    BLOCK,
    MIB,
    Action,
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
)

Dialect = Literal["bentocloud", "yatai"]
Kind = Literal["model", "bento"]


@dataclass(frozen=True)
class ExpirePresign(Action):
    """Hand out a presigned URL that has expired already."""


def member_boundaries(archive: Path) -> list[int]:
    """Where each member of a tar ends: a cut at one of these offsets looks like a shorter archive."""
    with tarfile.open(archive, mode="r:") as tar:
        return [member.offset_data + -(-member.size // 512) * 512 for member in tar]


class StoreError(Refusal):
    """A refusal in S3's words."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        xml = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
        super().__init__(Answer(status, body, {"Content-Type": "application/xml", **(headers or {})}))
        self.code = code
        self.message = message


# ---- the object store -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredObject:
    path: Path
    size: int
    etag: str


@dataclass
class MultipartUpload:
    key: str
    parts: dict[int, StoredObject] = field(default_factory=dict)


class ObjectStore:
    """Objects in files, reached only through URLs that it signed itself; refuses what S3 refuses."""

    BUCKET = "yatai"
    LIFE = 3600

    def __init__(self, root: Path, *, minimum_part_size: int, discard_bodies: bool) -> None:
        self.url = ""
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, MultipartUpload] = {}
        self.minimum_part_size = minimum_part_size
        self.discard_bodies = discard_bodies
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        self._secret = secrets.token_bytes(32)

    # -- presigned URLs

    def presign(self, method: str, key: str, query: dict[str, str] | None = None, *, age: float = 0) -> str:
        """A URL for one method on one object; `age` is how long ago it was signed, in seconds."""
        signed = datetime.now(UTC) - timedelta(seconds=age)
        path = f"/{self.BUCKET}/{key}"
        values = {
            **(query or {}),
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"stand-in/{signed:%Y%m%d}/us-east-1/s3/aws4_request",
            "X-Amz-Date": f"{signed:%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": str(self.LIFE),
            "X-Amz-SignedHeaders": "host",
        }
        values["X-Amz-Signature"] = self._signature(method, path, values, urlsplit(self.url).netloc)
        return f"{self.url}{path}?{urlencode(values, quote_via=quote)}"

    def _signature(self, method: str, path: str, query: dict[str, str], host: str) -> str:
        canonical = urlencode(sorted(query.items()), quote_via=quote)
        return hmac.new(self._secret, "\n".join((method, path, canonical, host)).encode(), hashlib.sha256).hexdigest()

    def _check(self, request: Request) -> None:
        for name in ("authorization", "x-yatai-api-token", "cookie"):
            if name in request.headers:
                raise StoreError(400, "InvalidArgument", f"Only one auth mechanism allowed; {name} was sent as well")
        query = dict(request.query)
        signature = query.pop("X-Amz-Signature", "")
        if not signature or not query.get("X-Amz-Expires", "").isdigit():
            raise StoreError(403, "AccessDenied", "Access Denied")
        expected = self._signature(request.method, request.path, query, request.headers.get("host", ""))
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            raise StoreError(
                403, "SignatureDoesNotMatch", "The request signature we calculated does not match the one you provided."
            )
        signed = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if datetime.now(UTC) > signed + timedelta(seconds=int(query["X-Amz-Expires"])):
            raise StoreError(403, "AccessDenied", "Request has expired")
        for name in request.headers:
            if name in ("content-type", "content-md5") or name.startswith("x-amz-"):
                raise StoreError(
                    403, "AccessDenied", f"There were headers present in the request which were not signed: {name}"
                )

    # -- requests

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        self._check(request)
        key = request.path.removeprefix(f"/{self.BUCKET}/")
        if request.method == "PUT":
            if "content-length" not in request.headers:
                raise StoreError(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
            if request.part is not None:
                return self._put_part(key, request.query.get("uploadId", ""), request.part, body)
            self.objects[key] = stored = self.receive(body)
            return Answer(200, headers={"ETag": stored.etag})
        if request.method in ("GET", "HEAD"):
            return self._get(key, request.headers)
        raise StoreError(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")

    def _put_part(self, key: str, upload_id: str, number: int, body: Iterator[bytes]) -> Answer:
        if not 1 <= number <= 10_000:
            raise StoreError(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        upload = self._upload(key, upload_id)
        upload.parts[number] = part = self.receive(body)
        return Answer(200, headers={"ETag": part.etag})

    def _get(self, key: str, headers: dict[str, str]) -> Answer:
        stored = self.objects.get(key)
        if stored is None:
            raise StoreError(404, "NoSuchKey", "The specified key does not exist.")
        wanted = headers.get("if-match")
        if wanted is not None and wanted != "*" and wanted.strip('"') != stored.etag.strip('"'):
            raise StoreError(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        found = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": stored.etag}
        answer = file_answer(stored.path, stored.size, found, headers.get("range", ""))
        if answer.status == 416:
            raise StoreError(416, "InvalidRange", "The requested range is not satisfiable", answer.headers)
        return answer

    # -- what the API does with the store

    def receive(self, body: Iterable[bytes], *, keep: bool = False) -> StoredObject:
        """Store a body under no key yet; `keep` it even where bodies are discarded."""
        path = self._root / uuid.uuid4().hex
        digest, size = hashlib.md5(usedforsecurity=False), 0
        try:
            with path.open("wb") as file:
                for block in body:
                    digest.update(block)
                    size += len(block)
                    if keep or not self.discard_bodies:
                        file.write(block)
                file.truncate(size)
        except BaseException:
            path.unlink()
            raise
        return StoredObject(path, size, f'"{digest.hexdigest()}"')

    def start_multipart(self, key: str) -> str:
        upload_id = secrets.token_hex(10)
        self.uploads[upload_id] = MultipartUpload(key)
        return upload_id

    def _upload(self, key: str, upload_id: str) -> MultipartUpload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise StoreError(404, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid.")
        return upload

    def complete_multipart(self, key: str, upload_id: str, listed: list[tuple[int, str]]) -> StoredObject:
        upload = self._upload(key, upload_id)
        numbers = [number for number, _ in listed]
        if not listed:
            raise StoreError(400, "MalformedXML", "The XML you provided was not well-formed")
        if numbers != sorted(set(numbers)):
            raise StoreError(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        parts = []
        for number, etag in listed:
            part = upload.parts.get(number)
            if part is None or part.etag.strip('"') != etag.strip('"'):
                raise StoreError(400, "InvalidPart", "One or more of the specified parts could not be found.")
            parts.append(part)
        if any(part.size < self.minimum_part_size for part in parts[:-1]):
            raise StoreError(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        path = self._root / uuid.uuid4().hex
        with path.open("wb") as file:
            for part in parts if not self.discard_bodies else ():
                with part.path.open("rb") as source:
                    shutil.copyfileobj(source, file, MIB)
            file.truncate(sum(part.size for part in parts))
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
        etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
        self.objects[key] = stored = StoredObject(path, path.stat().st_size, etag)
        for part in list(self.uploads.pop(upload_id).parts.values()):  # one may be on its way still
            part.path.unlink()
        return stored


# ---- the registry's records -------------------------------------------------------------------------------------


@dataclass
class Model:
    version: str
    manifest: Json
    build_at: datetime
    description: str = ""
    labels: list[dict[str, str]] = field(default_factory=list)
    uid: str = field(default_factory=lambda: secrets.token_hex(10))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    upload_status: str = "pending"
    upload_started_at: datetime | None = None
    upload_finished_at: datetime | None = None
    upload_finished_reason: str = ""
    scripted: deque[str] = field(default_factory=deque)

    def finish(self, status: str, reason: str = "") -> None:
        self.upload_status = status
        self.upload_finished_reason = reason
        self.upload_finished_at = datetime.now(UTC)

    def seen_status(self) -> str:
        """The scripted statuses one after the other, the last one for ever."""
        if len(self.scripted) > 1:
            return self.scripted.popleft()
        return self.scripted[0] if self.scripted else self.upload_status


@dataclass
class Bento(Model):
    """A bento; its models are fixed when it is built."""

    name: str = ""

    @property
    def models(self) -> list[str]:
        return list(self.manifest.get("models") or [])

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass
class Repository:
    """What versions of a model belong to, or of a bento; those of bentos lie in `BentoCloudStandIn.bentos`."""

    name: str
    description: str = ""
    labels: list[dict[str, str]] = field(default_factory=list)
    uid: str = field(default_factory=lambda: secrets.token_hex(10))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    models: dict[str, Model] = field(default_factory=dict)

    kind: Kind = "model"


@dataclass(frozen=True)
class Revision:
    """One configuration of a deployment, as it was asked for."""

    body: Json
    status: str = ""
    uid: str = field(default_factory=lambda: secrets.token_hex(10))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass
class Deployment:
    """A deployment. `scripted`: what reads show next; `stale`: reads that still show the revision before."""

    name: str
    cluster: str
    status: str
    revisions: list[Revision]
    labels: list[dict[str, str]] = field(default_factory=list)
    description: str = ""
    dev: bool = False
    uid: str = field(default_factory=lambda: secrets.token_hex(10))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    scripted: deque[str] = field(default_factory=deque)
    stale: int = 0
    records: list[Json] = field(default_factory=list)

    def seen(self) -> tuple[Revision, str]:
        """The revision and the status that a read shows."""
        if self.stale and len(self.revisions) > 1:
            self.stale -= 1
            return self.revisions[-2], self.revisions[-2].status
        if self.scripted:
            self.status = self.scripted.popleft()
        return self.revisions[-1], self.status


@dataclass(frozen=True)
class ListQuery:
    """The `q` grammar: pieces separated by blanks, `key:value` or keyword."""

    terms: tuple[tuple[str, str], ...]
    keywords: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ListQuery:
        pieces = text.split()
        terms = tuple((key, value) for key, _, value in (piece.partition(":") for piece in pieces if ":" in piece))
        return cls(terms, tuple(piece for piece in pieces if ":" not in piece))

    def values(self, key: str) -> list[str]:
        return [value for term, value in self.terms if term == key]

    def accepts(self, repository: Repository, labels: list[dict[str, str]], module: str, user: str) -> bool:
        fields = {"name": repository.name, "description": repository.description}
        searched = [fields[name] for name in self.values("in") if name in fields] or [repository.name]
        creators = {user if creator == "@me" else creator for creator in self.values("creator")}
        return (
            all(any(keyword in text for text in searched) for keyword in self.keywords)
            and all(_has_label(labels, value) for value in self.values("label"))
            and (not self.values("module") or module in self.values("module"))
            and (not creators or user in creators)
        )

    def order(self, models: Iterable[tuple[Repository, Model]]) -> list[tuple[Repository, Model]]:
        name, _, direction = (self.values("sort") or ["build_at-desc"])[-1].rpartition("-")
        keys: dict[str, Callable[[Model], Any]] = {
            "build_at": lambda model: model.build_at,
            "created_at": lambda model: model.created_at,
            "size": lambda model: model.manifest.get("size_bytes", 0),
        }
        key = keys.get(name) or keys["build_at"]
        return sorted(models, key=lambda pair: key(pair[1]), reverse=direction != "asc")


def _has_label(labels: list[dict[str, str]], wanted: str) -> bool:
    pairs = {label["key"]: label["value"] for label in labels}
    for alternative in wanted.split(","):
        key, equals, value = alternative.partition("=")
        if key in pairs and (not equals or pairs[key] == value):
            return True
    return False


def _through_go(value: Any) -> Any:
    """JSON numbers as Go's float64 gives them back: whole ones without a point, large ones rounded."""
    if isinstance(value, dict):
        return {key: _through_go(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_through_go(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = float(value)
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


def _stored_manifest(manifest: Any) -> Json:
    if not isinstance(manifest, dict):
        raise Refusal(json_answer(400, {"error": "manifest is required"}))
    return {**manifest, **{key: _through_go(manifest[key]) for key in ("metadata", "options") if key in manifest}}


def _time(value: datetime | None) -> str | None:
    return None if value is None else f"{value:%Y-%m-%dT%H:%M:%S.%fZ}"


# ---- the API ----------------------------------------------------------------------------------------------------

_R = r"/api/v1/model_repositories/(?P<name>[^/]+)"
_M = _R + r"/models/(?P<version>[^/]+)"
_S = r"/api/v1/bento_repositories/(?P<name>[^/]+)"
_B = _S + r"/bentos/(?P<version>[^/]+)"
_D = r"/api/v2/deployments/(?P<name>[^/]+)"
_TARGET_CONFIG = ("access_authorization", "envs", "secrets", "services")
_UPDATE = frozenset({*_TARGET_CONFIG, "bento", "canary", "description", "labels", "weight"})
_TAG = re.compile(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?")
_BUILD_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")
_PEP440 = re.compile(r"v?(\d+(?:\.\d+)*)([-_.]?(a|b|c|rc|alpha|beta|pre|preview|post|rev|r|dev)[-_.]?\d*)*(\+[\w.]+)?")


@dataclass(frozen=True)
class Call:
    """One API call on its way through a handler."""

    request: Request
    name: str
    version: str
    body: Iterator[bytes]

    @property
    def json(self) -> Json:
        return self.request.body if isinstance(self.request.body, dict) else {}

    @property
    def kind(self) -> Kind:
        return "bento" if self.request.path.startswith("/api/v1/bento") else "model"


class BentoCloudStandIn(StandIn):
    """The API and its store; start and stop it as a context manager."""

    # More of the vendor's API is more rows here and a method for each.
    ROUTES: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/api/v1/auth/current", "current_user"),
        ("GET", r"/api/v1/current_org", "current_organization"),
        ("GET", r"/api/v1/models", "list_models"),
        ("GET", r"/api/v1/model_repositories", "list_repositories"),
        ("POST", r"/api/v1/model_repositories", "create_repository"),
        ("GET", _R, "get_repository"),
        ("PATCH", _R, "update_repository"),
        ("GET", _R + "/models", "list_versions"),
        ("POST", _R + "/models", "create_model"),
        ("GET", _M, "get_model"),
        ("PATCH", _M, "update_model"),
        ("DELETE", _M, "delete_model"),
        ("GET", _M + "/bentos", "list_bentos_of_model"),
        ("GET", _M + "/deployments", "list_users"),
        ("GET", r"/api/v2/deployments", "list_deployments"),
        ("POST", r"/api/v2/deployments", "create_deployment"),
        ("GET", _D, "get_deployment"),
        ("PUT", _D, "update_deployment"),
        ("DELETE", _D, "delete_deployment"),
        ("POST", _D + "/terminate", "terminate_deployment"),
        ("GET", _D + "/revisions", "list_revisions"),
        ("GET", _D + r"/revisions/(?P<version>[^/]+)", "get_revision"),
        ("GET", _D + "/status_records", "list_status_records"),
        ("GET", r"/api/v1/bentos", "list_bentos"),
        ("GET", r"/api/v1/bento_repositories", "list_repositories"),
        ("POST", r"/api/v1/bento_repositories", "create_repository"),
        ("GET", _S, "get_repository"),
        ("GET", _S + "/bentos", "list_versions"),
        ("POST", _S + "/bentos", "create_bento"),
        ("GET", _B, "get_bento"),
        ("PATCH", _B, "update_bento"),
        *(
            (method, f"{version}/{handler}", handler)
            for version in (_M, _B)
            for method, handler in (
                ("PATCH", "presign_upload_url"),
                ("PATCH", "start_upload"),
                ("PUT", "upload"),
                ("PATCH", "start_multipart_upload"),
                ("PATCH", "presign_multipart_upload_url"),
                ("PATCH", "complete_multipart_upload"),
                ("PATCH", "finish_upload"),
                ("PATCH", "presign_download_url"),
                ("GET", "download"),
            )
        ),
    )
    RAW = ("upload", "download")

    def __init__(
        self,
        root: Path,
        *,
        dialect: Dialect = "bentocloud",
        transmission_strategy: str | None = None,
        presigned_urls: bool = True,
        default_count: int = 0,
        minimum_part_size: int = 5 * MIB,
        discard_bodies: bool = False,
        stall_seconds: float = 10,
    ) -> None:
        """`default_count`: items of a page that names no number (0: all); `stall_seconds`: patience with a body."""
        super().__init__(handler=_Handler, stall_seconds=stall_seconds)
        self.dialect = dialect
        self.transmission_strategy = transmission_strategy
        self.presigned_urls = presigned_urls
        self.default_count = default_count
        self.organization = "acme"
        self.user = {"name": "ci", "email": "ci@acme.test", "first_name": "C", "last_name": "I"}
        self.token = "token-" + secrets.token_hex(12)
        self.expired_token = "expired-" + secrets.token_hex(12)
        self.tokens: dict[str, datetime | None] = {
            self.token: None,
            self.expired_token: datetime.now(UTC) - timedelta(days=1),
        }
        self.store = ObjectStore(root / "objects", minimum_part_size=minimum_part_size, discard_bodies=discard_bodies)
        self.repositories: dict[str, Repository] = {}
        self.bento_repositories: dict[str, Repository] = {}
        self.bentos: dict[str, Bento] = {}  # by tag
        self.deployments: dict[str, Deployment] = {}
        self.next_statuses: dict[str, tuple[list[str], int]] = {}
        self._routes = [(method, re.compile(path), name) for method, path, name in self.ROUTES]
        self._started = datetime.now(UTC)
        self._uids = {kind: secrets.token_hex(10) for kind in ("user", "organization", "cluster")}

    def __enter__(self) -> Self:
        self.store.url = self.listen("store", self.store.answer)
        return super().__enter__()

    def bad_body(self, error: BadBody) -> Answer:
        return StoreError(400, error.code, error.message).answer

    # -- scripts

    def script_status(self, name: str, version: str, statuses: Iterable[str]) -> None:
        """What successive reads of this model say its upload status is; the last one stays."""
        with self.lock:
            self.model(name, version).scripted = deque(statuses)

    def script_deployment(self, name: str, statuses: Iterable[str], *, stale: int = 0) -> None:
        """What the next creation or update of this deployment and the reads after it show; the last one stays.

        `stale`: that many reads after an update still show the revision before, with its status.
        """
        with self.lock:
            self.next_statuses[name] = list(statuses), stale

    def explain(self, name: str, status: str, reason: str) -> None:
        """Put a status record there: why the deployment's newest revision has this status."""
        with self.lock:
            self._note(self.deployments[name], status, reason)

    # -- records, for tests

    def key(self, name: str, version: str, kind: Kind = "model") -> str:
        return f"{kind}s/{self.organization}/{name}/{version}.tar.gz"

    def model(self, name: str, version: str) -> Model:
        return self.repositories[name].models[version]

    def stored(self, name: str, version: str, kind: Kind = "model") -> StoredObject:
        """The object behind a model or a bento: its path, size and ETag."""
        return self.store.objects[self.key(name, version, kind)]

    def seed(
        self,
        name: str,
        version: str,
        source: Path | bytes | None = None,
        *,
        labels: dict[str, str] | None = None,
        metadata: Json | None = None,
        status: str = "success",
        build_at: datetime | None = None,
        size_bytes: int | None = None,
        framework: str = "",
    ) -> Model:
        """Put a version there as another client would: from a directory, an archive's bytes, or nothing.

        A directory without `model.yaml` gets one, in the archive alone.
        """
        with self.lock:
            manifest: Json = {
                "module": "",
                "api_version": "v1",
                "bentoml_version": "1.4.40",
                "size_bytes": 0,
                "metadata": metadata or {},
                "context": {
                    "framework_name": framework,
                    "framework_versions": {},
                    "bentoml_version": "1.4.40",
                    "python_version": "3.11.7",
                },
                "options": {},
            }
            pairs = [{"key": key, "value": value} for key, value in (labels or {}).items()]
            model = Model(version, _stored_manifest(manifest), build_at or datetime.now(UTC), labels=pairs)
            size = 0
            if isinstance(source, Path):
                with tempfile.TemporaryFile() as file:
                    size = _write_archive(source, _model_yaml(name, model), file)
                    file.seek(0)
                    blocks = iter(lambda: file.read(BLOCK), b"")
                    self.store.objects[self.key(name, version)] = self.store.receive(blocks, keep=True)
            elif source is not None:
                size = len(source)
                self.store.objects[self.key(name, version)] = self.store.receive([source], keep=True)
            model.manifest["size_bytes"] = size if size_bytes is None else size_bytes
            if status != "pending":
                model.upload_started_at = datetime.now(UTC)
            model.upload_status = status
            if status in ("success", "failed"):
                model.finish(status)
            self.repositories.setdefault(name, Repository(name)).models[version] = model
            return model

    def seed_huggingface(
        self,
        model_id: str,
        revision: str,
        *,
        endpoint: str = "https://huggingface.co",
        size_bytes: int = 440_449_768,
        **facts: Any,
    ) -> tuple[str, str]:
        """A reference to a Hugging Face model, without content; returns its name and version."""
        identity: Json = {
            "model_id": model_id.lower(),
            "revision": revision,
            "endpoint": endpoint,
            "include": None,
            "exclude": None,
        }
        compact = json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
        version = hashlib.md5(compact, usedforsecurity=False).hexdigest()
        name = model_id.lower().replace("/", "--")
        url = f"{endpoint}/{model_id}/tree/{revision}"
        metadata = {"registry": "huggingface", **identity, "model_id": model_id, "url": url, **facts}
        self.seed(name, version, metadata=metadata, status="pending", size_bytes=size_bytes, framework="huggingface")
        return name, version

    def seed_bento(
        self,
        name: str,
        version: str,
        *,
        models: Iterable[str] = (),
        status: str = "success",
        build_at: datetime | None = None,
    ) -> Bento:
        """Put a bento there that was built with these models (`name:version`)."""
        manifest: Json = {"name": name, "models": tags} if (tags := list(models)) else {}
        built = build_at or datetime.now(UTC)
        bento = Bento(version, manifest, built, created_at=built, updated_at=built, upload_status=status, name=name)
        with self.lock:
            self.bento_repositories.setdefault(name, Repository(name, kind="bento"))
            self.bentos[bento.tag] = bento
        return bento

    def seed_deployment(
        self, name: str, bento: str, *, status: str = "running", cluster: str = "default", **config: Any
    ) -> Deployment:
        """Put a deployment there as another client would."""
        revision = Revision({"bento": bento, **config}, status)
        deployment = Deployment(name, cluster, status, [revision], _labels(config.get("labels")))
        with self.lock:
            self.deployments[name] = deployment
        return deployment

    # -- requests

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        handler, names = self._route(request)
        call = Call(request, names.get("name", ""), names.get("version", ""), body)
        self._authorize(request)
        self._check_client_version(request)
        handle: Callable[[Call], Answer] = getattr(self, handler)
        if handler in self.RAW:
            return handle(call)
        with self.lock:
            return handle(call)

    def _route(self, request: Request) -> tuple[str, dict[str, str]]:
        for method, path, handler in self._routes:
            found = path.fullmatch(request.path)
            is_absent = self._is_yatai and (method == "DELETE" or path.pattern.startswith("/api/v2/"))
            if found and method == request.method and not is_absent:
                return handler, found.groupdict()
        raise Refusal(json_answer(404, {"message": f"not found this router with method {request.method}"}))

    @property
    def _is_yatai(self) -> bool:
        return self.dialect == "yatai"

    def _authorize(self, request: Request) -> None:
        status = 403 if self._is_yatai else 401
        token = request.headers.get("x-yatai-api-token", "")
        if token not in self.tokens:
            raise Refusal(json_answer(status, {"message": "get api token: record not found"}))
        expired_at = self.tokens[token]
        if expired_at is not None and expired_at < datetime.now(UTC):
            raise Refusal(json_answer(status, {"message": "the api token is expired"}))
        wanted = request.headers.get("x-yatai-organization") or request.query.get("organization_name")
        if wanted and wanted != self.organization:
            raise Refusal(Answer(404))

    def _check_client_version(self, request: Request) -> None:
        version = request.headers.get("x-bentoml-version", "")
        if self._is_yatai and version and not _PEP440.fullmatch(version):
            raise Refusal(json_answer(400, {"error": f"parse bentoml version {version}: Malformed version: {version}"}))

    def _failure(self, status: int, message: str, *, raw: bool = False) -> Refusal:
        if self._is_yatai:
            status = 500 if raw else 400
        return Refusal(json_answer(status, {"error": message}))

    def _repositories(self, call: Call) -> dict[str, Repository]:
        return self.bento_repositories if call.kind == "bento" else self.repositories

    def _repository(self, call: Call, *, raw: bool = False) -> Repository:
        repository = self._repositories(call).get(call.name)
        if repository is None:
            raise self._failure(404, f"get {call.kind}Repository {call.name}: record not found", raw=raw)
        return repository

    def _versions(self, repository: Repository) -> dict[str, Model]:
        """A repository's models, or bentos, by version."""
        if repository.kind == "model":
            return repository.models
        return {bento.version: bento for bento in self.bentos.values() if bento.name == repository.name}

    def _model(self, call: Call, *, raw: bool = False) -> tuple[Repository, Model]:
        """The model, or bento, that a call is about."""
        repository = self._repository(call, raw=raw)
        model = self._versions(repository).get(call.version)
        if model is None:
            message = f"get {call.kind}Repository {call.name} {call.kind} {call.version}: record not found"
            raise self._failure(404, message, raw=raw)
        return repository, model

    # -- JSON

    def _resource(self, kind: str, uid: str, name: str, created: datetime, updated: datetime) -> Json:
        return {
            "uid": uid,
            "name": name,
            "resource_type": kind,
            "labels": [],
            "created_at": _time(created),
            "updated_at": _time(updated),
            "deleted_at": None,
        }

    def _organization_json(self) -> Json:
        found = self._resource(
            "organization", self._uids["organization"], self.organization, self._started, self._started
        )
        return {**found, "description": ""}

    def _repository_json(self, repository: Repository, *, latest: bool = True) -> Json:
        versions = self._versions(repository).values() if latest else ()
        model = max(versions, key=lambda model: model.build_at, default=None)
        return {
            **self._resource(
                f"{repository.kind}_repository",
                repository.uid,
                repository.name,
                repository.created_at,
                repository.updated_at,
            ),
            "labels": repository.labels,
            "description": repository.description,
            "creator": self.user,
            "organization": self._organization_json(),
            f"latest_{repository.kind}": model and self._model_json(repository, model),
        }

    def _model_json(self, repository: Repository, model: Model, *, read: bool = False) -> Json:
        return {
            **self._resource(repository.kind, model.uid, model.version, model.created_at, model.updated_at),
            "labels": model.labels,
            f"{repository.kind}_uid": repository.uid,
            "creator": self.user,
            "version": model.version,
            "description": model.description,
            "image_build_status": "pending",
            "upload_status": model.seen_status() if read else model.upload_status,
            "upload_started_at": _time(model.upload_started_at),
            "upload_finished_at": _time(model.upload_finished_at),
            "upload_finished_reason": model.upload_finished_reason,
            "manifest": model.manifest or None,
            "build_at": _time(model.build_at),
            "transmission_strategy": self.transmission_strategy,
            "presigned_upload_url": "",
            "presigned_download_url": "",
            "presigned_urls_deprecated": False,
            "upload_id": "",
        }

    def _page(self, call: Call, items: list[Any], render: Callable[[Any], Json]) -> Answer:
        start, count = (_number(call.request.query.get(name)) for name in ("start", "count"))
        size = count or self.default_count
        shown = items[start : start + size] if size else items[start:]
        page = {"total": len(items), "start": start, "count": size, "items": [render(item) for item in shown]}
        return json_answer(200, page)

    # -- identity

    def current_user(self, call: Call) -> Answer:
        found = self._resource("user", self._uids["user"], self.user["name"], self._started, self._started)
        return json_answer(200, {**found, **self.user, "perm": "default"})

    def current_organization(self, call: Call) -> Answer:
        return json_answer(200, self._organization_json())

    # -- repositories

    def list_repositories(self, call: Call) -> Answer:
        query = ListQuery.parse(call.request.query.get("q", ""))
        search = call.request.query.get("search", "")
        found = [
            repository
            for repository in self._repositories(call).values()
            if search in repository.name and query.accepts(repository, repository.labels, "", self.user["name"])
        ]
        found.sort(key=lambda repository: repository.created_at, reverse=True)
        return self._page(call, found, self._repository_json)

    def create_repository(self, call: Call) -> Answer:
        name = call.json.get("name")
        if not isinstance(name, str) or not _TAG.fullmatch(name):
            raise Refusal(json_answer(400, {"error": f"invalid name: {name!r}"}))
        if name in self._repositories(call):
            message = f"create {call.kind}Repository: " + _duplicate(f"uk_{call.kind}Repository_orgId_name")
            raise self._failure(409, message)
        description, labels = call.json.get("description") or "", _labels(call.json.get("labels"))
        self._repositories(call)[name] = repository = Repository(name, description, labels, kind=call.kind)
        return json_answer(200, self._repository_json(repository))

    def get_repository(self, call: Call) -> Answer:
        return json_answer(200, self._repository_json(self._repository(call)))

    def update_repository(self, call: Call) -> Answer:
        repository = self._repository(call)
        if call.json.get("description") is not None:
            repository.description = call.json["description"]
        if call.json.get("labels") is not None:
            repository.labels = _labels(call.json["labels"])
        repository.updated_at = datetime.now(UTC)
        return json_answer(200, self._repository_json(repository))

    # -- models

    def _select(self, call: Call, models: Iterable[tuple[Repository, Model]], q: str) -> list[tuple[Repository, Model]]:
        query = ListQuery.parse(q)
        return query.order(
            (repository, model)
            for repository, model in models
            if query.accepts(repository, model.labels, model.manifest.get("module", ""), self.user["name"])
        )

    def list_models(self, call: Call) -> Answer:
        search = call.request.query.get("search", "")
        models = [
            (repository, model)
            for repository in self.repositories.values()
            if search in repository.name
            for model in repository.models.values()
        ]
        found = self._select(call, models, call.request.query.get("q", ""))
        return self._page(call, found, lambda pair: self._with_repository(*pair))

    def list_versions(self, call: Call) -> Answer:
        repository = self._repository(call)
        search = call.request.query.get("search", "")
        models = [(repository, model) for model in self._versions(repository).values() if search in model.version]
        found = self._select(call, models, "" if self._is_yatai else call.request.query.get("q", ""))
        return self._page(call, found, lambda pair: self._model_json(*pair, read=True))

    def _with_repository(self, repository: Repository, model: Model) -> Json:
        record = self._model_json(repository, model, read=True)
        return {**record, "repository": self._repository_json(repository, latest=False)}

    def _created(self, call: Call) -> tuple[Repository, str, Json]:
        """What a creation makes: where, which version, with which fields."""
        repository = self._repository(call)
        version, body = call.json.get("version"), call.json
        if not isinstance(version, str) or not _TAG.fullmatch(version):
            raise Refusal(json_answer(400, {"error": f"invalid version: {version!r}"}))
        if version in self._versions(repository):
            kind = call.kind
            constraint = _duplicate(f"uk_{kind}_{kind}RepositoryId_version")
            raise self._failure(409, f"create {kind}Repository {kind}: {constraint}")
        fields = {
            "manifest": _stored_manifest(body.get("manifest")),
            "build_at": self._build_at(body.get("build_at")),
            "description": body.get("description") or "",
            "labels": _labels(body.get("labels")),
        }
        return repository, version, fields

    def create_model(self, call: Call) -> Answer:
        repository, version, fields = self._created(call)
        repository.models[version] = model = Model(version, **fields)
        return json_answer(200, self._model_json(repository, model))

    def _build_at(self, text: Any) -> datetime:
        try:
            built = datetime.fromisoformat(str(text))
        except ValueError:
            built = None
        if built is None or (self._is_yatai and not _BUILD_AT.fullmatch(str(text))):
            message = f'parse build at: parsing time "{text}" as "2006-01-02 15:04:05.000000": cannot parse'
            raise Refusal(json_answer(400, {"error": message}))
        return built.replace(tzinfo=built.tzinfo or UTC).astimezone(UTC)

    def get_model(self, call: Call) -> Answer:
        bentos = [self._bento_json(bento) for bento in self._bentos_of(call)]
        return json_answer(200, {**self._with_repository(*self._model(call)), "bentos": bentos})

    def update_model(self, call: Call) -> Answer:
        repository, model = self._model(call)
        if call.json.get("labels") is not None:
            model.labels = _labels(call.json["labels"])
        if not self._is_yatai:
            model.description = call.json.get("description") or model.description
            if call.json.get("manifest") is not None:
                model.manifest = _stored_manifest(call.json["manifest"])
            if call.json.get("build_at"):
                model.build_at = self._build_at(call.json["build_at"])
        model.updated_at = datetime.now(UTC)
        return json_answer(200, self._model_json(repository, model))

    def delete_model(self, call: Call) -> Answer:
        repository, model = self._model(call)
        del repository.models[model.version]
        self.store.objects.pop(self.key(call.name, call.version), None)
        return Answer(200)

    def list_users(self, call: Call) -> Answer:
        """Bentos or deployments that use a model: none."""
        self._model(call)
        return self._page(call, [], dict)

    # -- up

    def _presigned(self, call: Call, method: str, query: dict[str, str] | None = None) -> str:
        age = self.store.LIFE + 60 if isinstance(call.request.fault, ExpirePresign) else 0
        return self.store.presign(method, self.key(call.name, call.version, call.kind), query, age=age)

    def _single_presigned(self, call: Call, method: str, name: str) -> Answer:
        """A URL for the whole object. Yatai has one for any client but those of 1.0.0 to 1.0.5 under proxy."""
        repository, model = self._model(call)
        version = _PEP440.fullmatch(call.request.headers.get("x-bentoml-version", ""))
        if self._is_yatai and version and self.transmission_strategy != "presigned_url":
            numbers = tuple(int(number) for number in version.group(1).split("."))
            if (1, 0) <= numbers <= (1, 0, 5):
                return json_answer(200, {**self._model_json(repository, model), "presigned_urls_deprecated": True})
        url = self._presigned(call, method) if self.presigned_urls else ""
        return json_answer(200, {**self._model_json(repository, model), name: url})

    def presign_upload_url(self, call: Call) -> Answer:
        return self._single_presigned(call, "PUT", "presigned_upload_url")

    def presign_download_url(self, call: Call) -> Answer:
        return self._single_presigned(call, "GET", "presigned_download_url")

    def start_upload(self, call: Call) -> Answer:
        repository, model = self._model(call)
        model.upload_status = "uploading"
        model.upload_started_at = datetime.now(UTC)
        return json_answer(200, self._model_json(repository, model))

    def upload(self, call: Call) -> Answer:
        _, model = self._model(call, raw=True)
        if "content-length" not in call.request.headers:
            raise self._failure(411, "the length of the body is unknown", raw=True)
        model.upload_status, model.upload_started_at = "uploading", datetime.now(UTC)
        try:
            stored = self.store.receive(call.body)
        except (BadBody, ConnectionError) as error:
            model.finish("failed", str(error))
            raise self._failure(400, f"upload {call.kind}: {error}", raw=True) from error
        self.store.objects[self.key(call.name, call.version, call.kind)] = stored
        model.finish("success")
        return Answer(200, headers={"Content-Type": "application/json"})

    def start_multipart_upload(self, call: Call) -> Answer:
        repository, model = self._model(call)
        upload_id = self.store.start_multipart(self.key(call.name, call.version, call.kind))
        return json_answer(200, {**self._model_json(repository, model), "upload_id": upload_id})

    def presign_multipart_upload_url(self, call: Call) -> Answer:
        repository, model = self._model(call)
        upload_id, number = call.json.get("upload_id"), call.json.get("part_number")
        if not isinstance(upload_id, str) or not isinstance(number, int):
            raise Refusal(json_answer(400, {"error": "upload_id and part_number are required"}))
        url = self._presigned(call, "PUT", {"partNumber": str(number), "uploadId": upload_id})
        repeated = {} if self._is_yatai else {"upload_id": upload_id}
        return json_answer(200, {**self._model_json(repository, model), "presigned_upload_url": url, **repeated})

    def complete_multipart_upload(self, call: Call) -> Answer:
        repository, model = self._model(call)
        try:
            parts = [(int(part["part_number"]), str(part["etag"])) for part in call.json["parts"]]
            upload_id = str(call.json["upload_id"])
        except (KeyError, TypeError, ValueError):
            raise Refusal(json_answer(400, {"error": "parts and upload_id are required"})) from None
        try:
            self.store.complete_multipart(self.key(call.name, call.version, call.kind), upload_id, parts)
        except StoreError as error:
            message = f"failed to complete multipart upload: {error.code}: {error.message}"
            raise Refusal(json_answer(400, {"error": message})) from error
        return json_answer(200, self._model_json(repository, model))

    def finish_upload(self, call: Call) -> Answer:
        repository, model = self._model(call)
        if call.json.get("status") not in ("success", "failed"):
            raise Refusal(json_answer(400, {"error": f"invalid status: {call.json.get('status')!r}"}))
        model.finish(call.json["status"], call.json.get("reason") or "")
        return json_answer(200, self._model_json(repository, model))

    # -- down

    def download(self, call: Call) -> Answer:
        self._model(call, raw=True)
        stored = self.store.objects.get(self.key(call.name, call.version, call.kind))
        if stored is None:
            raise self._failure(404, f"download {call.kind}: The specified key does not exist.", raw=True)
        headers = {"Content-Type": "application/octet-stream"}
        return Answer(200, FileSlice(stored.path, 0, stored.size), headers, chunked=True)

    # -- bentos

    def _bentos_of(self, call: Call) -> list[Bento]:
        tag = f"{call.name}:{call.version}"
        found = [bento for bento in self.bentos.values() if tag in bento.models]
        return sorted(found, key=lambda bento: bento.build_at, reverse=True)

    def _bento_json(self, bento: Bento) -> Json:
        """A bento where something else is shown with it."""
        return {
            **self._resource("bento", bento.uid, bento.version, bento.build_at, bento.build_at),
            "description": bento.description,
            "version": bento.version,
            "image_build_status": "success",
            "upload_status": bento.upload_status,
            "upload_finished_reason": bento.upload_finished_reason,
            "presigned_upload_url": "",
            "presigned_download_url": "",
            "manifest": bento.manifest or None,
        }

    def _bento_with_repository(self, bento: Bento) -> Json:
        repository = self._resource("bento_repository", bento.uid[::-1], bento.name, bento.build_at, bento.build_at)
        return {**self._bento_json(bento), "repository": {**repository, "description": "", "latest_bento": None}}

    def _bento(self, call: Call) -> tuple[Repository, Bento]:
        repository, bento = self._model(call)
        assert isinstance(bento, Bento)
        return repository, bento

    def list_bentos(self, call: Call) -> Answer:
        search = call.request.query.get("search", "")
        bentos = [
            (self.bento_repositories[bento.name], bento) for bento in self.bentos.values() if search in bento.name
        ]
        found = self._select(call, bentos, call.request.query.get("q", ""))
        return self._page(call, found, lambda pair: self._with_repository(*pair))

    def create_bento(self, call: Call) -> Answer:
        repository, version, fields = self._created(call)
        bento = Bento(version, **fields, name=repository.name)
        self.bentos[bento.tag] = bento
        return json_answer(200, self._model_json(repository, bento))

    def get_bento(self, call: Call) -> Answer:
        return json_answer(200, self._with_repository(*self._bento(call)))

    def update_bento(self, call: Call) -> Answer:
        repository, bento = self._bento(call)
        if call.json.get("description") is not None:
            bento.description = call.json["description"]
        if call.json.get("manifest") is not None:
            bento.manifest = _stored_manifest(call.json["manifest"])
        if call.json.get("labels") is not None:
            bento.labels = _labels(call.json["labels"])
        bento.updated_at = datetime.now(UTC)
        return json_answer(200, self._model_json(repository, bento))

    def list_bentos_of_model(self, call: Call) -> Answer:
        self._model(call)
        return self._page(call, self._bentos_of(call), self._bento_with_repository)

    # -- deployments

    def _deployment(self, call: Call) -> Deployment:
        deployment = self.deployments.get(call.name)
        if deployment is None or call.request.query.get("cluster") not in (None, "", deployment.cluster):
            raise self._failure(404, f"get deployment {call.name}: record not found")
        return deployment

    def _note(self, deployment: Deployment, status: str, reason: str = "") -> None:
        now = datetime.now(UTC)
        deployment.records.insert(
            0,
            {
                "uid": secrets.token_hex(10),
                "created_at": _time(now),
                "updated_at": _time(now),
                "event_timestamp": _time(now),
                "status": status,
                "reason": reason,
                "deployment_revision": {"uid": deployment.revisions[-1].uid},
            },
        )

    def _deployment_json(self, deployment: Deployment, seen: tuple[Revision, str]) -> Json:
        revision, status = seen
        now = datetime.now(UTC)
        cluster = self._resource("cluster", self._uids["cluster"], deployment.cluster, self._started, self._started)
        canary = revision.body.get("canary") or {}
        versions = canary.get("versions") or {}
        manifest: Json = {"dev": deployment.dev}
        if versions:
            weights = {name: version.get("weight") for name, version in versions.items()}
            manifest["routing"] = {**{key: canary.get(key) for key in ("route_type", "route_by")}, "weights": weights}
        return {
            **self._resource("deployment", deployment.uid, deployment.name, deployment.created_at, now),
            "labels": deployment.labels,
            **({"description": deployment.description} if deployment.description else {}),
            "status": status,
            "kube_namespace": "yatai",
            "creator": self.user,
            "cluster": {
                **cluster,
                "description": "",
                "organization_name": self.organization,
                "creator": self.user,
                "is_first": True,
            },
            "latest_revision": self._revision_json(revision, active=revision is deployment.revisions[-1]),
            "manifest": manifest,
            "urls": [f"https://{deployment.name}.apps.test"] if status in ("running", "scaled-to-zero") else [],
        }

    def _revision_json(self, revision: Revision, *, active: bool) -> Json:
        created = revision.created_at
        targets = {"main": revision.body, **((revision.body.get("canary") or {}).get("versions") or {})}
        return {
            **self._resource("deployment_revision", revision.uid, revision.uid, created, created),
            "creator": self.user,
            "status": "active" if active else "inactive",
            "targets": [
                {
                    **self._resource("deployment", f"{revision.uid[:-4]}{number:04x}", name, created, created),
                    "creator": self.user,
                    "config": {key: body[key] for key in _TARGET_CONFIG if key in body},
                    "bento": self._bento_with_repository(self.bentos[body["bento"]]),
                }
                for number, (name, body) in enumerate(targets.items())
            ],
        }

    def _checked_deployment(self, call: Call, allowed: frozenset[str]) -> Json:
        body = call.json
        bentos = [
            body.get("bento"),
            *(v.get("bento") for v in ((body.get("canary") or {}).get("versions") or {}).values()),
        ]
        for bento in bentos:
            if bento not in self.bentos:
                raise Refusal(json_answer(400, {"error": f"get bento {bento}: record with this tag is unknown"}))
        if unknown := sorted(body.keys() - allowed):
            raise Refusal(json_answer(400, {"error": f"unknown fields: {unknown}"}))
        return body

    def _roll_out(self, deployment: Deployment, body: Json) -> None:
        if deployment.revisions:
            deployment.revisions[-1] = replace(deployment.revisions[-1], status=deployment.status)
        deployment.revisions.append(Revision(body))
        statuses, stale = self.next_statuses.pop(deployment.name, (["deploying", "running"], 0))
        deployment.scripted, deployment.stale = deque(statuses), stale
        if body.get("labels") is not None:
            deployment.labels = _labels(body["labels"])
        deployment.description = body.get("description") or ""

    def _read_deployment(self, deployment: Deployment) -> Json:
        seen = deployment.seen()
        if not deployment.records or deployment.records[0]["status"] != seen[1]:
            self._note(deployment, seen[1])
        return self._deployment_json(deployment, seen)

    def list_deployments(self, call: Call) -> Answer:
        cluster, search = call.request.query.get("cluster"), call.request.query.get("search") or ""
        found = [one for one in self.deployments.values() if cluster in (None, "", one.cluster) and search in one.name]
        page = {"total": len(found), "start": 0, "count": len(found)}
        return json_answer(200, {**page, "items": [self._read_deployment(one) for one in found]})

    def create_deployment(self, call: Call) -> Answer:
        body = self._checked_deployment(call, _UPDATE | {"name", "dev", "distributed"})
        name = body.get("name")
        if not isinstance(name, str) or not _TAG.fullmatch(name):
            raise Refusal(json_answer(400, {"error": f"invalid name: {name!r}"}))
        if name in self.deployments:
            raise self._failure(409, "create deployment: " + _duplicate("uk_deployment_name"))
        cluster = call.request.query.get("cluster") or "default"
        deployment = Deployment(name, cluster, "", [], dev=bool(body.get("dev")))
        self.deployments[name] = deployment
        self._roll_out(deployment, body)
        return json_answer(200, self._read_deployment(deployment))

    def get_deployment(self, call: Call) -> Answer:
        return json_answer(200, self._read_deployment(self._deployment(call)))

    def update_deployment(self, call: Call) -> Answer:
        deployment = self._deployment(call)
        body = self._checked_deployment(call, _UPDATE)
        if deployment.status == "terminating":
            raise Refusal(json_answer(400, {"error": f"deployment {call.name} is terminating"}))
        before = deployment.status
        self._roll_out(deployment, body)
        if deployment.stale:  # the answer names the new revision, with the status of the one before
            return json_answer(200, self._deployment_json(deployment, (deployment.revisions[-1], before)))
        return json_answer(200, self._read_deployment(deployment))

    def terminate_deployment(self, call: Call) -> Answer:
        deployment = self._deployment(call)
        if deployment.status == "terminated":
            raise Refusal(json_answer(400, {"error": f"deployment {call.name} is terminated"}))
        statuses, _ = self.next_statuses.pop(call.name, (["terminating", "terminating", "terminated"], 0))
        deployment.scripted, deployment.stale = deque(statuses), 0
        return json_answer(200, self._read_deployment(deployment))

    def delete_deployment(self, call: Call) -> Answer:
        deployment = self._deployment(call)
        if deployment.status != "terminated":
            raise Refusal(json_answer(400, {"error": f"deployment {call.name} must be terminated first"}))
        return json_answer(200, self._deployment_json(self.deployments.pop(call.name), deployment.seen()))

    def list_revisions(self, call: Call) -> Answer:
        revisions = self._deployment(call).revisions
        return self._page(call, revisions[::-1], lambda one: self._revision_json(one, active=one is revisions[-1]))

    def get_revision(self, call: Call) -> Answer:
        revisions = self._deployment(call).revisions
        found = next((revision for revision in revisions if revision.uid == call.version), None)
        if found is None:
            raise self._failure(404, f"get deployment revision {call.version}: record not found")
        return json_answer(200, self._revision_json(found, active=found is revisions[-1]))

    def list_status_records(self, call: Call) -> Answer:
        return self._page(call, self._deployment(call).records, lambda record: record)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _duplicate(constraint: str) -> str:
    return f'ERROR: duplicate key value violates unique constraint "{constraint}" (SQLSTATE 23505)'


def _labels(value: Any) -> list[dict[str, str]]:
    try:
        return [{"key": str(label["key"]), "value": str(label["value"])} for label in value or []]
    except (KeyError, TypeError):
        raise Refusal(json_answer(400, {"error": "labels must be a list of key and value"})) from None


def _model_yaml(name: str, model: Model) -> bytes:
    """`model.yaml` as the vendor's client needs it; JSON is YAML."""
    manifest = model.manifest
    document = {
        "name": name,
        "version": model.version,
        "module": manifest["module"],
        "labels": {label["key"]: label["value"] for label in model.labels},
        "options": manifest["options"],
        "metadata": manifest["metadata"],
        "context": manifest["context"],
        "signatures": {},
        "api_version": "v1",
        "creation_time": model.build_at.isoformat(),
    }
    return json.dumps(document, indent=1).encode()


def _write_archive(directory: Path, yaml: bytes, file: IO[bytes]) -> int:
    """The directory as the vendor's client archives it; returns the sum of the sizes of its files."""
    with tarfile.open(fileobj=file, mode="w:") as tar:
        tar.add(directory, arcname="./")
        if not (directory / "model.yaml").exists():
            member = tarfile.TarInfo("./model.yaml")
            member.size = len(yaml)
            tar.addfile(member, io.BytesIO(yaml))
    with tarfile.open(fileobj=_rewound(file), mode="r:") as tar:
        return sum(member.size for member in tar if member.isfile())


def _rewound(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


class _Handler(Handler):
    """The API reads JSON; what goes to an object is left to be streamed."""

    def content(self) -> Iterator[bytes]:
        if self.server.origin == "api" and not self.path.endswith("/upload"):
            self.read_json()
        return self.body()

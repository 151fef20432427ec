"""An OCI registry in memory, which behaves as the hosted ones do that no test can reach.

    GET  /v2/                                    who asks is asked to log in
    GET  /v2/_catalog                            names of repositories, by pages
    GET  /v2/<name>/tags/list                    tags, by pages
    GET  /v2/<name>/manifests/<tag or digest>    a manifest; also HEAD, PUT, DELETE
    GET  /v2/<name>/blobs/<digest>               a blob, or the way to the storage that has it; also HEAD
    POST /v2/<name>/blobs/uploads/               begins an upload, or mounts a blob
    PUT  /v2/<name>/blobs/uploads/<id>?digest=   the whole of it; PATCH a piece, GET how far it is, DELETE
    GET  /token?service=&scope=                  a token, on an origin of its own

What it answers beyond its switches is what Debian's docker-registry 2.8.2 was seen to answer. Nothing here imports the
package under test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.standins.http_server import MIB, Answer, Handler, Json, Refusal, Request, StandIn, json_answer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_ROUTE = re.compile(
    rf"/v2/(?P<name>{_PART}(?:/{_PART})*)/(?P<what>tags/list|referrers|manifests|blobs/uploads|blobs)(?P<rest>/.*)?"
)


@dataclass(frozen=True)
class Quirks:
    """How a registry differs from the specification, or from others that keep to it.

    :param auth: ``none``, ``basic`` or ``bearer``.
    :param service: what it calls itself to its token server.
    :param redirects: whether blobs are read from a storage of its own, which refuses further credentials.
    :param relative: whether it names places relatively.
    :param page: entries of a page; 0 gives all and heeds no ``n``.
    :param catalog: whether it lists its repositories.
    :param delete: ``digest``, ``both``, ``no``, ``hidden`` when it answers as if nothing was there, or ``untagged``
        when a manifest with tags cannot be deleted.
    :param immutable: status and code with which a tag is kept where it is; None lets it move.
    :param repositories_exist: whether a repository must be there before a push.
    :param empty_blobs: whether a blob may have no bytes.
    :param chunks: whether PATCH works.
    :param token_seconds: how long a token lives.
    :param referrers: whether it lists what refers to a manifest.
    """

    auth: str = "none"
    service: str = "registry.test"
    redirects: bool = False
    relative: bool = False
    page: int = 0
    catalog: bool = True
    delete: str = "digest"
    immutable: tuple[int, str] | None = None
    repositories_exist: bool = False
    empty_blobs: bool = True
    chunks: bool = True
    token_seconds: int | None = 300
    referrers: bool = False


DISTRIBUTION = Quirks()
# https://github.com/containers/skopeo/issues/1880 (no DELETE); https://github.com/snok/container-retention-policy (no
# catalog); https://github.com/regclient/regclient/issues/373 (pieces of at most 4 MiB)
GHCR = Quirks(auth="bearer", service="ghcr.io", redirects=True, page=100, catalog=False, delete="no", chunks=False)
# https://docs.aws.amazon.com/AmazonECR/latest/userguide/image-tag-mutability.html;
# https://github.com/aws/containers-roadmap/issues/2831 (pieces are lost); https://github.com/devcontainers/cli/issues/814
# (no empty layer); https://github.com/google/go-containerregistry/issues/681 (pages)
ECR = Quirks(
    auth="basic",
    redirects=True,
    page=100,
    catalog=False,
    delete="no",
    immutable=(400, "ImageTagAlreadyExistsException"),
    repositories_exist=True,
    empty_blobs=False,
    chunks=False,
)
# https://github.com/fluxcd/pkg/issues/328 (deleting); https://github.com/containers/skopeo/issues/1101 (no pieces)
GAR = Quirks(auth="bearer", service="gar.test", page=100, catalog=False, delete="untagged", chunks=False)
# https://github.com/goharbor/harbor/issues/9427 (412); https://github.com/goharbor/harbor/issues/13573 (catalog);
# https://goharbor.io/docs/main/working-with-projects/working-with-images/create-tag-immutability-rules/ (no deletion)
HARBOR = Quirks(
    auth="bearer",
    service="harbor-registry",
    page=100,
    catalog=False,
    delete="both",
    immutable=(412, "PRECONDITION"),
    referrers=True,
)
# https://learn.microsoft.com/azure/container-registry/container-registry-delete; https://github.com/fluxcd/pkg/issues/328
ACR = Quirks(auth="bearer", service="acr.test", relative=True, redirects=True, page=100)

HOSTED = {"ghcr": GHCR, "ecr": ECR, "gar": GAR, "harbor": HARBOR, "acr": ACR}


@dataclass
class Repository:
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # digest → media type, bytes
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Token:
    scopes: frozenset[str]
    ends: float


class _Handler(Handler):
    """A parameter that is repeated counts as a list."""

    def parsed(self) -> Request:
        request = super().parsed()
        scopes = parse_qs(urlsplit(self.path).query).get("scope")
        return replace(request, query=request.query | {"scope": " ".join(scopes)}) if scopes else request


class OCIStandIn(StandIn):
    """A registry that holds nothing at first.

    `quirks`: how it differs; `tag_rule`: whether tags are immutable now, where it has such a rule; `tokens`: what was
    handed out; `ghosts`: blobs whose existence a cache still tells.
    """

    user = "alice"
    password = "secret-3f9a"

    def __init__(self, quirks: Quirks = DISTRIBUTION, **changes: Any) -> None:
        super().__init__(handler=_Handler)
        self.quirks = replace(quirks, **changes)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.tokens: dict[str, Token] = {}
        self.asked: list[tuple[str, ...]] = []  # the scopes of each token
        self.ghosts: set[str] = set()
        self.tag_rule = False
        self.storage_url = self.token_url = ""

    def __enter__(self) -> OCIStandIn:
        super().__enter__()
        self.storage_url = self.listen("storage", self._storage)
        self.token_url = self.listen("tokens", self._token)
        return self

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def revoke(self) -> None:
        """Let no token count any more."""
        self.tokens.clear()

    def trace(self) -> Any:
        return {name: (sorted(one.tags), sorted(one.blobs)) for name, one in self.repositories.items()}

    # -- the registry

    def answer(self, request: Request, body: Any) -> Answer:
        content = b"".join(body)
        with self.lock:
            if request.path in ("/v2/", "/v2"):
                self._require(request)
                return json_answer(200, {})
            if request.path == "/v2/_catalog":
                return self._catalog(request)
            if route := _ROUTE.fullmatch(request.path):
                return self._route(request, content, route["name"], route["what"], (route["rest"] or "/")[1:])
        return Answer(404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"})

    def _route(self, request: Request, content: bytes, name: str, what: str, rest: str) -> Answer:
        writes = request.method in ("POST", "PUT", "PATCH") or what == "blobs/uploads"
        needs = "delete" if request.method == "DELETE" and what == "manifests" else "pull,push" if writes else "pull"
        self._require(request, f"repository:{name}:{needs}")
        if writes and not self.quirks.repositories_exist:
            self.repositories.setdefault(name, Repository())
        repository = self.repositories.get(name)
        if repository is None:
            raise _refused(404, "NAME_UNKNOWN", "repository name not known to registry")
        match what, request.method:
            case "tags/list", "GET":
                return self._paged(request, "tags", sorted(repository.tags), name=name)
            case "referrers", "GET" if self.quirks.referrers:
                return self._referrers(repository, rest)
            case "manifests", "GET" | "HEAD":
                return self._manifest(request, repository, rest)
            case "manifests", "PUT":
                return self._put_manifest(request, repository, rest, content)
            case "manifests", "DELETE":
                return self._delete(repository, rest)
            case "blobs", "GET" | "HEAD":
                return self._blob(request, repository, rest)
            case "blobs/uploads", "POST":
                return self._begin(request, repository, name)
            case "blobs/uploads", "PUT":
                return self._finish(request, repository, name, rest, content)
            case "blobs/uploads", "PATCH":
                return self._piece(name, rest, content)
            case "blobs/uploads", "DELETE":
                self.uploads.pop(rest, None)
                return Answer(204)
        raise _refused(405, "UNSUPPORTED", "The operation is unsupported.")

    def _require(self, request: Request, scope: str = "") -> None:
        given = request.headers.get("authorization", "")
        if self.quirks.auth == "basic" and given != _basic(self.user, self.password):
            raise _refused(
                401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="modelsync"'}
            )
        if self.quirks.auth != "bearer":
            return
        token = self.tokens.get(given.removeprefix("Bearer "))
        wanted = _actions([scope]) if scope else {}
        granted = _actions(token.scopes) if token else {}
        if token is None or token.ends < time.monotonic():
            error = ',error="invalid_token"' if given else ""
        elif all(granted.get(key, set()) >= actions for key, actions in wanted.items()):
            return
        else:
            error = ',error="insufficient_scope"'
        told = f',scope="{scope}"' if scope else ""
        header = f'Bearer realm="{self.token_url}/token",service="{self.quirks.service}"{told}{error}'
        raise _refused(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": header})

    def _catalog(self, request: Request) -> Answer:
        self._require(request, "registry:catalog:*")
        if not self.quirks.catalog:
            raise _refused(401, "UNAUTHORIZED", "unauthorized to list catalog")
        return self._paged(request, "repositories", sorted(self.repositories))

    def _paged(self, request: Request, key: str, entries: list[str], **more: str) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self.quirks.page:
            if int(request.query.get("n", "0")) > 1000:
                raise _refused(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested")
            last = request.query.get("last", "")
            entries = [entry for entry in entries if entry > last]
            if len(entries) > self.quirks.page:
                entries = entries[: self.quirks.page]
                path = request.path if self.quirks.relative else f"{self.url}{request.path}"
                headers["Link"] = f'<{path}?n={self.quirks.page}&last={entries[-1]}>; rel="next"'
        return Answer(200, json.dumps({**more, key: entries or None}).encode(), headers)

    # -- manifests

    def _manifest(self, request: Request, repository: Repository, reference: str) -> Answer:
        digest = repository.tags.get(reference, reference)
        media_type, content = repository.manifests.get(digest, ("", b""))
        if not content or media_type not in request.headers.get("accept", ""):
            raise _refused(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if request.headers.get("if-none-match") == f'"{digest}"':
            return Answer(304)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return Answer(200, content, headers)

    def _put_manifest(self, request: Request, repository: Repository, reference: str, content: bytes) -> Answer:
        if len(content) > 4 * MIB:
            raise _refused(413, "MANIFEST_INVALID", "http: request body too large")
        manifest = json.loads(content)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        media_type = request.headers.get("content-type", "")
        if media_type != manifest.get("mediaType", media_type):
            raise _refused(400, "MANIFEST_INVALID", "manifest invalid")
        named = [manifest["config"], *manifest.get("layers", [])] if "config" in manifest else []
        for blob in named:
            if blob["digest"] not in repository.blobs and blob["digest"] not in self.ghosts:
                raise _refused(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        is_moved = repository.tags.get(reference, digest) != digest
        if is_moved and self.tag_rule and self.quirks.immutable:
            status, code = self.quirks.immutable
            raise _refused(status, code, f"the tag {reference} is immutable")
        if any(blob["digest"] in self.ghosts for blob in named):
            return Answer(201, headers={"Docker-Content-Digest": digest})  # and has not got it
        repository.manifests[digest] = (media_type, content)
        if not reference.startswith("sha256:"):
            repository.tags[reference] = digest
        subject = manifest.get("subject")
        more = {"OCI-Subject": subject["digest"]} if subject and self.quirks.referrers else {}
        return Answer(201, headers={"Docker-Content-Digest": digest, **more})

    def _referrers(self, repository: Repository, subject: str) -> Answer:
        found = []
        for digest, (media_type, content) in repository.manifests.items():
            manifest = json.loads(content)
            if manifest.get("subject", {}).get("digest") == subject:
                own = {"mediaType": media_type, "digest": digest, "size": len(content)}
                found.append({**own, "artifactType": manifest.get("artifactType")})
        kind = "application/vnd.oci.image.index.v1+json"
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": found}).encode()
        return Answer(200, content, {"Content-Type": kind})

    def _delete(self, repository: Repository, reference: str) -> Answer:
        how, is_digest = self.quirks.delete, reference.startswith("sha256:")
        if how == "no":
            raise _refused(405, "UNSUPPORTED", "The operation is unsupported.")
        if how == "hidden":
            raise _refused(404, "MANIFEST_UNKNOWN", "unknown manifest")
        if not is_digest and how == "digest":
            raise _refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        is_kept = reference in repository.tags or reference in repository.tags.values()
        if is_kept and self.tag_rule and self.quirks.immutable:
            raise _refused(self.quirks.immutable[0], self.quirks.immutable[1], f"the tag {reference} is immutable")
        if not is_digest:
            if repository.tags.pop(reference, None) is None:
                raise _refused(404, "MANIFEST_UNKNOWN", "unknown manifest")
            return Answer(202)
        if reference not in repository.manifests:
            raise _refused(404, "MANIFEST_UNKNOWN", "unknown manifest")
        if how == "untagged" and reference in repository.tags.values():
            raise _refused(400, "GOOGLE_MANIFEST_DANGLING_TAG", "manifest is still referenced by tag")
        del repository.manifests[reference]
        repository.tags = {tag: digest for tag, digest in repository.tags.items() if digest != reference}
        return Answer(202)

    # -- blobs

    def _blob(self, request: Request, repository: Repository, digest: str) -> Answer:
        if digest in self.ghosts and digest not in repository.blobs:
            if request.method == "HEAD":
                return Answer(200, headers={"Docker-Content-Digest": digest})
            raise _refused(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if digest not in repository.blobs:
            raise _refused(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if self.quirks.redirects:
            return Answer(307, headers={"Location": f"{self.storage_url}/{digest}?X-Amz-Signature=3f9a"})
        return _ranged(request, repository.blobs[digest], {"ETag": f'"{digest}"', "Docker-Content-Digest": digest})

    def _storage(self, request: Request, body: Any) -> Answer:
        if "authorization" in request.headers:
            return Answer(
                400, b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
            )
        digest = request.path[1:]
        held = [one.blobs[digest] for one in self.repositories.values() if digest in one.blobs]
        return _ranged(request, held[0], {"ETag": '"of-the-storage"'}) if held else Answer(404)

    def _begin(self, request: Request, repository: Repository, name: str) -> Answer:
        digest, other = request.query.get("mount"), self.repositories.get(request.query.get("from", ""))
        if digest and other and digest in other.blobs:
            if self.quirks.auth == "bearer":
                self._require(request, f"repository:{request.query['from']}:pull")
            repository.blobs[digest] = other.blobs[digest]
            return Answer(201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})
        upload = secrets.token_hex(8)
        self.uploads[upload] = b""
        return self._accepted(name, upload)

    def _accepted(self, name: str, upload: str) -> Answer:
        base = "" if self.quirks.relative else self.url
        state = secrets.token_hex(4)
        headers = {"Location": f"{base}/v2/{name}/blobs/uploads/{upload}?_state={state}", "Range": "0-0"}
        return Answer(202, headers=headers)

    def _piece(self, name: str, upload: str, content: bytes) -> Answer:
        if not self.quirks.chunks:
            raise _refused(416, "BLOB_UPLOAD_INVALID", "chunked uploads are not supported")
        if upload not in self.uploads:
            raise _refused(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        self.uploads[upload] += content
        return self._accepted(name, upload)

    def _finish(self, request: Request, repository: Repository, name: str, upload: str, content: bytes) -> Answer:
        if upload not in self.uploads:
            raise _refused(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        whole, digest = self.uploads[upload] + content, request.query.get("digest", "")
        if not whole and not self.quirks.empty_blobs:
            raise _refused(400, "EmptyUploadException", "an upload holds no bytes")
        if f"sha256:{hashlib.sha256(whole).hexdigest()}" != digest:
            raise _refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        del self.uploads[upload]
        repository.blobs[digest] = whole
        return Answer(201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    # -- tokens

    def _token(self, request: Request, body: Any) -> Answer:
        given = request.headers.get("authorization", "")
        if given and given != _basic(self.user, self.password):
            return json_answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})
        asked = tuple(_scopes_in(request))
        granted = asked if given else tuple(_pull_only(scope) for scope in asked)
        text = secrets.token_urlsafe(24)
        life = self.quirks.token_seconds
        with self.lock:
            self.asked.append(asked)
            self.tokens[text] = Token(frozenset(granted), time.monotonic() + (60 if life is None else life))
        return json_answer(200, {"token": text, **({} if life is None else {"expires_in": life})})


def _scopes_in(request: Request) -> list[str]:
    text = request.query.get("scope", "")
    return text.split() if text else []


def _pull_only(scope: str) -> str:
    return f"{scope.rpartition(':')[0]}:pull" if scope.startswith("repository:") else scope


def _actions(scopes: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for scope in scopes:
        key, _, actions = scope.rpartition(":")
        found.setdefault(key, set()).update(actions.split(","))
    return found


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Refusal:
    body: Json = {"errors": [{"code": code, "message": message, "detail": None}]}
    answer = json_answer(status, body)
    return Refusal(replace(answer, headers={**answer.headers, **(headers or {})}))


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    if "if-match" in request.headers and request.headers["if-match"] != headers["ETag"]:
        return Answer(412)
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if found is None:
        return Answer(200, content, {**headers, "Accept-Ranges": "bytes"})
    first, last = int(found[1]), min(int(found[2]), len(content) - 1)
    if first > last:
        return Answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
    said = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Answer(206, content[first : last + 1], {**headers, **said})

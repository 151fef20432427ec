"""A stand-in for the Hugging Face Hub and its CDN: models as git repositories, LFS objects, rate limits, mirrors.

It behaves as the exchanges in `tests/data/huggingface-exchanges.json` show, and is proved by the unmodified clients
(`make test-vendors`). The CDN refuses what S3 refuses: a credential beside a signature, an expired signature.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import gzip
import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import yaml

from tests.standins import http_server
from tests.standins.http_server import Answer, Json, Refusal, Request, StandIn, file_answer, json_answer

ATTRIBUTES = b"".join(
    b"%s filter=lfs diff=lfs merge=lfs -text\n" % pattern
    for pattern in (b"*.bin", b"*.safetensors", b"*.onnx", b"*.pt", b"*.gguf")
)
REGULAR_LIMIT = 10 << 20
WRITE, READ = "hf_write_token", "hf_read_token"


@dataclass
class HubRequest(Request):
    """`raw`: the path as it came, where `%2F` and `/` differ; `raw_query` likewise."""

    raw: str = ""
    raw_query: str = ""


class Handler(http_server.Handler):
    def parsed(self) -> Request:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return HubRequest(
            self.server.origin, self.command, unquote(url.path), query, headers, raw=url.path, raw_query=url.query
        )

    def content(self) -> Any:
        kind = self.headers.get("Content-Type", "")
        if self.entry.origin != "api" or ("json" not in kind and "form" not in kind):
            return self.body()
        raw = b"".join(self.body())
        self.entry.body = raw if "ndjson" in kind or "form" in kind else json.loads(raw or b"null")
        return self.entry.body


@dataclass(frozen=True)
class File:
    """A file of a commit: small ones hold their content, large ones the SHA-256 of an object."""

    size: int
    oid: str
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def small(cls, content: bytes) -> File:
        return cls(len(content), blob_id(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> File:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(size, blob_id(pointer.encode()), None, sha256)


Tree = dict[str, File]


@dataclass(frozen=True)
class Commit:
    id: str
    parent: Commit | None
    tree: Tree
    title: str
    description: str
    date: str

    def history(self) -> Iterator[Commit]:
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    """One model. `issues`: what the Hub's scan has found, path → level."""

    id: str
    created: str
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[str, Commit] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    private: bool = False
    gated: str | bool = False
    let_in: set[str] = field(default_factory=set)
    disabled: bool = False
    issues: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    def at(self, revision: str) -> Commit | None:
        named = self.branches.get(revision) or self.tags.get(revision) or self.pulls.get(revision)
        if named is None and len(revision) >= 7:
            named = next((commit for sha, commit in self.commits.items() if sha.startswith(revision)), None)
        return named


@dataclass
class Upload:
    sha256: str
    size: int
    chunk: int
    parts: dict[int, bytes] = field(default_factory=dict)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class HuggingFaceStandIn(StandIn):
    """The Hub at `url`, the CDN at `cdn_url`.

    `page`: entries of a page; `chunk_size`: files above it go up in parts of it; `quotas`: kind → requests that are
    left; `reset`: seconds until they begin anew; `hidden`: headers that a mirror loses, in lower case; `upstream`:
    what a mirror calls itself in links; `small_redirects`: whether small files come by way of `resolve-cache`;
    `is_strict`: whether answers set cookies, and redirects are followed only with their query.
    """

    def __init__(self, scratch: Path, *, chunk_size: int = 5 << 20, **more: Any) -> None:
        super().__init__(handler=Handler, **more)
        self.objects = scratch / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.users = {WRITE: "alice", READ: "bob"}
        self.orgs = {"alice": ["acme"], "bob": []}
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.uploads: dict[str, Upload] = {}
        self.page = 1000
        self.chunk_size = chunk_size
        self.quotas: dict[str, int] = {}
        self.reset = 1
        self.hidden: set[str] = set()
        self.upstream: str | None = None
        self.small_redirects = True
        self.is_strict = False
        self.expires = 4_000_000_000
        self.is_read_only = False
        self.cdn_url = ""
        self._numbers = itertools.count()

    def __enter__(self) -> HuggingFaceStandIn:
        super().__enter__()
        self.cdn_url = self.listen("cdn", self.cdn)
        return self

    # ---- what tests do without asking

    def publish(self, name: str, files: dict[str, bytes], *, title: str = "update", keep: bool = False) -> str:
        """Make a commit on `main`, of these files alone or, with `keep`, of them and what was there; return its id."""
        with self.lock:
            repository = self.repositories.get(name) or self.create(name)
            old = repository.head.tree
            tree = dict(old) if keep else {".gitattributes": old[".gitattributes"]}
            tree |= {path: self.store(path, content) for path, content in files.items()}
            return self.commit(repository, "main", tree, title).id

    def store(self, path: str, content: bytes) -> File:
        if not self.is_large(path, len(content), content[:512]):
            return File.small(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.keep(sha256, content)
        return File.large(sha256, len(content))

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep an object, whole from its first moment: it may be there already, and somebody may look at it."""
        written = self.objects / f"{next(self._numbers)}.new"
        written.write_bytes(content)
        written.rename(self.objects / sha256)

    def create(self, name: str, *, private: bool = False) -> Repository:
        repository = Repository(name, self.now(), {}, private=private)
        self.repositories[name] = repository
        self.commit(repository, "main", {".gitattributes": File.small(ATTRIBUTES)}, "initial commit")
        return repository

    def commit(self, repository: Repository, branch: str, tree: Tree, title: str, description: str = "") -> Commit:
        parent = repository.branches.get(branch)
        facts = repr((sorted((path, file.oid) for path, file in tree.items()), parent and parent.id, title))
        sha = hashlib.sha1(f"{facts} {next(self._numbers)}".encode(), usedforsecurity=False).hexdigest()
        made = Commit(sha, parent, tree, title, description, self.now())
        repository.commits[sha] = repository.branches[branch] = made
        return made

    def tree(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, without `.gitattributes`."""
        commit = self.repositories[name].at(revision)
        assert commit is not None
        return {
            path: file.content if file.content is not None else (self.objects / str(file.sha256)).read_bytes()
            for path, file in commit.tree.items()
            if path != ".gitattributes"
        }

    def now(self) -> str:
        return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        if not size:
            return False
        patterns = [line.split()[0].decode() for line in ATTRIBUTES.splitlines()]
        is_listed = any(fnmatch.fnmatchcase(path.rpartition("/")[2], pattern) for pattern in patterns)
        return is_listed or size > REGULAR_LIMIT or b"\0" in sample

    # ---- the Hub

    def answer(self, request: Request, body: Any) -> Answer:
        assert isinstance(request, HubRequest)
        with self.lock:
            answer = self.limited(request) or self.routed(request, body)
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in self.hidden}
            kind = self.kind_of(request)
            if kind in self.quotas:
                headers["RateLimit"] = f'"{kind}";r={self.quotas[kind]};t={self.reset}'
                headers["RateLimit-Policy"] = f'"fixed window";"{kind}";q=1000;w=300'
            headers["X-Request-Id"] = f"Root=1-{next(self._numbers)}"
            if self.is_strict:
                headers["Set-Cookie"] = "token=of-a-session; Path=/"  # which the CDN, of the same host here, refuses
            is_chunked = answer.chunked or ("content-length" in self.hidden and request.method == "GET")
            return replace(answer, headers=headers, chunked=is_chunked)

    def kind_of(self, request: Request) -> str:
        return "resolvers" if re.search(r"/resolve(-cache)?/", request.path) else "api"

    def limited(self, request: Request) -> Answer | None:
        kind = self.kind_of(request)
        if kind not in self.quotas:
            return None
        if self.quotas[kind] == 0:
            return refusal(429, "We had to rate limit you.")
        self.quotas[kind] -= 1
        return None

    def routed(self, request: HubRequest, body: Any) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        user = self.users.get(token)
        if token and user is None:
            return refusal(401, "Invalid credentials in Authorization header")
        for method, pattern, serve in self.routes:
            found = re.fullmatch(pattern, request.raw)
            asked = "GET" if request.method == "HEAD" and "HEAD" not in method.split() else request.method
            if found and asked in method.split():
                if self.is_read_only and request.method not in ("GET", "HEAD"):
                    return refusal(404, "Repository not found", "RepoNotFound")
                parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                return serve(self, request, body, user, **parts)
        return refusal(404, "Not found")

    def whoami(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        if user is None:
            return refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.orgs[user]]
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}}
        return json_answer(200, {"type": "user", "name": user, "fullname": user.title(), "orgs": orgs, "auth": auth})

    def found(self, request: HubRequest, name: str, user: str | None, *, write: bool = False) -> Repository:
        if name in self.moved:
            location = f"{self.url}{request.raw.replace(quote(name), quote(self.moved[name]), 1)}"
            if "/resolve/" in request.raw:
                location = location.removeprefix(self.url)
            raise Refusal(replace(refusal(307, "moved"), headers={"Location": f"{location}?{request.raw_query}"}))
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not self.owns(user, name)):
            said = "Repository not found" if user else "Invalid username or password."
            raise Refusal(refusal(404 if user else 401, said, "RepoNotFound"))
        if write and not self.owns(user, name):
            raise Refusal(refusal(403, f"You don't have the required permissions to perform this action on {name}."))
        return repository

    def writable(self, request: HubRequest, name: str, user: str | None) -> Repository:
        """What a call about a commit may change; a pull request may be made by any user who sees the model."""
        is_proposal = "create_pr" in request.query and user is not None
        return self.found(request, name, user, write=not is_proposal)

    def owns(self, user: str | None, name: str) -> bool:
        return user is not None and name.partition("/")[0] in (user, *self.orgs[user])

    def at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Refusal(refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound"))
        return commit

    def create_repo(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        owner = body.get("organization") or user
        name = f"{owner}/{body['name']}"
        if not self.owns(user, name):
            return refusal(403, "You don't have the rights to create a model under this namespace")
        if name in self.repositories:
            return json_answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        private = body.get("private") or body.get("visibility") == "private"
        self.create(name, private=bool(private))
        return json_answer(200, {"url": f"{self.url}/{name}", "name": name, "id": f"{next(self._numbers):024x}"})

    def move_repo(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        old, new = body["fromRepo"], body["toRepo"]
        self.rename(old, new)
        return json_answer(200, "OK")

    def rename(self, old: str, new: str) -> None:
        repository = self.repositories.pop(old)
        repository.id = new
        self.repositories[new] = repository
        self.moved[old] = new

    def delete_repo(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        name = f"{body.get('organization') or user}/{body['name']}"
        self.found(request, name, user, write=True)
        del self.repositories[name]
        return json_answer(200, "OK")

    def info(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str = "main") -> Answer:
        repository = self.found(request, name, user)
        return json_answer(200, self.info_of(repository, self.at(repository, revision), request.query))

    def info_of(self, repository: Repository, commit: Commit, query: dict[str, str]) -> Json:
        card = self.card(commit)
        facts: Json = {
            "_id": "0" * 24,
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.id.partition("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "createdAt": repository.created,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": repository.disabled,
            "downloads": 0,
            "likes": 0,
            "tags": [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])],
            "usedStorage": sum(file.size for file in commit.tree.values()),
            "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
            "cardData": card,
            "spaces": [],
        }
        if "expand" in query:
            return {key: facts[key] for key in ("id", "sha", "lastModified")}
        if query.get("blobs") == "true":
            facts["siblings"] = [
                {"rfilename": path, "blobId": file.oid, "size": file.size}
                | ({"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 132}} if file.sha256 else {})
                for path, file in sorted(commit.tree.items())
            ]
        if query.get("securityStatus") == "true":
            issues = [{"path": path, "level": level} for path, level in repository.issues.items()]
            facts["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": issues}
        return facts

    def card(self, commit: Commit) -> Json:
        text = (commit.tree.get("README.md") or File.small(b"")).content or b""
        found = re.match(rb"---\n(.*?)\n---", text, re.DOTALL)
        card = yaml.safe_load(found[1]) if found else None
        return card if isinstance(card, dict) else {}

    def tree_page(
        self, request: HubRequest, body: Any, user: str | None, name: str, revision: str, folder: str = ""
    ) -> Answer:
        repository = self.found(request, name, user)
        commit = self.at(repository, revision)
        prefix = f"{folder}/" if folder else ""
        entries = [entry_of(path, file) for path, file in sorted(commit.tree.items()) if path.startswith(prefix)]
        folders = {"/".join(path.split("/")[:depth]) for path in commit.tree for depth in range(1, path.count("/") + 1)}
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        if request.query.get("recursive") != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        return self.paged(request, sorted(entries, key=lambda entry: str(entry["path"])))

    def paged(self, request: HubRequest, entries: list[Json]) -> Answer:
        start = int(request.query.get("cursor", "0"))
        answer = json_answer(200, entries[start : start + self.page])
        if start + self.page >= len(entries):
            return answer
        kept = "&".join(f"{key}={quote(value)}" for key, value in request.query.items() if key != "cursor")
        link = f'<{self.upstream or self.url}{request.raw}?{kept}&cursor={start + self.page}>; rel="next"'
        return replace(answer, headers={**answer.headers, "Link": link})

    def paths_info(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        commit = self.at(self.found(request, name, user), revision)
        fields = parse_qsl((body or b"").decode()) if isinstance(body, bytes) else []
        wanted = [value for key, value in fields if key == "paths"] or (body or {}).get("paths", [])
        return json_answer(200, [entry_of(path, commit.tree[path]) for path in wanted if path in commit.tree])

    def refs(self, request: HubRequest, body: Any, user: str | None, name: str) -> Answer:
        repository = self.found(request, name, user)

        def told(kind: str, refs: dict[str, Commit]) -> list[Json]:
            return [{"name": key, "ref": f"{kind}{key}", "targetCommit": commit.id} for key, commit in refs.items()]

        listed = {"branches": told("refs/heads/", repository.branches), "tags": told("refs/tags/", repository.tags)}
        if request.query.get("include_prs"):
            listed["pullRequests"] = told("", repository.pulls)
        return json_answer(200, {**listed, "converts": []})

    def discussions(self, request: HubRequest, body: Any, user: str | None, name: str) -> Answer:
        repository = self.found(request, name, user)
        listed = [
            {
                "num": int(ref.rpartition("/")[2]),
                "title": commit.title,
                "status": status,
                "isPullRequest": True,
                "createdAt": commit.date,
                "author": {"name": "alice"},
                "repo": {"name": repository.id, "type": "model"},
            }
            for ref, commit in repository.pulls.items()
            if (status := "closed" if ref in repository.closed else "open") == request.query.get("status", status)
        ]
        return json_answer(200, {"discussions": listed, "count": len(listed), "start": 0})

    def commits(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        commit = self.at(self.found(request, name, user), revision)
        listed = [
            {
                "id": one.id,
                "title": one.title,
                "message": one.description,
                "authors": [{"user": "alice", "avatar": ""}],
                "date": one.date,
            }
            for one in commit.history()
        ]
        return self.paged(request, listed)

    def models(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        query = request.query
        chosen = [
            repository
            for name, repository in sorted(self.repositories.items())
            if (not repository.private or self.owns(user, name))
            and query.get("author", name.partition("/")[0]) == name.partition("/")[0]
            and query.get("search", "").lower() in name.lower()
        ]
        listed = []
        for repository in chosen:
            facts = self.info_of(repository, repository.head, {})
            if query.get("full") != "true" and "sort" not in query:
                facts = {key: facts[key] for key in facts if key not in ("sha", "lastModified", "siblings", "cardData")}
            tags = facts["tags"]
            if "filter" not in query or query["filter"] in tags:
                listed.append(facts)
        return self.paged(request, listed)

    # ---- bytes down

    def resolve(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str, path: str) -> Answer:
        repository = self.found(request, name, user)
        if repository.gated and not self.owns(user, name) and user not in repository.let_in:
            said = f"Access to model {name} is restricted"
            return refusal(403 if user else 401, said, "GatedRepo")
        commit = self.at(repository, revision)
        file = commit.tree.get(path)
        if file is None:
            answer = refusal(404, "Entry not found", "EntryNotFound")
            return replace(answer, headers={**answer.headers, "X-Repo-Commit": commit.id})
        linked = {
            "X-Repo-Commit": commit.id,
            "Accept-Ranges": "bytes",
            "X-Linked-Etag": f'"{file.sha256 or file.oid}"',
            "X-Linked-Size": str(file.size),
        }
        if file.sha256:
            shown = quote(f"inline; filename*=UTF-8''{path.rpartition('/')[2]}")
            location = f"{self.cdn_url}/lfs/{file.sha256}?response-content-disposition={shown}&{self.signature()}"
            return Answer(302, b"Found.", {**linked, "Location": location})
        if self.small_redirects:
            location = f"/api/resolve-cache/models/{quote(name)}/{commit.id}/{quote(path, safe='')}?etag={file.oid}"
            return Answer(307, b"Temporary Redirect.", {**linked, "Location": location})
        return self.small(request, file, {"X-Repo-Commit": commit.id})

    def resolve_cache(
        self, request: HubRequest, body: Any, user: str | None, name: str, revision: str, path: str
    ) -> Answer:
        commit = self.at(self.found(request, name, user), revision)
        if self.is_strict and request.query.get("etag") != commit.tree[path].oid:  # clients of 0.36 lose the query
            return refusal(400, "the address is not the one that was given")
        return self.small(request, commit.tree[path], {"X-Repo-Commit": commit.id})

    def small(self, request: HubRequest, file: File, headers: dict[str, str]) -> Answer:
        """A small file: compressed, without length and with a weak tag to whoever takes gzip."""
        content = file.content or b""
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "text/plain; charset=utf-8"}
        if "gzip" in request.headers.get("accept-encoding", "") and request.method == "GET":
            headers |= {"ETag": f'W/"{file.oid}"', "Content-Encoding": "gzip"}
            return Answer(200, gzip.compress(content), headers, chunked=True)
        headers["ETag"] = f'"{file.oid}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, content[first : last + 1], headers)

    # ---- bytes up

    def validate_yaml(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        return json_answer(200, {"errors": [], "warnings": []})

    def preupload(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        repository = self.writable(request, name, user)
        head = self.at(repository, revision)
        if len(body["files"]) > 256:
            return refusal(400, "too many files")
        ignored = (head.tree.get(".gitignore") or File.small(b"")).content or b""
        told = []
        for file in body["files"]:
            sample = base64.b64decode(file["sample"])
            is_large = self.is_large(file["path"], file["size"], sample)
            entry = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular"}
            entry["shouldIgnore"] = any(
                fnmatch.fnmatchcase(file["path"], line.decode()) for line in ignored.splitlines() if line
            )
            if there := head.tree.get(file["path"]):
                entry["oid"] = there.sha256 or there.oid
            told.append(entry)
        return json_answer(200, {"files": told, "commitOid": head.id})

    def lfs_batch(self, request: HubRequest, body: Any, user: str | None, name: str) -> Answer:
        self.found(request, name, user, write="ref" in body)
        assert body["operation"] == "upload"
        if len(body["objects"]) > 256:
            return refusal(413, "too many objects")
        told = []
        is_in_parts = False
        for wanted in body["objects"]:
            sha256, size = wanted["oid"], wanted["size"]
            entry: Json = {"oid": sha256, "size": size, "authenticated": True}
            if not (self.objects / sha256).exists():
                upload: Json = {"href": f"{self.cdn_url}/put/{sha256}?size={size}&{self.signature()}"}
                if size > self.chunk_size and "multipart" in body["transfers"]:
                    is_in_parts = True
                    upload = self.begin(sha256, size)
                verify = {"href": f"{self.url}/{name}.git/info/lfs/objects/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            told.append(entry)
        answer = json_answer(200, {"transfer": "multipart" if is_in_parts else "basic", "objects": told})
        return replace(answer, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def begin(self, sha256: str, size: int) -> Json:
        upload_id = f"{next(self._numbers):032x}"
        self.uploads[upload_id] = Upload(sha256, size, self.chunk_size)
        count = -(-size // self.chunk_size)
        parts = {
            f"{number:05}": f"{self.cdn_url}/part/{upload_id}/{number}?{self.signature()}"
            for number in range(1, count + 1)
        }
        href = f"{self.url}/api/complete_multipart?uploadId={upload_id}&sig=x"
        return {"href": href, "header": {"chunk_size": str(self.chunk_size), **parts}}

    def complete(self, request: HubRequest, body: Any, user: str | None) -> Answer:
        upload = self.uploads[request.query["uploadId"]]
        listed = {part["partNumber"]: part["etag"] for part in body["parts"]}
        etags = {
            number: f'"{hashlib.md5(part, usedforsecurity=False).hexdigest()}"' for number, part in upload.parts.items()
        }
        content = b"".join(upload.parts[number] for number in sorted(upload.parts))
        if listed != etags or hashlib.sha256(content).hexdigest() != upload.sha256:
            return refusal(400, "the parts are not those that were sent")
        self.keep(upload.sha256, content)
        return json_answer(200, {"success": True})

    def verify(self, request: HubRequest, body: Any, user: str | None, name: str) -> Answer:
        place = self.objects / body["oid"]
        if user is None or not place.exists() or place.stat().st_size != body["size"]:
            return refusal(404, "the object is not there")
        return json_answer(200, body)

    def make_commit(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        repository = self.writable(request, name, user)
        head = self.at(repository, revision)
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit", head.id) != head.id:
            return refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            self.apply(tree, line["key"], line["value"])
        description = header.get("description") or ""
        if request.query.get("create_pr"):
            number = len(repository.pulls) + 1
            ref = f"refs/pr/{number}"
            repository.branches[ref] = head
            made = self.commit(repository, ref, tree, header["summary"], description)
            repository.pulls[ref] = repository.branches.pop(ref)
            more = {"pullRequestUrl": f"{self.url}/{name}/discussions/{number}"}
        else:
            made = self.commit(repository, revision, tree, header["summary"], description)
            more = {}
        url = f"{self.url}/{name}/commit/{made.id}"
        return json_answer(200, {"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": "", **more})

    def apply(self, tree: Tree, key: str, value: Json) -> None:
        path = value["path"]
        if any(segment in (".git", ".cache", "..") for segment in path.split("/")):
            raise Refusal(refusal(400, f"Invalid path: {path}"))
        match key:
            case "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error:
                    raise Refusal(refusal(400, "bad base64")) from None
                if self.is_large(path, len(content), content[:512]):
                    raise Refusal(refusal(400, f"{path} must be an LFS file"))
                tree[path] = File.small(content)
            case "lfsFile":
                place = self.objects / value["oid"]
                if not place.exists() or place.stat().st_size != value["size"]:
                    raise Refusal(refusal(400, f"the LFS object of {path} is missing"))
                tree[path] = File.large(value["oid"], value["size"])
            case "deletedFile":
                if path not in tree:
                    raise Refusal(refusal(404, f"{path} is not there", "EntryNotFound"))
                del tree[path]
            case "deletedFolder":
                for inside in [one for one in tree if one.startswith(f"{path.rstrip('/')}/")]:
                    del tree[inside]
            case _:
                raise Refusal(refusal(400, f"unknown key {key}"))

    def tag(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        repository = self.found(request, name, user, write=True)
        if request.method == "DELETE":
            if repository.tags.pop(revision, None) is None:
                return refusal(404, f"Tag not found: {revision}", "RevisionNotFound")
            return json_answer(200, "OK")
        commit = self.at(repository, revision)
        if body["tag"] in repository.tags:
            return refusal(409, f"Tag reference exists already: refs/tags/{body['tag']}")
        repository.tags[body["tag"]] = commit
        return json_answer(200, {"ref": f"refs/tags/{body['tag']}"})

    def branch(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        repository = self.found(request, name, user, write=True)
        if request.method == "DELETE":
            if repository.branches.pop(revision, None) is None:
                return refusal(404, f"Branch not found: {revision}", "RevisionNotFound")
            return json_answer(200, "OK")
        if revision in repository.branches:
            return refusal(409, f"Reference already exists: refs/heads/{revision}")
        repository.branches[revision] = self.at(repository, (body or {}).get("startingPoint") or "main")
        return json_answer(200, {"ref": f"refs/heads/{revision}"})

    def squash(self, request: HubRequest, body: Any, user: str | None, name: str, revision: str) -> Answer:
        repository = self.found(request, name, user, write=True)
        tree = repository.branches.pop(revision).tree
        repository.commits.clear()
        self.commit(repository, revision, tree, (body or {}).get("message", "squash"))
        return json_answer(200, "OK")

    _MODEL = r"/api/models/(?P<name>[^/]+/[^/]+)"
    _ID = r"/(?P<name>[^/]+/[^/]+)"
    routes: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
        ("GET", r"/api/whoami-v2", whoami),
        ("GET", r"/api/models", models),
        ("POST", r"/api/repos/create", create_repo),
        ("POST", r"/api/repos/move", move_repo),
        ("DELETE", r"/api/repos/delete", delete_repo),
        ("POST", r"/api/validate-yaml", validate_yaml),
        ("POST", r"/api/complete_multipart", complete),
        (
            "GET HEAD",
            r"/api/resolve-cache/models/(?P<name>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)",
            resolve_cache,
        ),
        ("GET", _MODEL, info),
        ("GET", _MODEL + r"/revision/(?P<revision>[^/]+)", info),
        ("GET", _MODEL + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+)?)?", tree_page),
        ("POST", _MODEL + r"/paths-info/(?P<revision>[^/]+)", paths_info),
        ("GET", _MODEL + r"/refs", refs),
        ("GET", _MODEL + r"/discussions", discussions),
        ("GET", _MODEL + r"/commits/(?P<revision>[^/]+)", commits),
        ("POST", _MODEL + r"/preupload/(?P<revision>[^/]+)", preupload),
        ("POST", _MODEL + r"/commit/(?P<revision>[^/]+)", make_commit),
        ("POST DELETE", _MODEL + r"/tag/(?P<revision>[^/]+)", tag),
        ("POST DELETE", _MODEL + r"/branch/(?P<revision>[^/]+)", branch),
        ("POST", _MODEL + r"/super-squash/(?P<revision>[^/]+)", squash),
        ("POST", _ID + r"\.git/info/lfs/objects/batch", lfs_batch),
        ("POST", _ID + r"\.git/info/lfs/objects/verify", verify),
        ("GET HEAD", _ID + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )

    # ---- the CDN, and the bucket behind it

    def signature(self) -> str:
        return f"Expires={self.expires}&Signature=s{next(self._numbers)}"

    def cdn(self, request: Request, body: Any) -> Answer:
        if "authorization" in request.headers or "cookie" in request.headers:
            return xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        if not request.query.get("Signature") or int(request.query.get("Expires", "0")) < time.time():
            return xml(403, "AccessDenied", "Request has expired")
        kind, _, rest = request.path.strip("/").partition("/")
        if kind == "lfs":
            place = self.objects / rest
            headers = {"ETag": f'"{hashlib.md5(rest.encode(), usedforsecurity=False).hexdigest()}-7"'}
            headers["Cache-Control"] = "public, max-age=31536000"
            # What accepts gzip gets all of it, whatever range it asks for.
            wanted = "" if "gzip" in request.headers.get("accept-encoding", "") else request.headers.get("range", "")
            answer = file_answer(place, place.stat().st_size, headers, wanted)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in self.hidden}
            return replace(answer, headers=kept, chunked="content-length" in self.hidden)
        content = b"".join(body)
        etag = {"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'}
        if kind == "part":
            upload_id, _, number = rest.partition("/")
            self.uploads[upload_id].parts[int(number)] = content
        elif hashlib.sha256(content).hexdigest() != rest:
            return xml(400, "BadDigest", "The bytes are not those of the object")
        else:
            self.keep(rest, content)
        return Answer(200, b"", etag)


def entry_of(path: str, file: File) -> Json:
    entry: Json = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 132}
    return entry


def refusal(status: int, message: str, code: str | None = None) -> Answer:
    answer = json_answer(status, {"error": message})
    headers = {**answer.headers, "X-Error-Message": message}
    return replace(answer, headers={**headers, "X-Error-Code": code} if code else headers)


def xml(status: int, code: str, message: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})

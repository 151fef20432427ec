"""How the Hub is called, and what its answers mean.

Facts come from the unmodified huggingface_hub 2.4.0 and 0.36.2 on the wire and their source, and from the Hub's own
documentation. Mirrors and other servers with this API lose headers, name their upstream, or leave error bodies empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, BeforeValidator, Field

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.addresses import joined, origin_of, redirect_target
from airflow_provider_modelsync.core.http.faults import status_error, trace_in
from airflow_provider_modelsync.core.http.policy import ApiClient, read_json
from airflow_provider_modelsync.core.models import Time
from airflow_provider_modelsync.core.redact import excerpt, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address

T = TypeVar("T")

DEFAULT_HOST = "https://huggingface.co"
MAIN = "main"
ATTRIBUTES = ".gitattributes"  # which the Hub makes with every repository: no part of a model
COMMIT = re.compile(r"[0-9a-f]{40}")

_NEXT = re.compile(r"<([^<>]*)>\s*;[^,]*\brel=\"?next\"?")
_DISABLED = "Access to this resource is disabled"  # which no code tells
_IDENTITY = {"Accept-Encoding": "identity"}  # else the CDN ignores ranges, and proxies leave lengths out


def _null_as(default: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, _null_as("")]
Object = Annotated[dict[str, Any], BeforeValidator(lambda value: value if isinstance(value, dict) else {})]
Texts = Annotated[
    list[str],
    BeforeValidator(lambda value: [one for one in value if isinstance(one, str)] if isinstance(value, list) else []),
]


class _Lfs(BaseModel):
    oid: str = Field(validation_alias="oid", default="")
    sha256: str = ""

    @property
    def hash(self) -> str:
        return self.oid or self.sha256


class Entry(BaseModel):
    """A file or directory in the tree of a commit.

    :param oid: git's id of a file; of an LFS file that of its pointer. KohakuHub tells a SHA-256 of small files.
    """

    type: str = "file"
    path: str
    size: Annotated[int, _null_as(0)] = Field(default=0, ge=0)
    oid: Text = ""
    lfs: _Lfs | None = None

    @property
    def sha256(self) -> str:
        """Hash of the content; empty where it is not told."""
        if self.lfs is not None:
            return self.lfs.hash
        return self.oid if len(self.oid) == 64 else ""

    @property
    def blob(self) -> str:
        """git's id of the content; empty where it is not told."""
        return self.oid if self.lfs is None and COMMIT.fullmatch(self.oid) else ""


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = None


class Issue(BaseModel):
    """What a scan has found in a file."""

    path: Text = ""
    level: Text = ""


class _Security(BaseModel):
    issues: Annotated[list[Issue], _null_as([])] = Field(default=[], alias="filesWithIssues")


class Info(BaseModel):
    """A model at a commit, or in brief where models are listed."""

    id: str
    sha: Text = ""
    modified: Time = Field(default=None, alias="lastModified")
    private: Annotated[bool, _null_as(False)] = False
    gated: str | bool | None = False
    disabled: Annotated[bool, _null_as(False)] = False
    tags: Texts = []
    pipeline_tag: Text = ""
    library_name: Text = ""
    card: Object = Field(default={}, alias="cardData")
    siblings: Annotated[list[_Sibling] | None, Field(max_length=200_000)] = None
    security: Annotated[_Security | None, BeforeValidator(lambda value: value if isinstance(value, dict) else None)] = (
        Field(default=None, alias="securityRepoStatus")
    )

    @property
    def is_empty(self) -> bool:
        """Whether it holds no file of a model."""
        return self.siblings is not None and all(file.rfilename == ATTRIBUTES for file in self.siblings)

    @property
    def size_bytes(self) -> int | None:
        """Sum of the files' sizes, where they are told."""
        sizes = [file.size for file in self.siblings or () if file.rfilename != ATTRIBUTES]
        return sum(size or 0 for size in sizes) if sizes and None not in sizes else None


class Commit(BaseModel):
    """A commit in a history."""

    id: str
    title: Text = ""
    date: Time = None


class GitRef(BaseModel):
    """A branch or a tag."""

    name: str
    target: str = Field(alias="targetCommit")


class Refs(BaseModel):
    """All branches and tags."""

    branches: Annotated[list[GitRef], _null_as([])] = []
    tags: Annotated[list[GitRef], _null_as([])] = []


class Hub:
    """Makes the calls of one connection.

    :param settings: the connection; ``password`` is the token, without which only what is public is seen.
    :param title: what the system is called in messages.
    """

    def __init__(self, settings: RegistrySettings, title: str) -> None:
        self._settings = settings
        self._title = title
        self.base_url = base_url(settings.host or DEFAULT_HOST, settings.port)
        self._api = ApiClient(settings, self.base_url, credentials=self.credentials)

    @property
    def has_token(self) -> bool:
        return self._settings.password is not None

    def credentials(self) -> dict[str, str]:
        """Return the header that proves who we are; empty for somebody unknown."""
        password = self._settings.password
        return {"Authorization": f"Bearer {password.get_secret_value()}"} if password else {}

    def check_server_url(self, url: str) -> None:
        """Raise for a URL that the server gave us and nothing may be sent to."""
        self._api.check_server_url(url)

    def answer(self, method: str, path: str, **more: Any) -> Flow[httpx.Response]:
        """Make a call and return whatever the answer is. Parameters as of :meth:`~...policy.ApiClient.request`."""
        return (yield from send(self._api.request(method, path, **more)))

    def need(
        self, method: str, path: str, shape: type[T], doing: str, *, name: str | None = None, **more: Any
    ) -> Flow[T]:
        """Make a call that may be repeated, and read its answer.

        :param doing: what is being done, for messages.
        :param name: the model concerned.
        """
        response = yield from self.answer(method, path, **{"may_repeat": True, **more})
        self.refuse(response, doing, name)
        return read_json(response, shape, doing)

    def pages(
        self, path: str, shape: type[T], doing: str, *, name: str | None = None, most: int, **params: Any
    ) -> Flow[tuple[list[T], bool]]:
        """Read a listing page by page.

        :param shape: of an entry.
        :param most: pages to read.
        :return: the entries, and whether these are all.
        :raises RegistryUnavailable: when pages go round in a circle.
        """
        found: list[T] = []
        seen: set[str] = set()
        for _ in range(most):
            response = yield from self.answer("GET", path, params=params)
            self.refuse(response, doing, name)
            found += read_json(response, list[shape], doing)  # type: ignore[valid-type]
            following = self._next(response)
            if following is None:
                return found, True
            if following in seen:
                raise RegistryUnavailable(f"{doing}: the server's pages go round in a circle")
            seen.add(following)
            path, params = following, {}
        return found, False

    def _next(self, response: httpx.Response) -> str | None:
        """Return where the next page is. A mirror may name its upstream there: only path and query count, then."""
        found = _NEXT.search(response.headers.get("Link", ""))
        if not found:
            return None
        try:
            url = joined(self.base_url, found[1])
        except (httpx.InvalidURL, ValueError):
            return None
        if origin_of(url) == origin_of(self.base_url):
            return str(url)
        return f"{self.base_url}{url.raw_path.decode('ascii')}"

    def head(self, name: str, revision: str) -> Flow[str | None]:
        """Return the commit that a revision stands for, by a request of the cheaper kind.

        :return: ``None`` where the answer does not say it, as a proxy may have taken that out.
        :raises ModelNotFound: when there is no such model or revision.
        """
        doing = f"looking at {name}@{revision}"
        response = yield from self.answer(
            "HEAD", resolve_path(name, revision, ATTRIBUTES), headers=_IDENTITY, wanted=_tells_commit
        )
        if _tells_commit(response):  # also of a missing file
            return str(response.headers["X-Repo-Commit"])
        if response.status_code != 404 or response.headers.get("X-Error-Code") not in ("EntryNotFound", None):
            self.refuse(response, doing, name)
        return None

    def address(self, name: str, commit: str, path: str, *, is_large: bool) -> Flow[Address]:
        """Return where the bytes of a file are.

        :param is_large: whether it lies in a storage of its own, which is asked for once.
        """
        url = f"{self.base_url}/{resolve_path(name, commit, path)}"
        here = Address(
            url,
            headers={**self.credentials(), **_IDENTITY},
            explain=lambda said, doing: self._refused(said, f"{doing}, {show(path)} of {name}", name),
        )
        if not is_large:
            return here
        doing = f"looking for {show(path)} of {name}"
        response = yield from self.answer("HEAD", url, headers=_IDENTITY, wanted=_leads_elsewhere)
        asked = str(response.request.url)
        if 300 <= response.status_code < 400 and "Location" in response.headers:
            target = redirect_target(asked, response.headers["Location"], self._settings, base=self.base_url)
            return Address(target, presigned=True)
        self.refuse(response, doing, name)
        if origin_of(asked) != origin_of(self.base_url):  # the Hub behind a mirror
            return Address(asked, headers=_IDENTITY)
        return Address(asked, headers=here.headers, explain=here.explain)

    def refuse(self, response: httpx.Response, doing: str, name: str | None = None) -> None:
        """Raise what a refusal means."""
        secrets = (*secrets_of(self._settings), *self.credentials().values())
        if error := self._error(response.status_code, response.headers, response.text, doing, name, secrets):
            raise error

    def _refused(self, response: MovedResponse, doing: str, name: str) -> None:
        text = response.body.decode("utf-8", "replace")
        if error := self._error(response.status, response.headers, text, doing, name, response.secrets):
            raise error

    def _error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: str,
        doing: str,
        name: str | None,
        secrets: Iterable[str],
    ) -> ModelSyncError | None:
        if 200 <= status < 300:
            return None
        code, words = headers.get("X-Error-Code", ""), headers.get("X-Error-Message", "")
        said = f"{doing}: {excerpt(words, secrets)}" if words else doing
        trace = trace_in(headers)
        if code == "GatedRepo":
            with_token = "with this token" if self.has_token else "without a token"
            where = f"{self.base_url}/{name}" if name else self.base_url
            return Unauthorized(
                f"{doing}: the model is gated and cannot be had {with_token}; ask for access at {where}{trace}"
            )
        if status == 401 and ("Invalid credentials" in f"{words} {body}"):
            return Unauthorized(f"{doing}: {self._title} does not accept the token{trace}", argument="password")
        is_hidden = status == 401 and not self.has_token and name is not None
        if code == "RepoNotFound" or is_hidden or (status == 404 and not code):
            who = "this token may" if self.has_token else "somebody without a token may"
            return ModelNotFound(f"{said}: it does not exist, or {who} not see it{trace}")
        if status == 404 or code in ("RevisionNotFound", "EntryNotFound"):
            what = "file" if code == "EntryNotFound" else "commit, branch or tag"
            return ModelNotFound(f"{said}: there is no such {what}{trace}")
        if words.startswith(_DISABLED):
            return NotSupported(f"{doing}: the Hub has disabled the model{trace}")
        if status in (401, 403):
            return Unauthorized(f"{said}: the token does not allow this{trace}", argument="password")
        if status == 405:
            return NotSupported(
                f"{said}: {self.base_url} does not offer this, as a mirror that can only be read{trace}"
            )
        error = status_error(status, headers, body or json.dumps({"error": words}), doing, secrets=secrets)
        if isinstance(error, InvalidInput):
            return InvalidInput(f"{error.message}{trace}")
        return error


def _tells_commit(response: httpx.Response) -> bool:
    return COMMIT.fullmatch(response.headers.get("X-Repo-Commit", "")) is not None


def _leads_elsewhere(response: httpx.Response) -> bool:
    """Whether a redirect names a storage; 307 and 308 say that the same request is to be made at another place."""
    if response.status_code not in (301, 302, 303):
        return False
    try:
        target = joined(str(response.request.url), response.headers["Location"])
    except (httpx.InvalidURL, ValueError):
        return False
    return origin_of(target) != origin_of(response.request.url)


def model_path(name: str, *more: str) -> str:
    """Return the path of a call about a model; what follows is quoted, the slash of a revision, too."""
    return "/".join(["api/models", quote(name), *(quote(part, safe="") for part in more)])


def resolve_path(name: str, revision: str, path: str) -> str:
    """Return the path of a file's bytes."""
    return f"{quote(name)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def host_of(url: str) -> str:
    """Return the host of a URL as people write it."""
    return urlsplit(url).netloc

"""How an OCI registry is called, what its answers mean, and what a connection to one says.

Facts come from the OCI distribution specification, from Debian's docker-registry 2.8.2 on the wire, and from issues of
hosted registries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import BaseModel, BeforeValidator, Field, field_validator

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.exchange import LISTING_BYTES
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.addresses import check_server_url, credentials_in, joined, origin_of
from airflow_provider_modelsync.core.http.faults import ServerBusy, retry_after, status_error
from airflow_provider_modelsync.core.http.policy import ApiClient, read_json
from airflow_provider_modelsync.core.models import LATEST, ModelRef
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.registries.oci.auth import Login, Scopes
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
# Docker's own, of which the registry keeps some, too. Without a type that fits, what is there is a 404.
_DOCKER = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ACCEPT = ", ".join((MANIFEST, INDEX, *_DOCKER))
MANIFEST_BYTES = 4 << 20  # that registries take
BLOB_TYPE = "application/octet-stream"

PULL, PUSH, DELETE = "pull", "pull,push", "pull,delete"
_CATALOG: Scopes = ("registry:catalog:*",)
_PAGE = 1000  # entries that are asked for; some refuse more
_MAX_PAGES = 1000
_MAX_NAME = 255  # characters, with the host

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
# Tags of other tools: lists of referrers, signatures and the like by cosign.
_TOOLS = re.compile(r"sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?")
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?', re.IGNORECASE)
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry.hub.docker.com")


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for part in value.replace(",", " ").split() if part)
    return value


class OCISettings(RegistrySettings):
    """A connection to an OCI registry.

    :param repositories: names of models, where the registry does not list its repositories.
    """

    repositories: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()

    @field_validator("repositories")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a repository")
        return value

    @property
    def root(self) -> str:
        """Where the registry is reached: its URL without a path."""
        url = urlsplit(base_url(self.host or "", self.port))
        place = url.netloc
        if place in _DOCKER_HUB:
            place = "registry-1.docker.io"
        return urlunsplit((url.scheme, place, "", "", ""))

    @property
    def namespace(self) -> str:
        """What stands before every name, with a slash at its end; empty when nothing does."""
        path = urlsplit(base_url(self.host or "", self.port)).path.strip("/")
        return f"{path}/" if path else ""


def is_name(name: str) -> bool:
    """Whether a repository can be called so."""
    return _NAME.fullmatch(name) is not None


def is_version(tag: str) -> bool:
    """Whether a tag may stand for a version, rather than for what other tools keep."""
    return tag != LATEST and not _TOOLS.fullmatch(tag)


class _Error(BaseModel):
    code: Annotated[str, BeforeValidator(lambda value: str(value or ""))] = ""
    message: Annotated[str, BeforeValidator(lambda value: str(value or ""))] = ""


class _Errors(BaseModel):
    errors: list[_Error] = Field(default_factory=list)


class _Tags(BaseModel):
    tags: list[str] | None = None


class _Catalog(BaseModel):
    repositories: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a registry said instead of doing what was asked.

    :param status: the status; of success, too.
    :param text: its words.
    :param codes: its error codes.
    """

    status: int
    text: str
    codes: frozenset[str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, answer: httpx.Response | MovedResponse) -> Refusal:
        if isinstance(answer, MovedResponse):
            status, text, secrets = answer.status, answer.body.decode("utf-8", "replace"), answer.secrets
        else:
            status, text = answer.status_code, answer.text if answer.status_code >= 400 else ""
            known: tuple[str, ...] = answer.request.extensions.get("modelsync_secrets", ())
            secrets = (*known, *credentials_in(answer.request.headers))
        try:
            errors = _Errors.model_validate_json(text).errors
        except ValueError:  # a gateway answers HTML
            errors = []
        words = "; ".join(f"{error.code} {error.message}".strip() for error in errors)
        codes = frozenset(error.code.upper() for error in errors)
        return cls(status, words or text, codes, answer.headers, secrets)

    @property
    def is_of_blobs(self) -> bool:
        """Whether blobs are missing that a manifest names."""
        return bool(self.codes & {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"})

    @property
    def is_immutable(self) -> bool:
        """Whether a rule of the registry keeps a tag where it is."""
        if self.status == 412:
            return True
        words = "immutable" in self.text.lower() or any(code.startswith("TAG") for code in self.codes)
        return self.status in (400, 403, 409) and (words or "ImageTagAlreadyExists" in self.text)

    def raise_for_status(self, doing: str, *, not_found: type[ModelSyncError] = ModelNotFound) -> None:
        """Raise what it means, unless it says success."""
        if self.status == 403 and "rate limit" in self.text.lower():
            raise ServerBusy(f"{doing}: the server answered 403: {self.text[:200]}", wait=retry_after(self.headers))
        if self.codes == {"UNSUPPORTED"} and self.status in (400, 405):
            raise NotSupported(f"{doing}: the registry does not offer this: {self.text[:200]}")
        error = status_error(self.status, self.headers, self.text, doing, not_found=not_found, secrets=self.secrets)
        if error:
            raise error


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest as the registry has it.

    :param digest: of its bytes.
    :param media_type: what the registry calls it.
    :param content: its bytes.
    """

    digest: str
    media_type: str
    content: bytes = field(repr=False)


class Api:
    """The API of a registry, as one connection sees it.

    :param settings: the connection.
    :param title: what the system is called in messages.
    """

    def __init__(self, settings: OCISettings, title: str) -> None:
        if not settings.host:
            raise InvalidInput("the registry's address is needed", argument="host", connection=settings.conn_id)
        self.root = settings.root
        self.namespace = settings.namespace
        if self.namespace and not _NAME.fullmatch(self.namespace[:-1]):
            raise InvalidInput(
                f"the path {self.namespace[:-1]!r} is no beginning of a repository's name", argument="host"
            )
        self._settings = settings
        self._title = title
        self._client = ApiClient(settings, self.root)
        self.login = Login(settings, self.root, title)

    def check(self, ref: ModelRef) -> None:
        """Raise :class:`InvalidInput` unless name and version can be a repository's and a tag's."""
        whole = f"{urlsplit(self.root).netloc}/{self.namespace}{ref.name}"
        if not _NAME.fullmatch(ref.name) or len(whole) > _MAX_NAME:
            raise InvalidInput(
                f"the name {ref.name!r} is not made of small letters, digits and single '.', '_', '-' or '/' between "
                f"them, or is longer than {_MAX_NAME} characters with its registry",
                argument="model",
            )
        if ref.version is not None and (not _TAG.fullmatch(ref.version) or not is_version(ref.version)):
            raise InvalidInput(
                f"the version {ref.version!r} is no tag that a version can have: {_TAG.pattern}, and not one that "
                f"other tools use, as {LATEST!r}",
                argument="model",
            )
        if ref.alias is not None and (not _TAG.fullmatch(ref.alias) or not is_version(ref.alias)):
            raise InvalidInput(f"{ref.alias!r} is no tag that an alias can have: {_TAG.pattern}", argument="alias")

    def repository(self, name: str) -> str:
        """Return the repository of a model."""
        return f"{self.namespace}{name}"

    def scopes(self, name: str, actions: str, *more: tuple[str, str]) -> Scopes:
        """Return what is going to be done, as tokens have it."""
        wanted = ((name, actions), *more)
        return tuple(f"repository:{self.repository(other)}:{what}" for other, what in wanted)

    # -- calls

    def send(
        self, method: str, url: str, scopes: Scopes, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Flow[httpx.Response]:
        """Make a call and return its answer, whatever its status; once more with other credentials after a 401."""
        proof = yield from self.login.headers(scopes)
        response = yield from send(self._client.request(method, url, headers={**(headers or {}), **proof}, **more))
        if response.status_code == 401 and origin_of(response.request.url) == origin_of(self.root):
            other = yield from self.login.after_refusal(scopes, proof.get("Authorization", ""), response)
            if other is not None:
                request = self._client.request(method, url, headers={**(headers or {}), **other}, **more)
                response = yield from send(request)
        return response

    def test(self) -> Flow[None]:
        """Ask for something that needs nothing but a valid login."""
        response = yield from self.send("GET", "v2/", ())
        Refusal.of(response).raise_for_status(f"logging in to {self._title}", not_found=InvalidInput)

    def tags(self, name: str) -> Flow[list[str]]:
        """Return the tags of a repository, none when there is no such repository."""
        path, scopes = f"v2/{self.repository(name)}/tags/list", self.scopes(name, PULL)
        found: dict[str, None] = {}
        for page in (yield from self._pages(path, scopes, f"listing the versions of {name}", missing=True)):
            found.update(dict.fromkeys(read_json(page, _Tags).tags or ()))
        return [tag for tag in found if _TAG.fullmatch(tag)]

    def repositories(self) -> Flow[list[str]]:
        """Return the names of all models of the connection.

        :raises NotSupported: when the registry does not list its repositories, and the connection names none.
        :raises Unauthorized: when it refuses the login altogether.
        """
        if self._settings.repositories:
            return list(self._settings.repositories)
        doing = "listing the repositories"
        try:
            pages = yield from self._pages("v2/_catalog", _CATALOG, doing)
        except (ModelNotFound, NotSupported, Unauthorized, InvalidInput) as error:
            if isinstance(error, Unauthorized) and not self.login.is_anonymous:
                yield from self.test()  # a login that counts nowhere is told as such
            raise NotSupported(
                f"{self._title} at {self.root} does not list its repositories to this login ({error.message}); name "
                "them in the connection's extra `repositories`"
            ) from None
        names: dict[str, None] = {}
        for page in pages:
            names.update(dict.fromkeys(read_json(page, _Catalog).repositories or ()))
        below = (name.removeprefix(self.namespace) for name in names if name.startswith(self.namespace))
        return [name for name in below if _NAME.fullmatch(name)]

    def _pages(self, path: str, scopes: Scopes, doing: str, *, missing: bool = False) -> Flow[list[httpx.Response]]:
        """Return all pages of a list; none when there is nothing of the name and that is allowed."""
        pages: list[httpx.Response] = []
        url, seen, size = f"{self.root}/{path}?n={_PAGE}", set[str](), 0
        while url not in seen:
            seen.add(url)
            response = yield from self.send("GET", url, scopes, answer_bytes=LISTING_BYTES)
            if missing and response.status_code == 404 and not pages:
                return []
            Refusal.of(response).raise_for_status(doing)
            pages.append(response)
            size += len(response.content)
            if len(pages) > _MAX_PAGES or size > 4 * LISTING_BYTES:
                raise RegistryUnavailable(f"{doing}: the list does not end after {len(pages)} pages")
            following = _NEXT.search(response.headers.get("Link", ""))
            if following is None:
                return pages
            url = self.resolve(following[1], str(response.request.url), must_be_ours=True)
        raise RegistryUnavailable(f"{doing}: the list leads back to a page that was there before")

    # -- manifests

    def manifest(self, name: str, reference: str, *, actions: str = PULL) -> Flow[Stored | None]:
        """Return the manifest of a tag or a digest, or ``None`` when there is none.

        :raises RegistryUnavailable: when its bytes are not those of its digest.
        """
        doing = f"reading {name}:{reference}"
        response = yield from self.send(
            "GET", self._manifest(name, reference), self.scopes(name, actions), headers={"Accept": ACCEPT}
        )
        if response.status_code == 404:
            return None
        Refusal.of(response).raise_for_status(doing)
        digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
        said = (response.headers.get("Docker-Content-Digest", ""), reference)
        if any(other.startswith("sha256:") and other != digest for other in said):
            raise RegistryUnavailable(f"{doing}: the bytes that came have the digest {digest}, not the one that counts")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Stored(digest, media_type or MANIFEST, response.content)

    def head(self, name: str, tag: str) -> Flow[str | None]:
        """Return the digest of a tag's manifest; empty when the registry does not say, ``None`` when there is none."""
        response = yield from self.send(
            "HEAD", self._manifest(name, tag), self.scopes(name, PULL), headers={"Accept": ACCEPT}
        )
        if response.status_code == 404:
            return None
        Refusal.of(response).raise_for_status(f"looking at {name}:{tag}")
        digest = cast(str, response.headers.get("Docker-Content-Digest", ""))
        return digest if digest.startswith("sha256:") else ""

    def put_manifest(self, name: str, tag: str, media_type: str, content: bytes) -> Flow[Refusal]:
        """Have a tag stand for a manifest; return what the registry says to that."""
        response = yield from self.send(
            "PUT",
            self._manifest(name, tag),
            self.scopes(name, PUSH),
            headers={"Content-Type": media_type},
            content=content,
        )
        return Refusal.of(response)

    def delete_manifest(self, name: str, reference: str) -> Flow[Refusal]:
        """Delete a manifest with all its tags, or where the registry offers that one tag; return what it says."""
        response = yield from self.send("DELETE", self._manifest(name, reference), self.scopes(name, DELETE))
        return Refusal.of(response)

    def _manifest(self, name: str, reference: str) -> str:
        return f"v2/{self.repository(name)}/manifests/{reference}"

    # -- blobs

    def has_blob(self, name: str, digest: str, size: int, *, actions: str = PULL) -> Flow[bool]:
        """Whether a repository has a blob, proved by its first byte: a cache may still know what is gone."""
        try:
            # Not repeated when it breaks off: that is how a blob answers of which only the size is known.
            response = yield from self.send(
                "GET",
                self._blob(name, digest),
                self.scopes(name, actions),
                headers={"Accept": "*/*", "Accept-Encoding": "identity", "Range": "bytes=0-0"},
                may_repeat=False,
            )
        except ServerBusy:
            raise
        except RegistryUnavailable:
            return False
        if response.status_code in (404, 416):
            return False
        Refusal.of(response).raise_for_status(f"looking for {digest}")
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return len(response.content) == size if response.status_code == 200 else total in (str(size), "*")

    def blob(self, name: str, digest: str, limit: int) -> Flow[bytes]:
        """Return a small blob, checked."""
        doing = f"reading {digest}"
        response = yield from self.send(
            "GET",
            self._blob(name, digest),
            self.scopes(name, PULL),
            headers={"Accept": "*/*", "Accept-Encoding": "identity"},
            answer_bytes=limit,
        )
        Refusal.of(response).raise_for_status(doing)
        if f"sha256:{hashlib.sha256(response.content).hexdigest()}" != digest:
            raise RegistryUnavailable(f"{doing}: the bytes that came are others")
        return response.content

    def begin_upload(self, name: str, digest: str, sibling: str | None = None) -> Flow[str | None]:
        """Begin the upload of a blob and return where it goes to; ``None`` when it was mounted from a sibling.

        :param sibling: the name of a model that is known to have it.
        """
        scopes, params = self.scopes(name, PUSH), {}
        if sibling is not None:
            scopes = self.scopes(name, PUSH, (sibling, PULL))
            params = {"mount": digest, "from": self.repository(sibling)}
        response = yield from self.send(
            "POST", f"v2/{self.repository(name)}/blobs/uploads/", scopes, params=params, content=b"", may_repeat=True
        )
        doing = f"beginning an upload to {self.repository(name)} (some registries want it to be made beforehand)"
        Refusal.of(response).raise_for_status(doing, not_found=InvalidInput)
        if response.status_code == 201 and sibling is not None:
            return None
        location = response.headers.get("Location")
        if response.status_code != 202 or not location:
            raise RegistryUnavailable(f"{doing}: the registry answered {response.status_code} and no place for it")
        return self.resolve(location, str(response.request.url))

    def upload_address(self, name: str, location: str, digest: str) -> Flow[Address]:
        """Return where the whole of a blob goes to."""
        url = str(httpx.URL(location).copy_merge_params({"digest": digest}))
        headers = {"Content-Type": BLOB_TYPE}
        if origin_of(url) != origin_of(self.root):
            return Address(url, headers)
        proof = yield from self.login.headers(self.scopes(name, PUSH))
        return Address(url, {**headers, **proof}, refused=lambda: self.login.forget(proof.get("Authorization", "")))

    def put_blob(self, name: str, location: str, digest: str, content: bytes) -> Flow[Refusal]:
        """Send a small blob to where its upload was begun; return what the registry says."""
        address = yield from self.upload_address(name, location, digest)
        if origin_of(address.url) != origin_of(self.root):
            response = yield from send(httpx.Request("PUT", address.url, headers=address.headers, content=content))
        else:
            headers = {"Content-Type": BLOB_TYPE}
            response = yield from self.send(
                "PUT", address.url, self.scopes(name, PUSH), headers=headers, content=content
            )
        return Refusal.of(response)

    def end_upload(self, name: str, location: str) -> Flow[None]:
        """Give an upload up, as far as the registry still knows of it."""
        if origin_of(location) == origin_of(self.root):
            yield from self.send("DELETE", location, self.scopes(name, PUSH), may_repeat=False)

    def blob_address(self, name: str, digest: str) -> Flow[Address]:
        """Return where a blob is. The registry may lead on from there to a storage."""
        proof = yield from self.login.headers(self.scopes(name, PULL))
        return Address(
            f"{self.root}/{self._blob(name, digest)}",
            proof,
            refused=lambda: self.login.forget(proof.get("Authorization", "")),
        )

    def _blob(self, name: str, digest: str) -> str:
        return f"v2/{self.repository(name)}/blobs/{digest}"

    def resolve(self, location: str, url: str, *, must_be_ours: bool = False) -> str:
        """Return the absolute URL of a place that the registry named.

        A registry behind a proxy that ends TLS may name itself with http, and lose the port.

        :param location: what it named.
        :param url: what was asked.
        :param must_be_ours: whether another origin is refused, whatever it is.
        """
        try:
            target, ours = joined(url, location), httpx.URL(self.root)
        except (httpx.InvalidURL, ValueError):
            raise RegistryUnavailable(f"the registry named a place that is no URL: {location[:100]!r}") from None
        if target.host == ours.host and target.scheme == "http" and ours.scheme == "https":
            target = target.copy_with(scheme="https", port=ours.port)
        if origin_of(target) != origin_of(self.root):
            if must_be_ours:
                shown = show_url(target, secrets_of(self._settings))
                raise InvalidInput(f"the registry leads on to {shown}, which is another server", argument="host")
            check_server_url(str(target), self._settings, base=self.root)
        return str(target)


def raise_for_push(refusal: Refusal, doing: str) -> None:
    """Raise what the refusal of a manifest means to a push; return when it was taken."""
    if refusal.is_immutable:
        raise VersionConflict(f"{doing}: the registry does not let the tag move: {refusal.text[:200]}")
    refusal.raise_for_status(doing, not_found=RegistryUnavailable)


def dumped(value: Any) -> str:
    """Return JSON as annotations hold it: always the same for the same value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

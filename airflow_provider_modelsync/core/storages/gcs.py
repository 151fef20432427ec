"""A bucket of Google Cloud Storage: its JSON and XML APIs, with bearer tokens. google-auth is loaded at the first use.

A tag is the object's generation: the two APIs tell different ETags. Both know conditions on it, but for the completion
of an upload in parts, which has none. Facts come from "Cloud Storage JSON API" and "Cloud Storage XML API" in Google's
documentation.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from xml.sax.saxutils import escape

from pydantic import BaseModel, Field, ValidationError

from airflow_provider_modelsync.core.archive.checksums import CRC32C, carried
from airflow_provider_modelsync.core.errors import BeginAgain, InvalidInput, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.http.network import READ_SECONDS
from airflow_provider_modelsync.core.http.storage import Refusal, SumRefused
from airflow_provider_modelsync.core.redact import excerpt, guard_logs, secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.base import LARGEST_RECORD, Abilities, Listed, OpenSession, StoredObject
from airflow_provider_modelsync.core.storages.rest import Credentials, Proof, RestBucket, read_xml
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover
from airflow_provider_modelsync.core.transfer.plan import Address, Stored, Sums
from airflow_provider_modelsync.core.transfer.watchdog import Pace

ENDPOINT = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_SHA256 = "modelsync-sha256"  # metadata of all files
_FACTS = "name,size,generation,timeCreated,crc32c,metadata"
_GENERATION = "x-goog-generation"
_IF_GENERATION = "x-goog-if-generation-match"
_HASH = "x-goog-hash"
_ABSENT = "0"  # the generation of what is not there
_MISSING = frozenset({404})
_CHANGED = frozenset({404, 412})
_KINDS = ("service_account", "authorized_user")  # of key files that are taken from a connection


_Model = TypeVar("_Model", bound=BaseModel)


class GcsSettings(RegistrySettings):
    """A connection to a bucket of Google Cloud Storage; ``password`` is the JSON of a key file.

    :param endpoint_url: where the storage is; Google's own public address when ``None``.
    :param gcp_conn_id: the connection whose credentials are used instead.
    """

    endpoint_url: str | None = None
    gcp_conn_id: str | None = None


class _Object(BaseModel):
    """An object as the JSON API tells of it; a size of 0 may be left out."""

    name: str
    size: int = 0
    generation: str
    created: datetime = Field(alias="timeCreated")
    crc32c: str | None = None
    metadata: dict[str, str] = {}

    def listed(self) -> Listed:
        sha256 = self.metadata.get(_SHA256)
        return Listed(self.name, self.size, self.created, self.generation, sha256, self.crc32c)


class _Page(BaseModel):
    next_page: str = Field("", alias="nextPageToken")
    prefixes: list[str] = []
    items: list[_Object] = []


class _Rewritten(BaseModel):
    done: bool
    token: str = Field("", alias="rewriteToken")
    bytes_done: int = Field(0, alias="totalBytesRewritten")
    resource: _Object | None = None


class GcsBucket(RestBucket):
    """A bucket of Google Cloud Storage.

    :param name: the bucket's name.
    :param settings: the connection.
    :param credentials: returns the credentials of google-auth to use; by default those of the connection's key file, or
        those that Google's own tools find.
    :param base: what all keys begin with.
    :raises InvalidInput: when the libraries that it needs are not installed, or the key file is none.
    """

    wrong_etag = "1"
    checks = CRC32C

    def __init__(
        self, name: str, settings: GcsSettings, credentials: OpenSession | None = None, *, base: str = ""
    ) -> None:
        _require_libraries()
        endpoint = (settings.endpoint_url or ENDPOINT).rstrip("/")
        place = f"the bucket {name}"
        if settings.endpoint_url:
            place += f" at {show_url(endpoint, secrets_of(settings))}"
        super().__init__(name, settings, base=base, place=place, identity=(endpoint, name, settings.conn_id))
        self.abilities = Abilities(True, True, True, True, True)
        self._tells_sums = True  # as the service does; an emulator may not
        self._objects = f"{endpoint}/storage/v1/b/{quote(name, safe='')}/o"
        self._place = f"{endpoint}/{quote(name, safe='')}"
        self._credentials = _Tokens(self.mover, settings, credentials or partial(_credentials_of, settings))

    def url(self, key: str) -> str:
        return f"gs://{self.name}/{key}"

    # -- small objects

    def get(self, key: str) -> StoredObject | None:
        doing = f"reading {key}"
        answer = self._call(doing, "GET", self._at(key), none_for=_MISSING, largest=LARGEST_RECORD)
        if answer is None:
            return None
        try:
            modified = parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
        except ValueError:
            raise RegistryUnavailable(
                f"{doing} in {self.place}: the storage does not say when it was written"
            ) from None
        return StoredObject(answer.body, modified, self._generation_in(answer, doing))

    def head(self, key: str) -> Listed | None:
        doing = f"looking at {key}"
        answer = self._call(doing, "GET", f"{self._json(key)}?fields={_FACTS}", none_for=_MISSING)
        return None if answer is None else self._parsed(_Object, answer, doing).listed()

    def put(self, key: str, content: bytes, *, etag: str | None = None, doing: str | None = None) -> str | None:
        doing = doing or f"writing {key}"
        headers = {
            "Content-Type": "application/octet-stream",
            _IF_GENERATION: etag or _ABSENT,
            _HASH: f"crc32c={_base64(Sums.of(content).crc32c)}",
        }
        answer = self._call(doing, "PUT", self._at(key), headers, content, none_for={412})
        return None if answer is None else self._generation_in(answer, doing)

    def delete(self, key: str, *, etag: str | None = None, doing: str | None = None) -> None:
        condition = f"?ifGenerationMatch={etag}" if etag else ""
        self._call(doing or f"deleting {key}", "DELETE", f"{self._json(key)}{condition}", none_for=_CHANGED)

    # -- listings

    def objects(self, prefix: str) -> Iterator[Listed]:
        fields = f"nextPageToken,items({_FACTS})"
        for page in self._listing(f"listing {prefix}", prefix=prefix, fields=fields):
            yield from (found.listed() for found in page.items)

    def directories(self, prefix: str) -> list[str]:
        listing = self._listing(
            f"listing {prefix or 'the root'}", prefix=prefix, delimiter="/", fields="nextPageToken,prefixes"
        )
        return [found.removeprefix(prefix).rstrip("/") for page in listing for found in page.prefixes]

    def _listing(self, doing: str, **query: str) -> Iterator[_Page]:
        def ask(marks: Mapping[str, str], end: float) -> _Page:
            answer = self._call(doing, "GET", f"{self._objects}?{urlencode(query | dict(marks))}", end=end)
            assert answer is not None
            return self._parsed(_Page, answer, doing)

        return self._paged(doing, ask, lambda page: {"pageToken": page.next_page} if page.next_page else {})

    # -- uploads in parts

    def begun_uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        found: list[tuple[str, str, datetime]] = []
        doing = f"listing the uploads of {prefix}"
        for page in self._xml_pages(
            doing, f"{self._place}?uploads", {"prefix": prefix}, ("KeyMarker", "UploadIdMarker")
        ):
            for upload in page.iter("Upload"):
                begun = datetime.fromisoformat(upload.findtext("Initiated", ""))
                found.append((upload.findtext("Key", ""), upload.findtext("UploadId", ""), begun))
        return found

    def last_written(self, key: str, upload_id: str, begun: datetime) -> datetime:
        times = [
            datetime.fromisoformat(time)
            for part in self._parts(key, upload_id) or ()
            if (time := part.findtext("LastModified"))
        ]
        return max([begun, *times])

    def parts(self, key: str, upload_id: str) -> dict[int, Stored] | None:
        listed = self._parts(key, upload_id)
        if listed is None:
            return None
        return {
            int(part.findtext("PartNumber", "")): Stored(
                int(part.findtext("Size", "")), part.findtext("ETag", "").strip('"')
            )
            for part in listed
        }

    def _parts(self, key: str, upload_id: str) -> list[Any] | None:
        doing = f"listing the parts of {key}"
        url = f"{self._at(key)}?{urlencode({'uploadId': upload_id})}"
        found: list[Any] = []
        for page in self._xml_pages(doing, url, {}, ("PartNumberMarker",), none_for=_MISSING):
            if page is None:
                return None
            found += page.iter("Part")
        return found

    def _xml_pages(
        self,
        doing: str,
        url: str,
        query: Mapping[str, str],
        markers: tuple[str, ...],
        none_for: Iterable[int] = (),
    ) -> Iterator[Any]:
        def ask(marks: Mapping[str, str], end: float) -> Any:
            rest = urlencode({**query, **marks})
            answer = self._call(doing, "GET", f"{url}&{rest}" if rest else url, end=end, none_for=frozenset(none_for))
            return None if answer is None else read_xml(answer, f"{doing} in {self.place}")

        def more(page: Any) -> Mapping[str, str]:
            if page is None or page.findtext("IsTruncated", "false") != "true":
                return {}
            said = {name: page.findtext(f"Next{name}") for name in markers}
            spelled = {"KeyMarker": "key-marker", "UploadIdMarker": "upload-id-marker"}
            found = {spelled.get(name, "part-number-marker"): value for name, value in said.items() if value}
            if not found:
                raise RegistryUnavailable(f"{doing} in {self.place}: the storage cuts its listing and does not go on")
            return found

        return self._paged(doing, ask, more)

    def begin(self, key: str, sha256: str) -> str:
        doing = f"beginning the upload of {key}"
        headers = {"Content-Type": "application/octet-stream", **_metadata(sha256)}
        answer = self._call(doing, "POST", f"{self._at(key)}?uploads", headers, b"")
        assert answer is not None
        upload_id = read_xml(answer, doing).findtext("UploadId")
        if not upload_id:
            raise RegistryUnavailable(f"{doing}: the storage gave the upload no id")
        return upload_id

    def complete(
        self, key: str, upload_id: str, parts: Mapping[int, Stored], sha256: str, *, etag: str | None = None
    ) -> str | None:
        doing = f"completing {key}"
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag></Part>"
            for number, part in sorted(parts.items())
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        answer = self._call(
            doing,
            "POST",
            f"{self._at(key)}?{urlencode({'uploadId': upload_id})}",
            {"Content-Type": "application/xml"},
            body,
            none_for={404, "InvalidPart"},
            answer_seconds=self._settings.timeout_seconds,  # putting many parts together takes time
        )
        if answer is None:
            return None
        if generation := answer.headers.get(_GENERATION):
            return str(generation)
        found = self.head(key)
        return found.etag if found else None

    def abort(self, key: str, upload_id: str) -> None:
        url = f"{self._at(key)}?{urlencode({'uploadId': upload_id})}"
        self._call(f"aborting the upload of {key}", "DELETE", url, none_for=_MISSING)

    def copy(self, origin: Listed, key: str, sha256: str) -> str | None:
        doing = f"copying {origin.key}"
        target = f"{self._json(origin.key)}/rewriteTo/b/{quote(self.name, safe='')}/o/{quote(key, safe='')}"
        query = {
            "ifSourceGenerationMatch": origin.etag,
            "ifGenerationMatch": _ABSENT,
            "fields": f"done,rewriteToken,totalBytesRewritten,resource({_FACTS})",
        }
        body = json.dumps({"contentType": "application/octet-stream", "metadata": {_SHA256: sha256}}).encode()
        # The storage copies as much as it likes in one call, all of it as a rule, and wants to be called again.
        done = -1
        while True:
            answer = self._call(
                doing,
                "POST",
                f"{target}?{urlencode(query)}",
                {"Content-Type": "application/json"},
                body,
                none_for=_CHANGED,
                answer_seconds=self._settings.timeout_seconds,
            )
            if answer is None:
                return None
            said = self._parsed(_Rewritten, answer, doing)
            if said.done and said.resource:
                return said.resource.generation
            if said.bytes_done <= done or not said.token:
                raise RegistryUnavailable(f"{doing} in {self.place}: the storage does not go on")
            done, query["rewriteToken"] = said.bytes_done, said.token

    # -- bytes of size

    def address_get(self, found: Listed) -> Address:
        return self._address("GET", self._at(found.key), {_IF_GENERATION: found.etag})

    def address_put(self, key: str, sums: Sums, sha256: str, *, etag: str | None = None) -> Address:
        headers = {
            "Content-Type": "application/octet-stream",
            _IF_GENERATION: etag or _ABSENT,
            **_metadata(sha256),
        }
        return self._checked(self._at(key), sums, headers)

    def address_part(self, key: str, upload_id: str, number: int, sums: Sums) -> Address:
        query = urlencode({"partNumber": number, "uploadId": upload_id})
        return self._checked(f"{self._at(key)}?{query}", sums, {})

    def _checked(self, url: str, sums: Sums, headers: Mapping[str, str]) -> Address:
        address = self._address("PUT", url, {**headers, _HASH: f"crc32c={_base64(sums.crc32c)}"})
        return replace(address, is_checked=self._tells_sums)

    def receipt(
        self, key: str, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        if answer.status == 412 and upload_id is None:
            found = self.head(key)
            if found and found.crc32c == _base64(sums.crc32c) and found.size == sums.size:
                return Stored(sums.size, found.etag)
            raise BeginAgain(f"{doing}: another writer has stored something else there, or removed it")
        if not 200 <= answer.status < 300:
            raise self._error(answer, doing, address.refused, not_found=BeginAgain)
        said = answer.headers.get(_HASH, "")
        if "crc32c=" in said and address.headers[_HASH] not in said:
            raise RegistryUnavailable(f"{doing}: the storage has stored other bytes than were sent")
        if "crc32c=" not in said and not sums.is_read:
            self._tells_sums = False
            raise SumRefused(f"{doing}: the storage does not tell the CRC-32C of what it has stored")
        etag = self._generation_in(answer, doing) if upload_id is None else answer.headers.get("ETag", "").strip('"')
        if not etag:
            raise RegistryUnavailable(f"{doing}: the storage gave no ETag")
        return Stored(sums.size, etag)

    def is_part(self, sums: Sums, stored: Stored) -> bool:
        return sums.size == stored.size and stored.etag == sums.md5

    def is_file(self, found: Listed, size: int, sha256: str, count: int, parts: Iterable[Sums]) -> bool:
        if (found.size, found.sha256) != (size, sha256) or found.crc32c is None:
            return False
        return found.crc32c == _base64(_together(parts))

    # -- how requests are made

    def _at(self, key: str) -> str:
        return f"{self._place}/{quote(key, safe='/')}"

    def _json(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='')}"

    def _refusal(self, answer: MovedResponse) -> Refusal:
        plain = super()._refusal(answer)
        try:
            said = json.loads(plain.words)["error"]
            words = str(said["message"])
        except (ValueError, KeyError, TypeError):
            return plain
        code = "NoSuchBucket" if answer.status == 404 and "bucket does not exist" in words else ""
        return Refusal(answer.status, code, words, answer.headers)

    def _parsed(self, kind: type[_Model], answer: MovedResponse, doing: str) -> _Model:
        try:
            return kind.model_validate_json(answer.body)
        except ValidationError:
            raise RegistryUnavailable(
                f"{doing} in {self.place}: the answer is not that of Google Cloud Storage"
            ) from None

    def _generation_in(self, answer: MovedResponse, doing: str) -> str:
        generation = answer.headers.get(_GENERATION)
        if not generation:
            raise RegistryUnavailable(f"{doing} in {self.place}: the storage gave no generation")
        return str(generation)


def _together(parts: Iterable[Sums]) -> int:
    """Return the CRC-32C of parts as one."""
    total = 0
    for part in parts:  # each is looked at before the next is asked for: they may share their memory
        total = part.crc32c ^ carried(CRC32C, total, part.size)
    return total


def _base64(crc32c: int) -> str:
    """Return a CRC-32C as Google has it."""
    return b64encode(crc32c.to_bytes(4)).decode()


def _metadata(sha256: str) -> dict[str, str]:
    return {f"x-goog-meta-{_SHA256}": sha256}


def _require_libraries() -> None:
    for module in ("google.auth", "google_crc32c"):
        try:
            is_there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            raise InvalidInput(
                f"a gs:// root needs {module.replace('.', '-').replace('_', '-')}: "
                "install airflow-provider-modelsync[gcs]",
                argument="host",
            )


def _credentials_of(settings: GcsSettings) -> Any:
    """Return the credentials of a connection's key file, or those that Google's own tools find."""
    import google.auth

    if settings.password is None:
        return google.auth.default(scopes=[_SCOPE])[0]
    try:
        key = json.loads(settings.password.get_secret_value())
        kind = key["type"]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("the password is not the JSON of a key file of Google's", argument="password") from None
    if kind not in _KINDS:
        raise InvalidInput(
            f"the password is a key file of the type {excerpt(str(kind))}; a connection holds one of "
            f"{' or '.join(_KINDS)}. Others are found by Google's own rules (GOOGLE_APPLICATION_CREDENTIALS), or come "
            "with gcp_conn_id",
            argument="password",
        )
    guard_logs(tuple(value for name, value in key.items() if name in ("private_key", "refresh_token", "client_secret")))
    try:
        if kind == "service_account":
            from google.oauth2.service_account import Credentials as ServiceAccount

            return ServiceAccount.from_service_account_info(key, scopes=[_SCOPE])
        from google.oauth2.credentials import Credentials as User

        return User.from_authorized_user_info(key, scopes=[_SCOPE])
    except ValueError:  # its text may quote the key
        raise InvalidInput(f"the password is no usable key file of the type {kind}", argument="password") from None


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as google-auth reads it."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class _Tokens(Credentials):
    """Google's credentials."""

    def __init__(self, mover: Mover, settings: RegistrySettings, credentials: OpenSession) -> None:
        super().__init__()
        self._mover = mover
        self._settings = settings
        self._secrets = secrets_of(settings)
        self._open = credentials
        self._credentials: Any = None

    def _current(self, method: str, url: str) -> Proof:
        from google.auth import exceptions

        doing = "asking for a token of Google Cloud"
        added: dict[str, str] = {}
        try:
            if self._credentials is None:
                self._credentials = self._open()
            self._credentials.before_request(self._ask, method, url, added)
        # From nothing: their texts may quote what was sent.
        except exceptions.DefaultCredentialsError:
            raise Unauthorized(
                "no usable Google credentials are to be found",
                remedy="Put the JSON of a key file into the password, name a gcp_conn_id, or let the worker have "
                "application default credentials",
            ) from None
        except exceptions.GoogleAuthError as error:
            said = excerpt(str(error.args[0]) if error.args else type(error).__name__, self._secrets)
            kind = RegistryUnavailable if error.retryable else Unauthorized
            raise kind(f"{doing}: {said}") from None
        # In lower case by one library's habit.
        token = added.pop("authorization", None)
        return Proof(token or "", added if token is None else {**added, "Authorization": token})

    def _forget(self) -> None:
        if hasattr(self._credentials, "expiry"):
            self._credentials.token = None

    def _ask(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Answer:
        """Send a request of google-auth's. Parameters and errors as of ``google.auth.transport.Request``."""
        from google.auth import exceptions

        content = body.encode() if isinstance(body, str) else body
        seconds = timeout or READ_SECONDS
        try:
            if urlsplit(url).scheme == "http":
                return _plainly(url, method, content, dict(headers or {}), seconds)
            pace = Pace(min_bytes=1, window_seconds=seconds, answer_seconds=seconds, total_seconds=seconds)
            answer = self._mover.call(method, url, headers or {}, content, "asking", pace=pace, largest=1 << 20)
            return _Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.body)
        except (RegistryUnavailable, OSError, http.client.HTTPException) as error:
            raise exceptions.TransportError(str(error), retryable=True) from None


def _plainly(url: str, method: str, body: bytes | None, headers: dict[str, str], seconds: float) -> _Answer:
    """Ask the metadata service of the machine that this runs on, past any proxy, as Google's own library does."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=seconds)
    try:
        connection.request(method, f"{place.path}?{place.query}".rstrip("?"), body, headers)
        answer = connection.getresponse()
        return _Answer(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read(1 << 20)
        )
    finally:
        connection.close()

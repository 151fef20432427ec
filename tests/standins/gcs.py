"""Google Cloud Storage as far as a model store uses it: the JSON API, the XML API with uploads in parts, and tokens.

    with GcsStandIn() as gcs:
        ...  # talk to gcs.url with a token of gcs.token, about gcs.bucket

Everything is kept in memory. None of the emulators that can be had knows uploads in parts, so this one is written
after Google's own words in "Cloud Storage JSON API" and "Cloud Storage XML API" (request and response of each method,
"Request preconditions", "XML API multipart uploads"). What it does not know it answers with 501. Nothing here imports
the package under test.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import google_crc32c

from tests.standins.http_server import Answer, Handler, Refusal, Request, StandIn, json_answer

SMALLEST_PART = 5 << 20  # bytes of all parts but the last; looked at when they are put together
TOKEN_SECONDS = 3600
ACCOUNT = "models@project.iam.gserviceaccount.com"
_JSON = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o(?:/([^?]*))?")
_CONTENT = "application/octet-stream"


@dataclass(frozen=True)
class Object:
    """A generation of an object."""

    content: bytes
    generation: int
    created: datetime
    metadata: Mapping[str, str]
    has_md5: bool = True  # what came in parts has none

    @property
    def crc32c(self) -> str:
        return _crc32c(self.content)

    def told(self, bucket: str, name: str) -> dict[str, Any]:
        """Return what the JSON API tells of it."""
        md5 = base64.b64encode(hashlib.md5(self.content, usedforsecurity=False).digest()).decode()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "timeCreated": _iso(self.created),
            "updated": _iso(self.created),
            "crc32c": self.crc32c,
            "etag": base64.b64encode(b"json %d" % self.generation).decode(),  # not that of the XML API
            **({"size": str(len(self.content))} if self.content else {}),  # 0 may be left out
            **({"md5Hash": md5} if self.has_md5 else {}),
            **({"metadata": dict(self.metadata)} if self.metadata else {}),
        }


@dataclass
class Upload:
    """An upload in parts."""

    key: str
    metadata: Mapping[str, str]
    begun: datetime
    parts: dict[int, tuple[bytes, datetime]] = field(default_factory=dict)


class GcsStandIn(StandIn):
    """The stand-in.

    :param rewritten: bytes that one call of a copy gets done.
    :param page: how many entries a page of a listing has.
    :param smallest_part: bytes of all parts but the last.
    :ivar checks_sums: whether it does; an emulator may neither look at the sum that comes, nor tell one.
    """

    def __init__(self, *, rewritten: int = 64 << 10, page: int = 1000, smallest_part: int = SMALLEST_PART) -> None:
        super().__init__(handler=_Handler)
        self.checks_sums = True
        self.bucket = "models-bucket"
        self.token = "ya29.of-the-stand-in"
        self.tokens = {self.token}
        self.buckets: dict[str, dict[str, Object]] = {self.bucket: {}}
        self.uploads: dict[str, dict[str, Upload]] = {self.bucket: {}}  # by id
        self.rewritten = rewritten
        self.page = page
        self.smallest_part = smallest_part
        self._copied: dict[str, int] = {}
        self._ahead = timedelta()
        self._guard = threading.RLock()
        self._numbers = itertools.count(1)
        self._last = 0

    def pass_a_second(self) -> None:
        """Let a second pass for the objects that are written from now on."""
        self._ahead += timedelta(seconds=1)

    def new_bucket(self) -> str:
        """Make a bucket."""
        name = f"bucket-{next(self._numbers)}"
        self.buckets[name], self.uploads[name] = {}, {}
        return name

    @property
    def objects(self) -> dict[str, Object]:
        return self.buckets[self.bucket]

    def key_file(self) -> dict[str, str]:
        """Return a service account's key file, for which this gives tokens."""
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": _account()[0],
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        if request.path == "/token":
            return self._give_token(b"".join(body))
        content = b"".join(body)
        try:
            if found := _JSON.fullmatch(request.target):  # type: ignore[attr-defined]
                return self._by_json(request, found[1], found[2], content)
            bucket, _, key = request.path.removeprefix("/").partition("/")
            return self._by_xml(request, bucket, key, content)
        except _Refused as error:
            is_json = "/storage/v1/" in request.path
            raise Refusal(error.as_json() if is_json else error.as_xml()) from None

    # -- tokens

    def _give_token(self, content: bytes) -> Answer:
        from google.auth import jwt

        asked = {name: values[0] for name, values in parse_qs(content.decode()).items()}
        try:
            claims = jwt.decode(asked["assertion"], certs=_account()[1], audience="https://oauth2.googleapis.com/token")
        except (KeyError, ValueError) as error:
            return json_answer(400, {"error": "invalid_grant", "error_description": f"Invalid JWT Signature: {error}"})
        assert claims["iss"] == ACCOUNT
        assert claims["scope"] == "https://www.googleapis.com/auth/devstorage.read_write"
        token = f"ya29.number-{next(self._numbers)}"
        self.tokens.add(token)
        return json_answer(200, {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"})

    def _check_token(self, request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer":
            raise _Refused(401, "AuthenticationRequired", "Authentication required.", "required")
        if token not in self.tokens:
            raise _Refused(401, "AuthenticationRequired", "Invalid Credentials", "authError")

    # -- JSON

    def _by_json(self, request: Request, bucket: str, raw_key: str | None, content: bytes) -> Answer:
        self._check_token(request)
        with self._guard:
            objects = self.buckets.get(bucket)
            if objects is None:
                raise _Refused(404, "NoSuchBucket", "The specified bucket does not exist.", "notFound")
            if raw_key is None:
                return json_answer(200, self._listed(bucket, objects, request.query))
            if "/rewriteTo/" in raw_key:
                return self._rewrite(request, bucket, objects, raw_key, json.loads(content or b"{}"))
            key = unquote(raw_key)
            found = objects.get(key)
            self._hold(found, request.query.get("ifGenerationMatch"))
            if found is None:
                raise _Refused(404, "NoSuchKey", f"No such object: {bucket}/{key}", "notFound")
            match request.method:
                case "GET" if request.query.get("alt") == "media":
                    return self._fetch(request, found)
                case "GET":
                    return json_answer(200, found.told(bucket, key))
                case "DELETE":
                    del objects[key]
                    return Answer(204)
        raise _Refused(501, "NotImplemented", "The stand-in does not know this.", "notImplemented")

    def _listed(self, bucket: str, objects: Mapping[str, Object], query: Mapping[str, str]) -> dict[str, Any]:
        prefix, delimiter, after = query.get("prefix", ""), query.get("delimiter"), query.get("pageToken", "")
        entries: dict[str, dict[str, Any] | None] = {}
        for key in sorted(objects):
            if key.startswith(prefix):
                head, mark, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
                entries[f"{prefix}{head}/" if mark else key] = None if mark else objects[key].told(bucket, key)
        names = [name for name in entries if name > after]
        page, rest = names[: self.page], names[self.page :]
        found: dict[str, Any] = {"kind": "storage#objects"}
        if items := [entries[name] for name in page if entries[name] is not None]:
            found["items"] = items
        if prefixes := [name for name in page if entries[name] is None]:
            found["prefixes"] = prefixes
        if rest:
            found["nextPageToken"] = page[-1]
        return found

    def _rewrite(
        self, request: Request, bucket: str, objects: dict[str, Object], raw: str, resource: Mapping[str, Any]
    ) -> Answer:
        origin, _, rest = raw.partition("/rewriteTo/b/")
        target = unquote(rest.partition("/o/")[2])
        assert rest.partition("/o/")[0] == bucket
        found = objects.get(unquote(origin))
        self._hold(found, request.query.get("ifSourceGenerationMatch"))
        if found is None:
            raise _Refused(404, "NoSuchKey", f"No such object: {bucket}/{unquote(origin)}", "notFound")
        self._hold(objects.get(target), request.query.get("ifGenerationMatch"))
        token = request.query.get("rewriteToken") or f"rewrite-{next(self._numbers)}"
        done = self._copied[token] = self._copied.get(token, 0) + self.rewritten
        size = len(found.content)
        said = {"kind": "storage#rewriteResponse", "objectSize": str(size), "totalBytesRewritten": str(min(done, size))}
        if done < size:
            return json_answer(200, {**said, "done": False, "rewriteToken": token})
        made = self._store(
            objects, target, found.content, resource.get("metadata", found.metadata), has_md5=found.has_md5
        )
        return json_answer(200, {**said, "done": True, "resource": made.told(bucket, target)})

    # -- XML

    def _by_xml(self, request: Request, bucket: str, key: str, content: bytes) -> Answer:
        self._check_token(request)
        with self._guard:
            objects, uploads = self.buckets.get(bucket), self.uploads.get(bucket)
            if objects is None or uploads is None:
                raise _Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
            query = request.query
            match request.method:
                case "GET" if not key and "uploads" in query:
                    return self._list_uploads(uploads, query)
                case "POST" if "uploads" in query:
                    return self._begin(request, bucket, key, uploads)
                case _ if "uploadId" in query:
                    upload = uploads.get(query["uploadId"])
                    if upload is None or upload.key != key:
                        raise _Refused(404, "NoSuchUpload", "The requested upload was not found.")
                    return self._of_upload(request, upload, objects, uploads, content)
                case "PUT":
                    self._check_sums(request, content)
                    self._hold(objects.get(key), request.headers.get("x-goog-if-generation-match"))
                    made = self._store(objects, key, content, _metadata_in(request))
                    return Answer(200, headers={**_facts(made), **self._sums_of(content)})
                case "GET":
                    return self._fetch(request, objects.get(key))
        raise _Refused(501, "NotImplemented", "The stand-in does not know this.")

    def _fetch(self, request: Request, found: Object | None) -> Answer:
        self._hold(found, request.headers.get("x-goog-if-generation-match"))
        if found is None:
            raise _Refused(404, "NoSuchKey", "The specified key does not exist.")
        headers = {
            **_facts(found),
            **self._sums_of(found.content),
            "Content-Type": _CONTENT,
            "Last-Modified": format_datetime(found.created, True),
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, found.content, headers)
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(found.content))
        if start >= end:
            raise _Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(found.content)}"
        return Answer(206, found.content[start:end], headers)

    def _begin(self, request: Request, bucket: str, key: str, uploads: dict[str, Upload]) -> Answer:
        if "content-length" not in request.headers:
            raise _Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        upload_id = f"VXBsb2Fk-{next(self._numbers)}_"
        uploads[upload_id] = Upload(key, _metadata_in(request), datetime.now(UTC))
        return _xml(
            "InitiateMultipartUploadResult",
            f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>",
        )

    def _of_upload(
        self, request: Request, upload: Upload, objects: dict[str, Object], uploads: dict[str, Upload], content: bytes
    ) -> Answer:
        if any(name.startswith("x-goog-if-") for name in request.headers):
            raise _Refused(400, "NotImplemented", "Preconditions are not supported for multipart uploads.")
        match request.method:
            case "PUT":
                self._check_sums(request, content)
                upload.parts[int(request.query["partNumber"])] = content, datetime.now(UTC)
                return Answer(200, headers={"ETag": f'"{_md5(content)}"', **self._sums_of(content)})
            case "GET":
                return self._list_parts(upload, request.query)
            case "DELETE":
                del uploads[request.query["uploadId"]]
                return Answer(204)
            case "POST":
                listed = ElementTree.fromstring(content)
                parts = [
                    (int(part.findtext("PartNumber", "")), part.findtext("ETag", "").strip('"')) for part in listed
                ]
                if not parts or any(
                    number not in upload.parts or _md5(upload.parts[number][0]) != tag for number, tag in parts
                ):
                    raise _Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
                bodies = [upload.parts[number][0] for number, _ in parts]
                if any(len(body) < self.smallest_part for body in bodies[:-1]):
                    raise _Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum size.")
                made = self._store(objects, upload.key, b"".join(bodies), upload.metadata, has_md5=False)
                del uploads[request.query["uploadId"]]
                inside = f"<Key>{escape(upload.key)}</Key><ETag>&quot;{_md5(made.content)}-{len(parts)}&quot;</ETag>"
                return _xml("CompleteMultipartUploadResult", inside, {"x-goog-generation": str(made.generation)})
        raise _Refused(501, "NotImplemented", "The stand-in does not know this.")

    def _list_uploads(self, uploads: Mapping[str, Upload], query: Mapping[str, str]) -> Answer:
        after = query.get("key-marker", ""), query.get("upload-id-marker", "")
        found = sorted(
            (upload.key, upload_id, upload.begun)
            for upload_id, upload in uploads.items()
            if upload.key.startswith(query.get("prefix", "")) and (upload.key, upload_id) > after
        )
        page, rest = found[: self.page], found[self.page :]
        inside = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId><Initiated>{_iso(begun)}</Initiated></Upload>"
            for key, upload_id, begun in page
        )
        if rest:
            inside += f"<NextKeyMarker>{escape(page[-1][0])}</NextKeyMarker>"
            inside += f"<NextUploadIdMarker>{page[-1][1]}</NextUploadIdMarker>"
        return _xml("ListMultipartUploadsResult", f"{inside}<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>")

    def _list_parts(self, upload: Upload, query: Mapping[str, str]) -> Answer:
        after = int(query.get("part-number-marker", "0"))
        numbers = [number for number in sorted(upload.parts) if number > after]
        page, rest = numbers[: self.page], numbers[self.page :]
        inside = ""
        for number in page:
            body, written = upload.parts[number]
            inside += (
                f"<Part><PartNumber>{number}</PartNumber><LastModified>{_iso(written)}</LastModified>"
                f"<ETag>&quot;{_md5(body)}&quot;</ETag><Size>{len(body)}</Size></Part>"
            )
        if rest:
            inside += f"<NextPartNumberMarker>{page[-1]}</NextPartNumberMarker>"
        return _xml("ListPartsResult", f"{inside}<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>")

    # -- objects

    def _check_sums(self, request: Request, content: bytes) -> None:
        said = request.headers.get("x-goog-hash", "")
        if self.checks_sums and "crc32c=" in said and f"crc32c={_crc32c(content)}" not in said:
            raise _Refused(400, "BadDigest", "The CRC32C you specified did not match what we computed.")

    def _sums_of(self, content: bytes) -> dict[str, str]:
        return {"x-goog-hash": f"crc32c={_crc32c(content)}"} if self.checks_sums else {}

    def _hold(self, found: Object | None, generation: str | None) -> None:
        """Refuse what depends on another generation."""
        if generation is not None and int(generation) != (found.generation if found else 0):
            message = "At least one of the pre-conditions you specified did not hold."
            raise _Refused(412, "PreconditionFailed", message, "conditionNotMet")

    def _store(
        self,
        objects: dict[str, Object],
        key: str,
        content: bytes,
        metadata: Mapping[str, str],
        *,
        has_md5: bool = True,
    ) -> Object:
        self._last = max(self._last + 1, time.time_ns() // 1000)
        objects[key] = Object(content, self._last, datetime.now(UTC) + self._ahead, metadata, has_md5)
        return objects[key]


@dataclass
class _TargetedRequest(Request):
    """One that remembers how its path was spelled: a key's slashes are quoted in the JSON API."""

    target: str = ""


class _Handler(Handler):
    def parsed(self) -> Request:
        known = super().parsed()
        target = self.path.partition("?")[0]
        return _TargetedRequest(known.origin, known.method, known.path, known.query, known.headers, target=target)


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.reason = status, code, message, reason

    def as_json(self) -> Answer:
        fault = {"message": self.message, "domain": "global", "reason": self.reason}
        return json_answer(self.status, {"error": {"code": self.status, "message": self.message, "errors": [fault]}})

    def as_xml(self) -> Answer:
        inside = f"<Code>{self.code}</Code><Message>{escape(self.message)}</Message>"
        return _xml("Error", inside, status=self.status)


def _xml(name: str, inside: str, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Answer:
    space = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if name != "Error" else ""
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}{space}>{inside}</{name}>'.encode()
    return Answer(status, body, {"Content-Type": "application/xml; charset=UTF-8", **(headers or {})})


def _facts(made: Object) -> dict[str, str]:
    return {
        "x-goog-generation": str(made.generation),
        "ETag": f'"xml-{made.generation}"',
        **{f"x-goog-meta-{name}": value for name, value in made.metadata.items()},
    }


def _metadata_in(request: Request) -> dict[str, str]:
    mark = "x-goog-meta-"
    return {name.removeprefix(mark): value for name, value in request.headers.items() if name.startswith(mark)}


def _crc32c(content: bytes) -> str:
    return base64.b64encode(int(google_crc32c.value(content)).to_bytes(4)).decode()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


@cache
def _account() -> tuple[str, str]:
    """Return the private key of a service account, and the public one, PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()

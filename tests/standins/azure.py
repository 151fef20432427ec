"""Azure Blob Storage as far as a model store uses it: blobs, blocks, conditions, copies, pages, signatures and tokens.

It holds what it is given in memory. ``make test-stores`` runs the same calls on Azurite.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from awscrt.checksums import crc64nvme

from tests.standins.http_server import Answer, Refusal, Request, StandIn

CRC64 = "x-ms-content-crc64"
_FIELDS = ("sp", "st", "se", "-", "si", "sip", "spr", "sv", "sr", "-", "ses", "rscc", "rscd", "rsce", "rscl", "rsct")


@dataclass
class Blob:
    """A blob; ``pending``: how many looks at it still find a copy under way."""

    content: bytes
    tag: str
    blocks: list[str]
    metadata: dict[str, str]
    written: datetime = field(default_factory=lambda: datetime.now(UTC))
    pending: int = 0


def crc64_of(content: bytes) -> str:
    """Return the CRC-64 of bytes as the service spells it."""
    return base64.b64encode(crc64nvme(content).to_bytes(8, "little")).decode()


def refusal(status: int, code: str, words: str = "") -> Refusal:
    """Return what the service says of what it does not do."""
    message = words or code
    body = f"\ufeff<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Refusal(Answer(status, body, {"x-ms-error-code": code, "Content-Type": "application/xml"}))


class AzureStandIn(StandIn):
    """An account with one container.

    :param account: its name.
    :param knows_conditions: whether it looks at them at all.
    :param is_hierarchical: whether directories are blobs, as where Data Lake Storage is switched on.
    :param page_size: names on one page of a listing.
    :param pending_looks: how often a copy is looked at before it is there.
    :param crc64: what becomes of the CRC-64 that comes with a block: ``checked``; or as by emulators ``refused``, or
        ``ignored``.
    """

    def __init__(
        self,
        *,
        account: str = "standin",
        knows_conditions: bool = True,
        is_hierarchical: bool = False,
        page_size: int = 5000,
        pending_looks: int = 0,
        crc64: str = "checked",
    ) -> None:
        super().__init__()
        self.account, self.container = account, "models"
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.tokens = {"first-token-of-the-stand-in"}
        self.blobs: dict[str, Blob] = {}
        self.uncommitted: dict[str, dict[str, bytes]] = {}
        self._knows_conditions = knows_conditions
        self._is_hierarchical = is_hierarchical
        self._page_size = page_size
        self._pending_looks = pending_looks
        self.crc64 = crc64
        self._tags = (f"0x{number:016X}" for number in itertools.count(1))

    @property
    def endpoint(self) -> str:
        """The account's URL."""
        return f"{self.url}/{self.account}"

    @property
    def fields(self) -> dict[str, Any]:
        """A connection to a store in it."""
        root = f"abfs://{self.container}@{self.account}/store"
        return {"host": root, "endpoint_url": self.endpoint, "password": self.key, "part_size_mib": 5}

    def operation(self, request: Request) -> str:
        """Return what Microsoft calls a request."""
        if request.query.get("restype") == "container":
            return "List Blobs"
        match request.method, request.query.get("comp"):
            case "PUT", "block":
                return "Put Block"
            case method, "blocklist":
                return "Put Block List" if method == "PUT" else "Get Block List"
            case "PUT", _:
                return "Copy Blob" if "x-ms-copy-source" in request.headers else "Put Blob"
            case "HEAD", _:
                return "Get Blob Properties"
        return {"GET": "Get Blob", "DELETE": "Delete Blob"}[request.method]

    def answer(self, request: Request, body: Any) -> Answer:
        content = b"".join(body)
        with self.lock:
            _, account, container, *rest = request.path.split("/")
            self._authorize(request, container)
            if (account, container) != (self.account, self.container):
                raise refusal(404, "ContainerNotFound")
            serve = getattr(self, f"_{self.operation(request).lower().replace(' ', '_')}")
            answer: Answer = serve(request, "/".join(rest), content)
            return answer

    # -- who sends it

    def _authorize(self, request: Request, container: str) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not request.headers.get("x-ms-version"):
            raise refusal(400, "MissingRequiredHeader")
        if scheme:
            if scheme != "Bearer" or token not in self.tokens:
                raise refusal(401, "InvalidAuthenticationInfo")
        elif not self._is_signed(request.query, container):
            raise refusal(403, "AuthenticationFailed")

    def _is_signed(self, query: Mapping[str, str], container: str) -> bool:
        told = [query.get(name, "") for name in _FIELDS]
        told[3] = f"/blob/{self.account}/{container}"
        proof = hmac.digest(base64.b64decode(self.key), "\n".join(told).encode(), "sha256")
        is_ours = hmac.compare_digest(base64.b64encode(proof).decode(), query.get("sig", ""))
        return is_ours and datetime.fromisoformat(query["se"]) > datetime.now(UTC)

    # -- blobs

    def _condition(self, request: Request, name: str) -> None:
        blob, headers = self.blobs.get(name), request.headers
        if not self._knows_conditions:
            return
        if headers.get("if-none-match") == "*" and blob is not None:
            raise refusal(409, "BlobAlreadyExists")
        if (wanted := headers.get("if-match")) and (blob is None or wanted != f'"{blob.tag}"'):
            raise refusal(412, "ConditionNotMet")

    def _store(self, name: str, content: bytes, blocks: list[str], request: Request) -> Answer:
        given = {key[10:]: value for key, value in request.headers.items() if key.startswith("x-ms-meta-")}
        if any("-" in key for key in given):
            raise refusal(400, "InvalidMetadata")
        self.blobs[name] = blob = Blob(content, next(self._tags), blocks, given)
        self.uncommitted.pop(name, None)
        return Answer(201, headers=self._facts(blob))

    def _facts(self, blob: Blob) -> dict[str, str]:
        written = format_datetime(blob.written.replace(microsecond=0), usegmt=True)
        return {"ETag": f'"{blob.tag}"', "Last-Modified": written} | {
            f"x-ms-meta-{key}": value for key, value in blob.metadata.items()
        }

    def _check(self, request: Request, content: bytes) -> None:
        told = request.headers.get("content-md5")
        if told and told != base64.b64encode(hashlib.md5(content).digest()).decode():
            raise refusal(400, "Md5Mismatch")
        sum_told = request.headers.get(CRC64)
        if sum_told and self.crc64 == "refused":
            raise refusal(500, "FeatureNotSupported", f"{CRC64} header or parameter is not supported")
        if sum_told and self.crc64 == "checked" and sum_told != crc64_of(content):
            raise refusal(400, "Crc64Mismatch")

    def _put_blob(self, request: Request, name: str, content: bytes) -> Answer:
        self._check(request, content)
        self._condition(request, name)
        return self._store(name, content, [], request)

    def _found(self, name: str) -> Blob:
        blob = self.blobs.get(name)
        if blob is None:
            raise refusal(404, "BlobNotFound")
        return blob

    def _get_blob(self, request: Request, name: str, content: bytes) -> Answer:
        blob = self._found(name)
        self._condition(request, name)
        facts, size = self._facts(blob), len(blob.content)
        if "range" not in request.headers:
            return Answer(200, blob.content, facts)
        start, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        facts["Content-Range"] = f"bytes {start}-{min(end, size - 1)}/{size}"
        return Answer(206, blob.content[start : end + 1], facts)

    def _get_blob_properties(self, request: Request, name: str, content: bytes) -> Answer:
        if self._is_hierarchical and any(found.startswith(f"{name}/") for found in self.blobs):
            return Answer(200, headers={"x-ms-meta-hdi_isfolder": "true", "ETag": '"0x1"'})
        blob = self._found(name)
        state = {"x-ms-copy-id": "copy", "x-ms-copy-status": "pending" if blob.pending else "success"}
        blob.pending = max(0, blob.pending - 1)
        return Answer(200, blob.content, self._facts(blob) | state)

    def _delete_blob(self, request: Request, name: str, content: bytes) -> Answer:
        self._found(name)
        self._condition(request, name)
        del self.blobs[name]
        return Answer(202)

    def _copy_blob(self, request: Request, name: str, content: bytes) -> Answer:
        self._condition(request, name)
        source = unquote(urlsplit(request.headers["x-ms-copy-source"]).path).split("/", 3)[3]
        if source not in self.blobs:
            raise refusal(404, "CannotVerifyCopySource")
        origin = self.blobs[source]
        if request.headers.get("x-ms-source-if-match") != f'"{origin.tag}"':
            raise refusal(412, "SourceConditionNotMet")
        answer = self._store(name, origin.content, origin.blocks, request)
        self.blobs[name].pending = self._pending_looks
        status = "pending" if self._pending_looks else "success"
        return Answer(202, headers=answer.headers | {"x-ms-copy-id": "copy", "x-ms-copy-status": status})

    # -- blocks

    def _put_block(self, request: Request, name: str, content: bytes) -> Answer:
        self._check(request, content)
        blocks, block = self.uncommitted.setdefault(name, {}), request.query["blockid"]
        if any(len(known) != len(block) for known in blocks):
            raise refusal(400, "InvalidBlobOrBlock")
        blocks[block] = content
        is_told = self.crc64 == "checked" and "content-md5" not in request.headers
        return Answer(201, headers={CRC64: crc64_of(content)} if is_told else {})

    def _get_block_list(self, request: Request, name: str, content: bytes) -> Answer:
        if name not in self.blobs and name not in self.uncommitted:
            raise refusal(404, "BlobNotFound")
        listed = "".join(
            f"<Block><Name>{block}</Name><Size>{len(held)}</Size></Block>"
            for block, held in self.uncommitted.get(name, {}).items()
        )
        return _xml(f"<BlockList><UncommittedBlocks>{listed}</UncommittedBlocks></BlockList>")

    def _put_block_list(self, request: Request, name: str, content: bytes) -> Answer:
        self._condition(request, name)
        wanted = [element.text or "" for element in ElementTree.fromstring(content).iterfind("Uncommitted")]
        held = self.uncommitted.get(name, {})
        if not held.keys() >= set(wanted):
            raise refusal(400, "InvalidBlockList")
        return self._store(name, b"".join(held[block] for block in wanted), wanted, request)

    # -- listings

    def _list_blobs(self, request: Request, name: str, content: bytes) -> Answer:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = {name for name in self.blobs if name.startswith(prefix)}
        bare = set()
        if "uncommittedblobs" in query.get("include", ""):
            bare = {name for name in self.uncommitted if name.startswith(prefix)} - names
        entries: dict[str, str] = {}
        for found in sorted(names | bare):
            head, cut, _ = found.removeprefix(prefix).partition("/")
            if delimiter and cut:
                entries[f"{prefix}{head}/"] = f"<BlobPrefix><Name>{escape(prefix + head)}/</Name></BlobPrefix>"
            else:
                entries[found] = self._entry(found, self.blobs.get(found))
        marker = query.get("marker", "")
        rest = [entry for key, entry in entries.items() if key >= marker]
        left = [key for key in entries if key >= marker][self._page_size :]
        blobs = "".join(rest[: self._page_size])
        after = f"<NextMarker>{escape(left[0])}</NextMarker>" if left else "<NextMarker/>"
        return _xml(f"<EnumerationResults><Blobs>{blobs}</Blobs>{after}</EnumerationResults>")

    def _entry(self, name: str, blob: Blob | None) -> str:
        facts = "<Content-Length>0</Content-Length>"
        metadata = ""
        if blob:
            written = format_datetime(blob.written.replace(microsecond=0), usegmt=True)
            facts = f"<Last-Modified>{written}</Last-Modified><Etag>{blob.tag}</Etag>"
            facts += f"<Content-Length>{len(blob.content)}</Content-Length>"
            metadata = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in blob.metadata.items())
        told = f"<Properties>{facts}</Properties><Metadata>{metadata}</Metadata>"
        return f"<Blob><Name>{escape(name)}</Name>{told}</Blob>"


def _xml(text: str) -> Answer:
    return Answer(
        200, f'\ufeff<?xml version="1.0" encoding="utf-8"?>{text}'.encode(), {"Content-Type": "application/xml"}
    )

"""A proxy in front of an S3 service that logs every request, breaks where it is told to, and believes nothing.

    with running_moto() as moto, S3StandIn(moto) as s3:
        s3.fault("UploadPart", "weights", Respond(503, "SlowDown"), part=2)
        ...  # talk to s3.endpoint with s3.access_key and s3.secret_key about s3.bucket
        assert s3.count("UploadPart", "weights", part=2) == 2

It refuses what S3 refuses, whether the service behind does or not: wrong checksums and digests, forged, expired and
early signatures, `x-amz-*` headers that are not signed, two ways to sign at once, a second completion. What it cannot
check it answers with 501, so that nothing passes unseen. Bodies go through temporary files, block by block. Nothing
here imports the package under test.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import io
import re
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.services.s3 import S3Service

BLOCK = 256 * 1024
SPOOL = 1 << 20  # bytes of a body that stay in memory
KEPT = 1 << 20  # bytes of a POST's body that are kept for the test to look at
SKEW = timedelta(minutes=15)
LONGEST = 7 * 24 * 3600  # seconds that a presigned URL may live

_TIME = "%Y%m%dT%H%M%SZ"
_WRITES = {"PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject"}  # of whole objects
_HOP = {"connection", "date", "expect", "keep-alive", "server", "transfer-encoding", "te", "trailer", "upgrade"}


# ---- what a test sees: the log of requests ----------------------------------------------------------------------


@dataclass
class Request:
    """One request as it arrived.

    :param bucket: empty for a request to the service itself; so is the key for one to a bucket.
    :param headers: names are in lower case.
    :param body: of a POST.
    :param received: bytes of the body that the client sent.
    :param sent: bytes of the answer's body.
    :param status: 0: the connection ended without an answer.
    :param code: S3's word for what was wrong.
    """

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    received: int = 0
    sent: int = 0
    status: int = 0
    code: str = ""

    @property
    def part(self) -> int | None:
        """The number of the part."""
        return int(self.query["partNumber"]) if "partNumber" in self.query else None

    @property
    def presigned(self) -> bool:
        """Whether the URL says who sent it."""
        return "X-Amz-Signature" in self.query

    @property
    def operation(self) -> str:
        """What AWS calls it; the bare method where that is of no interest here."""
        copy = "x-amz-copy-source" in self.headers
        match self.method, bool(self.key):
            case "PUT", True if self.part is not None:
                return "UploadPartCopy" if copy else "UploadPart"
            case "PUT", True:
                return "CopyObject" if copy else "PutObject"
            case "POST", True if "uploads" in self.query:
                return "CreateMultipartUpload"
            case "POST", True if "uploadId" in self.query:
                return "CompleteMultipartUpload"
            case "DELETE", True:
                return "AbortMultipartUpload" if "uploadId" in self.query else "DeleteObject"
            case "GET", True:
                return "ListParts" if "uploadId" in self.query else "GetObject"
            case "HEAD", True:
                return "HeadObject"
            case "POST", False if "delete" in self.query:
                return "DeleteObjects"
            case "GET", False if "uploads" in self.query:
                return "ListMultipartUploads"
            case "GET", False if "list-type" in self.query:
                return "ListObjectsV2"
        return self.method


# ---- what a test scripts: faults --------------------------------------------------------------------------------
# "The body" is the request's; where that has none, the answer's.


@dataclass(frozen=True)
class Respond:
    """Answer this error instead; with 200, too, as Complete and copies may. `early`: before the body is read."""

    status: int
    code: str = "InternalError"
    headers: dict[str, str] = field(default_factory=dict)
    early: bool = False


@dataclass(frozen=True)
class Reset:
    """Reset the connection after this many bytes of the body."""

    after: int = 0


@dataclass(frozen=True)
class Stall:
    """Do nothing for a while after this many bytes of the body."""

    after: int = 0
    seconds: float = 60


@dataclass(frozen=True)
class FlipBit:
    """Flip the lowest bit of one byte of the body: on its way, so that a checksum sent along does not fit any more."""

    offset: int


@dataclass(frozen=True)
class LoseAnswer:
    """Do what was asked for, then reset the connection instead of answering."""


@dataclass(frozen=True)
class Before:
    """Call this before anything is done."""

    hook: Callable[[Request], object]


@dataclass(frozen=True)
class After:
    """Call this when the service has done its work and the client does not know yet."""

    hook: Callable[[Request], object]


T = TypeVar("T")
Action = Respond | Reset | Stall | FlipBit | LoseAnswer | Before | After


@dataclass
class _Fault:
    """An action for the nth and the following `times` - 1 requests that match; `times` None: for ever."""

    what: str
    key: re.Pattern[str]
    part: int | None
    action: Action
    nth: int
    times: int | None
    seen: int = 0

    def due(self, request: Request) -> bool:
        """Count a request; return whether it is to suffer."""
        if not _matches(request, self.what, self.key, self.part):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


def _matches(request: Request, what: str, key: re.Pattern[str], part: int | None) -> bool:
    return (
        what in ("*", request.method, request.operation)
        and key.search(request.key) is not None
        and (part is None or request.part == part)
    )


# ---- what S3 refuses --------------------------------------------------------------------------------------------


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def _precondition_failed() -> Refusal:
    return Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


class _HangUp(Exception):
    """The connection is to be reset."""


@dataclass(frozen=True)
class _Claim:
    """How a request says who sent it, in its headers or in its URL (Signature Version 4)."""

    credential: str
    signed_at: datetime
    signed_headers: list[str]
    signature: str
    payload: str
    life: timedelta | None  # of a presigned URL

    @classmethod
    def of(cls, request: Request) -> _Claim:
        authorization, query = request.headers.get("authorization"), request.query
        if request.presigned and authorization:
            raise Refusal(400, "InvalidArgument", "Only one auth mechanism allowed")
        try:
            if request.presigned:
                life = int(query["X-Amz-Expires"])
                if not 0 < life <= LONGEST:
                    raise Refusal(400, "AuthorizationQueryParametersError", "X-Amz-Expires must be less than a week")
                return cls(
                    credential=query["X-Amz-Credential"],
                    signed_at=_parse_time(query["X-Amz-Date"]),
                    signed_headers=query["X-Amz-SignedHeaders"].split(";"),
                    signature=query["X-Amz-Signature"],
                    payload=request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
                    life=timedelta(seconds=life),
                )
            if authorization is None:
                raise Refusal(403, "AccessDenied", "Access Denied")
            fields = dict(re.findall(r"(\w+)=([^,\s]+)", authorization))
            return cls(
                credential=fields["Credential"],
                signed_at=_parse_time(request.headers["x-amz-date"]),
                signed_headers=fields["SignedHeaders"].split(";"),
                signature=fields["Signature"],
                payload=request.headers["x-amz-content-sha256"],
                life=None,
            )
        except (KeyError, ValueError) as error:
            raise Refusal(400, "AuthorizationHeaderMalformed", f"This is no AWS4-HMAC-SHA256: {error}") from None

    def check(self, request: Request, path: str, service: S3Service, now: datetime) -> None:
        """Refuse what is not signed by the service's key, now, and in full."""
        access_key, _, scope = self.credential.partition("/")
        if access_key != service.access_key:
            raise Refusal(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
            )
        if self.life is None and abs(now - self.signed_at) > SKEW:
            message = "The difference between the request time and the current time is too large."
            raise Refusal(403, "RequestTimeTooSkewed", message)
        if self.life is not None and now > self.signed_at + self.life:
            raise Refusal(403, "AccessDenied", "Request has expired")
        if self.life is not None and self.signed_at > now + SKEW:
            raise Refusal(403, "AccessDenied", "Request is not valid yet")
        unsigned = {name for name in request.headers if name.startswith("x-amz-")} - set(self.signed_headers)
        if unsigned or "host" not in self.signed_headers:
            message = f"There were headers present in the request which were not signed: {sorted(unsigned)}"
            raise Refusal(403, "AccessDenied", message)
        if not hmac.compare_digest(self.signature, self._expected(request, path, scope, service.secret_key)):
            message = "The request signature we calculated does not match the signature you provided."
            raise Refusal(403, "SignatureDoesNotMatch", message)

    def _expected(self, request: Request, path: str, scope: str, secret: str) -> str:
        pairs = sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in request.query.items()
            if name != "X-Amz-Signature"
        )
        canonical = "\n".join(
            (
                request.method,
                quote(unquote(path), safe="/-_.~"),
                "&".join(f"{name}={value}" for name, value in pairs),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in self.signed_headers),
                "",
                ";".join(self.signed_headers),
                self.payload,
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{secret}".encode()
        for word in scope.split("/"):
            key = _hmac(key, word)
        return _hmac(key, f"AWS4-HMAC-SHA256\n{self.signed_at:{_TIME}}\n{scope}\n{digest}").hex()


def _parse_time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class _Crc32:
    """CRC32 as hashlib would have it."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_DIGESTS: dict[str, Callable[[], Any]] = {
    "content-md5": lambda: hashlib.md5(usedforsecurity=False),
    "x-amz-checksum-crc32": _Crc32,
    "x-amz-checksum-sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "x-amz-checksum-sha256": hashlib.sha256,
}
_NO_DIGEST = {"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"}


def _check_body(request: Request, claim: _Claim, body: IO[bytes]) -> None:
    """Refuse a body that is not what the headers say."""
    headers = request.headers
    announced = {name for name in headers if name == "content-md5" or name.startswith("x-amz-checksum-")} - _NO_DIGEST
    if unknown := announced - _DIGESTS.keys():
        raise Refusal(501, "NotImplemented", f"The stand-in cannot check {sorted(unknown)}")
    if claim.payload.startswith("STREAMING-") or "aws-chunked" in headers.get("content-encoding", ""):
        raise Refusal(501, "NotImplemented", "The stand-in does not read chunks with signatures or trailers")
    if request.operation == "CompleteMultipartUpload" and announced - {"content-md5"}:
        raise Refusal(501, "NotImplemented", "The stand-in does not check an object's checksum")
    if request.operation == "DeleteObjects" and not announced:
        raise Refusal(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
    if headers.get("if-none-match", "*") != "*" and request.method in ("PUT", "POST"):
        raise Refusal(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    digests = {name: _DIGESTS[name]() for name in announced}
    if claim.payload != "UNSIGNED-PAYLOAD":
        digests["x-amz-content-sha256"] = hashlib.sha256()
    if digests:
        while block := body.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
        body.seek(0)
    if "x-amz-content-sha256" in digests and digests.pop("x-amz-content-sha256").hexdigest() != claim.payload:
        message = "The provided 'x-amz-content-sha256' header does not match what was computed."
        raise Refusal(400, "XAmzContentSHA256Mismatch", message)
    for name, digest in digests.items():
        if base64.b64encode(digest.digest()).decode() != headers[name]:
            raise Refusal(400, "BadDigest", f"The {name} you specified did not match what we received.")


# ---- the stand-in -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    read: Callable[[int], bytes]


class S3StandIn:
    """The proxy; start and stop it as a context manager, which makes a bucket for the test, too.

    :param backend: the service behind.
    :param opaque_etags: no ETag is an MD5 of anything, as with KMS; only before a service that checks no signatures.
    :param tls: speaks TLS with this.
    """

    def __init__(self, backend: S3Service, *, opaque_etags: bool = False, tls: ssl.SSLContext | None = None) -> None:
        assert not (opaque_etags and backend.checks_signatures)
        self.backend = backend
        self.opaque_etags = opaque_etags
        self.access_key = backend.access_key
        self.secret_key = backend.secret_key
        self.bucket = ""
        self.clock = timedelta()  # that the service's clock is ahead
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        self.stopping = threading.Event()
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()
        self.writing = threading.Lock()  # so that a condition holds until it has been made use of
        self._over: set[str] = set()  # uploads that were completed or aborted
        self._checksums: dict[tuple[str, int], set[str]] = {}
        self._server = _Server(self, tls)
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self.bucket = self.backend.new_bucket()
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.stop()
        if self.errors and error is None:
            raise self.errors[0]

    @property
    def service(self) -> S3Service:
        """The service as its clients see it."""
        return S3Service(self.endpoint, self.access_key, self.secret_key, checks_signatures=True)

    def client(self, **config: Any) -> Any:
        """Return a plain boto3 client that goes through the proxy; ``backend.client()`` goes past it."""
        return self.service.client(**config)

    # -- faults and log

    def fault(
        self, what: str, key: str, action: Action, *, part: int | None = None, nth: int = 1, times: int | None = 1
    ) -> None:
        """Script what happens to the nth request (and `times` - 1 more) of this operation or method ("*": any).

        `key` is a regular expression that is searched in the key. All actions that are due happen.
        """
        with self._lock:
            self._faults.append(_Fault(what, re.compile(key), part, action, nth, times))

    def arrived(self, request: Request) -> list[Action]:
        """Note a request and return what is meant for it."""
        with self._lock:
            self.requests.append(request)
            return [fault.action for fault in self._faults if fault.due(request)]

    def clear(self) -> None:
        """Forget all requests and faults."""
        with self._lock:
            self.requests.clear()
            self._faults.clear()

    def find(self, what: str = "*", key: str = "", *, part: int | None = None) -> list[Request]:
        """The requests that match, in order of arrival."""
        pattern = re.compile(key)
        with self._lock:
            return [request for request in self.requests if _matches(request, what, pattern, part)]

    def count(self, what: str = "*", key: str = "", *, part: int | None = None) -> int:
        """How many requests match."""
        return len(self.find(what, key, part=part))

    @property
    def operations(self) -> Counter[str]:
        """How often each operation was asked for."""
        return Counter(request.operation for request in self.find())

    @property
    def uploaded(self) -> Counter[str]:
        """Bytes of bodies that were sent to each key, refused ones included."""
        return self._bytes("PUT", lambda request: request.received)

    @property
    def downloaded(self) -> Counter[str]:
        """Bytes of bodies that were sent from each key."""
        return self._bytes("GetObject", lambda request: request.sent)

    def _bytes(self, what: str, measure: Callable[[Request], int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for request in self.find(what):
            total[request.key] += measure(request)
        return +total

    # -- requests

    @property
    def now(self) -> datetime:
        """The service's time."""
        return datetime.now(UTC) + self.clock

    def check(self, request: Request, path: str, body: IO[bytes]) -> None:
        """Refuse what S3 refuses."""
        claim = _Claim.of(request)
        claim.check(request, path, self.service, self.now)
        _check_body(request, claim, body)
        upload = request.query.get("uploadId", "")
        with self._lock:
            if upload in self._over:  # moto breaks when one that was aborted is gone on with
                raise Refusal(404, "NoSuchUpload", "The specified upload does not exist. It may have been completed.")
            if request.operation == "CompleteMultipartUpload":
                self._check_parts(upload, request.body)

    def check_conditions(self, request: Request) -> None:
        """Refuse to write where a condition does not hold; neither Ceph nor moto knows all of them."""
        headers = request.headers
        if "x-amz-copy-source" in headers:
            source = unquote(headers["x-amz-copy-source"].partition("?")[0]).removeprefix("/").partition("/")
            wanted = headers.get("x-amz-copy-source-if-match")
            if wanted and wanted.strip('"') != self._etag(source[0], source[2]):
                raise _precondition_failed()
        if request.operation in _WRITES and ("if-match" in headers or "if-none-match" in headers):
            found = self._etag(request.bucket, request.key)
            if found and "if-none-match" in headers:
                raise _precondition_failed()
            if found and headers.get("if-match", "*").strip('"') not in ("*", found):
                raise _precondition_failed()
            if not found and "if-match" in headers:
                raise Refusal(404, "NoSuchKey", "The specified key does not exist.")

    def _etag(self, bucket: str, key: str) -> str | None:
        """An object's ETag as clients see it."""
        try:
            etag = str(self._past.head_object(Bucket=bucket, Key=key)["ETag"]).strip('"')
        except self._past.exceptions.ClientError:
            return None
        return _disguised(etag) if self.opaque_etags else etag

    @cached_property
    def _past(self) -> Any:
        """A client that goes past the proxy."""
        return self.backend.client()

    def _check_parts(self, upload: str, xml: bytes) -> None:
        """Refuse a completion that names a part's checksum wrongly."""
        for part in ElementTree.fromstring(xml).iterfind("{*}Part"):
            number = int(part.findtext("{*}PartNumber", "0"))
            named = {str(child.text) for child in part if "}Checksum" in child.tag}
            if not named <= self._checksums.get((upload, number), set()):
                raise Refusal(400, "InvalidPart", "One or more of the specified parts could not be found.")

    def done(self, request: Request) -> None:
        """Remember what the service did."""
        upload = request.query.get("uploadId", "")
        with self._lock:
            if request.operation in ("CompleteMultipartUpload", "AbortMultipartUpload"):
                self._over.add(upload)
            if request.operation == "UploadPart" and request.part is not None:
                named = {value for name, value in request.headers.items() if name.startswith("x-amz-checksum-")}
                self._checksums[upload, request.part] = named


class _Server(ThreadingHTTPServer):
    """Stops with all its connections."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, stand_in: S3StandIn, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:  # the handshake happens in the connection's own thread
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.stand_in = stand_in
        self.live: dict[_Handler, threading.Thread] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.ident:
            self.shutdown()
            self._thread.join()
        for handler, thread in list(self.live.items()):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
        self.server_close()

    def shutdown_request(self, request: Any) -> None:
        lingering = struct.unpack("ii", request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]
        if lingering:  # to be reset: no orderly end before it
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: the client left, or did not like the certificate."""


class _Handler(BaseHTTPRequestHandler):
    """Log the request, let its faults act, check it, pass it on."""

    protocol_version = "HTTP/1.1"
    server_version = "stand-in"
    disable_nagle_algorithm = True
    server: _Server
    entry: Request
    actions: list[Action]
    unread = 0

    def setup(self) -> None:
        super().setup()
        self.server.live[self] = threading.current_thread()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            del self.server.live[self]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet: tests read the log of requests."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.stand_in.now.timestamp())

    def handle_expect_100(self) -> bool:
        """Ask for the body no sooner than it is read."""
        return True

    def serve(self) -> None:
        self.entry = _parsed(self.command, self.path, self.headers.items())
        self.unread = int(self.entry.headers.get("content-length", "0"))
        self.actions = self.server.stand_in.arrived(self.entry)
        try:
            self.obey()
        except _HangUp:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        except (ConnectionError, TimeoutError, ssl.SSLError):  # the client left
            self.close_connection = True
        except Exception as error:  # a defect of the stand-in: the test that started it is to fail
            if not self.server.stand_in.stopping.is_set():
                self.server.stand_in.errors.append(error)
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def obey(self) -> None:
        for before in self.due(Before):
            before.hook(self.entry)
        with SpooledTemporaryFile(SPOOL) as body:
            try:
                self.take(body)
                self.server.stand_in.check(self.entry, urlsplit(self.path).path, body)
                with contextlib.closing(self.backend()) as backend:
                    self.conclude(self.exchange(backend, body))
            except Refusal as refusal:
                self.entry.code = refusal.code
                self.send(_error(refusal))

    def due(self, kind: type[T]) -> list[T]:
        """The actions of a kind."""
        return [action for action in self.actions if isinstance(action, kind)]

    # -- the body

    def take(self, body: IO[bytes]) -> None:
        """Read what the client sends, or refuse as scripted."""
        if "transfer-encoding" in self.entry.headers:
            raise Refusal(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        for respond in self.due(Respond):
            if respond.early:
                raise _scripted(respond)
        if self.unread:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            for block in self.suffered(self.receive):
                body.write(block)
                if self.command == "POST" and len(self.entry.body) < KEPT:
                    self.entry.body += block
            body.seek(0)
        for respond in self.due(Respond):
            raise _scripted(respond)

    def receive(self, size: int) -> bytes:
        """Read at most that much of what is left of the client's body."""
        if not self.unread:
            return b""
        block: bytes = self.rfile.read1(min(size, self.unread))
        if not block:
            raise ConnectionAbortedError
        self.unread -= len(block)
        self.entry.received += len(block)
        return block

    def suffered(self, read: Callable[[int], bytes]) -> Iterator[bytes]:
        """A body as the faults leave it."""
        breaks: list[Reset | Stall] = [*self.due(Reset), *self.due(Stall)]
        breaks.sort(key=lambda action: action.after)
        flips = [flip.offset for flip in self.due(FlipBit)]
        position = 0
        while True:
            while breaks and breaks[0].after <= position:
                self.interrupt(breaks.pop(0))
            block = read(min(BLOCK, breaks[0].after - position) if breaks else BLOCK)
            if not block:
                return
            for offset in (flip - position for flip in flips):
                if 0 <= offset < len(block):
                    block = block[:offset] + bytes([block[offset] ^ 1]) + block[offset + 1 :]
            yield block
            position += len(block)

    def interrupt(self, action: Reset | Stall) -> None:
        if isinstance(action, Reset):
            raise _HangUp
        if self.server.stand_in.stopping.wait(action.seconds):
            raise ConnectionAbortedError

    # -- the service behind

    def backend(self) -> http.client.HTTPConnection:
        url = urlsplit(self.server.stand_in.backend.endpoint)
        assert url.hostname
        return http.client.HTTPConnection(url.hostname, url.port)

    def exchange(self, backend: http.client.HTTPConnection, body: IO[bytes]) -> _Answer:
        """Let the service answer."""
        stand_in = self.server.stand_in
        with stand_in.writing if self.entry.operation in _WRITES else contextlib.nullcontext():
            stand_in.check_conditions(self.entry)
            answer = self.forward(backend, body)
            if self.entry.operation == "GetObject" and answer.status < http.HTTPStatus.MULTIPLE_CHOICES:
                return _Answer(answer.status, self.headers_of(answer), answer.read)
            text = answer.read()
        if error := re.search(rb"<Error>.*?<Code>(\w+)", text, re.DOTALL):
            self.entry.code = error[1].decode()
        elif answer.status < http.HTTPStatus.MULTIPLE_CHOICES:
            stand_in.done(self.entry)
        headers = self.headers_of(answer)
        if self.command != "HEAD" and answer.status != http.HTTPStatus.NO_CONTENT:
            headers["content-length"] = str(len(text))
        return _Answer(
            answer.status, headers, io.BytesIO(_disguised_tags(text) if stand_in.opaque_etags else text).read
        )

    def forward(self, backend: http.client.HTTPConnection, body: IO[bytes]) -> http.client.HTTPResponse:
        """Pass the request on. The service is told the host that the client knows, for that is what was signed."""
        opaque = self.server.stand_in.opaque_etags
        if opaque and self.command == "POST":
            body = io.BytesIO(_disguised_tags(body.read()))
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                backend.putheader(name, _disguised(value) if opaque and "match" in name.lower() else value)
        backend.endheaders()
        while block := body.read(BLOCK):
            backend.send(block)
        return backend.getresponse()

    def headers_of(self, answer: http.client.HTTPResponse) -> dict[str, str]:
        """What the client gets to see."""
        headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if self.server.stand_in.opaque_etags and "etag" in headers:
            headers["etag"] = _disguised(headers["etag"])
        return headers

    def conclude(self, answer: _Answer) -> None:
        """Tell the client, or not."""
        for after in self.due(After):
            after.hook(self.entry)
        if self.due(LoseAnswer):
            raise _HangUp
        self.send(answer)

    # -- the answer

    def send(self, answer: _Answer) -> None:
        """Send it; where the body was not read to its end, let the client hear of it although it is still sending."""
        unread = self.unread > 0 or "transfer-encoding" in self.entry.headers
        self.close_connection = self.close_connection or unread
        self.entry.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            blocks = iter(lambda: answer.read(BLOCK), b"") if self.entry.received else self.suffered(answer.read)
            for block in blocks:
                self.wfile.write(block)
                self.entry.sent += len(block)
        if unread:
            self.linger()

    def linger(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 1
        while (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.rfile.read1(BLOCK):
                return


def _parsed(method: str, target: str, headers: Iterable[tuple[str, str]]) -> Request:
    path, _, query = target.partition("?")
    bucket, _, key = unquote(path).removeprefix("/").partition("/")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name.lower()] = f"{joined[name.lower()]},{value}" if name.lower() in joined else value
    return Request(method, bucket, key, {unquote(name): unquote(value) for name, _, value in pairs}, joined)


def _scripted(respond: Respond) -> Refusal:
    return Refusal(respond.status, respond.code, "As the test wants it.", respond.headers)


def _error(refusal: Refusal) -> _Answer:
    xml = f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
    headers = {"content-type": "application/xml", "content-length": str(len(body))} | refusal.headers
    return _Answer(refusal.status, headers, io.BytesIO(body).read)


_MIRROR = str.maketrans("0123456789abcdef", "fedcba9876543210")


def _disguised(text: str) -> str:
    """Make an MD5 into what is none; twice, and it is itself again."""
    return re.sub(r"[0-9a-f]{32}", lambda found: found[0].translate(_MIRROR), text)


def _disguised_tags(xml: bytes) -> bytes:
    return re.sub(rb"<ETag>[^<]*", lambda found: _disguised(found[0].decode()).encode(), xml)

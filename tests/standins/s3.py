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
import io
import re
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.services import s3 as services
from tests.services.s3 import Connection, S3Service
from tests.standins import http_server
from tests.standins.http_server import (
    BLOCK,
    Action,
    After,
    Answer,
    Before,
    FlipBit,
    Handler,
    HangUp,
    LoseAnswer,
    Reset,
    StandIn,
    flip_bit,
)
from tests.standins.s3_quirks import QUIRKS

SPOOL = 1 << 20  # bytes of a body that stay in memory
KEPT = 1 << 20  # bytes of a POST's body that are kept for the test to look at
SKEW = timedelta(minutes=15)
LONGEST = 7 * 24 * 3600  # seconds that a presigned URL may live

_TIME = "%Y%m%dT%H%M%SZ"
_WRITES = {"PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject"}  # of whole objects
_HOP = {"connection", "date", "expect", "keep-alive", "server", "transfer-encoding", "te", "trailer", "upgrade"}


# ---- what a test sees: the log of requests ----------------------------------------------------------------------


@dataclass
class Request(http_server.Request):
    """One request as it arrived.

    :param headers: names are in lower case.
    :param body: of a POST.
    :param received: bytes of the body that the client sent.
    :param sent: bytes of the answer's body.
    :param code: S3's word for what was wrong.
    :param is_virtual: whether the bucket stood in the host's name.
    """

    body: bytes = b""
    code: str = ""
    is_virtual: bool = False

    @property
    def bucket(self) -> str:
        """Empty for a request to the service itself."""
        return self.path.removeprefix("/").partition("/")[0]

    @property
    def key(self) -> str:
        """Empty for a request to a bucket."""
        return self.path.removeprefix("/").partition("/")[2]

    def matches(self, what: str, key: re.Pattern[str], part: int | None) -> bool:
        return (
            what in ("*", self.method, self.operation)
            and key.search(self.key) is not None
            and (part is None or self.part == part)
        )

    @property
    def presigned(self) -> bool:
        """Whether the URL says who sent it."""
        return "X-Amz-Signature" in self.query

    @property
    def operation(self) -> str:
        """What AWS calls it; the bare method where that is of no interest here."""
        copy = "x-amz-copy-source" in self.headers
        match self.method, bool(self.key):
            case "PUT", True if "partNumber" in self.query:
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
# Those of all stand-ins that count here are LoseAnswer, and Reset and FlipBit, which befall the request's body; where
# that has none, the answer's.


@dataclass(frozen=True)
class Respond(Action):
    """Answer this error instead; with 200, too, as Complete and copies may. `early`: before the body is read."""

    status: int
    code: str = "InternalError"
    headers: dict[str, str] = field(default_factory=dict)
    early: bool = False


@dataclass(frozen=True)
class Stall(Action):
    """Do nothing for a while after this many bytes of the body."""

    after: int = 0
    seconds: float = 60


T = TypeVar("T")


# ---- what S3 refuses --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer(Answer):
    """One whose headers say all, and whose body is read from somewhere."""

    read: Callable[[int], bytes] = io.BytesIO().read


class Refusal(http_server.Refusal):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        xml = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
        facts = {"content-type": "application/xml", "content-length": str(len(body))}
        super().__init__(_Answer(status, headers=facts | (headers or {}), read=io.BytesIO(body).read))
        self.code = code


def _precondition_failed() -> Refusal:
    return Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


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


class S3StandIn(StandIn):
    """The proxy; start and stop it as a context manager, which makes a bucket for the test, too.

    Faults and the log name an operation of S3 or a method, and search keys. All actions that are due happen.

    :param backend: the service behind.
    :param quirks: what it does in another way than AWS, by the names in :mod:`tests.standins.s3_quirks`.
    :param region: where its buckets are; only hosts of that region know them, as at AWS since March 2019.
    :param opaque_etags: no ETag is an MD5 of anything, as with KMS; only before a service that checks no signatures.
    :param tls: speaks TLS with this.
    :param inner_tls: as the proxy of its clients, it plays any host that they ask for, with this certificate.
    """

    def __init__(
        self,
        backend: S3Service,
        *,
        quirks: Iterable[str] = (),
        region: str | None = None,
        opaque_etags: bool = False,
        tls: ssl.SSLContext | None = None,
        inner_tls: ssl.SSLContext | None = None,
    ) -> None:
        assert not (opaque_etags and backend.checks_signatures)
        super().__init__(handler=_Handler, tls=tls)
        self.quirks = [QUIRKS[name] for name in quirks]
        self.region = region
        self.inner_tls = inner_tls
        self.backend = backend
        self.opaque_etags = opaque_etags
        self.access_key = backend.access_key
        self.secret_key = backend.secret_key
        self.bucket = ""
        self.clock = timedelta()  # that the service's clock is ahead
        self.writing = threading.Lock()  # so that a condition holds until it has been made use of
        self._over: set[tuple[str, str]] = set()  # bucket and id of uploads that were completed or aborted
        self._checksums: dict[tuple[str, int], set[str]] = {}

    def __enter__(self) -> Self:
        self.bucket = self.backend.new_bucket()
        return super().__enter__()

    @property
    def endpoint(self) -> str:
        return self.url

    @property
    def service(self) -> S3Service:
        """The service as its clients see it."""
        return S3Service(self.endpoint, self.access_key, self.secret_key, checks_signatures=True)

    def client(self, **config: Any) -> Any:
        """Return a plain boto3 client that goes through the proxy; ``backend.client()`` goes past it."""
        return self.service.client(**config)

    # -- the log

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
        if self.region:
            self._check_region(request)
        claim = _Claim.of(request)
        claim.check(request, path, self.service, self.now)
        for quirk in self.quirks:
            if refused := quirk.refuse(request):
                raise Refusal(*refused)
        _check_body(request, claim, body)
        upload = request.query.get("uploadId", "")
        with self.lock:
            if (request.bucket, upload) in self._over:  # moto breaks when one that was aborted is gone on with
                raise Refusal(404, "NoSuchUpload", "The specified upload does not exist. It may have been completed.")
            if request.operation == "CompleteMultipartUpload":
                self._check_parts(upload, request.body)

    def _check_region(self, request: Request) -> None:
        """Refuse what comes to the host of another region, or is signed for one.

        As described in https://github.com/boto/boto3/issues/2728 and "Making requests" in the S3 User Guide.
        """
        hint = {"x-amz-bucket-region": str(self.region)}
        host = _AWS_HOST.fullmatch(request.headers["host"])
        asked = host and host["region"]
        if asked is None:
            message = (
                f"The {self.region} location constraint is incompatible for the region specific endpoint this request "
                "was sent to."
            )
            raise Refusal(400, "IllegalLocationConstraintException", message, hint)
        if asked != self.region:
            message = "The bucket you are attempting to access must be addressed using the specified endpoint."
            raise Refusal(301, "PermanentRedirect", message, hint)
        if f"/{self.region}/s3/" not in _Claim.of(request).credential:
            code = "AuthorizationQueryParametersError" if request.presigned else "AuthorizationHeaderMalformed"
            raise Refusal(400, code, f"the region is wrong; expecting '{self.region}'", hint)

    def sees(self, request: Request) -> dict[str, str]:
        """The headers that count."""
        dropped = {name for quirk in self.quirks for name in (quirk.dropped or {}).get(request.operation, ())}
        return {name: value for name, value in request.headers.items() if name not in dropped}

    def passes_on(self, request: Request) -> set[str]:
        """The headers that the service behind is told."""
        names = set(self.sees(request))
        return names - {"if-match"} if any(quirk.creates_on_if_match for quirk in self.quirks) else names

    def check_conditions(self, request: Request) -> None:
        """Refuse to write where a condition does not hold; neither Ceph nor moto knows all of them."""
        headers = self.sees(request)
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
            if not found and "if-match" in headers and not any(quirk.creates_on_if_match for quirk in self.quirks):
                raise Refusal(404, "NoSuchKey", "The specified key does not exist.")

    def _etag(self, bucket: str, key: str) -> str | None:
        """An object's ETag as clients see it."""
        etag = self.backend.etag(bucket, key)
        return _disguised(etag) if etag and self.opaque_etags else etag

    def _check_parts(self, upload: str, xml: bytes) -> None:
        """Refuse a completion that names a part's checksum wrongly."""
        for part in ElementTree.fromstring(xml).iterfind("{*}Part"):
            number = int(part.findtext("{*}PartNumber", "0"))
            named = {str(child.text) for child in part if "}Checksum" in child.tag}
            if not named <= self._checksums.get((upload, number), set()):
                raise Refusal(400, "InvalidPart", "One or more of the specified parts could not be found.")

    def done(self, request: Request, answer: services.Answer) -> None:
        """Remember what the service did; a part has the sum that came with it, or that the service has found."""
        upload = request.query.get("uploadId", "")
        with self.lock:
            if request.operation in ("CompleteMultipartUpload", "AbortMultipartUpload"):
                self._over.add((request.bucket, upload))
            if request.operation == "UploadPart" and request.part is not None:
                said = [*request.headers.items(), *answer.getheaders()]
                named = {value for name, value in said if name.lower().startswith("x-amz-checksum-")}
                self._checksums[upload, request.part] = named


_AWS_HOST = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:[.-](?P<region>[a-z]+-[a-z]+-\d))?\.amazonaws\.com")
_HOST = re.compile(r"(?P<bucket>[a-z0-9-]+)\.(?:s3|oss)[.-][a-z0-9.-]+(?::\d+)?")  # of a bucket that has its own


class _Handler(Handler):
    """Log the request, let its faults act, check it, pass it on."""

    entry: Request
    send_error = BaseHTTPRequestHandler.send_error  # what is no HTTP is not logged

    def do_PATCH(self) -> None:  # noqa: N802
        self.send_error(501, "Unsupported method ('PATCH')")

    def do_CONNECT(self) -> None:  # noqa: N802
        """As a proxy, be the host that is asked for."""
        context = self.server.stand_in.inner_tls
        if context is None:
            self.send_error(501)
            return
        self.send_response(200)
        self.end_headers()
        self.request = context.wrap_socket(self.connection, server_side=True)
        self.setup()
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.close()

    def parsed(self) -> Request:
        if not self.path.startswith("/"):  # to a proxy
            url = urlsplit(self.path)
            self.path = url.path + (f"?{url.query}" if url.query else "")
        named = _HOST.fullmatch(self.headers.get("Host", ""))
        self.signed_path = urlsplit(self.path).path
        if named:
            self.path = f"/{named['bucket']}{self.path}"
        path, _, query = self.path.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        joined: dict[str, str] = {}
        for name, value in self.headers.items():
            joined[name.lower()] = f"{joined[name.lower()]},{value}" if name.lower() in joined else value
        names = {unquote(name): unquote(value) for name, _, value in pairs}
        made = Request(self.server.origin, self.command, unquote(path), names, joined)
        made.is_virtual = named is not None
        return made

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.stand_in.now.timestamp())

    def handle_expect_100(self) -> bool:
        """Ask for the body no sooner than it is read."""
        return True

    def obey(self) -> None:
        for before in self.due(Before):
            before.hook(self.entry)
        with SpooledTemporaryFile(SPOOL) as body:
            try:
                self.take(body)
                self.server.stand_in.check(self.entry, self.signed_path, body)
                with contextlib.closing(self.server.stand_in.backend.connection()) as backend:
                    self.conclude(self.exchange(backend, body))
            except Refusal as refusal:
                self.entry.code = refusal.code
                self.send(refusal.answer)

    def due(self, kind: type[T]) -> list[T]:
        """The actions of a kind."""
        return [action for action in self.entry.actions if isinstance(action, kind)]

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
            for flip in flips:
                block = flip_bit(block, flip - position)
            yield block
            position += len(block)

    def interrupt(self, action: Reset | Stall) -> None:
        if isinstance(action, Reset):
            raise HangUp
        if self.server.stand_in.stopping.wait(action.seconds):
            raise ConnectionAbortedError

    # -- the service behind

    def exchange(self, backend: Connection, body: IO[bytes]) -> _Answer:
        """Let the service answer."""
        stand_in = self.server.stand_in
        with stand_in.writing if self.entry.operation in _WRITES else contextlib.nullcontext():
            stand_in.check_conditions(self.entry)
            answer = self.forward(backend, body)
            if self.entry.operation == "GetObject" and answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return _Answer(answer.status, headers=self.headers_of(answer), read=answer.read)
            text = answer.read()
        if error := re.search(rb"<Error>.*?<Code>(\w+)", text, re.DOTALL):
            self.entry.code = error[1].decode()
        elif answer.status < HTTPStatus.MULTIPLE_CHOICES:
            stand_in.done(self.entry, answer)
        headers = self.headers_of(answer)
        if self.command != "HEAD" and answer.status != HTTPStatus.NO_CONTENT:
            headers["content-length"] = str(len(text))
        for quirk in stand_in.quirks:
            text = quirk.rewrite(self.entry, text) if quirk.rewrite else text
        if "content-length" in headers and self.command != "HEAD":
            headers["content-length"] = str(len(text))
        shown = _disguised_tags(text) if stand_in.opaque_etags else text
        return _Answer(answer.status, headers=headers, read=io.BytesIO(shown).read)

    def forward(self, backend: Connection, body: IO[bytes]) -> services.Answer:
        """Pass the request on. The service is told the host that the client knows, for that is what was signed."""
        opaque = self.server.stand_in.opaque_etags
        if opaque and self.command == "POST":
            body = io.BytesIO(_disguised_tags(body.read()))
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        counted = self.server.stand_in.passes_on(self.entry)
        for name, value in self.headers.items():
            if name.lower() == "host" and not self.server.stand_in.backend.checks_signatures:
                value = f"{backend.host}:{backend.port}"
            if name.lower() not in _HOP and name.lower() in counted:
                backend.putheader(name, _disguised(value) if opaque and "match" in name.lower() else value)
        backend.endheaders()
        while block := body.read(BLOCK):
            backend.send(block)
        return backend.getresponse()

    def headers_of(self, answer: services.Answer) -> dict[str, str]:
        """What the client gets to see."""
        headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in _HOP}
        for quirk in self.server.stand_in.quirks:
            for name in quirk.hidden:
                headers.pop(name, None)
        if self.server.stand_in.region and self.entry.operation == "HEAD":
            headers["x-amz-bucket-region"] = self.server.stand_in.region
        if self.server.stand_in.opaque_etags and "etag" in headers:
            headers["etag"] = _disguised(headers["etag"])
        return headers

    def conclude(self, answer: _Answer) -> None:
        """Tell the client, or not."""
        for after in self.due(After):
            after.hook(self.entry)
        if self.due(LoseAnswer):
            raise HangUp
        self.send(answer)

    # -- the answer

    def framing(self, answer: Answer) -> dict[str, str]:
        return self.closing()

    def send_blocks(self, answer: Answer) -> None:
        assert isinstance(answer, _Answer)
        blocks = iter(lambda: answer.read(BLOCK), b"") if self.entry.received else self.suffered(answer.read)
        for block in blocks:
            self.entry.sent += len(block)  # first: whoever has the last byte may count at once
            self.wfile.write(block)


def _scripted(respond: Respond) -> Refusal:
    return Refusal(respond.status, respond.code, "As the test wants it.", respond.headers)


_MIRROR = str.maketrans("0123456789abcdef", "fedcba9876543210")


def _disguised(text: str) -> str:
    """Make an MD5 into what is none; twice, and it is itself again."""
    return re.sub(r"[0-9a-f]{32}", lambda found: found[0].translate(_MIRROR), text)


def _disguised_tags(xml: bytes) -> bytes:
    return re.sub(rb"<ETag>[^<]*", lambda found: _disguised(found[0].decode()).encode(), xml)

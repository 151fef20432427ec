"""One bucket of a storage that speaks S3, as far as the model store needs it. boto3 is loaded at the first use.

Facts come from the AWS documentation of the S3 API, and from what Ceph's gateway and moto answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from pydantic import SecretStr

from airflow_provider_modelsync.core.errors import InvalidInput, NotSupported, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.faults import classify, status_error
from airflow_provider_modelsync.core.http.network import CONNECT_SECONDS, READ_SECONDS, botocore_options
from airflow_provider_modelsync.core.redact import excerpt, guard_logs, secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.mover import with_retries
from airflow_provider_modelsync.core.transfer.plan import Stored

SIGNED_SECONDS = 3600  # that a presigned URL is good for; each try of a request asks for its own
_LARGEST_COPY = 5 << 30  # bytes that S3 copies in one request
_COPY_PART = 1 << 30
_LARGEST_RECORD = 64 << 20  # bytes of a manifest

_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound", "404"})
_CHANGED = frozenset({"PreconditionFailed"})
_CLOCK = frozenset({"RequestTimeTooSkewed"})
_STALE_KEYS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})  # with status 400
# Of those below 500: two writers at the same moment, and what broke on the way.
_PASSING = frozenset(
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    }
)
# How a listing goes on: each of these is the next page's when the one before has it with "Next".
_MARKERS = ("ContinuationToken", "KeyMarker", "UploadIdMarker", "PartNumberMarker")

OpenSession = Callable[[], Any]
T = TypeVar("T")


class BucketSettings(RegistrySettings):
    """A connection to a bucket; ``login`` and ``password`` are the access key.

    :param endpoint_url: of storages other than AWS.
    :param region_name: where the bucket is.
    :param session_token: of temporary credentials.
    :param aws_conn_id: the connection whose credentials are used instead.
    """

    endpoint_url: str | None = None
    region_name: str | None = None
    session_token: SecretStr | None = None
    aws_conn_id: str | None = None

    @property
    def further_connections(self) -> tuple[str, ...]:
        return (self.aws_conn_id,) if self.aws_conn_id else ()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A small object.

    :param content: its bytes.
    :param modified: when it was written, UTC.
    :param etag: its tag.
    """

    content: bytes
    modified: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing.

    :param key: its name.
    :param size: bytes.
    :param modified: when it was written, UTC.
    :param etag: its tag.
    """

    key: str
    size: int
    modified: datetime
    etag: str


class Bucket:
    """A bucket. All calls block; safe to use from many threads.

    :param name: the bucket's name.
    :param settings: the connection.
    :param session: opens a boto3 session; by default one with the connection's keys, or those that AWS's
        own tools find.
    """

    def __init__(self, name: str, settings: BucketSettings, session: OpenSession | None = None) -> None:
        self.name = name
        self._settings = settings
        self._open_session = session or self._session
        self._secrets = secrets_of(settings)
        self._place = f"the bucket {name}"  # for messages
        if settings.endpoint_url:
            self._place += f" at {show_url(settings.endpoint_url, self._secrets)}"
        self._lock = threading.Lock()
        self._client: Any = None
        # What must be the same for two objects of one name to be the same object.
        self.identity = (settings.endpoint_url or "", name, settings.conn_id, settings.login or "")

    def get(self, key: str) -> StoredObject | None:
        """Return a small object, or ``None`` when it is not there."""

        def read() -> StoredObject:
            answer = self.client.get_object(Bucket=self.name, Key=key)
            with answer["Body"] as body:
                return StoredObject(body.read(_LARGEST_RECORD + 1), answer["LastModified"], _tag(answer))

        found = self._ask(f"reading {key}", read, none_for=_MISSING)
        if found is not None and len(found.content) > _LARGEST_RECORD:
            raise RegistryUnavailable(f"{key} is larger than {_LARGEST_RECORD >> 20} MiB: no record of ours")
        return found

    def head(self, key: str) -> tuple[Stored, Mapping[str, str]] | None:
        """Return what an object is and its metadata, or ``None`` when it is not there."""

        def look() -> tuple[Stored, Mapping[str, str]]:
            answer = self.client.head_object(Bucket=self.name, Key=key)
            return Stored(answer["ContentLength"], _tag(answer)), answer.get("Metadata", {})

        return self._ask(f"looking at {key}", look, none_for=_MISSING)

    def put(self, key: str, content: bytes, *, etag: str | None = None, doing: str | None = None) -> str | None:
        """Write a small object on a condition; return its tag, or ``None`` when the condition does not hold.

        :param etag: the tag that it must have now; ``None`` when it must not be there.
        :param doing: what errors call it, where the key would tell nobody anything.
        :raises NotSupported: by storages that know no conditional writes.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}  # Ceph knows no quoted one
        return self._ask(
            doing or f"writing {key}",
            lambda: _tag(self.client.put_object(Bucket=self.name, Key=key, Body=content, **condition)),
            none_for=_CHANGED if etag is None else _CHANGED | _MISSING,
        )

    def delete(self, key: str, *, etag: str | None = None, doing: str | None = None) -> None:
        """Remove an object; one that is not there is fine.

        :param etag: leave it when it has another tag by now; storages that do not know this remove it all the same.
        :param doing: as for :meth:`put`.
        """
        condition = {} if etag is None else {"IfMatch": etag}
        self._ask(
            doing or f"deleting {key}",
            lambda: self.client.delete_object(Bucket=self.name, Key=key, **condition),
            none_for=_CHANGED | _MISSING,
        )

    def objects(self, prefix: str) -> Iterator[Listed]:
        """Yield all objects below a prefix, by name."""
        for page in self._pages(f"listing {prefix}", "list_objects_v2", Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield Listed(entry["Key"], entry["Size"], entry["LastModified"], _tag(entry))

    def directories(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix that have something below themselves."""
        pages = self._pages(f"listing {prefix or 'the root'}", "list_objects_v2", Prefix=prefix, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return [name.removeprefix(prefix).rstrip("/") for name in found]

    def uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and id of all unfinished uploads in parts below a prefix, the oldest first."""
        pages = self._pages(f"listing the uploads of {prefix}", "list_multipart_uploads", Prefix=prefix)
        found = [entry for page in pages for entry in page.get("Uploads", ())]
        return [(entry["Key"], entry["UploadId"]) for entry in sorted(found, key=lambda entry: entry["Initiated"])]

    def parts(self, key: str, upload_id: str) -> dict[int, Stored] | None:
        """Return the parts of an upload by number, or ``None`` when it is over."""
        found: dict[int, Stored] = {}
        doing = f"listing the parts of {key}"
        for page in self._pages(doing, "list_parts", none_for=_MISSING, Key=key, UploadId=upload_id):
            if page is None:
                return None
            for part in page.get("Parts", ()):
                found[part["PartNumber"]] = Stored(part["Size"], _tag(part), part.get("ChecksumCRC32"))
        return found

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        """Begin an upload in parts, each with a CRC-32 that the storage may check; return its id."""

        def create() -> str:
            upload_id: str = self.client.create_multipart_upload(
                Bucket=self.name, Key=key, Metadata=dict(metadata), ChecksumAlgorithm="CRC32"
            )["UploadId"]
            return upload_id

        return self._do(f"beginning the upload of {key}", create)

    def complete(self, key: str, upload_id: str, parts: Mapping[int, Stored]) -> str | None:
        """Make an object of an upload's parts; return its tag, or ``None`` when it does not have these any more."""
        listed = [
            {"PartNumber": number, "ETag": f'"{part.etag}"', **({"ChecksumCRC32": part.crc32} if part.crc32 else {})}
            for number, part in sorted(parts.items())
        ]

        def finish() -> str:
            return _tag(
                self.client.complete_multipart_upload(
                    Bucket=self.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": listed}
                )
            )

        etag = self._ask(f"completing {key}", finish, none_for=_MISSING | {"InvalidPart"})
        if etag == "" and (found := self.head(key)):  # Ceph 16 leaves the tag out of its answer
            return found[0].etag
        return etag

    def abort(self, key: str, upload_id: str) -> None:
        """Give an upload up; one that is over is fine."""
        self._ask(
            f"aborting the upload of {key}",
            lambda: self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id),
            none_for=_MISSING,
        )

    def copy(self, origin: Listed, key: str, metadata: Mapping[str, str]) -> str | None:
        """Have the storage copy an object as it was listed; return the copy's tag, or ``None`` when it has changed."""
        source = {
            "CopySource": {"Bucket": self.name, "Key": origin.key},
            "CopySourceIfMatch": f'"{origin.etag}"',
        }
        doing = f"copying {origin.key}"
        if origin.size > _LARGEST_COPY:
            return self._copy_parts(doing, origin, key, source, metadata)
        answer = self._ask(
            doing,
            lambda: self.client.copy_object(Bucket=self.name, Key=key, **source),
            none_for=_CHANGED | _MISSING,
        )
        return None if answer is None else _tag(answer["CopyObjectResult"])

    def _copy_parts(
        self, doing: str, origin: Listed, key: str, source: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> str | None:
        upload_id = self.begin(key, metadata)
        etag = None
        try:
            parts: dict[int, Stored] = {}
            for number, start in enumerate(range(0, origin.size, _COPY_PART), 1):
                end = min(start + _COPY_PART, origin.size)
                part = {"PartNumber": number, "CopySourceRange": f"bytes={start}-{end - 1}", **source}
                answer = self._ask(
                    doing,
                    partial(self._call, "upload_part_copy", Key=key, UploadId=upload_id, **part),
                    none_for=_CHANGED | _MISSING,
                )
                if answer is None:
                    return None
                result = answer["CopyPartResult"]
                parts[number] = Stored(end - start, _tag(result), result.get("ChecksumCRC32"))
            etag = self.complete(key, upload_id, parts)
            return etag
        finally:
            if etag is None:
                self.abort(key, upload_id)

    def sign(self, operation: str, key: str, **parameters: Any) -> str:
        """Return a URL that allows one operation on one object for an hour.

        :param operation: what boto3 calls it, e.g. ``"upload_part"``.
        :param parameters: what the operation needs besides bucket and key.
        """
        request = {"Bucket": self.name, "Key": key, **parameters}
        url: str = self._do(
            f"signing for {key}",
            lambda: self.client.generate_presigned_url(operation, Params=request, ExpiresIn=SIGNED_SECONDS),
        )
        return url

    @property
    def client(self) -> Any:
        """The boto3 client."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _pages(
        self, doing: str, operation: str, *, none_for: frozenset[str] = frozenset(), **parameters: Any
    ) -> Iterator[Any]:
        """Yield a listing's pages; ``None`` in place of one that was answered with a code of ``none_for``."""
        more = True
        while more:
            page = self._ask(doing, partial(self._call, operation, **parameters), none_for=none_for)
            yield page
            markers = {name: page[f"Next{name}"] for name in _MARKERS if page and page.get(f"Next{name}")}
            more = bool(page and page.get("IsTruncated") and markers)
            if more and markers.items() <= parameters.items():
                raise RegistryUnavailable(f"{doing}: the storage repeats a page of its listing")
            parameters |= markers

    def _call(self, operation: str, **parameters: Any) -> Any:
        return getattr(self.client, operation)(Bucket=self.name, **parameters)

    def _do(self, doing: str, fn: Callable[[], T]) -> T:
        """Call boto3, as often as anything is tried, raising this package's errors instead of its own."""
        from botocore.exceptions import BotoCoreError, ClientError

        doing = f"{doing} in {self._place}"

        def once() -> T:
            try:
                return fn()
            # From nothing: boto3's own messages may quote what was signed.
            except ClientError as error:
                raise self._refusal(error, doing) from None
            except BotoCoreError as error:
                raise self._fault(error, doing) from None
            except Exception as error:  # urllib3's, while the answer's body is read
                raise classify(error, doing) from None

        return with_retries(once, cancel=CancelToken(), seconds=self._settings.timeout_seconds)

    def _ask(self, doing: str, fn: Callable[[], T], *, none_for: frozenset[str]) -> T | None:
        """Call boto3; the error codes in ``none_for`` are an answer, too."""
        from botocore.exceptions import ClientError

        def ask() -> T | None:
            try:
                return fn()
            except ClientError as error:
                if _code(error) in none_for:
                    return None
                raise

        return self._do(doing, ask)

    def _session(self) -> Any:
        import boto3

        settings = self._settings
        return boto3.Session(
            aws_access_key_id=settings.login,
            aws_secret_access_key=settings.password.get_secret_value() if settings.password else None,
            aws_session_token=settings.session_token.get_secret_value() if settings.session_token else None,
        )

    def _connect(self) -> Any:
        from botocore.config import Config

        settings = self._settings
        guard_logs(self._secrets)
        session = self._open_session()
        region = settings.region_name or session.region_name
        options = botocore_options(settings.endpoint_url or "https://s3.amazonaws.com", settings)
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=region or "us-east-1",
            verify=options["verify"],
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                # The sums of large bodies are this project's own; storages other than AWS know few of botocore's.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},  # botocore's own tries know neither a deadline nor Retry-After
                connect_timeout=min(CONNECT_SECONDS, settings.timeout_seconds),
                read_timeout=min(READ_SECONDS, settings.timeout_seconds),
                max_pool_connections=settings.max_workers + 2,
                proxies=options["proxies"],
                client_cert=options["client_cert"],
            ),
        )
        if region is None and settings.endpoint_url is None:
            # A URL that is signed for another region is refused, and nothing redirects the byte mover.
            where = client.head_bucket(Bucket=self.name).get("BucketRegion")
            if where and where != "us-east-1":
                return session.client("s3", region_name=where, verify=options["verify"], config=client.meta.config)
        return client

    def _refusal(self, error: Any, doing: str) -> Exception:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = excerpt(error.response.get("Error", {}).get("Message") or "", self._secrets)
        said = f"{doing}: the storage answered {status} {code}" + (f": {words}" if words else "")
        if code in _CLOCK:
            return Unauthorized(f"{said}. The clock of this machine is wrong")
        if code in _STALE_KEYS:
            return Unauthorized(f"{said}. The connection's credentials are not valid any more")
        if code in _PASSING:
            return RegistryUnavailable(said)
        if code == "NoSuchBucket":
            return InvalidInput(f"{doing}: there is no such bucket", argument="host")
        if code == "NotImplemented":
            return NotSupported(f"{said}. The model store needs a storage that knows conditional writes")
        if status in (301, 307) or code == "AuthorizationHeaderMalformed":
            return InvalidInput(f"{said}. The bucket is in another region", argument="region_name")
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        headers = {name.title(): value for name, value in headers.items()}  # as they are looked up; here in lower case
        refused = status_error(status, headers, f"{code} {words}", doing, secrets=self._secrets)
        return refused or RegistryUnavailable(said)  # 200 with an error in it

    def _fault(self, error: Exception, doing: str) -> Exception:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}:
            return Unauthorized(f"{doing}: no usable AWS credentials are to be found ({type(error).__name__})")
        if kinds & {"HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"}:
            try:
                return classify(error, doing)
            except Exception:  # botocore has wrapped nothing that tells more
                return RegistryUnavailable(f"{doing}: the connection failed ({type(error).__name__})")
        return InvalidInput(f"{doing}: {excerpt(str(error), self._secrets)}")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _tag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')

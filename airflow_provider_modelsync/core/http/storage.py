"""What object storages say when they refuse, as errors of the tree.

One table for both ways to reach a storage: calls of its API and presigned URLs. The codes are those of the "Error
responses" in the Amazon S3 API reference, those of the storages named beside them, and those of "Blob service error
codes" and "Common REST API error codes" in Azure's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import parse_qs, urlsplit

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.http.faults import (
    ServerBusy,
    is_unprocessed,
    reason_of,
    retry_after,
    trace_in,
)
from airflow_provider_modelsync.core.redact import excerpt


class UrlExpired(RegistryUnavailable):
    """A storage refuses a presigned URL; a new one may do.

    :param message: as for every error.
    :param otherwise: what it means when a new one is refused in the same way; ``None`` when that says nothing more.
    """

    def __init__(self, message: str, *, otherwise: ModelSyncError | None = None) -> None:
        super().__init__(message)
        self.otherwise = otherwise


class SumRefused(RegistryUnavailable):
    """A storage does not know the checksum that came with the bytes; it may know another."""


class NotOffered(NotSupported):
    """A storage does not know an operation, or a header that changes what it does."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    kind: type[ModelSyncError]
    remedy: str = ""
    argument: str | None = None


_PASSING = _Meaning(RegistryUnavailable)
_STALE = _Meaning(Unauthorized, "The credentials are not valid any more: renew them in the connection")
_KEYS = _Meaning(
    Unauthorized, "The credentials are refused: correct login (access key id) and password (secret key)", "password"
)
_CLOCK = _Meaning(Unauthorized, "Set the clock of this machine, or that of the one that signed the URL")
_REGION = _Meaning(
    InvalidInput, "The bucket is in another region: set region_name in the connection, or leave it out", "region_name"
)
_STYLE = _Meaning(InvalidInput, "Set addressing_style to virtual in the connection", "addressing_style")
_ARCHIVED = _Meaning(NotSupported, "The object lies in an archive and has to be restored first")
_LOCKED = _Meaning(
    NotSupported, "The object is locked (Object Lock, a retention period or a legal hold) until that ends"
)
_DENIED = _Meaning(
    Unauthorized,
    "The credentials do not allow this, or the bucket's policy demands what was not sent: encryption, a storage class, "
    "or that the requester pays",
)
_ABSENT = _Meaning(
    InvalidInput, "There is no such bucket: create it, or correct host (s3://bucket/prefix) and endpoint_url", "host"
)
_NOT_OFFERED = _Meaning(NotOffered, "The storage does not offer this")
_FULL = _Meaning(RegistryUnavailable, "The storage has no room left: free some, or raise the quota")

_AZURE_KEYS = _Meaning(
    Unauthorized,
    "Azure refuses the credentials: correct password (an account's key, or a shared access signature that has not "
    "expired), or what azure-identity finds; and set the clock of this machine",
    "password",
)
_AZURE_ROLE = _Meaning(
    Unauthorized,
    "The credentials do not allow this: give their owner the role Storage Blob Data Contributor on the container, or "
    "the signature the permissions rcwdl",
)
_AZURE_NETWORK = _Meaning(
    Unauthorized,
    "The credentials are refused, or the account's network rules or the signature's addresses leave this machine out: "
    "correct password, or admit it there",
)
_AZURE_ABSENT = _Meaning(
    InvalidInput, "There is no such container: create it, or correct host (abfs://container@account/prefix)", "host"
)

_CODES: Mapping[str, _Meaning] = {
    # Two writers at the same moment, and what broke on the way.
    "ConditionalRequestConflict": _PASSING,
    "OperationAborted": _PASSING,
    "RequestTimeout": _PASSING,
    "IncompleteBody": _PASSING,
    "BadDigest": _PASSING,
    "XAmzContentSHA256Mismatch": _PASSING,
    "XAmzContentChecksumMismatch": _PASSING,
    "SlowDown": _PASSING,
    "InternalError": _PASSING,
    "ExpiredToken": _STALE,
    "InvalidToken": _STALE,
    "TokenRefreshRequired": _STALE,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "RequestTimeTooSkewed": _CLOCK,
    "AccessDenied": _DENIED,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "SecondLevelDomainForbidden": _STYLE,  # Alibaba Cloud OSS
    "VirtualHostDomainRequired": _STYLE,
    "PathStyleDomainForbidden": _STYLE,  # Tencent Cloud COS
    "InvalidObjectState": _ARCHIVED,
    "ObjectLocked": _LOCKED,  # MinIO
    "FileImmutable": _LOCKED,  # Alibaba Cloud OSS
    "RetentionPolicyNotMet": _LOCKED,  # Google Cloud Storage
    "NoSuchBucket": _ABSENT,
    "QuotaExceeded": _FULL,  # Ceph, MinIO
    "XMinioStorageFull": _FULL,
    "NotImplemented": _NOT_OFFERED,
    "MethodNotAllowed": _NOT_OFFERED,
    # Azure Blob Storage
    "AuthenticationFailed": _AZURE_KEYS,
    "InvalidAuthenticationInfo": _AZURE_KEYS,
    "NoAuthenticationInformation": _AZURE_KEYS,
    "AuthorizationPermissionMismatch": _AZURE_ROLE,
    "AuthorizationResourceTypeMismatch": _AZURE_ROLE,
    "AuthorizationServiceMismatch": _AZURE_ROLE,
    "InsufficientAccountPermissions": _AZURE_ROLE,
    "AuthorizationFailure": _AZURE_NETWORK,
    "AuthorizationSourceIPMismatch": _AZURE_NETWORK,
    "KeyBasedAuthenticationNotPermitted": _Meaning(
        Unauthorized, "The account takes no keys: leave password empty and install airflow-provider-modelsync[azure]"
    ),
    "AuthorizationProtocolMismatch": _Meaning(Unauthorized, "Use https: the signature or the account allows no other"),
    "AccountIsDisabled": _Meaning(Unauthorized, "Enable the storage account"),
    "ContainerNotFound": _AZURE_ABSENT,
    "ResourceTypeMismatch": _AZURE_ABSENT,
    "ContainerBeingDeleted": _PASSING,
    "Md5Mismatch": _PASSING,
    "Crc64Mismatch": _PASSING,
    "OperationTimedOut": _PASSING,
    "ServerBusy": _PASSING,
    "LeaseIdMissing": _Meaning(NotSupported, "Somebody holds a lease on the object: break it, or wait for its end"),
    "BlobArchived": _ARCHIVED,
    "BlobImmutableDueToPolicy": _Meaning(
        NotSupported, "The container has an immutability policy or a legal hold, so that no model store can be there"
    ),
    "FeatureNotSupportedForHnsEnabledAccounts": _NOT_OFFERED,
    "KeyTooLongError": _Meaning(InvalidInput, "Shorten the root's prefix, or the paths in the model"),
}
# What one code is used for several things by, told by its words.
_WORDS: tuple[tuple[re.Pattern[str], _Meaning], ...] = (
    (re.compile(r"(?i)\bobject.?lock\b|\bWORM\b|\bretention\b|\blegal hold\b|\bimmutab"), _LOCKED),
    (re.compile(r"(?i)virtual.?host"), _STYLE),
)
_SUM_HEADER = re.compile(r"(?i)x-amz-(sdk-)?checksum|checksum.?algorithm|x-ms-content-crc64")
_SUM_CODES = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest", "FeatureNotSupported"})
_SAYS_EXPIRED = re.compile(r"(?i)\bexpired\b|not valid in the specified time")
_EXPIRY_CODES = frozenset(
    {"AuthenticationFailed", "ExpiredToken", "InvalidAuthenticationInfo", "RequestExpired", "TokenRefreshRequired"}
)
_STATUS: Mapping[int, _Meaning] = {
    301: _REGION,
    307: _REGION,
    401: _DENIED,
    403: _DENIED,
    408: _PASSING,
    413: _Meaning(NotSupported, "The body is too large for the storage or a gateway before it; raise its limit"),
    405: _NOT_OFFERED,
    501: _NOT_OFFERED,
}

_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,100})\s*</Code>")
_MESSAGE = re.compile(
    r"<Message>([^<]{1,1000})</Message>"
)  # blanks before it match in one way only: a page may be full


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a storage answered instead of what was asked for; may come with status 200.

    :param status: the status.
    :param code: the storage's own word for it; empty when it gave none.
    :param words: what it said, or the page that something before it sent.
    :param headers: the answer's headers, in any case of letters when they look names up so.
    """

    status: int
    code: str
    words: str
    headers: Mapping[str, str]

    @classmethod
    def read(cls, status: int, headers: Mapping[str, str], page: str) -> Self:
        """Read an answer's body."""
        found, message = _CODE.search(page), _MESSAGE.search(page)
        code = found[1] if found else headers.get("x-ms-error-code", "")  # Azure's, where an answer has no body
        return cls(status, code, message[1].strip() if message else "" if code else page, headers)

    def error(
        self,
        doing: str,
        *,
        not_found: type[ModelSyncError] = InvalidInput,
        secrets: Iterable[str] = (),
        is_signed: bool = False,
        is_over: bool | None = None,
    ) -> ModelSyncError:
        """Return what it means.

        :param doing: what was being done.
        :param not_found: what a 404 means here.
        :param secrets: what must not be shown.
        :param is_signed: whether a presigned URL was refused, so that a new one may do.
        :param is_over: whether that URL's time is over; ``None`` when it does not tell.
        """
        words = excerpt(self.words, secrets)
        code = self.code or f"{self.status} {reason_of(self.status)}".rstrip()
        said = (f"{code}: {words}" if words else code) + f" (status {self.status}, {doing})"
        answer = f"{self.status} {self.code or reason_of(self.status)}".rstrip() + (f": {words}" if words else "")
        if is_signed and (self.code in _EXPIRY_CODES or is_over or self._says_expired()):
            stale = self.code in _EXPIRY_CODES and not is_over
            otherwise = self._as(self._meaning() or _STALE, said) if stale else None
            return UrlExpired(
                f"{said}. What the URL was signed with, or the URL itself, has expired", otherwise=otherwise
            )
        if self.code in _SUM_CODES and _SUM_HEADER.search(self.words):
            return SumRefused(f"{said}. The storage does not know this checksum")
        meaning = self._meaning()
        if meaning is None:
            if is_unprocessed(self.status, self.headers):
                return ServerBusy(said + trace_in(self.headers), wait=retry_after(self.headers))
            if self.status == 404:
                return not_found(said, said=answer)
            if 400 <= self.status < 500:
                return InvalidInput(said, said=answer)
            return RegistryUnavailable(said + trace_in(self.headers), said=answer)
        error = self._as(meaning, said)
        error.said = answer
        if is_signed and meaning is _DENIED:  # not every storage says why: a new URL tells
            return UrlExpired(said, otherwise=None if is_over is None else error)
        return error

    def _says_expired(self) -> bool:
        return self.status in (400, 401, 403) and _SAYS_EXPIRED.search(self.words) is not None

    def _meaning(self) -> _Meaning | None:
        """Return what code, words and status say, in this order of trust; ``None`` when that is all of it."""
        if is_unprocessed(self.status, self.headers):
            return None
        found = _CODES.get(self.code)
        if found in (None, _DENIED) and 400 <= self.status < 500:
            for pattern, meaning in _WORDS:
                if pattern.search(self.words):
                    return meaning
        return found or _STATUS.get(self.status)

    def _as(self, meaning: _Meaning, said: str) -> ModelSyncError:
        return meaning.kind(said, argument=meaning.argument, remedy=meaning.remedy or None)


def remedies_by_code() -> dict[str, str]:
    """Return what to do about those of the storages' codes that a person can do something about."""
    return {code: meaning.remedy for code, meaning in _CODES.items() if meaning.remedy}


def is_url_over(url: str, headers: Mapping[str, str]) -> bool | None:
    """Return whether a presigned URL had expired when it was answered; ``None`` when it does not say how long it lives.

    :param url: with its query.
    :param headers: the answer's: the storage's own clock decides.
    """
    end = _end_of({name.lower(): values[0] for name, values in parse_qs(urlsplit(url).query).items()})
    if end is None:
        return None
    try:
        now = parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError):
        now = datetime.now(UTC)
    return (now if now.tzinfo else now.replace(tzinfo=UTC)) >= end


def _end_of(query: Mapping[str, str]) -> datetime | None:
    """Return when a URL ends, in the ways of AWS, Google and Azure."""
    try:
        for vendor in ("amz", "goog"):
            if f"x-{vendor}-date" in query:
                begun = datetime.strptime(query[f"x-{vendor}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return begun + timedelta(seconds=int(query[f"x-{vendor}-expires"]))
        if "signature" in query and "expires" in query:
            return datetime.fromtimestamp(int(query["expires"]), UTC)
        if "sig" in query and "se" in query:
            end = datetime.fromisoformat(query["se"])
            return end if end.tzinfo else end.replace(tzinfo=UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        pass
    return None

"""What went wrong on the wire, as errors of the tree: one classifier for exceptions, one for statuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.redact import excerpt, secret_fields
from airflow_provider_modelsync.core.settings import RegistrySettings

_LONGEST_WAIT_DIGITS = 12  # of a Retry-After; more would overflow

# Reasons of OpenSSL that another try cannot change; a broken record or an early end can.
_CLIENT_CERT_REASON = re.compile(r"ALERT_.*(CERT|UNKNOWN_CA)")
_PROTOCOL_REASON = re.compile(r"WRONG_VERSION_NUMBER|HTTP_REQUEST|PROTOCOL|HANDSHAKE_FAILURE|RECORD_LAYER_FAILURE")
_LIMIT = re.compile(rf"\b([rt])\s*=\s*(\d{{1,{_LONGEST_WAIT_DIGITS}}})\b")
_PAGE = 8 << 10  # characters of an error page that are looked at
_TAG = re.compile(r"<[^<>]{0,200}>")
_TAGS = {tag: re.compile(rf"(?i)<{tag}>([^<]{{1,1000}})</{tag}>") for tag in ("Code", "Message", "title", "h1")}
_BAD_IN_HEADER = re.compile(r"[^\t\x20-\x7e]")


CREDENTIALS = (
    "The connection's credentials are refused or do not allow this: renew login and password, or allow it there"
)
TOO_LARGE = "The body is too large for the server or a gateway before it; raise its limit"


class NotSent(RegistryUnavailable):
    """No connection came about: the server certainly did not see the request."""


class ServerBusy(RegistryUnavailable):
    """The server refused the request for now, unprocessed.

    :param message: as for every error.
    :param wait: seconds that the server asked for, where it did.
    """

    def __init__(self, message: str, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def classify(error: Exception, doing: str) -> ModelSyncError:
    """Turn an exception of the network's lower layers into one of ours.

    Raise the result ``from None``: messages of lower layers quote signed URLs and header values.

    :param error: what was raised.
    :param doing: what was being done, for the message, e.g. ``"GET https://example.com/models"``.
    :return: :class:`InvalidInput` for what the connection's fields have to change, else a
        :class:`RegistryUnavailable`, which is a :class:`NotSent` where nothing can have happened.
    :raises Exception: the very error when it has nothing to do with the network.
    """
    if isinstance(error, ModelSyncError):
        return error
    chain = list(_chain_of(error))
    for inner in chain:
        if isinstance(inner, ssl.SSLError) and (fault := _tls_fault(inner, doing)):
            return fault
    for inner in chain:
        if isinstance(inner, socket.gaierror):
            return NotSent(
                f"{doing}: the host name cannot be resolved",
                remedy="Check the connection's host, and the name service of this machine",
            )
    kinds = {name for inner in chain for name in _names_of(inner)}
    if "ProxyError" in kinds and any(re.search(r"\b407\b", str(inner)) for inner in chain):
        return InvalidInput(
            f"{doing}: the proxy wants a user name and a password",
            argument="proxy",
            remedy="Write them into the connection's proxy: http://user:password@host:port",
        )
    if "LocalProtocolError" in kinds:
        return InvalidInput(
            f"{doing}: the request is no valid HTTP", remedy="Look for line breaks in the connection's credentials"
        )
    if kinds & {"UnsupportedProtocol", "InvalidURL", "LocationValueError"}:
        return InvalidInput(f"{doing}: this is no usable URL", argument="host")
    known = (httpx.HTTPError, httpx.StreamError, OSError, http.client.HTTPException)
    if not (isinstance(error, known) or "urllib3" in kinds):
        raise error
    what = f"{doing}: {_phrase(chain, kinds)}"
    if kinds & {
        "ConnectError",
        "ConnectTimeout",
        "ConnectTimeoutError",
        "NewConnectionError",
        "PoolTimeout",
        "ProxyError",
    }:
        return NotSent(what)
    return RegistryUnavailable(what)


def check_headers(headers: Mapping[str, str], settings: RegistrySettings) -> None:
    """Refuse header values that cannot be sent, without quoting them as the HTTP libraries do.

    :param headers: the headers.
    :param settings: the connection that they may hold secrets of.
    :raises InvalidInput: naming the connection's field that the value is made of, else the header.
    """
    for name, value in headers.items():
        if _BAD_IN_HEADER.search(value) or value != value.strip():
            field = next((field for field, secret in secret_fields(settings) if secret in value), None)
            what = f"the connection's {field}" if field else f"the value for the header {name}"
            raise InvalidInput(
                f"{what} holds line breaks, blanks at an end, or letters beyond ASCII, which no header may hold",
                argument=field,
            )


def status_error(
    status: int,
    headers: Mapping[str, str],
    body: str,
    doing: str,
    *,
    not_found: type[ModelSyncError] = InvalidInput,
    secrets: Iterable[str] = (),
) -> ModelSyncError | None:
    """Turn the status of an answer into an error, or ``None`` when it says success.

    :param status: the status.
    :param headers: the answer's headers, in any case of letters when they look names up so.
    :param body: what the server said, or its beginning.
    :param doing: what was being done, for the message, e.g. ``"listing the versions of fraud"``.
    :param not_found: what a 404 means here.
    :param secrets: what must not be shown.
    """
    if 200 <= status < 300:
        return None
    words = excerpt(_words_in(body), secrets)
    answer = f"{status} {reason_of(status)}".rstrip() + (f": {words}" if words else "")
    error = _meant_by(status, headers, f"{doing}: the server answered {answer}", not_found)
    error.said = answer
    return error


def _meant_by(status: int, headers: Mapping[str, str], said: str, not_found: type[ModelSyncError]) -> ModelSyncError:
    match status:
        case 401 | 403:
            return Unauthorized(said, remedy=CREDENTIALS)
        case 404:
            return not_found(said)
        case 413:
            return NotSupported(said, remedy=TOO_LARGE)
        case _ if is_unprocessed(status, headers):
            return ServerBusy(said + trace_in(headers), wait=retry_after(headers))
        case 408:
            return RegistryUnavailable(said)
        case _ if 400 <= status < 500:
            return InvalidInput(said)
        case _:
            return RegistryUnavailable(said + trace_in(headers))


def is_unprocessed(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer says that nothing was done, so that the request may be repeated, whatever it asks for.

    A bare 503 says no such thing: proxies send it, too, when an upstream broke off.
    """
    return status in (425, 429) or (status == 503 and _retry_after(headers) is not None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; ``None`` when it does not, or says nothing sensible.

    It says so by ``Retry-After``, or, as in an IETF draft, by a ``RateLimit`` of which nothing is left.
    """
    wait = _retry_after(headers)
    return _reset(headers) if wait is None else wait


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return when a quota that is used up begins anew, in seconds."""
    limits = (dict(_LIMIT.findall(limit)) for limit in headers.get("RateLimit", "").split(","))
    waits = [float(limit["t"]) for limit in limits if limit.get("r") == "0" and "t" in limit]
    return max(waits, default=None)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    # A date is read against the server's own ``Date``, since clocks differ.
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:_LONGEST_WAIT_DIGITS])
    then, now = _date(value), _date(headers.get("Date", "")) or datetime.now(UTC)
    wait = (then - now).total_seconds() if then else 0.0
    return wait if wait > 0 else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it stems from: causes, and what urllib3 keeps in attributes and arguments."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        inner = waiting.pop(0)
        if isinstance(inner, BaseException) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            if isinstance(inner, BaseExceptionGroup):  # one for each address of a host
                waiting += inner.exceptions
            context = None if inner.__suppress_context__ else inner.__context__
            waiting += [inner.__cause__ or context, getattr(inner, "reason", None), *inner.args]


def _names_of(error: BaseException) -> Iterator[str]:
    # By name, so that urllib3 and h11 need not be imported here: h11's errors come through httpx raw.
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("httpx", "httpcore", "h11", "urllib3"):
            yield kind.__name__
            yield package


def _tls_fault(error: ssl.SSLError, doing: str) -> ModelSyncError | None:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return InvalidInput(
            f"{doing}: the server's certificate is not accepted: {error.verify_message}",
            argument="ca_bundle",
            remedy="If its CA is your own, name the CA's file in the connection's ca_bundle",
        )
    if _CLIENT_CERT_REASON.search(reason):
        return InvalidInput(
            f"{doing}: the server wants another client certificate: {reason}",
            argument="client_cert",
            remedy="Name the certificate that it knows in the connection's client_cert, its key in client_key",
        )
    if _PROTOCOL_REASON.search(reason):
        return InvalidInput(
            f"{doing}: no TLS connection: {reason}. Is this an https port?",
            argument="host",
            remedy="Correct scheme and port of the connection's host",
        )
    return None


def _phrase(chain: list[BaseException], kinds: set[str]) -> str:
    """Say what happened without quoting a message that may hold a URL or a header."""
    if "NewConnectionError" in kinds:  # which urllib3 counts as a kind of timeout
        kinds = kinds - {"ConnectTimeoutError", "TimeoutError"}
    if kinds & {"ConnectTimeout", "ConnectTimeoutError"}:
        return "no connection within the time limit"
    if kinds & {"TimeoutException", "TimeoutError"} or any(isinstance(inner, TimeoutError) for inner in chain):
        return "the server did not answer within the time limit"
    for inner in reversed(chain):
        if isinstance(inner, ssl.SSLError):
            return f"the TLS connection broke ({inner.reason or type(inner).__name__})"
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
    if "DecodingError" in kinds:
        return "the answer's body cannot be decoded"
    if kinds & {"RemoteProtocolError", "ProtocolError"} or isinstance(chain[0], http.client.HTTPException):
        return "the connection ended before the whole answer had come, or the answer is not HTTP"
    return f"the connection failed ({type(chain[0]).__name__})"


def _words_in(body: str) -> str:
    """Return what a JSON error says, else the text itself."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _words_of_page(body)
    if isinstance(value, dict):
        texts = [value[key] for key in ("error", "message", "msg", "error_description", "detail") if key in value]
        return "; ".join(dict.fromkeys(text for text in texts if isinstance(text, str))) or body
    return body


def _words_of_page(body: str) -> str:
    """Return what a page of XML or HTML says; another text is said as it is."""
    page = body[:_PAGE]
    if not page.lstrip().startswith("<"):
        return body
    said = [found[1].strip() for tag in ("Code", "Message", "title", "h1") if (found := _TAGS[tag].search(page))]
    return ": ".join(dict.fromkeys(filter(None, said))) or " ".join(_TAG.sub(" ", page).split())


def trace_in(headers: Mapping[str, str]) -> str:
    """Return the id by which a server finds an answer in its logs, for a message; empty when it gave none."""
    for header, name in (("x-trace-id", "trace id"), ("x-request-id", "request id")):
        if trace := headers.get(header):
            return f" ({name} {excerpt(trace)})"
    return ""


def reason_of(status: int) -> str:
    """Return what a status is called; empty when it has no name."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""

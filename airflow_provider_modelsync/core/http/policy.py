"""How API calls are made: what a request carries, what is tried again, and what an answer means.

One request policy serves both drivers of :mod:`~airflow_provider_modelsync.core.flow.steps`: it yields exchanges and
waits, and does no I/O itself. Bytes of size do not go this way but through the byte mover.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from airflow_provider_modelsync import __version__
from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.failure import again
from airflow_provider_modelsync.core.flow.exchange import ANSWER_BYTES, allow
from airflow_provider_modelsync.core.flow.steps import Exchange, Flow, Sleep, Step
from airflow_provider_modelsync.core.http.addresses import (
    MAX_REDIRECTS,
    REDIRECTS,
    check_server_url,
    credentials_in,
    has_proper_host,
    headers_for,
    origin_of,
    redirect_target,
)
from airflow_provider_modelsync.core.http.faults import (
    NotSent,
    check_headers,
    classify,
    is_unprocessed,
    reason_of,
    retry_after,
    status_error,
)
from airflow_provider_modelsync.core.http.network import CONNECT_SECONDS, READ_SECONDS
from airflow_provider_modelsync.core.http.slices import in_slices
from airflow_provider_modelsync.core.redact import excerpt, secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings

T = TypeVar("T")
Refresh = Callable[[httpx.Request], Flow[Mapping[str, str]]]

USER_AGENT = f"airflow-provider-modelsync/{__version__}"

# What a request says about itself to the policy, in its extensions.
_REPEATABLE = "modelsync_idempotent"
_SECONDS = "modelsync_seconds"
_SECRETS = "modelsync_secrets"
_CREDENTIALS = "modelsync_credentials"  # whether it carries the connection's
_SEALED = "modelsync_sealed"  # whether its body holds secrets
_WANTED = "modelsync_wanted"  # tells whether a redirect is the answer itself

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

# What one answer may hold: each costs up to some 2 KB of memory once it is read.
MAX_OBJECTS = 50_000
MAX_VALUES = 250_000
_LARGE = 256 << 10  # bytes of JSON that are read in slices

_adapter: Callable[[Any], TypeAdapter[Any]] = functools.lru_cache(maxsize=256)(TypeAdapter)
_log = logging.getLogger("modelsync")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    :param attempts: how often something is tried, the first time included.
    :param first: seconds, at most, before the second attempt; doubles from then on.
    :param ceiling: seconds, at most, before any attempt.
    :param random: a number from 0 to 1.
    """

    attempts: int = 5
    first: float = 0.5
    ceiling: float = 30.0
    random: Callable[[], float] = random.random

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after that many failures."""
        doublings = min(failures - 1, 64)  # who listens for days fails more often than a float can double
        return self.random() * min(self.ceiling, self.first * 2.0**doublings)


def repeatable(request: httpx.Request) -> httpx.Request:
    """Mark a request as safe to be carried out twice, whatever its method, and return it."""
    request.extensions[_REPEATABLE] = True
    return request


class ApiClient:
    """Builds the requests for one registry: its credentials go to its own origin and nowhere else.

    :param settings: the connection.
    :param base_url: what paths are relative to; may have a path itself.
    :param headers: for every request to that origin.
    :param credentials: called for every request to that origin: the headers that prove who we are.
    :raises InvalidInput: when the base URL is not usable.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings = settings
        self._secrets = secrets_of(settings)
        self._headers = headers or {}
        self._credentials = credentials
        self.base_url = base_url.rstrip("/")
        url = self._url(self.base_url)
        if url.scheme not in ("http", "https") or not has_proper_host(url) or url.userinfo:
            raise InvalidInput("the host must be an http or https URL without credentials", argument="host")
        self._origin = origin_of(url)

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        may_repeat: bool | None = None,
        secrets: Iterable[str] = (),
        answer_bytes: int = ANSWER_BYTES,
        wanted: Callable[[httpx.Response], bool] | None = None,
    ) -> httpx.Request:
        """Build a request.

        :param method: HTTP method.
        :param url: path below the base URL, its segments quoted; or an absolute URL.
        :param params: query parameters.
        :param json: body, as JSON.
        :param form: body, as an HTML form.
        :param content: body, as it is.
        :param headers: further headers; they win.
        :param seconds: how long the call may take, its tries included, instead of the connection's ``timeout_seconds``.
        :param may_repeat: whether the call may be carried out twice; by default as its method promises.
        :param secrets: values in the body that no message may quote, besides the connection's. Such a body is never
            redirected to another origin.
        :param answer_bytes: how large a successful answer may be, decoded.
        :param wanted: whether a redirect is the answer itself, rather than to be followed.
        """
        secrets = tuple(secrets)
        target = self._url(url if "://" in url else f"{self.base_url}/{url.lstrip('/')}")
        if params:
            target = target.copy_merge_params(params)
        ours = origin_of(target) == self._origin
        credentials = self._credentials() if ours else {}
        merged = httpx.Headers({"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": USER_AGENT})
        for more in (self._headers if ours else {}, credentials, headers or {}):
            check_headers(more, self._settings)
            merged.update(more)
        extensions: dict[str, Any] = {
            _SECRETS: (*self._secrets, *secrets),
            _CREDENTIALS: bool(credentials),
            _SEALED: bool(secrets),
            _WANTED: wanted,
        }
        if seconds is not None:
            extensions[_SECONDS] = seconds
        if may_repeat is not None:
            extensions[_REPEATABLE] = may_repeat
        request = httpx.Request(
            method, target, headers=merged, json=json, data=form, content=content, extensions=extensions
        )
        return allow(request, answer_bytes)

    def check_server_url(self, url: str) -> str:
        """Check a URL that the server gave us, such as a presigned one, and return it.

        :raises InvalidInput: when nothing may be sent there.
        """
        check_server_url(url, self._settings, base=self.base_url)
        return url

    def _url(self, url: str) -> httpx.URL:
        try:
            return httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise InvalidInput(f"{show_url(url, self._secrets)} is no URL", argument="host") from None


class RequestPolicy:
    """Turns one request into exchanges, waits, and a response or an error, all under one deadline.

    It retries what passes, follows redirects by our own rule, and renews a token that is refused, once. The answer it
    returns may still say failure: see :func:`raise_for_status`.

    :param settings: the connection.
    :param seconds: how long a call may take, instead of the connection's ``timeout_seconds``.
    :param refresh: a flow that gets a fresh credential header when the given request was answered with 401. Its own
        requests must carry no credentials of the connection. It decides whether somebody else has renewed the token
        already.
    :param backoff: how often and when to try again.
    :param clock: seconds, monotonic.
    :param is_final: whether another try would be answered alike, where the status says that the fault may pass.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        seconds: float | None = None,
        refresh: Refresh | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_final: Callable[[httpx.Response], bool] = lambda answer: False,
    ) -> None:
        self._settings = settings
        self._is_final = is_final
        self._secrets = secrets_of(settings)
        self._seconds = settings.timeout_seconds if seconds is None else seconds
        self._refresh = refresh
        self._backoff = backoff or Backoff()
        self._clock = clock

    def __call__(self, request: httpx.Request) -> Flow[httpx.Response]:
        """Return the flow of one call.

        :raises RegistryUnavailable: when no answer came, or the server wants us to wait beyond the deadline.
        :raises InvalidInput: for certificates, proxies and redirects that cannot be used.
        """
        seconds = request.extensions.get(_SECONDS, self._seconds)
        deadline = self._clock() + seconds
        request.extensions.setdefault(_SECRETS, self._secrets)
        if _SECONDS in request.extensions:  # a call that is known to be slow may also be silent for long
            patience = httpx.Timeout(max(seconds, READ_SECONDS), connect=CONNECT_SECONDS)
            request.extensions.setdefault("timeout", patience.as_dict())
        base = str(request.url)
        redirects, refreshed = 0, False
        while True:
            response = yield from self._answer(request, deadline)
            if self._should_refresh(response) and not refreshed:
                refreshed = True
                request = yield from self._refreshed(request)
            elif response.status_code in REDIRECTS and "Location" in response.headers and not _is_wanted(response):
                redirects += 1
                request = self._redirected(response, redirects, base)
            else:
                return response

    def _answer(self, request: httpx.Request, deadline: float) -> Flow[httpx.Response]:
        """Send a request until an answer comes that another try would not change."""
        doing = f"{request.method} {show_url(request.url, _secrets_in(request))}"
        for failures in count(1):
            outcome = yield from self._try(request, doing, deadline - self._clock())
            wait = None
            if isinstance(outcome, httpx.Response):
                wait = retry_after(outcome.headers)
                if not _is_worth_a_retry(request, outcome) or self._is_final(outcome):
                    return outcome
            elif not _may_follow(request, outcome):
                raise outcome from None
            delay = max(wait or 0.0, self._backoff.delay(failures))
            if wait is not None and self._clock() + wait > deadline:
                raise RegistryUnavailable(
                    f"{doing}: the server wants us to wait {wait:.0f} s, longer than the call may take"
                )
            if failures == self._backoff.attempts or self._clock() + delay > deadline:
                if isinstance(outcome, httpx.Response):
                    return outcome
                raise outcome from None
            if isinstance(outcome, httpx.Response):
                said = f"{doing}: status {outcome.status_code} {reason_of(outcome.status_code)}".rstrip()
                remedy = RegistryUnavailable.remedy
            else:
                said, remedy = outcome.message, outcome.remedy
            _log.warning("%s", again(said, delay, failures, self._backoff.attempts, remedy))
            yield Sleep(delay)
        raise AssertionError("unreachable")

    def _try(
        self, request: httpx.Request, doing: str, seconds: float
    ) -> Generator[Step, Any, httpx.Response | ModelSyncError]:
        try:
            response: httpx.Response = yield Exchange(request, max(seconds, 0.0))
        except ModelSyncError:
            raise
        except Exception as error:
            return classify(error, doing)
        return response

    def _should_refresh(self, response: httpx.Response) -> bool:
        carried = response.request.extensions.get(_CREDENTIALS, False)
        return self._refresh is not None and response.status_code == 401 and carried

    def _refreshed(self, request: httpx.Request) -> Flow[httpx.Request]:
        assert self._refresh is not None
        credentials = yield from self._refresh(request)
        check_headers(credentials, self._settings)
        headers = request.headers.copy()
        headers.update(credentials)
        return httpx.Request(
            request.method, request.url, headers=headers, content=request.content, extensions=request.extensions
        )

    def _redirected(self, response: httpx.Response, redirects: int, base: str) -> httpx.Request:
        """Build the request that a redirect asks for; ``base`` was the first."""
        request, secrets = response.request, _secrets_in(response.request)
        shown = show_url(request.url, secrets)
        if redirects > MAX_REDIRECTS:
            raise InvalidInput(f"{shown}: more than {MAX_REDIRECTS} redirects", argument="host")
        target = redirect_target(str(request.url), response.headers["Location"], self._settings, base=base)
        method = request.method
        if response.status_code == 303 and method != "HEAD":
            method = "GET"
        elif response.status_code in (301, 302) and method not in ("GET", "HEAD"):
            # Clients disagree whether the body goes along; guessing wrong would look like success.
            raise InvalidInput(
                f"{method} {shown}: the server answered {response.status_code} and points to "
                f"{show_url(target, secrets)}",
                remedy="name that server in the connection",
                argument="host",
            )
        headers = httpx.Headers(headers_for(target, str(request.url), request.headers))
        content = request.content if method == request.method else b""
        if not content:
            for name in ("Content-Type", "Content-Length", "Transfer-Encoding"):
                headers.pop(name, None)
        extensions = dict(request.extensions)
        if origin_of(target) != origin_of(request.url):
            extensions[_CREDENTIALS] = False
            if content and request.extensions.get(_SEALED):
                raise InvalidInput(
                    f"{method} {shown} holds a secret and is not followed to {show_url(target, secrets)}",
                    remedy="name that server in the connection",
                    argument="host",
                )
        return httpx.Request(method, target, headers=headers, content=content or None, extensions=extensions)


def _is_wanted(response: httpx.Response) -> bool:
    wanted: Callable[[httpx.Response], bool] | None = response.request.extensions.get(_WANTED)
    return wanted is not None and wanted(response)


def raise_for_status(
    response: httpx.Response, doing: str, *, not_found: type[ModelSyncError] = InvalidInput
) -> httpx.Response:
    """Return a response that says success.

    :param response: the response.
    :param doing: what was being done, for the message, e.g. ``"listing the versions of fraud"``.
    :param not_found: what a 404 means here.
    :raises Unauthorized: for 401 and 403.
    :raises NotSupported: for 413.
    :raises RegistryUnavailable: for 5xx and what else passes; with the server's trace id.
    :raises InvalidInput: for every other refusal, in the server's words.
    """
    secrets = _secrets_in(response.request)
    error = status_error(
        response.status_code, response.headers, response.text, doing, not_found=not_found, secrets=secrets
    )
    if error:
        raise error
    return response


def read_json(response: httpx.Response, shape: type[T], doing: str = "") -> T:
    """Read a JSON answer into a pydantic model, or any type that pydantic understands.

    Fields that the type does not name are ignored.

    :param response: the response.
    :param shape: what the answer must be.
    :param doing: what was being done, for the message; by default the request.
    :raises RegistryUnavailable: when it is no JSON, or naming the fields that are missing or wrong.
    """
    request, secrets = response.request, _secrets_in(response.request)
    doing = doing or f"{request.method} {show_url(request.url, secrets)}"
    content = response.content
    if content.count(b"{") > MAX_OBJECTS or content.count(b",") > MAX_VALUES or content.count(b"[") > MAX_VALUES:
        raise RegistryUnavailable(f"{doing}: the answer holds far more than it can mean")
    try:
        if len(content) < _LARGE:
            value: T = _adapter(shape).validate_json(content)
        else:
            value = _adapter(shape).validate_python(in_slices(content, shape))
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)
    except ValueError:
        faults = [{"type": "json_invalid", "loc": (), "msg": "", "input": None}]
    else:
        return value
    if faults[0]["type"] == "json_invalid":
        said = excerpt(response.text[:4096], secrets)
        raise RegistryUnavailable(f"{doing}: the answer is not JSON but {said or 'empty'}")
    shown = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in faults[:5])
    raise RegistryUnavailable(f"{doing}: the answer is not as expected: {excerpt(shown, secrets)}")


def _may_repeat(request: httpx.Request) -> bool:
    return bool(request.extensions.get(_REPEATABLE, request.method in _IDEMPOTENT))


def _may_follow(request: httpx.Request, error: ModelSyncError) -> bool:
    return isinstance(error, NotSent) or (isinstance(error, RegistryUnavailable) and _may_repeat(request))


def _is_worth_a_retry(request: httpx.Request, answer: httpx.Response) -> bool:
    unprocessed = is_unprocessed(answer.status_code, answer.headers)
    return unprocessed or (answer.status_code in _PASSING and _may_repeat(request))


def _secrets_in(request: httpx.Request) -> tuple[str, ...]:
    return (*request.extensions.get(_SECRETS, ()), *credentials_in(request.headers))

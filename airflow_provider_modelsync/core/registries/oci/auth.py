"""Who we are to an OCI registry: its challenge, Basic or Bearer, and tokens per scope, shared within the process.

Facts come from the distribution specification, from distribution 2.8.2 on the wire, and from issues of hosted
registries. Tokens live for minutes: each is renewed before it ends, and once more when a request is refused.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import httpx
from pydantic import BaseModel, BeforeValidator

from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import Flow, call, send, sleep
from airflow_provider_modelsync.core.http.addresses import check_server_url
from airflow_provider_modelsync.core.http.policy import ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.settings import RegistrySettings

_TICK = 0.02  # seconds between two looks whether another has got the token
_UNKNOWN_LIFE = 60.0  # seconds: what the specification says of a token that does not tell
_MARGIN = 60.0  # seconds before its end in which a token begins no request any more
_REFUSAL_SECONDS = 60.0  # within which a refused password is not sent again: accounts get locked, or throttled
_PROCESS_KEY = os.urandom(32)
_PARAMETER = re.compile(
    r'\s*,?\s*(?:(?P<scheme>[A-Za-z][\w-]*)\s+)??(?P<name>[\w-]+)\s*=\s*(?:"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<token>[^\s,"]+))'
)
_WORD = re.compile(r"\s*,?\s*([A-Za-z][\w-]*)(?=\s*(?:,|$))")

Scopes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for.

    :param scheme: in small letters; empty when it asks for nothing.
    :param parameters: by their names in small letters.
    """

    scheme: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, header: str) -> Challenge:
        """Return the strongest challenge that is understood, of all in a ``WWW-Authenticate``; else none."""
        found: dict[str, dict[str, str]] = {}
        position, scheme = 0, ""
        while position < len(header):
            if match := _PARAMETER.match(header, position):
                scheme = (match["scheme"] or scheme).lower()
                quoted = match["quoted"]
                value = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                found.setdefault(scheme, {})[match["name"].lower()] = value
            elif match := _WORD.match(header, position):
                scheme = match[1].lower()
                found.setdefault(scheme, {})
            else:
                break
            position = match.end()
        for known in ("bearer", "basic"):
            if known in found:
                return cls(known, found[known])
        return cls()

    @property
    def scopes(self) -> Scopes:
        """The scopes that would have been enough."""
        return tuple(self.parameters.get("scope", "").split())


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    renew_at: float  # by the monotonic clock


class _Answer(BaseModel):
    token: str | None = None
    access_token: str | None = None
    expires_in: Annotated[float | None, BeforeValidator(lambda value: value or None)] = None


@dataclass(slots=True)
class _Shared:
    """What all connections of one account have in common."""

    # Held across steps of a flow, so never waited for in a call that blocks: that might keep the event loop's threads.
    lock: Lock = field(default_factory=Lock)
    challenge: Challenge | None = None
    tokens: dict[Scopes, _Token] = field(default_factory=dict)
    refusal: str | None = field(default=None, repr=False)
    refused_until: float = 0.0


_accounts: dict[tuple[str, ...], _Shared] = {}


class Login:
    """The login of one connection.

    :param settings: the connection.
    :param base_url: the registry's root.
    :param title: what the system is called in messages.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self, settings: RegistrySettings, base_url: str, title: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._base_url = base_url
        self._title = title
        self._clock = clock
        password = settings.password.get_secret_value() if settings.password else ""
        self._basic = ""
        if settings.login or password:
            pair = f"{settings.login or ''}:{password}".encode()
            self._basic = f"Basic {base64.b64encode(pair).decode()}"
        proof = hmac.digest(_PROCESS_KEY, self._basic.encode(), "sha256").hex()
        self._shared = _accounts.setdefault((base_url, proof), _Shared())
        self._api = ApiClient(settings, base_url)
        self._tell: Callable[[str], object] = lambda secret: None

    def tell(self, listener: Callable[[str], object]) -> None:
        """Tell somebody every token before it is used, so that logs can mask it."""
        self._tell = listener

    @property
    def is_anonymous(self) -> bool:
        """Whether the connection names nobody."""
        return not self._basic

    @property
    def service(self) -> str:
        """What the registry calls itself to its token server, as far as it has been asked."""
        challenge = self._shared.challenge
        return challenge.parameters.get("service", "") if challenge else ""

    def headers(self, scopes: Scopes) -> Flow[dict[str, str]]:
        """Return the headers that prove who we are, with a token that lasts where the registry wants one.

        :param scopes: what is going to be done, in the registry's words.
        """
        shared = self._shared
        if shared.challenge is None:
            yield from self._locked(self._ask_for_challenge)
        assert shared.challenge is not None
        if shared.challenge.scheme == "bearer":
            token = shared.tokens.get(scopes)
            if token is None or self._clock() >= token.renew_at:
                yield from self._locked(lambda: self._renew(scopes, token, scopes))
        if shared.challenge.scheme == "bearer":
            return {"Authorization": shared.tokens[scopes].header}
        return {"Authorization": self._basic} if shared.challenge.scheme == "basic" and self._basic else {}

    def after_refusal(self, scopes: Scopes, sent: str, response: httpx.Response) -> Flow[dict[str, str] | None]:
        """Return other headers than those of a request that was refused; ``None`` when there are none to try.

        :param scopes: what the request was to do.
        :param sent: the ``Authorization`` that it carried, empty for none.
        :param response: the answer with status 401.
        """
        shared = self._shared
        challenge = Challenge.read(response.headers.get("WWW-Authenticate", ""))
        if not challenge.scheme:
            return None
        shared.challenge = challenge
        if challenge.scheme == "basic":
            return {"Authorization": self._basic} if self._basic and self._basic != sent else None
        token = shared.tokens.get(scopes)
        if token is None or token.header == sent:
            wanted = (*scopes, *(scope for scope in challenge.scopes if scope not in scopes))
            yield from self._locked(lambda: self._renew(scopes, token, wanted))
        return (yield from self.headers(scopes))

    def forget(self, sent: str) -> None:
        """Hear that a token was refused: whoever asks for headers gets another one."""
        tokens = self._shared.tokens
        for scopes, token in list(tokens.items()):
            if token.header == sent:
                tokens[scopes] = _Token(sent, self._clock())

    def _locked(self, work: Callable[[], Flow[None]]) -> Flow[None]:
        while not self._shared.lock.acquire(blocking=False):
            yield from sleep(_TICK)
        try:
            yield from work()
        finally:
            self._shared.lock.release()

    def _ask_for_challenge(self) -> Flow[None]:
        """Learn how the registry wants to know who asks: once for the process."""
        if self._shared.challenge is not None:
            return
        response = yield from send(self._api.request("GET", "v2/"))
        if response.status_code == 401:
            header = response.headers.get("WWW-Authenticate", "")
            challenge = Challenge.read(header)
            if not challenge.scheme:
                raise InvalidInput(
                    f"{self._base_url} asks for a login that is neither Basic nor Bearer", argument="host"
                )
            self._shared.challenge = challenge
            return
        if response.status_code == 404:
            raise InvalidInput(f"{self._base_url} has no /v2/: it is no registry", argument="host")
        raise_for_status(response, f"asking {self._title} how to log in")
        self._shared.challenge = Challenge()

    def _renew(self, scopes: Scopes, stale: _Token | None, wanted: Scopes) -> Flow[None]:
        """Replace a token, unless somebody else has done so meanwhile."""
        if self._shared.tokens.get(scopes) is stale:
            try:
                token = yield from self._fetch(wanted)
            except RegistryUnavailable:
                asked, self._shared.challenge = self._shared.challenge, None
                yield from self._ask_for_challenge()  # which may have moved since this process was told
                if self._shared.challenge == asked:
                    raise
                if self._shared.challenge is None or self._shared.challenge.scheme != "bearer":
                    return
                token = yield from self._fetch(wanted)
            yield from call(self._tell, token.header.removeprefix("Bearer "))
            self._shared.tokens[scopes] = token

    def _fetch(self, scopes: Scopes) -> Flow[_Token]:
        shared, doing = self._shared, f"getting a token of {self._title}"
        assert shared.challenge is not None
        if shared.refusal and self._clock() < shared.refused_until:
            raise Unauthorized(shared.refusal)
        parameters = shared.challenge.parameters
        realm = parameters.get("realm", "")
        # The password goes there: no exception that is meant for signed addresses counts.
        check_server_url(realm, self._settings.model_copy(update={"presigned_hosts": ()}), base=self._base_url)
        asked_at = self._clock()
        response = yield from send(
            self._api.request(
                "GET",
                realm,
                params={key: parameters[key] for key in ("service",) if key in parameters}
                | ({"scope": list(scopes)} if scopes else {}),
                headers={"Authorization": self._basic} if self._basic else {},
            )
        )
        if response.status_code == 401 and self._basic:
            try:
                raise_for_status(response, doing)
            except Unauthorized as error:
                shared.refusal = f"{error.message}. It is not tried again for a minute"
                shared.refused_until = self._clock() + _REFUSAL_SECONDS
                raise
        raise_for_status(response, doing)
        answer = read_json(response, _Answer, doing)
        text = answer.token or answer.access_token
        if not text:
            raise Unauthorized(f"{doing}: the token server gave none")
        life = answer.expires_in or _UNKNOWN_LIFE
        return _Token(f"Bearer {text}", asked_at + life - min(_MARGIN, life / 2))

"""Tokens for Wallaroo, which leaves logging in to Keycloak: got, shared within the process, renewed, never stored.

Repeated wrong passwords lock accounts, so what was refused is not tried again for a while, by nobody in this process.
Facts come from the vendor's public tutorials and from the wallaroo 2026.1.3 client, read and seen on the wire.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from airflow_provider_modelsync.core.errors import InvalidInput, Unauthorized
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import Flow, call, send, sleep
from airflow_provider_modelsync.core.http.policy import ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.settings import RegistrySettings

_DOING = "logging in to Wallaroo"
_TICK = 0.05  # seconds between two looks whether another has got the token
_UNKNOWN_LIFE = 300.0  # seconds: what the vendor's client assumes of a token that does not say
_REFUSAL_SECONDS = 60.0  # within which a refused password is not sent again
_PROCESS_KEY = os.urandom(32)


class Grant(StrEnum):
    """How a token is got."""

    PASSWORD = "password"  # noqa: S105
    REFRESH_TOKEN = "refresh_token"  # noqa: S105
    TOKEN = "token"  # noqa: S105


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who logs in, where, and with what.

    :param auth_url: base URL of the Keycloak, and its path up to ``/realms``.
    :param realm: of that Keycloak.
    :param grant: which of the secrets counts.
    :param client_id: the OAuth client.
    :param client_secret: of a confidential client; ``None`` for a public one.
    """

    auth_url: str
    realm: str
    grant: Grant
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[str, ...]:
        """What two connections must have in common to share a token: every secret, which this does not tell."""
        secrets = (self.client_secret, self.password, self.refresh_token, self.access_token)
        proof = hmac.digest(_PROCESS_KEY, repr(secrets).encode(), "sha256").hex()
        return self.auth_url, self.realm, self.grant, self.client_id, self.user or "", proof

    @property
    def first_form(self) -> dict[str, str]:
        """What asks for a token when there is none."""
        if self.grant is Grant.REFRESH_TOKEN:
            return refresh_form(self.refresh_token or "")
        return {"username": self.user or "", "password": self.password or "", "grant_type": "password"}


def refresh_form(token: str) -> dict[str, str]:
    """Return what asks for a new token in place of an old one."""
    return {"grant_type": "refresh_token", "refresh_token": token}


@dataclass(frozen=True, slots=True)
class _Token:
    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    renew_at: float = math.inf  # by the monotonic clock

    @property
    def header(self) -> str:
        return f"Bearer {self.access}"


class _Answer(BaseModel):
    access_token: str
    expires_in: float | None = None
    refresh_token: str | None = None


@dataclass(slots=True)
class _Shared:
    """What all connections of one account have in common."""

    # Held across steps of a flow, so never waited for in a call that blocks: that might keep the event loop's threads.
    lock: Lock = field(default_factory=Lock)
    token: _Token | None = None
    refusal: str | None = field(default=None, repr=False)
    refused_until: float = 0.0


_accounts: dict[tuple[str, ...], _Shared] = {}


class Login:
    """The login of one connection.

    :param settings: the connection.
    :param account: who logs in.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self, settings: RegistrySettings, account: Account, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._account = account
        self._shared = _accounts.setdefault(account.key, _Shared())
        self._clock = clock
        # A client of its own: what asks for a token carries none, so a 401 here asks for no other.
        self._api = ApiClient(settings, account.auth_url)
        self._tell: Callable[[str], object] = lambda secret: None

    def tell(self, listener: Callable[[str], object]) -> None:
        """Tell somebody every token before it is used, so that logs can mask it."""
        self._tell = listener

    @property
    def can_renew(self) -> bool:
        """Whether another token can be got."""
        return self._account.grant is not Grant.TOKEN

    @property
    def user(self) -> str:
        """Who is logged in, as far as the connection or the token says."""
        token = self._shared.token
        claims = _claims_of(token.access) if token else {}
        return str(self._account.user or claims.get("email") or claims.get("preferred_username") or "the token's user")

    def headers(self) -> dict[str, str]:
        """Return the headers that prove who we are; :meth:`ensure` comes first."""
        token = self._shared.token
        return {"Authorization": token.header} if token else {}

    def ensure(self) -> Flow[None]:
        """Get a token unless there is one that lasts."""
        token = self._shared.token
        if token is None or self._clock() >= token.renew_at:
            yield from self._renew(token)

    def renewed(self) -> Flow[dict[str, str]]:
        """Return the headers with a fresh token, for a body that cannot be sent twice."""
        yield from self._renew(self._shared.token)
        return self.headers()

    def after_refusal(self, request: httpx.Request) -> Flow[Mapping[str, str]]:
        """Return other headers than those of a request that was answered with 401."""
        token = self._shared.token
        if token is None or request.headers.get("Authorization") == token.header:
            yield from self._renew(token)
        return self.headers()

    def _renew(self, stale: _Token | None) -> Flow[None]:
        """Replace a token, unless somebody else has done so meanwhile."""
        while not self._shared.lock.acquire(blocking=False):
            yield from sleep(_TICK)
        try:
            if self._shared.token is stale:
                token = yield from self._fetch(stale)
                yield from call(self._tell, token.access)
                self._shared.token = token
        finally:
            self._shared.lock.release()

    def _fetch(self, stale: _Token | None) -> Flow[_Token]:
        account, shared = self._account, self._shared
        if account.grant is Grant.TOKEN:
            return stale or _Token(account.access_token or "")
        if stale and stale.refresh and stale.refresh != account.refresh_token:
            try:
                return (yield from self._ask(refresh_form(stale.refresh)))
            except Unauthorized:  # it has expired: it may have been for minutes, offline ones are for ever
                pass
        if shared.refusal and self._clock() < shared.refused_until:
            raise Unauthorized(shared.refusal)
        try:
            return (yield from self._ask(account.first_form))
        except Unauthorized as error:
            shared.refusal, shared.refused_until = error.message, self._clock() + _REFUSAL_SECONDS
            raise

    def _ask(self, form: Mapping[str, str]) -> Flow[_Token]:
        account = self._account
        headers = {}
        if account.client_secret is None:
            form = {"client_id": account.client_id, **form}
        else:
            pair = f"{account.client_id}:{account.client_secret}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        path = f"/realms/{quote(account.realm, safe='')}/protocol/openid-connect/token"
        secrets = [value for value in (form.get("password"), form.get("refresh_token")) if value]
        asked_at = self._clock()
        response = yield from send(
            # A refusal is no passing fault, so it is never repeated.
            self._api.request("POST", path, form=form, headers=headers, may_repeat=True, secrets=secrets)
        )
        if response.status_code in (400, 401):
            raise Unauthorized(f"{_refusal(response)}. It is not tried again: wrong passwords lock accounts")
        if response.status_code == 404:
            raise InvalidInput(
                f"{_DOING}: there is no realm {account.realm!r} at {account.auth_url}; "
                "older installations have a Keycloak host of their own",
                argument="auth_url",
            )
        raise_for_status(response, _DOING)
        answer = read_json(response, _Answer, _DOING)
        life = answer.expires_in or _UNKNOWN_LIFE
        margin = min(max(30.0, life / 10), life / 2)  # the latter for tokens that live for moments
        return _Token(answer.access_token, answer.refresh_token or form.get("refresh_token"), asked_at + life - margin)


def _refusal(response: httpx.Response) -> str:
    try:
        raise_for_status(response, _DOING)
    except (InvalidInput, Unauthorized) as error:
        return error.message
    raise AssertionError("a refusal was expected")


def _claims_of(token: str) -> dict[str, Any]:
    """Return what a token says about its user; only shown, so no signature is checked."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}

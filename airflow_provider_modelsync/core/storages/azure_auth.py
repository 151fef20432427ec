"""What proves to Azure Blob Storage who we are: an account's key, a signature that somebody was given, or a token.

An account's key signs a token for one container (a service SAS) every half hour, so that it signs no single request,
and bytes go by URLs that say everything. Facts: "Create a service SAS" and "Authorize with Microsoft Entra ID" of
Azure's REST reference. Tokens come from azure-identity, which is loaded when the first one is wanted.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import SecretStr

from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.http.faults import classify
from airflow_provider_modelsync.core.redact import excerpt, guard_logs
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.rest import Credentials, Proof

VERSION = "2023-11-03"  # of the REST API
_SCOPE = "https://storage.azure.com/.default"  # of tokens, in every cloud
_SIGNED_SECONDS = 3600
_RENEWED_SECONDS = 1800  # before the end, whatever the clocks
_TOKEN_SECONDS = 300  # that a token is to be good for
_OVER = datetime.min.replace(tzinfo=UTC)
_PERMISSIONS = "rcwdl"  # read, create, write, delete, list; the service demands this order

# What a connection of somebody else's is good for: an object with ``get_token``, with ``account_key`` or with
# ``signature``, or a signature as text.
OpenCredential = Callable[[], Any]


class AzureSettings(RegistrySettings):
    """A connection to a container of Azure Blob Storage.

    ``password`` is the account's key, a shared access signature or, with ``tenant_id``, the client secret of the
    application that ``login`` names; without it, the sources of ``DefaultAzureCredential`` are asked.

    :param endpoint_url: base URL of the Blob service, where the account's name alone does not tell it.
    :param azure_conn_id: the connection whose credentials are used instead.
    :param tenant_id: where the application is registered.
    :param managed_identity_client_id: which of the machine's identities is meant.
    :param workload_identity_tenant_id: where the workload's identity is registered.
    """

    endpoint_url: str | None = None
    azure_conn_id: str | None = None
    tenant_id: str | None = None
    managed_identity_client_id: str | None = None
    workload_identity_tenant_id: str | None = None

    @property
    def further_connections(self) -> tuple[str, ...]:
        return (self.azure_conn_id,) if self.azure_conn_id else ()


def credentials_for(
    settings: AzureSettings, account: str, container: str, *, is_https: bool, opened: OpenCredential | None = None
) -> Credentials:
    """Return the credentials that a connection means.

    :param account: the account's name.
    :param container: what a key signs for.
    :param is_https: whether requests are encrypted.
    :param opened: opens the credential of ``azure_conn_id``.
    :raises InvalidInput: naming the field that cannot be meant, or the extra that is to be installed.
    """
    if opened is not None:
        return _Opened(opened, partial(_of_object, account=account, container=container, is_https=is_https))
    secret = settings.password.get_secret_value().strip() if settings.password else ""
    if settings.tenant_id:
        if not (settings.login and secret):
            raise InvalidInput(
                "tenant_id goes with the application's client id as login and its secret as password",
                argument="tenant_id",
                connection=settings.conn_id,
            )
        _require_identity(settings, "an application's secret")
        return _Tokens(partial(_client_secret, settings, settings.tenant_id, settings.login, secret))
    if secret:
        if _is_signature(secret):
            return _Signature(secret)
        if settings.login and settings.login != account:
            raise InvalidInput(
                f"login is the account {account} of the root, or empty: an application's secret goes with tenant_id",
                argument="login",
                connection=settings.conn_id,
            )
        return _Key(account, container, _key_of(settings, secret), is_https=is_https)
    if settings.login:
        raise InvalidInput("login without a password", argument="password", connection=settings.conn_id)
    _require_identity(settings, "Azure's own credentials")
    return _Tokens(partial(_default_chain, settings))


def _is_signature(secret: str) -> bool:
    return "sig" in dict(parse_qsl(secret.lstrip("?")))


def _key_of(settings: AzureSettings, secret: str) -> bytes:
    try:
        return base64.b64decode(secret, validate=True)
    except binascii.Error:
        raise InvalidInput(
            "password is neither an account's key nor a shared access signature; an application's secret goes with "
            "tenant_id",
            argument="password",
            connection=settings.conn_id,
        ) from None


class _Signature(Credentials):
    """A shared access signature that somebody was given, or the query of a URL that holds one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._query = text.strip().lstrip("?&")
        guard_logs(value for name, value in parse_qsl(self._query) if name == "sig")

    def _current(self, method: str, url: str) -> Proof:
        return Proof(self._query, query=self._query)

    def _forget(self) -> None:
        """There is no other."""


class _Key(Credentials):
    """An account's key."""

    def __init__(self, account: str, container: str, key: bytes, *, is_https: bool) -> None:
        super().__init__()
        self._resource = f"/blob/{account}/{container}"
        self._key = key
        self._protocol = "https" if is_https else "https,http"
        self._query, self._end = "", _OVER

    def _current(self, method: str, url: str) -> Proof:
        now = datetime.now(UTC)
        if self._end - now < timedelta(seconds=_RENEWED_SECONDS):
            self._end = now + timedelta(seconds=_SIGNED_SECONDS)
            self._query = self._sign(self._end.strftime("%Y-%m-%dT%H:%M:%SZ"))
        return Proof(self._query, query=self._query)

    def _forget(self) -> None:
        self._end = _OVER

    def _sign(self, end: str) -> str:
        nothing = ""
        fields = (
            *(_PERMISSIONS, nothing, end, self._resource),
            *(nothing, nothing, self._protocol, VERSION),  # policy, addresses
            *("c", nothing, nothing),  # of a container; snapshot, encryption scope
            *(nothing, nothing, nothing, nothing, nothing),  # headers of answers
        )
        signature = base64.b64encode(hmac.digest(self._key, "\n".join(fields).encode(), sha256)).decode()
        told = {"sv": VERSION, "se": end, "sr": "c", "sp": _PERMISSIONS, "spr": self._protocol, "sig": signature}
        return urlencode(told)


class _Tokens(Credentials):
    """Tokens of Microsoft Entra ID."""

    def __init__(self, opened: OpenCredential) -> None:
        super().__init__()
        self._open = opened
        self._credential: Any = None
        self._token, self._end = "", 0.0

    def _current(self, method: str, url: str) -> Proof:
        if self._end - time.time() < _TOKEN_SECONDS:
            if self._credential is None:
                self._credential = self._open()
            self._token, self._end = _ask(self._credential)
        return Proof(self._token, {"Authorization": f"Bearer {self._token}"})

    def _forget(self) -> None:
        # A credential remembers its tokens, so the next one has to be asked of another.
        self._credential, self._end = None, 0.0


class _Opened(Credentials):
    """What another connection stands for, which is opened when it is needed."""

    def __init__(self, opened: OpenCredential, meant: Callable[[Any, OpenCredential], Credentials]) -> None:
        super().__init__()
        self._open = opened
        self._meant = meant
        self._credentials: Credentials | None = None

    def _current(self, method: str, url: str) -> Proof:
        if self._credentials is None:
            self._credentials = self._meant(self._open(), self._open)
        return self._credentials.proof(method, url)

    def _forget(self) -> None:
        self._credentials = None


def _of_object(credential: Any, opened: OpenCredential, account: str, container: str, *, is_https: bool) -> Credentials:
    if hasattr(credential, "get_token"):
        return _Tokens(opened)
    if key := getattr(credential, "account_key", None):
        name = getattr(credential, "account_name", account)
        if name != account:
            raise InvalidInput(
                f"that connection is for the account {name}, and the root names {account}", argument="azure_conn_id"
            )
        return _Key(account, container, base64.b64decode(key), is_https=is_https)
    text = getattr(credential, "signature", credential)
    if isinstance(text, str) and _is_signature(text):
        return _Signature(text)
    raise InvalidInput("that connection holds no credentials for Azure Blob Storage", argument="azure_conn_id")


def _ask(credential: Any) -> tuple[str, float]:
    try:
        token = credential.get_token(_SCOPE)
    except ModelSyncError:
        raise
    except Exception as error:
        raise _fault(error) from None
    return token.token, float(token.expires_on)


def _fault(error: Exception) -> ModelSyncError:
    doing = "asking for a token of Microsoft Entra ID"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ClientAuthenticationError" in kinds:  # that no source has credentials, too
        return Unauthorized(
            f"no token of Microsoft Entra ID is to be had: {excerpt(str(error))}",
            remedy="Correct the connection's credentials, or what the worker's environment offers Azure's tools",
        )
    if kinds & {"AzureError", "OSError"}:
        return RegistryUnavailable(f"{doing}: {excerpt(str(error))}")
    return classify(error, doing)


def _require_identity(settings: AzureSettings, what: str) -> None:
    try:
        found = find_spec("azure.identity")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InvalidInput(
            f"azure-identity is needed for {what}: install airflow-provider-modelsync[azure], or give an account's key "
            "or a shared access signature as password",
            argument="host",
            connection=settings.conn_id,
        )


def _client_secret(settings: AzureSettings, tenant: str, client: str, secret: str) -> Any:
    from azure.identity import ClientSecretCredential

    return ClientSecretCredential(tenant, client, secret, **_transport(settings))


def _default_chain(settings: AzureSettings) -> Any:
    from azure.identity import DefaultAzureCredential

    chosen: dict[str, Any] = {}
    if settings.managed_identity_client_id:
        chosen["managed_identity_client_id"] = settings.managed_identity_client_id
    if settings.workload_identity_tenant_id:
        chosen["workload_identity_tenant_id"] = settings.workload_identity_tenant_id
        chosen["additionally_allowed_tenants"] = [settings.workload_identity_tenant_id]
    return DefaultAzureCredential(**chosen, **_transport(settings))


def _transport(settings: AzureSettings) -> dict[str, Any]:
    """Return how azure-identity reaches the token service: as everything of this connection is reached."""
    reached: dict[str, Any] = {}
    if isinstance(settings.proxy, SecretStr):
        proxy = settings.proxy.get_secret_value()
        reached["proxies"] = {"http": proxy, "https": proxy}
    if settings.ca_bundle:
        reached["connection_verify"] = str(settings.ca_bundle)
    elif not settings.verify_tls:
        reached["connection_verify"] = False
    return reached

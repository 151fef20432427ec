"""How an MLflow tracking server is called and what its answers mean, whatever they are about.

Facts come from real servers (3.17.2 and 2.22.5) that the unmodified client and httpx have talked to, and from the
source of 3.17.2.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import httpx
from pydantic import BaseModel, BeforeValidator, SecretStr

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.exchange import allow
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, send
from airflow_provider_modelsync.core.http.addresses import origin_of
from airflow_provider_modelsync.core.http.policy import (
    USER_AGENT,
    ApiClient,
    RequestPolicy,
    raise_for_status,
    read_json,
)
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.storages.boto import S3Settings
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address
from airflow_provider_modelsync.core.transfer.watchdog import Pace

T = TypeVar("T")

_API = "api/2.0/mlflow"
# A tag of somebody else's may hold 100,000 characters, and a page many of them.
LISTING_BYTES = 32 << 20
_MOST_PAGES = 1000
# A server before a bucket answers only once the bytes are there, and gives none before it has them all.
ANSWER_SECONDS = 300.0

_PROXY_OFF = re.compile(r"--(?:no-)?serve-artifacts|--artifacts-only")
_HOST_REFUSED = re.compile(r"(?i)invalid host header")
_NO_WORKSPACE = re.compile(r"(?i)^workspace '.*' not found")
_NO_ALIAS = re.compile(r"(?i)alias .* not found")
# What servers say of an artifact that is not there, with status 500: of one in S3, and any of 2.x.
_NO_ARTIFACT = re.compile(r"\(404\) when calling|No such file or directory|NoSuchKey")


def null_as(default: Any) -> BeforeValidator:
    """Return what reads null as a default."""
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, null_as("")]


class MLflowSettings(S3Settings):
    """An MLflow connection; ``login`` and ``password`` are those of the server.

    :param token: a bearer token, for a proxy before the server; otherwise login and password are sent.
    :param experiment: holds what is pushed; made when there is none of the name.
    :param workspace: of a server that has workspaces.
    :param aws_access_key_id: for buckets that are reached past the server.
    :param aws_secret_access_key: of that key.
    """

    ca_variables: ClassVar[tuple[str, ...]] = RegistrySettings.ca_variables

    token: SecretStr | None = None
    experiment: str = "modelsync"
    workspace: str | None = None
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretStr | None = None

    @property
    def says_how_to_reach_buckets(self) -> bool:
        """Whether any field is given that is of use for a bucket alone."""
        own = S3Settings.model_fields.keys() - RegistrySettings.model_fields.keys()
        return not self.model_fields_set.isdisjoint({*own, "aws_access_key_id", "aws_secret_access_key"})

    def for_bucket(self, name: str) -> S3Settings:
        """Return how a bucket is reached."""
        given = {field: getattr(self, field) for field in S3Settings.model_fields if field in self.model_fields_set}
        if (endpoint := os.environ.get("MLFLOW_S3_ENDPOINT_URL")) is not None:  # what MLflow's own client goes by
            given.setdefault("endpoint_url", endpoint)
        facts = {"host": f"s3://{name}", "login": self.aws_access_key_id, "password": self.aws_secret_access_key}
        return S3Settings(**{**given, **facts, "port": None})


class _Error(BaseModel):
    error_code: Text = ""
    message: Text = ""
    detail: Any = None


class Calls:
    """Makes the calls of one connection.

    :param settings: the connection.
    :param title: what the system is called in messages.
    """

    def __init__(self, settings: MLflowSettings, title: str) -> None:
        if settings.host is None:
            raise InvalidInput("the tracking server's address is needed", argument="host", connection=settings.conn_id)
        if "databricks" in settings.host.lower():
            raise NotSupported(
                "Databricks keeps models in Unity Catalog, which this connection type does not speak; give the address "
                "of an MLflow tracking server",
                argument="host",
                connection=settings.conn_id,
            )
        if settings.token is not None and settings.login is not None:
            raise InvalidInput(
                "only one of login and token can be meant", argument="token", connection=settings.conn_id
            )
        self._settings = settings
        self._title = title
        self.base_url = base_url(settings.host, settings.port)
        workspace = {"X-MLFLOW-WORKSPACE": settings.workspace} if settings.workspace else {}
        self._headers = workspace
        self._api = ApiClient(settings, self.base_url, headers=workspace, credentials=self._credentials)

    def policy(self) -> Policy:
        """Return how requests are made."""
        return RequestPolicy(self._settings, is_final=_is_final)

    def _credentials(self) -> dict[str, str]:
        settings = self._settings
        if settings.token is not None:
            return {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
        if settings.login is None:
            return {}
        password = settings.password.get_secret_value() if settings.password else ""
        pair = base64.b64encode(f"{settings.login}:{password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}

    def address(self, url: str) -> Address:
        """Return where bytes go that the tracking server or another MLflow server passes on.

        :param url: absolute.
        """
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*"}
        if origin_of(url) == origin_of(self.base_url):
            headers |= {**self._headers, **self._credentials()}
        else:
            self._api.check_server_url(url)
        return Address(url, headers, explain=refuse_moved, pace=Pace(answer_seconds=ANSWER_SECONDS))

    def presigned(self, url: str, headers: Mapping[str, str] | None = None) -> Address:
        """Return where bytes go that a storage takes or gives."""
        return Address(self._api.check_server_url(url), dict(headers or {}), presigned=True)

    def need(self, method: str, path: str, shape: type[T], doing: str, **more: Any) -> Flow[T]:
        """Make a call that may be repeated, whose answer must be there.

        :param path: below the API's own.
        :raises ModelNotFound: when what it asks for does not exist.
        """
        response = yield from self.answer(method, path, **{"may_repeat": True, **more})
        self.refuse(response, doing)
        return read_json(response, shape, doing)

    def find(self, method: str, path: str, shape: type[T], doing: str, **more: Any) -> Flow[T | None]:
        """Make a call that may be repeated; ``None`` when what it asks for does not exist."""
        response = yield from self.answer(method, path, **{"may_repeat": True, **more})
        if is_missing(response):
            return None
        self.refuse(response, doing)
        return read_json(response, shape, doing)

    def create(self, path: str, shape: type[T], doing: str, body: Mapping[str, Any]) -> Flow[T | None]:
        """Create something that has a name; ``None`` when it exists, be it by our own try whose answer was lost."""
        response = yield from self.answer("POST", path, json=body, may_repeat=True)
        if error_of(response).error_code == "RESOURCE_ALREADY_EXISTS":
            return None
        self.refuse(response, doing)
        return read_json(response, shape, doing)

    def each_page(
        self, method: str, path: str, shape: type[T], doing: str, ask: Mapping[str, Any], take: Callable[[T], None]
    ) -> Flow[None]:
        """Have each page of a list taken; whole lists of records would be a burden to the garbage collector.

        An answer's ``next_page_token`` leads to the next one.
        """
        token: str | None = None
        seen: set[str] = set()
        while True:
            asked = {**ask, **({"page_token": token} if token else {})}
            given = {"json": asked} if method == "POST" else {"params": asked}
            page: Any = yield from self.need(method, path, shape, doing, answer_bytes=LISTING_BYTES, **given)
            take(page)
            token = page.next_page_token
            if not token:
                return
            if token in seen or len(seen) > _MOST_PAGES:
                raise RegistryUnavailable(f"{doing}: the list does not end")
            seen.add(token)

    def answer(self, method: str, path: str, **more: Any) -> Flow[httpx.Response]:
        """Make a call and return whatever the answer is. Parameters as of :meth:`~...http.ApiClient.request`.

        :param path: below the API; or below the server, with a slash before it; or an absolute URL.
        """
        if "://" in path:
            if origin_of(path) != origin_of(self.base_url):
                self._api.check_server_url(path)
        elif not path.startswith("/"):
            path = f"{_API}/{path}"
        return (yield from send(self._api.request(method, path, **more)))

    def put(self, address: Address, content: bytes) -> Flow[httpx.Response]:
        """Send a small artifact."""
        if address.presigned:  # where storage and server are one origin, the client would add the credentials
            headers = {**address.headers, "User-Agent": USER_AGENT}
            return (yield from send(httpx.Request("PUT", address.url, headers=headers, content=content)))
        headers = {**address.headers, "Content-Type": "application/octet-stream"}
        request = self._api.request("PUT", address.url, headers=headers, content=content, seconds=ANSWER_SECONDS)
        return (yield from send(request))

    def reach(self, address: Address) -> Flow[None]:
        """Raise unless a storage answers, whatever it says."""
        yield from send(httpx.Request("HEAD", address.url, headers={**address.headers, "User-Agent": USER_AGENT}))

    def fetch(self, address: Address, *, answer_bytes: int) -> Flow[httpx.Response]:
        """Return a small artifact."""
        if address.presigned:  # as above
            request = httpx.Request("GET", address.url, headers={**address.headers, "User-Agent": USER_AGENT})
            return (yield from send(allow(request, answer_bytes)))
        request = self._api.request("GET", address.url, headers=address.headers, answer_bytes=answer_bytes)
        return (yield from send(request))

    def refuse(self, response: httpx.Response, doing: str) -> None:
        """Raise what a refusal means; return when there is none."""
        if response.is_success:
            return
        error = error_of(response)
        if fault := self._fault(response.status_code, response.text, error, doing):
            raise fault
        raise_for_status(response, doing, not_found=ModelNotFound)

    def _fault(self, status: int, text: str, error: _Error, doing: str) -> ModelSyncError | None:
        if error.error_code == "FEATURE_DISABLED":
            return InvalidInput(f"{doing}: the server has no workspaces; leave it empty", argument="workspace")
        if status == 404 and _NO_WORKSPACE.search(error.message):
            return InvalidInput(f"{doing}: the server has no such workspace", argument="workspace")
        if status in (404, 405) and not (error.error_code or error.detail):
            return InvalidInput(
                f"{doing}: there is no such call at {self.base_url}; it is no {self._title} tracking server, or it "
                "serves this under another path",
                argument="host",
            )
        if status == 403 and _HOST_REFUSED.search(text):
            return InvalidInput(
                f"{doing}: the server does not take requests under this host name; its operator has to name it in "
                "--allowed-hosts",
                argument="host",
            )
        return _permanent(status, text, doing)


def _permanent(status: int, text: str, doing: str) -> ModelSyncError | None:
    if status == 503 and _PROXY_OFF.search(text):
        return NotSupported(
            f"{doing}: the server passes no artifacts on; it runs with --no-serve-artifacts, or --artifacts-only"
        )
    if status == 501:
        return NotSupported(f"{doing}: the server's artifact storage does not offer this")
    return None


def refuse_moved(answer: MovedResponse, doing: str) -> None:
    """Raise what it means when the server refuses to take or give bytes, where the status alone tells another story."""
    text = answer.body.decode("utf-8", "replace")
    if fault := _permanent(answer.status, text, doing):
        raise fault
    if answer.status == 500 and _NO_ARTIFACT.search(text):
        raise ModelNotFound(f"{doing}: the server does not find the artifact in its storage")


def error_of(response: httpx.Response) -> _Error:
    """Return what an answer says is wrong; nothing when it is no JSON."""
    if response.is_success:
        return _Error()
    try:
        return _Error.model_validate_json(response.content)
    except ValueError:
        return _Error()


def is_missing(response: httpx.Response) -> bool:
    """Whether an answer says that a model, a version, an alias, a run or an experiment does not exist."""
    error = error_of(response)
    if response.status_code == 404:
        return bool(error.error_code) and not _NO_WORKSPACE.search(error.message)
    return response.status_code == 400 and _NO_ALIAS.search(error.message) is not None


def is_unknown_route(response: httpx.Response) -> bool:
    """Whether the server does not offer a call at all, which says nothing about models."""
    return response.status_code in (404, 405) and not error_of(response).error_code


def _is_final(response: httpx.Response) -> bool:
    """Whether another try would be answered alike, although the status says that the fault may pass."""
    text = response.text
    if response.status_code == 503:
        return _PROXY_OFF.search(text) is not None
    return response.status_code == 500 and error_of(response).error_code in ("FEATURE_DISABLED",)


def quoted(text: str) -> str:
    """Write a text in the grammar of filters. It knows no escapes, so names with double quotes are refused."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def as_json(value: Any) -> str:
    """Write JSON as short as it goes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

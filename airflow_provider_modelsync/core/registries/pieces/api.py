"""How the API of Pieces OS is called, where it is found, and what its records say.

Facts come from the public OpenAPI document and from the unmodified pieces_os_client 3.2.1 and 5.0.1 on the wire.
Records are kept as they came: the lists of words in them grow with each release.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.exchange import LISTING_BYTES
from airflow_provider_modelsync.core.flow.steps import Exchange, Flow, send, sleep
from airflow_provider_modelsync.core.http.policy import ApiClient, Backoff, raise_for_status, read_json
from airflow_provider_modelsync.core.redact import excerpt
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url

_DEFAULT_HOST = "http://localhost"
_PORTS = (*range(39300, 39334), 1000, 5323)  # the first is the default, the last two are older releases'
_PROBE_SECONDS = 1.0  # on this very machine

_JSON = "application/json, text/plain"  # refusals are plain text
_PLAIN = {"Accept": "text/plain"}
_GONE = 410
BACKOFF = Backoff(attempts=3)


class PiecesSettings(RegistrySettings):
    """A connection to a Pieces OS.

    :param application_id: what this client is called there, if it has been given a name.
    """

    application_id: str | None = None


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value["value"])
    except (KeyError, TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _size(value: Any) -> int | None:
    size = value.get("value") if isinstance(value, dict) else None
    return size if type(size) is int and size >= 0 else None


_Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]


class PiecesModel(BaseModel):
    """What is read of a model's record; ``raw`` is the whole of it."""

    id: str
    version: str
    name: str
    unique: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    created: Annotated[datetime | None, BeforeValidator(_time)] = None
    size_bytes: Annotated[int | None, BeforeValidator(_size)] = Field(None, validation_alias="bytes")
    cloud: _Flag = False
    custom: _Flag = False
    downloaded: _Flag = False
    downloading: _Flag = False
    loaded: _Flag = False
    raw: dict[str, Any] = Field(repr=False)

    @model_validator(mode="before")
    @classmethod
    def _keep(cls, value: Any) -> Any:
        return {**value, "raw": value} if isinstance(value, dict) else value

    @property
    def label(self) -> str:
        """What it is called: quantisations of one model share their ``name``."""
        return self.unique or self.id


class _Models(BaseModel):
    iterable: list[PiecesModel]


class Calls:
    """Makes the calls of one connection.

    :param settings: the connection.
    """

    def __init__(self, settings: PiecesSettings) -> None:
        self._settings = settings
        name = settings.application_id
        self.headers = {"X-Application-ID": name} if name else {}
        self._places = [self._client(url) for url in _places(settings)]
        self._home = self._places[0] if len(self._places) == 1 else None

    @property
    def base_url(self) -> str:
        """Where it is, or will be looked for first."""
        return (self._home or self._places[0]).base_url

    def socket_url(self, model: str) -> str:
        """Return the address of a model's progress socket."""
        return f"ws{self.base_url.removeprefix('http')}{_path(model)}/download/progress"

    def plain(self, path: str, doing: str) -> Flow[str]:
        """Read a text."""
        response = yield from self._send("GET", path, headers=_PLAIN)
        return raise_for_status(response, doing).text.strip()

    def models(self) -> Flow[list[PiecesModel]]:
        """Return all models, as the host lists them."""
        doing = "listing the models"
        response = yield from self._send("GET", "/models", answer_bytes=LISTING_BYTES)
        return read_json(raise_for_status(response, doing), _Models, doing).iterable

    def find(self, model: str, *, seconds: float | None = None) -> Flow[PiecesModel | None]:
        """Return a model by its id, or ``None`` when there is none."""
        doing = f"reading {model}"
        response = yield from self._send("GET", _path(model), seconds=seconds)
        if response.status_code == _GONE:
            return None
        return read_json(raise_for_status(response, doing), PiecesModel, doing)

    def need(self, model: str, *, seconds: float | None = None) -> Flow[PiecesModel]:
        """Return a model by its id.

        :raises ModelNotFound: when there is none any more.
        """
        found = yield from self.find(model, seconds=seconds)
        if found is None:
            raise ModelNotFound(f"the model {model} is not on {self.base_url} any more")
        return found

    def act(
        self,
        model: PiecesModel,
        verb: str,
        reached: Callable[[PiecesModel], bool],
        doing: str,
        *,
        seconds: float | None = None,
    ) -> Flow[PiecesModel]:
        """Ask for a change of a model's state; return the model as it is then.

        The same status stands for many things, so that a refusal and a lost answer are judged by the model itself.

        :param reached: whether a model is as it was asked to be.
        """
        for failures in count(1):
            try:
                return (yield from self.post(f"{_path(model.id)}/{verb}", doing, seconds=seconds))
            except RegistryUnavailable as error:
                now = yield from self.need(model.id, seconds=seconds)
                if reached(now):
                    return now
                if failures == BACKOFF.attempts:
                    raise error from None
            yield from sleep(BACKOFF.delay(failures))
        raise AssertionError("unreachable")

    def post(
        self, path: str, doing: str, body: Mapping[str, Any] | None = None, *, seconds: float | None = None
    ) -> Flow[PiecesModel]:
        """Ask for something that is answered by a model."""
        response = yield from self._send("POST", path, json=body, seconds=seconds)
        if response.status_code == _GONE:
            raise ModelNotFound(f"{doing}: it is not on {self.base_url} any more")
        return read_json(raise_for_status(response, doing), PiecesModel, doing)

    def delete(self, model: PiecesModel) -> Flow[None]:
        """Delete a custom model; one that is gone is no error."""
        doing = f"deleting {model.label}"
        try:
            raise_for_status((yield from self._send("POST", f"/models/{quote(model.id, safe='')}/delete")), doing)
        except RegistryUnavailable:
            if (yield from self.find(model.id)) is not None:
                raise

    def reach(self) -> Flow[None]:
        """Find out at which address Pieces OS answers, once.

        :raises RegistryUnavailable: when it answers at none.
        """
        for place in () if self._home else self._places:
            if (yield from _is_healthy(place)):
                self._home = place
                return
        if self._home is None:
            ports = f"{_PORTS[0]} to {_PORTS[-3]}, {_PORTS[-2]} or {_PORTS[-1]}"
            host = urlsplit(self.base_url).hostname
            raise RegistryUnavailable(f"no Pieces OS answers on {host} at the ports {ports}; is it running?")

    def _send(self, method: str, path: str, **more: Any) -> Flow[httpx.Response]:
        yield from self.reach()
        assert self._home is not None
        return (yield from send(self._home.request(method, path, **more)))

    def _client(self, url: str) -> ApiClient:
        return ApiClient(self._settings, url, headers={"Accept": _JSON}, credentials=lambda: self.headers)


def is_ok(text: str) -> bool:
    """Whether an answer to a health check says that all is well."""
    return text.strip().lower().startswith("ok")


def _places(settings: RegistrySettings) -> list[str]:
    """Return the base URLs to look at."""
    host = settings.host or _DEFAULT_HOST
    host = host if "://" in host else f"http://{host}"  # it speaks no TLS by itself
    try:
        url = urlsplit(host)
        named = settings.port or url.port
    except ValueError:
        raise InvalidInput("the host is no URL", argument="host", connection=settings.conn_id) from None
    ports = (named,) if named else _PORTS if _is_this_machine(url.hostname or "") else _PORTS[:1]
    return [base_url(host, port) for port in ports]


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_healthy(place: ApiClient) -> Flow[bool]:
    try:
        # Not under the request policy: most of these ports are closed.
        response: httpx.Response = yield Exchange(
            place.request("GET", "/.well-known/health", headers=_PLAIN), _PROBE_SECONDS
        )
    except ModelSyncError:
        raise
    except Exception:
        return False
    return response.is_success and is_ok(response.text)


def _path(model: str) -> str:
    return f"/model/{quote(model, safe='')}"


def not_ok(text: str) -> RegistryUnavailable:
    """Return the error for a health check that does not say that all is well."""
    return RegistryUnavailable(f"Pieces OS says about its health: {excerpt(text) or 'nothing'}")

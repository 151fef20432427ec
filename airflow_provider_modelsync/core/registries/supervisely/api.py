"""How Supervisely's platform is called, and what a connection to it says.

Facts come from supervisely 6.74.51 on the wire and from its source (``api/api.py``, ``api/task_api.py``). Nearly every
call is a POST with JSON. The platform itself is closed: its answers are known only through what that client reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

import httpx
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.policy import MAX_OBJECTS, ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url

T = TypeVar("T")

PROXY_SECONDS = 60  # that the platform waits for an app's answer
_MARGIN_SECONDS = 15.0  # for the way to the platform and back
_MAX_PAGES = 1000  # of a list
_TOKEN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def null_as(default: Any) -> BeforeValidator:
    """Return what reads null as a default."""
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, null_as("")]
Object = Annotated[dict[str, Any], null_as({})]


class Arguments(BaseModel):
    """What a caller may say in a dictionary: these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    argument: ClassVar[str]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Check a dictionary.

        :raises InvalidInput: naming the key at fault, never its value.
        """
        try:
            return cls.model_validate(restructured(cls, values))
        except ValidationError as error:
            raise InvalidInput(_fault_in(error), argument=cls.argument) from None


class SuperviselySettings(RegistrySettings):
    """A Supervisely connection.

    :param team_id: whose Team Files; the workspace's team when left out.
    :param workspace_id: where deployments run.
    :param task_id: the serving task that is meant where no deployment is named.
    :param session_token: the same by its token, part of the app's address and so a secret.
    :param deployment_url: the same by an address that holds no secret.
    :param artifacts_root: the directory of Team Files that holds the experiments.
    """

    team_id: int | None = Field(default=None, gt=0)
    workspace_id: int | None = Field(default=None, gt=0)
    task_id: int | None = Field(default=None, gt=0)
    session_token: SecretStr | None = None
    deployment_url: str | None = None
    artifacts_root: str = "/experiments"

    @field_validator("deployment_url")
    @classmethod
    def _holds_no_secret(cls, value: str | None) -> str | None:
        if value and ("/net/" in value or "?" in value or "@" in value):
            raise ValueError("holds a secret; put the part after /net/ into session_token")
        return value

    @field_validator("artifacts_root")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        if not value.startswith("/") or not value.strip("/") or ".." in value.split("/"):
            raise ValueError("is no absolute directory such as /experiments")
        return value.rstrip("/")

    @field_validator("session_token")
    @classmethod
    def _is_one_segment(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not _TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError("holds other characters than letters, digits, '-', '_' and '.'")
        return value

    @property
    def server(self) -> str | None:
        """The platform's base URL, if the connection has one."""
        return base_url(self.host, self.port) if self.host else None


class _Page(BaseModel):
    entities: Annotated[list[dict[str, Any]], null_as([])] = []
    pages: Annotated[int, null_as(1)] = Field(default=1, alias="pagesCount")


class _Workspace(BaseModel):
    team_id: int = Field(alias="teamId")


class Platform:
    """The platform's API, as one connection sees it.

    :param settings: the connection; without a host or a token every call is refused, naming the field.
    :param title: what the system is called in messages.
    """

    def __init__(self, settings: SuperviselySettings, title: str) -> None:
        self._settings = settings
        self._title = title
        self._hidden: set[str] = set()
        self.server = settings.server
        self._client = (
            ApiClient(settings, f"{self.server}/public/api/v3", credentials=self.key) if self.server else None
        )

    def key(self) -> dict[str, str]:
        """Return the header that proves who we are; none without a token."""
        token = self._settings.password
        return {"x-api-key": token.get_secret_value()} if token else {}

    def hide(self, secret: str) -> None:
        """Have no message quote a secret that was learnt from the platform."""
        self._hidden.add(secret)

    @property
    def token(self) -> str | None:
        """The API token, for apps that fetch images themselves."""
        return self._settings.password.get_secret_value() if self._settings.password else None

    @property
    def api(self) -> ApiClient:
        """What builds requests to the platform.

        :raises InvalidInput: when the connection leads to a deployment only.
        """
        if self._client is None or self._settings.password is None:
            raise InvalidInput(
                "the connection leads to one deployment only; this needs the server's address and an API token",
                argument="password" if self._client else "host",
            )
        return self._client

    def ask(
        self,
        method: str,
        body: Mapping[str, Any],
        shape: type[T],
        doing: str,
        *,
        not_found: type[ModelSyncError] = ModelNotFound,
        **more: Any,
    ) -> Flow[T]:
        """Make a call that may be repeated, unless ``more`` says otherwise, and return its answer."""
        response = yield from self.answer(method, body, **more)
        raise_for_status(response, doing, not_found=not_found)
        return read_json(response, shape, doing)

    def answer(self, method: str, body: Mapping[str, Any], **more: Any) -> Flow[httpx.Response]:
        """Make a call and return whatever the answer is."""
        more = {"may_repeat": True, "secrets": tuple(self._hidden), **more}
        return (yield from send(self.api.request("POST", method, json=body, **more)))

    def entities(self, method: str, body: Mapping[str, Any], doing: str) -> Flow[list[dict[str, Any]]]:
        """Return all pages of a list."""
        body = {**body, "sort": "id", "sort_order": "asc"}
        page = yield from self.ask(method, body, _Page, doing)
        found = list(page.entities)
        for number in range(2, page.pages + 1):
            if number > _MAX_PAGES or len(found) > MAX_OBJECTS:
                raise RegistryUnavailable(f"{doing}: the list does not end after {len(found)}")
            found += (yield from self.ask(method, {**body, "page": number}, _Page, doing)).entities
        return found

    def app_call(self, task_id: int, command: str, state: Mapping[str, Any], **more: Any) -> Flow[httpx.Response]:
        """Have the platform call an app, and return what the app answers. The platform waits 60 s for it."""
        timeout = more.pop("timeout", PROXY_SECONDS)
        body = {
            "taskId": task_id,
            "command": command,
            "context": {"outside_request": True},
            "state": state,
            "skipResponse": False,
            "timeout": timeout,
        }
        return (yield from self.answer("tasks.request.direct", body, seconds=timeout + _MARGIN_SECONDS, **more))

    def team_id(self) -> Flow[int]:
        """Return the team whose files are meant."""
        if self._settings.team_id is not None:
            return self._settings.team_id
        return (yield from self.team_of(self.workspace_id))

    def team_of(self, workspace_id: int) -> Flow[int]:
        """Return the team that a workspace belongs to."""
        doing = f"reading the workspace {workspace_id}"
        found = yield from self.ask("workspaces.info", {"id": workspace_id}, _Workspace, doing, not_found=InvalidInput)
        return found.team_id

    @property
    def workspace_id(self) -> int:
        """The connection's workspace."""
        workspace = self._settings.workspace_id if self.api else None
        if workspace is None:
            raise InvalidInput("the connection names no workspace", argument="workspace_id")
        return workspace


def checked(value: Any, shape: type[T], doing: str) -> T:
    """Read a value that a server gave into a shape.

    :raises RegistryUnavailable: naming what is missing or wrong.
    """
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        raise RegistryUnavailable(f"{doing}: the answer is not as expected: {_fault_in(error)}") from None


def _fault_in(error: ValidationError) -> str:
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def fields_of(response: httpx.Response, doing: str) -> dict[str, Any]:
    """Return an answer that is a JSON object."""
    found: Any = read_json(response, object, doing)
    if not isinstance(found, dict):
        raise RegistryUnavailable(f"{doing}: the answer is no JSON object")
    return found

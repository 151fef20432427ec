"""How BentoCloud's API is called and what its answers mean, whatever they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict

from airflow_provider_modelsync.core.errors import ModelNotFound, Unauthorized
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.policy import ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.models import Time

_T = TypeVar("_T")

# Yatai parses it, and treats a client that does not send it as one before 1.0.
CLIENT_VERSION = "1.4.40"
BUILD_AT = "%Y-%m-%d %H:%M:%S.%f"  # the one layout of times that Yatai reads


def null_as(default: Any) -> BeforeValidator:
    """Return what reads null as a default: any field may be null, whatever the OpenAPI document says."""
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, null_as("")]
Object = Annotated[dict[str, Any], null_as({})]


class Label(BaseModel):
    """A label as it travels."""

    key: str
    value: Text = ""


def pairs(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Return labels as they travel."""
    return [{"key": key, "value": value} for key, value in labels.items()]


class User(BaseModel):
    """Somebody."""

    model_config = ConfigDict(extra="allow")

    name: Text = ""
    email: Text = ""


class Repository(BaseModel):
    """What versions of models and bentos belong to."""

    name: str
    description: Text = ""
    labels: Annotated[list[Label], null_as([])] = []
    created_at: Time = None
    updated_at: Time = None
    creator: User | None = None

    @property
    def plain_labels(self) -> dict[str, str]:
        """Its labels as they are given and shown."""
        return {label.key: label.value for label in self.labels}

    def changes(self, description: str | None, labels: Mapping[str, str | None] | None) -> dict[str, Any]:
        """Return what a request says that gives it another description or labels; empty when nothing changes.

        :param description: ``None`` keeps the one that it has.
        :param labels: merged into those that it has; a ``None`` value removes one.
        """
        changes: dict[str, Any] = {}
        if description not in (None, self.description):
            changes["description"] = description
        merged = {key: value for key, value in {**self.plain_labels, **(labels or {})}.items() if value is not None}
        if merged != self.plain_labels:
            changes["labels"] = pairs(merged)  # the list replaces all labels there are
        return changes


class Calls:
    """Makes the calls of one connection.

    :param api: builds the requests.
    :param title: what the system is called in messages.
    """

    def __init__(self, api: ApiClient, title: str) -> None:
        self._api = api
        self._title = title

    def need(self, method: str, path: str, shape: type[_T], doing: str, **more: Any) -> Flow[_T]:
        """Make a call whose answer must be there."""
        found = yield from self.find(method, path, shape, doing, **more)
        if found is None:
            raise ModelNotFound(f"{doing}: {self._title} does not know it")
        return found

    def find(self, method: str, path: str, shape: type[_T], doing: str, **more: Any) -> Flow[_T | None]:
        """Make a call that may be repeated; ``None`` when what it asks for does not exist."""
        response = yield from self.answer(method, path, may_repeat=True, **more)
        if is_missing(response):
            return None
        refuse(response, doing)
        return read_json(response, shape, doing)

    def create(self, path: str, shape: type[_T], doing: str, body: Mapping[str, Any]) -> Flow[_T | None]:
        """Create something; ``None`` when it exists, be it by our own try whose answer was lost."""
        response = yield from self.answer("POST", path, may_repeat=True, json=body)
        if is_duplicate(response):
            return None
        refuse(response, doing)
        return read_json(response, shape, doing)

    def answer(self, method: str, path: str, *, may_repeat: bool = False, **more: Any) -> Flow[httpx.Response]:
        """Make a call and return whatever the answer is. Parameters as of :meth:`~...http.ApiClient.request`.

        :param may_repeat: whether it may be carried out twice; not even a PUT is, unless it is said.
        """
        return (yield from send(self._api.request(method, path, may_repeat=may_repeat, **more)))


def is_unknown_route(response: httpx.Response) -> bool:
    """Whether the server does not offer a call at all, which says nothing about records."""
    return response.status_code in (404, 405) and "not found this router" in response.text


def is_missing(response: httpx.Response) -> bool:
    """Whether the answer says that a record does not exist; older servers say so with a 400."""
    if response.status_code == 404:
        return not is_unknown_route(response)
    return response.status_code == 400 and "record not found" in response.text


def is_duplicate(response: httpx.Response) -> bool:
    """Whether the answer says that a record exists already; Yatai knows no 409."""
    return response.status_code == 409 or (response.status_code == 400 and "duplicate" in response.text.lower())


def refuse(response: httpx.Response, doing: str) -> None:
    """Raise what a refusal means."""
    if response.status_code == 400 and "no permission" in response.text:
        raise Unauthorized(f"{doing}: the token does not allow this")
    raise_for_status(response, doing)

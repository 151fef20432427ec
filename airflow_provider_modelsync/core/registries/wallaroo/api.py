"""How Wallaroo's API is called and what its answers mean, whatever they are about.

Facts come from the published Model Management guide, the vendor's public tutorials, and the wallaroo 2026.1.3 client,
read and seen on the wire. The API is early access: unknown fields are ignored, and nearly all may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError
from airflow_provider_modelsync.core.flow.steps import Flow, send
from airflow_provider_modelsync.core.http.policy import ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.models import Time, VersionStatus
from airflow_provider_modelsync.core.registries.wallaroo.auth import Login

_T = TypeVar("_T")

# All that the client knows (its model_status.py). A version may go from native to container.
_STATUSES = {
    "uploading": VersionStatus.UPLOADING,
    "pending_load_native": VersionStatus.CONVERTING,
    "attempting_load_native": VersionStatus.CONVERTING,
    "pending_load_container": VersionStatus.CONVERTING,
    "attempting_load_container": VersionStatus.CONVERTING,
    "ready": VersionStatus.READY,
    "error": VersionStatus.FAILED,
}


def null_as(default: Any) -> BeforeValidator:
    """Return what reads null as a default."""
    return BeforeValidator(lambda value: default if value is None else value)


Text = Annotated[str, null_as("")]


class Record(BaseModel):
    """What the server tells of something; fields that are not named here are kept for those who need them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Workspace(Record):
    """A workspace; its name is unique in the instance."""

    id: int
    name: str
    archived: Annotated[bool, null_as(False)] = False


class FileInfo(Record):
    """What was uploaded. ``version`` is the UUID that pipelines and deletions name, ``sha`` the file's SHA-256."""

    version: Text = ""
    sha: Text = ""
    file_name: Text = ""
    size: int | None = None


class Conversion(Record):
    """What a version was uploaded as."""

    framework: Text = ""
    arch: str | None = None
    accel: str | dict[str, Any] | None = None


class VersionRecord(Record):
    """A model version. Its ``id`` is a number from another sequence than the model's: the two are never mixed."""

    id: int
    name: Text = ""
    workspace_id: int | None = None
    status: Text = ""
    image_path: str | None = None
    file_info: Annotated[FileInfo, null_as({})] = FileInfo()
    conversion: Annotated[Conversion, null_as({})] = Conversion()
    created_at: Time = None
    error_summary: str | None = None

    @property
    def uuid(self) -> str:
        """What the rest of the world calls this version."""
        return self.file_info.version

    @property
    def state(self) -> VersionStatus:
        """Where the version stands."""
        return _STATUSES.get(self.status, VersionStatus.UNKNOWN)

    @property
    def digest(self) -> str | None:
        """The digest of a model of this one file; of an image nothing is known."""
        file = self.file_info
        if self.image_path or not file.sha or not file.file_name:
            return None
        return digest_of([FileEntry(file.file_name, file.size or 0, file.sha.lower())])


class VersionEntry(Record):
    """A version with its newest configuration."""

    model_version: VersionRecord
    config: dict[str, Any] | None = None


class ModelRow(Record):
    """A model, which is a name in a workspace; its ``id`` is the model's number."""

    id: int
    name: str
    workspace_id: int | None = None


class Workspaces(BaseModel):
    """The workspaces that a user sees."""

    workspaces: Annotated[list[Workspace], null_as([])] = []


class NewWorkspace(BaseModel):
    """What the creation of a workspace is answered with."""

    workspace_id: int


class Item(BaseModel):
    """A model in a listing; instances before 2025 listed flat rows without versions."""

    model: ModelRow | None = None
    model_versions: list[VersionEntry] | None = None
    id: int = 0
    name: str = ""

    @property
    def row(self) -> ModelRow:
        """The model, whichever way it is listed."""
        return self.model or ModelRow(id=self.id, name=self.name)


class Listing(BaseModel):
    """What listings of models are answered with."""

    models: Annotated[list[Item], null_as([])] = []


class Found(BaseModel):
    """What a version is read from."""

    model_version: VersionEntry


class Row(BaseModel):
    """A version in the older listing of versions; ``id`` is its number, ``models_pk_id`` its model's."""

    id: int
    models_pk_id: int


class _Number(BaseModel):
    id: int


class _Returned(BaseModel):
    models: list[_Number]


class _Inserted(BaseModel):
    returning: list[_Returned]


class Uploaded(BaseModel):
    """What an upload is answered with: the version's number, in a deep nest."""

    insert_models: _Inserted

    @property
    def number(self) -> int | None:
        """The version's number, if it is told."""
        return next((model.id for returned in self.insert_models.returning for model in returned.models), None)


class Logs(BaseModel):
    """Lines of what a conversion has logged."""

    logs: Annotated[list[str], null_as([])] = []


class Calls:
    """Makes the calls of one connection. Every answer is JSON, every request but a few a POST.

    :param api: builds the requests.
    :param login: gets the token that they carry.
    :param title: what the system is called in messages.
    """

    def __init__(self, api: ApiClient, login: Login, title: str) -> None:
        self._api = api
        self._login = login
        self._title = title

    def read(self, path: str, body: Mapping[str, Any], shape: type[_T], doing: str, **more: Any) -> Flow[_T]:
        """Ask for something that must be there; may be repeated."""
        found = yield from self.find(path, body, shape, doing, **more)
        if found is None:
            raise ModelNotFound(f"{doing}: {self._title} does not know it")
        return found

    def find(self, path: str, body: Mapping[str, Any], shape: type[_T], doing: str, **more: Any) -> Flow[_T | None]:
        """Ask for something; ``None`` when it, or the route, does not exist. May be repeated."""
        response = yield from self.answer(path, body, may_repeat=True, **more)
        if response.status_code == 404:
            return None
        raise_for_status(response, doing)
        return read_json(response, shape, doing)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        shape: type[_T],
        doing: str,
        *,
        not_found: type[ModelSyncError] = ModelNotFound,
    ) -> Flow[_T]:
        """Change something; not repeated unless the server certainly did not see it.

        :param not_found: what a 404 means here.
        """
        response = yield from self.answer(path, body)
        raise_for_status(response, doing, not_found=not_found)
        return read_json(response, shape, doing)

    def answer(
        self, path: str, body: Mapping[str, Any] | None, *, method: str = "POST", may_repeat: bool = False, **more: Any
    ) -> Flow[httpx.Response]:
        """Make a call and return whatever the answer is. Parameters as of :meth:`~...http.ApiClient.request`."""
        yield from self._login.ensure()
        return (yield from send(self._api.request(method, path, json=body, may_repeat=may_repeat, **more)))


def find_workspace(rows: list[Workspace], wanted: str | None, login: str | None) -> Workspace | None:
    """Return the workspace that a connection means: by name, by id, or, when it names none, the user's own.

    :param rows: those that the user sees.
    :param wanted: its name or id.
    :param login: the user, whose default workspace is called after them.
    :raises InvalidInput: when none is named and there is a choice.
    """
    rows = [row for row in rows if not row.archived]
    if wanted is not None:
        keys = (lambda row: row.name, lambda row: str(row.id))
        return next((row for key in keys for row in rows if key(row) == wanted), None)
    mine = [row for row in rows if row.name == f"{login} - Default Workspace"] or rows
    if len(mine) != 1:
        names = ", ".join(sorted(row.name for row in rows)[:10])
        raise InvalidInput(f"name a workspace; these can be seen: {names or 'none'}", argument="workspace")
    return mine[0]

"""What Supervisely sees: the recorded client's requests, and no secret where it does not belong."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from airflow_provider_modelsync.core.errors import ModelSyncError
from airflow_provider_modelsync.core.redact import redact
from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely
from airflow_provider_modelsync.core.registries.supervisely.session import Load, Session
from tests.core.registries.supervisely.serving import (
    DIRECT,
    DOWNLOAD,
    LIST,
    START,
    UPLOAD,
    Connection,
    direct,
    platform,
)
from tests.standins.http_server import LoseAnswer, Request, Respond, Truncate
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.support.data import DATA
from tests.support.images import png

pytestmark = pytest.mark.usefixtures("no_waiting")

RECORDING = json.loads((DATA / "supervisely-exchanges.json").read_text())["scenarios"]
SESSION = "sess-12345-token"
# The recorded client asks for more than it needs.
NEEDLESS = {"instance.version", "get_model_meta", "get_inference_result"}
LEAKED = {"recursive", "show_progress", "classes"}  # arguments that it sends as settings, though they are none
FREE = {"taskName", "description", "inference_request_uuid"}  # ours to choose, or the server's

Call = tuple[str, str, Any]


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp() as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        yield server


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    path.write_bytes(png(80, 60, (20, 10, 59, 29)))
    return path


# ---- requests as the vendor's client makes them -----------------------------------------------------------------


def _plain(value: Any, ids: dict[Any, Any]) -> Any:
    """Bring a body into a form that two clients share."""
    if isinstance(value, dict):
        value = {**value, "settings": _real(value["settings"])} if "settings" in value else value
        return {key: "…" if key in FREE else _plain(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, ids) for item in value]
    return ids.get(value, value) if isinstance(value, (str, int)) else value


def _real(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in LEAKED or value not in (None, False)}


def _call(path: str, body: Any, key: str | None, ids: dict[Any, Any]) -> Call:
    url = urlsplit(path)
    query = tuple(sorted(parse_qsl(url.query)))
    shown = url.path.replace(str(ids.get("session", SESSION)), SESSION)
    text = json.dumps([query, _plain(body, ids)], sort_keys=True)
    return shown, text, "with the key" if key else "without a key"


def recorded(scenario: str, step: str | None = None) -> set[Call]:
    found = set()
    for entry in RECORDING[scenario]:
        for exchange in entry["exchanges"] if step in (None, entry["step"]) else ():
            body = exchange.get("request_body") or {}
            content = body.get("json", "a form" if "multipart" in body else "bytes" if "length" in body else None)
            found.add(_call(exchange["path"], content, exchange.get("request_headers", {}).get("x-api-key"), {}))
    return found


def made(requests: list[Request], ids: dict[Any, Any]) -> set[Call]:
    found = set()
    for request in requests:
        kind = request.headers.get("content-type", "").partition(";")[0]
        body = {"multipart/form-data": "a form", "application/octet-stream": "bytes"}.get(kind, request.body)
        query = "&".join(f"{name}={value}" for name, value in request.query.items())
        found.add(_call(f"{request.path}?{query}", body, request.headers.get("x-api-key"), ids))
    return found


ASKS: dict[str, Callable[[Session], Any]] = {
    "get_info": Session.get_info,
    "get_model_meta": Session.get_model_meta,
    "get_settings": Session.get_settings,
    "get_tracking_settings": Session.get_tracking_settings,
    "list_pretrained_models": Session.list_pretrained_models,
    "list_pretrained_model_infos": Session.list_pretrained_model_infos,
    "status": Session.status,
    "is_deployed": Session.is_deployed,
    "freeze_model": Session.freeze_model,
}


@pytest.mark.parametrize("step", [*ASKS, "load(blob-small)", "predict(path)"])
def test_an_app_is_asked_as_the_vendors_client_asks(app: SuperviselyApp, image: Path, step: str) -> None:
    own = direct(app)
    if step == "predict(path)":
        own.predict(image, conf=0.1)
    elif step in ASKS:
        own.ask(ASKS[step])
    else:
        own.ask(lambda session: session.load(Load.pretrained("blob-small", device="cpu")))
    ours = made(app.requests, {})
    needed = {call for call in recorded("url_mode", step) if call[0].rpartition("/")[2] not in NEEDLESS}
    assert needed
    assert needed <= ours <= recorded("url_mode")


@pytest.mark.parametrize("step", [*ASKS, "load(pretrained)", "predict(path)", "shutdown"])
def test_a_task_is_asked_as_the_vendors_client_asks(server: SuperviselyStandIn, image: Path, step: str) -> None:
    task = server.seed_task(session_token="my-own-session")
    own = platform(server, task_id=task.id)
    if step == "predict(path)":
        own.predict(image, conf=0.1)
    elif step in ASKS:
        own.ask(ASKS[step])
    elif step == "shutdown":
        own.ask(Session.shutdown)
    else:
        own.ask(lambda session: session.load(Load.pretrained("blob-small", device="cpu")))
    ids = {task.id: 12345, "session": task.session_token, server.token: "<token>"}
    ours = {(path, body) for path, body, _ in made(server.requests, ids)}
    theirs = {(path, body) for path, body, _ in recorded("task_mode")}
    needed = {(path, body) for path, body, _ in recorded("task_mode", step) if path.rpartition("/")[2] not in NEEDLESS}
    assert needed
    assert needed <= ours <= theirs
    # The key goes wherever the recorded client sends it.
    keyed = {path for path, _, key in recorded("task_mode", step) if key == "with the key"}
    assert keyed - {path for path, _, key in made(server.requests, ids) if key == "with the key"} <= {
        path for path in keyed if path.rpartition("/")[2] in NEEDLESS
    }


def test_files_are_listed_sent_and_fetched_as_the_vendors_client_does(
    server: SuperviselyStandIn, source: Path, tmp_path: Path
) -> None:
    cv = platform(server)
    cv.push(source, "1_x:265_TinyBlob")
    cv.pull("1_x:265_TinyBlob", tmp_path / "target")
    shapes = {(request.path, frozenset(request.query), _names(request.body)) for request in server.requests}
    theirs = set()
    for step in ("file.list", "file.upload_async", "file.download", "file.remove"):
        for path, text, _ in recorded("task_mode", step):
            query, body = json.loads(text)
            theirs.add((path, frozenset(name for name, _ in query), _names(body)))
    assert shapes == theirs


def _names(body: Any) -> frozenset[str]:
    return frozenset(body) if isinstance(body, dict) else frozenset()


def test_a_deployment_is_made_as_the_vendors_client_makes_it(server: SuperviselyStandIn) -> None:
    platform(server, team_id=None).deploy("blobs", "TinyBlob:blob-tiny", pretrained=True, device="cuda:0")
    ids = {task.session_token: SESSION for task in server.tasks.values()} | {"cuda:0": "cpu"}
    ours = made(server.requests, ids)
    for method in ("workspaces.info", "agents.available", "ecosystem.list", "tasks.run.app"):
        theirs = {call for call in recorded("task_mode", "nn.deploy(pretrained)") if call[0].endswith(method)}
        assert theirs
        assert theirs <= ours
    commands = [(request.body["command"], request.body["timeout"]) for request in server.find("POST", DIRECT)]
    assert ("is_running", 1) in commands
    assert ("deploy_from_api", 60) in commands


# ---- secrets ----------------------------------------------------------------------------------------------------


def _failures(own: Connection, image: Path, source: Path) -> Iterator[BaseException]:
    """Everything that can be asked for, as it fails."""
    works: list[Callable[[], Any]] = [
        lambda: own.ask(Session.get_info),
        lambda: own.ask(Session.list_pretrained_models),
        lambda: own.ask(Session.shutdown),
        lambda: own.ask(lambda session: session.load(Load.pretrained("blob-tiny"), seconds=0.1)),
        lambda: own.predict(image),
        lambda: own.run(Supervisely.test),
        lambda: own.push(source, "p:v"),
        lambda: own.deployment(""),
    ]
    for work in works:
        try:
            work()
        except ModelSyncError as error:
            yield error


@pytest.mark.parametrize(
    "action",
    [
        Respond(500, b"no"),
        Respond(403, b"refused /net/TOKEN/x for KEY"),
        Respond(307, headers={"Location": "http://169.254.169.254/latest"}),
        LoseAnswer(),
        Truncate(1),
    ],
)
@pytest.mark.parametrize("mode", ["task", "token"])
@pytest.mark.row("A8")
def test_no_secret_is_in_errors_logs_or_reprs(
    server: SuperviselyStandIn, image: Path, source: Path, caplog: pytest.LogCaptureFixture, action: Any, mode: str
) -> None:
    task = server.seed_task()
    if isinstance(action, Respond) and isinstance(action.body, bytes):
        body = action.body.replace(b"TOKEN", task.session_token.encode()).replace(b"KEY", server.token.encode())
        action = Respond(action.status, body, action.headers)
    fields = {"task_id": task.id} if mode == "task" else {"session_token": task.session_token}
    own = platform(server, **fields)
    session = own.run(lambda registry: registry.session(None))
    # The task itself is found; all else fails.
    server.fault("*", r"/net/|direct$|file-storage|users\.me|tasks\.stop", action, times=None)
    with caplog.at_level(logging.DEBUG):
        errors = list(_failures(own, image, source))
    assert len(errors) >= 6
    shown = [
        *("".join(traceback.format_exception(error)) for error in errors),
        *map(repr, errors),
        caplog.text,
        repr(own.registry),
        repr(own.registry.settings),
        repr(session),
        repr(session.settings),
    ]
    for text in shown:
        assert task.session_token not in text
        assert server.token not in text


def test_the_token_in_an_apps_address_is_masked_wherever_it_is_shown() -> None:
    assert redact("POST https://x.org/net/s3cr3t/get_status failed") == "POST https://x.org/net/***/get_status failed"
    assert redact("http://h:80/net/abc") == "http://h:80/net/***"
    assert redact('"POST /net/s3cr3t/x HTTP/1.1"') == '"POST /net/***/x HTTP/1.1"'


def test_an_address_of_ones_own_never_sees_the_key(
    app: SuperviselyApp, server: SuperviselyStandIn, image: Path
) -> None:
    own = Connection({"host": server.url, "password": server.token, "deployment_url": app.url})
    own.predict(image)
    own.ask(Session.get_info)
    assert app.count("POST", START) == 1
    for request in app.requests:
        assert server.token not in json.dumps([request.headers, request.body])


def test_the_key_in_a_body_is_not_redirected_to_others(
    server: SuperviselyStandIn, app: SuperviselyApp, image: Path
) -> None:
    own = platform(server, task_id=server.seed_task().id)
    server.fault("POST", "get_inference_progress", Respond(307, headers={"Location": f"{app.url}/is_running"}))
    with pytest.raises(ModelSyncError, match="not followed"):
        own.predict(image)
    assert app.count("POST", "is_running") == 0


def test_paths_of_all_kinds_arrive_as_they_are(server: SuperviselyStandIn, source: Path, tmp_path: Path) -> None:
    name = "ä & b?c#d%2f+e.bin"
    (source / name).write_bytes(b"odd")
    cv = platform(server)
    cv.push(source, "p q?:v+1")
    assert server.content(f"/experiments/p q?/v+1/{name}") == b"odd"
    cv.pull("p q?:v+1", tmp_path / "target")
    assert (tmp_path / "target" / name).read_bytes() == b"odd"
    assert server.count("POST", UPLOAD) == 5
    assert server.count("POST", LIST)
    assert server.count("POST", DOWNLOAD)

"""The Pieces OS stand-in answers what was recorded, and each thing that its progress socket can do, it does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import groupby
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.standins.http_server import Delay, Json, LoseAnswer, Reset, Respond, Rewrite
from tests.standins.pieces import JUNK, SHAPES, Download, PiecesStandIn, Progress, model
from tests.support.data import DATA

RECORDING = json.loads((DATA / "pieces-exchanges.json").read_text())
PHI = model("Phi 2")
ID = PHI["id"]
MODEL = f"/model/{ID}"
CLOUD = model("Claude", cloud=True)
CUSTOM = model("My tuned model", custom=True, foundation="PHI_99", house="mine")


@pytest.fixture
def server() -> Iterator[PiecesStandIn]:
    with PiecesStandIn([PHI, CLOUD, CUSTOM]) as server:
        yield server


@pytest.fixture
def api(server: PiecesStandIn) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as api:
        yield api


def listen(server: PiecesStandIn, model: str = ID) -> ClientConnection:
    url = server.url.replace("http", "ws") + f"/model/{model}/download/progress"
    return connect(url, proxy=None, ping_interval=None, close_timeout=0.1, max_queue=None)


def messages(server: PiecesStandIn, listener: ClientConnection, *, first: int | None = None) -> list[Json]:
    """What was said since the last time, once the downloads are over or hang.

    :param first: so many come for certain, from a socket that answers no ping.
    """
    server.until(lambda: not server.stepping)
    said = [json.loads(listener.recv(timeout=60)) for _ in range(first or 0)]
    with suppress(ConnectionClosed):
        # Its answer comes after all messages.
        listener.ping(ack_on_close=True).wait(60 if first is None else 0)
    try:
        while True:
            said.append(json.loads(listener.recv(timeout=0)))
    except (TimeoutError, ConnectionClosed):
        return said


def statuses(said: list[Json]) -> list[str]:
    """The statuses, repeated ones once."""
    return [status for status, _ in groupby(message["status"] for message in said)]


def ended(server: PiecesStandIn, model: str = ID) -> Json:
    """The record when no download is under way any more."""
    server.until(lambda: not server.models[model]["downloading"])
    return server.models[model]


# ---- the recording ----------------------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """A value's keys and types."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


RECORDS = {record["id"]: record for record in RECORDING["models"]}


@pytest.fixture(params=RECORDING["clients"])
def recorded(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    exchanges: list[dict[str, Any]] = RECORDING["clients"][request.param]
    return exchanges


def test_the_answers_are_those_of_the_recording(recorded: list[dict[str, Any]]) -> None:
    heard: list[Json] = []
    with (
        PiecesStandIn(RECORDING["models"]) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as api,
    ):
        server.download = Download(tick=None)
        listener = None
        for exchange in recorded:
            where = exchange["step"]
            if "socket" in exchange:
                first = exchange["socket"].split("/")[2]
                listener, heard = listen(server, first), exchange["messages"]
                continue
            if where == "snapshot after download":
                while server.models[first]["downloading"]:
                    server.step(first)
            if where == "download again":  # that server did it again
                server.models[first]["downloaded"] = False
            content = json.dumps(exchange["body"]) if exchange["body"] else None
            headers = {key: value for key, value in exchange["headers"].items() if key != "content-length"}
            answer = api.request(exchange["method"], exchange["path"], headers=headers, content=content)
            assert server.requests[-1].path == exchange["path"], where
            assert (answer.status_code, answer.headers["content-type"]) == (
                exchange["status"],
                exchange["content-type"],
            ), where
            match exchange["answer"]:
                case str(text):
                    assert answer.text == text, where
                case {"records": ids}:
                    iterable = [shape(RECORDS[each]) for each in ids]
                    assert shape(answer.json()["iterable"]) == iterable, where
                case {"record": each}:
                    assert answer.json()["id"] == each, where
                    assert shape(answer.json()) == shape(RECORDS[each]), where
                case state:
                    assert answer.json() == state, where
        assert listener is not None
        with listener:
            assert messages(server, listener)[: len(heard)] == heard


# ---- what a download does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED", "CANCELED", "RESET"])
def test_a_download_ends_as_it_is_told(outcome: Any, server: PiecesStandIn, api: httpx.Client) -> None:
    server.download = Download(outcome=outcome)
    with listen(server) as listener:
        started = api.post(f"{MODEL}/download").json()
        said = messages(server, listener)
    assert (started["downloading"], started["downloaded"]) == (True, False)
    assert statuses(said) == ["UNKNOWN", "INITIALIZED", "IN-PROGRESS", outcome]
    assert [message["percentage"] for message in said if "percentage" in message] == [*server.download.percentages]
    record = api.get(MODEL).json()
    assert (record["downloading"], record["downloaded"]) == (False, outcome == "COMPLETED")


def test_a_model_vanishes_while_it_is_downloaded(server: PiecesStandIn, api: httpx.Client) -> None:
    server.download = Download(outcome="REMOVED")
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        assert statuses(messages(server, listener)) == ["UNKNOWN", "INITIALIZED", "IN-PROGRESS"]
    answer = api.get(MODEL)
    assert (answer.status_code, answer.text) == (410, "model was not found.")
    assert api.post(f"{MODEL}/download").status_code == 500
    with pytest.raises(InvalidStatus, match="500"):
        listen(server)


def test_a_download_goes_on_until_it_is_cancelled(server: PiecesStandIn, api: httpx.Client) -> None:
    server.download = Download(percentages=[50], outcome=None, tick=0.001)
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        assert statuses(messages(server, listener)) == ["UNKNOWN", "INITIALIZED", "IN-PROGRESS"]
        assert api.get(MODEL).json()["downloading"]
        assert not api.post(f"{MODEL}/download/cancel").json()["downloading"]
        assert statuses(messages(server, listener)) == ["CANCELED"]


def test_a_download_takes_the_steps_that_a_test_takes(server: PiecesStandIn, api: httpx.Client) -> None:
    server.downloads[ID] = Download(percentages=[40, 90], tick=None)
    api.post(f"{MODEL}/download")
    seen = []
    for _ in range(3):
        server.step(ID)
        seen.append(api.get(f"{MODEL}/download/progress").json().get("percentage"))
    assert seen == [40, 90, None]
    assert server.models[ID]["downloaded"]


def test_the_last_message_may_be_ahead_of_the_record(server: PiecesStandIn, api: httpx.Client) -> None:
    server.download = Download(percentages=[], tick=None, lag=1)
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        server.step(ID)
        assert statuses(messages(server, listener))[-1] == "COMPLETED"
        assert (server.models[ID]["downloading"], server.models[ID]["downloaded"]) == (True, False)
        server.step(ID)
    assert (server.models[ID]["downloading"], server.models[ID]["downloaded"]) == (False, True)


def test_another_application_downloads(server: PiecesStandIn, api: httpx.Client) -> None:
    server.begin(ID, Download(percentages=[50], tick=None))
    server.step(ID)
    assert api.get(MODEL).json()["downloading"]
    assert api.post(f"{MODEL}/download").json()["downloading"]
    assert api.get(f"{MODEL}/download/progress").json()["percentage"] == 50
    server.finish(ID, "COMPLETED")
    assert api.post(f"{MODEL}/download/cancel").json()["downloaded"]
    assert server.count("POST", "/download$") == 1


# ---- what a progress socket does --------------------------------------------------------------------------------


def test_the_greeting_is_the_state_that_an_earlier_download_left(server: PiecesStandIn) -> None:
    server.states[ID] = {"status": "COMPLETED"}
    server.progress = [Progress(terminal=False, closes=True)]
    with listen(server) as listener:
        assert statuses(messages(server, listener)) == ["COMPLETED"]
        assert server.sockets[0].open


def test_no_greeting(server: PiecesStandIn, api: httpx.Client) -> None:
    server.progress = [Progress(greeting=False)]
    with listen(server) as listener:
        assert messages(server, listener) == []
        api.post(f"{MODEL}/download")
        assert statuses(messages(server, listener)) == ["INITIALIZED", "IN-PROGRESS", "COMPLETED"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_socket_stays_open_or_closes_after_the_last_message(
    terminal: bool, server: PiecesStandIn, api: httpx.Client
) -> None:
    server.progress = [Progress(terminal=terminal), Progress(terminal=terminal, closes=True)]
    with listen(server) as stays, listen(server) as closes:
        api.post(f"{MODEL}/download")
        for listener in (stays, closes):
            assert statuses(messages(server, listener))[-1] == ("COMPLETED" if terminal else "IN-PROGRESS")
        with pytest.raises(TimeoutError):
            stays.recv(timeout=0)
        with pytest.raises(ConnectionClosedOK) as closed:
            closes.recv(timeout=0)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    assert server.models[ID]["downloaded"]


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("ends", ["close", "eof", "reset", "garbage", "mute", "stall"])
def test_a_socket_ends(ends: Any, after: int, server: PiecesStandIn, api: httpx.Client) -> None:
    server.progress = [Progress(ends_after=after, ends=ends), Progress()]
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        stalls = ends == "stall"
        assert len(messages(server, listener, first=after if stalls else None)) == after
        if ends in ("mute", "stall"):
            assert listener.ping().wait(0.2 if stalls else 60) != stalls
        else:
            with pytest.raises(ConnectionClosed) as closed:
                listener.recv(timeout=0)
            received, sent = closed.value.rcvd, closed.value.sent
            assert (received and received.code) == (1001 if ends == "close" else None)
            assert (sent and sent.code) == {"close": 1001, "garbage": 1002}.get(ends)
    assert ended(server)["downloaded"]
    with listen(server) as again:
        assert statuses(messages(server, again)) == ["COMPLETED"]


def test_a_reset_is_no_orderly_end(server: PiecesStandIn) -> None:
    server.progress = [Progress(ends_after=1, ends="reset"), Progress(ends_after=1, ends="eof")]
    causes = []
    for _ in range(2):
        with listen(server) as listener:
            listener.recv()
            with pytest.raises(ConnectionClosedError) as closed:
                listener.recv()
        causes.append(closed.value.__cause__)
    assert isinstance(causes[0], ConnectionResetError)
    assert not isinstance(causes[1], ConnectionResetError)


def test_a_ping_comes_before_each_message(server: PiecesStandIn, api: httpx.Client) -> None:
    server.progress = [Progress(pings=True)]
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        said = messages(server, listener)
    assert len(said) == 11
    server.until(lambda: not server.sockets[0].open)
    assert server.sockets[0].received.count("PONG") == 11


def test_a_message_comes_in_fragments_with_pings_between(server: PiecesStandIn) -> None:
    server.progress = [Progress(fragments=3, pings=True)]
    with listen(server) as listener:
        parts = list(listener.recv_streaming())
    assert len(parts) == 3
    assert json.loads("".join(map(str, parts)))["status"] == "UNKNOWN"
    server.until(lambda: not server.sockets[0].open)
    assert server.sockets[0].received[:3] == ["PONG"] * 3


def test_junk_comes_before_each_message(server: PiecesStandIn) -> None:
    server.progress = [Progress(junk=JUNK)]
    with listen(server) as listener:
        said = [listener.recv(timeout=60) for _ in range(len(JUNK) + 1)]
    assert tuple(said[:-1]) == JUNK
    assert json.loads(said[-1])["status"] == "UNKNOWN"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fractions", {"status": "IN-PROGRESS", "percentage": 12.5}),
        ("integers", {"status": "IN-PROGRESS", "percentage": 12}),
        ("null", {"status": "IN-PROGRESS", "percentage": None}),
        ("no percentage", {"status": "IN-PROGRESS"}),
        ("no status", {"percentage": 12.5}),
        ("unknown status", {"status": "UNKNOWN", "percentage": 12.5}),
        ("new status", {"status": "VERIFYING", "percentage": 12.5}),
        ("empty", {}),
    ],
)
def test_a_message_has_one_of_the_shapes(name: str, expected: Json, server: PiecesStandIn, api: httpx.Client) -> None:
    assert name in SHAPES
    server.download = Download(percentages=[12.5])
    server.progress = [Progress(greeting=False, shape=name)]
    with listen(server) as listener:
        api.post(f"{MODEL}/download")
        first, middle, last = ({**message, "schema": None} for message in messages(server, listener))
    assert middle == {**expected, "schema": None}
    assert type(middle.get("percentage")) is type(expected.get("percentage"))
    assert (first["status"], last["status"]) == ("INITIALIZED", "COMPLETED")


@pytest.mark.parametrize("status", [200, 426, 500])
def test_an_upgrade_is_answered_otherwise(status: int, server: PiecesStandIn) -> None:
    server.progress = [Progress(upgrade=status), Progress()]
    with pytest.raises(InvalidStatus) as refused:
        listen(server)
    answer = refused.value.response
    assert answer.status_code == status
    if status == 200:
        assert json.loads(answer.body or b"")["status"] == "UNKNOWN"
    with listen(server) as listener:
        assert statuses(messages(server, listener)) == ["UNKNOWN"]


@pytest.mark.parametrize("status", [200, 426])
def test_a_plain_get_of_the_progress(status: int, server: PiecesStandIn, api: httpx.Client) -> None:
    server.plain_get = status
    answer = api.get(f"{MODEL}/download/progress")
    assert answer.status_code == status
    assert answer.headers.get("upgrade") == (None if status == 200 else "websocket")


def test_several_sockets_at_once_hear_of_their_own_model(server: PiecesStandIn, api: httpx.Client) -> None:
    other = CUSTOM["id"]
    server.downloads[other] = Download(percentages=[], outcome="FAILED")
    with listen(server) as one, listen(server) as two, listen(server, other) as third:
        for each in (ID, other):
            api.post(f"/model/{each}/download")
        assert messages(server, one) == messages(server, two)
        assert statuses(messages(server, third)) == ["UNKNOWN", "INITIALIZED", "FAILED"]
    assert [each.model for each in server.sockets] == [ID, ID, other]
    assert server.sockets[0].sent == server.sockets[1].sent


def test_a_handshake_may_stall(server: PiecesStandIn) -> None:
    server.fault("GET", "/progress$", Delay(60))
    url = server.url.replace("http", "ws") + f"{MODEL}/download/progress"
    with pytest.raises(TimeoutError):
        connect(url, proxy=None, open_timeout=0.1)


def test_the_end_of_the_server_ends_what_is_under_way() -> None:
    before = set(threading.enumerate())
    with ExitStack() as listeners:
        with PiecesStandIn([PHI]) as server:
            server.progress = [Progress(ends_after=1, ends="stall"), Progress()]
            server.begin(ID, Download(outcome=None, tick=60))
            for _ in range(2):
                listeners.enter_context(listen(server))
            server.until(lambda: len(server.sockets) == 2)
    server.until(lambda: set(threading.enumerate()) <= before)


# ---- what the host likes and dislikes ---------------------------------------------------------------------------


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("download again", f"/model/{CUSTOM['id']}/download"),
        ("download cloud", f"/model/{CLOUD['id']}/download"),
        ("cancel nothing", f"{MODEL}/download/cancel"),
        ("load absent", f"{MODEL}/load"),
    ],
)
def test_what_makes_no_sense_is_refused_or_changes_nothing(
    what: Any, path: str, refused: bool, server: PiecesStandIn, api: httpx.Client
) -> None:
    server.models[CUSTOM["id"]]["downloaded"] = True
    before = json.dumps(server.models)
    server.refused = {what} if refused else set()
    answer = api.post(path)
    assert (answer.status_code, answer.headers["content-type"]) == (
        (500, "text/plain") if refused else (200, "application/json")
    )
    assert json.dumps(server.models) == before


def test_a_model_is_loaded_and_unloaded(server: PiecesStandIn, api: httpx.Client) -> None:
    server.models[ID]["downloaded"] = True
    assert api.post(f"{MODEL}/load").json()["loaded"]
    assert not api.post(f"{MODEL}/unload").json()["loaded"]
    api.post(f"{MODEL}/load")
    assert api.post("/models/unload").status_code == 204
    assert not api.get(MODEL).json()["loaded"]


def test_an_update_replaces_the_record_but_for_what_is_computed(server: PiecesStandIn, api: httpx.Client) -> None:
    sent = {**CUSTOM, "name": "Renamed", "loaded": True, "downloading": True}
    del sent["quantization"]
    answer = api.post("/model/update", json=sent)
    expected = {**sent, "loaded": False, "downloading": False}
    assert answer.json() == api.get(f"/model/{CUSTOM['id']}").json() == expected
    assert (expected["foundation"], expected["house"]) == ("PHI_99", "mine")


@pytest.mark.parametrize("body", [PHI, {**CUSTOM, "id": "nope"}, {"id": CUSTOM["id"], "name": "only"}, [], None])
def test_an_update_of_anything_else_is_refused(body: Any, server: PiecesStandIn, api: httpx.Client) -> None:
    before = json.dumps(server.models)
    assert api.post("/model/update", content=json.dumps(body) if body is not None else b"").status_code == 500
    assert json.dumps(server.models) == before


def test_a_model_is_created_once_and_deleted(server: PiecesStandIn, api: httpx.Client) -> None:
    seeded = {key: value for key, value in model("New").items() if key not in ("id", "downloading", "loaded")}
    created = api.post("/models/create", json={**seeded, "custom": False}).json()
    assert created == {**seeded, "id": created["id"], "custom": True, "downloading": False, "loaded": False}
    assert api.post("/models/create", json=seeded).status_code == 500
    assert api.post("/models/create", json={"name": "New"}).status_code == 500
    assert api.post(f"/models/{created['id']}/delete").status_code == 204
    assert api.get(f"/model/{created['id']}").status_code == 410
    assert api.post(f"/models/{ID}/delete").status_code == 500


def test_the_downloaded_files_are_removed(server: PiecesStandIn, api: httpx.Client) -> None:
    server.models[ID].update(downloaded=True, loaded=True)
    assert api.post(f"/models/{ID}/delete/cache", json={}).json()["model"]["id"] == ID
    record = api.get(MODEL).json()
    assert (record["downloaded"], record["loaded"]) == (False, False)
    assert api.post(f"/models/{CLOUD['id']}/delete/cache", json={}).status_code == 500


def test_an_application_is_connected(server: PiecesStandIn, api: httpx.Client) -> None:
    asked = {"name": "OPEN_SOURCE", "platform": "LINUX", "version": "0.1"}
    answer = api.post("/connect", json={"application": asked}).json()
    assert asked.items() <= answer["application"].items()
    assert answer["application"]["id"] in server.applications
    assert answer["health"]["os"]["version"] == server.version
    refused = api.post("/connect", json={"application": {}})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "text/plain")


def test_health_is_asked_by_head_too(server: PiecesStandIn, api: httpx.Client) -> None:
    answers = [api.head("/.well-known/health"), api.get("/.well-known/health")]
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, ""), (200, "ok")]
    assert api.get("/nothing").status_code == 404


def test_requests_break_where_they_are_told_to(server: PiecesStandIn, api: httpx.Client) -> None:
    server.download = Download(outcome=None)
    server.fault("GET", "/models$", Respond(503, b"later"))
    server.fault("GET", "/models$", Rewrite(lambda body: {**body, "iterable": None}), nth=2)
    server.fault("GET", f"^{MODEL}$", Reset())
    server.fault("POST", "/download$", LoseAnswer())
    assert (api.get("/models").status_code, api.get("/models").json()["iterable"]) == (503, None)
    for method, path in (("GET", MODEL), ("POST", f"{MODEL}/download")):
        with pytest.raises(httpx.TransportError):
            api.request(method, path)
    assert api.get(MODEL).json()["downloading"]
    assert [request.status for request in server.requests] == [503, 200, 0, 0, 200]

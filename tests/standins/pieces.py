"""A stand-in for the model API of Pieces OS, whose progress socket can do everything that no public text rules out.

    with PiecesStandIn([model("Phi 2")]) as server:
        server.download = Download(outcome="FAILED")
        server.progress = [Progress(ends_after=2, ends="reset"), Progress(pings=True)]
        ...  # talk to server.url
        assert server.count("POST", "/download$") == 1

The host's models are `server.models`: JSON records by id, as they go over the wire. What a download does is a
:class:`Download`, what a progress socket does a :class:`Progress`; both may be changed between requests.
Nothing here imports the package under test.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from websockets.frames import Frame
from websockets.protocol import OPEN, Protocol, Side
from websockets.utils import accept_key

from tests.standins import http_server
from tests.standins.http_server import Answer, Handler, Json, Request, StandIn, json_answer, reset_at_close, text_answer

SCHEMA = {"migration": 0, "semantic": "MAJOR_0_MINOR_0_PATCH_1"}
REQUIRED = {"version", "created", "name", "cloud", "type", "usage"}
TERMINAL = ("COMPLETED", "FAILED", "CANCELED")


def model(name: str, **facts: Any) -> Json:
    """A local model's record, complete and not downloaded; `facts` replace fields or add ones nobody has heard of."""
    unique = facts.get("unique", re.sub(r"\W+", "-", name.lower()))
    size = {"schema": SCHEMA, "value": 4_840_000_000, "readable": "4.84 GB"}
    return {
        "schema": SCHEMA,
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, unique)),
        "version": "0.0.1",
        "created": {"schema": SCHEMA, "value": "2024-03-01T10:00:00.000Z", "readable": "March 1st"},
        "name": name,
        "description": f"test model {name}",
        "cloud": False,
        "type": "SPEED",
        "usage": "CODE_GENERATION",
        "bytes": size,
        "ram": {**size, "value": 5_840_000_000, "readable": "5.84 GB"},
        "quantization": "q4f16_1",
        "foundation": "PHI_2",
        "downloaded": False,
        "loaded": False,
        "unique": unique,
        "parameters": 7,
        "provider": "MICROSOFT",
        "cpu": True,
        "downloading": False,
        "maxTokens": {"schema": SCHEMA, "total": 4096, "input": 3072, "output": 1024},
        "custom": False,
        "capabilities": {"assets": True, "temporal": False, "websites": True},
        **facts,
    }


# ---- what a test scripts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """What a download does: one step after the other, `tick` seconds apart; None: at each call of `server.step`.

    :param outcome: None: it goes on for ever. `REMOVED`: the model vanishes from the host, and no message says so.
    :param lag: steps between the last message and the record that agrees with it.
    """

    percentages: Sequence[float] = (12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0)
    outcome: Literal["COMPLETED", "FAILED", "CANCELED", "RESET", "REMOVED"] | None = "COMPLETED"
    tick: float | None = 0.004
    lag: int = 0


# What a message about a download under way looks like.
SHAPES: dict[str, Callable[[float], Json]] = {
    "fractions": lambda percentage: {"status": "IN-PROGRESS", "percentage": percentage},
    "integers": lambda percentage: {"status": "IN-PROGRESS", "percentage": int(percentage)},
    "null": lambda _: {"status": "IN-PROGRESS", "percentage": None},
    "no percentage": lambda _: {"status": "IN-PROGRESS"},
    "no status": lambda percentage: {"percentage": percentage},
    "unknown status": lambda percentage: {"status": "UNKNOWN", "percentage": percentage},
    "new status": lambda percentage: {"status": "VERIFYING", "percentage": percentage},
    "empty": lambda _: {},
}
JUNK: tuple[str | bytes, ...] = (
    "",
    "not JSON",
    "null",
    "[1, 2]",
    '{"status": 7, "percentage": "many"}',
    '{"status": null, "percentage": true}',
    b"\x00\xff",
)


@dataclass(frozen=True)
class Progress:
    """What a progress socket does.

    :param upgrade: the answer to the request for an upgrade; 200 is the present state, as a plain GET gives it.
    :param greeting: says the present state first.
    :param shape: of messages about a download under way: a key of `SHAPES`.
    :param terminal: sends the last message; False: it gets lost.
    :param closes: closes the socket once the download is over.
    :param ends_after: messages, the greeting included, after which the socket `ends`; None: never.
    :param ends: `close`: with a close frame; `eof`: without; `reset`: the connection is reset; `garbage`: a frame
        that breaks the protocol; `mute`: says no more, but answers pings; `stall`: not even these.
    :param pings: a ping before each message, and between the fragments of one.
    :param fragments: the frames that a message is cut into.
    :param junk: text or binary messages before each message.
    """

    upgrade: int = 101
    greeting: bool = True
    shape: str = "fractions"
    terminal: bool = True
    closes: bool = False
    ends_after: int | None = None
    ends: Literal["close", "eof", "reset", "garbage", "mute", "stall"] = "close"
    pings: bool = False
    fragments: int = 1
    junk: tuple[str | bytes, ...] = ()

    def message(self, state: Json) -> Json:
        """What it says of a download's state."""
        shaped = SHAPES[self.shape](state["percentage"]) if state["status"] == "IN-PROGRESS" else state
        return {"schema": SCHEMA, **shaped}


# ---- the progress socket ----------------------------------------------------------------------------------------


class ProgressSocket:
    """A client's socket: `sent` are the messages without the junk, `received` the client's frames by name."""

    def __init__(self, model: str, behaviour: Progress, connection: socket.socket, stopping: threading.Event) -> None:
        self.model = model
        self.behaviour = behaviour
        self.sent: list[Json] = []
        self.received: list[str] = []
        self.open = True
        self._connection = connection
        self._stopping = stopping
        self._protocol = Protocol(Side.SERVER, state=OPEN)
        self._lock = threading.Lock()
        self._talks = True
        self._deaf = False

    def greet(self, state: Json) -> None:
        if self.behaviour.ends_after == 0:
            self._end(self.behaviour.ends)
        if self.behaviour.greeting:
            self.tell(state, greeting=True)

    def tell(self, state: Json, *, greeting: bool = False) -> None:
        """Say a state, unless the behaviour has it otherwise."""
        if not self._talks:
            return
        over = state["status"] in TERMINAL and not greeting
        if self.behaviour.terminal or not over:
            message = self.behaviour.message(state)
            self._send(json.dumps(message).encode())
            self.sent.append(message)
        if len(self.sent) == self.behaviour.ends_after:
            self._end(self.behaviour.ends)
        elif over and self.behaviour.closes:
            self._end("close", 1000)

    def read(self) -> None:
        """Take what the client sends, until either side has ended."""
        with contextlib.suppress(OSError):
            while data := self._connection.recv(65536):
                with self._lock:
                    if self._deaf:
                        break
                    self._protocol.receive_data(data)
                    frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
                    self.received += [frame.opcode.name for frame in frames]
                    self._flush()
            if self._deaf:
                self._stopping.wait()
        self.open = self._talks = False

    def _send(self, payload: bytes) -> None:
        size = -(-len(payload) // self.behaviour.fragments)
        parts = [payload[start : start + size] for start in range(0, len(payload), size)]
        with self._lock:
            if self._protocol.state is not OPEN:  # the client has closed it meanwhile
                return
            for junk in self.behaviour.junk:
                if isinstance(junk, str):
                    self._protocol.send_text(junk.encode())
                else:
                    self._protocol.send_binary(junk)
            for number, part in enumerate(parts):
                if self.behaviour.pings:
                    self._protocol.send_ping(b"%d" % number)
                last = number == len(parts) - 1
                if number:
                    self._protocol.send_continuation(part, fin=last)
                else:
                    self._protocol.send_text(part, fin=last)
            self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # the client left
            for data in self._protocol.data_to_send():
                if data:
                    self._connection.sendall(data)
                else:
                    self._connection.shutdown(socket.SHUT_WR)

    def _end(self, how: str, code: int = 1001) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._talks = False
            match how:
                case "close":
                    self._protocol.send_close(code)
                    self._flush()
                case "garbage":
                    self._connection.sendall(b"\xff\xff")
                case "eof":
                    self._connection.shutdown(socket.SHUT_RDWR)
                case "reset":
                    reset_at_close(self._connection)
                    self._connection.shutdown(socket.SHUT_RD)  # ends `read`
                case "stall":
                    self._deaf = True


# ---- the server -------------------------------------------------------------------------------------------------


class Refusal(http_server.Refusal):
    """A request that is refused, in free text as everything is here."""

    def __init__(self, status: int = 500, text: str = "Internal Server Error") -> None:
        super().__init__(text_answer(status, text))


@dataclass
class _Running:
    """A download under way."""

    steps: Iterator[None]
    over: threading.Event = field(default_factory=threading.Event)


_M = r"/model/(?P<model>[^/]+)"
_S = r"/models/(?P<model>[^/]+)"


class PiecesStandIn(StandIn):
    """The host with its models; start and stop it as a context manager."""

    ROUTES: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/\.well-known/health", "get_health"),
        ("HEAD", r"/\.well-known/health", "get_health"),
        ("GET", r"/\.well-known/version", "get_version"),
        ("POST", r"/connect", "connect"),
        ("GET", r"/models", "list_models"),
        ("POST", r"/models/create", "create"),
        ("POST", r"/models/unload", "unload_all"),
        ("POST", _S + "/delete", "delete"),
        ("POST", _S + "/delete/cache", "delete_cache"),
        ("POST", r"/model/update", "update"),
        ("GET", _M, "snapshot"),
        ("POST", _M + "/download", "start_download"),
        ("POST", _M + "/download/cancel", "cancel_download"),
        ("GET", _M + "/download/progress", "get_progress"),
        ("POST", _M + "/load", "load"),
        ("POST", _M + "/unload", "unload"),
    )

    def __init__(self, models: Iterable[Json] = (), *, port: int = 0) -> None:
        """`models`: the records that the host has, copied; :func:`model` makes one."""
        super().__init__(handler=_Handler, port=port)
        self.models: dict[str, Json] = {record["id"]: copy.deepcopy(record) for record in models}
        self.download = Download()
        self.downloads: dict[str, Download] = {}  # by id, where it is not `download`
        self.progress: Sequence[Progress] = [Progress()]  # of the first socket, the second, ...; the last for ever
        self.states: dict[str, Json] = {}  # by id: what a greeting says; without one the status is UNKNOWN
        # Requests that the host does not like; another that makes no sense is answered 200 and changes nothing.
        self.refused: set[Literal["download again", "download cloud", "cancel nothing", "load absent"]] = {
            "download cloud",
            "load absent",
        }
        self.plain_get = 200  # to a GET of the progress that asks for no upgrade; or 426
        self.health = "ok"
        self.version = "12.1.0"
        self.applications: dict[str, Json] = {}
        self.sockets: list[ProgressSocket] = []
        self._asked = 0
        self._running: dict[str, _Running] = {}
        self._runners: list[threading.Thread] = []
        self._routes = [(method, re.compile(path), name) for method, path, name in self.ROUTES]

    def close(self) -> None:
        self.stopping.set()
        with self.lock:
            for running in self._running.values():
                running.over.set()
        super().close()
        for runner in self._runners:
            runner.join()

    def until(self, holds: Callable[[], object], seconds: float = 300) -> None:
        """Wait until something holds of this server."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "this did not happen in time"
            time.sleep(0.001)

    @property
    def stepping(self) -> bool:
        """Whether a download is under way that takes its steps by itself and has one left."""
        with self.lock:
            return any(runner.is_alive() for runner in self._runners)

    # -- what happens on the host besides the requests

    def begin(self, model: str, download: Download | None = None) -> None:
        """Start a download, as another application does by its request."""
        with self.lock:
            plan = download or self.downloads.get(model, self.download)
            self.models[model].update(downloading=True, downloaded=False)
            self._running[model] = running = _Running(self._steps(model, plan))
            self._report(model, "INITIALIZED")
            if plan.tick is not None:
                runner = threading.Thread(target=self._run, args=(model, running, plan.tick), daemon=True)
                self._runners.append(runner)
                runner.start()

    def step(self, model: str) -> None:
        """Take a download's next step; there is none after the last."""
        with self.lock:
            next(self._running[model].steps, None)

    def finish(self, model: str, outcome: str) -> None:
        """End a download before its time."""
        with self.lock:
            self._report(model, outcome)
            self._settle(model, outcome)

    def remove(self, model: str) -> None:
        """Take a model away, with the download that it may be in."""
        with self.lock:
            self._stop(model)
            del self.models[model]

    def _run(self, model: str, running: _Running, tick: float) -> None:
        try:
            while not running.over.wait(tick):
                with self.lock:
                    if running.over.is_set() or next(running.steps, True):
                        return
        except Exception as error:  # a defect of the stand-in: the test that started it is to fail
            self.errors.append(error)

    def _steps(self, model: str, plan: Download) -> Iterator[None]:
        for percentage in plan.percentages:
            self._report(model, "IN-PROGRESS", percentage=percentage)
            yield
        if plan.outcome == "REMOVED":
            self.remove(model)
        elif plan.outcome is not None:
            self._report(model, plan.outcome)
            for _ in range(plan.lag):
                yield
            self._settle(model, plan.outcome)

    def _report(self, model: str, status: str, **facts: float) -> None:
        self.states[model] = state = {"status": status, **facts}
        for listener in self.sockets:
            if listener.model == model:
                listener.tell(state)

    def _settle(self, model: str, outcome: str) -> None:
        self._stop(model)
        self.models[model].update(downloading=False, downloaded=outcome == "COMPLETED")

    def _stop(self, model: str) -> None:
        if running := self._running.pop(model, None):
            running.over.set()

    # -- requests

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        for method, path, name in self._routes:
            if method == request.method and (found := path.fullmatch(request.path)):
                segments = {key: unquote(value) for key, value in found.groupdict().items()}
                with self.lock:
                    answer: Answer = getattr(self, name)(request, **segments)
                return answer
        raise Refusal(404, "Not Found")

    def _model(self, model: str, status: int = 500) -> Json:
        if model not in self.models:
            raise Refusal(status, "model was not found.")
        return self.models[model]

    def _refuse(self, what: Literal["download again", "download cloud", "cancel nothing", "load absent"]) -> None:
        if what in self.refused:
            raise Refusal

    def get_health(self, request: Request) -> Answer:
        return text_answer(200, self.health)

    def get_version(self, request: Request) -> Answer:
        return text_answer(200, self.version)

    def connect(self, request: Request) -> Answer:
        try:
            application = {key: request.body["application"][key] for key in ("name", "version", "platform")}
        except (KeyError, TypeError):
            raise Refusal(400, "The integration was refused.") from None
        application |= {"id": str(uuid.uuid4()), "onboarded": True, "privacy": "OPEN"}
        self.applications[application["id"]] = application
        host = str(uuid.uuid5(uuid.NAMESPACE_URL, self.url))
        health = {"os": {"id": host, "version": self.version}}
        return json_answer(200, {"os": host, "application": application, "health": health})

    def list_models(self, request: Request) -> Answer:
        return json_answer(200, {"schema": SCHEMA, "iterable": list(self.models.values())})

    def snapshot(self, request: Request, model: str) -> Answer:
        return json_answer(200, self._model(model, 410))

    def start_download(self, request: Request, model: str) -> Answer:
        record = self._model(model)
        if record["cloud"]:
            self._refuse("download cloud")
        elif record.get("downloaded") or model in self._running:
            self._refuse("download again")
        else:
            self.begin(model)
        return json_answer(200, record)

    def cancel_download(self, request: Request, model: str) -> Answer:
        record = self._model(model)
        if model in self._running:
            self.finish(model, "CANCELED")
        else:
            self._refuse("cancel nothing")
        return json_answer(200, record)

    def get_progress(self, request: Request, model: str) -> Answer:
        self._model(model)
        return self.progress_answer(self.plain_get, model)

    def progress_answer(self, status: int, model: str) -> Answer:
        """What is said instead of opening a socket."""
        if status == 200:
            return json_answer(200, Progress().message(self.state(model)))
        return text_answer(status, "Upgrade Required", {"Upgrade": "websocket"})

    def load(self, request: Request, model: str) -> Answer:
        record = self._model(model)
        if record.get("downloaded") or record["cloud"]:
            record["loaded"] = True
        else:
            self._refuse("load absent")
        return json_answer(200, record)

    def unload(self, request: Request, model: str) -> Answer:
        record = self._model(model)
        record["loaded"] = False
        return json_answer(200, record)

    def unload_all(self, request: Request) -> Answer:
        for record in self.models.values():
            record["loaded"] = False
        return Answer(204)

    def update(self, request: Request) -> Answer:
        if not isinstance(request.body, dict) or not request.body.keys() >= REQUIRED | {"id"}:
            raise Refusal
        record = self._custom(request.body["id"])
        computed = {key: record[key] for key in ("downloading", "loaded") if key in record}
        record.clear()
        record.update(request.body, custom=True, **computed)
        return json_answer(200, record)

    def create(self, request: Request) -> Answer:
        body = request.body
        if not isinstance(body, dict) or not body.keys() >= REQUIRED:
            raise Refusal
        if "unique" in body and body["unique"] in [record.get("unique") for record in self.models.values()]:
            raise Refusal
        record = {"downloaded": False, "downloading": False, "loaded": False, **body}
        record |= {"id": str(uuid.uuid4()), "custom": True}
        self.models[record["id"]] = record
        return json_answer(200, record)

    def delete(self, request: Request, model: str) -> Answer:
        self._custom(model)
        self.remove(model)
        return Answer(204)

    def delete_cache(self, request: Request, model: str) -> Answer:
        record = self._model(model)
        if record["cloud"]:
            raise Refusal
        record.update(downloaded=False, loaded=False)
        self.states.pop(model, None)
        return json_answer(200, {"model": {"id": model, "schema": SCHEMA}})

    def _custom(self, model: str) -> Json:
        record = self._model(model)
        if not record.get("custom"):
            raise Refusal
        return record

    # -- progress

    def state(self, model: str) -> Json:
        return self.states.get(model, {"status": "UNKNOWN"})

    def next_progress(self) -> Progress:
        """What the next socket does."""
        with self.lock:
            self._asked += 1
            return self.progress[min(self._asked, len(self.progress)) - 1]

    def opened(self, model: str, behaviour: Progress, connection: socket.socket) -> ProgressSocket:
        """Take a socket whose handshake is done, and greet it."""
        with self.lock:
            listener = ProgressSocket(model, behaviour, connection, self.stopping)
            self.sockets.append(listener)
            listener.greet(self.state(model))
        return listener


# ---- the transport ----------------------------------------------------------------------------------------------


class _Handler(Handler):
    """Answer a request or open a socket. A request arrives with its body, and its path is logged percent-encoded."""

    send_error = BaseHTTPRequestHandler.send_error  # what is no HTTP is not logged

    def parsed(self) -> Request:
        return replace(super().parsed(), path=urlsplit(self.path).path)

    def arrive(self) -> None:
        raw = self.rfile.read(self.unread)
        self.unread, self.entry.received = 0, len(raw)
        with contextlib.suppress(ValueError):
            self.entry.body = json.loads(raw)
        super().arrive()

    def proceed(self) -> None:
        found = re.fullmatch(_M + "/download/progress", self.entry.path)
        if found and self.entry.headers.get("upgrade", "").lower() == "websocket":
            self.upgrade(unquote(found["model"]))
        else:
            super().proceed()

    def upgrade(self, model: str) -> None:
        stand_in = self.server.stand_in
        behaviour = stand_in.next_progress()
        if model not in stand_in.models:
            self.send(Refusal().answer)
        elif behaviour.upgrade != 101:
            self.send(stand_in.progress_answer(behaviour.upgrade, model))
        else:
            self.close_connection = True
            with stand_in.lock:  # what the client asks for once it has the answer is not to be faster
                self.shake_hands()
                listener = stand_in.opened(model, behaviour, self.connection)
            listener.read()

    def shake_hands(self) -> None:
        self.entry.status = 101
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept_key(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()

    def framing(self, answer: Answer) -> dict[str, str]:
        return {} if answer.status == 204 else {"Content-Length": str(answer.length)}

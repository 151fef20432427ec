"""What every stand-in is made of: a log of requests, scripted faults, answers, and HTTP that ends with its test.

    class Echo(StandIn):
        def answer(self, request, body):
            return json_answer(200, {"path": request.path})

    with Echo() as server:
        server.fault("GET", "^/slow$", Delay(0.5))
        ...  # talk to server.url
        assert server.count("GET", "^/slow$") == 1

Nothing here imports the package under test.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

Json = dict[str, Any]

BLOCK = 256 * 1024
MIB = 1024 * 1024
JSON_LIMIT = 16 * MIB


# ---- what a test sees: the log of requests ----------------------------------------------------------------------


@dataclass
class Request:
    """One request as it arrived. `status` 0: the connection ended without an answer; method "?": not HTTP.

    `origin`: which of the stand-in's; `actions`: of all faults that are due; `fault`: the first of them; `answered`:
    whether all of the answer was sent.
    """

    origin: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None
    received: int = 0
    sent: int = 0
    status: int = 0
    fault: Action | None = None
    actions: list[Action] = field(default_factory=list)
    answered: bool = False

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method not in ("GET", "HEAD")

    @property
    def part(self) -> int | None:
        number = self.query.get("partNumber", "")
        return int(number) if number.isdigit() else None

    def matches(self, method: str, path: re.Pattern[str], part: int | None) -> bool:
        return (
            method in ("*", self.method) and path.search(self.path) is not None and (part is None or self.part == part)
        )


# ---- what a test scripts: faults --------------------------------------------------------------------------------


class Action:
    """What befalls a request."""


@dataclass(frozen=True)
class Respond(Action):
    """Answer this instead. `early` answers before the body is read, then closes the connection."""

    status: int
    body: bytes | Json = b""
    headers: dict[str, str] = field(default_factory=dict)
    early: bool = False


@dataclass(frozen=True)
class Reset(Action):
    """Read this many bytes of the request's body, then reset the connection."""

    after: int = 0


@dataclass(frozen=True)
class LoseAnswer(Action):
    """Do what was asked for, then reset the connection instead of answering."""


@dataclass(frozen=True)
class Truncate(Action):
    """Stop the answer's body after this many bytes: by a reset, or as cleanly as the framing allows.

    A clean end is a valid last chunk where the answer is chunked, and an orderly close where it has a length.
    """

    after: int
    clean: bool = False


@dataclass(frozen=True)
class FlipBit(Action):
    """Flip the lowest bit of one byte of the answer's body."""

    offset: int


@dataclass(frozen=True)
class Delay(Action):
    """Handle the request only after this time."""

    seconds: float


@dataclass(frozen=True)
class Hold(Action):
    """Handle the request only once this is set."""

    gate: threading.Event


@dataclass(frozen=True)
class Rewrite(Action):
    """Change the JSON answer."""

    change: Callable[[Json], Any]


@dataclass(frozen=True)
class Before(Action):
    """Call this before anything is done; of proxies."""

    hook: Callable[[Any], object]


@dataclass(frozen=True)
class After(Action):
    """Call this when the server has done its work and the client does not know yet; of proxies."""

    hook: Callable[[Any], object]


def html_error_page(status: int = 502, size: int = 10 * MIB) -> Respond:
    """The error page of a gateway, as large as it likes."""
    head, tail = b"<html><head><title>error</title></head><body><h1>", b"</h1></body></html>"
    body = head + b"gateway error " * (size // 14 + 1)
    return Respond(status, body[: size - len(tail)] + tail, {"Content-Type": "text/html"})


@dataclass
class Fault:
    """An action for the nth and the following `times` - 1 requests that match; `times` None: for ever."""

    method: str
    path: re.Pattern[str]
    action: Action
    nth: int
    times: int | None
    part: int | None
    seen: int = 0

    def due(self, request: Request) -> bool:
        """Count a request; return whether it is to suffer."""
        if not request.matches(self.method, self.path, self.part):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


# ---- answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSlice:
    path: Path
    start: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        left = self.length
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left and (block := file.read(min(left, BLOCK))):
                left -= len(block)
                yield block


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes | FileSlice = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.length

    def blocks(self) -> Iterator[bytes]:
        if isinstance(self.body, FileSlice):
            yield from self.body.blocks()
        else:
            for start in range(0, len(self.body), BLOCK):
                yield self.body[start : start + BLOCK]


def json_answer(status: int, value: Any) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def text_answer(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, text.encode(), {"Content-Type": "text/plain", **(headers or {})})


def file_answer(path: Path, size: int, headers: dict[str, str], wanted: str) -> Answer:
    """A file, or the `wanted` range of it; 416 and no body where there is none such."""
    limits = _byte_range(wanted, size)
    if limits is None:
        return Answer(200, FileSlice(path, 0, size), headers)
    first, last = limits
    if first > last:
        return Answer(416, headers={"Content-Range": f"bytes */{size}"})
    headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(206, FileSlice(path, first, last - first + 1), headers)


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; first > last: not satisfiable; None: no range that counts."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if first == "":
        return max(size - int(last), 0), size - 1 if int(last) else -1
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last), size - 1) if last else size - 1


class Refusal(Exception):
    """A request that is refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status, answer.body)
        self.answer = answer


class BadBody(Exception):
    """The body that came is not the one that was announced."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


# ---- the stand-in -----------------------------------------------------------------------------------------------


class StandIn:
    """A server on 127.0.0.1, started and stopped as a context manager; `answer` is what a subclass adds.

    `handler`: how it talks; `port` 0: one that is free; `tls`: speaks TLS with this; `stall_seconds`: patience with
    a request's body.
    """

    def __init__(
        self,
        *,
        handler: type[Handler] | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        stall_seconds: float = 10,
    ) -> None:
        self.stall_seconds = stall_seconds
        self.url = ""
        self.requests: list[Any] = []  # as the handler parses them
        self.faults: list[Fault] = []
        self.errors: list[Exception] = []
        self.stopping = threading.Event()
        self.lock = threading.RLock()
        self._handler = handler or Handler
        self._port = port
        self._tls = tls
        self._servers: list[Server] = []

    def answer(self, request: Request, body: Any) -> Answer:
        """Do what a request asks for; `body` is what the handler makes of its content."""
        raise NotImplementedError

    def bad_body(self, error: BadBody) -> Answer:
        """What is said of a body that is not as it was announced."""
        return text_answer(400, str(error))

    # -- life

    def __enter__(self) -> Self:
        self.url = self.listen("api", self.answer)
        return self

    def listen(self, origin: str, answer: Callable[[Request, Any], Answer]) -> str:
        """Start an origin and return its URL."""
        server = Server(self, origin, answer, self._handler, self._port, self._tls)
        self._servers.append(server)
        server.start()
        return server.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.errors and error is None:
            raise self.errors[0]

    def close(self) -> None:
        self.stopping.set()
        for server in self._servers:
            server.stop()

    # -- faults and log

    def fault(
        self, method: str, path: str, action: Action, *, nth: int = 1, times: int | None = 1, part: int | None = None
    ) -> None:
        """Script what happens to the nth request (and `times` - 1 more) of this method ("*": any), path and part.

        Every rule counts the requests that it matches; where several are due, the one scripted first acts.
        """
        with self.lock:
            self.faults.append(Fault(method, re.compile(path), action, nth, times, part))

    def arrived(self, request: Request) -> None:
        """Note a request and the faults that are meant for it."""
        with self.lock:
            self.requests.append(request)
            request.actions = [fault.action for fault in self.faults if fault.due(request)]
            request.fault = next(iter(request.actions), None)

    def clear(self) -> None:
        """Forget all requests and faults."""
        with self.lock:
            self.requests.clear()
            self.faults.clear()

    def find(self, method: str = "*", path: str = "", *, part: int | None = None) -> list[Any]:
        """The requests that match, in order of arrival."""
        pattern = re.compile(path)
        with self.lock:
            return [request for request in self.requests if request.matches(method, pattern, part)]

    def count(self, method: str = "*", path: str = "", *, part: int | None = None) -> int:
        return len(self.find(method, path, part=part))


# ---- HTTP -------------------------------------------------------------------------------------------------------


class HangUp(Exception):
    """The connection is to be reset."""


def reset_at_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Server(ThreadingHTTPServer):
    """One origin. Stops with all its connections."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        stand_in: StandIn,
        origin: str,
        answer: Callable[[Request, Any], Answer],
        handler: type[Handler],
        port: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(("127.0.0.1", port), handler)
        if tls:  # the handshake happens in the connection's own thread
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self.stand_in: Any = stand_in
        self.origin = origin
        self.answer = answer
        self.live: dict[Handler, threading.Thread] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for handler, thread in list(self.live.items()):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
        self.server_close()

    def shutdown_request(self, request: Any) -> None:
        if request.fileno() < 0:  # TLS has taken it over, and was ended with its handler
            return
        lingering = struct.unpack("ii", request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]
        if lingering:  # to be reset: no orderly end before it
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet where the client left, or did not like the certificate."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Log the request, let its fault act, answer."""

    protocol_version = "HTTP/1.1"
    server_version = "stand-in"
    disable_nagle_algorithm = True
    server: Server
    entry: Any
    raw_requestline: bytes
    unread = 0

    def setup(self) -> None:
        super().setup()
        self.server.live[self] = threading.current_thread()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            del self.server.live[self]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet: tests read the log of requests."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What arrived is no HTTP request, for example the rest of a body longer than announced."""
        line = self.raw_requestline.decode("latin-1").strip()
        self.server.stand_in.arrived(Request(self.server.origin, "?", line, {}, {}, status=code))
        super().send_error(code, message, explain)

    def serve(self) -> None:
        self.entry = self.parsed()
        self.unread = int(self.entry.headers.get("content-length", "0"))
        if "transfer-encoding" in self.entry.headers:  # its body is never read
            self.close_connection = True
        self.arrive()
        try:
            self.obey()
        except HangUp:
            reset_at_close(self.connection)
            self.close_connection = True
        except (ConnectionError, TimeoutError, ssl.SSLError):  # the client left
            self.close_connection = True
        except Exception as error:  # a defect of the stand-in: the test that started it is to fail
            if not self.server.stand_in.stopping.is_set():
                self.server.stand_in.errors.append(error)
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815

    def parsed(self) -> Request:
        """The request's head, for the log."""
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return Request(self.server.origin, self.command, unquote(url.path), query, headers)

    def arrive(self) -> None:
        self.server.stand_in.arrived(self.entry)

    def obey(self) -> None:
        """Let the fault act before anything is done, or go on."""
        match self.entry.fault:
            case Respond(status, body, headers, early):
                if not early:
                    self.drain()
                answer = json_answer(status, body) if isinstance(body, dict) else Answer(status, body)
                self.send(replace(answer, headers=answer.headers | headers))
                return
            case Reset(after):
                for _ in self.body(limit=after):
                    pass
                raise HangUp
            case Delay(seconds):
                self.server.stand_in.stopping.wait(seconds)
            case Hold(gate):
                while not gate.wait(0.02) and not self.server.stand_in.stopping.is_set():
                    pass
        self.proceed()

    def proceed(self) -> None:
        """Do what is asked for and say so, unless the fault has it otherwise."""
        answer = self.work()
        match self.entry.fault:
            case LoseAnswer():
                raise HangUp
            case Rewrite(change) if isinstance(answer.body, bytes):
                answer = replace(answer, body=json.dumps(change(json.loads(answer.body))).encode())
        self.send(answer)

    def work(self) -> Answer:
        try:
            answer = self.server.answer(self.entry, self.content())
        except BadBody as error:
            answer = self.server.stand_in.bad_body(error)
        except Refusal as error:
            answer = error.answer
        self.drain()
        return answer

    # -- the request's body

    def content(self) -> Any:
        """What the stand-in's `answer` gets of the body."""
        return self.body()

    def body(self, *, limit: int | None = None) -> Iterator[bytes]:
        """What is left of the body, block by block; at most `limit` bytes of it."""
        left = self.unread if limit is None else min(limit, self.unread)
        self.connection.settimeout(self.server.stand_in.stall_seconds)
        while left:
            try:
                block = self.rfile.read1(min(left, BLOCK))
            except TimeoutError:
                self.give_up()
                raise BadBody("RequestTimeout", "The client sent nothing for too long.") from None
            if not block:
                self.give_up()
                raise BadBody("IncompleteBody", "You did not provide the number of bytes of the Content-Length header")
            left -= len(block)
            self.unread -= len(block)
            self.entry.received += len(block)
            yield block
        self.connection.settimeout(None)

    def give_up(self) -> None:
        self.unread = 0
        self.close_connection = True

    def read_json(self) -> None:
        """Read a JSON body, for the log."""
        if "transfer-encoding" in self.headers:
            raise Refusal(json_answer(411, {"error": "the length of the body is unknown"}))
        raw = b"".join(self.body(limit=JSON_LIMIT))
        if raw:
            try:
                self.entry.body = json.loads(raw)
            except ValueError as error:
                raise Refusal(json_answer(400, {"error": f"invalid JSON: {error}"})) from None

    def drain(self) -> None:
        """Read what nobody wanted, so that the connection can go on."""
        with contextlib.suppress(BadBody, Refusal):
            if self.headers.get("Content-Type", "").startswith("application/json"):
                self.read_json()
            for _ in self.body():
                pass

    # -- the answer

    def send(self, answer: Answer) -> None:
        """Send it; where the body was not read to its end, let the client hear of it although it is still sending."""
        unread = self.unread > 0 or "transfer-encoding" in self.entry.headers
        if unread:
            self.close_connection = True
        self.entry.status = answer.status
        self.send_response(answer.status)
        for name, value in (*answer.headers.items(), *self.framing(answer).items()):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_blocks(answer)
        self.entry.answered = True
        if unread:
            self.linger()

    def framing(self, answer: Answer) -> dict[str, str]:
        """The headers that say where the answer ends, and whether another may follow."""
        end = {"Transfer-Encoding": "chunked"} if answer.chunked else {"Content-Length": str(answer.length)}
        return end | self.closing()

    def closing(self) -> dict[str, str]:
        return {"Connection": "close"} if self.close_connection else {}

    def send_blocks(self, answer: Answer) -> None:
        blocks = answer.blocks()
        fault = self.entry.fault
        if isinstance(fault, FlipBit):
            blocks = _flipped(blocks, fault.offset)
        elif isinstance(fault, Truncate):
            blocks = _cut(blocks, fault.after)
        for block in blocks:
            self.entry.sent += len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if answer.chunked else block)
        if isinstance(fault, Truncate):
            if not fault.clean:
                raise HangUp
            if not answer.chunked:  # only the end of the connection ends it
                self.close_connection = True
        if answer.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def linger(self) -> None:
        with contextlib.suppress(OSError):  # the client has left
            self.connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + self.server.stand_in.stall_seconds
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.rfile.read1(BLOCK):
                    return


def flip_bit(block: bytes, offset: int) -> bytes:
    """The block with the lowest bit of the byte at `offset` flipped, if it has one there."""
    if 0 <= offset < len(block):
        return block[:offset] + bytes([block[offset] ^ 1]) + block[offset + 1 :]
    return block


def _flipped(blocks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    for block in blocks:
        yield flip_bit(block, offset)
        offset -= len(block)


def _cut(blocks: Iterator[bytes], left: int) -> Iterator[bytes]:
    for block in blocks:
        if left <= 0:
            return
        yield block[:left]
        left -= len(block)

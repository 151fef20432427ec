"""What the Supervisely stand-ins share: a log of requests, scripted faults, and HTTP with bodies of unknown length.

The log, the faults and most of the handler are those of the BentoCloud stand-in.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tests.standins import bentocloud
from tests.standins.bentocloud import (
    BLOCK,
    JSON_LIMIT,
    Action,
    Answer,
    BadBody,
    Delay,
    Fault,
    FileSlice,
    FlipBit,
    Json,
    LoseAnswer,
    Refusal,
    Request,
    Reset,
    Respond,
    Rewrite,
    Truncate,
    html_error_page,
)

__all__ = [
    "Answer",
    "Body",
    "Delay",
    "FileSlice",
    "FlipBit",
    "Handler",
    "Json",
    "LoseAnswer",
    "Part",
    "Refusal",
    "Request",
    "Reset",
    "Respond",
    "Rewrite",
    "StandIn",
    "Truncate",
    "html_error_page",
    "json_answer",
    "read_form",
]


def json_answer(status: int, value: Any) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


@dataclass
class Body:
    """The body of a request, to be read once; JSON has been read already."""

    blocks: Iterator[bytes]
    raw: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return iter([self.raw]) if self.raw is not None else self.blocks


class StandIn:
    """A server on 127.0.0.1, started and stopped as a context manager; `answer` is what a subclass adds.

    `stall_seconds`: patience with a request's body.
    """

    def __init__(self, *, stall_seconds: float = 10) -> None:
        self.stall_seconds = stall_seconds
        self.url = ""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[Exception] = []
        self.stopping = threading.Event()
        self.lock = threading.RLock()

    def answer(self, request: Request, body: Body) -> Answer:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._server = _Server(self, "api", self.answer)
        self.url = self._server.url
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.stop()
        if self.errors and error is None:
            raise self.errors[0]

    def fault(self, method: str, path: str, action: Action, *, nth: int = 1, times: int | None = 1) -> None:
        """Script what happens to the nth request (and `times` - 1 more) of this method ("*": any) and path.

        Every rule counts the requests that it matches; where several are due, the one scripted first acts.
        """
        self.faults.append(Fault(method, re.compile(path), action, nth, times, None))

    def arrived(self, request: Request) -> None:
        """Note a request and the fault that is meant for it."""
        with self.lock:
            self.requests.append(request)
            matching = [fault for fault in self.faults if fault.matches(request)]
            for fault in matching:
                fault.seen += 1
            request.fault = next((fault.action for fault in matching if fault.active), None)

    def find(self, method: str = "*", path: str = "") -> list[Request]:
        """The requests that match, in order of arrival."""
        with self.lock:
            return [
                request
                for request in self.requests
                if method in ("*", request.method) and re.search(path, request.path)
            ]

    def count(self, method: str = "*", path: str = "") -> int:
        return len(self.find(method, path))


@dataclass
class Part:
    """One part of a form: a field with its value, or a file, which may have been stored elsewhere."""

    name: str
    filename: str | None = None
    mime: str = ""
    value: bytes = b""
    stored: Any = None


class Sink(Protocol):
    """Where a file of a form goes."""

    def write(self, block: bytes) -> object: ...

    def finish(self) -> Any: ...


def read_form(
    content_type: str, blocks: Iterable[bytes], incoming: Callable[[], AbstractContextManager[Sink]] | None = None
) -> list[Part]:
    """The parts of multipart/form-data in their order; files are written to `incoming` as they come, if given."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise Refusal(json_answer(400, {"error": "multipart/form-data is needed"}))
    parts: list[Part] = []
    headers: dict[str, str] = {}
    name, value = bytearray(), bytearray()
    sink: Sink | None = None

    def header_ends() -> None:
        headers[name.decode().lower()] = value.decode()
        name.clear()
        value.clear()

    def headers_end() -> None:
        nonlocal sink
        _, fields = parse_options_header(headers.get("content-disposition", ""))
        filename = fields.get(b"filename")
        parts.append(Part(fields.get(b"name", b"").decode(), None if filename is None else filename.decode()))
        parts[-1].mime = headers.get("content-type", "")
        headers.clear()
        sink = stack.enter_context(incoming()) if incoming and filename is not None else None

    def data(block: bytes, start: int, end: int) -> None:
        if sink:
            sink.write(block[start:end])
        else:
            parts[-1].value += block[start:end]

    def part_ends() -> None:
        parts[-1].stored = sink and sink.finish()

    callbacks: dict[str, Any] = {
        "on_header_field": lambda block, start, end: name.extend(block[start:end]),
        "on_header_value": lambda block, start, end: value.extend(block[start:end]),
        "on_header_end": header_ends,
        "on_headers_finished": headers_end,
        "on_part_data": data,
        "on_part_end": part_ends,
    }
    with ExitStack() as stack:
        parser = MultipartParser(options[b"boundary"], callbacks)
        for block in blocks:
            parser.write(block)
        parser.finalize()
    return parts


class Handler(bentocloud._Handler):
    """Takes chunked bodies, too, and leaves it to the stand-in what a body is."""

    chunked = False
    chunk_left = 0

    def serve(self) -> None:
        self.chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.chunk_left = 0
        super().serve()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = serve  # noqa: N815

    def work(self) -> Answer:
        try:
            answer = self.server.answer(self.entry, self.read())
        except FormParserError as error:
            answer = json_answer(400, {"error": "Bad form", "details": {"message": str(error)}})
        except BadBody as error:
            answer = json_answer(400, {"error": error.code, "details": {"message": error.message}})
        except Refusal as error:
            answer = error.answer
        self.drain()
        return answer

    def read(self) -> Body:
        """The body; JSON of a decent size is read at once, for the log."""
        if not self.headers.get("Content-Type", "").startswith("application/json"):
            return Body(self.body())
        raw = b"".join(self.body(limit=JSON_LIMIT))
        try:
            self.entry.body = json.loads(raw or b"null")
        except ValueError:
            self.entry.body = None
        return Body(iter(()), raw)

    def read_json(self) -> None:
        if self.entry.body is None:
            self.read()

    def body(self, *, limit: int | None = None) -> Iterator[bytes]:
        if not self.chunked:
            yield from super().body(limit=limit)
            return
        self.connection.settimeout(self.server.stand_in.stall_seconds)
        left = limit
        try:
            while left != 0 and self.next_chunk():
                block = self.rfile.read1(min(self.chunk_left, BLOCK, left or BLOCK))
                if not block:
                    raise ValueError  # noqa: TRY301
                self.chunk_left -= len(block)
                self.entry.received += len(block)
                left = None if left is None else left - len(block)
                if not self.chunk_left:
                    self.rfile.readline()
                yield block
        except (TimeoutError, ValueError):
            self.chunked = False
            self.give_up()
            raise BadBody("IncompleteBody", "The body ended before its last chunk") from None
        self.connection.settimeout(None)

    def next_chunk(self) -> bool:
        """Whether there is more of a chunked body, now at hand."""
        if self.chunked and not self.chunk_left:
            self.chunk_left = int(self.rfile.readline(64).split(b";")[0], 16)
            if not self.chunk_left:
                self.rfile.readline()
                self.chunked = False
        return self.chunked


class _Server(bentocloud._Server):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.RequestHandlerClass = Handler

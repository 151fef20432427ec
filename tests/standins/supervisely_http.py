"""What the Supervisely stand-ins share: bodies of unknown length, forms, and how a bad body is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tests.standins import http_server
from tests.standins.http_server import BLOCK, JSON_LIMIT, Answer, BadBody, Refusal, json_answer


@dataclass
class Body:
    """The body of a request, to be read once; JSON has been read already."""

    blocks: Iterator[bytes]
    raw: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return iter([self.raw]) if self.raw is not None else self.blocks


class StandIn(http_server.StandIn):
    """Says JSON of everything."""

    def __init__(self, *, stall_seconds: float) -> None:
        super().__init__(handler=Handler, stall_seconds=stall_seconds)

    def bad_body(self, error: BadBody) -> Answer:
        return json_answer(400, {"error": error.code, "details": {"message": error.message}})


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
        try:
            for block in blocks:
                parser.write(block)
            parser.finalize()
        except FormParserError as error:
            raise BadBody("Bad form", str(error)) from None
    return parts


class Handler(http_server.Handler):
    """Takes chunked bodies, too, and leaves it to the stand-in what a body is."""

    chunked = False
    chunk_left = 0

    def arrive(self) -> None:
        self.chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.chunk_left = 0
        super().arrive()

    def content(self) -> Body:
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
            self.content()

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

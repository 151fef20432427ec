"""A server that misbehaves on purpose: it sends exact bytes, drips, stalls, resets, and records what it was sent.

Each request is answered by the next script, every further one by the last. A script is a list of steps::

    with FaultServer([answer(503)], [answer(200, b"{}")]) as server:
        client.get(server.url + "/models")
    assert [request.target for request in server.requests] == ["/models", "/models"]

The request's body is read to its end before the script runs, unless the script begins with :class:`ReadSome`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

_KEPT = 1 << 20  # bytes of a body that are kept for the test to look at


@dataclass
class Received:
    """A request as it came.

    :param connection: the how-manieth connection it came over, from 0.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    connection: int
    body: bytes = b""
    body_length: int = 0

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def header_names(self) -> set[str]:
        """The names of all headers, in lower case."""
        return {key.lower() for key, _ in self.headers}


class Ended(Exception):
    """The connection or the server is over."""


class Talk:
    """One connection, as a step sees it."""

    def __init__(self, sock: socket.socket, number: int, stopping: threading.Event) -> None:
        self.sock = sock
        self.number = number
        self.stopping = stopping
        self.buffer = b""
        self.request: Received | None = None
        self.body_left = 0

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the server's end."""
        if self.stopping.wait(seconds):
            raise Ended

    def receive(self) -> bytes:
        """Return the next bytes."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        data = self.sock.recv(1 << 16)
        if not data:
            raise Ended
        return data

    def read_head(self) -> Received:
        """Read the next request up to its body."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.receive()
        head, _, self.buffer = head.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = [line.partition(":") for line in lines]
        self.request = Received(method, target, [(name, value.strip()) for name, _, value in pairs], self.number)
        self.body_left = int(self.request.header("Content-Length") or 0)
        return self.request

    def read_body(self, limit: int | None = None) -> None:
        """Read the body, or that many bytes of it."""
        assert self.request is not None
        left = self.body_left if limit is None else min(limit, self.body_left)
        while left > 0:
            data = self.receive()
            data, self.buffer = data[:left], data[left:] + self.buffer
            left -= len(data)
            self.body_left -= len(data)
            self.request.body_length += len(data)
            self.request.body += data[: _KEPT - len(self.request.body)]


class Step(Protocol):
    """One thing that the server does."""

    def run(self, talk: Talk) -> None: ...


@dataclass(frozen=True)
class Send:
    """Send exact bytes."""

    data: bytes

    def run(self, talk: Talk) -> None:
        talk.sock.sendall(self.data)


@dataclass(frozen=True)
class Drip:
    """Send bytes one at a time."""

    data: bytes
    every: float

    def run(self, talk: Talk) -> None:
        for value in self.data:
            talk.sock.sendall(bytes([value]))
            talk.wait(self.every)


@dataclass(frozen=True)
class Stall:
    """Do nothing: no reading, no writing."""

    seconds: float = 60.0

    def run(self, talk: Talk) -> None:
        talk.wait(self.seconds)


@dataclass(frozen=True)
class Reset:
    """End the connection with RST."""

    def run(self, talk: Talk) -> None:
        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Ended


@dataclass(frozen=True)
class Close:
    """End the connection."""

    def run(self, talk: Talk) -> None:
        raise Ended


@dataclass(frozen=True)
class ReadSome:
    """Read that many bytes of the body only."""

    count: int

    def run(self, talk: Talk) -> None:
        talk.read_body(self.count)


@dataclass(frozen=True)
class ReadRest:
    """Read what is left of the body."""

    def run(self, talk: Talk) -> None:
        talk.read_body()


@dataclass(frozen=True)
class Do:
    """Do something of the test's."""

    fn: Callable[[], object]

    def run(self, talk: Talk) -> None:
        self.fn()


@dataclass(frozen=True)
class Tunnel:
    """Be a proxy: connect to what was asked for, and pass bytes on."""

    def run(self, talk: Talk) -> None:
        assert talk.request is not None
        host, _, port = talk.request.target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as far:
            far.settimeout(None)
            talk.sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_pass_on, args=(far, talk.sock), daemon=True)
            back.start()
            _pass_on(talk.sock, far)
            back.join(1)
        raise Ended


def _drain(sock: socket.socket) -> None:
    """Take what the other side still sends: closing before would reset the connection and lose what we said."""
    with contextlib.suppress(OSError):
        sock.settimeout(1)
        while socket.socket.recv(sock, 1 << 16):  # past TLS
            pass


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Send:
    """Return the step that sends a whole answer."""
    lines = {"Content-Length": str(len(body)), **(headers or {})}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Send(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{text}\r\n".encode() + body)


# Answers that do not come within a test's time.
SLOW_ANSWERS: Mapping[str, list[Step]] = {
    "silence": [Stall()],
    "dripped headers": [Drip(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 1\r\n" * 1000, 0.02)],
    "dripped body": [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"), Drip(b" " * 10000, 0.02)],
}


class FaultServer:
    """The server; a context manager.

    :param scripts: what to do for each request.
    :param tls: speaks TLS with this.
    :param receive_buffer: of its sockets in bytes: a small one shows sooner that nothing is read.
    """

    def __init__(
        self, *scripts: Sequence[Step], tls: ssl.SSLContext | None = None, receive_buffer: int | None = None
    ) -> None:
        self.scripts = scripts
        self.tls = tls
        self.receive_buffer = receive_buffer
        self.requests: list[Received] = []
        self.connections = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()

    def __enter__(self) -> FaultServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        if self.receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2)

    @property
    def url(self) -> str:
        """The server's base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        """What was asked for, in order."""
        return [request.target for request in self.requests]

    def _start(self, fn: object, *args: object) -> None:
        thread = threading.Thread(target=fn, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1  # before the client can have an answer
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(Ended, OSError), self._opened(sock) as stream:
            talk = Talk(stream, number, self._stopping)
            while True:
                request = talk.read_head()
                with self._lock:
                    script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
                    self.requests.append(request)
                if not (script and isinstance(script[0], ReadSome)):
                    talk.read_body()
                for step in script:
                    step.run(talk)
                while talk.body_left:  # what comes now is no request
                    talk.receive()

    @contextlib.contextmanager
    def _opened(self, sock: socket.socket) -> Iterator[socket.socket]:
        with sock:
            # Else a small answer may wait for an acknowledgement, and be lost when the connection is then reset.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(sock)
            stream = sock
            try:
                if self.tls:
                    stream = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    with self._lock:
                        self._open.add(stream)
                    try:
                        stream.do_handshake()
                    except ssl.SSLError:
                        _drain(stream)
                        raise
                yield stream
            finally:
                with self._lock:
                    self._open -= {sock, stream}
                stream.close()

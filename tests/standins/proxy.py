"""A proxy for plain HTTP that passes requests on, until it is told to stall, to break, or to cut one of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

_BLOCK = 1 << 16


class Proxy:
    """The proxy; a context manager.

    :ivar requests: what was asked for, method and address.
    :ivar stalled: set once a request is left without an answer.
    :ivar passed: the bytes that went ``"up"`` and ``"down"``.
    :ivar cut: the directions in which an exchange was cut.
    :ivar lost: the requests whose answers were lost.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.stalled = threading.Event()
        self.passed = {"up": 0, "down": 0}
        self.cut: list[str] = []
        self.lost: list[str] = []
        self._loses = False
        self._to_cut: dict[str, int] = {}
        self._stalls_from: int | None = None
        self._breaks_from: int | None = None
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close_all()

    def stall(self, after: int) -> None:
        """Let so many more requests pass, and leave all others without an answer."""
        self._stalls_from = len(self.requests) + after

    def break_off(self, after: int) -> None:
        """Let so many more requests pass, and end the connections of all others."""
        self._breaks_from = len(self.requests) + after

    def cut_once(self, direction: str, after: int) -> None:
        """End the connection of the next exchange of which more than so many bytes go up, or come down."""
        self._to_cut[direction] = after

    def lose_answers(self) -> None:
        """Let every request that may change something be carried out, and end its connection in place of an answer.

        Of requests that are alike this is done to the first.
        """
        self._loses = True

    def go_on(self) -> None:
        """Pass everything on again."""
        self._stalls_from = self._breaks_from = None
        self._loses = False
        self.stalled.clear()
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), self._kept(near):
            head, body = self._read_head(near)
            if not head:
                return
            first, _, rest = head.partition(b"\r\n")
            method, address, _ = first.decode("latin-1").split(" ", 2)
            with self._lock:
                number = len(self.requests)
                self.requests.append(f"{method} {address}")
            if self._breaks_from is not None and number >= self._breaks_from:
                return
            if self._stalls_from is not None and number >= self._stalls_from:
                self.stalled.set()
                near.recv(_BLOCK)
                self._over.wait(60) if self._stalls_from is not None else None
                return
            url = urlsplit(address)
            assert url.hostname
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            lines = [line for line in rest.split(b"\r\n") if not line.lower().startswith((b"connection:", b"proxy-"))]
            with socket.create_connection((url.hostname, url.port or 80), timeout=30) as far, self._kept(far):
                far.settimeout(None)
                asked = f"{method} {target} HTTP/1.1\r\nConnection: close\r\n".encode("latin-1")
                far.sendall(asked + b"\r\n".join(lines) + b"\r\n\r\n" + body)
                up = threading.Thread(target=self._pass_on, args=(near, far, "up"), daemon=True)
                up.start()
                if self._is_lost(f"{method} {address}"):
                    while far.recv(_BLOCK):
                        pass
                else:
                    self._pass_on(far, near, "down")

    def _is_lost(self, request: str) -> bool:
        with self._lock:
            is_lost = self._loses and not request.startswith(("GET ", "HEAD ")) and request not in self.lost
            if is_lost:
                self.lost.append(request)
            return is_lost

    @contextlib.contextmanager
    def _kept(self, sock: socket.socket):  # type: ignore[no-untyped-def]
        with self._lock:
            self._open.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(sock)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    @staticmethod
    def _read_head(near: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            block = near.recv(_BLOCK)
            if not block:
                return b"", b""
            data += block
        head, _, body = data.partition(b"\r\n\r\n")
        return head, body

    def _pass_on(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                passed += len(block)
                with self._lock:
                    self.passed[direction] += len(block)
                    is_cut = passed > self._to_cut.get(direction, passed)
                    if is_cut:
                        del self._to_cut[direction]
                        self.cut.append(direction)
                if is_cut:
                    for each in (source, target):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                if direction == "down" and passed == len(block):  # whoever asks next must not take this connection
                    block = block.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                target.sendall(block)

"""Ports where something else answers than what is asked for, or nobody."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def nobody_listens() -> Iterator[str]:
    """Yield the URL of a port that refuses connections; it is held, so that nobody else gets it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def plain_port() -> Iterator[str]:
    """Yield an https URL whose port speaks plain HTTP."""

    def talk() -> None:
        with suppress(OSError), listener.accept()[0] as sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):  # closing before would reset the connection, and could lose the answer
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=talk, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"

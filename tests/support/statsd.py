"""A listener for stats, and a client that sends them as the statsd package's does, over UDP."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from datetime import timedelta

_lock = threading.Lock()
_sent: Counter[int] = Counter()  # by port: the system may be a moment late to deliver


class StatsClient:
    """What Airflow's stats need of a client: each call is one datagram in statsd's text protocol."""

    def __init__(self, host: str, port: int, prefix: str, _ipv6: bool = False) -> None:
        self._address = (host, port)
        self._prefix = prefix
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def incr(self, stat: str, count: int, _rate: float) -> None:
        self._send(f"{stat}:{count}|c")

    def timing(self, stat: str, took: timedelta) -> None:
        self._send(f"{stat}:{took.total_seconds() * 1000:.6f}|ms")

    def _send(self, line: str) -> None:
        with _lock:
            self._socket.sendto(f"{self._prefix}.{line}".encode(), self._address)
            _sent[self._address[1]] += 1


class Listener:
    """Receives stats on a free UDP port."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(60)
        self.port: int = self._socket.getsockname()[1]
        self._seen = _sent[self.port] = 0

    def received(self) -> dict[str, tuple[float, str, dict[str, str]]]:
        """Return name → value, kind and tags, of all that was sent since the last call; each name came once."""
        found: dict[str, tuple[float, str, dict[str, str]]] = {}
        while self._seen < _sent[self.port]:
            line = self._socket.recv(4096).decode()
            self._seen += 1
            head, _, measured = line.rpartition(":")
            name, *tags = head.split(",")
            if ".modelsync." not in name:  # Airflow's own
                continue
            value, _, kind = measured.partition("|")
            assert name not in found, f"{name} was sent twice"
            found[name] = (float(value), kind, dict(tag.split("=", 1) for tag in tags))
        return found

    def close(self) -> None:
        self._socket.close()

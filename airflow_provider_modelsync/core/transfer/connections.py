"""urllib3 connections that a watchdog can observe and break off. Imported by the mover once it moves bytes."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from airflow_provider_modelsync.core.flow.parallel import OutOfTime, within
from airflow_provider_modelsync.core.http.addresses import Found, Reach
from airflow_provider_modelsync.core.http.network import context_for, proxy_for
from airflow_provider_modelsync.core.redact import guard_logs, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.sendfile import FilePiece
from airflow_provider_modelsync.core.transfer.watchdog import Line, Watch

# Bytes given to TLS at a time. It takes all of them or none, so this is how coarsely progress shows.
_SLICE = 256 << 10
# Seconds and microseconds for which the kernel gathers what a read wants, or takes what is sent: so late a watch hears
# of it.
_PATIENCE = struct.pack("@ll", 0, 100_000)
_active = threading.local()

Pools = dict[tuple[str | None, bool], urllib3.PoolManager]


@contextlib.contextmanager
def observed_by(watch: Watch, reach: Reach) -> Iterator[None]:
    """Let connections used by this thread report to a watch, and reach only what they may, while the block runs."""
    before = getattr(_active, "watch", None), getattr(_active, "reach", None)
    _active.watch, _active.reach = watch, reach
    try:
        yield
    finally:
        _active.watch, _active.reach = before


def pool_manager(
    proxy: str | None, context: ssl.SSLContext | None, settings: RegistrySettings, *, connections: int
) -> urllib3.PoolManager:
    """Return a pool of observed connections.

    :param proxy: the proxy they all use.
    :param context: for TLS; without one it serves plain HTTP.
    :param settings: the connection.
    :param connections: how many to keep for each server.
    """
    guard_logs(secrets_of(settings))
    options: dict[str, Any] = {"ssl_context": context, "maxsize": connections, "num_pools": 8}
    manager: urllib3.PoolManager
    if proxy is None:
        manager = urllib3.PoolManager(**options)
    else:
        url = urllib3.util.parse_url(proxy)
        # Not by urllib3, which takes Latin-1 only and quotes the letter that is none.
        coded = base64.b64encode(unquote(url.auth).encode()).decode() if url.auth else ""
        headers = {"proxy-authorization": f"Basic {coded}"} if coded else None
        manager = urllib3.ProxyManager(
            url._replace(auth=None).url, proxy_headers=headers, proxy_ssl_context=context, **options
        )
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager


def pool_for(url: str, pools: Pools, settings: RegistrySettings) -> urllib3.PoolManager:
    """Return the pool for a URL, which its proxy and its scheme decide, and keep it in ``pools``."""
    proxy = proxy_for(url, settings)
    key = proxy, url.startswith("http:")
    if key not in pools:
        context = context_for(url, proxy, settings)
        pools.setdefault(key, pool_manager(proxy, context, settings, connections=settings.max_workers))
    return pools[key]


def timeout(connect_seconds: float) -> urllib3.Timeout:
    """Return a limit for connecting; for all else the watchdog decides."""
    return urllib3.Timeout(connect=connect_seconds, read=None)


def reply() -> http.client.HTTPResponse:
    """Return the answer that this thread is reading, to be read without urllib3's copies."""
    answer: http.client.HTTPResponse = _active.reply
    return answer


class _Answer(http.client.HTTPResponse):
    """An answer whose bytes are counted as they come from the socket."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Counted(self.fp.detach(), sock))
        _active.reply = self


class _Counted(io.RawIOBase):
    """The bytes of a socket, counted.

    :param raw: the file over the socket; it keeps the socket open, and is closed with this one.
    :param sock: is read directly: TLS gives 16 KiB at a time, so that each layer between costs something.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock: Any = sock
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._watch: Watch = _active.watch
        if not self._is_tls:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._is_tls:
            count: int = self._sock.read(len(buffer), buffer)
        else:
            count = self._received(buffer)
        if count:
            self._watch.moved(count)
        return count

    def _received(self, buffer: Any) -> int:
        """Have the kernel fill a large buffer, rather than return for each packet. Headers take a small one."""
        flags = socket.MSG_WAITALL if len(buffer) > io.DEFAULT_BUFFER_SIZE else 0
        while True:
            with contextlib.suppress(BlockingIOError):  # nothing has come for so long
                count: int = self._sock.recv_into(buffer, 0, flags)
                return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Observed(HTTPConnection):
    """What plain and TLS connections share."""

    response_class = _Answer
    _line: Line | None = None
    _poll: select.poll | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        _active.watch.use(self._line)
        super().request(*args, **kwargs)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _active.watch.expect_answer()
        response = super().getresponse()
        _active.watch.expect_bytes()
        return response

    def send(self, data: Any) -> None:
        """Send bytes, unless an answer has already come: then it is time to read that."""
        if self.sock is None:
            self.connect()
        self.sock.settimeout(None)  # the watchdog decides
        poll = self._polled()
        try:
            if isinstance(data, FilePiece):
                done = _send_piece(self.sock, data, poll) if poll else 0
                if done == len(data):
                    return
                data = data.read(done)  # which also tells why the kernel could not
            view = memoryview(data).cast("B")
            while view:
                sent = _taken(partial(self.sock.send, view), poll) if poll else self.sock.send(view[:_SLICE])
                _active.watch.moved(sent)
                view = view[sent:]
        except (ConnectionError, ssl.SSLError) as error:
            # A server that refuses a body answers and closes. On this error urllib3 looks for the answer.
            raise BrokenPipeError from error

    def _polled(self) -> select.poll | None:
        """Return what waits for a plain connection; under TLS other records than an answer may come."""
        if type(self.sock) is not socket.socket:
            return None
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN | select.POLLOUT)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        return self._poll

    def close(self) -> None:
        super().close()
        self._line = self._poll = None

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 does, but so that it can be broken off."""
        try:
            found = self._looked_up()
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(self.host, self, socket.gaierror(str(error))) from error
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            line = Line(sock)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.timeout)
                _active.watch.use(line)
                sock.connect(address)
            except OSError as error:
                problem = error
                sock.close()
                _active.watch.use(None)
                _active.watch.check(f"connecting to {self.host}")
            else:
                self._line = line
                return sock
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from problem
        raise NewConnectionError(self, str(problem)) from problem

    def _looked_up(self) -> list[Found]:
        """Look the host up so that it can be broken off: a name server that says nothing keeps a thread for long."""
        watch: Watch = _active.watch
        reach: Reach = _active.reach

        def check() -> None:
            watch.look()
            watch.check(f"looking up {self.host}")

        look_up = partial(reach.resolve, self._dns_host, self.port, is_proxy=self.proxy is not None)
        seconds = self.timeout if isinstance(self.timeout, (int, float)) else None
        try:
            return within(look_up, check=check, seconds=seconds, name="modelsync-lookup")
        except OutOfTime:
            raise ConnectTimeoutError(self, "the host name was not looked up in time") from None


class _ObservedTls(_Observed, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Observed


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _ObservedTls


def _taken(send: Callable[[], int], poll: select.poll) -> int:
    """Send as much as the kernel takes in a moment; raise once an answer has come."""
    while True:
        if poll.poll()[0][1] & select.POLLIN:
            raise BrokenPipeError
        with contextlib.suppress(BlockingIOError):  # it has taken nothing
            return send()


def _send_piece(sock: socket.socket, piece: FilePiece, poll: select.poll) -> int:
    """Have the kernel send a piece as far as it can, and return how far that was."""
    done, size = 0, len(piece)
    while done < size:
        try:
            sent = _taken(partial(piece.send, sock.fileno(), done, size - done), poll)
        except ConnectionError:
            raise
        except OSError:  # of the file, or one that says that the two do not fit
            break
        if not sent:
            break
        _active.watch.moved(sent)
        done += sent
    return done

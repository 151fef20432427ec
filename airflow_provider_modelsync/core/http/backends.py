"""How httpx connects: to addresses that were judged. Imported with the first request, as httpx loads its own.

The byte mover has the same in :mod:`~airflow_provider_modelsync.core.transfer.connections`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from functools import cache
from threading import Thread
from typing import Any

import anyio
import httpcore

from airflow_provider_modelsync.core.flow.exchange import check_wanted
from airflow_provider_modelsync.core.http.addresses import Found, Reach


class Backend(httpcore.SyncBackend):
    """Connects to nothing but addresses that were judged: a second look-up could answer something else."""

    def __init__(self, reach: Reach, *, is_proxy: bool) -> None:
        self._reach = reach
        self._is_proxy = is_proxy

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = self._reach.resolve(host, port, is_proxy=self._is_proxy)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(_lookup_error(error)) from error  # the cause gets lost on the way, not this
        problem: Exception = httpcore.ConnectError("no address")
        for address, seconds in _one_by_one(found, timeout):
            try:
                return _Stream(super().connect_tcp(address, port, seconds, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class _Stream(httpcore.NetworkStream):
    """A connection that is not read from any more once nobody waits for the answer."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        check_wanted()
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        check_wanted()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AsyncBackend(httpcore.AnyIOBackend):
    """As :class:`Backend`, for an event loop."""

    def __init__(self, reach: Reach, *, is_proxy: bool) -> None:
        self._reach = reach
        self._is_proxy = is_proxy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                found = await self._reach.aresolve(host, port, is_proxy=self._is_proxy)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the name was not looked up in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(_lookup_error(error)) from error  # the cause gets lost on the way, not this
        problem: Exception = httpcore.ConnectError("no address")
        for address, seconds in _one_by_one(found, timeout):
            try:
                return await super().connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


def connect_by(pool: Any, backend: Backend | AsyncBackend) -> None:
    """Let a pool of httpx connect by a backend of ours, which httpx itself has no argument for."""
    if not isinstance(pool._network_backend, (httpcore.NetworkBackend, httpcore.AsyncNetworkBackend)):
        raise TypeError("this version of httpx connects in an unknown way")
    pool._network_backend = backend


@cache
def load_all() -> None:
    """Have anyio load now what it would load at the first request, while an event loop waits for it."""
    thread = Thread(target=anyio.run, args=(anyio.sleep, 0))  # whoever calls may be on a loop, which cannot run another
    thread.start()
    thread.join()


def _lookup_error(error: Exception) -> Exception:
    return error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "no host name")


def _one_by_one(found: list[Found], timeout: float | None) -> Iterator[tuple[str, float | None]]:
    """Yield addresses with the seconds that each may take: all of them together get the time for one host."""
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    end = None if timeout is None else time.monotonic() + timeout
    for number, address in enumerate(addresses):
        rest = None if end is None else max(end - time.monotonic(), 0.1) / (len(addresses) - number)
        yield address, rest

"""One request, one answer, its body read within limits: the only place where httpx clients are told to send.

It knows nothing of retries or credentials. Bodies are decoded here rather than by httpx, which unpacks a
compressed answer of any size.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Iterator

import httpx

from airflow_provider_modelsync.core.errors import RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import OutOfTime, within
from airflow_provider_modelsync.core.redact import show_url

ANSWER_BYTES = 4 << 20  # of a successful answer, decoded, unless the request allows for more
LISTING_BYTES = 8 << 20  # of one that tells all that there is, without pages
ERROR_BYTES = 64 << 10  # of any other; the rest is not even received
SLICE = 512 << 10  # bytes unpacked at once: an event loop waits that long
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_this_thread = threading.local()
_ANSWER_BYTES = "modelsync_answer_bytes"


def allow(request: httpx.Request, answer_bytes: int) -> httpx.Request:
    """Say how large a successful answer to a request may be, decoded, and return the request."""
    request.extensions[_ANSWER_BYTES] = answer_bytes
    return request


def send(
    client: httpx.Client,
    request: httpx.Request,
    *,
    cancel: CancelToken,
    seconds: float | None = None,
) -> httpx.Response:
    """Send a request once.

    It runs in a thread of its own, as a socket that gives nothing, or a byte now and then, cannot be interrupted. A
    thread left behind ends with the next byte, or the client's own timeouts, and holds up nothing.

    :param client: the client, which must not follow redirects.
    :param request: the request.
    :param cancel: ends the wait.
    :param seconds: how long the whole exchange may take.
    :return: the answer with its body, which is cut at 64 KiB unless the status says success.
    :raises httpx.ReadTimeout: when ``seconds`` have passed.
    :raises RegistryUnavailable: when a successful answer is larger than the request allows, by default 4 MiB.
    """
    wanted = CancelToken(cancel)

    def work() -> httpx.Response:
        _this_thread.wanted = wanted
        return _send(client, request)

    try:
        return within(work, check=cancel.check, seconds=seconds, name="modelsync-exchange")
    except OutOfTime:
        raise _too_late(request, seconds) from None
    finally:
        wanted.cancel()


def check_wanted() -> None:
    """Raise :class:`Cancelled` when nobody waits any more for the exchange that this thread carries out.

    A server that sends a byte now and then would keep the thread and its connection for ever.
    """
    wanted: CancelToken | None = getattr(_this_thread, "wanted", None)
    if wanted is not None:
        wanted.check()


async def asend(client: httpx.AsyncClient, request: httpx.Request, *, seconds: float | None = None) -> httpx.Response:
    """Send a request once, on an event loop. As :func:`send`; cancelling the task ends it."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await _asend(client, request)
    except TimeoutError:
        if limit.expired():
            raise _too_late(request, seconds) from None
        raise


def _send(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    response = client.send(request, stream=True, follow_redirects=False)
    try:
        body = _Body(response)
        for raw in response.iter_raw():
            for _ in body.add(raw):
                pass
            if body.is_full:
                break
    finally:
        response.close()
    return body.whole()


async def _asend(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        body = _Body(response)
        async for raw in response.aiter_raw():
            for _ in body.add(raw):
                await asyncio.sleep(0)
            if body.is_full:
                break
    finally:
        await response.aclose()
    return body.whole()


class _Body:
    """Collects an answer's body, decoded, up to its limit.

    :param response: the answer, its body not read.
    :raises httpx.DecodingError: when a successful answer is coded in a way that was not asked for.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        allowed: int = response.request.extensions.get(_ANSWER_BYTES, ANSWER_BYTES)
        self._limit = allowed if response.is_success else ERROR_BYTES
        self._content = bytearray()
        self._inflate: zlib._Decompress | None = None
        self._readable = True
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        if coding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif coding not in ("", "identity"):
            self._give_up(f"content coding {coding!r}")

    @property
    def is_full(self) -> bool:
        """Whether no more bytes are wanted."""
        return not self._readable or len(self._content) > self._limit

    def add(self, raw: bytes) -> Iterator[None]:
        """Take bytes as received; stop in between where they unpack to many."""
        while raw and not self.is_full:
            room = self._limit - len(self._content) + 1  # one more than allowed tells that there is more
            if self._inflate is None:
                self._content += raw[:room]
                return
            try:
                self._content += self._inflate.decompress(raw, min(room, SLICE))
            except zlib.error as error:
                self._give_up(str(error))
            raw = self._inflate.unconsumed_tail
            if raw:
                yield

    def whole(self) -> httpx.Response:
        """Return the answer with the body it has now."""
        request = self._response.request
        if len(self._content) > self._limit and self._response.is_success:
            shown = show_url(request.url, request.extensions.get("modelsync_secrets", ()))
            raise RegistryUnavailable(f"{request.method} {shown}: the answer is larger than {self._limit >> 20} MiB")
        headers = self._response.headers.copy()
        if headers.pop("Content-Encoding", None):
            headers.pop("Content-Length", None)
        return httpx.Response(
            self._response.status_code,
            headers=headers,
            content=bytes(self._content[: self._limit]),
            request=request,
        )

    def _give_up(self, why: str) -> None:
        # The status of an error says enough without its body; a success is worth nothing without.
        if self._response.is_success:
            raise httpx.DecodingError(f"the body cannot be decoded: {why}", request=self._response.request)
        self._readable = False


def _too_late(request: httpx.Request, seconds: float | None) -> httpx.ReadTimeout:
    return httpx.ReadTimeout(f"no complete answer within {seconds:.1f} s", request=request)

"""How a download on a Pieces host goes on: its progress socket, and what messages and snapshots together mean.

No public text says whether the socket closes after the last message, pings, or misses one, so it is only ever a hint:
a message says when to look, the model's record decides. Facts come from the public OpenAPI document, and from public
TypeScript clients of this socket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_modelsync.core.errors import RegistryUnavailable, VersionFailed
from airflow_provider_modelsync.core.flow.threads import Threads
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.http.addresses import Reach, origin_of
from airflow_provider_modelsync.core.http.policy import USER_AGENT, Backoff
from airflow_provider_modelsync.core.redact import excerpt, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection, connect

    from airflow_provider_modelsync.core.registries.pieces.api import PiecesModel

_INITIALIZED, _IN_PROGRESS, _UNKNOWN = "INITIALIZED", "IN-PROGRESS", "UNKNOWN"
_COMPLETED, _FAILURES = "COMPLETED", frozenset({"FAILED", "CANCELED"})
# After these the record has something to say.
_TELLING = _FAILURES | {_COMPLETED, "RESET"}
_IDLE_LOOKS = 2  # in a row: a record may lag behind its download

_LOG_SECONDS, _LOG_STEP = 10.0, 10.0  # a line in the log after so many seconds or percent

_PING_SECONDS = _PONG_SECONDS = 20.0
_SILENT_SECONDS = 60.0  # an idle socket is normal; a new one says at least where the download stands
_STEADY_SECONDS = 30.0  # a socket that held so long was no failure
_CLOSE_SECONDS = 1.0
_MESSAGE_BYTES = 64 << 10
_QUEUE = 64  # messages; further ones wait in the socket
BACKOFF = Backoff(first=1.0)

_log = logging.getLogger("modelsync")
# The library writes headers at level DEBUG.
_wire_log = logging.getLogger("modelsync.socket")
_wire_log.setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of the progress socket.

    :param text: as it came.
    :param is_greeting: it is the first on its connection: perhaps of an earlier download.
    """

    text: str | bytes
    is_greeting: bool = False


class DownloadProgress(NamedTuple):
    """How far a download is.

    :param percent: 0 to 100; never less than was told before.
    :param state: Pieces OS' own word: ``INITIALIZED``, ``IN-PROGRESS``, ``COMPLETED`` or one that is new.
    """

    percent: float
    state: str

    @classmethod
    def done(cls) -> DownloadProgress:
        return cls(100.0, _COMPLETED)


class Outcome:
    """What messages and records say about one download; it does no I/O.

    :param name: the model's, for messages.
    :param clock: seconds, monotonic.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._status: str | None = None
        self._is_greeting = False
        self._idle_looks = 0
        self._logged, self._logged_at = 0.0, clock()
        self._progress = DownloadProgress(0.0, _INITIALIZED)
        self._told: DownloadProgress | None = None

    def told(self) -> DownloadProgress | None:
        """Return how far the download is, unless that was told before."""
        if self._progress == self._told:
            return None
        self._told = self._progress
        return self._told

    def hear(self, heard: Heard) -> bool:
        """Take a message; return whether the model's record should be looked at now."""
        status, percentage = _read(heard.text)
        if percentage is not None and not heard.is_greeting and status not in _TELLING:
            self._show(percentage)
            percent = max(self._progress.percent, percentage)
            state = status if status not in (None, _UNKNOWN) else _IN_PROGRESS
            self._progress = DownloadProgress(percent, excerpt(state))
        if status is None:
            return False
        is_news = status != self._status
        self._status, self._is_greeting = status, heard.is_greeting
        return is_news and status in _TELLING

    def see(self, record: PiecesModel, *, is_prompted: bool = False) -> bool:
        """Take a record that was read after the download was asked for; return whether the model is there.

        :param is_prompted: a message gave reason to look: the record may lag behind it.
        :raises VersionFailed: when the download has failed, or somebody has cancelled it.
        :raises RegistryUnavailable: when it has ended without a word.
        """
        if record.downloaded:
            return True
        if record.downloading:
            self._idle_looks = 0
            return False
        self._idle_looks += not is_prompted
        is_sure = self._idle_looks >= _IDLE_LOOKS
        if self._status in _FAILURES and (is_sure or not self._is_greeting):
            raise VersionFailed(f"the download of {self._name} has ended: Pieces OS says {self._status}")
        if is_sure:
            said = f"its last word was {excerpt(self._status)}" if self._status else "nothing was said about it"
            raise RegistryUnavailable(
                f"Pieces OS downloads {self._name} no more, and does not have it: {said}. "
                "It may have been restarted; another try begins the download again"
            )
        return False

    def _show(self, percentage: float) -> None:
        rise, waited = percentage - self._logged, self._clock() - self._logged_at
        if rise >= _LOG_STEP or (rise > 0 and waited >= _LOG_SECONDS):
            _log.info("%s: %.0f %% downloaded", self._name, percentage)
            self._logged, self._logged_at = percentage, self._clock()


def _read(text: str | bytes) -> tuple[str | None, float | None]:
    """Return status and percentage of a message, each ``None`` when it makes no sense."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(message, dict):
        return None, None
    status, percentage = message.get("status"), message.get("percentage")
    if not isinstance(percentage, (int, float)) or isinstance(percentage, bool) or not math.isfinite(percentage):
        percentage = None
    return (
        status if isinstance(status, str) else None,
        None if percentage is None else min(max(float(percentage), 0.0), 100.0),
    )


class ProgressSocket:
    """Listens to one model's progress and connects again, ever less often, whatever happens.

    It never fails: without it, or the ``websockets`` library, there is only less to be told on the way.

    :param url: of the socket, ``ws`` or ``wss``.
    :param settings: the connection.
    :param headers: for the handshake.
    :raises InvalidInput: for certificates and proxies that cannot be used.
    """

    def __init__(self, url: str, settings: RegistrySettings, headers: Mapping[str, str]) -> None:
        self._url = url
        self._settings = settings
        self._secrets = secrets_of(settings)
        proxy = network.proxy_for(url, settings)
        self._options: dict[str, Any] = {
            "additional_headers": dict(headers),
            "user_agent_header": USER_AGENT,
            "proxy": proxy,
            "open_timeout": network.CONNECT_SECONDS,
            "ping_interval": _PING_SECONDS,
            "ping_timeout": _PONG_SECONDS,
            "close_timeout": _CLOSE_SECONDS,
            "max_size": _MESSAGE_BYTES,
            "compression": None,
            "logger": _wire_log,
        }
        if url.startswith("wss:"):
            self._options["ssl"] = network.ssl_context(settings)
        if proxy and proxy.startswith("https:"):
            self._options["proxy_ssl"] = network.ssl_context(settings)
        self._heard: asyncio.Queue[Heard] = asyncio.Queue(_QUEUE)
        self._tried = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._trouble: str | None = None

    async def open(self) -> None:
        """Begin to listen; return once the first attempt to connect has come to its end."""
        self._listener = asyncio.create_task(self._listen())
        await self._tried.wait()

    async def next(self, seconds: float) -> Heard | None:
        """Return the next message, or ``None`` when there is none within some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                return await self._heard.get()
        return None

    async def waiting(self) -> list[Heard]:
        """Return the messages that have come and were not returned yet."""
        return [self._heard.get_nowait() for _ in range(self._heard.qsize())]

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=_CLOSE_SECONDS)

    async def _listen(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            start = loop.time()
            try:
                await self._listen_once()
            except Exception as error:  # of whatever kind: the model's record decides
                self._say(error)
            self._tried.set()
            failures = 1 if loop.time() - start >= _STEADY_SECONDS else failures + 1
            await asyncio.sleep(BACKOFF.delay(failures))

    async def _listen_once(self) -> None:
        async with await self._connected() as connection:
            self._tried.set()
            is_greeting = True
            while True:
                async with asyncio.timeout(_SILENT_SECONDS):
                    text = await connection.recv()
                await self._heard.put(Heard(text, is_greeting))
                is_greeting = False

    async def _connected(self) -> ClientConnection:
        connect, (*others, last) = await Threads.of(self._settings.conn_id).run(self._prepared)
        for way in others:
            with suppress(OSError):
                return await connect(self._url, **way, **self._options)
        return await connect(self._url, **last, **self._options)

    def _prepared(self) -> tuple[type[connect], list[dict[str, Any]]]:
        """Load the library and look the host up, which both may take a while; a proxy looks up for itself."""
        from websockets.asyncio.client import connect

        class Connect(connect):
            def process_redirect(self, exc: Exception) -> Exception | str:
                return exc  # our headers are for no other server

        if self._options["proxy"]:
            return Connect, [{}]
        _, host, port = origin_of(self._url)
        found = Reach(self._settings, self._url).resolve(host, port or 0)
        return Connect, [{"host": address[0]} for *_, address in found]

    def _say(self, error: Exception) -> None:
        trouble = excerpt(f"{type(error).__name__}: {error}", self._secrets)
        if trouble != self._trouble:
            _log.info("no live progress for now, the model's record is looked at instead: %s", trouble)
        self._trouble = trouble

"""The byte mover: every body of size goes through here, in threads, on the worker.

It knows URLs, headers and blocks of bytes, and neither registries nor Airflow. It sends a credential only where its
caller names one, and to presigned URLs nothing that is not part of the signature. urllib3 is loaded at the first use.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
    SourceChanged,
    TransferStalled,
    from_os_error,
)
from airflow_provider_modelsync.core.failure import again
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import generation
from airflow_provider_modelsync.core.http.addresses import (
    MAX_REDIRECTS,
    REDIRECTS,
    Reach,
    credentials_in,
    headers_for,
    redirect_target,
)
from airflow_provider_modelsync.core.http.faults import NotSent, ServerBusy, check_headers, classify, status_error
from airflow_provider_modelsync.core.http.network import CONNECT_SECONDS
from airflow_provider_modelsync.core.http.policy import USER_AGENT, Backoff
from airflow_provider_modelsync.core.http.storage import Refusal, UrlExpired, is_url_over
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.sendfile import FilePiece
from airflow_provider_modelsync.core.transfer.watchdog import Pace, Watch, Watchdog

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.transfer.connections import Pools

T = TypeVar("T")

BLOCK = 1 << 20  # bytes read or sent at a time
ANSWER_BYTES = 64 << 10  # of an answer that is not the wanted bytes
LONGEST_WAIT = 300.0  # seconds that a Retry-After may cost between two tries
PASSING: tuple[type[ModelSyncError], ...] = (RegistryUnavailable, TransferStalled)
UNPROCESSED: tuple[type[ModelSyncError], ...] = (NotSent, ServerBusy)

_BODY_REDIRECTS = frozenset({307, 308})  # the others let clients drop the body
_log = logging.getLogger("modelsync")


class ReadInto(Protocol):
    """A body that fills buffers, as raw files do."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Read(Protocol):
    """A body that returns bytes, as most file-like objects do."""

    def read(self, size: int, /) -> bytes: ...


class InPieces(Protocol):
    """A body whose blocks are there already, or are ranges of a file that the kernel may send by itself."""

    def pieces(self) -> Generator[memoryview, None, None] | Generator[FilePiece, None, None]: ...


BodyFactory = Callable[[], ReadInto | Read | InPieces]
Block = bytes | memoryview | FilePiece


@dataclass(frozen=True, slots=True)
class MovedResponse:
    """What a server answered.

    :param url: who answered, for messages: no query.
    :param status: the status.
    :param headers: the headers; names in any case of letters.
    :param body: at most 64 KiB, as they came.
    :param secrets: what messages must not show.
    :param is_over: whether the URL's time is over; ``None`` when it does not tell.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    secrets: tuple[str, ...] = ()
    is_over: bool | None = None

    def raise_for_status(self, doing: str, *, not_found: type[ModelSyncError] = InvalidInput) -> None:
        """Raise what a registry's refusal means, as :func:`.http.policy.raise_for_status` does."""
        error = status_error(
            self.status, self.headers, self._text, self._named(doing), not_found=not_found, secrets=self.secrets
        )
        if error:
            raise error

    def raise_for_store(self, doing: str, *, not_found: type[ModelSyncError] = InvalidInput) -> None:
        """Raise what the refusal of a presigned URL means.

        :param doing: what was being done, for the message.
        :param not_found: what a 404 means here.
        :raises UrlExpired: when a new URL may do.
        :raises SumRefused: when another checksum may do.
        """
        if not 200 <= self.status < 300:
            raise self._refusal.error(
                self._named(doing),
                not_found=not_found,
                secrets=self.secrets,
                is_signed=True,
                is_over=self.is_over,
            )

    @property
    def store_code(self) -> str | None:
        """The error code in an S3 answer, e.g. ``"NoSuchUpload"``; may come with status 200."""
        return self._refusal.code or None

    @property
    def _refusal(self) -> Refusal:
        return Refusal.read(self.status, self.headers, self._text)

    @property
    def _text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def _named(self, doing: str) -> str:
        return f"{doing} ({self.url})"


class Download:
    """An answer whose status and headers are there, and whose bytes are still to come.

    :param head: the answer as far as it is known.
    :param source: gives the bytes as they are stored.
    :param watch: observes the transfer.
    """

    def __init__(self, head: MovedResponse, source: ReadInto, watch: Watch) -> None:
        self._head = head
        self._source = source
        self._watch = watch
        self.on_bytes: Callable[[int], None] | None = None  # told how many bytes have come
        self.status = head.status
        self.headers = head.headers
        self.received = 0
        self.complete = False

    @property
    def length(self) -> int | None:
        """How many bytes the server announced; ``None`` when it did not say."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return None
        value = self.headers.get("Content-Length", "")
        return int(value) if value.isascii() and value.isdigit() else None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a buffer as far as bytes come, and return how far; 0 at the end.

        :raises RegistryUnavailable: when the connection ends before the announced length.
        :raises TransferStalled: when bytes stop moving.
        """
        doing = f"receiving {self._head.url}"
        with _translated(self._watch, doing):
            self._watch.resume()
            try:
                count = self._source.readinto(buffer) or 0
            finally:
                self._watch.pause()
            self._watch.check(doing)  # a connection that was broken off looks like an end
        self.received += count
        if count and self.on_bytes:
            self.on_bytes(count)
        if self.received == self.length or (not count and self.length is None):
            self.complete = True
        elif not count and len(buffer):
            raise RegistryUnavailable(f"{doing}: the body ended after {self.received} of {self.length} bytes")
        return count

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes in blocks of at most 1 MiB. Each is valid until the next is asked for."""
        buffer = memoryview(bytearray(BLOCK if self.length is None else min(BLOCK, self.length)))
        while not self.complete and (count := self.readinto(buffer)):
            yield buffer[:count]

    def answer(self) -> MovedResponse:
        """Return the answer as one that holds no wanted bytes: at most 64 KiB of it are read."""
        body = bytearray(ANSWER_BYTES)
        view, filled = memoryview(body), 0
        with contextlib.suppress(RegistryUnavailable):  # a cut error page still says what is wrong
            while not self.complete and (count := self.readinto(view[filled:])):
                filled += count
        return replace(self._head, body=bytes(view[:filled]))

    def whole(self, method: str, largest: int) -> MovedResponse:
        """Return the answer to a small request with all its bytes.

        :raises RegistryUnavailable: when it is cut, or larger than ``largest`` bytes.
        """
        if method == "HEAD":
            self._source.readinto(memoryview(bytearray(1)))  # of which it has none: so that the next may follow
            self.complete = True
            return self._head
        if not 200 <= self.status < 300:
            return self.answer()
        body = bytearray()
        for block in self.blocks():
            body += block
            if len(body) > largest:
                raise RegistryUnavailable(f"{self._head.url} sent more than {largest >> 20} MiB")
        return replace(self._head, body=bytes(body))


class Mover:
    """Sends and receives bodies of size. May be used by any number of threads at a time.

    :param settings: the connection.
    :param base_url: the connection's base URL, where that is not its ``host``; decides which redirects are followed.
    :param cancel: ends all work of this mover.
    :param pace: what counts as moving.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        base_url: str | None = None,
        cancel: CancelToken | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = secrets_of(settings)
        self._base_url = base_url
        self._reach = Reach(settings, base_url)
        self._cancel = cancel or CancelToken()
        self._pace = pace or Pace()
        self._watchdog = Watchdog()
        self._pools: Pools = {}
        self._generation = generation()

    def close(self) -> None:
        """Close the connections kept for later."""
        for pool in self._pools.values():
            pool.clear()

    def put(
        self,
        url: str,
        body: BodyFactory,
        length: int,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "PUT",
        pace: Pace | None = None,
        cancel: CancelToken | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> MovedResponse:
        """Send a body once and return the answer, whatever its status.

        :param url: where to.
        :param body: makes the body; called again when the server redirects.
        :param length: its length in bytes.
        :param headers: sent besides ``Host``, ``Accept-Encoding``, ``User-Agent`` and ``Content-Length``. Credentials
            among them stay with the URL's origin.
        :param method: ``PUT`` or ``POST``.
        :param pace: what counts as moving, for this transfer.
        :param cancel: ends this transfer, instead of the mover's own token.
        :param on_bytes: told how many bytes were sent; a negative number when they turn out not to count.
        :raises RegistryUnavailable: when no answer came.
        :raises TransferStalled: when bytes stopped moving.
        :raises SourceChanged: when the body is shorter than it should be.
        """
        upload = _Upload(body, length, on_bytes)
        try:
            with self._followed(method, url, headers, upload, pace, cancel) as download:
                answer = download.answer()
        except BaseException:
            upload.take_back()
            raise
        if not 200 <= answer.status < 300:
            upload.take_back()
        return answer

    @contextlib.contextmanager
    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        content: bytes | None = None,
        pace: Pace | None = None,
        cancel: CancelToken | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[Download]:
        """Ask for bytes once. The block receives them, and may end early.

        :param url: where from.
        :param headers: sent besides ``Host``, ``Accept-Encoding`` and ``User-Agent``, e.g. ``Range``. Credentials among
            them stay with the URL's origin.
        :param method: ``GET``, or ``POST`` where a registry wants it so.
        :param content: a small body to send.
        :param pace: what counts as moving, for this transfer.
        :param cancel: ends this transfer, instead of the mover's own token.
        :param on_bytes: told how many bytes have come.
        :return: the answer, whatever its status, its bytes to be received.
        """
        with self._followed(method, url, headers, content, pace, cancel, on_bytes) as download:
            yield download

    @contextlib.contextmanager
    def exchange(
        self,
        url: str,
        body: BodyFactory,
        length: int,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        pace: Pace | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[Download]:
        """Send a body once; the block receives the answer's bytes, of which there may be many, too.

        Parameters and errors as for :meth:`put`, the answer as for :meth:`get`.
        """
        with self._followed(method, url, headers, _Upload(body, length), pace, cancel) as download:
            yield download

    def call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        doing: str,
        *,
        pace: Pace,
        largest: int,
    ) -> MovedResponse:
        """Send a small request once and return the answer, whatever its status; redirects are the caller's.

        :param doing: what is being done, for the messages.
        :param pace: how long it may take.
        :param largest: bytes that the answer may have; of one that says no success, 64 KiB are read.
        :raises RegistryUnavailable: when no answer came in time, or one that is larger.
        """
        try:
            with self._exchange(method, url, headers, content, pace, None, doing=doing) as download:
                return download.whole(method, largest)
        except TransferStalled:
            raise RegistryUnavailable(f"{doing}: the server did not answer within the time limit") from None

    @contextlib.contextmanager
    def _followed(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        content: _Upload | bytes | None,
        pace: Pace | None,
        cancel: CancelToken | None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[Download]:
        """Send a request, and again to wherever the server redirects it; the block receives the last answer."""
        headers = dict(headers or {})
        follows = REDIRECTS if method == "GET" else _BODY_REDIRECTS
        for _ in range(MAX_REDIRECTS + 1):
            with self._exchange(method, url, headers, content, pace, cancel) as download:
                if download.status not in follows or "Location" not in download.headers:
                    download.on_bytes = on_bytes
                    yield download
                    return
                location = download.answer().headers["Location"]  # read to its end, so that the connection is kept
            target = redirect_target(url, location, self._settings, base=self._base_url)
            url, headers = target, headers_for(target, url, headers)
        raise InvalidInput(f"{show_url(url, self._secrets)}: more than {MAX_REDIRECTS} redirects", argument="host")

    def _own_pools(self) -> Pools:
        """Return the connections that are kept, without those that the parent of this process goes on using."""
        if self._generation != generation():
            self._pools, self._generation = {}, generation()
        return self._pools

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: _Upload | bytes | None,
        pace: Pace | None,
        cancel: CancelToken | None,
        doing: str = "",
    ) -> Iterator[Download]:
        """Send one request; the block receives the answer. The connection is kept when that was read to its end."""
        from airflow_provider_modelsync.core.transfer import connections

        upload = content if isinstance(content, _Upload) else None
        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **headers}
        if upload:
            headers["Content-Length"] = str(upload.length)
        secrets = (*self._secrets, *credentials_in(headers))
        shown = show_url(url, secrets)
        check_headers(headers, self._settings)
        self._reach.check(url)
        cancel = cancel or self._cancel
        cancel.check()
        watch = Watch(pace or self._pace, cancel, min_rate=1024 * self._settings.min_rate_kib_s)
        with (
            contextlib.closing(upload.blocks()) if upload else contextlib.nullcontext() as blocks,
            self._watchdog.over(watch),
        ):
            # Only this call: the body may open further answers of this thread, and the block may keep this one open.
            with connections.observed_by(watch, self._reach), _translated(watch, doing or f"{method} {shown}"):
                response = connections.pool_for(url, self._own_pools(), self._settings).urlopen(
                    method,
                    url,
                    body=_untimed(blocks, watch) if blocks else content,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=connections.timeout(CONNECT_SECONDS),
                )
            watch.pause()  # until bytes are asked for
            is_over = is_url_over(url, response.headers) if response.status >= 400 else None
            head = MovedResponse(shown, response.status, response.headers, b"", secrets, is_over)
            download = Download(head, connections.reply(), watch)
            try:
                yield download
            finally:
                # The rest of a body that was not sent would be taken for the next request.
                if download.complete and (upload is None or upload.is_sent):
                    response.release_conn()
                else:
                    response.close()


def with_retries(
    fn: Callable[[], T],
    *,
    cancel: CancelToken,
    on_repeat: Callable[[], None] = lambda: None,
    passing: tuple[type[ModelSyncError], ...] = PASSING,
    seconds: float | None = None,
    backoff: Backoff | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call a function until it succeeds, or what it raises would not pass.

    :param fn: sends or receives one part. It asks for the address itself: what was signed may have expired meanwhile.
    :param cancel: ends the waits.
    :param on_repeat: called before each further try.
    :param passing: the errors to try again after. Only :data:`UNPROCESSED` for what must not be done twice.
    :param seconds: how long all tries may take.
    :param backoff: how often and when to try again.
    :param clock: seconds, monotonic.
    :return: what the function returns.
    """
    backoff = backoff or Backoff()
    deadline = math.inf if seconds is None else clock() + seconds
    refused_before = False
    for failures in count(1):
        try:
            return fn()
        except passing as error:
            wait = error.wait if isinstance(error, ServerBusy) else None
            delay = max(wait or 0.0, backoff.delay(failures))
            rest = deadline - clock()
            if wait is not None and wait > min(rest, LONGEST_WAIT):
                raise RegistryUnavailable(
                    f"{error.message}: it wants us to wait {wait:.0f} s, which is too long"
                ) from None
            if isinstance(error, UrlExpired):
                if refused_before and error.otherwise:
                    raise error.otherwise from None
                refused_before = True
            if failures >= backoff.attempts or delay > rest:
                raise
            _log.warning("%s", again(error.message, delay, failures, backoff.attempts, error.remedy))
        cancel.sleep(delay)
        on_repeat()
    raise AssertionError("unreachable")


class _Upload:
    """A body of size on its way up, from its beginning again at each redirect.

    :param body: makes the body.
    :param length: its length in bytes.
    :param on_bytes: told how many bytes were sent; a negative number when they turn out not to count.
    """

    def __init__(self, body: BodyFactory, length: int, on_bytes: Callable[[int], None] | None = None) -> None:
        self._body = body
        self._on_bytes = on_bytes or (lambda _: None)
        self._sent = 0
        self.length = length

    @property
    def is_sent(self) -> bool:
        """Whether all of it went up."""
        return self._sent == self.length

    def take_back(self) -> None:
        """Let what was sent not count."""
        if self._sent:
            self._on_bytes(-self._sent)
            self._sent = 0

    def blocks(self) -> Generator[Block, None, None]:
        """Yield exactly its bytes, in blocks; what was yielded before counts as sent."""
        self.take_back()
        body: Any = self._body()
        if hasattr(body, "pieces"):
            with contextlib.closing(body.pieces()) as pieces:
                for piece in pieces:
                    yield piece
                    self._count(piece)
            return
        buffer = memoryview(bytearray(min(BLOCK, self.length) if hasattr(body, "readinto") else 0))
        try:
            while (rest := self.length - self._sent) > 0:
                try:
                    block = buffer[: body.readinto(buffer[:rest]) or 0] if buffer else body.read(min(BLOCK, rest))
                except OSError as error:
                    raise from_os_error(error, "reading what is to be sent") from None
                if not block:
                    raise SourceChanged(f"what is to be sent ended after {self._sent} of {self.length} bytes")
                yield block
                self._count(block)
        finally:
            if hasattr(body, "close"):
                body.close()

    def _count(self, block: Block) -> None:
        self._sent += len(block)
        self._on_bytes(len(block))


def _untimed(blocks: Iterator[Block], watch: Watch) -> Iterator[Block]:
    """Pass blocks on, while the time that making them takes does not count as a standstill."""
    while True:
        watch.pause()
        try:
            block = next(blocks, None)
        finally:
            watch.resume()
        if block is None:
            return
        yield block


@contextlib.contextmanager
def _translated(watch: Watch, doing: str) -> Iterator[None]:
    """Raise what a transfer was broken off for, or errors of ours instead of those of the network."""
    try:
        yield
    except ModelSyncError:
        raise
    except Exception as error:
        watch.check(doing)
        raise classify(error, doing) from None

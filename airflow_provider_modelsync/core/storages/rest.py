"""What storages share that are reached by REST calls with credentials of their own kind, by the byte mover."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit
from xml.etree import ElementTree

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.http.network import READ_SECONDS
from airflow_provider_modelsync.core.http.storage import Refusal, UrlExpired
from airflow_provider_modelsync.core.redact import guard_logs, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.base import LARGEST_ANSWER, Bucket, Deadline
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address

Page = TypeVar("Page")


@dataclass(frozen=True, slots=True)
class Proof:
    """What proves who sends a request.

    :param secret: what tells it from others.
    :param headers: what it adds to the request's.
    :param query: what it adds to the URL's.
    """

    secret: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    query: str = field(default="", repr=False, compare=False)

    def on(self, url: str) -> str:
        """Return a URL with it."""
        return f"{url}{'&' if urlsplit(url).query else '?'}{self.query}" if self.query else url


class Credentials(ABC):
    """What a bucket's proofs come from. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._given: Proof | None = None

    def proof(self, method: str, url: str) -> Proof:
        """Return what proves who sends a request."""
        with self._lock:
            self._given = self._current(method, url)
            return self._given

    def renew(self, refused: Proof) -> None:
        """Hear that a proof was refused that may have expired: the next one is another, if there is one.

        All requests that carried the same one come to this; it is renewed for the first of them alone.
        """
        with self._lock:
            if self._given == refused:
                self._given = None
                self._forget()

    @abstractmethod
    def _current(self, method: str, url: str) -> Proof:
        """Return the proof that holds now, a new one when there is none. No other thread is in here."""

    @abstractmethod
    def _forget(self) -> None:
        """Have the next proof be a new one. No other thread is in here."""


class RestBucket(Bucket):
    """A bucket that is reached by REST calls. Parameters as of :class:`Bucket`."""

    usual_headers: ClassVar[Mapping[str, str]] = {}  # of all requests

    _credentials: Credentials

    def __init__(
        self, name: str, settings: RegistrySettings, *, base: str, place: str, identity: tuple[str, ...]
    ) -> None:
        super().__init__(name, settings, base=base, place=place, identity=identity)
        self._settings = settings
        guard_logs(secrets_of(settings))

    def _refusal(self, answer: MovedResponse) -> Refusal:
        """Return what an answer says that is no success."""
        return Refusal.read(answer.status, answer.headers, answer.body.decode("utf-8", "replace"))

    def _call(
        self,
        doing: str,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        *,
        none_for: Collection[int | str] = (),
        end: float | None = None,
        answer_seconds: float = READ_SECONDS,
        largest: int = LARGEST_ANSWER,
    ) -> MovedResponse | None:
        """Send a small request as often as anything is tried; return its answer.

        :param none_for: statuses, and codes of the storage, that are an answer, too.
        :param end: until when, seconds, monotonic; the connection's time from now when ``None``.
        :param answer_seconds: how long the storage may think about one request.
        :param largest: bytes of the answer.
        :return: ``None`` for those in ``none_for``.
        """
        doing = f"{doing} in {self.place}"
        deadline = Deadline(doing, end or time.monotonic() + self._settings.timeout_seconds, answer_seconds)

        def once() -> MovedResponse | None:
            to = self._address(method, url, headers or {})
            answer = self.mover.call(method, to.url, to.headers, content, doing, pace=deadline.pace(), largest=largest)
            if 200 <= answer.status < 300:
                return answer
            refusal = self._refusal(answer)
            if refusal.status in none_for or refusal.code in none_for:
                return None
            raise self._error(answer, doing, to.refused)

        return with_retries(once, cancel=CancelToken(), seconds=max(deadline.rest, 0.0))

    def _error(
        self,
        answer: MovedResponse,
        doing: str,
        refused: Callable[[], None],
        *,
        not_found: type[ModelSyncError] = InvalidInput,
    ) -> ModelSyncError:
        """Return what a refusal means.

        :param refused: told when what proved who sent it may have expired only.
        """
        refusal = self._refusal(answer)
        error = refusal.error(doing, not_found=not_found, secrets=answer.secrets)
        if not self._may_be_stale(refusal):
            return error
        refused()
        return UrlExpired(error.message, otherwise=error)

    def _may_be_stale(self, refusal: Refusal) -> bool:
        """Whether other credentials may do."""
        return refusal.status == 401

    def _address(self, method: str, url: str, headers: Mapping[str, str]) -> Address:
        """Return where a request goes, with what proves who sends it."""
        proof = self._credentials.proof(method, url)
        refused = partial(self._credentials.renew, proof)

        def explain(answer: MovedResponse, doing: str) -> None:
            if not 200 <= answer.status < 300:
                raise self._error(answer, doing, refused, not_found=ModelNotFound)

        all_headers = {**self.usual_headers, **headers, **proof.headers}
        return Address(proof.on(url), all_headers, refused=refused, explain=explain)

    def _paged(
        self, doing: str, ask: Callable[[Mapping[str, str], float], Page], more: Callable[[Page], Mapping[str, str]]
    ) -> Iterator[Page]:
        """Yield a listing's pages. All together have the time of one call: new ones could come for ever.

        :param ask: gets a page, by what the one before said and until when.
        :param more: what a page says of the next one; empty for the last.
        """
        end = time.monotonic() + self._settings.timeout_seconds
        marks: Mapping[str, str] = {}
        seen: set[tuple[tuple[str, str], ...]] = set()
        while True:
            page = ask(marks, end)
            yield page
            marks = more(page)
            if not marks:
                return
            sign = tuple(sorted(marks.items()))
            if sign in seen:
                raise RegistryUnavailable(f"{doing} in {self.place}: the storage repeats a page of its listing")
            seen.add(sign)


def read_xml(answer: MovedResponse, doing: str) -> ElementTree.Element:
    """Return an answer's document, its names without their namespace.

    :raises RegistryUnavailable: when it is none.
    """
    text = answer.body.decode("utf-8-sig", "replace")
    try:
        # Entities, which may grow without end, are declared in a document type only.
        root = None if "<!DOCTYPE" in text else ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError:
        root = None
    if root is None:
        raise RegistryUnavailable(f"{doing}: the answer is not that of a storage")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root

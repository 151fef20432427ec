"""What storages share that are reached by REST calls with credentials of their own kind, by the byte mover."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar
from xml.etree import ElementTree

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.network import READ_SECONDS
from airflow_provider_modelsync.core.http.storage import Refusal, UrlExpired
from airflow_provider_modelsync.core.redact import guard_logs, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.base import LARGEST_ANSWER, Bucket, Deadline
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address

Page = TypeVar("Page")


class RestBucket(Bucket):
    """A bucket that is reached by REST calls. Parameters as of :class:`Bucket`."""

    def __init__(
        self, name: str, settings: RegistrySettings, *, base: str, place: str, identity: tuple[str, ...]
    ) -> None:
        super().__init__(name, settings, base=base, place=place, identity=identity)
        self._settings = settings
        guard_logs(secrets_of(settings))

    @abstractmethod
    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Return URL and headers of a request with what proves who sends it."""

    @abstractmethod
    def _renew(self) -> None:
        """Hear that credentials were refused that may have expired: the next request carries others, if there are."""

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
            signed, all_headers = self._signed(method, url, headers or {})
            answer = self.mover.call(method, signed, all_headers, content, doing, pace=deadline.pace(), largest=largest)
            if 200 <= answer.status < 300:
                return answer
            refusal = self._refusal(answer)
            if refusal.status in none_for or refusal.code in none_for:
                return None
            raise self._error(answer, doing)

        return with_retries(once, cancel=CancelToken(), seconds=max(deadline.rest, 0.0))

    def _error(
        self, answer: MovedResponse, doing: str, *, not_found: type[ModelSyncError] = InvalidInput
    ) -> ModelSyncError:
        """Return what a refusal means; credentials that were refused may have expired only."""
        refusal = self._refusal(answer)
        error = refusal.error(doing, not_found=not_found, secrets=answer.secrets)
        if not self._may_be_stale(refusal):
            return error
        self._renew()
        return UrlExpired(error.message, otherwise=error)

    def _may_be_stale(self, refusal: Refusal) -> bool:
        """Whether other credentials may do."""
        return refusal.status == 401

    def _address(self, method: str, url: str, headers: Mapping[str, str]) -> Address:
        """Return where a request of size goes."""
        signed, all_headers = self._signed(method, url, headers)
        return Address(signed, all_headers, refused=self._renew, explain=self._explain)

    def _explain(self, answer: MovedResponse, doing: str) -> None:
        if not 200 <= answer.status < 300:
            raise self._error(answer, doing, not_found=ModelNotFound)

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

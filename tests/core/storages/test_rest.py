"""Storages that are called by the byte mover: what they may send and how long they may take."""

from __future__ import annotations

import base64
import re
from itertools import count

import pytest

from airflow_provider_modelsync.core.errors import ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from tests.core.registries.modelstore.test_s3_bounds import Flood, Pages
from tests.standins.fault_server import SLOW_ANSWERS, Close, FaultServer, Send, Step, answer

pytestmark = pytest.mark.usefixtures("no_waiting")

PAGES = {
    "gcs": '{{"nextPageToken": "{token}", "items": []}}',
    "azure": "<EnumerationResults><Blobs/><NextMarker>{token}</NextMarker></EnumerationResults>",
}
of_both = pytest.mark.parametrize("kind", PAGES)


class _Token:
    """Credentials of google-auth that need no library."""

    token: str | None = "secret-of-the-test"

    def before_request(self, request: object, method: str, url: str, headers: dict[str, str]) -> None:
        headers["authorization"] = f"Bearer {self.token}"


def list_versions(kind: str, url: str, *, seconds: float = 60) -> None:
    usual = {"timeout_seconds": seconds, "part_size_mib": 5}
    if kind == "gcs":
        fields = {"host": "gs://models/store", "endpoint_url": url, **usual}
        store = ModelStore(BucketSettings.read("models_gs", fields), _Token)
    else:
        key = base64.b64encode(b"secret-of-the-test").decode()
        fields = {"host": "abfs://models@acme/store", "endpoint_url": f"{url}/acme", "password": key, **usual}
        store = ModelStore(BucketSettings.read("azure", fields))
    SyncDriver().run(store.list_versions("m", Query()))


@of_both
@pytest.mark.parametrize("fault", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
@pytest.mark.row("T6", "T7", of=("rest", "gcs", "azure"))
def test_neither_silence_nor_a_drip_outlasts_a_call(kind: str, fault: list[Step]) -> None:
    with FaultServer(fault) as server, pytest.raises(RegistryUnavailable, match="within the time limit"):
        list_versions(kind, server.url, seconds=0.4)


@of_both
@pytest.mark.row("T9", of=("rest", "gcs", "azure"))
def test_a_cut_answer_is_asked_for_again_and_never_taken(kind: str) -> None:
    page = PAGES[kind].format(token="").encode()
    cut = [Send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(page) + 1) + page), Close()]
    with FaultServer(cut, cut, [answer(200, page)]) as server:
        list_versions(kind, server.url)
        assert len(server.requests) == 3
    with FaultServer(cut) as server, pytest.raises(RegistryUnavailable):
        list_versions(kind, server.url)


@of_both
@pytest.mark.parametrize("status", [b"403 Forbidden", b"500 Oops", b"200 OK"])
@pytest.mark.row("T13", of=("rest", "gcs", "azure"))
def test_a_page_without_end_is_not_read_to_its_end(kind: str, status: bytes) -> None:
    flood = Flood(status, 512 << 20)
    with FaultServer([flood]) as server:
        with pytest.raises(ModelSyncError):
            list_versions(kind, server.url)
        assert flood.over.wait(60)
    limit = 8 << 20 if status != b"200 OK" else 40 << 20
    assert flood.taken < limit * 5  # five tries


@of_both
@pytest.mark.row("S11", of=("rest", "gcs", "azure"))
def test_a_listing_without_an_end_ends_with_the_calls_time(kind: str) -> None:
    numbers = count()

    def page(_: int) -> bytes:
        return answer(200, PAGES[kind].format(token=f"t{next(numbers)}").encode()).data

    with FaultServer([Pages(page)]) as server, pytest.raises(RegistryUnavailable, match="time limit"):
        list_versions(kind, server.url, seconds=1)


@of_both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.row("T19", "T20", of=("rest", "gcs", "azure"))
def test_no_call_follows_a_redirect(kind: str, status: int) -> None:
    with FaultServer([answer(200, b"{}")]) as other:
        with FaultServer([answer(status, headers={"Location": f"{other.url}/elsewhere"})]) as server:
            with pytest.raises(ModelSyncError) as caught:
                list_versions(kind, server.url)
    assert other.requests == []
    assert not re.search("secret-of-the-test|sig=", str(caught.value))

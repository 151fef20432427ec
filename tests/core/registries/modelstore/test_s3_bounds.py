"""What a bucket's storage may send and how long it may take: nothing is read without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from airflow_provider_modelsync.core.errors import ModelSyncError, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from tests.standins.fault_server import Drip, FaultServer, Send, Talk

pytestmark = pytest.mark.faults


def list_versions(url: str, seconds: float = 20) -> None:
    fields = {
        "host": "s3://b/models",
        "endpoint_url": url,
        "region_name": "us-east-1",
        "login": "a",
        "password": "b" * 9,
    }
    store = ModelStore(BucketSettings.read("bucket", {**fields, "timeout_seconds": seconds}))
    SyncDriver().run(store.list_versions("m", Query()))


def page(number: int, token: str | None) -> bytes:
    entry = (
        f"<Contents><Key>models/m/.modelsync/v{number}.x</Key><Size>1</Size>"
        '<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"a"</ETag></Contents>'
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    body = (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><IsTruncated>true</IsTruncated>{more}{entry}</ListBucketResult>"
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Pages:
    """Sends the pages of a listing, one a request."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self.count = 0
        self._make = make

    def run(self, talk: Talk) -> None:
        self.count += 1
        talk.sock.sendall(self._make(self.count))


@pytest.mark.row("S11", of="storage")
def test_a_listing_that_is_cut_and_does_not_go_on_is_an_error(no_waiting: None) -> None:
    with FaultServer([Send(page(1, None))]) as server, pytest.raises(RegistryUnavailable, match="does not go on"):
        list_versions(server.url)


@pytest.mark.row("S11", of="storage")
def test_a_listing_that_goes_round_is_an_error(no_waiting: None) -> None:
    pages = Pages(lambda count: page(count, "AB"[count % 2]))
    with FaultServer([pages]) as server, pytest.raises(RegistryUnavailable, match="repeats"):
        list_versions(server.url)
    assert pages.count <= 4


@pytest.mark.row("S11", of="storage")
def test_a_page_that_comes_again_under_another_token_is_an_error(no_waiting: None) -> None:
    pages = Pages(lambda count: page(1, f"t{count}"))
    with FaultServer([pages]) as server, pytest.raises(RegistryUnavailable, match="repeats"):
        list_versions(server.url)


@pytest.mark.row("S11", of="storage")
def test_a_listing_without_an_end_ends_with_the_call_s_time(no_waiting: None) -> None:
    with FaultServer([Pages(lambda count: page(count, f"t{count}"))]) as server:
        with pytest.raises(RegistryUnavailable, match="time limit"):
            list_versions(server.url, seconds=1)


@pytest.mark.row("T7", of="storage")
def test_an_answer_that_drips_ends_with_the_call_s_time(no_waiting: None) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 2000\r\n\r\n"
    with FaultServer([Send(head), Drip(b"<" * 2000, 0.05)]) as server:
        with pytest.raises(RegistryUnavailable, match="time limit"):
            list_versions(server.url, seconds=1)


class Flood:
    """Sends a page of many MiB, and counts what is taken."""

    def __init__(self, status: bytes, size: int) -> None:
        self._head = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % (status, size)
        self._size = size
        self.taken = 0
        self.over = threading.Event()

    def run(self, talk: Talk) -> None:
        block = b"<p>words</p>" * 8192
        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        try:
            talk.sock.sendall(self._head)
            while self.taken < self._size:
                talk.sock.sendall(block)
                self.taken += len(block)
        except OSError:
            pass
        finally:
            self.over.set()


@pytest.mark.parametrize("status", [b"403 Forbidden", b"500 Oops", b"200 OK"])
@pytest.mark.row("T13", of="storage")
def test_a_page_without_end_is_not_read_to_its_end(no_waiting: None, status: bytes) -> None:
    flood = Flood(status, 512 << 20)
    with FaultServer([flood]) as server:
        with pytest.raises(ModelSyncError) as caught:
            list_versions(server.url)
        assert flood.over.wait(60)
    limit = 8 << 20 if status != b"200 OK" else 40 << 20
    assert flood.taken < limit * 5  # five tries
    if status.startswith(b"403"):
        assert str(caught.value).startswith("403 Forbidden: ")

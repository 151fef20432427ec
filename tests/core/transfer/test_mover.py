"""Moving bytes under faults: uploads and downloads against a server that misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from urllib3.exceptions import InsecureRequestWarning

from airflow_provider_modelsync.core.archive.digest import LooseFile, Stamp, read_tree
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Retryable,
    SourceChanged,
    TransferStalled,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import connections
from airflow_provider_modelsync.core.transfer.files import LooseBody
from airflow_provider_modelsync.core.transfer.mover import (
    BLOCK,
    UNPROCESSED,
    Download,
    Mover,
    UrlExpired,
    with_retries,
)
from airflow_provider_modelsync.core.transfer.sendfile import FilePiece
from airflow_provider_modelsync.core.transfer.watchdog import Pace, Watch
from tests.standins.authority import Authority
from tests.standins.fault_server import (
    Close,
    Do,
    Drip,
    FaultServer,
    ReadRest,
    ReadSome,
    Reset,
    Send,
    Stall,
    Step,
    Talk,
    Tunnel,
    answer,
)
from tests.support.descriptors import opened
from tests.support.kills import killed
from tests.support.pace import Clock
from tests.support.sockets import nobody_listens, plain_port
from tests.support.until import until

TOKEN = "canary-secret-token"
PART = os.urandom(3 * BLOCK + 17)
OK = [answer(200, headers={"ETag": '"abc"'})]
SOON = Pace(min_bytes=1024, window_seconds=0.4, answer_seconds=0.4)


def settings(server: FaultServer | None = None, **fields: Any) -> RegistrySettings:
    host = server.url if server else "http://127.0.0.1"
    return RegistrySettings.read("registry", {"host": host, "password": TOKEN, **fields})


@pytest.fixture(autouse=True)
def _no_proxy_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mover() -> Iterator[Mover]:
    mover = Mover(settings())
    yield mover
    mover.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class Waits(CancelToken):
    """A token whose waits take no time, but are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


def part() -> io.BytesIO:
    return io.BytesIO(PART)


class Endless(io.RawIOBase):
    """A body without end that takes no memory."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return len(buffer)


def fetch(mover: Mover, url: str, **options: Any) -> bytes:
    with mover.get(url, **options) as download:
        download.answer().raise_for_status("fetching") if download.status >= 300 else None
        return b"".join(bytes(block) for block in download.blocks())


# --- sending


def test_a_part_arrives_as_it_is(mover: Mover) -> None:
    with FaultServer(OK) as server:
        moved: list[int] = []
        response = mover.put(f"{server.url}/part?X-Amz-Signature=1", part, len(PART), on_bytes=moved.append)
    assert (response.status, response.headers["etag"]) == (200, '"abc"')
    request = server.requests[0]
    assert (request.method, request.target) == ("PUT", "/part?X-Amz-Signature=1")
    assert request.body_length == len(PART)
    assert request.body == PART[: len(request.body)]
    assert sum(moved) == len(PART)


@pytest.mark.row("A5", of=("sends", "fetches"))
def test_nothing_is_sent_that_a_signature_does_not_cover(mover: Mover) -> None:
    with FaultServer(OK) as server:
        mover.put(server.url, part, len(PART))
        fetch(mover, server.url)
    put, get = server.requests
    assert sorted(name.lower() for name, _ in put.headers) == [
        "accept-encoding",
        "content-length",
        "host",
        "user-agent",
    ]
    assert sorted(name.lower() for name, _ in get.headers) == ["accept-encoding", "host", "user-agent"]
    assert put.header("Accept-Encoding") == get.header("Accept-Encoding") == "identity"


def test_headers_and_method_are_the_callers(mover: Mover) -> None:
    with FaultServer(OK) as server:
        mover.put(server.url, part, len(PART), {"X-API-Key": TOKEN, "Content-Type": "a/b"}, method="POST")
    request = server.requests[0]
    assert (request.method, request.header("x-api-key"), request.header("content-type")) == ("POST", TOKEN, "a/b")


class OnlyRead:
    """A body without ``readinto``, which gives few bytes at a time."""

    def __init__(self) -> None:
        self._file = part()
        self.closed = False

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, 100_000))

    def close(self) -> None:
        self.closed = True


def test_a_body_needs_only_read(mover: Mover) -> None:
    body = OnlyRead()
    with FaultServer(OK) as server:
        mover.put(server.url, lambda: body, len(PART))
    assert server.requests[0].body_length == len(PART)
    assert body.closed


def test_exactly_the_announced_length_is_sent(mover: Mover) -> None:
    with FaultServer(OK) as server:
        mover.put(server.url, part, 10)
        mover.put(server.url, part, 0)
    assert [request.body for request in server.requests] == [PART[:10], b""]
    assert server.connections == 1


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["closed", "reset"])
@pytest.mark.row("T9", of="sends")
def test_a_cut_answer_to_an_upload_counts_as_far_as_it_came(mover: Mover, end: Step) -> None:
    """Its status and headers say what became of the bytes; what must be read in it makes no sense then."""
    cut = [Send(b"HTTP/1.1 200 OK\r\nETag: a\r\nContent-Length: 100\r\n\r\nabc"), end]
    with FaultServer(cut, OK) as server:
        answers = [mover.put(server.url, part, 10) for _ in range(2)]
    assert [found.status for found in answers] == [200, 200]
    assert answers[0].headers["ETag"] == "a"
    assert len(answers[0].body) <= 3
    assert server.connections == 2, "nothing else is read from a connection that was cut"


@pytest.mark.row("D3", of="sends")
def test_a_body_that_ends_early_is_a_changed_source(mover: Mover) -> None:
    with (
        FaultServer([ReadRest(), *OK]) as server,
        pytest.raises(SourceChanged, match=f"{len(PART)} of {len(PART) + 1}"),
    ):
        mover.put(server.url, part, len(PART) + 1)


def test_a_source_that_cannot_be_read_is_no_network_fault(mover: Mover) -> None:
    class Broken(Endless):
        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    with FaultServer(OK) as server, pytest.raises(ModelSyncError, match="reading what is to be sent: Input/output"):
        mover.put(server.url, Broken, 10)


def test_connections_are_kept_between_parts(mover: Mover) -> None:
    with FaultServer(OK) as server:
        for _ in range(5):
            mover.put(server.url, part, len(PART))
        assert fetch(mover, server.url) == b""
        mover.put(server.url, part, len(PART))
    assert (len(server.requests), server.connections) == (7, 1)


def test_memory_does_not_grow_with_the_body(mover: Mover) -> None:
    with FaultServer(OK) as server:
        mover.put(server.url, part, len(PART))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            mover.put(server.url, Endless, 200 << 20)
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert server.requests[-1].body_length == 200 << 20
    assert grown < 4 << 20  # the stand-in keeps 1 MiB itself


class Observed(LooseFile):
    """A file that tells how much of it was read here, and that may be cut short as soon as it is open."""

    __slots__ = ()
    reads: ClassVar[list[int]] = []
    cut_at: ClassVar[int | None] = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        with super().opened() as descriptor:
            if self.cut_at is not None:
                os.truncate(self.place, self.cut_at)
            yield descriptor

    def read_into(self, descriptor: int, offset: int, view: memoryview) -> None:
        self.reads.append(len(view))
        super().read_into(descriptor, offset, view)


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LooseBody:
    (tmp_path / "weights.bin").write_bytes(PART)
    file = read_tree(tmp_path).loose("weights.bin")
    monkeypatch.setattr(Observed, "reads", [])
    monkeypatch.setattr(Observed, "cut_at", None)
    return LooseBody(Observed(file.place, file.path, file.stamp), 0, len(PART))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_file_goes_from_the_page_cache_to_the_network_where_nothing_encrypts_it(
    loose: LooseBody, authority: Authority, *, tls: bool
) -> None:
    moved: list[int] = []
    with FaultServer(OK, tls=authority.server_context() if tls else None) as server:
        with closing(Mover(settings(server, ca_bundle=str(authority.bundle)))) as mover:
            assert mover.put(server.url, lambda: loose, len(PART), on_bytes=moved.append).status == 200
            assert mover.put(server.url, part, len(PART)).status == 200
    assert server.connections == 1
    assert server.requests[0].body_length == len(PART)
    assert server.requests[0].body == PART[: len(server.requests[0].body)]
    assert sum(moved) == len(PART)
    assert sum(Observed.reads) == (len(PART) if tls else 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("left", [0, 1000, 2 * BLOCK])
@pytest.mark.row("D3", of="sends")
def test_a_file_that_is_cut_short_on_its_way_is_a_changed_source(
    loose: LooseBody, authority: Authority, monkeypatch: pytest.MonkeyPatch, left: int, *, tls: bool
) -> None:
    monkeypatch.setattr(Observed, "cut_at", left)
    with FaultServer([ReadRest(), *OK], tls=authority.server_context() if tls else None) as server:
        with closing(Mover(settings(server, ca_bundle=str(authority.bundle)))) as mover:
            with pytest.raises(SourceChanged, match=r"'weights\.bin' changed"):
                mover.put(server.url, lambda: loose, len(PART))


def test_a_file_that_the_kernel_cannot_send_is_read(mover: Mover) -> None:
    class Body:
        def pieces(self) -> Iterator[FilePiece]:
            yield FilePiece(LooseFile("", "", Stamp(20, 0, 0, 0, 0)), file.fileno(), 0, memoryview(bytearray(20)))

    with Path("/proc/self/status").open("rb", buffering=0) as file, FaultServer(OK) as server:
        content = file.read(20)
        one, other = socket.socketpair()
        with one, other, pytest.raises(OSError, match="Invalid argument"):
            os.sendfile(one.fileno(), file.fileno(), 0, 20)
        mover.put(server.url, Body, 20)
    assert server.requests[0].body == content


@pytest.mark.row("T14", of="sends")
def test_an_early_answer_to_a_file_is_reported(mover: Mover, tmp_path: Path) -> None:
    path, size = tmp_path / "weights.bin", 50 << 20
    path.touch()
    os.truncate(path, size)
    loose = LooseFile(str(path), path.name, Stamp.of(path.stat()))
    script = [ReadSome(1000), answer(413, b"too large"), Stall()]
    with FaultServer(script, OK) as server:
        response = mover.put(server.url, lambda: LooseBody(loose, 0, size), size)
        assert (response.status, response.body) == (413, b"too large")
        assert mover.put(server.url, part, len(PART)).status == 200


@pytest.mark.parametrize("status", [413, 403])
@pytest.mark.parametrize(
    "after", [[Close()], [Reset()], [Stall()], [ReadRest()]], ids=["close", "reset", "stall", "read"]
)
@pytest.mark.row("T14", of="sends")
def test_an_early_answer_is_reported(mover: Mover, status: int, after: list[Step]) -> None:
    script = [ReadSome(1000), answer(status, b"<Code>EntityTooLarge</Code>"), *after]
    moved: list[int] = []
    with FaultServer(script, OK) as server:
        response = mover.put(server.url, Endless, 50 << 20, on_bytes=moved.append)
        assert (response.status, response.body) == (status, b"<Code>EntityTooLarge</Code>")
        # What was left of the body must not be taken for the next request.
        assert mover.put(server.url, part, len(PART)).status == 200
    assert sum(moved) == 0
    assert server.requests[1].body_length == len(PART)


@pytest.mark.row("T14", of="sends")
def test_an_early_answer_is_reported_under_tls(authority: Authority) -> None:
    script = [ReadSome(1000), answer(413, b"too large"), Close()]
    with FaultServer(script, tls=authority.server_context()) as server:
        mover = Mover(settings(server, ca_bundle=str(authority.bundle)))
        response = mover.put(server.url, Endless, 50 << 20)
    assert (response.status, response.body) == (413, b"too large")


@pytest.mark.parametrize(
    "fault",
    [[ReadSome(100_000), Reset()], [Reset()], [Close()], [Send(b"HTTP/1.1 200 OK\r\nContent-"), Reset()]],
    ids=["while sending", "after sending", "closed", "in the answer"],
)
@pytest.mark.row("T1", of="sends")
def test_a_broken_upload_is_repeated_alone(mover: Mover, fault: list[Step]) -> None:
    token, moved = Waits(), []
    with FaultServer(fault, fault, OK) as server:
        put = lambda: mover.put(server.url, part, len(PART), on_bytes=moved.append)  # noqa: E731
        assert with_retries(put, cancel=token, backoff=Backoff(random=lambda: 1.0)).status == 200
    assert token.seconds == [0.5, 1.0]
    assert server.requests[-1].body_length == len(PART)
    assert sum(moved) == len(PART)


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.row("T19", "T21", of="sends")
def test_a_redirected_upload_sends_the_body_again(mover: Mover, status: int) -> None:
    made: list[io.BytesIO] = []

    def factory() -> io.BytesIO:
        made.append(part())
        return made[-1]

    with FaultServer(OK) as other:
        with FaultServer([answer(status, headers={"Location": f"{other.url}/there"})]) as server:
            moved: list[int] = []
            headers = {"X-Api-Key": TOKEN, "Authorization": TOKEN, "Cookie": TOKEN, "If-None-Match": "*"}
            assert mover.put(server.url, factory, len(PART), headers, on_bytes=moved.append).status == 200
    assert len(made) == 2
    assert [server.requests[0].body_length, other.requests[0].body_length] == [len(PART)] * 2
    assert sum(moved) == len(PART)
    assert server.requests[0].header("X-Api-Key") == TOKEN
    assert other.requests[0].header_names == {
        "host",
        "content-length",
        "accept-encoding",
        "user-agent",
        "if-none-match",
    }


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_drops_the_body_is_not_followed(mover: Mover, status: int) -> None:
    with FaultServer([answer(status, headers={"Location": "/there"})]) as server:
        assert mover.put(server.url, part, len(PART)).status == status
    assert len(server.requests) == 1


# --- receiving


@pytest.mark.row("T12", of="fetches")
def test_stored_bytes_come_as_they_are(mover: Mover) -> None:
    script = [answer(200, PART, {"Content-Encoding": "gzip", "ETag": '"e"'})]
    with FaultServer(script) as server:
        moved: list[int] = []
        with mover.get(server.url, on_bytes=moved.append) as download:
            assert (download.status, download.length, download.headers["etag"]) == (200, len(PART), '"e"')
            digest, sizes = hashlib.sha256(), []
            for block in download.blocks():
                digest.update(block)
                sizes.append(len(block))
            assert download.complete
    assert digest.digest() == hashlib.sha256(PART).digest()
    assert max(sizes) == BLOCK
    assert sum(moved) == len(PART)


@dataclass(frozen=True)
class Packet:
    """Bytes that come by themselves: what follows is sent once they are read."""

    data: bytes

    def run(self, talk: Talk) -> None:
        talk.sock.sendall(self.data)
        _, port = talk.sock.getpeername()
        until(lambda: not unread_at(port), "a packet to be read")


def unread_at(port: int) -> int:
    """Return how many bytes have come to a connection's end and were not read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if int(local.partition(":")[2], 16) == port:
            return int(queues.partition(":")[2], 16)
    return 0


def test_the_kernel_takes_a_block_at_a_time(mover: Mover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PATIENCE", struct.pack("@ll", 600, 0))
    writes: list[int] = []
    monkeypatch.setattr(Watch, "moved", lambda _, count: writes.append(count))
    with FaultServer(OK) as server:
        mover.put(server.url, part, len(PART))
    assert writes[1:4] == [BLOCK] * 3  # behind the headers


def test_the_kernel_gathers_packets(mover: Mover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PATIENCE", struct.pack("@ll", 600, 0))
    reads: list[int] = []
    monkeypatch.setattr(Watch, "moved", lambda _, count: reads.append(count))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {BLOCK}\r\n\r\n".encode()
    size = BLOCK // 8
    script = [Packet(head), *(Packet(PART[start : start + size]) for start in range(0, BLOCK, size))]
    with FaultServer(script) as server:
        assert fetch(mover, server.url) == PART[:BLOCK]
    assert reads[-1] == BLOCK


def test_packets_are_gathered_for_a_short_time_only(mover: Mover, monkeypatch: pytest.MonkeyPatch) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {BLOCK}\r\n\r\n".encode()
    heard = threading.Event()
    monkeypatch.setattr(Watch, "moved", lambda _, count: heard.set() if count == 5000 else None)
    script = [Packet(head), Packet(PART[:5000]), Do(lambda: heard.wait(60)), Send(PART[5000:BLOCK])]
    with FaultServer(script) as server:
        assert fetch(mover, server.url) == PART[:BLOCK]
    assert heard.is_set()


def test_blocks_share_one_buffer(mover: Mover) -> None:
    with FaultServer([answer(200, PART)]) as server, mover.get(server.url) as download:
        assert len({id(block.obj) for block in download.blocks()}) == 1


def test_a_range_is_asked_for_and_its_answer_shown(mover: Mover) -> None:
    script = [answer(206, PART[5:15], {"Content-Range": f"bytes 5-14/{len(PART)}"})]
    with FaultServer(script) as server:
        with mover.get(server.url, {"Range": "bytes=5-14", "If-Match": '"e"'}) as download:
            assert download.status == 206
            assert download.headers["Content-Range"] == f"bytes 5-14/{len(PART)}"
            assert b"".join(map(bytes, download.blocks())) == PART[5:15]
    assert server.requests[0].header("range") == "bytes=5-14"


def test_a_registry_may_want_a_post_for_a_download(mover: Mover) -> None:
    with FaultServer([answer(200, b"file")]) as server:
        headers = {"Content-Type": "application/json"}
        assert fetch(mover, server.url, headers=headers, method="POST", content=b'{"path":"/x"}') == b"file"
    assert (server.requests[0].method, server.requests[0].body) == ("POST", b'{"path":"/x"}')


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_chunked_body_is_put_together(mover: Mover) -> None:
    with FaultServer([Send(CHUNKED + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n")]) as server:
        assert fetch(mover, server.url) == b"abcdefg"
        assert fetch(mover, server.url) == b"abcdefg"
    assert server.connections == 1


@pytest.mark.row("T10", of="fetches")
def test_a_body_without_length_ends_with_the_connection(mover: Mover) -> None:
    # Nothing tells a cut body of this kind from a whole one: whoever asked has to compare sizes and digests.
    with FaultServer([Send(b"HTTP/1.1 200 OK\r\n\r\nabc"), Close()]) as server, mover.get(server.url) as download:
        assert download.length is None
        assert b"".join(map(bytes, download.blocks())) == b"abc"


@pytest.mark.parametrize(
    "fault",
    [
        [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"), Close()],
        [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"), Reset()],
        [Send(CHUNKED + b"64\r\nabc"), Close()],
        [Send(CHUNKED + b"3\r\nabc\r\n"), Close()],
        [Send(CHUNKED + b"junk\r\n"), Close()],
        [Send(b"220 smtp ready\r\n"), Close()],
    ],
    ids=["short", "reset", "cut chunk", "no last chunk", "bad chunk", "not HTTP"],
)
@pytest.mark.row("T2", "T9", of="fetches")
def test_a_cut_body_is_a_passing_fault(mover: Mover, fault: list[Step]) -> None:
    with FaultServer(fault) as server, pytest.raises(RegistryUnavailable):
        fetch(mover, server.url)


def test_a_download_left_early_does_not_spoil_the_next(mover: Mover) -> None:
    with FaultServer([answer(200, PART)]) as server:
        with mover.get(server.url) as download:
            next(download.blocks())
        assert fetch(mover, server.url) == PART
    assert server.connections == 2


def test_an_error_in_the_block_comes_out(mover: Mover) -> None:
    with FaultServer([answer(200, PART)]) as server, pytest.raises(ZeroDivisionError):
        with mover.get(server.url):
            raise ZeroDivisionError


def test_a_download_can_be_the_body_of_an_upload(mover: Mover) -> None:
    with FaultServer([answer(200, PART)]) as source, FaultServer(OK) as target:
        with mover.get(source.url) as download:
            mover.put(target.url, lambda: download, len(PART))
    assert target.requests[0].body_length == len(PART)
    assert target.requests[0].body == PART[: len(target.requests[0].body)]


@pytest.mark.row("T13", of=("sends", "fetches"))
def test_only_the_beginning_of_an_error_page_is_read(mover: Mover) -> None:
    with FaultServer([answer(500, bytes(10 << 20))]) as server, mover.get(server.url) as download:
        assert len(download.answer().body) == 64 << 10


@pytest.mark.row("T19", of="fetches")
def test_a_redirected_download_takes_no_credential_along(mover: Mover) -> None:
    with FaultServer([answer(200, b"bytes")]) as other:
        with FaultServer([answer(302, headers={"Location": f"{other.url}/there"})]) as server:
            assert fetch(mover, server.url, headers={"X-Api-Key": TOKEN, "Range": "bytes=0-"}) == b"bytes"
    assert other.requests[0].header_names == {"host", "accept-encoding", "user-agent", "range"}


def test_a_redirect_within_a_server_keeps_the_connection_and_its_page_does_not_count(mover: Mover) -> None:
    moved: list[int] = []
    with FaultServer([answer(302, b"over there", headers={"Location": "/there"})], [answer(200, b"bytes")]) as server:
        with mover.get(server.url, on_bytes=moved.append) as download:
            assert b"".join(map(bytes, download.blocks())) == b"bytes"
    assert (server.connections, sum(moved)) == (1, 5)


@pytest.mark.parametrize("location", ["/again", "file:///etc/passwd", "http://u:p@127.0.0.1/"])
@pytest.mark.row("T20", of=("sends", "fetches"))
def test_a_redirect_that_leads_nowhere_ends(mover: Mover, location: str) -> None:
    with FaultServer([answer(307, headers={"Location": location})]) as server:
        with pytest.raises(InvalidInput):
            fetch(mover, server.url)
        with pytest.raises(InvalidInput):
            mover.put(server.url, part, len(PART))
    assert len(server.requests) in (2, 12)


def test_a_public_server_cannot_send_bytes_to_this_machine(authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context()) as inner:
        script = [answer(307, headers={"Location": inner.url})]
        with FaultServer(script, tls=authority.server_context()) as server:
            mover = Mover(settings(server, ca_bundle=str(authority.bundle)), base_url="https://registry.example")
            with pytest.raises(InvalidInput, match="names this machine"):
                mover.put(server.url, part, len(PART))
    assert inner.requests == []


# --- standstill and cancelling

STUCK: dict[str, list[Step]] = {
    "no answer": [Stall()],
    "nothing read": [ReadSome(0), Stall()],
    "dripped headers": [Send(b"HTTP/1.1 200 OK\r\n"), Drip(b"X-Padding: 1\r\n" * 1000, 0.02)],
    "dripped body": [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"), Drip(b"x" * 9999, 0.02)],
    "dripped chunks": [Send(CHUNKED), Drip(b"1\r\nx\r\n" * 9999, 0.02)],
    "dripped until the end": [Send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"), Drip(b"x" * 9999, 0.02)],
}


def exchange(mover: Mover, url: str, stuck: str, **options: Any) -> None:
    if stuck in ("no answer", "nothing read", "dripped headers"):
        mover.put(url, Endless, 50 << 20, **options)
    else:
        with mover.get(url, **options) as download:
            for _ in download.blocks():
                pass


@pytest.mark.parametrize("stuck", STUCK)
@pytest.mark.row("T6", "T8", of=("sends", "fetches"))
def test_a_standstill_is_noticed(mover: Mover, stuck: str) -> None:
    with (
        FaultServer(STUCK[stuck]) as server,
        pytest.raises(TransferStalled, match=r"fewer than 1024 bytes moved in 0\.4 s"),
    ):
        exchange(mover, server.url, stuck, pace=SOON)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("stuck", STUCK)
def test_cancelling_ends_what_is_stuck(stuck: str, tls: bool, authority: Authority) -> None:
    token = CancelToken()
    with FaultServer(STUCK[stuck], tls=authority.server_context() if tls else None) as server:
        mover = Mover(settings(server, ca_bundle=str(authority.bundle)), cancel=token)
        with killed(token, after=0.3), pytest.raises(Cancelled):
            exchange(mover, server.url, stuck)


def test_cancelling_ends_a_tls_handshake() -> None:
    token = CancelToken()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with killed(token, after=0.3), pytest.raises(Cancelled):
            Mover(settings(), cancel=token).put(url, part, len(PART))


def test_cancelling_ends_an_attempt_to_connect() -> None:
    token = CancelToken()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # Linux drops further attempts once the queue is full, so that connecting hangs.
        with contextlib.ExitStack() as fillers:
            for _ in range(4):
                filler = fillers.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            with killed(token, after=0.3), pytest.raises(Cancelled):
                Mover(settings(), cancel=token).put(f"http://127.0.0.1:{full.getsockname()[1]}", part, len(PART))


def test_a_cancelled_mover_sends_nothing(mover: Mover) -> None:
    token = CancelToken()
    token.cancel()
    with FaultServer(OK) as server, pytest.raises(Cancelled):
        mover.put(server.url, part, len(PART), cancel=token)
    assert server.connections == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def slowly(clock: Clock, blocks: list[bytes], *, every: float) -> list[Step]:
    """Send blocks, and let time pass after each of them."""
    script: list[Step] = []
    for number, block in enumerate(blocks, 1):
        received = sum(map(len, blocks[:number]))
        script += [Send(block), Do(lambda received=received: clock.advance(every, received=received))]
    return script


def test_a_slow_transfer_is_no_standstill(mover: Mover, clock: Clock) -> None:
    # 1024 bytes in each 0.1 s: four times what is wanted, for twice the window.
    block = b"x" * 1024
    script = slowly(clock, [b"HTTP/1.1 200 OK\r\nContent-Length: 8192\r\n\r\n", *[block] * 8], every=0.1)
    with FaultServer(script) as server:
        assert fetch(mover, server.url, pace=SOON) == block * 8


def test_time_that_the_other_side_of_a_copy_takes_is_no_standstill(mover: Mover, clock: Clock) -> None:
    class Slow(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            clock.advance(0.6)
            return super().readinto(buffer)

    paused, block = threading.Event(), PART[:BLOCK]
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {2 * BLOCK}\r\n\r\n".encode()
    script = [Send(head + block), Do(lambda: paused.wait(60) and clock.advance(0.1)), Send(block)]
    with FaultServer(script, OK) as server:
        with mover.get(server.url, pace=SOON) as download:
            for _ in download.blocks():
                clock.advance(0)  # what has come is noticed
                clock.advance(0.6)
                paused.set()
        assert mover.put(server.url, lambda: Slow(b"abc"), 3, pace=SOON).status == 200


class FromAnother:
    """A body that comes from another server, whose answer stays open."""

    def __init__(self, mover: Mover, url: str) -> None:
        self._stack = contextlib.ExitStack()
        self._ask = lambda: self._stack.enter_context(mover.get(url))
        self._answer: Download | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        self._answer = self._answer or self._ask()
        return self._answer.readinto(buffer)

    def close(self) -> None:
        self._stack.close()


def test_a_body_that_comes_from_another_server_is_no_standstill(mover: Mover, clock: Clock) -> None:
    """Each byte counts for the transfer that it belongs to."""
    size = 24 << 20
    with FaultServer([answer(200, bytes(size))]) as source, FaultServer(OK) as target:
        body = FromAnother(mover, source.url)
        assert mover.put(target.url, lambda: body, size).status == 200
    assert target.requests[0].body_length == size
    assert [size < watch.count < size + 1024 for watch in clock.watches] == [True, True]


UNHURRIED = Pace(min_bytes=1, window_seconds=30, answer_seconds=30, rate_seconds=0.3)


@pytest.mark.parametrize(("min_rate_kib_s", "stalls"), [(1000, True), (0.001, False), (0, False)])
@pytest.mark.row("T7", of="fetches")
def test_a_transfer_slower_than_the_connection_allows_is_stalled(
    min_rate_kib_s: float, clock: Clock, *, stalls: bool
) -> None:
    trickle = [b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n", *[bytes(1000)] * 20]
    with (
        FaultServer(slowly(clock, trickle, every=0.05)) as server,
        closing(Mover(settings(min_rate_kib_s=min_rate_kib_s), pace=UNHURRIED)) as mover,
    ):
        if stalls:
            with pytest.raises(TransferStalled, match=r"slower than the 1000 KiB/s .* min_rate_kib_s"):
                fetch(mover, server.url)
        else:
            assert len(fetch(mover, server.url)) == 20_000


@pytest.mark.row("T7", of="sends")
def test_a_trickle_of_an_upload_is_stalled_too(clock: Clock) -> None:
    reading: list[Step] = []
    for _ in range(20):
        reading += [ReadSome(4000), Do(lambda: clock.advance(0.05))]
    with (
        FaultServer([*reading, *OK]) as server,
        closing(Mover(settings(min_rate_kib_s=100_000), pace=UNHURRIED)) as mover,
    ):
        with pytest.raises(TransferStalled, match="min_rate_kib_s"):
            mover.put(server.url, Endless, 64 << 20)


def test_the_rate_is_measured_while_the_network_is_waited_for() -> None:
    """A drip of some KiB a minute counts as moving for ever; thinking and pausing do not count as slow."""
    now = [0.0]
    watch = Watch(Pace(), CancelToken(), min_rate=1024, clock=lambda: now[0])

    def minutes(count: int, moved: int) -> None:
        for _ in range(count):
            now[0] += 60
            watch.moved(moved)
            watch.look()

    minutes(20, 60 << 10)
    watch.check("sending")
    watch.expect_answer()
    watch.pause()
    minutes(20, 0)
    watch.resume()
    watch.expect_bytes()
    minutes(4, 2000)
    watch.check("receiving")
    minutes(1, 2000)
    with pytest.raises(TransferStalled, match="10000 bytes moved in 300 s"):
        watch.check("receiving")


def test_a_server_may_think_longer_than_bytes_may_rest(mover: Mover, clock: Clock) -> None:
    pace = Pace(window_seconds=0.2, answer_seconds=5)
    with FaultServer([Do(lambda: clock.advance(0.6, is_sent=True)), *OK]) as server:
        assert mover.put(server.url, part, 10, pace=pace).status == 200


def test_the_watchdog_rests_when_nothing_moves(mover: Mover) -> None:
    before = set(threading.enumerate())  # those of other tests
    with FaultServer(OK) as server:
        mover.put(server.url, part, 10)
    until(
        lambda: not any(thread.name == "modelsync-watchdog" for thread in {*threading.enumerate()} - before),
        "the watchdog to rest",
    )


def test_no_descriptor_is_left_behind() -> None:
    mover = Mover(settings())
    before = set(opened("socket:"))
    with FaultServer([Send(b"HTTP/1.1 200 OK\r\n\r\nabc"), Close()]) as closing, FaultServer([Reset()]) as resetting:
        for _ in range(5):
            fetch(mover, closing.url)
            with pytest.raises(RegistryUnavailable):
                mover.put(resetting.url, part, len(PART))
    mover.close()
    until(lambda: set(opened("socket:")) <= before, "the sockets to be closed", seconds=30)


# --- TLS and proxies


@pytest.mark.row("T17", of=("sends", "fetches", "rest"))
def test_a_servers_own_ca_and_a_client_certificate_are_used(authority: Authority) -> None:
    certificate, key = authority.certificate("client")
    files = {"ca_bundle": str(authority.bundle), "client_cert": str(certificate), "client_key": str(key)}
    with FaultServer(OK, [answer(200, PART)], tls=authority.server_context(ask_client=True)) as server:
        mover = Mover(settings(server, **files))
        assert mover.put(server.url, part, len(PART)).status == 200
        assert fetch(mover, server.url) == PART
    assert server.connections == 1


def test_verification_is_left_out_only_when_told(authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context("other.example")) as server:
        with pytest.warns(InsecureRequestWarning):
            assert Mover(settings(server, verify_tls=False)).put(server.url, part, 9).status == 200


@pytest.mark.parametrize(("host", "days"), [("127.0.0.1", 2), ("other.example", 2), ("127.0.0.1", -1)])
@pytest.mark.row("T16", of=("sends", "fetches", "rest"))
def test_a_certificate_that_is_not_accepted_ends_the_transfer(
    authority: Authority, host: str, days: int, tmp_path: Path
) -> None:
    trusted = authority if (host, days) != ("127.0.0.1", 2) else Authority(tmp_path, "stranger")
    with FaultServer(OK, tls=authority.server_context(host, days=days)) as server:
        mover = Mover(settings(server, ca_bundle=str(trusted.bundle)))
        with pytest.raises(InvalidInput, match="ca_bundle"):
            mover.put(server.url, part, len(PART))
    assert server.requests == []


@pytest.mark.row("T16", of=("sends", "fetches", "rest"))
def test_a_plain_port_asked_for_tls_is_named(mover: Mover) -> None:
    with plain_port() as url, pytest.raises(InvalidInput, match="Is this an https port"):
        mover.put(url, part, len(PART))


@pytest.mark.row("T18", of=("sends", "fetches", "rest"))
def test_a_proxy_variable_that_cannot_be_used_is_named_and_the_connection_s_own_proxy_wins(
    mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"socks5://user:{TOKEN}@proxy.example")
    url = "http://storage.example/key"
    for transfer in (lambda: mover.put(url, part, len(PART)), lambda: fetch(mover, url)):
        with pytest.raises(InvalidInput, match="variable HTTP_PROXY") as caught:
            transfer()
        assert TOKEN not in str(caught.value)
    with FaultServer(OK, [answer(200, PART)]) as proxy:
        own = Mover(settings(proxy, proxy=proxy.url))
        assert own.put(url, part, len(PART)).status == 200
        assert fetch(own, url) == PART
    assert proxy.targets == [url, url]


@pytest.mark.row("T18", of=("sends", "fetches", "rest"))
def test_a_missing_ca_file_in_the_environment_is_named_and_the_connection_s_own_wins(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca")
    with FaultServer(OK, [answer(200, PART)], tls=authority.server_context()) as server:
        for transfer in (lambda it: it.put(server.url, part, len(PART)), lambda it: fetch(it, server.url)):
            with pytest.raises(InvalidInput, match="variable SSL_CERT_FILE"):
                transfer(Mover(settings(server)))
        own = Mover(settings(server, ca_bundle=str(authority.bundle)))
        assert own.put(server.url, part, len(PART)).status == 200
        assert fetch(own, server.url) == PART


@pytest.mark.row("T18", of=("sends", "fetches", "rest"))
def test_no_bytes_take_a_password_from_netrc(mover: Mover, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (netrc := tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultServer(OK, [answer(200, PART)]) as server:
        mover.put(server.url, part, len(PART))
        fetch(mover, server.url)
    assert ["authorization" in request.header_names for request in server.requests] == [False, False]


@pytest.mark.parametrize("from_environment", [False, True])
@pytest.mark.row("T17", "T18", of=("sends", "fetches", "rest"))
def test_a_proxy_carries_the_bytes(
    authority: Authority, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = OK, [answer(200, PART)]
    with FaultServer(*scripts, tls=authority.server_context()) as server, FaultServer([Tunnel()]) as proxy:
        own = proxy.url.replace("//", "//user:pa%24s@")
        if from_environment:
            monkeypatch.setenv("HTTPS_PROXY", own)
        fields = {"ca_bundle": str(authority.bundle)} | ({} if from_environment else {"proxy": own})
        mover = Mover(settings(server, **fields))
        assert mover.put(server.url, part, len(PART)).status == 200
        assert fetch(mover, server.url) == PART
        mover.close()
    assert [request.method for request in proxy.requests] == ["CONNECT"]
    assert proxy.requests[0].header("Proxy-Authorization") == "Basic dXNlcjpwYSRz"
    assert "proxy-authorization" not in server.requests[0].header_names


@pytest.mark.row("T15", of=("sends", "fetches", "rest"))
def test_a_host_without_address_is_named_alone(mover: Mover, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RegistryUnavailable, match=r"PUT http://s3\.invalid/k: the host name cannot be resolved"):
        mover.put("http://s3.invalid/k?sig=1", part, 1)


# --- trying again


def tries(*outcomes: Exception | str) -> Callable[[], str]:
    left = list(outcomes)

    def fn() -> str:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return fn


FULL = Backoff(random=lambda: 1.0)


@pytest.mark.row("T3", of=("sends", "fetches", "rest"))
def test_what_passes_is_tried_five_times() -> None:
    token = Waits()
    faults = [RegistryUnavailable("a"), TransferStalled("b"), RegistryUnavailable("c"), RegistryUnavailable("d")]
    assert with_retries(tries(*faults, "done"), cancel=token, backoff=FULL) == "done"
    assert token.seconds == [0.5, 1.0, 2.0, 4.0]
    with pytest.raises(RegistryUnavailable, match="e"):
        with_retries(tries(*faults, RegistryUnavailable("e"), "done"), cancel=token, backoff=FULL)


@pytest.mark.parametrize(
    "fault", [Unauthorized("a"), SourceChanged("a"), Cancelled("a"), InvalidInput("a"), KeyError()]
)
def test_what_does_not_pass_is_not_tried_again(fault: Exception) -> None:
    with pytest.raises(type(fault)):
        with_retries(tries(fault, "done"), cancel=Waits())


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.row("T4", of=("sends", "fetches", "rest"))
def test_a_server_that_asks_to_wait_is_given_the_time(mover: Mover, status: int) -> None:
    token = Waits()
    with FaultServer([answer(status, headers={"Retry-After": "7"})], OK) as server:
        with_retries(lambda: mover.put(server.url, part, 10).raise_for_store("sending"), cancel=token, backoff=FULL)
    assert token.seconds == [7.0]


@pytest.mark.parametrize(("wait", "seconds"), [("3600", None), ("20", 10.0)])
@pytest.mark.row("T5", of=("sends", "fetches", "rest"))
def test_a_wait_that_is_too_long_ends_the_tries(mover: Mover, wait: str, seconds: float | None) -> None:
    token = Waits()
    with FaultServer([answer(503, headers={"Retry-After": wait})], OK) as server:
        with pytest.raises(RegistryUnavailable, match=f"wait {wait} s"):
            with_retries(
                lambda: mover.put(server.url, part, 10).raise_for_store("sending"), cancel=token, seconds=seconds
            )
    assert token.seconds == []


def test_no_try_begins_after_the_deadline() -> None:
    token = Waits()
    faults = [RegistryUnavailable("a")] * 5
    with pytest.raises(RegistryUnavailable):
        with_retries(tries(*faults), cancel=token, backoff=FULL, seconds=0.9, clock=lambda: sum(token.seconds))
    assert token.seconds == [0.5]


def test_what_must_not_be_done_twice_is_repeated_only_when_it_was_not_done(mover: Mover) -> None:
    token = Waits()
    with FaultServer([Close()], OK) as server, pytest.raises(RegistryUnavailable):
        with_retries(lambda: mover.put(server.url, part, 9, method="POST"), cancel=token, passing=UNPROCESSED)
    assert token.seconds == []
    with nobody_listens() as gone, pytest.raises(RegistryUnavailable, match="refused"):
        with_retries(lambda: mover.put(gone, part, 9, method="POST"), cancel=token, passing=UNPROCESSED)
    assert len(token.seconds) == 4


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
        (403, b""),
        (400, b"<Error><Code>ExpiredToken</Code></Error>"),
    ],
)
@pytest.mark.row("A4", of=("sends", "fetches"))
def test_an_expired_url_is_replaced_and_the_part_sent_again(mover: Mover, status: int, body: bytes) -> None:
    with FaultServer([answer(status, body)], OK) as server:
        urls = [f"{server.url}/new", f"{server.url}/old"]
        with_retries(lambda: mover.put(urls.pop(), part, 10).raise_for_store("sending part 1"), cancel=Waits())
    assert server.targets == ["/old", "/new"]


@pytest.mark.row("A4", of=("sends", "fetches"))
def test_urls_that_stay_refused_end_the_tries(mover: Mover) -> None:
    with FaultServer([answer(403, b"<Error><Code>AccessDenied</Code></Error>")]) as server:
        with pytest.raises(UrlExpired, match=r"^AccessDenied \(status 403"):
            with_retries(lambda: mover.put(server.url, part, 10).raise_for_store("sending part 1"), cancel=Waits())
    assert len(server.requests) == 5


def test_an_expired_url_ends_the_tries_of_what_must_not_be_done_twice(mover: Mover) -> None:
    with FaultServer([answer(403)]) as server, pytest.raises(UrlExpired):
        with_retries(
            lambda: mover.put(server.url, part, 10).raise_for_store("sending"), cancel=Waits(), passing=UNPROCESSED
        )
    assert len(server.requests) == 1


# --- what a storage says


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "RequestTimeTooSkewed", Unauthorized, "clock"),
        (400, "RequestTimeout", RegistryUnavailable, "RequestTimeout"),
        (400, "EntityTooLarge", InvalidInput, "EntityTooLarge"),
        (404, "NoSuchUpload", ModelNotFound, "NoSuchUpload"),
        (413, "EntityTooLarge", NotSupported, "too large"),
        (500, "InternalError", RegistryUnavailable, "InternalError"),
        (503, "SlowDown", RegistryUnavailable, "SlowDown"),
    ],
)
def test_a_refusal_of_the_storage_becomes_an_error(
    mover: Mover, status: int, code: str, kind: type[ModelSyncError], words: str
) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>It said\x1b so</Message></Error>".encode()
    with FaultServer([answer(status, body)]) as server:
        response = mover.put(f"{server.url}/k?X-Amz-Signature={TOKEN}", part, 10)
        assert response.store_code == code
        with pytest.raises(kind, match=words) as caught:
            response.raise_for_store("sending part 1", not_found=ModelNotFound)
    assert TOKEN not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_refusal_of_the_registry_is_about_credentials(mover: Mover) -> None:
    with FaultServer([answer(403, f"bad token {TOKEN}".encode())]) as server:
        response = mover.put(server.url, part, 10, {"X-Api-Key": TOKEN})
        with pytest.raises(Unauthorized, match=r"uploading fraud .*bad token \*\*\*"):
            response.raise_for_status("uploading fraud")


def test_a_header_with_a_line_break_is_refused_unquoted(mover: Mover) -> None:
    with pytest.raises(InvalidInput, match=r"(header X-Api-Key|password) holds") as caught:
        mover.put("http://127.0.0.1:1", part, 10, {"X-Api-Key": f"{TOKEN}\r\nX: y"})
    assert TOKEN not in str(caught.value)


@pytest.mark.row("A8", of=("sends", "fetches"))
def test_no_signature_gets_into_logs_or_errors(mover: Mover, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FaultServer(OK, [Reset()]) as server:
        url = f"{server.url}/k?X-Amz-Credential=me&X-Amz-Signature={TOKEN}"
        mover.put(url, part, 10)
        with pytest.raises(Retryable) as caught:
            with_retries(lambda: mover.put(url, part, 10), cancel=Waits())
    said = caplog.text + "".join(traceback.format_exception(caught.value))
    assert '"PUT /k?…' in said
    assert "trying again" in said
    assert "X-Amz" not in said
    assert TOKEN not in said


@pytest.mark.slow
def test_urllib3_is_loaded_only_when_bytes_move() -> None:
    code = "import sys, airflow_provider_modelsync.core.transfer.mover; sys.exit('urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_exchange_sends_a_body_and_receives_another(mover: Mover) -> None:
    sent, wanted = os.urandom(2 * BLOCK + 5), os.urandom(3 * BLOCK + 1)
    with FaultServer([ReadRest(), answer(200, wanted)]) as server:
        with mover.exchange(server.url, lambda: io.BytesIO(sent), len(sent), {"X-Api-Key": TOKEN}) as download:
            got = b"".join(map(bytes, download.blocks()))
        (request,) = server.requests
    assert got == wanted
    assert (request.method, request.body_length, request.header("content-length")) == (
        "POST",
        len(sent),
        str(len(sent)),
    )


def test_a_redirected_exchange_sends_the_body_again_and_no_credential(mover: Mover) -> None:
    sent = os.urandom(BLOCK + 5)
    with FaultServer([ReadRest(), answer(200, b"there")]) as there:
        with FaultServer([ReadRest(), answer(307, headers={"Location": f"{there.url}/there"})]) as here:
            body = lambda: io.BytesIO(sent)  # noqa: E731
            with mover.exchange(here.url, body, len(sent), {"Authorization": f"Bearer {TOKEN}"}) as download:
                got = b"".join(map(bytes, download.blocks()))
        (request,) = there.requests
    assert got == b"there"
    assert request.body_length == len(sent)
    assert request.header("authorization") is None


def test_an_exchange_whose_body_is_short_is_not_sent_as_if_it_were_whole(mover: Mover) -> None:
    with FaultServer([ReadRest(), answer(200, b"ok")]) as server, pytest.raises(SourceChanged):
        with mover.exchange(server.url, lambda: io.BytesIO(b"short"), 10):
            pass

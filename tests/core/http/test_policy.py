"""API calls under faults: the one request policy, run by both drivers against a server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import BaseModel, Field
from pydantic_core import from_json

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    Permanent,
    RegistryUnavailable,
    Retryable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, Flow, Policy, Sleep, SyncDriver, send
from airflow_provider_modelsync.core.http import network, slices
from airflow_provider_modelsync.core.http.addresses import check_server_url
from airflow_provider_modelsync.core.http.faults import classify, retry_after
from airflow_provider_modelsync.core.http.policy import (
    ApiClient,
    Backoff,
    RequestPolicy,
    raise_for_status,
    read_json,
    repeatable,
)
from airflow_provider_modelsync.core.http.storage import Refusal
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.mover import Mover
from tests.standins.authority import Authority
from tests.standins.fault_server import (
    SLOW_ANSWERS,
    Close,
    Drip,
    FaultServer,
    Reset,
    Send,
    Stall,
    Step,
    Tunnel,
    answer,
)
from tests.support.kills import killed
from tests.support.sockets import nobody_listens, plain_port
from tests.support.until import until

TOKEN = "canary-7f+3/a=secret"  # holds characters that look different once quoted
OK = [answer(200, b'{"name": "fraud"}')]
CUT = [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), Close()]


class FakeClock:
    """Time that passes only while the policy waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def without_waiting(self, policy: Policy) -> Policy:
        """Return the policy with its waits taken from this clock."""

        def fast(request: httpx.Request) -> Flow[httpx.Response]:
            flow = policy(request)
            try:
                step = next(flow)
                while True:
                    if isinstance(step, Sleep):
                        self.waits.append(step.seconds)
                        self.now += step.seconds
                        step = flow.send(None)
                        continue
                    try:
                        result = yield step
                    except Exception as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(result)
            except StopIteration as stop:
                return stop.value

        return fast


def settings(host: str = "https://registry.example", **fields: Any) -> RegistrySettings:
    return RegistrySettings.read("registry", {"host": host, "password": TOKEN, **fields})


def credentials() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}", "X-YATAI-API-TOKEN": TOKEN, "x-api-key": TOKEN, "Cookie": f"s={TOKEN}"}


@pytest.fixture(autouse=True)
def _no_proxy_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Caller:
    """Makes API calls with one of the drivers."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = FakeClock()

    def run(
        self,
        flow: Flow[Any],
        to: RegistrySettings,
        *,
        refresh: Any = None,
        seconds: float | None = None,
        first: float = 0.5,
    ) -> Any:
        """Run a flow with the policy, waits skipped."""
        backoff = Backoff(first=first, random=lambda: 1.0)
        policy = RequestPolicy(to, refresh=refresh, seconds=seconds, backoff=backoff, clock=self.clock)
        fast = self.clock.without_waiting(policy)
        if self.kind == "sync":
            with network.client(to) as client:
                return SyncDriver(client, policy=fast).run(flow)

        async def run() -> Any:
            async with network.async_client(to) as client:
                return await AsyncDriver(client, policy=fast).run(flow)

        return asyncio.run(run())

    def call(self, server: FaultServer, method: str = "GET", path: str = "/models", **options: Any) -> httpx.Response:
        """Make one call to a server and return the answer."""
        to = options.pop("to", None) or settings(server.url)
        kept = {name: options.pop(name) for name in ("refresh", "seconds", "first") if name in options}
        api = ApiClient(to, server.url, credentials=credentials)
        response: httpx.Response = self.run(send(api.request(method, path, **options)), to, **kept)
        return response


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


# --- what is tried again


@pytest.mark.parametrize("fault", [[Reset()], CUT, [Close()], [Send(b"HTTP/1.1 200 OK\r\nContent-Le"), Reset()]])
@pytest.mark.row("T9", "T3", of="calls")
def test_a_broken_exchange_is_repeated(caller: Caller, fault: list[Step]) -> None:
    with FaultServer(fault, fault, OK) as server:
        assert caller.call(server).json() == {"name": "fraud"}
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.row("T3", of="calls")
def test_a_passing_status_is_repeated(caller: Caller, status: int) -> None:
    with FaultServer([answer(status)], [answer(status)], OK) as server:
        assert caller.call(server).status_code == 200
    assert caller.clock.waits == [0.5, 1.0]


def test_each_try_that_failed_is_a_warning_with_the_url_once_and_the_first_says_what_to_check(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer([answer(503)], [answer(429, headers={"Retry-After": "0"})], OK) as server:
        caller.call(server)
    first, second = (record for record in caplog.records if record.name == "modelsync")
    assert {first.levelname, second.levelname} == {"WARNING"}
    assert [record.getMessage().count(server.url) for record in (first, second)] == [1, 1]
    assert "status 503 Service Unavailable; trying again in 0.5 s (1 of 5). If it goes on: " in first.getMessage()
    assert second.getMessage().endswith("status 429 Too Many Requests; trying again in 1 s (2 of 5)")


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 501, 507])
def test_a_final_status_is_not_repeated(caller: Caller, status: int) -> None:
    with FaultServer([answer(status)], OK) as server:
        assert caller.call(server).status_code == status
    assert len(server.requests) == 1


def test_five_attempts_are_enough(caller: Caller) -> None:
    with FaultServer([answer(503)]) as server:
        assert caller.call(server).status_code == 503
    assert len(server.requests) == 5
    assert caller.clock.waits == [0.5, 1.0, 2.0, 4.0]


def test_an_endless_fault_is_retryable_and_names_the_request(caller: Caller) -> None:
    with (
        FaultServer([Reset()]) as server,
        pytest.raises(RegistryUnavailable, match=r"GET http://127.*/models: ") as caught,
    ):
        caller.call(server)
    assert len(server.requests) == 5
    assert caught.value.__suppress_context__  # lower layers quote URLs and headers


def test_no_attempt_begins_after_the_deadline(caller: Caller) -> None:
    with FaultServer([answer(503)]) as server:
        assert caller.call(server, seconds=50.0, first=10.0).status_code == 503
    assert caller.clock.waits == [10.0, 20.0]


def test_jitter_is_full() -> None:
    assert Backoff(random=lambda: 0.0).delay(3) == 0
    assert Backoff(random=lambda: 0.5).delay(3) == 1.0
    assert [Backoff(random=lambda: 1.0).delay(failures) for failures in (50, 10_000)] == [30, 30]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("fault", [[answer(500)], [answer(503)], [answer(504)], [Reset()], CUT])
@pytest.mark.row("T3", of="calls")
def test_what_may_have_been_carried_out_is_not_repeated(caller: Caller, method: str, fault: list[Step]) -> None:
    with FaultServer(fault, OK) as server:
        try:
            assert caller.call(server, method).status_code >= 500
        except RegistryUnavailable:
            assert fault[-1] != answer(500)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [[answer(500)], [Reset()]])
def test_a_call_marked_as_repeatable_is_repeated(caller: Caller, fault: list[Step]) -> None:
    with FaultServer(fault, OK) as server:
        assert caller.call(server, "POST", may_repeat=True, json={"a": 1}).status_code == 200
    assert [json.loads(request.body) for request in server.requests] == [{"a": 1}] * 2


def test_a_request_can_be_marked_later() -> None:
    assert repeatable(httpx.Request("POST", "https://x")).extensions["modelsync_idempotent"] is True


@pytest.mark.parametrize("fault", [answer(429), answer(425), answer(503, headers={"Retry-After": "1"})])
def test_what_was_refused_unprocessed_is_repeated_even_as_a_post(caller: Caller, fault: Step) -> None:
    with FaultServer([fault], OK) as server:
        assert caller.call(server, "POST").status_code == 200


def test_a_refused_connection_is_tried_again_even_for_a_post(caller: Caller) -> None:
    with nobody_listens() as host:
        to = settings(host)
        with pytest.raises(RegistryUnavailable, match="Connection refused"):
            caller.run(send(ApiClient(to, host).request("POST", "/models")), to)
    assert len(caller.clock.waits) == 4


@pytest.mark.row("T15", of="calls")
def test_a_host_without_address_is_named_alone(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    to = settings("http://registry.invalid")
    with pytest.raises(RegistryUnavailable, match=r"registry\.invalid/models: the host name cannot be resolved"):
        caller.run(send(ApiClient(to, "http://registry.invalid").request("GET", "/models?q=private")), to)
    assert len(caller.clock.waits) == 4


# --- Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.row("T4", of="calls")
def test_a_server_that_asks_to_wait_is_given_the_time(caller: Caller, status: int) -> None:
    with FaultServer([answer(status, headers={"Retry-After": "3"})], OK) as server:
        assert caller.call(server).status_code == 200
    assert caller.clock.waits == [3.0]


@pytest.mark.row("T5", of="calls")
def test_a_date_to_wait_for_is_read_against_the_servers_clock(caller: Caller) -> None:
    headers = {"Date": "Mon, 01 Jan 2001 00:00:00 GMT", "Retry-After": "Mon, 01 Jan 2001 00:00:07 GMT"}
    with FaultServer([answer(503, headers=headers)], OK) as server:
        assert caller.call(server).status_code == 200
    assert caller.clock.waits == [7.0]


@pytest.mark.parametrize(
    "value",
    ["-5", "soon", "", "1.5e3", "²", "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 99 Foo 2001 00:00:00 GMT", "0"],
)
@pytest.mark.row("T5", of="calls")
def test_a_senseless_time_to_wait_counts_as_none(caller: Caller, value: str) -> None:
    headers = {"Date": "Mon, 01 Jan 2001 00:00:05 GMT", "Retry-After": value}
    script = [Send(answer(503, headers=headers).data.replace("²".encode(), b"\xb2"))]
    with FaultServer(script, OK) as server:
        assert caller.call(server).status_code == 200
    assert caller.clock.waits == [0.5]


@pytest.mark.parametrize("value", ["315360000", "9" * 400, "Tue, 01 Jan 2099 00:00:00 GMT"])
@pytest.mark.row("T5", of="calls")
def test_a_wait_beyond_the_deadline_ends_the_call_at_once(caller: Caller, value: str) -> None:
    with FaultServer([answer(503, headers={"Retry-After": value})], OK) as server:
        with pytest.raises(RegistryUnavailable, match=r"wants us to wait \d+ s"):
            caller.call(server)
    assert caller.clock.waits == []
    assert len(server.requests) == 1


def test_a_date_without_the_servers_clock_is_read_against_ours() -> None:
    assert retry_after(httpx.Headers({"Retry-After": "Tue, 01 Jan 2099 00:00:00 GMT"})) > 1e9  # type: ignore[operator]


# --- time


@pytest.mark.parametrize("fault", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
@pytest.mark.row("T6", "T7", of="calls")
def test_neither_silence_nor_a_drip_outlasts_the_deadline(caller: Caller, fault: list[Step]) -> None:
    with FaultServer(fault) as server, pytest.raises(RegistryUnavailable, match="within the time limit"):
        caller.call(server, "POST", seconds=0.4)
    assert len(server.requests) <= 1  # none where this machine takes that long to send it


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
@pytest.mark.row("T7", of="calls")
def test_a_drip_keeps_no_thread_and_no_connection_once_nobody_waits(begun: bytes) -> None:
    def left() -> int:
        return sum(thread.name == "modelsync-exchange" for thread in threading.enumerate())

    before = left()
    with FaultServer([Send(begun), Drip(b"a" * 4000, every=0.02)]) as server:
        for _ in range(2):
            with pytest.raises(RegistryUnavailable, match="did not answer within"):
                Caller("sync").call(server, "POST", seconds=0.3)
        until(lambda: left() <= before, "the threads to end", seconds=20)


def test_a_call_may_bring_its_own_time(caller: Caller) -> None:
    with FaultServer([Stall()]) as server:
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            caller.run(
                send(ApiClient(settings(server.url), server.url).request("POST", "/", seconds=0.2)),
                settings(server.url, timeout_seconds=600),
            )
    assert time.monotonic() - started < 30


def test_cancelling_ends_a_call_that_is_stuck() -> None:
    token = CancelToken()
    with FaultServer([Stall()]) as server, network.client(settings(server.url)) as client:
        driver = SyncDriver(client, policy=RequestPolicy(settings(server.url)), cancel=token)
        with killed(token, after=0.2), pytest.raises(Cancelled):
            driver.run(send(httpx.Request("GET", server.url)))


# --- sizes


@pytest.mark.row("T13", of="calls")
def test_only_the_beginning_of_an_error_page_is_read(caller: Caller) -> None:
    page = b"<html>\x1b[31m" + b"x" * (10 << 20)
    with FaultServer([answer(404, page)]) as server:
        response = caller.call(server)
    assert len(response.content) == 64 << 10
    with pytest.raises(InvalidInput) as caught:
        raise_for_status(response, "looking")
    assert len(str(caught.value).encode()) < 2048 + 200
    assert "\\x1b[31m" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Some 100 KiB that unpack to 60 MiB of good JSON."""
    packer = zlib.compressobj(9, wbits=31)
    block = b'{"name":"fraud"},' * (1 << 16)
    whole = [packer.compress(b"["), *(packer.compress(block) for _ in range(60)), packer.compress(b"{}]")]
    return b"".join(whole) + packer.flush()


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.row("T13", of="calls")
def test_a_compressed_page_is_not_unpacked_beyond_its_limit(caller: Caller, status: int, bomb: bytes) -> None:
    script = [answer(status, bomb, {"Content-Encoding": "gzip"})]
    with FaultServer(OK) as server:
        caller.call(server)  # loads what makes connections
    tracemalloc.start()
    try:
        with FaultServer(script) as server:
            if status == 200:
                with pytest.raises(RegistryUnavailable, match="larger than 4 MiB"):
                    caller.call(server, "POST")
            else:
                assert len(caller.call(server, "POST").content) == 64 << 10
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (16 << 20 if status == 200 else 4 << 20)


@pytest.mark.parametrize(
    ("allowed", "length", "fits"), [(1000, 1000, True), (1000, 1001, False), (8 << 20, 5 << 20, True)]
)
@pytest.mark.row("T13", of="calls")
def test_a_call_may_say_how_large_its_answer_can_be(caller: Caller, allowed: int, length: int, *, fits: bool) -> None:
    with FaultServer([answer(200, b"1" * length)]) as server:
        if fits:
            assert len(caller.call(server, "POST", answer_bytes=allowed).content) == length
        else:
            with pytest.raises(RegistryUnavailable, match="the answer is larger than"):
                caller.call(server, "POST", answer_bytes=allowed)


@pytest.mark.parametrize(
    "unit", [b"{},", b'{"name":"a"},', b"[],", b"0,", b'"",', b"[" * 300_000 + b"]" * 300_000 + b","]
)
@pytest.mark.row("T13", of="calls")
def test_an_answer_of_tiny_values_is_refused_before_it_is_read(unit: bytes) -> None:
    body = b"[" + unit * ((4 << 20) // len(unit) - 1) + b"0]"
    response = json_response(body)
    for shape in (list[Model], list[Any], object):
        tracemalloc.start()
        try:
            with pytest.raises(RegistryUnavailable, match="holds far more than it can mean"):
                read_json(response, shape)  # type: ignore[arg-type]
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("body", [b"[" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b" " * (300 << 10) + b"[" * 5000])
def test_a_deeply_nested_answer_is_no_json(body: bytes) -> None:
    with pytest.raises(RegistryUnavailable, match="is not JSON"):
        read_json(json_response(body), object)


class Entry(BaseModel):
    name: str
    facts: dict[str, str]
    made: datetime


class Page(BaseModel):
    total: int
    entries: list[Entry] = Field(alias="items")


class Shelf(BaseModel):
    pages: list[Page]


@pytest.mark.row("T13", of="calls")
@pytest.mark.parametrize(
    ("shape", "entries_of"),
    [(Page, lambda page: page.entries), (list[Entry], list), (Shelf, lambda shelf: shelf.pages[1].entries)],
)
def test_a_long_list_is_read_in_slices_between_which_other_threads_run(
    shape: Any, entries_of: Callable[[Any], list[Entry]]
) -> None:
    """In one call of a parser no thread but its own would run: the event loop would stand still."""
    entry = {"name": "a" * 50, "facts": {str(n): "x" * 30 for n in range(10)}, "made": "2026-01-01T00:00:00Z"}
    listed = [entry] * 4000
    page = {"total": 7, "items": listed}
    body = json.dumps({Page: page, Shelf: {"pages": [{"total": 0, "items": []}, page]}}.get(shape, listed)).encode()
    parsed: Counter[str] = Counter()
    turns = 0  # of Python's code, at which the interpreter lets others run

    def count(frame: FrameType, event: str, what: Any) -> None:
        nonlocal turns
        turns += event == "call" and frame.f_code.co_filename == slices.__file__
        if event == "c_call":
            parsed[what.__name__] += 1

    sys.setprofile(count)
    try:
        found = entries_of(read_json(json_response(body), shape))
    finally:
        sys.setprofile(None)
    assert len(found) == 4000
    assert found[-1].made.year == 2026
    assert parsed["from_json"] >= len(body) // slices.SLICE
    assert turns >= 4000  # once for each entry that is checked


@pytest.mark.parametrize(
    "text",
    [
        *("[-1.5, 1e+10, 12345678, 1E5, -0.25e-3]", '{"items": [{"entries": [1.5]}, {"a": [{"b": [2.25]}]}]}', "[1.]"),
        *("[" * 9999, "[" * 9999 + "]" * 9999, '{"pages": [{"items": [{"name": "abc"}, 1'),
        *("[]", "{}", " [ 1 , 2 ] ", '"x"', "3", "null", "[[],[1]]", '{"items": null}', '{"a": 1, "a": 2}', "[NaN]"),
        *('{"items": [{"a": "é\\u00e9"}, {"b": 1}], "total": 3}', '{ "a" : [ ] , "items" : [ ] }', "[1,\n\t2]"),
        *("", " ", "[1,]", "[,1]", '{"a": 1,}', '{"a" 1}', "{1: 2}", "[1 2]", "[1", '{"a":', "[1]]", "[1] x", "[01]"),
        *('["\\ud800"]', "\ufeff[1]", '["a\nb"]', '{"a": {"b": [1, {"c": 2}]}}'),
    ],
)
@pytest.mark.parametrize("shape", [list[Any], Page, Shelf, Any])
@pytest.mark.parametrize("size", [1, 2, 3, 10, slices.SLICE])
def test_slices_say_what_the_whole_says(text: str, shape: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", size)

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(entry) for key, entry in value.items()}
        return [whole(entry) for entry in value] if isinstance(value, (list, Iterator)) else value

    try:
        expected = repr(from_json(text))
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
            whole(slices.in_slices(text.encode(), shape))
    else:
        assert repr(whole(slices.in_slices(text.encode(), shape))) == expected


def test_what_is_wrong_in_a_long_list_is_named() -> None:
    body = json.dumps({"total": 7, "items": [{"name": "a" * 300_000}]}).encode()
    with pytest.raises(RegistryUnavailable, match=r"items\.0\.facts: Field required"):
        read_json(json_response(body), Page)


def test_a_compressed_answer_is_read(caller: Caller) -> None:
    with FaultServer([answer(200, gzip.compress(b'{"a": 1}'), {"Content-Encoding": "gzip"})]) as server:
        assert caller.call(server).json() == {"a": 1}
    assert server.requests[0].header("Accept-Encoding") == "gzip"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "gzip, gzip"])
def test_an_answer_that_cannot_be_decoded_is_a_passing_fault(caller: Caller, coding: str) -> None:
    with FaultServer([answer(200, b"not compressed", {"Content-Encoding": coding})], OK) as server:
        assert caller.call(server).json() == {"name": "fraud"}


def test_an_error_that_cannot_be_decoded_keeps_its_status(caller: Caller) -> None:
    with FaultServer([answer(404, b"not compressed", {"Content-Encoding": "br"})]) as server:
        assert caller.call(server).status_code == 404


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.row("T17", of="calls")
def test_a_servers_own_ca_is_trusted_when_named(caller: Caller, authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context()) as server:
        to = settings(server.url, ca_bundle=str(authority.bundle))
        assert caller.call(server, to=to).status_code == 200


@pytest.mark.parametrize(("host", "days"), [("127.0.0.1", 2), ("other.example", 2), ("127.0.0.1", -1)])
@pytest.mark.row("T16", of="calls")
def test_a_certificate_that_is_not_accepted_ends_the_call(
    caller: Caller, authority: Authority, host: str, days: int, tmp_path: Path
) -> None:
    trusted = authority if (host, days) != ("127.0.0.1", 2) else Authority(tmp_path, "stranger")
    with FaultServer(OK, tls=authority.server_context(host, days=days)) as server:
        to = settings(server.url, ca_bundle=str(trusted.bundle))
        with pytest.raises(InvalidInput, match=r"certificate is not accepted.*ca_bundle") as caught:
            caller.call(server, to=to)
    assert caught.value.argument == "ca_bundle"
    assert server.connections == 1
    assert server.requests == []


def test_verification_is_left_out_only_when_told(caller: Caller, authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context()) as server:
        assert caller.call(server, to=settings(server.url, verify_tls=False)).status_code == 200


@pytest.mark.row("T16", of="calls")
def test_a_plain_port_asked_for_tls_ends_the_call(caller: Caller) -> None:
    with plain_port() as url:
        to = settings(url)
        with pytest.raises(InvalidInput, match="Is this an https port"):
            caller.run(send(ApiClient(to, url).request("GET", "/")), to)
    assert caller.clock.waits == []


@pytest.mark.row("T17", of="calls")
def test_a_client_certificate_is_shown(caller: Caller, authority: Authority) -> None:
    certificate, key = authority.certificate("client")
    with FaultServer(OK, tls=authority.server_context(ask_client=True)) as server:
        to = settings(server.url, ca_bundle=str(authority.bundle), client_cert=str(certificate), client_key=str(key))
        assert caller.call(server, to=to).status_code == 200


def test_a_missing_client_certificate_is_named(caller: Caller, authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context(ask_client=True)) as server:
        with pytest.raises(InvalidInput, match="client certificate") as caught:
            caller.call(server, to=settings(server.url, ca_bundle=str(authority.bundle)))
    assert caught.value.argument == "client_cert"


def test_plain_http_makes_no_context_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child that was forked while another thread was in OpenSSL, making one may never end."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a context is made")

    with FaultServer([answer(200)]) as server, network.client(settings(server.url)) as client:
        monkeypatch.setattr("ssl.SSLContext.__new__", refuse)
        assert client.get(server.url).status_code == 200


def test_connections_with_the_same_files_share_one_tls_context(authority: Authority) -> None:
    one = settings("https://a.example", ca_bundle=str(authority.bundle))
    two = settings("https://b.example", ca_bundle=str(authority.bundle), timeout_seconds=5)
    assert network.ssl_context(one) is network.ssl_context(two)
    assert network.ssl_context(one) is not network.ssl_context(settings(verify_tls=False))


def test_a_replaced_ca_file_is_read_again(authority: Authority, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(authority.bundle.read_bytes())
    os.utime(bundle, (1, 1))  # however soon it is replaced
    to = settings(ca_bundle=str(bundle))
    before = network.ssl_context(to)
    bundle.write_bytes(Authority(tmp_path, "new").bundle.read_bytes())
    assert network.ssl_context(to) is not before


@pytest.mark.parametrize("field", ["ca_bundle", "client_cert"])
@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_an_unusable_file_is_named(field: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    if content:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"file\.pem") as caught:
        network.client(settings(**{field: str(path)}))
    assert caught.value.argument == field


def test_a_ca_file_from_the_environment_is_trusted(
    caller: Caller, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    with FaultServer(OK, tls=authority.server_context()) as server:
        assert caller.call(server).status_code == 200


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.row("T18", of="calls")
def test_a_missing_ca_file_in_the_environment_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "/nowhere/ca")
    with pytest.raises(InvalidInput, match=f"variable {variable}"):
        network.client(settings())


def test_the_connections_own_ca_wins_over_the_environment(
    caller: Caller, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca")
    with FaultServer(OK, tls=authority.server_context()) as server:
        assert caller.call(server, to=settings(server.url, ca_bundle=str(authority.bundle))).status_code == 200


# --- proxies


@pytest.mark.row("T17", of="calls")
def test_the_connections_proxy_carries_the_call(caller: Caller, authority: Authority) -> None:
    with FaultServer(OK, tls=authority.server_context()) as server, FaultServer([Tunnel()]) as proxy:
        own = proxy.url.replace("//", "//user:pa%24s@")
        to = settings(server.url, ca_bundle=str(authority.bundle), proxy=own)
        assert caller.call(server, to=to).status_code == 200
    assert proxy.requests[0].method == "CONNECT"
    expected = base64.b64encode(b"user:pa$s").decode()
    assert proxy.requests[0].header("Proxy-Authorization") == f"Basic {expected}"
    assert "proxy-authorization" not in server.requests[0].header_names


@pytest.mark.row("T18", of="calls")
def test_a_proxy_from_the_environment_carries_the_call(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(OK) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        to = settings("http://registry.example")
        api = ApiClient(to, "http://registry.example")
        assert caller.run(send(api.request("GET", "/models")), to).status_code == 200
    assert proxy.targets == ["http://registry.example/models"]


def test_a_proxy_that_wants_a_password_ends_the_call(caller: Caller) -> None:
    with FaultServer([answer(407)]) as proxy:
        to = settings("https://registry.example", proxy=proxy.url)
        with pytest.raises(InvalidInput, match="proxy wants") as caught:
            caller.run(send(ApiClient(to, "https://registry.example").request("GET", "/")), to)
    assert caught.value.argument == "proxy"


@pytest.mark.parametrize(
    ("no_proxy", "url", "excepted"),
    [
        ("example.com", "https://example.com", True),
        ("example.com", "https://api.example.com", True),
        (".example.com", "https://api.example.com", True),
        ("*.example.com", "https://api.example.com", True),
        ("example.com", "https://notexample.com", False),
        ("EXAMPLE.com, other", "https://example.com", True),
        ("example.com:8443", "https://example.com:8443", True),
        ("example.com:8443", "https://example.com", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("fe80::/10,fd00::/8", "https://[fd12::1]", True),
        ("fd00::/8", "https://10.1.2.3", False),
        ("fd00::/8", "https://example.com", False),
        ("::1", "https://[::1]:8443", True),
        ("[::1]:8443", "https://[::1]:8443", True),
        ("*", "https://example.com", True),
        ("", "https://example.com", False),
    ],
)
@pytest.mark.row("T18", of="calls")
def test_no_proxy_lists_names_addresses_and_ranges(
    no_proxy: str, url: str, excepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert network.proxy_for(url, settings()) == (None if excepted else "http://proxy.example:3128")


def test_the_connections_proxy_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://env.example")
    monkeypatch.setenv("NO_PROXY", "*")
    to = settings(proxy="http://own.example:1")
    assert network.proxy_for("https://registry.example", to) == "http://own.example:1"
    assert network.proxy_for("wss://registry.example", to) == "http://own.example:1"


def test_a_proxy_for_each_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://plain.example:1")
    monkeypatch.setenv("https_proxy", "http://tls.example:1")
    monkeypatch.setenv("ALL_PROXY", "http://all.example:1")
    assert network.proxy_for("http://x.example", settings()) == "http://plain.example:1"
    assert network.proxy_for("ws://x.example", settings()) == "http://plain.example:1"
    assert network.proxy_for("wss://x.example", settings()) == "http://tls.example:1"
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert network.proxy_for("http://x.example", settings()) == "http://all.example:1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", f"socks5://u:{TOKEN}@proxy.example"),
        ("HTTPS_PROXY", "http://[bad"),
        ("https_proxy", "ftp://proxy.example"),
        ("HTTPS_PROXY", "http://proxy.example:port"),
        ("NO_PROXY", "fe80::/300"),
    ],
)
@pytest.mark.row("T18", of="calls")
def test_an_unusable_proxy_variable_is_named(
    caller: Caller, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    monkeypatch.setenv(variable, value)
    if variable == "ALL_PROXY":
        monkeypatch.delenv("HTTPS_PROXY")
    to = settings("https://registry.example")
    with pytest.raises(InvalidInput, match=f"environment variable {variable}") as caught:
        caller.run(send(ApiClient(to, "https://registry.example").request("GET", "/")), to)
    assert TOKEN not in str(caught.value)


@pytest.mark.row("T18", of="calls")
def test_netrc_is_not_read(caller: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultServer(OK) as server:
        to = settings(server.url)
        caller.run(send(ApiClient(to, server.url).request("GET", "/")), to)
    assert "authorization" not in server.requests[0].header_names


# --- redirects and origins


def redirect(status: int, location: str) -> list[Step]:
    return [answer(status, headers={"Location": location})]


@pytest.mark.row("T19", of="calls")
def test_no_credential_crosses_to_another_origin(caller: Caller) -> None:
    with FaultServer(OK) as other, FaultServer(redirect(307, f"{other.url}/there")) as server:
        caller.call(server)
    assert server.requests[0].header("Authorization") == f"Bearer {TOKEN}"
    assert other.requests[0].header_names == {"host", "accept", "accept-encoding", "user-agent"}
    assert other.requests[0].target == "/there"


def test_a_redirect_within_the_origin_keeps_the_credentials(caller: Caller) -> None:
    with FaultServer(redirect(302, "/there?page=2"), OK) as server:
        caller.call(server)
    assert server.requests[1].target == "/there?page=2"
    assert server.requests[1].header("X-YATAI-API-TOKEN") == TOKEN


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.row("T21", of="calls")
def test_a_redirect_that_keeps_the_method_sends_the_body_again(caller: Caller, status: int) -> None:
    with FaultServer(redirect(status, "/there"), OK) as server:
        caller.call(server, "POST", json={"name": "fraud"})
    sent = [(request.method, json.loads(request.body)) for request in server.requests]
    assert sent == [("POST", {"name": "fraud"})] * 2


def test_a_redirect_to_see_other_becomes_a_get(caller: Caller) -> None:
    with FaultServer(redirect(303, "/there"), OK) as server:
        caller.call(server, "POST", json={"name": "fraud"})
    assert (server.requests[1].method, server.requests[1].body_length) == ("GET", 0)
    assert "content-type" not in server.requests[1].header_names


@pytest.mark.parametrize("status", [301, 302])
def test_a_moved_post_is_not_guessed_at(caller: Caller, status: int) -> None:
    with FaultServer(redirect(status, "/there"), OK) as server:
        with pytest.raises(InvalidInput, match=f"answered {status} and points to .*/there; name that server"):
            caller.call(server, "POST")
    assert len(server.requests) == 1


@pytest.mark.row("T20", of="calls")
def test_a_redirect_loop_ends(caller: Caller) -> None:
    with FaultServer(redirect(302, "/again")) as server, pytest.raises(InvalidInput, match="more than 5 redirects"):
        caller.call(server)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://files.example/x",
        "http://user:pw@files.example/x",
        "http://[bad/x",
        "gopher:x",
    ],
)
@pytest.mark.row("T20", of="calls")
def test_a_redirect_leads_to_http_only(caller: Caller, location: str) -> None:
    with FaultServer(redirect(302, location)) as server, pytest.raises(InvalidInput):
        caller.call(server)
    assert len(server.requests) == 1


@pytest.mark.row("T19", of="calls")
def test_a_redirect_never_leaves_encryption(caller: Caller, authority: Authority) -> None:
    with FaultServer(OK) as plain:
        with FaultServer(redirect(302, f"{plain.url}/x"), tls=authority.server_context()) as server:
            to = settings(server.url, ca_bundle=str(authority.bundle))
            with pytest.raises(InvalidInput, match="not encrypted"):
                caller.call(server, to=to)
    assert plain.requests == []


@pytest.mark.parametrize(
    "target", ["https://169.254.169.254/latest/meta-data", "https://127.0.0.1:1/", "https://[::1]/"]
)
@pytest.mark.row("T20", of="calls")
def test_a_public_server_cannot_send_us_to_internal_addresses(target: str) -> None:
    policy = RequestPolicy(settings("https://registry.example"))
    flow = policy(httpx.Request("GET", "https://registry.example/models"))
    next(flow)
    request = httpx.Request("GET", "https://registry.example/models")
    with pytest.raises(InvalidInput, match="the server gave the address"):
        flow.send(httpx.Response(302, headers={"Location": target}, request=request))


def test_credentials_are_for_the_own_origin_only() -> None:
    api = ApiClient(settings(), "https://registry.example/net", headers={"X-Own": "1"}, credentials=credentials)
    assert api.request("GET", "models").url == "https://registry.example/net/models"
    assert api.request("GET", "/models", params={"a": "b c"}).url.params == httpx.QueryParams("a=b%20c")
    assert api.request("GET", "https://registry.example:443/x").headers["x-api-key"] == TOKEN
    for foreign in (
        "http://registry.example/x",
        "https://registry.example:444/x",
        "https://registry.example.evil/x",
        "https://registry.example@evil.example/x",
    ):
        headers = api.request("GET", foreign).headers
        assert set(headers) == {"host", "accept", "accept-encoding", "user-agent"}


@pytest.mark.parametrize("base", ["ftp://x", "https://", "https://u:p@x", "http://[bad", "x"])
def test_a_base_url_must_be_usable(base: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ApiClient(settings(), base)
    assert caught.value.argument == "host"


def test_a_credential_with_a_line_break_is_refused_unquoted() -> None:
    api = ApiClient(settings(), "https://x.example", credentials=lambda: {"Authorization": f"Bearer {TOKEN}\n"})
    with pytest.raises(InvalidInput, match="the connection's password holds line breaks") as caught:
        api.request("GET", "/")
    assert caught.value.argument == "password"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("letter", ["é", "ü", "\u4e2d", "\u202e"])
def test_a_credential_beyond_ascii_names_its_field_and_shows_no_letter(letter: str) -> None:
    to = settings(password=f"{TOKEN}{letter}")
    api = ApiClient(to, "https://x.example", credentials=lambda: {"X-Token": f"{TOKEN}{letter}"})
    with pytest.raises(InvalidInput, match="the connection's password holds") as caught:
        api.request("GET", "/")
    with closing(Mover(to)) as mover, pytest.raises(InvalidInput, match="the connection's password holds"):
        with mover.get("https://x.example", {"X-Token": f"{TOKEN}{letter}"}):
            pass
    shown = "".join(traceback.format_exception(caught.value))
    assert letter not in shown
    assert TOKEN not in shown
    with pytest.raises(InvalidInput, match="header X-Other holds"):
        ApiClient(settings(), "https://x.example").request("GET", "/", headers={"X-Other": letter})


def test_an_error_that_httpx_lets_through_raw_is_classified_and_not_quoted(caller: Caller) -> None:
    with FaultServer(OK) as server:
        request = httpx.Request("GET", server.url, headers={"Authorization": f"{TOKEN}\n"})
        with pytest.raises(InvalidInput, match="no valid HTTP") as caught:
            caller.run(send(request), settings(server.url))
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example/x",
        "ftp://files.example/x",
        "https://user:pw@files.example/x",
        "https://localhost/x",
        "https://LOCALHOST./x",
        "https://a.localhost/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f000001/x",
        "https://0177.0.0.1/x",
        "https://0/x",
        "https://0.0.0.0/x",
        "https://[::1]/x",
        "https://[::]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[::ffff:169.254.169.254]/x",
        "https://[64:ff9b::a9fe:a9fe]/x",
        "https://[2002:7f00:1::]/x",
        "https://[::127.0.0.1]/x",
        "https://[fe80::1]/x",
        "https://[fe80::1%25eth0]/x",
        "https://169.254.169.254/x",
        "https://2852039166/x",
        "https://[fd00:ec2::254]/x",
        "https://100.100.100.200/x",
        "https://metadata.google.internal/x",
        "https://files.example\\@127.0.0.1/x",
        "https://①②⑦.0.0.1/x",
        "https://files.example/a b",
        "https://files.exa%6dple/x",
        "https:///x",
        "//files.example/x",
        "",
    ],
)
def test_an_address_that_a_server_may_not_hand_out(url: str) -> None:
    with pytest.raises(Permanent, match="the server gave the address"):
        check_server_url(url, settings("https://registry.example"))


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example/x?X-Amz-Signature=1",
        "https://10.1.2.3:9000/x",
        "https://[2001:db8::1]/x",
        "https://8.8.8.8/x",
        "https://xn--bcher-kva.example/x",
        "https://minio_1.internal./x",
    ],
)
def test_an_address_that_a_server_may_hand_out(url: str) -> None:
    check_server_url(url, settings("https://registry.example"))
    check_server_url(url, settings("registry.example"))


@pytest.mark.parametrize(
    ("host", "listed"),
    [
        ("http://registry.example", ""),
        ("https://127.0.0.1:8443", ""),
        ("localhost", ""),
        ("https://registry.example", "127.0.0.1"),
        ("https://registry.example", "other, 127.0.0.1:9000"),
    ],
)
def test_a_local_address_is_fine_for_a_local_registry_or_when_listed(host: str, listed: str) -> None:
    check_server_url("http://127.0.0.1:9000/x", settings(host, presigned_hosts=listed))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x", "file:///x"])
def test_a_local_registry_still_cannot_hand_out_anything(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_server_url(url, settings("http://localhost"))


def test_another_listed_port_does_not_count() -> None:
    with pytest.raises(InvalidInput):
        check_server_url("http://127.0.0.1:9001/x", settings(presigned_hosts="127.0.0.1:9000"))


# --- credentials that expire


class Renewal:
    """A refresh hook that asks the server itself for the next token."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.rejected: list[str] = []

    def __call__(self, request: httpx.Request) -> Flow[Mapping[str, str]]:
        self.rejected.append(request.headers["Authorization"])
        response = yield from send(httpx.Request("POST", f"{self.server.url}/token"))
        return {"Authorization": f"Bearer {response.status_code}"}


@pytest.mark.row("A1", "A2", of="calls")
def test_a_refused_token_is_renewed_once_and_the_call_repeated(caller: Caller) -> None:
    with FaultServer([answer(401)], [answer(200)], OK) as server:
        renewal = Renewal(server)
        assert caller.call(server, "POST", json={"a": 1}, refresh=renewal).status_code == 200
    assert server.targets == ["/models", "/token", "/models"]
    assert renewal.rejected == [f"Bearer {TOKEN}"]
    assert server.requests[2].header("Authorization") == "Bearer 200"
    assert json.loads(server.requests[2].body) == {"a": 1}


def test_a_token_that_stays_refused_is_renewed_only_once(caller: Caller) -> None:
    with FaultServer([answer(401)]) as server:
        renewal = Renewal(server)
        response = caller.call(server, refresh=renewal)
        with pytest.raises(Unauthorized):
            raise_for_status(response, "looking")
    # The request for the token was refused, too, and not renewed for.
    assert server.targets == ["/models", "/token", "/models"]


@pytest.mark.row("A1", of="calls")
def test_without_renewal_a_refused_token_is_final(caller: Caller) -> None:
    with FaultServer([answer(401)]) as server:
        assert caller.call(server).status_code == 401
    assert len(server.requests) == 1


# --- what answers mean


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, InvalidInput),
        (409, InvalidInput),
        (413, NotSupported),
        (422, InvalidInput),
        (408, RegistryUnavailable),
        (429, RegistryUnavailable),
        (500, RegistryUnavailable),
        (503, RegistryUnavailable),
        (507, RegistryUnavailable),
        (304, RegistryUnavailable),
        (599, RegistryUnavailable),
    ],
)
@pytest.mark.row("A3", of="calls")
def test_a_status_becomes_an_error_with_the_servers_words(status: int, kind: type[ModelSyncError]) -> None:
    request = httpx.Request("GET", "https://x", headers={"x-api-key": TOKEN})
    body = json.dumps({"error": f"no such thing: {TOKEN}", "more": "noise"})
    response = httpx.Response(status, text=body, request=request)
    with pytest.raises(kind, match=f"listing versions: the server answered {status}.*no such thing: \\*\\*\\*"):
        raise_for_status(response, "listing versions")


def test_success_is_returned() -> None:
    response = httpx.Response(204, request=httpx.Request("GET", "https://x"))
    assert raise_for_status(response, "looking") is response


def test_a_caller_says_what_not_found_means() -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://x"))
    with pytest.raises(ModelNotFound):
        raise_for_status(response, "looking for fraud", not_found=ModelNotFound)


def test_a_server_error_names_its_trace() -> None:
    response = httpx.Response(502, headers={"x-trace-id": "abc"}, request=httpx.Request("GET", "https://x"))
    with pytest.raises(RegistryUnavailable, match="trace id abc"):
        raise_for_status(response, "looking")


class Owner(BaseModel):
    name: str


class Model(BaseModel):
    name: str
    size: int
    owner: Owner | None = None


def json_response(body: str | bytes) -> httpx.Response:
    request = httpx.Request("GET", "https://x.example/models?token=1", headers={"x-api-key": TOKEN})
    return httpx.Response(200, content=body, request=request)


def test_json_is_read_into_a_model() -> None:
    assert read_json(json_response('{"name": "a", "size": 1, "more": []}'), Model) == Model(name="a", size=1)
    assert read_json(json_response('[{"name": "a"}]'), list[Owner]) == [Owner(name="a")]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"name": "a"}', "size: Field required"),
        ('{"name": null, "size": 1}', "name: "),
        ('{"name": "a", "size": 1, "owner": {"name": 5}}', "owner.name: "),
        ("[]", "the whole: "),
        ("null", "the whole: "),
    ],
)
@pytest.mark.row("S7", of="calls")
def test_json_of_another_shape_names_what_is_wrong(body: str, path: str) -> None:
    with pytest.raises(RegistryUnavailable, match=f"not as expected: .*{path}"):
        read_json(json_response(body), Model, "reading fraud")


@pytest.mark.parametrize("body", ["", "<html>canary</html>", '{"name": ', b"\xff\xfe", "[" * 100_000, '{"a": NaN'])
@pytest.mark.row("S7", of="calls")
def test_what_is_no_json_is_a_passing_fault(body: str | bytes) -> None:
    with pytest.raises(RegistryUnavailable, match=r"GET https://x.example/models: the answer is not JSON"):
        read_json(json_response(body), Model)


@pytest.mark.parametrize("unit", ["<Message>", "<Message>" + " " * 2000, "<Code>", "<Code>" + " " * 2000, "<Code>a "])
def test_no_page_of_a_storage_takes_long_to_read(unit: str) -> None:
    def cost(page: str) -> float:
        best = 60.0
        for _ in range(3):
            started = time.thread_time()
            Refusal.read(403, {}, page).error("reading")
            best = min(best, time.thread_time() - started)
        return best

    size = 64 << 10
    harmless = cost(("<p>word</p> " * size)[:size])
    assert cost((unit * size)[:size]) < 10 * harmless
    assert cost(f"<Message>{' ' * size}") < 10 * harmless


def test_a_foreign_error_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        classify(ZeroDivisionError(), "looking")


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), TimeoutError(), ConnectionResetError(104, "reset")])
def test_errors_of_the_system_are_classified(error: OSError) -> None:
    assert isinstance(classify(error, "looking"), Retryable)


# --- secrets


def test_no_secret_gets_into_logs_or_errors(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # Airflow silences it
    to_mask = {"proxy": None}
    with FaultServer(
        [answer(503)], [answer(302, headers={"Location": f"/x?X-Amz-Signature={TOKEN}"})], [answer(500, TOKEN.encode())]
    ) as server:
        to = settings(server.url, **to_mask)
        response = caller.call(server, path=f"/net/{TOKEN}/models?token={quote(TOKEN)}", to=to)
        with pytest.raises(RegistryUnavailable) as caught:
            raise_for_status(response, "looking")
    said = caplog.text + "".join(traceback.format_exception(caught.value))
    assert "trying again" in said
    assert "HTTP Request: GET" in said
    for form in (TOKEN, quote(TOKEN), quote(TOKEN, safe=""), "canary"):
        assert form not in said

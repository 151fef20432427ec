"""What requests may reach: names and addresses in every notation, judged before and after they are looked up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, ModelSyncError
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.threads import Threads
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.http.addresses import Reach, check_server_url
from airflow_provider_modelsync.core.http.faults import NotSent
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import mover as mover_module
from airflow_provider_modelsync.core.transfer.mover import Mover
from tests.standins.fault_server import FaultServer, answer

OK = [answer(200, b"{}")]

METADATA = [
    "169.254.169.254",
    "169.254.169.254.",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "169.254.43518",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.23",
    "169.254.42.42",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:169.254.169.254]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[64:ff9b:1:a9fe:a9:fe00::]",
    "[64:ff9b:1:5:a9:fea9:fe00::]",
    "[2002:a9fe:a9fe::1]",
    "[2002:6464:64c8::1]",
    "[2001:0:a9fe:a9fe::1]",
    "[2001:0:4136:e378:8000:63bf:5601:5601]",
    "[fe80::5efe:169.254.169.254]",
    "[2001:db8::200:5efe:a9fe:a9fe]",
    "[2001:db8:64::a9fe:a9fe]",
    "[fe80::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "[fd00:c1::a9fe:a9fe]",
    "[fd00:42::42]",
    "metadata",
    "METADATA.google.internal",
    "metadata.google.internal.",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "instance-data",
    "instance-data.ec2.internal",
]
LOCAL = [
    "localhost",
    "localhost4",
    "localhost6",
    "localhost.localdomain",
    "localhost6.localdomain6",
    "ip6-loopback",
    "a.localhost",
    "127.0.0.1",
    "[::ffff:127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[::5efe:127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
    "[64:ff9b:1:7f00:0:100::]",
    "[2002:7f00:1::]",
]


def settings(host: str = "https://registry.example", **fields: Any) -> RegistrySettings:
    return RegistrySettings.read("registry", {"host": host, "password": "canary-secret", **fields})


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("base", ["https://registry.example", "http://registry.example", "http://127.0.0.1:9000"])
@pytest.mark.row("T20", "A6", of=("calls", "sends", "fetches"))
def test_no_server_leads_to_a_metadata_service(base: str, scheme: str, host: str) -> None:
    listed = settings(base, presigned_hosts=host)
    for to in (settings(base), listed):
        with pytest.raises(InvalidInput, match="which names a metadata service"):
            check_server_url(f"{scheme}://{host}/latest/meta-data", to)
        with pytest.raises(InvalidInput, match="names a metadata service"):
            Reach(to).check(f"{scheme}://{host}/latest/meta-data")


@pytest.mark.parametrize("host", LOCAL)
def test_no_public_server_leads_to_this_machine(host: str) -> None:
    with pytest.raises(InvalidInput, match="which names this machine"):
        check_server_url(f"https://{host}/x", settings())
    check_server_url(f"https://{host}/x", settings("http://registry.internal"))


@pytest.mark.parametrize("host", ["[2001:db8::5efe:0:1]", "[64:ff9b::808:808]", "[2002:808:808::1]", "10.0.0.1"])
def test_other_addresses_in_odd_notations_are_fine(host: str) -> None:
    check_server_url(f"https://{host}/x", settings())


class Names:
    """What names stand for, instead of the machine's resolver; counts the look-ups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.known:
            return self._real(host, port, *args, **kwargs)
        self.asked.append(name)
        # A hostile name server answers something else the second time.
        answers = self.known[name]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return self._real(address, port, *args, **kwargs)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def _get(kind: str, url: str, to: RegistrySettings) -> None:
    if kind == "sync":
        with network.client(to) as client:
            client.get(url)
    elif kind == "async":

        async def run() -> None:
            async with network.async_client(to) as client:
                await client.get(url)

        asyncio.run(run())
    else:
        with closing(Mover(to)) as mover, mover.get(url) as download:
            download.answer()


@pytest.fixture(params=["sync", "async", "mover"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(OK) as server:
        yield server


def test_a_foreign_name_that_stands_for_this_machine_is_not_connected_to(
    kind: str, names: Names, server: FaultServer
) -> None:
    names.known["files.example"] = ["127.0.0.1"]
    with pytest.raises(InvalidInput, match="names this machine"):
        _get(kind, f"http://files.example:{server.port}/x", settings())
    assert server.connections == 0


@pytest.mark.parametrize("host", ["https://registry.example", "http://files.example"])
@pytest.mark.row("T20", of=("calls", "sends", "fetches"))
def test_a_name_that_stands_for_a_metadata_service_is_never_connected_to(kind: str, names: Names, host: str) -> None:
    names.known["files.example"] = ["169.254.169.254"]
    with pytest.raises(InvalidInput, match="stands for an address that names a metadata service"):
        _get(kind, "http://files.example/x", settings(host, presigned_hosts="files.example"))


def test_a_name_is_looked_up_once_and_connected_to_as_it_was_judged(
    kind: str, names: Names, server: FaultServer
) -> None:
    names.known["files.example"] = ["127.0.0.1", "169.254.169.254"]
    _get(kind, f"http://files.example:{server.port}/x", settings("http://files.example"))
    assert names.asked == ["files.example"]
    assert server.requests[0].header("Host") == f"files.example:{server.port}"


@pytest.mark.parametrize("fields", [{"host": "https://files.example"}, {"presigned_hosts": "files.example"}])
def test_what_the_user_named_may_stand_for_this_machine(
    kind: str, names: Names, server: FaultServer, fields: dict[str, str]
) -> None:
    names.known["files.example"] = ["127.0.0.1"]
    _get(kind, f"http://files.example:{server.port}/x", settings(**fields))
    assert len(server.requests) == 1


def test_a_proxy_of_ones_own_may_be_on_this_machine_but_leads_to_no_metadata_service(
    kind: str, server: FaultServer
) -> None:
    to = settings(proxy=server.url)
    _get(kind, "http://files.example/x", to)
    assert server.requests[0].target == "http://files.example/x"
    with pytest.raises(InvalidInput, match="names a metadata service"):
        _get(kind, "http://0xa9fea9fe/x", to)
    assert len(server.requests) == 1


def test_a_second_address_is_tried_when_the_first_does_not_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    with FaultServer(OK) as server:

        def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host not in ("two.example", b"two.example"):
                return real(host, port, *args, **kwargs)
            return [*real("127.0.0.77", port, *args, **kwargs), *real("127.0.0.1", port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        _get(kind, f"http://two.example:{server.port}/x", settings("http://two.example"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_name_server_that_says_nothing_keeps_no_transfer(
    monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    released, asked, cancel = threading.Event(), threading.Event(), CancelToken()

    def silent(*_: Any, **__: Any) -> Any:
        asked.set()
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(mover_module, "CONNECT_SECONDS", 30 if is_cancelled else 0.2)
    if is_cancelled:
        threading.Thread(target=lambda: (asked.wait(30), cancel.cancel())).start()
    try:
        with closing(Mover(settings("http://files.example"))) as mover:
            expected = Cancelled if is_cancelled else NotSent
            with pytest.raises(expected), mover.get("http://files.example/x", cancel=cancel):
                pass
        assert not released.is_set()
    finally:
        released.set()


def test_a_silent_name_server_keeps_none_of_the_event_loops_threads(
    monkeypatch: pytest.MonkeyPatch, server: FaultServer
) -> None:
    released, asked = threading.Event(), threading.Event()

    def silent(*_: Any, **__: Any) -> Any:
        asked.set()
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        waiters = Threads()
        async with network.async_client(settings("http://files.example")) as client:
            request = asyncio.ensure_future(client.get("http://files.example/x"))
            await waiters.run(lambda: asked.wait(30))
            await asyncio.wait_for(loop.run_in_executor(None, lambda: None), 30)
            assert not request.done()
            released.set()
            with pytest.raises(httpx.ConnectError):
                await request

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        asyncio.run(run())
    finally:
        released.set()


_FIRST_REQUEST = """
import asyncio, sys
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.settings import RegistrySettings

async def main():
    async with network.async_client(RegistrySettings(conn_id="first", host=sys.argv[1])) as client:
        known = set(sys.modules)
        await client.get(sys.argv[1])
        loaded = {name.partition(".")[0] for name in set(sys.modules) - known}
        print(*sorted(loaded - sys.stdlib_module_names))

asyncio.run(main())
"""


def test_a_first_request_on_an_event_loop_loads_no_library(server: FaultServer) -> None:
    command = [sys.executable, "-c", _FIRST_REQUEST, server.url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split() == []


@pytest.mark.parametrize("host", ["http://169.254.169.254", "http://metadata.google.internal/computeMetadata"])
def test_a_connection_cannot_name_a_metadata_service_itself(kind: str, host: str) -> None:
    with pytest.raises(ModelSyncError, match="names a metadata service"):
        _get(kind, host, settings(host))


def test_httpx_still_connects_by_ours() -> None:
    with network.client(settings("http://127.0.0.1")) as client, FaultServer(OK) as server:
        client.get(server.url)
        (way,) = client._transport._ways.values()  # type: ignore[attr-defined]
        assert type(way._pool._network_backend).__module__.startswith("airflow_provider_modelsync.")
        assert isinstance(way, httpx.HTTPTransport)

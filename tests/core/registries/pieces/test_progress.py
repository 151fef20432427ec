"""Downloads on a Pieces host: every way that its progress socket may behave, with every way that a download may end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    VersionFailed,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import Fetch, Patience
from airflow_provider_modelsync.core.registries.pieces import progress as pieces_progress
from airflow_provider_modelsync.core.registries.pieces import registry as pieces
from airflow_provider_modelsync.core.registries.pieces.api import PiecesModel
from airflow_provider_modelsync.core.registries.pieces.progress import Heard, Outcome
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.pieces.host import Host
from tests.standins.http_server import LoseAnswer, Request, Respond
from tests.standins.pieces import JUNK, SHAPES, Download, PiecesStandIn, Progress, model
from tests.support.pieces import quickly

PHI = model("Phi 2")
DOWNLOAD, CANCEL = ("POST", "download"), ("POST", "download/cancel")
NEVER = Patience(seconds=0.3, poll_interval=0.05)
SLOWLY = Patience(seconds=10, poll_interval=5)  # looks come too late for a test: messages have to do


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)


@pytest.fixture
def server() -> Iterator[PiecesStandIn]:
    with PiecesStandIn([PHI, model("Claude", cloud=True), model("Other")]) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def host(request: pytest.FixtureRequest, server: PiecesStandIn) -> Host:
    return Host(server, is_async=request.param == "async")


# The ways that the socket may behave

VARIANTS: dict[str, list[Progress]] = {
    "plain": [Progress()],
    "no greeting": [Progress(greeting=False)],
    "closes after the end": [Progress(closes=True)],
    "the end gets lost": [Progress(terminal=False)],
    "pings": [Progress(pings=True)],
    "fragments": [Progress(fragments=3, pings=True)],
    "junk": [Progress(junk=JUNK)],
    "closed at once": [Progress(ends_after=0)],
    "plain GET only": [Progress(upgrade=426)],
    "a GET that answers the state": [Progress(upgrade=200)],
    "no such thing": [Progress(upgrade=404)],
    "fails at first": [Progress(upgrade=500), Progress()],
    **{f"shape: {shape}": [Progress(shape=shape)] for shape in SHAPES},
    **{
        f"ends: {how}": [Progress(ends_after=2, ends=how), Progress()]
        for how in ("close", "eof", "reset", "garbage", "mute", "stall")
    },
    "drops for ever": [Progress(ends_after=1, ends="reset")],
}
OUTCOMES: dict[str, tuple[Download, type[ModelSyncError] | None]] = {
    "completed": (Download(), None),
    "completed with a lagging record": (Download(lag=3), None),
    "failed": (Download((12.5, 50.0), "FAILED"), VersionFailed),
    "cancelled": (Download((12.5, 50.0), "CANCELED"), VersionFailed),
    "lost": (Download((12.5, 50.0), "RESET"), RegistryUnavailable),
    "removed": (Download((12.5, 50.0), "REMOVED"), ModelNotFound),
}
# Where the last word does not arrive, a download that failed looks like one that was lost; where it may, like either.
WORDLESS = {
    "the end gets lost",
    "closed at once",
    "plain GET only",
    "a GET that answers the state",
    "no such thing",
    "ends: mute",
    "ends: stall",
}
CHANCY = {"fails at first", "drops for ever", *(f"ends: {how}" for how in ("close", "eof", "reset", "garbage"))}


def errors(variant: str, expected: type[ModelSyncError]) -> set[type[ModelSyncError]]:
    """What a download may end in."""
    if expected is not VersionFailed or variant not in WORDLESS | CHANCY:
        return {expected}
    return {RegistryUnavailable} if variant in WORDLESS else {RegistryUnavailable, expected}


# Every outcome through every socket, each of both by both drivers.
CASES = [
    (variant, outcome, ("sync", "async")[(row + column) % 2])
    for row, variant in enumerate(VARIANTS)
    for column, outcome in enumerate(OUTCOMES)
]


@pytest.mark.parametrize(("variant", "outcome", "host"), CASES, indirect=["host"])
@pytest.mark.row("S12", of="socket")
def test_every_outcome_is_seen_through_every_socket(
    server: PiecesStandIn, host: Host, variant: str, outcome: str
) -> None:
    server.progress = VARIANTS[variant]
    server.download, expected = OUTCOMES[outcome]

    if expected is None:
        version = host.fetch()
        assert version.raw["downloaded"] is True
        assert version.transfer is not None
        assert not version.transfer.skipped
    else:
        with pytest.raises(ModelSyncError) as caught:
            host.fetch()
        assert type(caught.value) in errors(variant, expected)
        assert "phi-2" in str(caught.value) or PHI["id"] in str(caught.value)
    assert host.calls() == [DOWNLOAD]


class TestMessages:
    @pytest.mark.parametrize("outcome", ["FAILED", "CANCELED"])
    def test_a_failure_ends_the_wait_at_once_and_for_good(
        self, server: PiecesStandIn, host: Host, outcome: Any
    ) -> None:
        server.download = Download((12.5, 50.0), outcome)

        with pytest.raises(VersionFailed, match=outcome):
            host.fetch(patience=SLOWLY)

    def test_what_has_come_is_heard_before_a_look(self, host: Host) -> None:
        """Whoever falls behind the socket still learns why a download has ended."""
        socket = host.registry._socket(PHI["id"])
        for status in ("IN-PROGRESS", "IN-PROGRESS", "IN-PROGRESS", "FAILED"):
            socket._heard.put_nowait(Heard(json.dumps({"status": status})))
        fetch, always = Fetch(ref=PHI["id"], name="phi-2"), Patience(seconds=10, poll_interval=1e-9)

        with pytest.raises(VersionFailed, match="FAILED"):
            host.run(lambda pieces: pieces._watch(fetch, socket, always, time.monotonic() + 10))

    def test_the_end_is_looked_at_without_waiting_for_the_next_look(self, server: PiecesStandIn, host: Host) -> None:
        assert host.fetch(patience=SLOWLY).raw["downloaded"]

    @pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "RESET"])
    def test_a_greeting_may_speak_of_an_earlier_download(self, server: PiecesStandIn, host: Host, status: str) -> None:
        server.states[PHI["id"]] = {"status": status}

        assert host.fetch().raw["downloaded"]
        assert host.calls() == [DOWNLOAD]

    def test_the_socket_is_open_before_the_download_is_asked_for(self, server: PiecesStandIn, host: Host) -> None:
        host.fetch()

        asked = [request.path.rpartition("/")[2] for request in server.requests]
        assert asked.index("progress") < asked.index("download")

    def test_it_is_closed_in_order(self, server: PiecesStandIn, host: Host) -> None:
        host.fetch()

        (listener,) = server.sockets
        server.until(lambda: not listener.open)
        assert listener.received == ["CLOSE"]

    def test_progress_goes_on_through_a_new_socket(
        self, server: PiecesStandIn, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "modelsync")
        server.progress = [Progress(ends_after=2, ends="reset"), Progress()]
        server.download = Download(tick=None)

        def go_on_once_there_is_another() -> None:
            server.until(lambda: len(server.sockets) == 2)
            for _ in range(len(server.download.percentages) + 1):
                server.step(PHI["id"])

        stepping = threading.Thread(target=go_on_once_there_is_another, daemon=True)
        stepping.start()
        host.fetch(patience=SLOWLY)
        stepping.join()

        assert len(server.sockets) == 2
        assert "phi-2: 100 % downloaded" in caplog.messages

    def test_a_server_that_pings_is_answered(self, server: PiecesStandIn, host: Host) -> None:
        server.progress = [Progress(pings=True)]
        host.fetch()

        server.until(lambda: "PONG" in server.sockets[0].received)

    def test_without_the_library_records_are_looked_at(
        self, server: PiecesStandIn, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "modelsync")
        monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)

        assert host.fetch().raw["downloaded"]
        assert server.sockets == []
        assert "no live progress" in caplog.text

    def test_its_host_is_looked_up_in_no_thread_that_others_need(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def busy(*_: Any, **__: Any) -> Any:
            raise OSError("all threads of the event loop are busy")

        def two(*_: Any, **__: Any) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in (dead, "127.0.0.1")]

        dead, port = "127.0.0.2", urlsplit(server.url).port
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", busy)
        monkeypatch.setattr(socket, "getaddrinfo", two)
        Host(server, {"host": f"http://pieces.example:{port}"}, is_async=True).fetch()

        assert len(server.sockets) == 1

    @pytest.mark.parametrize(
        ("ends", "settings"),
        [("mute", {"_SILENT_SECONDS": 0.05}), ("stall", {"_PING_SECONDS": 0.05, "_PONG_SECONDS": 0.05})],
    )
    @pytest.mark.row("S12", of="socket")
    def test_a_socket_that_falls_silent_or_answers_no_ping_is_replaced(
        self, server: PiecesStandIn, host: Host, monkeypatch: pytest.MonkeyPatch, ends: Any, settings: Any
    ) -> None:
        for name, value in settings.items():
            monkeypatch.setattr(pieces_progress, name, value)
        server.progress = [Progress(ends_after=1, ends=ends)]
        server.download = Download(outcome=None)

        def end() -> None:
            server.until(lambda: len(server.sockets) >= 3)
            server.finish(PHI["id"], "COMPLETED")

        threading.Thread(target=end).start()
        assert host.fetch().raw["downloaded"]
        assert len(server.sockets) >= 3

    def test_the_application_is_named_at_the_handshake_and_to_nobody_else(
        self, server: PiecesStandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with PiecesStandIn() as other:
            to = {"Location": f"{other.url.replace('http', 'ws')}/model/{PHI['id']}/download/progress"}
            server.fault("GET", "/progress$", Respond(302, headers=to))
            Host(server, {"application_id": "canary-4f1c0de5"}).fetch()

            assert {request.headers.get("x-application-id") for request in server.requests} == {"canary-4f1c0de5"}
            assert other.requests == []
        assert "canary-4f1c0de5" not in caplog.text

    @pytest.mark.usefixtures("no_waiting")
    @pytest.mark.row("T17", of="socket")
    def test_the_handshake_goes_through_the_connections_proxy(self, server: PiecesStandIn) -> None:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            said: list[bytes] = []

            def refuse() -> None:
                while True:
                    try:
                        connection, _ = proxy.accept()
                    except OSError:
                        return
                    with connection:
                        said.append(connection.recv(4096))
                        connection.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")

            threading.Thread(target=refuse, daemon=True).start()
            url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
            host = Host(server, {"proxy": url, "timeout_seconds": 0.2})
            with pytest.raises(RegistryUnavailable):
                host.follow(Fetch(ref=PHI["id"], name="phi-2"), NEVER)
            proxy.shutdown(socket.SHUT_RDWR)

        assert any(head.startswith(b"CONNECT ") for head in said)
        assert server.requests == []


class TestLooking:
    def test_what_is_downloaded_already_is_skipped(self, server: PiecesStandIn, host: Host) -> None:
        server.models[PHI["id"]]["downloaded"] = True
        version = host.fetch()

        assert version.transfer is not None
        assert version.transfer.skipped
        assert server.sockets == []
        assert host.calls() == []

    def test_what_somebody_else_downloads_is_waited_for(self, server: PiecesStandIn, host: Host) -> None:
        server.begin(PHI["id"])

        assert host.fetch().raw["downloaded"]
        assert host.calls() == []

    def test_a_cloud_model_is_refused_before_anything_is_asked_for(self, server: PiecesStandIn, host: Host) -> None:
        with pytest.raises(NotSupported, match="cloud"):
            host.fetch("Claude")

        assert host.calls() == []

    def test_a_lost_answer_is_looked_after_and_not_repeated(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/download$", LoseAnswer())

        assert host.fetch().raw["downloaded"]
        assert host.calls() == [DOWNLOAD]

    def test_a_passing_refusal_is_tried_again(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/download$", Respond(500), times=2)

        assert host.fetch().raw["downloaded"]
        assert host.calls() == [DOWNLOAD] * 3

    def test_a_lasting_refusal_is_told_in_the_servers_words(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/download$", Respond(500, b"no space left"), times=None)

        with pytest.raises(RegistryUnavailable, match="no space left"):
            host.fetch()

    @pytest.mark.usefixtures("no_waiting")
    def test_a_host_that_is_away_for_a_while_does_not_end_the_wait(self, server: PiecesStandIn, host: Host) -> None:
        server.download = Download(tick=0.02)
        server.fault("GET", f"/model/{PHI['id']}$", Respond(503), nth=2, times=6)

        assert host.fetch().raw["downloaded"]

    def test_at_the_deadline_ones_own_download_is_cancelled(self, server: PiecesStandIn, host: Host) -> None:
        server.download = Download(outcome=None)

        with pytest.raises(RegistryUnavailable, match=r"not downloaded after .* is cancelled"):
            host.fetch(patience=NEVER)

        assert host.calls() == [DOWNLOAD, CANCEL]

    def test_at_the_deadline_the_download_of_another_goes_on(self, server: PiecesStandIn, host: Host) -> None:
        server.download = Download(outcome=None)
        server.begin(PHI["id"])

        with pytest.raises(RegistryUnavailable, match="somebody else"):
            host.fetch(patience=NEVER)

        assert host.calls() == []

    def test_a_wait_only_reads(self, server: PiecesStandIn, host: Host) -> None:
        fetch = host.start()
        posts = host.calls()

        assert host.follow(fetch).raw["downloaded"]
        assert host.calls() == posts == [DOWNLOAD]

    def test_a_download_that_was_never_begun_ends_the_wait(self, server: PiecesStandIn, host: Host) -> None:
        with pytest.raises(RegistryUnavailable, match="downloads phi-2 no more"):
            host.follow(Fetch(ref=PHI["id"], name="phi-2"))


class TestKill:
    """Told to stop, a worker cancels its own download and nobody else's."""

    @staticmethod
    def kill(server: PiecesStandIn, when: Callable[[], bool]) -> None:
        control = Control(cancel=CancelToken())

        def wait() -> None:
            server.until(when)
            control.cancel.cancel()

        killer = threading.Thread(target=wait)
        killer.start()
        with pytest.raises(Cancelled):
            Host(server).pull(control=control, patience=SLOWLY)
        killer.join()

    @pytest.mark.row("P4")
    def test_its_own_download_is_cancelled(self, server: PiecesStandIn) -> None:
        server.download = Download(outcome=None)
        server.begin(model("Other")["id"])
        self.kill(server, lambda: server.models[PHI["id"]]["downloading"])

        assert Host(server).calls() == [DOWNLOAD, CANCEL]
        assert server.find(path="/cancel$")[0].path.startswith(f"/model/{PHI['id']}/")
        assert Host(server).record("other")["downloading"]

    def test_the_download_of_another_is_left_alone(self, server: PiecesStandIn) -> None:
        server.download = Download(outcome=None)
        server.begin(PHI["id"])
        self.kill(server, lambda: len(server.sockets) == 1)

        assert Host(server).calls() == []
        assert Host(server).record()["downloading"]

    def test_a_download_whose_answer_is_on_its_way_is_cancelled(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.download = Download(outcome=None)
        arrived, begins, looks = server.arrived, threading.Event(), itertools.count(1)

        def late(request: Request) -> None:
            """The download begins between the first look of whoever takes it back and the second."""
            arrived(request)
            if request.path.endswith("/download"):
                begins.wait(30)
            elif request.path.endswith(PHI["id"]) and server.count("POST", "/download$") and next(looks) == 2:
                begins.set()
                server.until(lambda: server.models[PHI["id"]]["downloading"])

        monkeypatch.setattr(server, "arrived", late)
        self.kill(server, lambda: server.count("POST", "/download$") == 1)

        assert Host(server).calls() == [DOWNLOAD, CANCEL]

    @pytest.mark.row("P4")
    def test_it_works_in_spite_of_a_socket_that_hangs(self, server: PiecesStandIn) -> None:
        server.download = Download(outcome=None)
        server.progress = [Progress(ends_after=1, ends="stall")]
        self.kill(server, lambda: server.models[PHI["id"]]["downloading"])

        assert Host(server).calls() == [DOWNLOAD, CANCEL]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_running_out_of_time_counts_as_a_kill(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        def end(*_: object) -> None:
            raise error

        server.download = Download(outcome=None)
        monkeypatch.setattr(pieces.Outcome, "hear", end)
        with pytest.raises(error):
            Host(server).pull()

        assert Host(server).calls() == [DOWNLOAD, CANCEL]

    def test_an_error_leaves_the_download_to_the_next_try(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def end(*_: object) -> None:
            raise RuntimeError

        server.download = Download(outcome=None)
        monkeypatch.setattr(pieces.Outcome, "hear", end)
        with pytest.raises(RuntimeError):
            Host(server).pull()

        assert Host(server).calls() == [DOWNLOAD]

    def test_nothing_is_left_running(self, server: PiecesStandIn) -> None:
        others = set(threading.enumerate())  # of tests before, whose sockets hang
        server.download = Download(outcome=None)
        self.kill(server, lambda: len(server.sockets) == 1)

        server.until(lambda: not server.sockets[0].open)
        server.until(lambda: not any(thread.name == "modelsync-loop" for thread in set(threading.enumerate()) - others))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of the download; sockets of tests before may still speak of themselves."""
    return [message for message in caplog.messages if message.startswith("phi-2:")]


class TestOutcome:
    """The rules by themselves."""

    @staticmethod
    def outcome(clock: Callable[[], float] = lambda: 0.0) -> Outcome:
        return Outcome("phi-2", clock)

    @staticmethod
    def message(status: str | None = None, percentage: float | None = None, *, greeting: bool = False) -> Heard:
        told = {"status": status, "percentage": percentage}
        return Heard(json.dumps({key: value for key, value in told.items() if value is not None}), greeting)

    @staticmethod
    def record(**flags: bool) -> PiecesModel:
        return PiecesModel.model_validate({**PHI, **flags})

    def test_one_idle_look_may_come_too_early(self) -> None:
        outcome = self.outcome()

        assert not outcome.see(self.record())
        assert not outcome.see(self.record(downloading=True))
        assert not outcome.see(self.record())
        with pytest.raises(RegistryUnavailable):
            outcome.see(self.record())

    def test_looks_at_the_moment_of_a_message_may_all_come_too_early(self) -> None:
        outcome = self.outcome()
        for status in ("COMPLETED", "RESET", "COMPLETED"):
            assert outcome.hear(self.message(status))
            assert not outcome.see(self.record(), is_prompted=True)

        assert outcome.see(self.record(downloaded=True))

    def test_a_failure_is_confirmed_by_one_look(self) -> None:
        outcome = self.outcome()

        assert outcome.hear(self.message("FAILED"))
        with pytest.raises(VersionFailed):
            outcome.see(self.record(), is_prompted=True)

    def test_a_failure_that_the_record_does_not_confirm_is_none(self) -> None:
        outcome = self.outcome()
        outcome.hear(self.message("FAILED"))

        assert not outcome.see(self.record(downloading=True))
        assert outcome.see(self.record(downloaded=True))

    def test_a_greeting_is_no_verdict(self) -> None:
        outcome = self.outcome()

        assert outcome.hear(self.message("FAILED", greeting=True))
        assert not outcome.see(self.record())

    @pytest.mark.row("S8")
    def test_only_news_give_reason_to_look(self) -> None:
        outcome = self.outcome()
        said = ["INITIALIZED", "COMPLETED", "COMPLETED", "IN-PROGRESS", "RESET", "NEW", "CANCELED"]

        assert [outcome.hear(self.message(status)) for status in said] == [False, True, False, False, True, False, True]

    @pytest.mark.parametrize("junk", [*JUNK, "[" * 50_000, '{"percentage": NaN}', '{"percentage": 1e999}'])
    @pytest.mark.row("S12", of="socket")
    def test_junk_is_no_news(self, junk: str | bytes) -> None:
        assert not self.outcome().hear(Heard(junk))

    def test_progress_in_the_log_never_goes_back_and_is_no_flood(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "modelsync")
        time = iter([0.0] * 100)
        outcome = self.outcome(lambda: next(time))
        outcome.hear(self.message("IN-PROGRESS", 90.0, greeting=True))  # perhaps an earlier download's
        for percentage in (5, 11, 12, 13, 40, 20, 39, 41, 250, -3, 100):
            outcome.hear(self.message("IN-PROGRESS", percentage))

        assert told(caplog) == [f"phi-2: {share} % downloaded" for share in (11, 40, 100)]

    def test_a_slow_download_is_told_of_every_ten_seconds(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "modelsync")
        now = [0.0]
        outcome = self.outcome(lambda: now[0])
        for second in range(0, 31, 2):
            now[0] = float(second)
            outcome.hear(self.message(None, second / 10))

        assert told(caplog) == ["phi-2: 1 % downloaded", "phi-2: 2 % downloaded", "phi-2: 3 % downloaded"]

"""BentoCloud when something goes wrong: what is absorbed, what is reported, and what is never left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    CorruptArchive,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.bentocloud.cloud import DOWNLOAD, FINISH, OBJECT, UPLOAD, Cloud
from tests.core.stores import hidden, snapshot, write_tree
from tests.standins.bentocloud import BentoCloudStandIn, ExpirePresign, member_boundaries
from tests.standins.http_server import (
    MIB,
    Action,
    Delay,
    FlipBit,
    LoseAnswer,
    Reset,
    Respond,
    Truncate,
    html_error_page,
)
from tests.support.until import until

pytestmark = [pytest.mark.usefixtures("no_waiting"), pytest.mark.faults]

ROOT = Path(__file__).parents[4]
TRIES = 5  # of one request
VERSION = r"/models/v1$"
KILL_LIMIT = 4.0  # seconds from the cancellation to the end
ERROR_PAGE = html_error_page(502)  # 10 MiB
WAYS = {"proxy": ("proxy", UPLOAD, DOWNLOAD), "presigned": (None, OBJECT, OBJECT)}


def in_short(action: Action) -> str:
    """An action as a test's name shows it."""
    return repr(action)[:50]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How bytes move: by the server itself, or by a storage behind it."""
    name: str = request.param
    return name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn, way: str) -> Cloud:
    server.transmission_strategy = WAYS[way][0]
    return Cloud(server)


@pytest.fixture
def up(way: str) -> str:
    """The path that bytes go up to."""
    return WAYS[way][1]


@pytest.fixture
def down(way: str) -> str:
    """The path that bytes come down from."""
    return WAYS[way][2]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pulled" / "digits"


def reports(server: BentoCloudStandIn) -> list[str]:
    """What was reported as the outcome of uploads."""
    return [request.body["status"] for request in server.find("PATCH", FINISH)]


def assert_nothing_left(target: Path) -> None:
    """Neither a model nor half of one."""
    assert not target.exists()
    assert hidden(target.parent) == []


class TestPush:
    @pytest.mark.parametrize(
        "action",
        [
            Reset(after=5000),
            LoseAnswer(),
            Respond(500, {"error": "injected"}),
            Respond(502, b"<html>bad gateway</html>"),
            Respond(503),
            Respond(504),
            Respond(408),
            Respond(429, headers={"Retry-After": "0"}),
            Respond(503, early=True),
            ERROR_PAGE,
        ],
        ids=in_short,
    )
    def test_absorbs_a_passing_fault_of_the_upload(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, up: str, action: Action
    ) -> None:
        server.fault("PUT", up, action)

        assert cloud.push(source).ready

        assert server.count("PUT", up) == 2
        assert "failed" not in reports(server)
        cloud.pull(target)
        assert snapshot(target) == snapshot(source)

    @pytest.mark.parametrize("step", ["/start_upload$", FINISH, "/presign_upload_url$", VERSION])
    @pytest.mark.parametrize("action", [LoseAnswer(), Respond(503), Reset()], ids=in_short)
    def test_absorbs_a_passing_fault_of_any_step(
        self, server: BentoCloudStandIn, source: Path, step: str, action: Action
    ) -> None:
        server.fault("*", step, action)

        assert Cloud(server).push(source).ready
        assert list(server.repositories["digits"].models) == ["v1"]

    def test_that_fails_for_good_leaves_its_record_to_the_next_one(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, up: str
    ) -> None:
        write_tree(source, {"large.bin": b"x" * 3_000_000})
        server.fault("PUT", up, Respond(413, b"<html>Request Entity Too Large</html>", early=True))

        with pytest.raises(NotSupported, match="413"):
            cloud.push(source)

        assert server.count("PUT", up) == 1
        assert (reports(server), cloud.record.upload_status) == ([], "uploading")

    def test_that_fails_again_and_again_leaves_its_record_to_the_next_one(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, up: str
    ) -> None:
        server.fault("PUT", up, Respond(503, b"no room"), times=None)

        with pytest.raises(RegistryUnavailable, match="503"):
            cloud.push(source)

        assert server.count("PUT", up) == TRIES
        assert (reports(server), cloud.record.upload_status) == ([], "uploading")

    def test_that_has_failed_is_finished_by_the_next_one(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, up: str
    ) -> None:
        server.fault("PUT", up, Respond(503), times=TRIES)
        with pytest.raises(RegistryUnavailable):
            cloud.push(source)
        uid = cloud.record.uid

        assert cloud.push(source).ready

        assert cloud.record.uid == uid
        cloud.pull(target)
        assert snapshot(target) == snapshot(source)

    def test_of_a_source_that_changes_on_the_way_is_given_up(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, up: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrived = server.arrived

        def touch(request: Any) -> None:
            if request.path.endswith("/start_upload"):
                (source / "weights.bin").write_bytes(b"changed after it was hashed")
            arrived(request)

        monkeypatch.setattr(server, "arrived", touch)

        with pytest.raises(SourceChanged, match=r"weights\.bin"):
            cloud.push(source)
        assert reports(server) == []

    def test_asks_for_a_new_url_when_one_has_expired(
        self, server: BentoCloudStandIn, source: Path, target: Path
    ) -> None:
        server.fault("PATCH", "/presign_upload_url$", ExpirePresign())

        assert Cloud(server).push(source).ready

        assert server.count("PATCH", "/presign_upload_url$") == 2
        assert [request.status for request in server.find("PUT", OBJECT)] == [403, 200]

    def test_gives_up_when_every_url_has_expired(self, server: BentoCloudStandIn, source: Path) -> None:
        server.fault("PATCH", "/presign_upload_url$", ExpirePresign(), times=None)

        with pytest.raises(RegistryUnavailable, match="has expired"):
            Cloud(server).push(source)
        assert server.count("PUT", OBJECT) == TRIES
        assert reports(server) == []

    @pytest.mark.row("A7")
    def test_names_the_clock_when_the_storage_does(self, server: BentoCloudStandIn, source: Path) -> None:
        xml = b"<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>"
        server.fault("PUT", OBJECT, Respond(403, xml), times=None)

        with pytest.raises(Unauthorized, match="clock"):
            Cloud(server).push(source)

    @pytest.mark.row("A2")
    def test_with_a_token_that_expires_on_the_way_is_final(self, server: BentoCloudStandIn, source: Path) -> None:
        server.transmission_strategy = "proxy"
        server.fault("PUT", UPLOAD, Respond(401, {"message": "the api token is expired"}), times=None)

        with pytest.raises(Unauthorized, match="expired"):
            Cloud(server).push(source)
        assert server.count("PUT") == 1

    def test_stops_when_the_server_wants_it_to_wait_too_long(self, server: BentoCloudStandIn, source: Path) -> None:
        server.fault("POST", "/models$", Respond(429, headers={"Retry-After": "86400"}), times=None)

        with pytest.raises(RegistryUnavailable, match="86400 s"):
            Cloud(server).push(source)
        assert server.count("POST", "/models$") == 1


def cut_at_a_member(server: BentoCloudStandIn) -> int:
    """Where the first file of the stored archive ends."""
    return member_boundaries(server.stored("digits", "v1").path)[0]


def in_the_middle(server: BentoCloudStandIn) -> int:
    """A byte in the middle of the largest file."""
    return server.stored("digits", "v1").size // 3


class TestPull:
    @pytest.fixture
    def pushed(self, cloud: Cloud, source: Path, tmp_path: Path) -> Path:
        cloud.push(source)
        return source

    @pytest.mark.parametrize("where", [cut_at_a_member, in_the_middle])
    @pytest.mark.parametrize("clean", [False, True])
    @pytest.mark.parametrize("vendors", [False, True])
    def test_is_cured_when_it_was_cut_once(
        self,
        server: BentoCloudStandIn,
        cloud: Cloud,
        source: Path,
        target: Path,
        down: str,
        where: Callable[[BentoCloudStandIn], int],
        clean: bool,
        vendors: bool,
    ) -> None:
        _ = server.seed("digits", "v1", source) if vendors else cloud.push(source)
        server.fault("GET", down, Truncate(where(server), clean=clean))

        cloud.pull(target)

        assert server.count("GET", down) >= 2
        (target / "model.yaml").unlink(missing_ok=True)
        assert snapshot(target) == snapshot(source)

    @pytest.mark.parametrize("where", [cut_at_a_member, in_the_middle])
    def test_that_is_always_cut_leaves_nothing(
        self,
        server: BentoCloudStandIn,
        cloud: Cloud,
        pushed: Path,
        target: Path,
        way: str,
        down: str,
        where: Callable[[BentoCloudStandIn], int],
    ) -> None:
        server.fault("GET", down, Truncate(where(server), clean=True), times=None)

        # Only the first has no length to tell by. A try that meets the connection which the server is just closing
        # ends otherwise, and does not arrive.
        with pytest.raises((CorruptArchive, RegistryUnavailable) if way == "proxy" else RegistryUnavailable):
            cloud.pull(target)
        assert server.count("GET", down) >= TRIES - 1
        assert_nothing_left(target)

    @pytest.mark.row("T11")
    def test_is_cured_when_a_bit_was_flipped_once(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path, down: str
    ) -> None:
        server.fault("GET", down, FlipBit(in_the_middle(server)))

        cloud.pull(target)

        assert server.count("GET", down) == 2
        assert snapshot(target) == snapshot(pushed)

    @pytest.mark.row("T11")
    def test_of_bytes_that_are_wrong_twice_is_a_mismatch_and_leaves_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path, down: str
    ) -> None:
        server.fault("GET", down, FlipBit(in_the_middle(server)), times=None)

        with pytest.raises(DigestMismatch, match="digits:v1"):
            cloud.pull(target)
        assert server.count("GET", down) == 2
        assert_nothing_left(target)

    def test_of_bytes_that_are_wrong_leaves_an_old_copy_untouched(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path, down: str
    ) -> None:
        write_tree(target, {"old.bin": b"old"})
        server.fault("GET", down, FlipBit(in_the_middle(server)), times=None)

        with pytest.raises(DigestMismatch):
            cloud.pull(target, force=True)
        assert snapshot(target) == {"old.bin": ("file", b"old", False)}
        assert hidden(target.parent) == []

    @pytest.mark.parametrize(
        "action",
        [ERROR_PAGE, Respond(503), Respond(500, {"error": "injected"}), Reset(), Respond(200, b"<html>hi")],
        ids=in_short,
    )
    def test_absorbs_a_passing_fault(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path, down: str, action: Action
    ) -> None:
        server.fault("GET", down, action)

        cloud.pull(target)

        assert server.count("GET", down) >= 2
        assert snapshot(target) == snapshot(pushed)

    @pytest.mark.parametrize(
        ("answer", "error", "tries"),
        [
            (ERROR_PAGE, RegistryUnavailable, TRIES),
            (html_error_page(200, 4096), CorruptArchive, TRIES),
            (Respond(200, b""), CorruptArchive, TRIES),
            (Respond(404, {"error": "record not found"}), ModelNotFound, 1),
            (Respond(413), NotSupported, 1),
            (Respond(418), InvalidInput, 1),
        ],
        ids=["error page", "error page as success", "nothing", "not found", "too large", "refused"],
    )
    def test_that_fails_leaves_nothing(
        self,
        server: BentoCloudStandIn,
        cloud: Cloud,
        pushed: Path,
        target: Path,
        down: str,
        answer: Respond,
        error: type[ModelSyncError],
        tries: int,
    ) -> None:
        server.fault("GET", down, answer, times=None)

        with pytest.raises(error) as refused:
            cloud.pull(target)

        assert len(str(refused.value)) < 4096
        assert server.count("GET", down) == tries
        assert_nothing_left(target)
        assert cloud.record.upload_status == "success"

    def test_of_an_object_that_is_gone_is_not_found(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path
    ) -> None:
        server.store.objects.clear()

        with pytest.raises(ModelNotFound):
            cloud.pull(target)
        assert_nothing_left(target)

    def test_asks_for_a_new_url_when_one_has_expired(
        self, server: BentoCloudStandIn, source: Path, target: Path
    ) -> None:
        cloud = Cloud(server)
        cloud.push(source)
        server.fault("PATCH", "/presign_download_url$", ExpirePresign())

        cloud.pull(target)

        assert server.count("PATCH", "/presign_download_url$") == 2
        refused, *served = [request.status for request in server.find("GET", OBJECT)]
        assert (refused, set(served) <= {200, 206}) == (403, True)
        assert snapshot(target) == snapshot(source)

    def test_gives_up_when_every_url_has_expired(self, server: BentoCloudStandIn, source: Path, target: Path) -> None:
        cloud = Cloud(server)
        cloud.push(source)
        server.fault("PATCH", "/presign_download_url$", ExpirePresign(), times=None)

        with pytest.raises(RegistryUnavailable, match="has expired"):
            cloud.pull(target)
        assert_nothing_left(target)

    @pytest.mark.row("D1", of="target")
    def test_without_room_is_refused_before_any_byte_moves(
        self, server: BentoCloudStandIn, cloud: Cloud, pushed: Path, target: Path, down: str
    ) -> None:
        cloud.record.manifest["metadata"]["modelsync"]["size_bytes"] = str(10**15)

        with pytest.raises(DiskFull, match="TiB"):
            cloud.pull(target)
        assert server.count("GET", down) == 0
        assert_nothing_left(target)


class TestCancel:
    """The server stops in the middle of a transfer; the task is told to stop."""

    def cancelled(self, server: BentoCloudStandIn, path: str, work: Callable[[Control], object]) -> float:
        """Run work, cancel it once a request to the path is stuck; return how many seconds it then took to end."""
        token = CancelToken()
        outcome: list[BaseException] = []

        def run() -> None:
            try:
                work(Control(cancel=token))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: server.count(path=path), f"a request for {path}")
        time.sleep(0.1)  # until the pipes are full
        start = time.monotonic()
        token.cancel()
        thread.join(timeout=10)
        assert [type(error) for error in outcome] == [Cancelled]
        return time.monotonic() - start

    @pytest.mark.row("P4")
    def test_ends_a_stuck_upload_in_time(
        self, server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path, up: str
    ) -> None:
        large = tmp_path / "large"
        large.mkdir()
        with (large / "weights.bin").open("wb") as file:
            file.truncate(32 * MIB)  # more than the kernel buffers
        server.fault("PUT", up, Delay(60))

        took = self.cancelled(server, up, lambda control: cloud.push(large, control=control))

        assert took < KILL_LIMIT
        assert reports(server) == []

    @pytest.mark.row("P4")
    def test_ends_a_stuck_download_in_time_and_leaves_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, down: str
    ) -> None:
        cloud.push(source)
        server.fault("GET", down, Delay(60))

        took = self.cancelled(server, down, lambda control: cloud.pull(target, control=control))

        assert took < KILL_LIMIT
        assert_nothing_left(target)

    @pytest.mark.parametrize("step", ["/models$", "/start_upload$", FINISH])
    @pytest.mark.row("P4")
    def test_ends_a_stuck_call_in_time(self, server: BentoCloudStandIn, source: Path, step: str) -> None:
        cloud = Cloud(server)
        server.fault("*", step, Delay(60))

        assert self.cancelled(server, step, lambda control: cloud.push(source, control=control)) < KILL_LIMIT


# ---- disk and memory --------------------------------------------------------------------------------------------

LARGE = 80 * MIB
SMALL = 256 * 1024  # for what Python itself may write, such as compiled modules
MEASURED = """
import json, sys
from pathlib import Path
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.transfer.control import Control

verb, host, token, warm_up, model, target = sys.argv[1:]

def number(file, key):
    lines = dict(line.split(":") for line in Path("/proc/self", file).read_text().splitlines() if ":" in line)
    return int(lines[key].split()[0])

registry = BentoCloud(BentoCloudSettings.read("cloud", {"host": host, "password": token}))

def run(name):
    ref = registry.parse(f"{name}:v1")
    with driver_for(registry) as driver:
        if verb == "push":
            push(registry, driver, Path(target) / name, ref, Control())
        else:
            pull(registry, driver, ref, Path(target) / name, Control(), query=Query())

run(warm_up)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
written, peak = number("io", "wchar"), number("status", "VmHWM")
run(model)
print(json.dumps({"written": number("io", "wchar") - written, "grown": (number("status", "VmHWM") - peak) * 1024}))
"""


@pytest.mark.slow
class TestResources:
    """Measured in a process of its own, by the kernel.

    `wchar` counts the bytes given to write(2) and its kin: files and pipes, but no sockets, which are sent to by other
    calls. `write_bytes` would say what reaches a disk: nothing on a memory file system, and what the page cache merges.
    """

    @pytest.fixture
    def measure(self, server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path) -> Callable[[str, Path], dict[str, int]]:
        for name, size in (("small", MIB), ("large", LARGE)):
            (tmp_path / "models" / name).mkdir(parents=True)
            with (tmp_path / "models" / name / "weights.bin").open("wb") as file:
                file.write(b"weights")
                file.truncate(size)

        def run(verb: str, place: Path) -> dict[str, int]:
            arguments = [verb, server.url, server.token, "small", "large", str(place)]
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *arguments],
                cwd=ROOT,
                env={"NO_PROXY": "*"},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            measured: dict[str, int] = json.loads(done.stdout)
            return measured

        return run

    def test_a_push_writes_nothing_and_a_pull_each_byte_once(
        self, measure: Callable[[str, Path], dict[str, int]], tmp_path: Path
    ) -> None:
        up = measure("push", tmp_path / "models")
        down = measure("pull", tmp_path / "pulled")

        assert up["written"] < SMALL
        assert LARGE <= down["written"] < LARGE + SMALL
        assert max(up["grown"], down["grown"]) < 64 * MIB
        assert (tmp_path / "pulled" / "large" / "weights.bin").stat().st_size == LARGE

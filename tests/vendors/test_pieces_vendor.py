"""The unmodified `pieces_os_client`, of two generations, works with the stand-in: so may ours be tested against it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import VersionFailed
from airflow_provider_modelsync.core.models import Patience
from airflow_provider_modelsync.core.registries.base import ANY
from tests.core.registries.pieces.host import Host
from tests.standins.http_server import Json
from tests.standins.pieces import Download, PiecesStandIn, Progress, model

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
PHI = model("Phi 2")
ID = PHI["id"]
CUSTOM = model("My tuned model", custom=True)
NEW = model("Newest", foundation="PHI_99", provider="NOBODY_YET", speed={"tokens": 9})
GENERATIONS = ("pieces", "pieces-3")  # as in requirements/vendor-*.txt


class VendorError(Exception):
    """The vendor's client raised; the text is its traceback."""


@dataclass(frozen=True)
class VendorClient:
    """The vendor's client against one server."""

    generation: str
    server: PiecesStandIn
    home: Path

    @property
    def python(self) -> Path:
        """The interpreter of its environment, or the one that a variable names."""
        variable = f"MODELSYNC_VENDOR_{self.generation.upper().replace('-', '_')}"
        python = Path(os.environ.get(variable, ROOT / ".venv-vendors" / self.generation / "bin" / "python"))
        if not python.exists():
            pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in {variable}")
        return python

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands of pieces_client.py in one process; what each returned."""
        script = str(Path(__file__).with_name("pieces_client.py"))
        done = subprocess.run(
            [str(self.python), script, self.server.url, *(json.dumps(command) for command in commands)],
            env={"PATH": os.defpath, "HOME": str(self.home), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise VendorError(done.stderr)
        results: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return results


@pytest.fixture
def server() -> Iterator[PiecesStandIn]:
    with PiecesStandIn([PHI, CUSTOM]) as server:
        yield server


@pytest.fixture(params=GENERATIONS)
def vendor(request: pytest.FixtureRequest, server: PiecesStandIn, tmp_path: Path) -> VendorClient:
    return VendorClient(request.param, server, tmp_path)


def flags(record: Json) -> tuple[bool, bool, bool]:
    return record["downloaded"], record["downloading"], record["loaded"]


def test_the_client_asks_how_the_host_is_and_what_it_has(server: PiecesStandIn, vendor: VendorClient) -> None:
    health, version, models, one, missing, odd = vendor.run(
        ("health",),
        ("version",),
        ("models",),
        ("snapshot", ID),
        ("refused", "snapshot", "nope"),
        ("refused", "snapshot", "a/b c"),
    )
    assert (health, version) == ("ok", "12.1.0")
    assert [record["id"] for record in models] == [ID, CUSTOM["id"]]
    assert one == models[0]
    created, before = one.pop("created"), {**PHI, "created": None}
    assert created["value"].startswith("2024-03-01")
    assert one.items() <= before.items()
    assert one.keys() >= {"bytes", "ram", "maxTokens", "capabilities", "unique", "parameters"}
    assert missing == odd == [410, "model was not found."]
    assert server.requests[-1].path == "/model/a%2Fb%20c"
    assert not any("x-application-id" in request.headers for request in server.requests)


def test_the_client_downloads_loads_and_unloads(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.download = Download(tick=None)
    absent, started, progress, refused = vendor.run(
        ("cancel", ID), ("download", ID), ("progress", ID), ("refused", "load", ID)
    )
    assert (flags(absent), flags(started)) == ((False, False, False), (False, True, False))
    assert progress["status"] == "INITIALIZED"
    assert refused[0] == 500
    server.finish(ID, "COMPLETED")
    downloaded, again, loaded, unloaded = vendor.run(("snapshot", ID), ("download", ID), ("load", ID), ("unload", ID))
    assert [flags(record) for record in (downloaded, again, loaded, unloaded)] == [
        (True, False, False),
        (True, False, False),
        (True, False, True),
        (True, False, False),
    ]
    assert [f"{request.method} {request.path.rsplit('/', 1)[1]}" for request in server.requests[:4]] == [
        "POST cancel",
        "POST download",
        "GET progress",
        "POST load",
    ]


def test_the_client_cancels(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.download = Download(outcome=None)
    started, cancelled, after = vendor.run(("download", ID), ("cancel", ID), ("snapshot", ID))
    assert flags(started) == (False, True, False)
    assert flags(cancelled) == flags(after) == (False, False, False)
    assert server.states[ID] == {"status": "CANCELED"}


def test_the_client_updates_custom_models_only(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.models[CUSTOM["id"]]["house"] = "mine"
    updated, refused, nothing = vendor.run(
        ("update", CUSTOM["id"], {"name": "Renamed", "description": "näher"}),
        ("refused", "update", ID, {"name": "Renamed"}),
        ("refused", "update_with_nothing"),
    )
    assert (updated["name"], updated["description"]) == ("Renamed", "näher")
    assert (refused[0], nothing[0]) == (500, 500)
    # What our own client does better: nothing that it does not know is lost.
    assert server.models[CUSTOM["id"]].keys() == CUSTOM.keys()
    assert server.models[ID] == PHI


def test_the_client_creates_and_deletes(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.models[ID]["downloaded"] = True
    seeded = {key: value for key, value in model("New").items() if key not in ("id", "downloading", "loaded")}
    created, duplicate, emptied = vendor.run(("create", seeded), ("refused", "create", seeded), ("delete_cache", ID))
    assert (created["custom"], created["unique"], duplicate[0]) == (True, "new", 500)
    assert emptied["model"]["id"] == ID
    assert not server.models[ID]["downloaded"]
    _, gone = vendor.run(("delete", created["id"]), ("refused", "snapshot", created["id"]))
    assert gone[0] == 410


def test_a_model_of_tomorrow(server: PiecesStandIn, vendor: VendorClient) -> None:
    """The newer client reads it, in part; to the older one the whole list is lost."""
    server.models[NEW["id"]] = dict(NEW)
    if vendor.generation == "pieces-3":
        with pytest.raises(VendorError, match="validation error"):
            vendor.run(("models",))
    else:
        (models,) = vendor.run(("models",))
        assert models[-1]["foundation"] == "UNKNOWN"
        assert "speed" not in models[-1]


def test_an_application_id_is_taken(server: PiecesStandIn, tmp_path: Path) -> None:
    vendor = VendorClient("pieces", server, tmp_path)
    assert vendor.run(("application", "mine"), ("snapshot", ID))[1]["id"] == ID
    assert server.requests[0].headers["x-application-id"] == "mine"


def test_the_clients_kind_of_socket_hears_downloads(server: PiecesStandIn, vendor: VendorClient) -> None:
    outcomes: tuple[Any, ...] = ("COMPLETED", "FAILED", "CANCELED")
    for outcome in outcomes:
        record = model(outcome)
        server.models[record["id"]] = record
        server.downloads[record["id"]] = Download(outcome=outcome)
    server.progress = [Progress(fragments=3, pings=True, closes=True)]
    results = vendor.run(*(("watch", model(outcome)["id"]) for outcome in outcomes))
    for outcome, heard in zip(outcomes, results, strict=True):
        assert heard.pop() == {"closed": 1000}
        assert [(message["status"], message.get("percentage")) for message in heard] == [
            ("UNKNOWN", None),
            ("INITIALIZED", None),
            *(("IN-PROGRESS", percentage) for percentage in server.download.percentages),
            (outcome, None),
        ]
    frames = 3 * len(results[0])
    assert [listener.received for listener in server.sockets] == [["PONG"] * frames + ["CLOSE"]] * 3


def test_the_clients_kind_of_socket_sees_ends(server: PiecesStandIn, vendor: VendorClient) -> None:
    ends: tuple[Any, ...] = ("close", "eof", "reset")
    server.progress = [Progress(ends_after=1, ends=how) for how in ends]
    results = vendor.run(*(("watch", ID, False) for _ in ends))
    for heard, code in zip(results, (1001, None, None), strict=True):
        assert [message.get("status") for message in heard] == ["UNKNOWN", None]
        assert heard[-1] == {"closed": code}


# ---- between the vendor's client and ours -----------------------------------------------------------------------


PATIENCE = Patience(seconds=60, poll_interval=0.05)  # the vendor's client takes seconds to start


@contextmanager
def meanwhile(fn: Callable[[], object]) -> Iterator[None]:
    """Run something beside the block, and wait for it after."""
    thread = threading.Thread(target=fn)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_the_client_sees_what_we_do(server: PiecesStandIn, vendor: VendorClient) -> None:
    Host(server).fetch(patience=PATIENCE)
    (downloaded,) = vendor.run(("snapshot", ID))
    Host(server).run(lambda pieces: pieces.load(pieces.parse("phi-2")))
    (loaded,) = vendor.run(("snapshot", ID))
    Host(server).run(lambda pieces: pieces.unload(pieces.parse("phi-2")))
    (unloaded,) = vendor.run(("snapshot", ID))
    assert [flags(record) for record in (downloaded, loaded, unloaded)] == [
        (True, False, False),
        (True, False, True),
        (True, False, False),
    ]


def test_we_see_what_the_client_does(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.download = Download(outcome=None)

    def finish() -> None:
        server.until(lambda: server.sockets, 20)
        server.finish(ID, "COMPLETED")

    vendor.run(("download", ID))
    with meanwhile(finish):
        Host(server).fetch(patience=PATIENCE)
        assert server.models[ID]["downloaded"]
    assert server.count("POST", "/download$") == 1
    vendor.run(("load", ID))
    seen = Host(server).get("phi-2")
    assert seen.raw["loaded"] is True


def test_the_client_cancels_what_we_download(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.download = Download(outcome=None)

    def cancel() -> None:
        server.until(lambda: server.models[ID]["downloading"], 20)
        vendor.run(("cancel", ID))

    with meanwhile(cancel), pytest.raises(VersionFailed, match="CANCELED"):
        Host(server).fetch(patience=PATIENCE)
    assert server.count("POST", "/cancel$") == 1


def test_we_cancel_what_the_client_watches(server: PiecesStandIn, vendor: VendorClient) -> None:
    server.download, server.progress = Download(outcome=None), [Progress(closes=True)]

    def cancel() -> None:
        server.until(lambda: server.models[ID]["downloading"], 20)
        Host(server).run(lambda pieces: pieces.cancel_fetch(ID))

    with meanwhile(cancel):
        (heard,) = vendor.run(("watch", ID))
    assert [message.get("status") for message in heard[-2:]] == ["CANCELED", None]


def test_the_client_reads_what_we_update_and_we_keep_what_it_does_not_know(
    server: PiecesStandIn, vendor: VendorClient
) -> None:
    extra = {"house": "mine", "organization": {"id": "o", "seats": 3}}
    server.models[CUSTOM["id"]].update(extra)
    Host(server).run(lambda pieces: pieces.update(pieces.parse(CUSTOM["unique"]), {"name": "Renamed"}))
    assert server.models[CUSTOM["id"]] == {**CUSTOM, **extra, "name": "Renamed"}
    assert vendor.run(("snapshot", CUSTOM["id"]))[0]["name"] == "Renamed"

    vendor.run(("update", CUSTOM["id"], {"description": "of the client"}))
    seen = Host(server).get(CUSTOM["unique"])
    assert (seen.raw["name"], seen.raw["description"]) == ("Renamed", "of the client")
    assert "house" not in seen.raw  # lost by the client


def test_a_custom_model_goes_from_one_to_the_other(server: PiecesStandIn, vendor: VendorClient) -> None:
    fields = {"name": "Ours", "unique": "ours", "version": "1", "type": "SPEED", "usage": "CODE_GENERATION"}
    registered = Host(server).run(lambda pieces: pieces.register(fields))
    (models,) = vendor.run(("models",))
    assert registered.raw["id"] == models[-1]["id"]
    assert models[-1]["custom"] is True

    seeded = {key: value for key, value in model("Theirs").items() if key not in ("id", "downloading", "loaded")}
    vendor.run(("delete", registered.raw["id"]), ("create", seeded))
    listed = Host(server).run(lambda pieces: pieces.list_models(ANY))
    assert {version.name for version in listed} == {"phi-2", CUSTOM["unique"], "theirs"}
    assert Host(server).run(lambda pieces: pieces.delete(pieces.parse("theirs")))
    assert vendor.run(("models",))[0][-1]["id"] == CUSTOM["id"]

"""What a model must stand before it is used: formats, scanners. What is refused is nowhere."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, UntrustedModel
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import checks
from airflow_provider_modelsync.core.verbs.checks import Checks
from airflow_provider_modelsync.core.verbs.pull import inspect
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, sync
from tests.core.archive.test_formats import HARM, safetensors
from tests.core.stores import Store, hidden, snapshot, write_tree
from tests.support.until import until

GOOD = {"model.safetensors": safetensors(), "config.json": b"{}", "empty": b""}
BAD = {**GOOD, "sub/pytorch_model.bin": HARM}
PLAIN = ["safetensors", "json"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Has ``fraud:v1``, of plain formats, and ``fraud:v2``, with a pickle."""
    store = Store(tmp_path / "store")
    store.push(write_tree(tmp_path / "good", GOOD), "fraud:v1")
    store.push(write_tree(tmp_path / "bad", BAD), "fraud:v2")
    return store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "target"


def checks_of(**arguments: Any) -> Checks:
    registry = ModelStore(RegistrySettings(conn_id="store", host="file:///nowhere"))
    return Checks.of(registry, **arguments)


def gate(*allowed: str) -> Checks:
    return checks_of(allowed_formats=allowed or PLAIN)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_model_of_allowed_formats_is_pulled(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target, checks=gate())

    assert (target / "model.safetensors").read_bytes() == GOOD["model.safetensors"]


def test_a_pickle_is_refused_before_anything_is_visible(store: Store, target: Path) -> None:
    with pytest.raises(UntrustedModel, match=r"holds what is not allowed: 'sub/pytorch_model\.bin' \(pickle\)"):
        store.pull("fraud:v2", target, checks=gate())

    assert not target.exists()
    assert hidden(target.parent) == []


def test_the_model_that_is_there_stays(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target)
    before = snapshot(target)

    with pytest.raises(UntrustedModel):
        store.pull("fraud:v2", target, checks=gate(), force=True)

    assert snapshot(target) == before


def test_a_model_that_is_there_already_is_looked_at_too(store: Store, target: Path) -> None:
    store.pull("fraud:v2", target)

    with pytest.raises(UntrustedModel):
        store.pull("fraud:v2", target, checks=gate())

    assert (target / "sub/pytorch_model.bin").exists()


def test_what_is_left_out_need_not_be_allowed(store: Store, target: Path) -> None:
    store.pull("fraud:v2", target, checks=gate(), exclude=["*.bin"])

    assert not (target / "sub").exists()


def test_every_allowed_format_lets_all_pass(store: Store, target: Path) -> None:
    store.pull("fraud:v2", target, checks=gate("safetensors", "json", "pickle"))

    assert (target / "sub/pytorch_model.bin").exists()


@pytest.mark.parametrize("allowed", [["torch"], [], ["safetensors", "Pickle"]])
def test_an_unknown_format_is_refused_before_anything_moves(allowed: list[str]) -> None:
    with pytest.raises(InvalidInput, match="there are safetensors, onnx, gguf") as refused:
        checks_of(allowed_formats=allowed)

    assert refused.value.argument == "allowed_formats"


def test_a_sync_copies_what_is_allowed_and_refuses_the_rest(store: Store, tmp_path: Path) -> None:
    production = Store(tmp_path / "production")

    report = sync(
        Side(store.registry, SyncDriver()),
        Side(production.registry, SyncDriver()),
        Selection(versions="all"),
        Control(),
        checks=gate(),
    )

    assert {done.source: done.outcome for done in report.versions} == {"fraud:v1": "copied", "fraud:v2": "failed"}
    assert [done.is_permanent for done in report.of("failed")] == [True]
    assert [version.ref for version in production.list_versions("fraud")] == ["fraud:v1"]
    assert production.get("fraud:v1").digest == store.get("fraud:v1").digest
    assert not any("v2" in path for path in snapshot(tmp_path / "production"))


def test_a_model_is_looked_at_without_being_kept(store: Store, tmp_path: Path) -> None:
    def look(model: str) -> Any:
        ref = store.registry.parse(model)
        return inspect(store.registry, SyncDriver(), ref, Control(), query=Query(), checks=gate())

    before = sorted(os.listdir(tmp_path))
    assert look("fraud:v1").ref == "fraud:v1"
    with pytest.raises(UntrustedModel):
        look("fraud")
    assert sorted(os.listdir(tmp_path)) == before


# Scanners


CLEAN = script("import os, sys; assert 'config.json' in os.listdir(sys.argv[1])")
DIRTY = script("import sys; print('found os.system'); sys.exit(1)")


def test_a_command_looks_before_anything_is_visible(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target, checks=checks_of(scan=CLEAN))
    with pytest.raises(UntrustedModel, match="refuses fraud:v2: it ended with 1") as refused:
        store.pull("fraud:v2", target, checks=checks_of(scan=DIRTY))

    assert (refused.value.argument, refused.value.said) == ("scan", "found os.system")
    assert not (target / "sub").exists()
    assert hidden(target.parent) == []


def test_the_path_stands_where_a_command_wants_it(store: Store, target: Path) -> None:
    wanted = "import os, sys; sys.exit(not (sys.argv[1][:5] == '--at=' and os.path.isdir(sys.argv[1][5:])))"
    store.pull("fraud:v1", target, checks=checks_of(scan=[*script(wanted), "--at={path}", "more"]))

    assert target.exists()


def test_a_command_as_text_is_read_as_a_shell_does(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target, checks=checks_of(scan=f"{sys.executable} -c 'import sys; sys.exit(0)' --path"))

    assert target.exists()


def test_a_scanner_must_not_change_what_it_looks_at(store: Store, target: Path) -> None:
    writes = script("import pathlib, sys; pathlib.Path(sys.argv[1], 'report.txt').write_text('clean')")
    with pytest.raises(UntrustedModel, match="has changed the files"):
        store.pull("fraud:v1", target, checks=checks_of(scan=writes))

    assert not target.exists()


def test_a_kill_ends_a_scanner_and_what_it_has_started(store: Store, target: Path, tmp_path: Path) -> None:
    cancel, alive = CancelToken(), tmp_path / "alive"
    child = f"import pathlib, time; pathlib.Path({str(alive)!r}).touch(); time.sleep(60)"
    scan = script(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    failed: list[BaseException] = []

    def pull() -> None:
        try:
            store.pull("fraud:v1", target, control=Control(cancel=cancel), checks=checks_of(scan=scan))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    until(alive.exists, "the scanner to start")
    cancelled = time.monotonic()
    cancel.cancel()
    thread.join()

    assert time.monotonic() - cancelled < 4
    assert [type(error) for error in failed] == [Cancelled]
    assert not target.exists()


@pytest.mark.parametrize("scan", ["no-such-scanner --path {path}", "'unclosed", ["no-such-scanner"], "", []])
def test_a_scanner_that_is_not_there_is_refused_before_anything_moves(scan: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        checks_of(scan=scan)

    assert refused.value.argument == "scan"


def finds_nothing(directory: Path) -> None:
    assert (directory / "config.json").read_bytes() == b"{}"


def finds_pickles(directory: Path) -> list[str]:
    return [f"{path.name} is a pickle" for path in directory.rglob("*.bin")]


def breaks(directory: Path) -> None:
    raise OSError("no rules")


def imports_nothing(directory: Path) -> None:
    with pytest.raises(AttributeError):
        pickle.loads(b"cos\nno_such_name\n.")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (finds_nothing, None),
        (imports_nothing, None),
        (finds_pickles, "refuses fraud:v2: pytorch_model.bin is a pickle"),
        (breaks, "did not end on fraud:v2: OSError: no rules"),
    ],
)
def test_an_entry_point_looks(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[[Path], Any], says: str | None
) -> None:
    """Packages bring them; installing one would take a minute, so that the look-up is all that is not real here."""
    entry = EntryPoint("house", f"{__name__}:{function.__name__}", checks.SCANNERS)
    monkeypatch.setattr(checks, "entry_points", EntryPoints([entry]).select)

    if says is None:
        store.pull("fraud:v2", target, checks=checks_of(scan="house"))
        assert target.exists()
    else:
        with pytest.raises(UntrustedModel, match=says):
            store.pull("fraud:v2", target, checks=checks_of(scan="house"))
        assert not target.exists()

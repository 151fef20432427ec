"""Push and pull through the whole core, into and out of a model store on a real disk."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import SourceTree, digest_directory
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    TargetExists,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import PulledModel
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.progress import Report
from tests.core.processes import as_nobody, at_once, in_namespace
from tests.core.stores import CancelAfter, Store, acting_before_pulls, hidden, snapshot, write_tree
from tests.support.kills import LIMIT
from tests.support.maps import mapped
from tests.support.rewrite import rewrite_and_set_back

FILES = {"weights.bin": bytes(range(256)) * 8000, "tokenizer/vocab.txt": b"one\ntwo\n", "empty": b""}
OTHER = {"weights.bin": b"other", "config.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", FILES, executable=["tokenizer/vocab.txt"], directories=["void/deeper"])


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "other", OTHER)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to pull to, in a directory of its own; absent."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "target"


# Push


def test_a_version_left_out_is_derived_from_the_digest(store: Store, model: Path) -> None:
    version = store.push(model, "fraud")
    assert version.version == "m" + digest_directory(model).removeprefix("sha256:")[:15]


def test_pushing_again_without_a_version_makes_no_second_one(store: Store, model: Path) -> None:
    first, second = store.push(model, "fraud"), store.push(model, "fraud")
    assert (first.ref, first.digest) == (second.ref, second.digest)
    assert len(store.list_versions("fraud")) == 1


def test_a_push_tells_what_it_moved(store: Store, model: Path) -> None:
    stats = [store.push(model, "fraud:v1").transfer for _ in range(2)]
    assert [(stat.skipped, stat.sent_bytes) for stat in stats if stat] == [(False, 2_048_008), (True, 0)]


def test_the_log_says_whence_and_whither(
    store: Store, model: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="modelsync")
    pushed = store.push(model, "fraud:v1")
    store.push(model, "fraud:v1")
    store.pull("fraud", target)

    address = store.root.as_uri()
    assert [record.getMessage() for record in caplog.records] == [
        f"pushing {model} ({sum(path.is_file() for path in model.rglob('*'))} files, 2.0 MiB) "
        f"to fraud:v1 on store ({address})",
        "completing and verifying fraud:v1",
        f"pushed fraud:v1 with digest {pushed.digest}",
        f"fraud:v1 is already there with the same digest {pushed.digest}: nothing is sent",
        f"pulling fraud:v1 (2.0 MiB) from store ({address}) into {target}",
        "completing and verifying fraud:v1",
        f"pulled fraud:v1 into {target}",
    ]


def test_a_push_reports_its_progress(store: Store, model: Path) -> None:
    reports: list[Report] = []
    store.push(model, "fraud:v1", control=Control(on_progress=reports.append))
    assert (reports[-1].done, reports[-1].total) == (2_048_008, 2_048_008)


def test_a_single_file_is_pushed_under_its_base_name(store: Store, model: Path, target: Path) -> None:
    store.push(model / "weights.bin", "fraud:v1")
    store.pull("fraud", target)
    assert snapshot(target) == {"weights.bin": ("file", FILES["weights.bin"], False)}


def test_names_that_some_disks_cannot_hold_are_warned_of_and_come_back(
    store: Store, tmp_path: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"aux.npy": b"1", "con/x": b"2", "A.npy": b"3", "a.npy": b"4", "w:0.npy": b"5", "dot.": b"6"}
    store.push(write_tree(tmp_path / "odd", files), "fraud:v1")
    assert "6 of the model's names cannot be held by file systems of Windows" in caplog.text
    store.pull("fraud", target)
    assert {path: content for path, (kind, content, _) in snapshot(target).items() if kind == "file"} == files


def test_what_is_left_out_by_default_is_told(store: Store, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = store.push(model, "fraud").ref
    write_tree(model, {".git/config": b"", ".cache/huggingface/download/x.metadata": b"etag"})
    with caplog.at_level("INFO", logger="modelsync"):
        assert store.push(model, "fraud").ref == before
    assert "left out of the source as no part of the model: '.cache/huggingface/', '.git/'" in caplog.text
    assert store.push(model, "fraud", exclude=["!.git"]).ref != before


def test_a_snapshot_of_a_hugging_face_cache_goes_up_and_comes_back_as_plain_files(
    store: Store, tmp_path: Path, target: Path
) -> None:
    repository = write_tree(tmp_path / "hub" / "models--org--name", {"blobs/abc": b"w" * 99, "blobs/def": b"{}"})
    commit = repository / "snapshots" / "0123"
    (commit / "onnx").mkdir(parents=True)
    (commit / "config.json").symlink_to("../../blobs/def")
    (commit / "onnx" / "model.onnx").symlink_to("../../../blobs/abc")
    store.push(commit, "fraud:v1")
    store.pull("fraud", target)
    assert snapshot(target) == {
        "config.json": ("file", b"{}", False),
        "onnx": ("directory", b"", False),
        "onnx/model.onnx": ("file", b"w" * 99, False),
    }
    with pytest.raises(InvalidInput, match="symbolic link"):
        store.push(commit, "fraud:v2", follow_links="never")
    assert [version.version for version in store.list_versions("fraud")] == ["v1"]


def test_a_way_to_follow_links_that_is_unknown_is_refused(store: Store, model: Path) -> None:
    with pytest.raises(InvalidInput, match="'always' is none of") as caught:
        store.push(model, "fraud:v1", follow_links="always")
    assert caught.value.argument == "follow_links"


def test_a_remembered_hash_that_is_not_true_any_more_is_forgotten(store: Store, other: Path, in_memory: Path) -> None:
    memory = Memory()
    store.push(other, "fraud:v1")
    path = in_memory / "weights.bin"
    path.write_bytes(bytes(17 << 20))
    with mapped(path) as view:
        with pytest.raises(VersionConflict):
            store.push(path.parent, "fraud:v1", control=Control(checkpoint=memory))
        assert memory
        view[1] = 1
        with pytest.raises(SourceChanged):
            store.push(path.parent, "other:v1", control=Control(checkpoint=memory))
        assert [model.ref for model in store.list_models()] == ["fraud:v1"]
        assert store.push(path.parent, "other:v1", control=Control(checkpoint=memory)).digest == digest_directory(path)


class Memory(dict[str, Any]):
    """What a task remembers from one try to the next."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.mark.parametrize("what", ["absent", "empty directory", "link", "bad name"])
def test_a_bad_source_is_refused_before_anything_is_written(store: Store, model: Path, what: str) -> None:
    source = {"absent": model / "absent", "empty directory": model / "void"}.get(what, model)
    if what == "link":
        (model / "link").symlink_to("/etc/passwd")
    if what == "bad name":
        (model / "back\\slash").touch()
    with pytest.raises(InvalidInput) as caught:
        store.push(source, "fraud:v1")
    assert caught.value.argument == "source"
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("labels", {"stage": 1}),
        ("labels", {1: "x"}),
        ("labels", {"stage": None}),
        ("metadata", {"x": object()}),
        ("metadata", {"x": b"bytes"}),
        ("metadata", {1: "x"}),
    ],
)
def test_labels_and_metadata_of_a_wrong_kind_are_refused_before_anything_is_written(
    store: Store, model: Path, argument: str, value: Any
) -> None:
    with pytest.raises(InvalidInput) as caught:
        store.push(model, "fraud:v1", **{argument: value})
    assert caught.value.argument == argument
    assert not store.root.exists()


CAPABILITY_NEEDED = [
    (Capability.PUSH, {}),
    (Capability.CHOOSE_VERSION, {}),
    (Capability.FORCE, {"force": True}),
    (Capability.LABELS, {"labels": {"a": "b"}}),
    (Capability.METADATA, {"metadata": {"a": 1}}),
]


@pytest.mark.parametrize(("capability", "options"), CAPABILITY_NEEDED)
def test_what_a_registry_cannot_do_or_keep_is_refused_before_the_source_is_read(
    store: Store, capability: Capability, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "capabilities", ModelStore.capabilities - {capability})
    with pytest.raises(NotSupported, match=capability.value):
        store.push(Path("/absent"), "fraud:v1", **options)


def test_what_a_registry_lacks_is_no_matter_when_it_is_not_asked_for(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {Capability.CHOOSE_VERSION, Capability.FORCE, Capability.LABELS, Capability.METADATA}
    monkeypatch.setattr(ModelStore, "capabilities", ModelStore.capabilities - lacking)
    assert store.push(model, "fraud", labels={}, metadata={}).ready


def test_the_disk_is_made_durable_once_however_many_files_there_are(
    store: Store, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(durable, "_syncfs", lambda descriptor: calls.append(descriptor) or 0)
    many = write_tree(tmp_path / "many", {f"{number // 50}/{number}": b"x" for number in range(500)})
    synced = _count_fsyncs(monkeypatch)
    store.push(many, "fraud:v1")
    assert len(calls) == 1
    few_for_records = len(synced)
    assert few_for_records < 12
    store.pull("fraud:v1", target)
    assert len(calls) == 2
    assert len(synced) == few_for_records + 1


def _count_fsyncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor))[1])
    return synced


def test_the_bytes_are_durable_before_the_manifest_exists(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests: list[bool] = []
    monkeypatch.setattr(durable, "_syncfs", lambda _: manifests.append(store.meta("fraud", "v1.json").exists()) or 0)
    store.push(model, "fraud:v1")
    assert manifests == [False]


# A source that changes


@contextmanager
def _between_hash_and_copy(change: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let something happen just before the first file is read for copying."""
    read_into = SourceTree.read_into
    todo = [change]

    def read_after_change(self: SourceTree, path: str, offset: int, view: memoryview) -> int:
        if todo:
            todo.pop()()
        return read_into(self, path, offset, view)

    with monkeypatch.context() as patch:
        patch.setattr(SourceTree, "read_into", read_after_change)
        yield
    assert not todo


CHANGES: dict[str, Callable[[Path], Any]] = {
    "written to": lambda path: path.write_bytes(b"\1" + path.read_bytes()[1:]),
    "rewritten in place, its times restored": lambda path: rewrite_and_set_back(path, b"\xff"),
    "truncated": lambda path: os.truncate(path, 100),
    "replaced": lambda path: (shutil.copyfile(path, f"{path}.new"), os.replace(f"{path}.new", path)),
    "removed": os.unlink,
    "replaced by a link": lambda path: (path.rename(path.with_suffix(".old")), path.symlink_to("weights.old")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.row("D3", of="directory")
def test_a_source_that_changes_while_it_is_pushed_is_not_published(
    store: Store, model: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = model / "weights.bin"
    with _between_hash_and_copy(lambda: CHANGES[change](weights), monkeypatch), pytest.raises(SourceChanged) as caught:
        store.push(model, "fraud:v1")
    assert "'weights.bin'" in str(caught.value)
    assert store.list_versions("fraud") == []
    assert store.records("fraud") == ["v1.~1.0.closed"]
    assert not (store.root / "fraud" / "v1").exists()


def test_a_writer_beside_a_push_ends_in_a_whole_version_or_a_changed_source(store: Store, tmp_path: Path) -> None:
    model = write_tree(tmp_path / "live", {"weights.bin": b"\0" * (8 << 20)})
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with (model / "weights.bin").open("r+b") as file:
                file.seek(random.randrange(8 << 20))
                file.write(os.urandom(8))

    writer = threading.Thread(target=write)
    writer.start()
    changed = 0
    try:
        for turn in itertools.count():
            if turn >= 20 and changed:  # however late the writer is
                break
            assert turn < 200
            try:
                version = store.push(model, f"fraud:v{turn}")
            except SourceChanged:
                changed += 1
            else:
                assert digest_directory(store.root / "fraud" / f"v{turn}") == version.digest
    finally:
        stop.set()
        writer.join()


# Pull


def test_a_pulled_tree_equals_the_pushed_one(store: Store, model: Path, target: Path) -> None:
    pushed = store.push(model, "fraud:v1")
    pulled = store.pull("fraud:v1", target)
    assert snapshot(target) == snapshot(model)
    assert (pulled.path, pulled.version.digest) == (target, pushed.digest)
    assert hidden(target.parent) == []


def test_a_pull_tells_what_it_moved(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    stats = [store.pull("fraud", target).version.transfer for _ in range(2)]
    assert [(stat.skipped, stat.sent_bytes) for stat in stats if stat] == [(False, 2_048_008), (True, 0)]


def test_only_the_executable_bit_survives(store: Store, model: Path, target: Path) -> None:
    (model / "weights.bin").chmod(0o4666)
    os.utime(model / "weights.bin", (1, 1))
    store.push(model, "fraud:v1")
    umask = os.umask(0o022)
    try:
        store.pull("fraud:v1", target)
    finally:
        os.umask(umask)
    modes = {path: (target / path).stat().st_mode & 0o7777 for path in ("weights.bin", "tokenizer/vocab.txt", "void")}
    assert modes == {"weights.bin": 0o644, "tokenizer/vocab.txt": 0o755, "void": 0o755}
    assert (target / "weights.bin").stat().st_mtime > 1e9


def test_without_a_version_the_newest_is_pulled(store: Store, model: Path, other: Path, target: Path) -> None:
    store.push(model, "fraud:v2")
    store.push(other, "fraud:v1")
    assert store.pull("fraud:latest", target).version.ref == "fraud:v1"
    assert snapshot(target) == snapshot(other)


def test_a_query_chooses_what_is_pulled(store: Store, model: Path, other: Path, target: Path) -> None:
    store.push(model, "fraud:v1", labels={"stage": "prod"})
    store.push(other, "fraud:v2")
    assert store.pull("fraud", target, query="label:stage=prod").version.ref == "fraud:v1"


@pytest.mark.parametrize(("wanted", "error"), [("fraud:v2", ModelNotFound), ("fraud", BeginAgain)])
def test_of_a_version_that_is_deleted_meanwhile_only_its_name_is_gone_for_good(
    store: Store,
    model: Path,
    other: Path,
    target: Path,
    wanted: str,
    error: type[ModelSyncError],
) -> None:
    store.push(model, "fraud:v1")
    store.push(other, "fraud:v2")
    with acting_before_pulls(lambda: store.delete("fraud:v2")), pytest.raises(error):
        store.pull(wanted, target)
    assert not target.exists()
    assert store.pull("fraud", target).version.ref == "fraud:v1"


@pytest.mark.row("S9", of="target")
def test_latest_is_resolved_once(store: Store, model: Path, other: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    with acting_before_pulls(lambda: store.push(other, "fraud:v2")):
        assert store.pull("fraud:latest", target).version.ref == "fraud:v1"
    assert snapshot(target) == snapshot(model)


@pytest.mark.parametrize("reference", ["fraud", "fraud:v9", "card"])
def test_what_is_not_there_cannot_be_pulled_and_leaves_no_target(store: Store, target: Path, reference: str) -> None:
    with pytest.raises(ModelNotFound):
        store.pull(reference, target)
    assert not target.exists()


def test_a_registry_that_cannot_pull_says_so_at_once(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "capabilities", ModelStore.capabilities - {Capability.PULL})
    with pytest.raises(NotSupported, match="pull models"):
        store.pull("fraud", target)


def test_missing_directories_above_the_target_are_made(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    store.pull("fraud", target / "a" / "b")
    assert snapshot(target / "a" / "b") == snapshot(model)


def test_a_relative_target_lies_below_the_working_directory(
    store: Store, model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push(model, "fraud:v1")
    monkeypatch.chdir(target.parent)
    assert store.pull("fraud", Path("x/../target")).path == target
    assert snapshot(target) == snapshot(model)


# Targets


def test_an_empty_target_is_filled(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    target.mkdir()
    store.pull("fraud", target)
    assert snapshot(target) == snapshot(model)


def test_a_target_that_holds_exactly_this_model_is_left_alone(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    store.pull("fraud", target)
    inode = target.stat().st_ino
    for force in (False, True):
        pulled = store.pull("fraud", target, force=force)
        assert pulled.version.transfer is not None
        assert pulled.version.transfer.skipped
    assert target.stat().st_ino == inode


REFUSED_TARGETS: dict[str, Callable[[Path, Path], Any]] = {
    "another model": lambda target, model: write_tree(target, OTHER),
    "this model and one file more": lambda target, model: (
        shutil.copytree(model, target),
        write_tree(target, {"more": b""}),
    ),
    "this model but for one file": lambda target, model: (
        shutil.copytree(model, target),
        (target / "empty").unlink(),
    ),
    "a directory that no model may hold": lambda target, model: write_tree(target, {".modelsync/x": b""}),
    "a link": lambda target, model: (target.mkdir(), (target / "link").symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("what", REFUSED_TARGETS)
def test_a_target_that_holds_something_else_is_refused_and_kept(
    store: Store, model: Path, target: Path, what: str
) -> None:
    store.push(model, "fraud:v1")
    REFUSED_TARGETS[what](target, model)
    before = snapshot(target.parent)
    with pytest.raises(TargetExists, match="force") as caught:
        store.pull("fraud", target)
    assert caught.value.argument == "target"
    assert snapshot(target.parent) == before


@pytest.mark.parametrize("what", REFUSED_TARGETS)
def test_force_replaces_a_target_as_a_whole(store: Store, model: Path, target: Path, what: str) -> None:
    store.push(model, "fraud:v1")
    REFUSED_TARGETS[what](target, model)
    store.pull("fraud", target, force=True)
    assert snapshot(target) == snapshot(model)
    assert hidden(target.parent) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_is_no_directory_is_refused_even_with_force(
    store: Store, model: Path, target: Path, force: bool
) -> None:
    store.push(model, "fraud:v1")
    file = target.with_name("file")
    file.write_bytes(b"kept")
    for make in (target.touch, lambda: target.symlink_to(file), lambda: os.mkfifo(target)):
        make()
        with pytest.raises(TargetExists, match="not a directory"):
            store.pull("fraud", target, force=force)
        target.unlink()
    assert file.read_bytes() == b"kept"


def test_a_target_that_is_a_link_to_a_directory_stays_one(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    old = write_tree(target.with_name("v3"), OTHER)
    target.symlink_to("v3")
    with pytest.raises(TargetExists):
        store.pull("fraud", target)
    assert store.pull("fraud", target, force=True).path == old
    assert target.is_symlink()
    assert snapshot(old) == snapshot(model)


def test_an_old_target_stays_until_the_new_copy_is_verified(
    store: Store, model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push(model, "fraud:v1")
    old = snapshot(write_tree(target, OTHER))
    seen: list[Any] = []
    monkeypatch.setattr(durable, "_syncfs", lambda _: seen.append(snapshot(target)) or 0)
    store.pull("fraud", target, force=True)
    assert seen == [old]


# Bytes that are not those pushed


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_the_store_is_found_and_named(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    _flip(store.root / "fraud" / "v1" / "weights.bin")
    with pytest.raises(DigestMismatch, match="fraud:v1"):
        store.pull("fraud", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.row("T11", of="directory")
def test_a_flipped_bit_in_the_store_leaves_an_old_target_as_it_is(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    _flip(store.root / "fraud" / "v1" / "weights.bin")
    write_tree(target, OTHER)
    before = snapshot(target.parent)
    with pytest.raises(DigestMismatch):
        store.pull("fraud", target, force=True)
    assert snapshot(target.parent) == before


@pytest.mark.row("T11", of="directory")
def test_a_bit_flipped_once_on_the_way_is_cured_by_reading_again(
    store: Store, model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push(model, "fraud:v1")
    preadv, flipped = os.preadv, []

    def flip_once(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        if count and not flipped:
            buffers[0][0] ^= 1
            flipped.append(True)
        return count

    monkeypatch.setattr(os, "preadv", flip_once)
    store.pull("fraud", target)
    assert flipped
    assert snapshot(target) == snapshot(model)


def test_without_verification_the_bytes_are_taken_as_they_are(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    _flip(store.root / "fraud" / "v1" / "weights.bin")
    store.pull("fraud", target, verify=False)
    assert snapshot(target) == snapshot(store.root / "fraud" / "v1")


@pytest.mark.parametrize("what", ["removed", "a link", "a fifo", "a directory"])
def test_a_stored_file_that_is_none_any_more_is_named(store: Store, model: Path, target: Path, what: str) -> None:
    store.push(model, "fraud:v1")
    stored = store.root / "fraud" / "v1" / "weights.bin"
    stored.unlink()
    if what == "a link":
        stored.symlink_to("/etc/hostname")
    if what == "a fifo":
        os.mkfifo(stored)
    if what == "a directory":
        stored.mkdir()
    with pytest.raises(RegistryUnavailable, match=r"'weights\.bin'"):
        store.pull("fraud", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_directory_inside_the_store_that_became_a_link_is_not_followed(
    store: Store, tmp_path: Path, target: Path, *, verify: bool
) -> None:
    private = write_tree(tmp_path / "private", {"key": b"of the worker", "deep/key": b"of the worker"})
    store.push(write_tree(tmp_path / "m", {"sub/deep/key": b"of the model"}), "fraud:v1")
    for place, to in ((Path("sub"), private), (Path("sub", "deep"), private / "deep")):
        stored = store.root / "fraud" / "v1" / place
        stored.rename(tmp_path / f"aside-{place.name}")
        stored.symlink_to(to)
        with pytest.raises(RegistryUnavailable, match=r"'sub/deep/key' cannot be read"):
            store.pull("fraud", target, verify=verify)
        stored.unlink()
        (tmp_path / f"aside-{place.name}").rename(stored)
    assert not target.exists()
    linked = tmp_path / "linked"
    linked.symlink_to(store.root)  # what the user named may be one
    Store(linked).pull("fraud", target, verify=verify)
    assert (target / "sub" / "deep" / "key").read_bytes() == b"of the model"


# Two pulls into one target


@pytest.mark.slow
@pytest.mark.row("D5", of="target")
def test_two_processes_pulling_one_model_into_one_target_both_succeed(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    for turn in range(10):
        place = target.with_name(f"target-{turn}")
        results = at_once(*[lambda place=place: store.pull("fraud", place)] * 3)
        assert [result for result in results if not isinstance(result, PulledModel)] == []
        assert snapshot(place) == snapshot(model)
    assert hidden(target.parent) == []


@pytest.mark.slow
@pytest.mark.row("D5", of="target")
def test_two_processes_pulling_other_models_into_one_target_leave_one_of_them(
    store: Store, model: Path, other: Path, target: Path
) -> None:
    store.push(model, "fraud:v1")
    store.push(other, "other:v1")
    for turn in range(10):
        place = target.with_name(f"target-{turn}")
        works = [lambda place=place, name=name: store.pull(name, place) for name in ("fraud", "other")]
        results = at_once(*works)
        assert {type(result) for result in results} == {PulledModel, TargetExists}, results
        assert snapshot(place) == snapshot(model if isinstance(results[0], PulledModel) else other)
    assert hidden(target.parent) == []


@pytest.mark.slow
def test_two_processes_replacing_one_target_by_force_leave_the_new_model(
    store: Store, model: Path, target: Path
) -> None:
    store.push(model, "fraud:v1")
    for turn in range(10):
        place = write_tree(target.with_name(f"target-{turn}"), OTHER)
        results = at_once(*[lambda place=place: store.pull("fraud", place, force=True)] * 2)
        assert all(isinstance(result, PulledModel) for result in results), results
        assert snapshot(place) == snapshot(model)
    assert hidden(target.parent) == []


# Cancelling


def _cancelled_everywhere(work: Callable[[Control], Any], check: Callable[[], None]) -> int:
    """Do work again and again, cancelled one look at the token later each time, until it ends by itself.

    :param check: called after each cancellation.
    :return: how often it was cancelled.
    """
    for looks in itertools.count():
        try:
            work(Control(cancel=CancelAfter(looks), workers=1))
        except Cancelled:
            check()
        else:
            return looks
    raise AssertionError


def test_a_cancelled_push_leaves_nothing(store: Store, model: Path) -> None:
    def check() -> None:
        if store.root.exists():
            assert store.list_versions("fraud") == []
            assert all(name.endswith(".closed") for name in store.records("fraud"))  # notes that it is over
            assert not (store.root / "fraud" / "v1").exists()

    assert _cancelled_everywhere(lambda control: store.push(model, "fraud:v1", control=control), check) > 10
    assert store.get("fraud").version == "v1"


def test_a_cancelled_pull_leaves_nothing(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")

    def check() -> None:
        assert list(target.parent.iterdir()) == []

    assert _cancelled_everywhere(lambda control: store.pull("fraud", target, control=control), check) > 5
    assert snapshot(target) == snapshot(model)


def test_a_cancelled_forced_pull_leaves_the_old_target(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    write_tree(target, OTHER)
    before = snapshot(target.parent)

    def check() -> None:
        assert snapshot(target.parent) == before

    assert _cancelled_everywhere(lambda control: store.pull("fraud", target, force=True, control=control), check) > 5
    assert snapshot(target) == snapshot(model)


@pytest.mark.row("P4", of="directory")
def test_a_signal_that_cancels_ends_a_push_within_four_seconds_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with write_tree(tmp_path / "large", {}).joinpath("weights.bin").open("wb") as file:
        file.truncate(64 << 30)  # a hole, which takes minutes to hash

    def push() -> float:
        cancel, told = CancelToken(), list[float]()
        signal.signal(signal.SIGALRM, lambda *_: (told.append(time.monotonic()), cancel.cancel()))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Cancelled):
            store.push(tmp_path / "large", "fraud:v1", control=Control(cancel=cancel))
        return time.monotonic() - told[0]

    (seconds,) = at_once(push)
    assert seconds < LIMIT
    assert not store.root.exists()


# Disks


_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from airflow_provider_modelsync.core.errors import DiskFull
from tests.core.stores import Store, hidden
store, model, disk = Store(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(disk)], check=True)
"""


@pytest.mark.slow
@pytest.mark.row("D1", of="target")
def test_a_disk_too_small_for_a_pull_is_told_before_a_byte_is_moved(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    target.mkdir()
    script = f"""{_SMALL_DISK}
try:
    store.pull("fraud", disk / "target")
except DiskFull as error:
    print(error)
print(list(disk.iterdir()))
"""
    text = in_namespace(script, store.root, model, target)
    assert "1.0 MiB free, the model needs 2.0 MiB" in text
    assert text.endswith("[]\n")


@pytest.mark.slow
def test_a_disk_too_small_for_a_push_is_told_before_a_byte_is_moved(model: Path, target: Path) -> None:
    target.mkdir()
    script = f"""{_SMALL_DISK}
store = Store(disk / "store")
try:
    store.push(model, "fraud:v1")
except DiskFull as error:
    print(error)
print(store.records("fraud"))
"""
    text = in_namespace(script, target, model, target)
    assert re.search(r"free, the model needs 2\.0 MiB", text)
    assert text.endswith("['v1.~1.0.closed']\n")


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_what_a_killed_try_has_left_on_a_nearly_full_disk_counts_as_room(
    store: Store, tmp_path: Path, target: Path, direction: str
) -> None:
    model = write_tree(tmp_path / "small", {"weights.bin": os.urandom(700_000)})
    digest = store.push(model, "fraud:v1").digest
    assert digest is not None
    target.mkdir()
    script = f"""{_SMALL_DISK}
from dataclasses import replace
from airflow_provider_modelsync.core import writer
parent, name = ((disk / "store/fraud/.modelsync", "v1") if {direction!r} == "push" else (disk, "new"))
gone = replace(writer.this_process(), pid=2_147_483_000)
left = parent / f".{{name}}.{digest[7:19]}.{{gone}}-0123ef"
(left / "model").mkdir(parents=True)
left.chmod(0o700)
(left / "model" / "weights.bin").write_bytes(bytes(600_000))
if {direction!r} == "push":
    print(Store(disk / "store").push(model, "fraud:v1").ref)
else:
    print(store.pull("fraud:v1", disk / "new").version.ref)
print(hidden(parent))
"""
    assert in_namespace(script, store.root, model, target).splitlines() == ["fraud:v1", "[]"]


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.row("D1", of="target")
def test_a_disk_that_fills_up_on_the_way_is_told_and_nothing_is_left(
    store: Store, model: Path, target: Path, direction: str
) -> None:
    store.push(model, "fraud:v1")
    target.mkdir()
    script = f"""{_SMALL_DISK}
from airflow_provider_modelsync.core.verbs import pull
from airflow_provider_modelsync.core.registries.modelstore import directory as modelstore_directory
pull.require_room = modelstore_directory.require_room = lambda *_, **__: None  # somebody else took it meanwhile
try:
    if {direction!r} == "push":
        store = Store(disk / "store")
        store.push(model, "fraud:v1")
    else:
        store.pull("fraud", disk / "target")
except DiskFull as error:
    print(error)
print([path.name for path in disk.rglob("*") if path.is_file() or path.name == "target"])
"""
    text = in_namespace(script, store.root, model, target)
    assert "No space left on device" in text
    # A push leaves a note without content: its generation is over, and its number never used again.
    assert text.endswith("['v1.~1.0.closed']\n" if direction == "push" else "[]\n")


def test_a_full_quota_is_a_full_disk(store: Store, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DiskFull, match="quota"):
        store.push(model, "fraud:v1")
    assert store.records("fraud") == ["v1.~1.0.closed"]


_READ_ONLY = """
import subprocess, sys
from pathlib import Path
from airflow_provider_modelsync.core.errors import ModelSyncError
from tests.core.stores import Store
store, model, disk = Store(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
try:
    EXPRESSION
except ModelSyncError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "argument"),
    [
        ("store.pull('fraud', disk / 'target')", "'target'"),
        ("store.push(model, 'card:v1')", ""),
        ("store.delete('fraud:v1')", ""),
        ("store.set_labels('fraud:v1', {'a': 'b'})", ""),
        ("store.run(store.registry.test())", "'host'"),
    ],
)
@pytest.mark.row("D2", of="target")
def test_a_read_only_disk_is_refused_for_good(
    store: Store, model: Path, target: Path, expression: str, argument: str
) -> None:
    store.push(model, "fraud:v1")
    place = target.parent if "pull" in expression else store.root
    text = in_namespace(_READ_ONLY.replace("EXPRESSION", expression), store.root, model, place)
    assert text.startswith("InvalidInput ")
    assert "Read-only file system" in text or "is write-protected" in text
    assert argument in text


@pytest.mark.slow
def test_a_read_only_store_can_be_read(store: Store, model: Path, target: Path) -> None:
    store.push(model, "fraud:v1")
    expression = f"store.pull('fraud', Path({str(target)!r})); print(store.list_models()[0].ref)"
    text = in_namespace(_READ_ONLY.replace("EXPRESSION", expression), store.root, model, store.root)
    assert text == "fraud:v1\n"
    assert snapshot(target) == snapshot(model)


ONLY_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@ONLY_ROOT
@pytest.mark.row("D2", of="target")
def test_a_target_without_permission_is_refused_before_a_byte_is_moved(public: Path) -> None:
    store = Store(public / "store")
    store.push(write_tree(public / "model", FILES), "fraud:v1")
    (result,) = at_once(as_nobody(lambda: store.pull("fraud", public / "target")))
    assert isinstance(result, InvalidInput)
    assert result.argument == "target"
    assert "Permission denied" in str(result)
    assert not (public / "target").exists()


@ONLY_ROOT
@pytest.mark.parametrize("locked", ["store", "store/fraud", "store/fraud/.modelsync", "store/fraud/v1"])
def test_a_store_without_permission_is_refused_by_every_verb(public: Path, locked: str) -> None:
    store = Store(public / "store")
    store.push(write_tree(public / "model", FILES), "fraud:v1")
    (public / locked).chmod(0)
    (public / "free").mkdir()
    (public / "free").chmod(0o777)
    works = [
        lambda: store.push(public / "model", "fraud:v2"),
        lambda: store.pull("fraud:v1", public / "free" / "target"),
    ]
    if locked != "store/fraud/v1":
        works += [lambda: store.get("fraud:v1"), lambda: store.list_versions("fraud")]
    for result in at_once(*map(as_nobody, works)):
        assert isinstance(result, ModelSyncError), result
        assert "Permission denied" in str(result)


# For any model

SEGMENTS = st.text(
    st.one_of(st.sampled_from("ab.- _'\"$%~+"), st.characters(codec="utf-8", exclude_characters="/\0")),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)


@pytest.mark.slow
@settings(max_examples=50)
@given(
    files=st.dictionaries(PATHS, st.tuples(st.binary(max_size=64), st.booleans()), min_size=1, max_size=6),
    directories=st.lists(PATHS, max_size=3),
)
@pytest.mark.row("H10", "H12", of=("source", "target"))
def test_any_tree_comes_back_as_it_was_or_is_refused_with_the_name_at_fault(
    files: dict[str, tuple[bytes, bool]], directories: list[str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        model, store = Path(scratch, "model"), Store(Path(scratch, "store"))
        try:
            write_tree(model, {path: content for path, (content, _) in files.items()})
            for path in directories:
                (model / path).mkdir(parents=True, exist_ok=True)
        except OSError:  # paths that clash on this very disk, or are too long for it
            return
        for path, (_, executable) in files.items():
            (model / path).chmod(0o755 if executable else 0o644)
        wanted = snapshot(model)
        paths = [path for path, (kind, *_) in wanted.items() if kind == "file"]
        faulty = [path for path in wanted if names.fault_of(path)]
        if faulty or names.clash_among(paths, [path for path in wanted if path not in paths]):
            with pytest.raises(InvalidInput):
                store.push(model, "m:v1")
            assert not store.root.exists()
        else:
            version = store.push(model, "m:v1")
            store.pull("m", Path(scratch, "target"))
            assert snapshot(Path(scratch, "target")) == wanted
            assert digest_directory(Path(scratch, "target")) == version.digest

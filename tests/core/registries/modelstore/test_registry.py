from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core import durable, writer
from airflow_provider_modelsync.core.archive.digest import digest_directory, digest_of, read_tree
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
    Unauthorized,
    UnsafeArchive,
    VersionConflict,
)
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query
from airflow_provider_modelsync.core.registries.modelstore import store as stores
from airflow_provider_modelsync.core.registries.modelstore.directory import DirectoryStore
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.registries.modelstore.store import Manifest
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.plan import PushRequest
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from tests.core.processes import NOBODY, as_nobody, at_once, running
from tests.core.stores import Store, age, hidden, snapshot, was_skipped, write_tree
from tests.support.until import until

OLD = {"weights.bin": b"old", "a/b": b"\0"}
NEW = {"weights.bin": b"new!", "c": b""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "old", OLD, executable=["a/b"], directories=["void"])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "new", NEW)


# The layout


def test_a_version_lies_in_the_store_as_plain_files(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    assert snapshot(store.root / "fraud" / "v1") == snapshot(old)


def test_a_manifest_lies_beside_it_and_nothing_else(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    assert store.records("fraud") == ["v1.json"]
    assert sorted(path.name for path in (store.root / "fraud").iterdir()) == [".modelsync", "v1"]


def test_the_manifest_tells_everything_about_a_version(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
    manifest = json.loads(store.meta("fraud", "v1.json").read_bytes())
    assert {key: manifest[key] for key in ("schema_version", "name", "version", "labels", "metadata")} == {
        "schema_version": 1,
        "name": "fraud",
        "version": "v1",
        "labels": {"stage": "prod"},
        "metadata": {"auc": 0.9},
    }
    assert manifest["digest"] == digest_directory(old)
    assert manifest["directories"] == ["void"]
    assert {file["path"]: (file["size"], file["executable"]) for file in manifest["files"]} == {
        "a/b": (1, True),
        "weights.bin": (3, False),
    }


def test_a_version_is_described_as_it_was_pushed(store: Store, old: Path) -> None:
    before = time.time()
    pushed = store.push(old, "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
    found = store.get("fraud:v1")
    assert found == pushed.model_copy(update={"transfer": None})
    assert (found.ready, found.registry, found.size_bytes) == (True, "modelstore", 4)
    assert found.digest == digest_directory(old)
    assert found.created_at is not None
    assert before - 1 <= found.created_at.timestamp() <= time.time() + 1
    assert found.uri == (store.root / "fraud" / "v1").as_uri()


@pytest.mark.parametrize("root", ["with blank", "größe", "hash#mark", "percent%20", "question?"])
def test_a_root_is_taken_as_it_is_written(tmp_path: Path, old: Path, root: str) -> None:
    store = Store(tmp_path / root)
    store.push(old, "fraud:v1")
    assert (tmp_path / root / "fraud" / "v1" / "weights.bin").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([root, "old"])
    assert store.get("fraud").version == "v1"


@pytest.mark.parametrize("prefix", ["a#b", "a?b", "pre%20fix", "a//b", "größe"])
def test_a_prefix_is_taken_as_it_is_written(prefix: str) -> None:
    store = ModelStore(BucketSettings.read("models", {"host": f"s3://bucket/{prefix}/"}))
    assert store._store.uri("fraud", "v1") == f"s3://bucket/{prefix}/fraud/v1"


@pytest.mark.parametrize("host", ["s3://", "s3://a#b/c", "s3://a?b", "s3://bucket/a/../b", "s3://bucket/./b"])
def test_what_is_no_bucket_or_no_prefix_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelStore(BucketSettings.read("models", {"host": host}))
    assert (caught.value.argument, caught.value.connection) == ("host", "models")


@pytest.mark.parametrize(
    "host", [None, "/models", "models", "file://", "file:///", "file://server/share", "http://store", "ftp://x/y"]
)
def test_a_root_that_is_no_path_is_refused(host: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelStore(RegistrySettings(conn_id="models", host=host))
    assert (caught.value.argument, caught.value.connection) == ("host", "models")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_connection_test_writes_to_the_root_and_leaves_nothing(store: Store, is_there: bool) -> None:
    if is_there:
        store.root.mkdir(exist_ok=True)
    assert store.root.as_uri() in store.run(store.registry.test())
    assert store.root.exists() == is_there
    assert not is_there or list(store.root.iterdir()) == []


def test_the_connection_test_names_a_missing_parent(tmp_path: Path) -> None:
    store = Store(tmp_path / "not" / "mounted")
    with pytest.raises(ModelSyncError, match="not/mounted"):
        store.run(store.registry.test())
    assert not (tmp_path / "not").exists()


# Names


@pytest.mark.parametrize("name", ["a", "A.b_c-d", "0", "latest.v1", "x" * 128])
def test_good_names_are_kept_as_they_are(store: Store, old: Path, name: str) -> None:
    store.push(old, f"{name}:{name}")
    assert store.get(name).ref == f"{name}:{name}"


BAD = ["", ".", "..", ".hidden", "-dash", "_low", "a/b", "a b", "a\n", "a\x00", "größe", "a%2fb", "x" * 129, "a\\b"]


@pytest.mark.parametrize("bad", [*BAD, "latest"])
def test_a_bad_name_or_version_breaks_the_grammar(store: Store, bad: str) -> None:
    for ref in (ModelRef(name=bad, version="v1"), ModelRef(name="fraud", version=bad)):
        with pytest.raises(InvalidInput) as caught:
            store.registry.check(ref)
        assert caught.value.argument == "model"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.row("H11")
def test_bad_names_and_versions_are_refused_before_anything_is_written(store: Store, old: Path, bad: str) -> None:
    for model in (f"{bad}:v1", f"fraud:{bad}"):
        with pytest.raises(InvalidInput):
            store.push(old, model)
    assert not store.root.exists()


# Immutable versions


def test_pushing_the_same_bytes_again_changes_nothing(store: Store, old: Path, tmp_path: Path) -> None:
    first = store.push(old, "fraud:v1", labels={"stage": "prod"})
    before = snapshot(store.root)
    again = store.push(write_tree(tmp_path / "copy", OLD), "fraud:v1", metadata={"auc": 0.1})
    assert again.transfer is not None
    assert again.transfer.skipped
    assert again.model_copy(update={"transfer": None}) == first.model_copy(update={"transfer": None})
    assert snapshot(store.root) == before


def test_pushing_the_same_bytes_again_does_not_make_them_the_latest(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(new, "fraud:v2")
    store.push(old, "fraud:v1", force=True)
    assert store.get("fraud:latest").version == "v2"


def test_other_bytes_under_the_same_version_conflict_and_change_nothing(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    before = snapshot(store.root)
    with pytest.raises(VersionConflict) as caught:
        store.push(new, "fraud:v1")
    assert digest_directory(old) in str(caught.value)
    assert digest_directory(new) in str(caught.value)
    assert snapshot(store.root) == before


def test_force_replaces_a_version_as_a_whole(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"})
    store.set_labels("fraud:v1", {"team": "risk"})
    replaced = store.push(new, "fraud:v1", force=True, labels={"stage": "dev"})
    assert snapshot(store.files("fraud:v1")) == snapshot(new)
    assert replaced.digest == digest_directory(new)
    assert store.get("fraud:v1").labels == {"stage": "dev"}
    assert store.records("fraud") == ["v1.~2.json"]


def test_force_on_a_version_that_is_not_there_pushes_it(store: Store, new: Path) -> None:
    assert store.push(new, "fraud:v1", force=True).version == "v1"


def test_readers_of_plain_files_get_a_directory_that_nobody_writes_into_again(
    store: Store, old: Path, new: Path
) -> None:
    first, second = store.push(old, "fraud:v1"), store.push(new, "fraud:v1", force=True)
    assert first.uri != second.uri
    assert sorted(path.name for path in (store.root / "fraud").iterdir()) == [".modelsync", "v1~2"]


def test_the_old_version_stays_when_a_forced_push_fails(store: Store, old: Path, new: Path) -> None:
    first = store.push(old, "fraud:v1", labels={"stage": "prod"})
    plan = _plan(store, new, force=True)
    assert store.get("fraud:v1").digest == first.digest
    write_tree(plan.way.directory, {"half": b""})
    assert snapshot(store.files("fraud:v1")) == snapshot(old)
    store.run(store.registry.abort_push(plan, RuntimeError()))
    assert store.get("fraud:v1") == first.model_copy(update={"transfer": None})
    assert snapshot(store.files("fraud:v1")) == snapshot(old)
    assert hidden(store.meta("fraud")) == []


# The same bytes once more


def _damage(store: Store, how: str) -> None:
    path = store.files("fraud:v1") / "weights.bin"
    published = store.meta("fraud", "v1.json").stat().st_mtime
    until(lambda: _time_of_disk(store.root) > published + 0.002, "the disk's clock, which ticks, to go on")
    match how:
        case "other bytes":
            path.write_bytes(b"OLD")
        case "other bytes, unnoticed":
            facts = path.stat()
            path.write_bytes(b"OLD")
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        case "cut":
            path.write_bytes(b"o")
        case "gone":
            path.unlink()
        case "executable":
            path.chmod(0o755)


def _time_of_disk(directory: Path) -> float:
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_mtime


@pytest.mark.parametrize("how", ["other bytes", "other bytes, unnoticed", "cut", "gone", "executable"])
@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_version_is_healed_by_pushing_its_bytes_again(
    store: Store, old: Path, tmp_path: Path, how: str, force: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.push(old, "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
    _damage(store, how)
    healed = store.push(old, "fraud:v1", force=force)
    assert "fraud:v1 is damaged: 'weights.bin'; it is sent again" in caplog.text
    assert (healed.digest, healed.created_at) == (first.digest, first.created_at)
    assert (healed.labels, healed.metadata) == ({"stage": "prod"}, {"auc": 0.9})
    assert not was_skipped(healed)
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(old)
    assert was_skipped(store.push(old, "fraud:v1", force=force))


def test_labels_given_with_bytes_that_heal_a_version_are_merged(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
    _damage(store, "gone")
    healed = store.push(old, "fraud:v1", labels={"team": "risk"}, metadata={"auc": 0.1})
    assert (healed.labels, healed.metadata) == ({"stage": "prod", "team": "risk"}, {"auc": 0.9})


def test_force_on_the_same_bytes_writes_labels_and_metadata_and_sends_nothing(
    store: Store, old: Path, new: Path
) -> None:
    first = store.push(old, "fraud:v1", labels={"stage": "prod", "team": "risk"}, metadata={"auc": 0.9})
    store.push(new, "fraud:v2")
    again = store.push(old, "fraud:v1", force=True, labels={"stage": "dev"}, metadata={"auc": 0.8})
    assert (again.labels, again.metadata) == ({"stage": "dev"}, {"auc": 0.8})
    assert (again.created_at, again.uri) == (first.created_at, first.uri)
    assert again.transfer.sent_bytes == 0  # type: ignore[union-attr]
    assert store.get("fraud").version == "v2"
    assert [version.version for version in store.list_versions("fraud")] == ["v2", "v1"]


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, 1.0), (0, False), ([1], [True]), ({"a": 0}, {"a": 0.0})])
def test_metadata_of_another_type_is_other_metadata(store: Store, old: Path, first: Any, second: Any) -> None:
    store.push(old, "fraud:v1", metadata={"x": first})
    store.push(old, "fraud:v1", metadata={"x": second}, force=True)
    assert repr(store.get("fraud:v1").metadata["x"]) == repr(second)
    is_kept = store.push(old, "fraud:v1", metadata={"x": first}).transfer.metadata_kept  # type: ignore[union-attr]
    assert is_kept == ("." in repr(second))  # a number is a number where nothing is written


def test_metadata_in_another_order_are_the_same(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", metadata={"a": 1, "b": 2})
    store.push(old, "fraud:v1", metadata={"b": 2, "a": 1}, force=True)
    assert store.records("fraud") == ["v1.json"]


def test_labels_given_with_the_same_bytes_are_merged(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"})
    again = store.push(old, "fraud:v1", labels={"team": "risk"})
    assert again.labels == store.get("fraud:v1").labels == {"stage": "prod", "team": "risk"}
    assert was_skipped(again)


def test_a_push_without_force_beside_metadata_that_stays_changes_nothing(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", metadata={"auc": 0.9})
    before = snapshot(store.root)
    store.push(old, "fraud:v1", metadata={"auc": 0.1})
    assert snapshot(store.root) == before


# Claims


def _claim(store: Store, source: Path, model: str = "fraud:v1") -> None:
    """Leave what a push of a source leaves when it is killed."""
    ref = ModelRef.parse(model)
    store.meta(ref.name).mkdir(parents=True, exist_ok=True)
    store.meta(ref.name, f"{ref.version}.claim").write_text(json.dumps({"digest": digest_directory(source)}))


def test_a_version_claimed_by_a_push_of_other_bytes_is_refused_with_what_to_do(
    store: Store, old: Path, new: Path
) -> None:
    _claim(store, old)
    with pytest.raises(VersionConflict, match="push with force when that push is dead") as caught:
        store.push(new, "fraud:v1")
    assert digest_directory(old) in str(caught.value)
    assert store.records("fraud") == ["v1.claim"]
    assert not (store.root / "fraud" / "v1").exists()


def test_force_takes_a_dead_claim_over(store: Store, old: Path, new: Path) -> None:
    _claim(store, old)
    assert store.push(new, "fraud:v1", force=True).digest == digest_directory(new)
    assert store.records("fraud") == ["v1.~2.json"]


def test_a_push_of_the_same_bytes_joins_a_claim(store: Store, old: Path) -> None:
    _claim(store, old)
    store.push(old, "fraud:v1")
    assert store.records("fraud") == ["v1.json"]


def test_a_claim_that_was_left_behind_by_a_finished_push_is_given_up_at_the_next(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    _claim(store, old)
    store.push(old, "fraud:v1")
    assert store.records("fraud") == ["v1.json"]


def test_a_push_whose_claim_was_taken_over_meanwhile_does_not_publish(store: Store, old: Path, new: Path) -> None:
    plan = _plan(store, old)
    store.push(new, "fraud:v1", force=True)
    with pytest.raises(VersionConflict):
        store.run(store.registry.finish_push(plan))
    assert snapshot(store.files("fraud:v1")) == snapshot(new)


def test_a_push_whose_claim_was_taken_over_leaves_the_version_to_whoever_took_it(
    store: Store, old: Path, new: Path
) -> None:
    first, second = _plan(store, old), _plan(store, new, force=True)
    for plan, files in ((first, OLD), (second, NEW)):
        write_tree(plan.way.directory, files)
    with pytest.raises(VersionConflict):
        store.run(store.registry.finish_push(first))
    assert store.list_versions("fraud") == []
    store.run(store.registry.finish_push(second))
    assert snapshot(store.files("fraud:v1")) == snapshot(new)
    assert store.records("fraud") == ["v1.~2.json"]


def test_a_failed_push_gives_its_claim_and_its_staging_up(store: Store, old: Path, new: Path) -> None:
    plan = _plan(store, old)
    store.run(store.registry.abort_push(plan, RuntimeError()))
    assert store.records("fraud") == ["v1.~1.0.closed"]
    assert hidden(store.meta("fraud")) == []
    store.push(new, "fraud:v1")
    assert store.records("fraud") == ["v1.~2.json"]


def test_a_push_that_cannot_begin_leaves_no_claim(store: Store, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "staging", refuse)
        with pytest.raises(ModelSyncError, match="No space left"):
            store.push(old, "fraud:v1")
    assert store.records("fraud") == ["v1.~1.0.closed"]


def test_two_pushes_of_the_same_bytes_share_no_staging_and_end_in_one_version(store: Store, old: Path) -> None:
    first, second = _plan(store, old), _plan(store, old)
    assert first.way.directory != second.way.directory
    for plan in (first, second):
        write_tree(plan.way.directory, OLD, executable=["a/b"], directories=["void"])
    published = [store.run(store.registry.finish_push(plan)) for plan in (first, second)]
    assert published[0] == published[1]
    assert store.records("fraud") == ["v1.json"]


def _plan(store: Store, source: Path, model: str = "fraud:v1", **options: Any) -> Any:
    request = PushRequest(ref=ModelRef.parse(model), source=read_tree(source), **options)
    return store.run(store.registry.plan_push(request))


# Two processes


def _push(store: Store, source: Path, **options: Any) -> Callable[[], ModelVersion]:
    return lambda: store.push(source, "fraud:v1", **options)


@pytest.mark.slow
@pytest.mark.row("D6")
def test_two_processes_pushing_the_same_bytes_end_in_one_version(store: Store, old: Path) -> None:
    for turn in range(8):
        results = at_once(*[lambda turn=turn: store.push(old, f"fraud:v{turn}")] * 2)
        assert all(isinstance(result, ModelVersion) for result in results), results
        assert was_skipped(store.push(old, f"fraud:v{turn}"))
        assert snapshot(store.files(f"fraud:v{turn}")) == snapshot(old)
    assert store.records("fraud") == [f"v{turn}.json" for turn in range(8)]


@pytest.mark.slow
@pytest.mark.row("D6")
def test_two_processes_pushing_other_bytes_end_in_one_version_and_one_conflict(
    store: Store, old: Path, new: Path
) -> None:
    for turn in range(8):
        sources = old, new
        works = [lambda turn=turn, source=source: store.push(source, f"fraud:v{turn}") for source in sources]
        results = at_once(*works)
        assert {type(result) for result in results} == {ModelVersion, VersionConflict}, results
        winner = sources[0] if isinstance(results[0], ModelVersion) else sources[1]
        assert snapshot(store.files(f"fraud:v{turn}")) == snapshot(winner)
        assert store.get(f"fraud:v{turn}").digest == digest_directory(winner)
    assert store.records("fraud") == [f"v{turn}.json" for turn in range(8)]


@pytest.mark.slow
def test_two_processes_pushing_other_bytes_with_force_end_in_one_whole_version(
    store: Store, old: Path, new: Path
) -> None:
    for _ in range(8):
        results = at_once(_push(store, old, force=True), _push(store, new, force=True))
        assert any(isinstance(result, ModelVersion) for result in results), results
        # Each may take the other's claim away, and begins again once.
        assert all(isinstance(result, ModelVersion | VersionConflict | BeginAgain) for result in results), results
        assert digest_directory(store.files("fraud:v1")) == store.get("fraud:v1").digest


def test_a_reader_beside_a_writer_sees_whole_versions_or_none(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    steady = store.push(old, "fraud:steady").digest

    def replace_and_delete() -> None:
        while True:
            store.push(new, "fraud:v1", force=True)
            store.delete("fraud:v1")
            store.push(old, "fraud:v1")

    digests = {digest_directory(old), digest_directory(new)}
    with running(replace_and_delete):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert steady in {version.digest for version in store.list_versions("fraud")}
            assert store.list_models()
            with suppress(ModelNotFound):
                assert store.get("fraud:v1").digest in digests


# Listing


def test_versions_are_listed_newest_first(store: Store, old: Path, new: Path) -> None:
    for version, source in (("b", old), ("c", new), ("a", old)):
        store.push(source, f"fraud:{version}")
    assert [version.version for version in store.list_versions("fraud")] == ["a", "c", "b"]


def test_the_time_of_its_manifest_is_a_versions_age(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(new, "fraud:v2")
    os.utime(store.meta("fraud", "v1.json"), (2e9, 2e9))
    assert store.get("fraud").version == "v1"
    assert store.get("fraud").created_at.timestamp() == 2e9  # type: ignore[union-attr]


@pytest.mark.parametrize("hours", [-30, 30])
def test_the_store_s_clock_orders_versions_whatever_the_machines_clocks_say(
    store: Store, old: Path, new: Path, hours: int
) -> None:
    def on_a_wrong_clock(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            seconds, nanoseconds = time.time, time.time_ns
            time.time = lambda: seconds() + hours * 3600
            time.time_ns = lambda: nanoseconds() + hours * 3600 * 10**9
            return work()

        return run

    at_once(on_a_wrong_clock(lambda: store.push(old, "fraud:v1")))
    store.push(new, "fraud:v2")
    (third,) = at_once(on_a_wrong_clock(lambda: store.push(old, "fraud:v3")))
    assert [version.version for version in store.list_versions("fraud")] == ["v3", "v2", "v1"]
    (sees,) = at_once(on_a_wrong_clock(lambda: store.get("fraud")))
    assert sees.created_at == third.created_at
    assert abs(third.created_at.timestamp() - store.meta("fraud", "v3.json").stat().st_mtime) < 0.001
    store.delete("fraud:v3")
    assert store.get("fraud").version == "v2"


def test_versions_of_the_same_time_are_ordered_by_version(store: Store, old: Path) -> None:
    for version in ("v1", "v3", "v2"):
        store.push(old, f"fraud:{version}")
        os.utime(store.meta("fraud", f"{version}.json"), (1e9, 1e9))
    assert [version.version for version in store.list_versions("fraud")] == ["v3", "v2", "v1"]


def test_labels_do_not_change_a_versions_age(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(new, "fraud:v2")
    store.set_labels("fraud:v1", {"stage": "prod"})
    assert store.get("fraud").version == "v2"


def test_models_are_listed_by_their_newest_version_newest_first(store: Store, old: Path, new: Path) -> None:
    for model in ("fraud:v1", "card:v1", "fraud:v2"):
        store.push(old, model)
    assert [version.ref for version in store.list_models()] == ["fraud:v2", "card:v1"]


def test_a_query_chooses_models_and_versions(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"})
    store.push(old, "fraud:v2", labels={"stage": "dev"})
    store.push(old, "card:v1")
    assert [version.ref for version in store.list_models("label:stage=prod")] == ["fraud:v1"]
    assert [version.ref for version in store.list_models("fra")] == ["fraud:v2"]
    assert [version.ref for version in store.list_versions("fraud", "label:stage")] == ["fraud:v2", "fraud:v1"]
    assert store.list_versions("fraud", "card") == []


def test_an_absent_store_holds_nothing(store: Store) -> None:
    assert store.list_models() == []
    assert store.list_versions("fraud") == []
    assert store.delete("fraud:v1") is False
    for model in ("fraud", "fraud:v1"):
        with pytest.raises(ModelNotFound, match="fraud"):
            store.get(model)


def test_strange_things_in_the_root_are_no_models(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    (store.root / "README").write_text("a file")
    (store.root / "lost+found").mkdir()
    (store.root / "empty").mkdir()
    (store.root / "fraud" / ".modelsync" / "notes.txt").touch()
    (store.root / "fraud" / ".modelsync" / "not a version.json").touch()
    assert [version.ref for version in store.list_models()] == ["fraud:v1"]
    assert [version.ref for version in store.list_versions("fraud")] == ["fraud:v1"]
    assert store.list_versions("README") == []


def test_files_without_a_manifest_are_no_version(store: Store, old: Path) -> None:
    write_tree(store.root / "fraud" / "v1", NEW)
    store.meta("fraud").mkdir()
    assert store.list_versions("fraud") == []
    store.push(old, "fraud:v1")
    assert snapshot(store.files("fraud:v1")) == snapshot(old)
    assert not (store.root / "fraud" / "v1").exists()


# Deleting


def test_a_deleted_version_is_gone_with_its_files_and_labels(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod"})
    store.set_labels("fraud:v1", {"team": "risk"})
    store.push(new, "fraud:v2")
    assert store.delete("fraud:v1") is True
    assert store.records("fraud") == ["v1.~2.0.closed", "v2.json"]
    assert not (store.root / "fraud" / "v1").exists()
    assert store.get("fraud").version == "v2"


def test_deleting_what_is_gone_is_no_error(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.delete("fraud:v1")
    assert store.delete("fraud:v1") is False
    assert store.delete("card:v1") is False


def test_deleting_needs_an_exact_version(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    for model in ("fraud", "fraud:latest"):
        with pytest.raises(InvalidInput, match="exact version"):
            store.delete(model)
    assert store.get("fraud").version == "v1"


def test_deleting_removes_files_that_a_killed_delete_left(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").unlink()
    store.delete("fraud:v1")
    assert not (store.root / "fraud" / "v1").exists()


def test_a_version_pushed_after_a_killed_delete_does_not_inherit_labels(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.set_labels("fraud:v1", {"stage": "prod"})
    store.meta("fraud", "v1.json").unlink()
    store.push(new, "fraud:v1")
    assert store.get("fraud:v1").labels == {}


def test_a_damaged_version_can_be_deleted(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text("{")
    assert store.delete("fraud:v1") is True
    assert store.list_versions("fraud") == []


def _protect(store: Store, how: str) -> None:
    """Let a version be one that its user, who owns the rest of the store, cannot remove."""
    for path in (store.root, *store.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    files = store.root / "fraud" / "v1"
    if how == "write-protected":
        files.chmod(0o555)
    elif how == "write-protected below":
        (files / "a").chmod(0o555)
    elif how == "another user's":
        os.chown(files, 0, 0)
    elif how == "another user's in a sticky directory":
        os.chown(store.root / "fraud", 0, 0)
        (store.root / "fraud").chmod(0o1777)
        os.chown(files, 0, 0)
        files.chmod(0o777)
    else:
        os.chown(files / "a", 0, 0)
        (files / "a").chmod(0o1777)
        os.chown(files / "a" / "b", 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
@pytest.mark.parametrize(
    "how",
    [
        "write-protected",
        "write-protected below",
        "another user's",
        "another user's in a sticky directory",
        "another user's file in a sticky directory",
    ],
)
def test_a_version_that_cannot_be_removed_is_neither_deleted_nor_replaced_nor_harmed(
    public: Path, old: Path, new: Path, how: str
) -> None:
    store = Store(public / "store")
    store.push(old, "fraud:v1")
    source = write_tree(public / "new", NEW)
    _protect(store, how)
    before = snapshot(store.root)
    for work in (lambda: store.delete("fraud:v1"), lambda: store.push(source, "fraud:v1", force=True)):
        (refused,) = at_once(as_nobody(work))
        assert isinstance(refused, InvalidInput), refused
        assert "neither deleted nor replaced" in str(refused)
        assert snapshot(store.root) == before
    assert at_once(as_nobody(lambda: store.push(source, "fraud:v2")))[0].version == "v2"
    assert at_once(as_nobody(lambda: store.set_labels("fraud:v1", {"stage": "prod"})))[0].labels == {"stage": "prod"}
    assert store.get("fraud:v1").digest == digest_directory(old)


@pytest.mark.row("D7")
def test_what_cannot_be_tidied_up_does_not_make_a_push_fail(
    store: Store, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.push(old, "fraud:v1")
    real = DirectoryStore.clear

    def fail(self: DirectoryStore, *arguments: Any) -> None:
        raise RegistryUnavailable("the disk is busy")

    monkeypatch.setattr(DirectoryStore, "clear", fail)
    for _ in range(2):
        assert store.push(new, "fraud:v1", force=True).digest == digest_directory(new)
        assert "is removed another time: the disk is busy" in caplog.text
    monkeypatch.setattr(DirectoryStore, "clear", real)
    assert was_skipped(store.push(new, "fraud:v1"))
    assert sorted(path.name for path in (store.root / "fraud").iterdir()) == [".modelsync", "v1~2"]


# Labels


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ({"team": "risk"}, {"stage": "dev", "team": "risk"}),
        ({"stage": "prod"}, {"stage": "prod"}),
        ({"stage": None}, {}),
        ({"stage": None, "team": "risk"}, {"team": "risk"}),
        ({"never": None}, {"stage": "dev"}),
        ({}, {"stage": "dev"}),
    ],
)
def test_labels_are_merged_and_none_removes(
    store: Store, old: Path, change: Mapping[str, str | None], after: Mapping[str, str]
) -> None:
    pushed = store.push(old, "fraud:v1", labels={"stage": "dev"})
    assert store.set_labels("fraud:v1", change).labels == after
    found = store.get("fraud:v1")
    assert found.labels == after
    assert (found.digest, found.created_at) == (pushed.digest, pushed.created_at)


def test_changes_of_labels_add_up(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"a": "1"})
    store.set_labels("fraud:v1", {"b": "2"})
    store.set_labels("fraud:v1", {"a": None})
    assert store.get("fraud:v1").labels == {"b": "2"}


def test_a_model_without_a_version_means_its_newest_when_labels_change(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(new, "fraud:v2")
    assert store.set_labels("fraud", {"stage": "prod"}).ref == "fraud:v2"


def test_the_manifest_itself_is_written_once(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "dev"})
    before = store.meta("fraud", "v1.json").read_bytes()
    store.set_labels("fraud:v1", {"stage": "prod"})
    assert store.meta("fraud", "v1.json").read_bytes() == before


def test_labels_of_a_version_that_is_not_there_cannot_change(store: Store) -> None:
    with pytest.raises(ModelNotFound):
        store.set_labels("fraud:v1", {"stage": "prod"})
    assert not store.root.exists()


@pytest.mark.slow
def test_changes_of_labels_by_many_processes_all_count(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    at_once(*[lambda key=key: store.set_labels("fraud:v1", {key: "x"}) for key in "abcdef"])
    assert store.get("fraud:v1").labels == dict.fromkeys("abcdef", "x")


@pytest.mark.parametrize("value", [1, True, ["x"], "lone \ud800 surrogate"])
def test_a_label_that_is_no_text_is_refused(store: Store, old: Path, value: Any) -> None:
    store.push(old, "fraud:v1")
    with pytest.raises(InvalidInput) as caught:
        store.set_labels("fraud:v1", {"stage": value})
    assert caught.value.argument == "labels"
    assert store.get("fraud:v1").labels == {}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("labels", {"stage": "lone \ud800 surrogate"}),
        ("labels", {"\udcff": "x"}),
        ("metadata", {"auc": float("nan")}),
        ("metadata", {"nested": [{"auc": float("inf")}]}),
        ("metadata", {"note": "lone \ud800 surrogate"}),
    ],
)
def test_what_json_cannot_keep_is_refused_before_a_forced_push_touches_the_old_version(
    store: Store, old: Path, new: Path, argument: str, value: Mapping[str, Any]
) -> None:
    store.push(old, "fraud:v1")
    before = snapshot(store.root)
    with pytest.raises(InvalidInput) as caught:
        store.push(new, "fraud:v1", force=True, **{argument: value})
    assert caught.value.argument == argument
    assert snapshot(store.root) == before


def test_metadata_comes_back_as_it_was(store: Store, old: Path) -> None:
    metadata = {"größe": [1, 2.5, None, True, {"nested": "\n\u2028"}], "": "", "large": 2**60}
    store.push(old, "fraud:v1", metadata=metadata)
    assert store.get("fraud").metadata == metadata


# What the model store does not do


def test_options_are_refused(store: Store, old: Path) -> None:
    with pytest.raises(InvalidInput, match="framework") as caught:
        store.push(old, "fraud:v1", options={"framework": "onnx"})
    assert caught.value.argument == "options"


# Damaged and hostile manifests


def _write_manifest(store: Store, source: Path, **changes: Any) -> None:
    """Push a version, then change what its manifest says."""
    store.push(source, "fraud:v1")
    path = store.meta("fraud", "v1.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"schema_version": 2}', "\0" * 100])
@pytest.mark.row("S7")
def test_a_damaged_manifest_is_told_with_its_path(store: Store, old: Path, content: str) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text(content)
    with pytest.raises(RegistryUnavailable, match=r"v1\.json is damaged or of a newer format"):
        store.get("fraud:v1")


@pytest.mark.parametrize(("content", "where"), [("null", "the whole"), ('{"schema_version": 2}', "schema_version")])
def test_where_a_manifest_is_damaged_is_told(store: Store, old: Path, content: str, where: str) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text(content)
    with pytest.raises(RegistryUnavailable, match=f"of a newer format: {where}: "):
        store.get("fraud:v1")


@pytest.mark.parametrize("record", ["v2.json", "v2.labels", "v2.claim"])
def test_a_bad_record_is_reported_and_hinders_nobody_else(
    store: Store, old: Path, new: Path, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.push(old, "fraud:v1")
    store.push(old, "card:v1")
    store.push(new, "fraud:v2")
    store.meta("fraud", record).write_text("{")
    seen = [version.ref for version in store.list_models()]
    assert seen[0] == ("fraud:v2" if record == "v2.claim" else "card:v1")
    assert {version.version for version in store.list_versions("fraud")} >= {"v1"}
    assert store.get("fraud").version == ("v2" if record == "v2.claim" else "v1")
    assert record == "v2.claim" or record in caplog.text
    store.push(new, "fraud:v2", force=True)
    assert store.get("fraud:v2").digest == digest_directory(new)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [{"path": "weights.bin"}]},
        {"files": []},
        {"files": None},
        {"directories": ["../x"]},
        {"directories": 7},
        {"etags": {"weights.bin": 1}},
        {"digest": "sha256:0"},
    ],
    ids=repr,
)
def test_a_version_that_could_not_be_pulled_is_not_the_newest(
    store: Store, old: Path, new: Path, tmp_path: Path, changes: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store.push(old, "fraud:v0")
    _write_manifest(store, new, **changes)
    assert [version.ref for version in store.list_versions("fraud")] == ["fraud:v0"]
    assert "passing over fraud:v1" in caplog.text
    assert store.pull("fraud", tmp_path / "target").version.ref == "fraud:v0"
    with pytest.raises(ModelSyncError, match=r"v1"):
        store.get("fraud:v1")
    store.push(new, "fraud:v1", force=True)
    assert store.get("fraud").ref == "fraud:v1"


def _spoil(place: Path, how: str) -> None:
    """Put something in the place of a record."""
    place.unlink(missing_ok=True)
    if how == "directory":
        write_tree(place, {"a": b""})
    elif how == "pipe":
        os.mkfifo(place)
    elif how == "dangling link":
        place.symlink_to("gone")
    elif how == "link to itself":
        place.symlink_to(place.name)
    elif how == "too large":
        place.touch()
        os.truncate(place, 65 << 20)
    else:
        place.touch(0o000)


@pytest.mark.parametrize("how", ["directory", "pipe", "dangling link", "link to itself", "too large", "secret"])
@pytest.mark.parametrize("record", ["v2.json", "v2.labels", "v2.claim", "v2.~1.0.closed"])
def test_what_is_no_record_hinders_nobody_else(public: Path, old: Path, new: Path, record: str, how: str) -> None:
    store = Store(public / "store")
    store.push(old, "fraud:v1")
    store.push(new, "fraud:v2")
    _spoil(store.meta("fraud", record), how)

    def look() -> tuple[set[str], list[str]]:
        listed = {version.ref for version in store.list_versions("fraud")}
        with tempfile.TemporaryDirectory() as scratch:
            pulled = store.pull("fraud:v1", Path(scratch) / "target").version
        return listed, [*(version.ref for version in store.list_models()), pulled.ref]

    ((listed, refs),) = at_once(as_nobody(look))
    assert listed >= {"fraud:v1"}
    assert refs == ["fraud:v1" if record in ("v2.json", "v2.labels", "v2.~1.0.closed") else "fraud:v2", "fraud:v1"]
    store.push(old, "fraud:v2", force=True)
    assert store.get("fraud:v2").digest == digest_directory(old)
    store.delete("fraud:v2")
    assert [name for name in store.records("fraud") if not name.endswith(".closed")] == ["v1.json"]


def test_a_model_that_may_not_be_looked_at_hinders_no_other(
    public: Path, old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(public / "store")
    store.push(old, "fraud:v1")
    store.push(old, "card:v1")
    store.meta("fraud").chmod(0o700)
    if os.geteuid() != 0:
        store.meta("fraud").chmod(0o000)
    (listed,) = at_once(as_nobody(store.list_models))
    assert [version.ref for version in listed] == ["card:v1"]
    store.delete("card:v1")
    (refused,) = at_once(as_nobody(store.list_models))
    assert isinstance(refused, InvalidInput)
    store.meta("fraud").chmod(0o700)


def _refuse(monkeypatch: pytest.MonkeyPatch, method: str, *names: str, begins: int = 0) -> None:
    """Have a call of the disk be refused for what has these names, from its n-th time on."""
    real, calls = getattr(DirectoryStore, method), count()

    def refused(self: DirectoryStore, *of: Any) -> Any:
        if (not names or of[0] in names) and next(calls) >= begins:
            raise Unauthorized("this is not for you")
        return real(self, *of)

    monkeypatch.setattr(DirectoryStore, method, refused)


@pytest.mark.parametrize("refused", [["fraud"], ["card"], ["card", "fraud"]])
def test_of_models_that_may_not_be_read_all_others_are_listed(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    for name in ("card", "fraud"):
        store.push(old, f"{name}:v1")
    _refuse(monkeypatch, "entries", *refused)
    if len(refused) == 1:
        assert [version.name for version in store.list_models()] == [{"card": "fraud", "fraud": "card"}[refused[0]]]
    else:
        with pytest.raises(Unauthorized, match="this is not for you"):
            store.list_models()


def test_a_store_that_closes_while_it_is_listed_is_not_a_store_of_less(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("card", "fraud"):
        store.push(old, f"{name}:v1")
    _refuse(monkeypatch, "entries", "card")
    _refuse(monkeypatch, "names", begins=1)
    with pytest.raises(Unauthorized):
        store.list_models()


@pytest.mark.parametrize("refused", [["v1"], ["v2"], ["v1", "v2"]])
def test_of_versions_that_may_not_be_read_all_others_are_listed(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    for version in ("v1", "v2"):
        store.push(old, f"fraud:{version}")
    _refuse_records(monkeypatch, *refused)
    if len(refused) == 1:
        assert [found.version for found in store.list_versions("fraud")] == [{"v1": "v2", "v2": "v1"}[refused[0]]]
    else:
        with pytest.raises(Unauthorized, match="this is not for you"):
            store.list_versions("fraud")


def _refuse_records(monkeypatch: pytest.MonkeyPatch, *versions: str) -> None:
    real = DirectoryStore._stored

    def stored(self: DirectoryStore, name: str, record: str, *more: Any) -> Any:
        if record.partition(".")[0] in versions:
            raise Unauthorized("this is not for you")
        return real(self, name, record, *more)

    monkeypatch.setattr(DirectoryStore, "_stored", stored)


def test_a_model_that_is_closed_while_it_is_listed_is_not_a_model_of_less(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("v1", "v2"):
        store.push(old, f"fraud:{version}")
    _refuse_records(monkeypatch, "v1")
    _refuse(monkeypatch, "entries", "fraud", begins=1)
    with pytest.raises(Unauthorized):
        store.list_versions("fraud")


def test_records_are_listed_once_where_all_may_be_read(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("v1", "v2"):
        store.push(old, f"fraud:{version}")
    _refuse(monkeypatch, "entries", "fraud", begins=1)
    assert [found.version for found in store.list_versions("fraud")] == ["v2", "v1"]


def test_nothing_is_read_of_a_model_of_another_name(store: Store, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.push(old, "fraud:v1")
    _refuse(monkeypatch, "entries", "fraud")
    assert store.list_versions("fraud", "card") == []
    assert store.registry._store.latest("fraud", Query.parse("card")) is None


def test_to_find_the_newest_version_no_older_one_is_read(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        store.push(old, f"fraud:v{number}")
        age(store.meta("fraud", f"v{number}.json"), 60 * (3 - number))
    _refuse_records(monkeypatch, "v0", "v1")
    assert store.get("fraud").version == "v2"
    assert "passing over" not in caplog.text


def test_what_a_model_s_versions_hold_is_told_with_what_is_claimed(store: Store, old: Path, new: Path) -> None:
    digests = {digest_directory(place) for place in (old, new)}
    store.push(old, "fraud:v1")
    claim = store.meta("fraud", "v2.claim")
    claim.write_text(json.dumps({"digest": digest_directory(new)}))
    assert store.registry._store.digests("fraud") == digests
    claim.write_text("{")
    with pytest.raises(RegistryUnavailable, match="the claim on fraud:v2 cannot be read"):
        store.registry._store.digests("fraud")
    claim.unlink()
    store.meta("fraud", "v1.json").write_text("{")
    with pytest.raises(RegistryUnavailable, match=r"v1\.json is damaged"):
        store.registry._store.digests("fraud")


def test_a_manifest_damaged_between_the_look_and_the_pull_is_told(store: Store, old: Path) -> None:
    seen = store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text("{")
    with pytest.raises(RegistryUnavailable, match="is damaged"):
        store.run(store.registry.plan_pull(seen))


@pytest.mark.parametrize("sha256", ["0" * 64, hashlib.sha256(OLD["a/b"]).hexdigest()], ids=["another hash", "one file"])
def test_a_manifest_whose_files_do_not_make_its_digest_is_written_anew(
    store: Store, old: Path, tmp_path: Path, sha256: str
) -> None:
    _write_manifest(store, old, files=[{"path": "a/b", "size": 1, "sha256": sha256, "executable": True}])
    store.push(old, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert digest_directory(tmp_path / "target") == digest_directory(old)


def test_of_labels_the_newest_record_is_left(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    for number in range(3):
        store.set_labels("fraud:v1", {"stage": str(number)})
    assert store.records("fraud") == ["v1.json", "v1.labels.3"]


def test_who_is_refused_leaves_nothing_of_an_earlier_try(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(old, "fraud:v1", force=True, metadata={"auc": 1})
    late = store.meta("fraud", "v1.claim")
    late.write_text(json.dumps({"digest": digest_directory(new)}))
    with pytest.raises(VersionConflict):
        store.push(new, "fraud:v1")
    assert not late.exists()


def test_a_push_over_a_damaged_manifest_is_a_conflict_but_for_force(store: Store, old: Path, new: Path) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text("{")
    with pytest.raises(VersionConflict, match="damaged"):
        store.push(new, "fraud:v1")
    store.push(new, "fraud:v1", force=True)
    assert snapshot(store.files("fraud:v1")) == snapshot(new)
    assert sorted(path.name for path in (store.root / "fraud").iterdir()) == [".modelsync", "v1~2"]


def test_damaged_labels_are_told_with_their_path(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.labels").write_text("{")
    with pytest.raises(RegistryUnavailable, match=r"v1\.labels is damaged"):
        store.get("fraud:v1")


def test_a_manifest_that_holds_more_than_is_known_is_read(store: Store, old: Path) -> None:
    _write_manifest(store, old, future={"x": 1})
    assert store.get("fraud:v1").digest == digest_directory(old)


@pytest.mark.parametrize(
    "changes", [{"name": "../../elsewhere"}, {"name": "card"}, {"version": "../v1"}, {"version": "v2"}]
)
def test_a_manifest_that_names_another_version_is_refused(
    store: Store, old: Path, tmp_path: Path, changes: Mapping[str, str]
) -> None:
    _write_manifest(store, old, **changes)
    assert store.list_versions("fraud") == []
    for look in (
        lambda: store.get("fraud:v1"),
        lambda: store.set_labels("fraud:v1", {"a": "b"}),
        lambda: store.pull("fraud:v1", tmp_path / "target"),
    ):
        with pytest.raises(UnsafeArchive, match=r"v1\.json"):
            look()


def _file(path: str, size: int = 0) -> dict[str, Any]:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    return {"path": path, "size": size, "sha256": empty, "executable": False}


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        ([_file("/etc/cron.d/x")], []),
        ([_file("../x")], []),
        ([_file("a/../../x")], []),
        ([_file("a\\b")], []),
        ([_file("a\nb")], []),
        ([_file(".modelsync/v2.json")], []),
        ([_file("x"), _file("x")], []),
        ([_file("x"), _file("x/y")], []),
        ([_file("x")], ["x"]),
        ([_file("x")], ["../y"]),
        ([_file("x")], ["/y"]),
        ([_file("x", size=-5)], []),
    ],
)
@pytest.mark.row("H1", "H7")
def test_a_manifest_that_names_what_must_not_be_written_is_refused_before_anything_is(
    store: Store, old: Path, tmp_path: Path, files: list[dict[str, Any]], directories: list[str]
) -> None:
    parsed = Manifest(
        name="fraud",
        version="v1",
        digest="",
        size_bytes=0,
        files=files,
        directories=directories,  # type: ignore[arg-type]
    )
    _write_manifest(store, old, files=files, directories=directories, digest=digest_of(parsed.files))
    before = snapshot(tmp_path)
    with pytest.raises(UnsafeArchive):
        store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path) == before


def test_a_manifest_that_does_not_match_its_own_digest_is_refused(store: Store, old: Path, tmp_path: Path) -> None:
    _write_manifest(store, old, files=[_file("other")])
    with pytest.raises(UnsafeArchive, match="does not match its own digest"):
        store.pull("fraud:v1", tmp_path / "target")


@pytest.mark.row("S9")
def test_a_version_replaced_between_the_look_and_the_pull_is_tried_again(store: Store, old: Path, new: Path) -> None:
    seen = store.push(old, "fraud:v1")
    store.push(new, "fraud:v1", force=True)
    with pytest.raises(BeginAgain, match="was replaced"):
        store.run(store.registry.plan_pull(seen))


def test_a_version_deleted_between_the_look_and_the_pull_is_not_found(store: Store, old: Path) -> None:
    seen = store.push(old, "fraud:v1")
    store.delete("fraud:v1")
    with pytest.raises(ModelNotFound):
        store.run(store.registry.plan_pull(seen))


# What killed writers left


def test_what_killed_writers_left_a_day_ago_is_swept_by_the_next_push_of_any_version(
    store: Store, old: Path, new: Path
) -> None:
    store.push(old, "fraud:v1")
    key, gone = "0123456789ab", replace(writer.this_process(), pid=2_147_483_000)
    left = [store.meta("fraud", f".gone.{key}.{gone}-0123ef"), store.meta("fraud", f".gone.json.{key}")]
    write_tree(left[0] / "model", OLD)
    left[1].touch()
    store.push(new, "fraud:v2")
    assert all(path.exists() for path in left)
    for path in left:
        age(path)
    store.push(new, "fraud:v3")
    assert hidden(store.meta("fraud")) == []


# What is kept, and for how long


@pytest.mark.parametrize(
    ("next_time", "gone"),
    [
        (lambda store: store.delete("fraud", "next"), {"long.~2.0.closed", "next.json"}),
        (lambda store: store.tidy_all("fraud", datetime.fromtimestamp(0, UTC), dry_run=False), {"long.~2.0.closed"}),
        (lambda store: store.tidy_all("fraud", datetime.fromtimestamp(0, UTC), dry_run=True), set()),
    ],
    ids=["delete", "prune", "dry run"],
)
def test_notes_of_deleted_versions_go_a_month_later(
    store: Store, old: Path, next_time: Callable[[stores.Store], object], gone: set[str]
) -> None:
    for version in ("long", "late", "kept", "next"):
        store.push(old, f"fraud:{version}")
    for version in ("long", "late"):
        store.delete(f"fraud:{version}")
    store.run(
        store.registry.abort_push(_plan(store, old, "fraud:kept", force=True, metadata={"auc": 1}), RuntimeError())
    )
    _claim(store, old, "fraud:claimed")
    store.meta("fraud", "claimed.~1.0.closed").touch()
    before = store.records("fraud")
    assert {"long.~2.0.closed", "late.~2.0.closed", "kept.~2.1.closed", "claimed.~1.0.closed"} < {*before}
    for note, days in {"long.~2.0": 31, "late.~2.0": 29, "kept.~2.1": 31, "claimed.~1.0": 31}.items():
        age(store.meta("fraud", f"{note}.closed"), days * 86400)
    next_time(store.registry._store)
    assert {*before} - {*store.records("fraud")} == gone


def test_what_is_listed_again_is_not_read_again(store: Store, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.push(old, "fraud:v1")
    seen = store.list_versions("fraud")
    _refuse(monkeypatch, "read")
    assert store.list_versions("fraud") == seen


def test_of_records_in_memory_those_used_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_CACHED_BYTES", 3)
    cache, record = stores._Cache(), stores.Record(b"1", datetime.now(UTC))
    for name in "abc":
        cache.add((name,), record)
    assert [name for name in "abca" if cache.get((name,))] == ["a", "b", "c", "a"]
    cache.add(("d",), record)
    assert [name for name in "abcd" if cache.get((name,))] == ["a", "c", "d"]


@pytest.mark.parametrize("spare", [0, -1])
def test_a_record_may_be_as_large_as_the_largest(
    store: Store, old: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    store.push(old, "fraud:v1")
    monkeypatch.setattr(stores, "_LARGEST_RECORD", store.meta("fraud", "v1.json").stat().st_size + spare)
    if spare < 0:
        with pytest.raises(RegistryUnavailable, match="larger than any record"):
            store.get("fraud:v1")
    else:
        assert store.get("fraud:v1").digest == digest_directory(old)


def test_versions_are_listed_with_the_aliases_that_point_to_them(store: Store, old: Path) -> None:
    for version in ("v1", "v2"):
        store.push(old, f"fraud:{version}")
    for alias in ("champion", "stable"):
        store.run(set_alias(store.registry, "fraud:v1", alias))
    told = {version.version: version.aliases for version in store.list_versions("fraud")}
    assert told == {"v1": ("champion", "stable"), "v2": ()}


def test_force_with_labels_alone_replaces_them_and_sends_nothing(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1", labels={"stage": "prod", "team": "risk"})
    again = store.push(old, "fraud:v1", force=True, labels={"stage": "dev"})
    assert again.labels == store.get("fraud:v1").labels == {"stage": "dev"}
    assert was_skipped(again)
    assert store.push(old, "fraud:v1", force=True).labels == {"stage": "dev"}


@pytest.mark.parametrize("source", ["old", "new"])
def test_a_push_that_sends_nothing_removes_what_killed_ones_of_its_bytes_have_left(
    store: Store, old: Path, new: Path, source: str
) -> None:
    """Published already, or refused: the next push of these bytes has no staging of its own beside it."""
    store.push(old, "fraud:v1")
    mine = {"old": old, "new": new}[source]
    gone = replace(writer.this_process(), pid=2_147_483_000)
    write_tree(store.meta("fraud", f".v1.{digest_directory(mine)[7:19]}.{gone}-0123ef") / "model", OLD)
    with suppress(VersionConflict):
        store.push(mine, "fraud:v1")
    assert hidden(store.meta("fraud")) == []


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("v9.claim", "the unfinished push of fraud:v9"),
        ("v1.claim", "1 outdated records of fraud:v1"),
        ("../v1~2", "files of 1 given up or replaced pushes of fraud:v1"),
    ],
)
def test_what_was_written_just_then_is_not_older(store: Store, old: Path, left: str, told: str) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.~2.1.closed").touch()
    place = store.meta("fraud", left)
    if left.endswith(".claim"):
        place.write_text(json.dumps({"digest": digest_directory(old)}))
    else:
        write_tree(place, {"late": b""})
    age(place, 3600)
    when = datetime.fromtimestamp(place.stat().st_mtime, UTC)
    tidied, before = store.registry._store.tidy_all, snapshot(store.root)
    assert tidied("fraud", when, dry_run=True) == tidied("fraud", when, dry_run=False) == []
    assert snapshot(store.root) == before
    assert tidied("fraud", when + timedelta(microseconds=1), dry_run=True) == [told]


def test_a_version_that_cannot_be_read_keeps_no_other_from_being_tidied(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.meta("fraud", "v1.json").write_text("{")
    _claim(store, old, "fraud:v9")
    tidied = store.registry._store.tidy_all("fraud", datetime.max.replace(tzinfo=UTC), dry_run=False)
    assert tidied == ["the unfinished push of fraud:v9"]
    assert store.records("fraud") == ["v1.json", "v9.~1.0.closed"]


def test_files_that_count_or_may_yet_do_are_not_tidied(store: Store, old: Path) -> None:
    store.push(old, "fraud:v1")
    store.push(old, "fraud:v1", force=True, metadata={"auc": 1})  # of the second generation, with files of the first
    write_tree(store.root / "fraud" / "v1~9", {"early": b""})
    before = snapshot(store.root)
    assert store.registry._store.tidy_all("fraud", datetime.max.replace(tzinfo=UTC), dry_run=False) == []
    assert snapshot(store.root) == before

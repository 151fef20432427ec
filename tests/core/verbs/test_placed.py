"""What a pull remembers of its target, and what the next pull does with it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive import digest
from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, TargetExists
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, FromDirectory
from airflow_provider_modelsync.core.verbs import placed
from tests.core.processes import NOBODY, as_nobody, at_once, killed_at
from tests.core.stores import Store, hidden, snapshot, write_tree
from tests.support.rewrite import rewrite_and_set_back
from tests.support.steps import some_of

FILES = {"weights.bin": b"1", "a/b": b"same"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for number in range(1, 4):
        store.push(write_tree(tmp_path / f"v{number}", {**FILES, "weights.bin": b"%d" % number}), f"fraud:v{number}")
    return store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "target"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed."""
    read: list[str] = []
    real = digest._hash_file

    def counting(place: str, *rest: Any) -> Any:
        read.append(place)
        return real(place, *rest)

    monkeypatch.setattr(digest, "_hash_file", counting)
    return read


def weights(target: Path) -> bytes:
    return (target / "weights.bin").read_bytes()


def test_the_next_version_replaces_what_the_last_pull_put_there(store: Store, target: Path) -> None:
    for number in (1, 2, 3, 1):
        pulled = store.pull(f"fraud:v{number}", target)
        assert pulled.version.transfer is not None
        assert not pulled.version.transfer.skipped
        assert weights(target) == b"%d" % number
    assert hidden(target.parent) == []


def test_the_record_lies_beside_the_target_never_in_it(store: Store, target: Path, tmp_path: Path) -> None:
    store.pull("fraud:v1", target)
    assert snapshot(target) == snapshot(tmp_path / "v1")
    assert [path.name for path in target.parent.iterdir() if path != target] == [".target.modelsync"]
    assert str(store.root) not in (target.parent / ".target.modelsync").read_text()


def test_a_cleared_task_reads_nothing(store: Store, target: Path, reads: list[str]) -> None:
    store.pull("fraud:v1", target)
    reads.clear()
    transfer = store.pull("fraud:v1", target).version.transfer
    assert transfer is not None
    assert transfer.skipped
    assert reads == []


def test_replacing_what_was_pulled_reads_nothing_of_it(store: Store, target: Path, reads: list[str]) -> None:
    store.pull("fraud:v1", target)
    reads.clear()
    store.pull("fraud:v2", target)
    assert reads == []


TOUCHES = {
    "written": lambda target: (target / "weights.bin").write_bytes(b"mine"),
    "touched": lambda target: os.utime(target / "weights.bin", (1e9, 1e9)),
    "added": lambda target: (target / "notes.txt").write_bytes(b"mine"),
    "removed": lambda target: (target / "a/b").unlink(),
    "renamed": lambda target: (target / "a/b").rename(target / "a/c"),
    "an empty directory": lambda target: (target / "mine").mkdir(),
    "a link": lambda target: (target / "mine").symlink_to("weights.bin"),
    "replaced": lambda target: (shutil.rmtree(target), write_tree(target, {"mine": b"1"})),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_what_somebody_has_touched_stays(store: Store, target: Path, touch: str) -> None:
    store.pull("fraud:v1", target)
    TOUCHES[touch](target)
    before = snapshot(target)
    with pytest.raises(TargetExists):
        store.pull("fraud:v2", target)
    assert snapshot(target) == before
    store.pull("fraud:v2", target, force=True)
    assert weights(target) == b"2"
    store.pull("fraud:v3", target)
    assert weights(target) == b"3"


def test_bytes_changed_behind_an_old_time_stay(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target)
    rewrite_and_set_back(target / "weights.bin", b"x")
    with pytest.raises(TargetExists):
        store.pull("fraud:v2", target)
    assert weights(target) == b"x"


def test_a_restored_copy_counts_as_what_was_pulled(store: Store, target: Path) -> None:
    store.pull("fraud:v1", target)
    shutil.copytree(target, target.with_name("backup"))
    shutil.rmtree(target)
    target.with_name("backup").rename(target)
    store.pull("fraud:v2", target)
    assert weights(target) == b"2"


def test_another_model_does_not_replace_it(store: Store, target: Path, tmp_path: Path) -> None:
    store.push(tmp_path / "v2", "other:v1")
    store.pull("fraud:v1", target)
    with pytest.raises(TargetExists):
        store.pull("other:v1", target)


def test_the_same_name_in_another_registry_does_not_replace_it(store: Store, target: Path, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.push(tmp_path / "v2", "fraud:v2")
    store.pull("fraud:v1", target)
    with pytest.raises(TargetExists):
        elsewhere.pull("fraud:v2", target)


def test_what_was_found_rather_than_pulled_is_not_replaced(store: Store, target: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "v1", target)
    transfer = store.pull("fraud:v1", target).version.transfer
    assert transfer is not None
    assert transfer.skipped
    with pytest.raises(TargetExists):
        store.pull("fraud:v2", target)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"known": 1}', b"\xff", b'{"schema_version": 2}'])
def test_a_record_of_no_sense_vouches_for_nothing(store: Store, target: Path, content: bytes) -> None:
    store.pull("fraud:v1", target)
    (target.parent / ".target.modelsync").write_bytes(content)
    with pytest.raises(TargetExists):
        store.pull("fraud:v2", target)
    store.pull("fraud:v1", target)
    assert weights(target) == b"1"


def test_a_directory_in_the_place_of_the_record_is_refused_for_good_before_anything_is_moved(
    store: Store, target: Path
) -> None:
    target.with_name(f".{target.name}.modelsync").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="is a directory") as caught:
        store.pull("fraud:v1", target)
    assert caught.value.argument == "target"
    assert not target.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("protected", [".", "a", "..", "weights.bin"])
def test_a_target_that_cannot_be_removed_is_refused_before_anything_is_moved(
    public: Path, protected: str, force: bool
) -> None:
    store = Store(public / "store")
    for number in (1, 2):
        store.push(write_tree(public / f"v{number}", {**FILES, "weights.bin": b"%d" % number}), f"fraud:v{number}")
    target = public / "place" / "target"
    target.parent.mkdir()
    os.chown(target.parent, NOBODY, NOBODY)
    at_once(as_nobody(lambda: store.pull("fraud:v1", target)))
    place = target / protected
    if place.is_dir() and protected != "..":
        place.chmod(0o555)
    else:
        os.chown(target, 0, 0)
        os.chown(target.parent, 0, 0)
        for path in (target, target.parent):
            path.chmod(0o1777)
        os.chown(target if protected == ".." else place, 0, 0)
    before = snapshot(target)
    (refused,) = at_once(as_nobody(lambda: store.pull("fraud:v2", target, force=force)))
    assert isinstance(refused, InvalidInput if force else ModelSyncError), refused
    assert "cannot be replaced" in str(refused) or not force
    assert (snapshot(target), hidden(target.parent)) == (before, [])


@pytest.mark.row("P2", of="target")
def test_a_pull_killed_at_any_step_is_followed_by_the_next_days_without_force(store: Store, target: Path) -> None:
    for step in some_of(range(200)):
        shutil.rmtree(target.parent, ignore_errors=True)
        store.pull("fraud:v1", target)
        killed = killed_at(step, lambda: store.pull("fraud:v2", target))
        assert not target.exists() or weights(target) in (b"1", b"2")
        store.pull("fraud:v3", target)
        assert weights(target) == b"3"
        if not killed:
            break
    assert not killed


@pytest.mark.parametrize("following", ["fraud:v2", "fraud:v3"])
def test_however_often_a_pull_is_killed_what_the_target_holds_is_not_forgotten(
    store: Store, target: Path, following: str
) -> None:
    store.pull("fraud:v1", target)
    for _ in range(4):  # each time after what is about to be put there was noted
        if (child := os.fork()) == 0:
            durable.sync_file_system = lambda path: os.kill(os.getpid(), signal.SIGKILL)
            try:
                store.pull("fraud:v2", target)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert weights(target) == b"1"
    store.pull(following, target)
    assert weights(target) == following[-1:].encode()


def test_a_pull_that_fails_forgets_nothing_that_another_one_has_noted_meanwhile(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pull("fraud:v1", target)
    monkeypatch.setattr(durable, "sync_file_system", lambda path: overtaken())

    def overtaken() -> None:
        monkeypatch.undo()
        store.pull("fraud:v2", target)
        raise OSError(errno.EIO, "broken")

    with pytest.raises(ModelSyncError):
        store.pull("fraud:v3", target)
    store.pull("fraud:v3", target)
    assert weights(target) == b"3"


class _Foreign(ModelStore):
    """A registry whose versions have no digest, as those that a vendor's client has pushed."""

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        found = yield from super().read_version(name, version)
        return found.model_copy(update={"digest": None})

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        known = yield from super().read_version(version.name, version.version)
        plan = yield from super().plan_pull(known)
        assert isinstance(plan.way, FromDirectory)
        return DownloadPlan(version=version, way=plan.way)


def test_a_version_without_a_digest_is_left_alone_where_its_own_pull_has_put_it(store: Store, target: Path) -> None:
    foreign = Store(store.root)
    foreign.__dict__["registry"] = _Foreign(RegistrySettings(conn_id="store", host=store.root.as_uri()))
    foreign.pull("fraud:v1", target)
    transfer = foreign.pull("fraud:v1", target).version.transfer
    assert transfer is not None
    assert transfer.skipped
    foreign.pull("fraud:v2", target)
    assert weights(target) == b"2"
    (target / "weights.bin").write_bytes(b"mine")
    with pytest.raises(TargetExists):
        foreign.pull("fraud:v2", target)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "." * 3 + "x"])
def test_targets_of_any_name_have_a_record(store: Store, target: Path, name: str) -> None:
    place = target.with_name(name)
    for number in (1, 2):
        store.pull(f"fraud:v{number}", place)
    assert weights(place) == b"2"
    assert len(os.fsencode(placed.name_beside(name))) <= 255

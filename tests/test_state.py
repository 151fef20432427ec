"""What tasks and watchers remember where Airflow has no state store."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.fernet import Fernet
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_modelsync import state
from airflow_provider_modelsync.compat import conf
from airflow_provider_modelsync.core.transfer.checkpoint import VALUE_LIMIT
from airflow_provider_modelsync.operators.base import TaskCheckpoint
from airflow_provider_modelsync.operators.transfer import PushModelOperator

TASK = SimpleNamespace(dag_id="dag", run_id="run", task_id="push", map_index=-1, try_number=1, max_tries=0)
DEPLOYMENT = "modelsync.deployment"
DIGESTS = "modelsync.digests.v1"


@pytest.fixture(params=["directory", "storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path, storage: MemoryFileSystem) -> str:
    """Where tasks remember."""
    return str(tmp_path / "state") if request.param == "directory" else "memory://bucket/state"


@pytest.fixture(autouse=True)
def configured(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Airflow know the place, and a Fernet key."""
    monkeypatch.setenv("AIRFLOW__MODELSYNC__STATE_URL", place)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    state._say_once.cache_clear()


def store(**changes: Any) -> state.StateStore:
    """Return what a task remembers."""
    found = state.of_task(SimpleNamespace(**{**vars(TASK), **changes}))
    assert found is not None
    return found


def files(place: str, storage: MemoryFileSystem) -> dict[str, bytes]:
    """Return what lies there."""
    if "://" in place:
        return {path: storage.cat(path) for path in storage.find("/bucket/state")}
    return {str(path): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}


def rewrite(place: str, storage: MemoryFileSystem, path: str, content: bytes) -> None:
    if "://" in place:
        storage.pipe_file(path, content)
    else:
        Path(path).write_bytes(content)
        Path(path).chmod(0o600)


def test_a_later_try_remembers_what_an_earlier_one_wrote() -> None:
    for value in ({"revision": "7"}, {"revision": "8"}):
        store().set(DEPLOYMENT, value)

    assert store(try_number=2).get(DEPLOYMENT) == {"revision": "8"}
    store().delete(DEPLOYMENT)
    store().delete(DEPLOYMENT)
    assert store().get(DEPLOYMENT) is None


OTHERS: list[dict[str, Any]] = [
    {"dag_id": "x"},
    {"run_id": "x"},
    {"task_id": "x"},
    {"map_index": 1},
    {"dag_id": "../dag"},
    {"dag_id": "dag/run", "run_id": ""},
    {"dag_id": 'dag", "run', "run_id": ""},
    {"dag_id": "Dag"},
    {"dag_id": "dag" * 100},
    {"dag_id": "d\u00e4g \u2603"},
]


@pytest.mark.parametrize("other", OTHERS, ids=ascii)
def test_another_task_remembers_nothing_of_it(place: str, storage: MemoryFileSystem, other: dict[str, Any]) -> None:
    store().set(DEPLOYMENT, {"revision": "7"})
    assert store(**other).get(DEPLOYMENT) is None

    store(**other).set(DEPLOYMENT, {"revision": "of the other"})
    sealed = {content for content in files(place, storage).values() if b"of the other" in content}
    for path in files(place, storage):  # and cannot be made to by copying
        rewrite(place, storage, path, *sealed)
    assert store().get(DEPLOYMENT) is None


def test_one_key_does_not_pass_for_another(place: str, storage: MemoryFileSystem) -> None:
    store().set(DIGESTS, {"revision": "7"})
    ((path, content),) = files(place, storage).items()
    rewrite(place, storage, path.replace("digests.v1", "deployment"), content)

    assert store().get(DEPLOYMENT) is None


NONSENSE = {
    "empty": b"",
    "no object": b"[]",
    "no value": b"{}",
    "no text": b"\xff",
    "a half": b'{"value": {"revi',
    "unsealed": b'{"value": {}, "seal": ""}',
    "a seal of letters": '{"value": {}, "seal": "é"}'.encode(),
    "half a letter": rb'{"value": {}, "seal": "\ud800"}',
    "a deep one": b"[" * 16_000,
    "a huge one": b"1" * 20_000,
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=list(NONSENSE))
def test_what_no_task_has_written_is_not_used(
    place: str, storage: MemoryFileSystem, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store().set(DEPLOYMENT, {})
    (path,) = files(place, storage)
    rewrite(place, storage, path, content)

    assert store().get(DEPLOYMENT) is None
    assert "not what this task has written" in caplog.text
    store().set(DEPLOYMENT, {"revision": "8"})
    assert store().get(DEPLOYMENT) == {"revision": "8"}


def test_a_changed_value_is_not_used(place: str, storage: MemoryFileSystem) -> None:
    for key in (DEPLOYMENT, DIGESTS):
        store().set(key, {"revision": "7"})
    for path, content in files(place, storage).items():
        rewrite(place, storage, path, content.replace(b"7", b"8"))

    assert (store().get(DEPLOYMENT), store().get(DIGESTS)) == (None, None)


def test_a_new_fernet_key_beside_the_old_one_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store().set(DEPLOYMENT, {"revision": "7"})
    old = conf.get("core", "fernet_key", fallback="") or os.environ["AIRFLOW__CORE__FERNET_KEY"]
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", f"{Fernet.generate_key().decode()},{old}")
    assert store().get(DEPLOYMENT) == {"revision": "7"}

    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    assert store().get(DEPLOYMENT) is None


def test_without_a_fernet_key_only_what_saves_work_is_kept(
    place: str, storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    for key in (DEPLOYMENT, DIGESTS, "modelsync.0af3.upload.v1.parts.3"):
        store().set(key, {"a": "b"})

    assert len(files(place, storage)) == 2
    assert store().get("modelsync.0af3.upload.v1.parts.3") == store().get(DIGESTS) == {"a": "b"}
    (path,) = (path for path in files(place, storage) if "digests" in path)
    rewrite(place, storage, path.replace("digests.v1", "deployment"), b'{"value": {}, "seal": ""}')
    assert store().get(DEPLOYMENT) is None


def test_values_are_as_large_as_a_checkpoint_s_and_not_larger() -> None:
    store().set(DIGESTS, "x" * VALUE_LIMIT)
    with pytest.raises(ValueError, match="too large"):
        store().set(DIGESTS, "x" * (16 << 10))


def test_success_removes_it(
    place: str, modelstore: Path, source: Path, storage: MemoryFileSystem, context: dict[str, Any]
) -> None:
    context = {**context, "task_state_store": None, "ti": TASK}
    TaskCheckpoint(store()).set("deployment", {"revision": "7"})
    store(task_id="other").set(DEPLOYMENT, {})
    operator = PushModelOperator(task_id="push", model="digits:v1", source=str(source))
    operator.execute(context)
    assert TaskCheckpoint.of(context).get("deployment") == {"revision": "7"}  # type: ignore[arg-type,union-attr]
    operator.post_execute(context)

    assert len(files(place, storage)) == 1
    operator.post_execute(context)


def test_watchers_remember_apart_from_tasks(place: str, storage: MemoryFileSystem) -> None:
    watchers = state.of_watchers()
    assert watchers is not None
    watchers.set("modelsync.0af3", ["v1"])

    assert state.of_watchers().get("modelsync.0af3") == ["v1"]  # type: ignore[union-attr]
    (path,) = files(place, storage)
    assert "/v1/watched/" in path


def test_memories_of_a_month_ago_are_removed(place: str, storage: MemoryFileSystem, monkeypatch: Any) -> None:
    for number in range(3):
        store(run_id=f"run {number}").set(DEPLOYMENT, {})
    state.of_watchers().set("modelsync.0af3", [])  # type: ignore[union-attr]
    monkeypatch.setattr(state, "_KEPT", 0)
    time.sleep(0.01)
    store(run_id="new").set(DEPLOYMENT, {})

    assert len(files(place, storage)) == 2


def test_which_of_them_are_old_is_told_by_the_clock_of_their_place(
    place: str, storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(run_id="of today").set(DEPLOYMENT, {})
    in_a_year = time.time() + 365 * 86_400
    monkeypatch.setattr(time, "time", lambda: in_a_year)
    store(run_id="new").set(DEPLOYMENT, {})

    assert len(files(place, storage)) == 2


def test_what_cannot_be_swept_keeps_nothing_from_being_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("some storage's own error")

    monkeypatch.setattr(os, "lstat", fail)
    monkeypatch.setattr(MemoryFileSystem, "modified", fail)
    store().set(DEPLOYMENT, {"revision": "7"})

    assert store().get(DEPLOYMENT) == {"revision": "7"}


def test_without_a_place_nothing_is_remembered_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for nowhere in ("", "relative/path", "nonsense://bucket/state"):
        monkeypatch.setenv("AIRFLOW__MODELSYNC__STATE_URL", nowhere)
        with caplog.at_level("INFO"):
            assert (state.of_task(TASK), state.of_watchers()) == (None, None)
            state.forget_task(TASK)

    assert caplog.text.count("[modelsync] state_url names no place") == 1


class TestADirectory:
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "state")

    @pytest.mark.parametrize("scheme", ["", "file://", "local://"])
    def test_belongs_to_its_user_alone(self, place: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__MODELSYNC__STATE_URL", f"{scheme}{place}")
        store().set(DEPLOYMENT, {})

        modes = {stat.S_IMODE(path.stat().st_mode): path.is_dir() for path in [Path(place), *Path(place).rglob("*")]}
        assert modes == {0o700: True, 0o600: False}

    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o701], ids=oct)
    def test_that_others_may_enter_is_refused(self, place: str, mode: int) -> None:
        store().set(DEPLOYMENT, {})
        for directory in (Path(place) / "v1", next((Path(place) / "v1").iterdir())):
            directory.chmod(mode)
            for use in (lambda: store().get(DEPLOYMENT), lambda: store().set(DEPLOYMENT, {})):
                with pytest.raises(PermissionError):
                    use()
            directory.chmod(0o700)

    def test_of_somebody_else_is_refused(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store().set(DEPLOYMENT, {})
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)

        with pytest.raises(PermissionError):
            store().get(DEPLOYMENT)

    def test_that_is_a_link_is_refused(self, place: str, tmp_path: Path) -> None:
        store().set(DEPLOYMENT, {})
        (directory,) = (Path(place) / "v1").iterdir()
        (file,) = directory.iterdir()
        for one in (file, directory):
            elsewhere = one.rename(tmp_path / "elsewhere")
            one.symlink_to(elsewhere)
            with pytest.raises(OSError, match=r"symbolic|Not a directory"):
                store().get(DEPLOYMENT)
            one.unlink()
            elsewhere.rename(one)

    def test_that_cannot_be_used_fails_no_transfer(
        self, place: str, caplog: pytest.LogCaptureFixture, context: dict[str, Any]
    ) -> None:
        Path(place).write_text("a file")
        checkpoint = TaskCheckpoint.of({"task_state_store": None, "ti": TASK})  # type: ignore[typeddict-item,typeddict-unknown-key]
        assert checkpoint is not None
        checkpoint.set("deployment", {})

        assert checkpoint.get("deployment") is None
        assert "goes on without it" in caplog.text


class TestAStorage:
    @pytest.fixture
    def place(self) -> str:
        return "memory://bucket/state"

    def test_whose_library_keeps_listings_is_asked_anew(
        self, place: str, storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed: dict[str, bytes] = {}
        opened = MemoryFileSystem.open

        def open_as_listed(self: MemoryFileSystem, path: str, mode: str = "rb", **more: Any) -> Any:
            """As for S3: what was there when its folder was listed is looked for, and has been replaced."""
            if mode == "rb" and listed.setdefault(path, self.cat(path)) != self.cat(path):
                raise OSError(errno.EBUSY, "the remote file no longer exists")
            return opened(self, path, mode, **more)

        def cat(self: MemoryFileSystem, path: str) -> bytes:
            with opened(self, path, "rb") as reader:
                return bytes(reader.read())

        monkeypatch.setattr(MemoryFileSystem, "cat", cat)
        monkeypatch.setattr(MemoryFileSystem, "open", open_as_listed)
        monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda self, path=None: listed.clear())
        for revision in ("7", "8"):
            store().set(DEPLOYMENT, {"revision": revision})
            assert store().get(DEPLOYMENT) == {"revision": revision}


def test_what_is_kept_is_plain_json(place: str, storage: MemoryFileSystem) -> None:
    store().set(DEPLOYMENT, {"revision": "7"})

    ((path, content),) = files(place, storage).items()
    assert path.endswith("/modelsync.deployment.json")
    assert json.loads(content)["value"] == {"revision": "7"}

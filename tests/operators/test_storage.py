"""Sources and targets in object storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from airflow_provider_modelsync.compat import AirflowFailException
from airflow_provider_modelsync.core.archive.choice import BY_HABIT, Choice
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, TargetExists
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.storage import _upload_directory, local_source, resolve
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator

BUCKET = "memory://bucket/models"


@pytest.fixture
def hook(modelstore: Path) -> ModelStoreHook:
    return ModelStoreHook("modelsync_default")


def stored(directory: Path) -> dict[str, bytes]:
    """What a copy of a directory looks like in the storage."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {f"/bucket/models/digits/{path.relative_to(directory)}": path.read_bytes() for path in files}


def content(storage: MemoryFileSystem) -> dict[str, bytes]:
    """Everything that the storage holds, except what a pull remembers."""
    return {path: storage.cat_file(path) for path in storage.find("/") if not path.endswith(".modelsync")}


def upload(directory: Path, *, force: bool = False, cancel: CancelToken | None = None) -> None:
    """Copy a directory to the storage."""
    target = ObjectStoragePath(f"{BUCKET}/digits")
    _upload_directory(directory, target, force=force, cancel=cancel or CancelToken())


@pytest.mark.parametrize("local", ["/srv/models", "file:///srv/models", "local:///srv/models", Path("/srv/models")])
def test_local_locations_are_paths(local: str | Path) -> None:
    assert resolve(local, "source") == Path("/srv/models")
    assert resolve(ObjectStoragePath("file:///srv/models"), "source") == Path("/srv/models")


def test_remote_locations_stay_remote(storage: MemoryFileSystem) -> None:
    assert resolve(f"{BUCKET}/digits", "source") == ObjectStoragePath(f"{BUCKET}/digits")


def test_a_storage_connection_in_the_location_is_kept(storage: MemoryFileSystem) -> None:
    for location in ("memory://lake@bucket/digits", ObjectStoragePath("memory://bucket/digits", conn_id="lake")):
        remote = resolve(location, "source")
        assert isinstance(remote, ObjectStoragePath)
        assert str(remote.parent / "x").startswith("memory://lake@")


# Nobody knows the first scheme; the second one's provider is not installed.
@pytest.mark.parametrize("location", ["", "nonsense://bucket/digits", "gs://bucket/digits"])
def test_a_location_that_cannot_be_used_is_refused(location: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        resolve(location, "target")
    assert refused.value.argument == "target"


def test_a_local_source_is_read_in_place(source: Path) -> None:
    with local_source(source, CancelToken()) as path:
        assert path == source


def test_a_remote_directory_is_pushed(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    upload(source)
    pushed = PushModelOperator(task_id="push", model="digits", source=f"{BUCKET}/digits").execute(context)

    assert pushed["digest"] == digest_directory(source)
    assert pushed["digest"] == hook.get("digits").digest


def test_a_remote_file_is_pushed_under_its_own_name(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    upload(source)
    location = ObjectStoragePath(f"{BUCKET}/digits/weights.bin")
    pushed = PushModelOperator(task_id="push", model="digits", source=location).execute(context)

    assert pushed["digest"] == digest_directory(source / "weights.bin")


def test_the_copy_of_a_remote_source_is_removed(storage: MemoryFileSystem, source: Path) -> None:
    upload(source)
    with local_source(f"{BUCKET}/digits", CancelToken()) as path:
        assert digest_directory(path) == digest_directory(source)
    assert not path.exists()


def test_only_chosen_files_of_a_remote_source_are_copied(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    storage.put(f"{source}/", f"{BUCKET}/digits/", recursive=True)
    storage.pipe({f"{BUCKET}/digits/.git/config": b"x", f"{BUCKET}/digits/notes.md": b"x"})
    choice = Choice(exclude=["*.md"], by_habit=BY_HABIT)
    with local_source(f"{BUCKET}/digits", CancelToken(), choice=choice) as copy:
        assert digest_directory(copy) == digest_directory(source)
    pushed = PushModelOperator(task_id="push", model="digits:v1", source=f"{BUCKET}/digits", exclude=["*.md"]).execute(
        context
    )
    assert pushed["digest"] == digest_directory(source)
    with pytest.raises(AirflowFailException, match="holds no file that is chosen by include"):
        PushModelOperator(task_id="push", model="digits:v2", source=f"{BUCKET}/digits", include=["*.onnx"]).execute(
            context
        )


def test_patterns_count_for_a_single_remote_file_too(
    hook: ModelStoreHook, storage: MemoryFileSystem, context: Any
) -> None:
    storage.pipe_file(f"{BUCKET}/model.onnx", b"onnx")
    push = {"task_id": "push", "model": "digits", "source": f"{BUCKET}/model.onnx"}
    with pytest.raises(AirflowFailException, match="chosen by exclude"):
        PushModelOperator(**push, exclude=["*.onnx"]).execute(context)
    assert PushModelOperator(**push, include=["*.onnx"]).execute(context)["size_bytes"] == 4


def test_a_missing_remote_source_is_permanent(hook: ModelStoreHook, storage: MemoryFileSystem, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"memory:.*absent.*does not exist"):
        PushModelOperator(task_id="push", model="digits", source="memory://bucket/absent").execute(context)


@pytest.mark.parametrize("name", [".modelsync/x.json", "a/../../b", "back\\slash"])
def test_a_remote_name_that_no_model_may_hold_is_refused(storage: MemoryFileSystem, name: str) -> None:
    storage.store[f"/bucket/models/digits/{name}"] = storage.open("/scratch", "wb")

    with pytest.raises(InvalidInput), local_source(f"{BUCKET}/digits", CancelToken()):
        pass


def test_objects_that_stand_for_directories_are_no_files(
    storage: MemoryFileSystem, source: Path, tmp_path: Path
) -> None:
    for marker in ("", "nested/"):
        storage.store[f"/bucket/models/digits/{marker}"] = MemoryFile()
    markers = set(storage.find(f"{BUCKET}/digits"))
    assert markers == {"/bucket/models/digits/", "/bucket/models/digits/nested/"}

    upload(source)
    with local_source(f"{BUCKET}/digits", CancelToken()) as path:
        assert digest_directory(path) == digest_directory(source)


def test_reading_a_remote_source_can_be_cancelled(storage: MemoryFileSystem, source: Path) -> None:
    upload(source)
    cancel = CancelToken()
    cancel.cancel()

    with pytest.raises(Cancelled), local_source(f"{BUCKET}/digits", cancel):
        pass


def test_a_model_is_pulled_into_the_storage(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    hook.push(source, "digits:v1")
    pulled = PullModelOperator(task_id="pull", model="digits", target=f"{BUCKET}/digits").execute(context)

    assert content(storage) == stored(source)
    assert pulled["path"] == str(ObjectStoragePath("memory://bucket/models/digits"))


@pytest.mark.parametrize("gate", [{"allowed_formats": ["onnx"]}, {"scan": "false"}], ids=str)
def test_nothing_of_what_a_gate_refuses_is_written_to_the_storage(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any, gate: dict[str, Any]
) -> None:
    hook.push(source, "digits:v1")
    with pytest.raises(AirflowFailException, match=f"argument '{next(iter(gate))}'"):
        PullModelOperator(task_id="pull", model="digits", target=f"{BUCKET}/digits", **gate).execute(context)
    assert content(storage) == {}


def test_pulling_again_into_the_storage_changes_nothing(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    hook.push(source, "digits:v1")
    operator = PullModelOperator(task_id="pull", model="digits", target=f"{BUCKET}/digits")
    operator.execute(context)
    before = {path: storage.modified(path) for path in content(storage)}
    operator.execute(context)

    assert {path: storage.modified(path) for path in content(storage)} == before


def test_other_files_of_the_model_replace_those_of_the_last_pull(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    hook.push(source, "digits:v1")

    def pull(**patterns: Any) -> dict[str, Any]:
        return PullModelOperator(task_id="pull", model="digits", target=f"{BUCKET}/digits", **patterns).execute(context)

    pull(include=["weights.bin"])
    assert [Path(path).name for path in content(storage)] == ["weights.bin"]
    assert not pull()["skipped"]
    assert content(storage) == stored(source)
    pull(exclude=["weights.bin"])
    assert content(storage) == {path: body for path, body in stored(source).items() if "weights" not in path}
    assert pull(exclude=["weights.bin"])["skipped"]


@pytest.mark.parametrize("left", [0, 100, 10_240], ids=["empty", "truncated", "whole"])
def test_a_half_finished_upload_is_completed(storage: MemoryFileSystem, source: Path, left: int) -> None:
    (path, whole), *_ = [item for item in stored(source).items() if item[0].endswith("weights.bin")]
    storage.pipe_file(path, whole[:left])

    upload(source)

    assert content(storage) == stored(source)


@pytest.mark.parametrize("path", ["notes.txt", "weights.bin"], ids=["another name", "a name of the model's"])
def test_files_of_others_are_never_touched(storage: MemoryFileSystem, source: Path, path: str) -> None:
    storage.pipe_file(f"/bucket/models/digits/{path}", b"somebody's")

    with pytest.raises(TargetExists, match=path):
        upload(source)
    assert content(storage) == {f"/bucket/models/digits/{path}": b"somebody's"}


def test_force_replaces_the_files_of_others(storage: MemoryFileSystem, source: Path) -> None:
    storage.pipe({"/bucket/models/digits/notes.txt": b"old", "/bucket/models/digits/weights.bin": b"old"})
    storage.pipe_file("/bucket/models/letters/notes.txt", b"a neighbour's")

    upload(source, force=True)

    assert content(storage) == stored(source) | {"/bucket/models/letters/notes.txt": b"a neighbour's"}


def test_force_replaces_a_file_in_the_targets_place(storage: MemoryFileSystem, source: Path) -> None:
    storage.pipe_file("/bucket/models/digits", b"a file")

    with pytest.raises(TargetExists):
        upload(source)
    upload(source, force=True)

    assert content(storage) == stored(source)


def test_a_foreign_file_in_the_target_is_permanent(
    hook: ModelStoreHook, storage: MemoryFileSystem, source: Path, context: Any
) -> None:
    hook.push(source, "digits:v1")
    storage.pipe_file("/bucket/models/digits/notes.txt", b"somebody's")

    with pytest.raises(AirflowFailException, match=r"notes\.txt"):
        PullModelOperator(task_id="pull", model="digits", target=f"{BUCKET}/digits").execute(context)


class _CancelledAtLook(CancelToken):
    """A token that is cancelled when it is looked at for the nth time."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._left = look

    def check(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self.cancel()
        super().check()


def test_a_cancelled_upload_leaves_no_cut_file(storage: MemoryFileSystem, tmp_path: Path) -> None:
    model = tmp_path / "wide"
    model.mkdir()
    (model / "weights.bin").write_bytes(os.urandom(3 << 20))
    whole = stored(model)
    reached = False
    for look in range(1, 100):
        try:
            upload(model, cancel=_CancelledAtLook(look))
        except Cancelled:
            reached = True
            assert content(storage) == {}
        else:
            break

    assert reached
    assert content(storage) == whole


# What a pull remembers of a target in object storage


@pytest.fixture
def versions(hook: ModelStoreHook, source: Path) -> dict[str, dict[str, bytes]]:
    """Two versions of a model, and what the storage holds of each."""
    found = {}
    for version in ("v1", "v2"):
        (source / "weights.bin").write_bytes(version.encode())
        hook.push(source, f"digits:{version}")
        found[version] = stored(source)
    return found


def pull(context: Any, version: str, target: str = f"{BUCKET}/digits", **arguments: Any) -> dict[str, Any]:
    operator = PullModelOperator(task_id="pull", model=f"digits:{version}", target=target, **arguments)
    return operator.execute(context)


def test_a_cleared_task_with_a_remote_target_reads_and_writes_nothing(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull(context, "v1")["skipped"] is False
    opened: list[str] = []
    real = MemoryFileSystem._open

    def watching(self: MemoryFileSystem, path: str, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return real(self, path, *rest, **more)

    monkeypatch.setattr(MemoryFileSystem, "_open", watching)
    assert pull(context, "v1")["skipped"] is True
    assert set(opened) == {"/bucket/models/.digits.modelsync"}
    monkeypatch.undo()
    assert content(storage) == versions["v1"]


def test_the_next_version_replaces_what_was_pulled_and_sends_only_what_differs(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any
) -> None:
    pull(context, "v1")
    same = "/bucket/models/digits/" + next(path for path in _paths(versions["v1"]) if path != "weights.bin")
    before = storage.info(same)["created"]
    assert pull(context, "v2")["skipped"] is False
    assert content(storage) == versions["v2"]
    assert storage.info(same)["created"] == before


def _paths(files: dict[str, bytes]) -> list[str]:
    return [path.removeprefix("/bucket/models/digits/") for path in files]


@pytest.mark.parametrize("path", ["weights.bin", "notes.txt"])
def test_what_somebody_has_put_there_stays(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any, path: str
) -> None:
    pull(context, "v1")
    storage.pipe_file(f"/bucket/models/digits/{path}", b"mine")
    before = content(storage)
    with pytest.raises(AirflowFailException, match=path):
        pull(context, "v2")
    assert content(storage) == before
    pull(context, "v2", force=True)
    assert content(storage) == versions["v2"]


def test_a_replacement_that_was_interrupted_is_completed(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any
) -> None:
    pull(context, "v1")
    storage.pipe_file("/bucket/models/digits/weights.bin", versions["v2"]["/bucket/models/digits/weights.bin"][:1])
    pull(context, "v2")
    assert content(storage) == versions["v2"]


def test_what_a_killed_replacement_has_left_does_not_stand_in_the_next_ones_way(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killing(file: Path, remote: ObjectStoragePath, cancel: CancelToken) -> None:
        remote.write_bytes(file.read_bytes())
        raise Killed

    pull(context, "v1")
    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_modelsync.operators.storage._upload", killing)
        with pytest.raises(Killed):
            pull(context, "v2")
    assert content(storage) == versions["v2"]  # and no record tells so
    storage.pipe_file("/bucket/models/digits/notes.txt", b"mine")
    with pytest.raises(AirflowFailException, match="notes"):
        pull(context, "v1")
    storage.rm("/bucket/models/digits/notes.txt")
    pull(context, "v1")
    assert content(storage) == versions["v1"]


_IS_KEPT = str(ObjectStoragePath("s3://bucket/./digits")).endswith("/./digits")
_WITH_A_DOT = pytest.param("./digits", marks=pytest.mark.skipif(not _IS_KEPT, reason="this Airflow reads it as digits"))


@pytest.mark.parametrize("place", [".", "digits/..", "..", "digits/../..", _WITH_A_DOT, " ", "digits//x"])
def test_a_remote_target_has_no_part_that_somebody_may_read_as_another_place(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any, place: str
) -> None:
    attach("s3", fs=storage)
    with pytest.raises(AirflowFailException, match=r"blank|root of a bucket"):
        pull(context, "v1", f"s3://bucket/{place}", force=True)
    assert content(storage) == {}


@pytest.mark.parametrize("place", ["lake/store/digits", "lake/store", "lake", "lake/store/new/deep"])
def test_a_remote_target_and_the_store_never_lie_in_one_another(
    storage: MemoryFileSystem, context: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    attach("s3", fs=storage)
    monkeypatch.setenv(
        "AIRFLOW_CONN_MODELSYNC_DEFAULT", '{"conn_type": "modelstore", "host": "s3://bucket/lake/store"}'
    )
    operator = PullModelOperator(task_id="pull", model="digits:v1", target=f"s3://bucket/{place}", force=True)
    with pytest.raises(AirflowFailException, match="lie in one another"):
        operator.execute(context)


@pytest.mark.parametrize("target", ["s3://bucket", "s3://bucket/", "memory:///", "s3://lake@bucket"])
@pytest.mark.parametrize("force", [False, True])
def test_the_root_of_a_bucket_is_no_target(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any, target: str, force: bool
) -> None:
    attach("s3", fs=storage)
    attach("s3", "lake", fs=storage)
    storage.pipe_file("/bucket/other/keep.txt", b"keep")
    with pytest.raises(AirflowFailException, match="root of a bucket"):
        pull(context, "v1", target, force=force)
    assert content(storage) == {"/bucket/other/keep.txt": b"keep"}


def test_force_replaces_only_what_is_below_the_target(
    versions: dict[str, dict[str, bytes]], storage: MemoryFileSystem, context: Any
) -> None:
    beside = {"/bucket/models/digits2/keep": b"1", "/bucket/models/digits.txt": b"2"}
    for path, value in {**beside, "/bucket/models/digits/old": b"3"}.items():
        storage.pipe_file(path, value)
    pull(context, "v1", force=True)
    assert content(storage) == {**versions["v1"], **beside}


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_storage_that_refuses_is_permanent_and_told(
    hook: ModelStoreHook,
    storage: MemoryFileSystem,
    source: Path,
    context: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    hook.push(source, "digits:v1")
    storage.pipe_file("/bucket/models/other/weights.bin", b"1")
    monkeypatch.setattr(MemoryFileSystem, "_open", deny)
    place = f"{BUCKET}/other"
    push = PushModelOperator(task_id="push", model="other:v1", source=place)
    pull = PullModelOperator(task_id="pull", model="digits", target=place, force=True)

    with pytest.raises(AirflowFailException, match="permission is denied: Access Denied"):
        {"push": push, "pull": pull}[verb].execute(context)
    assert f"the task '{verb}' failed: permission is denied" in caplog.text

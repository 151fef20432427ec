"""The hook of the model store: every verb, through an Airflow connection and without a metadata database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    NotSupported,
    TargetExists,
    VersionConflict,
)
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.conftest import Connect

NOBODY = 65534


@pytest.fixture
def hook(modelstore: Path) -> ModelStoreHook:
    return ModelStoreHook("modelsync_default")


def test_a_pushed_model_comes_back_with_the_same_digest(hook: ModelStoreHook, source: Path, tmp_path: Path) -> None:
    pushed = hook.push(source, "digits:v1")
    pulled = hook.pull("digits:v1", tmp_path / "pulled")

    assert pulled.path == tmp_path / "pulled"
    assert digest_directory(tmp_path / "pulled") == pushed.digest == digest_directory(source)


@pytest.mark.parametrize(
    ("ask", "kind", "words"),
    [
        (lambda hook: hook.deploy("fraud", "digits:v1"), NotSupported, "deploy models; let the serving system"),
        (lambda hook: hook.deployment("fraud"), NotSupported, "deploy models; let the serving system"),
        (lambda hook: hook.undeploy("fraud"), NotSupported, "deploy models; let the serving system"),
        (lambda hook: hook.predict("fraud", {}), NotSupported, "run predictions; pull the model"),
        (lambda hook: hook.start_predict("fraud", {}), NotSupported, "run predictions; pull the model"),
        (lambda hook: hook.pull("digits:v1", None), InvalidInput, "a target directory is needed"),
        (lambda hook: hook.start_fetch("digits:v1"), InvalidInput, "a target directory is needed"),
    ],
)
def test_what_a_model_store_does_not_do_is_refused_with_the_nearest_thing(
    hook: ModelStoreHook, ask: Callable[[ModelStoreHook], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=f"{words}.*modelsync_default"):
        ask(hook)


def test_a_push_without_a_version_repeats_as_a_skip(hook: ModelStoreHook, source: Path) -> None:
    first, second = hook.push(source, "digits"), hook.push(source, "digits")

    assert first.version == second.version
    assert [version.transfer.skipped for version in (first, second) if version.transfer] == [False, True]
    assert len(hook.list_versions("digits")) == 1


def test_other_bytes_never_replace_a_version_silently(hook: ModelStoreHook, source: Path) -> None:
    before = hook.push(source, "digits:v1")
    (source / "weights.bin").write_bytes(b"other")

    with pytest.raises(VersionConflict, match=r"digits:v1.*modelsync_default"):
        hook.push(source, "digits:v1")
    assert hook.get("digits:v1").digest == before.digest


def test_force_replaces_a_version(hook: ModelStoreHook, source: Path) -> None:
    hook.push(source, "digits:v1")
    (source / "weights.bin").write_bytes(b"other")
    hook.push(source, "digits:v1", force=True)

    assert hook.get("digits:v1").digest == digest_directory(source)


def test_latest_is_the_newest_ready_version(hook: ModelStoreHook, source: Path) -> None:
    for version in ("v1", "v2"):
        (source / "weights.bin").write_text(version)
        hook.push(source, f"digits:{version}")

    assert hook.get("digits").version == hook.get("digits:latest").version == "v2"


def test_labels_and_metadata_are_kept_and_chosen_by(hook: ModelStoreHook, source: Path) -> None:
    hook.push(source, "digits:v1", labels={"stage": "candidate"}, metadata={"accuracy": 0.9})

    assert hook.get("digits", labels={"stage": "candidate"}).metadata == {"accuracy": 0.9}
    assert hook.get("digits", query="label:stage=candidate").version == "v1"
    with pytest.raises(ModelNotFound):
        hook.get("digits", labels={"stage": "production"})


def test_set_labels_merges_and_removes(hook: ModelStoreHook, source: Path) -> None:
    hook.push(source, "digits:v1", labels={"stage": "candidate", "team": "vision"})
    changed = hook.set_labels("digits:v1", {"stage": "production", "team": None})

    assert changed.labels == hook.get("digits:v1").labels == {"stage": "production"}


def test_list_models_has_the_newest_version_of_each_name(hook: ModelStoreHook, source: Path) -> None:
    for ref in ("digits:v1", "letters:v1", "digits:v2"):
        (source / "weights.bin").write_text(ref)
        hook.push(source, ref)

    assert [version.ref for version in hook.list_models()] == ["digits:v2", "letters:v1"]
    assert [version.ref for version in hook.list_models("lett")] == ["letters:v1"]
    assert [version.ref for version in hook.list_versions("digits")] == ["digits:v2", "digits:v1"]


def test_delete_says_whether_the_version_was_there(hook: ModelStoreHook, source: Path) -> None:
    hook.push(source, "digits:v1")

    assert [hook.delete("digits:v1"), hook.delete("digits:v1")] == [True, False]
    assert hook.list_models() == []


def test_a_pull_never_touches_a_target_that_holds_something_else(
    hook: ModelStoreHook, source: Path, tmp_path: Path
) -> None:
    hook.push(source, "digits:v1")
    mine = tmp_path / "target" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")

    with pytest.raises(TargetExists, match="digits:v1"):
        hook.pull("digits:v1", mine.parent)
    assert mine.read_text() == "mine"


def test_a_missing_model_is_named_with_its_connection(hook: ModelStoreHook) -> None:
    with pytest.raises(ModelNotFound, match=r"'absent'.*connection 'modelsync_default'"):
        hook.get("absent")


def test_a_refused_name_writes_nothing(hook: ModelStoreHook, source: Path, modelstore: Path) -> None:
    with pytest.raises(InvalidInput):
        hook.push(source, "../digits:v1")
    assert not modelstore.exists()


def test_the_default_connection_is_the_stores_own(connect: Connect, tmp_path: Path) -> None:
    connect("modelstore_default", conn_type="modelstore", host=(tmp_path / "mine").as_uri())

    assert str(tmp_path / "mine") in ModelStoreHook().test_connection()[1]


def test_a_good_connection_says_where_it_leads(hook: ModelStoreHook, modelstore: Path) -> None:
    good, message = hook.test_connection()

    assert good
    assert modelstore.as_uri() in message
    assert not modelstore.exists()  # it was not there before


def test_a_root_whose_parent_is_missing_is_told_alike_by_all_verbs(
    connect: Connect, tmp_path: Path, source: Path
) -> None:
    connect("lost", conn_type="modelstore", host=(tmp_path / "absent" / "store").as_uri())
    hook = ModelStoreHook("lost")
    verbs: tuple[Callable[[], object], ...] = (
        lambda: hook.push(source, "digits:v1"),
        lambda: hook.pull("digits", tmp_path / "pulled"),
        lambda: hook.get("digits:v1"),
        hook.list_models,
        lambda: hook.list_versions("digits"),
    )

    good, message = hook.test_connection()
    assert not good
    assert "does not exist" in message
    for verb in verbs:
        with pytest.raises(InvalidInput, match=r"does not exist.*mount its disk.*argument 'host'.*connection 'lost'"):
            verb()
    assert not (tmp_path / "absent").exists()


def test_a_read_only_root_fails_the_connection_test(connect: Connect) -> None:
    with TemporaryDirectory() as directory:
        root = Path(directory) / "store"
        connect("closed", conn_type="modelstore", host=root.as_uri())
        root.mkdir()
        assert ModelStoreHook("closed").test_connection()[0]
        Path(directory).chmod(0o755)
        root.chmod(0o555)
        with _without_privileges():
            good, message = ModelStoreHook("closed").test_connection()

    assert not good
    assert "Permission denied" in message
    assert "closed" not in message  # the form's connection has an id that nobody knows


@pytest.mark.parametrize("host", ["/srv/models", "https://models.example", "file://", "file:///", "", None])
def test_a_root_that_is_no_usable_url_fails_the_connection_test(connect: Connect, host: str | None) -> None:
    connect("odd", conn_type="modelstore", host=host)

    good, message = ModelStoreHook("odd").test_connection()

    assert not good
    assert "host" in message
    assert "odd" not in message


def test_an_unknown_connection_fails_the_connection_test() -> None:
    good, message = ModelStoreHook("nowhere").test_connection()

    assert not good
    assert "nowhere" in message


@contextmanager
def _without_privileges() -> Iterator[None]:
    """Let this process be refused what its user would be: root is refused nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_verbs_read_their_arguments_as_operators_do(hook: ModelStoreHook, source: Path, tmp_path: Path) -> None:
    pushed = hook.push(source, "digits:v1", labels='{"stage": "dev"}', force="False")  # type: ignore[arg-type]
    for model in (pushed, pushed.to_xcom(), pushed.to_event()):
        assert hook.get(model).labels == {"stage": "dev"}  # type: ignore[arg-type]
    (source / "weights.bin").write_bytes(b"other")

    with pytest.raises(VersionConflict):
        hook.push(source, "digits:v1", force="no")  # type: ignore[arg-type]
    for wrong in ({"force": "maybe"}, {"labels": 5}):
        with pytest.raises(InvalidInput, match=rf"argument '{next(iter(wrong))}', connection 'modelsync_default'"):
            hook.pull("digits:v1", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_async_tasks_await_the_same_verbs(hook: ModelStoreHook, source: Path, tmp_path: Path) -> None:
    async def work() -> None:
        pushed = await hook.apush(source, "digits:v1", labels={"stage": "dev"})
        assert await hook.aget(pushed, labels={"stage": "dev"}) == await hook.aget("digits")  # type: ignore[arg-type]
        assert [one.ref for one in await hook.alist_models(labels={"stage": "dev"})] == ["digits:v1"]
        assert [one.ref for one in await hook.alist_versions("digits", "label:stage=prod")] == []
        pulled = await hook.apull("digits", tmp_path / "pulled")
        assert digest_directory(tmp_path / "pulled") == pulled.version.digest == pushed.digest
        with pytest.raises(ModelNotFound, match="not 'prod'"):
            await hook.aget("digits:v1", labels={"stage": "prod"})
        assert (await hook.aset_labels("digits:v1", {"stage": "prod"})).labels == {"stage": "prod"}
        assert [await hook.adelete(pushed) for _ in range(2)] == [True, False]  # type: ignore[arg-type]
        with pytest.raises(NotSupported):
            await hook.adeployment("digits")

    asyncio.run(work())


def test_an_awaited_transfer_ends_with_the_task_that_awaits_it(hook: ModelStoreHook, source: Path) -> None:
    (source / "big.bin").write_bytes(bytes(64 << 20))

    async def work() -> None:
        push = asyncio.ensure_future(hook.apush(source, "digits:v1"))
        await asyncio.sleep(0)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push

    asyncio.run(work())
    assert hook.list_versions("digits") == []

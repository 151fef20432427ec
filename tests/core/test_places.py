from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core import places
from airflow_provider_modelsync.core.archive.extract import extract_archive
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, sync
from tests.core.processes import in_namespace
from tests.core.stores import Store, snapshot, write_tree

BLANK = ["", " ", "\n\t", ".", "./", "..", "../..", "a/..", "/tmp/.", "a\0b", "s3://bucket/model"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and working directory that holds what nobody wants to lose."""
    home = write_tree(tmp_path / "airflow", {"airflow.cfg": b"precious", "dags/d.py": b"precious"})
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "stores" / "store")
    store.root.parent.mkdir()
    store.push(write_tree(tmp_path / "model", {"weights.bin": b"1"}), "fraud:v1")
    return store


@pytest.mark.parametrize("named", BLANK)
@pytest.mark.parametrize("find", [places.target, places.require_source, places.output])
def test_a_name_that_means_no_directory_is_refused(find: Callable[[str], Path | None], named: str, home: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        find(named)
    assert refusal.value.argument == find.__name__.removeprefix("require_")


def test_predictions_never_take_a_directory_s_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere.json")
    assert places.output(tmp_path / "link") == tmp_path / "elsewhere.json"
    with pytest.raises(InvalidInput, match="name the file to write"):
        places.output(tmp_path)


@pytest.mark.parametrize("find", [places.target, places.require_source])
def test_roots_and_homes_are_refused(find: Callable[[str], Path | None], home: Path) -> None:
    for named in ("/", "///", str(home), f"{home}/", "/home/somebody", "/home", str(home.parent)):
        with pytest.raises(InvalidInput):
            find(named)


@pytest.mark.parametrize("find", [places.target, places.require_source])
@pytest.mark.parametrize("named", ["/etc", "/usr", "/bin/", "/var", "/opt", "/tmp", "/usr/lib", "//tmp//../srv/"])
def test_what_belongs_to_the_system_is_no_model(find: Callable[[str], Path | None], named: str) -> None:
    with pytest.raises(InvalidInput, match=r"directory of the system|is or holds"):
        find(named)


def test_a_pull_never_replaces_the_python_that_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venvs" / "airflow"))
    for named in (tmp_path / "venvs" / "airflow", tmp_path / "venvs"):
        with pytest.raises(InvalidInput, match="the Python that runs this"):
            places.target(named)


@pytest.mark.parametrize("find", [places.target, places.require_source])
@pytest.mark.parametrize("named", [b"model", None, 5, True, ["model"]], ids=repr)
def test_what_is_no_path_is_refused_as_any_other_bad_one(find: Callable[[Any], Path | None], named: Any) -> None:
    with pytest.raises(InvalidInput, match="is no path"):
        find(named)


def test_a_pull_never_replaces_the_working_directory_or_what_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for named in (tmp_path / "a" / "b", tmp_path / "a", tmp_path):
        with pytest.raises(InvalidInput, match="working directory"):
            places.target(named)
    assert places.target(tmp_path / "a" / "b" / "model") == tmp_path / "a" / "b" / "model"


def test_the_working_directory_may_be_a_source_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places.require_source(tmp_path)


@pytest.mark.parametrize("named", ["", " ", ".", ".."])
@pytest.mark.parametrize("force", [False, True])
def test_a_pull_that_names_nothing_touches_nothing(store: Store, home: Path, named: str, force: bool) -> None:
    before = snapshot(home.parent)
    with pytest.raises(InvalidInput):
        store.pull("fraud:v1", named, force=force)  # type: ignore[arg-type]
    assert snapshot(home.parent) == before


@pytest.mark.parametrize("named", ["", " ", "."])
def test_a_push_that_names_nothing_publishes_nothing(store: Store, home: Path, named: str) -> None:
    with pytest.raises(InvalidInput):
        store.push(named, "leak:v1")  # type: ignore[arg-type]
    assert [model.ref for model in store.list_models()] == ["fraud:v1"]


@pytest.mark.parametrize("where", ["", "fraud", "fraud/v1", "fraud/v1/deeper", "..", "new"])
def test_target_and_store_never_lie_in_one_another(store: Store, where: str) -> None:
    place = Path(os.path.normpath(store.root / where))
    before = snapshot(store.root)
    with pytest.raises(InvalidInput, match="lie in one another"):
        store.pull("fraud:v1", place, force=True)
    assert snapshot(store.root) == before


@pytest.mark.parametrize("up", [0, 1])
def test_a_source_does_not_hold_the_store_that_it_goes_to(store: Store, up: int) -> None:
    with pytest.raises(InvalidInput, match="holds the model store"):
        store.push([store.root, store.root.parent][up], "all:v1")
    assert [model.ref for model in store.list_models()] == ["fraud:v1"]


def test_one_store_of_a_sync_does_not_lie_in_the_other(store: Store) -> None:
    inner = Store(store.root / "archive")
    for source, target in ((store, inner), (inner, store)):
        with pytest.raises(InvalidInput, match="lie in one another"):
            sync(Side(source.registry, SyncDriver()), Side(target.registry, SyncDriver()), Selection(), Control())
    assert not inner.root.exists()


@pytest.mark.parametrize(
    ("roots", "overlap"),
    [
        (("s3://models", "s3://models/prod"), True),
        (("s3://models/prod/", "s3://models/prod/a/b"), True),
        (("s3://models/prod", "s3://models/production"), False),
        (("s3://models/prod", "s3://models/prod/"), False),
        (("s3://models/prod", "s3://other/prod/a"), False),
        (("s3://models", "file:///models/prod"), False),
    ],
)
def test_stores_in_buckets_do_not_lie_in_one_another_either(roots: tuple[str, str], overlap: bool) -> None:
    def store(root: str, **fields: str) -> ModelStore:
        return ModelStore(BucketSettings.read("bucket", {"host": root, **fields}))

    one, other = map(store, roots)
    assert (one.overlaps(other), other.overlaps(one)) == (overlap, overlap)
    elsewhere = store(roots[0], endpoint_url="https://minio.example.com:9000")
    assert not other.overlaps(elsewhere)
    assert other.identity != elsewhere.identity
    if overlap:
        for source, target in ((one, other), (other, one)):
            with pytest.raises(InvalidInput, match="lie in one another"):
                sync(Side(source, SyncDriver()), Side(target, SyncDriver()), Selection(), Control())


def test_a_mount_point_and_what_holds_one_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    script = """
import subprocess, sys
from pathlib import Path
from airflow_provider_modelsync.core import places
from airflow_provider_modelsync.core.errors import InvalidInput
mount = Path(sys.argv[1], "holder", "mount")
mount.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
for named in (mount, mount.parent):
    try:
        places.target(named)
    except InvalidInput as error:
        print(error)
print(places.target(mount / "model"))
"""
    text = in_namespace(script, tmp_path)
    assert text.splitlines() == [
        f"{tmp_path}/holder/mount is a mount point; name a directory inside of it [argument 'target']",
        f"{tmp_path}/holder holds the mount point {tmp_path}/holder/mount and cannot be replaced [argument 'target']",
        f"{tmp_path}/holder/mount/model",
    ]


# Links in what the user names


def test_links_are_followed_as_the_kernel_follows_them(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "current").symlink_to("v3")
    assert places.target(f"{tmp_path}/link/../model") == tmp_path / "real" / "model"
    assert places.target(tmp_path / "current") == tmp_path / "v3"


def test_root_model_directory_target_and_parents_may_be_links(tmp_path: Path) -> None:
    for name in ("root", "fraud", "place"):
        (tmp_path / "disk" / name).mkdir(parents=True)
    (tmp_path / "root").symlink_to("disk/root")
    (tmp_path / "disk" / "root" / "fraud").symlink_to(tmp_path / "disk" / "fraud")
    (tmp_path / "place").symlink_to("disk/place")
    (tmp_path / "disk" / "place" / "current").symlink_to("v3")
    store = Store(tmp_path / "root")
    model = write_tree(tmp_path / "model", {"a/b": b"1"})
    (tmp_path / "latest").symlink_to("model")
    version = store.push(tmp_path / "latest", "fraud:v1")
    pulled = store.pull("fraud:v1", tmp_path / "place" / "current")
    assert pulled.path == tmp_path / "disk" / "place" / "v3"
    assert snapshot(pulled.path) == snapshot(model)
    assert (tmp_path / "disk" / "place" / "current").is_symlink()
    assert store.get("fraud").digest == version.digest
    assert store.delete("fraud:v1")


def test_an_archive_may_be_unpacked_through_a_link(tmp_path: Path) -> None:
    write_tree(tmp_path / "model", {"a": b"1"})
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "model", "a"], check=True)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    extract_archive(tmp_path / "a.tar", tmp_path / "link" / "out")
    assert (tmp_path / "disk" / "out" / "a").read_bytes() == b"1"

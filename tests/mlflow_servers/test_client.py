"""What we push, the unmodified client loads; what it logs, we pull: on real servers of both generations."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput, Unauthorized
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.capabilities import Aliases
from tests.conformance.bench import Bench
from tests.core.stores import snapshot, write_tree
from tests.mlflow_servers.conftest import Client, both_generations, connect, every_server
from tests.services.mlflow import ADMIN, PASSWORD, Tracking, served, shared

pytestmark = pytest.mark.mlflow


@every_server
def test_a_pushed_model_loads_by_version_by_alias_and_as_latest(
    ml: Bench, vendor: Client, name: str, trained: Path
) -> None:
    version = ml.push(trained, name, labels={"stage": "prod"})
    ml.run(lambda registry: Aliases.of(registry).set_alias(version, "champion"))

    for uri in (f"models:/{name}/1", f"models:/{name}@champion", f"models:/{name}/latest"):
        assert vendor("predict", uri) == [3.0, 21.0]
    told = vendor("version", name, "1")
    assert (told["tags"]["stage"], told["aliases"], told["status"]) == ("prod", ["champion"], "READY")


@every_server
def test_what_the_client_downloads_is_pushed_again_as_the_same_model(
    ml: Bench, vendor: Client, name: str, trained: Path, tmp_path: Path
) -> None:
    version = ml.push(trained, name)
    paths = vendor("download", f"models:/{name}/1", tmp_path / "downloaded")
    assert "MLmodel" in paths
    assert ".modelsync/manifest.json" in paths

    again = tmp_path / "again"
    ml.pull(name, again)
    (again / "registered_model_meta").write_text("model_name: x\n")
    repeated = ml.push(again, name)
    assert (repeated.ref, repeated.digest) == (version.ref, digest_directory(trained))
    assert repeated.transfer is not None
    assert repeated.transfer.skipped


@every_server
def test_what_the_client_has_logged_is_pulled_and_loads(ml: Bench, vendor: Client, name: str, tmp_path: Path) -> None:
    number = vendor("log", name)
    vendor("set_alias", name, "champion", number)
    model = ml.pull(f"{name}@champion", tmp_path / "target")

    assert model.version.version == number
    assert (tmp_path / "target" / "MLmodel").is_file()
    assert vendor("predict", tmp_path / "target") == [3.0, 21.0]


@every_server
def test_plain_files_of_a_run_are_pulled_and_plain_files_are_pushed(
    ml: Bench, vendor: Client, name: str, tmp_path: Path
) -> None:
    files = {"w.bin": b"w" * 3000, "tok/größe & a b?.txt": b"x", "tok/日本/+:;*'\"": b"y", "empty": b""}
    source = write_tree(tmp_path / "source", files, executable=["w.bin"])
    plain = {path.replace("?", ""): content for path, content in files.items()}  # the client cuts names there
    theirs = write_tree(tmp_path / "theirs", plain)
    vendor("log_files", f"{name} of a run", theirs)
    ml.pull(f"{name} of a run:1", tmp_path / "of-a-run")
    assert snapshot(tmp_path / "of-a-run") == snapshot(theirs)

    (source / "none").mkdir()
    ml.push(source, name)
    ml.pull(name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    ml.push(theirs, f"{name} for all")
    assert set(vendor("download", f"models:/{name} for all/1", tmp_path / "downloaded")) >= plain.keys()


@every_server
def test_large_files_come_and_go_whole(ml: Bench, name: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * (80 << 10)  # 20 MiB, so that there are two ranges
    source = write_tree(tmp_path / "source", {"w.bin": content, "d/small": b"s"})
    ml.push(source, name)
    ml.pull(name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("server", ["local"], indirect=True)
def test_a_pushed_model_is_served(server: Tracking, ml: Bench, vendor: Client, name: str, trained: Path) -> None:
    version = ml.push(trained, name)
    ml.run(lambda registry: Aliases.of(registry).set_alias(version, "champion"))

    with served(server, f"models:/{name}@champion") as url:
        body = json.dumps({"inputs": [[1.0], [10.0]]}).encode()
        with urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"}), timeout=60) as answer:
            assert [round(value, 6) for value in json.loads(answer.read())["predictions"]] == [3.0, 21.0]


@both_generations
def test_the_files_of_a_deleted_version_go_unless_a_copy_names_them(
    server: Tracking, ml: Bench, vendor: Client, name: str, trained: Path
) -> None:
    before = set(server.directory.rglob("MLmodel"))
    ml.push(trained, name)
    (own,) = set(server.directory.rglob("MLmodel")) - before
    vendor("copy", name, "1", f"{name} copied")

    assert ml.run(lambda registry: registry.delete(registry.parse(f"{name}:1")))
    assert vendor("predict", f"models:/{name} copied/1") == [3.0, 21.0]
    assert ml.run(lambda registry: registry.delete(registry.parse(f"{name} copied:1")))
    assert not own.exists()


@both_generations
def test_what_others_have_logged_stays_when_its_version_is_deleted(
    server: Tracking, ml: Bench, vendor: Client, name: str
) -> None:
    vendor("log", name)
    before = sorted(server.directory.rglob("MLmodel"))
    assert ml.run(lambda registry: registry.delete(registry.parse(f"{name}:1")))
    assert sorted(server.directory.rglob("MLmodel")) == before


def test_a_server_that_asks_for_a_login(name: str, tmp_path: Path) -> None:
    server = shared("login")
    ml = connect(server, tmp_path, login=ADMIN, password=PASSWORD)
    assert ml.run(lambda registry: registry.test()).endswith(f"as {ADMIN}.")
    source = write_tree(tmp_path / "source", {"w.bin": b"w"})
    ml.push(source, name)
    ml.pull(name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)

    for wrong in ({}, {"login": ADMIN, "password": "wrong"}, {"token": "none"}):
        with pytest.raises(Unauthorized):
            connect(server, tmp_path, **wrong).run(lambda registry: registry.test())


def test_workspaces_hold_models_of_their_own(name: str, tmp_path: Path) -> None:
    server = shared("workspaces")
    server.ask("POST", "/api/3.0/mlflow/workspaces", {"name": "team-a"})
    here, there = connect(server, tmp_path, workspace="team-a"), connect(server, tmp_path)
    source = write_tree(tmp_path / "source", {"w.bin": b"w"})
    here.push(source, name)
    here.pull(name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert there.run(lambda registry: registry.list_versions(name, Query())) == []
    assert here.registry.identity != there.registry.identity
    for other, workspace in ((server, "nobody-s"), (shared("local"), "team-a")):
        with pytest.raises(InvalidInput, match="workspace"):
            connect(other, tmp_path, workspace=workspace).run(lambda registry: registry.test())

"""What we push, the unmodified client loads; what it logs, we pull: on real servers of both generations."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.capabilities import Aliases
from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.core.stores import snapshot, write_tree
from tests.mlflow_servers.conftest import Vendor, connect
from tests.services.mlflow import ADMIN, PASSWORD, Tracking, served, shared

pytestmark = pytest.mark.mlflow

STAND_INS = ["stand-in", "stand-in-2"]
KINDS = ["local", "bucket", "direct", "local-2", "bucket-2", "direct-2"]
every_server = pytest.mark.parametrize("server", [*KINDS, *STAND_INS], indirect=True)
both_generations = pytest.mark.parametrize("server", ["local", "local-2", *STAND_INS], indirect=True)
_NUMBERS = count()


@pytest.fixture
def name() -> str:
    return f"model it's {next(_NUMBERS)}"


def run(registry: MLflow, make_flow: Any) -> Any:
    with driver_for(registry, None) as driver:
        return driver.run(make_flow(registry))


def pushed(registry: MLflow, source: Path, name: str, **options: Any) -> ModelVersion:
    with driver_for(registry, None) as driver:
        return push(registry, driver, source, registry.parse(name), Control(workers=2), **options)


def pulled(registry: MLflow, model: str, target: Path) -> PulledModel:
    with driver_for(registry, None) as driver:
        return pull(registry, driver, registry.parse(model), target, Control(workers=2), query=Query())


@every_server
def test_a_pushed_model_loads_by_version_by_alias_and_as_latest(
    registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    vendor("save", tmp_path / "source")
    version = pushed(registry, tmp_path / "source", name, labels={"stage": "prod"})
    run(registry, lambda registry: Aliases.of(registry).set_alias(version, "champion"))

    for uri in (f"models:/{name}/1", f"models:/{name}@champion", f"models:/{name}/latest"):
        assert vendor("predict", uri) == [3.0, 21.0]
    told = vendor("version", name, "1")
    assert (told["tags"]["stage"], told["aliases"], told["status"]) == ("prod", ["champion"], "READY")


@every_server
def test_what_the_client_downloads_is_pushed_again_as_the_same_model(
    registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    vendor("save", tmp_path / "source")
    version = pushed(registry, tmp_path / "source", name)
    paths = vendor("download", f"models:/{name}/1", tmp_path / "downloaded")
    assert "MLmodel" in paths
    assert ".modelsync/manifest.json" in paths

    again = tmp_path / "again"
    pulled(registry, name, again)
    (again / "registered_model_meta").write_text("model_name: x\n")
    repeated = pushed(registry, again, name)
    assert (repeated.ref, repeated.digest) == (version.ref, digest_directory(tmp_path / "source"))
    assert repeated.transfer is not None
    assert repeated.transfer.skipped


@every_server
def test_what_the_client_has_logged_is_pulled_and_loads(
    registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    number = vendor("log", name)
    vendor("set_alias", name, "champion", number)
    model = pulled(registry, f"{name}@champion", tmp_path / "target")

    assert model.version.version == number
    assert (tmp_path / "target" / "MLmodel").is_file()
    assert vendor("predict", tmp_path / "target") == [3.0, 21.0]


@every_server
def test_plain_files_of_a_run_are_pulled_and_plain_files_are_pushed(
    registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    files = {"w.bin": b"w" * 3000, "tok/größe & a b?.txt": b"x", "tok/日本/+:;*'\"": b"y", "empty": b""}
    source = write_tree(tmp_path / "source", files, executable=["w.bin"])
    plain = {path.replace("?", ""): content for path, content in files.items()}  # the client cuts names there
    theirs = write_tree(tmp_path / "theirs", plain)
    vendor("log_files", f"{name} of a run", theirs)
    pulled(registry, f"{name} of a run:1", tmp_path / "of-a-run")
    assert snapshot(tmp_path / "of-a-run") == snapshot(theirs)

    (source / "none").mkdir()
    pushed(registry, source, name)
    pulled(registry, name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    pushed(registry, theirs, f"{name} for all")
    assert set(vendor("download", f"models:/{name} for all/1", tmp_path / "downloaded")) >= plain.keys()


@every_server
def test_large_files_come_and_go_whole(registry: MLflow, name: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * (80 << 10)  # 20 MiB, so that there are two ranges
    source = write_tree(tmp_path / "source", {"w.bin": content, "d/small": b"s"})
    pushed(registry, source, name)
    pulled(registry, name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("server", ["local"], indirect=True)
def test_a_pushed_model_is_served(
    server: Tracking, registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    vendor("save", tmp_path / "source")
    version = pushed(registry, tmp_path / "source", name)
    run(registry, lambda registry: Aliases.of(registry).set_alias(version, "champion"))

    with served(server, f"models:/{name}@champion") as url:
        body = json.dumps({"inputs": [[1.0], [10.0]]}).encode()
        with urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"}), timeout=60) as answer:
            assert [round(value, 6) for value in json.loads(answer.read())["predictions"]] == [3.0, 21.0]


@both_generations
def test_the_files_of_a_deleted_version_go_unless_a_copy_names_them(
    server: Tracking, registry: MLflow, vendor: Vendor, name: str, tmp_path: Path
) -> None:
    vendor("save", tmp_path / "source")
    version = pushed(registry, tmp_path / "source", name)
    vendor("copy", name, "1", f"{name} copied")

    for model in (f"{name}:1", f"{name} copied:1"):
        there = [path for path in server.directory.rglob("MLmodel") if version.digest and path.is_file()]
        assert there
        assert run(registry, lambda registry, model=model: registry.delete(registry.parse(model)))
        if model == f"{name}:1":
            assert vendor("predict", f"models:/{name} copied/1") == [3.0, 21.0]


@both_generations
def test_what_others_have_logged_stays_when_its_version_is_deleted(
    server: Tracking, registry: MLflow, vendor: Vendor, name: str
) -> None:
    vendor("log", name)
    before = sorted(server.directory.rglob("MLmodel"))
    assert run(registry, lambda registry: registry.delete(registry.parse(f"{name}:1")))
    assert sorted(server.directory.rglob("MLmodel")) == before


def test_a_server_that_asks_for_a_login(name: str, tmp_path: Path) -> None:
    server = shared("login")
    registry = connect(server, login=ADMIN, password=PASSWORD)
    assert run(registry, lambda registry: registry.test()).endswith(f"as {ADMIN}.")
    source = write_tree(tmp_path / "source", {"w.bin": b"w"})
    pushed(registry, source, name)
    pulled(registry, name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)

    from airflow_provider_modelsync.core.errors import Unauthorized

    for wrong in ({}, {"login": ADMIN, "password": "wrong"}, {"token": "none"}):
        with pytest.raises(Unauthorized):
            run(connect(server, **wrong), lambda registry: registry.test())


def test_workspaces_hold_models_of_their_own(name: str, tmp_path: Path) -> None:
    from airflow_provider_modelsync.core.errors import InvalidInput

    server = shared("workspaces")
    server.ask("POST", "/api/3.0/mlflow/workspaces", {"name": "team-a"})
    here, there = connect(server, workspace="team-a"), connect(server)
    source = write_tree(tmp_path / "source", {"w.bin": b"w"})
    pushed(here, source, name)
    pulled(here, name, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert run(there, lambda registry: registry.list_versions(name, Query())) == []
    assert here.identity != there.identity
    for wrong in (connect(server, workspace="nobody-s"), connect(shared("local"), workspace="team-a")):
        with pytest.raises(InvalidInput, match="workspace"):
            run(wrong, lambda registry: registry.test())

"""The hook of OCI registries: through an Airflow connection, watched by a sensor's trigger, no secrets shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.hooks.oci import OCIRegistryHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator, SyncModelsOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.core.registries.oci.team import write_model
from tests.core.stores import snapshot
from tests.standins.oci import HARBOR, OCIStandIn


@pytest.fixture
def server() -> Iterator[OCIStandIn]:
    with OCIStandIn(HARBOR) as server:
        yield server


@pytest.fixture
def hook(server: OCIStandIn, connect: Connect) -> OCIRegistryHook:
    connect(
        "oci_registry_default",
        conn_type="oci_registry",
        host=f"{server.url}/team",
        login=server.user,
        password=server.password,
        extra={"repositories": "risk/digits"},
    )
    hook = get_registry_hook("oci_registry_default")
    assert isinstance(hook, OCIRegistryHook)
    return hook


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


def test_a_model_goes_up_is_waited_for_and_comes_down(hook: OCIRegistryHook, source: Path, tmp_path: Path) -> None:
    common = {"registry_conn_id": "oci_registry_default"}
    pushed = PushModelOperator(task_id="push", model="risk/digits:v1", source=str(source), **common).execute({})  # type: ignore[typeddict-item]
    assert str(pushed["uri"]).endswith(f"/team/risk/digits@{hook.get('risk/digits:v1').raw['digest']}")
    assert len(json.dumps(pushed)) <= 4096
    found = ModelVersionSensor(task_id="wait", model="risk/digits", deferrable=False, **common).execute({})  # type: ignore[typeddict-item]
    assert found["ref"] == "risk/digits:v1"
    hook.set_alias("risk/digits:v1", "champion")
    PullModelOperator(task_id="pull", model="risk/digits@champion", target=str(tmp_path / "target"), **common).execute(
        {}
    )  # type: ignore[typeddict-item]
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("layout", ["modelpack", "image"])
def test_models_are_synced_there_and_back(
    hook: OCIRegistryHook, source: Path, tmp_path: Path, connect: Connect, layout: str
) -> None:
    for name in ("modelsync_default", "backup"):
        connect(name, conn_type="modelstore", host=(tmp_path / name).as_uri())
    get_registry_hook("modelsync_default").push(source, "risk--digits:v1", labels={"stage": "dev"})
    way = {"source_conn_id": "modelsync_default", "target_conn_id": "oci_registry_default"}
    there = SyncModelsOperator(task_id="there", options={"*": {"layout": layout}}, **way).execute({})  # type: ignore[typeddict-item]
    assert [entry["target"] for entry in there["copied"]] == ["risk/digits:v1"]
    way = {"source_conn_id": "oci_registry_default", "target_conn_id": "backup"}
    SyncModelsOperator(task_id="back", **way).execute({})  # type: ignore[typeddict-item]
    backup = get_registry_hook("backup")
    assert backup.get("risk--digits:v1").labels == {"stage": "dev"}
    backup.pull("risk--digits:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_tokens_are_masked_in_logs(
    hook: OCIRegistryHook, server: OCIStandIn, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[str] = []
    monkeypatch.setattr("airflow_provider_modelsync.hooks.oci.mask_secret", masked.append)
    fresh = OCIRegistryHook("oci_registry_default")
    fresh.push(source, "risk/digits:v1")
    assert set(masked) <= set(server.tokens)
    assert masked


def test_a_name_that_repositories_cannot_have_is_refused_with_the_connection(connect: Connect) -> None:
    connect("oci_registry_default", conn_type="oci_registry", host="ghcr.io", extra={"repositories": "Fraud"})
    good, message = get_registry_hook("oci_registry_default").test_connection()
    assert not good
    assert "repositories" in message

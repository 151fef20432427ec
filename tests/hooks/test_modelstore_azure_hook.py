"""The hook of a model store in Azure Blob Storage: whose credentials it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.conftest import Connect
from tests.standins.azure import AzureStandIn

WASB = "airflow.providers.microsoft.azure.hooks.wasb"


@pytest.fixture
def azure() -> Iterator[AzureStandIn]:
    with AzureStandIn() as azure:
        yield azure


def store(connect: Connect, azure: AzureStandIn, password: str | None = None, **extra: Any) -> ModelStoreHook:
    fields = {"host": azure.fields["host"], "extra": {"endpoint_url": azure.endpoint, **extra}}
    connect("bucket", conn_type="modelstore", password=password, **fields)
    return ModelStoreHook("bucket")


@dataclass
class Service:
    """What a hook of Airflow's provider gives: where its service is, and its credential, if that is not in the URL."""

    url: str
    credential: Any


@dataclass
class SharedKey:
    account_name: str
    account_key: str


class WasbHook:
    """As that of Airflow's Azure provider, which brings 190 packages along: asks for its connection by the id."""

    def __init__(self, wasb_conn_id: str) -> None:
        self._conn_id = wasb_conn_id

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        raise AssertionError("the connection is known")

    def get_conn(self) -> Service:
        known = self.get_connection(self._conn_id)
        if signature := known.extra_dejson.get("sas_token"):
            return Service(f"https://standin.blob.core.windows.net/?{signature}", None)
        return Service("https://standin.blob.core.windows.net/", SharedKey(known.login, known.password))


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(WASB)
    module.WasbHook = WasbHook  # type: ignore[attr-defined]
    parts = WASB.split(".")
    for end in range(3, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, WASB, module)


def test_an_accounts_key_as_the_password(connect: Connect, azure: AzureStandIn, source: Path, tmp_path: Path) -> None:
    hook = store(connect, azure, azure.key)
    said = "The model store at abfs://models@standin/store/ can be read and written."
    assert hook.test_connection() == (True, said)
    pushed = hook.push(source, "digits:v1")
    assert hook.pull("digits", tmp_path / "target").version.digest == pushed.digest


def test_a_wasb_connection_with_a_key_and_with_a_signature(
    connect: Connect, azure: AzureStandIn, source: Path, provider: None
) -> None:
    connect("my_wasb", conn_type="wasb", login="standin", password=azure.key)
    pushed = store(connect, azure, azure_conn_id="my_wasb").push(source, "digits:v1")
    asked = azure.requests[-1].query
    given = "&".join(f"{name}={asked[name].replace('+', '%2B')}" for name in ("sv", "se", "sr", "sp", "spr", "sig"))
    connect("my_sas", conn_type="wasb", login="standin", extra={"sas_token": given})
    assert store(connect, azure, azure_conn_id="my_sas").get("digits").digest == pushed.digest


def test_a_wasb_connection_without_its_provider_says_what_to_install(
    connect: Connect, azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, WASB, None)
    connect("my_wasb", conn_type="wasb")
    with pytest.raises(InvalidInput, match=r"modelsync\[microsoft-azure\]") as caught:
        store(connect, azure, azure_conn_id="my_wasb").get("digits")
    assert (caught.value.argument, caught.value.connection) == ("azure_conn_id", "bucket")


def test_an_error_names_the_container_and_no_secret(connect: Connect, azure: AzureStandIn) -> None:
    ok, said = store(connect, azure, "bm8ga2V5", region_name="eu").test_connection()
    assert not ok
    assert "region_name does not fit the root abfs://models@standin/store" in said
    ok, said = store(connect, azure, "bm8ga2V5").test_connection()
    assert not ok
    assert "the container models of standin" in said
    assert "bm8ga2V5" not in said

"""The hook of a model store in Google Cloud Storage: whose credentials it takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.conftest import Connect
from tests.standins.gcs import GcsStandIn

BASE_GOOGLE = "airflow.providers.google.common.hooks.base_google"


@pytest.fixture
def gcs() -> Iterator[GcsStandIn]:
    with GcsStandIn() as gcs:
        yield gcs


def store(connect: Connect, gcs: GcsStandIn, password: str | None = None, **extra: Any) -> ModelStoreHook:
    fields = {"host": f"gs://{gcs.bucket}/models", "extra": {"endpoint_url": gcs.url, **extra}}
    connect("bucket", conn_type="modelstore", password=password, **fields)
    return ModelStoreHook("bucket")


class GoogleBaseHook:
    """As that of Airflow's Google provider, which brings 200 packages along: asks for its connection by the id."""

    def __init__(self, gcp_conn_id: str) -> None:
        self.extras = self.get_connection(gcp_conn_id).extra_dejson

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        raise AssertionError("the connection is known")

    def get_credentials(self) -> Any:
        from google.oauth2.service_account import Credentials

        key = json.loads(self.extras["keyfile_dict"])
        return Credentials.from_service_account_info(
            key, scopes=["https://www.googleapis.com/auth/devstorage.read_write"]
        )


def test_a_key_file_as_the_password(connect: Connect, gcs: GcsStandIn, source: Path, tmp_path: Path) -> None:
    hook = store(connect, gcs, json.dumps(gcs.key_file()))
    assert hook.test_connection() == (True, f"The model store at gs://{gcs.bucket}/models/ can be read and written.")
    pushed = hook.push(source, "digits:v1")
    assert hook.pull("digits", tmp_path / "target").version.digest == pushed.digest


def test_a_google_cloud_connection(
    connect: Connect, gcs: GcsStandIn, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = ModuleType(BASE_GOOGLE)
    provider.GoogleBaseHook = GoogleBaseHook  # type: ignore[attr-defined]
    parts = BASE_GOOGLE.split(".")
    for end in range(3, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, BASE_GOOGLE, provider)
    connect("my_google", conn_type="google_cloud_platform", extra={"keyfile_dict": json.dumps(gcs.key_file())})
    hook = store(connect, gcs, gcp_conn_id="my_google")
    assert hook.push(source, "digits:v1").digest == hook.get("digits").digest
    assert gcs.count("POST", "^/token$") >= 1


def test_a_google_cloud_connection_without_its_provider_says_what_to_install(
    connect: Connect, gcs: GcsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, BASE_GOOGLE, None)
    connect("my_google", conn_type="google_cloud_platform")
    with pytest.raises(InvalidInput, match=r"modelsync\[google\]") as caught:
        store(connect, gcs, gcp_conn_id="my_google").get("digits")
    assert (caught.value.argument, caught.value.connection) == ("gcp_conn_id", "bucket")


def test_what_does_not_fit_the_root_is_named_with_its_connection(connect: Connect, gcs: GcsStandIn) -> None:
    ok, message = store(connect, gcs, region_name="eu-central-1", aws_conn_id="aws_default").test_connection()
    assert not ok
    assert "aws_conn_id, region_name do not fit the root gs://" in message

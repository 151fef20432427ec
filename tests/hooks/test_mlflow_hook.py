"""The hook of MLflow, with Airflow's connections: whose credentials reach the bucket behind the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.hooks.mlflow import MLflowHook
from tests.conftest import Connect
from tests.services.moto_server import running_moto
from tests.standins.mlflow import MLflowStandIn
from tests.standins.s3 import S3StandIn


@pytest.fixture
def s3() -> Iterator[S3StandIn]:
    with running_moto() as moto, S3StandIn(moto) as proxy:
        yield proxy


@pytest.fixture
def server(s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MLflowStandIn]:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with MLflowStandIn(tmp_path / "server", storage="direct", bucket=s3.bucket) as server:
        yield server


def goes_round(hook: MLflowHook, source: Path, target: Path) -> bool:
    pushed = hook.push(source, "digits")
    return hook.pull("digits", target).version.digest == pushed.digest


def test_the_connection_s_own_keys(
    connect: Connect, server: MLflowStandIn, s3: S3StandIn, source: Path, tmp_path: Path
) -> None:
    keys = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key, "endpoint_url": s3.endpoint}
    connect("tracking", conn_type="mlflow", host=server.url, extra=keys)

    assert goes_round(MLflowHook("tracking"), source, tmp_path / "target")
    assert s3.operations["PutObject"] > 1
    assert server.files() == {}


def test_an_aws_connection(
    connect: Connect, server: MLflowStandIn, s3: S3StandIn, source: Path, tmp_path: Path
) -> None:
    connect("my_aws", conn_type="aws", login=s3.access_key, password=s3.secret_key)
    extra = {"aws_conn_id": "my_aws", "endpoint_url": s3.endpoint}
    connect("tracking", conn_type="mlflow", host=server.url, extra=extra)

    assert goes_round(MLflowHook("tracking"), source, tmp_path / "target")
    assert server.files() == {}

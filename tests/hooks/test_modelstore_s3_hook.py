"""The hook of a model store in a bucket: whose credentials it takes, and what it shows of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.conftest import Connect
from tests.services.moto_server import running_moto
from tests.standins.s3 import S3StandIn


@pytest.fixture
def s3() -> Iterator[S3StandIn]:
    with running_moto() as moto, S3StandIn(moto) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def store(connect: Connect, s3: S3StandIn, *, with_keys: bool = True, **extra: Any) -> ModelStoreHook:
    keys = {"login": s3.access_key, "password": s3.secret_key} if with_keys else {}
    fields = {"host": f"s3://{s3.bucket}/models", "extra": {"endpoint_url": s3.endpoint, **extra}, **keys}
    connect("bucket", conn_type="modelstore", **fields)
    return ModelStoreHook("bucket")


def goes_round(hook: ModelStoreHook, source: Path, target: Path) -> bool:
    pushed = hook.push(source, "digits:v1")
    return hook.pull("digits", target).version.digest == pushed.digest


def test_the_connection_s_own_keys(connect: Connect, s3: S3StandIn, source: Path, tmp_path: Path) -> None:
    hook = store(connect, s3)

    assert hook.test_connection() == (True, f"The model store at s3://{s3.bucket}/models/ can be read and written.")
    assert goes_round(hook, source, tmp_path / "target")


def test_the_chain_that_aws_tools_use(
    connect: Connect, s3: S3StandIn, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)

    assert goes_round(store(connect, s3, with_keys=False), source, tmp_path / "target")


def test_an_aws_connection(connect: Connect, s3: S3StandIn, source: Path, tmp_path: Path) -> None:
    connect("my_aws", conn_type="aws", login=s3.access_key, password=s3.secret_key)

    assert goes_round(store(connect, s3, with_keys=False, aws_conn_id="my_aws"), source, tmp_path / "target")


async def test_an_aws_connection_on_the_event_loop(connect: Connect, s3: S3StandIn, source: Path) -> None:
    connect("my_aws", conn_type="aws", login=s3.access_key, password=s3.secret_key)
    store(connect, s3).push(source, "digits:v1")
    hook = store(connect, s3, with_keys=False, aws_conn_id="my_aws")

    found = await hook.arun(lambda registry: registry.get(registry.parse("digits")))

    assert found.version == "v1"


def test_an_aws_connection_without_its_provider_says_what_to_install(
    connect: Connect, s3: S3StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.amazon.aws.hooks.base_aws", None)
    connect("my_aws", conn_type="aws", login="key", password="secret")

    with pytest.raises(InvalidInput, match=r"modelsync\[amazon\]") as caught:
        store(connect, s3, with_keys=False, aws_conn_id="my_aws").get("digits")
    assert (caught.value.argument, caught.value.connection) == ("aws_conn_id", "bucket")


def test_without_any_credentials(connect: Connect, s3: S3StandIn) -> None:
    ok, message = store(connect, s3, with_keys=False).test_connection()

    assert not ok
    assert "no usable AWS credentials" in message


def test_wrong_keys_are_refused_without_being_shown(connect: Connect, s3: S3StandIn) -> None:
    connect(
        "bucket",
        conn_type="modelstore",
        host=f"s3://{s3.bucket}/models",
        login=s3.access_key,
        password="wrong-canary",
        extra={"endpoint_url": s3.endpoint},
    )
    hook = ModelStoreHook("bucket")
    ok, message = hook.test_connection()

    assert not ok
    assert message.startswith("SignatureDoesNotMatch: The request signature we calculated does not match")
    assert f"(status 403, writing below models/ in the bucket {s3.bucket} at {s3.endpoint})" in message
    assert "canary" not in f"{message} {hook.get_conn()!r} {vars(hook.get_conn())!r}"


@pytest.mark.parametrize("host", ["s3://", "s3:///models", "s3:bucket", "https://bucket"])
def test_a_root_that_is_no_bucket_is_refused(connect: Connect, host: str) -> None:
    connect("bucket", conn_type="modelstore", host=host)

    with pytest.raises(InvalidInput) as caught:
        ModelStoreHook("bucket").get_conn()
    assert caught.value.argument == "host"

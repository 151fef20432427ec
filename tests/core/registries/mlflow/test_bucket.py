"""Artifacts in a bucket that are reached past the server, with the connection's own credentials."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow, MLflowSettings
from airflow_provider_modelsync.core.transfer.control import Control
from tests.conformance.bench import Bench
from tests.conformance.registries import RegistryUnderTest, mlflow_under_test
from tests.core.registries.mlflow.conftest import FILES, NAME, holders
from tests.core.registries.modelstore.buckets import is_killed_at
from tests.core.stores import snapshot, write_tree
from tests.services.moto_server import running_moto
from tests.standins.mlflow import MLflowStandIn
from tests.standins.s3 import Respond, S3StandIn
from tests.support.steps import some_of

MIB = 1 << 20
both = pytest.mark.parametrize("server", [3, 2], indirect=True, ids=["3", "2"])
only_3 = pytest.mark.parametrize("server", [3], indirect=True)
only_2 = pytest.mark.parametrize("server", [2], indirect=True)

Worker = Callable[..., Bench]


@pytest.fixture
def s3() -> Iterator[S3StandIn]:
    with running_moto() as moto, S3StandIn(moto) as proxy:
        yield proxy


@pytest.fixture
def server(request: pytest.FixtureRequest, s3: S3StandIn, tmp_path: Path) -> Iterator[MLflowStandIn]:
    """A server that passes nothing on of the bucket in which its artifacts are."""
    scratch = tmp_path / "server"
    with MLflowStandIn(scratch, generation=request.param, storage="direct", bucket=f"{s3.bucket}/direct") as server:
        yield server


@pytest.fixture
def worker(server: MLflowStandIn, s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Returns workers that share nothing; its arguments are further fields of their connection."""
    numbers = count()
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keys = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key, "endpoint_url": s3.endpoint}

    def make(**fields: object) -> Bench:
        scratch = tmp_path / f"worker-{next(numbers)}"
        scratch.mkdir()
        plain = mlflow_under_test(server.url, lambda: len(server.requests))
        settings = MLflowSettings.read("mlflow_default", {"host": server.url, **keys, **fields})
        return Bench(RegistryUnderTest(**{**vars(plain), "connect": lambda: MLflow(settings)}), scratch)

    return make


def keys(s3: S3StandIn) -> dict[str, int]:
    """What is in the bucket, with sizes."""
    return {found["Key"]: found["Size"] for found in s3.client().list_objects_v2(Bucket=s3.bucket).get("Contents", ())}


def pulled(bench: Bench, model: str) -> dict[str, Any]:
    target = bench.target()
    bench.pull(model, target)
    return snapshot(target)


@both
def test_files_go_and_come_past_the_server(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "plain", FILES, executable=["weights.bin"], directories=["none"])
    version = worker().push(source, NAME, labels={"stage": "prod"})
    assert version.digest == digest_directory(source)
    (root,) = {key.removesuffix("/MLmodel") for key in keys(s3) if key.endswith("/MLmodel")}
    assert root.startswith("direct/1/")
    assert keys(s3).keys() == {f"{root}/{path}" for path in (*FILES, ".modelsync/manifest.json")}
    assert pulled(worker(), NAME) == snapshot(source)
    assert server.count("*", "mlflow-artifacts|presigned|ajax-api") == 0
    assert server.files() == {}


@both
def test_large_files_go_in_parts_and_the_next_try_sends_what_is_missing(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    large = write_tree(tmp_path / "large", {"w.bin": os.urandom(11 * MIB), "small": b"s"})
    s3.fault("PUT", "w.bin", Respond(503), part=3, times=None)
    with pytest.raises(RegistryUnavailable):
        worker(part_size_mib=5).push(large, NAME, control=Control(workers=1))
    assert len(holders(server)) == 1
    s3.faults.clear()
    s3.clear()

    stats = worker(part_size_mib=5).push(large, NAME, control=Control(workers=1)).transfer
    assert stats is not None
    assert stats.resumed_bytes >= 10 * MIB
    assert stats.sent_bytes <= MIB + 1
    assert len(holders(server)) == 1
    assert pulled(worker(), NAME) == snapshot(large)


@pytest.mark.slow
@both
def test_a_push_that_is_killed_after_any_write_to_the_bucket_is_finished_by_the_next(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    for at in some_of(count(1)):
        name, text = f"{NAME}-{at}", str(at).encode()
        source = write_tree(tmp_path / str(at), {"w.bin": text * (6 * MIB // len(text)), "small": text})
        push = partial(worker(part_size_mib=5).push, source, name, control=Control(workers=1))
        came_that_far = is_killed_at(s3, push, "write", nth=at)
        # The version comes after all that is written there.
        assert len(server.versions(name)) == (0 if came_that_far else 1)
        assert worker(part_size_mib=5).push(source, name).version == "1"
        assert pulled(worker(), name) == snapshot(source)
        assert len(server.versions(name)) == 1
        if not came_that_far:
            assert at > 5  # begun, two parts, put together, another file, the manifest
            return


@both
def test_what_is_deleted_or_given_up_leaves_nothing_in_the_bucket(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "plain", FILES)
    version = worker().push(source, NAME)
    assert worker().run(lambda registry: registry.delete(registry.parse(version.ref)))
    assert keys(s3) == {}
    s3.fault("PUT", "weights.bin", Respond(403, "AccessDenied"), times=None)
    with pytest.raises(Unauthorized):
        worker().push(source, NAME)
    assert keys(s3) == {}
    assert holders(server) == []
    assert server.versions(NAME) == []


@only_3
def test_nothing_is_removed_where_a_server_names_a_place_that_is_no_model_s(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="prod/of-somebody-else", Body=b"x")
    version = worker().push(write_tree(tmp_path / "plain", FILES), NAME)
    for logged in server.logged.values():
        logged["info"]["artifact_uri"] = f"s3://{s3.bucket}/prod"
    assert worker().run(lambda registry: registry.delete(registry.parse(version.ref)))
    assert "prod/of-somebody-else" in keys(s3)


@only_3
def test_a_version_of_files_that_others_have_put_into_a_bucket(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    for path, content in FILES.items():
        s3.client().put_object(Bucket=s3.bucket, Key=f"others/{path}", Body=content)
    s3.client().put_object(Bucket=s3.bucket, Key="others/none/", Body=b"")
    server._new_model({"name": NAME})
    server._new_version({"name": NAME, "source": f"s3://{s3.bucket}/others"})
    assert pulled(worker(), NAME) == snapshot(write_tree(tmp_path / "expected", FILES))
    assert worker().get(NAME).digest is None

    server._new_version({"name": NAME, "source": f"s3://{s3.bucket}/nothing"})
    with pytest.raises(ModelNotFound, match="gone"):
        pulled(worker(), NAME)
    assert worker().run(lambda registry: registry.delete(registry.parse(f"{NAME}:1")))
    assert any(key.startswith("others/") for key in keys(s3))


@only_2
def test_without_fields_of_the_bucket_aws_s_own_chain_is_asked(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.endpoint)
    unset = {"aws_access_key_id": None, "aws_secret_access_key": None, "endpoint_url": None}
    source = write_tree(tmp_path / "plain", FILES)
    with pytest.raises(Unauthorized, match="no usable AWS credentials"):
        worker(**unset).push(source, NAME)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    worker(**unset).push(source, NAME)
    assert pulled(worker(**unset), NAME) == snapshot(source)


@only_3
def test_without_fields_of_the_bucket_a_server_that_signs_is_asked(
    server: MLflowStandIn, s3: S3StandIn, worker: Worker, tmp_path: Path
) -> None:
    unset = {"aws_access_key_id": None, "aws_secret_access_key": None, "endpoint_url": None}
    worker(**unset).push(write_tree(tmp_path / "plain", FILES), NAME)
    assert server.count("POST", "presigned-upload-url$") > len(FILES)
    assert keys(s3) == {}


@both
def test_refused_keys_are_named_by_their_own_fields(worker: Worker, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "plain", FILES)
    with pytest.raises(Unauthorized, match="aws_secret_access_key") as caught:
        worker(aws_secret_access_key="canary-wrong-7d1e90").push(source, NAME)
    assert caught.value.argument == "aws_secret_access_key"
    assert "canary" not in str(caught.value)


def test_fields_of_the_bucket_are_checked_with_the_connection() -> None:
    with pytest.raises(InvalidInput, match="sse_kms_key_id"):
        MLflowSettings.read("mlflow_default", {"host": "http://h", "sse_kms_key_id": "k"})
    plain = MLflowSettings.read("mlflow_default", {"host": "http://h", "login": "jane", "password": "pw"})
    assert not plain.says_how_to_reach_buckets
    assert MLflowSettings.read("mlflow_default", {"host": "http://h", "region_name": "x"}).says_how_to_reach_buckets
    bucket = plain.for_bucket("b")
    assert (bucket.login, bucket.password, bucket.host) == (None, None, "s3://b")

"""The hook of the Hub, with Airflow's connections: pull, push, sync into other registries, references of BentoCloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import SyncReport
from airflow_provider_modelsync.core.verbs import sync as syncing
from airflow_provider_modelsync.core.verbs.sync import Selection
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.huggingface import HuggingFaceHubHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from tests.conftest import Connect
from tests.core.stores import snapshot
from tests.services.moto_server import running_moto
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import HARBOR, OCIStandIn
from tests.standins.s3 import S3StandIn

MODEL = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "notes.txt": b"n"}
CHOSEN = {path: content for path, content in MODEL.items() if path != "notes.txt"}


@pytest.fixture
def hub(tmp_path: Path, connect: Connect) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path / "hub") as server:
        connect("huggingface_default", conn_type="huggingface_hub", host=server.url, password=WRITE)
        server.publish("acme/fraud", MODEL)
        server.publish("acme/other", {"config.json": b"{}"})
        yield server


def files_in(directory: Path) -> dict[str, bytes]:
    return {path: content for path, (kind, content, _) in snapshot(directory).items() if kind == "file"}


def sync(target: str, **more: Any) -> SyncReport:
    what = {"models": ["acme/fraud"], "include": ["*.safetensors", "*.json"], **more}
    return HuggingFaceHubHook().sync_to(get_registry_hook(target), Selection(**what))


def test_the_connection_test_names_the_user(hub: HuggingFaceStandIn) -> None:
    assert HuggingFaceHubHook().test_connection() == (True, f"Connected to {hub.url} as alice of acme.")


def test_models_are_pushed_pulled_and_found_by_their_aliases(hub: HuggingFaceStandIn, tmp_path: Path) -> None:
    hook = HuggingFaceHubHook()
    hook.pull("acme/fraud", tmp_path / "one")
    assert files_in(tmp_path / "one") == MODEL
    pushed = hook.push(tmp_path / "one", "acme/copy:v1")
    assert [alias.alias for alias in hook.aliases("acme/copy")] == ["main", "v1"]
    assert hook.pull("acme/copy@v1", tmp_path / "two").version.version == pushed.version
    assert files_in(tmp_path / "two") == MODEL
    assert {version.name for version in hook.list_models("acme/")} == {"acme/copy", "acme/fraud", "acme/other"}


# Sync

Target = Callable[[ExitStack, Path], Mapping[str, Any]]


def directory(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    return {"conn_type": "modelstore", "host": (place / "store").as_uri()}


def oci(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    server = stack.enter_context(OCIStandIn(HARBOR))
    fields = {"login": server.user, "password": server.password}
    return {"conn_type": "oci_registry", "host": f"{server.url}/team", **fields}


def mlflow(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    server = stack.enter_context(MLflowStandIn(place / "mlflow"))
    return {"conn_type": "mlflow", "host": server.url}


def bucket(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    s3 = stack.enter_context(S3StandIn(stack.enter_context(running_moto())))
    fields = {"login": s3.access_key, "password": s3.secret_key, "extra": {"endpoint_url": s3.endpoint}}
    return {"conn_type": "modelstore", "host": f"s3://{s3.bucket}/models", **fields}


def mlflow_in_bucket(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    s3 = stack.enter_context(S3StandIn(stack.enter_context(running_moto())))
    server = stack.enter_context(MLflowStandIn(place / "mlflow", storage="direct", bucket=s3.bucket))
    keys = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key, "endpoint_url": s3.endpoint}
    return {"conn_type": "mlflow", "host": server.url, "extra": keys}


def hub_of_ones_own(stack: ExitStack, place: Path) -> Mapping[str, Any]:
    server = stack.enter_context(HuggingFaceStandIn(place / "other"))
    return {"conn_type": "huggingface_hub", "host": server.url, "password": WRITE}


@pytest.mark.parametrize(
    ("open_target", "name"),
    [
        (directory, "acme--fraud"),
        (bucket, "acme--fraud"),
        (oci, "acme/fraud"),
        (mlflow, "acme--fraud"),
        (mlflow_in_bucket, "acme--fraud"),
        (hub_of_ones_own, "acme/fraud"),
    ],
)
def test_chosen_files_go_straight_into_any_registry_and_only_once(
    hub: HuggingFaceStandIn,
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    open_target: Target,
    name: str,
) -> None:
    def refuse() -> Path:
        raise AssertionError("no copy is to rest on this machine's disk")

    monkeypatch.setattr(syncing, "_own_directory", refuse)
    with ExitStack() as stack:
        connect("target", **open_target(stack, tmp_path))
        (copied,) = sync("target").versions
        assert copied.outcome == "copied", copied
        assert str(copied.target).startswith(f"{name}:")
        get_registry_hook("target").pull(str(copied.target), tmp_path / "pulled")
        assert files_in(tmp_path / "pulled") == CHOSEN
        assert copied.digest == digest_directory(tmp_path / "pulled")
        before = hub.count("*", "^/lfs/")
        (again,) = sync("target").versions
        assert again.outcome == "skipped", again
        sampled = 1 if open_target is hub_of_ones_own else 0  # the Hub wants the first bytes of a file to judge it by
        assert hub.count("*", "^/lfs/") == before + sampled
        assert hub.count("*", "notes.txt") == 0


def test_globs_reach_the_listing_and_names_lead_back(hub: HuggingFaceStandIn, tmp_path: Path, connect: Connect) -> None:
    connect("target", conn_type="modelstore", host=(tmp_path / "store").as_uri())
    report = sync("target", models=["acme/*"], include=None)
    names = sorted(str(version.target).partition(":")[0] for version in report.of("copied"))
    assert names == ["acme--fraud", "acme--other"]
    assert {request.query.get("author") for request in hub.find("GET", "/api/models$")} == {"acme"}
    selection = Selection(models=["acme--*"], rename={"acme--other": "alice/other"})
    back = get_registry_hook("target").sync_to(HuggingFaceHubHook(), selection)
    assert sorted(str(version.target).partition(":")[0] for version in back.versions) == ["acme/fraud", "alice/other"]
    assert hub.tree("alice/other") == {"config.json": b"{}"}


def test_a_commit_that_was_copied_with_other_files_is_no_silent_match(
    hub: HuggingFaceStandIn, tmp_path: Path, connect: Connect
) -> None:
    connect("target", conn_type="modelstore", host=(tmp_path / "store").as_uri())
    assert [version.outcome for version in sync("target").versions] == ["copied"]
    (other,) = sync("target", include=["*.json"]).versions
    assert other.outcome == "failed"
    assert "exists with" in str(other.note)


# References


@pytest.fixture
def cloud(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.token)
        yield server


def test_what_a_record_points_to_is_pulled_by_its_commit_and_its_patterns(
    hub: HuggingFaceStandIn, cloud: BentoCloudStandIn, tmp_path: Path
) -> None:
    commit = hub.repositories["acme/fraud"].head.id
    hub.publish("acme/fraud", {"config.json": b"newer"})
    patterns = ["*.json", "*.safetensors"]
    model = ":".join(cloud.seed_huggingface("acme/fraud", commit, endpoint=hub.url, include=patterns))
    for is_there in (False, True):
        pulled = BentoCloudHook().pull(model, tmp_path / "target", reference_conn_id="huggingface_default")
        assert files_in(tmp_path / "target") == CHOSEN
        assert pulled.version.ref == model
        assert pulled.digest == digest_directory(tmp_path / "target")
        assert pulled.version.transfer is not None
        assert pulled.version.transfer.skipped == is_there


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"endpoint": "https://hub.example.com"}, "at https://hub.example.com, and this connection leads to"),
        ({"revision": "main"}, "names no commit"),
        ({"registry": "elsewhere"}, "is not in Hugging Face Hub"),
    ],
)
def test_a_record_that_points_elsewhere_or_to_nothing_exact_is_refused(
    hub: HuggingFaceStandIn, cloud: BentoCloudStandIn, tmp_path: Path, facts: dict[str, Any], words: str
) -> None:
    asked = {"revision": hub.repositories["acme/fraud"].head.id, "endpoint": hub.url, **facts}
    model = ":".join(cloud.seed_huggingface("acme/fraud", **asked))
    with pytest.raises(InvalidInput, match=words):
        BentoCloudHook().pull(model, tmp_path / "target", reference_conn_id="huggingface_default")
    assert not (tmp_path / "target").exists()
    assert hub.count("*", "/resolve/") == 0

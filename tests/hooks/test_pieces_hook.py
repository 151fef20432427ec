"""The hook of Pieces OS: every verb through an Airflow connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    VersionFailed,
)
from airflow_provider_modelsync.core.models import Patience
from airflow_provider_modelsync.hooks.pieces import PiecesHook
from airflow_provider_modelsync.hooks.registry import aget_registry_hook, get_registry_hook
from tests.conftest import Connect
from tests.standins.pieces import JUNK, Download, PiecesStandIn, Progress
from tests.support.pieces import CANCEL, CONNECTION, DOWNLOAD, ENDLESS, PHI, quickly, running_host, verbs

SOON = Patience(seconds=300, poll_interval=0.05)
LATE = Patience(seconds=300, poll_interval=5)  # looks come too late for a test: messages have to do


@pytest.fixture
def server(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[PiecesStandIn]:
    quickly(monkeypatch)
    with running_host(connect) as server:
        yield server


@pytest.fixture
def hook(server: PiecesStandIn) -> PiecesHook:
    return PiecesHook()


def test_it_is_found_by_the_connections_type(server: PiecesStandIn) -> None:
    assert type(get_registry_hook(CONNECTION)) is PiecesHook
    assert type(asyncio.run(aget_registry_hook(CONNECTION))) is PiecesHook


def test_a_pull_means_downloaded_on_that_host(server: PiecesStandIn, hook: PiecesHook) -> None:
    pulled = [hook.pull("Phi 2", None, patience=SOON) for _ in range(2)]

    assert [one.path for one in pulled] == [None, None]
    assert [one.version.transfer.skipped for one in pulled if one.version.transfer] == [False, True]
    assert pulled[0].version.ref == "phi-2:0.0.1"
    assert verbs(server) == [DOWNLOAD]


def test_a_path_on_the_worker_is_refused(server: PiecesStandIn, hook: PiecesHook, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="leave the target out") as caught:
        hook.pull("Phi 2", tmp_path / "model")

    assert caught.value.connection == CONNECTION
    assert server.requests == []


def test_a_push_is_refused_and_register_and_update_are_named(hook: PiecesHook, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"`register`.*`update`"):
        hook.push(tmp_path, "mine")


def test_a_download_is_begun_followed_and_cancelled(server: PiecesStandIn, hook: PiecesHook) -> None:
    assert hook.download("Phi 2", patience=SOON).raw["downloaded"]
    server.download = ENDLESS
    hook.start_fetch("Other")
    assert hook.cancel_download("Other") == "the download of other is cancelled"
    assert hook.cancel_download("Other") == "the download of other is over or was never begun"

    assert verbs(server) == [DOWNLOAD, DOWNLOAD, CANCEL]


def test_progress_comes_as_percent_and_state(server: PiecesStandIn, hook: PiecesHook) -> None:
    steps = list(hook.download_progress("Phi 2", patience=LATE))

    percents = [percent for percent, _ in steps]
    assert percents == sorted(percents)
    assert steps[-1] == (100.0, "COMPLETED")
    assert {(12.5, "IN-PROGRESS"), (87.5, "IN-PROGRESS")} <= set(steps)
    assert list(hook.download_progress("Phi 2", patience=SOON)) == [(100.0, "COMPLETED")]
    assert verbs(server) == [DOWNLOAD]


@pytest.mark.parametrize("shape", ["no status", "unknown status", "new status", "integers"])
def test_progress_makes_sense_of_whatever_messages_say(server: PiecesStandIn, hook: PiecesHook, shape: str) -> None:
    server.progress = [Progress(shape=shape, junk=JUNK)]
    steps = list(hook.download_progress("Phi 2", patience=LATE))

    assert {state for _, state in steps[1:-1]} <= {"IN-PROGRESS", "VERIFYING"}
    assert steps[-1] == (100.0, "COMPLETED")


def test_progress_without_a_socket_ends_all_the_same(server: PiecesStandIn, hook: PiecesHook) -> None:
    server.progress = [Progress(upgrade=500)]

    assert list(hook.download_progress("Phi 2", patience=LATE))[-1] == (100.0, "COMPLETED")


def test_a_download_that_fails_ends_the_progress(server: PiecesStandIn, hook: PiecesHook) -> None:
    server.download = Download(outcome="FAILED")

    with pytest.raises(VersionFailed, match="FAILED") as failed:
        list(hook.download_progress("Phi 2", patience=LATE))
    assert (failed.value.model, failed.value.connection) == ("Phi 2", CONNECTION)


def _killed_by_the_first_step(hook: PiecesHook) -> Iterator[float]:
    for percent, _ in hook.download_progress("Other", patience=SOON):
        hook.cancel()
        yield percent


def test_a_download_goes_on_when_nobody_listens_and_ends_when_the_task_is_killed(
    server: PiecesStandIn, hook: PiecesHook
) -> None:
    server.download = Download(outcome=None, tick=0.01)
    for _ in hook.download_progress("Phi 2", patience=SOON):
        break
    assert verbs(server) == [DOWNLOAD]

    killed = PiecesHook()
    with pytest.raises(Cancelled):
        list(_killed_by_the_first_step(killed))
    assert verbs(server) == [DOWNLOAD, DOWNLOAD, CANCEL]


def test_the_download_of_another_is_waited_for(server: PiecesStandIn, hook: PiecesHook) -> None:
    server.download = Download(tick=0.03)
    server.begin(PHI["id"])

    assert hook.wait_for_download("Phi 2", patience=SOON).raw["downloaded"]
    assert verbs(server) == []


def test_deploying_downloads_then_loads_and_undeploying_unloads(server: PiecesStandIn, hook: PiecesHook) -> None:
    assert hook.deploy(None, "Phi 2").ready
    assert hook.deployment("phi-2").ready
    assert hook.undeploy("phi-2").gone

    assert verbs(server) == [DOWNLOAD, "load", "unload"]


def test_a_bad_deployment_downloads_nothing(server: PiecesStandIn, hook: PiecesHook) -> None:
    with pytest.raises(InvalidInput, match="the model itself"):
        hook.deploy("demo", "Phi 2")

    assert server.requests == []


def test_models_are_loaded_and_unloaded(server: PiecesStandIn, hook: PiecesHook) -> None:
    server.models[PHI["id"]]["downloaded"] = True

    assert hook.load("Phi 2").raw["loaded"]
    assert not hook.unload("Phi 2").raw["loaded"]


def test_models_of_ones_own_are_described_changed_and_deleted(server: PiecesStandIn, hook: PiecesHook) -> None:
    made = hook.register({"name": "Mine", "version": "1", "type": "SPEED", "usage": "CODE_GENERATION", "odd": 1})
    assert hook.update("Mine", {"version": "2"}).raw == {**made.raw, "version": "2"}
    assert hook.delete("Mine")
    with pytest.raises(ModelNotFound):
        hook.get("Mine")


def test_models_are_listed_by_their_unique_names(hook: PiecesHook) -> None:
    assert {version.name for version in hook.list_models()} == {"phi-2", "other", "claude", "own"}
    assert [version.name for version in hook.list_models("phi")] == ["phi-2"]


def test_health_and_version(server: PiecesStandIn, hook: PiecesHook) -> None:
    assert (hook.health(), hook.version()) == ("ok", "12.1.0")
    assert hook.test_connection() == (True, f"Connected to Pieces OS 12.1.0 at {server.url}.")
    server.health = "ill"
    with pytest.raises(RegistryUnavailable, match="ill"):
        hook.health()
    assert hook.test_connection()[0] is False

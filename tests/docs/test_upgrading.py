"""What `docs/upgrading.md` says of things that outlive a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import RegistryUnavailable
from airflow_provider_modelsync.core.transfer.checkpoint import UploadMemory
from airflow_provider_modelsync.core.verbs.watch import Seen
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.base import TaskCheckpoint
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, PredictOperator, _Memory
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.provider_info import get_provider_info
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.docs.documents import ROOT
from tests.support.state_store import StateStore

PAGE = (ROOT / "docs" / "upgrading.md").read_text()


def rewrite(record: Path, **changes: Any) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.fixture
def meta(modelstore: Path, source: Path) -> Path:
    """Where a store keeps the records of two versions."""
    for version in ("v1", "v2"):
        ModelStoreHook("modelsync_default").push(source, f"fraud:{version}")
    return modelstore / "fraud" / ".modelsync"


def test_unknown_keys_of_a_manifest_are_ignored(meta: Path) -> None:
    rewrite(meta / "v1.json", signature="of a newer release")

    assert ModelStoreHook("modelsync_default").get("fraud:v1").ready


def test_a_manifest_of_another_format_is_an_error_for_it_and_passed_over_by_lists(
    meta: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(meta / "v1.json", schema_version=2)
    hook = ModelStoreHook("modelsync_default")

    with pytest.raises(RegistryUnavailable, match="damaged or of a newer format"):
        hook.get("fraud:v1")
    assert [version.version for version in hook.list_versions("fraud")] == ["v2"]
    assert "damaged or of a newer format" in caplog.text
    assert hook.get("fraud:v2").ready


def test_a_checkpoint_of_another_form_is_forgotten() -> None:
    store = StateStore()
    store.set("modelsync.upload.v1", {"of": "a newer release"})
    store.set("modelsync.deployment", {"started": {"of": "a newer release"}})

    assert UploadMemory(TaskCheckpoint(store)).recall({}) is None
    assert _Memory(TaskCheckpoint(store), "").unfinished() is None
    assert "modelsync.upload.v1" not in store.values


def test_a_watcher_does_not_take_up_a_memory_of_another_form() -> None:
    with pytest.raises(ValueError, match="not what a watch remembers"):  # its trigger then begins anew
        Seen({"of": "a newer release"})


def test_unknown_extras_are_ignored(connect: Connect, tmp_path: Path) -> None:
    connect("store", conn_type="modelstore", host=tmp_path.as_uri(), extra={"of_a_newer_release": True})

    assert ModelStoreHook("store").test_connection()[0]


@pytest.mark.parametrize("task", [PushModelOperator, PullModelOperator, DeployModelOperator, PredictOperator])
def test_deferred_tasks_go_on_with_methods_that_stay(task: Any) -> None:
    assert callable(task.execute_complete)
    assert callable(ModelVersionSensor.execute_complete)
    assert callable(DeployModelOperator.execute_fetched)
    assert "`execute_complete` or `execute_fetched`" in PAGE


def test_the_oldest_python_and_airflow_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()

    assert 'requires-python = ">=3.11"' in project
    assert '"apache-airflow>=3.0.6"' in project
    assert "Python 3.11 and Airflow 3.0.6 are the oldest" in PAGE
    assert get_provider_info()["package-name"] in PAGE

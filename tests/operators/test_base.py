"""What all operators share: errors as Airflow understands them, resume, asset events, templates, mapping and kills."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException
from airflow_provider_modelsync.core import errors
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelSyncError, Permanent, Retryable
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint
from airflow_provider_modelsync.operators.catalog import DeleteModelOperator, LabelModelOperator, ListModelsOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from tests.conftest import Connect
from tests.core.stores import write_tree
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay
from tests.support.scripted import Script
from tests.support.state_store import StateStore
from tests.support.until import until

ROOT = Path(__file__).parents[2]
BIG = 64 << 20  # bytes: takes long enough to be killed in the middle
PART = 5 << 20  # bytes: the least that a storage takes
KILL_LIMIT = 4.0  # seconds from the signal to the end: Airflow sends SIGKILL after five

ARGUMENTS: dict[type[RegistryOperator], dict[str, Any]] = {
    PushModelOperator: {
        "model": "{{ name }}:v1",
        "source": "/models/{{ name }}",
        "labels": {"stage": "{{ name }}"},
        "metadata": {"from": ["{{ name }}"]},
        "options": {"framework": "{{ name }}"},
    },
    PullModelOperator: {
        "model": "{{ name }}",
        "target": "/models/{{ name }}",
        "labels": {"stage": "{{ name }}"},
        "query": "label:{{ name }}",
    },
    ListModelsOperator: {"query": "{{ name }}"},
    DeleteModelOperator: {"model": "{{ name }}:v1"},
    LabelModelOperator: {"model": "{{ name }}:v1", "labels": {"stage": "{{ name }}"}},
}
all_operators = pytest.mark.parametrize("operator_class", ARGUMENTS, ids=lambda operator: operator.__name__)


def translated() -> AbstractContextManager[None]:
    return ListModelsOperator(task_id="task").translated()


def _kinds(base: type[ModelSyncError]) -> list[type[ModelSyncError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, base)]


@pytest.mark.parametrize("error", _kinds(Permanent), ids=lambda error: error.__name__)
def test_a_permanent_error_ends_the_task(error: type[ModelSyncError]) -> None:
    cause = error("no use", model="digits:v1", connection="some_id")

    with pytest.raises(AirflowFailException, match=r"no use.*digits:v1.*some_id") as raised, translated():
        raise cause
    assert raised.value.__context__ is cause
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("error", _kinds(Retryable), ids=lambda error: error.__name__)
def test_a_retryable_error_leaves_the_task_its_retries(error: type[ModelSyncError]) -> None:
    cause = error("not now", connection="some_id")

    with pytest.raises(AirflowException, match=r"not now.*some_id") as raised, translated():
        raise cause
    assert not isinstance(raised.value, AirflowFailException)
    assert raised.value.__context__ is cause
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), PermissionError(13, "Access Denied", "b/key")])
def test_a_storage_that_denies_permission_ends_the_task(error: PermissionError) -> None:
    with pytest.raises(AirflowFailException, match=r"permission is denied.*Access Denied"), translated():
        raise error


def test_other_exceptions_are_left_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


def test_the_checkpoint_keeps_its_keys_apart_from_the_users(context: Any) -> None:
    store: StateStore = context["task_state_store"]
    store.set("upload", "the user's")
    checkpoint = TaskCheckpoint.of(context)
    assert checkpoint is not None

    checkpoint.set("upload", {"part": 1})
    assert (checkpoint.get("upload"), store.get("upload")) == ({"part": 1}, "the user's")
    checkpoint.delete("upload")
    assert (checkpoint.get("upload"), store.get("upload")) == (None, "the user's")


@pytest.mark.parametrize("context", [{}, {"task_state_store": None}])
def test_without_a_state_store_there_is_no_checkpoint(context: Any) -> None:
    assert TaskCheckpoint.of(context) is None


class _DeadStore(StateStore):
    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("the supervisor is gone")

    def set(self, key: str, value: Any, retention: Any = None) -> None:
        raise ConnectionError("the supervisor is gone")

    def delete(self, key: str) -> None:
        raise ConnectionError("the supervisor is gone")


def test_a_dead_state_store_never_fails_a_push(modelstore: Path, source: Path, context: Any) -> None:
    (source / "big.bin").write_bytes(bytes(17 << 20))  # large enough to be remembered
    context["task_state_store"] = _DeadStore()

    pushed = PushModelOperator(task_id="push", model="digits", source=str(source)).execute(context)

    assert pushed["status"] == "ready"


def test_the_next_try_finds_the_hashes_of_the_last_one(modelstore: Path, source: Path, context: Any) -> None:
    (source / "big.bin").write_bytes(bytes(17 << 20))
    PushModelOperator(task_id="push", model="digits", source=str(source)).execute(context)

    (key,) = context["task_state_store"].values
    assert key.startswith("modelsync.")


def test_outlet_assets_learn_which_version_was_written(modelstore: Path, source: Path, context: Any) -> None:
    asset, alias = Asset("modelsync://modelsync_default/digits"), AssetAlias("digits")
    operator = PushModelOperator(task_id="push", model="digits:v1", source=str(source), outlets=[asset, alias])
    pushed = operator.execute(context)

    keys = ("registry", "name", "version", "digest", "created_at")
    assert context["outlet_events"][asset].extra == {key: pushed[key] for key in keys}
    assert context["outlet_events"][alias].extra == {}


@all_operators
def test_an_operator_needs_nothing_but_its_arguments_to_be_made(operator_class: type[RegistryOperator]) -> None:
    operator = operator_class(task_id="task", **ARGUMENTS[operator_class])

    assert operator.registry_conn_id == "modelsync_default"
    assert {name: getattr(operator, name) for name in ARGUMENTS[operator_class]} == ARGUMENTS[operator_class]


@all_operators
def test_every_text_argument_is_templated(operator_class: type[RegistryOperator]) -> None:
    assert set(operator_class.template_fields) >= {"registry_conn_id", *ARGUMENTS[operator_class]}

    with DAG("templates"):
        operator = operator_class(task_id="task", registry_conn_id="{{ name }}", **ARGUMENTS[operator_class])
    operator.render_template_fields({"name": "digits"})

    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    assert "{{" not in json.dumps(rendered)
    assert rendered["registry_conn_id"] == "digits"


@all_operators
def test_every_renderer_belongs_to_a_templated_field(operator_class: type[RegistryOperator]) -> None:
    assert set(operator_class.template_fields_renderers) <= set(operator_class.template_fields)


@all_operators
def test_an_operator_maps_over_its_arguments(operator_class: type[RegistryOperator]) -> None:
    argument, value = next(iter(ARGUMENTS[operator_class].items()))
    rest = {name: one for name, one in ARGUMENTS[operator_class].items() if name != argument}
    with DAG("mapped"):
        mapped = operator_class.partial(task_id="task", registry_conn_id="other", **rest).expand(
            **{argument: [value, "second"]}
        )
    assert isinstance(mapped, MappedOperator)

    operator = mapped.unmap({argument: "second"})

    assert isinstance(operator, operator_class)
    assert (getattr(operator, argument), operator.registry_conn_id) == ("second", "other")
    assert {name: getattr(operator, name) for name in rest} == rest


@pytest.mark.row("P5", of="tasks")
def test_a_task_killed_before_it_begins_does_nothing(modelstore: Path, source: Path, context: Any) -> None:
    operator = PushModelOperator(task_id="push", model="digits:v1", source=str(source))
    operator.on_kill()
    operator.on_kill()

    with pytest.raises(AirflowException, match="told to stop") as stopped:
        operator.execute(context)
    assert not isinstance(stopped.value, AirflowFailException)
    assert not modelstore.exists()


@all_operators
@pytest.mark.row("P5", of="tasks")
def test_a_finished_task_may_be_killed(operator_class: type[RegistryOperator]) -> None:
    operator = operator_class(task_id="task", **ARGUMENTS[operator_class])

    operator.on_kill()
    operator.on_kill()

    assert operator._cancel_token.cancelled


def test_a_wait_for_readiness_ends_when_the_task_is_killed(script: Script, source: Path, context: Any) -> None:
    script.write(["converting"])
    operator = PushModelOperator(
        task_id="push", registry_conn_id="scripted", model="digits:v1", source=str(source), poll_interval=60
    )
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        operator.on_kill()

    timer = threading.Timer(0.5, kill)
    timer.start()
    with pytest.raises(AirflowException, match="told to stop"):
        operator.execute(context)
    timer.join()

    assert time.monotonic() - killed_at[0] < KILL_LIMIT


def _kill_in_the_middle(operator: str, watched: Path, arguments: dict[str, Any], how: str = "kill") -> dict[str, Any]:
    """Run an operator in a process that is ended at the first byte it writes; return what became of it."""
    process = subprocess.run(
        (sys.executable, "-m", "tests.support.killed_task", operator, str(watched), json.dumps(arguments), how),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    told: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    assert told["took"] is not None, f"the transfer never began: {told}"
    assert told["took"] < KILL_LIMIT
    return told


@pytest.mark.parametrize(
    ("context", "advice"),
    [
        ({"task_state_store": StateStore()}, "Clear the task to go on from 66 %"),
        ({}, "Clear the task to do it again"),  # nothing is remembered
    ],
)
def test_a_killed_push_says_who_stopped_it_and_how_to_go_on(
    tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture, context: dict[str, Any], advice: str
) -> None:
    source = write_tree(tmp_path / "source", {"weights.bin": bytes(3 * PART - 10_000)})
    with BentoCloudStandIn(tmp_path / "cloud", transmission_strategy="presigned_url") as server:
        connect(
            "cloud",
            conn_type="bentocloud",
            host=server.url,
            password=server.token,
            extra={"max_workers": 1, "part_size_mib": PART >> 20},
        )
        server.fault("PUT", ".*", Delay(30), part=3)
        operator = PushModelOperator(
            task_id="push", registry_conn_id="cloud", model="digits:v1", source=str(source), retries=0
        )

        def kill() -> None:
            until(lambda: server.count("PUT", part=3), "the last part")
            operator.on_kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(AirflowException):
            operator.execute({"outlet_events": {}, **context})
        killer.join()

    assert "stopped by Airflow (marked failed, cleared, or worker shutdown)" in caplog.text
    assert re.search(rf"what to do: +{re.escape(advice)}$", caplog.text, re.MULTILINE)


def _files_below(directory: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def big_source(tmp_path: Path) -> Path:
    directory = tmp_path / "big"
    directory.mkdir()
    with (directory / "big.bin").open("wb") as file:
        file.truncate(BIG)
    return directory


@pytest.mark.slow
@pytest.mark.row("P4", of="directory")
def test_a_killed_push_ends_in_time_and_leaves_nothing_in_the_store(modelstore: Path, big_source: Path) -> None:
    told = _kill_in_the_middle("PushModelOperator", modelstore, {"model": "digits:v1", "source": str(big_source)})

    assert told["outcome"].startswith("AirflowException: the work was told to stop")
    assert all(path.endswith(".closed") for path in _files_below(modelstore))  # a note that what was begun is over
    assert ModelStoreHook("modelsync_default").list_versions("digits") == []


@pytest.mark.slow
@pytest.mark.row("P4", of="directory")
def test_a_killed_pull_ends_in_time_and_leaves_the_old_target(
    modelstore: Path, big_source: Path, source: Path, tmp_path: Path
) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(big_source, "digits:v1")
    parent = tmp_path / "pulled"
    target = Path(hook.pull(hook.push(source, "digits:old").ref, parent / "target").path or "")

    told = _kill_in_the_middle(
        "PullModelOperator", parent, {"model": "digits:v1", "target": str(target), "force": True}
    )

    assert told["outcome"].startswith("AirflowException: the work was told to stop")
    assert digest_directory(target) == digest_directory(source)
    assert {path.name for path in parent.iterdir()} == {"target", ".target.modelsync"}  # and whose it is


@pytest.mark.slow
@pytest.mark.row("P6", of="tasks")
def test_a_push_that_runs_out_of_time_leaves_nothing_in_the_store(modelstore: Path, big_source: Path) -> None:
    arguments = {"model": "digits:v1", "source": str(big_source)}
    told = _kill_in_the_middle("PushModelOperator", modelstore, arguments, "timeout")

    assert told["outcome"].startswith("AirflowTaskTimeout")
    assert ModelStoreHook("modelsync_default").list_versions("digits") == []
    assert ModelStoreHook("modelsync_default").push(big_source, "digits:v1").ready
    assert len([path for path in _files_below(modelstore) if path.endswith(".bin")]) == 1


@pytest.mark.slow
@pytest.mark.row("P6", of="tasks")
def test_a_pull_that_runs_out_of_time_leaves_the_old_target(
    modelstore: Path, big_source: Path, source: Path, tmp_path: Path
) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(big_source, "digits:v1")
    parent = tmp_path / "pulled"
    target = Path(hook.pull(hook.push(source, "digits:old").ref, parent / "target").path or "")
    arguments = {"model": "digits:v1", "target": str(target), "force": True}
    told = _kill_in_the_middle("PullModelOperator", parent, arguments, "timeout")

    assert told["outcome"].startswith("AirflowTaskTimeout")
    assert digest_directory(target) == digest_directory(source)
    assert {path.name for path in parent.iterdir()} == {"target", ".target.modelsync"}

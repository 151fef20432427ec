"""Wallaroo's hook: its verbs through an Airflow connection, conversions waited for, no secrets shown."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import AirflowFailException, TaskDeferred
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput, NotSupported
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.hooks.registry import aget_registry_hook, get_registry_hook
from airflow_provider_modelsync.hooks.wallaroo import WallarooHook
from airflow_provider_modelsync.operators.catalog import DeleteModelOperator, ListModelsOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from airflow_provider_modelsync.triggers import model as triggers
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from tests.conftest import Connect
from tests.standins.http_server import Respond
from tests.standins.wallaroo import WallarooStandIn
from tests.support.versions import masker

CONNECTION = {"registry_conn_id": "wallaroo_default"}
ONNX = {"framework": "onnx"}
SUMMARY = "Could not pip install user provided requirements.txt"
LOGS = ["2026-01-01T00:00:02Z stderr F no such package: nunpy", "2026-01-01T00:00:01Z stdout F building"]
VERSION = "/models/(get_version_by_id|list_versions_for_model)$"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries and looks follow each other at once."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    with WallarooStandIn(tmp_path / "server") as server:
        server.conversion = ["ready"]
        server.add_workspace("digits-team")
        yield server


@pytest.fixture
def hook(server: WallarooStandIn, connect: Connect) -> WallarooHook:
    connect(
        "wallaroo_default",
        conn_type="wallaroo",
        host=server.url,
        login=server.username,
        password=server.password,
        extra={
            "workspace": "digits-team",
            "client_secret": server.client_secret,
            # as the form stores what was left empty
            "create_workspace": None,
            "auth_url": "",
            "realm": None,
            "grant_type": None,
            "refresh_token": "",
        },
    )
    return WallarooHook()


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    (tmp_path / "digits.onnx").write_bytes(b"weights" * 1000)
    return tmp_path / "digits.onnx"


def test_a_pushed_model_is_listed_and_deleted(hook: WallarooHook, onnx: Path) -> None:
    pushed = hook.push(onnx, "digits", options=ONNX)
    assert pushed.digest == digest_directory(onnx)
    assert hook.get("digits").ref == hook.list_models()[0].ref == hook.list_versions("digits")[0].ref == pushed.ref
    assert [hook.delete(pushed.ref), hook.delete(pushed.ref)] == [True, False]


def test_configuration_and_logs_are_reached_by_the_versions_uuid(
    hook: WallarooHook, server: WallarooStandIn, onnx: Path
) -> None:
    server.script_conversion("digits", ["ready"], logs=LOGS)
    pushed = hook.push(onnx, "digits", options=ONNX)
    assert hook.get_config(pushed.ref)["runtime"] == "onnx"
    assert hook.insert_config(pushed.ref, {"tensor_fields": ["x"]})["tensor_fields"] == ["x"]
    assert hook.get_config("digits")["tensor_fields"] == ["x"]
    assert hook.upload_logs(pushed.ref) == sorted(LOGS)


def test_an_image_is_registered(hook: WallarooHook, server: WallarooStandIn) -> None:
    made = hook.register_image("digits", "example.com/team/model:1")
    assert server.versions_of("digits")[0].uuid == made.version


def test_errors_name_model_and_connection(hook: WallarooHook, onnx: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        hook.push(onnx, "digits", options={"framework": "onyx"})
    assert (caught.value.model, caught.value.connection) == ("digits", "wallaroo_default")


def test_the_generic_lookup_finds_this_hook(hook: WallarooHook) -> None:
    assert type(get_registry_hook("wallaroo_default")) is WallarooHook


def test_a_good_connection_names_user_and_workspace(hook: WallarooHook, server: WallarooStandIn) -> None:
    good, message = hook.test_connection()
    assert good
    assert server.username in message
    assert "digits-team" in message


def test_a_wrong_password_is_tried_once_and_not_shown(
    hook: WallarooHook, server: WallarooStandIn, connect: Connect
) -> None:
    fields = {"host": server.url, "login": server.username, "password": "canary-password"}
    connect("wallaroo_default", conn_type="wallaroo", **fields)
    for _ in range(2):
        good, message = WallarooHook().test_connection()
        assert not good
        assert "Invalid user credentials" in message
        assert "canary-password" not in message
    assert server.count("POST", "/token$") == 1


def test_every_token_is_masked_in_airflows_logs(hook: WallarooHook, server: WallarooStandIn) -> None:
    hook.list_models()
    (token,) = server.access_tokens
    assert token not in str(masker._secrets_masker().redact(f"said {token} here"))


async def test_the_event_loop_sees_what_workers_see(hook: WallarooHook, onnx: Path) -> None:
    pushed = await asyncio.to_thread(hook.push, onnx, "digits", options=ONNX)
    found = await (await aget_registry_hook("wallaroo_default")).arun(
        lambda registry: registry.read_version("digits", pushed.version)
    )
    assert found == pushed.model_copy(update={"transfer": None})


# ---- waiting for the conversion -----------------------------------------------------------------------------------


def push_task(onnx: Path, **arguments: Any) -> PushModelOperator:
    arguments = {"poll_interval": 0.01, "options": ONNX, **arguments}
    return PushModelOperator(task_id="push", model="digits", source=str(onnx), **CONNECTION, **arguments)


def push_here(onnx: Path, context: Any) -> Any:
    return push_task(onnx).execute(context)


def push_deferred(onnx: Path, context: Any) -> Any:
    task = push_task(onnx, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    return task.execute_complete(context, _fired(deferred.value.trigger), **(deferred.value.kwargs or {}))


def sense(onnx: Path, context: Any) -> Any:
    ref = push_task(onnx, wait_for_ready=False).execute(context)["ref"]
    return ModelVersionSensor(task_id="wait", model=str(ref), poke_interval=0.01, **CONNECTION).execute(context)


def sense_deferred(onnx: Path, context: Any) -> Any:
    ref = push_task(onnx, wait_for_ready=False).execute(context)["ref"]
    sensor = ModelVersionSensor(task_id="wait", model=str(ref), deferrable=True, **CONNECTION)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    return sensor.execute_complete(context, _fired(deferred.value.trigger))


def _fired(trigger: Any) -> Any:
    async def wait() -> list[Any]:
        fields = {**trigger.serialize()[1], "poll_interval": 0.01, "deadline": time.time() + 300}
        return [event.payload async for event in ModelVersionTrigger(**fields).run()]

    (event,) = asyncio.run(wait())
    return event


each_wait = pytest.mark.parametrize("wait", [push_here, push_deferred, sense, sense_deferred])
Wait = Callable[[Path, Any], Any]


@each_wait
def test_one_503_in_the_middle_of_a_wait_does_not_fail_it(
    hook: WallarooHook, server: WallarooStandIn, onnx: Path, context: Any, wait: Wait
) -> None:
    server.conversion = ["pending_load_container"] * 4 + ["attempting_load_container", "ready"]
    server.fault("POST", VERSION, Respond(503), nth=4, times=5)  # as often as one call is tried
    assert wait(onnx, context)["status"] == "ready"
    assert [request.status for request in server.find("POST", VERSION)].count(503) == 5


@each_wait
def test_a_failed_conversion_fails_the_task_with_the_reason_and_the_end_of_the_logs(
    hook: WallarooHook, server: WallarooStandIn, onnx: Path, context: Any, wait: Wait
) -> None:
    statuses = ["pending_load_container"] * 4 + ["error"]
    server.script_conversion("digits", statuses, error_summary=SUMMARY, logs=LOGS)
    with pytest.raises(AirflowFailException) as caught:
        wait(onnx, context)
    assert SUMMARY in str(caught.value)
    assert "no such package: nunpy" in str(caught.value)


# ---- operators ------------------------------------------------------------------------------------------------------


def test_a_pull_task_says_where_to_read_from_instead(hook: WallarooHook, onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="SyncModelsOperator"):
        hook.pull("digits", tmp_path / "pulled")
    task = PullModelOperator(task_id="pull", model="digits", target=str(tmp_path / "pulled"), **CONNECTION)
    with pytest.raises(AirflowFailException, match="gives no artifact back"):
        task.execute({})


def test_no_task_shows_a_secret(
    hook: WallarooHook,
    server: WallarooStandIn,
    onnx: Path,
    context: Any,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server.conversion = ["pending_load_container"] * 3 + ["ready"]
    task = push_task(onnx, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    event = _fired(deferred.value.trigger)
    pushed = task.execute_complete(context, event, **(deferred.value.kwargs or {}))
    listed = ListModelsOperator(task_id="list", **CONNECTION).execute(context)
    secrets = {server.password, server.client_secret, *server.access_tokens, *server.refresh_tokens}
    server.fault("POST", "/delete_model_versions$", Respond(403, {"msg": f"{server.password} may not"}))
    with pytest.raises(AirflowFailException, match="may not") as refused:
        DeleteModelOperator(task_id="delete", model=str(pushed["ref"]), **CONNECTION).execute(context)
    waited = [deferred.value.trigger.serialize(), deferred.value.kwargs]
    state = json.dumps(context["task_state_store"].values)
    shown = f"{waited!r} {event} {pushed} {listed} {refused.value!r} {state} {caplog.text} {capfd.readouterr()}"
    assert len(secrets) > 3
    for secret in secrets:
        assert secret not in shown

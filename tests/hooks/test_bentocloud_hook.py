"""BentoCloud's hook: every verb through an Airflow connection, waiting on the event loop, and no token anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import AirflowFailException, TaskDeferred
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, ModelNotFound, Unauthorized, VersionConflict
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.registry import aget_registry_hook, get_registry_hook
from airflow_provider_modelsync.operators.catalog import DeleteModelOperator, ListModelsOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.triggers import model as triggers
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Respond, Rewrite

VERSION = "/models/v1$"
STRATEGIES = ["proxy", None, "presigned_url"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries and looks follow each other at once."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def hook(server: BentoCloudStandIn, connect: Connect) -> BentoCloudHook:
    connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.token)
    return BentoCloudHook()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pushed_model_comes_back(
    hook: BentoCloudHook, server: BentoCloudStandIn, source: Path, tmp_path: Path, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    pushed = hook.push(source, "digits:v1", labels={"stage": "dev"}, metadata={"acc": 0.5})
    pulled = hook.pull("digits", tmp_path / "pulled", labels={"stage": "dev"})

    assert pulled.path == tmp_path / "pulled"
    assert digest_directory(tmp_path / "pulled") == pushed.digest == digest_directory(source)
    assert (pulled.version.labels, pulled.version.metadata) == ({"stage": "dev"}, {"acc": 0.5})


def test_a_second_push_is_skipped(hook: BentoCloudHook, source: Path) -> None:
    versions = [hook.push(source, "digits") for _ in range(2)]

    assert [version.transfer.skipped for version in versions if version.transfer] == [False, True]


def test_get_and_lists_show_the_version(hook: BentoCloudHook, source: Path) -> None:
    hook.push(source, "digits:v1", labels={"stage": "dev"})
    hook.push(source / "weights.bin", "digits:v2")

    assert hook.get("digits").version == hook.get("digits:latest").version == "v2"
    assert hook.get("digits", query="label:stage=dev").version == "v1"
    assert [version.version for version in hook.list_versions("digits")] == ["v2", "v1"]
    assert [version.ref for version in hook.list_models()] == ["digits:v2"]
    assert [version.ref for version in hook.list_models("label:stage")] == ["digits:v1"]


def test_labels_are_merged_and_removed(hook: BentoCloudHook, source: Path) -> None:
    hook.push(source, "digits:v1", labels={"stage": "dev", "team": "nlp"})

    assert hook.set_labels("digits:v1", {"stage": "prod", "team": None}).labels == {"stage": "prod"}


def test_delete_says_whether_the_version_was_there(hook: BentoCloudHook, source: Path) -> None:
    hook.push(source, "digits:v1")

    assert [hook.delete("digits:v1"), hook.delete("digits:v1")] == [True, False]


def test_one_call_may_use_other_threads_and_parts_than_the_connection(
    hook: BentoCloudHook, server: BentoCloudStandIn, tmp_path: Path
) -> None:
    server.transmission_strategy = "presigned_url"
    model = tmp_path / "weights.bin"
    model.write_bytes(bytes(range(256)) * (12 << 12))  # 12 MiB
    hook.push(model, "digits:v1", threads=1, part_size_mib="5")
    assert [request.part for request in server.find("PUT")] == [1, 2, 3]

    server.requests.clear()
    hook.pull("digits:v1", tmp_path / "pulled", threads=2, part_size_mib=6)
    ranges = sorted(request.headers["range"] for request in server.find("GET") if "range" in request.headers)
    sizes = [int(last) + 1 - int(first) for first, last in (one.removeprefix("bytes=").split("-") for one in ranges)]
    assert sizes.count(6 << 20) == 2
    assert digest_directory(tmp_path / "pulled") == hook.get("digits:v1").digest

    for wrong in ({"threads": 65}, {"part_size_mib": 4}):
        with pytest.raises(InvalidInput, match="a number from") as refused:
            hook.push(model, "digits:v2", **wrong)
        assert refused.value.argument in wrong


def test_a_repository_has_a_description_and_labels(hook: BentoCloudHook, source: Path) -> None:
    options = {"repository_description": "reads digits", "repository_labels": {"team": "vision", "stage": "dev"}}
    hook.push(source, "digits:v1", options=options)
    assert {key: hook.get_repository("digits")[key] for key in ("name", "description", "labels", "creator")} == {
        "name": "digits",
        "description": "reads digits",
        "labels": {"team": "vision", "stage": "dev"},
        "creator": "ci",
    }

    hook.push(source, "digits:v1", options={"repository_labels": {"stage": "prod"}})
    assert hook.get_repository("digits")["labels"] == {"team": "vision", "stage": "prod"}
    changed = hook.update_repository("digits", description="reads all digits", labels={"team": None})
    assert (changed["description"], changed["labels"]) == ("reads all digits", {"stage": "prod"})
    assert hook.get_repository("digits") == changed
    with pytest.raises(ModelNotFound):
        hook.update_repository("absent", description="x")


def test_what_a_repository_says_already_is_not_sent(
    hook: BentoCloudHook, server: BentoCloudStandIn, source: Path
) -> None:
    hook.push(source, "digits:v1", options={"repository_description": "reads digits"})
    server.requests.clear()
    hook.push(source, "digits:v1", options={"repository_description": "reads digits"})
    hook.update_repository("digits", description="reads digits", labels={"absent": None})

    assert server.count("PATCH") == 0


def test_all_versions_are_listed_on_request(hook: BentoCloudHook, source: Path) -> None:
    for version in ("v1", "v2"):
        hook.push(source, f"digits:{version}")

    assert [version.ref for version in hook.list_models(all_versions=True)] == ["digits:v2", "digits:v1"]
    assert [version.ref for version in hook.list_models("sort:created_at-asc", all_versions="yes")] == [
        "digits:v1",
        "digits:v2",
    ]


def test_errors_name_model_and_connection(hook: BentoCloudHook, source: Path) -> None:
    hook.push(source, "digits:v1")

    with pytest.raises(ModelNotFound) as missing:
        hook.get("absent:v1")
    with pytest.raises(VersionConflict) as conflict:
        hook.push(source / "weights.bin", "digits:v1")
    assert (missing.value.model, missing.value.connection) == ("absent:v1", "bentocloud_default")
    assert (conflict.value.model, conflict.value.connection) == ("digits:v1", "bentocloud_default")


def test_the_generic_lookup_finds_this_hook(hook: BentoCloudHook) -> None:
    assert type(get_registry_hook("bentocloud_default")) is BentoCloudHook


def test_refused_credentials_are_looked_up_once_more(
    hook: BentoCloudHook, server: BentoCloudStandIn, source: Path, connect: Connect
) -> None:
    """A task may poke for longer than a token is valid."""
    hook.push(source, "digits:v1")
    good = server.token
    connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.expired_token)
    waiting = BentoCloudHook()
    with pytest.raises(Unauthorized):
        waiting.get("digits:v1")
    connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=good)

    assert waiting.get("digits:v1").ready


def test_a_cancelled_hook_sends_nothing(hook: BentoCloudHook, server: BentoCloudStandIn, source: Path) -> None:
    hook.cancel()

    with pytest.raises(Cancelled):
        hook.push(source, "digits:v1")
    assert server.count() == 0


# ---- the connection test ----------------------------------------------------------------------------------------


def test_a_good_connection_names_user_and_organisation(hook: BentoCloudHook, server: BentoCloudStandIn) -> None:
    good, message = hook.test_connection()

    assert good
    assert "ci" in message
    assert "acme" in message
    assert server.token not in message


@pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
def test_a_refused_token_is_not_shown(
    hook: BentoCloudHook, server: BentoCloudStandIn, connect: Connect, dialect: Any
) -> None:
    server.dialect = dialect
    connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.expired_token)

    good, message = hook.test_connection()

    assert not good
    assert "expired" in message.replace(server.expired_token, "")
    assert server.expired_token not in message


def test_an_unreachable_server_is_named_without_the_token(hook: BentoCloudHook, connect: Connect) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        connect("bentocloud_default", conn_type="bentocloud", host=url, password="canary-5d0c7a11")

        good, message = hook.test_connection()

    assert not good
    assert url in message
    assert "canary-5d0c7a11" not in message


def test_a_connection_without_a_token_says_which_field_is_missing(hook: BentoCloudHook, connect: Connect) -> None:
    connect("bentocloud_default", conn_type="bentocloud")

    good, message = hook.test_connection()

    assert (good, "password" in message) == (False, True)


# ---- on the event loop ------------------------------------------------------------------------------------------


async def test_the_event_loop_sees_what_workers_see(hook: BentoCloudHook, source: Path) -> None:
    pushed = await asyncio.to_thread(hook.push, source, "digits:v1")
    found = await (await aget_registry_hook("bentocloud_default")).arun(
        lambda registry: registry.read_version("digits", "v1")
    )

    assert found == pushed.model_copy(update={"transfer": None})


async def test_the_event_loop_gets_the_same_errors(
    hook: BentoCloudHook, server: BentoCloudStandIn, connect: Connect
) -> None:
    with pytest.raises(ModelNotFound) as missing:
        await hook.arun(lambda registry: registry.get(registry.parse("absent")), model="absent")
    connect("other", conn_type="bentocloud", host=server.url, password="wrong-token")
    with pytest.raises(Unauthorized) as refused:
        await BentoCloudHook("other").arun(lambda registry: registry.test())

    assert (missing.value.model, missing.value.connection) == ("absent", "bentocloud_default")
    assert refused.value.connection == "other"
    assert "wrong-token" not in str(refused.value)


async def outcome(model: str = "digits:v1", seconds: float = 300) -> dict[str, Any]:
    """What a trigger that waits for a version says in the end."""
    trigger = ModelVersionTrigger("bentocloud_default", model, deadline=time.time() + seconds, poll_interval=0.02)
    events = [event async for event in trigger.run()]
    (event,) = events
    payload: dict[str, Any] = event.payload
    return payload


async def test_a_trigger_waits_until_the_version_is_ready(hook: BentoCloudHook, server: BentoCloudStandIn) -> None:
    server.seed("digits", "v1")
    server.script_status("digits", "v1", ["uploading", "uploading", "success"])

    event = await outcome()

    assert (event["status"], event["ref"]) == ("success", "digits:v1")
    assert [(request.method, request.status) for request in server.requests] == [("GET", 200)] * 3


async def test_a_trigger_waits_for_a_model_that_is_not_there_yet(
    hook: BentoCloudHook, server: BentoCloudStandIn
) -> None:
    def publish(answer: dict[str, Any]) -> dict[str, Any]:
        server.seed("digits", "v1")
        return answer

    server.fault("GET", "/models$", Rewrite(publish), nth=2)

    assert (await outcome("digits"))["ref"] == "digits:v1"
    assert server.count("GET", "/models$") == 3


async def test_a_trigger_ends_when_the_version_fails(hook: BentoCloudHook, server: BentoCloudStandIn) -> None:
    server.seed("digits", "v1")
    server.script_status("digits", "v1", ["uploading", "failed"])

    event = await outcome()

    assert (event["status"], event["permanent"]) == ("failed", True)


async def test_a_trigger_goes_on_over_passing_faults(hook: BentoCloudHook, server: BentoCloudStandIn) -> None:
    server.seed("digits", "v1")
    server.fault("GET", VERSION, Respond(503), times=7)

    assert (await outcome())["status"] == "success"
    assert server.count("GET", VERSION) == 8


async def test_a_trigger_ends_when_its_token_is_refused(
    hook: BentoCloudHook, server: BentoCloudStandIn, connect: Connect
) -> None:
    connect("bentocloud_default", conn_type="bentocloud", host=server.url, password="wrong-token")

    event = await outcome()

    assert (event["status"], event["permanent"]) == ("failed", True)
    assert "wrong-token" not in json.dumps(event)


async def test_a_trigger_says_when_the_time_is_over(hook: BentoCloudHook, server: BentoCloudStandIn) -> None:
    server.seed("digits", "v1", status="uploading")

    assert (await outcome(seconds=0.2))["status"] == "timeout"
    assert {request.method for request in server.requests} == {"GET"}


# ---- operators --------------------------------------------------------------------------------------------------


def push_task(source: Path, **arguments: Any) -> PushModelOperator:
    """Return a push of ``digits:v1``."""
    fields: dict[str, Any] = {"registry_conn_id": "bentocloud_default", "model": "digits:v1", "source": str(source)}
    return PushModelOperator(task_id="push", **fields, **arguments)


def scripted(server: BentoCloudStandIn, words: list[str]) -> None:
    """Let the reads after a push's registration show these states, one after the other; the last one stays."""
    rest = list(words)

    def show(answer: dict[str, Any]) -> dict[str, Any]:
        if answer.get("upload_status") == "success":
            return {**answer, "upload_status": rest.pop(0) if len(rest) > 1 else rest[0]}
        return answer

    server.fault("GET", VERSION, Rewrite(show), times=None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_task_pushes_waits_and_pulls(
    hook: BentoCloudHook, server: BentoCloudStandIn, source: Path, tmp_path: Path, context: Any, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    scripted(server, ["uploading", "uploading", "success"])
    pushed = push_task(source, poll_interval=0.01).execute(context)
    pull = PullModelOperator(
        task_id="pull", registry_conn_id="bentocloud_default", model=str(pushed["ref"]), target=str(tmp_path / "pulled")
    )
    pulled = pull.execute(context)

    assert (pushed["status"], pulled["digest"]) == ("ready", pushed["digest"])
    assert digest_directory(tmp_path / "pulled") == digest_directory(source)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_task_shows_the_token(
    hook: BentoCloudHook,
    server: BentoCloudStandIn,
    source: Path,
    tmp_path: Path,
    context: Any,
    strategy: str | None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server.transmission_strategy = strategy
    scripted(server, ["uploading", "uploading", "success"])
    push = push_task(source, deferrable=True, labels={"stage": "dev"})

    with pytest.raises(TaskDeferred) as deferred:
        push.execute(context)
    trigger = deferred.value.trigger
    waited = [trigger.serialize(), deferred.value.kwargs, deferred.value.method_name]

    async def wait() -> list[Any]:
        waiting = ModelVersionTrigger(**{**trigger.serialize()[1], "poll_interval": 0.01})
        return [event.payload async for event in waiting.run()]

    (event,) = asyncio.run(wait())
    pushed = push.execute_complete(context, event, **(deferred.value.kwargs or {}))
    connection: dict[str, Any] = {"registry_conn_id": "bentocloud_default"}
    pulled = PullModelOperator(task_id="pull", model="digits", target=str(tmp_path / "p"), **connection).execute(
        context
    )
    listed = ListModelsOperator(task_id="list", **connection).execute(context)
    server.fault("DELETE", VERSION, Respond(403, {"message": f"{server.token} may not"}))
    with pytest.raises(AirflowFailException) as refused:
        DeleteModelOperator(task_id="delete", model="digits:v1", **connection).execute(context)

    printed = capfd.readouterr()
    state = context["task_state_store"].values
    shown = f"{waited!r} {event} {pushed} {pulled} {listed} {refused.value!r} {state} {caplog.text} {printed}"
    signatures = {request.query["X-Amz-Signature"] for request in server.requests if request.origin == "store"}
    assert event["status"] == "success"
    assert "may not" in str(refused.value)
    assert (strategy == "proxy") == (not signatures)
    for secret in {server.token, *signatures}:
        assert secret not in shown

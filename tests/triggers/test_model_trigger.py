"""The trigger behind deferred waits: one event, then the end; nothing that blocks the triggerer."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_modelsync.compat import AirflowNotFoundException, BaseHook
from airflow_provider_modelsync.core.errors import ModelSyncError, NotReady, Permanent, RegistryUnavailable
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.triggers import model as triggers
from airflow_provider_modelsync.triggers import polling
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from tests.conftest import Connect
from tests.support.scripted import Script
from tests.support.until import until
from tests.support.versions import deserialize, refuse_to_block, serialize

CANARY = "canary-4f1c0de5"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)


@pytest.fixture
def pushed(script: Script, source: Path) -> None:
    get_registry_hook("scripted").push(source, "digits:v1")


def trigger(**arguments: Any) -> ModelVersionTrigger:
    """Return a trigger that looks often."""
    defaults = {"registry_conn_id": "scripted", "model": "digits:v1", "deadline": time.time() + 60}
    return ModelVersionTrigger(**{**defaults, "poll_interval": 0.01, **arguments})


async def events_of(waiting: ModelVersionTrigger) -> list[dict[str, Any]]:
    """Run a trigger to its end and return all that it fired."""
    async with asyncio.timeout(300):
        return [event.payload async for event in waiting.run()]


async def test_fires_once_when_the_version_is_ready_and_ends(pushed: None, script: Script) -> None:
    script.write(["converting", "converting", "ready"])

    (event,) = await events_of(trigger())

    assert (event["status"], event["ref"], outcome_of(event)) == ("success", "digits:v1", "digits:v1")
    assert script.rest == ["ready"]


async def test_each_state_is_told_once(pushed: None, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.write(["converting", "converting", "unavailable", "uploading", "uploading", "ready"])
    capsys.readouterr()

    await events_of(trigger(poll_interval=0.1))

    told = re.findall(r"is \w+(?= since)|the wait goes on|waiting up to .* longer", capsys.readouterr().out)
    assert [word for word in told if not word.startswith("waiting")] == [
        "is converting",
        "the wait goes on",
        "is uploading",
    ]
    assert sum(word.startswith("waiting") for word in told) == 2


async def test_a_model_that_does_not_exist_is_waited_for(script: Script, source: Path) -> None:
    waiting = asyncio.create_task(events_of(trigger(model="digits")))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(get_registry_hook("scripted").push, source, "digits:v1")

    (event,) = await waiting

    assert event["ref"] == "digits:v1"


async def test_the_first_look_comes_after_a_whole_interval(pushed: None, script: Script) -> None:
    script.write(["ready", "ready"])
    waiting = asyncio.create_task(events_of(trigger(poll_interval=1.0)))
    await asyncio.sleep(0.1)

    assert script.rest == ["ready", "ready"]
    assert (await waiting)[0]["status"] == "success"
    assert script.rest == ["ready"]


def test_no_interval_is_shorter_than_the_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    assert trigger(poll_interval=0).poll_interval >= 5.0
    assert trigger(poll_interval=60).poll_interval == 60


async def test_a_deadline_in_the_past_gets_one_last_look(pushed: None, script: Script) -> None:
    script.write(["converting", "ready"])
    (missed,) = await events_of(trigger(deadline=0.0, poll_interval=60))
    (found,) = await events_of(trigger(deadline=0.0, poll_interval=60))

    assert (missed["status"], found["status"]) == ("timeout", "success")


@pytest.mark.row("P10", "S1", of="tasks")
async def test_gives_up_at_the_deadline(pushed: None, script: Script) -> None:
    script.write(["converting"])

    (event,) = await events_of(trigger(deadline=time.time() + 0.1))

    assert event["status"] == "timeout"
    assert "digits:v1 is converting" in event["message"]
    with pytest.raises(NotReady):
        outcome_of(event)


@pytest.mark.row("S3", of="tasks")
async def test_passing_faults_do_not_end_the_wait(pushed: None, script: Script) -> None:
    script.write(["unavailable", "unavailable", "converting", "unavailable", "ready"])

    (event,) = await events_of(trigger())

    assert event["status"] == "success"


async def test_a_timeout_tells_the_fault_that_was_last(pushed: None, script: Script) -> None:
    script.write(["unavailable"])

    (event,) = await events_of(trigger(deadline=time.time() + 0.1))

    assert event["status"] == "timeout"
    assert "503" in event["message"]


@pytest.mark.parametrize(
    ("word", "named", "permanent"),
    [
        ("failed", "VersionFailed", True),
        ("unauthorized", "Unauthorized", True),
        ("broken", "ZeroDivisionError", False),
    ],
)
@pytest.mark.row("P11", of="tasks")
async def test_other_faults_end_the_wait(pushed: None, script: Script, word: str, named: str, permanent: bool) -> None:
    script.write([word, "ready"])

    (event,) = await events_of(trigger())

    assert event["status"] == "failed"
    with pytest.raises(ModelSyncError) as raised:
        outcome_of(event)
    assert named in (type(raised.value).__name__, *event["message"].split(": "))
    assert isinstance(raised.value, Permanent) is permanent


async def test_a_connection_that_cannot_be_looked_up_is_waited_for(
    pushed: None, script: Script, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow does not tell a secrets backend in trouble from a connection that does not exist."""
    script.write(["ready"])
    known = polling.aget_registry_hook
    asked: list[str] = []

    async def now_and_then(conn_id: str) -> Any:
        asked.append(conn_id)
        if len(asked) < 3:
            raise AirflowNotFoundException(f"the connection {conn_id!r} is not defined")
        return await known(conn_id)

    monkeypatch.setattr(polling, "aget_registry_hook", now_and_then)
    (event,) = await events_of(trigger())

    assert event["status"] == "success"
    assert len(asked) == 3


async def test_a_connection_that_is_never_there_is_told_when_the_time_is_over() -> None:
    (event,) = await events_of(trigger(registry_conn_id="nowhere", deadline=time.time() + 0.3))

    assert event["status"] == "timeout"
    assert "nowhere" in event["message"]


async def test_a_connection_of_another_type_ends_the_wait_for_good(connect: Connect) -> None:
    connect("web", conn_type="http", host="https://models.example")

    (event,) = await events_of(trigger(registry_conn_id="web"))

    assert (event["status"], event["permanent"]) == ("failed", True)


async def test_every_event_is_plain_json(pushed: None, script: Script) -> None:
    for words in (["ready"], ["failed"], ["broken"]):
        script.write(words)
        (event,) = await events_of(trigger())
        assert json.loads(json.dumps(event)) == event


async def test_labels_and_newer_than_are_looked_at(modelstore: Path, source: Path) -> None:
    hook = get_registry_hook("modelsync_default")
    hook.push(source, "digits:v1", labels={"stage": "production"})
    arguments = {"registry_conn_id": "modelsync_default", "model": "digits", "deadline": 0.0}

    (found,) = await events_of(trigger(labels={"stage": "production"}, **arguments))
    (other_label,) = await events_of(trigger(labels={"stage": "archived"}, **arguments))
    (not_newer,) = await events_of(trigger(newer_than="v1", **arguments))

    assert [event["status"] for event in (found, other_label, not_newer)] == ["success", "timeout", "timeout"]


def test_a_stored_trigger_is_rebuilt_equal() -> None:
    before = trigger(labels={"stage": "production"}, newer_than="v1", poll_interval=7.5)
    path, arguments = before.serialize()

    again = resolve_name(path)(**deserialize(serialize(arguments)))

    assert type(again) is ModelVersionTrigger
    assert again.serialize() == (path, arguments)
    assert set(arguments) == {name for name in vars(before) if name in ModelVersionTrigger.__init__.__annotations__}


def test_the_stored_trigger_holds_no_secret(connect: Connect, tmp_path: Path) -> None:
    host = (tmp_path / "store").as_uri()
    connect("secretive", conn_type="modelstore", host=host, password=CANARY, extra={"session_token": CANARY})

    assert CANARY not in json.dumps(trigger(registry_conn_id="secretive").serialize())


@pytest.mark.row("P7", of="tasks")
async def test_a_rebuilt_trigger_takes_the_wait_up(pushed: None, script: Script) -> None:
    script.write(["converting"])
    before = trigger(deadline=time.time() + 30)
    abandoned = asyncio.create_task(events_of(before))
    await asyncio.sleep(0.1)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    script.write(["ready"])

    (event,) = await events_of(ModelVersionTrigger(**before.serialize()[1]))

    assert event["ref"] == "digits:v1"


async def test_a_slow_registry_does_not_block_the_loop(pushed: None, script: Script) -> None:
    script.write(["held"])
    waiting = asyncio.create_task(events_of(trigger()))
    await asyncio.to_thread(until, lambda: script.holds, "a look")
    script.write(["ready"])  # which only the loop does

    (event,) = await waiting
    assert event["status"] == "success"


@pytest.mark.row("P12", of="tasks")
async def test_the_connection_is_looked_up_without_blocking(pushed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((Connection, "get"), (BaseHook, "get_connection")):
        refuse_to_block(monkeypatch, owner, name)

    (event,) = await events_of(trigger())

    assert event["status"] == "success"


@pytest.mark.parametrize(
    "event", [None, {}, {"status": "success"}, {"status": "failed"}, {"status": "odd", "message": "?"}], ids=str
)
@pytest.mark.row("P11", of="tasks")
def test_an_event_that_is_no_outcome_may_be_retried(event: dict[str, Any] | None) -> None:
    with pytest.raises(RegistryUnavailable, match="no outcome"):
        outcome_of(event)

"""The trigger behind deferred predictions: one event, nothing fetched, and what a kill stops."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_modelsync.compat import BaseHook
from airflow_provider_modelsync.core.errors import ModelNotFound, NotReady, RegistryUnavailable
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.models import Ticket
from airflow_provider_modelsync.hooks.supervisely import SuperviselyHook
from airflow_provider_modelsync.triggers import base
from airflow_provider_modelsync.triggers import predict as triggers
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.predict import PredictTrigger
from tests.conftest import Connect
from tests.standins.http_server import Delay, Respond, Rewrite
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.support.images import png
from tests.support.versions import deserialize, refuse_to_block, serialize

CONNECTION = "supervisely_default"
KILL_LIMIT = 4.0
PROGRESS, POP, STOP = "get_inference_progress$", "pop_inference_results$", "stop_inference$"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    """An app that makes no prediction before its gate is opened."""
    with SuperviselyApp() as app:
        app.pictures = {number: png(80, 8, (0, 0, number, 3)) for number in range(1, 41)}
        app.projects = {21: [*app.pictures]}
        app.gate.clear()
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp, connect: Connect) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        extra = {"team_id": server.team_id, "workspace_id": server.workspace_id}
        connect(CONNECTION, conn_type="supervisely", host=server.url, password=server.token, extra=extra)
        server.seed_task(name="blobs")
        yield server


@pytest.fixture
def ticket(server: SuperviselyStandIn) -> Ticket:
    """Of a request that the app works on."""
    ticket = SuperviselyHook(CONNECTION).start_predict("blobs", {"project_id": 21}, batch_size=5)
    assert ticket is not None
    return ticket


def trigger(ticket: Ticket, **arguments: Any) -> PredictTrigger:
    """Return a trigger that looks often."""
    defaults = {"registry_conn_id": CONNECTION, "ticket": ticket.model_dump(mode="json"), "deadline": time.time() + 60}
    return PredictTrigger(**{**defaults, "poll_interval": 0.05, **arguments})


async def events_of(waiting: PredictTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in waiting.run()]


async def until_looked(app: SuperviselyApp, times: int) -> None:
    def wait() -> None:
        while app.count("POST", PROGRESS) < times:
            time.sleep(0.01)

    await asyncio.to_thread(wait)


async def test_fires_once_when_the_predictions_are_made_and_fetches_none(app: SuperviselyApp, ticket: Ticket) -> None:
    waiting = asyncio.create_task(events_of(trigger(ticket)))
    await until_looked(app, 3)
    app.gate.set()

    (event,) = await waiting
    assert outcome_of(event) == ticket.request
    assert Ticket.model_validate(event["ticket"]) == ticket
    assert (app.count("POST", POP), app.count("POST", STOP)) == (0, 0)
    assert len(app.inferences[ticket.request].results) == 40


async def test_fires_when_the_app_waits_for_a_reader(app: SuperviselyApp, ticket: Ticket) -> None:
    app.unread_limit = 10
    app.gate.set()

    (event,) = await events_of(trigger(ticket))
    assert outcome_of(event) == ticket.request
    assert len(app.inferences[ticket.request].results) == 10


async def test_much_to_read_is_no_reason_while_the_app_goes_on(app: SuperviselyApp, ticket: Ticket) -> None:
    looks = iter(range(1000))
    app.fault(
        "POST", PROGRESS, Rewrite(lambda said: {**said, "paused": True, "progress": {"at": next(looks)}}), times=5
    )
    waiting = asyncio.create_task(events_of(trigger(ticket)))
    await until_looked(app, 5)
    assert not waiting.done()
    app.gate.set()
    assert outcome_of((await waiting)[0]) == ticket.request


async def test_a_failed_request_is_the_workers_to_explain(app: SuperviselyApp, ticket: Ticket) -> None:
    app.loaded = None
    app.gate.set()
    deployed = {"is_deployed": True}
    app.fault("POST", "get_status$", Respond(200, deployed), times=None)

    assert outcome_of((await events_of(trigger(ticket)))[0]) == ticket.request


async def test_passing_faults_do_not_end_the_wait(app: SuperviselyApp, ticket: Ticket) -> None:
    app.fault("POST", PROGRESS, Respond(503), times=20)
    app.gate.set()

    assert outcome_of((await events_of(trigger(ticket)))[0]) == ticket.request


async def test_the_deadline_stops_the_request_and_no_other(
    app: SuperviselyApp, server: SuperviselyStandIn, ticket: Ticket
) -> None:
    other = SuperviselyHook(CONNECTION).start_predict("blobs", {"project_id": 21})
    assert other is not None
    (event,) = await events_of(trigger(ticket, deadline=time.time() + 0.2))

    assert "is stopped" in event["message"]
    with pytest.raises(NotReady, match="when the time was over"):
        outcome_of(event)
    assert app.inferences[ticket.request].stopped
    assert not app.inferences[other.request].stopped


@pytest.mark.parametrize("fault", [None, Respond(500, b"no such uuid")], ids=["hangs", "forgotten"])
async def test_a_request_that_gets_no_further_ends_the_wait(app: SuperviselyApp, ticket: Ticket, fault: Any) -> None:
    if fault:
        app.fault("POST", PROGRESS, fault, times=None)
    impatient = ticket.model_copy(update={"patience": 0.3})
    (event,) = await events_of(trigger(impatient))

    with pytest.raises(RegistryUnavailable, match="got no further"):
        outcome_of(event)
    assert app.count("POST", STOP) == 1


async def test_a_deployment_that_has_ended_ends_the_wait_for_good(server: SuperviselyStandIn, ticket: Ticket) -> None:
    server.tasks[20001].status = "stopped"
    (event,) = await events_of(trigger(ticket))

    with pytest.raises(ModelNotFound):
        outcome_of(event)


def test_no_interval_is_shorter_than_the_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ticket = Ticket(deployment="20001", request="r", patience=1.0)

    assert trigger(ticket, poll_interval=0).poll_interval >= 5.0


class TestOnKill:
    async def test_the_own_request_is_stopped_and_no_other(self, app: SuperviselyApp, ticket: Ticket) -> None:
        other = SuperviselyHook(CONNECTION).start_predict("blobs", {"project_id": 21})
        assert other is not None
        await trigger(ticket).on_kill()

        assert app.inferences[ticket.request].stopped
        assert not app.inferences[other.request].stopped
        assert app.count("POST", STOP) == app.count("POST", "clear_inference_request$") == 1

    async def test_cancelling_again_and_again_stops_nothing(self, app: SuperviselyApp, ticket: Ticket) -> None:
        """Airflow cancels the trigger at each look at the task's state; each call may take longer than that."""
        app.fault("*", "", Delay(0.3), times=None)
        undoing = asyncio.create_task(trigger(ticket).on_kill())
        while not undoing.done():
            await asyncio.sleep(0.02)
            undoing.cancel()

        assert app.inferences[ticket.request].stopped

    async def test_an_app_that_hangs_is_not_waited_for_long(
        self, app: SuperviselyApp, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "UNDO_SECONDS", 0.2)
        app.fault("POST", STOP, Delay(1.5), times=None)
        killed_at = time.monotonic()
        await trigger(ticket).on_kill()

        assert time.monotonic() - killed_at < KILL_LIMIT

    async def test_a_deployment_that_is_gone_is_no_error(self, server: SuperviselyStandIn, ticket: Ticket) -> None:
        server.tasks[20001].status = "stopped"
        await trigger(ticket).on_kill()


async def test_a_triggerer_that_stops_changes_nothing(app: SuperviselyApp, ticket: Ticket) -> None:
    before = trigger(ticket)
    abandoned = asyncio.create_task(events_of(before))
    await until_looked(app, 1)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await before.cleanup()
    assert app.count("POST", STOP) == 0
    app.gate.set()

    (event,) = await events_of(PredictTrigger(**before.serialize()[1]))
    assert outcome_of(event) == ticket.request


def test_a_stored_trigger_is_rebuilt_equal() -> None:
    ticket = Ticket(deployment="20001", request="r", patience=1.0)
    path, arguments = trigger(ticket, poll_interval=7.5).serialize()
    again = resolve_name(path)(**deserialize(serialize(arguments)))

    assert type(again) is PredictTrigger
    assert again.serialize() == (path, arguments)
    assert set(arguments) == {name for name in PredictTrigger.__init__.__annotations__ if name != "return"}


async def test_no_token_is_in_an_argument_or_an_event(
    app: SuperviselyApp, server: SuperviselyStandIn, ticket: Ticket
) -> None:
    waiting = trigger(ticket, deadline=time.time() + 0.2)
    told = json.dumps([waiting.serialize(), await events_of(waiting)])

    assert server.token not in told
    assert server.tasks[20001].session_token not in told


async def test_the_loop_is_not_blocked_by_a_connection_lookup(
    app: SuperviselyApp, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((Connection, "get"), (BaseHook, "get_connection")):
        refuse_to_block(monkeypatch, owner, name)
    await trigger(ticket).on_kill()

    assert app.inferences[ticket.request].stopped

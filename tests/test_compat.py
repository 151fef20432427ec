"""What stands in for what an older Airflow lacks; where it has it, too."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import MaskSecret, TaskStatesResult, _ResponseFrame
from asgiref.sync import async_to_sync

from airflow_provider_modelsync import compat
from airflow_provider_modelsync.compat import REMOVED, aget_connection, in_thread, state_of
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.progress import Tally
from airflow_provider_modelsync.hooks.metrics import measured
from tests.conftest import Connect


class Supervisor:
    """What a trigger's process asks.

    :param states: of the one task that there is, by its name.
    """

    def __init__(self, states: dict[str, Any]) -> None:
        self._states = states

    def send(self, asked: Any) -> TaskStatesResult:
        assert (asked.dag_id, asked.task_ids, asked.map_index) == ("dag", ["deploy"], 3)
        return TaskStatesResult(task_states=dict.fromkeys(asked.run_ids, self._states))


@pytest.mark.parametrize(
    ("states", "state"), [({"deploy_3": "deferred"}, "deferred"), ({"deploy_3": None}, None), ({}, REMOVED)], ids=str
)
async def test_a_trigger_can_ask_what_became_of_its_task(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, Any], state: str | None
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(states), raising=False)
    task = SimpleNamespace(dag_id="dag", task_id="deploy", run_id="run", map_index=3)

    assert await state_of(task) == state


async def test_what_is_asked_of_a_supervisor_is_answered_whoever_stops_waiting() -> None:
    asked, go_on, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer() -> None:
        asked.set()
        await go_on.wait()
        answered.set()

    waits = asyncio.ensure_future(in_thread(async_to_sync(answer)))  # as Airflow asks: from a thread, by its loop
    await asked.wait()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    go_on.set()
    async with asyncio.timeout(30):
        await answered.wait()


@pytest.mark.skipif(hasattr(TriggerCommsDecoder, "start_reader"), reason="threads ask by the loop here")
async def test_a_thread_that_asks_a_triggerer_s_supervisor_gets_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, supervisor = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    monkeypatch.setattr(TriggerCommsDecoder, "send", TriggerCommsDecoder.send)
    monkeypatch.setattr(compat, "_mended", set())
    comms: Any = TriggerCommsDecoder(async_writer=writer, async_reader=reader, socket=ours)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    told = []

    def answer() -> None:
        for _ in range(2):
            size = int.from_bytes(supervisor.recv(4, socket.MSG_WAITALL), "big")
            number, body = msgspec.msgpack.decode(supervisor.recv(size, socket.MSG_WAITALL))
            told.append(body["value"])
            supervisor.sendall(_ResponseFrame(id=number).as_bytes())

    answering = asyncio.ensure_future(asyncio.to_thread(answer))
    await in_thread(lambda: None)  # each wait begins with one: it looks its connection up
    for secret in ("a-token-of-today", "a-token-of-tomorrow"):
        await asyncio.to_thread(comms.send, MaskSecret(value=secret))

    await answering
    assert told == ["a-token-of-today", "a-token-of-tomorrow"]
    writer.close()
    supervisor.close()


async def test_the_event_loop_finds_connections(connect: Connect) -> None:
    connect("registry", conn_type="modelstore", host="file:///srv/models")

    assert (await aget_connection("registry")).host == "file:///srv/models"


def test_stats_take_what_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with measured("push", Tally(), {"registry": "modelstore"}) as note:
        note(TransferStats(sent_bytes=3))

    assert "could not be reported" not in caplog.text

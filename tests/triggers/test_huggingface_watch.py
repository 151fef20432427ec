"""What watchers of the Hub cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.triggers import model
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger
from tests.conftest import Connect
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.support.until import until

MODELS = [f"acme/m{number}" for number in range(50)]


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path) as server:
        connect("huggingface_default", conn_type="huggingface_hub", host=server.url, password=WRITE)
        yield server


@pytest.mark.parametrize("dags", [1, 3])
def test_watching_fifty_models_costs_one_resolver_request_each_an_interval(
    server: HuggingFaceStandIn, dags: int
) -> None:
    """Airflow gives watchers with equal keys one stream."""
    for name in MODELS:
        server.publish(name, {"a.json": b"{}"})
    watchers = [ModelVersionEventTrigger("huggingface_default", name) for name in MODELS for _ in range(dags)]
    watched = {watcher.shared_stream_key(): watcher.serialize()[1] for watcher in watchers}

    async def look(rounds: int) -> list[int]:
        counts = []
        streams: list[Any] = [
            ModelVersionEventTrigger.create_shared_stream_producer({**kwargs, "poll_interval": 0.01}).open_stream()
            for kwargs in watched.values()
        ]
        for _ in range(rounds):
            before = len(server.requests)
            await asyncio.gather(*(anext(stream) for stream in streams))
            counts.append(len(server.requests) - before)
        for stream in streams:
            await stream.aclose()
        return counts

    _, *later = asyncio.run(look(3))
    assert later == [len(MODELS)] * 2
    assert {request.method for request in server.requests[-len(MODELS) :]} == {"HEAD"}


def test_a_new_commit_fires_once(server: HuggingFaceStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MIN_POLL_INTERVAL", 0.05)
    server.publish("acme/fraud", {"a.json": b"{}"})

    async def watch() -> Any:
        trigger = ModelVersionEventTrigger("huggingface_default", "acme/fraud", poll_interval=0.05)
        async with aclosing(trigger.run()) as events:
            fired = asyncio.ensure_future(anext(events))
            await asyncio.to_thread(until, lambda: server.count("HEAD", "/resolve/main/") > 1, "the watcher to look")
            commit = await asyncio.to_thread(server.publish, "acme/fraud", {"a.json": b"2"})
            return commit, (await asyncio.wait_for(fired, 30)).payload

    commit, payload = asyncio.run(watch())
    assert (payload["name"], payload["version"]) == ("acme/fraud", commit)

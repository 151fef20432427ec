"""The connection test of every registry, where a server takes requests and never answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_modelsync.hooks import registry as module
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from tests.conftest import Connect

CANARY = "canary-7d3e91b2" * 4
BUCKET = "s3://models/x"

FIELDS: dict[str, dict[str, Any]] = {
    "bentocloud": {},
    "wallaroo": {"login": "me@models.example"},
    "supervisely": {"extra": {"team_id": 1}},
    "pieces": {},
    "modelstore": {"host": BUCKET, "login": "key", "extra": {"region_name": "us-east-1"}},
}
every_registry = pytest.mark.parametrize("conn_type", FIELDS)


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server whose connections come about, and no more than that."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def hook_for(conn_type: str, url: str, connect: Connect, **extra: Any) -> RegistryHook:
    fields = {"host": url, **FIELDS[conn_type]}
    more = {"endpoint_url": url, **fields.pop("extra", {}), **extra}
    connect("silent", conn_type=conn_type, password=CANARY, extra=more, **fields)
    return get_registry_hook("silent")


@every_registry
def test_a_call_without_an_answer_ends_soon(
    conn_type: str, silent: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL_SECONDS", 0.3)
    good, message = hook_for(conn_type, silent, connect).test_connection()

    assert not good
    assert silent in message
    assert "did not answer within the time limit" in message
    assert CANARY not in message


@every_registry
def test_all_calls_together_end_soon(
    conn_type: str, silent: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL_SECONDS", 0.5)
    monkeypatch.setattr(module, "_TEST_SECONDS", 0.1)
    hook = hook_for(conn_type, silent, connect)
    good, message = hook.test_connection()

    assert not good
    where = BUCKET if conn_type == "modelstore" else silent
    assert message == f"{hook.registry_type().title} at {where} did not answer within 0.1 s"
    assert not hook.cancel_token.cancelled


def test_a_connection_may_be_less_patient(silent: str, connect: Connect) -> None:
    good, message = hook_for("bentocloud", silent, connect, timeout_seconds=0.2).test_connection()

    assert not good
    assert silent in message

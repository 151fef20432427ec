"""The connection test of every registry, where a server takes requests and never answers."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.hooks import registry as module
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from tests.conftest import Connect
from tests.support.until import until

CANARY = "canary-7d3e91b2" * 4
BUCKET = "s3://models/x"

FIELDS: dict[str, dict[str, Any]] = {
    "bentocloud": {},
    "wallaroo": {"login": "me@models.example"},
    "supervisely": {"extra": {"team_id": 1}},
    "oci_registry": {"login": "alice"},
    "mlflow": {"login": "jane"},
    "huggingface_hub": {},
    "pieces": {},
    "modelstore": {"host": BUCKET, "login": "key", "extra": {"region_name": "us-east-1"}},
}
every_registry = pytest.mark.parametrize("conn_type", FIELDS)


@pytest.fixture
def silent(no_waiting: None) -> Iterator[str]:
    """The URL of a server whose connections come about, and no more than that. Calls that were left end with it."""
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    until(lambda: set(threading.enumerate()) <= before, "the calls to end that nobody waits for")


def hook_for(conn_type: str, url: str, connect: Connect, **extra: Any) -> RegistryHook:
    fields = {"host": url, **FIELDS[conn_type]}
    more = {"endpoint_url": url, **fields.pop("extra", {}), **extra}
    connect("silent", conn_type=conn_type, password=CANARY, extra=more, **fields)
    return get_registry_hook("silent")


@every_registry
@pytest.mark.row("T6", of="calls")
def test_a_call_without_an_answer_ends_soon(
    conn_type: str, silent: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL_SECONDS", 0.3)
    monkeypatch.setattr(module, "_TEST_SECONDS", 60.0)
    good, message = hook_for(conn_type, silent, connect).test_connection()

    assert not good
    assert silent in message
    assert "did not answer within the time limit" in message
    assert CANARY not in message


@every_registry
def test_all_calls_together_end_soon(
    conn_type: str, silent: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL_SECONDS", 60.0)
    monkeypatch.setattr(module, "_TEST_SECONDS", 0.1)
    hook = hook_for(conn_type, silent, connect)
    good, message = hook.test_connection()

    assert not good
    where = BUCKET if conn_type == "modelstore" else silent
    told, _, _ = message.partition("; ")  # a remark follows: most types know no endpoint
    assert told == f"{hook.registry_type().title} at {where} did not answer within 0.1 s"
    assert not hook.cancel_token.cancelled


def test_a_connection_may_be_less_patient(silent: str, connect: Connect) -> None:
    good, message = hook_for("bentocloud", silent, connect, timeout_seconds=0.2).test_connection()

    assert not good
    assert silent in message


@pytest.mark.parametrize("conn_type", ["bentocloud", "modelstore"])
@pytest.mark.parametrize("field", ["ca_bundle", "client_cert", "client_key"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "huge"])
def test_a_file_that_would_keep_us_waiting_is_not_opened(
    conn_type: str,
    field: str,
    kind: str,
    silent: str,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TEST_SECONDS", 60.0)
    path = tmp_path / "file"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "directory":
            path.mkdir()
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)
    files = {"client_cert": str(path), field: str(path)} if field == "client_key" else {field: str(path)}
    good, message = hook_for(conn_type, silent.replace("http:", "https:"), connect, **files).test_connection()

    assert not good
    assert f"{path} is no regular file" in message


def test_whatever_is_made_for_the_test_is_made_within_its_time(
    silent: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of AWS may ask others for its keys, a TLS context read from a disk that hangs."""
    monkeypatch.setattr(module, "_TEST_SECONDS", 0.1)
    released = threading.Event()
    hook = hook_for("bentocloud", silent, connect)
    make = hook.make_registry

    def slow(*args: Any) -> Any:
        released.wait(60)
        return make(*args)

    monkeypatch.setattr(hook, "make_registry", slow)
    try:
        good, message = hook.test_connection()
    finally:
        released.set()

    assert not good
    assert message.startswith(f"BentoCloud at {silent} did not answer within 0.1 s")

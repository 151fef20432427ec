"""Where versions of Airflow keep what tests alone look at, and what is tested on new enough ones only."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS

for place in ("airflow.sdk.execution_time.secrets_masker", "airflow.sdk._shared.secrets_masker.secrets_masker"):
    with suppress(ImportError):
        masker = import_module(place)

for place in ("airflow.serialization.serde", "airflow.sdk.serde"):
    with suppress(ImportError):
        serde = import_module(place)
serialize, deserialize = serde.serialize, serde.deserialize

serialized: Any = import_module("airflow.serialization.serialized_objects")
# Turns DAGs into JSON and back; called so since 3.2.
DagSerialization = getattr(serialized, "DagSerialization", None) or serialized.SerializedDAG

for place in ("airflow.lineage.hook", "airflow.sdk.lineage"):
    with suppress(ImportError):
        lineage = import_module(place)

since_3_3 = pytest.mark.skipif(not TELLS_OF_KILLS, reason="this Airflow is older than what is tested")


def refuse_to_block(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Have a call fail on an event loop, where it would block; threads may make it."""
    known = getattr(owner, name)

    def call(*arguments: object) -> object:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise AssertionError("the event loop was blocked by a connection lookup")
        return known(*arguments)

    monkeypatch.setattr(owner, name, call)

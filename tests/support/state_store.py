"""A task's state store as Airflow offers it to a running task, kept in memory."""

from __future__ import annotations

import json
from typing import Any


class StateStore:
    """``context["task_state_store"]``: JSON values under string keys."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any, retention: Any = None) -> None:
        self.values[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def clear(self) -> None:
        self.values.clear()

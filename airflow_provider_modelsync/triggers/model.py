"""Waiting for a model version without a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.wait import READY, find_version
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, MIN_POLL_INTERVAL, WaitTrigger


class ModelVersionTrigger(WaitTrigger):
    """Fires once when a version is ready, has failed, or the deadline has passed.

    Passing faults of the registry never end the wait; they are logged when they begin.

    :param registry_conn_id: the registry's connection.
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one.
    :param labels: choose among ready versions.
    :param newer_than: a version or an ISO 8601 time that the version must be newer than.
    :param state: what the version must have reached.
    :param poll_interval: seconds between two looks, the first one included.
    :param deadline: when to give up, in seconds since the epoch.
    """

    def __init__(
        self,
        registry_conn_id: str,
        model: str,
        deadline: float,
        labels: Mapping[str, str] | None = None,
        newer_than: str | None = None,
        state: str = READY,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL))
        self.model = model
        self.labels = labels
        self.newer_than = newer_than
        self.state = state

    def arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "labels": dict(self.labels) if self.labels else None,
            "newer_than": self.newer_than,
            "state": self.state,
        }

    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        query = Query.parse(None, self.labels)
        version = await hook.arun(
            lambda registry: find_version(registry, self.model, query, newer_than=self.newer_than, state=self.state),
            model=self.model,
        )
        return {"ref": version.ref, "message": f"{version.ref} is there"} if version else None

    async def give_up(self, hook: RegistryHook | None) -> str:
        return f"{self.model} was not there when the time was over"

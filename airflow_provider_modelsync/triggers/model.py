"""Waiting for a model version without a worker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelsync.core.errors import Permanent, RegistryUnavailable, Retryable
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.wait import READY, find_version
from airflow_provider_modelsync.hooks.registry import RegistryHook, aget_registry_hook

DEFAULT_POLL_INTERVAL = 10.0  # seconds
# A trigger that fires within moments of its task's deferral can overtake the scheduler, which then fails the task.
MIN_POLL_INTERVAL = 5.0  # seconds


class ModelVersionTrigger(BaseTrigger):
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
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.registry_conn_id = registry_conn_id
        self.model = model
        self.deadline = deadline
        self.labels = labels
        self.newer_than = newer_than
        self.state = state
        self.poll_interval = max(poll_interval, MIN_POLL_INTERVAL)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "registry_conn_id": self.registry_conn_id,
            "model": self.model,
            "deadline": self.deadline,
            "labels": dict(self.labels) if self.labels else None,
            "newer_than": self.newer_than,
            "state": self.state,
            "poll_interval": self.poll_interval,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        hook: RegistryHook | None = None
        trouble: str | None = None
        while True:
            last = time.time() + self.poll_interval >= self.deadline
            await asyncio.sleep(self._pause())
            try:
                hook = hook or await aget_registry_hook(self.registry_conn_id)
                if version := await self._look(hook):
                    yield TriggerEvent({"status": "success", "ref": version.ref, "message": f"{version.ref} is there"})
                    return
                trouble = None
            except Retryable as error:
                if trouble is None:
                    self.log.warning("%s; the wait goes on", error)
                trouble = str(error)
            except Exception as error:
                yield TriggerEvent(_failure(error))
                return
            if last:
                message = trouble or f"{self.model} was not there when the time was over"
                yield TriggerEvent({"status": "timeout", "message": message})
                return

    def _pause(self) -> float:
        # Jitter, so that many waiters do not ask all at once; never beyond the deadline.
        interval = self.poll_interval * random.uniform(1.0, 1.1)  # noqa: S311
        return max(0.0, min(interval, self.deadline - time.time()))

    async def _look(self, hook: RegistryHook) -> ModelVersion | None:
        query = Query.parse(None, self.labels)
        return await hook.arun(
            lambda registry: find_version(registry, self.model, query, newer_than=self.newer_than, state=self.state),
            model=self.model,
        )


def _failure(error: Exception) -> dict[str, Any]:
    return {
        "status": "failed",
        "message": f"{type(error).__name__}: {error}",
        "permanent": isinstance(error, Permanent),
    }


def outcome_of(event: Mapping[str, Any] | None) -> str:
    """Read a trigger's event.

    :return: the exact reference of the version that was waited for.
    :raises Permanent: when the wait has failed for good.
    :raises RegistryUnavailable: when it has timed out, failed otherwise, or the event makes no sense.
    """
    match event:
        case {"status": "success", "ref": str(ref)}:
            return ref
        case {"status": "failed", "message": str(message), "permanent": True}:
            raise Permanent(message)
        case {"status": "failed" | "timeout", "message": str(message)}:
            raise RegistryUnavailable(message)
    raise RegistryUnavailable(f"the trigger sent something that is no outcome: {event!r:.200}")

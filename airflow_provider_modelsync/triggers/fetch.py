"""Waiting without a worker until a system has brought a model onto its own host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_provider_modelsync.core.models import Fetch, Patience
from airflow_provider_modelsync.core.registries.capabilities import Fetches
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.base import (
    DEFAULT_POLL_INTERVAL,
    MIN_POLL_INTERVAL,
    Undoing,
    failure_of,
)


class FetchTrigger(Undoing):
    """Fires once when a model is on its system's own host, will not get there, or the deadline has passed.

    It only looks and listens. A user who ends the deferred task (mark failed, mark success, clear) has taken back what
    the task asked for, and so has the deadline. A triggerer that stops or restarts changes nothing.

    :param registry_conn_id: the registry's connection.
    :param ref: what the system knows exactly this model by.
    :param name: what people call it.
    :param deadline: when to give up, in seconds since the epoch.
    :param ours: whether the task has asked for it.
    :param poll_interval: seconds between two looks, and before the first event.
    """

    def __init__(
        self,
        registry_conn_id: str,
        ref: str,
        name: str,
        deadline: float,
        ours: bool = False,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL))
        self.ref = ref
        self.name = name
        self.ours = ours

    def arguments(self) -> dict[str, Any]:
        return {"ref": self.ref, "name": self.name, "ours": self.ours}

    async def wait(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(self._pause())
        fetch = Fetch(ref=self.ref, name=self.name, ours=self.ours)
        patience = Patience(seconds=max(0.0, self.deadline - time.time()), poll_interval=self.poll_interval)
        try:
            hook = await self._hook_until(self.deadline)
            await hook.arun(lambda registry: Fetches.of(registry).finish_fetch(fetch, patience), model=self.name)
        except Exception as error:
            yield TriggerEvent(failure_of(error))
        else:
            yield TriggerEvent({"status": "success", "ref": self.ref, "message": f"{self.name} is there"})

    @property
    def started_what(self) -> str | None:
        return f"what was asked for of {self.name}" if self.ours else None

    async def take_back(self, hook: RegistryHook) -> str:
        return await hook.arun(lambda registry: Fetches.of(registry).cancel_fetch(self.ref))

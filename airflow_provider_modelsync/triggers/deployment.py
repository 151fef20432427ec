"""Waiting for a deployment without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from airflow_provider_modelsync.core.models import RollOut
from airflow_provider_modelsync.core.verbs.wait import GOALS, READY, take_back
from airflow_provider_modelsync.hooks.registry import RegistryHook, aget_registry_hook
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, MIN_POLL_INTERVAL, WaitTrigger

_UNDO_SECONDS = 10.0  # for taking back what was started; Airflow itself would wait for 30


class DeploymentTrigger(WaitTrigger):
    """Fires once when a deployment is ready or gone, has failed, or the deadline has passed.

    A user who ends the deferred task (mark failed, mark success, clear) has what the task started taken back, and so
    has the deadline. A triggerer that stops or restarts changes nothing.

    :param registry_conn_id: the registry's connection.
    :param deployment: its name.
    :param deadline: when to give up, in seconds since the epoch.
    :param goal: ``ready`` or ``gone``.
    :param revision: the revision that must be ready; ``None`` for any.
    :param started: what the task has started, a :class:`RollOut` as JSON values; ``None`` when that is nothing.
    :param poll_interval: seconds between two looks, the first one included.
    """

    def __init__(
        self,
        registry_conn_id: str,
        deployment: str,
        deadline: float,
        goal: str = READY,
        revision: str | None = None,
        started: Mapping[str, Any] | None = None,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL))
        self.deployment = deployment
        self.goal = goal
        self.revision = revision
        self.started = started

    def arguments(self) -> dict[str, Any]:
        return {
            "deployment": self.deployment,
            "goal": self.goal,
            "revision": self.revision,
            "started": dict(self.started) if self.started else None,
        }

    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        found = await hook.arun(lambda registry: GOALS[self.goal](registry, self.deployment, self.revision))
        if found is None:
            return None
        message = f"{self.deployment} is {found.status}"
        return {"ref": self.deployment, "revision": self.revision, "message": message}

    async def give_up(self, hook: RegistryHook | None) -> str:
        message = f"{self.deployment} was not {self.goal} when the time was over"
        undone = await self._take_back(hook)
        return f"{message}; {undone}" if undone else message

    async def on_kill(self) -> None:
        await self._take_back(None)

    async def _take_back(self, hook: RegistryHook | None) -> str | None:
        if not self.started:
            return None
        try:
            started = RollOut.model_validate(self.started)
            async with asyncio.timeout(_UNDO_SECONDS):
                hook = hook or await aget_registry_hook(self.registry_conn_id)
                done = await hook.arun(lambda registry: take_back(registry, started), model=started.model)
        except Exception as error:
            self.log.warning("What was started on %s could not be taken back: %s", self.deployment, error)
            return f"what was started could not be taken back: {type(error).__name__}"
        self.log.info(done)
        return done

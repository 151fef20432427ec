"""Waiting for a deployment without a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Deployment, RollOut
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.verbs.wait import GOALS, READY, require_under_way, take_back
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, MIN_POLL_INTERVAL, Undoing, WaitTrigger


class DeploymentTrigger(WaitTrigger, Undoing):
    """Fires once when a deployment is ready or gone, has failed, or the deadline has passed.

    A user who ends the deferred task (mark failed, mark success, clear) has what the task started taken back, and so
    has the deadline. A triggerer that stops or restarts changes nothing.

    :param registry_conn_id: the registry's connection.
    :param deployment: its name.
    :param deadline: when to give up, in seconds since the epoch.
    :param goal: ``ready`` or ``gone``.
    :param revision: the revision that must be ready; ``None`` for any.
    :param started: what the task has started, a :class:`RollOut` as JSON values; ``None`` when that is nothing.
    :param joined: whether it was under way already: whoever has started it, as an earlier try, may take it back.
    :param poll_interval: seconds between two looks, the first one included.
    :param manner: as for :class:`~airflow_provider_modelsync.triggers.base.WaitTrigger`.
    """

    def __init__(
        self,
        registry_conn_id: str,
        deployment: str,
        deadline: float,
        goal: str = READY,
        revision: str | None = None,
        started: Mapping[str, Any] | None = None,
        joined: bool = False,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        manner: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL), manner)
        self.deployment = deployment
        self.goal = goal
        self.revision = revision
        self.started = started
        self.joined = joined

    def arguments(self) -> dict[str, Any]:
        return {
            "deployment": self.deployment,
            "goal": self.goal,
            "revision": self.revision,
            "started": dict(self.started) if self.started else None,
            "joined": self.joined,
            "manner": dict(self.manner) if self.manner else None,
        }

    @property
    def started_what(self) -> str | None:
        return f"what was started on {self.deployment}" if self.started else None

    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        found = await hook.arun(self._find)
        if found is None:
            return None
        message = f"{self.deployment} is {found.status}"
        return {"ref": self.deployment, "revision": self.revision, "message": message}

    async def give_up(self) -> str:
        message = f"{self.deployment} was not {self.goal} when the time was over"
        undone = await self.undo()
        return f"{message}; {undone}" if undone else message

    async def take_back(self, hook: RegistryHook) -> str:
        started = RollOut.model_validate(self.started)
        return await hook.arun(lambda registry: take_back(registry, started), model=started.model)

    def _find(self, registry: Registry) -> Flow[Deployment | None]:
        found = yield from GOALS[self.goal](registry, self.deployment, self.revision, tell=self.see)
        if found is None and self.joined:
            revision = self.started["revision"] if self.started else self.revision
            yield from require_under_way(registry, self.deployment, revision)
        return found

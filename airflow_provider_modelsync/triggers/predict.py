"""Waiting without a worker for predictions that a system makes by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_modelsync.core.errors import Retryable
from airflow_provider_modelsync.core.models import Headway, Ticket
from airflow_provider_modelsync.core.registries.capabilities import PredictsAlone
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, MIN_POLL_INTERVAL, Undoing, WaitTrigger


class PredictTrigger(WaitTrigger, Undoing):
    """Fires once when a worker is to fetch predictions: they are made, have failed, or the system waits for a reader.

    Also when the deadline has passed, or the system gets no further. It only looks: nothing is fetched here. A user who
    ends the deferred task (mark failed, mark success, clear) has the task's own request stopped, and so have the
    deadline and a system that gets no further. A triggerer that stops or restarts changes nothing.

    :param registry_conn_id: the registry's connection.
    :param ticket: what the task has begun, a :class:`Ticket` as JSON values.
    :param deadline: when to give up, in seconds since the epoch.
    :param poll_interval: seconds between two looks, the first one included.
    """

    def __init__(
        self,
        registry_conn_id: str,
        ticket: Mapping[str, Any],
        deadline: float,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL))
        self.ticket = ticket
        self._seen: str | None = None
        self._moved_at = time.monotonic()

    def arguments(self) -> dict[str, Any]:
        return {"ticket": dict(self.ticket)}

    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        ticket = Ticket.model_validate(self.ticket)
        try:
            now = await hook.arun(lambda registry: PredictsAlone.of(registry).headway_of(ticket))
        except Retryable as error:
            await self._check_patience(ticket, f": {error}")
            raise
        if now.is_over or self._is_stuck_for_a_reader(now):
            return {"ref": ticket.request, "ticket": dict(self.ticket), "message": "there are predictions to fetch"}
        if now.state != self._seen:
            self._seen, self._moved_at = now.state, time.monotonic()
        await self._check_patience(ticket)
        return None

    @property
    def started_what(self) -> str:
        return "the predictions that were begun"

    async def give_up(self) -> str:
        return f"the predictions were not made when the time was over; {await self.undo()}"

    async def take_back(self, hook: RegistryHook) -> str:
        ticket = Ticket.model_validate(self.ticket)
        return await hook.arun(lambda registry: PredictsAlone.of(registry).stop_predict(ticket))

    def _is_stuck_for_a_reader(self, now: Headway) -> bool:
        # Not every kind of request waits for a reader when there is much to read.
        return now.is_full and now.state == self._seen

    async def _check_patience(self, ticket: Ticket, trouble: str = "") -> None:
        if time.monotonic() - self._moved_at > ticket.patience:
            stopped = await self.undo()
            raise TimeoutError(f"the predictions got no further for {ticket.patience:.0f} s{trouble}; {stopped}")

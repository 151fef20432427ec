"""What all triggers of this provider share: looking again and again, until one event ends it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelsync.core.errors import Permanent, RegistryUnavailable
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.polling import Found, shared

DEFAULT_POLL_INTERVAL = 10.0  # seconds
# A trigger that fires within moments of its task's deferral can overtake the scheduler, which then fails the task.
MIN_POLL_INTERVAL = 5.0  # seconds
LAST_LOOK = 30.0  # seconds that the answer to the look at the deadline may take


class RegistryTrigger(BaseTrigger):
    """Base of the triggers that wait for a registry.

    :param registry_conn_id: the registry's connection.
    :param deadline: when to give up, in seconds since the epoch.
    :param poll_interval: seconds between two looks, the first one included.
    """

    def __init__(self, registry_conn_id: str, deadline: float, poll_interval: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.registry_conn_id = registry_conn_id
        self.deadline = deadline
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "registry_conn_id": self.registry_conn_id,
            "deadline": self.deadline,
            "poll_interval": self.poll_interval,
            **self.arguments(),
        }

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that are not common to all triggers, as JSON values without secrets."""

    def _pause(self) -> float:
        # Jitter, so that many waiters do not ask all at once; never beyond the deadline.
        interval = self.poll_interval * random.uniform(1.0, 1.1)  # noqa: S311
        return max(0.0, min(interval, self.deadline - time.time()))


class WaitTrigger(RegistryTrigger):
    """Base of the triggers that look again and again: fires once, when it is there, has failed, or time is over.

    Passing faults of the registry never end the wait; they are logged when they begin. Parameters as for
    :class:`RegistryTrigger`.
    """

    @abstractmethod
    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        """Return what the event of success says besides, or ``None`` when it is too early.

        Triggers with equal arguments share one look; the deadline is no argument in this sense.
        """

    @abstractmethod
    async def give_up(self, hook: RegistryHook | None) -> str:
        """Return what to say when the time is over."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        polls, joined_at = shared(), time.monotonic()
        poll = polls.join(self.registry_conn_id, self._sought(), self.look, self.poll_interval)
        try:
            outcome: Found | Exception | None = None
            while outcome is None and (rest := self.deadline - time.time()) > 0:
                if poll.trouble:
                    self.log.warning("%s; the wait goes on", poll.trouble)
                outcome = await poll.listen(rest)
            if outcome is None:
                outcome = await poll.look_again(LAST_LOOK)
            elif (early := joined_at + min(self.poll_interval, MIN_POLL_INTERVAL) - time.monotonic()) > 0:
                await asyncio.sleep(early)  # the others may have waited for long, this one has not
            trouble = poll.trouble
        finally:
            await polls.leave(poll)
        if outcome is None:
            message = await self.give_up(None)
            yield TriggerEvent({"status": "timeout", "message": f"{message}: {trouble}" if trouble else message})
        elif isinstance(outcome, Exception):
            yield TriggerEvent(failure_of(outcome))
        else:
            yield TriggerEvent({"status": "success", **outcome})

    def _sought(self) -> tuple[str, str]:
        """Return what triggers have in common that can share their looks."""
        path, _ = self.serialize()
        return path, json.dumps(self.arguments(), sort_keys=True)


def failure_of(error: Exception) -> dict[str, Any]:
    """Return the event of a wait that has failed."""
    return {
        "status": "failed",
        "message": f"{type(error).__name__}: {error}",
        "permanent": isinstance(error, Permanent),
    }


def outcome_of(event: Mapping[str, Any] | None) -> str:
    """Read a trigger's event.

    :return: the exact reference of what was waited for.
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

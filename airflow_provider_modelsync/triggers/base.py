"""What all triggers of this provider share: looking again and again, until one event ends it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelsync.compat import TELLS_OF_KILLS, UNDER_WAY, WAITING, state_of
from airflow_provider_modelsync.core.errors import NotReady, Permanent, RegistryUnavailable
from airflow_provider_modelsync.core.failure import as_event, from_event
from airflow_provider_modelsync.core.text import span
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.polling import Found, Rhythm, look_up, shared

DEFAULT_POLL_INTERVAL = 10.0  # seconds
# A trigger that fires within moments of its task's deferral can overtake the scheduler, which then fails the task.
MIN_POLL_INTERVAL = 5.0  # seconds
LAST_LOOK = 30.0  # seconds that the answer to the look at the deadline may take
UNDO_SECONDS = 25.0  # for taking back what a task has started, some calls of a few seconds; Airflow waits for 30

T = TypeVar("T")


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

    @property
    def log(self) -> Any:
        """One logger for all triggers of a class: with its own, each of thousands would take half as much again."""
        return self.logger()

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that are not common to all triggers, as JSON values without secrets."""

    @abstractmethod
    def wait(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event that ends it."""

    def run(self) -> AsyncIterator[TriggerEvent]:
        return self.wait()

    def _pause(self) -> float:
        # Jitter, so that many waiters do not ask all at once; never beyond the deadline.
        interval = self.poll_interval * random.uniform(1.0, 1.1)  # noqa: S311
        return max(0.0, min(interval, self.deadline - time.time()))


class Undoing(RegistryTrigger):
    """Base of the triggers of tasks that have started something, which is taken back when it is not wanted any more.

    That is when a user ends the deferred task (mark failed, mark success, clear), or the time is over. A triggerer
    that stops or restarts changes nothing. Parameters as for :class:`RegistryTrigger`.
    """

    _undoing: asyncio.Task[str] | None = None

    @property
    @abstractmethod
    def started_what(self) -> str | None:
        """What the task has to answer for, in words; ``None`` when that is nothing."""

    @abstractmethod
    async def take_back(self, hook: RegistryHook) -> str:
        """End what the task has started, and nothing else; return what was done in a sentence."""

    async def on_kill(self) -> None:
        await self.undo()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            async for event in super().run():
                yield event
        except asyncio.CancelledError:
            # Where Airflow does not say why: because a user has ended the task, or because the triggerer stops.
            if self.started_what is not None and not TELLS_OF_KILLS:
                await _see_through(asyncio.create_task(self._undo_if_ended(self.started_what)))
            raise

    async def undo(self) -> str | None:
        """Take back what was started, whatever it takes up to :data:`UNDO_SECONDS`; return what became of it.

        Airflow cancels a trigger again at each look at the task's state, about every second. None of that reaches
        what is done here, and a kill at the deadline joins what that has begun.
        """
        if self.started_what is None:
            return None
        if self._undoing is None or self._undoing.done():
            self._undoing = asyncio.create_task(self._undo(self.started_what))
        return await _see_through(self._undoing)

    async def is_there(self) -> bool:
        """Whether what is waited for has come meanwhile."""
        return False

    async def _undo_if_ended(self, what: str) -> None:
        """Take back what was started unless the task still waits, or goes on with what another triggerer has found."""
        try:
            async with asyncio.timeout(_STATE_SECONDS):
                state = await state_of(self.task_instance)
                goes_on = state == WAITING or (state in UNDER_WAY and await self.is_there())
        except Exception as error:
            self.log.warning("%s is left: what became of the task is not known: %r", what, error)
        else:
            if not goes_on:
                await self.undo()

    async def _undo(self, what: str) -> str:
        try:
            async with asyncio.timeout(UNDO_SECONDS):
                done = await self.take_back(await self._hook_until(None))
        except Exception as error:
            reason = f"no answer within {UNDO_SECONDS:.0f} s" if isinstance(error, TimeoutError) else error
            self.log.warning("%s could not be taken back: %s", what, reason)
            return f"{what} could not be taken back: {type(error).__name__}"
        self.log.info(done)
        return done

    async def _hook_until(self, deadline: float | None) -> RegistryHook:
        """Return the connection's hook, looked up until that succeeds or the time is over."""
        while True:
            try:
                return await look_up(self.registry_conn_id)
            except RegistryUnavailable as error:
                if deadline is not None and time.time() >= deadline:
                    raise
                self.log.warning("%s", error)
                await asyncio.sleep(_LOOK_UP_PAUSE)


async def _see_through(task: asyncio.Task[T]) -> T:
    """Return the result of work that ends by itself, however often the caller is cancelled meanwhile."""
    _UNDER_WAY.add(task)  # the event loop itself would let go of it
    task.add_done_callback(_UNDER_WAY.discard)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


_UNDER_WAY: set[asyncio.Task[Any]] = set()
# For asking what became of a task. An old triggerer sets up what answers when it is first asked, which takes a busy
# machine half a minute; one that stops may have nobody left to ask.
_STATE_SECONDS = 60.0
_LOOK_UP_PAUSE = 0.5  # seconds until a connection that could not be read is looked up again


class WaitTrigger(RegistryTrigger):
    """Base of the triggers that look again and again: fires once, when it is there, has failed, or time is over.

    Transient errors of the registry never end the wait; they are logged when they begin. Parameters as for
    :class:`RegistryTrigger`.

    :param manner: what a sensor asks for besides, by the names of Airflow's own arguments: ``exponential_backoff`` and
        ``max_wait``, in seconds, for the pauses; ``silent_fail`` has whatever may pass only delay the next look.
    """

    def __init__(
        self, registry_conn_id: str, deadline: float, poll_interval: float, manner: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(registry_conn_id, deadline, poll_interval)
        self.manner = manner
        self._state: str | None = None

    @abstractmethod
    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        """Return what the event of success says besides, or ``None`` when it is too early.

        Triggers with equal arguments share one look; the deadline is no argument in this sense.
        """

    @abstractmethod
    async def give_up(self) -> str:
        """Return what to say when the time is over."""

    def rhythm(self) -> Rhythm:
        """Return how often to look."""
        manner = self.manner or {}
        return Rhythm(self.poll_interval, manner.get("exponential_backoff", False), manner.get("max_wait"))

    async def is_there(self) -> bool:
        """Whether what is waited for has come meanwhile; see :class:`Undoing`."""
        return await self.look(await look_up(self.registry_conn_id)) is not None

    async def wait(self) -> AsyncIterator[TriggerEvent]:
        polls, joined_at = shared(), time.monotonic()
        poll = polls.join(self.registry_conn_id, self._sought(), self._look, self.rhythm())
        told: str | None = None
        try:
            outcome: Found | Exception | None = None
            while outcome is None and (rest := self.deadline - time.time()) > 0:
                if poll.trouble:
                    self.log.warning("%s; the wait goes on", poll.trouble)
                    told = None  # what is seen afterwards is news again
                elif poll.state not in (None, told):
                    self.log.info("%s; %s", poll.state, left_until(self.deadline))
                    told = poll.state
                outcome = await poll.listen(rest)
            if outcome is None:
                outcome = await poll.look_again(LAST_LOOK)
            elif (early := joined_at + min(self.poll_interval, MIN_POLL_INTERVAL) - time.monotonic()) > 0:
                await asyncio.sleep(early)  # the others may have waited for long, this one has not
            trouble, state = poll.trouble, poll.state
        finally:
            await polls.leave(poll)
        if outcome is None:
            message = await self.give_up()
            late = NotReady(": ".join(filter(None, (message, trouble or state))), connection=self.registry_conn_id)
            yield TriggerEvent({**failure_of(late), "status": "timeout"})
        elif isinstance(outcome, Exception):
            yield TriggerEvent(failure_of(outcome))
        else:
            yield TriggerEvent({"status": "success", **outcome})

    def see(self, state: str) -> None:
        """Take note of what there is instead of what is waited for; conditions tell it."""
        self._state = state

    async def _look(self, hook: RegistryHook) -> Found | str | None:
        self._state = None
        try:
            return await self.look(hook) or self._state
        except Permanent:
            raise
        except Exception as error:
            if not (self.manner or {}).get("silent_fail"):
                raise
            raise RegistryUnavailable(str(error)) from error

    def _sought(self) -> tuple[str, str]:
        """Return what triggers have in common that can share their looks."""
        path, _ = self.serialize()
        return path, json.dumps(self.arguments(), sort_keys=True)


def left_until(deadline: float) -> str:
    """Return how long a wait goes on, in words.

    :param deadline: in seconds since the epoch.
    """
    return f"waiting up to {span(max(0.0, deadline - time.time()))} longer"


def failure_of(error: Exception) -> dict[str, Any]:
    """Return the event of a wait that has failed."""
    return {"status": "failed", **as_event(error)}


def outcome_of(event: Mapping[str, Any] | None) -> str:
    """Read a trigger's event.

    :return: the exact reference of what was waited for.
    :raises ModelSyncError: what the wait has failed with.
    :raises RegistryUnavailable: when it has timed out, or the event makes no sense.
    """
    match event:
        case {"status": "success", "ref": str(ref)}:
            return ref
        case {"status": "failed" | "timeout", "message": str()} if event is not None:
            raise from_event(event)
    raise RegistryUnavailable(f"the trigger sent something that is no outcome: {event!r:.200}")

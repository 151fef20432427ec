"""What the sensors share: one look that pokes and deferrals have in common, and what is told of what it finds."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_modelsync.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow_provider_modelsync.core import failure
from airflow_provider_modelsync.core.arguments import Flag, Text
from airflow_provider_modelsync.core.errors import ModelSyncError, NotReady, Permanent, Retryable
from airflow_provider_modelsync.core.text import span
from airflow_provider_modelsync.core.verbs.wait import ABSENT, Tell
from airflow_provider_modelsync.hooks.metrics import report_wait
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from airflow_provider_modelsync.lineage import Trace
from airflow_provider_modelsync.operators.arguments import DEFERRABLE
from airflow_provider_modelsync.operators.base import DEFAULT_CONN_ID, TellsOfModels

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.registries.base import Registry
    from airflow_provider_modelsync.triggers.base import WaitTrigger

log = logging.getLogger("modelsync")

Found = TypeVar("Found")


class WaitFailed(Exception):
    """A wait has failed in a way that is no reason to skip the task."""


class RegistrySensor(TellsOfModels, BaseSensorOperator, Generic[Found]):
    """Base of the sensors. Transient errors of a registry never end their waits.

    :param registry_conn_id: the registry's connection (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    """

    def __init__(
        self, *, registry_conn_id: Text = DEFAULT_CONN_ID, deferrable: Flag = DEFERRABLE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id
        self.deferrable = deferrable
        self._hook: RegistryHook | None = None
        self._state: str | None = None  # what the last look has seen

    @abstractmethod
    def look_for(self, registry: Registry, tell: Tell) -> Flow[Found | None]:
        """Return what is waited for, or ``None`` when it is too early.

        :param tell: told what there is instead.
        """

    @property
    @abstractmethod
    def sought(self) -> str:
        """What is waited for, for people."""

    def describe_absence(self, registry: Registry) -> Flow[str]:
        """Return what there is while nothing of what is waited for is."""
        return ABSENT
        yield

    @abstractmethod
    def trigger(self, deadline: float) -> WaitTrigger:
        """Return what waits in the triggerer.

        :param deadline: when to give up, in seconds since the epoch.
        """

    @abstractmethod
    def found_by(self, event: Mapping[str, Any] | None) -> Found:
        """Return what a trigger has found; raise what it has failed with."""

    @abstractmethod
    def tell(self, context: Context, found: Found) -> dict[str, JsonValue]:
        """Tell outlets, lineage and links of what was found, and return it for XCom."""

    def execute(self, context: Context) -> Any:
        with self._as_when_poking(), self.translated():
            self.read_arguments()
        began, self._state = time.time(), None
        timeout = float(self.timeout)
        if self.execution_timeout is not None:  # Airflow does not apply it while a task is deferred
            timeout = min(timeout, self.execution_timeout.total_seconds())
        log.info(
            "waiting up to %s for %s on %s, looking every %s",
            span(timeout),
            self.sought,
            self.registry_conn_id,
            span(float(self.poke_interval)),
        )
        if not self.deferrable:
            return self._poke_on(context)
        deadline = began + timeout
        # Looking once first spares a deferral, and keeps the trigger from firing at once.
        found = self._first_look()
        if found is not None:
            return self._tell(context, found)
        trigger = self.trigger(deadline)
        trigger.manner = self._manner()
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            timeout=timedelta(seconds=timeout + 60),
        )
        return None

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None) -> dict[str, JsonValue]:
        """Take over from the trigger: look once more and return what is there."""
        if event and event.get("status") == "timeout":
            late = failure.from_event({"kind": NotReady.__name__, **event})
            if late.message.endswith(ABSENT):
                late = NotReady(late.message.removesuffix(ABSENT) + self._absence())
            raise self._timed_out(late)
        with self._as_when_poking(), self.translated():
            self.read_arguments()
            return self._tell(context, self.found_by(event))

    def poke(self, context: Context) -> PokeReturnValue:
        found = self._look()
        told = None if found is None else self._tell(context, found)
        return PokeReturnValue(is_done=found is not None, xcom_value=told)

    def outlook_after(self, error: ModelSyncError) -> str:
        if self.never_fail or (self.soft_fail and isinstance(error, (Permanent, NotReady))):
            return "the task is skipped, as soft_fail or never_fail is set"
        if isinstance(error, NotReady):
            return "not retried: Airflow retries no sensor whose time is over. Clear the task to wait again"
        return super().outlook_after(error)

    def _poke_on(self, context: Context) -> Any:
        try:
            return super().execute(context)
        except AirflowSensorTimeout:
            seen = self._state or "nothing was seen of it"
            late = NotReady(
                f"{self.sought} was not there within {span(float(self.timeout))}: {seen}", model=self._model
            )
            raise self._timed_out(late) from None

    @property
    def hook_in_use(self) -> RegistryHook | None:
        return self._hook

    def tell_of_failure(self, error: ModelSyncError) -> None:
        super().tell_of_failure(error)
        self.offer_kept_links()

    def _timed_out(self, late: ModelSyncError) -> AirflowSensorTimeout:
        late.about(model=self._model, connection=self.registry_conn_id, address=self._address())
        self.tell_of_failure(late)
        return AirflowSensorTimeout(str(late))

    def _address(self) -> str | None:
        try:
            return self.hook.address or self.hook.get_conn().address
        except Exception:  # what is told already counts more
            return None

    @property
    def hook(self) -> RegistryHook:
        """The connection's hook."""
        self._hook = self._hook or get_registry_hook(self.registry_conn_id)
        return self._hook

    def _look(self) -> Found | None:
        with self.translated():
            self.read_arguments()
            hook, seen = self.hook, [ABSENT]
            try:
                found = hook.run(lambda registry: self.look_for(registry, seen.append), model=self._model)
                if found is None:
                    self._see(seen[-1])
            except Retryable as error:
                log.warning("%s; the wait goes on", error)
                self._state = str(error)  # what is seen afterwards is news again
                return None
            return found

    @property
    def _model(self) -> str | None:
        return getattr(self, "model", None)

    def _see(self, state: str) -> None:
        """Say what there is instead of what is waited for, when that has changed."""
        if state == ABSENT:
            if self._state is not None and self._state.startswith(ABSENT):
                return
            state = self._absence()
        if state != self._state:
            self._state = state
            log.info("not yet: %s", state)

    def _absence(self) -> str:
        """Return that what is waited for is not there, and what is instead."""
        try:
            what = self.hook.run(self.describe_absence, model=self._model)
        except ModelSyncError:  # a hint is no reason to end a wait, nor to fail otherwise
            return ABSENT
        return ABSENT if what == ABSENT else f"{ABSENT}: {what}"

    def _tell(self, context: Context, found: Found) -> dict[str, JsonValue]:
        self._trace, self.kept_links = Trace(), {}
        log.info("the wait is over: %s is there", self.sought)
        report_wait(getattr(context.get("ti"), "start_date", None), self.hook.conn_type, self.registry_conn_id)
        told = self.tell(context, found)
        self.offer_kept_links()
        return told

    def _first_look(self) -> Found | None:
        with self._as_when_poking():
            try:
                return self._look()
            except AirflowFailException:
                raise
            except Exception:
                if not self.silent_fail:
                    raise
                log.exception("the first look has failed; the wait goes on")
                return None

    def _manner(self) -> dict[str, Any]:
        wanted = {
            "exponential_backoff": self.exponential_backoff,
            "max_wait": self.max_wait.total_seconds() if self.max_wait else None,
            "silent_fail": self.silent_fail,
        }
        return {name: value for name, value in wanted.items() if value}

    @contextmanager
    def _as_when_poking(self) -> Iterator[None]:
        """Have an error end the task as Airflow has it end when it pokes.

        What resumes a deferred sensor would skip it for other errors, too, but looks at Airflow's own only.
        """
        try:
            yield
        except (AirflowSkipException, TaskDeferred):
            raise
        except Exception as error:
            is_certain = isinstance(error, (AirflowSensorTimeout, AirflowFailException))
            if self.never_fail or (self.soft_fail and is_certain):
                raise AirflowSkipException(f"skipped, as soft_fail or never_fail is set: {error}") from error
            if self.soft_fail:
                raise WaitFailed(str(error)) from error
            raise

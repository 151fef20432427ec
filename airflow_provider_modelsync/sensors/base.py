"""What the sensors share: one look that pokes and deferrals have in common, and what is told of what it finds."""

from __future__ import annotations

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
from airflow_provider_modelsync.core.arguments import Flag, Text
from airflow_provider_modelsync.core.errors import Retryable
from airflow_provider_modelsync.hooks.metrics import report_wait
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from airflow_provider_modelsync.lineage import Trace
from airflow_provider_modelsync.operators.arguments import DEFERRABLE
from airflow_provider_modelsync.operators.base import DEFAULT_CONN_ID, TellsOfModels, translated

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.registries.base import Registry
    from airflow_provider_modelsync.triggers.base import WaitTrigger

Found = TypeVar("Found")


class WaitFailed(Exception):
    """A wait has failed in a way that is no reason to skip the task."""


class RegistrySensor(TellsOfModels, BaseSensorOperator, Generic[Found]):
    """Base of the sensors. Passing faults of a registry never end their waits.

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

    @abstractmethod
    def look_for(self, registry: Registry) -> Flow[Found | None]:
        """Return what is waited for, or ``None`` when it is too early."""

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
        with self._as_when_poking(), translated():
            self.read_arguments()
        if not self.deferrable:
            return super().execute(context)
        timeout = float(self.timeout)
        if self.execution_timeout is not None:  # Airflow does not apply it while a task is deferred
            timeout = min(timeout, self.execution_timeout.total_seconds())
        deadline = time.time() + timeout
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
            raise AirflowSensorTimeout(str(event.get("message")))
        with self._as_when_poking(), translated():
            self.read_arguments()
            return self._tell(context, self.found_by(event))

    def poke(self, context: Context) -> PokeReturnValue:
        found = self._look()
        told = None if found is None else self._tell(context, found)
        return PokeReturnValue(is_done=found is not None, xcom_value=told)

    @property
    def hook(self) -> RegistryHook:
        """The connection's hook."""
        self._hook = self._hook or get_registry_hook(self.registry_conn_id)
        return self._hook

    def _look(self) -> Found | None:
        with translated():
            self.read_arguments()
            try:
                return self.hook.run(self.look_for, model=getattr(self, "model", None))
            except Retryable as error:
                self.log.warning("%s; the wait goes on", error)
                return None

    def _tell(self, context: Context, found: Found) -> dict[str, JsonValue]:
        self._trace, self.kept_links = Trace(), {}
        report_wait(getattr(context.get("ti"), "start_date", None), self.hook.conn_type, self.registry_conn_id)
        return self.tell(context, found)

    def _first_look(self) -> Found | None:
        with self._as_when_poking():
            try:
                return self._look()
            except AirflowFailException:
                raise
            except Exception:
                if not self.silent_fail:
                    raise
                self.log.exception("the first look has failed; the wait goes on")
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

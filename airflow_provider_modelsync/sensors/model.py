"""A sensor for model versions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink, BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout, AirflowSkipException

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.core.arguments import Flag, Labels, Moment, Reference, Text
from airflow_provider_modelsync.core.errors import Retryable
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.verbs.wait import READY, find_version
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from airflow_provider_modelsync.lineage import Trace
from airflow_provider_modelsync.links import RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.arguments import DEFERRABLE
from airflow_provider_modelsync.operators.base import DEFAULT_CONN_ID, TellsOfModels, translated
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue


class ModelVersionSensor(TellsOfModels, BaseSensorOperator):
    """Wait until a model version is there.

    A model that does not exist yet is waited for; passing faults of the registry never end the wait.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one (templated).
    :param labels: that the version must have; an exact one is waited for until it has them (templated).
    :param newer_than: a version or an ISO 8601 time that the version must be newer than (templated).
    :param state: what the version must have reached.
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry.
    :return: the version as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(),)
    ui_color = "#ffe6cc"

    def __init__(
        self,
        *,
        model: Reference,
        registry_conn_id: Text = DEFAULT_CONN_ID,
        labels: Labels | None = None,
        newer_than: Moment | None = None,
        state: Text = READY,
        deferrable: Flag = DEFERRABLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id
        self.model = model
        self.labels = labels
        self.newer_than = newer_than
        self.state = state
        self.deferrable = deferrable
        self._hook: RegistryHook | None = None

    def execute(self, context: Context) -> Any:
        with self._skipping(), translated():
            self.read_arguments()
        if not self.deferrable:
            return super().execute(context)
        # Looking once first spares a deferral, and keeps the trigger from firing at once.
        with self._skipping():
            found = self._look()
        if found:
            return self._tell(context, found)
        timeout = float(self.timeout)
        self.defer(
            trigger=ModelVersionTrigger(
                registry_conn_id=self.registry_conn_id,
                model=self.model,
                deadline=time.time() + timeout,
                labels=self.labels,
                newer_than=self.newer_than,
                state=self.state,
                poll_interval=float(self.poke_interval),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=timeout + 60),
        )
        return None

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None) -> dict[str, JsonValue]:
        """Take over from the trigger: read the version once more and return it."""
        if event and event.get("status") == "timeout":
            raise AirflowSensorTimeout(str(event.get("message")))
        with translated():
            self.read_arguments()
            self._hook = get_registry_hook(self.registry_conn_id)
            return self._tell(context, self._hook.get(outcome_of(event)))

    def poke(self, context: Context) -> PokeReturnValue:
        found = self._look()
        return PokeReturnValue(is_done=found is not None, xcom_value=self._tell(context, found) if found else None)

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        """Skip instead of failing where Airflow's own sensors do so when they poke."""
        try:
            yield
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"skipped, as soft_fail or never_fail is set: {error}") from error
            raise

    def _tell(self, context: Context, found: ModelVersion) -> dict[str, JsonValue]:
        self._trace, self.kept_links = Trace(), {}
        self._trace.read.append((self.registry_conn_id, found))
        self.tell_outlets(context, model_asset(self.registry_conn_id, found.name), found.to_event())
        if hook := self._hook:
            remember_link(context, lambda: hook.page_of(found))
        return found.to_xcom()

    def _look(self) -> ModelVersion | None:
        with translated():
            self.read_arguments()
            self._hook = self._hook or get_registry_hook(self.registry_conn_id)
            query = Query.parse(None, self.labels)
            try:
                return self._hook.run(
                    lambda registry: find_version(
                        registry, self.model, query, newer_than=self.newer_than, state=self.state
                    ),
                    model=self.model,
                )
            except Retryable as error:
                self.log.warning("%s; the wait goes on", error)
                return None

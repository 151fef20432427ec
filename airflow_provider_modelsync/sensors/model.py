"""A sensor for model versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.core.arguments import Labels, Moment, Reference, Text
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.verbs.wait import READY, Since, Tell, describe_absence, find_version
from airflow_provider_modelsync.links import RegistryConsoleLink, remember_link
from airflow_provider_modelsync.sensors.base import RegistrySensor
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.registries.base import Registry


class ModelVersionSensor(RegistrySensor[ModelVersion]):
    """Wait until a model version is there.

    A model that does not exist yet is waited for; transient errors of the registry never end the wait.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one, ``name@alias`` for what an
        alias points to (templated).
    :param labels: that the version must have; an exact one is waited for until it has them (templated).
    :param newer_than: a version or an ISO 8601 time that the version must be newer than. A version's dictionary counts
        when that version is deleted, too. With an alias: the version that it is to leave, whether for an older or a
        newer one, or the time after which it is to move (templated).
    :param state: what the version must have reached (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    :return: the version as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(),)
    ui_color = "#ffe6cc"

    def __init__(
        self,
        *,
        model: Reference,
        labels: Labels | None = None,
        newer_than: Moment | None = None,
        state: Text = READY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.labels = labels
        self.newer_than = newer_than
        self.state = state
        self._since: Since | None = None

    def look_for(self, registry: Registry, tell: Tell) -> Flow[ModelVersion | None]:
        query = Query.parse(None, self.labels)
        if self.newer_than is not None and (self._since is None or self._since.text != self.newer_than):
            self._since = Since(self.newer_than)
        return find_version(registry, self.model, query, newer_than=self._since, state=self.state, tell=tell)

    @property
    def sought(self) -> str:
        with_labels = f" with {dict(self.labels)}" if self.labels else ""
        newer = f" newer than {self.newer_than}" if self.newer_than else ""
        state = f" to be {self.state}" if self.state != READY else ""
        return f"{self.model}{with_labels}{newer}{state}"

    def describe_absence(self, registry: Registry) -> Flow[str]:
        return describe_absence(registry, self.model, Query.parse(None, self.labels))

    def trigger(self, deadline: float) -> ModelVersionTrigger:
        return ModelVersionTrigger(
            registry_conn_id=self.registry_conn_id,
            model=self.model,
            deadline=deadline,
            labels=self.labels,
            newer_than=None if self._since is None else str(self._since),
            state=self.state,
            poll_interval=float(self.poke_interval),
        )

    def found_by(self, event: Mapping[str, Any] | None) -> ModelVersion:
        found = self.hook.get(outcome_of(event))
        alias = self.hook.get_conn().parse(self.model).alias
        return found if alias is None else found.found_by(alias)

    def tell(self, context: Context, found: ModelVersion) -> dict[str, JsonValue]:
        self._trace.read.append((self.registry_conn_id, found))
        self.tell_outlets(context, model_asset(self.registry_conn_id, found.name), found.to_event())
        remember_link(context, lambda: self.hook.page_of(found))
        return found.to_xcom()

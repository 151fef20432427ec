"""A sensor for deployments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_modelsync.core.arguments import DeploymentName, Text
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable
from airflow_provider_modelsync.core.models import Deployment
from airflow_provider_modelsync.core.verbs.wait import GOALS, GONE, READY, SERVED, Tell, own_deployment
from airflow_provider_modelsync.links import DeploymentLink, RegistryConsoleLink, remember_link
from airflow_provider_modelsync.sensors.base import RegistrySensor
from airflow_provider_modelsync.triggers.base import outcome_of
from airflow_provider_modelsync.triggers.deployment import DeploymentTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.registries.base import Registry

# What is waited for → what is looked for: the deployment need not be there yet.
_GOALS = {READY: SERVED, GONE: GONE}


class DeploymentSensor(RegistrySensor[Deployment]):
    """Wait until a deployment answers requests, or has ended. It changes nothing.

    A deployment that does not exist yet is waited for; one that its system has given up fails the task.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name; the connection's own where it has one and none is named (templated).
    :param status: ``ready`` or ``gone`` (templated).
    :param revision: the revision that must be ready; any when left out (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    :return: the deployment as a dictionary.
    """

    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(), DeploymentLink())
    ui_color = "#d0e0e3"

    def __init__(
        self,
        *,
        deployment: DeploymentName | None = None,
        status: Text = READY,
        revision: Text | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deployment = deployment
        self.status = status
        self.revision = revision

    def look_for(self, registry: Registry, tell: Tell) -> Flow[Deployment | None]:
        if self.status not in _GOALS:
            raise InvalidInput(f"{self.status!r} is neither {READY!r} nor {GONE!r}", argument="status")
        return GOALS[_GOALS[self.status]](registry, self._name, self.revision, tell=tell)

    @property
    def sought(self) -> str:
        name = self.deployment or "the deployment of the connection"
        return f"{name} to be {self.status}" + (f" with revision {self.revision}" if self.revision else "")

    def trigger(self, deadline: float) -> DeploymentTrigger:
        return DeploymentTrigger(
            registry_conn_id=self.registry_conn_id,
            deployment=self._name,
            deadline=deadline,
            goal=_GOALS[self.status],
            revision=self.revision,
            poll_interval=float(self.poke_interval),
        )

    def found_by(self, event: Mapping[str, Any] | None) -> Deployment:
        outcome_of(event)
        found = self.hook.run(lambda registry: self.look_for(registry, lambda _: None))
        if found is None:
            raise RegistryUnavailable(f"{self._name} was {self.status} a moment ago and is not any more")
        return found

    def tell(self, context: Context, found: Deployment) -> dict[str, JsonValue]:
        remember_link(context, lambda: found.page)
        remember_link(context, lambda: found.url, DeploymentLink)
        return found.to_xcom()

    @property
    def _name(self) -> str:
        return self.deployment or own_deployment(self.hook.get_conn())

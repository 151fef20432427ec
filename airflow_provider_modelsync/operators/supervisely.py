"""Operators for what only Supervisely has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_modelsync.core.arguments import DeploymentName, Text
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.operators.base import RegistryOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue


class SuperviselyFreezeOperator(RegistryOperator):
    """Move a served model out of the GPU's memory, until the next prediction brings it back.

    A model that cannot be frozen, as on the CPU, is left as it is: the log and the result say so. Safe to repeat.

    :param registry_conn_id: the Supervisely connection (templated).
    :param deployment: a task's name or id; the connection's own when left out (templated).
    :return: ``frozen``, and the app's ``message``, as a dictionary.
    """

    operator_extra_links: Sequence[BaseOperatorLink] = ()  # the system has no pages of models
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        deployment: DeploymentName | None = None,
        registry_conn_id: Text = "supervisely_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(registry_conn_id=registry_conn_id, **kwargs)
        self.deployment = deployment

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from airflow_provider_modelsync.core.registries.supervisely.session import FROZEN
        from airflow_provider_modelsync.hooks.supervisely import SuperviselyHook

        with self.attempt():
            hook = self.get_hook()
            if not isinstance(hook, SuperviselyHook):
                raise InvalidInput(
                    f"models are frozen on Supervisely, not on a connection of type {hook.conn_type!r}",
                    argument="registry_conn_id",
                    connection=self.registry_conn_id,
                )
            message = hook.freeze_model(self.deployment)
            if message not in FROZEN:
                self.log.warning("The model was not frozen: %s", message)
            return {"deployment": self.deployment, "frozen": message in FROZEN, "message": message}

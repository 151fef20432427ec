"""The hook of MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_modelsync.hooks.aws import AwsSession
from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow
    from airflow_provider_modelsync.core.settings import RegistrySettings


class MLflowHook(RegistryHook):
    """Access to the registered models of one MLflow tracking server.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "mlflow"
    hook_name = "MLflow"
    default_conn_name = "mlflow_default"

    @classmethod
    def registry_type(cls) -> type[MLflow]:
        from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow

        return MLflow

    def make_registry(self, settings: RegistrySettings, others: Sequence[Connection]) -> MLflow:
        return self.registry_type()(settings, *(AwsSession(connection) for connection in others))

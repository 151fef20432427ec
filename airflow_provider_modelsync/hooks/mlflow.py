"""The hook of MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow


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

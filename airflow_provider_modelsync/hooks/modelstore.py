"""The hook of the project's own model store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
    from airflow_provider_modelsync.core.settings import RegistrySettings


class ModelStoreHook(RegistryHook):
    """Access to a model store: plain files and manifests below one root, a directory or a bucket.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "modelstore"
    hook_name = "Model Store"
    default_conn_name = "modelstore_default"

    @classmethod
    def registry_type(cls) -> type[ModelStore]:
        from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore

        return ModelStore

    def make_registry(self, settings: RegistrySettings, others: Sequence[Connection]) -> ModelStore:
        return self.registry_type()(settings, *(_AwsSession(connection) for connection in others))


class _AwsSession:
    """Opens the boto3 session that an ``aws`` connection of Airflow's Amazon provider stands for, roles included."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self) -> Any:
        try:
            from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
            from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
        except ImportError:
            raise InvalidInput(
                "Airflow's Amazon provider is needed for it: install airflow-provider-modelsync[amazon]",
                argument="aws_conn_id",
            ) from None
        return BaseSessionFactory(conn=AwsConnectionWrapper(conn=self._connection)).create_session()

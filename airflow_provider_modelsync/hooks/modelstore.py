"""The hook of the project's own model store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.aws import AwsSession
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
        named = [open_session for field, open_session in _SESSIONS.items() if getattr(settings, field, None)]
        sessions = [open_session(connection) for open_session, connection in zip(named, others, strict=True)]
        return self.registry_type()(settings, *sessions)


def _knowing(connection: Connection, hook: type[Any]) -> type[Any]:
    """Return a hook that asks nobody for its connection: on the triggerer's event loop nobody may be asked."""

    class Known(hook):  # type: ignore[misc]
        @classmethod
        def get_connection(cls, conn_id: str) -> Connection:
            return connection

    return Known


class _GoogleCredentials:
    """Opens the credentials that a connection of Airflow's Google provider stands for, impersonation included."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self) -> Any:
        try:
            from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
        except ImportError:
            raise InvalidInput(
                "Airflow's Google provider is needed for it: install airflow-provider-modelsync[google]",
                argument="gcp_conn_id",
            ) from None
        return _knowing(self._connection, GoogleBaseHook)(gcp_conn_id=self._connection.conn_id).get_credentials()


class _AzureCredential:
    """Opens the credential that a ``wasb`` connection of Airflow's Microsoft Azure provider stands for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self) -> Any:
        try:
            from airflow.providers.microsoft.azure.hooks.wasb import WasbHook
        except ImportError:
            raise InvalidInput(
                "Airflow's Microsoft Azure provider is needed for it: install "
                "airflow-provider-modelsync[microsoft-azure]",
                argument="azure_conn_id",
            ) from None
        service = _knowing(self._connection, WasbHook)(wasb_conn_id=self._connection.conn_id).get_conn()
        # A signature may stand in the service's address alone.
        return service.credential or urlsplit(service.url).query


# Field of the connection → what opens the session that another connection stands for.
_SESSIONS: Mapping[str, Callable[[Connection], Callable[[], Any]]] = {
    "aws_conn_id": AwsSession,
    "gcp_conn_id": _GoogleCredentials,
    "azure_conn_id": _AzureCredential,
}

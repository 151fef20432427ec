"""Sessions of AWS that Airflow's Amazon provider opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.core.errors import InvalidInput

if TYPE_CHECKING:
    from airflow.sdk import Connection


class AwsSession:
    """Opens the boto3 session that an ``aws`` connection stands for, roles included.

    :param connection: the connection.
    """

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

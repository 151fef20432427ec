"""Operators for what only BentoCloud has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.assets import bento_asset
from airflow_provider_modelsync.core.arguments import Flag, Text
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.links import remember_link
from airflow_provider_modelsync.operators.arguments import Place
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint
from airflow_provider_modelsync.operators.storage import local_source

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion


class PushBentoOperator(RegistryOperator):
    """Push a built bento, so that it can be deployed.

    The models that it was built with must be in BentoCloud already; push them with ``PushModelOperator``. Safe to
    repeat: a bento that is there with the same bytes is not sent again.

    :param registry_conn_id: the BentoCloud connection (templated).
    :param source: the directory of the built bento, with its ``bento.yaml``, which names it: a local path, or an object
        storage URL, which is copied to this machine first (templated).
    :param force: replace a bento that holds other bytes (templated).
    :return: the bento's version as a dictionary, with ``skipped`` and ``resumed_bytes``.
    """

    ui_color = "#d5e8d4"

    def __init__(
        self,
        *,
        source: Place,
        force: Flag = False,
        registry_conn_id: Text = "bentocloud_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(registry_conn_id=registry_conn_id, **kwargs)
        self.source = source
        self.force = force

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook

        with self.attempt():
            hook = self.get_hook(context)
            if not isinstance(hook, BentoCloudHook):
                raise InvalidInput(
                    f"bentos are pushed to BentoCloud, not to a connection of type {hook.conn_type!r}",
                    argument="registry_conn_id",
                    connection=self.registry_conn_id,
                )
            with local_source(self.source, self._cancel_token) as source:
                version = hook.push_bento(source, force=self.force, checkpoint=TaskCheckpoint.of(context))
            self._announce(context, version)
            transfer = version.transfer or TransferStats()
            return version.to_xcom(skipped=transfer.skipped, resumed_bytes=transfer.resumed_bytes)

    def _announce(self, context: Context, bento: ModelVersion) -> None:
        # No model: who waits for models of that name would start, and find none.
        self.tell_outlets(context, bento_asset(self.registry_conn_id, bento.name), bento.to_event())
        self._trace.bentos.append((self.registry_conn_id, bento))
        self._trace.places_read.append(str(self.source))
        remember_link(context, lambda: self.get_hook().page_of(bento))

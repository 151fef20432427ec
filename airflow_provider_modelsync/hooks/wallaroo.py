"""The hook of Wallaroo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.log import mask_secret

from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_modelsync.core.models import ModelVersion
    from airflow_provider_modelsync.core.registries.base import Registry
    from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo
    from airflow_provider_modelsync.core.settings import RegistrySettings


class WallarooHook(RegistryHook):
    """Access to the models and pipelines of one Wallaroo workspace.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "wallaroo"
    hook_name = "Wallaroo"
    default_conn_name = "wallaroo_default"

    @classmethod
    def registry_type(cls) -> type[Wallaroo]:
        from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo

        return Wallaroo

    def get_config(self, model: str) -> dict[str, Any]:
        """Return the newest configuration of a version, empty when it has none.

        :param model: ``name:version``, or ``name`` for the newest ready version.
        :raises ModelNotFound: when there is none.
        """
        return self.run(lambda registry: _wallaroo(registry).config_of(registry.parse(model)), model=model)

    def insert_config(self, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Give a version a new configuration.

        :param model: as for :meth:`get_config`.
        :param config: ``tensor_fields``, ``filter_threshold``, ``input_schema``, ``output_schema``, ``batch_config``,
            ``dynamic_batching_config``, ``continuous_batching_config``, ``openai_config``.
        :return: the configuration as the system shows it.
        :raises InvalidInput: for other fields, and for those that exclude each other.
        """
        return self.run(lambda registry: _wallaroo(registry).insert_config(registry.parse(model), config), model=model)

    def upload_logs(self, model: str, lines: int = 200) -> list[str]:
        """Return what the conversion of a version has logged, oldest first; the system keeps it for 30 days.

        :param model: as for :meth:`get_config`.
        :param lines: how many of the last lines.
        """
        return self.run(lambda registry: _wallaroo(registry).upload_logs(registry.parse(model), lines), model=model)

    def register_image(self, model: str, image_path: str) -> ModelVersion:
        """Register a container image as a new version of a model: no bytes move.

        :param model: the model's name.
        :param image_path: the image's reference in its own registry.
        """
        return self.run(lambda registry: _wallaroo(registry).register_image(model, image_path), model=model)

    def make_registry(self, settings: RegistrySettings, others: Sequence[Connection]) -> Registry:
        registry = super().make_registry(settings, others)
        _wallaroo(registry).login.tell(mask_secret)
        return registry


def _wallaroo(registry: Registry) -> Wallaroo:
    return cast("Wallaroo", registry)

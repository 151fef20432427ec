"""Operators for what only Pieces OS has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink

from airflow_provider_modelsync.core.arguments import Options, Reference, Text
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.operators.base import RegistryOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue


class PiecesUpdateModelOperator(RegistryOperator):
    """Change fields of a custom model's record; every other one stays as it is.

    Safe to repeat: a record that holds the values already is not sent.

    :param registry_conn_id: the Pieces connection (templated).
    :param model: its id, its ``unique`` name, or its plain name where no other model shares it (templated).
    :param changes: field → new value, as JSON (templated).
    :return: the version as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"changes": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = ()  # the system has no pages of models
    ui_color = "#e1d5e7"

    def __init__(
        self,
        *,
        model: Reference,
        changes: Options,
        registry_conn_id: Text = "pieces_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(registry_conn_id=registry_conn_id, **kwargs)
        self.model = model
        self.changes = changes

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from airflow_provider_modelsync.hooks.pieces import PiecesHook

        with self.attempt():
            hook = self.get_hook(context)
            if not isinstance(hook, PiecesHook):
                raise InvalidInput(
                    f"records are updated on Pieces OS, not on a connection of type {hook.conn_type!r}",
                    argument="registry_conn_id",
                    connection=self.registry_conn_id,
                )
            version = hook.update(self.model, self.changes)
            self.emit(context, version)
            return version.to_xcom()

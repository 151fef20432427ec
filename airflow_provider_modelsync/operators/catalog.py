"""Operators that read and tend what a registry holds; no bytes of models move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.core.arguments import LabelChanges, Reference, Text
from airflow_provider_modelsync.operators.base import RegistryOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue


class ListModelsOperator(RegistryOperator):
    """List the newest ready version of each model, newest first.

    :param registry_conn_id: the registry's connection (templated).
    :param query: chooses models: name substrings, ``label:k``, ``label:k=v`` (templated).
    :return: a list of version dictionaries; feed it to ``.expand()`` to spread work over models.
    """

    ui_color = "#fff2cc"

    def __init__(self, *, query: Text | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query = query

    def execute(self, context: Context) -> list[dict[str, JsonValue]]:
        with self.attempt():
            versions = self.get_hook().list_models(self.query)
        self.log.info("%d models", len(versions))
        return [version.to_xcom() for version in versions]


class DeleteModelOperator(RegistryOperator):
    """Delete an exact version; one that is gone already is no error.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name:version`` (templated).
    :return: ``{"ref": …, "deleted": whether it was there}``.
    """

    ui_color = "#f8cecc"

    def __init__(self, *, model: Reference, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            deleted = self.get_hook().delete(self.model)
        self.log.info("%s %s", self.model, "is deleted" if deleted else "was not there")
        return {"ref": self.model, "deleted": deleted}


class LabelModelOperator(RegistryOperator):
    """Change labels of a version, e.g. to promote it.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name:version``, or ``name`` for the newest ready version (templated).
    :param labels: merged into the version's labels; a ``None`` value removes one (templated).
    :return: the version as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    ui_color = "#e1d5e7"

    def __init__(self, *, model: Reference, labels: LabelChanges, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.labels = labels

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            version = self.get_hook().set_labels(self.model, self.labels)
        self.emit(context, version)
        return version.to_xcom()

"""Operators that read and tend what a registry holds; no bytes of models move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.compat import conf
from airflow_provider_modelsync.core.arguments import Count, Flag, LabelChanges, Labels, Reference, Text
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.links import remember_link
from airflow_provider_modelsync.operators.base import RegistryOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion


class _ListOperator(RegistryOperator):
    """Base of the operators that list versions.

    :param labels: that a version must have (templated).
    :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b`` (templated).
    :param limit: how many at most, the newest ones (templated).
    :param refs_only: return references instead of whole versions (templated).
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    ui_color = "#fff2cc"

    def __init__(
        self,
        *,
        labels: Labels | None = None,
        query: Text | None = None,
        limit: Count | None = None,
        refs_only: Flag = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        self.query = query
        self.limit = limit
        self.refs_only = refs_only

    def _listed(self, context: Context, versions: Sequence[ModelVersion]) -> list[str] | list[dict[str, JsonValue]]:
        chosen = versions[: self.limit]
        self.log.info("%d of %d", len(chosen), len(versions))
        self._check_length(len(chosen))
        remember_link(context, lambda: self.get_hook().page_of())
        return [version.ref for version in chosen] if self.refs_only else [version.to_xcom() for version in chosen]

    def _check_length(self, length: int) -> None:
        """Refuse a list that Airflow would not map over, and say what helps."""
        most = conf.getint("core", "max_map_length", fallback=1024)
        if length > most and self.get_dag() is not None and any(self.iter_mapped_dependants()):
            raise InvalidInput(
                f"{length} entries are to be mapped over, and Airflow's [core] max_map_length is {most}: "
                "choose fewer by query, labels or limit, or raise it",
                argument="limit",
            )


class ListModelsOperator(_ListOperator):
    """List the newest ready version of each model, or all versions of all models, newest first.

    :param registry_conn_id: the registry's connection (templated).
    :param labels: that a version must have (templated).
    :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b`` (templated).
    :param limit: how many at most, the newest ones (templated).
    :param refs_only: return references instead of whole versions (templated).
    :param all_versions: list every version of each model, in any state (templated).
    :return: a list of version dictionaries or of references; feed it to ``.expand()`` to spread work over models.
    """

    def __init__(self, *, all_versions: Flag = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.all_versions = all_versions

    def execute(self, context: Context) -> list[str] | list[dict[str, JsonValue]]:
        with self.attempt():
            found = self.get_hook().list_models(self.query, labels=self.labels, all_versions=self.all_versions)
            return self._listed(context, found)


class ListModelVersionsOperator(_ListOperator):
    """List the versions of a model in any state, newest first.

    :param registry_conn_id: the registry's connection (templated).
    :param model: the model's name (templated).
    :param labels: that a version must have (templated).
    :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b`` (templated).
    :param limit: how many at most, the newest ones (templated).
    :param refs_only: return references instead of whole versions (templated).
    :return: a list of version dictionaries or of references, empty when there is no such model.
    """

    def __init__(self, *, model: Reference, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def execute(self, context: Context) -> list[str] | list[dict[str, JsonValue]]:
        with self.attempt():
            return self._listed(context, self.get_hook().list_versions(self.model, self.query, labels=self.labels))


class GetModelOperator(RegistryOperator):
    """Look a version up, and fail when it is not there.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one
        (templated).
    :param labels: that the version must have, an exact one, too (templated).
    :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b`` (templated).
    :return: the version as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    ui_color = "#fff2cc"
    takes_models = True

    def __init__(
        self, *, model: Reference, labels: Labels | None = None, query: Text | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.labels = labels
        self.query = query

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            version = self.get_hook().get(self.model, labels=self.labels, query=self.query)
            self.emit(context, version)
            return version.to_xcom()


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
            hook = self.get_hook()
            deleted = hook.delete(self.model)
            remember_link(context, hook.page_of)
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

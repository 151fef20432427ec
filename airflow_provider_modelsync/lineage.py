"""What tasks tell OpenLineage: which versions of which models they have read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import DatasetFacet

    from airflow_provider_modelsync.core.models import ModelVersion


class Trace:
    """The versions that a task has read and written, each with the connection that leads to it."""

    def __init__(self) -> None:
        self.read: list[tuple[str, ModelVersion]] = []
        self.written: list[tuple[str, ModelVersion]] = []

    def to_openlineage(self) -> OperatorLineage[Any, Any] | None:
        """Return it as OpenLineage's provider wants it; ``None`` when there is nothing to tell."""
        if not (self.read or self.written):
            return None
        from airflow.providers.openlineage.extractors import OperatorLineage

        return OperatorLineage(inputs=_datasets(self.read), outputs=_datasets(self.written))


def dataset(conn_id: str, name: str, version: Any = None, digest: Any = None) -> Dataset:
    """Return a model as OpenLineage's dataset.

    :param conn_id: the registry's connection.
    :param name: the model's name.
    :param version: the exact version, as far as it is known.
    :param digest: the version's, as far as it is known.
    """
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset, tags_dataset

    facets: dict[str, DatasetFacet] = {}
    if version:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version))
    if digest:
        tag = tags_dataset.TagsDatasetFacetFields(key="digest", value=str(digest), source="modelsync")
        facets["tags"] = tags_dataset.TagsDatasetFacet(tags=[tag])
    return Dataset(namespace=f"modelsync://{conn_id}", name=name, facets=facets)


def _datasets(versions: list[tuple[str, ModelVersion]]) -> list[Dataset]:
    return [dataset(conn_id, version.name, version.version, version.digest) for conn_id, version in versions]

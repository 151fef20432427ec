"""What tasks tell OpenLineage: which versions of which models they have read and written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import DatasetFacet

    from airflow_provider_modelsync.core.models import ModelVersion


class Trace:
    """The versions that a task has read and written, each with the connection that leads to it; and places of files."""

    def __init__(self) -> None:
        self.read: list[tuple[str, ModelVersion]] = []
        self.written: list[tuple[str, ModelVersion]] = []
        self.bentos: list[tuple[str, ModelVersion]] = []  # written
        self.places_read: list[str] = []
        self.places_written: list[str] = []

    def to_openlineage(self) -> OperatorLineage[Any, Any] | None:
        """Return it as OpenLineage's provider wants it; ``None`` when there is nothing to tell."""
        if not any(vars(self).values()):
            return None
        from airflow.providers.openlineage.extractors import OperatorLineage

        return OperatorLineage(
            inputs=[*_datasets(self.read), *map(file_dataset, self.places_read)],
            outputs=[
                *_datasets(self.written),
                *_datasets(self.bentos, "modelsync-bento"),
                *map(file_dataset, self.places_written),
            ],
        )


def file_dataset(place: str) -> Dataset:
    """Return a directory or a file as OpenLineage's dataset, by OpenLineage's own rules for names.

    :param place: a local path or an object storage URL.
    """
    from openlineage.client.event_v2 import Dataset

    url = urlsplit(place)
    if url.scheme in ("", "file", "local"):
        return Dataset(namespace="file", name=os.path.abspath(url.path or place))
    # Airflow writes a connection's id in the place of a user.
    return Dataset(namespace=f"{url.scheme}://{url.netloc.rpartition('@')[2]}", name=url.path.strip("/") or "/")


def dataset(
    conn_id: str,
    name: str,
    version: Any = None,
    digest: Any = None,
    *,
    alias: str | None = None,
    scheme: str = "modelsync",
) -> Dataset:
    """Return a model as OpenLineage's dataset.

    :param conn_id: the registry's connection.
    :param name: the model's name.
    :param version: the exact version, as far as it is known.
    :param digest: the version's, as far as it is known.
    :param alias: what led to the version.
    :param scheme: of its kind's assets.
    """
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset, tags_dataset

    facets: dict[str, DatasetFacet] = {}
    if version:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version))
    tags = [
        tags_dataset.TagsDatasetFacetFields(key=key, value=str(value), source="modelsync")
        for key, value in (("digest", digest), ("alias", alias))
        if value
    ]
    if tags:
        facets["tags"] = tags_dataset.TagsDatasetFacet(tags=tags)
    return Dataset(namespace=f"{scheme}://{conn_id}", name=name, facets=facets)


def _datasets(versions: list[tuple[str, ModelVersion]], scheme: str = "modelsync") -> list[Dataset]:
    return [
        dataset(conn_id, version.name, version.version, version.digest, alias=version.alias, scheme=scheme)
        for conn_id, version in versions
    ]

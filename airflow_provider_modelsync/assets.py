"""Models as Airflow's assets: ``modelsync://<connection id>/<name>``. The version is no part of it; events carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow.sdk import Asset

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset

SCHEME = "modelsync"


def model_asset(conn_id: str, name: str, **more: Any) -> Asset:
    """Return the asset that stands for a model in a registry.

    :param conn_id: the registry's connection.
    :param name: the model's name.
    :param more: further arguments of ``Asset``, e.g. ``watchers``.
    """
    uri = f"{SCHEME}://{conn_id}/{quote(name)}"
    return Asset(name=uri, uri=uri, **more)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check an asset's URI and return it in the one way to write it; Airflow calls this.

    :raises ValueError: when it names no connection and model, or more than these.
    """
    if not uri.netloc or not uri.path.strip("/"):
        raise ValueError(f"write {SCHEME}://<connection id>/<name of the model>")
    if "@" in uri.netloc or uri.query:
        raise ValueError(f"a {SCHEME}:// URI holds no credentials and no query: the connection has them")
    if ":" in uri.path:
        raise ValueError(f"a {SCHEME}:// URI names a model, not a version: the asset's events carry that")
    return uri._replace(path=quote(unquote(uri.path)))


def convert_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """Return the dataset that an asset is to OpenLineage, with what its extra says of a version."""
    from airflow_provider_modelsync.lineage import dataset

    uri = urlsplit(asset.uri)
    extra = asset.extra or {}
    return dataset(uri.netloc, unquote(uri.path[1:]), extra.get("version"), extra.get("digest"))

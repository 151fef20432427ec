"""Models as Airflow's assets: ``modelsync://<connection id>/<name>``. The version is no part of it; events carry it.

An alias is an asset of its own, ``modelsync://<connection id>/<name>@<alias>``: it has an event when it is moved.

Bentos are assets of their own, ``modelsync-bento://…``: a DAG that waits for a model is not to start for a bento.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow.sdk import Asset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset

SCHEME = "modelsync"
BENTO_SCHEME = "modelsync-bento"
_IN_NAMES = "!()"  # what connection ids may hold and an address, too
_IN_PATHS = "/@"
_IN_ASCII_NAMES = " /@()"


def model_asset(conn_id: str, name: str, **more: Any) -> Asset:
    """Return the asset that stands for a model in a registry: by its URI, and by a name that people can read.

    Airflow knows assets by both: name it in this way wherever it is meant.

    :param conn_id: the registry's connection.
    :param name: the model's name.
    :param more: further arguments of ``Asset``, e.g. ``watchers``.
    """
    return _asset(SCHEME, conn_id, name, more)


def alias_asset(conn_id: str, name: str, alias: str, **more: Any) -> Asset:
    """Return the asset that stands for an alias of a model. Parameters as for :func:`model_asset`."""
    return _asset(SCHEME, conn_id, f"{name}@{alias}", more)


def bento_asset(conn_id: str, name: str, **more: Any) -> Asset:
    """Return the asset that stands for a bento in BentoCloud. Parameters as for :func:`model_asset`."""
    return _asset(BENTO_SCHEME, conn_id, name, more)


def _asset(scheme: str, conn_id: str, name: str, more: Mapping[str, Any]) -> Asset:
    uri = f"{scheme}://{quote(conn_id, safe=_IN_NAMES)}/{quote(name, safe=_IN_PATHS)}"
    readable = f"{name} ({conn_id})"
    try:
        return Asset(**{"name": readable, "uri": uri, **more})
    except ValueError:
        if readable.isascii():
            raise
        # Over MySQL, and in its oldest version, Airflow takes ASCII only.
        return Asset(**{"name": quote(readable, safe=_IN_ASCII_NAMES), "uri": uri, **more})


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check an asset's URI and return it in the one way to write it; Airflow calls this.

    :raises ValueError: when it names no connection and model, or more than these.
    """
    if not uri.netloc or not uri.path.strip("/"):
        raise ValueError(f"write {uri.scheme}://<connection id>/<name of the model>")
    if "@" in uri.netloc or uri.query:
        raise ValueError(f"a {uri.scheme}:// URI holds no credentials and no query: the connection has them")
    if ":" in uri.path:
        raise ValueError(f"a {uri.scheme}:// URI names a model, not a version: the asset's events carry that")
    return uri._replace(path=quote(unquote(uri.path), safe=_IN_PATHS))


def convert_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """Return the dataset that an asset is to OpenLineage, with what its extra says of a version."""
    from airflow_provider_modelsync.lineage import dataset

    uri = urlsplit(asset.uri)
    extra = asset.extra or {}
    return dataset(
        unquote(uri.netloc), unquote(uri.path[1:]), extra.get("version"), extra.get("digest"), scheme=uri.scheme
    )

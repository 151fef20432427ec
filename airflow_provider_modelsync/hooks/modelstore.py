"""The hook of the project's own model store."""

from __future__ import annotations

from airflow_provider_modelsync.core.registries.modelstore import ModelStore
from airflow_provider_modelsync.hooks.registry import RegistryHook


class ModelStoreHook(RegistryHook):
    """Access to a model store: plain files and manifests below one root.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "modelstore"
    hook_name = "Model Store"
    default_conn_name = "modelstore_default"
    registry_type = ModelStore

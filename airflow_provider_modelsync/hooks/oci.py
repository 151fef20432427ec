"""The hook of OCI registries: Harbor, GHCR, ECR, Artifact Registry, ACR, Zot, Quay, Docker Hub, Distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow.sdk.log import mask_secret

from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_modelsync.core.registries.oci.registry import OCIRegistry
    from airflow_provider_modelsync.core.settings import RegistrySettings


class OCIRegistryHook(RegistryHook):
    """Access to models that are kept as artifacts or images in an OCI registry.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "oci_registry"
    hook_name = "OCI Registry"
    default_conn_name = "oci_registry_default"

    @classmethod
    def registry_type(cls) -> type[OCIRegistry]:
        from airflow_provider_modelsync.core.registries.oci.registry import OCIRegistry

        return OCIRegistry

    def make_registry(self, settings: RegistrySettings, others: Sequence[Connection]) -> OCIRegistry:
        registry = self.registry_type()(settings)
        registry.tell(mask_secret)
        return registry

"""The hook of the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.registries.huggingface.registry import HuggingFaceHub


class HuggingFaceHubHook(RegistryHook):
    """Access to the models of the Hugging Face Hub, or of a mirror or another server with its API.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "huggingface_hub"
    hook_name = "Hugging Face Hub"
    default_conn_name = "huggingface_default"

    @classmethod
    def registry_type(cls) -> type[HuggingFaceHub]:
        from airflow_provider_modelsync.core.registries.huggingface.registry import HuggingFaceHub

        return HuggingFaceHub

"""All that a registry is written with, in one import, for registries outside of this package.

Those inside import each name from where it is defined.
"""

from __future__ import annotations

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, send
from airflow_provider_modelsync.core.http.policy import ApiClient, RequestPolicy, T, raise_for_status, read_json
from airflow_provider_modelsync.core.models import (
    LATEST,
    Alias,
    ModelRef,
    ModelReference,
    ModelVersion,
    Query,
    VersionStatus,
)
from airflow_provider_modelsync.core.registries.base import Capability, Registry, newest_first
from airflow_provider_modelsync.core.registries.capabilities import (
    Aliases,
    Deploys,
    Fetches,
    Predicts,
    PredictsAlone,
)
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    DownloadPlan,
    GetFiles,
    PushRequest,
    PutFiles,
    UploadPlan,
)

__all__ = [
    "LATEST",
    "Address",
    "Alias",
    "Aliases",
    "ApiClient",
    "BeginAgain",
    "Capability",
    "Deploys",
    "DownloadPlan",
    "Fetches",
    "FileEntry",
    "Flow",
    "GetFiles",
    "InvalidInput",
    "ModelNotFound",
    "ModelRef",
    "ModelReference",
    "ModelSyncError",
    "ModelVersion",
    "MovedResponse",
    "NotSupported",
    "Policy",
    "Predicts",
    "PredictsAlone",
    "PushRequest",
    "PutFiles",
    "Query",
    "Registry",
    "RegistrySettings",
    "RegistryUnavailable",
    "RequestPolicy",
    "T",
    "Unauthorized",
    "UploadPlan",
    "VersionConflict",
    "VersionStatus",
    "base_url",
    "digest_of",
    "newest_first",
    "raise_for_status",
    "read_json",
    "send",
]

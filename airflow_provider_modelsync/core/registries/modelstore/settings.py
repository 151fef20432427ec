"""What the connection of a model store may say: which of its fields count is decided by the root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.redact import show_url
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.azure import SCHEMES
from airflow_provider_modelsync.core.storages.azure_auth import AzureSettings
from airflow_provider_modelsync.core.storages.boto import S3Settings, endpoint_of_environment
from airflow_provider_modelsync.core.storages.gcs import GcsSettings


def _own(kind: type[RegistrySettings]) -> frozenset[str]:
    return frozenset(kind.model_fields) - frozenset(RegistrySettings.model_fields)


# Scheme of a root → the fields that it takes, besides those of every connection.
FIELDS: Mapping[str, frozenset[str]] = {
    "file": frozenset(),
    "s3": _own(S3Settings) | {"login", "password"},
    "gs": _own(GcsSettings) | {"password"},
    **dict.fromkeys(SCHEMES, _own(AzureSettings) | {"login", "password"}),
}
_CHOSEN = frozenset().union(*FIELDS.values())


class BucketSettings(S3Settings, GcsSettings, AzureSettings):
    """A model store's connection; ``host`` is the root."""

    endpoint_url: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _endpoint_of_environment(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and scheme_of(fields.get("host")) == "s3" and not fields.get("endpoint_url"):
            return {**fields, "endpoint_url": endpoint_of_environment()}
        return fields

    @property
    def further_connections(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.aws_conn_id, self.gcp_conn_id, self.azure_conn_id)))

    @classmethod
    def read(cls, conn_id: str, fields: Mapping[str, Any]) -> Self:
        """Check a connection's fields, as :meth:`.RegistrySettings.read` does.

        :raises InvalidInput: also for fields that do not fit the root, by their names.
        """
        settings = super().read(conn_id, fields)
        require_fit(settings)
        return settings


def scheme_of(root: str | None) -> str:
    """Return the scheme of a root, empty when it has none."""
    scheme, mark, _ = (root or "").partition("://")
    return scheme.lower() if mark else ""


def require_fit(settings: RegistrySettings) -> None:
    """Raise :class:`InvalidInput` when a connection says what means nothing to its root."""
    takes = FIELDS.get(scheme_of(settings.host))
    if takes is None:
        return
    given = {name for name in settings.model_fields_set & _CHOSEN if getattr(settings, name) is not None}
    if misfits := sorted(given - takes):
        root = show_url(settings.host or "")
        which = f"takes {', '.join(sorted(takes))}" if takes else "takes no credentials, and nothing else of a bucket's"
        raise InvalidInput(
            f"{', '.join(misfits)} {'does' if len(misfits) == 1 else 'do'} not fit the root {root}, which {which}",
            argument=misfits[0],
            connection=settings.conn_id,
            remedy="Leave out what does not fit, or correct the root (host)",
        )

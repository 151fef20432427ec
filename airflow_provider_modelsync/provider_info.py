"""What Airflow learns about this provider. Data only: every Airflow process imports this module."""

from __future__ import annotations

from typing import Any

_PACKAGE = "airflow_provider_modelsync"


def _field(label: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    # A type without "null" would be marked as required.
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


_WORKERS = _field("Threads", "integer", "How many threads move bytes; 4 when empty.", minimum=1, maximum=64)

_CONNECTION_TYPES: list[dict[str, Any]] = [
    {
        "connection-type": "modelstore",
        "hook-class-name": f"{_PACKAGE}.hooks.modelstore.ModelStoreHook",
        "hook-name": "Model Store",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port", "login", "password"],
            "relabeling": {"host": "Root"},
            "placeholders": {"host": "file:///srv/models"},
        },
        "conn-fields": {"max_workers": _WORKERS},
    },
]


def _modules(package: str, *names: str) -> list[dict[str, Any]]:
    return [{"integration-name": "modelsync", "python-modules": [f"{_PACKAGE}.{package}.{name}" for name in names]}]


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in the form of Airflow's ``provider_info`` schema."""
    return {
        "package-name": "airflow-provider-modelsync",
        "name": "Model Sync",
        "description": "Moves machine-learning models between Apache Airflow and model registries.",
        "integrations": [{"integration-name": "modelsync", "tags": ["software"]}],
        "connection-types": _CONNECTION_TYPES,
        "hooks": _modules("hooks", "registry", "modelstore"),
        "operators": _modules("operators", "transfer", "catalog"),
        "sensors": _modules("sensors", "model"),
        "triggers": _modules("triggers", "model"),
    }

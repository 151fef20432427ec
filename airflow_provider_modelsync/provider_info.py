"""What Airflow learns about this provider. Data only: every Airflow process imports this module."""

from __future__ import annotations

from typing import Any

_PACKAGE = "airflow_provider_modelsync"


def _field(label: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    # A type without "null" would be marked as required.
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


_WORKERS = {
    "max_workers": _field("Threads", "integer", "How many threads move bytes; 4 when empty.", minimum=1, maximum=64),
}

# What every registry that is reached by HTTP understands besides.
_HTTP = {
    "verify_tls": {
        "label": "Verify TLS",
        "description": "Check the server's certificate.",
        "schema": {"type": ["boolean", "null"], "default": True},
    },
    "ca_bundle": _field("CA bundle", "string", "File of CA certificates to trust instead of the system's."),
    "client_cert": _field("Client certificate", "string", "PEM file, for servers that ask for one."),
    "client_key": _field("Client key", "string", "PEM file, when the certificate's does not hold the key."),
    "proxy": _field("Proxy", "string", "Proxy URL; wins over the environment."),
    "timeout_seconds": _field(
        "Timeout", "number", "Seconds that one API call may take, all its tries included; 60 when empty.", minimum=1
    ),
    **_WORKERS,
    "part_size_mib": _field(
        "Part size", "integer", "MiB in each part of an upload in parts; 16 when empty.", minimum=5, maximum=5120
    ),
    "presigned_hosts": _field(
        "Presigned hosts", "string", "Hosts that presigned URLs may name although they are not public https."
    ),
}

_CONNECTION_TYPES: list[dict[str, Any]] = [
    {
        "connection-type": "modelstore",
        "hook-class-name": f"{_PACKAGE}.hooks.modelstore.ModelStoreHook",
        "hook-name": "Model Store",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port"],
            "relabeling": {"host": "Root", "login": "Access key id", "password": "Secret access key"},
            "placeholders": {"host": "s3://bucket/prefix or file:///srv/models"},
        },
        "conn-fields": {
            "endpoint_url": _field("Endpoint URL", "string", "Of storages other than AWS."),
            "region_name": _field("Region", "string", "Where the bucket is; found out when empty."),
            "session_token": _field("Session token", "string", "Of temporary credentials.", format="password"),
            "aws_conn_id": _field(
                "AWS connection", "string", "Id of an aws connection whose credentials are used instead of the keys."
            ),
            **_HTTP,
        },
    },
    {
        "connection-type": "bentocloud",
        "hook-class-name": f"{_PACKAGE}.hooks.bentocloud.BentoCloudHook",
        "hook-name": "BentoCloud",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login"],
            "relabeling": {"host": "Base URL", "password": "API token"},
            "placeholders": {"host": "https://cloud.bentoml.com"},
        },
        "conn-fields": {
            "organization": _field("Organisation", "string", "Whose models; the token's own organisation when empty."),
            "cluster": _field("Cluster", "string", "Where deployments run; the organisation's first when empty."),
            **_HTTP,
        },
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
        "hooks": _modules("hooks", "registry", "modelstore", "bentocloud"),
        "operators": _modules("operators", "transfer", "catalog", "deployment", "bentocloud"),
        "sensors": _modules("sensors", "model"),
        "triggers": _modules("triggers", "base", "model", "deployment"),
        "extra-links": [f"{_PACKAGE}.links.RegistryConsoleLink"],
        "asset-uris": [
            {
                "schemes": ["modelsync"],
                "handler": f"{_PACKAGE}.assets.sanitize_uri",
                "factory": f"{_PACKAGE}.assets.model_asset",
                "to_openlineage_converter": f"{_PACKAGE}.assets.convert_to_openlineage",
            }
        ],
    }

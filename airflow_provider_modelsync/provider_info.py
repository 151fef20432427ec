"""What Airflow learns about this provider. Data only: every Airflow process imports this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PACKAGE = "airflow_provider_modelsync"


def _field(label: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    # A type without "null" would be marked as required.
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


def _in_section(section: str, fields: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**field, "schema": {**field["schema"], "section": section}} for name, field in fields.items()}


_EVERY_TRANSFER = {
    "max_workers": _field(
        "Threads", "integer", "How many move bytes; 4 when empty.", minimum=1, maximum=64, section="Transfer"
    ),
    "min_rate_kib_s": _field(
        "Slowest rate (KiB/s)",
        "number",
        "A transfer slower than this for 5 minutes ends and is tried again; 1 when empty, 0 for never.",
        minimum=0,
        section="Transfer",
    ),
}

# What every registry that is reached by HTTP understands besides, in sections of their own.
_HTTP = {
    "verify_tls": _field("Verify TLS", "boolean", "Check the server's certificate.", default=True, section="Network"),
    "ca_bundle": _field(
        "CA bundle", "string", "File of CA certificates to trust instead of the system's.", section="Network"
    ),
    "client_cert": _field("Client certificate", "string", "PEM file, for servers that ask for one.", section="Network"),
    "client_key": _field(
        "Client key", "string", "PEM file, when the certificate's does not hold the key.", section="Network"
    ),
    "proxy": _field(
        "Proxy URL",
        "string",
        "May hold user and password; wins over the environment.",
        format="password",
        section="Network",
    ),
    "timeout_seconds": _field(
        "Timeout (s)", "number", "For one API call with all its tries; 60 when empty.", minimum=1, section="Network"
    ),
    **_EVERY_TRANSFER,
    "part_size_mib": _field(
        "Part size (MiB)", "integer", "Of uploads in parts; 16 when empty.", minimum=5, maximum=5120, section="Transfer"
    ),
    "presigned_hosts": _field(
        "Presigned hosts",
        "string",
        "What presigned URLs may name without https, or on the worker's own machine; separated by commas.",
        section="Transfer",
    ),
}

# For registries that keep signatures of models.
_TRUST = {
    "signatures": _field(
        "Signatures",
        "string",
        "Of what is pulled and synced: looked at by none, warned of, or required.",
        enum=["off", "warn", "require"],
        section="Trust",
    ),
    "trusted_signers": _field(
        "Trusted signers",
        "string",
        "Files of public keys or certificates on the workers, or identity|issuer; separated by commas.",
        section="Trust",
    ),
    "signing_key": _field(
        "Signing key", "string", "PEM file on the workers that pushes sign with; none when empty.", section="Trust"
    ),
    "signing_key_password": _field("Key password", "string", "Of that file.", format="password", section="Trust"),
    "signing_certificate": _field(
        "Signing certificate", "string", "PEM file, where the key has one, with its chain.", section="Trust"
    ),
}

# Of no use where no model moves to or from the worker.
_FOR_BYTES = {*_EVERY_TRANSFER, "part_size_mib", "presigned_hosts"}

# How a bucket is reached that speaks S3, and what its objects get.
_S3 = {
    "endpoint_url": _field("Endpoint URL", "string", "Of a storage that is not where its vendor's own is."),
    "region_name": _field("Region", "string", "Where the bucket is; found out when empty."),
    "session_token": _field("Session token", "string", "Part of temporary keys.", format="password"),
    "aws_conn_id": _field(
        "AWS connection", "string", "Id of an aws connection whose credentials are used instead of the keys."
    ),
    "addressing_style": _field(
        "Addressing style",
        "string",
        "Where the bucket stands: in the URL's path, or in its host's name (virtual).",
        enum=["auto", "path", "virtual"],
    ),
    "server_side_encryption": _field(
        "Encryption",
        "string",
        "What the bucket demands, if anything.",
        enum=["AES256", "aws:kms", "aws:kms:dsse"],
    ),
    "sse_kms_key_id": _field("KMS key", "string", "Id of the key to encrypt with."),
    "request_payer": _field(
        "Request payer", "string", "For a bucket whose owner does not pay for requests.", enum=["requester"]
    ),
    "storage_class": _field("Storage class", "string", "Of all objects; none that has to be restored first."),
}

_CONNECTION_TYPES: list[dict[str, Any]] = [
    {
        "connection-type": "modelstore",
        "hook-class-name": f"{_PACKAGE}.hooks.modelstore.ModelStoreHook",
        "hook-name": "Model Store",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {
                "host": "Root",
                "login": "Access key id",
                "password": "Secret key, key file (JSON) or signature",
            },
            "placeholders": {
                "host": "e.g. s3://bucket/prefix, gs://…, abfs://container@account/prefix or file:///srv/models",
                "login": "of an s3:// root; of abfs:// the client id, with tenant_id",
                # Airflow 3.3.2 tests no connection whose port is empty.
                "port": "unused; 0 makes Test work in Airflow 3.3.2",
            },
        },
        "conn-fields": {
            **_S3,
            "gcp_conn_id": _field(
                "Google Cloud connection", "string", "Id of a google_cloud_platform connection, for a gs:// root."
            ),
            "azure_conn_id": _field("Azure connection", "string", "Id of a wasb connection, for an abfs:// root."),
            "tenant_id": _field("Tenant id", "string", "Of the application on Azure whose secret is the password."),
            "managed_identity_client_id": _field(
                "Managed identity", "string", "Client id of the one that is meant, where a machine has several."
            ),
            "workload_identity_tenant_id": _field("Workload identity tenant", "string", "Where it is registered."),
            **_HTTP,
            **_TRUST,
        },
    },
    {
        "connection-type": "bentocloud",
        "hook-class-name": f"{_PACKAGE}.hooks.bentocloud.BentoCloudHook",
        "hook-name": "BentoCloud",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login"],
            "relabeling": {"host": "Base URL", "password": "API token"},
            "placeholders": {"host": "e.g. https://cloud.bentoml.com", "port": "e.g. 443"},
        },
        "conn-fields": {
            "organization": _field("Organisation", "string", "Whose models; the token's own organisation when empty."),
            "cluster": _field("Cluster", "string", "Where deployments run; the organisation's first when empty."),
            **_HTTP,
            **_TRUST,
        },
    },
    {
        "connection-type": "wallaroo",
        "hook-class-name": f"{_PACKAGE}.hooks.wallaroo.WallarooHook",
        "hook-name": "Wallaroo",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {"host": "Base URL", "login": "User name", "password": "Password"},
            "placeholders": {
                "host": "e.g. https://example.wallaroo.ai",
                "login": "e.g. jane@example.com",
                "port": "e.g. 443",
            },
        },
        "conn-fields": {
            "workspace": _field("Workspace", "string", "Its name or id; the user's own when empty."),
            "create_workspace": _field("Create workspace", "boolean", "Make the workspace when there is none."),
            "auth_url": _field("Authentication URL", "string", "Base URL of the Keycloak, where it has its own host."),
            "realm": _field("Realm", "string", "Of the Keycloak; master when empty."),
            "client_id": _field(
                "Client id", "string", "OAuth client; api-client with a secret, else sdk-client when empty."
            ),
            "client_secret": _field("Client secret", "string", "Of a confidential client.", format="password"),
            "grant_type": _field(
                "Grant type",
                "string",
                "How to log in; what the filled fields allow when empty.",
                enum=["password", "refresh_token", "token"],
            ),
            "refresh_token": _field("Refresh token", "string", "An offline token.", format="password"),
            "access_token": _field(
                "Access token", "string", "A ready-made token; it is not renewed.", format="password"
            ),
            **{name: field for name, field in _HTTP.items() if name not in ("part_size_mib", "presigned_hosts")},
        },
    },
    {
        "connection-type": "supervisely",
        "hook-class-name": f"{_PACKAGE}.hooks.supervisely.SuperviselyHook",
        "hook-name": "Supervisely",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login"],
            "relabeling": {"host": "Server address", "password": "API token"},
            "placeholders": {"host": "e.g. https://app.supervisely.com", "port": "e.g. 443"},
        },
        "conn-fields": {
            "team_id": _field("Team", "integer", "Whose Team Files; the workspace's team when empty.", minimum=1),
            "workspace_id": _field("Workspace", "integer", "Where deployments run.", minimum=1),
            "task_id": _field("Task", "integer", "The deployment that is meant where none is named.", minimum=1),
            "session_token": _field(
                "Session token", "string", "The same by its token, without the API.", format="password"
            ),
            "deployment_url": _field("Deployment URL", "string", "The same by an address that holds no token."),
            "artifacts_root": _field("Experiments", "string", "Directory of Team Files; /experiments when empty."),
            **_HTTP,
            **_TRUST,
        },
    },
    {
        "connection-type": "oci_registry",
        "hook-class-name": f"{_PACKAGE}.hooks.oci.OCIRegistryHook",
        "hook-name": "OCI Registry",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {"host": "Registry", "login": "User name", "password": "Password or token"},
            "placeholders": {
                "host": "e.g. https://harbor.example.com/team",
                "login": "e.g. robot$airflow",
                "port": "e.g. 443",
            },
        },
        "conn-fields": {
            "repositories": _field(
                "Repositories", "string", "Names of models, where the registry does not list them; separated by commas."
            ),
            **{name: field for name, field in _HTTP.items() if name != "part_size_mib"},
            **_TRUST,
        },
    },
    {
        "connection-type": "mlflow",
        "hook-class-name": f"{_PACKAGE}.hooks.mlflow.MLflowHook",
        "hook-name": "MLflow",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {"host": "Tracking URI", "login": "User name", "password": "Password"},
            "placeholders": {"host": "e.g. https://mlflow.example.com", "login": "none when empty", "port": "e.g. 443"},
        },
        "conn-fields": {
            "token": _field(
                "Bearer token", "string", "For a proxy before the server, instead of a login.", format="password"
            ),
            "experiment": _field("Experiment", "string", "Holds what is pushed; modelsync when empty."),
            "workspace": _field("Workspace", "string", "Of a server that has them; its default one when empty."),
            **_in_section(
                "Bucket",
                {
                    "aws_access_key_id": _field(
                        "Access key id",
                        "string",
                        "For artifacts in a bucket that is reached past the server.",
                        format="password",  # Airflow masks it by its name
                    ),
                    "aws_secret_access_key": _field(
                        "Secret access key", "string", "Empty: AWS's own chain.", format="password"
                    ),
                    **_S3,
                },
            ),
            **_HTTP,
            **_TRUST,
        },
    },
    {
        "connection-type": "huggingface_hub",
        "hook-class-name": f"{_PACKAGE}.hooks.huggingface.HuggingFaceHubHook",
        "hook-name": "Hugging Face Hub",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login"],
            "relabeling": {"host": "Base URL", "password": "Token"},
            "placeholders": {
                "host": "e.g. https://huggingface.co",
                "password": "public models need none",
                "port": "e.g. 443",
            },
        },
        "conn-fields": {
            "namespace": _field(
                "Namespace", "string", "Whose models are listed where nothing else says so: a user or an organisation."
            ),
            **{name: field for name, field in _HTTP.items() if name != "part_size_mib"},
        },
    },
    {
        "connection-type": "pieces",
        "hook-class-name": f"{_PACKAGE}.hooks.pieces.PiecesHook",
        "hook-name": "Pieces OS",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "password"],
            "relabeling": {"host": "Base URL"},
            "placeholders": {"host": "e.g. http://localhost", "port": "e.g. 39300"},
        },
        "conn-fields": {
            "application_id": _field("Application id", "string", "What this client is called there; may be empty."),
            **{name: field for name, field in _HTTP.items() if name not in _FOR_BYTES},
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
        "hooks": _modules(
            "hooks",
            "registry",
            "modelstore",
            "bentocloud",
            "wallaroo",
            "supervisely",
            "oci",
            "mlflow",
            "huggingface",
            "pieces",
        ),
        "operators": _modules(
            "operators", "transfer", "catalog", "lifecycle", "deployment", "bentocloud", "supervisely", "pieces"
        ),
        "sensors": _modules("sensors", "model", "deployment"),
        "triggers": _modules("triggers", "base", "model", "deployment", "fetch", "predict"),
        "extra-links": [f"{_PACKAGE}.links.{name}" for name in ("RegistryConsoleLink", "DeploymentLink")],
        "config": {
            "modelsync": {
                "description": "What airflow-provider-modelsync does where no connection says it.",
                "options": {
                    "state_url": {
                        "description": (
                            "Where tasks and watchers remember what is done, in an Airflow older than 3.3, which has "
                            "no state store: an absolute directory that all workers and triggerers share, or an "
                            "object storage URL with a connection."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@bucket/modelsync-state",
                        "default": None,
                    }
                },
            }
        },
        "cli": [f"{_PACKAGE}.cli.definition.get_modelsync_cli_commands"],
        "asset-uris": [
            {
                "schemes": ["modelsync"],
                "handler": f"{_PACKAGE}.assets.sanitize_uri",
                "factory": f"{_PACKAGE}.assets.model_asset",
                "to_openlineage_converter": f"{_PACKAGE}.assets.convert_to_openlineage",
            },
            {
                "schemes": ["modelsync-bento"],
                "handler": f"{_PACKAGE}.assets.sanitize_uri",
                "factory": f"{_PACKAGE}.assets.bento_asset",
                "to_openlineage_converter": f"{_PACKAGE}.assets.convert_to_openlineage",
            },
        ],
    }

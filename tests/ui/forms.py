"""What a person should meet in each connection form, and enters there. A new connection type is a new entry."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool

STANDARD, EXTRA, BUCKET, NETWORK, TRANSFER, TRUST, JSON = (
    "Standard Fields",
    "Extra Fields",
    "Bucket",
    "Network",
    "Transfer",
    "Trust",
    "Extra Fields JSON",
)


@dataclass(frozen=True)
class Field:
    """One field of a form.

    :param label: what stands before it.
    :param value: what the tests enter; its type says which widget there must be.
    :param secret: whether it is never shown, neither on screen nor by the API.
    :param choices: of a drop-down.
    """

    label: str
    value: Value
    secret: bool = False
    choices: tuple[str, ...] = ()

    @property
    def widget(self) -> str:
        """What it is entered with."""
        if self.secret:
            return "password"
        if self.choices:
            return "choice"
        return {str: "text", bool: "switch", int: "number", float: "number"}[type(self.value)]


def _secret(label: str, value: str = "canary-{}-7d1e90") -> Field:
    return Field(label, value.format(label.lower().replace(" ", "-")), secret=True)


_DESCRIPTION = {"description": Field("Description", "entered by a test")}
_PORT = {"port": Field("Port", 8443)}
_NETWORK = {
    "verify_tls": Field("Verify TLS", False),
    "ca_bundle": Field("CA bundle", "/etc/ssl/private-ca.pem"),
    "client_cert": Field("Client certificate", "/etc/ssl/client.pem"),
    "client_key": Field("Client key", "/etc/ssl/client.key"),
    "proxy": _secret("Proxy URL", "http://user:canary-{}-7d1e90@proxy.example.com:3128"),
    "timeout_seconds": Field("Timeout (s)", 7.5),
}
_TRANSFER = {
    "max_workers": Field("Threads", 3),
    "min_rate_kib_s": Field("Slowest rate (KiB/s)", 0.5),
    "part_size_mib": Field("Part size (MiB)", 32),
    "presigned_hosts": Field("Presigned hosts", "minio.example.com, 10.0.0.7"),
}

_S3 = {
    "endpoint_url": Field("Endpoint URL", "https://minio.example.com:9000"),
    "region_name": Field("Region", "eu-central-1"),
    "session_token": _secret("Session token"),
    "aws_conn_id": Field("AWS connection", "aws_default"),
    "addressing_style": Field("Addressing style", "path", choices=("auto", "path", "virtual")),
    "server_side_encryption": Field("Encryption", "aws:kms", choices=("AES256", "aws:kms", "aws:kms:dsse")),
    "sse_kms_key_id": Field("KMS key", "alias/models"),
    "request_payer": Field("Request payer", "requester", choices=("requester",)),
    "storage_class": Field("Storage class", "STANDARD_IA"),
}
_TRUST = {
    "signatures": Field("Signatures", "require", choices=("off", "warn", "require")),
    "trusted_signers": Field("Trusted signers", "/etc/keys/team.pub"),
    "signing_key": Field("Signing key", "/etc/keys/team.key"),
    "signing_key_password": _secret("Key password"),
    "signing_certificate": Field("Signing certificate", "/etc/keys/team.crt"),
}

# Connection type → section → name → field, in the order on the screen.
FORMS: dict[str, dict[str, dict[str, Field]]] = {
    "modelstore": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Root", "s3://models/prod"),
            "login": Field("Access key id", "AKIAEXAMPLE"),
            "password": _secret("Secret key, key file (JSON) or signature"),
            **_PORT,
        },
        EXTRA: {
            **_S3,
            "gcp_conn_id": Field("Google Cloud connection", "google_cloud_default"),
            "azure_conn_id": Field("Azure connection", "wasb_default"),
            "tenant_id": Field("Tenant id", "acme.onmicrosoft.com"),
            "managed_identity_client_id": Field("Managed identity", "00000000-0000-0000-0000-000000000001"),
            "workload_identity_tenant_id": Field("Workload identity tenant", "acme.onmicrosoft.com"),
        },
        NETWORK: _NETWORK,
        TRANSFER: _TRANSFER,
        TRUST: _TRUST,
    },
    "bentocloud": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Base URL", "https://acme.cloud.bentoml.com"),
            "password": _secret("API token"),
            **_PORT,
        },
        EXTRA: {"organization": Field("Organisation", "acme"), "cluster": Field("Cluster", "gpu-eu")},
        NETWORK: _NETWORK,
        TRANSFER: _TRANSFER,
        TRUST: _TRUST,
    },
    "wallaroo": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Base URL", "https://acme.wallaroo.ai"),
            "login": Field("User name", "jane@acme.com"),
            "password": _secret("Password"),
            **_PORT,
        },
        EXTRA: {
            "workspace": Field("Workspace", "fraud-team"),
            "create_workspace": Field("Create workspace", True),
            "auth_url": Field("Authentication URL", "https://keycloak.acme.com/auth"),
            "realm": Field("Realm", "acme"),
            "client_id": Field("Client id", "airflow"),
            "client_secret": _secret("Client secret"),
            "grant_type": Field("Grant type", "refresh_token", choices=("password", "refresh_token", "token")),
            "refresh_token": _secret("Refresh token"),
            "access_token": _secret("Access token"),
        },
        NETWORK: _NETWORK,
        TRANSFER: {name: _TRANSFER[name] for name in ("max_workers", "min_rate_kib_s")},
    },
    "supervisely": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Server address", "https://supervisely.acme.com"),
            "password": _secret("API token"),
            **_PORT,
        },
        EXTRA: {
            "team_id": Field("Team", 8),
            "workspace_id": Field("Workspace", 58),
            "task_id": Field("Task", 20001),
            "session_token": _secret("Session token"),
            "deployment_url": Field("Deployment URL", "http://gpu-7.example.com:8000"),
            "artifacts_root": Field("Experiments", "/trained"),
        },
        NETWORK: _NETWORK,
        TRANSFER: _TRANSFER,
        TRUST: _TRUST,
    },
    "oci_registry": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Registry", "https://harbor.acme.com/team"),
            "login": Field("User name", "robot$airflow"),
            "password": _secret("Password or token"),
            **_PORT,
        },
        EXTRA: {"repositories": Field("Repositories", "risk/fraud, churn")},
        NETWORK: _NETWORK,
        TRANSFER: {name: field for name, field in _TRANSFER.items() if name != "part_size_mib"},
        TRUST: _TRUST,
    },
    "mlflow": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Tracking URI", "https://mlflow.acme.com/team"),
            "login": Field("User name", "jane"),
            "password": _secret("Password"),
            **_PORT,
        },
        EXTRA: {
            "token": _secret("Bearer token"),
            "experiment": Field("Experiment", "models"),
            "workspace": Field("Workspace", "fraud-team"),
        },
        BUCKET: {
            "aws_access_key_id": _secret("Access key id"),
            "aws_secret_access_key": _secret("Secret access key"),
            **_S3,
        },
        NETWORK: _NETWORK,
        TRANSFER: _TRANSFER,
        TRUST: _TRUST,
    },
    "huggingface_hub": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Base URL", "https://hub.acme.com"),
            "password": _secret("Token"),
            **_PORT,
        },
        EXTRA: {"namespace": Field("Namespace", "acme")},
        NETWORK: _NETWORK,
        TRANSFER: {name: field for name, field in _TRANSFER.items() if name != "part_size_mib"},
    },
    "pieces": {
        STANDARD: {**_DESCRIPTION, "host": Field("Base URL", "http://desk.example.com"), **_PORT},
        EXTRA: {"application_id": Field("Application id", "6f1c0d52-airflow")},
        NETWORK: _NETWORK,
    },
}

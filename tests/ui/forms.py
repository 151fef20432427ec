"""What a person should meet in each connection form, and enters there. A new connection type is a new entry."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool

STANDARD, EXTRA, NETWORK, TRANSFER, JSON = (
    "Standard Fields",
    "Extra Fields",
    "Network",
    "Transfer",
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
    "part_size_mib": Field("Part size (MiB)", 32),
    "presigned_hosts": Field("Presigned hosts", "minio.example.com, 10.0.0.7"),
}

# Connection type → section → name → field, in the order on the screen.
FORMS: dict[str, dict[str, dict[str, Field]]] = {
    "modelstore": {
        STANDARD: {
            **_DESCRIPTION,
            "host": Field("Root", "s3://models/prod"),
            "login": Field("Access key id", "AKIAEXAMPLE"),
            "password": _secret("Secret access key"),
            **_PORT,
        },
        EXTRA: {
            "endpoint_url": Field("Endpoint URL", "https://minio.example.com:9000"),
            "region_name": Field("Region", "eu-central-1"),
            "session_token": _secret("Session token"),
            "aws_conn_id": Field("AWS connection", "aws_default"),
        },
        NETWORK: _NETWORK,
        TRANSFER: _TRANSFER,
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
    },
}

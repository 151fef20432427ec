"""A connection's fields, checked and frozen: read once, the same for workers and triggerer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from airflow_provider_modelsync.core.errors import InvalidInput

# Forms store every declared field, unset ones as null or an empty string.
_UNSET = (None, "")


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part for part in value.replace(",", " ").split() if part)
    return value


def base_url(host: str, port: int | None) -> str:
    """Return the base URL that a host field stands for.

    :param host: a full URL, or a bare host, which is reached by https.
    :param port: used when the host names none.
    """
    host = host.strip()
    url = urlsplit(host if "://" in host else f"https://{host}")
    place = url.netloc if port is None or url.port is not None else f"{url.netloc}:{port}"
    return urlunsplit((url.scheme, place, url.path.rstrip("/"), "", ""))


class RegistrySettings(BaseModel):
    """What every registry's connection may say; each registry adds its own fields.

    :param conn_id: the connection's id, for messages.
    :param host: base URL, host name or root, as the registry defines it.
    :param port: TCP port when the host does not name one.
    :param login: user name or key id.
    :param password: password, token or secret key.
    :param verify_tls: whether server certificates are checked.
    :param ca_bundle: file of CA certificates to trust instead of the system's.
    :param client_cert: client certificate file (PEM).
    :param client_key: its key file, when the certificate file does not hold it.
    :param proxy: proxy URL; wins over the environment.
    :param timeout_seconds: how long one API call may take, all its tries included.
    :param max_workers: threads that move bytes.
    :param min_rate_kib_s: a transfer that is slower for 5 minutes, in KiB/s, counts as stalled; 0 is never.
    :param part_size_mib: size of a multipart upload's parts in MiB; chosen by model size when unset.
    :param presigned_hosts: hosts that presigned URLs may name without https, or on this machine.
    :param signatures: what becomes of a model that no trusted signer vouches for, when it is pulled or synced.
    :param trusted_signers: files of public keys or certificates, or ``identity|issuer`` of Sigstore.
    :param signing_key: file of the private key that pushes sign with.
    :param signing_key_password: of that key.
    :param signing_certificate: file of the key's certificate, and of those between it and a root.
    """

    # Environment variables that may name a file of CA certificates, the first that is set counts.
    ca_variables: ClassVar[tuple[str, ...]] = ("SSL_CERT_FILE",)

    # Validation errors would otherwise quote the input, secrets included.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    conn_id: str
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: SecretStr | None = None
    verify_tls: bool = True
    ca_bundle: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    proxy: SecretStr | None = None
    timeout_seconds: float = Field(default=60.0, gt=0)
    max_workers: int = Field(default=4, ge=1, le=64)
    min_rate_kib_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    part_size_mib: int | None = Field(default=None, ge=5, le=5120)
    presigned_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    signatures: Literal["off", "warn", "require"] = "off"
    trusted_signers: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    signing_key: Path | None = None
    signing_key_password: SecretStr | None = None
    signing_certificate: Path | None = None

    @property
    def further_connections(self) -> tuple[str, ...]:
        """Ids of the connections that this one relies on."""
        return ()

    @classmethod
    def read(cls, conn_id: str, fields: Mapping[str, Any]) -> Self:
        """Check a connection's fields.

        :param conn_id: the connection's id.
        :param fields: standard fields and extras by name; null and empty mean unset, unknown ones are ignored.
        :raises InvalidInput: naming every field at fault, never a value.
        """
        given = {key: value for key, value in fields.items() if value not in _UNSET}
        try:
            return cls.model_validate({**given, "conn_id": conn_id})
        except ValidationError as error:
            faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors(include_input=False))
            raise InvalidInput(f"the connection's fields are not usable: {faults}", connection=conn_id) from None

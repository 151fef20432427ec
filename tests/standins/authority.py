"""A certificate authority for tests: it makes CA, server and client certificates on the spot."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """One CA.

    :param directory: where its files go.
    :param name: tells several apart.
    """

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"modelsync test {name}")])
        builder = self._builder(self._name, self._key.public_key(), days=2).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.bundle = directory / f"{name}.pem"
        self.bundle.write_bytes(self._signed(builder))

    def certificate(self, host: str = "127.0.0.1", *, days: int = 2) -> tuple[Path, Path]:
        """Make a certificate for a host or address and return its file and its key's; negative days: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        builder = self._builder(subject, key.public_key(), days=days).add_extension(
            x509.SubjectAlternativeName([name]), critical=False
        )
        stem = f"{self.bundle.stem}-{host}-{days}"
        certificate, key_file = self._directory / f"{stem}.pem", self._directory / f"{stem}.key"
        certificate.write_bytes(self._signed(builder))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key_file

    def server_context(self, host: str = "127.0.0.1", *, days: int = 2, ask_client: bool = False) -> ssl.SSLContext:
        """Return what a server needs; it may demand a certificate of this CA from its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate(host, days=days))
        if ask_client:
            context.load_verify_locations(self.bundle)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def any_host(self) -> ssl.SSLContext:
        """Return what a server needs that plays whatever host its clients ask for."""
        context = self.server_context()
        known: dict[str, ssl.SSLContext] = {}
        lock = threading.Lock()

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            with lock:
                if name and name not in known:
                    known[name] = self.server_context(name)
            if name:
                connection.context = known[name]

        context.sni_callback = choose
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int) -> x509.CertificateBuilder:
        end = datetime.now(UTC) + timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=10))
            .not_valid_after(end)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

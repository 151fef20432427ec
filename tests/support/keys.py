"""Keys to sign models with."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def keys(password: str | None = None) -> dict[str, bytes]:
    """Return a new pair: the private ``key`` and the public one, ``pub``, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return {
        "key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how),
        "pub": key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    }

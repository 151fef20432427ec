"""A token server as a real registry trusts it: tokens signed by a certificate of its own."""

from __future__ import annotations

import base64
import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.services.docker_registry import PASSWORD, USER
from tests.standins.http_server import Answer, Handler, Request, StandIn, json_answer

ISSUER, SERVICE = "tokens.test", "registry.test"


@cache
def _key() -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return key, certificate


class _Handler(Handler):
    def parsed(self) -> Request:
        request = super().parsed()
        request.body = parse_qs(urlsplit(self.path).query).get("scope", [])
        return request


class TokenServer(StandIn):
    """Gives who logs in what is asked for, and anybody else what only reads.

    `life`: seconds that a token counts.
    """

    def __init__(self, *, life: int = 300) -> None:
        super().__init__(handler=_Handler)
        self.life = life

    def settings(self, directory: Path) -> dict[str, Any]:
        """Return the part of a registry's configuration that trusts this server."""
        directory.mkdir(parents=True, exist_ok=True)
        bundle = directory / "tokens.crt"
        bundle.write_bytes(_key()[1].public_bytes(serialization.Encoding.PEM))
        token = {
            "realm": f"{self.url}/token",
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(bundle),
        }
        return {"auth": {"token": token}}

    def answer(self, request: Request, body: Any) -> Answer:
        given = request.headers.get("authorization", "")
        known = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if given and given != known:
            return json_answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})
        key, certificate = _key()
        now = int(time.time())
        access = []
        for scope in [one for text in request.body for one in text.split()]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            granted = actions.split(",") if given else ["pull"]
            access.append({"type": kind, "name": name, "actions": granted})
        claims = {
            "iss": ISSUER,
            "sub": USER if given else "",
            "aud": SERVICE,
            "exp": now + self.life,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        token = jwt.encode(claims, key, "RS256", headers={"x5c": chain})
        return json_answer(200, {"token": token, "expires_in": self.life})

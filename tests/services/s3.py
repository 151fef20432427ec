"""What a test needs to know of an S3 service, whoever runs it."""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit


class Answer(Protocol):
    """An answer as ``http.client`` has it."""

    status: int

    def getheaders(self) -> Iterable[tuple[str, str]]: ...
    def read(self, size: int | None = None, /) -> bytes: ...


class Connection(Protocol):
    """A connection for one request, as ``http.client`` has it."""

    host: str
    port: int

    def putrequest(
        self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False
    ) -> None: ...
    def putheader(self, name: str, value: str, /) -> None: ...
    def endheaders(self) -> None: ...
    def send(self, block: bytes, /) -> None: ...
    def getresponse(self) -> Answer: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class S3Service:
    """An S3 service that belongs to the tests.

    :param checks_signatures: refuses what was signed with another key.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    checks_signatures: bool

    def client(self, **config: Any) -> Any:
        """Return a plain boto3 client that tries everything once; ``config`` is botocore's."""
        import boto3
        from botocore.config import Config

        options: dict[str, Any] = {
            "proxies": {},
            "retries": {"total_max_attempts": 1},
            "s3": {"addressing_style": "path"},
            "signature_version": "s3v4",  # without it, URLs are presigned the old way
        }
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(**options | config),
        )

    def new_bucket(self) -> str:
        """Make a bucket that nobody else knows, and return its name."""
        name = f"test-{secrets.token_hex(8)}"
        self._own_client.create_bucket(Bucket=name)
        return name

    def etag(self, bucket: str, key: str) -> str | None:
        """Return an object's ETag, or ``None`` when it is not there."""
        try:
            return str(self._own_client.head_object(Bucket=bucket, Key=key)["ETag"]).strip('"')
        except self._own_client.exceptions.ClientError:
            return None

    def connection(self) -> Connection:
        """Return a connection for one request."""
        place = urlsplit(self.endpoint)
        assert place.hostname
        assert place.port
        return http.client.HTTPConnection(place.hostname, place.port)

    @cached_property
    def _own_client(self) -> Any:
        return self.client()

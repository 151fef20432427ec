"""boto3 for one bucket: it signs and parses, the byte mover carries its requests.

So proxy, certificates, deadlines and the size of answers follow one rule for API calls and presigned URLs alike.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.http.policy import USER_AGENT
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.base import LARGEST_ANSWER, LARGEST_RECORD, Deadline
from airflow_provider_modelsync.core.transfer.mover import Mover

_AWS = re.compile(r"s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")  # an endpoint that its region alone tells
_FIRST_REGION = "us-east-1"
# The mover does not ask whether a small body is wanted. The host is that of the URL: botocore tells it, too, where
# awscrt is installed, and a proxy would get it twice.
_LEFT_OUT = frozenset({"expect", "host"})
# Objects in them cannot be read, so they can be no model store.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


def endpoint_of_environment() -> str | None:
    """Return the endpoint that AWS's own variables name, if any."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


class S3Settings(RegistrySettings):
    """A connection to a bucket; ``login`` and ``password`` are the access key.

    :param endpoint_url: of storages other than AWS; by default what AWS's own variables name.
    :param region_name: where the bucket is.
    :param session_token: of temporary credentials.
    :param aws_conn_id: the connection whose credentials are used instead.
    :param addressing_style: whether the bucket stands in the URL's path, or in its host's name (``virtual``); ``auto``:
        in the name at AWS, in the path elsewhere.
    :param server_side_encryption: what S3 calls ``x-amz-server-side-encryption``, e.g. ``aws:kms``.
    :param sse_kms_key_id: the key to encrypt with.
    :param request_payer: ``requester`` for buckets whose owner does not pay for requests.
    :param storage_class: of all objects that are written.
    """

    ca_variables: ClassVar[tuple[str, ...]] = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")

    endpoint_url: str | None = Field(default_factory=endpoint_of_environment)
    region_name: str | None = None
    session_token: SecretStr | None = None
    aws_conn_id: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: str | None = None
    request_payer: Literal["requester"] | None = None
    storage_class: str | None = None

    @property
    def further_connections(self) -> tuple[str, ...]:
        return (self.aws_conn_id,) if self.aws_conn_id else ()

    @property
    def usual_parameters(self) -> dict[str, str]:
        """Return what goes with every request that knows it, by boto3's names."""
        given = {
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.sse_kms_key_id,
            "RequestPayer": self.request_payer,
            "StorageClass": self.storage_class,
        }
        return {name: value for name, value in given.items() if value}

    @field_validator("sse_kms_key_id")
    @classmethod
    def _needs_kms(cls, key: str | None, info: ValidationInfo) -> str | None:
        if key and not (info.data.get("server_side_encryption") or "").startswith("aws:kms"):
            raise ValueError("needs server_side_encryption aws:kms or aws:kms:dsse")
        return key

    @field_validator("storage_class")
    @classmethod
    def _is_readable(cls, name: str | None) -> str | None:
        if name in _ARCHIVES:
            raise ValueError(f"objects of the class {name} cannot be read, so a model store cannot be there")
        return name


def connect(bucket: str, settings: S3Settings, session: Any, mover: Mover, deadline: Callable[[], Deadline]) -> Any:
    """Return a boto3 client that reaches a bucket where it is.

    :param deadline: tells that of the call that the asking thread is in.
    """

    def client(region: str, endpoint: str | None, style: str) -> Any:
        from botocore.config import Config

        made = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            config=Config(
                signature_version="s3v4",
                user_agent=USER_AGENT,  # which botocore would put together anew for each request, for a millisecond
                # Else presigned URLs name a host that serves old regions only.
                s3={"addressing_style": style, "us_east_1_regional_endpoint": "regional"},
                # The sums are this project's own; storages other than AWS know few of botocore's.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},  # botocore's own tries know neither a deadline nor Retry-After
            ),
        )
        made.meta.events.register("before-send.s3", _Carrier(mover, deadline))
        made.meta.events.register("provide-client-params.s3", _Extras(settings.usual_parameters))
        return made

    style = settings.addressing_style
    endpoint = settings.endpoint_url
    if endpoint and _is_aws(endpoint):
        endpoint = None
    region = settings.region_name or session.region_name or _FIRST_REGION
    if endpoint is not None:
        return client(region, endpoint, "path" if style == "auto" else style)
    made = client(region, None, "virtual" if style == "auto" else style)
    # The worker's region need not be the bucket's, and nothing redirects what is signed for another one.
    own = _region_of(made, bucket)
    return client(own, None, "virtual" if style == "auto" else style) if own and own != region else made


def _is_aws(endpoint: str) -> bool:
    return _AWS.fullmatch(urlsplit(endpoint).hostname or "") is not None


def _region_of(client: Any, bucket: str) -> str | None:
    """Ask where a bucket is; those who may not look at it are told, too."""
    from botocore.exceptions import ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
        if answer["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise InvalidInput(f"NoSuchBucket: there is no such bucket: {bucket}", argument="host") from None
    region = answer.get("BucketRegion") or answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return str(region) if region else None


class _Extras:
    """Adds the connection's own parameters to every request that knows them, signed URLs included."""

    def __init__(self, usual: Mapping[str, str]) -> None:
        self._usual = usual

    def __call__(self, params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        known = model.input_shape.members
        return {**{name: value for name, value in self._usual.items() if name in known}, **params}


class _Carrier:
    """Carries boto3's requests by the mover."""

    def __init__(self, mover: Mover, deadline: Callable[[], Deadline]) -> None:
        self._mover = mover
        self._deadline = deadline

    def __call__(self, request: Any, event_name: str, **_: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        deadline = self._deadline()
        body = request.body.read() if hasattr(request.body, "read") else request.body
        headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in _LEFT_OUT}
        answer = self._mover.call(
            request.method,
            request.url,
            headers,
            body.encode() if isinstance(body, str) else body,
            deadline.doing,
            pace=deadline.pace(),
            largest=LARGEST_RECORD if event_name.endswith(".GetObject") else LARGEST_ANSWER,
        )
        return AWSResponse(request.url, answer.status, answer.headers, _Body(answer.body))


class _Body(io.BytesIO):
    """An answer's body as botocore reads it."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

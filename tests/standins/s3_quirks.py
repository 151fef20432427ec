"""How storages that speak S3 differ from AWS, each difference a switch of the S3 stand-in, with its public source.

    with running_moto() as moto, S3StandIn(moto, quirks=STORAGES["Cloudflare R2, 2025"]) as s3: ...

A quirk refuses a request before the service sees it, changes it, or changes the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.standins.s3 import Request

Refused = tuple[int, str, str]  # status, code, message


@dataclass(frozen=True)
class Quirk:
    """One difference.

    :param source: where it is described.
    :param refuse: what is answered instead of what was asked for, if anything.
    :param dropped: operations → headers of requests that are ignored.
    :param rewrite: changes an answer's body.
    :param hidden: headers that answers lack.
    :param creates_on_if_match: the condition holds where nothing is.
    """

    source: str
    refuse: Callable[[Request], Refused | None] = lambda request: None
    dropped: Mapping[str, tuple[str, ...]] | None = None
    rewrite: Callable[[Request, bytes], bytes] | None = None
    hidden: tuple[str, ...] = ()
    creates_on_if_match: bool = False


def _sum_header(request: Request) -> str | None:
    names = [name for name in request.headers if re.match(r"x-amz-(sdk-)?checksum", name)]
    return names[0] if names else None


def _r2_sums(request: Request) -> Refused | None:
    if name := _sum_header(request):
        return 501, "NotImplemented", f"Header '{name}' with value '{request.headers[name]}' not implemented"
    return None


def _b2_sums(request: Request) -> Refused | None:
    if name := _sum_header(request):
        return 400, "InvalidArgument", f"Unsupported header '{name}' received for this API call."
    return None


def _needs_sum(request: Request) -> Refused | None:
    sums = {name for name in request.headers if name == "content-md5" or name.startswith("x-amz-checksum-")}
    if request.operation in ("PutObject", "UploadPart") and not sums:
        what = "Put Object" if request.operation == "PutObject" else "Put Part"
        message = (
            f"Content-MD5 OR x-amz-checksum- HTTP header is required for {what} requests with Object Lock parameters"
        )
        return 400, "InvalidRequest", message
    return None


def _worm(request: Request) -> Refused | None:
    if request.operation == "DeleteObject" and "/.modelsync" not in request.key:
        return 400, "InvalidRequest", "Object is WORM protected and cannot be overwritten"
    return None


def _needs_quotes(request: Request) -> Refused | None:
    tag = request.headers.get("if-match", '"')
    if request.method in ("PUT", "DELETE") and not tag.startswith('"'):
        message = f"Invalid Argument: If-Match each ETag must be surrounded by double quotes, got '{tag}'."
        return 400, "InvalidArgument", message
    return None


def _hates_quotes(request: Request) -> Refused | None:
    if request.operation in ("PutObject", "DeleteObject") and request.headers.get("if-match", "").startswith('"'):
        return 412, "PreconditionFailed", "PreconditionFailed"
    return None


def _needs_encryption(request: Request) -> Refused | None:
    kind = request.headers.get("x-amz-server-side-encryption")
    if request.operation in ("PutObject", "CopyObject", "CreateMultipartUpload") and kind != "aws:kms":
        return 403, "AccessDenied", "User is not authorized to perform: s3:PutObject with an explicit deny"
    return None


def _payer_is_asked(request: Request) -> Refused | None:
    if request.headers.get("x-amz-request-payer") != "requester":
        return 403, "AccessDenied", "Access Denied"
    return None


def _by_name_only(request: Request) -> Refused | None:
    if not request.is_virtual:
        return 403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."
    return None


def _offers_no(*operations: str) -> Callable[[Request], Refused | None]:
    def refuse(request: Request) -> Refused | None:
        if request.operation in operations:
            return 501, "NotImplemented", "A header you provided implies functionality that is not implemented"
        return None

    return refuse


def _exact_keys(request: Request, xml: bytes) -> bytes:
    if request.operation != "ListMultipartUploads" or not (wanted := request.query.get("prefix")):
        return xml
    uploads = re.findall(rb"<Upload>.*?</Upload>", xml, re.DOTALL)
    for upload in uploads:
        if f"<Key>{wanted}</Key>".encode() not in upload:
            xml = xml.replace(upload, b"")
    return xml


QUIRKS: Mapping[str, Quirk] = {
    "sums are not implemented": Quirk("https://github.com/cloudflare/cloudflare-docs/pull/19236", _r2_sums),
    "sums are invalid": Quirk("https://github.com/nocodb/nocodb/issues/10942", _b2_sums),
    "sums are not echoed": Quirk(
        "https://github.com/milvus-io/milvus-storage/pull/454",
        dropped={"PutObject": ("x-amz-checksum-crc32",), "UploadPart": ("x-amz-checksum-crc32",)},
        hidden=("x-amz-checksum-crc32",),
    ),
    "uploads are listed by exact key": Quirk("https://github.com/minio/minio/issues/20989", rewrite=_exact_keys),
    "tags need quotes": Quirk("https://github.com/apache/opendal/pull/2226", _needs_quotes),
    "tags need no quotes": Quirk("https://github.com/slatedb/slatedb/issues/1818", _hates_quotes),
    "If-Match creates": Quirk("https://github.com/minio/minio/issues/21526", creates_on_if_match=True),
    "deletes know no conditions": Quirk(
        "https://github.com/apache/opendal/issues/7607", dropped={"DeleteObject": ("if-match",)}
    ),
    "writes know no conditions": Quirk(
        "https://github.com/apache/arrow-rs/issues/4879", dropped={"PutObject": ("if-match", "if-none-match")}
    ),
    "copies know no conditions": Quirk(
        "https://github.com/ceph/ceph/pull/30866", dropped={"CopyObject": ("x-amz-copy-source-if-match",)}
    ),
    "no copies": Quirk("https://github.com/nextcloud/server/issues/61925", _offers_no("CopyObject", "UploadPartCopy")),
    "no lists of uploads": Quirk("https://github.com/jamhall/s3rver/issues/330", _offers_no("ListMultipartUploads")),
    "no lists of parts": Quirk("https://github.com/jamhall/s3rver/issues/330", _offers_no("ListParts")),
    "Object Lock with a default retention": Quirk(
        "https://github.com/apache/arrow-rs-object-store/issues/190", _needs_sum
    ),
    "locked objects": Quirk("https://github.com/minio/minio/issues/16480", _worm),
    "a policy that demands encryption": Quirk(
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html", _needs_encryption
    ),
    "the requester pays": Quirk(
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/RequesterPaysBuckets.html", _payer_is_asked
    ),
    "the bucket in the host's name only": Quirk("https://github.com/peak/s5cmd/issues/518", _by_name_only),
}

# What storages are like that cannot run here.
STORAGES: Mapping[str, tuple[str, ...]] = {
    "AWS": (),
    "AWS, Object Lock": ("Object Lock with a default retention",),
    "AWS, policy that demands encryption": ("a policy that demands encryption",),
    "AWS, requester pays": ("the requester pays",),
    "Cloudflare R2": ("sums are not implemented", "tags need quotes"),
    "Backblaze B2": ("sums are invalid",),
    "MinIO": ("uploads are listed by exact key", "deletes know no conditions"),
    "MinIO before September 2025": ("uploads are listed by exact key", "If-Match creates"),
    "DigitalOcean Spaces": ("tags need no quotes", "sums are not echoed"),
    "Hetzner Object Storage": ("no copies",),
    "Alibaba Cloud OSS": ("the bucket in the host's name only",),
    "Google Cloud Storage by S3": ("writes know no conditions",),
}

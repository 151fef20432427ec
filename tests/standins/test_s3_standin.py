"""The S3 stand-in refuses what S3 refuses, logs requests, and breaks where it is told to. Before moto and Ceph."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.exceptions import ClientError, HTTPClientError, ReadTimeoutError

from tests.services.ceph_rgw import rgw
from tests.services.moto_server import running_moto
from tests.standins.authority import Authority
from tests.standins.http_server import FlipBit, LoseAnswer, Reset
from tests.standins.s3 import After, Before, Request, Respond, S3StandIn, Stall

PART = bytes(range(256)) * (5 * 4096)  # the smallest that S3 takes
TAIL = b"the last part may be small"
STALE = "0" * 32
CRC_OF_BODY = "x-amz-checksum-crc32"
BODY = b"hello"


@pytest.fixture(params=["moto", pytest.param("rgw", marks=pytest.mark.s3)])
def s3(request: pytest.FixtureRequest) -> Iterator[S3StandIn]:
    if request.param == "rgw":
        with S3StandIn(rgw()) as s3:
            yield s3
    else:
        with running_moto() as moto, S3StandIn(moto) as s3:
            yield s3


@pytest.fixture
def client(s3: S3StandIn) -> Any:
    return s3.client()


def put(s3: S3StandIn, key: str = "key", body: bytes = BODY, **options: Any) -> str:
    """Write an object and return its ETag, without the quotes."""
    return str(s3.client().put_object(Bucket=s3.bucket, Key=key, Body=body, **options)["ETag"]).strip('"')


def read(s3: S3StandIn, key: str = "key") -> bytes | None:
    """What the service holds."""
    with suppress(s3.backend.client().exceptions.NoSuchKey):
        return bytes(s3.backend.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read())
    return None


def start(s3: S3StandIn, key: str = "key") -> dict[str, Any]:
    """Upload two parts and return what completes them."""
    client, common = s3.client(), {"Bucket": s3.bucket, "Key": key}
    common["UploadId"] = client.create_multipart_upload(**common)["UploadId"]
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(**common, PartNumber=number, Body=body)["ETag"]}
        for number, body in ((1, PART), (2, TAIL))
    ]
    return common | {"MultipartUpload": {"Parts": parts}}


def outcome(call: Callable[..., Any], **arguments: Any) -> tuple[int, str]:
    """A call's status and S3's word for it."""
    try:
        return call(**arguments)["ResponseMetadata"]["HTTPStatusCode"], ""
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]


def presigned(s3: S3StandIn, operation: str = "put_object", *, life: int = 60, **parameters: Any) -> str:
    parameters = {"Bucket": s3.bucket, "Key": "key"} | parameters
    return str(s3.client().generate_presigned_url(operation, Params=parameters, ExpiresIn=life))


def send(url: str, headers: dict[str, str] | None = None, *, method: str = "PUT") -> tuple[int, str]:
    """Use a presigned URL and return the status and S3's word for it."""
    body = BODY if method == "PUT" else None
    answer = urllib3.request(method, url, body=body, headers=headers, retries=False)
    return answer.status, answer.data.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


# ---- what passes, and the log -----------------------------------------------------------------------------------


def test_objects_and_parts_pass_and_are_logged(s3: S3StandIn, client: Any) -> None:
    put(s3, "a directory/größe+1", Metadata={"k": "v"})
    client.complete_multipart_upload(**start(s3, "big"))
    whole = client.get_object(Bucket=s3.bucket, Key="big", Range=f"bytes={len(PART) - 1}-")
    listed = client.list_objects_v2(Bucket=s3.bucket)["Contents"]
    client.delete_objects(Bucket=s3.bucket, Delete={"Objects": [{"Key": "big"}]})

    assert whole["Body"].read() == PART[-1:] + TAIL
    assert whole["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert [item["Key"] for item in listed] == ["a directory/größe+1", "big"]
    assert s3.operations == {
        "PutObject": 1,
        "CreateMultipartUpload": 1,
        "UploadPart": 2,
        "CompleteMultipartUpload": 1,
        "GetObject": 1,
        "ListObjectsV2": 1,
        "DeleteObjects": 1,
    }
    assert s3.uploaded == {"a directory/größe+1": len(BODY), "big": len(PART + TAIL)}
    assert s3.downloaded == {"big": 1 + len(TAIL)}
    assert [(request.part, request.status) for request in s3.find("UploadPart")] == [(1, 200), (2, 200)]
    assert b"<PartNumber>2</PartNumber>" in s3.find("CompleteMultipartUpload")[0].body


def test_conditional_reads_pass(s3: S3StandIn, client: Any) -> None:
    etag = put(s3)
    where = {"Bucket": s3.bucket, "Key": "key"}
    assert outcome(client.get_object, **where, IfMatch=f'"{etag}"') == (200, "")
    assert outcome(client.get_object, **where, IfMatch=f'"{STALE}"') == (412, "PreconditionFailed")
    assert outcome(client.head_object, **where, IfNoneMatch=f'"{etag}"')[0] == 304


def test_connections_are_kept(s3: S3StandIn) -> None:
    url = presigned(s3)
    with urllib3.PoolManager() as pool:
        answers = [pool.request("PUT", url, body=BODY) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert pool.connection_from_url(s3.endpoint).num_connections == 1


def test_a_client_may_check_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with running_moto() as moto, S3StandIn(moto, tls=authority.server_context()) as s3:
        url = presigned(s3)
        assert url.startswith("https:")
        with urllib3.PoolManager(ca_certs=str(authority.bundle)) as pool:
            assert pool.request("PUT", url, body=BODY).status == 200
        with urllib3.PoolManager(retries=False) as pool, pytest.raises(urllib3.exceptions.SSLError):
            pool.request("PUT", url, body=BODY)
        assert s3.count("PutObject") == 1


# ---- what is refused --------------------------------------------------------------------------------------------


def test_a_presigned_url_takes_what_was_signed(s3: S3StandIn) -> None:
    assert send(presigned(s3)) == (200, "")
    assert send(presigned(s3, ChecksumCRC32=crc32(BODY)), {CRC_OF_BODY: crc32(BODY)}) == (200, "")
    assert send(presigned(s3, "get_object"), {"Range": "bytes=0-1"}, method="GET") == (206, "")
    assert all(request.presigned for request in s3.requests)


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [
        ({"ChecksumCRC32": crc32(b"else")}, {CRC_OF_BODY: crc32(b"else")}),
        ({"ChecksumSHA256": sha256(b"else")}, {"x-amz-checksum-sha256": sha256(b"else")}),
        ({}, {"Content-MD5": base64.b64encode(bytes(16)).decode()}),
    ],
    ids=["crc32", "sha256", "md5"],
)
def test_a_body_that_is_not_the_announced_one_is_refused(
    s3: S3StandIn, parameters: dict[str, Any], headers: dict[str, str]
) -> None:
    assert send(presigned(s3, **parameters), headers) == (400, "BadDigest")
    assert read(s3) is None
    assert s3.uploaded == {"key": len(BODY)}
    assert [(request.status, request.code) for request in s3.requests] == [(400, "BadDigest")]


def test_a_checksum_that_cannot_be_checked_is_not_taken_on_trust(s3: S3StandIn) -> None:
    url = presigned(s3, ChecksumCRC64NVME="AAAAAAAAAAA=")
    assert send(url, {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}) == (501, "NotImplemented")


@pytest.mark.parametrize(
    ("clock", "headers", "expected"),
    [
        (120, {}, (403, "AccessDenied")),
        (-3600, {}, (403, "AccessDenied")),
        (0, {"Authorization": "Bearer token"}, (400, "InvalidArgument")),
        (0, {"x-amz-meta-a": "unsigned"}, (403, "AccessDenied")),
        (0, {CRC_OF_BODY: crc32(BODY)}, (403, "AccessDenied")),
        (0, {"Host": "elsewhere"}, (403, "SignatureDoesNotMatch")),
    ],
    ids=["expired", "early", "two-claims", "unsigned-header", "unsigned-checksum", "other-host"],
)
def test_a_presigned_url_is_refused(
    s3: S3StandIn, clock: int, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    s3.clock = timedelta(seconds=clock)
    assert send(presigned(s3), headers) == expected
    assert read(s3) is None


def test_a_forged_url_is_refused(s3: S3StandIn) -> None:
    url = presigned(s3)
    assert send(url.replace("/key?", "/other?")) == (403, "SignatureDoesNotMatch")
    assert send(presigned(s3, "get_object")) == (403, "SignatureDoesNotMatch")
    assert send(url.replace(s3.access_key, "STRANGER")) == (403, "InvalidAccessKeyId")
    assert send(url.partition("?")[0]) == (403, "AccessDenied")
    assert send(presigned(s3, ChecksumCRC32=crc32(BODY))) == (403, "SignatureDoesNotMatch")


def test_a_clock_that_is_off_is_refused_and_told_the_time(s3: S3StandIn, client: Any) -> None:
    s3.clock = timedelta(minutes=20)
    with pytest.raises(ClientError) as refused:
        client.list_objects_v2(Bucket=s3.bucket)
    assert refused.value.response["Error"]["Code"] == "RequestTimeTooSkewed"
    told = parsedate_to_datetime(refused.value.response["ResponseMetadata"]["HTTPHeaders"]["date"])
    assert told - datetime.now(UTC) > timedelta(minutes=15)


def test_an_upload_is_completed_once(s3: S3StandIn, client: Any) -> None:
    upload = start(s3)
    assert outcome(client.complete_multipart_upload, **upload) == (200, "")
    assert outcome(client.complete_multipart_upload, **upload) == (404, "NoSuchUpload")
    del upload["MultipartUpload"]
    assert outcome(client.abort_multipart_upload, **upload) == (404, "NoSuchUpload")


def test_a_completion_names_the_checksums_that_parts_were_sent_with(s3: S3StandIn, client: Any) -> None:
    upload = start(s3)
    first = upload["MultipartUpload"]["Parts"][0]
    first["ChecksumCRC32"] = crc32(b"else")
    assert outcome(client.complete_multipart_upload, **upload) == (400, "InvalidPart")
    first["ChecksumCRC32"] = crc32(PART)
    assert outcome(client.complete_multipart_upload, **upload) == (200, "")


def test_many_are_not_deleted_without_a_digest(s3: S3StandIn) -> None:
    def strip(request: Any, **_: Any) -> None:
        del request.headers["x-amz-checksum-crc32"]

    put(s3)
    client = s3.client()
    client.meta.events.register("before-sign.s3.DeleteObjects", strip)
    listed = {"Objects": [{"Key": "key"}]}
    assert outcome(client.delete_objects, Bucket=s3.bucket, Delete=listed) == (400, "InvalidRequest")
    assert read(s3) == BODY


# ---- conditions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [{"IfNoneMatch": "*"}, {"IfMatch": STALE}], ids=["absent", "same"])
def test_nothing_is_written_where_a_condition_does_not_hold(
    s3: S3StandIn, client: Any, condition: dict[str, str]
) -> None:
    put(s3)
    put(s3, "source", b"else")
    failed = (412, "PreconditionFailed")
    where = {"Bucket": s3.bucket, "Key": "key"}
    source = {"CopySource": {"Bucket": s3.bucket, "Key": "source"}}
    assert outcome(client.put_object, **where, Body=b"else", **condition) == failed
    assert outcome(client.copy_object, **where, **source, **condition) == failed
    assert outcome(client.complete_multipart_upload, **start(s3), **condition) == failed
    assert read(s3) == BODY


def test_it_is_written_where_the_condition_holds(s3: S3StandIn, client: Any) -> None:
    etag = put(s3, IfNoneMatch="*")
    etag = put(s3, body=b"else", IfMatch=etag)
    assert outcome(client.complete_multipart_upload, **start(s3), IfMatch=etag) == (200, "")
    assert outcome(client.complete_multipart_upload, **start(s3, "new"), IfNoneMatch="*") == (200, "")
    assert read(s3) == read(s3, "new") == PART + TAIL


def test_only_the_named_source_is_copied(s3: S3StandIn, client: Any) -> None:
    etag = put(s3, "source")
    where = {"Bucket": s3.bucket, "Key": "key"}
    source = {"CopySource": {"Bucket": s3.bucket, "Key": "source"}}
    upload = {"UploadId": client.create_multipart_upload(**where)["UploadId"], "PartNumber": 1}
    for call, more in ((client.copy_object, {}), (client.upload_part_copy, upload)):
        assert outcome(call, **where, **source, **more, CopySourceIfMatch=STALE) == (412, "PreconditionFailed")
        assert outcome(call, **where, **source, **more, CopySourceIfMatch=f'"{etag}"') == (200, "")
    assert read(s3) == BODY
    assert s3.operations["UploadPartCopy"] == s3.operations["CopyObject"] == 2


def test_of_two_that_complete_at_once_one_wins(s3: S3StandIn, client: Any) -> None:
    uploads = [start(s3) for _ in range(2)]
    outcomes: list[tuple[int, str]] = []
    meeting = threading.Barrier(2, timeout=60)
    s3.fault("CompleteMultipartUpload", "", Before(lambda _: meeting.wait()), times=2)

    def complete(upload: dict[str, Any]) -> None:
        outcomes.append(outcome(client.complete_multipart_upload, **upload, IfNoneMatch="*"))

    threads = [threading.Thread(target=complete, args=(upload,)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [(200, ""), (412, "PreconditionFailed")]


# ---- faults -----------------------------------------------------------------------------------------------------


def test_a_fault_hits_the_operation_key_part_and_turn_it_is_meant_for(s3: S3StandIn, client: Any) -> None:
    s3.fault("UploadPart", "^key$", Respond(503, "SlowDown", {"Retry-After": "3"}), part=2, nth=2)
    upload = start(s3, "another")
    upload = start(s3)
    del upload["MultipartUpload"]
    with pytest.raises(ClientError, match="SlowDown") as refused:
        client.upload_part(**upload, PartNumber=2, Body=TAIL)
    client.upload_part(**upload, PartNumber=2, Body=TAIL)
    assert refused.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "3"
    assert [request.status for request in s3.find("UploadPart", "^key$", part=2)] == [200, 503, 200]
    assert s3.count("UploadPart", "another") == 2


def test_an_answer_may_come_before_the_body_is_read(s3: S3StandIn) -> None:
    s3.fault("PUT", "", Respond(403, "AccessDenied", early=True))
    assert send(presigned(s3)) == (403, "AccessDenied")
    assert s3.uploaded == {}


def test_a_completion_may_fail_with_200(s3: S3StandIn, client: Any) -> None:
    upload = start(s3)
    s3.fault("CompleteMultipartUpload", "", Respond(200, "InternalError"))
    assert outcome(client.complete_multipart_upload, **upload)[1] == "InternalError"
    assert [(request.status, request.code) for request in s3.find("POST")[-1:]] == [(200, "InternalError")]
    assert read(s3) is None
    assert outcome(client.complete_multipart_upload, **upload) == (200, "")


def test_an_upload_is_cut(s3: S3StandIn) -> None:
    s3.fault("PUT", "", Reset(after=3))
    with pytest.raises(urllib3.exceptions.HTTPError):
        send(presigned(s3))
    assert [(request.received, request.status) for request in s3.requests] == [(3, 0)]
    assert read(s3) is None


def test_a_download_is_cut(s3: S3StandIn, client: Any) -> None:
    put(s3, body=PART)
    s3.fault("GetObject", "", Reset(after=1 << 20))
    with pytest.raises(HTTPClientError):
        client.get_object(Bucket=s3.bucket, Key="key")["Body"].read()
    assert s3.downloaded == {"key": 1 << 20}


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_transfer_stalls(s3: S3StandIn, direction: str) -> None:
    put(s3)
    s3.fault("*", "", Stall(after=2, seconds=60))
    impatient, where = s3.client(read_timeout=0.2), {"Bucket": s3.bucket, "Key": "key"}
    move: Callable[[], Any] = {
        "up": lambda: impatient.put_object(**where, Body=b"else"),
        "down": lambda: impatient.get_object(**where)["Body"].read(),
    }[direction]
    with pytest.raises(ReadTimeoutError):
        move()
    assert read(s3) == BODY


def test_an_answer_is_lost_when_the_work_is_done(s3: S3StandIn, client: Any) -> None:
    where = {"Bucket": s3.bucket, "Key": "key"}
    upload = start(s3)
    for operation, call, arguments, left in (
        ("PutObject", client.put_object, where | {"Body": BODY}, BODY),
        ("CompleteMultipartUpload", client.complete_multipart_upload, upload, PART + TAIL),
        ("DeleteObject", client.delete_object, where, None),
    ):
        s3.fault(operation, "", LoseAnswer())
        with pytest.raises(HTTPClientError):
            call(**arguments)
        assert read(s3) == left
        assert [request.status for request in s3.find(operation)] == [0]


def test_a_byte_is_damaged_on_its_way_down(s3: S3StandIn) -> None:
    put(s3)
    s3.fault("GetObject", "", FlipBit(1))
    url = presigned(s3, "get_object")
    assert [urllib3.request("GET", url).data for _ in range(2)] == [b"hdllo", BODY]
    s3.fault("GetObject", "", FlipBit(1), times=None)
    assert [urllib3.request("GET", url).data for _ in range(2)] == [b"hdllo", b"hdllo"]


def test_a_byte_is_damaged_on_its_way_up(s3: S3StandIn) -> None:
    s3.fault("PUT", "", FlipBit(1), times=2)
    assert send(presigned(s3, ChecksumCRC32=crc32(BODY)), {CRC_OF_BODY: crc32(BODY)}) == (400, "BadDigest")
    assert send(presigned(s3)) == (200, "")
    assert read(s3) == b"hdllo"


def test_things_happen_in_between(s3: S3StandIn, client: Any) -> None:
    seen: dict[str, bytes | None] = {}

    def note(moment: str) -> Callable[[Request], None]:
        return lambda request: seen.update({moment: read(s3, request.key)})

    s3.fault("PutObject", "", Before(note("before")))
    s3.fault("PutObject", "", After(note("after")))
    put(s3)
    assert seen == {"before": None, "after": BODY}


def test_etags_need_not_be_md5() -> None:
    with running_moto() as moto, S3StandIn(moto, opaque_etags=True) as s3:
        client = s3.client()
        upload = start(s3)
        parts = upload["MultipartUpload"]["Parts"]
        listed = client.list_parts(Bucket=s3.bucket, Key="key", UploadId=upload["UploadId"])["Parts"]
        assert [part["ETag"] for part in listed] == [part["ETag"] for part in parts]
        assert hashlib.md5(TAIL).hexdigest() not in parts[1]["ETag"]

        etag = client.complete_multipart_upload(**upload)["ETag"]
        where = {"Bucket": s3.bucket, "Key": "key"}
        assert etag == client.list_objects_v2(Bucket=s3.bucket)["Contents"][0]["ETag"]
        assert client.get_object(**where, IfMatch=etag)["Body"].read() == PART + TAIL
        assert outcome(client.put_object, **where, Body=BODY, IfMatch=etag) == (200, "")
        assert outcome(client.put_object, **where, Body=BODY, IfMatch=etag) == (412, "PreconditionFailed")


def test_a_defect_of_the_stand_in_fails_the_test() -> None:
    def broken(_: Request) -> None:
        raise ZeroDivisionError

    def run() -> None:
        with running_moto() as moto, S3StandIn(moto) as s3:
            s3.fault("*", "", Before(broken))
            with suppress(HTTPClientError):
                s3.client().list_objects_v2(Bucket=s3.bucket)

    with pytest.raises(ZeroDivisionError):
        run()

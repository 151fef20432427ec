"""A model store in buckets that are not AWS's, or not its simplest: each difference is played by the stand-in."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.storages import s3 as modelstore_bucket
from airflow_provider_modelsync.core.transfer import checkpoint
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.modelstore.buckets import FILES, PART, RECORDS, BucketStore, MotoStore, is_killed_at
from tests.core.stores import snapshot, write_tree
from tests.services.moto_server import running_moto
from tests.services.s3 import S3Service
from tests.standins.authority import Authority
from tests.standins.s3 import After, Before, Request, Respond, S3StandIn
from tests.standins.s3_quirks import STORAGES

pytestmark = pytest.mark.faults

FIELDS: dict[str, dict[str, Any]] = {
    "AWS, policy that demands encryption": {"server_side_encryption": "aws:kms", "sse_kms_key_id": "key-1"},
    "AWS, requester pays": {"request_payer": "requester"},
}
REFUSED = {"MinIO before September 2025": "where nothing is", "Google Cloud Storage by S3": "ignores If-None-Match"}
BY_NAME = "Alibaba Cloud OSS"
# What differs in more than a sum or a copy, which have tests of their own.
STRANGE = (*FIELDS, "Cloudflare R2", "MinIO", "DigitalOcean Spaces", BY_NAME)
CHECKSUM = "x-amz-checksum-crc32"


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Service]:
    with running_moto() as service:
        yield service


@pytest.fixture(autouse=True)
def strangers(small_parts: None, no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known yet of any storage."""
    monkeypatch.setattr(modelstore_bucket, "_abilities", {})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a file that goes in two parts, and a small one."""
    return write_tree(tmp_path / "source", {"weights.bin": random.Random(1).randbytes(PART + 9), "vocab.txt": b"one"})


@dataclass(frozen=True)
class FileMemory:
    """A task's checkpoint that outlives its process."""

    place: Path

    def get(self, key: str) -> Any:
        return json.loads((self.place / key).read_text()) if (self.place / key).exists() else None

    def set(self, key: str, value: Any) -> None:
        self.place.mkdir(exist_ok=True)
        (self.place / key).write_text(json.dumps(value))

    def delete(self, key: str) -> None:
        (self.place / key).unlink(missing_ok=True)

    def keys(self) -> list[str]:
        return [path.name for path in self.place.iterdir()]


@contextmanager
def store_in(moto: S3Service, *quirks: str, **fields: Any) -> Iterator[BucketStore]:
    with S3StandIn(moto, quirks=quirks) as s3:
        yield MotoStore(s3, fields)


@contextmanager
def store_at(moto: S3Service, storage: str) -> Iterator[BucketStore]:
    with store_in(moto, *STORAGES[storage], **FIELDS.get(storage, {})) as store:
        if storage != BY_NAME:
            yield store
        else:
            where = {"endpoint_url": "http://oss-cn-test.aliyuncs.com", "proxy": store.s3.endpoint}
            yield store.again(**where, addressing_style="virtual")


@pytest.mark.parametrize("storage", STRANGE)
def test_a_version_lives_its_life_in_each_storage(moto: S3Service, source: Path, tmp_path: Path, storage: str) -> None:
    with store_at(moto, storage) as store:
        store.push(source, "fraud:v1")
        store.set_labels("fraud:v1", {"stage": "dev"})
        assert store.set_labels("fraud:v1", {"stage": "prod"}).labels == {"stage": "prod"}
        write_tree(source, {"vocab.txt": b"two"})
        store.push(source, "fraud:v2")
        store.pull("fraud:v2", tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)
        write_tree(source, {"vocab.txt": b"three"})
        store.push(source, "fraud:v1", force=True)
        assert store.get("fraud:v1").digest == digest_directory(source)
        assert store.delete("fraud:v2")
        assert [version.ref for version in store.list_versions("fraud")] == ["fraud:v1"]
        assert store.uploads() == {}


@pytest.mark.parametrize("storage", ["AWS", "MinIO", "Hetzner Object Storage"])
def test_the_connection_test_passes_where_a_push_does_and_leaves_nothing(moto: S3Service, storage: str) -> None:
    with store_at(moto, storage) as store:
        said = store.test()
        assert "can be read and written" in said
        wanted = {"deletes know no conditions": "conditional deletes", "no copies": "copies"}
        assert {name for quirk, name in wanted.items() if f"{name} (" in said} == {
            name for quirk, name in wanted.items() if quirk in STORAGES[storage]
        }
        assert store.keys() == []
        assert store.uploads() == {}


def test_the_connection_test_waits_for_no_more_calls_one_after_the_other_than_it_must(moto: S3Service) -> None:
    """Records, files, parts and copies are tried at the same time: a far storage is not taken for a silent one."""
    waits_for = {
        ("PutObject", "probe-[0-9a-f]+-file$"): ("GetObject", "probe-[0-9a-f]+$"),
        ("CopyObject", "-copy$"): ("AbortMultipartUpload", "-parts$"),
        ("ListObjectsV2", "^$"): ("GetObject", "-file$"),
    }
    late: list[str] = []
    with store_in(moto) as store:
        for waiting, seen in waits_for.items():
            come = threading.Event()
            store.s3.fault(*seen, Before(lambda _, come=come: come.set()))
            store.s3.fault(*waiting, Before(lambda request, come=come: come.wait(20) or late.append(request.key)))
        assert "can be read and written" in store.test()
        assert late == []
        assert store.s3.count() <= 28


@pytest.mark.parametrize("storage", REFUSED)
def test_a_storage_on_which_two_pushes_could_mix_is_refused(moto: S3Service, storage: str) -> None:
    with store_at(moto, storage) as store:
        with pytest.raises(NotSupported, match=REFUSED[storage]):
            store.test()
        assert store.keys() == []


def test_all_abilities_that_are_missing_are_told_in_one_message_with_their_cost(moto: S3Service) -> None:
    with store_in(moto, "no copies", "no lists of parts", "deletes know no conditions") as store:
        said = store.test()
    for ability, cost in (
        ("unfinished uploads", "its own next try"),
        ("copies", "sent again"),
        ("conditional deletes", "remove"),
    ):
        assert ability in said
        assert cost in said


def test_what_a_storage_cannot_do_is_remembered(moto: S3Service, source: Path) -> None:
    with store_in(moto, "sums are not implemented", "no copies") as store:
        store.test()
        store.s3.clear()
        store.push(source, "fraud:v1")
        store.push(write_tree(source, {"vocab.txt": b"two"}), "fraud:v2")
        assert store.s3.count("CopyObject") == 0
        bodies = store.s3.find("PUT", FILES)
        assert bodies
        assert all("content-md5" in request.headers and CHECKSUM not in request.headers for request in bodies)


@pytest.mark.parametrize("quirk", ["sums are not implemented", "sums are invalid", "sums are not echoed"])
def test_a_push_that_nobody_tested_before_finds_the_sum_that_works(moto: S3Service, source: Path, quirk: str) -> None:
    with store_in(moto, quirk) as store:
        store.push(source, "fraud:v1")
        assert store.tidy("fraud:v1") == digest_directory(source)


def test_the_parts_of_an_upload_carry_the_sum_that_it_was_begun_with(
    moto: S3Service, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(source, {"weights.bin": random.Random(2).randbytes(3 * PART)})
    with store_in(moto) as store:

        def forget(request: Request) -> None:  # as when the answer to another file lacks its sum
            for abilities in modelstore_bucket._abilities.values():
                abilities.crc32 = False

        store.s3.fault("UploadPart", "", After(forget), part=1)
        store.push(source, "fraud:v1", control=Control(workers=1))
        assert {CHECKSUM in request.headers for request in store.s3.find("UploadPart")} == {True}
        assert store.tidy("fraud:v1") == digest_directory(source)


def test_a_copy_on_no_condition_counts_only_while_its_origin_is_as_it_was(moto: S3Service, source: Path) -> None:
    with store_in(moto, "copies know no conditions") as store:
        assert "conditional copies" in store.test()
        store.push(source, "fraud:v1")
        hook = Before(lambda _: store.put("fraud/v1/weights.bin", b"gone"))
        store.s3.fault("CopyObject", "weights", hook)
        store.push(write_tree(source, {"vocab.txt": b"two"}), "fraud:v2")
        assert store.tidy("fraud:v2") == digest_directory(source)


def test_every_write_carries_a_sum(moto: S3Service, source: Path) -> None:
    with store_in(moto, "Object Lock with a default retention") as store:
        store.push(source, "fraud:v1")
        store.set_labels("fraud:v1", {"a": "b"})
        writes = store.s3.find("PutObject") + store.s3.find("UploadPart")
        assert {request.status for request in writes} == {200}
        assert all("content-length" in request.headers for request in writes)


def test_a_locked_version_that_cannot_be_deleted_says_so(moto: S3Service, source: Path) -> None:
    with store_in(moto, "locked objects") as store:
        store.push(source, "fraud:v1")
        with pytest.raises(NotSupported, match=r"^InvalidRequest: Object is WORM protected.*locked"):
            store.delete("fraud:v1")


@pytest.mark.parametrize("quirks", [("no lists of parts",), ("no lists of parts", "no lists of uploads")])
def test_a_task_remembers_the_parts_that_a_storage_does_not_list(
    moto: S3Service, source: Path, quirks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"weights.bin": random.Random(2).randbytes(3 * PART), "more.bin": random.Random(3).randbytes(2 * PART)}
    write_tree(source, files)
    monkeypatch.setattr(checkpoint, "FLUSH_SECONDS", 0.0)
    memory = FileMemory(tmp_path / "memory")
    control = Control(workers=1, checkpoint=memory)
    with store_in(moto, *quirks) as store:
        again = store.again()

        def push(version: str) -> Any:
            return again.push(source, f"fraud:{version}", control=control)

        assert is_killed_at(store.s3, lambda: push("v1"), "UploadPart", nth=4)
        modelstore_bucket._abilities.clear()
        assert push("v1").transfer.resumed_bytes == 3 * PART
        assert store.tidy("fraud:v1") == digest_directory(source)
        assert memory.keys() == []

        # What is remembered is never trusted: an upload that is gone is begun again.
        write_tree(source, {"weights.bin": random.Random(4).randbytes(3 * PART)})
        assert is_killed_at(store.s3, lambda: push("v2"), "UploadPart", nth=2)
        for key, upload_id in store.open_uploads():
            store.s3.backend.client().abort_multipart_upload(Bucket=store.bucket, Key=key, UploadId=upload_id)
        store.s3.fault("UploadPart", "", Respond(404, "NoSuchUpload"))
        push("v2")
        assert store.tidy("fraud:v2") == digest_directory(source)
        assert memory.keys() == []


@pytest.mark.parametrize("storage", ["MinIO", "AWS"])
def test_a_killed_push_is_gone_on_with_whatever_uploads_are_listed_by(
    moto: S3Service, source: Path, storage: str
) -> None:
    write_tree(source, {"weights.bin": random.Random(2).randbytes(3 * PART)})
    with store_at(moto, storage) as store:
        assert is_killed_at(store.s3, lambda: store.again(max_workers=1).push(source, "fraud:v1"), "UploadPart", nth=2)
        assert store.uploads()
        pushed = store.again().push(source, "fraud:v1")
        assert pushed.transfer
        assert pushed.transfer.resumed_bytes >= PART
        assert store.s3.count("UploadPart") <= 2
        assert store.uploads() == {}
        assert store.tidy("fraud:v1") == digest_directory(source)


@pytest.mark.parametrize("field", ["server_side_encryption", "storage_class", "request_payer"])
def test_what_the_connection_says_goes_with_every_request_that_knows_it(
    moto: S3Service, source: Path, field: str
) -> None:
    value, header, wanted = {
        "server_side_encryption": ("AES256", "x-amz-server-side-encryption", ("PutObject", "CreateMultipartUpload")),
        "storage_class": ("STANDARD_IA", "x-amz-storage-class", ("PutObject", "CreateMultipartUpload", "CopyObject")),
        "request_payer": (
            "requester",
            "x-amz-request-payer",
            ("PutObject", "UploadPart", "GetObject", "ListObjectsV2"),
        ),
    }[field]
    with store_in(moto, **{field: value}) as store:
        store.push(source, "fraud:v1")
        store.push(write_tree(source, {"vocab.txt": b"two"}), "fraud:v2")
        for operation in wanted:
            requests = store.s3.find(operation)
            assert requests, operation
            assert {request.headers.get(header) for request in requests} == {value}, operation


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"storage_class": "DEEP_ARCHIVE"}, "storage_class"),
        ({"sse_kms_key_id": "key-1"}, "sse_kms_key_id"),
        ({"addressing_style": "paths"}, "addressing_style"),
        ({"request_payer": "me"}, "request_payer"),
    ],
)
def test_fields_that_make_no_sense_are_named(moto: S3Service, fields: dict[str, str], named: str) -> None:
    with store_in(moto, **fields) as store, pytest.raises(InvalidInput, match=named):
        store.test()


@pytest.mark.parametrize(
    ("quirk", "kind", "words"),
    [
        ("a policy that demands encryption", Unauthorized, "AccessDenied: User is not authorized"),
        ("the requester pays", Unauthorized, "AccessDenied: Access Denied"),
        ("the bucket in the host's name only", InvalidInput, "SecondLevelDomainForbidden: Please use virtual"),
    ],
)
def test_a_refusal_begins_with_the_storage_s_own_words(
    moto: S3Service, source: Path, quirk: str, kind: type[ModelSyncError], words: str
) -> None:
    with store_in(moto, quirk) as store:
        for call in (store.test, lambda: store.push(source, "fraud:v1")):
            with pytest.raises(kind) as caught:
                call()
            assert str(caught.value).startswith(words)
            assert "expired" not in str(caught.value)
            assert "conditional" not in str(caught.value)


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
@pytest.mark.parametrize("key", [RECORDS, FILES])
def test_a_conflict_that_passes_is_tried_again(moto: S3Service, source: Path, code: str, key: str) -> None:
    with store_in(moto) as store:
        store.s3.fault("PUT", key, Respond(409, code))
        store.push(source, "fraud:v1")
        assert store.tidy("fraud:v1") == digest_directory(source)


def test_a_key_that_is_too_long_is_found_before_anything_is_claimed(moto: S3Service, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"/".join(["x" * 200] * 5): b"1"})
    with store_in(moto) as store, pytest.raises(InvalidInput, match="1024"):
        store.again(host=f"s3://{store.s3.bucket}/{'p' * 60}").push(source, "fraud:v1")
    assert store.s3.count("PUT") == 0


# Regions of AWS


@pytest.mark.parametrize(
    ("told", "style"),
    [
        ("nothing", "auto"),
        ("environment", "auto"),
        ("connection", "auto"),
        ("right", "auto"),
        ("environment", "path"),
        ("environment", "virtual"),
    ],
)
def test_a_bucket_is_reached_in_its_own_region(
    moto: S3Service, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, style: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    if told == "environment":
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    region = {"connection": "eu-west-1", "right": "af-south-1"}.get(told)
    authority = Authority(tmp_path)
    with S3StandIn(moto, region="af-south-1", inner_tls=authority.any_host()) as s3:
        store = BucketStore(
            s3,
            {
                "endpoint_url": None,
                "region_name": region,
                "proxy": s3.endpoint,
                "ca_bundle": str(authority.bundle),
                "addressing_style": style,
            },
        )
        store.push(source, "fraud:v1")
        store.pull("fraud:v1", tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)
        own = f"{s3.bucket}.s3.af-south-1.amazonaws.com" if style != "path" else "s3.af-south-1.amazonaws.com"
        hosts = {request.headers["host"] for request in s3.requests if request.method not in ("HEAD", "CONNECT")}
        assert hosts == {own}
        assert s3.count("HEAD", "^$") <= 2


def test_an_endpoint_that_aws_s_own_variable_names_is_the_connection_s(
    moto: S3Service, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_in(moto, endpoint_url=None) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.s3.endpoint)
        store.push(source, "fraud:v1")
        assert store.tidy("fraud:v1") == digest_directory(source)


# Certificates


@pytest.mark.parametrize("where", ["ca_bundle", "SSL_CERT_FILE", "AWS_CA_BUNDLE"])
@pytest.mark.row("T17", of="storage")
def test_calls_and_bytes_trust_the_same_certificates(
    moto: S3Service, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    authority = Authority(tmp_path)
    fields = {"ca_bundle": str(authority.bundle)} if where == "ca_bundle" else {}
    if where != "ca_bundle":
        monkeypatch.setenv(where, str(authority.bundle))
    with S3StandIn(moto, tls=authority.server_context()) as s3:
        store = BucketStore(s3, fields)
        store.test()
        assert store.push(source, "fraud:v1").digest == digest_directory(source)


@pytest.mark.row("T16", of="storage")
def test_a_certificate_that_nobody_vouches_for_is_not_trusted(moto: S3Service, tmp_path: Path) -> None:
    with S3StandIn(moto, tls=Authority(tmp_path).server_context()) as s3:
        with pytest.raises((InvalidInput, RegistryUnavailable), match="certificate"):
            BucketStore(s3).test()

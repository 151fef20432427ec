"""What a model store asks of a bucket, request by request, against what an IAM policy allows."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import Cancelled
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from tests.docs.world import BUCKET, World, empty_bucket
from tests.services.moto_server import running_moto
from tests.standins.s3 import Before, Request, S3StandIn

MIB = 1 << 20
# By operation, from "Required permissions for Amazon S3 API operations" in the Amazon S3 User Guide. S3 answers a read
# of what is not there with 404 only to those who may list.
ACTIONS = {
    "AbortMultipartUpload": {"s3:AbortMultipartUpload"},
    "CompleteMultipartUpload": {"s3:PutObject"},
    "CopyObject": {"s3:GetObject", "s3:PutObject"},
    "CreateMultipartUpload": {"s3:PutObject"},
    "DeleteObject": {"s3:DeleteObject"},
    "GetObject": {"s3:GetObject"},
    "HeadObject": {"s3:GetObject"},
    "ListMultipartUploads": {"s3:ListBucketMultipartUploads"},
    "ListObjectsV2": {"s3:ListBucket"},
    "ListParts": {"s3:ListMultipartUploadParts"},
    "PutObject": {"s3:PutObject"},
    "UploadPart": {"s3:PutObject"},
}


def check_policy(text: str, world: World) -> None:
    """It allows every request that a model store makes in its life, and nothing that it never does."""
    statements = json.loads(text)["Statement"]
    with running_moto() as moto, S3StandIn(moto) as s3:
        empty_bucket(s3, BUCKET)
        keys = {"login": s3.access_key, "password": s3.secret_key}
        extra = {"endpoint_url": s3.endpoint, "part_size_mib": 5}
        world.connect("bucket", "modelstore", host=f"s3://{BUCKET}/prod", **keys, extra=extra)
        live(s3, world.root)
        written = len(s3.requests)
        read(world.root)
        asked, reading = needs(s3.requests), needs(s3.requests[written:])

    assert {need for need in asked if not allowed(*need, statements)} == set()
    assert {action for action, _ in asked} == {action for one in statements for action in one["Action"]}
    assert {action for action, _ in reading} == {"s3:ListBucket", "s3:GetObject"}  # as the text says


def live(s3: S3StandIn, scratch: Path) -> None:
    """Push in parts, go on with a push that broke off, copy, label, replace, delete."""
    source = scratch / "large"
    source.mkdir()
    (source / "weights.bin").write_bytes(bytes(11 * MIB))
    (source / "notes.txt").write_text("one")
    hook = ModelStoreHook("bucket")
    assert hook.test_connection()[0]
    killed = ModelStoreHook("bucket")
    s3.fault("UploadPart", "", Before(lambda _: killed.cancel()), part=2)
    with pytest.raises(Cancelled):
        killed.push(source, "large:v1")
    hook.push(source, "large:v1")
    (source / "notes.txt").write_text("two")
    hook.push(source, "large:v2")  # its weights are copied
    hook.set_labels("large:v2", {"stage": "prod"})
    (source / "weights.bin").write_bytes(bytes(12 * MIB))
    given_up = ModelStoreHook("bucket")
    given_up.is_last_try = True
    s3.fault("UploadPart", "", Before(lambda _: given_up.cancel()), part=2)
    with pytest.raises(Cancelled):
        given_up.push(source, "large:v3")
    hook.push(source, "large:v2", force=True)
    hook.delete("large:v1")


def read(scratch: Path) -> None:
    """What those do who only pull."""
    hook = ModelStoreHook("bucket")
    hook.list_models()
    hook.list_versions("large")
    hook.pull("large", scratch / "pulled")


def needs(requests: list[Request]) -> set[tuple[str, str]]:
    """Return actions, each with the resource that it is about."""
    found = set()
    for request in requests:
        for action in ACTIONS[request.operation]:
            found.add((action, f"arn:aws:s3:::{request.bucket}" + (f"/{request.key}" if request.key else "")))
    return found


def allowed(action: str, resource: str, statements: list[dict[str, Any]]) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and action in statement["Action"]
        and fnmatchcase(resource, statement["Resource"])
        for statement in statements
    )

"""The model store in Google Cloud Storage, before a stand-in: what differs from a storage that speaks S3."""

from __future__ import annotations

import io
import json
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.modelstore import buckets
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.gcs import GcsBucket
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import Sums
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.core.stores import snapshot, was_skipped, write_tree
from tests.standins.gcs import GcsStandIn
from tests.standins.http_server import Delay, LoseAnswer, Respond

KIB = 1 << 10
PART = 80 * KIB
ONE = Control(workers=1)
FILES = r"^/models-bucket/models/(?!.*\.modelsync)"


class Token:
    """Credentials of google-auth that need no library."""

    def __init__(self, token: str) -> None:
        self.token: str | None = token

    def before_request(self, request: Any, method: str, url: str, headers: dict[str, str]) -> None:
        headers["authorization"] = f"Bearer {self.token}"


@dataclass(frozen=True)
class GcsStore:
    """A model store in the stand-in, as one worker sees it."""

    gcs: GcsStandIn
    fields: dict[str, Any] = field(default_factory=dict)
    credentials: Callable[[], Any] | None = None

    @cached_property
    def registry(self) -> ModelStore:
        usual = {"host": f"gs://{self.gcs.bucket}/models", "endpoint_url": self.gcs.url, "part_size_mib": 5}
        credentials = self.credentials
        if credentials is None and "password" not in self.fields:
            credentials = lambda: Token(self.gcs.token)  # noqa: E731
        return ModelStore(BucketSettings.read("models_gs", usual | self.fields), credentials)

    @property
    def bucket(self) -> GcsBucket:
        store: Any = self.registry._store
        bucket: GcsBucket = store._bucket
        return bucket

    def push(self, source: Path, model: str, **options: Any) -> ModelVersion:
        return push(self.registry, SyncDriver(), source, self.registry.parse(model), ONE, **options)

    def pull(self, model: str, target: Path) -> PulledModel:
        return pull(self.registry, SyncDriver(), self.registry.parse(model), target, ONE, query=Query())

    def test(self) -> str:
        return SyncDriver().run(self.registry.test())


@pytest.fixture
def gcs() -> Iterator[GcsStandIn]:
    with GcsStandIn(rewritten=64 * KIB, page=5, smallest_part=16 * KIB) as gcs:
        yield gcs


pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def store(gcs: GcsStandIn, no_waiting: None) -> GcsStore:
    return GcsStore(gcs)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files = {"weights.bin": random.Random(1).randbytes(2 * PART + 9), "a/größe #?%20&+.txt": b"words", "empty": b""}
    return write_tree(tmp_path / "source", files, executable=["empty"], directories=["void"])


# A life


def test_a_version_lives_its_life(store: GcsStore, source: Path, tmp_path: Path) -> None:
    pushed = store.push(source, "fraud:v1", labels={"stage": "dev"})
    assert pushed.uri == f"gs://{store.gcs.bucket}/models/fraud/v1"
    assert was_skipped(store.push(source, "fraud:v1"))
    other = write_tree(tmp_path / "other", {"a": b"a"})
    with pytest.raises(VersionConflict):
        store.push(other, "fraud:v1")
    store.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    replaced = GcsStore(store.gcs).push(other, "fraud:v1", force=True)
    assert replaced.digest == digest_directory(other)
    run = SyncDriver().run
    assert [found.digest for found in run(store.registry.list_versions("fraud", Query()))] == [replaced.digest]
    assert run(store.registry.delete(store.registry.parse("fraud:v1")))
    assert [key for key in store.gcs.objects if not key.endswith(".closed")] == []
    assert store.gcs.uploads[store.gcs.bucket] == {}


def test_files_are_plain_objects_under_their_own_names(store: GcsStore, source: Path) -> None:
    store.push(source, "fraud:v1")
    held = {key.removeprefix("models/fraud/v1/"): found.content for key, found in store.gcs.objects.items()}
    assert {path: content for path, content in held.items() if ".modelsync" not in path} == {
        path: content for path, (kind, content, _) in snapshot(source).items() if kind == "file"
    }


def test_every_request_of_bytes_carries_its_condition_and_its_sum(
    store: GcsStore, source: Path, tmp_path: Path
) -> None:
    store.push(source, "fraud:v1")
    sent = store.gcs.find("PUT")
    assert all("crc32c=" in request.headers["x-goog-hash"] for request in sent)
    assert all(("x-goog-if-generation-match" in request.headers) == (request.part is None) for request in sent)
    store.pull("fraud:v1", tmp_path / "target")
    assert all("x-goog-if-generation-match" in request.headers for request in store.gcs.find("GET", FILES)[-2:])


def test_a_push_of_one_file_costs_no_more_calls_than_to_s3(
    store: GcsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_WORTH_COPYING", 1 << 20)
    store.push(write_tree(tmp_path / "source", {"a": b"a"}), "fraud:v0")
    store.gcs.requests.clear()
    GcsStore(store.gcs).push(write_tree(tmp_path / "source", {"a": b"b"}), "fraud:new")
    assert len(store.gcs.requests) == 9
    store.gcs.requests.clear()
    GcsStore(store.gcs).push(write_tree(tmp_path / "source", {"a": b"b"}), "fraud:new")
    assert len(store.gcs.requests) <= 3


def test_the_connection_test_finds_nothing_missing_and_leaves_nothing(store: GcsStore) -> None:
    assert store.test() == f"The model store at gs://{store.gcs.bucket}/models/ can be read and written."
    assert store.gcs.objects == {}
    assert store.gcs.uploads[store.gcs.bucket] == {}


@pytest.mark.row("S4")
def test_an_error_in_place_of_the_completed_upload_is_no_success(store: GcsStore, source: Path) -> None:
    store.gcs.fault("POST", r"weights\.bin$", Respond(200, b"<Error><Code>InternalError</Code></Error>"), nth=2)
    assert store.push(source, "fraud:v1").digest == digest_directory(source)
    assert store.gcs.objects["models/fraud/v1/weights.bin"].content == (source / "weights.bin").read_bytes()


@pytest.mark.row("S4")
def test_a_copy_goes_on_until_the_storage_has_done_all_of_it(store: GcsStore, source: Path) -> None:
    store.push(source, "fraud:v1")
    store.gcs.requests.clear()
    pushed = store.push(write_tree(source, {"empty": b"no more"}), "fraud:v2")
    assert pushed.transfer
    assert pushed.transfer.sent_bytes == len(b"no more")
    assert store.gcs.count("POST", "weights.bin/rewriteTo/") == 3
    copied = store.gcs.objects["models/fraud/v2/weights.bin"]
    assert (
        copied.metadata["modelsync-sha256"]
        == store.gcs.objects["models/fraud/v1/weights.bin"].metadata["modelsync-sha256"]
    )


def test_a_copy_that_does_not_go_on_is_sent_instead(store: GcsStore, source: Path) -> None:
    store.push(source, "fraud:v1")
    store.gcs.rewritten = 0
    write_tree(source, {"empty": b"no more"})
    assert store.push(source, "fraud:v2").digest == digest_directory(source)
    assert store.gcs.count("POST", "weights.bin/rewriteTo/") == 2


# Tries and twins


@pytest.mark.parametrize("what", ["PUT", "POST", "DELETE"])
@pytest.mark.row("S5")
def test_a_lost_answer_does_no_harm(store: GcsStore, source: Path, what: str) -> None:
    for nth in range(1, 8):
        store.gcs.faults.clear()
        write_tree(source, {"empty": b"%d" % nth})
        store.gcs.fault(what, "", LoseAnswer(), nth=nth)
        assert store.push(source, f"fraud:{what}{nth}").digest == digest_directory(source)
    assert store.gcs.uploads[store.gcs.bucket] == {}


@pytest.mark.row("S6")
def test_the_next_try_sends_only_what_is_missing(store: GcsStore, source: Path) -> None:
    store.gcs.fault("PUT", "weights", Respond(500, b"no"), part=3, times=None)
    with pytest.raises(RegistryUnavailable):
        store.push(source, "fraud:v1")
    assert not any("weights" in name or name.endswith(".json") for name in store.gcs.objects)
    store.gcs.faults.clear()
    pushed = GcsStore(store.gcs).push(source, "fraud:v1")
    assert pushed.transfer
    assert pushed.transfer.resumed_bytes == 2 * PART
    assert was_skipped(GcsStore(store.gcs).push(source, "fraud:v1"))


def send(store: GcsStore, content: bytes, answer_of: bytes | None = None) -> Any:
    sums, bucket = Sums.of(content), store.bucket
    address = bucket.address_put("models/one", sums, "0" * 64)
    body = content if answer_of is None else answer_of
    answer = bucket.mover.put(address.url, lambda: io.BytesIO(body), len(body), address.headers)
    return bucket.receipt("models/one", None, sums, address, answer, "sending")


def test_who_finds_its_own_bytes_there_is_told_their_generation_and_other_bytes_begin_again(store: GcsStore) -> None:
    first = send(store, b"one")
    assert send(store, b"one") == first
    with pytest.raises(BeginAgain):
        send(store, b"two")


@pytest.mark.row("T11")
def test_bytes_that_are_not_those_of_their_sum_are_refused(store: GcsStore) -> None:
    with pytest.raises(RegistryUnavailable, match="BadDigest"):
        send(store, b"one", b"eno")
    assert store.gcs.objects == {}


@pytest.mark.row("S11", of="rest")
def test_a_listing_that_goes_round_is_an_error(store: GcsStore) -> None:
    page = {"nextPageToken": "again", "items": []}
    store.gcs.fault("GET", "/storage/v1/", Respond(200, page), times=None)
    with pytest.raises(RegistryUnavailable, match="repeats a page"):
        SyncDriver().run(store.registry.list_versions("fraud", Query()))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": [{"name": 1}]}'])
@pytest.mark.row("S7", of="rest")
def test_an_answer_of_something_else_is_told(store: GcsStore, body: bytes) -> None:
    store.gcs.fault("GET", "/storage/v1/", Respond(200, body), times=None)
    with pytest.raises(RegistryUnavailable, match="not that of Google Cloud Storage"):
        SyncDriver().run(store.registry.list_versions("fraud", Query()))


def test_a_storage_that_ignores_conditions_is_refused(store: GcsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.gcs, "_hold", lambda found, generation: None)
    with pytest.raises(NotSupported, match="Two pushes could mix"):
        store.test()
    assert store.gcs.objects == {}


@pytest.mark.row("A3", of="rest")
def test_what_google_says_of_a_refusal_is_told(store: GcsStore) -> None:
    fault = {"error": {"code": 403, "message": "jane@acme.com does not have storage.objects.list access", "errors": []}}
    store.gcs.fault("GET", "/storage/v1/", Respond(403, fault), times=None)
    with pytest.raises(Unauthorized, match=r"jane@acme\.com does not have storage\.objects\.list access"):
        SyncDriver().run(store.registry.list_versions("fraud", Query()))
    assert store.gcs.count() == 1
    with pytest.raises(InvalidInput, match="There is no such bucket") as caught:
        GcsStore(store.gcs, {"host": "gs://nowhere/models"}).test()
    assert caught.value.argument == "host"


@pytest.mark.row("T6")
def test_a_storage_that_does_not_answer_is_given_up_in_time(store: GcsStore) -> None:
    store.gcs.fault("*", "", Delay(20), times=None)
    with pytest.raises(RegistryUnavailable, match="time limit"):
        SyncDriver().run(GcsStore(store.gcs, {"timeout_seconds": 0.5}).registry.list_versions("fraud", Query()))


# Credentials


def test_a_key_file_in_the_password(store: GcsStore, source: Path, tmp_path: Path) -> None:
    mine = GcsStore(store.gcs, {"password": json.dumps(store.gcs.key_file())})
    mine.push(source, "fraud:v1")
    mine.pull("fraud:v1", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.gcs.count("POST", "^/token$") == 1


@pytest.mark.row("A2")
def test_a_token_that_is_refused_is_asked_for_anew(store: GcsStore, source: Path, tmp_path: Path) -> None:
    mine = GcsStore(store.gcs, {"password": json.dumps(store.gcs.key_file())})
    for method, path in (("GET", "/storage/v1/"), ("PUT", FILES), ("POST", "rewriteTo"), ("DELETE", "")):
        store.gcs.faults.clear()
        store.gcs.fault(method, path, Respond(401, b"expired"))
        write_tree(source, {"empty": method.encode()})
        assert mine.push(source, f"fraud:{method}").digest == digest_directory(source)
    store.gcs.fault("GET", FILES, Respond(401, b"expired"), nth=2)
    mine.pull("fraud:DELETE", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert store.gcs.count("POST", "^/token$") == 6


@pytest.mark.row("A2")
def test_a_token_that_many_requests_find_refused_is_renewed_once(store: GcsStore) -> None:
    bucket = GcsStore(store.gcs, {"password": json.dumps(store.gcs.key_file())}).bucket
    assert bucket.put("models/one", b"one")
    found = bucket.head("models/one")
    assert found
    addresses = [bucket.address_get(found) for _ in range(3)]
    store.gcs.tokens.clear()
    for address in addresses:
        with bucket.mover.get(address.url, address.headers) as answer:
            assert answer.status == 401
        address.refused()
        assert bucket.head("models/one") == found
    assert store.gcs.count("POST", "^/token$") == 2


@pytest.mark.row("A1", of="rest")
def test_a_token_that_stays_refused_is_one_clear_refusal(store: GcsStore) -> None:
    stranger = GcsStore(store.gcs, credentials=lambda: Token("canary-token-of-a-stranger"))
    with pytest.raises(Unauthorized, match="Invalid Credentials") as caught:
        SyncDriver().run(stranger.registry.list_versions("fraud", Query()))
    assert store.gcs.count() == 2
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_application_default_credentials(
    store: GcsStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(store.gcs.key_file()))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    settings = {"host": f"gs://{store.gcs.bucket}", "endpoint_url": store.gcs.url}
    registry = ModelStore(BucketSettings.read("models_gs", settings))
    assert push(registry, SyncDriver(), source, registry.parse("fraud:v1"), ONE).digest == digest_directory(source)


def test_without_any_credentials(store: GcsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    settings = {"host": f"gs://{store.gcs.bucket}", "endpoint_url": store.gcs.url}
    with pytest.raises(Unauthorized, match="no usable Google credentials"):
        SyncDriver().run(ModelStore(BucketSettings.read("models_gs", settings)).test())


@pytest.mark.parametrize(
    ("password", "said"),
    [
        ("canary", "not the JSON of a key file"),
        ('["canary"]', "not the JSON of a key file"),
        ('{"type": "external_account", "token_url": "canary"}', "gcp_conn_id"),
        ('{"type": "service_account", "private_key": "canary"}', "no usable key file"),
        ('{"type": "authorized_user", "client_secret": "canary"}', "no usable key file"),
    ],
)
def test_a_password_that_is_no_key_file_is_refused_and_not_shown(store: GcsStore, password: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        GcsStore(store.gcs, {"password": password}).test()
    assert caught.value.argument == "password"
    assert store.gcs.count() == 0
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_google_does_not_know_is_refused_without_being_shown(store: GcsStore) -> None:
    store.gcs.fault(
        "POST", "^/token$", Respond(400, {"error": "invalid_grant", "error_description": "Not a valid key"})
    )
    with pytest.raises(Unauthorized, match="Not a valid key") as caught:
        GcsStore(store.gcs, {"password": json.dumps(store.gcs.key_file())}).test()
    text = "".join(traceback.format_exception(caught.value))
    assert "PRIVATE KEY" not in text
    assert store.gcs.key_file()["private_key"][40:60] not in text


# Installs and connections


@pytest.mark.parametrize("module", ["google.auth", "google_crc32c"])
def test_a_root_without_its_libraries_names_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=r"install airflow-provider-modelsync\[gcs\]") as caught:
        ModelStore(BucketSettings.read("models_gs", {"host": "gs://bucket/models"}))
    assert caught.value.argument == "host"
    ModelStore(BucketSettings.read("models_s3", {"host": "s3://bucket/models"}))


@pytest.mark.parametrize(
    ("host", "fields", "misfits"),
    [
        ("gs://bucket", {"region_name": "eu", "login": "AKIA"}, ["login", "region_name"]),
        ("gs://bucket", {"aws_conn_id": "aws_default"}, ["aws_conn_id"]),
        ("s3://bucket", {"gcp_conn_id": "google_cloud_default"}, ["gcp_conn_id"]),
        ("file:///srv/models", {"password": "canary"}, ["password"]),
        ("FILE:///srv/models", {"storage_class": "STANDARD"}, ["storage_class"]),
    ],
)
def test_fields_that_do_not_fit_the_root_are_refused_by_name(
    host: str, fields: dict[str, str], misfits: list[str]
) -> None:
    with pytest.raises(InvalidInput, match=f"^{', '.join(misfits)} do(es)? not fit the root {host}") as caught:
        BucketSettings.read("models", {"host": host, **fields})
    assert (caught.value.argument, caught.value.connection) == (misfits[0], "models")
    assert "canary" not in str(caught.value)


def test_empty_fields_fit_every_root() -> None:
    for host in ("gs://bucket", "s3://bucket", "file:///srv/models"):
        BucketSettings.read("models", {"host": host, "region_name": "", "login": None, "gcp_conn_id": "", "port": 0})


def test_the_endpoint_that_aws_s_variables_name_is_not_google_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    assert BucketSettings.read("models", {"host": "gs://bucket"}).endpoint_url is None
    assert BucketSettings.read("models", {"host": "file:///srv/models"}).endpoint_url is None
    assert BucketSettings.read("models", {"host": "s3://bucket"}).endpoint_url == "http://minio:9000"


def test_one_bucket_s_name_is_another_storage_s_own(gcs: GcsStandIn) -> None:
    one, other = (
        ModelStore(BucketSettings.read("models", {"host": f"{scheme}://bucket/models"})) for scheme in ("gs", "s3")
    )
    assert one.identity != other.identity
    assert not one.overlaps(other)


@pytest.mark.row("A8")
def test_no_error_names_a_token(store: GcsStore, source: Path) -> None:
    store.gcs.fault("PUT", FILES, Respond(500, f"you sent {store.gcs.token}".encode()), times=None)
    with pytest.raises(ModelSyncError) as caught:
        store.push(source, "fraud:v1")
    assert store.gcs.token not in "".join(traceback.format_exception(caught.value))

"""Azure Blob Storage as a place of a model store: roots, credentials, and what the service does in its own way."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    DigestMismatch,
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.azure import Place
from airflow_provider_modelsync.core.storages.azure_auth import AzureSettings
from airflow_provider_modelsync.core.storages.base import Bucket
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.modelstore.buckets import KIB, BucketStore
from tests.core.stores import snapshot, write_tree
from tests.standins.azure import CRC64, AzureStandIn
from tests.standins.http_server import LoseAnswer, Respond


@dataclass(frozen=True)
class Store(BucketStore):
    """A model store in the stand-in, as one worker sees it."""

    opened: Any = None

    @cached_property
    def registry(self) -> ModelStore:
        return ModelStore(BucketSettings.read("azure", self.fields), self.opened)

    @property
    def bucket_itself(self) -> Bucket:
        store: Any = self.registry._store
        bucket: Bucket = store._bucket
        return bucket


def store_in(server: AzureStandIn, opened: Any = None, **fields: Any) -> Store:
    found = {name: value for name, value in {**server.fields, **fields}.items() if value is not None}
    return Store(server, found, opened=opened)  # type: ignore[arg-type]


pytestmark = pytest.mark.usefixtures("small_parts", "no_waiting")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files = {"weights ä.bin": random.Random(1).randbytes(170 * KIB), "a #?%20&+.txt": b"a", "empty": b""}
    return write_tree(tmp_path / "source", files)


@pytest.fixture
def server() -> Iterator[AzureStandIn]:
    with AzureStandIn() as server:
        yield server


# Roots and fields


@pytest.mark.parametrize(
    ("authority", "account", "service"),
    [
        ("models@acme", "acme", "https://acme.blob.core.windows.net"),
        ("models@acme.blob.core.windows.net", "acme", "https://acme.blob.core.windows.net"),
        ("models@Acme.dfs.core.windows.net", "acme", "https://acme.blob.core.windows.net"),
        ("my-models@acme.dfs.core.chinacloudapi.cn", "acme", "https://acme.blob.core.chinacloudapi.cn"),
    ],
)
def test_a_root_names_a_container_of_an_account_in_any_spelling(authority: str, account: str, service: str) -> None:
    found = Place.read(authority, AzureSettings(conn_id="azure"))
    assert (found.account, found.service) == (account, service)
    assert found.container == authority.partition("@")[0]


def test_all_schemes_of_azure_lead_to_the_same_version(server: AzureStandIn, source: Path) -> None:
    pushed = store_in(server).push(source, "fraud:v1")
    assert pushed.uri == "abfs://models@standin/store/fraud/v1"
    for scheme in ("abfss", "az", "wasb", "wasbs", "ABFS"):
        root = server.fields["host"].replace("abfs", scheme)
        assert store_in(server, host=root).get("fraud:v1").uri == pushed.uri


@pytest.mark.parametrize(
    "authority", ["models", "models@", "@acme", "Models@acme", "m@acme", "models@ac me", "a--b@acme"]
)
def test_what_is_no_container_of_an_account_is_refused(authority: str) -> None:
    with pytest.raises(InvalidInput, match="abfs://") as refused:
        ModelStore(BucketSettings.read("azure", {"host": f"abfs://{authority}/store"}))
    assert refused.value.argument == "host"


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"tenant_id": "t"}, "tenant_id"),
        ({"tenant_id": "t", "login": "app"}, "tenant_id"),
        ({"login": "acme"}, "password"),
        ({"login": "other", "password": "a2V5"}, "login"),
        ({"password": "no base64!"}, "password"),
        ({"password": "a2V5", "region_name": "eu"}, "region_name"),
        ({"password": "a2V5", "gcp_conn_id": "google"}, "gcp_conn_id"),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name(fields: dict[str, str], argument: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ModelStore(BucketSettings.read("azure", {"host": "abfs://models@acme/store", **fields}))
    assert refused.value.argument == argument


def test_without_the_extra_a_root_that_needs_it_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("azure", "azure.identity"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=r"install airflow-provider-modelsync\[azure\]"):
        ModelStore(BucketSettings.read("azure", {"host": "abfs://models@acme/store"}))
    ModelStore(BucketSettings.read("azure", {"host": "abfs://models@acme/store", "password": "a2V5"}))


def test_a_segment_that_ends_in_a_dot_is_refused_before_anything_is_claimed(server: AzureStandIn, source: Path) -> None:
    with pytest.raises(InvalidInput, match="dot"):
        store_in(server).push(source, "fraud:v1.")
    assert server.blobs == {}


# A version


@pytest.mark.row("S4")
def test_a_version_lives_its_life_whatever_the_size_of_pages_and_however_long_copies_take(
    source: Path, tmp_path: Path
) -> None:
    with AzureStandIn(page_size=2, pending_looks=1) as server:
        store = store_in(server)
        assert "can be read and written." in store.test()
        assert (server.blobs, server.uncommitted) == ({}, {})
        store.push(source, "fraud:v1")
        assert server.count("PUT", "weights") == 3 + 1
        store.set_labels("fraud:v1", {"stage": "prod"})
        write_tree(source, {"b.txt": b"b"})
        store.push(source, "fraud:v2")
        assert [server.operation(request) for request in server.find("PUT", "v2/weights")] == ["Copy Blob"]
        store.pull("fraud", tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)
        assert store.delete("fraud:v2")
        assert store.get("fraud").version == "v1"


@pytest.mark.parametrize("status", ["failed", "aborted"])
@pytest.mark.row("S4")
def test_a_copy_that_was_begun_and_comes_to_nothing_is_sent_instead(source: Path, status: str) -> None:
    with AzureStandIn(pending_looks=1) as server:
        store = store_in(server)
        store.push(source, "fraud:v1")
        write_tree(source, {"b.txt": b"b"})
        ended = {"x-ms-copy-id": "copy", "x-ms-copy-status": status, "ETag": '"0x1"'}
        server.fault("HEAD", "v2/weights", Respond(200, headers=ended))
        assert store.push(source, "fraud:v2").digest == digest_directory(source)
        operations = [server.operation(request) for request in server.find("PUT", "v2/weights")]
        assert operations == ["Copy Blob", *["Put Block"] * 3, "Put Block List"]


@pytest.mark.parametrize(
    ("what", "key"), [("PUT", r"v1/empty"), ("PUT", r"v1/weights"), ("PUT", r"\.json$"), ("PUT", r"\.claim$")]
)
@pytest.mark.row("S5")
def test_a_push_whose_answers_are_lost_goes_on(server: AzureStandIn, source: Path, what: str, key: str) -> None:
    server.fault(what, key, LoseAnswer(), times=1)
    server.fault(what, key, LoseAnswer(), nth=4, times=1)  # the commit
    assert store_in(server).push(source, "fraud:v1").digest == digest_directory(source)
    assert server.uncommitted == {}


@pytest.mark.parametrize(("crc64", "by_md5"), [("checked", 0), ("refused", 3), ("ignored", 3)])
def test_blocks_are_proved_by_a_crc_where_the_service_knows_it_and_by_an_md5_elsewhere(
    source: Path, crc64: str, by_md5: int
) -> None:
    with AzureStandIn(crc64=crc64) as server:
        assert store_in(server).push(source, "fraud:v1").digest == digest_directory(source)
        blocks = [request for request in server.find("PUT", "weights") if server.operation(request) == "Put Block"]
        assert sum("content-md5" in request.headers for request in blocks) == by_md5
        assert all((CRC64 in request.headers) != ("content-md5" in request.headers) for request in blocks)
        assert 3 <= len(blocks) <= 3 + by_md5, "each was refused once at most"


def test_a_block_that_is_damaged_on_its_way_is_sent_again(server: AzureStandIn, source: Path) -> None:
    server.fault("PUT", "weights", Respond(400, b"<Error><Code>Crc64Mismatch</Code></Error>"), times=1)
    assert store_in(server).push(source, "fraud:v1").digest == digest_directory(source)


@pytest.mark.parametrize(("first", "commit", "then"), [("checked", 4, "refused"), ("refused", 5, "checked")])
@pytest.mark.row("P3")
def test_blocks_of_an_earlier_try_are_known_by_either_sum(
    server: AzureStandIn, source: Path, first: str, commit: int, then: str
) -> None:
    server.crc64 = first
    server.fault("PUT", "weights", Respond(503, b"busy"), nth=commit, times=None)
    with pytest.raises(RegistryUnavailable):
        store_in(server).push(source, "fraud:v1", control=Control(workers=1))
    server.faults.clear()
    server.crc64 = then
    before = len(server.find("PUT", "weights"))
    pushed = store_in(server).push(source, "fraud:v1")
    assert pushed.transfer is not None
    assert pushed.transfer.resumed_bytes == 170 * KIB
    assert [server.operation(one) for one in server.find("PUT", "weights")[before:]] == ["Put Block List"]


@pytest.mark.row("S6")
def test_a_block_that_cannot_be_sent_is_left_to_the_next_try(server: AzureStandIn, source: Path) -> None:
    server.fault("PUT", "weights", Respond(500), nth=3, times=None)
    with pytest.raises(RegistryUnavailable):
        store_in(server).push(source, "fraud:v1", control=Control(workers=1))
    assert not any("weights" in name or name.endswith(".json") for name in server.blobs)
    server.faults.clear()
    pushed = store_in(server).push(source, "fraud:v1")
    assert pushed.transfer is not None
    assert pushed.transfer.resumed_bytes > 0
    assert pushed.digest == digest_directory(source)


@pytest.mark.row("S6")
def test_a_push_that_fails_for_good_leaves_no_blocks(server: AzureStandIn, source: Path) -> None:
    server.fault("PUT", "weights", Respond(403, b"<Error><Code>AccountIsDisabled</Code></Error>"), nth=3)
    with pytest.raises(Unauthorized, match="Enable the storage account"):
        store_in(server).push(source, "fraud:v1")
    assert server.uncommitted == {}
    assert all(name.endswith(".closed") for name in server.blobs)


def test_blocks_of_somebody_else_at_a_name_are_dropped(server: AzureStandIn, source: Path) -> None:
    server.uncommitted["store/fraud/v1/weights ä.bin"] = {base64.b64encode(b"odd").decode(): b"x"}
    store_in(server).push(source, "fraud:v1")
    assert server.uncommitted == {}
    assert bytes(server.blobs["store/fraud/v1/weights ä.bin"].content) == (source / "weights ä.bin").read_bytes()


@pytest.mark.row("T11")
def test_a_blob_that_is_not_as_it_was_pushed_leaves_no_target(
    server: AzureStandIn, source: Path, tmp_path: Path
) -> None:
    store_in(server).push(source, "fraud:v1")
    blob = server.blobs["store/fraud/v1/weights ä.bin"]
    blob.content = bytes([blob.content[0] ^ 1]) + bytes(blob.content[1:])
    with pytest.raises(DigestMismatch):
        store_in(server).pull("fraud:v1", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.row("S7", of="rest")
def test_an_answer_of_something_else_is_told(server: AzureStandIn) -> None:
    server.fault("GET", "", Respond(200, b"<html>"), times=None)
    with pytest.raises(RegistryUnavailable, match="listing"):
        store_in(server).list_versions("fraud")


@pytest.mark.row("S11", of="rest")
def test_a_listing_that_goes_round_is_an_error(server: AzureStandIn) -> None:
    page = b"<EnumerationResults><Blobs/><NextMarker>again</NextMarker></EnumerationResults>"
    server.fault("GET", "", Respond(200, page), times=None)
    with pytest.raises(RegistryUnavailable, match="repeats a page"):
        store_in(server).list_versions("fraud")


# What a storage has to be


def test_a_hierarchical_namespace_is_refused_by_the_connection_test() -> None:
    with AzureStandIn(is_hierarchical=True) as server:
        with pytest.raises(NotSupported, match="standin has a hierarchical namespace"):
            store_in(server).test()
        assert server.blobs == {}


def test_a_service_without_conditions_is_refused_by_the_connection_test() -> None:
    with AzureStandIn(knows_conditions=False) as server:
        with pytest.raises(NotSupported, match="Two pushes could mix"):
            store_in(server).test()


# Credentials


@pytest.mark.row("A3", of="rest")
def test_what_is_forbidden_is_told_by_what_was_to_be_done(server: AzureStandIn, source: Path) -> None:
    body = b"<Error><Code>AuthorizationPermissionMismatch</Code><Message>not with this permission</Message></Error>"
    for what, key, doing in (("GET", "", "listing"), ("PUT", "weights", r"uploading .*weights")):
        server.faults.clear()
        server.requests.clear()
        server.fault(what, key, Respond(403, body), times=None)
        with pytest.raises(Unauthorized, match=f"^AuthorizationPermissionMismatch.*{doing}") as caught:
            store_in(server).push(source, "fraud:v1", control=Control(workers=1))
        assert server.key not in str(caught.value)
        operations = [server.operation(request) for request in server.find(what, key)]
        assert operations.count("Put Block") + operations.count("List Blobs") == 1, "it is not tried again"


@pytest.mark.row("A1", "A8", of="rest")
def test_a_wrong_key_is_told_without_a_secret(server: AzureStandIn) -> None:
    wrong = base64.b64encode(b"wrong").decode()
    with pytest.raises(Unauthorized, match="AuthenticationFailed") as refused:
        store_in(server, password=wrong).list_versions("fraud")
    assert wrong not in str(refused.value)
    assert "sig=" not in str(refused.value)


def test_a_signature_is_sent_as_it_was_given(server: AzureStandIn, source: Path) -> None:
    store = store_in(server)
    store.test()
    asked = server.requests[-1].query
    given = "&".join(f"{name}={_quoted(asked[name])}" for name in ("sv", "se", "sr", "sp", "spr", "sig"))
    assert store_in(server, password=f"?{given}").push(source, "fraud:v1")
    other = given.replace("sp=rcwdl", "sp=rl")
    with pytest.raises(Unauthorized) as refused:
        store_in(server, password=other).list_versions("fraud")
    assert asked["sig"] not in str(refused.value)


def _quoted(value: str) -> str:
    return value.replace("+", "%2B").replace("=", "%3D")


def test_a_container_that_is_not_there_is_told(server: AzureStandIn) -> None:
    with pytest.raises(InvalidInput, match="There is no such container"):
        store_in(server, host="abfs://nothing@standin/store").list_versions("fraud")


@dataclass
class Token:
    token: str
    expires_on: int = 1 << 40


@dataclass
class Credential:
    """A credential that gives the tokens that the service knows today."""

    server: AzureStandIn
    given: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str) -> Token:
        assert scopes == ("https://storage.azure.com/.default",)
        self.given.append(next(iter(self.server.tokens)))
        return Token(self.given[-1])


class Renewing(Credential):
    """One that gives another token each time, as services do."""

    def get_token(self, *scopes: str) -> Token:
        self.server.tokens = {f"token-{len(self.given)}-of-the-stand-in"}
        return super().get_token(*scopes)


@pytest.mark.row("A2", of="rest")
def test_a_token_is_asked_for_once_and_again_when_it_is_refused(
    server: AzureStandIn, source: Path, tmp_path: Path
) -> None:
    credential = Renewing(server)
    store = store_in(server, lambda: credential, password=None, azure_conn_id="wasb")
    store.push(source, "fraud:v1")
    assert len(credential.given) == 1
    server.fault("PUT", "v2/", Respond(401, b"<Error><Code>InvalidAuthenticationInfo</Code></Error>"))
    server.fault("GET", "v2/", Respond(401, b"<Error><Code>InvalidAuthenticationInfo</Code></Error>"))
    store.push(write_tree(source, {"b": b"b"}), "fraud:v2")
    store.pull("fraud:v2", tmp_path / "target")
    assert len(credential.given) == 3
    assert "sig" not in server.requests[-1].query


@pytest.mark.row("A2", of="rest")
def test_a_token_that_many_requests_find_refused_is_renewed_once(server: AzureStandIn) -> None:
    credential = Credential(server)
    bucket = store_in(server, lambda: credential, password=None, azure_conn_id="wasb").bucket_itself
    assert bucket.put("store/one", b"one")
    found = bucket.head("store/one")
    assert found
    addresses = [bucket.address_get(found) for _ in range(3)]
    server.tokens = {"second-token-of-the-stand-in"}
    for address in addresses:
        with bucket.mover.get(address.url, address.headers) as answer:
            assert answer.status == 401
        address.refused()
        assert bucket.head("store/one") == found
    assert credential.given == ["first-token-of-the-stand-in", "second-token-of-the-stand-in"]


@dataclass
class SharedKey:
    account_name: str
    account_key: str


@dataclass
class Signature:
    signature: str


def test_other_connections_stand_for_keys_and_signatures_too(server: AzureStandIn) -> None:
    assert store_in(server, lambda: SharedKey("standin", server.key), password=None).list_versions("fraud") == []
    with pytest.raises(InvalidInput, match="for the account other"):
        store_in(server, lambda: SharedKey("other", server.key), password=None).list_versions("fraud")
    with pytest.raises(Unauthorized):
        store_in(server, lambda: Signature("sv=1&sig=x"), password=None).list_versions("fraud")
    with pytest.raises(InvalidInput, match="holds no credentials"):
        store_in(server, lambda: None, password=None).list_versions("fraud")


class _Identity(BaseHTTPRequestHandler):
    """What tells a machine's tokens, as Azure's App Service has it."""

    def do_GET(self) -> None:
        body = json.dumps(
            {"access_token": self.server.token, "expires_on": "4102444800", "token_type": "Bearer", "resource": "r"}  # type: ignore[attr-defined]
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_the_machines_own_identity_is_found(
    server: AzureStandIn, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.identity", reason="azure-identity, the extra azure, is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Identity) as tokens:
        tokens.token = next(iter(server.tokens))  # type: ignore[attr-defined]
        Thread(target=tokens.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{tokens.server_port}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        assert store_in(server, password=None).push(source, "fraud:v1")
        tokens.shutdown()
    assert server.requests[-1].headers["authorization"] == f"Bearer {next(iter(server.tokens))}"


def test_credentials_that_nobody_has_are_told(server: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.identity", reason="azure-identity, the extra azure, is not installed")
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1")
    fields = {"tenant_id": "tenant", "login": "app", "password": "the secret of the app"}
    with pytest.raises(ModelSyncError) as refused:
        store_in(server, **fields).list_versions("fraud")
    assert "the secret of the app" not in str(refused.value)

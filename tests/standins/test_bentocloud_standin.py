"""The BentoCloud stand-in answers what was recorded, refuses what S3 refuses, and breaks where it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.standins.bentocloud import BentoCloudStandIn, ExpirePresign, member_boundaries
from tests.standins.http_server import Delay, FlipBit, LoseAnswer, Reset, Respond, Rewrite, Truncate, html_error_page
from tests.support.data import DATA
from tests.support.until import until

RECORDING = json.loads((DATA / "bentocloud-exchanges.json").read_text())["scenarios"]
M = "/api/v1/model_repositories/tiny/models/v1"
CREATE = {
    "description": "",
    "version": "v1",
    "manifest": {
        "module": "sklearn",
        "api_version": "v1",
        "bentoml_version": "1.4.40",
        "size_bytes": 7,
        "metadata": {},
        "context": {},
        "options": {},
    },
    "build_at": "2026-11-20 15:28:40.684956",
    "labels": [{"key": "stage", "value": "dev"}],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path, minimum_part_size=1000) as server:
        yield server


@pytest.fixture
def yatai(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path, dialect="yatai") as server:
        yield server


def client(server: BentoCloudStandIn, token: str | None = None) -> httpx.Client:
    headers = {"X-YATAI-API-TOKEN": token or server.token, "X-Bentoml-Version": "1.4.40"}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, verify=False, timeout=60)


@pytest.fixture
def api(server: BentoCloudStandIn) -> Iterator[httpx.Client]:
    with client(server) as api:
        yield api


@pytest.fixture
def yatai_api(yatai: BentoCloudStandIn) -> Iterator[httpx.Client]:
    with client(yatai) as api:
        yield api


@pytest.fixture
def store(server: BentoCloudStandIn) -> Iterator[httpx.Client]:
    """A client that knows nothing of the API's token."""
    with httpx.Client(trust_env=False, verify=False, timeout=60) as store:
        yield store


def code(answer: httpx.Response) -> str:
    found = re.search(r"<Code>(\w+)</Code>", answer.text)
    assert found, answer.text
    return found.group(1)


def raw_put(url: str, length: int, body: bytes, *, finish: bool) -> bytes:
    """PUT with a Content-Length that may lie; `finish` closes the sending side after the body."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + body)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65536):
            answer += block
        return answer


# ---- the recording ----------------------------------------------------------------------------------------------

VOLATILE = re.compile(r"uid|model_uid|upload_id|presigned_\w+_url|(created|updated|upload_started|upload_finished)_at")
UID = re.compile(r"[0-9a-f]{20}")
UNRECORDED = {"organization"}  # named by the OpenAPI document, left out by the server of the recording
YATAI = {"bad_token", "not_found_as_400"}


def comparable(value: Any, key: str = "") -> Any:
    """The value with what differs from run to run replaced by its type."""
    if isinstance(value, dict):
        return {name: comparable(item, name) for name, item in value.items() if name not in UNRECORDED}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    varies = VOLATILE.fullmatch(key) or (isinstance(value, str) and UID.fullmatch(value))
    return type(value).__name__ if value and varies else value


def strategy(value: Any) -> Iterator[str | None]:
    """The transmission strategies that a recorded answer shows."""
    if isinstance(value, dict):
        if "transmission_strategy" in value:
            yield value["transmission_strategy"]
        for item in value.values():
            yield from strategy(item)
    elif isinstance(value, list):
        for item in value:
            yield from strategy(item)


class Replay:
    """Sends the recorded requests, with this server's token, URLs, upload ids and ETags in place of the recorded."""

    def __init__(self, server: BentoCloudStandIn) -> None:
        self.server = server
        self.urls: dict[tuple[str, str, str | None], str] = {}
        self.ours: dict[str, str] = {"<token>": server.token}

    def send(self, scenario: str, exchange: dict[str, Any]) -> httpx.Response | None:
        """The stand-in's answer; None: the connection was reset."""
        method, path, recorded = exchange["method"], exchange["path"], exchange.get("response_body")
        self.server.dialect = "yatai" if scenario in YATAI else "bentocloud"
        self.server.transmission_strategy = next(strategy(recorded), self.server.transmission_strategy)
        if exchange["status"] == 0:
            self.server.fault(method, "", Reset(), nth=1)
        elif recorded == {"error": "injected"}:
            retry = {name: value for name, value in exchange["response_headers"].items() if name == "retry-after"}
            self.server.fault(method, "", Respond(exchange["status"], recorded, retry))
        content = b""
        if "binary_length" in exchange.get("request_body", {}):
            content = exchange["request_body"].get("sha256", "lost").encode() * 20
        elif "request_body" in exchange:
            content = json.dumps(exchange["request_body"]).encode()
            for theirs, ours in self.ours.items():
                content = content.replace(json.dumps(theirs).encode(), json.dumps(ours).encode())
        headers = {name: self.ours.get(value, value) for name, value in exchange.get("request_headers", {}).items()}
        headers.pop("content-length", None)
        if scenario == "bad_token":
            headers["x-yatai-api-token"] = "wrong"
        url = self.server.url + path
        query = exchange.get("query", {})
        if path.startswith("/store/"):
            url, query = self.urls[method, path.removeprefix("/store/"), query.get("partNumber")], None
        try:
            with httpx.Client(trust_env=False, verify=False, timeout=60) as http:
                answer = http.request(method, url, params=query, headers=headers, content=content)
        except httpx.TransportError:
            return None
        self.learn(exchange, answer)
        return answer

    def learn(self, exchange: dict[str, Any], answer: httpx.Response) -> None:
        if "etag" in answer.headers:
            self.ours[exchange["response_headers"]["etag"]] = answer.headers["etag"]
        recorded = exchange.get("response_body")
        if not isinstance(recorded, dict) or "upload_id" not in recorded or not answer.is_success:
            return
        model = answer.json()
        if recorded["upload_id"]:
            self.ours[recorded["upload_id"]] = model["upload_id"]
        segments = exchange["path"].split("/")
        key = "/".join((segments[5], "acme", *segments[4:7:2])) + ".tar.gz"
        number = exchange.get("request_body", {}).get("part_number")
        if model["presigned_upload_url"]:
            self.urls["PUT", key, number and str(number)] = model["presigned_upload_url"]
        if model["presigned_download_url"]:
            self.urls["GET", key, None] = model["presigned_download_url"]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[httpx.Response | None]]:
    """Every scenario in the order of the recording, which was made against one server."""
    with BentoCloudStandIn(tmp_path_factory.mktemp("replay"), minimum_part_size=0) as server:
        replay = Replay(server)
        server.seed_bento("svc", "abc123")
        server.script_deployment("demo", ["image-building", "image-building", "deploying", "running"])
        return {
            name: [replay.send(name, exchange) for exchange in scenario["exchanges"]]
            for name, scenario in RECORDING.items()
        }


@pytest.mark.parametrize("scenario", RECORDING)
def test_the_answers_are_those_of_the_recording(
    scenario: str, replayed: dict[str, list[httpx.Response | None]]
) -> None:
    for exchange, answer in zip(RECORDING[scenario]["exchanges"], replayed[scenario], strict=True):
        where = f"{exchange['method']} {exchange['path']}"
        if exchange["status"] == 0:
            assert answer is None, where
            continue
        assert answer is not None, where
        assert answer.status_code == exchange["status"], where
        for name in ("content-type", "transfer-encoding", "accept-ranges", "retry-after"):
            recorded = exchange["response_headers"].get(name)
            if recorded is not None and not exchange["path"].startswith("/store/"):
                assert answer.headers[name] == recorded, where
        body = exchange.get("response_body")
        if isinstance(body, dict) and "binary_length" not in body:
            assert comparable(answer.json()) == comparable(body), where


def test_the_recorded_upload_comes_back_as_it_went_up(replayed: dict[str, list[httpx.Response | None]]) -> None:
    for scenario in ("pull_proxy", "pull_presigned"):
        answer = replayed[scenario][-1]
        exchange = RECORDING[scenario]["exchanges"][-1]
        assert answer is not None
        assert answer.content == exchange["response_body"]["sha256"].encode() * 20


# ---- what S3 refuses --------------------------------------------------------------------------------------------


def test_a_presigned_put_and_get_keep_the_bytes(server: BentoCloudStandIn, store: httpx.Client) -> None:
    put = store.put(server.store.presign("PUT", "key"), content=b"weights")
    got = store.get(server.store.presign("GET", "key"))
    assert put.status_code == got.status_code == 200
    assert got.content == b"weights"
    assert put.headers["etag"] == got.headers["etag"] == f'"{hashlib.md5(b"weights").hexdigest()}"'
    assert got.headers["accept-ranges"] == "bytes"


def test_head_gives_the_length_and_no_body(server: BentoCloudStandIn, store: httpx.Client) -> None:
    store.put(server.store.presign("PUT", "key"), content=b"weights")
    answer = store.head(server.store.presign("HEAD", "key"))
    assert (answer.headers["content-length"], answer.content) == ("7", b"")


@pytest.mark.parametrize("name", ["Authorization", "X-YATAI-API-TOKEN", "Cookie"])
def test_a_credential_beside_a_presigned_url_is_refused(
    name: str, server: BentoCloudStandIn, store: httpx.Client
) -> None:
    answer = store.put(server.store.presign("PUT", "key"), content=b"x", headers={name: "secret"})
    assert (answer.status_code, code(answer)) == (400, "InvalidArgument")
    assert server.store.objects == {}


@pytest.mark.parametrize("name", ["Content-Type", "Content-MD5", "x-amz-checksum-sha256"])
def test_a_header_that_was_not_signed_is_refused(name: str, server: BentoCloudStandIn, store: httpx.Client) -> None:
    answer = store.put(server.store.presign("PUT", "key"), content=b"x", headers={name: "text/plain"})
    assert (answer.status_code, code(answer)) == (403, "AccessDenied")
    assert server.store.objects == {}


def test_an_expired_url_is_refused(server: BentoCloudStandIn, store: httpx.Client) -> None:
    answer = store.put(server.store.presign("PUT", "key", age=server.store.LIFE + 2), content=b"x")
    assert (answer.status_code, code(answer)) == (403, "AccessDenied")
    assert "Request has expired" in answer.text
    assert store.put(server.store.presign("PUT", "key", age=server.store.LIFE - 60), content=b"x").status_code == 200


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/key?", "/other?"),
        ("X-Amz-Expires=3600", "X-Amz-Expires=36000"),
        ("partNumber=1", "partNumber=2"),
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
    ],
)
def test_a_url_that_was_changed_is_refused(old: str, new: str, server: BentoCloudStandIn, store: httpx.Client) -> None:
    url = server.store.presign("PUT", "key", {"partNumber": "1", "uploadId": "u"})
    assert old in url
    answer = store.put(url.replace(old, new), content=b"x")
    assert (answer.status_code, code(answer)) == (403, "SignatureDoesNotMatch")


def test_a_url_is_for_one_method_only(server: BentoCloudStandIn, store: httpx.Client) -> None:
    store.put(server.store.presign("PUT", "key"), content=b"x")
    answer = store.get(server.store.presign("PUT", "key"))
    assert (answer.status_code, code(answer)) == (403, "SignatureDoesNotMatch")


def test_a_url_without_signature_is_refused(server: BentoCloudStandIn, store: httpx.Client) -> None:
    answer = store.get(f"{server.store.url}/yatai/key")
    assert (answer.status_code, code(answer)) == (403, "AccessDenied")


def test_a_chunked_put_is_refused(server: BentoCloudStandIn, store: httpx.Client) -> None:
    answer = store.put(server.store.presign("PUT", "key"), content=iter([b"x"]))
    assert (answer.status_code, code(answer)) == (411, "MissingContentLength")
    assert server.store.objects == {}


def test_a_body_shorter_than_announced_is_refused(server: BentoCloudStandIn, tmp_path: Path) -> None:
    answer = raw_put(server.store.presign("PUT", "key"), 10, b"short", finish=True)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"IncompleteBody" in answer
    assert server.store.objects == {}
    assert server.requests[0].received == 5
    assert list((tmp_path / "objects").iterdir()) == []


def test_a_body_that_stalls_is_refused(server: BentoCloudStandIn) -> None:
    server.stall_seconds = 0.2
    answer = raw_put(server.store.presign("PUT", "key"), 10, b"short", finish=False)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"RequestTimeout" in answer
    assert server.store.objects == {}


def test_what_follows_the_announced_body_is_no_request(server: BentoCloudStandIn) -> None:
    answer = raw_put(server.store.presign("PUT", "key"), 4, b"long body", finish=True)
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.store.objects["key"].path.read_bytes() == b"long"
    assert [(request.method, request.path) for request in server.requests[1:]] == [("?", "body")]


def test_a_missing_key(server: BentoCloudStandIn, store: httpx.Client) -> None:
    answer = store.get(server.store.presign("GET", "key"))
    assert (answer.status_code, code(answer)) == (404, "NoSuchKey")


@pytest.mark.parametrize(
    ("asked", "status", "given", "body"),
    [
        ("bytes=2-4", 206, "bytes 2-4/10", b"234"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=8-99", 206, "bytes 8-9/10", b"89"),
        ("bytes=-3", 206, "bytes 7-9/10", b"789"),
        ("bytes=0-1,3-4", 200, None, b"0123456789"),
        ("bytes=4-2", 200, None, b"0123456789"),
        ("bytes=10-", 416, "bytes */10", None),
        ("bytes=-0", 416, "bytes */10", None),
    ],
)
def test_ranges(
    asked: str, status: int, given: str | None, body: bytes | None, server: BentoCloudStandIn, store: httpx.Client
) -> None:
    store.put(server.store.presign("PUT", "key"), content=b"0123456789")
    answer = store.get(server.store.presign("GET", "key"), headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, given)
    if body is None:
        assert code(answer) == "InvalidRange"
    else:
        assert answer.content == body


def test_if_match(server: BentoCloudStandIn, store: httpx.Client) -> None:
    etag = store.put(server.store.presign("PUT", "key"), content=b"weights").headers["etag"]
    url = server.store.presign("GET", "key")
    assert store.get(url, headers={"If-Match": etag, "Range": "bytes=1-2"}).status_code == 206
    assert store.get(url, headers={"If-Match": "*"}).status_code == 200
    refused = store.get(url, headers={"If-Match": '"other"', "Range": "bytes=1-2"})
    assert (refused.status_code, code(refused)) == (412, "PreconditionFailed")


# ---- multipart --------------------------------------------------------------------------------------------------


@pytest.fixture
def upload(server: BentoCloudStandIn, api: httpx.Client, store: httpx.Client) -> Multipart:
    server.seed("tiny", "v1", status="pending")
    return Multipart(server, api, store)


class Multipart:
    def __init__(self, server: BentoCloudStandIn, api: httpx.Client, store: httpx.Client) -> None:
        self.server, self.api, self.store = server, api, store
        self.upload_id = api.patch(M + "/start_multipart_upload").json()["upload_id"]

    def put(self, number: int, content: bytes) -> httpx.Response:
        body = {"upload_id": self.upload_id, "part_number": number}
        url = self.api.patch(M + "/presign_multipart_upload_url", json=body).json()["presigned_upload_url"]
        return self.store.put(url, content=content)

    def complete(self, *parts: tuple[int, str]) -> httpx.Response:
        listed = [{"part_number": number, "etag": etag} for number, etag in parts]
        return self.api.patch(M + "/complete_multipart_upload", json={"upload_id": self.upload_id, "parts": listed})


def test_parts_become_one_object(upload: Multipart) -> None:
    first, second = b"a" * 1000, b"b" * 10
    answer = upload.complete((1, upload.put(1, first).headers["etag"]), (2, upload.put(2, second).headers["etag"]))
    digests = hashlib.md5(first).digest() + hashlib.md5(second).digest()
    stored = upload.server.stored("tiny", "v1")
    assert answer.status_code == 200
    assert stored.path.read_bytes() == first + second
    assert (stored.size, stored.etag) == (1010, f'"{hashlib.md5(digests).hexdigest()}-2"')


def test_a_part_sent_again_replaces_the_first(upload: Multipart) -> None:
    lost = upload.put(1, b"old").headers["etag"]
    etag = upload.put(1, b"new").headers["etag"]
    refused = upload.complete((1, lost))
    assert (refused.status_code, "InvalidPart:" in refused.text) == (400, True)
    assert upload.complete((1, etag)).status_code == 200
    assert upload.server.stored("tiny", "v1").path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("sizes", "listed", "expected"),
    [
        ((999, 10), (1, 2), "EntityTooSmall"),
        ((1000, 10), (2, 1), "InvalidPartOrder"),
        ((1000, 10), (1, 1), "InvalidPartOrder"),
        ((1000,), (1, 2), "InvalidPart"),
        ((1000,), (), "MalformedXML"),
    ],
)
def test_complete_refuses(sizes: tuple[int, ...], listed: tuple[int, ...], expected: str, upload: Multipart) -> None:
    etags = {number: upload.put(number, b"x" * size).headers["etag"] for number, size in enumerate(sizes, 1)}
    answer = upload.complete(*((number, etags.get(number, '"unknown"')) for number in listed))
    assert (answer.status_code, f"{expected}:" in answer.text) == (400, True)
    assert upload.server.store.objects == {}


def test_an_upload_that_ended_is_gone(upload: Multipart) -> None:
    etag = upload.put(1, b"x").headers["etag"]
    assert upload.complete((1, etag)).status_code == 200
    assert "NoSuchUpload" in upload.complete((1, etag)).text
    late = upload.put(2, b"x")
    assert (late.status_code, code(late)) == (404, "NoSuchUpload")


def test_the_smallest_part_is_five_mib_by_default(tmp_path: Path) -> None:
    assert BentoCloudStandIn(tmp_path).store.minimum_part_size == 5 * 1024 * 1024


def test_discarded_bodies_keep_size_and_etag(tmp_path: Path) -> None:
    with (
        BentoCloudStandIn(tmp_path, discard_bodies=True) as server,
        httpx.Client(trust_env=False, verify=False, timeout=60) as store,
    ):
        etag = store.put(server.store.presign("PUT", "key"), content=b"weights").headers["etag"]
        assert etag == f'"{hashlib.md5(b"weights").hexdigest()}"'
        assert server.store.objects["key"].size == 7
        assert server.store.objects["key"].path.read_bytes() == bytes(7)


# ---- the API ----------------------------------------------------------------------------------------------------


def test_tokens(server: BentoCloudStandIn) -> None:
    answers = [client(server, token).get("/api/v1/auth/current") for token in ("wrong", server.expired_token)]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert [answer.json()["message"] for answer in answers] == [
        "get api token: record not found",
        "the api token is expired",
    ]


def test_a_token_can_expire_while_in_use(server: BentoCloudStandIn, api: httpx.Client) -> None:
    assert api.get("/api/v1/current_org").status_code == 200
    server.tokens[server.token] = datetime.now(UTC) - timedelta(seconds=1)
    assert api.get("/api/v1/current_org").status_code == 401


def test_organisations(server: BentoCloudStandIn, api: httpx.Client) -> None:
    assert api.get("/api/v1/models", headers={"X-Yatai-Organization": "acme"}).status_code == 200
    for unknown in ({"headers": {"X-Yatai-Organization": "other"}}, {"params": {"organization_name": "other"}}):
        answer = api.get("/api/v1/models", **unknown)  # type: ignore[arg-type]
        assert (answer.status_code, answer.content) == (404, b"")


def test_an_unknown_route(api: httpx.Client) -> None:
    answer = api.delete("/api/v1/model_repositories/tiny")
    assert (answer.status_code, answer.json()) == (404, {"message": "not found this router with method DELETE"})


def test_duplicates_and_missing_records(server: BentoCloudStandIn, api: httpx.Client) -> None:
    assert api.post(M.rsplit("/", 1)[0], json=CREATE).status_code == 404
    assert api.post("/api/v1/model_repositories", json={"name": "tiny"}).status_code == 200
    assert api.post("/api/v1/model_repositories", json={"name": "tiny"}).status_code == 409
    assert api.post(M.rsplit("/", 1)[0], json=CREATE).status_code == 200
    again = api.post(M.rsplit("/", 1)[0], json=CREATE)
    assert (again.status_code, "duplicate key value" in again.json()["error"]) == (409, True)
    assert [api.patch(M + "x/start_upload").status_code, api.get(M + "x/download").status_code] == [404, 404]


@pytest.mark.parametrize("version", ["", "Upper", "a/b", "-v1", "x" * 64, None])
def test_versions_follow_the_grammar(version: str | None, server: BentoCloudStandIn, api: httpx.Client) -> None:
    api.post("/api/v1/model_repositories", json={"name": "tiny"})
    assert api.post(M.rsplit("/", 1)[0], json={**CREATE, "version": version}).status_code == 400
    assert server.repositories["tiny"].models == {}


def test_numbers_in_metadata_pass_through_a_float(server: BentoCloudStandIn, api: httpx.Client) -> None:
    api.post("/api/v1/model_repositories", json={"name": "tiny"})
    metadata = {"large": 2**53 + 1, "whole": 1.0, "part": 0.91, "flag": True, "text": "9007199254740993", "none": None}
    created = api.post(M.rsplit("/", 1)[0], json={**CREATE, "manifest": {**CREATE["manifest"], "metadata": metadata}})  # type: ignore[dict-item]
    expected = (
        '{"large": 9007199254740992, "whole": 1, "part": 0.91, "flag": true, "text": "9007199254740993", "none": null}'
    )
    assert json.dumps(created.json()["manifest"]["metadata"]) == expected


def test_patch_and_delete_of_a_model(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1", b"content", labels={"stage": "dev", "team": "nlp"})
    changed = api.patch(M, json={"labels": [{"key": "stage", "value": "prod"}], "description": "better"}).json()
    assert (changed["labels"], changed["description"]) == ([{"key": "stage", "value": "prod"}], "better")
    deleted = api.delete(M)
    assert (deleted.status_code, deleted.content) == (200, b"")
    assert api.get(M).status_code == api.delete(M).status_code == 404
    assert server.store.objects == {}


def test_patch_of_a_repository(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1")
    path = "/api/v1/model_repositories/tiny"
    api.patch(path, json={"description": "small", "labels": [{"key": "a", "value": "1"}]})
    assert api.get(path).json()["description"] == "small"
    page = api.get("/api/v1/model_repositories", params={"search": "ti", "count": "5"}).json()
    assert [(item["name"], item["labels"]) for item in page["items"]] == [("tiny", [{"key": "a", "value": "1"}])]
    assert api.get("/api/v1/model_repositories", params={"search": "no"}).json()["items"] == []


def test_proxy_upload_and_download(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1", status="pending")
    answer = api.put(M + "/upload", content=b"weights", headers={"Content-Type": "application/octet-stream"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert api.get(M).json()["upload_status"] == "success"
    got = api.get(M + "/download")
    assert got.content == b"weights"
    assert "content-length" not in got.headers


def test_a_cut_proxy_upload_is_failed_by_the_server(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1", b"old", status="success")
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port)) as connection:
        head = f"PUT {M}/upload HTTP/1.1\r\nHost: x\r\nX-YATAI-API-TOKEN: {server.token}\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode() + b"cut")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert api.get(M).json()["upload_status"] == "failed"
    assert server.stored("tiny", "v1").path.read_bytes() == b"old"


def test_without_presigned_urls_the_url_is_empty(tmp_path: Path) -> None:
    with BentoCloudStandIn(tmp_path, presigned_urls=False) as server, client(server) as api:
        server.seed("tiny", "v1")
        answers = [api.patch(f"{M}/presign_{way}_url").json() for way in ("upload", "download")]
        assert [answer["presigned_upload_url"] + answer["presigned_download_url"] for answer in answers] == ["", ""]


@pytest.fixture
def catalog(server: BentoCloudStandIn, api: httpx.Client) -> httpx.Client:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    server.seed("tiny", "v1", labels={"stage": "dev", "team": "nlp"}, build_at=day, size_bytes=30)
    server.seed("tiny", "v2", labels={"stage": "prod"}, build_at=day + timedelta(days=2), size_bytes=10)
    server.seed("wide", "v1", build_at=day + timedelta(days=1), size_bytes=20)
    return api


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("", ["tiny:v2", "wide:v1", "tiny:v1"]),
        ("label:stage", ["tiny:v2", "tiny:v1"]),
        ("label:stage=dev", ["tiny:v1"]),
        ("label:stage=dev,stage=prod", ["tiny:v2", "tiny:v1"]),
        ("label:stage=dev label:team=nlp", ["tiny:v1"]),
        ("label:stage=prod label:team=nlp", []),
        ("-label:stage", ["tiny:v2", "wide:v1", "tiny:v1"]),
        ("wid", ["wide:v1"]),
        ("wid in:description", []),
        ("creator:@me tiny", ["tiny:v2", "tiny:v1"]),
        ("creator:other", []),
        ("module:sklearn", []),
        ("sort:build_at-asc", ["tiny:v1", "wide:v1", "tiny:v2"]),
        ("sort:size-desc", ["tiny:v1", "wide:v1", "tiny:v2"]),
    ],
)
def test_the_grammar_of_q(q: str, expected: list[str], catalog: httpx.Client) -> None:
    page = catalog.get("/api/v1/models", params={"q": q} if q else {}).json()
    assert [f"{item['repository']['name']}:{item['version']}" for item in page["items"]] == expected
    assert page["total"] == len(expected)


def test_versions_are_newest_first_and_paged(catalog: httpx.Client) -> None:
    path = "/api/v1/model_repositories/tiny/models"
    whole = catalog.get(path, params={"start": "0", "count": "10"}).json()
    second = catalog.get(path, params={"start": "1", "count": "1"}).json()
    assert [item["version"] for item in whole["items"]] == ["v2", "v1"]
    assert ([item["version"] for item in second["items"]], second["total"]) == (["v1"], 2)
    assert [item["version"] for item in catalog.get(path, params={"search": "1"}).json()["items"]] == ["v1"]
    assert [item["version"] for item in catalog.get(path, params={"q": "label:stage=dev"}).json()["items"]] == ["v1"]


def test_a_default_page_size(server: BentoCloudStandIn, catalog: httpx.Client) -> None:
    server.default_count = 2
    page = catalog.get("/api/v1/models").json()
    assert (page["total"], page["count"], len(page["items"])) == (3, 2, 2)


# ---- Yatai ------------------------------------------------------------------------------------------------------


def test_yatai_knows_no_delete(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    yatai.seed("tiny", "v1")
    answer = yatai_api.delete(M)
    assert (answer.status_code, answer.json()) == (404, {"message": "not found this router with method DELETE"})
    assert yatai_api.get(M).status_code == 200


def test_yatai_says_400_for_missing_and_duplicate(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    missing = [yatai_api.get(path) for path in ("/api/v1/model_repositories/tiny", M)]
    assert [(answer.status_code, "record not found" in answer.text) for answer in missing] == [(400, True)] * 2
    yatai_api.post("/api/v1/model_repositories", json={"name": "tiny"})
    answers = [yatai_api.post(M.rsplit("/", 1)[0], json=CREATE) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert "duplicate key value violates unique constraint" in answers[1].json()["error"]


def test_yatai_says_403_for_tokens(yatai: BentoCloudStandIn) -> None:
    answers = [client(yatai, token).get("/api/v1/auth/current") for token in ("wrong", yatai.expired_token)]
    assert [answer.status_code for answer in answers] == [403, 403]


def test_yatai_says_500_on_raw_routes(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    answers = [yatai_api.get(M + "/download"), yatai_api.put(M + "/upload", content=b"x")]
    yatai.seed("tiny", "v1")
    answers.append(yatai_api.get(M + "/download"))
    assert [(answer.status_code, list(answer.json())) for answer in answers] == [(500, ["error"])] * 3


def test_yatai_ignores_q_on_versions_only(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    yatai.seed("tiny", "v1", labels={"stage": "dev"})
    yatai.seed("tiny", "v2")
    q = {"q": "label:stage=dev"}
    assert yatai_api.get("/api/v1/model_repositories/tiny/models", params=q).json()["total"] == 2
    assert yatai_api.get("/api/v1/models", params=q).json()["total"] == 1


def test_yatai_patches_labels_only(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    yatai.seed("tiny", "v1", labels={"stage": "dev"}, metadata={"n": 1})
    body = {"labels": [{"key": "team", "value": "nlp"}], "description": "x", "manifest": {"metadata": {}}}
    changed = yatai_api.patch(M, json=body).json()
    assert (changed["labels"], changed["description"]) == ([{"key": "team", "value": "nlp"}], "")
    assert changed["manifest"]["metadata"] == {"n": 1}


@pytest.mark.parametrize(
    "build_at", ["2026-11-20T15:28:40.684956Z", "2026-11-20 15:28:40", "2026-13-01 00:00:00.000000", None]
)
def test_yatai_checks_build_at(build_at: str | None, yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    yatai_api.post("/api/v1/model_repositories", json={"name": "tiny"})
    answer = yatai_api.post(M.rsplit("/", 1)[0], json={**CREATE, "build_at": build_at})
    assert (answer.status_code, "parse build at" in answer.text) == (400, True)


def test_yatai_parses_the_client_version(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    yatai.transmission_strategy = "proxy"
    yatai.seed("tiny", "v1")

    def presign(version: str) -> httpx.Response:
        return yatai_api.patch(M + "/presign_upload_url", headers={"X-Bentoml-Version": version})

    assert presign("modelsync").status_code == 400
    old, current = presign("1.0.5").json(), presign("1.4.40").json()
    assert (old["presigned_upload_url"], old["presigned_urls_deprecated"]) == ("", True)
    assert (current["presigned_upload_url"] != "", current["presigned_urls_deprecated"]) == (True, False)


# ---- faults -----------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """A tar of three members."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 700)
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        for name in ("a", "b", "c"):
            tar.add(tmp_path / name, arcname=name)
    return (tmp_path / "model.tar").read_bytes()


def test_a_fault_is_for_the_nth_match(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.fault("GET", r"/models$", Respond(503, {"error": "busy"}, {"Retry-After": "3"}), nth=2, times=2)
    answers = [api.get("/api/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert (answers[1].headers["retry-after"], answers[1].json()) == ("3", {"error": "busy"})
    assert api.get("/api/v1/model_repositories").status_code == 200


def test_a_fault_for_ever_and_for_one_part(upload: Multipart) -> None:
    upload.server.fault("PUT", r"\.tar\.gz$", Respond(500), part=2, times=None)
    assert [upload.put(number, b"x").status_code for number in (1, 2, 2, 3)] == [200, 500, 500, 200]
    assert upload.server.count("PUT", r"\.tar\.gz$", part=2) == 2
    assert upload.server.count("PUT") == 4


def test_reset_while_receiving(server: BentoCloudStandIn, store: httpx.Client) -> None:
    server.fault("PUT", "key", Reset(after=1000))
    with pytest.raises(httpx.TransportError):
        store.put(server.store.presign("PUT", "key"), content=bytes(5_000_000))
    assert (server.requests[0].received, server.requests[0].status) == (1000, 0)
    assert server.store.objects == {}


def test_a_lost_answer_was_carried_out(server: BentoCloudStandIn, store: httpx.Client) -> None:
    server.fault("PUT", "key", LoseAnswer())
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        store.put(server.store.presign("PUT", "key"), content=b"weights")
    assert server.store.objects["key"].path.read_bytes() == b"weights"


def test_a_download_cut_by_a_reset(server: BentoCloudStandIn, api: httpx.Client, store: httpx.Client) -> None:
    server.seed("tiny", "v1", bytes(2_000_000))
    server.fault("GET", "tar.gz|download", Truncate(after=600_000), times=2)
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        store.get(server.store.presign("GET", server.key("tiny", "v1")))
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        api.get(M + "/download")
    assert [request.sent for request in server.requests] == [600_000, 600_000]


def test_a_chunked_download_ends_cleanly_at_a_member(
    server: BentoCloudStandIn, api: httpx.Client, archive: bytes, tmp_path: Path
) -> None:
    server.seed("tiny", "v1", archive)
    second = member_boundaries(server.stored("tiny", "v1").path)[1]
    server.fault("GET", "/download$", Truncate(after=second, clean=True))
    cut = api.get(M + "/download").content
    assert cut == archive[:second]
    (tmp_path / "cut.tar").write_bytes(cut)
    with tarfile.open(tmp_path / "cut.tar") as tar:
        assert tar.getnames() == ["a", "b"]
    assert api.get(M + "/download").content == archive


def test_a_download_with_a_length_ends_early(server: BentoCloudStandIn, store: httpx.Client) -> None:
    server.seed("tiny", "v1", bytes(1000))
    server.fault("GET", "tar.gz", Truncate(after=400, clean=True))
    with pytest.raises(httpx.RemoteProtocolError, match="400 bytes, expected 1000"):
        store.get(server.store.presign("GET", server.key("tiny", "v1")))


@pytest.mark.parametrize("offset", [0, 262_143, 262_144, 299_999])
def test_a_flipped_bit(offset: int, server: BentoCloudStandIn, store: httpx.Client) -> None:
    server.seed("tiny", "v1", bytes(300_000))
    server.fault("GET", "tar.gz", FlipBit(offset))
    got = store.get(server.store.presign("GET", server.key("tiny", "v1"))).content
    assert [index for index, byte in enumerate(got) if byte] == [offset]
    assert len(got) == 300_000


def test_a_delay(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.fault("GET", "/models$", Delay(60))
    with pytest.raises(httpx.ReadTimeout):
        api.get("/api/v1/models", timeout=httpx.Timeout(60, read=0.1))
    assert api.get("/api/v1/models").status_code == 200


def test_an_early_413_can_be_read_by_a_client_that_looks(server: BentoCloudStandIn) -> None:
    server.fault("PUT", "/upload$", Respond(413, b"too large", early=True))
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port), timeout=60) as connection:
        connection.sendall(f"PUT {M}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n".encode() + b"x")
        answer = b""
        while block := connection.recv(65536):
            answer += block
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b"too large")
    assert server.requests[0].received == 0


def test_a_large_html_error_page(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.fault("GET", "/models$", html_error_page(502))
    answer = api.get("/api/v1/models")
    assert (answer.status_code, len(answer.content)) == (502, 10 * 1024 * 1024)
    assert answer.headers["content-type"] == "text/html"
    assert answer.text.endswith("</html>")


def test_an_expired_presigned_url_is_handed_out_once(
    server: BentoCloudStandIn, api: httpx.Client, store: httpx.Client
) -> None:
    server.seed("tiny", "v1", b"weights")
    server.fault("PATCH", "/presign_download_url$", ExpirePresign())
    answers = [store.get(api.patch(M + "/presign_download_url").json()["presigned_download_url"]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [403, 200]
    assert "Request has expired" in answers[0].text


def test_a_doctored_answer(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1", b"weights")
    server.fault("PATCH", "/presign_", Rewrite(lambda model: model | {"presigned_download_url": "http://169.254.0.1/"}))
    assert api.patch(M + "/presign_download_url").json()["presigned_download_url"] == "http://169.254.0.1/"


def test_a_scripted_upload_status(server: BentoCloudStandIn, api: httpx.Client) -> None:
    server.seed("tiny", "v1")
    server.script_status("tiny", "v1", ["uploading", "success", "uploading", "failed"])
    seen = [api.get(M).json()["upload_status"] for _ in range(5)]
    assert seen == ["uploading", "success", "uploading", "failed", "failed"]


# ---- log, seeds, life -------------------------------------------------------------------------------------------


def test_the_log_of_requests(server: BentoCloudStandIn, api: httpx.Client, store: httpx.Client) -> None:
    api.post("/api/v1/model_repositories", json={"name": "tiny"})
    store.put(server.store.presign("PUT", "key"), content=b"weights")
    store.get(server.store.presign("GET", "key"))
    create, put, get = server.requests
    assert (create.origin, create.method, create.path) == ("api", "POST", "/api/v1/model_repositories")
    assert (create.body, create.status, create.headers["x-yatai-api-token"]) == ({"name": "tiny"}, 200, server.token)
    assert (put.origin, put.received, put.status, put.headers["content-length"]) == ("store", 7, 200, "7")
    assert (get.received, get.sent, get.query["X-Amz-Expires"]) == (0, 7, "3600")
    assert server.find("GET") == [get]


def test_a_directory_is_seeded_as_the_vendor_archives_it(server: BentoCloudStandIn, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "weights.bin").write_bytes(b"12345")
    model = server.seed("tiny", "v1", source, labels={"stage": "dev"}, metadata={"n": 1})
    with tarfile.open(server.stored("tiny", "v1").path) as tar:
        assert sorted(tar.getnames()) == [".", "./model.yaml", "./sub", "./sub/weights.bin"]
        member = tar.extractfile("./model.yaml")
        assert member is not None
        yaml = member.read()
    assert json.loads(yaml)["labels"] == {"stage": "dev"}
    assert model.manifest["size_bytes"] == 5 + len(yaml)


def test_a_hugging_face_reference_has_no_content(server: BentoCloudStandIn, api: httpx.Client) -> None:
    name, version = server.seed_huggingface("google-bert/BERT", "abc")
    record = api.get(f"/api/v1/model_repositories/{name}/models/{version}").json()
    assert name == "google-bert--bert"
    assert re.fullmatch("[0-9a-f]{32}", version)
    assert record["manifest"]["metadata"]["registry"] == "huggingface"
    assert server.store.objects == {}


def test_connections_are_kept_alive(server: BentoCloudStandIn, api: httpx.Client) -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    for _ in range(5):
        assert api.get("/api/v1/models").status_code == 200
    assert len(set(threading.enumerate()) - before) == 1


def test_stopping_ends_everything_at_once(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with BentoCloudStandIn(tmp_path) as server, client(server) as api:
        api.get("/api/v1/models")
        server.fault("GET", "/models$", Delay(60))
        with pytest.raises(httpx.ReadTimeout):
            api.get("/api/v1/models", timeout=httpx.Timeout(60, read=0.1))
        started = time.monotonic()
    assert time.monotonic() - started < 30
    until(lambda: set(threading.enumerate()) <= before, "the threads to end")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", urlsplit(server.url).port))


def test_a_defect_of_the_stand_in_fails_the_test_that_uses_it(tmp_path: Path) -> None:
    def use() -> None:
        with BentoCloudStandIn(tmp_path) as server, client(server) as api:
            server.fault("GET", "/models$", Rewrite(lambda page: 1 / 0))
            with pytest.raises(httpx.RemoteProtocolError):
                api.get("/api/v1/models")

    with pytest.raises(ZeroDivisionError):
        use()


# ---- bentos and deployments -------------------------------------------------------------------------------------

D = "/api/v2/deployments"


@pytest.fixture
def served(server: BentoCloudStandIn, api: httpx.Client) -> httpx.Client:
    """A server where the bento ``svc:1`` runs as ``demo``, and ``svc:2`` may follow."""
    server.seed("tiny", "v1")
    server.seed_bento("svc", "1", models=["tiny:v1"])
    server.seed_bento("svc", "2", models=["tiny:v1"])
    server.seed_deployment("demo", "svc:1", envs=[{"name": "A", "value": "1"}])
    return api


def shown(answer: httpx.Response) -> tuple[str, str]:
    """Status and revision of a deployment."""
    assert answer.status_code == 200, answer.text
    return answer.json()["status"], answer.json()["latest_revision"]["uid"]


def test_bentos_of_a_model_are_newest_first_and_paged(served: httpx.Client) -> None:
    listed = served.get(f"{M}/bentos", params={"start": 0, "count": 1}).json()

    assert (listed["total"], [item["version"] for item in listed["items"]]) == (2, ["2"])
    assert listed["items"][0]["repository"]["name"] == "svc"
    assert [bento["version"] for bento in served.get(M).json()["bentos"]] == ["2", "1"]


def test_an_update_shows_the_old_revision_for_a_while(server: BentoCloudStandIn, served: httpx.Client) -> None:
    status, old = shown(served.get(f"{D}/demo"))
    server.script_deployment("demo", ["deploying", "deploying", "running"], stale=2)

    told, new = shown(served.put(f"{D}/demo", json={"bento": "svc:2"}))
    reads = [shown(served.get(f"{D}/demo")) for _ in range(5)]

    assert (status, told) == ("running", "running")
    assert reads == [("running", old)] * 2 + [("deploying", new)] * 2 + [("running", new)]
    listed = served.get(f"{D}/demo/revisions").json()["items"]
    assert [(item["uid"], item["status"]) for item in listed] == [(new, "active"), (old, "inactive")]
    before = served.get(f"{D}/demo/revisions/{old}").json()["targets"][0]
    assert (before["bento"]["version"], before["config"]) == ("1", {"envs": [{"name": "A", "value": "1"}]})


def test_why_a_status_was_entered(server: BentoCloudStandIn, served: httpx.Client) -> None:
    server.script_deployment("demo", ["image-build-failed"])
    _, revision = shown(served.put(f"{D}/demo", json={"bento": "svc:2"}))
    server.explain("demo", "image-build-failed", "no such package")

    record = served.get(f"{D}/demo/status_records", params={"count": 1}).json()["items"][0]

    assert (record["status"], record["reason"]) == ("image-build-failed", "no such package")
    assert record["deployment_revision"]["uid"] == revision


def test_deployments_belong_to_a_cluster(server: BentoCloudStandIn, served: httpx.Client) -> None:
    created = served.post(D, params={"cluster": "west"}, json={"name": "far", "bento": "svc:1"})

    assert created.json()["cluster"]["name"] == "west"
    assert served.get(f"{D}/far", params={"cluster": "west"}).status_code == 200
    assert served.get(f"{D}/far", params={"cluster": "east"}).status_code == 404
    listed = served.get(D, params={"cluster": "west"}).json()["items"]
    assert [item["name"] for item in listed] == ["far"]


def test_deployments_that_are_refused(server: BentoCloudStandIn, served: httpx.Client) -> None:
    assert served.post(D, json={"name": "demo", "bento": "svc:1"}).status_code == 409
    assert served.post(D, json={"name": "new", "bento": "absent:1"}).status_code == 400
    assert served.put(f"{D}/demo", json={"bento": "svc:1", "name": "demo"}).status_code == 400
    assert served.delete(f"{D}/demo").status_code == 400
    assert served.get(f"{D}/absent").status_code == 404


def test_yatai_knows_no_deployments_of_version_2(yatai: BentoCloudStandIn, yatai_api: httpx.Client) -> None:
    assert "not found this router" in yatai_api.get(f"{D}/demo").text

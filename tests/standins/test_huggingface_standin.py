"""The stand-in of the Hub knows what the vendor's clients ask for, and answers in the shapes that were recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.support.data import DATA

RECORDED = json.loads((DATA / "huggingface-exchanges.json").read_text())
PLAIN = [
    (client["client"], scenario["name"], exchange)
    for client in RECORDED["clients"]
    if not client["xet"]
    for scenario in client["scenarios"]
    for exchange in scenario["exchanges"]
    if exchange["at"] == "hub"
]
XET = re.compile(r"/xet-(read|write)-token/")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path) as server:
        server.publish("alice/demo", {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": b"w" * 1000})
        repository = server.repositories["alice/demo"]
        repository.tags["v1.0"] = repository.branches["exp/one"] = repository.head
        yield server


def test_every_call_of_the_clients_is_known() -> None:
    unknown = {
        (exchange["method"], path)
        for _, _, exchange in PLAIN
        if not XET.search(path := urlsplit(exchange["path"]).path)
        and not any(
            exchange["method"] in method.split() and re.fullmatch(pattern, path)
            for method, pattern, _ in HuggingFaceStandIn.routes
        )
    }
    assert unknown == set()


def shape(value: Any) -> Any:
    """Return which keys an answer has, at the top, and those of the first entry of a list."""
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return set(value) if isinstance(value, dict) else type(value).__name__


@pytest.mark.parametrize("path", ["whoami-v2", "models/alice/demo/refs", "models/alice/demo/commits/main"])
def test_answers_have_the_recorded_shape(server: HuggingFaceStandIn, path: str) -> None:
    recorded = [
        exchange
        for _, _, exchange in PLAIN
        if urlsplit(exchange["path"]).path == f"/api/{path}" and exchange["status"] == 200 and exchange.get("answer")
    ]
    assert recorded
    for exchange in recorded:
        answer = httpx.get(f"{server.url}{exchange['path']}", headers={"Authorization": f"Bearer {WRITE}"})
        assert answer.status_code == 200
        told, found = shape(exchange["answer"]), shape(answer.json())
        missing = told - found if isinstance(told, set) else told[0] - found[0]
        assert missing <= {"id", "email", "isPro", "pullRequests"}


@pytest.mark.parametrize("path", ["README.md", "model.safetensors"])
def test_where_bytes_are_is_said_with_the_recorded_headers(server: HuggingFaceStandIn, path: str) -> None:
    statuses = {
        exchange["status"]
        for _, name, exchange in PLAIN
        if name == "snapshot_download" and exchange["method"] == "HEAD" and exchange["path"].endswith(f"/{path}")
    }
    answer = httpx.head(f"{server.url}/alice/demo/resolve/main/{path}")
    assert answer.status_code in statuses
    assert {"x-repo-commit", "x-linked-etag", "x-linked-size", "location"} <= answer.headers.keys()


def test_the_cdn_refuses_what_s3_refuses(server: HuggingFaceStandIn) -> None:
    location = httpx.head(f"{server.url}/alice/demo/resolve/main/model.safetensors").headers["location"]
    assert httpx.get(location).content == b"w" * 1000
    assert httpx.get(location, headers={"Authorization": f"Bearer {WRITE}"}).status_code == 400
    assert httpx.get(location.partition("&Expires")[0]).status_code == 403
    whole = httpx.get(location, headers={"Range": "bytes=0-9", "Accept-Encoding": "gzip"})
    assert (whole.status_code, len(whole.content)) == (200, 1000), "what takes gzip gets all of it"
    part = httpx.get(location, headers={"Range": "bytes=0-9", "Accept-Encoding": "identity"})
    assert (part.status_code, len(part.content)) == (206, 10)

"""A form whose large part is never in memory, and the push that sends it in one request."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.form import Field, Form, Upload
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover
from airflow_provider_modelsync.core.transfer.plan import Address, PostForm
from airflow_provider_modelsync.core.transfer.upload import upload
from tests.standins.fault_server import FaultServer, ReadRest, ReadSome, Received, Reset, Step, answer

CONTENT = bytes(range(256)) * 8000
OK = [answer(202, b"done")]


def form_of(content: bytes = CONTENT, *, size: int | None = None, filename: str = "model.onnx") -> Form:
    fields = (Field("metadata", b'{"a": 1}', "application/json"), Field("note", "größe".encode()))
    return Form(fields, Upload("file", filename, len(content) if size is None else size, lambda: io.BytesIO(content)))


def parts_of(form: Form, body: bytes) -> list[Message]:
    """Read a body as the standard library does."""
    head = f"Content-Type: {form.content_type}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    assert not message.defects
    return list(message.iter_parts())  # type: ignore[attr-defined]


def param(part: Message, name: str) -> Any:
    return part.get_param(name, header="content-disposition")


# ---- the body ---------------------------------------------------------------------------------------------------


def test_a_reader_of_mail_finds_the_fields_and_then_the_file() -> None:
    form = form_of()
    body = form.reader().readall()
    parts = parts_of(form, body)
    assert len(body) == form.size
    assert [param(part, "name") for part in parts] == ["metadata", "note", "file"]
    assert [param(part, "filename") for part in parts] == [None, None, "model.onnx"]
    assert parts[0].get_content_type() == "application/json"
    assert parts[0].get_payload(decode=True) == b'{"a": 1}'
    assert parts[1].get_payload(decode=True) == "größe".encode()
    assert parts[2].get_content_type() == "application/octet-stream"
    assert parts[2].get_payload(decode=True) == CONTENT


def test_a_form_may_have_no_file() -> None:
    form = Form((Field("metadata", b"{}", "application/json"),))
    body = form.reader().readall()
    assert len(body) == form.size
    assert [part.get_payload(decode=True) for part in parts_of(form, body)] == [b"{}"]


@pytest.mark.parametrize("block", [1, 13, 100_000])
def test_the_body_is_the_same_whatever_the_blocks_and_every_time(block: int) -> None:
    form = form_of(b"x" * 300)
    whole = form.reader().readall()
    for _ in range(2):
        with closing(form.reader()) as reader:
            assert b"".join(iter(lambda reader=reader: reader.read(block), b"")) == whole


@pytest.mark.parametrize("name", ['a"b', "a\r\nX-Evil: 1", "größe.onnx"])
def test_no_name_breaks_out_of_its_header(name: str) -> None:
    form = form_of(b"x", filename=name)
    parts = parts_of(form, form.reader().readall())
    assert len(parts) == 3
    assert "X-Evil" not in parts[2]
    assert parts[2].get_payload(decode=True) == b"x"


def test_the_content_is_closed_when_the_body_is() -> None:
    content = io.BytesIO(CONTENT)
    reader = Form((), Upload("file", "m", len(CONTENT), lambda: content)).reader()
    reader.read(1000)
    reader.close()
    assert content.closed


def test_two_forms_have_other_boundaries() -> None:
    assert form_of().content_type != form_of().content_type


# ---- sending it -------------------------------------------------------------------------------------------------


class Registry:
    """Hands out addresses, takes answers, and knows what it has."""

    def __init__(self, url: str = "", *, headers: Iterator[Mapping[str, str]] | None = None) -> None:
        self.url = url
        self.headers = headers
        self.answers: list[int] = []
        self.looks = 0
        self.has_it = False

    def address(self) -> Flow[Address]:
        return Address(f"{self.url}/upload", next(self.headers) if self.headers else {"Authorization": "Bearer old"})
        yield

    def answered(self, answer: MovedResponse) -> None:
        self.answers.append(answer.status)
        answer.raise_for_status("uploading")

    def is_there(self) -> Flow[bool]:
        self.looks += 1
        return self.has_it
        yield


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)


def post(registry: Registry, form: Form | None = None, control: Control | None = None) -> TransferStats:
    settings = RegistrySettings(conn_id="form", host=registry.url)
    way = PostForm(form or form_of(), registry.address, registry.answered, registry.is_there)
    control = control or Control()
    source = read_tree(__file__)  # not looked at: the form has its own content
    with closing(Mover(settings, cancel=control.cancel)) as mover:
        return upload(way, source, control, SyncDriver(cancel=control.cancel), mover)


def serve(*scripts: list[Step]) -> FaultServer:
    return FaultServer(*scripts)


def test_the_form_goes_up_in_one_post_of_known_length() -> None:
    form = form_of()
    with serve(OK) as server:
        stats = post(registry := Registry(server.url), form)
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/upload")
    assert request.header("Content-Length") == str(form.size)
    assert request.header("Transfer-Encoding") is None
    assert request.header("Content-Type") == form.content_type
    assert request.header("Authorization") == "Bearer old"
    assert request.body_length == form.size
    assert stats.sent_bytes == len(CONTENT)
    assert (registry.answers, registry.looks) == ([202], 0)


def whole(request: Received) -> bool:
    return request.body_length == int(request.header("Content-Length") or 0)


@pytest.mark.row("S5", of="wallaroo")
def test_after_a_lost_answer_nothing_is_sent_again_when_the_server_has_it() -> None:
    with serve([Reset()], OK) as server:
        registry = Registry(server.url)
        registry.has_it = True
        post(registry)
    assert [whole(request) for request in server.requests] == [True]
    assert (registry.looks, registry.answers) == (1, [])


@pytest.mark.parametrize(
    "fault",
    [[ReadSome(1000), Reset()], [Reset()], [answer(500)], [answer(502, b"<html>")], [answer(503)], [answer(504)]],
    ids=["reset while sending", "reset after sending", "500", "502", "503", "504"],
)
@pytest.mark.row("T1", of="wallaroo")
def test_after_a_fault_the_form_is_sent_again_from_its_start_once_the_server_does_not_have_it(
    fault: list[Step],
) -> None:
    with serve(fault, fault, OK) as server:
        post(registry := Registry(server.url))
    assert len(server.requests) == 3
    assert whole(server.requests[-1])
    assert registry.looks == 2


def test_the_tries_end() -> None:
    with serve([answer(500)]) as server, pytest.raises(RegistryUnavailable, match="500"):
        post(Registry(server.url))
    assert len(server.requests) == Backoff().attempts


@pytest.mark.parametrize(("status", "error"), [(400, InvalidInput), (403, Unauthorized), (413, NotSupported)])
def test_a_refusal_is_not_tried_again(status: int, error: type[Exception]) -> None:
    with serve([answer(status, b'{"msg": "no such framework", "code": 400}')]) as server:
        with pytest.raises(error, match="no such framework"):
            post(Registry(server.url))
    assert len(server.requests) == 1


@pytest.mark.row("T14", of="wallaroo")
def test_an_early_refusal_is_read_although_the_form_is_still_going_up() -> None:
    with serve([ReadSome(1000), answer(413, b'{"msg": "too large"}')]) as server:
        with pytest.raises(NotSupported, match="too large"):
            post(Registry(server.url), form_of(bytes(20 << 20)))


def test_after_a_401_the_form_is_sent_once_more_with_other_credentials() -> None:
    headers = iter([{"Authorization": "Bearer old"}, {"Authorization": "Bearer new"}])
    with serve([answer(401)], OK) as server:
        post(Registry(server.url, headers=headers))
    assert [request.header("Authorization") for request in server.requests] == ["Bearer old", "Bearer new"]
    assert whole(server.requests[1])


def test_a_second_401_is_the_end() -> None:
    headers = iter([{"Authorization": f"Bearer {name}-token"} for name in ("old", "new", "third")])
    with serve([answer(401)]) as server, pytest.raises(Unauthorized) as caught:
        post(Registry(server.url, headers=headers))
    assert len(server.requests) == 2
    assert "new-token" not in str(caught.value)


def test_after_a_401_nothing_is_sent_with_the_same_credentials() -> None:
    with serve([answer(401)]) as server, pytest.raises(Unauthorized):
        post(Registry(server.url))
    assert len(server.requests) == 1


def test_a_content_that_ends_early_is_an_error_and_no_shorter_form() -> None:
    with serve([ReadRest(), *OK]) as server, pytest.raises(SourceChanged):
        post(Registry(server.url), form_of(CONTENT, size=len(CONTENT) + 1000))
    assert not any(whole(request) for request in server.requests)


def test_a_cancelled_push_sends_nothing() -> None:
    token = CancelToken()
    token.cancel()
    with serve(OK) as server, pytest.raises(Cancelled):
        post(Registry(server.url), control=Control(cancel=token))
    assert server.requests == []


def test_a_redirected_form_is_sent_whole_and_keeps_its_credentials_from_other_origins() -> None:
    with serve(OK) as other, serve([answer(307, headers={"Location": f"{other.url}/there"})]) as server:
        post(Registry(server.url))
    assert whole(other.requests[0])
    assert other.requests[0].header("Authorization") is None

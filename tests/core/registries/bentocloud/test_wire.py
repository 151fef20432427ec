"""What BentoCloud and its storage see: the recorded client's requests, and no secret where it does not belong."""

from __future__ import annotations

import json
import logging
import re
import secrets
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, Unauthorized
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import PushRequest
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from tests.core.registries.bentocloud.cloud import DOWNLOAD, FINISH, OBJECT, STRATEGIES, UPLOAD, Cloud, presigned
from tests.core.stores import hidden, snapshot
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Action, Request, Respond, Rewrite, Truncate
from tests.support.data import DATA

pytestmark = pytest.mark.usefixtures("no_waiting")

RECORDING = json.loads((DATA / "bentocloud-exchanges.json").read_text())["scenarios"]
COMPARED_HEADERS = ("x-yatai-api-token", "x-bentoml-version", "content-type")
# What HTTP itself needs, and what may be asked of a storage without being signed.
BARE = {"host", "accept-encoding", "user-agent"}
CONDITIONS = {"range", "if-match", "if-range"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pulled" / "tiny"


# ---- requests as the vendor's client makes them -----------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One request as far as it is compared.

    :param call: method and path; an object's path without its bucket.
    :param query: names of the query's parameters.
    :param headers: those that matter; the token as ``<token>``.
    :param length: whether the body's length was announced.
    :param body: the names of all its fields, nested.
    """

    call: str
    query: frozenset[str]
    headers: tuple[tuple[str, str], ...]
    length: bool
    body: frozenset[str]

    @classmethod
    def recorded(cls, exchange: dict[str, Any]) -> Step:
        body = exchange.get("request_body")
        is_binary = isinstance(body, dict) and "binary_length" in body
        return cls._of(
            exchange["method"],
            exchange["path"],
            exchange.get("query", {}),
            exchange.get("request_headers", {}),
            None if is_binary else body,
        )

    @classmethod
    def sent(cls, request: Request, token: str) -> Step:
        headers = {name: "<token>" if value == token else value for name, value in request.headers.items()}
        if "content-length" in headers:
            assert request.received == int(headers["content-length"])
        if request.origin == "api":
            assert set(headers) <= BARE | {"accept", "connection", "content-length", *COMPARED_HEADERS}
        return cls._of(request.method, request.path, request.query, headers, request.body)

    @classmethod
    def _of(cls, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: Any) -> Step:
        return cls(
            f"{method} {re.sub(r'^/(store|yatai)/', 'STORE/', path)}",
            frozenset(name for name in query if not name.startswith("X-Amz-")),
            tuple((name, headers[name]) for name in COMPARED_HEADERS if name in headers),
            "content-length" in headers,
            frozenset(names_in(body)),
        )


def names_in(value: Any, prefix: str = "") -> Iterator[str]:
    """The names of a JSON body's fields; what lies in the user's own is left to the user."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield prefix + name
            if prefix + name not in ("manifest.metadata", "manifest.context.framework_versions", "manifest.options"):
                yield from names_in(item, f"{prefix}{name}.")
    elif isinstance(value, list):
        for item in value:
            yield from names_in(item, f"{prefix}[].")


@dataclass(frozen=True)
class Deviation:
    """How our requests differ from the recorded ones, and why.

    :param why: the reason.
    :param added: calls that only we make: position among ours → method and path.
    :param left_out: positions, among the recorded calls, of those that we do not make.
    :param query: parameters that only we send.
    """

    why: str
    added: dict[int, str] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()
    query: frozenset[str] = frozenset()


V1, V2 = "/api/v1/model_repositories/tiny/models/v1", "/api/v1/model_repositories/tiny/models/v2"
DEVIATIONS: dict[str, list[Deviation]] = {
    "push_proxy": [Deviation("a push is done when the record says so", added={6: f"GET {V1}"})],
    "push_presigned": [
        Deviation("what another push registered meanwhile is not published", added={6: f"GET {V2}"}),
        Deviation("a push is done when the record says so", added={8: f"GET {V2}"}),
    ],
    "pull_proxy": [Deviation("the version is looked at before a pull", added={0: f"GET {V1}"})],
    "pull_presigned": [
        Deviation("the version is looked at before a pull", added={0: f"GET {V2}"}),
        Deviation("the first answer holds the URL", left_out=(1,)),
    ],
    "list": [Deviation("a server may cut a list", query=frozenset({"start", "count"}))],
}


def seed_versions(server: BentoCloudStandIn, source: Path) -> None:
    server.seed("tiny", "v1", source, labels={"stage": "dev", "team": "nlp"})


def seed_newer(server: BentoCloudStandIn, source: Path) -> None:
    seed_versions(server, source)
    server.seed("tiny", "v2", source, labels={"stage": "prod"})


def seed_nothing(server: BentoCloudStandIn, source: Path) -> None:
    pass


def push_again(cloud: Cloud, source: Path, target: Path) -> None:
    cloud.push(source, "tiny:v1")
    cloud.server.requests.clear()
    cloud.push(source, "tiny:v1")


def refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(ModelSyncError):
        attempt()


Work = Callable[[Cloud, Path, Path], object]
Seed = Callable[[BentoCloudStandIn, Path], None]
# scenario → transmission strategy, what is there before, what we do
SCENARIOS: dict[str, tuple[str | None, Seed, Work]] = {
    "login_check": (None, seed_nothing, lambda cloud, source, target: cloud.test()),
    "push_proxy": (
        "proxy",
        seed_nothing,
        lambda cloud, source, target: cloud.push(source, "tiny:v1", labels={"stage": "dev"}, metadata={"acc": 0.91}),
    ),
    "push_again_skips": ("proxy", seed_nothing, push_again),
    "push_presigned": (
        None,
        seed_versions,
        lambda cloud, source, target: cloud.push(source, "tiny:v2", labels={"stage": "prod"}),
    ),
    "get_version": ("proxy", seed_versions, lambda cloud, source, target: cloud.get("tiny:v1")),
    "get_latest": ("proxy", seed_versions, lambda cloud, source, target: cloud.get("tiny")),
    "get_missing_version": (
        "proxy",
        seed_versions,
        lambda cloud, source, target: refused(lambda: cloud.get("tiny:nope")),
    ),
    "get_missing_repository_latest": (
        "proxy",
        seed_nothing,
        lambda cloud, source, target: refused(lambda: cloud.get("absent")),
    ),
    "pull_proxy": ("proxy", seed_versions, lambda cloud, source, target: cloud.pull(target, "tiny:v1")),
    "pull_presigned": (None, seed_newer, lambda cloud, source, target: cloud.pull(target, "tiny:v2")),
    "pull_latest": ("proxy", seed_newer, lambda cloud, source, target: cloud.pull(target, "tiny")),
    "pull_latest_query": (
        "proxy",
        seed_newer,
        lambda cloud, source, target: cloud.pull(target, "tiny", query="label:stage=dev"),
    ),
    "list": ("proxy", seed_newer, lambda cloud, source, target: cloud.list_models()),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_requests_are_those_of_the_recorded_client(
    scenario: str, server: BentoCloudStandIn, source: Path, target: Path
) -> None:
    strategy, seed, work = SCENARIOS[scenario]
    server.transmission_strategy = strategy
    seed(server, source)

    work(Cloud(server), source, target)

    theirs = [Step.recorded(exchange) for exchange in RECORDING[scenario]["exchanges"]]
    ours = [Step.sent(request, server.token) for request in server.requests]
    deviations = DEVIATIONS.get(scenario, [])
    added = {position: call for deviation in deviations for position, call in deviation.added.items()}
    left_out = {position for deviation in deviations for position in deviation.left_out}
    query = frozenset().union(*(deviation.query for deviation in deviations))
    assert {position: ours[position].call for position in added} == added
    for position in added:
        assert [name for name, _ in ours[position].headers] == ["x-yatai-api-token", "x-bentoml-version"]
    compared = [
        Step(step.call, step.query - query, step.headers, step.length, step.body)
        for position, step in enumerate(ours)
        if position not in added
    ]
    assert compared == [step for position, step in enumerate(theirs) if position not in left_out]


def test_a_query_is_sent_as_the_recorded_client_does(server: BentoCloudStandIn, source: Path, target: Path) -> None:
    seed_newer(server, source)

    Cloud(server).pull(target, "tiny", query="label:stage=dev")

    recorded = RECORDING["pull_latest_query"]["exchanges"][0]["query"]
    assert server.requests[0].query == {**recorded, "count": "100"}


def test_a_record_is_registered_as_the_recorded_client_does(server: BentoCloudStandIn, source: Path) -> None:
    Cloud(server).push(source, "tiny:v1", labels={"stage": "dev", "team": "nlp"}, metadata={"acc": 0.91, "n": 3})

    (request,) = server.find("POST", "/models$")
    (recorded,) = [
        exchange["request_body"]
        for exchange in RECORDING["push_proxy"]["exchanges"]
        if exchange["method"] == "POST" and exchange["path"].endswith("/models")
    ]
    sent, theirs = request.body, json.loads(json.dumps(recorded))
    ours = sent["manifest"]["metadata"].pop("modelsync")
    assert set(ours) == {"digest", "size_bytes", "generated"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", sent["build_at"])
    assert isinstance(sent["manifest"]["size_bytes"], int)
    for body in (sent, theirs):  # what depends on the model and the machine
        del body["build_at"], body["manifest"]["size_bytes"], body["manifest"]["context"]["python_version"]
    assert sent == theirs


def test_what_the_record_keeps_for_us_holds_no_numbers(server: BentoCloudStandIn, source: Path) -> None:
    # The server keeps numbers as floats.
    cloud = Cloud(server)
    cloud.push(source)
    (request,) = server.find("POST", "/models$")

    assert all(isinstance(value, str | list) for value in request.body["manifest"]["metadata"]["modelsync"].values())


# ---- where secrets go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [None, "presigned_url"])
@pytest.mark.row("A5")
def test_presigned_requests_carry_nothing_of_ours(
    server: BentoCloudStandIn, source: Path, target: Path, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    cloud = Cloud(server, {"organization": "acme"})

    cloud.push(source)
    cloud.pull(target)

    seen = {(request.method, frozenset(request.headers) - CONDITIONS) for request in presigned(server)}
    assert seen == {("PUT", frozenset(BARE | {"content-length"})), ("GET", frozenset(BARE))}
    for request in presigned(server):
        assert server.token not in json.dumps(request.headers)
        assert "acme" not in json.dumps(request.headers)


@pytest.mark.parametrize("path", [DOWNLOAD, UPLOAD, r"/models/v1$", "/start_upload$"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.row("T19")
def test_no_credential_follows_a_redirect_to_another_host(
    server: BentoCloudStandIn, source: Path, target: Path, tmp_path: Path, path: str, status: int
) -> None:
    with BentoCloudStandIn(tmp_path / "other") as other:
        server.transmission_strategy = "proxy"
        cloud = Cloud(server, {"organization": "acme"})
        if path == DOWNLOAD:
            cloud.push(source)
        redirect = Respond(status, headers={"Location": f"{other.url}/elsewhere"})
        server.fault("*", path, redirect, times=None)

        refused(lambda: cloud.pull(target) if path == DOWNLOAD else cloud.push(source))

        for request in other.requests:
            assert set(request.headers) <= BARE | {"accept", "connection", "content-length", "content-type"}
            assert server.token not in json.dumps([request.headers, request.query, request.path])
        if path == DOWNLOAD or status in (307, 308):
            assert other.requests


def secrets_of(server: BentoCloudStandIn) -> set[str]:
    """The token, and what is secret about each presigned URL that was used."""
    signatures = {request.query["X-Amz-Signature"] for request in presigned(server) if request.query}
    return {server.token, *signatures}


def everything_said(error: BaseException) -> str:
    """An error in every form that somebody may log: its text, its fields, and its whole chain."""
    parts = ["".join(traceback.TracebackException.from_exception(error).format())]
    waiting: list[BaseException | None] = [error]
    while waiting:
        inner = waiting.pop()
        if inner is not None:
            parts += [str(inner), repr(inner), repr(inner.args), repr(vars(inner))]
            waiting += [inner.__cause__, inner.__context__]
    return "\n".join(parts)


LEAKY = b'{"error": "token %s was used for http://store.example/x?X-Amz-Signature=feedfacefeedface"}'
FAULTS: dict[str, tuple[str, str, Callable[[BentoCloudStandIn], Action]]] = {
    "an echoed token": ("*", r"/models", lambda server: Respond(500, LEAKY % server.token.encode())),
    "a refused token": ("*", r"/models", lambda server: Respond(401, LEAKY % server.token.encode())),
    "an upload refused": ("PUT", ".", lambda server: Respond(503, LEAKY % server.token.encode())),
    "a storage refuses": (
        "PUT",
        OBJECT,
        lambda server: Respond(
            403, b"<Error><Code>AccessDenied</Code><Message>%s</Message></Error>" % server.token.encode()
        ),
    ),
    "a report refused": ("PATCH", FINISH, lambda server: Respond(500, LEAKY % server.token.encode())),
    "a cut download": ("GET", f"{OBJECT}|{DOWNLOAD}", lambda server: Truncate(700)),
    "no record": ("*", r"/models", lambda server: Respond(200, b"{%s" % server.token.encode())),
    "a URL that is none": (
        "PATCH",
        "presign",
        lambda server: Rewrite(
            lambda answer: {
                key: f"ftp://user:{server.token}@store/x?X-Amz-Signature=feedfacefeedface"
                if "presigned_" in key and value
                else value
                for key, value in answer.items()
            }
        ),
    ),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.row("A8")
def test_no_secret_shows_in_logs_or_errors(
    server: BentoCloudStandIn,
    source: Path,
    target: Path,
    strategy: str | None,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.transmission_strategy = strategy
    cloud = Cloud(server)
    cloud.push(source)
    cloud.pull(target)
    said = []
    method, path, action = FAULTS[fault]
    server.fault(method, path, action(server), times=None)
    for attempt in (lambda: cloud.push(source, "other:v2"), lambda: cloud.pull(target.with_name("again"))):
        try:
            attempt()
        except ModelSyncError as error:
            said.append(everything_said(error))

    assert caplog.records
    assert bool(said) != ((strategy, fault) in QUIET)
    shown = "\n".join([caplog.text, *said, *(repr(record.args) for record in caplog.records)])
    for secret in {*secrets_of(server), "feedfacefeedface"}:
        assert secret not in shown
    assert "X-Amz-Signature=" not in shown


# These faults do not touch the server's own way of moving bytes.
QUIET = {("proxy", "a storage refuses"), ("proxy", "a report refused"), ("proxy", "a URL that is none")}


def test_no_secret_is_in_what_is_returned(server: BentoCloudStandIn, source: Path, target: Path) -> None:
    # The answers of some calls hold a signed URL, and servers may fill it in any of them.
    signed = dict.fromkeys(SIGNED, "https://store.example/x?X-Amz-Signature=feedface")
    cloud = Cloud(server)
    cloud.push(source)
    server.fault("GET", "/models", Rewrite(lambda answer: with_signed(answer, signed)), times=None)

    found = [cloud.get("digits:v1"), *cloud.list_models(), *cloud.list_versions("digits"), cloud.pull(target).version]

    for version in found:
        shown = f"{version!r} {version.raw} {version.model_dump_json()} {version.to_xcom()} {version.to_event()}"
        assert "feedface" not in shown
        assert server.token not in shown


SIGNED = ("presigned_upload_url", "presigned_download_url")


def with_signed(answer: dict[str, Any], signed: dict[str, str]) -> dict[str, Any]:
    """An answer with signed URLs in its record, or in each item of its page."""
    if "items" in answer:
        return {**answer, "items": [{**item, **signed} for item in answer["items"]]}
    return {**answer, **signed}


@pytest.mark.parametrize("strategy", [*STRATEGIES, "presigned_url"])
def test_no_secret_is_in_a_plans_text(server: BentoCloudStandIn, source: Path, strategy: str | None) -> None:
    server.transmission_strategy = strategy
    cloud = Cloud(server)
    version = cloud.push(source)
    tree = read_tree(source)

    up = cloud.run(
        lambda registry: registry.plan_push(
            PushRequest(ref=registry.parse("digits:v2"), source=tree),
        )
    )
    down = cloud.run(lambda registry: registry.plan_pull(version))

    assert "digits:v2" in repr(up) or "'v2'" in repr(up)
    for secret in (*secrets_of(server), "X-Amz-"):
        assert secret not in f"{up!r} {up} {down!r} {down} {cloud.registry!r} {vars(cloud.registry)!r}"


# ---- where presigned URLs may point -----------------------------------------------------------------------------

PUBLIC = "https://models.example"


class Rerouted(httpx.BaseTransport):
    """Lets a stand-in answer for a public https host."""

    def __init__(self, server: BentoCloudStandIn) -> None:
        self._inner = httpx.HTTPTransport(verify=False, trust_env=False)
        self._url = httpx.URL(server.url)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url).startswith(f"{PUBLIC}/"), "an API call left its host"
        url = request.url.copy_with(scheme="http", host=self._url.host, port=self._url.port)
        return self._inner.handle_request(
            httpx.Request(
                request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
            )
        )

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True)
class PublicCloud:
    """A connection to a public https host, for which a stand-in answers."""

    server: BentoCloudStandIn
    fields: dict[str, Any] = field(default_factory=dict)

    def _run(self, work: Callable[[BentoCloud, SyncDriver], Any]) -> Any:
        fields = {"host": PUBLIC, "password": self.server.token, **self.fields}
        registry = BentoCloud(BentoCloudSettings.read("cloud", fields))
        with httpx.Client(transport=Rerouted(self.server), trust_env=False) as client:
            return work(registry, SyncDriver(client, policy=registry.policy()))

    def push(self, source: Path) -> ModelVersion:
        pushed: ModelVersion = self._run(
            lambda registry, driver: push(registry, driver, source, registry.parse("digits:v1"), Control())
        )
        return pushed

    def pull(self, target: Path) -> None:
        self._run(
            lambda registry, driver: pull(
                registry, driver, registry.parse("digits:v1"), target, Control(), query=Query()
            )
        )


UNFIT = {
    "http": "http://store.example/x?X-Amz-Signature=feedface",
    "another scheme": "ftp://store.example/x?X-Amz-Signature=feedface",
    "a file": "file:///etc/hostname",
    "user and password": "https://me:feedface@store.example/x",
    "loopback": "https://127.0.0.1/x?X-Amz-Signature=feedface",
    "loopback as a number": "https://2130706433/x",
    "loopback in IPv6": "https://[::1]/x",
    "localhost": "https://localhost/x",
    "link-local": "https://169.254.169.254/latest/meta-data",
    "metadata service": "https://metadata.google.internal/x",
    "no URL": "store.example/x",
}


def pointing_to(url: str) -> Rewrite:
    """Answer with this presigned URL."""
    return Rewrite(lambda answer: {**answer, **{name: url for name in SIGNED if answer.get(name)}})


@pytest.mark.parametrize("url", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("strategy", [None, "presigned_url"])
@pytest.mark.row("A6", of="sends")
def test_a_push_refuses_a_presigned_url_that_is_not_public_https(
    server: BentoCloudStandIn, source: Path, url: str, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    server.fault("PATCH", r"/presign_(multipart_)?upload_url$", pointing_to(url), times=None)

    with pytest.raises(InvalidInput) as refused_it:
        PublicCloud(server).push(source)

    assert refused_it.value.argument == "presigned_hosts"
    assert "feedface" not in everything_said(refused_it.value)
    assert presigned(server) == []
    assert server.count("PATCH", "/finish_upload$") == 0


@pytest.mark.parametrize("url", UNFIT.values(), ids=UNFIT)
@pytest.mark.row("A6", of="fetches")
def test_a_pull_refuses_a_presigned_url_that_is_not_public_https(
    server: BentoCloudStandIn, source: Path, target: Path, url: str
) -> None:
    server.seed("digits", "v1", source)
    server.fault("PATCH", "/presign_download_url$", pointing_to(url), times=None)

    with pytest.raises(InvalidInput) as refused_it:
        PublicCloud(server).pull(target)

    assert refused_it.value.argument == "presigned_hosts"
    assert "feedface" not in everything_said(refused_it.value)
    assert presigned(server) == []
    assert not target.exists()
    assert hidden(target.parent) == []


@pytest.mark.parametrize("with_port", [True, False])
@pytest.mark.parametrize("strategy", [None, "presigned_url"])
def test_a_listed_host_may_be_anywhere(
    server: BentoCloudStandIn, source: Path, target: Path, strategy: str | None, with_port: bool
) -> None:
    server.transmission_strategy = strategy
    store = urlsplit(server.store.url)
    cloud = PublicCloud(server, {"presigned_hosts": store.netloc if with_port else store.hostname})

    assert cloud.push(source).ready
    cloud.pull(target)

    assert snapshot(target) == snapshot(source)
    assert {request.method for request in presigned(server)} == {"PUT", "GET"}


def test_another_host_is_not_listed_by_that(server: BentoCloudStandIn, source: Path) -> None:
    cloud = PublicCloud(server, {"presigned_hosts": "127.0.0.1:1"})

    with pytest.raises(InvalidInput, match="presigned_hosts"):
        cloud.push(source)
    assert presigned(server) == []


def test_a_connection_of_plain_http_takes_what_its_server_gives(server: BentoCloudStandIn, source: Path) -> None:
    assert Cloud(server).push(source).ready
    (request,) = presigned(server)
    assert parse_qs("&".join(f"{name}={value}" for name, value in request.query.items()))["X-Amz-Expires"] == ["3600"]


def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(server: BentoCloudStandIn) -> None:
    canary = secrets.token_hex()
    with pytest.raises(InvalidInput) as refused_it:
        Cloud(server, {"password": f"{canary}\nX-Other: 1"}).test()
    assert canary not in everything_said(refused_it.value)
    assert server.count() == 0


def test_a_refused_token_is_named_by_its_connection_only(server: BentoCloudStandIn) -> None:
    canary = secrets.token_hex()
    with pytest.raises(Unauthorized) as refused_it:
        Cloud(server, {"password": canary}).get("digits")
    assert canary not in everything_said(refused_it.value)

"""Who asks, with which token, and what becomes of it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.registries.oci.auth import Challenge
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.oci.team import BLOBS, UPLOAD, Team, write_model
from tests.core.stores import snapshot
from tests.standins.http_server import Respond
from tests.standins.oci import DISTRIBUTION, ECR, GHCR, HARBOR, OCIStandIn, Quirks

pytestmark = pytest.mark.usefixtures("no_waiting")

BEARER = 'Bearer realm="https://auth.test/token?a=b,c",service="registry.test",scope="repository:a/b:pull,push"'


@pytest.fixture
def server() -> Iterator[OCIStandIn]:
    with OCIStandIn(HARBOR) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


def revoke_at(server: OCIStandIn, method: str, path: str, nth: int) -> None:
    """Let all tokens end just before the nth request of a kind."""
    seen = 0
    answer = server.answer

    def revoking(request: Any, body: Any) -> Any:
        nonlocal seen
        if request.method == method and path in request.path:
            seen += 1
            if seen == nth:
                server.revoke()
        return answer(request, body)

    server._servers[0].answer = revoking


CHALLENGES: dict[str, tuple[str, Challenge]] = {
    "bearer": (
        BEARER,
        Challenge(
            "bearer",
            {"realm": "https://auth.test/token?a=b,c", "service": "registry.test", "scope": "repository:a/b:pull,push"},
        ),
    ),
    "case": ('BEARER Realm="x",SERVICE=y', Challenge("bearer", {"realm": "x", "service": "y"})),
    "basic": ('Basic realm="modelsync"', Challenge("basic", {"realm": "modelsync"})),
    "bare": ("Basic", Challenge("basic", {})),
    "both": ('Basic realm="a", Bearer realm="b",service="c"', Challenge("bearer", {"realm": "b", "service": "c"})),
    "escaped": (r'Basic realm="a \"b\", c"', Challenge("basic", {"realm": 'a "b", c'})),
    "unknown": ('Negotiate abc=, Digest realm="x"', Challenge()),
    "none": ("", Challenge()),
}


@pytest.mark.parametrize(("header", "meant"), CHALLENGES.values(), ids=CHALLENGES)
def test_challenges_are_read(header: str, meant: Challenge) -> None:
    assert Challenge.read(header) == meant


def test_the_registry_is_asked_once_how_to_log_in(server: OCIStandIn, source: Path) -> None:
    for number in range(3):
        Team.of(server).push(source, f"digits:v{number}")
    assert server.count("GET", "^/v2/$") == 1


def test_each_token_is_for_what_is_done(server: OCIStandIn, source: Path) -> None:
    team = Team.of(server)
    team.push(source)
    team.versions()
    team.delete()
    assert set(server.asked) == {
        ("repository:team/digits:pull",),
        ("repository:team/digits:pull,push",),
        ("repository:team/digits:pull,delete",),
    }
    assert len(server.asked) == 3


def test_the_connection_test_asks_for_nothing_in_particular(server: OCIStandIn) -> None:
    assert Team.of(server).run(lambda registry: registry.test()).endswith("as alice.")
    assert server.asked == [()]


def test_anybody_may_pull_where_the_registry_lets_them(server: OCIStandIn, source: Path, tmp_path: Path) -> None:
    Team.of(server).push(source)
    anybody = Team(f"{server.url}/team")
    anybody.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    with pytest.raises(Unauthorized):
        anybody.push(source, "digits:v2")


@pytest.mark.row("A1", of="calls")
def test_a_wrong_password_is_refused_told_and_not_repeated(
    server: OCIStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    team = Team.of(server, password="wrong-8c1d")
    for _ in range(3):
        with pytest.raises(Unauthorized, match="401") as caught:
            team.get()
        assert "wrong-8c1d" not in str(caught.value)
    assert server.count("GET", "^/token$") == 1
    assert "wrong-8c1d" not in caplog.text


@pytest.mark.parametrize("quirks", [HARBOR, ECR], ids=["bearer", "basic"])
def test_a_wrong_password_is_told_as_such_where_nothing_is_listed_either(quirks: Quirks) -> None:
    with OCIStandIn(quirks) as server:
        with pytest.raises(Unauthorized, match="401"):
            Team.of(server, password="wrong-8c1d").models()
        with pytest.raises(NotSupported, match="extra `repositories`"):
            Team.of(server).models()


def test_a_token_is_renewed_before_it_ends(server: OCIStandIn, source: Path) -> None:
    now = 0.0
    team = Team.of(server)
    team.registry._api.login._clock = lambda: now
    team.push(source)
    before = len(server.asked)
    now = 239.0
    team.get()
    assert len(server.asked) == before
    now = 241.0  # of 300, so less than 60 are left
    team.get()
    assert len(server.asked) == before + 1


@pytest.mark.parametrize("life", [None, 50])
def test_tokens_that_do_not_say_how_long_they_live_or_live_shortly_are_used(source: Path, life: int | None) -> None:
    with OCIStandIn(HARBOR, token_seconds=life) as server:
        Team.of(server).push(source)
        assert len(server.asked) <= 2


@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/blobs/uploads/"), ("POST", "/blobs/uploads/"), ("PUT", "/manifests/")]
)
@pytest.mark.row("A2", of=("calls", "sends"))
def test_a_token_that_ends_in_the_midst_of_a_push_is_replaced(
    server: OCIStandIn, source: Path, tmp_path: Path, method: str, path: str, nth: int
) -> None:
    team = Team.of(server)
    revoke_at(server, method, path, nth)
    team.push(source)
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.row("A2", of=("calls", "fetches"))
def test_a_token_that_ends_in_the_midst_of_a_pull_is_replaced(
    server: OCIStandIn, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    monkeypatch.setattr(large_files, "PIECE", 5000)
    monkeypatch.setattr(large_files, "LARGE", 6000)
    team = Team.of(server)
    team.push(source)
    revoke_at(server, "GET", "/blobs/", nth)
    team.pull(tmp_path / "target", control=Control(workers=1))
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.row("A1", of="calls")
def test_a_token_that_is_refused_again_and_again_ends_a_transfer(
    server: OCIStandIn, source: Path, tmp_path: Path
) -> None:
    team = Team.of(server)
    team.push(source)
    refusal = Respond(401, b"{}", {"WWW-Authenticate": f'Bearer realm="{server.token_url}/token",service="x"'})
    for method, path, work in [
        ("GET", BLOBS, lambda: team.pull(tmp_path / "target")),
        ("PUT", UPLOAD, lambda: team.push(source, "other:v1")),
    ]:
        server.faults.clear()
        server.fault(method, path, refusal, times=None)
        begun = len(server.requests)
        with pytest.raises(Unauthorized):
            work()
        tried = [request for request in server.requests[begun:] if request.status == 401 and request.method == method]
        assert len(tried) <= 4, "once more for each thread"


def test_the_password_does_not_go_to_a_token_server_without_encryption(server: OCIStandIn, tmp_path: Path) -> None:
    # The registry itself is reached by https; what it says of its token server is http, and on this machine.
    team = Team(
        "https://registry.example/team", {"login": "alice", "password": "secret-3f9a", "presigned_hosts": "127.0.0.1"}
    )
    shared = team.registry._api.login._shared
    shared.challenge = Challenge("bearer", {"realm": f"{server.token_url}/token", "service": "x"})
    with pytest.raises(InvalidInput, match=r"127\.0\.0\.1"):
        team.get()
    assert server.count("GET", "^/token$") == 0


@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
def test_a_registry_that_asks_otherwise_since_then_is_understood(server: OCIStandIn, source: Path, auth: str) -> None:
    team = Team.of(server)
    shared = team.registry._api.login._shared
    shared.challenge = Challenge("bearer", {"realm": "http://127.0.0.1:9/token", "service": "gone"})
    server.quirks = replace(server.quirks, auth=auth)
    team.push(source)


def test_a_login_that_nobody_understands_is_named() -> None:
    with OCIStandIn() as server:
        server.fault("GET", "^/v2/$", Respond(401, b"", {"WWW-Authenticate": "Negotiate"}), times=None)
        with pytest.raises(InvalidInput, match="neither Basic nor Bearer"):
            Team.of(server).get()


def test_what_is_no_registry_is_named() -> None:
    with OCIStandIn() as server:
        server.fault("GET", "^/v2/$", Respond(404, b"<html>nothing here</html>"), times=None)
        with pytest.raises(InvalidInput, match="it is no registry"):
            Team.of(server).get()


def test_basic_goes_with_every_request_and_its_realm_is_no_address(source: Path, tmp_path: Path) -> None:
    with OCIStandIn(DISTRIBUTION, auth="basic") as server:
        team = Team.of(server)
        team.push(source)
        team.pull(tmp_path / "target")
        proof = f"Basic {base64.b64encode(b'alice:secret-3f9a').decode()}"
        assert {request.headers.get("authorization") for request in server.requests} == {None, proof}
        assert server.count("GET", "^/v2/$") == 1
        wrong = Team.of(server, password="wrong-8c1d")
        with pytest.raises(Unauthorized):
            wrong.get()


def test_a_rate_limit_that_looks_like_a_refusal_passes(source: Path, tmp_path: Path) -> None:
    with OCIStandIn(GHCR) as server:
        team = Team.of(server)
        limited = Respond(403, b"You have exceeded a secondary rate limit")
        server.fault("POST", "/blobs/uploads/", limited)
        server.fault("PUT", UPLOAD, limited)
        team.push(source)
        server.fault("GET", "/manifests/", limited)
        with pytest.raises(RegistryUnavailable, match="rate limit"):
            Team.of(server).get()


@pytest.mark.row("A8")
def test_no_secret_is_shown(server: OCIStandIn, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    team = Team.of(server)
    told: list[str] = []
    team.registry.tell(told.append)
    team.push(source)
    assert sorted(told) == sorted(server.tokens)
    token = next(iter(server.tokens))
    server.fault("*", "/manifests/", Respond(500, f"{token} {server.password} {team.url}".encode()), times=None)
    with pytest.raises(ModelSyncError) as caught:
        team.get()
    for secret in (*server.tokens, server.password, base64.b64encode(b"alice:secret-3f9a").decode()):
        assert secret not in str(caught.value)
        assert secret not in caplog.text
        assert secret not in repr(team.registry._api.login)

"""Logging in to Wallaroo: each way of it, by both drivers, no password twice, no token where it does not belong."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.registries.wallaroo import auth as wallaroo_auth
from airflow_provider_modelsync.core.registries.wallaroo.auth import Login
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.verbs.drive import async_driver_for
from tests.core.registries.wallaroo.instance import TOKEN, UPLOAD, WORKSPACE, Instance
from tests.standins.fault_server import FaultServer, answer
from tests.standins.http_server import Reset, Respond, Rewrite
from tests.standins.wallaroo import WallarooStandIn

pytestmark = pytest.mark.usefixtures("no_waiting")

Ask = Callable[[Instance], Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    with WallarooStandIn(tmp_path / "server") as server:
        server.conversion = ["ready"]
        server.add_workspace(WORKSPACE)
        yield server


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    (tmp_path / "digits.onnx").write_bytes(b"weights" * 1000)
    return tmp_path / "digits.onnx"


async def _alist(instance: Instance) -> Any:
    from airflow_provider_modelsync.core.models import Query

    async with async_driver_for(instance.registry) as driver:
        return await driver.run(instance.registry.list_models(Query()))


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes authenticated calls, by one driver and by the other."""
    return Instance.list_models if request.param == "sync" else lambda instance: asyncio.run(_alist(instance))


def forms(server: WallarooStandIn) -> list[dict[str, str]]:
    return [request.body for request in server.find("POST", TOKEN)]


# ---- grants -----------------------------------------------------------------------------------------------------


def test_a_password_with_a_public_client(server: WallarooStandIn, ask: Ask) -> None:
    assert ask(Instance(server)) == []
    assert [form["client_id"] for form in forms(server)] == ["sdk-client"]


def test_a_password_with_a_confidential_client(server: WallarooStandIn, ask: Ask) -> None:
    assert ask(Instance(server, {"client_secret": server.client_secret})) == []
    assert server.find("POST", TOKEN)[0].headers["authorization"].startswith("Basic ")


def test_an_offline_token(server: WallarooStandIn, ask: Ask) -> None:
    offline = server.issue(client="api-client", offline=True)["refresh_token"]
    fields = {"password": None, "refresh_token": offline, "client_secret": server.client_secret}
    instance = Instance(server, fields)
    assert ask(instance) == []
    assert [form["grant_type"] for form in forms(server)] == ["refresh_token"]


def test_a_ready_made_token(server: WallarooStandIn, ask: Ask) -> None:
    instance = Instance(server, {"login": None, "password": None, "access_token": server.issue()["access_token"]})
    assert ask(instance) == []
    assert forms(server) == []
    assert server.username in instance.test()  # as the token says


def test_the_named_grant_wins(server: WallarooStandIn) -> None:
    instance = Instance(server, {"grant_type": "token", "access_token": server.issue()["access_token"]})
    instance.list_models()
    assert forms(server) == []


@pytest.mark.parametrize("path", ["", "/auth", "/auth/"])
def test_the_keycloak_may_have_a_host_of_its_own(server: WallarooStandIn, ask: Ask, path: str) -> None:
    server.realm = "team"
    assert ask(Instance(server, {"auth_url": server.auth_url + path, "realm": "team"})) == []


def test_an_unknown_realm_is_told(server: WallarooStandIn) -> None:
    with pytest.raises(InvalidInput, match="no realm 'team'") as caught:
        Instance(server, {"realm": "team"}).list_models()
    assert caught.value.argument == "auth_url"


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"host": None}, "host"),
        ({"login": None}, "login"),
        ({"password": None}, "password"),
        ({"grant_type": "refresh_token"}, "refresh_token"),
        ({"grant_type": "token"}, "access_token"),
    ],
)
def test_a_field_that_is_missing_is_named(server: WallarooStandIn, fields: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _ = Instance(server, fields).registry
    assert caught.value.argument == argument


# ---- sharing ----------------------------------------------------------------------------------------------------


def test_connections_of_one_account_share_a_token(server: WallarooStandIn) -> None:
    for _ in range(3):
        Instance(server).list_models()
    assert len(forms(server)) == 1


@pytest.mark.parametrize("ours", ["password", "client_secret", "refresh_token", "access_token"])
def test_two_connections_on_one_worker_never_share_a_token_unless_all_their_secrets_are_equal(
    server: WallarooStandIn, ours: str
) -> None:
    """The second connection knows everything but one secret, and gets nothing by what the first has got."""
    issued = server.issue(client="api-client")
    fields: dict[str, dict[str, Any]] = {
        "password": {},
        "client_secret": {"client_secret": server.client_secret},
        "refresh_token": {
            "grant_type": "refresh_token",
            "refresh_token": issued["refresh_token"],
            "client_secret": server.client_secret,
        },
        "access_token": {"grant_type": "token", "access_token": issued["access_token"]},
    }
    Instance(server, fields[ours]).list_models()
    with pytest.raises(Unauthorized):
        Instance(server, {**fields[ours], ours: "a-wrong-secret"}).list_models()


def test_two_users_have_tokens_of_their_own(server: WallarooStandIn) -> None:
    other = server.add_user("joe@example.com")
    Instance(server).list_models()
    joe = Instance(server, {"login": other.email, "password": other.password, "workspace": None})
    with pytest.raises(InvalidInput, match="none"):  # Joe sees no workspace
        joe.list_models()
    used = {request.headers["authorization"] for request in server.find("POST", "/workspaces/list$")}
    assert len(used) == 2


def test_the_keys_under_which_tokens_are_kept_hold_no_secret(server: WallarooStandIn) -> None:
    Instance(server, {"client_secret": server.client_secret}).list_models()
    kept = repr(wallaroo_auth._accounts)
    for secret in (server.password, server.client_secret, *server.access_tokens, *server.refresh_tokens):
        assert secret not in kept


def _at_once(count: int, work: Callable[[], Any]) -> None:
    start = threading.Barrier(count)
    failed: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_many_threads_get_one_token_and_renew_it_once(server: WallarooStandIn) -> None:
    instance = Instance(server)
    _ = instance.registry
    _at_once(6, instance.list_models)
    assert len(forms(server)) == 1
    server.revoke_access_tokens()
    _at_once(6, instance.list_models)
    assert len(forms(server)) == 2


def test_many_waiters_on_one_event_loop_get_one_token_and_renew_it_once(server: WallarooStandIn) -> None:
    instances = [Instance(server) for _ in range(20)]

    async def all_at_once() -> None:
        await asyncio.gather(*map(_alist, instances))

    asyncio.run(all_at_once())
    assert len(forms(server)) == 1
    server.revoke_access_tokens()
    asyncio.run(all_at_once())
    assert len(forms(server)) == 2


def test_a_login_that_is_cancelled_leaves_the_way_free_for_others(server: WallarooStandIn) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(_alist(Instance(server)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert Instance(server).list_models() == []


# ---- renewing ---------------------------------------------------------------------------------------------------


@pytest.mark.row("A2", of="calls")
def test_a_401_is_answered_by_one_renewal_and_one_replay(server: WallarooStandIn, ask: Ask) -> None:
    instance = Instance(server)
    ask(instance)
    server.revoke_access_tokens()
    assert ask(instance) == []
    assert [form["grant_type"] for form in forms(server)] == ["password", "refresh_token"]


@pytest.mark.row("A1", of="calls")
def test_a_second_401_is_the_end(server: WallarooStandIn, ask: Ask) -> None:
    server.fault("POST", "/workspaces/list$", Respond(401, b"Unauthorized"), times=None)
    with pytest.raises(Unauthorized, match="listing the workspaces"):
        ask(Instance(server))
    assert server.count("POST", "/workspaces/list$") == 2
    assert len(forms(server)) == 2


def test_a_ready_made_token_is_not_sent_again_after_a_401(server: WallarooStandIn, ask: Ask) -> None:
    token = server.issue()["access_token"]
    server.revoke_access_tokens()
    with pytest.raises(Unauthorized):
        ask(Instance(server, {"grant_type": "token", "access_token": token}))
    assert (server.count("POST", "/workspaces/list$"), forms(server)) == (1, [])


def test_when_the_refresh_token_is_dead_the_password_is_used(server: WallarooStandIn, ask: Ask) -> None:
    instance = Instance(server)
    ask(instance)
    server.revoke_access_tokens()
    server.revoke_refresh_tokens()
    assert ask(instance) == []
    assert [form["grant_type"] for form in forms(server)] == ["password", "refresh_token", "password"]


def test_a_dead_offline_token_is_tried_once(server: WallarooStandIn) -> None:
    instance = Instance(server, {"grant_type": "refresh_token", "refresh_token": "dead-refresh-token"})
    with pytest.raises(Unauthorized, match="Token is not active"):
        instance.list_models()
    assert len(forms(server)) == 1


def test_refresh_tokens_that_rotate_are_kept_up_with(server: WallarooStandIn) -> None:
    server.rotate_refresh_tokens = True
    instance = Instance(server)
    for _ in range(4):
        instance.list_models()
        server.revoke_access_tokens()
    assert [form["grant_type"] for form in forms(server)] == ["password", *["refresh_token"] * 3]


@pytest.mark.parametrize(("life", "renewed_after"), [(3600, 3240), (100, 70), (20, 10)])
def test_a_token_is_renewed_before_its_time_is_over(server: WallarooStandIn, life: float, renewed_after: float) -> None:
    server.token_seconds = life
    now = [1000.0]
    instance = Instance(server)
    settings = instance.registry.settings
    instance.registry.login.__init__(settings, settings.account(server.url), clock=lambda: now[0])  # type: ignore[misc]
    for seconds, count in ((0, 1), (renewed_after - 1, 1), (renewed_after + 1, 2)):
        now[0] = 1000.0 + seconds
        instance.list_models()
        assert len(forms(server)) == count


def test_the_token_is_renewed_before_each_upload(server: WallarooStandIn, onnx: Path) -> None:
    Instance(server).push(onnx)
    paths = [request.path.rpartition("/")[2] for request in server.requests]
    assert paths[paths.index("upload_and_convert") - 1] == "token"
    assert len(forms(server)) == 2
    sent = server.find("POST", UPLOAD)[0].headers["authorization"]
    assert sent != server.find("POST", "/list_versions_for_model$")[0].headers["authorization"]


def test_an_upload_that_meets_a_401_is_sent_once_more(server: WallarooStandIn, onnx: Path) -> None:
    server.fault("POST", UPLOAD, Respond(401, b"Unauthorized"))
    assert Instance(server).push(onnx).ready
    assert server.count("POST", UPLOAD) == 2
    server.fault("POST", UPLOAD, Respond(401, b"Unauthorized"), times=None)
    onnx.write_bytes(b"other")
    with pytest.raises(Unauthorized):
        Instance(server).push(onnx)
    assert server.count("POST", UPLOAD) == 4


# ---- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.row("A1", of="calls")
def test_a_wrong_password_is_tried_once_by_the_whole_process(server: WallarooStandIn, ask: Ask) -> None:
    for _ in range(3):
        with pytest.raises(Unauthorized, match="Invalid user credentials"):
            ask(Instance(server, {"password": "not-the-password"}))
    assert len(forms(server)) == 1
    assert server.users[server.username].failures == 1


def test_a_refused_password_is_tried_again_after_a_while(
    server: WallarooStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallaroo_auth, "_REFUSAL_SECONDS", 0.0)
    instance = Instance(server, {"password": "not-the-password"})
    for _ in range(2):
        with pytest.raises(Unauthorized):
            instance.list_models()
    assert len(forms(server)) == 2


@pytest.mark.parametrize("fault", [Respond(502), Respond(503), Reset()])
def test_passing_faults_of_the_login_are_waited_out(server: WallarooStandIn, ask: Ask, fault: Any) -> None:
    server.fault("POST", TOKEN, fault, times=2)
    assert ask(Instance(server)) == []


@pytest.mark.parametrize("broken", [Respond(200, b"<html>login</html>"), Rewrite(lambda _: {"token": "t"})])
def test_a_login_page_is_no_token(server: WallarooStandIn, broken: Any) -> None:
    server.fault("POST", TOKEN, broken)
    with pytest.raises(RegistryUnavailable, match="logging in to Wallaroo"):
        Instance(server).list_models()


@pytest.mark.parametrize("status", [307, 308])
def test_a_password_is_not_followed_to_another_host(server: WallarooStandIn, status: int) -> None:
    with FaultServer([answer(200, b"{}")]) as thief:
        server.fault("POST", TOKEN, Respond(status, b"", {"Location": f"{thief.url}/token"}))
        with pytest.raises(InvalidInput, match="holds a secret") as caught:
            Instance(server).list_models()
    assert thief.requests == []
    assert server.password not in str(caught.value)


@pytest.mark.row("A8")
def test_no_secret_is_in_any_error_repr_or_log(
    server: WallarooStandIn, caplog: pytest.LogCaptureFixture, onnx: Path
) -> None:
    fields = {"client_secret": server.client_secret, "refresh_token": "canary-refresh", "access_token": "canary-access"}
    echo = Rewrite(lambda answer: {**answer, "expires_in": "never", "note": server.password})
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        instance = Instance(server, fields)
        instance.push(onnx)
        server.fault("POST", "/workspaces/list$", Respond(400, {"msg": list(server.access_tokens)[-1]}))
        server.fault("POST", "/models/list$", Respond(500, {"msg": server.password}), times=None)
        server.fault("POST", TOKEN, echo, times=None)
        works: list[Callable[[], Any]] = [
            instance.test,
            instance.list_models,
            Instance(server, {**fields, "client_secret": "canary-secret"}).list_models,
            Instance(server, {**fields, "client_id": "sdk-client"}).list_models,
        ]
        for work in works:
            with pytest.raises(ModelSyncError) as caught:
                work()
            told += [str(caught.value), "".join(traceback.format_exception(caught.value))]
    registry = instance.registry
    assert isinstance(registry.settings, WallarooSettings)
    told += [caplog.text, repr(registry.settings), repr(registry.settings.account("https://x")), repr(vars(registry))]
    told += [repr(vars(registry.login)), repr(registry.login._shared)]
    secrets = [server.password, server.client_secret, "canary-refresh", "canary-access", "canary-secret"]
    for secret in (*secrets, *server.access_tokens, *server.refresh_tokens):
        for text in told:
            assert secret not in text


def test_every_token_is_told_before_it_is_used(server: WallarooStandIn) -> None:
    told: list[str] = []
    instance = Instance(server)
    instance.registry.login.tell(told.append)
    instance.list_models()
    used = server.find("POST", "/workspaces/list$")[0].headers["authorization"]
    assert [f"Bearer {token}" for token in told] == [used]


def test_a_login_is_made_of_settings_alone() -> None:
    fields = {"host": "wallaroo.example.com", "login": "jane", "password": "p4ssw0rd"}
    registry = Wallaroo(WallarooSettings.read("w", fields))
    assert registry.base_url == "https://wallaroo.example.com"
    assert isinstance(registry.login, Login)
    account = registry.settings.account(registry.base_url)
    assert (account.auth_url, account.realm) == ("https://wallaroo.example.com/auth", "master")

"""From an Airflow connection to a registry: reading fields, finding the hook, working on the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, ModelNotFound
from airflow_provider_modelsync.core.flow.steps import call
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import (
    aget_registry_hook,
    get_registry_hook,
    remarks_on,
    settings_from_connection,
)
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.support.scripted import Script, ScriptedHook
from tests.support.until import until_async

CANARY = "canary-4f1c0de5"


def settings(**fields: Any) -> RegistrySettings:
    extra = fields.pop("extra", None)
    text = extra if isinstance(extra, str | None) else json.dumps(extra)
    return settings_from_connection(
        Connection(**{"conn_id": "some_id", "conn_type": "modelstore", "extra": text, **fields}), RegistrySettings
    )


def test_standard_fields_and_extras_become_settings() -> None:
    read = settings(
        host="https://models.example", port=8443, login="me", extra={"max_workers": 8, "timeout_seconds": 5}
    )

    assert (read.conn_id, read.host, read.port, read.login) == ("some_id", "https://models.example", 8443, "me")
    assert (read.max_workers, read.timeout_seconds) == (8, 5.0)


@pytest.mark.parametrize("unset", [None, ""])
def test_null_and_empty_fields_are_unset(unset: str | None) -> None:
    extra = {name: unset for name in RegistrySettings.model_fields if name != "conn_id"}

    assert settings(host=unset, login=unset, password=unset, extra=extra) == RegistrySettings(conn_id="some_id")


def test_unknown_extras_are_ignored() -> None:
    assert settings(extra={"note": "for people"}) == RegistrySettings(conn_id="some_id")


@pytest.mark.parametrize("extra", [None, "", "null", "{}"])
def test_extras_may_be_absent(extra: str | None) -> None:
    assert settings(extra=extra) == RegistrySettings(conn_id="some_id")


@pytest.mark.parametrize("extra", ["[1]", '"text"', "3"])
def test_extras_that_are_no_object_are_refused(extra: str) -> None:
    with pytest.raises(InvalidInput, match="JSON object") as refused:
        settings(extra=extra)
    assert (refused.value.argument, refused.value.connection) == ("extra", "some_id")


def test_every_bad_field_is_named_with_the_connection() -> None:
    with pytest.raises(InvalidInput) as refused:
        settings(extra={"max_workers": 0, "timeout_seconds": "soon", "part_size_mib": 1})

    assert refused.value.connection == "some_id"
    for field in ("max_workers", "timeout_seconds", "part_size_mib"):
        assert field in str(refused.value)


@pytest.mark.parametrize("field", sorted(set(RegistrySettings.model_fields) - {"conn_id", "presigned_hosts"}))
def test_a_bad_fields_value_is_never_shown(field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        settings(extra={field: {"nested": CANARY}, "max_workers": CANARY})

    log = "".join(traceback.format_exception(refused.value))
    assert CANARY not in f"{log} {refused.value!r} {refused.value.args} {vars(refused.value)}"


def test_secrets_are_not_shown_by_settings_hook_or_registry(connect: Connect, tmp_path: Path) -> None:
    connect(
        "secretive",
        conn_type="modelstore",
        host=(tmp_path / "store").as_uri(),
        extra={"proxy": f"http://me:{CANARY}@proxy.example:3128"},
    )
    hook = ModelStoreHook("secretive")
    registry = hook.get_conn()

    shown = [hook.test_connection(), vars(hook), registry.settings, vars(registry), registry.settings.model_dump_json()]
    assert CANARY not in f"{shown!r} {registry.settings} {hook}"


def test_secrets_are_not_shown_by_a_failing_connection_test(connect: Connect) -> None:
    connect(
        "broken",
        conn_type="modelstore",
        host="file:///dev/null/store",
        password=CANARY,
        extra={"session_token": CANARY},
    )
    good, message = ModelStoreHook("broken").test_connection()

    assert not good
    assert CANARY not in message


def test_the_connections_type_decides_the_hook(modelstore: Path, script: Script) -> None:
    assert type(get_registry_hook("modelsync_default")) is ModelStoreHook
    assert type(get_registry_hook("scripted")) is ScriptedHook


# Nothing that is installed knows the first; the second is another provider's.
@pytest.mark.parametrize("conn_type", ["http", "smtp"])
async def test_a_connection_of_another_type_is_refused_by_name(connect: Connect, conn_type: str) -> None:
    connect("web", conn_type=conn_type, host="https://models.example", password=CANARY)

    for attempt in (lambda: _sync("web"), lambda: aget_registry_hook("web")):
        with pytest.raises(InvalidInput, match=rf"'{conn_type}' is no model registry") as refused:
            await attempt()
        assert (refused.value.argument, refused.value.connection) == ("registry_conn_id", "web")
        assert CANARY not in str(refused.value)


async def _sync(conn_id: str) -> object:
    return get_registry_hook(conn_id)


async def test_the_event_loop_sees_what_workers_see(modelstore: Path, source: Path) -> None:
    pushed = ModelStoreHook("modelsync_default").push(source, "digits:v1")
    hook = await aget_registry_hook("modelsync_default")

    found = await hook.arun(lambda registry: registry.get(registry.parse("digits")))

    assert found == pushed.model_copy(update={"transfer": None})


async def test_errors_on_the_event_loop_name_model_and_connection(modelstore: Path) -> None:
    hook = await aget_registry_hook("modelsync_default")

    with pytest.raises(ModelNotFound) as missing:
        await hook.arun(lambda registry: registry.get(registry.parse("absent")), model="absent")
    assert (missing.value.model, missing.value.connection) == ("absent", "modelsync_default")


@pytest.mark.row("P12", of="tasks")
async def test_what_a_registry_takes_to_load_is_loaded_off_the_event_loop(
    modelstore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    real = ModelStoreHook.make_registry

    def make(hook: ModelStoreHook, *args: Any) -> Any:
        made.append(threading.current_thread() is threading.main_thread())
        return real(hook, *args)

    monkeypatch.setattr(ModelStoreHook, "make_registry", make)
    await (await aget_registry_hook("modelsync_default")).aget_conn()
    assert made == [False]


async def test_a_mount_that_hangs_holds_up_its_own_connection_alone(
    connect: Connect, modelstore: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others do in the event loop's own threads goes on, such as looking up names."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    hangs, is_back = asyncio.Event(), threading.Event()
    real = ModelStoreHook.make_registry

    def make(hook: ModelStoreHook, *args: Any) -> Any:
        if hook.registry_conn_id == "gone":
            loop.call_soon_threadsafe(hangs.set)
            is_back.wait()
        return real(hook, *args)

    monkeypatch.setattr(ModelStoreHook, "make_registry", make)
    connect("gone", conn_type="modelstore", host=(tmp_path / "gone").as_uri())
    looking = asyncio.create_task((await aget_registry_hook("gone")).alist_models())
    try:
        async with asyncio.timeout(60):
            await hangs.wait()
            assert await asyncio.to_thread(lambda: "an answer") == "an answer"
            other = await aget_registry_hook("modelsync_default")
            await other.apush(source, "digits:v1")
            assert [version.ref for version in await other.alist_models()] == ["digits:v1"]
        assert not looking.done()
    finally:
        is_back.set()
    assert await looking == []


async def test_however_often_a_connection_is_opened_few_threads_hang_on_it(
    connect: Connect, modelstore: Path, tmp_path: Path
) -> None:
    """Waiters open it anew every few minutes. Where it leads to by then answers."""
    is_back, hanging = threading.Event(), []

    def hang() -> None:
        hanging.append(threading.get_ident())
        is_back.wait()

    hooks = [await aget_registry_hook("modelsync_default") for _ in range(3)]
    for hook in hooks:
        await hook.aget_conn()
    looking = [asyncio.create_task(hook.arun(lambda _: call(hang))) for hook in hooks * 4]
    try:
        connect("modelsync_default", conn_type="modelstore", host=(tmp_path / "elsewhere").as_uri())
        async with asyncio.timeout(60):
            await until_async(lambda: len(hanging) >= 4, "calls that hang")
            for _ in range(10):
                assert await (await aget_registry_hook("modelsync_default")).alist_models() == []
        assert len(hanging) == 4
    finally:
        is_back.set()
    await asyncio.gather(*looking)


async def test_the_event_loop_gets_the_same_settings(connect: Connect, tmp_path: Path) -> None:
    connect("modelsync_default", conn_type="modelstore", host=(tmp_path / "s").as_uri(), extra={"max_workers": 7})
    sync, loop = ModelStoreHook("modelsync_default"), ModelStoreHook("modelsync_default")

    assert sync.get_conn().settings == (await loop.aget_conn()).settings


def test_a_cancelled_hook_does_nothing_more(modelstore: Path, source: Path) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.cancel()
    hook.cancel()

    with pytest.raises(Cancelled, match="modelsync_default"):
        hook.push(source, "digits:v1")
    assert not modelstore.exists()


def test_a_connection_is_read_once(modelstore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = ModelStoreHook("modelsync_default")
    registry = hook.get_conn()
    monkeypatch.delenv("AIRFLOW_CONN_MODELSYNC_DEFAULT")

    assert hook.get_conn() is registry


def test_a_hook_can_be_made_without_its_connection() -> None:
    fields: Mapping[str, Any] = vars(ModelStoreHook("not_there"))

    assert fields["registry_conn_id"] == "not_there"


class TestRemarks:
    """What a connection says and nobody reads is told, in its test and once in the log."""

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"extra": {"verify_ssl": False}}, "`verify_ssl` is not known: did you mean `verify_tls`?"),
            ({"extra": {"organisation": "acme"}}, "`organisation` is not known: did you mean `organization`?"),
            ({"extra": {"extra__bentocloud__cluster": "c"}}, "did you mean `cluster`?"),
            ({"extra": {"timeout": 5}}, "`timeout` is not known: did you mean `timeout_seconds`?"),
            ({"extra": {"note": "for people"}}, "the extra `note` is not known"),
            ({"extra": {"password": "other-canary"}}, "`password` is read from the connection's own field"),
            ({"schema": "models/prod"}, "the schema is not used"),
            ({"schema": "https"}, "the schema is not used"),
        ],
        ids=str,
    )
    def test_are_in_the_connection_s_test_and_once_in_the_log(
        self, tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], told: str
    ) -> None:
        with BentoCloudStandIn(tmp_path / "cloud") as server:
            connect(tmp_path.name, conn_type="bentocloud", host=server.url, password=server.token, **fields)
            succeeded, said = get_registry_hook(tmp_path.name).test_connection()
            for _ in range(2):
                get_registry_hook(tmp_path.name).get_conn()
            connect(tmp_path.name, conn_type="bentocloud", host=server.url, password="wrong-canary", **fields)
            failed = get_registry_hook(tmp_path.name).test_connection()

        assert succeeded
        assert told in said
        assert (failed[0], told in failed[1]) == (False, True)
        assert caplog.text.count(told) == 1
        assert "canary" not in said + failed[1] + caplog.text
        assert "models/prod" not in said

    def test_there_are_none_on_what_is_read(self) -> None:
        extra = {
            name: "x" for name in RegistrySettings.model_fields if name not in ("host", "port", "login", "password")
        }
        del extra["conn_id"]
        connection = Connection(
            conn_id="c",
            conn_type="modelstore",
            host="https://h",
            schema="https",
            extra=json.dumps({**extra, "odd": None}),
        )

        assert remarks_on(connection, RegistrySettings) == []


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("bentocloud://:token@127.0.0.1:8000/http", "http://127.0.0.1:8000"),
        ("bentocloud://:token@127.0.0.1:8000/HTTP", "http://127.0.0.1:8000"),
        ("bentocloud://http://:token@127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("bentocloud://:token@127.0.0.1:8000/", "https://127.0.0.1:8000"),
        ("bentocloud://:token@http%3A%2F%2F127.0.0.1%3A8000%2Fbase", "http://127.0.0.1:8000/base"),
    ],
)
def test_a_uri_says_how_its_host_is_reached(monkeypatch: pytest.MonkeyPatch, uri: str, base: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BY_URI", uri)

    assert get_registry_hook("by_uri").get_conn().base_url == base

"""Supervisely's hook: every method through an Airflow connection, in both modes, and no token anywhere."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, Unauthorized
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.hooks.supervisely import SuperviselyHook
from tests.conftest import Connect
from tests.standins.http_server import Respond
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import BOTSORT, MODEL_META, MODELS, SETTINGS, SuperviselyApp
from tests.support.images import png


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp(freezes=True, tracks=True) as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        yield server


@pytest.fixture
def platform(server: SuperviselyStandIn, connect: Connect) -> SuperviselyHook:
    """A hook whose connection leads to the platform."""
    extra = {"team_id": server.team_id, "workspace_id": server.workspace_id}
    connect("supervisely_default", conn_type="supervisely", host=server.url, password=server.token, extra=extra)
    return SuperviselyHook()


@pytest.fixture
def direct(app: SuperviselyApp, connect: Connect) -> SuperviselyHook:
    """A hook whose connection leads to an app and nowhere else."""
    connect("own_app", conn_type="supervisely", extra={"deployment_url": app.url})
    return SuperviselyHook("own_app")


def images(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:02d}.png").write_bytes(png(80, 8, (0, 0, number, 3)))
    return directory


def test_the_connections_type_leads_to_the_hook(platform: SuperviselyHook) -> None:
    assert type(get_registry_hook("supervisely_default")) is SuperviselyHook


@pytest.mark.parametrize("mode", ["platform", "direct"])
def test_every_method_of_the_vendors_model_api_is_there(
    mode: str, request: pytest.FixtureRequest, server: SuperviselyStandIn, app: SuperviselyApp, tmp_path: Path
) -> None:
    hook: SuperviselyHook = request.getfixturevalue(mode)
    name = "blobs" if mode == "platform" else None
    server.seed_task(name="blobs")
    assert hook.is_deployed(name) is True
    assert hook.get_info(name)["model_name"] == "blob-tiny"
    assert hook.get_settings(name) == SETTINGS
    assert hook.get_tracking_settings(name) == BOTSORT
    assert hook.get_model_meta(name) == MODEL_META
    assert hook.get_classes(name) == ["bright", "dark"]
    assert hook.list_pretrained_models(name) == list(MODELS)
    assert [info["Model"] for info in hook.list_pretrained_model_infos(name)] == list(MODELS)
    assert hook.status(name)["is_deployed"] is True
    hook.load("blob-small", name, device="cpu")
    assert hook.get_info(name)["model_name"] == "blob-small"
    assert hook.freeze_model(name) == "Model is frozen."
    folder = images(tmp_path / "in", 3)
    assert hook.predict(name, folder).count == 3
    assert [one["name"] for one in hook.predict_detached(name, str(folder))] == ["00.png", "01.png", "02.png"]
    assert hook.shutdown(name) in ("terminating", "stopped")


def test_is_deployed_is_never_an_exception(platform: SuperviselyHook, server: SuperviselyStandIn, app: Any) -> None:
    assert platform.is_deployed("absent") is False
    server.seed_task(name="blobs")
    app.loaded = None
    assert platform.is_deployed("blobs") is False
    server.fault("*", "", Respond(500), times=None)
    assert platform.is_deployed("blobs") is False


def test_a_pushed_experiment_comes_back_and_is_listed(platform: SuperviselyHook, source: Path, tmp_path: Path) -> None:
    pushed = platform.push(source, "1_x:2_YOLO", labels={"stage": "dev"}, options={"framework_name": "YOLO"})
    pulled = platform.pull("1_x", tmp_path / "pulled", labels={"stage": "dev"})
    assert digest_directory(tmp_path / "pulled") == pushed.digest == pulled.version.digest
    assert [one["framework_name"] for one in platform.list_experiments()] == ["YOLO"]
    assert [version.ref for version in platform.list_models()] == ["1_x:2_YOLO"]


class Turnstile(threading.Event):
    """Lets so many through before it is set.

    :param count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def wait(self, timeout: float | None = None) -> bool:
        if self._left:
            self._left -= 1
            return True
        return super().wait(timeout)


def test_leaving_the_iterator_stops_the_request(direct: SuperviselyHook, app: SuperviselyApp, tmp_path: Path) -> None:
    app.gate = Turnstile(2)
    found = direct.predict_detached(None, images(tmp_path / "in", 10), batch_size=1)
    assert inspect.isgenerator(found)
    assert len(list(islice(found, 2))) == 2
    found.close()
    assert app.count("POST", "stop_inference$") == 1


def test_errors_name_model_and_connection(platform: SuperviselyHook, server: SuperviselyStandIn) -> None:
    server.seed_task(name="blobs")
    with pytest.raises(InvalidInput) as caught:
        platform.load("nope", "blobs")
    assert (caught.value.model, caught.value.connection) == ("nope", "supervisely_default")
    with pytest.raises(ModelNotFound, match="supervisely_default"):
        platform.get_info("absent")


def test_the_connection_test_says_who_or_what_is_wrong(
    platform: SuperviselyHook, direct: SuperviselyHook, connect: Connect, server: SuperviselyStandIn
) -> None:
    assert platform.test_connection()[0]
    assert "a model is loaded" in direct.test_connection()[1]
    connect("wrong", conn_type="supervisely", host=server.url, password="wrong")
    ok, said = SuperviselyHook("wrong").test_connection()
    assert not ok
    assert "401" in said
    connect("secret", conn_type="supervisely", extra={"deployment_url": "https://x.org/net/abcdef"})
    ok, said = SuperviselyHook("secret").test_connection()
    assert (ok, "abcdef" in said, "deployment_url" in said) == (False, False, True)


def test_the_event_loop_sees_the_same(platform: SuperviselyHook, server: SuperviselyStandIn, source: Path) -> None:
    version = platform.push(source, "1_x:2_YOLO")
    server.seed_task(name="blobs")

    async def look() -> tuple[Any, Any]:
        return (
            await platform.arun(lambda registry: registry.get(registry.parse("1_x"))),
            await platform.arun(lambda registry: registry.deployment("blobs")),
        )

    found, deployment = asyncio.run(look())
    assert found.ref == version.ref
    assert deployment.ready


def test_no_token_is_logged_or_returned(
    platform: SuperviselyHook, server: SuperviselyStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = server.seed_task(name="blobs")
    with caplog.at_level(logging.DEBUG):
        made = platform.predict("blobs", images(tmp_path / "in", 2))
        deployment = platform.deployment("blobs")
    for text in (caplog.text, repr(made), json.dumps(deployment.to_xcom()), repr(platform.get_conn().settings)):
        assert task.session_token not in text
        assert server.token not in text


def test_a_wrong_token_is_unauthorized(connect: Connect, server: SuperviselyStandIn) -> None:
    connect("wrong", conn_type="supervisely", host=server.url, password="wrong", extra={"team_id": 8})
    with pytest.raises(Unauthorized):
        SuperviselyHook("wrong").list_models()

"""Our client against the vendor's own serving app: every method by the app's address, and by a platform before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from airflow_provider_modelsync.core.errors import DeploymentFailed, InvalidInput, ModelNotFound
from airflow_provider_modelsync.core.registries.supervisely.session import Load, Session
from tests.core.registries.supervisely.serving import Connection, platform
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import FAILING_WIDTH
from tests.support.images import png
from tests.support.until import until
from tests.vendors.supervisely_processes import VendorClient, serving_app

pytestmark = pytest.mark.vendor


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_app(tmp_path_factory.mktemp("real")) as url:
        yield url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, real: str) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path_factory.mktemp("platform"), app=real) as server:
        yield server


@pytest.fixture(params=["url", "token", "task"])
def own(request: pytest.FixtureRequest, real: str, server: SuperviselyStandIn) -> Connection:
    if request.param == "url":
        return Connection({"deployment_url": real})
    task = server.seed_task()
    if request.param == "task":
        return platform(server, task_id=task.id)
    return Connection({"host": server.url, "session_token": task.session_token})


def folder(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:02d}.png").write_bytes(png(80, 8, (0, 0, number, 3)))
    return directory


def test_what_it_tells_is_read(own: Connection) -> None:
    own.ask(lambda session: session.load(Load.pretrained("blob-tiny", device="cpu")))
    assert own.ask(Session.get_info)["model_name"] == "blob-tiny"
    assert own.ask(Session.get_settings)
    assert own.ask(Session.get_tracking_settings) == {}
    assert own.ask(Session.get_classes) == ["bright", "dark"]
    assert "blob-small" in own.ask(Session.list_pretrained_models)
    assert own.ask(Session.list_pretrained_model_infos)[0]["Model"] == "blob-tiny"
    assert own.ask(Session.status)["is_deployed"] is True
    assert own.ask(Session.is_deployed) is True
    assert own.ask(Session.get_session_info)["videos_support"] is True
    assert own.ask(Session.freeze_model).startswith("Failed to freeze")  # there is no GPU


def test_models_are_loaded_and_failures_told(own: Connection) -> None:
    own.ask(lambda session: session.load(Load.pretrained("blob-small", device="cpu")))
    assert own.ask(Session.get_info)["model_name"] == "blob-small"
    with pytest.raises(InvalidInput, match="blob-tiny"):
        own.ask(lambda session: session.load(Load.pretrained("nope")))
    assert own.ask(Session.is_deployed) is True
    with pytest.raises(DeploymentFailed):
        own.ask(lambda session: session.load(Load.pretrained("blob-broken")))
    assert own.ask(Session.is_deployed) is False
    with pytest.raises(ModelNotFound):
        own.ask(Session.get_info)
    own.ask(lambda session: session.load(Load.pretrained("blob-tiny", device="cpu")))


def test_images_are_predicted_each_under_its_own_name(own: Connection, tmp_path: Path) -> None:
    made = own.predict(folder(tmp_path / "in", 40), conf=0.0)
    found = {one["name"]: one["annotation"]["objects"][0]["points"]["exterior"][1][0] for one in made}
    assert found == {f"{number:02d}.png": number for number in range(40)}
    array = numpy.zeros((10, 20, 3), "uint8")
    array[2:5, 3:9] = 255
    (prediction,) = own.predict(array, conf=0.0)
    assert prediction["annotation"]["objects"][0]["points"]["exterior"] == [[3, 2], [8, 4]]
    (some,) = own.predict([array], conf=0.0, classes=["dark"])
    assert [one["classTitle"] for one in some["annotation"]["objects"]] == ["dark"]


def test_bad_images_are_named(own: Connection, tmp_path: Path) -> None:
    top = folder(tmp_path / "in", 10)
    (top / "04.png").write_bytes(b"no picture at all")
    with pytest.raises(InvalidInput, match=r"04\.png"):
        own.predict(top)
    (top / "04.png").write_bytes(png(FAILING_WIDTH, 8))
    with pytest.raises(InvalidInput, match=r"04\.png"):
        own.predict(top)


def test_a_video_is_predicted_in_the_wanted_range(own: Connection, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    VendorClient(tmp_path, "http://127.0.0.1:1", "none").run(("write_video", str(video), 10))
    assert [one["frame_index"] for one in own.predict(video)] == list(range(10))
    assert [one["frame_index"] for one in own.predict(video, start_frame=4, num_frames=3)] == [4, 5, 6]


def test_a_slow_load_outlasts_the_proxy_and_the_app_can_be_shut_down(tmp_path: Path) -> None:
    slow = serving_app(tmp_path / "slow", "--load-seconds", "1.5")
    with slow as url, SuperviselyStandIn(tmp_path, app=url) as server:
        own = platform(server, task_id=server.seed_task().id)
        server.proxy_limit = 0.5
        own.ask(lambda session: session.load(Load.pretrained("blob-slow", device="cpu")))
        assert own.ask(Session.get_info)["model_name"] == "blob-slow"
        direct = Connection({"deployment_url": url})
        assert direct.ask(Session.shutdown) in ("terminating", "stopped")
        until(lambda: direct.deployment("").gone, "the app to be gone")
        assert direct.ask(Session.is_deployed) is False
        assert direct.ask(Session.shutdown) == "stopped"

"""The unmodified `supervisely` SDK and its serving code prove the stand-ins that our client is tested against."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import FAILING_WIDTH, MODELS, SuperviselyApp
from tests.support.images import png
from tests.support.until import until
from tests.vendors.supervisely_processes import VendorClient, VendorError, serving_app

pytestmark = pytest.mark.vendor

PICTURE = png(80, 60, (20, 10, 59, 29))
FOUND = [None, ["bright", "dark"], [[10, 20, 29, 59], [0, 0, 59, 79]], [0.1667, 0.8333]]
FRAMES = 10


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "platform") as platform:
        yield platform


@pytest.fixture
def vendor(platform: SuperviselyStandIn, tmp_path: Path) -> VendorClient:
    return VendorClient(tmp_path / "vendor", platform.url, platform.token)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the vendor's app with a model loaded; for tests that leave it so."""
    with serving_app(tmp_path_factory.mktemp("real")) as url:
        yield url


@pytest.fixture(scope="module")
def fake() -> Iterator[str]:
    with SuperviselyApp(frames=FRAMES) as app:
        yield app.url


@pytest.fixture(params=["real", "fake"])
def app(request: pytest.FixtureRequest) -> str:
    """The URL of the vendor's app, and of ours."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("video")
    VendorClient(directory, "http://127.0.0.1:1", "none").run(("write_video", str(directory / "v.mp4"), FRAMES))
    return directory / "v.mp4"


# ---- the SDK and the platform -----------------------------------------------------------------------------------


def test_the_sdk_is_the_one_that_was_recorded(vendor: VendorClient, platform: SuperviselyStandIn) -> None:
    assert vendor.run(("version",), ("whoami",)) == ["6.74.51", ["me", "6.15.0", [8], [58], 8]]
    with pytest.raises(VendorError, match="401"):
        VendorClient(vendor.home, platform.url, "wrong").run(("whoami",))


def test_the_sdk_moves_files_to_and_from_team_files(
    vendor: VendorClient, platform: SuperviselyStandIn, tmp_path: Path
) -> None:
    large, tree = tmp_path / "large.bin", tmp_path / "tree"
    large.write_bytes(bytes(range(256)) * 12_000)
    (tree / "sub").mkdir(parents=True)
    (tree / "a").write_bytes(b"a")
    (tree / "sub" / "b").write_bytes(b"b" * 70_000)
    one, two = tmp_path / "one", tmp_path / "two"

    uploaded, _, directory, listed, near, known, there, missing, *_ = vendor.run(
        ("upload", str(large), "/e/x/large.bin"),
        ("upload_async", str(large), "/e/x/async.bin"),
        ("upload_directory", str(tree), "/e/t"),
        ("list_files", "/e/"),
        ("list_storage", "/e/", False),
        ("info", "/e/x/large.bin"),
        ("exists", "/e/x/large.bin"),
        ("exists", "/e/x/none"),
        ("download", "/e/x/large.bin", str(one)),
        ("download_async", "/e/x/async.bin", str(two)),
        ("remove", "/e/x/large.bin"),
    )

    assert (directory, near) == ("/e/t", [{"path": "/e/t", "is_dir": True}, {"path": "/e/x", "is_dir": True}])
    assert [file["path"] for file in listed] == ["/e/t/a", "/e/t/sub/b", "/e/x/async.bin", "/e/x/large.bin"]
    assert (listed[-1], known) == (uploaded, [uploaded, uploaded])
    assert (there, missing) == ([True, True], [False, False])
    assert one.read_bytes() == two.read_bytes() == large.read_bytes()
    assert platform.paths() == ["/e/t/a", "/e/t/sub/b", "/e/x/async.bin"]
    assert platform.content("/e/t/sub/b") == b"b" * 70_000


def test_the_sdk_lists_a_long_directory_page_by_page(vendor: VendorClient, platform: SuperviselyStandIn) -> None:
    platform.page_size = 2
    for name in "abcde":
        platform.seed_file(f"/d/{name}", b"")
    (listed,) = vendor.run(("list_storage", "/d/", True))
    assert [file["path"] for file in listed] == ["/d/a", "/d/b", "/d/c", "/d/d", "/d/e"]
    assert platform.count("POST", r"v2\.list$") == 3


def test_the_sdk_sees_a_wrong_byte_by_the_checksum(
    vendor: VendorClient, platform: SuperviselyStandIn, tmp_path: Path
) -> None:
    stored = platform.seed_file("/x", b"0123456789").stored
    stored.content.write_bytes(b"0123456780")
    with pytest.raises(VendorError, match="does not match the expected hash"):
        vendor.run(("download_async", "/x", str(tmp_path / "x")))


def test_the_sdk_works_with_a_deployment_by_task(
    vendor: VendorClient, platform: SuperviselyStandIn, app: str, tmp_path: Path
) -> None:
    platform.app = app
    task = platform.seed_task().id
    picture = tmp_path / "one.png"
    picture.write_bytes(PICTURE)

    said, found, info, unknown, stopping, stopped = vendor.run(
        ("describe", task),
        ("predict", task, str(picture), {"conf": 0.1}),
        ("get_info", task),
        ("exists", "/nothing"),
        ("shutdown", task),
        ("task_status", task),
    )

    assert (said["models"], said["classes"]) == (list(MODELS), ["bright", "dark"])
    assert (said["deployed"], said["status"]["is_deployed"]) == (True, True)
    assert found == [FOUND]
    assert info["model_name"] == "blob-tiny"
    assert (stopping, stopped) == ("terminating", "stopped")
    assert unknown == [False, False]


def test_the_sdk_deploys_lists_and_loads(platform: SuperviselyStandIn, vendor: VendorClient, tmp_path: Path) -> None:
    with serving_app(tmp_path / "app", "--unloaded") as platform.app:
        task, listed, _, info = vendor.run(
            ("deploy", "TinyBlob/blob-small"),
            ("list_deployed",),
            ("load", 20_001, "blob-tiny"),
            ("get_info", 20_001),
        )
    assert (task, listed, info["model_name"]) == (20_001, [[20_001, "blob-small"]], "blob-tiny")
    assert platform.count("POST", r"tasks\.run\.app$") == 1


def test_the_sdk_works_with_a_deployment_by_url(vendor: VendorClient, app: str, video: Path, tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    picture.write_bytes(PICTURE)
    said, found, frames = vendor.run(
        ("describe", app), ("predict", app, str(picture), {"conf": 0.1}), ("predict", app, str(video), {})
    )
    assert said["models"] == list(MODELS)
    assert found == [FOUND]
    assert frames == [
        [index, ["bright", "dark"], [[0, 0, 29, 79], [30, 0, 59, 79]], [0.5, 0.5]] for index in range(FRAMES)
    ]


# ---- our app and the vendor's -----------------------------------------------------------------------------------

Answer = tuple[str, int, str, Any]
Scenario = Callable[["Talk"], object]
VARIES = {"uuid", "inference_request_uuid", "created_at", "updated_at", "color", "hardware", "traceback", "allocated"}
PATHS = {"checkpoint", "checkpoint_url"}


def normal(value: Any, key: str = "") -> Any:
    """An answer with what differs from run to run replaced by its type, and of paths only the name left."""
    if isinstance(value, dict):
        return {name: normal(item, "allocated" if key == "ram_memory" else name) for name, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if key in PATHS and value:
        return Path(value).name
    return type(value).__name__ if key in VARIES and value is not None else value


class Talk:
    """What was asked of an app, and what it answered."""

    def __init__(self, url: str) -> None:
        self.answers: list[Answer] = []
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def send(self, route: str, method: str = "POST", **arguments: Any) -> Any:
        answer = self.client.request(method, f"/{route}", **arguments)
        kind = answer.headers["content-type"]
        said = answer.json() if kind == "application/json" else answer.text
        self.answers.append((route, answer.status_code, kind, normal(said)))
        return said

    def ask(self, *routes: str) -> None:
        for route in routes:
            self.send(route, json={})

    def load(self, name: str | None, **params: Any) -> None:
        params = {"model_source": "Pretrained models", "device": None, "runtime": None, **params}
        self.send("deploy_from_api", json={"state": {"deploy_params": params, "model_name": name}})
        self.ask("get_status")

    def form(self, route: str, *contents: bytes, **state: Any) -> Any:
        suffix = "mp4" if "video" in route else "png"
        files = [("files", (f"{number}.{suffix}", content)) for number, content in enumerate(contents)]
        return self.send(route, files=files, data={"state": json.dumps(state)})

    def infer(self, route: str, *contents: bytes, **state: Any) -> None:
        """Start, wait for the end, and read everything."""
        self.follow(self.form(route, *contents, **state)["inference_request_uuid"])

    def follow(self, uuid: str) -> None:
        body = {"state": {"inference_request_uuid": uuid, "settings": {}}, "context": {}}
        until(lambda: self.client.post("/get_inference_progress", json=body).json()["finished"], f"the end of {uuid}")
        for route in (
            "get_inference_progress",
            "get_inference_status",
            "get_preparing_progress",
            "pop_inference_results",
            "pop_inference_results",
            "get_model_meta",
            "get_inference_result",
            "stop_inference",
            "clear_inference_request",
            "pop_inference_results",
        ):
            self.send(route, json=body)


PLAIN = (
    "is_ready",
    "is_running",
    "is_deployed",
    "get_status",
    "get_session_info",
    "get_deploy_info",
    "get_custom_inference_settings",
    "get_tracking_settings",
    "get_output_classes_and_tags",
    "get_model_meta",
    "list_pretrained_models",
    "list_pretrained_model_infos",
    "freeze_model",
)


def plain(talk: Talk) -> None:
    talk.ask(*PLAIN)
    talk.send("is_ready", "GET")
    talk.send("is_alive", "GET")


def nonsense(talk: Talk) -> None:
    talk.ask("nothing", "shutdown", "tasks.stop", "get_inference_progress")
    talk.send("get_status", "GET")
    talk.send("get_status", content=b"{", headers={"Content-Type": "application/json"})
    for route in ("get_inference_progress", "pop_inference_results", "stop_inference", "clear_inference_request"):
        talk.send(route, json={"state": {}})
        talk.send(route, json={"state": {"inference_request_uuid": "unknown"}})
    talk.form("inference_image", PICTURE, PICTURE)
    talk.form("inference_batch_async", b"junk")
    talk.send("inference_batch_async", data={"state": "{}"})
    talk.send("inference_batch_async", files=[("files", ("a.png", PICTURE))], data={"state": "{x"})
    talk.send("inference_batch_async", files=[("files", ("a.png", PICTURE))], data={"state": "[]"})


def pictures(talk: Talk) -> None:
    talk.infer("inference_batch_async", PICTURE, png(), png(7, 5, (0, 0, 6, 4)), settings={"conf": 0.1})
    talk.infer("inference_batch_async", PICTURE, png(80, 60, (0, 0, 9, 9), padding=5000), settings={})
    talk.infer("inference_batch_async", PICTURE, settings={"conf": 0.1, "classes": ["bright"], "more": 1})
    talk.infer("inference_batch_async", PICTURE, settings={"conf": 0.1, "classes": None}, batch_size=1)
    talk.form("inference_image", PICTURE, settings={"conf": 0.1})
    talk.form("inference_batch", PICTURE, png(), settings={"conf": 0.1})


def failing_pictures(talk: Talk) -> None:
    bad = png(FAILING_WIDTH, 5)
    talk.infer("inference_batch_async", PICTURE, bad)
    talk.infer("inference_batch_async", PICTURE, bad, PICTURE, batch_size=1)
    talk.form("inference_image", bad)
    talk.form("inference_batch", bad, PICTURE)


@pytest.mark.parametrize("scenario", [plain, nonsense, pictures, failing_pictures])
def test_our_app_answers_as_the_vendors(real: str, fake: str, scenario: Scenario) -> None:
    assert_equal(scenario, real, fake)
    assert_loaded(real)


def assert_loaded(url: str) -> None:
    """The app is as other tests need it."""
    assert httpx.post(f"{url}/is_ready", json={}, trust_env=False).is_success


def assert_equal(scenario: Scenario, real: str, fake: str) -> None:
    theirs, ours = Talk(real), Talk(fake)
    for talk in (theirs, ours):
        with talk.client:
            scenario(talk)
    for mine, answer in zip(ours.answers, theirs.answers, strict=True):
        assert mine == answer


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"startFrameIndex": 4, "framesCount": 3},
        {"startFrameIndex": 2, "endFrameIndex": 5},
        {"start_frame": 4, "num_frames": 3},
        {"startFrameIndex": 1, "framesCount": 7, "stride": 3},
        {"startFrameIndex": 8, "framesCount": 3, "direction": "backward"},
        {"tracker": "botsort"},
    ],
)
def test_our_app_answers_as_the_vendors_to_a_video(real: str, fake: str, video: Path, asked: dict[str, Any]) -> None:
    content = video.read_bytes()
    assert_equal(lambda talk: talk.infer("inference_video_async", content, settings={"conf": 0.1}, **asked), real, fake)
    assert_loaded(real)


def loads(talk: Talk) -> None:
    talk.ask(*PLAIN)
    talk.infer("inference_batch_async", PICTURE)
    talk.form("inference_image", PICTURE)
    for name in ("blob-small", "unknown", "blob-tiny", "blob-broken", "blob-small"):
        talk.load(name)
        talk.ask("get_deploy_info", "is_ready")
    talk.ask("deploy_from_api", "is_ready")  # nothing is asked for, and what was loaded is gone
    checkpoint = "/experiments/1_x/265_TinyBlob/checkpoints/best.pt"
    info = {"framework_name": "TinyBlob", "model_name": "mine", "artifacts_dir": "/experiments/1_x/265_TinyBlob"}
    custom = {"model_source": "Custom models", "model_files": {"checkpoint": checkpoint}, "runtime": "PyTorch"}
    for model_info in (info, {"model_name": "mine"}):
        talk.load(None, **custom, model_info=model_info, device="cpu")
        talk.ask("get_deploy_info")
    talk.infer("inference_batch_async", PICTURE)


def slow_load(talk: Talk) -> None:
    other = Talk(str(talk.client.base_url))
    with other.client:
        loading = threading.Thread(target=other.load, args=("blob-slow",))
        loading.start()
        while loading.is_alive() and talk.client.post("/is_ready", json={}).is_success:
            time.sleep(0.01)
        talk.ask("get_status", "is_ready", "is_deployed", "get_deploy_info", "list_pretrained_models")
        loading.join()
    talk.answers += other.answers
    talk.ask("get_deploy_info")


def stopped(talk: Talk) -> None:
    """A batch of uploads goes on to its end; a video does not."""
    started = talk.form("inference_batch_async", *[PICTURE] * 4, batch_size=1)
    uuid = started["inference_request_uuid"]
    talk.send("stop_inference", json={"state": {"inference_request_uuid": uuid}})
    talk.follow(uuid)


def shut_down(talk: Talk) -> None:
    talk.ask("sly/shutdown")
    until(lambda: not is_alive(talk.client.base_url), "the app to end")


def is_alive(url: httpx.URL) -> bool:
    try:
        return httpx.get(url.join("/is_alive"), trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_our_app_changes_state_as_the_vendors(tmp_path: Path) -> None:
    seconds = {"--load-seconds": "1", "--predict-seconds": "0.1"}
    with serving_app(tmp_path / "real", "--unloaded", *(word for pair in seconds.items() for word in pair)) as real:
        with SuperviselyApp(model=None, load_seconds=1, predict_seconds=0.1) as app:
            for scenario in (loads, slow_load, stopped, shut_down):
                assert_equal(scenario, real, app.url)
            assert app.down.wait(2)

"""Predictions: every input its own, nothing lost, nothing twice, and an end to what is cancelled."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.registries.supervisely import predict as supervisely_predict
from airflow_provider_modelsync.core.registries.supervisely.predict import png
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.supervisely.serving import CLEAR, POP, PROGRESS, START, STOP, direct, platform
from tests.standins.http_server import Action, Delay, LoseAnswer, Respond, Rewrite
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import FAILING_WIDTH, RUNNING, SuperviselyApp
from tests.support import images
from tests.support.until import until

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp() as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "server", app=app.url) as server:
        yield server


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends a request has time to say so, as nobody measures how long that takes."""
    monkeypatch.setattr(supervisely_predict, "_GOODBYE_SECONDS", 60.0)


def picture(number: int, width: int = 200) -> bytes:
    """A picture whose bright part ends at x = number."""
    return images.png(width, 8, (0, 0, number, 3))


SECRET = "c2lnbmF0dXJlLW9mLXRoaXMtdXJs"


@contextmanager
def serving_files(directory: Path) -> Iterator[str]:
    """Serve a directory by HTTP."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(directory))

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def folder(directory: Path, *numbers: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (directory / f"{number:04d}.png").write_bytes(picture(number))
    return directory


def number_of(prediction: dict[str, Any]) -> int:
    """What the picture of a prediction was made with."""
    bright = next(found for found in prediction["annotation"]["objects"] if found["classTitle"] == "bright")
    return int(bright["points"]["exterior"][1][0])


def numbers_by_path(predictions: list[dict[str, Any]]) -> dict[str, int]:
    return {Path(prediction["path"]).stem: number_of(prediction) for prediction in predictions}


# ---- inputs -----------------------------------------------------------------------------------------------------


def test_a_file_gets_a_prediction_that_names_it(app: SuperviselyApp, tmp_path: Path) -> None:
    path = folder(tmp_path, 7) / "0007.png"
    (prediction,) = direct(app).predict(path, conf=0.0)
    assert (prediction["path"], prediction["name"], number_of(prediction)) == (str(path), "0007.png", 7)


def test_an_array_gets_a_prediction(app: SuperviselyApp) -> None:
    array = numpy.zeros((10, 20, 3), "uint8")
    array[2:5, 3:9] = 255
    (prediction,) = direct(app).predict(array, conf=0.0)
    bright = prediction["annotation"]["objects"][0]
    assert (bright["classTitle"], bright["points"]["exterior"]) == ("bright", [[3, 2], [8, 4]])
    assert (prediction["name"], prediction["path"]) == ("array 0", None)


def test_bytes_and_pictures_get_predictions(app: SuperviselyApp, tmp_path: Path) -> None:
    path = folder(tmp_path, 9) / "0009.png"
    with Image.open(path) as opened:
        kinds = [opened.copy().convert(mode) for mode in ("L", "RGB", "RGBA", "P", "CMYK", "1")]
        made = direct(app).predict([picture(4), bytearray(picture(5)), opened, *kinds], conf=0.0)
        (alone,) = direct(app).predict(opened, conf=0.0)
    (raw,) = direct(app).predict(picture(6), conf=0.0)

    assert [number_of(prediction) for prediction in made] == [4, 5, *[9] * 7]
    assert [prediction["name"] for prediction in made[:4]] == ["image 0", "image 1", "0009.png", "image 3"]
    assert (number_of(alone), number_of(raw), raw["name"]) == (9, 6, "image 0")


@pytest.mark.parametrize("nothing", [b"", bytearray(), [], [b""], None, [None], [3]])
def test_what_is_no_input_is_refused(app: SuperviselyApp, nothing: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        direct(app).predict(nothing)
    assert refused.value.argument == "inputs"
    assert app.requests == []


def test_a_picture_that_is_cut_is_refused(app: SuperviselyApp) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    with Image.open(io.BytesIO(buffer.getvalue()[:2000])) as cut:
        with pytest.raises(InvalidInput, match="image 0 cannot be read"):
            direct(app).predict(cut)


def test_urls_are_fetched_by_the_app_in_order(app: SuperviselyApp, tmp_path: Path) -> None:
    pictures = folder(tmp_path, 3, 4)
    with serving_files(pictures) as url:
        urls = [f"{url}/0004.png?signature={SECRET}", pictures / "0003.png", f"{url}/0003.png"]
        made = direct(app).predict(urls, conf=0.0)
        (alone,) = direct(app).predict(f"{url}/0004.png", conf=0.0)

    assert [number_of(prediction) for prediction in [*made, alone]] == [4, 3, 3, 4]
    assert [prediction["name"] for prediction in made] == ["0004.png", "0003.png", "0003.png"]
    assert (made[0]["url"], made[1]["url"]) == (f"{url}/0004.png", None)
    assert SECRET not in json.dumps(made)


def test_a_url_that_the_app_cannot_fetch_is_named_without_its_signature(app: SuperviselyApp) -> None:
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:9/picture\.png") as failed:
        direct(app).predict([f"http://127.0.0.1:9/picture.png?signature={SECRET}"])
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_an_array_is_encoded_without_loss(channels: int | None) -> None:
    shape = (4, 5) if channels is None else (4, 5, channels)
    array = numpy.random.default_rng(1).integers(0, 256, shape, "uint8")
    colours = array.reshape(4, 5, -1)[:, :, : 3 if (channels or 1) > 2 else 1]
    assert numpy.allclose(images.brightness(png(array)), colours.mean(axis=2))
    assert png(array[:, ::2]) == png(numpy.ascontiguousarray(array[:, ::2]))


@pytest.mark.parametrize(
    "array",
    [numpy.zeros((4, 4, 3)), numpy.zeros((4, 4, 2), "uint8"), numpy.zeros(4, "uint8"), numpy.zeros((0, 4), "uint8")],
)
def test_an_array_that_is_no_image_is_refused(app: SuperviselyApp, array: Any) -> None:
    with pytest.raises(InvalidInput, match="is no image"):
        direct(app).predict(array)
    assert app.count("POST", START) == 0


def test_a_list_of_files_and_arrays_is_predicted_in_order(app: SuperviselyApp, tmp_path: Path) -> None:
    path = folder(tmp_path, 5) / "0005.png"
    array = numpy.zeros((8, 200), "uint8")
    array[:4, :4] = 255
    made = direct(app).predict([str(path), array, path], conf=0.0)
    assert [number_of(prediction) for prediction in made] == [5, 3, 5]
    assert [prediction["name"] for prediction in made] == ["0005.png", "array 1", "0005.png"]


def test_a_directory_gets_one_prediction_for_each_file_under_its_path(app: SuperviselyApp, tmp_path: Path) -> None:
    top = folder(tmp_path / "in", *range(40))
    folder(top / "below", 0, 100)
    (top / "notes.txt").write_text("no picture")
    made = direct(app).predict(top, conf=0.0)
    assert [number_of(prediction) for prediction in made] == list(range(40))
    assert [prediction["path"] for prediction in made] == [str(top / f"{n:04d}.png") for n in range(40)]
    deep = direct(app).predict(top, conf=0.0, recursive=True)
    assert {prediction["path"]: number_of(prediction) for prediction in deep}[str(top / "below" / "0100.png")] == 100
    assert len(deep) == 42


def test_image_ids_are_predicted_by_the_app_itself(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    app.pictures = {number: picture(number) for number in (3, 4, 5)}
    task = server.seed_task()
    made = platform(server, task_id=task.id).predict({"image_ids": [5, 3]}, conf=0.0)
    assert [(prediction["image_id"], number_of(prediction)) for prediction in made] == [(5, 5), (3, 3)]
    start = app.find("POST", "inference_batch_ids_async")[0].body
    assert start["api_token"] == server.token
    assert start["state"]["images_ids"] == [5, 3]


def test_a_project_is_predicted_and_datasets_find_theirs(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    app.pictures = {number: picture(number) for number in (1, 2, 3)}
    app.datasets, app.projects = {11: [1, 2], 12: [3]}, {21: [1, 2, 3]}
    server.fault("POST", r"/datasets\.info$", Respond(200, {"id": 12, "projectId": 21}), times=None)
    task = server.seed_task()
    own = platform(server, task_id=task.id)
    assert [one["image_id"] for one in own.predict({"project_id": 21}, conf=0.0)] == [1, 2, 3]
    assert [one["image_id"] for one in own.predict({"dataset_ids": [12]}, conf=0.0)] == [3]
    assert [one["image_id"] for one in own.predict({"project_id": 21, "dataset_ids": [11]})] == [1, 2]


def test_more_results_than_the_app_keeps_unread_are_fetched_on_the_way(
    app: SuperviselyApp, server: SuperviselyStandIn
) -> None:
    app.unread_limit = 20
    app.pictures = {number: picture(number) for number in range(1, 101)}
    app.projects = {21: list(range(1, 101))}
    made = platform(server, task_id=server.seed_task().id).predict({"project_id": 21}, conf=0.0)
    assert [number_of(prediction) for prediction in made] == list(range(1, 101))


def test_predictions_can_be_left_on_the_platform(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    app.pictures = {3: picture(3)}
    own = platform(server, task_id=server.seed_task().id)
    assert own.predict({"image_ids": [3]}, upload_mode="replace", output_project_id=5) == []
    assert len(app.uploaded) == 1
    state = app.find("POST", "inference_batch_ids_async")[0].body["state"]
    assert (state["upload_mode"], state["output_project_id"]) == ("replace", 5)
    own.predict({"image_ids": [3]}, output_project_id=5)
    assert app.find("POST", "inference_batch_ids_async")[1].body["state"]["upload_mode"] == "append"


def test_a_video_is_predicted_frame_by_frame_and_in_the_wanted_range(app: SuperviselyApp, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    made = direct(app).predict(video)
    assert [(one["frame_index"], one["path"]) for one in made] == [(index, str(video)) for index in range(10)]
    some = direct(app).predict(video, start_frame=4, num_frames=3)
    assert [one["frame_index"] for one in some] == [4, 5, 6]


def test_a_video_of_the_platform_is_predicted(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    own = platform(server, task_id=server.seed_task().id)
    made = own.predict({"video_id": 9}, start_frame=4, num_frames=3)
    assert [(one["video_id"], one["frame_index"]) for one in made] == [(9, 4), (9, 5), (9, 6)]


def test_objects_are_followed_where_the_app_can(app: SuperviselyApp, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    app.tracks = True
    made = direct(app).predict(video, tracking=True, tracking_config={"with_reid": False})
    assert [len(one["annotation"]["customBigData"]) for one in made] == [
        len(one["annotation"]["objects"]) for one in made
    ]
    app.fault("POST", "get_session_info", Rewrite(lambda info: {**info, "tracking_on_videos_support": False}))
    with pytest.raises(NotSupported, match="without tracking"):
        direct(app).predict(video, tracking=True)


def test_settings_reach_the_app(app: SuperviselyApp, tmp_path: Path) -> None:
    path = folder(tmp_path, 7) / "0007.png"
    made = direct(app).predict(path, conf=0.0, classes=["dark"], img_size=32, settings={"min_area": 1}, batch_size=2)
    assert [found["classTitle"] for found in made[0]["annotation"]["objects"]] == ["dark"]
    settings = app.find("POST", PROGRESS)[0].body["state"]["settings"]
    assert settings == {"conf": 0.0, "classes": ["dark"], "img_size": 32, "min_area": 1}


@pytest.mark.parametrize(
    ("inputs", "options", "argument"),
    [
        ("absent.png", {}, "inputs"),
        ([], {}, "inputs"),
        ([3], {}, "inputs"),
        ({"image_ids": []}, {}, "inputs"),
        ({"image_ids": ["three"]}, {}, "inputs"),
        ({"image_ids": [3], "project_id": 2}, {}, "inputs"),
        ({"frames": 3}, {}, "inputs"),
        (numpy.zeros((4, 4), "uint8"), {"conf": 2}, "options"),
        (numpy.zeros((4, 4), "uint8"), {"iou": numpy.zeros(3)}, "options"),
        (numpy.zeros((4, 4), "uint8"), {"upload_mode": "append"}, "upload_mode"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_is_sent(
    app: SuperviselyApp, inputs: Any, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        direct(app).predict(inputs, **options)
    assert caught.value.argument == argument
    assert not app.requests


def test_an_empty_file_and_an_empty_directory_are_refused(app: SuperviselyApp, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "nothing").mkdir()
    for path, said in ((tmp_path / "empty.png", "is empty"), (tmp_path / "nothing", "holds no images")):
        with pytest.raises(InvalidInput, match=said):
            direct(app).predict(path)
    assert not app.requests


# ---- faults of the vendor's client that ours avoids -------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 17, 39])
def test_a_corrupt_image_fails_at_once_and_is_named(app: SuperviselyApp, tmp_path: Path, bad: int) -> None:
    top = folder(tmp_path / "in", *range(40))
    (top / f"{bad:04d}.png").write_bytes(b"no picture at all")
    with pytest.raises(InvalidInput, match=f"{bad:04d}.png") as caught:
        direct(app).predict(top, conf=0.0)
    assert "0005.png" not in str(caught.value)
    assert app.count("POST", START) <= 12  # halves of halves, each once


def test_an_image_that_the_model_fails_on_is_named_with_its_reason(app: SuperviselyApp, tmp_path: Path) -> None:
    top = folder(tmp_path / "in", *range(20))
    (top / "0013.png").write_bytes(picture(3, FAILING_WIDTH))
    with pytest.raises(InvalidInput, match=r"0013.png: ValueError: the model cannot take this image"):
        direct(app).predict(top, conf=0.0)


def test_predicting_without_a_loaded_model_blames_no_image(app: SuperviselyApp, tmp_path: Path) -> None:
    app.loaded = None
    app.fault("POST", START, Respond(500))
    with pytest.raises(ModelNotFound, match="no model is loaded"):
        direct(app).predict(folder(tmp_path / "in", 1, 2))


def test_two_tasks_at_once_with_equal_file_names_get_their_own_results(app: SuperviselyApp, tmp_path: Path) -> None:
    results: dict[int, list[dict[str, Any]]] = {}
    tops = [tmp_path / "one", tmp_path / "two"]
    for offset, top in enumerate(tops):
        top.mkdir()
        for number in range(50):
            (top / f"{number:04d}.png").write_bytes(picture(2 * number + offset))

    def work(which: int) -> None:
        results[which] = direct(app).predict(tops[which], conf=0.0, batch_size=1)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        expected = {f"{number:04d}": 2 * number + which for number in range(50)}
        assert numbers_by_path(results[which]) == expected


def test_an_upload_that_is_refused_for_now_is_sent_again_whole(app: SuperviselyApp, tmp_path: Path) -> None:
    app.fault("POST", START, Respond(503, headers={"Retry-After": "1"}))
    assert numbers_by_path(direct(app).predict(folder(tmp_path / "in", 1, 2), conf=0.0)) == {"0001": 1, "0002": 2}
    assert app.count("POST", START) == 2


@pytest.mark.parametrize("fault", [LoseAnswer(), Respond(503)])
def test_a_start_whose_answer_is_lost_is_not_repeated(app: SuperviselyApp, tmp_path: Path, fault: Action) -> None:
    app.fault("POST", START, fault)
    with pytest.raises(RegistryUnavailable):
        direct(app).predict(folder(tmp_path / "in", 1, 2))
    assert app.count("POST", START) == 1


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_results_that_are_lost_on_their_way_are_made_again(app: SuperviselyApp, tmp_path: Path, nth: int) -> None:
    app.most_popped = 2
    app.fault("POST", POP, LoseAnswer(), nth=nth)
    top = folder(tmp_path / "in", *range(20))
    made = direct(app).predict(top, conf=0.0, batch_size=2)
    assert [number_of(prediction) for prediction in made] == list(range(20))
    assert app.count("POST", START) == 2
    stopped = {request.body["state"]["inference_request_uuid"] for request in app.find("POST", STOP)}
    assert len(stopped) == 1


def test_frames_that_are_lost_are_made_again_and_none_comes_twice(app: SuperviselyApp, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"frames")
    app.most_popped = 1
    app.fault("POST", POP, LoseAnswer(), nth=2)
    made = direct(app).predict(video, batch_size=1)
    assert [one["frame_index"] for one in made] == list(range(10))
    assert app.count("POST", "inference_video_async$") == 2


def test_lost_results_that_may_not_be_made_again_are_an_error(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    app.pictures, app.projects = {3: picture(3)}, {21: [3]}
    app.fault("POST", POP, LoseAnswer())
    with pytest.raises(RegistryUnavailable, match="lost"):
        platform(server, task_id=server.seed_task().id).predict({"project_id": 21})
    assert app.count("POST", "inference_project_id_async") == 1


def test_an_app_that_keeps_losing_results_is_given_up(app: SuperviselyApp, tmp_path: Path) -> None:
    app.fault("POST", POP, LoseAnswer(), times=None)
    with pytest.raises(RegistryUnavailable, match="lost"):
        direct(app).predict(folder(tmp_path / "in", 1))
    assert app.count("POST", POP) == app.count("POST", START) == 4


@pytest.mark.usefixtures("unhurried")
def test_an_app_that_gets_no_further_is_given_up_and_told(app: SuperviselyApp, tmp_path: Path) -> None:
    app.gate.clear()
    with pytest.raises(RegistryUnavailable, match="no further"):
        direct(app).predict(folder(tmp_path / "in", 1), timeout=0.3)
    assert app.count("POST", STOP) == app.count("POST", CLEAR) == 1


def test_a_request_that_ends_is_cleared(app: SuperviselyApp, tmp_path: Path) -> None:
    direct(app).predict(folder(tmp_path / "in", 1))
    assert (app.count("POST", CLEAR), app.count("POST", STOP)) == (1, 0)


def test_a_short_answer_is_no_success(app: SuperviselyApp, tmp_path: Path) -> None:
    app.fault("POST", POP, Rewrite(lambda found: {**found, "pending_results": found["pending_results"][:1]}))
    with pytest.raises(RegistryUnavailable, match="1 predictions for 2 inputs"):
        direct(app).predict(folder(tmp_path / "in", 1, 2))


# ---- as they are made, and cancelled ----------------------------------------------------------------------------


def test_predictions_come_as_they_are_made(app: SuperviselyApp, tmp_path: Path) -> None:
    top = folder(tmp_path / "in", *range(40))
    with direct(app).predicting(top, conf=0.0, batch_size=1) as found:
        first = next(found)
        assert app.count("POST", START) == 1
        assert [number_of(one) for one in [first, *found]] == list(range(40))


@pytest.mark.usefixtures("unhurried")
def test_leaving_the_iterator_stops_the_request(app: SuperviselyApp, tmp_path: Path) -> None:
    app.most_popped = 1
    with direct(app).predicting(folder(tmp_path / "in", *range(20)), conf=0.0, batch_size=1) as found:
        assert [number_of(one) for one in islice(found, 2)] == [0, 1]
    assert app.count("POST", STOP) == app.count("POST", CLEAR) == 1


@pytest.mark.row("P4")
def test_a_cancelled_prediction_stops_the_request_within_4_s(app: SuperviselyApp, tmp_path: Path) -> None:
    app.gate.clear()
    token, killed = CancelToken(), list[float]()
    top = folder(tmp_path / "in", *range(3))

    def cancel() -> None:
        until(lambda: app.count("POST", PROGRESS) > 1, "two looks")
        killed.append(time.monotonic())
        token.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        direct(app).predict_to(tmp_path / "out.jsonl", top, control=Control(cancel=token))
    assert time.monotonic() - killed[0] < 4
    until(lambda: app.count("POST", STOP) == 1, "what was sent to arrive")
    assert not (tmp_path / "out.jsonl").exists()


def test_looks_become_rarer_while_nothing_happens(
    app: SuperviselyApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> Any:
        if not waits:
            until(begun, "the inference to have begun")
        waits.append(seconds)
        if len(waits) == 12:
            app.gate.set()
        yield from real(0.01)

    def begun() -> bool:
        (inference,) = app.inferences.values()
        return (inference.stage, inference.total) == (RUNNING, 1)

    real = supervisely_predict.sleep
    monkeypatch.setattr(supervisely_predict, "sleep", sleep)
    app.gate.clear()
    direct(app).predict(folder(tmp_path / "in", 1))
    assert waits[2:10] == sorted(waits[2:10])
    assert max(waits) == supervisely_predict._LONGEST_PAUSE


# ---- memory and files -------------------------------------------------------------------------------------------


def test_requests_are_bounded_in_files_and_bytes(
    app: SuperviselyApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = folder(tmp_path / "in", *range(40))
    size = (top / "0000.png").stat().st_size
    direct(app).predict(top)
    assert app.count("POST", START) == 2
    monkeypatch.setattr(supervisely_predict, "_BATCH_BYTES", 10 * size)
    direct(app).predict(top)
    assert app.count("POST", START) - 2 >= 4
    assert max(request.received for request in app.find("POST", START)[2:]) < 10 * size + 10 * 300


def test_a_files_lines_are_there_at_once_or_not_at_all(app: SuperviselyApp, tmp_path: Path) -> None:
    output = tmp_path / "out" / "found.jsonl"
    top = folder(tmp_path / "in", 1, 2)
    made = direct(app).predict_to(output, top, conf=0.0)
    assert (made.path, made.count, made.size_bytes) == (output, 2, output.stat().st_size)
    before = output.read_bytes()
    assert [number_of(json.loads(line)) for line in before.splitlines()] == [1, 2]
    (top / "0003.png").write_bytes(b"nothing")
    with pytest.raises(InvalidInput):
        direct(app).predict_to(output, top)
    assert output.read_bytes() == before


def test_a_file_that_shrinks_while_it_is_sent_is_noticed(
    app: SuperviselyApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "in", 1) / "0001.png"
    item = supervisely_predict._item_of_path

    def measured(path: Path) -> Any:
        found = item(path)
        path.write_bytes(path.read_bytes()[:-5])
        return found

    monkeypatch.setattr(supervisely_predict, "_item_of_path", measured)
    with pytest.raises(ModelSyncError, match="ended after"):
        direct(app).predict(path)


def test_predictions_by_the_platform_carry_the_key_and_no_name_of_ours(
    app: SuperviselyApp, server: SuperviselyStandIn, tmp_path: Path
) -> None:
    own = platform(server, task_id=server.seed_task().id)
    own.predict(folder(tmp_path / "in", 1))
    start = server.find("POST", START)[0]
    assert start.headers["x-api-key"] == server.token
    assert server.find("POST", PROGRESS)[0].body["api_token"] == server.token


def test_a_large_form_is_never_in_memory(tmp_path: Path) -> None:
    items = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        with path.open("wb") as file:
            file.truncate(40 << 20)
        items.append(supervisely_predict._item_of_path(path))
    form = supervisely_predict._Form(items, "{}")
    tracemalloc.start()
    try:
        reader, total = form.reader(), 0
        while block := reader.read(1 << 20):
            total += len(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == form.size > 200 << 20
    assert peak < 8 << 20


def test_an_app_that_never_answers_ends_with_the_connections_patience(app: SuperviselyApp, tmp_path: Path) -> None:
    app.fault("POST", PROGRESS, Delay(60), times=None)
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="time limit"):
        direct(app, timeout_seconds=0.3).predict(folder(tmp_path / "in", 1))
    assert time.monotonic() - began < 30


# ---- options ----------------------------------------------------------------------------------------------------


def test_what_is_no_option_is_a_setting_of_the_app(
    app: SuperviselyApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path, 7) / "0007.png"
    with caplog.at_level(logging.INFO, "modelsync"):
        direct(app).predict(path, conf=0.0, iou=0.5, nms="soft", settings={"half": True}, img_sise=640)

    settings = app.find("POST", PROGRESS)[0].body["state"]["settings"]
    assert settings == {"half": True, "iou": 0.5, "nms": "soft", "img_sise": 640, "conf": 0.0}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["'img_sise' is passed on to the app as a setting: did you mean 'img_size'?"]


def test_a_setting_that_is_no_json_is_refused(app: SuperviselyApp, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        direct(app).predict(folder(tmp_path, 7), iou=object())
    assert refused.value.argument == "options"
    assert app.requests == []


@pytest.mark.parametrize(
    ("inputs", "options", "ignored"),
    [
        ("0007.png", {"tracking": True, "stride": 2}, ["tracking", "stride"]),
        ("", {"tracking": True, "recursive": True}, ["tracking"]),
        ("0007.png", {"recursive": True, "cache_project_on_model": True}, ["recursive", "cache_project_on_model"]),
        ("0007.png", {"tracking": False, "conf": 0.1, "batch_size": 2, "timeout": 30}, []),
    ],
)
def test_what_is_ignored_is_told(
    app: SuperviselyApp,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    inputs: str,
    options: dict[str, Any],
    ignored: list[str],
) -> None:
    """The app here follows no objects: of images nobody asks it to."""
    folder(tmp_path, 7)
    with caplog.at_level(logging.WARNING, "modelsync"):
        direct(app).predict(tmp_path / inputs, **options)

    told = [record.message.split("'")[1] for record in caplog.records if "is ignored" in record.message]
    assert sorted(told) == sorted(ignored)


def test_one_id_stands_beside_lists(app: SuperviselyApp, server: SuperviselyStandIn) -> None:
    app.pictures = {number: picture(number) for number in (3, 4, 5)}
    app.projects, app.datasets = {1: [3, 4], 2: [5]}, {7: [3], 8: [4]}
    cloud = platform(server, task_id=server.seed_task().id)

    assert [number_of(one) for one in cloud.predict({"image_id": 5}, conf=0.0)] == [5]
    assert [number_of(one) for one in cloud.predict({"image_ids": "5"}, conf=0.0)] == [5]
    assert [number_of(one) for one in cloud.predict({"project_id": 1, "dataset_id": 8}, conf=0.0)] == [4]
    assert sorted(number_of(one) for one in cloud.predict({"project_ids": [1, 2]}, conf=0.0)) == [3, 4, 5]
    assert {one["video_id"] for one in cloud.predict({"video_ids": [21, 22]}, conf=0.0)} == {21, 22}
    for wrong in ({"image_id": 1, "image_ids": [1]}, {"project_ids": [1, 2], "dataset_ids": [7]}, {"images": [1]}, {}):
        with pytest.raises(InvalidInput, match="as a dictionary they name"):
            cloud.predict(wrong)

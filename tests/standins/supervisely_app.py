"""A serving app as the Supervisely SDK makes it, without the SDK: a detector of bright and dark pixels.

    with SuperviselyApp(predict_seconds=0.1) as app:
        app.fault("POST", "/pop_inference_results$", LoseAnswer())  # these results are gone
        ...  # talk to app.url, or have a platform stand-in forward to it

The answers have the keys and types of the real app (`tests/vendors/supervisely_app.py`), which finds the same in the
same pictures, fails on the same ones and has the same models; a test of the vendor's holds the two together.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tests.standins.http_server import Answer, Json, Refusal, Request, json_answer
from tests.standins.supervisely_http import Body, Part, StandIn, read_form
from tests.support.images import brightness, png

PREPARING, RUNNING, FINISHED = "Preparing model for inference...", "Running inference...", "Finished"
POSTPROCESS, CANCELLED, ERROR = "Postprocess...", "Cancelled", "Error"
MODELS = ("blob-tiny", "blob-small", "blob-slow", "blob-broken")
FAILING_WIDTH = 13
BATCH_SIZE = 16
FREEZE_FAILED = "Failed to freeze model. Check the logs for details."
SETTINGS: Json = {"conf": 0.25, "min_area": 4}
BOTSORT: Json = {
    "fp16": False,
    "track_high_thresh": 0.6,
    "track_low_thresh": 0.1,
    "new_track_thresh": 0.7,
    "track_buffer": 30,
    "match_thresh": 0.8,
    "min_box_area": 10.0,
    "with_reid": True,
    "reid_weights": None,
    "proximity_thresh": 0.5,
    "appearance_thresh": 0.25,
    "fuse_score": False,
    "ablation": False,
    "mot20": False,
    "cmc_method": "sparseOptFlow",
}
FRAME = png(80, 60, (0, 0, 79, 29))  # of every video
GPU_MEMORY: Json = {"allocated": None, "total": None}
RAM_MEMORY: Json = {"allocated": 1_000_000_000, "total": 25_000_000_000}


def _class(title: str, color: str) -> Json:
    names = {"title": title, "description": "", "shape": "rectangle", "color": color}
    return {**names, "geometry_config": {}, "hotkey": ""}


def _tag(name: str, color: str) -> Json:
    names = {"name": name, "value_type": "any_number", "color": color, "hotkey": ""}
    return {**names, "applicable_type": "all", "classes": [], "target_type": "all"}


MODEL_META: Json = {
    "classes": [_class("bright", "#660F8A"), _class("dark", "#8A480F")],
    "tags": [_tag("confidence", "#0F428A")],
    "projectSettings": {"multiView": {"enabled": False, "tagName": None, "tagId": None, "isSynced": False}},
}


def crash() -> Refusal:
    """What an exception in the app looks like from outside, in development mode."""
    return Refusal(Answer(500, b"Internal Server Error", {"Content-Type": "text/plain; charset=utf-8"}))


def complaint(status: int, detail: str) -> Refusal:
    return Refusal(json_answer(status, {"detail": detail, "success": False, "message": detail}))


def annotation(picture: bytes, settings: Json) -> Json:
    """The extent of the bright pixels and of the dark ones, with their share of the picture as confidence."""
    rows = brightness(picture)
    height, width = len(rows), len(rows[0])
    if width == FAILING_WIDTH:
        raise ValueError("the model cannot take this image")
    wanted, lowest = settings.get("classes"), settings.get("conf", SETTINGS["conf"])
    objects = []
    for title, is_bright in (("bright", True), ("dark", False)):
        found = [(x, y) for y, row in enumerate(rows) for x, value in enumerate(row) if (value > 128) is is_bright]
        score = round(len(found) / (height * width), 4)
        if found and score >= lowest and (wanted is None or title in wanted):
            xs, ys = [x for x, _ in found], [y for _, y in found]
            objects.append(_object(title, score, [[min(xs), min(ys)], [max(xs), max(ys)]]))
    size = {"height": height, "width": width}
    return {"description": "", "size": size, "tags": [], "objects": objects, "customBigData": {}}


def _object(title: str, score: float, corners: list[list[int]]) -> Json:
    return {
        "classTitle": title,
        "description": "",
        "tags": [{"name": "confidence", "value": score}],
        "points": {"exterior": corners, "interior": []},
        "geometryType": "rectangle",
        "shape": "rectangle",
        "nnCreated": True,
        "nnUpdated": True,
    }


@dataclass(frozen=True)
class Item:
    """One thing to predict on, and what its prediction says of it. `picture` is called when its turn has come."""

    picture: Callable[[], bytes]
    facts: Json = field(default_factory=dict)


@dataclass
class Inference:
    """One inference request."""

    items: Sequence[Item]
    state: Json
    stops: bool = True  # an image batch goes on to its end when it is told to stop
    pauses: bool = False
    video: bool = False
    uuid: str = field(default_factory=lambda: uuid.uuid4().hex)
    stage: str = PREPARING
    current: int = 0
    total: int = 1
    results: list[Json] = field(default_factory=list)
    final: Json | None = None
    exception: Json | None = None
    stopped: bool = False
    paused: bool = False
    finished: bool = False
    created_at: float = field(default_factory=time.monotonic)
    updated_at: float = field(default_factory=time.monotonic)

    @property
    def settings(self) -> Json:
        return self.state.get("settings") or {}

    @property
    def progress(self) -> Json:
        return {"status": self.stage, "current": self.current, "total": self.total, "is_size": False}

    def enter(self, stage: str, current: int | None = None, total: int | None = None) -> None:
        self.current = self.current if current is None else current
        self.total = self.total if total is None else total
        self.updated_at = time.monotonic()
        self.stage = stage  # last: it is what others wait for

    def _common(self) -> Json:
        return {
            "uuid": self.uuid,
            "stage": self.stage,
            "progress": self.progress,
            "exception": self.exception,
            "is_inferring": self.stage == RUNNING,
            "stopped": self.stopped,
            "paused": self.paused,
            "finished": self.finished,
        }

    def status(self) -> Json:
        progress = {"message": self.stage, **self.progress}
        return {**self._common(), "progress": progress, "gpu_memory": GPU_MEMORY, "ram_memory": RAM_MEMORY}

    def json(self) -> Json:
        return {
            **self._common(),
            "pending_results": len(self.results),
            "final_result": self.final is not None,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "cancel_inference": self.stopped,
            "has_result": self.final is not None,
            "preparing_progress": self.progress,
            "result": self.final is not None,
        }


class SuperviselyApp(StandIn):
    """The app; start and stop it as a context manager.

    `model`: the name of what is loaded, or None. `load_seconds`: what `blob-slow` takes. `predict_seconds`: what a
    picture takes. `tracks`: whether the tracker's libraries are there. `freezes`: whether a freeze succeeds.
    `most_popped`: results that one fetch takes off, as from an app that makes them slowly; None for all there are.
    `frames`: what every video has. `pictures`: by image id; `datasets`, `projects`: image ids by id.
    `unread_limit`: results after which ids and projects wait for a reader.
    Clear `gate` to hold every inference before its next picture, and `loads` to hold `blob-slow` while it is loaded.
    """

    ROUTES: dict[str, str] = {  # noqa: RUF012
        "is_ready": "is_ready",
        "is_alive": "is_running",
        "is_running": "is_running",
        "is_deployed": "is_deployed",
        "get_status": "status",
        "get_session_info": "session_info",
        "get_deploy_info": "deploy_info",
        "get_custom_inference_settings": "settings",
        "get_tracking_settings": "tracking_settings",
        "get_output_classes_and_tags": "meta",
        "get_model_meta": "meta",
        "list_pretrained_models": "list_models",
        "list_pretrained_model_infos": "list_model_infos",
        "deploy_from_api": "deploy",
        "freeze_model": "freeze",
        "sly/shutdown": "shut_down",
        "inference_image": "image",
        "inference_image_url": "image_url",
        "inference_batch": "images",
        "inference_batch_async": "start_images",
        "inference_video_async": "start_video",
        "inference_batch_ids": "image_ids",
        "inference_batch_ids_async": "start_image_ids",
        "inference_video_id_async": "start_video_id",
        "inference_project_id_async": "start_project",
        "get_inference_progress": "inference_progress",
        "get_inference_status": "inference_status",
        "get_preparing_progress": "preparing_progress",
        "pop_inference_results": "pop_results",
        "get_inference_result": "inference_result",
        "stop_inference": "stop_inference",
        "clear_inference_request": "clear",
    }
    GET = frozenset({"is_ready", "is_alive"})

    def __init__(
        self,
        *,
        model: str | None = "blob-tiny",
        load_seconds: float = 0,
        predict_seconds: float = 0,
        tracks: bool = False,
        freezes: bool = False,
        frames: int = 10,
        unread_limit: int = 500,
        stall_seconds: float = 10,
    ) -> None:
        super().__init__(stall_seconds=stall_seconds)
        self.load_seconds = load_seconds
        self.predict_seconds = predict_seconds
        self.tracks = tracks
        self.freezes = freezes
        self.frames = frames
        self.unread_limit = unread_limit
        self.loaded: Json | None = self._pretrained(model, {}) if model else None
        self.frozen = False
        self.pictures: dict[int, bytes] = {}
        self.datasets: dict[int, list[int]] = {}
        self.projects: dict[int, list[int]] = {}
        self.most_popped: int | None = None
        self.inferences: dict[str, Inference] = {}
        self.uploaded: list[Json] = []  # predictions that an upload mode wrote into a project
        self.down = threading.Event()
        self._going: threading.Thread | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.loads = threading.Event()
        self.loads.set()
        self._cache: dict[str, bytes] = {}  # uploads by their bare file name, shared by all, as in the real app
        self._turn = threading.Lock()  # one inference at a time

    def close(self) -> None:
        self.gate.set()
        self.loads.set()
        self.stopping.set()
        if self._going is None:
            super().close()
        else:
            self._going.join()

    # -- requests

    def answer(self, request: Request, body: Body) -> Answer:
        name = request.path.strip("/")
        handler = self.ROUTES.get(name)
        if handler is None:
            raise Refusal(json_answer(404, {"detail": "Not Found"}))
        if request.method != "POST" and (request.method != "GET" or name not in self.GET):
            raise Refusal(json_answer(405, {"detail": "Method Not Allowed"}))
        is_form = not request.headers.get("content-type", "").startswith("application/json")
        if request.method == "POST" and not is_form and not isinstance(request.body, dict):
            raise crash()
        handle: Callable[[Request, Body], Answer | Any] = getattr(self, handler)
        found = handle(request, body)
        return found if isinstance(found, Answer) else json_answer(200, found)

    def _state(self, request: Request) -> Json:
        state = request.body.get("state") if isinstance(request.body, dict) else None
        if not isinstance(state, dict):
            raise crash()
        return state

    def _needs_model(self) -> Json:
        if self.loaded is None:
            raise crash()
        return self.loaded

    # -- the model

    def is_ready(self, request: Request, body: Body) -> Any:
        if self.loaded is None:
            raise complaint(503, "Service not ready")
        return {"status": "ready"}

    def is_running(self, request: Request, body: Body) -> Any:
        return {"running": True, "mode": "development"}

    def is_deployed(self, request: Request, body: Body) -> Any:
        return {"deployed": self.loaded is not None, "description:": "Model is ready to receive requests"}

    def status(self, request: Request, body: Body) -> Any:
        with self.lock:
            busy = [one for one in self.inferences.values() if one.stage == RUNNING]
        progress = {"message": "Ready", "current": 0, "total": 1}
        if busy:
            progress = {"message": RUNNING, "current": busy[0].current, "total": busy[0].total}
        memory = {"gpu_memory": GPU_MEMORY, "ram_memory": RAM_MEMORY}
        return {"is_deployed": self.loaded is not None, "progress": progress, **memory}

    def session_info(self, request: Request, body: Body) -> Any:
        self._needs_model()
        return {
            "app_name": "Neural Network Serving",
            "session_id": None,
            "number_of_classes": 2,
            "sliding_window_support": "basic",
            "videos_support": True,
            "async_video_inference_support": True,
            "tracking_on_videos_support": True,
            "async_image_inference_support": True,
            "tracking_algorithms": ["botsort"],
            "batch_inference_support": True,
            "max_batch_size": None,
            "task type": "object detection",
        }

    def deploy_info(self, request: Request, body: Body) -> Any:
        return self._needs_model()

    def settings(self, request: Request, body: Body) -> Any:
        return {"settings": SETTINGS}

    def tracking_settings(self, request: Request, body: Body) -> Any:
        self._needs_model()
        return {"botsort": BOTSORT} if self.tracks else {}

    def meta(self, request: Request, body: Body) -> Any:
        return MODEL_META

    def list_models(self, request: Request, body: Body) -> Any:
        return list(MODELS)

    def list_model_infos(self, request: Request, body: Body) -> Any:
        return [_model_info(name) for name in MODELS]

    def freeze(self, request: Request, body: Body) -> Any:
        if self.frozen:
            return {"message": "Model is already frozen."}
        self.frozen = self.freezes and self.loaded is not None
        return {"message": "Model is frozen." if self.frozen else FREEZE_FAILED}

    def deploy(self, request: Request, body: Body) -> Any:
        """Load; what was loaded before is dropped first, whatever comes of it."""
        self.loaded, self.frozen = None, False
        state = self._state(request)
        params = state.get("deploy_params")
        if not isinstance(params, dict) or "model_source" not in params:
            raise crash()
        if params["model_source"] == "Pretrained models":
            name = state.get("model_name")
            if name not in MODELS or name == "blob-broken":
                raise crash()
            if name == "blob-slow":
                self.stopping.wait(self.load_seconds)
                self.loads.wait()
            self.loaded = self._pretrained(name, params)
        elif "checkpoint" in (params.get("model_files") or {}):
            self.loaded = self._custom(params)
        else:
            raise crash()
        return {"result": "model was successfully deployed"}

    def _pretrained(self, name: str, params: Json) -> Json:
        info = _model_info(name)
        checkpoint = info["meta"]["model_files"]["checkpoint"]
        names = {"model_name": name, "architecture": "TinyBlob", "checkpoint_url": checkpoint}
        files = {"model_files": {"checkpoint": checkpoint}, "model_source": "Pretrained models", "model_info": info}
        return self._deployed(names, {**params, **files})

    def _custom(self, params: Json) -> Json:
        info, checkpoint = params.get("model_info") or {}, PurePosixPath(params["model_files"]["checkpoint"])
        if isinstance(info.get("model_meta"), str):  # the name of a file, which the app reads
            info = {**info, "model_meta": {**MODEL_META, "tags": []}}
            params = {**params, "model_info": info}
        directory = info.get("artifacts_dir") or checkpoint.parent.parent
        names = {"model_name": info.get("model_name"), "architecture": info.get("framework_name")}
        path = f"{directory}/checkpoints/{checkpoint.name}"
        return self._deployed({**names, "custom_checkpoint_path": path}, params)

    def _deployed(self, names: Json, params: Json) -> Json:
        params = {**params, "device": params.get("device") or "cpu", "runtime": params.get("runtime") or "PyTorch"}
        return {
            "checkpoint_name": PurePosixPath(params["model_files"]["checkpoint"]).name,
            "checkpoint_url": None,
            "custom_checkpoint_path": None,
            **names,
            "model_source": params["model_source"],
            "task_type": "object detection",
            "device": params["device"],
            "runtime": params["runtime"],
            "model_precision": "FP32",
            "hardware": "a processor",
            "deploy_params": params,
        }

    def shut_down(self, request: Request, body: Body) -> Any:
        """Answer, then go: whoever asks afterwards is refused."""
        self._going = threading.Thread(target=self._go_down, args=(request,))
        self._going.start()
        return None

    def _go_down(self, request: Request) -> None:
        while not request.answered and not self.stopping.wait(0.01):  # the answer comes first
            pass
        super().close()
        self.down.set()

    # -- inference, started

    def _form(self, request: Request, body: Body) -> tuple[list[Part], Json]:
        kind = request.headers.get("content-type", "")
        parts = read_form(kind, body) if kind.startswith("multipart/") else []
        files = [part for part in parts if part.name == "files" and part.filename is not None]
        if not files:
            missing = {"type": "missing", "loc": ["body", "files"], "msg": "Field required", "input": None}
            raise Refusal(json_answer(422, {"detail": [missing]}))
        text = next((part.value.decode() for part in parts if part.name == "state"), "{}")
        try:
            state = json.loads(text)
        except ValueError as error:
            raise complaint(400, f"Cannot decode settings: {error}") from None
        if not isinstance(state, dict):
            raise complaint(400, "Settings is not json object")
        return files, state

    def _uploads(self, request: Request, body: Body) -> Inference:
        files, state = self._form(request, body)
        for file in files:
            try:
                brightness(file.value)
            except ValueError:
                raise crash() from None
            self._cache[str(file.filename)] = file.value
        inference = Inference([self._cached(str(file.filename)) for file in files], state, stops=False)
        return _received(inference, files)

    def _cached(self, name: str) -> Item:
        return Item(lambda: self._cache[name])

    def _by_id(self, ids: Sequence[int], state: Json) -> Inference:
        if not all(number in self.pictures for number in ids):
            raise crash()
        return Inference([self._stored(number) for number in ids], state, pauses=True)

    def _stored(self, number: int) -> Item:
        def holder(of: dict[int, list[int]]) -> int | None:
            return next((key for key, ids in of.items() if number in ids), None)

        facts = {"name": f"{number}.png", "image_id": number}
        return Item(
            lambda: self.pictures[number],
            {**facts, "dataset_id": holder(self.datasets), "project_id": holder(self.projects)},
        )

    def start_images(self, request: Request, body: Body) -> Any:
        return self._start(self._uploads(request, body))

    def start_image_ids(self, request: Request, body: Body) -> Any:
        state = self._state(request)
        return self._start(self._by_id(state.get("images_ids") or [], state))

    def start_project(self, request: Request, body: Body) -> Any:
        state = self._state(request)
        ids = self.projects.get(state.get("project_id", 0), [])
        if (datasets := state.get("dataset_ids")) is not None:
            ids = [number for number in ids if any(number in self.datasets[one] for one in datasets)]
        return self._start(self._by_id(ids, state), "Inference has started.")

    def start_video(self, request: Request, body: Body) -> Any:
        """An uploaded video: only these spellings of a range count, and its end is included."""
        files, state = self._form(request, body)
        start, count, end = (state.get(name) for name in ("startFrameIndex", "framesCount", "endFrameIndex"))
        if count is None:
            count = self.frames if end is None else end - (start or 0) + 1
        return self._start(_received(self._frames(state, start or 0, count, {}), files))

    def start_video_id(self, request: Request, body: Body) -> Any:
        """A video of the platform: all spellings count, and the end of a range is excluded."""
        state = self._state(request)

        def value(*names: str) -> int | None:
            return next((state[name] for name in names if state.get(name) is not None), None)

        start = value("startFrameIndex", "start_frame_index", "start_frame") or 0
        end = value("endFrameIndex", "end_frame_index", "end_frame")
        count = value("framesCount", "frames_count", "num_frames")
        if count is None:
            count = (self.frames if end is None else end) - start
        return self._start(self._frames(state, start, count, {"video_id": value("videoId", "video_id")}))

    def _frames(self, state: Json, start: int, count: int, facts: Json) -> Inference:
        step = state.get("stride") or state.get("step") or 1
        step = step if state.get("direction", "forward") == "forward" else -step
        indexes = range(start, start + (count if step > 0 else -count), step)
        items = [Item(lambda: FRAME, {**facts, "frame_index": index}) for index in indexes]
        return Inference(items, state, video=True)

    def _start(self, inference: Inference, message: str = "Scheduled inference task.") -> Json:
        with self.lock:
            self.inferences[inference.uuid] = inference
        threading.Thread(target=self._infer, args=(inference,), daemon=True).start()
        return {"message": message, "inference_request_uuid": inference.uuid}

    def image(self, request: Request, body: Body) -> Any:
        inference = self._uploads(request, body)
        if len(inference.items) != 1:
            raise complaint(400, f"Only one file expected but got {len(inference.items)}")
        self._infer(inference)
        if inference.exception:
            raise crash()
        return inference.results[0]

    def image_url(self, request: Request, body: Body) -> Any:
        """As `image`, of what a URL leads to."""
        state = self._state(request)
        try:
            with urllib.request.urlopen(state["image_url"], timeout=10) as answer:
                content = answer.read()
        except OSError:
            raise crash() from None
        inference = Inference([Item(lambda: content)], state)
        self._infer(inference)
        if inference.exception:
            raise crash()
        return inference.results[0]

    def images(self, request: Request, body: Body) -> Any:
        """All results that there are: fewer than pictures where the model failed."""
        inference = self._uploads(request, body)
        self._infer(inference)
        return inference.results

    def image_ids(self, request: Request, body: Body) -> Any:
        state = self._state(request)
        inference = self._by_id(state.get("images_ids") or [], state)
        self._infer(inference)
        if inference.exception:
            raise crash()
        return inference.results

    # -- inference, running

    def _infer(self, inference: Inference) -> None:
        with self._turn:
            self.frozen = False
            try:
                self._run(inference)
            except Exception as error:  # as the real app does; a reader is told
                told = {"type": type(error).__name__, "message": str(error), "traceback": "Traceback ..."}
                with self.lock:
                    inference.exception = told
                    inference.enter(ERROR)
            with self.lock:
                if inference.exception is None:
                    inference.enter(CANCELLED if inference.stopped else FINISHED)
                inference.finished = True

    def _run(self, inference: Inference) -> None:
        tracker = inference.state.get("tracker")
        if tracker and not self.tracks:
            raise NameError("name 'nn' is not defined")
        size = inference.state.get("batch_size") or BATCH_SIZE
        inference.enter(RUNNING, 0, len(inference.items))
        for start in range(0, len(inference.items), size):
            while inference.paused and not self.stopping.wait(0.01):
                pass
            if inference.stopped and inference.stops:
                break
            predictions = [self._predict(item, inference) for item in inference.items[start : start + size]]
            with self.lock:
                self._hand_over(inference, predictions)
        if inference.video:
            if tracker:
                inference.enter(POSTPROCESS, 1, 1)
            inference.final = {"ann": [], "video_ann": _video_annotation(inference) if tracker else None}

    def _hand_over(self, inference: Inference, predictions: list[Json]) -> None:
        inference.current += len(predictions)
        if inference.state.get("upload_mode") or inference.state.get("output_project_id"):
            self.uploaded += predictions
        else:
            inference.results += predictions
        inference.paused = inference.pauses and len(inference.results) >= self.unread_limit

    def _predict(self, item: Item, inference: Inference) -> Json:
        while not self.gate.wait(0.01) and not self.stopping.is_set():
            pass
        self.stopping.wait(self.predict_seconds)
        if self.loaded is None:
            raise RuntimeError("no model is loaded")
        found = annotation(item.picture(), inference.settings)
        if inference.state.get("tracker"):
            _track(found, inference.state.get("tracker_settings") or {})
        unknown = ("name", "path", "url", "project_id", "dataset_id", "image_id", "video_id", "frame_index")
        facts = {**dict.fromkeys(unknown), **item.facts}
        return {"source": None, "annotation": found, **facts, "slides_data": {}, "data": {}}

    # -- inference, read

    def _inference(self, request: Request, **more: Any) -> Inference:
        number = self._state(request).get("inference_request_uuid")
        if number is None:
            message = "Error: 'inference_request_uuid' is required."
            raise Refusal(json_answer(400, {"message": message, **more}))
        if number not in self.inferences:
            raise crash()
        return self.inferences[number]

    def inference_progress(self, request: Request, body: Body) -> Any:
        with self.lock:
            inference = self._inference(request)
            known = {} if inference.stage == RUNNING else {"progress": {"current": 0, "total": 1}}
            return {**inference.json(), **known}

    def inference_status(self, request: Request, body: Body) -> Any:
        with self.lock:
            return self._inference(request).status()

    def preparing_progress(self, request: Request, body: Body) -> Any:
        with self.lock:
            return self._inference(request).progress

    def pop_results(self, request: Request, body: Body) -> Any:
        with self.lock:
            inference = self._inference(request)
            known = inference.json()
            most = len(inference.results) if self.most_popped is None else self.most_popped
            popped, inference.results, inference.paused = inference.results[:most], inference.results[most:], False
            return {**known, "pending_results": popped}

    def inference_result(self, request: Request, body: Body) -> Any:
        return self._inference(request).final

    def stop_inference(self, request: Request, body: Body) -> Any:
        self._inference(request, success=False).stopped = True
        return {"message": "Inference will be stopped.", "success": True}

    def clear(self, request: Request, body: Body) -> Any:
        """The real app keeps a cleared request for another minute, so this one keeps it."""
        if self._state(request).get("inference_request_uuid") is None:
            self._inference(request, success=False)
        return {"success": True}


def _received(inference: Inference, files: Sequence[Part]) -> Inference:
    """Before it runs, progress is bytes."""
    inference.current = inference.total = sum(len(file.value) for file in files)
    return inference


def _track(found: Json, settings: Json) -> None:
    """Give objects their tracks, which begin only where the confidence is high enough."""
    lowest = settings.get("new_track_thresh", BOTSORT["new_track_thresh"])
    found["objects"] = [one for one in found["objects"] if one["tags"][0]["value"] >= lowest]
    found["customBigData"] = list(range(1, len(found["objects"]) + 1))


def _model_info(name: str) -> Json:
    files = {"checkpoint": f"/srv/tiny/weights/{name}.json"}
    meta = {"task_type": "object detection", "model_name": name, "model_files": files}
    return {"Model": name, "Size (px)": "any", "meta": meta}


def _video_annotation(inference: Inference) -> Json:
    frames = [{"index": item.facts["frame_index"], "figures": []} for item in inference.items]
    size = {"height": 60, "width": 80}
    names = {"description": "", "key": uuid.uuid4().hex, "tags": [], "objects": []}
    return {"size": size, **names, "frames": frames, "framesCount": len(frames)}

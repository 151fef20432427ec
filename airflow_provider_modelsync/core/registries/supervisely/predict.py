"""Predictions by a serving app: inputs become inference requests, and these become one prediction after another.

Facts come from supervisely 6.74.51 (``nn/model/prediction_session.py``, ``nn/inference/inference.py``) on the wire.
Results are taken off the app by the very call that fetches them, and uploads are known there by bare file names only.
"""

from __future__ import annotations

import io
import json
import logging
import re
import struct
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, Field, model_validator

from airflow_provider_modelsync.core.arguments import is_url, whole_numbers
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver, call, sleep
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.http.faults import NotSent
from airflow_provider_modelsync.core.http.policy import RequestPolicy
from airflow_provider_modelsync.core.models import Headway, Ticket, require_json
from airflow_provider_modelsync.core.redact import excerpt, secrets_of
from airflow_provider_modelsync.core.registries.supervisely.api import Arguments, Platform, checked
from airflow_provider_modelsync.core.registries.supervisely.session import Session
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import UNPROCESSED, MovedResponse, Mover, with_retries

IMAGES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".nrrd")
)
VIDEOS = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".flv", ".3gp", ".mpg", ".mpeg", ".m4v", ".ogv"))

_BATCH_FILES = 32  # in one request: the app holds all of them at a time
_BATCH_BYTES = 64 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds between two looks at a request; nothing new doubles them
_GOODBYE_SECONDS = 1.5  # for each of two calls: a killed task has little time to say goodbye
_RESTARTS = 3
_MAYBE_ONE_INPUT = frozenset({400, 415, 422, 500})  # statuses of an app that cannot decode a file
_STARTS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tiff",
    b"MM\0*": ".tiff",
}
_EXTENSION = re.compile(r"\.[a-z0-9]{1,8}")
_SHOWN_NAMES = 5

_log = logging.getLogger("modelsync")


class PredictOptions(Arguments):
    """How to predict. What is none of these is passed on to the app as an inference setting.

    :param conf: the least confidence.
    :param img_size: what images are scaled to.
    :param classes: only these classes.
    :param batch_size: images that the model takes at a time.
    :param settings: further inference settings that the app knows.
    :param upload_mode: what becomes of predictions for images of the platform: ``append``, ``replace``, ``iou_merge``
        or ``create``; they are only returned when left out.
    :param output_project_id: where they go.
    :param iou_merge_threshold: for ``iou_merge``.
    :param cache_project_on_model: have the app keep the project's images.
    :param model_prediction_suffix: appended to class names that clash.
    :param recursive: take directories in directories, too.
    :param tracking: follow objects from frame to frame of a video.
    :param tracking_config: the tracker's settings.
    :param start_frame: of a video, the first one.
    :param num_frames: of a video, how many.
    :param stride: of a video, take every so manyth frame.
    :param direction: of a video.
    :param timeout: seconds that a request may go without getting any further.
    """

    argument = "options"

    conf: float | None = Field(default=None, ge=0, le=1)
    img_size: int | None = Field(default=None, gt=0)
    classes: tuple[str, ...] | None = None
    batch_size: int | None = Field(default=None, gt=0)
    settings: dict[str, Any] = Field(default_factory=dict)
    upload_mode: Literal["append", "replace", "iou_merge", "create"] | None = None
    output_project_id: int | None = Field(default=None, gt=0)
    iou_merge_threshold: float | None = Field(default=None, ge=0, le=1)
    cache_project_on_model: bool | None = None
    model_prediction_suffix: str | None = None
    recursive: bool = False
    tracking: bool = False
    tracking_config: dict[str, Any] = Field(default_factory=dict)
    start_frame: int | None = Field(default=None, ge=0)
    num_frames: int | None = Field(default=None, gt=0)
    stride: int | None = Field(default=None, gt=0)
    direction: Literal["forward", "backward"] | None = None
    timeout: float = Field(default=600.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _pass_on(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not (unknown := values.keys() - cls.model_fields.keys()):
            return values
        settings = values.get("settings") or {}
        if not isinstance(settings, Mapping):
            return values  # which is refused
        passed = {key: values[key] for key in values if key in unknown}
        return {**{key: values[key] for key in values if key not in unknown}, "settings": {**settings, **passed}}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        for name in sorted(map(str, values.keys() - cls.model_fields.keys())):
            (near,) = get_close_matches(name, cls.model_fields, n=1, cutoff=0.8) or [""]
            hint = f": did you mean {near!r}?" if near else ""
            (_log.warning if near else _log.info)("%r is passed on to the app as a setting%s", name, hint)
        options = super().read(values)
        require_json("options", options.settings)
        return options

    def warn_of_ignored(self, kinds: Collection[Kind]) -> None:
        """Say what is given and means nothing for inputs of some kinds."""
        heeded = _ALWAYS.union(*(_HEEDED[kind] for kind in kinds))
        fields = type(self).model_fields
        given = [name for name in fields if getattr(self, name) != fields[name].get_default(call_default_factory=True)]
        for name in given:
            if name not in heeded:
                _log.warning("%r is ignored: it means nothing for %s", name, " and ".join(sorted(kinds)))

    @property
    def inference_settings(self) -> dict[str, Any]:
        """What the app calls settings."""
        named = {
            "conf": self.conf,
            "img_size": self.img_size,
            "classes": list(self.classes) if self.classes is not None else None,
        }
        return {**self.settings, **_given(named)}

    @property
    def mode(self) -> str | None:
        """What becomes of the predictions on the platform, if anything."""
        return self.upload_mode or ("append" if self.output_project_id else None)

    def image_state(self) -> dict[str, Any]:
        return _given({"batch_size": self.batch_size, "model_prediction_suffix": self.model_prediction_suffix})

    def platform_state(self) -> dict[str, Any]:
        return {
            **self.image_state(),
            **_given({"upload_mode": self.mode, "output_project_id": self.output_project_id}),
        }

    def project_state(self) -> dict[str, Any]:
        more = {
            "iou_merge_threshold": self.iou_merge_threshold,
            "cache_project_on_model": self.cache_project_on_model,
        }
        return {**self.platform_state(), **_given(more)}

    def video_state(self) -> dict[str, Any]:
        # An uploaded video reads one spelling, a video of the platform the other.
        frames = {
            "start_frame": self.start_frame,
            "startFrameIndex": self.start_frame,
            "num_frames": self.num_frames,
            "framesCount": self.num_frames,
            "stride": self.stride,
            "direction": self.direction,
        }
        tracker = {"tracker": "botsort", "tracker_settings": self.tracking_config} if self.tracking else {}
        return {**self.image_state(), **_given(frames), **tracker}


class Kind(StrEnum):
    """What predictions are made of."""

    IMAGES = "images"
    DIRECTORY = "a directory"
    VIDEOS = "videos"
    URLS = "URLs"
    PLATFORM_IMAGES = "images of the platform"
    PROJECT = "projects"


_ALWAYS = frozenset({"conf", "img_size", "classes", "settings", "timeout"})
_OF_IMAGES = frozenset({"batch_size", "model_prediction_suffix"})
_OF_PLATFORM = _OF_IMAGES | {"upload_mode", "output_project_id"}
_OF_VIDEOS = {"tracking", "tracking_config", "start_frame", "num_frames", "stride", "direction"}
_HEEDED: dict[Kind, frozenset[str]] = {
    Kind.IMAGES: _OF_IMAGES,
    Kind.DIRECTORY: frozenset({"recursive"}),
    Kind.VIDEOS: _OF_IMAGES | _OF_VIDEOS,
    Kind.URLS: frozenset({"model_prediction_suffix"}),
    Kind.PLATFORM_IMAGES: _OF_PLATFORM,
    Kind.PROJECT: _OF_PLATFORM | {"iou_merge_threshold", "cache_project_on_model"},
}


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    :param shown: what messages call it.
    :param facts: what its prediction is told to be of.
    :param extension: of the file that goes up.
    :param size: bytes that go up.
    :param open: returns them.
    """

    shown: str
    facts: Mapping[str, Any]
    extension: str = ""
    size: int = 0
    open: Callable[[], BinaryIO] = field(default=io.BytesIO, repr=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one inference request is about.

    :param route: of its start.
    :param state: what the start says besides settings.
    :param items: the inputs, in order; none where the platform knows them.
    :param is_upload: whether the items go up with the start.
    :param one_each: whether each item gets one prediction.
    :param may_restart: whether it may be begun again: not when the app writes results to the platform, nor when
        nothing tells which are missing.
    :param skip: predictions that an earlier request has brought.
    :param is_direct: whether the start is answered by the one prediction itself.
    :param secrets: what no message may show of the state.
    """

    route: str
    state: Mapping[str, Any]
    items: tuple[Item, ...] = ()
    is_upload: bool = False
    one_each: bool = False
    may_restart: bool = True
    skip: int = 0
    is_direct: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def after(self, count: int) -> Batch:
        """Return what is left of it after some predictions."""
        if self.one_each and self.is_upload:
            return replace(self, items=self.items[count:])
        return replace(self, skip=count)

    def halves(self) -> tuple[Batch, Batch]:
        middle = len(self.items) // 2
        return replace(self, items=self.items[:middle]), replace(self, items=self.items[middle:])

    @property
    def shown(self) -> str:
        if not self.items:
            return self.route
        names = [item.shown for item in self.items[:_SHOWN_NAMES]]
        return ", ".join(names) + (" …" if len(self.items) > _SHOWN_NAMES else "")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be predicted.

    :param batches: the requests.
    :param kinds: what they are about.
    """

    batches: Iterator[Batch]
    kinds: frozenset[Kind]


def batches_of(inputs: Any, options: PredictOptions, platform: Platform) -> Flow[Asked]:
    """Cut inputs into requests.

    :param inputs: a path of an image, a video or a directory; an array of height × width × channels, ``uint8``, RGB; an
        image of PIL; an image file's bytes; a URL of an image that the app fetches; a list of these; or ids, one or a
        list: ``{"image_ids": …}``, ``{"video_ids": …}``, ``{"dataset_ids": …}``, ``{"project_ids": …}``, or each in
        the singular.
    :raises InvalidInput: before anything is sent.
    """
    if isinstance(inputs, Mapping):
        asked = yield from _remote_batches(dict(inputs), options, platform)
    elif options.mode is not None:
        raise InvalidInput("only predictions for what the platform holds can be written there", argument="upload_mode")
    else:
        found = yield from call(_local_inputs, inputs, options.recursive)
        kinds = {_kind_of(entry) for entry in found}
        is_directory = any(
            _is_directory(entry) for entry in (inputs if isinstance(inputs, (list, tuple)) else [inputs])
        )
        asked = Asked(_local_batches(found, options), frozenset(kinds | ({Kind.DIRECTORY} if is_directory else set())))
    options.warn_of_ignored(asked.kinds)
    return asked


_PLURALS = {"image_id": "image_ids", "video_id": "video_ids", "dataset_id": "dataset_ids", "project_id": "project_ids"}


def _remote_batches(inputs: dict[Any, Any], options: PredictOptions, platform: Platform) -> Flow[Asked]:
    ids: dict[str, list[int]] = {}
    for key, value in inputs.items():
        name = _PLURALS.get(key, key)
        if name not in _PLURALS.values() or name in ids:
            raise _no_inputs()
        ids[name] = _ids(value, key)
    batches: list[Batch] = []
    match ids:
        case {"image_ids": numbers, **rest} if not rest:
            kind = Kind.PLATFORM_IMAGES
            items = tuple(Item(f"the image {number}", {}) for number in numbers)
            batches += [
                Batch(
                    "inference_batch_ids_async",
                    {"images_ids": numbers, **options.platform_state()},
                    items,
                    one_each=options.mode is None,
                    may_restart=options.mode is None,
                )
            ]
        case {"video_ids": numbers, **rest} if not rest:
            kind = Kind.VIDEOS
            for number in numbers:
                batches += [Batch("inference_video_id_async", {"video_id": number, **options.video_state()})]
        case {"project_ids": numbers, **rest} if not rest or (rest.keys() == {"dataset_ids"} and len(numbers) == 1):
            kind = Kind.PROJECT
            batches += [_of_project(number, rest, options) for number in numbers]
        case {"dataset_ids": numbers, **rest} if not rest:
            kind = Kind.PROJECT
            batches += [_of_project((yield from _project_of(numbers, platform)), ids, options)]
        case _:
            raise _no_inputs()
    return Asked(iter(batches), frozenset({kind}))


def _of_project(number: int, datasets: Mapping[str, list[int]], options: PredictOptions) -> Batch:
    state = {"project_id": number, **options.project_state(), **datasets}
    return Batch("inference_project_id_async", state, may_restart=False)


def _no_inputs() -> InvalidInput:
    return InvalidInput(
        "as a dictionary they name one of image_ids, video_ids, project_ids (one with dataset_ids or without) and "
        "dataset_ids, each by one id or a list",
        argument="inputs",
    )


def _ids(values: Any, name: str) -> list[int]:
    try:
        return whole_numbers(values)
    except ValueError:
        raise InvalidInput(f"{name} must be positive whole numbers, at least one", argument="inputs") from None


class _Dataset(BaseModel):
    project_id: int = Field(alias="projectId")


def _project_of(datasets: Sequence[int], platform: Platform) -> Flow[int]:
    projects = set()
    for number in datasets:
        doing = f"reading the dataset {number}"
        projects.add((yield from platform.ask("datasets.info", {"id": number}, _Dataset, doing)).project_id)
    if len(projects) > 1:
        raise InvalidInput("the datasets belong to several projects", remedy="name those of one", argument="inputs")
    return projects.pop()


def _local_inputs(inputs: Any, recursive: bool) -> list[Any]:
    """Return paths, URLs and images, every path being a file that is there."""
    if not isinstance(inputs, (list, tuple)):
        return _one_input(inputs, recursive, "they")
    if not inputs:
        raise InvalidInput("there is none", argument="inputs")
    return [found for number, entry in enumerate(inputs) for found in _one_input(entry, recursive, f"number {number}")]


def _one_input(entry: Any, recursive: bool, shown: str) -> list[Any]:
    if is_url(entry):
        return [_Url(entry)]
    if isinstance(entry, (str, Path)):
        path = Path(entry)
        return _files_in(path, recursive) if path.is_dir() else [_checked(path)]
    if isinstance(entry, (bytes, bytearray, memoryview)):
        if not len(entry):
            raise InvalidInput(f"{shown}: there are no bytes", argument="inputs")
        return [bytes(entry)]
    if _is_array(entry) or _is_picture(entry):
        return [entry]
    raise InvalidInput(
        f"{shown}: neither a path, a URL, an array, an image of PIL nor an image's bytes, and no dictionary of ids",
        argument="inputs",
    )


class _Url(str):
    """A URL of an image that the app fetches."""

    __slots__ = ()

    @property
    def shown(self) -> str:
        """The URL as far as it holds no signature."""
        url = urlsplit(self)
        return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))

    @property
    def secrets(self) -> tuple[str, ...]:
        url = urlsplit(self)
        return tuple(filter(None, (url.query, url.password)))


def _kind_of(entry: Any) -> Kind:
    if isinstance(entry, _Url):
        return Kind.URLS
    return Kind.VIDEOS if isinstance(entry, Path) and entry.suffix.lower() in VIDEOS else Kind.IMAGES


def _is_directory(entry: Any) -> bool:
    return isinstance(entry, (str, Path)) and not is_url(entry) and Path(entry).is_dir()


def _files_in(directory: Path, recursive: bool) -> list[Path]:
    entries = sorted(directory.rglob("*") if recursive else directory.iterdir())
    found = [entry for entry in entries if entry.suffix.lower() in IMAGES | VIDEOS and entry.is_file()]
    if not found:
        hint = "" if recursive else "; option recursive looks into directories below, too"
        raise InvalidInput(f"{directory} holds no images or videos{hint}", argument="inputs")
    return [_checked(path) for path in found]


def _checked(path: Path) -> Path:
    try:
        if not path.is_file():
            raise InvalidInput(f"{path} is no file", argument="inputs")
        if path.stat().st_size == 0:
            raise InvalidInput(f"{path} is empty", argument="inputs")
    except OSError as error:
        raise from_os_error(error, f"reading {path}", argument="inputs") from error
    return path


def _is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "tobytes"))


def _is_picture(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("mode", "size", "convert", "save"))


def _local_batches(inputs: Sequence[Any], options: PredictOptions) -> Iterator[Batch]:
    """Yield requests; arrays are encoded as their request comes up."""
    images: list[Item] = []
    videos = []
    state = options.image_state()

    def batch() -> Batch:
        made = Batch("inference_batch_async", state, tuple(images), is_upload=True, one_each=True)
        images.clear()
        return made

    for number, entry in enumerate(inputs):
        if isinstance(entry, _Url):
            if images:
                yield batch()
            yield _of_url(entry, options)
            continue
        item = _item_of_path(entry) if isinstance(entry, Path) else _item_of_image(entry, number)
        if item.extension in VIDEOS:
            videos.append(item)
            continue
        if images and sum(one.size for one in images) + item.size > _BATCH_BYTES:
            yield batch()
        images.append(item)
        if len(images) == _BATCH_FILES:
            yield batch()
    if images:
        yield batch()
    for item in videos:
        yield Batch("inference_video_async", options.video_state(), (item,), is_upload=True)


def _item_of_path(path: Path) -> Item:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"reading {path}", argument="inputs") from error
    extension = path.suffix.lower()
    return Item(
        str(path),
        {"name": path.name, "path": str(path)},
        extension if _EXTENSION.fullmatch(extension) else "",
        size,
        lambda: path.open("rb"),
    )


def _item_of_image(image: Any, number: int) -> Item:
    """Return an image that is in memory: an array, an image of PIL, or a file's bytes."""
    if isinstance(image, bytes):
        return _item_in_memory(f"image {number}", image, _extension_of(image))
    if _is_array(image):
        return _item_in_memory(f"array {number}", png(image), ".png")
    name = Path(str(getattr(image, "filename", "") or f"image {number}")).name
    return _item_in_memory(name, _png_of_picture(image, name), ".png")


def _item_in_memory(name: str, content: bytes, extension: str) -> Item:
    return Item(name, {"name": name}, extension, len(content), partial(io.BytesIO, content))


def _png_of_picture(picture: Any, name: str) -> bytes:
    """Return an image of PIL as a PNG file, as the app sees images: grey, or RGB with or without transparency."""
    buffer = io.BytesIO()
    try:
        mode = picture.mode if picture.mode in ("L", "RGB", "RGBA") else "RGBA" if "A" in picture.mode else "RGB"
        (picture if picture.mode == mode else picture.convert(mode)).save(buffer, format="PNG")
    except (OSError, ValueError) as error:  # of a file that is cut, for one: PIL reads it only now
        raise InvalidInput(f"{name} cannot be read: {excerpt(str(error))}", argument="inputs") from None
    return buffer.getvalue()


def _extension_of(content: bytes) -> str:
    """Return what a file is called that begins like this; empty when nobody knows."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((extension for start, extension in _STARTS.items() if content.startswith(start)), "")


def _of_url(url: _Url, options: PredictOptions) -> Batch:
    state = {"image_url": str(url), **_given({"model_prediction_suffix": options.model_prediction_suffix})}
    item = Item(url.shown, {"name": PurePosixPath(urlsplit(url).path).name or url.shown, "url": url.shown})
    return Batch("inference_image_url", state, (item,), one_each=True, is_direct=True, secrets=url.secrets)


def png(array: Any) -> bytes:
    """Return an image array as a PNG file.

    :param array: height × width, or height × width × 1, 3 (RGB) or 4 channels, of type ``uint8``.
    :raises InvalidInput: for another shape or type.
    """
    height, width, *rest = (*array.shape, 0, 0)[: max(2, len(array.shape))]
    channels = rest[0] if rest else 1
    kinds = {1: 0, 3: 2, 4: 6}  # of PNG: grey, RGB, RGBA
    if str(array.dtype) != "uint8" or len(array.shape) not in (2, 3) or channels not in kinds or not height * width:
        raise InvalidInput(
            f"an array of shape {tuple(array.shape)} and type {array.dtype} is no image: height × width × 1, 3 or 4 "
            "channels of uint8 are",
            argument="inputs",
        )
    raw = array.tobytes()
    line = width * channels
    rows = b"".join(b"\0" + raw[start : start + line] for start in range(0, len(raw), line))
    header = struct.pack(">IIBBBBB", width, height, 8, kinds[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


class Progress(BaseModel):
    """What ``get_inference_progress`` and ``pop_inference_results`` say of a request."""

    stage: str | None = None
    progress: dict[str, Any] | None = None
    preparing_progress: dict[str, Any] | None = None
    pending_results: int | list[dict[str, Any]] | None = None
    exception: dict[str, Any] | str | None = None
    finished: bool = False
    cancel_inference: bool = False
    paused: bool = False

    @property
    def results(self) -> list[dict[str, Any]]:
        """What was taken off."""
        return self.pending_results if isinstance(self.pending_results, list) else []

    @property
    def state(self) -> tuple[Any, ...]:
        """What changes when the request gets any further."""
        return self.stage, self.progress, self.preparing_progress

    @property
    def is_worth_a_pop(self) -> bool:
        return bool(self.pending_results)


class Run:
    """Predictions that are being made, request after request; the one that runs can be ended at any time.

    :param session: the app.
    :param batches: what to ask.
    :param options: how.
    :param mover: sends files.
    :param control: how to cancel.
    :param request: of the first batch, which is begun already.
    """

    def __init__(
        self,
        session: Session,
        batches: Iterable[Batch],
        options: PredictOptions,
        mover: Mover,
        control: Control,
        request: str | None = None,
    ) -> None:
        self._session = session
        self._rest = iter(batches)
        self._again: deque[Batch] = deque()
        self._options = options
        self._settings = options.inference_settings
        self._mover = mover
        self._control = control
        self._request = request
        self._batch: Batch | None = next(self._rest) if request else None
        self._received = 0  # of the running request, those of before that are skipped included
        self._restarts = 0

    def next(self) -> Flow[list[dict[str, Any]] | None]:
        """Return the next predictions, in order, or ``None`` when there are no more.

        :raises InvalidInput: naming the input that the app cannot take.
        :raises RegistryUnavailable: when results were lost that cannot be made again.
        """
        try:
            while True:
                if self._batch is None:
                    batch = yield from call(self._take)
                    if batch is None:
                        return None
                    if batch.is_direct:
                        return (yield from self._predicted(batch))
                    yield from self._begin(batch)
                elif found := (yield from self._results(self._batch)):
                    return found
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the request that runs, if one does. Takes at most 4 s, whatever has been cancelled."""
        request, self._request, self._batch = self._request, None, None
        if request is None:
            return
        settings = self._session.settings
        with suppress(Exception), network.client(settings) as client:
            driver = SyncDriver(client, policy=RequestPolicy(settings, seconds=_GOODBYE_SECONDS))
            for route in ("stop_inference", "clear_inference_request"):
                driver.run(self._session.inference(route, request, self._settings, may_repeat=False))

    def _take(self) -> Batch | None:
        return self._again.popleft() if self._again else next(self._rest, None)

    def _begin(self, batch: Batch) -> Flow[None]:
        if not batch.is_upload:
            self._request = yield from _begin(self._session, batch, self._options)
        else:
            answer = yield from call(self._upload, batch, _state_of(batch, self._options))
            if answer.status in _MAYBE_ONE_INPUT:
                yield from self._refused(batch, answer)
                return
            self._request = self._uuid_in(batch, answer)
        self._batch, self._received = batch, 0

    def _predicted(self, batch: Batch) -> Flow[list[dict[str, Any]]]:
        """Have the app fetch and predict one image while we wait."""
        state = _state_of(batch, self._options)
        seconds = self._options.timeout
        found = yield from self._session.predict_one(batch.route, state, batch.shown, seconds, batch.secrets)
        return [{**found, **batch.items[0].facts}]

    def _upload(self, batch: Batch, state: Mapping[str, Any]) -> MovedResponse:
        """Send files and begin an inference of them. Not to be done twice, unless it was not done at all."""
        form = _Form(batch.items, json.dumps(state))
        url, headers = self._session.upload_address(batch.route)

        def send() -> MovedResponse:
            answer = self._mover.put(
                url, form.reader, form.size, {**headers, "Content-Type": form.content_type}, method="POST"
            )
            if answer.status in (429, 503):
                answer.raise_for_status(f"sending {batch.shown}")
            return answer

        return with_retries(
            send, cancel=self._control.cancel, passing=UNPROCESSED, seconds=self._session.settings.timeout_seconds
        )

    def _uuid_in(self, batch: Batch, answer: MovedResponse) -> str:
        doing = f"beginning an inference of {batch.shown}"
        answer.raise_for_status(doing)
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(answer.body)["inference_request_uuid"])
        raise RegistryUnavailable(f"{doing}: the answer names no request")

    def _refused(self, batch: Batch, answer: MovedResponse) -> Flow[None]:
        """Find the input that the app fails on: it decodes all files at once and does not say which it was."""
        if not (yield from self._session.status()).get("is_deployed"):
            raise ModelNotFound(f"no model is loaded into {self._session.shown}")
        said = excerpt(answer.body.decode("utf-8", "replace"), secrets_of(self._session.settings))
        self._split(batch, f"the server answered {answer.status}: {said}")

    def _split(self, batch: Batch, reason: str) -> None:
        """Try both halves of a batch by themselves; a single input is at fault."""
        if len(batch.items) < 2:
            raise InvalidInput(f"{self._session.shown} cannot take {batch.shown}: {reason}", argument="inputs")
        self._again.extendleft(reversed(batch.halves()))

    def _results(self, batch: Batch) -> Flow[list[dict[str, Any]] | None]:
        """Wait for results of the running request; ``None`` when it has come to its end, or is begun again."""
        pause, seen, moved = _FIRST_PAUSE, None, time.monotonic()
        while True:
            look = yield from self._ask("get_inference_progress")
            if look.is_worth_a_pop:
                look = yield from self._pop(batch)
                if self._batch is None:
                    return None
                if found := self._received_now(batch, look.results):
                    return found
            if look.exception:
                yield from self._failed(batch, look.exception)
                return None
            if look.finished and not look.is_worth_a_pop:
                yield from self._end(batch, look)
                return None
            if look.state != seen:
                pause, seen, moved = _FIRST_PAUSE, look.state, time.monotonic()
            if time.monotonic() - moved > self._options.timeout:
                raise RegistryUnavailable(
                    f"{self._session.shown} has got no further with {batch.shown} for {self._options.timeout:.0f} s"
                )
            yield from sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _ask(self, route: str, *, may_repeat: bool = True) -> Flow[Progress]:
        assert self._request is not None
        answer = yield from self._session.inference(route, self._request, self._settings, may_repeat=may_repeat)
        return checked(answer, Progress, route)

    def _pop(self, batch: Batch) -> Flow[Progress]:
        """Take results off the app. An answer that is lost takes them along, so it is never simply asked for again."""
        try:
            return (yield from self._ask("pop_inference_results", may_repeat=False))
        except (NotSent, Cancelled):  # not even a 503 says that it was not done: a proxy may have answered
            raise
        except RegistryUnavailable as error:
            if not batch.may_restart or self._restarts >= _RESTARTS:
                raise RegistryUnavailable(f"{error.message}; it took predictions along that are lost now") from None
            _log.warning("%s; what is missing is predicted again", error.message)
        self._restarts += 1
        received = self._received
        yield from call(self.close)
        self._again.appendleft(batch.after(received))
        return Progress()

    def _received_now(self, batch: Batch, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        start, self._received = self._received, self._received + len(results)
        if batch.one_each and batch.items and self._received > len(batch.items):
            raise RegistryUnavailable(f"{self._session.shown} gave more predictions than {batch.shown} are inputs")
        found = []
        for number, result in enumerate(results, start):
            if number >= batch.skip:
                item = batch.items[number if batch.one_each else 0] if batch.items else None
                found.append({**result, **(item.facts if item else {})})
        return found

    def _failed(self, batch: Batch, exception: Mapping[str, Any] | str) -> Flow[None]:
        said = exception if isinstance(exception, str) else f"{exception.get('type')}: {exception.get('message')}"
        reason = excerpt(said, secrets_of(self._session.settings))
        received = self._received
        yield from call(self.close)
        if batch.is_upload and batch.one_each:
            self._split(batch.after(received), reason)
        else:
            raise InvalidInput(f"{self._session.shown} cannot take {batch.shown}: {reason}", argument="inputs")

    def _end(self, batch: Batch, look: Progress) -> Flow[None]:
        if look.cancel_inference:
            raise RegistryUnavailable(f"somebody has stopped the inference of {batch.shown}")
        if batch.one_each and self._received != len(batch.items):
            raise RegistryUnavailable(
                f"{self._session.shown} gave {self._received} predictions for {len(batch.items)} inputs"
            )
        assert self._request is not None
        request, self._request, self._batch = self._request, None, None
        yield from self._session.inference("clear_inference_request", request, self._settings)


def start(session: Session, batch: Batch, options: PredictOptions) -> Flow[Ticket]:
    """Begin a request of what the platform holds, and leave it to itself."""
    request = yield from _begin(session, batch, options)
    deployment = str(session.task_id) if session.task_id else None
    return Ticket(deployment=deployment, request=request, patience=options.timeout)


def headway(session: Session, ticket: Ticket) -> Flow[Headway]:
    """Return how far a request is. Past 500 unread results, the app waits until somebody fetches them."""
    route = "get_inference_progress"
    look = checked((yield from session.inference(route, ticket.request, {})), Progress, route)
    return Headway(
        state=json.dumps(look.state), is_over=look.finished or look.exception is not None, is_full=look.paused
    )


def stop(session: Session, ticket: Ticket) -> Flow[str]:
    """End a request. The app finishes the batch that it is at."""
    for route in ("stop_inference", "clear_inference_request"):
        yield from session.inference(route, ticket.request, {}, may_repeat=False)
    return f"the inference by {session.shown} is stopped"


def _begin(session: Session, batch: Batch, options: PredictOptions) -> Flow[str]:
    return session.start(batch.route, _state_of(batch, options))


def _state_of(batch: Batch, options: PredictOptions) -> dict[str, Any]:
    return {"settings": options.inference_settings, **batch.state}


def require_tracking(session: Session, options: PredictOptions) -> Flow[None]:
    """Raise unless the app can follow objects, when that is wanted."""
    if options.tracking and not (yield from session.get_session_info()).get("tracking_on_videos_support"):
        raise NotSupported(f"{session.shown} does not follow objects in videos; predict without tracking")


class _Form:
    """Files and a state as multipart/form-data, in the vendor's order. Nothing of a file is kept in memory.

    Every file goes up under a name of its own: the app stores uploads under their bare names, for all its clients.
    """

    def __init__(self, items: Sequence[Item], state: str) -> None:
        boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._parts: list[tuple[int, Callable[[], BinaryIO]]] = []
        for item in items:
            kind = "video/mp4" if item.extension in VIDEOS else "application/octet-stream"
            head = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="files"; '
                f'filename="{uuid.uuid4().hex}{item.extension}"\r\nContent-Type: {kind}\r\n\r\n'
            )
            self._add(head.encode())
            self._parts.append((item.size, item.open))
            self._add(b"\r\n")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="state"\r\nContent-Type: text/plain\r\n\r\n'
        self._add(f"{head}{state}\r\n--{boundary}--\r\n".encode())
        self.size = sum(size for size, _ in self._parts)

    def _add(self, text: bytes) -> None:
        self._parts.append((len(text), partial(io.BytesIO, text)))

    def reader(self) -> _FormReader:
        return _FormReader(self._parts)


class _FormReader:
    def __init__(self, parts: Iterable[tuple[int, Callable[[], BinaryIO]]]) -> None:
        self._parts = iter(parts)
        self._file: BinaryIO | None = None
        self._left = 0

    def read(self, size: int, /) -> bytes:
        while not self._left:
            self.close()
            part = next(self._parts, None)
            if part is None:
                return b""
            self._left, opened = part
            self._file = opened()
        assert self._file is not None
        block = self._file.read(min(size, self._left))  # nothing when the file has become shorter
        self._left -= len(block)
        return block

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}

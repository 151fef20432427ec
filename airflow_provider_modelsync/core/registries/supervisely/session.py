"""The client of one serving app: what it says of its model, loading, inference requests, its end.

An app is reached by its own address, or by the platform, which passes calls on and waits 60 s for each. Facts come from
supervisely 6.74.51 (``nn/model/model_api.py``, ``nn/inference/inference.py``) on the wire.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.steps import Flow, call, send, sleep
from airflow_provider_modelsync.core.http.faults import NotSent
from airflow_provider_modelsync.core.http.policy import ApiClient, raise_for_status, read_json
from airflow_provider_modelsync.core.redact import guard_logs
from airflow_provider_modelsync.core.registries.supervisely.api import (
    PROXY_SECONDS,
    Object,
    Platform,
    SuperviselySettings,
    Text,
    checked,
    fields_of,
)

T = TypeVar("T")

LOAD_SECONDS = 3600.0
PRETRAINED, CUSTOM = "Pretrained models", "Custom models"
INFO_FILE = "experiment_info.json"
FROZEN = frozenset({"Model is frozen.", "Model is already frozen."})

_RUNTIMES = {
    "pytorch": "PyTorch",
    "torch": "PyTorch",
    "pt": "PyTorch",
    "pth": "PyTorch",
    "onnxruntime": "ONNXRuntime",
    "onnx": "ONNXRuntime",
    "tensorrt": "TensorRT",
    "trt": "TensorRT",
    "engine": "TensorRT",
}
# A proxy that lost patience, or an app that went away behind it, says nothing about the load itself.
_LOST = frozenset({408, 502, 503, 504, 524})
_LOAD_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between looks at a load; the last one stays


class AppStatus(BaseModel):
    """What ``get_status`` says; answered during a load, too."""

    is_deployed: bool = False
    progress: Object = {}
    gpu_memory: Object = {}
    ram_memory: Object = {}


class ModelInfo(BaseModel):
    """What ``get_deploy_info`` says of the loaded model."""

    model_name: Text = ""
    checkpoint_name: Text = ""
    custom_checkpoint_path: Text = ""
    model_source: Text = ""
    device: Text = ""
    runtime: Text = ""


@dataclass(frozen=True, slots=True)
class Load:
    """A model for a serving app.

    :param source: ``PRETRAINED`` or ``CUSTOM``.
    :param name: of the pretrained model.
    :param files: what a custom model consists of: ``checkpoint`` and more.
    :param info: the custom model's experiment.
    :param device: such as ``"cpu"`` or ``"cuda:0"``; the app chooses when left out.
    :param runtime: the app chooses when left out.
    """

    source: str
    name: str | None = None
    files: Mapping[str, str] | None = None
    info: Mapping[str, Any] | None = None
    device: str | None = None
    runtime: str | None = None

    @classmethod
    def pretrained(cls, name: str, *, device: str | None = None, runtime: str | None = None) -> Load:
        return cls(PRETRAINED, name, device=device, runtime=runtime_of(runtime))

    @classmethod
    def custom(
        cls,
        files: Mapping[str, str],
        info: Mapping[str, Any],
        *,
        device: str | None = None,
        runtime: str | None = None,
    ) -> Load:
        kind = runtime_of(runtime) or _RUNTIMES.get(files["checkpoint"].rpartition(".")[2].lower())
        return cls(CUSTOM, None, files, info, device, kind)

    @property
    def state(self) -> dict[str, Any]:
        """The request, as ``deploy_from_api`` takes it."""
        params: dict[str, Any] = {"model_source": self.source, "device": self.device, "runtime": self.runtime}
        if self.source == CUSTOM:
            params |= {"model_files": dict(self.files or {}), "model_info": dict(self.info or {})}
        return {"deploy_params": params, "model_name": self.name}

    def is_served(self, info: ModelInfo) -> bool:
        """Whether an app says that it serves this model."""
        if info.model_source and info.model_source != self.source:
            return False
        if self.device and info.device and info.device != self.device:
            return False
        if self.source == PRETRAINED:
            return info.model_name == self.name
        return info.custom_checkpoint_path == (self.files or {}).get("checkpoint")

    def __str__(self) -> str:
        return self.name or (self.files or {}).get("checkpoint", "a custom model")


def runtime_of(text: str | None) -> str | None:
    """Return the wire's word for a runtime.

    :raises InvalidInput: for an unknown one.
    """
    if text is None:
        return None
    if text.lower() not in _RUNTIMES:
        raise InvalidInput(f"the runtime {show(text)} is none of PyTorch, ONNXRuntime and TensorRT", argument="runtime")
    return _RUNTIMES[text.lower()]


class Session:
    """One serving app.

    :param settings: the connection; made into one that holds the app's token as a secret of its own.
    :param base: the app's address without its token.
    :param platform: the platform that the app belongs to, for calls that carry the API token.
    :param task_id: the app's task, where it is reached by the platform.
    :param token: the app's session token.
    """

    def __init__(
        self,
        settings: SuperviselySettings,
        base: str,
        *,
        platform: Platform | None = None,
        task_id: int | None = None,
        token: SecretStr | None = None,
    ) -> None:
        self.settings = settings.model_copy(update={"session_token": token}) if token else settings
        self.task_id = task_id
        self.shown = f"the task {task_id}" if task_id else f"the deployment at {base}"
        self._platform = platform
        if token:
            plain = token.get_secret_value()
            guard_logs([plain])
            if platform:
                platform.hide(plain)
            base = f"{base}/net/{plain}"
        self._api = ApiClient(self.settings, base, credentials=platform.key if platform else dict)

    def __repr__(self) -> str:
        return f"Session({self.shown})"

    # What the app says of its model

    def get_info(self) -> Flow[dict[str, Any]]:
        """Return what is loaded and how it runs.

        :raises ModelNotFound: when nothing is loaded.
        """
        return self._loaded("get_deploy_info", "reading what is served")

    def get_settings(self) -> Flow[dict[str, Any] | str]:
        """Return the inference settings and their defaults: an object, or YAML text."""
        doing = "reading the inference settings"
        found = (yield from self._command("get_custom_inference_settings", doing)).get("settings")
        return found if isinstance(found, (dict, str)) else {}

    def get_tracking_settings(self) -> Flow[dict[str, Any]]:
        """Return the tracker's settings; empty when the app has no tracker."""
        found = (yield from self._loaded("get_tracking_settings", "reading the tracker's settings")).get("botsort")
        return found if isinstance(found, dict) else {}

    def get_model_meta(self) -> Flow[dict[str, Any]]:
        """Return classes and tags, as the app's project meta."""
        return self._command("get_output_classes_and_tags", "reading classes and tags")

    def get_classes(self) -> Flow[list[str]]:
        """Return the names of the model's classes."""
        meta = yield from self.get_model_meta()
        return [str(entry["title"]) for entry in meta.get("classes") or [] if "title" in entry]

    def get_session_info(self) -> Flow[dict[str, Any]]:
        """Return what kinds of inference the app offers."""
        return self._loaded("get_session_info", "reading what the app offers", {"state": {}, "context": {}})

    def list_pretrained_models(self) -> Flow[list[str]]:
        """Return the names of the models that the app can load by name."""
        return self._listing("list_pretrained_models", list[str])

    def list_pretrained_model_infos(self) -> Flow[list[dict[str, Any]]]:
        """Return the models that the app can load by name, described."""
        return self._listing("list_pretrained_model_infos", list[dict[str, Any]])

    def status(self) -> Flow[dict[str, Any]]:
        """Return whether a model is loaded, and how far a load is."""
        return self._command("get_status", "reading the app's status")

    def is_deployed(self) -> Flow[bool]:
        """Whether a model is loaded and answers; ``False`` for whatever keeps it from saying so."""
        try:
            response = yield from self._call("is_ready", may_repeat=False)
        except Cancelled:
            raise
        except ModelSyncError:
            return False
        return response.is_success

    def freeze_model(self) -> Flow[str]:
        """Move the model out of the GPU's memory until the next inference; return what the app says.

        One of :data:`FROZEN` when it worked; another text for a model on the CPU, or in another runtime than PyTorch.
        """
        return str((yield from self._command("freeze_model", "freezing the model")).get("message", ""))

    def shutdown(self) -> Flow[str]:
        """Ask for the app's end; one that has ended is fine. Return ``"terminating"``, ``"stopped"`` or so."""
        if self._platform and self.task_id:
            doing = f"stopping {self.shown}"
            try:
                answer = yield from self._platform.ask("tasks.stop", {"id": self.task_id}, dict[str, Any], doing)
            except ModelNotFound:
                return "stopped"
            return str(answer.get("status") or "terminating")
        try:
            # The SDK's own call cannot be sent, and "tasks.stop" does not exist on an app.
            response = yield from send(self._api.request("POST", "sly/shutdown", json={}))
        except NotSent:
            return "stopped"
        except RegistryUnavailable:  # the process may end before it answers
            if (yield from self._is_running()):
                raise
            return "stopped"
        is_running = yield from self._is_running()
        if is_running or response.status_code not in (404, 502):  # what a proxy says where there is nothing any more
            raise_for_status(response, f"shutting {self.shown} down")
        return "terminating" if is_running else "stopped"

    # Loading

    def check(self, load: Load) -> Flow[None]:
        """Raise unless the app knows a pretrained model: a failed load would leave nothing served.

        :raises InvalidInput: naming what the app knows.
        """
        if load.source == PRETRAINED:
            known = yield from self.list_pretrained_models()
            if load.name not in known:
                raise InvalidInput(
                    f"{self.shown} has no pretrained model {show(load.name or '')}; it knows {', '.join(known)}",
                    argument="model",
                )

    def load(self, load: Load, *, seconds: float = LOAD_SECONDS) -> Flow[None]:
        """Load a model and return once it answers. The app drops the model that it serves first.

        :param seconds: how long it may take.
        :raises InvalidInput: for an unknown pretrained model; what is served stays.
        :raises DeploymentFailed: when the app cannot load it; then nothing is served.
        """
        began = time.monotonic()
        if not (yield from self.begin_load(load, seconds=seconds)):
            yield from self._await(load, began + seconds)

    def begin_load(self, load: Load, *, seconds: float = LOAD_SECONDS) -> Flow[bool]:
        """Ask for a model to be loaded; return whether it is, or still on its way behind a proxy's time limit."""
        yield from self.check(load)
        doing = f"loading {load} into {self.shown}"
        began = time.monotonic()
        try:
            response = yield from self._send_load(load, seconds)
        except NotSent:
            raise
        except RegistryUnavailable:
            return False
        if response.is_success:
            return True
        took = time.monotonic() - began
        if response.status_code in _LOST or (response.status_code >= 500 and took > PROXY_SECONDS - 5):
            return False
        if response.status_code >= 500 and not (yield from self._status()).is_deployed:
            raise DeploymentFailed(f"{doing}: the app answered {response.status_code}; nothing is served now")
        raise_for_status(response, doing)
        return True

    def served(self) -> Flow[ModelInfo | None]:
        """Return what is loaded, or ``None``; asked once, for whoever asks again anyway."""
        doing = f"reading the status of {self.shown}"
        response = yield from self._call("get_status", may_repeat=False)
        raise_for_status(response, doing, not_found=ModelNotFound)
        if not read_json(response, AppStatus, doing).is_deployed:
            return None
        try:
            return checked((yield from self.get_info()), ModelInfo, doing)
        except ModelNotFound:
            return None

    def _send_load(self, load: Load, seconds: float) -> Flow[httpx.Response]:
        state = load.state
        if self._platform and self.task_id:
            return (yield from self._platform.app_call(self.task_id, "deploy_from_api", state, may_repeat=False))
        state = {**state, "deploy_params": {"model_files": {}, "model_info": {}, **state["deploy_params"]}}
        request = self._api.request("POST", "deploy_from_api", json={"state": state}, seconds=seconds)
        return (yield from send(request))

    def _await(self, load: Load, deadline: float) -> Flow[None]:
        """Look until a model is loaded."""
        was_dropped = False
        for look in range(1 << 30):
            try:
                info = yield from self.served()
            except RegistryUnavailable:  # says nothing about the load
                pass
            else:
                was_dropped |= info is None
                if info is not None and (was_dropped or load.is_served(info)):
                    return
            pause = _LOAD_PAUSES[min(look, len(_LOAD_PAUSES) - 1)]
            if time.monotonic() + pause > deadline:
                raise RegistryUnavailable(f"{load} is not loaded into {self.shown} yet; it may still come")
            yield from sleep(pause)

    # Inference requests

    def start(self, route: str, state: Mapping[str, Any]) -> Flow[str]:
        """Begin an inference of what the platform holds; return the request's id."""
        response = yield from self._asked(route, state, may_repeat=False)
        doing = f"beginning an inference by {self.shown}"
        raise_for_status(response, doing)
        uuid = fields_of(response, doing).get("inference_request_uuid")
        if not uuid:
            raise RegistryUnavailable(f"{doing}: the answer names no request")
        return str(uuid)

    def predict_one(
        self, route: str, state: Mapping[str, Any], shown: str, seconds: float, secrets: Sequence[str]
    ) -> Flow[dict[str, Any]]:
        """Have one prediction made by a call that is answered by it.

        :param shown: what messages call the input.
        :param seconds: how long it may take.
        :param secrets: what no message may show of the state.
        :raises ModelNotFound: when no model is loaded.
        """
        doing = f"predicting {shown} by {self.shown}"
        response = yield from self._asked(route, state, may_repeat=False, seconds=seconds, secrets=secrets)
        if response.status_code >= 500 and not (yield from self._status()).is_deployed:
            raise ModelNotFound(f"{doing}: no model is loaded")
        raise_for_status(response, doing, not_found=ModelNotFound)
        return fields_of(response, doing)

    def upload_address(self, route: str) -> tuple[str, dict[str, str]]:
        """Return URL and credentials for a request that carries files."""
        request = self._api.request("POST", route, json={})
        kept = ("x-api-key", "accept")
        return str(request.url), {name: value for name, value in request.headers.items() if name in kept}

    def inference(self, route: str, uuid: str, settings: Mapping[str, Any], *, may_repeat: bool = True) -> Flow[Any]:
        """Make one call about a running inference."""
        state = {"inference_request_uuid": uuid, "settings": dict(settings)}
        doing = f"asking {self.shown} for {route}"
        response = yield from self._asked(route, state, may_repeat=may_repeat)
        raise_for_status(response, doing)
        found: Any = read_json(response, object, doing)
        return found

    def _asked(
        self,
        route: str,
        state: Mapping[str, Any],
        *,
        may_repeat: bool,
        seconds: float | None = None,
        secrets: Sequence[str] = (),
    ) -> Flow[httpx.Response]:
        body: dict[str, Any] = {"state": dict(state), "context": {}}
        token = self._platform.token if self._platform else None
        if token:  # the app fetches images, and writes results, in the name of whoever asks
            body["api_token"] = token
        hidden = (token, *secrets) if token else tuple(secrets)
        request = self._api.request("POST", route, json=body, may_repeat=may_repeat, secrets=hidden, seconds=seconds)
        return (yield from send(request))

    # How calls are made

    def _call(
        self, command: str, body: Mapping[str, Any] | None = None, *, may_repeat: bool = True
    ) -> Flow[httpx.Response]:
        if self._platform and self.task_id:
            state = (body or {}).get("state", {})
            return (yield from self._platform.app_call(self.task_id, command, state, may_repeat=may_repeat))
        return (yield from send(self._api.request("POST", command, json=body or {}, may_repeat=may_repeat)))

    def _command(self, command: str, doing: str) -> Flow[dict[str, Any]]:
        doing = f"{doing} of {self.shown}"
        response = yield from self._call(command)
        raise_for_status(response, doing, not_found=ModelNotFound)
        return fields_of(response, doing)

    def _loaded(self, command: str, doing: str, body: Mapping[str, Any] | None = None) -> Flow[dict[str, Any]]:
        """Make a call that fails while nothing is loaded."""
        doing = f"{doing} of {self.shown}"
        response = yield from self._call(command, body, may_repeat=False)
        if response.status_code >= 500 and not (yield from self._status()).is_deployed:
            raise ModelNotFound(f"{doing}: no model is loaded")
        raise_for_status(response, doing, not_found=ModelNotFound)
        return fields_of(response, doing)

    def _listing(self, command: str, shape: type[T]) -> Flow[T]:
        doing = f"listing the pretrained models of {self.shown}"
        response = yield from send(self._api.request("POST", command, json={}, may_repeat=True))
        raise_for_status(response, doing, not_found=ModelNotFound)
        return read_json(response, shape, doing)

    def _status(self) -> Flow[AppStatus]:
        return checked((yield from self.status()), AppStatus, f"reading the status of {self.shown}")

    def _is_running(self) -> Flow[bool]:
        try:
            response = yield from send(self._api.request("POST", "is_running", json={}))
        except RegistryUnavailable:
            return False
        return response.is_success


def local_load(path: str, *, device: str | None = None, runtime: str | None = None) -> Flow[Load]:
    """Return a load of a checkpoint on a disk that this machine shares with the serving host.

    :param path: ``<experiment>/checkpoints/<name>``; the experiment holds ``experiment_info.json``.
    :raises InvalidInput: when it is not there.
    """
    files, info = yield from call(_read_local, path)
    return Load.custom(files, info, device=device, runtime=runtime)


def _read_local(path: str) -> tuple[dict[str, str], dict[str, Any]]:
    checkpoint = Path(os.path.abspath(path))
    directory = next((parent for parent in checkpoint.parents if (parent / INFO_FILE).is_file()), None)
    if directory is None or not checkpoint.is_file():
        raise InvalidInput(
            f"{show(path)} is no checkpoint of an experiment on a disk that this machine shares with the serving host",
            argument="model",
        )
    try:
        info = json.loads((directory / INFO_FILE).read_bytes())
        if isinstance(info.get("model_meta"), str):
            info["model_meta"] = json.loads((directory / info["model_meta"]).read_bytes())
        more = dict(info.get("model_files") or {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"the experiment of {show(path)} cannot be read: {type(error).__name__}", argument="model"
        ) from None
    files = {key: str(directory / value) for key, value in more.items()}
    return {**files, "checkpoint": str(checkpoint)}, info


def names_in(values: Sequence[str]) -> str:
    """Return names as they are listed in messages."""
    return ", ".join(values[:20]) + (" …" if len(values) > 20 else "")

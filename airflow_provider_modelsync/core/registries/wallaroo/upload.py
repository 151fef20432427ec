"""What is uploaded to Wallaroo: the options of a push, checked, and the one file that stands for a model.

Rules are those of the published guide and of the wallaroo 2026.1.3 client (``models/framework.py``,
``engine_config.py``). The names of options are the wire's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.archive.zip import FileLayout, ZipLayout, add_to_checksum, add_to_hash
from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import InvalidInput, from_os_error
from airflow_provider_modelsync.core.flow.steps import Flow, call
from airflow_provider_modelsync.core.models import require_json
from airflow_provider_modelsync.core.registries.wallaroo.api import VersionRecord
from airflow_provider_modelsync.core.transfer.form import Field, Form, Upload

_log = logging.getLogger("modelsync")

_STRIDE = 64 << 20  # bytes hashed between two looks whether the work is to end

# What one file of a model in each framework ends in; where there is nothing, only a zip will do.
_ENDINGS: dict[str, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "tensorflow": (),
    "python": (".py",),
    "keras": (".keras", ".h5", ".hdf5"),
    "sklearn": (".pkl", ".pickle", ".joblib"),
    "pytorch": (".pt", ".pth"),
    "xgboost": (".json", ".ubj", ".model", ".pkl", ".pickle"),
    "custom": (),
    "vllm": (),
    "sglang": (),
    "hugging-face-automatic-speech-recognition": (),
    "hugging-face-feature-extraction": (),
    "hugging-face-image-classification": (),
    "hugging-face-image-segmentation": (),
    "hugging-face-image-to-text": (),
    "hugging-face-object-detection": (),
    "hugging-face-question-answering": (),
    "hugging-face-sentiment-analysis": (),
    "hugging-face-stable-diffusion-text-2-img": (),
    "hugging-face-summarization": (),
    "hugging-face-text-classification": (),
    "hugging-face-text-generation": (),
    "hugging-face-translation": (),
    "hugging-face-zero-shot-classification": (),
    "hugging-face-zero-shot-image-classification": (),
    "hugging-face-zero-shot-object-detection": (),
}
_ZIPPED = frozenset({"keras", *(framework for framework, endings in _ENDINGS.items() if not endings)})
_NATIVE = frozenset({"onnx", "tensorflow"})
IMAGE_FRAMEWORK = "mlflow"

# Accelerator → the architectures that it goes with.
_ACCELS = {
    "none": {"x86", "arm", "power10"},
    "cuda": {"x86", "arm", "power10"},
    "jetson": {"arm"},
    "openvino": {"x86"},
    "rocm": {"x86"},
    "qaic": {"x86"},
}
# What the vendor's client sends for these frameworks unless told otherwise.
_CONFIGS: dict[str, dict[str, Any]] = {
    "custom": {"model_path": "./model/"},
    "vllm": {
        "gpu_memory_utilization": 0.9,
        "kv_cache_dtype": "auto",
        "max_num_seqs": 256,
        "quantization": "none",
    },
    "sglang": {
        "mem_fraction_static": 0.8,
        "max_running_requests": 64,
        "context_length": 2048,
        "max_prefill_tokens": 2048,
        "chunked_prefill_size": 1024,
        "page_size": 16,
        "kv_cache_dtype": "auto",
        "quantization": "none",
    },
}
_ARROW_MESSAGE = b"\xff\xff\xff\xff"  # what every encapsulated Arrow IPC message begins with


class PushOptions(BaseModel):
    """The ``options`` of a push to Wallaroo, checked.

    :param framework: what made the model.
    :param arch: processor architecture; the instance's own default when left out.
    :param accel: accelerator: a name, or ``{"qaic": {...}}``.
    :param framework_config: ``{"framework": ..., "config": {...}}``; for custom, vllm and sglang.
    :param python_version: of the container that is built.
    :param requirements: Python packages that the container needs.
    :param input_schema: Arrow schema: base64 text, a path to a file with the serialised schema, or a pyarrow schema.
    :param output_schema: likewise. Both are needed, except for onnx and tensorflow, which tell their own, and for
        Python scripts, where ``None`` for both leaves them out.
    :param visibility: who sees the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    framework: str
    arch: Literal["x86", "arm", "power10"] | None = None
    accel: str | dict[str, dict[str, Any]] = "none"
    framework_config: dict[str, Any] | None = None
    python_version: Literal["3.8", "3.9"] = "3.8"
    requirements: tuple[str, ...] = ()
    input_schema: Any = None
    output_schema: Any = None
    visibility: Literal["private", "public"] = "private"

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> PushOptions:
        """Check the options of a push.

        :raises InvalidInput: naming the option at fault.
        """
        if "image_path" in options:
            raise _wrong("image_path", "registers an image, which has no file to push: use WallarooHook.register_image")
        try:
            checked = cls.model_validate(restructured(cls, options))
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            if fault["loc"] == ("framework",) and fault["type"] == "missing":
                raise _wrong("framework", f"is needed: one of {', '.join(sorted(_ENDINGS))}") from None
            raise _wrong(".".join(map(str, fault["loc"])), fault["msg"]) from None
        checked._check_framework()
        checked.check_hardware(checked.arch)
        return checked.model_copy(
            update={
                "framework_config": checked._full_config(),
                "input_schema": _schema("input_schema", checked.input_schema),
                "output_schema": _schema("output_schema", checked.output_schema),
            }
        )

    @model_validator(mode="before")
    @classmethod
    def _take_left_out(cls, values: Any) -> Any:
        # Connections and templates hand over null where something is left out.
        kept = ("input_schema", "output_schema")
        return {key: value for key, value in values.items() if value is not None or key in kept}

    def conversion(self, arch: str | None) -> dict[str, Any]:
        """Return how the file is to be converted, as it travels."""
        return {
            **({"arch": arch} if arch else {}),
            "accel": self.accel,
            "framework": self.framework,
            "framework_config": self.framework_config,
            "python_version": self.python_version,
            "requirements": list(self.requirements),
        }

    def schemas(self) -> dict[str, str]:
        """Return the schemas as they travel: beside the conversion, not in it."""
        pairs = {"input_schema": self.input_schema, "output_schema": self.output_schema}
        return {key: value for key, value in pairs.items() if value is not None}

    def _check_framework(self) -> None:
        if self.framework == IMAGE_FRAMEWORK:
            raise _wrong("framework", "'mlflow' is for registered images only: use WallarooHook.register_image")
        if self.framework not in _ENDINGS:
            raise _wrong("framework", f"{self.framework!r} is none of {', '.join(sorted(_ENDINGS))}")
        schemas = {"input_schema": self.input_schema, "output_schema": self.output_schema}
        if self.framework in _NATIVE:
            return
        # The guide counts Python scripts as native, the client does not: both schemas given as None leave them out.
        if self.framework == "python" and schemas.keys() <= self.model_fields_set and not any(schemas.values()):
            return
        for name, given in schemas.items():
            if given is None:
                raise _wrong(name, f"is needed for {self.framework}")

    def check_hardware(self, arch: str | None) -> None:
        """Raise :class:`InvalidInput` unless the accelerator goes with an architecture, or that is not known."""
        names = [self.accel] if isinstance(self.accel, str) else list(self.accel)
        is_object = not isinstance(self.accel, str)
        if len(names) != 1 or names[0] not in _ACCELS or is_object != (names[0] == "qaic"):
            plain = ", ".join(name for name in _ACCELS if name != "qaic")
            raise _wrong("accel", f"is one of {plain}, or {{'qaic': {{...}}}}")
        if arch and arch not in _ACCELS[names[0]]:
            allowed = " or ".join(sorted(_ACCELS[names[0]]))
            raise _wrong("accel", f"{names[0]} goes with arch {allowed}, not {arch}")
        require_json("options", self.accel if isinstance(self.accel, dict) else {})

    def _full_config(self) -> dict[str, Any] | None:
        given, defaults = self.framework_config, _CONFIGS.get(self.framework)
        if given is None:
            return {"config": defaults, "framework": self.framework} if defaults else None
        if defaults is None:
            raise _wrong("framework_config", f"is for {', '.join(_CONFIGS)} only")
        config = given.get("config")
        if given.keys() != {"framework", "config"} or not isinstance(config, dict):
            raise _wrong("framework_config", "has the shape {'framework': ..., 'config': {...}}")
        if given["framework"] != self.framework:
            raise _wrong("framework_config", f"is for {given['framework']!r}, the framework is {self.framework!r}")
        require_json("options", config)
        return {"config": {**defaults, **config}, "framework": self.framework}


@dataclass(frozen=True, slots=True)
class OneFile:
    """The one file that is uploaded.

    :param name: what the server is to call it.
    :param layout: its content.
    :param sha256: hex digest of it.
    """

    name: str
    layout: FileLayout | ZipLayout
    sha256: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.layout.size


@dataclass(slots=True)
class Draft:
    """One push: what is sent, and which number the server gave it.

    :param name: the model's.
    :param file: what is sent.
    :param options: how it is to be converted.
    :param arch: the options' or the instance's own.
    :param default_arch: what a record without one has been converted for.
    :param known: numbers of the versions that were there before.
    :param number: the version's number, once it is known.
    """

    name: str
    file: OneFile
    options: PushOptions
    arch: str | None
    default_arch: str | None
    known: frozenset[int] = frozenset()
    number: int | None = None

    def describes(self, record: VersionRecord) -> bool:
        """Whether a version was made of the same file in the same way."""
        made = record.conversion
        return (
            record.file_info.sha.lower() == self.file.sha256
            and made.framework == self.options.framework
            and (made.arch or self.default_arch) == self.arch
            and _same_accel(self.options.accel, made.accel or "none")
        )

    def form(self, workspace: int) -> Form:
        """Return the request's body."""
        metadata = {
            "name": self.name,
            "visibility": self.options.visibility,
            "workspace_id": workspace,
            "conversion": self.options.conversion(self.arch),
            **self.options.schemas(),
        }
        return Form(
            (metadata_field(metadata),), Upload("file", self.file.name, self.file.size, self.file.layout.reader)
        )


def metadata_field(metadata: Mapping[str, Any]) -> Field:
    """Return the part of an upload that says what it is; it goes first."""
    return Field("metadata", json.dumps(metadata).encode(), "application/json")


def one_file(name: str, framework: str, source: Source) -> Flow[OneFile]:
    """Choose or make the one file that stands for a model: Wallaroo takes no more.

    :param name: the model's.
    :param framework: what made it.
    :param source: its files.
    :return: the only file, the only one that ends as models of the framework do, or a zip of all.
    :raises InvalidInput: when none of these will do, saying what is wanted.
    """
    chosen = _chosen(framework, source)
    if chosen is not None:
        if len(source.files) > 1:
            _log.warning("of the source's %d files only %s is sent", len(source.files), show(chosen.path))
        return OneFile(chosen.path.rpartition("/")[2], FileLayout(source, chosen), chosen.sha256)
    checksums: dict[str, int] = {}
    for file in source.files:
        checksums[file.path] = 0
        for offset in range(0, file.size, _STRIDE):
            length = min(_STRIDE, file.size - offset)
            checksums[file.path] = yield from call(
                add_to_checksum, source, file.path, offset, length, checksums[file.path]
            )
    layout = ZipLayout(source, checksums)
    total = hashlib.sha256()
    for offset in range(0, layout.size, _STRIDE):
        yield from call(add_to_hash, layout, total, offset, _STRIDE)
    return OneFile(f"{name}.zip", layout, total.hexdigest())


def _chosen(framework: str, source: Source) -> FileEntry | None:
    """Return the file to send as it is, or ``None`` when all are to be zipped."""
    endings, can_zip = _ENDINGS[framework], framework in _ZIPPED
    if len(source.files) == 1 and not source.directories:
        only = source.files[0]
        if not can_zip or only.path.lower().endswith((*endings, ".zip")):
            return only
    fitting = [file for file in source.files if file.path.lower().endswith(endings)] if endings else []
    if len(fitting) == 1:
        return fitting[0]
    if can_zip:
        return None
    found = ", ".join(show(file.path) for file in fitting[:5]) or "no such file"
    raise InvalidInput(
        f"a model of the framework {framework} is one file that ends in {' or '.join(endings)}, "
        f"the source holds {len(source.files)} files and among them {found}",
        remedy="push that file alone",
        argument="source",
    )


def _schema(name: str, value: Any) -> str | None:
    """Return a schema as base64 text, whichever way it was given."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if raw.startswith(_ARROW_MESSAGE):
            return value
        value = Path(value)
    if isinstance(value, os.PathLike):
        try:
            raw = Path(value).read_bytes()
        except OSError as error:
            raise InvalidInput(
                f"the option {name!r} is neither the base64 text of an Arrow schema nor a file that can be read: "
                f"{from_os_error(error, 'reading it').message}",
                argument="options",
            ) from None
    elif callable(getattr(value, "serialize", None)):  # a pyarrow schema; pyarrow itself is not needed
        raw = bytes(value.serialize())
    else:
        raise _wrong(name, "is base64 text, a path, or a pyarrow schema")
    if not raw.startswith(_ARROW_MESSAGE):
        raise _wrong(name, "is no serialised Arrow schema; write it with schema.serialize()")
    return base64.b64encode(raw).decode()


def _same_accel(wanted: str | Mapping[str, Any], found: str | Mapping[str, Any]) -> bool:
    if isinstance(wanted, str) or isinstance(found, str):
        return wanted == found
    # The server may have added defaults.
    return all(found.get(key, {}).items() >= value.items() for key, value in wanted.items())


def _wrong(option: str, fault: str) -> InvalidInput:
    return InvalidInput(f"the option {option!r}: {fault}", argument="options")

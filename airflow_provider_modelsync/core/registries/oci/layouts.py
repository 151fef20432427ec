"""How a model is laid out as blobs and a manifest: a ModelPack artifact, or a container image.

A ModelPack has one raw layer a file, so a layer's digest is the file's hash: nothing is packed, equal files are one
blob, and ranges of each can be read. Empty files share one small tar: some registries refuse an empty blob. An image
has tars with all files below ``/models``, for what mounts or runs images only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, LooseFile, Source
from airflow_provider_modelsync.core.archive.layout import Layout, LayoutReader, TarLayout
from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, call
from airflow_provider_modelsync.core.registries.oci.api import MANIFEST, MANIFEST_BYTES, dumped
from airflow_provider_modelsync.core.registries.oci.manifest import (
    CREATED,
    FILEPATH,
    IMAGE_CONFIG,
    IMAGE_LAYER,
    METADATA,
    MODELPACK,
    MODELPACK_CONFIG,
    OUR_DIGEST,
    OUR_DIRECTORIES,
    OUR_FILES,
    OUR_LABELS,
    OUR_METADATA,
    OUR_SIGNATURES,
    TITLE,
    VERSION,
)

LARGE = 8 << 20  # bytes from which on a file gets an image's layer of its own
MAX_LAYERS = 100  # of an image: overlay mounts end at about 127
_STRIDE = 16 << 20  # bytes of an archive that are hashed between two looks whether the work is to end
_IMAGE_ROOT = "models/"
_EMPTY_FILES = ".empty-files"
_UNKNOWN = "0" * 64  # as long as the hash that is not known yet

_CLASSES = {
    "weight.config": (".json", ".yaml", ".yml", ".txt", ".model", ".jinja", ".toml"),
    "doc": (".md", ".rst", ".pdf"),
    "code": (".py", ".sh", ".ipynb"),
}
_FORMATS = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".onnx": "onnx",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".pb": "tensorflow",
    ".tflite": "tflite",
    ".keras": "keras",
    ".joblib": "joblib",
}


class PushOptions(BaseModel):
    """What only this registry understands of a push.

    :param layout: ``modelpack``, or ``image`` for what mounts or runs container images only.
    :param format: of the weights; told by the files' names when left out.
    :param architecture: of the model, as ``transformer``.
    :param family: of the model, as ``llama3``.
    :param param_size: how many parameters it has, as ``8b``.
    :param precision: of the weights, as ``bf16``.
    :param quantization: of the weights, as ``q4_k_m``.
    :param mount_from: names of other models of the connection that may hold some of the files already.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["modelpack", "image"] | None = None
    format: str | None = None
    architecture: str | None = None
    family: str | None = None
    param_size: str | None = None
    precision: str | None = None
    quantization: str | None = None
    mount_from: tuple[str, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> PushOptions:
        """Check what was given.

        :raises InvalidInput: naming the key at fault, never its value.
        """
        try:
            return cls.model_validate(restructured(cls, values))
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise InvalidInput(f"{where}: {fault['msg']}", argument="options") from None


class _Part(Source):
    """Some files of a model, below a directory."""

    def __init__(self, model: Source, files: Iterable[FileEntry], directories: Iterable[str], below: str = "") -> None:
        self._model = model
        self._below = below
        self.files = tuple(FileEntry(f"{below}{file.path}", file.size, file.sha256, file.executable) for file in files)
        self.directories = tuple(f"{below}{path}" for path in directories)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        return self._model.read_into(path.removeprefix(self._below), offset, view)

    def prepare(self, paths: Iterable[str], cancel: CancelToken) -> None:
        self._model.prepare((path.removeprefix(self._below) for path in paths), cancel)

    def confirm(self, paths: Iterable[str]) -> None:
        self._model.confirm(path.removeprefix(self._below) for path in paths)


class _Bytes:
    """A few bytes as a layout."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def readinto(self, offset: int, buffer: Any, /) -> int:
        view = memoryview(buffer)
        part = self._content[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)


class Blobs(Source):
    """What goes up for a model, each blob once: its files as they are, and what is made of them.

    :param model: the model.
    :param whole: its files that are blobs themselves.
    :param made: hash → what is made of it.
    """

    def __init__(self, model: Source, whole: Iterable[FileEntry], made: Mapping[str, Layout]) -> None:
        self._model = model
        # No path of a file ends so.
        self._made = {f"sha256:{sha256}/": layout for sha256, layout in made.items()}
        distinct = {file.sha256: file for file in whole if file.sha256 not in made}
        self.files = (
            *distinct.values(),
            *(FileEntry(key, layout.size, key[7:-1]) for key, layout in self._made.items()),
        )
        self.directories = ()

    def loose(self, path: str) -> LooseFile | None:
        return None if path in self._made else self._model.loose(path)

    def recheck(self, path: str, cancel: CancelToken) -> None:
        if path not in self._made:
            self._model.recheck(path, cancel)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        layout = self._made.get(path)
        return self._model.read_into(path, offset, view) if layout is None else layout.readinto(offset, view)

    def prepare(self, paths: Iterable[str], cancel: CancelToken) -> None:
        for path in paths:
            layout = self._made.get(path)
            if layout is None:
                self._model.prepare([path], cancel)
            elif isinstance(layout, TarLayout):
                layout.tree.prepare(layout.files_in(0, layout.size), cancel)

    def confirm(self, paths: Iterable[str]) -> None:
        for path in paths:
            layout = self._made.get(path)
            if layout is None:
                self._model.confirm([path])
            elif isinstance(layout, TarLayout):
                layout.confirm()


@dataclass(slots=True)
class _Layer:
    media_type: str
    size: int
    sha256: str
    annotations: dict[str, str]
    layout: TarLayout | None = None  # of what is made, else it is a file of the model

    def described(self) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.sha256}",
            "size": self.size,
            "annotations": self.annotations,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is told beside the files.

    :param name: of the model.
    :param version: of it.
    :param labels: kept beside it.
    :param metadata: kept beside it.
    :param created_at: when it was pushed first.
    :param signatures: kept beside it.
    """

    name: str
    version: str
    labels: Mapping[str, str]
    metadata: Mapping[str, Any]
    created_at: datetime
    signatures: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """A manifest that is being made, and the blobs that it is going to name.

    :param source: the model.
    :param facts: what is told beside the files.
    :param options: how it is laid out.
    """

    source: Source
    facts: Facts
    options: PushOptions
    layers: list[_Layer] = field(default_factory=list)
    config: bytes = b""

    @classmethod
    def of(cls, source: Source, facts: Facts, options: PushOptions) -> Draft:
        """Lay a model out.

        :raises InvalidInput: when its manifest would be larger than registries take.
        """
        draft = cls(source, facts, options)
        draft.layers = draft._image() if options.layout == "image" else draft._modelpack()
        if (size := len(draft.manifest)) > MANIFEST_BYTES:
            raise InvalidInput(
                f"the manifest of {len(source.files)} files would have {size} bytes, and registries take "
                f"{MANIFEST_BYTES}, some 9,000 files; pack some of them together",
                argument="source",
            )
        return draft

    def finish(self) -> Flow[Blobs]:
        """Hash what is made of the model, and return all that goes up."""
        made: dict[str, Layout] = {}
        for layer in self.layers:
            if layer.layout is not None:
                layer.sha256 = yield from _hash(layer.layout)
                made[layer.sha256] = layer.layout
        self.config = self._config()
        made[hashlib.sha256(self.config).hexdigest()] = _Bytes(self.config)
        whole = {layer.sha256 for layer in self.layers if layer.layout is None}
        return Blobs(self.source, (file for file in self.source.files if file.sha256 in whole), made)

    @property
    def is_image(self) -> bool:
        return self.options.layout == "image"

    @property
    def manifest(self) -> bytes:
        facts, config = self.facts, self.config or self._config()
        digest = hashlib.sha256(config).hexdigest()
        described: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST}
        if not self.is_image:
            described["artifactType"] = MODELPACK
        described |= {
            "config": {
                "mediaType": IMAGE_CONFIG if self.is_image else MODELPACK_CONFIG,
                "digest": f"sha256:{digest}",
                "size": len(config),
            },
            "layers": [layer.described() for layer in self.layers],
            "annotations": {
                CREATED: shown(facts.created_at),
                VERSION: facts.version,
                OUR_DIGEST: self.source.digest,
                **({OUR_LABELS: dumped(facts.labels)} if facts.labels else {}),
                **({OUR_METADATA: dumped(facts.metadata)} if facts.metadata else {}),
                **({OUR_SIGNATURES: dumped(facts.signatures)} if facts.signatures else {}),
                **({OUR_DIRECTORIES: dumped(self.source.directories)} if self.source.directories else {}),
            },
        }
        return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()

    def _modelpack(self) -> list[_Layer]:
        layers = []
        for file in self.source.files:
            if file.size:
                metadata = {
                    "name": file.path.rpartition("/")[2],
                    "mode": 0o755 if file.executable else 0o644,
                    "uid": 0,
                    "gid": 0,
                    "size": file.size,
                    "typeflag": 0,
                }
                annotations = {FILEPATH: file.path, TITLE: file.path, METADATA: dumped(metadata)}
                kind = f"application/vnd.cncf.model.{_class_of(file.path)}.v1.raw"
                layers.append(_Layer(kind, file.size, file.sha256, annotations))
        if empty := [file for file in self.source.files if not file.size]:
            taken = {file.path for file in self.source.files}
            name = _EMPTY_FILES
            while name in taken:
                name += "-"
            layout = TarLayout.from_tree(_Part(self.source, empty, ()))
            annotations = {FILEPATH: name, OUR_FILES: _listed(layout, "", empty)}
            layers.append(_Layer("application/vnd.cncf.model.code.v1.tar", layout.size, _UNKNOWN, annotations, layout))
        return layers

    def _image(self) -> list[_Layer]:
        by_size = sorted(self.source.files, key=lambda file: -file.size)
        large = [file for file in by_size if file.size >= LARGE][: MAX_LAYERS - 1]
        alone = {file.path for file in large}
        small = [file for file in self.source.files if file.path not in alone]
        parts: list[tuple[list[FileEntry], tuple[str, ...]]] = []
        if small or self.source.directories:
            parts.append((small, self.source.directories))
        parts += [([file], ()) for file in sorted(large, key=lambda file: file.path.encode())]
        layers = []
        for files, directories in parts:
            layout = TarLayout.from_tree(_Part(self.source, files, directories, _IMAGE_ROOT))
            annotations = {OUR_FILES: _listed(layout, _IMAGE_ROOT, files)}
            layers.append(_Layer(IMAGE_LAYER, layout.size, _UNKNOWN, annotations, layout))
        return layers

    def _config(self) -> bytes:
        facts, options = self.facts, self.options
        digests = [f"sha256:{layer.sha256}" for layer in self.layers]
        if self.is_image:
            config: dict[str, Any] = {
                "created": shown(facts.created_at),
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": digests},
            }
        else:
            config = {
                # Docker Model Runner knows a ModelPack by the time.
                "descriptor": _given(
                    createdAt=shown(facts.created_at), name=facts.name, version=facts.version, family=options.family
                ),
                "config": _given(
                    format=options.format or _format_of(self.source.files),
                    architecture=options.architecture,
                    paramSize=options.param_size,
                    precision=options.precision,
                    quantization=options.quantization,
                ),
                "modelfs": {"type": "layers", "diffIds": digests},
            }
        return json.dumps(config, ensure_ascii=False, separators=(",", ":")).encode()


def _hash(layout: TarLayout) -> Flow[str]:
    total = hashlib.sha256()

    def add(start: int) -> None:
        reader = LayoutReader(layout, start, _STRIDE)
        buffer = memoryview(bytearray(min(BLOCK, len(reader))))
        while count := reader.readinto(buffer):
            total.update(buffer[:count])

    for start in range(0, layout.size, _STRIDE):
        yield from call(add, start)
    return total.hexdigest()


def _listed(layout: TarLayout, below: str, files: Sequence[FileEntry]) -> str:
    offsets = {member.name: member.offset for member in layout.members}
    return dumped(
        [
            {
                "path": file.path,
                "size": file.size,
                "sha256": file.sha256,
                "offset": offsets[f"{below}{file.path}"],
                **({"executable": True} if file.executable else {}),
            }
            for file in files
        ]
    )


def _given(**values: str | None) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _class_of(path: str) -> str:
    name = path.rpartition("/")[2]
    if name.upper().startswith(("README", "LICENSE")):
        return "doc"
    return next((kind for kind, ends in _CLASSES.items() if name.lower().endswith(ends)), "weight")


def _format_of(files: Iterable[FileEntry]) -> str | None:
    """Return the format of a model's largest file of a known one."""
    for file in sorted(files, key=lambda file: -file.size):
        for end, name in _FORMATS.items():
            if file.path.lower().endswith(end):
                return name
    return None


def shown(time: datetime) -> str:
    """Return a time as RFC 3339 has it."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")

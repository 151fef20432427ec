"""What a file is, by what it holds."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive import formats
from airflow_provider_modelsync.core.archive.formats import FORMATS, formats_of

MIB = 1 << 20


class Runs:
    """What an attacker pickles."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, ("touch /nowhere",)


HARM = pickle.dumps(Runs())
CALL = b"cos\ngetcwd\n(tR."  # the same as text


def safetensors(content: bytes = bytes(8), **more: Any) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(content)]}, **more}).encode()
    return struct.pack("<Q", len(header)) + header + content


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def torch(harm: bytes = HARM) -> bytes:
    """What ``torch.save`` writes."""
    return zipped({"m/data.pkl": harm, "m/data/0": bytes(64), "m/version": b"3\n", "m/byteorder": b"little"})


KERAS = {
    "config.json": b'{"class_name": "Sequential"}',
    "metadata.json": b'{"keras_version": "3.4.1"}',
    "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
}


def numpy(descr: str = "<f4", *, extra: str = "") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), {extra}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)


CASES: dict[str, tuple[bytes, set[str]]] = {
    "safetensors": (safetensors(), {"safetensors"}),
    "safetensors with metadata": (safetensors(__metadata__={"format": "pt"}), {"safetensors"}),
    "safetensors with more behind": (safetensors() + b"more", {"other"}),
    "safetensors with a gap": (safetensors(b={"dtype": "F32", "shape": [1], "data_offsets": [9, 9]}), {"other"}),
    "gguf": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), {"gguf"}),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(16), {"tflite"}),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), {"hdf5"}),
    "hdf5 behind a user block": (b"# notes".ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n", {"hdf5"}),
    "keras 3": (zipped(KERAS), {"keras"}),
    "keras 3 with code beside": (zipped({**KERAS, "layer.py": b"import os"}), {"json", "hdf5", "python"}),
    "numpy": (numpy(), {"numpy"}),
    "numpy of objects": (numpy("|O"), {"pickle"}),
    "numpy of objects by their long name": (numpy("object"), {"pickle"}),
    "numpy of objects, said twice": (numpy(extra="'descr': '|O'"), {"pickle"}),
    "numpy of objects, escaped": (numpy(extra="'d\\x65scr': '|\\x4f'"), {"pickle"}),
    "npz": (zipped({"w.npy": numpy(), "b.npy": numpy()}), {"numpy"}),
    "npz of objects": (zipped({"w.npy": numpy(), "b.npy": numpy("|O")}), {"pickle"}),
    **{
        f"pickle, protocol {one}": (pickle.dumps(Runs(), one), {"pickle"}) for one in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "pickle of plain values": (pickle.dumps({"w": [1.0]}), {"pickle"}),
    "pickle that breaks off": (pickle.dumps(Runs(), 0)[:-1], {"pickle"}),
    "pickle with rubbish behind": (pickle.dumps(Runs(), 0)[:-1] + b"\xff\xff", {"pickle"}),
    "pickle behind a long string": (b"X" + struct.pack("<I", 2 * MIB) + bytes(2 * MIB) + b"0" + HARM, {"pickle"}),
    "pickle behind a long line": (b"V" + b"a" * (2 * MIB) + b"\n0" + HARM, {"pickle"}),
    "pickle without its protocol": (HARM[2:], {"pickle"}),
    "pickle behind a number in another base": (b"I0x10\n0L0b1L\n0" + CALL, {"pickle"}),
    "pickle behind text that is no ASCII": ("S'é'\n0".encode() + CALL, {"pickle"}),
    "pickle behind other pickles": (b"L119547037146038801333356L\n.I1001\n.N." + CALL, {"pickle"}),
    "torch": (torch(), {"pickle"}),
    "torch, packed": (zipped({"archive/data.pkl": HARM, "archive/version": b"3"}, zipfile.ZIP_DEFLATED), {"pickle"}),
    "torch of old": (tarred({"pickle": HARM, "sys_info": pickle.dumps({"little_endian": True})}), {"pickle"}),
    "tar before a zip": (tarred({"pickle": HARM}) + zipped({"a.txt": b"a"}), {"pickle", "text"}),
    "gzip before a zip": (gzip.compress(HARM) + zipped({"a.txt": b"a"}), {"pickle", "text"}),
    "zip behind tensors": (safetensors() + zipped({"x": HARM}), {"pickle"}),
    "zip in a zip": (zipped({"a.zip": zipped({"b.zip": zipped({"x": HARM})})}), {"pickle"}),
    "zip in a zip in a zip": (zipped({"a": zipped({"b": zipped({"c": zipped({"x": HARM})})})}), {"other"}),
    "zip of texts": (zipped({"a.txt": b"a", "b.json": b"{}"}), {"text", "json"}),
    "zip without a member": (zipped({}), {"empty"}),
    "zip that is damaged": (zipped({"a": b"a" * 100}).replace(b"a" * 99, b"b" * 99), {"other"}),
    "joblib, zlib": (zlib.compress(HARM), {"pickle"}),
    "joblib, gzip": (gzip.compress(HARM), {"pickle"}),
    "joblib, bz2": (bz2.compress(HARM), {"pickle"}),
    "joblib, xz": (lzma.compress(HARM), {"pickle"}),
    "joblib, lzma": (lzma.compress(HARM, lzma.FORMAT_ALONE), {"pickle"}),
    "gzipped text": (gzip.compress(b"hello"), {"text"}),
    "gzip with more behind": (gzip.compress(b"hello") + b"\x7fELF", {"other"}),
    "json": (b' {"a": [1]}', {"json"}),
    "json that is none": (b"{a: 1}", {"text"}),
    "text": ("Grüße, модель\n".encode(), {"text"}),
    "text that begins as a pickle": (b"cat\ndog\nRat\nbird\n.", {"text"}),
    "text that looks like an end": (b".venv\n.git\n", {"text"}),
    "words": (b"it is so\nIt was\n(not)\n", {"text"}),
    "text that begins as zlib": (b"x^2 + y", {"text"}),
    "latin-1": ("Grüße".encode("latin-1"), {"other"}),
    "text, cut by a zero": (b"text\0", {"other"}),
    "script": (b"#!/usr/bin/env python3\nimport os\n", {"python"}),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(16), {"image"}),
    "program": (b"\x7fELF" + bytes(64), {"other"}),
    "byte code": (b"\xcb\x0d\x0d\x0a" + bytes(16), {"other"}),
    "nothing": (b"", {"empty"}),
    "zeros": (bytes(4096), {"other"}),
}


@pytest.mark.parametrize(("content", "wanted"), CASES.values(), ids=CASES)
def test_what_a_file_is(tmp_path: Path, content: bytes, wanted: set[str]) -> None:
    (tmp_path / "weights.bin").write_bytes(content)

    assert formats_of(tmp_path / "weights.bin") == wanted
    assert wanted <= set(FORMATS)


def test_a_name_only_makes_it_stricter(tmp_path: Path) -> None:
    """Text that Python would import is code, and a pickle stays one, whatever it is called."""
    (tmp_path / "modeling.py").write_text("print('hello')")
    (tmp_path / "model.safetensors").write_bytes(torch())

    assert formats_of(tmp_path / "modeling.py") == {"python"}
    assert formats_of(tmp_path / "model.safetensors") == {"pickle"}


def test_what_libraries_write(tmp_path: Path) -> None:
    """scikit-learn's pickles as joblib writes them, numpy's arrays, and ONNX as its own converter makes it."""
    np = pytest.importorskip("numpy")
    joblib = pytest.importorskip("joblib", reason="scikit-learn brings it, which the examples train with")
    onnx = pytest.importorskip("onnx", reason="skl2onnx brings it, which the examples convert with")
    for compress in (0, 3, ("lzma", 3)):
        joblib.dump({"w": np.zeros(3)}, tmp_path / "m.joblib", compress=compress)
        assert formats_of(tmp_path / "m.joblib") == {"pickle"}
    np.save(tmp_path / "w.npy", np.zeros((2, 3)))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(3), b=np.ones(2))
    graph = onnx.helper.make_graph([], "g", [], [])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())

    found = {path.name: set(formats_of(path)) for path in [*sorted(tmp_path.glob("[!m]*")), tmp_path / "m.onnx"]}
    assert found == {"o.npy": {"pickle"}, "w.npy": {"numpy"}, "w.npz": {"numpy"}, "m.onnx": {"onnx"}}


def bomb() -> bytes:
    return zipped({f"{count}": bytes(8 * MIB) for count in range(4)}, zipfile.ZIP_DEFLATED)


def test_what_is_packed_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MOST_IN_ALL", 16 * MIB)
    (tmp_path / "bomb").write_bytes(bomb())
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"text" * (8 * MIB)))

    assert formats_of(tmp_path / "bomb") == {"other"}
    assert formats_of(tmp_path / "text.gz") == {"other"}


@pytest.mark.parametrize("make", [bytes, lambda data: b"\x80" + data, lambda data: b"PK\x03\x04" + data])
@settings(max_examples=25)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_something(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[bytes], bytes], data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(make(data))

    assert formats_of(file) <= set(FORMATS)
    assert formats_of(file)


@settings(max_examples=25)
@given(value=st.recursive(st.none() | st.integers() | st.text() | st.binary(), st.lists), one=st.integers(2, 5))
def test_every_pickle_is_one(tmp_path_factory: pytest.TempPathFactory, value: Any, one: int) -> None:
    file = tmp_path_factory.getbasetemp() / "pickled"
    for content in (pickle.dumps(value, one), pickle.dumps((value, Runs()), one), pickle.dumps((value, Runs()), 0)):
        file.write_bytes(content)
        assert "pickle" in formats_of(file)


def test_nothing_is_loaded(tmp_path: Path) -> None:
    class Leaves:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (tmp_path / "ran").touch, ()

    for name, content in {"a": pickle.dumps(Leaves()), "b": torch(pickle.dumps(Leaves()))}.items():
        (tmp_path / name).write_bytes(content)
        assert formats_of(tmp_path / name) == {"pickle"}
        assert (tmp_path / name).stat().st_atime_ns <= time.time_ns()
    assert not (tmp_path / "ran").exists()


class Loaded(pickle.Unpickler):
    """Loads a pickle as anybody would, but of what it names it is only noted whether that is run."""

    def __init__(self, stream: io.BytesIO, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self.has_run = False
        loaded = self

        class Named:
            def __new__(cls, *_: Any, **__: Any) -> Any:
                loaded.has_run = True
                return super().__new__(cls)

        self._named = Named

    def find_class(self, module: str, name: str) -> Any:
        return self._named


NUMBERS = st.builds(
    lambda sign, number, base: sign + format(number, base),
    st.sampled_from(["", "+", "-", " "]),
    st.integers(0),
    st.sampled_from(["d", "#x", "#o", "#b", "_d"]),
)
LINES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=5)
VALUES = st.one_of(
    NUMBERS.map(lambda text: f"I{text}\n"),
    NUMBERS.map(lambda text: f"L{text}L\n"),
    st.floats().map(lambda number: f"F{number!r}\n"),
    LINES.map(lambda text: f"V{text}\n"),
    st.builds(lambda quote, text: f"S{quote}{text}{quote}\n", st.sampled_from("'\""), LINES),
    st.sampled_from(["N", "(t", "(l", "(d", "]", "}", ")", "cm\nf\n", "(0N", "N2t"]),
)


@settings(max_examples=100)
@given(
    before=st.lists(st.builds(str.__add__, VALUES, st.sampled_from("0."))),
    values=st.lists(VALUES, max_size=2).map("".join),
    how=st.sampled_from(["cm\nf\n({}tR", "(cm\nf\n{}o", "({}im\nf\n"]),
    encoding=st.sampled_from(["ASCII", "latin1", "bytes", "utf-8"]),
)
def test_text_that_runs_something_when_it_is_loaded_is_a_pickle(
    before: list[str], values: str, how: str, encoding: str
) -> None:
    """Also where several pickles follow each other, and are loaded one by one."""
    stream = io.BytesIO(("".join(before) + how.format(values)).encode())
    has_run = False
    with suppress(Exception):
        while not has_run:
            loaded = Loaded(stream, encoding)
            try:
                loaded.load()
            finally:
                has_run = loaded.has_run
    stream.seek(0)
    assert not has_run or formats.is_pickle(stream)

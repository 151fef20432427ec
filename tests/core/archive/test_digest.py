from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive import digest
from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_directory, digest_of, memory_key, read_tree
from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, SourceChanged
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from tests.core.processes import at_once
from tests.core.stores import write_tree

WEIGHTS = r"'weights\.bin'"
BY_HAND = next(line for line in (digest.__doc__ or "").splitlines() if "| sha256sum" in line)  # as users are told
FILES = {"weights.bin": b"\0\1\2" * 1000, "tokenizer/vocab.txt": b"one\ntwo\n", "empty": b""}


def _by_hand(directory: Path) -> str:
    result = subprocess.run(["bash", "-c", BY_HAND], cwd=directory, capture_output=True, text=True, check=True)
    return f"sha256:{result.stdout.split()[0]}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", FILES)


def test_the_digest_is_what_sha256sum_prints_by_hand(tmp_path: Path) -> None:
    files = {**FILES, "with blank": b"x", "größe": b"y", "a/b": b"1", "a.b": b"2", "a-b": b"3", "Z": b"4", "é/Z": b"5"}
    model = write_tree(tmp_path / "model", files)
    assert digest_directory(model) == _by_hand(model)


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    files = [FileEntry(f"file-{number}", 1, hashlib.sha256(bytes([number])).hexdigest()) for number in range(20)]
    shuffled = random.Random(7).sample(files, len(files))
    assert digest_of(shuffled) == digest_of(files)


def test_the_digest_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    one = write_tree(tmp_path / "one", FILES)
    other = write_tree(tmp_path / "other", dict(reversed(FILES.items())))
    assert digest_directory(one) == digest_directory(other)


def test_a_single_file_is_a_model_of_one_file_under_its_base_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    tree = read_tree(tmp_path / "model.onnx")
    assert tree.files == (FileEntry("model.onnx", 4, hashlib.sha256(b"onnx").hexdigest()),)
    assert tree.digest == _by_hand(tmp_path)


def test_the_digest_changes_with_one_bit(model: Path) -> None:
    before = digest_directory(model)
    content = bytearray((model / "weights.bin").read_bytes())
    content[1500] ^= 1
    (model / "weights.bin").write_bytes(content)
    assert digest_directory(model) != before


def test_the_digest_changes_with_a_name(model: Path) -> None:
    before = digest_directory(model)
    (model / "empty").rename(model / "void")
    assert digest_directory(model) != before


def test_mode_times_and_empty_directories_do_not_count(model: Path) -> None:
    before = digest_directory(model)
    (model / "weights.bin").chmod(0o700)
    os.utime(model / "empty", (1, 1))
    (model / "void" / "deeper").mkdir(parents=True)
    assert digest_directory(model) == before


def test_a_tree_lists_files_sorted_by_the_bytes_of_their_paths(tmp_path: Path) -> None:
    paths = ["a/b", "a.b", "a-b", "B", "c", "é", "z"]
    model = write_tree(tmp_path / "model", dict.fromkeys(paths, b""))
    assert [file.path for file in read_tree(model).files] == ["B", "a-b", "a.b", "a/b", "c", "z", "é"]


def test_a_tree_keeps_empty_directories_and_no_others(model: Path) -> None:
    (model / "void" / "deeper").mkdir(parents=True)
    (model / "other").mkdir()
    assert read_tree(model).directories == ("other", "void/deeper")


@pytest.mark.parametrize(("mode", "executable"), [(0o644, False), (0o755, True), (0o100, True), (0o611, False)])
def test_a_tree_keeps_whether_the_owner_may_execute(tmp_path: Path, mode: int, executable: bool) -> None:
    model = write_tree(tmp_path / "model", {"run.sh": b"#!/bin/sh\n"})
    (model / "run.sh").chmod(mode)
    assert read_tree(model).files[0].executable is executable


def test_a_tree_knows_its_size(model: Path) -> None:
    assert read_tree(model).size_bytes == sum(map(len, FILES.values()))


def test_hashed_bytes_are_reported(model: Path) -> None:
    counts: list[int] = []
    read_tree(model, on_bytes=counts.append)
    assert sum(counts) == sum(map(len, FILES.values()))


# What a model may not hold


def _make_link(path: Path) -> None:
    path.symlink_to("weights.bin")


def _make_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def _make_directory_link(path: Path) -> None:
    path.symlink_to("/etc", target_is_directory=True)


def _make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have no more than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def _make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "link": (_make_link, "symbolic link"),
    "dangling link": (_make_dangling_link, "symbolic link"),
    "link to a directory": (_make_directory_link, "symbolic link"),
    "socket": (_make_socket, "neither a file nor a directory"),
    "fifo": (os.mkfifo, "neither a file nor a directory"),
    "device": (_make_device, "neither a file nor a directory"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_is_refused_with_its_path(model: Path, kind: str) -> None:
    make, reason = SPECIAL[kind]
    make(model / "tokenizer" / "special")
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_tree(model)
    assert "'tokenizer/special'" in str(caught.value)
    assert caught.value.argument == "source"


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_as_the_whole_source_is_refused(model: Path, kind: str) -> None:
    make, reason = SPECIAL[kind]
    make(model / "special")
    with pytest.raises(InvalidInput, match=reason):
        read_tree(model / "special")


@pytest.mark.parametrize(
    "path", [".modelsync/v1.json", "a/.modelsync/x", ".MODELSYNC/x", "back\\slash", "con.txt", "line\nbreak"]
)
def test_a_bad_name_is_refused_with_its_path(model: Path, path: str) -> None:
    write_tree(model, {path: b""})
    bad = path.partition("/x")[0].partition("/v1")[0]
    with pytest.raises(InvalidInput) as caught:
        read_tree(model)
    assert ascii(bad) in str(caught.value)


def test_an_empty_reserved_directory_is_refused(model: Path) -> None:
    (model / ".modelsync").mkdir()
    with pytest.raises(InvalidInput, match="reserved"):
        read_tree(model)


def test_a_name_that_is_not_utf8_is_refused(model: Path) -> None:
    Path(os.fsdecode(os.fsencode(model) + b"/latin-\xe9")).touch()
    with pytest.raises(InvalidInput, match=r"latin-\\udce9"):
        read_tree(model)


def test_names_that_differ_only_in_case_are_refused_with_both(model: Path) -> None:
    write_tree(model, {"Empty": b""})
    with pytest.raises(InvalidInput, match=r"'[Ee]mpty' and '[Ee]mpty' differ only in case"):
        read_tree(model)


def test_a_directory_that_holds_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model" / "void").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="holds no file"):
        read_tree(tmp_path / "model")


@pytest.mark.parametrize("path", ["absent", "model/empty/below-a-file"])
def test_a_source_that_does_not_exist_is_refused(model: Path, path: str) -> None:
    with pytest.raises(InvalidInput, match="does not exist") as caught:
        read_tree(model.parent / path)
    assert caught.value.argument == "source"


def _read_as_nobody(model: Path) -> str:
    os.setgid(65534)
    os.setuid(65534)
    return read_tree(model).digest


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("path", ["weights.bin", "tokenizer"])
def test_an_unreadable_source_is_refused_with_its_path(path: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own directories are for its user only
        Path(scratch).chmod(0o755)
        model = write_tree(Path(scratch, "model"), FILES)
        (model / path).chmod(0)
        (error,) = at_once(lambda: _read_as_nobody(model))
    assert isinstance(error, InvalidInput)
    assert "Permission denied" in str(error)


# Changes while reading


def test_a_file_that_grows_while_it_is_hashed_is_a_changed_source(model: Path) -> None:
    def grow(count: int) -> None:  # for ever, as a log does
        with (model / "weights.bin").open("ab") as file:
            file.write(b"more")

    with pytest.raises(SourceChanged, match=WEIGHTS):
        read_tree(model, on_bytes=grow)


def test_a_file_that_vanishes_while_the_source_is_scanned_is_a_changed_source(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir
    monkeypatch.setattr(digest.os, "scandir", lambda directory: _Listing(list(scandir(directory)), model))
    with pytest.raises(SourceChanged):
        read_tree(model)


class _Listing(list[Any]):
    """A directory's entries, one of which is gone by the time they are looked at."""

    def __init__(self, entries: list[Any], model: Path) -> None:
        super().__init__(entries)
        (model / "weights.bin").unlink(missing_ok=True)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


CHANGES: dict[str, Callable[[Path], Any]] = {
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "truncated": lambda path: os.truncate(path, 10),
    "replaced": lambda path: (path.with_name("new").write_bytes(path.read_bytes()), path.with_name("new").rename(path)),
    "removed": lambda path: path.unlink(),
    "turned into a link": lambda path: (path.unlink(), path.symlink_to("empty")),
    "turned into a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "turned into a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_changed_since_it_was_hashed_cannot_be_read_unnoticed(model: Path, change: str) -> None:
    tree = read_tree(model)
    CHANGES[change](model / "weights.bin")
    with pytest.raises(SourceChanged, match=WEIGHTS), tree.open("weights.bin"):
        pass


def test_a_file_that_is_changed_while_it_is_open_is_a_changed_source(model: Path) -> None:
    tree = read_tree(model)
    with pytest.raises(SourceChanged, match=WEIGHTS), tree.open("weights.bin"):
        os.truncate(model / "weights.bin", 10)


def test_an_unchanged_file_can_be_opened(model: Path) -> None:
    with read_tree(model).open("tokenizer/vocab.txt") as descriptor:
        assert os.read(descriptor, 100) == b"one\ntwo\n"


def test_a_cancelled_token_ends_the_hashing(model: Path) -> None:
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        read_tree(model, cancel=cancel, on_bytes=lambda _: cancel.cancel())


def test_a_cancelled_token_ends_the_hashing_of_a_large_file_soon(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 30)  # a hole: nothing is written
    cancel, before = CancelToken(), set(threading.enumerate())
    timer = threading.Timer(0.2, cancel.cancel)
    timer.start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        read_tree(tmp_path / "large", cancel=cancel)
    assert time.monotonic() - start < 4
    timer.join()
    assert set(threading.enumerate()) <= before, "a thread was left behind, still hashing"


# Hashes remembered from an earlier try


def test_hashes_are_remembered_under_what_tells_that_a_file_was_not_touched(model: Path) -> None:
    remembered: dict[str, str] = {}
    tree = read_tree(model, remembered=remembered)
    assert remembered == {memory_key(file.path, tree.stamps[file.path]): file.sha256 for file in tree.files}


def test_a_remembered_hash_is_used_instead_of_reading_the_file(model: Path) -> None:
    tree = read_tree(model)
    remembered = {memory_key("weights.bin", tree.stamps["weights.bin"]): "f" * 64}
    hashes = {file.path: file.sha256 for file in read_tree(model, remembered=remembered).files}
    assert hashes["weights.bin"] == "f" * 64
    assert hashes["empty"] == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("change", ["touched", "truncated", "replaced"])
def test_a_remembered_hash_is_not_used_for_a_file_that_was_touched(model: Path, change: str) -> None:
    tree = read_tree(model)
    remembered = {memory_key("weights.bin", tree.stamps["weights.bin"]): "f" * 64}
    CHANGES[change](model / "weights.bin")
    hashes = {file.path: file.sha256 for file in read_tree(model, remembered=remembered).files}
    assert hashes["weights.bin"] == hashlib.sha256((model / "weights.bin").read_bytes()).hexdigest()


def test_bytes_of_remembered_files_count_as_hashed(model: Path) -> None:
    remembered: dict[str, str] = {}
    read_tree(model, remembered=remembered)
    counts: list[int] = []
    read_tree(model, remembered=remembered, on_bytes=counts.append)
    assert sum(counts) == sum(map(len, FILES.values()))


# For any model

SEGMENTS = st.text(st.sampled_from("abZ09 .-_é漢'\"$%~+"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(PATHS, st.binary(max_size=100), min_size=1, max_size=6))
def test_the_digest_of_any_model_is_what_sha256sum_prints(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tmp_path_factory.mktemp("any")
    try:
        write_tree(model, files)
        found = digest_directory(model)
    except (OSError, InvalidInput):  # paths that clash with each other
        return
    assert found == _by_hand(model)

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive import checksums, digest
from airflow_provider_modelsync.core.archive.checksums import CRC32, CRC32C, CRC64
from airflow_provider_modelsync.core.archive.choice import Choice
from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_directory, digest_of, memory_key, read_tree
from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, SourceChanged
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from tests.core.processes import at_once
from tests.core.stores import write_tree
from tests.support.kills import killed
from tests.support.maps import mapped
from tests.support.rewrite import rewrite_and_set_back

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


@pytest.mark.parametrize("choice", [Choice(exclude=["*.onnx"]), Choice(include=["*.json"])])
def test_patterns_count_for_a_single_file_too(tmp_path: Path, choice: Choice) -> None:
    write_tree(tmp_path, {"model.onnx": b"onnx"})
    with pytest.raises(InvalidInput, match="holds no file that is chosen by"):
        read_tree(tmp_path / "model.onnx", choice=choice)
    assert read_tree(tmp_path / "model.onnx", choice=Choice(include=["*.onnx"])).files


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
@pytest.mark.row("D4", of="source")
def test_a_special_file_is_refused_with_its_path(model: Path, kind: str) -> None:
    make, reason = SPECIAL[kind]
    make(model / "tokenizer" / "special")
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_tree(model)
    assert "'tokenizer/special'" in str(caught.value)
    assert caught.value.argument == "source"


@pytest.mark.parametrize("kind", ["socket", "fifo", "device"])
def test_a_special_file_as_the_whole_source_is_refused(model: Path, kind: str) -> None:
    make, reason = SPECIAL[kind]
    make(model / "special")
    with pytest.raises(InvalidInput, match=reason):
        read_tree(model / "special")


@pytest.mark.parametrize("path", [".modelsync/v1.json", "a/.modelsync/x", ".MODELSYNC/x", "back\\slash", "line\nbreak"])
@pytest.mark.row("H12", of="source")
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


@pytest.mark.row("H12", of="source")
def test_a_name_that_is_not_utf8_is_refused(model: Path) -> None:
    Path(os.fsdecode(os.fsencode(model) + b"/latin-\xe9")).touch()
    with pytest.raises(InvalidInput, match=r"latin-\\udce9"):
        read_tree(model)


@pytest.mark.row("D8", of="source")
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
@pytest.mark.row("D4", of="source")
def test_an_unreadable_source_is_refused_with_its_path(path: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own directories are for its user only
        Path(scratch).chmod(0o755)
        model = write_tree(Path(scratch, "model"), FILES)
        (model / path).chmod(0)
        (error,) = at_once(lambda: _read_as_nobody(model))
    assert isinstance(error, InvalidInput)
    assert "Permission denied" in str(error)


# Links


def test_a_source_and_the_directories_above_it_may_be_links(model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "current").symlink_to("disk/model", target_is_directory=True)
    (tmp_path / "best.bin").symlink_to("model/weights.bin")
    assert read_tree(tmp_path / "disk" / "current") == read_tree(model)
    single = read_tree(tmp_path / "best.bin")
    assert [file.path for file in single.files] == ["best.bin"]
    assert bytes(single.read("best.bin", 0, 3)) == b"\0\1\2"


def test_what_is_named_is_resolved_as_the_system_does(model: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", {"below/x": b"other"})
    (tmp_path / "link").symlink_to("elsewhere/below", target_is_directory=True)
    tree = read_tree(f"{tmp_path}/link/../below")
    assert [file.path for file in tree.files] == ["x"]


def test_a_source_that_is_a_link_to_nowhere_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("gone")
    with pytest.raises(InvalidInput, match="does not exist"):
        read_tree(tmp_path / "model")


def test_a_link_to_a_file_inside_is_read_as_that_file(model: Path) -> None:
    (model / "weights.bin").chmod(0o755)
    (model / "tokenizer" / "best").symlink_to("../weights.bin")
    (model / "again").symlink_to("tokenizer/best")
    tree = read_tree(model, follow_links="inside")
    found = {file.path: file for file in tree.files}
    for path in ("tokenizer/best", "again"):
        assert (found[path].sha256, found[path].executable) == (found["weights.bin"].sha256, True)
        assert bytes(tree.read(path, 0, 3000)) == FILES["weights.bin"]


def snapshot_in_a_cache(cache: Path) -> Path:
    """Lay a model out as `huggingface_hub` does, and return the snapshot."""
    repository = write_tree(
        cache / "models--org--name", {"blobs/abc": b"w" * 1000, "blobs/def": b"{}", "refs/main": b"1"}
    )
    commit = repository / "snapshots" / "0123"
    (commit / "onnx").mkdir(parents=True)
    (commit / "config.json").symlink_to("../../blobs/def")
    (commit / "onnx" / "model.onnx").symlink_to("../../../blobs/abc")
    return commit


def test_a_snapshot_of_a_hugging_face_cache_is_read_as_the_files_that_it_shows(tmp_path: Path) -> None:
    commit = snapshot_in_a_cache(tmp_path)
    plain = write_tree(tmp_path / "plain", {"config.json": b"{}", "onnx/model.onnx": b"w" * 1000})
    tree = read_tree(commit, follow_links="inside")
    assert tree.files == read_tree(plain).files
    assert digest_directory(commit) == digest_directory(plain)
    assert bytes(tree.read("onnx/model.onnx", 990, 10)) == b"w" * 10
    (tmp_path / "current").symlink_to(commit, target_is_directory=True)
    assert digest_directory(tmp_path / "current") == digest_directory(plain)
    assert [file.path for file in read_tree(commit / "onnx", follow_links="inside").files] == ["model.onnx"]


def test_a_snapshot_shares_files_with_other_models_of_its_cache_and_with_nobody_else(tmp_path: Path) -> None:
    commit = snapshot_in_a_cache(tmp_path)
    write_tree(tmp_path, {"blobs/40/4008": b"shared", "models--org--other/blobs/x": b"not this model's"})
    (commit.parent.parent / "blobs" / "ghi").symlink_to("../../blobs/40/4008")
    (commit / "shared.bin").symlink_to("../../blobs/ghi")
    tree = read_tree(commit, follow_links="inside")
    assert bytes(tree.read("shared.bin", 0, 6)) == b"shared"
    (commit / "other").symlink_to("../../../models--org--other/blobs/x")
    with pytest.raises(InvalidInput, match="leads out of the source"):
        read_tree(commit, follow_links="inside")


def test_a_snapshot_that_lacks_files_is_refused_unless_they_are_not_meant(tmp_path: Path) -> None:
    commit = snapshot_in_a_cache(tmp_path)
    sizes = {".gitattributes": 5, "config.json": 2, "onnx/model.onnx": 1000, "onnx/more.onnx": 7}
    tree = {"format_version": 1, "files": {path: {"size": size, "blob_id": "x"} for path, size in sizes.items()}}
    listing = write_tree(commit.parent.parent, {"trees/0123.json": json.dumps(tree).encode()}) / "trees/0123.json"
    for source in (commit, commit / "onnx"):
        with pytest.raises(
            InvalidInput, match=r"only some files of org/name:0123: 'onnx/more.onnx' is missing, or cut"
        ):
            read_tree(source, follow_links="inside")
    chosen = read_tree(commit, follow_links="inside", choice=Choice(exclude=["more.onnx"]))
    assert [file.path for file in chosen.files] == ["config.json", "onnx/model.onnx"]
    (commit.parent.parent / "blobs" / "def").write_bytes(b"{")
    with pytest.raises(InvalidInput, match=r"'config.json' is missing, or cut"):
        read_tree(commit, follow_links="inside", choice=Choice(exclude=["more.onnx"]))
    listing.write_bytes(b"no JSON")  # nothing tells, then
    assert len(read_tree(commit, follow_links="inside").files) == 2


OUTSIDE: dict[str, tuple[str, str]] = {
    "a file outside": ("../secret", "leads out of the source"),
    "a file outside, by an absolute path": ("/etc/passwd", "leads out of the source"),
    "a file whose directory's name begins alike": ("../model2/x", "leads out of the source"),
    "a file outside, through a link to a directory": ("through/secret", "leads out of the source"),
    "a directory inside": ("tokenizer", "to a directory"),
    "the source": (".", "out of the source"),
    "a fifo": ("fifo", "neither a file nor a directory"),
    "nothing": ("nowhere", "leads nowhere"),
    "itself": ("link", "leads nowhere"),
}


@pytest.mark.parametrize("target", OUTSIDE)
@pytest.mark.row("D4", of="source")
def test_a_link_that_leads_to_anything_else_is_refused_with_its_path(model: Path, target: str) -> None:
    leads_to, reason = OUTSIDE[target]
    write_tree(model.parent, {"secret": b"not yours", "model2/x": b"not yours"})
    link, extra = model / "link", model / leads_to
    if target == "a fifo":
        os.mkfifo(extra)
    if target.endswith("to a directory"):
        link = model / "tokenizer" / "link"
        (model / "tokenizer" / "through").symlink_to("../..", target_is_directory=True)
    link.symlink_to(leads_to)
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_tree(model, follow_links="inside")
    assert caught.value.argument == "source"
    if target != "a fifo" and not target.endswith("to a directory"):
        assert "'link' is a symbolic link" in str(caught.value)


@pytest.mark.parametrize("leads_to", ["../../../models--org--other/blobs/abc", "../../../../secret"])
def test_a_snapshot_that_leads_out_of_its_own_cache_is_refused(tmp_path: Path, leads_to: str) -> None:
    commit = snapshot_in_a_cache(tmp_path / "hub")
    write_tree(tmp_path, {"secret": b"not yours", "hub/models--org--other/blobs/abc": b"not yours"})
    (commit / "link").symlink_to(leads_to)
    with pytest.raises(InvalidInput, match="leads out of the source"):
        read_tree(commit, follow_links="inside")


def test_a_link_put_in_the_place_of_a_directory_is_never_followed(model: Path) -> None:
    """Another user of the disk swaps a directory for a link while the source is being scanned, over and over."""
    secret = write_tree(model.parent / "secret", {"vocab.txt": b"not yours"})
    away, end = model.parent / "away", threading.Event()

    def swap() -> None:
        while not end.is_set():
            (model / "tokenizer").rename(away)
            (model / "tokenizer").symlink_to(secret, target_is_directory=True)
            (model / "tokenizer").unlink()
            away.rename(model / "tokenizer")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(150):
            with contextlib.suppress(SourceChanged, InvalidInput):
                found = {file.path: file for file in read_tree(model, follow_links="inside").files}
                read = found.get("tokenizer/vocab.txt")
                assert read is None or read.size == len(FILES["tokenizer/vocab.txt"])
    finally:
        end.set()
        thread.join()


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


def _replace_by_a_pipe_that_somebody_writes_to(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    os.open(path, os.O_RDWR | os.O_NONBLOCK)  # until the process ends


CHANGES: dict[str, Callable[[Path], Any]] = {
    "rewritten, and its time set back": lambda path: rewrite_and_set_back(path, b"new"),
    "turned into a fifo with a writer": _replace_by_a_pipe_that_somebody_writes_to,
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
    for length in (1, tree.stamps["weights.bin"].size):
        with pytest.raises(SourceChanged, match=WEIGHTS):
            tree.read("weights.bin", 0, length)


@pytest.mark.parametrize("size", [100, digest.SMALL, digest.SMALL + 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_changed_before_its_turn_to_be_hashed_is_noticed(tmp_path: Path, change: str, size: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "empty").touch()
    was_changed: list[int] = []

    def change_the_other(_: int) -> None:
        if not was_changed:
            was_changed.append(1)
            for name in ("a", "b"):
                CHANGES[change](tmp_path / name)

    with pytest.raises(SourceChanged, match=r"'[ab]'"):
        read_tree(tmp_path, on_bytes=change_the_other)


@pytest.mark.parametrize("changed", [0, digest.SPAN - 1, digest.SPAN, 3 * digest.SPAN + 99])
@pytest.mark.row("D3", of="source")
def test_bytes_written_through_a_map_since_they_were_hashed_are_never_given_out(tmp_path: Path, changed: int) -> None:
    size = 3 * digest.SPAN + 100
    path = tmp_path / "w.bin"
    path.write_bytes(random.Random(1).randbytes(size))
    with mapped(path) as view:
        tree = read_tree(path)
        assert bytes(tree.read("w.bin", 0, size)) == view[:]
        view[changed] ^= 1
        first, last = max(0, changed - 2), min(size, changed + 3)
        for offset, length in [(0, size), (changed, 1), (first, last - first)]:
            with pytest.raises(SourceChanged, match=r"'w\.bin' changed"):
                tree.read("w.bin", offset, length)


@pytest.mark.parametrize("checked", [None, CRC32, CRC32C, CRC64])
def test_a_large_model_is_guarded_by_what_is_checked_or_else_the_cheapest_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: str | None
) -> None:
    monkeypatch.setattr(checksums, "_WORTH_LOADING", 0)
    content = random.Random(1).randbytes(3 * digest.SPAN + 100)
    (tmp_path / "w.bin").write_bytes(content)
    with mapped(tmp_path / "w.bin") as view:
        tree = read_tree(tmp_path, checked=checked)
        assert tree.checksum.kind == (checked or CRC64)
        assert bytes(tree.read("w.bin", 5, 3 * digest.SPAN)) == content[5 : 3 * digest.SPAN + 5]
        view[digest.SPAN] ^= 1
        with pytest.raises(SourceChanged, match=r"w\.bin"):
            tree.read("w.bin", digest.SPAN - 10, 20)


@pytest.mark.parametrize("checked", [CRC32, CRC32C, CRC64])
@pytest.mark.parametrize("size", [0, 1, digest.SPAN, 3 * digest.SPAN, 3 * digest.SPAN + 100])
def test_checksums_of_parts_are_those_of_their_bytes_as_they_were_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: str, size: int
) -> None:
    monkeypatch.setattr(checksums, "_WORTH_LOADING", 0)
    content = random.Random(1).randbytes(size)
    (tmp_path / "w.bin").write_bytes(content)
    tree = read_tree(tmp_path, checked=checked)
    (tmp_path / "w.bin").unlink()  # nothing is read for them
    places = [*range(0, size, digest.SPAN), size]
    for start, end in [*combinations(places, 2)] if size else [(0, 0)]:
        told = checksums.checksum_of(checked, memoryview(content[start:end]))
        assert tree.checked("w.bin", start, end - start) == {checked: told}
    if size > digest.SPAN:
        assert tree.checked("w.bin", 1, digest.SPAN - 1) == tree.checked("w.bin", 0, digest.SPAN + 1) == {}


def test_of_a_file_that_was_not_hashed_no_checksum_is_known(model: Path) -> None:
    remembered: dict[str, str] = {}
    read_tree(model, remembered=remembered)
    tree = read_tree(model, remembered=remembered)
    assert tree.checked("weights.bin", 0, len(FILES["weights.bin"])) == {}
    tree.prepare(["weights.bin"], CancelToken())
    assert tree.checked("weights.bin", 0, len(FILES["weights.bin"])) != {}


@pytest.mark.parametrize("size", [1, digest.SPAN, digest.SPAN + 1, digest.BLOCK, digest.BLOCK + 5])
def test_any_range_can_be_read(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "w.bin").write_bytes(content)
    tree = read_tree(tmp_path / "w.bin")
    for start in {0, 1, size // 2, digest.SPAN - 1, digest.SPAN, size - 1}:
        for end in {start + 1, start + digest.SPAN, size}:
            if start < end <= size:
                assert bytes(tree.read("w.bin", start, end - start)) == content[start:end]


def test_a_cancelled_token_ends_the_hashing(model: Path) -> None:
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        read_tree(model, cancel=cancel, on_bytes=lambda _: cancel.cancel())


def test_a_cancelled_token_ends_the_hashing_of_a_large_file_soon(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 30)  # a hole: nothing is written
    cancel, others = CancelToken(), set(threading.enumerate())  # of tests before
    with killed(cancel, after=0.2), pytest.raises(Cancelled):
        read_tree(tmp_path / "large", cancel=cancel)
    left = [thread for thread in threading.enumerate() if thread.name == "modelsync-worker" and thread not in others]
    assert not left, "a thread was left behind, still hashing"


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


@pytest.mark.parametrize("change", ["touched", "truncated", "replaced", "rewritten, and its time set back"])
def test_a_remembered_hash_is_not_used_for_a_file_that_was_touched(model: Path, change: str) -> None:
    tree = read_tree(model)
    remembered = {memory_key("weights.bin", tree.stamps["weights.bin"]): "f" * 64}
    CHANGES[change](model / "weights.bin")
    hashes = {file.path: file.sha256 for file in read_tree(model, remembered=remembered).files}
    assert hashes["weights.bin"] == hashlib.sha256((model / "weights.bin").read_bytes()).hexdigest()


def test_a_remembered_hash_is_proved_before_a_byte_of_the_file_is_given_out(in_memory: Path) -> None:
    model = write_tree(in_memory / "model", FILES)
    remembered: dict[str, str] = {}
    with mapped(model / "weights.bin") as view:
        read_tree(model, remembered=remembered)
        tree = read_tree(model, remembered=remembered)
        assert bytes(tree.read("weights.bin", 5, 10)) == FILES["weights.bin"][5:15]
        view[2000] ^= 1
        tree = read_tree(model, remembered=remembered)
        with pytest.raises(SourceChanged, match=WEIGHTS):
            tree.read("weights.bin", 0, 10)
        with pytest.raises(SourceChanged, match=WEIGHTS):
            tree.prepare(["weights.bin"], CancelToken())


@pytest.mark.parametrize("size", [3000, digest.SMALL + 1])
@pytest.mark.row("D3", of="source")
def test_a_file_that_others_prove_is_looked_at_again_when_they_refuse_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(random.Random(1).randbytes(size))
    with mapped(path) as view:
        tree = read_tree(path, is_proved=True)
        assert not tree.checksums
        tree.recheck("w.bin", CancelToken())
        view[2000] ^= 1
        with pytest.raises(SourceChanged, match=r"'w\.bin' changed"):
            tree.recheck("w.bin", CancelToken())
        with pytest.raises(SourceChanged, match=r"'w\.bin' changed"):  # whoever is not refused anything compares
            tree.read("w.bin", 0, 1)


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_others_prove_cannot_be_changed_unnoticed_either(model: Path, change: str) -> None:
    tree = read_tree(model, is_proved=True)
    loose = tree.loose("weights.bin")
    with loose.opened() as descriptor:
        loose.read_into(descriptor, 5, view := memoryview(bytearray(10)))
        assert view == FILES["weights.bin"][5:15]
    CHANGES[change](model / "weights.bin")
    with pytest.raises(SourceChanged, match=WEIGHTS), loose.opened():
        pass
    with pytest.raises(SourceChanged, match=WEIGHTS):
        tree.recheck("weights.bin", CancelToken())


def test_a_remembered_hash_is_of_one_file_on_one_disk(model: Path) -> None:
    stamp = read_tree(model).stamps["weights.bin"]
    keys = {memory_key("weights.bin", stamp._replace(**{field: 1})) for field in ("device", "inode", "ctime_ns")}
    assert len(keys | {memory_key("weights.bin", stamp)}) == 4


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


@pytest.mark.slow
@settings(max_examples=25)
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

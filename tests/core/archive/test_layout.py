"""The archive that is never written: any range of its bytes is that of a real one, and the source is watched."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import tarfile
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive.digest import SPAN, FileEntry, Source, SourceTree, Stamp, read_tree
from airflow_provider_modelsync.core.archive.extract import extract_archive
from airflow_provider_modelsync.core.archive.layout import Kind, TarLayout, _header
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, SourceChanged
from tests.core.archive.holes import sums_of_zeros
from tests.core.archive.hostile import WITH_FIXTURES, scratch
from tests.support.descriptors import opened

LONG = "/".join(["long" * 40] * 3) + "/name"
FILES = {
    "model.bin": random.Random(1).randbytes(3_000_001),
    "a.txt": b"a",
    "a/b": b"b" * 512,
    "a/c/exact": b"c" * 1024,
    "empty": b"",
    LONG: b"long",
    "é/模型🤗": "模型".encode(),
    "blank ' and \" quote": b"q",
    "run.sh": b"#!/bin/sh\n",
}


def build(root: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        if path.endswith(".sh"):
            place.chmod(0o700)
    (root / "void" / "inner").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("layout") / "source")


@pytest.fixture(scope="module")
def layout(source: Path) -> TarLayout:
    return TarLayout.of(source)


@pytest.fixture(scope="module")
def whole(layout: TarLayout) -> bytes:
    return layout.read(0, layout.size)


def content_of(root: Path) -> dict[str, tuple[bytes | None, bool]]:
    return {
        str(path.relative_to(root)): (path.read_bytes() if path.is_file() else None, bool(path.stat().st_mode & 0o100))
        for path in root.rglob("*")
    }


# --- other readers ---------------------------------------------------------------------------------------------------


def test_gnu_tar_unpacks_the_source(source: Path, whole: bytes, tmp_path: Path) -> None:
    done = subprocess.run(["tar", "-x", "-C", tmp_path], input=whole, check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert content_of(tmp_path) == content_of(source)


def test_the_standard_library_unpacks_the_source(source: Path, whole: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.extractall(tmp_path)
    assert content_of(tmp_path) == content_of(source)


def test_our_own_reader_unpacks_the_source(source: Path, layout: TarLayout, tmp_path: Path) -> None:
    tree = extract_archive(layout.reader(), tmp_path / "target")
    assert content_of(tmp_path / "target") == content_of(source)
    assert tree.digest == layout.tree.digest
    assert (tree.files, tree.directories) == (layout.tree.files, layout.tree.directories)


def test_a_single_file_is_an_archive_of_one_member(source: Path) -> None:
    assert [member.name for member in TarLayout.of(source / "a.txt").members] == ["a.txt"]


# --- the bytes -------------------------------------------------------------------------------------------------------


def test_members_are_sorted_and_hold_their_parents(layout: TarLayout) -> None:
    found = [member.name for member in layout.members]
    assert found == sorted(found, key=str.encode)
    assert set(found) == {*FILES, "a/", "a/c/", "é/", "void/", "void/inner/"} | {
        LONG[: LONG.index("/", start) + 1] for start in (0, 161, 322)
    }


def test_members_say_where_their_content_is(layout: TarLayout, whole: bytes) -> None:
    for member in layout.members:
        if member.kind == "file":
            assert whole[member.offset : member.offset + member.size] == FILES[member.name]
        else:
            assert (member.kind, member.size) == ("directory", 0)
    last = layout.members[-1]
    end = last.offset + last.size
    assert whole[end:] == bytes(layout.size - end)
    assert layout.size - end >= 1024
    assert layout.size == len(whole)
    assert layout.size % 10240 == 0


def test_headers_tell_nothing_of_owner_time_and_mode(whole: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        for info in archive:
            assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", 0)
            assert info.mode == (0o755 if info.isdir() or info.name == "run.sh" else 0o644)


def test_the_same_files_give_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    other = build(tmp_path / "elsewhere", dict(reversed(FILES.items())))
    (other / "a.txt").chmod(0o666)
    os.utime(other / "a.txt", (1, 1))
    if os.geteuid() == 0:
        os.chown(other / "a.txt", 1234, 1234)
    again = TarLayout.of(str(other))
    assert hashlib.sha256(again.read(0, again.size)).digest() == hashlib.sha256(whole).digest()


def test_the_executable_bit_is_part_of_the_bytes(whole: bytes, tmp_path: Path) -> None:
    other = build(tmp_path / "elsewhere")
    (other / "a.txt").chmod(0o755)
    again = TarLayout.of(other)
    assert again.size == len(whole)
    assert again.read(0, again.size) != whole


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=WITH_FIXTURES)
@given(data=st.data())
def test_any_range_equals_the_slice_of_the_whole(data: st.DataObject, layout: TarLayout, whole: bytes) -> None:
    edges = [edge for member in layout.members for edge in (member.header_offset, member.offset)]
    near = st.builds(lambda edge, step: max(0, edge + step), st.sampled_from(edges), st.integers(-3, 3))
    offset = data.draw(near | st.integers(0, layout.size + 10))
    length = data.draw(st.integers(0, 3000) | st.integers(0, layout.size + 10))
    assert layout.read(offset, length) == whole[offset : offset + length]
    buffer = bytearray(b"?" * length)
    count = layout.readinto(offset, memoryview(buffer))
    assert buffer == whole[offset : offset + length] + b"?" * (length - count)
    assert layout.reader(offset, length).read() == whole[offset : offset + length]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=WITH_FIXTURES)
@given(
    files=st.dictionaries(
        st.text("abé/模", min_size=1, max_size=150).map(lambda text: "x" + text.replace("/", "/x")),
        st.binary(max_size=1100),
        min_size=1,
        max_size=8,
    ),
    step=st.integers(1, 5000),
)
def test_any_model_makes_the_round_trip(files: dict[str, bytes], step: int) -> None:
    with scratch() as room:
        try:
            for path, content in files.items():
                (room / "source" / path).parent.mkdir(parents=True, exist_ok=True)
                (room / "source" / path).write_bytes(content)
            layout = TarLayout.of(room / "source")
        except (OSError, InvalidInput):
            reject()  # a file where a directory is needed, or two names that clash
        whole = b"".join(layout.read(offset, step) for offset in range(0, layout.size, step))
        assert len(whole) == layout.size
        assert extract_archive(io.BytesIO(whole), room / "target").digest == layout.tree.digest


def test_a_negative_range_is_a_mistake(layout: TarLayout) -> None:
    for call in (
        lambda: layout.readinto(-1, bytearray(1)),
        lambda: layout.reader(-1, 1),
        lambda: layout.reader(0, -1),
        lambda: layout.reader().seek(-1),
    ):
        with pytest.raises(ValueError, match="negative"):
            call()


def test_a_reader_is_a_body_that_can_be_sent_again(layout: TarLayout, whole: bytes) -> None:
    reader = layout.reader(100, 5000)
    assert len(reader) == 5000
    assert (reader.readable(), reader.seekable(), reader.writable()) == (True, True, False)
    for _ in range(2):
        parts = list(iter(lambda: reader.read(999), b""))
        assert b"".join(parts) == whole[100:5100]
        assert reader.tell() == 5000
        assert reader.seek(0) == 0
    assert reader.seek(-10, os.SEEK_END) == 4990
    assert reader.seek(5, os.SEEK_CUR) == 4995
    assert reader.read(99) == whole[5095:5100]
    assert reader.read() == b""
    reader.seek(10**9)
    assert reader.read(1) == b""


def test_a_reader_ends_where_the_archive_ends(layout: TarLayout) -> None:
    assert len(layout.reader(layout.size - 5, 100)) == 5
    assert len(layout.reader(layout.size + 5, 100)) == 0
    assert len(layout.reader(5)) == layout.size - 5


def test_many_threads_read_at_once(layout: TarLayout, whole: bytes) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            offset, length = chance.randrange(layout.size), chance.randrange(200_000)
            if layout.read(offset, length) != whole[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- generated members -----------------------------------------------------------------------------------------------


def test_generated_members_stand_beside_the_source(source: Path, tmp_path: Path) -> None:
    extra = {"model.yaml": b"name: tiny\n", "meta/é": b"", "meta/big": b"m" * 2000}
    layout = TarLayout.from_tree(read_tree(source), generated=extra)
    assert {member.name for member in layout.members if member.kind == "generated"} == set(extra)
    extract_archive(layout.reader(), tmp_path / "target")
    expected = content_of(source) | {path: (content, False) for path, content in extra.items()} | {"meta": (None, True)}
    assert content_of(tmp_path / "target") == expected
    whole = layout.read(0, layout.size)
    assert all(layout.read(offset, 700) == whole[offset : offset + 700] for offset in range(0, 30_000, 333))


@pytest.mark.parametrize("path", ["a.txt", "A.TXT", "a", "a.txt/b", "e\u0301/模型🤗", "void"])
def test_a_generated_member_never_takes_the_place_of_the_source(path: str, source: Path) -> None:
    with pytest.raises(InvalidInput, match="generated"):
        TarLayout.from_tree(read_tree(source), generated={path: b""})


@pytest.mark.parametrize("path", ["", "/a", "../a", "b/", ".modelsync/a"])
def test_a_generated_name_must_be_good(path: str, source: Path) -> None:
    with pytest.raises(InvalidInput, match="generated path"):
        TarLayout.from_tree(read_tree(source), generated={path: b""})


# --- a source that changes -------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    path.write_bytes(b"A")
    os.utime(path, (1, 1))


def replace(path: Path) -> None:
    facts = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(path)


def relink(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def shorten(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    os.truncate(path, 9)


def repipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        replace,
        relink,
        repipe,
        Path.unlink,
        shorten,
        lengthen,
    ],
)
def test_a_changed_file_is_noticed(change: Callable[[Path], object], tmp_path: Path) -> None:
    layout = TarLayout.of(build(tmp_path / "source", {"a": b"a", "b": b"b"}))
    first = layout.read(0, layout.size)
    change(tmp_path / "source" / "a")
    with pytest.raises(SourceChanged, match="'a'"):
        layout.read(0, layout.size)
    assert layout.read(layout.members[1].header_offset, 1024) == first[1024:2048]


def test_a_change_while_a_file_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = TarLayout.of(build(tmp_path / "source", {"a": b"a" * 100}))
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(tmp_path / "source" / "a", 50)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(SourceChanged):
        layout.read(0, layout.size)


def test_a_failing_disk_is_told_with_the_path(layout: TarLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(RegistryUnavailable, match=r"reading 'a\.txt': Input/output error"):
        layout.read(0, layout.size)


def test_the_files_in_a_range_are_those_that_it_holds_a_byte_of(layout: TarLayout) -> None:
    paths = [member.name for member in layout.members if member.kind == "file"]
    assert layout.files_in(0, layout.size) == paths
    for member in layout.members:
        whole = member.offset + member.size - member.header_offset
        expected = [member.name] if member.kind == "file" else []
        assert layout.files_in(member.header_offset, whole) == expected
        assert set(layout.files_in(member.header_offset - 1, whole + 1)) >= set(expected)


# --- large and many --------------------------------------------------------------------------------------------------


def test_a_file_of_more_than_8_gib_is_laid_out(tmp_path: Path) -> None:
    size, mark = 9 << 30, b"the end"
    with open(tmp_path / "huge", "wb") as file:  # with a hole, so it takes no room
        file.truncate(size - len(mark))
        file.seek(size - len(mark))
        file.write(mark)
    (tmp_path / "last").write_bytes(b"last")
    stamps = {name: Stamp.of((tmp_path / name).stat()) for name in ("huge", "last")}
    files = tuple(FileEntry(name, stamp.size, "0" * 64) for name, stamp in stamps.items())
    before = sums_of_zeros(size - SPAN)
    huge_sums = [*before, zlib.crc32(bytes(SPAN - len(mark)) + mark, before[-1])]
    checksums = {"huge": huge_sums, "last": [zlib.crc32(b"last")]}
    layout = TarLayout.from_tree(SourceTree(tmp_path, files, (), stamps, checksums=checksums))
    huge = layout.members[0]
    assert layout.read(huge.offset + size - 7, 7) == mark
    assert layout.read(huge.offset + (5 << 30), 100) == bytes(100)
    with tarfile.open(fileobj=layout.reader()) as archive:
        assert [(info.name, info.size) for info in archive] == [("huge", size), ("last", 4)]
        content = archive.extractfile("last")
        assert content is not None
        assert content.read() == b"last"


def made_up(count: int, name: Callable[[int], str]) -> SourceTree:
    files = tuple(FileEntry(name(number), number, f"{number:064x}") for number in range(count))
    return SourceTree(Path("/nowhere"), files, (), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [lambda number: f"weights/{number // 100}/layer-{number:06}.bin", lambda number: f"{'é' * 60}/{number:06}"]
)
def test_a_layout_takes_little_memory_and_time(name: Callable[[int], str]) -> None:
    count = 1000
    tree = made_up(count, name)
    start = time.thread_time()
    tracemalloc.start()
    try:
        layout = TarLayout.from_tree(tree)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / count <= 1536
    assert time.thread_time() - start < 5
    assert len(layout.members) >= count


def test_many_small_files_are_read_without_leaving_descriptors_open(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04}").write_bytes(b"%04d" % number)
    layout = TarLayout.of(tmp_path)
    start = time.thread_time()
    whole = layout.read(0, layout.size)
    assert time.thread_time() - start < 8
    assert not opened(tmp_path)
    assert all(whole[n * 1024 + 512 : n * 1024 + 516] == b"%04d" % n for n in range(2000))


def tobuf(name: str, kind: Kind, size: int, executable: bool) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o755 if executable or kind == "directory" else 0o644
    info.type = tarfile.DIRTYPE if kind == "directory" else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@settings(max_examples=100)
@given(
    name=st.text(st.sampled_from("abcXYZ019 ._-/é模🤗"), min_size=1, max_size=110),
    size=st.one_of(st.integers(0, 1 << 34), st.sampled_from([0, (1 << 33) - 1, 1 << 33])),
    kind=st.sampled_from(["file", "generated", "directory"]),
    executable=st.booleans(),
)
@example(name="a" * 100, size=1, kind="file", executable=False)
@example(name="a" * 101, size=1, kind="file", executable=False)
@example(name="a" * 99 + "/", size=0, kind="directory", executable=False)
@example(name="a" * 100 + "/", size=0, kind="directory", executable=False)
@example(name="\x7f" * 100, size=(1 << 33) - 1, kind="file", executable=True)
def test_a_header_is_the_standard_library_s(name: str, kind: Kind, size: int, executable: bool) -> None:
    if kind == "directory":
        name, size = f"{name.rstrip('/')}/", 0
    assert _header(name, kind, size, executable) == tobuf(name, kind, size, executable)


class Elsewhere(Source):
    """A model whose files come only when two of them are asked for at a time."""

    directories = ()

    def __init__(self, count: int) -> None:
        self.files = tuple(FileEntry(f"{number:03}", 1, "") for number in range(count))
        self._both = threading.Barrier(2)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        self._both.wait(20)
        view[:] = b"x" * len(view)
        return len(view)

    def confirm(self, paths: Iterable[str]) -> None:
        pass


def test_files_that_come_from_elsewhere_are_waited_for_side_by_side() -> None:
    layout = TarLayout.from_tree(Elsewhere(40))
    halves = [layout.members[0].header_offset, layout.members[20].header_offset]
    with ThreadPoolExecutor(2) as pool:
        read = list(pool.map(lambda start: layout.read(start, 20 * 1024), halves))
    assert [half.count(b"x" + bytes(511)) for half in read] == [20, 20]


# --- which archive it is ---------------------------------------------------------------------------------------------


def test_a_copy_elsewhere_has_the_same_fingerprint(source: Path, layout: TarLayout, tmp_path: Path) -> None:
    copy = build(tmp_path / "copy")
    for number, path in enumerate(copy.rglob("*")):
        os.utime(path, ns=(number, number))
        if os.geteuid() == 0:
            os.chown(path, 12345, 54321)
    other = TarLayout.of(copy)
    assert other.fingerprint == layout.fingerprint
    assert other.read(0, other.size) == layout.read(0, layout.size)
    assert len(bytes.fromhex(other.fingerprint)) == 32


def test_a_fingerprint_knows_generated_files_by_their_content(layout: TarLayout) -> None:
    tree = layout.tree
    fingerprints = [
        TarLayout.from_tree(tree, generated=generated).fingerprint
        for generated in ({}, {"model.yaml": b"a"}, {"model.yaml": b"b"}, {"model.yml": b"a"}, {"m": b"", "n": b"a"})
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert TarLayout.from_tree(tree, generated={"model.yaml": b"a"}).fingerprint == fingerprints[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "model.bin").write_bytes(FILES["model.bin"][:-1] + b"!"),
        lambda root: (root / "model.bin").write_bytes(FILES["model.bin"] + b"\0"),
        lambda root: (root / "a.txt").rename(root / "b.txt"),
        lambda root: (root / "a.txt").unlink(),
        lambda root: (root / "more").write_bytes(b""),
        lambda root: (root / "a.txt").chmod(0o755),
        lambda root: (root / "run.sh").chmod(0o644),
        lambda root: (root / "void" / "another").mkdir(),
        lambda root: (root / "void" / "inner").rmdir(),
    ],
    ids=["content", "size", "name", "fewer", "more", "executable", "not executable", "directory", "no directory"],
)
def test_another_archive_has_another_fingerprint(
    layout: TarLayout, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    root = build(tmp_path / "other")
    change(root)
    other = TarLayout.of(root)
    assert other.read(0, other.size) != layout.read(0, layout.size)
    assert other.fingerprint != layout.fingerprint


def test_bits_that_no_archive_holds_are_not_in_the_fingerprint(layout: TarLayout, tmp_path: Path) -> None:
    root = build(tmp_path / "other")
    (root / "a.txt").chmod(0o640)
    (root / "void").chmod(0o700)
    assert TarLayout.of(root).fingerprint == layout.fingerprint

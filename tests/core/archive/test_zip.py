"""A zip that is never written: the same files give the same bytes, and any reader of zips takes them."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source, SourceTree, read_tree
from airflow_provider_modelsync.core.archive.zip import FileLayout, ZipLayout, add_to_checksum, add_to_hash
from airflow_provider_modelsync.core.errors import SourceChanged
from tests.core.stores import write_tree

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "model/weights.bin": bytes(range(256)) * 5000,
    "model/größe/日本.txt": "täglich".encode(),
}


def write(root: Path) -> Path:
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "nothing" / "inside").mkdir(parents=True)
    (root / "config.json").chmod(0o755)
    return root


def layout_of(tree: Source) -> ZipLayout:
    return ZipLayout(tree, {file.path: add_to_checksum(tree, file.path, 0, file.size) for file in tree.files})


class Huge(Source):
    """Files of any size that hold zeros."""

    def __init__(self, *files: FileEntry) -> None:
        self.files = files
        self.directories = ()

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        view[:] = bytes(len(view))
        return len(view)

    def confirm(self) -> None:
        raise NotImplementedError


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    return read_tree(write(tmp_path / "model"))


def test_zipfile_reads_every_member_back(tree: SourceTree) -> None:
    with zipfile.ZipFile(layout_of(tree).reader()) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")} == FILES
        assert [name for name in archive.namelist() if name.endswith("/")] == ["nothing/inside/"]
        assert archive.getinfo("nothing/inside/").is_dir()


def test_members_are_sorted_and_stored_as_they_are(tree: SourceTree) -> None:
    with zipfile.ZipFile(layout_of(tree).reader()) as archive:
        names = archive.namelist()
        assert names == sorted(names, key=str.encode)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_of_the_mode_only_the_right_to_execute_is_kept(tree: SourceTree) -> None:
    with zipfile.ZipFile(layout_of(tree).reader()) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes["config.json"] == stat.S_IFREG | 0o755
    assert modes["model/weights.bin"] == stat.S_IFREG | 0o644
    assert modes["nothing/inside/"] == stat.S_IFDIR | 0o755


def test_times_owners_and_places_do_not_count(tree: SourceTree, tmp_path: Path) -> None:
    other = write(tmp_path / "elsewhere")
    os.utime(other / "config.json", (1, 1))
    (other / "empty").chmod(0o600)
    assert layout_of(read_tree(other)).reader().readall() == layout_of(tree).reader().readall()


def test_one_byte_more_is_another_zip(tree: SourceTree, tmp_path: Path) -> None:
    other = write(tmp_path / "elsewhere")
    (other / "empty").write_bytes(b"x")
    assert layout_of(read_tree(other)).reader().readall() != layout_of(tree).reader().readall()


@pytest.mark.parametrize("block", [1, 7, 4096, 1 << 20])
def test_any_range_is_what_the_whole_has_there(tree: SourceTree, block: int) -> None:
    layout = layout_of(tree)
    whole = layout.reader().readall()
    assert len(whole) == layout.size
    starts = range(0, layout.size, block) if block > 100 else range(0, 600, block)
    for start in starts:
        assert layout.reader(start, block).readall() == whole[start : start + block]


def test_a_range_ends_where_the_zip_ends(tree: SourceTree) -> None:
    layout = layout_of(tree)
    buffer = bytearray(100)
    assert layout.readinto(layout.size - 10, buffer) == 10
    assert layout.readinto(layout.size, buffer) == 0


def test_a_file_that_changed_is_not_sent(tree: SourceTree) -> None:
    layout = layout_of(tree)
    (tree.root / "config.json").write_bytes(b"[]")
    with pytest.raises(SourceChanged, match=r"config\.json"):
        layout.reader().readall()


def test_the_checksum_goes_on_where_it_stopped(tree: SourceTree) -> None:
    path, content = "model/weights.bin", FILES["model/weights.bin"]
    first = add_to_checksum(tree, path, 0, 1000)
    assert add_to_checksum(tree, path, 1000, len(content) - 1000, first) == zlib.crc32(content)


def test_the_hash_is_that_of_the_whole(tree: SourceTree) -> None:
    layout = layout_of(tree)
    total = hashlib.sha256()
    for offset in range(0, layout.size, 10_000):
        add_to_hash(layout, total, offset, 10_000)
    assert total.digest() == hashlib.sha256(layout.reader().readall()).digest()


def test_files_beyond_4_gib_use_the_fields_of_64_bits() -> None:
    big = 5 << 30
    source = Huge(FileEntry("a-big", big, ""), FileEntry("b-small", 3, ""), FileEntry("c-big", big, ""))
    layout = ZipLayout(source, {"a-big": 0, "b-small": zlib.crc32(bytes(3)), "c-big": 0})
    assert layout.size > 2 * big
    with zipfile.ZipFile(layout.reader()) as archive:
        assert [(info.filename, info.file_size) for info in archive.infolist()] == [
            ("a-big", big),
            ("b-small", 3),
            ("c-big", big),
        ]
        assert archive.getinfo("c-big").header_offset > big
        assert archive.read("b-small") == bytes(3)  # lies beyond 4 GiB: its header is found and its checksum fits
        with archive.open("c-big") as member:
            assert member.read(10) == bytes(10)


@pytest.mark.slow
def test_more_members_than_16_bits_count_are_all_there() -> None:
    count = 70_000
    files = [FileEntry(f"{number:05}", 0, "") for number in range(count)]
    layout = ZipLayout(Huge(*files), dict.fromkeys((file.path for file in files), 0))
    with zipfile.ZipFile(layout.reader()) as archive:
        assert len(archive.infolist()) == count
        assert archive.read("69999") == b""


def test_one_file_is_read_as_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path / "model", {"sub/a.onnx": b"bytes"})
    tree = read_tree(tmp_path / "model")
    layout = FileLayout(tree, tree.files[0])
    assert layout.size == 5
    assert [layout.reader().readall() for _ in range(2)] == [b"bytes", b"bytes"]

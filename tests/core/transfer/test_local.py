from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, read_tree
from airflow_provider_modelsync.core.errors import Cancelled, DiskFull
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.transfer.local import ReadInto, copy_files
from tests.core.stores import snapshot, write_tree

FILES = {"large": bytes(range(256)) * 10_000, "a/b/small": b"x", "empty": b""}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", FILES, executable=["a/b/small"], directories=["void/deeper"])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "target", {})


def _copy(
    source: Path,
    target: Path,
    *,
    cancel: CancelToken | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
    read_into: ReadInto | None = None,
) -> tuple[FileEntry, ...]:
    tree = read_tree(source)
    return copy_files(
        tree.files,
        tree.directories,
        read_into or tree.read_into,
        target,
        workers=2,
        cancel=cancel or CancelToken(),
        on_bytes=on_bytes,
    )


def test_a_copy_equals_its_source(source: Path, target: Path) -> None:
    _copy(source, target)
    assert snapshot(target) == snapshot(source)


def test_what_was_written_is_returned_in_the_order_asked_for(source: Path, target: Path) -> None:
    assert _copy(source, target) == read_tree(source).files


@pytest.mark.row("H4", of="target")
def test_only_the_executable_bit_of_a_mode_is_kept(source: Path, target: Path) -> None:
    (source / "large").chmod(0o4666)
    (source / "a/b/small").chmod(0o6711)
    umask = os.umask(0o022)
    try:
        _copy(source, target)
    finally:
        os.umask(umask)
    modes = {path: (target / path).stat().st_mode & 0o7777 for path in FILES}
    assert modes == {"large": 0o644, "a/b/small": 0o755, "empty": 0o644}


def test_hashes_are_of_the_bytes_that_were_written(source: Path, target: Path) -> None:
    def read_another(path: str, offset: int, view: memoryview) -> int:
        view[:1] = b"x"
        return 0 if offset else 1

    written = {file.path: file for file in _copy(source, target, read_into=read_another)}
    assert (written["large"].size, written["large"].sha256) == (1, hashlib.sha256(b"x").hexdigest())


@pytest.mark.row("H5", of="target")
def test_no_more_is_asked_for_than_a_file_is_known_to_hold(source: Path, target: Path) -> None:
    """Whatever is behind it may grow for ever."""
    tree = read_tree(source)
    for want, got in zip(
        tree.files, _copy(source, target, read_into=lambda path, offset, view: len(view)), strict=True
    ):
        assert want.size == got.size


def test_moved_bytes_are_reported(source: Path, target: Path) -> None:
    counts: list[int] = []
    _copy(source, target, on_bytes=counts.append)
    assert sum(counts) == sum(map(len, FILES.values()))
    assert len(counts) > 2


def test_a_file_that_is_there_already_is_never_written_through(source: Path, target: Path) -> None:
    victim = target.with_name("victim")
    victim.write_bytes(b"precious")
    (target / "large").symlink_to(victim)
    with pytest.raises(Exception, match="File exists"):
        _copy(source, target)
    assert victim.read_bytes() == b"precious"


def test_a_cancelled_token_ends_the_copy(source: Path, target: Path) -> None:
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        _copy(source, target, cancel=cancel, on_bytes=lambda _: cancel.cancel())


def test_short_writes_are_continued(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100_000]))
    _copy(source, target)
    assert snapshot(target) == snapshot(source)


def test_a_full_disk_is_told_with_the_place(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DiskFull, match="No space left") as caught:
        _copy(source, target)
    assert str(target) in str(caught.value)


def test_no_file_is_made_durable_by_itself(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("fsync of one file"))
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: pytest.fail("fdatasync of one file"))
    assert len(_copy(source, target)) == len(FILES)

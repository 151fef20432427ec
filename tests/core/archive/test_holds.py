"""Whether names can be held is tried where they are going to be written; nothing is left there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.holds import require_held
from airflow_provider_modelsync.core.errors import InvalidInput

DOUBTFUL = ["aux.npy", "con/x", "w:0.npy", "dot.", "A.npy", "a.npy", "caf\u00e9", "cafe\u0301"]


def test_a_file_system_of_linux_holds_all_of_them_and_keeps_none(tmp_path: Path) -> None:
    require_held(tmp_path, DOUBTFUL, ["Empty", "empty", "aux"])
    assert list(tmp_path.iterdir()) == []


def test_names_that_every_file_system_holds_are_not_tried() -> None:
    require_held(Path("/nowhere/at/all"), ["weights.bin", "tokenizer/vocab.txt"], ["empty"])


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    """A disk as cameras and Windows have them, mounted by FUSE."""
    tools = {
        tool: shutil.which(tool, path=f"{os.environ['PATH']}:/sbin:/usr/sbin") for tool in ("mkfs.vfat", "fusefat")
    }
    if missing := [tool for tool, path in tools.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} not installed, so there is no disk here that cannot hold such names")
    disk, place = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(4 << 20)
    place.mkdir()
    subprocess.run([str(tools["mkfs.vfat"]), disk], check=True, capture_output=True)
    mounted = subprocess.run(
        [str(tools["fusefat"]), "-o", "rw+", disk, place], capture_output=True, text=True, check=False
    )
    if mounted.returncode or not place.is_mount():
        pytest.skip(f"FUSE is not allowed here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["fusermount", "-u", place], check=True)


@pytest.mark.parametrize("names", [["w:0.npy"], ["A.npy", "a.npy"], ["A/x", "a/y"]], ids=str)
@pytest.mark.row("H7", of="target")
def test_what_a_disk_cannot_hold_is_refused_by_name(fat: Path, names: list[str]) -> None:
    with pytest.raises(InvalidInput, match="cannot hold") as caught:
        require_held(fat, ["fine", *names])
    assert caught.value.argument == "target"
    assert any(repr(name) in str(caught.value) for name in names)
    assert list(fat.iterdir()) == []

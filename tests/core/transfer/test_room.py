"""Room on a disk, asked for before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.errors import DiskFull
from airflow_provider_modelsync.core.transfer.room import require_room

MIB = 1 << 20


def test_what_is_free_and_needed_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"free, the model needs 1024\.0 TiB") as caught:
        require_room(tmp_path, 1 << 50, argument="target")
    assert caught.value.argument == "target"


def test_what_an_earlier_try_has_written_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = tmp_path / "staging"
    (staging / "below").mkdir(parents=True)
    (staging / "below" / "weights.bin").write_bytes(b"w" * 4 * MIB)
    (staging / "sparse.bin").touch()
    with (staging / "sparse.bin").open("r+b") as file:
        file.truncate(100 * MIB)  # takes no room yet
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 * MIB, 5 * MIB, 5 * MIB))

    require_room(tmp_path, 9 * MIB, staging=staging)
    for needed, held in ((10 * MIB, staging), (9 * MIB, None)):
        with pytest.raises(DiskFull, match=r"5\.0 MiB free"):
            require_room(tmp_path, needed, staging=held)

"""Large models and models of many files: memory stays small, and each byte is written once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.stores import Store, write_tree

pytestmark = pytest.mark.faults

GIB, MIB = 1 << 30, 1 << 20
SIZE = 320 * MIB
GROWTH = 100 * MIB

# Runs one verb in a fresh process and tells by how much that grew, and what it wrote.
_MEASURED = """
import json, sys
from pathlib import Path
from tests.core.stores import Store

def facts():
    lines = Path("/proc/self/status").read_text().splitlines() + Path("/proc/self/io").read_text().splitlines()
    return {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)
            if key in ("VmHWM", "wchar", "write_bytes")}

verb, root, place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
store, before = Store(root), facts()
store.push(place, "large:v1") if verb == "push" else store.pull("large:v1", place)
after = facts()
print(json.dumps({key: after[key] - before[key] for key in before}))
"""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed at once, rather than kept for some runs as pytest does."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def _measure(verb: str, root: Path, place: Path) -> dict[str, int]:
    result = subprocess.run(
        [sys.executable, "-c", _MEASURED, verb, str(root), str(place)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, int] = json.loads(result.stdout)
    return found


@pytest.fixture
def quick_scratch() -> Iterator[Path]:
    """A directory in memory where there is room: some disks take a millisecond to remove a file."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > GIB else None
    with tempfile.TemporaryDirectory(prefix="modelsync-", dir=memory) as directory:
        yield Path(directory)


@pytest.mark.slow
def test_a_model_of_five_thousand_files_makes_the_round_trip(quick_scratch: Path) -> None:
    files = {f"{number // 200:03}/{number:05}.json": str(number).encode() for number in range(5_000)}
    model, store = write_tree(quick_scratch / "model", files), Store(quick_scratch / "store")
    pushed = store.push(model, "many:v1")
    pulled = store.pull("many", quick_scratch / "target")
    assert pushed.size_bytes == sum(map(len, files.values()))
    assert pulled.version.digest == pushed.digest
    for path in list(files)[::997]:
        assert (quick_scratch / "target" / path).read_bytes() == files[path]


@pytest.mark.slow
def test_a_large_model_moves_in_little_memory_and_each_byte_is_written_once(scratch: Path) -> None:
    model = write_tree(scratch / "model", {})
    blocks = [os.urandom(MIB) for _ in range(8)]
    with (model / "weights.bin").open("wb") as file:
        for number in range(SIZE // MIB):
            file.write(blocks[number % 8])
    for verb, place in (("push", model), ("pull", scratch / "target")):
        found = _measure(verb, scratch / "store", place)
        assert found["VmHWM"] * 1024 < GROWTH, verb
        # Some file systems, such as tmpfs, count no written pages; written characters are counted on all.
        assert max(found["write_bytes"], found["wchar"]) <= 1.02 * SIZE, verb
    assert (scratch / "target" / "weights.bin").stat().st_size == SIZE

"""Two machines that mount one directory: two FUSE mounts, whose locks know nothing of each other."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelSyncError
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel
from tests.core.processes import Work, at_once, killed_at
from tests.core.stores import Store, hidden, write_tree
from tests.support.until import until

pytestmark = pytest.mark.mounts

TURNS = 10


@contextmanager
def _mounted(real: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    process = subprocess.Popen(
        ["bindfs", "-f", "--no-allow-other", real, place], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        until(lambda: process.poll() is not None or os.path.ismount(place), "the mount")
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"FUSE is not allowed here: {process.stderr.read().decode().strip()}")
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)
        process.terminate()
        process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One directory, as two machines see it."""
    real = tmp_path / "real"
    real.mkdir()
    with ExitStack() as stack:
        yield tuple(stack.enter_context(_mounted(real, tmp_path / name)) for name in "ab")  # type: ignore[misc]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", {f"f{number}.bin": os.urandom(1 << 18) for number in range(8)})


def test_locks_prove_nothing_between_the_two(machines: tuple[Path, Path]) -> None:
    (machines[0] / "d").mkdir()
    locks = [os.open(machine / "d", os.O_RDONLY) for machine in machines]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # granted to both
    for lock in locks:
        os.close(lock)


def test_two_machines_pulling_one_version_into_one_target_leave_it_whole(
    machines: tuple[Path, Path], model: Path
) -> None:
    version = Store(machines[0] / "store").push(model, "fraud:v1")
    for turn in range(TURNS):
        pulls: list[Work] = [
            partial(Store(machine / "store").pull, "fraud:v1", machine / f"target-{turn}") for machine in machines
        ]
        results = at_once(*pulls * 2)
        assert [result for result in results if not isinstance(result, PulledModel)] == []
        assert [digest_directory(machine / f"target-{turn}") for machine in machines] == [version.digest] * 2
    assert hidden(machines[0]) == []


def test_two_machines_pushing_one_version_publish_it_whole(machines: tuple[Path, Path], model: Path) -> None:
    wanted = digest_directory(model)
    for turn in range(TURNS):
        pushes: list[Work] = [partial(Store(machine / "store").push, model, f"m{turn}:v1") for machine in machines]
        results = at_once(*pushes)
        for result in results:  # one may be told to try again, never that all is well when it is not
            assert isinstance(result, (ModelVersion, ModelSyncError)), result
        for machine in machines:
            store = Store(machine / "store")
            store.push(model, f"m{turn}:v1")
            assert store.pull(f"m{turn}:v1", machine / f"of-{machine.name}-{turn}").version.digest == wanted


def test_a_pull_killed_on_one_machine_hinders_no_other(machines: tuple[Path, Path], model: Path) -> None:
    first, second = machines
    version = Store(first / "store").push(model, "fraud:v1")
    for step in range(0, 60, 6):
        target = f"target-{step}"
        killed_at(step, lambda target=target: Store(first / "store").pull("fraud:v1", first / target))
        Store(second / "store").pull("fraud:v1", second / target)
        assert digest_directory(first / target) == version.digest

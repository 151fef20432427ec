"""Pushes and pulls that are killed, and many at once, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.transfer.control import Control
from tests.conformance.bench import Bench
from tests.core.processes import at_once, killed_at
from tests.core.stores import hidden, snapshot, write_tree
from tests.mlflow_servers.conftest import connect
from tests.services.mlflow import Tracking
from tests.support.steps import some_of

pytestmark = pytest.mark.mlflow

PUSHERS = 10
killed_on = pytest.mark.parametrize("server", ["local", "local-2", "bucket", "direct-2"], indirect=True)
raced_on = pytest.mark.parametrize("server", ["local", "local-2"], indirect=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a file that goes in parts where the server signs these."""
    return write_tree(tmp_path / "source", {"MLmodel": b"flavors: {}\n", "d/large": b"large" * (6 << 18)})


@pytest.fixture
def worker(server: Tracking, tmp_path: Path) -> Callable[[], Bench]:
    """Returns workers that share a disk."""
    return lambda: connect(server, tmp_path, part_size_mib=5)


def slowly() -> Control:
    return Control(workers=1)


@killed_on
def test_a_push_that_is_killed_at_any_step_leaves_no_version_without_its_bytes(
    worker: Callable[[], Bench], name: str, source: Path, tmp_path: Path
) -> None:
    digest, wanted = digest_directory(source), snapshot(source)
    for step in some_of(count()):
        model = f"{name} {step}"
        came_that_far = killed_at(step, lambda model=model: worker().push(source, model, control=slowly()))
        assert len(worker().ready_versions(model)) <= 1
        assert worker().push(source, model).digest == digest
        assert worker().ready_versions(model) == ["1"]
        target = tmp_path / f"target-{step}"
        worker().pull(model, target)
        assert snapshot(target) == wanted
        if not came_that_far:
            assert step > 20
            return


@killed_on
def test_a_pull_that_is_killed_at_any_step_leaves_no_half_target(
    worker: Callable[[], Bench], name: str, source: Path, tmp_path: Path
) -> None:
    worker().push(source, name)
    wanted = snapshot(source)
    for step in some_of(count()):
        target = tmp_path / f"place-{step}" / "target"
        target.parent.mkdir()
        came_that_far = killed_at(step, lambda target=target: worker().pull(name, target, control=slowly()))
        assert not target.exists() or snapshot(target) == wanted
        worker().pull(name, target)
        assert snapshot(target) == wanted
        assert hidden(target.parent) == []
        if not came_that_far:
            assert step > 20
            return


@raced_on
def test_ten_pushers_of_the_same_bytes_end_in_one_version(worker: Callable[[], Bench], name: str, source: Path) -> None:
    results = at_once(*[lambda: worker().push(source, name) for _ in range(PUSHERS)])
    assert {result.version for result in results} == set(worker().ready_versions(name))
    assert len(worker().ready_versions(name)) == 1


@raced_on
def test_ten_pushers_of_different_bytes_end_in_ten_versions(
    worker: Callable[[], Bench], name: str, tmp_path: Path
) -> None:
    sources = [write_tree(tmp_path / str(number), {"w": b"%d" % number}) for number in range(PUSHERS)]
    results = at_once(*[lambda source=source: worker().push(source, name) for source in sources])
    assert sorted(worker().ready_versions(name)) == sorted(result.version for result in results)
    for source, result in zip(sources, results, strict=True):
        target = tmp_path / f"target-{result.version}"
        worker().pull(result.ref, target)
        assert snapshot(target) == snapshot(source)

"""What every registry promises when tasks are killed, networks fall silent, and one of two copies of a task fails."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DiskFull,
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow import steps
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import pull
from tests.conformance.bench import Bench, needs
from tests.core.processes import at_once, killed_at, on_disk
from tests.core.stores import hidden, snapshot
from tests.standins.proxy import Proxy
from tests.support.kills import LIMIT

PUSH, PULL, DELETE = Capability.PUSH, Capability.PULL, Capability.DELETE
SIZE = 2 << 20  # bytes of a model that is larger than all that is said about it

pytestmark = [pytest.mark.once_each, pytest.mark.faults]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that all requests of this process go by.

    What is waited for after a kill takes nearly all of the seconds that it may take: here less, so that a machine that
    halts for a while does not matter.
    """
    monkeypatch.setattr(CancelToken, "patience", 1.0)
    monkeypatch.setattr(steps, "_LAST_SECONDS", 1.0)
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        yield proxy


@pytest.fixture(autouse=True)
def quick(no_waiting: None) -> None:
    """Tries follow each other at once."""


def _again(bench: Bench) -> Bench:
    """Return another worker with the same disk."""
    return Bench(bench.under_test, bench.scratch)


def _later_and_later(first: int) -> Iterator[int]:
    """Yield steps to be killed at: each at first, then ever fewer."""
    step = first
    while True:
        yield step
        step += 1 + step // 2


def _whole(bench: Bench, name: str, digest: str) -> int:
    """Return how many ready versions there are, each of which is to have the digest."""
    ready = bench.ready_versions(name)
    assert {bench.get(f"{name}:{version}").digest for version in ready} <= {digest}
    return len(ready)


@pytest.mark.row("P1", "P3")
@needs(PUSH)
def test_a_push_that_is_killed_again_and_again_leaves_no_half_version_and_the_next_one_ends_right(bench: Bench) -> None:
    source = bench.source("one")
    digest, kills = digest_directory(source), 0
    for name, first in zip(bench.under_test.names, (random.randrange(3), random.randrange(5, 24)), strict=False):
        model = bench.model(0, name)
        for step in _later_and_later(first):
            came_that_far = killed_at(step, lambda model=model: _again(bench).push(source, model, control=_slowly()))
            assert _whole(bench, name, digest) <= 1
            if not came_that_far:
                break
            kills += 1
        bench.under_test.settle()
        assert _whole(bench, name, digest) == 1
    assert kills > 2


@pytest.mark.row("P2")
@needs(PUSH, PULL)
def test_a_pull_that_is_killed_again_and_again_leaves_no_half_target_and_the_next_one_ends_right(bench: Bench) -> None:
    version, target = bench.publish("one", bench.model()), bench.target()
    wanted, kills = snapshot(bench.source("one")), 0
    for step in _later_and_later(random.randrange(3)):
        if not killed_at(step, lambda: _again(bench).pull(version.ref, target, control=_slowly())):
            break
        kills += 1
        assert not target.exists() or snapshot(target) == wanted
    assert kills > 3
    assert snapshot(target) == wanted
    assert _again(bench).pull(version.ref, target).digest == version.digest
    assert hidden(target.parent) == []


def _slowly(**options: Any) -> Control:
    return Control(workers=1, **options)


def _ended_while_it_waits(proxy: Proxy, after: int, work: Callable[[Control], Any]) -> bool:
    """Do work that is cancelled once a request is left without an answer; return whether it came that far."""
    token, result = CancelToken(), []

    def run() -> None:
        try:
            result.append(work(_slowly(cancel=token, is_last_try=True)))
        except Exception as error:
            result.append(error)

    proxy.stall(after)
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not proxy.stalled.wait(0.05):
        pass
    came_that_far = proxy.stalled.is_set()
    begun = time.monotonic()
    token.cancel()
    thread.join(30)
    took = time.monotonic() - begun
    proxy.go_on()
    assert not thread.is_alive()
    if came_that_far:
        assert took < LIMIT
        assert isinstance(result[0], Cancelled)
    return came_that_far


@pytest.mark.row("P4", "D7", of=("calls", "storage", "rest", "source"))
@pytest.mark.networked
@needs(PUSH)
def test_a_push_that_waits_for_a_silent_network_ends_in_time_though_nothing_can_be_cleaned_up(
    bench: Bench, proxy: Proxy
) -> None:
    source, ended = bench.source("one"), 0
    for after in (random.randrange(3), random.randrange(3, 6), random.randrange(6, 16)):
        ended += _ended_while_it_waits(
            proxy, after, lambda control: _again(bench).push(source, bench.model(), control=control)
        )
    assert ended
    assert _again(bench).push(source, bench.model()).digest == digest_directory(source)
    assert proxy.requests


@pytest.mark.row("P4")
@pytest.mark.networked
@needs(PUSH, PULL)
def test_a_pull_that_waits_for_a_silent_network_ends_in_time_and_leaves_no_target(bench: Bench, proxy: Proxy) -> None:
    version, target = bench.publish("one", bench.model()), bench.target()
    assert _ended_while_it_waits(
        proxy, random.randrange(2), lambda control: _again(bench).pull(version.ref, target, control=control)
    )
    assert not target.exists()
    _again(bench).pull(version.ref, target)
    assert snapshot(target) == snapshot(bench.source("one"))


def _larger_source(bench: Bench) -> Path:
    source = bench.source("one")
    largest = max((path for path in source.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(random.Random(1).randbytes(SIZE))
    return source


@pytest.mark.row("T1")
@pytest.mark.networked
@needs(PUSH)
def test_a_connection_that_breaks_in_the_middle_of_a_push_costs_what_it_carried_and_no_more(
    bench: Bench, proxy: Proxy
) -> None:
    source = _larger_source(bench)
    proxy.cut_once("up", after=SIZE // 2)
    pushed = bench.push(source, bench.model(), control=_slowly())
    assert proxy.cut == ["up"]
    assert proxy.passed["up"] < 2 * SIZE
    assert pushed.digest == digest_directory(source)
    bench.under_test.settle()
    assert _whole(bench, bench.name, digest_directory(source)) == 1


@pytest.mark.row("T2")
@pytest.mark.networked
@needs(PUSH, PULL)
def test_a_connection_that_breaks_in_the_middle_of_a_pull_costs_what_it_carried_and_no_more(
    bench: Bench, proxy: Proxy
) -> None:
    source, target = _larger_source(bench), bench.target()
    version = bench.push(source, bench.model())
    bench.under_test.settle()
    before = proxy.passed["down"]
    proxy.cut_once("down", after=SIZE // 2)
    bench.pull(version.ref, target, control=_slowly())
    assert proxy.cut == ["down"]
    assert proxy.passed["down"] - before < 2 * SIZE
    assert snapshot(target) == snapshot(source)
    assert hidden(target.parent) == []


@pytest.mark.row("S13")
@pytest.mark.networked
@needs(DELETE)
def test_a_version_that_is_gone_once_its_deletion_is_asked_for_again_is_deleted(bench: Bench, proxy: Proxy) -> None:
    version = bench.publish("one", bench.model())
    proxy.lose_answers()
    _again(bench).run(lambda registry: registry.delete(registry.parse(version.ref)))
    assert proxy.lost
    proxy.go_on()
    assert bench.ready_versions(bench.name) == []


@pytest.mark.row("S5")
@pytest.mark.networked
@needs(PUSH)
def test_a_push_of_which_every_answer_is_lost_once_ends_in_one_version(bench: Bench, proxy: Proxy) -> None:
    source, pushed = bench.source("one"), None
    proxy.lose_answers()
    while pushed is None:
        before = len(proxy.lost)
        try:
            pushed = bench.push(source, bench.model(), control=_slowly())
        except RegistryUnavailable:  # the next try has one answer more
            assert len(proxy.lost) > before
    assert proxy.lost
    proxy.go_on()
    bench.under_test.settle()
    assert pushed.digest == digest_directory(source)
    assert _whole(bench, bench.name, digest_directory(source)) == 1


@pytest.mark.row("D1", "D2")
@needs(PUSH, PULL)
def test_a_disk_that_cannot_take_a_model_is_told_and_nothing_is_left(bench: Bench, proxy: Proxy) -> None:
    source, target = _larger_source(bench), bench.target()
    version = bench.push(source, bench.model())
    bench.under_test.settle()
    place, before = target.parent, proxy.passed["down"]

    def pulled() -> tuple[ModelSyncError, list[str]]:
        with pytest.raises(ModelSyncError) as caught:
            _again(bench).pull(version.ref, target, control=_slowly(piece_size=SIZE // 16))
        return caught.value, sorted(path.name for path in place.iterdir())

    def filled(*, in_pieces: bool) -> tuple[ModelSyncError, list[str]]:
        pull.require_room = lambda *_, **__: None  # type: ignore[attr-defined] # somebody else took it meanwhile
        large_files.LARGE = SIZE // 2 if in_pieces else 2 * SIZE
        return pulled()

    small, (error, left) = "size=1m", *at_once(on_disk(place, "ro", pulled))
    assert (type(error), error.argument, left) == (InvalidInput, "target", [])  # type: ignore[attr-defined]
    ((error, left),) = at_once(on_disk(place, small, pulled))
    assert (type(error), left) == (DiskFull, [])
    assert "1.0 MiB free, the model needs 2.0 MiB" in str(error)
    assert proxy.passed["down"] - before < SIZE // 2, "before any of the model is asked for"
    for in_pieces in (False, True):
        ((error, left),) = at_once(on_disk(place, small, lambda in_pieces=in_pieces: filled(in_pieces=in_pieces)))
        assert (type(error), left) == (DiskFull, [])
        assert "No space left on device" in str(error)
    bench.pull(version.ref, target)
    assert snapshot(target) == snapshot(source)


@pytest.mark.row("D5")
@needs(PUSH, PULL)
def test_two_workers_that_pull_into_one_place_at_once_leave_one_whole_model(bench: Bench, other_bench: Bench) -> None:
    version, target = bench.publish("one", bench.model()), bench.target()
    results = at_once(*[lambda each=each: each.pull(version.ref, target) for each in (bench, other_bench)])
    assert [getattr(result, "digest", result) for result in results] == [version.digest] * 2
    assert snapshot(target) == snapshot(bench.source("one"))
    assert hidden(target.parent) == []


@pytest.mark.row("P13")
@pytest.mark.networked
@needs(PUSH)
def test_a_copy_of_a_task_that_fails_takes_nothing_from_the_one_that_succeeds(
    bench: Bench, other_bench: Bench, tmp_path: Path
) -> None:
    source = bench.source("one")
    digest = digest_directory(source)
    with Proxy() as proxy:

        def failing(model: str) -> Any:
            os.environ |= {"HTTP_PROXY": proxy.url, "NO_PROXY": ""}
            return other_bench.push(source, model, control=_slowly(is_last_try=True))

        for name, after in zip(bench.under_test.names, random.sample(range(1, 14), 2), strict=False):
            model = bench.model(0, name)
            proxy.break_off(after)
            one, other = at_once(lambda model=model: bench.push(source, model), lambda model=model: failing(model))
            bench.under_test.settle()
            assert all(isinstance(result, ModelVersion | ModelSyncError) for result in (one, other)), (one, other)
            succeeded = [result for result in (one, other) if isinstance(result, ModelVersion)]
            assert _whole(bench, name, digest) >= bool(succeeded)
            for version in succeeded:
                assert bench.get(version.ref).digest == digest
            assert bench.push(source, model).digest == digest

"""Processes killed at every step of a push, a pull, a change of labels and a delete, and what the next try finds."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelNotFound, TargetExists, VersionConflict
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import killed_at
from tests.core.stores import Snapshot, Store, age, hidden, snapshot, write_tree
from tests.support.steps import some_of

pytestmark = pytest.mark.faults

# What a version or a target is: its files and its labels. ``None`` = it is not there.
State = tuple[Snapshot, dict[str, str]] | None

FILES = {
    "old": {"weights.bin": b"old weights", "a/b": b"\0"},
    "new": {"weights.bin": b"new weights!", "c": b""},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut happens here: bytes need not reach the disk."""
    monkeypatch.setattr(durable, "_syncfs", lambda _: 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass
class World:
    """A store, two models and a target.

    :param root: a directory for all of it.
    """

    root: Path
    control: Control = field(default_factory=lambda: Control(workers=1))  # one thread, so that steps can be counted

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.target = self.root / "place" / "target"
        self.models = {name: write_tree(self.root / name, files) for name, files in FILES.items()}
        self.target.parent.mkdir()

    def push(self, model: str, version: str = "v1", **options: Any) -> None:
        self.store.push(self.models[model], f"fraud:{version}", control=self.control, **options)

    def pull(self, version: str = "v1", **options: Any) -> None:
        self.store.pull(f"fraud:{version}", self.target, control=self.control, **options)

    def version(self, version: str = "v1") -> State:
        """Look at a version; its bytes must be those that its record tells."""
        try:
            found = self.store.get(f"fraud:{version}")
        except ModelNotFound:
            assert version not in {known.version for known in self.store.list_versions("fraud")}
            return None
        place = self.store.files(f"fraud:{version}")
        assert digest_directory(place) == found.digest
        return snapshot(place), found.labels

    def targeted(self) -> State:
        """Look at the target."""
        return (snapshot(self.target), {}) if self.target.exists() else None

    def state(self, model: str, **labels: str) -> State:
        return snapshot(self.models[model]), labels

    def claims(self) -> list[str]:
        """Versions that somebody seems to be writing."""
        return [path.stem for path in self.store.meta("fraud").glob("*.claim")]

    def left_behind(self) -> list[str]:
        """Names that only a writer at work, or a killed one, has a use for."""
        return [*self.claims(), *hidden(self.store.meta("fraud")), *hidden(self.target.parent)]

    def staging(self) -> list[str]:
        """Staging directories that the next try of the same work takes up."""
        keys = {digest_directory(model).removeprefix("sha256:")[:12] for model in self.models.values()}
        return [name for name in self.left_behind() if keys.intersection(name.split("."))]


@dataclass(frozen=True)
class Scenario:
    """Work that is killed at each of its steps.

    :param work: what is killed, and what the retry does.
    :param look: at what.
    :param before: makes the state that the work finds.
    :param end: the state that it leaves.
    """

    work: Callable[[World], Any]
    look: Callable[[World], State]
    before: Callable[[World], Any]
    end: Callable[[World], State]
    absent_between: bool = False
    at_least: int = 10


def _old_version(world: World) -> None:
    world.push("old", labels={"stage": "dev"})
    world.store.set_labels("fraud:v1", {"team": "risk"})


def _old_target(world: World) -> None:
    world.push("new")
    write_tree(world.target, FILES["old"])


SCENARIOS = {
    "a push of a new model": Scenario(
        work=lambda world: world.push("new"),
        look=World.version,
        before=lambda world: None,
        end=lambda world: world.state("new"),
    ),
    "a push of a second version": Scenario(
        work=lambda world: world.push("new", "v2"),
        look=lambda world: world.version("v2"),
        before=_old_version,
        end=lambda world: world.state("new"),
    ),
    "a push over an old version by force": Scenario(
        work=lambda world: world.push("new", force=True),
        look=World.version,
        before=_old_version,
        end=lambda world: world.state("new"),
    ),
    "a change of labels": Scenario(
        work=lambda world: world.store.set_labels("fraud:v1", {"stage": "prod", "team": None}),
        look=World.version,
        before=_old_version,
        end=lambda world: world.state("old", stage="prod"),
        at_least=3,
    ),
    "a delete": Scenario(
        work=lambda world: world.store.delete("fraud:v1"),
        look=World.version,
        before=_old_version,
        end=lambda world: None,
        at_least=3,
    ),
    "a pull into an absent target": Scenario(
        work=World.pull,
        look=World.targeted,
        before=lambda world: world.push("new"),
        end=lambda world: world.state("new"),
        at_least=5,
    ),
    "a pull over an old target by force": Scenario(
        work=lambda world: world.pull(force=True),
        look=World.targeted,
        before=_old_target,
        end=lambda world: world.state("new"),
        absent_between=True,
        at_least=5,
    ),
}


def _kills(scenario: Scenario, root: Path) -> Iterator[World]:
    """Yield a world after a kill at a step, each in a directory of its own."""
    for step in some_of(itertools.count()):
        place = root / str(step)
        place.mkdir()
        world = World(place)
        scenario.before(world)
        before = scenario.look(world)
        killed = killed_at(step, lambda world=world: scenario.work(world))
        allowed = [before, scenario.end(world)]
        if scenario.absent_between:
            allowed.append(None)
        assert scenario.look(world) in allowed, f"killed at step {step}"
        if not killed:
            assert scenario.look(world) == scenario.end(world)
            assert step >= scenario.at_least, "too few steps: something is not watched any more"
            return
        yield world
        shutil.rmtree(place)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.row("P1", "P2", "P3", of="directory")
def test_the_next_try_after_a_kill_at_any_step_ends_right_and_cleans_up(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    for world in _kills(scenario, tmp_path):
        untouched = world.version("v1") if "second" in name else None
        scenario.work(world)
        assert scenario.look(world) == scenario.end(world)
        assert world.staging() == []
        assert world.claims() == []
        if untouched:
            assert world.version("v1") == untouched == world.state("old", stage="dev", team="risk")
        # Whatever else is left is swept by a push and a pull a day later.
        for directory in (world.store.meta("fraud"), world.target.parent):
            for left in hidden(directory):
                age(directory / left)
        world.push("old", "later")
        shutil.rmtree(world.target, ignore_errors=True)
        world.pull("later")
        assert world.left_behind() == []


def test_other_bytes_can_be_pushed_by_force_after_a_kill_at_any_step(tmp_path: Path) -> None:
    for world in _kills(SCENARIOS["a push of a new model"], tmp_path):
        world.push("old", force=True)
        assert world.version() == world.state("old")
        assert world.claims() == []


def test_a_push_after_a_killed_and_repeated_delete_inherits_nothing(tmp_path: Path) -> None:
    for world in _kills(SCENARIOS["a delete"], tmp_path):
        world.store.delete("fraud:v1")
        assert sorted(path.name for path in (world.store.root / "fraud").iterdir()) == [".modelsync"]
        world.push("new")
        assert world.version() == world.state("new")


@pytest.mark.row("P2", of="target")
def test_a_pull_killed_between_its_two_renames_has_both_copies_whole(tmp_path: Path) -> None:
    gaps = 0
    for world in _kills(SCENARIOS["a pull over an old target by force"], tmp_path):
        if world.targeted() is None:
            gaps += 1
            (private,) = hidden(world.target.parent)
            copies = {path.name: snapshot(path) for path in (world.target.parent / private).iterdir()}
            assert copies == {"model": snapshot(world.models["new"]), "replaced": snapshot(world.models["old"])}
    assert gaps <= 1


# Any sequence


class PushPullKillRetry(RuleBasedStateMachine):
    """Whatever is pushed, pulled, labelled, deleted and killed: no version and no target is ever anything but
    absent, old, or new and verified."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="modelsync-crash-"))
        self.world = World(self.root)
        self.known: dict[str, State] = {"v1": None, "v2": None}
        self.claimed: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _possible(self, version: str, *states: State) -> None:
        found = self.world.version(version)
        assert found in states
        self.known[version] = found

    steps = st.integers(0, 60)
    which = st.sampled_from(["v1", "v2"])
    models = st.sampled_from(["old", "new"])

    @rule(version=which, model=models, force=st.booleans())
    def push(self, version: str, model: str, force: bool) -> None:
        known = self.known[version]
        wanted = self.world.state(model)
        assert wanted is not None
        same = known is not None and known[0] == wanted[0]
        try:
            self.world.push(model, version, force=force)
        except VersionConflict:
            assert not force
            assert (known is not None and not same) or version in self.claimed
            self._possible(version, known)
        else:
            assert force or known is None or same
            self._possible(version, known if same else wanted)
            self.claimed.discard(version)

    @rule(version=which, model=models, force=st.booleans(), step=steps)
    def push_killed(self, version: str, model: str, force: bool, step: int) -> None:
        known, wanted = self.known[version], self.world.state(model)
        if known is not None and known[0] != wanted[0] and not force:  # type: ignore[index]
            return
        if version in self.claimed and not force:
            return
        killed = killed_at(step, lambda: self.world.push(model, version, force=force))
        same = known is not None and known[0] == wanted[0]  # type: ignore[index]
        if same:
            self._possible(version, known)
        else:
            self._possible(version, *([known, None, wanted] if killed else [wanted]))
        (self.claimed.add if killed else self.claimed.discard)(version)

    @rule(version=which)
    def delete(self, version: str) -> None:
        assert self.world.store.delete(f"fraud:{version}") is (self.known[version] is not None)
        self._possible(version, None)

    @rule(version=which, step=steps)
    def delete_killed(self, version: str, step: int) -> None:
        killed_at(step, lambda: self.world.store.delete(f"fraud:{version}"))
        self._possible(version, self.known[version], None)

    @precondition(lambda self: self.known["v1"] is not None)
    @rule(step=steps, value=st.sampled_from(["x", "y"]))
    def label_killed(self, step: int, value: str) -> None:
        known = self.known["v1"]
        assert known is not None
        killed_at(step, lambda: self.world.store.set_labels("fraud:v1", {"stage": value}))
        self._possible("v1", known, (known[0], {**known[1], "stage": value}))

    @rule(version=which, force=st.booleans())
    def pull(self, version: str, force: bool) -> None:
        before, known = self.world.targeted(), self.known[version]
        try:
            self.world.pull(version, force=force)
        except ModelNotFound:
            assert known is None
            assert self.world.targeted() == before
        except TargetExists:
            assert not force
            assert self.world.targeted() == before
        else:
            assert known is not None
            assert self.world.targeted() == (known[0], {})

    @rule(version=which, step=steps)
    def pull_killed(self, version: str, step: int) -> None:
        before, known = self.world.targeted(), self.known[version]
        if known is not None:
            killed_at(step, lambda: self.world.pull(version, force=True))
            assert self.world.targeted() in (before, None, (known[0], {}))

    @invariant()
    def every_version_is_what_it_was_last_seen_to_be(self) -> None:
        for version, state in self.known.items():
            assert self.world.version(version) == state


TestAnySequence = PushPullKillRetry.TestCase
TestAnySequence.settings = settings(max_examples=15, stateful_step_count=15)

"""Two machines on one disk, neither of which sees the other's locks or processes.

Pushers, pullers, killers, deleters, a source that changes and a person who works in the target: at every moment the
target is absent, old, or new and verified, and a published version passes its digest.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_provider_modelsync.core import durable, writer
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelNotFound, ModelSyncError, TargetExists
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import Work, at_once, killed_at
from tests.core.stores import Store, write_tree

pytestmark = pytest.mark.faults

STEPS = int(os.environ.get("MODELSYNC_STEPS", "100"))  # `make test-machines` takes more
LENGTH = 25


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut happens here: bytes need not reach the disk."""
    monkeypatch.setattr(durable, "_syncfs", lambda _: 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class TwoMachines(RuleBasedStateMachine):
    machines = st.integers(0, 1)
    versions = st.sampled_from(["v1", "v2"])
    steps = st.integers(0, 90)

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="modelsync-machines-"))
        self.store = Store(self.root / "store")
        self.target = self.root / "place" / "target"
        self.target.parent.mkdir()
        self.source = self.root / "source"
        self.boots = [0, 0]
        self.edits = 0
        self.known: set[str] = set()  # digests of all that was ever meant to become a version
        self.own: str | None = None  # of what a person has made of the target
        self.change()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _on(self, machine: int, work: Callable[[], Any]) -> Work:
        """Return work as a process of a machine does it; refusals are its results."""
        boot = f"{machine}-{self.boots[machine]}"

        def run() -> Any:
            writer.boot_id = lambda: boot
            writer._host = lambda: str(machine)
            try:
                return work()
            except ModelSyncError as error:
                return error

        return run

    def _push(self, version: str, force: bool = False) -> Any:
        return self.store.push(self.source, f"m:{version}", control=Control(workers=1), force=force)

    def _pull(self, version: str, force: bool = False) -> Any:
        return self.store.pull(f"m:{version}", self.target, control=Control(workers=1), force=force)

    def _targeted(self) -> str | None:
        return digest_directory(self.target) if self.target.exists() else None

    def _digest(self, version: str) -> str | None:
        try:
            return self.store.get(f"m:{version}").digest
        except ModelNotFound:
            return None

    @rule()
    def change(self) -> None:
        self.edits += 1
        write_tree(self.source, {"weights.bin": b"%d" % self.edits, "a/b": b"same"})
        self.known.add(digest_directory(self.source))

    @rule(machine=machines)
    def restart(self, machine: int) -> None:
        self.boots[machine] += 1

    @rule(machine=machines, version=versions, force=st.booleans())
    def push(self, machine: int, version: str, force: bool) -> None:
        (result,) = at_once(self._on(machine, lambda: self._push(version, force)))
        if not isinstance(result, ModelSyncError):
            assert result.digest == self._digest(version) == digest_directory(self.source)
        elif force:
            raise result

    @rule(machine=machines, version=versions, force=st.booleans(), step=steps)
    def push_killed(self, machine: int, version: str, force: bool, step: int) -> None:
        before = self._digest(version)
        killed_at(step, self._on(machine, lambda: self._push(version, force)))
        assert self._digest(version) in (before, None, digest_directory(self.source))

    @rule(version=versions)
    def push_from_both(self, version: str) -> None:
        before = self._digest(version)
        at_once(*[self._on(machine, lambda: self._push(version)) for machine in (0, 1)])
        if before is not None:
            assert self._digest(version) == before

    @rule(machine=machines, version=versions)
    def delete(self, machine: int, version: str) -> None:
        at_once(self._on(machine, lambda: self.store.delete(f"m:{version}")))
        assert self._digest(version) is None

    @rule(machine=machines, version=versions, force=st.booleans())
    def pull(self, machine: int, version: str, force: bool) -> None:
        before, wanted = self._targeted(), self._digest(version)
        (result,) = at_once(self._on(machine, lambda: self._pull(version, force)))
        if isinstance(result, ModelSyncError):
            assert wanted is None or isinstance(result, TargetExists)
            assert self._targeted() == before
        else:
            assert self._targeted() == wanted
            assert force or before in (None, wanted) or before != self.own
            self.own = None

    @rule(machine=machines, version=versions, step=steps)
    def pull_killed(self, machine: int, version: str, step: int) -> None:
        before, wanted = self._targeted(), self._digest(version)
        killed_at(step, self._on(machine, lambda: self._pull(version, force=True)))
        assert self._targeted() in (before, None, wanted)

    @rule(force=st.booleans())
    def pull_into_one_target_from_both(self, force: bool) -> None:
        before = self._targeted()
        wanted = {self._digest(version) for version in ("v1", "v2")}
        pulls = [lambda version=version: self._pull(version, force) for version in ("v1", "v2")]
        results = at_once(*[self._on(machine, pulls[machine]) for machine in (0, 1)])
        if all(isinstance(result, ModelSyncError) for result in results) and not force:
            assert self._targeted() == before
        assert self._targeted() in {before, *wanted}

    @rule(machine=machines, version=versions)
    def pull_while_it_is_deleted(self, machine: int, version: str) -> None:
        before, wanted = self._targeted(), self._digest(version)
        delete = self._on(1 - machine, lambda: self.store.delete(f"m:{version}"))
        at_once(self._on(machine, lambda: self._pull(version)), delete)
        assert self._targeted() in (before, wanted)

    @rule()
    def work_in_the_target(self) -> None:
        if self.target.exists():
            self.edits += 1
            (self.target / "notes.txt").write_bytes(b"%d" % self.edits)
            self.own = digest_directory(self.target)

    @rule(machine=machines, version=versions)
    def what_a_person_has_made_stays(self, machine: int, version: str) -> None:
        if self.own is not None and self._targeted() == self.own:
            at_once(self._on(machine, lambda: self._pull(version)))
            assert self._targeted() == self.own

    @invariant()
    def the_target_is_something_whole(self) -> None:
        assert self._targeted() in {None, self.own, *self.known}

    @invariant()
    def published_versions_pass_their_digest(self) -> None:
        for found in self.store.list_versions("m"):
            fresh = self.root / "fresh"
            self.store.pull(found.ref, fresh, control=Control(workers=1), force=True)
            assert digest_directory(fresh) == found.digest
            assert found.digest in self.known


TestTwoMachines = TwoMachines.TestCase
TestTwoMachines.settings = settings(
    max_examples=max(1, STEPS // LENGTH),
    stateful_step_count=LENGTH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

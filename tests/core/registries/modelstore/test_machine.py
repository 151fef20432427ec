"""The protocol of all stores at random: three tasks at a time, forced or not, deleting, killed, and heard of late.

``MODELSYNC_STEPS`` is how many steps are taken in all; ``make test-machines`` takes 10,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from airflow_provider_modelsync.core.models import ModelVersion
from tests.core.registries.modelstore.actors import (
    NAME,
    VERSION,
    MemoryStore,
    Task,
    World,
    push_of,
    seen_in,
    source_of,
)
from tests.core.registries.modelstore.test_claims import no_hindrance

STEPS = int(os.environ.get("MODELSYNC_STEPS", "1000"))
LENGTH = 50  # of one run
SOURCES = [source_of(text, files=2) for text in "abc"]


class Tasks(RuleBasedStateMachine):
    """What is published is whole, changes only by a task that may change it, and stays when nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.tasks: list[Task] = []
        self.late: list[tuple[Task, Callable[[], object]]] = []
        self.published: str | None = None

    def store(self) -> MemoryStore:
        return MemoryStore(self.world, is_fine=True)

    @precondition(lambda self: len(self.tasks) < 3)
    @rule(source=st.sampled_from(SOURCES), force=st.booleans(), gives_up=st.booleans())
    def push(self, source: object, force: bool, gives_up: bool) -> None:
        work = push_of(self.store(), source, force=force, gives_up=gives_up)
        self.tasks.append(Task(work, digest=source.digest, force=force))  # type: ignore[attr-defined]

    @precondition(lambda self: len(self.tasks) < 3)
    @rule()
    def delete(self) -> None:
        self.tasks.append(Task(lambda: self.store().delete(NAME, VERSION), deletes=True))

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 2), count=st.integers(1, 6))
    def go_on(self, which: int, count: int) -> None:
        task = self.tasks[which % len(self.tasks)]
        for _ in range(count):
            if not task.is_over:
                before = self.published
                task.step()
                self.look(task, before)
        if task.is_over:
            self.tasks.remove(task)
            if isinstance(task.result, ModelVersion) and not self.tasks and not self.late:
                assert seen_in(self.world) == task.result.digest

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        task = self.tasks.pop(which % len(self.tasks))
        if call := task.kill():
            self.late.append((task, call))

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 5))
    def arrive_late(self, which: int) -> None:
        task, call = self.late.pop(which % len(self.late))
        before = self.published
        call()
        self.look(task, before)

    def look(self, task: Task, before: str | None) -> None:
        """See that a call has changed nothing that its task may not change."""
        self.published = seen_in(self.world)
        if self.published == before:
            return
        if task.deletes:
            assert self.published is None
        else:
            assert self.published == task.digest
            assert before is None or task.force

    @invariant()
    def what_is_published_is_whole(self) -> None:
        assert seen_in(self.world) == self.published

    def teardown(self) -> None:
        for task in self.tasks:
            task.finish()
        no_hindrance(self.world)
        for _, call in self.late:  # whatever arrives now is history
            call()
            assert seen_in(self.world) is None


TestTasks = Tasks.TestCase
TestTasks.settings = settings(max_examples=max(1, STEPS // LENGTH), stateful_step_count=LENGTH, deadline=None)

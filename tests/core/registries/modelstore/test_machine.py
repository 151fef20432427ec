"""The protocol of all stores at random: three tasks at a time, forced or not, deleting, killed, and heard of late.

Over a store in memory, stopped before each call of a place, and over a bucket, stopped before each request to it.
``MODELSYNC_STEPS`` is how many steps are taken in all; ``make test-machines`` takes 10,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pytest
from greenlet import getcurrent, greenlet
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow import parallel
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover
from tests.core.registries.modelstore.actors import (
    NAME,
    VERSION,
    MemoryStore,
    Task,
    World,
    paused,
    push_of,
    seen_in,
    source_of,
)
from tests.core.registries.modelstore.buckets import PART, BucketStore, bucket_store, random_bytes
from tests.core.registries.modelstore.test_claims import no_hindrance
from tests.core.stores import write_tree

pytestmark = pytest.mark.faults

STEPS = int(os.environ.get("MODELSYNC_STEPS", "1000"))
BUCKET_STEPS = int(os.environ.get("MODELSYNC_STEPS", "100"))
LENGTH = 50  # of one run


class Tasks(RuleBasedStateMachine):
    """What is published is whole, changes only by a task that may change it, and stays when nobody does."""

    sources: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.late: list[tuple[Task, Callable[[], object]]] = []
        self.history: list[str | None] = [None]  # what was published, one after the other
        self.begun: dict[int, int] = {}  # how long that was when a task began

    @property
    def published(self) -> str | None:
        return self.history[-1]

    def begin(self, task: Task) -> None:
        self.begun[id(task)] = len(self.history) - 1
        self.tasks.append(task)

    def seen(self) -> str | None:
        """Return the digest of what is published. Fails when its files are not as it says."""
        raise NotImplementedError

    def pusher(self, source: int, *, force: bool, fails_at: int | None) -> Task:
        raise NotImplementedError

    def deleter(self) -> Task:
        raise NotImplementedError

    @precondition(lambda self: len(self.tasks) < 3)
    @rule(source=st.integers(0, 2), force=st.booleans(), fails_at=st.none() | st.integers(0, 25))
    def push(self, source: int, force: bool, fails_at: int | None) -> None:
        self.begin(self.pusher(source, force=force, fails_at=fails_at))

    @precondition(lambda self: len(self.tasks) < 3)
    @rule()
    def delete(self) -> None:
        self.begin(self.deleter())

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 2), count=st.integers(1, 6) | st.just(1000))
    def go_on(self, which: int, count: int) -> None:
        task = self.tasks[which % len(self.tasks)]
        for _ in range(count):
            if task.is_over:
                break
            before = self.published
            task.step()
            self.look(task, before)
        if task.is_over:
            self.tasks.remove(task)
            if isinstance(task.result, ModelVersion) and not self.tasks and not self.late:
                # Another one may have replaced it before this one came to its end.
                assert task.result.digest in self.history[self.begun[id(task)] :]

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
        if (now := self.seen()) == before:
            return
        self.history.append(now)
        if task.deletes:
            assert self.published is None
        else:
            assert self.published == task.digest
            assert before is None or task.force

    @invariant()
    def what_is_published_is_whole(self) -> None:
        assert self.seen() == self.published


class InMemory(Tasks):
    sources: ClassVar = [source_of(text, files=2) for text in "abc"]

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def store(self) -> MemoryStore:
        return MemoryStore(self.world, is_fine=True)

    def seen(self) -> str | None:
        return seen_in(self.world)

    def pusher(self, source: int, *, force: bool, fails_at: int | None) -> Task:
        model = self.sources[source]
        work = push_of(self.store(), model, force=force, gives_up=fails_at is not None)
        return Task(work, digest=model.digest, force=force)

    def deleter(self) -> Task:
        return Task(lambda: self.store().delete(NAME, VERSION), deletes=True)

    def teardown(self) -> None:
        for task in self.tasks:
            task.finish()
        no_hindrance(self.world)
        for _, call in self.late:  # whatever arrives now is history
            call()
            assert self.seen() is None


TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(max_examples=max(1, STEPS // LENGTH), stateful_step_count=LENGTH, deadline=None)


class InBucket(Tasks):
    """The verbs themselves, each run on a name of its own."""

    store: ClassVar[BucketStore]
    sources: ClassVar[list[tuple[Path, str]]]  # and their digests
    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self.model = f"m{next(self.numbers)}:v"

    def seen(self) -> str | None:
        return self.store.seen(self.model)

    def pusher(self, source: int, *, force: bool, fails_at: int | None) -> Task:
        place, digest = self.sources[source % 2]  # so that some meet who have the same
        store, control = self.store.again(), Control(workers=1, is_last_try=True)

        def push() -> object:
            _refused_at[getcurrent()] = fails_at
            return store.push(place, self.model, control=control, force=force)

        return Task(push, digest=digest, force=force)

    def deleter(self) -> Task:
        return Task(lambda: self.store.again().delete(self.model), deletes=True)

    @precondition(lambda self: len(self.tasks) < 3)
    @rule()
    def label(self) -> None:
        self.begin(Labeller(lambda: self.store.again().set_labels(self.model, {"stage": "prod"})))

    def look(self, task: Task, before: str | None) -> None:
        if isinstance(task, Labeller):
            assert self.seen() == before
        else:
            super().look(task, before)

    def teardown(self) -> None:
        for task in self.tasks:
            task.finish()
        other, digest = self.sources[-1]
        assert self.store.again().push(other, self.model, force=True).digest == digest  # whatever is left
        assert self.store.tidy(self.model) == digest
        assert self.store.delete(self.model)
        assert self.store.nothing(self.model)
        for _, call in self.late:  # whatever arrives now is history, and goes with the next who looks
            call()
            assert self.seen() is None
        self.store.delete(self.model)
        assert self.store.nothing(self.model)


_refused_at: WeakKeyDictionary[greenlet, int | None] = WeakKeyDictionary()  # task → requests until one is refused


class Labeller(Task):
    """A task that changes labels, and so nothing that is published."""


@pytest.fixture
def bucket(small_parts: None, no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketStore]:
    """A bucket to which every request waits until the task that it belongs to is told to go on."""

    def here(work: Callable[[], object], name: str) -> Any:
        work()
        return SimpleNamespace(is_alive=lambda: False, join=lambda *_: None)

    monkeypatch.setattr(parallel, "start_thread", here)
    call, put = Mover.call, Mover.put

    def refuse() -> None:
        """Fail for good at the request that a task is to fail at; what it does about that is not refused."""
        left = _refused_at.get(getcurrent())
        if left is not None:
            _refused_at[getcurrent()] = left - 1 if left else None
            if not left:
                raise InvalidInput("as the test wants it")

    def paused_call(self: Mover, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        refuse()
        run = lambda: call(self, method, url, *arguments, **options)  # noqa: E731
        return paused(f"{method} {url}", run, writes=method not in ("GET", "HEAD"))

    def paused_put(self: Mover, url: str, *arguments: Any, cancel: object = None, **options: Any) -> Any:
        # Without the token of its task, which is dead when the call arrives late.
        refuse()
        return paused(f"PUT {url}", lambda: put(self, url, *arguments, **options), writes=True)

    monkeypatch.setattr(Mover, "call", paused_call)
    monkeypatch.setattr(Mover, "put", paused_put)
    with bucket_store() as store:
        yield store.again(timeout_seconds=3600)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", ["", "a", "ab"], ids=["none ahead", "some ahead", "all ahead"])
def test_tasks_in_a_bucket(bucket: BucketStore, tmp_path: Path, ahead: str) -> None:
    InBucket.store, InBucket.sources = bucket, []
    for text in "abc":
        parts = 4 if text in ahead else 1
        files = {"weights.bin": random_bytes(parts * PART + 9), "vocab.txt": text.encode()}
        place = write_tree(tmp_path / text, files)
        InBucket.sources.append((place, digest_directory(place)))
    run_state_machine_as_test(
        InBucket,
        settings=settings(
            max_examples=max(1, BUCKET_STEPS // LENGTH),
            stateful_step_count=LENGTH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
        ),
    )

"""Tasks that use one model store at the same time, stopped before each call of the store and gone on with in any order.

A task is the real code, run in a coroutine of its own. It may be killed at any call; what it had sent by then may still
arrive, as late as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast

from greenlet import getcurrent, greenlet

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import BeginAgain, ModelSyncError
from airflow_provider_modelsync.core.models import ModelRef
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.registries.modelstore.store import Entry, Manifest, Record, Store, StorePlan
from airflow_provider_modelsync.core.transfer.plan import DownloadWay, PushRequest, UploadPlan

NAME, VERSION = "m", "v"


class Killed(BaseException):
    """Nothing of a task goes on after this."""


@dataclass
class Step:
    """A call that a task is about to make.

    :param what: the call, in words.
    :param run: makes it.
    :param writes: whether it changes anything.
    """

    what: str
    run: Callable[[], Any]
    writes: bool


class _Coroutine(greenlet):
    task: Task


class Task:
    """One user of a store, about to make its first call.

    :param work: what it does.
    :param digest: what it pushes; ``None`` when it pushes nothing.
    :param force: whether it may replace other bytes.
    :param deletes: whether it deletes.
    """

    def __init__(
        self, work: Callable[[], Any], *, digest: str | None = None, force: bool = False, deletes: bool = False
    ) -> None:
        self.digest, self.force, self.deletes = digest, force, deletes
        self.result: Any = None
        self.is_over = self.is_killed = False
        self.seen: list[str] = []  # what its calls have answered
        self._work = work
        self._coroutine = _Coroutine(self._run)
        self._coroutine.task = self
        self.next: Step | None = self._coroutine.switch()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except ModelSyncError as error:
            self.result = error
        except Killed:
            pass
        self.is_over = True

    def step(self) -> None:
        """Make the next call, and go on to the one after it."""
        self.next = self._coroutine.switch()

    def kill(self) -> Callable[[], Any] | None:
        """End here and now; return what may still arrive of the call that was about to be made."""
        late = self.next.run if self.next and self.next.writes else None
        self.is_killed = True
        self._coroutine.switch()
        assert self.is_over
        return late

    def finish(self) -> Any:
        """Go on to the end; return what comes of it."""
        while not self.is_over:
            self.step()
        return self.result


def paused(what: str, run: Callable[[], Any], *, writes: bool = False) -> Any:
    """Make a call of a store, when the task that it belongs to is told to go on."""
    current = getcurrent()
    if not isinstance(current, _Coroutine):
        return run()
    if not current.task.is_killed:
        current.parent.switch(Step(what, run, writes))
    if current.task.is_killed:
        raise Killed
    result = run()
    current.task.seen.append(f"{what}: {result!r}")
    return result


# ---- a store in memory


@dataclass
class World:
    """What a store in memory holds.

    :param records: file name → content.
    :param files: directory → path → content.
    """

    records: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def facts(self) -> str:
        """Return all of it, comparable."""
        return repr(
            (sorted(self.records.items()), sorted((place, sorted(held.items())) for place, held in self.files.items()))
        )


@dataclass(frozen=True)
class Puts:
    """How the files of a push go up in memory, one by one."""

    directory: str
    missing: Mapping[str, bytes]


_LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryStore(Store):
    """The weakest store that is accepted: it lists, and creates where nothing is. Objects are written over.

    :param world: what it holds.
    :param is_fine: whether a task is stopped before each record that it reads or removes, not just before all of them.
    """

    def __init__(self, world: World, *, is_fine: bool = False) -> None:
        self.world = world
        self._each = paused if is_fine else lambda what, run, *, writes=False: run()

    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]:
        listed = paused("list records", lambda: sorted(self.world.records))
        return dict.fromkeys(listed, Entry(_LONG_AGO))

    def read(self, name: str, record: str) -> Record | None:
        content = self._each(f"read {record}", lambda: self.world.records.get(record))
        return None if content is None else Record(content, _LONG_AGO)

    def create(self, name: str, record: str, content: bytes) -> bool:
        def put() -> bool:
            return self.world.records.setdefault(record, content) is content

        return bool(paused(f"create {record}", put, writes=True))

    def remove(self, name: str, records: Iterable[str]) -> None:
        def take(gone: list[str]) -> None:
            for record in gone:
                self._each(
                    f"remove {record}", lambda record=record: self.world.records.pop(record, None) and None, writes=True
                )

        if gone := sorted(records):
            paused(f"remove {gone}", lambda: take(gone), writes=True)

    def _forget(self, record: str) -> None:
        self.world.records.pop(record, None)

    def put(self, directory: str, path: str, content: bytes) -> None:
        def put() -> None:
            self.world.files.setdefault(directory, {})[path] = content

        paused(f"put {directory}/{path}", put, writes=True)

    def generations(self, name: str, version: str) -> set[int]:
        listed = paused("list directories", lambda: sorted(self.world.files))
        return {claims.generation_of(version, directory) for directory in listed} - {0}

    def clear(self, name: str, version: str, generations: Iterable[int]) -> None:
        for generation in sorted(generations):
            place = claims.directory_of(version, generation)
            paused(f"remove {place}", lambda place=place: self.world.files.pop(place, None) and None, writes=True)

    def way_up(self, request: PushRequest, manifest: Manifest, *, is_fresh: bool, origin: Manifest | None) -> Any:
        wanted: Mapping[str, bytes] = request.source.contents  # type: ignore[attr-defined]
        there = {} if is_fresh else self._files(manifest.directory)
        return Puts(manifest.directory, {path: body for path, body in wanted.items() if there.get(path) != body})

    def confirm(self, plan: StorePlan) -> Manifest:
        there = self._files(plan.manifest.directory)
        if any(sha(there.get(file.path, b"gone")) != file.sha256 for file in plan.manifest.files):
            raise BeginAgain("not all is there")
        return plan.manifest

    def _files(self, directory: str) -> dict[str, bytes]:
        return dict(paused(f"list {directory}", lambda: sorted(self.world.files.get(directory, {}).items())))

    def damaged(self, manifest: Manifest, *, written: datetime, thorough: bool) -> set[str]:
        there = self._files(manifest.directory)
        return {file.path for file in manifest.files if sha(there.get(file.path, b"gone")) != file.sha256}

    def identity(self, name: str, record: str) -> tuple[str, ...]:
        return (record,)

    def show(self, name: str, record: str) -> str:
        return record

    def uri(self, name: str, directory: str) -> str:
        return f"memory:{directory}"

    def names(self) -> list[str]:
        return [NAME]

    def test(self) -> str:
        return ""

    def is_free(self, manifest: Manifest) -> bool:
        return True

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Memory refuses nothing, and holds nothing that others cannot see."""

    prepare = require_fit = finish = release = require_removable = _nothing

    def way_down(self, manifest: Manifest) -> DownloadWay:
        raise NotImplementedError


def sha(content: bytes) -> str:
    return sha256(content).hexdigest()


def source_of(text: str, files: int = 1) -> Any:
    """Return a model whose files all hold a text."""
    contents = {f"f{number}": text.encode() for number in range(files)}
    entries = tuple(FileEntry(path, len(body), sha(body)) for path, body in sorted(contents.items()))
    return SimpleNamespace(
        contents=contents, files=entries, directories=(), digest=digest_of(entries), size_bytes=len(contents)
    )


def _know(*facts: object) -> None:
    """Say that nothing else of what the task has been told matters from here on."""
    current = getcurrent()
    if isinstance(current, _Coroutine):
        current.task.seen[:] = [repr(facts)]


def push_of(store: MemoryStore, source: Any, *, force: bool = False, gives_up: bool = False) -> Callable[[], Any]:
    """Return what a push does, as :mod:`~core.verbs.push` does it.

    :param gives_up: whether it fails for good once its bytes are there.
    """
    request = PushRequest(ref=ModelRef(name=NAME, version=VERSION), source=source, force=force)

    def attempt(passing: tuple[type[BaseException], ...] = ()) -> Any:
        _know(passing)
        plan: UploadPlan = store.plan_push(request, Manifest.of(request, VERSION))
        if plan.existing:
            return plan.existing
        assert isinstance(plan, StorePlan)
        what = plan.generation, plan.keeps, plan.manifest.generation, plan.way
        _know(passing, what)
        try:
            if plan.way is not None:
                puts = cast(Puts, plan.way)
                for path, content in puts.missing.items():
                    store.put(puts.directory, path, content)
            _know(passing, what[:-1])
            if not gives_up:
                return store.publish(plan)
        except passing:
            raise
        except ModelSyncError as error:
            _know(type(error), plan.generation, plan.keeps)
            store.abort(plan)
            raise
        return store.abort(plan)

    def push() -> Any:
        try:
            return attempt(passing=(BeginAgain,))
        except BeginAgain:
            return attempt()

    return push


def seen_in(world: World) -> str | None:
    """Return the digest of what is published, ``None`` for nothing. Fails when its files are not as it says."""
    state = MemoryStore(world).look(NAME, VERSION)
    if not isinstance(state.manifest, Manifest):
        assert state.damage is None
        return None
    there = world.files.get(state.manifest.directory, {})
    assert {path: sha(body) for path, body in there.items()}.items() >= {
        file.path: file.sha256 for file in state.manifest.files
    }.items(), f"a mixture: {world}"
    return state.manifest.digest

"""The protocol of all stores, in every order: what is published stays, whatever others do, fail to do, or do late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    InvalidInput,
    RegistryUnavailable,
    Retryable,
    VersionConflict,
)
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.registries.modelstore.store import Entry, Manifest, StorePlan
from airflow_provider_modelsync.core.transfer.plan import PushRequest
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

pytestmark = pytest.mark.faults

A, B = source_of("a"), source_of("b")
Begin = Callable[[World], list[Task]]
LATE = "late"


@dataclass(frozen=True)
class Reached:
    """A state that some order of calls leads to.

    :param tasks: those that have begun.
    :param world: what the store holds.
    :param history: what was published, one after the other.
    """

    tasks: list[Task]
    world: World
    history: list[str | None]


def pushed(source: object, *, force: bool = False, gives_up: bool = False) -> Callable[[World], Task]:
    return lambda world: Task(
        push_of(MemoryStore(world), source, force=force, gives_up=gives_up),
        digest=source.digest,  # type: ignore[attr-defined]
        force=force,
    )


def deleted(world: World) -> Task:
    return Task(lambda: MemoryStore(world).delete(NAME, VERSION), deletes=True)


def explore(
    begin: list[Callable[[World], Task]],
    check: Callable[[Reached], None],
    *,
    before: Callable[[World], object] = lambda world: None,
    kills: bool = False,
    limit: int = 14,
) -> int:
    """Run tasks in every order of their calls; return the number of states that there are.

    Two orders that lead to the same store and have told the tasks the same are one state, and gone on from once.

    :param limit: of calls in any order; from then on one task after the other goes on to its end.
    :param kills: also kill the first task before each of its calls, and let what it had sent arrive at any time.
    """
    known: set[str] = set()
    todo: list[tuple[tuple[object, ...], tuple[str | None, ...]]] = [((), ())]
    ends = 0
    while todo:
        order, history = todo.pop()
        run = _Run(begin, before)
        for move in order:
            run.make(move)
        while True:  # on along one of the ways; the others are for later
            now = seen_in(run.world)
            history = history if history and history[-1] == now else (*history, now)
            is_free = len(order) < limit
            facts = repr((run.facts(), history, is_free))
            if facts in known:
                break
            known.add(facts)
            moves = run.moves(kills=kills and is_free)
            if not moves:
                ends += 1
                check(Reached(run.tasks, run.world, list(history)))
                break
            if is_free:
                todo += [((*order, move), history) for move in moves[1:]]
            order = (*order, moves[0])
            run.make(moves[0])
    assert ends > 1
    return len(known)


class _Run:
    """One order of calls, as far as it has come."""

    def __init__(self, begin: list[Callable[[World], Task]], before: Callable[[World], object]) -> None:
        self.world = World()
        before(self.world)
        self.tasks = [task(self.world) for task in begin]
        self.late: Callable[[], object] | None = None
        self.was_killed = False

    def moves(self, *, kills: bool) -> list[object]:
        moves: list[object] = [number for number, task in enumerate(self.tasks) if not task.is_over]
        if kills and not self.was_killed and not self.tasks[0].is_over:
            moves.append("kill")
        return [*moves, LATE] if self.late else moves

    def make(self, move: object) -> None:
        if move == "kill":
            self.was_killed = True
            self.late = self.tasks[0].kill()
        elif move == LATE:
            assert self.late is not None
            self.late()
            self.late = None
        else:
            assert isinstance(move, int)
            self.tasks[move].step()

    def facts(self) -> object:
        return self.world.facts(), [task.seen for task in self.tasks], self.was_killed, self.late is None


def no_hindrance(world: World) -> None:
    """Whatever is left, other bytes are published by force, and then nothing else is left."""
    other = source_of("other")
    assert isinstance(Task(push_of(MemoryStore(world), other, force=True)).finish(), ModelVersion)
    assert seen_in(world) == other.digest
    state = MemoryStore(world).look(NAME, VERSION)
    assert state.manifest is not None
    assert sorted(world.records) == [claims.verdict_of(VERSION, state.view.current)]
    assert list(world.files) == [state.manifest.directory]
    MemoryStore(world).delete(NAME, VERSION)
    assert world.files == {}
    assert all(name.endswith(".closed") for name in world.records)
    assert len(world.records) == 1


@pytest.mark.row("D6", "P13")
def test_two_pushes_of_the_same_bytes_both_succeed_in_every_order() -> None:
    def check(end: Reached) -> None:
        assert end.history == [None, A.digest]
        assert [task.result.digest for task in end.tasks] == [A.digest] * 2
        assert sorted(end.world.records) == ["v.json"]

    assert explore([pushed(A), pushed(A)], check) > 100


@pytest.mark.row("D6")
def test_of_two_pushes_of_other_bytes_one_wins_and_the_other_hears_of_it_in_every_order() -> None:
    def check(end: Reached) -> None:
        won = [task for task in end.tasks if isinstance(task.result, ModelVersion)]
        assert len(won) == 1
        assert end.history == [None, won[0].digest]
        for task in end.tasks:
            if task not in won:
                assert isinstance(task.result, VersionConflict)
                assert str(won[0].digest) in str(task.result)

    explore([pushed(A), pushed(B)], check)


@pytest.mark.row("P13")
def test_giving_up_never_takes_back_what_another_has_published_in_any_order() -> None:
    def check(end: Reached) -> None:
        other = end.tasks[1].result
        # Given up under it once and again, it may be told to try once more.
        assert isinstance(other, ModelVersion | Retryable), other
        assert end.history[-1] == (A.digest if isinstance(other, ModelVersion) else None)
        assert len(end.history) <= 2
        no_hindrance(end.world)

    explore([pushed(A, gives_up=True), pushed(A)], check)


def test_two_forced_pushes_end_in_one_of_them_in_every_order() -> None:
    old = source_of("old")

    def check(end: Reached) -> None:
        results = [task.result for task in end.tasks]
        assert all(isinstance(result, ModelVersion | VersionConflict | Retryable) for result in results), results
        assert None not in end.history
        for result, other in zip(results, (B, A), strict=True):  # who has lost hears of whom
            assert not isinstance(result, VersionConflict) or other.digest in str(result), result
        if any(isinstance(result, ModelVersion) for result in results):
            assert end.history[-1] in (A.digest, B.digest)
        no_hindrance(end.world)

    explore(
        [pushed(A, force=True), pushed(B, force=True)],
        check,
        before=lambda world: Task(push_of(MemoryStore(world), old)).finish(),
        limit=12,
    )


@pytest.mark.parametrize("force", [False, True])
def test_a_delete_beside_a_push_leaves_all_or_nothing_in_every_order(force: bool) -> None:
    def check(end: Reached) -> None:
        result = end.tasks[0].result
        assert isinstance(result, ModelVersion | Retryable), result
        if isinstance(result, ModelVersion) and not end.tasks[1].result:
            assert end.history[-1] == A.digest
        no_hindrance(end.world)

    def before(world: World) -> None:
        if force:
            Task(push_of(MemoryStore(world), B)).finish()

    explore([pushed(A, force=force), deleted], check, before=before, limit=11)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("other", [A, B], ids=["same", "other"])
@pytest.mark.row("P1")
def test_a_push_that_is_killed_anywhere_hurts_nobody_however_late_its_last_call_arrives(
    force: bool, other: object
) -> None:
    def check(end: Reached) -> None:
        killed, second = end.tasks
        digest = other.digest  # type: ignore[attr-defined]
        if other is A:
            assert isinstance(second.result, ModelVersion), second.result
        else:  # the first may have been killed when it had taken the version over
            assert isinstance(second.result, ModelVersion | VersionConflict | Retryable), second.result
        if isinstance(second.result, ModelVersion):
            assert digest in end.history
            assert end.history[-1] == digest or (killed.force and other is B)
        no_hindrance(end.world)

    explore([pushed(A, force=force), pushed(other, force=force)], check, kills=True)


def test_a_killed_delete_hurts_nobody_however_late_its_last_call_arrives() -> None:
    def check(end: Reached) -> None:
        assert isinstance(end.tasks[1].result, ModelVersion | Retryable)
        if end.tasks[0].is_killed and isinstance(end.tasks[1].result, ModelVersion):
            assert end.history[-1] in (A.digest, None)
        no_hindrance(end.world)

    explore(
        [deleted, pushed(A, force=True)],
        check,
        before=lambda world: Task(push_of(MemoryStore(world), B)).finish(),
        kills=True,
        limit=11,
    )


# The decisions, one by one


@pytest.mark.parametrize(
    ("view", "told", "step"),
    [
        (claims.View(), {}, claims.Claim(1)),
        (claims.View(decided=4), {}, claims.Claim(5)),
        (claims.View(decided=4, digest="mine"), {}, claims.Claim(5)),
        (claims.View(decided=2, current=2, digest="mine"), {}, claims.Keep()),
        (claims.View(decided=2, current=2, digest="mine"), {"force": True}, claims.Keep()),
        (claims.View(decided=2, current=2, digest="mine"), {"renew": True}, claims.Claim(3)),
        (claims.View(decided=2, current=2, digest="other"), {}, claims.Refuse("other", is_published=True)),
        (claims.View(decided=2, current=2, digest="other"), {"takes_over": True}, claims.Refuse("other", True)),
        (claims.View(decided=2, current=2, digest="other"), {"force": True}, claims.Claim(3)),
        (claims.View(open=1, claimant="mine"), {}, claims.Join(1)),
        (claims.View(open=1, claimant="other"), {}, claims.Refuse("other", is_published=False)),
        (claims.View(open=1, claimant="other"), {"force": True}, claims.Refuse("other", is_published=False)),
        (claims.View(open=1, claimant="other"), {"takes_over": True}, claims.Close(1, 0)),
        (
            claims.View(decided=2, current=2, digest="other", open=3, claimant="third"),
            {"force": True, "takes_over": True},
            claims.Close(3, 2),
        ),
    ],
)
def test_what_a_push_does_next(view: claims.View, told: dict[str, bool], step: claims.Step) -> None:
    assert claims.enter(view, "mine", **{"force": False, "takes_over": False, **told}) == step


@pytest.mark.parametrize(
    ("view", "is_created", "came"),
    [
        (claims.View(decided=3, current=3, digest="mine"), True, claims.Outcome.DONE),
        (claims.View(decided=3, current=3, digest="mine"), False, claims.Outcome.DONE),
        (claims.View(decided=5, current=5, digest="mine"), False, claims.Outcome.DONE),
        (claims.View(decided=3, current=2, digest="mine"), False, claims.Outcome.AGAIN),
        (claims.View(decided=4, current=4, digest="other"), True, claims.Outcome.LOST),
        (claims.View(decided=3, open=4, claimant="other"), True, claims.Outcome.LOST),
        (claims.View(decided=3, open=4, claimant="mine"), False, claims.Outcome.AGAIN),
        (claims.View(decided=3), True, claims.Outcome.GONE),
        (claims.View(decided=3), False, claims.Outcome.AGAIN),
    ],
)
def test_what_came_of_an_attempt_to_publish(view: claims.View, is_created: bool, came: claims.Outcome) -> None:
    assert claims.outcome(view, 3, "mine", is_created=is_created) is came


def test_what_never_counts_again() -> None:
    """Generation 1 counts, 2 was closed, 3 goes on."""
    records = claims.Records(verdicts={1}, claims={1, 2, 3}, closed={1: 0, 2: 1}, labels={1: {1, 2}, 2: {1}, 3: {1, 2}})
    dead = claims.dead_records("v", records, claims.View(decided=2, current=1, digest="d", open=3, claimant="e"))
    assert sorted(dead) == sorted(
        [
            claims.claim_of("v", 1),
            claims.claim_of("v", 2),
            claims.labels_of("v", 1, 1),
            claims.labels_of("v", 2, 1),
            claims.labels_of("v", 3, 1),
            claims.closed_of("v", 1, 0),
        ]
    )


@pytest.mark.parametrize(
    ("directory", "generation"),
    [("v", 1), ("v~2", 2), ("v~10", 10), ("v~1", 0), ("v~02", 0), ("v~", 0), ("w", 0), ("vv", 0), ("v~2~2", 0)],
)
def test_a_directory_tells_its_generation(directory: str, generation: int) -> None:
    assert claims.generation_of("v", directory) == generation
    assert not generation or claims.directory_of("v", generation) == directory


def test_what_is_decided_and_does_not_count_is_dead() -> None:
    view = claims.View(decided=2, current=1)
    assert [view.is_dead(generation) for generation in (1, 2, 3)] == [False, True, False]


def test_a_verdict_counts_above_what_notes_say_only() -> None:
    assert claims.Records(verdicts={2, 3}, closed={2: 0}).top == 3
    assert claims.Records(verdicts={1, 2}, closed={2: 0}).top == 0


# What a place is asked for, and what it answers


def noting(store: MemoryStore, *methods: str) -> list[tuple[str, dict[str, object]]]:
    """Have a store note which of its methods are called, and with what by name; return the notes."""
    notes: list[tuple[str, dict[str, object]]] = []

    def noted(method: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            notes.append((" ".join([method, *(one for one in arguments if one.__class__ is str)]), named))
            return real(*arguments, **named)

        return call

    for method in methods:
        setattr(store, method, noted(method, getattr(store, method)))
    return notes


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


def planned(store: MemoryStore, source: Any, **options: Any) -> StorePlan:
    request = PushRequest(ref=ModelRef(name=NAME, version=VERSION), source=source, **options)
    plan = store.plan_push(request, Manifest.of(request, VERSION))
    assert isinstance(plan, StorePlan)
    return plan


def send(store: MemoryStore, plan: StorePlan) -> None:
    way: Any = plan.way
    for path, content in way.missing.items():
        store.put(way.directory, path, content)


def test_a_first_push_asks_for_nothing_that_it_knows() -> None:
    """Neither its own claim nor its own manifest is read, and where nothing is dead no files are looked for."""
    store = MemoryStore(World())
    asked = noting(store, "prepare", "read", "generations", "finish")
    push_of(store, A)()
    assert asked == [("prepare", {"replaces": False}), (f"read {NAME} v.json", {}), ("finish", {})]


def test_what_a_push_is_going_to_replace_is_said_before_it_claims_anything() -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    asked = noting(store, "prepare", "create")
    push_of(store, B, force=True)()
    assert asked[:2] == [("prepare", {"replaces": True}), (f"create {NAME} v.~2.claim", {})]


@pytest.mark.parametrize("refuses", ["require_fit", "prepare", "require_removable"])
def test_what_a_place_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    world = World()
    push_of(MemoryStore(world), A)()
    before = world.facts()
    monkeypatch.setattr(MemoryStore, refuses, raising(InvalidInput("not here")))
    work = deleted if refuses == "require_removable" else pushed(B, force=True)
    assert isinstance(work(world).finish(), InvalidInput)
    assert world.facts() == before


class Behind(MemoryStore):
    """Does not list a record the first times.

    :param hidden: the record.
    :param looks: how many times.
    """

    def __init__(self, world: World, hidden: str, looks: int) -> None:
        super().__init__(world)
        self._hidden, self._looks = hidden, looks

    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]:
        found = super().entries(name, version)
        self._looks -= 1
        if self._looks >= 0:
            found.pop(self._hidden, None)
        return found


def test_a_claim_on_a_number_that_is_history_is_taken_back_where_that_is_not_listed() -> None:
    world = World()
    push_of(MemoryStore(world), A)()
    with pytest.raises(RegistryUnavailable, match="does not list that yet"):
        push_of(Behind(world, "v.json", looks=1000), A)()
    assert sorted(world.records) == ["v.json"]


@pytest.mark.parametrize("source", [A, B], ids=["same", "other"])
def test_where_it_is_listed_late_a_push_goes_on_from_what_is_listed(source: Any) -> None:
    world = World()
    push_of(MemoryStore(world), A)()
    late = Behind(world, "v.json", looks=2)
    if source is A:
        assert push_of(late, A)().digest == A.digest
    else:
        with pytest.raises(VersionConflict, match="exists with"):
            push_of(late, B)()
    assert sorted(world.records) == ["v.json"]


@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize(("publishes", "says"), [(True, "exists with"), (False, "is claimed by a push of")])
def test_who_was_overtaken_hears_by_whom_and_how_far_that_is(sends: bool, publishes: bool, says: str) -> None:
    store = MemoryStore(World())
    first, second = planned(store, A), planned(store, B, force=True)
    if publishes:
        send(store, second)
        store.publish(second)
    if sends:
        send(store, first)
    asked = noting(store, "finish")
    with pytest.raises(VersionConflict, match=f"{says} {B.digest}"):
        store.publish(first)
    assert asked == []


def test_files_that_arrive_when_their_push_was_given_up_go_with_it() -> None:
    world = World()
    store = MemoryStore(world)
    plan = planned(store, A)
    store.delete(NAME, VERSION)
    send(store, plan)
    with pytest.raises(RegistryUnavailable, match="was withdrawn just now"):
        store.publish(plan)
    assert (sorted(world.records), world.files) == (["v.~1.0.closed"], {})


def test_what_is_only_claimed_was_not_there_to_delete() -> None:
    world = World()
    store = MemoryStore(world)
    send(store, planned(store, A))
    assert store.delete(NAME, VERSION) is False
    assert (sorted(world.records), world.files) == (["v.~1.0.closed"], {})


def test_files_of_what_was_given_up_go_with_a_delete_that_has_nothing_to_decide() -> None:
    world = World(records={"v.~1.0.closed": b""}, files={"v": {"f": b"late"}})
    assert MemoryStore(world).delete(NAME, VERSION) is False
    assert (sorted(world.records), world.files) == (["v.~1.0.closed"], {})


@pytest.mark.parametrize("claimed", ["before", "meanwhile"])
def test_a_push_that_cannot_begin_gives_up_no_claim_but_its_own(monkeypatch: pytest.MonkeyPatch, claimed: str) -> None:
    def create_second(name: str, record: str, content: bytes) -> bool:
        return create(name, record, content) and create(name, record, b"late")

    world = World()
    store = MemoryStore(world)
    create = store.create
    if claimed == "before":
        planned(store, A)
    else:
        monkeypatch.setattr(store, "create", create_second)
    monkeypatch.setattr(store, "way_up", raising(InvalidInput("not here")))
    with pytest.raises(InvalidInput, match="not here"):
        planned(store, A)
    assert sorted(world.records) == ["v.claim"]


def test_a_push_takes_over_once_and_not_again_from_whoever_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_after_another(name: str, record: str, content: bytes) -> bool:
        if record.endswith(".claim"):
            return create(name, record, other) and False
        return create(name, record, content)

    store = MemoryStore(World())
    create = store.create
    planned(store, B)
    other = store.world.records["v.claim"]
    monkeypatch.setattr(store, "create", create_after_another)
    with pytest.raises(VersionConflict, match=f"is claimed by a push of {B.digest}"):
        planned(store, A, force=True)
    assert sorted(store.world.records) == ["v.~1.0.closed", "v.~2.claim"]


def test_a_push_that_was_given_up_under_it_is_told_to_begin_again() -> None:
    world = World()
    store = MemoryStore(world)
    plan = planned(store, A)
    send(store, plan)
    store._close(NAME, VERSION, plan.generation, 0)
    with pytest.raises(BeginAgain, match="was given up by another push or deleted"):
        store.publish(plan)
    assert (sorted(world.records), world.files) == (["v.~1.0.closed"], {})


def test_files_that_are_published_already_are_not_looked_at_when_their_metadata_change() -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    plan = planned(store, A, force=True, metadata={"auc": 1})
    asked = noting(store, "confirm", "_files")
    assert store.publish(plan).metadata == {"auc": 1}
    assert asked == []


def test_what_counts_goes_on_to_count_when_a_push_over_it_was_given_up() -> None:
    world = World()
    store = MemoryStore(world)
    push_of(store, A)()
    plan = planned(store, B, force=True)
    store._close(NAME, VERSION, plan.generation, plan.keeps)
    assert seen_in(world) == A.digest
    store.tidy(NAME, VERSION)
    assert seen_in(world) == A.digest
    assert sorted(world.records) == ["v.json", "v.~2.1.closed"]


def test_where_a_verdict_cannot_be_read_nothing_of_what_it_may_keep_goes() -> None:
    world = World()
    store = MemoryStore(world)
    push_of(store, A)()
    world.records |= {"v.~2.json": b"{", "v.~3.claim": world.records["v.json"]}
    before = world.facts()
    store.tidy(NAME, VERSION)
    assert store.tidy_all(NAME, datetime.max.replace(tzinfo=UTC), dry_run=False) == []
    assert world.facts() == before


def test_a_push_of_what_is_there_looks_for_no_files_of_the_dead() -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    asked = noting(store, "generations", "create", "remove")
    push_of(store, A)()
    assert asked == [(f"remove {NAME}", {})]


def test_what_came_before_a_failed_cleanup_is_what_is_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(World())
    monkeypatch.setattr(store, "way_up", raising(InvalidInput("not here")))
    monkeypatch.setattr(store, "_close", raising(RegistryUnavailable("not now")))
    with pytest.raises(InvalidInput, match="not here"):
        planned(store, A)
    assert "cleaning up after the push of m:v failed: not now" in caplog.text


def test_a_kill_is_heard_while_it_is_tidied_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(World())
    monkeypatch.setattr(store, "remove", raising(Cancelled("told to stop")))
    with pytest.raises(Cancelled):
        push_of(store, A)()


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (lambda store: store.look(NAME, VERSION).view.digest, A.digest),
        (lambda store: store.digests(NAME), {A.digest}),
        (lambda store: [version.digest for version in store.list_versions(NAME, Query())], [A.digest]),
        (lambda store: store.alias(NAME, "champion").version, VERSION),
        (lambda store: [alias.version for alias in store.aliases(NAME)], [VERSION]),
    ],
    ids=["look", "digests", "versions", "alias", "aliases"],
)
def test_a_record_that_goes_while_it_is_read_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[MemoryStore], object], seen: object
) -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    store.set_alias(NAME, "champion", VERSION, None)
    read, goes = store.read, [True]
    monkeypatch.setattr(store, "read", lambda *of: None if goes and goes.pop() else read(*of))
    assert look(store) == seen


def test_records_that_go_all_the_time_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    monkeypatch.setattr(store, "read", lambda *of: None)
    with pytest.raises(RegistryUnavailable, match="change all the time"):
        store.look(NAME, VERSION)


def test_labels_for_what_was_replaced_meanwhile_are_told_to_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_before_another(name: str, record: str, content: bytes) -> bool:
        is_created = create(name, record, content)
        push_of(MemoryStore(world), B, force=True)()
        return is_created

    world = World()
    store = MemoryStore(world)
    push_of(store, A)()
    create = store.create
    monkeypatch.setattr(store, "create", create_before_another)
    with pytest.raises(BeginAgain, match="was replaced while its labels were changed"):
        store.set_labels(NAME, VERSION, {"stage": "prod"})
    assert store.look(NAME, VERSION).labels == {}


def test_an_alias_is_looked_at_before_it_moves_and_after_that() -> None:
    store = MemoryStore(World())
    push_of(store, A)()
    asked = noting(store, "entries")
    assert store.set_alias(NAME, "champion", VERSION, None).version == VERSION
    assert len(asked) == 2


def test_what_a_push_that_gives_up_has_sent_goes_with_it() -> None:
    world = World()
    store = MemoryStore(world)
    plan = planned(store, A)
    send(store, plan)
    store.abort(plan)
    assert (sorted(world.records), world.files) == (["v.~1.0.closed"], {})

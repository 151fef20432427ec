"""The protocol of all stores, in every order: what is published stays, whatever others do, fail to do, or do late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from airflow_provider_modelsync.core.errors import Retryable, VersionConflict
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.modelstore import claims
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

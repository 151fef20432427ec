"""Promotion by what versions' metadata say, and going back along an alias's own history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, VersionConflict
from airflow_provider_modelsync.core.models import Alias, Held
from airflow_provider_modelsync.core.verbs.promote import Promotion, Rollback, line_of, promote, rollback
from tests.core.stores import Store, write_tree
from tests.support.at_once import at_once

AUC = {"metric": "auc", "mode": "max", "at_least": 0.005}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", {"a": b"1"})


def push(store: Store, source: Path, version: str, **metadata: Any) -> str:
    (source / "a").write_text(version)
    return store.push(source, f"fraud:{version}", metadata=metadata).ref


def promoted(store: Store, model: str, *when: Mapping[str, Any]) -> Promotion:
    return store.run(promote(store.registry, model, "champion", when))


def went_back(store: Store, to: str | None = None, **options: Any) -> Rollback:
    return store.run(rollback(store.registry, "fraud", "champion", to, **options))


def champion(store: Store) -> str:
    return store.get("fraud@champion").version


def test_where_nobody_is_champion_the_first_becomes_it_whatever_is_asked_for(store: Store, source: Path) -> None:
    done = promoted(store, push(store, source, "v1"), AUC)
    assert (done.outcome, done.before) == ("promoted", None)
    assert done.to_xcom()["reason"] == "fraud:v1 is fraud@champion now, the first to be so"
    assert champion(store) == "v1"


@pytest.mark.parametrize(
    ("new", "old", "when", "is_better"),
    [
        (0.905, 0.9, {"at_least": 0.005}, True),
        (0.105, 0.1, {"at_least": 0.005}, True),  # 0.00499999… to a machine
        (0.9049, 0.9, {"at_least": 0.005}, False),
        (0.9, 0.9, {}, False),
        (0.9000001, 0.9, {}, True),
        (0.9, 0.9, {"at_least": 0}, True),
        (0.89, 0.9, {"at_least": "-0.01"}, True),
        (0.88, 0.9, {"at_least": "-0.01"}, False),
        (12, 20, {"mode": "min", "at_least": 8}, True),
        (12.5, 20, {"mode": "min", "at_least": 8}, False),
        ("0.91", 0.9, {}, True),
    ],
)
def test_a_version_is_promoted_when_it_is_as_much_better_as_is_asked_for(
    store: Store, source: Path, new: Any, old: Any, when: dict[str, Any], is_better: bool
) -> None:
    promoted(store, push(store, source, "v1", auc=old))
    done = promoted(store, push(store, source, "v2", auc=new), {"metric": "auc", **when})
    assert done.outcome == ("promoted" if is_better else "refused")
    assert champion(store) == ("v2" if is_better else "v1")
    told = done.to_xcom()
    assert (told["promoted"], told["from"], told["to"]) == (is_better, "fraud:v1", f"fraud:{champion(store)}")
    assert str(new) in str(told["reason"])


def test_every_condition_must_be_met_and_those_that_are_not_are_told(store: Store, source: Path) -> None:
    promoted(store, push(store, source, "v1", auc=0.9, test={"latency_ms": 20}))
    when = AUC, {"metric": "test.latency_ms", "mode": "min", "at_least": 0}
    done = promoted(store, push(store, source, "v2", auc=0.95, test={"latency_ms": 30}), *when)
    assert done.outcome == "refused"
    assert "test.latency_ms is 30, not at least 0 below 20" in done.reason
    assert "auc" not in done.reason
    assert promoted(store, push(store, source, "v3", auc=0.95, test={"latency_ms": 20}), *when).outcome == "promoted"


@pytest.mark.parametrize(("first", "second", "at_fault"), [({}, {"auc": 1}, "v1"), ({"auc": 1}, {"f1": 1}, "v2")])
def test_a_metric_that_is_missing_is_named_with_what_there_is(
    store: Store, source: Path, first: dict[str, Any], second: dict[str, Any], at_fault: str
) -> None:
    promoted(store, push(store, source, "v1", **first))
    with pytest.raises(InvalidInput, match=f"fraud:{at_fault} has no metric 'auc'.*holds: (f1|nothing)") as caught:
        promoted(store, push(store, source, "v2", **second), AUC)
    assert caught.value.argument == "when"
    assert champion(store) == "v1"


@pytest.mark.parametrize("value", [True, "much", [1], "nan", "inf"])
def test_a_metric_that_is_no_number_is_refused(store: Store, source: Path, value: Any) -> None:
    promoted(store, push(store, source, "v1", auc=0.5))
    with pytest.raises(InvalidInput, match="metric 'auc'"):
        promoted(store, push(store, source, "v2", auc=value), AUC)


@pytest.mark.parametrize(
    "when",
    [{}, {"metric": ""}, {"metric": "auc", "mode": "best"}, {"metric": "auc", "at_least": "nan"}, {"metrics": "auc"}],
)
def test_a_condition_that_makes_no_sense_is_refused_though_nobody_is_champion(
    store: Store, source: Path, when: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        promoted(store, push(store, source, "v1"), when)
    assert caught.value.argument == "when"


def test_who_is_champion_already_stays_it(store: Store, source: Path) -> None:
    ref = push(store, source, "v1", auc=0.5)
    promoted(store, ref)
    assert promoted(store, ref, AUC).outcome == "there"
    assert promoted(store, "fraud@champion").outcome == "there"


def test_a_champion_whose_version_is_gone_is_compared_with_by_nobody(store: Store, source: Path) -> None:
    promoted(store, push(store, source, "v1", auc=0.9))
    second = push(store, source, "v2", auc=0.5)
    store.delete("fraud:v1")
    assert promoted(store, second, AUC).outcome == "promoted"


def test_of_those_who_promote_at_once_the_best_becomes_champion(store: Store, source: Path) -> None:
    promoted(store, push(store, source, "v0", auc=0.1))
    refs = [push(store, source, f"v{number}", auc=0.1 + 0.1 * number) for number in (1, 2, 3, 4)]
    done = at_once(*(lambda ref=ref: promoted(Store(store.root), ref, {"metric": "auc"}) for ref in refs))
    assert {one.outcome for one in done} <= {"promoted", "refused"}
    assert done[-1].outcome == "promoted"
    assert champion(store) == "v4"


def test_a_second_rollback_goes_one_further_and_then_there_is_nothing(store: Store, source: Path) -> None:
    for number in (1, 2, 3):
        promoted(store, push(store, source, f"v{number}"))
    assert went_back(store).to_xcom() | {} == {
        "alias": "fraud@champion", "from": "fraud:v3", "to": "fraud:v2", "ref": "fraud:v2", "passed_over": []
    }  # fmt: skip
    assert went_back(store).version.version == champion(store) == "v1"
    with pytest.raises(ModelNotFound, match="nothing before"):
        went_back(store)
    promoted(store, "fraud:v3")
    assert went_back(store).version.version == "v1"


def test_a_rollback_passes_over_what_is_gone(store: Store, source: Path) -> None:
    for number in (1, 2, 3):
        promoted(store, push(store, source, f"v{number}"))
    store.delete("fraud:v2")
    done = went_back(store)
    assert (done.version.version, done.passed_over) == ("v1", ("fraud:v2",))


def test_a_rollback_goes_where_it_is_told(store: Store, source: Path) -> None:
    for number in (1, 2, 3):
        promoted(store, push(store, source, f"v{number}"))
    assert went_back(store, "v1").version.version == champion(store) == "v1"
    with pytest.raises(ModelNotFound):
        went_back(store, "v9")
    with pytest.raises(ModelNotFound, match="no alias 'staging'"):
        store.run(rollback(store.registry, "fraud", "staging"))


def test_what_was_decided_is_carried_out_once_however_often_it_is_tried(store: Store, source: Path) -> None:
    for number in (1, 2, 3):
        promoted(store, push(store, source, f"v{number}"))
    decided: list[Any] = []
    went_back(store, on_decided=decided.append)
    assert decided == [{"from": "v3", "to": "v2"}]
    assert went_back(store, decided=decided[0]).version.version == champion(store) == "v2"
    promoted(store, "fraud:v1")
    with pytest.raises(VersionConflict, match="points to the version v1"):
        went_back(store, decided=decided[0])


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ("a", "a"),
        ("ab", "ab"),
        ("aba", "a"),
        ("abca", "a"),
        ("abcb", "ab"),
        ("abcbd", "abd"),
        ("a-b", "ab"),
        ("ab-b", "ab"),
    ],
)
def test_the_line_leaves_out_what_was_gone_back_from(held: str, line: str) -> None:
    """:param held: what an alias has pointed to in turn; ``-`` stands for nothing."""
    earlier = tuple(Held(version=None if one == "-" else one) for one in reversed(held[:-1]))
    assert line_of(Alias(name="fraud", alias="champion", version=held[-1], earlier=earlier)) == list(line)

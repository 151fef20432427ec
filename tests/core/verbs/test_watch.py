"""Which versions are new: each is told once, when it is ready, and never one that was there at first sight."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_modelsync.core.models import ModelVersion, VersionStatus
from airflow_provider_modelsync.core.verbs import watch as module
from airflow_provider_modelsync.core.verbs.watch import LIMIT, Moves, Seen, sight_of

START = datetime(2026, 1, 1, tzinfo=UTC)


def version(name: str, status: str = "ready", *, age: int = 0) -> ModelVersion:
    """Return a version that is so many days old."""
    made = START - timedelta(days=age)
    return ModelVersion(registry="r", name="m", version=name, status=VersionStatus(status), created_at=made)


def told(seen: Seen | Moves, *versions: ModelVersion) -> list[str]:
    """Show a listing; return what is told."""
    return [new.version for new in seen.news(sight_of(versions))]


def test_what_is_ready_or_has_failed_at_first_sight_is_never_told() -> None:
    seen = Seen()

    assert told(seen, version("v1"), version("v2", "failed")) == []
    assert told(seen, version("v1"), version("v2")) == []


def test_what_is_not_ready_at_first_sight_is_told_once_it_is() -> None:
    seen = Seen()

    assert told(seen, version("v1"), version("v2", "uploading")) == []
    assert told(seen, version("v1"), version("v2", "uploading")) == []
    assert told(seen, version("v1"), version("v2")) == ["v2"]
    assert told(seen, version("v1"), version("v2")) == []


def test_a_new_version_is_told_once() -> None:
    seen = Seen([])

    assert told(seen, version("v1")) == ["v1"]
    assert told(seen, version("v1")) == []


@pytest.mark.parametrize("status", ["pending", "uploading", "converting", "failed", "unknown"])
@pytest.mark.row("S3", of="tasks")
def test_a_version_is_told_when_it_becomes_ready(status: str) -> None:
    seen = Seen([])

    assert told(seen, version("v1", status)) == []
    assert told(seen, version("v1")) == ["v1"]


@pytest.mark.row("S3", of="tasks")
def test_a_version_whose_state_goes_back_is_told_once() -> None:
    seen = Seen([])

    for status, news in [("converting", []), ("pending", []), ("ready", ["v1"]), ("converting", []), ("ready", [])]:
        assert told(seen, version("v1", status)) == news


def test_a_version_that_is_overtaken_by_newer_ones_is_not_forgotten() -> None:
    seen = Seen([])

    assert told(seen, version("slow", "converting", age=9), version("fast")) == ["fast"]
    assert told(seen, version("slow", age=9), version("fast")) == ["slow"]


def test_a_version_may_have_an_older_time_than_those_seen() -> None:
    seen = Seen()
    told(seen, version("v2"))

    assert told(seen, version("v1", age=1), version("v2")) == ["v1"]


def test_a_version_that_is_missing_from_one_listing_is_not_told_again() -> None:
    seen = Seen()
    told(seen, version("v1"))

    assert told(seen) == []
    assert told(seen, version("v1")) == []


def test_several_are_told_oldest_first() -> None:
    assert told(Seen([]), version("b"), version("c", age=1), version("a", age=2)) == ["a", "c", "b"]


def test_another_takes_up_where_one_has_left_off() -> None:
    first = Seen()
    told(first, version("v1"), version("v2", "converting"))
    told(first, version("v3"))
    kept = json.loads(json.dumps(first.keep()))

    assert told(Seen(kept), *map(version, ("v1", "v2", "v3", "v4"))) == ["v2", "v4"]


def test_a_model_without_versions_is_seen_too() -> None:
    seen = Seen()
    told(seen)

    assert seen.keep() == []
    assert told(Seen(seen.keep()), version("v1")) == ["v1"]


def test_what_is_to_be_kept_is_known() -> None:
    seen, changes = Seen(), []
    for listing in ([], [], ["v1"], ["v1"]):
        told(seen, *map(version, listing))
        changes.append(seen.has_changed)

    assert changes == [True, False, True, False]


def test_what_is_kept_stays_small() -> None:
    seen = Seen()
    told(seen, *(version(f"a-rather-long-name-for-a-version-{number}") for number in range(LIMIT)))

    assert len(json.dumps(seen.keep())) < 65_536


def test_beyond_the_limit_only_what_is_listed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 2)
    seen = Seen([])
    told(seen, version("v1"), version("v2"))
    told(seen, version("v2"), version("v3"))

    assert len(json.loads(json.dumps(seen.keep()))) == 2
    assert told(seen, version("v2"), version("v3")) == []


@pytest.mark.parametrize("kept", [5, "v1", {"v1": 1}, [1, 2]], ids=str)
def test_nonsense_is_refused(kept: object) -> None:
    with pytest.raises(ValueError, match="not what a watch remembers"):
        Seen(kept)  # type: ignore[arg-type]


def test_a_move_of_an_alias_is_told_whether_to_a_newer_or_an_older_version() -> None:
    moves = Moves()

    assert told(moves, version("v1")) == []
    assert told(moves, version("v2")) == ["v2"]
    assert told(moves, version("v2")) == []
    assert told(moves, version("v1")) == ["v1"]


def test_an_alias_that_is_not_there_at_first_sight_is_told_once_it_is() -> None:
    moves = Moves()

    assert told(moves) == []
    assert told(moves, version("v1")) == ["v1"]
    assert told(moves) == []
    assert told(moves, version("v1")) == []


def test_moves_go_on_from_what_was_kept() -> None:
    first = Moves()
    told(first, version("v1"))
    assert first.has_changed

    again = Moves(json.loads(json.dumps(first.keep())))

    assert told(again, version("v1")) == []
    assert not again.has_changed
    assert told(again, version("v2")) == ["v2"]
    with pytest.raises(ValueError, match="not what a watch remembers"):
        Moves(["v1"])

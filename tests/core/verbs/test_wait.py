from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.arguments import Moment, Signature
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, VersionFailed
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver, call
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from airflow_provider_modelsync.core.verbs.wait import Since, describe_absence, find_version
from tests.core.stores import Store, write_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the versions v1 (stage: prod) and v2 of one model, pushed in this order."""
    store = Store(tmp_path / "store")
    store.push(write_tree(tmp_path / "one", {"a": b"1"}), "fraud:v1", labels={"stage": "prod"})
    store.push(write_tree(tmp_path / "two", {"a": b"2"}), "fraud:v2")
    return store


def _find(store: Store, model: str, *, query: str | None = None, **options: Any) -> str | None:
    found = SyncDriver().run(find_version(store.registry, model, Query.parse(query), **options))
    return found.ref if found else None


def test_the_newest_ready_version_is_found(store: Store) -> None:
    assert _find(store, "fraud") == "fraud:v2"


def test_latest_is_the_newest_ready_version(store: Store) -> None:
    assert _find(store, "fraud:latest") == "fraud:v2"


def test_an_exact_version_is_found(store: Store) -> None:
    assert _find(store, "fraud:v1") == "fraud:v1"


@pytest.mark.parametrize("model", ["card", "fraud:v3"])
def test_what_is_not_there_yet_is_waited_for(store: Store, model: str) -> None:
    assert _find(store, model) is None


@pytest.mark.parametrize(
    ("model", "query", "told"),
    [
        ("fruad:v1", None, "there is no model 'fruad' yet: did you mean 'fraud'?"),
        ("Fraud", None, "there is no model 'Fraud' yet: did you mean 'fraud'?"),
        ("card", None, "there is no model 'card' yet"),
        ("fraud:v3", None, "fraud has 2 versions, no version v3; the newest is v2, which is ready"),
        ("fraud@champoin", None, "fraud has 2 versions, and no alias champoin"),
        ("fraud", "label:stage=dev", "none that is ready and has {'stage': 'dev'}; the newest is v2, which is ready"),
    ],
)
def test_what_is_there_instead_is_told_and_a_misspelt_name(
    store: Store, model: str, query: str | None, told: str
) -> None:
    said = SyncDriver().run(describe_absence(store.registry, model, Query.parse(query)))

    assert said.endswith(told)


def test_a_store_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    assert _find(Store(tmp_path / "absent"), "fraud") is None


def test_labels_choose_among_versions(store: Store) -> None:
    assert _find(store, "fraud", query="label:stage=prod") == "fraud:v1"
    assert _find(store, "fraud", query="label:stage=dev") is None


def test_an_exact_version_is_waited_for_until_it_is_chosen(store: Store) -> None:
    assert _find(store, "fraud:v1", query="label:stage=prod") == "fraud:v1"
    assert _find(store, "fraud:v2", query="label:stage=prod") is None
    assert _find(store, "fraud:v1", query="banana") is None


def test_a_version_newer_than_another_is_found(store: Store) -> None:
    assert _find(store, "fraud", newer_than="v1") == "fraud:v2"


def test_a_version_that_was_deleted_counts_where_its_time_is_known(store: Store, tmp_path: Path) -> None:
    told = store.get("fraud:v2").to_xcom()
    handed_over = Signature(_takes_newer_than).read("newer_than", told)
    assert handed_over == f"v2 {told['created_at']}"
    since, late = Since("v2"), Since("v2")
    assert _find(store, "fraud", query="label:stage=prod", newer_than=since) is None
    store.run(store.registry.delete(store.registry.parse("fraud:v2")))

    for gone in (handed_over, since, str(since)):
        assert _find(store, "fraud", newer_than=gone) is None
    with pytest.raises(InvalidInput, match=r"of a version that was deleted, hand its whole dictionary over"):
        _find(store, "fraud", newer_than=late)
    store.push(write_tree(tmp_path / "three", {"a": b"3"}), "fraud:v0")
    for gone in (handed_over, since, str(since)):
        assert _find(store, "fraud", newer_than=gone) == "fraud:v0"


def _takes_newer_than(newer_than: Moment) -> None: ...


def test_a_time_with_a_blank_is_a_time(store: Store) -> None:
    assert _find(store, "fraud", newer_than="2020-01-01 00:00:00+00:00") == "fraud:v2"
    assert str(Since("2020-01-01 00:00:00")) == "2020-01-01 00:00:00"


def test_the_newest_version_is_not_newer_than_itself(store: Store) -> None:
    assert _find(store, "fraud", newer_than="v2") is None


def test_a_chosen_version_must_be_newer_too(store: Store) -> None:
    assert _find(store, "fraud", query="label:stage=prod", newer_than="v2") is None


def test_a_version_newer_than_a_time_is_found(store: Store) -> None:
    assert _find(store, "fraud", newer_than="2020-01-01") == "fraud:v2"
    assert _find(store, "fraud", newer_than="2999-01-01T00:00:00Z") is None


def test_a_time_without_a_zone_is_utc_and_one_with_a_zone_is_read_as_such(store: Store) -> None:
    made = datetime(2026, 7, 1, 12, tzinfo=UTC)
    os.utime(store.meta("fraud", "v2.json"), (made.timestamp(), made.timestamp()))
    os.utime(store.meta("fraud", "v1.json"), (0, 0))
    just_before, just_after = made - timedelta(seconds=1), made + timedelta(seconds=1)
    assert _find(store, "fraud", newer_than=just_before.replace(tzinfo=None).isoformat()) == "fraud:v2"
    assert _find(store, "fraud", newer_than=just_after.replace(tzinfo=None).isoformat()) is None
    elsewhere = timezone(timedelta(hours=9))
    assert _find(store, "fraud", newer_than=just_before.astimezone(elsewhere).isoformat()) == "fraud:v2"
    assert _find(store, "fraud", newer_than=just_after.astimezone(elsewhere).isoformat()) is None


def test_a_version_made_at_that_very_time_is_not_newer(store: Store) -> None:
    made = datetime(2026, 7, 1, 12, tzinfo=UTC)
    for version in ("v1", "v2"):
        os.utime(store.meta("fraud", f"{version}.json"), (made.timestamp(), made.timestamp()))
    assert _find(store, "fraud", newer_than=made.isoformat()) is None


def test_a_version_that_looks_like_a_time_is_a_version(store: Store, tmp_path: Path) -> None:
    store.push(write_tree(tmp_path / "three", {"a": b"3"}), "fraud:2020-01-01")
    assert _find(store, "fraud", newer_than="2020-01-01") is None


@pytest.mark.parametrize("newer_than", ["v9", "yesterday", "latest"])
def test_what_is_neither_a_version_nor_a_time_is_refused(store: Store, newer_than: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _find(store, "fraud", newer_than=newer_than)
    assert caught.value.argument == "newer_than"


def test_an_exact_version_cannot_be_asked_to_be_newer(store: Store) -> None:
    with pytest.raises(InvalidInput, match="exact version") as caught:
        _find(store, "fraud:v1", newer_than="v1")
    assert caught.value.argument == "newer_than"


def test_a_state_that_the_registry_does_not_know_is_refused_with_those_it_knows(store: Store) -> None:
    with pytest.raises(InvalidInput, match="ready") as caught:
        _find(store, "fraud", state="loaded")
    assert caught.value.argument == "state"


def test_a_bad_name_is_refused_at_once(store: Store) -> None:
    with pytest.raises(InvalidInput):
        _find(store, "../fraud")


class _OneVersion(Registry):
    """Knows one version, in whatever state it is told, and a state beyond ready."""

    conn_type = "one"
    title = "the registry of one"
    capabilities = frozenset()
    states = frozenset({"ready", "loaded"})

    def __init__(self, status: str, raw: Mapping[str, Any] | None = None) -> None:
        super().__init__(RegistrySettings(conn_id="one"))
        self._known = ModelVersion(
            registry="one", name="m", version="v1", status=VersionStatus(status), raw=dict(raw or {})
        )

    def check(self, ref: ModelRef) -> None:
        pass

    def test(self) -> Flow[str]:
        return call(str)

    def has_reached(self, version: ModelVersion, state: str) -> bool:
        return version.ready if state == "ready" else state in version.raw

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        def read() -> ModelVersion:
            if version != self._known.version:
                raise ModelNotFound("there is one version only")
            return self._known

        return call(read)

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        return call(lambda: [self._known])

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        return call(lambda: [self._known])


def _look(registry: Registry, model: str, **options: str) -> ModelVersion | None:
    return SyncDriver().run(find_version(registry, model, Query(), **options))


@pytest.mark.parametrize("status", ["pending", "uploading", "converting", "unknown"])
def test_an_exact_version_that_is_not_ready_is_waited_for(status: str) -> None:
    assert _look(_OneVersion(status), "m:v1") is None


@pytest.mark.row("S2", of="tasks")
def test_an_exact_version_that_failed_ends_the_wait_with_the_registrys_reason() -> None:
    registry = _OneVersion("failed")
    registry.failure_of = lambda version: call(lambda: "the disk of the converter is full")  # type: ignore[method-assign]
    with pytest.raises(VersionFailed, match="m:v1 has failed in its registry: the disk of the converter") as caught:
        _look(registry, "m:v1")
    assert caught.value.model == "m:v1"


def test_a_failed_newest_version_does_not_end_the_wait_for_any() -> None:
    assert _look(_OneVersion("failed"), "m") is None


def test_a_state_beyond_ready_is_waited_for() -> None:
    assert _look(_OneVersion("ready"), "m:v1", state="loaded") is None
    assert _look(_OneVersion("ready", {"loaded": True}), "m:v1", state="loaded") is not None


@pytest.fixture
def champion(store: Store) -> Store:
    """The same store, with v2 as its champion."""
    store.run(set_alias(store.registry, "fraud:v2", "champion"))
    return store


def test_an_alias_that_is_not_there_yet_is_waited_for(store: Store) -> None:
    assert _find(store, "fraud@champion") is None


@pytest.mark.parametrize(
    ("newer_than", "found"),
    [(None, True), ("v2", False), ("v1", True), ("gone", True), ("2020-01-01", True), ("2999-01-01T00:00", False)],
)
def test_an_alias_is_waited_for_until_it_leaves_a_version_or_moves_after_a_time(
    champion: Store, newer_than: str | None, found: bool
) -> None:
    assert _find(champion, "fraud@champion", newer_than=newer_than) == ("fraud:v2" if found else None)


def test_an_alias_leaves_a_version_that_looks_like_a_time(champion: Store, tmp_path: Path) -> None:
    champion.push(write_tree(tmp_path / "three", {"a": b"3"}), "fraud:2999-01-01")
    assert _find(champion, "fraud@champion", newer_than="2999-01-01") == "fraud:v2"


@pytest.mark.parametrize("newer_than", ["latest", "fraud@champion", "no version"])
def test_what_an_alias_cannot_leave_is_refused(champion: Store, newer_than: str) -> None:
    with pytest.raises(InvalidInput):
        _find(champion, "fraud@champion", newer_than=newer_than)


def test_labels_count_for_what_an_alias_points_to(champion: Store) -> None:
    assert _find(champion, "fraud@champion", query="label:stage=prod") is None
    champion.set_labels("fraud:v2", {"stage": "prod"})
    assert _find(champion, "fraud@champion", query="label:stage=prod") == "fraud:v2"

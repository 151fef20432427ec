"""A sync that keeps aliases, follows them, and deletes what the source has not any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput, NotSupported
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import SyncReport
from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely, SuperviselySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, sync
from tests.core.stores import Store, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Store:
    """A store with four versions of one model: v1 is its champion."""
    store = Store(tmp_path / "source")
    for number in range(4):
        store.push(write_tree(tmp_path / f"m{number}", {"a": b"%d" % number}), f"fraud:v{number}")
    point(store, "fraud:v1")
    return store


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(tmp_path / "target")


def point(store: Store, model: str, alias: str = "champion") -> None:
    store.run(set_alias(store.registry, model, alias))


def synced(source: Store, target: Store, *, dry_run: bool = False, **selection: Any) -> SyncReport:
    sides = (Side(store.registry, SyncDriver()) for store in (source, target))
    return sync(*sides, Selection(**selection), Control(), dry_run=dry_run)


def versions(store: Store) -> list[str]:
    return sorted(version.version for version in store.list_versions("fraud"))


def test_aliases_come_along_with_what_they_point_to(source: Store, target: Store) -> None:
    report = synced(source, target, aliases=True)
    assert versions(target) == ["v1", "v3"]
    assert target.get("fraud@champion").ref == "fraud:v1"
    assert report.aliases == {"fraud@champion": "fraud:v1"}
    assert report.to_xcom()["aliases"] == [{"alias": "fraud@champion", "ref": "fraud:v1"}]
    assert synced(source, target, aliases=True).aliases == {}, "nothing has moved"
    point(source, "fraud:v3")
    assert synced(source, target, aliases=True).aliases == {"fraud@champion": "fraud:v3"}


def test_aliases_stay_where_they_are_unless_they_are_asked_for(source: Store, target: Store) -> None:
    report = synced(source, target, versions="all")
    assert (report.aliases, target.run(target.registry.aliases("fraud"))) == ({}, [])
    assert "aliases" not in report.to_xcom()


def test_what_an_alias_points_to_is_copied_alone(source: Store, target: Store) -> None:
    report = synced(source, target, models=["fraud@champion"], versions="all")
    assert versions(target) == ["v1"]
    assert [copy.source for copy in report.of("copied")] == ["fraud:v1"]
    (failed,) = synced(source, target, models=["fraud@staging"]).of("failed")
    assert (failed.source, failed.is_permanent) == ("fraud@staging", True)


def test_a_dry_run_moves_no_alias_and_deletes_nothing(source: Store, target: Store) -> None:
    synced(source, target, versions="all")
    source.delete("fraud:v0")
    report = synced(source, target, dry_run=True, aliases=True, delete_extra=True)
    assert report.deleted == ("fraud:v0",)
    assert report.aliases == {"fraud@champion": "fraud:v1"}
    assert versions(target) == ["v0", "v1", "v2", "v3"]
    assert target.run(target.registry.aliases("fraud")) == []


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["v0", "v1", "v2", "v3"]),
        ({"delete_extra": True}, ["v1", "v3"]),
        ({"delete_extra": True, "keep_last": 2}, ["v1", "v2", "v3"]),
        ({"delete_extra": True, "keep_last": 4}, ["v0", "v1", "v2", "v3"]),
    ],
)
def test_what_the_source_has_not_any_more_is_deleted_only_when_that_is_asked_for(
    source: Store, target: Store, options: dict[str, Any], left: list[str]
) -> None:
    synced(source, target, versions="all")
    for gone in ("v0", "v2"):
        source.delete(f"fraud:{gone}")
    report = synced(source, target, **options)
    assert versions(target) == left
    assert sorted(report.deleted) == sorted(f"fraud:{one}" for one in {"v0", "v1", "v2", "v3"} - {*left})


def test_what_an_alias_of_the_target_points_to_is_not_deleted(source: Store, target: Store) -> None:
    synced(source, target, versions="all")
    point(target, "fraud:v0", "pinned")
    source.delete("fraud:v0")
    assert synced(source, target, delete_extra=True).deleted == ()
    assert target.get("fraud@pinned").ref == "fraud:v0"


def test_nothing_is_deleted_of_a_model_of_which_something_has_failed(
    source: Store, target: Store, tmp_path: Path
) -> None:
    synced(source, target, versions="all")
    source.delete("fraud:v0")
    source.push(write_tree(tmp_path / "other", {"a": b"other"}), "fraud:v3", force=True)
    report = synced(source, target, delete_extra=True)
    assert len(report.of("failed")) == 1
    assert report.deleted == ()


@pytest.mark.parametrize("options", [{"keep_last": 2}, {"delete_extra": True, "include": ["*.bin"]}])
def test_what_makes_no_sense_is_refused(source: Store, target: Store, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        synced(source, target, **options)


def test_aliases_are_refused_where_the_target_keeps_none(source: Store) -> None:
    fields = {"host": "https://app.supervisely.com", "password": "t", "team_id": 7}
    other = Supervisely(SuperviselySettings.read("supervisely_default", fields))
    with pytest.raises(NotSupported, match="does not offer to keep aliases; label the version"):
        sync(Side(source.registry, SyncDriver()), Side(other, SyncDriver()), Selection(aliases=True), Control())

"""Aliases in labels: who holds one, what a version's labels show, and what survives a replacement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from airflow_provider_modelsync.core.verbs.promote import rollback
from tests.core.registries.bentocloud.cloud import Cloud
from tests.core.stores import write_tree
from tests.standins.bentocloud import BentoCloudStandIn

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path) as server:
        for number in (1, 2, 3):
            server.seed("fraud", f"v{number}", labels={"stage": "dev"})
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn) -> Cloud:
    return Cloud(server)


def point(cloud: Cloud, model: str) -> None:
    cloud.run(lambda registry: set_alias(registry, model, "champion"))


def champion(cloud: Cloud) -> Any:
    return cloud.run(lambda registry: registry.alias("fraud", "champion"))


def labels(server: BentoCloudStandIn, version: str) -> dict[str, str]:
    return {label["key"]: label["value"] for label in server.model("fraud", version).labels}


def test_labels_of_aliases_are_not_shown_and_cannot_be_set(server: BentoCloudStandIn, cloud: Cloud) -> None:
    point(cloud, "fraud:v1")
    assert labels(server, "v1").keys() == {"stage", "modelsync-alias-champion"}
    found = cloud.run(lambda registry: registry.get(registry.parse("fraud@champion")))
    assert (found.ref, found.labels) == ("fraud:v1", {"stage": "dev"})
    for given in ({"modelsync-alias-champion": "x"}, {"modelsync-alias-other": None}):
        with pytest.raises(InvalidInput, match="that of an alias"):
            cloud.run(lambda registry, given=given: registry.set_labels(registry.parse("fraud:v2"), given))


def test_labels_that_change_leave_the_alias(server: BentoCloudStandIn, cloud: Cloud) -> None:
    point(cloud, "fraud:v1")
    changed = cloud.run(lambda registry: registry.set_labels(registry.parse("fraud:v1"), {"stage": None, "a": "b"}))
    assert changed.labels == {"a": "b"}
    assert champion(cloud).version == "v1"


def test_the_newest_holder_wins_however_far_a_clock_is_behind(server: BentoCloudStandIn, cloud: Cloud) -> None:
    server.model("fraud", "v1").labels.append({"key": "modelsync-alias-champion", "value": "29991231T235959.000000Z"})
    server.model("fraud", "v3").labels.append({"key": "modelsync-alias-champion", "value": "soon"})
    assert champion(cloud).version == "v1"
    point(cloud, "fraud:v2")
    assert (champion(cloud).version, [held.version for held in champion(cloud).earlier]) == ("v2", ["v1"])


def test_listings_tell_who_holds_an_alias(server: BentoCloudStandIn, cloud: Cloud) -> None:
    for model in ("fraud:v1", "fraud:v3", "fraud:v2"):
        point(cloud, model)
    listed = cloud.run(lambda registry: registry.list_versions("fraud", Query()))
    assert {version.version: version.aliases for version in listed} == {"v1": (), "v2": ("champion",), "v3": ()}


def test_what_was_gone_back_from_is_forgotten(server: BentoCloudStandIn, cloud: Cloud) -> None:
    for model in ("fraud:v1", "fraud:v2", "fraud:v3"):
        point(cloud, model)
    for back in ("v2", "v1"):
        assert cloud.run(lambda registry: rollback(registry, "fraud", "champion")).version.version == back
    with pytest.raises(ModelNotFound, match="nothing before"):
        cloud.run(lambda registry: rollback(registry, "fraud", "champion"))


def test_a_version_that_is_replaced_keeps_its_aliases(server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path) -> None:
    point(cloud, "fraud:v1")
    cloud.push(write_tree(tmp_path / "new", {"a": b"new"}), "fraud:v1", force=True)
    assert champion(cloud).version == "v1"

"""What a prune deletes, and what survives whatever is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modelsync.core.durable import staging
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, NotSupported, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import Alias, Deployment, Held, ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases, Deploys
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.verbs.aliases import set_alias
from airflow_provider_modelsync.core.verbs.prune import PruneReport, Retention, prune
from tests.core.stores import Store, age, write_tree

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = 86400.0


class Catalogue(Registry, Aliases, Deploys):
    """A registry in memory with versions, aliases and deployments; its aliases may move while it is pruned.

    :param versions: of the model ``m``.
    """

    conn_type = "catalogue"
    title = "the catalogue"
    capabilities = frozenset({Capability.DELETE})

    def __init__(self, versions: list[ModelVersion]) -> None:
        super().__init__(RegistrySettings(conn_id="c"))
        self.versions = {version.version: version for version in versions}
        self.pointing: dict[str, list[str]] = {}  # alias → where to, the present one last
        self.deployed: dict[str, str] = {}
        self.broken: set[str] = set()
        self.before_delete: list[tuple[str, str]] = []  # aliases that move when the next version is deleted

    def check(self, ref: ModelRef) -> None:
        pass

    def test(self) -> Flow[str]:
        return ""
        yield

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        if version not in self.versions:
            raise ModelNotFound(version)
        return self.versions[version]
        yield

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        return [version for version in self._newest_first() if version.ready][:1]
        yield

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        return self._newest_first()
        yield

    def _newest_first(self) -> list[ModelVersion]:
        return sorted(self.versions.values(), key=lambda version: version.age_key, reverse=True)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        assert ref.version is not None
        if ref.version in self.broken:
            raise RegistryUnavailable("no answer")
        for alias, version in self.before_delete[:1]:
            if version in self.versions and version != ref.version:
                self.pointing.setdefault(alias, []).append(version)
        del self.before_delete[:1]
        return self.versions.pop(ref.version, None) is not None
        yield

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        *earlier, now = self.pointing[alias]
        held = tuple(Held(version=version) for version in reversed(earlier))
        return Alias(name=name, alias=alias, version=now, earlier=held)
        yield

    def aliases(self, name: str) -> Flow[list[Alias]]:
        return [Alias(name=name, alias=alias, version=held[-1]) for alias, held in self.pointing.items()]
        yield

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        raise NotImplementedError

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        raise NotImplementedError

    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        raise NotImplementedError

    def deployment(self, name: str) -> Flow[Deployment]:
        raise NotImplementedError

    def undeploy(self, name: str) -> Flow[Deployment]:
        raise NotImplementedError

    def deployed_models(self) -> Flow[Mapping[str, str] | None]:
        return self.deployed
        yield


def version(number: int, status: str = "ready", *, days: float | None = None, **labels: str) -> ModelVersion:
    """Return a version that is so many days old; the larger its number, the newer."""
    made = NOW - timedelta(days=days if days is not None else 100 - number)
    return ModelVersion(
        registry="catalogue",
        name="m",
        version=f"v{number}",
        status=VersionStatus(status),
        created_at=made,
        labels=labels,
    )


def pruned(catalogue: Catalogue, *, dry_run: bool = False, **rules: Any) -> PruneReport:
    retention = Retention(**{"models": ["m"], **rules})
    return SyncDriver().run(prune(catalogue, retention, dry_run=dry_run, now=NOW))


def deleted(report: PruneReport) -> list[str]:
    return [entry.ref for entry in report.of("deleted")]


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    statuses = draw(st.lists(st.sampled_from([*VersionStatus, *[VersionStatus.READY] * 6]), min_size=1, max_size=12))
    ages = draw(st.lists(st.none() | st.floats(0, 400), min_size=len(statuses), max_size=len(statuses)))
    catalogue = Catalogue(
        [version(number, status, days=days) for number, (status, days) in enumerate(zip(statuses, ages, strict=True))]
    )
    some = st.sampled_from([*catalogue.versions])
    catalogue.pointing = draw(
        st.dictionaries(st.sampled_from("abc"), st.lists(some, min_size=1, max_size=5), max_size=3)
    )
    catalogue.deployed = {f"m:{one}": "d" for one in draw(st.lists(some, max_size=3))}
    catalogue.broken = set(draw(st.lists(some, max_size=2)))
    catalogue.before_delete = draw(st.lists(st.tuples(st.sampled_from("abc"), some), max_size=3))
    return catalogue


RULES = st.fixed_dictionaries(
    {"keep_last": st.integers(1, 5), "min_keep": st.integers(1, 3)},
    optional={"older_than": st.floats(0, 300 * DAY), "keep_labels": st.just({"stage": "prod"})},
)


@given(catalogues(), RULES)
def test_what_is_aliased_or_deployed_and_the_newest_ready_survive_every_prune(
    catalogue: Catalogue, rules: dict[str, Any]
) -> None:
    before = [one for one in catalogue._newest_first() if one.ready]
    deployed = {ref.removeprefix("m:") for ref in catalogue.deployed}
    report = pruned(catalogue, **rules)
    left = catalogue.versions.keys()
    assert deployed <= left
    assert {one.version for one in before[: max(rules["keep_last"], rules["min_keep"])]} <= left
    assert {held[-1] for held in catalogue.pointing.values()} <= left, "those that moved meanwhile, too"
    assert {entry.ref for entry in report.of("deleted")} == {f"m:{one}" for one in _gone(report)}
    assert not {f"m:{one}" for one in left} & set(deleted(report))


def _gone(report: PruneReport) -> set[str]:
    kept = {entry.ref for entry in (*report.of("kept"), *report.of("failed"))}
    return {entry.ref.removeprefix("m:") for entry in report.entries if entry.ref not in kept}


@given(catalogues(), RULES)
def test_a_dry_run_deletes_nothing_and_says_what_a_prune_would_delete(
    catalogue: Catalogue, rules: dict[str, Any]
) -> None:
    catalogue.before_delete, catalogue.broken = [], set()
    before = dict(catalogue.versions)
    told = pruned(catalogue, dry_run=True, **rules)
    assert catalogue.versions == before
    assert told.dry_run
    assert deleted(told) == deleted(pruned(catalogue, **rules))


def test_all_but_the_last_ones_go_the_oldest_first() -> None:
    catalogue = Catalogue([version(number) for number in range(5)])
    assert deleted(pruned(catalogue, keep_last=2)) == ["m:v0", "m:v1", "m:v2"]


def test_what_is_too_young_or_of_unknown_age_stays() -> None:
    unknown = version(0).model_copy(update={"created_at": None})
    catalogue = Catalogue([unknown, version(1, days=40), version(2, days=20), version(3, days=1)])
    report = pruned(catalogue, older_than=30 * DAY)
    assert deleted(report) == ["m:v1"]
    assert {entry.ref: entry.why for entry in report.of("kept")} == {
        "m:v0": "of unknown age",
        "m:v2": "not old enough",
        "m:v3": "the newest ready version",
    }


def test_so_many_stay_however_old_they_are() -> None:
    catalogue = Catalogue([version(number, days=300 - number) for number in range(4)])
    assert deleted(pruned(catalogue, older_than=DAY, min_keep=3)) == ["m:v0"]


def test_labels_keep_versions() -> None:
    labelled = [version(0, stage="prod"), version(1, stage="dev"), version(2, pinned="x"), version(3), version(4)]
    report = pruned(Catalogue(labelled), keep_last=1, keep_labels={"stage": "prod", "pinned": None})
    assert deleted(report) == ["m:v1", "m:v3"]


def test_what_an_alias_would_be_rolled_back_to_stays_unless_aliases_do_not_count() -> None:
    def catalogue() -> Catalogue:
        made = Catalogue([version(number) for number in range(5)])
        made.pointing["champion"] = ["v0", "v1", "v2"]
        return made

    report = pruned(catalogue(), keep_last=1)
    assert deleted(report) == ["m:v0", "m:v3"]
    assert [entry.why for entry in report.of("kept")][:2] == ["what m@champion would be rolled back to", "m@champion"]
    assert deleted(pruned(catalogue(), keep_last=1, keep_aliased=False)) == ["m:v0", "m:v1", "m:v2", "m:v3"]


@pytest.mark.parametrize(("status", "goes"), [("failed", True), ("uploading", False), ("pending", False)])
def test_what_has_failed_goes_and_what_is_under_way_stays(status: str, goes: bool) -> None:
    catalogue = Catalogue([version(0, status), version(1)])
    assert deleted(pruned(catalogue, keep_last=1)) == ["m:v0"] * goes


def test_what_cannot_be_deleted_does_not_stop_the_rest() -> None:
    catalogue = Catalogue([version(number) for number in range(4)])
    catalogue.broken = {"v1"}
    report = pruned(catalogue, keep_last=1)
    assert deleted(report) == ["m:v0", "m:v2"]
    (failed,) = report.of("failed")
    assert (failed.ref, failed.is_permanent, catalogue.versions.keys()) == ("m:v1", False, {"v1", "v3"})


def test_the_report_fits_into_xcom_and_counts_all() -> None:
    catalogue = Catalogue([version(number) for number in range(1000)])
    told = pruned(catalogue, keep_last=500).to_xcom()
    assert told["counts"] == {"deleted": 500, "failed": 0, "kept": 500, "tidied": 0}
    assert told["truncated"]


@pytest.mark.parametrize("rules", [{}, {"models": "m", "keep_last": 1}])
def test_what_makes_no_sense_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        pruned(Catalogue([]), **rules)


def test_leftovers_are_looked_for_where_this_package_looks_after_them() -> None:
    with pytest.raises(NotSupported, match="the catalogue looks after unfinished pushes by itself"):
        pruned(Catalogue([]), leftovers_older_than=DAY)


class TestStore:
    """In a model store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = Store(tmp_path / "store")
        for number in range(3):
            store.push(write_tree(tmp_path / f"{number}", {"a": b"%d" % number}), f"fraud:v{number}")
        return store

    def prune(self, store: Store, *, dry_run: bool = False, **rules: Any) -> PruneReport:
        return store.run(prune(store.registry, Retention(**{"models": ["fr*"], **rules}), dry_run=dry_run))

    def test_old_versions_go_and_what_is_aliased_stays(self, store: Store) -> None:
        store.run(set_alias(store.registry, "fraud:v0", "champion"))
        assert deleted(self.prune(store, keep_last=1)) == ["fraud:v1"]
        assert store.get("fraud@champion").ref == "fraud:v0"

    def test_an_unfinished_push_is_given_up_once_it_is_old(self, store: Store, tmp_path: Path) -> None:
        store.meta("fraud", "v9.claim").write_text('{"digest": "sha256:%s"}' % ("0" * 64))
        rules = {"leftovers_older_than": 3600.0}
        assert self.prune(store, **rules).of("tidied") == []
        age(store.meta("fraud", "v9.claim"))
        told = [entry.ref for entry in self.prune(store, dry_run=True, **rules).of("tidied")]
        assert told == ["the unfinished push of fraud:v9"]
        assert "v9.claim" in store.records("fraud")
        assert [entry.ref for entry in self.prune(store, **rules).of("tidied")] == told
        assert "v9.claim" not in store.records("fraud")
        assert [one.version for one in store.list_versions("fraud")] == ["v2", "v1", "v0"]
        store.push(write_tree(tmp_path / "nine", {"a": b"9"}), "fraud:v9")

    @pytest.mark.parametrize("version", ["v9", "v" * 128])
    def test_a_claim_is_as_old_as_what_was_written_last(self, store: Store, version: str) -> None:
        claim = store.meta("fraud", f"{version}.claim")
        claim.write_text('{"digest": "sha256:%s"}' % ("0" * 64))
        age(claim)
        with staging(store.meta("fraud", version), "0" * 12) as staged:
            (staged.path / "part").write_bytes(b"just now")
            assert self.prune(store, leftovers_older_than=3600.0).of("tidied") == []
            assert (claim.exists(), (staged.path / "part").exists()) == (True, True)
        assert len(self.prune(store, leftovers_older_than=3600.0).of("tidied")) == 1
        assert not claim.exists()

    def test_files_of_replaced_versions_go(self, store: Store) -> None:
        left = write_tree(store.root / "fraud" / "v1~2", {"a": b"late"})
        store.meta("fraud", "v1.~2.1.closed").touch()
        told = [entry.ref for entry in self.prune(store, leftovers_older_than=0.0).of("tidied")]
        assert told == ["files of 1 given up or replaced pushes of fraud:v1"]
        assert not left.exists()
        assert store.get("fraud:v1").ready

    def test_outdated_records_of_aliases_go_and_the_alias_stays(self, store: Store) -> None:
        for one in ("v0", "v1", "v2"):
            store.run(set_alias(store.registry, f"fraud:{one}", "champion"))
        late = store.meta("fraud", "champion.alias")
        late.write_bytes(store.meta("fraud", "champion.alias.3").read_bytes())
        age(late)
        told = [entry.ref for entry in self.prune(store, leftovers_older_than=60.0).of("tidied")]
        assert told == ["1 outdated records of aliases of fraud"]
        assert not late.exists()
        assert store.get("fraud@champion").version == "v2"

"""Sync: what goes over, what is left alone, and what becomes of failures."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_of, read_tree
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    DigestMismatch,
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import ModelRef, Query, SyncedVersion, SyncReport, flat, nested
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import objects, stored
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import sync as syncing
from airflow_provider_modelsync.core.verbs.drive import driver_for, mover_for
from airflow_provider_modelsync.core.verbs.push import push
from airflow_provider_modelsync.core.verbs.sync import CREATED_AT, Selection, Side, sync
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.core.registries.bentocloud.cloud import DOWNLOAD, OBJECT
from tests.core.registries.supervisely.serving import LIST, platform
from tests.core.stores import Store, acting_before_pulls, snapshot, write_tree
from tests.services.moto_server import running_moto
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import FlipBit, Respond, Rewrite
from tests.standins.s3 import S3StandIn
from tests.standins.supervisely import SuperviselyStandIn

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Store:
    return Store(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(tmp_path / "target")


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a model that differs with a text."""

    def write(text: str) -> Path:
        files = {"weights.bin": text.encode() * 100, "a/b": b"b", "empty": b""}
        directory = tmp_path / "models" / text
        return (
            directory if directory.exists() else write_tree(directory, files, executable=["a/b"], directories=["void"])
        )

    return write


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where staging copies go."""
    place = tmp_path / "scratch" / f"modelsync-{os.getuid()}"
    place.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(place.parent))
    return place


@contextmanager
def side(registry: Registry, cancel: CancelToken | None = None) -> Iterator[Side]:
    with driver_for(registry, cancel) as driver:
        yield Side(registry, driver)


def run(
    source: Registry, target: Registry, *, control: Control | None = None, dry_run: bool = False, **what: Any
) -> Any:
    control = control or Control()
    with side(source, control.cancel) as one, side(target, control.cancel) as other:
        return sync(one, other, Selection(**what), control, dry_run=dry_run)


def called(conn_id: str, root: Path) -> ModelStore:
    return ModelStore(BucketSettings(conn_id=conn_id, host=root.as_uri()))


def told(report: SyncReport) -> dict[str, list[str]]:
    return {outcome: [version.source for version in report.of(outcome)] for outcome in ("copied", "skipped", "failed")}


def tick() -> None:
    """Let the next version be newer, whatever the disk's clock."""
    time.sleep(0.02)


def fill(store: Store, model: Callable[[str], Path], *refs: str) -> None:
    for ref in refs:
        store.push(model(ref.replace(":", "-")), ref, labels={"of": ref.partition(":")[0]}, metadata={"ref": ref})
        tick()


class TestChoosingFiles:
    def test_a_version_gets_the_digest_of_the_chosen_files(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1")
        chosen = {"exclude": ["a/"]}

        report = run(source.registry, target.registry, **chosen)

        (copied,) = report.of("copied")
        expected = digest_of(file for file in read_tree(model("fraud-v1")).files if file.path != "a/b")
        assert copied.digest == target.get("fraud:v1").digest == expected != source.get("fraud:v1").digest
        assert told(run(source.registry, target.registry, **chosen))["skipped"] == ["fraud:v1"]
        (failed,) = run(source.registry, target.registry).of("failed")
        assert "exists with" in failed.note
        (failed,) = run(source.registry, target.registry, include=["empty"]).of("failed")
        assert "exists with" in failed.note

    def test_archives_are_copied_in_part_too(self, target: Store, model: Any, tmp_path: Path) -> None:
        with BentoCloudStandIn(tmp_path / "cloud") as server:
            fields = {"host": server.url, "password": server.token}
            cloud = BentoCloud(BentoCloudSettings.read("cloud", fields))
            with driver_for(cloud) as driver:
                push(cloud, driver, model("one"), cloud.parse("fraud:v1"), Control())

            report = run(cloud, target.registry, include=["*.bin"])

            (copied,) = report.of("copied")
            expected = digest_of(file for file in read_tree(model("one")).files if file.path == "weights.bin")
            assert copied.digest == target.get("fraud:v1").digest == expected
            assert told(run(cloud, target.registry, include=["*.bin"]))["skipped"] == ["fraud:v1"]

    def test_a_choice_of_nothing_fails_that_model(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1")

        (failed,) = run(source.registry, target.registry, include=["*.onnx"]).of("failed")

        assert failed.is_permanent
        assert "holds no file that is chosen by include ['*.onnx']" in failed.note


class TestSelection:
    def test_the_newest_version_of_every_model_by_default(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1", "fraud:v2", "churn:v1")

        assert told(run(source.registry, target.registry)) == {
            "copied": ["churn:v1", "fraud:v2"],
            "skipped": [],
            "failed": [],
        }

    @pytest.mark.parametrize(
        ("what", "copied"),
        [
            ({"models": ["fraud*"]}, ["fraud-b:v1", "fraud:v2"]),
            ({"models": ["fraud", "churn"]}, ["churn:v1", "fraud:v2"]),
            ({"models": ["f?aud"], "versions": "all"}, ["fraud:v1", "fraud:v2"]),
            ({"models": ["fraud"], "versions": 1}, ["fraud:v2"]),
            ({"models": ["fraud"], "versions": 9}, ["fraud:v1", "fraud:v2"]),
            ({"labels": {"of": "churn"}}, ["churn:v1"]),
            ({"labels": {"of": "fraud"}, "versions": "all"}, ["fraud:v1", "fraud:v2"]),
            ({"models": ["none*"]}, []),
        ],
    )
    def test_globs_counts_and_labels(
        self, source: Store, target: Store, model: Any, what: dict[str, Any], copied: list[str]
    ) -> None:
        fill(source, model, "fraud:v1", "fraud:v2", "fraud-b:v1", "churn:v1")

        assert told(run(source.registry, target.registry, **what))["copied"] == copied

    def test_a_name_that_is_not_there_has_failed_and_a_glob_has_not(self, source: Store, target: Store) -> None:
        report = run(source.registry, target.registry, models=["fraud", "churn*"])

        (failed,) = report.versions
        assert (failed.source, failed.outcome, failed.is_permanent) == ("fraud", "failed", True)
        assert "no ready version of 'fraud'" in (failed.note or "")

    @pytest.mark.parametrize("versions", ["newest", 0, -1, True, 1.5, None])
    def test_versions_must_be_known(self, versions: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            Selection(versions=versions)
        assert caught.value.argument == "versions"

    def test_one_name_is_no_list_of_names(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            Selection(models="fraud")
        assert caught.value.argument == "models"

    def test_models_may_get_other_names(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1", "churn:v1")

        report = run(source.registry, target.registry, rename={"fraud": "risk"})

        assert [(version.source, version.target) for version in report.versions] == [
            ("churn:v1", "churn:v1"),
            ("fraud:v1", "risk:v1"),
        ]
        assert [version.ref for version in target.list_versions("risk")] == ["risk:v1"]

    def test_two_models_cannot_become_one(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1", "churn:v1")

        with pytest.raises(InvalidInput) as caught:
            run(source.registry, target.registry, rename={"fraud": "churn"})
        assert caught.value.argument == "rename"
        assert not target.root.exists()

    def test_later_options_win(self) -> None:
        selection = Selection(options={"*": {"framework": "onnx", "arch": "x86"}, "fraud*": {"framework": "keras"}})

        assert selection.options_of("fraud") == {"framework": "keras", "arch": "x86"}
        assert selection.options_of("churn") == {"framework": "onnx", "arch": "x86"}

    def test_options_that_the_target_does_not_know_fail_their_model_only(
        self, source: Store, target: Store, model: Any
    ) -> None:
        fill(source, model, "fraud:v1", "churn:v1")

        report = run(source.registry, target.registry, options={"fraud": {"framework": "onnx"}})

        assert told(report) == {"copied": ["churn:v1"], "skipped": [], "failed": ["fraud:v1"]}


class TestFidelity:
    def test_bytes_digest_labels_metadata_and_age_are_kept(
        self, source: Store, target: Store, model: Any, tmp_path: Path
    ) -> None:
        fill(source, model, "fraud:v1")

        (done,) = run(source.registry, target.registry).versions

        was, now = source.get("fraud:v1"), target.get("fraud:v1")
        assert (now.digest, now.labels) == (was.digest, was.labels)
        assert was.created_at is not None
        assert now.metadata == {**was.metadata, CREATED_AT: was.created_at.isoformat()}
        assert (done.digest, done.size_bytes, done.dropped, done.note) == (was.digest, was.size_bytes, (), None)
        pulled = target.pull("fraud", tmp_path / "pulled").path
        assert pulled is not None
        assert snapshot(pulled) == snapshot(model("fraud-v1"))

    def test_the_first_source_s_age_is_kept_when_it_is_synced_on(
        self, source: Store, target: Store, model: Any, tmp_path: Path
    ) -> None:
        fill(source, model, "fraud:v1")
        third = Store(tmp_path / "third")

        run(source.registry, target.registry)
        tick()
        run(target.registry, third.registry)

        assert third.get("fraud").metadata == target.get("fraud").metadata

    def test_versions_keep_their_order(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v3", "fraud:v1", "fraud:v2")

        run(source.registry, target.registry, versions="all")

        assert [version.version for version in target.list_versions("fraud")] == ["v2", "v1", "v3"]

    @pytest.mark.parametrize("missing", [Capability.LABELS, Capability.METADATA])
    def test_what_the_target_has_no_room_for_is_dropped_and_told(
        self, source: Store, target: Store, model: Any, monkeypatch: pytest.MonkeyPatch, missing: Capability
    ) -> None:
        fill(source, model, "fraud:v1")
        registry = target.registry
        monkeypatch.setattr(registry, "capabilities", registry.capabilities - {missing}, raising=False)

        (done,) = run(source.registry, registry).versions

        assert done.dropped == {"keep labels": ("labels",), "keep metadata": ("metadata", CREATED_AT)}[missing]
        assert done.outcome == "copied"

    def test_no_byte_of_a_store_rests_on_this_disk(
        self, source: Store, target: Store, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(source, model, "fraud:v1")
        monkeypatch.setattr(syncing, "pull", lambda *_, **__: pytest.fail("a staging copy"))

        assert told(run(source.registry, target.registry))["copied"] == ["fraud:v1"]


class TestRepetition:
    def test_what_is_there_is_left_alone(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1", "churn:v1")
        run(source.registry, target.registry)
        before = snapshot(target.root)

        report = run(source.registry, target.registry)

        assert told(report) == {"copied": [], "skipped": ["churn:v1", "fraud:v1"], "failed": []}
        assert snapshot(target.root) == before

    def test_other_bytes_are_a_conflict_that_stops_neither_the_model_nor_the_others(
        self, source: Store, target: Store, model: Any
    ) -> None:
        fill(source, model, "fraud:v1", "fraud:v2", "churn:v1")
        target.push(model("other"), "fraud:v1")

        report = run(source.registry, target.registry, versions="all")

        assert told(report) == {"copied": ["churn:v1", "fraud:v2"], "skipped": [], "failed": ["fraud:v1"]}
        (failed,) = report.of("failed")
        assert failed.is_permanent
        assert target.get("fraud:v1").digest in (failed.note or "")

    def test_a_dry_run_says_what_would_be_copied(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1", "churn:v1")
        run(source.registry, target.registry, models=["churn"])
        before = snapshot(target.root)

        report = run(source.registry, target.registry, dry_run=True)

        assert (report.dry_run, told(report)["copied"], told(report)["skipped"]) == (True, ["fraud:v1"], ["churn:v1"])
        assert snapshot(target.root) == before


class TestFailures:
    def test_a_version_that_is_deleted_meanwhile_is_no_failure_for_good(
        self, source: Store, target: Store, model: Any
    ) -> None:
        """A prune beside a nightly sync: the next try lists what is left."""
        fill(source, model, "fraud:v1", "fraud:v2")
        with acting_before_pulls(lambda: source.delete("fraud:v2")):
            (failed,) = run(source.registry, target.registry).of("failed")

        assert (failed.source, failed.is_permanent) == ("fraud:v2", False)
        assert "was deleted while it was being copied" in failed.note
        assert told(run(source.registry, target.registry))["copied"] == ["fraud:v1"]

    def test_a_passing_fault_holds_back_the_later_versions_of_its_model(
        self, source: Store, target: Store, model: Any
    ) -> None:
        """Otherwise the older one would come later, and be the newest."""
        fill(source, model, "fraud:v1", "fraud:v2", "churn:v1")
        (source.root / "fraud" / "v1" / "weights.bin").unlink()

        report = run(source.registry, target.registry, versions="all")

        assert told(report)["copied"] == ["churn:v1"]
        assert [(failed.source, failed.is_permanent) for failed in report.of("failed")] == [("fraud", False)]
        assert target.list_versions("fraud") == []

    def test_damaged_bytes_never_become_a_version(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1")
        weights = source.root / "fraud" / "v1" / "weights.bin"
        weights.write_bytes(b"x" + weights.read_bytes()[1:])

        report = run(source.registry, target.registry)

        assert told(report)["failed"] in (["fraud"], ["fraud:v1"])
        assert target.list_versions("fraud") == []

    def test_a_cancelled_sync_ends(self, source: Store, target: Store, model: Any) -> None:
        fill(source, model, "fraud:v1")
        control = Control(cancel=CancelToken())
        control.cancel.cancel()

        with pytest.raises(Cancelled):
            run(source.registry, target.registry, control=control)

    def test_a_source_that_cannot_be_read_is_refused_at_once(self, target: Store) -> None:
        class Silent(ModelStore):
            capabilities = frozenset()

        silent = Silent(BucketSettings(conn_id="silent", host="file:///nowhere"))
        with pytest.raises(NotSupported, match="pull models"):
            run(silent, target.registry)
        with pytest.raises(NotSupported, match="push models"):
            run(target.registry, silent)


class TestLog:
    @pytest.fixture
    def log(self, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
        """What was told, for which the fixture is called first."""
        caplog.set_level(logging.INFO, logger="modelsync")
        return lambda: [record.getMessage() for record in caplog.records]

    @pytest.mark.parametrize(("refs", "count"), [(["fraud:v1"], "1 model"), (["fraud:v1", "churn:v1"], "2 models")])
    def test_it_opens_with_whence_whither_and_how_many(
        self,
        source: Store,
        target: Store,
        model: Any,
        caplog: pytest.LogCaptureFixture,
        log: Any,
        refs: Any,
        count: str,
    ) -> None:
        fill(source, model, *refs)
        caplog.clear()

        run(called("team_a", source.root), called("team_b", target.root))

        first, *rest = log()
        assert first == f"team_a → team_b: {count}"
        for ref in refs:
            said = (
                f"pushing {ref} on team_a ({source.root.as_uri()}) (3 files, ",
                f") to {ref} on team_b ({target.root.as_uri()})",
            )
            assert [line for line in rest if line.startswith(said[0]) and line.endswith(said[1])]
            assert f"{ref} copied as {ref}" in rest

    def test_a_target_that_is_not_there_is_found_out_before_the_first_model(
        self, source: Store, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, log: Any
    ) -> None:
        fill(source, model, "fraud:v1", "churn:v1")
        caplog.clear()

        with pytest.raises(InvalidInput) as refused:
            run(called("team_a", source.root), called("nowhere", tmp_path / "no" / "such"))

        assert refused.value.connection == "nowhere"
        assert log() == ["team_a → nowhere: 2 models"]

    def test_a_cause_is_told_once(self, source: Store, target: Store, model: Any, log: Any) -> None:
        fill(source, model, "churn:v1", "fraud:v1", "spam:v1")

        report = run(source.registry, target.registry, options={"*": {"framework": "onnx"}})

        assert told(report)["failed"] == ["churn:v1", "fraud:v1", "spam:v1"]
        failures = [line for line in log() if line.startswith("syncing")]
        assert sum(line.endswith("failed: for the reason told above") for line in failures) == 2
        assert sum("framework" in line for line in failures) == 1


class TestReport:
    def test_an_xcom_has_room_for_any_number_of_models(self) -> None:
        versions = tuple(
            SyncedVersion(source=f"model-{number}:v1", target=f"model-{number}:v1", outcome=outcome, note="n" * 50)
            for number in range(3000)
            for outcome in ("copied", "skipped", "failed")
        )

        xcom = SyncReport(versions=versions).to_xcom()

        assert len(json.dumps(xcom)) <= XCOM_LIMIT
        assert xcom["counts"] == {"copied": 3000, "skipped": 3000, "failed": 3000}
        assert xcom["truncated"] is True
        assert xcom["failed"]

    def test_a_small_one_is_told_as_a_whole(self) -> None:
        version = SyncedVersion(source="fraud:v1", target="fraud:v1", outcome="copied", digest="sha256:0")

        assert SyncReport(versions=(version,)).to_xcom() == {
            "dry_run": False,
            "counts": {"copied": 1, "skipped": 0, "failed": 0},
            "copied": [{"source": "fraud:v1", "target": "fraud:v1", "digest": "sha256:0"}],
            "skipped": [],
            "failed": [],
        }


# Over the wire


@pytest.fixture
def s3() -> Iterator[S3StandIn]:
    with running_moto() as moto, S3StandIn(moto) as proxy:
        yield proxy


def bucket(s3: S3StandIn, prefix: str) -> ModelStore:
    fields = {
        "host": f"s3://{s3.bucket}/{prefix}",
        "endpoint_url": s3.endpoint,
        "login": s3.access_key,
        "password": s3.secret_key,
        "part_size_mib": 5,
    }
    return ModelStore(BucketSettings.read("bucket", fields))


def cloud(server: BentoCloudStandIn) -> BentoCloud:
    return BentoCloud(BentoCloudSettings.read("cloud", {"host": server.url, "password": server.token}))


def published(registry: Registry, directory: Path, ref: str, **more: Any) -> None:
    with side(registry) as one:
        push(registry, one.driver, directory, registry.parse(ref), Control(), **more)


def versions_in(registry: Registry, name: str) -> list[Any]:
    with side(registry) as one:
        return one.driver.run(registry.list_versions(name, Query()))


@pytest.mark.slow
def test_from_bentocloud_into_a_bucket_and_back(s3: S3StandIn, model: Any, tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with BentoCloudStandIn(tmp_path / "one") as first, BentoCloudStandIn(tmp_path / "two") as second:
        published(cloud(first), model("one"), "fraud:v1", labels={"stage": "prod"}, metadata={"auc": 0.9})
        store = bucket(s3, "models")

        assert told(run(cloud(first), store))["copied"] == ["fraud:v1"]
        assert told(run(store, cloud(second)))["copied"] == ["fraud:v1"]

        was, there, back = (versions_in(each, "fraud")[0] for each in (cloud(first), store, cloud(second)))
        assert was.digest == there.digest == back.digest
        assert was.labels == there.labels == back.labels == {"stage": "prod"}
        assert was.metadata.items() <= there.metadata.items()
        assert there.metadata == back.metadata
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_unchanged_models_move_no_body(s3: S3StandIn, source: Store, model: Any) -> None:
    for number in range(8):
        source.push(model("same"), f"model-{number}:v1")
    store = bucket(s3, "models")
    run(source.registry, store)
    s3.clear()

    report = run(source.registry, store)

    assert len(report.of("skipped")) == 8
    assert [request for request in s3.requests if request.received] == []


@pytest.mark.slow
def test_an_interrupted_copy_between_buckets_is_continued(
    s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the parts that are missing are sent; all are read, as their hash is that of the whole."""
    directory = write_tree(tmp_path / "large", {"weights.bin": os.urandom(17 * MIB), "small": b"s"})
    one, other = bucket(s3, "one"), bucket(s3, "other")
    published(one, directory, "fraud:v1")
    s3.clear()
    may_be_sent, are_sent = threading.Semaphore(2), threading.Barrier(2, action=lambda: kill.set())
    kill = threading.Event()

    def send(self: Any, *arguments: Any, **more: Any) -> Any:
        if not may_be_sent.acquire(blocking=False):
            kill.wait(30)
            raise RuntimeError("killed")
        sent = real(self, *arguments, **more)
        are_sent.wait(30)
        return sent

    real = objects._Push._send
    with monkeypatch.context() as patch:
        patch.setattr(objects._Push, "_send", send)
        with pytest.raises(RuntimeError, match="killed"):
            run(one, other)
    s3.clear()

    (done,) = run(one, other).versions

    assert done.outcome == "copied"
    assert done.transfer is not None
    assert done.transfer.resumed_bytes in (7 * MIB, 10 * MIB)  # two parts, the short last one among them or not
    uploaded = sum(size for key, size in s3.uploaded.items() if key.endswith("weights.bin"))
    assert uploaded == 17 * MIB - done.transfer.resumed_bytes
    assert versions_in(other, "fraud")[0].digest == versions_in(one, "fraud")[0].digest


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 100])
def test_a_bit_that_flips_on_the_way_out_of_a_bucket(s3: S3StandIn, tmp_path: Path, times: int) -> None:
    directory = write_tree(tmp_path / "large", {"weights.bin": os.urandom(12 * MIB)})
    one, other = bucket(s3, "one"), bucket(s3, "other")
    published(one, directory, "fraud:v1")
    s3.fault("GetObject", r"one/.*weights\.bin", FlipBit(100), times=times)

    report = run(one, other)

    if times == 1:
        assert told(report)["copied"] == ["fraud:v1"]
    else:
        assert told(report)["failed"] == ["fraud:v1"]
        assert versions_in(other, "fraud") == []


# A copy on this machine's disk


@pytest.fixture
def clouds(tmp_path: Path) -> Iterator[list[BentoCloudStandIn]]:
    """Two servers on which others have pushed different bytes as one version, so that no digest is known."""
    with ExitStack() as stack:
        servers = [stack.enter_context(BentoCloudStandIn(tmp_path / name)) for name in ("dev", "prod")]
        for name, server in zip(("dev", "prod"), servers, strict=True):
            server.seed("fraud", "v1", write_tree(tmp_path / "seeds" / name, {"who": name.encode()}))
        yield servers


@pytest.mark.parametrize(
    ("other", "goal"),
    [
        pytest.param(1, "two", id="two sources, two targets"),
        pytest.param(0, "two", id="one source, two targets"),
        pytest.param(0, "one", id="the same twice"),
    ],
)
def test_two_copies_at_a_time_never_touch_each_other(
    clouds: list[BentoCloudStandIn],
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: int,
    goal: str,
) -> None:
    """The second pulls its copy when the first is about to send, and sends it when the first has ended."""
    first_ended, second_pulled = threading.Event(), threading.Event()
    reports: dict[str, SyncReport] = {}
    targets = {name: Store(tmp_path / f"target-{name}") for name in ("one", "two")}

    def run_second() -> None:
        try:
            reports["second"] = run(cloud(clouds[other]), targets[goal].registry)
        finally:
            second_pulled.set()

    second = threading.Thread(target=run_second)

    def pull(*arguments: Any, **more: Any) -> Any:
        pulled = real(*arguments, **more)
        if not second.ident:
            second.start()
            assert second_pulled.wait(30)
        else:
            second_pulled.set()
            assert first_ended.wait(30)
        return pulled

    real = syncing.pull
    monkeypatch.setattr(syncing, "pull", pull)
    try:
        reports["first"] = run(cloud(clouds[0]), targets["one"].registry)
    finally:
        first_ended.set()
        if second.ident:
            second.join(30)

    assert told(reports["first"])["copied"] == ["fraud:v1"]
    assert told(reports["second"])["failed"] == []
    assert (targets["one"].root / "fraud" / "v1" / "who").read_bytes() == b"dev"
    assert (targets[goal].root / "fraud" / "v1" / "who").read_bytes() == (b"dev", b"prod")[other]
    assert list(scratch.iterdir()) == []


def failing(error: ModelSyncError) -> Callable[..., Any]:
    def push(*_: Any, **__: Any) -> Any:
        raise error

    return push


def test_the_next_try_finds_the_copy(
    target: Store, model: Any, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BentoCloudStandIn(tmp_path / "server") as server:
        published(cloud(server), model("one"), "fraud:v1")
        server.transmission_strategy = "proxy"
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "push", failing(RegistryUnavailable("down")))
            run(cloud(server), target.registry)
        assert server.count("GET", DOWNLOAD) == 1

        report = run(cloud(server), target.registry)

        assert told(report)["copied"] == ["fraud:v1"]
        assert server.count("GET", DOWNLOAD) == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("found", ["a link", "a file", "a directory of all"])
def test_a_copy_never_lies_where_others_have_access(
    target: Store, model: Any, tmp_path: Path, scratch: Path, found: str
) -> None:
    scratch.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match found:
        case "a link":
            scratch.symlink_to(elsewhere)
        case "a file":
            scratch.touch()
        case _:
            scratch.mkdir()
            scratch.chmod(0o755)
    with BentoCloudStandIn(tmp_path / "server") as server:
        published(cloud(server), model("one"), "fraud:v1")

        (failed,) = run(cloud(server), target.registry).of("failed")

        assert f"{scratch} is not a directory of this user's alone" in str(failed.note)
        assert server.count("GET", DOWNLOAD) == 0
    assert list(elsewhere.iterdir()) == []


def test_a_copy_is_of_one_pair_of_connections(
    clouds: list[BentoCloudStandIn], tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = (tmp_path / "target").as_uri()
    targets = [ModelStore(RegistrySettings(conn_id=conn_id, host=root)) for conn_id in ("one", "two")]
    monkeypatch.setattr(syncing, "push", failing(RegistryUnavailable("down")))

    for _ in range(2):
        for server in clouds:
            for each in targets:
                run(cloud(server), each)

    kept = sorted((place / "model" / "model" / "who").read_bytes() for place in scratch.iterdir())
    assert kept == [b"dev", b"dev", b"prod", b"prod"]


def test_a_copy_that_nobody_came_back_for_in_a_day_is_swept(
    clouds: list[BentoCloudStandIn], target: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(syncing, "push", failing(RegistryUnavailable("down")))
        run(cloud(clouds[0]), target.registry)
    (left,) = scratch.iterdir()
    for path in (left, *left.rglob("*")):
        os.utime(path, (0, 0))

    assert told(run(cloud(clouds[1]), target.registry))["copied"] == ["fraud:v1"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "is_last_try"), [(VersionConflict("other bytes"), False), (RegistryUnavailable("down"), True)]
)
def test_a_copy_that_nobody_comes_back_for_is_removed(
    clouds: list[BentoCloudStandIn],
    target: Store,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: ModelSyncError,
    is_last_try: bool,
) -> None:
    monkeypatch.setattr(syncing, "push", failing(error))

    report = run(cloud(clouds[0]), target.registry, control=Control(is_last_try=is_last_try))

    assert len(report.of("failed")) == 1
    assert list(scratch.iterdir()) == []


def test_a_copy_that_is_not_the_version_any_more_is_not_pushed(
    target: Store, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(*arguments: Any, **more: Any) -> Any:
        pulled = real(*arguments, **more)
        (pulled.path / "weights.bin").write_bytes(b"somebody else's")
        return pulled

    real = syncing.pull
    with BentoCloudStandIn(tmp_path / "server") as server:
        published(cloud(server), model("one"), "fraud:v1")
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "pull", pull)
            (failed,) = run(cloud(server), target.registry).versions
        assert (failed.outcome, failed.is_permanent) == ("failed", False)
        assert target.list_versions("fraud") == []

        assert told(run(cloud(server), target.registry))["copied"] == ["fraud:v1"]


@pytest.mark.parametrize("untold", ["", "weights.bin"], ids=["no hash", "one hash missing"])
def test_files_whose_hashes_are_not_told_are_copied(target: Store, tmp_path: Path, scratch: Path, untold: str) -> None:
    info = {"experiment_name": "signs", "framework_name": "YOLO", "best_checkpoint": "best.pt", "model_files": {}}
    files = {
        "weights.bin": b"weights",
        "checkpoints/best.pt": b"best",
        "experiment_info.json": json.dumps({**info, "datetime": "2026-01-01"}).encode(),
    }

    def without_hashes(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**file, "hash": None} if file["path"].endswith(untold) else file for file in listed]

    with SuperviselyStandIn(tmp_path / "server") as server:
        for path, content in files.items():
            server.seed_file(f"/experiments/signs/1_YOLO/{path}", content)
        server.fault("POST", LIST, Rewrite(without_hashes), times=None)

        (done,) = run(platform(server).registry, target.registry).versions

    assert (done.outcome, done.target) == ("copied", "signs:1_YOLO")
    assert {path: (target.root / "signs" / "1_YOLO" / path).read_bytes() for path in files} == files
    assert list(scratch.iterdir()) == []


# A model read from where it is stored


@pytest.fixture
def weights() -> bytes:
    return os.urandom(4 * MIB)


@pytest.fixture
def stored_file(source: Store, tmp_path: Path, weights: bytes) -> Path:
    """A stored version's only file."""
    source.push(write_tree(tmp_path / "model", {"weights.bin": weights}), "fraud:v1")
    return source.root / "fraud" / "v1" / "weights.bin"


@pytest.fixture
def opened(source: Store, stored_file: Path) -> Iterator[stored.StoredModel]:
    with side(source.registry) as one:
        plan = one.driver.run(source.registry.plan_pull(source.get("fraud:v1")))
        with closing(mover_for(source.registry, Control())) as mover:
            found = stored.StoredModel.of(plan, Control(), one.driver, mover)
            assert found is not None
            yield found


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_hashes_are_kept_in_order_whoever_reads_first(opened: stored.StoredModel, weights: bytes) -> None:
    for start in (2 * MIB, 0, MIB, 0):
        assert bytes(opened.read("weights.bin", start, MIB)) == weights[start : start + MIB]
    opened.confirm(["weights.bin"])


def test_what_waits_to_be_hashed_is_bounded(opened: stored.StoredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_AHEAD", MIB)
    for start in (3 * MIB, 2 * MIB, MIB, 0):
        opened.read("weights.bin", start, MIB)
    assert opened._ahead <= MIB
    opened.confirm(["weights.bin"])
    assert opened._ahead == 0


WHOLE = [(0, 4 * MIB)]
PARTS = [(start, MIB) for start in range(0, 4 * MIB, MIB)]
SHIFTED = [(0, MIB // 2), *((start + MIB // 2, MIB) for start in range(0, 3 * MIB, MIB)), (7 * MIB // 2, MIB // 2)]
HEAD = [(0, 1000)]
REREADS = {
    "in the same parts": (PARTS, PARTS),
    "backwards": (PARTS[::-1], PARTS[::-1]),
    "while they wait for their turn": (PARTS[2:], [*PARTS[2:], *PARTS[:2]]),
    "in other parts": (PARTS, SHIFTED),
    "as a whole": (SHIFTED, WHOLE),
    "in parts after a whole": (WHOLE, PARTS),
    "the start, then all": (HEAD, PARTS),
    "in every way": (HEAD, [*SHIFTED, *PARTS, *WHOLE, *PARTS[::-1]]),
}


@pytest.mark.parametrize(("first", "second"), REREADS.values(), ids=REREADS.keys())
def test_the_same_bytes_may_be_read_again(
    opened: stored.StoredModel, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    for start, length in (*first, *second, *second):
        opened.read("weights.bin", start, length)
    opened.confirm(["weights.bin"])
    opened.confirm(["weights.bin"])


@pytest.mark.parametrize("room", [64 * MIB, 0])
@pytest.mark.parametrize(("first", "second"), REREADS.values(), ids=REREADS.keys())
def test_other_bytes_at_a_second_look_are_never_confirmed(
    opened: stored.StoredModel,
    stored_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    room: int,
) -> None:
    """They were sent, so it does not help that they are right before and after."""
    monkeypatch.setattr(stored, "_AHEAD", room)
    for start, length in first:
        opened.read("weights.bin", start, length)
    flip(stored_file, 2 * MIB + 5)
    for start, length in second:
        opened.read("weights.bin", start, length)
    flip(stored_file, 2 * MIB + 5)

    with pytest.raises(BeginAgain):
        opened.confirm(["weights.bin"])
    for start, length in (*first, *second):  # the push that is begun again
        opened.read("weights.bin", start, length)
    opened.confirm(["weights.bin"])


def test_other_bytes_a_second_time_are_given_up(opened: stored.StoredModel, stored_file: Path) -> None:
    for error in (BeginAgain, DigestMismatch):
        for _ in range(2):
            for start, length in PARTS:
                opened.read("weights.bin", start, length)
            flip(stored_file, MIB)
        with pytest.raises(error):
            opened.confirm(["weights.bin"])


def test_reads_again_in_the_same_parts_cost_nothing(
    opened: stored.StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start, length in PARTS * 10:
        opened.read("weights.bin", start, length)
    assert opened._hashes["weights.bin"].claims == set()
    monkeypatch.setattr(opened, "_fill", lambda *_: pytest.fail("read once more"))
    opened.confirm(["weights.bin"])


def test_a_part_that_is_sent_again_with_other_bytes_is_never_published(
    source: Store, stored_file: Path, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BentoCloud takes whatever comes."""
    reads: list[int] = []

    def read(directory: Path, path: str, offset: int, view: memoryview) -> int:
        count = real(directory, path, offset, view)
        if reads.count(offset) == 1:
            view[0] ^= 1
        reads.append(offset)
        return count

    real = stored.read_stored
    monkeypatch.setattr(stored, "read_stored", read)
    with BentoCloudStandIn(tmp_path / "server") as server:
        server.fault("PUT", OBJECT, Respond(503))

        report = run(source.registry, cloud(server))

        assert told(report)["copied"] == ["fraud:v1"]
        assert server.count("PUT", OBJECT) == 3
        assert versions_in(cloud(server), "fraud")[0].digest == source.get("fraud:v1").digest
        assert weights in server.stored("fraud", "v1").path.read_bytes()


def test_every_error_names_its_model(source: Store, target: Store, model: Any) -> None:
    fill(source, model, "fraud:v1")
    target.push(model("other"), "fraud:v1")

    (failed,) = run(source.registry, target.registry).of("failed")

    assert "fraud:v1" in str(failed)
    assert isinstance(failed.note, str)
    assert issubclass(InvalidInput, ModelSyncError)


@pytest.mark.parametrize("name", ["Signs [v2]", "a*b", "what?", "[", "plain"])
def test_a_name_chooses_its_model_whatever_characters_it_has(name: str) -> None:
    selection = Selection(models=[name], options={"*": {"a": 1, "b": 1}, name: {"b": 2}})

    assert selection.chooses(name)
    assert not selection.chooses(f"{name} and more") or "*" in name
    assert selection.options_of(name) == {"a": 1, "b": 2}


class Nesting(ModelStore):
    """A store that says its names had namespaces, to which directories do as well."""

    has_namespaces = True

    def check(self, ref: ModelRef) -> None:
        for part in ref.name.split("/"):
            super().check(ModelRef(name=part, version=ref.version))


def test_namespaces_are_written_flat_where_the_target_has_none(
    source: Store, target: Store, tmp_path: Path, model: Any
) -> None:
    fill(source, model, "acme--fraud:v1", "plain:v1")
    nesting = Nesting(RegistrySettings(conn_id="nesting", host=(tmp_path / "nesting").as_uri()))
    report = run(source.registry, nesting, models=["acme--*", "plain"], dry_run=True)
    assert [version.target for version in report.versions] == ["acme/fraud:v1", "plain:v1"]


@pytest.mark.parametrize("name", ["acme/fraud", "acme/deep/fraud", "plain", "a-b/c_d", "a---b"])
def test_a_flat_name_leads_back_to_the_nested_one(name: str) -> None:
    assert "/" not in flat(name)
    assert nested(flat(name)) == name


@pytest.mark.parametrize("name", ["acme/fr--aud", "a--b", "acme-/fraud", "acme/-fraud"])
def test_a_name_that_could_not_be_told_from_another_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be told from another"):
        flat(name)


def test_brackets_are_still_a_glob() -> None:
    selection = Selection(models=["v[12]"], options={"v[12]": {"a": 1}})

    assert [name for name in ("v1", "v2", "v3", "v[12]") if selection.chooses(name)] == ["v1", "v2", "v[12]"]
    assert (selection.options_of("v1"), selection.options_of("v3")) == ({"a": 1}, {})


def test_copies_are_told_as_they_are_published(source: Store, target: Store, model: Any) -> None:
    fill(source, model, "fraud:v1", "fraud:v2")
    copies: list[tuple[SyncedVersion, bool]] = []

    def on_copied(copy: SyncedVersion) -> None:
        copies.append((copy, any(found.version == "v2" for found in versions_in(target.registry, "fraud"))))

    with side(source.registry) as one, side(target.registry) as other:
        what = Selection(versions="all")
        sync(one, other, what, Control(), dry_run=True, on_copied=on_copied)
        assert copies == []
        for _ in range(2):  # the second time nothing is left to copy
            sync(one, other, what, Control(), on_copied=on_copied)

    assert [(copy.target, is_late) for copy, is_late in copies] == [("fraud:v1", False), ("fraud:v2", True)]
    assert [copy.created_at for copy, _ in copies] == [
        target.get(f"fraud:{version}").created_at for version in ("v1", "v2")
    ]

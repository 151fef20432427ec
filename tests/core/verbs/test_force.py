"""A push of the same bytes with `force`: what is stored is compared, mended where it differs, and described anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.transfer.plan import PushRequest, UploadPlan
from tests.conformance.bench import Bench
from tests.conformance.registries import PROVIDERS
from tests.core.registries.bentocloud.cloud import Cloud
from tests.core.stores import snapshot, was_skipped, write_tree
from tests.standins.bentocloud import BentoCloudStandIn

FIRST = {"labels": {"stage": "dev", "old": "yes"}, "metadata": {"auc": 0.5, "old": True}}
SECOND = {"labels": {"stage": "prod"}, "metadata": {"auc": 0.9}}


@pytest.fixture(params=["modelstore", "modelstore-moto", "bentocloud-proxy", "bentocloud-parts", "supervisely", "oci"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "system").mkdir()
    with PROVIDERS[request.param].open(tmp_path / "system") as under_test:
        yield Bench(under_test, tmp_path)


def test_labels_and_metadata_are_written(bench: Bench) -> None:
    bench.push(bench.source("one"), bench.model(), **FIRST)
    pushed = bench.push(bench.source("one"), bench.model(), force=True, **SECOND)
    found = bench.get(bench.model())
    assert (pushed.labels, pushed.metadata) == (found.labels, found.metadata) == (SECOND["labels"], SECOND["metadata"])
    assert pushed.transfer is not None
    assert pushed.transfer.metadata_kept
    assert found.digest == digest_directory(bench.source("one"))
    assert len(bench.ready_versions(bench.name)) == 1


def test_what_is_not_given_stays(bench: Bench) -> None:
    bench.push(bench.source("one"), bench.model(), **FIRST)
    pushed = bench.push(bench.source("one"), bench.model(), force=True)
    assert (pushed.labels, pushed.metadata) == (FIRST["labels"], FIRST["metadata"])
    assert pushed.transfer is not None
    assert pushed.transfer.skipped


def test_without_force_a_skipped_push_says_that_other_metadata_is_not_kept(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.push(bench.source("one"), bench.model(), **FIRST)
    pushed = bench.push(bench.source("one"), bench.model(), metadata={"auc": 0.9})
    assert pushed.transfer is not None
    assert (pushed.transfer.skipped, pushed.transfer.metadata_kept) == (True, False)
    assert pushed.metadata == bench.get(bench.model()).metadata == FIRST["metadata"]
    assert "keeps the metadata that it got then; what is given now for 'auc' is not kept" in caplog.text
    assert bench.push(bench.source("one"), bench.model(), **FIRST).transfer.metadata_kept  # type: ignore[union-attr]


def test_a_file_that_may_be_executed_now_is_so_in_the_next_pull(bench: Bench) -> None:
    bench.push(bench.source("one"), bench.model())
    source, target = bench.source("one"), bench.target()
    (source / "weights.bin").chmod(0o755)
    bench.push(source, bench.model(), force=True)
    bench.pull(bench.model(), target)
    assert snapshot(target) == snapshot(source)


@pytest.mark.parametrize("coming", ["another push", "a delete"])
def test_what_comes_between_a_push_and_what_it_finds_there_is_no_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, coming: str
) -> None:
    """Two tasks push with force at once, or one deletes: what was to be compared is gone when it is read."""
    bench.push(bench.source("one"), bench.model())
    other, plan_push = Bench(bench.under_test, bench.scratch / "other"), bench.registry.plan_push

    def found_and_lost(request: PushRequest) -> Flow[UploadPlan]:
        plan = yield from plan_push(request)
        monkeypatch.undo()
        if coming == "a delete":
            other.run(lambda registry: registry.delete(registry.parse(other.model())))
        else:
            other.push(other.source("two"), other.model(), force=True)
        return plan

    monkeypatch.setattr(bench.registry, "plan_push", found_and_lost)
    source = bench.source("one")
    pushed = bench.push(source, bench.model(), force=True)
    assert pushed.digest == digest_directory(source)
    assert pushed.transfer is not None
    # A system that shows hashes was found to have it: then the other came after this push.
    assert pushed.transfer.skipped or bench.get(bench.model()).digest == pushed.digest


def test_a_damaged_archive_is_replaced(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"weights.bin": b"w" * 5000})
    with BentoCloudStandIn(tmp_path / "cloud", transmission_strategy="proxy") as server:
        cloud = Cloud(server)
        cloud.push(source)
        (stored,) = [path for path in (tmp_path / "cloud").rglob("*") if path.is_file() and path.stat().st_size > 5000]
        content = stored.read_bytes()
        stored.write_bytes(content.replace(b"w" * 100, b"W" * 100, 1))
        assert was_skipped(cloud.push(source))
        mended = cloud.push(source, force=True)
        assert not was_skipped(mended)
        cloud.pull(tmp_path / "target")
        assert digest_directory(tmp_path / "target") == mended.digest

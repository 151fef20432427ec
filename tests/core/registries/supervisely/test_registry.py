"""Experiments in Team Files: what is sent, what is there meanwhile, and what comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DigestMismatch,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
)
from airflow_provider_modelsync.core.models import ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs import wait
from tests.core.registries.supervisely.serving import DOWNLOAD, LIST, UPLOAD, Connection, platform
from tests.core.stores import CancelAfter, hidden, snapshot
from tests.standins.http_server import FlipBit, LoseAnswer, Reset, Respond, Rewrite, Truncate
from tests.standins.supervisely import SuperviselyStandIn, wrong_hash

pytestmark = pytest.mark.usefixtures("no_waiting")

MODEL = "533_Signs:1_YOLO"
ROOT = "/experiments/533_Signs/1_YOLO"
INFO = f"{ROOT}/experiment_info.json"
OWN_INFO = {
    "experiment_name": "signs",
    "framework_name": "YOLO",
    "best_checkpoint": "best.pt",
    "model_files": {},
    "datetime": "2026-01-01",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def cv(server: SuperviselyStandIn) -> Connection:
    return platform(server)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pulled" / "signs"


@pytest.fixture
def experiment(source: Path) -> Path:
    """A model with the vendor's own description."""
    (source / "experiment_info.json").write_text(json.dumps(OWN_INFO))
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "best.pt").write_bytes(b"weights" * 1000)
    return source


def info_of(server: SuperviselyStandIn) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.content(INFO))
    return found


def uploaded(server: SuperviselyStandIn) -> list[str]:
    """The model's files that were sent, in order; what we note beside them is left out."""
    paths = [request.query["path"].removeprefix(f"{ROOT}/") for request in server.find("POST", UPLOAD)]
    return [path for path in paths if not path.startswith(".modelsync/")]


# ---- push -------------------------------------------------------------------------------------------------------


def test_the_description_goes_up_last_and_nothing_of_ours_stays(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    pushed = cv.push(source, MODEL)
    assert sorted(uploaded(server)[:-1]) == ["tokenizer/vocab.txt", "weights.bin"]
    assert uploaded(server)[-1] == "experiment_info.json"
    assert server.paths(ROOT) == [INFO, f"{ROOT}/tokenizer/vocab.txt", f"{ROOT}/weights.bin"]
    assert (pushed.digest, pushed.status) == (digest_directory(source), VersionStatus.READY)


def test_files_go_up_as_they_are_with_the_key(cv: Connection, server: SuperviselyStandIn, source: Path) -> None:
    cv.push(source, MODEL)
    for request in server.find("POST", UPLOAD):
        assert request.headers["x-api-key"] == server.token
        assert request.headers["content-type"] == "application/octet-stream"
        assert int(request.headers["content-length"]) == request.received
    assert server.content(f"{ROOT}/weights.bin") == (source / "weights.bin").read_bytes()


def test_a_generated_description_has_what_the_platform_requires(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "best.pt").write_bytes(b"weights")
    options = {"framework_name": "YOLO", "model_name": "YOLOv8n", "project_id": 533}
    cv.push(source, MODEL, options=options, metadata={"auc": 0.9}, labels={"stage": "prod"})
    info = info_of(server)
    assert info == {
        "experiment_name": "",
        "framework_name": "YOLO",
        "model_name": "YOLOv8n",
        "task_type": "",
        "project_id": 533,
        "task_id": 0,
        "model_files": {},
        "model_meta": "",
        "checkpoints": ["checkpoints/best.pt"],
        "best_checkpoint": "best.pt",
        "hyperparameters": "",
        "artifacts_dir": ROOT,
        "modelsync": {"labels": {"stage": "prod"}, "metadata": {"auc": 0.9}},
    }


def test_a_generated_description_is_left_out_again(cv: Connection, source: Path, target: Path) -> None:
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "logs").mkdir()
    cv.push(source, MODEL)
    cv.pull(MODEL, target)
    assert snapshot(target) == snapshot(source)
    assert (target / "logs").is_dir()
    assert (target / "run.sh").stat().st_mode & 0o100
    assert hidden(target.parent) == []


def test_the_sources_own_description_goes_up_and_comes_back_unchanged(
    cv: Connection, server: SuperviselyStandIn, experiment: Path, target: Path
) -> None:
    pushed = cv.push(experiment, MODEL)
    assert server.content(INFO) == (experiment / "experiment_info.json").read_bytes()
    assert pushed.digest == digest_directory(experiment)
    cv.pull(MODEL, target)
    assert snapshot(target) == snapshot(experiment)


@pytest.mark.parametrize("more", [{"labels": {"a": "b"}}, {"metadata": {"a": 1}}])
def test_what_the_sources_own_description_cannot_hold_is_refused(
    cv: Connection, server: SuperviselyStandIn, experiment: Path, more: dict[str, Any]
) -> None:
    with pytest.raises(NotSupported, match=r"experiment_info\.json of its own"):
        cv.push(experiment, MODEL, **more)
    assert not server.requests


@pytest.mark.parametrize(
    ("content", "options", "argument"),
    [
        (b"{", {}, "source"),
        (b"[]", {}, "source"),
        (b'{"modelsync": {}}', {}, "source"),
        (b"{}", {"task_type": "x"}, "options"),
        (None, {"taks_type": "x"}, "options"),
        (None, {"project_id": "many"}, "options"),
    ],
)
def test_unusable_descriptions_and_options_are_refused_before_anything_is_sent(
    cv: Connection,
    server: SuperviselyStandIn,
    source: Path,
    content: bytes | None,
    options: dict[str, Any],
    argument: str,
) -> None:
    if content is not None:
        (source / "experiment_info.json").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        cv.push(source, MODEL, options=options)
    assert caught.value.argument == argument
    assert not server.requests


def test_files_that_are_there_already_are_not_sent_again(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    cv.push(source, MODEL)
    (source / "tokenizer" / "vocab.txt").write_text("three\n")
    server.requests.clear()
    stats = cv.push(source, MODEL, force=True).transfer
    assert uploaded(server) == ["tokenizer/vocab.txt", "experiment_info.json"]
    assert stats is not None
    assert (stats.sent_bytes, stats.resumed_bytes) == (6, (source / "weights.bin").stat().st_size)


def test_force_removes_what_the_new_version_does_not_have(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    cv.push(source, MODEL)
    (source / "weights.bin").rename(source / "other.bin")
    cv.push(source, MODEL, force=True)
    assert server.paths(ROOT) == [INFO, f"{ROOT}/other.bin", f"{ROOT}/tokenizer/vocab.txt"]


def test_a_version_that_is_being_replaced_is_none(cv: Connection, server: SuperviselyStandIn, source: Path) -> None:
    cv.push(source, MODEL)
    (source / "weights.bin").write_bytes(b"new")
    server.fault("POST", UPLOAD, Respond(403), nth=2)
    with pytest.raises(Exception, match="403"):
        cv.push(source, MODEL, force=True)
    with pytest.raises(ModelNotFound):
        cv.get("533_Signs")


@pytest.mark.parametrize("fault", [Respond(503), Reset(1000)], ids=["busy", "reset"])
@pytest.mark.row("T1")
def test_an_upload_is_repeated_after_a_fault_with_its_whole_body(
    cv: Connection, server: SuperviselyStandIn, source: Path, fault: Any
) -> None:
    server.fault("POST", UPLOAD, fault, nth=2, times=2)
    cv.push(source, MODEL)
    assert server.content(f"{ROOT}/weights.bin") == (source / "weights.bin").read_bytes()


@pytest.mark.row("T11")
def test_bytes_that_change_on_the_way_are_sent_again(cv: Connection, server: SuperviselyStandIn, source: Path) -> None:
    server.fault("POST", UPLOAD, wrong_hash(f"{ROOT}/weights.bin"), nth=2)
    cv.push(source, MODEL, control=Control(workers=1))
    assert uploaded(server).count("weights.bin") == 2


def test_bytes_that_always_change_on_the_way_are_never_published(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    server.fault("POST", UPLOAD, wrong_hash(f"{ROOT}/weights.bin"), times=None)
    with pytest.raises(RegistryUnavailable, match="other bytes"):
        cv.push(source, MODEL)
    assert INFO not in server.paths()


@pytest.mark.row("S5")
def test_an_upload_whose_answer_is_lost_is_made_once(
    tmp_path: Path, cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    cv.push(source, MODEL)
    wanted = server.paths()
    for nth in range(1, server.count("POST", UPLOAD) + 1):
        with SuperviselyStandIn(tmp_path / f"server-{nth}") as other:
            other.fault("POST", UPLOAD, LoseAnswer(), nth=nth)
            assert platform(other).push(source, MODEL).digest == digest_directory(source)
            assert other.paths() == wanted


def test_a_push_that_fails_for_good_leaves_nothing_behind(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    server.fault("POST", UPLOAD, Respond(403), nth=3, times=None)
    with pytest.raises(Exception, match="403"):
        cv.push(source, MODEL)
    assert server.paths("/") == []


@pytest.mark.row("P3")
def test_a_push_that_is_cut_off_goes_on_with_what_is_missing(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    looks = 0
    while not any(path.endswith("weights.bin") for path in server.paths()):
        looks += 1
        with pytest.raises(Cancelled):
            cv.push(source, MODEL, control=Control(cancel=CancelAfter(looks), workers=1))
    server.requests.clear()
    stats = cv.push(source, MODEL).transfer
    assert "weights.bin" not in uploaded(server)
    assert stats is not None
    assert stats.resumed_bytes >= (source / "weights.bin").stat().st_size


def test_somebody_elses_unfinished_push_is_not_mixed_with(
    cv: Connection, server: SuperviselyStandIn, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_bytes(b"others")
    looks = 0
    while len(server.paths()) < 2:
        looks += 1
        with pytest.raises(Cancelled):
            cv.push(source, MODEL, control=Control(cancel=CancelAfter(looks), workers=1))
    with pytest.raises(VersionConflict, match="another push is writing"):
        platform(server).push(other, MODEL)
    assert platform(server).push(other, MODEL, force=True).digest == digest_directory(other)
    assert [path.rpartition("/")[2] for path in server.paths(ROOT)] == ["experiment_info.json", "weights.bin"]


def test_a_push_that_was_taken_over_does_not_publish(
    cv: Connection, server: SuperviselyStandIn, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_bytes(b"others")

    def meanwhile(answer: Any) -> Any:
        platform(server).push(other, MODEL, force=True)
        return answer

    server.fault("POST", UPLOAD, Rewrite(meanwhile), nth=2)
    with pytest.raises(VersionConflict):
        cv.push(source, MODEL)
    assert platform(server).get(MODEL).digest == digest_directory(other)


def test_a_push_whose_files_are_removed_meanwhile_may_be_tried_again(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    def meanwhile(answer: Any) -> Any:
        server.team_files.remove(8, f"{ROOT}/")
        return answer

    server.fault("POST", UPLOAD, Rewrite(meanwhile), nth=3)
    with pytest.raises(RegistryUnavailable, match="removed meanwhile"):
        cv.push(source, MODEL, control=Control(workers=1))  # nothing is on its way while they are removed
    assert cv.push(source, MODEL).ready


def test_a_training_that_is_still_writing_is_left_alone(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    server.seed_file(f"{ROOT}/checkpoints/epoch_1.pt", b"half")
    with pytest.raises(VersionConflict, match="a training may be writing it"):
        cv.push(source, MODEL)
    assert server.paths() == [f"{ROOT}/checkpoints/epoch_1.pt"]


def test_a_sensor_finds_an_experiment_only_when_it_is_complete(cv: Connection, server: SuperviselyStandIn) -> None:
    def look(model: str) -> ModelVersion | None:
        return cv.run(lambda registry: wait.find_version(registry, model, Query()))

    server.seed_file(f"{ROOT}/checkpoints/best.pt", b"weights")
    assert [look("533_Signs"), look(MODEL)] == [None, None]
    assert cv.get(MODEL).status is VersionStatus.UPLOADING
    server.seed_file(INFO, json.dumps(OWN_INFO).encode())
    assert [found.ref for found in (look("533_Signs"), look(MODEL)) if found] == [MODEL, MODEL]


# ---- pull -------------------------------------------------------------------------------------------------------


def test_an_experiment_of_others_is_pulled_with_its_description(
    cv: Connection, server: SuperviselyStandIn, target: Path
) -> None:
    files = {"experiment_info.json": json.dumps(OWN_INFO).encode(), "checkpoints/best.pt": b"weights"}
    for path, content in files.items():
        server.seed_file(f"{ROOT}/{path}", content)
    version = cv.pull(MODEL, target).version
    assert {path: (target / path).read_bytes() for path in files} == files
    assert version.digest == digest_directory(target)
    assert version.raw["framework_name"] == "YOLO"


def big(directory: Path) -> Path:
    directory.mkdir()
    block = hashlib.sha256(b"x").digest()
    (directory / "weights.bin").write_bytes(block * (20 << 15))
    return directory


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.row("T2")
def test_a_large_file_is_cut_and_comes_whole_to_the_exact_byte(
    tmp_path: Path, target: Path, ranges: bool, etags: bool
) -> None:
    with SuperviselyStandIn(tmp_path / "server", ranges=ranges, etags=etags) as server:
        source, cv = big(tmp_path / "source"), platform(server)
        cv.push(source, MODEL)
        server.fault("POST", DOWNLOAD, Truncate(4_999_999), nth=2)
        cv.pull(MODEL, target)
    assert snapshot(target) == snapshot(source)


@pytest.mark.row("P2")
def test_a_pull_that_is_killed_goes_on_where_it_ended(server: SuperviselyStandIn, tmp_path: Path, target: Path) -> None:
    source, cv = big(tmp_path / "source"), platform(server)
    cv.push(source, MODEL)
    server.fault("POST", DOWNLOAD, Respond(503), nth=3, times=None)
    with pytest.raises(RegistryUnavailable):
        cv.pull(MODEL, target, control=Control(workers=1))
    assert not target.exists()
    server.faults.clear()
    server.requests.clear()
    stats = cv.pull(MODEL, target).version.transfer
    assert stats is not None
    assert stats.resumed_bytes == 16 << 20
    ranges = [request.headers.get("range") for request in server.find("POST", DOWNLOAD)]
    assert f"bytes={16 << 20}-{(20 << 20) - 1}" in ranges
    assert snapshot(target) == snapshot(source)


@pytest.mark.row("T11")
def test_a_flipped_bit_is_noticed_and_cured(
    cv: Connection, server: SuperviselyStandIn, source: Path, target: Path
) -> None:
    cv.push(source, MODEL)
    server.fault("POST", DOWNLOAD, FlipBit(3), nth=2)
    cv.pull(MODEL, target)
    assert snapshot(target) == snapshot(source)


@pytest.mark.row("T11")
def test_bytes_that_are_always_wrong_leave_nothing(
    cv: Connection, server: SuperviselyStandIn, source: Path, target: Path
) -> None:
    cv.push(source, MODEL)
    server.fault("POST", DOWNLOAD, FlipBit(3), nth=2, times=None)
    with pytest.raises(DigestMismatch):
        cv.pull(MODEL, target)
    assert not target.exists()


@pytest.mark.row("H1")
def test_paths_that_lead_out_of_the_target_are_refused(
    cv: Connection, server: SuperviselyStandIn, target: Path
) -> None:
    server.seed_file(INFO, json.dumps(OWN_INFO).encode())
    server.seed_file(f"{ROOT}/../../../evil.txt", b"x")
    with pytest.raises(UnsafeArchive, match="evil"):
        cv.pull(MODEL, target)
    assert not target.exists()


@pytest.mark.parametrize("directory", ["../evil", "/evil", "a/../../evil", "weights.bin", "weights.bin/evil"])
@pytest.mark.row("H1", "H6")
def test_a_description_whose_directories_lead_elsewhere_is_refused(
    cv: Connection, server: SuperviselyStandIn, source: Path, tmp_path: Path, directory: str
) -> None:
    cv.push(source, MODEL)
    info = info_of(server)
    info["modelsync"]["directories"] = [directory]
    server.seed_file(INFO, json.dumps(info).encode())
    place = tmp_path / "pulled"
    place.mkdir()
    with pytest.raises(UnsafeArchive, match=r"evil|side by side"):
        cv.pull(MODEL, place / "signs")
    assert list(place.iterdir()) == []
    assert list(tmp_path.rglob("evil")) == []


# ---- reading ----------------------------------------------------------------------------------------------------


def test_a_prefix_of_a_name_is_not_the_name(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_file("/experiments/533_Signs_2/1_YOLO/experiment_info.json", b"{}")
    server.seed_file("/experiments/533_Signs/1_YOLO_big/experiment_info.json", b"{}")
    with pytest.raises(ModelNotFound):
        cv.get(MODEL)
    assert [version.ref for version in cv.run(lambda r: r.list_versions("533_Signs", Query()))] == [
        "533_Signs:1_YOLO_big"
    ]


def test_changed_labels_do_not_make_a_version_newer(cv: Connection, source: Path, server: SuperviselyStandIn) -> None:
    first = cv.push(source, MODEL, labels={"a": "b"})
    second = cv.push(source, "533_Signs:2_YOLO")
    cv.run(lambda registry: registry.set_labels(registry.parse(MODEL), {"stage": "prod"}))
    # As a platform would that takes a file which is written anew for a new one.
    files = server.team_files.files
    files[8, INFO] = replace(files[8, INFO], created_at="2199-01-01T00:00:00.000Z")
    assert cv.get("533_Signs").ref == second.ref
    assert cv.get(MODEL).created_at == first.created_at


def test_labels_of_a_description_that_is_not_ours_stay_as_they_are(
    cv: Connection, server: SuperviselyStandIn, experiment: Path
) -> None:
    cv.push(experiment, MODEL)
    before = server.content(INFO)
    with pytest.raises(NotSupported):
        cv.run(lambda registry: registry.set_labels(registry.parse(MODEL), {"a": "b"}))
    assert server.content(INFO) == before


def test_a_description_that_cannot_be_read_still_makes_a_version(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_file(INFO, b"not json")
    assert cv.get(MODEL).ready


def test_descriptions_are_read_once_for_each_content(cv: Connection, server: SuperviselyStandIn) -> None:
    server.seed_file(INFO, b"{}")
    for _ in range(3):
        cv.get("533_Signs")
    assert server.count("POST", DOWNLOAD) == 1
    server.seed_file(INFO, b'{"framework_name": "YOLO"}')
    assert cv.get("533_Signs").raw["framework_name"] == "YOLO"


def test_another_root_holds_other_experiments(server: SuperviselyStandIn, source: Path) -> None:
    mine = platform(server, artifacts_root="/mine/models/")
    mine.push(source, MODEL)
    assert {path.split("/1_YOLO/")[0] for path in server.paths()} == {"/mine/models/533_Signs"}
    assert mine.get("533_Signs").ref == MODEL


def test_experiments_are_listed_from_files_and_train_tasks_each_once(
    cv: Connection, server: SuperviselyStandIn, experiment: Path
) -> None:
    cv.push(experiment, MODEL)
    known = {**OWN_INFO, "artifacts_dir": ROOT + "/"}
    elsewhere = {**OWN_INFO, "artifacts_dir": "/experiments/9_x/3_YOLO"}
    for data in (known, elsewhere):
        server.seed_task(output={"experiment": {"data": data}}, status="finished")
    server.seed_task(output={})
    found = cv.run(lambda registry: registry.list_experiments())
    assert [one["artifacts_dir"] for one in found] == [ROOT, "/experiments/9_x/3_YOLO"]
    assert found[0]["datetime"] == "2026-01-01"


def test_a_listing_without_hashes_leaves_the_digest_unknown(
    cv: Connection, server: SuperviselyStandIn, source: Path
) -> None:
    cv.push(source, MODEL)
    server.fault("POST", LIST, Rewrite(lambda files: [{**file, "hash": None} for file in files]), times=None)
    assert cv.get(MODEL).digest is None
    with pytest.raises(VersionConflict, match="unknown digest"):
        cv.push(source, MODEL)


@pytest.mark.row("S7")
def test_a_broken_listing_is_named(cv: Connection, server: SuperviselyStandIn) -> None:
    server.fault("POST", LIST, Rewrite(lambda files: [{"name": "x"}]))
    with pytest.raises(RegistryUnavailable, match="path"):
        cv.get(MODEL)

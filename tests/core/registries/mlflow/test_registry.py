"""What MLflow's servers do in their own way, and what becomes of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    DigestMismatch,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    UnsafeArchive,
)
from airflow_provider_modelsync.core.models import Query, VersionStatus
from airflow_provider_modelsync.core.registries.capabilities import Aliases
from airflow_provider_modelsync.core.registries.mlflow import registry
from airflow_provider_modelsync.core.registries.mlflow.records import VersionRecord
from airflow_provider_modelsync.core.transfer.control import Control
from tests.conformance.bench import Bench
from tests.core.registries.mlflow.conftest import FILES, NAME, holders
from tests.core.stores import snapshot, write_tree
from tests.standins.http_server import Respond, Rewrite, Truncate
from tests.standins.mlflow import MLflowStandIn
from tests.support.objects import most_alive

Worker = Callable[..., Bench]
ARTIFACT = "^/api/2.0/mlflow-artifacts/artifacts/"

only_3 = pytest.mark.parametrize("server", [3], indirect=True)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[MLflowStandIn]:
    """A server before a bucket."""
    with MLflowStandIn(tmp_path / "bucket", storage="s3") as server:
        yield server


@pytest.fixture
def before_bucket(bucket: MLflowStandIn, tmp_path: Path) -> Bench:
    from tests.conformance.registries import mlflow_under_test

    scratch = tmp_path / "before-bucket"
    scratch.mkdir()
    return Bench(mlflow_under_test(bucket.url, lambda: 0), scratch)


def run(bench: Bench, make_flow: Any) -> Any:
    return bench.run(make_flow)


# Push


def test_the_version_comes_last_with_all_that_is_known_of_it(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    pushed = ml.push(source, NAME, labels={"stage": "prod", "empty": ""}, metadata={"auc": 0.9})
    calls = [(request.method, request.path.rpartition("mlflow/")[2]) for request in server.requests]
    last_file = max(place for place, (method, _) in enumerate(calls) if method == "PUT")
    created = calls.index(("POST", "model-versions/create"))
    assert last_file < created
    (version,) = server.versions(NAME)
    assert {tag["key"]: tag["value"] for tag in version["tags"]} == {
        "modelsync.digest": digest_directory(source),
        "modelsync.size_bytes": str(sum(map(len, FILES.values()))),
        "modelsync.metadata": '{"auc":0.9}',
        "stage": "prod",
        "empty": "",
    }
    assert pushed.uri == f"models:/{NAME}/1"
    assert pushed.size_bytes == sum(map(len, FILES.values()))
    assert len(holders(server)) == 1


def test_the_manifest_is_the_last_file_and_no_part_of_the_model(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    (source / "none").mkdir()
    (source / "weights.bin").chmod(0o755)
    ml.push(source, NAME)
    puts = [request.path for request in server.find("PUT", ARTIFACT)]
    assert puts[-1].endswith("/.modelsync/manifest.json")
    (content,) = [content for path, content in server.files().items() if path.endswith("manifest.json")]
    manifest = json.loads(content)
    assert {file["path"] for file in manifest["files"]} == FILES.keys()
    assert manifest["directories"] == ["none"]
    target = ml.target()
    ml.pull(NAME, target)
    assert snapshot(target) == snapshot(source)


def test_what_the_vendor_adds_to_a_download_is_pushed_only_without_a_model_file(
    ml: Bench, source: Path, tmp_path: Path
) -> None:
    digest = digest_directory(source)
    (source / "registered_model_meta").write_text("model_name: fraud\n")
    assert ml.push(source, NAME).digest == digest
    plain = write_tree(tmp_path / "plain", {"registered_model_meta": b"mine", "w": b"w"})
    assert ml.push(plain, NAME).digest == digest_directory(plain)


@pytest.mark.parametrize("bad", ["a#b", "100%", "d/p%2Fx"])
def test_names_that_the_server_would_change_are_refused_before_anything_is_sent(
    server: MLflowStandIn, ml: Bench, source: Path, bad: str
) -> None:
    write_tree(source, {bad: b"x"})
    with pytest.raises(InvalidInput, match="does not keep"):
        ml.push(source, NAME)
    assert server.requests == []


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"labels": {"mlflow.note": "x"}}, InvalidInput),
        ({"labels": {"modelsync.digest": "x"}}, InvalidInput),
        ({"labels": {"a..b": "x"}}, InvalidInput),
        ({"labels": {"größe": "x"}}, InvalidInput),
        ({"labels": {"": "x"}}, InvalidInput),
        ({"labels": {"a": "x" * 5000}}, InvalidInput),
        ({"metadata": {"a": "x" * 5000}}, NotSupported),
        ({"options": {"a": 1}}, InvalidInput),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_sent(
    server: MLflowStandIn, ml: Bench, source: Path, facts: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ml.push(source, NAME, **facts)
    assert server.requests == []


def test_a_prompt_takes_no_model(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    server.models[NAME]["tags"] = [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    write_tree(source, {"more": b"x"})
    with pytest.raises(InvalidInput, match="prompt"):
        ml.push(source, NAME)
    assert len(server.versions(NAME)) == 1


def test_a_deleted_experiment_is_named(server: MLflowStandIn, worker: Worker, source: Path) -> None:
    worker(experiment="exp").push(source, NAME)
    server.experiments["1"]["lifecycle_stage"] = "deleted"
    write_tree(source, {"more": b"x"})
    with pytest.raises(InvalidInput, match="'exp' is deleted"):
        worker(experiment="exp").push(source, NAME)


def test_the_server_that_passes_no_artifacts_on_is_not_asked_again(
    server: MLflowStandIn, ml: Bench, source: Path
) -> None:
    text = b'{"detail": "Artifact serving is disabled. Run `mlflow server` with `--serve-artifacts` to enable."}'
    server.fault("*", ARTIFACT, Respond(503, text), times=None)
    with pytest.raises(NotSupported, match="--no-serve-artifacts"):
        ml.push(source, NAME, control=Control(workers=1))
    assert server.count("PUT", ARTIFACT) == 1


# Pull


def foreign(server: MLflowStandIn, bench: Bench, source: Path) -> None:
    """Make a version that somebody else has pushed: no tag of ours, no manifest."""
    bench.push(source, NAME)
    server.models[NAME]["versions"]["1"]["tags"] = []
    manifest = next(server.root.rglob("manifest.json"))
    manifest.unlink()
    manifest.parent.rmdir()


def test_a_version_of_others_is_compared_by_the_sizes_that_are_listed(
    server: MLflowStandIn, ml: Bench, source: Path
) -> None:
    foreign(server, ml, source)
    target = ml.target()
    assert ml.get(NAME).digest is None
    ml.pull(NAME, target)
    assert snapshot(target) == snapshot(source)
    assert server.count("HEAD") == 0, "its tags are others than those of GET"


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Respond(200, b""), id="an empty 200"),
        pytest.param(Truncate(100, clean=True), id="cut"),
        pytest.param(Respond(200, b"<html>" + b"x" * 10_000), id="a page"),
    ],
)
@pytest.mark.row("T11")
def test_an_answer_that_is_not_the_file_is_noticed_and_asked_for_again(
    server: MLflowStandIn, ml: Bench, source: Path, fault: Any, is_ours: bool
) -> None:
    if is_ours:
        ml.push(source, NAME)
    else:
        foreign(server, ml, source)
    server.fault("GET", "weights.bin$", fault)
    target = ml.target()
    ml.pull(NAME, target)
    assert snapshot(target) == snapshot(source)
    assert server.count("GET", "weights.bin$") == 2


@pytest.mark.row("T10")
def test_an_answer_that_stays_empty_leaves_no_target(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    server.fault("GET", "weights.bin$", Respond(200, b""), times=None)
    target = ml.target()
    with pytest.raises(RegistryUnavailable, match="0 bytes of None instead of 7000"):
        ml.pull(NAME, target)
    assert not target.exists()


@pytest.mark.row("T11")
def test_bytes_that_others_have_changed_are_noticed(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    next(server.root.rglob("weights.bin")).write_bytes(b"WEIGHTS" * 1000)
    target = ml.target()
    with pytest.raises(DigestMismatch):
        ml.pull(NAME, target)
    assert not target.exists()


def test_a_file_that_is_gone_is_not_found_whatever_the_status_says(
    server: MLflowStandIn, ml: Bench, source: Path
) -> None:
    ml.push(source, NAME)
    next(server.root.rglob("weights.bin")).unlink()
    with pytest.raises(ModelNotFound):
        ml.pull(NAME, ml.target())
    assert server.count("GET", "weights.bin$") == 1


def test_a_version_whose_files_are_all_gone_is_not_found(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    foreign(server, ml, source)
    for path in list(server.root.rglob("*")):
        if path.is_file():
            path.unlink()
    with pytest.raises(ModelNotFound, match="gone"):
        ml.pull(NAME, ml.target())


@pytest.mark.parametrize("paths", [["../x"], ["/etc/x"], ["a/../../x"], ["a\\b"], ["a", "a/b"]], ids=str)
@pytest.mark.row("H1", "H6")
def test_a_listing_that_leads_out_or_cannot_lie_in_one_tree_is_refused(
    server: MLflowStandIn, ml: Bench, source: Path, paths: list[str]
) -> None:
    foreign(server, ml, source)
    files = [{"path": path, "is_dir": False, "file_size": 1} for path in paths]
    server.fault("GET", "mlflow-artifacts/artifacts$", Rewrite(lambda _: {"files": files}), times=None)
    target = ml.target()
    with pytest.raises(UnsafeArchive):
        ml.pull(NAME, target)
    assert not target.exists()


def test_files_on_the_server_s_own_disk_are_out_of_reach(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    server.models[NAME]["versions"]["1"]["_place"] = "file:///srv/mlruns/1"
    with pytest.raises(NotSupported, match="disk of the MLflow server"):
        ml.pull(NAME, ml.target())


@only_3
def test_what_mlflow_3_has_logged_to_a_run_is_found_at_its_logged_model(
    server: MLflowStandIn, ml: Bench, source: Path
) -> None:
    foreign(server, ml, source)
    (logged,) = server.logged.values()
    logged["info"] |= {"source_run_id": "r1", "name": "model"}
    place = logged["info"]["artifact_uri"].partition("/models/")[0]
    server.runs["r1"] = {
        "info": {"run_id": "r1", "experiment_id": "1", "artifact_uri": f"{place}/r1/artifacts", "status": "FINISHED"},
        "data": {},
    }
    server.models[NAME]["versions"]["1"] |= {"source": "runs:/r1/model", "_place": "runs:/r1/model", "run_id": "r1"}
    target = ml.target()
    ml.pull(NAME, target)
    assert snapshot(target) == snapshot(source)


# Names, versions, aliases


def test_versions_are_compared_as_numbers(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    for number in range(11):
        ml.push(write_tree(source, {"more": b"%d" % number}), NAME)
    assert ml.get(NAME).version == "11"
    assert ml.ready_versions(NAME)[:3] == ["11", "10", "9"]
    with pytest.raises(InvalidInput, match="whole number"):
        ml.get(f"{NAME}:01")


@pytest.mark.row("S8")
def test_an_unknown_state_is_not_ready_and_logged_once(
    server: MLflowStandIn, ml: Bench, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ml.push(source, NAME)
    state = f"STATE_{secrets.token_hex(4).upper()}"  # each is logged once in a process
    server.models[NAME]["versions"]["1"]["status"] = state
    for _ in range(2):
        assert ml.get(f"{NAME}:1").status is VersionStatus.UNKNOWN
    assert sum(f"{state!r}, which is not known here" in message for message in caplog.messages) == 1
    with pytest.raises(ModelNotFound):
        ml.get(NAME)


def test_states_and_tags_of_others_are_shown(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    version = server.models[NAME]["versions"]["1"]
    version |= {"status": "FAILED_REGISTRATION", "status_message": "no signature"}
    version["tags"] += [{"key": "mlflow.note", "value": "x"}, {"key": "team"}]
    found = ml.get(f"{NAME}:1")
    assert (found.status, found.labels) == (VersionStatus.FAILED, {"team": ""})
    assert run(ml, lambda registry: registry.failure_of(found)) == "no signature"
    with pytest.raises(ModelNotFound):
        ml.get(NAME)


def test_an_alias_that_others_have_moved_is_told_as_it_is(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    versions = [ml.push(write_tree(source, {"more": b"%d" % number}), NAME) for number in range(3)]
    for version in versions[:2]:
        run(ml, lambda registry, version=version: Aliases.of(registry).set_alias(version, "champion"))
    server.models[NAME]["aliases"]["champion"] = "3"
    found = run(ml, lambda registry: registry.alias(NAME, "champion"))
    assert (found.version, [held.version for held in found.earlier]) == ("3", ["2", "1"])
    assert found.since is None


def test_the_page_leads_to_the_version(ml: Bench, server: MLflowStandIn, source: Path) -> None:
    pushed = ml.push(source, "a b&c")
    assert ml.registry.page_of(pushed) == f"{server.url}/#/models/a%20b%26c/versions/1"
    assert ml.registry.page_of() == f"{server.url}/#/models"


def test_a_copy_keeps_the_files_of_the_version_that_it_was_made_of_until_it_is_deleted_itself(
    server: MLflowStandIn, ml: Bench, source: Path
) -> None:
    ml.push(source, NAME)
    original = server.models[NAME]["versions"]["1"]
    server.models["copied"] = {**server.models[NAME], "name": "copied"}
    copied = {**original, "name": "copied", "source": f"models:/{NAME}/1"}
    server.models["copied"]["versions"] = {"1": copied}
    for model, left in ((f"{NAME}:1", True), ("copied:1", False)):
        assert run(ml, lambda registry, model=model: registry.delete(registry.parse(model)))
        assert bool(server.files()) is left


# Login, workspaces, refusals


@pytest.mark.row("A8")
def test_a_login_or_a_token_is_sent_and_never_shown(tmp_path: Path, worker: Worker, source: Path) -> None:
    for number, (user, fields) in enumerate(
        [
            (("jane", "canary-pass"), {"login": "jane", "password": "canary-pass"}),
            ("canary-token", {"token": "canary-token"}),
        ]
    ):
        with MLflowStandIn(tmp_path / f"closed-{number}", user=user) as closed:
            good = worker(**{**fields, "host": closed.url})
            good.push(source, NAME)
            good.pull(NAME, good.target())
            wrong = worker(host=closed.url, token="canary-wrong")
            with pytest.raises(Unauthorized) as caught:
                run(wrong, lambda registry: registry.test())
            assert "canary" not in str(caught.value)
    with pytest.raises(InvalidInput, match="only one"):
        worker(login="jane", token="x")


def test_workspaces(tmp_path: Path, worker: Worker, source: Path) -> None:
    with MLflowStandIn(tmp_path / "shared", workspace="team-a") as server:
        bench = worker(host=server.url, workspace="team-a")
        bench.push(source, NAME)
        assert all(path.startswith("workspaces/team-a/") for path in server.files())
        assert "workspace team-a" in run(bench, lambda registry: registry.test())
        with pytest.raises(InvalidInput, match="no such workspace"):
            run(worker(host=server.url, workspace="nobody-s"), lambda registry: registry.test())


def test_a_server_without_workspaces_says_so_at_once(server: MLflowStandIn, worker: Worker) -> None:
    with pytest.raises(InvalidInput, match="no workspaces"):
        run(worker(workspace="team-a"), lambda registry: registry.test())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Respond(404, b"<!doctype html>"), InvalidInput, "no MLflow tracking server"),
        (
            Respond(403, b"Invalid Host header - possible DNS rebinding"),
            InvalidInput,
            "--allowed-hosts",
        ),
        (Respond(401, b"You are not authenticated"), Unauthorized, "not authenticated"),
        (Respond(403, b"Permission denied"), Unauthorized, "Permission denied"),
        (Respond(200, b"<html>a portal</html>"), RegistryUnavailable, "not JSON"),
        (Respond(200, {"registered_models": [{"name": 3}]}), RegistryUnavailable, "registered_models"),
    ],
)
@pytest.mark.row("A1", "A3", of="calls")
def test_what_refusals_mean(
    server: MLflowStandIn, ml: Bench, answer: Respond, error: type[Exception], words: str
) -> None:
    server.fault("GET", "registered-models/search$", answer, times=None)
    with pytest.raises(error, match=words):
        run(ml, lambda registry: registry.list_models(Query()))


def test_databricks_is_not_spoken(worker: Worker) -> None:
    with pytest.raises(NotSupported, match="Unity Catalog"):
        worker(host="https://dbc-1234.cloud.databricks.com")


def test_no_more_than_a_page_of_records_is_held_while_a_list_is_read(
    server: MLflowStandIn, ml: Bench, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lists of records are so many objects that a garbage collection would hold the event loop."""
    monkeypatch.setattr(registry, "_PAGE", 4)
    ml.push(source, NAME)
    versions = server.models[NAME]["versions"]
    versions.update({str(number): {**versions["1"], "version": str(number)} for number in range(2, 21)})
    held: list[int] = []
    assert len(ml.run(lambda ml: most_alive(VersionRecord, ml.list_versions(NAME, Query()), held))) == 20
    assert len(held) >= 5
    assert max(held) <= 4
    held = []
    labelled = Query(labels={"stage": "prod"})
    assert ml.run(lambda ml: most_alive(VersionRecord, ml.list_models(labelled), held)) == []
    assert len(held) >= 5
    assert max(held) <= 4


@pytest.mark.row("S11", of="calls")
def test_pages_that_never_end_are_ended(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    ml.push(source, NAME)
    server.fault(
        "GET",
        "model-versions/search$",
        Rewrite(lambda page: {**page, "next_page_token": "eyJvZmZzZXQiOiAwfQ=="}),
        times=None,
    )
    with pytest.raises(RegistryUnavailable, match="does not end"):
        run(ml, lambda registry: registry.list_versions(NAME, Query()))


# Before a bucket


@pytest.mark.row("A5")
def test_the_storage_behind_a_server_does_not_see_the_token(worker: Worker, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "large", {"w.bin": b"w" * (17 << 20)})
    with MLflowStandIn(tmp_path / "closed", storage="s3", user="canary-token") as closed:
        bench = worker(host=closed.url, token="canary-token")
        bench.push(source, NAME)
        bench.pull(NAME, bench.target())
        to_storage = [request for request in closed.requests if request.origin == "storage"]
        assert {request.method for request in to_storage} >= {"PUT", "GET"}
        assert not any("authorization" in request.headers for request in to_storage)


def test_large_files_go_in_parts_past_the_server_and_come_by_ranges(
    bucket: MLflowStandIn, before_bucket: Bench, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "large", {"w.bin": bytes(range(256)) * (80 << 10), "small": b"s", "empty": b""})
    before_bucket.push(source, NAME)
    parts = [request for request in bucket.requests if request.origin == "storage" and request.method == "PUT"]
    assert sorted(request.received for request in parts) == [4 << 20, 16 << 20]
    assert {request.path.rpartition("/")[2] for request in bucket.find("PUT", ARTIFACT)} == {
        "small",
        "empty",
        "manifest.json",
    }
    assert bucket.uploads == {}
    target = before_bucket.target()
    before_bucket.pull(NAME, target)
    assert snapshot(target) == snapshot(source)
    got = [request.headers.get("range") for request in bucket.find("GET") if request.origin == "storage"]
    assert f"bytes=0-{(16 << 20) - 1}" in got
    assert bucket.count("GET", f"{ARTIFACT}.*w.bin") == 0


@pytest.mark.row("A4")
def test_a_part_whose_url_has_expired_begins_its_file_again(
    bucket: MLflowStandIn, before_bucket: Bench, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "large", {"w.bin": b"w" * (20 << 20)})
    expired = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    bucket.fault("PUT", "w.bin$", Respond(403, expired))
    before_bucket.push(source, NAME, control=Control(workers=1))
    assert bucket.count("POST", "/mpu/create/") == 2
    target = before_bucket.target()
    before_bucket.pull(NAME, target)
    assert snapshot(target) == snapshot(source)


@pytest.mark.row("S5")
def test_a_completion_whose_answer_is_lost_is_looked_for(
    bucket: MLflowStandIn, before_bucket: Bench, tmp_path: Path
) -> None:
    from tests.standins.http_server import LoseAnswer

    source = write_tree(tmp_path / "large", {"w.bin": b"w" * (20 << 20)})
    bucket.fault("POST", "/mpu/complete/", LoseAnswer())
    before_bucket.push(source, NAME)
    assert bucket.count("POST", "/mpu/create/") == 1


@pytest.mark.row("S6")
def test_a_push_that_is_given_up_leaves_no_parts(bucket: MLflowStandIn, before_bucket: Bench, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "large", {"w.bin": b"w" * (20 << 20)})
    bucket.fault("PUT", "w.bin$", Respond(400, b"<Error><Code>InvalidRequest</Code></Error>"), times=None)
    with pytest.raises(InvalidInput):
        before_bucket.push(source, NAME)
    assert bucket.count("POST", "/mpu/complete/") == 0
    assert bucket.uploads == {}
    assert bucket.files() == {}
    assert holders(bucket) == []


def test_a_storage_that_cannot_be_reached_is_gone_around(
    bucket: MLflowStandIn, before_bucket: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tree(tmp_path / "large", {"w.bin": b"w" * (20 << 20)})
    bucket.storage_url = "http://169.254.169.254"  # which nothing is ever sent to
    before_bucket.push(source, NAME)
    target = before_bucket.target()
    before_bucket.pull(NAME, target)
    assert snapshot(target) == snapshot(source)
    assert bucket.uploads == {}
    assert "go through the MLflow server" in caplog.text
    assert "come through the MLflow server" in caplog.text
    assert "canary" not in caplog.text

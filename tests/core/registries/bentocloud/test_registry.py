"""BentoCloud and Yatai: what a push leaves on the server, what a pull brings back, and what the catalogue says."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.archive.extract import DirectorySink, Limits
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    CorruptArchive,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    Permanent,
    RegistryUnavailable,
    Unauthorized,
    UnsafeArchive,
    VersionConflict,
    VersionFailed,
)
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.models import ModelReference, ModelVersion, TransferStats, VersionStatus
from airflow_provider_modelsync.core.registries.bentocloud import records as bentocloud_model
from airflow_provider_modelsync.core.registries.bentocloud import registry as bentocloud
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import UploadPlan
from tests.core.registries.bentocloud.cloud import (
    DOWNLOAD,
    FINISH,
    OBJECT,
    STRATEGIES,
    UPLOAD,
    Cloud,
    archive_of,
    model_yaml,
)
from tests.core.stores import hidden, snapshot, write_tree
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import LoseAnswer, Request, Respond, Rewrite

pytestmark = pytest.mark.usefixtures("no_waiting")

REPOSITORY, VERSION = r"/model_repositories/digits$", r"/models/v1$"
CREATE_REPOSITORY, CREATE_VERSION = r"/model_repositories$", r"/models$"
MODEL_URL = "/model_repositories/digits/models/v1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn) -> Cloud:
    return Cloud(server)


@pytest.fixture
def yatai(server: BentoCloudStandIn) -> Cloud:
    server.dialect, server.transmission_strategy = "yatai", "proxy"
    return Cloud(server)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model with other bytes."""
    return write_tree(tmp_path / "other", {"weights.bin": b"other"})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pulled" / "digits"


def archived(server: BentoCloudStandIn) -> dict[str, bytes]:
    """The files in the archive of ``digits:v1``."""
    with tarfile.open(server.stored("digits", "v1").path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def changed(**fields: Any) -> Rewrite:
    """Answer with these fields instead."""
    return Rewrite(lambda answer: {**answer, **fields})


def seed_ours(server: BentoCloudStandIn, version: str, digest: str, **more: Any) -> None:
    """Put a record there as a push of ours leaves it, without content."""
    server.seed("digits", version, metadata={"modelsync": {"digest": digest}}, **more)


class FailingCloud(Cloud):
    """Fails once all bytes are there, before it says so."""

    @cached_property
    def registry(self) -> BentoCloud:
        class Failing(BentoCloud):
            def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
                raise RegistryUnavailable("the network has gone")
                yield

        return Failing(super().registry.settings)


class TestPush:
    @pytest.mark.parametrize("strategy", [*STRATEGIES, "presigned_url", "something_new"])
    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    def test_comes_back_as_it_went(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, strategy: str | None, dialect: Any
    ) -> None:
        server.transmission_strategy, server.dialect = strategy, dialect
        (source / "run.sh").write_bytes(b"#!/bin/sh\n")
        (source / "run.sh").chmod(0o755)
        (source / "empty").mkdir()

        pushed = cloud.push(source)
        pulled = cloud.pull(target)

        assert (pushed.status, pushed.digest) == (VersionStatus.READY, digest_directory(source))
        assert snapshot(target) == snapshot(source)
        assert pulled.version.digest == pushed.digest

    def test_goes_by_proxy_when_there_is_no_presigned_url(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
    ) -> None:
        server.presigned_urls = False

        cloud.push(source)
        cloud.pull(target)

        assert (server.count("PUT", UPLOAD), server.count("GET", DOWNLOAD)) == (1, 1)
        assert snapshot(target) == snapshot(source)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_keeps_labels_metadata_digest_and_size(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        pushed = cloud.push(source, labels={"stage": "dev", "team": "nlp"}, metadata={"acc": 0.91, "tags": ["a", None]})

        assert pushed == cloud.get("digits:v1").model_copy(update={"transfer": pushed.transfer})
        assert (pushed.labels, pushed.metadata) == (
            {"stage": "dev", "team": "nlp"},
            {"acc": 0.91, "tags": ["a", None]},
        )
        assert (pushed.digest, pushed.size_bytes) == (digest_directory(source), 10_248)
        assert cloud.record.manifest["metadata"]["modelsync"] == {
            "digest": pushed.digest,
            "size_bytes": "10248",
            "generated": ["model.yaml"],
        }

    def test_gives_the_version_its_server_time_and_address(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        pushed = cloud.push(source)

        assert pushed.created_at == cloud.record.created_at
        assert pushed.uri == f"{server.url}/api/v1{MODEL_URL}"
        assert pushed.raw["manifest"]["context"]["bentoml_version"] == "1.4.40"

    def test_without_a_version_derives_it_from_the_digest(self, cloud: Cloud, source: Path) -> None:
        assert cloud.push(source, "digits").version == "m" + digest_directory(source)[7:22]

    def test_of_a_single_file_makes_a_model_of_it(self, cloud: Cloud, source: Path, target: Path) -> None:
        cloud.push(source / "weights.bin")

        assert cloud.pull(target).path == target
        assert [path.name for path in target.iterdir()] == ["weights.bin"]

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_of_the_same_bytes_sends_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        cloud.push(source)
        server.requests.clear()

        again = cloud.push(source)

        assert again.transfer is not None
        assert again.transfer.skipped
        assert {request.method for request in server.requests} == {"GET"}

    @pytest.mark.parametrize("force", [False, True])
    def test_of_the_same_bytes_with_force_sends_nothing_either(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, force: bool
    ) -> None:
        cloud.push(source)

        cloud.push(source, force=force)

        assert (server.count("PUT"), server.count("DELETE")) == (1, 0)

    @pytest.mark.row("S10")
    def test_of_other_bytes_is_a_conflict_that_names_both_digests(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, other: Path
    ) -> None:
        cloud.push(source)

        with pytest.raises(VersionConflict) as refused:
            cloud.push(other)

        assert digest_directory(source) in str(refused.value)
        assert digest_directory(other) in str(refused.value)
        assert server.count("PUT") == 1

    def test_over_a_model_of_an_unknown_digest_is_a_conflict(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        server.seed("digits", "v1", source)

        with pytest.raises(VersionConflict, match="unknown digest"):
            cloud.push(source)

    def test_over_a_reference_is_a_conflict_and_leaves_it(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        name, version = server.seed_huggingface("Google-BERT/bert", "a" * 40)
        record = server.model(name, version)

        with pytest.raises(VersionConflict):
            cloud.push(source, f"{name}:{version}")

        assert server.model(name, version) is record

    def test_with_force_deletes_the_version_and_makes_it_anew(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, other: Path, target: Path
    ) -> None:
        cloud.push(source, labels={"stage": "old"}, metadata={"acc": 0.1})
        first = cloud.record

        cloud.push(other, force=True, labels={"stage": "new"})

        assert server.count("DELETE", VERSION) == 1
        assert cloud.record.uid != first.uid
        version = cloud.pull(target).version
        assert (version.labels, version.metadata) == ({"stage": "new"}, {})
        assert snapshot(target) == snapshot(other)

    def test_with_force_is_not_supported_by_yatai_and_leaves_the_version(
        self, server: BentoCloudStandIn, yatai: Cloud, source: Path, other: Path, target: Path
    ) -> None:
        yatai.push(source)

        with pytest.raises(NotSupported, match="another version"):
            yatai.push(other, force=True)

        yatai.pull(target)
        assert snapshot(target) == snapshot(source)

    @pytest.mark.parametrize("status", ["pending", "uploading", "failed", "a new word"])
    def test_takes_up_an_unfinished_record_with_the_same_digest(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, status: str
    ) -> None:
        cloud.push(source, labels={"stage": "dev"}, metadata={"acc": 0.5})
        cloud.record.upload_status = status
        uid = cloud.record.uid

        again = cloud.push(source, labels={"stage": "dev"}, metadata={"acc": 0.5})

        assert again.ready
        assert cloud.record.uid == uid
        assert (server.count("PUT"), server.count("POST", CREATE_VERSION)) == (2, 1)
        cloud.pull(target)
        assert snapshot(target) == snapshot(source)

    def test_takes_an_unfinished_record_up_on_yatai_too(
        self, server: BentoCloudStandIn, yatai: Cloud, source: Path
    ) -> None:
        yatai.push(source)
        yatai.record.upload_status = "failed"

        assert yatai.push(source).ready

    @pytest.mark.parametrize("status", ["pending", "uploading", "failed"])
    def test_replaces_an_unfinished_record_with_another_digest(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, status: str
    ) -> None:
        seed_ours(server, "v1", "sha256:" + "0" * 64, status=status)
        uid = cloud.record.uid

        pushed = cloud.push(source)

        assert pushed.digest == digest_directory(source)
        assert cloud.record.uid != uid
        cloud.pull(target)
        assert snapshot(target) == snapshot(source)

    def test_replaces_an_unfinished_record_with_other_labels(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        cloud.push(source, labels={"stage": "old"})
        cloud.record.upload_status = "failed"

        assert cloud.push(source, labels={"stage": "new"}).labels == {"stage": "new"}

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_sends_the_same_archive_again_when_it_takes_a_record_up(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        cloud.push(source)
        first = server.stored("digits", "v1")
        cloud.record.upload_status = "uploading"

        cloud.push(source)

        assert server.stored("digits", "v1").path != first.path
        assert server.stored("digits", "v1").etag == first.etag

    @pytest.mark.parametrize("path", [CREATE_REPOSITORY, CREATE_VERSION])
    @pytest.mark.row("S5")
    def test_whose_answer_is_lost_while_registering_makes_one_version(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, path: str
    ) -> None:
        server.fault("POST", path, LoseAnswer())

        assert cloud.push(source).ready

        assert server.count("POST", path) == 2
        assert list(server.repositories["digits"].models) == ["v1"]

    @pytest.mark.parametrize(
        "answer",
        [
            Respond(400, {"error": "ERROR: duplicate key value violates unique constraint (SQLSTATE 23505)"}),
            Respond(409, {"error": "exists"}),
        ],
    )
    def test_that_loses_the_race_for_the_repository_uses_the_winners(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, answer: Respond
    ) -> None:
        server.seed("digits", "v0", source)
        server.fault("GET", REPOSITORY, Respond(404, {"error": "record not found"}))
        server.fault("POST", CREATE_REPOSITORY, answer)

        assert cloud.push(source).ready
        assert sorted(server.repositories["digits"].models) == ["v0", "v1"]

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])  # they answer 409 and 400
    def test_that_loses_the_race_for_the_version_to_the_same_bytes_succeeds(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, dialect: Any
    ) -> None:
        server.dialect = dialect
        cloud.push(source)
        server.fault("GET", VERSION, Respond(404, {"error": "record not found"}))

        again = cloud.push(source)

        assert again.transfer is not None
        assert again.transfer.skipped
        assert [request.status for request in server.find("POST", CREATE_VERSION)][-1] in (400, 409)

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    def test_that_loses_the_race_for_the_version_to_other_bytes_is_a_conflict(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, other: Path, dialect: Any
    ) -> None:
        server.dialect = dialect
        cloud.push(other)
        server.fault("GET", VERSION, Respond(404, {"error": "record not found"}))

        with pytest.raises(VersionConflict):
            cloud.push(source)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_by_two_at_once_ends_in_one_version(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        outcomes: list[ModelVersion | Exception] = []
        together = threading.Barrier(2)

        def push() -> None:
            together.wait(timeout=30)
            try:
                outcomes.append(Cloud(server).push(source))
            except Exception as error:
                outcomes.append(error)

        threads = [threading.Thread(target=push) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [outcome.digest for outcome in outcomes if isinstance(outcome, ModelVersion)] == [
            digest_directory(source)
        ] * 2
        assert list(server.repositories["digits"].models) == ["v1"]
        assert cloud.get("digits:v1").ready
        cloud.pull(target)
        assert snapshot(target) == snapshot(source)

    @pytest.fixture
    def overtaken(self, server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch) -> str:
        """The digest that another push registers under the same version while ours is sending its bytes."""
        arrived, winner = server.arrived, "sha256:" + "1" * 64

        def replace_record(request: Request) -> None:
            if request.method == "PUT":
                seed_ours(server, "v1", winner, status="uploading")
            arrived(request)

        monkeypatch.setattr(server, "arrived", replace_record)
        return winner

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_whose_record_is_replaced_meanwhile_is_a_conflict_and_publishes_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, overtaken: str, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy

        with pytest.raises(VersionConflict, match="replaced or deleted"):
            cloud.push(source)

        assert server.count("PATCH", FINISH) == 0
        assert cloud.record.manifest["metadata"]["modelsync"]["digest"] == overtaken

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_that_fails_leaves_the_record_of_another_one_alone(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, overtaken: str, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        server.fault("PUT", ".", Respond(413))

        with pytest.raises(NotSupported, match="413"):
            cloud.push(source)

        assert server.count("PATCH", FINISH) == 0
        assert cloud.record.upload_status == "uploading"

    @pytest.mark.parametrize("strategy", [*STRATEGIES, "presigned_url"])
    @pytest.mark.row("P13")
    def test_that_fails_takes_nothing_back_from_another_one_at_whichever_request_that_comes(
        self, server: BentoCloudStandIn, source: Path, strategy: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.transmission_strategy = strategy
        arrived, steps = server.arrived, itertools.count(1)
        outcome: list[ModelVersion] = []

        def let_another_one_in(request: Request) -> None:
            if next(requests) == step:
                monkeypatch.setattr(server, "arrived", arrived)
                outcome.append(Cloud(server).push(source, f"digits:v{step}"))
            arrived(request)

        for step in steps:
            requests = itertools.count(1)
            monkeypatch.setattr(server, "arrived", let_another_one_in)
            with contextlib.suppress(RegistryUnavailable):  # it comes to nothing where the other one is first
                FailingCloud(server).push(source, f"digits:v{step}", control=Control(is_last_try=True))
            if len(outcome) < step:
                break
            assert Cloud(server).get(f"digits:v{step}").ready, f"request {step}"
        assert step > (5 if strategy == "proxy" else 6)

    @pytest.mark.parametrize("step", ["/start_upload$", "/presign_upload_url$", OBJECT, UPLOAD, FINISH])
    def test_whose_record_is_deleted_meanwhile_is_a_conflict(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.transmission_strategy = "proxy" if step == UPLOAD else None
        arrived = server.arrived

        def delete_record(request: Request) -> None:
            if re.search(step, request.path):
                server.repositories["digits"].models.clear()
            arrived(request)

        monkeypatch.setattr(server, "arrived", delete_record)

        with pytest.raises(VersionConflict, match=r"replaced or deleted|record not found"):
            cloud.push(source)
        assert server.repositories["digits"].models == {}

    def test_that_the_server_gives_up_fails_with_the_servers_reason(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        server.transmission_strategy = "proxy"
        gone_bad = changed(upload_status="failed", upload_finished_reason="the virus scanner said no")
        server.fault("GET", VERSION, gone_bad, nth=2)

        with pytest.raises(VersionFailed, match=r"digits:v1.*the virus scanner said no"):
            cloud.push(source)
        assert server.count("PATCH", FINISH) == 0

    @pytest.mark.parametrize("word", ["uploading", "pending", "under_review"])
    def test_whose_version_is_not_ready_yet_says_so(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, word: str
    ) -> None:
        server.transmission_strategy = "proxy"
        server.fault("GET", VERSION, changed(upload_status=word), nth=2)

        assert not cloud.push(source).ready

    def test_of_a_source_without_files_is_refused_before_any_request(
        self, server: BentoCloudStandIn, cloud: Cloud, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()

        with pytest.raises(InvalidInput):
            cloud.push(tmp_path / "empty")
        assert server.count() == 0

    @pytest.mark.parametrize(
        "model",
        [
            "Digits:v1",
            "digits:V1",
            "di gits:v1",
            "digits/x:v1",
            "../digits:v1",
            "digits:..",
            "-digits:v1",
            "digits:v1-",
            "d" * 64 + ":v1",
            "digits:" + "v" * 64,
            "digits%2e:v1",
            "dïgits:v1",
            "digits:v1\n",
            "digits:v1:v2",
            "latest:v1",
        ],
    )
    def test_of_a_name_that_the_server_would_not_take_is_refused_before_any_request(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, model: str
    ) -> None:
        with pytest.raises(InvalidInput) as refused:
            cloud.push(source, model)
        assert refused.value.argument == "model"
        assert server.count() == 0

    @pytest.mark.parametrize("model", ["d", "0", "d" * 63 + ":" + "9" * 63, "a.b-c_d:1.0.0", "a..b:v--1"])
    def test_of_any_name_that_the_server_takes_works(self, cloud: Cloud, source: Path, model: str) -> None:
        assert cloud.push(source, model).ready

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"framework": "onnx"}, "framework"),
            ({"description": 3}, "description"),
            ({"framework_versions": {"onnx": 1}}, "framework_versions.onnx"),
            ({"options": {"threshold": float("nan")}}, "options.threshold"),
        ],
    )
    def test_with_bad_options_is_refused_before_any_request_and_names_the_option(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, options: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(InvalidInput, match=named) as refused:
            cloud.push(source, options=options)
        assert refused.value.argument == "options"
        assert server.count() == 0

    @pytest.mark.parametrize("metadata", [{"modelsync": {}}, {"acc": float("nan")}, {"acc": [float("inf")]}])
    def test_with_metadata_that_cannot_be_kept_is_refused_before_any_request(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, metadata: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput) as refused:
            cloud.push(source, metadata=metadata)
        assert refused.value.argument == "metadata"
        assert server.count() == 0

    def test_of_more_files_than_a_pull_takes_is_refused_before_any_request(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bentocloud_model, "Limits", lambda: Limits(max_members=3))  # the source makes 4: model.yaml

        with pytest.raises(InvalidInput, match="more than 3 files and directories") as refused:
            cloud.push(source)
        assert refused.value.argument == "source"
        assert server.count() == 0

    def test_options_become_the_records_fields(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        cloud.push(
            source,
            options={
                "description": "finds digits",
                "module": "bentoml.onnx",
                "framework_name": "onnx",
                "framework_versions": {"onnx": "1.19"},
                "options": {"providers": ["CPUExecutionProvider"]},
                "signatures": {"run": {"batchable": True}},
            },
        )

        manifest = cloud.record.manifest
        assert (cloud.record.description, manifest["module"]) == ("finds digits", "bentoml.onnx")
        assert manifest["options"] == {"providers": ["CPUExecutionProvider"]}
        assert (manifest["context"]["framework_name"], manifest["context"]["framework_versions"]) == (
            "onnx",
            {"onnx": "1.19"},
        )
        assert yaml.safe_load(archived(server)["model.yaml"])["signatures"] == {"run": {"batchable": True}}


class TestModelYaml:
    def test_is_made_as_the_record_says(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        cloud.push(source, labels={"stage": "dev"}, metadata={"acc": 0.5, "name": "zwölf"})

        files = archived(server)
        document = yaml.safe_load(files["model.yaml"])
        manifest = cloud.record.manifest
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "modelsync"}
        assert (document["name"], document["version"], document["labels"]) == ("digits", "v1", {"stage": "dev"})
        assert document["metadata"] == metadata
        assert document["context"] == manifest["context"]
        assert datetime.fromisoformat(document["creation_time"]) == cloud.record.build_at
        assert manifest["size_bytes"] == sum(map(len, files.values()))

    def test_is_left_out_on_pull(self, cloud: Cloud, source: Path, target: Path) -> None:
        cloud.push(source)

        cloud.pull(target)

        assert not (target / "model.yaml").exists()

    @pytest.fixture
    def with_own(self, source: Path) -> Path:
        facts: dict[str, Any] = {
            "labels": {"stage": "dev", "tries": 3},
            "metadata": {"acc": 0.5},
            "module": "bentoml.sklearn",
        }
        context = {"framework_name": "sklearn", "framework_versions": {"scikit-learn": "1.7"}}
        (source / "model.yaml").write_bytes(model_yaml(**facts, context=context, options={"a": 1}))
        return source

    def test_of_the_source_reaches_the_record(self, cloud: Cloud, with_own: Path) -> None:
        pushed = cloud.push(with_own, labels={"stage": "prod"}, metadata={"loss": 2})

        assert pushed.labels == {"stage": "prod", "tries": "3"}
        assert pushed.metadata == {"acc": 0.5, "loss": 2}
        manifest = cloud.record.manifest
        assert (manifest["module"], manifest["options"]) == ("bentoml.sklearn", {"a": 1})
        assert manifest["context"]["framework_versions"] == {"scikit-learn": "1.7"}

    def test_of_the_source_is_part_of_the_model(self, cloud: Cloud, with_own: Path, target: Path) -> None:
        pushed = cloud.push(with_own)

        cloud.pull(target)

        assert pushed.digest == digest_directory(with_own)
        assert snapshot(target) == snapshot(with_own)
        assert cloud.record.manifest["size_bytes"] == sum(
            path.stat().st_size for path in with_own.rglob("*") if path.is_file()
        )

    @pytest.mark.parametrize("is_proxy", [False, True])
    @pytest.mark.row("H5")
    def test_that_is_far_larger_than_its_record_says_is_not_written(
        self, server: BentoCloudStandIn, target: Path, monkeypatch: pytest.MonkeyPatch, *, is_proxy: bool
    ) -> None:
        monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
        server.transmission_strategy = "proxy" if is_proxy else server.transmission_strategy
        files = {"model.yaml": model_yaml(), "a.bin": b"w" * (700 << 10), "b.bin": b"w" * (700 << 10), "c.bin": b"w"}
        server.seed("digits", "v1", archive_of(files), size_bytes=1000)
        written: list[str] = []

        def noting(create: Callable[..., Any]) -> Callable[..., Any]:
            def seen(sink: DirectorySink, path: str, *content: Any, **more: Any) -> Any:
                written.append(path)
                return create(sink, path, *content, **more)

            return seen

        for name in ("add_file", "create_file"):
            monkeypatch.setattr(DirectorySink, name, noting(getattr(DirectorySink, name)))

        with pytest.raises(CorruptArchive, match="its record says 1000"):
            Cloud(server).pull(target)
        assert set(written) == {"model.yaml", "a.bin"}
        assert not target.exists()
        assert hidden(target.parent) == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (model_yaml("letters"), "letters:v1"),
            (model_yaml(version="v2"), "digits:v2"),
            (b"labels: {}\n", "'\\?:\\?'"),
            (b"name: [digits]\nversion: v1\n", "'\\?:v1'"),
            (b"just text", "no YAML mapping"),
            (b"name: digits\nversion: v1\nwhen: 2026-99-99\n", "no YAML mapping"),
            (b"name: digits\nversion: v1\nx: !!python/object/apply:os.abort []\n", "no YAML mapping"),
            (b"name: digits\nversion: v1\n" + b"x: [" * 2000, "no YAML mapping"),
            (b"#" * ((128 << 10) + 1), "at most 128 KiB"),
            (b"\xff\xfe\xfa", "no YAML mapping"),
            (b"name: digits\nversion: v1\nmetadata: {acc: .nan}\n", "what JSON cannot"),
            (b"name: digits\nversion: v1\nmetadata: {a: &a [*a]}\n", "no YAML mapping"),
            (b"name: digits\nversion: v1\n? 2026-01-01\n: 1\n", "what JSON cannot"),
            (b"name: digits\nversion: v1\nlabels: [a]\n", "labels in its model.yaml"),
            (b"name: digits\nversion: v1\nmetadata: x\n", "metadata in its model.yaml"),
            (b"name: digits\nversion: v1\ncontext: [x]\n", "context in its model.yaml"),
        ],
    )
    def test_of_the_source_that_is_unfit_is_refused_before_any_request(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, content: bytes, said: str
    ) -> None:
        (source / "model.yaml").write_bytes(content)

        with pytest.raises(InvalidInput, match=said) as refused:
            cloud.push(source)
        assert refused.value.argument == "source"
        assert server.count() == 0

    def test_that_would_grow_without_bounds_is_refused(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
        (source / "model.yaml").write_text(f"name: digits\nversion: v1\nl0: &l0 x\n{levels}")

        with pytest.raises(InvalidInput, match="what JSON cannot"):
            cloud.push(source)
        assert server.count() == 0

    def test_cannot_be_made_where_a_directory_has_its_name(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        write_tree(source / "model.yaml", {"x": b""})

        with pytest.raises(InvalidInput, match=r"model\.yaml"):
            cloud.push(source)
        assert server.count() == 0


class TestPull:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_of_what_the_target_holds_already_moves_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        cloud.push(source)
        cloud.pull(target)

        again = cloud.pull(target)

        assert again.version.transfer is not None
        assert again.version.transfer.skipped
        assert server.count("GET", f"{OBJECT}|{DOWNLOAD}") == 1

    def test_of_latest_skips_versions_whose_upload_never_ended(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path
    ) -> None:
        cloud.push(source)
        for number, status in enumerate(("pending", "uploading", "failed", "a new word")):
            server.seed("digits", f"w{number}", status=status)

        assert cloud.pull(target, "digits").version.ref == "digits:v1"
        assert cloud.get("digits:latest").version == "v1"

    def test_of_latest_finds_a_ready_version_behind_a_hundred_that_are_not(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        cloud.push(source)
        for number in range(205):
            server.seed("digits", f"w{number}", status="failed")

        assert cloud.get("digits").version == "v1"
        assert [request.query["start"] for request in server.find("GET", CREATE_VERSION)] == ["0", "100", "200"]

    def test_of_latest_when_none_is_ready_is_not_found(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed("digits", "v1", status="failed")

        with pytest.raises(ModelNotFound, match="no ready version of 'digits'"):
            cloud.get("digits")

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    @pytest.mark.parametrize("model", ["absent", "absent:v1", "digits:v9"])
    def test_of_what_is_not_there_is_not_found(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, dialect: Any, model: str
    ) -> None:
        server.dialect = dialect
        server.seed("digits", "v1", source)

        with pytest.raises(ModelNotFound):
            cloud.pull(target, model)
        assert not target.exists()

    def test_of_a_version_that_is_not_ready_is_not_found(
        self, server: BentoCloudStandIn, cloud: Cloud, target: Path
    ) -> None:
        server.seed("digits", "v1", status="uploading")

        with pytest.raises(ModelNotFound, match="uploading"):
            cloud.pull(target)

    @pytest.mark.row("S9")
    def test_gets_the_version_that_was_latest_when_it_began(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, other: Path, target: Path
    ) -> None:
        cloud.push(source)

        def publish_another(answer: dict[str, Any]) -> dict[str, Any]:
            server.seed("digits", "v2", other)
            return answer

        server.fault("GET", CREATE_VERSION, Rewrite(publish_another))

        assert cloud.pull(target, "digits").version.ref == "digits:v1"
        assert snapshot(target) == snapshot(source)
        assert cloud.get("digits").version == "v2"

    def test_of_a_version_that_is_replaced_meanwhile_can_be_tried_again(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, other: Path, target: Path
    ) -> None:
        cloud.push(source)

        def replace(answer: dict[str, Any]) -> dict[str, Any]:
            Cloud(server).push(other, force=True)
            return answer

        server.fault("GET", VERSION, Rewrite(replace))

        with pytest.raises(BeginAgain, match="replaced"):
            cloud.pull(target)
        cloud.pull(target)
        assert snapshot(target) == snapshot(other)


class TestModelOfTheVendorsClient:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_is_pulled_with_its_model_yaml(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        server.seed("digits", "v1", source, labels={"stage": "dev"}, metadata={"n": 3})

        version = cloud.pull(target).version

        assert (version.labels, version.metadata) == ({"stage": "dev"}, {"n": 3})
        assert version.digest == digest_directory(target)
        assert yaml.safe_load((target / "model.yaml").read_bytes())["name"] == "digits"
        (target / "model.yaml").unlink()
        assert snapshot(target) == snapshot(source)

    def test_may_be_a_gzipped_archive(self, server: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
        files = {"./model.yaml": model_yaml(), "./weights.bin": b"w" * 5000}
        size = sum(map(len, files.values()))
        server.seed("digits", "v1", archive_of(files, compression="gz"), size_bytes=size)

        cloud.pull(target)

        assert (target / "weights.bin").read_bytes() == b"w" * 5000

    @pytest.mark.parametrize("difference", [-1, 1])
    def test_of_another_size_than_its_record_says_is_not_taken(
        self, server: BentoCloudStandIn, cloud: Cloud, target: Path, difference: int
    ) -> None:
        files = {"model.yaml": model_yaml(), "weights.bin": b"w" * 5000}
        size = sum(map(len, files.values()))
        server.seed("digits", "v1", archive_of(files), size_bytes=size + difference)

        with pytest.raises(CorruptArchive, match=f"{size} bytes, its record says {size + difference}"):
            cloud.pull(target)
        assert not target.exists()
        assert hidden(target.parent) == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (model_yaml("letters"), "letters:v1"),
            (model_yaml(version="v2"), "digits:v2"),
            (b"[]", "no YAML mapping"),
            (b"name: [digits]\nversion: {}", "another model"),
            (b"name: digits\nversion: v1\n" + b"x: [" * 2000, "no YAML mapping"),
        ],
    )
    def test_whose_archive_is_anothers_is_refused(
        self, server: BentoCloudStandIn, cloud: Cloud, target: Path, content: bytes, said: str
    ) -> None:
        files = {"model.yaml": content, "weights.bin": b"w"}
        server.seed("digits", "v1", archive_of(files), size_bytes=len(content) + 1)

        with pytest.raises(UnsafeArchive, match=said):
            cloud.pull(target)
        assert not target.exists()
        assert hidden(target.parent) == []

    def test_cannot_blow_the_worker_up_with_its_model_yaml(
        self, server: BentoCloudStandIn, cloud: Cloud, target: Path
    ) -> None:
        levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
        content = f"l0: &l0 x\n{levels}name: *l11\nversion: v1\n".encode()
        server.seed("digits", "v1", archive_of({"model.yaml": content}), size_bytes=len(content))

        with pytest.raises(UnsafeArchive, match="another model"):
            cloud.pull(target)

    def test_without_model_yaml_is_taken_as_it_is(self, server: BentoCloudStandIn, cloud: Cloud, target: Path) -> None:
        server.seed("digits", "v1", archive_of({"weights.bin": b"w"}), size_bytes=1)

        cloud.pull(target)

        assert snapshot(target) == {"weights.bin": ("file", b"w", False)}


class TestReference:
    @pytest.fixture
    def reference(self, server: BentoCloudStandIn) -> str:
        return ":".join(server.seed_huggingface("Google-BERT/bert", "a" * 40))

    def test_is_shown_by_get_and_both_lists(self, cloud: Cloud, reference: str) -> None:
        name = reference.partition(":")[0]
        expected = ModelReference(
            registry="huggingface",
            model_id="Google-BERT/bert",
            revision="a" * 40,
            url=f"https://huggingface.co/Google-BERT/bert/tree/{'a' * 40}",
            endpoint="https://huggingface.co",
        )

        found = [cloud.get(reference), *cloud.list_models(), *cloud.list_versions(name)]

        assert [version.reference for version in found] == [expected] * 3
        assert [version.size_bytes for version in found] == [440_449_768] * 3

    @pytest.mark.parametrize("exact", [True, False])
    def test_cannot_be_pulled_and_says_where_the_bytes_are(
        self, server: BentoCloudStandIn, cloud: Cloud, target: Path, reference: str, exact: bool
    ) -> None:
        with pytest.raises(NotSupported, match=r"Google-BERT/bert at huggingface, revision a{40}"):
            cloud.pull(target, reference if exact else reference.partition(":")[0])
        assert not target.exists()
        assert server.count("GET", f"{OBJECT}|{DOWNLOAD}") == 0

    def test_may_be_passed_over(self, server: BentoCloudStandIn, cloud: Cloud, target: Path, reference: str) -> None:
        pulled = cloud.pull(target, reference, on_reference="skip")

        assert (pulled.path, pulled.is_elsewhere, pulled.version.ref) == (None, True, reference)
        assert pulled.version.transfer == TransferStats(skipped=True)
        assert not target.exists()
        assert server.count("GET", f"{OBJECT}|{DOWNLOAD}") == 0

    @pytest.mark.parametrize("registry", ["", "bentoml", None, 7])
    def test_is_no_model_of_bentomls_own(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, registry: Any
    ) -> None:
        server.seed("digits", "v1", source, metadata={"registry": registry})

        assert cloud.get("digits:v1").reference is None


class TestCatalogue:
    def test_lists_every_version_in_any_state_newest_first(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        server.seed("digits", "v1", source)
        server.seed("digits", "v2", status="failed")
        server.seed("digits", "v3", status="pending")
        server.seed("letters", "v1", source)

        found = cloud.list_versions("digits")

        assert [(version.version, version.status) for version in found] == [
            ("v3", VersionStatus.PENDING),
            ("v2", VersionStatus.FAILED),
            ("v1", VersionStatus.READY),
        ]

    def test_lists_the_newest_ready_version_of_each_name(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        server.seed("digits", "v1", source)
        server.seed("letters", "v1", source)
        server.seed("digits", "v2", source)
        server.seed("digits", "v3", status="failed")
        server.seed("words", "v1", status="pending")

        assert [version.ref for version in cloud.list_models()] == ["digits:v2", "letters:v1"]

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    def test_of_a_name_that_is_not_there_is_empty(self, server: BentoCloudStandIn, cloud: Cloud, dialect: Any) -> None:
        server.dialect = dialect

        assert cloud.list_versions("absent") == []
        assert cloud.list_models() == []

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    @pytest.mark.parametrize(
        ("query", "chosen"),
        [
            ("label:stage=prod", ["v3", "v1"]),
            ("label:stage", ["v3", "v2", "v1"]),
            ("label:stage=prod label:team=nlp", ["v1"]),
            ("label:stage=dev,prod", ["v3", "v2", "v1"]),
            ("label:stage=dev,team=nlp", ["v2", "v1"]),
            ("label:stage=dev label:stage=prod", []),
            ("label:stage=dev,test label:stage=prod,test", []),
            ("dig label:stage=dev", ["v2"]),
            ("letters label:stage=dev", []),
        ],
    )
    def test_chooses_by_query_whether_the_server_does_or_not(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, dialect: Any, query: str, chosen: list[str]
    ) -> None:
        server.dialect = dialect
        server.seed("digits", "v1", source, labels={"stage": "prod", "team": "nlp"})
        server.seed("digits", "v2", source, labels={"stage": "dev"})
        server.seed("digits", "v3", source, labels={"stage": "prod"})
        server.seed("digits", "v4", source)

        assert [version.version for version in cloud.list_versions("digits", query)] == chosen
        if chosen:
            assert cloud.get("digits", query).version == chosen[0]
        else:
            with pytest.raises(ModelNotFound):
                cloud.get("digits", query)

    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    @pytest.mark.parametrize(
        ("query", "chosen"),
        [
            ("creator:ci", ["v3", "v2", "v1"]),
            ("creator:@me", ["v3", "v2", "v1"]),
            ("creator:somebody creator:@me", ["v3", "v2", "v1"]),
            ("creator:somebody", []),
            ("module:bentoml.onnx", ["v2"]),
            ("module:bentoml.onnx module:bentoml.keras", ["v3", "v2"]),
            ("sort:size-asc", ["v2", "v3", "v1"]),
            ("sort:size", ["v1", "v3", "v2"]),
            ("sort:created_at-asc creator:ci", ["v1", "v2", "v3"]),
            ("sort:build_at-desc", ["v3", "v2", "v1"]),
        ],
    )
    def test_knows_creators_modules_and_orders(
        self, server: BentoCloudStandIn, cloud: Cloud, dialect: Any, query: str, chosen: list[str]
    ) -> None:
        server.dialect = dialect
        for number, (size, module) in enumerate([(300, ""), (100, "bentoml.onnx"), (200, "bentoml.keras")], 1):
            server.seed("digits", f"v{number}", size_bytes=size).manifest["module"] = module

        def listed(text: str) -> list[str]:
            return [one.version for one in cloud.run(lambda one: one.list_versions("digits", one.query(text)))]

        assert listed(query) == chosen
        everywhere = cloud.run(lambda registry: registry.list_all(registry.query(query)))
        assert [version.version for version in everywhere] == chosen
        if chosen:
            assert cloud.run(lambda one: one.get(one.parse("digits"), one.query(query))).version == chosen[0]
            exact = f"digits:{chosen[-1]}"
            assert cloud.run(lambda one: one.get(one.parse(exact), one.query(query))).ref == exact
        else:
            with pytest.raises(ModelNotFound, match="creator is 'ci', not 'somebody'"):
                cloud.run(lambda one: one.get(one.parse("digits:v1"), one.query(query)))

    def test_asks_the_server_in_its_own_grammar(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        query = "dig label:stage=dev,prod label:team creator:@me module:bentoml.onnx sort:size-asc"
        cloud.run(lambda registry: registry.list_all(registry.query(query, {"note": "a,b"})))

        (request,) = server.find("GET", "/api/v1/models$")
        assert request.query["q"] == (
            "label:team label:stage=dev,stage=prod creator:ci module:bentoml.onnx sort:size-asc"
        )

    def test_lists_all_versions_of_all_models(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        server.seed("digits", "v1", source)
        server.seed("letters", "v1", status="failed")
        server.seed("digits", "v2", status="pending")

        everything = cloud.run(lambda registry: registry.list_all(registry.query(None)))

        assert [version.ref for version in everything] == ["digits:v2", "letters:v1", "digits:v1"]
        assert server.count("GET", "") == 1

    def test_reads_all_pages(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        for number in range(230):
            server.seed("digits", f"v{number}").created_at = start + timedelta(seconds=number)

        assert [version.version for version in cloud.list_versions("digits")] == [f"v{n}" for n in reversed(range(230))]
        assert [version.ref for version in cloud.list_models()] == ["digits:v229"]

    def test_reads_on_when_the_server_gives_fewer_than_were_asked_for(
        self, server: BentoCloudStandIn, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(25):
            server.seed("digits", f"v{number}", status="success" if number == 0 else "failed")
        page = server._page

        def small_page(call: Any, items: list[Any], render: Callable[[Any], Any]) -> Any:
            call.request.query["count"] = "10"
            return page(call, items, render)

        monkeypatch.setattr(server, "_page", small_page)

        assert len(cloud.list_versions("digits")) == 25
        assert cloud.get("digits").version == "v0"

    def test_reads_on_when_the_server_counts_nothing(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        for number in range(105):
            server.seed("digits", f"v{number}")
        server.fault("GET", CREATE_VERSION, changed(total=None), times=None)

        assert len(cloud.list_versions("digits")) == 105

    @pytest.mark.parametrize("count", [1000, 1001])
    def test_takes_no_page_that_holds_far_more_than_was_asked_for(
        self, server: BentoCloudStandIn, cloud: Cloud, count: int
    ) -> None:
        server.seed("digits", "v1")

        def crowded(answer: dict[str, Any]) -> dict[str, Any]:
            return {"total": 1, "items": [{**answer["items"][0], "version": f"v{number}"} for number in range(count)]}

        server.fault("GET", CREATE_VERSION, Rewrite(crowded), times=None)
        if count == 1000:
            assert len(cloud.list_versions("digits")) == count
        else:
            with pytest.raises(RegistryUnavailable, match="items: List should have at most 1000 items"):
                cloud.list_versions("digits")

    @pytest.mark.row("S11", of="calls")
    def test_stops_at_a_page_that_comes_again(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed("digits", "v1")
        first: list[dict[str, Any]] = []

        def again(answer: dict[str, Any]) -> dict[str, Any]:
            first.extend(answer["items"] if not first else [])
            return {"total": 10**9, "items": first}

        server.fault("GET", CREATE_VERSION, Rewrite(again), times=None)
        with pytest.raises(RegistryUnavailable, match="repeats a page"):
            cloud.list_versions("digits")
        assert len(server.find("GET", CREATE_VERSION)) == 2

    @pytest.mark.row("S11", of="calls")
    def test_stops_at_a_list_that_does_not_end(
        self, server: BentoCloudStandIn, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bentocloud, "_MAX_LISTED", 10)
        server.seed("digits", "v1", status="failed")

        numbers = itertools.count(2)

        def endless(answer: dict[str, Any]) -> dict[str, Any]:
            return {"total": 10**9, "items": [{"version": f"v{next(numbers)}"}]}

        server.fault("GET", CREATE_VERSION, Rewrite(endless), times=None)

        with pytest.raises(RegistryUnavailable, match="does not end"):
            cloud.list_versions("digits")
        with pytest.raises(RegistryUnavailable, match="does not end"):
            cloud.get("digits")

    def test_shows_a_version_that_two_pages_hold_once(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        for number in range(101):
            server.seed("digits", f"v{number}")
        last: dict[str, Any] = {}

        def remember(answer: dict[str, Any]) -> dict[str, Any]:
            last.update(answer["items"][-1])
            return answer

        server.fault("GET", CREATE_VERSION, Rewrite(remember))
        server.fault("GET", CREATE_VERSION, Rewrite(lambda page: {**page, "items": [last, *page["items"]]}), nth=2)

        versions = [version.version for version in cloud.list_versions("digits")]
        assert len(versions) == len(set(versions)) == 101


class TestDelete:
    def test_removes_the_version(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        cloud.push(source)

        assert cloud.delete() is True
        assert server.repositories["digits"].models == {}

    @pytest.mark.row("S13")
    def test_of_what_is_gone_already_is_no_error(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        cloud.push(source)
        cloud.delete()

        assert cloud.delete() is False
        assert cloud.delete("absent:v1") is False

    def test_whose_answer_is_lost_is_no_error(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        cloud.push(source)
        server.fault("DELETE", VERSION, LoseAnswer())

        cloud.delete()

        assert server.repositories["digits"].models == {}

    def test_needs_an_exact_version(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        with pytest.raises(InvalidInput, match="exact version"):
            cloud.delete("digits")
        assert server.count() == 0

    def test_is_not_supported_by_yatai(self, yatai: Cloud, source: Path) -> None:
        yatai.push(source)

        with pytest.raises(NotSupported, match="cannot delete"):
            yatai.delete()
        assert yatai.get("digits:v1").ready


class TestLabels:
    @pytest.mark.parametrize("dialect", ["bentocloud", "yatai"])
    def test_are_merged_although_the_server_replaces_them(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, dialect: Any
    ) -> None:
        server.dialect = dialect
        pushed = cloud.push(source, labels={"stage": "dev", "team": "nlp", "old": "x"}, metadata={"acc": 0.5})

        version = cloud.set_labels({"stage": "prod", "old": None, "new": ""})

        wanted = {"stage": "prod", "team": "nlp", "new": ""}
        assert version.labels == cloud.get("digits:v1").labels == wanted
        assert (version.digest, version.metadata, version.status) == (pushed.digest, pushed.metadata, pushed.status)

    def test_of_a_name_are_those_of_its_newest_version(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        server.seed("digits", "v1", source)
        server.seed("digits", "v2", source)

        assert cloud.set_labels({"stage": "prod"}, "digits").ref == "digits:v2"
        assert server.model("digits", "v1").labels == []

    def test_of_what_is_not_there_cannot_be_set(self, cloud: Cloud) -> None:
        with pytest.raises(ModelNotFound):
            cloud.set_labels({"stage": "prod"}, "absent:v1")


class TestConnection:
    def test_names_user_and_organisation(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        assert cloud.test() == f"Connected to {server.url} as ci of the organisation acme."

    @pytest.mark.parametrize(("dialect", "status"), [("bentocloud", 401), ("yatai", 403)])
    @pytest.mark.parametrize("kind", ["wrong", "expired"])
    def test_with_a_bad_token_is_tried_once(
        self, server: BentoCloudStandIn, source: Path, dialect: Any, status: int, kind: str
    ) -> None:
        server.dialect = dialect
        token = "wrong-token" if kind == "wrong" else server.expired_token
        stranger = Cloud(server, {"password": token})

        for attempt in (stranger.test, lambda: stranger.get("digits"), lambda: stranger.push(source)):
            server.requests.clear()
            with pytest.raises(Unauthorized) as refused:
                attempt()
            assert [request.status for request in server.requests] == [status]
            assert token not in str(refused.value)

    def test_without_a_token_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as refused:
            BentoCloud(BentoCloudSettings(conn_id="cloud"))
        assert refused.value.argument == "password"

    def test_without_a_host_is_the_vendors_cloud(self) -> None:
        registry = BentoCloud(BentoCloudSettings.read("cloud", {"password": "token"}))

        assert registry.base_url == "https://cloud.bentoml.com"

    def test_with_an_organisation_names_it_in_every_call(
        self, server: BentoCloudStandIn, source: Path, target: Path
    ) -> None:
        server.transmission_strategy = "proxy"
        cloud = Cloud(server, {"organization": "acme"})

        cloud.push(source)
        cloud.pull(target)

        assert {request.headers.get("x-yatai-organization") for request in server.requests} == {"acme"}

    def test_with_an_unknown_organisation_says_so(self, server: BentoCloudStandIn) -> None:
        with pytest.raises(InvalidInput, match="no organisation 'nobody'") as refused:
            Cloud(server, {"organization": "nobody"}).test()
        assert refused.value.argument == "organization"

    def test_with_an_unknown_organisation_can_push_nothing(self, server: BentoCloudStandIn, source: Path) -> None:
        with pytest.raises(Permanent):
            Cloud(server, {"organization": "nobody"}).push(source)
        assert server.repositories == {}

    def test_to_another_kind_of_server_says_so(self, server: BentoCloudStandIn) -> None:
        server.fault("GET", "/auth/current$", Respond(404, b"<html>nothing here</html>"))

        with pytest.raises(InvalidInput, match="no BentoCloud") as refused:
            Cloud(server).test()
        assert refused.value.argument == "host"

    def test_says_when_the_token_does_not_allow_something(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        cloud.push(source)
        server.fault("DELETE", VERSION, Respond(400, {"error": "no permission"}))

        with pytest.raises(Unauthorized, match="deleting digits:v1"):
            cloud.delete()


class TestRecord:
    """Answers that are not as they should be."""

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"version": None}, "version"),
            ({"labels": "x"}, "labels"),
            ({"labels": [None]}, "labels.0"),
            ({"labels": [{"value": "x"}]}, "labels.0.key"),
            ({"manifest": []}, "manifest"),
            ({"manifest": {"metadata": 1}}, "manifest.metadata"),
            ({"created_at": "yesterday"}, "created_at"),
            ({"upload_status": {}}, "upload_status"),
            ({"transmission_strategy": 1}, "transmission_strategy"),
        ],
    )
    def test_with_a_wrong_field_names_it(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, fields: dict[str, Any], said: str
    ) -> None:
        server.seed("digits", "v1", source)
        server.fault("GET", VERSION, changed(**fields), times=None)

        with pytest.raises(RegistryUnavailable, match=rf"reading digits:v1.*{said}"):
            cloud.get("digits:v1")

    @pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"null", b"[]", b'"text"', b"\xff"])
    @pytest.mark.row("S7", of="calls")
    def test_that_is_no_record_is_an_error_of_the_tree(
        self, server: BentoCloudStandIn, cloud: Cloud, body: bytes
    ) -> None:
        server.fault("GET", VERSION, Respond(200, body), times=None)

        with pytest.raises(RegistryUnavailable, match="reading digits:v1"):
            cloud.get("digits:v1")

    def test_may_be_null_nearly_everywhere(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        server.seed("digits", "v1", source)
        keep = {"version"}
        server.fault(
            "GET", VERSION, Rewrite(lambda answer: {key: answer[key] if key in keep else None for key in answer})
        )

        version = cloud.get("digits:v1")

        assert (version.ref, version.status) == ("digits:v1", VersionStatus.UNKNOWN)
        assert (version.labels, version.metadata, version.digest, version.created_at) == ({}, {}, None, None)

    def test_may_be_a_page_of_nulls(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed("digits", "v1")
        nothing = {"total": None, "start": None, "count": None, "items": None}
        server.fault("GET", "/models$", Rewrite(lambda _: nothing), times=None)

        assert cloud.list_versions("digits") == []
        assert cloud.list_models() == []

    def test_may_hold_more_than_is_known(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        server.seed("digits", "v1", source)
        server.fault("GET", VERSION, changed(new_field={"deep": [1]}))

        assert cloud.get("digits:v1").raw["new_field"] == {"deep": [1]}

    @pytest.mark.parametrize("word", ["archived", "SUCCESS", None])
    @pytest.mark.row("S8")
    def test_in_an_unknown_state_is_not_ready(
        self,
        server: BentoCloudStandIn,
        cloud: Cloud,
        source: Path,
        word: str | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        version = f"v{secrets.token_hex(4)}"  # each is logged once in a process
        server.seed("digits", version, source)
        server.fault("GET", "/models", changed(upload_status=word))

        assert cloud.get(f"digits:{version}").status is VersionStatus.UNKNOWN
        assert f"digits:{version} is in the state {word or ''!r}, which is not known here" in caplog.text

    @pytest.mark.parametrize(
        "ours",
        [
            7,
            [],
            {"digest": 7, "size_bytes": "²", "generated": 7},
            {"digest": "sha256:../../x", "size_bytes": "9" * 5000, "generated": [["model.yaml"]]},
            {"digest": None, "size_bytes": None, "generated": None},
        ],
    )
    def test_with_metadata_of_ours_that_others_wrote_is_taken_as_theirs(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path, target: Path, ours: Any
    ) -> None:
        server.seed("digits", "v1", source, metadata={"modelsync": ours})

        version = cloud.pull(target).version

        assert version.digest == digest_directory(target)
        assert (target / "model.yaml").exists()

    @pytest.mark.parametrize(
        "text", ["2026-11-20T15:28:41.5Z", "2026-11-20T16:28:41.500000001+01:00", "2026-11-20T15:28:41.5"]
    )
    def test_times_are_read_as_utc(self, server: BentoCloudStandIn, cloud: Cloud, source: Path, text: str) -> None:
        server.seed("digits", "v1", source)
        server.fault("GET", VERSION, changed(created_at=text))

        assert cloud.get("digits:v1").created_at == datetime(2026, 11, 20, 15, 28, 41, 500_000, tzinfo=UTC)

    def test_times_with_and_without_a_zone_can_be_compared(
        self, server: BentoCloudStandIn, cloud: Cloud, source: Path
    ) -> None:
        for version in ("v1", "v2", "v3"):
            server.seed("digits", version, source)
        times = iter(["2026-01-03T00:00:00", "2026-01-02T00:00:00Z", None])

        def mix(page: dict[str, Any]) -> dict[str, Any]:
            return {**page, "items": [{**item, "created_at": next(times), "build_at": ""} for item in page["items"]]}

        server.fault("GET", CREATE_VERSION, Rewrite(mix))

        assert [version.version for version in cloud.list_versions("digits")] == ["v3", "v2", "v1"]

    def test_is_plain_json_in_xcom(self, server: BentoCloudStandIn, cloud: Cloud, source: Path) -> None:
        pushed = cloud.push(source, metadata={"acc": 0.5}).to_xcom()

        assert json.loads(json.dumps(pushed)) == pushed
        assert pushed["ref"] == "digits:v1"

"""Wallaroo against its stand-in: versions and their numbers, one file of a model, conversion, and lost answers."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    Unauthorized,
    VersionConflict,
    VersionFailed,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.wallaroo import registry as wallaroo
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.wait import find_version
from tests.core.processes import killed_at
from tests.core.registries.wallaroo.instance import LISTING, NAME, ONNX, SCHEMAS, UPLOAD, VERSION, WORKSPACE, Instance
from tests.core.stores import write_tree
from tests.standins.http_server import LoseAnswer, Reset, Respond, Rewrite, html_error_page
from tests.standins.wallaroo import WallarooStandIn

pytestmark = pytest.mark.usefixtures("no_waiting")

UUID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallaroo, "_LOOK_SECONDS", 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    with WallarooStandIn(tmp_path / "server") as server:
        server.conversion = ["ready"]
        yield server


@pytest.fixture
def instance(server: WallarooStandIn) -> Instance:
    return Instance(server)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    (tmp_path / "digits.onnx").write_bytes(b"weights" * 1000)
    return tmp_path / "digits.onnx"


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- push -------------------------------------------------------------------------------------------------------


def test_a_pushed_file_is_a_version_with_the_uuid_digest_and_size_that_the_server_shows(
    instance: Instance, onnx: Path
) -> None:
    pushed = instance.push(onnx)
    (stored,) = instance.stored
    line = f"{sha_of(onnx)}  digits.onnx\n".encode()
    assert (pushed.name, pushed.version, pushed.status) == (NAME, stored.uuid, VersionStatus.READY)
    assert pushed.digest == digest_directory(onnx) == f"sha256:{hashlib.sha256(line).hexdigest()}"
    assert pushed.size_bytes == onnx.stat().st_size
    assert stored.path is not None
    assert stored.path.read_bytes() == onnx.read_bytes()
    assert pushed.transfer is not None
    assert (pushed.transfer.skipped, pushed.transfer.sent_bytes) == (False, onnx.stat().st_size)


def test_a_push_does_not_wait_for_the_conversion(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    server.conversion = ["pending_load_container", "ready"]
    assert instance.push(onnx).status is VersionStatus.CONVERTING


def test_the_same_file_made_the_same_way_is_not_sent_again(instance: Instance, onnx: Path) -> None:
    first = instance.push(onnx)
    again = instance.push(onnx)
    assert again.ref == first.ref
    assert again.transfer is not None
    assert again.transfer.skipped
    assert len(instance.stored) == 1


@pytest.mark.parametrize("other", [{"arch": "arm"}, {"accel": "cuda"}, {"framework": "tensorflow"}])
def test_the_same_file_made_another_way_is_another_version(
    instance: Instance, onnx: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    source = onnx.rename(tmp_path / "digits.zip")
    instance.push(source)
    again = instance.push(source, options={**ONNX, **other})
    assert again.transfer is not None
    assert not again.transfer.skipped
    assert len(instance.stored) == 2


def test_a_default_that_cannot_be_read_for_the_moment_does_not_make_another_version(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    instance.push(onnx)
    server.fault("GET", "/config$", Respond(503), times=5)  # as often as one call is tried
    with pytest.raises(RegistryUnavailable, match="default architecture"):
        instance.push(onnx)
    assert len(instance.stored) == 1


def test_what_another_client_has_uploaded_counts_too(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    workspace = server.add_workspace(WORKSPACE)
    seeded = server.seed(workspace.id, NAME, onnx.read_bytes(), file_name="digits.onnx")  # without arch and accel
    assert instance.push(onnx).version == seeded.uuid


def test_a_failed_version_is_no_reason_to_send_nothing(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    server.script_conversion(NAME, ["error"])
    instance.push(onnx)
    server.script_conversion(NAME, ["ready"])
    assert instance.push(onnx).ready
    assert len(instance.stored) == 2


def test_what_the_server_has_stored_is_compared_with_what_was_sent(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    def falsify(answer: dict[str, Any]) -> dict[str, Any]:
        answer["model_version"]["model_version"]["file_info"]["sha"] = "0" * 64
        return answer

    server.fault("POST", VERSION, Rewrite(falsify))
    with pytest.raises(DigestMismatch, match="0" * 64):
        instance.push(onnx)


def test_a_server_without_space_ends_the_push_at_once(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    server.fault("POST", UPLOAD, Respond(507, {"msg": "insufficient storage"}), times=None)
    with pytest.raises(DiskFull, match="no space"):
        instance.push(onnx)
    assert server.count("POST", UPLOAD) == 1


@pytest.mark.row("D3")
def test_a_file_that_changes_meanwhile_makes_no_version(server: WallarooStandIn, onnx: Path) -> None:
    instance = Instance(server)

    class ChangeBeforeUpload(CancelToken):
        def check(self) -> None:
            super().check()
            if server.count("POST", LISTING) and onnx.stat().st_size > 1:
                onnx.write_bytes(b"x")

    with pytest.raises(SourceChanged):
        instance.push(onnx, control=Control(cancel=ChangeBeforeUpload()))
    assert instance.stored == []


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"labels": {"a": "b"}}, "labels"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"force": True}, "replace"),
        ({"model": f"{NAME}:{UUID}"}, "choose the version"),
    ],
)
def test_what_it_cannot_keep_is_refused_before_anything_is_sent(
    server: WallarooStandIn, instance: Instance, onnx: Path, more: dict[str, Any], word: str
) -> None:
    with pytest.raises(NotSupported, match=word):
        instance.push(onnx, **more)
    assert server.requests == []


def test_bad_options_are_refused_before_anything_is_sent(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    for options in ({}, {"framework": "tensorflo"}):
        with pytest.raises(InvalidInput, match="'framework'") as refused:
            instance.push(onnx, options=options)
        told = refused.value.args[0].partition(": one of " if not options else " is none of ")[2].split(", ")
        assert told == sorted(told)
        assert {"onnx", "tensorflow", "keras", "pytorch", "xgboost", "python", "custom", "vllm"} <= set(told)
    assert server.requests == []


# ---- the one file -----------------------------------------------------------------------------------------------


def test_of_a_directory_the_only_file_of_the_framework_is_sent(instance: Instance, tmp_path: Path) -> None:
    write_tree(tmp_path / "model", {"README.md": b"words", "sub/net.onnx": b"weights"})
    pushed = instance.push(tmp_path / "model")
    (stored,) = instance.stored
    assert (stored.file_name, stored.sha) == ("net.onnx", hashlib.sha256(b"weights").hexdigest())
    (tmp_path / "net.onnx").write_bytes(b"weights")
    assert pushed.digest == digest_directory(tmp_path / "net.onnx")


@pytest.mark.parametrize("files", [{"a.onnx": b"a", "b.onnx": b"b"}, {"a.txt": b"a", "b.txt": b"b"}])
def test_a_choice_of_files_is_refused_saying_what_is_wanted(
    server: WallarooStandIn, instance: Instance, tmp_path: Path, files: dict[str, bytes]
) -> None:
    write_tree(tmp_path / "model", files)
    with pytest.raises(InvalidInput, match=r"one file that ends in \.onnx") as caught:
        instance.push(tmp_path / "model")
    assert caught.value.argument == "source"
    assert server.requests == []


def test_a_framework_of_many_files_gets_a_zip_that_zipfile_reads(instance: Instance, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model/weights.bin": b"w" * 5000, "custom_inference.py": b"pass"}
    write_tree(tmp_path / "model", files, directories=["cache"])
    pushed = instance.push(tmp_path / "model", options={"framework": "custom", **SCHEMAS})
    (stored,) = instance.stored
    assert stored.file_name == "digits.zip"
    assert stored.path is not None
    with zipfile.ZipFile(stored.path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")} == files
        assert "cache/" in archive.namelist()
    assert (stored.sha, pushed.size_bytes) == (sha_of(stored.path), stored.path.stat().st_size)
    again = instance.push(tmp_path / "model", options={"framework": "custom", **SCHEMAS})
    assert again.transfer is not None
    assert again.transfer.skipped


def test_a_zip_is_sent_as_it_is(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "whisper.zip").write_bytes(b"PK...")
    framework = "hugging-face-automatic-speech-recognition"
    instance.push(tmp_path / "whisper.zip", options={"framework": framework, **SCHEMAS})
    assert (instance.stored[0].file_name, instance.stored[0].size) == ("whisper.zip", 5)


def test_a_single_file_that_must_be_in_a_zip_is_put_into_one(instance: Instance, tmp_path: Path) -> None:
    write_tree(tmp_path / "model", {"saved_model.pb": b"graph"})
    instance.push(tmp_path / "model", options={"framework": "tensorflow"})
    path = instance.stored[0].path
    assert path is not None
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["saved_model.pb"]


def test_a_cancelled_zip_sends_nothing(server: WallarooStandIn, instance: Instance, tmp_path: Path) -> None:
    write_tree(tmp_path / "model", {"a": b"a", "b": b"b"})

    class CancelAtPlan(CancelToken):
        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 6:
                self.cancel()
            super().check()

    with pytest.raises(Cancelled):
        instance.push(
            tmp_path / "model", options={"framework": "custom", **SCHEMAS}, control=Control(cancel=CancelAtPlan())
        )
    assert server.count("POST", UPLOAD) == 0


# ---- lost answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [LoseAnswer(), Rewrite(lambda _: {}), Rewrite(lambda _: {"insert_models": None})])
@pytest.mark.row("S5")
def test_a_lost_upload_answer_creates_no_second_version(
    server: WallarooStandIn, instance: Instance, onnx: Path, lost: Any
) -> None:
    server.fault("POST", UPLOAD, lost)
    pushed = instance.push(onnx)
    (stored,) = instance.stored
    assert pushed.version == stored.uuid
    assert server.count("POST", UPLOAD) == 1


def test_an_upload_that_is_listed_late_is_found_all_the_same(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    server.fault("POST", UPLOAD, LoseAnswer())
    server.fault("POST", LISTING, Rewrite(lambda _: {"models": []}), nth=2, times=2)
    instance.push(onnx)
    assert len(instance.stored) == 1


@pytest.mark.parametrize("fault", [Reset(after=1000), Respond(500), Respond(502), Respond(503), html_error_page(504)])
def test_an_upload_that_failed_is_sent_again(
    server: WallarooStandIn, instance: Instance, onnx: Path, fault: Any
) -> None:
    server.fault("POST", UPLOAD, fault, times=2)
    assert instance.push(onnx).ready
    assert len(instance.stored) == 1
    assert server.count("POST", UPLOAD) == 3


def test_an_older_version_of_the_same_bytes_is_not_taken_for_the_lost_one(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    server.script_conversion(NAME, ["error"])
    instance.push(onnx)
    server.script_conversion(NAME, ["ready"])
    server.fault("POST", UPLOAD, Respond(500))
    pushed = instance.push(onnx)
    assert pushed.ready
    assert [stored.uuid == pushed.version for stored in instance.stored] == [False, True]


def test_a_try_that_ended_after_its_upload_leaves_nothing_to_send_to_the_next(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    server.fault("POST", VERSION, Respond(502), times=5)
    with pytest.raises(RegistryUnavailable):
        instance.push(onnx)
    again = Instance(server).push(onnx)
    assert again.transfer is not None
    assert again.transfer.skipped
    assert len(instance.stored) == 1


@pytest.mark.row("P1", "P3")
def test_a_killed_push_makes_no_second_version_whenever_it_is_killed(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    _ = instance.registry
    kills = sent = 0
    while killed_at(kills, lambda: instance.push(onnx)):
        kills += 1
        sent += len(instance.stored)
        assert len(instance.stored) <= 1
    assert kills > 3
    assert sent  # some were killed when the server had it already
    assert instance.push(onnx).version == instance.stored[0].uuid
    assert server.count("POST", UPLOAD) >= 1
    assert len(instance.stored) == 1


@pytest.mark.row("P13")
def test_a_failed_push_leaves_everything(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    server.fault("POST", UPLOAD, Respond(500), times=None)
    with pytest.raises(RegistryUnavailable):
        instance.push(onnx)
    assert server.count("POST", "/delete") == 0


# ---- numbers and UUIDs ------------------------------------------------------------------------------------------


def test_numbers_of_models_and_of_versions_are_never_mixed(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    """The first version gets a number that a stranger's model has: asking with the wrong one finds that."""
    pushed = instance.push(onnx)
    (stored,) = instance.stored
    assert stored.id in server.models
    assert stored.id != stored.model.id
    ref = ModelRef(name=NAME, version=pushed.version)
    assert instance.run(lambda registry: registry.config_of(ref))["id"] == stored.configs[-1]["id"]
    inserted = instance.run(lambda registry: registry.insert_config(ref, {"tensor_fields": ["x"]}))
    assert inserted["tensor_fields"] == stored.configs[-1]["tensor_fields"] == ["x"]
    stored.logs[:] = ["2026-01-01T00:00:00Z stdout F mine"]
    assert instance.run(lambda registry: registry.upload_logs(ref)) == stored.logs


def test_a_model_of_the_same_name_in_another_workspace_is_another_model(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    other = server.add_workspace("other-team")
    stranger = server.seed(other.id, NAME, onnx.read_bytes(), file_name="digits.onnx")
    pushed = instance.push(onnx)
    assert pushed.version != stranger.uuid
    assert [version.version for version in instance.list_versions()] == [pushed.version]
    with pytest.raises(ModelNotFound):
        instance.get(f"{NAME}:{stranger.uuid}")


@pytest.mark.parametrize("switches", [{"scoped_listing": False}, {"scoped_listing": False, "flat_listing": True}])
def test_older_instances_are_read_too(
    server: WallarooStandIn, instance: Instance, onnx: Path, switches: dict[str, bool]
) -> None:
    for name, value in switches.items():
        setattr(server, name, value)
    other = server.add_workspace("other-team")
    server.seed(other.id, NAME, b"another")
    first = instance.push(onnx)
    onnx.write_bytes(b"more weights")
    second = instance.push(onnx)
    assert [version.ref for version in instance.list_versions()] == [second.ref, first.ref]
    assert [version.ref for version in instance.list_models()] == [second.ref]
    assert Instance(server).get(first.ref) == instance.get(first.ref)


def test_a_known_version_is_read_by_its_number(server: WallarooStandIn, instance: Instance, onnx: Path) -> None:
    pushed = instance.push(onnx)
    before = server.count("POST", LISTING)
    assert instance.get(pushed.ref).ready
    assert server.count("POST", LISTING) == before
    assert server.find("POST", VERSION)[-1].body == {"model_version_id": instance.stored[0].id}


def test_a_version_that_is_no_uuid_is_refused_before_anything_is_sent(
    server: WallarooStandIn, instance: Instance
) -> None:
    with pytest.raises(InvalidInput, match="UUID"):
        instance.get(f"{NAME}:v1")
    with pytest.raises(InvalidInput, match="UUID"):
        instance.delete(f"{NAME}:1215")
    assert server.requests == []


def test_a_version_whose_file_is_not_known_has_no_digest(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    pushed = instance.push(onnx)

    def forget(answer: dict[str, Any]) -> dict[str, Any]:
        answer["model_version"]["model_version"] |= {
            "file_info": {"version": pushed.version, "sha": None, "file_name": None, "size": None},
            "conversion": None,
            "created_at": None,
            "more": {"than": "known"},
        }
        return answer

    server.fault("POST", VERSION, Rewrite(forget))
    found = instance.get(pushed.ref)
    assert (found.digest, found.size_bytes, found.created_at) == (None, None, None)


@pytest.mark.parametrize("broken", [Respond(200, b"<html>"), Respond(200, b"[]"), Rewrite(lambda _: {"models": 5})])
@pytest.mark.row("S7", of="calls")
def test_an_answer_that_is_not_as_expected_is_an_error_that_says_so(
    server: WallarooStandIn, instance: Instance, broken: Any
) -> None:
    server.fault("POST", LISTING, broken, times=None)
    with pytest.raises(RegistryUnavailable, match=r"listing the versions of digits: the answer is not"):
        instance.list_versions()


def test_an_error_in_either_shape_is_told(server: WallarooStandIn, instance: Instance) -> None:
    for body in (
        {"msg": "the disk is on fire", "code": 400},
        {"code": 400, "status": "Error", "error": "the disk is on fire", "source": "engine"},
        b"the disk is on fire",
    ):
        server.fault("POST", "/workspaces/list$", Respond(400, body))
        with pytest.raises(InvalidInput, match=r"400 Bad Request: the disk is on fire"):
            instance.test()


# ---- conversion -------------------------------------------------------------------------------------------------


def wait(instance: Instance, model: str, *, times: int = 10) -> ModelVersion:
    """Look again and again as a waiting task does."""
    for _ in range(times):
        try:
            found = instance.run(lambda registry: find_version(registry, model, Query()))
        except RegistryUnavailable:
            continue
        if found:
            return found
    raise AssertionError("not ready in time")


def test_a_wait_follows_the_conversion_through_native_and_container(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    server.conversion = ["pending_load_native", "attempting_load_native", "pending_load_container", "ready"]
    pushed = instance.push(onnx)
    assert wait(instance, pushed.ref).ready
    assert instance.stored[0].scripted[0] == "ready"


@pytest.mark.parametrize("fault", [Respond(503), Reset()])
def test_one_fault_in_the_middle_of_a_wait_does_not_end_it(
    server: WallarooStandIn, instance: Instance, onnx: Path, fault: Any
) -> None:
    server.conversion = ["pending_load_container"] * 3 + ["ready"]
    pushed = instance.push(onnx)
    server.fault("POST", VERSION, fault, nth=1, times=5)  # as often as one call is tried
    assert wait(instance, pushed.ref).ready


def test_a_failed_conversion_says_why_with_the_end_of_its_logs(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    long = "x" * 5000 + server.password
    lines = [f"2026-01-01T00:00:{second:02}Z stdout F line {second} {long}" for second in range(60)]
    server.script_conversion(
        NAME, ["error"], error_summary="Could not pip install user provided requirements.txt", logs=reversed(lines)
    )
    pushed = instance.push(onnx)
    assert pushed.status is VersionStatus.FAILED
    with pytest.raises(VersionFailed) as caught:
        wait(instance, pushed.ref)
    text = str(caught.value)
    assert pushed.ref in text
    assert "Could not pip install user provided requirements.txt" in text
    assert "line 40" in text
    assert "line 39" not in text
    assert text.index("line 40") < text.index("line 59")
    assert len(text) < 8192
    assert server.password not in text


def test_logs_that_cannot_be_read_do_not_hide_the_reason(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    server.script_conversion(NAME, ["error"], error_summary="no such package")
    server.fault("POST", "/get_upload_logs$", Respond(502), times=None)
    with pytest.raises(VersionFailed, match="no such package"):
        wait(instance, instance.push(onnx).ref)


@pytest.mark.row("S8")
def test_an_unknown_state_is_logged_once_and_waited_on(
    server: WallarooStandIn, instance: Instance, onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.conversion = ["quantizing"] * 4 + ["ready"]
    with caplog.at_level(logging.WARNING, "modelsync"):
        pushed = instance.push(onnx)
        assert pushed.status is VersionStatus.UNKNOWN
        assert wait(instance, pushed.ref).ready
    assert len([record for record in caplog.records if "quantizing" in record.getMessage()]) == 1


def test_the_newest_ready_version_is_chosen_and_neither_a_failed_nor_an_unfinished_one(
    server: WallarooStandIn, instance: Instance, tmp_path: Path
) -> None:
    pushed = []
    for word in ("ready", "error", "pending_load_container"):
        server.conversion = [word]
        (tmp_path / "m.onnx").write_text(word)
        pushed.append(instance.push(tmp_path / "m.onnx"))
    assert instance.get().ref == pushed[0].ref
    assert len(instance.list_versions()) == 3
    assert [version.ref for version in instance.list_models()] == [pushed[0].ref]


# ---- configuration, logs, images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tensor_field": ["x"]},
        {"batch_config": "single", "dynamic_batching_config": {"max_batch_delay_ms": 10}},
        {"batch_config": "single", "continuous_batching_config": {"max_concurrent_batch_size": 1}},
        {"filter_threshold": float("nan")},
    ],
)
def test_a_bad_configuration_is_refused_before_anything_is_sent(
    server: WallarooStandIn, instance: Instance, config: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        instance.run(lambda registry: registry.insert_config(ModelRef(name=NAME), config))
    assert caught.value.argument == "config"
    assert server.requests == []


def test_a_version_without_a_configuration_has_an_empty_one(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    instance.push(onnx)
    server.fault("POST", "/get_config_by_id$", Rewrite(lambda _: {"model_config": None}))
    assert instance.run(lambda registry: registry.config_of(ModelRef(name=NAME))) == {}


def test_an_image_is_registered_and_has_no_digest(instance: Instance) -> None:
    made = instance.run(lambda registry: registry.register_image(NAME, "example.com/team/model:1"))
    (stored,) = instance.stored
    assert (made.version, made.digest, stored.image_path) == (stored.uuid, None, "example.com/team/model:1")


# ---- workspaces -------------------------------------------------------------------------------------------------


def test_a_workspace_is_found_by_name_and_by_id(server: WallarooStandIn, onnx: Path) -> None:
    made = server.add_workspace(WORKSPACE)
    for wanted in (WORKSPACE, str(made.id), made.id):
        instance = Instance(server, {"workspace": wanted, "create_workspace": False})
        assert instance.run(lambda registry: registry.workspace_id()) == made.id
    assert server.count("POST", "/workspaces/create$") == 0


def test_an_unknown_workspace_is_refused_unless_it_may_be_made(server: WallarooStandIn) -> None:
    strict = Instance(server, {"create_workspace": False})
    for ask in (strict.list_models, strict.test):
        with pytest.raises(InvalidInput, match=WORKSPACE) as caught:
            ask()
        assert caught.value.argument == "workspace"
    assert Instance(server).list_models() == []
    assert [one.name for one in server.workspaces.values()][-1] == WORKSPACE


def test_the_connection_test_makes_no_workspace(server: WallarooStandIn, instance: Instance) -> None:
    said = instance.test()
    assert server.username in said
    assert WORKSPACE in said
    assert server.count("POST", "/workspaces/create$") == 0


def test_without_a_name_the_users_own_workspace_is_taken(server: WallarooStandIn) -> None:
    server.add_workspace("other-team")
    mine = server.add_workspace(f"{server.username} - Default Workspace")
    instance = Instance(server, {"workspace": None, "create_workspace": False})
    assert instance.run(lambda registry: registry.workspace_id()) == mine.id


def test_without_a_name_a_choice_of_workspaces_is_refused(server: WallarooStandIn) -> None:
    for name in ("one-team", "other-team"):
        server.add_workspace(name)
    with pytest.raises(InvalidInput, match="one-team, other-team"):
        Instance(server, {"workspace": None}).list_models()


def test_a_workspace_that_another_run_makes_meanwhile_is_taken(server: WallarooStandIn) -> None:
    made = server.add_workspace(WORKSPACE)
    server.fault("POST", "/workspaces/list$", Rewrite(lambda _: {"workspaces": []}))
    assert Instance(server).run(lambda registry: registry.workspace_id()) == made.id


@pytest.mark.parametrize("status", [400, 500])
def test_a_workspace_that_exists_out_of_sight_is_told(server: WallarooStandIn, status: int) -> None:
    server.duplicate_workspace_status = status
    with pytest.raises(ModelSyncError, match="where this user does not see it"):
        Instance(server, {"workspace": "stranger-ws"}).list_models()


def test_a_workspace_of_a_bad_name_is_not_made(server: WallarooStandIn) -> None:
    with pytest.raises(InvalidInput) as caught:
        Instance(server, {"workspace": "My Team"}).list_models()
    assert caught.value.argument == "workspace"
    assert server.count("POST", "/workspaces/create$") == 0


# ---- deleting ---------------------------------------------------------------------------------------------------


def test_only_the_named_version_is_deleted(instance: Instance, onnx: Path) -> None:
    first = instance.push(onnx)
    onnx.write_bytes(b"other")
    second = instance.push(onnx)
    assert instance.delete(first.ref) is True
    assert [stored.uuid for stored in instance.stored] == [second.version]
    assert instance.delete(first.ref) is False


def test_without_a_version_nothing_is_deleted(server: WallarooStandIn, instance: Instance) -> None:
    with pytest.raises(InvalidInput, match="name the version"):
        instance.delete(NAME)
    assert server.requests == []


def test_a_version_that_a_pipeline_serves_is_not_deleted_and_the_error_says_what_to_do(
    server: WallarooStandIn, instance: Instance, onnx: Path
) -> None:
    pushed = instance.push(onnx)
    server.fault("POST", "/delete_model_versions$", Respond(409, {"msg": "model version is deployed", "code": 409}))
    with pytest.raises(VersionConflict, match="undeploy"):
        instance.delete(pushed.ref)
    assert len(instance.stored) == 1


# ---- faults that every call meets -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Respond(502), Respond(503), Respond(429), html_error_page(500), Reset()])
def test_reads_are_tried_again(server: WallarooStandIn, instance: Instance, fault: Any) -> None:
    server.fault("POST", "/workspaces/list$", fault, times=3)
    assert instance.test()


@pytest.mark.parametrize("fault", [Respond(500), Reset()])
def test_a_change_is_not_made_twice(server: WallarooStandIn, instance: Instance, onnx: Path, fault: Any) -> None:
    instance.push(onnx)
    server.fault("POST", "/insert_model_config$", fault, times=None)
    with pytest.raises(RegistryUnavailable):
        instance.run(lambda registry: registry.insert_config(ModelRef(name=NAME), {"tensor_fields": ["x"]}))
    assert server.count("POST", "/insert_model_config$") == 1


@pytest.mark.row("A3", of="calls")
def test_a_forbidden_call_names_what_was_done(server: WallarooStandIn, instance: Instance) -> None:
    server.fault("POST", "/workspaces/list$", Respond(403, {"msg": "no permission"}))
    with pytest.raises(Unauthorized, match="listing the workspaces"):
        instance.test()


def test_nothing_is_pulled(instance: Instance) -> None:
    with (
        pytest.raises(NotSupported, match=r"gives no artifact back.*SyncModelsOperator"),
        driver_for(instance.registry),
    ):
        instance.registry.plan_pull(ModelVersion(registry="wallaroo", name=NAME, version=UUID, status="ready"))

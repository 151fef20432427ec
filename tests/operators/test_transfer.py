"""Push and pull as tasks."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, TaskDeferred
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.support.scripted import Script
from tests.support.versions import serialize

VERSION_KEYS = {
    "registry",
    "name",
    "version",
    "ref",
    "status",
    "digest",
    "size_bytes",
    "labels",
    "metadata",
    "created_at",
    "uri",
}
NONSENSE = [None, {}, {"status": "success"}, {"status": "success", "ref": None}, {"status": "odd"}, {"message": "?"}]


def push(source: Path, **arguments: Any) -> PushModelOperator:
    """Return a push of ``digits:v1``."""
    return PushModelOperator(**{"task_id": "push", "model": "digits:v1", "source": source, **arguments})


def scripted_push(source: Path, **arguments: Any) -> PushModelOperator:
    """Return a push to the registry whose versions are ready when the script says so."""
    return push(source, registry_conn_id="scripted", poll_interval=0.01, **arguments)


def assert_plain(value: Any) -> None:
    """Whether a value is JSON that Airflow stores as it is, of a size that fits."""
    assert json.loads(json.dumps(value)) == value == serialize(value)
    assert len(json.dumps(value).encode()) <= XCOM_LIMIT


class TestPush:
    def test_returns_the_version_as_a_plain_dictionary(self, modelstore: Path, source: Path, context: Any) -> None:
        pushed = push(source, labels={"stage": "candidate"}, metadata={"accuracy": 0.9}).execute(context)

        assert_plain(pushed)
        assert VERSION_KEYS | {"skipped", "resumed_bytes"} <= pushed.keys()
        assert "raw" not in pushed
        facts = (pushed["ref"], pushed["registry"], pushed["status"], pushed["skipped"], pushed["resumed_bytes"])
        assert facts == ("digits:v1", "modelstore", "ready", False, 0)
        assert pushed["digest"] == digest_directory(source)
        assert pushed["uri"] == (modelstore / "digits" / "v1").as_uri()

    @pytest.mark.row("P14", of="tasks")
    def test_returns_at_most_4_kib_however_large_the_metadata(
        self, modelstore: Path, source: Path, context: Any
    ) -> None:
        pushed = push(source, metadata={"notes": "ü" * 10_000}, labels={"stage": "candidate"}).execute(context)

        assert_plain(pushed)
        assert (pushed["metadata"], pushed["labels"], pushed["truncated"]) == ({}, {"stage": "candidate"}, True)
        assert ModelStoreHook("modelsync_default").get("digits:v1").metadata == {"notes": "ü" * 10_000}

    def test_drops_large_labels_after_the_metadata(self, modelstore: Path, source: Path, context: Any) -> None:
        labels = {f"label-{number}": "x" * 100 for number in range(100)}
        pushed = push(source, metadata={"notes": "x" * 10_000}, labels=labels).execute(context)

        assert_plain(pushed)
        assert (pushed["metadata"], pushed["labels"], pushed["truncated"]) == ({}, {}, True)

    def test_repeated_sends_nothing(self, modelstore: Path, source: Path, context: Any) -> None:
        first, second = push(source, model="digits").execute(context), push(source, model="digits").execute(context)

        assert (first["skipped"], second["skipped"]) == (False, True)
        assert first["ref"] == second["ref"]

    def test_of_other_bytes_is_a_permanent_conflict(self, modelstore: Path, source: Path, context: Any) -> None:
        push(source).execute(context)
        (source / "weights.bin").write_bytes(b"other")

        with pytest.raises(AirflowFailException, match=r"digits:v1 exists.*modelsync_default"):
            push(source).execute(context)

    def test_with_force_replaces_the_version(self, modelstore: Path, source: Path, context: Any) -> None:
        push(source).execute(context)
        (source / "weights.bin").write_bytes(b"other")

        assert push(source, force=True).execute(context)["digest"] == digest_directory(source)

    def test_of_the_same_bytes_merges_labels_and_tells_of_metadata(
        self, modelstore: Path, source: Path, context: Any
    ) -> None:
        first = push(source, labels={"a": "1"}, metadata={"auc": 0.5}).execute(context)
        again = push(source, labels={"b": "2"}, metadata={"auc": 0.9}).execute(context)

        assert "metadata_kept" not in first
        assert (again["skipped"], again["labels"], again["metadata_kept"]) == (True, {"a": "1", "b": "2"}, False)

    def test_of_chosen_files_and_links(self, modelstore: Path, source: Path, tmp_path: Path, context: Any) -> None:
        plain = push(source, model="digits").execute(context)
        (source / "again.bin").symlink_to("weights.bin")
        (source / "notes.md").touch()
        chosen = push(source, model="digits", exclude="['again.bin', '*.md']").execute(context)
        pulled = PullModelOperator(
            task_id="pull", model=chosen, target=tmp_path / "part", include=["weights.*"]
        ).execute(context)

        assert chosen["ref"] == plain["ref"]
        assert (pulled["partial"], pulled["digest"]) == (True, plain["digest"])
        assert pulled["path_digest"] == digest_directory(tmp_path / "part")
        assert [path.name for path in (tmp_path / "part").iterdir()] == ["weights.bin"]
        with pytest.raises(AirflowFailException, match=r"symbolic link.*argument 'source'"):
            push(source, follow_links="never").execute(context)
        with pytest.raises(AirflowFailException, match="argument 'follow_links'"):
            push(source, follow_links="always").execute(context)

    def test_takes_a_single_file(self, modelstore: Path, source: Path, context: Any) -> None:
        pushed = push(source / "weights.bin").execute(context)

        assert pushed["size_bytes"] == 10_240

    def test_refuses_what_the_registry_does_not_understand(self, modelstore: Path, source: Path, context: Any) -> None:
        with pytest.raises(AirflowFailException, match=r"'framework'.*argument 'options'"):
            push(source, options={"framework": "onnx"}).execute(context)
        assert not modelstore.exists()

    def test_of_a_missing_source_is_permanent(self, modelstore: Path, tmp_path: Path, context: Any) -> None:
        with pytest.raises(AirflowFailException, match="does not exist"):
            push(tmp_path / "absent").execute(context)

    def test_to_a_store_below_a_missing_directory_is_permanent(
        self, connect: Any, tmp_path: Path, source: Path, context: Any
    ) -> None:
        connect("modelsync_default", conn_type="modelstore", host=(tmp_path / "unmounted" / "store").as_uri())

        with pytest.raises(AirflowFailException, match="does not exist"):
            push(source).execute(context)
        assert not (tmp_path / "unmounted").exists()


class TestPushThatWaits:
    def test_returns_once_the_version_is_ready(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting", "converting", "converting", "ready"])

        assert scripted_push(source).execute(context)["status"] == "ready"
        assert script.rest == ["ready"]

    @pytest.mark.row("S3", of="tasks")
    def test_goes_on_over_passing_faults(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting", "unavailable", "ready"])

        assert scripted_push(source).execute(context)["status"] == "ready"

    @pytest.mark.row("S3", of="tasks")
    def test_goes_on_while_the_state_goes_back_and_forth(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting", "pending", "unknown", "uploading", "converting", "ready", "failed"])

        assert scripted_push(source).execute(context)["status"] == "ready"
        assert script.rest == ["failed"]

    def test_looks_no_further_when_the_version_is_ready_at_once(
        self, script: Script, source: Path, context: Any
    ) -> None:
        script.write(["ready", "failed"])

        assert scripted_push(source, deferrable=True).execute(context)["status"] == "ready"
        assert script.rest == ["failed"]

    def test_returns_at_once_when_it_need_not_wait(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting"])

        assert scripted_push(source, wait_for_ready=False).execute(context)["status"] == "converting"

    @pytest.mark.row("S2", of="tasks")
    def test_fails_for_good_when_the_version_does(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting", "failed"])

        with pytest.raises(AirflowFailException, match="digits:v1 has failed"):
            scripted_push(source).execute(context)

    def test_fails_for_good_on_a_permanent_error(self, script: Script, source: Path, context: Any) -> None:
        script.write(["converting", "unauthorized"])

        with pytest.raises(AirflowFailException, match="refused"):
            scripted_push(source).execute(context)

    @pytest.mark.parametrize("timeout", [0, timedelta(0)])
    @pytest.mark.row("S1", of="tasks")
    def test_gives_up_in_time_and_may_be_retried(
        self, script: Script, source: Path, context: Any, timeout: float | timedelta
    ) -> None:
        script.write(["converting"])

        with pytest.raises(AirflowException, match="not ready after 0 s: digits:v1 is converting") as raised:
            scripted_push(source, ready_timeout=timeout).execute(context)
        assert not isinstance(raised.value, AirflowFailException)


class TestDeferredPush:
    @pytest.fixture
    def deferral(self, script: Script, source: Path, context: Any) -> TaskDeferred:
        """How a push goes to sleep whose version is not ready."""
        script.write(["converting", "ready"])
        with pytest.raises(TaskDeferred) as deferred:
            scripted_push(source, deferrable=True, ready_timeout=600).execute(context)
        return deferred.value

    def test_leaves_a_trigger_that_airflow_can_store(self, deferral: TaskDeferred) -> None:
        path, arguments = deferral.trigger.serialize()

        assert path == "airflow_provider_modelsync.triggers.model.ModelVersionTrigger"
        assert_plain(arguments)
        assert ModelVersionTrigger(**arguments).serialize() == (path, arguments)
        assert (arguments["registry_conn_id"], arguments["model"]) == ("scripted", "digits:v1")

    def test_leaves_what_it_must_remember_as_plain_json(self, deferral: TaskDeferred) -> None:
        assert deferral.method_name == "execute_complete"
        assert_plain(deferral.kwargs)

    def test_is_ended_by_airflow_only_after_the_triggers_own_deadline(self, deferral: TaskDeferred) -> None:
        deadline = deferral.trigger.serialize()[1]["deadline"]

        assert isinstance(deferral.timeout, timedelta)
        assert deadline < time.time() + deferral.timeout.total_seconds()

    @pytest.mark.row("P7", "P8", of="tasks")
    def test_is_completed_by_a_new_instance(self, deferral: TaskDeferred, source: Path, context: Any) -> None:
        event = {"status": "success", "ref": "digits:v1", "message": "it is there"}
        again = scripted_push(source, deferrable=True)

        for _ in range(2):  # Airflow may deliver an event twice
            completed = again.execute_complete(context, event, **deferral.kwargs or {})
            assert_plain(completed)
            assert VERSION_KEYS | {"skipped", "resumed_bytes"} <= completed.keys()
            assert (completed["ref"], completed["status"], completed["skipped"]) == ("digits:v1", "ready", False)

    @pytest.mark.parametrize("event", NONSENSE, ids=str)
    @pytest.mark.row("P11", of="tasks")
    def test_refuses_an_event_that_is_no_outcome(self, script: Script, source: Path, context: Any, event: Any) -> None:
        with pytest.raises(AirflowException, match="no outcome") as raised:
            scripted_push(source).execute_complete(context, event, transfer={})
        assert not isinstance(raised.value, AirflowFailException)

    def test_may_be_retried_after_a_timeout(self, script: Script, source: Path, context: Any) -> None:
        with pytest.raises(AirflowException, match="too late") as raised:
            scripted_push(source).execute_complete(context, {"status": "timeout", "message": "too late"}, transfer={})
        assert not isinstance(raised.value, AirflowFailException)

    @pytest.mark.parametrize("permanent", [True, False])
    def test_fails_as_the_trigger_did(self, script: Script, source: Path, context: Any, permanent: bool) -> None:
        event = {"status": "failed", "message": "VersionFailed: gone", "permanent": permanent}

        with pytest.raises(AirflowException, match="VersionFailed: gone") as raised:
            scripted_push(source).execute_complete(context, event, transfer={})
        assert isinstance(raised.value, AirflowFailException) is permanent


class TestPull:
    @pytest.fixture(autouse=True)
    def pushed(self, modelstore: Path, source: Path) -> None:
        """A store with two versions of one model."""
        hook = ModelStoreHook("modelsync_default")
        hook.push(source, "digits:v1", labels={"stage": "production"}, metadata={"notes": "x" * 10_000})
        (source / "weights.bin").write_bytes(b"newer")
        hook.push(source, "digits:v2")

    def test_fills_the_target_and_returns_a_plain_dictionary(self, source: Path, tmp_path: Path, context: Any) -> None:
        target = tmp_path / "pulled"
        pulled = PullModelOperator(task_id="pull", model="digits", target=str(target)).execute(context)

        assert_plain(pulled)
        assert VERSION_KEYS | {"path", "skipped"} <= pulled.keys()
        assert (pulled["ref"], pulled["path"], pulled["skipped"]) == ("digits:v2", str(target), False)
        assert digest_directory(target) == pulled["digest"] == digest_directory(source)

    def test_returns_at_most_4_kib_however_large_the_metadata(self, tmp_path: Path, context: Any) -> None:
        pulled = PullModelOperator(task_id="pull", model="digits:v1", target=tmp_path / "pulled").execute(context)

        assert_plain(pulled)
        assert (pulled["metadata"], pulled["truncated"]) == ({}, True)

    @pytest.mark.parametrize("choice", [{"labels": {"stage": "production"}}, {"query": "label:stage=production"}])
    def test_chooses_by_labels_and_query(self, tmp_path: Path, context: Any, choice: dict[str, Any]) -> None:
        pulled = PullModelOperator(task_id="pull", model="digits", target=tmp_path / "p", **choice).execute(context)

        assert pulled["ref"] == "digits:v1"

    def test_repeated_pulls_nothing(self, tmp_path: Path, context: Any) -> None:
        operator = PullModelOperator(task_id="pull", model="digits:v1", target=tmp_path / "pulled")
        operator.execute(context)

        assert operator.execute(context)["skipped"] is True

    def test_of_another_version_replaces_what_the_last_one_has_put_there(self, tmp_path: Path, context: Any) -> None:
        arguments: dict[str, Any] = {"task_id": "pull", "target": tmp_path / "pulled"}
        PullModelOperator(model="digits:v1", **arguments).execute(context)
        assert PullModelOperator(model="digits:v2", **arguments).execute(context)["ref"] == "digits:v2"
        assert (tmp_path / "pulled" / "weights.bin").read_bytes() == b"newer"

        (tmp_path / "pulled" / "weights.bin").write_bytes(b"somebody's own")
        with pytest.raises(AirflowFailException, match="force"):
            PullModelOperator(model="digits:v1", **arguments).execute(context)
        assert PullModelOperator(model="digits:v1", force=True, **arguments).execute(context)["ref"] == "digits:v1"

    def test_of_a_missing_model_is_permanent(self, tmp_path: Path, context: Any) -> None:
        with pytest.raises(AirflowFailException, match=r"'absent'.*modelsync_default"):
            PullModelOperator(task_id="pull", model="absent", target=tmp_path / "pulled").execute(context)

    def test_of_damaged_bytes_is_permanent_unless_they_are_not_verified(
        self, modelstore: Path, tmp_path: Path, context: Any
    ) -> None:
        stored = modelstore / "digits" / "v2" / "weights.bin"
        stored.chmod(0o644)
        stored.write_bytes(b"wrong")
        arguments: dict[str, Any] = {"task_id": "pull", "model": "digits:v2", "target": tmp_path / "pulled"}

        with pytest.raises(AirflowFailException, match="stored bytes of digits:v2"):
            PullModelOperator(**arguments).execute(context)
        assert not (tmp_path / "pulled").exists()
        assert PullModelOperator(verify=False, **arguments).execute(context)["ref"] == "digits:v2"

    @pytest.mark.parametrize("gate", [{"allowed_formats": ["onnx"]}, {"scan": "false"}], ids=str)
    def test_of_what_a_gate_refuses_is_permanent_and_leaves_nothing(
        self, tmp_path: Path, context: Any, gate: dict[str, Any]
    ) -> None:
        with pytest.raises(AirflowFailException, match=f"argument '{next(iter(gate))}'"):
            PullModelOperator(task_id="pull", model="digits", target=tmp_path / "pulled", **gate).execute(context)
        assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("choice", [{"labels": {"stage": "approved"}}, {"query": "label:stage=approved"}], ids=str)
def test_an_exact_version_without_the_label_is_not_pulled(
    modelstore: Path, source: Path, tmp_path: Path, context: Any, choice: dict[str, Any]
) -> None:
    ModelStoreHook("modelsync_default").push(source, "digits:v1", labels={"stage": "dev"})
    target = tmp_path / "pulled"

    with pytest.raises(AirflowFailException, match=r"label 'stage' is 'dev', not 'approved'.*digits:v1"):
        PullModelOperator(task_id="pull", model="digits:v1", target=str(target), **choice).execute(context)
    assert not target.exists()

"""Waiting for a model version, on a worker and through the triggerer."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, PokeReturnValue

from airflow_provider_modelsync.compat import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from tests.support.scripted import Script
from tests.support.versions import serialize

NONSENSE = [None, {}, {"status": "success"}, {"status": "success", "ref": 7}, {"status": "odd"}, {"message": "?"}]


@pytest.fixture
def hook(modelstore: Path) -> ModelStoreHook:
    return ModelStoreHook("modelsync_default")


def sensor(**arguments: Any) -> ModelVersionSensor:
    """Return a sensor that looks often."""
    return ModelVersionSensor(
        **{"task_id": "wait", "model": "digits", "poke_interval": 0.01, "timeout": 60, **arguments}
    )


def looks_and_finds(context: Any, **arguments: Any) -> str | None:
    """Look once; return the reference of what is there."""
    seen = sensor(**arguments).poke(context)
    assert isinstance(seen, PokeReturnValue)
    assert bool(seen) is (seen.xcom_value is not None)
    return seen.xcom_value["ref"] if seen.xcom_value else None


@pytest.fixture
def two_versions(hook: ModelStoreHook, source: Path) -> datetime:
    """Push ``v1``, labelled, and ``v2``; return a moment between the two."""
    hook.push(source, "digits:v1", labels={"stage": "production"})
    between = datetime.now(UTC)
    (source / "weights.bin").write_bytes(b"newer")
    hook.push(source, "digits:v2")
    return between


class TestLook:
    def test_a_model_that_does_not_exist_is_not_there_yet(self, modelstore: Path, context: Any) -> None:
        assert looks_and_finds(context) is None
        assert looks_and_finds(context, model="digits:v1") is None

    def test_finds_the_newest_ready_version(self, two_versions: datetime, context: Any) -> None:
        assert looks_and_finds(context) == looks_and_finds(context, model="digits:latest") == "digits:v2"

    def test_finds_an_exact_version(self, two_versions: datetime, context: Any) -> None:
        assert looks_and_finds(context, model="digits:v1") == "digits:v1"
        assert looks_and_finds(context, model="digits:v3") is None

    def test_chooses_by_labels(self, two_versions: datetime, context: Any) -> None:
        assert looks_and_finds(context, labels={"stage": "production"}) == "digits:v1"
        assert looks_and_finds(context, labels={"stage": "archived"}) is None

    def test_labels_count_for_an_exact_version(
        self, two_versions: datetime, hook: ModelStoreHook, context: Any
    ) -> None:
        assert looks_and_finds(context, model="digits:v2", labels={"stage": "production"}) is None
        hook.set_labels("digits:v2", {"stage": "production"})
        assert looks_and_finds(context, model="digits:v2", labels={"stage": "production"}) == "digits:v2"

    def test_a_version_that_is_not_ready_is_not_there_yet(self, script: Script, source: Path, context: Any) -> None:
        push_digits(source)
        script.write(["converting", "ready"])

        found = [looks_and_finds(context, registry_conn_id="scripted", model="digits:v1") for _ in range(2)]
        assert found == [None, "digits:v1"]

    def test_an_exact_version_that_has_failed_is_permanent(self, script: Script, source: Path, context: Any) -> None:
        push_digits(source)
        script.write(["failed"])

        with pytest.raises(AirflowFailException, match="digits:v1 has failed"):
            looks_and_finds(context, registry_conn_id="scripted", model="digits:v1")


class TestNewerThan:
    @pytest.mark.parametrize(("version", "found"), [("v1", "digits:v2"), ("v2", None)])
    def test_a_version(self, two_versions: datetime, context: Any, version: str, found: str | None) -> None:
        assert looks_and_finds(context, newer_than=version) == found

    @pytest.mark.parametrize("offset", [UTC, None])
    def test_a_time(self, two_versions: datetime, context: Any, offset: Any) -> None:
        now = datetime.now(UTC)

        assert looks_and_finds(context, newer_than=two_versions.replace(tzinfo=offset).isoformat()) == "digits:v2"
        assert looks_and_finds(context, newer_than=now.replace(tzinfo=offset).isoformat()) is None

    def test_a_version_of_a_model_that_does_not_exist_yet(self, modelstore: Path, context: Any) -> None:
        assert looks_and_finds(context, newer_than="v1") is None

    def test_what_is_neither_is_permanent(self, two_versions: datetime, context: Any) -> None:
        with pytest.raises(AirflowFailException, match=r"'last week'.*'newer_than'"):
            looks_and_finds(context, newer_than="last week")

    def test_together_with_an_exact_version_is_permanent(self, two_versions: datetime, context: Any) -> None:
        with pytest.raises(AirflowFailException, match="newer_than"):
            looks_and_finds(context, model="digits:v2", newer_than="v1")


class TestOnAWorker:
    def test_returns_the_version_as_a_plain_dictionary(self, two_versions: datetime, context: Any) -> None:
        found = sensor().execute(context)

        assert json.loads(json.dumps(found)) == found == serialize(found)
        assert (found["ref"], found["status"]) == ("digits:v2", "ready")

    def test_goes_on_over_passing_faults(self, script: Script, source: Path, context: Any) -> None:
        push_digits(source)
        script.write(["unavailable", "converting", "unavailable", "ready"])

        assert sensor(registry_conn_id="scripted").execute(context)["ref"] == "digits:v1"
        assert script.rest == ["ready"]

    def test_ends_on_a_permanent_error(self, script: Script, source: Path, context: Any) -> None:
        script.write(["unauthorized", "ready"])

        with pytest.raises(AirflowFailException, match="refused"):
            sensor(registry_conn_id="scripted").execute(context)

    @pytest.mark.parametrize(("soft_fail", "end"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
    def test_times_out(self, modelstore: Path, context: Any, soft_fail: bool, end: type[Exception]) -> None:
        with pytest.raises(end):
            sensor(timeout=0.05, soft_fail=soft_fail).execute(context)

    def test_refuses_a_state_that_the_registry_does_not_know(self, two_versions: datetime, context: Any) -> None:
        with pytest.raises(AirflowFailException, match=r"'loaded'.*'state'"):
            sensor(state="loaded").execute(context)


def told_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the provider has told, without the numbers of a moment."""
    return [re.sub(r"since [-0-9: ]+ UTC", "since …", r.getMessage()) for r in caplog.records if r.name == "modelsync"]


class TestWords:
    """What the sensor says while it waits: at the start, at each change, and at the end."""

    def test_each_state_is_told_once(
        self, script: Script, source: Path, context: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        push_digits(source)
        script.write(["converting", "converting", "unavailable", "uploading", "uploading", "ready"])
        caplog.clear()
        caplog.set_level(logging.INFO)

        sensor(registry_conn_id="scripted", model="digits:v1", timeout=600).execute(context)

        assert told_by(caplog) == [
            "waiting up to 10 min for digits:v1 on scripted, looking every 0.0 s",
            "not yet: digits:v1 is converting since …",
            "the server answered 503 [model 'digits:v1', connection 'scripted']; the wait goes on",
            "not yet: digits:v1 is uploading since …",
            "the wait is over: digits:v1 is there",
        ]

    def test_a_registry_that_never_answers_is_told_when_time_is_over(
        self, script: Script, source: Path, context: Any
    ) -> None:
        push_digits(source)
        script.write(["unavailable"])

        with pytest.raises(AirflowSensorTimeout, match=r"digits:v1 was not there within .*: the server answered 503"):
            sensor(registry_conn_id="scripted", model="digits:v1", timeout=0.05).execute(context)

    @pytest.mark.parametrize(
        ("model", "there"),
        [
            ("digist", "there is no model 'digist' yet: did you mean 'digits'?"),
            ("digits:v9", "digits has 2 versions, no version v9; the newest is v2, which is ready"),
        ],
    )
    def test_what_is_absent_is_not_what_is_on_its_way(
        self, two_versions: datetime, context: Any, caplog: pytest.LogCaptureFixture, model: str, there: str
    ) -> None:
        caplog.set_level(logging.INFO)

        with pytest.raises(AirflowSensorTimeout, match=re.escape(there)):
            sensor(model=model, timeout=0.05).execute(context)

        assert f"not yet: it is not there: {there}" in told_by(caplog)

    def test_what_the_triggerer_did_not_find_is_told_as_well(
        self, two_versions: datetime, context: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        event = {"status": "timeout", "message": "digist was not ready when the time was over: it is not there"}

        with pytest.raises(AirflowSensorTimeout, match=r"it is not there: .* did you mean 'digits'\?"):
            sensor(model="digist", deferrable=True).execute_complete(context, event)


class TestDeferred:
    def test_returns_at_once_when_the_version_is_there(self, two_versions: datetime, context: Any) -> None:
        assert sensor(deferrable=True).execute(context)["ref"] == "digits:v2"

    @pytest.fixture
    def deferral(self, modelstore: Path, context: Any) -> TaskDeferred:
        """How a sensor goes to sleep."""
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, labels={"stage": "production"}, newer_than="v1", poke_interval=30).execute(context)
        return deferred.value

    def test_leaves_a_trigger_that_airflow_can_store(self, deferral: TaskDeferred) -> None:
        path, arguments = deferral.trigger.serialize()

        assert path == "airflow_provider_modelsync.triggers.model.ModelVersionTrigger"
        assert json.loads(json.dumps(arguments)) == arguments == serialize(arguments)
        assert ModelVersionTrigger(**arguments).serialize() == (path, arguments)

    def test_leaves_every_argument_to_the_trigger(self, deferral: TaskDeferred) -> None:
        arguments = deferral.trigger.serialize()[1]

        assert arguments.pop("deadline") == pytest.approx(time.time() + 60, abs=60)
        assert arguments == {
            "registry_conn_id": "modelsync_default",
            "model": "digits",
            "labels": {"stage": "production"},
            "newer_than": "v1",
            "state": "ready",
            "poll_interval": 30.0,
            "manner": None,
        }

    def test_a_version_that_is_deleted_meanwhile_still_counts(
        self, two_versions: datetime, hook: ModelStoreHook, source: Path, context: Any
    ) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, newer_than="v2").execute(context)
        waiting = deferred.value.trigger
        assert waiting.serialize()[1]["newer_than"].startswith("v2 20")
        hook.delete("digits:v2")

        assert asyncio.run(waiting.look(ModelStoreHook("modelsync_default"))) is None
        hook.push(source, "digits:v3")
        assert asyncio.run(waiting.look(ModelStoreHook("modelsync_default")))["ref"] == "digits:v3"

    def test_leaves_its_manner_to_the_trigger(self, modelstore: Path, context: Any) -> None:
        wanted = {"exponential_backoff": True, "max_wait": timedelta(minutes=2), "silent_fail": True}
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, **wanted).execute(context)

        manner = deferred.value.trigger.serialize()[1]["manner"]
        assert manner == {"exponential_backoff": True, "max_wait": 120.0, "silent_fail": True}

    def test_waits_no_longer_than_the_execution_timeout(self, modelstore: Path, context: Any) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, timeout=3600, execution_timeout=timedelta(seconds=60)).execute(context)

        assert deferred.value.trigger.serialize()[1]["deadline"] <= time.time() + 60

    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.parametrize(
        ("manner", "end"), [({"soft_fail": True}, Exception), ({"never_fail": True}, AirflowSkipException)], ids=str
    )
    def test_a_missing_connection_ends_it_alike_wherever_it_waits(
        self, modelstore: Path, context: Any, deferrable: bool, manner: dict[str, bool], end: type[Exception]
    ) -> None:
        with pytest.raises(end) as ended:
            sensor(registry_conn_id="nowhere", deferrable=deferrable, **manner).execute(context)
        assert isinstance(ended.value, AirflowSkipException) is (end is AirflowSkipException)

    def test_a_missing_connection_is_waited_for_in_silence(self, modelstore: Path, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            sensor(registry_conn_id="nowhere", deferrable=True, silent_fail=True).execute(context)

    def test_what_may_pass_is_no_reason_to_skip(self, modelstore: Path, context: Any) -> None:
        event = {"status": "failed", "message": "OSError: odd", "permanent": False}

        with pytest.raises(Exception, match="OSError: odd") as ended:
            sensor(deferrable=True, soft_fail=True).resume_execution("execute_complete", {"event": event}, context)
        assert not isinstance(ended.value, AirflowSkipException)

    def test_is_ended_by_airflow_only_after_the_triggers_own_deadline(self, deferral: TaskDeferred) -> None:
        assert isinstance(deferral.timeout, timedelta)
        assert deferral.trigger.serialize()[1]["deadline"] < time.time() + deferral.timeout.total_seconds()

    def test_defers_over_a_passing_fault(self, script: Script, context: Any) -> None:
        script.write(["unavailable"])

        with pytest.raises(TaskDeferred):
            sensor(registry_conn_id="scripted", deferrable=True).execute(context)

    @pytest.mark.parametrize(("soft_fail", "end"), [(False, AirflowFailException), (True, AirflowSkipException)])
    def test_ends_at_once_on_a_permanent_error(
        self, two_versions: datetime, context: Any, soft_fail: bool, end: type[Exception]
    ) -> None:
        with pytest.raises(end):
            sensor(deferrable=True, newer_than="last week", soft_fail=soft_fail).execute(context)

    def test_is_completed_by_a_new_instance(self, two_versions: datetime, context: Any) -> None:
        event = {"status": "success", "ref": "digits:v1", "message": "it is there"}

        for _ in range(2):  # Airflow may deliver an event twice
            assert sensor(deferrable=True).execute_complete(context, event)["ref"] == "digits:v1"

    @pytest.mark.parametrize("event", NONSENSE, ids=str)
    def test_refuses_an_event_that_is_no_outcome(self, modelstore: Path, context: Any, event: Any) -> None:
        with pytest.raises(AirflowException, match="no outcome") as raised:
            sensor(deferrable=True).execute_complete(context, event)
        assert not isinstance(raised.value, AirflowFailException | AirflowSensorTimeout)

    @pytest.mark.parametrize("permanent", [True, False])
    def test_fails_as_the_trigger_did(self, modelstore: Path, context: Any, permanent: bool) -> None:
        event = {"status": "failed", "message": "VersionFailed: gone", "permanent": permanent}

        with pytest.raises(AirflowException, match="VersionFailed: gone") as raised:
            sensor(deferrable=True).execute_complete(context, event)
        assert isinstance(raised.value, AirflowFailException) is permanent

    @pytest.mark.parametrize(("soft_fail", "end"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
    def test_times_out(self, modelstore: Path, context: Any, soft_fail: bool, end: type[Exception]) -> None:
        event = {"status": "timeout", "message": "digits was not there when the time was over"}

        with pytest.raises(end):
            sensor(deferrable=True, soft_fail=soft_fail).resume_execution("execute_complete", {"event": event}, context)


def test_every_text_argument_is_templated() -> None:
    with DAG("templates"):
        templated = sensor(
            registry_conn_id="{{ name }}", model="{{ name }}", labels={"k": "{{ name }}"}, newer_than="{{ name }}"
        )
    templated.render_template_fields({"name": "digits"})

    rendered = {name: getattr(templated, name) for name in templated.template_fields}
    assert rendered == {
        "state": "ready",
        "deferrable": False,
        "registry_conn_id": "digits",
        "model": "digits",
        "labels": {"k": "digits"},
        "newer_than": "digits",
    }


def test_it_maps_over_its_arguments() -> None:
    with DAG("mapped"):
        mapped = ModelVersionSensor.partial(task_id="wait", newer_than="v1").expand(model=["digits", "letters"])
    one = mapped.unmap({"model": "letters"})

    assert isinstance(one, ModelVersionSensor)
    assert (one.model, one.newer_than, one.registry_conn_id) == ("letters", "v1", "modelsync_default")


def push_digits(source: Path) -> None:
    """Push ``digits:v1`` to the scripted store."""
    get_registry_hook("scripted").push(source, "digits:v1")

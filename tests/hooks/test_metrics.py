"""What transfers report to Airflow's stats, as a statsd server gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.compat import stats
from airflow_provider_modelsync.core.errors import DigestMismatch, ModelSyncError, RegistryUnavailable, VersionConflict
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.verbs.sync import Selection
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.hooks.wallaroo import WallarooHook
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Reset, Respond
from tests.support.pipelines import running_instance
from tests.support.state_store import StateStore
from tests.support.statsd import Listener, StatsClient

_OLDER = "before Airflow 3.2 stats are set up otherwise: tests/test_compat.py reports to them"
NoStatsLogger = pytest.importorskip(
    "airflow.sdk._shared.observability.metrics.base_stats_logger", reason=_OLDER
).NoStatsLogger
SafeStatsdLogger = import_module("airflow.sdk._shared.observability.metrics.statsd_logger").SafeStatsdLogger

SIZE = 10_248  # bytes of the files of the tests' model
TRANSFER = {"bytes", "resumed_bytes", "parts_resent", "seconds"}
STORE = {"registry": "modelstore", "connection": "modelsync_default"}


def report_by(factory: Callable[[], Any]) -> None:
    """Have Airflow report to what the factory makes; since 3.3 it wants to know whether under former names, too."""
    more = {"export_legacy_names"} & signature(stats.initialize).parameters.keys()
    stats.initialize(factory=factory, **dict.fromkeys(more, True))


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A statsd server that understands tags, which Airflow reports to."""
    listener = Listener()
    client = StatsClient("127.0.0.1", listener.port, "airflow")
    report_by(lambda: SafeStatsdLogger(client, influxdb_tags_enabled=True, statsd_influxdb_enabled=True))
    try:
        yield listener
    finally:
        report_by(NoStatsLogger)
        listener.close()


@pytest.fixture
def cloud(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[BentoCloudStandIn]:
    """A BentoCloud that takes models in parts of 5 MiB, one after the other."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        server.transmission_strategy = "presigned_url"
        extra = {"part_size_mib": 5, "max_workers": 1}
        connect("bentocloud_default", conn_type="bentocloud", host=server.url, password=server.token, extra=extra)
        yield server


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model of three parts."""
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(bytes(12 << 20))
    return directory


def values(received: dict[str, Any], verb: str) -> dict[str, float]:
    """The counters of a verb; its time, of which only the kind is certain, is left out."""
    prefix = f"airflow.modelsync.{verb}."
    assert all(name.startswith(prefix) for name in received)
    seconds, kind, _ = received[f"{prefix}seconds"]
    assert seconds > 0
    assert kind == "ms"
    counters = {name.removeprefix(prefix): told for name, told in received.items() if told[1] == "c"}
    assert counters.keys() | {"seconds"} >= TRANSFER
    return {name: value for name, (value, _, _) in counters.items()}


def tags(received: dict[str, Any]) -> dict[str, str]:
    """The tags that all of it has."""
    first, *others = (told[2] for told in received.values())
    assert all(other == first for other in others)
    return dict(first)


def test_a_push_is_reported_once(modelstore: Path, source: Path, listener: Listener) -> None:
    ModelStoreHook("modelsync_default").push(source, "digits:v1")
    received = listener.received()

    assert values(received, "push") == {"bytes": SIZE, "resumed_bytes": 0, "parts_resent": 0}
    assert tags(received) == {**STORE, "outcome": "done"}


def test_a_push_of_what_is_there_is_reported_as_skipped(modelstore: Path, source: Path, listener: Listener) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(source, "digits:v1")
    listener.received()
    hook.push(source, "digits:v1")
    received = listener.received()

    assert values(received, "push") == {"bytes": 0, "resumed_bytes": 0, "parts_resent": 0}
    assert tags(received)["outcome"] == "skipped"


def test_a_bento_is_a_push_like_any_other(cloud: BentoCloudStandIn, tmp_path: Path, listener: Listener) -> None:
    bento = tmp_path / "bento"
    bento.mkdir()
    (bento / "bento.yaml").write_text("{name: digits, version: b1, service: 'service:Digits', spec: 2}\n")

    for outcome in ("done", "skipped"):
        BentoCloudHook().push_bento(bento)
        received = listener.received()

        assert (values(received, "push")["bytes"] > 0) is (outcome == "done")
        assert tags(received) == {
            "registry": "bentocloud",
            "connection": "bentocloud_default",
            "outcome": outcome,
        }


def test_a_pull_is_reported_once(modelstore: Path, source: Path, tmp_path: Path, listener: Listener) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(source, "digits:v1")
    listener.received()
    hook.pull("digits", tmp_path / "pulled")
    received = listener.received()

    assert values(received, "pull") == {"bytes": SIZE, "resumed_bytes": 0, "parts_resent": 0}
    assert tags(received) == {**STORE, "outcome": "done"}


def test_what_was_refused_is_reported_as_failed(modelstore: Path, source: Path, listener: Listener) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(source, "digits:v1")
    listener.received()
    with pytest.raises(VersionConflict):
        hook.push(source / "weights.bin", "digits:v1")
    received = listener.received()

    assert values(received, "push") == {"bytes": 0, "resumed_bytes": 0, "parts_resent": 0}
    assert tags(received)["outcome"] == "failed"


def test_a_pull_of_rotten_bytes_is_reported_with_what_it_moved(
    modelstore: Path, source: Path, tmp_path: Path, listener: Listener
) -> None:
    hook = ModelStoreHook("modelsync_default")
    hook.push(source, "digits:v1")
    listener.received()
    (modelstore / "digits" / "v1" / "weights.bin").write_bytes(bytes(10_240))
    with pytest.raises(DigestMismatch):
        hook.pull("digits:v1", tmp_path / "pulled")
    received = listener.received()

    assert values(received, "pull")["bytes"] == 2 * SIZE  # it looks twice
    assert tags(received)["outcome"] == "failed"


def test_parts_that_had_to_be_sent_again_are_counted(cloud: BentoCloudStandIn, large: Path, listener: Listener) -> None:
    cloud.fault("PUT", ".*", Reset(after=100), part=2, times=2)
    version = BentoCloudHook().push(large, "digits:v1")
    received = listener.received()

    assert version.transfer is not None
    assert values(received, "push") == {"bytes": version.transfer.sent_bytes, "resumed_bytes": 0, "parts_resent": 2}
    assert tags(received) == {"registry": "bentocloud", "connection": "bentocloud_default", "outcome": "done"}


def test_what_a_later_try_need_not_send_is_reported(cloud: BentoCloudStandIn, large: Path, listener: Listener) -> None:
    store = StateStore()
    cloud.fault("PUT", ".*", Respond(503), part=3, times=None)
    with pytest.raises(RegistryUnavailable):
        BentoCloudHook().push(large, "digits:v1", checkpoint=store)
    failed = values(listener.received(), "push")
    cloud.faults.clear()
    version = BentoCloudHook().push(large, "digits:v1", checkpoint=store)
    resumed = values(listener.received(), "push")

    assert failed["bytes"] == resumed["resumed_bytes"] == 10 << 20
    assert version.transfer is not None
    assert resumed["bytes"] == version.transfer.sent_bytes
    assert failed["parts_resent"] > 0 == resumed["parts_resent"]


def test_a_sync_is_reported_once_with_both_ends(
    cloud: BentoCloudStandIn, modelstore: Path, source: Path, listener: Listener
) -> None:
    store, bento = ModelStoreHook("modelsync_default"), BentoCloudHook()
    for name in ("churn", "digits"):
        store.push(source, f"{name}:v1")
        listener.received()
    bento.push(source, "churn:v1")
    listener.received()
    report = store.sync_to(bento, Selection(models=["*", "absent"]))
    received = listener.received()

    told = values(received, "sync")
    assert {name: told[name] for name in ("copied", "skipped", "failed")} == {"copied": 1, "skipped": 1, "failed": 1}
    assert told["bytes"] == sum(version.transfer.sent_bytes for version in report.of("copied") if version.transfer)
    assert tags(received) == {
        "registry": "bentocloud",
        "connection": "bentocloud_default",
        "source_registry": "modelstore",
        "source_connection": "modelsync_default",
        "outcome": "done",
    }


def test_what_a_sync_would_do_is_not_reported(
    cloud: BentoCloudStandIn, modelstore: Path, source: Path, listener: Listener
) -> None:
    store = ModelStoreHook("modelsync_default")
    store.push(source, "digits:v1")
    listener.received()
    store.sync_to(BentoCloudHook(), Selection(), dry_run=True)

    assert listener.received() == {}


class _Broken:
    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the statsd server's name cannot be resolved")


def test_stats_that_fail_fail_no_transfer(
    modelstore: Path, source: Path, tmp_path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    report_by(_Broken)
    hook: RegistryHook = ModelStoreHook("modelsync_default")
    pushed = hook.push(source, "digits:v1")

    assert hook.pull("digits", tmp_path / "pulled").version.digest == pushed.digest
    assert "could not be reported" in caplog.text


def test_a_deployment_and_what_was_refused_are_timed(cloud: BentoCloudStandIn, listener: Listener) -> None:
    hook = BentoCloudHook("bentocloud_default")
    cloud.seed("fraud", "v1")
    cloud.seed_bento("svc", "1", models=["fraud:v1"])

    for model, outcome in (("fraud:v1", "done"), ("fraud:v2", "failed")):
        with suppress(ModelSyncError):
            hook.deploy("demo", model)
        ((name, (seconds, kind, told)),) = listener.received().items()
        assert (name, kind, told["outcome"]) == ("airflow.modelsync.deploy.seconds", "ms", outcome)
        assert seconds > 0


def test_predictions_and_what_was_refused_are_timed(tmp_path: Path, connect: Connect, listener: Listener) -> None:
    with running_instance(tmp_path / "instance") as instance:
        connect("wallaroo_default", conn_type="wallaroo", **instance.fields)
        instance.serve()
        listener.received()
        for deployment, outcome in (("demo", "done"), ("absent", "failed")):
            with suppress(ModelSyncError):
                WallarooHook().predict(deployment, [{"pixels": [1.0]}])
            ((name, (seconds, kind, told)),) = listener.received().items()
            assert (name, kind) == ("airflow.modelsync.predict.seconds", "ms")
            assert told == {"registry": "wallaroo", "connection": "wallaroo_default", "outcome": outcome}
            assert seconds > 0


def test_a_wait_is_timed_from_the_task_s_start(
    modelstore: Path, source: Path, listener: Listener, context: dict[str, Any]
) -> None:
    ModelStoreHook("modelsync_default").push(source, "digits:v1")
    listener.received()
    context["ti"].start_date = datetime.now(UTC) - timedelta(seconds=90)

    ModelVersionSensor(task_id="wait", model="digits").execute(context)

    ((name, (milliseconds, _, told)),) = listener.received().items()
    assert (name, told) == ("airflow.modelsync.wait.seconds", {**STORE, "outcome": "done"})
    assert milliseconds >= 90_000

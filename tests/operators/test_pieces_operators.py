"""Tasks on Pieces OS: download, load, wait, update; deferred, tried again, and killed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.operators.deployment import DeployModelOperator, UndeployModelOperator
from airflow_provider_modelsync.operators.pieces import PiecesUpdateModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from airflow_provider_modelsync.triggers import fetch as triggers
from airflow_provider_modelsync.triggers.fetch import FetchTrigger
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.standins.http_server import Delay
from tests.standins.pieces import Download, PiecesStandIn
from tests.support.pieces import CANCEL, CONNECTION, DOWNLOAD, ENDLESS, OTHER, PHI, quickly, running_host, verbs
from tests.support.versions import serialize

KILL_LIMIT = 4.0  # seconds from the signal to the end: Airflow sends SIGKILL after five


@pytest.fixture
def server(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[PiecesStandIn]:
    quickly(monkeypatch)
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.01)
    with running_host(connect) as server:
        yield server


def pull(**arguments: Any) -> PullModelOperator:
    defaults = {
        "task_id": "pull",
        "registry_conn_id": CONNECTION,
        "model": "Phi 2",
        "poll_interval": 0.05,
        "timeout": 300,
    }
    return PullModelOperator(**{**defaults, **arguments})


def deploy(**arguments: Any) -> DeployModelOperator:
    defaults = {
        "task_id": "deploy",
        "registry_conn_id": CONNECTION,
        "model": "Phi 2",
        "poll_interval": 0.05,
        "timeout": 300,
    }
    return DeployModelOperator(**{**defaults, **arguments})


def deferred(operator: Any, context: Any, server: PiecesStandIn) -> TaskDeferred:
    """Run a task until it goes to sleep, its download under way."""
    server.download = ENDLESS
    operator.deferrable = True
    with pytest.raises(TaskDeferred) as sleeping:
        operator.execute(context)
    return sleeping.value


def event_of(trigger: Any, server: PiecesStandIn) -> dict[str, Any]:
    """Run a trigger to its end: the download is complete once it listens."""

    async def events() -> list[dict[str, Any]]:
        return [event.payload async for event in trigger.run()]

    async def run() -> dict[str, Any]:
        waiting = asyncio.create_task(events())
        await asyncio.to_thread(server.until, lambda: server.sockets)
        server.finish(PHI["id"], "COMPLETED")
        (event,) = await waiting
        return event

    return asyncio.run(run())


def kill_soon(server: PiecesStandIn, operator: Any, verb: str = DOWNLOAD) -> list[float]:
    """Have a task killed once the host has been asked for something; the time of that is put into the list."""
    killed_at: list[float] = []

    def kill() -> None:
        server.until(lambda: verb in verbs(server))
        killed_at.append(time.monotonic())
        operator.on_kill()

    threading.Thread(target=kill).start()
    return killed_at


def assert_plain(value: Any) -> None:
    """Whether a value is JSON that Airflow stores as it is, of a size that fits."""
    assert json.loads(json.dumps(value)) == value == serialize(value)
    assert len(json.dumps(value).encode()) <= XCOM_LIMIT


class TestPull:
    def test_returns_a_plain_dictionary_once_the_model_is_there(self, server: PiecesStandIn, context: Any) -> None:
        told = pull().execute(context)

        assert_plain(told)
        assert (told["ref"], told["path"], told["skipped"]) == ("phi-2:0.0.1", None, False)
        assert (told["metadata"], told["size_bytes"]) == ({"id": PHI["id"]}, 4_840_000_000)
        assert told["uri"] == f"{server.url}/model/{PHI['id']}"

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_what_is_there_is_skipped(self, server: PiecesStandIn, context: Any, deferrable: bool) -> None:
        server.models[PHI["id"]]["downloaded"] = True

        assert pull(deferrable=deferrable).execute(context)["skipped"] is True
        assert verbs(server) == []

    def test_tells_its_outlets(self, server: PiecesStandIn, context: Any) -> None:
        asset = Asset(name="phi", uri="modelsync://pieces_default/phi-2")
        pull(outlets=[asset]).execute(context)

        assert context["outlet_events"][asset].extra["name"] == "phi-2"

    def test_a_target_is_refused_with_an_explanation(self, server: PiecesStandIn, context: Any, tmp_path: Path) -> None:
        with pytest.raises(AirflowFailException, match="leave the target out"):
            pull(target=str(tmp_path / "model")).execute(context)
        assert server.requests == []

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_elsewhere_a_target_must_be_named(self, modelstore: Path, context: Any, deferrable: bool) -> None:
        with pytest.raises(AirflowFailException, match="a target directory is needed"):
            pull(registry_conn_id="modelsync_default", model="m", deferrable=deferrable).execute(context)

    @pytest.mark.parametrize("outcome", ["FAILED", "CANCELED"])
    def test_a_failure_needs_no_other_try(self, server: PiecesStandIn, context: Any, outcome: Any) -> None:
        server.download = Download((50.0,), outcome)
        with pytest.raises(AirflowFailException, match=outcome):
            pull().execute(context)

    def test_a_lost_download_may_be_tried_again(self, server: PiecesStandIn, context: Any) -> None:
        server.download = Download((50.0,), "RESET")
        with pytest.raises(AirflowException) as caught:
            pull().execute(context)
        assert not isinstance(caught.value, AirflowFailException)
        server.download = Download()
        assert pull().execute(context)["ref"] == "phi-2:0.0.1"

    def test_its_time_runs_out(self, server: PiecesStandIn, context: Any) -> None:
        server.download = ENDLESS
        with pytest.raises(AirflowException, match="not downloaded after"):
            pull(timeout=0.2).execute(context)
        assert verbs(server) == [DOWNLOAD, CANCEL]


class TestDeferredPull:
    def test_the_worker_asks_and_the_trigger_only_reads(self, server: PiecesStandIn, context: Any) -> None:
        operator = pull()
        sleeping = deferred(operator, context, server)
        assert (verbs(server), server.sockets) == ([DOWNLOAD], [])
        assert isinstance(sleeping.trigger, FetchTrigger)
        assert sleeping.trigger.arguments() == {"ref": PHI["id"], "name": "phi-2", "ours": True}

        told = operator.execute_complete(context, event_of(sleeping.trigger, server))
        assert_plain(told)
        assert (told["ref"], told["path"], told["skipped"]) == ("phi-2:0.0.1", None, False)
        assert len(server.sockets) == 1
        assert verbs(server) == [DOWNLOAD]

    def test_another_machine_may_take_over_twice(self, server: PiecesStandIn, context: Any) -> None:
        event = event_of(deferred(pull(), context, server).trigger, server)

        assert [pull().execute_complete(context, event)["ref"] for _ in range(2)] == ["phi-2:0.0.1"] * 2

    def test_joining_is_not_owning(self, server: PiecesStandIn, context: Any) -> None:
        server.download = ENDLESS
        server.begin(PHI["id"])

        assert deferred(pull(), context, server).trigger.arguments()["ours"] is False
        assert verbs(server) == []

    @pytest.mark.parametrize("event", [None, {}, {"status": "success"}, {"status": "odd"}])
    def test_nonsense_is_no_outcome(self, server: PiecesStandIn, context: Any, event: Any) -> None:
        with pytest.raises(AirflowException, match="no outcome"):
            pull().execute_complete(context, event)


class TestKilledPull:
    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.row("P4", of="pieces")
    def test_its_own_download_is_cancelled_in_time(self, server: PiecesStandIn, context: Any, deferrable: bool) -> None:
        server.download = ENDLESS
        server.begin(OTHER["id"])
        server.fault("POST", "/download$", Delay(0.3))
        operator = pull(deferrable=deferrable)
        killed_at = kill_soon(server, operator)
        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)

        assert time.monotonic() - killed_at[0] < KILL_LIMIT
        assert verbs(server) == [DOWNLOAD, CANCEL]
        assert server.models[OTHER["id"]]["downloading"]

    def test_a_host_that_hangs_is_not_waited_for_long(self, server: PiecesStandIn, context: Any) -> None:
        server.download = ENDLESS
        operator = pull()
        killed_at = kill_soon(server, operator)
        server.fault("*", f"/model/{PHI['id']}(/download/cancel)?$", Delay(10), nth=2, times=None)
        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)

        assert time.monotonic() - killed_at[0] < KILL_LIMIT


class TestDeploy:
    def test_downloads_then_loads(self, server: PiecesStandIn, context: Any) -> None:
        told = deploy().execute(context)

        assert_plain(told)
        assert (told["name"], told["status"], told["ready"]) == ("phi-2", "loaded", True)
        assert told["model"] == "phi-2:0.0.1"
        assert verbs(server) == [DOWNLOAD, "load"]

    def test_what_is_loaded_is_left_alone(self, server: PiecesStandIn, context: Any) -> None:
        server.models[PHI["id"]].update(downloaded=True, loaded=True)

        assert deploy(deployment="Phi 2").execute(context)["ready"]
        assert verbs(server) == []

    def test_deferred_it_loads_on_a_worker_again(self, server: PiecesStandIn, context: Any) -> None:
        operator = deploy()
        sleeping = deferred(operator, context, server)
        assert sleeping.method_name == "execute_fetched"
        event = event_of(sleeping.trigger, server)
        assert verbs(server) == [DOWNLOAD]
        goes_on_with: Any = sleeping.kwargs
        assert goes_on_with["deadline"] == sleeping.trigger.serialize()[1]["deadline"]  # one for both

        assert operator.execute_fetched(context, event, **goes_on_with)["ready"]
        assert verbs(server) == [DOWNLOAD, "load"]

    def test_a_cloud_model_is_only_loaded(self, server: PiecesStandIn, context: Any) -> None:
        assert deploy(model="Claude").execute(context)["ready"]
        assert verbs(server) == ["load"]

    def test_a_killed_download_is_cancelled(self, server: PiecesStandIn, context: Any) -> None:
        server.download = ENDLESS
        operator = deploy()
        kill_soon(server, operator)
        with pytest.raises(AirflowException, match="told to stop"):
            operator.execute(context)
        assert verbs(server) == [DOWNLOAD, CANCEL]

    def test_a_kill_while_loading_frees_the_memory(
        self, server: PiecesStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise AirflowTaskTimeout

        server.models[PHI["id"]]["downloaded"] = True
        monkeypatch.setattr(DeployModelOperator, "_wait", interrupt)
        with pytest.raises(AirflowTaskTimeout):
            deploy().execute(context)

        assert verbs(server) == ["load", "unload"]

    def test_a_try_after_a_hard_kill_loads(
        self, server: PiecesStandIn, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object, **__: object) -> None:
            raise RuntimeError("as good as SIGKILL")

        server.models[PHI["id"]]["downloaded"] = True
        with monkeypatch.context() as patch:
            patch.setattr(RegistryHook, "deploy", die)
            with pytest.raises(RuntimeError):
                deploy().execute(context)

        assert deploy().execute(context)["ready"]

    def test_another_deployment_is_refused_before_anything_is_sent(self, server: PiecesStandIn, context: Any) -> None:
        with pytest.raises(AirflowFailException, match="the model itself"):
            deploy(deployment="demo").execute(context)
        assert server.requests == []


class TestUndeploy:
    @pytest.mark.parametrize(("loaded", "done"), [(True, ["unload"]), (False, [])])
    def test_unloads_what_is_loaded(self, server: PiecesStandIn, context: Any, loaded: bool, done: list[str]) -> None:
        server.models[PHI["id"]].update(downloaded=True, loaded=loaded)
        operator = UndeployModelOperator(task_id="undeploy", registry_conn_id=CONNECTION, deployment="Phi 2")

        assert operator.execute(context)["gone"]
        assert verbs(server) == done


class TestUpdate:
    def test_changes_one_field_and_no_other(self, server: PiecesStandIn, context: Any) -> None:
        (before,) = [dict(record) for record in server.models.values() if record["name"] == "Own"]
        told = PiecesUpdateModelOperator(task_id="update", model="Own", changes={"description": "finer"}).execute(
            context
        )

        assert_plain(told)
        assert server.models[before["id"]] == {**before, "description": "finer"}

    def test_needs_a_connection_to_pieces(self, modelstore: Path, context: Any) -> None:
        operator = PiecesUpdateModelOperator(
            task_id="update", registry_conn_id="modelsync_default", model="m", changes={"name": "x"}
        )
        with pytest.raises(AirflowFailException, match="'modelstore'"):
            operator.execute(context)

    def test_a_model_that_came_with_the_program_is_refused(self, server: PiecesStandIn, context: Any) -> None:
        with pytest.raises(AirflowFailException, match="only custom models"):
            PiecesUpdateModelOperator(task_id="update", model="Phi 2", changes={"name": "x"}).execute(context)


def test_a_push_names_the_nearest_thing(server: PiecesStandIn, context: Any, source: Path) -> None:
    operator = PushModelOperator(task_id="push", registry_conn_id=CONNECTION, model="mine", source=source)
    with pytest.raises(AirflowFailException, match=r"`register`.*`update`"):
        operator.execute(context)
    assert server.requests == []


class TestSensor:
    @pytest.mark.parametrize(
        ("state", "flags"),
        [
            ("available", {}),
            ("downloaded", {"downloaded": True}),
            ("loaded", {"downloaded": True, "loaded": True}),
        ],
    )
    def test_waits_for_each_state(self, server: PiecesStandIn, context: Any, state: str, flags: Any) -> None:
        record = server.models.pop(PHI["id"])
        sensor = ModelVersionSensor(task_id="wait", registry_conn_id=CONNECTION, model="Phi 2", state=state)
        assert not sensor.poke(context)
        server.models[PHI["id"]] = record
        assert bool(sensor.poke(context)) is (state == "available")
        record.update(flags)
        assert sensor.poke(context).xcom_value["ref"] == "phi-2:0.0.1"

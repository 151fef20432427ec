"""Predicting as a task: what goes to the output, what to XCom, and what is left of a task that is killed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, ObjectStoragePath, XComArg
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_modelsync.compat import AirflowException, AirflowFailException
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.registries.wallaroo import pipelines as wallaroo_pipelines
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo
from airflow_provider_modelsync.operators.deployment import PredictOperator
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.standins.fault_server import Drip, FaultServer, ReadRest, Send
from tests.standins.http_server import Delay, Respond
from tests.support.pipelines import CONNECTION, INFER, Instance, ref, running_instance
from tests.support.versions import serialize

RECORDS = [{"pixels": [0.5, float(number)]} for number in range(200)]
REMOTE = "memory://bucket/runs/predictions.json"
KEYS = {"registry", "deployment", "model", "output", "format", "count", "size_bytes"}


@pytest.fixture
def instance(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(wallaroo_pipelines, "_PAUSE", 0.0)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with running_instance(tmp_path / "instance") as instance:
        connect(CONNECTION, conn_type="wallaroo", **instance.fields)
        instance.serve()
        yield instance


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "predictions.json"


def predict(output: Any, inputs: Any = RECORDS, **arguments: Any) -> PredictOperator:
    defaults = {"task_id": "predict", "registry_conn_id": CONNECTION, "deployment": "demo"}
    return PredictOperator(**{**defaults, "inputs": inputs, "output": output, **arguments})


def left(output: Path) -> list[str]:
    return sorted(os.listdir(output.parent)) if output.parent.exists() else []


@pytest.mark.row("P14", of="tasks")
def test_predictions_go_to_the_output_and_a_reference_to_xcom(instance: Instance, output: Path, context: Any) -> None:
    told = predict(str(output)).execute(context)

    assert told.keys() == KEYS
    assert json.loads(json.dumps(told)) == told == serialize(told)
    assert len(json.dumps(told)) <= XCOM_LIMIT
    assert "total" not in json.dumps(told)
    assert (told["output"], told["format"], told["count"]) == (str(output), "pandas-records", len(RECORDS))
    assert (told["deployment"], told["model"]) == ("demo", ref(instance.new))
    assert told["size_bytes"] == output.stat().st_size > XCOM_LIMIT
    assert [row["out"]["total"] for row in json.loads(output.read_bytes())] == [[sum(row["pixels"])] for row in RECORDS]
    assert left(output) == [output.name]


def test_openlineage_is_told_what_predictions_come_from_and_where_they_are(
    instance: Instance, storage: MemoryFileSystem, tmp_path: Path, context: Any
) -> None:
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps(RECORDS))
    operator = predict(REMOTE, str(batch))
    operator.execute(context)

    told = operator.get_openlineage_facets_on_complete(None)
    assert told is not None
    name, version = ref(instance.new).split(":")
    read = {(one.namespace, one.name): one for one in told.inputs}
    assert set(read) == {(f"modelsync://{CONNECTION}", name), ("file", str(batch))}
    facets = read[f"modelsync://{CONNECTION}", name].facets
    assert facets["version"].datasetVersion == version
    # Older Airflows spell it with a third slash.
    assert [f"{one.namespace}/{one.name}" for one in told.outputs] == [str(ObjectStoragePath(REMOTE))]


def test_inputs_and_output_may_lie_in_object_storage(
    instance: Instance, storage: MemoryFileSystem, context: Any
) -> None:
    storage.pipe("/bucket/batch.json", json.dumps(RECORDS).encode())

    told = predict(ObjectStoragePath(REMOTE), "memory://bucket/batch.json").execute(context)

    assert told["output"] == str(ObjectStoragePath(REMOTE))  # which older Airflows spell with a third slash
    assert set(storage.find("/")) == {"/bucket/batch.json", "/bucket/runs/predictions.json"}
    assert len(json.loads(storage.cat("/bucket/runs/predictions.json"))) == len(RECORDS) == told["count"]
    assert told["size_bytes"] == storage.size("/bucket/runs/predictions.json")


def test_a_stored_output_is_old_until_the_new_one_is_complete(
    instance: Instance, storage: MemoryFileSystem, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pipe("/bucket/runs/predictions.json", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("the storage is gone")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "mv", fail)
        with pytest.raises(OSError, match="the storage is gone"):
            predict(REMOTE).execute(context)
    assert {path: storage.cat(path) for path in storage.find("/")} == {"/bucket/runs/predictions.json": b"old"}

    predict(REMOTE).execute(context)
    assert len(json.loads(storage.cat("/bucket/runs/predictions.json"))) == len(RECORDS)


def test_a_system_that_answers_at_once_is_never_deferred_to(instance: Instance, output: Path, context: Any) -> None:
    assert predict(output, deferrable=True).execute(context)["count"] == len(RECORDS)
    assert instance.server.count("POST", INFER) == 1


def test_options_are_the_systems_own(instance: Instance, output: Path, context: Any) -> None:
    predict(output, options={"dataset": ["out"]}).execute(context)

    assert instance.server.find("POST", INFER)[0].query == {"dataset[]": "out"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"options": {"nonsense": 1}}, "nonsense"),
        ({"options": {"output": "/elsewhere"}}, "output: arguments of the task"),
        ({"inputs": "/there/is/no/such/file"}, "is no file"),
        ({"inputs": 5}, "neither a file nor records"),
        ({"inputs": "memory://bucket/missing"}, "does not exist.*'inputs'"),
        ({"output": ""}, "it is empty.*'output'"),
        ({"output": "nonsense://bucket/x"}, "no storage location.*'output'"),
        ({"deployment": None}, "'deployment'"),
        ({"deployment": "Not-A-Name"}, "'deployment'"),
    ],
)
def test_what_cannot_be_used_fails_for_good_before_anything_is_predicted(
    instance: Instance, output: Path, context: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AirflowFailException, match=words):
        predict(**{"output": output, **arguments}).execute(context)
    assert instance.server.count("POST", INFER) == 0


def test_a_passing_fault_leaves_the_task_its_retries(instance: Instance, output: Path, context: Any) -> None:
    instance.server.fault("POST", INFER, Respond(500, b"no"))

    with pytest.raises(AirflowException) as failed:
        predict(output).execute(context)
    assert not isinstance(failed.value, AirflowFailException)
    assert left(output) == []

    assert predict(output).execute(context)["count"] == len(RECORDS)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "stored"])
def test_a_killed_task_leaves_no_output_and_ends_within_four_seconds(
    instance: Instance,
    output: Path,
    storage: MemoryFileSystem,
    context: Any,
    monkeypatch: pytest.MonkeyPatch,
    remote: bool,
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    operator = predict(REMOTE if remote else output)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        operator.on_kill()

    with FaultServer([ReadRest(), Send(head), Drip(b"[" * 1000, 0.05)]) as slow:
        monkeypatch.setattr(wallaroo_pipelines.Pipelines, "place", lambda self, name: f"{slow.url}/infer")
        instance.server.fault("POST", "/get_pipeline_external_url$", Respond(400, {"msg": "no"}), times=None)
        threading.Timer(0.5, kill).start()
        with pytest.raises(AirflowException):
            operator.execute(context)

    assert time.monotonic() - killed_at[0] < 4
    assert left(output) == []
    assert storage.find("/") == []


def test_no_token_is_told_to_anybody(
    instance: Instance, output: Path, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    told = json.dumps(predict(output).execute(context))
    echo = json.dumps(list(instance.server.access_tokens)).encode()
    for status, words in ((400, echo), (403, echo), (500, echo), (401, b"")):  # the last one gets another token
        instance.server.faults.clear()
        instance.server.fault("POST", INFER, Respond(status, words), times=None)
        with pytest.raises(AirflowException) as failed:
            predict(output).execute(context)
        told += str(failed.value)

    secrets = [*instance.server.access_tokens, instance.server.password]
    assert secrets[1:]
    assert not [secret for secret in secrets if secret in told + caplog.text]


def test_arguments_are_rendered(context: Any) -> None:
    with DAG("dag"):
        operator = predict("{{ run_id }}.json", "{{ run_id }}", options={"dataset": ["{{ run_id }}"]})
    operator.render_template_fields(context)

    assert (operator.output, operator.inputs) == ("manual__1.json", "manual__1")
    assert operator.options == {"dataset": ["manual__1"]}


def test_inputs_and_output_of_another_task_are_waited_for() -> None:
    with DAG("dag") as dag:
        first = predict("/tmp/first", task_id="first")
        second = predict("/tmp/second", XComArg(first)["output"], task_id="second")
        third = predict(XComArg(second)["output"], task_id="third")
        mapped = PredictOperator.partial(
            task_id="mapped", registry_conn_id=CONNECTION, deployment="demo"
        ).expand_kwargs([{"inputs": RECORDS, "output": f"/tmp/{number}"} for number in range(2)])

    assert (second.upstream_task_ids, third.upstream_task_ids) == ({"first"}, {"second"})
    assert mapped.task_id in dag.task_dict
    unmapped = mapped.unmap({"inputs": RECORDS, "output": "/tmp/0"})
    assert (unmapped.output, unmapped.inputs) == ("/tmp/0", RECORDS)


def test_a_system_without_predictions_fails_for_good(modelstore: Path, output: Path, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="does not offer to run predictions"):
        predict(output, registry_conn_id="modelsync_default").execute(context)


def test_a_slow_pipeline_has_as_long_as_the_task_gives_it(instance: Instance, output: Path, context: Any) -> None:
    instance.server.fault("POST", INFER, Delay(60))

    with pytest.raises(AirflowException, match=r"bytes moved in 0\.2 s"):
        predict(output, options={"timeout": 0.2}).execute(context)
    assert predict(output, options={"timeout": 30}).execute(context)["count"] == len(RECORDS)


def test_the_registry_says_that_it_predicts() -> None:
    from airflow_provider_modelsync.core.registries.base import Capability

    assert Capability.PREDICT in Wallaroo.capabilities

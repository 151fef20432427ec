"""Inference by Wallaroo's pipelines: what goes up, what comes down, and what is left when it does not."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DeploymentFailed,
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.registries.wallaroo import pipelines as wallaroo_pipelines
from airflow_provider_modelsync.core.registries.wallaroo.predict import RecordCounter
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import killed_at
from tests.standins.fault_server import Drip, FaultServer, ReadRest, Send, Talk, answer
from tests.standins.http_server import LoseAnswer, Respond, Truncate
from tests.support.pipelines import INFER, Instance, ref, running_instance

MIB = 1 << 20
ARROW = "application/vnd.apache.arrow.file"
RECORDS = [{"pixels": [0.5, 1.5]}, {"pixels": [2.0]}]
TABLE = b"ARROW1\0\0" + os.urandom(3 * MIB) + b"ARROW1"


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(wallaroo_pipelines, "_PAUSE", 0.0)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with running_instance(tmp_path / "instance") as instance:
        instance.serve()
        yield instance


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "predictions"


@dataclass(frozen=True)
class Kill:
    """Has a transfer end while the server is at it."""

    control: Control
    at: list[float] = field(default_factory=list)

    def run(self, talk: Talk) -> None:
        self.at.append(time.monotonic())
        self.control.cancel.cancel()


def left(output: Path) -> list[str]:
    """What lies where the output is to be."""
    return sorted(os.listdir(output.parent)) if output.parent.exists() else []


class TestRecords:
    def test_go_up_and_come_down_as_json(self, instance: Instance, output: Path) -> None:
        made = instance.predict(RECORDS, output)

        (sent,) = instance.server.find("POST", INFER)
        assert sent.body == RECORDS
        assert sent.headers["content-type"] == "application/json; format=pandas-records"
        assert sent.query == {}
        assert [row["out"] for row in json.loads(output.read_bytes())] == [{"total": [2.0]}, {"total": [2.0]}]
        assert (made.format, made.count, made.path) == ("pandas-records", 2, output)
        assert (made.size_bytes, made.deployment, made.model) == (output.stat().st_size, "demo", ref(instance.new))
        assert left(output) == ["predictions"]

    def test_are_returned_when_no_file_is_asked_for(self, instance: Instance) -> None:
        made = instance.predict(tuple(RECORDS))

        assert made.path is None
        assert len(json.loads(made.content or b"")) == made.count == 2
        assert "total" not in repr(made)

    def test_may_lie_in_a_file(self, instance: Instance, tmp_path: Path, output: Path) -> None:
        source = tmp_path / "batch.anything"
        source.write_text(f"\n {json.dumps(RECORDS)}\n")
        instance.predict(source, output)

        assert instance.server.find("POST", INFER)[0].body == RECORDS

    def test_may_be_a_data_frame(self, instance: Instance) -> None:
        class DataFrame:
            def to_json(self, *, orient: str) -> str:
                assert orient == "records"
                return json.dumps(RECORDS)

        DataFrame.__module__ = "pandas.core.frame"
        instance.predict(DataFrame())

        assert instance.server.find("POST", INFER)[0].body == RECORDS

    def test_are_asked_for_in_columns_as_the_vendors_client_does(self, instance: Instance) -> None:
        instance.predict(RECORDS, dataset=["time", "out"], dataset_exclude=["metadata"], dataset_separator=".")

        (sent,) = instance.server.find("POST", INFER)
        assert sent.query == {"dataset[]": "out", "dataset.exclude[]": "metadata", "dataset.separator": "."}


class TestArrow:
    def test_goes_up_and_comes_down_as_a_file(self, instance: Instance, tmp_path: Path, output: Path) -> None:
        source = tmp_path / "batch.arrow"
        source.write_bytes(TABLE)

        made = instance.predict(source, output)

        (sent,) = instance.server.find("POST", INFER)
        assert (sent.headers["content-type"], sent.headers["accept"]) == (ARROW, ARROW)
        assert output.read_bytes() == TABLE  # the stand-in gives back what it gets
        assert (made.format, made.count, made.size_bytes) == ("arrow", None, len(TABLE))

    def test_may_be_a_table_or_a_batch(self, instance: Instance, output: Path) -> None:
        table = pyarrow.table({"pixels": [[0.5, 1.5], [2.0]], "name": ["one", None]})
        for given in (table, *table.to_batches()):
            made = instance.predict(given, output)  # the stand-in gives back what it gets

            assert made.format == "arrow"
            assert pyarrow.ipc.open_file(output).read_all().equals(table)
        (sent, _) = instance.server.find("POST", INFER)
        assert sent.headers["content-type"] == ARROW


class TestRefusals:
    @pytest.mark.parametrize(
        "inputs",
        [[], {}, {"a": [1]}, "", None, 5, [1, 2], [{"a": 1}, 2], [{"a": math.nan}], [{"a": object()}], b"[]"],
        ids=lambda value: repr(value).partition(" at 0x")[0],
    )
    def test_of_inputs_that_are_neither_come_before_anything_is_sent(self, instance: Instance, inputs: Any) -> None:
        before = len(instance.server.requests)

        with pytest.raises(InvalidInput) as refused:
            instance.predict(inputs)
        assert refused.value.argument == "inputs"
        assert len(instance.server.requests) == before

    @pytest.mark.parametrize(
        ("content", "hint"),
        [
            (b"PAR1 and more PAR1", "Parquet"),
            (b'{"a": [1]}', "a list of objects"),
            (b"FEA1", "neither"),
            (b"", "neither"),
            (b"a,b\n1,2\n", "neither"),
        ],
    )
    def test_of_files_say_what_is_wanted(self, instance: Instance, tmp_path: Path, content: bytes, hint: str) -> None:
        (tmp_path / "batch").write_bytes(content)

        with pytest.raises(InvalidInput, match=hint) as refused:
            instance.predict(tmp_path / "batch")
        assert refused.value.argument == "inputs"
        assert instance.server.count("POST", INFER) == 0

    @pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "below a file"])
    def test_of_what_is_no_file(self, instance: Instance, tmp_path: Path, kind: str) -> None:
        path = tmp_path / kind
        (tmp_path / "file").write_bytes(b"[]")
        match kind:
            case "directory":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "below a file":
                path = tmp_path / "file" / "batch"

        with pytest.raises(InvalidInput, match="is no file"):
            instance.predict(path)

    @pytest.mark.parametrize("options", [{"columns": ["out"]}, {"timeout": 0}, {"dataset": "out"}])
    def test_of_options_name_them(self, instance: Instance, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput, match=next(iter(options))) as refused:
            instance.predict(RECORDS, **options)
        assert refused.value.argument == "options"

    def test_of_a_directory_as_output(self, instance: Instance, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="name the file") as refused:
            instance.predict(RECORDS, tmp_path)
        assert refused.value.argument == "output"
        assert instance.server.count("POST", INFER) == 0

    def test_of_an_output_that_cannot_be_written(self, instance: Instance, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")

        with pytest.raises(ModelSyncError, match="writing"):
            instance.predict(RECORDS, tmp_path / "file" / "predictions")
        assert instance.server.count("POST", INFER) == 0

    def test_of_a_pipeline_that_is_not_deployed(self, instance: Instance) -> None:
        instance.undeploy()
        while not instance.look().gone:
            pass

        with pytest.raises(DeploymentFailed, match="demo cannot predict: it is Undeployed"):
            instance.predict(RECORDS)

    def test_of_a_pipeline_that_is_starting_may_be_tried_again(self, instance: Instance) -> None:
        instance.server.script_deployment("demo", ["Starting"])
        instance.deploy(instance.old)

        with pytest.raises(RegistryUnavailable, match="it is Starting"):
            instance.predict(RECORDS)

    def test_of_the_pipeline_carry_its_words(self, instance: Instance) -> None:
        said = {"code": 400, "status": "Error", "error": "wrong shape for pixels", "source": "engine"}
        instance.server.fault("POST", INFER, Respond(400, said))

        with pytest.raises(InvalidInput, match="wrong shape for pixels"):
            instance.predict(RECORDS)
        assert instance.server.count("POST", INFER) == 1


class TestFaults:
    @pytest.mark.parametrize(
        "fault", [LoseAnswer(), Respond(500, b"no"), Respond(502, b"no"), Respond(503, b"reset"), Truncate(100)]
    )
    def test_after_the_request_may_have_been_processed_are_left_to_another_try(
        self, instance: Instance, output: Path, fault: Any
    ) -> None:
        instance.server.fault("POST", INFER, fault)

        with pytest.raises(RegistryUnavailable):
            instance.predict(RECORDS, output)
        assert instance.server.count("POST", INFER) == 1
        assert left(output) == []

    @pytest.mark.parametrize("refusal", [Respond(425, b""), Respond(429, b""), Respond(503, b"", {"Retry-After": "1"})])
    def test_that_say_that_nothing_was_processed_are_tried_again(self, instance: Instance, refusal: Respond) -> None:
        instance.server.fault("POST", INFER, refusal, times=2)

        assert instance.predict(RECORDS).count == 2
        assert instance.server.count("POST", INFER) == 3

    def test_a_token_that_is_refused_is_renewed_once(self, instance: Instance, tmp_path: Path) -> None:
        source = tmp_path / "batch.arrow"
        source.write_bytes(TABLE)
        instance.server.fault("POST", INFER, Respond(401, b""))

        assert instance.predict(source).size_bytes == len(TABLE)
        first, second = instance.server.find("POST", INFER)
        assert first.headers["authorization"] != second.headers["authorization"]

    def test_a_token_that_is_refused_again_ends_it(self, instance: Instance) -> None:
        instance.server.fault("POST", INFER, Respond(401, b""), times=None)

        with pytest.raises(Unauthorized) as refused:
            instance.predict(RECORDS)
        assert instance.server.count("POST", INFER) == 2
        assert not [token for token in instance.server.access_tokens if token in str(refused.value)]

    @pytest.mark.parametrize(
        "content",
        [b"", b"[", b'[{"out": 1}', b'[{"out": "]"}', b'{"out": 1}', b"<html>", b"ARROW1", b"ARROW1\0\0cut", b"null"],
    )
    def test_an_answer_that_is_not_whole_is_no_prediction(
        self, instance: Instance, output: Path, content: bytes
    ) -> None:
        instance.server.fault("POST", INFER, Respond(200, content))

        with pytest.raises(RegistryUnavailable, match="not whole, or no prediction"):
            instance.predict(RECORDS, output)
        assert left(output) == []

    def test_an_older_output_stays_until_there_is_a_new_one(self, instance: Instance, output: Path) -> None:
        instance.predict(RECORDS, output)
        before = output.read_bytes()
        instance.server.fault("POST", INFER, Respond(200, b"[{"))
        with pytest.raises(RegistryUnavailable):
            instance.predict(RECORDS, output)

        assert output.read_bytes() == before
        instance.predict(RECORDS[:1], output)
        assert len(json.loads(output.read_bytes())) == 1

    @pytest.mark.row("P4")
    def test_a_killed_one_leaves_nothing_within_four_seconds(self, instance: Instance, output: Path) -> None:
        control = Control()
        kill = Kill(control)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        with FaultServer([ReadRest(), Send(head), Drip(b"[" * 5, 0.05), kill, Drip(b"[" * 1000, 0.05)]) as slow:
            instance.registry._pipelines.place = lambda name: f"{slow.url}/infer"  # type: ignore[method-assign]
            instance.server.fault("POST", "/get_pipeline_external_url$", Respond(400, {"msg": "no"}), times=None)
            with pytest.raises(Cancelled):
                instance.predict(RECORDS, output, control=control)
            took = time.monotonic() - kill.at[0]

        assert took < 4
        assert left(output) == []

    def test_the_next_try_clears_up_what_a_killed_process_has_left(self, instance: Instance, output: Path) -> None:
        remains = 0
        for step in itertools.count():
            if not killed_at(step, lambda: instance.predict(RECORDS, output)):
                break
            remains += left(output) not in ([], ["predictions"])

            instance.predict(RECORDS, output)
            assert left(output) == ["predictions"]
            output.unlink()
        assert remains


def test_neither_inputs_nor_predictions_are_ever_in_memory(instance: Instance, tmp_path: Path) -> None:
    source, output = tmp_path / "batch.arrow", tmp_path / "predictions.arrow"
    size = 64 * MIB
    with source.open("wb") as file:
        file.write(b"ARROW1\0\0")
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(b"ARROW1")
    content = source.read_bytes()

    with FaultServer([ReadRest(), answer(200, content)]) as server:
        instance.registry._pipelines.place = lambda name: f"{server.url}/infer"  # type: ignore[method-assign]
        instance.server.fault("POST", "/get_pipeline_external_url$", Respond(400, {"msg": "no"}), times=None)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            made = instance.predict(source, output)
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    assert made.size_bytes == source.stat().st_size == output.stat().st_size
    assert grown < 16 * MIB


def test_a_registry_without_predictions_says_so() -> None:
    from airflow_provider_modelsync.core.flow.steps import SyncDriver
    from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
    from airflow_provider_modelsync.core.verbs import predict

    cloud = BentoCloud(BentoCloudSettings.read("cloud", {"password": "token"}))
    with pytest.raises(NotSupported, match="run predictions; call the deployment's own routes"):
        predict.predict(cloud, SyncDriver(), "demo", RECORDS, Control())


class TestRecordCounter:
    TEXT = json.dumps(
        [{"a": [[1, 2], {"b": "]}[{"}], "c": 'quo"te\\'}, {}, {"d": "\\\\", "e": "ü\u2028"}], ensure_ascii=False
    ).encode()

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
    def test_counts_the_objects_whatever_the_blocks(self, step: int) -> None:
        counter = RecordCounter()
        for start in range(0, len(self.TEXT), step):
            assert not counter.is_complete
            counter.feed(memoryview(self.TEXT)[start : start + step])

        assert (counter.count, counter.is_complete) == (3, True)

    def test_knows_an_empty_list(self) -> None:
        counter = RecordCounter()
        counter.feed(b" [ ] ")
        assert (counter.count, counter.is_complete) == (0, True)

"""The hook's predictions, for tasks that are Python functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, NotSupported
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.wallaroo import WallarooHook
from tests.conftest import Connect
from tests.support.pipelines import CONNECTION, Instance, running_instance

RECORDS = [{"pixels": [1.0, 2.0]}]


@pytest.fixture
def instance(tmp_path: Path, connect: Connect) -> Iterator[Instance]:
    with running_instance(tmp_path / "instance") as instance:
        connect(CONNECTION, conn_type="wallaroo", **instance.fields)
        instance.serve()
        yield instance


def test_are_returned_where_no_file_is_named(instance: Instance) -> None:
    made = WallarooHook().predict("demo", RECORDS, dataset=["out"])

    assert [row["out"] for row in json.loads(made.content or b"")] == [{"total": [3.0]}]
    assert made.path is None


def test_go_to_a_file_where_one_is_named(instance: Instance, tmp_path: Path) -> None:
    source = tmp_path / "batch.json"
    source.write_text(json.dumps(RECORDS))

    made = WallarooHook().predict("demo", str(source), output=str(tmp_path / "out.json"))

    assert made.path == tmp_path / "out.json"
    assert made.content is None
    assert len(json.loads(made.path.read_bytes())) == made.count == 1


async def test_are_awaited_in_async_tasks(instance: Instance) -> None:
    made = await WallarooHook().apredict("demo", RECORDS, dataset=["out"])

    assert [row["out"] for row in json.loads(made.content or b"")] == [{"total": [3.0]}]


def test_errors_name_the_connection(instance: Instance) -> None:
    with pytest.raises(InvalidInput) as refused:
        WallarooHook().predict("demo", [])
    assert (refused.value.argument, refused.value.connection) == ("inputs", CONNECTION)


def test_end_when_the_hook_is_cancelled(instance: Instance) -> None:
    hook = WallarooHook()
    hook.cancel()

    with pytest.raises(Cancelled):
        hook.predict("demo", RECORDS)


def test_are_not_supported_by_every_system(modelstore: Path) -> None:
    with pytest.raises(NotSupported, match="run predictions"):
        ModelStoreHook("modelsync_default").predict("demo", RECORDS)

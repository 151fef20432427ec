from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from airflow_provider_modelsync.core.transfer.checkpoint import load_digests, save_digests
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.stores import Store, write_tree

MIB = 1 << 20


class Memory:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, JsonValue] = {}

    def get(self, key: str) -> JsonValue:
        return self.values.get(key)

    def set(self, key: str, value: JsonValue) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def test_hashes_come_back_at_the_next_try() -> None:
    store = Memory()
    save_digests(store, {"a": "1" * 64}, {"a": 16 * MIB})
    assert load_digests(store) == {"a": "1" * 64}


def test_small_files_are_not_worth_remembering() -> None:
    store = Memory()
    save_digests(store, {"a": "1" * 64}, {"a": 16 * MIB - 1})
    assert store.values == {}


def test_the_largest_files_are_remembered_as_many_as_one_value_holds() -> None:
    store = Memory()
    sizes = {f"file-{number:05}": (1000 + number) * MIB for number in range(1000)}
    save_digests(store, dict.fromkeys(sizes, "1" * 64), sizes)
    (value,) = store.values.values()
    assert len(json.dumps(value)) <= 15_000
    assert 100 < len(load_digests(store)) < 1000
    assert set(load_digests(store)) == set(sorted(sizes)[-len(load_digests(store)) :])


def test_without_a_store_nothing_is_remembered() -> None:
    save_digests(None, {"a": "1" * 64}, {"a": 16 * MIB})
    assert load_digests(None) == {}


@pytest.mark.parametrize("junk", [None, "text", 7, ["a"], True])
def test_junk_in_the_store_is_nothing_remembered(junk: JsonValue) -> None:
    store = Memory()
    save_digests(store, {"a": "1" * 64}, {"a": 16 * MIB})
    store.values = dict.fromkeys(store.values, junk)
    assert load_digests(store) == {}


def test_a_retried_push_hashes_large_files_from_memory_only_while_they_are_untouched(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "model", {"large": b"\1" * (16 * MIB), "small": b"x"})
    store, control = Store(tmp_path / "store"), Control(checkpoint=Memory())
    first = store.push(model, "m", control=control)
    assert len(load_digests(control.checkpoint)) == 1
    assert store.push(model, "m", control=control).digest == first.digest
    (model / "large").write_bytes(b"\2" * (16 * MIB))
    assert store.push(model, "m", control=control).digest != first.digest

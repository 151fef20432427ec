"""Hundreds of transfers, a thousand waits, ten thousand versions: all end right, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger
from tests.conftest import Connect
from tests.core.processes import at_once
from tests.core.registries.modelstore.buckets import BucketStore, bucket_store
from tests.core.stores import Store, hidden, write_tree

pytestmark = pytest.mark.load

TRANSFERS, AT_ONCE, PROCESSES = 200, 25, 8
WAITS, VERSIONS = 1000, 10_000
MOST_KIB = 64 << 10  # by which a process may have grown: what its allocator keeps


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _threads() -> int:
    """Count the threads but for the one that Airflow keeps for its own synchronous calls."""
    return sum(not thread.name.startswith("ThreadPoolExecutor-") for thread in threading.enumerate())


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


@contextmanager
def nothing_left(what: str) -> Iterator[None]:
    """See that descriptors, threads and memory are as before; print what it took."""
    gc.collect()
    descriptors, threads, memory, begun = _descriptors(), _threads(), _resident_kib(), time.monotonic()
    yield
    took = time.monotonic() - begun
    until = time.monotonic() + 10
    while time.monotonic() < until and (_threads() > threads or _descriptors() > descriptors):
        gc.collect()
        time.sleep(0.1)
    grown = _resident_kib() - memory
    print(f"{what}: {took:.1f} s, {grown / 1024:+.1f} MiB")
    assert _threads() <= threads, threading.enumerate()
    assert _descriptors() <= descriptors
    assert grown < MOST_KIB


def _life(store: Any, root: Path, number: int) -> None:
    """Push a small model and pull it."""
    source = write_tree(root / f"source-{number}", {"weights.bin": b"%d" % number * 100, "a/vocab.txt": b"words"})
    pushed = store.push(source, f"m{number % 7}:v{number}")
    target = root / f"target-{number}"
    store.pull(pushed.ref, target)
    assert digest_directory(target) == pushed.digest == digest_directory(source)


def _by_threads(store: Callable[[], Any], root: Path, numbers: range) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: _life(store(), root, number), numbers))


def _by_processes(store: Callable[[], Any], root: Path, numbers: range) -> None:
    def work(first: int) -> None:
        for number in numbers[first::PROCESSES]:
            _life(store(), root, number)

    results = at_once(*[lambda first=first: work(first) for first in range(PROCESSES)])
    assert results == [None] * PROCESSES


def _all(store: Callable[[], Any], root: Path, what: str) -> None:
    _life(store(), root, TRANSFERS)  # what is loaded once
    half = TRANSFERS // 2
    with nothing_left(f"{half} pushes and pulls by {AT_ONCE} threads, {what}"):
        _by_threads(store, root, range(half))
    with nothing_left(f"{half} pushes and pulls by {PROCESSES} processes, {what}"):
        _by_processes(store, root, range(half, TRANSFERS))
    listed = [version for number in range(7) for version in store().list_versions(f"m{number}")]
    assert len(listed) == TRANSFERS + 1


def test_transfers_at_once_in_a_directory(tmp_path: Path) -> None:
    _all(lambda: Store(tmp_path / "store"), tmp_path, "a directory")
    assert hidden(tmp_path) == []
    assert not [path for path in (tmp_path / "store").rglob(".*") if path.name != ".modelsync"]


def test_transfers_at_once_in_a_bucket(tmp_path: Path, no_waiting: None) -> None:
    with bucket_store() as store:
        _all(lambda: BucketStore(store.s3), tmp_path, "a bucket")
        assert store.open_uploads() == []
    assert hidden(tmp_path) == []


def test_ten_thousand_versions_are_listed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.push(write_tree(tmp_path / "source", {"w": b"w"}), "m:v0")
    records = tmp_path / "store" / "m" / ".modelsync"
    manifest = json.loads((records / "v0.json").read_text())
    for number in range(1, VERSIONS):
        (records / f"v{number}.json").write_text(json.dumps({**manifest, "version": f"v{number}"}))
    with nothing_left(f"{VERSIONS} versions listed"):
        listed = store.list_versions("m")
        assert len(listed) == VERSIONS
        assert {version.digest for version in listed} == {first.digest}
        del listed


def test_a_thousand_waits_go_through_a_restart_of_the_triggerer(tmp_path: Path, connect: Connect) -> None:
    root, source = tmp_path / "store", write_tree(tmp_path / "source", {"w": b"w"})
    connect("modelsync_default", conn_type="modelstore", host=root.as_uri())
    stored = [
        ModelVersionTrigger("modelsync_default", f"m{number % 50}", time.time() + 300, poll_interval=1.0).serialize()[1]
        for number in range(WAITS)
    ]

    async def first_event(arguments: dict[str, Any]) -> Any:
        async for event in ModelVersionTrigger(**arguments).run():
            return event.payload
        return None

    async def stopped() -> list[Any]:
        running = [asyncio.create_task(first_event(arguments)) for arguments in stored]
        await asyncio.sleep(1.5)
        for task in running:
            task.cancel()
        return await asyncio.gather(*running, return_exceptions=True)

    async def started_again() -> list[Any]:
        running = [asyncio.create_task(first_event(arguments)) for arguments in stored]
        for number in range(50):
            await asyncio.to_thread(Store(root).push, source, f"m{number}:v1")
        return await asyncio.gather(*running)

    assert {type(result) for result in asyncio.run(stopped())} == {asyncio.CancelledError}
    with nothing_left(f"{WAITS} waits after a restart"):
        assert [event["status"] for event in asyncio.run(started_again())] == ["success"] * WAITS

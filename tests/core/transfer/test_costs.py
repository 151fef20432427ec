"""What a transfer asks of the kernel and of the server, counted: no load of the machine changes these figures.

Each measured transfer has a fresh process of its own; its server is in the test's process.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover
from airflow_provider_modelsync.core.transfer.plan import Address, PutParts
from airflow_provider_modelsync.core.transfer.ranges import PROBE
from airflow_provider_modelsync.core.transfer.upload import upload
from airflow_provider_modelsync.core.verbs import pull as pulling
from airflow_provider_modelsync.core.verbs import push as pushing
from airflow_provider_modelsync.core.verbs.drive import driver_for
from tests.core.transfer.test_memory import discarding, in_process, of_process
from tests.standins.bentocloud import BentoCloudStandIn

KIB, MIB = 1 << 10, 1 << 20
FILES, SIZE, SUFFIX = 300, 10 * KIB, ".weights"
FEW = 60  # system calls that do not belong to a file: of the interpreter, and of what is around a transfer


class Opened(Counter[str]):
    """Counts how often each file of the model is opened."""

    def __init__(self) -> None:
        super().__init__()
        sys.addaudithook(lambda event, told: self._note(told[0]) if event == "open" else None)

    def _note(self, path: object) -> None:
        if isinstance(path, str) and path.endswith(SUFFIX):
            self[path.rpartition("/")[2]] += 1


def counted(work: Callable[[], object]) -> dict[str, int]:
    """Call a function twice; return what its second call costs, when all modules are loaded.

    :return: how often it opens each file of the model at most, how many files, and what it reads and writes.
    """
    work()
    opened = Opened()
    before = {key: of_process("io", key) for key in ("syscr", "syscw", "wchar")}
    work()
    after = {key: of_process("io", key) - value for key, value in before.items()}
    return {"opens": max(opened.values()), "files": len(opened), **after}


def many(directory: Path) -> int:
    """Write small files; return how many bytes they have."""
    for number in range(FILES):
        file = directory / f"{number // 100}" / f"{number:04}{SUFFIX}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number % 256]) * SIZE)
    return FILES * SIZE


def push(source: str, port: int) -> dict[str, int]:
    """Hash a model and send it in parts."""
    url = f"http://127.0.0.1:{port}/object"

    def address(number: int) -> Flow[Address]:
        return Address(f"{url}?partNumber={number}", presigned=True)
        yield

    def work() -> None:
        tree = read_tree(source)
        way = PutParts(TarLayout.from_tree(tree), OpenUpload("u", MIB), address, UploadMemory(None))
        mover = Mover(RegistrySettings(conn_id="c", host=url))
        upload(way, tree, Control(workers=4), SyncDriver(), mover)
        mover.close()

    return counted(work)


def test_a_push_opens_and_reads_a_small_file_twice_and_writes_nothing(tmp_path: Path) -> None:
    payload = many(tmp_path / "source")
    with discarding() as server:
        found = in_process("push", str(tmp_path / "source"), server.server_address[1], module=__name__)
    del server.parts[: len(server.parts) // 2]
    archive = sum(server.parts)
    parts = -(-archive // MIB)
    assert found["files"] == FILES
    assert found["opens"] <= 2 + 1  # a part may end inside of it
    assert found["syscr"] <= 2 * FILES + 2 * parts + FEW
    assert found["wchar"] < 64 * KIB
    assert len(server.parts) == parts
    assert payload < archive < payload + FILES * KIB + 64 * KIB


def pull(url: str, token: str, target: str) -> dict[str, int]:
    registry = BentoCloud(BentoCloudSettings.read("cloud", {"host": url, "password": token}))
    with driver_for(registry) as driver:
        ref = registry.parse("digits:v1")
        targets = iter((f"{target}-first", target))
        return counted(lambda: pulling.pull(registry, driver, ref, next(targets), Control(), query=Query.parse(None)))


def test_a_pull_writes_a_small_file_by_one_call_and_never_reads_it(tmp_path: Path) -> None:
    payload = many(tmp_path / "source")
    with BentoCloudStandIn(tmp_path / "server") as server:
        registry = BentoCloud(BentoCloudSettings.read("cloud", {"host": server.url, "password": server.token}))
        with driver_for(registry) as driver:
            pushing.push(registry, driver, tmp_path / "source", registry.parse("digits:v1"), Control())
        archive = server.store.objects[server.key("digits", "v1")].size
        before = len(server.requests)
        target = tmp_path / "place" / "target"
        target.parent.mkdir()
        found = in_process("pull", server.url, server.token, str(target), module=__name__)
        requests = len(server.requests) - before
    assert len(list(target.rglob(f"*{SUFFIX}"))) == FILES
    assert found["files"] == FILES
    assert found["opens"] == 1
    assert found["syscw"] <= FILES + FEW
    assert found["syscr"] <= FEW + FILES // 4
    assert payload <= found["wchar"] <= 1.02 * payload
    windows = 1 + math.ceil(math.log2(archive / PROBE))  # of 64 KiB, then twice as many each time up to 16 MiB
    assert requests <= 2 * (2 + windows)

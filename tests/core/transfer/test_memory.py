"""Memory and disk that a transfer takes: as much for a large model as for a small one.

Each measured transfer has a fresh process of its own; its server is in the test's process.
"""

from __future__ import annotations

import base64
import json
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, SourceTree, Stamp
from airflow_provider_modelsync.core.archive.layout import TarLayout
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover
from airflow_provider_modelsync.core.transfer.plan import Address, PutParts, choose_part_size
from airflow_provider_modelsync.core.transfer.upload import upload
from airflow_provider_modelsync.core.verbs import pull as pulling
from airflow_provider_modelsync.core.verbs import push as pushing
from airflow_provider_modelsync.core.verbs.drive import driver_for
from tests.core.archive.holes import sums_of_zeros
from tests.standins.bentocloud import BentoCloudStandIn, StoredObject
from tests.standins.wallaroo import WallarooStandIn

pytestmark = pytest.mark.faults

KIB = 1 << 10
MIB = 1 << 20
SMALL, LARGE = 256 * MIB, 1024 * MIB
WORKERS = 4
ROOT = Path(__file__).parents[3]


# --- what is measured ------------------------------------------------------------------------------------------------


def of_process(file: str, key: str) -> int:
    """Return a number that the kernel keeps of this process."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measured(work: Callable[[], Any]) -> dict[str, int]:
    """Call a function; return by how many bytes the process grew at most, and how many it wrote to files."""
    before, written = of_process("status", "VmRSS"), of_process("io", "wchar")
    work()
    # The kernel's own peak is of this program; that of getrusage would include whoever started it. Of writes, wchar
    # counts what is handed to the file system, whereas write_bytes is 0 on one in memory.
    grown = (of_process("status", "VmHWM") - before) * KIB
    return {"grown": grown, "written": of_process("io", "wchar") - written}


def in_process(function: str, *arguments: object, module: str = __name__) -> dict[str, int]:
    """Measure a function of a module in a process that has done nothing before but load it."""
    code = (
        f"import {module} as t; from tests.core.transfer.test_memory import report\n"
        f"report(t.{function}, {', '.join(map(repr, arguments))})"
    )
    done = subprocess.run(  # the module is loaded before anything is measured
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(function: Callable[..., Any], *arguments: Any) -> None:
    import urllib3  # noqa: F401  # the mover loads it at its first use

    told: dict[str, int] = {}
    found = measured(lambda: told.update(function(*arguments) or {}))
    print(json.dumps({**found, **told}))


# --- push ------------------------------------------------------------------------------------------------------------


class Discard(socketserver.StreamRequestHandler):
    """Takes whatever is put, and keeps nothing but its length."""

    server: Discarding
    disable_nagle_algorithm = True

    def handle(self) -> None:
        buffer = bytearray(MIB)
        while self.rfile.readline():
            rest = 0
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                if name.lower() == "content-length":
                    rest = int(value)
            length = rest
            while rest and (count := self.rfile.readinto1(memoryview(buffer)[:rest])):
                rest -= count
            assert not rest
            with self.server.lock:
                self.server.parts.append(length)
            self.wfile.write(b'HTTP/1.1 200 OK\r\nETag: "part"\r\nContent-Length: 0\r\n\r\n')


class Discarding(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Discard)
        self.parts: list[int] = []
        self.lock = threading.Lock()


@contextmanager
def discarding() -> Iterator[Discarding]:
    with Discarding() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(path: str, port: int) -> None:
    """Push one file in parts as if it had been hashed, which takes a block at a time and far too long here."""
    file = Path(path)
    stamp = Stamp.of(file.stat())
    entry = FileEntry(file.name, stamp.size, "0" * 64)
    tree = SourceTree(file.parent, (entry,), (), {file.name: stamp}, checksums={file.name: sums_of_zeros(stamp.size)})
    layout = TarLayout.from_tree(tree)
    url = f"http://127.0.0.1:{port}/object"

    def address(number: int) -> Flow[Address]:
        return Address(f"{url}?partNumber={number}", presigned=True)
        yield

    way = PutParts(layout, OpenUpload("u", choose_part_size(layout.size)), address, UploadMemory(None))
    mover = Mover(RegistrySettings(conn_id="c", host=url))
    stats = upload(way, tree, Control(workers=WORKERS), SyncDriver(), mover)
    mover.close()
    assert stats.sent_bytes == layout.size


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_push_takes_no_more_memory_for_a_larger_model(tmp_path: Path) -> None:
    grown = {}
    for size in (SMALL, LARGE):
        source = sparse(tmp_path / "weights.bin", size)
        with discarding() as server:
            found = in_process("push", str(source), server.server_address[1])
        assert size < sum(server.parts) < size + 3 * 10_240
        assert max(server.parts) == choose_part_size(size) == 16 * MIB
        assert found["written"] < MIB  # no temporary copy
        grown[size] = found["grown"]
    assert grown[SMALL] <= WORKERS * MIB + 20 * MIB
    assert grown[LARGE] <= grown[SMALL] + 16 * MIB


def push_form(fields: dict[str, str], path: str, framework: str) -> None:
    registry = Wallaroo(WallarooSettings.read("wallaroo", fields))
    schema = base64.b64encode(b"\xff" * 4 + bytes(60)).decode()
    schemas = {} if framework == "onnx" else {"input_schema": schema, "output_schema": schema}
    with driver_for(registry) as driver:
        ref = registry.parse("digits")
        pushing.push(registry, driver, path, ref, Control(), options={"framework": framework, **schemas})


@pytest.mark.parametrize("framework", ["onnx", "custom"])
def test_a_form_takes_no_more_memory_for_a_larger_model_be_it_a_file_or_a_zip(tmp_path: Path, framework: str) -> None:
    grown = {}
    for size in (MIB, 96 * MIB):
        source = sparse(tmp_path / "weights.bin", size)
        with WallarooStandIn(tmp_path / f"server-{size}", discard_bodies=True) as server:
            server.add_workspace("digits-team")
            fields = {"host": server.url, "login": server.username, "password": server.password}
            found = in_process("push_form", fields, str(source), framework)
            (stored,) = server.versions_of("digits")
        assert stored.size >= size
        assert (stored.size == size) == (framework == "onnx")
        assert found["written"] < MIB  # no temporary copy
        grown[size] = found["grown"]
    assert grown[96 * MIB] <= grown[MIB] + 16 * MIB


# --- pull ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


def seed(server: BentoCloudStandIn, path: Path, sizes: dict[str, int]) -> None:
    """Give the server a model of zeros that takes no room."""
    with path.open("wb") as file:
        for name, size in sizes.items():
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            file.seek(-(-size // 512) * 512, 1)
        file.truncate(file.tell() + 1024)
    server.seed("digits", "v1", size_bytes=sum(sizes.values()))
    server.store.objects[server.key("digits", "v1")] = StoredObject(path, path.stat().st_size, '"sparse"')


def pull(url: str, token: str, target: str) -> None:
    registry = BentoCloud(BentoCloudSettings.read("cloud", {"host": url, "password": token}))
    control = Control(workers=WORKERS)
    with driver_for(registry) as driver:
        pulling.pull(registry, driver, registry.parse("digits:v1"), target, control, query=Query.parse(None))


def measured_pull(server: BentoCloudStandIn, target: Path) -> dict[str, int]:
    return in_process("pull", server.url, server.token, str(target))


def test_a_pull_of_a_large_file_takes_little_memory_and_writes_each_byte_once(
    server: BentoCloudStandIn, tmp_path: Path
) -> None:
    size = 160 * MIB
    seed(server, tmp_path / "archive.tar", {"config.json": 2, "weights.bin": size, "z": 5})
    found = measured_pull(server, tmp_path / "target")
    assert (tmp_path / "target" / "weights.bin").stat().st_size == size
    assert found["grown"] <= 64 * MIB
    assert size <= found["written"] <= 1.02 * size


def test_a_pull_of_many_small_files_takes_little_memory_and_writes_each_byte_once(
    server: BentoCloudStandIn, tmp_path: Path
) -> None:
    sizes = {f"layer-{number:03}.bin": MIB for number in range(80)}
    seed(server, tmp_path / "archive.tar", sizes)
    found = measured_pull(server, tmp_path / "target")
    assert len(list((tmp_path / "target").iterdir())) == len(sizes)
    assert found["grown"] <= 56 * MIB  # one window of 16 MiB, the next one, and what is around them
    assert 80 * MIB <= found["written"] <= 1.02 * 80 * MIB


def test_the_measure_sees_memory_and_writes(tmp_path: Path) -> None:
    """Otherwise none of the above says anything."""
    found = in_process("waste", str(tmp_path / "waste"))
    assert found["grown"] >= 90 * MIB
    assert found["written"] >= 10 * MIB


def waste(path: str) -> None:
    ballast = bytearray(100 * MIB)
    ballast[:: 4 * KIB] = b"x" * (100 * MIB // (4 * KIB))
    Path(path).write_bytes(ballast[: 10 * MIB])

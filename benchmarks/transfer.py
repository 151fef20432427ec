"""Push and pull of whole models against the temp-file way and curl, in one run: `make bench-transfer`.

The server is nginx (WebDAV PUT, byte ranges) with its data on tmpfs. Rivals run in turn, each as a process of its own,
so that processor time, memory and disk writes are the kernel's figures of that process. The temp-file way is what
clients of model registries do: tar to a temporary file, 100 MiB parts with ten threads; down to a temporary file,
extract to a temporary directory, copy to the store. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import hashing_seconds, machine, prepare, turns
from benchmarks.floor import floor
from benchmarks.meter import Figures, measure

MIB = 1 << 20
PART = 16 * MIB
RIVAL_PART = 100 * MIB
TARGETS = {  # performance that is promised: (wall, processor) as shares of the rival's, and disk per payload byte
    ("one-2g", "push"): (0.65, 0.8, 0.01),
    ("one-2g", "pull"): (0.5, 0.6, 1.02),
    ("mixed-1g", "push"): (0.75, 0.9, 0.01),
    ("many-20k", "push"): (0.5, 0.6, 0.01),
    ("many-20k", "pull"): (0.4, 0.35, 1.25),  # files of 10 KiB fill three blocks of 4 KiB: 1.2 is the floor
    ("engine-1g", "push"): (None, 1.2, None),
    ("engine-1g", "pull"): (None, 1.4, None),
}


# --- workloads -------------------------------------------------------------------------------------------------------


def make_workload(name: str, root: Path) -> None:
    """Write a workload's files, always the same bytes for one name."""
    sizes: dict[str, int] = {}
    if name in ("one-2g", "engine-1g"):
        sizes["model.bin"] = (2048 if name == "one-2g" else 1024) * MIB
    elif name == "mixed-1g":
        sizes |= {"shards/a.bin": 512 * MIB, "shards/b.bin": 256 * MIB}
        sizes |= {f"layers/{index}.bin": 32 * MIB for index in range(6)}
        sizes |= {f"blocks/{index}.bin": MIB for index in range(48)}
        long = "/".join(["configuration-of-the-tokenizer"] * 5)
        sizes |= {f"{long}/{index:04}.json": 2000 for index in range(1600)}
    else:
        sizes |= {f"{directory:03}/{index:03}": 10 << 10 for directory in range(200) for index in range(100)}
    source = random.Random(name)
    block = source.randbytes(8 * MIB)
    for path, size in sizes.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as writer:
            while size:
                start = source.randrange(len(block) // 2)
                size -= writer.write(block[start : start + min(size, len(block) // 2)])


# --- the server ------------------------------------------------------------------------------------------------------

_NGINX = """
daemon off; user root; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {home}/access.log; client_body_temp_path {home}/body; client_max_body_size 0; sendfile on;
  server {{
    listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;
    ssl_certificate {home}/cert.pem; ssl_certificate_key {home}/key.pem;
    location / {{ root {home}/data; dav_methods PUT; create_full_put_path on; add_header X-Part "yes" always; }}
    location /parts/ {{ root {home}/data; dav_methods PUT; create_full_put_path on; add_header ETag '"part"' always; }}
  }}
}}
"""


class Server:
    """A running nginx: its URLs, certificate and data."""

    def __init__(self, home: Path, http: int, https: int) -> None:
        self.home = home
        self.data = home / "data"
        self.certificate = home / "cert.pem"
        self.urls = {"http": f"http://127.0.0.1:{http}", "https": f"https://127.0.0.1:{https}"}

    def requests(self) -> int:
        """Return how many requests were served so far."""
        return len((self.home / "access.log").read_text().splitlines())


@contextmanager
def nginx() -> Iterator[Server]:
    """Run nginx on free ports with its data on tmpfs."""
    if shutil.which("nginx") is None:
        sys.exit("nginx is needed: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir="/dev/shm") as scratch:
        home = Path(scratch)
        for name in ("data", "body"):
            (home / name).mkdir()
        subprocess.run(
            ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(home / "key.pem"),
             "-out", str(home / "cert.pem")),
            check=True, capture_output=True,
        )  # fmt: skip
        http, https = _free_port(), _free_port()
        (home / "nginx.conf").write_text(_NGINX.format(home=home, http=http, https=https))
        process = subprocess.Popen(("nginx", "-e", str(home / "error.log"), "-c", str(home / "nginx.conf")))
        try:
            while socket.socket().connect_ex(("127.0.0.1", http)):
                time.sleep(0.05)
            yield Server(home, http, https)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the rivals, each run in a process of its own ---------------------------------------------------------------------


def ours_push(url: str, certificate: Path, source: Path, scratch: Path) -> Callable[[], None]:
    """Hash the source and send it in parts, straight from its files."""
    from airflow_provider_modelsync.core.archive.digest import read_tree

    return lambda: engine_push(url, certificate, source, scratch, tree=read_tree(source))()


def ahead_push(url: str, certificate: Path, source: Path, scratch: Path) -> Callable[[], None]:
    """Send one file in parts while it is hashed, as a new version goes to a bucket that speaks S3."""
    from airflow_provider_modelsync.core.archive.digest import LooseFile, Stamp
    from airflow_provider_modelsync.core.flow.steps import SyncDriver
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.transfer.mover import Mover
    from airflow_provider_modelsync.core.transfer.objects import put_ahead
    from airflow_provider_modelsync.core.transfer.plan import Address, PutAhead, Stored

    class Writer:
        part_size = PART

        def begin(self, file: Any) -> Any:
            return "bench"
            yield

        def part(self, file: Any, upload_id: str, number: int, sums: Any) -> Any:
            return Address(f"{url}/parts/{number:05}", presigned=True)
            yield

        def receipt(self, file: Any, upload_id: str, sums: Any, address: Any, answer: Any, doing: str) -> Any:
            answer.raise_for_store(doing)
            return Stored(sums.size, answer.headers["ETag"])

        def sent(self, *told: Any) -> None:
            pass

    def run() -> None:
        place = source / "model.bin"
        file = LooseFile(str(place), place.name, Stamp.of(place.stat()))
        with closing(Mover(_settings(url, certificate))) as mover:
            writer: Any = Writer()  # the rest of a storage is not asked for here
            put_ahead(PutAhead((file,), writer, {}), Control(), SyncDriver(), mover)

    return run


def engine_push(url: str, certificate: Path, source: Path, scratch: Path, tree: Any = None) -> Callable[[], None]:
    """Send a source that is hashed already."""
    from airflow_provider_modelsync.core.archive.digest import read_tree
    from airflow_provider_modelsync.core.archive.layout import TarLayout
    from airflow_provider_modelsync.core.flow.steps import SyncDriver
    from airflow_provider_modelsync.core.transfer.checkpoint import OpenUpload, UploadMemory
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.transfer.mover import Mover
    from airflow_provider_modelsync.core.transfer.plan import Address, PutParts
    from airflow_provider_modelsync.core.transfer.upload import upload

    def ask(number: int) -> Any:
        return Address(f"{url}/parts/{number:05}", presigned=True)
        yield

    tree = tree or read_tree(source)

    def run() -> None:
        way = PutParts(TarLayout.from_tree(tree), OpenUpload("bench", PART), ask, UploadMemory(None))
        with closing(Mover(_settings(url, certificate))) as mover:
            upload(way, tree, Control(), SyncDriver(), mover)

    return run


def ours_pull(url: str, certificate: Path, target: Path, scratch: Path) -> Callable[[], None]:
    """Read the archive by ranges into a staging directory, hash what is written, rename."""
    from airflow_provider_modelsync.core import durable
    from airflow_provider_modelsync.core.archive.digest import digest_of
    from airflow_provider_modelsync.core.flow.steps import SyncDriver
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.transfer.download import download
    from airflow_provider_modelsync.core.transfer.mover import Mover
    from airflow_provider_modelsync.core.transfer.plan import Address, GetArchive

    def ask() -> Any:
        return Address(f"{url}/object", presigned=True)
        yield

    def run() -> None:
        with durable.staging(target, "0" * 12) as staging:
            with closing(Mover(_settings(url, certificate))) as mover:
                pulled = download(GetArchive(ask), "bench:1", staging.path, Control(), SyncDriver(), mover)
            digest_of(pulled.files)
            staging.path.rename(target)

    return run


def engine_pull(url: str, certificate: Path, target: Path, scratch: Path) -> Callable[[], None]:
    """Receive the archive by ranges into one file, and look at nothing."""
    from airflow_provider_modelsync.core.flow.cancel import CancelToken
    from airflow_provider_modelsync.core.flow.parallel import for_each
    from airflow_provider_modelsync.core.transfer.mover import Mover

    def run() -> None:
        target.mkdir()
        descriptor = os.open(target / "model.bin", os.O_WRONLY | os.O_CREAT)
        with closing(Mover(_settings(url, certificate))) as mover:

            def fetch(start: int, cancel: CancelToken) -> None:
                with mover.get(
                    f"{url}/object", {"Range": f"bytes={start}-{start + PART - 1}"}, cancel=cancel
                ) as answer:
                    for block in answer.blocks():
                        start += os.pwrite(descriptor, block, start)

            for_each(fetch, range(0, 1024 * MIB, PART), workers=4, cancel=CancelToken())

    return run


def _settings(url: str, certificate: Path) -> Any:
    from airflow_provider_modelsync.core.settings import RegistrySettings

    return RegistrySettings.read("bench", {"host": url, "ca_bundle": str(certificate)})


def rival_push(url: str, certificate: Path, source: Path, scratch: Path) -> None:
    """Tar to a temporary file, then 100 MiB parts with ten threads, a client each."""
    import httpx

    context = ssl.create_default_context(cafile=str(certificate))
    archive = scratch / "push.tar"
    with tarfile.open(archive, "w:") as tar:
        tar.add(source, arcname="./")
    size = archive.stat().st_size

    def blocks(start: int) -> Iterator[bytes]:
        with archive.open("rb") as reader:
            reader.seek(start)
            rest = RIVAL_PART
            while rest and (block := reader.read(min(64 << 10, rest))):
                rest -= len(block)
                yield block

    def put(start: int) -> None:
        length = str(min(RIVAL_PART, size - start))
        answer = httpx.put(
            f"{url}/parts/{start // RIVAL_PART:05}",
            content=blocks(start), headers={"Content-Length": length}, verify=context, timeout=600,
        )  # fmt: skip
        answer.raise_for_status()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(put, range(0, size, RIVAL_PART)))
    archive.unlink()


def rival_pull(url: str, certificate: Path, target: Path, scratch: Path) -> None:
    """Down to a temporary file in small blocks, extract to a temporary directory, copy to the store."""
    import httpx

    context = ssl.create_default_context(cafile=str(certificate))
    archive, unpacked = scratch / "pull.tar", scratch / "unpacked"
    with httpx.stream("GET", f"{url}/object", verify=context, timeout=600) as answer, archive.open("wb") as writer:
        for block in answer.iter_bytes(1024):
            writer.write(block)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    shutil.copytree(unpacked, target)


def curl_push(url: str, certificate: Path, source: Path, scratch: Path) -> None:
    """Send one file."""
    command = ("curl", "-sf", "--cacert", str(certificate), "-T", str(source / "model.bin"), f"{url}/object-by-curl")
    subprocess.run(command, check=True)


def curl_pull(url: str, certificate: Path, target: Path, scratch: Path) -> None:
    """Receive the archive into one file."""
    target.mkdir()
    command = ("curl", "-sf", "--cacert", str(certificate), "-o", str(target / "model.bin"), f"{url}/object")
    subprocess.run(command, check=True)


ACTIONS: dict[str, Callable[[str, Path, Path, Path], Callable[[], None]]] = {
    "ours_push": ours_push,
    "ahead_push": ahead_push,
    "ours_pull": ours_pull,
    "engine_push": engine_push,
    "engine_pull": engine_pull,
    **{
        action.__name__: lambda *arguments, action=action: lambda: action(*arguments)
        for action in (rival_push, rival_pull, curl_push, curl_pull)
    },
}


def child(action: str, url: str, certificate: str, place: str, scratch: str) -> None:
    """Run one action and print what it cost this process."""
    import httpx  # imports do not count

    import airflow_provider_modelsync.core.transfer.download
    import airflow_provider_modelsync.core.transfer.upload  # noqa: F401

    del httpx
    run = ACTIONS[action](url, Path(certificate), Path(place), Path(scratch))
    print(json.dumps(measure(run)))


# --- the runs --------------------------------------------------------------------------------------------------------


def measured(action: str, url: str, server: Server, place: Path, scratch: Path) -> Figures:
    """Run one action in a process of its own and return its figures."""
    before = server.requests()
    command = (sys.executable, __file__, "--child", action, url, str(server.certificate), str(place), str(scratch))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return {**figures, "requests": server.requests() - before}


def compare(workload: str, server: Server, disk: Path, pairs: int, hashing: float) -> list[list[str]]:
    """Run a workload both ways in alternating pairs and return the table's rows."""
    source = disk / workload
    make_workload(workload, source)
    payload = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    subprocess.run(("tar", "-C", str(source), "-cf", str(server.data / "object"), "."), check=True)
    url = server.urls["http" if workload == "many-20k" else "https"]
    us, rival = ("engine", "curl") if workload == "engine-1g" else ("ours", "rival")
    rows = []
    for verb in ("push", "pull"):
        is_large_push = (workload, verb) == ("one-2g", "push")
        ours = {us: f"`{workload}` {verb}", **({"ahead": f"`{workload}` {verb}, ahead"} if is_large_push else {})}
        runs: dict[str, list[Figures]] = {who: [] for who in (*ours, rival)}
        floors: list[Figures] = []
        for pair in range(pairs):
            for who in turns((*ours, rival), pair):
                prepare(source)
                scratch = Path(tempfile.mkdtemp(dir=disk))
                place = source if verb == "push" else scratch / "target"
                runs[who].append(measured(f"{who}_{verb}", url, server, place, scratch))
                shutil.rmtree(server.data / "parts", ignore_errors=True)
            if (us, verb, url) == ("ours", "push", server.urls["https"]):
                prepare(source)
                floors.append(floor(verb, source, payload, (server.certificate, server.home / "key.pem")))
            print(f"  {workload} {verb}: pair {pair + 1} of {pairs}", file=sys.stderr, flush=True)
        hashed = 0.0 if us == "engine" else hashing * payload / (1 << 30)
        limits = TARGETS.get((workload, verb), (None, None, None))
        rows += [_row(shown, payload, limits, runs[who], runs[rival], floors, hashed) for who, shown in ours.items()]
    return rows


def _row(
    shown: str,
    payload: int,
    limits: tuple[float | None, float | None, float | None],
    ours: list[Figures],
    rival: list[Figures],
    floors: list[Figures],
    hashed: float,
) -> list[str]:
    def median(runs: list[Figures], field: str) -> float:
        return statistics.median(run[field] for run in runs)

    wall, cpu = (
        statistics.median(one[field] / other[field] for one, other in zip(ours, rival, strict=True))
        for field in ("wall", "cpu")
    )
    gib = payload / (1 << 30)
    disk = median(ours, "disk") / payload
    kept = all(limit is None or value <= limit for value, limit in zip((wall, cpu, disk), limits, strict=True))
    kept_to = [
        f"{value:.2f}" + (f" (≤ {limit})" if limit is not None else "")
        for value, limit in zip((wall, cpu, disk), limits, strict=True)
    ]
    least = (f"{median(floors, field) / median(rival, field):.2f}" for field in ("wall", "cpu")) if floors else "–"
    return [
        shown, *kept_to, f"{hashed / median(rival, 'cpu'):.2f}",
        ", ".join(least),
        f"{median(rival, 'disk') / payload:.2f}",
        f"{median(ours, 'cpu') / gib:.2f}", f"{median(ours, 'memory'):.0f}", f"{median(ours, 'requests'):.0f}",
        "yes" if kept else "no",
    ]  # fmt: skip


def main() -> None:
    """Run the workloads that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where sources and targets lie")
    parser.add_argument("workloads", nargs="*", default=["one-2g", "mixed-1g", "many-20k", "engine-1g"])
    arguments = parser.parse_args()
    head = [
        "workload",
        "wall",
        "CPU",
        "disk",
        "of CPU: hashing",
        "the floor",
        "rival's disk",
        "CPU-s/GiB",
        "memory MiB",
        "requests",
        "kept",
    ]
    hashing = hashing_seconds()
    rows = [head, ["---"] * len(head)]
    with nginx() as server, tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as disk:
        for workload in arguments.workloads:
            rows += compare(workload, server, Path(disk), arguments.pairs, hashing)
    print(", ".join(f"{key}: {value}" for key, value in machine().items()), end="\n\n")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

"""The model store on the clouds' emulators against their vendors' own clients: `make bench-stores`.

Push and pull of one file run in turn with the vendor's own transfers, each in a process of its own, with parts of
16 MiB, four threads and sums on both sides. Both ask for something small first, so that what is loaded, read and asked
for once is not counted. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare, turns
from benchmarks.floor import floor
from benchmarks.meter import measure
from benchmarks.processes import ROOT, serving

CLIENTS = ROOT / ".venv-stores" / "bin" / "python"
MIB = 1 << 20
PART = 16 * MIB
WORKERS = 4


# --- the rivals, each run in a process of its own ---------------------------------------------------------------------


def ours(place: dict[str, Any], verb: str, disk: Path, model: str) -> Callable[[], Any]:
    """Push a directory as a version, or pull one."""
    from airflow_provider_modelsync.core.models import Query
    from airflow_provider_modelsync.core.verbs.drive import driver_for
    from benchmarks.ours import move, registry_of

    registry = registry_of("modelstore:ModelStore", place["fields"])
    if place["fields"]["host"].startswith("gs:"):  # loaded at the first use
        import google_crc32c  # noqa: F401
    with driver_for(registry) as driver:
        driver.run(registry.list_versions("nothing", Query()))
    return partial(move, registry, verb, model, disk)


def azure(place: dict[str, Any], verb: str, disk: Path, model: str) -> Callable[[], Any]:
    """azure-storage-blob's own transfer, which compares each block's MD5 on the way up."""
    from azure.storage.blob import BlobServiceClient

    service = BlobServiceClient(
        place["url"], place["key"], max_block_size=PART, max_single_put_size=PART, max_single_get_size=PART,
        max_chunk_get_size=PART, connection_data_block_size=MIB,
    )  # fmt: skip
    blob = service.get_blob_client(place["container"], f"plain/{model}")
    blob.exists()

    def run() -> None:
        if verb == "push":
            with (disk / "model.bin").open("rb") as source:
                blob.upload_blob(source, max_concurrency=WORKERS, validate_content=True)
        else:
            disk.mkdir()
            with (disk / "model.bin").open("wb") as target:
                blob.download_blob(max_concurrency=WORKERS).readinto(target)

    return run


def gcs(place: dict[str, Any], verb: str, disk: Path, model: str) -> Callable[[], Any]:
    """google-cloud-storage's own transfer in parts, by threads, with sums as ours."""
    from google.cloud import storage
    from google.cloud.storage import transfer_manager
    from google.oauth2.service_account import Credentials

    credentials = Credentials.from_service_account_info(
        place["key"], scopes=["https://www.googleapis.com/auth/devstorage.read_write"]
    )
    client = storage.Client("project", credentials, client_options={"api_endpoint": place["url"]})
    blob = client.bucket(place["bucket"]).blob(f"plain/{model}")
    blob.exists()
    threads = {"chunk_size": PART, "worker_type": transfer_manager.THREAD, "max_workers": WORKERS}

    def run() -> None:
        if verb == "push":
            transfer_manager.upload_chunks_concurrently(disk / "model.bin", blob, checksum="crc32c", **threads)
        else:
            disk.mkdir()
            blob.reload()
            transfer_manager.download_chunks_concurrently(blob, disk / "model.bin", **threads)

    return run


RIVALS = {"azurite": (azure, "azure-storage-blob"), "gcs": (gcs, "google-cloud-storage")}


def child(who: str, verb: str, storage: str, disk: str, model: str) -> None:
    """Run one action and print what it cost this process."""
    place = json.loads(os.environ["BENCH_PLACE"])
    run = (ours if who == "ours" else RIVALS[storage][0])(place, verb, Path(disk), model)
    print(json.dumps(measure(run)))


def measured(who: str, verb: str, storage: str, place: dict[str, Any], disk: Path, model: str) -> dict[str, float]:
    """Run an action in a process of its own; return its figures."""
    python = sys.executable if who == "ours" else str(CLIENTS)
    done = subprocess.run(
        (python, __file__, "--child", who, verb, storage, str(disk), model),
        env=os.environ | {"BENCH_PLACE": json.dumps(place)}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit("a run failed")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# --- the storages -----------------------------------------------------------------------------------------------------


def azurite() -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """Return what runs Azurite, and what makes a place in it."""
    from tests.services.azurite import BlobService, running_azurite

    def new(service: BlobService) -> dict[str, Any]:
        container = service.new_container()
        root = f"abfs://{container}@{service.account}/models"
        fields = {"host": root, "endpoint_url": service.url, "password": service.key}
        return {"fields": fields, "url": service.url, "key": service.key, "container": container}

    return running_azurite(), new


def google() -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """Return what runs the stand-in for Google Cloud Storage, in a process of its own, and what makes a place in it."""

    @contextmanager
    def running() -> Iterator[dict[str, Any]]:
        with serving(_STAND_IN) as told:
            yield json.loads(told)

    def new(service: dict[str, Any]) -> dict[str, Any]:
        fields = {
            "host": f"gs://{service['bucket']}/models",
            "endpoint_url": service["url"],
            "password": json.dumps(service["key"]),
        }
        return {"fields": fields, **service}

    return running(), new


_STAND_IN = """
import json, sys
from tests.standins.gcs import GcsStandIn
with GcsStandIn() as gcs:
    print(json.dumps({"url": gcs.url, "bucket": gcs.bucket, "key": gcs.key_file()}), flush=True)
    sys.stdin.read()
"""

STORAGES = {"azurite": azurite, "gcs": google}


def compare(storage: str, disk: Path, source: Path, pairs: int) -> list[str]:
    """Push and pull one file both ways in alternating pairs."""
    running, new = STORAGES[storage]()
    size, rows = (source / "model.bin").stat().st_size, []
    with running as service:
        place = new(service)
        for verb in ("push", "pull"):
            runs: dict[str, list[dict[str, float]]] = {"ours": [], "rival": []}
            for pair in range(pairs):
                for who in turns(tuple(runs), pair):
                    where = source if verb == "push" else disk / f"{storage}-{who}-{pair}"
                    prepare(source if verb == "push" else None)
                    runs[who].append(measured(who, verb, storage, place, where, f"one-{pair}:v1"))
                print(f"  {storage}, {verb}: pair {pair + 1} of {pairs}", file=sys.stderr, flush=True)
            wall, cpu = (
                statistics.median(one[field] / other[field] for one, other in zip(*runs.values(), strict=True))
                for field in ("wall", "cpu")
            )
            floors = []
            for pair in range(pairs):
                prepare(source if verb == "push" else None)
                file = source / "model.bin" if verb == "push" else disk / f"{storage}-floor-{pair}"
                floors.append(floor(verb, file, size)["cpu"])
            gib, memory = size / (1 << 30), statistics.median(run["memory"] for run in runs["ours"])
            each = [f"{statistics.median(run['cpu'] for run in done) / gib:.2f}" for done in runs.values()]
            each.append(f"{statistics.median(floors) / gib:.2f}")
            cells = (storage, RIVALS[storage][1], f"{verb} of {size // MIB} MiB", f"{wall:.2f}", f"{cpu:.2f}", *each)
            rows.append(f"| {' | '.join(cells)} | {memory:.0f} |")
    return rows


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where sources and targets lie")
    parser.add_argument("storages", nargs="*", default=list(STORAGES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as disk:
        source = Path(disk) / "source"
        source.mkdir()
        block = random.Random("one").randbytes(MIB)
        with (source / "model.bin").open("wb") as writer:
            for number in range(arguments.mib):
                writer.write(number.to_bytes(8, "big") + block[8:])
        print("| storage | against | transfer | wall | CPU | CPU-s/GiB | the other's | the floor | memory MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for storage in arguments.storages:
            print("\n".join(compare(storage, Path(disk), source, arguments.pairs)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

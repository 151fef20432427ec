"""The model store in a bucket against plain boto3, and what a retry and a small change cost: `make bench-s3`.

The storage is Ceph's S3 gateway with its data in memory, started for this. `resume-half` and `delta-1of16` are counted
at a proxy before it. Push and pull of one file run in turn with boto3's own transfers, each in a process of its own,
imports not counted. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare, turns
from benchmarks.meter import measure
from benchmarks.ours import move, registry_of
from tests.services.ceph_rgw import running_rgw
from tests.services.s3 import S3Service
from tests.standins.http_server import After
from tests.standins.s3 import Request, S3StandIn

MIB = 1 << 20
PART = 16 * MIB


def write(root: Path, sizes: dict[str, int], seed: str) -> Path:
    """Write files, always the same bytes for one seed and path."""
    root.mkdir()
    for path, size in sizes.items():
        block = random.Random(f"{seed}/{path}").randbytes(MIB)
        with (root / path).open("wb") as writer:
            for number, start in enumerate(range(0, size, MIB)):
                writer.write((number.to_bytes(8, "big") + block[8:])[: size - start])
    return root


# --- the rivals, each run in a process of its own ---------------------------------------------------------------------


def ours(verb: str, service: S3Service, bucket: str, place: Path, model: str) -> Callable[[], Any]:
    """Push a directory as a version, or pull one."""
    fields = {
        "host": f"s3://{bucket}/models", "endpoint_url": service.endpoint, "region_name": "us-east-1",
        "login": service.access_key, "password": service.secret_key,
    }  # fmt: skip
    return partial(move, registry_of("modelstore:ModelStore", fields), verb, model, place)


def rival(verb: str, service: S3Service, bucket: str, place: Path, model: str) -> Callable[[], Any]:
    """boto3's own transfer of the one file, with its defaults."""
    client, key = service.client(), f"plain/{model}"

    def run() -> None:
        if verb == "push":
            client.upload_file(str(place / "model.bin"), bucket, key)
        else:
            place.mkdir()
            client.download_file(bucket, key, str(place / "model.bin"))

    return run


def child(who: str, verb: str, endpoint: str, access_key: str, bucket: str, place: str, model: str) -> None:
    """Run one action and print what it cost this process."""
    import_module("boto3")  # imports do not count
    service = S3Service(endpoint, access_key, os.environ["BENCH_SECRET"], checks_signatures=True)
    run = {"ours": ours, "rival": rival}[who](verb, service, bucket, Path(place), model)
    print(json.dumps(measure(run)))


def start(who: str, verb: str, service: S3Service, bucket: str, place: Path, model: str) -> subprocess.Popen[str]:
    """Start an action in a process of its own."""
    command = (sys.executable, __file__, "--child", who, verb)
    return subprocess.Popen(
        (*command, service.endpoint, service.access_key, bucket, str(place), model),
        env=os.environ | {"BENCH_SECRET": service.secret_key}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for an action and return its figures."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit("a run failed")
    figures: dict[str, float] = json.loads(output)
    return figures


# --- counts ----------------------------------------------------------------------------------------------------------


def sent(s3: S3StandIn) -> int:
    """Bytes of files that went up, without the store's records."""
    return sum(size for key, size in s3.uploaded.items() if "/.modelsync/" not in key)


def resume_half(service: S3Service, disk: Path) -> str:
    """Kill a push half way, and count what the next one sends."""
    source, parts = write(disk / "half", {"model.bin": 256 * MIB}, "half"), 256 * MIB // PART
    with S3StandIn(service) as s3:
        process = start("ours", "push", s3.service, s3.bucket, source, "half:v1")

        def half(_: Request) -> None:
            process.send_signal(signal.SIGKILL)

        s3.fault("UploadPart", "", After(half), nth=parts // 2)
        process.wait()
        time.sleep(2)  # until what was under way has arrived, or has not
        client = s3.backend.client()
        upload = client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"][0]
        listed = client.list_parts(Bucket=s3.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        there = len(listed.get("Parts", ()))
        s3.clear()
        finish(start("ours", "push", s3.service, s3.bucket, source, "half:v1"))
        again = sent(s3) // PART
        left = len(client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", ()))
    kept = "yes" if again == parts - there and not left else "no"
    return f"| `resume-half` | {parts} parts, {there} there when killed | {again} parts | missing ones | {kept} |"


def delta(service: S3Service, disk: Path) -> str:
    """Push a version of which one file of sixteen has changed, and count what is sent."""
    sizes = {f"{number:02}.bin": 16 * MIB for number in range(16)}
    with S3StandIn(service) as s3:
        finish(start("ours", "push", s3.service, s3.bucket, write(disk / "first", sizes, "delta"), "delta:v1"))
        second = write(disk / "second", sizes, "delta")
        (second / "07.bin").write_bytes(random.Random("changed").randbytes(16 * MIB))
        s3.clear()
        finish(start("ours", "push", s3.service, s3.bucket, second, "delta:v2"))
        moved, records, copies = sent(s3), sum(s3.uploaded.values()) - sent(s3), s3.count("CopyObject")
    kept = "yes" if moved == 16 * MIB else "no"
    return f"| `delta-1of16` | 16 files of 16 MiB, one changed | {moved // MIB} MiB and {records} bytes of records, {copies} copies | the file and the manifest | {kept} |"  # noqa: E501


# --- ratios ----------------------------------------------------------------------------------------------------------


def compare(service: S3Service, disk: Path, size: int, pairs: int) -> list[str]:
    """Push and pull one file both ways in alternating pairs."""
    bucket, source = service.new_bucket(), write(disk / "one", {"model.bin": size}, "one")
    rows = []
    for verb in ("push", "pull"):
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "rival": []}
        for pair in range(pairs):
            for who in turns(tuple(runs), pair):
                prepare(source)
                place = source if verb == "push" else disk / f"{who}-{pair}"
                runs[who].append(finish(start(who, verb, service, bucket, place, f"one-{pair}:v1")))
            print(f"  {verb}: pair {pair + 1} of {pairs}", file=sys.stderr, flush=True)
        wall, cpu = (
            statistics.median(one[field] / other[field] for one, other in zip(*runs.values(), strict=True))
            for field in ("wall", "cpu")
        )
        gib, memory = size / (1 << 30), statistics.median(run["memory"] for run in runs["ours"])
        each = [f"{statistics.median(run['cpu'] for run in done) / gib:.2f}" for done in runs.values()]
        rows.append(f"| {verb} of {size // MIB} MiB | {wall:.2f} | {cpu:.2f} | {' | '.join(each)} | {memory:.0f} |")
    return rows


def main() -> None:
    """Run everything and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="0: counts only")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where sources and targets lie")
    arguments = parser.parse_args()
    with running_rgw() as service, tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as disk:
        print("| workload | model | sent | limit | kept |\n| --- | --- | --- | --- | --- |")
        print(resume_half(service, Path(disk)))
        print(delta(service, Path(disk)), flush=True)
        if arguments.pairs:
            rows = compare(service, Path(disk), arguments.mib * MIB, arguments.pairs)
            print(
                "\n| transfer | wall | CPU | CPU-s/GiB | boto3's | memory MiB |\n| --- | --- | --- | --- | --- | --- |"
            )
            print("\n".join(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

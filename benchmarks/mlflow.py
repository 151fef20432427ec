"""Push to and pull from real MLflow servers against their own client: `make bench-mlflow`.

One server passes bytes on to and from its own disk, the other signs parts for a bucket in moto. Ours and theirs push
and pull a model of one file in turn, each in a process of its own, which has moved a small model before: what is loaded
on the way does not count. Ours hashes and compares every byte, theirs compares nothing. Only ratios within one run mean
anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import hashing_seconds, prepare, turns
from benchmarks.floor import floor
from benchmarks.meter import Figures
from benchmarks.ours import PROGRAM
from benchmarks.s3 import MIB, write
from tests.services.mlflow import Tracking, shared

ROOT = Path(__file__).parents[1]
LIMIT_CPU, LIMIT_MEMORY = 1.0, 64
WAYS = {"by proxy": "local", "by presigned parts": "bucket"}

THEIRS = """
import json, sys
from pathlib import Path
import mlflow
import mlflow.artifacts

from benchmarks.meter import measure

verb, name, place, small = sys.argv[1:]
client = mlflow.MlflowClient()

def move(verb, name, place):
    if verb == "push":
        logged = client.create_logged_model("0", "bench")
        client.log_model_artifacts(logged.model_id, place)
        client.finalize_logged_model(logged.model_id, "READY")
        client.create_registered_model(name)
        client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)
    else:
        Path(place).mkdir(parents=True, exist_ok=True)
        mlflow.artifacts.download_artifacts(f"models:/{name}/1", dst_path=place)

move("push", f"{name} {verb} small", small)
move("pull", f"{name} {verb} small", f"{place}-of-{name}-{verb}")
print(json.dumps(measure(lambda: move(verb, name, place))))
"""


def run(who: str, server: Tracking, verb: str, name: str, place: Path, source: Path) -> Figures:
    """Have a process of its own push or pull, and return what it measured.

    :param source: the model; beside it there is a small one.
    """
    prepare(source if verb == "push" else None)
    words = [verb, name, str(place), str(source.parent / "small")]
    if who == "ours":
        words = [sys.executable, "-c", PROGRAM, "mlflow:MLflow", json.dumps({"host": server.url}), *words]
    else:
        words = [str(server.python), "-c", THEIRS, *words]
    env = {**server.client_env(), "PYTHONPATH": str(ROOT), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    done = subprocess.run(words, env=env, cwd=place.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where the models lie")
    arguments = parser.parse_args()
    gib = arguments.mib / 1024
    print(f"SHA-256 alone costs {hashing_seconds():.2f} CPU-s/GiB here.\n")
    print(
        "| transfer | CPU-s/GiB, ours | theirs | the floor | ratio | wall s, ours | wall s, theirs "
        "| MiB of memory, ours | MiB, theirs | kept |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as scratch:
        disk = Path(scratch)
        source = write(disk / "source", {"model.bin": arguments.mib * MIB}, "mlflow")
        write(disk / "small", {"model.bin": MIB}, "small")
        for way, kind in WAYS.items():
            server = shared(kind)
            runs: dict[tuple[str, str], list[Figures]] = {}
            floors: dict[str, list[float]] = {"push": [], "pull": []}
            for number in range(arguments.pairs):
                for who in turns(("ours", "theirs"), number):
                    name, target = f"{who}-{number}", disk / who / "model"
                    target.parent.mkdir(exist_ok=True)
                    for verb, place in (("push", source), ("pull", target)):
                        runs.setdefault((verb, who), []).append(run(who, server, verb, name, place, source))
                    shutil.rmtree(target.parent)
                for verb, file in (("push", source / "model.bin"), ("pull", disk / f"floor-{kind}-{number}")):
                    prepare(source if verb == "push" else None)
                    floors[verb].append(floor(verb, file, arguments.mib * MIB)["cpu"] / gib)
                print(f"  {way}: pair {number + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
            for verb in ("push", "pull"):
                ours, theirs = (
                    {key: statistics.median(one[key] for one in runs[verb, who]) for key in ("wall", "cpu", "memory")}
                    for who in ("ours", "theirs")
                )
                pairs = zip(runs[verb, "ours"], runs[verb, "theirs"], strict=True)
                ratio = statistics.median(mine["cpu"] / other["cpu"] for mine, other in pairs)
                is_kept = ratio <= LIMIT_CPU and ours["memory"] <= LIMIT_MEMORY
                print(
                    f"| {verb} of {arguments.mib} MiB {way} | {ours['cpu'] / gib:.2f} | {theirs['cpu'] / gib:.2f} "
                    f"| {statistics.median(floors[verb]):.2f} | {ratio:.2f} | {ours['wall']:.1f} "
                    f"| {theirs['wall']:.1f} | {ours['memory']:.0f} | {theirs['memory']:.0f} "
                    f"| {'yes' if is_kept else 'no'} |"
                )


if __name__ == "__main__":
    main()

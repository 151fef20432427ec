"""A pull from the Hub against ``snapshot_download`` of its own client, without Xet: `make bench-huggingface`.

The stand-in of the Hub runs in a process of its own. Ours and theirs run in turn, each in a process of its own, imports
not counted. Ours compares every file with its hash, theirs compares sizes. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare, turns
from benchmarks.floor import floor
from benchmarks.ours import PROGRAM
from benchmarks.processes import ROOT, measured, serving

MIB = 1 << 20
NAME = "acme/model"
WORKLOADS = {"one-512MiB": {"model.safetensors": 512 * MIB}, "files-200": {f"f-{n}.json": 20_000 for n in range(200)}}
HUB = {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
VENDOR = ROOT / ".venv-vendors" / "huggingface" / "bin" / "python"

THEIRS = """
import json, sys
from benchmarks.meter import measure
from huggingface_hub import snapshot_download

fields, verb, name, target = sys.argv[1:]
print(json.dumps(measure(
    lambda: snapshot_download(name, local_dir=target, endpoint=json.loads(fields)["host"], token=False, max_workers=4)
)))
"""
SERVE = """
import json, sys
from pathlib import Path
from tests.standins.huggingface import HuggingFaceStandIn

with HuggingFaceStandIn(Path(sys.argv[1])) as server:
    from benchmarks.huggingface import fill
    fill(server, sys.argv[2])
    print(json.dumps({"host": server.url}), flush=True)
    sys.stdin.read()
"""


def fill(server: object, workload: str) -> None:
    """Publish the model of a workload, always the same bytes."""
    files = {}
    for path, size in WORKLOADS[workload].items():
        block = random.Random(path).randbytes(min(size, MIB))
        files[path] = b"".join(number.to_bytes(8, "big") + block[8:] for number in range(max(1, size // MIB)))
    server.publish(NAME, files)  # type: ignore[attr-defined]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=3, help="runs of each side")
    pairs = arguments.parse_args().pairs
    rivals: dict[str, tuple[object, ...]] = {
        "ours": (Path(sys.executable), PROGRAM, "huggingface:HuggingFaceHub"),
        "theirs": (VENDOR, THEIRS),
    }
    print(
        "| workload | CPU s, ours | theirs | the floor | ratio | seconds, ours | s, theirs | MiB of memory, ours "
        "| disk written |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for workload, files in WORKLOADS.items():
        with (
            tempfile.TemporaryDirectory(prefix="modelsync-bench-") as scratch,
            serving(SERVE, scratch, workload) as told,
        ):
            floors: list[float] = []
            sides: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for number in range(pairs):
                for side in turns(tuple(rivals), number):
                    prepare()
                    home = Path(scratch) / f"{side}-{number}"
                    hub = {"HF_HOME": f"{home}/hf", **HUB}
                    words = (told, "pull", NAME, home / "model")
                    sides[side].append(measured(*rivals[side], *words, HOME=str(home), **hub))
                prepare()
                floors.append(floor("pull", Path(scratch) / f"floor-{number}", sum(files.values()))["cpu"])
        ours, theirs = (
            {key: statistics.median(one[key] for one in runs) for key in runs[0]} for runs in sides.values()
        )
        print(
            f"| {workload} | {ours['cpu']:.2f} | {theirs['cpu']:.2f} | {statistics.median(floors):.2f} "
            f"| {ours['cpu'] / theirs['cpu']:.2f} "
            f"| {ours['wall']:.2f} | {theirs['wall']:.2f} | {ours['memory']:.0f} "
            f"| {ours['disk'] / sum(files.values()):.2f}x |"
        )


if __name__ == "__main__":
    main()

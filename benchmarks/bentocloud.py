"""Push to and pull from BentoCloud against ``bentoml``, its own client: `make bench-bentocloud`.

The stand-in of BentoCloud runs in a process of its own and signs URLs, as the service does. Ours and theirs move one
model in turn, a large file and many small ones, each in a process of its own that has moved a small model before. What
their client pushes lies in its local store already, and there its pull ends. Ours hashes every byte, theirs none. Only
ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare, turns
from benchmarks.meter import Figures
from benchmarks.ours import PROGRAM
from benchmarks.processes import ROOT, measured, serving
from benchmarks.s3 import MIB, write

VENDOR = ROOT / ".venv-vendors" / "bentocloud" / "bin" / "python"
SMALL_FILES = 200
LIMITS = {"push": (0.75, 0.5), "pull": (0.33, 0.3)}  # of their wall time, of their CPU

SERVE = """
import json, sys
from pathlib import Path
from tests.standins.bentocloud import BentoCloudStandIn

with BentoCloudStandIn(Path(sys.argv[1])) as server:
    print(json.dumps({"host": server.url, "password": server.token}), flush=True)
    sys.stdin.read()
"""
THEIRS = """
import json, os, shutil, sys
from benchmarks.meter import measure

fields, verb, name, place, small = sys.argv[1:]
url, token = json.loads(fields).values()
os.environ |= {"BENTO_CLOUD_API_ENDPOINT": url, "BENTO_CLOUD_API_KEY": token, "BENTOML_DO_NOT_TRACK": "true"}
output, sys.stdout = sys.stdout, sys.stderr  # where it draws its progress
import bentoml
from bentoml.cloud import BentoCloudClient

def create(name, source):
    with bentoml.models.create(name) as model:
        shutil.copytree(source, model.path, dirs_exist_ok=True)

def move(verb, name):
    if verb == "push":
        bentoml.models.push(name)
    else:
        BentoCloudClient().model.pull(name, force=True)

create(f"small-{name}-{verb}", small)
move("push", f"small-{name}-{verb}")
move("pull", f"small-{name}-{verb}")
if verb == "push":
    create(name, place)
    for path in os.scandir(bentoml.models.get(name).path):
        if path.is_file():
            open(path, "rb").read()
print(json.dumps(measure(lambda: move(verb, name))), file=output)
"""


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where the models lie")
    arguments = parser.parse_args()
    sizes = {"model.bin": arguments.mib * MIB} | {f"part-{number:03}.json": 20_000 for number in range(SMALL_FILES)}
    rivals: dict[str, tuple[object, ...]] = {
        "ours": (Path(sys.executable), PROGRAM, "bentocloud:BentoCloud"),
        "theirs": (VENDOR, THEIRS),
    }
    runs: dict[str, dict[str, list[Figures]]] = {verb: {"ours": [], "theirs": []} for verb in LIMITS}
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as scratch:
        disk = Path(scratch)
        source, small = write(disk / "source", sizes, "bentocloud"), write(disk / "small", {"model.bin": MIB}, "small")
        with serving(SERVE, disk / "server") as told:
            for number in range(arguments.pairs):
                for who in turns(tuple(rivals), number):
                    home = disk / f"{who}-{number}"
                    for verb, place in (("push", source), ("pull", home / "model")):
                        prepare(source if verb == "push" else None)
                        words = (told, verb, f"{who}-{number}:v1", place, small)
                        bentoml = {"HOME": str(home), "BENTOML_HOME": f"{home}/{verb}"}
                        home.mkdir(exist_ok=True)
                        runs[verb][who].append(measured(*rivals[who], *words, **bentoml))
                    shutil.rmtree(home)
                print(f"  pair {number + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
    print(
        "| transfer | wall | CPU | CPU s, ours | theirs | wall s, ours | theirs | MiB of memory, ours | theirs | kept |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for verb, sides in runs.items():
        limits = dict(zip(("wall", "cpu"), LIMITS[verb], strict=True))
        ratios = {
            key: statistics.median(one[key] / other[key] for one, other in zip(*sides.values(), strict=True))
            for key in limits
        }
        figures = [f"{ratios[key]:.2f} (≤ {limit})" for key, limit in limits.items()]
        for key, form in (("cpu", ".2f"), ("wall", ".1f"), ("memory", ".0f")):
            figures += (format(statistics.median(one[key] for one in some), form) for some in sides.values())
        is_kept = all(ratios[key] <= limit for key, limit in limits.items())
        what = f"{verb} of {arguments.mib} MiB and {SMALL_FILES} files"
        print(f"| {what} | {' | '.join(figures)} | {'yes' if is_kept else 'no'} |")


if __name__ == "__main__":
    main()

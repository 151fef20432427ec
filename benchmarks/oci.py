"""An OCI registry against oras-py and skopeo: `make bench-oci`.

The registry is Debian's docker-registry on this machine, its storage a directory. Each pushes and pulls a model of one
file in turn, each in a process of its own and to a repository of its own. Imports count for nobody. Only ratios within
one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare, turns
from benchmarks.meter import Figures, measure
from benchmarks.s3 import MIB, write
from tests.services.docker_registry import DockerRegistry, running

ROOT = Path(__file__).parents[1]
CLIENTS = Path(os.environ.get("MODELSYNC_OCI_CLIENTS", ROOT / ".venv-oci/bin/python"))
LIMIT_CPU, LIMIT_MEMORY = 0.8, 64

# Measured as our own child is.
ORAS = """
import json, sys
import oras.client
from benchmarks.meter import measure

verb, place, target = sys.argv[1:]
client = oras.client.OrasClient(insecure=True)

def work():
    if verb == "push":
        client.push(target=target, files=["model.bin"], disable_path_validation=True)
    else:
        client.pull(target=target, outdir=place)

print(json.dumps(measure(work)))
"""

# A program's peak is never told as less than that of who has started it: a small process does.
SKOPEO = """
import json, resource, subprocess, sys
from benchmarks.meter import measure

figures = measure(lambda: subprocess.run(sys.argv[1:], check=True))
print(json.dumps(figures | {"memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""


def child(verb: str, url: str, place: str) -> None:
    """Push or pull with this provider, and print what it cost this process."""
    import awscrt.checksums
    import pathspec.gitignore  # what is loaded late counts for nobody, either

    from benchmarks.ours import move, registry_of

    del awscrt, pathspec
    registry = registry_of("oci:OCIRegistry", {"host": url})
    print(json.dumps(measure(lambda: move(registry, verb, "model:v1", Path(place)))))


def ours(verb: str, server: DockerRegistry, repository: str, place: Path, disk: Path) -> Figures:
    command = (sys.executable, __file__, "--child", verb, f"{server.url}/{repository}", str(place))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def oras(verb: str, server: DockerRegistry, repository: str, place: Path, disk: Path) -> Figures:
    cwd = place if verb == "push" else disk
    command = (CLIENTS, "-c", ORAS, verb, str(place), f"{server.host}/{repository}/model:v1")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd, env=env)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def skopeo(verb: str, server: DockerRegistry, repository: str, place: Path, disk: Path) -> Figures:
    """Carry the artifact to or from a directory, as skopeo lays it out; what it pushes is fetched before."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(disk), "PYTHONPATH": str(ROOT)}
    remote = f"docker://{server.host}/{repository}/model:v1"
    if verb == "push":
        layout = disk / "layout"
        if not layout.exists():
            with running(disk / "prepared") as other:  # skopeo remembers what it has seen where, and would mount it
                ours("push", other, "prepared", place, disk)
                source = f"docker://{other.host}/prepared/model:v1"
                command = ("skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"dir:{layout}")
                subprocess.run(command, check=True, env=environment)
        words = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"dir:{layout}", remote]
    else:
        words = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", remote, f"dir:{place}"]
    done = subprocess.run((sys.executable, "-c", SKOPEO, *words), check=True, env=environment, stdout=subprocess.PIPE)
    figures: Figures = json.loads(done.stdout)
    return figures


WHO: dict[str, Callable[[str, DockerRegistry, str, Path, Path], Figures]] = {
    "ours": ours,
    "oras-py": oras,
    "skopeo": skopeo,
}


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where all of it lies")
    arguments = parser.parse_args()
    gib = arguments.mib / 1024
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as name:
        disk = Path(name)
        source = write(disk / "source", {"model.bin": arguments.mib * MIB}, "oci")
        runs: dict[str, dict[str, list[Figures]]] = {verb: {who: [] for who in WHO} for verb in ("push", "pull")}
        for number in range(arguments.rounds):
            for who, run in turns(tuple(WHO.items()), number):
                prepare(source)
                scratch = disk / f"{who}-{number}"
                with running(scratch / "registry") as server:
                    for verb, place in (("push", source), ("pull", scratch / "pulled")):
                        runs[verb][who].append(run(verb, server, "bench", place, disk))
            print(f"  round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        print("| transfer | who | wall s | CPU-s/GiB | ours to it | memory MiB | kept |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for verb, by_who in runs.items():
            for who, done in by_who.items():
                wall, cpu, used = (statistics.median(one[key] for one in done) for key in ("wall", "cpu", "memory"))
                pairs = zip(by_who["ours"], done, strict=True)
                ratio = statistics.median(mine["cpu"] / other["cpu"] for mine, other in pairs)
                is_kept = used <= LIMIT_MEMORY if who == "ours" else ratio <= LIMIT_CPU
                print(
                    f"| {verb} of {arguments.mib} MiB | {who} | {wall:.1f} | {cpu / gib:.2f} | {ratio:.2f} "
                    f"| {used:.0f} | {'yes' if is_kept else 'no'} |"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

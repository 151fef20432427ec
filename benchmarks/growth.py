"""How costs grow with the size of a model, its files and the versions that there are: `make bench-growth`.

The store is a directory. Each figure comes from a process of its own, imports not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import prepare
from benchmarks.meter import measure

MIB = 1 << 20
SIZES = {False: (64, 256, 1024, 4096), True: (16, 64, 256)}
FILES = {False: (100, 1000, 10_000, 20_000), True: (100, 1000)}
VERSIONS = {False: (10, 100, 1000, 10_000), True: (10, 100, 1000)}


def child(verb: str, root: str, place: str) -> None:
    """Carry out one verb and print what it cost this process."""
    import airflow_provider_modelsync.core.transfer.download
    import airflow_provider_modelsync.core.transfer.upload  # noqa: F401
    from airflow_provider_modelsync.core.models import Query
    from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
    from airflow_provider_modelsync.core.settings import RegistrySettings
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.verbs.drive import driver_for
    from airflow_provider_modelsync.core.verbs.pull import pull
    from airflow_provider_modelsync.core.verbs.push import push

    registry = ModelStore(RegistrySettings(conn_id="bench", host=f"file://{root}"))

    def work() -> None:
        with driver_for(registry) as driver:
            ref = registry.parse("model:v1")
            if verb == "push":
                push(registry, driver, place, ref, Control())
            elif verb == "pull":
                pull(registry, driver, ref, place, Control(), query=Query())
            else:
                driver.run(registry.get(registry.parse("model"), Query()))

    print(json.dumps(measure(work)))


def measured(verb: str, root: Path, place: Path) -> dict[str, float]:
    """Run a verb in a process of its own."""
    prepare(place if verb == "push" else None)
    command = (sys.executable, __file__, "--child", verb, str(root), str(place))
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def grow(title: str, models: dict[int, Path], disk: Path) -> None:
    """Print what a push and a pull of each model cost."""
    print(f"| {title} | push CPU s | pull CPU s | push memory MiB | pull memory MiB |")
    print("| --- | --- | --- | --- | --- |")
    for count, source in models.items():
        root = disk / f"store-{title}-{count}"
        root.mkdir()
        up, down = measured("push", root, source), measured("pull", root, disk / f"target-{title}-{count}")
        cells = (f"{up['cpu']:.3f}", f"{down['cpu']:.3f}", f"{up['memory']:.0f}", f"{down['memory']:.0f}")
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)
    print()


def grow_versions(counts: tuple[int, ...], source: Path, disk: Path) -> None:
    """Print what `latest` and a push cost where there are many versions."""
    print("| versions | latest CPU s | push CPU s |")
    print("| --- | --- | --- |")
    for count in counts:
        root = disk / f"store-versions-{count}"
        root.mkdir()
        measured("push", root, source)
        records = root / "model" / ".modelsync"
        manifest = (records / "v1.json").read_bytes()
        (records / "v1.json").rename(records / "w0.json")
        for number in range(count):
            record = manifest.replace(b'"version":"v1"', b'"version":"w%d"' % number)
            (records / f"w{number}.json").write_bytes(record)
        newest, push = measured("latest", root, source), measured("push", root, source)
        print(f"| {count} | {newest['cpu']:.3f} | {push['cpu']:.3f} |", flush=True)
    print()


def write(root: Path, count: int, size: int) -> Path:
    """Write so many files of one size."""
    block = random.Random(size).randbytes(min(size, MIB))
    for number in range(count):
        file = root / f"{number // 100:03}" / f"{number:05}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as writer:
            for _ in range(size // len(block)):
                writer.write(block)
    return root


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less, in less time")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where all of it lies")
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="modelsync-bench-", dir=arguments.disk) as name:
        disk = Path(name)
        grow("MiB", {mib: write(disk / f"size-{mib}", 1, mib * MIB) for mib in SIZES[quick]}, disk)
        grow("files", {count: write(disk / f"files-{count}", count, 10 << 10) for count in FILES[quick]}, disk)
        grow_versions(VERSIONS[quick], write(disk / "one", 1, 1000), disk)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

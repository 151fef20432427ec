"""All benchmarks in one run: `make bench` (25 minutes on two cores) and `make bench-quick` (3 minutes).

Each runs as its own make target does; the tables that it prints are kept as JSON, with the machine's facts, in
``build/bench/``. ``--plots`` draws how costs grow from what a run has left there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fair import machine
from benchmarks.plots import draw

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "build" / "bench"
Table = list[dict[str, str]]

# Name → what it runs with, as a whole and quickly; what is None takes too long to be quick.
BENCHMARKS: dict[str, tuple[list[str], list[str] | None]] = {
    "growth": ([], ["--quick"]),
    "transfer": (["--pairs", "2"], ["--pairs", "1", "many-20k"]),
    "s3": (["--pairs", "2", "--mib", "256"], None),
    "oci": (["--rounds", "2", "--mib", "256"], None),
    "stores": (["--pairs", "2", "--mib", "256"], None),
    "huggingface": (["--pairs", "2"], None),
    "bentocloud": (["--pairs", "2"], None),
    "mlflow": (["--pairs", "2", "--mib", "256"], None),
    "polling": (["--seconds", "21"], ["--seconds", "0"]),
}


def tables_in(text: str) -> list[Table]:
    """Return the Markdown tables that a benchmark has printed."""
    tables: list[Table] = []
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = cells
            tables.append([])
        elif any(cell.strip("-: ") for cell in cells):
            tables[-1].append(dict(zip(head, cells, strict=False)))
    return tables


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run one benchmark; what it prints is shown as it comes."""
    print(f"\n{name}\n", flush=True)
    started = time.monotonic()
    command = (sys.executable, str(HERE / f"{name}.py"), *arguments)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    seconds = round(time.monotonic() - started)
    return {"seconds": seconds, "failed": done.returncode != 0, "tables": tables_in(done.stdout)}


def main() -> None:
    """Run what was asked for, and leave the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in 3 minutes")
    parser.add_argument("--plots", type=Path, help="only draw how costs grow, from the last run, into a directory")
    parser.add_argument("names", nargs="*", help=f"some of them only: {', '.join(BENCHMARKS)}")
    arguments = parser.parse_args()
    last = RESULTS / "last.json"
    if arguments.plots:
        for path in draw(json.loads(last.read_text()), arguments.plots):
            print(path)
        return
    facts = machine()
    for key, value in facts.items():
        print(f"{key}: {value}")
    results: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts}
    for name, (whole, quick) in BENCHMARKS.items():
        chosen = quick if arguments.quick else whole
        if chosen is not None and name in (arguments.names or BENCHMARKS):
            results[name] = run(name, chosen)
    RESULTS.mkdir(parents=True, exist_ok=True)
    stamp = results["when"].replace(":", "")
    for place in (RESULTS / f"{stamp}.json", last):
        place.write_text(json.dumps(results, indent=1) + "\n")
    print(f"left in {last.relative_to(ROOT)}")
    if failed := [name for name in BENCHMARKS if results.get(name, {}).get("failed")]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

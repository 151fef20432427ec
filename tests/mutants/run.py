"""Run mutants: each in a process forked from one that has loaded what tests need, on the tests that reach its line.

``python -m tests.mutants.run [AREA …]``. Results lie in ``build/mutants``; the next run goes on where one was ended.
Survivors that ``survivors.toml`` does not give a reason for are told, and end the run with 1 where none may be.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.mutants.areas import AREAS, STRICT

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "build" / "mutants"
SURVIVORS = Path(__file__).with_name("survivors.toml")
LISTER = ROOT / ".venv-mutants" / "bin" / "python"
MEMORY = Path("/dev/shm")  # no mutant needs a disk: bytes in memory are durable at once
MOST_TESTS = 40  # of the quickest that reach a line
CPU_SECONDS, SECONDS = 60, 240
OPTIONS = ("-q", "-x", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header", "--hypothesis-seed=0")

Mutant = dict[str, Any]


def key(mutant: Mutant) -> tuple[str, str, str, str]:
    """Return what tells a mutant from others, whatever line it is on."""
    return (mutant["module"], mutant["place"], mutant["was"], mutant["is"])


def reasons() -> dict[tuple[str, str, str, str], str]:
    """Return the mutants that may survive, and why."""
    return {key(entry): entry["reason"] for entry in tomllib.loads(SURVIVORS.read_text()).get("survivor", ())}


def listed(modules: Iterable[str]) -> list[Mutant]:
    done = subprocess.run(
        [LISTER, "tests/mutants/mutations.py", *modules], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


class Reach:
    """Which tests reach a line of a module, the quickest first."""

    def __init__(self, area: str, tests: Iterable[str]) -> None:
        import coverage

        data, report = SCRATCH / f"{area}.coverage", SCRATCH / f"{area}.xml"
        if not report.exists():
            covered = ["--cov=airflow_provider_modelsync.core", "--cov-context=test", "--cov-report="]
            environment = os.environ | {"COVERAGE_FILE": str(data)}
            options = [option for option in OPTIONS if option != "-x"]
            command = [sys.executable, "-m", "pytest", *options, *covered, f"--junitxml={report}", *tests]
            subprocess.run(command, cwd=ROOT, check=True, env=environment)
        self._data = coverage.CoverageData(str(data))
        self._data.read()
        self._seconds: Counter[str] = Counter()
        for case in ET.parse(report).iter("testcase"):
            self._seconds[f"{case.get('classname')}.{case.get('name')}"] = float(case.get("time") or 0)

    def _time(self, test: str) -> float:
        return self._seconds[test.replace("/", ".").replace(".py::", ".").replace("::", ".")]

    def tests(self, module: str, line: int) -> list[str]:
        """Return the ids of tests that run a line; all that touch the module when it runs at import only."""
        contexts = self._data.contexts_by_lineno(str(ROOT / module))
        found = {context.partition("|")[0] for context in contexts.get(line, ())} - {""}
        if not found:
            found = {context.partition("|")[0] for all_of in contexts.values() for context in all_of} - {""}
        return sorted(found, key=self._time)[:MOST_TESTS]


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads a mutant in its module's place."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = mutant["module"].removesuffix(".py").replace("/", ".")
        self._path = str(ROOT / mutant["module"])
        self._source = mutant["source"]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=self._path)

    def exec_module(self, module: Any) -> None:
        module.__file__ = self._path
        exec(compile(self._source, self._path, "exec"), module.__dict__)


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Whether none of the tests notices a mutant."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
        sys.meta_path.insert(0, Instead(mutant))
        try:
            import pytest

            status = int(pytest.main([*OPTIONS, *tests]))
        except BaseException:
            status = 1
        os._exit(status)
    until = time.monotonic() + SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what its tests have left running
    return os.WIFEXITED(ended[1]) and os.WEXITSTATUS(ended[1]) == 0


def _known(path: Path) -> Iterator[Mutant]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def run(area: str) -> list[Mutant]:
    """Run an area's mutants; return those that survive."""
    modules, tests = AREAS[area]
    mutants = listed(modules)
    reach = Reach(area, tests)
    results = SCRATCH / f"{area}.jsonl"
    known = {(*key(result), result["line"]): result["survives"] for result in _known(results)}
    survivors = []
    with results.open("a") as file:
        for number, mutant in enumerate(mutants, 1):
            place = (*key(mutant), mutant["line"])
            if place not in known:
                found = reach.tests(mutant["module"], mutant["line"])
                known[place] = not found or survives(mutant, found)
                facts = {name: value for name, value in mutant.items() if name != "source"}
                file.write(json.dumps({**facts, "survives": known[place], "tests": len(found)}) + "\n")
                file.flush()
            if known[place]:
                survivors.append(mutant)
            if number % 25 == 0 or number == len(mutants):
                print(f"{area}: {number} of {len(mutants)}, {len(survivors)} survive", flush=True)
    return survivors


def main(areas: list[str]) -> int:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if MEMORY.is_dir():
        os.environ["TMPDIR"] = str(MEMORY / f"modelsync-mutants-{os.getpid()}")
        Path(os.environ["TMPDIR"]).mkdir()
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(SCRATCH / "hypothesis")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of mutants
    try:
        found = {area: run(area) for area in areas or AREAS}
    finally:
        if MEMORY.is_dir():
            shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    known, failed = reasons(), False
    for area, survivors in found.items():
        for mutant in survivors:
            if key(mutant) not in known:
                failed |= area in STRICT
                print(f"{mutant['module']}:{mutant['line']} {mutant['place']}\n  - {mutant['was']}\n  + {mutant['is']}")
    return int(failed)


def _preload() -> None:
    """Load what tests need and no mutant is in."""
    import boto3  # noqa: F401
    import httpx  # noqa: F401
    import hypothesis  # noqa: F401
    import pydantic  # noqa: F401
    import urllib3  # noqa: F401


if __name__ == "__main__":
    _preload()
    sys.exit(main(sys.argv[1:]))

"""Run mutants: each in a process forked from one that has collected the tests, on those that reach its line.

``python -m tests.mutants.run [AREA …]``. Results lie in ``build/mutants``; the next run goes on where one was ended.
Survivors that ``survivors.toml`` does not give a reason for are told, and end the run with 1 where none may be.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutants.areas import AREAS, STRICT

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "build" / "mutants"
SURVIVORS = Path(__file__).with_name("survivors.toml")
LISTER = ROOT / ".venv-mutants" / "bin" / "python"
MEMORY = Path("/dev/shm")  # no mutant needs a disk: bytes in memory are durable at once
MOST_SECONDS = 60  # of tests for one mutant
SECONDS = 240  # for one test
OPTIONS = ("-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header", "--hypothesis-seed=0")

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
            covered = [
                "-p",
                "tests.mutants.uncached",
                "--cov=airflow_provider_modelsync.core",
                "--cov-context=test",
                "--cov-report=",
            ]
            environment = os.environ | {"COVERAGE_FILE": str(data)}
            command = [sys.executable, "-m", "pytest", *OPTIONS, *covered, f"--junitxml={report}", *tests]
            subprocess.run(command, cwd=ROOT, check=True, env=environment)
        self._data = coverage.CoverageData(str(data))
        self._data.read()
        self._seconds: Counter[str] = Counter()
        for case in ET.parse(report).iter("testcase"):
            self._seconds[f"{case.get('classname')}.{case.get('name')}"] = float(case.get("time") or 0)

    def seconds(self, test: str) -> float:
        return self._seconds[test.replace("/", ".").replace(".py::", ".").replace("::", ".")]

    def tests(self, module: str, line: int) -> list[str]:
        """Return the ids of tests: those that run a line, or the one before it that is run at all, then the others.

        What runs in processes that tests fork is not told. The quickest come first; what takes too long is left out.
        """
        contexts = self._data.contexts_by_lineno(str(ROOT / module))
        run = max((one for one in contexts if one <= line), default=0)
        reach, all_that_run = (
            {context.partition("|")[0] for line in lines for context in contexts.get(line, ())} - {""}
            for lines in ([run], contexts)
        )
        quickest = sorted(all_that_run, key=lambda test: (test not in reach, self.seconds(test)))
        until = accumulate(map(self.seconds, quickest))
        return [test for test, seconds in zip(quickest, until, strict=True) if seconds < MOST_SECONDS]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _own(code: CodeType) -> tuple[object, ...]:
    """Return what a code object does, but for those within it."""
    constants = [repr(constant) for constant in code.co_consts if not isinstance(constant, CodeType)]
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable)


def _functions() -> list[FunctionType]:
    """Return all functions of the package, whoever holds them."""
    gc.unfreeze()
    package = str(ROOT / "airflow_provider_modelsync")
    return [
        one for one in gc.get_objects() if type(one) is FunctionType and one.__code__.co_filename.startswith(package)
    ]


def replaced(path: Path, source: str) -> dict[tuple[str, int], CodeType] | None:
    """Return the code that a mutant's functions have; nothing when it differs in more than functions."""
    was, now = (
        list(_codes(compile(text, str(path), "exec", dont_inherit=True))) for text in (path.read_text(), source)
    )
    if len(was) != len(now):
        return None
    for before, after in zip(was, now, strict=True):
        is_function = before.co_flags & inspect.CO_OPTIMIZED
        if _own(before) != _own(after) and not (is_function and before.co_freevars == after.co_freevars):
            return None
    return {(before.co_qualname, before.co_firstlineno): after for before, after in zip(was, now, strict=True)}


class Mutated:
    """As pytest's loop over tests: runs those that reach a mutant, for one mutant after the other."""

    def __init__(self, area: str, mutants: list[Mutant], reach: Reach) -> None:
        self.area, self.mutants, self.reach = area, mutants, reach
        self.survivors: list[Mutant] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        results = SCRATCH / f"{self.area}.jsonl"
        known = {(*key(result), result["line"]): result["survives"] for result in _known(results)}
        functions = _functions()
        for module in {mutant["module"] for mutant in self.mutants}:
            unchanged = {"module": module, "source": (ROOT / module).read_text()}
            there = [items[test] for test in self.reach.tests(module, 0) if test in items]
            assert survives(session, functions, unchanged, there, self.reach), f"{module}, unchanged, is noticed"
        with results.open("a") as file:
            for number, mutant in enumerate(self.mutants, 1):
                place = (*key(mutant), mutant["line"])
                if place not in known:
                    tests = self.reach.tests(mutant["module"], mutant["line"])
                    there = [items[test] for test in tests if test in items]
                    known[place] = survives(session, functions, mutant, there, self.reach)
                    facts = {name: value for name, value in mutant.items() if name != "source"}
                    file.write(json.dumps({**facts, "survives": known[place], "tests": len(tests)}) + "\n")
                    file.flush()
                if known[place]:
                    self.survivors.append(mutant)
                if number % 25 == 0 or number == len(self.mutants):
                    print(f"{self.area}: {number} of {len(self.mutants)}, {len(self.survivors)} survive", flush=True)
        return True


def survives(
    session: pytest.Session, functions: list[FunctionType], mutant: Mutant, items: list[pytest.Item], reach: Reach
) -> bool:
    """Whether none of the tests notices a mutant. One that never ends is noticed."""
    path = ROOT / mutant["module"]
    codes = replaced(path, mutant["source"])
    alive, tell = os.pipe()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, ignore_cleanup_errors=True) as scratch:
        if (pid := os.fork()) == 0:
            os.setsid()
            silence = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silence, descriptor)
            os.chmod(scratch, 0o1777)  # some tests are other users for a while
            os.environ["TMPDIR"] = tempfile.tempdir = scratch
            if codes is None:
                _limit(sum(reach.seconds(item.nodeid) for item in items))
                (Path(scratch) / "mutant.json").write_text(json.dumps(mutant))
                os.environ["MODELSYNC_MUTANT"] = str(Path(scratch) / "mutant.json")
                command = ["-m", "pytest", "-x", *OPTIONS, "-p", "tests.mutants.instead"]
                os.execv(sys.executable, [sys.executable, *command, *[item.nodeid for item in items]])
            with suppress(BaseException):
                for function in functions:
                    if function.__code__.co_filename == str(path):
                        function.__code__ = codes[function.__code__.co_qualname, function.__code__.co_firstlineno]
                for item, following in zip(items, [*items[1:], None], strict=True):
                    os.write(tell, b".")
                    _limit(reach.seconds(item.nodeid))
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.testsfailed:
                        break
                else:
                    os._exit(0)
            os._exit(1)
        os.close(tell)
        until = time.monotonic() + SECONDS
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if select.select([alive], [], [], 0.02)[0]:
                if os.read(alive, 1):
                    until = time.monotonic() + SECONDS
                else:
                    time.sleep(0.02)
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                break
        os.close(alive)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what its tests have left running
    return os.WIFEXITED(ended[1]) and os.WEXITSTATUS(ended[1]) == 0


def _limit(seconds: float) -> None:
    """Have this process killed when tests take much more of a processor than they do of time without a mutant."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime + 10 + 4 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _known(path: Path) -> Iterator[Mutant]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def run(area: str) -> list[Mutant]:
    """Run an area's mutants; return those that survive."""
    modules, tests = AREAS[area]
    mutated = Mutated(area, listed(modules), Reach(area, tests))
    status = pytest.main([*OPTIONS, "--capture=no", "--hypothesis-profile=mutants", *tests], plugins=[mutated])
    if status:
        raise SystemExit(status)
    return mutated.survivors


def main(areas: list[str]) -> int:
    if len(areas) != 1:  # each in a process of its own
        return max(subprocess.call([sys.executable, "-m", "tests.mutants.run", area]) for area in areas or AREAS)
    (area,) = areas
    SCRATCH.mkdir(parents=True, exist_ok=True)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(SCRATCH / "hypothesis")
    # What fails is not made smaller.
    settings.register_profile(
        "mutants",
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    known, failed = reasons(), False
    for mutant in run(area):
        if key(mutant) not in known:
            failed |= area in STRICT
            print(f"{mutant['module']}:{mutant['line']} {mutant['place']}\n  - {mutant['was']}\n  + {mutant['is']}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

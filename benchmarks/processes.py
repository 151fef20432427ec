"""Processes of benchmarks: a server, and whoever is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.meter import Figures

ROOT = Path(__file__).parents[1]


@contextmanager
def serving(script: str, *arguments: object) -> Iterator[str]:
    """Run a server for the block, and yield the line that it prints once it listens.

    :param script: Python that prints one line, and ends with its input.
    """
    command = (sys.executable, "-c", script, *map(str, arguments))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def measured(python: object, script: object, /, *arguments: object, **environment: str) -> Figures:
    """Have a process do some work, and return its figures.

    :param python: the interpreter.
    :param script: Python whose last line of output is its figures as JSON.
    :param environment: what it has besides a search path.
    """
    command = [str(python), "-c", str(script), *map(str, arguments)]
    environment = {"PATH": os.defpath, "NO_PROXY": "*", **environment}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures

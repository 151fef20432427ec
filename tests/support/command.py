"""Airflow's command line without a process of its own, which takes seconds to load Airflow."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from airflow_provider_modelsync.cli.definition import main
from airflow_provider_modelsync.compat import READS_FORMS

ALONE = "modelsync, without Airflow's before it"
ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Run:
    """What a command has left.

    :param status: as the shell would see it.
    """

    status: int
    stdout: str
    stderr: str


def airflow(*arguments: object, stdout: int | None = None, **env: str) -> Run:
    """Run a command of Airflow, and leave the process as it was before.

    :param stdout: a descriptor to print to; without it, what is printed is returned.
    :param env: variables that only the command sees.
    """
    with _own_standard_streams(stdout) as (printed, told), _own_state():
        os.environ.update(env)
        status = _status_of(*map(str, arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        printed.seek(0)
        told.seek(0)
        return Run(status, printed.read(), told.read())


def modelsync_alone(*arguments: object, **env: str) -> Run:
    """Run this package's own command; see :func:`airflow`."""
    return airflow(ALONE, *arguments, **env)


def _status_of(program: str, *arguments: str) -> int:
    from airflow.cli.cli_parser import get_parser

    try:
        if program == ALONE or (program == "modelsync" and not READS_FORMS):  # both came with Airflow 3.2
            main(arguments)
        else:
            args = get_parser().parse_args((program, *arguments))
            args.func(args)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _own_standard_streams(stdout: int | None) -> Iterator[tuple[IO[str], IO[str]]]:
    """Have the descriptors 1 and 2, and Python's streams on them, lead to files."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as told, ExitStack() as undo:
        for number, descriptor in ((1, printed.fileno() if stdout is None else stdout), (2, told.fileno())):
            kept = os.dup(number)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        try:
            yield printed, told
        finally:
            sys.stdout, sys.stderr = streams


@contextmanager
def _own_state() -> Iterator[None]:
    """Put back what a command may change, as its process ends with it: environment, signals and logs."""
    environment, handlers = dict(os.environ), {number: signal.getsignal(number) for number in ENDING}
    loggers = [(one, one.level, one.propagate, one.handlers[:]) for one in map(logging.getLogger, (None, "modelsync"))]
    try:
        yield
    finally:
        for one, level, propagate, its_handlers in loggers:
            one.setLevel(level)
            one.propagate = propagate
            one.handlers[:] = its_handlers
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)

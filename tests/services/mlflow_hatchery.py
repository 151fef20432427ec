"""Starts MLflow's servers out of one process, which has loaded what takes them seconds; runs with the interpreter of an
environment that has them.

    python -P mlflow_hatchery.py

Each line of standard input is a JSON object: the ``module`` to run, its ``arguments``, ``environment`` and
``directory``, where the file ``log`` gets what it prints. Each is answered by the id of its process, which leads a
group. All end when standard input does, however that came about.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any

_LOADED = (
    "alembic.command",
    "boto3",
    "fastapi",
    "flask",
    "gunicorn.app.wsgiapp",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "uvicorn",
)


def _become(module: str, arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """Be a server; returns when it has ended."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(directory)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open("log", os.O_WRONLY | os.O_CREAT, 0o600)
    for number, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    for name in _LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that who asks for a process that has ended finds none
    groups: list[int] = []
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                _become(**asked)
            except SystemExit as error:
                os._exit(error.code if isinstance(error.code, int) else 1)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        groups.append(pid)
        print(pid, flush=True)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)


if __name__ == "__main__":
    main()

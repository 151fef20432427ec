"""PostgreSQL with its data in a temporary directory, on a free port of 127.0.0.1.

Needs the programs of Debian's ``postgresql`` (``make test-celery`` installs them), and no privileges.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.local_airflow import free_port
from tests.services.daemons import daemon, run_as, scratch, unprivileged

# Debian keeps the programs of each version away from the PATH.
_DEBIAN = Path("/usr/lib/postgresql")
# Nobody will need the data after a power cut.
_OPTIONS = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "unix_socket_directories=")


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server; ready in about three seconds.

    :return: an empty database, as ``user:password@host:port/name``.
    """
    account, port, password = unprivileged("postgres", "nobody"), free_port(), secrets.token_hex(20)
    asked = (_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port))
    with scratch("postgres", account) as root:
        secret = root / "password"
        secret.write_text(password)
        secret.chmod(0o444)  # nobody else can enter the directory
        _run(
            *(*run_as(account), _program("initdb"), "-D", f"{root}/data", "--no-sync", "--locale=C.UTF-8"),
            *("--username=tests", "--auth=scram-sha-256", f"--pwfile={secret}"),
        )
        with daemon(
            (_program("postgres"), "-D", f"{root}/data", "-h", "127.0.0.1", "-p", str(port), *_OPTIONS),
            root / "log",
            account=account,
            ready=lambda: subprocess.run(asked, check=False).returncode == 0,
            end=signal.SIGQUIT,  # SIGKILL would leave its shared memory behind
        ):
            yield f"tests:{password}@127.0.0.1:{port}/postgres"


def _program(name: str) -> str:
    """Return the path of a program of the newest version."""
    versions = sorted(_DEBIAN.glob("[0-9]*"), key=lambda path: int(path.name), reverse=True)
    path = os.pathsep.join((*(f"{version}/bin" for version in versions), os.environ["PATH"]))
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"there is no {name}: start these tests with `make test-celery`")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed ({done.returncode}): {done.stderr[-2000:]}")

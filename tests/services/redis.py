"""Redis with nothing on disk, on a free port of 127.0.0.1.

Needs the program of Debian's ``redis-server`` (``make test-celery`` installs it), and no privileges.
"""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.local_airflow import free_port
from tests.services.daemons import daemon, scratch


@contextmanager
def running_redis() -> Iterator[str]:
    """Run a server and yield its URL."""
    port, password = free_port(), secrets.token_hex(20)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with scratch("redis") as root:
        configuration = f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {root}\nsave ""\nappendonly no\n'
        with daemon(("redis-server", "-"), root / "log", ready=answers, end=signal.SIGKILL, stdin=configuration):
            yield f"redis://:{password}@127.0.0.1:{port}/0"

"""A real S3: Ceph's gateway over one monitor and one object server in memory, on free ports of 127.0.0.1.

``python -m tests.services.ceph_rgw -- <command>`` starts it, runs the command with ``MODELSYNC_RGW`` in its
environment, stops it, and ends as the command did. Tests call :func:`rgw`. Needs the programs of Debian's ``radosgw``,
``ceph-mon``, ``ceph-osd`` and ``ceph-common`` (``make test-stores`` installs them), and no privileges.

Where it is no AWS (version 16): it ignores ``If-None-Match`` on CompleteMultipartUpload, and stores and checks no
``x-amz-checksum-*``.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

from scripts.local_airflow import free_port
from tests.services.s3 import S3Service

ENVIRONMENT = "MODELSYNC_RGW"  # http://access-key:secret-key@127.0.0.1:port
PATIENCE = 300.0  # seconds for any step of the start beside other work

# No manager and no replicas. Authentication must be on: without it the gateway hangs.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor}]
ms_bind_msgr1 = false
public_network = 127.0.0.0/8
keyring = {root}/keyring
run_dir = {root}/run
admin_socket = {root}/run/$name.asok
log_file = {root}/log/$name.log
mon_data = {root}/mon
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
osd_data = {root}/osd
osd_objectstore = memstore
memstore_device_bytes = 6442450944
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
[client.rgw]
rgw_data = {root}/run
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_thread_pool_size = 64
rgw_multipart_min_part_size = 16384
rgw_gc_obj_min_wait = 60
rgw_gc_processor_period = 60
"""
_KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}


def rgw() -> S3Service:
    """The gateway that the tests were started with."""
    if ENVIRONMENT not in os.environ:
        pytest.fail("no Ceph gateway is running: start these tests with `make test-stores`", pytrace=False)
    url = urlsplit(os.environ[ENVIRONMENT])
    assert url.username
    assert url.password
    return S3Service(f"http://{url.hostname}:{url.port}", url.username, url.password, checks_signatures=True)


@contextmanager
def running_rgw() -> Iterator[S3Service]:
    """Run a gateway of one's own; ready in about ten seconds."""
    with ExitStack() as stack:
        # Short, for the names of sockets have little room.
        root = Path(tempfile.mkdtemp(prefix="rgw-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        yield _Cluster(root, stack).start()


class _Cluster:
    """The daemons, in the foreground below this process, and what they are told."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._environment = os.environ | {"CEPH_CONF": str(root / "ceph.conf")}

    def start(self) -> S3Service:
        """Bring everything up, in order."""
        fsid = str(uuid.uuid4())
        monitor, gateway = free_port(), free_port()
        for name in ("mon", "osd", "run", "log"):
            (self._root / name).mkdir()
        configuration = _CONFIGURATION.format(root=self._root, fsid=fsid, monitor=monitor, gateway=gateway)
        (self._root / "ceph.conf").write_text(configuration)
        self._start_monitor(fsid, monitor)
        self._start_object_server()
        service = S3Service(f"http://127.0.0.1:{gateway}", "RGWTESTKEY", secrets.token_hex(20), checks_signatures=True)
        self._run(
            *("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests"),
            *(f"--access-key={service.access_key}", f"--secret-key={service.secret_key}"),
        )
        self._daemon("radosgw", "-n", "client.rgw", "-f")
        _wait_for_http(gateway)
        return service

    def _start_monitor(self, fsid: str, port: int) -> None:
        (self._root / "keyring").touch(mode=0o600)
        for name, capabilities in _KEYS.items():
            caps = [word for service, allowed in capabilities.items() for word in ("--cap", service, allowed)]
            self._run("ceph-authtool", "keyring", "--gen-key", "-n", name, *caps)
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{port}]", "--fsid", fsid, "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._daemon("ceph-mon", "-i", "a", "-f")
        self._run("ceph", "auth", "import", "-i", "keyring")  # waits for the monitor

    def _start_object_server(self) -> None:
        self._run("ceph", "osd", "create")
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
        self._daemon("ceph-osd", "-i", "0", "-f")

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self._root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} {command[1]} failed ({done.returncode}): {done.stderr[-2000:]}")

    def _daemon(self, *command: str) -> None:
        # Dies with this process, however that ends.
        with (self._root / "log" / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *command),
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)  # there is nothing to save


def _wait_for_http(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        connection.close()
        time.sleep(0.1)
    raise RuntimeError("the gateway does not answer")


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Run a command beside a gateway."""
    if arguments[:1] != ["--"] or not arguments[1:]:
        print("usage: python -m tests.services.ceph_rgw -- <command>", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)
    with running_rgw() as service:
        url = service.endpoint.replace("://", f"://{service.access_key}:{service.secret_key}@")
        return subprocess.run(arguments[1:], env=os.environ | {ENVIRONMENT: url}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

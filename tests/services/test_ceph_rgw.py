"""The gateway is there for as long as the command runs, and leaves nothing behind however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.services.ceph_rgw import ENVIRONMENT, rgw

STARTER = (sys.executable, "-m", "tests.services.ceph_rgw")
REPORT = """
import json, os, sys
children = open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split()
print(json.dumps({"url": os.environ["MODELSYNC_RGW"], "processes": children}), flush=True)
"""


def start(directory: Path, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a gateway with a command that reports and then does something; return the daemons' ids."""
    process = subprocess.Popen(
        [*STARTER, "--", sys.executable, "-c", REPORT + then],
        env=os.environ | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    report = json.loads(process.stdout.readline())
    assert report["url"] != os.environ[ENVIRONMENT]
    return process, [int(pid) for pid in report["processes"]]


def ended(pids: list[int]) -> bool:
    """Wait for processes that are about to end."""
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.s3
def test_objects_are_kept_and_strangers_refused() -> None:
    service = rgw()
    client, bucket = service.client(), service.new_bucket()
    client.put_object(Bucket=bucket, Key="key", Body=b"body")
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"body"
    stranger = type(service)(service.endpoint, service.access_key, "wrong", checks_signatures=True)
    with pytest.raises(client.exceptions.ClientError, match="SignatureDoesNotMatch"):
        stranger.client().list_buckets()


@pytest.mark.s3
@pytest.mark.slow
def test_the_command_decides_the_exit_code_and_nothing_is_left(tmp_path: Path) -> None:
    process, pids = start(tmp_path, "sys.exit(3)")
    assert process.wait(300) == 3
    assert len(pids) >= 4  # three daemons and the command
    assert ended(pids)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_starter_takes_the_daemons_along(tmp_path: Path, number: signal.Signals) -> None:
    process, pids = start(tmp_path, "import time; time.sleep(30)")
    command = pids.pop()
    process.send_signal(number)
    process.wait(300)
    assert ended(pids)
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
    else:
        os.kill(command, signal.SIGKILL)  # not a daemon: nobody took it along


def test_a_wrong_call_is_explained() -> None:
    done = subprocess.run([*STARTER, "pytest"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_tests_without_a_gateway_say_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(pytest.fail.Exception, match="make test-stores"):
        rgw()

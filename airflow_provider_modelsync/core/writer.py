"""Who is writing: this process, told apart from every other on every machine that may see the same disk.

The *boot* (one run of one kernel) and the *space* of process ids in it say whose ``/proc`` and whose signals are meant:
containers of one machine share its boot and have spaces of their own, so a process id means nothing outside of its
space. Within the same boot and space an id together with its start time is one process for ever. So "it is gone" can
be proved there, and nowhere else: not of another machine, whatever its name, and not of another container.

The *host* outlives a boot. Names of hosts and even machine ids are copied with images, so it proves nothing alone; who
relies on it must know besides that nothing was written since this boot began.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# What ends the names of directories that belong to one process.
NAMED = r"(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{12})-(?P<space>\d{1,10})-(?P<pid>\d{1,10})-(?P<start>\d{1,20})"
_STAT = re.compile(rb"\d+ \(.*\) (\S)(?: -?\d+){18} (\d+)", re.DOTALL)  # state and start time, in proc(5)'s order


@dataclass(frozen=True, slots=True)
class Writer:
    """A process.

    :param host: 8 hex digits for the machine.
    :param boot: 12 hex digits for the run of its kernel.
    :param space: the inode of its namespace of process ids.
    :param pid: its id there; 0 is nobody.
    :param start: when it started, in ticks since the boot.
    """

    host: str
    boot: str
    space: int
    pid: int
    start: int

    @classmethod
    def of(cls, found: re.Match[str]) -> Writer:
        """Return what a match of :data:`NAMED` tells."""
        return cls(found["host"], found["boot"], int(found["space"]), int(found["pid"]), int(found["start"]))

    @property
    def nobody(self) -> Writer:
        """Who stands for this process when it has ended its work."""
        return Writer(self.host, self.boot, self.space, 0, 0)

    def __str__(self) -> str:
        return f"{self.host}-{self.boot}-{self.space}-{self.pid}-{self.start}"


def this_process() -> Writer:
    """Return this process. Where the system does not tell its boot, nobody ever recognises it."""
    pid = os.getpid()
    try:
        boot = boot_id()
        space = os.stat("/proc/self/ns/pid").st_ino
        if os.readlink("/proc/self") != str(pid):  # the processes of another space are shown there
            raise FileNotFoundError
        start = _look(pid)[1]
    except (OSError, ValueError):
        boot, space, start = secrets.token_hex(8), 0, 0
    return Writer(_short(_host(), 8), _short(boot, 12), space, pid, start)


def is_gone(writer: Writer, me: Writer) -> bool:
    """Whether it is sure that a process writes no more.

    :param writer: who is asked about.
    :param me: the process that asks.
    """
    if writer.boot != me.boot:
        return False
    if writer.pid == 0:
        return True
    if writer.space != me.space:
        return False
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # another user's, but there; or a number that no process has
    try:
        state, start = _look(writer.pid)
    except (OSError, ValueError):
        return False
    return start != writer.start or state in "ZX"


def boot_id() -> str:
    """Return what tells this run of the kernel from every other.

    :raises OSError: where the system does not tell.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def seconds_since_boot() -> float:
    """Return how long this kernel runs, suspended time included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _look(pid: int) -> tuple[str, int]:
    found = _STAT.match(Path(f"/proc/{pid}/stat").read_bytes())
    if found is None:
        raise ValueError("proc(5) does not know this")
    return found[1].decode(), int(found[2])


def _host() -> str:
    def facts() -> Iterator[str]:
        yield socket.gethostname()
        with suppress(OSError):
            yield Path("/etc/machine-id").read_text().strip()

    return "\n".join(facts())


def _short(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]

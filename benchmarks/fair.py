"""What every measurement needs in order to be fair: the same start for all, turns, and what machine it was."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SUPPLY = 512 << 20  # bytes of free pages that a run begins with
_FEATURES = ("sha_ni", "pclmulqdq", "vpclmulqdq", "aes", "avx2", "avx512f", "sse4_2", "sha2", "pmull", "crc32")


def turns(who: Sequence[T], number: int) -> Iterator[T]:
    """Yield all, each round beginning with another one."""
    start = number % len(who)
    yield from (*who[start:], *who[:start])


def prepare(source: Path | None = None) -> None:
    """Let a run begin as all others do: nothing left to be written, pages at hand, and its source in memory."""
    os.sync()
    with mmap.mmap(-1, _SUPPLY) as pages:  # a virtual machine gives out a page for the first time at a price
        for start in range(0, _SUPPLY, mmap.PAGESIZE):
            pages[start] = 1
    for path in source.rglob("*") if source is not None else ():
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "processor": facts.get("model name", platform.machine()),
        "cores": str(os.cpu_count()),
        "features": " ".join(name for name in _FEATURES if name in flags),
        "memory GiB": str(int(memory) >> 20),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION,
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "SHA-256 CPU-s/GiB": f"{hashing_seconds():.2f}",
    }


def hashing_seconds() -> float:
    """Return what SHA-256 costs on this machine, in processor seconds per GiB: no verified transfer can cost less."""
    block, total = os.urandom(1 << 20), hashlib.sha256()
    started = time.process_time()
    for _ in range(256):
        total.update(block)
    return (time.process_time() - started) * 4

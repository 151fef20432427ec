"""What waiting costs: thousands of deferred sensors in one event loop, and the import of the provider.

Run by ``make bench-polling``. Each figure comes from a process of its own; the server is another one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
CONNECTION = "bench"
INTERVAL = 20.0  # seconds
MODELS = 50
IMPORT = """
import sys, time
from airflow.sdk import Asset, AssetAlias, BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator
from airflow.sdk import ObjectStoragePath, PokeReturnValue, conf
import airflow.sdk.exceptions, airflow.sdk.log, airflow.triggers.base, airflow.triggers.shared_stream
before, began = set(sys.modules), time.process_time()
import airflow_provider_modelsync.assets
from airflow_provider_modelsync.hooks import bentocloud, modelstore, pieces, supervisely, wallaroo
from airflow_provider_modelsync.operators import bentocloud, catalog, deployment, pieces, supervisely, transfer
from airflow_provider_modelsync.sensors import model
from airflow_provider_modelsync.triggers import deployment, fetch, model, predict
print((time.process_time() - began) * 1000, *{name.partition(".")[0] for name in set(sys.modules) - before})
"""
HEAVY = {"boto3", "botocore", "urllib3", "websockets"}


@contextmanager
def server() -> Iterator[str]:
    """Run a registry without any ready version, in a process of its own; yield its connection as JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        command = (sys.executable, __file__, "--serve", scratch)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout
        try:
            yield process.stdout.readline()
        finally:
            process.communicate(timeout=30)


def serve(scratch: str) -> None:
    """Be that registry until the input ends; requests are counted by who asks."""
    sys.path.insert(0, str(ROOT))
    from tests.standins.bentocloud import BentoCloudStandIn

    with BentoCloudStandIn(Path(scratch)) as standin:
        for number in range(MODELS):
            standin.seed(f"model-{number}", "v1")
        print(json.dumps({"conn_type": "bentocloud", "host": standin.url, "password": standin.token}), flush=True)
        sys.stdin.read()


def wait(waiters: int, models: int, seconds: float) -> dict[str, float]:
    """Have so many deferred sensors wait for so long, and say what it has cost this process."""
    from airflow_provider_modelsync.core.flow.steps import AsyncDriver
    from airflow_provider_modelsync.triggers.model import ModelVersionTrigger

    logging.disable(logging.INFO)
    asked = 0
    perform = AsyncDriver._perform

    async def count(self: AsyncDriver, step: object) -> object:
        nonlocal asked
        asked += type(step).__name__ == "Exchange"
        return await perform(self, step)  # type: ignore[arg-type]

    def sensor(number: int) -> ModelVersionTrigger:
        name = f"model-{number % models}:v2"
        return ModelVersionTrigger(CONNECTION, name, time.time() + 3600, poll_interval=INTERVAL)

    async def one(number: int) -> None:
        async for _ in sensor(number).run():
            raise AssertionError("nothing was to be found")

    async def main() -> dict[str, float]:
        # One waiter for each model first: what the polls themselves need does not grow with waiters.
        tasks = [asyncio.create_task(one(number)) for number in range(models)]
        await asyncio.sleep(INTERVAL * 1.3)
        gc.collect()
        memory, descriptors = _resident(), len(os.listdir("/proc/self/fd"))
        tasks += [asyncio.create_task(one(number)) for number in range(models, waiters)]
        await asyncio.sleep(1)
        gc.collect()
        grown = _resident() - memory
        first, began, cpu = asked, time.monotonic(), _cpu()
        await asyncio.sleep(seconds)
        took, used = time.monotonic() - began, _cpu() - cpu
        figures = {
            "requests": (asked - first) * INTERVAL / took,
            "cpu": used / took * 100,
            "memory": grown / max(1, waiters - models) / 1024,
            "descriptors": len(os.listdir("/proc/self/fd")) - descriptors,
        }
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return figures

    with patch.object(AsyncDriver, "_perform", count):
        return asyncio.run(main())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=63.0, help="how long each crowd is watched; 0: only imports")
    arguments = parser.parse_args()
    print("| waiters | models | requests per interval | CPU % of a core | KiB per waiter | descriptors more |")
    print("| --- | --- | --- | --- | --- | --- |")
    with server() as connection:
        env = {**os.environ, f"AIRFLOW_CONN_{CONNECTION.upper()}": connection}
        for waiters, models in (
            () if not arguments.seconds else ((MODELS, MODELS), (1000, MODELS), (10_000, MODELS), (10_000, 10))
        ):
            command = (sys.executable, __file__, "--wait", str(waiters), str(models), str(arguments.seconds))
            done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            told = json.loads(done.stdout.splitlines()[-1])
            row = (
                f"{told['requests']:.0f}",
                f"{told['cpu']:.1f}",
                f"{told['memory']:.1f}",
                f"{told['descriptors']:.0f}",
            )
            print(f"| {waiters:,} | {models} | " + " | ".join(row) + " |", flush=True)
    runs = []
    # With byte code on disk, as workers have it; the first run may have to write that.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(12):
        words = [sys.executable, "-c", IMPORT]
        done = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        spent, *loaded = done.stdout.split()
        assert not HEAVY & set(loaded), f"the import loads {HEAVY & set(loaded)}"
        runs.append(float(spent))
    took, least = statistics.median(runs[1:]), min(runs[1:])
    print(f"\nImport on top of airflow.sdk: {took:.0f} ms of CPU, the median of {len(runs) - 1} processes", end="")
    print(f" (the fastest: {least:.0f} ms); none of {', '.join(sorted(HEAVY))}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["--wait"]:
        print(json.dumps(wait(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
    else:
        main()

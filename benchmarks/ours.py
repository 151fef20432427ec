"""What this provider does in a benchmark: a push or a pull by its engine, without Airflow.

As a program it moves a small model first, so that what is loaded at the first use counts for nobody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from airflow_provider_modelsync.core.archive.checksums import checksum_for
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from benchmarks.meter import measure

for lazily_loaded in ("http.backends", "transfer.connections", "transfer.download", "transfer.upload"):
    import_module(f"airflow_provider_modelsync.core.{lazily_loaded}")  # imports do not count

WORKERS = 4
PROGRAM = "from benchmarks.ours import main; main()"


def registry_of(kind: str, fields: Mapping[str, str]) -> Registry:
    """Return a registry.

    :param kind: its package and class, as ``mlflow:MLflow``.
    :param fields: those of its connection.
    """
    system, name = kind.split(":")
    registry_type: type[Registry] = getattr(
        import_module(f"airflow_provider_modelsync.core.registries.{system}.registry"), name
    )
    return registry_type(registry_type.settings_type.read("bench", fields))


def move(registry: Registry, verb: str, model: str, place: Path) -> None:
    """Push a directory as a version, or pull one into it."""
    with driver_for(registry) as driver:
        ref, control = registry.parse(model), Control(workers=WORKERS)
        if verb == "push":
            push(registry, driver, place, ref, control)
        else:
            pull(registry, driver, ref, place, control, query=Query())


def main() -> None:
    """Move a model as the command line says and print what that cost: kind, fields as JSON, verb, model, where.

    What may follow is a small model's directory: that is pushed and pulled before.
    """
    kind, fields, verb, model, place, *small = sys.argv[1:]
    registry = registry_of(kind, json.loads(fields))
    checksum_for(1 << 40)  # loads what the guard of large models needs
    if small:
        other = f"small-{verb}-{model}"
        move(registry, "push", other, Path(small[0]))
        move(registry, "pull", other, Path(f"{place}-{other}".partition(":")[0]))
    print(json.dumps(measure(lambda: move(registry, verb, model, Path(place)))))

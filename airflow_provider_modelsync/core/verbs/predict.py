"""Predictions: what a registry has its deployments make, as a file that is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from airflow_provider_modelsync.core import durable, places
from airflow_provider_modelsync.core.arguments import is_url
from airflow_provider_modelsync.core.errors import from_os_error
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import Predictions, Ticket
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.capabilities import Predicts, PredictsAlone
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import PredictRequest
from airflow_provider_modelsync.core.verbs.drive import mover_for

_NAME = "predictions"
_NAME_BYTES = 150  # of an output's name in the hidden name beside it


def predict(
    registry: Registry,
    driver: SyncDriver,
    deployment: str | None,
    inputs: Any,
    control: Control,
    *,
    output: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    ticket: Ticket | None = None,
) -> Predictions:
    """Have a deployment make predictions.

    An output is absent, old, or new and complete at every moment.

    :param registry: where it is deployed.
    :param driver: runs the registry's flows.
    :param deployment: its name; ``None`` for the connection's own.
    :param inputs: a file or a directory of this machine, or values, as the registry takes them.
    :param control: how to cancel, what to tell.
    :param output: the file to write; ``None`` for predictions that are few enough to be returned.
    :param options: what only this registry understands.
    :param ticket: what :func:`start_predict` has begun: it is fetched, not begun again.
    :raises InvalidInput: for what the registry cannot take, before anything is sent.
    """
    predicts = Predicts.of(registry)

    def run(target: Path) -> Predictions:
        with closing(mover_for(registry, control)) as mover:
            request = PredictRequest(
                deployment=deployment,
                inputs=Path(inputs) if isinstance(inputs, (str, os.PathLike)) and not is_url(inputs) else inputs,
                target=target,
                mover=mover,
                control=control,
                options=options or {},
                ticket=ticket,
            )
            return driver.run(predicts.predict(request))

    if output is not None:
        return _publish(run, places.output(output))
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        target = Path(scratch) / _NAME
        return run(target).model_copy(update={"path": None, "content": target.read_bytes()})


def start_predict(
    registry: Registry,
    driver: SyncDriver,
    deployment: str | None,
    inputs: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Ticket | None:
    """Only begin predictions that the system then makes by itself; ``None`` where it does not, and nothing is begun.

    Parameters as for :func:`predict`.
    """
    predicts = Predicts.of(registry)
    if output is not None:
        places.output(output)
    if not isinstance(predicts, PredictsAlone):
        return None
    return driver.run(predicts.start_predict(deployment, inputs, options or {}))


def _publish(run: Callable[[Path], Predictions], place: Path) -> Predictions:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with durable.staging(place, hashlib.sha256(os.fsencode(place.name)).hexdigest()[:12]) as staging:
            written = staging.path / _NAME
            made = run(written)
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.replace(place)
        durable.sync_directory(place.parent)
    except OSError as error:
        raise from_os_error(error, f"writing {place}", argument="output") from error
    return made.model_copy(update={"path": place})

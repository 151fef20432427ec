"""A pull without a target: a system brings a model onto its own host, and what is killed takes back its own part."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_provider_modelsync.core.errors import Cancelled
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import Fetch, ModelRef, Patience, PulledModel, Query
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.capabilities import Fetches
from airflow_provider_modelsync.core.verbs.drive import driver_for

_UNDO_SECONDS = 3.0  # a killed task has five until the worker ends it

log = logging.getLogger("modelsync")


def fetch(registry: Registry, driver: SyncDriver, ref: ModelRef, *, query: Query, patience: Patience) -> PulledModel:
    """Have a system bring a model onto its own host, and wait until it is there.

    :param registry: the system.
    :param driver: runs the registry's flows.
    :param ref: the model.
    :param query: chooses among ready versions.
    :param patience: how long to wait, and how often to look.
    :raises InvalidInput: where models are pulled to a directory instead.
    """
    fetches = Fetches.of(registry)
    with taking_back(registry) as asked:
        version = driver.run(fetches.fetch(ref, query, patience, asked.append))
    return PulledModel(path=None, version=version)


def start_fetch(registry: Registry, driver: SyncDriver, ref: ModelRef, *, query: Query) -> Fetch:
    """Only ask for it, unless it is there or on its way. Parameters as for :func:`fetch`."""
    fetches = Fetches.of(registry)
    with taking_back(registry) as asked:
        return driver.run(fetches.start_fetch(ref, query, asked.append))


def needs_fetch(registry: Registry, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[bool]:
    """Return whether a model has to be fetched before it can be deployed so; never where models are not fetched."""
    return isinstance(registry, Fetches) and (yield from registry.needs_fetch(deployment, ref, config))


@contextmanager
def taking_back(registry: Registry) -> Iterator[list[Fetch]]:
    """Cancel what was asked for when the task is killed or runs out of time.

    An error leaves it to the next try, and whoever stops listening to it leaves it to the host.
    """
    asked: list[Fetch] = []
    try:
        yield asked
    except BaseException as error:
        is_end_of_task = isinstance(error, Cancelled) or not isinstance(error, (Exception, GeneratorExit))
        if asked and is_end_of_task:
            _take_back(registry, asked[-1])
        raise


def _take_back(registry: Registry, asked: Fetch) -> None:
    cancel = CancelToken()  # the task's own may have been used up
    clock = threading.Timer(_UNDO_SECONDS, cancel.cancel)
    clock.start()
    try:
        with driver_for(registry, cancel) as driver:
            log.info(driver.run(Fetches.of(registry).cancel_fetch(asked.ref)))
    except Exception as error:
        log.warning("what was asked for of %s could not be taken back: %s", asked.name, error)
    finally:
        clock.cancel()

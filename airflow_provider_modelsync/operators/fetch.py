"""What the operators share that have a system bring a model onto its own host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_modelsync.core.models import ModelVersion, Patience
from airflow_provider_modelsync.triggers.fetch import FetchTrigger

if TYPE_CHECKING:
    from airflow_provider_modelsync.hooks.registry import RegistryHook
    from airflow_provider_modelsync.operators.base import RegistryOperator


def fetch(
    operator: RegistryOperator,
    hook: RegistryHook,
    model: str,
    patience: Patience,
    *,
    labels: Mapping[str, str] | None = None,
    query: str | None = None,
    then: str | None = None,
) -> ModelVersion:
    """Have a model brought onto its system's own host, and return it once it is there.

    :param operator: whose task this is.
    :param hook: the task's.
    :param patience: how long to wait, and how often to look.
    :param then: the method that goes on after a wait in the triggerer; ``None`` = wait in this worker's slot.
    """
    if then is None:
        return hook.pull(model, None, labels=labels, query=query, patience=patience).version
    begun = hook.start_fetch(model, labels=labels, query=query)
    if begun.version is None:
        operator.defer(
            trigger=FetchTrigger(
                registry_conn_id=operator.registry_conn_id,
                ref=begun.ref,
                name=begun.name,
                deadline=time.time() + patience.seconds,
                ours=begun.ours,
                poll_interval=patience.poll_interval,
            ),
            method_name=then,
            timeout=timedelta(seconds=patience.seconds + 60),
        )
    assert begun.version is not None
    return begun.version

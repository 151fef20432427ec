"""What the operators share that have a system bring a model onto its own host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.core.models import ModelVersion, Patience
from airflow_provider_modelsync.triggers.fetch import FetchTrigger

if TYPE_CHECKING:
    from airflow_provider_modelsync.hooks.registry import RegistryHook
    from airflow_provider_modelsync.operators.base import RegistryOperator


def fetch(
    operator: RegistryOperator,
    hook: RegistryHook,
    model: str,
    deadline: float,
    poll_interval: float,
    *,
    labels: Mapping[str, str] | None = None,
    query: str | None = None,
    then: str | None = None,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> ModelVersion:
    """Have a model brought onto its system's own host, and return it once it is there.

    :param operator: whose task this is.
    :param hook: the task's.
    :param deadline: when to give up, in seconds since the epoch.
    :param poll_interval: seconds between two looks.
    :param then: the method that goes on after a wait in the triggerer; ``None`` = wait in this worker's slot.
    :param arguments: what that method is called with besides the event, and ``joined``: whether the system was at it
        already, perhaps for an earlier try that may still take it back.
    """
    seconds = max(0.0, deadline - time.time())
    if then is None:
        patience = Patience(seconds=seconds, poll_interval=poll_interval)
        return hook.pull(model, None, labels=labels, query=query, patience=patience).version
    begun = hook.start_fetch(model, labels=labels, query=query)
    if begun.version is None:
        operator.defer(
            trigger=FetchTrigger(
                registry_conn_id=operator.registry_conn_id,
                ref=begun.ref,
                name=begun.name,
                deadline=deadline,
                ours=begun.ours,
                poll_interval=poll_interval,
            ),
            method_name=then,
            kwargs={**arguments, "joined": not begun.ours},
            timeout=timedelta(seconds=seconds + 60),
        )
    assert begun.version is not None
    return begun.version

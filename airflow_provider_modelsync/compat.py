"""What differs between the versions of Airflow that are supported: names that have moved, and what older ones lack.

All modules that face Airflow import such names from here, and none of them knows a version. What a name is, the newest
Airflow says; where an older one keeps it, or what stands in for it, is said here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from operator import attrgetter
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from airflow import __version__
from airflow.triggers.base import BaseTrigger

if TYPE_CHECKING:
    from airflow.sdk import BaseHook, Connection, conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        TaskDeferred,
    )
    from airflow.sdk.observability import stats
    from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer
else:

    def _first(*places: str) -> Any:
        """Return what is found in the first of some places that this Airflow has, the newest one first."""
        for place in places:
            try:
                return resolve_name(place)
            except (ImportError, AttributeError):
                continue
        raise ImportError(f"this Airflow has none of {', '.join(places)}")

    BaseHook = _first("airflow.sdk:BaseHook", "airflow.hooks.base:BaseHook")  # 3.1
    conf = _first("airflow.sdk:conf", "airflow.configuration:conf")  # 3.2

    # All of one module: in 3.1 the first of them is in both, and what is raised must be what is caught.
    _exceptions = resolve_name(
        _first("airflow.sdk.exceptions:TaskDeferred", "airflow.exceptions:TaskDeferred").__module__
    )
    AirflowException = _exceptions.AirflowException
    AirflowFailException = _exceptions.AirflowFailException
    AirflowNotFoundException = _exceptions.AirflowNotFoundException
    AirflowSensorTimeout = _exceptions.AirflowSensorTimeout
    AirflowSkipException = _exceptions.AirflowSkipException
    AirflowTaskTimeout = _exceptions.AirflowTaskTimeout
    TaskDeferred = _exceptions.TaskDeferred

    stats = _first("airflow.sdk.observability.stats", "airflow.stats")  # 3.2
    if not hasattr(stats, "incr"):  # before 3.3 a class of the module has what are functions of the module now
        stats = stats.Stats

    # Before 3.3 each watcher looks by itself, and nobody asks for what they could share.
    SharedStreamProducer = _first("airflow.triggers.shared_stream:SharedStreamProducer", "builtins:object")
    AdvanceItem = _first("airflow.triggers.shared_stream:AdvanceItem", "builtins:object")

T = TypeVar("T")

__all__ = [
    "READS_FORMS",
    "TELLS_OF_KILLS",
    "UNDER_WAY",
    "WAITING",
    "AdvanceItem",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "BaseHook",
    "SharedStreamProducer",
    "TaskDeferred",
    "aget_connection",
    "conf",
    "fernet_keys",
    "in_thread",
    "state_of",
    "stats",
    "template_fields",
]

_AIRFLOW = tuple(map(int, __version__.split(".")[:2]))
# Whether connection forms are read from the provider's own declaration, 3.2. Else hooks are asked for them.
READS_FORMS = _AIRFLOW >= (3, 2)
# Whether a trigger is told when a user ends its task, 3.3. Else it is only cancelled.
TELLS_OF_KILLS = hasattr(BaseTrigger, "on_kill")

WAITING = "deferred"  # what is the state of a task while its trigger waits
REMOVED = "removed"  # when nobody knows the task any more
UNDER_WAY = (None, "scheduled", "queued", "running")  # and after: of its next part or its next try

# What tasks may have as arguments, but 3.0 stores under no such name: its scheduler could not load the DAG again.
_TAKEN = ("output",) if _AIRFLOW < (3, 1) else ()

_exchanges: set[asyncio.Task[Any]] = set()  # under way; a loop itself remembers none
_mended: set[type] = set()


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Return what a call returns that blocks, and may look connections up; for the event loop.

    Not by ``asyncio.to_thread``: a triggerer's way to its supervisor leads back into its loop, which asgiref knows.
    """
    from asgiref.sync import sync_to_async

    return await _whole(sync_to_async(call, thread_sensitive=False)(*arguments))


async def _whole(exchange: Coroutine[Any, Any, T]) -> T:
    """Wait for an exchange with the supervisor, which goes on to its end when nobody waits for it any more.

    A triggerer of Airflow 3.0 takes the answer to half of one for that to the next, and dies.
    """
    _let_threads_ask()
    task = asyncio.ensure_future(exchange)
    _exchanges.add(task)
    task.add_done_callback(_exchanges.discard)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to whoever waits still
    return await asyncio.shield(task)


def _let_threads_ask() -> None:
    """Have whatever thread asks a triggerer's supervisor do so by the triggerer's loop, as since 3.2.

    Before, a thread that the loop knows nothing of reads the answers by a loop of its own, and the triggerer dies.
    Airflow itself asks there: it has the supervisor hide secrets of each connection that is read.
    """
    from airflow.sdk.execution_time import task_runner

    kind: Any = type(getattr(task_runner, "SUPERVISOR_COMMS", None))
    if _AIRFLOW >= (3, 2) or kind.__name__ != "TriggerCommsDecoder" or kind in _mended:
        return
    _mended.add(kind)
    send, loop = kind.send, asyncio.get_running_loop()

    def ask(self: Any, message: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(self.asend(message), loop).result()
        return send(self, message)  # which says that a loop must not wait here

    kind.send = ask


class _Fields(tuple[str, ...]):
    """Template fields, among which Airflow finds a field by its argument's name, too."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return name in _TAKEN or super().__contains__(name)


def template_fields(kind: type[Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the template fields of a task: of its arguments' names, where this Airflow takes those.

    :param kind: the task's class. It gets an attribute for each field that is called otherwise.
    :param names: of its arguments, and fields that it inherits.
    """
    wanted = dict.fromkeys(names)
    taken = [name for name in _TAKEN if name in wanted]
    for name in taken:
        setattr(kind, f"{name}_", property(attrgetter(name), partial(_set, name)))
    fields = dict.fromkeys(f"{name}_" if name in taken else name for name in wanted)
    return _Fields(fields) if taken else tuple(fields)


def _set(name: str, task: Any, value: Any) -> None:
    setattr(task, name, value)


def fernet_keys() -> list[str]:
    """Return the keys that Airflow encrypts connections with, the newest first."""
    from airflow.configuration import conf as core  # what is in this section, the SDK's own does not look for

    return [key.strip() for key in (core.get("core", "fernet_key", fallback="") or "").split(",") if key.strip()]


async def aget_connection(conn_id: str) -> Connection:
    """Return a connection; for the event loop."""
    if hasattr(BaseHook, "aget_connection"):  # 3.1
        return await _whole(BaseHook.aget_connection(conn_id))
    return await in_thread(BaseHook.get_connection, conn_id)


async def state_of(task: Any) -> str | None:
    """Return the state of a trigger's task; for the event loop.

    :param task: the trigger's ``task_instance``.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    # By its name, and the one of a mapped task by name and index: only one is asked for.
    states = await in_thread(
        lambda: RuntimeTaskInstance.get_task_states(
            dag_id=task.dag_id, task_ids=[task.task_id], run_ids=[task.run_id], map_index=task.map_index
        )
    )
    (state,) = states.get(task.run_id, {}).values() or (REMOVED,)
    return None if state is None else str(state)

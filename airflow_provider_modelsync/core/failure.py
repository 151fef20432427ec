"""What failed work says, in one form wherever it fails: in a task, a sensor, a trigger, or on the command line.

What failed, on which connection and address, what the server answered, what to do, and whether it goes on by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_modelsync.core import errors
from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError, Permanent, RegistryUnavailable
from airflow_provider_modelsync.core.text import span

NO_USE = "not retried: another try cannot help"

_FACTS = ("argument", "model", "connection", "address", "said")


def block(error: ModelSyncError, doing: str, outlook: str) -> Iterator[str]:
    """Yield the lines that tell a person what failed and what is to be done, the most important one first.

    :param error: what was raised.
    :param doing: what failed, e.g. ``"the task 'push'"``.
    :param outlook: whether it goes on by itself.
    """
    yield f"{doing} failed: {error.message}"
    at = f" ({error.address})" if error.address else ""
    facts = {
        "model": error.model,
        "connection": f"{error.connection}{at}" if error.connection else error.address,
        "field": error.argument,
        "server said": error.said,
        "what to do": error.remedy,
        "next": outlook,
    }
    for name, fact in facts.items():
        if fact:
            yield f"  {name + ':':<12} {fact}"


def outlook(error: ModelSyncError, left: int | None, allowed: int) -> str:
    """Return whether a failed task goes on by itself.

    :param error: what it failed with.
    :param left: tries that are left; ``None`` when that is not known.
    :param allowed: retries that a task has.
    """
    if isinstance(error, Permanent):
        return NO_USE
    if isinstance(error, Cancelled) and not left:
        return "not retried: what was stopped goes on when somebody starts it again"
    if left is None:
        return "another try may help"
    if left > 0:
        return f"Airflow tries again: {left} of {max(left, allowed)} left"
    if allowed:
        return f"not retried: none of {allowed} retries is left. Another try may help: clear the task"
    return "not retried: the task has no `retries`. Another try may help: clear the task"


def again(said: str, delay: float, failures: int, attempts: int, remedy: str) -> str:
    """Return what to say when something is tried again.

    :param said: what has failed.
    :param delay: seconds until the next try.
    :param failures: tries that have failed.
    :param attempts: tries in all.
    :param remedy: what to do if that goes on.
    """
    when = f"in {span(delay)}" if delay >= 0.05 else "at once"  # what is shown as 0.0 s
    hint = f". If it goes on: {remedy[0].lower()}{remedy[1:]}" if failures == 1 else ""
    return f"{said}; trying again {when} ({failures} of {attempts}){hint}"


def as_event(error: Exception) -> dict[str, Any]:
    """Return an error as JSON values, for the event of a trigger."""
    if not isinstance(error, ModelSyncError):
        return {"message": f"{type(error).__name__}: {error}", "permanent": False}
    facts = {name: getattr(error, name) for name in _FACTS}
    return {
        "message": error.message,
        "permanent": isinstance(error, Permanent),
        "kind": type(error).__name__,
        "remedy": error.remedy if error.has_own_remedy else None,
        **{name: fact for name, fact in facts.items() if fact},
    }


def from_event(event: Mapping[str, Any]) -> ModelSyncError:
    """Return the error that an event of a trigger tells of."""
    kind = getattr(errors, str(event.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelSyncError)):
        kind = Permanent if event.get("permanent") is True else RegistryUnavailable
    known = {name: fact for name in (*_FACTS, "remedy") if isinstance(fact := event.get(name), str)}
    return kind(str(event.get("message")), **known)

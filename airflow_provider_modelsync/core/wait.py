"""What a waiting task looks for: one condition, checked by sensors on workers and by triggers on the event loop."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, VersionFailed
from airflow_provider_modelsync.core.flow import Flow
from airflow_provider_modelsync.core.models import ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import Registry

READY = "ready"


def find_version(
    registry: Registry, model: str, query: Query, *, newer_than: str | None = None, state: str = READY
) -> Flow[ModelVersion | None]:
    """Return the version that is waited for, or ``None`` when it is not there yet.

    :param registry: where to look.
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one.
    :param query: chooses among ready versions when no exact one is named.
    :param newer_than: only a version newer than this one counts: a version of the model, or an ISO 8601 time.
    :param state: what the version must have reached.
    :raises VersionFailed: when the exact version has failed.
    :raises InvalidInput: when an argument makes no sense.
    """
    ref = registry.parse(model)
    if state not in registry.states:
        raise InvalidInput(
            f"{registry.title} knows the states {sorted(registry.states)}, not {state!r}", argument="state"
        )
    if ref.version and newer_than:
        raise InvalidInput("an exact version is never newer than another; name only the model", argument="newer_than")
    try:
        found = yield from registry.get(ref, query)
    except ModelNotFound:
        return None
    if found.status is VersionStatus.FAILED:
        raise VersionFailed(f"{found.ref} has failed in its registry", model=found.ref)
    if not found.ready or not registry.has_reached(found, state):
        return None
    if newer_than and found.age_key <= (yield from _age_of(registry, ref.name, newer_than)):
        return None
    return found


def _age_of(registry: Registry, name: str, newer_than: str) -> Flow[tuple[datetime, str]]:
    """Read ``newer_than`` into what versions are ordered by; a version wins over a time that looks the same."""
    try:
        return (yield from registry.get(registry.parse(f"{name}:{newer_than}"))).age_key
    except (ModelNotFound, InvalidInput):
        pass
    try:
        time = datetime.fromisoformat(newer_than)
    except ValueError:
        raise InvalidInput(
            f"{newer_than!r} is neither a version of {name!r} nor an ISO 8601 time", argument="newer_than"
        ) from None
    # Any version of that very instant counts as old.
    return (time if time.tzinfo else time.replace(tzinfo=UTC)), "\U0010ffff"

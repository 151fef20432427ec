"""Aliases on a system that has none: labels of versions, each with the time at which it was put there.

Every version that an alias has pointed to keeps its label, so these are the alias's history; the newest one counts.
Moving an alias is one request about one version. Nothing compares what it pointed to before: of two who move it at once
both believe that they have, and the later one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_provider_modelsync.core.models import HISTORY, Alias, Held
from airflow_provider_modelsync.core.registries.bentocloud.records import ALIAS_LABEL, ModelRecord

_TIME = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True, slots=True)
class Holder:
    """A version that an alias points to, or has pointed to.

    :param since: since when.
    :param record: the version's.
    """

    since: datetime
    record: ModelRecord


def is_ours(label: str) -> bool:
    """Whether a label is an alias's."""
    return label.startswith(ALIAS_LABEL)


def label_of(alias: str) -> str:
    """Return an alias's label."""
    return f"{ALIAS_LABEL}{alias}"


def holders_of(records: Sequence[ModelRecord]) -> dict[str, list[Holder]]:
    """Return who holds and has held each alias, the present one first."""
    found: dict[str, list[Holder]] = {}
    for record in records:
        for label in record.labels:
            if is_ours(label.key) and (since := _time(label.value)):
                found.setdefault(label.key.removeprefix(ALIAS_LABEL), []).append(Holder(since, record))
    for holders in found.values():
        holders.sort(key=lambda holder: (holder.since, holder.record.version), reverse=True)
    return found


def alias_of(name: str, alias: str, holders: Sequence[Holder]) -> Alias:
    """Return an alias as users see it."""
    held = [Held(version=holder.record.version, since=holder.since) for holder in holders]
    return Alias(
        name=name,
        alias=alias,
        version=holders[0].record.version,
        since=held[0].since,
        earlier=tuple(held[1 : HISTORY + 1]),
    )


def stamp_after(holders: Sequence[Holder]) -> str:
    """Return the value of a label that counts from now on, however far this machine's clock is behind."""
    newest = max((holder.since for holder in holders), default=datetime.min.replace(tzinfo=UTC))
    return max(datetime.now(UTC), newest + timedelta(microseconds=1)).strftime(_TIME)


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:  # somebody else's label
        return None

"""Aliases, which MLflow keeps itself, and where they pointed before, which a tag of the model remembers.

MLflow moves an alias without a condition. The tag is written after the move, so what it says first is compared with
what the alias points to: somebody else may have moved it with other means.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from airflow_provider_modelsync.core.models import HISTORY, LATEST, Alias, Held
from airflow_provider_modelsync.core.registries.mlflow.api import as_json
from airflow_provider_modelsync.core.registries.mlflow.records import MAX_TAG_KEY, OURS, RegisteredModel, time_of

_GRAMMAR = re.compile(r"[\w-]{1,255}")
_RESERVED = re.compile(rf"{LATEST}|v\d+", re.IGNORECASE)

_Entry = tuple[str | None, int | None]  # a version, and since when, in milliseconds
_ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])


def fault_of_alias(alias: str) -> bool:
    """Whether MLflow does not take an alias."""
    return not _GRAMMAR.fullmatch(alias) or _RESERVED.fullmatch(alias) is not None


def key_of(alias: str) -> str | None:
    """Return the tag that remembers where an alias pointed; ``None`` for one that is too long for that."""
    key = f"{OURS}alias.{alias}"
    return key if len(key) <= MAX_TAG_KEY else None


def aliases_in(model: RegisteredModel) -> list[Alias]:
    """Return the aliases of a model, by their names."""
    found = []
    for entry in model.aliases:
        past = _past(model, entry.alias)
        since = None
        if past and past[0][0] == entry.version:
            since, past = past[0][1], past[1:]
        earlier = tuple(Held(version=version, since=time_of(moment)) for version, moment in past[:HISTORY])
        found.append(
            Alias(name=model.name, alias=entry.alias, version=entry.version, since=time_of(since), earlier=earlier)
        )
    return sorted(found, key=lambda alias: alias.alias)


def remembered(model: RegisteredModel, alias: str, version: str) -> str | None:
    """Return what the tag is to say once an alias has been moved; ``None`` when it says so already.

    :param model: as it was before.
    :param alias: the alias.
    :param version: where it is moved to.
    """
    past = _past(model, alias)
    if past and past[0][0] == version:
        return None
    now = next((entry.version for entry in model.aliases if entry.alias == alias), None)
    if (now is not None or past) and now != version and (not past or past[0][0] != now):
        past = [(now, None), *past]
    return as_json([(version, int(time.time() * 1000)), *past][: HISTORY + 1])


def _past(model: RegisteredModel, alias: str) -> Sequence[_Entry]:
    key = key_of(alias)
    text = next((tag.value for tag in model.tags if tag.key == key), "[]")
    try:
        return _ENTRIES.validate_json(text)
    except ValidationError:
        return []

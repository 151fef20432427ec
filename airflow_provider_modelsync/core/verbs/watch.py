"""Which versions of a model, and which moves of an alias, are new to somebody who watches it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

from pydantic import JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, VersionStatus
from airflow_provider_modelsync.core.registries.base import ANY, Registry

# What a watcher remembers must fit into 64 KiB of JSON; a mark takes twelve bytes.
LIMIT = 5000
_MARKS = TypeAdapter(set[str])
Sight = Mapping[str, ModelVersion]


class Seen:
    """Tells each version once, as soon as it is ready; what is ready or has failed at the first sight is never told.

    A version that is not ready yet is simply not marked, however old it is and however often others overtake it.

    :param kept: what :meth:`keep` has returned, or ``None`` before the first sight.
    :raises ValueError: when it is something else.
    """

    def __init__(self, kept: JsonValue = None) -> None:
        try:
            self._marks = None if kept is None else _MARKS.validate_python(kept)
        except ValidationError:
            raise ValueError("not what a watch remembers") from None
        self.has_changed = False  # whether the last listing has brought something to keep

    def news(self, listed: Sight) -> list[ModelVersion]:
        """Return the versions to tell, oldest first, and remember them.

        :param listed: all versions of the model, in any state.
        """
        before = self._marks
        if before is None:
            final = (VersionStatus.READY, VersionStatus.FAILED)
            self._marks = {mark for mark, version in listed.items() if version.status in final}
            self.has_changed = True
            return []
        new = {mark: version for mark, version in listed.items() if version.ready and mark not in before}
        self._marks, self.has_changed = before | new.keys(), bool(new)
        if len(self._marks) > LIMIT:
            # Not sooner: a version may be missing from one listing and be back in the next.
            self._marks &= listed.keys()
        return sorted(new.values(), key=lambda version: version.age_key)

    def keep(self) -> JsonValue:
        """Return what is remembered, as JSON."""
        return [*sorted(self._marks or ())]


class Moves:
    """Tells where an alias points, whenever that is another version than before; not what it is at the first sight.

    :param kept: what :meth:`keep` has returned, or ``None`` before the first sight.
    :raises ValueError: when it is something else.
    """

    def __init__(self, kept: JsonValue = None) -> None:
        if kept is not None and not isinstance(kept, str):
            raise ValueError("not what a watch remembers")
        self._last = kept  # empty while there was nothing
        self.has_changed = False  # whether the last look has brought something to keep

    def news(self, listed: Sight) -> list[ModelVersion]:
        """Return the version to tell, and remember it.

        :param listed: what the alias points to; nothing while it is not there, or what it points to is not ready.
        """
        before = self._last
        found = next(iter(listed.values()), None)
        self._last = found.version if found else before or ""
        self.has_changed = self._last != before
        return [found] if found and self.has_changed and before is not None else []

    def keep(self) -> JsonValue:
        """Return what is remembered, as JSON."""
        return self._last


Watch = Seen | Moves


def look_at(registry: Registry, model: str) -> Flow[tuple[type[Watch], Sight]]:
    """Return what tells what is new of a model or of an alias, and what there is to see of it, ready for any number.

    :raises InvalidInput: for an exact version, which never becomes another.
    """
    ref = registry.parse(model)
    if ref.version is not None:
        raise InvalidInput("an exact version is nothing to watch; name only the model, or an alias", argument="model")
    if ref.alias is None:
        return Seen, sight_of((yield from registry.list_versions(ref.name, ANY)))
    try:
        found = yield from registry.get(ref)
    except ModelNotFound:
        return Moves, {}
    return Moves, sight_of([found] if found.ready else [])


def sight_of(versions: Iterable[ModelVersion]) -> Sight:
    """Return versions by their marks."""
    return {_mark(version): version for version in versions}


def _mark(version: ModelVersion) -> str:
    digest = hashlib.blake2b(version.version.encode(), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest).decode()

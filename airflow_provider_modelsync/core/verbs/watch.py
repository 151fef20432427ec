"""Which versions of a model are new to somebody who watches it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from pydantic import JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core.models import ModelVersion, VersionStatus

# What a watcher remembers must fit into 64 KiB of JSON; a mark takes twelve bytes.
LIMIT = 5000
_MARKS = TypeAdapter(set[str])


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

    def news(self, versions: Iterable[ModelVersion]) -> list[ModelVersion]:
        """Return the versions to tell, oldest first, and remember them.

        :param versions: all versions of the model, in any state.
        """
        before = self._marks
        listed = {_mark(version): version for version in versions}
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


def _mark(version: ModelVersion) -> str:
    digest = hashlib.blake2b(version.version.encode(), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest).decode()

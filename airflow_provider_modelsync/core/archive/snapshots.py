"""Snapshots of a Hugging Face cache as sources: where their links lead, and whether they are whole.

The layout was seen with huggingface_hub 0.36.2 and 2.4.0: ``models--org--name/snapshots/<commit>/<path>`` are links
into ``models--org--name/blobs``, of which some are links into ``blobs`` beside all models. From 2.x on
``trees/<commit>.json`` lists all files of a commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from airflow_provider_modelsync.core.archive.choice import Choice
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput

_MADE_BY_THE_HUB = ".gitattributes"


class _Listed(BaseModel):
    size: int


class _Tree(BaseModel):
    files: dict[str, _Listed]


class Snapshot:
    """A snapshot that a source is, or lies in.

    :param place: the snapshot's directory.
    :param within: the source's path in it; empty for all of it.
    """

    def __init__(self, place: Path, within: str) -> None:
        self._repository = place.parent.parent
        self._commit = place.name
        self._prefix = f"{within}/" if within else ""

    @classmethod
    def around(cls, root: str) -> Snapshot | None:
        """Return the snapshot that a directory belongs to, if it does."""
        for place in (Path(root), *Path(root).parents):
            if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
                within = Path(root).relative_to(place).as_posix()
                return cls(place, "" if within == "." else within)
        return None

    @property
    def bounds(self) -> list[str]:
        """The directories that hold the files which snapshots share."""
        return [str(self._repository), str(self._repository.parent / "blobs")]

    def require_whole(self, sizes: Mapping[str, int], choice: Choice) -> None:
        """Raise unless all chosen files of the commit are there: patterns, or an interruption, may have kept some away.

        :param sizes: of the files that are there, by their paths in the source.
        """
        try:
            tree = _Tree.model_validate_json((self._repository / "trees" / f"{self._commit}.json").read_bytes())
        except (OSError, ValidationError):  # older clients keep none: nothing tells, then
            return
        for path, listed in tree.files.items():
            inside = path.removeprefix(self._prefix)
            if not path.startswith(self._prefix) or path == _MADE_BY_THE_HUB or not choice.takes(inside):
                continue
            if sizes.get(inside) != listed.size:
                name = self._repository.name.removeprefix("models--").replace("--", "/")
                raise InvalidInput(
                    f"the snapshot holds only some files of {name}:{self._commit}: {show(path)} is missing, or cut; "
                    "have it completed, or name the files that are meant with include",
                    argument="source",
                )

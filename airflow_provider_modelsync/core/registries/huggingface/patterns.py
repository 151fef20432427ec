"""Which files of a model take part, by patterns as the Hub's own client takes them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from airflow_provider_modelsync.core.archive.choice import Choice, Matcher
from airflow_provider_modelsync.core.errors import InvalidInput


class HubPatterns(Choice):
    """Patterns of ``snapshot_download``: compared with the whole path, ``*`` crosses ``/``, excluding wins.

    A pattern that ends in ``/`` stands for all that lies below. Read in huggingface_hub 2.4.0.
    """

    def leaves_out(self, path: str) -> bool:
        return self._excluded is not None and self._excluded.match_file(path)

    @staticmethod
    def _compiled(argument: str, patterns: Sequence[str]) -> Matcher | None:
        for pattern in patterns:
            if not pattern or any(character in pattern for character in "\0\r\n"):
                raise InvalidInput(f"{pattern!r} is not one pattern", argument=argument)
        return _Globs(patterns) if patterns else None


class _Globs:
    def __init__(self, patterns: Sequence[str]) -> None:
        self._globs = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]

    def match_file(self, file: str, /) -> bool:
        return any(fnmatchcase(file, glob) for glob in self._globs)

"""Which files of a model take part in a push, a pull or a sync, by patterns as ``.gitignore`` files hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from airflow_provider_modelsync.core.errors import InvalidInput


class _File(Protocol):
    @property
    def path(self) -> str: ...


class Matcher(Protocol):
    """What patterns stand for."""

    def match_file(self, file: str, /) -> bool: ...


F = TypeVar("F", bound=_File)

BY_HABIT = (".git", "**/.cache/huggingface/")  # what tools leave in a source that is no part of any model


class Choice:
    """Which paths take part: those that an ``include`` pattern matches and no ``exclude`` pattern does.

    As in git, the last pattern that matches decides, ``!`` turns one round, and what lies in a directory that is left
    out is left out, too.

    :param include: patterns; without any, everything is included.
    :param exclude: patterns.
    :param by_habit: patterns that are excluded as long as ``exclude`` does not turn them round.
    :raises InvalidInput: for what is no pattern.
    """

    def __init__(
        self,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        *,
        by_habit: Sequence[str] = (),
    ) -> None:
        self.include = _patterns("include", include)
        self.exclude = _patterns("exclude", exclude)
        self._by_habit = tuple(by_habit)
        self._left_out: dict[str, bool] = {}
        # Now, so that a bad one is refused before anything happens.
        self._included = self._compiled("include", self.include)
        self._excluded = self._compiled("exclude", (*self._by_habit, *self.exclude))
        self._habits = self._compiled("exclude", self._by_habit)

    @property
    def is_all(self) -> bool:
        """Whether no pattern leaves anything out."""
        return self._included is None and self._excluded is None

    def takes(self, path: str) -> bool:
        """Whether a file takes part."""
        return not self.leaves_out(path) and (self._included is None or self._included.match_file(path))

    def takes_directory(self, path: str) -> bool:
        """Whether an empty directory takes part."""
        return not self.leaves_out(f"{path}/") and (self._included is None or self._included.match_file(f"{path}/"))

    def leaves_out(self, path: str) -> bool:
        """Whether a path, a directory's with a slash at its end, is excluded, or lies in a directory that is."""
        if self._excluded is None:
            return False
        parent = path.rstrip("/").rpartition("/")[0]
        if parent:
            if parent not in self._left_out:
                self._left_out[parent] = self.leaves_out(f"{parent}/")
            if self._left_out[parent]:
                return True
        return self._excluded.match_file(path)

    def is_habit(self, path: str) -> bool:
        """Whether a path that is left out is so although nobody has said it."""
        return self._habits is not None and self._habits.match_file(path)

    def files(self, files: Iterable[F]) -> tuple[F, ...]:
        """Return those files that take part."""
        return tuple(file for file in files if self.takes(file.path))

    def directories(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return those empty directories that take part."""
        return tuple(path for path in paths if self.takes_directory(path))

    def __str__(self) -> str:
        told = {"include": self.include, "exclude": self.exclude, "leaving out": self._by_habit}
        return ", ".join(f"{name} {list(patterns)}" for name, patterns in told.items() if patterns) or "all files"

    @staticmethod
    def _compiled(argument: str, patterns: Sequence[str]) -> Matcher | None:
        if not patterns:
            return None
        from pathspec import GitIgnoreSpec

        for pattern in patterns:
            if any(character in pattern for character in "\0\r\n"):
                raise InvalidInput(f"{pattern!r} is not one pattern", argument=argument)
        try:
            return GitIgnoreSpec.from_lines(patterns)
        except ValueError as error:
            raise InvalidInput(f"it holds no pattern as .gitignore files do: {error}", argument=argument) from None


def _patterns(argument: str, patterns: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns or ()):
        raise InvalidInput("it is a list of patterns", argument=argument)
    return tuple(patterns or ())


EVERYTHING = Choice()

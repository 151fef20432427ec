"""A long JSON answer, read in slices.

A call of a parser reads all that it is given while no other thread runs, an event loop's neither. So none is given more
than a slice: what is longer is read part by part, however deep it lies. Only a text or a number is read as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import from_json

SLICE = 32 << 10  # characters: a millisecond's work

_BLANKS = re.compile(r"[ \t\n\r]*")
_GOES_ON = ("", ".", "e", "E", "+", "-")  # what follows the beginning of a number
_python = json.JSONDecoder()


def in_slices(content: bytes, shape: Any) -> Any:
    """Return what JSON says, with its long lists as iterators where the shape wants lists.

    :param content: the JSON.
    :param shape: what it is to become: lists of its own, or of a model's fields, come entry by entry.
    :raises ValueError: when it is no JSON.
    """
    try:
        return _Reader(content.decode()).whole(shape)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Reader:
    """Walks through JSON: finds where each short value ends by Python's parser, and reads it by pydantic's."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._window = text[:SLICE]
        self._begins = 0  # of the window

    def whole(self, shape: Any) -> Any:
        value = self._long(shape)
        if self._next():
            raise ValueError("more than one value")
        return value

    def _long(self, shape: Any) -> Any:
        begins = self._next()
        if begins == "[":
            return self._entries(shape)
        if begins == "{":
            return self._fields(shape)
        start = self._at
        _, self._at = _python.raw_decode(self._text, start)
        return from_json(self._text[start : self._at])

    def _fields(self, shape: Any) -> dict[str, Any]:
        shapes = _shapes_in(shape)
        value = {}
        for _ in self._parts("}"):
            key = self._value(str)
            if not isinstance(key, str) or self._next() != ":":
                raise ValueError("no key")
            self._at += 1
            wanted = shapes.get(key, Any)
            value[key] = self._entries(wanted) if self._next() == "[" else self._value(wanted)
        return value

    def _entries(self, shape: Any) -> Iterator[Any] | list[Any]:
        wanted = _entry_of(shape)
        parts: list[tuple[int, int] | list[Any]] = []  # slices of many entries, and entries that are longer
        for _ in self._parts("]"):
            start = self._at
            if not self._pass_over():
                parts.append([self._long(wanted)])
                continue
            last = parts[-1] if parts else None
            if isinstance(last, tuple) and self._at - last[0] <= SLICE:
                parts[-1] = (last[0], self._at)
            else:
                parts.append((start, self._at))
        entries = (entry for part in parts for entry in self._read(part))
        return list(entries) if wanted is None else entries

    def _read(self, part: tuple[int, int] | list[Any]) -> list[Any]:
        if isinstance(part, list):
            return part
        entries: list[Any] = from_json(f"[{self._text[part[0] : part[1]]}]")
        return entries

    def _parts(self, closing: str) -> Iterator[None]:
        """Stop at each part of what begins here, and behind it in the end."""
        self._at += 1
        if self._next() == closing:
            self._at += 1
            return
        while True:
            self._next()
            yield
            mark = self._next()
            self._at += 1
            if mark == closing:
                return
            if mark != ",":
                raise ValueError("no comma")

    def _next(self) -> str:
        """Return the next character that means something; empty at the end."""
        blanks = _BLANKS.match(self._text, self._at)
        assert blanks is not None
        self._at = blanks.end()
        return self._text[self._at : self._at + 1]

    def _value(self, shape: Any) -> Any:
        self._next()
        start = self._at
        return from_json(self._text[start : self._at]) if self._pass_over() else self._long(shape)

    def _pass_over(self) -> bool:
        """Go behind the value that begins here, unless it is longer than a slice, or none."""
        for _ in range(2):
            at = self._at - self._begins
            try:
                _, end = _python.raw_decode(self._window, at)
            except ValueError:
                end = 0
            # A number that is cut by the window's end may seem to end before that.
            is_last = self._begins + end == len(self._text)
            if at < end and (is_last or self._window[end : end + 1] not in _GOES_ON):
                self._at = self._begins + end
                return True
            self._begins = self._at
            self._window = self._text[self._at : self._at + SLICE]
        return False


def _shapes_in(shape: Any) -> dict[str, Any]:
    """Return the shapes of an object's fields, where they are known."""
    for one in _alternatives(shape):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return {field.alias or name: field.annotation for name, field in one.model_fields.items()}
    return {}


def _entry_of(shape: Any) -> Any:
    """Return the shape of a list's entries; ``None`` where no list is wanted."""
    return next((get_args(one)[0] for one in _alternatives(shape) if get_origin(one) is list), None)


def _alternatives(shape: Any) -> tuple[Any, ...]:
    if get_origin(shape) is Annotated:
        return _alternatives(get_args(shape)[0])
    if get_origin(shape) in (Union, UnionType):
        return tuple(one for alternative in get_args(shape) for one in _alternatives(alternative))
    return (shape,)

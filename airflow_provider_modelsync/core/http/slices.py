"""A long JSON answer, read in slices.

A call of a parser reads all that it is given while no other thread runs, an event loop's neither. So none is given more
than a slice, or one entry of a list that is longer than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import from_json

SLICE = 32 << 10  # characters: a millisecond's work

_BLANKS = re.compile(r"[ \t\n\r]*")
_python = json.JSONDecoder()


def in_slices(content: bytes, shape: Any) -> Any:
    """Return what JSON says, with its long lists as iterators where the shape wants lists.

    :param content: the JSON.
    :param shape: what it is to become: lists of its own, or of a model's fields, come entry by entry.
    :raises ValueError: when it is no JSON.
    """
    return _Reader(content.decode()).whole(shape)


class _Reader:
    """Walks through JSON: finds where each value ends by Python's parser, and reads it by pydantic's."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self, shape: Any) -> Any:
        begins = self._next()
        if begins == "[":
            value: Any = self._entries(shape)
        elif begins == "{":
            fields = shape.model_fields.items() if isinstance(shape, type) and issubclass(shape, BaseModel) else ()
            shapes = {field.alias or name: field.annotation for name, field in fields}
            value = {}
            for _ in self._parts("}"):
                key = self._value()
                if not isinstance(key, str) or self._next() != ":":
                    raise ValueError("no key")
                self._at += 1
                value[key] = self._entries(shapes.get(key, Any)) if self._next() == "[" else self._value()
        else:
            value = self._value()
        if self._next():
            raise ValueError("more than one value")
        return value

    def _entries(self, shape: Any) -> Iterator[Any] | list[Any]:
        slices: list[tuple[int, int]] = []
        for _ in self._parts("]"):
            start, end = self._span()
            if slices and end - slices[-1][0] <= SLICE:
                start = slices.pop()[0]
            slices.append((start, end))
        entries = (entry for start, end in slices for entry in from_json(f"[{self._text[start:end]}]"))
        return entries if _is_list(shape) else list(entries)

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

    def _value(self) -> Any:
        start, end = self._span()
        return from_json(self._text[start:end])

    def _span(self) -> tuple[int, int]:
        start = self._at
        try:
            _, self._at = _python.raw_decode(self._text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return start, self._at


def _is_list(shape: Any) -> bool:
    if get_origin(shape) in (Union, UnionType):
        return any(map(_is_list, get_args(shape)))
    return get_origin(shape) is list

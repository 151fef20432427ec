"""A multipart/form-data body that is never in memory: small fields, then one part of any size.

Its length is known beforehand, and it can be read any number of times: from the start, by each try of a request.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_QUOTED = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers do (the WHATWG's URL standard)


class Content(Protocol):
    """What fills buffers, as raw files do."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Field:
    """A small part.

    :param name: of the field.
    :param content: its bytes.
    :param content_type: what they are; left out when ``None``.
    """

    name: str
    content: bytes = field(repr=False)
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """The large part.

    :param name: of the field.
    :param filename: what the server is to call it.
    :param size: its length in bytes.
    :param open: returns its content, from the first byte on; called once a try.
    :param content_type: what it is.
    """

    name: str
    filename: str
    size: int
    open: Callable[[], Content]
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Form:
    """A form.

    :param fields: the small parts, which go first.
    :param upload: the large part; a form may have none.
    """

    fields: Sequence[Field]
    upload: Upload | None = None
    # It may not occur in the parts (RFC 2046): 32 random digits do not.
    boundary: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def content_type(self) -> str:
        """The body's ``Content-Type``."""
        return f"multipart/form-data; boundary={self.boundary}"

    @cached_property
    def _head(self) -> bytes:
        parts = [self._head_of(part.name, part.content_type) + part.content + b"\r\n" for part in self.fields]
        if self.upload:
            parts.append(self._head_of(self.upload.name, self.upload.content_type, self.upload.filename))
        return b"".join(parts)

    @cached_property
    def _tail(self) -> bytes:
        return (b"\r\n" if self.upload else b"") + f"--{self.boundary}--\r\n".encode()

    def _head_of(self, name: str, content_type: str | None, filename: str | None = None) -> bytes:
        lines = [f"--{self.boundary}", f'Content-Disposition: form-data; name="{name.translate(_QUOTED)}"']
        if filename is not None:
            lines[1] += f'; filename="{filename.translate(_QUOTED)}"'
        if content_type is not None:
            lines.append(f"Content-Type: {content_type}")
        return "\r\n".join([*lines, "", ""]).encode()

    @property
    def size(self) -> int:
        """Length of the body in bytes."""
        return len(self._head) + (self.upload.size if self.upload else 0) + len(self._tail)

    def reader(self) -> io.RawIOBase:
        """Return the body as a binary file, at its start."""
        return _FormReader(self._head, self.upload, self._tail)


class _FormReader(io.RawIOBase):
    def __init__(self, head: bytes, upload: Upload | None, tail: bytes) -> None:
        ends: list[Content] = [io.BytesIO(head), io.BytesIO(tail)]
        self._parts = [ends[0], *([upload.open()] if upload else []), ends[1]]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while self._parts and done < len(view):
            count = self._parts[0].readinto(view[done:]) or 0
            if not count:
                self._close(self._parts.pop(0))
            done += count
        return done

    def close(self) -> None:
        while self._parts:
            self._close(self._parts.pop())
        super().close()

    @staticmethod
    def _close(part: Content) -> None:
        if isinstance(part, io.IOBase):
            part.close()

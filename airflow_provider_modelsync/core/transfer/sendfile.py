"""Pieces of files that go from the page cache to the network without passing through this process, where that works."""

from __future__ import annotations

import os

from airflow_provider_modelsync.core.archive.digest import LooseFile


class FilePiece:
    """A range of an open file, as a block of a request's body.

    :param file: the file.
    :param descriptor: of it, opened.
    :param start: where the range begins.
    :param buffer: as long as the range; is filled when the kernel cannot send it by itself.
    """

    def __init__(self, file: LooseFile, descriptor: int, start: int, buffer: memoryview) -> None:
        self._file = file
        self._descriptor = descriptor
        self._start = start
        self._buffer = buffer

    def __len__(self) -> int:
        return len(self._buffer)

    def read(self, done: int = 0) -> memoryview:
        """Return its bytes without the first ``done``; valid until the next piece is asked for.

        :raises SourceChanged: when the file is shorter by now.
        """
        view = self._buffer[done:]
        self._file.read_into(self._descriptor, self._start + done, view)
        return view

    def send(self, socket: int, done: int, count: int) -> int:
        """Have the kernel send at most ``count`` of its bytes behind the first ``done``; return how many it took.

        :raises OSError: when either end cannot do that.
        """
        return os.sendfile(socket, self._descriptor, self._start + done, count)

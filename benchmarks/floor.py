"""What no verified transfer can be cheaper than: SHA-256 of its bytes, and one connection that carries them."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

BLOCK = 1 << 20


def floor(verb: str, file: Path, size: int) -> float:
    """Return the CPU seconds of a process that does nothing else.

    :param verb: ``push``: it hashes a file, then has the kernel send it. ``pull``: it hashes what comes and writes it.
    :param file: the file, to be read or made.
    :param size: its size in bytes.
    """
    command = (sys.executable, __file__, verb, str(file), str(size))
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(verb: str, file: Path, size: int) -> None:
    """Do it and print what it cost."""
    listener = socket.create_server(("127.0.0.1", 0))
    if not (other := os.fork()):
        _be_the_other(listener, size if verb == "pull" else 0)
        os._exit(0)
    with socket.create_connection(listener.getsockname()) as connection:
        before = _cpu()
        (_push if verb == "push" else _pull)(file, connection, memoryview(bytearray(BLOCK)))
        print(_cpu() - before)
    os.waitpid(other, 0)


def _push(file: Path, connection: socket.socket, buffer: memoryview) -> None:
    total = hashlib.sha256()
    with file.open("rb", buffering=0) as source:
        while count := source.readinto(buffer):
            total.update(buffer[:count])
        connection.sendfile(source, offset=0)


def _pull(file: Path, connection: socket.socket, buffer: memoryview) -> None:
    total = hashlib.sha256()
    with file.open("xb", buffering=0) as target:
        while count := connection.recv_into(buffer, 0, socket.MSG_WAITALL):
            total.update(buffer[:count])
            target.write(buffer[:count])


def _be_the_other(listener: socket.socket, size: int) -> None:
    buffer = bytearray(BLOCK)
    connection, _ = listener.accept()
    for _ in range(size // BLOCK):
        connection.sendall(buffer)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv_into(buffer):
        pass


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

"""What no verified transfer can be cheaper than: SHA-256 of its bytes, and one connection that carries them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.meter import Figures, measure

BLOCK = 1 << 20


def floor(verb: str, file: Path, size: int, tls: tuple[Path, Path] | None = None) -> Figures:
    """Return what a process costs that does nothing else.

    :param verb: ``push``: it hashes a file, or a directory's, and sends it at the same time, without TLS by the kernel;
        or ``pull``: it hashes what comes and writes it.
    :param file: the file, to be read or made.
    :param size: its size in bytes.
    :param tls: certificate and key of the other end, where a push is encrypted.
    """
    command = (sys.executable, __file__, verb, str(file), str(size), *map(str, tls or ()))
    figures: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return figures


def main(verb: str, file: Path, size: int, *tls: str) -> None:
    """Do it and print what it cost."""
    listener = socket.create_server(("127.0.0.1", 0))
    if not (other := os.fork()):
        _be_the_other(listener, size if verb == "pull" else 0, tls)
        os._exit(0)
    with socket.create_connection(listener.getsockname()) as connection:
        if tls:
            trust = ssl.create_default_context(cafile=tls[0])
            connection = trust.wrap_socket(connection, server_hostname="127.0.0.1")
        carry = _push if verb == "push" else _pull
        print(json.dumps(measure(lambda: carry(file, connection, memoryview(bytearray(BLOCK))))))
        connection.close()
    os.waitpid(other, 0)


def _push(place: Path, connection: socket.socket, buffer: memoryview) -> None:
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    hashing = threading.Thread(target=_hash, args=(files,))
    hashing.start()
    for file in files:
        with file.open("rb", buffering=0) as source:
            if isinstance(connection, ssl.SSLSocket):
                while count := source.readinto(buffer):
                    connection.sendall(buffer[:count])
            else:
                connection.sendfile(source)
    hashing.join()


def _hash(files: Iterable[Path]) -> None:
    buffer = memoryview(bytearray(BLOCK))
    for file in files:
        total = hashlib.sha256()
        with file.open("rb", buffering=0) as source:
            while count := source.readinto(buffer):
                total.update(buffer[:count])


def _pull(file: Path, connection: socket.socket, buffer: memoryview) -> None:
    total = hashlib.sha256()
    with file.open("xb", buffering=0) as target:
        while count := connection.recv_into(buffer, 0, socket.MSG_WAITALL):
            total.update(buffer[:count])
            target.write(buffer[:count])


def _be_the_other(listener: socket.socket, size: int, tls: tuple[str, ...]) -> None:
    buffer = bytearray(BLOCK)
    connection, _ = listener.accept()
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        connection = context.wrap_socket(connection, server_side=True)
    if size:
        for _ in range(size // BLOCK):
            connection.sendall(buffer)
        connection.shutdown(socket.SHUT_WR)
    while connection.recv_into(buffer):
        pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])

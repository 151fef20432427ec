"""Sources and targets in object storage: one local copy on the way in, one upload on the way out."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, TargetExists
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.operators.arguments import Location

_BLOCK = 1 << 20  # bytes copied at a time


def resolve(location: Location, argument: str) -> Path | ObjectStoragePath:
    """Tell local from remote.

    :param location: a path, or a URL that :class:`ObjectStoragePath` understands.
    :param argument: the argument's name, for errors.
    :return: a local path, or an object storage path.
    :raises InvalidInput: when it is neither.
    """
    if not isinstance(location, ObjectStoragePath):
        text = os.fspath(location)
        if not text:
            raise InvalidInput("it is empty", argument=argument)
        if "://" not in text:
            return Path(text)
    try:
        remote = ObjectStoragePath(location)
        if remote.protocol in ("file", "local", ""):
            return Path(remote.path)
        remote.fs  # noqa: B018  # only here does Airflow say that no provider brings the scheme
    except ValueError as error:
        raise InvalidInput(f"{str(location)!r} is no storage location: {error}", argument=argument) from error
    return remote


@contextmanager
def local_source(location: Location, cancel: CancelToken, argument: str = "source") -> Iterator[Path]:
    """Yield a source as a local path; a remote one is copied to a temporary directory once.

    :raises InvalidInput: when a remote source is missing or holds a name that no model may hold.
    """
    source = resolve(location, argument)
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        copy = Path(scratch) / source.name
        for path in _files_below(source):
            local = copy / path if path else copy
            local.parent.mkdir(parents=True, exist_ok=True)
            with _open(source / path if path else source, "rb") as reader, local.open("xb") as writer:
                _copy(reader, writer, cancel)
        if not copy.exists():
            raise InvalidInput(f"{source} does not exist or holds no file", argument=argument)
        yield copy


def upload_directory(directory: Path, target: ObjectStoragePath, *, force: bool, cancel: CancelToken) -> None:
    """Copy a pulled model to object storage.

    A target that holds only files of this very model is the work of an earlier try, and is completed.

    :raises TargetExists: when the target holds anything else and ``force`` is not set.
    """
    from airflow_provider_modelsync.core.archive.digest import read_tree

    wanted = {file.path: file for file in read_tree(directory, cancel=cancel).files}
    there = set(_files_below(target))
    ours = {path for path in there & wanted.keys() if _is_beginning(target / path, directory / path, cancel)}
    if strange := there - ours:
        if not force:
            raise TargetExists(
                f"{target} holds {names.show(min(strange))}, which is not of this model; "
                "empty it, or pull with force to replace it",
                argument="target",
            )
        for path in strange:
            (target / path if path else target).unlink()
    for path, file in wanted.items():
        remote = target / path
        if path not in ours or remote.stat().st_size != file.size:
            remote.parent.mkdir(parents=True, exist_ok=True)
            _upload(directory / path, remote, cancel)


def publish_file(file: Path, remote: ObjectStoragePath, *, cancel: CancelToken) -> None:
    """Copy a file to object storage, in place of whatever is there; it gets its name once it is complete."""
    scratch = remote.parent / f".{remote.name}.{secrets.token_hex(6)}"
    remote.parent.mkdir(parents=True, exist_ok=True)
    _upload(file, scratch, cancel)
    try:
        remote.fs.mv(scratch.path, remote.path)
    except BaseException:
        with suppress(Exception):
            scratch.unlink()
        raise


def _upload(file: Path, remote: ObjectStoragePath, cancel: CancelToken) -> None:
    try:
        with file.open("rb") as reader, _open(remote, "wb") as writer:
            _copy(reader, writer, cancel)
    except BaseException:
        # Closing a file publishes what was written of it, also when it is closed by an error.
        with suppress(Exception):
            remote.unlink()
        raise


def _files_below(root: ObjectStoragePath) -> list[str]:
    """Return the paths of all files relative to a root; ``""`` stands for a root that is a file itself."""
    if root.is_file():
        return [""]
    prefix = root.path.rstrip("/")
    keys = [str(key) for key in root.fs.find(root.path)]
    # Consoles and Hadoop keep empty objects in the place of directories.
    found = [key.removeprefix(prefix).lstrip("/") for key in keys if not key.endswith("/")]
    for path in found:
        if fault := names.fault_of(path):
            raise InvalidInput(f"{root} holds {names.show(path)}, which {fault}")
    return found


def _is_beginning(remote: ObjectStoragePath, file: Path, cancel: CancelToken) -> bool:
    """Whether a stored file holds a local one, or as much of it as a killed try could write."""
    with _open(remote, "rb") as there, file.open("rb") as here:
        while block := there.read(_BLOCK):
            cancel.check()
            if block != here.read(len(block)):
                return False
    return True


def _copy(reader: IO[bytes], writer: IO[bytes], cancel: CancelToken) -> None:
    while block := reader.read(_BLOCK):
        cancel.check()
        writer.write(block)


@contextmanager
def _open(path: ObjectStoragePath, mode: str) -> Iterator[Any]:
    try:
        with path.open(mode) as file:
            yield file
    except FileNotFoundError as error:
        raise RegistryUnavailable(f"{path} vanished while it was being read") from error

"""Sources and targets in object storage: one local copy on the way in, one upload on the way out."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, TargetExists
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, TransferStats
from airflow_provider_modelsync.core.verbs import placed
from airflow_provider_modelsync.core.verbs.placed import Put, Record
from airflow_provider_modelsync.operators.arguments import Location

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.archive.choice import Choice
    from airflow_provider_modelsync.core.arguments import Labels, Reference, Text
    from airflow_provider_modelsync.hooks.registry import RegistryHook

log = logging.getLogger("modelsync")

_BLOCK = 1 << 20  # bytes copied at a time
_NO_STAMP = ""  # of a file that is about to be written
# What the file systems call them.
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "version_id", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")

Files = Mapping[str, tuple[str, str]]  # path → stamp, sha256


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
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{str(location)!r} is no storage location: {error}", argument=argument) from error
    return remote


@contextmanager
def local_source(
    location: Location, cancel: CancelToken, argument: str = "source", *, choice: Choice | None = None
) -> Iterator[Path]:
    """Yield a source as a local path; a remote one is copied to a temporary directory once.

    :param choice: which files are worth being copied.
    :raises InvalidInput: when a remote source is missing or holds a name that no model may hold.
    """
    source = resolve(location, argument)
    if not isinstance(source, ObjectStoragePath):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        copy = Path(scratch) / source.name
        paths = _files_below(source)
        chosen = [path for path in paths if choice is None or choice.takes(path or source.name)]
        if len(chosen) < len(paths):
            log.info("%d of %d files in %s are left out by %s", len(paths) - len(chosen), len(paths), source, choice)
        for path in chosen:
            local = copy / path if path else copy
            local.parent.mkdir(parents=True, exist_ok=True)
            with _open(source / path if path else source, "rb") as reader, local.open("xb") as writer:
                _copy(reader, writer, cancel)
        if not copy.exists():
            by = f" that is chosen by {choice}" if paths else ""
            raise InvalidInput(f"{source} does not exist or holds no file{by}", argument=argument)
        yield copy


class _RemoteTarget:
    """A place in object storage that files of a model are pulled into, with the record that lies beside it.

    :param target: where; the root of a bucket is refused.
    :param identity: of the registry that they come from.
    :param choice: which files of the model.
    :param force: whether whatever is there may be replaced.
    :param cancel: looked at once a block.
    :param store: where the registry keeps its models, when that is object storage, too: ``bucket/prefix``.
    :raises InvalidInput: when the target is the root of a bucket, or it and the store lie in one another.
    """

    def __init__(
        self,
        target: ObjectStoragePath,
        identity: str,
        choice: Choice,
        *,
        force: bool,
        cancel: CancelToken,
        store: str | None = None,
    ) -> None:
        bucket = target.bucket.rpartition("@")[2]  # in older Airflows it begins with the connection
        segments = target.path.strip("/").removeprefix(bucket).strip("/").split("/")
        if segments == [""]:
            raise InvalidInput(
                f"{target} is the root of a bucket", remedy="name a place in it for the model alone", argument="target"
            )
        # Some storages and clients read the first two as file systems do: then it is a bucket's root, or anything.
        if any(segment.strip() in ("", ".", "..") for segment in segments):
            raise InvalidInput(f"{target} has a part that is blank, '.' or '..'", argument="target")
        place = f"{target.path.strip('/')}/"
        if (
            target.protocol == "s3"
            and store is not None
            and (place.startswith(f"{store}/") or f"{store}/".startswith(place))
        ):
            raise InvalidInput(f"{target} and the model store s3://{store} lie in one another", argument="target")
        self._target = target
        self._identity = identity
        self._choice = str(choice)
        self._is_all = choice.is_all
        self._force = force
        self._cancel = cancel
        self._beside = target.parent / placed.name_beside(target.name)

    def held(self, version: ModelVersion) -> str | None:
        """Return the digest of what is there when a pull of exactly this version has put it there and nobody since."""
        known = next(iter(self._recall().known), None)
        wanted = version.digest if self._is_all else None
        if known is None or not known.files or not known.is_exactly(self._identity, version, self._choice, wanted):
            return None
        there = {path: stamp for path, (stamp, _) in known.files.items()}
        return known.content if there == _survey(self._target) else None

    def fill(self, directory: Path, version: ModelVersion) -> None:
        """Bring a pulled model there and remember it.

        :raises TargetExists: when the target holds what no pull of the same model has put there.
        """
        left = [known.files or {} for known in self._recall().known if known.is_of_the_model(self._identity, version)]

        def remember(content: str, *states: Files) -> None:
            puts = (Put.of(self._identity, version, content, choice=self._choice, files=files) for files in states)
            self._beside.write_bytes(Record(known=tuple(puts)).content())

        now, content = _upload_directory(
            directory, self._target, force=self._force, cancel=self._cancel, left=left, announce=remember
        )
        remember(content, now)

    def _recall(self) -> Record:
        try:
            content = self._beside.read_bytes()
        except FileNotFoundError:
            return Record()
        return Record.read(content)


def pull_into(
    target: ObjectStoragePath,
    hook: RegistryHook,
    model: Reference,
    pull: Callable[[Path, str], PulledModel],
    *,
    labels: Labels | None,
    query: Text | None,
    choice: Choice,
    force: bool,
    cancel: CancelToken,
    look_again: bool = False,
) -> PulledModel:
    """Pull files of a model into object storage, by way of this machine, unless they are there already.

    :param pull: given a directory and the exact version, pulls it there.
    :param look_again: pull it even when it is there already: it has to stand checks.
    :raises InvalidInput: when the target is the root of a bucket.
    :raises TargetExists: when the target holds what no pull of the same model has put there.
    """
    registry = hook.get_conn()
    remote = _RemoteTarget(target, registry.identity, choice, force=force, cancel=cancel, store=registry.prefix)
    version = hook.get(model, labels=labels, query=query)
    held = remote.held(version)
    if held is not None and look_again:
        with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
            pull(Path(scratch) / "model", version.ref)
    if held is not None:
        log.info("%s already holds %s: nothing is pulled", target, version.ref)
        version = version.moved(TransferStats(skipped=True))
        return PulledModel(path=None, version=version, digest=held, is_partial=not choice.is_all)
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        pulled = pull(Path(scratch) / "model", version.ref)
        if pulled.is_elsewhere:
            return pulled
        remote.fill(Path(scratch) / "model", pulled.version)
    return pulled


def _upload_directory(
    directory: Path,
    target: ObjectStoragePath,
    *,
    force: bool,
    cancel: CancelToken,
    left: Iterable[Files] = (),
    announce: Callable[[str, Files, Files], None] | None = None,
) -> tuple[Files, str]:
    """Copy a pulled model to object storage.

    A target that holds only files of this very model is the work of an earlier try, and is completed.

    :param left: what the last pull has left there: as far as it still is that, it is replaced.
    :param announce: told, before anything is written, the model's digest, what is about to be there, and what is there.
    :return: what is there now, and its digest.
    :raises TargetExists: when the target holds anything else and ``force`` is not set.
    """
    from airflow_provider_modelsync.core.archive.digest import read_tree

    tree = read_tree(directory, cancel=cancel)
    wanted = {file.path: file for file in tree.files}
    there = _survey(target)
    untouched = _untouched(target, there, left, cancel)
    ours = {
        path
        for path in there.keys() & wanted.keys()
        if path not in untouched and _is_beginning(target / path, directory / path, cancel)
    }
    if strange := there.keys() - ours - untouched.keys():
        if not force:
            raise TargetExists(
                f"{target} holds {names.show(min(strange))}, which is not of this model, or was changed since it was "
                "pulled",
                remedy="empty it, or pull with force to replace it",
                argument="target",
            )
        for path in strange:
            (target / path if path else target).unlink()
    if announce is not None:
        announce(
            tree.digest,
            {path: (_NO_STAMP, file.sha256) for path, file in wanted.items()},
            {path: (there[path], sha256) for path, sha256 in untouched.items()},
        )
    for path, file in wanted.items():
        remote = target / path
        is_there = path in ours and remote.stat().st_size == file.size
        if not is_there and untouched.get(path) != file.sha256:
            remote.parent.mkdir(parents=True, exist_ok=True)
            _upload(directory / path, remote, cancel)
    for path in untouched.keys() - wanted.keys():
        (target / path).unlink()
    files = {path: (stamp, wanted[path].sha256) for path, stamp in _survey(target).items() if path in wanted}
    return files, tree.digest


def _untouched(
    target: ObjectStoragePath, there: Mapping[str, str], left: Iterable[Files], cancel: CancelToken
) -> dict[str, str]:
    """Return the files that still are what pulls have left there, path → sha256.

    Those that an interrupted pull was about to write have no stamp, and are read.
    """
    found: dict[str, str] = {}
    for files in left:
        for path, (stamp, sha256) in files.items():
            if path in there and path not in found:
                is_known = there[path] == stamp if stamp else _hash(target / path, cancel) == sha256
                if is_known:
                    found[path] = sha256
    return found


def _hash(remote: ObjectStoragePath, cancel: CancelToken) -> str:
    total = hashlib.sha256()
    with _open(remote, "rb") as reader:
        while block := reader.read(_BLOCK):
            cancel.check()
            total.update(block)
    return total.hexdigest()


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
    return list(_survey(root))


def _survey(root: ObjectStoragePath) -> dict[str, str]:
    """Return all files below a root, path → what tells that nobody has written it since, by one listing."""
    root.fs.invalidate_cache()
    if root.is_file():
        return {"": _stamp(root.fs.info(root.path))}
    prefix = root.path.rstrip("/") + "/"
    found: dict[str, str] = {}
    for key, facts in root.fs.find(root.path, detail=True).items():
        # Consoles and Hadoop keep empty objects in the place of directories.
        if not str(key).startswith(prefix) or str(key).endswith("/"):
            continue
        path = str(key).removeprefix(prefix)
        if fault := names.fault_of(path):
            raise InvalidInput(f"{root} holds {names.show(path)}, which {fault}")
        found[path] = _stamp(facts)
    return found


def _stamp(facts: Mapping[str, Any]) -> str:
    """Return the size of a file, its tag where the storage has one, and when it was written."""
    return " ".join(f"{key}={facts[key]}" for key in ("size", *_TAGS, *_TIMES) if facts.get(key) is not None)


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

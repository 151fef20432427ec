"""A model store in a directory of this machine, or of a disk that several machines mount.

The files of a generation are written where nobody else writes and renamed to their place as a whole. Whoever comes
second finds the place taken, and compares. No lock is held anywhere.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import BLOCK, FileEntry, read_tree
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelSyncError,
    from_os_error,
)
from airflow_provider_modelsync.core.registries.modelstore import claims
from airflow_provider_modelsync.core.registries.modelstore.store import (
    Damaged,
    Entry,
    Manifest,
    Record,
    Store,
    StorePlan,
)
from airflow_provider_modelsync.core.transfer.plan import (
    FromDirectory,
    IntoDirectory,
    PushRequest,
    UploadPlan,
)
from airflow_provider_modelsync.core.transfer.room import require_room

_CLOCK_STEP = 0.001  # seconds by which times of one file system may be told apart wrongly


@dataclass(frozen=True, slots=True)
class _Staged(IntoDirectory):
    """Files on their way to a generation's directory.

    :param staging: where they are written.
    :param held: gives that up.
    """

    staging: durable.Staging
    held: ExitStack


class DirectoryStore(Store):
    """Models below a directory.

    :param root: the directory; made at the first push.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def test(self) -> str:
        probe = self.root / f".{names.RESERVED_DIRECTORY}-probe-{secrets.token_hex(6)}"
        self._require_place()
        was_there = self.root.exists()
        try:
            self.root.mkdir(exist_ok=True)
            durable.create_file(probe, b"")
            probe.unlink()
        except OSError as error:
            raise from_os_error(error, f"writing to {self.root}", argument="host") from error
        finally:
            if not was_there:  # a test is no push
                with suppress(OSError):  # somebody else's push has begun meanwhile
                    self.root.rmdir()
        return f"The model store at {self.root.as_uri()} can be read and written."

    def uri(self, name: str, directory: str) -> str:
        return (self.root / name / directory).as_uri()

    def _require_place(self) -> None:
        """Raise :class:`InvalidInput` when the root could not even be made: a disk is not mounted, or a name is wrong.

        A root that is missing, in a directory that is there, is an empty store.
        """
        if not self.root.exists() and not self.root.parent.is_dir():
            raise InvalidInput(
                f"the directory {self.root.parent}, which the root {self.root} lies in, does not exist",
                argument="host",
                remedy="Create it, mount its disk on this machine, or correct the connection's host",
            )

    def names(self) -> list[str]:
        self._require_place()
        return [entry.name for entry in _list(self.root)]

    def entries(self, name: str, version: str | None = None) -> dict[str, Entry]:
        self._require_place()
        found: dict[str, Entry] = {}
        for entry in _list(self._meta(name)):
            if version is None or entry.name.startswith(f"{version}."):
                with suppress(FileNotFoundError):  # deleted since it was listed
                    facts = _facts(entry)
                    found[entry.name] = Entry(
                        _time(facts), f"{facts.st_mtime_ns}-{facts.st_ino}-{facts.st_size}", facts.st_size
                    )
        return found

    def read(self, name: str, record: str) -> Record | None:
        path = self._meta(name, record)
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                facts = os.fstat(file.fileno())
                if stat.S_ISREG(facts.st_mode):
                    return Record(file.read(), _time(facts))
        except OSError as error:
            if not os.path.lexists(path):
                self._require_place()
                return None
            if os.path.isfile(path):
                raise from_os_error(error, f"reading {path}") from error
        raise Damaged(f"{path} is no file")

    def create(self, name: str, record: str, content: bytes) -> bool:
        path = self._meta(name, record)
        self._require_place()
        with _translated(f"writing {path}"):
            self.root.mkdir(exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            return durable.create_file(path, content)

    def remove(self, name: str, records: Iterable[str]) -> None:
        paths = [self._meta(name, record) for record in records]
        with _translated(f"removing records of {name} in {self.root}"):
            for path in paths:
                with suppress(FileNotFoundError):
                    durable.remove_entry(path)
            if paths:
                durable.sync_directory(paths[0].parent)

    def show(self, name: str, record: str) -> str:
        return str(self._meta(name, record))

    def identity(self, name: str, record: str) -> tuple[str, ...]:
        return (str(self._meta(name, record)),)

    def require_fit(self, manifest: Manifest) -> None:
        pass  # the source is on a file system, too

    def prepare(self, manifest: Manifest, *, replaces: bool) -> None:
        with _translated(f"preparing {manifest.ref} in {self.root}"):
            self.root.mkdir(exist_ok=True)
            self._meta(manifest.name).mkdir(parents=True, exist_ok=True)
            durable.sweep(self._meta(manifest.name))
            if replaces:
                self.require_removable(manifest.name, manifest.version)

    def require_removable(self, name: str, version: str) -> None:
        for generation in self.generations(name, version):
            if fault := durable.what_keeps(self._files(name, version, generation)):
                raise InvalidInput(
                    f"{fault}, so {name}:{version} can be neither deleted nor replaced", argument="model"
                )

    def damaged(self, manifest: Manifest, *, written: datetime, thorough: bool) -> set[str]:
        directory = self._files(manifest.name, manifest.version, manifest.generation)

        def is_whole(file: FileEntry) -> bool:
            path = directory / file.path
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode) or facts.st_size != file.size:
                return False
            if bool(facts.st_mode & 0o100) != file.executable:
                return False
            # Bytes that nobody has touched since they were published are read only when that is asked for.
            is_touched = facts.st_ctime > written.timestamp() + _CLOCK_STEP
            return not (thorough or is_touched) or _sha256(path) == file.sha256

        wrong = set()
        for file in manifest.files:
            try:
                if not is_whole(file):
                    wrong.add(file.path)
            except OSError:
                wrong.add(file.path)
        return wrong

    def is_free(self, manifest: Manifest) -> bool:
        place = self._files(manifest.name, manifest.version, manifest.generation)
        return not os.path.lexists(place) or _holds(place, manifest)

    def way_up(
        self, request: PushRequest, manifest: Manifest, *, is_fresh: bool, origin: Manifest | None
    ) -> _Staged | None:
        held = ExitStack()
        with _translated(f"preparing {manifest.ref} in {self.root}"):
            staging = held.enter_context(durable.staging(self._meta(manifest.name, manifest.directory), _key(manifest)))
            if os.path.lexists(self._files(manifest.name, manifest.version, manifest.generation)):
                held.close()
                return None  # moved there as a whole by a push that was killed right after
            try:
                require_room(self.root, manifest.size_bytes)  # when what a killed try has left is gone
            except BaseException:
                held.close()
                raise
        return _Staged(staging.path, staging, held)

    def confirm(self, plan: StorePlan) -> Manifest:
        manifest = plan.manifest
        place = self._files(manifest.name, manifest.version, manifest.generation)
        with _translated(f"publishing {plan.ref} in {self.root}"):
            if isinstance(plan.way, _Staged):
                durable.sync_file_system(plan.way.directory)
                if not plan.way.staging.publish(place) and not _holds(place, manifest):
                    raise BeginAgain(f"{place} holds something else than {plan.ref}")
                durable.sync_directory(place.parent)
            elif not place.is_dir():
                raise BeginAgain(f"{place} is gone")
        return manifest

    def finish(self, plan: StorePlan) -> None:
        pass

    def release(self, manifest: Manifest, plan: UploadPlan | None = None) -> None:
        if plan is not None and isinstance(plan.way, _Staged):
            plan.way.held.close()
        if plan is None:
            self._sweep_after(manifest)

    def _sweep_after(self, manifest: Manifest) -> None:
        """Remove what a push of the same bytes that was killed after it had published them has left."""
        hidden = [entry.name[1:] for entry in _list(self._meta(manifest.name)) if entry.name.startswith(".")]
        stems = {name.partition(f".{_key(manifest)}.")[0] for name in hidden}
        with _translated(f"tidying {manifest.ref} in {self.root}"):
            for stem in stems:
                if claims.generation_of(manifest.version, stem):
                    with durable.staging(self._meta(manifest.name, stem), _key(manifest)):
                        pass

    def touched(self, name: str, version: str, generation: int) -> Iterator[datetime]:
        place = self._files(name, version, generation)
        hidden = f".{durable.stem_of(place)}."
        tops = [place, *(self._meta(name, one.name) for one in _list(self._meta(name)) if one.name.startswith(hidden))]
        for top in tops:
            yield from _times(top)
            for directory, _, files in os.walk(top):  # what another user stages is hidden but for its top
                for path in (directory, *(os.path.join(directory, file) for file in files)):
                    yield from _times(path)

    def tidy_place(self, name: str, older_than: datetime, seen: Set[str], *, dry_run: bool) -> list[str]:
        if not dry_run:  # by its own rule: what can be proved to be nobody's, or was not touched for a day
            durable.sweep(self._meta(name))
        return []

    def generations(self, name: str, version: str) -> set[int]:
        return {claims.generation_of(version, entry.name) for entry in _list(self.root / name)} - {0}

    def clear(self, name: str, version: str, generations: Iterable[int]) -> None:
        for generation in generations:
            place = self._files(name, version, generation)
            if os.path.lexists(place):
                # Out of sight at once, whatever time it takes to remove it.
                aside = self._meta(name, place.name)
                with (
                    _translated(f"removing {place}"),
                    durable.staging(aside, secrets.token_hex(6)) as staging,
                ):
                    staging.set_aside(place)

    def way_down(self, manifest: Manifest) -> FromDirectory:
        place = self._files(manifest.name, manifest.version, manifest.generation)
        return FromDirectory(place, manifest.files, manifest.directories)

    def _meta(self, name: str, record: str = "") -> Path:
        return self.root / name / names.RESERVED_DIRECTORY / record

    def _files(self, name: str, version: str, generation: int) -> Path:
        return self.root / name / claims.directory_of(version, generation)


def _holds(place: Path, manifest: Manifest) -> bool:
    """Whether a directory is exactly what a manifest says."""
    try:
        tree = read_tree(place)
    except ModelSyncError:
        return False
    return (tree.files, tree.directories) == (manifest.files, manifest.directories)


def _key(manifest: Manifest) -> str:
    """Return what tells the staging directories of these bytes."""
    return manifest.digest.removeprefix("sha256:")[:12]


def _sha256(path: Path) -> str:
    total, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
    return total.hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe, for somebody who writes


def _facts(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:  # a link that leads nowhere has a name all the same
        return entry.stat(follow_symlinks=False)


def _time(facts: os.stat_result) -> datetime:
    return datetime.fromtimestamp(facts.st_mtime, UTC)


def _times(path: str | Path) -> list[datetime]:
    """Return when something was written; nothing when it is not there any more."""
    try:
        return [_time(os.lstat(path))]
    except FileNotFoundError:
        return []


def _list(directory: Path) -> list[os.DirEntry[str]]:
    """Return what is in a directory; nothing when there is no such directory."""
    try:
        with os.scandir(directory) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise from_os_error(error, f"listing {directory}") from error


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error

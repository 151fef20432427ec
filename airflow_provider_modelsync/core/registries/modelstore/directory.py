"""A model store in a directory of this machine, or of a disk that several machines mount."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable, from_os_error
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.modelstore.store import (
    CLAIM,
    LABELS,
    MANIFEST,
    Claim,
    Entry,
    Labels,
    Manifest,
    Record,
    Store,
    StorePlan,
)
from airflow_provider_modelsync.core.transfer.plan import FromDirectory, IntoDirectory, PushRequest, UploadPlan
from airflow_provider_modelsync.core.transfer.room import require_room


@dataclass(frozen=True, slots=True, kw_only=True)
class _DirectoryPlan(StorePlan):
    staging: durable.Staging
    release: ExitStack  # gives the staging directory up


class DirectoryStore(Store):
    """Models below a directory.

    :param root: the directory; made at the first push.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def test(self) -> str:
        probe = self.root / f".{names.RESERVED_DIRECTORY}-probe-{secrets.token_hex(6)}"
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

    def uri(self, name: str, version: str) -> str:
        return (self.root / name / version).as_uri()

    def names(self) -> list[str]:
        return [entry.name for entry in _list(self.root)]

    def entries(self, name: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for entry in _list(self._meta(name)):
            with suppress(FileNotFoundError):  # deleted since it was listed
                found[entry.name] = Entry(_time(entry.stat()))
        return found

    def read(self, name: str, record: str, entry: Entry | None = None) -> Record | None:
        path = self._meta(name, record)
        try:
            with path.open("rb") as file:
                return Record(file.read(), _time(os.fstat(file.fileno())))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error

    def show(self, name: str, record: str) -> str:
        return str(self._meta(name, record))

    def plan_push(self, request: PushRequest, manifest: Manifest) -> UploadPlan:
        with _translated(f"preparing {manifest.ref} in {self.root}"):
            self.root.mkdir(exist_ok=True)
            self._meta(manifest.name).mkdir(parents=True, exist_ok=True)
            durable.sweep(self._meta(manifest.name))
            if existing := self.settle(manifest, request.force):
                self._release_claim(manifest)  # whoever published it may have died before doing so
                return UploadPlan(ref=manifest.ref, way=None, existing=existing)
            self._claim(manifest, request.force)
            release = ExitStack()
            try:
                # Once more: the version may have been published between the first look and the claim.
                if existing := self.settle(manifest, request.force):
                    self._release_claim(manifest)
                    return UploadPlan(ref=manifest.ref, way=None, existing=existing)
                key = manifest.digest.removeprefix("sha256:")[:12]
                staging = release.enter_context(durable.staging(self._meta(manifest.name, manifest.version), key))
                # After what a killed try of the same push has left is gone.
                require_room(self.root, manifest.size_bytes)
            except BaseException:
                release.close()
                self._release_claim(manifest)
                raise
        return _DirectoryPlan(
            ref=manifest.ref,
            way=IntoDirectory(staging.path),
            manifest=manifest,
            force=request.force,
            staging=staging,
            release=release,
        )

    def publish(self, plan: UploadPlan) -> ModelVersion:
        plan = cast(_DirectoryPlan, plan)
        manifest = plan.manifest
        pair = manifest.name, manifest.version
        final = self.root / manifest.name / manifest.version
        with plan.release, _translated(f"publishing {plan.ref} in {self.root}"):
            durable.sync_file_system(plan.staging.path)
            with durable.directory_lock(self._meta(manifest.name)):
                existing = self.settle(manifest, plan.force)  # another writer of the same bytes may have been faster
                if existing is None:
                    self._claim(manifest, force=False)  # still ours? another push may have taken it over
                    # Absent from here until the new manifest is there, never a mixture.
                    self._withdraw(*pair)
                    plan.staging.set_aside(final)
                    if not plan.staging.publish(final):  # where locks do nothing, another writer may be in here, too
                        raise RegistryUnavailable(f"{plan.ref} was published by somebody else just now")
                    durable.sync_directory(final.parent)
                    # Where locks do nothing, another writer may be in here, too: then one manifest wins.
                    content = manifest.model_dump_json().encode()
                    if not durable.create_file(self._meta(manifest.name, f"{manifest.version}{MANIFEST}"), content):
                        self.settle(manifest, force=False)
                self._release_claim(manifest)
        try:
            return self.read_version(*pair)
        except ModelNotFound as error:  # deleted, or where locks do nothing, about to be published by another writer
            raise RegistryUnavailable(
                f"{plan.ref} was withdrawn just now; the next try sees what came of it"
            ) from error

    def abort(self, plan: UploadPlan) -> None:
        plan = cast(_DirectoryPlan, plan)
        plan.release.close()
        self._release_claim(plan.manifest)

    def delete(self, name: str, version: str) -> bool:
        if not self._meta(name).is_dir():
            return False
        with (
            _translated(f"deleting {name}:{version} in {self.root}"),
            durable.staging(self._meta(name, version), secrets.token_hex(6)) as trash,
            durable.directory_lock(self._meta(name)),
        ):
            existed = self._withdraw(name, version)
            trash.set_aside(self.root / name / version)
            durable.sweep(self._meta(name))
            return existed

    def set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> None:
        with _translated(f"labelling {name}:{version} in {self.root}"), durable.directory_lock(self._meta(name)):
            merged = Labels(labels=self.read_version(name, version).labels).merged(labels)
            durable.replace_file(self._meta(name, f"{version}{LABELS}"), merged.model_dump_json().encode())

    def way_down(self, manifest: Manifest) -> FromDirectory:
        return FromDirectory(self.root / manifest.name / manifest.version, manifest.files, manifest.directories)

    def _meta(self, name: str, record: str = "") -> Path:
        return self.root / name / names.RESERVED_DIRECTORY / record

    def _claim(self, manifest: Manifest, force: bool) -> None:
        path = self._meta(manifest.name, f"{manifest.version}{CLAIM}")
        content = Claim(digest=manifest.digest).model_dump_json().encode()
        while not durable.create_file(path, content):
            holder = self.claimant(manifest)
            if holder is None:  # given up between the two looks
                continue
            if self.is_claimed_by(manifest, holder):
                return
            if not force:
                raise self.claimed(manifest, holder)
            durable.replace_file(path, content)
            return

    def _release_claim(self, manifest: Manifest) -> None:
        holder = self.claimant(manifest)
        if holder is not None and self.is_claimed_by(manifest, holder):
            self._meta(manifest.name, f"{manifest.version}{CLAIM}").unlink(missing_ok=True)

    def _withdraw(self, name: str, version: str) -> bool:
        """Remove a version's manifest, then its labels: it does not exist any more. Return whether it did."""
        try:
            self._meta(name, f"{version}{MANIFEST}").unlink()
            existed = True
        except FileNotFoundError:
            existed = False
        # Also what somebody killed right here left: the next version of that name is not to inherit its labels.
        self._meta(name, f"{version}{LABELS}").unlink(missing_ok=True)
        durable.sync_directory(self._meta(name))
        return existed


def _time(facts: os.stat_result) -> datetime:
    return datetime.fromtimestamp(facts.st_mtime, UTC)


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

"""The project's own model store: plain files and a manifest below one root.

Layout, the same wherever the root lies::

    <name>/<version>/<path…>              the files, as they are
    <name>/.modelsync/<version>.json      the manifest: written last, it makes the version exist
    <name>/.modelsync/<version>.claim     the digest of whoever is writing the version
    <name>/.modelsync/<version>.labels    labels changed after the push; the manifest is written once

A version's ``created_at`` is the time of its manifest in the store, so one listing tells all versions and their order.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry, SourceTree, digest_of
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
    from_os_error,
)
from airflow_provider_modelsync.core.flow import Flow, call
from airflow_provider_modelsync.core.models import LATEST, ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import durable
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, FromDirectory, IntoDirectory, UploadPlan

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MANIFEST, _CLAIM, _LABELS = ".json", ".claim", ".labels"


class Manifest(BaseModel):
    """What a version holds, as stored. Version 1 of the format."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    name: str
    version: str
    digest: str
    size_bytes: int
    labels: dict[str, str] = {}
    metadata: dict[str, JsonValue] = {}
    directories: tuple[str, ...] = ()
    files: tuple[FileEntry, ...]


class Claim(BaseModel):
    """Who is writing a version."""

    model_config = ConfigDict(frozen=True)

    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _PushPlan(UploadPlan):
    manifest: Manifest
    force: bool
    staging: Path
    release: ExitStack  # gives the staging directory up


class ModelStore(Registry):
    """A directory of models on a local or shared disk.

    :param settings: the connection; ``host`` is the root as a ``file:///path`` URL.
    :raises InvalidInput: when the root is missing or no such URL.
    """

    conn_type = "modelstore"
    title = "the model store"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.PUSH,
            Capability.PULL,
            Capability.CHOOSE_VERSION,
            Capability.FORCE,
            Capability.DELETE,
            Capability.LABELS,
            Capability.METADATA,
        }
    )
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.DEPLOY: "let the serving system read the version's uri",
        Capability.PREDICT: "pull the model and run it, or let a serving system read the version's uri",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        self.root = _root_of(settings)

    def check(self, ref: ModelRef) -> None:
        for part, text in (("name", ref.name), ("version", ref.version)):
            if text is not None and not (_NAME.fullmatch(text) and text != LATEST):
                raise InvalidInput(
                    f"the {part} {names.show(text)} does not match {_NAME.pattern}, or is {LATEST!r}", argument="model"
                )

    def test(self) -> Flow[str]:
        return call(self._test)

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return call(self._read_version, name, version)

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        return call(lambda: next(self._versions(name, query), None))

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        return call(lambda: list(self._versions(name, query)))

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        return call(self._list_models, query)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        return call(self._delete, ref.name, _exact(ref))

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        version = yield from self.get(ref)
        return (yield from call(self._set_labels, version.name, version.version, labels))

    def plan_push(
        self,
        ref: ModelRef,
        source: SourceTree,
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
        force: bool,
        options: Mapping[str, Any],
    ) -> Flow[UploadPlan]:
        if options:
            raise InvalidInput(f"{self.title} takes no options, not {sorted(options)}", argument="options")
        manifest = Manifest(
            name=ref.name,
            version=_exact(ref),
            digest=source.digest,
            size_bytes=source.size_bytes,
            labels=dict(labels),
            metadata=dict(metadata),
            directories=source.directories,
            files=source.files,
        )
        return call(self._plan_push, manifest, force)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        return call(self._publish, cast(_PushPlan, plan))

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        return call(self._abort, cast(_PushPlan, plan))

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        return call(self._plan_pull, version)

    # What follows blocks; it runs as one step each.

    def _test(self) -> str:
        probe = self.root / f".{names.RESERVED_DIRECTORY}-probe-{secrets.token_hex(6)}"
        try:
            self.root.mkdir(exist_ok=True)
            durable.create_file(probe, b"")
            probe.unlink()
        except OSError as error:
            raise from_os_error(error, f"writing to {self.root}", argument="host") from error
        return f"The model store at {self.root.as_uri()} can be read and written."

    def _directory(self, name: str) -> Path:
        return self.root / name

    def _meta(self, name: str, version: str = "", suffix: str = "") -> Path:
        return self.root / name / names.RESERVED_DIRECTORY / f"{version}{suffix}"

    def _read_version(self, name: str, version: str) -> ModelVersion:
        """Read manifest and labels into a version."""
        path = self._meta(name, version, _MANIFEST)
        content = _read(path)
        if content is None:
            raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")
        manifest = _parse(Manifest, path, content)
        labels = _read(self._meta(name, version, _LABELS))
        return ModelVersion(
            registry=self.conn_type,
            name=manifest.name,
            version=manifest.version,
            status=VersionStatus.READY,
            digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            labels=manifest.labels if labels is None else _parse(_Labels, path, labels).labels,
            metadata=manifest.metadata,
            created_at=_created_at(path),
            uri=(self._directory(name) / version).as_uri(),
            raw=manifest.model_dump(mode="json"),
        )

    def _versions(self, name: str, query: Query) -> Iterator[ModelVersion]:
        """Read the versions that a query chooses, newest first, each only when it is asked for."""
        if not query.matches_name(name):
            return
        found: list[tuple[int, str]] = []
        with suppress(FileNotFoundError), os.scandir(self._meta(name)) as listing:
            found = [
                (entry.stat().st_mtime_ns, entry.name.removesuffix(_MANIFEST))
                for entry in listing
                if entry.name.endswith(_MANIFEST) and not entry.name.startswith(".")
            ]
        for _, version in sorted(found, reverse=True):
            with suppress(ModelNotFound):  # deleted since it was listed
                if query.matches(read := self._read_version(name, version)):
                    yield read

    def _list_models(self, query: Query) -> list[ModelVersion]:
        try:
            with os.scandir(self.root) as listing:
                found = [entry.name for entry in listing if _NAME.fullmatch(entry.name)]
        except FileNotFoundError:
            return []
        newest = (next(self._versions(name, query), None) for name in found)
        return sorted((version for version in newest if version), key=lambda version: version.age_key, reverse=True)

    def _plan_push(self, manifest: Manifest, force: bool) -> UploadPlan:
        ref = ModelRef(name=manifest.name, version=manifest.version)
        with _translated(f"preparing {ref} in {self.root}"):
            self.root.mkdir(exist_ok=True)
            self._meta(manifest.name).mkdir(parents=True, exist_ok=True)
            if existing := self._settle(manifest, force):
                return UploadPlan(ref=ref, way=None, existing=existing)
            self._claim(manifest, force)
            # Once more: the version may have been published between the first look and the claim.
            if existing := self._settle(manifest, force):
                self._release_claim(manifest)
                return UploadPlan(ref=ref, way=None, existing=existing)
            release = ExitStack()
            key = manifest.digest.removeprefix("sha256:")[:12]
            base = self._meta(manifest.name, f".{manifest.version}.{key}")
            staging = release.enter_context(durable.staging(base))
        return _PushPlan(
            ref=ref, way=IntoDirectory(staging), manifest=manifest, force=force, staging=staging, release=release
        )

    def _settle(self, manifest: Manifest, force: bool) -> ModelVersion | None:
        """Return the published version when it holds these bytes already, ``None`` when it is to be written."""
        try:
            existing = self._read_version(manifest.name, manifest.version)
        except ModelNotFound:
            return None
        if existing.digest == manifest.digest:
            return existing
        if not force:
            raise VersionConflict(
                f"{existing.ref} exists with {existing.digest}, the source has {manifest.digest}; "
                "push under another version, or with force to replace it"
            )
        return None

    def _claim(self, manifest: Manifest, force: bool) -> None:
        path = self._meta(manifest.name, manifest.version, _CLAIM)
        claim = Claim(digest=manifest.digest).model_dump_json().encode()
        if durable.create_file(path, claim):
            return
        holder = self._claimant(manifest)
        if holder == manifest.digest:
            return
        if not force:
            raise VersionConflict(
                f"{manifest.name}:{manifest.version} is claimed by a push of {holder}, the source has "
                f"{manifest.digest}; wait for it, or push with force when that push is dead"
            )
        durable.replace_file(path, claim)

    def _claimant(self, manifest: Manifest) -> str | None:
        path = self._meta(manifest.name, manifest.version, _CLAIM)
        content = _read(path)
        return None if content is None else _parse(Claim, path, content).digest

    def _release_claim(self, manifest: Manifest) -> None:
        if self._claimant(manifest) == manifest.digest:
            self._meta(manifest.name, manifest.version, _CLAIM).unlink(missing_ok=True)

    def _publish(self, plan: _PushPlan) -> ModelVersion:
        manifest = plan.manifest
        pair = manifest.name, manifest.version
        final = self._directory(manifest.name) / manifest.version
        with plan.release, _translated(f"publishing {plan.ref} in {self.root}"):
            durable.sync_file_system(plan.staging)
            with self._trash(*pair) as trash, durable.directory_lock(self._meta(manifest.name)):
                existing = self._settle(manifest, plan.force)  # another writer of the same bytes may have been faster
                if existing is None:
                    self._claim(manifest, force=False)  # still ours? another push may have taken it over
                    # Absent from here until the new manifest is there, never a mixture.
                    self._withdraw(*pair)
                    _move_away(final, trash)
                    plan.staging.rename(final)
                    durable.sync_directory(final.parent)
                    # Where locks do nothing, another writer may be in here, too: then one manifest wins.
                    if not durable.create_file(self._meta(*pair, _MANIFEST), manifest.model_dump_json().encode()):
                        self._settle(manifest, force=False)
                self._release_claim(manifest)
        return self._read_version(manifest.name, manifest.version)

    def _abort(self, plan: _PushPlan) -> None:
        plan.release.close()
        self._release_claim(plan.manifest)

    def _withdraw(self, name: str, version: str) -> bool:
        """Remove a version's manifest, then its labels: it does not exist any more. Return whether it did."""
        try:
            self._meta(name, version, _MANIFEST).unlink()
        except FileNotFoundError:
            return False
        self._meta(name, version, _LABELS).unlink(missing_ok=True)
        durable.sync_directory(self._meta(name))
        return True

    @contextmanager
    def _trash(self, name: str, version: str) -> Iterator[Path]:
        """Yield a free path; whatever was moved there is removed at the end."""
        path = self._meta(name, f".{version}.{secrets.token_hex(6)}")
        try:
            yield path
        finally:
            durable.remove_tree(path)

    def _delete(self, name: str, version: str) -> bool:
        if not self._meta(name).is_dir():
            return False
        with (
            _translated(f"deleting {name}:{version} in {self.root}"),
            self._trash(name, version) as trash,
            durable.directory_lock(self._meta(name)),
        ):
            if not self._withdraw(name, version):
                return False
            _move_away(self._directory(name) / version, trash)
            return True

    def _set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> ModelVersion:
        with _translated(f"labelling {name}:{version} in {self.root}"), durable.directory_lock(self._meta(name)):
            merged = {**self._read_version(name, version).labels, **labels}
            kept = _Labels(labels={key: value for key, value in merged.items() if value is not None})
            durable.replace_file(self._meta(name, version, _LABELS), kept.model_dump_json().encode())
        return self._read_version(name, version)

    def _plan_pull(self, version: ModelVersion) -> DownloadPlan:
        path = self._meta(version.name, version.version, _MANIFEST)
        manifest = _parse(Manifest, path, _read(path) or b"")
        for entry in (*(file.path for file in manifest.files), *manifest.directories):
            if fault := names.fault_of(entry):
                raise UnsafeArchive(f"the manifest of {version.ref} names {names.show(entry)}, which {fault}")
        if digest_of(manifest.files) != manifest.digest:
            raise UnsafeArchive(f"the manifest of {version.ref} does not match its own digest")
        directory = self._directory(version.name) / version.version
        return DownloadPlan(version=version, way=FromDirectory(directory, manifest.files, manifest.directories))


class _Labels(BaseModel):
    labels: dict[str, str]


def _root_of(settings: RegistrySettings) -> Path:
    url = urlsplit(settings.host or "")
    if url.scheme != "file" or url.netloc not in ("", "localhost") or len(url.path) < 2:
        raise InvalidInput(
            f"the root {settings.host!r} is not a file:///path URL", argument="host", connection=settings.conn_id
        )
    return Path(unquote(url.path))


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:v1'", argument="model")
    return ref.version


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _parse(model: type[_Model], path: Path, content: bytes) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise RegistryUnavailable(f"{path} is damaged or of a newer format: {where}: {fault['msg']}") from None


def _created_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _move_away(path: Path, trash: Path) -> None:
    with suppress(FileNotFoundError):
        path.rename(trash)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error

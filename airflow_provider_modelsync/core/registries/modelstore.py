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
from typing import ClassVar, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_of
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
    from_os_error,
)
from airflow_provider_modelsync.core.flow import Flow, call
from airflow_provider_modelsync.core.models import LATEST, ModelRef, ModelVersion, Query, VersionStatus, require_json
from airflow_provider_modelsync.core.redact import show_url
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer import durable
from airflow_provider_modelsync.core.transfer.plan import (
    DownloadPlan,
    FromDirectory,
    IntoDirectory,
    PushRequest,
    UploadPlan,
)

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
        require_json("labels", labels)
        if not all(value is None or isinstance(value, str) for value in labels.values()):
            raise InvalidInput("a label's value is a string, or None to remove it", argument="labels")
        version = yield from self.get(ref)
        return (yield from call(self._set_labels, version.name, version.version, labels))

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        if request.options:
            raise InvalidInput(f"{self.title} takes no options, not {sorted(request.options)}", argument="options")
        manifest = Manifest(
            name=request.ref.name,
            version=_exact(request.ref),
            digest=request.source.digest,
            size_bytes=request.source.size_bytes,
            labels=dict(request.labels),
            metadata=dict(request.metadata),
            directories=request.source.directories,
            files=request.source.files,
        )
        return call(self._plan_push, manifest, request.force)

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
        manifest, created_at = self._read_manifest(name, version)
        path = self._meta(name, version, _LABELS)
        labels = _read(path)
        return ModelVersion(
            registry=self.conn_type,
            name=manifest.name,
            version=manifest.version,
            status=VersionStatus.READY,
            digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            labels=manifest.labels if labels is None else _parse(_Labels, path, labels[0]).labels,
            metadata=manifest.metadata,
            created_at=created_at,
            uri=(self._directory(name) / version).as_uri(),
            raw=manifest.model_dump(mode="json"),
        )

    def _read_manifest(self, name: str, version: str) -> tuple[Manifest, datetime]:
        """Return a version's manifest and the time since which it exists."""
        path = self._meta(name, version, _MANIFEST)
        stored = _read(path)
        if stored is None:
            raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")
        content, created_at = stored
        manifest = _parse(Manifest, path, content)
        if (manifest.name, manifest.version) != (name, version):  # what it names leads to paths
            raise UnsafeArchive(f"{path} says that it is of {names.show(f'{manifest.name}:{manifest.version}')}")
        return manifest, created_at

    def _versions(self, name: str, query: Query) -> Iterator[ModelVersion]:
        """Read the versions that a query chooses, newest first, each only when it is asked for."""
        if not query.matches_name(name):
            return
        found: list[tuple[int, str]] = []
        for entry in _list(self._meta(name)):
            version = entry.name.removesuffix(_MANIFEST)
            if version != entry.name and _NAME.fullmatch(version):
                with suppress(FileNotFoundError):  # deleted since it was listed
                    found.append((entry.stat().st_mtime_ns, version))
        for _, version in sorted(found, reverse=True):
            with suppress(ModelNotFound):  # deleted since it was listed
                if query.matches(read := self._read_version(name, version)):
                    yield read

    def _list_models(self, query: Query) -> list[ModelVersion]:
        found = [entry.name for entry in _list(self.root) if _NAME.fullmatch(entry.name)]
        newest = (next(self._versions(name, query), None) for name in found)
        return sorted((version for version in newest if version), key=lambda version: version.age_key, reverse=True)

    def _plan_push(self, manifest: Manifest, force: bool) -> UploadPlan:
        ref = ModelRef(name=manifest.name, version=manifest.version)
        with _translated(f"preparing {ref} in {self.root}"):
            self.root.mkdir(exist_ok=True)
            self._meta(manifest.name).mkdir(parents=True, exist_ok=True)
            durable.sweep(self._meta(manifest.name))
            if existing := self._settle(manifest, force):
                self._release_claim(manifest)  # whoever published it may have died before doing so
                return UploadPlan(ref=ref, way=None, existing=existing)
            durable.require_space(self.root, manifest.size_bytes)
            self._claim(manifest, force)
            release = ExitStack()
            try:
                # Once more: the version may have been published between the first look and the claim.
                if existing := self._settle(manifest, force):
                    self._release_claim(manifest)
                    return UploadPlan(ref=ref, way=None, existing=existing)
                key = manifest.digest.removeprefix("sha256:")[:12]
                base = self._meta(manifest.name, f".{manifest.version}.{key}")
                staging = release.enter_context(durable.staging(base))
            except BaseException:
                self._release_claim(manifest)
                raise
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
        while not durable.create_file(path, claim):
            holder = self._claimant(manifest)
            if holder is None:  # given up between the two looks
                continue
            if holder == manifest.digest:
                return
            if not force:
                raise VersionConflict(
                    f"{manifest.name}:{manifest.version} is claimed by a push of {holder}, the source has "
                    f"{manifest.digest}; wait for it, or push with force when that push is dead"
                )
            durable.replace_file(path, claim)
            return

    def _claimant(self, manifest: Manifest) -> str | None:
        path = self._meta(manifest.name, manifest.version, _CLAIM)
        content = _read(path)
        return None if content is None else _parse(Claim, path, content[0]).digest

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
        try:
            return self._read_version(manifest.name, manifest.version)
        except ModelNotFound as error:  # deleted, or where locks do nothing, about to be published by another writer
            raise RegistryUnavailable(
                f"{plan.ref} was withdrawn just now; the next try sees what came of it"
            ) from error

    def _abort(self, plan: _PushPlan) -> None:
        plan.release.close()
        self._release_claim(plan.manifest)

    def _withdraw(self, name: str, version: str) -> bool:
        """Remove a version's manifest, then its labels: it does not exist any more. Return whether it did."""
        try:
            self._meta(name, version, _MANIFEST).unlink()
            existed = True
        except FileNotFoundError:
            existed = False
        # Also what somebody killed right here left: the next version of that name is not to inherit its labels.
        self._meta(name, version, _LABELS).unlink(missing_ok=True)
        durable.sync_directory(self._meta(name))
        return existed

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
            existed = self._withdraw(name, version)
            _move_away(self._directory(name) / version, trash)
            durable.sweep(self._meta(name))
            return existed

    def _set_labels(self, name: str, version: str, labels: Mapping[str, str | None]) -> ModelVersion:
        with _translated(f"labelling {name}:{version} in {self.root}"), durable.directory_lock(self._meta(name)):
            merged = {**self._read_version(name, version).labels, **labels}
            kept = _Labels(labels={key: value for key, value in merged.items() if value is not None})
            durable.replace_file(self._meta(name, version, _LABELS), kept.model_dump_json().encode())
        return self._read_version(name, version)

    def _plan_pull(self, version: ModelVersion) -> DownloadPlan:
        manifest, _ = self._read_manifest(version.name, version.version)
        if manifest.digest != version.digest:
            raise RegistryUnavailable(f"{version.ref} was replaced just now; the next try sees the new one")
        paths = [file.path for file in manifest.files]
        for entry in (*paths, *manifest.directories):
            if fault := names.fault_of(entry):
                raise UnsafeArchive(f"the manifest of {version.ref} names {names.show(entry)}, which {fault}")
        if clash := names.clash_among(paths, manifest.directories):
            raise UnsafeArchive(
                f"the manifest of {version.ref} names {names.show(clash[0])} and {names.show(clash[1])}, "
                "which cannot lie side by side"
            )
        if any(file.size < 0 for file in manifest.files):
            raise UnsafeArchive(f"the manifest of {version.ref} names a file of negative size")
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
            f"the root {show_url(settings.host or '')!r} is not a file:///path URL",
            argument="host",
            connection=settings.conn_id,
        )
    return Path(unquote(url.path))


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:v1'", argument="model")
    return ref.version


def _read(path: Path) -> tuple[bytes, datetime] | None:
    """Return a file's content and the time of its last change, or ``None`` when it is not there."""
    try:
        with path.open("rb") as file:
            return file.read(), datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error


def _list(directory: Path) -> list[os.DirEntry[str]]:
    """Return what is in a directory; nothing when there is no such directory."""
    try:
        with os.scandir(directory) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise from_os_error(error, f"listing {directory}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _parse(model: type[_Model], path: Path, content: bytes) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise RegistryUnavailable(f"{path} is damaged or of a newer format: {where}: {fault['msg']}") from None


def _move_away(path: Path, trash: Path) -> None:
    with suppress(FileNotFoundError):
        path.rename(trash)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error

"""The project's own model store: plain files and a manifest below one root, a directory or a bucket."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar, cast

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.digest import LooseFile
from airflow_provider_modelsync.core.errors import BeginAgain, Cancelled, InvalidInput, ModelSyncError
from airflow_provider_modelsync.core.flow.steps import Flow, call, call_remote
from airflow_provider_modelsync.core.models import LATEST, Alias, ModelRef, ModelVersion, Query, require_json
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.registries.base import KEEPS_MODELS, Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import (
    Aliases,
    KeepsSignatures,
    SendsAhead,
    Tidies,
    name_of,
)
from airflow_provider_modelsync.core.registries.modelstore.buckets import BucketStore
from airflow_provider_modelsync.core.registries.modelstore.directory import DirectoryStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings, scheme_of
from airflow_provider_modelsync.core.registries.modelstore.store import CONN_TYPE, NAME, Manifest, Store, StorePlan
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.storages.azure import SCHEMES, Container
from airflow_provider_modelsync.core.storages.base import Bucket, OpenSession
from airflow_provider_modelsync.core.storages.gcs import GcsBucket
from airflow_provider_modelsync.core.storages.s3 import S3Bucket
from airflow_provider_modelsync.core.transfer.checkpoint import UploadMemory
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, PushRequest, PutAhead, UploadPlan

_log = logging.getLogger("modelsync")
_BUCKET = re.compile(r"[A-Za-z0-9._:@-]+")
_BUCKETS: Mapping[str, Callable[..., Bucket]] = {
    "s3": S3Bucket,
    "gs": GcsBucket,
    **dict.fromkeys(SCHEMES, Container),
}
_SIGNATURE = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.sig")

P = ParamSpec("P")
T = TypeVar("T")


class ModelStore(Registry, Aliases, KeepsSignatures, SendsAhead, Tidies):
    """Models in a directory or in a bucket.

    :param settings: the connection; ``host`` is the root: ``file:///path``, ``s3://bucket/prefix``,
        ``gs://bucket/prefix`` or ``abfs://container@account/prefix``.
    :param session: opens what to use instead of the connection's own keys: a boto3 session, or credentials of
        google-auth or of Azure.
    :raises InvalidInput: when the root is missing or no such URL.
    """

    conn_type = CONN_TYPE
    title = Store.title
    settings_type = BucketSettings
    capabilities = KEEPS_MODELS
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.DEPLOY: "let the serving system read the version's uri",
        Capability.PREDICT: "pull the model and run it, or let a serving system read the version's uri",
    }

    def __init__(self, settings: RegistrySettings, session: OpenSession | None = None) -> None:
        super().__init__(settings)
        self._store = _store_at(settings, session)

    @property
    def address(self) -> str:
        endpoint = getattr(self.settings, "endpoint_url", None)
        return super().address + (f" at {show_url(endpoint, secrets_of(self.settings))}" if endpoint else "")

    @property
    def directory(self) -> Path | None:
        return self._store.root if isinstance(self._store, DirectoryStore) else None

    @property
    def prefix(self) -> str | None:
        return self._store.root.partition("://")[2].strip("/") if isinstance(self._store, BucketStore) else None

    @property
    def checks(self) -> str | None:
        return self._store.checks

    @property
    def _place(self) -> tuple[str, ...]:
        """What tells its root, from the outside in."""
        if not isinstance(self._store, BucketStore):
            return "file", *cast(DirectoryStore, self._store).root.resolve().parts
        endpoint = cast(BucketSettings, self.settings).endpoint_url or ""
        return (
            scheme_of(self._store.root),
            endpoint.lower().rstrip("/"),
            *filter(None, (self.prefix or "").split("/")),
        )

    @property
    def identity(self) -> str:
        if self.directory is not None or not self._place[1]:
            return super().identity
        return hashlib.sha256(repr(self._place).encode()).hexdigest()[:16]  # a bucket's name is one storage's own

    def overlaps(self, other: Registry) -> bool:
        if not isinstance(other, ModelStore) or self._place == other._place:
            return False
        return all(one == another for one, another in zip(self._place, other._place, strict=False))

    def check(self, ref: ModelRef) -> None:
        for part, text in (("name", ref.name), ("version", ref.version), ("alias", ref.alias)):
            if text is not None and not (NAME.fullmatch(text) and text != LATEST):
                raise InvalidInput(
                    f"the {part} {names.show(text)} does not match {NAME.pattern}, or is {LATEST!r}", argument="model"
                )

    def test(self) -> Flow[str]:
        return self._call(self._store.test)

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return self._call(self._store.read_version, name, version)

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        return self._call(self._store.latest, name, query)

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        return self._call(self._store.list_versions, name, query)

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        return self._call(self._store.list_models, query)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        return self._call(self._delete, ref.name, _exact(ref))

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        require_json("labels", labels)
        if not all(value is None or isinstance(value, str) for value in labels.values()):
            raise InvalidInput("a label's value is a string, or None to remove it", argument="labels")
        exact = ref.version or (yield from self.get(ref)).version
        return (yield from self._call(self._store.set_labels, ref.name, exact, labels))

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        return self._call(self._store.alias, name, alias)

    def aliases(self, name: str) -> Flow[list[Alias]]:
        return self._call(self._store.aliases, name)

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        return self._call(self._store.set_alias, version.name, alias, version.version, expected)

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        return self._call(self._store.delete_alias, name, alias)

    def tidy(self, name: str, older_than: datetime, *, dry_run: bool) -> Flow[list[str]]:
        return self._call(self._store.tidy_all, name, older_than, dry_run=dry_run)

    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        return self._call(self._signatures, version)

    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        if version.digest is not None:
            yield from self._call(self._keep_signature, version.name, version.digest, signature)

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        if request.options:
            raise InvalidInput(f"{self.title} takes no options, not {sorted(request.options)}", argument="options")
        plan = yield from self._call(self._store.plan_push, request, Manifest.of(request, _exact(request.ref)))
        if request.signature is not None and plan.existing is None:
            yield from self._call(self._keep_signature, request.ref.name, request.source.digest, request.signature)
        return plan

    def plan_ahead(self, ref: ModelRef, files: Iterable[LooseFile], memory: UploadMemory) -> Flow[PutAhead | None]:
        return self._call(self._store.plan_ahead, ref.name, _exact(ref), files, memory)

    def drop_ahead(self, ref: ModelRef) -> Flow[None]:
        return self._call(self._store.drop_ahead, ref.name, _exact(ref))

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        return self._call(self._store.publish, cast(StorePlan, plan))

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        return self._call(self._store.abort, cast(StorePlan, plan))

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        return self._call(self._plan_pull, version)

    def _call(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        return (call_remote if self._store.is_remote else call)(fn, *args, **kwargs)

    # A signature is of files, so it is kept by their digest: every version of these bytes has it, and none other.

    def _signatures(self, version: ModelVersion) -> list[bytes]:
        stem = _signed(version.digest or "")
        records = [record for record in self._store.entries(version.name, stem) if _SIGNATURE.fullmatch(record)]
        found = (self._store.read(version.name, one) for one in sorted(records) if one.startswith(f"{stem}."))
        return [record.content for record in found if record is not None]

    def _keep_signature(self, name: str, digest: str, signature: bytes) -> None:
        self._store.create(name, f"{_signed(digest)}.{name_of(signature)}", signature)

    def _delete(self, name: str, version: str) -> bool:
        existed = self._store.delete(name, version)
        try:
            self._drop_signatures(name)
        except Cancelled:
            raise
        except ModelSyncError as error:
            _log.warning("signatures that nothing belongs to any more may be left of %s: %s", name, error)
        return existed

    def _drop_signatures(self, name: str) -> None:
        """Remove signatures of files that no version holds and no push is about to publish."""
        if not (kept := [record for record in self._store.entries(name) if _SIGNATURE.fullmatch(record)]):
            return
        held = self._store.digests(name)
        found = {record: self._store.read(name, record) for record in kept if _digest_in(record) not in held}
        dropped = {record: signature.content for record, signature in found.items() if signature is not None}
        if not dropped:
            return
        self._store.remove(name, dropped)
        needed = [*dropped]
        try:
            held = self._store.digests(name)
            needed = [record for record in dropped if _digest_in(record) in held]
        finally:
            for record in needed:  # a push that has begun since has found it in its place
                self._store.create(name, record, dropped[record])

    def _plan_pull(self, version: ModelVersion) -> DownloadPlan:
        manifest = self._store.read_manifest(version.name, version.version)
        if manifest.digest != version.digest:
            raise BeginAgain(f"{version.ref} was replaced a moment ago")
        manifest.require_safe()
        return DownloadPlan(version=version, way=self._store.way_down(manifest))


def _signed(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _digest_in(record: str) -> str:
    return f"sha256:{record.partition('.')[0]}"


def _store_at(settings: RegistrySettings, session: OpenSession | None) -> Store:
    # Not parsed as a URL: what is special there, as '#', '?' and '%', is part of a path or a prefix like all else.
    scheme, _, place = (settings.host or "").partition("://")
    authority, _, path = place.partition("/")
    scheme = scheme.lower()
    if scheme == "file" and authority in ("", "localhost") and path:
        return DirectoryStore(Path(f"/{path}"))
    if scheme in _BUCKETS and _BUCKET.fullmatch(authority) and isinstance(settings, BucketSettings):
        if {".", ".."} & set(path.split("/")):
            raise InvalidInput(
                f"the prefix {names.show(path)} holds a '.' or '..' segment, which addresses cannot",
                argument="host",
                connection=settings.conn_id,
            )
        base = f"{path.strip('/')}/".lstrip("/")
        bucket = _BUCKETS[scheme](authority, settings, session, base=base)
        return BucketStore(bucket, base, settings.part_size_mib)
    raise InvalidInput(
        f"the root {show_url(settings.host or '')!r} is neither a file:///path nor an s3://bucket/prefix, "
        "gs://bucket/prefix or abfs://container@account/prefix URL",
        argument="host",
        connection=settings.conn_id,
    )


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:v1'", argument="model")
    return ref.version

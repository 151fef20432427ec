"""OCI registries: a model is a repository, a version one of its tags, its files are blobs.

Facts come from the OCI distribution specification, the CNCF ModelPack specification, and Debian's docker-registry
2.8.2 on the wire. A version exists once a tag stands for its manifest. Nothing makes that step conditional: of two who
write one tag at the same time the last one wins, and the other finds out by reading it once more.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, call, together
from airflow_provider_modelsync.core.http.policy import RequestPolicy
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import KEEPS_MODELS, Capability, Registry
from airflow_provider_modelsync.core.registries.oci.api import (
    MANIFEST,
    MANIFEST_BYTES,
    PUSH,
    Api,
    OCISettings,
    Refusal,
    Stored,
    dumped,
    is_name,
    is_version,
    raise_for_push,
)
from airflow_provider_modelsync.core.registries.oci.layouts import Draft, Facts, PushOptions
from airflow_provider_modelsync.core.registries.oci.manifest import (
    IMAGE_CONFIG,
    MODELPACK,
    OUR_LABELS,
    VERSION,
    Contents,
    Manifest,
    contents_of,
    created_in,
    labels_of,
    metadata_of,
    parse,
)
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    DownloadPlan,
    GetFiles,
    PushRequest,
    PutFiles,
    UploadPlan,
)

__all__ = ["OCIRegistry", "OCISettings"]

_CONFIG_BYTES = 1 << 20  # of a configuration that is read for its time
_REMEMBERED = 256  # manifests that are kept
_WILD = frozenset("*?[")
_SIBLINGS = 16  # models that are looked through for blobs to mount
_SIBLING_VERSIONS = 32  # of each of them

_log = logging.getLogger("modelsync")


@dataclass(frozen=True, slots=True)
class _Found:
    """A manifest, and what it says."""

    stored: Stored
    manifest: Manifest
    contents: Contents | None
    fault: ModelSyncError | None = None  # why its files are not told
    created_at: datetime | None = None

    @property
    def digest(self) -> str | None:
        return self.contents.digest if self.contents else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TagPlan(UploadPlan):
    """What is to be published.

    :param draft: the manifest.
    :param force: whether the tag may move from another model.
    :param uploads: hash → where an upload was begun that has not come to its end.
    """

    draft: Draft
    force: bool
    uploads: dict[str, str] = field(default_factory=dict)


class OCIRegistry(Registry):
    """The models of one connection.

    :param settings: the connection; the path of its host stands before every name.
    """

    conn_type = "oci_registry"
    title = "the OCI registry"
    settings_type = OCISettings
    settings: OCISettings
    capabilities = KEEPS_MODELS
    has_namespaces = True
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.DEPLOY: "let the serving system read the version's uri",
        Capability.PREDICT: "let the serving system read the version's uri",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        if not isinstance(settings, OCISettings):
            raise InvalidInput("these are no settings of an OCI registry", connection=settings.conn_id)
        self._api = Api(settings, self.title)
        self.base_url: str = f"{self._api.root}/{self._api.namespace}".rstrip("/")
        self._host = urlsplit(self._api.root).netloc
        self._known: OrderedDict[tuple[str, str], _Found] = OrderedDict()
        self._lock = Lock()
        self.tell = self._api.login.tell

    def policy(self) -> Policy:
        return RequestPolicy(self.settings)

    def check(self, ref: ModelRef) -> None:
        self._api.check(ref)

    def test(self) -> Flow[str]:
        yield from self._api.test()
        who = "anonymously" if self._api.login.is_anonymous else f"as {self.settings.login or 'the token’s user'}"
        return f"Connected to {self.title} at {self.base_url} {who}."

    # -- reading

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        found = yield from self._found(name, version)
        if found is None:
            raise ModelNotFound(f"{self.title} has no tag {version!r} in {self._api.repository(name)!r}")
        return self._shown(name, version, found)

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        tags = [tag for tag in (yield from self._api.tags(name)) if is_version(tag)]
        manifests = yield from together(self._found(name, tag) for tag in tags)
        found = {tag: one for tag, one in zip(tags, manifests, strict=True) if one is not None}
        versions = [self._shown(name, tag, one) for tag, one in found.items() if _version_of(tag, one, found) == tag]
        chosen = [version for version in versions if query.matches(version)]
        return sorted(chosen, key=lambda version: version.age_key, reverse=True)

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        if query.names and not any(_WILD & set(name) for name in query.names):
            listed = [name for name in query.names if is_name(name)]  # for which no registry has to be asked
        else:
            listed = yield from self._api.repositories()
        names = [name for name in listed if query.matches_name(name)]
        newest: list[ModelVersion] = []
        for name in names:
            version = yield from self.latest(name, query)
            newest += [version] if version else []
        return sorted(newest, key=lambda version: version.age_key, reverse=True)

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        repository = self._api.repository(model.name) if model else self._api.namespace.rstrip("/")
        if self._host == "ghcr.io":
            return f"https://ghcr.io/{repository}" if model else None
        if self._host == "registry-1.docker.io":
            return f"https://hub.docker.com/r/{repository}/tags" if model else f"https://hub.docker.com/u/{repository}"
        if self._api.login.service == "harbor-registry":
            return f"{self._api.root}/harbor/projects"
        return None

    def _found(self, name: str, tag: str) -> Flow[_Found | None]:
        """Return what a tag stands for. One that was read before is only looked at, until it moves."""
        with self._lock:
            known = self._known.get((name, tag))
        if known is not None:
            digest = yield from self._api.head(name, tag)
            if digest is None:
                return None
            if digest == known.stored.digest:
                return known
        return (yield from self._read(name, tag))

    def _read(self, name: str, reference: str) -> Flow[_Found | None]:
        stored = yield from self._api.manifest(name, reference)
        if stored is None:
            return None
        found = yield from call(_understood, stored)
        if found.created_at is None and found.manifest.config is not None:
            found = replace(found, created_at=(yield from self._time_of(name, found.manifest)))
        with self._lock:
            self._known[name, reference] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _time_of(self, name: str, manifest: Manifest) -> Flow[datetime | None]:
        config = manifest.config
        if config is None or not 2 < config.size <= _CONFIG_BYTES:
            return None
        try:
            return created_in((yield from self._api.blob(name, config.digest, _CONFIG_BYTES)))
        except (ModelNotFound, RegistryUnavailable):
            return None

    def _shown(self, name: str, tag: str, found: _Found) -> ModelVersion:
        manifest, contents = found.manifest, found.contents
        return ModelVersion(
            registry=self.conn_type,
            name=name,
            version=tag,
            status=VersionStatus.READY,
            digest=found.digest,
            size_bytes=sum(file.size for file in contents.files) if contents else None,
            labels=labels_of(manifest.annotations),
            metadata=metadata_of(manifest.annotations),
            created_at=found.created_at,
            uri=f"oci://{self._host}/{self._api.repository(name)}@{found.stored.digest}",
            raw={
                "digest": found.stored.digest,
                "media_type": found.stored.media_type,
                "artifact_type": manifest.artifact_type or (manifest.config.media_type if manifest.config else None),
                "layout": _layout_of(manifest),
                "layers": len(manifest.layers),
                **({"fault": found.fault.message} if found.fault else {}),
            },
        )

    # -- changes

    def delete(self, ref: ModelRef) -> Flow[bool]:
        name, tag = ref.name, _exact(ref)
        digest = yield from self._digest(name, tag)
        if digest is None:
            return False
        others = yield from self._sharing(name, tag, digest)
        doing = f"deleting {ref}"
        if others:
            refusal = yield from self._api.delete_manifest(name, tag)
            if refusal.status in (400, 404, 405):
                raise NotSupported(
                    f"{doing}: {', '.join(map(repr, others))} would go with it, as the same manifest has these tags, "
                    "and the registry cannot delete one tag alone; delete or move them first"
                )
        else:
            refusal = yield from self._api.delete_manifest(name, digest)
            if "DANGLING_TAG" in refusal.text:  # there a manifest goes only once no tag is left
                (yield from self._api.delete_manifest(name, tag)).raise_for_status(doing)
                refusal = yield from self._api.delete_manifest(name, digest)
        if refusal.status == 404:
            return False
        if refusal.is_immutable:
            raise NotSupported(f"{doing}: the registry keeps it: {refusal.text[:200]}")
        if refusal.status == 405:
            raise NotSupported(f"{doing}: the registry does not delete over its API, or is set up not to")
        refusal.raise_for_status(doing)
        return True

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        version = yield from self.get(ref)
        name, tag = version.name, version.version
        found = yield from self._read(name, tag)
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        merged = {**labels_of(found.manifest.annotations), **labels}
        kept = {key: value for key, value in merged.items() if value is not None}
        content = _with_annotation(found.stored.content, OUR_LABELS, dumped(kept) if kept else None)
        doing = f"labelling {ref}"
        refusal = yield from self._api.put_manifest(name, tag, found.stored.media_type, content)
        if refusal.is_immutable:
            raise NotSupported(f"{doing}: the registry does not let the tag move: {refusal.text[:200]}")
        refusal.raise_for_status(doing)
        now = yield from self._read(name, tag)
        if now is None or labels_of(now.manifest.annotations) != kept or now.digest != found.digest:
            raise VersionConflict(f"{doing}: somebody else has moved the tag meanwhile")
        _log.info(
            "%s has a new manifest now, %s: what was signed or pinned as %s does not have the new labels",
            ref,
            now.stored.digest,
            found.stored.digest,
        )
        return self._shown(name, tag, now)

    def _digest(self, name: str, tag: str) -> Flow[str | None]:
        """Return what a tag stands for, in the registry's terms."""
        digest = yield from self._api.head(name, tag)
        if digest == "":
            stored = yield from self._api.manifest(name, tag)
            digest = stored.digest if stored else None
        return digest

    def _sharing(self, name: str, tag: str, digest: str) -> Flow[list[str]]:
        """Return the other tags that stand for a manifest."""
        tags = [other for other in (yield from self._api.tags(name)) if other != tag]
        digests = yield from together(self._digest(name, other) for other in tags)
        return sorted(other for other, one in zip(tags, digests, strict=True) if one == digest)

    # -- push

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        ref, source, tag = request.ref, request.source, _exact(request.ref)
        options = PushOptions.read(request.options)
        for sibling in options.mount_from:
            self.check(ModelRef(name=sibling))
        facts = Facts(
            name=ref.name,
            version=tag,
            labels=request.labels,
            metadata=request.metadata,
            created_at=datetime.now(UTC),
        )
        draft = yield from call(Draft.of, source, facts, options)
        found = yield from self._read(ref.name, tag)
        if found is not None:
            if found.digest != source.digest and not request.force:
                raise _conflict(ref, found, source.digest)
            if found.digest == source.digest:
                if not request.renew and not (
                    request.force and (yield from self._differs(ref.name, found, request, options))
                ):
                    return UploadPlan(ref=ref, way=None, existing=self._shown(ref.name, tag, found))
                draft = yield from call(_renewed, draft, found, self._shown(ref.name, tag, found))
        blobs = yield from draft.finish()
        siblings = yield from self._siblings(ref.name, options)
        uploads: dict[str, str] = {}
        way = PutFiles(
            blobs,
            blobs.files,
            partial(self._place_of, ref.name, siblings, uploads),
            partial(self._accept, uploads),
            method="PUT",
        )
        return _TagPlan(ref=ref, way=way, draft=draft, force=request.force, uploads=uploads)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_TagPlan, plan)
        name, tag, digest = plan.ref.name, _exact(plan.ref), plan.draft.source.digest
        doing = f"publishing {plan.ref}"
        if not plan.force:  # the bytes may have taken hours
            found = yield from self._read(name, tag)
            if found is not None:
                if found.digest != digest:
                    raise _conflict(plan.ref, found, digest)
                return self._shown(name, tag, found)
        manifest = plan.draft.manifest
        refusal = yield from self._api.put_manifest(name, tag, MANIFEST, manifest)
        if refusal.is_of_blobs:
            raise BeginAgain(f"{doing}: the registry does not have all that was sent: {refusal.text[:200]}")
        raise_for_push(refusal, doing)
        found = yield from self._read(name, tag)
        if found is None:
            raise BeginAgain(
                f"{doing}: the registry has taken the manifest and does not have it. Its cache may know blobs that its "
                "garbage collection has removed: then it has to be restarted, and the model pushed to another name"
            )
        if found.digest != digest:
            raise VersionConflict(f"another push has moved {plan.ref}: it has {found.digest} now, not {digest}")
        return self._shown(name, tag, found)

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        plan = cast(_TagPlan, plan)
        for location in [*plan.uploads.values()]:
            yield from self._end(plan.ref.name, location)

    def _differs(self, name: str, found: _Found, request: PushRequest, options: PushOptions) -> Flow[bool]:
        """Whether what is stored of the same bytes is damaged, or told otherwise than it is to be told now."""
        manifest, contents = found.manifest, found.contents
        assert contents is not None
        kept = metadata_of(manifest.annotations)
        if any(key not in kept or kept[key] != value for key, value in request.metadata.items()):
            return True
        if contents.files != request.source.files or contents.directories != request.source.directories:
            return True  # of the same bytes, so files that may be executed
        if options.layout not in (None, _layout_of(manifest)):
            return True
        blobs = {layer.digest: layer.size for layer in manifest.layers}
        if manifest.config is not None:
            blobs[manifest.config.digest] = manifest.config.size
        there = yield from together(self._api.has_blob(name, digest, size) for digest, size in blobs.items() if size)
        return not all(there)

    def _siblings(self, name: str, options: PushOptions) -> Flow[dict[str, str]]:
        """Return which blobs other models of the connection are known to have: digest → name."""
        names = [one for one in options.mount_from or self.settings.repositories if one != name][:_SIBLINGS]
        known: dict[str, str] = {}
        for sibling in names:
            try:
                tags = [tag for tag in (yield from self._api.tags(sibling)) if is_version(tag)]
                found = yield from together(self._found(sibling, tag) for tag in sorted(tags)[-_SIBLING_VERSIONS:])
            except ModelSyncError as error:
                _log.info("nothing is mounted from %s: %s", sibling, error.message)
                continue
            for one in filter(None, found):
                known |= {layer.digest: sibling for layer in one.manifest.layers if layer.digest not in known}
        return known

    def _place_of(
        self, name: str, siblings: Mapping[str, str], uploads: dict[str, str], file: FileEntry
    ) -> Flow[Address | None]:
        digest = f"sha256:{file.sha256}"
        if (yield from self._api.has_blob(name, digest, file.size, actions=PUSH)):
            return None
        if (begun := uploads.pop(file.sha256, None)) is not None:
            yield from self._end(name, begun)  # what was cut there cannot be gone on with everywhere
        location = yield from self._api.begin_upload(name, digest, siblings.get(digest))
        if location is None:
            return None
        uploads[file.sha256] = location
        return (yield from self._api.upload_address(name, location, digest))

    def _accept(self, uploads: dict[str, str], file: FileEntry, answer: MovedResponse) -> None:
        refusal, doing = Refusal.of(answer), f"uploading {show(file.path)}"
        if refusal.codes & {"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "DIGEST_INVALID"}:
            raise RegistryUnavailable(f"{doing}: {refusal.text[:200]}")
        refusal.raise_for_status(doing, not_found=RegistryUnavailable)
        if answer.status != 201:
            raise RegistryUnavailable(f"{doing}: the registry answered {answer.status}, and has not stored it")
        uploads.pop(file.sha256, None)

    def _end(self, name: str, location: str) -> Flow[None]:
        try:
            yield from self._api.end_upload(name, location)
        except ModelSyncError as error:  # the registry forgets it by itself
            _log.debug("an upload to %s was not ended: %s", name, error.message)

    # -- pull

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        digest = (version.uri or "").rpartition("@")[2]
        if not digest.startswith("sha256:"):
            found = yield from self._found(version.name, version.version)
        else:
            with self._lock:
                known = [one for one in self._known.values() if one.stored.digest == digest]
            found = known[0] if known else (yield from self._read(version.name, digest))
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        if found.contents is None:
            fault = found.fault or NotSupported("its layers are not files with a path")
            raise type(fault)(f"{version.ref} cannot be pulled: {fault.message}")
        contents = found.contents
        way = GetFiles(
            contents.files,
            contents.directories,
            lambda file: self._api.blob_address(version.name, contents.blobs[file.path]),
            slices=contents.slices,
        )
        return DownloadPlan(version=version, way=way)


def _understood(stored: Stored) -> _Found:
    try:
        manifest = parse(stored.content)
    except UnsafeArchive as error:
        return _Found(stored, Manifest(), None, error)
    try:
        contents, fault = contents_of(manifest), None
    except (UnsafeArchive, NotSupported) as error:
        contents, fault = None, error
    return _Found(stored, manifest, contents, fault, manifest.created)


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref} names no version", argument="model")
    return ref.version


def _conflict(ref: ModelRef, found: _Found, digest: str) -> VersionConflict:
    has = found.digest or f"what is no model of ours ({found.stored.digest})"
    return VersionConflict(
        f"{ref} exists with {has}, not with {digest}; push under another version, or with force to move the tag"
    )


def _layout_of(manifest: Manifest) -> str | None:
    if manifest.artifact_type == MODELPACK:
        return "modelpack"
    return "image" if manifest.config is not None and manifest.config.media_type == IMAGE_CONFIG else None


def _renewed(draft: Draft, found: _Found, shown: ModelVersion) -> Draft:
    """Return a draft of the same bytes: what is not given stays, and so does their age."""
    facts, options = draft.facts, draft.options
    facts = replace(
        facts,
        labels=facts.labels or shown.labels,
        metadata=facts.metadata or shown.metadata,
        created_at=shown.created_at or facts.created_at,
    )
    if options.layout is None and _layout_of(found.manifest) == "image":
        options = options.model_copy(update={"layout": "image"})
    return Draft.of(draft.source, facts, options)


def _version_of(tag: str, found: _Found, tags: Mapping[str, _Found]) -> str:
    """Return the version that a tag stands for: itself, unless it is an alias of another."""
    told = found.manifest.annotations.get(VERSION)
    if told is None or told == tag or told not in tags:
        return tag
    return told if tags[told].digest == found.digest else tag


def _with_annotation(content: bytes, key: str, value: str | None) -> bytes:
    """Return a manifest with one annotation changed, and all else as it was."""
    manifest: dict[str, Any] = json.loads(content)
    annotations = {**(manifest.get("annotations") or {}), key: value}
    manifest["annotations"] = {name: text for name, text in annotations.items() if text is not None}
    changed = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    if len(changed) > MANIFEST_BYTES:
        raise InvalidInput(f"the manifest would have {len(changed)} bytes with them", argument="labels")
    return changed

"""OCI registries: a model is a repository, a version one of its tags, its files are blobs.

Facts come from the OCI distribution specification, the CNCF ModelPack specification, and Debian's docker-registry
2.8.2 on the wire. A version exists once a tag stands for its manifest. Nothing makes that step conditional: of two who
write one tag at the same time the last one wins, and the other finds out by reading it once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, call, together
from airflow_provider_modelsync.core.http.policy import RequestPolicy
from airflow_provider_modelsync.core.models import Alias, ModelRef, ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.base import KEEPS_MODELS, Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import MOST_SIGNATURES, Aliases, KeepsSignatures, moved
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
    OUR_SIGNATURES,
    Descriptor,
    Manifest,
    labels_of,
    metadata_of,
    signatures_of,
    with_annotation,
)
from airflow_provider_modelsync.core.registries.oci.referrers import Referrers
from airflow_provider_modelsync.core.registries.oci.tags import Found, Tags, alias_of, aliases_in
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

_WILD = frozenset("*?[")
_SIBLINGS = 16  # models that are looked through for blobs to mount
_SIBLING_VERSIONS = 32  # of each of them

_log = logging.getLogger("modelsync")


@dataclass(frozen=True, slots=True, kw_only=True)
class _TagPlan(UploadPlan):
    """What is to be published.

    :param draft: the manifest.
    :param force: whether the tag may move from another model.
    :param replaced: what the version was until now.
    :param uploads: hash → where an upload was begun that has not come to its end.
    """

    draft: Draft
    force: bool
    replaced: Found | None = None
    uploads: dict[str, str] = field(default_factory=dict)


class OCIRegistry(Registry, Aliases, KeepsSignatures):
    """The models of one connection.

    :param settings: the connection; the path of its host stands before every name.
    """

    conn_type = "oci_registry"
    title = "the OCI registry"
    settings_type = OCISettings
    settings: OCISettings
    capabilities = KEEPS_MODELS
    has_namespaces = True
    publishes_once = False
    compares = False
    remembers = False
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
        self._tags = Tags(self._api)
        self._referrers = Referrers(self._api)
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
        found = yield from self._tags.look(name, version)
        if found is None:
            raise self._no_tag(name, version)
        return self._shown(name, version, found)

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        tags = yield from self._tags.all(name, lambda tag, found: self._shown(name, tag, found))
        aliases = aliases_in(tags)
        pointing: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            pointing.setdefault(version, []).append(alias)
        versions = [listed.kept.pointed_to(pointing.get(tag, ())) for tag, listed in tags.items() if tag not in aliases]
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

    def _no_tag(self, name: str, tag: str) -> ModelNotFound:
        return ModelNotFound(f"{self.title} has no tag {tag!r} in {self._api.repository(name)!r}")

    def _shown(self, name: str, tag: str, found: Found) -> ModelVersion:
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

    # -- aliases

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        found = yield from self._tags.look(name, alias)
        if found is None:
            raise self._no_tag(name, alias)
        version = alias_of(alias, found)
        if version is None:
            raise ModelNotFound(f"{name}:{alias} is a version itself, not an alias of one")
        return Alias(name=name, alias=alias, version=version)

    def aliases(self, name: str) -> Flow[list[Alias]]:
        tags = yield from self._tags.all(name, lambda tag, found: None)
        pairs = sorted(aliases_in(tags).items())
        return [Alias(name=name, alias=alias, version=version) for alias, version in pairs]

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        name, tag, ref = version.name, version.version, f"{version.name}@{alias}"
        wanted = yield from self._tags.look(name, tag)
        if wanted is None:
            raise self._no_tag(name, tag)
        if wanted.version != tag:
            raise NotSupported(
                f"{version.ref} was pushed by another tool: nothing would tell its aliases from versions; push it anew"
            )
        there = yield from self._tags.look(name, alias)
        pointed = alias_of(alias, there) if there else None
        if there is not None and pointed is None:
            raise InvalidInput(f"{name}:{alias} is a version itself; give the alias another name", argument="alias")
        done = Alias(name=name, alias=alias, version=tag)
        if there is not None and there.stored.digest == wanted.stored.digest:
            return done
        if expected is not None and pointed not in (expected or None, tag):
            raise moved(ref, expected, pointed)
        refusal = yield from self._api.put_manifest(name, alias, wanted.stored.media_type, wanted.stored.content)
        if refusal.is_immutable:
            raise NotSupported(f"moving {ref}: the registry does not let tags move: {refusal.text[:200]}")
        refusal.raise_for_status(f"moving {ref}")
        now = yield from self._tags.look(name, alias)
        if now is None or now.stored.digest != wanted.stored.digest:
            raise moved(ref, tag, alias_of(alias, now) if now else None)
        return done

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        found = yield from self._tags.look(name, alias)
        if found is None:
            return False
        if alias_of(alias, found) is None:
            raise InvalidInput(f"{name}:{alias} is a version itself, not an alias of one", argument="alias")
        refusal = yield from self._tags.remove(name, alias, found)
        return (yield from self._is_deleted(name, alias, refusal, f"removing {name}@{alias}"))

    # -- changes

    def delete(self, ref: ModelRef) -> Flow[bool]:
        name, tag = ref.name, _exact(ref)
        found = yield from self._tags.look(name, tag)
        if found is None:
            return False
        digest, doing = found.stored.digest, f"deleting {ref}"
        sharing = yield from self._tags.sharing(name, tag, digest)
        others = [other for other in sharing if alias_of(other, found) != tag]  # its aliases go with it
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
                for one in (*sharing, tag):
                    _require_deleted((yield from self._api.delete_manifest(name, one)), doing)
                refusal = yield from self._api.delete_manifest(name, digest)
        return (yield from self._is_deleted(name, tag, refusal, doing))

    def _is_deleted(self, name: str, tag: str, refusal: Refusal, doing: str) -> Flow[bool]:
        """Whether a tag went away by what was asked; ``False`` when somebody else has removed it meanwhile.

        :raises NotSupported: when it is still there.
        """
        if refusal.status == 404:
            if (yield from self._tags.digest(name, tag)) is None:
                return False
            raise _no_deletion(doing)
        _require_deleted(refusal, doing)
        return True

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        version = yield from self.get(ref)
        name, tag = version.name, version.version
        found = yield from self._tags.read(name, tag)
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        merged = {**labels_of(found.manifest.annotations), **labels}
        kept = {key: value for key, value in merged.items() if value is not None}
        content = with_annotation(found.stored.content, OUR_LABELS, dumped(kept) if kept else None)
        if len(content) > MANIFEST_BYTES:
            raise InvalidInput(f"the manifest would have {len(content)} bytes with them", argument="labels")
        doing = f"labelling {ref}"
        refusal = yield from self._api.put_manifest(name, tag, found.stored.media_type, content)
        if refusal.is_immutable:
            raise NotSupported(f"{doing}: the registry does not let the tag move: {refusal.text[:200]}")
        refusal.raise_for_status(doing)
        now = yield from self._tags.read(name, tag)
        if now is None or labels_of(now.manifest.annotations) != kept or now.digest != found.digest:
            raise VersionConflict(f"{doing}: somebody else has moved the tag meanwhile")
        yield from self._tags.take_along(name, tag, found, now.stored)
        _log.info(
            "%s has a new manifest now, %s: what was signed or pinned as %s does not have the new labels",
            ref,
            now.stored.digest,
            found.stored.digest,
        )
        return self._shown(name, tag, now)

    # -- signatures

    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        found = yield from self._found(version)
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        own = [one.encode() for one in signatures_of(found.manifest.annotations)]
        others = yield from self._referrers.signatures(version.name, found.stored.digest)
        return list(dict.fromkeys([*own, *others]))[:MOST_SIGNATURES]

    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        name, tag, doing = version.name, version.version, f"signing {version.ref}"
        found = yield from self._tags.read(name, tag)
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        kept = [*signatures_of(found.manifest.annotations), signature.decode()]
        content = with_annotation(found.stored.content, OUR_SIGNATURES, dumped(kept))
        if len(content) > MANIFEST_BYTES:
            raise InvalidInput(f"the manifest would have {len(content)} bytes with it", argument="sign")
        refusal = yield from self._api.put_manifest(name, tag, found.stored.media_type, content)
        if refusal.is_immutable:
            raise NotSupported(f"{doing}: the registry does not let the tag move: {refusal.text[:200]}")
        refusal.raise_for_status(doing)
        now = yield from self._tags.read(name, tag)
        if now is None or now.digest != found.digest:
            raise VersionConflict(f"{doing}: somebody else has moved the tag meanwhile")
        yield from self._tags.take_along(name, tag, found, now.stored)
        yield from self._refer(name, now.stored, kept)

    def _refer(self, name: str, stored: Stored, signatures: Sequence[str]) -> Flow[None]:
        """Have signatures refer to a manifest, for tools that look for them so."""
        for signature in signatures:
            try:
                yield from self._referrers.put(name, stored, signature.encode())
            except ModelSyncError as error:  # they are in the manifest itself
                _log.warning("nothing refers to the manifest of %s as its signature: %s", name, error.message)

    def _found(self, version: ModelVersion) -> Flow[Found | None]:
        digest = (version.uri or "").rpartition("@")[2]
        if digest.startswith("sha256:"):
            return self._tags.exactly(version.name, digest)
        return self._tags.look(version.name, version.version)

    # -- push

    def proves(self, options: Mapping[str, Any]) -> bool:
        return PushOptions.read(options).layout != "image"  # whose layers are made of files, and hashed as such

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
            signatures=(request.signature.decode(),) if request.signature is not None else (),
        )
        draft = yield from call(Draft.of, source, facts, options)
        found = yield from self._tags.read(ref.name, tag)
        if found is not None:
            version = alias_of(tag, found)
            if not request.force and (found.digest != source.digest or version is not None):
                raise _conflict(ref, found, source.digest, version)
            if found.digest == source.digest and version is None:
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
            disproves=_disproves,
        )
        is_alias = found is not None and alias_of(tag, found) is not None
        replaced = None if is_alias else found
        return _TagPlan(ref=ref, way=way, draft=draft, force=request.force, replaced=replaced, uploads=uploads)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_TagPlan, plan)
        name, tag, digest = plan.ref.name, _exact(plan.ref), plan.draft.source.digest
        doing = f"publishing {plan.ref}"
        if not plan.force:  # the bytes may have taken hours
            found = yield from self._tags.read(name, tag)
            if found is not None:
                if found.digest != digest:
                    raise _conflict(plan.ref, found, digest)
                return self._shown(name, tag, found)
        manifest = plan.draft.manifest
        refusal = yield from self._api.put_manifest(name, tag, MANIFEST, manifest)
        if refusal.is_of_blobs:
            raise BeginAgain(f"{doing}: the registry does not have all that was sent: {refusal.text[:200]}")
        raise_for_push(refusal, doing)
        found = yield from self._tags.read(name, tag)
        if found is None:
            raise BeginAgain(
                f"{doing}: the registry has taken the manifest and does not have it. Its cache may know blobs that its "
                "garbage collection has removed: then it has to be restarted, and the model pushed to another name"
            )
        if found.digest != digest:
            raise VersionConflict(f"another push has moved {plan.ref}: it has {found.digest} now, not {digest}")
        if plan.replaced is not None:
            yield from self._tags.take_along(name, tag, plan.replaced, found.stored)
        yield from self._refer(name, found.stored, plan.draft.facts.signatures)
        return self._shown(name, tag, found)

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        plan = cast(_TagPlan, plan)
        for location in [*plan.uploads.values()]:
            yield from self._end(plan.ref.name, location)

    def _differs(self, name: str, found: Found, request: PushRequest, options: PushOptions) -> Flow[bool]:
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
                found = yield from together(self._tags.look(sibling, tag) for tag in sorted(tags)[-_SIBLING_VERSIONS:])
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
        if location is None and (yield from self._api.has_blob(name, digest, file.size, actions=PUSH)):
            return None
        if location is None:  # mounted by a cache that knows what is gone
            location = yield from self._api.begin_upload(name, digest)
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
        found = yield from self._found(version)
        if found is None:
            raise ModelNotFound(f"{version.ref} is not there any more")
        if found.contents is None:
            fault = found.fault or NotSupported("its layers are not files with a path")
            raise type(fault)(f"{version.ref} cannot be pulled: {fault.message}")
        yield from self._check_config(version, found.manifest.config)
        contents = found.contents
        way = GetFiles(
            contents.files,
            contents.directories,
            lambda file: self._api.blob_address(version.name, contents.blobs[file.path]),
            slices=contents.slices,
        )
        return DownloadPlan(version=version, way=way)

    def _check_config(self, version: ModelVersion, config: Descriptor | None) -> Flow[None]:
        """Raise unless the configuration that a manifest names is there as it says: readers go by it."""
        if config is None:
            return
        if config.size > MANIFEST_BYTES:
            raise UnsafeArchive(f"{version.ref} cannot be pulled: its configuration would have {config.size} bytes")
        content = yield from self._api.blob(version.name, config.digest, MANIFEST_BYTES)
        if len(content) != config.size:
            raise UnsafeArchive(
                f"{version.ref} cannot be pulled: its configuration has {len(content)} bytes instead of {config.size}"
            )


def _disproves(answer: MovedResponse) -> bool:
    """Whether a registry may have found another digest than a blob was sent under; not all say so in one way."""
    return answer.status in (400, 409, 422) or "DIGEST_INVALID" in Refusal.of(answer).codes


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref} names no version", argument="model")
    return ref.version


def _require_deleted(refusal: Refusal, doing: str) -> None:
    if refusal.is_immutable:
        raise NotSupported(f"{doing}: the registry keeps it: {refusal.text[:200]}")
    if refusal.status == 405:
        raise _no_deletion(doing)
    refusal.raise_for_status(doing)


def _no_deletion(doing: str) -> NotSupported:
    return NotSupported(f"{doing}: the registry does not delete over its API, or is set up not to")


def _conflict(ref: ModelRef, found: Found, digest: str, version: str | None = None) -> VersionConflict:
    if version is not None:
        return VersionConflict(f"the tag {ref} is an alias of the version {version}; push under another version")
    has = found.digest or f"what is no model of ours ({found.stored.digest})"
    return VersionConflict(
        f"{ref} exists with {has}, not with {digest}; push under another version, or with force to move the tag"
    )


def _layout_of(manifest: Manifest) -> str | None:
    if manifest.artifact_type == MODELPACK:
        return "modelpack"
    return "image" if manifest.config is not None and manifest.config.media_type == IMAGE_CONFIG else None


def _renewed(draft: Draft, found: Found, shown: ModelVersion) -> Draft:
    """Return a draft of the same bytes: what is not given stays, and so does their age."""
    facts, options = draft.facts, draft.options
    facts = replace(
        facts,
        labels=facts.labels or shown.labels,
        metadata=facts.metadata or shown.metadata,
        created_at=shown.created_at or facts.created_at,
        signatures=facts.signatures or tuple(signatures_of(found.manifest.annotations)),
    )
    if options.layout is None and _layout_of(found.manifest) == "image":
        options = options.model_copy(update={"layout": "image"})
    return Draft.of(draft.source, facts, options)

"""Push: a registry's plan for the way up, carried out by the transfer engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar, get_args

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core import places
from airflow_provider_modelsync.core.archive.choice import BY_HABIT, Choice
from airflow_provider_modelsync.core.archive.digest import (
    FollowLinks,
    LooseFile,
    Source,
    SourceTree,
    memory_key,
    read_tree,
)
from airflow_provider_modelsync.core.archive.names import doubts, show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    CorruptArchive,
    InvalidInput,
    ModelNotFound,
    Permanent,
    SourceChanged,
    UnsafeArchive,
    UntrustedModel,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import (
    ModelRef,
    ModelVersion,
    TransferStats,
    require_json,
    same_json,
)
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import KeepsSignatures, SendsAhead
from airflow_provider_modelsync.core.text import escape
from airflow_provider_modelsync.core.transfer import checkpoint
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.download import read_archive
from airflow_provider_modelsync.core.transfer.objects import put_ahead
from airflow_provider_modelsync.core.transfer.plan import GetArchive, PushRequest, PutAhead, SentAhead, UploadPlan
from airflow_provider_modelsync.core.transfer.progress import OUTCOME, readable
from airflow_provider_modelsync.core.transfer.upload import upload
from airflow_provider_modelsync.core.verbs.drive import mover_for
from airflow_provider_modelsync.core.verbs.signatures import Statement

log = logging.getLogger("modelsync")

T = TypeVar("T")
Sign = Callable[[Source, str], bytes | None]

_LABELS = TypeAdapter(dict[str, str])
_METADATA = TypeAdapter(dict[str, JsonValue], config=ConfigDict(allow_inf_nan=False))


def push(
    registry: Registry,
    driver: SyncDriver,
    source: str | os.PathLike[str] | Source,
    ref: ModelRef,
    control: Control,
    *,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
    follow_links: str = "inside",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    whence: str | None = None,
    sign: Sign | None = None,
) -> ModelVersion:
    """Bring a model into a registry.

    :param registry: where to.
    :param driver: runs the registry's flows.
    :param source: a directory or a single file, or a model that is read from elsewhere.
    :param ref: name and version; a version left out is derived from the digest.
    :param control: how to cancel, what to tell.
    :param labels: kept beside the version.
    :param metadata: kept beside the version.
    :param force: replace a version that holds other bytes.
    :param options: what only this registry understands.
    :param follow_links: whether links in the source are read as the files that they lead to, see
        :func:`~..archive.digest.read_tree`.
    :param include: patterns of the files in the source that are pushed, see :class:`~..archive.choice.Choice`.
    :param exclude: patterns of those that are not; ``.git`` and ``.cache/huggingface`` need not be named.
    :param whence: what the log calls a model that is read from elsewhere.
    :param sign: returns the signature that is kept beside the version, given what is pushed and the model's name.
    :return: the published version; ``transfer`` says what was moved.
    :raises VersionConflict: when the version exists with other bytes.
    :raises NotSupported: for what the registry cannot do or keep, before any byte is sent.
    """
    _check_push(registry, ref, labels=labels, metadata=metadata, force=force, sign=sign)
    memory = checkpoint.UploadMemory(control.checkpoint)
    # Without a version the digest decides where things go; what options mean is for the registry's plan to find out.
    may_go_ahead = ref.version is not None and not options
    with _Ahead(registry if may_go_ahead else None, driver, ref, control, memory) as ahead:
        if isinstance(source, Source):
            tree, place = source, whence or "a model"
        else:
            place = escape(os.fspath(source))
            places.require_source(source, store=registry.directory)
            choice = Choice(include, exclude, by_habit=BY_HABIT)
            read = partial(
                read_tree,
                source,
                leave_out=registry.leaves_out,
                follow_links=_how_to_follow(follow_links),
                choice=choice,
                is_proved=registry.proves(options or {}),
                checked=registry.checks,
                ahead=ahead,
            )
            tree = _read_source(read, control)
        _warn_of_names(tree)
        exact = ref if ref.version else ModelRef(name=ref.name, version=version_of(tree.digest))
        request = PushRequest(
            ref=exact,
            source=tree,
            labels=labels or {},
            metadata=metadata or {},
            force=force,
            options=options or {},
            memory=memory,
            tag=ref.version if registry.takes_tags else None,
            signature=sign(tree, ref.name) if sign else None,
            ahead=ahead.sent,
        )
        version = _publish(registry, driver, request, place, control)
    memory.forget()
    return version


def _publish(
    registry: Registry, driver: SyncDriver, request: PushRequest, place: str, control: Control
) -> ModelVersion:
    try:
        try:
            return _attempt(registry, driver, request, place, control, passing=(BeginAgain,))
        except BeginAgain as error:
            log.warning("%s; beginning it again", error)
            request.memory.forget()
            return _attempt(registry, driver, replace(request, ahead={}), place, control)
    except SourceChanged:
        checkpoint.forget_digests(control.checkpoint)
        raise


def _attempt(
    registry: Registry,
    driver: SyncDriver,
    request: PushRequest,
    place: str,
    control: Control,
    passing: tuple[type[BaseException], ...] = (),
) -> ModelVersion:
    """Push once.

    :param place: what the log calls the source.
    :param passing: the errors that the caller can do something about: nothing is reported after these.
    """
    plan = driver.run(registry.plan_push(request))
    try:
        found = plan.existing
        if found is not None and request.force and _must_be_renewed(registry, driver, found, request, control):
            plan = driver.run(registry.plan_push(replace(request, renew=True)))
        if plan.existing is not None:
            return _kept(registry, driver, plan.existing, request)
    except ModelNotFound as error:  # somebody else has deleted it since it was found
        raise BeginAgain(error.message) from error
    tree = request.source
    log.info(
        "pushing %s (%s, %s) to %s on %s (%s)",
        place,
        "1 file" if len(tree.files) == 1 else f"{len(tree.files)} files",
        readable(tree.size_bytes),
        plan.ref,
        registry.settings.conn_id,
        registry.address,
    )
    return _carry_out(registry, driver, plan, tree, control, request.memory, passing)


class _Ahead:
    """What goes up while it is hashed, where a registry takes that. Methods as of :class:`~..archive.digest.Ahead`.

    Used around all that happens until the version is there: it gives up what went ahead when a push fails for good.

    :param registry: ``None`` when nothing is to go ahead.
    :ivar sent: path → what went ahead of a file.
    """

    def __init__(
        self,
        registry: Registry | None,
        driver: SyncDriver,
        ref: ModelRef,
        control: Control,
        memory: checkpoint.UploadMemory,
    ) -> None:
        self.sent: dict[str, SentAhead] = {}
        self._registry = registry
        self._takes = registry if isinstance(registry, SendsAhead) else None
        self._driver = driver
        self._ref = ref
        self._control = control
        self._memory = memory
        self._way: PutAhead | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._way is not None:
            self._memory.flush()
            if _is_over(error) or self._control.is_last_try:
                self._control.tally.is_lost = True
                self._drop(error)

    def choose(self, files: Iterable[LooseFile]) -> Set[str]:
        if self._takes is not None:
            self._way = self._driver.run(self._takes.plan_ahead(self._ref, files, self._memory))
        return frozenset(file.path for file in self._way.files) if self._way else frozenset()

    def hash(self, cancel: CancelToken) -> Mapping[str, str]:
        if self._way is None or self._registry is None:
            return {}
        names = ", ".join(show(file.path) for file in self._way.files[:5])
        log.info("sending %s of %s while hashing it", names, self._ref)
        try:
            with closing(mover_for(self._registry, self._control)) as mover:
                self.sent = put_ahead(self._way, self._control, self._driver, mover)
        except BeginAgain as error:
            log.warning("%s; it is hashed first", error)
            self._drop(error)
        return {path: sent.sha256 for path, sent in self.sent.items()}

    def _drop(self, error: BaseException) -> None:
        if self._takes is not None:
            self._memory.forget()
            what = f"what went ahead of {self._ref}"
            _clean_up(self._driver, self._takes.drop_ahead(self._ref), what, error)


def _must_be_renewed(
    registry: Registry, driver: SyncDriver, existing: ModelVersion, request: PushRequest, control: Control
) -> bool:
    """Whether a version that holds the same bytes by its record must be written again all the same.

    Where a registry tells hashes of what it stores, its own plan has compared these. An archive is read once.
    """
    if Capability.PULL not in registry.capabilities:
        return False
    way = driver.run(registry.plan_pull(existing)).way
    if not isinstance(way, GetArchive):
        return False
    if _differing(request.metadata, existing.metadata):
        return True
    try:
        with closing(mover_for(registry, control)) as mover:
            held = {file.path: file for file in read_archive(way, control, driver, mover)}
    except (UnsafeArchive, CorruptArchive) as error:
        log.warning("what is stored of %s is damaged, and is replaced: %s", existing.ref, error)
        return True
    for file in request.source.files:
        if held.get(file.path) != file:
            log.warning("%s is not stored in %s as it was pushed: it is replaced", show(file.path), existing.ref)
            return True
    return False


def _kept(registry: Registry, driver: SyncDriver, existing: ModelVersion, request: PushRequest) -> ModelVersion:
    """Return a version that is there already, with all that is given of it besides its bytes."""
    log.info(
        "%s is already there with the same digest %s: nothing is sent",
        existing.ref,
        request.source.digest,
        extra=OUTCOME,
    )
    version = _with_facts(registry, driver, existing, request)
    if request.signature is not None:
        _add_signature(registry, driver, version, request.signature)
    return version


def _with_facts(registry: Registry, driver: SyncDriver, existing: ModelVersion, request: PushRequest) -> ModelVersion:
    """Bring what is given into a version that is there already: labels, and a word about metadata."""
    version = existing
    changes: dict[str, str | None] = _differing(request.labels, version.labels)
    if request.force and request.labels:
        changes |= dict.fromkeys(version.labels.keys() - request.labels.keys())
    if changes:
        version = driver.run(registry.set_labels(ModelRef(name=version.name, version=version.version), changes))
        log.info("%s has the labels %s now", version.ref, version.labels)
    other = _differing(request.metadata, version.metadata)
    if other:
        log.warning(
            "%s was pushed before and keeps the metadata that it got then; what is given now for %s is not kept%s",
            version.ref,
            ", ".join(map(repr, sorted(other))),
            "" if request.force else ": push under another version, or with force",
        )
    return version.moved(TransferStats(skipped=True, metadata_kept=not other))


def _add_signature(registry: Registry, driver: SyncDriver, version: ModelVersion, signature: bytes) -> None:
    """Keep a signature for a version that is there already, unless it has one of the same signer's."""
    keeps, signer = KeepsSignatures.of(registry), Statement.of(signature).signer
    for kept in driver.run(keeps.signatures(version)):
        with suppress(UntrustedModel):  # somebody else's, of which nothing can be read
            if Statement.of(kept).signer == signer:
                return
    driver.run(keeps.keep_signature(version, signature))
    log.info("%s is signed now", version.ref)


def _differing(given: Mapping[str, T], kept: Mapping[str, T]) -> dict[str, T]:
    return {key: value for key, value in given.items() if key not in kept or not same_json(kept[key], value)}


def _carry_out(
    registry: Registry,
    driver: SyncDriver,
    plan: UploadPlan,
    tree: Source,
    control: Control,
    memory: checkpoint.UploadMemory,
    passing: tuple[type[BaseException], ...],
) -> ModelVersion:
    """Move the bytes and finish; what fails for good, or cannot be resumed, is reported to the registry."""
    try:
        stats = TransferStats()
        if plan.way is not None:  # else only its record was missing
            with closing(mover_for(registry, control)) as mover:
                stats = upload(plan.way, tree, control, driver, mover)
        log.info("completing and verifying %s", plan.ref)
        version = driver.run(registry.finish_push(plan))
    except passing:
        raise
    except BaseException as error:
        memory.flush()
        is_resumable = plan.way is not None and plan.way.is_resumable and not control.is_last_try
        if _is_over(error) or not is_resumable:
            memory.forget()
            control.tally.is_lost = True
            _clean_up(driver, registry.abort_push(plan, error), f"the failed push of {plan.ref}", error)
        raise
    log.info("pushed %s with digest %s", version.ref, tree.digest, extra=OUTCOME)
    return version.moved(stats)


def version_of(digest: str) -> str:
    """Return the version that a push without one gets: the same bytes can never become two versions."""
    return f"m{digest.removeprefix('sha256:')[:15]}"


def _check_push(
    registry: Registry,
    ref: ModelRef,
    *,
    labels: Mapping[str, str] | None,
    metadata: Mapping[str, JsonValue] | None,
    force: bool,
    sign: Sign | None,
) -> None:
    needs = {
        Capability.PUSH: True,
        Capability.CHOOSE_VERSION: ref.version is not None and not registry.takes_tags,
        Capability.FORCE: force,
        Capability.LABELS: bool(labels),
        Capability.METADATA: bool(metadata),
        Capability.SIGNATURES: sign is not None,
    }
    for capability, needed in needs.items():
        if needed:
            registry.require(capability)
    if ref.alias is not None:
        raise InvalidInput(
            f"{ref} names an alias, and what is pushed is a version: push {ref.name!r}, then move the alias",
            argument="model",
        )
    for argument, kind, value in (("labels", _LABELS, labels), ("metadata", _METADATA, metadata)):
        try:
            kind.validate_python(dict(value or {}), strict=True)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise InvalidInput(f"{where}: {fault['msg']}", argument=argument) from None
        require_json(argument, value or {})


def _warn_of_names(tree: Source) -> None:
    doubtful = doubts([*(file.path for file in tree.files), *tree.directories])
    if doubtful:
        path, why = next(iter(doubtful.items()))
        log.warning(
            "%d of the model's names cannot be held by file systems of Windows, or by those that do not tell case "
            "apart: %s %s",
            len(doubtful),
            show(path),
            why,
        )


def _how_to_follow(links: str) -> FollowLinks:
    known: tuple[FollowLinks, ...] = get_args(FollowLinks)
    for how in known:
        if links == how:
            return how
    raise InvalidInput(f"{links!r} is none of {list(known)}", argument="follow_links")


def _read_source(read: Callable[..., SourceTree], control: Control) -> SourceTree:
    """Scan and hash a model, as far as an earlier try has not."""
    remembered = None if control.checkpoint is None else checkpoint.load_digests(control.checkpoint)
    tree = read(cancel=control.cancel, remembered=remembered)
    if tree.left_out:
        log.info("left out of the source as no part of the model: %s", ", ".join(map(show, tree.left_out)))
    if remembered is not None:
        sizes = {memory_key(path, stamp): stamp.size for path, stamp in tree.stamps.items()}
        checkpoint.save_digests(control.checkpoint, remembered, sizes)
    return tree


def _is_over(error: BaseException) -> bool:
    """Whether no later try goes on with what a push has sent; of a source that has changed, nothing is left of use."""
    return isinstance(error, (Permanent, BeginAgain, SourceChanged))


def _clean_up(driver: SyncDriver, flow: Flow[None], what: str, error: BaseException) -> None:
    try:
        driver.shielded(in_haste=not isinstance(error, Exception)).run(flow)
    except Exception:
        log.exception("cleaning up after %s failed, too", what)

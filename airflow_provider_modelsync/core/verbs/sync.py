"""Sync: versions of one registry brought into another, as far as they are not there yet."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import Source, read_tree
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    Permanent,
    UntrustedModel,
    VersionConflict,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import (
    Alias,
    ModelRef,
    ModelVersion,
    Query,
    SyncedVersion,
    SyncReport,
    fits,
    flat,
    nested,
)
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases, KeepsSignatures
from airflow_provider_modelsync.core.transfer.checkpoint import Below
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan
from airflow_provider_modelsync.core.transfer.progress import OUTCOME
from airflow_provider_modelsync.core.transfer.stored import StoredModel
from airflow_provider_modelsync.core.verbs.checks import NO_CHECKS, Checks
from airflow_provider_modelsync.core.verbs.drive import mover_for
from airflow_provider_modelsync.core.verbs.prune import delete_extra
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import Sign, push
from airflow_provider_modelsync.core.verbs.signatures import Signer, Statement

log = logging.getLogger("modelsync")

T = TypeVar("T")

Versions = Literal["latest", "all"] | int

AT_ONCE = 2  # models; each moves its bytes in as many threads as the connection says
CREATED_AT = "source_created_at"  # the metadata that keeps a version's age
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Side:
    """A registry that takes part in a sync.

    :param registry: the registry.
    :param driver: runs its flows.
    """

    registry: Registry
    driver: SyncDriver

    def run(self, flow: Flow[T]) -> T:
        """Return the result of one of the registry's flows; errors name the registry."""
        with self.blamed():
            return self.driver.run(flow)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Name the registry in whatever error comes out."""
        try:
            yield
        except ModelSyncError as error:
            error.about(connection=self.registry.settings.conn_id, address=self.registry.address)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to sync.

    :param models: names, globs of names, or ``name@alias`` for what an alias of the source points to.
    :param versions: of each model that are ready: the ``latest``, ``all``, or so many of the newest.
    :param labels: that a version must have.
    :param options: name or glob of names → options of the push; later entries win.
    :param rename: name → its name in the target.
    :param include: patterns of the files that are copied, see ``choice_type`` of the source. A version in the
        target then has the digest of these files.
    :param exclude: patterns of those that are not.
    :param aliases: have the target's aliases point to what the source's do; what these point to is copied, too.
    :param delete_extra: delete those versions of the models that the source has not any more. What a prune keeps stays.
    :param keep_last: so many of the newest versions in the target stay all the same.
    """

    models: Sequence[str] = ("*",)
    versions: Versions = "latest"
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    aliases: bool = False
    delete_extra: bool = False
    keep_last: int | None = None

    def __post_init__(self) -> None:
        if self.keep_last is not None and not self.delete_extra:
            raise InvalidInput("it limits what delete_extra deletes, which is not asked for", argument="keep_last")
        counts = isinstance(self.versions, int) and not isinstance(self.versions, bool) and self.versions > 0
        if not counts and self.versions not in ("latest", "all"):
            raise InvalidInput(f"{self.versions!r} is neither 'latest' nor 'all' nor a number", argument="versions")
        if isinstance(self.models, str):
            raise InvalidInput("it is a list of names or globs", argument="models")

    def chooses(self, name: str) -> bool:
        """Whether a model takes part."""
        return any(fits(name, entry) for entry in self.models)

    def options_of(self, name: str) -> dict[str, Any]:
        """Return the options that a model is pushed with."""
        found: dict[str, Any] = {}
        for entry, options in self.options.items():
            if fits(name, entry):
                found |= options
        return found


def sync(
    source: Side,
    target: Side,
    selection: Selection,
    control: Control,
    *,
    dry_run: bool = False,
    on_copied: Callable[[SyncedVersion], None] | None = None,
    checks: Checks = NO_CHECKS,
) -> SyncReport:
    """Bring versions of one registry into another.

    A model's versions go one after another, the oldest first, so that the newest is the newest in the target, too. A
    failing model does not stop the others.

    :param source: where from.
    :param target: where to.
    :param selection: what.
    :param control: how to cancel, where to remember; its worker count is that of each of two models at a time.
    :param dry_run: only say what would be copied.
    :param on_copied: told of each copy as soon as it is published, from the threads that copy.
    :param checks: what a version must stand before anything of it goes to the target. With any, versions are copied by
        way of this machine.
    :raises NotSupported: when the source cannot be read or the target cannot be written.
    :raises InvalidInput: when two models would become one, or one store lies in the other.
    """
    source.registry.require(Capability.PULL)
    target.registry.require(Capability.PUSH)
    if selection.aliases:
        Aliases.of(source.registry)
        Aliases.of(target.registry)
    if selection.delete_extra:
        target.registry.require(Capability.DELETE)
        if not source.registry.choice_type(selection.include, selection.exclude).is_all:
            raise InvalidInput("with only some of the files, nothing tells which are extra", argument="delete_extra")
    if source.registry.overlaps(target.registry):
        raise InvalidInput("the two model stores lie in one another", argument="target_conn_id")
    return _Sync(source, target, selection, control, dry_run, on_copied, checks).run()


class _Sync:
    def __init__(
        self,
        source: Side,
        target: Side,
        selection: Selection,
        control: Control,
        dry_run: bool,
        on_copied: Callable[[SyncedVersion], None] | None,
        checks: Checks,
    ) -> None:
        self._source = source
        self._target = target
        self._selection = selection
        self._control = control
        self._dry_run = dry_run
        self._on_copied = on_copied
        self._checks = checks
        self._done: list[SyncedVersion] = []
        self._aliases: dict[str, str] = {}
        self._deleted: list[str] = []
        self._choice = source.registry.choice_type(selection.include, selection.exclude)
        self._told: set[tuple[str | None, str]] = set()  # causes of failures, without the model's name

    def run(self) -> SyncReport:
        selection = self._selection
        query = Query(labels=dict(selection.labels))
        pointing = [entry for entry in selection.models if self._names_alias(entry)]
        names = [entry for entry in selection.models if entry not in pointing]
        asked = query.model_copy(update={"names": tuple(names)})
        listed = self._source.run(self._source.registry.list_models(asked)) if names else []
        followed = [version for entry in pointing if (version := self._followed(entry, query))]
        newest = [version for version in listed if selection.chooses(version.name)]
        known = {version.name for version in newest}
        newest = [*newest, *(version for version in followed if version.name not in known)]
        newest = [version for version in newest if self._has_a_name(version)]
        self._require_distinct(version.name for version in newest)
        ends = (side.registry.settings.conn_id for side in (self._source, self._target))
        log.info("%s: %s", " → ".join(ends), "1 model" if len(newest) == 1 else f"{len(newest)} models")
        self._look_into_target(newest)
        for name in sorted(set(names) - {version.name for version in listed}):
            if not _WILD & set(name):
                missing = ModelNotFound(f"{self._source.registry.title} has no ready version of {name!r}", model=name)
                self._failed(name, missing)

        def sync_model(version: ModelVersion, cancel: CancelToken) -> None:
            try:
                self._sync_model(version, query, replace(self._control, cancel=cancel))
            except Cancelled:
                raise
            except ModelSyncError as error:
                self._failed(version.name, error)

        for_each(sync_model, newest, workers=AT_ONCE, cancel=self._control.cancel)
        return SyncReport(
            dry_run=self._dry_run,
            versions=tuple(sorted(self._done, key=lambda done: (done.source, done.target or ""))),
            aliases=dict(sorted(self._aliases.items())),
            deleted=tuple(sorted(self._deleted)),
        )

    def _names_alias(self, entry: str) -> bool:
        """Whether an entry of the selection is ``name@alias``."""
        return "@" in entry and isinstance(self._source.registry, Aliases) and not _WILD & set(entry)

    def _followed(self, entry: str, query: Query) -> ModelVersion | None:
        """Return what an alias points to."""
        registry = self._source.registry
        try:
            return self._source.run(registry.get(registry.parse(entry), query))
        except ModelNotFound as error:
            self._failed(entry, error)
            return None

    def _has_a_name(self, version: ModelVersion) -> bool:
        """Whether a model can be called something in the target."""
        try:
            self._renamed(version.name)
        except InvalidInput as error:
            self._failed(version.name, error)
            return False
        return True

    def _look_into_target(self, newest: Sequence[ModelVersion]) -> None:
        """Find out before the first model what would fail each: a bucket that is missing, credentials, a host."""
        for version in newest[:1]:
            name = self._renamed(version.name)
            try:
                self._target.registry.check(ModelRef(name=name))
            except InvalidInput:  # of this model
                return
            self._versions_there(name)

    def _versions_there(self, name: str) -> list[ModelVersion]:
        return self._target.run(self._target.registry.list_versions(name, Query()))

    def _require_distinct(self, names: Iterable[str]) -> None:
        taken: dict[str, str] = {}
        for name in names:
            other = taken.setdefault(self._renamed(name), name)
            if other != name:
                raise InvalidInput(
                    f"{other!r} and {name!r} would both become {self._renamed(name)!r}", argument="rename"
                )

    def _renamed(self, name: str) -> str:
        """Return a model's name in the target; where only one side has namespaces, they are written otherwise."""
        if name in self._selection.rename:
            return self._selection.rename[name]
        ends = self._source.registry.has_namespaces, self._target.registry.has_namespaces
        return {(True, False): flat, (False, True): nested}.get(ends, str)(name)

    def _sync_model(self, newest: ModelVersion, query: Query, control: Control) -> None:
        """Bring the chosen versions of one model over."""
        versions, aliases = [newest], self._aliases_of(newest.name)
        if self._selection.versions != "latest" and newest.alias is None:
            listed = self._source.run(self._source.registry.list_versions(newest.name, query))
            ready = [version for version in listed if version.ready]
            versions = ready if self._selection.versions == "all" else ready[: self._selection.versions]
        versions = [*versions, *self._pointed_to(aliases, versions)]
        name = self._renamed(newest.name)
        self._target.registry.check(ModelRef(name=name))
        there = self._versions_there(name)
        for version in sorted(versions, key=lambda version: version.age_key):
            try:
                self._sync_version(version, name, there, control)
            except Permanent as error:  # this version will never come, the next may
                self._failed(version.ref, self._unless_deleted(version, error))
        self._move_aliases(aliases, name)
        if self._selection.delete_extra and not any(done.outcome == "failed" for done in self._of(newest.name)):
            self._delete_extra(newest.name, name)

    def _unless_deleted(self, version: ModelVersion, error: Permanent) -> ModelSyncError:
        """Return what is to be said of a failure; a version that was listed and is gone has the next try list anew."""
        conn_id = self._source.registry.settings.conn_id
        if isinstance(error, ModelNotFound) and error.connection == conn_id:
            return BeginAgain(f"{version.ref} was deleted while it was being copied").about(connection=conn_id)
        return error

    def _of(self, name: str) -> list[SyncedVersion]:
        """Return what has become of the versions of a model in the source so far."""
        return [done for done in self._done if done.source.rpartition(":")[0] == name]

    def _aliases_of(self, name: str) -> list[Alias]:
        source = self._source
        return source.run(Aliases.of(source.registry).aliases(name)) if self._selection.aliases else []

    def _pointed_to(self, aliases: Sequence[Alias], versions: Sequence[ModelVersion]) -> list[ModelVersion]:
        """Return the versions that aliases point to beyond those that are chosen anyway."""
        missing = {alias.version: alias for alias in aliases} | {version.version: None for version in versions}
        found: list[ModelVersion] = []
        for alias in filter(None, missing.values()):
            try:
                found.append(self._source.run(self._source.registry.read_version(alias.name, alias.version)))
            except ModelNotFound as error:
                self._failed(alias.ref, error)
        return [version for version in found if version.ready]

    def _move_aliases(self, aliases: Sequence[Alias], name: str) -> None:
        """Have the target's aliases point to the copies of what the source's point to."""
        target = self._target
        for alias in aliases:
            copies = [done.target for done in self._of(alias.name) if done.source == alias.ref and done.target]
            if not copies:  # told of already: it has failed, or only points elsewhere
                continue
            shown = f"{name}@{alias.alias}"
            if not self._dry_run:
                registry = Aliases.of(target.registry)
                ref = target.registry.parse(copies[0])
                target.registry.check(ModelRef(name=name, alias=alias.alias))
                try:
                    if target.run(registry.alias(name, alias.alias)).version == ref.version:
                        continue
                except ModelNotFound:
                    pass
                copy = target.run(target.registry.get(ref))
                target.run(registry.set_alias(copy, alias.alias))
            self._aliases[shown] = copies[0]
            log.info("%s %s to %s", shown, "would point" if self._dry_run else "points", copies[0])

    def _delete_extra(self, source_name: str, name: str) -> None:
        """Delete the target's versions of a model that the source has not any more."""
        chooses = Capability.CHOOSE_VERSION in self._target.registry.capabilities
        there = self._source.run(self._source.registry.list_versions(source_name, Query()))
        known = {version.version if chooses else version.digest for version in there}

        def is_extra(version: ModelVersion) -> bool:
            return (version.version if chooses else version.digest) not in known

        registry = self._target.registry
        done = self._target.run(
            delete_extra(registry, name, is_extra, self._selection.keep_last, dry_run=self._dry_run)
        )
        self._deleted += [entry.ref for entry in done.of("deleted")]
        for entry in done.of("failed"):
            note = f"it is extra in the target, and cannot be deleted: {entry.why}"
            self._done.append(
                SyncedVersion(source=entry.ref, outcome="failed", note=note, is_permanent=entry.is_permanent)
            )

    def _sync_version(self, version: ModelVersion, name: str, there: Sequence[ModelVersion], control: Control) -> None:
        registry = self._target.registry
        chooses = Capability.CHOOSE_VERSION in registry.capabilities
        ref = ModelRef(name=name, version=version.version if chooses else None)
        registry.check(ref)
        if version.reference is not None:
            note = f"{self._source.registry.title} only points to it: the bytes are at {version.reference.registry}"
            self._note(SyncedVersion(source=version.ref, outcome="skipped", note=note))
            return
        plan = None if version.digest and self._choice.is_all else self._plan(version)
        wanted = version.digest if plan is None else plan.digest
        if found := _counterpart(version, wanted, there, chooses=chooses):
            if wanted is not None and found.digest is not None and wanted != found.digest:
                raise VersionConflict(f"{found.ref} exists with {found.digest}, the source has {wanted}")
            self._note(_synced("skipped", version, wanted, found))
            return
        if self._dry_run:
            self._note(_synced("copied", version, wanted, ref=str(ref)))
            return
        control = replace(
            control,
            checkpoint=control.checkpoint and Below(control.checkpoint, f"{_key(f'{version.ref} {ref}')}."),
            on_progress=lambda report: log.info("syncing %s: %s", version.ref, report),
        )
        pushed, dropped = self._copy(version, plan or self._plan(version), ref, control)
        is_new = pushed.transfer is not None and not pushed.transfer.skipped
        digest = None if version.digest is None and wanted is None else pushed.digest
        done = _synced("copied" if is_new else "skipped", version, digest, pushed, dropped=dropped)
        self._note(done)
        if is_new and self._on_copied is not None:
            self._on_copied(done)

    def _plan(self, version: ModelVersion) -> DownloadPlan:
        """Return how what is copied of a version would be pulled, with its hashes as far as they can be known."""
        source = self._source
        plan = source.run(source.registry.plan_pull(version)).choose(self._choice)
        return source.run(source.registry.with_hashes(plan))

    def _copy(
        self, version: ModelVersion, plan: DownloadPlan, ref: ModelRef, control: Control
    ) -> tuple[ModelVersion, tuple[str, ...]]:
        """Push what a version holds; return the new version, and what the target has no room for."""
        source = self._source
        if not self._checks:
            with closing(mover_for(source.registry, control)) as mover:
                stored = StoredModel.of(plan, control, source.driver, mover, source.blamed)
                if stored is not None:
                    return self._push(stored, version, ref, control)
        # Files that must be looked at, or whose hashes are told only by that: one copy, which a later try finds again.
        try:

            def keep(staging: Path, error: BaseException) -> bool:
                is_over = isinstance(error, Permanent) or control.is_last_try
                return not is_over and any(staging.iterdir())

            with durable.staging(_own_directory() / "copy", self._copy_key(version), keep=keep) as staging:
                return self._push(self._pulled(version, staging.path / "model", control), version, ref, control)
        except OSError as error:
            raise from_os_error(error, f"copying {version.ref} through {tempfile.gettempdir()}") from error

    def _copy_key(self, version: ModelVersion) -> str:
        """Return the key of a version at rest between two registries; no other pair of them shares it."""
        source, target = self._source.registry, self._target.registry
        ends = (source.settings.conn_id, source.base_url or source.settings.host, target.settings.conn_id)
        return _key(repr((*ends, version.ref, version.digest, str(self._choice))))[:12]

    def _pulled(self, version: ModelVersion, place: Path, control: Control) -> Source:
        """Pull a version, and return it as it lies there."""
        source, exact = self._source, ModelRef(name=version.name, version=version.version)
        with source.blamed():
            pulled = pull(
                source.registry,
                source.driver,
                exact,
                place,
                control,
                query=Query(),
                force=True,
                include=self._selection.include,
                exclude=self._selection.exclude,
                checks=self._checks,
            )
        tree = read_tree(place, cancel=control.cancel)
        if tree.digest != pulled.digest or version.digest not in (None, pulled.version.digest):
            raise BeginAgain(f"{version.ref} was replaced while it was being copied")
        return tree

    def _push(
        self, model: Source, version: ModelVersion, ref: ModelRef, control: Control
    ) -> tuple[ModelVersion, tuple[str, ...]]:
        source, target = self._source.registry, self._target
        options = self._selection.options_of(version.name)
        whence = f"{version.ref} on {source.settings.conn_id} ({source.address})"
        facts, dropped = _facts_for(target.registry, version)
        sign = self._signer(version)
        while True:
            try:
                with target.blamed():
                    pushed = push(
                        target.registry,
                        target.driver,
                        model,
                        ref,
                        control,
                        options=options,
                        whence=whence,
                        sign=sign,
                        **facts,
                    )
                    return pushed, dropped
            except NotSupported as error:  # a registry that keeps them, though not beside this model
                if not facts.pop(error.argument or "", None):
                    raise
                dropped = (*dropped, str(error.argument))

    def _signer(self, version: ModelVersion) -> Sign | None:
        """Return what signs a copy: the target's connection, or whoever has signed the same files in the source."""
        source, target = self._source, self._target.registry
        if not isinstance(target, KeepsSignatures):
            return None
        if (own := Signer.of(None, target.settings)) is not None:
            return own.sign
        if not isinstance(source.registry, KeepsSignatures):
            return None
        kept = source.run(source.registry.signatures(version))

        def choose(model: Source, name: str) -> bytes | None:
            for signature in kept:
                with suppress(UntrustedModel):  # one of other files, as where only some are copied
                    Statement.of(signature).compare(model.files, name)
                    return signature
            return None

        return choose if kept else None

    def _note(self, version: SyncedVersion) -> None:
        version = version.model_copy(update={"is_planned": self._dry_run})
        self._done.append(version)
        log.info("%s", version, extra=OUTCOME)

    def _failed(self, model: str, error: ModelSyncError) -> None:
        error.about(model=model)
        failed = SyncedVersion(
            source=model, outcome="failed", note=str(error), is_permanent=isinstance(error, Permanent)
        )
        self._done.append(failed)
        cause = (error.connection, error.message.replace(model.partition(":")[0], ""))
        said = "for the reason told above" if cause in self._told else str(error)
        self._told.add(cause)
        log.error("syncing %s failed: %s", model, said, extra=OUTCOME)


def _own_directory() -> Path:
    """Return a temporary directory that later tries find again, and that no other user can look into."""
    place = Path(tempfile.gettempdir()) / f"modelsync-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    facts = place.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise InvalidInput(f"{place} is not a directory of this user's alone: remove it, or name another TMPDIR")
    return place


def _counterpart(
    version: ModelVersion, digest: str | None, there: Sequence[ModelVersion], *, chooses: bool
) -> ModelVersion | None:
    """Return the target's version that stands for one of the source's already.

    :param digest: of what is copied of it.
    """
    if chooses:
        return next((found for found in there if found.version == version.version and found.ready), None)
    return next((found for found in there if digest and found.digest == digest), None)


def _synced(
    outcome: Literal["copied", "skipped"],
    version: ModelVersion,
    digest: str | None,
    found: ModelVersion | None = None,
    *,
    ref: str | None = None,
    dropped: tuple[str, ...] = (),
) -> SyncedVersion:
    is_verified = digest is not None and (found is None or found.digest is not None)
    return SyncedVersion(
        source=version.ref,
        target=found.ref if found else ref,
        outcome=outcome,
        digest=digest or (found.digest if found else None),
        transfer=found.transfer if found else None,
        size_bytes=version.size_bytes if digest == version.digest else found and found.size_bytes,
        created_at=found.created_at if found else None,
        dropped=dropped,
        note=None if is_verified else "unverified: its digest is not known",
    )


def _facts_for(target: Registry, version: ModelVersion) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return labels and metadata as far as a registry keeps them, and what it does not keep."""
    created_at = {CREATED_AT: version.created_at.isoformat()} if version.created_at else {}
    facts: dict[str, tuple[Capability, Mapping[str, Any], Mapping[str, Any]]] = {
        "labels": (Capability.LABELS, version.labels, {}),
        "metadata": (Capability.METADATA, version.metadata, created_at),
    }
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for name, (capability, own, added) in facts.items():
        if capability in target.capabilities:
            kept[name] = {**added, **own}
        else:
            dropped += [name] * bool(own) + [*added]
    return kept, tuple(dropped)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

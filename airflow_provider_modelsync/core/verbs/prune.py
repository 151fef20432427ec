"""Prune: versions that nobody needs any more are deleted, and what pushes have left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from airflow_provider_modelsync.core.errors import Cancelled, InvalidInput, ModelNotFound, ModelSyncError, Permanent
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Alias, ModelRef, ModelVersion, Query, VersionStatus, fits
from airflow_provider_modelsync.core.registries.base import ANY, Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases, Deploys, Tidies
from airflow_provider_modelsync.core.verbs.promote import line_of
from airflow_provider_modelsync.xcom import fitted_lists

log = logging.getLogger("modelsync")

_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept. Whatever else is said, the newest ready version of a model always is.

    :param models: names, or globs of names.
    :param keep_last: so many of the newest ready versions.
    :param older_than: whatever is younger, seconds.
    :param keep_labels: versions with one of these labels; ``None`` for whatever value.
    :param keep_aliased: what aliases point to, and would be rolled back to.
    :param min_keep: so many of the newest ready versions, however old they are.
    :param leftovers_older_than: remove what pushes have left behind, as far as it is older, seconds; ``None``: nothing.
    :raises InvalidInput: when nothing says what may go.
    """

    models: Sequence[str]
    keep_last: int | None = None
    older_than: float | None = None
    keep_labels: Mapping[str, str | None] = field(default_factory=dict)
    keep_aliased: bool = True
    min_keep: int = 1
    leftovers_older_than: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.models, str):
            raise InvalidInput("it is a list of names or globs", argument="models")
        if self.keep_last is None and self.older_than is None and self.leftovers_older_than is None:
            raise InvalidInput("say how many versions to keep, or what is old enough to go", argument="keep_last")

    def chooses(self, name: str) -> bool:
        """Whether a model is meant."""
        return any(fits(name, entry) for entry in self.models)

    def kept(self, versions: Sequence[ModelVersion], needed: Mapping[str, str], now: datetime) -> dict[str, str]:
        """Return which versions of a model are kept, and why.

        :param versions: all of them.
        :param needed: versions that something needs, and what.
        :param now: what ages count from.
        """
        if self.keep_last is None and self.older_than is None:
            return {version.version: "only leftovers are asked for" for version in versions}
        ready = sorted((one for one in versions if one.ready), key=lambda one: one.age_key, reverse=True)
        reasons: dict[str, str] = {version.version: "the newest ready version" for version in ready[:1]}
        reasons |= {version: why for version, why in needed.items() if version not in reasons}
        for count, told in ((self.keep_last, "one of the last"), (self.min_keep, "one of the least")):
            for version in ready[: count or 0]:
                reasons.setdefault(version.version, f"{told} {count}")
        for version in versions:
            if why := self._why_kept(version, now):
                reasons.setdefault(version.version, why)
        there = {version.version for version in versions}
        return {version: why for version, why in reasons.items() if version in there}

    def _why_kept(self, version: ModelVersion, now: datetime) -> str | None:
        for label, value in self.keep_labels.items():
            if label in version.labels and value in (None, version.labels[label]):
                return f"labelled {label}={version.labels[label]}"
        is_old = (
            self.older_than is not None
            and version.created_at is not None
            and now - version.created_at > timedelta(seconds=self.older_than)
        )
        if self.older_than is not None and not is_old:
            return "not old enough" if version.created_at else "of unknown age"
        if version.status not in (VersionStatus.READY, VersionStatus.FAILED) and not is_old:
            return f"still {version.status}"
        return None


class Pruned(BaseModel):
    """What became of one version, or of something that was left behind.

    :ivar ref: the version, or what and where the leftover is.
    :ivar outcome: what became of it.
    :ivar why: why it is kept, or has failed.
    :ivar size_bytes: as far as it is known.
    :ivar is_permanent: whether another try cannot help.
    """

    model_config = ConfigDict(frozen=True)

    ref: str
    outcome: Literal["deleted", "kept", "failed", "tidied"]
    why: str | None = None
    size_bytes: int | None = None
    is_permanent: bool = False

    def __str__(self) -> str:
        return f"{self.ref} {self.outcome}" + (f": {self.why}" if self.why else "")


class PruneReport(BaseModel):
    """What a prune did, or would do.

    :ivar dry_run: nothing was deleted.
    :ivar entries: what became of each version and each leftover.
    :ivar knows_deployments: whether the system tells what its deployments need; ``None`` where there are none.
    """

    model_config = ConfigDict(frozen=True)

    dry_run: bool
    entries: tuple[Pruned, ...] = ()
    knows_deployments: bool | None = None

    def of(self, outcome: str) -> list[Pruned]:
        """Return what has come to an end."""
        return [entry for entry in self.entries if entry.outcome == outcome]

    def __str__(self) -> str:
        lists = ((outcome, self.of(outcome)) for outcome in ("deleted", "kept", "failed", "tidied"))
        return ", ".join(f"{len(entries)} {outcome}" for outcome, entries in lists if entries) or "nothing to prune"

    def to_xcom(self) -> dict[str, JsonValue]:
        """Return a plain dictionary of JSON values, at most 4 KiB of JSON: counts, and lists as far as they have room.

        What is shortened first is what matters least; ``truncated`` is then true.
        """
        outcomes = ("deleted", "failed", "kept", "tidied")
        lists: dict[str, list[JsonValue]] = {
            outcome: [
                entry.model_dump(mode="json", exclude_defaults=True, exclude={"outcome", "is_permanent"})
                for entry in self.of(outcome)
            ]
            for outcome in outcomes
        }
        fields: dict[str, JsonValue] = {
            "dry_run": self.dry_run,
            "counts": {outcome: len(entries) for outcome, entries in lists.items()},
            "deleted_bytes": sum(entry.size_bytes or 0 for entry in self.of("deleted")),
            "knows_deployments": self.knows_deployments,
        }
        return fitted_lists(fields, lists, shorten=("kept", "tidied", "deleted", "failed"))


def prune(
    registry: Registry, retention: Retention, *, dry_run: bool = True, now: datetime | None = None
) -> Flow[PruneReport]:
    """Delete what nobody needs any more. What cannot be deleted does not stop the rest.

    What aliases point to is looked up once more right before each deletion.

    :param registry: where.
    :param retention: what is kept.
    :param dry_run: only say what would be deleted.
    :param now: what ages count from; by default, this machine's time.
    :raises NotSupported: where nothing can be deleted.
    """
    if retention.keep_last is not None or retention.older_than is not None:
        registry.require(Capability.DELETE)
    if retention.leftovers_older_than is not None:
        Tidies.of(registry)
    now = now or datetime.now(UTC)
    work = _Prune(registry, retention, dry_run, now)
    yield from work.run()
    return PruneReport(dry_run=dry_run, entries=tuple(work.done), knows_deployments=work.knows_deployments)


def delete_extra(
    registry: Registry, name: str, is_extra: Callable[[ModelVersion], bool], keep_last: int | None, *, dry_run: bool
) -> Flow[PruneReport]:
    """Delete versions of a model as a prune does, of those that are of no use to whoever asks.

    :param registry: where.
    :param name: the model's name.
    :param is_extra: tells them.
    :param keep_last: so many of the newest ready versions stay all the same.
    :param dry_run: only say what would be deleted.
    """
    registry.require(Capability.DELETE)
    work = _Prune(registry, Retention(models=[name], keep_last=keep_last or 1), dry_run, datetime.now(UTC), is_extra)
    yield from work.run()
    return PruneReport(dry_run=dry_run, entries=tuple(work.done), knows_deployments=work.knows_deployments)


class _Prune:
    def __init__(
        self,
        registry: Registry,
        retention: Retention,
        dry_run: bool,
        now: datetime,
        may_go: Callable[[ModelVersion], bool] = lambda version: True,
    ) -> None:
        self._registry = registry
        self._retention = retention
        self._dry_run = dry_run
        self._now = now
        self._may_go = may_go
        self.done: list[Pruned] = []
        self.knows_deployments: bool | None = None
        self._deployed: Mapping[str, str] = {}

    def run(self) -> Flow[None]:
        models = self._retention.models
        listed = yield from self._registry.list_models(Query(names=tuple(models)))
        names = {version.name for version in listed if self._retention.chooses(version.name)}
        names |= {name for name in models if not _WILD & set(name)}
        yield from self._look_at_deployments()
        for name in sorted(names):
            try:
                yield from self._prune_model(self._registry.parse(name).name)
            except Cancelled:
                raise
            except ModelSyncError as error:
                self._failed(name, error)

    def _look_at_deployments(self) -> Flow[None]:
        if isinstance(self._registry, Deploys):
            deployed = yield from self._registry.deployed_models()
            self.knows_deployments = deployed is not None
            self._deployed = deployed or {}
            if deployed is None:
                log.warning(
                    "%s does not tell which versions its deployments run: keep them by a label or an alias",
                    self._registry.title,
                )

    def _prune_model(self, name: str) -> Flow[None]:
        versions = yield from self._registry.list_versions(name, ANY)
        needed = yield from self._needed(name, versions)
        kept = self._retention.kept(versions, needed, self._now)
        for version in sorted(filter(self._may_go, versions), key=lambda one: one.age_key):
            if why := kept.get(version.version):
                self._note(version, "kept", why)
            elif self._dry_run:
                self._note(version, "deleted")
            else:
                yield from self._delete(version, versions)
        if (age := self._retention.leftovers_older_than) is not None:
            older = self._now - timedelta(seconds=age)
            tidied = yield from Tidies.of(self._registry).tidy(name, older, dry_run=self._dry_run)
            for what in tidied:
                self.done.append(Pruned(ref=what, outcome="tidied"))
                log.info("%s%s", "would tidy " if self._dry_run else "tidied ", what)

    def _delete(self, version: ModelVersion, versions: Sequence[ModelVersion]) -> Flow[None]:
        try:
            if why := (yield from self._needed(version.name, versions)).get(version.version):
                self._note(version, "kept", why)
                return
            yield from self._registry.delete(ModelRef(name=version.name, version=version.version))
        except Cancelled:
            raise
        except ModelSyncError as error:
            self._failed(version.ref, error)
        else:
            self._note(version, "deleted")

    def _needed(self, name: str, versions: Sequence[ModelVersion]) -> Flow[dict[str, str]]:
        """Return the versions that aliases and deployments need, and which."""
        found = {
            version.version: f"deployed as {self._deployed[version.ref]}"
            for version in versions
            if version.ref in self._deployed
        }
        if self._retention.keep_aliased and isinstance(self._registry, Aliases):
            ready = {version.version for version in versions if version.ready}
            for alias in (yield from self._registry.aliases(name)):
                whole = yield from self._with_history(self._registry, alias)
                found[alias.version] = str(alias)
                before = [version for version in line_of(whole)[:-1] if version in ready]
                if before:
                    found.setdefault(before[-1], f"what {alias} would be rolled back to")
        return found

    def _with_history(self, registry: Aliases, alias: Alias) -> Flow[Alias]:
        if alias.earlier or not registry.remembers:
            return alias
        try:
            return (yield from registry.alias(alias.name, alias.alias))
        except ModelNotFound:  # removed since it was listed
            return alias

    def _note(self, version: ModelVersion, outcome: Literal["deleted", "kept"], why: str | None = None) -> None:
        self.done.append(Pruned(ref=version.ref, outcome=outcome, why=why, size_bytes=version.size_bytes))
        log.info("%s %s%s%s", version.ref, "would be " if self._dry_run else "is ", outcome, f": {why}" if why else "")

    def _failed(self, ref: str, error: ModelSyncError) -> None:
        error.about(model=ref)
        self.done.append(Pruned(ref=ref, outcome="failed", why=str(error), is_permanent=isinstance(error, Permanent)))
        log.error("pruning %s failed: %s", ref, error)

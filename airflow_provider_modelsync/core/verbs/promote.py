"""Promotion and rollback: an alias is moved to a version that has earned it, and back to the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import NOBODY, Alias, Held, ModelRef, ModelVersion
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases
from airflow_provider_modelsync.xcom import fitted

log = logging.getLogger("modelsync")

_ROUNDS = 20  # of looking and moving, each lost to another who moves the alias
_SHOWN = 10  # names of metrics in a message


class Condition(BaseModel):
    """What a version must be better at than the one that an alias points to.

    :ivar metric: a key of both versions' metadata, or a path of keys with dots between them.
    :ivar mode: whether the larger or the smaller value is better.
    :ivar at_least: how much better; 0 allows the same value, less than 0 a worse one. ``None``: better at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    mode: Literal["max", "min"] = "max"
    at_least: Decimal | None = None

    def compare(self, candidate: ModelVersion, holder: ModelVersion) -> Comparison:
        """Compare two versions.

        :raises InvalidInput: when one of them has no such metric.
        """
        new, old = (_metric(version, self.metric) for version in (candidate, holder))
        gain = new - old if self.mode == "max" else old - new
        return Comparison(
            condition=self,
            candidate=new,
            holder=old,
            is_met=gain > 0 if self.at_least is None else gain >= self.at_least,
        )


class Comparison(BaseModel):
    """How a version compares with the one that an alias points to."""

    model_config = ConfigDict(frozen=True)

    condition: Condition
    candidate: Decimal
    holder: Decimal
    is_met: bool

    def __str__(self) -> str:
        wanted = self.condition
        better = "above" if wanted.mode == "max" else "below"
        by = f"at least {wanted.at_least} {better} " if wanted.at_least is not None else f"{better} "
        return f"{wanted.metric} is {self.candidate}, {'' if self.is_met else 'not '}{by}{self.holder}"

    def to_xcom(self) -> dict[str, JsonValue]:
        return {
            "metric": self.condition.metric,
            "candidate": float(self.candidate),
            "holder": float(self.holder),
            "is_met": self.is_met,
        }


class Promotion(BaseModel):
    """What became of a promotion.

    :ivar alias: the alias, as ``name@alias``.
    :ivar outcome: ``promoted``; ``there`` already; ``refused``, as a condition is not met.
    :ivar candidate: the version that was to be promoted.
    :ivar before: what the alias pointed to when that was decided; ``None`` for nothing.
    :ivar comparisons: by the conditions.
    """

    model_config = ConfigDict(frozen=True)

    alias: str
    outcome: Literal["promoted", "there", "refused"]
    candidate: ModelVersion
    before: str | None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        if self.outcome == "there":
            return f"{self.alias} points to {self.candidate.ref} already"
        told = "; ".join(str(one) for one in self.comparisons if self.outcome == "promoted" or not one.is_met)
        if self.outcome == "refused":
            return f"{self.candidate.ref} does not become {self.alias} in place of {self.before}: {told}"
        place = f"in place of {self.before}" if self.before else "the first to be so"
        return f"{self.candidate.ref} is {self.alias} now, {place}" + (f": {told}" if told else "")

    def to_xcom(self) -> dict[str, JsonValue]:
        """Return a plain dictionary of JSON values, at most 4 KiB of JSON.

        ``ref`` and ``to`` are what the alias points to now, ``from`` is what it pointed to before.
        """
        now = self.before if self.outcome == "refused" else self.candidate.ref
        fields: dict[str, JsonValue] = {
            "alias": self.alias,
            "promoted": self.outcome == "promoted",
            "outcome": self.outcome,
            "reason": self.reason,
            "from": self.before,
            "to": now,
            "ref": now,
            "candidate": self.candidate.ref,
            "comparisons": [one.to_xcom() for one in self.comparisons],
        }
        return fitted(fields, spare={"comparisons": [], "reason": self.outcome})


class Rollback(BaseModel):
    """What became of a rollback.

    :ivar alias: the alias, as ``name@alias``.
    :ivar version: what it points to now.
    :ivar before: what it pointed to before; ``None`` for nothing.
    :ivar passed_over: versions to which it had pointed before, and which are not there any more, or not ready.
    """

    model_config = ConfigDict(frozen=True)

    alias: str
    version: ModelVersion
    before: str | None
    passed_over: tuple[str, ...] = ()

    def to_xcom(self) -> dict[str, JsonValue]:
        """Return a plain dictionary of JSON values, at most 4 KiB of JSON. Keys as of a promotion."""
        fields: dict[str, JsonValue] = {
            "alias": self.alias,
            "from": self.before,
            "to": self.version.ref,
            "ref": self.version.ref,
            "passed_over": list(self.passed_over),
        }
        return fitted(fields, spare={"passed_over": []})


def conditions_of(when: Sequence[Mapping[str, Any]] | None) -> tuple[Condition, ...]:
    """Read conditions.

    :raises InvalidInput: for what is none.
    """
    try:
        return tuple(Condition.model_validate(dict(one)) for one in when or ())
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "a condition"
        raise InvalidInput(
            f"{where}: {fault['msg']}; a condition has a metric, a mode ('max' or 'min'), and at_least",
            argument="when",
        ) from None


def promote(
    registry: Registry, model: str, alias: str, when: Sequence[Mapping[str, Any]] | None = None
) -> Flow[Promotion]:
    """Have an alias point to a version, if that is better than what it points to.

    Whoever moves the alias meanwhile is compared with in turn, so of two who promote at once the better one wins, where
    the registry compares what an alias points to in the step that moves it.

    :param registry: where.
    :param model: what is to be promoted: any reference that leads to a ready version. It is followed once.
    :param alias: the alias.
    :param when: conditions, see :class:`Condition`; all of them must be met. Where the alias is not there yet, or what
        it points to is gone, none is asked for.
    :raises InvalidInput: for a condition that makes no sense, or a metric that is missing.
    """
    aliases, conditions, ref = Aliases.of(registry), conditions_of(when), registry.parse(model)
    registry.check(ModelRef(name=ref.name, alias=alias))
    candidate = yield from registry.get(ref)
    if not candidate.ready:
        raise InvalidInput(f"{candidate.ref} is {candidate.status}: only what is ready is promoted", argument="model")
    name = candidate.name
    for _ in range(_ROUNDS):
        pointed = yield from _pointed(registry, name, alias)
        if pointed and pointed.version == candidate.version:
            return Promotion(alias=str(pointed), outcome="there", candidate=candidate, before=pointed.ref)
        holder = (yield from _version(registry, name, pointed.version)) if pointed and conditions else None
        compared = tuple(condition.compare(candidate, holder) for condition in conditions) if holder else ()
        facts: dict[str, Any] = {
            "alias": f"{name}@{alias}",
            "candidate": candidate,
            "before": pointed.ref if pointed else None,
            "comparisons": compared,
        }
        if not all(one.is_met for one in compared):
            return Promotion(outcome="refused", **facts)
        try:
            now = yield from aliases.set_alias(candidate, alias, expected=pointed.version if pointed else NOBODY)
        except VersionConflict as error:
            log.info("%s; comparing with that", error)
            continue
        if not aliases.compares:
            now = yield from registry.alias(name, alias)
        if aliases.compares or now.version == candidate.version:
            return Promotion(outcome="promoted", **facts)
    raise RegistryUnavailable(f"{name}@{alias} is being moved by others all the time")


def rollback(
    registry: Registry,
    model: str,
    alias: str,
    to: str | None = None,
    *,
    decided: Mapping[str, str | None] | None = None,
    on_decided: Callable[[dict[str, JsonValue]], None] = lambda _: None,
) -> Flow[Rollback]:
    """Have an alias point to the version before, or to one that is named.

    What was gone back from is not gone back to: a second rollback goes one further.

    :param registry: where.
    :param model: the model's name, or any reference to it.
    :param alias: the alias.
    :param to: a version instead of the one before.
    :param decided: what an earlier try has decided, which is carried out as it was.
    :param on_decided: told of what is decided before it is carried out.
    :raises ModelNotFound: when there is no version before.
    :raises NotSupported: when the registry does not remember one, and none is named.
    :raises VersionConflict: when somebody else has moved the alias meanwhile.
    """
    aliases, name = Aliases.of(registry), registry.parse(model).name
    registry.check(ModelRef(name=name, alias=alias))
    passed_over: list[str] = []
    if decided is not None:
        before = decided.get("from")
        version = yield from registry.read_version(name, str(decided.get("to")))
    else:
        pointed = yield from _pointed(registry, name, alias)
        before = pointed.version if pointed else None
        if to is not None:
            version = yield from registry.get(registry.parse(f"{name}:{to.rpartition(':')[2]}"))
            if not version.ready:
                told = f"{version.ref} is {version.status}, and an alias leads to ready versions"
                raise InvalidInput(told, argument="to")
        else:
            version = yield from _before(aliases, registry, name, alias, pointed, passed_over)
        on_decided({"from": before, "to": version.version})
    now = yield from aliases.set_alias(version, alias, expected=before or NOBODY)
    return Rollback(
        alias=str(now),
        version=version.found_by(alias),
        before=f"{name}:{before}" if before else None,
        passed_over=tuple(passed_over),
    )


def line_of(alias: Alias) -> list[str]:
    """Return the versions that an alias has come by, the present one last, each once.

    Going back to one of them takes those after it out: nobody wants to go back to what was left for being bad.
    """
    line: list[str] = []
    for held in reversed((Held(version=alias.version), *alias.earlier)):
        if held.version in line:
            del line[line.index(held.version) + 1 :]
        elif held.version is not None:
            line.append(held.version)
    return line


def _before(
    aliases: Aliases, registry: Registry, name: str, alias: str, pointed: Alias | None, passed_over: list[str]
) -> Flow[ModelVersion]:
    if pointed is None:
        raise ModelNotFound(f"{registry.title} has no alias {alias!r} of {name!r}")
    if not aliases.remembers:
        raise NotSupported(
            f"{registry.title} does not remember where an alias pointed before; name the version to go back to",
            argument="to",
        )
    for earlier in reversed(line_of(pointed)[:-1]):
        version = yield from _version(registry, name, earlier)
        if version and version.ready:
            return version
        passed_over.append(f"{name}:{earlier}")
    gone = f"; {', '.join(passed_over)} are gone" if passed_over else ""
    raise ModelNotFound(f"{pointed} points to {pointed.ref}, and there is nothing before to go back to{gone}")


def _pointed(registry: Registry, name: str, alias: str) -> Flow[Alias | None]:
    try:
        return (yield from registry.alias(name, alias))
    except ModelNotFound:
        return None


def _version(registry: Registry, name: str, version: str) -> Flow[ModelVersion | None]:
    try:
        return (yield from registry.read_version(name, version))
    except ModelNotFound:
        return None


def _metric(version: ModelVersion, metric: str) -> Decimal:
    """Return a number that a version's metadata holds, as it is written there: 0.3 - 0.2 is to be 0.1."""
    found: Any = version.metadata.get(metric)
    if found is None:
        found = version.metadata
        for key in metric.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, (int, float, str)) and not isinstance(found, bool):
        try:
            number = Decimal(str(found).strip())
        except InvalidOperation:
            number = Decimal("nan")
        if number.is_finite():
            return number
        raise InvalidInput(f"the metric {metric!r} of {version.ref} is no number", argument="when", model=version.ref)
    known = ", ".join(sorted(version.metadata)[:_SHOWN]) or "nothing"
    raise InvalidInput(
        f"{version.ref} has no metric {metric!r} in its metadata, which holds: {known}",
        argument="when",
        model=version.ref,
    )

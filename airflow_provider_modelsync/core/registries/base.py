"""What a registry is, and what it may leave out.

A registry knows one system's protocol: names, records, and where bytes go. It moves no bytes and knows no Airflow. All
its methods that talk to the system are flows, run by workers and by the triggerer alike. What only some systems do has
a class of its own in ``capabilities.py``.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow_provider_modelsync.core.archive.choice import Choice
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, ModelSyncError, NotSupported
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, send_once
from airflow_provider_modelsync.core.models import Alias, ModelRef, ModelReference, ModelVersion, Query
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, PushRequest, UploadPlan

ANY = Query()

_log = logging.getLogger("modelsync")


class Capability(StrEnum):
    """What a registry can do; the values complete the sentence "… does not offer to …"."""

    PUSH = "push models"
    PULL = "pull models"
    CHOOSE_VERSION = "choose the version at push"
    FORCE = "replace a version"
    DELETE = "delete versions"
    LABELS = "keep labels"
    METADATA = "keep metadata"
    ALIASES = "keep aliases"
    SIGNATURES = "keep signatures"
    DEPLOY = "deploy models"
    PREDICT = "run predictions"


# What a system can do that keeps models as they are pushed, under versions of the pusher's choice.
KEEPS_MODELS = frozenset(
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


_INSTEAD = {
    Capability.PUSH: "push where the system takes its models from",
    Capability.PULL: "ask the system itself for the files",
    Capability.CHOOSE_VERSION: "name the model alone; the system names the version",
    Capability.FORCE: "push another version",
    Capability.DELETE: "delete the version in the system itself",
    Capability.LABELS: "tell versions apart by their names",
    Capability.METADATA: "keep it in a file of the model",
    Capability.ALIASES: "name the exact version",
    Capability.SIGNATURES: "require them of the registry that the model comes from",
    Capability.DEPLOY: "pull the model where it is served",
    Capability.PREDICT: "pull the model and run it",
}


class Registry(ABC):
    """One system that keeps models, reached through one connection.

    :param settings: the connection's checked fields.
    """

    conn_type: ClassVar[str]
    title: ClassVar[str]
    # What it does; each Offer that it derives from adds its own.
    capabilities: ClassVar[frozenset[Capability]]
    # What to use instead of a capability that is missing, where there is more to say than of any system.
    instead: ClassVar[Mapping[Capability, str]] = {}
    settings_type: ClassVar[type[RegistrySettings]] = RegistrySettings
    # What one can wait for beyond a version's being there.
    states: ClassVar[frozenset[str]] = frozenset({"ready"})

    # Whether an explicit version at push becomes a tag of the version, which the system names itself.
    takes_tags: ClassVar[bool] = False
    # How patterns choose among a version's files.
    choice_type: ClassVar[type[Choice]] = Choice
    # Whether a version is published under a condition. Where it is not, a push looks just before and after: of two who
    # push other bytes under one version at once both may be told that they have, and the last one has.
    publishes_once: ClassVar[bool] = True
    # Whether names have namespaces, as in ``org/name``.
    has_namespaces: ClassVar[bool] = False

    # What its queries know besides names and labels, and can sort by.
    query_facts: ClassVar[tuple[str, ...]] = ()
    query_orders: ClassVar[tuple[str, ...]] = ()

    # Names at the top of a source that are no part of what is pushed: always, or beside the file that is named.
    leaves_out: ClassVar[Mapping[str, str | None]] = {}
    # Where requests go, for registries that are reached by HTTP.
    base_url: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        offers = [base.capability for base in cls.__mro__ if issubclass(base, Offer)]
        cls.capabilities = getattr(cls, "capabilities", frozenset()) | set(filter(None, offers))

    def __init__(self, settings: RegistrySettings) -> None:
        self.settings = settings

    @property
    def identity(self) -> str:
        """What tells this registry from others, whichever connection leads to it; holds no secret."""
        place = (self.base_url or self.settings.host or "").rstrip("/")
        return hashlib.sha256(f"{self.conn_type} {place}".encode()).hexdigest()[:16]

    @property
    def address(self) -> str:
        """Where it is, for people; holds no secret."""
        return show_url(self.base_url or self.settings.host or "", secrets_of(self.settings))

    @property
    def directory(self) -> Path | None:
        """The directory of this machine that holds the registry's models, if one does."""
        return None

    @property
    def prefix(self) -> str | None:
        """Below what in object storage the registry's models lie, as ``bucket/prefix``, if they do."""
        return None

    def overlaps(self, other: Registry) -> bool:
        """Whether one of two different places of models lies in the other."""
        return False

    def policy(self) -> Policy:
        """Return how requests of this registry's flows are made."""
        return send_once

    def proves(self, options: Mapping[str, Any]) -> bool:
        """Whether it refuses a file whose bytes have not the hash that it goes up under.

        Then a push need not compare what it reads, and its way tells such a refusal, as
        :attr:`~..transfer.plan.PutFiles.disproves`.

        :param options: of the push, unchecked.
        """
        return False

    @property
    def checks(self) -> str | None:
        """The kind of checksum that it compares parts of files with, if it does, see :mod:`~..archive.checksums`."""
        return None

    def require(self, capability: Capability) -> None:
        """Raise :class:`NotSupported`, naming the nearest thing on offer, unless the registry has a capability."""
        if capability not in self.capabilities:
            raise self.not_supported(capability)

    def not_supported(self, capability: Capability) -> NotSupported:
        """Return the error that says what is missing and what to use instead."""
        hint = self.instead.get(capability, _INSTEAD[capability])
        return NotSupported(f"{self.title} does not offer to {capability}; {hint}")

    def has_reached(self, version: ModelVersion, state: str) -> bool:
        """Whether a ready version is in one of :attr:`states`."""
        return state in self.states and version.ready

    def parse(self, model: str) -> ModelRef:
        """Read a model reference and check it against the system's grammar.

        Where the system keeps no aliases, an ``@`` may be part of a name.

        :raises InvalidInput: naming what the grammar allows.
        :raises NotSupported: for an alias where the system keeps none.
        """
        keeps_aliases = Capability.ALIASES in self.capabilities
        ref = ModelRef.parse(model, aliases=keeps_aliases)
        try:
            self.check(ref)
        except InvalidInput:
            if not keeps_aliases and ref.version is None and "@" in ref.name:
                raise self.not_supported(Capability.ALIASES) from None
            raise
        return ref

    def query(self, text: str | None, labels: Mapping[str, str] | None = None) -> Query:
        """Read a query in the system's grammar. Parameters and errors as of :meth:`Query.parse`."""
        return Query.parse(text, labels, facts=self.query_facts, orders=self.query_orders)

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        """Return where the system shows a version to people; without one, all its models.

        :return: an http or https URL that holds no secret; ``None`` where the system has no such page.
        """
        return None

    @abstractmethod
    def check(self, ref: ModelRef) -> None:
        """Raise :class:`InvalidInput` unless name, version and alias follow the system's grammar."""

    @abstractmethod
    def test(self) -> Flow[str]:
        """Make one cheap authenticated request; return who and where in a sentence."""

    def get(self, ref: ModelRef, query: Query = ANY) -> Flow[ModelVersion]:
        """Return an exact version that the query chooses, too, or the newest ready one that it chooses.

        An alias is followed once, and names an exact version from then on.

        :raises ModelNotFound: when there is none, naming what differs.
        """
        if ref.version is not None or ref.alias is not None:
            exact = yield from self._exact(ref)
            if misses := query.misses(exact):
                raise ModelNotFound(f"{exact.ref} is not what was asked for: {misses}", model=exact.ref)
            return exact
        chosen = yield from self.latest(ref.name, query)
        if chosen is None:
            wanted = f" with {dict(query.labels)}" if query.labels else ""
            raise ModelNotFound(f"{self.title} has no ready version of {ref.name!r}{wanted}", model=ref.name)
        return chosen

    def _exact(self, ref: ModelRef) -> Flow[ModelVersion]:
        if ref.alias is None:
            assert ref.version is not None
            return (yield from self.read_version(ref.name, ref.version))
        lost: Alias | None = None
        while True:
            pointed = yield from self.alias(ref.name, ref.alias)
            try:
                return (yield from self.read_version(ref.name, pointed.version)).found_by(ref.alias)
            except ModelNotFound:
                # It may have been moved on, and what it had pointed to deleted, in between.
                if lost == pointed:
                    raise ModelNotFound(f"{ref} points to {pointed.ref}, which is not there any more") from None
                lost = pointed

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        """Return what an alias points to; see :class:`~.capabilities.Aliases` for all else about aliases.

        :raises ModelNotFound: when there is no such alias.
        """
        raise self.not_supported(Capability.ALIASES)

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        """Return the newest ready version by (created_at, version) that the query chooses, or ``None``."""
        versions = yield from self.list_versions(name, query)
        return next((version for version in versions if version.ready), None)

    @abstractmethod
    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        """Return an exact version in whatever state it is; raise :class:`ModelNotFound` when there is none."""

    @abstractmethod
    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        """Return the newest ready version of each name that the query chooses, newest first."""

    def list_all(self, query: Query) -> Flow[list[ModelVersion]]:
        """Return the versions of all names that the query chooses, in any state, newest first."""
        found: list[ModelVersion] = []
        for model in (yield from self.list_models(Query(words=query.words, names=query.names))):
            found += yield from self.list_versions(model.name, query)
        return newest_first(found)

    @abstractmethod
    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        """Return the versions of a name that the query chooses, in any state, newest first; empty when none is."""

    def failure_of(self, version: ModelVersion) -> Flow[str]:
        """Return why a version has failed, in the system's words; empty where it does not say."""
        return ""
        yield

    def delete(self, ref: ModelRef) -> Flow[bool]:
        """Delete an exact version; return whether it was there."""
        raise self.not_supported(Capability.DELETE)

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        """Merge labels into a version's, a ``None`` value removing one; return the version as it is then."""
        raise self.not_supported(Capability.LABELS)

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        """Register a version and say how its bytes go up.

        :param request: what to push.
        :raises VersionConflict: when the version holds other bytes and ``force`` is not set.
        :raises InvalidInput: for labels, metadata or options that the system cannot take.
        """
        raise self.not_supported(Capability.PUSH)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        """Publish a version whose bytes have gone up, and return it as the system shows it."""
        raise self.not_supported(Capability.PUSH)

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        """Give up a push, leaving nothing half-made behind."""
        raise self.not_supported(Capability.PUSH)

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        """Say how a version's bytes come down."""
        raise self.not_supported(Capability.PULL)

    def referred(self, reference: ModelReference) -> ModelRef:
        """Return the exact version here that another registry's record points to.

        :raises InvalidInput: when it does not point here, or to nothing exact.
        """
        raise InvalidInput(f"{reference} is not in {self.title}", argument="reference_conn_id")

    def with_hashes(self, plan: DownloadPlan) -> Flow[DownloadPlan]:
        """Return a plan with the hashes of all its files, where the system does not tell them all.

        Files are read for that; where it would be too much, the plan stays as it is.
        """
        return plan
        yield

    def with_digest(self, version: ModelVersion) -> Flow[ModelVersion]:
        """Return a version with its digest, which is found out where the system does not tell it, as far as it can be.

        That may cost a request for each file, so it is for comparing, never for looking.
        """
        if version.digest is not None or Capability.PULL not in self.capabilities:
            return version
        plan = yield from self.plan_pull(version)
        return version.model_copy(update={"digest": (yield from self.with_hashes(plan)).digest})

    def is_newer(self, version: ModelVersion, other: ModelVersion) -> Flow[bool]:
        """Return whether a version of a model is newer than another one."""
        return version.age_key > other.age_key
        yield


def newest_first(versions: Iterable[ModelVersion]) -> list[ModelVersion]:
    """Return versions in the order of lists."""
    return sorted(versions, key=lambda version: version.age_key, reverse=True)


class Offer(ABC):  # noqa: B024  # what its subclasses hold is abstract
    """Something that only some systems do: a registry derives from it, too, and callers ask by :meth:`of`.

    A subclass holds what belongs to it and nothing else. Deriving from it states its capability.
    """

    # What it stands for in a registry's capabilities.
    capability: ClassVar[Capability | None] = None

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """Return a registry as one that does this.

        :raises NotSupported: naming the nearest thing on offer, where it does not.
        """
        if not isinstance(registry, cls):
            raise cls.missing(registry)
        return registry

    @classmethod
    def missing(cls, registry: Registry) -> ModelSyncError:
        """Return the error for a registry that does not do this."""
        assert cls.capability is not None
        return registry.not_supported(cls.capability)


@functools.lru_cache(maxsize=1024)
def note_unknown(what: str, state: str) -> None:
    """Log a state that is not known, once for each thing in it: it is waited on until the wait's own end."""
    _log.warning("%s is in the state %s, which is not known here; the wait goes on", what, show(state))

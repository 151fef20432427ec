"""What a waiting task looks for: conditions, checked by tasks on workers and by triggers on the event loop.

And what such a task takes back when it is not to wait any longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Protocol

from airflow_provider_modelsync.core.errors import DeploymentFailed, InvalidInput, ModelNotFound, VersionFailed
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import (
    EMPTY,
    LATEST,
    Deployment,
    ModelRef,
    ModelVersion,
    Query,
    RollOut,
    Undo,
    VersionStatus,
)
from airflow_provider_modelsync.core.registries.base import ANY, Registry
from airflow_provider_modelsync.core.registries.capabilities import Deploys

READY = "ready"
GONE = "gone"
SERVED = "served"
ABSENT = "it is not there"

# Told why what is waited for is not there yet, at each look.
Tell = Callable[[str], None]


def _nobody(_: str) -> None:
    pass


class Since:
    """What a version must be newer than. Once that is known, it counts whatever becomes of what it was read from.

    :param text: a version of the model; an ISO 8601 time; or a version and, behind a blank, the time when its
        registry made it, as versions' dictionaries tell it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        version, _, time = text.rpartition(" ")
        self._made = _time(time) if version and "T" in time else None
        self._other: ModelVersion | None = None
        self._is_settled = False

    @property
    def version(self) -> str:
        """The version that is named, or what may be one."""
        return self.text if self._made is None else self.text.rpartition(" ")[0]

    def __str__(self) -> str:
        """Return it as text that :class:`Since` reads, with what is known by now."""
        return f"{self._other.version} {self._other.age_key[0].isoformat()}" if self._other else self.text

    def settle(self, registry: Registry, name: str) -> Flow[None]:
        """Find out what it means, as far as that is known by now: what is named may be deleted later on."""
        if self._is_settled:
            return
        try:
            self._other = yield from registry.get(registry.parse(f"{name}:{self.version}"))
        except (ModelNotFound, InvalidInput):
            self._is_settled = self._made is not None or _time(self.text) is not None
        else:
            self._is_settled = True

    def is_before(self, registry: Registry, found: ModelVersion) -> Flow[bool]:
        """Whether a version is newer; a version wins over a time that looks the same.

        :raises InvalidInput: when it is neither, or nobody knows any more when the version was made.
        """
        yield from self.settle(registry, found.name)
        if self._other is not None:
            return (yield from registry.is_newer(found, self._other))
        if self._made is not None:
            return found.age_key > (self._made, self.version)
        if (time := _time(self.text)) is None:
            raise InvalidInput(
                f"{self.text!r} is neither a version of {found.name!r} nor an ISO 8601 time; of a version that was "
                "deleted, hand its whole dictionary over, which tells when it was made",
                argument="newer_than",
            )
        return found.age_key > (time, _LAST)  # any version of that very instant counts as old


_LAST = "\U0010ffff"


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def find_version(
    registry: Registry,
    model: str,
    query: Query,
    *,
    newer_than: Since | str | None = None,
    state: str = READY,
    tell: Tell = _nobody,
) -> Flow[ModelVersion | None]:
    """Return the version that is waited for, or ``None`` when it is not there yet.

    :param registry: where to look.
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one, ``name@alias`` for what an
        alias points to.
    :param query: chooses among ready versions; an exact one is waited for until it is chosen, too.
    :param newer_than: only a version newer than this one counts, see :class:`Since`. Of an alias, only another version
        than this one, older or newer, or a move after that time.
    :param state: what the version must have reached.
    :param tell: told why it is not there yet.
    :raises VersionFailed: when the exact version has failed.
    :raises InvalidInput: when an argument makes no sense.
    """
    ref = registry.parse(model)
    if state not in registry.states:
        raise InvalidInput(
            f"{registry.title} knows the states {sorted(registry.states)}, not {state!r}", argument="state"
        )
    if ref.version and newer_than:
        raise InvalidInput(
            "an exact version is never newer than another", remedy="name only the model", argument="newer_than"
        )
    since = Since(newer_than) if isinstance(newer_than, str) else newer_than
    if since and (since.version == LATEST or "@" in since.version):
        raise InvalidInput(
            f"{since.version!r} moves", remedy="name a version or an ISO 8601 time", argument="newer_than"
        )
    if since and not ref.alias:
        yield from since.settle(registry, ref.name)
    try:
        if ref.alias and since and not (yield from _has_moved(registry, ref.name, ref.alias, since.version)):
            tell(f"{ref} has not moved since {since.version}")
            return None
        found = yield from registry.get(ref, ANY if ref.version or ref.alias else query)
    except ModelNotFound:
        tell(ABSENT)
        return None
    if found.status is VersionStatus.FAILED:
        reason = yield from registry.failure_of(found)
        said = f": {reason}" if reason else ""
        raise VersionFailed(f"{found.ref} has failed in its registry{said}", model=found.ref)
    if not found.ready:
        begun = f" since {found.created_at:%Y-%m-%d %H:%M:%S} UTC" if found.created_at else ""
        tell(f"{found.ref} is {found.status}{begun}")
        return None
    if not registry.has_reached(found, state):
        tell(f"{found.ref} is there, but not {state} yet")
        return None
    if misses := query.misses(found):
        tell(f"{found.ref} is {found.status}, but {misses}")
        return None
    if since and ref.alias and since.version == found.version:  # moved back since it was looked at
        tell(f"{ref} stands for {found.ref} still")
        return None
    if since and not ref.alias and not (yield from since.is_before(registry, found)):
        tell(f"{found.ref} is the newest, which is not newer than {since.version}")
        return None
    return found


def _has_moved(registry: Registry, name: str, alias: str, since: str) -> Flow[bool]:
    """Whether an alias points to another version than one that is named, or was moved after a time.

    The version need not be there any more: it may have been deleted once nothing pointed to it.
    """
    pointed = yield from registry.alias(name, alias)
    if pointed.version == since:
        return False
    time = _time(since)
    if time is None:
        registry.check(ModelRef(name=name, version=since))
        return True
    try:
        yield from registry.read_version(name, since)
    except (ModelNotFound, InvalidInput):
        if pointed.since is None:
            raise InvalidInput(
                f"{registry.title} does not tell when aliases were moved; name the version that {pointed} is to leave",
                argument="newer_than",
            ) from None
        return pointed.since > time
    return True


def describe_absence(registry: Registry, model: str, query: Query) -> Flow[str]:
    """Return what there is instead of a version that is not there; a name that may be misspelt is told as such.

    :param registry: where to look.
    :param model: what is waited for.
    :param query: as for :func:`find_version`.
    """
    ref = registry.parse(model)
    versions = yield from registry.list_versions(ref.name, ANY)
    if versions:
        newest = versions[0]
        count = "1 version" if len(versions) == 1 else f"{len(versions)} versions"
        chosen = f" that is ready and has {dict(query.labels)}" if query.labels else ""
        if ref.alias:
            return f"{ref.name} has {count}, and no alias {ref.alias}"
        what = f"no version {ref.version}" if ref.version else f"none{chosen or ' that is ready'}"
        return f"{ref.name} has {count}, {what}; the newest is {newest.version}, which is {newest.status}"
    names = [version.name for version in (yield from registry.list_models(ANY))]
    near = get_close_matches(ref.name, names, n=3, cutoff=0.6)
    meant = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"there is no model {ref.name!r} yet{meant}"


def own_deployment(registry: Registry, model: str | None = None) -> str:
    """Return the name of the deployment that a registry means where none is named.

    :param model: what is to be served, if anything is.
    :raises InvalidInput: when there is none such.
    """
    own = registry.own_deployment(model) if isinstance(registry, Deploys) else None
    if not own:
        raise InvalidInput("a deployment must be named", argument="deployment")
    return own


def find_deployment(registry: Registry, name: str) -> Flow[Deployment | None]:
    """Return a deployment as it is now, or ``None`` when there is none."""
    try:
        return (yield from Deploys.of(registry).deployment(name))
    except ModelNotFound:
        return None


def find_ready(
    registry: Registry, name: str, revision: str | None = None, tell: Tell = _nobody
) -> Flow[Deployment | None]:
    """Return a deployment that answers requests, or ``None`` when it does not yet.

    :param registry: where to look.
    :param name: of the deployment.
    :param revision: what must answer. After an update the revision before may still be shown, running or failed:
        that says nothing.
    :raises DeploymentFailed: when waiting cannot help, with the system's reason.
    """
    found = yield from find_deployment(registry, name)
    if found is None:
        raise DeploymentFailed(f"the deployment {name} does not exist any more")
    return _if_ready(found, revision, tell)


def _if_ready(found: Deployment, revision: str | None, tell: Tell) -> Deployment | None:
    if revision is not None and found.revision != revision:
        tell(f"{found.name} shows revision {found.revision}, not {revision} yet")
        return None
    if found.failed:
        reason = f": {found.reason}" if found.reason else ""
        raise DeploymentFailed(f"the deployment {found.name} is {found.status}{reason}")
    if found.ready:
        return found
    tell(f"{found.name} is {found.status}{f': {found.reason}' if found.reason else ''}")
    return None


def find_served(
    registry: Registry, name: str, revision: str | None = None, tell: Tell = _nobody
) -> Flow[Deployment | None]:
    """As :func:`find_ready`, for those who wait for what may not be there yet."""
    found = yield from find_deployment(registry, name)
    if found is None:
        tell(ABSENT)
        return None
    return _if_ready(found, revision, tell)


def find_gone(
    registry: Registry, name: str, revision: str | None = None, tell: Tell = _nobody
) -> Flow[Deployment | None]:
    """Return a deployment of which nothing runs any more, or ``None`` while something does."""
    found = yield from find_deployment(registry, name)
    if found is None:
        return Deployment(registry=registry.conn_type, name=name, status="terminated", failed=True, gone=True)
    if found.gone:
        return found
    tell(f"{name} is still {found.status}")
    return None


class _Find(Protocol):
    def __call__(
        self, registry: Registry, name: str, revision: str | None = None, tell: Tell = ...
    ) -> Flow[Deployment | None]: ...


# What a task may wait for a deployment to be.
GOALS: Mapping[str, _Find] = {
    READY: find_ready,
    SERVED: find_served,
    GONE: find_gone,
}


def require_under_way(registry: Registry, deployment: str, revision: str | None) -> Flow[None]:
    """Raise :class:`DeploymentFailed` when a roll-out that was shown already has been taken back by somebody.

    :param revision: what is rolled out.
    """
    now = yield from find_deployment(registry, deployment)
    if now is None or now.gone or now.revision not in (revision, EMPTY):
        what = f" of revision {revision}" if revision else ""
        raise DeploymentFailed(f"the roll-out{what} on {deployment} was taken back")


def take_back(registry: Registry, started: RollOut) -> Flow[str]:
    """Take back what a task has started, and nothing else. Doing it twice does no harm.

    :return: what was done, in a sentence.
    """
    name = started.deployment
    now = yield from find_deployment(registry, name)
    if now is None or now.gone:
        return f"{name} has ended already"
    if started.revision is None and now.revision == started.replaced:
        return f"{name} was not changed"
    # Soon after an update the revision before may still be shown, or nothing yet; any third one is somebody else's.
    is_known = started.revision not in (None, EMPTY)
    if is_known and now.revision not in (started.revision, started.replaced, EMPTY):
        return f"{name} is left as it is: revision {now.revision} has been rolled out meanwhile"
    if started.undo is Undo.TERMINATE:
        yield from Deploys.of(registry).undeploy(name)
        return f"{name} is being terminated"
    if started.undo is Undo.RESTORE:
        ref, config = registry.parse(started.model), {"revision": started.replaced}
        back = yield from Deploys.of(registry).deploy(name, ref, config)
        return f"{name} goes back to what revision {started.replaced} ran, as revision {back.revision}"
    return f"{name} is left as it is: what ran before is not known to have worked"

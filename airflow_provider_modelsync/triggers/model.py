"""Waiting for a model version without a worker, and watching a model for new ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Mapping
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_modelsync import state
from airflow_provider_modelsync.compat import in_thread
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import ModelVersion, Query
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.verbs.wait import READY, Since, find_version
from airflow_provider_modelsync.core.verbs.watch import Watch
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, MIN_POLL_INTERVAL, WaitTrigger
from airflow_provider_modelsync.triggers.watching import Listing, Listings, Memory

DEFAULT_WATCH_INTERVAL = 60.0  # seconds


class ModelVersionTrigger(WaitTrigger):
    """Fires once when a version is ready, has failed, or the deadline has passed.

    Transient errors of the registry never end the wait; they are logged when they begin.

    :param registry_conn_id: the registry's connection.
    :param model: ``name`` for the newest ready version, ``name:version`` for an exact one, ``name@alias`` for what an
        alias points to.
    :param labels: choose among ready versions.
    :param newer_than: a version or an ISO 8601 time that the version must be newer than; see ``find_version``.
    :param state: what the version must have reached.
    :param poll_interval: seconds between two looks, the first one included.
    :param deadline: when to give up, in seconds since the epoch.
    :param manner: as for :class:`~airflow_provider_modelsync.triggers.base.WaitTrigger`.
    """

    def __init__(
        self,
        registry_conn_id: str,
        model: str,
        deadline: float,
        labels: Mapping[str, str] | None = None,
        newer_than: str | None = None,
        state: str = READY,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        manner: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(registry_conn_id, deadline, max(poll_interval, MIN_POLL_INTERVAL), manner)
        self.model = model
        self.labels = labels
        self.newer_than = newer_than
        self._since = None if newer_than is None else Since(newer_than)
        self.state = state

    def arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "labels": dict(self.labels) if self.labels else None,
            "newer_than": self.newer_than,
            "state": self.state,
            "manner": dict(self.manner) if self.manner else None,
        }

    async def look(self, hook: RegistryHook) -> dict[str, Any] | None:
        version = await hook.arun(self._find, model=self.model)
        return {"ref": version.ref, "message": f"{version.ref} is there"} if version else None

    async def give_up(self) -> str:
        return f"{self.model} was not {self.state} when the time was over"

    def _find(self, registry: Registry) -> Flow[ModelVersion | None]:
        query = Query.parse(None, self.labels)
        return find_version(registry, self.model, query, newer_than=self._since, state=self.state, tell=self.see)


class ModelVersionEventTrigger(BaseEventTrigger):
    """Fires once for each version that becomes ready, for an ``AssetWatcher``; never ends by itself.

    With an alias it fires whenever that points to another version than when it looked before, a newer or an older one.
    The versions that are ready or have failed when it looks for the first time never fire. What has fired is kept in
    the asset's state store, once Airflow has the event: a restarted triggerer misses none, and repeats one only when
    it was killed in the moment between. Faults of the registry, and of the connection, only delay the next look.

    An event carries ``registry``, ``name``, ``version``, ``digest`` and ``created_at``, that of a move ``alias``, too.

    :param registry_conn_id: the registry's connection.
    :param model: the model's name, or an alias as ``name@alias``.
    :param poll_interval: seconds between two looks. Watchers of one triggerer with equal arguments share them.
    """

    def __init__(self, registry_conn_id: str, model: str, poll_interval: float = DEFAULT_WATCH_INTERVAL) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.registry_conn_id = registry_conn_id
        self.model = model
        self.poll_interval = max(float(poll_interval), MIN_POLL_INTERVAL)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "registry_conn_id": self.registry_conn_id,
            "model": self.model,
            "poll_interval": self.poll_interval,
        }

    def shared_stream_key(self) -> Hashable:
        return ("modelsync", self.registry_conn_id, self.model, self.poll_interval)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> Listings:
        return Listings(kwargs["registry_conn_id"], kwargs["model"], kwargs["poll_interval"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Listing]) -> AsyncIterator[TriggerEvent]:
        store = getattr(self, "asset_state_store", None)
        if store is None:
            store = await in_thread(state.of_watchers)
        memory = Memory(store, self.registry_conn_id, self.model)
        watch: Watch | None = None
        async for listing in shared_stream:
            watch = watch or await memory.recall(listing.watch)
            for version in watch.news(listing.sight):
                yield TriggerEvent(version.to_event())
            if watch.has_changed or memory.is_behind:
                listing.notes.append((memory, watch.keep()))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in self.filter_shared_stream(self._own_stream()):
            yield event

    async def _own_stream(self) -> AsyncIterator[Listing]:
        async for listing, _ in self.create_shared_stream_producer(self.serialize()[1]).open_stream():
            yield listing
            await listing.settle()

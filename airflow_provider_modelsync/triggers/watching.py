"""What watchers of models share and remember: listings of versions, and which of them have fired."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.compat import AdvanceItem, SharedStreamProducer, in_thread
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.verbs.watch import Seen, Sight, Watch, look_at
from airflow_provider_modelsync.triggers.polling import pause_after, shared

if TYPE_CHECKING:
    from pydantic import JsonValue

log = logging.getLogger("modelsync")


@dataclass(frozen=True, slots=True)
class Listing:
    """All versions of a model at one time, or what an alias points to.

    :param sight: versions in any state, as watches take them.
    :param watch: what tells which of them are new.
    :param notes: who is to remember what, once Airflow has the events that watchers have made of it.
    """

    sight: Sight
    watch: type[Watch] = Seen
    notes: list[tuple[Memory, JsonValue]] = field(default_factory=list)

    async def settle(self) -> None:
        """Have remembered what is to be remembered."""
        for memory, marks in self.notes:
            await memory.keep(marks)

    def drop(self) -> None:
        """Leave it to the next listing of each watcher that goes on."""
        for memory, _ in self.notes:
            memory.is_behind = True


class Listings(SharedStreamProducer):
    """Looks at a model's versions, or at an alias, again and again, for any number of watchers; never ends by itself.

    :param registry_conn_id: the registry's connection.
    :param model: the model's name, or an alias as ``name@alias``.
    :param poll_interval: seconds between two looks; longer while the registry is in trouble.
    """

    def __init__(self, registry_conn_id: str, model: str, poll_interval: float) -> None:
        self._conn_id = registry_conn_id
        self._model = model
        self._interval = poll_interval

    async def open_stream(self) -> AsyncIterator[tuple[Listing, Listing]]:
        polls, failures = shared(), 0
        polls.hold(self._conn_id)
        try:
            while True:
                try:
                    watch, sight = await polls.look(
                        self._conn_id, lambda hook: hook.arun(self._look, model=self._model)
                    )
                except Exception as error:
                    # Whatever it is, somebody may mend it; Airflow would start a failed watcher again at once.
                    if not failures:
                        log.warning("%s cannot be watched for now: %s", self._model, error)
                    failures += 1
                else:
                    failures = 0
                    listing = Listing(sight, watch)
                    yield listing, listing
                await asyncio.sleep(pause_after(failures, self._interval))
        finally:
            await polls.release(self._conn_id)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        for item in batch:
            if item.outcome.failed:  # a watcher has to fire again; it sees no further listing, the others do
                item.broker_payload.drop()
            else:
                await item.broker_payload.settle()

    def _look(self, registry: Registry) -> Flow[tuple[type[Watch], Sight]]:
        return look_at(registry, self._model)


class Memory:
    """What a watcher remembers, in the state store of each asset that it watches for.

    :param store: Airflow's, with one asset or several; ``None`` where there is none, e.g. in tests.
    :param registry_conn_id: the registry's connection.
    :param model: the model's name, or an alias as ``name@alias``.
    """

    def __init__(self, store: Any, registry_conn_id: str, model: str) -> None:
        several = getattr(store, "_by_name", {})  # two assets with equal watchers share one trigger
        self._stores = list(several.values()) if len(several) > 1 else [store] if store is not None else []
        self.is_behind = False  # whether the last that was to be kept is not: the next listing is to make up for it
        self._is_failing = False
        self._key = "modelsync." + hashlib.sha256(f"{registry_conn_id}\n{model}".encode()).hexdigest()[:32]

    async def recall(self, watch: type[Watch]) -> Watch:
        """Return the watch as it was left, or one that begins.

        :param watch: its kind.
        """
        for store in self._stores:
            try:
                if (kept := await _call(store, "get", self._key)) is not None:
                    return watch(kept)
            except (ValueError, PermissionError, NotADirectoryError) as error:
                log.warning("the asset's state store is of no use, the watch begins anew: %s", error)
        return watch()

    async def keep(self, marks: JsonValue) -> None:
        """Remember what has fired; a failure is logged when it begins, for the running watcher knows it anyway."""
        failed = False
        for store in self._stores:
            try:
                await _call(store, "set", self._key, marks)
            except Exception as error:
                failed = True
                if not self._is_failing:
                    log.warning("what has fired cannot be written to the asset's state store for now: %s", error)
        self.is_behind = self._is_failing = failed


async def _call(store: Any, verb: str, *arguments: Any) -> Any:
    if method := getattr(store, f"a{verb}", None):
        return await method(*arguments)
    return await in_thread(getattr(store, verb), *arguments)

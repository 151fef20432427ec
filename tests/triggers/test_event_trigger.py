"""The trigger behind asset watchers: once per new ready version, whatever restarts in between."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.triggers import model as triggers
from airflow_provider_modelsync.triggers.model import ModelVersionEventTrigger
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Respond
from tests.support.versions import deserialize, serialize

_NEEDED = "before Airflow 3.3 watchers share nothing: tests/e2e/test_watch.py has them alone"
_streams = pytest.importorskip("airflow.triggers.shared_stream", reason=_NEEDED)
AckTimeout, SharedStreamManager = _streams.AckTimeout, _streams.SharedStreamManager
AssetStateStoreAccessors = import_module("airflow.sdk.execution_time.context").AssetStateStoreAccessors

CONNECTION = "bentocloud_default"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MIN_POLL_INTERVAL", 0.05)


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    """A server with one version of one model."""
    with BentoCloudStandIn(tmp_path) as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        server.seed("fraud", "v1")
        yield server


class Store:
    """An asset's state store as Airflow offers it to a watcher's trigger, kept in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


class OldStore(Store):
    """As before Airflow 3.3.2: blocking methods only."""

    aget = aset = None  # type: ignore[assignment]

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


class Triggerer:
    """What the triggerer does with watchers: one stream per key, events made persistent a little later."""

    def __init__(self, **limits: Any) -> None:
        self.manager = SharedStreamManager(**limits)
        self.persists = True
        self.fired: list[dict[str, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ids = itertools.count()

    def start(self, store: Any = None, model: str = "fraud") -> asyncio.Task[None]:
        trigger = ModelVersionEventTrigger(CONNECTION, model, 0.05)
        trigger.asset_state_store = store
        task = asyncio.create_task(self._run(next(self._ids), trigger))
        self._tasks.append(task)
        return task

    async def _run(self, number: int, trigger: ModelVersionEventTrigger) -> None:
        key = trigger.shared_stream_key()
        stream = self.manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                seq = self.manager.bind_pending_event(trigger_id=number, key=key)
                self.fired.append(event.payload)
                if self.persists:
                    asyncio.get_running_loop().call_later(0.02, self.manager.confirm_persisted, [seq])
        finally:
            await self.manager.unsubscribe(number, key)

    async def has_fired(self, count: int) -> None:
        """Wait until so many events are there."""
        await until_so(lambda: len(self.fired) >= count)

    @property
    def versions(self) -> list[str]:
        return [payload["version"] for payload in self.fired]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def triggerer(**arguments: Any) -> AsyncIterator[Triggerer]:
    running = Triggerer(**arguments)
    try:
        yield running
    finally:
        await running.stop()


async def looks(server: BentoCloudStandIn, more: int = 3) -> None:
    """Wait for so many more looks."""
    wanted = server.count() + more
    await until_so(lambda: server.count() >= wanted)


async def until_so(holds: Callable[[], object]) -> None:
    """Wait until something holds that nothing tells of."""
    async with asyncio.timeout(300):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_fires_once_for_each_version_that_comes_after_the_first_sight(server: BentoCloudStandIn) -> None:
    async with triggerer() as airflow:
        watcher = airflow.start(Store())
        await looks(server)
        assert airflow.fired == []
        server.seed("fraud", "v2")
        await looks(server)
        server.seed("fraud", "v3")
        await looks(server)
        assert not watcher.done()

    assert airflow.versions == ["v2", "v3"]


async def test_the_event_says_what_is_new(server: BentoCloudStandIn) -> None:
    digest = "sha256:" + "0" * 64
    async with triggerer() as airflow:
        airflow.start(Store())
        await looks(server)
        server.seed("fraud", "v2", metadata={"modelsync": {"digest": digest}})
        await looks(server)

    (event,) = airflow.fired
    assert set(event) == {"registry", "name", "version", "digest", "created_at"}
    assert (event["registry"], event["name"], event["version"]) == ("bentocloud", "fraud", "v2")
    assert event["digest"] == digest
    assert json.loads(json.dumps(event)) == event


async def test_a_version_fires_when_it_becomes_ready(server: BentoCloudStandIn) -> None:
    async with triggerer() as airflow:
        airflow.start(Store())
        await looks(server)
        slow = server.seed("fraud", "slow", status="uploading")
        server.seed("fraud", "fast")
        await looks(server)
        assert airflow.versions == ["fast"]
        slow.finish("success")
        await looks(server)

    assert airflow.versions == ["fast", "slow"]


def marks(store: Store) -> int:
    """How many versions a watch has kept in a store."""
    return sum(len(json.loads(value)) for value in [*store.values.values()])


@pytest.mark.parametrize("kind", [Store, OldStore], ids=lambda kind: kind.__name__)
async def test_a_restarted_triggerer_misses_nothing_and_repeats_nothing(
    server: BentoCloudStandIn, kind: type[Store]
) -> None:
    store = kind()
    server.seed("fraud", "slow", status="uploading")
    async with triggerer() as airflow:
        airflow.start(store)
        await until_so(lambda: marks(store) == 1)
        server.seed("fraud", "v2")
        server.seed("fraud", "converting", status="uploading")
        await until_so(lambda: marks(store) == 2)
        await looks(server)
    server.seed("fraud", "v3")
    server.model("fraud", "converting").finish("success")
    async with triggerer() as again:
        again.start(store)
        await until_so(lambda: marks(store) == 4)
        await looks(server)

    assert airflow.versions == ["v2"]
    assert sorted(again.versions) == ["converting", "v3"]


async def test_an_event_that_airflow_never_got_fires_again(server: BentoCloudStandIn) -> None:
    store = Store()
    async with triggerer() as airflow:
        airflow.start(store)
        await looks(server)
        airflow.persists = False  # as when it is killed now
        server.seed("fraud", "v2")
        await looks(server)
    async with triggerer() as again:
        again.start(store)
        await looks(server)

    assert airflow.versions == again.versions == ["v2"]


async def test_two_dags_have_a_watch_each_and_one_poll(server: BentoCloudStandIn) -> None:
    async with triggerer() as airflow:
        stores = Store(), Store()
        for store in stores:
            airflow.start(store)
        await looks(server)
        server.seed("fraud", "v2")
        await looks(server)
        (group,) = airflow.manager._groups.values()
        assert len(group._subscribers) == 2

    assert airflow.versions == ["v2", "v2"]
    assert all(len(json.loads(*store.values.values())) == 2 for store in stores)


async def test_a_trigger_for_two_assets_keeps_its_watch_with_both(
    server: BentoCloudStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = [Asset("one"), Asset("two")]
    accessors = AssetStateStoreAccessors(inlets=assets)
    stores = {name: Store() for name in ("one", "two")}
    monkeypatch.setattr(accessors, "_by_name", stores)
    async with triggerer() as airflow:
        airflow.start(accessors)
        await looks(server)
    server.seed("fraud", "v2")
    stores["one"].values.clear()
    async with triggerer() as again:
        again.start(accessors)
        await looks(server)

    assert (airflow.versions, again.versions) == ([], ["v2"])
    assert stores["one"].values == stores["two"].values != {}


async def test_it_works_without_a_state_store_and_without_sharing(server: BentoCloudStandIn) -> None:
    trigger = ModelVersionEventTrigger(CONNECTION, "fraud", 0.05)
    events = trigger.run()
    first = asyncio.ensure_future(anext(events))
    await looks(server)
    server.seed("fraud", "v2")

    assert (await first).payload["version"] == "v2"
    await events.aclose()


async def test_a_state_store_with_nonsense_is_a_first_sight(server: BentoCloudStandIn) -> None:
    store = Store()
    async with triggerer() as airflow:
        airflow.start(store)
        await looks(server)
    (key,) = store.values
    store.values[key] = json.dumps({"odd": 1})
    async with triggerer() as again:
        again.start(store)
        await looks(server)
        server.seed("fraud", "v2")
        await looks(server)

    assert (airflow.versions, again.versions) == ([], ["v2"])


@pytest.mark.parametrize("kind", [PermissionError, NotADirectoryError])
async def test_a_state_store_that_is_refused_is_a_first_sight(server: BentoCloudStandIn, kind: type[OSError]) -> None:
    class Refused(Store):
        async def aget(self, key: str, default: Any = None) -> Any:
            raise kind("v1 in /srv/state is not of this user alone")

    async with triggerer() as airflow:
        watcher = airflow.start(Refused())
        await looks(server)
        server.seed("fraud", "v2")
        await looks(server)
        assert not watcher.done()

    assert airflow.versions == ["v2"]


async def test_a_state_store_that_cannot_be_written_only_costs_the_memory(server: BentoCloudStandIn) -> None:
    class Broken(Store):
        async def aset(self, key: str, value: Any) -> None:
            raise RuntimeError("the database is gone")

    async with triggerer() as airflow:
        watcher = airflow.start(Broken())
        await looks(server)
        server.seed("fraud", "v2")
        await looks(server)
        assert not watcher.done()

    assert airflow.versions == ["v2"]


class FailingOnce(Store):
    """One whose n-th write fails.

    :param write: n, from 1.
    """

    def __init__(self, write: int) -> None:
        super().__init__()
        self._writes = itertools.count(1)
        self._write = write

    async def aset(self, key: str, value: Any) -> None:
        if next(self._writes) == self._write:
            raise RuntimeError("the API server restarts")
        await super().aset(key, value)


async def test_a_first_sight_that_could_not_be_written_is_written_at_the_next_look(server: BentoCloudStandIn) -> None:
    store = FailingOnce(write=1)
    async with triggerer() as airflow:
        airflow.start(store)
        await looks(server, 5)
    server.seed("fraud", "v2")
    async with triggerer() as again:
        again.start(store)
        await looks(server)

    assert (airflow.versions, again.versions) == ([], ["v2"])


async def test_an_event_that_could_not_be_remembered_is_remembered_at_the_next_look(server: BentoCloudStandIn) -> None:
    store = FailingOnce(write=2)
    async with triggerer() as airflow:
        airflow.start(store)
        await looks(server)
        server.seed("fraud", "v2")
        await looks(server, 5)
    async with triggerer() as again:
        again.start(store)
        await looks(server)

    assert (airflow.versions, again.versions) == (["v2"], [])


async def test_nothing_is_written_twice(server: BentoCloudStandIn) -> None:
    class Counting(Store):
        writes = 0

        async def aset(self, key: str, value: Any) -> None:
            self.writes += 1
            await super().aset(key, value)

    store = Counting()
    async with triggerer() as airflow:
        airflow.start(store)
        await looks(server, 5)
        assert store.writes == 1
        server.seed("fraud", "v2")
        await looks(server, 5)

    assert store.writes == 2


async def test_a_first_sight_is_remembered_though_another_watcher_fails(server: BentoCloudStandIn) -> None:
    class Hanging(Store):
        async def aget(self, key: str, default: Any = None) -> Any:
            await asyncio.Event().wait()

    class Telling(Store):
        def __init__(self) -> None:
            super().__init__()
            self.written = asyncio.Event()

        async def aset(self, key: str, value: Any) -> None:
            await super().aset(key, value)
            self.written.set()

    store = Telling()
    async with triggerer(max_subscriber_queue=5) as airflow:
        airflow.start(Hanging())
        airflow.start(store)
        async with asyncio.timeout(300):
            await store.written.wait()


async def test_an_event_that_airflow_does_not_get_in_time_is_never_remembered(server: BentoCloudStandIn) -> None:
    store, clock = Store(), [0.0]
    async with triggerer(ack_timeout=0.5, _now=lambda: clock[0]) as airflow:
        watcher = airflow.start(store)
        await looks(server)
        airflow.persists = False
        server.seed("fraud", "v2")
        await airflow.has_fired(1)
        clock[0] = 1.0
        with pytest.raises(AckTimeout):
            await asyncio.wait_for(watcher, 300)
    async with triggerer() as again:
        again.start(store)
        await looks(server)

    assert airflow.versions == again.versions == ["v2"]


@pytest.mark.parametrize("fault", [Respond(501), Respond(401), Respond(404)], ids=lambda fault: str(fault.status))
async def test_no_fault_ends_the_watch(server: BentoCloudStandIn, fault: Respond) -> None:
    async with triggerer() as airflow:
        airflow.start(Store())
        await looks(server)
        server.fault("GET", "", fault, times=3)
        server.seed("fraud", "v2")
        await looks(server, 6)

    assert airflow.versions == ["v2"]


async def test_a_model_that_does_not_exist_yet_is_watched(server: BentoCloudStandIn) -> None:
    del server.repositories["fraud"]
    async with triggerer() as airflow:
        airflow.start(Store())
        await looks(server)
        server.seed("fraud", "v1")
        await looks(server)

    assert airflow.versions == ["v1"]


async def move(version: str) -> None:
    """Have the alias ``champion`` point to a version."""
    await asyncio.to_thread(get_registry_hook(CONNECTION).set_alias, f"fraud:{version}", "champion")


async def test_an_alias_fires_when_it_points_to_another_version(server: BentoCloudStandIn) -> None:
    server.seed("fraud", "v2")
    await move("v1")
    async with triggerer() as airflow:
        watcher = airflow.start(Store(), "fraud@champion")
        await looks(server, 6)
        server.seed("fraud", "v3")
        await looks(server, 6)
        assert airflow.fired == []
        for count, version in enumerate(("v2", "v1"), 1):  # to a newer one, and back to an older one
            await move(version)
            await airflow.has_fired(count)
            await move(version)
            await looks(server, 6)
        assert not watcher.done()

    assert airflow.versions == ["v2", "v1"]
    assert set(airflow.fired[0]) == {"registry", "name", "version", "digest", "created_at", "alias"}
    assert [(event["name"], event["alias"]) for event in airflow.fired] == [("fraud", "champion")] * 2


async def test_an_alias_that_comes_later_fires_and_one_that_comes_back_does_not(server: BentoCloudStandIn) -> None:
    async with triggerer() as airflow:
        airflow.start(Store(), "fraud@champion")
        await looks(server, 6)
        await move("v1")
        await airflow.has_fired(1)
        await asyncio.to_thread(get_registry_hook(CONNECTION).delete_alias, "fraud", "champion")
        await looks(server, 6)
        await move("v1")
        await looks(server, 6)

    assert airflow.versions == ["v1"]


async def test_a_restarted_triggerer_sees_where_an_alias_was_moved_meanwhile(server: BentoCloudStandIn) -> None:
    store = Store()
    server.seed("fraud", "v2")
    await move("v1")
    async with triggerer() as airflow:
        airflow.start(store, "fraud@champion")
        await looks(server, 6)
    await move("v2")
    async with triggerer() as again:
        again.start(store, "fraud@champion")
        await again.has_fired(1)
        await looks(server, 6)
    async with triggerer() as once_more:
        once_more.start(store, "fraud@champion")
        await looks(server, 6)

    assert (airflow.versions, again.versions, once_more.versions) == ([], ["v2"], [])


async def test_watchers_of_one_alias_share_their_looks(server: BentoCloudStandIn) -> None:
    server.seed("fraud", "v2")
    await move("v1")
    async with triggerer() as airflow:
        stores = Store(), Store()
        for store in stores:
            airflow.start(store, "fraud@champion")
        airflow.start(Store(), "fraud")
        await looks(server, 6)
        await move("v2")
        await airflow.has_fired(2)
        counts = sorted(len(group._subscribers) for group in airflow.manager._groups.values())
        await looks(server, 6)

    assert counts == [1, 2]
    assert airflow.versions == ["v2", "v2"]
    assert [list(map(json.loads, store.values.values())) for store in stores] == [["v2"], ["v2"]]


def test_a_stored_trigger_is_rebuilt_equal() -> None:
    before = ModelVersionEventTrigger(CONNECTION, "fraud", 30)
    path, arguments = before.serialize()

    again = resolve_name(path)(**deserialize(serialize(arguments)))

    assert again.serialize() == (path, arguments)
    assert again.shared_stream_key() == before.shared_stream_key()
    assert hash(again.shared_stream_key())


def test_what_differs_is_not_shared() -> None:
    keys = {
        ModelVersionEventTrigger(*arguments).shared_stream_key()
        for arguments in (
            (CONNECTION, "fraud"),
            (CONNECTION, "fraud@champion"),
            (CONNECTION, "fraud@staging"),
            ("other", "fraud"),
            (CONNECTION, "churn"),
            (CONNECTION, "fraud", 30.0),
        )
    }

    assert len(keys) == 6


def test_airflow_takes_it_for_a_watcher() -> None:
    asset = model_asset(
        CONNECTION, "fraud", watchers=[AssetWatcher("new", ModelVersionEventTrigger(CONNECTION, "fraud"))]
    )

    assert [watcher.trigger.model for watcher in asset.watchers] == ["fraud"]  # type: ignore[attr-defined]

"""What carries a registry's wishes out: drivers for its flows, with its client and request policy, and the mover."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, SyncDriver
from airflow_provider_modelsync.core.flow.threads import Threads
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.registries.base import Registry

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.transfer.mover import Mover


@contextmanager
def driver_for(registry: Registry, cancel: CancelToken | None = None) -> Iterator[SyncDriver]:
    """Yield a driver that runs a registry's flows in this thread; its connections are closed at the end.

    :param registry: whose flows.
    :param cancel: ends them.
    """
    if registry.base_url is None:
        yield SyncDriver(cancel=cancel)
        return
    with network.client(registry.settings, registry.base_url) as client:
        with closing(SyncDriver(client, policy=registry.policy(), cancel=cancel)) as driver:
            yield driver


@asynccontextmanager
async def async_driver_for(registry: Registry) -> AsyncIterator[AsyncDriver]:
    """Yield a driver that runs a registry's flows on the event loop; its connections are closed at the end."""
    conn_id = registry.settings.conn_id
    # However often drivers are made for a place that hangs. A connection that leads elsewhere by now is not held up.
    threads = Threads.of(conn_id, registry.address)
    if registry.base_url is None:
        yield AsyncDriver(threads=threads)
        return
    # In a thread, since it reads certificates.
    make_client = partial(network.async_client, registry.settings, registry.base_url)
    async with await Threads.of(conn_id).run(make_client) as client:
        yield AsyncDriver(client, policy=registry.policy(), threads=threads)


def mover_for(registry: Registry, control: Control) -> Mover:
    """Return what moves a registry's bodies of size; to be closed."""
    from airflow_provider_modelsync.core.transfer.mover import Mover

    return Mover(registry.settings, base_url=registry.base_url, cancel=control.cancel)

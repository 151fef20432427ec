"""What a forked process does with what its parent has made: it neither waits for it nor breaks it."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import airflow_provider_modelsync
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock, generation
from airflow_provider_modelsync.core.flow.loop import LoopThread
from airflow_provider_modelsync.core.http import network
from airflow_provider_modelsync.core.registries.modelstore import store
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.mover import Mover
from airflow_provider_modelsync.core.transfer.watchdog import Pace, Watch, Watchdog
from tests.standins.fault_server import Do, FaultServer, Send, answer

ROOT = Path(next(iter(airflow_provider_modelsync.__path__)))
LOCKS = re.compile(r"threading\.(Lock|RLock|Condition|Semaphore)\b")
SECONDS = 60  # after which a child counts as stuck


def in_a_child(work: Callable[[], object]) -> None:
    """Run something in a forked process; it must end well, and soon."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the very point
        child = os.fork()
    if not child:
        try:
            work()
            os.write(write, b"done")
        except BaseException as error:
            os.write(write, repr(error).encode()[:500])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb", closefd=True) as said:
        if not select.select([said], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert said.read() == b"done"


class Held:
    """A lock that another thread holds."""

    def __init__(self, lock: Lock) -> None:
        self._lock, self._end, self._holds = lock, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)

    def _hold(self) -> None:
        with self._lock:
            self._holds.set()
            self._end.wait(SECONDS)

    def __enter__(self) -> None:
        self._thread.start()
        self._holds.wait(SECONDS)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_a_lock_that_another_thread_held_is_free_in_the_child() -> None:
    lock = Lock()

    def take() -> None:
        with lock:
            assert not lock.acquire(blocking=False)
        assert lock.acquire(blocking=False)

    with Held(lock):
        assert not lock.acquire(blocking=False)
        in_a_child(take)
        assert not lock.acquire(blocking=False)  # the parent's is as it was
    take()


def test_whoever_forks_while_they_hold_a_lock_leaves_it_in_both_processes() -> None:
    lock = Lock()
    before = generation()

    def take() -> None:
        assert generation() == before + 1
        lock.release()
        with lock:
            pass

    with lock:
        in_a_child(take)
    assert generation() == before
    with lock:
        pass


def test_what_is_shared_by_a_whole_process_can_be_used_in_the_child() -> None:
    with Held(store._records._lock):
        in_a_child(lambda: store._records.get(("nothing",)))


def test_no_lock_of_the_package_survives_a_fork() -> None:
    """Also those that are made later: each is one of ours."""
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if LOCKS.search(path.read_text()))
    assert set(found) == {"core/flow/forks.py"}


def test_a_child_opens_connections_of_its_own() -> None:
    settings = RegistrySettings.read("c", {"host": "http://127.0.0.1"})
    with (
        FaultServer([answer(200, b"{}")]) as server,
        closing(Mover(settings)) as mover,
        network.client(settings) as client,
    ):

        def ask() -> None:
            with mover.get(server.url) as download:
                assert b"".join(map(bytes, download.blocks())) == b"{}"
            assert client.get(server.url).content == b"{}"

        ask()
        ask()
        assert server.connections == 2  # they are kept
        in_a_child(ask)
        assert server.connections == 4
        ask()
        assert server.connections == 4  # nobody has taken the parent's away


def test_a_childs_watchdog_leaves_the_parents_transfers_alone() -> None:
    settings = RegistrySettings.read("c", {"host": "http://127.0.0.1"})
    dog, stopped = Watchdog(), CancelToken()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"
    release = threading.Event()

    with (
        FaultServer([Send(head), Do(lambda: release.wait(SECONDS)), Send(b"}")]) as server,
        closing(Mover(settings)) as mover,
    ):
        mover._watchdog = dog
        with mover.get(server.url, cancel=stopped) as download:

            def watch() -> None:
                stopped.cancel()  # in the child, whose watchdog must not cut what the parent still reads
                with dog.over(Watch(Pace(), CancelToken())) as own:
                    threading.Event().wait(0.4)
                    own.check("waiting")
                assert dog._thread is not None
                assert dog._thread.is_alive()

            in_a_child(watch)
            release.set()
            assert b"".join(map(bytes, download.blocks())) == b"{}"


def test_a_child_has_an_event_loop_of_its_own() -> None:
    loop = LoopThread()

    async def work() -> int:
        return 7

    def run() -> None:
        assert loop.run(work(), CancelToken()) == 7

    run()
    in_a_child(run)
    loop.close()

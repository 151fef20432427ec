"""Two tasks that push to one version, in any order of their requests, killed, cancelled, refused, and heard of late.

Each task is the real code in a coroutine that stops before each request. Whatever becomes of the other one: what a task
has reported as success can be read, with its digest. ``MODELSYNC_STEPS`` is how many requests are made for each
registry at least; ``make test-schedules`` takes more than 20,000 in all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import pytest
from greenlet import getcurrent, greenlet
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelNotFound
from airflow_provider_modelsync.core.flow import exchange, parallel
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover
from tests.conformance.bench import Bench, needs
from tests.core.registries.modelstore.actors import Task, paused

pytestmark = pytest.mark.faults

STEPS = int(os.environ.get("MODELSYNC_STEPS", "60"))

_refused_at: WeakKeyDictionary[greenlet, int | None] = WeakKeyDictionary()  # task → requests until one is refused


class Refused(Exception):
    """What a task fails with for good, as the test wants it."""


@pytest.fixture(autouse=True)
def stopped(no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every request wait until the task that it belongs to is told to go on."""

    def here(work: Callable[[], object], name: str) -> Any:
        work()
        return SimpleNamespace(is_alive=lambda: False, join=lambda *_: None)

    monkeypatch.setattr(parallel, "start_thread", here)
    send, call, put = exchange._send, Mover.call, Mover.put

    def refuse() -> None:
        left = _refused_at.get(getcurrent())
        if left is not None:
            _refused_at[getcurrent()] = left - 1 if left else None
            if not left:
                raise Refused

    def paused_send(client: httpx.Client, request: httpx.Request) -> httpx.Response:
        def run() -> httpx.Response:
            exchange._this_thread.wanted = None  # of the task that has begun one last
            return send(client, request)

        refuse()
        return paused(f"{request.method} {request.url}", run, writes=request.method not in ("GET", "HEAD"))

    def paused_call(self: Mover, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        refuse()
        run = lambda: call(self, method, url, *arguments, **options)  # noqa: E731
        return paused(f"{method} {url}", run, writes=method not in ("GET", "HEAD"))

    def paused_put(self: Mover, url: str, *arguments: Any, cancel: object = None, **options: Any) -> Any:
        refuse()
        return paused(f"PUT {url}", lambda: put(self, url, *arguments, **options), writes=True)

    def paused_sleep(self: CancelToken, seconds: float) -> None:
        paused("a while", lambda: None)
        self.check()

    monkeypatch.setattr(CancelToken, "sleep", paused_sleep)
    monkeypatch.setattr(exchange, "_send", paused_send)
    monkeypatch.setattr(Mover, "call", paused_call)
    monkeypatch.setattr(Mover, "put", paused_put)


@dataclass
class Pusher:
    """A task, and what may end it."""

    task: Task
    token: CancelToken
    late: list[Callable[[], object]] = field(default_factory=list)


EVENTS = st.tuples(st.integers(0, 1), st.sampled_from(["go"] * 12 + ["kill", "cancel", "late"]), st.integers(1, 6))
FAILS_AT = st.none() | st.integers(0, 20)


@pytest.mark.slow
@pytest.mark.once_each
@pytest.mark.networked
@pytest.mark.row("P13", "D6")
@needs(Capability.PUSH)
def test_what_was_reported_as_success_can_be_read_whatever_became_of_the_other_task(bench: Bench) -> None:
    sources = [bench.source(text) for text in ("one", "two")]
    digests = [digest_directory(source) for source in sources]
    numbers, steps = count(), 0

    def pusher(source: int, model: str, *, fails_at: int | None, is_last_try: bool) -> Pusher:
        token, worker = CancelToken(), Bench(bench.under_test, bench.scratch)

        def push() -> object:
            _refused_at[getcurrent()] = fails_at
            try:
                return worker.push(
                    sources[source], model, control=Control(cancel=token, workers=1, is_last_try=is_last_try)
                )
            except Refused as error:
                return error

        return Pusher(Task(push, digest=digests[source]), token)

    @settings(
        max_examples=5,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        second=st.sampled_from([0, 0, 0, 1]),
        fails_at=st.tuples(FAILS_AT, FAILS_AT),
        last=st.tuples(st.booleans(), st.booleans()),
        events=st.lists(EVENTS, max_size=40),
    )
    def run(second: int, fails_at: tuple[Any, Any], last: tuple[bool, bool], events: list[Any]) -> None:
        nonlocal steps
        name = f"{bench.name}{next(numbers)}"
        model = bench.model(0, name)
        tasks = [
            pusher(source, model, fails_at=fails_at[number], is_last_try=last[number])
            for number, source in enumerate((0, second))
        ]
        story = [f"{model}: fails at {fails_at}, last tries {last}, second source {second}"]

        def go(which: int, times: int) -> None:
            nonlocal steps
            for _ in range(times):
                if tasks[which].task.is_over:
                    return
                story.append(f"{which} {tasks[which].task.next}")
                tasks[which].task.step()
                steps += 1

        to_the_end = [(which, "go", 20) for _ in range(50) for which in (0, 1)]  # each may wait for the other
        for which, what, times in [*events, *to_the_end]:
            one = tasks[which]
            if what == "late" and one.late:
                story.append(f"{which} heard of late")
                _quietly(one.late.pop())
            elif what == "cancel":
                one.token.cancel()
                story.append(f"{which} cancelled")
            elif what == "kill" and not one.task.is_over:
                story.append(f"{which} killed")
                if call := one.task.kill():
                    one.late.append(call)
            else:
                go(which, times)
        for one in tasks:
            assert one.task.is_over, "\n".join(story[-80:])
            for call in one.late:
                _quietly(call)
        bench.under_test.settle()
        _check(bench, name, [one.task.result for one in tasks], digests, story)

    while steps < STEPS:
        run()


def _quietly(call: Callable[[], object]) -> None:
    """Let a request arrive of which nobody hears any more."""
    with suppress(Exception):
        call()


def _check(bench: Bench, name: str, results: list[Any], digests: list[str], story: list[str]) -> None:
    told = "\n".join([*story, *map(repr, results)])
    succeeded = [result for result in results if isinstance(result, ModelVersion)]
    for result in succeeded:
        try:
            found = bench.get(result.ref)
        except ModelNotFound:
            raise AssertionError(f"what was reported as success is gone:\n{told}") from None
        wanted = {result.digest} if bench.registry.publishes_once else {one.digest for one in succeeded}
        assert found.ready, told
        assert found.digest in wanted, told
        if bench.offers(Capability.PULL):
            target = bench.target()
            bench.pull(result.ref, target)
            assert digest_directory(target) == found.digest, told
    for version in bench.ready_versions(name):
        assert bench.get(f"{name}:{version}").digest in digests, told

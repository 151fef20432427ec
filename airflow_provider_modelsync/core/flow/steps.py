"""Flows: protocol logic written once, run by workers in threads and by the triggerer on its event loop.

A flow is a generator that yields steps, receives their results, and returns its own result. It does no I/O
itself, so the same code serves both drivers. Compose flows with ``yield from``::

    def newest(self, name: str) -> Flow[str | None]:
        files = yield from call(os.listdir, name)
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import httpx

from airflow_provider_modelsync.core.flow import exchange
from airflow_provider_modelsync.core.flow.cancel import CancelToken, Grace
from airflow_provider_modelsync.core.flow.forks import generation
from airflow_provider_modelsync.core.flow.loop import LoopThread
from airflow_provider_modelsync.core.flow.parallel import for_each, interruptible
from airflow_provider_modelsync.core.flow.threads import Threads

_LAST_SECONDS = 2.5  # for cleaning up after a kill, which ends all within 4
_LIGHT = 64 << 10  # bytes received by a flow before it is moved off the event loop
_ENTRY = 512  # bytes that an entry of a list counts for

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Call:
    """A step that blocks: run in place by the sync driver, in a thread by the async one.

    :param fn: what to call.
    :param is_remote: it waits for another machine: the sync driver does not wait for it once it is cancelled.
    """

    fn: Callable[[], Any]
    is_remote: bool = False


@dataclass(frozen=True, slots=True)
class Await:
    """A step that only asynchronous code can do: the sync driver runs it on an event loop in a thread of its own."""

    fn: Callable[[], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Sleep:
    """A step that waits.

    :param seconds: how long.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """A step that sends one request once, without the request policy. The policy itself yields these.

    :param request: the request.
    :param seconds: how long it may take as a whole, its answer's body included.
    """

    request: httpx.Request
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """A step that runs several flows at a time; its result is theirs, in order. The first error ends all.

    :param flows: the flows.
    :param at_once: how many of them.
    """

    flows: tuple[Flow[Any], ...]
    at_once: int


Step = httpx.Request | Call | Await | Sleep | Exchange | Together
Flow = Generator[Step, Any, T]
Policy = Callable[[httpx.Request], Flow[httpx.Response]]


def call(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
    """Run a blocking function as a step and return what it returns."""
    result: T = yield Call(partial(fn, *args, **kwargs))
    return result


def call_remote(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
    """Run a function that waits for another machine as a step and return what it returns."""
    result: T = yield Call(partial(fn, *args, **kwargs), is_remote=True)
    return result


def wait_for(fn: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
    """Run a coroutine function as a step and return what it returns. All steps of one driver share an event loop."""
    result: T = yield Await(partial(fn, *args, **kwargs))
    return result


def send(request: httpx.Request) -> Flow[httpx.Response]:
    """Send a request under the driver's request policy and return the response, its body read."""
    response: httpx.Response = yield request
    return response


def sleep(seconds: float) -> Flow[None]:
    """Wait some seconds."""
    yield Sleep(seconds)


def together(flows: Iterable[Flow[T]], *, at_once: int = 8) -> Flow[list[T]]:
    """Run several flows at a time and return what they return, in order. The first error ends all."""
    results: list[T] = yield Together(tuple(flows), at_once)
    return results


def send_once(request: httpx.Request) -> Flow[httpx.Response]:
    """The plainest policy: one request, one response."""
    response: httpx.Response = yield Exchange(request)
    return response


class SyncDriver:
    """Runs flows in the calling thread.

    :param client: sends the requests; may be left out for registries that make none.
    :param policy: turns one request into exchanges, waits and a response or an error.
    :param cancel: looked at before every step and during waits.
    """

    def __init__(
        self,
        client: httpx.Client | None = None,
        *,
        policy: Policy = send_once,
        cancel: CancelToken | None = None,
    ) -> None:
        self._client = client
        self._policy = policy
        self._cancel = cancel or CancelToken()
        self._loop = LoopThread()

    def close(self) -> None:
        """End what steps have left running on the event loop."""
        self._loop.close()

    def shielded(self, *, in_haste: bool = False) -> SyncDriver:
        """Return a driver for cleaning up, which a cancellation ends only some seconds later.

        :param in_haste: whether those seconds begin to run now.
        """
        token = Grace(self._cancel, _LAST_SECONDS)
        if in_haste:
            token.begin()
        return SyncDriver(self._client, policy=self._policy, cancel=token)

    def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end.

        :return: what the flow returns.
        :raises Cancelled: when the token is cancelled; the flow sees it first and may clean up.
        """
        step = _Stepper(flow)
        while not step.finished:
            try:
                self._cancel.check()
                result = self._perform(step.current)
            except BaseException as error:  # the flow's own ``finally`` blocks must run for every kind
                step.fail(error)
            else:
                step.succeed(result)
        return step.result

    def _perform(self, step: Step) -> Any:
        match step:
            case Call(fn, is_remote=True):
                return interruptible(fn, self._cancel)
            case Call(fn):
                return fn()
            case Await(fn):
                return self._loop.run(fn(), self._cancel)
            case Sleep(seconds):
                return self._cancel.sleep(seconds)
            case Exchange(request, seconds):
                return exchange.send(_needed(self._client), request, cancel=self._cancel, seconds=seconds)
            case Together(flows, at_once):
                return self._run_together(flows, at_once)
            case request:
                return self.run(self._policy(request))

    def _run_together(self, flows: tuple[Flow[Any], ...], at_once: int) -> list[Any]:
        results: list[Any] = [None] * len(flows)

        def run_one(number: int, cancel: CancelToken) -> None:
            with contextlib.closing(SyncDriver(self._client, policy=self._policy, cancel=cancel)) as driver:
                results[number] = driver.run(flows[number])

        for_each(run_one, range(len(flows)), workers=at_once, cancel=self._cancel)
        return results


class AsyncDriver:
    """Runs flows on an event loop. Parameters as for :class:`SyncDriver`, with an async client.

    :param threads: for calls that block; without them the driver has its own.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None = None,
        *,
        policy: Policy = send_once,
        threads: Threads | None = None,
    ) -> None:
        self._client = client
        self._policy = policy
        self._threads = threads or Threads()
        self._own_threads = Threads()  # for what only computes: calls that hang shall not hold it up

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return what it returns.

        A flow that has received much goes on in a thread, since it is going to work on it for a while.
        """
        step = _Stepper(flow)
        weight = 0
        while not step.finished:
            try:
                result = await self._perform(step.current)
                weight += _weight_of(result)
            except BaseException as error:
                step.fail(error)
            else:
                if weight < _LIGHT:
                    step.succeed(result)
                else:
                    _set_old_objects_aside(generation())
                    await self._off_the_loop(step, result)
        return step.result

    async def _perform(self, step: Step) -> Any:
        match step:
            case Call(fn):
                return await self._threads.run(fn)
            case Await(fn):
                return await fn()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Exchange(request, seconds):
                return await exchange.asend(_needed(self._client), request, seconds=seconds)
            case Together(flows, at_once):
                return await self._run_together(flows, at_once)
            case request:
                return await self.run(self._policy(request))

    async def _run_together(self, flows: tuple[Flow[Any], ...], at_once: int) -> list[Any]:
        room = asyncio.Semaphore(at_once)

        async def run_one(flow: Flow[Any]) -> Any:
            async with room:
                return await self.run(flow)

        tasks = [asyncio.create_task(run_one(flow)) for flow in flows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _off_the_loop(self, step: _Stepper[Any], result: Any) -> None:
        """Let a flow go on in a thread, up to its next step."""
        going = asyncio.ensure_future(self._own_threads.run(lambda: step.succeed(result)))
        try:
            await asyncio.shield(going)
        except asyncio.CancelledError as cancelled:
            # It only computes, so it ends soon; and a flow that runs cannot be told.
            while not going.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([going])
            if not step.finished:
                step.fail(cancelled)
            else:
                raise


class _Stepper(Generic[T]):
    """What both drivers share: the step to perform next, and the result once the flow has ended."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self._advance(lambda: next(flow))

    def succeed(self, result: Any) -> None:
        self._advance(lambda: self._flow.send(result))

    def fail(self, error: BaseException) -> None:
        self._advance(lambda: self._flow.throw(error))

    def _advance(self, move: Callable[[], Step]) -> None:
        try:
            self.current: Step = move()
            self.finished = False
        except StopIteration as stop:
            self.result: T = stop.value
            self.finished = True


@functools.lru_cache(maxsize=1)
def _set_old_objects_aside(process: int) -> None:
    """Have full garbage collections pass over what there is already, once in a process.

    Much that is received soon brings one about, and it stops all threads while it looks through all that the process
    holds: some 200,000 objects of a triggerer's modules, which takes longer than an event loop may stand still.

    :param process: which one.
    """
    gc.freeze()


def _weight_of(result: Any) -> int:
    """Return about how many bytes a step's result holds that its flow is going to look at."""
    if isinstance(result, httpx.Response):
        return len(result.content)
    return _ENTRY * len(result) if isinstance(result, (list, tuple, dict, set, frozenset)) else 0


def _needed(client: Any) -> Any:
    if client is None:
        raise RuntimeError("this driver was built without an HTTP client")
    return client

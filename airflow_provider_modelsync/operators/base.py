"""What all tasks of this provider share: the hook, cancellation, resume, and how errors reach Airflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import Asset, AssetAlias, BaseOperator, BaseOperatorLink, get_current_context
from airflow.sdk.definitions.asset import AssetRef

from airflow_provider_modelsync import state
from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.compat import AirflowException, AirflowFailException, AirflowTaskTimeout
from airflow_provider_modelsync.core import failure
from airflow_provider_modelsync.core.arguments import Text
from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError, Permanent, Unauthorized
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from airflow_provider_modelsync.lineage import Trace
from airflow_provider_modelsync.links import RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.arguments import TakesArguments

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion


log = logging.getLogger("modelsync")

DEFAULT_CONN_ID = "modelsync_default"


def airflow_error(error: ModelSyncError) -> AirflowException:
    """Return Airflow's error for one of ours: permanent ones end the task, others leave it its retries."""
    kind = AirflowFailException if isinstance(error, Permanent) else AirflowException
    return kind(str(error))


class TaskCheckpoint:
    """The task's state store as a checkpoint. It only saves work, so its failures never fail a transfer.

    :param store: ``context["task_state_store"]``, or what stands in for it.
    """

    _PREFIX = "modelsync."

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def of(cls, context: Context) -> TaskCheckpoint | None:
        """Return the checkpoint of the running task, or ``None`` where there is no state store."""
        store: Any = context.get("task_state_store")
        if store is None:
            store = state.of_task(context.get("ti"))
        return cls(store) if store is not None else None

    def get(self, key: str) -> JsonValue:
        with _tolerating("read"):
            value: JsonValue = self._store.get(self._PREFIX + key)
            return value
        return None

    def set(self, key: str, value: JsonValue) -> None:
        with _tolerating("written"):
            self._store.set(self._PREFIX + key, value)

    def delete(self, key: str) -> None:
        with _tolerating("cleared"):
            self._store.delete(self._PREFIX + key)


@contextmanager
def _tolerating(done: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("the task's state store could not be %s, this try goes on without it: %s", done, error)


class TellsOfModels(TakesArguments):
    """What operators and sensors share: what one run of a task tells its outlets, OpenLineage, its links, and its log
    when it fails."""

    outlets: list[Any]
    operator_extra_links: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trace = Trace()
        self.kept_links: dict[str, str] = {}

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Say in the log what an error of ours means for this task, and turn it into Airflow's."""
        try:
            yield
        except ModelSyncError as error:
            self.tell_of_failure(error)
            raise airflow_error(error) from None
        except PermissionError as error:  # of an object storage: all others are ours already
            denied = Unauthorized(f"permission is denied: {error}")
            self.tell_of_failure(denied)
            raise airflow_error(denied) from None

    @property
    def hook_in_use(self) -> RegistryHook | None:
        """The hook that the task works with, as far as there is one."""
        return None

    def offer_kept_links(self) -> None:
        """Have Airflow ask this try for those links that there is something for: it stores the others empty."""
        links = type(self).operator_extra_links
        self.operator_extra_links = [
            link for link in links if getattr(link, "kept_as", None) in (None, *self.kept_links)
        ]

    def _link_to_console(self) -> None:
        """Have a failed task lead to its registry's console, too."""
        hook = self.hook_in_use
        if hook is None or RegistryConsoleLink.kept_as in self.kept_links:
            return
        with suppress(ModelSyncError):  # of a connection that leads nowhere
            if (page := hook.page_of()) and (context := _running()):
                remember_link(context, lambda: page)

    def tell_of_failure(self, error: ModelSyncError) -> None:
        """Write into the task's log what failed, where, what to do, and whether it goes on by itself."""
        self._link_to_console()
        task: Any = self
        for line in failure.block(error, f"the task {task.task_id!r}", self.outlook_after(error)):
            log.error("%s", line)
        log.debug("where it was raised:", exc_info=error)

    def outlook_after(self, error: ModelSyncError) -> str:
        """Return whether the task goes on by itself after an error."""
        task: Any = self
        return failure.outlook(error, _tries_left(), task.retries)

    def tell_outlets(self, context: Context, asset: Asset, event: Mapping[str, JsonValue]) -> None:
        """Put an event into those of the task's outlets: assets, references to them, and aliases, which get the asset.

        :param asset: what the event is about.
        """
        for outlet in self.outlets:
            if isinstance(outlet, AssetAlias):
                context["outlet_events"][outlet].add(asset, extra=dict(event))
            elif isinstance(outlet, (Asset, AssetRef)):
                context["outlet_events"][outlet].extra.update(event)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read and written; its provider calls this."""
        return self._trace.to_openlineage()


class ModelSyncOperator(TellsOfModels, BaseOperator):
    """Base of all operators: arguments that are read once, hooks that end their work when the task is killed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Made here, not in execute: a kill may come before execute has begun.
        self._cancel_token = CancelToken()
        self._is_over = False
        self._began = time.monotonic()
        self._hooks: dict[str, RegistryHook] = {}
        self._hook_in_use: RegistryHook | None = None

    @property
    def hook_in_use(self) -> RegistryHook | None:
        return self._hook_in_use

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Do within it whatever the task does: it reads the arguments first, and turns errors into Airflow's.

        What belongs to one try is made anew for the next one, which may run on the same object.
        """
        self._began = time.monotonic()
        if self._is_over:  # whatever was told to stop since then, it was not this try
            self._cancel_token, self._trace, self._is_over = CancelToken(), Trace(), False
            self.kept_links = {}
            self._hooks = {}
        try:
            with self.translated():
                self.read_arguments()
                yield
        except AirflowTaskTimeout:
            over = Cancelled("execution_timeout is over", remedy="Give the task a longer execution_timeout")
            self.tell_of_failure(over)
            raise
        finally:
            self._is_over = True
            self.offer_kept_links()

    def deadline_in(self, seconds: float) -> float:
        """Return when a wait ends that this try may take, in seconds since the epoch.

        Airflow does not apply ``execution_timeout`` while a task is deferred.

        :param seconds: how long the wait itself may take.
        """
        if self.execution_timeout is not None:
            left = self.execution_timeout.total_seconds() - (time.monotonic() - self._began)
            seconds = min(seconds, max(0.0, left))
        return time.time() + seconds

    def hook_for(self, registry_conn_id: str, context: Context | None = None) -> RegistryHook:
        """Return a connection's hook, one for each try, which ends its work when this task is killed.

        :param registry_conn_id: the connection's id.
        :param context: tells whether another try may resume a transfer.
        """
        if registry_conn_id not in self._hooks:
            self._hooks[registry_conn_id] = get_registry_hook(registry_conn_id)
        hook = self._hooks[registry_conn_id]
        hook.cancel_token = self._cancel_token
        self._hook_in_use = hook
        if context is not None:
            hook.is_last_try = _is_last_try(context)
        return hook

    def post_execute(self, context: Any, result: Any = None) -> None:
        """Forget what was remembered for a next try, where Airflow itself keeps nothing: this one has succeeded."""
        super().post_execute(context, result)
        if context.get("task_state_store") is None:
            with _tolerating("cleared"):
                state.forget_task(context.get("ti"))

    def tell_of_failure(self, error: ModelSyncError) -> None:
        if isinstance(error, Cancelled) and not error.has_own_remedy:
            stopped = "stopped by Airflow (marked failed, cleared, or worker shutdown)"
            error = Cancelled(stopped, remedy=self._how_to_go_on())
        super().tell_of_failure(error)

    def _how_to_go_on(self) -> str:
        hook = self._hook_in_use
        if hook is None or hook.is_last_try or hook.tally.is_lost or not (hook.tally.total and hook.tally.done):
            return "Clear the task to do it again"
        return f"Clear the task to go on from {100 * hook.tally.done // hook.tally.total} %"

    def on_kill(self) -> None:
        """End the transfer within 4 s."""
        self._cancel_token.cancel()


class RegistryOperator(ModelSyncOperator):
    """Base of the operators that work on one registry.

    :param registry_conn_id: the registry's connection (templated).
    """

    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(),)
    # Whether the versions that it emits are what it takes, not what it makes.
    takes_models: ClassVar[bool] = False

    def __init__(self, *, registry_conn_id: Text = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id

    def get_hook(self, context: Context | None = None) -> RegistryHook:
        """Return the connection's hook; see :meth:`hook_for`."""
        return self.hook_for(self.registry_conn_id, context)

    def emit(self, context: Context, version: ModelVersion) -> None:
        """Describe the version that the task is about, in the events of its outlets and in its lineage."""
        self.tell_outlets(context, model_asset(self.registry_conn_id, version.name), version.to_event())
        (self._trace.read if self.takes_models else self._trace.written).append((self.registry_conn_id, version))
        remember_link(context, lambda: self.get_hook().page_of(version))


def _is_last_try(context: Context) -> bool:
    instance: Any = context.get("ti")
    tries, allowed = getattr(instance, "try_number", None), getattr(instance, "max_tries", None)
    return isinstance(tries, int) and isinstance(allowed, int) and tries > allowed


def _running() -> Any:
    """Return the context of the running task; an empty one outside of tasks."""
    try:
        return get_current_context()
    except RuntimeError:
        return {}


def _tries_left() -> int | None:
    """Return how many tries the running task has left; ``None`` outside of tasks."""
    instance: Any = _running().get("ti")
    tries, allowed = getattr(instance, "try_number", None), getattr(instance, "max_tries", None)
    return max(0, allowed - tries + 1) if isinstance(tries, int) and isinstance(allowed, int) else None

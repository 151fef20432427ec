"""Operators that have models served, and end that again."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink, conf
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.log import mask_secret
from pydantic import ValidationError

from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError, RegistryUnavailable, Retryable
from airflow_provider_modelsync.core.models import Deployment, ModelRef, ModelVersion, RollOut, Undo, VersionStatus
from airflow_provider_modelsync.core.wait import GOALS, GONE, READY, find_deployment, take_back
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.links import RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint, translated
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, outcome_of
from airflow_provider_modelsync.triggers.deployment import DeploymentTrigger

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context
    from pydantic import JsonValue

_UNDO_SECONDS = 3.0  # a killed task has five seconds until the worker ends it
_MEMORY = "deployment"
_ENVIRONMENTS = frozenset({"env", "envs", "environment"})


class _DeploymentOperator(RegistryOperator):
    """Base of the operators that change a deployment and may wait for the outcome.

    :param deployment: its name (templated).
    :param wait_for_completion: return once the change has happened, not only been accepted.
    :param timeout: how long to wait for that, in seconds or as a timedelta.
    :param poll_interval: seconds between two looks while waiting.
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry.
    """

    goal: ClassVar[str]

    def __init__(
        self,
        *,
        deployment: str,
        wait_for_completion: bool = True,
        timeout: float | timedelta = 3600,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deployment = deployment
        self.wait_for_completion = wait_for_completion
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    def execute_complete(
        self, context: Context, event: Mapping[str, Any] | None, model: str | None = None
    ) -> dict[str, JsonValue]:
        """Take over from the trigger: look at the deployment once more and return it.

        :param model: what is served, for systems that do not tell.
        """
        with translated():
            outcome_of(event)
            deployment = self._look((event or {}).get("revision"))
            if deployment is None:
                raise RegistryUnavailable(f"{self.deployment} was {self.goal} a moment ago and is not any more")
            return self._finish(context, deployment, model)

    def _wait(
        self, revision: str | None = None, started: RollOut | None = None, *, model: str | None = None
    ) -> Deployment:
        timeout = self.timeout.total_seconds() if isinstance(self.timeout, timedelta) else float(self.timeout)
        deadline = time.time() + timeout
        # Looking once first spares a deferral, and keeps the trigger from firing at once.
        found = self._patiently(revision)
        if found is None and self.deferrable:
            self.defer(
                trigger=DeploymentTrigger(
                    registry_conn_id=self.registry_conn_id,
                    deployment=self.deployment,
                    deadline=deadline,
                    goal=self.goal,
                    revision=revision,
                    started=started.model_dump(mode="json") if started else None,
                    poll_interval=self.poll_interval,
                ),
                method_name="execute_complete",
                kwargs={"model": model},
                timeout=timedelta(seconds=timeout + 60),
            )
        while found is None:
            if time.time() >= deadline:
                self._take_back(started)
                raise RegistryUnavailable(f"{self.deployment} was not {self.goal} after {timeout:.0f} s")
            self._cancel_token.sleep(min(self.poll_interval, max(0.0, deadline - time.time())))
            found = self._patiently(revision)
        return found

    def _patiently(self, revision: str | None) -> Deployment | None:
        try:
            return self._look(revision)
        except Cancelled:
            raise
        except Retryable as error:
            self.log.warning("%s; the wait goes on", error)
            return None

    def _look(self, revision: str | None) -> Deployment | None:
        return self.get_hook().run(lambda registry: GOALS[self.goal](registry, self.deployment, revision))

    def _take_back(self, started: RollOut | None) -> None:
        if started is None:
            return
        hook = get_registry_hook(self.registry_conn_id)  # the task's own may have been told to stop
        clock = threading.Timer(_UNDO_SECONDS, hook.cancel)
        clock.start()
        try:
            self.log.info(hook.run(lambda registry: take_back(registry, started), model=started.model))
        except Exception as error:
            self.log.warning("What was started on %s could not be taken back: %s", started.deployment, error)
        finally:
            clock.cancel()

    def _finish(self, context: Context, deployment: Deployment, model: str | None = None) -> dict[str, JsonValue]:
        return deployment.model_copy(update={"model": deployment.model or model}).to_xcom()


class DeployModelOperator(_DeploymentOperator):
    """Have a model served, under a name that lasts.

    Creates the deployment, or gives an existing one a new configuration. Safe to repeat: what runs exactly so already
    is left alone, and a retried task goes on with the roll-out that its last try has begun.

    A task that is killed, or runs out of time, takes back what it has started and nothing else: a deployment that it
    created is terminated; one that it updated goes back to the revision before, if that one was serving, else it is
    left as it is, and the log says so. A roll-out that the system itself gives up is left for inspection.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name (templated).
    :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one
        (templated).
    :param config: what the system understands (templated). Values of environment variables are masked.
    :param wait_for_completion: return once the deployment answers requests, not only once it is accepted.
    :param timeout: how long to wait for that, in seconds or as a timedelta.
    :param poll_interval: seconds between two looks while waiting.
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry.
    :return: the deployment as a dictionary.
    """

    template_fields: Sequence[str] = ("registry_conn_id", "deployment", "model", "config")
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(),)
    ui_color = "#d0e0e3"
    goal = READY
    takes_models = True

    def __init__(self, *, model: str, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.config = config

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        super().render_template_fields(context, jinja_env)
        self._mask()  # rendered fields are shown to everybody

    def execute(self, context: Context) -> dict[str, JsonValue]:
        self._mask()  # Airflow renders a mapped task's fields by itself
        with translated():
            memory = _Memory(TaskCheckpoint.of(context), self._asked())
            with self._taking_back_when_killed() as started:
                deployment = self._deploy(memory, started)
                model = deployment.model
                remember_link(context, deployment.page or deployment.url)
                if self.wait_for_completion:
                    begun = started[-1] if started else None
                    # A deployment that was not there before has no older revision to be mistaken for it.
                    is_new = begun is not None and begun.replaced is None
                    deployment = self._wait(None if is_new else deployment.revision, begun, model=model)
            return self._finish(context, deployment, model)

    def _deploy(self, memory: _Memory, started: list[RollOut]) -> Deployment:
        """Begin the roll-out, or find the one that is begun; append what this task has to answer for."""
        hook = self.get_hook()
        before = hook.run(lambda registry: find_deployment(registry, self.deployment))
        unfinished = memory.unfinished()
        ours = unfinished if unfinished and before and unfinished.revision == before.revision else None
        if ours and before and not before.failed and memory.is_same:
            self.log.info("going on with revision %s, which an earlier try has begun", before.revision)
            started.append(ours)
            return before.model_copy(update={"model": before.model or ours.model})
        if ours is None or (before and before.ready):
            ours = RollOut(
                deployment=self.deployment,
                model=self.model,
                undo=_undo(before),
                replaced=before.revision if before else None,
            )
        # Before the request: its answer may be lost.
        started.append(ours.model_copy(update={"revision": None}))
        memory.keep(started[-1])
        deployment = hook.deploy(self.deployment, self.model, config=self.config)
        started.clear()
        if before and before.revision is not None and deployment.revision == before.revision:
            # Nothing was to be changed. An earlier try may have done it, though, and not have lived to see the answer.
            is_ours = unfinished and unfinished.revision in (None, before.revision) and not before.ready
            ours = unfinished if is_ours else None
        if ours:
            model = deployment.model or self.model
            started.append(ours.model_copy(update={"revision": deployment.revision, "model": model}))
            memory.keep(started[-1])
        return deployment

    def _finish(self, context: Context, deployment: Deployment, model: str | None = None) -> dict[str, JsonValue]:
        _Memory(TaskCheckpoint.of(context), self._asked()).forget()
        if served := deployment.model or model:
            self.emit(context, self._version(served))
        return super()._finish(context, deployment, model)

    @contextmanager
    def _taking_back_when_killed(self) -> Iterator[list[RollOut]]:
        started: list[RollOut] = []
        try:
            yield started
        except (Cancelled, AirflowTaskTimeout):
            self._take_back(started[-1] if started else None)
            raise

    def _version(self, model: str) -> ModelVersion:
        """Return a version as its registry describes it, or as far as its reference does."""
        hook = self.get_hook()
        try:
            return hook.get(model)
        except Cancelled:
            raise
        except ModelSyncError as error:
            self.log.warning("%s; the task's events and lineage lack its digest", error)
        ref = ModelRef.parse(model)
        return ModelVersion(
            registry=hook.conn_type, name=ref.name, version=ref.version or "", status=VersionStatus.UNKNOWN
        )

    def _mask(self) -> None:
        for value in _environment_values(self.config):
            mask_secret(value)

    def _asked(self) -> str:
        return json.dumps(
            [self.registry_conn_id, self.deployment, self.model, self.config or {}], sort_keys=True, default=str
        )


class UndeployModelOperator(_DeploymentOperator):
    """End a deployment; one that has ended already, or never was, is no error.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name (templated).
    :param wait_for_completion: return once nothing of it runs any more, not only once its end is accepted.
    :param timeout: how long to wait for that, in seconds or as a timedelta.
    :param poll_interval: seconds between two looks while waiting.
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry.
    :return: the deployment as a dictionary.
    """

    template_fields: Sequence[str] = ("registry_conn_id", "deployment")
    ui_color = "#f4cccc"
    goal = GONE

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with translated():
            deployment = self.get_hook().undeploy(self.deployment)
            if self.wait_for_completion and not deployment.gone:
                deployment = self._wait()
            return self._finish(context, deployment)


class _Memory:
    """What the tries of one task tell each other about its roll-out.

    :param store: where; nothing is remembered without one.
    :param asked: what this try is to do. Kept as a slow, salted hash, for it may hold secrets.
    """

    def __init__(self, store: TaskCheckpoint | None, asked: str) -> None:
        self._store = store
        self._asked = asked
        kept = store.get(_MEMORY) if store else None
        self._kept: Mapping[str, Any] = kept if isinstance(kept, dict) else {}

    @property
    def is_same(self) -> bool:
        """Whether the last try was to do the same."""
        salt = self._kept.get("salt")
        return isinstance(salt, str) and self._hash(salt) == self._kept.get("asked")

    def unfinished(self) -> RollOut | None:
        """Return what an earlier try has begun and nobody has seen the end of."""
        try:
            return RollOut.model_validate(self._kept["started"])
        except (KeyError, ValidationError):
            return None

    def keep(self, started: RollOut) -> None:
        """Remember a roll-out."""
        if self._store:
            salt = secrets.token_hex(16)
            started_as_json = started.model_dump(mode="json")
            self._store.set(_MEMORY, {"salt": salt, "asked": self._hash(salt), "started": started_as_json})

    def forget(self) -> None:
        """Forget a roll-out that has come to its end: from now on it is not this task's to take back."""
        if self._store:
            self._store.delete(_MEMORY)

    def _hash(self, salt: str) -> str:
        return hashlib.scrypt(self._asked.encode(), salt=salt.encode(), n=1 << 14, r=8, p=1, dklen=32).hex()


def _undo(before: Deployment | None) -> Undo:
    if before is None or before.gone:
        return Undo.TERMINATE
    return Undo.RESTORE if before.ready and before.revision else Undo.LEAVE


def _environment_values(value: Any, *, inside: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not (inside and key == "name"):
                yield from _environment_values(item, inside=inside or key in _ENVIRONMENTS)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _environment_values(item, inside=inside)
    elif inside and isinstance(value, str) and value:
        yield value

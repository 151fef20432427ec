"""Operators that have models served, have them predict, and end that again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink, ObjectStoragePath
from airflow.sdk.log import mask_secret
from pydantic import ValidationError

from airflow_provider_modelsync.compat import AirflowTaskTimeout
from airflow_provider_modelsync.core.arguments import (
    Command,
    DeploymentName,
    Flag,
    Options,
    Patterns,
    Reference,
    Seconds,
    SignaturePolicy,
    Span,
    Values,
    is_url,
    structure,
)
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DeploymentFailed,
    InvalidInput,
    ModelSyncError,
    Permanent,
    RegistryUnavailable,
    Retryable,
)
from airflow_provider_modelsync.core.models import (
    Deployment,
    ModelRef,
    ModelVersion,
    Predictions,
    RollOut,
    Ticket,
    Undo,
    VersionStatus,
)
from airflow_provider_modelsync.core.registries.capabilities import PredictsAlone
from airflow_provider_modelsync.core.verbs.fetch import needs_fetch
from airflow_provider_modelsync.core.verbs.wait import (
    GOALS,
    GONE,
    READY,
    find_deployment,
    own_deployment,
    require_under_way,
    take_back,
)
from airflow_provider_modelsync.hooks.registry import RegistryHook, get_registry_hook
from airflow_provider_modelsync.links import DeploymentLink, RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.arguments import DEFERRABLE, Place
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint
from airflow_provider_modelsync.operators.fetch import fetch
from airflow_provider_modelsync.operators.storage import local_source, publish_file, resolve
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, outcome_of
from airflow_provider_modelsync.triggers.deployment import DeploymentTrigger
from airflow_provider_modelsync.triggers.predict import PredictTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

_UNDO_SECONDS = 3.0  # a killed task has five seconds until the worker ends it
_MEMORY = "deployment"
_ENVIRONMENTS = frozenset({"env", "envs", "environment"})
_ARGUMENTS = frozenset({"deployment", "inputs", "output", "ticket"})  # of a prediction, so no options


class _DeploymentOperator(RegistryOperator):
    """Base of the operators that change a deployment and may wait for the outcome.

    :param deployment: its name (templated).
    :param wait_for_completion: return once the change has happened, not only been accepted (templated).
    :param timeout: how long to wait for that, in seconds or as a timedelta (templated).
    :param poll_interval: seconds between two looks while waiting (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    """

    goal: ClassVar[str]

    def __init__(
        self,
        *,
        deployment: DeploymentName | None,
        wait_for_completion: Flag = True,
        timeout: Span = 3600,
        poll_interval: Seconds = DEFAULT_POLL_INTERVAL,
        deferrable: Flag = DEFERRABLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deployment = deployment
        self.wait_for_completion = wait_for_completion
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    @cached_property
    def _name(self) -> str:
        return self.deployment or own_deployment(self.get_hook().get_conn(), self._served)

    @property
    def _served(self) -> str | None:
        """What is to be served, if anything is."""
        return None

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None,
        model: str | None = None,
        joined: bool = False,
        deadline: float | None = None,
    ) -> dict[str, JsonValue]:
        """Take over from the trigger: look at the deployment once more and return it.

        :param model: what is served, for systems that do not tell.
        :param joined: whether it was under way already, begun by an earlier try perhaps that has taken it back since:
            then it is begun anew.
        :param deadline: when this try gives up, in seconds since the epoch.
        """
        with self.attempt():
            try:
                outcome_of(event)
            except Permanent as error:
                if not joined:
                    raise
                return self._begin_anew(context, error, deadline)
            deployment = self._look(self.get_hook(), (event or {}).get("revision"))
            if deployment is None:
                raise RegistryUnavailable(f"{self._name} was {self.goal} a moment ago and is not any more")
            return self._finish(context, deployment, model)

    def _begin_anew(self, context: Context, error: Permanent, deadline: float | None) -> dict[str, JsonValue]:
        """Do again what others, an earlier try perhaps, had begun and then taken back."""
        raise error

    def _wait(
        self,
        deadline: float,
        revision: str | None = None,
        started: RollOut | None = None,
        *,
        joined: bool = False,
        model: str | None = None,
    ) -> Deployment:
        timeout = max(0.0, deadline - time.time())
        hook = self.get_hook()
        # Looking once first spares a deferral, and keeps the trigger from firing at once.
        shown = started.revision if started else revision
        found = self._patiently(hook, revision, joined, shown)
        if found is None and self.deferrable:
            self.defer(
                trigger=DeploymentTrigger(
                    registry_conn_id=self.registry_conn_id,
                    deployment=self._name,
                    deadline=deadline,
                    goal=self.goal,
                    revision=revision,
                    started=started.model_dump(mode="json") if started else None,
                    joined=joined,
                    poll_interval=self.poll_interval,
                ),
                method_name="execute_complete",
                kwargs={"model": model, "joined": joined, "deadline": deadline},
                timeout=timedelta(seconds=timeout + 60),
            )
        while found is None:
            if time.time() >= deadline:
                self._take_back(started)
                raise RegistryUnavailable(f"{self._name} was not {self.goal} after {timeout:.0f} s")
            self._cancel_token.sleep(min(self.poll_interval, max(0.0, deadline - time.time())))
            found = self._patiently(hook, revision, joined, shown)
        return found

    def _patiently(
        self, hook: RegistryHook, revision: str | None, joined: bool, shown: str | None
    ) -> Deployment | None:
        try:
            if (found := self._look(hook, revision)) or not joined:
                return found
            hook.run(lambda registry: require_under_way(registry, self._name, shown))
        except Cancelled:
            raise
        except Retryable as error:
            self.log.warning("%s; the wait goes on", error)
        return None

    def _look(self, hook: RegistryHook, revision: str | None) -> Deployment | None:
        return hook.run(lambda registry: GOALS[self.goal](registry, self._name, revision))

    def _take_back(self, started: RollOut | None) -> None:
        if started is None:
            return
        try:
            with _parting_hook(self.registry_conn_id) as hook:
                self.log.info(hook.run(lambda registry: take_back(registry, started), model=started.model))
        except Exception as error:
            self.log.warning("What was started on %s could not be taken back: %s", started.deployment, error)

    def _finish(self, context: Context, deployment: Deployment, model: str | None = None) -> dict[str, JsonValue]:
        remember_link(context, lambda: deployment.page)
        return deployment.model_copy(update={"model": deployment.model or model}).to_xcom()


class DeployModelOperator(_DeploymentOperator):
    """Have a model served, under a name that lasts.

    Creates the deployment, or gives an existing one a new configuration. Where the system serves from its own host, the
    model is brought there first, whatever ``wait_for_completion`` says. Safe to repeat: what runs exactly so already
    is left alone, and a retried task goes on with the roll-out that its last try has begun.

    A task that is killed, or runs out of time, takes back what it has started and nothing else: a deployment that it
    created is terminated; one that it updated goes back to the revision before, if that one was serving, else it is
    left as it is, and the log says so. A roll-out that the system itself gives up is left for inspection.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name; left out where the deployment is the model itself (templated).
    :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one
        (templated).
    :param config: what the system understands (templated). Values of environment variables are masked.
    :param allowed_formats: of which all files of the model must be, by what they hold, as ``["safetensors", "json"]``:
        it is pulled and looked at first, and exactly that version deployed (templated).
    :param scan: what looks at the files likewise: the name of an entry point in the group ``modelsync.scanners``, or a
        command, which ends with 0 when they are clean (templated).
    :param signatures: what becomes of a model that no trusted signer vouches for: ``"off"`` looks at no signatures,
        ``"warn"`` says so, ``"require"`` refuses it; the connection's when left out (templated).
    :param trusted_signers: files of public keys and certificates, or ``identity|issuer`` of Sigstore; the connection's
        when left out (templated).
    :param wait_for_completion: return once the deployment answers requests, not only once it is accepted (templated).
    :param timeout: how long to wait for that, in seconds or as a timedelta (templated).
    :param poll_interval: seconds between two looks while waiting (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    :return: the deployment as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(), DeploymentLink())
    ui_color = "#d0e0e3"
    goal = READY
    takes_models = True

    def __init__(
        self,
        *,
        model: Reference,
        deployment: DeploymentName | None = None,
        config: Options | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(deployment=deployment, **kwargs)
        self.model = model
        self.config = config
        self.allowed_formats = allowed_formats
        self.scan = scan
        self.signatures = signatures
        self.trusted_signers = trusted_signers
        self._looked_at: str | None = None  # what this object has found to be fine

    @property
    def _served(self) -> str:
        return self.model

    def _do_render_template_fields(self, *args: Any, **kwargs: Any) -> None:
        # Rendered fields are shown to everybody. Airflow renders a mapped task's by this method, too, and only by it.
        super()._do_render_template_fields(*args, **kwargs)
        self._mask()

    def execute(self, context: Context) -> dict[str, JsonValue]:
        self._mask()  # again: that method is Airflow's own, and logs are not to depend on it
        with self.attempt():
            self._inspect(context)
            deadline = self.deadline_in(_seconds(self.timeout))
            self._fetch(context, deadline)
            return self._roll_out(context, deadline)

    def execute_fetched(
        self, context: Context, event: Mapping[str, Any] | None, joined: bool = False, deadline: float | None = None
    ) -> dict[str, JsonValue]:
        """Take over from the trigger that waited for the model to be where it is served.

        Parameters as for :meth:`execute_complete`.
        """
        self._mask()
        with self.attempt():
            deadline = deadline or self.deadline_in(_seconds(self.timeout))
            try:
                outcome_of(event)
            except Permanent as error:
                if not joined:
                    raise
                self.log.warning("%s; asking for it anew", error)
                self._fetch(context, deadline)
            return self._roll_out(context, deadline)

    def _begin_anew(self, context: Context, error: Permanent, deadline: float | None) -> dict[str, JsonValue]:
        self._mask()
        self.log.warning("%s; beginning it anew", error)
        _Memory(TaskCheckpoint.of(context), self._asked()).forget()
        return self._roll_out(context, deadline or self.deadline_in(_seconds(self.timeout)), is_anew=True)

    def _inspect(self, context: Context) -> None:
        """Look at the model, if that is asked for; what is deployed then is exactly the version that was looked at."""
        if self.model == self._looked_at:
            return
        hook = self.get_hook(context)
        policy = self.signatures or hook.get_conn().settings.signatures
        if (self.allowed_formats, self.scan) != (None, None) or policy != "off":
            looked_at = hook.inspect(
                self.model,
                allowed_formats=self.allowed_formats,
                scan=self.scan,
                signatures=self.signatures,
                trusted_signers=self.trusted_signers,
            )
            self.model = self._looked_at = looked_at.ref

    def _fetch(self, context: Context, deadline: float) -> None:
        hook = self.get_hook(context)
        config = self.config or {}
        if hook.run(lambda registry: needs_fetch(registry, self.deployment, registry.parse(self.model), config)):
            then = "execute_fetched" if self.deferrable else None
            arguments = {"deadline": deadline}
            fetch(self, hook, self.model, deadline, self.poll_interval, then=then, arguments=arguments)

    def _roll_out(self, context: Context, deadline: float, *, is_anew: bool = False) -> dict[str, JsonValue]:
        self._inspect(context)  # again where the task has slept meanwhile: another object goes on then
        memory = _Memory(TaskCheckpoint.of(context), self._asked())
        earlier = memory.unfinished()
        with self._taking_back_when_killed() as started:
            deployment = self._deploy(memory, started)
            model = deployment.model
            remember_link(context, lambda: deployment.page)
            if self.wait_for_completion:
                begun = started[-1] if started else None
                # A deployment that was not there before has no older revision to be mistaken for it.
                is_new = begun is not None and begun.replaced is None
                # An earlier try need not be remembered: Airflow 3.4 forgets it when a task is cleared.
                joined = not is_anew and (begun is None or begun == earlier)
                revision = None if is_new else deployment.revision
                try:
                    deployment = self._wait(deadline, revision, begun, joined=joined, model=model)
                except DeploymentFailed as error:
                    if not joined:
                        raise
                    started.clear()
                    return self._begin_anew(context, error, deadline)
        return self._finish(context, deployment, model)

    def _deploy(self, memory: _Memory, started: list[RollOut]) -> Deployment:
        """Begin the roll-out, or find the one that is begun; append what this task has to answer for."""
        hook = self.get_hook()
        before = hook.run(lambda registry: find_deployment(registry, self._name))
        unfinished = memory.unfinished()
        ours = unfinished if unfinished and before and unfinished.revision == before.revision else None
        if ours and before and not (before.failed or before.gone) and memory.is_same:
            self.log.info("going on with revision %s, which an earlier try has begun", before.revision)
            started.append(ours)
            return before.model_copy(update={"model": before.model or ours.model})
        if ours is None or (before and before.ready):
            ours = RollOut(
                deployment=self._name,
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
        remember_link(context, lambda: deployment.url, DeploymentLink)
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
        return _described(hook.conn_type, model)

    def _mask(self) -> None:
        for value in _secrets_in(self.config):
            mask_secret(value)

    def _asked(self) -> str:
        return json.dumps(
            [self.registry_conn_id, self.deployment, self.model, self.config or {}], sort_keys=True, default=str
        )


class UndeployModelOperator(_DeploymentOperator):
    """End a deployment; one that has ended already, or never was, is no error.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name (templated).
    :param wait_for_completion: return once nothing of it runs any more, not only once its end is accepted (templated).
    :param timeout: how long to wait for that, in seconds or as a timedelta (templated).
    :param poll_interval: seconds between two looks while waiting (templated).
    :param deferrable: wait in the triggerer instead of a worker slot. Give such a task a retry (templated).
    :return: the deployment as a dictionary.
    """

    ui_color = "#f4cccc"
    goal = GONE

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            deployment = self.get_hook().undeploy(self._name)
            if self.wait_for_completion and not deployment.gone:
                deployment = self._wait(self.deadline_in(_seconds(self.timeout)))
            return self._finish(context, deployment)


class PredictOperator(RegistryOperator):
    """Have a deployment make predictions, and write them to a file.

    The output is absent, old, or new and complete at every moment. What is there already is replaced. Predictions never
    go to XCom, only the reference to them does.

    :param registry_conn_id: the registry's connection (templated).
    :param deployment: its name (templated).
    :param inputs: what to predict from, as the system takes it: a local path, an object storage URL, which is copied to
        this machine first, or values (templated).
    :param output: the file to write: a local path or an object storage URL (templated).
    :param options: what the system understands (templated).
    :param timeout: how long a system that works on a request by itself may take, in seconds or as a timedelta. Only of
        a wait in the triggerer: a worker waits as long as the system gets any further (templated).
    :param poll_interval: seconds between two looks of the triggerer (templated).
    :param deferrable: wait in the triggerer where the system works on a request by itself: Supervisely, on what its
        platform holds. Without effect on other inputs and systems. Give such a task a retry (templated).
    :return: registry, deployment, model, output, format, count and size of the predictions, as a dictionary.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json", "options": "json"}
    ui_color = "#fff2cc"
    # The argument: Airflow looks by an argument's own name for what it depends on. It stands in the place of Airflow's
    # property for the task's XCom; that is ``XComArg(task)`` here.
    output: Any = None

    def __init__(
        self,
        *,
        inputs: Values,
        output: Place,
        deployment: DeploymentName | None = None,
        options: Options | None = None,
        timeout: Span = timedelta(days=1),
        poll_interval: Seconds = DEFAULT_POLL_INTERVAL,
        deferrable: Flag = DEFERRABLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deployment = deployment
        self.inputs = inputs
        self.output = output
        self.options = options
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            return self._make(context)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None) -> dict[str, JsonValue]:
        """Take over from the trigger: fetch what was made, and what is still made, and write it."""
        with self.attempt():
            outcome_of(event)
            return self._make(context, Ticket.model_validate((event or {}).get("ticket")))

    def _make(self, context: Context, ticket: Ticket | None = None) -> dict[str, JsonValue]:
        if clash := sorted(_ARGUMENTS & (self.options or {}).keys()):
            raise InvalidInput(f"{', '.join(clash)}: arguments of the task, not options", argument="options")
        output = resolve(self.output, "output")
        with self._local_inputs() as inputs:
            if self.deferrable and ticket is None:
                self._defer(inputs, output)
            if not isinstance(output, ObjectStoragePath):
                made = self._predict(context, inputs, output, ticket)
            else:
                with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
                    written = Path(scratch) / "predictions"
                    made = self._predict(context, inputs, written, ticket)
                    publish_file(written, output, cancel=self._cancel_token)
        self._tell_lineage(made, str(output))
        return made.to_xcom(output=str(output))

    def _tell_lineage(self, made: Predictions, output: str) -> None:
        if made.model:
            self._trace.read.append((self.registry_conn_id, _described(made.registry, made.model)))
        for entry in self.inputs if isinstance(self.inputs, (list, tuple)) else [self.inputs]:
            if isinstance(entry, (str, os.PathLike, ObjectStoragePath)) and not is_url(entry):
                self._trace.places_read.append(str(entry))
        self._trace.places_written.append(output)

    @contextmanager
    def _local_inputs(self) -> Iterator[Any]:
        if isinstance(self.inputs, (str, os.PathLike, ObjectStoragePath)):
            with local_source(self.inputs, self._cancel_token, "inputs") as inputs:
                yield inputs
        elif isinstance(self.inputs, (list, tuple)):
            with ExitStack() as stack:
                yield [self._staged(entry, stack) for entry in self.inputs]
        else:
            yield self.inputs

    def _staged(self, entry: Any, stack: ExitStack) -> Any:
        """Return an entry of a list, brought to this machine if it lies in object storage."""
        is_stored = isinstance(entry, ObjectStoragePath) or (isinstance(entry, str) and "://" in entry)
        if not is_stored or is_url(entry):
            return entry
        return stack.enter_context(local_source(entry, self._cancel_token, "inputs"))

    def _defer(self, inputs: Any, output: Path | ObjectStoragePath) -> None:
        """Begin the predictions and wait for them in the triggerer, where the system makes them by itself."""
        place = None if isinstance(output, ObjectStoragePath) else output
        ticket = self.get_hook().start_predict(self.deployment, inputs, output=place, **(self.options or {}))
        if ticket is None:
            return
        if self._cancel_token.cancelled:  # nobody else would know of the request
            with _parting_hook(self.registry_conn_id) as hook:
                self.log.info(hook.run(lambda registry: PredictsAlone.of(registry).stop_predict(ticket)))
            raise Cancelled("the task was killed")
        deadline = self.deadline_in(_seconds(self.timeout))
        self.defer(
            trigger=PredictTrigger(
                registry_conn_id=self.registry_conn_id,
                ticket=ticket.model_dump(mode="json"),
                deadline=deadline,
                poll_interval=self.poll_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=deadline - time.time() + 60),
        )

    def _predict(self, context: Context, inputs: Any, output: Path, ticket: Ticket | None) -> Predictions:
        options = self.options or {}
        return self.get_hook(context).predict(self.deployment, inputs, output=output, ticket=ticket, **options)


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


def _described(registry: str, model: str) -> ModelVersion:
    """Return a version as far as its reference describes it."""
    ref = ModelRef.parse(model)
    return ModelVersion(registry=registry, name=ref.name, version=ref.version or "", status=VersionStatus.UNKNOWN)


@contextmanager
def _parting_hook(registry_conn_id: str) -> Iterator[RegistryHook]:
    """Yield a hook for what a killed task has still to do; its own has been told to stop."""
    hook = get_registry_hook(registry_conn_id)
    clock = threading.Timer(_UNDO_SECONDS, hook.cancel)
    clock.start()
    try:
        yield hook
    finally:
        clock.cancel()


def _seconds(timeout: float | timedelta) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)


def _undo(before: Deployment | None) -> Undo:
    if before is None or before.gone:
        return Undo.TERMINATE
    return Undo.RESTORE if before.ready and before.revision else Undo.LEAVE


def _secrets_in(config: Any) -> Iterator[str]:
    """Return what nobody may see of a configuration, whatever form it has."""
    if not isinstance(config, str):
        yield from _environment_values(config)
        return
    try:
        values = list(_environment_values(structure(config)))
    except ValueError:
        yield config  # nobody can tell what in it is secret
        return
    for value in values:
        yield from dict.fromkeys((value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]))
        yield repr(value)[1:-1]


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

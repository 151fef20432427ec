"""The hook that all registries share: an Airflow connection becomes a registry, its verbs become methods.

Operators, sensors and triggers use this class only; what system is behind it they need not know. What moves bytes is
imported by the methods that do so: DAG files load this module whenever they are parsed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from airflow_provider_modelsync.compat import AirflowException, AirflowNotFoundException, BaseHook, aget_connection
from airflow_provider_modelsync.core.arguments import (
    Command,
    Conditions,
    Count,
    DeploymentName,
    Facts,
    Flag,
    LabelChanges,
    Labels,
    ModelNames,
    OnReference,
    Options,
    PartSize,
    Patterns,
    Reference,
    SignaturePolicy,
    Signing,
    Span,
    Text,
    Threads,
    Values,
    VersionName,
    WantedLabels,
    understood,
)
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import interruptible
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, Flow, SyncDriver
from airflow_provider_modelsync.core.flow.threads import Threads as LoopThreads
from airflow_provider_modelsync.core.models import (
    Alias,
    Deployment,
    Fetch,
    ModelVersion,
    Patience,
    Predictions,
    PulledModel,
    Query,
    SyncedVersion,
    SyncReport,
    Ticket,
)
from airflow_provider_modelsync.core.redact import redact, secrets_of, show_url
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.capabilities import Deploys, KeepsSignatures
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.progress import Tally
from airflow_provider_modelsync.core.verbs.drive import async_driver_for, driver_for
from airflow_provider_modelsync.forms import offer_form
from airflow_provider_modelsync.hooks.metrics import measured

if TYPE_CHECKING:
    import os

    from airflow.sdk import Connection

    from airflow_provider_modelsync.core.transfer.checkpoint import CheckpointStore
    from airflow_provider_modelsync.core.transfer.control import Control
    from airflow_provider_modelsync.core.verbs.promote import Promotion, Rollback
    from airflow_provider_modelsync.core.verbs.prune import PruneReport
    from airflow_provider_modelsync.core.verbs.sync import Selection

log = logging.getLogger("modelsync")

P = ParamSpec("P")
T = TypeVar("T")


def as_understood(verb: Callable[P, T]) -> Callable[P, T]:
    """Read a verb's arguments as operators do; errors name the connection."""
    read = understood(verb)

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except InvalidInput as error:
            hook = args[0]
            assert isinstance(hook, RegistryHook)
            error.about(connection=hook.registry_conn_id)
            raise

    return call


_STANDARD_FIELDS = ("host", "port", "login", "password")
_HTTP = ("http", "https")  # schemas that say how a bare host is reached
_TOLD: set[tuple[str, str]] = set()  # remarks on connections that are in this process' log already

# Seconds for one call of a connection test, and for the whole of it: it keeps a thread of the API server. What hangs in
# a system call then gets 3 more to end.
_CALL_SECONDS, _TEST_SECONDS = 4.0, 7.0


def settings_from_connection(connection: Connection, settings_type: type[RegistrySettings]) -> RegistrySettings:
    """Read an Airflow connection into a registry's settings.

    :param connection: standard fields and extras.
    :param settings_type: what the registry understands.
    :raises InvalidInput: naming every field at fault.
    """
    standard = {field: getattr(connection, field) for field in _STANDARD_FIELDS}
    extras = _extras_of(connection)
    schema = _schema_of(connection)
    if schema in _HTTP and standard["host"] and "://" not in standard["host"]:
        standard["host"] = f"{schema}://{standard['host']}"
    return settings_type.read(connection.conn_id, {**extras, **standard})


def remarks_on(connection: Connection, settings_type: type[RegistrySettings]) -> list[str]:
    """Return what a connection says and nobody reads, in words, without values.

    :param connection: standard fields and extras.
    :param settings_type: what the registry understands.
    """
    known = settings_type.model_fields.keys() - {*_STANDARD_FIELDS, "conn_id"}
    remarks = []
    for name, value in _extras_of(connection).items():
        if name in known or value in (None, ""):
            continue
        if name in _STANDARD_FIELDS:
            remarks.append(f"`{name}` is read from the connection's own field, not from the extras")
            continue
        meant = name.rpartition("__")[2]
        begun = sorted(field for field in known if field.startswith(f"{meant}_"))
        near = [*get_close_matches(meant, known, n=1, cutoff=0.8), *begun]
        remarks.append(f"the extra `{name}` is not known" + (f": did you mean `{near[0]}`?" if near else ""))
    host, schema = connection.host or "", _schema_of(connection)
    if schema and not (schema in _HTTP and ("://" not in host or host.lower().startswith(f"{schema}:"))):
        remarks.append(
            "the schema is not used; the path of a connection's URI ends up there: "
            "write scheme, host and path into the host, in a URI quoted as in `type://https%3A%2F%2Fhost%2Fpath`"
        )
    return remarks


def _schema_of(connection: Connection) -> str:
    return (connection.schema or "").strip().lower()


def _extras_of(connection: Connection) -> dict[str, Any]:
    extras = connection.extra_dejson or {}
    if not isinstance(extras, dict):
        raise InvalidInput("the extras are not a JSON object", argument="extra", connection=connection.conn_id)
    return extras


class ConnectionMissing(RegistryUnavailable):
    """There is no such connection, or it cannot be read for now: Airflow does not tell which."""


class RegistryHook(BaseHook, ABC):
    """Access to one model registry through one Airflow connection.

    Subclasses name their connection type and their registry, nothing else.

    :param registry_conn_id: the connection's id.
    """

    conn_name_attr = "registry_conn_id"
    conn_type: ClassVar[str]
    hook_name: ClassVar[str]
    default_conn_name = "modelsync_default"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        offer_form(cls)

    def __init__(self, registry_conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id or self.default_conn_name
        self.cancel_token = CancelToken()
        self.is_last_try = False  # then nothing is left behind for a next one
        self.tally = Tally()  # of the transfer in hand, or of the last one
        self._registry: Registry | None = None
        self._found: Connection | None = None  # the connection, when it has led here and is not read yet
        self._others: Sequence[Connection] = ()  # what the connection relies on
        self._remarks: list[str] = []  # on the connection
        self._address: str | None = None  # that it leads to
        self._driver: AsyncDriver | None = None

    @classmethod
    def get_connection(cls, conn_id: str) -> Connection:
        """Return a connection.

        :raises RegistryUnavailable: when there is none, or it cannot be read for now: Airflow does not tell which.
        """
        try:
            return super().get_connection(conn_id)
        except AirflowNotFoundException as error:
            raise cls._missing(conn_id, error) from None

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Connection:
        """As :meth:`get_connection`, for the event loop."""
        try:
            return await aget_connection(conn_id)
        except AirflowNotFoundException as error:
            raise cls._missing(conn_id, error) from None

    @classmethod
    def _missing(cls, conn_id: str, error: Exception) -> ConnectionMissing:
        kind = getattr(cls, "conn_type", "<TYPE>")
        return ConnectionMissing(
            f"the connection {conn_id!r} cannot be looked up: {error}",
            connection=conn_id,
            remedy=f"Add it where it is missing: airflow connections add {shlex.quote(conn_id)} --conn-type {kind} "
            "--conn-host <HOST> --conn-login <LOGIN> --conn-password <SECRET>, with what the type's page names",
        )

    @classmethod
    @abstractmethod
    def registry_type(cls) -> type[Registry]:
        """Return the registry's class, which is imported only now."""

    def get_conn(self) -> Registry:
        """Return the registry that the connection leads to.

        :raises InvalidInput: when the connection's fields are not usable.
        """
        if self._registry is None:
            self._registry = self._make(*self._read())
        return self._registry

    async def aget_conn(self) -> Registry:
        """Return the registry; for the event loop, where :meth:`get_conn` would block."""
        if self._registry is None:
            connection = self._take_found() or await self.aget_connection(self.registry_conn_id)
            # In threads: a system's modules take long to load when it is the first of its kind.
            threads = LoopThreads.of(self.registry_conn_id)
            settings = await threads.run(lambda: self._settings_in(connection))
            others = self._others = [await self.aget_connection(other) for other in settings.further_connections]
            self._registry = await threads.run(lambda: self._make(settings, others))
        return self._registry

    def make_registry(self, settings: RegistrySettings, others: Sequence[Connection]) -> Registry:
        """Return the registry of a connection.

        :param settings: the connection.
        :param others: the connections that it relies on.
        """
        return self.registry_type()(settings)

    def cancel(self) -> None:
        """End whatever this hook is doing, within 4 s. Safe from signal handlers, any number of times."""
        self.cancel_token.cancel()

    def run(self, make_flow: Callable[[Registry], Flow[T]], *, model: str | None = None) -> T:
        """Run a flow of the registry in this thread.

        :param make_flow: called with the registry.
        Credentials that are refused are looked up once more: a task may wait for longer than they are valid.

        :param model: named in errors.
        """
        with self._named(model):
            try:
                with self._session() as (registry, driver):
                    return driver.run(make_flow(registry))
            except Unauthorized:
                if not self._has_new_credentials():
                    raise
            with self._session() as (registry, driver):
                return driver.run(make_flow(registry))

    def _has_new_credentials(self) -> bool:
        """Take the connection as it is now; return whether it has changed since it was read."""
        before = self._registry
        try:
            self._registry = self._make(*self._read())
        except Exception:  # what was refused is the error to tell
            return False
        return before is None or before.settings != self._registry.settings

    async def arun(self, make_flow: Callable[[Registry], Flow[T]], *, model: str | None = None) -> T:
        """Run a flow of the registry on the event loop. Parameters as for :meth:`run`."""
        with self._named(model):
            registry = await self.aget_conn()
            if self._driver is not None:
                return await self._driver.run(make_flow(registry))
            async with async_driver_for(registry) as driver:
                return await driver.run(make_flow(registry))

    @asynccontextmanager
    async def aopen(self) -> AsyncIterator[None]:
        """Have all that :meth:`arun` does meanwhile share one client, instead of each opening its own."""
        with self._named(None):
            registry = await self.aget_conn()
        async with async_driver_for(registry) as self._driver:
            try:
                yield
            finally:
                self._driver = None

    @as_understood
    def push(
        self,
        source: str | os.PathLike[str],
        model: Reference,
        *,
        labels: Labels | None = None,
        metadata: Facts | None = None,
        force: Flag = False,
        options: Options | None = None,
        checkpoint: CheckpointStore | None = None,
        follow_links: Text = "inside",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        threads: Threads | None = None,
        part_size_mib: PartSize | None = None,
        sign: Signing | None = None,
    ) -> ModelVersion:
        """Push a model.

        :param source: a directory or a single file on this machine.
        :param model: ``name`` or ``name:version``; a version left out is derived from the content.
        :param labels: short strings to choose by.
        :param metadata: JSON values kept beside the version.
        :param force: replace a version that holds other bytes.
        :param options: what only this registry understands.
        :param checkpoint: where tries remember what is done.
        :param follow_links: ``"inside"`` reads links in the source as the files that they lead to, as long as these lie
            below the source, or below the cache that a Hugging Face snapshot belongs to; ``"never"`` refuses links.
        :param include: patterns, as ``.gitignore`` files hold them, of the files to push; without any, of all.
        :param exclude: patterns of files to leave out, besides ``.git`` and ``.cache/huggingface``.
        :param threads: that move bytes, instead of the connection's ``max_workers``.
        :param part_size_mib: MiB in a part of a multipart upload, instead of the connection's.
        :param sign: whether to sign with the connection's key, the file of another key, or ``key`` and ``certificate``,
            ``identity_token`` or ``signature``, each naming a file. Left out: as far as the connection names a key.
        :return: the published version.
        :raises VersionConflict: when the version exists with other bytes.
        :raises InvalidInput: for a source, name or argument that is refused before any byte is sent.
        :raises NotSupported: for what the system cannot do or keep.
        """
        from airflow_provider_modelsync.core.verbs.push import push
        from airflow_provider_modelsync.core.verbs.signatures import Signer

        with self._named(model), self._session(threads, part_size_mib) as (registry, driver):
            signer = Signer.of(sign, registry.settings)
            control = self._control(registry, f"pushing {model}", checkpoint)
            with measured("push", control.tally, self._tags()) as note:
                version = push(
                    registry,
                    driver,
                    source,
                    registry.parse(model),
                    control,
                    labels=labels,
                    metadata=metadata,
                    force=force,
                    options=options,
                    follow_links=follow_links,
                    include=include,
                    exclude=exclude,
                    sign=signer.sign if signer else None,
                )
                note(version.transfer)
            return version

    @as_understood
    def pull(
        self,
        model: Reference,
        target: str | os.PathLike[str] | None,
        *,
        labels: Labels | None = None,
        query: Text | None = None,
        force: Flag = False,
        verify: Flag = True,
        checkpoint: CheckpointStore | None = None,
        patience: Patience | None = None,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        threads: Threads | None = None,
        part_size_mib: PartSize | None = None,
        on_reference: OnReference = "fail",
        reference_conn_id: Text | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
    ) -> PulledModel:
        """Pull a model.

        :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one.
        :param target: a directory; filled when absent or empty, left alone when it holds exactly this model, replaced
            when it still is what the last pull of the same model put there. ``None``
            where the system keeps models on its own host: it is to have the model there.
        :param labels: that the version must have, an exact one, too.
        :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b``.
        :param force: replace whatever the target holds, once the new copy is verified.
        :param verify: compare the bytes with the version's digest.
        :param checkpoint: where tries remember what is done.
        :param patience: how long to wait for the system's own host.
        :param include: patterns, as ``.gitignore`` files hold them, of the files to pull; without any, of all.
        :param exclude: patterns of files to leave out.
        :param threads: that move bytes, instead of the connection's ``max_workers``.
        :param part_size_mib: MiB in a piece that a large file comes down in; 16 when left out.
        :param on_reference: what becomes of a version that only points elsewhere: ``"fail"``, or ``"skip"``: then
            there is nothing to pull, and no path.
        :param reference_conn_id: the connection to the registry that such a version points to: it is pulled from there.
        :param allowed_formats: of which all files must be, by what they hold, as ``["safetensors", "json"]``.
        :param scan: what looks at the files before they are visible: the name of an entry point, or a command.
        :param signatures: what becomes of a model that no trusted signer vouches for: ``"off"`` looks at none,
            ``"warn"`` says so, ``"require"`` refuses it; the connection's when left out.
        :param trusted_signers: files of public keys and certificates, or ``identity|issuer`` of Sigstore; the
            connection's when left out.
        :raises ModelNotFound: when no ready version is chosen.
        :raises TargetExists: when the target holds something else.
        :raises DigestMismatch: when the stored bytes are not those that were pushed.
        :raises UntrustedModel: when the model does not stand the checks.
        """
        from airflow_provider_modelsync.core.verbs.checks import Checks
        from airflow_provider_modelsync.core.verbs.pull import Referred, pull

        with self._named(model), self._session(threads) as (registry, driver), ExitStack() as stack:
            checks = Checks.of(
                registry,
                allowed_formats=allowed_formats,
                scan=scan,
                signatures=signatures,
                trusted_signers=trusted_signers,
            )
            referred = None
            if reference_conn_id:
                other = get_registry_hook(reference_conn_id)
                other.cancel_token = self.cancel_token
                referred = Referred(*stack.enter_context(other._session(threads)))
            control = self._control(registry, f"pulling {model}", checkpoint, part_size_mib)
            with measured("pull", control.tally, self._tags()) as note:
                pulled = pull(
                    registry,
                    driver,
                    registry.parse(model),
                    target,
                    control,
                    query=registry.query(query, labels),
                    force=force,
                    verify=verify,
                    patience=patience,
                    include=include,
                    exclude=exclude,
                    on_reference=on_reference,
                    referred=referred,
                    checks=checks,
                )
                note(pulled.version.transfer)
            return pulled

    @as_understood
    def inspect(
        self,
        model: Reference,
        *,
        labels: Labels | None = None,
        query: Text | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
    ) -> ModelVersion:
        """Look at a model as :meth:`pull` would, and keep nothing of it. Parameters and errors as there.

        :return: the exact version that was looked at.
        """
        from airflow_provider_modelsync.core.verbs.checks import Checks
        from airflow_provider_modelsync.core.verbs.pull import inspect

        with self._named(model), self._session() as (registry, driver):
            checks = Checks.of(
                registry,
                allowed_formats=allowed_formats,
                scan=scan,
                signatures=signatures,
                trusted_signers=trusted_signers,
            )
            control = self._control(registry, f"looking at {model}", None)
            wanted = registry.query(query, labels)
            return inspect(registry, driver, registry.parse(model), control, query=wanted, checks=checks)

    @as_understood
    def signatures(self, model: Reference) -> list[bytes]:
        """Return the signatures that are kept for a version, as ``model_signing verify`` reads them. None is proved.

        :raises NotSupported: where the system keeps none.
        """
        return self.run(lambda registry: _signatures(registry, model), model=model)

    async def apush(self, *args: Any, **kwargs: Any) -> ModelVersion:
        """As :meth:`push`, for ``async`` tasks: bytes move in threads, and end when the awaiting task is cancelled."""
        return await self._in_a_thread(self.push, *args, **kwargs)

    async def apull(self, *args: Any, **kwargs: Any) -> PulledModel:
        """As :meth:`pull`, for ``async`` tasks: bytes move in threads, and end when the awaiting task is cancelled."""
        return await self._in_a_thread(self.pull, *args, **kwargs)

    @as_understood
    def sync_to(
        self,
        target: RegistryHook,
        selection: Selection,
        *,
        dry_run: Flag = False,
        checkpoint: CheckpointStore | None = None,
        on_copied: Callable[[SyncedVersion], None] | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
    ) -> SyncReport:
        """Bring versions of this registry into another.

        :param target: the other registry's hook.
        :param selection: which versions, and how they are pushed.
        :param dry_run: only say what would be copied.
        :param checkpoint: where tries remember what is done.
        :param on_copied: told of each copy as soon as it is published, from the threads that copy.
        :param allowed_formats: as for :meth:`pull`; what is refused has failed, and nothing of it goes to the target.
        :param scan: likewise.
        :param signatures: likewise, of what lies in this registry.
        :param trusted_signers: likewise.
        :return: what became of each version; a failing model does not stop the others and raises nothing.
        :raises NotSupported: when this registry cannot be read or the other cannot be written.
        """
        from airflow_provider_modelsync.core.verbs.checks import Checks
        from airflow_provider_modelsync.core.verbs.sync import Side, sync

        with (
            self._named(None),
            self._session() as (source_registry, source_driver),
            target._named(None),
            target._session() as (target_registry, target_driver),
        ):
            sides = Side(source_registry, source_driver), Side(target_registry, target_driver)
            control = target._control(target_registry, "syncing", checkpoint)
            checks = Checks.of(
                source_registry,
                allowed_formats=allowed_formats,
                scan=scan,
                signatures=signatures,
                trusted_signers=trusted_signers,
            )
            if dry_run:
                return sync(*sides, selection, control, dry_run=True)
            with measured("sync", control.tally, {**target._tags(), **self._tags("source_")}) as note:
                report = sync(*sides, selection, control, on_copied=on_copied, checks=checks)
                note(report)
            return report

    @as_understood
    def start_fetch(self, model: Reference, *, labels: Labels | None = None, query: Text | None = None) -> Fetch:
        """Begin a pull onto the system's own host, and do not wait for it. Parameters as for :meth:`pull`.

        :raises InvalidInput: where models are pulled to a directory instead.
        """
        from airflow_provider_modelsync.core.verbs.fetch import start_fetch

        with self._named(model), self._session() as (registry, driver):
            return start_fetch(registry, driver, registry.parse(model), query=registry.query(query, labels))

    @as_understood
    def get(self, model: Reference, *, labels: Labels | None = None, query: Text | None = None) -> ModelVersion:
        """Return a model version.

        :raises ModelNotFound: when there is none.
        """
        return self.run(_get(model, labels, query), model=model)

    @as_understood
    async def aget(self, model: Reference, *, labels: Labels | None = None, query: Text | None = None) -> ModelVersion:
        """As :meth:`get`, for ``async`` tasks and the event loop."""
        return await self.arun(_get(model, labels, query), model=model)

    @as_understood
    def list_models(
        self, query: Text | None = None, *, labels: Labels | None = None, all_versions: Flag = False
    ) -> list[ModelVersion]:
        """Return the newest ready version of each name that query and labels choose, newest first.

        :param all_versions: every version of each name instead, in any state.
        """
        return self.run(_list_models(labels, query, all_versions))

    @as_understood
    async def alist_models(
        self, query: Text | None = None, *, labels: Labels | None = None, all_versions: Flag = False
    ) -> list[ModelVersion]:
        """As :meth:`list_models`, for ``async`` tasks and the event loop."""
        return await self.arun(_list_models(labels, query, all_versions))

    @as_understood
    def list_versions(
        self, name: Reference, query: Text | None = None, *, labels: Labels | None = None
    ) -> list[ModelVersion]:
        """Return every version of a name that query and labels choose, in any state, newest first."""
        return self.run(_list_versions(name, labels, query), model=name)

    @as_understood
    async def alist_versions(
        self, name: Reference, query: Text | None = None, *, labels: Labels | None = None
    ) -> list[ModelVersion]:
        """As :meth:`list_versions`, for ``async`` tasks and the event loop."""
        return await self.arun(_list_versions(name, labels, query), model=name)

    @as_understood
    def aliases(self, name: Reference) -> list[Alias]:
        """Return the aliases of a model, by their names; empty when there is no such model.

        :raises NotSupported: where the system keeps none.
        """
        return self.run(_list_aliases(name), model=name)

    @as_understood
    async def aaliases(self, name: Reference) -> list[Alias]:
        """As :meth:`aliases`, for ``async`` tasks and the event loop."""
        return await self.arun(_list_aliases(name), model=name)

    @as_understood
    def set_alias(self, model: Reference, alias: Text, *, expected: Text | None = None) -> Alias:
        """Have an alias point to a version; return it as it is then. One that does already is fine.

        :param model: any reference that leads to a ready version, also by another alias.
        :param alias: e.g. ``"champion"``.
        :param expected: move it only from this version, and with ``""`` only when it is not there yet.
        :raises VersionConflict: when it points elsewhere than expected.
        :raises ModelNotFound: when there is no such version.
        """
        from airflow_provider_modelsync.core.verbs.aliases import set_alias

        return self.run(lambda registry: set_alias(registry, model, alias, expected=expected), model=model)

    @as_understood
    def delete_alias(self, name: Reference, alias: Text) -> bool:
        """Remove an alias; return whether it was there. No version is touched."""
        from airflow_provider_modelsync.core.verbs.aliases import delete_alias

        return self.run(lambda registry: delete_alias(registry, name, alias), model=name)

    @as_understood
    def promote(self, model: Reference, alias: Text, *, when: Conditions | None = None) -> Promotion:
        """Have an alias point to a version, if that is better than what it points to.

        :param model: any reference that leads to a ready version.
        :param alias: e.g. ``"champion"``.
        :param when: conditions on the metadata of both, as ``{"metric": "auc", "mode": "max", "at_least": 0.005}``;
            all must be met. Without ``at_least`` a version must be better at all.
        :return: what became of it; a refusal is no error.
        :raises InvalidInput: when a metric is missing.
        """
        from airflow_provider_modelsync.core.verbs.promote import promote

        return self.run(lambda registry: promote(registry, model, alias, when), model=model)

    @as_understood
    def rollback(self, model: Reference, alias: Text, *, to: VersionName | None = None) -> Rollback:
        """Have an alias point to the version that it pointed to before.

        :param model: the model's name.
        :param alias: e.g. ``"champion"``.
        :param to: a version instead of the one before.
        :raises ModelNotFound: when there is none before.
        :raises NotSupported: where the system does not remember it, and none is named.
        """
        from airflow_provider_modelsync.core.verbs.promote import rollback

        return self.run(lambda registry: rollback(registry, model, alias, to), model=model)

    @as_understood
    def prune(
        self,
        models: ModelNames,
        *,
        keep_last: Count | None = None,
        older_than: Span | None = None,
        keep_labels: WantedLabels | None = None,
        keep_aliased: Flag = True,
        min_keep: Count = 1,
        leftovers_older_than: Span | None = None,
        dry_run: Flag = True,
    ) -> PruneReport:
        """Delete what nobody needs any more. What cannot be deleted does not stop the rest, and raises nothing.

        The newest ready version of a model always stays, and what a running deployment needs, where the system tells.

        :param models: names, or globs of names.
        :param keep_last: so many of the newest ready versions stay.
        :param older_than: what is younger stays: seconds or a timedelta.
        :param keep_labels: versions with one of these labels stay; ``None`` for whatever value.
        :param keep_aliased: what an alias points to stays, and what it would be rolled back to.
        :param min_keep: so many of the newest ready versions stay, however old they are.
        :param leftovers_older_than: remove what pushes have left behind, too, as far as it is older.
        :param dry_run: delete nothing, say what would be deleted.
        :raises InvalidInput: when nothing says what may go.
        :raises NotSupported: where nothing can be deleted.
        """
        from airflow_provider_modelsync.core.verbs.prune import Retention, prune

        with self._named(None):
            retention = Retention(
                models=models,
                keep_last=keep_last,
                older_than=_in_seconds(older_than),
                keep_labels=keep_labels or {},
                keep_aliased=keep_aliased,
                min_keep=min_keep,
                leftovers_older_than=_in_seconds(leftovers_older_than),
            )
        return self.run(lambda registry: prune(registry, retention, dry_run=dry_run))

    @as_understood
    def delete(self, model: Reference) -> bool:
        """Delete an exact version.

        :return: whether it was there; deleting what is gone already is no error.
        """
        return self.run(lambda registry: registry.delete(registry.parse(model)), model=model)

    @as_understood
    async def adelete(self, model: Reference) -> bool:
        """As :meth:`delete`, for ``async`` tasks and the event loop."""
        return await self.arun(lambda registry: registry.delete(registry.parse(model)), model=model)

    @as_understood
    def set_labels(self, model: Reference, labels: LabelChanges) -> ModelVersion:
        """Merge labels into a version's; a ``None`` value removes one."""
        return self.run(lambda registry: registry.set_labels(registry.parse(model), labels), model=model)

    @as_understood
    async def aset_labels(self, model: Reference, labels: LabelChanges) -> ModelVersion:
        """As :meth:`set_labels`, for ``async`` tasks and the event loop."""
        return await self.arun(lambda registry: registry.set_labels(registry.parse(model), labels), model=model)

    @as_understood
    def deploy(
        self,
        deployment: DeploymentName | None,
        model: Reference,
        *,
        config: Options | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
    ) -> Deployment:
        """Have a model served; return once the request is accepted. What runs exactly so already is left alone.

        Where the system serves from its own host, the model is brought there first, and waited for.

        :param deployment: its name.
        :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one.
        :param config: what the system understands.
        :param allowed_formats: as for :meth:`pull`: the model is looked at first, and exactly that version deployed.
        :param scan: likewise.
        :param signatures: likewise.
        :param trusted_signers: likewise.
        :raises InvalidInput: for a name or a configuration that is refused before anything is sent.
        :raises NotSupported: where the system does not deploy.
        """
        from airflow_provider_modelsync.core.verbs.fetch import fetch, needs_fetch

        if (allowed_formats, scan) != (None, None) or (signatures or self.get_conn().settings.signatures) != "off":
            model = self.inspect(
                model,
                allowed_formats=allowed_formats,
                scan=scan,
                signatures=signatures,
                trusted_signers=trusted_signers,
            ).ref
        with self._named(model), self._session() as (registry, driver):
            deploys = Deploys.of(registry)
            ref, config = registry.parse(model), config or {}
            with measured("deploy", None, self._tags()) as note:
                if driver.run(needs_fetch(registry, deployment, ref, config)):
                    fetch(registry, driver, ref, query=Query(), patience=Patience())
                deployed = driver.run(deploys.deploy(deployment, ref, config))
                note(None)
            return deployed

    async def adeploy(self, *args: Any, **kwargs: Any) -> Deployment:
        """As :meth:`deploy`, for ``async`` tasks: in a thread, and ended when the awaiting task is cancelled."""
        return await self._in_a_thread(self.deploy, *args, **kwargs)

    @as_understood
    def deployment(self, name: DeploymentName) -> Deployment:
        """Return a deployment as it is now.

        :raises ModelNotFound: when there is none.
        """
        return self.run(lambda registry: Deploys.of(registry).deployment(name))

    @as_understood
    async def adeployment(self, name: DeploymentName) -> Deployment:
        """As :meth:`deployment`, for ``async`` tasks and the event loop."""
        return await self.arun(lambda registry: Deploys.of(registry).deployment(name))

    @as_understood
    def undeploy(self, name: DeploymentName) -> Deployment:
        """Ask for a deployment's end; return once that is accepted. One that has ended already is fine."""
        return self.run(lambda registry: Deploys.of(registry).undeploy(name))

    @as_understood
    async def aundeploy(self, name: DeploymentName) -> Deployment:
        """As :meth:`undeploy`, for ``async`` tasks and the event loop."""
        return await self.arun(lambda registry: Deploys.of(registry).undeploy(name))

    @as_understood
    def predict(
        self,
        deployment: DeploymentName | None,
        inputs: Values,
        *,
        output: str | os.PathLike[str] | None = None,
        ticket: Ticket | None = None,
        **options: Any,
    ) -> Predictions:
        """Have a deployment make predictions.

        :param deployment: its name; ``None`` for the connection's own, where it has one.
        :param inputs: a file or a directory of this machine, or values, as the system takes them.
        :param output: the file to write, complete or not at all; without it what was predicted is the result's
            ``content``, for few predictions.
        :param ticket: what :meth:`start_predict` has begun with the same inputs and options: it is waited for.
        :param options: what the system understands.
        :return: where they are, how many, and of what format.
        :raises InvalidInput: for inputs or options that are refused before anything is sent.
        :raises NotSupported: where the system runs no predictions.
        """
        from airflow_provider_modelsync.core.verbs.predict import predict

        with self._named(None), self._session() as (registry, driver):
            control = self._control(registry, f"predicting with {deployment}", None)
            with measured("predict", None, self._tags()) as note:
                made = predict(
                    registry, driver, deployment, inputs, control, output=output, options=options, ticket=ticket
                )
                note(None)
            return made

    async def apredict(self, *args: Any, **kwargs: Any) -> Predictions:
        """As :meth:`predict`, for ``async`` tasks: in a thread, and ended when the awaiting task is cancelled."""
        return await self._in_a_thread(self.predict, *args, **kwargs)

    @as_understood
    def start_predict(
        self,
        deployment: DeploymentName | None,
        inputs: Values,
        *,
        output: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Ticket | None:
        """Begin predictions that the system makes by itself, and do not wait. Parameters as for :meth:`predict`.

        :return: what leads to them; ``None`` where they are made only while somebody waits, and nothing is begun.
        """
        from airflow_provider_modelsync.core.verbs.predict import start_predict

        with self._named(None), self._session() as (registry, driver):
            return start_predict(registry, driver, deployment, inputs, output=output, options=options)

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        """Return where the system shows a version to people, or all its models; ``None`` where it has no such page."""
        return self.get_conn().page_of(model)

    def test_connection(self) -> tuple[bool, str]:
        """Make one cheap authenticated request and say who and where, or what is wrong, within 10 s."""
        try:
            return True, "; ".join([self._test(), *self._remarks])
        except Exception as error:  # the form shows whatever comes back
            if isinstance(error, ModelSyncError):
                error.connection = None  # the form's has an id that Airflow makes up; others who ask know it
            return False, "; ".join([str(error), *self._remarks])

    def _test(self) -> str:
        settings, others = self._read()
        hasty = {"timeout_seconds": min(settings.timeout_seconds, _CALL_SECONDS)}
        limit = CancelToken(self.cancel_token)
        tested: list[Registry] = []

        def test() -> str:  # all of it, since files, sessions and names can keep us waiting, too
            registry = self._make(settings.model_copy(update=hasty), others)
            tested.append(registry)
            with driver_for(registry, limit) as driver:
                return driver.run(registry.test())

        timer = threading.Timer(_TEST_SECONDS, limit.cancel)
        timer.start()
        try:
            with self._named(None):
                return interruptible(test, limit)
        except Cancelled:
            self.cancel_token.check()
            registry = tested[0] if tested else None
            where = redact((registry and registry.base_url) or settings.host or "", secrets_of(settings))
            raise RegistryUnavailable(
                f"{self.registry_type().title} at {where} did not answer within {_TEST_SECONDS} s"
            ) from None
        finally:
            timer.cancel()

    def _read(self) -> tuple[RegistrySettings, Sequence[Connection]]:
        settings = self._settings_in(self._take_found() or self.get_connection(self.registry_conn_id))
        self._others = [self.get_connection(other) for other in settings.further_connections]
        return settings, self._others

    def _take_found(self) -> Connection | None:
        found, self._found = self._found, None
        return found

    def _settings_in(self, connection: Connection) -> RegistrySettings:
        settings_type = self.registry_type().settings_type
        self._address = show_url(connection.host) if connection.host else None
        with self._named(None):
            self._remarks = remarks_on(connection, settings_type)
            for remark in self._remarks:
                if (told := (connection.conn_id, remark)) not in _TOLD:
                    _TOLD.add(told)
                    log.warning("connection %r: %s", *told)
            return settings_from_connection(connection, settings_type)

    def _make(self, settings: RegistrySettings, others: Sequence[Connection]) -> Registry:
        with self._named(None):
            return self.make_registry(settings, others)

    async def _in_a_thread(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._named(None):
            await self.aget_conn()  # here: threads must not ask Airflow for connections
        # In a thread of its own: transfers take long, and the loop's threads are for everybody.
        work = asyncio.ensure_future(LoopThreads(1).run(lambda: verb(*args, **kwargs)))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait((work,))  # within 4 s
            raise

    @contextmanager
    def _session(
        self, threads: int | None = None, part_size_mib: int | None = None
    ) -> Iterator[tuple[Registry, SyncDriver]]:
        registry = self._registry_with(threads, part_size_mib)
        with driver_for(registry, self.cancel_token) as driver:
            yield registry, driver

    def _registry_with(self, threads: int | None, part_size_mib: int | None) -> Registry:
        """Return the registry, with what one call wants otherwise than the connection says."""
        registry = self.get_conn()
        wanted = {"max_workers": threads, "part_size_mib": part_size_mib}
        changes = {name: value for name, value in wanted.items() if value is not None}
        return self._make(registry.settings.model_copy(update=changes), self._others) if changes else registry

    def _control(
        self, registry: Registry, doing: str, checkpoint: CheckpointStore | None, piece_mib: int | None = None
    ) -> Control:
        from airflow_provider_modelsync.core.transfer.control import Control

        self.tally = Tally()
        return Control(
            workers=registry.settings.max_workers,
            cancel=self.cancel_token,
            on_progress=lambda report: log.info("%s: %s", doing, report),
            checkpoint=checkpoint,
            is_last_try=self.is_last_try,
            piece_size=piece_mib and piece_mib << 20,
            tally=self.tally,
        )

    def _tags(self, prefix: str = "") -> dict[str, str]:
        return {f"{prefix}registry": self.conn_type, f"{prefix}connection": self.registry_conn_id}

    @contextmanager
    def _named(self, model: str | None) -> Iterator[None]:
        """Name the model and the connection in whatever error comes out."""
        try:
            yield
        except ModelSyncError as error:
            error.about(model=model, connection=self.registry_conn_id, address=self.address)
            raise

    @property
    def address(self) -> str | None:
        """Where the connection leads to, for people; ``None`` as long as it was not read."""
        return self._registry.address if self._registry else self._address


def _get(model: str, labels: Mapping[str, str] | None, query: str | None) -> Callable[[Registry], Flow[ModelVersion]]:
    return lambda registry: registry.get(registry.parse(model), registry.query(query, labels))


def _list_models(
    labels: Mapping[str, str] | None, query: str | None, all_versions: bool
) -> Callable[[Registry], Flow[list[ModelVersion]]]:
    def flow(registry: Registry) -> Flow[list[ModelVersion]]:
        wanted = registry.query(query, labels)
        return registry.list_all(wanted) if all_versions else registry.list_models(wanted)

    return flow


def _list_versions(
    name: str, labels: Mapping[str, str] | None, query: str | None
) -> Callable[[Registry], Flow[list[ModelVersion]]]:
    return lambda registry: registry.list_versions(registry.parse(name).name, registry.query(query, labels))


def _signatures(registry: Registry, model: str) -> Flow[list[bytes]]:
    keeps = KeepsSignatures.of(registry)
    return (yield from keeps.signatures((yield from registry.get(registry.parse(model)))))


def _in_seconds(span: float | timedelta | None) -> float | None:
    return span.total_seconds() if isinstance(span, timedelta) else span


def _list_aliases(name: str) -> Callable[[Registry], Flow[list[Alias]]]:
    from airflow_provider_modelsync.core.verbs.aliases import list_aliases

    return lambda registry: list_aliases(registry, name)


def get_registry_hook(registry_conn_id: str) -> RegistryHook:
    """Return the hook for a connection, whatever registry it leads to.

    :param registry_conn_id: the connection's id.
    :raises InvalidInput: when the connection is of no registry's type.
    """
    return _hook_of(RegistryHook.get_connection(registry_conn_id))


async def aget_registry_hook(registry_conn_id: str) -> RegistryHook:
    """Return the hook for a connection; for the event loop."""
    connection = await RegistryHook.aget_connection(registry_conn_id)
    return await LoopThreads.of(registry_conn_id).run(lambda: _hook_of(connection))


def _hook_of(connection: Connection) -> RegistryHook:
    with suppress(AirflowException):  # no installed provider knows the type
        if isinstance(hook := connection.get_hook(), RegistryHook):
            hook._found = connection
            return hook
    raise InvalidInput(
        f"the connection's type {connection.conn_type!r} is no model registry",
        argument="registry_conn_id",
        connection=connection.conn_id,
    )

"""Operators that move models: push and pull, to and from any registry."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from airflow.sdk import Asset, AssetAlias, BaseOperatorLink, ObjectStoragePath
from airflow.sdk.definitions.asset import AssetRef

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.core.arguments import (
    Command,
    Count,
    Facts,
    Flag,
    Labels,
    ModelNames,
    OnReference,
    Options,
    OptionsByName,
    PartSize,
    Patterns,
    Reference,
    Seconds,
    SignaturePolicy,
    Signing,
    Span,
    Text,
    Threads,
    Versions,
)
from airflow_provider_modelsync.core.errors import InvalidInput, Permanent, RegistryUnavailable, Retryable
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.models import (
    ModelVersion,
    PulledModel,
    Query,
    SyncedVersion,
    TransferStats,
    VersionStatus,
)
from airflow_provider_modelsync.core.verbs.wait import find_version
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.links import RegistryConsoleLink, remember_link
from airflow_provider_modelsync.operators.arguments import DEFERRABLE, Place
from airflow_provider_modelsync.operators.base import (
    ModelSyncOperator,
    RegistryOperator,
    TaskCheckpoint,
)
from airflow_provider_modelsync.operators.fetch import fetch
from airflow_provider_modelsync.operators.storage import local_source, pull_into, resolve
from airflow_provider_modelsync.triggers.base import DEFAULT_POLL_INTERVAL, outcome_of
from airflow_provider_modelsync.triggers.model import ModelVersionTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.transfer.checkpoint import CheckpointStore

    Event = dict[str, JsonValue]


class PushModelOperator(RegistryOperator):
    """Push a model to a registry.

    Safe to repeat: a version left out is derived from the content, and bytes that are there already are not sent.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name`` or ``name:version`` (templated).
    :param source: a directory or a single file: a local path, or an object storage URL, which is copied to this
        machine first (templated).
    :param labels: short strings to choose by (templated).
    :param metadata: JSON values kept beside the version (templated).
    :param force: replace a version that holds other bytes (templated).
    :param options: what only this registry understands (templated).
    :param follow_links: ``"inside"`` reads links in the source as the files that they lead to, as long as these lie
        below the source, or below the cache that a Hugging Face snapshot belongs to; ``"never"`` refuses links
        (templated).
    :param include: patterns, as ``.gitignore`` files hold them, of the files to push; without any, of all (templated).
    :param exclude: patterns of files to leave out, besides ``.git`` and ``.cache/huggingface`` (templated).
    :param threads: that move bytes, instead of the connection's ``max_workers`` (templated).
    :param part_size_mib: MiB in a part of a multipart upload, instead of the connection's (templated).
    :param sign: whether to sign with the connection's ``signing_key``, the file of another key, or an object that names
        files: ``key`` and ``certificate``, or ``identity_token``, or a ``signature`` that was made elsewhere. Left out:
        as far as the connection names a key (templated).
    :param wait_for_ready: return once the registry says that the version is ready (templated).
    :param ready_timeout: how long to wait for that, in seconds or as a timedelta (templated).
    :param poll_interval: seconds between two looks while waiting (templated).
    :param deferrable: wait in the triggerer instead of a worker slot (templated).
    :return: the version as a dictionary, with ``skipped`` and ``resumed_bytes``. When the version was there already
        with other metadata that cannot be changed, ``metadata_kept`` is false.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json", "metadata": "json", "options": "json"}
    ui_color = "#d5e8d4"

    def __init__(
        self,
        *,
        model: Reference,
        source: Place,
        labels: Labels | None = None,
        metadata: Facts | None = None,
        force: Flag = False,
        options: Options | None = None,
        follow_links: Text = "inside",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        threads: Threads | None = None,
        part_size_mib: PartSize | None = None,
        sign: Signing | None = None,
        wait_for_ready: Flag = True,
        ready_timeout: Span = 3600,
        poll_interval: Seconds = DEFAULT_POLL_INTERVAL,
        deferrable: Flag = DEFERRABLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.source = source
        self.labels = labels
        self.metadata = metadata
        self.force = force
        self.options = options
        self.follow_links = follow_links
        self.include = include
        self.exclude = exclude
        self.threads = threads
        self.part_size_mib = part_size_mib
        self.sign = sign
        self.wait_for_ready = wait_for_ready
        self.ready_timeout = ready_timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from airflow_provider_modelsync.core.archive.choice import BY_HABIT, Choice

        with self.attempt():
            choice = Choice(self.include, self.exclude, by_habit=BY_HABIT)
            with local_source(self.source, self._cancel_token, choice=choice) as source:
                version = self.get_hook(context).push(
                    source,
                    self.model,
                    labels=self.labels,
                    metadata=self.metadata,
                    force=self.force,
                    options=self.options,
                    checkpoint=TaskCheckpoint.of(context),
                    follow_links=self.follow_links,
                    include=self.include,
                    exclude=self.exclude,
                    threads=self.threads,
                    part_size_mib=self.part_size_mib,
                    sign=self.sign,
                )
            transfer = version.transfer or TransferStats()
            if self.wait_for_ready and not version.ready:
                version = self._wait(version, transfer)
            return self._finish(context, version, transfer)

    def execute_complete(
        self, context: Context, event: Mapping[str, Any] | None, transfer: Mapping[str, Any]
    ) -> dict[str, JsonValue]:
        """Take over from the trigger: read the version once more and return it."""
        with self.attempt():
            version = self.get_hook().get(outcome_of(event))
            return self._finish(context, version, TransferStats.model_validate(transfer))

    def _wait(self, version: ModelVersion, transfer: TransferStats) -> ModelVersion:
        deadline = self.deadline_in(_seconds(self.ready_timeout))
        timeout = max(0.0, deadline - time.time())
        if self.deferrable:
            self.defer(
                trigger=ModelVersionTrigger(
                    registry_conn_id=self.registry_conn_id,
                    model=version.ref,
                    poll_interval=self.poll_interval,
                    deadline=deadline,
                ),
                method_name="execute_complete",
                kwargs={"transfer": transfer.model_dump()},
                timeout=timedelta(seconds=timeout + 60),
            )
        hook, seen = self.get_hook(), deque[str](maxlen=1)
        while True:
            try:
                found = hook.run(
                    lambda registry: find_version(registry, version.ref, Query(), tell=seen.append), model=version.ref
                )
            except RegistryUnavailable as error:
                self.log.warning("%s; the wait goes on", error)
                found = None
            if found is not None:
                return found
            if time.time() >= deadline:
                last = f": {seen[-1]}" if seen else ""
                raise RegistryUnavailable(f"{version.ref} was not ready after {timeout:.0f} s{last}")
            self._cancel_token.sleep(min(self.poll_interval, max(0.0, deadline - time.time())))

    def _finish(self, context: Context, version: ModelVersion, transfer: TransferStats) -> dict[str, JsonValue]:
        self.emit(context, version)
        self._trace.places_read.append(str(self.source))
        told: dict[str, JsonValue] = {} if transfer.metadata_kept else {"metadata_kept": False}
        return version.to_xcom(skipped=transfer.skipped, resumed_bytes=transfer.resumed_bytes, **told)


class PullModelOperator(RegistryOperator):
    """Pull a model from a registry.

    The target is absent, old, or new and verified at every moment. A target that holds exactly the wanted model is
    left alone, so a cleared task costs one comparison. One that still is what the last pull of the same model put there
    is replaced by the next version; one that somebody has touched is not.

    :param registry_conn_id: the registry's connection (templated).
    :param model: ``name`` or ``name:latest`` for the newest ready version, ``name:version`` for an exact one
        (templated).
    :param target: a directory: a local path, or an object storage URL, which is filled after the pull (templated).
        Left out where the system keeps models on its own host: it is then to have the model there.
    :param labels: that the version must have, an exact one, too (templated).
    :param query: that it must satisfy: name substrings, ``label:k``, ``label:k=v``, ``label:k=a,b`` (templated).
    :param force: replace whatever the target holds, once the new copy is verified (templated).
    :param verify: compare the bytes with the version's digest (templated).
    :param include: patterns, as ``.gitignore`` files hold them, of the files to pull; without any, of all (templated).
    :param exclude: patterns of files to leave out (templated).
    :param threads: that move bytes, instead of the connection's ``max_workers`` (templated).
    :param part_size_mib: MiB in a piece that a large file comes down in; 16 when left out (templated).
    :param on_reference: what becomes of a version that only points elsewhere, as BentoCloud's records of Hugging Face
        models do: ``"fail"``, or ``"skip"``: then there is nothing to pull, and no ``path`` (templated).
    :param reference_conn_id: the connection to the registry that such a version points to: it is pulled from there
        (templated).
    :param allowed_formats: of which all files must be, by what they hold, as ``["safetensors", "json"]``; all when left
        out (templated).
    :param scan: what looks at the files before they are visible: the name of an entry point in the group
        ``modelsync.scanners``, or a command, which ends with 0 when they are clean (templated).
    :param signatures: what becomes of a model that no trusted signer vouches for: ``"off"`` looks at no signatures,
        ``"warn"`` says so, ``"require"`` refuses it; the connection's when left out (templated).
    :param trusted_signers: files of public keys and certificates, or ``identity|issuer`` of Sigstore; the connection's
        when left out (templated).
    :param timeout: how long to wait for the system's own host, in seconds or as a timedelta (templated).
    :param poll_interval: seconds between two looks while waiting for it (templated).
    :param deferrable: wait for it in the triggerer instead of a worker slot. Give such a task a retry (templated).
    :return: the version as a dictionary, with ``path`` and ``skipped``; where patterns have chosen files, also with
        ``partial`` and with ``path_digest``, the digest of these files.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    ui_color = "#dae8fc"
    takes_models = True

    def __init__(
        self,
        *,
        model: Reference,
        target: Place | None = None,
        labels: Labels | None = None,
        query: Text | None = None,
        force: Flag = False,
        verify: Flag = True,
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
        timeout: Span = 6 * 3600,
        poll_interval: Seconds = DEFAULT_POLL_INTERVAL,
        deferrable: Flag = DEFERRABLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.target = target
        self.labels = labels
        self.query = query
        self.force = force
        self.verify = verify
        self.include = include
        self.exclude = exclude
        self.threads = threads
        self.part_size_mib = part_size_mib
        self.on_reference = on_reference
        self.reference_conn_id = reference_conn_id
        self.allowed_formats = allowed_formats
        self.scan = scan
        self.signatures = signatures
        self.trusted_signers = trusted_signers
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            if self.target is None:
                if self.include or self.exclude:
                    raise InvalidInput("the system's own host has models as a whole only", argument="include")
                if (self.allowed_formats, self.scan) != (None, None) or self.signatures not in (None, "off"):
                    raise InvalidInput(
                        "what the system's own host fetches passes by no worker: nothing can be checked",
                        argument="target",
                    )
                return self._finish(context, PulledModel(path=None, version=self._fetch(context)))
            target = resolve(self.target, "target")
            if not isinstance(target, ObjectStoragePath):
                pulled = self._pull(context, target)
            else:
                hook = self.get_hook(context)
                pulled = pull_into(
                    target,
                    hook,
                    self.model,
                    lambda place, ref: self._pull(context, place, ref),
                    labels=self.labels,
                    query=self.query,
                    choice=hook.get_conn().choice_type(self.include, self.exclude),
                    force=self.force,
                    cancel=self._cancel_token,
                    look_again=self._checks(hook),
                )
            return self._finish(context, pulled, None if pulled.is_elsewhere else str(target))

    def execute_complete(
        self, context: Context, event: Mapping[str, Any] | None, joined: bool = False, deadline: float | None = None
    ) -> dict[str, JsonValue]:
        """Take over from the trigger: read the version once more and return it.

        :param joined: whether an earlier try had asked for it, and may have taken that back: then it is asked for anew.
        :param deadline: when this try gives up, in seconds since the epoch.
        """
        with self.attempt():
            try:
                version = self.get_hook().get(outcome_of(event))
            except Permanent as error:
                if not joined:
                    raise
                self.log.warning("%s; asking for it anew", error)
                version = self._fetch(context, deadline)
            return self._finish(context, PulledModel(path=None, version=version))

    def _fetch(self, context: Context, deadline: float | None = None) -> ModelVersion:
        deadline = deadline or self.deadline_in(_seconds(self.timeout))
        return fetch(
            self,
            self.get_hook(context),
            self.model,
            deadline,
            self.poll_interval,
            arguments={"deadline": deadline},
            labels=self.labels,
            query=self.query,
            then="execute_complete" if self.deferrable else None,
        )

    def _finish(self, context: Context, pulled: PulledModel, path: str | None = None) -> dict[str, JsonValue]:
        self.emit(context, pulled.version)
        if path is not None:
            self._trace.places_written.append(path)
        part: dict[str, JsonValue] = {"partial": True, "path_digest": pulled.digest} if pulled.is_partial else {}
        skipped = (pulled.version.transfer or TransferStats()).skipped
        return pulled.version.to_xcom(path=path, skipped=skipped, **part)

    def _checks(self, hook: RegistryHook) -> bool:
        """Whether the model must stand any checks."""
        policy = self.signatures or hook.get_conn().settings.signatures
        return (self.allowed_formats, self.scan) != (None, None) or policy != "off"

    def _pull(self, context: Context, target: Path, model: str | None = None) -> PulledModel:
        return self.get_hook(context).pull(
            model or self.model,
            target,
            labels=self.labels,
            query=self.query,
            force=self.force,
            verify=self.verify,
            checkpoint=TaskCheckpoint.of(context),
            include=self.include,
            exclude=self.exclude,
            threads=self.threads,
            part_size_mib=self.part_size_mib,
            on_reference=self.on_reference,
            reference_conn_id=self.reference_conn_id,
            allowed_formats=self.allowed_formats,
            scan=self.scan,
            signatures=self.signatures,
            trusted_signers=self.trusted_signers,
        )


class SyncModelsOperator(ModelSyncOperator):
    """Bring versions of one registry into another, as far as they are not there yet.

    A model's versions are copied oldest first. A failing model does not stop the others. Safe to repeat: what is there
    is skipped, and a copy that was interrupted is continued.

    :param source_conn_id: the connection to read from (templated).
    :param target_conn_id: the connection to write to (templated).
    :param models: names or globs of names, or ``name@alias`` for what an alias of the source points to (templated).
    :param versions: of each model: ``"latest"``, ``"all"``, or so many of the newest (templated).
    :param labels: that a version must have (templated).
    :param options: name or glob of names → what only the target understands (templated).
    :param rename: name → its name in the target (templated).
    :param include: patterns, as ``.gitignore`` files hold them, of the files to copy; without any, of all. The version
        in the target then has the digest of these files (templated).
    :param exclude: patterns of files to leave out (templated).
    :param aliases: have the target's aliases point to what the source's do; what these point to is copied, too
        (templated).
    :param delete_extra: delete those versions of the models in the target that the source has not any more. The newest
        ready version stays, and what is aliased or deployed there (templated).
    :param keep_last: so many of the newest versions in the target stay all the same (templated).
    :param allowed_formats: of which all files must be, by what they hold, as ``["safetensors", "json"]``; all when left
        out (templated).
    :param scan: what looks at the files before anything goes to the target: the name of an entry point in the group
        ``modelsync.scanners``, or a command, which ends with 0 when they are clean (templated).
    :param signatures: what becomes of a model that no trusted signer vouches for: ``"off"`` looks at no signatures,
        ``"warn"`` says so, ``"require"`` refuses it; the connection's when left out (templated).
    :param trusted_signers: files of public keys and certificates, or ``identity|issuer`` of Sigstore; the connection's
        when left out (templated).
    :param fail_on_error: fail the task, once everything else is copied, when a model has failed (templated).
    :param dry_run: copy nothing, say what would be copied (templated).
    :return: ``counts`` and lists of what was ``copied``, ``skipped`` and ``failed``; where there are any, ``aliases``
        that were moved, and what was ``deleted``.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json", "options": "json", "rename": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (RegistryConsoleLink(),)
    ui_color = "#ffe6cc"
    # The argument, in the place of a method of Airflow's that renders templates and shows them.
    dry_run: Any = False

    def __init__(
        self,
        *,
        source_conn_id: Text,
        target_conn_id: Text,
        models: ModelNames = ("*",),
        versions: Versions = "latest",
        labels: Labels | None = None,
        options: OptionsByName | None = None,
        rename: Labels | None = None,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        aliases: Flag = False,
        delete_extra: Flag = False,
        keep_last: Count | None = None,
        allowed_formats: Patterns | None = None,
        scan: Command | None = None,
        signatures: SignaturePolicy | None = None,
        trusted_signers: Patterns | None = None,
        fail_on_error: Flag = True,
        dry_run: Flag = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_conn_id = source_conn_id
        self.target_conn_id = target_conn_id
        self.models = models
        self.versions = versions
        self.labels = labels
        self.options = options
        self.rename = rename
        self.include = include
        self.exclude = exclude
        self.aliases = aliases
        self.delete_extra = delete_extra
        self.keep_last = keep_last
        self.allowed_formats = allowed_formats
        self.scan = scan
        self.signatures = signatures
        self.trusted_signers = trusted_signers
        self.fail_on_error = fail_on_error
        self.dry_run = dry_run

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from airflow_provider_modelsync.core.verbs.sync import Selection

        with self.attempt():
            source, target = (self.hook_for(conn_id, context) for conn_id in (self.source_conn_id, self.target_conn_id))
            remember_link(context, target.page_of)
            checkpoint = TaskCheckpoint.of(context)
            copies = _Copies(checkpoint if self.outlets and not self.dry_run else None, target)
            report = source.sync_to(
                target,
                Selection(
                    models=self.models,
                    versions=self.versions,
                    labels=self.labels or {},
                    options=self.options or {},
                    rename=self.rename or {},
                    include=self.include,
                    exclude=self.exclude,
                    aliases=self.aliases,
                    delete_extra=self.delete_extra,
                    keep_last=self.keep_last,
                ),
                dry_run=self.dry_run,
                checkpoint=checkpoint,
                on_copied=copies.add,
                allowed_formats=self.allowed_formats,
                scan=self.scan,
                signatures=self.signatures,
                trusted_signers=self.trusted_signers,
            )
            if not report.dry_run:
                self._trace_copies(source, target, report.of("copied"))
            failed = report.of("failed")
            if failed and self.fail_on_error:
                kind = Permanent if all(version.is_permanent for version in failed) else Retryable
                raise kind(f"{len(failed)} of {len(report.versions)} failed: {'; '.join(map(str, failed))}")
            self._tell_of_copies(context, target, copies.events())
            copies.forget()
            return report.to_xcom()

    def _trace_copies(self, source: RegistryHook, target: RegistryHook, copies: Sequence[SyncedVersion]) -> None:
        """Describe copies in the task's lineage."""
        for copy in copies:
            self._trace.read.append((source.registry_conn_id, _version(source, copy.source, copy)))
            self._trace.written.append((target.registry_conn_id, _made(target, copy)))

    def _tell_of_copies(self, context: Context, target: RegistryHook, copies: Collection[Event]) -> None:
        """Describe copies to the task's outlets: all to an alias, to a model's asset its own."""
        events: dict[str, list[Event]] = {}
        for copy in copies:
            asset = model_asset(target.registry_conn_id, str(copy["name"]))
            for known_as in (asset.uri, asset.name):
                events.setdefault(known_as, []).append(copy)
            for alias in (outlet for outlet in self.outlets if isinstance(outlet, AssetAlias)):
                context["outlet_events"][alias].add(asset, extra=copy)
        for outlet in self.outlets:
            if isinstance(outlet, (Asset, AssetRef)) and (own := events.get(_uri_of(outlet))):
                context["outlet_events"][outlet].extra.update(own[0] if len(own) == 1 else {"versions": list(own)})


def _uri_of(outlet: Asset | AssetRef) -> str:
    """Return what an outlet is known by: its URI, or a reference's name."""
    return str(getattr(outlet, "uri", None) or getattr(outlet, "name", ""))


class _Copies:
    """Events of copies that nobody was told of: Airflow drops those of a failed try. Safe to use from many threads."""

    def __init__(self, store: CheckpointStore | None, target: RegistryHook) -> None:
        self._store = store
        self._target = target
        self._lock = Lock()
        self._chunks = self._load()

    def add(self, copy: SyncedVersion) -> None:
        """Remember a copy."""
        from airflow_provider_modelsync.core.transfer.checkpoint import VALUE_LIMIT

        event = _made(self._target, copy).to_event()
        with self._lock:
            if not self._chunks or len(json.dumps([*self._chunks[-1], event])) > VALUE_LIMIT:
                self._chunks.append([])
            self._chunks[-1].append(event)
            if self._store is not None:
                self._store.set(self._key(len(self._chunks) - 1), list(self._chunks[-1]))

    def events(self) -> Collection[Event]:
        """Return the event of each copy, this try's and those of tries before."""
        return {(event["name"], event["version"]): event for chunk in self._chunks for event in chunk}.values()

    def forget(self) -> None:
        """Remove everything: all who wait are told."""
        for index in reversed(range(len(self._chunks))):  # reading ends at the first gap
            if self._store is not None:
                self._store.delete(self._key(index))

    def _load(self) -> list[list[Event]]:
        chunks: list[list[Event]] = []
        for index in count():
            stored = self._store.get(self._key(index)) if self._store else None
            if not isinstance(stored, list):
                break
            chunks.append([event for event in stored if _is_event(event)])
        return chunks

    def _key(self, index: int) -> str:
        return f"copies.v1.{self._target.registry_conn_id}.{index}"


def _is_event(value: JsonValue) -> TypeGuard[Event]:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "version"))


def _made(target: RegistryHook, copy: SyncedVersion) -> ModelVersion:
    """Return what a sync's report tells of the copy that it made."""
    made = _version(target, copy.target or copy.source, copy)
    return made.model_copy(update={"created_at": copy.created_at})


def _version(hook: RegistryHook, ref: str, copy: SyncedVersion) -> ModelVersion:
    """Return what a sync's report tells of a version."""
    name, _, version = ref.rpartition(":")
    return ModelVersion(
        registry=hook.conn_type, name=name, version=version, status=VersionStatus.READY, digest=copy.digest
    )


def _seconds(span: float | timedelta) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)

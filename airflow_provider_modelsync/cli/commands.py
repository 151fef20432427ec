"""What the commands of ``airflow modelsync`` do."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelsync.cli.session import FAILED, TRY_AGAIN, Answer, Session, command
from airflow_provider_modelsync.core.archive.choice import BY_HABIT, Choice
from airflow_provider_modelsync.core.arguments import looks_structured, seconds, structure
from airflow_provider_modelsync.core.errors import Cancelled, ModelNotFound, NotReady, Retryable
from airflow_provider_modelsync.core.models import Deployment, ModelVersion, PulledModel, Query, SyncReport
from airflow_provider_modelsync.core.text import span
from airflow_provider_modelsync.core.transfer.progress import readable
from airflow_provider_modelsync.core.verbs.sync import Selection
from airflow_provider_modelsync.core.verbs.wait import ABSENT, Since, find_version
from airflow_provider_modelsync.operators.storage import local_source, publish_file, pull_into, resolve

log = logging.getLogger("modelsync")


@command
def list_models(args: argparse.Namespace, session: Session) -> Answer:
    """List the newest ready version of each model."""
    hook, query = session.hook(args.conn_id), " ".join(args.query) or None
    versions = hook.list_models(query, all_versions=args.all_versions)
    rows = [
        (version.name, version.version, _size(version), _time(version), _pairs(version.labels)) for version in versions
    ]
    headers = ("NAME", "VERSION", "SIZE", "CREATED", "LABELS")
    chosen = f" that {' '.join(args.query)} chooses" if args.query else ""
    empty = f"no models in {args.conn_id} ({hook.address}){chosen}"
    return Answer([version.to_json() for version in versions], rows, headers, empty=empty)


@command
def versions(args: argparse.Namespace, session: Session) -> Answer:
    """List the versions of a model."""
    hook = session.hook(args.conn_id)
    found = hook.list_versions(args.model, args.query, labels=dict(args.label))[: args.limit]
    rows = [(one.version, str(one.status), _size(one), _time(one), _pairs(one.labels)) for one in found]
    return Answer([one.to_json() for one in found], rows, ("VERSION", "STATUS", "SIZE", "CREATED", "LABELS"))


@command
def label(args: argparse.Namespace, session: Session) -> Answer:
    """Change labels of a version."""
    changes: dict[str, str | None] = {**dict(args.labels), **dict.fromkeys(args.remove)}
    version = session.hook(args.conn_id).set_labels(args.model, changes)
    return Answer(version.to_json(), [(version.ref, _pairs(version.labels))])


@command
def list_aliases(args: argparse.Namespace, session: Session) -> Answer:
    """List the aliases of a model."""
    found = session.hook(args.conn_id).aliases(args.model)
    rows = [(one.alias, one.version, "" if one.since is None else _moment(one.since)) for one in found]
    return Answer([one.model_dump(mode="json") for one in found], rows, ("ALIAS", "VERSION", "SINCE"))


@command
def set_alias(args: argparse.Namespace, session: Session) -> Answer:
    """Have an alias point to a version."""
    now = session.hook(args.conn_id).set_alias(args.model, args.alias, expected=args.expected)
    return Answer(now.model_dump(mode="json"), [(f"{now} points to {now.ref}",)])


@command
def remove_alias(args: argparse.Namespace, session: Session) -> Answer:
    """Remove an alias."""
    removed = session.hook(args.conn_id).delete_alias(args.model, args.alias)
    shown = f"{args.model}@{args.alias}"
    return Answer({"alias": shown, "removed": removed}, [(f"{shown} {'is removed' if removed else 'was not there'}",)])


@command
def promote(args: argparse.Namespace, session: Session) -> Answer:
    """Have an alias point to a version that is better."""
    done = session.hook(args.conn_id).promote(args.model, args.alias, when=args.when)
    return Answer(done.to_xcom(), [(done.reason,)], status=FAILED if done.outcome == "refused" else 0)


@command
def rollback(args: argparse.Namespace, session: Session) -> Answer:
    """Have an alias point to the version before."""
    done = session.hook(args.conn_id).rollback(args.model, args.alias, to=args.to)
    return Answer(done.to_xcom(), [(f"{done.alias} points to {done.version.ref}, no more to {done.before}",)])


@command
def prune(args: argparse.Namespace, session: Session) -> Answer:
    """Delete versions that nobody needs any more."""
    labels = (label.partition("=") for label in args.keep_label)
    report = session.hook(args.conn_id).prune(
        args.models,
        keep_last=args.keep_last,
        older_than=args.older_than,
        keep_labels={key: value if equals else None for key, equals, value in labels},
        keep_aliased=not args.no_keep_aliased,
        min_keep=args.min_keep,
        leftovers_older_than=args.leftovers_older_than,
        dry_run=args.dry_run or not args.delete,
    )
    if report.dry_run:
        session.warn("DRY RUN: nothing was deleted. --delete deletes.")
    failed = report.of("failed")
    status = 0 if not failed else FAILED if all(entry.is_permanent for entry in failed) else TRY_AGAIN
    data = {"dry_run": report.dry_run, "entries": [entry.model_dump(mode="json") for entry in report.entries]}
    told = [*map(str, report.entries), f"{report} (dry run)" if report.dry_run else str(report)]
    return Answer(data, [(line,) for line in told], status=status)


@command
def delete(args: argparse.Namespace, session: Session) -> Answer:
    """Delete an exact version."""
    deleted = session.hook(args.conn_id).delete(args.model)
    told = f"{args.model} {'is deleted' if deleted else 'was not there'}"
    return Answer({"ref": args.model, "deleted": deleted}, [(told,)])


@command
def deploy(args: argparse.Namespace, session: Session) -> Answer:
    """Have a model served."""
    hook = session.hook(args.conn_id)
    return _deployed(hook.deploy(args.deployment, args.model, config=args.config, **_checks(args)))


@command
def undeploy(args: argparse.Namespace, session: Session) -> Answer:
    """End a deployment."""
    return _deployed(session.hook(args.conn_id).undeploy(args.deployment))


@command
def predict(args: argparse.Namespace, session: Session) -> Answer:
    """Have a deployment make predictions."""
    hook, output = session.hook(args.conn_id), resolve(args.target, "target")
    with ExitStack() as stack:
        inputs = args.inputs
        if looks_structured(inputs):
            inputs = structure(inputs)
        else:
            inputs = stack.enter_context(local_source(inputs, session.cancel, "inputs"))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelsync-"))
        written = Path(scratch) / "predictions" if isinstance(output, ObjectStoragePath) else output
        made = hook.predict(args.deployment, inputs, output=written, **(args.options or {}))
        if isinstance(output, ObjectStoragePath):
            publish_file(written, output, cancel=session.cancel)
    told = f"{'predictions' if made.count is None else made.count} in {output} ({readable(made.size_bytes)})"
    return Answer(made.to_xcom(output=str(output)), [(told,)])


@command
def wait(args: argparse.Namespace, session: Session) -> Answer:
    """Wait until a version is there."""
    hook, query = session.hook(args.conn_id), Query.parse(None, dict(args.label))
    since = None if args.newer_than is None else Since(args.newer_than)
    deadline = time.monotonic() + seconds(args.timeout, "--timeout")
    pause = seconds(args.poll_interval, "--poll-interval")

    seen: list[str] = []

    def look() -> ModelVersion | None:
        told = [ABSENT]
        try:
            found = hook.run(
                lambda registry: find_version(
                    registry, args.model, query, newer_than=since, state=args.state, tell=told.append
                ),
                model=args.model,
            )
        except Cancelled:
            raise
        except Retryable as error:
            log.warning("%s; the wait goes on", error)
            return None
        if found is None and told[-1:] != seen[-1:]:
            log.warning("%s: %s; waiting up to %s longer", args.model, told[-1], span(deadline - time.monotonic()))
            seen.append(told[-1])
        return found

    while (found := look()) is None:
        if (rest := deadline - time.monotonic()) <= 0:
            state = "".join(f": {state}" for state in seen[-1:])
            raise NotReady(f"{args.model} is not there yet{state}", model=args.model, connection=args.conn_id)
        session.cancel.sleep(min(pause, rest))
    return Answer(found.to_json(), [(f"{found.ref} is there",)])


def _checks(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "allowed_formats": args.allow_format or None,
        "scan": args.scan,
        "signatures": args.signatures,
        "trusted_signers": args.trusted_signer or None,
    }


def _deployed(deployment: Deployment) -> Answer:
    facts = {
        "deployment": deployment.name,
        "status": deployment.status,
        "model": deployment.model,
        "revision": deployment.revision,
        "url": deployment.url,
        "page": deployment.page,
    }
    return Answer(deployment.to_xcom(), [(fact, text) for fact, text in facts.items() if text])


@command
def show(args: argparse.Namespace, session: Session) -> Answer:
    """Show a version."""
    hook = session.hook(args.conn_id)
    version = hook.get(args.model)
    page = hook.page_of(version)
    facts = {
        "model": version.ref,
        "registry": version.registry,
        "status": version.status,
        "digest": version.digest,
        "size": _size(version),
        "created": _time(version),
        "labels": _pairs(version.labels),
        "metadata": _pairs(version.metadata),
        "aliases": " ".join(version.aliases),
        "uri": version.uri,
        "page": page,
    }
    return Answer(version.to_json(page=page), [(fact, text) for fact, text in facts.items() if text])


@command
def signature(args: argparse.Namespace, session: Session) -> Answer:
    """Print what is kept of signatures."""
    kept = session.hook(args.conn_id).signatures(args.model)
    if not kept:
        raise ModelNotFound(f"{args.model} has no signature", model=args.model, connection=args.conn_id)
    told = [one.decode("utf-8", "replace") for one in kept]
    return Answer(told, [(one,) for one in told])


@command
def push(args: argparse.Namespace, session: Session) -> Answer:
    """Push a model."""
    hook = session.hook(args.conn_id)
    choice = Choice(args.include, args.exclude, by_habit=BY_HABIT)
    with (
        session.progress(hook, f"pushing {args.model}"),
        local_source(args.source, session.cancel, choice=choice) as source,
    ):
        version = hook.push(
            source,
            args.model,
            labels=dict(args.label),
            metadata=args.metadata,
            force=args.force,
            options=args.options,
            follow_links=args.follow_links,
            include=args.include,
            exclude=args.exclude,
            threads=args.threads,
            part_size_mib=args.part_size_mib,
            sign=args.sign,
        )
    return Answer(version.to_json(), [(_told("pushed", version),)])


@command
def pull(args: argparse.Namespace, session: Session) -> Answer:
    """Pull a model."""
    hook = session.hook(args.conn_id)
    target = resolve(args.target, "target")

    def pull_locally(directory: Path, model: str = args.model) -> PulledModel:
        return hook.pull(
            model,
            directory,
            labels=dict(args.label),
            query=args.query,
            force=args.force,
            verify=not args.no_verify,
            include=args.include,
            exclude=args.exclude,
            threads=args.threads,
            part_size_mib=args.part_size_mib,
            on_reference=args.on_reference,
            **_checks(args),
        )

    with session.progress(hook, f"pulling {args.model}"):
        if not isinstance(target, ObjectStoragePath):
            pulled = pull_locally(target)
        else:
            pulled = pull_into(
                target,
                hook,
                args.model,
                pull_locally,
                labels=dict(args.label),
                query=args.query,
                choice=Choice(args.include, args.exclude),
                force=args.force,
                cancel=session.cancel,
                look_again=any(_checks(args).values()) or hook.get_conn().settings.signatures != "off",
            )
    version = pulled.version
    if pulled.is_elsewhere:
        return Answer(version.to_json(path=None), [(f"{version.ref} only points to {version.reference}",)])
    return Answer(version.to_json(path=str(target)), [(f"{_told('pulled', version)} in {target}",)])


@command
def sync(args: argparse.Namespace, session: Session) -> Answer:
    """Bring versions of one registry into another."""
    source, target = session.hook(args.source_conn_id), session.hook(args.target_conn_id)
    selection = Selection(
        models=args.models,
        versions=args.versions,
        labels=dict(args.label),
        options=dict(args.options),
        rename=dict(args.rename),
        include=args.include,
        exclude=args.exclude,
        aliases=args.aliases,
        delete_extra=args.delete_extra,
        keep_last=args.keep_last,
    )
    with session.progress(target, "syncing"):
        report = source.sync_to(target, selection, dry_run=args.dry_run, **_checks(args))
    told = [
        *map(str, report.versions),
        *(f"{alias} points to {ref}" for alias, ref in report.aliases.items()),
        *(f"{ref} deleted" for ref in report.deleted),
        report.summary,
    ]
    return Answer(report.to_json(), [(line,) for line in told], status=_status_of(report))


def _status_of(report: SyncReport) -> int:
    failed = report.of("failed")
    if not failed:
        return 0
    return FAILED if all(version.is_permanent for version in failed) else TRY_AGAIN


def _told(done: str, version: ModelVersion) -> str:
    transfer = version.transfer
    if transfer is None or transfer.skipped:
        return f"{version.ref} is there already"
    resumed = f", {readable(transfer.resumed_bytes)} resumed" if transfer.resumed_bytes else ""
    return f"{done} {version.ref} ({readable(transfer.sent_bytes)}{resumed})"


def _size(version: ModelVersion) -> str:
    return "" if version.size_bytes is None else readable(version.size_bytes)


def _time(version: ModelVersion) -> str:
    return "" if version.created_at is None else _moment(version.created_at)


def _moment(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")


def _pairs(facts: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sorted(facts.items())
    )

"""Operators for what happens to a model after its push: promotion, rollback, retention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.assets import alias_asset
from airflow_provider_modelsync.compat import AirflowSkipException
from airflow_provider_modelsync.core.arguments import (
    Conditions,
    Count,
    Flag,
    ModelNames,
    Reference,
    Span,
    Text,
    VersionName,
    WantedLabels,
)
from airflow_provider_modelsync.core.errors import InvalidInput, Permanent, Retryable
from airflow_provider_modelsync.core.verbs.promote import rollback
from airflow_provider_modelsync.links import remember_link
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion

REFUSALS = ("skip", "fail", "pass")
RED, PLAIN = "\033[31m", "\033[0m"  # as Airflow's log shows it
_DECIDED = "rollback.v1"


class _MovesAlias(RegistryOperator):
    """Base of the operators that move an alias.

    :param model: the model (templated).
    :param alias: the alias (templated).
    """

    ui_color = "#e1d5e7"

    def __init__(self, *, model: Reference, alias: Text, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.alias = alias

    def tell_of_move(self, context: Context, version: ModelVersion, before: str | None) -> None:
        """Describe a move in the events of the task's outlets and in its lineage."""
        version = version.found_by(self.alias)
        event = {**version.to_event(), "from": before}
        self.tell_outlets(context, alias_asset(self.registry_conn_id, version.name, self.alias), event)
        self._trace.written.append((self.registry_conn_id, version))
        remember_link(context, lambda: self.get_hook().page_of(version))


class PromoteModelOperator(_MovesAlias):
    """Have an alias point to a version, if that is better than what it points to.

    Its outlets have an event when the alias was moved, an ``AssetAlias`` one of the asset
    ``modelsync://<connection>/<name>@<alias>``. Safe to repeat: a version that the alias points to already is fine.

    :param registry_conn_id: the registry's connection (templated).
    :param model: what is to be promoted: ``name:version``, the dictionary of a version, ``name`` for the newest ready
        version, or another alias (templated).
    :param alias: e.g. ``"champion"`` (templated).
    :param when: a condition on the metadata of both, or a list of conditions that must all be met, as
        ``{"metric": "auc", "mode": "max", "at_least": 0.005}``. Without ``at_least`` a version must be better at all.
        Without any condition, or where the alias points to nothing so far, it is promoted (templated).
    :param on_refusal: what becomes of the task when a condition is not met: ``"skip"``, ``"fail"`` or ``"pass"``; with
        the last an outlet that is a plain asset has an event all the same (templated).
    :return: whether it was ``promoted`` and the ``reason``, the references ``from`` and ``to`` which the alias points,
        and ``ref``, the same as ``to``. A task that is skipped or fails by a refusal leaves it, too.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"when": "json"}

    def __init__(self, *, when: Conditions | None = None, on_refusal: Text = "skip", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.when = when
        self.on_refusal = on_refusal

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            if self.on_refusal not in REFUSALS:
                raise InvalidInput(f"{self.on_refusal!r} is none of {', '.join(REFUSALS)}", argument="on_refusal")
            promotion = self.get_hook().promote(self.model, self.alias, when=self.when)
            self.log.info(promotion.reason)
            told = promotion.to_xcom()
            if promotion.outcome == "refused" and self.on_refusal != "pass":
                if instance := context.get("ti"):  # what a task returns is kept of those that succeed only
                    instance.xcom_push(key="return_value", value=told)
                if self.on_refusal == "skip":
                    raise AirflowSkipException(promotion.reason)
                raise Permanent(promotion.reason)
            if promotion.outcome == "promoted":
                self.tell_of_move(context, promotion.candidate, promotion.before)
            return told


class RollbackModelOperator(_MovesAlias):
    """Have an alias point to the version that it pointed to before.

    What was gone back from is not gone back to: a second rollback goes one further. A task that is tried again carries
    out what its first try has decided. Outlets as of a promotion.

    :param registry_conn_id: the registry's connection (templated).
    :param model: the model's name (templated).
    :param alias: e.g. ``"champion"`` (templated).
    :param to: a version instead of the one before; needed where the registry does not remember that (templated).
    :return: the references ``from`` and ``to`` which the alias points, and ``ref``, the same as ``to``;
        ``passed_over`` are those before that are gone.
    """

    ui_color = "#f8cecc"

    def __init__(self, *, to: VersionName | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to = to

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            checkpoint = TaskCheckpoint.of(context)
            # Where the alias pointed is looked up by its history, which this task changes itself.
            decided = _decision(checkpoint.get(_DECIDED), self.to) if checkpoint else None
            try:
                done = self.get_hook().run(
                    lambda registry: rollback(
                        registry,
                        self.model,
                        self.alias,
                        self.to,
                        decided=decided,
                        on_decided=lambda decision: checkpoint.set(_DECIDED, decision) if checkpoint else None,
                    ),
                    model=self.model,
                )
            except Permanent:  # what was decided cannot be carried out any more: whoever clears the task decides anew
                if checkpoint:
                    checkpoint.delete(_DECIDED)
                raise
            self.log.info("%s points to %s, no more to %s", done.alias, done.version.ref, done.before)
            self.tell_of_move(context, done.version, done.before)
            if checkpoint:
                checkpoint.delete(_DECIDED)
            return done.to_xcom()


class PruneModelsOperator(RegistryOperator):
    """Delete versions that nobody needs any more.

    Whatever else is said, the newest ready version of a model stays, and what a running deployment needs where the
    system tells. What cannot be deleted does not stop the rest; it fails the task in the end.

    :param registry_conn_id: the registry's connection (templated).
    :param models: names or globs of names (templated).
    :param keep_last: so many of the newest ready versions of each model stay (templated).
    :param older_than: what is younger stays: a duration (templated).
    :param keep_labels: versions with one of these labels stay: label → value, ``None`` for whatever value, or a list of
        labels (templated).
    :param keep_aliased: what an alias points to stays, and what it would be rolled back to (templated).
    :param min_keep: so many of the newest ready versions stay, however old they are (templated).
    :param leftovers_older_than: in a model store, remove what pushes have left behind, too, as far as it is older than
        this duration: unfinished uploads, claims, files that no version holds (templated).
    :param dry_run: delete nothing, say what would be deleted. This is the default (templated).
    :return: ``dry_run``, ``counts``, and lists of what was ``deleted``, ``failed``, ``kept`` and why, and ``tidied``.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"keep_labels": "json"}
    ui_color = "#f8cecc"
    # The argument, in the place of a method of Airflow's that renders templates and shows them.
    dry_run: Any = True

    def __init__(
        self,
        *,
        models: ModelNames,
        keep_last: Count | None = None,
        older_than: Span | None = None,
        keep_labels: WantedLabels | None = None,
        keep_aliased: Flag = True,
        min_keep: Count = 1,
        leftovers_older_than: Span | None = None,
        dry_run: Flag = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.models = models
        self.keep_last = keep_last
        self.older_than = older_than
        self.keep_labels = keep_labels
        self.keep_aliased = keep_aliased
        self.min_keep = min_keep
        self.leftovers_older_than = leftovers_older_than
        self.dry_run = dry_run

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            hook = self.get_hook()
            report = hook.prune(
                self.models,
                keep_last=self.keep_last,
                older_than=self.older_than,
                keep_labels=self.keep_labels,
                keep_aliased=self.keep_aliased,
                min_keep=self.min_keep,
                leftovers_older_than=self.leftovers_older_than,
                dry_run=self.dry_run,
            )
            remember_link(context, hook.page_of)
            self.log.info("%s", report)
            if report.dry_run:
                # Not by the engine's log, which lets no control characters through.
                self.log.warning("%sDRY RUN: nothing was deleted. dry_run=False deletes.%s", RED, PLAIN)
            if failed := report.of("failed"):
                kind = Permanent if all(entry.is_permanent for entry in failed) else Retryable
                raise kind(f"{len(failed)} of {len(report.entries)} failed: {'; '.join(map(str, failed))}")
            return report.to_xcom()


def _decision(kept: JsonValue, to: str | None) -> dict[str, str | None] | None:
    """Return what an earlier try has decided, unless something else is asked for now."""
    if not isinstance(kept, dict) or not isinstance(kept.get("to"), str) or (to is not None and kept["to"] != to):
        return None
    before = kept.get("from")
    return {"from": before if isinstance(before, str) else None, "to": str(kept["to"])}

"""Operators for what happens to a model after its push: promotion, rollback, retention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.assets import alias_asset
from airflow_provider_modelsync.compat import AirflowSkipException
from airflow_provider_modelsync.core.arguments import Conditions, Reference, Text, VersionName
from airflow_provider_modelsync.core.errors import InvalidInput, Permanent
from airflow_provider_modelsync.core.verbs.promote import rollback
from airflow_provider_modelsync.links import remember_link
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion

REFUSALS = ("skip", "fail", "pass")
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


def _decision(kept: JsonValue, to: str | None) -> dict[str, str | None] | None:
    """Return what an earlier try has decided, unless something else is asked for now."""
    if not isinstance(kept, dict) or not isinstance(kept.get("to"), str) or (to is not None and kept["to"] != to):
        return None
    before = kept.get("from")
    return {"from": before if isinstance(before, str) else None, "to": str(kept["to"])}

"""Aliases: names that move from one version of a model to another."""

from __future__ import annotations

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Alias, ModelRef
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases


def list_aliases(registry: Registry, name: str) -> Flow[list[Alias]]:
    """Return the aliases of a model, by their names."""
    return (yield from Aliases.of(registry).aliases(registry.parse(name).name))


def set_alias(registry: Registry, model: str, alias: str, *, expected: str | None = None) -> Flow[Alias]:
    """Have an alias point to a version.

    :param registry: where.
    :param model: what it is to point to: any reference that leads to a ready version.
    :param alias: the alias.
    :param expected: as for :meth:`~..registries.capabilities.Aliases.set_alias`.
    :raises InvalidInput: when the version is not ready.
    :raises VersionConflict: when the alias points elsewhere than expected.
    """
    aliases, ref = Aliases.of(registry), registry.parse(model)
    registry.check(ModelRef(name=ref.name, alias=alias))
    version = yield from registry.get(ref)
    if not version.ready:
        raise InvalidInput(f"{version.ref} is {version.status}, and an alias leads to ready versions", argument="model")
    return (yield from aliases.set_alias(version, alias, expected=expected))


def delete_alias(registry: Registry, name: str, alias: str) -> Flow[bool]:
    """Remove an alias; return whether it was there."""
    aliases, ref = Aliases.of(registry), registry.parse(name)
    registry.check(ModelRef(name=ref.name, alias=alias))
    return (yield from aliases.delete_alias(ref.name, alias))

"""The hook of BentoCloud and Yatai."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_modelsync.core.arguments import Flag, LabelChanges, PartSize, Reference, Text, Threads
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.hooks.metrics import measured
from airflow_provider_modelsync.hooks.registry import RegistryHook, as_understood

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.models import ModelVersion
    from airflow_provider_modelsync.core.registries.base import Registry
    from airflow_provider_modelsync.core.registries.bentocloud.api import Repository
    from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud
    from airflow_provider_modelsync.core.transfer.checkpoint import CheckpointStore


class BentoCloudHook(RegistryHook):
    """Access to the models of one BentoCloud organisation, or of a Yatai server.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "bentocloud"
    hook_name = "BentoCloud"
    default_conn_name = "bentocloud_default"

    @classmethod
    def registry_type(cls) -> type[BentoCloud]:
        from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud

        return BentoCloud

    def get_repository(self, name: str) -> dict[str, Any]:
        """Return what the versions of a model belong to: ``name``, ``description``, ``labels``, ``creator``, times.

        :param name: the model's name.
        :raises ModelNotFound: when there is none.
        """
        return self.run(lambda registry: _shown(_cloud(registry).repository(registry.parse(name))), model=name)

    @as_understood
    def update_repository(
        self, name: Reference, *, description: Text | None = None, labels: LabelChanges | None = None
    ) -> dict[str, Any]:
        """Change description and labels of what the versions of a model belong to; return it as it is then.

        :param name: the model's name.
        :param description: ``None`` keeps the one that it has.
        :param labels: merged into those that it has; a ``None`` value removes one.
        :raises ModelNotFound: when there is none.
        """
        return self.run(
            lambda registry: _shown(_cloud(registry).describe(registry.parse(name), description, labels)), model=name
        )

    @as_understood
    def push_bento(
        self,
        source: str | os.PathLike[str],
        *,
        force: Flag = False,
        checkpoint: CheckpointStore | None = None,
        threads: Threads | None = None,
        part_size_mib: PartSize | None = None,
    ) -> ModelVersion:
        """Push a built bento.

        :param source: its directory, with the ``bento.yaml`` that names it.
        :param force: replace a bento that holds other bytes.
        :param checkpoint: where tries remember what is done.
        :param threads: that move bytes, instead of the connection's ``max_workers``.
        :param part_size_mib: MiB in a part of a multipart upload, instead of the connection's.
        :return: the bento's name, version and state.
        :raises InvalidInput: when the source is no built bento, or a model that it was built with is not there.
        :raises VersionConflict: when the bento exists with other bytes.
        """
        from airflow_provider_modelsync.core.registries.bentocloud.bentos import Bentos, bento_ref
        from airflow_provider_modelsync.core.verbs.push import push

        bentos = Bentos(self._registry_with(threads, part_size_mib).settings)
        with self._named(None):
            ref = bento_ref(source)
        with self._named(str(ref)), driver_for(bentos, self.cancel_token) as driver:
            bentos.check(ref)
            control = self._control(bentos, f"pushing the bento {ref}", checkpoint)
            with measured("push", control.tally, self._tags()) as note:
                version = push(bentos, driver, source, ref, control, force=force)
                note(version.transfer)
            return version


def _cloud(registry: Registry) -> BentoCloud:
    return cast("BentoCloud", registry)


def _shown(flow: Flow[Repository]) -> Flow[dict[str, Any]]:
    found = yield from flow
    return {
        "name": found.name,
        "description": found.description,
        "labels": found.plain_labels,
        "creator": found.creator.name if found.creator else None,
        "created_at": found.created_at and found.created_at.isoformat(),
        "updated_at": found.updated_at and found.updated_at.isoformat(),
    }

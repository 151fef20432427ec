"""The hook of BentoCloud and Yatai."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.hooks.metrics import measured
from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.models import ModelVersion
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

    def push_bento(
        self, source: str | os.PathLike[str], *, force: bool = False, checkpoint: CheckpointStore | None = None
    ) -> ModelVersion:
        """Push a built bento.

        :param source: its directory, with the ``bento.yaml`` that names it.
        :param force: replace a bento that holds other bytes.
        :param checkpoint: where tries remember what is done.
        :return: the bento's name, version and state.
        :raises InvalidInput: when the source is no built bento, or a model that it was built with is not there.
        :raises VersionConflict: when the bento exists with other bytes.
        """
        from airflow_provider_modelsync.core.registries.bentocloud.bentos import Bentos, bento_ref
        from airflow_provider_modelsync.core.verbs.push import push

        bentos = Bentos(self.get_conn().settings)
        with self._named(None):
            ref = bento_ref(source)
        with self._named(str(ref)), driver_for(bentos, self.cancel_token) as driver:
            bentos.check(ref)
            control = self._control(bentos, f"pushing the bento {ref}", checkpoint)
            with measured("push", control.tally, self._tags()) as note:
                version = push(bentos, driver, source, ref, control, force=force)
                note(version.transfer)
            return version

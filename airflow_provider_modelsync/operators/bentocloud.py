"""Operators for what only BentoCloud has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.assets import bento_asset
from airflow_provider_modelsync.core.arguments import Flag, LabelChanges, PartSize, Reference, Text, Threads
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.links import remember_link
from airflow_provider_modelsync.operators.arguments import Place
from airflow_provider_modelsync.operators.base import RegistryOperator, TaskCheckpoint
from airflow_provider_modelsync.operators.storage import local_source

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_provider_modelsync.core.models import ModelVersion
    from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
    from airflow_provider_modelsync.hooks.registry import RegistryHook


class PushBentoOperator(RegistryOperator):
    """Push a built bento, so that it can be deployed.

    The models that it was built with must be in BentoCloud already; push them with ``PushModelOperator``. Safe to
    repeat: a bento that is there with the same bytes is not sent again.

    :param registry_conn_id: the BentoCloud connection (templated).
    :param source: the directory of the built bento, with its ``bento.yaml``, which names it: a local path, or an object
        storage URL, which is copied to this machine first (templated).
    :param force: replace a bento that holds other bytes (templated).
    :param threads: that move bytes, instead of the connection's ``max_workers`` (templated).
    :param part_size_mib: MiB in a part of a multipart upload, instead of the connection's (templated).
    :return: the bento's version as a dictionary, with ``skipped`` and ``resumed_bytes``.
    """

    ui_color = "#d5e8d4"

    def __init__(
        self,
        *,
        source: Place,
        force: Flag = False,
        threads: Threads | None = None,
        part_size_mib: PartSize | None = None,
        registry_conn_id: Text = "bentocloud_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(registry_conn_id=registry_conn_id, **kwargs)
        self.source = source
        self.force = force
        self.threads = threads
        self.part_size_mib = part_size_mib

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            hook = _cloud_hook(self.get_hook(context), "bentos are pushed to BentoCloud")
            with local_source(self.source, self._cancel_token) as source:
                version = hook.push_bento(
                    source,
                    force=self.force,
                    checkpoint=TaskCheckpoint.of(context),
                    threads=self.threads,
                    part_size_mib=self.part_size_mib,
                )
            self._announce(context, version)
            transfer = version.transfer or TransferStats()
            return version.to_xcom(skipped=transfer.skipped, resumed_bytes=transfer.resumed_bytes)

    def _announce(self, context: Context, bento: ModelVersion) -> None:
        # No model: who waits for models of that name would start, and find none.
        self.tell_outlets(context, bento_asset(self.registry_conn_id, bento.name), bento.to_event())
        self._trace.bentos.append((self.registry_conn_id, bento))
        self._trace.places_read.append(str(self.source))
        remember_link(context, lambda: self.get_hook().page_of(bento))


class UpdateModelRepositoryOperator(RegistryOperator):
    """Change what BentoCloud tells of a model beside its versions: description and labels of its repository.

    :param registry_conn_id: the BentoCloud connection (templated).
    :param model: the model's name (templated).
    :param description: of the model; left out, it stays as it is (templated).
    :param labels: merged into those that the model has; a ``None`` value removes one (templated).
    :return: ``name``, ``description``, ``labels``, ``creator`` and times of the repository.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"labels": "json"}
    ui_color = "#e1d5e7"

    def __init__(
        self,
        *,
        model: Reference,
        description: Text | None = None,
        labels: LabelChanges | None = None,
        registry_conn_id: Text = "bentocloud_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(registry_conn_id=registry_conn_id, **kwargs)
        self.model = model
        self.description = description
        self.labels = labels

    def execute(self, context: Context) -> dict[str, JsonValue]:
        with self.attempt():
            hook = _cloud_hook(self.get_hook(context), "BentoCloud alone has repositories")
            found = hook.update_repository(self.model, description=self.description, labels=self.labels)
            remember_link(context, lambda: hook.page_of())
            return found


def _cloud_hook(hook: RegistryHook, why: str) -> BentoCloudHook:
    from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook

    if isinstance(hook, BentoCloudHook):
        return hook
    raise InvalidInput(
        f"{why}, not a connection of type {hook.conn_type!r}",
        argument="registry_conn_id",
        connection=hook.registry_conn_id,
    )

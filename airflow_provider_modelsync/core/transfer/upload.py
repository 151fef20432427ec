"""Carrying out upload plans."""

from __future__ import annotations

from airflow_provider_modelsync.core.archive.digest import SourceTree
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import SourceChanged
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.local import copy_files
from airflow_provider_modelsync.core.transfer.plan import IntoDirectory, UploadWay


def upload(way: UploadWay, source: SourceTree, control: Control) -> TransferStats:
    """Move a model's bytes into its registry.

    :param way: where to and how.
    :param source: the hashed model.
    :param control: how to cancel, what to tell.
    :raises SourceChanged: when what was sent is not what was hashed.
    """
    progress = control.progress(source.size_bytes)
    match way:
        case IntoDirectory(directory):
            written = copy_files(
                source.files,
                source.directories,
                source.open,
                directory,
                workers=control.workers,
                cancel=control.cancel,
                on_bytes=progress.add,
            )
            for want, got in zip(source.files, written, strict=True):
                if want != got:
                    raise SourceChanged(f"{show(want.path)} changed while the model was being pushed")
    progress.finish()
    return TransferStats(sent_bytes=progress.done)

"""Carrying out upload plans."""

from __future__ import annotations

from itertools import count

from airflow_provider_modelsync.core.archive.digest import Source
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import BeginAgain, RegistryUnavailable, SourceChanged, VersionConflict
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import TransferStats
from airflow_provider_modelsync.core.transfer.blobs import put_blobs
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.files import put_files, sent
from airflow_provider_modelsync.core.transfer.local import copy_files
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover, with_retries
from airflow_provider_modelsync.core.transfer.objects import put_objects
from airflow_provider_modelsync.core.transfer.plan import (
    Address,
    IntoDirectory,
    PostForm,
    PutArchive,
    PutBlobs,
    PutFiles,
    PutObjects,
    PutParts,
    UploadWay,
)
from airflow_provider_modelsync.core.transfer.watchdog import Pace


def upload(way: UploadWay, source: Source, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    """Move a model's bytes into its registry.

    :param way: where to and how.
    :param source: the hashed model.
    :param control: how to cancel, what to tell.
    :param driver: asks the registry for addresses.
    :param mover: sends bodies.
    :raises SourceChanged: when what was sent is not what was hashed.
    """
    source.prepare(_reads_of(way, source), control.cancel)
    match way:
        case IntoDirectory():
            _write_files(way, source, control)
            return TransferStats(sent_bytes=source.size_bytes)
        case PutArchive():
            _put_archive(way, control, driver, mover)
            return TransferStats(sent_bytes=way.layout.size)
        case PutParts():
            return _put_parts(way, control, driver, mover)
        case PutFiles():
            return put_files(way, control, driver, mover)
        case PutBlobs():
            return put_blobs(way, control, driver, mover)
        case PutObjects():
            return put_objects(way, control, driver, mover)
        case PostForm():
            return _post_form(way, control, driver, mover)


def _reads_of(way: UploadWay, source: Source) -> set[str]:
    """Return the paths of the files that are going to be read, as far as that is known already."""
    match way:
        case PutParts():
            missing = [way.span(number) for number in way.missing]
            return {path for start, length in missing for path in way.layout.files_in(start, length)}
        case PutFiles():
            return set()  # each in its turn: the registry may have it
        case PutBlobs():
            return {file.path for file in way.files}
        case PutObjects():
            return {file.path for file in source.files} - way.copies - way.ahead.keys()
        case _:
            return {file.path for file in source.files}


def _write_files(way: IntoDirectory, source: Source, control: Control) -> None:
    progress = control.progress(source.size_bytes)
    written = copy_files(
        source.files,
        source.directories,
        source.read_into,
        way.directory,
        workers=control.workers,
        cancel=control.cancel,
        on_bytes=progress.add,
    )
    for want, got in zip(source.files, written, strict=True):
        if want != got:
            raise SourceChanged(f"{show(want.path)} changed while the model was being pushed")
    progress.finish()


def _put_archive(way: PutArchive, control: Control, driver: SyncDriver, mover: Mover) -> None:
    progress = control.progress(way.layout.size)

    def put() -> None:
        address = driver.run(way.address())
        answer = mover.put(address.url, way.layout.reader, way.layout.size, address.headers, on_bytes=progress.add)
        if address.presigned:
            answer.raise_for_store("uploading the model")
        else:  # what was registered a moment ago is not there any more
            answer.raise_for_status("uploading the model", not_found=VersionConflict)

    with_retries(put, cancel=control.cancel, on_repeat=progress.resend)
    way.layout.confirm()
    progress.finish()


def _put_parts(way: PutParts, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    layout, memory = way.layout, way.memory
    missing = way.missing
    resumed = layout.size - sum(way.span(number)[1] for number in missing)
    progress = control.progress(layout.size)
    progress.pass_over(resumed)

    def put_part(number: int, cancel: CancelToken) -> None:
        start, length = way.span(number)

        def put() -> str:
            address = driver.run(way.address(number))
            answer = mover.put(
                address.url,
                lambda: layout.reader(start, length),
                length,
                address.headers,
                cancel=cancel,
                on_bytes=progress.add,
            )
            answer.raise_for_store(f"uploading part {number}", not_found=BeginAgain)
            etag = answer.headers.get("ETag")
            if not etag:
                raise RegistryUnavailable(f"uploading part {number}: the storage gave no ETag")
            return etag

        memory.add(number, with_retries(put, cancel=cancel, on_repeat=progress.resend))

    for_each(put_part, missing, workers=control.workers, cancel=control.cancel)
    memory.flush()  # a try that is killed from here on leaves all of them to the next
    layout.confirm()
    progress.finish()
    return TransferStats(sent_bytes=layout.size - resumed, resumed_bytes=resumed)


def _post_form(way: PostForm, control: Control, driver: SyncDriver, mover: Mover) -> TransferStats:
    form = way.form
    progress = control.progress(form.size)
    pace = Pace(answer_seconds=way.answer_seconds)
    tries = count()

    def send(address: Address) -> MovedResponse:
        headers = {**address.headers, "Content-Type": form.content_type}
        return mover.put(address.url, form.reader, form.size, headers, method="POST", pace=pace, on_bytes=progress.add)

    def post() -> None:
        if next(tries) and driver.run(way.is_there()):
            return
        if (answer := sent(way.address, driver, send)) is not None:
            way.answered(answer)

    with_retries(post, cancel=control.cancel)
    progress.finish()
    return TransferStats(sent_bytes=form.upload.size if form.upload else form.size)

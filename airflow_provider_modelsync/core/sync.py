"""Push and pull: a registry's plan carried out by the transfer engine."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core.archive.digest import FileEntry, SourceTree, digest_of, memory_key, read_tree
from airflow_provider_modelsync.core.errors import (
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    TargetExists,
    from_os_error,
)
from airflow_provider_modelsync.core.flow import SyncDriver
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, PulledModel, Query, TransferStats
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.transfer import checkpoint, durable
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.download import download
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, UploadPlan
from airflow_provider_modelsync.core.transfer.progress import readable
from airflow_provider_modelsync.core.transfer.upload import upload

log = logging.getLogger("modelsync")

_LABELS = TypeAdapter(dict[str, str])
_METADATA = TypeAdapter(dict[str, JsonValue])


def push(
    registry: Registry,
    driver: SyncDriver,
    source: str | os.PathLike[str],
    ref: ModelRef,
    control: Control,
    *,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Bring a model into a registry.

    :param registry: where to.
    :param driver: runs the registry's flows.
    :param source: a directory or a single file.
    :param ref: name and version; a version left out is derived from the digest.
    :param control: how to cancel, what to tell.
    :param labels: kept beside the version.
    :param metadata: kept beside the version.
    :param force: replace a version that holds other bytes.
    :param options: what only this registry understands.
    :return: the published version; ``transfer`` says what was moved.
    :raises VersionConflict: when the version exists with other bytes.
    :raises NotSupported: for what the registry cannot do or keep, before any byte is sent.
    """
    _check_push(registry, ref, labels=labels, metadata=metadata, force=force)
    tree = _read_source(source, control)
    exact = ref if ref.version else ModelRef(name=ref.name, version=version_of(tree.digest))
    plan = driver.run(
        registry.plan_push(
            exact, tree, labels=labels or {}, metadata=metadata or {}, force=force, options=options or {}
        )
    )
    if plan.existing is not None:
        log.info("%s is already there with the same digest %s: nothing is sent", plan.existing.ref, tree.digest)
        return plan.existing.model_copy(update={"transfer": TransferStats(skipped=True)})
    log.info("pushing %s: %s in %d files", plan.ref, readable(tree.size_bytes), len(tree.files))
    try:
        stats = _upload(plan, tree, control)
        version = driver.run(registry.finish_push(plan))
    except BaseException as error:
        _abort(registry, driver, plan, error)
        raise
    log.info("pushed %s with digest %s", version.ref, tree.digest)
    return version.model_copy(update={"transfer": stats})


def version_of(digest: str) -> str:
    """Return the version that a push without one gets: the same bytes can never become two versions."""
    return f"m{digest.removeprefix('sha256:')[:15]}"


def pull(
    registry: Registry,
    driver: SyncDriver,
    ref: ModelRef,
    target: str | os.PathLike[str],
    control: Control,
    *,
    query: Query,
    force: bool = False,
    verify: bool = True,
) -> PulledModel:
    """Bring a model onto this machine.

    The target is absent, old, or new and verified at every moment.

    :param registry: where from.
    :param driver: runs the registry's flows.
    :param ref: the model; without a version the newest ready one that ``query`` chooses.
    :param target: a directory; filled when absent or empty, left alone when it holds exactly this model.
    :param control: how to cancel, what to tell.
    :param query: chooses among ready versions.
    :param force: replace whatever the target holds, once the new copy is verified.
    :param verify: compare the pulled bytes with the version's digest.
    :raises TargetExists: when the target holds something else.
    :raises DigestMismatch: when the stored bytes are not those pushed, seen twice.
    """
    registry.require(Capability.PULL)
    place = Path(os.path.abspath(target))
    version = driver.run(registry.get(ref, query))
    if not version.ready:
        raise ModelNotFound(f"{version.ref} cannot be pulled: its status is {version.status}")
    if _holds(place, version, control, force=force):
        log.info("%s already holds %s: nothing is pulled", place, version.ref)
        return PulledModel(path=place, version=version.model_copy(update={"transfer": TransferStats(skipped=True)}))
    plan = driver.run(registry.plan_pull(version))
    log.info("pulling %s into %s", version.ref, place)
    try:
        stats = _fill(place, plan, control, force=force, verify=verify)
    except OSError as error:
        raise from_os_error(error, f"writing {place}", argument="target") from error
    log.info("pulled %s into %s", version.ref, place)
    return PulledModel(path=place, version=version.model_copy(update={"transfer": stats}))


def _check_push(
    registry: Registry,
    ref: ModelRef,
    *,
    labels: Mapping[str, str] | None,
    metadata: Mapping[str, JsonValue] | None,
    force: bool,
) -> None:
    needs = {
        Capability.PUSH: True,
        Capability.CHOOSE_VERSION: ref.version is not None,
        Capability.FORCE: force,
        Capability.LABELS: bool(labels),
        Capability.METADATA: bool(metadata),
    }
    for capability, needed in needs.items():
        if needed:
            registry.require(capability)
    for argument, kind, value in (("labels", _LABELS, labels), ("metadata", _METADATA, metadata)):
        try:
            kind.validate_python(dict(value or {}), strict=True)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise InvalidInput(f"{where}: {fault['msg']}", argument=argument) from None


def _read_source(source: str | os.PathLike[str], control: Control) -> SourceTree:
    remembered = checkpoint.load_digests(control.checkpoint)
    tree = read_tree(source, cancel=control.cancel, remembered=remembered)
    sizes = {memory_key(path, stamp): stamp.size for path, stamp in tree.stamps.items()}
    checkpoint.save_digests(control.checkpoint, remembered, sizes)
    return tree


def _upload(plan: UploadPlan, tree: SourceTree, control: Control) -> TransferStats:
    if plan.way is None:  # only its record was missing
        return TransferStats()
    return upload(plan.way, tree, control)


def _abort(registry: Registry, driver: SyncDriver, plan: UploadPlan, error: BaseException) -> None:
    try:
        driver.shielded().run(registry.abort_push(plan, error))
    except Exception:
        log.exception("cleaning up after the failed push of %s failed, too", plan.ref)


def _holds(place: Path, version: ModelVersion, control: Control, *, force: bool) -> bool:
    """Whether the target holds the version already; raise when it holds something else that must stay."""
    if not os.path.lexists(place):
        return False
    if place.is_symlink() or not place.is_dir():
        raise TargetExists(f"{place} is not a directory", argument="target")
    if not any(place.iterdir()):
        return False
    try:
        same = version.digest is not None and read_tree(place, cancel=control.cancel).digest == version.digest
    except InvalidInput:  # holds something that no model may hold
        same = False
    if not same and not force:
        raise TargetExists(
            f"{place} holds something other than {version.ref}; empty it, or pull with force to replace it",
            argument="target",
        )
    return same


def _fill(place: Path, plan: DownloadPlan, control: Control, *, force: bool, verify: bool) -> TransferStats:
    version = plan.version
    key = (version.digest or secrets.token_hex(6)).removeprefix("sha256:")[:12]
    place.parent.mkdir(parents=True, exist_ok=True)
    with durable.staging(place.parent / f".{place.name}.{key}") as staging:
        _check_space(place.parent, version.size_bytes or 0)
        files = _download(plan, staging, control, verify=verify)
        durable.sync_file_system(staging)
        _move_in(staging, place, version, control, force=force)
        durable.sync_directory(place.parent)
    return TransferStats(sent_bytes=sum(file.size for file in files))


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFull(f"{directory} has {readable(free)} free, the model needs {readable(needed)}", argument="target")


def _download(plan: DownloadPlan, staging: Path, control: Control, *, verify: bool) -> tuple[FileEntry, ...]:
    want = plan.version.digest
    got = None
    for _ in range(2):  # a flipped bit on the way is cured by another look, one in the store is not
        if got is not None:
            log.warning("the bytes of %s do not match its digest %s: reading them again", plan.version.ref, want)
            durable.empty_directory(staging)
        files = download(plan.way, staging, plan.version.size_bytes or 0, control)
        got = digest_of(files)
        if not verify or want is None or got == want:
            return files
    raise DigestMismatch(
        f"the stored bytes of {plan.version.ref} have {got} twice, its record says {want}; "
        "restore them, or delete the version and push it again"
    )


def _move_in(staging: Path, place: Path, version: ModelVersion, control: Control, *, force: bool) -> None:
    """Rename the verified copy into place; whoever comes second to the same target checks what the first left."""
    if _rename_unless_taken(staging, place) or _holds(place, version, control, force=force):
        return
    old = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
    place.rename(old)
    try:
        staging.rename(place)
    except OSError:
        old.rename(place)
        raise
    durable.remove_tree(old)


def _rename_unless_taken(staging: Path, place: Path) -> bool:
    try:
        staging.rename(place)  # over an empty directory, too
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True

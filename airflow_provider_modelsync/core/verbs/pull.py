"""Pull: a registry's plan for the way down, carried out by the transfer engine."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.digest import digest_of, read_tree
from airflow_provider_modelsync.core.errors import (
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    Permanent,
    RegistryUnavailable,
    SourceChanged,
    TargetExists,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import (
    ModelRef,
    ModelVersion,
    Patience,
    PulledModel,
    Query,
    TransferStats,
)
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.download import download
from airflow_provider_modelsync.core.transfer.large_files import Pulled, holds_pieces
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan
from airflow_provider_modelsync.core.transfer.room import require_room
from airflow_provider_modelsync.core.verbs.drive import mover_for
from airflow_provider_modelsync.core.verbs.fetch import fetch

log = logging.getLogger("modelsync")

_Download = Callable[[Path], Pulled]


def pull(
    registry: Registry,
    driver: SyncDriver,
    ref: ModelRef,
    target: str | os.PathLike[str] | None,
    control: Control,
    *,
    query: Query,
    force: bool = False,
    verify: bool = True,
    patience: Patience | None = None,
) -> PulledModel:
    """Bring a model onto this machine, or onto the system's own host where that is what it offers.

    The target is absent, old, or new and verified at every moment.

    :param registry: where from.
    :param driver: runs the registry's flows.
    :param ref: the model; without a version the newest ready one that ``query`` chooses.
    :param target: a directory; filled when absent or empty, left alone when it holds exactly this model. ``None``
        stands for the system's own host.
    :param control: how to cancel, what to tell.
    :param query: chooses among ready versions.
    :param force: replace whatever the target holds, once the new copy is verified.
    :param verify: compare the pulled bytes with the version's digest.
    :param patience: how long to wait for the system's own host.
    :raises InvalidInput: when a target is needed and missing.
    :raises NotSupported: when there is one, and the system gives out no models.
    :raises TargetExists: when the target holds something else.
    :raises DigestMismatch: when the stored bytes are not those pushed, seen twice.
    """
    if target is None:
        return fetch(registry, driver, ref, query=query, patience=patience or Patience())
    registry.require(Capability.PULL)
    place = Path(os.path.abspath(target))
    version = driver.run(registry.get(ref, query))
    if not version.ready:
        raise ModelNotFound(f"{version.ref} cannot be pulled: its status is {version.status}")
    try:
        if _holds(place, version, control, force=force):
            log.info("%s already holds %s: nothing is pulled", place, version.ref)
            durable.clear_up(place)
            return PulledModel(path=place, version=version.moved(TransferStats(skipped=True)))
        plan = driver.run(registry.plan_pull(version))
        log.info("pulling %s into %s", version.ref, place)
        with closing(mover_for(registry, control)) as mover:
            stats = _fill(
                place,
                plan,
                control,
                lambda staging: download(plan.way, version.ref, staging, control, driver, mover),
                force=force,
                verify=verify,
            )
    except DigestMismatch:
        if driver.run(registry.read_version(version.name, version.version)).digest != version.digest:
            raise RegistryUnavailable(f"{version.ref} was replaced while it was being pulled") from None
        raise
    except OSError as error:
        raise from_os_error(error, f"writing {place}", argument="target") from error
    log.info("pulled %s into %s", version.ref, place)
    return PulledModel(path=place, version=version.moved(stats))


def _holds(place: Path, version: ModelVersion, control: Control, *, force: bool) -> bool:
    """Whether the target holds the version already; raise when it holds something else that must stay."""
    try:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise TargetExists(f"{place} is not a directory", argument="target")
        if not any(place.iterdir()):
            return False
        same = version.digest is not None and read_tree(place, cancel=control.cancel).digest == version.digest
    except FileNotFoundError:
        return False
    except InvalidInput:  # holds something that no model may hold
        same = False
    except SourceChanged:  # another pull is replacing it
        if not force:
            raise
        same = False
    if not same and not force:
        raise TargetExists(
            f"{place} holds something other than {version.ref}; empty it, or pull with force to replace it",
            argument="target",
        )
    return same


def _fill(
    place: Path, plan: DownloadPlan, control: Control, download_into: _Download, *, force: bool, verify: bool
) -> TransferStats:
    version = plan.version
    # One name for one content, so that the next try finds what this one has left.
    key = hashlib.sha256(version.ref.encode()).hexdigest() if version.digest is None else version.digest[7:]
    place.parent.mkdir(parents=True, exist_ok=True)

    def keep(staging: Path, error: BaseException) -> bool:
        is_over = isinstance(error, (Permanent, DiskFull)) or control.is_last_try
        return not is_over and holds_pieces(staging)

    with durable.staging(place, key[:12], keep=keep) as staging:
        require_room(place.parent, version.size_bytes or 0, staging=staging.path, argument="target")
        pulled = _fetch_verified(plan, staging.path, download_into, verify=verify)
        durable.sync_file_system(staging.path)
        _move_in(staging, place, version, control, force=force)
        durable.sync_directory(place.parent)
    return TransferStats(sent_bytes=pulled.moved_bytes, resumed_bytes=pulled.resumed_bytes)


def _fetch_verified(plan: DownloadPlan, staging: Path, download_into: _Download, *, verify: bool) -> Pulled:
    want = plan.version.digest
    got = None
    for _ in range(2):  # a flipped bit on the way is cured by another look, one in the store is not
        if got is not None:
            log.warning("the bytes of %s do not match its digest %s: reading them again", plan.version.ref, want)
            durable.empty_directory(staging)
        pulled = download_into(staging)
        if plan.check is not None:
            plan.check(staging, pulled.files)
        for path in plan.generated:
            (staging / path).unlink(missing_ok=True)
        got = digest_of(file for file in pulled.files if file.path not in plan.generated)
        if not verify or want is None or got == want:
            return pulled
    raise DigestMismatch(
        f"the stored bytes of {plan.version.ref} have {got} twice, its record says {want}; "
        "restore them, or delete the version and push it again"
    )


def _move_in(staging: durable.Staging, place: Path, version: ModelVersion, control: Control, *, force: bool) -> None:
    """Rename the verified copy into place; whoever comes second to the same target checks what the first left."""
    try:
        while not staging.publish(place):
            if _holds(place, version, control, force=force):
                return
            staging.set_aside(place)
    except BaseException:
        staging.put_back(place)
        raise

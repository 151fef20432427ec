"""Pull: a registry's plan for the way down, carried out by the transfer engine."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from airflow_provider_modelsync.core import durable
from airflow_provider_modelsync.core.archive.choice import Choice
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
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan, GetArchive
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
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
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
    :param include: patterns of the files that are pulled, see :class:`~..archive.choice.Choice`. Each is verified by
        its own hash where the registry tells hashes; where a version is one archive, all of it is verified before the
        other files are removed.
    :param exclude: patterns of those that are not.
    :raises InvalidInput: when a target is needed and missing, or no file is chosen.
    :raises NotSupported: when there is one, and the system gives out no models.
    :raises TargetExists: when the target holds something else.
    :raises DigestMismatch: when the stored bytes are not those pushed, seen twice.
    """
    choice = Choice(include, exclude)
    if target is None:
        if not choice.is_all:
            raise InvalidInput("the system's own host has models as a whole only", argument="include")
        return fetch(registry, driver, ref, query=query, patience=patience or Patience())
    registry.require(Capability.PULL)
    place = Path(os.path.abspath(target))
    version = driver.run(registry.get(ref, query))
    if not version.ready:
        raise ModelNotFound(f"{version.ref} cannot be pulled: its status is {version.status}")
    try:
        plan = None if choice.is_all else driver.run(registry.plan_pull(version)).choose(choice)
        wanted = version.digest if plan is None else plan.digest
        if _holds(place, version, wanted, control, force=force):
            log.info("%s already holds %s: nothing is pulled", place, version.ref)
            durable.clear_up(place)
            stats = TransferStats(skipped=True)
            return PulledModel(path=place, version=version.moved(stats), digest=wanted, is_partial=not choice.is_all)
        plan = plan or driver.run(registry.plan_pull(version))
        log.info("pulling %s into %s", version.ref, place)
        with closing(mover_for(registry, control)) as mover:
            stats, digest = _fill(
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
    return PulledModel(path=place, version=version.moved(stats), digest=digest, is_partial=not choice.is_all)


def _holds(place: Path, version: ModelVersion, wanted: str | None, control: Control, *, force: bool) -> bool:
    """Whether the target holds the wanted files already; raise when it holds something else that must stay.

    :param wanted: their digest.
    """
    try:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise TargetExists(f"{place} is not a directory", argument="target")
        if not any(place.iterdir()):
            return False
        same = wanted is not None and read_tree(place, cancel=control.cancel).digest == wanted
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
) -> tuple[TransferStats, str]:
    """Fill the target; return what was moved, and the digest of what lies there."""
    version = plan.version
    size = version.size_bytes if plan.choice.is_all or plan.files is None else sum(file.size for file in plan.files)
    # One name for one content, so that the next try finds what this one has left.
    if version.digest is not None and plan.choice.is_all:
        key = version.digest[7:]
    else:
        key = hashlib.sha256(f"{version.digest or version.ref} {plan.choice}".encode()).hexdigest()
    place.parent.mkdir(parents=True, exist_ok=True)

    def keep(staging: Path, error: BaseException) -> bool:
        is_over = isinstance(error, (Permanent, DiskFull)) or control.is_last_try
        return not is_over and holds_pieces(staging)

    with durable.staging(place, key[:12], keep=keep) as staging:
        require_room(place.parent, size or 0, staging=staging.path, argument="target")
        pulled = _fetch_verified(plan, staging.path, download_into, verify=verify)
        durable.sync_file_system(staging.path)
        digest = digest_of(pulled.files)
        _move_in(staging, place, version, digest, control, force=force)
        durable.sync_directory(place.parent)
    return TransferStats(sent_bytes=pulled.moved_bytes, resumed_bytes=pulled.resumed_bytes), digest


def _fetch_verified(plan: DownloadPlan, staging: Path, download_into: _Download, *, verify: bool) -> Pulled:
    want = plan.version.digest if isinstance(plan.way, GetArchive) else plan.digest  # an archive is proved as a whole
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
        files = tuple(file for file in pulled.files if file.path not in plan.generated)
        got = digest_of(files)
        if not verify or want is None or got == want:
            return _leave_chosen(plan, staging, replace(pulled, files=files))
    raise DigestMismatch(
        f"the stored bytes of {plan.version.ref} have {got} twice, its record says {want}; "
        "restore them, or delete the version and push it again"
    )


def _leave_chosen(plan: DownloadPlan, staging: Path, pulled: Pulled) -> Pulled:
    """Remove what has come with an archive and was not chosen."""
    kept = plan.choice.files(pulled.files)
    if not kept:
        raise InvalidInput(f"{plan.version.ref} holds no file that is chosen by {plan.choice}", argument="include")
    if plan.choice.is_all:
        return pulled
    for file in set(pulled.files) - set(kept):
        (staging / file.path).unlink()
    held_files = {parent for file in pulled.files for parent in Path(file.path).parents}
    for directory, _, _ in os.walk(staging, topdown=False):
        path = Path(directory).relative_to(staging)
        if path in held_files or not plan.choice.takes_directory(path.as_posix()):
            with suppress(OSError):  # it still holds something
                os.rmdir(directory)
    return replace(pulled, files=kept)


def _move_in(
    staging: durable.Staging, place: Path, version: ModelVersion, digest: str, control: Control, *, force: bool
) -> None:
    """Rename the verified copy into place; whoever comes second to the same target checks what the first left."""
    try:
        while not staging.publish(place):
            if _holds(place, version, digest, control, force=force):
                return
            staging.set_aside(place)
    except BaseException:
        staging.put_back(place)
        raise

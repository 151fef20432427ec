"""Pull: a registry's plan for the way down, carried out by the transfer engine."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_provider_modelsync.core import durable, places
from airflow_provider_modelsync.core.archive.choice import Choice
from airflow_provider_modelsync.core.archive.digest import digest_of, read_tree
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelNotFound,
    Permanent,
    SourceChanged,
    TargetExists,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import (
    ModelRef,
    ModelReference,
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
from airflow_provider_modelsync.core.transfer.progress import OUTCOME, readable
from airflow_provider_modelsync.core.transfer.room import require_room
from airflow_provider_modelsync.core.verbs import placed
from airflow_provider_modelsync.core.verbs.checks import NO_CHECKS, Checks
from airflow_provider_modelsync.core.verbs.drive import mover_for
from airflow_provider_modelsync.core.verbs.fetch import fetch
from airflow_provider_modelsync.core.verbs.placed import Put

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
    on_reference: str = "fail",
    referred: Referred | None = None,
    checks: Checks = NO_CHECKS,
) -> PulledModel:
    """Bring a model onto this machine, or onto the system's own host where that is what it offers.

    The target is absent, old, or new and verified at every moment.

    :param registry: where from.
    :param driver: runs the registry's flows.
    :param ref: the model; without a version the newest ready one that ``query`` chooses.
    :param target: a directory; filled when absent or empty, left alone when it holds exactly this model, replaced when
        it still is what an earlier pull of the same model has put there. ``None`` stands for the system's own host.
    :param control: how to cancel, what to tell.
    :param query: chooses among ready versions.
    :param force: replace whatever the target holds, once the new copy is verified.
    :param verify: compare the pulled bytes with the version's digest.
    :param patience: how long to wait for the system's own host.
    :param include: patterns of the files that are pulled, see :class:`~..archive.choice.Choice`. Each is verified by
        its own hash where the registry tells hashes; where a version is one archive, all of it is verified before the
        other files are removed.
    :param exclude: patterns of those that are not.
    :param on_reference: what becomes of a version that only points elsewhere: ``"fail"``, or ``"skip"``, which leaves
        the target alone and returns no path.
    :param referred: where such a version is pulled from instead.
    :param checks: what the model must stand before it is visible; a target that holds it already, before it is told so.
    :raises InvalidInput: when a target is needed and missing, or no file is chosen.
    :raises NotSupported: when there is one, and the system gives out no models.
    :raises TargetExists: when the target holds something else.
    :raises DigestMismatch: when the stored bytes are not those pushed, seen twice.
    :raises UntrustedModel: when the model does not stand the checks; the target is left as it is.
    """
    choice = registry.choice_type(include, exclude)
    if target is None:
        if not choice.is_all:
            raise InvalidInput("the system's own host has models as a whole only", argument="include")
        if checks:
            raise InvalidInput(
                "what the system's own host fetches passes by no worker: nothing can be checked", argument="target"
            )
        return fetch(registry, driver, ref, query=query, patience=patience or Patience())
    registry.require(Capability.PULL)
    place = places.target(target, store=registry.directory)
    version = driver.run(registry.get(ref, query))
    if not version.ready:
        raise ModelNotFound(f"{version.ref} cannot be pulled: its status is {version.status}")
    if version.reference is not None and referred is not None:
        if not choice.is_all:
            raise InvalidInput(f"the record of {version.ref} chooses its files by itself", argument="include")
        return _follow(version, version.reference, referred, place, control, force=force, verify=verify, checks=checks)
    if version.reference is not None and on_reference == "skip":
        log.info("%s only points to %s: there is nothing to pull", version.ref, version.reference)
        return PulledModel(path=None, version=version.moved(TransferStats(skipped=True)), is_elsewhere=True)
    checks = checks.begun(registry, driver, version, is_partial=not choice.is_all)
    plan: DownloadPlan | None = None

    def planned() -> DownloadPlan:
        return plan or driver.run(registry.plan_pull(version)).choose(choice)

    def learn() -> str | None:
        nonlocal plan
        plan = driver.run(registry.with_hashes(planned()))
        return plan.digest

    def done(stats: TransferStats, digest: str) -> PulledModel:
        known = version.digest or (digest if choice.is_all else None)
        told = version.model_copy(update={"digest": known, "transfer": stats})
        return PulledModel(path=place, version=told, digest=digest, is_partial=not choice.is_all)

    try:
        if not choice.is_all:
            plan = planned()
        wanted = version.digest if plan is None else plan.digest
        into = _Target(place, registry.identity, version, choice, control, force, learn)
        if (held := into.look(wanted)) is not None:
            checks.inspect(place, version.ref, control.cancel, digest=held)
            log.info("%s already holds %s: nothing is pulled", place, version.ref)
            durable.clear_up(place)
            return done(TransferStats(skipped=True), held)
        plan = planned()
        size = "" if version.size_bytes is None else f" ({readable(version.size_bytes)})"
        whence = f"{registry.settings.conn_id} ({registry.address})"
        log.info("pulling %s%s from %s into %s", version.ref, size, whence, place)
        with closing(mover_for(registry, control)) as mover:
            stats, digest = _fill(
                into,
                plan,
                lambda staging: download(plan.way, version.ref, staging, control, driver, mover),
                verify=verify,
                checks=checks,
            )
    except (DigestMismatch, ModelNotFound):
        try:
            now = driver.run(registry.read_version(version.name, version.version))
        except ModelNotFound:
            if ref.version == version.version:
                raise
            # What `latest` or an alias stood for: another try finds what it stands for now.
            raise BeginAgain(f"{version.ref} was deleted while it was being pulled") from None
        if (now.digest, now.uri) != (version.digest, version.uri):
            raise BeginAgain(f"{version.ref} was replaced while it was being pulled") from None
        raise
    except OSError as error:
        raise from_os_error(error, f"writing {place}", argument="target") from error
    log.info("pulled %s into %s", version.ref, place, extra=OUTCOME)
    return done(stats, digest)


@dataclass(frozen=True, slots=True)
class Referred:
    """The registry that has what another one's records point to.

    :param registry: the registry.
    :param driver: runs its flows.
    """

    registry: Registry
    driver: SyncDriver


def _follow(
    version: ModelVersion,
    reference: ModelReference,
    referred: Referred,
    place: Path,
    control: Control,
    *,
    force: bool,
    verify: bool,
    checks: Checks,
) -> PulledModel:
    """Pull what a record points to, exactly that and nothing else."""
    ref = referred.registry.referred(reference)
    log.info("%s points to %s: it is pulled from there", version.ref, reference)
    pulled = pull(
        referred.registry,
        referred.driver,
        ref,
        place,
        control,
        query=Query(),
        force=force,
        verify=verify,
        include=reference.include or None,
        exclude=reference.exclude or None,
        checks=checks,
    )
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    if version.size_bytes not in (None, 0, size):
        log.warning("the record of %s says %d bytes, and %s has %d", version.ref, version.size_bytes, ref, size)
    told = version.model_copy(update={"digest": pulled.digest, "transfer": pulled.version.transfer})
    return PulledModel(path=place, version=told, digest=pulled.digest)


@dataclass
class _Target:
    """The directory that files of a version are to be pulled into.

    :param learn: finds out the digest that is wanted, where it is not known and something is there to be compared.
    :ivar is_replaceable: whether it held what the last pull had left there when the pull began: what somebody has put
        there since then is not for us to judge.
    :ivar found: the state that it was in when it was looked at last, as far as that is known.
    """

    place: Path
    identity: str
    version: ModelVersion
    choice: Choice
    control: Control
    force: bool
    learn: Callable[[], str | None]
    is_replaceable: bool = False
    found: Put | None = None

    def look(self, wanted: str | None) -> str | None:
        """Look at it for the first time; otherwise as :meth:`held`."""
        placed.recall(self.place)  # before anything is moved
        self.is_replaceable = True
        try:
            if (held := self.held(wanted)) is not None:
                return held
            self.is_replaceable = any(self.place.iterdir())
            if self.is_replaceable and (fault := durable.what_keeps(self.place)):
                raise InvalidInput(f"{fault}, so the target cannot be replaced", argument="target")
        except FileNotFoundError:
            self.is_replaceable = False
        return None

    def held(self, wanted: str | None) -> str | None:
        """Return the digest of what it holds when that is what is wanted; raise when it is something that must stay.

        :param wanted: the digest, as far as it is known before the files are there.
        """
        place, version = self.place, self.version
        try:
            if not stat.S_ISDIR(place.lstat().st_mode):
                raise TargetExists(f"{place} is not a directory", argument="target")
            if not any(place.iterdir()):
                return None
            known = self.found = self._recognised()
            if known is None and wanted is None:
                wanted = self.learn()
            if known is None and wanted is not None and self._digest() == wanted:
                known = self._put(wanted, place, is_ours=False)
                self._remember(known)
        except FileNotFoundError:
            return None
        except SourceChanged:  # another pull is replacing it
            if not self.force:
                raise
            known = None
        if known is not None and known.is_exactly(self.identity, version, str(self.choice), wanted):
            return known.content
        is_left = known is not None and known.is_of_the_model(self.identity, version)
        if self.force or (is_left and self.is_replaceable):
            return None
        raise TargetExists(
            f"{place} holds something other than {version.ref}, and not what an earlier pull of {version.name} has "
            "left there",
            argument="target",
            remedy="Empty it, choose another target, or pull with force to replace it",
        )

    @contextmanager
    def announced(self, staging: durable.Staging, content: str) -> Iterator[None]:
        """Remember what is about to be put there; until it is, what is there now is remembered, too."""
        put = self._put(content, staging.path)
        try:
            placed.remember(self.place, put, staging, before=self.found)
            yield
        except BaseException:
            if staging.path.exists():  # else it is in place
                placed.forget(self.place, put, staging)
            raise

    def _put(self, content: str, where: Path, *, is_ours: bool = True) -> Put:
        survey = placed.survey(where)
        return Put.of(self.identity, self.version, content, choice=str(self.choice), survey=survey, is_ours=is_ours)

    def _recognised(self) -> Put | None:
        """Return the state that it is still in, of those that pulls have left."""
        record = placed.recall(self.place)
        if not record.known:
            return None
        now = placed.survey(self.place)
        for known in record.known:
            if known.survey == now:
                return known
        # Another machine's mount may number files anew, and a restored copy has times of its own.
        for known in record.known:
            if known.survey is not None and known.survey.loose == now.loose and self._digest() == known.content:
                again = known.model_copy(update={"survey": now})
                self._remember(again)
                return again
        return None

    def _digest(self) -> str | None:
        try:
            return read_tree(self.place, cancel=self.control.cancel).digest
        except InvalidInput:  # it holds something that no model may hold
            return None

    def _remember(self, put: Put) -> None:
        # It only spares the next try some reading.
        with suppress(OSError), durable.staging(self.place, secrets.token_hex(6)) as staging:
            placed.remember(self.place, put, staging)


def _fill(
    target: _Target, plan: DownloadPlan, download_into: _Download, *, verify: bool, checks: Checks
) -> tuple[TransferStats, str]:
    """Fill the target; return what was moved, and the digest of what lies there."""
    version, place, control = plan.version, target.place, target.control
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
        digest = digest_of(pulled.files)
        checks.inspect(staging.path, version.ref, control.cancel, pulled.files, digest)
        with target.announced(staging, digest):
            durable.sync_file_system(staging.path)
            _move_in(staging, target, digest)
        durable.sync_directory(place.parent)
    return TransferStats(sent_bytes=pulled.moved_bytes, resumed_bytes=pulled.resumed_bytes), digest


def inspect(
    registry: Registry, driver: SyncDriver, ref: ModelRef, control: Control, *, query: Query, checks: Checks
) -> ModelVersion:
    """Look at a model as a pull would, and keep nothing of it.

    :param registry: where it is.
    :param driver: runs the registry's flows.
    :param ref: the model, as for :func:`pull`.
    :param control: how to cancel, what to tell.
    :param query: chooses among ready versions.
    :param checks: what it must stand.
    :return: the exact version that was looked at.
    :raises InvalidInput: where the system gives out no models.
    :raises UntrustedModel: when it does not stand the checks.
    """
    if Capability.PULL not in registry.capabilities:
        raise InvalidInput(f"{registry.title} gives out no models: what it serves cannot be checked", argument="model")
    with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
        control = replace(control, checkpoint=None, is_last_try=True)
        target = Path(scratch) / "model"
        return pull(registry, driver, ref, target, control, query=query, checks=checks).version


def _fetch_verified(plan: DownloadPlan, staging: Path, download_into: _Download, *, verify: bool) -> Pulled:
    want = plan.version.digest if isinstance(plan.way, GetArchive) else plan.digest  # an archive is proved as a whole
    got: str | None = None
    for _ in range(2):  # a flipped bit on the way is cured by another look, one in the store is not
        if got is not None:
            log.warning("the bytes of %s do not match its digest %s: reading them again", plan.version.ref, want)
            durable.empty_directory(staging)
        pulled = download_into(staging)
        log.info("completing and verifying %s", plan.version.ref)
        if plan.check is not None:
            plan.check(staging, pulled.files)
        for path in plan.generated:
            (staging / path).unlink(missing_ok=True)
        files = tuple(file for file in pulled.files if file.path not in plan.generated)
        got = digest_of(files)
        if not verify or want is None or got == want:
            return _leave_chosen(plan, staging, replace(pulled, files=files))
    raise DigestMismatch(
        f"the stored bytes of {plan.version.ref} have {got} twice, its record says {want}",
        remedy="Restore them, or delete the version and push it again",
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


def _move_in(staging: durable.Staging, target: _Target, digest: str) -> None:
    """Rename the verified copy into place; whoever comes second to the same target checks what the first left."""
    try:
        while not staging.publish(target.place):
            if target.held(digest) is not None:
                return
            staging.set_aside(target.place)
    except BaseException:
        staging.put_back(target.place)
        raise

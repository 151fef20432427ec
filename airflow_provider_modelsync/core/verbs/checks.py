"""What a model must be before it is used: signed by somebody trusted, of allowed formats, clean to a scanner.

All of it is looked at in a directory that nobody else sees, before the model is anywhere. Nothing of it is loaded.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, Self

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.formats import FORMATS, formats_of
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, UntrustedModel
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import interruptible
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import KeepsSignatures
from airflow_provider_modelsync.core.verbs.placed import survey
from airflow_provider_modelsync.core.verbs.signatures import SignatureCheck, Trust

log = logging.getLogger("modelsync")

SCANNERS = "modelsync.scanners"  # the group of entry points
HERE = "{path}"  # stands for the directory in a command

_SHOWN = 5  # files in a message
_TAIL = 4 << 10  # bytes of what a command says that are kept
_TICK = 0.1


class Check(Protocol):
    """Looks at a model before it is used."""

    def __call__(self, directory: Path, ref: str, cancel: CancelToken) -> None:
        """Raise :class:`UntrustedModel` when it must not be used.

        :param directory: holds the model's files and nothing else.
        :param ref: the version, for messages.
        :param cancel: ends it.
        """


@dataclass(frozen=True, slots=True)
class Checks:
    """What a model is looked at for.

    :param looks: at its files, one after the other.
    :param trust: whose signatures count, where they do.
    :param proof: what a trusted signer says of the version in hand.
    """

    looks: tuple[Check, ...] = ()
    trust: Trust | None = None
    proof: SignatureCheck | None = None

    @classmethod
    def of(
        cls,
        registry: Registry,
        *,
        allowed_formats: Sequence[str] | None = None,
        scan: str | Sequence[str] | None = None,
        signatures: str | None = None,
        trusted_signers: Sequence[str] | None = None,
    ) -> Self:
        """Return what arguments, and the connection where they say nothing of signatures, ask for.

        :param registry: where models come from.
        :param allowed_formats: of :data:`~..archive.formats.FORMATS`; ``None`` for all.
        :param scan: an entry point's name or a command; ``None`` for no scan.
        :param signatures: ``off``, ``warn`` or ``require``.
        :param trusted_signers: as of :class:`~.signatures.Trust`.
        :raises InvalidInput: for what is not known, and where signatures are required of a registry that keeps none;
            before anything is moved.
        """
        checks: list[Check] = []
        if allowed_formats is not None:
            checks.append(FormatGate.of(allowed_formats))
        if scan is not None:
            checks.append(scanner_of(scan))
        trust = Trust.of(signatures, trusted_signers, registry.settings)
        if trust is not None and not isinstance(registry, KeepsSignatures):
            refusal = registry.not_supported(Capability.SIGNATURES).message
            if trust.policy == "require":
                raise InvalidInput(refusal, argument="signatures")
            log.warning("signatures are not looked at: %s", refusal)
            trust = None
        return cls(tuple(checks), trust)

    def __bool__(self) -> bool:
        return bool(self.looks or self.trust)

    def begun(self, registry: Registry, driver: SyncDriver, version: ModelVersion, *, is_partial: bool) -> Checks:
        """Return the checks of one version; what a trusted signer says of it is found out, before any byte moves.

        :param is_partial: whether only some of its files are wanted.
        :raises UntrustedModel: when nobody who is trusted has signed it.
        """
        if self.trust is None:
            return self
        keeps = KeepsSignatures.of(registry)
        try:
            statement = self.trust.proved(driver.run(keeps.signatures(version)), version.ref)
        except UntrustedModel as error:
            self._complain(error)
            return replace(self, proof=None)
        return replace(self, proof=SignatureCheck(statement, is_partial))

    def inspect(
        self,
        directory: Path,
        ref: str,
        cancel: CancelToken,
        files: Sequence[FileEntry] | None = None,
        digest: str | None = None,
    ) -> None:
        """Look at a model. Parameters and errors as of :class:`Check`.

        :param files: with their hashes, where these are known.
        :param digest: of these files.
        """
        if self.proof is not None:
            try:
                self.proof(directory, ref, cancel, files, digest)
            except UntrustedModel as error:
                self._complain(error)
        for look in self.looks:
            cancel.check()
            look(directory, ref, cancel)

    def _complain(self, error: UntrustedModel) -> None:
        if self.trust is None or self.trust.policy == "require":
            raise error
        log.warning("%s; it is used all the same", error.message)


NO_CHECKS = Checks()


@dataclass(frozen=True, slots=True)
class FormatGate:
    """Lets models pass all of whose files are of some formats, by what they hold.

    :param allowed: the formats.
    """

    allowed: frozenset[str]

    @classmethod
    def of(cls, allowed: Sequence[str]) -> Self:
        """Return the gate for some formats.

        :raises InvalidInput: when there is no such format, or none at all.
        """
        unknown = sorted(set(allowed) - set(FORMATS))
        if unknown or not allowed:
            what = f"there is no format {unknown[0]!r}" if unknown else "no format is allowed"
            raise InvalidInput(f"{what}: there are {', '.join(FORMATS)}", argument="allowed_formats")
        return cls(frozenset(allowed) | {"empty"})

    def __call__(self, directory: Path, ref: str, cancel: CancelToken) -> None:
        refused: list[str] = []
        for path in sorted(directory.rglob("*")):
            cancel.check()
            if path.is_dir() and not path.is_symlink():
                continue
            found = formats_of(path) if path.is_file() else frozenset({"other"})
            if not found <= self.allowed:
                held = " and ".join(sorted(found - self.allowed))
                refused.append(f"{show(path.relative_to(directory).as_posix())} ({held})")
        if refused:
            more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            raise UntrustedModel(
                f"{ref} holds what is not allowed: {', '.join(refused[:_SHOWN])}{more}",
                argument="allowed_formats",
                remedy="Have it pushed in an allowed format, leave the files out with exclude, or allow the format",
            )


def scanner_of(scan: str | Sequence[str]) -> Check:
    """Return a scanner of the user's.

    :param scan: the name of an entry point in the group ``modelsync.scanners``, or a command.
    :raises InvalidInput: when there is neither.
    """
    if isinstance(scan, str):
        for entry in entry_points(group=SCANNERS, name=scan):
            try:
                return FunctionScanner(scan, entry.load())
            except Exception as error:
                raise InvalidInput(f"the scanner {scan!r} cannot be loaded: {error}", argument="scan") from error
        try:
            command = shlex.split(scan)
        except ValueError as error:
            raise InvalidInput(f"the command cannot be read: {error}", argument="scan") from None
    else:
        command = list(scan)
    if not command or shutil.which(command[0]) is None:
        known = ", ".join(sorted(entry_points(group=SCANNERS).names)) or "none"
        raise InvalidInput(
            f"{(command or [''])[0]!r} is neither a command on this machine nor an entry point of {SCANNERS} "
            f"(there are {known})",
            argument="scan",
        )
    if not any(HERE in word for word in command):
        command = [*command, HERE]
    return CommandScanner(tuple(command))


@dataclass(frozen=True, slots=True)
class FunctionScanner:
    """A function that is given the model's directory, and returns what it finds, or raises.

    :param name: of the entry point.
    :param function: the function.
    """

    name: str
    function: Callable[[Path], Iterable[Any] | None]

    def __call__(self, directory: Path, ref: str, cancel: CancelToken) -> None:
        log.info("scanning %s with %s", ref, self.name)
        before = survey(directory)
        try:
            found = [str(one) for one in interruptible(lambda: self.function(directory), cancel) or ()]
        except ModelSyncError:
            raise
        except Exception as error:
            raise UntrustedModel(
                f"the scanner {self.name} did not end on {ref}: {type(error).__name__}: {error}", argument="scan"
            ) from error
        if found:
            raise UntrustedModel(f"the scanner {self.name} refuses {ref}: {'; '.join(found[:_SHOWN])}", argument="scan")
        _require_untouched(directory, before, self.name)


@dataclass(frozen=True, slots=True)
class CommandScanner:
    """A command that ends with 0 when a model is clean. It may take as long as it needs.

    :param command: its words; ``{path}`` in them stands for the model's directory.
    """

    command: tuple[str, ...]

    def __call__(self, directory: Path, ref: str, cancel: CancelToken) -> None:
        name = os.path.basename(self.command[0])
        log.info("scanning %s with %s", ref, name)
        before = survey(directory)
        with tempfile.TemporaryFile() as output:
            # A session of its own, so that what it starts ends with it.
            process = subprocess.Popen(  # noqa: S603  # a DAG's author may run what they like anyway
                [word.replace(HERE, _for_others(directory)) for word in self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_TICK)
                    cancel.check()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
            said = output.read().decode("utf-8", "replace").strip()
        if process.returncode:
            raise UntrustedModel(
                f"the scanner {name} refuses {ref}: it ended with {process.returncode}", argument="scan", said=said
            )
        _require_untouched(directory, before, name)


def _for_others(directory: Path) -> str:
    """Return what a directory is called in other processes: staging is reached by a descriptor of this one.

    Its own name would do, too, but whoever may write beside the target could make that lead elsewhere meanwhile.
    """
    return str(directory).replace("/proc/self/", f"/proc/{os.getpid()}/", 1)


def _require_untouched(directory: Path, before: object, scanner: str) -> None:
    if survey(directory) != before:
        raise UntrustedModel(
            f"the scanner {scanner} has changed the files that it was to look at",
            argument="scan",
            remedy="Have it write elsewhere",
        )

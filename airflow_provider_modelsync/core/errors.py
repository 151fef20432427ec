"""The exception tree: what another try can help with, and what it cannot.

Lower layers raise these with a plain message; the layer that knows the model and the connection
adds both with :meth:`ModelSyncError.about`, so that one line tells the person on call what failed where.
"""

from __future__ import annotations

import errno
from typing import Self

from airflow_provider_modelsync.core.text import escape


class ModelSyncError(Exception):
    """Base of all errors that this package raises on purpose.

    :param message: what happened, what the other side said, and what to do about it. Never a secret.
    :param argument: the argument or connection field at fault, where there is one.
    :param model: the model reference concerned.
    :param connection: the id of the connection concerned.
    """

    def __init__(
        self,
        message: str,
        *,
        argument: str | None = None,
        model: str | None = None,
        connection: str | None = None,
    ) -> None:
        message = escape(message)  # it may quote a server, or a name that somebody else has chosen
        super().__init__(message)
        self.message = message
        self.argument = argument
        self.model = model
        self.connection = connection

    def about(self, *, model: str | None = None, connection: str | None = None) -> Self:
        """Add what a lower layer could not know; what is already set stays."""
        self.model = self.model or model
        self.connection = self.connection or connection
        return self

    def __str__(self) -> str:
        facts = {"argument": self.argument, "model": self.model, "connection": self.connection}
        known = ", ".join(f"{key} {value!r}" for key, value in facts.items() if value)
        return f"{self.message} [{known}]" if known else self.message


class Retryable(ModelSyncError):
    """Another try may succeed."""


class Permanent(ModelSyncError):
    """Another try with the same arguments cannot succeed."""


class RegistryUnavailable(Retryable):
    """The registry or its storage did not answer, or answered with a passing fault."""


class NotReady(Retryable):
    """What the operation needs is not there yet, though nothing failed."""


class TransferStalled(Retryable):
    """Bytes stopped moving."""


class CorruptArchive(Retryable):
    """An archive ended early or is no archive at all: a cut transfer."""


class SourceChanged(Retryable):
    """A source file changed while it was being read."""


class DiskFull(Retryable):
    """No space left where the model was to be written."""


class Cancelled(Retryable):
    """The work was told to stop."""


class BeginAgain(Retryable):
    """What was begun cannot be continued: an upload that is not known any more, a source or a claim that has changed.

    A push that meets this begins again from nothing, once, by itself.
    """


class InvalidInput(Permanent):
    """An argument, a name, a source or a connection field is refused before anything is sent."""


class TargetExists(Permanent):
    """The pull target holds something other than the wanted model."""


class ModelNotFound(Permanent):
    """The registry has no such model or version."""


class VersionConflict(Permanent):
    """The version exists with other bytes, or somebody else is writing it."""


class NotSupported(Permanent):
    """The registry does not offer this; the message names the nearest thing that it does."""


class Unauthorized(Permanent):
    """The credentials are refused, or do not allow the operation."""


class UnsafeArchive(Permanent):
    """An archive or a manifest holds something that must not be unpacked."""


class DigestMismatch(Permanent):
    """The stored bytes are not those that were pushed; seen twice in a row."""


class VersionFailed(Permanent):
    """The registry gave the version up."""


class DeploymentFailed(Permanent):
    """A deployment ended in a failed state."""


def from_os_error(error: OSError, doing: str, *, argument: str | None = None) -> ModelSyncError:
    """Classify an operating-system error.

    :param error: what the system call raised.
    :param doing: what was being done, for the message, e.g. ``"writing /models/m"``.
    :param argument: the argument at fault when the path was the user's.
    :return: :class:`DiskFull` for a full disk or quota, :class:`InvalidInput` for missing
        permission or a read-only file system, else :class:`RegistryUnavailable`.
    """
    text = f"{doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidInput(text, argument=argument)
    return RegistryUnavailable(text)

"""The exception tree: what another try can help with, what it cannot, and what to do about each.

Lower layers raise these with a plain message; the layer that knows the model and the connection
adds both with :meth:`ModelSyncError.about`, so that one line tells the person on call what failed where.
:mod:`airflow_provider_modelsync.core.failure` makes of it what a failed task says.
"""

from __future__ import annotations

import errno
from typing import Self

from airflow_provider_modelsync.core.text import escape


class ModelSyncError(Exception):
    """Base of all errors that this package raises on purpose.

    :param message: what happened. Never a secret.
    :param argument: the argument or connection field at fault, where there is one.
    :param model: the model reference concerned.
    :param connection: the id of the connection concerned.
    :param address: where the connection leads to.
    :param said: what the other side answered, in its own words.
    :param remedy: what to do about it; left out where what the class says is all there is to say.
    """

    # What to do about any error of a class, for those that do not say it better.
    remedy: str = "Look at the message and the documentation"

    def __init__(
        self,
        message: str,
        *,
        argument: str | None = None,
        model: str | None = None,
        connection: str | None = None,
        address: str | None = None,
        said: str | None = None,
        remedy: str | None = None,
    ) -> None:
        message = escape(message)  # it may quote a server, or a name that somebody else has chosen
        super().__init__(message)
        self.message = message
        self.argument = argument
        self.model = model
        self.connection = connection
        self.address = address
        self.said = escape(said) if said else None
        self.has_own_remedy = remedy is not None
        if remedy is not None:
            self.remedy = escape(remedy)

    def about(self, *, model: str | None = None, connection: str | None = None, address: str | None = None) -> Self:
        """Add what a lower layer could not know; what is already set stays."""
        self.model = self.model or model
        if self.connection in (None, connection):  # the address is that connection's
            self.address = self.address or address
        self.connection = self.connection or connection
        return self

    def __str__(self) -> str:
        facts = {"argument": self.argument, "model": self.model, "connection": self.connection}
        known = ", ".join(f"{key} {value!r}" for key, value in facts.items() if value)
        text = self.message
        if self.has_own_remedy:
            between = "" if text.endswith((".", "?", "!")) else "." if self.remedy[:1].isupper() else ";"
            text += f"{between} {self.remedy}"
        return f"{text} [{known}]" if known else text


class Retryable(ModelSyncError):
    """Another try may succeed."""

    remedy = "Try again"


class Permanent(ModelSyncError):
    """Another try with the same arguments cannot succeed."""

    remedy = "Correct what the message names"


class RegistryUnavailable(Retryable):
    """The registry or its storage did not answer, or answered with a passing fault."""

    remedy = "Check that the service is up, and that host, port and proxy of the connection lead to it"


class NotReady(Retryable):
    """What the operation needs is not there yet, though nothing failed."""

    remedy = "Look in the system itself what holds it up; give it more time by the timeout"


class TransferStalled(Retryable):
    """Bytes stopped moving."""

    remedy = "Check the network to the storage; where it is that slow, lower min_rate_kib_s in the connection"


class CorruptArchive(Retryable):
    """An archive ended early or is no archive at all: a cut transfer."""

    remedy = "Try again; when it comes back, delete the version and push it anew"


class SourceChanged(Retryable):
    """A source file changed while it was being read."""

    remedy = "Let whatever writes the source end first, and push then"


class DiskFull(Retryable):
    """No space left where the model was to be written."""

    remedy = "Free space there, or choose another place"


class Cancelled(Retryable):
    """The work was told to stop."""

    remedy = "Start it again: it goes on from where it was"


class BeginAgain(Retryable):
    """What was begun cannot be continued: an upload that is not known any more, a source or a claim that has changed.

    A push that meets this begins again from nothing, once, by itself.
    """

    remedy = "Try again: it begins anew"


class InvalidInput(Permanent):
    """An argument, a name, a source or a connection field is refused before anything is sent."""

    remedy = "Correct what the message names"


class TargetExists(Permanent):
    """The pull target holds something other than the wanted model."""

    remedy = "Empty the target, choose another one, or pull with force to replace it"


class ModelNotFound(Permanent):
    """The registry has no such model or version."""

    remedy = "Check name, version, labels and connection; `airflow modelsync ls` shows what is there"


class VersionConflict(Permanent):
    """The version exists with other bytes, or somebody else is writing it."""

    remedy = "Push under another version, or with force to replace it"


class NotSupported(Permanent):
    """The registry does not offer this; the message names the nearest thing that it does."""

    remedy = "Do without it, or use what the message names"


class Unauthorized(Permanent):
    """The credentials are refused, or do not allow the operation."""

    remedy = "Renew the connection's credentials, and check what they are allowed to do"


class UnsafeArchive(Permanent):
    """An archive or a manifest holds something that must not be unpacked."""

    remedy = "Have whoever made the archive make it anew without what is refused"


class UntrustedModel(Permanent):
    """A model is not one that may be used here: by its format, a scanner, or its signature."""

    remedy = "Have whoever vouches for the model look at it, and push it anew"


class DigestMismatch(Permanent):
    """The stored bytes are not those that were pushed; seen twice in a row."""

    remedy = "Restore the stored bytes, or delete the version and push it again"


class VersionFailed(Permanent):
    """The registry gave the version up."""

    remedy = "Mend what the system names, and push another version"


class DeploymentFailed(Permanent):
    """A deployment ended in a failed state."""

    remedy = "Look at the deployment's own log in the system, and deploy again"


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

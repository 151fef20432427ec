"""What only some systems do, each in a class of its own: aliases, fetching, serving, predicting.

A registry that does one of these derives from its class, too. A caller who needs it asks with :meth:`Offer.of`.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError, NotSupported, VersionConflict
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import (
    Alias,
    Deployment,
    Fetch,
    Headway,
    ModelRef,
    ModelVersion,
    Patience,
    Predictions,
    Query,
    Ticket,
)
from airflow_provider_modelsync.core.registries.base import Capability, Offer, Registry

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.archive.digest import LooseFile
    from airflow_provider_modelsync.core.transfer.checkpoint import UploadMemory
    from airflow_provider_modelsync.core.transfer.plan import PredictRequest, PutAhead

Note = Callable[[Fetch], None]

SIGNATURE = ".sig"  # what the names of files end with that hold one
MOST_SIGNATURES = 16  # of a version that are told


class Aliases(Offer):
    """Names that move from one version of a model to another, as ``champion`` in ``fraud@champion``.

    ``Registry.check`` looks at an alias's grammar, too; ``Registry.get`` follows aliases by :meth:`alias`. What is
    passed to these methods has been checked, and the version that an alias is to point to has just been read.
    """

    capability = Capability.ALIASES

    # Whether ``expected`` is compared in the same step that moves an alias. Where it is not, it is compared with a look
    # just before: of two who move it at once both may believe that they have.
    compares: ClassVar[bool] = True
    # Whether :meth:`alias` tells where an alias pointed before.
    remembers: ClassVar[bool] = True

    @abstractmethod
    def alias(self, name: str, alias: str) -> Flow[Alias]:
        """Return what an alias points to, and where it pointed before as far as the system remembers.

        :raises ModelNotFound: when there is no such alias, or no such model.
        """

    @abstractmethod
    def aliases(self, name: str) -> Flow[list[Alias]]:
        """Return all aliases of a model, by their names; empty when there is no such model.

        What they pointed to before may be left out where telling that takes further requests.
        """

    @abstractmethod
    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        """Have an alias point to a version; return it as it is then.

        One that does already is fine, whatever was expected: a repeated request is no conflict with itself.

        :param version: an exact version, as it was read.
        :param expected: move it only from this version; :data:`~..models.NOBODY`: only when it is not there yet;
            ``None``: wherever it points to.
        :raises VersionConflict: when it points elsewhere, naming where. :func:`moved` makes that error.
        """

    @abstractmethod
    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        """Remove an alias; return whether it was there. No version is touched."""


def moved(alias: str, expected: str, found: str | None) -> VersionConflict:
    """Return the error of an alias that does not point to where it was expected to.

    :param alias: it, as ``name@alias``.
    :param expected: as for :meth:`Aliases.set_alias`.
    :param found: the version that it does point to; ``None`` when it is not there.
    """
    now = f"points to the version {found}" if found else "is not there"
    wanted = f"it was expected to point to {expected}" if expected else "nothing was expected to be there"
    return VersionConflict(f"{alias} {now}, and {wanted}: somebody else has moved it")


class KeepsSignatures(Offer):
    """Signatures of a version's files are kept beside it, and are no part of it: its digest stays as it is.

    One that comes with a push, as ``PushRequest.signature``, is there before the version is: who waits for the version
    finds it signed. Nothing that is kept is believed.
    """

    capability = Capability.SIGNATURES

    @abstractmethod
    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        """Return what is kept for a version, at most a few, in any order; empty when nothing is."""

    @abstractmethod
    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        """Keep a signature for a version that is there already; the same signer's again takes nothing away.

        :param version: an exact version, as it was read.
        :raises NotSupported: where it can only come with a push.
        """


def name_of(signature: bytes) -> str:
    """Return what a signature is called where several lie side by side: the same one has the same name."""
    return f"{hashlib.sha256(signature).hexdigest()[:16]}{SIGNATURE}"


class SendsAhead(Offer):
    """Takes the parts of large files before the model's digest is known, so that a push reads these once.

    What goes ahead binds nobody and is seen by nobody: who may publish the version is decided when the digest is known.
    """

    @abstractmethod
    def plan_ahead(self, ref: ModelRef, files: Iterable[LooseFile], memory: UploadMemory) -> Flow[PutAhead | None]:
        """Say which files go ahead; ``None`` when none does, as where something is there that may hold these bytes.

        What is sent comes back as ``PushRequest.ahead``; :meth:`Registry.plan_push` uses it or gives it up.

        :param ref: the exact version that is going to be pushed.
        :param files: all of the model's, to be looked at once.
        :param memory: what an earlier try may have begun.
        :raises InvalidInput: for files that the registry cannot hold.
        """

    @abstractmethod
    def drop_ahead(self, ref: ModelRef) -> Flow[None]:
        """Give up what went ahead of a version by this very object, unless it is an object by now."""


class Tidies(Offer):
    """What pushes have left behind lies where this package alone looks after it."""

    @classmethod
    def missing(cls, registry: Registry) -> ModelSyncError:
        """Return the error where the system looks after that by itself."""
        return NotSupported(
            f"{registry.title} looks after unfinished pushes by itself", argument="leftovers_older_than"
        )

    @abstractmethod
    def tidy(self, name: str, older_than: datetime, *, dry_run: bool) -> Flow[list[str]]:
        """Remove what pushes of a model have left behind: unfinished uploads, claims, files that no version holds.

        :param older_than: only what was last written before.
        :param dry_run: only say what would be removed.
        :return: what it is, in words.
        """


class Fetches(Offer):
    """Models stay on the system's own host: a pull without a target has it bring one there."""

    @classmethod
    def missing(cls, registry: Registry) -> ModelSyncError:
        """Return the error of a pull without a target, where models are pulled to a directory instead."""
        return InvalidInput("a target directory is needed", argument="target")

    @abstractmethod
    def fetch(self, ref: ModelRef, query: Query, patience: Patience, note: Note) -> Flow[ModelVersion]:
        """Have the system bring a model onto its own host, and wait until it is there.

        :param note: as for :meth:`start_fetch`.
        """

    @abstractmethod
    def start_fetch(self, ref: ModelRef, query: Query, note: Note) -> Flow[Fetch]:
        """Ask the system to bring a model onto its own host, unless it does or did so already.

        :param note: told what is about to be asked for: the answer may be lost.
        """

    @abstractmethod
    def finish_fetch(self, fetch: Fetch, patience: Patience) -> Flow[ModelVersion]:
        """Wait until a model is on the system's host; only look, and take back what is ours when the time is over."""

    @abstractmethod
    def cancel_fetch(self, ref: str) -> Flow[str]:
        """End what was asked for, as far as it has not come to its end; return what was done in a sentence."""

    @abstractmethod
    def needs_fetch(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[bool]:
        """Return whether a model has to be fetched before it can be deployed so. Parameters as for a deployment."""


class Deploys(Offer):
    """The system serves models under a name that lasts."""

    capability = Capability.DEPLOY

    def own_deployment(self, model: str | None) -> str | None:
        """Return the name of the deployment that is meant where none is named; ``None`` where one must be.

        :param model: what is to be served, if anything is.
        """
        return None

    @abstractmethod
    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        """Ask for a model to be served; return once the request is accepted."""

    @abstractmethod
    def deployment(self, name: str) -> Flow[Deployment]:
        """Return a deployment as it is now."""

    @abstractmethod
    def undeploy(self, name: str) -> Flow[Deployment]:
        """Ask for a deployment's end."""

    def deployed_models(self) -> Flow[Mapping[str, str] | None]:
        """Return the versions that deployments run, by their references, each with the name of one that does.

        :return: ``None`` where the system does not tell: nothing is known of any version, then.
        """
        return None
        yield


class Predicts(Offer):
    """What is deployed answers with predictions while somebody waits."""

    capability = Capability.PREDICT

    @abstractmethod
    def predict(self, request: PredictRequest) -> Flow[Predictions]:
        """Have a deployment make predictions, and write them to the file that the request names.

        :param request: what to predict from, and where to.
        :raises InvalidInput: for inputs or options that the system cannot take, before anything is sent.
        """


class PredictsAlone(Predicts):
    """The system goes on with predictions when nobody waits, and keeps them until they are fetched."""

    @abstractmethod
    def start_predict(self, deployment: str | None, inputs: Any, options: Mapping[str, Any]) -> Flow[Ticket | None]:
        """Begin predictions; ``None`` where these are made only while somebody waits, and nothing is begun.

        Parameters as of the hook's ``predict``. :meth:`predict` fetches what was made.
        """

    @abstractmethod
    def headway_of(self, ticket: Ticket) -> Flow[Headway]:
        """Return how far predictions are; fetches none of them."""

    @abstractmethod
    def stop_predict(self, ticket: Ticket) -> Flow[str]:
        """End predictions that were begun, and no others; return what was done in a sentence."""

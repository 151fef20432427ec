"""Supervisely: experiments in Team Files, serving apps, and predictions by these.

Facts come from the unmodified supervisely 6.74.51 client on the wire. A model is an experiment's directory; the
listing of Team Files tells the SHA-256 of each file, so the digest needs no room of its own.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

from pydantic import BaseModel, Field

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, SyncDriver, call
from airflow_provider_modelsync.core.http.policy import RequestPolicy
from airflow_provider_modelsync.core.models import (
    LATEST,
    Deployment,
    Headway,
    ModelRef,
    ModelVersion,
    Predictions,
    Query,
    Ticket,
)
from airflow_provider_modelsync.core.registries.base import KEEPS_MODELS, Capability, Registry, newest_first
from airflow_provider_modelsync.core.registries.capabilities import Deploys, KeepsSignatures, PredictsAlone
from airflow_provider_modelsync.core.registries.supervisely.api import Arguments, Platform, SuperviselySettings, Text
from airflow_provider_modelsync.core.registries.supervisely.deployments import Deployments
from airflow_provider_modelsync.core.registries.supervisely.files import (
    INFO_LIMIT,
    Experiment,
    Ours,
    TeamFiles,
    accept_stored,
    generated_info,
    parse_info,
    require_there,
    signature_path,
)
from airflow_provider_modelsync.core.registries.supervisely.predict import (
    Batch,
    Kind,
    PredictOptions,
    Run,
    batches_of,
    headway,
    require_tracking,
    start,
    stop,
)
from airflow_provider_modelsync.core.registries.supervisely.session import INFO_FILE, LOAD_SECONDS, Session
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.mover import Mover
from airflow_provider_modelsync.core.transfer.plan import (
    DownloadPlan,
    GetFiles,
    PredictRequest,
    PushRequest,
    PutFiles,
    UploadPlan,
)

__all__ = ["Supervisely", "SuperviselySettings"]

T = TypeVar("T")

_NAME_BYTES = 255


class PushOptions(Arguments):
    """What a generated ``experiment_info.json`` says: the keys that the platform requires."""

    argument = "options"

    experiment_name: str = ""
    framework_name: str = ""
    model_name: str = ""
    task_type: str = ""
    project_id: int = 0
    task_id: int = 0
    model_files: dict[str, str] = Field(default_factory=dict)
    model_meta: str = ""
    checkpoints: tuple[str, ...] = ()
    best_checkpoint: str = ""
    hyperparameters: str = ""


class _User(BaseModel):
    login: Text = ""
    name: Text = ""


@dataclass(frozen=True, slots=True)
class _Draft:
    """An experiment that is to be made of a source.

    :param directory: where.
    :param digest: of the source.
    :param files: what goes up before the description.
    :param info: the description, the source's own or a generated one.
    """

    directory: str
    digest: str
    files: tuple[FileEntry, ...]
    info: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilesPlan(UploadPlan):
    draft: _Draft
    is_claimant: bool  # rather than one who goes on with what another push has begun
    signature: bytes | None


class Supervisely(Registry, KeepsSignatures, Deploys, PredictsAlone):
    """The experiments and the deployments of one connection.

    :param settings: the connection; ``password`` is the API token.
    """

    conn_type = "supervisely"
    title = "Supervisely"
    settings_type = SuperviselySettings
    settings: SuperviselySettings
    capabilities = KEEPS_MODELS
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.ALIASES: "label the version, and choose it by that label",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        if not isinstance(settings, SuperviselySettings):
            raise InvalidInput("these are no settings of Supervisely", connection=settings.conn_id)
        if sum(map(bool, (settings.task_id, settings.session_token, settings.deployment_url))) > 1:
            raise InvalidInput(
                "only one of task_id, session_token and deployment_url can be meant", connection=settings.conn_id
            )
        self._platform = Platform(settings, self.title)
        if settings.server is None and settings.deployment_url is None:
            raise InvalidInput("the server's address is needed", argument="host", connection=settings.conn_id)
        if settings.password is None and settings.session_token is None and settings.deployment_url is None:
            raise InvalidInput("an API token is needed", argument="password", connection=settings.conn_id)
        self.base_url: str = settings.server or str(settings.deployment_url)
        self._files = TeamFiles(self._platform, settings)
        self._deployments = Deployments(self, self._platform, self._files, settings)
        if settings.deployment_url is not None:
            Session(settings, settings.deployment_url)  # refuses what is no URL

    def policy(self) -> Policy:
        return RequestPolicy(self.settings)

    def check(self, ref: ModelRef) -> None:
        for part, text in (("name", ref.name), ("version", ref.version)):
            if text is not None and (not _is_name(text) or (part == "version" and text == LATEST)):
                raise InvalidInput(
                    f"the {part} {show(text)} is not 1 to {_NAME_BYTES} bytes of UTF-8 without '/', ':' and control "
                    "characters",
                    argument="model",
                )

    def test(self) -> Flow[str]:
        if self.settings.password is None or self._platform.server is None:
            session = yield from self.session(None)
            status = yield from session.status()
            state = "a model is loaded" if status.get("is_deployed") else "no model is loaded"
            return f"Connected to a deployment at {self.base_url}: {state}."
        user = yield from self._platform.ask("users.me", {}, _User, "checking the token", not_found=InvalidInput)
        team = yield from self._files.team_id()
        return f"Connected to {self.base_url} as {user.login or user.name}, with the files of team {team}."

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        experiment = yield from self._files.experiment(name, version)
        require_there(experiment, self.title)
        return (yield from self._describe(experiment))

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        if not query.matches_name(name):
            return None
        return (yield from self._newest((yield from self._experiments(name)), query))

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        experiments = yield from self._experiments(None)
        newest: list[ModelVersion] = []
        for name in {one.name for one in experiments if query.matches_name(one.name)}:
            version = yield from self._newest([one for one in experiments if one.name == name], query)
            newest += [version] if version else []
        return newest_first(newest)

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        return (yield from self._all(name, query))

    def list_all(self, query: Query) -> Flow[list[ModelVersion]]:
        return self._all(None, query)

    def _all(self, name: str | None, query: Query) -> Flow[list[ModelVersion]]:
        found: list[ModelVersion] = []
        for experiment in (yield from self._experiments(name)):
            if query.matches_name(experiment.name):
                found += [(yield from self._describe(experiment))]
        return newest_first(version for version in found if query.matches(version))

    def delete(self, ref: ModelRef) -> Flow[bool]:
        experiment = yield from self._files.experiment(ref.name, _exact(ref))
        if not experiment.files:
            return False
        # First what makes it a version, so that nobody pulls half of it.
        yield from self._files.remove((f"{experiment.directory}/{INFO_FILE}", f"{experiment.directory}/"))
        return True

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        version = yield from self.get(ref)
        experiment = yield from self._files.experiment(version.name, version.version)
        info = yield from self._files.info(experiment)
        if info is None:
            raise ModelNotFound(f"{version.ref} is not complete")
        if info.modelsync is None:
            raise _own_info(f"{version.ref} has", Capability.LABELS)
        merged = {**version.labels, **labels}
        kept = {key: value for key, value in merged.items() if value is not None}
        ours = info.modelsync.model_copy(update={"labels": kept, "created_at": version.created_at})
        content = generated_info(info.model_dump(mode="json", exclude={"modelsync"}), ours)
        yield from self._files.write(f"{experiment.directory}/{INFO_FILE}", content)
        return (yield from self.read_version(version.name, version.version))

    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        experiment = yield from self._files.experiment(version.name, version.version)
        return (yield from self._files.signatures(experiment))

    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        directory = self._files.directory(version.name, version.version)
        yield from self._files.write(f"{directory}/{signature_path(signature)}", signature)

    def list_experiments(self) -> Flow[list[dict[str, Any]]]:
        """Return what is known of all experiments, of Team Files and of the workspace's train tasks.

        :return: the contents of their ``experiment_info.json``, each once, told by ``artifacts_dir``.
        """
        found: dict[str, dict[str, Any]] = {}
        for experiment in (yield from self._files.experiments()):
            info = yield from self._files.info(experiment)
            if info is not None:
                known = info.model_dump(mode="json", exclude={"modelsync"})
                found[experiment.directory] = {**known, "artifacts_dir": experiment.directory}
        if self.settings.workspace_id is not None:
            for task in (yield from self._deployments.tasks(())):
                if data := task.experiment:
                    directory = str(data.get("artifacts_dir", f"task {task.id}")).rstrip("/")
                    found.setdefault(directory, data)
        return list(found.values())

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        name, version = request.ref.name, _exact(request.ref)
        draft = yield from call(_draft, self._files.directory(name, version), request)
        experiment = yield from self._files.experiment(name, version)
        existing = yield from self._existing(experiment, draft, request.force)
        if existing is not None:
            if request.force:
                existing = yield from self._rewrite(existing, experiment, draft, request)
            return UploadPlan(ref=request.ref, way=None, existing=existing)
        is_claimant = draft.digest not in experiment.claims
        if is_claimant:
            if experiment.content() and not experiment.claims and not request.force:
                raise VersionConflict(
                    f"{request.ref} holds files, but no {INFO_FILE}: a training may be writing it",
                    remedy="push under another version, or with force to replace it",
                )
            yield from self._files.claim(draft.directory, draft.digest)
            experiment = yield from self._files.experiment(name, version)
            try:
                existing = yield from self._existing(experiment, draft, request.force)
            except VersionConflict:
                yield from self._files.withdraw(draft.directory, draft.digest)
                raise
        if existing is not None:
            yield from self._files.withdraw(draft.directory, draft.digest)
            return UploadPlan(ref=request.ref, way=None, existing=existing)
        yield from self._take_over(experiment, draft, request)
        stored = {path: file.sha256 for path, file in experiment.content().items()}
        wanted = {file.path: file.sha256 for file in draft.files}
        # Before anything is written: from now on it is no version any more.
        stale = [path for path in stored if path not in wanted and path != INFO_FILE]
        gone = [INFO_FILE, *experiment.signatures] if INFO_FILE in stored else []
        yield from self._files.remove(f"{draft.directory}/{path}" for path in [*gone, *stale])
        missing = tuple(file for file in draft.files if stored.get(file.path) != file.sha256)
        way = PutFiles(
            request.source,
            missing,
            lambda file: self._files.upload_address(draft.directory, file.path),
            accept_stored,
        )
        return _FilesPlan(ref=request.ref, way=way, draft=draft, is_claimant=is_claimant, signature=request.signature)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_FilesPlan, plan)
        draft, name, version = plan.draft, plan.ref.name, _exact(plan.ref)
        experiment = yield from self._files.experiment(name, version)
        if experiment.info_file is not None:  # another push of the same bytes was faster
            existing = yield from self._existing(experiment, draft, force=False)
            if existing is None:
                raise RegistryUnavailable(f"{plan.ref} is being replaced by another push")
            yield from self._files.withdraw(draft.directory, draft.digest)
            return existing
        if draft.digest not in experiment.claims:
            if experiment.claims:
                raise VersionConflict(f"another push has taken {plan.ref} over")
            raise RegistryUnavailable(f"what was sent of {plan.ref} has been removed meanwhile")
        stored = {path: file.sha256 for path, file in experiment.content().items()}
        for file in draft.files:
            if file.path not in stored or stored[file.path] not in (file.sha256, None):
                raise RegistryUnavailable(f"{plan.ref}: {show(file.path)} is not there as it was sent")
        if plan.signature is not None:
            yield from self._files.write(f"{draft.directory}/{signature_path(plan.signature)}", plan.signature)
        yield from self._files.write(f"{draft.directory}/{INFO_FILE}", draft.info)
        yield from self._files.withdraw(draft.directory, draft.digest)
        made = yield from self.read_version(name, version)
        if made.digest != draft.digest:
            raise VersionConflict(f"another push has replaced {plan.ref}: it has {made.digest} now")
        return made

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        plan = cast(_FilesPlan, plan)
        draft, name, version = plan.draft, plan.ref.name, _exact(plan.ref)
        experiment = yield from self._files.experiment(name, version)
        if not plan.is_claimant or draft.digest not in experiment.claims:
            return  # another push of the same bytes goes on with it, or has ended
        # First, so that from now on nobody who has joined it publishes any more; whoever has by then is left alone.
        yield from self._files.withdraw(draft.directory, draft.digest)
        experiment = yield from self._files.experiment(name, version)
        if experiment.info_file is not None or experiment.claims:
            return
        sent = {file.path for file in cast(PutFiles, plan.way).files}
        there = experiment.content().keys()
        if there <= sent:
            yield from self._files.remove((f"{draft.directory}/",))
        else:
            yield from self._files.remove(f"{draft.directory}/{path}" for path in there & sent)

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        experiment = yield from self._files.experiment(version.name, version.version)
        info = yield from self._files.info(experiment)
        if info is None or experiment.describe(self.conn_type, info).digest != version.digest:
            raise BeginAgain(f"{version.ref} was replaced a moment ago")
        return DownloadPlan(
            version=version,
            way=GetFiles(
                experiment.entries(info),
                (info.modelsync or Ours()).directories,
                lambda file: self._files.download_address(experiment.directory, file.path),
            ),
        )

    def session(self, deployment: str | None) -> Flow[Session]:
        """Return the client of a deployment: all that its app offers.

        :param deployment: a task's name or id; ``None`` for the connection's own.
        :raises ModelNotFound: when there is none that serves.
        """
        return self._deployments.session(deployment)

    def own_deployment(self, model: str | None) -> str | None:
        return self._deployments.own_name()

    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        return self._deployments.deploy(deployment, ref, config)

    def deployment(self, name: str | None) -> Flow[Deployment]:
        return self._deployments.get(name)

    def undeploy(self, name: str | None) -> Flow[Deployment]:
        return self._deployments.undeploy(name)

    def load(
        self,
        deployment: str | None,
        model: str,
        *,
        device: str | None = None,
        runtime: str | None = None,
        seconds: float = LOAD_SECONDS,
    ) -> Flow[None]:
        """Load a model into a deployment that runs. Parameters as of the hook's."""
        return self._deployments.load(deployment, model, device=device, runtime=runtime, seconds=seconds)

    def predict(self, request: PredictRequest) -> Flow[Predictions]:
        ticket = request.ticket
        deployment = ticket.deployment if ticket else request.deployment
        session, batches, options = yield from self._asked(deployment, request.inputs, request.options)
        begun = ticket.request if ticket else None
        run = Run(session, batches, options, request.mover, request.control, begun)
        count = 0
        with closing(run), request.target.open("wb") as file:
            while (found := (yield from run.next())) is not None:
                yield from call(_write_lines, file, found)
                count += len(found)
        return Predictions(
            registry=self.conn_type,
            deployment=request.deployment,
            format="jsonl",
            size_bytes=request.target.stat().st_size,
            count=count,
        )

    def predictions(
        self,
        driver: SyncDriver,
        deployment: str | None,
        inputs: Any,
        options: Mapping[str, Any],
        control: Control,
    ) -> Iterator[dict[str, Any]]:
        """Yield predictions as they are made. Leaving the iterator ends the request that runs.

        Parameters as for :func:`~airflow_provider_modelsync.core.verbs.predict.predict`.
        """
        with closing(Mover(self.settings, base_url=self.base_url, cancel=control.cancel)) as mover:
            session, batches, asked = driver.run(self._asked(deployment, inputs, options))
            with closing(Run(session, batches, asked, mover, control)) as run:
                while (found := driver.run(run.next())) is not None:
                    yield from found

    def start_predict(self, deployment: str | None, inputs: Any, options: Mapping[str, Any]) -> Flow[Ticket | None]:
        if not isinstance(inputs, Mapping):  # files and arrays go up batch by batch
            return None
        session, batches, asked = yield from self._asked(deployment, inputs, options)
        ticket = yield from start(session, next(batches), asked)
        return ticket if ticket.deployment else ticket.model_copy(update={"deployment": deployment})

    def headway_of(self, ticket: Ticket) -> Flow[Headway]:
        return (yield from headway((yield from self.session(ticket.deployment)), ticket))

    def stop_predict(self, ticket: Ticket) -> Flow[str]:
        return (yield from stop((yield from self.session(ticket.deployment)), ticket))

    def _asked(
        self, deployment: str | None, inputs: Any, options: Mapping[str, Any]
    ) -> Flow[tuple[Session, Iterator[Batch], PredictOptions]]:
        how = PredictOptions.read(options)
        asked = yield from batches_of(inputs, how, self._platform)
        session = yield from self.session(deployment)
        if Kind.VIDEOS in asked.kinds:
            yield from require_tracking(session, how)
        return session, asked.batches, how

    def _experiments(self, name: str | None) -> Flow[list[Experiment]]:
        experiments = yield from self._files.experiments(name)
        return [one for one in experiments if one.content() and _is_name(one.name) and _is_name(one.version)]

    def _newest(self, experiments: list[Experiment], query: Query) -> Flow[ModelVersion | None]:
        """Return the newest ready one that the query chooses, reading no more than it takes."""
        listed = [(one.describe(self.conn_type, None).age_key, one) for one in experiments if one.info_file]
        best: ModelVersion | None = None
        for age_key, experiment in sorted(listed, key=lambda pair: pair[0], reverse=True):
            if best and age_key < best.age_key:  # a version may be older than its description, never newer
                break
            version = yield from self._describe(experiment)
            if version.ready and query.matches(version) and (best is None or version.age_key > best.age_key):
                best = version
        return best

    def _describe(self, experiment: Experiment) -> Flow[ModelVersion]:
        return experiment.describe(self.conn_type, (yield from self._files.info(experiment)))

    def _existing(self, experiment: Experiment, draft: _Draft, force: bool) -> Flow[ModelVersion | None]:
        """Return the version when it holds these bytes already.

        :raises VersionConflict: when it holds others, and is not to be replaced.
        """
        version = yield from self._describe(experiment)
        if not version.ready:
            return None
        if version.digest == draft.digest:
            return version
        if not force:
            known = version.digest or "bytes of an unknown digest"
            raise VersionConflict(
                f"{version.ref} exists with {known}, the source has {draft.digest}",
                remedy="push under another version, or with force to replace it",
            )
        return None

    def _rewrite(
        self, existing: ModelVersion, experiment: Experiment, draft: _Draft, request: PushRequest
    ) -> Flow[ModelVersion]:
        """Describe a version anew that holds these bytes: by the hashes that the server tells, nothing else differs."""
        info = yield from self._files.info(experiment)
        if info is None or info.modelsync is None:  # its own description, which is one of the files that were compared
            return existing
        ours = Ours(
            labels=dict(request.labels or existing.labels),
            metadata=dict(request.metadata or existing.metadata),
            created_at=existing.created_at,
            directories=request.source.directories,
            executables=frozenset(file.path for file in draft.files if file.executable),
        )
        if ours.model_copy(update={"created_at": info.modelsync.created_at}) != info.modelsync:
            content = generated_info(info.model_dump(mode="json", exclude={"modelsync"}), ours)
            yield from self._files.write(f"{experiment.directory}/{INFO_FILE}", content)
        return (yield from self.read_version(existing.name, existing.version))

    def _take_over(self, experiment: Experiment, draft: _Draft, request: PushRequest) -> Flow[None]:
        """See that this push is the one to write; the first to say so is, unless another one is forced."""
        others = [digest for digest in experiment.claims if digest != draft.digest]
        if not others:
            return
        if request.force:
            yield from self._files.withdraw(draft.directory, *others)
        elif experiment.claims[0] != draft.digest:
            yield from self._files.withdraw(draft.directory, draft.digest)
            raise VersionConflict(
                f"another push is writing {request.ref} with {others[0]}, the source has {draft.digest}",
                remedy="push under another version, or with force to replace it",
            )


def _is_name(text: str) -> bool:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return False
    bad = any(unicodedata.category(letter) in {"Cc", "Zl", "Zp"} or letter in "/:" for letter in text)
    return 1 <= size <= _NAME_BYTES and not bad and text not in (".", "..")


def _exact(ref: ModelRef) -> str:
    if ref.version is None:
        raise InvalidInput(f"{ref.name!r} needs an exact version here, as in '{ref.name}:v1'", argument="model")
    return ref.version


def _draft(directory: str, request: PushRequest) -> _Draft:
    """Check what is to be pushed and describe it; reads the source."""
    source = request.source
    own = next((file for file in source.files if file.path == INFO_FILE), None)
    files = tuple(file for file in source.files if file is not own)
    if own is not None:
        content = source.head(INFO_FILE, INFO_LIMIT + 1)
        if len(content) <= INFO_LIMIT and hashlib.sha256(content).hexdigest() != own.sha256:
            raise SourceChanged(f"{INFO_FILE} changed while the model was being pushed")
        parse_info(content)
        for capability, given in ((Capability.LABELS, request.labels), (Capability.METADATA, request.metadata)):
            if given:
                raise _own_info("the source holds", capability)
        if request.options:
            raise InvalidInput(f"the source's own {INFO_FILE} is pushed as it is", argument="options")
        return _Draft(directory, source.digest, files, content)
    options = PushOptions.read(request.options)
    checkpoints = options.checkpoints or tuple(file.path for file in files if file.path.startswith("checkpoints/"))
    best = options.best_checkpoint or (checkpoints[0].rpartition("/")[2] if len(checkpoints) == 1 else "")
    required = {
        **options.model_dump(mode="json"),
        "checkpoints": checkpoints,
        "best_checkpoint": best,
        "artifacts_dir": directory,
    }
    ours = Ours(
        labels=dict(request.labels),
        metadata=dict(request.metadata),
        directories=source.directories,
        executables=frozenset(file.path for file in files if file.executable),
    )
    return _Draft(directory, source.digest, files, generated_info(required, ours))


def _own_info(where: str, capability: Capability) -> NotSupported:
    return NotSupported(
        f"Supervisely does not offer to {capability} here: {where} an {INFO_FILE} of its own, which stays as it is; "
        "put them into that file",
        argument="labels" if capability is Capability.LABELS else "metadata",
    )


def _write_lines(file: BinaryIO, predictions: Sequence[Mapping[str, Any]]) -> None:
    for prediction in predictions:
        file.write(json.dumps(prediction, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

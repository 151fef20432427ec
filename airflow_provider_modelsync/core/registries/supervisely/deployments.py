"""Serving tasks: a task of the platform that runs a serving app, found by its id or by the name that it was given.

The sequence is that of ``api.nn.deploy`` in supervisely 6.74.51. A deployment's revision says which model the app
serves, so that a roll-out can be taken back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, RootModel, SecretStr

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
)
from airflow_provider_modelsync.core.flow.steps import Flow, sleep
from airflow_provider_modelsync.core.http.faults import NotSent
from airflow_provider_modelsync.core.http.policy import raise_for_status, read_json
from airflow_provider_modelsync.core.models import EMPTY, Deployment, ModelRef
from airflow_provider_modelsync.core.registries.base import Registry, note_unknown
from airflow_provider_modelsync.core.registries.supervisely.api import (
    PROXY_SECONDS,
    Arguments,
    Object,
    Platform,
    SuperviselySettings,
    Text,
    checked,
)
from airflow_provider_modelsync.core.registries.supervisely.files import TeamFiles, checkpoint_of, require_there
from airflow_provider_modelsync.core.registries.supervisely.session import (
    CUSTOM,
    Load,
    ModelInfo,
    Session,
    local_load,
    names_in,
    runtime_of,
)

START_SECONDS = 600.0  # that an app may take to come up: its image may have to be fetched
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between looks at an app that comes up; the last one stays
_SESSION = "session"  # what the connection's own deployment is called where it is no task

_ALIVE = ("queued", "consumed", "started", "deployed")
_SERVING = frozenset({"started", "deployed"})
_ENDED = frozenset({"error", "finished", "stopped"})
_FAILED = _ENDED | {"terminating"}
_KNOWN = _SERVING | _FAILED | {"queued", "consumed"}
_PRETRAINED, _CHECKPOINT = "pretrained:", "checkpoint:"  # what revisions begin with

_log = logging.getLogger("modelsync")


class DeployConfig(Arguments):
    """What ``deploy`` understands.

    :param pretrained: the model is one that the app has by name: ``<framework>:<model>``.
    :param checkpoint: which file of the experiment, rather than its best checkpoint. Without a platform: a path on the
        serving host.
    :param device: such as ``cpu`` or ``cuda:0``; the app chooses when left out.
    :param runtime: ``PyTorch``, ``ONNXRuntime`` or ``TensorRT``; told by the file's extension when left out.
    :param framework: whose serving app is started, rather than the experiment's own.
    :param agent_id: where the app runs; the agent with the most free GPU memory when left out.
    :param module_id: the serving app, rather than the framework's first one.
    :param revision: brings an earlier model back; allowed alone.
    """

    argument = "config"

    pretrained: bool = False
    checkpoint: str | None = Field(default=None, min_length=1)
    device: str | None = Field(default=None, min_length=1)
    runtime: str | None = None
    framework: str | None = Field(default=None, min_length=1)
    agent_id: int | None = Field(default=None, gt=0)
    module_id: int | None = Field(default=None, gt=0)
    revision: str | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        read = super().read(config)
        if read.revision is not None and len(read.model_fields_set) > 1:
            raise InvalidInput("'revision' brings a whole model back; it is allowed alone", argument="config")
        runtime_of(read.runtime)
        return read


class _App(BaseModel):
    module_id: int | None = Field(default=None, alias="moduleId")


class _TaskMeta(BaseModel):
    token: SecretStr | None = Field(default=None, alias="sessionToken")
    name: Text = ""
    app: Annotated[_App, BeforeValidator(lambda value: value or {})] = _App()
    output: Object = {}


class Task(BaseModel):
    """A task of the platform."""

    id: int
    type: Text = ""
    status: Text = ""
    meta: Annotated[_TaskMeta, BeforeValidator(lambda value: value or {})] = _TaskMeta()
    workspace_id: int | None = Field(default=None, alias="workspaceId")

    @property
    def experiment(self) -> dict[str, Any] | None:
        """The experiment that a train task has made."""
        experiment = self.meta.output.get("experiment")
        data = experiment.get("data") if isinstance(experiment, dict) else None
        return data if isinstance(data, dict) and data else None


class _Module(BaseModel):
    id: int


class _Agent(BaseModel):
    id: int
    type: Text = ""
    gpu_info: Object = Field(default={}, alias="gpuInfo")

    @property
    def free_memory(self) -> float:
        """Of the first GPU; more than one is not made use of."""
        devices = self.gpu_info.get("device_memory")
        first = devices[0] if isinstance(devices, list) and devices else {}
        available = first.get("available") if isinstance(first, dict) else None
        return float(available) if isinstance(available, (int, float)) else 0.0


class _Started(BaseModel):
    number: int = Field(validation_alias=AliasChoices("taskId", "id"))


class _StartedOnes(RootModel[Annotated[list[_Started], Field(min_length=1)]]):
    pass


class Deployments:
    """The serving tasks of one connection.

    :param registry: chooses among versions.
    :param platform: makes the calls.
    :param files: where experiments are.
    :param settings: the connection.
    """

    def __init__(self, registry: Registry, platform: Platform, files: TeamFiles, settings: SuperviselySettings) -> None:
        self._registry = registry
        self._platform = platform
        self._files = files
        self._settings = settings
        self._conn_type = registry.conn_type
        self._title = registry.title

    def session(self, name: str | None) -> Flow[Session]:
        """Return the client of a deployment.

        :param name: a task's name or id; ``None`` for the connection's own.
        :raises ModelNotFound: when there is none that serves.
        """
        if (own := self._own(name)) is not None:
            return own
        task = yield from self._task(name)
        if task is None:
            raise ModelNotFound(f"{self._title} has no deployment {show(str(name))}")
        if task.status in _ENDED:
            raise ModelNotFound(f"the deployment {show(str(name or task.id))} is {task.status}")
        return self._session_of(task)

    def deploy(self, name: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        """Have a model loaded into a deployment, which is started when it does not run."""
        asked = DeployConfig.read(config)
        own = self._own(name)
        framework, load = yield from self._load(ref, asked)
        if own is not None:
            return (yield from self._loaded(own, load, None, name, is_new=False))
        task = yield from self._task(name)
        if task is not None and task.status in _FAILED:
            task = None
        is_new = task is None
        if task is None:
            if not name or _is_id(name):
                raise ModelNotFound(f"{self._title} has no running task {name or self._settings.task_id}")
            task = yield from self._start(name, asked.framework or framework, asked)
        elif framework and load.source == CUSTOM and not (asked.framework or asked.module_id):
            yield from self._require_framework(task, framework)
        try:
            task = yield from self._running(task)
            return (yield from self._loaded(self._session_of(task), load, task, name, is_new=is_new))
        except Cancelled:
            raise
        except ModelSyncError as error:
            # One that only takes long is found again by its name.
            if is_new and not isinstance(error, RegistryUnavailable):
                with suppress(ModelSyncError):  # the first error matters more
                    yield from self._platform.ask("tasks.stop", {"id": task.id}, object, f"stopping the task {task.id}")
            raise

    def load(
        self, name: str | None, model: str, *, device: str | None, runtime: str | None, seconds: float
    ) -> Flow[None]:
        """Load a model into a deployment that runs, and return once it answers.

        :param model: one that the app has by name; ``project:version``, or ``project`` for the newest; or the path of
            a checkpoint: of an experiment in Team Files, or for an app without a platform on its own host.
        """
        session = yield from self.session(name)
        how = {"device": device, "runtime": runtime}
        root = f"{self._settings.artifacts_root}/"
        if not model.startswith("/"):
            known = yield from session.list_pretrained_models()
            if model in known:
                load = Load.pretrained(model, **how)
            elif self._is_local:
                raise InvalidInput(f"{session.shown} has no model {show(model)}: {names_in(known)}", argument="model")
            else:
                try:
                    ref = self._registry.parse(model)
                    _, load = yield from self._load_of_experiment(ref, None, **how)
                except ModelNotFound as error:
                    raise InvalidInput(
                        f"{error.message}, and {session.shown} has no pretrained model of this name: {names_in(known)}",
                        argument="model",
                    ) from None
        elif self._is_local:
            load = yield from local_load(model, **how)
        elif model.startswith(root) and model.count("/", len(root)) >= 2:
            project, version, checkpoint = model.removeprefix(root).split("/", 2)
            ref = ModelRef(name=project, version=version)
            _, load = yield from self._load_of_experiment(ref, checkpoint, **how)
        else:
            raise NotSupported(f"only checkpoints of experiments below {root} can be loaded, not {show(model)}")
        yield from session.load(load, seconds=seconds)

    def get(self, name: str | None) -> Flow[Deployment]:
        """Return a deployment as it is now."""
        session, task, info = self._own(name), None, None
        if session is None:
            task = yield from self._task(name)
            if task is None:
                raise ModelNotFound(f"{self._title} has no deployment {show(str(name))}")
            session = self._session_of(task) if task.status in _SERVING else None
        if session is not None:
            try:
                info = yield from session.served()
            except RegistryUnavailable as error:
                if task is None and isinstance(error, NotSent):
                    return self._ended(name, "stopped")
                _log.info("%s; taken as not ready yet", error)
        return self._describe(name, task, info)

    def undeploy(self, name: str | None) -> Flow[Deployment]:
        """Ask for a deployment's end."""
        own = self._own(name)
        if own is not None:
            return self._ended(name, (yield from own.shutdown()))
        task = yield from self._task(name)
        if task is None:
            return self._ended(name, "stopped")
        if task.status not in _FAILED:
            status = yield from self._session_of(task).shutdown()
            task = task.model_copy(update={"status": status})
        return self._describe(name, task, None)

    def tasks(self, statuses: tuple[str, ...]) -> Flow[list[Task]]:
        """Return the workspace's tasks in some states; all of them for none."""
        body: dict[str, Any] = {"workspaceId": self._platform.workspace_id}
        if statuses:
            body["filter"] = [{"field": "status", "operator": "in", "value": list(statuses)}]
        doing = "listing the tasks"
        found = yield from self._platform.entities("tasks.list", body, doing)
        return checked(found, list[Task], doing)

    def own_name(self) -> str | None:
        """Return what the connection's own deployment is called, ``None`` when it has none."""
        settings = self._settings
        if settings.deployment_url is not None or settings.session_token is not None:
            return _SESSION
        return None if settings.task_id is None else str(settings.task_id)

    def _own(self, name: str | None) -> Session | None:
        """Return the connection's own deployment where that is no task and is meant."""
        settings = self._settings
        if settings.deployment_url is None and settings.session_token is None:
            return None
        if name and name != _SESSION:
            if settings.password is None:
                raise InvalidInput(
                    "the connection leads to one deployment only", remedy="leave the name out", argument="deployment"
                )
            return None
        if settings.deployment_url is not None:
            return Session(settings, settings.deployment_url.rstrip("/"))
        if settings.server is None:
            raise InvalidInput("a session_token needs the server's address", argument="host")
        return Session(settings, settings.server, platform=self._platform, token=settings.session_token)

    def _session_of(self, task: Task) -> Session:
        if task.meta.token is None:
            raise NotSupported(f"the task {task.id} is no app: it has no session")
        assert self._platform.server is not None
        return Session(
            self._settings, self._platform.server, platform=self._platform, task_id=task.id, token=task.meta.token
        )

    def _task(self, name: str | None) -> Flow[Task | None]:
        """Return the task that a name or an id stands for, the running one where several had the name."""
        if not name:
            name = self.own_name()
            if name is None:
                raise InvalidInput("name a deployment; the connection has none of its own", argument="deployment")
        if _is_id(name):
            try:
                return (yield from self._read(int(name)))
            except ModelNotFound:
                return None
        named = [task for task in (yield from self.tasks(_ALIVE)) if task.meta.name == name]
        if not named:  # it may also be in a state that nobody here has heard of
            named = [task for task in (yield from self.tasks(())) if task.meta.name == name]
        alive = [task for task in named if task.status not in _FAILED]
        if len(alive) > 1:
            ids = ", ".join(str(task.id) for task in alive)
            raise InvalidInput(
                f"several tasks are called {show(name)}: {ids}", remedy="name one by its id", argument="deployment"
            )
        return max(alive or named, key=lambda task: task.id, default=None)

    @property
    def _is_local(self) -> bool:
        """Whether the connection leads to an app and to no platform."""
        return self._settings.server is None or self._settings.password is None

    def _load(self, ref: ModelRef, config: DeployConfig) -> Flow[tuple[str | None, Load]]:
        """Return what is to be loaded, and the framework that it is of."""
        if config.revision is not None:
            return None, (yield from self._load_of_revision(config.revision))
        how = {"device": config.device, "runtime": config.runtime}
        if config.pretrained:
            if ref.version is None:
                raise InvalidInput("a pretrained model is named '<framework>:<model>'", argument="model")
            return ref.name, Load.pretrained(ref.version, **how)
        if self._is_local:
            if config.checkpoint is None:
                raise NotSupported(
                    f"a deployment that is reached without {self._title}'s platform loads pretrained models "
                    "(config['pretrained']) and checkpoints on its own host (config['checkpoint'])"
                )
            return None, (yield from local_load(config.checkpoint, **how))
        return (yield from self._load_of_experiment(ref, config.checkpoint, **how))

    def _load_of_experiment(
        self, ref: ModelRef, checkpoint: str | None, *, device: str | None = None, runtime: str | None = None
    ) -> Flow[tuple[str | None, Load]]:
        version = ref.version or (yield from self._registry.get(ref)).version
        experiment = yield from self._files.experiment(ref.name, version)
        require_there(experiment, self._title)
        info = yield from self._files.info(experiment)
        if info is None:
            raise ModelNotFound(f"{ref.name}:{version} is not complete")
        path = checkpoint_of(experiment, info, checkpoint)
        more = {str(key): f"{experiment.directory}/{value}" for key, value in info.model_files.items()}
        files = {**more, "checkpoint": f"{experiment.directory}/{path}"}
        described = info.model_dump(mode="json", exclude={"modelsync"})
        described["artifacts_dir"] = experiment.directory
        return info.framework_name or None, Load.custom(files, described, device=device, runtime=runtime)

    def _load_of_revision(self, revision: str) -> Flow[Load]:
        kind, name = next(
            ((kind, revision[len(kind) :]) for kind in (_PRETRAINED, _CHECKPOINT) if revision.startswith(kind)),
            (None, revision),
        )
        if kind == _PRETRAINED:
            return Load.pretrained(name)
        root = f"{self._settings.artifacts_root}/"
        parts = name.removeprefix(root).split("/", 2)
        if kind is None or not name.startswith(root) or len(parts) < 3:
            raise InvalidInput(f"there is no revision {show(revision)} to go back to", argument="config")
        ref = ModelRef(name=parts[0], version=parts[1])
        return (yield from self._load_of_experiment(ref, parts[2]))[1]

    def _loaded(
        self, session: Session, load: Load, task: Task | None, name: str | None, *, is_new: bool
    ) -> Flow[Deployment]:
        """Have a model loaded unless it is, and say what the deployment is then.

        :param is_new: whether nothing has been served: then nothing has to be told from what is coming.
        """
        info = yield from session.served()
        if info is None or not load.is_served(info):
            is_done = yield from session.begin_load(load, seconds=PROXY_SECONDS)
            info = (yield from session.served()) if is_done else None
        else:
            _log.info("%s serves %s already: nothing is changed", session.shown, load)
        described = self._describe(name, task, info)
        if info is not None:
            return described
        coming = {"model": self._ref(load), "artifact": str(load), **({} if is_new else {"revision": _revision(load)})}
        return described.model_copy(update=coming)

    def _start(self, name: str, framework: str | None, config: DeployConfig) -> Flow[Task]:
        """Start a serving app and return its task."""
        workspace = self._platform.workspace_id
        module = config.module_id or (yield from self._modules(framework))[0]
        agent = config.agent_id or (yield from self._agent(workspace, config.device))
        body = {
            "agentId": agent,
            "workspaceId": workspace,
            "description": "",
            "params": {"state": {}},
            "logLevel": "info",
            "usersIds": [],
            "appVersion": "",
            "isBranch": False,
            "taskName": name,
            "restartPolicy": "never",
            "proxyKeepUrl": False,
            "advancedSettings": {"limitByWorkspace": False},
            "moduleId": module,
        }
        doing = f"starting {name}"
        try:
            response = yield from self._platform.answer("tasks.run.app", body, may_repeat=False)
            raise_for_status(response, doing)
            number = read_json(response, _StartedOnes, doing).root[0].number
        except NotSent:
            raise
        except RegistryUnavailable as error:  # it may have been carried out; never twice
            _log.info("%s; looking whether it was carried out", error)
            task = yield from self._task(name)
            if task is None or task.status in _FAILED:
                raise
            return task
        return (yield from self._read(number))

    def _read(self, number: int) -> Flow[Task]:
        return self._platform.ask("tasks.info", {"id": number}, Task, f"reading the task {number}")

    def _require_framework(self, task: Task, framework: str) -> Flow[None]:
        """Raise unless a task's app serves a framework: the load would fail, and leave nothing served."""
        if task.meta.app.module_id not in (None, *(yield from self._modules(framework))):
            raise InvalidInput(
                f"the task {task.id} runs an app of another framework than {show(framework)}; undeploy it first, or "
                "deploy under another name",
                argument="deployment",
            )

    def _modules(self, framework: str | None) -> Flow[list[int]]:
        """Return the serving apps of a framework, at least one."""
        if not framework:
            raise InvalidInput(
                "the experiment names no framework",
                remedy="name one in config['framework'], or an app in config['module_id']",
                argument="config",
            )
        body = {"categories": ["serve", f"framework:{framework}"], "categoriesOperation": "and"}
        found = yield from self._platform.entities("ecosystem.list", body, "looking for a serving app")
        if not found:
            raise InvalidInput(f"{self._title} has no app that serves {show(framework)}", argument="config")
        return [app.id for app in checked(found, list[_Module], "looking for a serving app")]

    def _agent(self, workspace: int, device: str | None) -> Flow[int]:
        """Return the agent with the most free GPU memory; any one for a model on the CPU."""
        body = {
            "teamId": (yield from self._platform.team_of(workspace)),
            "withoutPublic": False,
            "anyStatus": False,
            "needGPU": device != "cpu",
        }
        agents = yield from self._platform.ask("agents.available", body, list[_Agent], "looking for an agent")
        # A cluster is asked only when no machine is there.
        best = max(agents, key=lambda agent: (agent.type != "kubernetes", agent.free_memory), default=None)
        if best is None:
            hint = "" if device == "cpu" else "; config['device'] = 'cpu' does without a GPU"
            raise RegistryUnavailable(f"{self._title} has no agent that could run the app{hint}")
        return best.id

    def _running(self, task: Task) -> Flow[Task]:
        """Wait until a task's app answers; return the task as it is then."""
        end = time.monotonic() + START_SECONDS
        for look in range(1 << 30):
            if task.status in _FAILED:
                raise DeploymentFailed(f"the task {task.id} is {task.status} before its app was up; see its log")
            if task.status in _SERVING:
                response = yield from self._platform.app_call(task.id, "is_running", {}, timeout=1, may_repeat=False)
                if response.is_success:
                    return task
            pause = _PAUSES[min(look, len(_PAUSES) - 1)]
            if time.monotonic() + pause > end:
                raise RegistryUnavailable(f"the task {task.id} is {task.status}; its app is not up yet")
            yield from sleep(pause)
            task = yield from self._read(task.id)
        raise AssertionError("unreachable")

    def _describe(self, name: str | None, task: Task | None, info: ModelInfo | None) -> Deployment:
        if task is None:
            status = "ready" if info else "not ready"
            known: dict[str, Any] = {"name": name or _SESSION, "status": status, "revision": EMPTY}
        else:
            if task.status not in _KNOWN:
                note_unknown(f"the task {task.id}", task.status)
            known = {
                "name": name or str(task.id),
                "status": task.status,
                "failed": task.status in _FAILED,
                "gone": task.status in _ENDED,
                "revision": None if task.status in _ENDED else EMPTY,
                "page": f"{self._platform.server}/apps/sessions/{task.id}",
                "raw": {"id": task.id, "status": task.status, "name": task.meta.name},
            }
        if info is not None:
            load = _load_of(info)
            known |= {"ready": True, "model": self._ref(load), "artifact": str(load), "revision": _revision(load)}
            known["raw"] = {**known.get("raw", {}), **info.model_dump()}
        return Deployment(registry=self._conn_type, **known)

    def _ended(self, name: str | None, status: str) -> Deployment:
        gone = status in _ENDED
        return Deployment(registry=self._conn_type, name=name or _SESSION, status=status, failed=True, gone=gone)

    def _ref(self, load: Load) -> str | None:
        """Return the model that a checkpoint belongs to."""
        if load.source != CUSTOM:
            return load.name
        root = f"{self._settings.artifacts_root}/"
        path = str(load)
        parts = path.removeprefix(root).split("/", 2)
        return f"{parts[0]}:{parts[1]}" if path.startswith(root) and len(parts) == 3 else None


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _load_of(info: ModelInfo) -> Load:
    if info.model_source == CUSTOM:
        return Load(CUSTOM, files={"checkpoint": info.custom_checkpoint_path or info.checkpoint_name})
    return Load.pretrained(info.model_name)


def _revision(load: Load) -> str:
    return f"{_CHECKPOINT if load.source == CUSTOM else _PRETRAINED}{load}"

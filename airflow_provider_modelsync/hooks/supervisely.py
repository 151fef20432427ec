"""The hook of Supervisely: experiments in Team Files, and all that a serving app offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow_provider_modelsync.core.arguments import is_url
from airflow_provider_modelsync.core.errors import Cancelled, ModelSyncError
from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.registries.base import Registry
    from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely
    from airflow_provider_modelsync.core.registries.supervisely.session import Session

T = TypeVar("T")


class SuperviselyHook(RegistryHook):
    """Access to the experiments and the deployments of one Supervisely connection.

    In every method ``deployment`` is a task's name or id, and ``None`` stands for the connection's own deployment.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "supervisely"
    hook_name = "Supervisely"
    default_conn_name = "supervisely_default"

    @classmethod
    def registry_type(cls) -> type[Supervisely]:
        from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely

        return Supervisely

    def get_info(self, deployment: str | None = None) -> dict[str, Any]:
        """Return what model is loaded and how it runs.

        :raises ModelNotFound: when none is.
        """
        return self._ask(deployment, lambda session: session.get_info())

    def get_settings(self, deployment: str | None = None) -> dict[str, Any] | str:
        """Return the inference settings and their defaults: a dictionary, or YAML text where the app has that."""
        return self._ask(deployment, lambda session: session.get_settings())

    def get_tracking_settings(self, deployment: str | None = None) -> dict[str, Any]:
        """Return the tracker's settings; empty where the app has no tracker."""
        return self._ask(deployment, lambda session: session.get_tracking_settings())

    def get_model_meta(self, deployment: str | None = None) -> dict[str, Any]:
        """Return the model's classes and tags, as a project's meta."""
        return self._ask(deployment, lambda session: session.get_model_meta())

    def get_classes(self, deployment: str | None = None) -> list[str]:
        """Return the names of the model's classes."""
        return self._ask(deployment, lambda session: session.get_classes())

    def list_pretrained_models(self, deployment: str | None = None) -> list[str]:
        """Return the names of the models that the app can load by name."""
        return self._ask(deployment, lambda session: session.list_pretrained_models())

    def list_pretrained_model_infos(self, deployment: str | None = None) -> list[dict[str, Any]]:
        """Return the models that the app can load by name, described."""
        return self._ask(deployment, lambda session: session.list_pretrained_model_infos())

    def status(self, deployment: str | None = None) -> dict[str, Any]:
        """Return whether a model is loaded, what the app is at, and its memory; answered during a load, too."""
        return self._ask(deployment, lambda session: session.status())

    def is_deployed(self, deployment: str | None = None) -> bool:
        """Whether a model is loaded and answers: ``False`` for whatever keeps the app from saying so."""
        self.get_conn()
        try:
            return self._ask(deployment, lambda session: session.is_deployed())
        except Cancelled:
            raise
        except ModelSyncError as error:
            self.log.info("Taken as not deployed: %s", error)
            return False

    def load(
        self,
        model: str,
        deployment: str | None = None,
        *,
        device: str | None = None,
        runtime: str | None = None,
        seconds: float = 3600.0,
    ) -> None:
        """Load a model into a deployment that runs, and return once it answers. What it serves is dropped first.

        :param model: one that the app has by name; ``project:version``, or ``project`` for the newest; or the path of
            a checkpoint: of an experiment in Team Files, or for an app that is reached without the platform, on its
            own host, with a disk that this machine shares.
        :param device: such as ``"cpu"`` or ``"cuda:0"``; the app chooses when left out.
        :param runtime: ``PyTorch``, ``ONNXRuntime`` or ``TensorRT``.
        :param seconds: how long it may take; a proxy's time limit on the way does not count.
        :raises InvalidInput: for what cannot be loaded; what is served stays.
        :raises DeploymentFailed: when the app fails to load it; then nothing is served.
        """
        self._run(
            lambda registry: registry.load(deployment, model, device=device, runtime=runtime, seconds=seconds), model
        )

    def freeze_model(self, deployment: str | None = None) -> str:
        """Move the model out of the GPU's memory until the next prediction; return what the app says.

        That is ``"Model is frozen."``, ``"Model is already frozen."``, or another text where it cannot be frozen: on
        the CPU, or in another runtime than PyTorch.
        """
        return self._ask(deployment, lambda session: session.freeze_model())

    def shutdown(self, deployment: str | None = None) -> str:
        """Ask for a deployment's end, and return its status; one that has ended already is fine."""
        return self._run(lambda registry: registry.undeploy(deployment)).status

    def list_experiments(self) -> list[dict[str, Any]]:
        """Return what is known of all experiments, in Team Files and by the workspace's train tasks."""
        return self._run(lambda registry: registry.list_experiments())

    def predict_detached(self, deployment: str | None, inputs: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Yield predictions as they are made. Leaving the iterator ends the request that runs.

        Parameters and errors as for ``predict``.
        """
        if isinstance(inputs, (str, os.PathLike)) and not is_url(inputs):
            inputs = Path(inputs)
        with self._named(None), self._session() as (registry, driver):
            control = self._control(registry, f"predicting with {deployment}", None)
            yield from cast("Supervisely", registry).predictions(driver, deployment, inputs, options, control)

    def _ask(self, deployment: str | None, make_flow: Callable[[Session], Flow[T]]) -> T:
        def flow(registry: Supervisely) -> Flow[T]:
            session = yield from registry.session(deployment)
            return (yield from make_flow(session))

        return self._run(flow)

    def _run(self, make_flow: Callable[[Supervisely], Flow[T]], model: str | None = None) -> T:
        def flow(registry: Registry) -> Flow[T]:
            return make_flow(cast("Supervisely", registry))

        return self.run(flow, model=model)

"""The hook of Pieces OS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow_provider_modelsync.core.models import Fetch, ModelVersion, Patience, Query
from airflow_provider_modelsync.hooks.registry import RegistryHook

if TYPE_CHECKING:
    from airflow_provider_modelsync.core.flow.steps import Flow
    from airflow_provider_modelsync.core.models import ModelRef
    from airflow_provider_modelsync.core.registries.pieces.progress import DownloadProgress
    from airflow_provider_modelsync.core.registries.pieces.registry import Pieces

T = TypeVar("T")


class PiecesHook(RegistryHook):
    """Access to the models of one Pieces OS, which stay on its host.

    A model is named by its id, its ``unique`` name, or its plain name where no other model shares it.

    :param registry_conn_id: the connection's id.
    """

    conn_type = "pieces"
    hook_name = "Pieces OS"
    default_conn_name = "pieces_default"

    @classmethod
    def registry_type(cls) -> type[Pieces]:
        from airflow_provider_modelsync.core.registries.pieces.registry import Pieces

        return Pieces

    def download(self, model: str, *, patience: Patience | None = None) -> ModelVersion:
        """Have a model downloaded on the host; return once it is there. One that is there already is left alone.

        :param patience: how long to wait, and how often to look; 6 h and 5 s by default.
        :raises VersionFailed: when the download has failed, or somebody has cancelled it.
        :raises RegistryUnavailable: when it ended without a word, or the time is over.
        """
        return self.pull(model, None, patience=patience).version

    def download_progress(self, model: str, *, patience: Patience | None = None) -> Iterator[DownloadProgress]:
        """Have a model downloaded as :meth:`download` does, and yield percent and state whenever it gets any further.

        The last ones are ``100.0`` and ``"COMPLETED"``; they are the only ones where the model is there already::

            for percent, state in PiecesHook().download_progress("phi-2"):
                ...

        A download goes on when the iterator is left early: :meth:`cancel_download` ends it. Parameters and errors as
        of :meth:`download`.
        """
        from airflow_provider_modelsync.core.verbs.fetch import taking_back

        with self._named(model), self._session() as (registry, driver):
            pieces = cast("Pieces", registry)
            with taking_back(registry) as asked:
                steps = pieces.progress(driver, pieces.parse(model), Query(), patience or Patience(), asked.append)
                with closing(steps):
                    yield from steps

    def wait_for_download(self, model: str, *, patience: Patience | None = None) -> ModelVersion:
        """Wait for a download that somebody else began, with its progress in the log. As :meth:`download` besides."""
        version = self.get(model)
        fetch = Fetch(ref=str(version.metadata["id"]), name=version.name)
        return self.run(lambda pieces: cast("Pieces", pieces).finish_fetch(fetch, patience or Patience()), model=model)

    def cancel_download(self, model: str) -> str:
        """Cancel a model's download, whoever began it; return what was done in a sentence."""
        ref = str(self.get(model).metadata["id"])
        return self.run(lambda pieces: cast("Pieces", pieces).cancel_fetch(ref), model=model)

    def load(self, model: str) -> ModelVersion:
        """Bring a downloaded model into memory.

        :raises InvalidInput: when it is not downloaded.
        """
        return self._run(lambda pieces, ref: pieces.load(ref), model)

    def unload(self, model: str) -> ModelVersion:
        """Free the memory that a model takes."""
        return self._run(lambda pieces, ref: pieces.unload(ref), model)

    def update(self, model: str, changes: Mapping[str, Any]) -> ModelVersion:
        """Change fields of a custom model's record; every other one stays as it is.

        :param changes: field → new value, as JSON.
        :raises NotSupported: when the model is none of the user's own.
        """
        return self._run(lambda pieces, ref: pieces.update(ref, changes), model)

    def register(self, fields: Mapping[str, Any]) -> ModelVersion:
        """Describe a new custom model, unless there is one that is described so already.

        :param fields: of its record: ``name``, ``version``, ``type`` and ``usage`` at least.
        :raises VersionConflict: when its name belongs to another model.
        """
        return self.run(lambda registry: cast("Pieces", registry).register(fields))

    def health(self) -> str:
        """Return what Pieces OS says about its health.

        :raises RegistryUnavailable: when that is not ``ok``.
        """
        return self.run(lambda registry: cast("Pieces", registry).health())

    def version(self) -> str:
        """Return the version of Pieces OS."""
        return self.run(lambda registry: cast("Pieces", registry).version())

    def _run(self, make_flow: Callable[[Pieces, ModelRef], Flow[T]], model: str) -> T:
        return self.run(lambda pieces: make_flow(cast("Pieces", pieces), pieces.parse(model)), model=model)

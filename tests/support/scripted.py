"""A registry that does not have every version ready at once: what each look at it shows is written in a file.

It is a model store otherwise. The connection's extra ``script`` names a text file with one word a line. Each look at
a version takes the next line; the last one stays. A status (``converting``, ``ready``, ``failed``) is what the version
is shown in, ``held`` blocks the look until the file says something else, another word is the error that the look ends
with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from airflow_provider_modelsync.core.errors import RegistryUnavailable, Unauthorized
from airflow_provider_modelsync.core.flow.steps import Flow, call
from airflow_provider_modelsync.core.models import ModelVersion, Query, VersionStatus
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.plan import UploadPlan
from airflow_provider_modelsync.hooks.registry import RegistryHook

_PATIENCE = 30.0  # seconds that a look is held at most


class Script:
    """The file that says what looks show.

    :param path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = path.with_suffix(".held")

    def write(self, words: Iterable[str]) -> None:
        """Say what the next looks show."""
        scratch = self.path.with_suffix(".new")
        scratch.write_text("\n".join(words))
        scratch.replace(self.path)  # at once: somebody may be reading

    @property
    def rest(self) -> list[str]:
        """What has not been shown yet, and the last word."""
        return self.path.read_text().split()

    @property
    def holds(self) -> bool:
        """Whether a look is held, or was."""
        return self._held.exists()

    def take(self) -> VersionStatus:
        """Take the next word."""
        word, *rest = self.rest
        if rest:
            self.write(rest)
        match word:
            case "unavailable":
                raise RegistryUnavailable("the server answered 503")
            case "unauthorized":
                raise Unauthorized("the token was refused")
            case "broken":
                raise ZeroDivisionError("a defect")
            case "held":
                self._hold()
                return self.take()
        return VersionStatus(word)

    def _hold(self) -> None:
        self._held.touch()
        deadline = time.monotonic() + _PATIENCE
        while self.rest == ["held"]:
            if time.monotonic() > deadline:
                raise AssertionError("nobody lets the look go on")
            time.sleep(0.01)


class ScriptedSettings(RegistrySettings):
    """A connection with a script."""

    script: Path


class ScriptedStore(ModelStore):
    """A model store whose versions are shown as a script says."""

    conn_type = "scripted"
    title = "the scripted store"
    settings_type = ScriptedSettings
    settings: ScriptedSettings

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return (yield from self._shown(super().read_version(name, version)))

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        status = yield from self._look()
        found = yield from super().latest(name, query)
        return found if status is VersionStatus.READY else None

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        return (yield from self._shown(super().finish_push(plan)))

    def _shown(self, flow: Flow[ModelVersion]) -> Flow[ModelVersion]:
        status = yield from self._look()
        return (yield from flow).model_copy(update={"status": status})

    def _look(self) -> Flow[VersionStatus]:
        return call(Script(self.settings.script).take)


class ScriptedHook(RegistryHook):
    """The hook of :class:`ScriptedStore`."""

    conn_type = "scripted"
    hook_name = "Scripted Store"
    default_conn_name = "scripted_default"

    @classmethod
    def registry_type(cls) -> type[ScriptedStore]:
        return ScriptedStore

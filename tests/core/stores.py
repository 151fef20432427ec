"""Models on disk and model stores, as the tests of the core use them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pytest

from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel, Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import DownloadPlan
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push

T = TypeVar("T")

# path → kind, content of files, whether the owner may execute them
Snapshot = dict[str, tuple[str, bytes, bool]]


def was_skipped(version: ModelVersion) -> bool:
    """Whether a transfer had nothing to do."""
    assert version.transfer is not None
    return version.transfer.skipped


def write_tree(
    root: Path, files: Mapping[str, bytes], *, executable: Iterable[str] = (), directories: Iterable[str] = ()
) -> Path:
    """Write a model."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    for path in executable:
        (root / path).chmod(0o755)
    for path in directories:
        (root / path).mkdir(parents=True)
    return root


def snapshot(root: Path) -> Snapshot:
    """Return everything below a directory."""
    found: Snapshot = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            key = path.relative_to(root).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                found[key] = "other", b"", False
            elif path.is_dir():
                found[key] = "directory", b"", False
            else:
                found[key] = "file", path.read_bytes(), bool(path.stat().st_mode & 0o100)
    return found


def hidden(directory: Path) -> list[str]:
    """Return the hidden names in a directory where writers work before they publish; records of pulls do not count."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(name for name in names if name.startswith(".") and not name.endswith(".modelsync"))


def age(path: Path, seconds: float = 2 * 86400) -> None:
    """Make a file, or a directory and all that is in it, look as if nobody had written there for a while."""
    when = time.time() - seconds
    for below in (*path.rglob("*"), path):
        os.utime(below, (when, when), follow_symlinks=False)


class CancelAfter(CancelToken):
    """A token that is cancelled when it has been looked at a number of times.

    :param looks: how many looks find it still alive.
    """

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    @property
    def cancelled(self) -> bool:
        self._looks -= 1
        return self._looks < 0


@contextmanager
def acting_before_pulls(act: Callable[[], object]) -> Iterator[None]:
    """Let somebody act each time that a pull from a model store has chosen its version, and knows no more of it."""
    plan_pull = ModelStore.plan_pull

    def act_first(self: ModelStore, version: ModelVersion) -> Flow[DownloadPlan]:
        act()
        return plan_pull(self, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelStore, "plan_pull", act_first)
        yield


@dataclass(frozen=True)
class Store:
    """A model store on local disk with its verbs run in place.

    :param root: its root, absent or not.
    """

    root: Path

    @cached_property
    def registry(self) -> ModelStore:
        return ModelStore(RegistrySettings(conn_id="store", host=f"file://{self.root}"))

    def run(self, flow: Flow[T]) -> T:
        return SyncDriver().run(flow)

    def push(self, source: Path, model: str, *, control: Control | None = None, **options: Any) -> ModelVersion:
        control = control or Control()
        driver = SyncDriver(cancel=control.cancel)
        return push(self.registry, driver, source, self.registry.parse(model), control, **options)

    def pull(
        self, model: str, target: Path, *, control: Control | None = None, query: str | None = None, **options: Any
    ) -> PulledModel:
        control = control or Control()
        driver = SyncDriver(cancel=control.cancel)
        chosen = Query.parse(query)
        return pull(self.registry, driver, self.registry.parse(model), target, control, query=chosen, **options)

    def get(self, model: str, query: str | None = None) -> ModelVersion:
        return self.run(self.registry.get(self.registry.parse(model), Query.parse(query)))

    def list_versions(self, name: str, query: str | None = None) -> list[ModelVersion]:
        return self.run(self.registry.list_versions(name, Query.parse(query)))

    def list_models(self, query: str | None = None) -> list[ModelVersion]:
        return self.run(self.registry.list_models(Query.parse(query)))

    def delete(self, model: str) -> bool:
        return self.run(self.registry.delete(self.registry.parse(model)))

    def set_labels(self, model: str, labels: Mapping[str, str | None]) -> ModelVersion:
        return self.run(self.registry.set_labels(self.registry.parse(model), labels))

    def meta(self, name: str, file: str = "") -> Path:
        """Where the store keeps its records of a model."""
        return self.root / name / ".modelsync" / file

    def records(self, name: str) -> list[str]:
        """The names of those records."""
        return sorted(path.name for path in self.meta(name).iterdir())

    def files(self, model: str) -> Path:
        """Where a version's files are, as readers of plain files learn it."""
        return Path(unquote(urlsplit(str(self.get(model).uri)).path))

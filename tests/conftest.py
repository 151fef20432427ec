"""What the tests share: a private Airflow environment, a model store, a model, and the context of a running task.

Airflow reads its environment when it is first imported, so that is set here, before any test module is loaded. Nothing
here imports Airflow: the core's tests do without it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.state_store import StateStore

if TYPE_CHECKING:
    from tests.support.scripted import Script

TESTS = Path(__file__).parent
AIRFLOW_HOME = Path(tempfile.mkdtemp(prefix="modelsync-tests-"))

for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": str(AIRFLOW_HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(TESTS / "integration" / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__FERNET_KEY": "",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db",
}

Connect = Callable[..., None]
MASKERS = ("airflow._shared.secrets_masker.secrets_masker", "airflow.sdk._shared.secrets_masker.secrets_masker")


def _install_test_provider() -> None:
    """Put a second provider beside the real one, found by Airflow as any installed package is."""
    site = AIRFLOW_HOME / "site"
    metadata = site / "modelsync_test_provider-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: modelsync-test-provider\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[apache_airflow_provider]\nprovider_info=tests.support.provider:get_provider_info\n"
    )
    sys.path.append(str(site))


_install_test_provider()


def pytest_unconfigure() -> None:
    """Remove what was made above. Not at exit, which processes forked by tests reach, too."""
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def forgotten_secrets() -> Iterator[None]:
    """Have Airflow mask the secrets of one test only: with those of thousands each line of a log takes a second."""
    yield
    for name in MASKERS:
        if module := sys.modules.get(name):
            module._secrets_masker().reset_masker()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Define an Airflow connection: ``connect("some_id", conn_type=…, host=…, extra={…})``."""

    def define(conn_id: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return define


@pytest.fixture
def modelstore(tmp_path: Path, connect: Connect) -> Path:
    """The root of an empty model store, which the connection ``modelsync_default`` leads to."""
    root = tmp_path / "store"
    connect("modelsync_default", conn_type="modelstore", host=root.as_uri())
    return root


@pytest.fixture
def script(tmp_path: Path, connect: Connect) -> Script:
    """What a registry behind the connection ``scripted`` shows, look by look. At first: every version is ready."""
    from tests.support.scripted import Script

    script = Script(tmp_path / "script.txt")
    script.write(["ready"])
    host = (tmp_path / "store").as_uri()
    connect("scripted", conn_type="scripted", host=host, extra={"script": str(script.path)})
    return script


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model: a directory with a nested one."""
    directory = tmp_path / "model"
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (directory / "tokenizer" / "vocab.txt").write_text("one\ntwo\n")
    return directory


@pytest.fixture
def context() -> dict[str, Any]:
    """What Airflow hands to ``execute``, as far as this package uses it."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    return {
        "task_state_store": StateStore(),
        "outlet_events": OutletEventAccessors(),
        "ti": SimpleNamespace(try_number=1, max_tries=0),
        "run_id": "manual__1",
    }


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated SQLite database to copy."""
    from scripts.local_airflow import migrated_database

    return migrated_database(tmp_path_factory.mktemp("database"))


@pytest.fixture
def airflow_database(migrated_database: Path) -> Iterator[Path]:
    """A fresh metadata database for the Airflow in this process."""
    database = AIRFLOW_HOME / "airflow.db"
    shutil.copyfile(migrated_database, database)
    yield database
    database.unlink()

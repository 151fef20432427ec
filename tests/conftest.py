"""What the tests share: a private Airflow environment, a model store, a model, and the context of a running task.

Airflow reads its environment when it is first imported, so that is set here, before any test module is loaded. Nothing
here imports Airflow: the core's tests do without it.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.state_store import StateStore

if TYPE_CHECKING:
    from fsspec.implementations.memory import MemoryFileSystem

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
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",  # by itself it counts a file as broken that takes half a minute
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db?timeout=60",
    # A connection that is kept would lead the next test to the database of the last one, which is removed.
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_ENABLED": "False",
}

# How long an example takes says more of the machine than of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

Connect = Callable[..., None]
MASKERS = (
    "airflow._shared.secrets_masker.secrets_masker",
    "airflow.sdk._shared.secrets_masker.secrets_masker",
    "airflow.sdk.execution_time.secrets_masker",  # Airflow 3.0
)


# What shares something that takes long to set up goes to one worker of a parallel run; all other tests go one by one.
_TOGETHER = {
    "tests/integration/": "runs of DAGs in a test's process",
    "tests/docs/test_code_blocks.py": "runs of DAGs in a test's process",
    "tests/test_example_dags.py": "examples",
    "tests/test_lineage.py": "lineage",
    "tests/test_other_package.py": "another package",
    "tests/test_package.py": "wheel",
}

# Marks that all tests of a place have.
_MARKED = {
    # What one vendor's registry does and no other, and the stand-ins for the vendors.
    r"tests/(core/registries/(?!modelstore/)|standins/|operators/test_(bentocloud|pieces|supervisely)_).+": (
        pytest.mark.registries
    ),
    # The documents and what they show; but what depends on Airflow's version is a plain test, which runs on each.
    r"tests/(docs/(?!test_airflow_versions\.py)|test_example_dags\.py|test_other_package\.py).+": pytest.mark.documents,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep groups together in a run with ``--dist loadgroup``; the marks for that do nothing with pytest 9.2."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for place, group in _TOGETHER.items() if nodeid.startswith(place)), nodeid)

    return Together(config, log)


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


def pytest_report_header() -> str:
    """Say what is tested: there are more Airflows than one, and a wheel beside the checkout."""
    airflow, provider = version("apache-airflow"), find_spec("airflow_provider_modelsync")
    return f"airflow: {airflow}, provider: {provider and provider.origin}"


def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two cores: the tests wait about as long as they compute."""
    return max(1, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their place. Refuse names that hold an address: each process of a run would give it another one."""
    for item in items:
        for place, mark in _MARKED.items():
            if re.match(place, item.nodeid):
                item.add_marker(mark)
    if told := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give these parameters an id: {', '.join(told)}")


def pytest_collection_finish() -> None:
    """Have no later look for garbage go through Airflow and thousands of tests once more."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Remove what was made above. Not at exit, which processes forked by tests reach, too."""
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory that no disk is behind, if there is any: what is written through a map never shows in times there."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="modelsync-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def forgotten_secrets() -> Iterator[None]:
    """Have Airflow mask the secrets of one test only: with those of thousands each line of a log takes a second."""
    yield
    for name in MASKERS:
        if "_secrets_masker" in vars(module := sys.modules.get(name, object)):
            module._secrets_masker().reset_masker()


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """Have a test leave the process as it found it: environment, working directory, alarms, logging, object storage
    in memory, what is known of servers.

    Airflow's time-outs, for one, leave a handler behind that fails whatever an alarm of somebody else's meets.
    """
    environment, directory, on_alarm = dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGALRM)
    loggers = [logging.getLogger(name) for name in ("", "modelsync", "httpx", "httpcore")]
    as_found = [(logger, logger.level, logger.disabled, logger.propagate) for logger in loggers]
    disabled = logging.root.manager.disable
    ours = logging.getLogger("modelsync")  # what runs once for many tests may have silenced it
    ours.disabled, ours.propagate = False, True
    ours.setLevel(logging.NOTSET)
    yield
    for logger, level, is_disabled, propagates in as_found:  # Airflow's commands configure logging for the process
        logger.setLevel(level)
        logger.disabled, logger.propagate = is_disabled, propagates
    logging.disable(disabled)
    pending = signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, on_alarm)
    os.chdir(directory)
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(environment)
    empty_object_storage()
    forget_servers()
    assert pending == (0.0, 0.0), "an alarm is left that would end another test"


def empty_object_storage() -> None:
    """Forget what fsspec's file system in memory holds, and what Airflow remembers of object storage."""
    if memory := sys.modules.get("fsspec.implementations.memory"):
        memory.MemoryFileSystem.store.clear()
        memory.MemoryFileSystem.pseudo_dirs[:] = [""]
    if airflow := sys.modules.get("airflow.sdk.io.store"):
        airflow._STORE_CACHE.clear()


def forget_servers() -> None:
    """Forget what this process has learnt of servers by their addresses: those of a later test may get the same."""
    core = "airflow_provider_modelsync.core"
    for name, of_servers in (
        (f"{core}.registries.oci.auth", "_accounts"),
        (f"{core}.registries.wallaroo.auth", "_accounts"),
        (f"{core}.storages.s3", "_abilities"),
    ):
        if module := sys.modules.get(name):
            getattr(module, of_servers).clear()


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
def storage() -> MemoryFileSystem:
    """An empty object storage: ``memory://…``."""
    from fsspec.implementations.memory import MemoryFileSystem

    return MemoryFileSystem()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once, and so do looks whether another writer is about to finish."""
    from airflow_provider_modelsync.core.http.policy import Backoff
    from airflow_provider_modelsync.core.registries.bentocloud import registry as bentocloud

    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    monkeypatch.setattr(bentocloud, "_LOOK_SECONDS", 0.0)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to buckets in parts of some KiB, and are copied; the clouds themselves want megabytes."""
    import moto.s3.models

    from airflow_provider_modelsync.core.archive import checksums, digest
    from airflow_provider_modelsync.core.registries.modelstore import buckets
    from airflow_provider_modelsync.core.transfer import plan
    from tests.core.registries.modelstore.buckets import KIB

    monkeypatch.setattr(plan, "_MIB", 16 * KIB)
    monkeypatch.setattr(digest, "SPAN", 16 * KIB)
    monkeypatch.setattr(checksums, "_WORTH_LOADING", 0)
    monkeypatch.setattr(buckets, "_WORTH_COPYING", 1)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 16 * KIB)


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
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of a test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def migrated_database(whole_run: Path) -> Path:
    """An empty, migrated SQLite database to copy."""
    from scripts.local_airflow import migrated_database

    with alone(whole_run / "database.lock"):
        return migrated_database(whole_run / "database")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Keep the run's other processes out: what takes long is made by one of them."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def airflow_database(migrated_database: Path) -> Iterator[Path]:
    """A fresh metadata database for the Airflow in this process."""
    forget_database()
    database = AIRFLOW_HOME / "airflow.db"
    shutil.copyfile(migrated_database, database)
    yield database
    forget_database()


def forget_database() -> None:
    """Close this thread's connection to the metadata database, and remove that: the next has the same name."""
    settings = sys.modules.get("airflow.settings")
    if settings and settings.engine:
        settings.Session.remove()
    for file in AIRFLOW_HOME.glob("airflow.db*"):  # and its log
        file.unlink()

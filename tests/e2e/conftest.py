"""One whole Airflow for all tests, with every example and stand-ins of every remote system behind its connections."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import pytest
from cryptography.fernet import Fernet

from airflow_provider_modelsync.compat import TELLS_OF_KILLS
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from scripts.local_airflow import LocalAirflow, local_airflow
from tests.e2e.runs import Triggerer
from tests.services.moto_server import running_moto
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import HARBOR, OCIStandIn
from tests.standins.pieces import Download, PiecesStandIn
from tests.standins.s3 import S3StandIn
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.standins.wallaroo import WallarooStandIn, run_onnx
from tests.support.pieces import PHI

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "example_dags"
# The vendor's command, which cannot share an environment with Airflow.
BENTOML = Path(os.environ.get("MODELSYNC_VENDOR_BENTOCLOUD", ROOT / ".venv-vendors/bentocloud/bin/python"))

CANARY = "canary-4f1c0de5"

Connections = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for all that the run writes."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def bentocloud(base: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(base / "bentocloud", transmission_strategy="presigned_url") as server:
        yield server


@pytest.fixture(scope="session")
def wallaroo(base: Path) -> Iterator[WallarooStandIn]:
    """An instance that runs the very models that are pushed."""
    with WallarooStandIn(base / "wallaroo") as server:
        server.predict = run_onnx
        server.add_workspace("examples")
        yield server


@pytest.fixture(scope="session")
def detector() -> Iterator[SuperviselyApp]:
    """The serving app behind Supervisely."""
    with SuperviselyApp(model=None, freezes=True) as app:
        yield app


@pytest.fixture(scope="session")
def supervisely(base: Path, detector: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(base / "supervisely", app=detector.url) as server:
        yield server


@pytest.fixture(scope="session")
def oci() -> Iterator[OCIStandIn]:
    with OCIStandIn(HARBOR) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow(base: Path) -> Iterator[MLflowStandIn]:
    with MLflowStandIn(base / "mlflow", user=("jane", f"{CANARY}-mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def hub(base: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(base / "hub") as server:
        server.publish("acme/fraud", {"config.json": b"{}", "model.safetensors": b"w" * 5000, "notes.txt": b"n"})
        yield server


@pytest.fixture(scope="session")
def pieces() -> Iterator[PiecesStandIn]:
    with PiecesStandIn([PHI]) as server:
        server.download = Download(tick=0.1)
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3StandIn]:
    with running_moto() as moto, S3StandIn(moto) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def connections(
    base: Path,
    bentocloud: BentoCloudStandIn,
    wallaroo: WallarooStandIn,
    supervisely: SuperviselyStandIn,
    oci: OCIStandIn,
    mlflow: MLflowStandIn,
    hub: HuggingFaceStandIn,
    pieces: PiecesStandIn,
    s3: S3StandIn,
) -> Iterator[Connections]:
    """What the examples' connections lead to, for Airflow and for this process."""
    found: dict[str, dict[str, Any]] = {
        "modelsync_default": {  # with a secret that it has no use for
            "conn_type": "modelstore",
            "host": (base / "store").as_uri(),
            "extra": {"proxy": f"http://me:{CANARY}@proxy.example:3128"},
        },
        "bentocloud_default": {"conn_type": "bentocloud", "host": bentocloud.url, "password": bentocloud.token},
        "bentocloud_parts": {
            "conn_type": "bentocloud",
            "host": bentocloud.url,
            "password": bentocloud.token,
            "extra": {"part_size_mib": 5, "max_workers": 1},
        },
        "wallaroo_default": {
            "conn_type": "wallaroo",
            "host": wallaroo.url,
            "login": wallaroo.username,
            "password": wallaroo.password,
            "extra": {"workspace": "examples"},
        },
        "supervisely_default": {
            "conn_type": "supervisely",
            "host": supervisely.url,
            "password": supervisely.token,
            "extra": {"team_id": supervisely.team_id, "workspace_id": supervisely.workspace_id},
        },
        "oci_registry_default": {
            "conn_type": "oci_registry",
            "host": f"{oci.url}/team",
            "login": oci.user,
            "password": oci.password,
        },
        "mlflow_default": {
            "conn_type": "mlflow",
            "host": mlflow.url,
            "login": "jane",
            "password": f"{CANARY}-mlflow",
        },
        "huggingface_default": {"conn_type": "huggingface_hub", "host": hub.url, "password": WRITE},
        "pieces_default": {"conn_type": "pieces", "host": pieces.url},
        "modelstore_default": {
            "conn_type": "modelstore",
            "host": f"s3://{s3.bucket}/models",
            "login": s3.access_key,
            "password": s3.secret_key,
            "extra": {"endpoint_url": s3.endpoint},
        },
        "watched": {"conn_type": "modelstore", "host": (base / "watched").as_uri()},
    }
    with pytest.MonkeyPatch.context() as patch:
        for conn_id, fields in found.items():
            patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
        yield found


@pytest.fixture(scope="session")
def images(base: Path) -> Path:
    """The directory whose pictures Supervisely's example predicts from."""
    directory = base / "images"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def airflow(base: Path, migrated_database: Path, connections: Connections, images: Path) -> Iterator[LocalAirflow]:
    """A running Airflow; see also :func:`triggerer`."""
    home, dags, scratch = base / "home", base / "dags", base / "tmp"
    for directory in (home, scratch):
        directory.mkdir()
    seen = base / "seen.bin"
    seen.write_bytes(b"there before anybody watches")
    ModelStoreHook("watched").push(seen, "digits:v1")
    # 3.0's `dags reserialize` ends at the first DAG that it cannot load, as docs/upgrading.md says of some.
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=None if TELLS_OF_KILLS else ignore_patterns("slow_*"))
    for example in EXAMPLES.glob("*.py" if TELLS_OF_KILLS else "train_push_wait_pull.py"):
        shutil.copy(example, dags)
    settings = {
        "AIRFLOW_VAR_SUPERVISELY_IMAGES": str(images),
        "AIRFLOW_VAR_SUPERVISELY_PREDICTIONS": str(base / "predictions.jsonl"),
        "MODELSYNC_BENTOML": str(BENTOML.parent / "bentoml"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # bentoml builds with uv
        "TMPDIR": str(scratch),
        # What tasks and watchers of an Airflow without a state store remember.
        "AIRFLOW__MODELSYNC__STATE_URL": str(base / "state"),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
    }
    with local_airflow(
        home, dags, connections, database=migrated_database, settings=settings, components=("scheduler",)
    ) as running:
        # There is no DAG processor, which would come by again: 3.0 has watchers of an asset watch from the second time.
        running.command("dags", "reserialize")
        yield running


@pytest.fixture(scope="session", autouse=True)
def triggerer(airflow: LocalAirflow) -> Iterator[Triggerer]:
    triggerer = Triggerer(airflow)
    triggerer.start()
    yield triggerer
    triggerer.stop()


@pytest.fixture(autouse=True)
def no_log_holds_a_secret(
    airflow: LocalAirflow, connections: Connections, wallaroo: WallarooStandIn, supervisely: SuperviselyStandIn
) -> Iterator[None]:
    """Look through the logs of all tasks and components after each test."""
    yield
    secrets = {
        CANARY,
        *(fields["password"] for fields in connections.values() if "password" in fields),
        *list(wallaroo.access_tokens),
        *(task.session_token for task in list(supervisely.tasks.values())),
    }
    for path in airflow.home.rglob("*.log"):
        text = path.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], path

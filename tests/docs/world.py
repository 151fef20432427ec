"""What the documents take for granted, in small: registries behind the connections they name, files where they look.

Addresses and secrets are the only things that differ from what a reader would have: hosts are stand-ins on 127.0.0.1,
`/data` and `/srv` lie in a directory of the test, and buckets in moto, where AWS's own environment variables lead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.hooks.supervisely import SuperviselyHook
from airflow_provider_modelsync.triggers import deployment, fetch, model, predict
from tests.services.moto_server import running_moto
from tests.standins.azure import AzureStandIn
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.gcs import GcsStandIn
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import HARBOR, OCIStandIn
from tests.standins.pieces import PiecesStandIn
from tests.standins.pieces import model as pieces_model
from tests.standins.s3 import S3StandIn
from tests.standins.supervisely import Module, SuperviselyStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.standins.wallaroo import WallarooStandIn
from tests.support.images import png
from tests.support.keys import keys
from tests.support.pieces import quickly

CONNECTIONS = {
    "modelsync_default": "modelstore",
    "modelstore_default": "modelstore",
    "backup": "modelstore",
    "bentocloud_default": "bentocloud",
    "wallaroo_default": "wallaroo",
    "supervisely_default": "supervisely",
    "oci_registry_default": "oci_registry",
    "mlflow_default": "mlflow",
    "huggingface_default": "huggingface_hub",
    "pieces_default": "pieces",
}
BUCKET = "models"
_STORES = {"modelsync_default": "srv/models", "modelstore_default": "srv/shared", "backup": "srv/backup"}
_ROOTS = re.compile(r"(?<![\w.])/(data|srv)(?=/)")
_WORK = "/tmp/modelsync"  # the tutorial's, and never the test's
# Two fields of a ModelProto, its version and its graph, whose bytes are nobody's.
_ONNX = b"\x08\x08\x3a\xfa\xc9\x03" + bytes(range(256)) * 229
_MODEL = {"model.onnx": _ONNX[: 256 * 229], "labels.json": b'["0", "1", "2"]\n'}
_BENTO = {"name": "fraud", "version": "b1", "service": "service:Fraud", "labels": {}, "spec": 2}


# Reads its project as bentoml 1.4.40 does, and writes what that writes: names, models, sources.
_BENTOML = """
import argparse, json, pathlib, shutil
parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["build"])
parser.add_argument("--name", required=True)
parser.add_argument("--version", required=True)
named = parser.parse_args()
project = json.loads(pathlib.Path("bentofile.yaml").read_text())
built = pathlib.Path.home() / "bentoml" / "bentos" / named.name / named.version
(built / "src").mkdir(parents=True)
for source in project["include"]:
    shutil.copy(source, built / "src")
models = [{"tag": tag, "module": "", "alias": ""} for tag in project["models"]]
facts = {"name": named.name, "version": named.version, "service": project["service"], "labels": {}, "spec": 2}
(built / "bento.yaml").write_text(json.dumps({**facts, "models": models}))
"""


@dataclass(frozen=True)
class Registry:
    """A registry of the world.

    :param server: the stand-in.
    :param fields: of a connection to it: where it is, and the secrets.
    :param extra: further fields of such a connection.
    """

    server: Any
    fields: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class World:
    """Where one block is executed.

    :param root: the directory that paths of the documents lie in.
    :param registries: by connection type, clouds by the scheme of their roots; only those that the block names.
    """

    root: Path
    monkeypatch: pytest.MonkeyPatch
    registries: dict[str, Registry]

    def local(self, text: str) -> str:
        """Return a text of a document with this world's paths in it."""
        return _ROOTS.sub(rf"{self.root}/\1", text).replace(_WORK, str(self.work))

    @property
    def work(self) -> Path:
        """Where the tutorial works."""
        return self.root / "work"

    def connect(self, conn_id: str, conn_type: str, **documented: Any) -> None:
        """Define a connection: as a document does, but with this world's addresses and secrets."""
        scheme = str(documented.get("host")).partition("://")[0]
        registry = self.registries.get(scheme if conn_type == "modelstore" else conn_type, Registry(None))
        extra = {
            key: getattr(registry.server, key) if str(value).startswith("<") else value
            for key, value in (documented.pop("extra", None) or {}).items()
        }
        fields = {"conn_type": conn_type, **documented, **registry.fields, "extra": {**extra, **registry.extra}}
        self.monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


@contextlib.contextmanager
def _google() -> Iterator[Registry]:
    with GcsStandIn() as server:
        server.buckets[BUCKET], server.uploads[BUCKET] = {}, {}
        yield Registry(server, {"password": json.dumps(server.key_file())}, {"endpoint_url": server.url})


@contextlib.contextmanager
def _azure() -> Iterator[Registry]:
    with AzureStandIn(account="acme") as server:
        yield Registry(server, {"password": server.key}, {"endpoint_url": server.endpoint})


_CLOUDS = {"gs": _google, "abfs": _azure}


@contextlib.contextmanager
def world_of(text: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Make what a block takes for granted; the servers of registries that it does not name are not started."""
    for module in (deployment, fetch, model, predict):
        monkeypatch.setattr(module, "MIN_POLL_INTERVAL", 0.1)
    quickly(monkeypatch)
    _write_files(root)
    _install_bentoml(root, monkeypatch)
    monkeypatch.chdir(root)
    with ExitStack() as stack:
        if "s3://" in text:
            stack.enter_context(_aws(monkeypatch))
        servers = {
            conn_type: stack.enter_context(start(root / "servers" / conn_type))
            for conn_type, start in _SERVERS.items()
            if conn_type in text or any(conn_id in text for conn_id, kind in CONNECTIONS.items() if kind == conn_type)
        }
        servers |= {scheme: stack.enter_context(run()) for scheme, run in _CLOUDS.items() if f"{scheme}://" in text}
        world = World(root, monkeypatch, servers)
        for conn_id, conn_type in CONNECTIONS.items():
            if conn_type == "modelstore":
                world.connect(conn_id, conn_type, host=(root / _STORES[conn_id]).as_uri())
            elif conn_type in servers:
                world.connect(conn_id, conn_type, extra=_EXTRAS.get(conn_type))
        for conn_type, seed in _SEEDS.items():
            if conn_type in servers or conn_type == "modelstore":
                seed(servers.get(conn_type), root)
        yield world


def _write_files(root: Path) -> None:
    rows = [{"amount": [number / 2]} for number in range(3)]
    trees: dict[str, bytes] = {
        **{f"{place}/{name}": content for place in ("model", "data/fraud") for name, content in _MODEL.items()},
        "data/today.json": json.dumps(rows).encode(),
        "data/signs/checkpoints/best.pt": b"weights" * 100,
        **{f"data/images/{number}.png": png(80, 60, (0, 0, number, 3)) for number in range(3)},
        **{f"data/keys/team.{kind}": content for kind, content in keys().items()},
        "data/bentos/fraud/b1/bento.yaml": yaml.safe_dump(_BENTO).encode(),
        "data/bentos/fraud/b1/src/service.py": b"pass\n",
        "data/service/service.py": b"pass\n",
    }
    for name, content in trees.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "srv").mkdir()


def _install_bentoml(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command on the path that builds as ``bentoml build`` does, as far as a push of the bento looks at it."""
    command = root / "bin" / "bentoml"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{_BENTOML}")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(root / "home"))


# ---- how each registry is started, and what it holds at first ---------------------------------------------------


@contextlib.contextmanager
def _bentocloud(directory: Path) -> Iterator[Registry]:
    with BentoCloudStandIn(directory) as server:
        yield Registry(server, {"host": server.url, "password": server.token})


@contextlib.contextmanager
def _wallaroo(directory: Path) -> Iterator[Registry]:
    with WallarooStandIn(directory) as server:
        server.conversion, server.deployment = ["ready"], ["Running"]
        yield Registry(server, {"host": server.url, "login": server.username, "password": server.password})


@contextlib.contextmanager
def _supervisely(directory: Path) -> Iterator[Registry]:
    with SuperviselyApp(freezes=True) as app, SuperviselyStandIn(directory, app=app.url) as server:
        server.modules = [Module(78, "Serve YOLO", ("serve", "framework:YOLO"))]
        yield Registry(server, {"host": server.url, "password": server.token})


@contextlib.contextmanager
def _oci_registry(directory: Path) -> Iterator[Registry]:
    with OCIStandIn(HARBOR) as server:
        fields = {"host": f"{server.url}/team", "login": server.user, "password": server.password}
        yield Registry(server, fields)


@contextlib.contextmanager
def _mlflow(directory: Path) -> Iterator[Registry]:
    with MLflowStandIn(directory) as server:
        yield Registry(server, {"host": server.url})


@contextlib.contextmanager
def _huggingface(directory: Path) -> Iterator[Registry]:
    with HuggingFaceStandIn(directory) as server:
        server.publish("acme/fraud", {"config.json": b"{}", "model.safetensors": b"w" * 1000, "notes.txt": b"n"})
        server.publish("acme/tokenizer", {"tokenizer.json": b"{}"})
        yield Registry(server, {"host": server.url, "password": WRITE})


@contextlib.contextmanager
def _pieces(directory: Path) -> Iterator[Registry]:
    with PiecesStandIn([pieces_model("Phi 2", unique="phi-2")]) as server:
        address = urlsplit(server.url)
        yield Registry(server, {"host": f"http://{address.hostname}", "port": address.port})


@contextlib.contextmanager
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have boto3 find a bucket in moto as it would find one on AWS."""
    with running_moto() as moto, S3StandIn(moto) as s3:
        empty_bucket(s3, BUCKET)
        for name, value in {
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
                {"conn_type": "aws", "login": s3.access_key, "password": s3.secret_key}
            ),
        }.items():
            monkeypatch.setenv(name, value)
        yield


def empty_bucket(s3: S3StandIn, name: str) -> None:
    """Make a bucket; all of moto's servers in one process share them."""
    client = s3.client()
    client.create_bucket(Bucket=name)
    for entry in client.list_objects_v2(Bucket=name).get("Contents", ()):
        client.delete_object(Bucket=name, Key=entry["Key"])
    s3.clear()


_SERVERS: dict[str, Callable[[Path], AbstractContextManager[Registry]]] = {
    "bentocloud": _bentocloud,
    "wallaroo": _wallaroo,
    "supervisely": _supervisely,
    "oci_registry": _oci_registry,
    "mlflow": _mlflow,
    "huggingface_hub": _huggingface,
    "pieces": _pieces,
}
_EXTRAS = {"wallaroo": {"workspace": "fraud-team"}, "supervisely": {"team_id": 8, "workspace_id": 58}}


def _seed_modelstore(_: Any, root: Path) -> None:
    ModelStoreHook("modelsync_default").push(root / "model", "digits:v1", labels={"stage": "production"})


def _seed_bentocloud(registry: Registry, root: Path) -> None:
    """Two models, a bento of one, and a bento of the version that a push of `/data/fraud` is going to make."""
    for tag in ("fraud:v1", "churn:v1"):
        BentoCloudHook().push(root / "data/fraud", tag, labels={"stage": "prod"})
    pushed = f"fraud:m{digest_directory(root / 'data/fraud').removeprefix('sha256:')[:15]}"
    for number, tag in enumerate(("fraud:v1", pushed), 1):
        built = datetime(2026, 1, number, tzinfo=UTC)
        registry.server.seed_bento("fraud", f"s{number}", models=[tag], build_at=built)


def _seed_wallaroo(registry: Registry, root: Path) -> None:
    """A model, and a pipeline that serves it."""
    workspace = registry.server.add_workspace("fraud-team")
    registry.server.seed(workspace.id, "fraud", b"an older model")
    get_registry_hook("wallaroo_default").deploy("fraud", "fraud")


def _seed_supervisely(registry: Registry, root: Path) -> None:
    """An experiment, and an app that serves."""
    options = {"framework_name": "YOLO", "model_name": "YOLO11n-det", "model_meta": "model_meta.json"}
    SuperviselyHook().push(root / "data/signs", "533_Signs:1_YOLO", options=options)
    registry.server.seed_task(name="signs")


_SEEDS: dict[str, Callable[[Any, Path], None]] = {
    "modelstore": _seed_modelstore,
    "bentocloud": _seed_bentocloud,
    "wallaroo": _seed_wallaroo,
    "supervisely": _seed_supervisely,
}

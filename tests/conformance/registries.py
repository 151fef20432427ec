"""The registries that the conformance tests are run against. A new one is a provider and an entry in ``PROVIDERS``."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import AsyncDriver, SyncDriver
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion, VersionStatus
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.bentocloud.registry import BentoCloud, BentoCloudSettings
from airflow_provider_modelsync.core.registries.huggingface.registry import HuggingFaceHub, HuggingFaceHubSettings
from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow, MLflowSettings
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.registries.oci.registry import OCIRegistry, OCISettings
from airflow_provider_modelsync.core.registries.pieces.api import PiecesSettings
from airflow_provider_modelsync.core.registries.pieces.registry import Pieces
from airflow_provider_modelsync.core.registries.supervisely.registry import Supervisely, SuperviselySettings
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import async_driver_for, driver_for
from airflow_provider_modelsync.core.verbs.push import push
from tests.docs.skeleton import registry_types
from tests.services import azurite, docker_registry, mlflow
from tests.services.ceph_rgw import rgw
from tests.services.moto_server import own_clock, running_moto
from tests.services.s3 import S3Service
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.gcs import GcsStandIn
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import OCIStandIn
from tests.standins.pieces import PiecesStandIn, model
from tests.standins.s3 import S3StandIn
from tests.standins.shelf import ShelfStandIn
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.wallaroo import WallarooStandIn

DriverFactory = Callable[[Registry, CancelToken | None], AbstractContextManager[SyncDriver]]
AsyncDriverFactory = Callable[[Registry], AbstractAsyncContextManager[AsyncDriver]]
Publish = Callable[[str, str | None, Path], ModelVersion]
Shelf, WritableShelf = registry_types()


def write_source(directory: Path, text: str) -> Path:
    """Write a small model that differs with the text."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(text.encode() * 1000)
    (directory / "tokenizer" / "vocab größe.txt").write_text(text)
    (directory / "empty").touch()
    return directory


@dataclass(frozen=True, kw_only=True)
class RegistryUnderTest:
    """One registry with all that the tests need to know of its system.

    :param connect: returns a registry as another worker would make it: with nothing shared but the system behind.
    :param names: three good names, in no other use.
    :param versions: three good versions; not needed where the version cannot be chosen.
    :param bad_names: names that break the system's grammar.
    :param bad_versions: versions that break it.
    :param bad_aliases: aliases that break it.
    :param trace: what the system has stored or been asked; bad input must leave it as it is.
    :param driver: runs flows in the calling thread.
    :param async_driver: runs flows on the event loop.
    :param make_source: writes a model that the system takes; another text, another model.
    :param push_options: what every push to this system must say.
    :param publish: brings a ready version into being; only for systems that cannot be pushed to.
    :param below: returns the pattern of all that lies in a directory.
    :param settle: lets the system finish what it does by itself after a push.
    """

    connect: Callable[[], Registry]
    names: tuple[str, str, str]
    versions: tuple[str, ...] = ()
    bad_names: tuple[str, ...]
    bad_versions: tuple[str, ...] = ()
    bad_aliases: tuple[str, ...] = ("", "a b", "a/b:c", "a@b", "größe", "latest")
    trace: Callable[[], Any]
    driver: DriverFactory = driver_for
    async_driver: AsyncDriverFactory = async_driver_for
    make_source: Callable[[Path, str], Path] = write_source
    push_options: Mapping[str, Any] = field(default_factory=dict)
    publish: Publish | None = None
    below: Callable[[str], str] = "/{}".format
    settle: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Provider:
    """How to get a registry to test.

    :param registry_type: known before anything runs, so that tests are chosen by its capabilities.
    :param open: yields the registry; its argument is an empty directory.
    :param marks: of all tests with it.
    :param differs_by_bytes: from one before only by the way that a model's bytes go: what is about records alone is
        not shown again.
    """

    registry_type: type[Registry]
    open: Callable[[Path], AbstractContextManager[RegistryUnderTest]]
    marks: tuple[pytest.MarkDecorator, ...] = ()
    differs_by_bytes: bool = False


@contextmanager
def _modelstore(scratch: Path) -> Iterator[RegistryUnderTest]:
    root = scratch / "store"
    yield RegistryUnderTest(
        connect=lambda: ModelStore(RegistrySettings(conn_id="modelsync_default", host=root.as_uri())),
        names=("fraud", "fraud-2.x", "C_a.r-d"),
        versions=("v1", "2026.07.01", "x" * 128),
        bad_names=("", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "x" * 129),
        bad_versions=(".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 129),
        trace=lambda: sorted(path.as_posix() for path in scratch.rglob("*")),
    )


def _bucket(service: S3Service, bucket: str, settle: Callable[[], None]) -> RegistryUnderTest:
    fields = {
        "host": f"s3://{bucket}/models",
        "endpoint_url": service.endpoint,
        "login": service.access_key,
        "password": service.secret_key,
        "part_size_mib": 5,
    }

    def trace() -> list[str]:
        return [entry["Key"] for entry in service.client().list_objects_v2(Bucket=bucket).get("Contents", ())]

    return RegistryUnderTest(
        connect=lambda: ModelStore(BucketSettings.read("modelsync_default", fields)),
        names=("fraud", "fraud-2.x", "C_a.r-d"),
        versions=("v1", "2026.07.01", "x" * 128),
        bad_names=("", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "x" * 129),
        bad_versions=(".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 129),
        trace=trace,
        settle=settle,  # the order within a second is that of the versions' names
    )


@contextmanager
def _moto(scratch: Path) -> Iterator[RegistryUnderTest]:
    """What moto believes, the stand-in before it checks: signatures, checksums, a second completion."""
    with running_moto() as moto, own_clock() as pass_a_second, S3StandIn(moto) as s3:
        yield _bucket(s3, s3.bucket, pass_a_second)


@contextmanager
def _rgw(scratch: Path) -> Iterator[RegistryUnderTest]:
    service = rgw()
    yield _bucket(service, service.new_bucket(), lambda: time.sleep(1 - time.time() % 1))


@contextmanager
def _gcs(scratch: Path) -> Iterator[RegistryUnderTest]:
    with GcsStandIn(page=3) as gcs:
        fields = {
            "host": f"gs://{gcs.bucket}/models",
            "endpoint_url": gcs.url,
            "password": json.dumps(gcs.key_file()),
        }
        yield RegistryUnderTest(
            connect=lambda: ModelStore(BucketSettings.read("modelsync_default", fields)),
            names=("fraud", "fraud-2.x", "C_a.r-d"),
            versions=("v1", "2026.07.01", "x" * 128),
            bad_names=("", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "x" * 129),
            bad_versions=(".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 129),
            trace=lambda: sorted(gcs.objects),
            settle=gcs.pass_a_second,
        )


@contextmanager
def _azurite(scratch: Path) -> Iterator[RegistryUnderTest]:
    service = azurite.shared()
    fields = {
        "host": f"abfs://{service.new_container()}@{service.account}/models",
        "endpoint_url": service.url,
        "password": service.key,
        "part_size_mib": 5,
    }

    def trace() -> list[str]:
        store: Any = ModelStore(BucketSettings.read("modelsync_default", fields))._store
        return [found.key for found in store._bucket.objects("")]

    yield RegistryUnderTest(
        connect=lambda: ModelStore(BucketSettings.read("modelsync_default", fields)),
        names=("fraud", "fraud-2.x", "C_a.r-d"),
        versions=("v1", "2026.07.01", "x" * 128),
        bad_names=("", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "x" * 129),
        bad_versions=(".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 129),
        trace=trace,
        settle=lambda: time.sleep(1 - time.time() % 1),
    )


def _bentocloud(strategy: str | None) -> Callable[[Path], AbstractContextManager[RegistryUnderTest]]:
    """Return how to open BentoCloud where bytes go the way that a transmission strategy stands for."""

    @contextmanager
    def open_stand_in(scratch: Path) -> Iterator[RegistryUnderTest]:
        with BentoCloudStandIn(scratch, transmission_strategy=strategy) as server:
            fields = {"host": server.url, "password": server.token}
            yield RegistryUnderTest(
                connect=lambda: BentoCloud(BentoCloudSettings.read("bentocloud_default", fields)),
                names=("fraud", "fraud-2.x", "c_a.r-d"),
                versions=("v1", "2026.07.01", "x" * 63),
                bad_names=("", "Fraud", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "a-", "x" * 64),
                bad_versions=("V1", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a-", "x" * 64),
                trace=server.count,
            )

    return open_stand_in


def write_file(directory: Path, text: str) -> Path:
    """Write a model of one file that differs with the text."""
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(text.encode() * 1000)
    return directory


@contextmanager
def _wallaroo(scratch: Path) -> Iterator[RegistryUnderTest]:
    with WallarooStandIn(scratch) as server:
        server.conversion = ["ready"]
        fields = {
            "host": server.url,
            "login": server.username,
            "password": server.password,
            "client_secret": server.client_secret,
            "workspace": "fraud-team",
            "create_workspace": True,
        }
        yield RegistryUnderTest(
            connect=lambda: Wallaroo(WallarooSettings.read("wallaroo_default", fields)),
            names=("fraud", "fraud-2", "c-a-r-d"),
            versions=tuple(f"00000000-0000-4000-8000-00000000000{digit}" for digit in "012"),
            bad_names=("", "Fraud", "fraud_2", "a.b", "2fraud", "a/b", "..", "a b", "a\n", "größe", "a-", "x" * 64),
            trace=server.count,
            make_source=write_file,
            push_options={"framework": "onnx"},
        )


@contextmanager
def _pieces(scratch: Path) -> Iterator[RegistryUnderTest]:
    with PiecesStandIn() as server:

        def publish(name: str, version: str | None, source: Path) -> ModelVersion:
            number = len(server.models)
            created = {"value": f"2026-01-{number + 1:02}T00:00:00Z"}
            record = model(name, unique=name, id=f"{number:032x}", version=f"0.1.{number + 2}", created=created)
            server.models[record["id"]] = {**record, "custom": True}
            return ModelVersion(
                registry="pieces", name=name, version=version or record["version"], status=VersionStatus.READY
            )

        yield RegistryUnderTest(
            connect=lambda: Pieces(PiecesSettings.read("pieces_default", {"host": server.url})),
            names=("fraud", "fraud-2:q4", "Größe of C/a r"),
            bad_names=("", " ", "a\n", "a:", ":a", "x" * 1025),
            trace=lambda: len(server.requests),
            publish=publish,
        )


@contextmanager
def _supervisely(scratch: Path) -> Iterator[RegistryUnderTest]:
    with SuperviselyStandIn(scratch) as server:
        fields = {"host": server.url, "password": server.token, "team_id": server.team_id}
        yield RegistryUnderTest(
            connect=lambda: Supervisely(SuperviselySettings.read("supervisely_default", fields)),
            names=("533_Fraud", "533_Fraud v2", "größe & mehr"),
            versions=("1_YOLO", "2 RT-DETR?#%2f", "x" * 255),
            bad_names=("", "a/b", ".", "..", "a\n", "a\x00", "x" * 256, "ü" * 128),
            bad_versions=("a/b", ".", "..", "a:b", "a\n", "x" * 256, "ü" * 128),
            trace=lambda: len(server.requests),
        )


def _oci(url: str, trace: Callable[[], Any], **fields: Any) -> RegistryUnderTest:
    settings = OCISettings.read("oci_registry_default", {"host": url, **fields})
    return RegistryUnderTest(
        connect=lambda: OCIRegistry(settings),
        names=("fraud", "risk/fraud-2.x", "c_a.r--d"),
        versions=("v1", "2026.07.01", "x" * 128),
        bad_names=("", "Fraud", ".hidden", "a//b", "..", "a b", "a\n", "größe", "a%2fb", "a-", "a...b", "x" * 256),
        bad_versions=(".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 129, f"sha256-{'0' * 64}.sig"),
        trace=trace,
    )


_NUMBERS = itertools.count()


@contextmanager
def _distribution(scratch: Path) -> Iterator[RegistryUnderTest]:
    """Debian's docker-registry where it is installed, else its stand-in."""
    if docker_registry.is_installed():
        server = docker_registry.shared()
        namespace = f"n{next(_NUMBERS)}"
        yield _oci(f"{server.url}/{namespace}", lambda: server.trace(namespace))
    else:
        with OCIStandIn() as standin:
            yield _oci(f"{standin.url}/team", standin.trace)


def _mlflow(generation: int, storage: str) -> Callable[[Path], AbstractContextManager[RegistryUnderTest]]:
    """Return how to open MLflow of a generation, with its artifacts in some storage."""

    @contextmanager
    def open_stand_in(scratch: Path) -> Iterator[RegistryUnderTest]:
        with MLflowStandIn(scratch, generation=generation, storage=storage) as server:
            yield mlflow_under_test(server.url, lambda: len(server.requests))

    return open_stand_in


@contextmanager
def _mlflow_with_bucket(scratch: Path) -> Iterator[RegistryUnderTest]:
    """Open MLflow 2 with its artifacts in a bucket of which the server passes nothing on."""
    with running_moto() as moto:
        bucket = moto.new_bucket()
        with MLflowStandIn(scratch, generation=2, storage="direct", bucket=bucket) as server:
            extra = {"endpoint_url": moto.endpoint, "aws_access_key_id": moto.access_key}
            fields = {**extra, "aws_secret_access_key": moto.secret_key}
            yield mlflow_under_test(server.url, lambda: len(server.requests), **fields)


def _mlflow_server(kind: str) -> Callable[[Path], AbstractContextManager[RegistryUnderTest]]:
    """Return how to open a real server."""

    @contextmanager
    def open_server(scratch: Path) -> Iterator[RegistryUnderTest]:
        server = mlflow.shared(kind)
        server.empty()
        trace = partial(server.ask, "GET", "/api/2.0/mlflow/model-versions/search")
        # What was pushed in another test goes on being found by its digest, though nothing names it any more.
        yield mlflow_under_test(server.url, trace, experiment=f"test {next(_NUMBERS)}", **server.bucket_fields)

    return open_server


def mlflow_under_test(url: str, trace: Callable[[], Any], **fields: Any) -> RegistryUnderTest:
    """Return an MLflow server as the tests need it.

    :param fields: of the connection, besides the host.
    """
    return RegistryUnderTest(
        connect=lambda: MLflow(MLflowSettings.read("mlflow_default", {"host": url, **fields})),
        names=("fraud", "Größe of 'C' & r%2f #1", "x" * 256),
        versions=("1", "2", "2147483647"),
        bad_names=("", " ", ".", "..", "a/b", 'a"b', "a\n", "a\x00", "x" * 257),
        bad_aliases=("", "a b", "a/b:c", "a@b", "latest", "v1", "x" * 256),
        trace=trace,
    )


@contextmanager
def _huggingface(scratch: Path) -> Iterator[RegistryUnderTest]:
    with HuggingFaceStandIn(scratch) as server:
        fields = {"host": server.url, "password": WRITE, "namespace": "acme"}
        yield RegistryUnderTest(
            connect=lambda: HuggingFaceHub(HuggingFaceHubSettings.read("huggingface_default", fields)),
            names=("acme/fraud", "acme/Fraud-2.x", "acme/C_a.r-d"),
            bad_names=("", ".hidden", "a/b/c", "..", "a--b/c", "a b", "a\n", "größe", "a%2fb", "a/b-", "datasets/x"),
            bad_aliases=("", "a b", "a/b:c", "a@b", "latest"),
            below="{}/".format,
            trace=lambda: len(server.requests),
        )


@contextmanager
def _shelf(scratch: Path) -> Iterator[RegistryUnderTest]:
    """The registry that the documents show how to write."""
    with ShelfStandIn() as server:
        settings = RegistrySettings.read("shelf_default", {"host": server.url, "password": server.token})
        yield RegistryUnderTest(
            connect=lambda: WritableShelf(settings),
            names=("fraud", "fraud-2.x", "c.a-rd"),
            versions=("v1", "2026.07.01", "x" * 63),
            bad_names=("", "Fraud", ".hidden", "a/b", "..", "a b", "a\n", "größe", "a%2fb", "x" * 64),
            bad_versions=("V1", ".hidden", "a/b", "..", "a b", "a\n", "größe", "x" * 64),
            trace=server.count,
        )


@contextmanager
def _read_only_shelf(scratch: Path) -> Iterator[RegistryUnderTest]:
    """Its first half, beside somebody who pushes."""
    with _shelf(scratch) as other:
        writable = other.connect()

        def publish(name: str, version: str | None, source: Path) -> ModelVersion:
            ref = ModelRef(name=name, version=version or f"r{next(_NUMBERS)}")
            with other.driver(writable, None) as driver:
                return push(writable, driver, source, ref, Control(workers=1))

        yield replace(other, connect=lambda: Shelf(writable.settings), versions=(), publish=publish)


PROVIDERS = {
    "modelstore": Provider(ModelStore, _modelstore),
    "modelstore-moto": Provider(ModelStore, _moto),
    "modelstore-rgw": Provider(ModelStore, _rgw, (pytest.mark.s3,)),
    "modelstore-gcs": Provider(ModelStore, _gcs),
    "modelstore-azurite": Provider(ModelStore, _azurite, (pytest.mark.stores,)),
    "bentocloud-proxy": Provider(BentoCloud, _bentocloud("proxy")),
    "bentocloud-presigned": Provider(BentoCloud, _bentocloud(None), differs_by_bytes=True),
    "bentocloud-parts": Provider(BentoCloud, _bentocloud("presigned_url"), differs_by_bytes=True),
    "wallaroo": Provider(Wallaroo, _wallaroo),
    "supervisely": Provider(Supervisely, _supervisely),
    "mlflow": Provider(MLflow, _mlflow(3, "local")),
    "mlflow-s3": Provider(MLflow, _mlflow(3, "s3"), differs_by_bytes=True),
    "mlflow-direct": Provider(MLflow, _mlflow(3, "direct"), differs_by_bytes=True),
    "mlflow-2": Provider(MLflow, _mlflow(2, "local")),
    "mlflow-2-bucket": Provider(MLflow, _mlflow_with_bucket, differs_by_bytes=True),
    "mlflow-server": Provider(MLflow, _mlflow_server("local"), (pytest.mark.mlflow,)),
    "mlflow-server-bucket": Provider(MLflow, _mlflow_server("bucket"), (pytest.mark.mlflow,), differs_by_bytes=True),
    "mlflow-server-2": Provider(MLflow, _mlflow_server("local-2"), (pytest.mark.mlflow,)),
    "mlflow-server-direct": Provider(MLflow, _mlflow_server("direct"), (pytest.mark.mlflow,), differs_by_bytes=True),
    "pieces": Provider(Pieces, _pieces),
    "oci": Provider(OCIRegistry, _distribution),
    "huggingface": Provider(HuggingFaceHub, _huggingface),
    "shelf": Provider(WritableShelf, _shelf),
    "shelf-read-only": Provider(Shelf, _read_only_shelf),
}

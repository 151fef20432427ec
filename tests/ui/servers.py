"""What the test button meets: for each connection type a system that is there, one that refuses, one that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.local_airflow import free_port
from tests.services.moto_server import running_moto
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.huggingface import WRITE, HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import HARBOR, OCIStandIn
from tests.standins.pieces import PiecesStandIn
from tests.standins.s3 import S3StandIn
from tests.standins.supervisely import SuperviselyStandIn
from tests.standins.wallaroo import WallarooStandIn
from tests.ui.forms import EXTRA, STANDARD, Value

Entered = dict[str, dict[str, Value]]

GOOD, WRONG, UNREACHABLE = "good", "wrong", "unreachable"


@dataclass(frozen=True)
class Case:
    """One connection.

    :param entered: section → field → value.
    :param answer: what the button's answer contains.
    """

    entered: Entered
    answer: str

    def fields(self) -> dict[str, Value | dict[str, Value]]:
        """The connection as a dictionary: standard fields, and ``extra``."""
        return {**self.entered[STANDARD], "extra": self.entered.get(EXTRA, {})}


Cases = dict[str, Case]


@contextmanager
def _modelstore(directory: Path) -> Iterator[Cases]:
    root = (directory / "store").as_uri()
    with running_moto() as moto, S3StandIn(moto) as s3:

        def bucket(secret: str, endpoint: str) -> Entered:
            standard: dict[str, Value] = {
                "host": f"s3://{s3.bucket}/ui",
                "login": s3.access_key,
                "password": secret,
                "port": 0,
            }
            return {STANDARD: standard, EXTRA: {"endpoint_url": endpoint}}

        gone = f"http://127.0.0.1:{free_port()}"
        yield {
            GOOD: Case({STANDARD: {"host": root, "port": 0}}, f"The model store at {root} can be read and written."),
            "good bucket": Case(bucket(s3.secret_key, s3.endpoint), "can be read and written"),
            WRONG: Case(bucket("canary-wrong-7d1e90", s3.endpoint), "SignatureDoesNotMatch"),
            UNREACHABLE: Case(bucket("canary-gone-7d1e90", gone), f"at {gone}: Connection refused"),
        }


@contextmanager
def _bentocloud(directory: Path) -> Iterator[Cases]:
    with BentoCloudStandIn(directory) as cloud:

        def server(token: str, port: int | None) -> Entered:
            standard: dict[str, Value] = {"host": "http://127.0.0.1", "password": token, "port": port or 0}
            return {STANDARD: standard}

        yield {
            GOOD: Case(server(cloud.token, urlsplit(cloud.url).port), f"Connected to {cloud.url} as "),
            WRONG: Case(server("canary-wrong-7d1e90", urlsplit(cloud.url).port), "401"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _wallaroo(directory: Path) -> Iterator[Cases]:
    with WallarooStandIn(directory) as wallaroo:
        workspace = wallaroo.add_workspace("fraud-team")

        def server(password: str, port: int | None) -> Entered:
            return {
                STANDARD: {
                    "host": "http://127.0.0.1",
                    "login": wallaroo.username,
                    "password": password,
                    "port": port or 0,
                },
                EXTRA: {"workspace": workspace.name, "client_secret": wallaroo.clients["api-client"] or ""},
            }

        port = urlsplit(wallaroo.url).port
        where = f"as {wallaroo.username}, workspace {workspace.name} ({workspace.id})."
        yield {
            GOOD: Case(server(wallaroo.password, port), f"Connected to {wallaroo.url} {where}"),
            WRONG: Case(server("canary-wrong-7d1e90", port), "Invalid user credentials"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _supervisely(directory: Path) -> Iterator[Cases]:
    with SuperviselyStandIn(directory) as platform:

        def server(token: str, port: int | None) -> Entered:
            return {
                STANDARD: {"host": "http://127.0.0.1", "password": token, "port": port or 0},
                EXTRA: {"workspace_id": platform.workspace_id},
            }

        port = urlsplit(platform.url).port
        yield {
            GOOD: Case(server(platform.token, port), f"with the files of team {platform.team_id}."),
            WRONG: Case(server("canary-wrong-7d1e90", port), "401"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _mlflow(directory: Path) -> Iterator[Cases]:
    with MLflowStandIn(directory, user=("jane", "canary-right-7d1e90")) as tracking:

        def server(password: str, port: int | None) -> Entered:
            return {
                STANDARD: {"host": "http://127.0.0.1", "login": "jane", "password": password, "port": port or 0},
            }

        port = urlsplit(tracking.url).port
        yield {
            GOOD: Case(server("canary-right-7d1e90", port), f"Connected to MLflow 3.17.2 at {tracking.url}, as jane."),
            WRONG: Case(server("canary-wrong-7d1e90", port), "401"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _huggingface(directory: Path) -> Iterator[Cases]:
    with HuggingFaceStandIn(directory) as hub:

        def server(token: str, port: int | None) -> Entered:
            standard: dict[str, Value] = {"host": "http://127.0.0.1", "password": token, "port": port or 0}
            return {STANDARD: standard, EXTRA: {"namespace": "acme"}}

        port = urlsplit(hub.url).port
        yield {
            GOOD: Case(server(WRITE, port), f"Connected to {hub.url} as "),
            WRONG: Case(server("canary-wrong-7d1e90", port), "does not accept the token"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _oci(directory: Path) -> Iterator[Cases]:
    with OCIStandIn(HARBOR) as registry:

        def server(password: str, port: int | None) -> Entered:
            standard: dict[str, Value] = {"host": "http://127.0.0.1", "login": registry.user, "password": password}
            names: dict[str, Value] = {"repositories": "risk/fraud"}  # it lists none to a robot
            return {STANDARD: {**standard, "port": port or 0}, EXTRA: names}

        port = urlsplit(registry.url).port
        yield {
            GOOD: Case(server(registry.password, port), f"at {registry.url} "),
            WRONG: Case(server("canary-wrong-7d1e90", port), "401"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


@contextmanager
def _pieces(directory: Path) -> Iterator[Cases]:
    # There are no credentials: what can be wrong is the address, at which something else answers.
    with PiecesStandIn() as pieces, BentoCloudStandIn(directory) as other:

        def server(port: int | None) -> Entered:
            return {STANDARD: {"host": "http://127.0.0.1", "port": port or 0}}

        connected = f"Connected to Pieces OS {pieces.version} at {pieces.url}."
        yield {
            GOOD: Case(server(urlsplit(pieces.url).port), connected),
            WRONG: Case(server(urlsplit(other.url).port), "404"),
            UNREACHABLE: Case(server(free_port()), "Connection refused"),
        }


SERVERS: dict[str, Callable[[Path], AbstractContextManager[Cases]]] = {
    "modelstore": _modelstore,
    "bentocloud": _bentocloud,
    "wallaroo": _wallaroo,
    "supervisely": _supervisely,
    "mlflow": _mlflow,
    "huggingface_hub": _huggingface,
    "oci_registry": _oci,
    "pieces": _pieces,
}

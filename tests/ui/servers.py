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
from tests.standins.s3 import S3StandIn
from tests.ui.forms import EXTRA, NETWORK, STANDARD, Value

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
            return {STANDARD: standard, EXTRA: {"endpoint_url": endpoint}, NETWORK: {"timeout_seconds": 3}}

        gone = f"http://127.0.0.1:{free_port()}"
        yield {
            GOOD: Case({STANDARD: {"host": root, "port": 0}}, f"The model store at {root} can be read and written."),
            "good bucket": Case(bucket(s3.secret_key, s3.endpoint), "can be read and written"),
            WRONG: Case(bucket("canary-wrong-7d1e90", s3.endpoint), "SignatureDoesNotMatch"),
            UNREACHABLE: Case(bucket("canary-gone-7d1e90", gone), "Connection refused"),
        }


@contextmanager
def _bentocloud(directory: Path) -> Iterator[Cases]:
    with BentoCloudStandIn(directory) as cloud:

        def server(token: str, port: int | None) -> Entered:
            standard: dict[str, Value] = {"host": "http://127.0.0.1", "password": token, "port": port or 0}
            return {STANDARD: standard, NETWORK: {"timeout_seconds": 3}}

        yield {
            GOOD: Case(server(cloud.token, urlsplit(cloud.url).port), f"Connected to {cloud.url} as "),
            WRONG: Case(server("canary-wrong-7d1e90", urlsplit(cloud.url).port), "401"),
            UNREACHABLE: Case(server("canary-gone-7d1e90", free_port()), "Connection refused"),
        }


SERVERS: dict[str, Callable[[Path], AbstractContextManager[Cases]]] = {
    "modelstore": _modelstore,
    "bentocloud": _bentocloud,
}

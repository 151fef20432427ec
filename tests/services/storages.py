"""The table "which storage can do what" of docs/modelstore.md, made by asking each: ``make s3-table`` writes it.

Servers that can be run are run; what cannot is played by the S3 stand-in, and marked so.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_modelsync.core.errors import ModelSyncError, NotSupported
from airflow_provider_modelsync.core.registries.modelstore.probe import probe
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from airflow_provider_modelsync.core.storages.azure import Container
from airflow_provider_modelsync.core.storages.base import Bucket
from airflow_provider_modelsync.core.storages.gcs import GcsBucket
from airflow_provider_modelsync.core.storages.s3 import S3Abilities, S3Bucket
from tests.services import azurite
from tests.services.ceph_rgw import rgw
from tests.services.moto_server import running_moto
from tests.services.s3 import S3Service
from tests.services.s3_servers import SERVERS
from tests.standins.azure import AzureStandIn
from tests.standins.gcs import GcsStandIn
from tests.standins.s3 import S3StandIn
from tests.standins.s3_quirks import STORAGES

DOCUMENT = Path(__file__).parents[2] / "docs" / "modelstore.md"
BEGIN, END = "<!-- storages: written by make s3-table -->", "<!-- end of storages -->"
COLUMNS = (
    "Storage",
    "Seen on",
    "Conditional writes",
    "`If-Match`",
    "Sum",
    "Ranges",
    "Unfinished uploads",
    "Copies",
    "Conditional deletes",
)
NEEDS: dict[str, dict[str, str]] = {
    "AWS, policy that demands encryption": {"server_side_encryption": "aws:kms"},
    "AWS, requester pays": {"request_payer": "requester"},
    "Alibaba Cloud OSS": {"endpoint_url": "http://oss-cn-test.aliyuncs.com", "addressing_style": "virtual"},
}
Row = tuple[str, ...]


def s3_row(name: str, seen_on: str, service: S3Service, bucket: str, **fields: str) -> Row:
    """Return what a storage that speaks S3 can do."""
    usual = {
        "host": f"s3://{bucket}/models",
        "endpoint_url": service.endpoint,
        "region_name": "us-east-1",
        "login": service.access_key,
        "password": service.secret_key,
    }
    store = S3Bucket(bucket, BucketSettings.read(f"table {name}", usual | fields), base="models/")
    store.abilities = S3Abilities()
    return row(name, seen_on, store)


def row(name: str, seen_on: str, store: Bucket) -> Row:
    """Return what a storage can do."""
    found = store.abilities
    try:
        missing = {one.ability for one in probe(store, store.mover)}
    except NotSupported as error:
        reason = error.message.partition("do not work: ")[2].partition(". ")[0] or error.message
        return (name, seen_on, f"refused: {reason}", *("–" for _ in COLUMNS[3:]))
    return (
        name,
        seen_on,
        "yes",
        _spelled(store),
        _sum(store) if "checks of sums" not in missing else "none is checked",
        *("no" if ability in missing else "yes" for ability in ("ranges", "unfinished uploads")),
        "no" if not found.copies else "yes" if found.conditional_copies else "unconditional",
        "no" if "conditional deletes" in missing else "yes",
    )


def _spelled(store: Bucket) -> str:
    if isinstance(store.abilities, S3Abilities):
        return "in quotes" if store.abilities.quoted_tags else "without quotes"
    return {"gs": "by generation", "abfs": "in quotes"}[store.url("").partition(":")[0]]


def _sum(store: Bucket) -> str:
    if isinstance(store.abilities, S3Abilities):
        return "CRC-32" if store.abilities.crc32 else "MD5"
    return {"gs": "CRC-32C", "abfs": "MD5"}[store.url("").partition(":")[0]]


def others() -> Iterator[Row]:
    """Yield the rows of storages that do not speak S3, as they are played."""
    with GcsStandIn() as gcs:
        fields = {"host": f"gs://{gcs.bucket}/models", "endpoint_url": gcs.url, "password": json.dumps(gcs.key_file())}
        settings = BucketSettings.read("table gcs", fields)
        yield row("Google Cloud Storage", "played", GcsBucket(gcs.bucket, settings, base="models/"))
    with AzureStandIn() as azure:
        settings = BucketSettings.read("table azure", azure.fields)
        store = Container(f"{azure.container}@{azure.account}", settings, base="models/")
        yield row("Azure Blob Storage", "played", store)


def azurite_row() -> Row:
    """Return Azurite's row."""
    with azurite.running_azurite() as service:
        authority = f"{service.new_container()}@{service.account}"
        fields = {"host": f"abfs://{authority}/models", "endpoint_url": service.url, "password": service.key}
        store = Container(authority, BucketSettings.read("table azurite", fields), base="models/")
        return row("Azurite", azurite.release(), store)


def played() -> Iterator[Row]:
    """Yield the rows of what is played."""
    with running_moto() as moto:
        for name, quirks in STORAGES.items():
            with S3StandIn(moto, quirks=quirks) as s3:
                fields = dict(NEEDS.get(name, {}))
                if "endpoint_url" in fields:
                    fields["proxy"] = s3.endpoint
                yield s3_row(name, "played", s3.service, s3.bucket, **fields)


def in_process() -> Row:
    """Return moto's row."""
    with running_moto() as moto:
        return s3_row("moto", importlib.metadata.version("moto"), moto, moto.new_bucket())


def real() -> Iterator[Row]:
    """Yield the rows of the servers that are run."""
    said = subprocess.run(("radosgw", "--version"), capture_output=True, text=True, check=True).stdout
    release = re.search(r"version (\d+\.\d+\.\d+)", said)
    assert release
    ceph = rgw()
    yield s3_row("Ceph", release[1], ceph, ceph.new_bucket())
    for name, (running, version) in SERVERS.items():
        with running() as service:
            yield s3_row(name, version(), service, service.new_bucket())


def line(cells: Row) -> str:
    """Return a row as Markdown."""
    return f"| {' | '.join(cells)} |"


def table(rows: list[Row]) -> str:
    """Return the table."""
    return "\n".join((line(COLUMNS), line(("---",) * len(COLUMNS)), *map(line, rows)))


def written(document: str) -> list[str]:
    """Return the lines of the table that a document holds."""
    inside = document.partition(BEGIN)[2].partition(END)[0]
    return [text for text in inside.splitlines() if text.startswith("|")]


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except ModelSyncError as error:
        sys.exit(f"{name}: {error}")


def main() -> None:
    """Write the table into the document."""
    with _told("the storages"):
        rows = [*real(), azurite_row(), in_process(), *played(), *others()]
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()

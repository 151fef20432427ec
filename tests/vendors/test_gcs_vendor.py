"""The unmodified `google-cloud-storage` and ours at the stand-in: each reads what the other wrote."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.storages.gcs import GcsBucket, GcsSettings
from airflow_provider_modelsync.core.transfer import plan
from tests.core.storages.test_gcs import GcsStore, Token
from tests.core.stores import snapshot, write_tree
from tests.standins.gcs import GcsStandIn

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
PART = 5 << 20


@pytest.fixture
def gcs() -> Iterator[GcsStandIn]:
    with GcsStandIn(page=3, rewritten=1 << 20) as gcs:
        yield gcs


def theirs(gcs: GcsStandIn, *commands: tuple[Any, ...]) -> list[Any]:
    """Run commands of gcs_client.py in one process; what each returned."""
    python = Path(os.environ.get("MODELSYNC_VENDOR_GCS", ROOT / ".venv-vendors" / "gcs" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in MODELSYNC_VENDOR_GCS")
    script = str(Path(__file__).with_name("gcs_client.py"))
    done = subprocess.run(
        [str(python), script, gcs.url, gcs.token, *map(json.dumps, commands)],
        env={"PATH": os.defpath, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def ours(gcs: GcsStandIn) -> GcsBucket:
    settings = GcsSettings.read("models_gs", {"endpoint_url": gcs.url})
    return GcsBucket(gcs.bucket, settings, lambda: Token(gcs.token))


def test_google_s_client_reads_what_was_pushed(
    gcs: GcsStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_MIB", 1 << 20)
    files = {"weights.bin": random.Random(1).randbytes(PART + 9), "a/größe #?%20&+.txt": b"words", "empty": b""}
    source = write_tree(tmp_path / "source", files)
    GcsStore(gcs).push(source, "fraud:v1")
    prefix = "models/fraud/v1/"
    _, names, directories = theirs(
        gcs,
        ("download", gcs.bucket, prefix, str(tmp_path / "target")),
        ("listed", gcs.bucket, prefix),
        ("directories", gcs.bucket, "models/fraud/"),
    )
    assert snapshot(tmp_path / "target") == snapshot(source)
    told = {found.key: [found.size, int(found.etag), found.crc32c] for found in ours(gcs).objects(prefix)}
    assert {key: facts[:3] for key, facts in names.items()} == told
    assert directories == ["models/fraud/.modelsync/", "models/fraud/v1/"]
    assert ours(gcs).directories("models/fraud/") == [".modelsync", "v1"]


def test_what_google_s_client_sends_in_parts_and_copies_is_seen_by_ours(gcs: GcsStandIn, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(PART + 9))
    generation, calls = theirs(
        gcs,
        ("upload", gcs.bucket, "one/large", str(tmp_path / "large"), PART),
        ("copy", gcs.bucket, "one/large", "two"),
    )
    one, two = ours(gcs).head("one/large"), ours(gcs).head("two")
    assert one
    assert two
    assert (one.etag, one.size, one.crc32c) == (str(generation), PART + 9, two.crc32c)
    assert calls == 6
    assert ours(gcs).begun_uploads("") == []
    assert theirs(gcs, ("delete", gcs.bucket, "two", 1), ("delete", gcs.bucket, "two", int(two.etag))) == [False, True]
    assert ours(gcs).head("two") is None

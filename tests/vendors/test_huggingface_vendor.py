"""The unmodified `huggingface_hub`, of two generations, and ours, at the stand-in: each pulls what the other pushes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import Query
from tests.core.registries.huggingface.hub import NAME, Worker
from tests.core.stores import snapshot, write_tree
from tests.standins.huggingface import WRITE, HuggingFaceStandIn

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
GENERATIONS = ("huggingface", "huggingface-0")  # as in requirements/vendor-*.txt
MODEL = {
    "README.md": b"---\nlicense: mit\n---\n# card\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096,
    "sub/a b#1?%41\xc3\xbc+.txt".encode("latin-1").decode(): b"odd",
    "sub/empty.txt": b"",
}


@dataclass(frozen=True)
class VendorClient:
    """The vendor's client against one server."""

    generation: str
    server: HuggingFaceStandIn
    home: Path

    @property
    def python(self) -> Path:
        """The interpreter of its environment, or the one that a variable names."""
        variable = f"MODELSYNC_VENDOR_{self.generation.upper().replace('-', '_')}"
        python = Path(os.environ.get(variable, ROOT / ".venv-vendors" / self.generation / "bin" / "python"))
        if not python.exists():
            pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in {variable}")
        return python

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands of huggingface_client.py in one process; what each returned."""
        script = str(Path(__file__).with_name("huggingface_client.py"))
        done = subprocess.run(
            [str(self.python), script, *(json.dumps(command) for command in commands)],
            env={
                "PATH": os.defpath,
                "HOME": str(self.home),
                "NO_PROXY": "*",
                "HF_HOME": str(self.home / "hf"),
                "HF_ENDPOINT": self.server.url,
                "HF_TOKEN": WRITE,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return results


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path / "hub", chunk_size=400_000) as server:
        yield server


@pytest.fixture(params=GENERATIONS)
def vendor(request: pytest.FixtureRequest, server: HuggingFaceStandIn, tmp_path: Path) -> VendorClient:
    return VendorClient(request.param, server, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", MODEL)


def test_what_the_vendors_client_pushes_we_pull(
    vendor: VendorClient, server: HuggingFaceStandIn, source: Path, tmp_path: Path
) -> None:
    commit, _, told = vendor.run(("upload", NAME, str(source)), ("tag", NAME, "v1.0"), ("listed", NAME))
    worker = Worker(server)
    pulled = worker.pull(f"{NAME}@v1.0", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert pulled.version.version == commit
    assert worker.get(NAME).metadata["license"] == "mit"
    versions = worker.run(worker.registry.list_versions(NAME, Query()))
    assert [version.version for version in versions] == told["commits"][:-1]
    assert versions[0].aliases == ("v1.0", "v1.0-branch")
    again = worker.push(source, NAME)
    assert again.version == commit, "the same files are no second commit, whoever has pushed them"


def test_what_we_push_the_vendors_client_pulls(
    vendor: VendorClient, server: HuggingFaceStandIn, source: Path, tmp_path: Path
) -> None:
    worker = Worker(server)
    pushed = worker.push(source, f"{NAME}:v1.0")
    target = tmp_path / "target"
    commit, told = vendor.run(("download", NAME, str(target)), ("listed", NAME))
    assert commit == pushed.version
    assert (told["tags"], told["whoami"], told["models"]) == ({"v1.0": commit}, "alice", [NAME])
    held = {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }
    assert held == MODEL
    (again,) = vendor.run(("upload", NAME, str(source)))
    assert again == pushed.version, "and nothing of it is to be sent again"


def test_patterns_choose_the_same_files(
    vendor: VendorClient, server: HuggingFaceStandIn, source: Path, tmp_path: Path
) -> None:
    vendor.run(("upload", NAME, str(source)))
    for number, patterns in enumerate((["*.txt"], ["sub/"], ["config.json", "*.safetensors"], ["s*"])):
        ours, theirs = tmp_path / f"ours-{number}", tmp_path / f"theirs-{number}"
        Worker(server).pull(NAME, ours, include=patterns)
        vendor.run(("download", NAME, str(theirs), *patterns))
        found = {path for path in snapshot(theirs) if not path.startswith((".cache", ".gitattributes"))}
        assert snapshot(ours).keys() == found


def test_a_snapshot_of_its_cache_is_a_source_unless_files_are_missing(
    vendor: VendorClient, server: HuggingFaceStandIn, source: Path
) -> None:
    vendor.run(("upload", NAME, str(source)))
    (place,) = vendor.run(("cache", NAME))
    pushed = Worker(server).push(place, "acme/copy")
    assert server.tree("acme/copy") == MODEL
    assert pushed.digest == digest_directory(source)


def test_a_snapshot_of_some_files_only_is_found_out(
    vendor: VendorClient, server: HuggingFaceStandIn, source: Path
) -> None:
    if vendor.generation == "huggingface-0":
        pytest.skip("this generation keeps no list of a commit's files in its cache")
    vendor.run(("upload", NAME, str(source)))
    (place,) = vendor.run(("cache", NAME, "*.json"))
    with pytest.raises(InvalidInput, match="holds only some files of"):
        Worker(server).push(place, "acme/copy")
    Worker(server).push(place, "acme/copy", include=["config.json"])
    assert server.tree("acme/copy") == {"config.json": b"{}"}

"""The unmodified `olah`, a mirror of the Hub, before the stand-in: what it loses is done without."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import ModelNotFound, NotSupported
from airflow_provider_modelsync.core.models import Query
from tests.core.registries.huggingface.hub import NAME, Worker
from tests.core.stores import snapshot, write_tree
from tests.standins.huggingface import HuggingFaceStandIn
from tests.support.until import until

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
MODEL = {
    "README.md": b"---\nlicense: mit\n---\n# card\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096 * 12,
    "sub/a b ü+.txt": b"odd",
    "sub/empty.txt": b"",
}


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_open(port: int) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def mirror(server: HuggingFaceStandIn, tmp_path: Path) -> Iterator[str]:
    """The mirror's URL."""
    program = Path(os.environ.get("MODELSYNC_VENDOR_OLAH", ROOT / ".venv-vendors" / "olah" / "bin" / "olah-cli"))
    if not program.exists():
        pytest.fail(f"{program} is missing: run `make test-vendors`, or name one in MODELSYNC_VENDOR_OLAH")
    port = free_port()
    options = {
        "host": "127.0.0.1",
        "port": port,
        "hf-scheme": "http",
        "hf-netloc": server.url.removeprefix("http://"),
        "hf-lfs-netloc": server.cdn_url.removeprefix("http://"),
        "mirror-scheme": "http",
        "mirror-netloc": f"127.0.0.1:{port}",
        "mirror-lfs-netloc": f"127.0.0.1:{port}",
        "repos-path": tmp_path / "repos",
        "log-path": tmp_path / "log",
    }
    command = [str(program), *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "NO_PROXY": "*"}
    with (tmp_path / "out").open("wb") as out:
        running = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: is_open(port) or running.poll() is not None, "the mirror to listen")
            assert running.poll() is None, (tmp_path / "out").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait(20)


def test_a_mirror_serves_what_the_hub_holds(server: HuggingFaceStandIn, mirror: str, tmp_path: Path) -> None:
    commit = server.publish(NAME, MODEL)
    server.repositories[NAME].tags["v1"] = server.repositories[NAME].head
    worker = Worker(server, host=mirror, token=None)
    assert "without a token" in worker.run(worker.registry.test())
    for model in (NAME, f"{NAME}:{commit}", f"{NAME}@v1"):
        assert worker.get(model).version == commit
    assert {alias.alias for alias in worker.run(worker.registry.aliases(NAME))} == {"main", "v1"}
    listed = worker.run(worker.registry.list_versions(NAME, Query()))
    assert [version.version for version in listed] == [commit]
    digest = worker.run(worker.registry.with_digest(worker.get(NAME))).digest
    pulled = worker.pull(NAME, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(write_tree(tmp_path / "wanted", MODEL))
    assert pulled.digest == digest == digest_directory(tmp_path / "wanted")
    again = Worker(server, host=mirror, token=None).pull(NAME, tmp_path / "target")
    assert again.version.transfer is not None
    assert again.version.transfer.skipped


def test_what_a_mirror_does_not_do_is_told(server: HuggingFaceStandIn, mirror: str, tmp_path: Path) -> None:
    server.publish(NAME, {**MODEL, "sub/#1.txt": b"which it lists and does not give out"})
    worker = Worker(server, host=mirror)
    with pytest.raises(ModelNotFound, match=r"'sub/#1\.txt' of acme/fraud: .*there is no such file"):
        worker.pull(NAME, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    worker.pull(NAME, tmp_path / "target", exclude=["*#*"])
    assert snapshot(tmp_path / "target") == snapshot(write_tree(tmp_path / "wanted", MODEL))
    with pytest.raises(ModelNotFound):
        worker.get("acme/absent:main")
    with pytest.raises(NotSupported, match="a mirror that can only be read"):
        worker.push(tmp_path / "wanted", "acme/copy")
    assert "acme/copy" not in server.repositories

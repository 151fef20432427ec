"""Unmodified tools of others read what we push to a real registry, and we what they push."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import NotSupported
from tests.core.registries.oci.team import FILES, Team, write_model
from tests.core.stores import snapshot, write_tree
from tests.services.docker_registry import PASSWORD, USER, DockerRegistry, htpasswd, running, shared
from tests.services.registry_tokens import TokenServer

pytestmark = pytest.mark.oci

CLIENTS = Path(os.environ.get("MODELSYNC_OCI_CLIENTS", Path(__file__).parents[2] / ".venv-oci/bin/python"))
FULL = {path: content for path, content in FILES.items() if content}
TREE = {"model.safetensors": b"weights" * 3000, "config.json": b"{}"}


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    assert CLIENTS.exists(), f"{CLIENTS} is missing: run `make test-oci`"


@pytest.fixture
def server() -> DockerRegistry:
    return shared()


@pytest.fixture
def place(server: DockerRegistry) -> str:
    """What stands before a model's name, as tools have it."""
    return f"{server.host}/t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def team(place: str) -> Team:
    return Team(f"http://{place}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs a tool, by default in the directory of the test."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*command: object, cwd: Path = tmp_path) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["htpasswd", "token"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Team]:
    """A connection to a registry that wants a login."""
    directory = tmp_path / "registry"
    login = {"login": USER, "password": PASSWORD}
    if request.param == "htpasswd":
        with running(directory, **htpasswd(directory)) as server:
            yield Team(f"{server.url}/team", login)
    else:
        with TokenServer() as tokens, running(directory, **tokens.settings(directory)) as server:
            yield Team(f"{server.url}/team", login)


def test_modelpack_client_pulls_what_we_push(
    team: Team, place: str, source: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    team.push(source)
    run(CLIENTS, "-m", "modelpack_client", "--insecure", "pull", f"{place}/digits:v1", tmp_path / "pulled")
    assert digest_directory(tmp_path / "pulled") == digest_directory(source), "empty files included"
    assert os.access(tmp_path / "pulled" / "sub" / "run.sh", os.X_OK)


def test_we_pull_what_modelpack_client_pushes(team: Team, place: str, tmp_path: Path, run: Callable[..., str]) -> None:
    source = write_tree(tmp_path / "source", TREE)
    config = {
        "descriptor": {"name": "digits", "version": "v1", "createdAt": "2026-01-02T03:04:05Z"},
        "config": {"format": "safetensors"},
        "modelfs": {"type": "layers", "diffIds": []},
    }
    (tmp_path / "pack.json").write_text(json.dumps(config))
    layers = [word for name in TREE for word in ("--layer", source / name)]
    command = ("-m", "modelpack_client", "--insecure", "push", f"{place}/digits:v1", "--config", tmp_path / "pack.json")
    run(CLIENTS, *command, *layers)
    team.pull(tmp_path / "pulled")
    assert snapshot(tmp_path / "pulled") == snapshot(source)
    assert team.get().digest == digest_directory(source)
    assert str(team.get().created_at) == "2026-01-02 03:04:05+00:00"


_ORAS_PULL = """
import sys
import oras.client
oras.client.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])
"""
_ORAS_PUSH = """
import sys
import oras.client
oras.client.OrasClient(insecure=True).push(target=sys.argv[1], files=sys.argv[2:], disable_path_validation=True)
"""


def test_oras_pulls_what_we_push(team: Team, place: str, source: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    team.push(source)
    run(CLIENTS, "-c", _ORAS_PULL, f"{place}/digits:v1", tmp_path / "pulled")
    found = {path: (tmp_path / "pulled" / path).read_bytes() for path in FULL}
    assert found == FULL


def test_we_pull_what_oras_pushes_as_far_as_it_is_not_packed(
    team: Team, place: str, tmp_path: Path, run: Callable[..., str]
) -> None:
    source = write_tree(tmp_path / "source", TREE)
    run(CLIENTS, "-c", _ORAS_PUSH, f"{place}/digits:v1", *TREE, cwd=source)
    team.pull(tmp_path / "pulled")
    assert digest_directory(tmp_path / "pulled") == digest_directory(source)
    run(CLIENTS, "-c", _ORAS_PUSH, f"{place}/digits:packed", "source", cwd=tmp_path)
    with pytest.raises(NotSupported):
        team.pull(tmp_path / "packed", "digits:packed")


@pytest.mark.parametrize("layout", ["modelpack", "image"])
def test_skopeo_carries_a_model_away_and_back(
    team: Team, place: str, source: Path, tmp_path: Path, run: Callable[..., str], layout: str
) -> None:
    pushed = team.push(source, options={"layout": layout})
    away = f"dir:{tmp_path}/layout"
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{place}/digits:v1", away)
    run("skopeo", "copy", "--dest-tls-verify=false", away, f"docker://{place}/back:v1")
    back = team.get("back:v1")
    assert (back.digest, back.raw["digest"]) == (pushed.digest, pushed.raw["digest"])
    team.pull(tmp_path / "pulled", "back:v1")
    assert snapshot(tmp_path / "pulled") == snapshot(source)
    run("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
        f"docker://{place}/digits:v1", f"docker://{place}/copied:v2")  # fmt: skip
    assert team.versions("copied") == ["v2"]
    tags = json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"docker://{place}/digits"))
    assert tags["Tags"] == ["v1"]


def test_an_image_whose_layers_skopeo_has_written_anew_is_listed_and_not_pulled(
    team: Team, place: str, source: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    team.push(source, options={"layout": "image"})
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{place}/digits:v1", f"oci:{tmp_path}/layout:v1")
    run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:v1", f"docker://{place}/back:v1")
    assert team.versions("back") == ["v1"]
    with pytest.raises(NotSupported, match="is not one file with a path"):
        team.pull(tmp_path / "pulled", "back:v1")


def test_umoci_unpacks_an_image_to_the_model_below_models(
    team: Team, place: str, source: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    team.push(source, options={"layout": "image"})
    layout = tmp_path / "layout"
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{place}/digits:v1", f"oci:{layout}:v1")
    run("umoci", "unpack", "--rootless", "--image", f"{layout}:v1", tmp_path / "bundle")
    assert snapshot(tmp_path / "bundle" / "rootfs" / "models") == snapshot(source)


def test_skopeo_reads_with_a_login_what_we_pushed_with_one(
    guarded: Team, source: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    guarded.push(source)
    place = guarded.url.removeprefix("http://")
    run("skopeo", "copy", "--src-tls-verify=false", "--src-creds", f"{USER}:{PASSWORD}",
        f"docker://{place}/digits:v1", f"dir:{tmp_path}/layout")  # fmt: skip
    run("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", f"{USER}:{PASSWORD}",
        f"dir:{tmp_path}/layout", f"docker://{place}/back:v1")  # fmt: skip
    guarded.pull(tmp_path / "pulled", "back:v1")
    assert snapshot(tmp_path / "pulled") == snapshot(source)

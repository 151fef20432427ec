"""The registry of Debian, CNCF Distribution 2.8: what it does, and what we make of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_directory
from airflow_provider_modelsync.core.errors import (
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.registries.oci.api import MANIFEST_BYTES
from airflow_provider_modelsync.core.registries.oci.layouts import Blobs, Draft, Facts, PushOptions
from airflow_provider_modelsync.core.transfer import large_files
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.processes import at_once
from tests.core.registries.oci.team import FILES, Team, digest_of, write_model
from tests.core.stores import snapshot, write_tree
from tests.services.docker_registry import (
    PASSWORD,
    USER,
    DockerRegistry,
    collect_garbage,
    htpasswd,
    needs_registry,
    running,
    shared,
)
from tests.services.moto_server import running_moto
from tests.services.registry_tokens import TokenServer

pytestmark = [needs_registry, pytest.mark.usefixtures("no_waiting")]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LOGIN = {"login": USER, "password": PASSWORD}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a namespace that no other test uses."""
    return f"t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def server() -> DockerRegistry:
    return shared()


@pytest.fixture
def team(server: DockerRegistry, name: str) -> Team:
    return Team(f"{server.url}/{name}")


@contextmanager
def _plain(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield shared().url, {}


@contextmanager
def _htpasswd(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with running(directory, **htpasswd(directory)) as server:
        yield server.url, LOGIN


@contextmanager
def _token(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with TokenServer() as tokens, running(directory, **tokens.settings(directory)) as server:
        yield server.url, LOGIN


@contextmanager
def _relative(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with running(directory, relative=True) as server:
        yield server.url, {}


@contextmanager
def _s3(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Blobs in a storage that the registry leads on to, behind a login that the storage must not see."""
    with running_moto() as moto, TokenServer() as tokens:
        bucket = moto.new_bucket()
        s3 = {
            "accesskey": moto.access_key,
            "secretkey": moto.secret_key,
            "region": "us-east-1",
            "regionendpoint": moto.endpoint,
            "bucket": bucket,
            "secure": False,
            "v4auth": True,
            "chunksize": 5 << 20,
        }
        with running(
            directory, storage={"s3": s3, "delete": {"enabled": True}}, **tokens.settings(directory)
        ) as server:
            yield server.url, LOGIN


KINDS = {"plain": _plain, "htpasswd": _htpasswd, "token": _token, "relative": _relative}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_models_are_kept_whatever_the_login_and_the_storage(
    kind: Callable[..., Any], source: Path, tmp_path: Path, name: str
) -> None:
    with kind(tmp_path / "registry") as (url, login):
        team = Team(f"{url}/{name}", login)
        for version, options in (("v1", {}), ("v2", {"layout": "image"})):
            team.push(source, f"digits:{version}", options=options)
            team.pull(tmp_path / version, f"digits:{version}")
            assert snapshot(tmp_path / version) == snapshot(source)
        assert team.versions() == ["v2", "v1"]
        assert "digits:v2" in team.models()
        assert team.label(stage="prod").labels == {"stage": "prod"}
        assert team.delete()
        assert team.versions() == ["v2"]
        if login:
            wrong = Team(f"{url}/{name}", {**login, "password": "wrong-8c1d"})
            with pytest.raises(Unauthorized):
                wrong.get("digits:v2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [_plain, _s3], ids=["plain", "s3"])
def test_large_files_come_by_ranges_from_where_the_registry_leads(
    kind: Callable[..., Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "PIECE", 100_000)
    monkeypatch.setattr(large_files, "LARGE", 150_000)
    source = write_tree(tmp_path / "source", {"large.bin": os.urandom(450_001), "small.bin": b"s", "empty": b""})
    with kind(tmp_path / "registry") as (url, login):
        team = Team(f"{url}/{name}", login)
        for version, options in (("v1", {}), ("v2", {"layout": "image"})):
            team.push(source, f"digits:{version}", options=options)
            team.pull(tmp_path / version, f"digits:{version}")
            assert snapshot(tmp_path / version) == snapshot(source)


def test_a_token_that_ends_between_requests_is_replaced(tmp_path: Path, source: Path, name: str) -> None:
    """The registry gives a token 60 s beyond its end, so one that lives for minus 61 s is refused at once."""
    directory = tmp_path / "registry"
    with TokenServer(life=-61) as tokens, running(directory, **tokens.settings(directory)) as server:
        team = Team(f"{server.url}/{name}", LOGIN)
        with pytest.raises(Unauthorized):
            team.push(source)
        tokens.life = 300
        team.push(source)
        team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_nobody_pushes_without_a_login(tmp_path: Path, source: Path, name: str) -> None:
    directory = tmp_path / "registry"
    with TokenServer() as tokens, running(directory, **tokens.settings(directory)) as server:
        Team(f"{server.url}/{name}", LOGIN).push(source)
        anybody = Team(f"{server.url}/{name}")
        anybody.pull(tmp_path / "target")
        with pytest.raises(Unauthorized):
            anybody.push(source, "digits:v2")


def test_a_killed_push_goes_on_with_the_files_that_are_missing(team: Team, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {f"{number}.bin": os.urandom(5000) for number in range(6)})

    def killed() -> None:
        accept, stored = team.registry._accept, 0

        def counting(*args: Any) -> None:
            nonlocal stored
            accept(*args)
            if (stored := stored + 1) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        team.registry._accept = counting  # type: ignore[method-assign]
        team.push(source, control=Control(workers=1))

    child = os.fork()
    if child == 0:
        killed()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    again = Team(team.url)
    assert again.versions() == []
    pushed = again.push(source)
    assert pushed.transfer is not None
    assert pushed.transfer.resumed_bytes == 3 * 5000
    again.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_of_two_who_push_the_same_tag_each_ends_with_its_own_or_a_conflict(
    team: Team, source: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", **{"model.safetensors": b"other" * 5000})
    ends = at_once(partial(Team(team.url).push, source), partial(Team(team.url).push, other))
    digest = team.get().digest
    assert digest in (digest_directory(source), digest_directory(other))
    for pushed, tree in zip(ends, (source, other), strict=True):
        if isinstance(pushed, BaseException):
            assert isinstance(pushed, VersionConflict)
            assert digest != digest_directory(tree)
    assert sum(not isinstance(end, BaseException) for end in ends) >= 1


# ---- what was seen of it, and has to stay so for what we do about it ------------------------------------------------


def put_blob(server: DockerRegistry, repository: str, content: bytes) -> str:
    _, headers, _ = server.ask("POST", f"/v2/{repository}/blobs/uploads/", b"")
    place = headers["Location"].removeprefix(server.url)
    status, _, _ = server.ask(
        "PUT", f"{place}&digest={digest_of(content)}", content, Content_Type="application/octet-stream"
    )
    assert status == 201
    return digest_of(content)


def put_manifest(server: DockerRegistry, repository: str, tag: str, layers: list[dict[str, Any]]) -> int:
    put_blob(server, repository, b"{}")
    config = {"mediaType": "application/vnd.unknown.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    return server.ask("PUT", f"/v2/{repository}/manifests/{tag}", json.dumps(manifest).encode(), Content_Type=MANIFEST)[
        0
    ]


def test_a_manifest_is_not_there_for_who_does_not_accept_its_type(
    server: DockerRegistry, team: Team, source: Path, name: str
) -> None:
    team.push(source)
    assert server.ask("GET", f"/v2/{name}/digits/manifests/v1")[0] == 404
    assert server.ask("GET", f"/v2/{name}/digits/manifests/v1", Accept=MANIFEST)[0] == 200


def test_a_size_that_is_not_the_blob_s_is_taken_by_the_registry_and_not_by_us(
    server: DockerRegistry, team: Team, name: str, tmp_path: Path
) -> None:
    for number, size in enumerate((999, 1001)):
        digest = put_blob(server, f"{name}/false", b"x" * 1000)
        annotations = {"org.opencontainers.image.title": "a"}
        layer = {"mediaType": "application/octet-stream", "digest": digest, "size": size, "annotations": annotations}
        assert put_manifest(server, f"{name}/false", f"v{number}", [layer]) == 201
        with pytest.raises(RegistryUnavailable, match="instead of"):
            team.pull(tmp_path / "target", f"false:v{number}")
        assert not (tmp_path / "target").exists()


def test_a_manifest_beyond_what_it_takes_is_refused_by_us_before(
    server: DockerRegistry, team: Team, name: str, tmp_path: Path
) -> None:
    annotations = {"org.opencontainers.image.title": "x" * (4 << 20)}
    layer = {"mediaType": "application/octet-stream", "digest": digest_of(b"{}"), "size": 2, "annotations": annotations}
    assert put_manifest(server, f"{name}/large", "v1", [layer]) in (400, 413)
    metadata = {"notes": "x" * (4 << 20)}
    with pytest.raises(ModelSyncError, match="4194304"):
        team.push(write_tree(tmp_path / "source", {"a": b"a"}), metadata=metadata)
    assert server.trace(f"{name}/digits") == []


def test_nine_thousand_files_have_room() -> None:
    source = Blobs(None, (), {})  # type: ignore[arg-type]
    source.files = tuple(FileEntry(f"model-{number:05}.bin", 1, f"{number:064x}") for number in range(9000))
    facts = Facts(name="digits", version="v1", labels={}, metadata={}, created_at=datetime.now(UTC))
    size = len(Draft.of(source, facts, PushOptions()).manifest)
    assert 0.8 * MANIFEST_BYTES < size < MANIFEST_BYTES


def test_one_request_alone_stores_nothing(server: DockerRegistry, name: str) -> None:
    """Hence two for each blob."""
    path = f"/v2/{name}/m/blobs/uploads/?digest={digest_of(b'one')}"
    assert server.ask("POST", path, b"one", Content_Type="application/octet-stream")[0] == 202
    assert server.ask("HEAD", f"/v2/{name}/m/blobs/{digest_of(b'one')}")[0] == 404


def test_an_upload_that_was_cut_is_lost_for_good(server: DockerRegistry, name: str) -> None:
    """Hence a place is never used twice, and no piece is gone on with."""
    import http.client

    _, headers, _ = server.ask("POST", f"/v2/{name}/m/blobs/uploads/", b"")
    place = headers["Location"].removeprefix(server.url)
    connection = http.client.HTTPConnection(server.host)
    connection.putrequest("PATCH", place)
    connection.putheader("Content-Length", "1000000")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.endheaders(b"x" * 500_000)
    connection.close()
    done = threading.Event()
    for _ in range(200):
        status = server.ask("GET", place)[0]
        if status == 404:
            break
        done.wait(0.01)
    assert status == 404


def test_pages_are_not_to_be_had_and_not_needed(server: DockerRegistry, team: Team, source: Path, name: str) -> None:
    for number in range(4):
        team.push(source, f"digits:v{number}")
    _, headers, body = server.ask("GET", f"/v2/{name}/digits/tags/list?n=2")
    assert "Link" not in headers
    assert len(json.loads(body)["tags"]) == 4
    assert len(team.versions()) == 4


def test_no_condition_keeps_a_tag_where_it_is(server: DockerRegistry, team: Team, source: Path, name: str) -> None:
    """Hence a push looks before and after."""
    team.push(source)
    content = json.dumps({**server.manifest(f"{name}/digits", "v1"), "annotations": {}}).encode()
    for condition in ({"If_None_Match": "*"}, {"If_Match": '"sha256:0"'}):
        asked = server.ask("PUT", f"/v2/{name}/digits/manifests/v1", content, Content_Type=MANIFEST, **condition)
        assert asked[0] == 201


def test_a_tag_cannot_be_deleted_alone_and_an_alias_is_removed_all_the_same(
    server: DockerRegistry, team: Team, source: Path, name: str
) -> None:
    team.push(source)
    team.alias("champion")
    assert server.ask("DELETE", f"/v2/{name}/digits/manifests/champion")[0] == 400
    assert team.run(lambda registry: registry.delete_alias("digits", "champion"))
    assert team.versions() == ["v1"]
    assert team.get().digest == digest_directory(source)


def test_another_tag_of_a_manifest_is_not_taken_along(server: DockerRegistry, team: Team, name: str) -> None:
    digest = put_blob(server, f"{name}/foreign", b"x")
    annotations = {"org.opencontainers.image.title": "a"}
    layer = {"mediaType": "application/octet-stream", "digest": digest, "size": 1, "annotations": annotations}
    for tag in ("v1", "v2"):
        put_manifest(server, f"{name}/foreign", tag, [layer])
    with pytest.raises(NotSupported, match="'v2' would go with it"):
        team.delete("foreign:v1")
    assert team.versions("foreign") == ["v2", "v1"]


def test_deletion_may_be_switched_off(tmp_path: Path, source: Path, name: str) -> None:
    directory = tmp_path / "registry"
    storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
    with running(directory, storage=storage) as server:
        team = Team(f"{server.url}/{name}")
        team.push(source)
        with pytest.raises(NotSupported, match="does not delete over its API"):
            team.delete()
        assert team.versions() == ["v1"]


def test_what_its_cache_takes_for_there_is_found_out(tmp_path: Path, source: Path, name: str) -> None:
    """After a garbage collection without a restart, HEAD still tells of blobs that are gone, and so does a manifest."""
    directory = tmp_path / "registry"
    storage = {
        "filesystem": {"rootdirectory": str(directory / "storage")},
        "delete": {"enabled": True},
        "cache": {"blobdescriptor": "inmemory"},
    }
    with running(directory, storage=storage) as server:
        team = Team(f"{server.url}/{name}")
        team.push(source)
        team.delete()
        collect_garbage(server.config)
        gone = digest_of(FILES["config.json"])
        assert server.ask("HEAD", f"/v2/{name}/digits/blobs/{gone}")[0] == 200
        assert not team.run(lambda registry: registry._api.has_blob("digits", gone, len(FILES["config.json"])))
        team.push(source)
        team.pull(tmp_path / "target")
        assert snapshot(tmp_path / "target") == snapshot(source)


def test_a_blob_is_not_asked_for_beyond_its_end(server: DockerRegistry, team: Team, name: str) -> None:
    """There it announces the blob's length and sends an error's few bytes, so the read breaks off."""
    digest = put_blob(server, f"{name}/digits", b"x" * 1000)
    assert team.run(lambda registry: registry._api.has_blob("digits", digest, 1000))
    assert not team.run(lambda registry: registry._api.has_blob("digits", digest, 999))
    assert not team.run(lambda registry: registry._api.has_blob("digits", digest_of(b"none"), 4))

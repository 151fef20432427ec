"""The registry of Debian, CNCF Distribution 2.8: what it does, and what we make of it."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, digest_directory
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Flow
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
from tests.support.until import until

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
def _s3(directory: Path, *, logins: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
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
        guard = tokens.settings(directory) if logins else {}
        with running(directory, storage={"s3": s3, "delete": {"enabled": True}}, **guard) as server:
            yield server.url, LOGIN


KINDS = {"plain": _plain, "htpasswd": _htpasswd, "token": _token, "relative": _relative}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_models_are_kept_whatever_the_login_and_the_storage(
    kind: Callable[..., Any], source: Path, tmp_path: Path, name: str
) -> None:
    with kind(tmp_path / "registry") as (url, login):
        team = Team(f"{url}/{name}", login)
        assert team.run(lambda registry: registry.test()).startswith("Connected")
        assert team.versions() == [], "nobody knows the name"
        for version, options in (("v1", {}), ("v2", {"layout": "image"})):
            team.push(source, f"digits:{version}", options=options)
            team.pull(tmp_path / version, f"digits:{version}")
            assert snapshot(tmp_path / version) == snapshot(source)
        assert team.versions() == ["v2", "v1"]
        assert "digits:v2" in team.models()
        assert team.label(stage="prod").labels == {"stage": "prod"}
        mounted = team.push(source, "copy:v1", options={"mount_from": ["digits"]})
        assert mounted.transfer is not None
        assert mounted.transfer.sent_bytes < 1000, "only the configuration is another"
        team.pull(tmp_path / "copy", "copy:v1")
        assert snapshot(tmp_path / "copy") == snapshot(source)
        assert team.delete()
        assert not team.delete()
        assert team.versions() == ["v2"]
        assert team.delete("digits:v2")
        assert team.versions() == [], "it says null"
        if login:
            wrong = Team(f"{url}/{name}", {**login, "password": "wrong-8c1d"})
            with pytest.raises(Unauthorized):
                wrong.get("copy:v1")


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
        again = team.push(source, "digits:v3")
        assert again.transfer is not None
        assert again.transfer.sent_bytes < 1000, "what a redirect leads to is there"


@pytest.mark.oci
def test_no_storage_has_to_keep_a_blob_without_bytes(server: DockerRegistry, name: str, tmp_path: Path) -> None:
    """Its own files can, an S3 cannot. Hence empty files lie in a tar."""
    assert digest_of(b"") == put_blob(server, f"{name}/m", b"")
    with _s3(tmp_path / "registry", logins=False) as (url, _):
        behind = replace(server, url=url)
        _, headers, _ = behind.ask("POST", f"/v2/{name}/m/blobs/uploads/", b"")
        place = headers["Location"].removeprefix(url)
        assert behind.ask("PUT", f"{place}&digest={digest_of(b'')}", b"")[0] == 500
        status, headers, _ = behind.ask(
            "HEAD", f"/v2/{name}/m/blobs/{put_blob(behind, f'{name}/m', b'x')}", follow=False
        )
        assert (status, headers.get("Content-Length", "0")) == (307, "0"), "so a HEAD tells no size"


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


@pytest.mark.parametrize("options", [{}, {"layout": "image"}], ids=["modelpack", "image"])
def test_a_token_that_is_refused_in_the_midst_of_bodies_is_replaced(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    """Bodies are larger than what the kernel takes before the registry answers, and closes."""
    monkeypatch.setattr(large_files, "PIECE", 3 << 20)
    source = write_tree(tmp_path / "source", {"a.bin": os.urandom(9 << 20), "b.bin": b"b" * 5000, "c.bin": b"c"})
    directory = tmp_path / "registry"
    with TokenServer() as tokens, running(directory, **tokens.settings(directory)) as server:
        team = Team(f"{server.url}/{name}", LOGIN)
        stale: list[str] = []
        for verb in ("upload_address", "blob_address"):
            monkeypatch.setattr(team.registry._api, verb, partial(_after_it_ended, team, tokens, stale, verb))
        team.push(source, control=Control(workers=1), options=options)
        sends = len(stale)
        team.pull(tmp_path / "target", control=Control(workers=1))
    assert sends >= 2
    assert len(stale) - sends >= 2
    assert snapshot(tmp_path / "target") == snapshot(source)


def _after_it_ended(team: Team, tokens: TokenServer, stale: list[str], verb: str, *args: Any) -> Flow[Any]:
    """Ask for an address with a token that the registry takes no more, though it was to last; not twice in a row."""
    login = team.registry._api.login
    if len(stale) % 2 == 0:
        tokens.life = -3600
        for scopes in list(login._shared.tokens):
            ended = yield from login._fetch(scopes)
            login._shared.tokens[scopes] = replace(ended, renew_at=math.inf)
        tokens.life = 300
    stale.append(verb)
    return (yield from getattr(type(team.registry._api), verb)(team.registry._api, *args))


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
    _, headers, _ = server.ask("POST", f"/v2/{name}/m/blobs/uploads/", b"")
    place = headers["Location"].removeprefix(server.url)
    connection = http.client.HTTPConnection(server.host)
    connection.putrequest("PATCH", place)
    connection.putheader("Content-Length", "1000000")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.endheaders(b"x" * 500_000)
    connection.close()
    until(lambda: server.ask("GET", place)[0] == 404, "what was begun to be gone")


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


def test_blobs_that_are_collected_during_a_push_are_sent_again(
    server: DockerRegistry, team: Team, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "source", {"a.bin": os.urandom(5000), "b.bin": os.urandom(5000)})
    gone = hashlib.sha256((source / "b.bin").read_bytes()).hexdigest()
    blob = server.directory / "docker/registry/v2/blobs/sha256" / gone[:2] / gone
    link = (
        server.directory / f"docker/registry/v2/repositories/{urlsplit(team.url).path[1:]}/digits/_layers/sha256/{gone}"
    )
    publish, rounds = team.registry.finish_push, 0

    def collected(plan: Any) -> Flow[Any]:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            shutil.rmtree(blob)
            shutil.rmtree(link)
        return (yield from publish(plan))

    team.registry.finish_push = collected  # type: ignore[method-assign]
    team.push(source)
    assert rounds == 2
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_a_mount_of_what_only_its_cache_knows_is_found_out(tmp_path: Path, source: Path, name: str) -> None:
    directory = tmp_path / "registry"
    storage = {"filesystem": {"rootdirectory": str(directory / "storage")}, "cache": {"blobdescriptor": "inmemory"}}
    with running(directory, storage=storage) as server:
        team = Team(f"{server.url}/{name}")
        team.push(source, "base:v1")
        gone = digest_of(FILES["config.json"])
        shutil.rmtree(server.directory / "docker/registry/v2/blobs/sha256" / gone[7:9] / gone[7:])
        path = f"/v2/{name}/raw/blobs/uploads/?mount={gone}"
        assert server.ask("POST", f"{path}&from={name}/base", b"")[0] == 201
        team.push(source, "digits:v1", options={"mount_from": ["base"]})
        team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("secret", ["any", "another"])
def test_a_place_that_another_replica_does_not_know_is_asked_for_anew(
    team: Team, server: DockerRegistry, source: Path, tmp_path: Path, name: str, secret: str
) -> None:
    """Places are sealed: replicas, and a registry before and after a restart, need the same secret."""
    storage = {"filesystem": {"rootdirectory": str(server.directory)}, "delete": {"enabled": True}}
    with running(tmp_path / "replica", storage=storage, secret=secret) as replica:
        begin, begun = team.registry._api.begin_upload, 0

        def elsewhere(*args: Any) -> Flow[str | None]:
            nonlocal begun
            location = yield from begin(*args)
            begun += 1
            return location.replace(server.url, replica.url) if location and begun % 2 else location

        team.registry._api.begin_upload = elsewhere  # type: ignore[method-assign]
        team.push(source, control=Control(workers=1))
    distinct = len(set(FILES.values()) - {b""}) + 2  # with the tar of empty files, and the configuration
    assert begun == (distinct if secret == "any" else 2 * distinct)
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


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


def test_nothing_is_asked_for_beyond_a_blob_s_end(server: DockerRegistry, name: str) -> None:
    """There it announces the blob's length and sends an error of a few bytes."""
    path = f"/v2/{name}/m/blobs/{put_blob(server, f'{name}/m', b'x' * 1000)}"
    with pytest.raises(http.client.IncompleteRead):
        server.ask("GET", path, Range="bytes=1000-1099")
    assert server.ask("GET", path, Range="bytes=990-999")[2] == b"x" * 10
    assert server.ask("HEAD", path, If_Match='"another"')[0] == 412


def test_a_name_that_no_repository_can_have_is_no_route(server: DockerRegistry, team: Team, source: Path) -> None:
    """It says 404 as of anything that is not there, so names are checked before."""
    status, headers, _ = server.ask("GET", "/v2/team/Digits/tags/list")
    assert (status, headers.get_content_type()) == (404, "text/plain")
    for model in ("Digits:v1", "digits:-v1", "a//b:v1"):
        with pytest.raises(InvalidInput):
            team.push(source, model)


def test_a_mount_names_where_from(server: DockerRegistry, name: str) -> None:
    path = f"/v2/{name}/m/blobs/uploads/?mount={put_blob(server, f'{name}/base', b'x')}"
    assert server.ask("POST", path, b"")[0] == 202
    assert server.ask("POST", f"{path}&from={name}/base", b"")[0] == 201


def test_pieces_are_taken_wherever_they_belong(server: DockerRegistry, name: str) -> None:
    """Hence blobs go up whole. Only the digest tells in the end."""
    _, headers, _ = server.ask("POST", f"/v2/{name}/m/blobs/uploads/", b"")
    for first in (0, 600):
        place = headers["Location"].removeprefix(server.url)
        status, headers, _ = server.ask(
            "PATCH",
            place,
            bytes([first // 600]) * 400,
            Content_Range=f"{first}-{first + 399}",
            Content_Type="application/octet-stream",
        )
        assert status == 202
    assert headers["Range"] == "0-799"
    place = headers["Location"].removeprefix(server.url)
    status, _, body = server.ask("PUT", f"{place}&digest={digest_of(bytes(1000))}", b"")
    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "DIGEST_INVALID")


def test_tags_beside_a_digest_are_not_set(server: DockerRegistry, team: Team, source: Path, name: str) -> None:
    """Hence one request for each tag."""
    team.push(source)
    content = server.ask("GET", f"/v2/{name}/digits/manifests/v1", Accept=MANIFEST)[2]
    path = f"/v2/{name}/digits/manifests/{digest_of(content)}"
    assert server.ask("PUT", f"{path}?tag=a&tag=b", content, Content_Type=MANIFEST)[0] == 201
    assert team.versions() == ["v1"]
    known = f'"{digest_of(content)}"'
    assert server.ask("GET", f"/v2/{name}/digits/manifests/v1", Accept=MANIFEST, If_None_Match=known)[0] == 304


def test_referrers_are_not_listed_and_signatures_found_by_a_tag(
    server: DockerRegistry, team: Team, source: Path, name: str
) -> None:
    team.push(source, sign=lambda model, name: b'{"by": "us"}')
    version = team.get()
    digest = version.raw["digest"]
    assert server.ask("GET", f"/v2/{name}/digits/referrers/{digest}")[0] == 404
    found = team.run(lambda registry: registry._referrers.signatures("digits", digest))
    assert found == [b'{"by": "us"}']
    assert team.run(lambda registry: registry.signatures(version)) == found
    assert team.versions() == ["v1"]


@pytest.mark.oci
def test_nine_thousand_files_are_taken(team: Team, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {f"{number:05}.bin": b"x" for number in range(9000)})
    pushed = team.push(source)
    assert pushed.raw["layers"] == 9000
    assert Team(team.url).get().digest == pushed.digest

"""How models lie in a registry: what others read of it, and what is read of others."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    UnsafeArchive,
    VersionConflict,
)
from airflow_provider_modelsync.core.registries.oci import layouts
from airflow_provider_modelsync.core.transfer import large_files
from tests.core.registries.oci.team import FILES, Team, digest_of, layer, of_another_tool, write_model
from tests.core.stores import snapshot, write_tree
from tests.standins.oci import ECR, OCIStandIn

EMPTY = digest_of(b"")


@pytest.fixture
def server() -> Iterator[OCIStandIn]:
    with OCIStandIn() as server:
        yield server


@pytest.fixture
def team(server: OCIStandIn) -> Team:
    return Team.of(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


def stored(server: OCIStandIn, name: str = "team/digits", tag: str = "v1") -> tuple[dict[str, Any], dict[str, bytes]]:
    repository = server.repositories[name]
    return json.loads(repository.manifests[repository.tags[tag]][1]), repository.blobs


def test_a_modelpack_has_a_raw_layer_for_each_file(server: OCIStandIn, team: Team, source: Path) -> None:
    team.push(source, metadata={"auc": 0.9}, options={"architecture": "mlp", "param_size": "1k"})
    manifest, blobs = stored(server)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    raw = {one["annotations"]["org.cncf.model.filepath"]: one for one in manifest["layers"][:-1]}
    assert raw.keys() == {path for path, content in FILES.items() if content}
    for path, one in raw.items():
        assert blobs[one["digest"]] == FILES[path]
        assert one["annotations"]["org.opencontainers.image.title"] == path
    kinds = {path: one["mediaType"].removeprefix("application/vnd.cncf.model.") for path, one in raw.items()}
    assert kinds == {
        "README.md": "doc.v1.raw",
        "config.json": "weight.config.v1.raw",
        "model.safetensors": "weight.v1.raw",
        "sub/copy.safetensors": "weight.v1.raw",
        "sub/run.sh": "code.v1.raw",
    }
    modes = {
        path: json.loads(one["annotations"]["org.cncf.model.file.metadata+json"])["mode"] for path, one in raw.items()
    }
    assert modes == {path: 0o755 if path.endswith(".sh") else 0o644 for path in raw}
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["config"] == {"format": "safetensors", "architecture": "mlp", "paramSize": "1k"}
    assert config["descriptor"]["createdAt"] == manifest["annotations"]["org.opencontainers.image.created"]
    assert config["modelfs"] == {"type": "layers", "diffIds": [one["digest"] for one in manifest["layers"]]}
    assert json.loads(manifest["annotations"]["io.modelsync.metadata"]) == {"auc": 0.9}


def test_empty_files_share_one_tar_as_no_blob_may_be_empty(tmp_path: Path, source: Path) -> None:
    with OCIStandIn(ECR, repositories_exist=False) as server:
        team = Team.of(server)
        team.push(source)
        manifest, blobs = stored(server)
        (tar,) = [one for one in manifest["layers"] if one["mediaType"].endswith(".tar")]
        with tarfile.open(fileobj=io.BytesIO(blobs[tar["digest"]])) as archive:
            files = [member for member in archive if member.isfile()]
        assert [(member.name, member.size) for member in files] == [("empty", 0), ("sub/__init__.py", 0)]
        assert EMPTY not in blobs
        team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("options", [{}, {"layout": "image"}], ids=["modelpack", "image"])
def test_what_is_pulled_is_what_was_pushed(
    server: OCIStandIn, source: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    pushed = Team.of(server).push(source, options=options)
    other = Team.of(server)
    assert other.get().digest == pushed.digest == digest_directory(source)
    pulled = other.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)
    assert pulled.version.size_bytes == sum(map(len, FILES.values()))
    some = other.pull(tmp_path / "some", include=["/sub"])
    assert some.digest == digest_directory(tmp_path / "some")


@pytest.mark.parametrize("options", [{}, {"layout": "image"}], ids=["modelpack", "image"])
def test_large_files_come_by_ranges(
    server: OCIStandIn,
    team: Team,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
) -> None:
    monkeypatch.setattr(large_files, "PIECE", 10_000)
    monkeypatch.setattr(large_files, "LARGE", 20_000)
    source = write_model(tmp_path / "source")
    team.push(source, options=options)
    begun = len(server.requests)
    team.pull(tmp_path / "target")
    ranges = {request.headers["range"] for request in server.requests[begun:] if "range" in request.headers}
    assert len(ranges) >= 4
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_an_image_has_everything_below_models(
    server: OCIStandIn, team: Team, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "LARGE", 1000)
    team.push(source, options={"layout": "image"})
    manifest, blobs = stored(server)
    assert "artifactType" not in manifest
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    found: dict[str, bytes] = {}
    for one in manifest["layers"]:
        assert one["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
        with tarfile.open(fileobj=io.BytesIO(blobs[one["digest"]])) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                if member.isfile():
                    found[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    assert found == {f"models/{path}": content for path, content in FILES.items()}
    assert len(manifest["layers"]) == 3
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["rootfs"] == {"type": "layers", "diff_ids": [one["digest"] for one in manifest["layers"]]}
    assert (config["os"], config["architecture"]) == ("linux", "amd64")


def test_an_image_has_no_more_layers_than_can_be_mounted(
    team: Team, server: OCIStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "LARGE", 2)
    source = write_tree(tmp_path / "source", {f"{number:03}": b"%03d" % number for number in range(150)})
    team.push(source, options={"layout": "image"})
    assert len(stored(server)[0]["layers"]) == layouts.MAX_LAYERS
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_our_digest_does_not_depend_on_layout_labels_or_time(team: Team, source: Path) -> None:
    first = team.push(source, "digits:v1")
    second = team.push(source, "digits:v2", options={"layout": "image"}, labels={"stage": "prod"})
    assert first.digest == second.digest == digest_directory(source)
    assert first.uri != second.uri
    assert str(first.uri).startswith(f"oci://{team.url.removeprefix('http://')}/digits@sha256:")


def test_a_manifest_that_registries_do_not_take_is_refused_before_anything_is_sent(
    server: OCIStandIn, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "MANIFEST_BYTES", 20_000)
    source = write_tree(tmp_path / "source", {f"{number:03}": b"%03d" % number for number in range(60)})
    with pytest.raises(InvalidInput, match="the manifest of 60 files would have"):
        team.push(source)
    assert server.requests == []


@pytest.mark.parametrize("options", [{"layout": "zip"}, {"speed": "fast"}, {"mount_from": ["Bad Name"]}])
def test_options_that_make_no_sense_are_refused_before_anything_is_sent(
    server: OCIStandIn, team: Team, source: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        team.push(source, options=options)
    assert server.requests == []


# ---- of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath"]
)
def test_artifacts_of_other_tools_with_a_path_for_each_layer_are_pulled(
    server: OCIStandIn, team: Team, tmp_path: Path, key: str
) -> None:
    files = {"a.bin": b"one", "sub/b.bin": b"two", "nothing": b""}
    layers = [{**layer(content), "annotations": {key: path}} for path, content in files.items()]
    of_another_tool(server, layers, [*files.values()])
    team.pull(tmp_path / "target", "foreign:v1")
    assert {path: (tmp_path / "target" / path).read_bytes() for path in files} == files
    assert team.get("foreign:v1").digest == digest_directory(tmp_path / "target")


PACKED = [
    layer(b"tar", "model", "application/vnd.cncf.model.weight.v1.tar"),
    layer(b"tar", "model", "application/vnd.kitops.modelkit.model.v1.tar+gzip"),
    layer(b"tar", None, "application/vnd.oci.image.layer.v1.tar+gzip"),
    layer(
        b"tar", "model", annotations={"org.opencontainers.image.title": "model", "io.deis.oras.content.unpack": "true"}
    ),
    layer(b"raw", None),
    layer(b"tar", None, "application/vnd.oci.image.layer.v1.tar+gzip", annotations={"io.modelsync.files": "[]"}),
]


@pytest.mark.parametrize("packed", PACKED, ids=lambda one: one["mediaType"].rpartition(".")[2])
def test_what_lies_in_archives_is_listed_and_cannot_be_pulled(
    server: OCIStandIn, team: Team, tmp_path: Path, packed: dict[str, Any]
) -> None:
    of_another_tool(server, [packed], [b"tar", b"raw"])
    assert team.versions("foreign") == ["v1"]
    assert team.get("foreign:v1").digest is None
    with pytest.raises(NotSupported, match=r"is not one file with a path|compressed by another tool"):
        team.pull(tmp_path / "target", "foreign:v1")
    assert not (tmp_path / "target").exists()


def test_an_index_is_listed_and_cannot_be_pulled(server: OCIStandIn, team: Team, tmp_path: Path) -> None:
    of_another_tool(server, [], [], manifests=[{"digest": EMPTY, "size": 0, "mediaType": "x"}])
    assert team.versions("foreign") == ["v1"]
    with pytest.raises(NotSupported, match="index"):
        team.pull(tmp_path / "target", "foreign:v1")


HOSTILE = {
    "absolute": ["/etc/cron.d/x"],
    "upwards": ["../x"],
    "backslash": ["a\\b"],
    "reserved": [".modelsync/journal"],
    "control": ["a\nb"],
    "twice": ["a", "a"],
    "file-and-directory": ["a", "a/b"],
}


@pytest.mark.parametrize("paths", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.row("H1")
def test_paths_that_lead_elsewhere_are_refused(
    server: OCIStandIn, team: Team, tmp_path: Path, paths: list[str]
) -> None:
    of_another_tool(server, [layer(b"x", path) for path in paths], [b"x"])
    assert team.get("foreign:v1").digest is None
    with pytest.raises(UnsafeArchive):
        team.pull(tmp_path / "target", "foreign:v1")
    assert [path.name for path in tmp_path.iterdir()] == []


NONSENSE = {
    "listed-offset": '[{"path": "a", "size": 5, "sha256": "%s", "offset": 1}]' % ("0" * 64),
    "listed-text": '[{"path": 1}]',
    "listed-hash": '[{"path": "a", "size": 0, "sha256": "%s", "offset": 0}]' % ("0" * 64),
}


@pytest.mark.parametrize("listed", NONSENSE.values(), ids=NONSENSE)
def test_a_list_of_files_that_cannot_be_is_refused(server: OCIStandIn, team: Team, tmp_path: Path, listed: str) -> None:
    kind = "application/vnd.oci.image.layer.v1.tar"
    of_another_tool(server, [layer(b"12345", kind=kind, annotations={"io.modelsync.files": listed})], [b"12345"])
    with pytest.raises(UnsafeArchive):
        team.pull(tmp_path / "target", "foreign:v1")


def test_a_digest_that_is_not_that_of_the_layers_is_not_believed(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    told = {"io.modelsync.digest": digest_directory(source)}
    of_another_tool(server, [layer(b"evil", "model.safetensors")], [b"evil"], annotations=told)
    assert team.get("foreign:v1").digest is None
    with pytest.raises(UnsafeArchive, match="its layers have the digest"):
        team.pull(tmp_path / "target", "foreign:v1")
    with pytest.raises(VersionConflict):
        team.push(source, "foreign:v1")


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.row("T11", "H5", of=("fetches", "target"))
def test_a_false_size_is_found_out(server: OCIStandIn, team: Team, tmp_path: Path, no_waiting: None, size: int) -> None:
    of_another_tool(server, [layer(b"1234", "a", size=size)], [b"1234"])
    with pytest.raises(Exception, match="instead of"):
        team.pull(tmp_path / "target", "foreign:v1")
    assert not (tmp_path / "target").exists()


CONFIGS: dict[str, tuple[dict[str, Any], type[ModelSyncError]]] = {
    "short": ({"size": 3}, UnsafeArchive),
    "long": ({"size": 1}, UnsafeArchive),
    "huge": ({"size": 5 << 20}, UnsafeArchive),
    "other bytes": ({"digest": digest_of(b"false"), "size": 5}, RegistryUnavailable),
    "none": ({"digest": digest_of(b"none"), "size": 4}, ModelNotFound),
}


@pytest.mark.parametrize(("said", "error"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_is_not_what_the_manifest_says_is_found_out(
    server: OCIStandIn, team: Team, tmp_path: Path, no_waiting: None, said: dict[str, Any], error: type[ModelSyncError]
) -> None:
    config = {"mediaType": "application/vnd.unknown.config.v1+json", "digest": digest_of(b"{}"), "size": 2, **said}
    of_another_tool(server, [layer(b"x", "a")], [b"x"], config=config)
    server.repositories["team/foreign"].blobs[digest_of(b"false")] = b"wrong"
    with pytest.raises(error):
        team.pull(tmp_path / "target", "foreign:v1")
    assert not (tmp_path / "target").exists()


def test_the_newest_is_told_by_the_configuration_where_nothing_else_does(server: OCIStandIn, team: Team) -> None:
    repository_of = lambda tag, created: of_another_tool(  # noqa: E731
        server,
        [layer(b"x", "a")],
        [b"x", config := json.dumps({"created": created}).encode()],
        tag=tag,
        config={
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config),
            "size": len(config),
        },
    )
    repository_of("a", "2026-02-01T00:00:00Z")
    repository_of("b", "2026-01-01T00:00:00.123456789Z")
    assert team.versions("foreign") == ["a", "b"]
    assert team.get("foreign").version == "a"


@pytest.mark.parametrize("broken", [b"[]", b'{"layers": 5}', b'{"layers": [{"digest": "md5:1", "size": 1}]}'])
@pytest.mark.row("S7")
def test_a_broken_manifest_does_not_keep_others_from_being_listed(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path, broken: bytes
) -> None:
    team.push(source)
    repository = server.repositories["team/digits"]
    repository.manifests[digest_of(broken)] = ("application/vnd.oci.image.manifest.v1+json", broken)
    repository.tags["broken"] = digest_of(broken)
    assert sorted(team.versions()) == ["broken", "v1"]
    with pytest.raises(UnsafeArchive, match="makes no sense"):
        team.pull(tmp_path / "target", "digits:broken")

"""Signatures refer to manifests, so that other tools find them, and those of other tools are found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.models import ModelVersion
from airflow_provider_modelsync.core.registries.oci.manifest import OUR_SIGNATURES, with_annotation
from airflow_provider_modelsync.core.registries.oci.referrers import BUNDLE
from tests.core.registries.oci.team import Team, digest_of, write_model
from tests.standins.http_server import Respond
from tests.standins.oci import DISTRIBUTION, HARBOR, OCIStandIn, Quirks

SIGNATURE = b'{"by": "us"}'


@pytest.fixture(params=[HARBOR, DISTRIBUTION], ids=["by the API", "by a tag"])
def server(request: pytest.FixtureRequest) -> Iterator[OCIStandIn]:
    quirks: Quirks = request.param
    with OCIStandIn(quirks) as server:
        yield server


@pytest.fixture
def team(server: OCIStandIn) -> Team:
    return Team.of(server)


@pytest.fixture
def signed(team: Team, tmp_path: Path) -> ModelVersion:
    return team.push(write_model(tmp_path / "source"), sign=lambda model, name: SIGNATURE)


def signatures(team: Team) -> list[bytes]:
    return team.run(lambda registry: registry.signatures(registry_version(team)))


def registry_version(team: Team) -> ModelVersion:
    return team.get()


def test_a_signature_is_found_by_its_referrer_alone(server: OCIStandIn, team: Team, signed: ModelVersion) -> None:
    """As where another tool has attached it."""
    repository = server.repositories["team/digits"]
    digest = repository.tags["v1"]
    media_type, content = repository.manifests[digest]
    (referrer,) = (one for _, one in repository.manifests.values() if BUNDLE.encode() in one and b"subject" in one)
    bare = with_annotation(content, OUR_SIGNATURES, None)
    repository.manifests[digest_of(bare)] = media_type, bare
    repository.tags["v1"] = digest_of(bare)
    assert signatures(team) == []

    moved = referrer.replace(digest.encode(), digest_of(bare).encode())
    repository.manifests[digest_of(moved)] = "application/vnd.oci.image.manifest.v1+json", moved
    if not server.quirks.referrers:
        _, index = repository.manifests[repository.tags[digest.replace(":", "-")]]
        index = index.replace(digest_of(referrer).encode(), digest_of(moved).encode())
        repository.manifests[digest_of(index)] = "application/vnd.oci.image.index.v1+json", index
        repository.tags[digest_of(bare).replace(":", "-")] = digest_of(index)
    assert signatures(team) == [SIGNATURE]


def test_what_lists_referrers_is_no_version(team: Team, signed: ModelVersion) -> None:
    assert team.versions() == ["v1"]


def test_a_signature_outlives_new_labels(team: Team, signed: ModelVersion) -> None:
    team.label(stage="prod")

    assert signatures(team) == [SIGNATURE]


def test_a_registry_that_takes_no_referrer_keeps_the_signature_all_the_same(
    server: OCIStandIn, team: Team, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault("PUT", r"/manifests/sha256[:-]", Respond(400, b"{}"), times=5)

    team.push(write_model(tmp_path / "source"), sign=lambda model, name: SIGNATURE)

    assert signatures(team) == [SIGNATURE]
    assert "nothing refers to the manifest of digits as its signature" in caplog.text

"""What is sent and what is not, and what becomes of a push that something goes wrong with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    Cancelled,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    SourceChanged,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.oci.team import BLOBS, FILES, UPLOAD, Team, digest_of, layer, of_another_tool, write_model
from tests.core.stores import snapshot, was_skipped, write_tree
from tests.standins.http_server import LoseAnswer, Request, Reset, Respond
from tests.standins.oci import DISTRIBUTION, ECR, GAR, GHCR, HARBOR, HOSTED, OCIStandIn, Quirks
from tests.support.maps import mapped

pytestmark = pytest.mark.usefixtures("no_waiting")

# What registries say of a tag that may not move: Harbor, Quay, others, ECR.
IMMUTABLE = [
    (412, "PRECONDITION"),
    (400, "TAG_INVALID"),
    (409, "TAG_EXISTS"),
    (400, "ImageTagAlreadyExistsException"),
]
OTHER = {"model.safetensors": b"other" * 5000}


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


class Memory(dict[str, Any]):
    """What a task remembers from one try to the next."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


def sent(server: OCIStandIn) -> int:
    """How many bytes of blobs have gone up."""
    return sum(request.received for request in server.find("PUT", UPLOAD))


@pytest.mark.parametrize("quirks", HOSTED.values(), ids=HOSTED)
def test_every_hosted_registry_takes_and_gives_a_model(tmp_path: Path, source: Path, quirks: Quirks) -> None:
    with OCIStandIn(quirks, repositories_exist=False) as server:
        Team.of(server).push(source, labels={"stage": "dev"})
        team = Team.of(server, repositories="digits, other")
        assert team.get().labels == {"stage": "dev"}
        assert team.label(stage="prod").labels == {"stage": "prod"}
        assert team.versions() == ["v1"]
        assert team.models() == ["digits:v1"]
        team.pull(tmp_path / "target")
        assert server.count("PATCH") == 0, "some take no pieces"
        assert server.errors == []
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.row("A5", "T19")
def test_the_storage_behind_a_registry_does_not_see_the_token(tmp_path: Path, source: Path) -> None:
    with OCIStandIn(HARBOR, redirects=True) as server:
        team = Team.of(server)
        team.push(source)
        team.pull(tmp_path / "target")
        reads = [request for request in server.requests if request.origin == "storage"]
    assert reads
    assert not any("authorization" in request.headers for request in reads)


def test_what_the_repository_has_is_not_sent(server: OCIStandIn, team: Team, source: Path) -> None:
    team.push(source)
    (source / "added.bin").write_bytes(b"added" * 100)
    before = sent(server)
    again = team.push(source, "digits:v2")
    config = 1000  # is another, by its time and version
    assert 500 < sent(server) - before < 500 + config
    assert again.transfer is not None
    assert not again.transfer.skipped


def test_equal_files_are_sent_once(server: OCIStandIn, team: Team, source: Path) -> None:
    team.push(source)
    assert sum(request.received == len(FILES["model.safetensors"]) for request in server.find("PUT", UPLOAD)) == 1


@pytest.mark.parametrize("how", ["option", "connection"])
def test_what_a_sibling_has_is_mounted(server: OCIStandIn, source: Path, how: str) -> None:
    first = Team.of(server)
    first.push(source, "base:v1")
    before = sent(server)
    options: dict[str, Any] = {"mount_from": ["base"]} if how == "option" else {}
    fields = {} if how == "option" else {"repositories": "base, digits"}
    Team.of(server, **fields).push(source, "digits:v1", options=options)
    assert sent(server) - before < 1000, "only the configuration is another"
    assert server.find("POST", "digits/blobs/uploads/$")[0].query["from"] == "team/base"


def test_a_mount_of_what_only_a_cache_still_knows_is_found_out(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    team.push(source, "base:v1")
    begin = team.registry._api.begin_upload

    def believing(name: str, digest: str, sibling: str | None = None) -> Flow[str | None]:
        location = yield from begin(name, digest)
        return None if sibling else location

    team.registry._api.begin_upload = believing  # type: ignore[method-assign]
    team.push(source, options={"mount_from": ["base"]})
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_a_token_for_a_mount_counts_for_both(source: Path) -> None:
    with OCIStandIn(HARBOR) as server:
        team = Team.of(server)
        team.push(source, "base:v1")
        team.push(source, "digits:v1", options={"mount_from": ["base", "none"]})
        assert ("repository:team/digits:pull,push", "repository:team/base:pull") in server.asked


def test_a_sibling_that_cannot_be_read_costs_nothing_but_a_word(
    server: OCIStandIn, team: Team, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault("GET", "/team/base/tags/list", Respond(403, b"no"), times=None)
    with caplog.at_level(logging.INFO, "modelsync"):
        team.push(source, options={"mount_from": ["base"]})
    assert "nothing is mounted from base" in caplog.text


def test_what_only_a_cache_still_knows_is_sent(server: OCIStandIn, team: Team, source: Path) -> None:
    ghost = digest_of(FILES["config.json"])
    server.ghosts.add(ghost)
    with pytest.raises(BeginAgain, match="has taken the manifest and does not have it"):
        team.push(source)
    assert ghost in server.repositories["team/digits"].blobs, "a HEAD would have said that it is there"
    server.ghosts.clear()
    team.push(source)


@pytest.mark.row("P3")
def test_blobs_that_are_collected_during_a_push_are_sent_again(server: OCIStandIn, team: Team, source: Path) -> None:
    server.fault(
        "PUT", "/manifests/v1", Respond(400, {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]})
    )
    pushed = team.push(source)
    assert pushed.digest == digest_directory(source)
    assert server.count("PUT", "/manifests/v1") == 2


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("fault", [Reset(10), LoseAnswer(), Respond(503, b"busy")], ids=["reset", "lost", "busy"])
@pytest.mark.row("T1")
def test_an_upload_that_breaks_off_is_begun_anew(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path, fault: Any, nth: int
) -> None:
    server.fault("PUT", UPLOAD, fault, nth=nth)
    team.push(source)
    places = [request.path for request in server.find("PUT", UPLOAD)]
    assert len(places) == len(set(places)), "no place was used twice"
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("code", ["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "DIGEST_INVALID"])
def test_a_place_that_is_lost_is_asked_for_anew(server: OCIStandIn, team: Team, source: Path, code: str) -> None:
    status = 400 if code == "DIGEST_INVALID" else 404
    server.fault("PUT", UPLOAD, Respond(status, {"errors": [{"code": code, "message": "lost"}]}))
    assert team.push(source).digest == digest_directory(source)


@pytest.mark.row("D3")
def test_what_changed_between_two_tries_is_found_out_by_the_registry(
    server: OCIStandIn, team: Team, in_memory: Path
) -> None:
    source = write_tree(in_memory / "source", {"large.bin": bytes(16 << 20)})  # whose hash is remembered
    memory = Memory()
    with mapped(source / "large.bin") as view:
        server.fault("PUT", UPLOAD, Respond(403, b"enough"), times=None)
        with pytest.raises(ModelSyncError):
            team.push(source, control=Control(checkpoint=memory))
        server.faults.clear()
        view[1000] ^= 1
        with pytest.raises(SourceChanged, match=r"'large\.bin' changed"):
            team.push(source, control=Control(checkpoint=memory))
        assert team.versions() == []
        assert team.push(source, control=Control(checkpoint=memory)).digest == digest_directory(source)


@pytest.mark.parametrize("path", [UPLOAD, "/manifests/"])
@pytest.mark.row("S5")
def test_a_last_answer_that_is_lost_makes_nothing_twice(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path, path: str
) -> None:
    pushed = team.push(source, "digits:v0")
    manifests = len(server.repositories["team/digits"].manifests)
    count = server.count("PUT", path)
    for nth in range(1, count + 1):
        with OCIStandIn() as other:
            other.fault("PUT", path, LoseAnswer(), nth=nth)
            assert Team.of(other).push(source, "digits:v0").digest == pushed.digest
            repository = other.repositories["team/digits"]
            assert (len(repository.manifests), list(repository.tags)) == (manifests, ["v0"])
    assert count


def test_bytes_that_were_taken_and_not_stored_are_no_success(server: OCIStandIn, team: Team, source: Path) -> None:
    server.fault("PUT", UPLOAD, Respond(202), times=None)
    with pytest.raises(RegistryUnavailable, match="has not stored it"):
        team.push(source)


@pytest.mark.row("P3")
def test_a_push_that_was_cut_goes_on_with_the_files_that_are_missing(
    server: OCIStandIn, team: Team, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "source", {f"{number}.bin": b"%d" % number * 5000 for number in range(6)})
    server.fault("PUT", UPLOAD, Respond(403, b"enough"), nth=4, times=None)
    with pytest.raises(ModelSyncError):
        team.push(source, control=Control(workers=1))
    server.faults.clear()
    before = sent(server)
    pushed = Team.of(server).push(source)
    assert pushed.transfer is not None
    assert pushed.transfer.resumed_bytes == 3 * 5000
    assert 3 * 5000 <= sent(server) - before < 3 * 5000 + 1000


def test_uploads_of_a_push_that_fails_for_good_are_ended(server: OCIStandIn, team: Team, source: Path) -> None:
    server.fault("PUT", UPLOAD, Respond(403, b"no"), times=None)
    with pytest.raises(ModelSyncError):
        team.push(source, control=Control(workers=1, is_last_try=True))
    assert server.uploads == {}


@pytest.mark.row("P4")
def test_a_cancelled_push_leaves_no_version(
    server: OCIStandIn, team: Team, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, cancels = server.arrived, 0
    token, left = CancelToken(), 0

    def cancelling(request: Request) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            token.cancel()
        arrived(request)

    for requests in range(1, 60, 4):
        token, left = CancelToken(), requests
        with monkeypatch.context() as patched:
            patched.setattr(server, "arrived", cancelling)
            with contextlib.suppress(Cancelled):
                team.push(source, control=Control(workers=1, cancel=token))
        if server.count("PUT", "/manifests/"):
            break
        cancels += 1
        assert team.versions() == []
    assert cancels > 3
    assert team.push(source).digest == digest_directory(source)


# ---- tags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), IMMUTABLE)
def test_a_tag_that_may_not_move_is_a_conflict_even_by_force(
    source: Path, tmp_path: Path, status: int, code: str
) -> None:
    with OCIStandIn(DISTRIBUTION, immutable=(status, code)) as server:
        team = Team.of(server)
        team.push(source)
        server.tag_rule = True
        other = write_model(tmp_path / "other", **OTHER)
        with pytest.raises(VersionConflict, match="does not let the tag move"):
            team.push(other, force=True)
        with pytest.raises(NotSupported, match="does not let the tag move"):
            team.label(stage="prod")
        assert was_skipped(team.push(source))
        assert team.push(source, "digits:v2").version == "v2"


@pytest.mark.row("D6")
def test_who_is_overtaken_by_another_push_hears_of_it(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", **OTHER)
    rival = Team.of(server)
    publish = team.registry.finish_push

    def overtaken(plan: Any) -> Flow[Any]:
        rival.push(other)
        return (yield from publish(plan))

    team.registry.finish_push = overtaken  # type: ignore[method-assign]
    with pytest.raises(VersionConflict, match=digest_directory(other)):
        team.push(source)
    assert team.get().digest == digest_directory(other)


def test_who_writes_last_wins_and_the_other_hears_of_it(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", **OTHER)
    rival = Team.of(server)
    put = team.registry._api.put_manifest

    def overwritten(*args: Any) -> Flow[Any]:
        done = yield from put(*args)
        rival.push(other, force=True)
        return done

    team.registry._api.put_manifest = overwritten  # type: ignore[method-assign]
    with pytest.raises(VersionConflict, match="another push has moved digits:v1"):
        team.push(source)
    assert team.get().digest == digest_directory(other)


def test_force_heals_what_is_missing_and_keeps_what_is_not_given(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    first = team.push(source, labels={"stage": "dev"}, metadata={"auc": 0.5})
    del server.repositories["team/digits"].blobs[digest_of(FILES["config.json"])]
    assert was_skipped(team.push(source))
    healed = team.push(source, force=True)
    assert not was_skipped(healed)
    assert (healed.labels, healed.metadata, healed.created_at) == (first.labels, first.metadata, first.created_at)
    assert was_skipped(team.push(source, force=True))
    assert team.push(source, force=True, metadata={"auc": 0.9}).metadata == {"auc": 0.9}
    team.pull(tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_force_takes_aliases_along(server: OCIStandIn, team: Team, source: Path, tmp_path: Path) -> None:
    team.push(source)
    team.alias("champion")
    team.push(write_model(tmp_path / "other", **OTHER), force=True)
    assert team.get("digits@champion").digest == team.get().digest
    tags = server.repositories["team/digits"].tags
    assert tags["champion"] == tags["v1"]


def test_labels_move_the_tag_and_its_aliases_and_say_so(
    server: OCIStandIn, team: Team, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = team.push(source)
    team.alias("champion")
    with caplog.at_level(logging.INFO, "modelsync"):
        labelled = team.label(stage="prod")
    assert (labelled.digest, labelled.created_at) == (first.digest, first.created_at)
    assert labelled.uri != first.uri
    assert "what was signed or pinned" in caplog.text
    assert team.get("digits@champion").labels == {"stage": "prod"}
    assert team.versions() == ["v1"]


def test_a_tag_of_another_tool_is_no_alias_and_cannot_become_one(server: OCIStandIn, team: Team, source: Path) -> None:
    of_another_tool(server, [layer(b"x", "a")], [b"x"], name="team/digits", tag="stable")
    team.push(source)
    with pytest.raises(InvalidInput, match="is a version itself"):
        team.alias("stable")
    with pytest.raises(NotSupported, match="pushed by another tool"):
        team.alias("champion", "digits:stable")
    with pytest.raises(ModelNotFound, match="is a version itself"):
        team.get("digits@stable")


def test_a_push_to_an_alias_is_a_conflict(team: Team, source: Path) -> None:
    team.push(source)
    team.alias("champion")
    with pytest.raises(VersionConflict, match="is an alias of the version v1"):
        team.push(source, "digits:champion")


# ---- deleting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delete", ["digest", "both", "untagged"])
def test_a_version_is_deleted_with_its_aliases_and_nothing_else(source: Path, tmp_path: Path, delete: str) -> None:
    with OCIStandIn(DISTRIBUTION, delete=delete) as server:
        team = Team.of(server)
        team.push(source)
        team.push(write_model(tmp_path / "other", **OTHER), "digits:v2")
        team.alias("champion")
        team.alias("next", "digits:v2")
        assert team.delete()
        assert not team.delete()
        assert team.versions() == ["v2"]
        assert team.get("digits@next").version == "v2"
        with pytest.raises(ModelNotFound):
            team.get("digits@champion")


@pytest.mark.parametrize(("delete", "is_refused"), [("digest", True), ("both", False)])
def test_another_tag_of_the_same_manifest_is_not_taken_along(source: Path, delete: str, is_refused: bool) -> None:
    with OCIStandIn(DISTRIBUTION, delete=delete) as server:
        team = Team.of(server)
        of_another_tool(server, [layer(b"x", "a")], [b"x"])
        tags = server.repositories["team/foreign"].tags
        tags["v2"] = tags["v1"]
        if is_refused:
            with pytest.raises(NotSupported, match="'v2' would go with it"):
                team.delete("foreign:v1")
            assert set(tags) == {"v1", "v2"}
        else:
            assert team.delete("foreign:v1")
            assert team.versions("foreign") == ["v2"]


@pytest.mark.parametrize("quirks", [GHCR, ECR], ids=["ghcr", "ecr"])
def test_registries_that_do_not_delete_say_so(source: Path, quirks: Quirks) -> None:
    with OCIStandIn(quirks, repositories_exist=False) as server:
        team = Team.of(server)
        team.push(source)
        with pytest.raises(NotSupported, match="does not delete over its API"):
            team.delete()


@pytest.mark.parametrize("delete", ["no", "hidden"])
def test_what_cannot_be_deleted_stays_as_it_is(server: OCIStandIn, team: Team, source: Path, delete: str) -> None:
    team.push(source)
    team.alias("champion")
    server.quirks = replace(server.quirks, delete=delete)
    before = dict(server.repositories["team/digits"].tags)
    with pytest.raises(NotSupported, match="does not delete over its API"):
        team.delete()
    with pytest.raises(NotSupported, match="does not delete over its API"):
        team.run(lambda registry: registry.delete_alias("digits", "champion"))
    assert server.repositories["team/digits"].tags == before
    assert team.versions() == ["v1"]


def test_what_a_rule_keeps_is_not_deleted(source: Path) -> None:
    with OCIStandIn(HARBOR) as server:
        team = Team.of(server)
        team.push(source)
        server.tag_rule = True
        with pytest.raises(NotSupported, match="the registry keeps it"):
            team.delete()
        assert team.versions() == ["v1"]


def test_a_proxy_that_takes_no_large_bodies_is_named(server: OCIStandIn, team: Team, source: Path) -> None:
    """As nginx in front of Harbor does: https://github.com/goharbor/harbor/issues/3270."""
    page = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
    server.fault("PUT", UPLOAD, Respond(413, page, {"Content-Type": "text/html"}), times=None)
    with pytest.raises(NotSupported, match="413") as caught:
        team.push(source, control=Control(workers=1))
    assert "raise its limit" in str(caught.value.remedy)
    assert server.count("PUT", UPLOAD) == 1


def test_a_repository_that_has_to_exist_is_asked_for(source: Path) -> None:
    with OCIStandIn(ECR) as server:
        with pytest.raises(InvalidInput, match="some registries want it to be made beforehand"):
            Team.of(server).push(source)


# ---- listing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.row("S11", of="calls")
def test_lists_are_read_to_their_end(source: Path, relative: bool) -> None:
    with OCIStandIn(DISTRIBUTION, page=2, relative=relative) as server:
        team = Team.of(server)
        for number in range(5):
            team.push(source, f"digits:v{number}")
            team.push(source, f"model{number}:v1")
        assert sorted(team.versions()) == [f"v{number}" for number in range(5)]
        assert len(team.models()) == 6
        assert team.versions("none") == []


@pytest.mark.row("S11", of="calls")
def test_a_list_that_leads_in_a_circle_or_elsewhere_ends(server: OCIStandIn, team: Team, source: Path) -> None:
    team.push(source)
    for link, error, message in [
        ('</v2/team/digits/tags/list?n=1000>; rel="next"', RegistryUnavailable, "leads back"),
        ('<http://elsewhere.example/v2/>; rel="next"', InvalidInput, "another server"),
    ]:
        server.faults.clear()
        body = b'{"name": "team/digits", "tags": ["v1"]}'
        server.fault("GET", "/tags/list", Respond(200, body, {"Link": link}), times=None)
        with pytest.raises(error, match=message):
            team.versions()


def test_tags_of_other_tools_are_no_versions(server: OCIStandIn, team: Team, source: Path) -> None:
    team.push(source)
    tags = server.repositories["team/digits"].tags
    for tag in ("latest", f"sha256-{'0' * 64}", f"sha256-{'0' * 64}.sig", f"sha256-{'0' * 64}.att"):
        tags[tag] = tags["v1"]
    assert team.versions() == ["v1"]
    assert team.delete(), "they are no versions that would be lost"


def test_a_registry_that_lists_nothing_wants_names(source: Path) -> None:
    with OCIStandIn(GAR) as server:
        team = Team.of(server)
        team.push(source)
        with pytest.raises(NotSupported, match="extra `repositories`"):
            team.models()
        named = Query(names=("digits", "none"))
        assert [one.name for one in team.run(lambda registry: registry.list_models(named))] == ["digits"]
        assert Team.of(server, repositories=["digits"]).models() == ["digits:v1"]


def test_waiting_asks_by_head_until_the_tag_moves(server: OCIStandIn, team: Team, source: Path) -> None:
    Team.of(server).push(source)
    for _ in range(3):
        team.get()
    assert server.count("GET", "/manifests/v1") == 3 + 1, "three of the push, one of ours"
    assert server.count("HEAD", "/manifests/v1") == 2
    Team.of(server).label(stage="prod")
    assert team.get().labels == {"stage": "prod"}


def test_a_pull_reads_the_tag_once_and_all_else_by_digest(
    server: OCIStandIn, team: Team, source: Path, tmp_path: Path
) -> None:
    Team.of(server).push(source)
    begun = len(server.requests)
    team.pull(tmp_path / "target")
    asked = [request.path for request in server.requests[begun:] if request.origin == "api"]
    assert sum("/manifests/" in path for path in asked) == 1
    assert all(BLOBS in path for path in asked if "/manifests/" not in path and path != "/v2/")


PAGES = {
    "ghcr.io": "https://ghcr.io/acme/digits",
    "docker.io": "https://hub.docker.com/r/acme/digits/tags",
    "registry.example": None,
}


@pytest.mark.parametrize(("host", "page"), PAGES.items())
def test_pages_for_people(server: OCIStandIn, team: Team, source: Path, host: str, page: str | None) -> None:
    version = team.push(source)
    assert Team(f"https://{host}/acme").registry.page_of(version) == page


def test_harbor_is_known_by_its_token_server(source: Path) -> None:
    with OCIStandIn(HARBOR) as server:
        team = Team.of(server)
        assert team.registry.page_of(team.push(source)) == f"{server.url}/harbor/projects"


# What a registry names as a place, and where that is.
PLACES = {
    "relative": ("https://r.test:8443", "/v2/x?_state=a", "https://r.test:8443/v2/x?_state=a"),
    "absolute": ("https://r.test", "https://r.test/v2/x", "https://r.test/v2/x"),
    "behind-tls": ("https://r.test:8443", "http://r.test/v2/x", "https://r.test:8443/v2/x"),
    "port-lost": ("https://r.test:8443", "http://r.test:5000/v2/x", "https://r.test:8443/v2/x"),
    "storage": ("https://r.test", "https://storage.test/x?sig=a", "https://storage.test/x?sig=a"),
}


@pytest.mark.parametrize(("host", "location", "place"), PLACES.values(), ids=PLACES)
def test_places_that_a_registry_names(host: str, location: str, place: str) -> None:
    api = Team(host).registry._api
    assert api.resolve(location, f"{host}/v2/a/blobs/uploads/") == place


@pytest.mark.parametrize("location", ["http://storage.test/x", "https://169.254.169.254/x", "https://127.0.0.1/x"])
@pytest.mark.row("A6", of="sends")
def test_places_where_nothing_is_sent(location: str) -> None:
    with pytest.raises(InvalidInput):
        Team("https://r.test").registry._api.resolve(location, "https://r.test/v2/a/blobs/uploads/")

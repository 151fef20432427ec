"""The Hub: what is read of it, what is pulled, and what that costs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    DigestMismatch,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
    UnsafeArchive,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.huggingface import files as hub_files
from airflow_provider_modelsync.core.registries.huggingface.patterns import HubPatterns
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.wait import find_version
from tests.core.registries.huggingface.hub import HEAD_LOOK, MIB, NAME, Worker
from tests.core.stores import hidden
from tests.standins.http_server import Answer, FlipBit, Refusal, Respond, Rewrite, Truncate
from tests.standins.huggingface import READ, HuggingFaceStandIn

CONFIGS = {f"config-{number}.json": b'{"n": %d}' % number for number in range(12)}
SHARDS = {f"model-{number}-of-3.safetensors": bytes([number]) * 1000 for number in (1, 2, 3)}
MODEL = {**CONFIGS, **SHARDS, "sub/a b#1?%41ü+.txt": b"odd", "empty.txt": b"", "sub/.gitattributes": b"mine"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path / "hub") as server:
        server.is_strict = True
        yield server


@pytest.fixture
def worker(server: HuggingFaceStandIn) -> Worker:
    return Worker(server)


def held(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# What is told


def test_a_version_is_a_commit_by_whatever_name_it_is_asked_for(server: HuggingFaceStandIn, worker: Worker) -> None:
    first, second = server.publish(NAME, MODEL), server.publish(NAME, {"a.txt": b"two"})
    repository = server.repositories[NAME]
    repository.branches["exp/one"] = repository.commits[first]
    repository.tags["v1.0"] = repository.commits[first]
    for model, commit in {
        NAME: second,
        f"{NAME}:latest": second,
        f"{NAME}:{first}": first,
        f"{NAME}:{first[:8]}": first,
        f"{NAME}:exp/one": first,
        f"{NAME}:v1.0": first,
    }.items():
        assert worker.get(model).ref == f"{NAME}:{commit}"
    version = worker.get(f"{NAME}:v1.0")
    assert (version.size_bytes, version.digest) == (sum(map(len, MODEL.values())), None)
    assert version.ready
    assert version.created_at is not None
    assert version.uri == worker.registry.page_of(version) == f"{server.url}/{NAME}/tree/{first}"


def test_what_the_model_card_says_is_metadata(server: HuggingFaceStandIn, worker: Worker) -> None:
    card = b"---\nlicense: mit\ntags: [vision]\nbase_model: acme/base\n---\n# card\n"
    server.publish(NAME, {"README.md": card})
    assert worker.get(NAME).metadata == {"license": "mit", "base_model": "acme/base", "tags": ["vision", "license:mit"]}


def test_commits_are_listed_in_the_order_of_history_with_their_tags(server: HuggingFaceStandIn, worker: Worker) -> None:
    commits = [server.publish(NAME, {"a.txt": b"%d" % number}, title=f"t{number}") for number in range(5)]
    repository = server.repositories[NAME]
    repository.tags["v1.0"] = repository.commits[commits[1]]
    server.page = 2
    late = {"date": "2030-01-01T00:00:00Z"}  # a clock that was wrong
    server.fault("GET", "/commits/main", Rewrite(lambda page: [page[0], page[1] | late]), nth=2)
    listed = worker.run(worker.registry.list_versions(NAME, Query()))
    assert [version.version for version in listed] == commits[::-1]
    assert [version.age_key for version in listed] == sorted((v.age_key for v in listed), reverse=True)
    assert (listed[3].metadata, listed[3].aliases) == ({"title": "t1"}, ("v1.0",))


def test_what_the_hub_makes_with_a_repository_is_no_version(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.create(NAME)
    assert worker.run(worker.registry.list_versions(NAME, Query())) == []
    assert worker.run(worker.registry.list_models(Query(names=("acme/*",)))) == []
    with pytest.raises(ModelNotFound):
        worker.get(NAME)
    assert worker.run(worker.registry.list_versions("acme/absent", Query())) == []


def test_a_renamed_model_is_followed_and_called_by_its_new_name(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    commit = server.publish(NAME, MODEL)
    server.rename(NAME, "acme/new")
    assert worker.get(NAME).ref == f"acme/new:{commit}"
    worker.pull(f"{NAME}:{commit}", tmp_path / "target")
    assert held(tmp_path / "target") == MODEL
    listed = worker.run(worker.registry.list_models(Query(names=(NAME,))))
    assert [version.name for version in listed] == [NAME]  # as it is asked for: a sync goes on under it


@pytest.mark.parametrize(
    ("names", "words", "listed"),
    [
        ((NAME, "acme/tw*"), (), ["acme/fraud", "acme/two"]),
        (("acme/*",), (), ["acme/fraud", "acme/three", "acme/two"]),
        (("*",), (), ["alice/own"]),  # of the connection's namespace
        ((), ("acme/t",), ["acme/three", "acme/two"]),
        ((), ("ow",), ["alice/own"]),
        ((), (), ["alice/own"]),
        (("acme/absent",), (), []),
    ],
)
def test_names_and_globs_reach_the_listing(
    server: HuggingFaceStandIn, names: tuple[str, ...], words: tuple[str, ...], listed: list[str]
) -> None:
    for name in (NAME, "acme/two", "acme/three", "alice/own"):
        server.publish(name, {"a.txt": b"a"})
    server.page = 2
    worker = Worker(server, namespace="alice")
    found = worker.run(worker.registry.list_models(Query(names=names, words=words)))
    assert sorted(version.name for version in found) == listed
    assert all("author" in request.query for request in server.find("GET", "/api/models$"))


@pytest.mark.parametrize("query", [Query(), Query(names=("*",)), Query(names=("*/fraud",))])
def test_the_whole_hub_is_never_listed(server: HuggingFaceStandIn, worker: Worker, query: Query) -> None:
    with pytest.raises(InvalidInput, match="the whole Hub"):
        worker.run(worker.registry.list_models(query))
    assert server.requests == []


def test_pages_that_name_their_upstream_are_asked_of_the_mirror(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.publish(NAME, MODEL)
    server.page, server.upstream = 4, "https://huggingface.invalid"
    assert worker.run(worker.registry.with_digest(worker.get(NAME))).digest is not None
    assert server.count("GET", "/tree/") > 2


@pytest.mark.row("S11", of="calls")
def test_pages_in_a_circle_end(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.publish(NAME, MODEL)
    link = {"Link": f'<{server.url}/api/models/{NAME}/commits/main?cursor=1>; rel="next"'}
    server.fault("GET", "/commits/", Respond(200, b"[]", {**link, "Content-Type": "application/json"}), times=None)
    with pytest.raises(RegistryUnavailable, match="circle"):
        worker.run(worker.registry.list_versions(NAME, Query()))


@pytest.mark.parametrize(
    ("token", "said"),
    [("hf_write_token", "as alice of acme"), (None, "without a token: only public models"), ("hf_bad", None)],
)
def test_the_connection_test_says_who(server: HuggingFaceStandIn, token: str | None, said: str | None) -> None:
    worker = Worker(server, token=token)
    if said is None:
        with pytest.raises(Unauthorized, match="does not accept the token"):
            worker.run(worker.registry.test())
    else:
        assert said in worker.run(worker.registry.test())


# What is refused


@pytest.mark.row("A1", "A3", of="calls")
def test_each_refusal_has_its_error(server: HuggingFaceStandIn, tmp_path: Path) -> None:
    server.publish(NAME, MODEL)
    server.create("alice/secret", private=True)
    server.publish("acme/gated", MODEL)
    server.repositories["acme/gated"].gated = "manual"
    cases: list[tuple[str | None, str, type[ModelSyncError], str]] = [
        (None, "alice/secret", ModelNotFound, "no ready version"),
        (None, f"alice/secret:{'0' * 40}", ModelNotFound, "somebody without a token may not see it"),
        (READ, f"alice/absent:{'0' * 40}", ModelNotFound, "this token may not see it"),
        (READ, f"{NAME}:absent", ModelNotFound, "no such commit, branch or tag"),
        (None, "acme/gated", Unauthorized, "gated and cannot be had without a token; ask for access at .*/acme/gated"),
        (READ, "acme/gated", Unauthorized, "gated and cannot be had with this token; ask for access at .*/acme/gated"),
        ("hf_bad", f"{NAME}:main", Unauthorized, "does not accept the token"),
    ]
    for number, (token, model, error, words) in enumerate(cases):
        with pytest.raises(error, match=words):
            Worker(server, token=token).pull(model, tmp_path / f"target-{number}")
        assert not (tmp_path / f"target-{number}").exists()
    assert server.count("GET", "/lfs/") == 0


@pytest.mark.row("A8")
def test_no_token_is_in_errors_logs_or_reprs(
    server: HuggingFaceStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.publish(NAME, MODEL)
    server.fault("GET", "/api/models/", Respond(403, b"no entry with hf_very_secret"), times=None)
    worker = Worker(server, token="hf_very_secret")
    with pytest.raises(ModelSyncError) as caught:
        worker.pull(NAME, tmp_path / "target")
    shown = [str(caught.value), repr(caught.value), caplog.text, repr(worker.registry.settings)]
    assert not [text for text in shown if "hf_very_secret" in text]


def test_a_gated_model_is_pulled_by_who_was_let_in(server: HuggingFaceStandIn, tmp_path: Path) -> None:
    server.publish("acme/gated", MODEL)
    server.repositories["acme/gated"].gated = "auto"
    server.repositories["acme/gated"].let_in.add("bob")
    Worker(server, token=READ).pull("acme/gated", tmp_path / "target")
    assert held(tmp_path / "target") == MODEL


def test_a_disabled_model_is_refused(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    commit = server.publish(NAME, MODEL)
    server.repositories[NAME].disabled = True
    with pytest.raises(NotSupported, match="disabled"):
        worker.pull(NAME, tmp_path / "target")
    server.fault("*", "", Respond(403, b"", {"X-Error-Message": "Access to this resource is disabled."}), times=None)
    for flow in (worker.registry.read_version(NAME, "0" * 40), worker.registry.alias(NAME, "main")):
        with pytest.raises(NotSupported, match="disabled"):
            worker.run(flow)
    with pytest.raises(NotSupported, match="disabled"):
        worker.pull(f"{NAME}:{commit}", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("level", ["unsafe", "suspicious"])
def test_what_a_scan_warns_of_is_refused_unless_it_is_left_out(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, level: str
) -> None:
    server.publish(NAME, {**MODEL, "bad.pkl": b"cos\nsystem"})
    server.repositories[NAME].issues["bad.pkl"] = level
    with pytest.raises(UnsafeArchive, match=f"'bad.pkl' {level}"):
        worker.pull(NAME, tmp_path / "target")
    assert server.count("*", "/resolve/") == 0
    worker.pull(NAME, tmp_path / "target", exclude=["*.pkl"])
    assert held(tmp_path / "target") == MODEL


def test_a_file_that_is_not_served_whole_is_refused_before_a_byte(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)

    def grow(entries: Any) -> Any:
        return [entry | {"size": 50 * 10**9 + 1} if "1-of-3" in entry["path"] else entry for entry in entries]

    server.fault("GET", "/tree/", Rewrite(grow), times=None)
    with pytest.raises(NotSupported, match="no file above 50000000000"):
        worker.pull(NAME, tmp_path / "target")
    assert server.count("*", "/resolve/") == 0
    worker.pull(NAME, tmp_path / "target", exclude=["*1-of-3*"])


@pytest.mark.parametrize("path", ["../up", "/abs", "a/../b", "a\nb", ".modelsync/x", "sub"])
@pytest.mark.row("H1")
def test_names_that_no_model_may_hold_are_refused(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, path: str
) -> None:
    server.publish(NAME, MODEL)
    odd = {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
    server.fault("GET", "/tree/", Rewrite(lambda entries: [*entries, odd]), times=None)
    with pytest.raises(UnsafeArchive):
        worker.pull(NAME, tmp_path / "target")


def test_names_and_revisions_are_checked_before_anything_is_asked(server: HuggingFaceStandIn, worker: Worker) -> None:
    good = ["gpt2", "a/b", "A_b.c/x-y_z.1", f"a/{'x' * 96}", "a/b:refs/pr/1", "a/b:v1.0", "a/b:exp/one"]
    bad = ["a/b/c", "-a/b", "a/b.", "a--b/c", "a..b", "a/b.git", "a/", "/b", f"a/{'x' * 97}", "a b", "größe/x"]
    bad += ["datasets/x", "a/b:..", "a/b:x y", "a/b:a^", "a/b:/x", "a/b:x/", "a/b:x.lock", "a/b:-x"]
    for model in good:
        worker.registry.parse(model)
    for model in bad:
        with pytest.raises(InvalidInput):
            worker.registry.parse(model)
    assert server.requests == []


# What comes down


@pytest.mark.parametrize("small_redirects", [True, False])
def test_a_pull_costs_one_page_of_the_tree_and_two_requests_a_file(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, small_redirects: bool
) -> None:
    model = {**CONFIGS, **SHARDS}
    server.small_redirects = small_redirects
    commit = server.publish(NAME, model)
    pulled = worker.pull(f"{NAME}:{commit}", tmp_path / "target")
    assert held(tmp_path / "target") == model
    assert pulled.digest == pulled.version.digest == digest_directory(tmp_path / "target")
    assert server.count("GET", f"/api/models/{NAME}/revision/{commit}$") == 1
    assert server.count("GET", "/tree/") == 1
    assert server.count("HEAD", "/resolve/") == len(SHARDS)
    assert server.count("*", "/resolve") <= 2 * len(CONFIGS) + len(SHARDS)
    assert len(server.requests) - 2 <= 2 * len(model)


@pytest.mark.row("S9")
def test_after_the_first_question_only_the_commit_is_asked_for(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)
    worker.pull(NAME, tmp_path / "target")
    assert server.count("*", "/main(/|$)") == 1


@pytest.mark.row("A5", "T12")
def test_bytes_are_asked_for_as_they_are_and_no_credential_leaves_the_hub(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, {**MODEL, "large.bin": b"x" * (9 * MIB)})
    worker.pull(NAME, tmp_path / "target")
    bytes_of = server.find("*", "/resolve|/lfs/")
    assert {request.headers["accept-encoding"] for request in bytes_of} == {"identity"}
    assert all("authorization" not in request.headers for request in server.find("*", "^/lfs/"))
    assert all("authorization" in request.headers for request in server.find("*", "/resolve"))
    assert all("if-match" not in request.headers for request in server.requests)
    assert server.count("HEAD", "/resolve/.*/large.bin") == 1  # however many ranges


def test_a_pull_again_compares_and_asks_for_no_file(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    commit = server.publish(NAME, MODEL)
    worker.pull(NAME, tmp_path / "target")
    before = len(server.requests)
    again = Worker(server).pull(NAME, tmp_path / "target")
    assert again.version.transfer is not None
    assert again.version.transfer.skipped
    assert [request.path for request in server.requests[before:]] == [f"/api/models/{NAME}/revision/main"]
    assert again.version.ref == f"{NAME}:{commit}"
    assert again.digest == again.version.digest == digest_directory(tmp_path / "target")


def test_a_target_that_somebody_else_has_filled_is_compared_by_hashes(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)
    for path, content in MODEL.items():
        (tmp_path / "target" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "target" / path).write_bytes(content)
    pulled = worker.pull(NAME, tmp_path / "target")
    assert pulled.version.transfer is not None
    assert pulled.version.transfer.skipped
    assert server.count("GET", "/lfs/") == 0


def test_the_next_commit_replaces_what_was_pulled(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    server.publish(NAME, MODEL)
    worker.pull(NAME, tmp_path / "target")
    server.publish(NAME, {"a.txt": b"two"})
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == {"a.txt": b"two"}


def test_files_are_chosen_by_the_patterns_of_the_hub(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)
    pulled = worker.pull(NAME, tmp_path / "target", include=["*.safetensors", "sub/"], exclude=["*-2-*"])
    wanted = {
        path for path in MODEL if path.startswith("sub/") or path.endswith(("1-of-3.safetensors", "3-of-3.safetensors"))
    }
    assert held(tmp_path / "target").keys() == wanted
    assert pulled.is_partial
    assert server.count("*", "config-") == 0


@pytest.mark.parametrize(
    ("pattern", "path", "takes"),
    [
        ("*.json", "deep/er/a.json", True),  # where it crosses what separates directories
        ("a.json", "deep/a.json", False),  # and where .gitignore would find it at any depth
        ("sub/", "sub/deep/a", True),
        ("sub", "sub/a", False),
        ("su?/*", "sub/a/b", True),
        ("[ab].txt", "a.txt", True),
        ("A.TXT", "a.txt", False),
    ],
)
def test_a_pattern_means_what_it_means_to_the_hubs_own_client(pattern: str, path: str, takes: bool) -> None:
    assert HubPatterns([pattern]).takes(path) is takes
    assert HubPatterns(None, [pattern]).takes(path) is not takes


@pytest.mark.parametrize("path", ["config-3.json", "model-1-of-3.safetensors", "large.bin"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.row("T11")
def test_a_wrong_bit_is_read_once_more_and_never_accepted(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, path: str, times: int
) -> None:
    model = {**MODEL, "large.bin": bytes(range(256)) * 4096 * 20}
    server.publish(NAME, model)
    where = (
        "resolve-cache/.*config-3.json"
        if path.startswith("config")
        else f"/lfs/{hashlib.sha256(model[path]).hexdigest()}"
    )
    # Of the large file, the first request only asks whether there are ranges.
    server.fault("GET", where, FlipBit(3), nth=2 if path == "large.bin" else 1, times=1 if times == 1 else None)
    if times == 1:
        worker.pull(NAME, tmp_path / "target")
        assert held(tmp_path / "target") == model
        assert server.count("GET", "/lfs/|resolve-cache") < 2 * len(model)  # nothing else was read again
    else:
        with pytest.raises(DigestMismatch, match="seen twice"):
            worker.pull(NAME, tmp_path / "target")
        assert not (tmp_path / "target").exists()
        assert hidden(tmp_path) == []


@pytest.mark.row("A4")
def test_a_signed_address_that_has_expired_is_renewed(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)
    server.fault("GET", "/lfs/", Respond(403, b"<Error><Code>AccessDenied</Code></Error>"))
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL
    assert server.count("HEAD", "/resolve/") == len(SHARDS) + 1


@pytest.mark.row("T2")
def test_a_cut_answer_is_asked_for_again(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    server.publish(NAME, MODEL)
    server.fault("GET", "/lfs/", Truncate(100))
    server.fault("GET", "resolve-cache", Truncate(2), nth=3)
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL


@pytest.mark.row("P2")
def test_the_next_try_of_an_interrupted_pull_fetches_what_is_missing(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    model = {"config.json": b"{}", "large.bin": bytes(range(256)) * 4096 * 40}
    commit = server.publish(NAME, model)
    cancel = CancelToken()
    control = Control(workers=1, cancel=cancel, on_progress=lambda report: None)
    stop = server.cdn

    def stopping(request: Any, body: Any) -> Any:
        if server.count("GET", "/lfs/") == 3:
            cancel.cancel()
        return stop(request, body)

    for running in server._servers:
        if running.origin == "cdn":
            running.answer = stopping
    with pytest.raises(Cancelled):
        worker.pull(f"{NAME}:{commit}", tmp_path / "target", control=control)
    pulled = Worker(server).pull(f"{NAME}:{commit}", tmp_path / "target")
    assert held(tmp_path / "target") == model
    assert pulled.version.transfer is not None
    assert pulled.version.transfer.resumed_bytes >= 16 * MIB


def test_a_mirror_that_sends_on_to_the_hub_by_308_is_followed_without_the_token(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    with HuggingFaceStandIn(tmp_path / "hub") as hub:
        commit = server.publish(NAME, MODEL)
        assert hub.publish(NAME, MODEL) == commit

        def sending_on(request: Any, body: Any) -> Any:
            if "/resolve/" in request.path:
                raise Refusal(Answer(308, b"", {"Location": f"{hub.url}{request.raw}"}))
            return HuggingFaceStandIn.answer(server, request, body)

        server._servers[0].answer = sending_on
        worker.pull(f"{NAME}:{commit}", tmp_path / "target")
        assert held(tmp_path / "target") == MODEL
        assert hub.count("GET", "/resolve/") > 0
        assert [request for request in hub.find() if "authorization" in request.headers] == []


def test_a_cdn_that_knows_no_ranges_is_read_whole(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    model = {**MODEL, "large.bin": bytes(range(256)) * 4096 * 20}
    server.publish(NAME, model)
    for running in server._servers:
        if running.origin == "cdn":
            serve = running.answer

            def whole(request: Any, body: Any, serve: Any = serve) -> Any:
                request.headers.pop("range", None)
                return serve(request, body)

            running.answer = whole
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == model


def test_a_file_of_which_the_storage_has_less_is_never_accepted(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    model = {**MODEL, "large.bin": bytes(range(256)) * 4096 * 20}
    server.publish(NAME, model)
    place = server.objects / hashlib.sha256(model["large.bin"]).hexdigest()
    place.write_bytes(model["large.bin"][: 17 * MIB])  # where the last range begins there is nothing: 416
    with pytest.raises(ModelSyncError):
        worker.pull(NAME, tmp_path / "target")
    assert not (tmp_path / "target").exists()


# Rate limits


@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", "/resolve/.*safetensors"), ("GET", "/resolve/.*json"), ("GET", "/resolve-cache/"), ("GET", "/tree/")],
)
@pytest.mark.parametrize("headers", [{"RateLimit": '"resolvers";r=0;t=1'}, {"RateLimit": '"resolvers";r=7;t=250'}, {}])
def test_a_pull_goes_on_when_the_quota_begins_anew(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, method: str, path: str, headers: dict[str, str]
) -> None:
    server.publish(NAME, MODEL)
    server.fault(method, path, Respond(429, b"<html>slow down</html>", headers))
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL


def test_a_pull_that_would_have_to_wait_for_long_is_left_to_the_next_try(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, CONFIGS)
    limit = {"RateLimit": '"resolvers";r=0;t=301'}
    server.fault("GET", "/resolve/", Respond(429, b"", limit), times=None)
    with pytest.raises(RegistryUnavailable, match="wait 301 s, which is too long"):
        worker.pull(NAME, tmp_path / "target")
    assert server.count("GET", "/resolve/") <= len(CONFIGS), "each is asked for once, and nobody waits"


def test_a_used_up_quota_is_waited_for(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.publish(NAME, MODEL)
    limit = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
    server.fault("GET", "/revision/", Respond(429, {"error": "slow down"}, limit))
    assert worker.get(NAME).ready
    assert server.count("GET", "/revision/") == 2


def test_a_quota_that_is_used_up_for_long_is_left_to_the_next_try(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.publish(NAME, MODEL)
    server.quotas, server.reset = {"api": 0}, 300
    with pytest.raises(RegistryUnavailable, match="wait 300 s"):
        worker.get(f"{NAME}:main")
    assert len(server.requests) == 1


# Mirrors


def test_a_mirror_that_loses_headers_serves_all_the_same(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    model = {**MODEL, "large.bin": bytes(range(256)) * 4096 * 20}
    server.publish(NAME, model)
    server.hidden = {"x-repo-commit", "etag", "x-linked-etag", "x-linked-size", "content-length", "content-range"}
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == model
    assert worker.get(NAME).ref == worker.get(NAME).ref


def test_large_files_that_a_mirror_serves_itself_are_read_there(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    model = {**MODEL, "weights.txt": b"y" * (9 * MIB)}
    server.publish(NAME, model)
    tree = server.repositories[NAME].head.tree
    path = next(iter(SHARDS))
    content = SHARDS[path]
    serve = server.resolve

    def resolve(request: Any, body: Any, user: Any, name: str, revision: str, path: str) -> Any:
        file = tree.get(path)
        if file is not None and file.sha256:
            return server.small(request, replace(file, content=(server.objects / file.sha256).read_bytes()), {})
        return serve(request, body, user, name, revision, path)

    server.routes = tuple(
        (
            method,
            pattern,
            (lambda self, *args, **parts: resolve(*args, **parts))
            if pattern.endswith("/resolve/(?P<revision>[^/]+)/(?P<path>.+)") and "api" not in pattern
            else serves,
        )
        for method, pattern, serves in server.routes
    )
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target")[path] == content
    assert server.count("*", "^/lfs/") == 0


def test_hashes_that_another_server_tells_of_small_files_are_told_apart(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)

    def by_sha256(entries: Any) -> Any:
        return [
            entry | {"oid": hashlib.sha256(MODEL[entry["path"]]).hexdigest()} if entry["path"] in CONFIGS else entry
            for entry in entries
        ]

    server.fault("GET", "/tree/", Rewrite(by_sha256), times=None)
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL


def at_a_path(server: HuggingFaceStandIn, prefix: str) -> str:
    """Have the Hub be reached below a path, too, as behind a proxy that knows repositories of several kinds."""

    def answer(request: Any, body: Any) -> Any:
        if not request.raw.startswith(prefix):
            return Answer(404, b"<html>no such repository</html>", {"Content-Type": "text/html"})
        request.raw = request.raw.removeprefix(prefix)
        told = server.answer(request, body)
        moved = {
            name: value.replace(f"{server.url}/", f"{server.url}{prefix}/") if name == "Link" else value
            for name, value in told.headers.items()
        }
        return replace(told, headers=moved)

    server._servers[0].answer = answer
    return f"{server.url}{prefix}"


def test_the_base_url_may_have_a_path(server: HuggingFaceStandIn, tmp_path: Path) -> None:
    server.small_redirects, server.page = False, 4
    server.publish(NAME, MODEL)
    worker = Worker(server, host=at_a_path(server, "/artifactory/api/huggingfaceml/hub"))
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL
    pushed = worker.push(tmp_path / "target", "acme/copy:v1")
    assert server.tree("acme/copy", "v1") == MODEL
    assert worker.get("acme/copy@v1").version == pushed.version
    assert [found.name for found in worker.run(worker.registry.list_models(Query(names=("acme/c*",))))] == ["acme/copy"]
    assert all(request.path.startswith("/artifactory/") for request in server.find() if request.origin == "api")


def test_refusals_without_words_are_understood_by_their_headers(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    """So answers KohakuHub, whose missing models are 404 for somebody without a token, too."""
    for token in (None, READ):
        for code, words in {
            "RepoNotFound": "it does not exist, or",
            "RevisionNotFound": "no such commit, branch or tag",
            "EntryNotFound": "no such file",
        }.items():
            server.faults.clear()
            server.fault("*", "", Respond(404, b"", {"X-Error-Code": code}), times=None)
            with pytest.raises(ModelNotFound, match=words):
                Worker(server, token=token).pull(f"{NAME}:{'0' * 40}", tmp_path / "target")


def test_what_a_server_tells_of_the_newest_files_is_not_taken_for_an_older_commit(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    """KohakuHub tells the ids of the newest files, whatever the revision."""
    first = server.publish(NAME, {"config.json": b"1", "same.json": b"same"})
    second = server.publish(NAME, {"config.json": b"2", "same.json": b"same"})
    newest = {path: hashlib.sha256(content).hexdigest() for path, content in server.tree(NAME).items()}
    told = Rewrite(lambda entries: [entry | {"oid": newest.get(entry["path"], entry["oid"])} for entry in entries])
    server.fault("GET", "/tree/", told, times=None)
    worker.pull(f"{NAME}:{second}", tmp_path / "second")
    assert held(tmp_path / "second") == server.tree(NAME)
    with pytest.raises(DigestMismatch, match=r"'config\.json' do not match the hash that its registry tells"):
        worker.pull(f"{NAME}:{first}", tmp_path / "first")
    worker.pull(f"{NAME}:{first}", tmp_path / "first", include=["same.json"])
    assert held(tmp_path / "first") == {"same.json": b"same"}


def test_files_in_chunks_of_the_hubs_own_are_pulled_as_any(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)

    def chunked(entries: Any) -> Any:
        return [entry | ({"xetHash": "ab" * 32} if "lfs" in entry else {}) for entry in entries]

    server.fault("GET", "/tree/", Rewrite(chunked), times=None)
    worker.pull(NAME, tmp_path / "target")
    assert held(tmp_path / "target") == MODEL
    assert server.count("*", "/xet-") == 0


def test_a_pull_request_is_read_by_its_name(server: HuggingFaceStandIn, worker: Worker, tmp_path: Path) -> None:
    commit = server.publish(NAME, MODEL)
    server.publish(NAME, {"a.txt": b"a"})
    repository = server.repositories[NAME]
    repository.pulls["refs/pr/1"] = repository.commits[commit]
    for model in (f"{NAME}:refs/pr/1", f"{NAME}@refs/pr/1"):
        assert worker.get(model).ref == f"{NAME}:{commit}"


# The digest of what others have pushed


def test_a_mirror_that_has_small_files_elsewhere_gets_them_read_without_the_token(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    with HuggingFaceStandIn(tmp_path / "hub") as hub:
        commit = server.publish(NAME, MODEL)
        assert hub.publish(NAME, MODEL) == commit
        serve = server.answer

        def sending_on(request: Any, body: Any) -> Any:
            if "/resolve/" in request.path and request.method == "GET":
                return Answer(307, b"", {"Location": f"{hub.url}{request.raw}"})
            return serve(request, body)

        server._servers[0].answer = sending_on
        assert worker.run(worker.registry.with_digest(worker.get(NAME))).digest is not None
        assert hub.count("GET", "/resolve") > 0
        assert not [request for request in hub.find() if {"authorization", "cookie"} & request.headers.keys()]


def test_the_digest_is_found_out_by_reading_small_files_only(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    server.publish(NAME, MODEL)
    digest = worker.run(worker.registry.with_digest(worker.get(NAME))).digest
    assert server.count("*", "/lfs/") == 0
    worker.pull(NAME, tmp_path / "target")
    assert digest == digest_directory(tmp_path / "target")


def test_the_digest_of_too_many_small_files_stays_unknown(
    server: HuggingFaceStandIn, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, MODEL)
    monkeypatch.setattr(hub_files, "_MOST_READ", 5)
    assert worker.run(worker.registry.with_digest(worker.get(NAME))).digest is None
    assert server.count("*", "/resolve") == 0


# Waiting


def test_who_looks_again_pays_one_request_of_a_resolver(server: HuggingFaceStandIn, worker: Worker) -> None:
    first = server.publish(NAME, MODEL)

    def look() -> Any:
        return worker.run(find_version(worker.registry, NAME, Query(), newer_than=first))

    assert look() is None
    before = len(server.requests)
    for _ in range(3):
        assert look() is None
    looks = server.requests[before:]
    assert len(looks) == 3
    assert all(request.matches("HEAD", re.compile(HEAD_LOOK), None) for request in looks)
    second = server.publish(NAME, {"a.txt": b"two"})
    assert look().version == second


def test_a_tag_that_is_not_there_yet_is_looked_for_by_a_resolver(server: HuggingFaceStandIn, worker: Worker) -> None:
    first = server.publish(NAME, MODEL)

    def look() -> Any:
        return worker.run(find_version(worker.registry, f"{NAME}:v1", Query()))

    assert look() is None
    before = len(server.requests)
    assert look() is None
    assert [request.method for request in server.requests[before:]] == ["HEAD"]
    repository = server.repositories[NAME]
    repository.tags["v1"] = repository.commits[first]
    assert look().version == first


def test_a_branch_that_is_set_back_brings_nothing_newer(server: HuggingFaceStandIn, worker: Worker) -> None:
    first, second = server.publish(NAME, MODEL), server.publish(NAME, {"a.txt": b"two"})
    repository = server.repositories[NAME]
    repository.branches["main"] = repository.commits[first]
    assert worker.run(find_version(worker.registry, NAME, Query(), newer_than=second)) is None


def test_a_commit_with_an_old_date_is_newer_by_its_place(server: HuggingFaceStandIn, worker: Worker) -> None:
    first = server.publish(NAME, MODEL)
    second = server.publish(NAME, {"a.txt": b"two"})
    old = Rewrite(lambda info: info | {"lastModified": "2001-01-01T00:00:00Z"})
    server.fault("GET", "/revision/main", old, times=None)
    found = worker.run(find_version(worker.registry, NAME, Query(), newer_than=first))
    assert found.version == second


def test_a_listing_is_read_again_once_the_head_has_moved(server: HuggingFaceStandIn, worker: Worker) -> None:
    server.publish(NAME, MODEL)

    def listed() -> int:
        return len(worker.run(worker.registry.list_versions(NAME, Query())))

    assert listed() == 1
    before = len(server.requests)
    assert listed() == 1
    assert [request.method for request in server.requests[before:]] == ["HEAD"]
    server.publish(NAME, {"a.txt": b"two"})
    assert listed() == 2

"""The Hub: what goes up, what stays, and what a lost answer is taken for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Retryable,
    Unauthorized,
    VersionConflict,
)
from airflow_provider_modelsync.core.registries.huggingface import push as pushing
from tests.core.registries.huggingface.hub import NAME, Worker
from tests.core.stores import write_tree
from tests.standins.http_server import Answer, LoseAnswer, Reset, Respond, Rewrite, json_answer
from tests.standins.huggingface import READ, WRITE, HuggingFaceStandIn

MODEL = {"config.json": b"{}", "weights.bin": b"w" * 5000, "sub/a b#1?%41ü+.txt": b"odd", "empty.txt": b""}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HuggingFaceStandIn]:
    with HuggingFaceStandIn(tmp_path / "hub", chunk_size=2000) as server:
        server.is_strict = True
        yield server


@pytest.fixture
def worker(server: HuggingFaceStandIn) -> Worker:
    return Worker(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", MODEL)


def commits(server: HuggingFaceStandIn) -> list[str]:
    return [commit.id for commit in server.repositories[NAME].head.history()]


def test_a_push_makes_the_model_and_one_commit(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    pushed = worker.push(source, NAME)
    repository = server.repositories[NAME]
    assert server.tree(NAME) == MODEL
    assert pushed.version == repository.head.id
    assert pushed.digest == digest_directory(source)
    assert pushed.transfer is not None
    assert pushed.transfer.sent_bytes == sum(map(len, MODEL.values()))
    assert repository.private, "nobody else sees it unless that is asked for"
    assert len(commits(server)) == 2
    bodies = [request.body for request in server.find("POST", "/commit/main")]
    assert b'"parentCommit"' in bodies[0]


def test_what_is_asked_of_lfs_is_plain(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    worker.push(source, NAME)
    (batch,) = server.find("POST", "/objects/batch")
    assert batch.body["transfers"] == ["basic", "multipart"]
    assert batch.headers["accept"] == batch.headers["content-type"] == "application/vnd.git-lfs+json"
    for request in server.find("PUT"):
        assert request.headers.keys() <= {"host", "accept-encoding", "user-agent", "content-length"}
        assert int(request.headers["content-length"]) <= 2000
    assert server.count("POST", "/complete_multipart") == server.count("POST", "/objects/verify") == 1


@pytest.mark.parametrize("options", [{}, {"private": False, "branch": "exp/one", "message": "mine"}])
def test_options_decide_where_and_who_sees_it(
    server: HuggingFaceStandIn, worker: Worker, source: Path, options: dict[str, Any]
) -> None:
    pushed = worker.push(source, NAME, options=options)
    repository = server.repositories[NAME]
    assert repository.private == options.get("private", True)
    head = repository.branches[options.get("branch", "main")]
    assert (head.id, head.title) == (pushed.version, options.get("message", "Push 4 files"))


def test_the_same_files_again_are_no_second_commit(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    first = worker.push(source, NAME)
    again = Worker(server).push(source, NAME)
    assert again.ref == first.ref
    assert again.digest == first.digest
    assert again.transfer is not None
    assert again.transfer.skipped
    assert len(commits(server)) == 2


def test_only_what_differs_goes_up_and_what_is_gone_is_removed(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(source, NAME)
    before = len(server.requests)
    other = {"config.json": b'{"a": 1}', "weights.bin": MODEL["weights.bin"], "more.bin": b"m" * 100}
    worker.push(write_tree(tmp_path / "other", other), NAME)
    assert server.tree(NAME) == other
    sent = [request.path for request in server.requests[before:] if request.method == "PUT"]
    assert sent == [f"/put/{hashlib.sha256(b'm' * 100).hexdigest()}"]


def test_an_object_that_an_older_version_has_is_not_sent_again(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(source, NAME)
    worker.push(write_tree(tmp_path / "other", {"config.json": b"1"}), NAME)
    before = server.count("PUT")
    worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert server.count("PUT") == before


def test_what_the_site_has_added_stays(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(source, NAME)
    server.publish(NAME, {"README.md": b"# written on the site\n"}, keep=True)
    attributes = server.repositories[NAME].head.tree[".gitattributes"]
    other = write_tree(tmp_path / "other", {"weights.bin": b"v" * 3000, ".gitattributes": b"mine"})
    pushed = worker.push(other, NAME)
    assert server.tree(NAME) == {"weights.bin": b"v" * 3000, "README.md": b"# written on the site\n"}
    assert server.repositories[NAME].head.tree[".gitattributes"] == attributes
    worker.pull(pushed.ref, tmp_path / "target")
    assert pushed.digest == digest_directory(tmp_path / "target"), "with the card: that is what the version holds"
    again = worker.push(other, NAME)
    assert again.transfer is not None
    assert again.transfer.skipped
    worker.push(other, NAME, options={"keep_card": False})
    assert server.tree(NAME) == {"weights.bin": b"v" * 3000}


# Tags


def test_an_explicit_version_is_a_tag(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    pushed = worker.push(source, f"{NAME}:v1.0")
    assert server.repositories[NAME].tags["v1.0"].id == pushed.version
    assert worker.get(f"{NAME}@v1.0").version == worker.get(f"{NAME}:v1.0").version == pushed.version
    again = Worker(server).push(source, f"{NAME}:v1.0")
    assert again.transfer is not None
    assert again.transfer.skipped
    more = worker.push(source, f"{NAME}:v1.1")  # the same files, another tag
    assert more.version == pushed.version
    assert server.repositories[NAME].tags["v1.1"].id == pushed.version


@pytest.mark.row("S10")
def test_other_files_under_a_tag_conflict_and_change_nothing(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    pushed = worker.push(source, f"{NAME}:v1.0")
    with pytest.raises(VersionConflict, match=pushed.version):
        worker.push(write_tree(tmp_path / "other", {"a.txt": b"a"}), f"{NAME}:v1.0")
    assert len(commits(server)) == 2
    with pytest.raises(InvalidInput, match="a commit names itself"):
        worker.push(source, f"{NAME}:{pushed.version}")


def test_a_branch_is_no_tag_to_be_moved(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    pushed = worker.push(source, NAME)
    for verb in (
        lambda: worker.registry.set_alias(pushed, "main"),
        lambda: worker.registry.delete_alias(NAME, "main"),
    ):
        with pytest.raises(InvalidInput, match="is a branch"):
            worker.run(verb())


def test_a_branch_is_removed_and_the_main_one_is_not(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    worker.push(source, NAME, options={"branch": "exp/one"})
    assert worker.run(worker.registry.delete_alias(NAME, "exp/one")) is True
    assert worker.run(worker.registry.delete_alias(NAME, "exp/one")) is False
    assert list(server.repositories[NAME].branches) == ["main"]


# Pull requests


@pytest.mark.parametrize("token", [WRITE, READ])
def test_a_commit_is_proposed_once(server: HuggingFaceStandIn, source: Path, tmp_path: Path, token: str) -> None:
    worker = Worker(server, token=token)
    before = server.publish(NAME, {"theirs.txt": b"t"})
    proposed = worker.push(source, NAME, options={"create_pr": True})
    assert server.repositories[NAME].head.id == before
    assert server.tree(NAME, "refs/pr/1") == MODEL
    assert proposed.version == server.repositories[NAME].pulls["refs/pr/1"].id
    assert proposed.metadata["pull_request"] == f"{server.url}/{NAME}/discussions/1"
    worker.pull(proposed.ref, tmp_path / "target")
    assert proposed.digest == digest_directory(tmp_path / "target")
    again = worker.push(source, NAME, options={"create_pr": True})
    assert again.transfer is not None
    assert again.transfer.skipped
    assert (again.version, again.metadata["pull_request"]) == (proposed.version, proposed.metadata["pull_request"])
    server.repositories[NAME].closed.add("refs/pr/1")
    worker.push(source, NAME, options={"create_pr": True})
    assert list(server.repositories[NAME].pulls) == ["refs/pr/1", "refs/pr/2"], "what was turned down counts no more"


@pytest.mark.parametrize("action", [LoseAnswer(), Respond(504)])
def test_a_lost_answer_to_a_proposal_is_settled_by_what_is_proposed(
    server: HuggingFaceStandIn, worker: Worker, source: Path, action: Any
) -> None:
    server.publish(NAME, {"theirs.txt": b"t"})
    server.fault("POST", "/commit/main", action)
    proposed = worker.push(source, NAME, options={"create_pr": True})
    assert {ref: commit.id for ref, commit in server.repositories[NAME].pulls.items()} == {
        "refs/pr/1": proposed.version
    }
    assert proposed.metadata["pull_request"] == f"{server.url}/{NAME}/discussions/1"


def test_what_is_there_is_not_proposed_and_nothing_is_made_for_a_proposal(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    with pytest.raises(ModelNotFound):
        worker.push(source, NAME, options={"create_pr": True})
    assert server.repositories == {}
    pushed = worker.push(source, NAME)
    assert worker.push(source, NAME, options={"create_pr": True}).version == pushed.version
    assert server.repositories[NAME].pulls == {}
    with pytest.raises(InvalidInput, match="not tagged as v1 before it is merged"):
        worker.push(source, f"{NAME}:v1", options={"create_pr": True})


# Refusals


@pytest.mark.parametrize(
    ("token", "name", "error", "words"),
    [
        (None, NAME, Unauthorized, "a token that may write is needed"),
        (READ, NAME, Unauthorized, "rights"),
        (READ, "acme/there", Unauthorized, "permissions"),
    ],
)
def test_who_may_not_write_is_told(
    server: HuggingFaceStandIn,
    source: Path,
    token: str | None,
    name: str,
    error: type[ModelSyncError],
    words: str,
) -> None:
    server.create("acme/there")
    with pytest.raises(error, match=words):
        Worker(server, token=token).push(source, name)
    assert server.count("PUT") == 0


def test_what_the_hub_would_drop_or_refuse_is_refused_before_a_byte(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, {".gitignore": b"*.log\n"})
    dropped = write_tree(tmp_path / "dropped", {"a.log": b"a", "w.bin": b"w"})
    with pytest.raises(InvalidInput, match=r"gitignore of acme/fraud drops 'a.log'"):
        worker.push(dropped, NAME)
    cached = write_tree(tmp_path / "cached", {"sub/.cache/x": b"a", "w.bin": b"w"})
    with pytest.raises(InvalidInput, match=r"does not take 'sub/.cache/x'"):
        worker.push(cached, NAME)
    monkeypatch.setattr(pushing, "_MOST_INLINE", 10)
    with pytest.raises(NotSupported, match="so that they go to LFS"):
        worker.push(write_tree(tmp_path / "texts", {"a.txt": b"a" * 20}), NAME)
    with pytest.raises(InvalidInput, match="brnch"):
        worker.push(dropped, NAME, options={"brnch": "x"})
    server.fault("POST", "/validate-yaml", Respond(200, {"errors": [{"message": "bad license"}]}))
    with pytest.raises(InvalidInput, match="bad license"):
        worker.push(write_tree(tmp_path / "card", {"README.md": b"---\n"}), NAME)
    assert server.count("PUT") == 0


def test_a_mirror_that_takes_nothing_is_told_as_such(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    server.fault("POST", "", Respond(405, b"Method Not Allowed"), times=None)
    with pytest.raises(NotSupported, match="a mirror that can only be read"):
        worker.push(source, NAME)


def test_a_refused_object_is_told(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    oid = hashlib.sha256(MODEL["weights.bin"]).hexdigest()
    refused = {"objects": [{"oid": oid, "size": 5000, "error": {"code": 422, "message": "no room"}}]}
    server.fault("POST", "/objects/batch", Respond(200, refused))
    with pytest.raises(InvalidInput, match=r"'weights.bin' is refused: no room"):
        worker.push(source, NAME)


# What servers do in their own way


def test_a_renamed_model_is_pushed_to_under_its_old_name(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(write_tree(tmp_path / "old", {"a.txt": b"a"}), NAME)
    server.rename(NAME, "acme/new")
    pushed = worker.push(source, f"{NAME}:v1.0")
    assert server.tree("acme/new") == server.tree("acme/new", "v1.0") == MODEL
    assert pushed.ref == f"acme/new:{server.repositories['acme/new'].head.id}"
    assert NAME not in server.repositories


def test_more_files_than_a_call_takes_are_asked_of_in_several(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path
) -> None:
    files = {f"{number}.bin": b"%d" % number for number in range(257)}
    for content in files.values():  # which other models have brought
        (server.objects / hashlib.sha256(content).hexdigest()).write_bytes(content)
    worker.push(write_tree(tmp_path / "many", files), NAME)
    assert server.tree(NAME) == files
    assert [len(request.body["files"]) for request in server.find("POST", "/preupload/")][-2:] == [256, 1]
    assert [len(request.body["objects"]) for request in server.find("POST", "/objects/batch")] == [256, 1]
    assert server.count("POST", "/commit/main") == 1


def test_an_empty_file_travels_in_the_commit_whatever_the_server_says(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    def lfs(told: Any) -> Any:
        return told | {"files": [file | {"uploadMode": "lfs"} for file in told["files"]]}

    server.fault("POST", "/preupload/", Rewrite(lfs), nth=2)
    (source / "config.json").unlink()
    (source / "sub" / "a b#1?%41ü+.txt").unlink()
    worker.push(source, NAME)
    assert server.tree(NAME) == {path: MODEL[path] for path in ("weights.bin", "empty.txt")}
    (batch,) = server.find("POST", "/objects/batch")
    assert [wanted["size"] for wanted in batch.body["objects"]] == [5000]


def test_what_is_there_already_may_be_ignored(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(source, NAME)

    def same(told: Any) -> Any:  # so a server of another kind says that it has the content
        return told | {"files": [file | {"shouldIgnore": file["path"] != "more.txt"} for file in told["files"]]}

    server.fault("POST", "/preupload/", Rewrite(same), times=None)
    (source / "more.txt").write_bytes(b"more")
    worker.push(source, NAME)
    assert server.tree(NAME) == {**MODEL, "more.txt": b"more"}


def test_an_upload_that_is_finished_elsewhere_gets_no_token(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    seen: list[Any] = []

    def elsewhere(request: Any, body: Any) -> Answer:
        seen.append(request)
        if "uploadId" in request.query:
            return server.complete(request, json.loads(b"".join(body)), None)
        return json_answer(200, {})

    other = server.listen("bucket", elsewhere)

    def move(told: Any) -> Any:
        for entry in told["objects"]:
            for action in entry.get("actions", {}).values():
                action["href"] = action["href"].replace(server.url, other)
        return told

    server.fault("POST", "/objects/batch", Rewrite(move))
    worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert len(seen) == 2
    assert not [request for request in seen if {"authorization", "cookie"} & request.headers.keys()]


@pytest.mark.parametrize("change", [{"chunk_size": "1000"}, {"chunk_size": "x"}, {"00004": "http://127.0.0.1:9/4"}])
def test_parts_that_do_not_fit_the_file_are_not_sent(
    server: HuggingFaceStandIn, worker: Worker, source: Path, change: dict[str, str]
) -> None:
    def other(told: Any) -> Any:
        told["objects"][0]["actions"]["upload"]["header"] |= change
        return told

    server.fault("POST", "/objects/batch", Rewrite(other), times=None)
    with pytest.raises(RegistryUnavailable, match=r"parts that 'weights.bin' is to go up in do not fit"):
        worker.push(source, NAME)
    assert server.count("PUT") == 0


def test_what_the_hub_tells_of_a_model_may_be_behind_its_branches(
    server: HuggingFaceStandIn, worker: Worker, tmp_path: Path, source: Path
) -> None:
    worker.push(write_tree(tmp_path / "old", {"a.txt": b"a"}), NAME)
    behind = Respond(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
    server.fault("GET", f"^/api/models/{NAME}(/revision/.*)?$", behind, times=None)
    pushed = worker.push(source, NAME)
    assert commits(server)[0] == pushed.version
    assert pushed.digest == digest_directory(source)


# Faults


@pytest.mark.parametrize("chunk_size", [2000, 1 << 20])
@pytest.mark.row("A4")
def test_addresses_that_have_expired_are_asked_for_again(
    server: HuggingFaceStandIn, worker: Worker, source: Path, chunk_size: int
) -> None:
    server.chunk_size = chunk_size
    server.fault("PUT", "", Respond(403, b"<Error><Code>AccessDenied</Code></Error>"))
    worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert server.count("POST", "/objects/batch") == 2


@pytest.mark.row("S6")
def test_addresses_that_are_refused_for_ever_end_the_push(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    server.fault("PUT", "", Respond(403, b"<Error><Code>AccessDenied</Code></Error>"), times=None)
    with pytest.raises(BeginAgain):
        worker.push(source, NAME)
    assert server.count("POST", "/objects/batch") < 8
    assert len(commits(server)) == 1


@pytest.mark.row("T1")
def test_a_part_that_breaks_is_sent_again_alone(server: HuggingFaceStandIn, worker: Worker, source: Path) -> None:
    server.fault("PUT", "/part/.*/2", Reset(100))
    server.fault("PUT", "/part/.*/1", Respond(503))
    worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert (server.count("PUT"), server.count("POST", "/objects/batch")) == (5, 1)


@pytest.mark.parametrize("call", ["/complete_multipart", "/objects/batch", "/preupload/", "/repos/create", "/verify"])
def test_a_lost_answer_of_what_may_be_repeated_is_asked_again(
    server: HuggingFaceStandIn, worker: Worker, source: Path, call: str
) -> None:
    server.fault("POST", call, LoseAnswer())
    worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert len(commits(server)) == 2


@pytest.mark.parametrize("times", [1, None])
def test_a_file_that_is_not_there_after_all_is_sent_once_more(
    server: HuggingFaceStandIn, worker: Worker, source: Path, times: int | None
) -> None:
    def lose(told: Any) -> Any:
        for place in server.objects.iterdir():
            place.unlink()
        return told

    server.fault("POST", "/complete_multipart", Rewrite(lose), times=times)
    if times:
        worker.push(source, NAME)
        assert server.tree(NAME) == MODEL
    else:
        with pytest.raises(Retryable, match=r"finishing the upload of .*: the object is not there"):
            worker.push(source, NAME)
        assert len(commits(server)) == 1
    assert server.count("POST", "/objects/batch") > 1


@pytest.mark.parametrize("call", ["/objects/batch", "/commit/main"])
def test_a_quota_that_is_used_up_during_a_push_is_waited_for(
    server: HuggingFaceStandIn, worker: Worker, source: Path, call: str
) -> None:
    limit = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
    server.fault("POST", call, Respond(429, b"{}", limit))
    pushed = worker.push(source, NAME)
    assert server.tree(NAME) == MODEL
    assert commits(server)[0] == pushed.version
    assert len(commits(server)) == 2


@pytest.mark.parametrize("action", [LoseAnswer(), Respond(504)])
@pytest.mark.row("S5")
def test_a_lost_answer_to_a_commit_is_settled_by_the_head(
    server: HuggingFaceStandIn, worker: Worker, source: Path, action: Any
) -> None:
    server.fault("POST", "/commit/main", action)
    pushed = worker.push(source, NAME)
    assert commits(server)[0] == pushed.version
    assert len(commits(server)) == 2, "whether it was made before the answer was lost or not: once"


@pytest.mark.row("P3")
def test_a_commit_that_never_comes_is_left_to_the_next_try(
    server: HuggingFaceStandIn, worker: Worker, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_LOOKS", 2)
    server.fault("POST", "/commit/main", Respond(502), times=2)
    with pytest.raises(RegistryUnavailable, match="502"):
        worker.push(source, NAME)
    sent = server.count("PUT")
    pushed = Worker(server).push(source, NAME)
    assert server.count("PUT") == sent, "what has gone up is there"
    assert pushed.transfer is not None
    assert pushed.transfer.resumed_bytes == len(MODEL["weights.bin"])


def test_a_head_that_somebody_else_has_moved_is_built_upon(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    server.create(NAME)
    theirs: list[str] = []
    make = HuggingFaceStandIn.make_commit

    def late(self: HuggingFaceStandIn, *args: Any, **parts: Any) -> Any:
        if not theirs:
            theirs.append(self.publish(NAME, {"theirs.txt": b"t"}))
        return make(self, *args, **parts)

    server.routes = tuple((m, p, late if serve is make else serve) for m, p, serve in server.routes)
    pushed = worker.push(source, NAME)
    assert commits(server)[:2] == [pushed.version, theirs[0]]
    assert server.tree(NAME) == MODEL


@pytest.mark.row("D6")
def test_the_same_files_from_another_worker_at_once_are_one_commit(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    server.create(NAME)
    make = HuggingFaceStandIn.make_commit
    theirs: list[str] = []

    def late(self: HuggingFaceStandIn, *args: Any, **parts: Any) -> Any:
        if not theirs:
            theirs.append(self.publish(NAME, MODEL))
        return make(self, *args, **parts)

    server.routes = tuple((m, p, late if serve is make else serve) for m, p, serve in server.routes)
    assert worker.push(source, NAME).version == theirs[0]
    assert len(commits(server)) == 2


def test_a_tag_that_somebody_else_makes_meanwhile_is_not_taken_for_ours(
    server: HuggingFaceStandIn, worker: Worker, source: Path
) -> None:
    theirs = server.publish(NAME, {"theirs.txt": b"t"})
    make = HuggingFaceStandIn.make_commit

    def late(self: HuggingFaceStandIn, *args: Any, **parts: Any) -> Any:
        self.repositories[NAME].tags["v1.0"] = self.repositories[NAME].commits[theirs]
        return make(self, *args, **parts)

    server.routes = tuple((m, p, late if serve is make else serve) for m, p, serve in server.routes)
    with pytest.raises(VersionConflict, match=theirs):
        worker.push(source, f"{NAME}:v1.0")
    assert server.repositories[NAME].tags["v1.0"].id == theirs

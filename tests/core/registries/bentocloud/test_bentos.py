"""Bentos: what a push of one sends, what it leaves on the server, and what it refuses before anything is registered."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import JsonValue

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelSyncError,
    RegistryUnavailable,
    VersionConflict,
    VersionFailed,
)
from airflow_provider_modelsync.core.models import VersionStatus
from airflow_provider_modelsync.core.registries.bentocloud import bentos as bentocloud_bentos
from airflow_provider_modelsync.core.registries.bentocloud.bentos import bento_ref
from airflow_provider_modelsync.core.transfer.control import Control
from tests.core.registries.bentocloud.cloud import FINISH, OBJECT, STRATEGIES, UPLOAD, BentoStore, Cloud
from tests.core.registries.bentocloud.test_wire import RECORDING, Step
from tests.core.stores import was_skipped, write_tree
from tests.standins.bentocloud import Bento, BentoCloudStandIn
from tests.standins.http_server import MIB, LoseAnswer, Respond, Rewrite

pytestmark = pytest.mark.usefixtures("no_waiting")

BENTO = "/api/v1/bento_repositories/tiny/bentos/b1"
CREATE_REPOSITORY, CREATE, RECORD = "/bento_repositories$", "/bentos$", "/bentos/b1$"
ALL_WAYS = pytest.mark.parametrize("strategy", [*STRATEGIES, "presigned_url"])
LABEL = "modelsync-digest"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    """A server that holds the model of the bento."""
    with BentoCloudStandIn(tmp_path / "server") as server:
        server.seed("tiny", "v1")
        yield server


@pytest.fixture
def bentos(server: BentoCloudStandIn) -> BentoStore:
    return BentoStore(server)


def recorded_yaml() -> dict[str, Any]:
    """The ``bento.yaml`` of the recorded bento."""
    facts: dict[str, Any] = yaml.safe_load(RECORDING["bento_push_proxy"]["bento_yaml"])
    return facts


def write_bento(directory: Path, facts: Mapping[str, Any], **files: bytes) -> Path:
    """Write a built bento."""
    tree = {"bento.yaml": yaml.safe_dump(dict(facts)).encode(), "README.md": b"# Tiny\n", "src/service.py": b"pass\n"}
    return write_tree(directory, {**tree, **files})


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    """The recorded bento, as far as its record goes."""
    return write_bento(tmp_path / "bento", recorded_yaml())


def changed_bento(bento: Path, **facts: Any) -> Path:
    """Change what a bento says of itself; ``None`` takes a field away."""
    merged = {**recorded_yaml(), **facts}
    kept = {key: value for key, value in merged.items() if value is not None}
    (bento / "bento.yaml").write_text(yaml.safe_dump(kept))
    return bento


def kept(server: BentoCloudStandIn) -> Bento:
    """The record of ``tiny:b1``."""
    return server.bentos["tiny:b1"]


def archived(server: BentoCloudStandIn) -> set[str]:
    """The names in the archive of ``tiny:b1``."""
    with tarfile.open(server.stored("tiny", "b1", "bento").path) as tar:
        return {member.name for member in tar if member.isfile()}


def changes(server: BentoCloudStandIn) -> int:
    """How many requests could change anything."""
    return sum(request.method != "GET" for request in server.requests)


def reports(server: BentoCloudStandIn) -> list[str]:
    return [request.body["status"] for request in server.find("PATCH", f"{BENTO}{FINISH}")]


class TestRequests:
    """The recorded client's requests, in its order; what we add is only read."""

    MODEL = "GET /api/v1/model_repositories/tiny/models/v1"  # the model must be there before anything is registered

    # scenario → version, strategy, positions among ours of the reads that we add
    SCENARIOS: ClassVar[dict[str, tuple[str, str | None, dict[int, str]]]] = {
        "bento_push_proxy": ("b1", "proxy", {0: MODEL, 7: f"GET {BENTO}"}),
        "bento_push_again_skips": ("b1", "proxy", {0: MODEL}),
        "bento_push_force": ("b1", "proxy", {0: MODEL, 6: f"GET {BENTO}"}),
        "bento_push_presigned": ("b2", None, {0: MODEL, 7: f"GET {BENTO[:-2]}b2", 9: f"GET {BENTO[:-2]}b2"}),
        "bento_push_multipart": (
            "b3",
            "presigned_url",
            {0: MODEL, 8: f"GET {BENTO[:-2]}b3", 11: f"GET {BENTO[:-2]}b3"},
        ),
    }

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_are_those_of_the_recorded_client(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, scenario: str
    ) -> None:
        version, server.transmission_strategy, added = self.SCENARIOS[scenario]
        if scenario != "bento_push_proxy":  # the recording was made against one server
            bentos.push(bento)
        force = scenario == "bento_push_force"
        if force:
            (bento / "src" / "service.py").write_text("changed\n")
        server.requests.clear()

        bentos.push(changed_bento(bento, version=version), f"tiny:{version}", force=force)

        ours = [Step.sent(request, server.token) for request in server.requests]
        assert {position: ours[position].call for position in added} == added
        compared = [step for position, step in enumerate(ours) if position not in added]
        assert compared == [Step.recorded(exchange) for exchange in RECORDING[scenario]["exchanges"]]

    def test_register_what_the_recorded_client_registers(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        bentos.push(bento)

        (request,) = server.find("POST", CREATE)
        (theirs,) = [
            exchange["request_body"]
            for exchange in RECORDING["bento_push_proxy"]["exchanges"]
            if exchange["method"] == "POST" and exchange["path"].endswith("/bentos")
        ]
        ours = json.loads(json.dumps(request.body))
        label = ours["labels"].pop()
        tree = read_tree(bento)
        assert (label["key"], f"sha256:{label['value']}") == (LABEL, tree.digest[: len("sha256:") + 60])
        assert ours["manifest"].pop("size_bytes") == tree.size_bytes
        assert ours == {**theirs, "manifest": {k: v for k, v in theirs["manifest"].items() if k != "size_bytes"}}

    @ALL_WAYS
    def test_to_the_storage_carry_no_credential(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        bentos.push(bento)

        stored = [request for request in server.requests if request.origin == "store"]
        assert len(stored) == (strategy != "proxy")
        for request in stored:
            assert server.token not in json.dumps([request.headers, request.query])


class TestPush:
    @ALL_WAYS
    def test_leaves_a_finished_bento_with_all_its_files(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy

        pushed = bentos.push(bento)

        assert (pushed.ref, pushed.status, pushed.labels) == ("tiny:b1", VersionStatus.READY, {"stage": "dev"})
        assert pushed.uri == f"{server.url}{BENTO}"
        assert pushed.transfer is not None
        assert pushed.transfer.sent_bytes == server.stored("tiny", "b1", "bento").size
        assert (kept(server).upload_status, kept(server).models) == ("success", ["tiny:v1"])
        assert archived(server) == {"bento.yaml", "README.md", "src/service.py"}

    def test_is_found_by_its_model_and_by_deployments(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        bentos.push(bento)
        cloud = Cloud(server)

        deployed = cloud.run(lambda registry: registry.deploy("demo", registry.parse("tiny:v1"), {}))

        assert deployed.artifact == "tiny:b1"

    @ALL_WAYS
    def test_of_the_same_bento_sends_nothing(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, strategy: str | None
    ) -> None:
        server.transmission_strategy = strategy
        bentos.push(bento)
        server.requests.clear()

        again = bentos.push(bento)

        assert again.transfer is not None
        assert again.transfer.skipped
        assert changes(server) == 0

    def test_of_other_bytes_is_a_conflict_and_leaves_the_bento(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        bentos.push(bento)
        before = (server.stored("tiny", "b1", "bento").etag, list(kept(server).labels))
        (bento / "src" / "service.py").write_text("other\n")
        server.requests.clear()

        with pytest.raises(VersionConflict, match="tiny:b1 exists with other bytes"):
            bentos.push(bento)

        assert changes(server) == 0
        assert (server.stored("tiny", "b1", "bento").etag, kept(server).labels) == before

    def test_over_a_bento_that_others_pushed_is_a_conflict(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.seed_bento("tiny", "b1", models=["tiny:v1"])

        with pytest.raises(VersionConflict, match="pushed by others"):
            bentos.push(bento)
        assert changes(server) == 0

    def test_with_force_replaces_the_bytes_and_the_record(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        bentos.push(bento)
        uid, etag = kept(server).uid, server.stored("tiny", "b1", "bento").etag
        (bento / "README.md").write_text("# Other\n")

        assert bentos.push(bento, force=True).ready
        assert was_skipped(bentos.push(bento))

        assert (kept(server).uid, kept(server).description) == (uid, "# Other\n")
        assert server.stored("tiny", "b1", "bento").etag != etag

    @pytest.mark.parametrize("status", ["pending", "uploading", "failed"])
    def test_takes_up_an_unfinished_record(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, status: str
    ) -> None:
        uid = server.seed_bento("tiny", "b1", status=status).uid

        assert bentos.push(bento).ready

        (update,) = server.find("PATCH", RECORD)
        assert set(update.body) == {"description", "manifest", "labels"}
        assert (kept(server).uid, kept(server).models, server.count("POST")) == (uid, ["tiny:v1"], 0)

    def test_that_loses_the_race_for_the_repository_uses_the_winners(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.fault("POST", CREATE_REPOSITORY, LoseAnswer())

        assert bentos.push(bento).ready
        assert server.find("POST", CREATE_REPOSITORY)[-1].status == 409

    def test_that_loses_the_race_for_the_version_takes_it_up(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.fault("POST", CREATE, LoseAnswer())

        assert bentos.push(bento).ready
        assert (server.find("POST", CREATE)[-1].status, server.count("PATCH", RECORD)) == (409, 1)
        assert list(server.bentos) == ["tiny:b1"]

    def test_that_loses_the_race_for_the_version_to_other_bytes_is_a_conflict(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.fault("GET", RECORD, Respond(404, {"error": "record not found"}))
        server.seed_bento("tiny", "b1")

        with pytest.raises(VersionConflict, match="exists with other bytes"):
            bentos.push(bento)
        assert server.count("PUT") == 0

    def test_by_two_at_once_ends_in_one_bento(self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path) -> None:
        barrier, done = threading.Barrier(2), []

        def push() -> None:
            barrier.wait(timeout=30)
            done.append(BentoStore(server).push(bento).ref)

        threads = [threading.Thread(target=push) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        # Either may find that the other is about to send the same once more, and so not see it ready.
        assert done == ["tiny:b1"] * 2
        assert (list(server.bentos), kept(server).upload_status) == (["tiny:b1"], "success")

    def test_whose_record_another_one_takes_over_publishes_nothing(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        others = Rewrite(lambda answer: {**answer, "labels": [{"key": LABEL, "value": "0" * 60}]})
        server.fault("GET", RECORD, others, nth=2, times=None)

        with pytest.raises(VersionConflict, match="replaced or deleted while"):
            bentos.push(bento)
        assert (server.count("PUT", OBJECT), reports(server)) == (1, [])

    def test_whose_record_vanishes_is_a_conflict(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.fault("GET", RECORD, Respond(404, {"error": "record not found"}), times=None)

        with pytest.raises(VersionConflict, match="replaced or deleted while"):
            bentos.push(bento)

    def test_whose_record_is_made_and_deleted_all_the_time_is_given_up(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.fault("GET", RECORD, Respond(404, {"error": "record not found"}), times=None)
        server.fault("POST", CREATE, Respond(409, {"error": "duplicate key"}), times=None)

        with pytest.raises(RegistryUnavailable, match="keeps changing"):
            bentos.push(bento)

    @pytest.mark.parametrize(("strategy", "path"), [("proxy", UPLOAD), (None, OBJECT), ("presigned_url", OBJECT)])
    def test_that_fails_is_finished_by_the_next_one(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, strategy: str | None, path: str
    ) -> None:
        server.transmission_strategy = strategy
        server.fault("PUT", path, Respond(400, {"error": "no space"}), times=None)

        with pytest.raises(ModelSyncError):
            bentos.push(bento)
        assert (reports(server), kept(server).upload_status) == ([], "uploading")

        server.faults.clear()
        assert bentos.push(bento).ready
        assert kept(server).upload_status == "success"

    def test_that_the_server_gives_up_fails_with_the_servers_reason(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        gone = {"upload_status": "failed", "upload_finished_reason": "quota is used up"}
        server.fault("GET", RECORD, Rewrite(lambda answer: {**answer, **gone}), nth=3)

        with pytest.raises(VersionFailed, match="quota is used up"):
            bentos.push(bento)

    def test_in_parts_goes_on_where_its_last_try_ended(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.transmission_strategy = "presigned_url"
        store = BentoStore(server, {"part_size_mib": 5, "max_workers": 1})
        (bento / "src" / "large.bin").write_bytes(os.urandom(11 * MIB))
        memory = Memory()
        server.fault("PUT", OBJECT, Respond(503), part=3, times=None)
        with pytest.raises(RegistryUnavailable):
            store.push(bento, control=Control(workers=1, checkpoint=memory))
        assert reports(server) == []
        server.faults.clear()
        server.requests.clear()

        pushed = store.push(bento, control=Control(workers=1, checkpoint=memory))

        assert [request.part for request in server.find("PUT", OBJECT)] == [3]
        assert server.count("PATCH", "/start_multipart_upload$") == 0
        assert pushed.transfer is not None
        assert pushed.transfer.resumed_bytes == 10 * MIB
        assert pushed.ready


class Memory:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, JsonValue] = {}

    def get(self, key: str) -> JsonValue:
        return self.values.get(key)

    def set(self, key: str, value: JsonValue) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def service_with(**model: Any) -> list[dict[str, Any]]:
    return [{"name": "Tiny", "service": "", "models": [model], "dependencies": [], "config": {}}]


class TestModels:
    @pytest.mark.parametrize(
        "where",
        [{"services": service_with(tag="absent:v1")}, {"models": [{"tag": "absent:v1"}]}],
        ids=["of a service", "of the bento"],
    )
    def test_that_are_missing_are_named_before_anything_is_registered(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, where: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput, match=r"with the model absent:v1, which is not in") as refused:
            bentos.push(changed_bento(bento, **where))
        assert refused.value.argument == "source"
        assert (changes(server), server.bento_repositories) == (0, {})

    def test_that_are_not_uploaded_yet_count_as_missing(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        server.seed("tiny", "v1", status="uploading")

        with pytest.raises(InvalidInput, match=r"tiny:v1, which is not in"):
            bentos.push(bento)
        assert changes(server) == 0

    def test_of_hugging_face_need_not_be_there(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        facts = {"tag": "google-bert--bert:" + "a" * 32, "registry": "huggingface", "metadata": {"revision": "main"}}

        assert bentos.push(changed_bento(bento, services=service_with(**facts))).ready

        (model,) = kept(server).manifest["services"][0]["models"]
        assert {key: model[key] for key in facts} == facts
        assert server.count("GET", "/model_repositories/google-bert") == 0

    def test_inside_the_bento_are_neither_hashed_nor_sent(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        bentos.push(bento)
        write_tree(bento, {"models/tiny/v1/weights.bin": b"weights", "src/models/kept.txt": b"kept"})
        (bento / "models" / "link").symlink_to("/nowhere")
        size = kept(server).manifest["size_bytes"]

        bentos.push(bento, force=True)

        assert archived(server) == {"bento.yaml", "README.md", "src/service.py", "src/models/kept.txt"}
        assert kept(server).manifest["size_bytes"] == size + len("kept")
        (bento / "models" / "tiny" / "v1" / "weights.bin").write_bytes(b"other")
        assert was_skipped(bentos.push(bento))


class TestBentoYaml:
    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"name": None}, "name: Field required"),
            ({"version": None}, "version: Field required"),
            ({"services": "Tiny"}, "services: Input should be a valid (array|list)"),
            ({"services": [{"service": ""}]}, r"services\.0\.name: Field required"),
            ({"services": service_with(module="")}, r"services\.0\.models\.0\.tag: Field required"),
            ({"labels": {"stage": ["dev"]}}, r"labels\.stage: Input should be a valid string"),
            ({"envs": [{"value": "1"}]}, r"envs\.0\.name: Field required"),
            ({"schema": {"limit": float("nan")}}, "holds what JSON cannot"),
            ({"runners": [{"name": "old"}]}, r"runners: .*older kind"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_that_is_unfit_is_refused_before_any_request(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, facts: dict[str, Any], message: str
    ) -> None:
        changed_bento(bento, **facts)

        with pytest.raises(InvalidInput, match=message) as refused:
            bentos.push(bento)
        assert (refused.value.argument, server.count()) == ("source", 0)
        with pytest.raises(InvalidInput, match=message):
            bento_ref(bento)

    @pytest.mark.parametrize("text", ["", "- a list\n", "name: [", "name: \x00"])
    def test_that_is_no_mapping_is_refused(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, text: str
    ) -> None:
        (bento / "bento.yaml").write_text(text)

        with pytest.raises(InvalidInput, match=r"its bento\.yaml is no YAML mapping"):
            bentos.push(bento)
        assert server.count() == 0

    def test_that_would_grow_without_bounds_is_refused(self, bentos: BentoStore, bento: Path) -> None:
        levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
        (bento / "bento.yaml").write_text("l0: &l0 [x]\n" + levels)

        with pytest.raises(InvalidInput, match="holds what JSON cannot"):
            bentos.push(bento)

    def test_that_is_missing_is_named(self, server: BentoCloudStandIn, bentos: BentoStore, source: Path) -> None:
        with pytest.raises(InvalidInput, match=r"it holds no bento\.yaml"):
            bentos.push(source)
        with pytest.raises(InvalidInput, match=r"bento\.yaml cannot be read: No such file"):
            bento_ref(source)
        assert server.count() == 0

    @pytest.mark.parametrize("named", ["", "  ", ".", "x/..", "/", None])
    def test_of_what_names_no_bento_is_not_looked_for(
        self, bento: Path, named: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(bento)
        with pytest.raises(InvalidInput) as refusal:
            bento_ref(named)
        assert "bento.yaml" not in str(refusal.value)

    def test_that_is_a_pipe_is_not_waited_for(self, bento: Path) -> None:
        (bento / "bento.yaml").unlink()
        os.mkfifo(bento / "bento.yaml")
        with pytest.raises(InvalidInput):
            bento_ref(bento)

    def test_names_the_bento(self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path) -> None:
        assert str(bento_ref(bento)) == "tiny:b1"
        with pytest.raises(InvalidInput, match=r"its bento\.yaml says tiny:b1; push it as that"):
            bentos.push(bento, "tiny:b2")
        assert server.count() == 0

    def test_may_leave_nearly_everything_out(self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path) -> None:
        (bento / "bento.yaml").write_text(
            yaml.safe_dump(
                {
                    "name": "tiny",
                    "version": "b1",
                    "labels": None,
                    "models": None,
                    "envs": [{"name": "A"}],
                    "services": [{"name": "Tiny", "dependencies": ["Other"]}],
                }
            )
        )

        assert bentos.push(bento).labels == {}

        manifest = kept(server).manifest
        assert (manifest["models"], manifest["schema"], manifest["spec"]) == ([], {}, 1)
        assert manifest["envs"] == [{"name": "A", "value": "", "stage": "all"}]
        nothing = {"deployment": None, "cluster": None, "url": None}
        assert manifest["services"] == [
            {
                "name": "Tiny",
                "service": "",
                "models": [],
                "dependencies": [{"service": "Other", **nothing}],
                "config": {},
            }
        ]

    def test_may_hold_more_than_is_known(self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path) -> None:
        (service,) = recorded_yaml()["services"]

        bentos.push(changed_bento(bento, services=[{**service, "tracing": {"on": True}}], unheard_of=1))

        assert kept(server).manifest["services"][0]["tracing"] == {"on": True}


class TestFiles:
    @pytest.mark.parametrize("link", ["src/latest.py", "README.md"])
    def test_that_are_links_to_elsewhere_are_refused_by_name(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path, link: str
    ) -> None:
        (bento / link).unlink(missing_ok=True)
        (bento / link).symlink_to("/etc/passwd")

        with pytest.raises(InvalidInput, match=rf"{link}.* is a symbolic link"):
            bentos.push(bento)
        assert server.count() == 0

    def test_the_readme_becomes_the_description(
        self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path
    ) -> None:
        (bento / "README.md").write_bytes("# Größe\n".encode() + b"\xff")

        bentos.push(bento)

        assert kept(server).description == "# Größe\n\ufffd"

    def test_a_readme_need_not_be_there(self, server: BentoCloudStandIn, bentos: BentoStore, bento: Path) -> None:
        (bento / "README.md").unlink()

        bentos.push(bento)

        assert kept(server).description == ""

    @pytest.mark.parametrize("beyond", [0, 1])
    def test_a_readme_beyond_the_limit_is_no_description(
        self,
        server: BentoCloudStandIn,
        bentos: BentoStore,
        bento: Path,
        beyond: int,
    ) -> None:
        size = bentocloud_bentos._README_LIMIT + beyond
        (bento / "README.md").write_bytes(b"x" * size)

        bentos.push(bento)

        assert bentocloud_bentos._README_LIMIT == 3 * MIB
        assert len(kept(server).description) == (0 if beyond else size)
        assert "README.md" in archived(server)


def test_only_the_push_of_bentos_is_offered(bentos: BentoStore, bento: Path) -> None:
    with pytest.raises(ModelSyncError, match="does not offer to keep labels"):
        bentos.push(bento, labels={"stage": "dev"})
    with pytest.raises(ModelSyncError, match="does not offer to pull"):
        bentos.pull(bento.parent / "pulled", "tiny:b1")

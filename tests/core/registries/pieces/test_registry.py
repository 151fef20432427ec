"""A Pieces host's models: how they are found, described, loaded and left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    VersionConflict,
)
from airflow_provider_modelsync.core.flow.steps import Exchange
from airflow_provider_modelsync.core.models import Query
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.pieces import api as pieces_api
from airflow_provider_modelsync.core.registries.pieces.api import PiecesSettings
from airflow_provider_modelsync.core.registries.pieces.registry import Pieces
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.pull import pull
from airflow_provider_modelsync.core.verbs.push import push
from airflow_provider_modelsync.core.verbs.wait import find_version
from tests.core.registries.pieces.host import Host
from tests.standins.http_server import LoseAnswer, Respond, Rewrite
from tests.standins.pieces import PiecesStandIn, model
from tests.support.data import DATA

RECORDINGS = json.loads((DATA / "pieces-exchanges.json").read_text())
# All words and fields that nobody has heard of must survive.
OWN = model(
    "My tuned model",
    custom=True,
    foundation="PHI_99",
    type="THOROUGH",
    created={"value": "2024-03-01T10:00:00.123456789Z", "readable": "March 1st", "calendar": "gregorian"},
    parameters=7.0,
    house={"mine": [1, None, {"größe": 1e-7}]},
    description=None,
)
Q4 = model("Phi 2", unique="phi-2:q4", version="1.0", created={"value": "2024-01-01T00:00:00Z"})
Q8 = model("Phi 2", unique="phi-2:q8", version="1.0", created={"value": "2024-02-01T00:00:00Z"})
CLOUD = model("Claude", cloud=True)
NAMELESS = model("Nameless", unique="nameless")
del NAMELESS["unique"]
NEW = {"name": "Mine", "unique": "mine", "version": "2", "type": "SPEED", "usage": "CODE_GENERATION"}


@pytest.fixture(autouse=True)
def _no_waiting(no_waiting: None) -> None:
    pass


@pytest.fixture
def server() -> Iterator[PiecesStandIn]:
    with PiecesStandIn([Q4, Q8, CLOUD, NAMELESS, OWN]) as server:
        yield server


@pytest.fixture
def host(server: PiecesStandIn) -> Host:
    return Host(server)


class TestNames:
    @pytest.mark.parametrize(
        ("reference", "record"),
        [
            (Q4["id"], Q4),
            ("phi-2:q4", Q4),
            ("phi-2:q4:1.0", Q4),
            ("phi-2:q8:latest", Q8),
            (f"{Q8['id']}:1.0", Q8),
            ("Claude", CLOUD),
            ("Claude:0.0.1", CLOUD),
            (NAMELESS["id"], NAMELESS),
            ("my-tuned-model", OWN),
        ],
    )
    def test_a_model_is_found_by_id_unique_name_or_plain_name(self, host: Host, reference: str, record: Any) -> None:
        assert host.get(reference).raw == record

    @pytest.mark.parametrize("record", [Q4, CLOUD, NAMELESS], ids=lambda record: record["name"])
    def test_its_own_reference_leads_back_to_it(self, host: Host, record: Any) -> None:
        assert host.get(host.get(record["id"]).ref).raw == record

    @pytest.mark.parametrize("reference", ["Phi 2", "Phi 2:1.0"])
    def test_a_shared_name_is_refused_and_the_candidates_are_named(self, host: Host, reference: str) -> None:
        with pytest.raises(InvalidInput, match=r"\['phi-2:q4', 'phi-2:q8'\]"):
            host.get(reference)

    def test_the_whole_is_tried_before_it_is_split(self, server: PiecesStandIn, host: Host) -> None:
        trap = model("phi-2", unique="phi-2", version="q4")
        server.models[trap["id"]] = trap

        assert host.get("phi-2:q4").raw == Q4

    @pytest.mark.parametrize("reference", ["absent", "phi-2:q4:9.9", model("x")["id"], "a/b c:1", "phi-2"])
    def test_what_is_not_there_is_not_found(self, host: Host, reference: str) -> None:
        with pytest.raises(ModelNotFound, match="has no model"):
            host.get(reference)

    def test_410_is_not_found(self, server: PiecesStandIn, host: Host) -> None:
        with pytest.raises(ModelNotFound):
            host.run(lambda pieces: pieces._calls.need("a/b c"))

        assert [(request.path, request.status) for request in server.requests] == [("/model/a%2Fb%20c", 410)]

    @pytest.mark.parametrize("reference", ["", " ", ":", "a:", ":a", "a\nb", " a", "x" * 1025])
    def test_what_can_be_no_name_is_refused_before_anything_is_sent(
        self, server: PiecesStandIn, host: Host, reference: str
    ) -> None:
        with pytest.raises(InvalidInput):
            host.get(reference)

        assert server.requests == []

    def test_records_become_versions(self, host: Host) -> None:
        version = host.get("phi-2:q8")

        assert (version.registry, version.name, version.version, version.ready) == ("pieces", "phi-2:q8", "1.0", True)
        assert (version.size_bytes, version.metadata) == (4_840_000_000, {"id": Q8["id"]})
        assert version.created_at is not None
        assert version.created_at.isoformat() == "2024-02-01T00:00:00+00:00"
        assert version.uri == f"{host.server.url}/model/{Q8['id']}"

    @pytest.mark.parametrize("field", ["id", "name", "version"])
    @pytest.mark.row("S7", of="calls")
    def test_a_broken_record_is_named(self, server: PiecesStandIn, host: Host, field: str) -> None:
        server.fault("GET", "/models$", Rewrite(lambda body: {**body, "iterable": [{**Q4, field: None}]}))

        with pytest.raises(RegistryUnavailable, match=rf"iterable\.0\.{field}"):
            host.get("phi-2:q4")

    def test_odd_values_of_other_fields_do_no_harm(self, server: PiecesStandIn, host: Host) -> None:
        odd = {"created": "yesterday", "bytes": {"value": "many"}, "downloaded": "yes", "unique": None, "raw": 7}
        server.models[CLOUD["id"]].update(odd)
        version = host.get(CLOUD["id"])

        assert (version.created_at, version.size_bytes, version.name) == (None, None, CLOUD["id"])
        assert version.raw == {**CLOUD, **odd}


class TestStates:
    def find(self, host: Host, name: str, state: str) -> bool:
        return host.run(lambda pieces: find_version(pieces, name, Query(), state=state)) is not None

    @pytest.mark.parametrize(
        ("flags", "reached"),
        [
            ({}, {"ready", "available"}),
            ({"downloaded": True}, {"ready", "available", "downloaded"}),
            ({"downloaded": True, "loaded": True}, {"ready", "available", "downloaded", "loaded"}),
        ],
    )
    def test_states_are_read_from_the_record(
        self, server: PiecesStandIn, host: Host, flags: dict[str, bool], reached: set[str]
    ) -> None:
        server.models[Q4["id"]].update(flags)

        assert {state for state in Pieces.states if self.find(host, "phi-2:q4", state)} == reached

    def test_a_model_that_is_not_there_yet_has_reached_nothing(self, host: Host) -> None:
        assert not self.find(host, "absent", "available")

    def test_another_version_is_waited_for(self, server: PiecesStandIn, host: Host) -> None:
        assert not self.find(host, "phi-2:q4:2.0", "ready")
        server.models[Q4["id"]]["version"] = "2.0"
        assert self.find(host, "phi-2:q4:2.0", "ready")

    def test_other_states_are_refused(self, host: Host) -> None:
        with pytest.raises(InvalidInput, match="loaded"):
            self.find(host, "phi-2:q4", "deployed")


class TestUpdate:
    def update(self, host: Host, changes: Any, name: str = "my-tuned-model") -> Any:
        return host.run(lambda pieces: pieces.update(pieces.parse(name), changes)).raw

    def test_one_field_is_changed_and_every_other_stays_as_it_came(self, server: PiecesStandIn, host: Host) -> None:
        changed = self.update(host, {"description": "finer"})

        (sent,) = server.find("POST", "/model/update")
        assert sent.body == changed == server.models[OWN["id"]] == {**OWN, "description": "finer"}
        assert sent.headers["content-type"] == "application/json"

    def test_fields_that_nobody_has_heard_of_may_be_set(self, server: PiecesStandIn, host: Host) -> None:
        assert self.update(host, {"mood": ["good"]}) == {**OWN, "mood": ["good"]}

    def test_what_is_so_already_is_not_sent(self, server: PiecesStandIn, host: Host) -> None:
        self.update(host, {"name": OWN["name"]})

        assert host.calls() == []

    def test_the_latest_record_is_changed_not_the_listed_one(self, server: PiecesStandIn, host: Host) -> None:
        def older(body: Any) -> Any:
            return {**body, "iterable": [{**record, "house": "old"} for record in body["iterable"]]}

        server.fault("GET", "/models$", Rewrite(older))

        assert self.update(host, {"description": "finer"})["house"] == OWN["house"]

    def test_a_model_that_came_with_the_program_is_refused(self, server: PiecesStandIn, host: Host) -> None:
        with pytest.raises(NotSupported, match="only custom models"):
            self.update(host, {"name": "New"}, "phi-2:q4")

        assert host.calls() == []

    @pytest.mark.parametrize("changes", [{"id": "x"}, {"loaded": True}, {"custom": False}, {"name": float("nan")}])
    def test_what_cannot_be_changed_is_refused_before_anything_is_sent(
        self, server: PiecesStandIn, host: Host, changes: Any
    ) -> None:
        with pytest.raises(InvalidInput):
            self.update(host, changes)

        assert server.requests == []

    def test_a_lost_answer_is_looked_after(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/update$", LoseAnswer())

        assert self.update(host, {"name": "New"})["name"] == "New"
        assert len(host.calls()) == 1

    def test_a_refusal_is_told(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/update$", Respond(500, b"disk full"), times=None)

        with pytest.raises(RegistryUnavailable, match="disk full"):
            self.update(host, {"name": "New"})

    def test_a_value_that_is_not_kept_is_told(
        self, server: PiecesStandIn, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fault("POST", "/update$", Rewrite(lambda body: {**body, "name": "Other"}))
        self.update(host, {"name": "New"})

        assert "['name']" in caplog.text


class TestRegister:
    def register(self, host: Host, **more: Any) -> Any:
        return host.run(lambda pieces: pieces.register({**NEW, **more}))

    def test_a_custom_model_is_described(self, server: PiecesStandIn, host: Host) -> None:
        made = self.register(host, house="mine")

        assert (made.ref, made.raw["custom"], made.raw["house"]) == ("mine:2", True, "mine")
        assert host.get("mine") == made

    def test_it_is_described_once(self, server: PiecesStandIn, host: Host) -> None:
        assert self.register(host) == self.register(host)
        assert server.count("POST", "/models/create$") == 1

    def test_a_lost_answer_is_looked_after(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/create$", LoseAnswer())

        assert self.register(host).ref == "mine:2"
        assert server.count("POST", "/models/create$") == 1

    @pytest.mark.parametrize("taken", [{"unique": "phi-2:q4"}, {"unique": None, "name": "Claude"}])
    def test_a_name_that_is_taken_is_a_conflict(self, server: PiecesStandIn, host: Host, taken: Any) -> None:
        with pytest.raises(VersionConflict, match="another model"):
            self.register(host, **taken)

        assert host.calls() == []

    def test_another_description_is_a_conflict(self, host: Host) -> None:
        self.register(host)
        with pytest.raises(VersionConflict, match="update"):
            self.register(host, type="BALANCED")

    @pytest.mark.parametrize("fields", [{"name": "Mine"}, {**NEW, "loaded": True}])
    def test_what_cannot_be_said_is_refused_before_anything_is_sent(
        self, server: PiecesStandIn, host: Host, fields: Any
    ) -> None:
        with pytest.raises(InvalidInput):
            host.run(lambda pieces: pieces.register(fields))

        assert server.requests == []


class TestDelete:
    def delete(self, host: Host, name: str) -> bool:
        return host.run(lambda pieces: pieces.delete(pieces.parse(name)))

    def test_a_custom_model_is_deleted_once(self, server: PiecesStandIn, host: Host) -> None:
        assert [self.delete(host, "my-tuned-model") for _ in range(2)] == [True, False]
        assert OWN["id"] not in server.models

    def test_a_lost_answer_is_looked_after(self, server: PiecesStandIn, host: Host) -> None:
        server.fault("POST", "/delete$", LoseAnswer())

        assert self.delete(host, "my-tuned-model")

    def test_a_model_that_came_with_the_program_is_refused(self, host: Host) -> None:
        with pytest.raises(NotSupported, match="only custom models"):
            self.delete(host, "phi-2:q4")
        assert host.calls() == []


class TestLoading:
    def test_a_model_is_loaded_and_unloaded_once(self, server: PiecesStandIn, host: Host) -> None:
        server.models[Q4["id"]]["downloaded"] = True
        for _ in range(2):
            assert host.run(lambda pieces: pieces.load(pieces.parse("phi-2:q4"))).raw["loaded"]
        for _ in range(2):
            assert not host.run(lambda pieces: pieces.unload(pieces.parse("phi-2:q4"))).raw["loaded"]

        assert host.calls() == [("POST", "load"), ("POST", "unload")]

    def test_what_is_not_downloaded_cannot_be_loaded(self, host: Host) -> None:
        with pytest.raises(InvalidInput, match="before it is downloaded"):
            host.run(lambda pieces: pieces.load(pieces.parse("phi-2:q4")))
        assert host.calls() == []

    def test_deploying_downloads_then_loads(self, host: Host) -> None:
        deployment = host.run(lambda pieces: pieces.deploy(None, pieces.parse("phi-2:q4"), {}))

        assert host.calls() == [("POST", "download"), ("POST", "load")]
        assert (deployment.name, deployment.status, deployment.ready) == ("phi-2:q4", "loaded", True)
        assert deployment.model == "phi-2:q4:1.0"

    def test_a_cloud_model_is_loaded_without_a_download(self, host: Host) -> None:
        assert host.run(lambda pieces: pieces.deploy(None, pieces.parse("Claude"), {})).ready
        assert host.calls() == [("POST", "load")]

    @pytest.mark.parametrize("verb", ["load", "unload"])
    def test_a_lost_answer_is_looked_after(self, server: PiecesStandIn, host: Host, verb: str) -> None:
        server.models[Q4["id"]].update(downloaded=True, loaded=verb == "unload")
        server.fault("POST", f"/{verb}$", LoseAnswer())
        host.run(lambda pieces: getattr(pieces, verb)(pieces.parse("phi-2:q4")))

        assert host.calls() == [("POST", verb)]

    @pytest.mark.parametrize(("deployment", "config"), [("demo", {}), (None, {"gpu": 1})])
    def test_what_makes_no_sense_is_refused_before_anything_is_sent(
        self, server: PiecesStandIn, host: Host, deployment: str | None, config: Any
    ) -> None:
        with pytest.raises(InvalidInput):
            host.run(lambda pieces: pieces.deploy(deployment, pieces.parse("phi-2:q4"), config))
        assert server.requests == []

    @pytest.mark.row("S13")
    def test_undeploying_what_is_not_there_is_no_error(self, host: Host) -> None:
        assert host.run(lambda pieces: pieces.undeploy("absent")).gone

    @pytest.mark.parametrize(
        ("flags", "status"),
        [({}, "available"), ({"downloading": True}, "downloading"), ({"downloaded": True}, "downloaded")],
    )
    def test_what_is_not_loaded_does_not_run(
        self, server: PiecesStandIn, host: Host, flags: dict[str, bool], status: str
    ) -> None:
        server.models[Q4["id"]].update(flags)
        deployment = host.run(lambda pieces: pieces.deployment("phi-2:q4"))

        assert (deployment.status, deployment.gone, deployment.ready) == (status, True, False)


class TestTransfers:
    def test_a_target_on_the_worker_is_refused_with_an_explanation(
        self, server: PiecesStandIn, host: Host, tmp_path: Path
    ) -> None:
        ref = host.registry.parse("phi-2:q4")
        with driver_for(host.registry) as driver, pytest.raises(NotSupported, match="leave the target out"):
            pull(host.registry, driver, ref, tmp_path / "x", Control(), query=Query())
        assert server.requests == []

    def test_elsewhere_a_target_must_be_named(self, tmp_path: Path) -> None:
        store = ModelStore(RegistrySettings(conn_id="store", host=tmp_path.as_uri()))
        with driver_for(store) as driver, pytest.raises(InvalidInput, match="target") as caught:
            pull(store, driver, store.parse("m"), None, Control(), query=Query())
        assert caught.value.argument == "target"

    def test_a_push_names_the_nearest_thing(self, host: Host, tmp_path: Path) -> None:
        with driver_for(host.registry) as driver, pytest.raises(NotSupported, match=r"`register`.*`update`"):
            push(host.registry, driver, tmp_path, host.registry.parse("m"), Control())


class TestAddress:
    def places(self, host: str | None, port: int | None = None) -> list[str]:
        return pieces_api._places(PiecesSettings(conn_id="p", host=host, port=port))

    @pytest.mark.parametrize(
        ("host", "port", "place"),
        [
            ("localhost", 1000, "http://localhost:1000"),
            ("http://localhost:5323", None, "http://localhost:5323"),
            ("desk", None, "http://desk:39300"),
            ("https://desk.example.com", 443, "https://desk.example.com:443"),
            ("https://desk.example.com/pieces/", 8443, "https://desk.example.com:8443/pieces"),
        ],
    )
    def test_a_named_port_or_another_machine_is_one_place(self, host: str, port: int | None, place: str) -> None:
        assert self.places(host, port) == [place]

    @pytest.mark.parametrize("host", [None, "localhost", "http://127.0.0.1", "[::1]"])
    def test_on_this_machine_all_known_ports_are_looked_at(self, host: str | None) -> None:
        ports = [int(place.rpartition(":")[2]) for place in self.places(host)]

        assert ports == [*range(39300, 39334), 1000, 5323]

    def test_the_first_port_that_is_healthy_is_taken_and_kept(
        self, server: PiecesStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with PiecesStandIn() as ill:
            ill.health = "starting"
            ports = [2, 1, *(int(one.url.rpartition(":")[2]) for one in (ill, server))]
            monkeypatch.setattr(pieces_api, "_PORTS", tuple(ports))
            monkeypatch.setattr(pieces_api, "_PROBE_SECONDS", 60.0)
            host = Host(server, {"host": "http://127.0.0.1"})
            assert host.get("phi-2:q4").uri == f"{server.url}/model/{Q4['id']}"
            host.get("phi-2:q4")

        assert server.count("GET", "/health$") == 1
        assert len(ill.requests) == 1

    def test_where_none_answers_the_ports_are_named(self) -> None:
        asked = []

        def closed() -> None:
            flow = Pieces(PiecesSettings(conn_id="p")).test()
            step = next(flow)
            while True:
                assert isinstance(step, Exchange)
                asked.append(step.request.url.port)
                step = flow.throw(OSError("refused"))

        with pytest.raises(RegistryUnavailable, match="39300 to 39333, 1000 or 5323"):
            closed()
        assert asked == [*range(39300, 39334), 1000, 5323]

    def test_the_connection_test_says_version_and_place(self, server: PiecesStandIn, host: Host) -> None:
        assert host.run(lambda pieces: pieces.test()) == f"Connected to Pieces OS 12.1.0 at {server.url}."

    def test_a_host_that_is_not_well_is_told(self, server: PiecesStandIn, host: Host) -> None:
        server.health = "migrating"
        with pytest.raises(RegistryUnavailable, match="migrating"):
            host.run(lambda pieces: pieces.test())


class TestWire:
    """Requests are those of the vendor's own clients."""

    @staticmethod
    def recorded(version: str, step: str) -> list[dict[str, Any]]:
        return [one for one in RECORDINGS["clients"][f"pieces_os_client {version}"] if one["step"] == step]

    @pytest.mark.parametrize("version", ["5.0.1", "3.2.1"])
    def test_every_endpoint_is_asked_as_recorded(self, server: PiecesStandIn, host: Host, version: str) -> None:
        identity = "11111111-1111-4111-8111-111111111111"
        server.models[identity] = {**Q4, "id": identity, "unique": "one", "downloaded": True}
        calls, record = host.registry._calls, host.run(lambda pieces: pieces._calls.need(identity))
        server.requests.clear()
        verbs = {"download": "download", "cancel": "download/cancel", "load": "load", "unload": "unload"}
        flows: dict[str, Any] = {
            "health": host.registry.health,
            "version": host.registry.version,
            "models list (one model has an unknown foundation value)": calls.models,
            "snapshot": lambda: calls.find(identity),
            "snapshot 410": lambda: calls.find("nope"),
            "id with slash and space": lambda: calls.find("a/b c"),
            **{step: lambda verb=verb: calls.act(record, verb, lambda _: True, verb) for step, verb in verbs.items()},
        }
        for step, flow in flows.items():
            host.run(lambda _, flow=flow: flow())
            asked, (recorded,) = server.requests[-1], self.recorded(version, step)
            assert (asked.method, asked.path, asked.body) == (recorded["method"], recorded["path"], recorded["body"])
            assert recorded["headers"]["accept"] in asked.headers["accept"].split(", ")
            for name in ("content-length", "content-type"):
                assert asked.headers.get(name) == recorded["headers"].get(name)

    def test_an_update_sends_the_fields_that_the_vendors_client_sends(self, server: PiecesStandIn, host: Host) -> None:
        _, recorded = self.recorded("5.0.1", "update custom")
        body = recorded["body"]
        server.models[body["id"]] = {**body, "name": "Before"}
        host.run(lambda pieces: pieces.update(pieces.parse(body["id"]), {"name": body["name"]}))

        (asked,) = server.find("POST", "/update$")
        assert (asked.method, asked.path, asked.body) == (recorded["method"], recorded["path"], body)
        assert asked.headers["content-type"] == recorded["headers"]["content-type"]

    def test_the_application_is_named_only_when_it_is_known(self, server: PiecesStandIn, host: Host) -> None:
        host.get(CLOUD["id"])
        Host(server, {"application_id": "aaaa"}).get(CLOUD["id"])

        assert [request.headers.get("x-application-id") for request in server.requests] == [None, "aaaa"]

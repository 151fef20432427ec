"""Deployments of bentos: what is asked for, what an answer means, and what a lost answer must not do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotReady,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.models import Deployment, RollOut, Undo
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.registries.bentocloud import deployments as bentocloud_deployments
from airflow_provider_modelsync.core.verbs.wait import find_gone, find_ready, take_back
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.core.registries.bentocloud.cloud import Cloud
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import LoseAnswer, Request, Respond, Rewrite
from tests.support.data import DATA

RECORDING = DATA / "bentocloud-exchanges.json"
D = "/api/v2/deployments"
CANARY = "canary-4f1c0de5"
CONFIG = {
    "services": {"Svc": {"instance_type": "cpu.1", "scaling": {"min_replicas": 1, "max_replicas": 3}}},
    "envs": [{"name": "API_KEY", "value": CANARY}],
    "secrets": ["huggingface"],
}

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bentocloud_deployments, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(bentocloud_deployments, "_ENDING_SECONDS", 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    """A server with one model and two bentos of it."""
    with BentoCloudStandIn(tmp_path) as server:
        server.seed("fraud", "v1")
        server.seed("fraud", "v2")
        server.seed_bento("svc", "1", models=["fraud:v1"], build_at=datetime(2026, 1, 1, tzinfo=UTC))
        server.seed_bento("svc", "2", models=["fraud:v1"], build_at=datetime(2026, 1, 2, tzinfo=UTC))
        yield server


@pytest.fixture
def cloud(server: BentoCloudStandIn) -> Cloud:
    return Cloud(server)


def deploy(cloud: Cloud, model: str = "fraud:v1", name: str | None = "demo", **config: Any) -> Deployment:
    return cloud.run(lambda registry: registry.deploy(name, registry.parse(model), config))


def get(cloud: Cloud, name: str = "demo") -> Deployment:
    return cloud.run(lambda registry: registry.deployment(name))


def sent(server: BentoCloudStandIn) -> list[Request]:
    """The requests that change deployments."""
    return [request for request in server.find(path=D) if request.method != "GET"]


# ---- what is sent -----------------------------------------------------------------------------------------------


class TestRequests:
    def test_are_those_of_the_recorded_client_without_its_nulls(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        recorded = json.loads(RECORDING.read_text())["scenarios"]["deploy_v2"]["exchanges"]
        server.seed_bento("svc", "abc123")
        (create, read, terminate) = (recorded[0], recorded[1], recorded[4])
        body = create["request_body"]
        # The client's name for it is not the server's.
        service = {key: value for key, value in body["services"]["Svc"].items() if key != "cold_start_timeout"}
        config = {key: value for key, value in body.items() if key != "name"} | {"services": {"Svc": service}}

        deploy(cloud, **config)
        get(cloud)
        cloud.run(lambda registry: registry.undeploy("demo"))

        for theirs, ours in (
            (create, server.find("POST", f"{D}$")[0]),
            (terminate, server.find("POST", "/terminate")[0]),
        ):
            assert (ours.path, ours.query) == (theirs["path"], theirs["query"])
            assert ours.headers["x-yatai-api-token"] == server.token
            assert ours.headers["x-bentoml-version"] == theirs["request_headers"]["x-bentoml-version"]
        (asked,) = server.find("POST", f"{D}$")
        assert asked.body == {
            "access_authorization": False,
            "services": {
                "Svc": {
                    "instance_type": "cpu.1",
                    "scaling": {"min_replicas": 1, "max_replicas": 1},
                    "config_overrides": {},
                }
            },
            "bento": "svc:abc123",
            "name": "demo",
            "dev": False,
        }
        assert server.find("POST", "/terminate")[0].headers["content-length"] == "0"
        assert {request.query["cluster"] for request in server.find("GET", read["path"])} == {""}

    def test_name_the_cluster_of_the_connection(self, server: BentoCloudStandIn) -> None:
        cloud = Cloud(server, {"cluster": "west"})
        deploy(cloud)
        cloud.run(lambda registry: registry.undeploy("demo"))

        assert {request.query["cluster"] for request in server.find(path=D)} == {"west"}
        assert server.deployments["demo"].cluster == "west"

    def test_for_an_update_carry_the_full_configuration_and_no_name(
        self, server: BentoCloudStandIn, cloud: Cloud
    ) -> None:
        server.seed_deployment("demo", "svc:1", envs=[{"name": "OLD", "value": "x"}])
        deploy(cloud, **CONFIG, dev=True)

        (update,) = sent(server)
        assert (update.method, update.path, update.body) == ("PUT", f"{D}/demo", {**CONFIG, "bento": "svc:2"})

    def test_go_to_a_server_that_knows_them(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.dialect = "yatai"

        with pytest.raises(NotSupported, match=r"deployments of version 2.*Yatai"):
            deploy(cloud)


def test_it_deploys(cloud: Cloud) -> None:
    assert Capability.DEPLOY in cloud.registry.capabilities


# ---- which bento ------------------------------------------------------------------------------------------------


class TestTheBento:
    def test_is_the_newest_with_the_model(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        deployed = deploy(cloud)

        assert (deployed.artifact, deployed.model) == ("svc:2", "fraud:v1")
        assert sent(server)[0].body == {"bento": "svc:2", "name": "demo"}

    def test_must_be_uploaded(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_bento("svc", "3", models=["fraud:v1"], status="uploading")

        assert deploy(cloud).artifact == "svc:2"

    def test_of_latest_has_the_newest_ready_version(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_bento("other", "1", models=["fraud:v2", "tokens:v7"])

        for model in ("fraud", "fraud:latest"):
            deployed = deploy(cloud, model)
            assert (deployed.artifact, deployed.model) == ("other:1", "fraud:v2")

    def test_is_found_behind_a_page_of_others(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        newer = datetime(2026, 2, 1, tzinfo=UTC)
        for number in range(130):
            build_at = newer + timedelta(seconds=number)
            server.seed_bento("svc", f"failed-{number}", models=["fraud:v1"], status="failed", build_at=build_at)

        assert deploy(cloud).artifact == "svc:2"
        assert [request.query["start"] for request in server.find("GET", "/bentos$")] == ["0", "100"]

    def test_is_looked_up_in_the_models_record_where_there_is_no_list(
        self, server: BentoCloudStandIn, cloud: Cloud
    ) -> None:
        unknown = Respond(404, {"message": "not found this router with method GET"})
        server.fault("GET", "/bentos$", unknown, times=None)

        assert deploy(cloud).artifact == "svc:2"

    def test_may_be_named(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        assert deploy(cloud, bento="svc:1").artifact == "svc:1"
        assert server.count("GET", "/bentos$") == 0

    @pytest.mark.parametrize("tag", ["svc", "svc:latest", "svc:", "Svc:1", "../svc:1", ""])
    def test_must_be_named_exactly(self, server: BentoCloudStandIn, cloud: Cloud, tag: str) -> None:
        with pytest.raises(InvalidInput, match="bento") as raised:
            deploy(cloud, bento=tag)
        assert (raised.value.argument, sent(server)) == ("config", [])

    def test_that_does_not_exist_is_an_error_that_says_what_to_do(
        self, server: BentoCloudStandIn, cloud: Cloud
    ) -> None:
        with pytest.raises(NotReady, match=r"no uploaded bento.*fraud:v2.*config\['bento'\]"):
            deploy(cloud, "fraud:v2")
        with pytest.raises(ModelNotFound, match="'v9' of 'fraud'"):
            deploy(cloud, "fraud:v9")
        with pytest.raises(ModelNotFound, match="'absent'"):
            deploy(cloud, "absent")
        assert sent(server) == []


# ---- the configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"replicas": 2, "nmae": "x"}, "'nmae', 'replicas'"),
        ({"services": {"Svc": {"cold_start_timeout": 5}}}, r"services\.Svc.*'coldstart_timeout'"),
        (
            {"canary": {"versions": {"b": {"bento": "svc:1", "services": {"S": {"cold_start_timeout": 5}}}}}},
            "coldstart",
        ),
        ({"services": {"Svc": {"scaling": {"min_replicas": 3, "max_replicas": 2}}}}, "min_replicas <= max_replicas"),
        ({"services": {"Svc": {"scaling": {"max_replicas": 0}}}}, "max_replicas"),
        ({"services": ["Svc"]}, "services"),
        ({"envs": {"API_KEY": CANARY}}, "envs"),
        ({"envs": [{"name": "API_KEY", "value": [CANARY]}]}, r"envs\.0\.value"),
        ({"envs": [{"key": "API_KEY", "value": CANARY}]}, r"envs\.0"),
        ({"secrets": CANARY}, "secrets"),
        ({"access_authorization": CANARY}, "access_authorization"),
        ({"revision": "0123", "bento": "svc:1"}, "alone"),
        ({"revision": "0123"}, "no revision '0123'"),
        ({"revision": "../x"}, "no revision"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(
    server: BentoCloudStandIn, cloud: Cloud, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named) as raised:
        deploy(cloud, **config)
    assert raised.value.argument == "config"
    assert CANARY not in str(raised.value)
    assert sent(server) == []


@pytest.mark.parametrize("name", [None, "", "Demo", "a/b", "../demo", "x" * 64, "demo?"])
def test_a_name_that_is_none_is_refused(server: BentoCloudStandIn, cloud: Cloud, name: str | None) -> None:
    with pytest.raises(InvalidInput) as raised:
        deploy(cloud, name=name)
    assert (raised.value.argument, server.requests) == ("deployment", [])


def test_canaries_are_passed_on(server: BentoCloudStandIn, cloud: Cloud) -> None:
    canary = {"route_type": "header", "route_by": "x-b", "versions": {"b": {"bento": "svc:1", "weight": 20}}}
    first = deploy(cloud, canary=canary)

    assert sent(server)[0].body["canary"] == canary
    assert deploy(cloud, canary=canary).revision == first.revision
    assert deploy(cloud).revision != first.revision


# ---- once is enough ---------------------------------------------------------------------------------------------


class TestRepeated:
    @pytest.fixture
    def first(self, cloud: Cloud) -> Deployment:
        return deploy(cloud, **CONFIG, labels=[{"key": "team", "value": "risk"}])

    def test_with_the_same_configuration_changes_nothing(
        self, server: BentoCloudStandIn, cloud: Cloud, first: Deployment
    ) -> None:
        spelled_out = {**CONFIG, "access_authorization": False, "canary": None, "labels": None}

        again = [deploy(cloud, **config) for config in (CONFIG, spelled_out)]

        assert [deployed.revision for deployed in again] == [first.revision] * 2
        assert len(sent(server)) == 1

    def test_changes_nothing_where_the_server_spells_defaults_out(
        self, server: BentoCloudStandIn, cloud: Cloud
    ) -> None:
        service = {
            "instance_type": None,
            "scaling": {"min_replicas": 1, "max_replicas": 1, "policy": None},
            "envs": None,
        }
        server.seed_deployment("demo", "svc:2", services={"Svc": service}, envs=None, access_authorization=False)

        deploy(cloud)

        assert sent(server) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"envs": [{"name": "API_KEY", "value": "other"}]},
            {"envs": None},
            {"secrets": []},
            {"bento": "svc:1"},
            {"services": {}},
            {"access_authorization": True},
            {"labels": [{"key": "team", "value": "other"}]},
            {"services": {"Svc": {"instance_type": "cpu.1", "scaling": {"min_replicas": 0, "max_replicas": 3}}}},
        ],
        ids=str,
    )
    def test_with_another_configuration_rolls_out(
        self, server: BentoCloudStandIn, cloud: Cloud, first: Deployment, change: dict[str, Any]
    ) -> None:
        assert deploy(cloud, **{**CONFIG, **change}).revision != first.revision

    @pytest.mark.parametrize("status", ["failed", "image-build-failed", "unhealthy", "terminated"])
    def test_after_a_failure_rolls_out_again(
        self, server: BentoCloudStandIn, cloud: Cloud, first: Deployment, status: str
    ) -> None:
        server.deployments["demo"].scripted.clear()
        server.deployments["demo"].status = status

        assert deploy(cloud, **CONFIG).revision != first.revision

    def test_waits_for_the_end_of_one_that_is_ending(
        self, server: BentoCloudStandIn, cloud: Cloud, first: Deployment
    ) -> None:
        cloud.run(lambda registry: registry.undeploy("demo"))

        assert deploy(cloud, **CONFIG).revision != first.revision
        assert [request.method for request in sent(server)] == ["POST", "POST", "PUT"]

    def test_says_so_when_the_end_does_not_come(
        self, server: BentoCloudStandIn, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bentocloud_deployments, "_ENDING_LOOKS", 3)
        server.seed_deployment("demo", "svc:1", status="terminating")

        with pytest.raises(RegistryUnavailable, match="still being terminated"):
            deploy(cloud)


class TestALostAnswer:
    @pytest.mark.parametrize("exists", [False, True], ids=["create", "update"])
    def test_does_not_roll_out_twice(self, server: BentoCloudStandIn, cloud: Cloud, exists: bool) -> None:
        if exists:
            server.seed_deployment("demo", "svc:1")
        server.fault("PUT" if exists else "POST", D, LoseAnswer())

        deployed = deploy(cloud, **CONFIG)

        assert len(sent(server)) == 1
        assert deployed.revision == server.deployments["demo"].revisions[-1].uid
        assert len(server.deployments["demo"].revisions) == 1 + exists

    def test_does_not_roll_out_twice_where_the_server_fills_defaults_in(
        self, server: BentoCloudStandIn, cloud: Cloud
    ) -> None:
        def fill_in(record: dict[str, Any]) -> dict[str, Any]:
            for target in record["latest_revision"]["targets"]:
                target["config"]["services"] = {"Svc": {"instance_type": "cpu.2"}}
            return record

        server.fault("GET", f"{D}/demo$", Rewrite(fill_in), nth=2, times=None)
        server.fault("POST", D, LoseAnswer())

        deploy(cloud)

        assert len(sent(server)) == 1

    @pytest.mark.parametrize("exists", [False, True], ids=["create", "update"])
    def test_of_a_request_that_was_not_carried_out_is_made_up_for(
        self, server: BentoCloudStandIn, cloud: Cloud, exists: bool
    ) -> None:
        if exists:
            server.seed_deployment("demo", "svc:1")
        server.fault("PUT" if exists else "POST", D, Respond(502), times=2)

        assert deploy(cloud).artifact == "svc:2"
        assert len(sent(server)) == 3

    def test_is_an_error_in_the_end(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.fault("POST", D, Respond(503), times=None)

        with pytest.raises(RegistryUnavailable):
            deploy(cloud)
        assert len(sent(server)) == 3

    def test_without_a_revision_is_looked_after(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")
        server.fault("PUT", D, Rewrite(lambda record: {**record, "latest_revision": None}))

        assert deploy(cloud).revision == server.deployments["demo"].revisions[-1].uid
        assert len(sent(server)) == 1

    def test_two_that_create_at_once_agree(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        deploy(cloud)
        server.fault("GET", f"{D}/demo$", Respond(404, {"error": "get deployment demo: record not found"}))

        assert deploy(cloud).revision == server.deployments["demo"].revisions[0].uid
        assert len(server.deployments["demo"].revisions) == 1


# ---- an earlier revision ----------------------------------------------------------------------------------------


class TestGoingBack:
    def test_brings_bento_and_configuration_back(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        old = deploy(cloud, bento="svc:1", **CONFIG)
        deploy(cloud, labels=[{"key": "team", "value": "risk"}])

        back = deploy(cloud, revision=old.revision)

        assert sent(server)[-1].body == {**CONFIG, "bento": "svc:1", "labels": [{"key": "team", "value": "risk"}]}
        assert back.artifact == "svc:1"
        assert back.revision not in (None, old.revision)

    def test_to_one_with_canaries_is_not_supported(self, cloud: Cloud) -> None:
        old = deploy(cloud, canary={"route_type": "random", "versions": {"b": {"bento": "svc:1", "weight": 20}}})
        deploy(cloud)

        with pytest.raises(NotSupported, match="canaries"):
            deploy(cloud, revision=old.revision)


# ---- what an answer means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ready", "failed", "gone"),
    [
        ("running", True, False, False),
        ("scaled-to-zero", True, False, False),
        ("failed", False, True, False),
        ("image-build-failed", False, True, False),
        ("unhealthy", False, True, False),
        ("terminating", False, True, False),
        ("terminated", False, True, True),
        ("image-building", False, False, False),
        ("image-build-succeeded", False, False, False),
        ("deploying", False, False, False),
        ("non-deployed", False, False, False),
        ("unknown", False, False, False),
        ("hibernating", False, False, False),
    ],
)
def test_every_status_is_understood(
    server: BentoCloudStandIn, cloud: Cloud, status: str, ready: bool, failed: bool, gone: bool
) -> None:
    server.seed_deployment("demo", "svc:1", status=status)

    found = get(cloud)

    assert (found.status, found.ready, found.failed, found.gone) == (status, ready, failed, gone)


def test_an_unknown_status_is_logged_once(
    server: BentoCloudStandIn, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    server.seed_deployment("demo", "svc:1", status="hibernating")

    for _ in range(3):
        get(cloud)

    assert [record.levelname for record in caplog.records if "hibernating" in record.getMessage()] == ["WARNING"]


def test_a_deployment_is_described(server: BentoCloudStandIn, cloud: Cloud) -> None:
    revision = deploy(cloud, "fraud:v1", bento="svc:1").revision
    server.deployments["demo"].scripted.clear()
    server.deployments["demo"].status = "running"

    found = get(cloud)

    assert (found.registry, found.name, found.model, found.artifact) == ("bentocloud", "demo", "fraud:v1", "svc:1")
    assert (found.revision, found.url) == (revision, "https://demo.apps.test")
    assert found.page == f"{server.url}/deployments/demo?cluster=default&namespace=yatai"
    assert found.raw["kube_namespace"] == "yatai"


def test_one_that_does_not_exist_is_not_found(cloud: Cloud) -> None:
    with pytest.raises(ModelNotFound, match="no deployment 'demo'"):
        get(cloud)


def test_a_record_full_of_nulls_is_read(server: BentoCloudStandIn, cloud: Cloud) -> None:
    server.seed_deployment("demo", "svc:1")
    nulls = dict.fromkeys(("latest_revision", "urls", "manifest", "labels", "cluster", "kube_namespace", "status"))
    server.fault("GET", f"{D}/demo$", Rewrite(lambda record: {**record, **nulls}))

    found = get(cloud)

    assert (found.revision, found.url, found.artifact, found.ready) == (None, None, None, False)


def test_the_result_fits_into_an_xcom(server: BentoCloudStandIn, cloud: Cloud) -> None:
    server.seed_deployment("demo", "svc:1", status="failed", envs=[{"name": "K", "value": CANARY}])
    server.explain("demo", "failed", "ü" * 5000)
    server.fault("GET", f"{D}/demo$", Rewrite(lambda record: {**record, "urls": ["https://x.test/" + "y" * 5000]}))

    told = get(cloud).to_xcom()

    assert len(json.dumps(told).encode()) <= XCOM_LIMIT
    assert (told["truncated"], told["name"], told["status"]) == (True, "demo", "failed")
    assert "raw" not in told


# ---- the end ----------------------------------------------------------------------------------------------------


class TestTerminate:
    def test_asks_for_the_end(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")

        ended = cloud.run(lambda registry: registry.undeploy("demo"))

        assert (ended.status, ended.gone, ended.ready) == ("terminating", False, False)
        assert [(request.method, request.path) for request in sent(server)] == [("POST", f"{D}/demo/terminate")]

    @pytest.mark.parametrize("status", ["terminating", "terminated"])
    def test_of_one_that_ends_already_sends_nothing(self, server: BentoCloudStandIn, cloud: Cloud, status: str) -> None:
        server.seed_deployment("demo", "svc:1", status=status)

        assert cloud.run(lambda registry: registry.undeploy("demo")).gone is (status == "terminated")
        assert sent(server) == []

    @pytest.mark.row("S13")
    def test_of_one_that_is_gone_is_fine(self, cloud: Cloud) -> None:
        assert cloud.run(lambda registry: registry.undeploy("demo")).gone

    def test_that_somebody_else_has_asked_for_is_fine(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1", status="terminated")
        server.fault("GET", f"{D}/demo$", Rewrite(lambda record: {**record, "status": "running"}))

        assert cloud.run(lambda registry: registry.undeploy("demo")).gone

    def test_that_is_forbidden_is_an_error(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")
        server.fault("POST", "/terminate", Respond(403, {"message": "no"}))

        with pytest.raises(Unauthorized):
            cloud.run(lambda registry: registry.undeploy("demo"))


# ---- secrets ----------------------------------------------------------------------------------------------------


class TestEnvironmentValues:
    CONFIG: dict[str, Any] = {  # noqa: RUF012
        "envs": [{"name": "A", "value": CANARY}],
        "services": {"Svc": {"envs": [{"name": "B", "value": f"{CANARY}-svc"}]}},
        "canary": {"versions": {"b": {"bento": "svc:1", "envs": [{"name": "C", "value": f"{CANARY}-b"}]}}},
    }

    def test_are_in_no_result_and_no_log(self, cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        results = [deploy(cloud, **self.CONFIG), get(cloud), cloud.run(lambda registry: registry.undeploy("demo"))]

        for result in results:
            assert CANARY not in repr(result) + json.dumps(result.to_xcom()) + json.dumps(result.raw)
        assert results[0].raw["latest_revision"]["targets"][0]["config"]["envs"] == [{"name": "A", "value": "***"}]
        assert CANARY not in caplog.text

    @pytest.mark.parametrize("status", [400, 422, 500, 200])
    def test_are_in_no_error_that_quotes_the_server(
        self, server: BentoCloudStandIn, cloud: Cloud, caplog: pytest.LogCaptureFixture, status: int
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server.fault("POST", D, Respond(status, f"bad value {CANARY!r} of A".encode()), times=None)

        with pytest.raises(ModelSyncError, match=r"deploying fraud:v1 as demo") as raised:
            deploy(cloud, **self.CONFIG)
        assert CANARY not in repr(raised.value) + str(raised.value) + caplog.text

    def test_are_in_no_reason(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.script_deployment("demo", ["failed"])
        deploy(cloud, **self.CONFIG)
        server.explain("demo", "failed", f"cannot connect with {CANARY}")

        assert get(cloud).reason == "cannot connect with ***"


# ---- waiting ----------------------------------------------------------------------------------------------------


class TestWaiting:
    def test_sees_every_status_up_to_the_last(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.script_deployment("demo", ["image-building", "image-building", "odd", "deploying", "running"])
        revision = deploy(cloud).revision

        seen = [cloud.run(lambda registry: find_ready(registry, "demo", revision)) for _ in range(4)]

        assert [found and found.status for found in seen] == [None, None, None, "running"]

    @pytest.mark.parametrize("old", ["running", "failed", "terminated"])
    def test_learns_nothing_from_the_revision_before(self, server: BentoCloudStandIn, cloud: Cloud, old: str) -> None:
        server.seed_deployment("demo", "svc:1", status=old)
        server.script_deployment("demo", ["deploying", "running"], stale=2)
        revision = deploy(cloud).revision

        seen = [cloud.run(lambda registry: find_ready(registry, "demo", revision)) for _ in range(4)]

        assert [found and found.revision for found in seen] == [None, None, None, revision]

    def test_ends_with_the_reasons_of_a_failure(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1", status="image-build-failed")
        server.explain("demo", "image-build-failed", "an older story")
        server.script_deployment("demo", ["image-build-failed"])
        revision = deploy(cloud).revision
        server.explain("demo", "image-build-failed", "no matching distribution for torch==9")
        server.explain("demo", "deploying", "")

        with pytest.raises(
            DeploymentFailed, match=r"demo is image-build-failed: no matching distribution for torch==9$"
        ):
            cloud.run(lambda registry: find_ready(registry, "demo", revision))

    def test_ends_with_a_failure_whose_reason_cannot_be_read(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1", status="failed")
        server.fault("GET", "/status_records", Respond(500), times=None)

        with pytest.raises(DeploymentFailed, match=r"demo is failed$"):
            cloud.run(lambda registry: find_ready(registry, "demo"))

    def test_ends_when_the_deployment_is_deleted(self, cloud: Cloud) -> None:
        with pytest.raises(DeploymentFailed, match="not exist any more"):
            cloud.run(lambda registry: find_ready(registry, "demo"))

    def test_for_the_end_takes_terminated_and_deleted(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")
        cloud.run(lambda registry: registry.undeploy("demo"))

        seen = [cloud.run(lambda registry: find_gone(registry, "demo")) for _ in range(2)]
        del server.deployments["demo"]
        seen.append(cloud.run(lambda registry: find_gone(registry, "demo")))

        assert [found and found.status for found in seen] == [None, "terminated", "terminated"]


class TestTakingBack:
    def started(self, undo: Undo, **facts: str | None) -> RollOut:
        return RollOut(deployment="demo", model="fraud:v1", undo=undo, **facts)

    def test_terminates_what_was_created(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        created = self.started(Undo.TERMINATE, revision=deploy(cloud).revision)

        for _ in range(2):
            cloud.run(lambda registry: take_back(registry, created))

        assert [request.path for request in sent(server)] == [D, f"{D}/demo/terminate"]

    def test_brings_back_what_was_replaced(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1", envs=[{"name": "A", "value": "1"}])
        replaced = get(cloud).revision
        updated = self.started(Undo.RESTORE, replaced=replaced, revision=deploy(cloud).revision)

        for _ in range(2):
            cloud.run(lambda registry: take_back(registry, updated))

        assert [(request.method, request.body["bento"]) for request in sent(server)] == [
            ("PUT", "svc:2"),
            ("PUT", "svc:1"),
        ]
        assert sent(server)[-1].body["envs"] == [{"name": "A", "value": "1"}]

    def test_brings_it_back_while_it_is_still_shown(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")
        replaced = get(cloud).revision
        server.script_deployment("demo", ["deploying"], stale=5)
        updated = self.started(Undo.RESTORE, replaced=replaced, revision=deploy(cloud).revision)

        cloud.run(lambda registry: take_back(registry, updated))

        assert [request.body["bento"] for request in sent(server)] == ["svc:2", "svc:1"]

    def test_leaves_what_somebody_else_has_rolled_out_since(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        created = self.started(Undo.TERMINATE, revision=deploy(cloud).revision)
        deploy(cloud, bento="svc:1")
        before = len(sent(server))

        said = cloud.run(lambda registry: take_back(registry, created))

        assert "left as it is" in said
        assert len(sent(server)) == before

    def test_leaves_what_was_never_changed(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1")
        never_sent = self.started(Undo.RESTORE, replaced=get(cloud).revision)

        assert "not changed" in cloud.run(lambda registry: take_back(registry, never_sent))
        assert sent(server) == []

    def test_leaves_an_update_of_what_did_not_work(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.seed_deployment("demo", "svc:1", status="failed")
        updated = self.started(Undo.LEAVE, replaced=get(cloud).revision, revision=deploy(cloud).revision)

        assert "left as it is" in cloud.run(lambda registry: take_back(registry, updated))
        assert len(sent(server)) == 1


# ---- what runs --------------------------------------------------------------------------------------------------


class TestModels:
    def deployed(self, cloud: Cloud) -> Any:
        return cloud.run(lambda registry: registry.deployed_models())

    def test_are_those_of_the_bentos_that_run(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        assert self.deployed(cloud) == {}
        server.seed_bento("svc", "3", models=["fraud:v2", "other:v1"])
        deploy(cloud)
        deploy(cloud, name="more", bento="svc:3")
        assert self.deployed(cloud) == {"fraud:v1": "demo", "fraud:v2": "more", "other:v1": "more"}

    @pytest.mark.parametrize("left_out", ["latest_revision", "manifest"])
    def test_are_asked_for_where_the_list_leaves_them_out(
        self, server: BentoCloudStandIn, cloud: Cloud, left_out: str
    ) -> None:
        deploy(cloud)

        def shorten(listed: Any) -> Any:
            for item in listed["items"]:
                if left_out == "latest_revision":
                    item["latest_revision"] = None
                else:
                    item["latest_revision"]["targets"][0]["bento"]["manifest"] = None
            return listed

        server.fault("GET", D, Rewrite(shorten), times=1)
        assert self.deployed(cloud) == {"fraud:v1": "demo"}

    def test_are_none_of_what_has_ended(self, server: BentoCloudStandIn, cloud: Cloud) -> None:
        server.script_deployment("demo", ["terminated"])
        deploy(cloud)
        assert self.deployed(cloud) == {}

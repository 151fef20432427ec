"""Wallaroo's pipelines: deployed, looked at, updated in place, ended; every change at most once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    RegistryUnavailable,
    VersionFailed,
)
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.models import RollOut, Undo
from airflow_provider_modelsync.core.registries.wallaroo import pipelines as wallaroo_pipelines
from airflow_provider_modelsync.core.verbs.wait import find_gone, find_ready, take_back
from tests.standins.http_server import LoseAnswer, Respond, Rewrite
from tests.support.data import DATA
from tests.support.pipelines import (
    API,
    CANARY,
    CREATE,
    DEPLOY,
    STATUS,
    UNDEPLOY,
    Instance,
    ref,
    running_instance,
)

NOTHING = {"404": Respond(404, {"msg": "Deployment not found", "code": 404}), "null": Respond(200, b"null")}
NOTHING["{}"] = Respond(200, {})
RECORDINGS = json.loads((DATA / "wallaroo-exchanges.json").read_text())
CONFIG = {
    "engine": {"cpu": 2, "replicas": 1, "resources": {"limits": {"cpu": 2, "memory": "1Gi"}}},
    "engineAux": {"images": {"fraud": {"env": [{"name": "API_KEY", "value": CANARY}]}}},
}


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(wallaroo_pipelines, "_PAUSE", 0.0)
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with running_instance(tmp_path / "instance") as instance:
        yield instance


def body(instance: Instance, path: str) -> Any:
    """The body of the newest request to a path."""
    return instance.server.find("POST", path)[-1].body


def tell(instance: Instance, change: Any, path: str = STATUS, times: int | None = None) -> None:
    """Have the server tell something else."""
    instance.server.fault("POST", path, Rewrite(change), times=times)


class TestDeploy:
    def test_asks_for_a_pipeline_and_its_deployment_as_the_guide_does(self, instance: Instance) -> None:
        made = instance.deploy()

        step = {"name": "fraud", "version": instance.new.uuid, "sha": instance.new.sha}
        assert body(instance, CREATE) == {
            "pipeline_id": "demo",
            "workspace_id": instance.workspace,
            "definition": {"id": "demo", "steps": [{"ModelInference": {"models": [step]}}]},
        }
        (pipeline,) = instance.server.pipelines.values()
        assert body(instance, DEPLOY) == {
            "deploy_id": "demo",
            "pipeline_version_pk_id": pipeline.versions[0].id,
            "pipeline_id": pipeline.id,
            "models": [step],
            "engine_config": {
                "engine": {},
                "enginelb": {},
                "engineAux": {"images": {}},
                "workspace_id": instance.workspace,
            },
        }
        assert (made.status, made.ready, made.model) == ("Starting", False, ref(instance.new))
        assert made.artifact == pipeline.versions[0].uuid

    def test_takes_the_newest_ready_version_of_a_name(self, instance: Instance) -> None:
        instance.server.seed(instance.workspace, "fraud", b"newest", statuses=["pending_load_container"])

        assert instance.deploy("fraud").model == ref(instance.new)

    def test_runs_on_the_machine_that_the_model_was_made_for(self, instance: Instance) -> None:
        version = instance.server.seed(instance.workspace, "fraud", b"gpu", arch="arm", accel="jetson")
        instance.deploy(version, {"engine": {"replicas": 1}})

        assert body(instance, DEPLOY)["engine_config"]["engine"] == {"arch": "arm", "accel": "jetson", "replicas": 1}

    def test_gives_a_container_of_the_model_the_name_that_the_system_has_for_it(self, instance: Instance) -> None:
        image = {"resources": {"requests": {"memory": "2Gi"}}}
        instance.deploy(config={"engineAux": {"images": {"fraud": image, "other-7": image}}})

        images = body(instance, DEPLOY)["engine_config"]["engineAux"]["images"]
        assert images == {f"fraud-{instance.new.id}": image, "other-7": image}

    def test_refuses_a_model_whose_conversion_has_failed_before_anything_is_changed(self, instance: Instance) -> None:
        failed = instance.server.seed(instance.workspace, "fraud", b"bad", statuses=["error"])
        failed.error_summary = "could not load the pickle"

        with pytest.raises(VersionFailed, match="conversion has failed: could not load the pickle"):
            instance.deploy(failed)
        assert instance.changes() == []

    def test_does_not_begin_with_a_model_that_is_still_being_converted(self, instance: Instance) -> None:
        slow = instance.server.seed(instance.workspace, "fraud", b"slow", statuses=["attempting_load_container"])

        with pytest.raises(RegistryUnavailable, match=r"converting.*ModelVersionSensor"):
            instance.deploy(slow)
        assert instance.changes() == []

    @pytest.mark.parametrize("name", [None, "", "Demo", "1st", "a_b", "a.b", "end-", "a" * 64, "a/b", "ä"])
    def test_refuses_a_name_that_pipelines_cannot_have(self, instance: Instance, name: str) -> None:
        with pytest.raises(InvalidInput) as refused:
            instance.deploy(name=name)
        assert refused.value.argument == "deployment"
        assert instance.server.requests == []

    @pytest.mark.parametrize(
        ("config", "fault"),
        [
            ({"engines": {}}, "engines"),
            ({"engine": {"cpus": 2}}, r"engine\.cpus"),
            ({"engine": {"cpu": 0}}, r"engine\.cpu"),
            ({"engine": {"gpu": -1}}, r"engine\.gpu"),
            ({"engine": {"replicas": 3, "autoscale": {"replica_max": 2}}}, "replicas is larger"),
            ({"engine": {"autoscale": {"replica_min": 3, "replica_max": 2}}}, "replica_min is larger"),
            ({"engine": {"autoscale": {"autoscaling_window": 5}}}, "need scale_up_queue_depth"),
            ({"engine": {"arch": "sparc"}}, r"engine\.arch"),
            ({"enginelb": {"cpu": 1}}, r"enginelb\.cpu"),
            ({"engineAux": {"images": {"fraud": {"memory": "1Gi"}}}}, r"engineAux\.images\.fraud\.memory"),
            ({"workspace_id": 9}, "workspace_id"),
            ({"revision": "fraud:v", "engine": {}}, "allowed alone"),
        ],
    )
    def test_refuses_a_configuration_before_anything_is_sent(
        self, instance: Instance, config: dict[str, Any], fault: str
    ) -> None:
        with pytest.raises(InvalidInput, match=fault) as refused:
            instance.deploy(config=config)
        assert refused.value.argument == "config"
        assert instance.server.requests == []

    def test_sends_numbers_as_numbers_though_templates_make_texts_of_them(self, instance: Instance) -> None:
        instance.deploy(config={"engine": {"cpu": "2", "replicas": "3", "gpu": None, "resources": {"limits": None}}})

        engine = body(instance, DEPLOY)["engine_config"]["engine"]
        assert engine == {"cpu": 2, "replicas": 3, "resources": {}}

    def test_never_tells_the_environment_of_a_container(self, instance: Instance) -> None:
        instance.server.fault("POST", DEPLOY, Respond(400, {"msg": f"bad value {CANARY}", "code": 400}))

        with pytest.raises(InvalidInput) as refused:
            instance.deploy(config=CONFIG)
        assert CANARY not in str(refused.value)
        assert CANARY not in repr(instance.deploy(config=CONFIG)) + json.dumps(instance.look().raw)


class TestDeployAgain:
    def test_changes_nothing_when_it_runs_exactly_so(self, instance: Instance) -> None:
        instance.deploy(config=CONFIG)
        while not instance.look().ready:
            pass
        before = instance.changes()

        again = instance.deploy(config=CONFIG)

        assert instance.changes() == before == ["create", "deploy"]
        assert (again.ready, again.revision) == (True, ref(instance.new))

    def test_changes_nothing_while_it_is_starting(self, instance: Instance) -> None:
        instance.server.script_deployment("demo", ["Starting"])
        instance.deploy()

        assert not instance.deploy().ready
        assert instance.changes() == ["create", "deploy"]

    def test_replaces_the_model_in_place(self, instance: Instance) -> None:
        instance.serve(instance.old)

        made = instance.deploy(instance.new)

        assert made.revision == ref(instance.new)
        (pipeline,) = instance.server.pipelines.values()
        assert len(pipeline.versions) == 2
        assert instance.look().name == "demo"
        assert pipeline.deployment.id == 1

    @pytest.mark.parametrize(
        "config", [{"engine": {"replicas": 2}}, {}], ids=["another number of replicas", "no configuration any more"]
    )
    def test_updates_the_configuration(self, instance: Instance, config: dict[str, Any]) -> None:
        instance.deploy(config={"engine": {"replicas": 1}})
        instance.deploy(config=config)

        assert body(instance, DEPLOY)["engine_config"]["engine"] == config.get("engine", {})
        assert instance.changes() == ["create", "deploy"] * 2

    def test_begins_again_after_an_error(self, instance: Instance) -> None:
        instance.server.script_deployment("demo", ["Error"])
        instance.deploy()
        instance.deploy()

        assert instance.server.count("POST", DEPLOY) == 2

    def test_begins_again_after_its_end(self, instance: Instance) -> None:
        instance.serve()
        instance.undeploy()

        instance.deploy()
        assert instance.server.count("POST", DEPLOY) == 2

    def test_puts_back_what_an_earlier_revision_served_under_the_resources_of_now(self, instance: Instance) -> None:
        instance.serve(instance.old)
        instance.deploy(config={"engine": {"replicas": 2}})

        back = instance.deploy(config={"revision": ref(instance.old)})

        assert back.model == ref(instance.old)
        assert body(instance, DEPLOY)["models"][0]["version"] == instance.old.uuid
        assert body(instance, DEPLOY)["engine_config"]["engine"] == {"replicas": 2}

    @pytest.mark.parametrize("revision", ["fraud", "fraud:v1,other:v2", "no name:v1"])
    def test_refuses_a_revision_that_is_not_one_model(self, instance: Instance, revision: str) -> None:
        with pytest.raises(InvalidInput):
            instance.deploy(config={"revision": revision})
        assert instance.changes() == []


class TestLostAnswers:
    @pytest.mark.parametrize("path", [CREATE, DEPLOY], ids=["create", "deploy"])
    @pytest.mark.parametrize("fault", [LoseAnswer(), Respond(502, b"<html>")], ids=["lost", "502"])
    def test_end_in_one_deployment(self, instance: Instance, path: str, fault: Any) -> None:
        instance.server.fault("POST", path, fault)
        instance.deploy()

        (pipeline,) = instance.server.pipelines.values()
        assert pipeline.deployment.version is pipeline.versions[-1]
        assert instance.server.count("POST", path) <= 2

    def test_of_a_deploy_that_was_carried_out_are_not_asked_for_again(self, instance: Instance) -> None:
        instance.server.script_deployment("demo", ["Starting", "Running"])
        instance.server.fault("POST", DEPLOY, LoseAnswer())

        assert instance.deploy().url == f"{instance.server.url}{API}/pipelines/infer/demo-1/demo"
        assert instance.server.count("POST", DEPLOY) == 1

    def test_of_an_undeploy_are_looked_after(self, instance: Instance) -> None:
        instance.serve()
        instance.server.fault("POST", UNDEPLOY, LoseAnswer())
        instance.undeploy()

        assert instance.server.count("POST", UNDEPLOY) == 1

    def test_that_do_not_end_are_an_error_that_another_try_may_mend(self, instance: Instance) -> None:
        instance.server.fault("POST", DEPLOY, Respond(500, b"no"), times=None)

        with pytest.raises(RegistryUnavailable):
            instance.deploy()
        assert instance.server.count("POST", DEPLOY) == 2

    def test_a_refusal_is_not_repeated(self, instance: Instance) -> None:
        instance.server.fault("POST", DEPLOY, Respond(400, {"msg": "no room for 64 CPUs", "code": 400}), times=None)

        with pytest.raises(InvalidInput, match="no room for 64 CPUs"):
            instance.deploy()
        assert instance.server.count("POST", DEPLOY) == 1


class TestLooking:
    def test_says_that_there_is_no_such_pipeline(self, instance: Instance) -> None:
        with pytest.raises(ModelNotFound, match="no pipeline 'demo'"):
            instance.look()

    def test_is_ready_once_the_engines_run_the_model(self, instance: Instance) -> None:
        instance.deploy()

        first, then = instance.look(), instance.look()

        assert (first.status, first.ready, first.failed) == ("Starting", False, False)
        assert (then.status, then.ready, then.failed) == ("Running", True, False)
        assert then.model == then.revision == ref(instance.new)
        assert then.url == f"{instance.server.url}{API}/pipelines/infer/demo-1/demo"

    def test_asks_one_question_a_look_while_it_knows_where(self, instance: Instance) -> None:
        instance.serve()
        before = len(instance.server.requests)
        instance.look()

        asked = [request.path.rpartition("/")[2] for request in instance.server.requests[before:]]
        assert asked == ["get_deployment", "get_pipeline_external_url"]

    def test_is_not_ready_while_the_version_before_still_runs(self, instance: Instance) -> None:
        instance.serve(instance.old)
        instance.server.script_deployment("demo", ["stale", "Running"])
        made = instance.deploy(instance.new)

        first = instance.look()

        assert (first.status, first.revision) == ("Running", ref(instance.old))
        assert instance.run(lambda registry: find_ready(registry, "demo", made.revision)).model == ref(instance.new)

    def test_is_not_ready_while_engines_run_different_models(self, instance: Instance) -> None:
        instance.serve(instance.old)
        instance.serve(instance.new)

        def half(status: Any) -> Any:
            engine = json.loads(json.dumps(status["engines"][0]))
            engine["model_statuses"]["models"][0]["version"] = instance.old.uuid
            return {**status, "engines": [*status["engines"], engine]}

        tell(instance, half, times=1)
        assert (instance.look().ready, instance.look().ready) == (False, True)

    def test_is_ready_while_one_more_engine_starts(self, instance: Instance) -> None:
        instance.serve()
        pending = {"name": "engine-2", "status": "Pending", "pipeline_statuses": None, "model_statuses": None}
        tell(instance, lambda status: {**status, "engines": [*status["engines"], pending]})

        assert instance.look().ready

    def test_is_not_ready_while_the_model_is_being_loaded(self, instance: Instance) -> None:
        instance.serve()

        def loading(status: Any) -> Any:
            status["engines"][0]["model_statuses"]["models"][0]["status"] = "Starting"
            return status

        tell(instance, loading)
        assert not instance.look().ready

    def test_reads_pods_in_the_form_of_the_client_s_types_too(self, instance: Instance) -> None:
        instance.serve()

        def nested(status: Any) -> Any:
            engines = [
                {
                    "info": {"name": engine["name"], "status": engine["status"], "reason": None, "details": None},
                    "model_statuses": engine["model_statuses"],
                    "pipeline_statuses": engine["pipeline_statuses"],
                }
                for engine in status["engines"]
            ]
            return {**status, "details": None, "engines": engines, "engine_lbs": None, "helm": []}

        tell(instance, nested)
        assert instance.look().ready

    def test_names_the_pipeline_version_where_engines_tell_it(self, instance: Instance) -> None:
        instance.serve()

        def versioned(status: Any) -> Any:
            status["engines"][0]["pipeline_statuses"]["pipelines"][0]["version"] = "0bb33df8"
            return status

        tell(instance, versioned)
        assert instance.look().artifact == "0bb33df8"

    def test_of_several_models_names_no_single_one(self, instance: Instance) -> None:
        instance.serve()

        def chained(status: Any) -> Any:
            models = status["engines"][0]["model_statuses"]["models"]
            models.append({"name": "post", "version": "v", "sha": "s", "status": "Running"})
            return status

        tell(instance, chained)
        seen = instance.look()
        assert (seen.ready, seen.model, seen.revision) == (True, None, f"{ref(instance.new)},post:v")

    @pytest.mark.parametrize("nothing", sorted(NOTHING))
    def test_takes_nothing_right_after_a_deploy_for_not_yet(self, instance: Instance, nothing: str) -> None:
        instance.deploy()
        instance.server.fault("POST", STATUS, NOTHING[nothing], times=2)  # it looks again once it has read the list

        seen = instance.look()

        assert (seen.status, seen.ready, seen.failed, seen.gone) == ("Starting", False, False, False)

    @pytest.mark.parametrize("nothing", sorted(NOTHING))
    def test_takes_nothing_after_an_undeploy_for_its_end(self, instance: Instance, nothing: str) -> None:
        instance.serve()
        instance.undeploy()
        instance.server.fault("POST", STATUS, NOTHING[nothing], times=None)

        seen = instance.look()

        assert (seen.status, seen.ready, seen.failed, seen.gone) == ("Undeployed", False, True, True)
        assert instance.run(lambda registry: find_gone(registry, "demo")).gone

    @pytest.mark.parametrize("nothing", sorted(NOTHING))
    @pytest.mark.parametrize("told", [None, {"maximum_replicas": 1, "prewarmed_replicas": 0}], ids=["null", "types"])
    def test_waits_where_the_list_does_not_tell_what_nothing_means(
        self, instance: Instance, nothing: str, told: Any
    ) -> None:
        def silent(listed: Any) -> Any:
            for item in listed["pipelines"]:
                item["deployment"] = told  # the latter is what the client's types know
            return listed

        tell(instance, silent, "/list_pipelines$")
        instance.deploy()
        instance.server.fault("POST", STATUS, NOTHING[nothing], times=2)  # it looks again once it has read the list

        seen = instance.look()

        assert (seen.ready, seen.failed, seen.gone) == (False, False, True)
        while not (seen := instance.look()).ready:
            pass
        assert seen.url == f"{instance.server.url}{API}/pipelines/infer/demo-1/demo"

    def test_learns_the_number_of_a_deployment_from_its_url_where_the_list_does_not_tell(
        self, instance: Instance
    ) -> None:
        instance.serve()
        tell(instance, lambda listed: {"pipelines": [{"pipeline": one["pipeline"]} for one in listed["pipelines"]]},
             "/list_pipelines$")  # fmt: skip
        del instance.registry  # a process that knows nothing

        assert instance.look().ready
        assert body(instance, STATUS) == {"name": "demo-1"}

    @pytest.mark.parametrize("status", [500, 404])
    def test_a_server_that_tells_nothing_of_what_is_not_deployed_is_deployed_to_all_the_same(
        self, instance: Instance, status: int
    ) -> None:
        instance.server.fault("POST", DEPLOY, Respond(400, {"msg": "no", "code": 400}))
        with pytest.raises(InvalidInput):
            instance.deploy()
        instance.server.fault("POST", "/get_pipeline_external_url$", Respond(status, b""), times=None)

        seen = instance.look()

        assert (seen.gone, seen.failed) == (True, False)
        assert instance.undeploy().gone
        instance.serve()

    def test_a_pipeline_that_was_never_deployed_is_gone(self, instance: Instance) -> None:
        instance.server.fault("POST", DEPLOY, Respond(400, {"msg": "no", "code": 400}))
        with pytest.raises(InvalidInput):
            instance.deploy()

        seen = instance.look()
        assert (seen.gone, seen.failed) == (True, True)

    def test_an_error_counts_only_when_it_lasts(self, instance: Instance) -> None:
        pod = {"reason": "ImagePullBackOff", "details": ["cannot pull"], "required_cpu": 64, "required_memory": "1Ti"}
        instance.server.script_deployment("demo", ["Error"], **pod)
        instance.deploy()

        first = instance.look()
        instance.clock[0] += 59
        second = instance.look()
        instance.clock[0] += 1
        third = instance.look()

        assert [(one.ready, one.failed) for one in (first, second, third)] == [(False, False)] * 2 + [(False, True)]
        for words in ("ImagePullBackOff", "cannot pull", "needs 64 CPUs", "needs 1Ti memory"):
            assert words in (third.reason or "")
        with pytest.raises(DeploymentFailed, match=r"demo is Error: .*ImagePullBackOff"):
            instance.run(lambda registry: find_ready(registry, "demo", ref(instance.new)))

    def test_an_error_that_passes_is_forgotten(self, instance: Instance) -> None:
        instance.server.script_deployment("demo", ["Error", "Starting", "Error"])
        instance.deploy()
        instance.look(), instance.look()
        instance.clock[0] += 61

        assert not instance.look().failed

    def test_an_unknown_status_is_waited_on_and_logged_once(
        self, instance: Instance, caplog: pytest.LogCaptureFixture
    ) -> None:
        instance.server.script_deployment("demo", ["Hibernating"])
        instance.deploy()

        seen = [instance.look(), instance.look()]

        assert [(one.ready, one.failed, one.gone) for one in seen] == [(False, False, False)] * 2
        assert caplog.text.count("Hibernating") == 1

    def test_survives_a_passing_fault(self, instance: Instance) -> None:
        instance.serve()
        instance.server.fault("POST", STATUS, Respond(503, b""))

        assert instance.look().ready

    def test_names_no_url_of_another_host(self, instance: Instance) -> None:
        instance.serve()
        other = {"url": "https://elsewhere.example/v1/api/pipelines/infer/demo-1/demo"}
        tell(instance, lambda _: other, "/get_pipeline_external_url$")

        assert instance.look().url == f"{instance.server.url}{API}/pipelines/infer/demo-1/demo"

    @pytest.mark.parametrize("answer", [{"status": ["Running"]}, {"status": "Running", "engines": 5}, [], "Running"])
    def test_an_answer_of_another_shape_is_a_passing_fault(self, instance: Instance, answer: Any) -> None:
        instance.serve()
        instance.server.fault("POST", STATUS, Respond(200, json.dumps(answer).encode()), times=None)

        with pytest.raises(RegistryUnavailable, match="not as expected"):
            instance.look()

    def test_an_older_server_that_does_not_tell_definitions_is_waited_on(self, instance: Instance) -> None:
        for path in ("/list_pipeline_versions$", "/pipelines/get_version$"):
            instance.server.fault("POST", path, Respond(404, b""), times=None)
        instance.deploy()

        first, then = instance.look(), instance.look()
        assert (first.revision, then.revision) == (None, ref(instance.new))


class TestUndeploy:
    @pytest.mark.parametrize("answer", ["null", "{}", ""])
    def test_takes_every_answer_that_instances_give(self, tmp_path: Path, answer: str) -> None:
        with running_instance(tmp_path, undeploy_answer=answer) as instance:
            instance.serve()
            ending = instance.undeploy()

            assert (ending.ready, ending.failed, ending.gone) == (False, True, False)
            assert body(instance, UNDEPLOY) == {"pipeline_id": 1, "deployment_id": 1}
            while not instance.look().gone:
                pass

    def test_twice_asks_once(self, instance: Instance) -> None:
        instance.serve()
        instance.undeploy()
        while not instance.look().gone:
            pass

        assert instance.undeploy().gone
        assert instance.server.count("POST", UNDEPLOY) == 1

    def test_while_it_is_ending_asks_for_nothing(self, instance: Instance) -> None:
        instance.server.undeployment = ["Running"] * 5
        instance.serve()

        assert [instance.undeploy().gone, instance.undeploy().gone] == [False, False]
        assert instance.server.count("POST", UNDEPLOY) == 1

    def test_of_what_never_was_is_fine(self, instance: Instance) -> None:
        assert instance.undeploy().gone

    def test_by_two_at_once_is_fine(self, instance: Instance) -> None:
        instance.serve()
        instance.server.fault("POST", UNDEPLOY, Respond(404, {"msg": "Deployment not found", "code": 404}))

        assert not instance.undeploy().ready


class TestTakingBack:
    def started(self, instance: Instance, undo: Undo, replaced: str | None) -> RollOut:
        model = ref(instance.new)
        return RollOut(deployment="demo", model=model, undo=undo, replaced=replaced, revision=model)

    @pytest.mark.parametrize("status", ["Starting", "Running", "Error"])
    def test_ends_what_was_made(self, instance: Instance, status: str) -> None:
        instance.server.script_deployment("demo", [status])
        instance.deploy()

        done = instance.run(lambda registry: take_back(registry, self.started(instance, Undo.TERMINATE, None)))

        assert "terminated" in done
        assert instance.server.count("POST", UNDEPLOY) == 1

    def test_puts_back_the_model_before(self, instance: Instance) -> None:
        instance.serve(instance.old)
        instance.server.script_deployment("demo", ["Starting"])
        instance.deploy(instance.new)
        started = self.started(instance, Undo.RESTORE, ref(instance.old))

        instance.run(lambda registry: take_back(registry, started))

        assert body(instance, DEPLOY)["models"][0]["version"] == instance.old.uuid

    def test_leaves_what_somebody_else_has_rolled_out(self, instance: Instance) -> None:
        instance.serve(instance.old)
        other = instance.server.seed(instance.workspace, "fraud", b"other")
        instance.serve(other)
        before = instance.changes()

        done = instance.run(
            lambda registry: take_back(registry, self.started(instance, Undo.RESTORE, ref(instance.old)))
        )

        assert "left as it is" in done
        assert instance.changes() == before


def test_no_error_tells_a_password_or_a_token(instance: Instance) -> None:
    told = []
    for fault in (Respond(500, b"x"), Respond(400, {"msg": "no"}), Respond(403, {"msg": "no"})):
        instance.server.faults.clear()
        instance.server.fault("POST", "/pipelines/", fault, times=None)
        with pytest.raises(ModelSyncError) as error:
            instance.deploy()
        told.append(str(error.value))

    tokens = list(instance.server.access_tokens)
    assert tokens
    assert not [secret for secret in (*tokens, instance.server.password) for text in told if secret in text]


def shape(value: Any) -> Any:
    """A JSON value with the kinds of its leaves in place of these."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def recorded(client: str, path: str) -> Any:
    """The newest recorded request of a client to a path."""
    exchanges = [one for step in RECORDINGS[client]["steps"] for one in step["exchanges"]]
    return [one for one in exchanges if one["path"].endswith(path)][-1]["request_json"]


def merged(one: Any, other: Any) -> Any:
    """The fields of both."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **other, **{key: merged(one[key], other[key]) for key in one.keys() & other.keys()}}
    return other


@pytest.mark.parametrize(
    "path",
    [
        "/pipelines/create",
        "/pipelines/deploy",
        "/status/get_deployment",
        "/pipelines/undeploy",
        "/admin/get_pipeline_external_url",
    ],
)
def test_requests_have_the_fields_of_the_vendors_client_and_of_the_guide(instance: Instance, path: str) -> None:
    version = instance.server.seed(instance.workspace, "fraud", b"x", arch="x86", accel="none")
    instance.serve(version)
    instance.undeploy()

    clients = ["guide"] if "external" in path else ["sdk", "guide"]
    expected: Any = {}
    for client in clients:
        expected = merged(expected, shape(recorded(client, path)))
    assert shape(body(instance, f"{path}$")) == expected


def test_the_models_that_pipelines_run_are_told_with_the_pipeline(instance: Instance) -> None:
    def deployed() -> Any:
        return instance.run(lambda registry: registry.deployed_models())

    assert deployed() == {}
    instance.deploy()
    assert deployed() == {ref(instance.new): "demo"}
    instance.undeploy()
    assert deployed() == {}
